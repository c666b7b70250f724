# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host profile: everything measured about one host.

`host.probe` makes it, `resolve` reads it; as JSON (`profile_json`, docs/profile.md) it is also what
people send in for tests/hosts/.

A cluster gives the vCPU of every feature set that a policy can choose: the first in full, the
others as what differs from it. All are measured, none is computed.
"""

from __future__ import annotations

import re

from ..basics.value import Value
from .guest_registers import is_unread
from .problem import Problem
from .target import Level
from .vcpu import KVM_ARCHITECTURES

# What a profile may not tell, because nobody measured it: parts of the host, then parts of its
# clusters. Each is the name of a member that is then absent, but for two: "vcpus" says that there
# may be vCPUs of further features, and "registers" that those there are have further registers.
PARTS = (
    *("kernel", "overrides", "capabilities", "ipa_bits", "gic_versions"),
    *("qemu", "libvirt", "cpu_features", "page_size", "gicd_iidr"),
    *("cpus", "revidr", "capacity", "models", "sve_lengths", "seen"),
    *("vcpus", "registers", "reglist", "writable"),
)
BASELINE = "baseline of "  # what the origin of a pool's baseline begins with
# What is unknown after a problem of host.probe.
_LEFT_BY = {
    "KVM capabilities": ("capabilities", "vcpus"),
    "virtual GICs": ("gic_versions",),
}
SINCE_2 = ("page_size", "gicd_iidr")  # what no profile of the first schema tells

# Versions of QEMU.
_NO_32_BIT_KVM_FROM = (5, 2)  # "Remove KVM support for 32-bit Arm hosts"
_EXPANDS_FROM = (4, 2)  # query-cpu-model-expansion, for ARM


class Vcpu(Value):
    """A scratch vCPU as measured.

    Attributes:
        number: of KVM_ARM_VCPU_INIT.
        features: of KVM_ARM_VCPU_INIT, keys of vcpu.VCPU_FEATURES, in the order of their bits.
        registers: name → value of the registers that identify it.
        reglist: packed list of all its registers.
    """

    number: int
    features: tuple[str, ...]
    registers: dict[str, int]
    reglist: str


class Cluster(Value):
    """The CPUs of one host that share MIDR_EL1 and REVIDR_EL1.

    Attributes:
        cpus: as in sysfs, such as "0-3,6".
        midr, revidr: register values; revidr is None where sysfs has none.
        implementer, part: names, empty where unknown.
        capacity: the kernel's cpu_capacity, 1024 for the fastest; None where there is none.
        target: the number a guest gets here (KVM_ARM_PREFERRED_TARGET or the fallback).
        vcpus: what scratch vCPUs were; the first has the target above and the richest features
            without SVE, PAuth and AArch32.
        sve_lengths: vector lengths in bits that KVM offers, ascending.
        models: QEMU's named models that KVM takes here → their target number.
        seen: what a guest of a few instructions read; see target.Target.seen.
        writable: register name → mask of the bits that user space may write; None on kernels that
            do not tell (before 6.7).
        level: in the baseline of a pool that is levelled, how; its guests have these registers
            wherever they run. None of every host.
    """

    cpus: str
    midr: int
    revidr: int | None
    implementer: str
    part: str
    capacity: int | None
    target: int
    vcpus: tuple[Vcpu, ...]
    sve_lengths: tuple[int, ...]
    models: dict[str, int]
    seen: dict[str, int]
    writable: dict[str, int] | None
    level: Level | None = None

    @property
    def size(self) -> tuple[int, int]:
        """What orders the clusters of a host: by capacity, then by part number."""
        return self.capacity or 0, self.midr >> 4 & 0xFFF

    @property
    def names(self) -> tuple[str, str, str]:
        """What people call these CPUs, each more exactly: part; with variant and revision; with
        REVIDR_EL1. Without a known part they have MIDR_EL1.
        """
        revision = f"r{self.midr >> 20 & 15}p{self.midr & 15}"
        exact = f"{self.part} {revision}" if self.part else f"CPU {self.midr:#x}"
        revidr = "none" if self.revidr is None else hex(self.revidr)
        return self.part or hex(self.midr), exact, f"{exact} (REVIDR {revidr})"

    def vcpu(self, number: int, features: tuple[str, ...]) -> Vcpu | None:
        """The vCPU with exactly this target and these features, or None if the host cannot make
        it.
        """
        return next(
            (vcpu for vcpu in self.vcpus if (vcpu.number, vcpu.features) == (number, features)),
            None,
        )

    def has(self, feature: str) -> bool:
        """Whether any vCPU was made with this feature."""
        return any(feature in vcpu.features for vcpu in self.vcpus)


class Qemu(Value):
    """What QEMU on the host offers.

    Attributes:
        binary, version: of the emulator for the host's own architecture.
        machines: names of the virt machine types, newest first.
        aliases: alias → machine type, such as "virt" → "virt-10.0".
        cpu_models: names that -cpu takes.
        host_properties: what query-cpu-model-expansion of "host" shows: property → value; empty
            where it could not be asked.
    """

    binary: str
    version: str
    machines: tuple[str, ...]
    aliases: dict[str, str]
    cpu_models: tuple[str, ...]
    host_properties: dict[str, bool | int | str]

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version; (0, 0) if the version is none."""
        found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})(?![0-9])", self.version)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def has_kvm(self, architecture: str) -> bool:
        """Whether it has KVM on hosts of this architecture of KVM's."""
        return architecture != "arm" or self.release < _NO_32_BIT_KVM_FROM

    def has_model(self, model: str, architecture: str) -> bool:
        """Whether it starts this CPU model under KVM, as far as it was asked. Without KVM there is
        no "host" to expand; see host.qemu.
        """
        if self.cpu_models and model not in self.cpu_models:
            return False
        expands = architecture == "arm64" and self.release >= _EXPANDS_FROM
        return model != "host" or bool(self.host_properties) or not expands


