# SPDX-License-Identifier: LGPL-2.1-or-later
"""What keeps hosts from exchanging guests, asked of the least of guests: one with nothing that XML
can turn off.
"""

from __future__ import annotations

import itertools

from ..basics.errors import KvmarmError
from ..basics.untrusted import shown
from ..basics.value import Value
from ..judge.by_profile import check
from ..judge.finding import HARMLESS, Finding
from ..judge.wording import line, texts
from ..model.features import CPU_FEATURES
from ..model.policy import Policy
from ..model.profile import HostProfile
from ..model.target import Target
from ..model.vcpu import LIBVIRT_ARCHITECTURES
from ..resolve.address_space import guest_ipa_bits
from ..resolve.resolver import Resolver
from ..resolve.wish import Wish

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


def find_obstacles(hosts: list[HostProfile]) -> list[Obstacle]:
    """Why these hosts do not exchange the least of guests: one with nothing that XML can turn off.
    Most blocking first, by pair.
    """
    found = []
    shared = shared_midrs(hosts)
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
        machine = machine or next(iter(in_all([machines(host) for host in group])), "")
        gic = gic or max(in_all([tuple(map(str, host.gic_versions)) for host in group]), default="")
    return Wish(LIBVIRT_ARCHITECTURES[source.kvm_architecture], machine, gic)


def view(host: HostProfile, midr: int | None) -> HostProfile:
    """A host as if it had one cluster only: the one of this MIDR, or the biggest."""
    of_midr = [cluster for cluster in host.clusters if cluster.midr == midr]
    biggest = sorted(host.clusters, key=lambda cluster: cluster.size)[-1:]
    return host.replace(clusters=tuple(of_midr or biggest)) if len(host.clusters) > 1 else host


def shared_midrs(hosts: list[HostProfile]) -> list[int]:
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


def in_all(lists: list[tuple[T, ...]]) -> tuple[T, ...]:
    """The members of the first list that are in all, in its order."""
    return tuple(item for item in lists[0] if all(item in other for other in lists))


def blocking(findings: list[Finding]) -> list[Finding]:
    """Those that a guest cannot live with."""
    return [finding for finding in findings if finding.severity != HARMLESS]
