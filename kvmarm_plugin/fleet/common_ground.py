# SPDX-License-Identifier: LGPL-2.1-or-later
"""What hosts have in common: the profile of a host that gives what each of them gives and nothing
more, or what is in the way.

QEMU cannot set ID registers: a guest is what KVM on the host that it is started on makes of its
XML. So hosts exchange guests only if what each gives under the same XML is taken by every other,
and that is what is asked here, by the rules of `check`; what XML can turn off is turned off where
hosts differ in it.
"""

from __future__ import annotations

import itertools

from ..basics.errors import KvmarmError
from ..basics.untrusted import shown, some
from ..basics.value import Value
from ..domain.pins import find_cluster
from ..judge.by_profile import ProfileOffer, check, given
from ..judge.finding import HARMLESS, Finding
from ..judge.verdict import judge
from ..judge.wording import line, texts
from ..model.features import AARCH32, CPU_FEATURES, FEATURES, PAUTH, SVE, Feature
from ..model.policy import Policy
from ..model.profile import BASELINE, Cluster, HostProfile, Qemu
from ..model.target import Target
from ..model.vcpu import KVM_ARCHITECTURES, LIBVIRT_ARCHITECTURES
from ..registers.overrides import takes_hidden
from ..resolve.address_space import guest_ipa_bits
from ..resolve.forms import knobs_of
from ..resolve.resolver import Resolver
from ..resolve.wish import Wish
from .kinds import kernel_age

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")


class Obstacle(Value):
    """Why a guest of one host cannot go to another.

    Attributes:
        source, destination: names of the hosts.
        finding: the reason.
    """

    source: str
    destination: str
    finding: Finding

    def __str__(self) -> str:
        source, destination = shown(self.source), shown(self.destination)
        said = line(self.finding, f"on {source}", f"on {destination}")
        return f"{source} to {destination}: {said}"

    def in_short(self) -> str:
        """What differs, without the rule and the remedy."""
        said = texts(self.finding)
        if self.finding.kind == "no-guest":  # about one host alone
            return said["rule"]
        meaning = f" ({said['meaning']})" if said["meaning"] else ""
        here, there = (
            f"{said['recorded']} on {shown(self.source)}",
            f"{said['local']} on {shown(self.destination)}",
        )
        return f"{said['subject']}{meaning}: {here}, {there}"


class Common(Value):
    """What hosts have in common.

    Attributes:
        profile: of a host that gives just that; None if the hosts cannot exchange even the least of
            guests.
        missing: name of a feature that no guest gets → why.
        obstacles: why there is no profile.
    """

    profile: HostProfile | None
    missing: dict[str, str]
    obstacles: tuple[Obstacle, ...]


def common(hosts: list[HostProfile], name: str) -> Common:
    """What these hosts have in common, in whatever order they are given.

    Args:
        hosts: at least one, of different names. Hosts of one kind may be given by one that speaks
            for all.
        name: for the profile.
    """
    hosts = sorted(hosts, key=_age)
    found = tuple(obstacles(hosts))
    if found:
        return Common(None, {}, found)
    head = profile_head(hosts, name)
    clusters = []
    missing: dict[str, str] = {}
    shared = _shared_midrs(hosts)
    for first in (cluster for cluster in hosts[0].clusters if cluster.midr in shared):
        # Of clusters of one MIDR_EL1, the one of the same REVIDR_EL1.
        places = [find_cluster(first, host.clusters) for host in hosts]
        views = [
            host.replace(clusters=(place,)) if place else view(host, first.midr)
            for host, place in zip(hosts, places)
        ]
        cluster, lost = _cluster(head, views)
        clusters.append(cluster)
        for feature, why in lost.items():
            missing.setdefault(feature, why)
    return Common(head.replace(clusters=tuple(clusters)), missing, ())


