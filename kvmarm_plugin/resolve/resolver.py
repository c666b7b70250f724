# SPDX-License-Identifier: LGPL-2.1-or-later
"""Resolve: intent + host profile + policy → target → concrete domain XML.

`Resolver` does it for the domains of one host. It reads what a domain asks for, decides the features, looks up the vCPU
that was measured with exactly those, and hands the target to `rewrite`. Domains that do not ask (no host-model, another
architecture, no KVM) come back byte for byte.
"""

from __future__ import annotations

from typing import NamedTuple

from . import __version__, cpulist, record, rewrite
from .domain import Element, asks_for_host_model, parse, quoted
from .emit import Features, Form, choose_form, knobs_of
from .errors import KvmarmError
from .pins import cpus_of, find_cluster, pins_of
from .policy import Policy
from .profile import Cluster, HostProfile, Qemu
from .record import Origin
from .target import Pinning, Target, sve_bitmap
from .threads import new_pins, pinned_cpus, vcpus
from .untrusted import decimal, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Callable

# The bits of KVM_ARM_VCPU_INIT that a guest or a policy chooses, in the order of their bits (kvm.uapi.VCPU_FEATURES).
_PAUTH = ("ptrauth_address", "ptrauth_generic")

_GIB = 1 << 30

# Behind RAM: redistributors of a GICv3 with many vCPUs, PCIe configuration space, PCIe memory (extended_memmap, hw/arm/virt.c).
_HIGH_REGIONS = (64 << 20, 256 << 20, 512 << 30)

# As libvirt has them (virScaleInteger), in lower case.
_UNITS = {"b": 1, "byte": 1, "bytes": 1}
_SUFFIXES = (("", 1024), ("ib", 1024), ("b", 1000))
_UNITS.update({letter + suffix: base**power for power, letter in enumerate("kmgtpe", 1) for suffix, base in _SUFFIXES})
_MOST_MEMORY = (1 << 64) - 1  # bytes; libvirt's and QEMU's numbers end there
_MOST_SLOTS = (1 << 32) - 1  # libvirt's numbers end there; QEMU has up to 256


class ResolveError(KvmarmError):
    """This host cannot give what the domain asks for."""


class Wish(NamedTuple):
    """What a domain asks for.

    Attributes:
        architecture: of the guest: "aarch64" or "armv7l".
        machine: the machine type as written; empty for the default.
        gic: version as written: "2", "3", or "host" or nothing for whatever there is.
        pmu: True, False, or None where the domain says nothing.
        features: (name, required or None if optional or False if off) of each <feature>, in document order.
        memory: bytes of RAM that the guest can ever have, and room for as much as can be plugged in.
        cpus: the host CPUs that its own pins name, all together, ascending; empty if it has none, or on a host of one cluster.
    """

    architecture: str
    machine: str = ""
    gic: str = ""
    pmu: bool | None = None
    features: tuple[tuple[str, bool | None], ...] = ()
    memory: int = 0
    cpus: tuple[int, ...] = ()


