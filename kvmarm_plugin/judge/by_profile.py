# SPDX-License-Identifier: LGPL-2.1-or-later
"""Would a target run on the host of a profile? The answers of `verdict.judge` from what the profile
tells, instead of a kernel.
"""

from __future__ import annotations

from ..basics import cpulist
from ..domain.pins import CountedCluster, find_cluster
from ..model.features import OFFERED_BY
from ..model.guest_registers import readable
from ..model.problem import Problem
from ..model.profile import PARTS, SINCE_2, Cluster, HostProfile
from ..model.target import LEVEL_TEXT, Level, Target, sve_bitmap
from ..registers.rules import (
    IDENTITIES_SINCE,
    IMPLEMENTATION_ID,
    MASKS_SINCE,
    KernelFacts,
    accepts,
    hidden_fields,
    ignores,
    keeps,
    kernel_facts,
    kernel_version,
    kvm_version,
    masks_of,
)
from ..registers.table import id_of
from ..registers.text import pack_ids, unpack_ids
from .finding import Finding
from .offer import Offer
from .pinning import kinds_to_ask, place, with_cluster
from .verdict import is_settled, judge, judge_host, which_counts, worst_first

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_EXTREMES = ("9999.0", "0.0")  # releases of kernels


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
        self._levelled = target.levelled
        self.overrides = profile.overrides
        # What older profiles do not tell decides nothing, nor where the only cluster is.
        idle = SINCE_2 if len(profile.clusters) > 1 else (*SINCE_2, "cpus")
        self.unknown = tuple(part for part in profile.unknown if part not in idle)
        self._kernels = _kernels(profile, cluster, target.registers)
        self.machines = profile.qemu.machines if profile.qemu else ()
        self.gic_versions = profile.gic_versions
        self.ipa_bits = profile.ipa_bits
        if cluster is None:
            self.cannot_make("no-kvm", target)
        elif profile.qemu is None and "qemu" not in profile.unknown:
            self.cannot_make("no-qemu", target)
        else:
            self._make(target, cluster)

    def _make(self, target: Target, cluster: Cluster) -> None:
        """Look up the vCPU that QEMU would make, or note why there is none."""
        profile = self._profile
        # What its other vCPUs are tells of any what all of a CPU have in common.
        of_all = cluster.vcpus[0].registers if cluster.vcpus else {}
        # Whether the library is there, nobody knows of a host whose QEMU nobody has looked at.
        self.level_library = LEVEL_TEXT if "qemu" in profile.unknown else profile.level_library
        self.registers = {name: of_all[name] for name in IMPLEMENTATION_ID if name in of_all}
        qemu, architecture = profile.qemu, profile.kvm_architecture
        if qemu and not qemu.has_kvm(architecture):
            self.cannot_make("qemu-without-kvm", target)
            return
        # "host" is whatever QEMU makes of it there; a named model has one target number everywhere.
        number = cluster.target if target.model == "host" else cluster.models.get(target.model)
        takes = number is not None or "models" in profile.unknown
        if qemu and takes and not qemu.has_model(target.model, architecture):
            self.cannot_make("qemu-without-model", target)
            return
        features = self.features_for(target)
        self.sve_lengths = cluster.sve_lengths
        self.seen = readable(cluster.seen, features if self.boots else target.features)
        vcpu = None if number is None else cluster.vcpu(number, features)
        if vcpu is not None:
            self.registers, self.reglist = vcpu.registers, vcpu.reglist
        elif number is None and "models" not in profile.unknown:
            self.cannot_make("model-unknown", target)
            return
        elif number is not None and "vcpus" not in profile.unknown:
            self.cannot_make("vcpu-unknown", target, "vcpu-unknown-other")
            return
        else:
            lacking = (*self.unknown, "registers", "reglist")
            self.unknown = tuple(part for part in PARTS if part in lacking)
        if target.level is not None:
            self._level(target, target.level, cluster)

    def _level(self, target: Target, level: Level, cluster: Cluster) -> None:
        """What libkvmarm-level makes of the vCPU, where KVM lets it."""
        self._kernels = _with_identities(self._kernels, self._profile, cluster)
        self.cpu = (
            self.registers.get("MIDR_EL1", cluster.midr),
            self.registers.get("REVIDR_EL1", cluster.revidr),
        )
        own = {name: value for name, value in self.registers.items() if name not in level.left_out}
        taken = {
            name: value
            for name, value in self._levelled.items()
            if name in own and all(keeps(name, value, own, kernel) for kernel in self._kernels)
        }
        self.registers = {**own, **taken}
        self.seen = target.seen_levelled(self.seen, self.registers)
        left_out = frozenset(map(id_of, level.left_out))
        listed = unpack_ids(self.reglist)
        self.reglist = pack_ids(listed - left_out) if listed & left_out else self.reglist

    def has(self, feature: str) -> bool:
        return OFFERED_BY[feature] in self._profile.capabilities

    def qemu_version(self) -> tuple[int, int]:
        return self._profile.qemu.release if self._profile.qemu else (0, 0)

    def kernel(self) -> KernelFacts:
        return self._kernels[0]

    def accepts(self, register: str, value: int) -> bool:
        return self._accepts(register, value, self._kernels[0])

    def doubts(self, register: str, value: int) -> bool:
        return len({self._accepts(register, value, kernel) for kernel in self._kernels}) > 1

    def _accepts(self, register: str, value: int, kernel: KernelFacts) -> bool:
        if register in self._levelled:
            return keeps(register, value, self.registers, kernel)
        if ignores(register, value, self.registers, kernel):
            return True
        return accepts(register, value, self.registers[register], kernel)