def obstacles(hosts: list[HostProfile]) -> list[Obstacle]:
    """Why these hosts do not exchange the least of guests: one with nothing that XML can turn off.
    Most blocking first, by pair.
    """
    found = []
    shared = _shared_midrs(hosts)
    # Where there is no CPU that all have, the biggest speak for the hosts.
    views = [view(host, shared[0] if shared else None) for host in hosts]
    for source in views:
        targets: dict[Wish, Target] = {}
        for destination in views:
            wish = least_wish(source, destination, views)
            try:
                if wish not in targets:
                    targets[wish] = _least(source, wish)
            except KvmarmError as error:
                found.append(
                    Obstacle(
                        source.name,
                        destination.name,
                        Finding("no-guest", error=error.message, hint=error.hint),
                    )
                )
                break
            if destination is source:
                continue
            found += [
                Obstacle(source.name, destination.name, finding)
                for finding in between(
                    blocking(check(targets[wish], destination)), source, destination
                )
            ]
            if destination.ipa_bits:
                here, there = (least_addresses(host) for host in (source, destination))
                if here < there:  # the other way round `check` says it
                    found.append(
                        Obstacle(
                            source.name,
                            destination.name,
                            Finding("addresses-differ", recorded=here, local=there),
                        )
                    )
    return found


def between(
    findings: list[Finding], source: HostProfile, destination: HostProfile
) -> list[Finding]:
    """The findings of a guest that moves between these hosts, on a machine type that both know if
    there is one. Where it is refused there is none, and both lists are at hand to say what helps.
    """
    return [
        _machines_apart(finding, source, destination)
        if finding.kind in ("machine-unknown", "machine-dropped", "machine-foreign")
        else finding
        for finding in findings
    ]


def _machines_apart(finding: Finding, source: HostProfile, destination: HostProfile) -> Finding:
    its, theirs = machines(source), machines(destination)
    values = {"recorded": _from_to(its), "local": _from_to(theirs)}
    if finding.kind == "machine-foreign":
        return Finding("machines-apart-foreign", **values)
    older, needed = (source, theirs) if finding.kind == "machine-dropped" else (destination, its)
    return Finding("machines-apart", **values, older=older.name, needed=needed[-1])


def _from_to(names: tuple[str, ...]) -> str:
    """Machine types in short, given newest first."""
    return names[0] if len(names) == 1 else f"{names[-1]} to {names[0]}"


def least_addresses(host: HostProfile) -> int:
    """Bits of addresses of its smallest guests; 0 where QEMU starts none."""
    try:
        return guest_ipa_bits(
            0, host.ipa_bits, host.where, host.qemu.release if host.qemu else (0, 0)
        )
    except KvmarmError:
        return 0


def _least(host: HostProfile, wish: Wish) -> Target:
    """The target with nothing in it that the host's libvirt and QEMU can turn off. Raises
    KvmarmError.
    """
    refusal: KvmarmError | None = None
    least = Policy(prefer_named=False, pmu=False)
    names = [feature.policy for feature in CPU_FEATURES]
    for values in itertools.product((False, None), repeat=len(names)):
        try:
            return Resolver(host, least.replace(**dict(zip(names, values)))).target(wish)
        except KvmarmError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def least_wish(source: HostProfile, destination: HostProfile, hosts: list[HostProfile]) -> Wish:
    """What the least of guests asks for: the newest machine type and GIC of all hosts, else of the
    two, else of its own.
    """
    machine = gic = ""
    for group in (hosts, [source, destination], [source]):
        machine = machine or next(iter(_in_all([machines(host) for host in group])), "")
        gic = gic or max(
            _in_all([tuple(map(str, host.gic_versions)) for host in group]), default=""
        )
    return Wish(LIBVIRT_ARCHITECTURES[source.kvm_architecture], machine, gic)


def view(host: HostProfile, midr: int | None) -> HostProfile:
    """A host as if it had one cluster only: the one of this MIDR, or the biggest."""
    of_midr = [cluster for cluster in host.clusters if cluster.midr == midr]
    biggest = sorted(host.clusters, key=lambda cluster: cluster.size)[-1:]
    return host.replace(clusters=tuple(of_midr or biggest)) if len(host.clusters) > 1 else host


# -- the parts of the profile --------------------------------------------------------------------


def _age(host: HostProfile) -> tuple[object, ...]:
    """Oldest first: what an old kernel gives, newer ones take."""
    return kernel_age(host), host.qemu.release if host.qemu else (0, 0), host.name


