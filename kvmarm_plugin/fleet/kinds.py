# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kinds of hosts: those that give guests the same, whatever they are called.

A pool of two thousand hosts has some dozens of kinds, and hosts of one kind get one answer to every
question: `compare` and `baseline` ask by kind.
"""

from __future__ import annotations

from ..basics.value import Value
from ..model.profile import SINCE_2, Cluster, HostProfile, Vcpu
from ..registers.overrides import takes_hidden
from ..registers.rules import kernel_version, kvm_version, release_numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable


class Kind(Value):
    """Hosts that give every guest the same CPU and machine.

    Attributes:
        hosts: at least one, by name.
    """

    hosts: tuple[HostProfile, ...]

    @property
    def host(self) -> HostProfile:
        """One that speaks for all."""
        return self.hosts[0]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(host.name for host in self.hosts)


def kinds_of(hosts: Iterable[HostProfile]) -> list[Kind]:
    """Hosts by kind. The order of the hosts decides nothing: kinds are sorted by the name of their
    first host, hosts by theirs.
    """
    members: dict[Hashable, list[HostProfile]] = {}
    for host in sorted(hosts, key=lambda host: host.name):
        members.setdefault(_capability(host), []).append(host)
    return [Kind(tuple(same)) for same in members.values()]


def kernel_age(host: HostProfile) -> tuple[tuple[int, int], tuple[int, ...]]:
    """What orders kernels, the oldest first: the version of their KVM, and of one version the point
    release.
    """
    cluster = next((cluster for cluster in host.clusters if cluster.vcpus), None)
    registers, writable = (cluster.vcpus[0].registers, cluster.writable) if cluster else ({}, None)
    return kvm_version(host.kernel, registers, writable), release_numbers(host.kernel)


def _capability(host: HostProfile) -> Hashable:
    """All that `resolve` and `check` look at, and the page size, which has no other place to be
    seen. Not names and point releases, nor what only tells people where a value comes from.
    """
    qemu = host.qemu
    return (
        host.architecture,
        tuple(part for part in host.unknown if part not in SINCE_2),
        host.page_size,
        kernel_version(host.kernel),
        takes_hidden(host.overrides),  # what other words do is measured
        frozenset(host.capabilities.items()),
        host.ipa_bits,
        host.gic_versions,
        host.libvirt is None,
        host.level_library,
        frozenset(host.cpu_features),
        qemu
        and (
            qemu.release,
            qemu.machines,
            frozenset(qemu.aliases.items()),
            frozenset(qemu.host_properties),
        ),
        tuple(problem.cpus for problem in host.unmeasured),
        # One cluster's CPU numbers and speed decide nothing. Of several, they decide which is
        # chosen, and what is pinned where.
        tuple(
            (_cluster(cluster), len(host.clusters) > 1 and (cluster.cpus, cluster.capacity))
            for cluster in host.clusters
        ),
    )


def _cluster(cluster: Cluster) -> Hashable:
    return (
        cluster.midr,
        cluster.revidr,
        cluster.target,
        cluster.sve_lengths,
        tuple(cluster.models.items()),  # the first that fits is chosen
        frozenset(cluster.seen.items()),
        None if cluster.writable is None else frozenset(cluster.writable.items()),
        cluster.level and (cluster.level.left_out, cluster.level.own, cluster.level.cpus),
        tuple(map(_vcpu, cluster.vcpus)),
    )


def _vcpu(vcpu: Vcpu) -> Hashable:
    return vcpu.number, vcpu.features, frozenset(vcpu.registers.items()), vcpu.reglist
