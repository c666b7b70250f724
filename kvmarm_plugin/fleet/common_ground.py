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
from ..basics.untrusted import some
from ..basics.value import Value
from ..domain.pins import find_cluster
from ..judge.by_profile import ProfileOffer, check, given
from ..judge.verdict import judge
from ..model.features import AARCH32, CPU_FEATURES, FEATURES, PAUTH, SVE, Feature
from ..model.policy import Policy
from ..model.profile import BASELINE, Cluster, HostProfile, Qemu
from ..model.target import Target
from ..model.vcpu import KVM_ARCHITECTURES
from ..registers.overrides import takes_hidden
from ..resolve.forms import knobs_of
from ..resolve.resolver import Resolver
from ..resolve.wish import Wish
from .kinds import kernel_age
from .obstacles import Obstacle, blocking, find_obstacles, in_all, shared_midrs, view


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
    found = tuple(find_obstacles(hosts))
    if found:
        return Common(None, {}, found)
    head = profile_head(hosts, name)
    clusters = []
    missing: dict[str, str] = {}
    shared = shared_midrs(hosts)
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
        gic_versions=in_all([host.gic_versions for host in hosts]),
        clusters=(),
        qemu=_qemu([host.qemu for host in hosts if host.qemu]),
        # Hosts without libvirt take whatever QEMU takes.
        libvirt=with_libvirt[0].libvirt if with_libvirt else None,
        cpu_features=in_all([host.cpu_features for host in with_libvirt or hosts]),
        problems=(),
    )


def _overrides(hosts: list[HostProfile]) -> tuple[str, ...]:
    """The words that all have, and those of any that make its kernel take less: what other words do
    is measured.
    """
    common = in_all([host.overrides for host in hosts])
    taking = {word for host in hosts for word in host.overrides if takes_hidden([word])}
    return (*common, *sorted(taking.difference(common)))


def _qemu(every: list[Qemu]) -> Qemu | None:
    if not every:
        return None  # of hosts that are known in part
    first = min(every, key=lambda qemu: qemu.release)  # what it would not start, no guest can be
    every = [first, *(qemu for qemu in every if qemu is not first)]
    machines = in_all([qemu.machines for qemu in every])
    return first.replace(
        machines=machines,
        aliases={
            alias: machine if all(qemu.aliases[alias] == machine for qemu in every) else machines[0]
            for alias, machine in first.aliases.items()
            if all(alias in qemu.aliases for qemu in every)
        },
        cpu_models=in_all([qemu.cpu_models for qemu in every]),
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
    # What cannot be turned off everywhere, all have: `find_obstacles` has seen to that.
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
