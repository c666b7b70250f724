# SPDX-License-Identifier: LGPL-2.1-or-later
"""Check: would a target run on the host of a profile? The answers of `verdict.judge` from a profile
instead of a kernel.
"""

from __future__ import annotations

from ..basics import cpulist
from ..domain.pins import CountedCluster, find_cluster
from ..model.features import OFFERED_BY
from ..model.guest_registers import readable
from ..model.profile import Cluster, HostProfile
from ..model.target import Target, sve_bitmap
from ..registers.rules import KernelFacts, accepts, ignores, kernel_version
from .finding import Finding
from .offer import Offer
from .pinning import kinds_to_ask, place, with_cluster
from .verdict import judge, which_counts


class ProfileOffer(Offer):
    """What the host of a profile gives to a guest of one target, on one of its clusters."""

    def __init__(
        self,
        target: Target,
        profile: HostProfile,
        cluster: Cluster | None,
        boots: bool = False,
    ) -> None:
        super().__init__(profile.name, profile.kvm_architecture, boots)
        self._profile = profile
        self._kernel = KernelFacts(
            kernel_version(profile.kernel), cluster.writable if cluster else None
        )
        self.machines = profile.qemu.machines if profile.qemu else ()
        self.gic_versions = profile.gic_versions
        self.ipa_bits = profile.ipa_bits
        if cluster is None:
            self.cannot_make("no-kvm", target)
            return
        if profile.qemu is None:
            self.cannot_make("no-qemu", target)
            return
        # "host" is whatever QEMU makes of it there; a named model has one target number everywhere.
        number = cluster.target if target.model == "host" else cluster.models.get(target.model)
        features = self.features_for(target)
        vcpu = None if number is None else cluster.vcpu(number, features)
        if vcpu is None:
            self.cannot_make("model-unknown" if number is None else "vcpu-unknown", target)
            return
        self.registers = vcpu.registers
        self.reglist = vcpu.reglist
        self.sve_lengths = cluster.sve_lengths
        self.seen = readable(cluster.seen, features if boots else target.features)

    def has(self, feature: str) -> bool:
        return OFFERED_BY[feature] in self._profile.capabilities

    def qemu_version(self) -> tuple[int, int]:
        return self._profile.qemu.release if self._profile.qemu else (0, 0)

    def kernel(self) -> KernelFacts:
        return self._kernel

    def accepts(self, register: str, value: int) -> bool:
        if ignores(register, value, self.registers, self._kernel):
            return True
        return accepts(register, value, self.registers[register], self._kernel)


def given(target: Target, offer: Offer) -> Target:
    """What a guest with this target's XML really is where it starts: QEMU cannot set ID registers,
    it takes what KVM gives.

    Args:
        offer: of the host that it starts on, made for this target, without a problem.
    """
    registers = offer.registers
    if target.sve_lengths:
        registers = {**registers, "SVE_VLS": sve_bitmap(target.sve_lengths)}
    return target.replace(
        features=offer.features_for(target),
        registers=registers,
        reglist=offer.reglist,
        seen=offer.seen,
    )


def check(
    target: Target,
    profile: HostProfile,
    cpus: tuple[int, ...] | None = None,
    boots: bool = False,
) -> list[Finding]:
    """The findings of a target against a host; on a host of several clusters, of the one that it is
    pinned to, or of the one that counts (`verdict.which_counts`).

    Args:
        cpus: of the host, where `reconcile_pins` has looked at the domain's pins: what it returned.
            None for a guest without a domain, and with no pins but what its record says.
        boots: the guest boots there; otherwise it arrives.
    """
    clusters, pinning = profile.clusters, target.pinning
    found: list[Finding] = []
    if cpus is None and pinning is None:
        cpus, found = place(target, counted(profile))
    own = find_cluster(pinning, clusters) if pinning else None
    if own is not None:
        clusters = (own,)
    elif len(clusters) > 1:
        kinds = kinds_to_ask(target, counted(profile), cpus or ())
        clusters = tuple(
            cluster
            for kind in kinds
            for cluster in clusters
            if {*kind} & {*cpulist.parse(cluster.cpus)}
        )
    verdicts = [
        judge(target, ProfileOffer(target, profile, cluster, boots))
        for cluster in clusters or (None,)
    ]
    verdict = verdicts[which_counts(verdicts, target.roams and not boots)]
    return found + (with_cluster(verdict, pinning, clusters) if clusters else verdict)


def counted(profile: HostProfile) -> list[CountedCluster]:
    """The clusters of a host with the numbers of their CPUs, as `reconcile_pins` takes them."""
    return [
        CountedCluster(cluster.midr, cluster.revidr, cpulist.parse(cluster.cpus))
        for cluster in profile.clusters
    ]