def possible_kernels(
    profile: HostProfile, cluster: Cluster, levels: bool = False
) -> list[KernelFacts]:
    """The kernel; where its version, its masks or what shows them is unknown, all extremes that it
    may be: what they agree on is known.

    Args:
        cluster: of that host, with a vCPU.
        levels: whether libkvmarm-level is there, and lets identities be written if the kernel does.
    """
    registers = cluster.vcpus[0].registers
    releases = _EXTREMES if "kernel" in profile.unknown else (profile.kernel,)
    if "registers" in profile.unknown and profile.kernel:
        releases = (profile.kernel, _EXTREMES[0])  # what shows a newer KVM may be among the others
    kernels = [
        kernel_facts(release, registers, masks)
        for masks in _masks(profile, cluster)
        for release in releases
    ]
    return _with_identities(kernels, profile, cluster) if levels else kernels


def _with_identities(
    kernels: Iterable[KernelFacts], profile: HostProfile, cluster: Cluster
) -> list[KernelFacts]:
    """The kernels where libkvmarm-level is, as far as is known."""
    possible = [bool(profile.capabilities.get("ARM_WRITABLE_IMP_ID_REGS"))]
    if "capabilities" in profile.unknown:
        version = kvm_version(profile.kernel, cluster.vcpus[0].registers, cluster.writable)
        # Vendors carry newer KVM in older kernels.
        possible = [True] if version >= IDENTITIES_SINCE else [True, False]
    return [kernel.replace(identities=writes) for writes in possible for kernel in kernels]


def _kernels(
    profile: HostProfile, cluster: Cluster | None, recorded: dict[str, int]
) -> list[KernelFacts]:
    """The possible kernels, as a guest's registers find them.

    Args:
        recorded: registers of the guest, by name.
    """
    if cluster is None or not cluster.vcpus:
        return [KernelFacts((0, 0), None)]
    local = cluster.vcpus[0].registers
    kernels = possible_kernels(profile, cluster)
    # KVM shows what all CPUs of a host have in common, and others may lack what this one has.
    if len(profile.clusters) == 1:
        hidden = [hidden_fields(recorded, local, each, profile.overrides) for each in kernels]
        sure = "overrides" not in profile.unknown and all(
            "REVIDR_EL1" in registers for registers in (recorded, local)
        )
        maybe = kernels if any(hidden) and not sure else []
        kernels = [
            *(each.replace(hidden=fields) for each, fields in zip(kernels, hidden)),
            *maybe,
        ]
    return kernels