def profile_head(hosts: list[HostProfile], name: str) -> HostProfile:
    """All but the clusters. Of one host it is that host's own."""
    first = hosts[0]
    with_libvirt = [host for host in hosts if host.libvirt is not None]
    return HostProfile(
        name=name,
        origin=f"{BASELINE}{len(hosts)} {'host' if len(hosts) == 1 else 'kinds of hosts'}",
        made_by=first.made_by,
        architecture=first.architecture,
        kernel=first.kernel,
        overrides=_overrides(hosts),
        platform=first.platform if all(host.platform == first.platform for host in hosts) else "",
        capabilities={
            capability: min(host.capabilities[capability] for host in hosts)
            for capability in first.capabilities
            if all(capability in host.capabilities for host in hosts)
        },
        ipa_bits=min(host.ipa_bits for host in hosts),
        gic_versions=_in_all([host.gic_versions for host in hosts]),
        clusters=(),
        qemu=_qemu([host.qemu for host in hosts if host.qemu]),
        # Hosts without libvirt take whatever QEMU takes.
        libvirt=with_libvirt[0].libvirt if with_libvirt else None,
        cpu_features=_in_all([host.cpu_features for host in with_libvirt or hosts]),
        problems=(),
    )


def _overrides(hosts: list[HostProfile]) -> tuple[str, ...]:
    """The words that all have, and those of any that make its kernel take less: what other words do
    is measured.
    """
    common = _in_all([host.overrides for host in hosts])
    taking = {word for host in hosts for word in host.overrides if takes_hidden([word])}
    return (*common, *sorted(taking.difference(common)))


def _qemu(every: list[Qemu]) -> Qemu | None:
    if not every:
        return None  # of hosts that are known in part
    first = min(every, key=lambda qemu: qemu.release)  # what it would not start, no guest can be
    every = [first, *(qemu for qemu in every if qemu is not first)]
    machines = _in_all([qemu.machines for qemu in every])
    return first.replace(
        machines=machines,
        aliases={
            alias: machine if all(qemu.aliases[alias] == machine for qemu in every) else machines[0]
            for alias, machine in first.aliases.items()
            if all(alias in qemu.aliases for qemu in every)
        },
        cpu_models=_in_all([qemu.cpu_models for qemu in every]),
        host_properties={
            name: next(
                (qemu.host_properties[name] for qemu in every if not qemu.host_properties[name]),
                value,
            )
            for name, value in first.host_properties.items()
            if all(name in qemu.host_properties for qemu in every)
        },
    )


def _cluster(head: HostProfile, views: list[HostProfile]) -> tuple[Cluster, dict[str, str]]:
    """The CPU that these hosts, of one cluster each, have in common, and what it lacks: name of a
    feature → why.
    """
    clusters = [host.clusters[0] for host in views]
    first = clusters[0]
    models = {
        model: number
        for model, number in first.models.items()
        if all(model in cluster.models for cluster in clusters)
    }
    # A vCPU counts where every host makes it: for -cpu host with its own target number, for a named
    # model with that model's.
    numbers = {first.target, *models.values()}
    vcpus = tuple(
        vcpu
        for vcpu in first.vcpus
        if vcpu.number in numbers
        and all(
            cluster.vcpu(
                cluster.target if vcpu.number == first.target else vcpu.number, vcpu.features
            )
            for cluster in clusters
        )
    )
    masks = [cluster.writable for cluster in clusters]
    pool = first.replace(
        models=models,
        sve_lengths=common_sve_lengths(clusters),
        vcpus=vcpus,
        writable=(
            None if None in masks else common_bits([mask for mask in masks if mask is not None])
        ),
    )
    knobs = knobs_of(head)
    # What cannot be turned off everywhere, all have: `obstacles` has seen to that.
    always = [
        feature.bits
        for feature in CPU_FEATURES
        if feature.libvirt not in knobs and pool.has(feature.bit)
    ]
    kept = {"psci_0_2", *itertools.chain(*always)}
    missing = {}
    # The others are tried in their order, and kept where every host keeps up.
    for feature in FEATURES:
        if feature.is_in(kept) or not any(cluster.has(feature.bit) for cluster in clusters):
            continue
        candidate = head.replace(clusters=(_restricted(pool, {*kept, *feature.bits}),))
        why = _why_not(feature, candidate, views)
        if why:
            missing[feature.name] = why
        else:
            kept.update(feature.bits)
    return _restricted(pool, kept), missing


def _restricted(cluster: Cluster, features: set[str]) -> Cluster:
    """A cluster that makes only vCPUs of these features."""
    vcpus = tuple(vcpu for vcpu in cluster.vcpus if features.issuperset(vcpu.features))
    return cluster.replace(
        vcpus=vcpus, sve_lengths=cluster.sve_lengths if SVE.is_in(features) else ()
    )


