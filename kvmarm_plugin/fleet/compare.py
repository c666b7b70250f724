# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compare: between which hosts a host-model guest can migrate, in which direction, and why not.

Hosts are compared by kind (see `kinds`). For each ordered pair of kinds the guest is one that is
resolved on the first with everything left open, on the newest machine type that both know.
"""

from __future__ import annotations

from ..basics.errors import KvmarmError
from ..basics.value import Value
from ..judge.by_profile import check
from ..judge.finding import REFUSES, UNKNOWN, WRONG, Finding
from ..judge.registers import NO_WAY_BACK
from ..judge.verdict import worst_first
from ..model.policy import Policy
from ..model.profile import HostProfile
from ..model.vcpu import LIBVIRT_ARCHITECTURES
from ..resolve.partial import missing_parts, partial_target, unknown_of_guests
from ..resolve.resolver import Resolver
from ..resolve.wish import Wish
from .kinds import Kind, kinds_of
from .obstacles import between

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..model.target import Target

# The kinds against which it only helps to start guests on the destination → what each is where
# either way has to be opened from the other's end, and so neither can be.
_NEITHER_WAY = {
    "field-refused-resolve-here": "field-refused-hopeless",
    "field-fixed-resolve-here": "field-fixed-hopeless",
}


class Pair(Value):
    """What happens to the guests of one kind of hosts on those of another, or on others of their
    own.

    Attributes:
        source, destination: positions in `Comparison.kinds`.
        findings: as of `check`, the most blocking first. They call the destination that, since it
            may be many hosts.
        problem: why no guest can be resolved on the source; empty if one can.
    """

    source: int
    destination: int
    findings: tuple[Finding, ...]
    problem: str

    @property
    def blocking(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity in (REFUSES, WRONG)]

    @property
    def unknown(self) -> list[Finding]:
        """What a clear answer would need to know."""
        return [finding for finding in self.findings if finding.severity == UNKNOWN]

    @property
    def answer(self) -> bool | None:
        """Whether they run there; None if they do as far as known, and not all is known."""
        if self.problem or self.blocking:
            return False
        return None if self.unknown else True

    @property
    def possible(self) -> bool:
        """Whether they run there for certain."""
        return self.answer is True


class Group(Value):
    """Kinds of hosts that can exchange guests freely.

    Attributes:
        name: "A" for the first, "AA" after "Z".
        kinds: positions in `Comparison.kinds`, one after the other.
        machine: the newest machine type that all know; guests on it run on every host of the group.
        problem: why its hosts, all of one kind, make no guest at all; empty if they do.
    """

    name: str
    kinds: tuple[int, ...]
    machine: str
    problem: str


class Comparison(Value):
    """The directed graph of hosts by kind.

    Attributes:
        kinds: group by group.
        groups: a partition of the kinds.
        pairs: of every kind with every kind, itself too, by source and then by destination.
    """

    kinds: tuple[Kind, ...]
    groups: tuple[Group, ...]
    pairs: tuple[Pair, ...]

    def pair(self, source: int, destination: int) -> Pair:
        return self.pairs[source * len(self.kinds) + destination]

    def hosts(self, group: Group) -> int:
        """How many hosts a group has."""
        return sum(len(self.kinds[number].hosts) for number in group.kinds)

    @property
    def answer(self) -> bool | None:
        """Whether every host's guests run on every host; None if they do as far as known."""
        answers = {pair.answer for pair in self.pairs}
        return False if False in answers else None if None in answers else True

    @property
    def possible(self) -> bool:
        """Whether they do for certain."""
        return self.answer is True

    def links(self) -> list[Link]:
        """The edges between groups: of whole groups where these are all there are, else of
        kinds.
        """
        links = []
        for number, one in enumerate(self.groups):
            for other in self.groups[number + 1 :]:
                there = {(a, b) for a in one.kinds for b in other.kinds if self.pair(a, b).possible}
                back = {(b, a) for a in one.kinds for b in other.kinds if self.pair(b, a).possible}
                both = {(a, b) for a, b in there if (b, a) in back}
                links += [Link(*edges, mutual=True) for edges in merge(both)]
                links += [Link(*edges, mutual=False) for edges in merge(there - both)]
                links += [
                    Link(*edges, mutual=False) for edges in merge(back - {(b, a) for a, b in both})
                ]
        return links


class Link(Value):
    """Guests of each of some kinds run on each of some others, of another group.

    Attributes:
        sources, destinations: positions in `Comparison.kinds`.
        mutual: whether guests of the others run on these too.
    """

    sources: tuple[int, ...]
    destinations: tuple[int, ...]
    mutual: bool


def compare(hosts: Iterable[HostProfile], policy: Policy) -> Comparison:
    """Which of the hosts can exchange guests. The order of the hosts decides nothing.

    Args:
        policy: what to prefer when a guest is resolved.
    """
    kinds = _sorted(kinds_of(hosts))
    numbers = range(len(kinds))
    sources = [_Source(kind.host, policy) for kind in kinds]
    destinations = [kind.host.replace(name="the destination") for kind in kinds]
    answers = {(a, b): sources[a].ask(destinations[b]) for a in numbers for b in numbers}
    cliques = _cliques(kinds, {edge for edge in answers if Pair(*edge, *answers[edge]).possible})
    order = [number for clique in cliques for number in clique]
    places = {number: place for place, number in enumerate(order)}
    groups = tuple(
        Group(
            _letters(index),
            tuple(places[number] for number in clique),
            _common_machine([kinds[number].host for number in clique]),
            answers[clique[0], clique[0]][1],
        )
        for index, clique in enumerate(cliques)
    )
    asked = {edge: Pair(places[edge[0]], places[edge[1]], *answers[edge]) for edge in answers}
    pairs = tuple(_with_way_back(asked[a, b], asked[b, a]) for a in order for b in order)
    return Comparison(tuple(kinds[number] for number in order), groups, pairs)