def _masks(profile: HostProfile, cluster: Cluster) -> list[dict[str, int] | None]:
    """The writable masks; where they are unknown, the most and the least that they may be."""
    if "writable" not in profile.unknown:
        return [cluster.writable]
    everything = dict.fromkeys(
        (name for vcpu in cluster.vcpus for name in vcpu.registers), (1 << 64) - 1
    )
    if "kernel" in profile.unknown or kernel_version(profile.kernel) < MASKS_SINCE:
        return [everything, {}, None]  # a vendor may carry newer KVM in an older kernel
    least, most = masks_of(profile.kernel)
    return [everything if most is None else most, least]


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
        level=target.level_with(registers),
    )


def check(
    target: Target,
    profile: HostProfile,
    cpus: tuple[int, ...] | None = None,
    boots: bool = False,
    unknown: tuple[str, ...] = (),
) -> list[Finding]:
    """The findings of a target against a host; on a host of several clusters, of the one that it is
    pinned to, or of the one that counts (`verdict.which_counts`).

    Args:
        cpus: of the host, where `reconcile_pins` has looked at the domain's pins: what it returned.
            None for a guest without a domain, and with no pins but what its record says.
        boots: the guest boots there; otherwise it arrives.
        unknown: as for `judge`.
    """
    clusters, pinning = profile.clusters, target.pinning
    if pinning and "revidr" in profile.unknown:  # it may be the same
        clusters = tuple(cluster.replace(revidr=pinning.revidr) for cluster in clusters)
    found: list[Finding] = []
    if cpus is None and pinning is None:
        cpus, found = place(target, counted(profile))
    own = find_cluster(pinning, clusters) if pinning else None
    unmeasured = _unmeasured(profile)
    everywhere = target.roams and not cpus
    for problem in unmeasured:
        named = {*cpulist.parse(problem.cpus)} & {*(cpus or ())}
        # One that boots may start there; one that arrives has to run on all others, too.
        if named or (pinning and own is None) or (everywhere and boots):
            found = judge_host(target, ProfileOffer(target, profile, clusters[0], boots))
            return worst_first(_with_unmeasured(found, problem, boots))
    if own is not None:
        clusters = (own,)
    elif len(clusters) > 1 and "cpus" not in profile.unknown:
        kinds = kinds_to_ask(target, counted(profile), cpus or ())
        clusters = tuple(
            cluster
            for kind in kinds
            for cluster in clusters
            if {*kind} & {*cpulist.parse(cluster.cpus)}
        )
    verdicts = [
        judge(target, ProfileOffer(target, profile, cluster, boots), unknown)
        for cluster in clusters or (None,)
    ]
    verdict = verdicts[which_counts(verdicts, target.roams and not boots)]
    if unmeasured and everywhere:
        verdict = _with_unmeasured(verdict, unmeasured[0], boots)
    return worst_first(found + (with_cluster(verdict, pinning, clusters) if clusters else verdict))


def _with_unmeasured(findings: list[Finding], problem: Problem, boots: bool) -> list[Finding]:
    """The findings, and that nobody knows what the CPUs of a problem are, unless they are a no."""
    if is_settled(findings, boots):
        return findings
    what = f"CPUs {problem.cpus}"
    unknown = Finding("not-known", part="clusters", what=what, recorded="known", local="not known")
    return [*findings, unknown]


def counted(profile: HostProfile) -> list[CountedCluster]:
    """The clusters of a host with the numbers of their CPUs, as `reconcile_pins` takes them; those
    that could not be measured are of an unknown kind.
    """
    return [
        *(
            CountedCluster(cluster.midr, cluster.revidr, cpulist.parse(cluster.cpus))
            for cluster in profile.clusters
        ),
        *(
            CountedCluster(None, None, cpulist.parse(problem.cpus))
            for problem in _unmeasured(profile)
        ),
    ]


def _unmeasured(profile: HostProfile) -> tuple[Problem, ...]:
    """Of a host with KVM, the problems that are CPUs of another kind, or of an unknown one."""
    return profile.unmeasured if profile.clusters else ()
