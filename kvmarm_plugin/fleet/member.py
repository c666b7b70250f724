# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that is to be levelled: what it gives, as far as that is known."""

from __future__ import annotations

from ..judge.by_profile import possible_kernels
from ..model.features import FEATURES
from ..model.profile import Cluster, HostProfile, Vcpu
from ..registers.rules import (
    IMPLEMENTATION_ID,
    KernelFacts,
    accepts,
    ignores,
    keeps,
    kernel_version,
    masks_of,
    refused_fields,
)
from ..registers.table import Field, id_of
from ..registers.text import unpack_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    FeatureSet = tuple[str, ...]  # of vCPU features, in the order of their bits

NEWEST = "7.2.8"  # the newest kernel whose masks were read (registers/writable.tsv)

# What differs between vCPUs of one CPU that have other features.
_BY_FEATURES = frozenset(
    ["ID_AA64ZFR0_EL1", "SVE_VLS"]
    + [field.partition(".")[0] for feature in FEATURES for field in feature.fields]
)


class Member:
    """A host to be levelled, of one cluster."""

    def __init__(self, host: HostProfile) -> None:
        self.host = host
        self.cluster: Cluster = host.clusters[0]
        self.kernels = possible_kernels(host, self.cluster, levels=True)
        self.first = self._with_identity(self.cluster.vcpus[0])
        registers = self.first.registers
        self.identity = tuple(registers.get(name) for name in IMPLEMENTATION_ID)
        self.cpu = registers.get("MIDR_EL1", self.cluster.midr), registers.get("REVIDR_EL1")

    def knows(self, part: str) -> bool:
        return part not in self.host.unknown

    def _with_identity(self, vcpu: Vcpu) -> Vcpu:
        """A vCPU of which not all registers are known; sysfs tells two, if the CPUs are of one
        kind.
        """
        told = {"MIDR_EL1": self.cluster.midr, "REVIDR_EL1": self.cluster.revidr}
        if self.knows("registers"):
            return vcpu
        known = {name: value for name, value in told.items() if value is not None}
        return vcpu.replace(registers={**known, **vcpu.registers})

    def measured(self, features: FeatureSet) -> Vcpu | None:
        return self.cluster.vcpu(self.cluster.target, features)

    def makes(self, features: FeatureSet) -> bool:
        """Whether it makes such a vCPU, as far as is known."""
        return self.measured(features) is not None or not self.knows("vcpus")

    def vcpu(self, features: FeatureSet) -> Vcpu:
        """One of those that it `makes`. Where nobody made it, with the registers that all vCPUs of
        the CPU have in common.
        """
        found = self.measured(features)
        if found is not None:
            return self._with_identity(found)
        registers = self.first.registers
        return Vcpu(
            self.cluster.target,
            features,
            {name: registers[name] for name in registers if name not in _BY_FEATURES},
            "",
        )

    def reglist(self, features: FeatureSet) -> frozenset[int] | None:
        """The list of all registers; None where it is unknown."""
        found = self.measured(features)
        return unpack_ids(found.reglist) if found and self.knows("reglist") else None

    def lacks(self, name: str, features: FeatureSet) -> bool:
        """Whether such a vCPU is for certain without a register that identifies vCPUs."""
        return name not in self.vcpu(features).registers and not self.may_have(name, features)

    def may_have(self, name: str, features: FeatureSet) -> bool:
        """Whether nobody knows what such a vCPU has in a register, or whether it has it."""
        vcpu = self.vcpu(features)
        if name in vcpu.registers:
            return False
        if self.measured(features) is None:
            if name in _BY_FEATURES:
                return True
            vcpu = self.first
        listed = not self.knows("reglist") or id_of(name) in unpack_ids(vcpu.reglist)
        return listed and not self.knows("registers")

    def takes(self, name: str, value: int, registers: dict[str, int]) -> bool:
        """Whether its kernel lets a vCPU of these registers have this value, and shows it."""
        return any(keeps(name, value, registers, kernel) for kernel in self.kernels)

    def refuses(self, name: str, value: int, registers: dict[str, int]) -> bool:
        """Whether its kernel does not even let it be set."""
        return not any(
            ignores(name, value, registers, kernel) or accepts(name, value, registers[name], kernel)
            for kernel in self.kernels
        )

    def refused_fields(self, name: str, value: int, limit: int) -> list[Field]:
        """The fields that whatever kernel it may have refuses."""
        every = [refused_fields(name, value, limit, kernel) for kernel in self.kernels]
        return [field for field in every[0] if all(field in fields for fields in every)]

    def would_take(self, name: str, value: int, registers: dict[str, int]) -> bool:
        """Whether it would with the newest kernel that is known."""
        newest = KernelFacts(kernel_version(NEWEST), masks_of(NEWEST)[0], identities=True)
        return keeps(name, value, registers, newest)