class Resolver:
    """Resolves domains for one host.

    Args:
        profile: of the host that the domains will run on, or of a pool's baseline.
        policy: what to prefer.
        origin: what records say of where they were made; by default that it was on the profile's host.
        confirm: called with each new target and the wish behind it, to raise a KvmarmError if it cannot be kept here.
        clusters: of the host that the domains will run on, with its CPU numbers; by default the profile's.
        advise: called with a line for people about what is allowed, and unwise.

    Raises:
        ResolveError: the profile shows no KVM or no QEMU, or no list of CPUs.
    """

    def __init__(
        self,
        profile: HostProfile,
        policy: Policy,
        origin: Origin | None = None,
        confirm: Callable[[Target, Wish], None] = lambda *_: None,
        clusters: tuple[Pinning, ...] | None = None,
        advise: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.profile = profile
        self.policy = policy
        self._origin = origin
        self._confirm = confirm
        self._clusters = clusters_of(profile) if clusters is None else clusters
        self._advise = advise
        self._answers: dict[Wish, tuple[Target, rewrite.Emission, list[bytes]]] = {}

    def resolve(self, source: bytes) -> bytes:
        """A domain's XML with its host-model made concrete; the XML as it is if the domain does not ask.

        Raises:
            DomainXMLError, RecordError: the XML or the record in it cannot be used.
            ResolveError: this host cannot give what the domain asks for.
        """
        domain = parse(source)
        if not asks_for_host_model(domain, self.profile.architecture):
            return source
        if record.find(domain) is not None:
            # Resolved before, and the user has written host-model anew: start from the user's XML.
            source = rewrite.restore(source, domain, cpu=False)
            domain = parse(source)
        wish = read_wish(domain, self.profile.architecture)
        several = len(self._clusters) > 1
        if several:
            wish = wish._replace(cpus=pinned_cpus(domain))
        if wish not in self._answers:
            target, form = self._decide(wish)
            self._confirm(target, wish)
            self._origin = self._origin or origin_of(self.profile)
            self._answers[wish] = (target, _emission(target, form), record.format_facts(target, self._origin))
        target, emission, facts = self._answers[wish]
        pins = self._pins(domain, target.pinning) if several else ("", ())
        return rewrite.concretise(source, domain, emission, facts, *pins)

    def target(self, wish: Wish) -> Target:
        """The target that a domain with this wish gets here. Raises ResolveError."""
        return self._decide(wish)[0]

    def _decide(self, wish: Wish) -> tuple[Target, Form]:
        profile = self.profile
        if not profile.clusters:
            others = (problem for problem in profile.problems if not problem.startswith(("libvirt", "QEMU")))
            why = next(others, "its profile has no CPU cluster")
            raise ResolveError(
                f"host {profile.name} cannot run KVM guests: {why}",
                "" if "(hint: " in why else "probe the host again once that is mended",
            )
        if profile.qemu is None:
            why = next((problem for problem in profile.problems if problem.startswith("QEMU")), "QEMU: not probed")
            raise ResolveError(
                f"host {profile.name} has no usable {why}",
                "" if "(hint: " in why else "install QEMU there and probe again",
            )
        places = self._places(wish)
        clusters = [self._measured(place) for place in places] or [_preferred(profile, self.policy)]
        roams = self._kinds(places) if len(places) > 1 else ""
        target, form = self._on(clusters[0], wish, profile.qemu, roams)
        for other in clusters[1:]:
            _check_roaming(target, self._on(other, wish, profile.qemu, roams)[0], clusters[0], other, profile, roams)
        if len(self._clusters) > 1 and not roams:
            target = target.replace(pinning=self._pinning(clusters[0]))
        return target, form

    def _places(self, wish: Wish) -> list[Pinning]:
        """The clusters that the domain's own pins name, or all if the policy says so; none if the policy is to choose one."""
        pinned = [place for place in self._clusters if not set(wish.cpus).isdisjoint(cpulist.parse(place.cpus))]
        return pinned or ([*self._clusters] if self.policy.cluster == "all" else [])

    def _measured(self, place: Pinning) -> Cluster:
        """What was measured of a cluster. A pool's baseline has only those that all its members have."""
        cluster = find_cluster(place, self.profile.clusters)
        if cluster is None:
            have = ", ".join(cluster.part or hex(cluster.midr) for cluster in self.profile.clusters)
            raise ResolveError(
                f"the guest may run on CPUs {place.cpus}, of MIDR {place.midr:#x}, which {self.profile.name} does not have",
                f"it has {have}: pin the guest to such CPUs, or let kvmarm do it",
            )
        return cluster

    def _pinning(self, cluster: Cluster) -> Pinning:
        """A cluster's CPUs on the host at hand."""
        place = find_cluster(cluster, self._clusters)
        if place is None:
            name = cluster.part or hex(cluster.midr)
            raise ResolveError(f"this host has no {name} to pin the guest to", f"{self.profile.name} gives guests that CPU")
        return place

    def _kinds(self, places: Sequence[Pinning]) -> str:
        """ "0-3 Cortex-A53, 4-5 Cortex-A72"."""
        parts = [(place, find_cluster(place, self.profile.clusters)) for place in places]
        return ", ".join(f"{place.cpus} {(cluster and cluster.part) or hex(place.midr)}" for place, cluster in parts)

    def _on(self, cluster: Cluster, wish: Wish, qemu: Qemu, roams: str) -> tuple[Target, Form]:
        """What a guest gets on a cluster.

        Args:
            roams: the kinds of CPU that it may run on, if there are several. Then it has no named model, which is of one kind,
                and no PMU.
        """
        profile = self.profile
        features = _choose_features(wish, cluster, profile, self.policy, roams)
        form = choose_form(cluster, knobs_of(profile), features, self.policy.prefer_named and not roams)
        vcpu = cluster.vcpu(form.number, features.vcpu)
        if vcpu is None:
            raise ResolveError(
                f"host {profile.name} makes no vCPU of target {form.number} with features {', '.join(features.vcpu) or 'none'}",
                "turn features off in the policy, or probe the host again",
            )
        registers = vcpu.registers
        if features.sve_lengths:
            # What QEMU will set before it finalises SVE. KVM takes any set that is the host's own up to some length (set_sve_vls).
            registers = {**registers, "SVE_VLS": sve_bitmap(features.sve_lengths)}
        target = Target(
            architecture=profile.kvm_architecture,
            number=form.number,
            features=features.vcpu,
            model=form.model,
            unsaid=_unsaid(form, wish, profile),
            machine=_choose_machine(wish, qemu, profile.name),
            gic=_choose_gic(wish, profile),
            ipa_bits=guest_ipa_bits(wish.memory, profile.ipa_bits, profile.name),
            sve_lengths=features.sve_lengths,
            seen={name: value for name, value in cluster.seen.items() if name != "PMCR_EL0" or "pmu_v3" in features.vcpu},
            registers=registers,
            reglist=vcpu.reglist,
        )
        return target, form

    def _pins(self, domain: Element, pinning: Pinning | None) -> tuple[str, tuple[bytes, ...]]:
        """The pins that a domain is to get on a host of several clusters, as `new_pins` has them."""
        name = domain.find("name")
        title = " ".join(name.body.decode(errors="replace").split()) if name else "the domain"
        where = self._kinds(self._clusters)
        if pinning is None:
            self._advise(f"{title} may run on CPUs of several kinds ({where}), and sees its CPU change when it moves")
            return "", ()
        cpus = cpulist.parse(pinning.cpus)
        here = cpulist.bits(cpus)
        for pin in pins_of(domain):
            if not cpus_of(pin) & here:
                written = f"<{pin.name} cpuset='{shown(pin.attributes['cpuset'], 60)}'>"
                raise ResolveError(f"{written} names no CPU of this host", f"it has {where}")
        if vcpus(domain) > len(cpus):
            there = f"{len(cpus)} CPU{'s' if len(cpus) > 1 else ''} ({pinning.cpus})"
            self._advise(f"{title} has {vcpus(domain)} vCPUs, and the cluster that it is pinned to {there}: they share them")
        return new_pins(domain, pinning.cpus)


def clusters_of(profile: HostProfile) -> tuple[Pinning, ...]:
    """The clusters of a host, for pinning guests to them. Raises ResolveError where its profile lists no CPUs."""
    try:
        return tuple(
            Pinning(cluster.midr, cluster.revidr, cpulist.write(cpulist.parse(cluster.cpus))) for cluster in profile.clusters
        )
    except ValueError as error:
        raise ResolveError(f"the CPUs of host {shown(profile.name, 60)}: {error}", "probe the host again") from None


def origin_of(profile: HostProfile) -> Origin:
    """The origin of what is made for this profile, by this program. Raises ResolveError for one that is broken."""
    try:
        return Origin(profile.name, profile.digest(), f"kvmarm {__version__}")
    except ValueError as error:
        raise ResolveError(f"the profile of host {shown(profile.name, 60)} is broken: {error}", "probe the host again") from None


# -- what the domain asks for --------------------------------------------------------------------------------------------------


def read_wish(domain: Element, host_architecture: str) -> Wish:
    """What a domain that asks for host-model wants, wherever it may run.

    Raises:
        ResolveError: an element twice that there is one of, or a memory size that is none.
    """
    for parent, name in ((domain, "cpu"), (domain, "features"), (domain.find("features"), "gic"), (domain.find("features"), "pmu")):
        if parent is not None and len(parent.find_all(name)) > 1:
            raise ResolveError(f"the domain has more than one <{name}>", "libvirt reads only one: remove the others")
    cpu, os_type = domain.find("cpu"), domain.find("os/type")
    assert cpu is not None  # asks_for_host_model has seen both
    assert os_type is not None
    gic, pmu = domain.find("features/gic"), domain.find("features/pmu")
    return Wish(
        architecture=os_type.attributes.get("arch", host_architecture),
        machine=os_type.attributes.get("machine", ""),
        gic=gic.attributes.get("version", "") if gic else "",
        pmu=None if pmu is None else pmu.attributes.get("state", "on") == "on",
        features=tuple(_read_feature(feature) for feature in cpu.find_all("feature")),
        memory=_memory(domain),
    )


def _read_feature(feature: Element) -> tuple[str, bool | None]:
    policy = feature.attributes.get("policy", "require")
    return feature.attributes.get("name", ""), {"optional": None, "disable": False, "forbid": False}.get(policy, True)


def _memory(domain: Element) -> int:
    """The memory that QEMU lays out; each slot for more takes up to 1 GiB of alignment (virt_set_memmap, hw/arm/virt.c)."""
    plugged = domain.find("maxMemory")
    slots = plugged.attributes.get("slots", "0") if plugged else "0"
    try:
        room = decimal(slots.strip(), _MOST_SLOTS) * _GIB
    except ValueError as error:
        raise ResolveError(f"<maxMemory slots> is {error}", "QEMU has up to 256") from None
    return max(_size(domain.find("memory")), _size(plugged)) + room


def _size(element: Element | None) -> int:
    """The size in bytes that a <memory> says; libvirt's default unit is KiB (virDomainParseMemory)."""
    if element is None:
        return 0
    unit = element.attributes.get("unit") or "KiB"
    try:
        size = decimal(element.body.decode(errors="replace").strip(), _MOST_MEMORY) * _UNITS[unit.lower() if unit.isascii() else ""]
        if size > _MOST_MEMORY:
            raise ValueError
    except (KeyError, ValueError):
        raise ResolveError(
            f"<{element.name}> is not a size: {shown(element.text[:400].decode(errors='replace'), 80)}",
            "libvirt's form is <memory unit='MiB'>512</memory>",
        ) from None
    return size


# -- what the host gives -------------------------------------------------------------------------------------------------------


def _preferred(profile: HostProfile, policy: Policy) -> Cluster:
    """The cluster that the policy names. The biggest is the one of the highest capacity, then of the highest part number."""
    by_size = sorted(profile.clusters, key=lambda cluster: cluster.size)
    if policy.cluster in ("biggest", "all"):  # all of one
        return by_size[-1]
    if policy.cluster == "smallest":
        return by_size[0]
    for cluster in by_size:
        if cluster.midr == policy.cluster:
            return cluster
    known = ", ".join(f"{cluster.midr:#x} ({cluster.part or 'unknown part'})" for cluster in by_size)
    raise ResolveError(f"host {profile.name} has no cluster with MIDR {policy.cluster:#x}", f"it has {known}")


def _check_roaming(target: Target, other: Target, here: Cluster, there: Cluster, profile: HostProfile, roams: str) -> None:
    """Refuse a guest that could not change between two clusters of a host. Raises ResolveError.

    Args:
        target, other: what it would get on either.
        roams: the kinds of CPU that it may run on.
    """
    from .check import ProfileOffer  # rarely needed, and slow to import
    from .verdict import HARMLESS, judge

    findings = [
        finding
        for finding in (*judge(target, ProfileOffer(target, profile, there)), *judge(other, ProfileOffer(other, profile, here)))
        if finding.severity != HARMLESS
    ]
    if target.number != other.number:
        # kvm_vcpu_set_target up to Linux 6.5.
        reason = f"KVM makes no vCPU of target {target.number} on the others"
    elif findings:
        reason = f"{findings[0].subject} is {findings[0].recorded} on one and {findings[0].local} on the other"
    else:
        return
    raise ResolveError(
        f"on host {profile.name} the guest may run on CPUs of several kinds ({roams}), and cannot: {reason}",
        "pin it to one kind, or say cluster: biggest in the policy",
    )


def _choose_features(wish: Wish, cluster: Cluster, profile: HostProfile, policy: Policy, roams: str) -> Features:
    """What the domain says, else what the policy says, else what the host has."""
    _check_architecture(wish, cluster, profile)
    asked = _read_cpu_features(wish)
    base = ("psci_0_2",) if cluster.has("psci_0_2") else ()
    pmu = ("pmu_v3",) if _has_pmu(wish, cluster, profile, policy, roams) else ()
    if profile.kvm_architecture == "arm64" and wish.architecture == "armv7l":
        # QEMU (10.0) settles SVE and PAuth for AArch64 guests only: sve=off is heard, pauth=off is not, and KVM makes such a vCPU.
        pauth32 = _PAUTH if cluster.has(_PAUTH[0]) else ()
        return Features(("el1_32bit", *base, *pmu, *pauth32), ())
    sve = _switch("SVE", asked.get("sve"), policy.sve, cluster.has("sve"), profile)
    pauth = _switch("PAuth", asked.get("pauth"), policy.pauth, cluster.has(_PAUTH[0]), profile)
    knobs = knobs_of(profile)
    speaker = f"{f'libvirt {profile.libvirt}' if profile.libvirt is not None else 'QEMU'} on host {profile.name}"
    for name, enabled, offered in (("sve", sve, cluster.has("sve")), ("pauth", pauth, cluster.has(_PAUTH[0]))):
        if offered and not enabled and name not in knobs:
            raise ResolveError(f"{speaker} cannot turn {name} off", "upgrade libvirt or QEMU there")
    lengths = _sve_lengths(asked, cluster, profile, policy) if sve else ()
    if lengths and lengths != cluster.sve_lengths and f"sve{lengths[-1]}" not in knobs:
        raise ResolveError(f"{speaker} cannot limit SVE to {lengths[-1]} bits", "upgrade libvirt or QEMU there")
    vcpu = (*base, *pmu, *(("sve",) if sve else ()), *(_PAUTH if pauth else ()))
    return Features(vcpu, lengths)


def _check_architecture(wish: Wish, cluster: Cluster, profile: HostProfile) -> None:
    if wish.architecture == "aarch64" and profile.kvm_architecture == "arm":
        raise ResolveError(f"host {profile.name} is 32-bit and the guest is {wish.architecture}", "use an aarch64 host")
    if wish.architecture == "armv7l" and profile.kvm_architecture == "arm64" and not cluster.has("el1_32bit"):
        raise ResolveError(
            f"host {profile.name} cannot run 32-bit guests: {cluster.part or 'its CPU'} has no AArch32 at EL1",
            "use an aarch64 guest",
        )
    if wish.architecture == "armv7l" and any(required for _, required in wish.features):
        raise ResolveError("a 32-bit guest can have neither SVE nor PAuth", "remove the <feature> elements of its <cpu>")


def _read_cpu_features(wish: Wish) -> dict[str, bool | None]:
    """The domain's own <feature> elements: "sve", "pauth" and lengths such as "sve256"; the last word on a name counts."""
    known = {"sve", "pauth", *(f"sve{length}" for length in range(128, 2049, 128))}
    asked = {}
    for name, required in wish.features:
        if name not in known:
            raise ResolveError(
                f"libvirt knows no ARM CPU feature {shown(name, 60)!r}", "known are sve, sve128 to sve2048, and pauth"
            )
        asked[name] = required
    if any(required for name, required in asked.items() if name not in ("sve", "pauth")):
        asked.setdefault("sve", True)  # as libvirt has it: a length adds sve
    return asked


def _switch(what: str, asked: bool | None, policy: bool | None, offered: bool, profile: HostProfile) -> bool:
    wanted = policy if asked is None else asked
    if wanted and not offered:
        by = "the policy" if asked is None else "the domain"
        raise ResolveError(f"{by} wants {what}, which KVM on host {profile.name} does not offer", f"turn {what} off there")
    return offered if wanted is None else wanted


def _has_pmu(wish: Wish, cluster: Cluster, profile: HostProfile, policy: Policy, roams: str) -> bool:
    """A VM has the PMU of one cluster, whose counters stand still while a vCPU runs on another (kvm_pmu_create_perf_event)."""
    pmu = _switch("a PMU", wish.pmu, policy.pmu, cluster.has("pmu_v3"), profile)
    if not (pmu and roams):
        return pmu
    if policy.cluster == "all" and wish.pmu is None and policy.pmu is None:
        return False
    raise ResolveError(
        f"on host {profile.name} the guest may run on CPUs of several kinds ({roams}), and a PMU counts on one",
        "turn it off (<pmu state='off'/>, or pmu: off in the policy), or pin the guest to one kind",
    )


def _sve_lengths(asked: dict[str, bool | None], cluster: Cluster, profile: HostProfile, policy: Policy) -> tuple[int, ...]:
    """The lengths up to the longest that is wanted: KVM takes no set with a gap that the host does not have."""
    required = [length for length in range(128, 2049, 128) if asked.get(f"sve{length}")]
    refused = [length for length in range(128, 2049, 128) if asked.get(f"sve{length}") is False]
    missing = [length for length in required if length not in cluster.sve_lengths]
    if missing:
        have = ", ".join(map(str, cluster.sve_lengths))
        raise ResolveError(f"the domain wants sve{missing[0]}, host {profile.name} has lengths {have}", "remove that feature")
    longest = max(required, default=policy.sve_max_length or max(cluster.sve_lengths, default=0))
    lengths = tuple(length for length in cluster.sve_lengths if length <= longest and length < min(refused, default=longest + 1))
    if not lengths or any(length not in lengths for length in required):
        raise ResolveError(
            f"no SVE vector length is left for the guest on host {profile.name}", "turn SVE off, or allow a longer one"
        )
    return lengths


def _choose_machine(wish: Wish, qemu: Qemu, host: str) -> str:
    written = wish.machine or "virt"
    machine = qemu.aliases.get(written, written)
    if machine not in qemu.machines:
        newest = qemu.machines[0] if qemu.machines else "none"
        raise ResolveError(
            f"QEMU {qemu.version} on host {host} has no machine type {shown(written, 60)!r} that can migrate",
            f"its newest is {shown(newest, 60)}: use that, or virt",
        )
    return machine


def _choose_gic(wish: Wish, profile: HostProfile) -> int:
    if not profile.gic_versions:
        raise ResolveError(
            f"KVM on host {profile.name} offers no virtual GIC", "this board cannot run QEMU's virt machine under KVM"
        )
    if wish.gic in ("", "host"):
        return max(profile.gic_versions)
    if wish.gic not in ("2", "3"):
        raise ResolveError(f"<gic version='{shown(wish.gic, 20)}'/> is none that libvirt knows", "it knows 2, 3 and host")
    if int(wish.gic) not in profile.gic_versions:
        have = ", ".join(map(str, profile.gic_versions))
        raise ResolveError(f"the domain wants GIC version {wish.gic}, KVM on host {profile.name} offers {have}", "remove <gic>")
    return int(wish.gic)


def guest_ipa_bits(memory: int, host_ipa_bits: int, host: str) -> int:
    """The guest physical address space that QEMU's virt machine asks KVM for, in bits.

    RAM starts at 1 GiB. Behind it, at 256 GiB or higher, come regions aligned to their size, as far as the host's limit has room
    for them (virt_set_memmap, virt_set_high_memmap and virt_kvm_type, hw/arm/virt.c).

    Args:
        memory: bytes of RAM, as in `Wish`.
        host_ipa_bits: the host's limit.
        host: its name.

    Raises:
        ResolveError: the memory does not fit.
    """
    limit = 1 << host_ipa_bits
    top = highest = _GIB + memory
    if top > limit:
        raise ResolveError(
            f"the guest's memory ends at {top / _GIB:.0f} GiB, KVM on host {host} has addresses up to {limit // _GIB} GiB",
            "give the guest less memory",
        )
    end = max(256 * _GIB, -(-top // _GIB) * _GIB)
    for size in _HIGH_REGIONS:
        start = -(-end // size) * size
        if start + size <= limit:
            end = highest = start + size
    return max(32, (highest - 1).bit_length())  # KVM makes none smaller than 32


def _unsaid(form: Form, wish: Wish, profile: HostProfile) -> tuple[str, ...]:
    """The features of "host" that the XML of this form leaves to QEMU."""
    if form.model != "host" or profile.kvm_architecture != "arm64":
        return ()
    said = {name for name, _ in form.features}
    # Where KVM has no PMU, newer QEMU's "host" has no property to turn it off, and -cpu host,pmu=off does not start
    # (kvm_arm_get_host_cpu_features, target/arm/kvm.c; QEMU 7.2 still has it, 10.0 does not).
    properties = profile.qemu.host_properties if profile.qemu else {}
    pmu = "pmu" in properties or "ARM_PMU_V3" in profile.capabilities or wish.pmu is not None
    return (
        *(() if pmu else ("pmu_v3",)),
        *(() if "sve" in said else ("sve",)),
        *(() if "pauth" in said else _PAUTH),
    )


def _emission(target: Target, form: Form) -> rewrite.Emission:
    """A target in its form, as XML."""
    state = "on" if "pmu_v3" in target.features else "off"
    features = [f"<feature policy='{'require' if enabled else 'disable'}' name={quoted(name)}/>" for name, enabled in form.features]
    return rewrite.Emission(
        cpu=form.cpu.encode(),
        model=form.model_element.encode("ascii", "xmlcharrefreplace"),
        features=tuple(feature.encode("ascii", "xmlcharrefreplace") for feature in features),
        gic=f"<gic version='{target.gic}'/>".encode(),
        # 32-bit KVM has no PMU, and QEMU no property to turn it off there.
        pmu=b"" if target.architecture == "arm" or "pmu_v3" in target.unsaid else f"<pmu state='{state}'/>".encode(),
        machine=target.machine,
    )