def _why_not(feature: Feature, candidate: HostProfile, views: list[HostProfile]) -> str:
    """Why guests of these hosts cannot have a feature; empty if they can."""
    without = [host.name for host in views if not host.clusters[0].has(feature.bit)]
    if without:
        return f"{some(without)} {'has' if len(without) == 1 else 'have'} none"
    if feature is SVE:
        lengths = candidate.clusters[0].sve_lengths
        longer = [host.name for host in views if host.clusters[0].sve_lengths != lengths]
        if not lengths:
            return "no set of vector lengths is every host's own up to its longest"
        if longer and f"sve{lengths[-1]}" not in knobs_of(candidate):
            return f"libvirt or QEMU has no word to limit {some(longer)} to {lengths[-1]} bits"
    if feature is AARCH32:
        # QEMU gives PAuth to a 32-bit guest wherever KVM has it, whatever the XML says: see
        # resolve.features.
        gives = [host.name for host in views if host.clusters[0].has(PAUTH.bit)]
        if gives and not candidate.clusters[0].has(PAUTH.bit):
            return f"QEMU would give 32-bit guests PAuth on {some(gives)}"
    for target in targets(candidate):
        if feature.is_in(target.features):
            obstacle = _first_obstacle(target, views)
            if obstacle:
                return obstacle.in_short()
    return ""


def targets(host: HostProfile) -> list[Target]:
    """Every target that some domain under some policy gets of a host of one cluster, one of each
    model and set of features.
    """
    found: dict[object, Target] = {}
    names = ["prefer_named", *(feature.policy for feature in FEATURES if feature.policy)]
    for values in itertools.product((True, False), repeat=len(names)):
        # Of what changes from one to the next, the first name is the quickest.
        resolver = Resolver(host, Policy().replace(**dict(zip(names, reversed(values)))))
        for architecture in KVM_ARCHITECTURES:
            try:
                target = resolver.target(Wish(architecture))
            except KvmarmError:
                continue
            found.setdefault((target.model, target.features), target)
    return list(found.values())


def _first_obstacle(target: Target, views: list[HostProfile]) -> Obstacle | None:
    """The first reason why guests of this XML cannot go round all hosts, wherever they are
    started.
    """
    started: list[tuple[str, Target]] = []
    for host in views:
        offer = ProfileOffer(target, host, host.clusters[0])
        for finding in blocking(judge(target, offer)):
            return Obstacle(views[0].name, host.name, finding)
        local = given(target, offer)
        if all(local != other for _, other in started):
            started.append((host.name, local))
    for source, local in started:
        for host in views:
            for finding in blocking(check(local, host)):
                return Obstacle(source, host.name, finding)
    return None


def common_sve_lengths(clusters: list[Cluster]) -> tuple[int, ...]:
    """The longest set of vector lengths that is, on every host, all that KVM offers up to its
    longest (set_sve_vls).
    """
    for longest in reversed(clusters[0].sve_lengths):
        sets = {
            tuple(length for length in cluster.sve_lengths if length <= longest)
            for cluster in clusters
        }
        if len(sets) == 1:
            return sets.pop()
    return ()


def common_bits(masks: list[dict[str, int]]) -> dict[str, int]:
    """The bits that every kernel lets user space write."""
    found = {}
    for register, bits in masks[0].items():
        for mask in masks[1:]:
            bits &= mask.get(register, 0)
        if bits:
            found[register] = bits
    return found


# -- helpers -------------------------------------------------------------------------------------


def _shared_midrs(hosts: list[HostProfile]) -> list[int]:
    """MIDR_EL1 of the CPUs that every host has, those of the first host's biggest cluster first."""
    by_size = sorted(hosts[0].clusters, key=lambda cluster: cluster.size, reverse=True)
    return [
        c.midr
        for c in by_size
        if all(any(other.midr == c.midr for other in host.clusters) for host in hosts)
    ]


def machines(host: HostProfile) -> tuple[str, ...]:
    """The machine types of a host's QEMU, newest first; none without QEMU."""
    return host.qemu.machines if host.qemu else ()


def _in_all(lists: list[tuple[T, ...]]) -> tuple[T, ...]:
    """The members of the first list that are in all, in its order."""
    return tuple(item for item in lists[0] if all(item in other for other in lists))


def blocking(findings: list[Finding]) -> list[Finding]:
    """Those that a guest cannot live with."""
    return [finding for finding in findings if finding.severity != HARMLESS]
