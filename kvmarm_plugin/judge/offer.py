# SPDX-License-Identifier: LGPL-2.1-or-later
"""The offer: what a host gives to a guest of one target, by a profile's word or by the kernel's."""

from __future__ import annotations

from ..model.features import FEATURES, PMU
from ..model.target import Target
from ..model.vcpu import in_order
from .finding import Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Self  # mypy knows it; nothing imports it

    from ..registers.rules import KernelFacts


class Offer:
    """What a host gives to a guest of one target; by_profile.ProfileOffer and rehearse.KernelOffer
    fill it in. A context manager.

    Attributes:
        host: its name.
        architecture: KVM's.
        machines: machine types of its QEMU; empty where it was not asked.
        gic_versions: empty where KVM was not asked.
        ipa_bits: the largest guest physical address space.
        problem: why no vCPU can be made for the target; None if one can.
        registers, reglist: of the vCPU that QEMU would make; of the registers, those that the
            target records are enough. Where there is a problem, what all vCPUs of the CPU have in
            common (rules.IMPLEMENTATION_ID), or nothing.
        sve_lengths: that KVM offers, in bits, ascending.
        seen: what a guest read there.
        overrides: words of its kernel's command line; empty where nobody looked.
        level_library: version of libkvmarm-level there; empty where it is missing, or the guest is
            not levelled.
        cpu: MIDR_EL1 and REVIDR_EL1 of the CPU, whatever a levelled guest is told; REVIDR_EL1 is
            None where nobody knows it, and the pair is for guests that are not levelled.
        boots: whether the guest boots there, and nothing that was recorded binds it; else it
            arrives with its state.
        unknown: of profile.PARTS, what nobody measured there. Each is then as if there were
            nothing, and `registers` has those that are known.
    """

    def __init__(self, host: str, architecture: str, boots: bool = False) -> None:
        self.host = host
        self.architecture = architecture
        self.boots = boots
        self.machines: tuple[str, ...] = ()
        self.gic_versions: tuple[int, ...] = ()
        self.ipa_bits = 0
        self.problem: Finding | None = None
        self.registers: dict[str, int] = {}
        self.reglist = ""
        self.sve_lengths: tuple[int, ...] = ()
        self.seen: dict[str, int] = {}
        self.overrides: tuple[str, ...] = ()
        self.level_library = ""
        self.cpu: tuple[int, int | None] | None = None
        self.unknown: tuple[str, ...] = ()

    def cannot_make(self, kind: str, target: Target, other: str = "", **values: str) -> None:
        """There is no vCPU for the target: note which kind of finding that is.

        Args:
            kind: if there is another, where a feature is to blame that the policy can turn off.
            other: the kind where none is.
            values: of the finding, besides the host and the vCPU.
        """
        vcpu = {"model": target.model, "number": target.number, "features": target.features}
        if other:
            settings = tuple(
                f"{feature.policy}: off"
                for feature in FEATURES
                if feature.policy and feature.is_in(target.features) and not self.has(feature.bit)
            )
            if settings:
                vcpu["settings"] = settings
            else:
                kind = other
        self.problem = Finding(kind, host=self.host, **vcpu, **values)

    def has(self, feature: str) -> bool:
        """Whether KVM here offers this vCPU feature to any guest."""
        raise NotImplementedError

    def features_for(self, target: Target) -> tuple[str, ...]:
        """Of the vCPU that QEMU would make: with a PMU wherever there is one, unless the domain's
        XML says no. Of a guest that boots, everything that the XML leaves to QEMU is as the host
        has it.
        """
        features = target.features
        if self.boots and target.unsaid:
            left = tuple(feature for feature in target.unsaid if self.has(feature))
            said = (feature for feature in features if feature not in target.unsaid)
            return in_order((*said, *left))
        if PMU.is_in(features) or not PMU.is_in(target.unsaid) or not self.has(PMU.bit):
            return features
        return in_order((*features, *PMU.bits))

    def accepts(self, register: str, value: int) -> bool:
        """Whether the kernel takes this value for a register whose own value differs."""
        raise NotImplementedError

    def doubts(self, register: str, value: int) -> bool:
        """Whether it is not known what `accepts` answers. A kernel knows."""
        return False

    def qemu_version(self) -> tuple[int, int]:
        """Of the QEMU that would load the guest; (0, 0) where that is not known. Only asked if it
        matters.
        """
        raise NotImplementedError

    def kernel(self) -> KernelFacts:
        """For telling which field of a refused register is to blame. Only asked if it matters."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what it holds: a kernel's has a scratch vCPU."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