def _with_way_back(pair: Pair, back: Pair) -> Pair:
    """A pair of which no remedy has guests started on the destination and moved back from there
    where they may not go back.
    """
    if back.answer is not False:
        return pair
    is_mutual = any(each.is_hopeless or each.kind in _NEITHER_WAY for each in back.blocking)
    others = {**NO_WAY_BACK, **_NEITHER_WAY} if is_mutual else NO_WAY_BACK
    found = [
        finding.replace(kind=others.get(finding.kind, finding.kind)) for finding in pair.findings
    ]
    return pair.replace(findings=tuple(found))


class _Source:
    """A host that guests come from, with the target of each machine type that was asked for."""

    def __init__(self, host: HostProfile, policy: Policy) -> None:
        self._host = host
        self._policy = policy
        self._architecture = LIBVIRT_ARCHITECTURES[host.kvm_architecture]
        self._targets: dict[str, Target | str] = {}

    def ask(self, destination: HostProfile) -> tuple[tuple[Finding, ...], str]:
        """The findings of a guest from here on a destination, or the problem with resolving it."""
        machine = _common_machine([self._host, destination])
        if machine not in self._targets:
            try:
                self._targets[machine] = self._target(machine)
            except KvmarmError as error:
                self._targets[machine] = str(error)
        target = self._targets[machine]
        if isinstance(target, str):
            return (), target
        unknown = unknown_of_guests(target, self._host, self._policy)
        found = between(
            check(target, destination, unknown=unknown),
            self._host.replace(name="the source"),
            destination,
        )
        return tuple(worst_first([*found, *_host_differences(self._host, destination)])), ""

    def _target(self, machine: str) -> Target:
        if missing_parts(self._host):
            return partial_target(self._host, machine, self._policy)
        return Resolver(self._host, self._policy).target(Wish(self._architecture, machine))


def _host_differences(source: HostProfile, destination: HostProfile) -> list[Finding]:
    """What a guest does not depend on, and people ask for."""
    sizes, revisions = (
        (source.page_size, destination.page_size),
        (source.gicd_iidr, destination.gicd_iidr),
    )
    findings = []
    if all(sizes) and sizes[0] != sizes[1]:
        findings.append(Finding("page-size-other", recorded=sizes[0], local=sizes[1]))
    if None not in revisions and revisions[0] != revisions[1]:
        findings.append(Finding("gicd-iidr-other", recorded=revisions[0], local=revisions[1]))
    return findings


def _common_machine(hosts: list[HostProfile]) -> str:
    """The newest machine type that all know, of those whose QEMU is known; empty if there is
    none.
    """
    known = [
        host.qemu.machines if host.qemu else () for host in hosts if "qemu" not in host.unknown
    ]
    here, *others = known or [()]
    return next((machine for machine in here if all(machine in there for there in others)), "")


def _sorted(kinds: list[Kind]) -> list[Kind]:
    """Kinds of one CPU side by side; the CPU that most hosts have first, and of it the kind that
    most are.
    """
    hosts: dict[tuple[int, ...], int] = {}
    for kind in kinds:
        hosts[_midrs(kind)] = hosts.get(_midrs(kind), 0) + len(kind.hosts)
    return sorted(
        kinds,
        key=lambda kind: (-hosts[_midrs(kind)], _midrs(kind), -len(kind.hosts), kind.names[0]),
    )


def _midrs(kind: Kind) -> tuple[int, ...]:
    return tuple(cluster.midr for cluster in kind.host.clusters)


def _cliques(kinds: list[Kind], possible: set[tuple[int, int]]) -> list[list[int]]:
    """A partition of the kinds, by number, into sets. Within one, every kind takes the guests of
    every kind, its own included.

    "Exchange guests" is not quite transitive, so that there can be several such partitions, and the
    coarsest is hard to find. Here each kind in its order joins the first set of which it agrees
    with all, so that the kinds of most hosts are together where they can be. They also need a
    machine type in common: a target's machine type decides nothing but itself, and so what holds of
    each pair on the newest that the two know holds of all on one that all know.
    """
    cliques: list[list[int]] = []
    for number in range(len(kinds)):
        for clique in cliques:
            hosts = [kinds[member].host for member in (*clique, number)]
            if all(
                {(number, member), (member, number), (number, number), (member, member)} <= possible
                for member in clique
            ) and (_common_machine(hosts)):
                clique.append(number)
                break
        else:
            cliques.append([number])
    return cliques


def _letters(index: int) -> str:
    """A, B, … Z, AA, AB, … for 0, 1, …"""
    return (_letters(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)


def merge(edges: Iterable[tuple[int, int]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Edges as few sets of sources with the destinations that each of them has."""
    destinations: dict[int, list[int]] = {}
    for source, destination in sorted(edges):
        destinations.setdefault(source, []).append(destination)
    sources: dict[tuple[int, ...], list[int]] = {}
    for source, ends in destinations.items():
        sources.setdefault(tuple(ends), []).append(source)
    return [(tuple(starts), ends) for ends, starts in sources.items()]