class HostProfile(Value):
    """One host.

    Attributes:
        name: the host's, as uname gives it.
        origin: "measured"; "hand-made: " or "imported: " and from what; or "baseline of " and how
            many hosts, in a pool.
        made_by: program and version.
        architecture: as uname -m gives it: "aarch64", "armv7l", or another that has no KVM on ARM.
        kernel: as uname -r gives it; empty where it is unknown.
        overrides: the kernel command line's words that lower what the CPUs offer, such as
            "arm64.nosve".
        platform: the board's or machine's model, empty where firmware tells none.
        capabilities: KVM capability (key of kvm.uapi.CAPABILITIES) → KVM_CHECK_EXTENSION's answer;
            empty without KVM.
        ipa_bits: the largest guest physical address space; 0 without KVM.
        gic_versions: of virtual GICs.
        clusters: empty without KVM on ARM.
        qemu, libvirt: None where missing; libvirt is its version.
        cpu_features: names that libvirt takes in <feature>, of those that QEMU's "host" has; empty
            where it is missing.
        problems: what could not be measured, and why.
        page_size: of the host's kernel, in bytes; 0 where nobody looked.
        gicd_iidr: GICD_IIDR of the virtual GIC of the newest version; None without one.
        level_library: version of libkvmarm-level that QEMU can load (host.level_library); or empty.
        unknown: of PARTS, in their order, what nobody measured; each part then has the value that
            stands for nothing.
    """

    name: str
    origin: str
    made_by: str
    architecture: str
    kernel: str
    overrides: tuple[str, ...]
    platform: str
    capabilities: dict[str, int]
    ipa_bits: int
    gic_versions: tuple[int, ...]
    clusters: tuple[Cluster, ...]
    qemu: Qemu | None
    libvirt: str | None
    cpu_features: tuple[str, ...]
    problems: tuple[Problem, ...]
    page_size: int = 0
    gicd_iidr: int | None = None
    level_library: str = ""
    unknown: tuple[str, ...] = SINCE_2

    @property
    def unmeasured(self) -> tuple[Problem, ...]:
        """The problems that are CPUs of which nothing is known: a guest may run there all the same,
        and see another CPU.
        """
        return tuple(problem for problem in self.problems if problem.cpus)

    def with_unknown(self) -> HostProfile:
        """The same, which says what it does not know because KVM did not answer, or because no
        scratch guest has read it. KVM on a 32-bit host runs none.
        """
        failed = {problem.part for problem in self.problems}
        new = {each for part in _LEFT_BY for each in _LEFT_BY[part] if part in failed}
        clusters = self.clusters
        if self.kvm_architecture == "arm64" and any(is_unread(each.seen) for each in clusters):
            new.add("seen")
            clusters = tuple(cluster.replace(seen={}) for cluster in clusters)
        if not clusters or new <= {*self.unknown}:
            return self
        return self.replace(
            clusters=clusters,
            capabilities={} if "capabilities" in new else self.capabilities,
            gic_versions=() if "gic_versions" in new else self.gic_versions,
            unknown=tuple(part for part in PARTS if part in {*self.unknown, *new}),
        )

    def name_of(self, cluster: Cluster, least: int = 0) -> str:
        """The shortest of a cluster's names, from this place on, that no other cluster of the host
        has.
        """
        names = cluster.names[least:]
        others = [other.names[least:] for other in self.clusters if other != cluster]
        return next((name for name, *same in zip(names, *others) if name not in same), names[-1])

    @property
    def is_baseline(self) -> bool:
        """Whether it is no host's, but what a pool's members all give."""
        return self.origin.startswith(BASELINE)

    @property
    def title(self) -> str:
        """What messages call it: "host alpha", "pool rack-7"."""
        return f"{'pool' if self.is_baseline else 'host'} {self.name}"

    @property
    def where(self) -> str:
        """The same behind what is there: KVM "on host alpha", "in pool rack-7"."""
        return f"{'in' if self.is_baseline else 'on'} {self.title}"

    @property
    def kvm_architecture(self) -> str:
        """KVM's: "arm64" or "arm"."""
        return KVM_ARCHITECTURES.get(self.architecture, "arm")
