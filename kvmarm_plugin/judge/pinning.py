# SPDX-License-Identifier: LGPL-2.1-or-later
"""A pinned guest on another host, or on the same after its CPUs were numbered anew.

`resolve` writes pins for a cluster, and the record says which it is and what numbers its CPUs have
there. On another host the same cluster may have others. In migrate and restore libvirt takes a
changed `<vcpu cpuset>` and `<cputune>` from the hook (qemuMigrationDstPrepareAny,
qemuSaveImageOpen), and there `reconcile_pins` moves the pins; elsewhere it can only say that they
are wrong.
"""

from __future__ import annotations

from ..basics import cpulist
from ..domain.edits import Edits
from ..domain.pins import cpus_of, cpuset_of, find_cluster, pins_in, pins_of, thread_of
from ..domain.record import Home
from ..domain.xml import Element, in_utf8, parse, parse_fragment, quoted
from .finding import REFUSES, Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..domain.pins import Counted, Identified
    from ..domain.record import Record
    from ..model.target import Pinning, Target


def with_cluster(
    findings: list[Finding], pinning: Pinning | None, clusters: Sequence[Identified]
) -> list[Finding]:
    """The findings, and that this host has no such CPUs as the guest is pinned to, unless they say
    so: the kernel refuses another MIDR_EL1.
    """
    known = any(
        finding.values.get("register") == "MIDR_EL1" and finding.severity == REFUSES
        for finding in findings
    )
    if pinning is None or known or find_cluster(pinning, clusters) is not None:
        return findings
    known_here = tuple(cluster.midr for cluster in clusters if cluster.midr is not None)
    return [Finding("cluster-missing", midr=pinning.midr, local=known_here), *findings]


def reconcile_pins(
    source: bytes, domain: Element, record: Record, clusters: Sequence[Counted], movable: bool
) -> tuple[bytes, tuple[int, ...], list[Finding]]:
    """Hold the pins of a domain against the clusters of a host.

    Args:
        source, domain: the domain's XML, and the same parsed.
        record: the one in it.
        movable: whether the XML may be changed, as in migrate and restore. Otherwise wrong pins are
            findings.

    Returns:
        The XML, another only if pins had to be moved, and the record in it with them. The CPUs that
        the guest belongs on: none if it belongs on none here, or may run on any. And what is wrong
        with its pins.

    Raises:
        DomainXMLError, RecordError: its pins cannot be read, or are more than a record may keep.
    """
    pinning = record.target.pinning
    if pinning is None:
        return (source, *place(record.target, clusters, domain))
    cluster = find_cluster(pinning, clusters)
    if cluster is None:
        return source, (), []
    own = cpulist.bits(cluster.cpus)
    others = cpulist.bits(cpu for other in clusters if other is not cluster for cpu in other.cpus)
    local, midr = cpulist.write(cluster.cpus), cluster.midr
    is_home = record.home is not None and record.home.cpus == local
    if movable and (is_home or _misplaced(domain, own, others)):
        source = _move(source, domain, record, pinning, cluster.cpus)
        domain = parse(source)
    wrong = _misplaced(domain, own, others)
    if not _cpuset(domain):
        return source, cluster.cpus, [Finding("pin-missing", local=local, midr=midr)]
    found = [
        Finding(
            "pin-elsewhere",
            element=pin.name,
            recorded=pin.attributes["cpuset"],
            local=local,
            midr=midr,
        )
        for pin in wrong[:1]
    ]
    return source, cluster.cpus, found


def place(
    target: Target, clusters: Sequence[Counted], domain: Element | None = None
) -> tuple[tuple[int, ...], list[Finding]]:
    """Where a guest belongs that was pinned to no cluster: it comes from a host of one, or roams.

    Its domain may have pins that keep it to CPUs of one kind here. Otherwise its threads run on all
    kinds, and what it reads of its CPU then depends on where: unless that was chosen, it is wrong.

    Args:
        domain: None for one without pins.

    Returns:
        The CPUs of its kind; none if they are all of one kind, or it may run on several. And what
        is wrong.
    """
    if len(clusters) < 2:
        return (), []
    cpuset, named = "", -1  # a thread without a pin has all CPUs
    if domain is not None and (cpuset := _cpuset(domain)):
        named = 0
        for pin in pins_of(domain):
            named |= cpus_of(pin)
    kinds = [kind for kind in clusters if named & cpulist.bits(kind.cpus)]
    if len(kinds) == 1:
        return kinds[0].cpus, []
    if target.roams or not kinds:
        return (), []
    local = tuple(f"{cpulist.write(kind.cpus)} of {_kind(kind.midr)}" for kind in kinds)
    return (), [Finding("cluster-open", recorded=cpuset or "none", local=local)]


def _kind(midr: int | None) -> str:
    return "an unknown kind" if midr is None else f"MIDR {midr:#x}"


def kinds_to_ask(
    target: Target, clusters: Sequence[Counted], cpus: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """The CPUs of each kind that a guest may run on, whose answers are their own: the kind that it
    was recorded on first. One entry without CPUs where all are alike.

    Args:
        cpus: those that the guest belongs on, as `reconcile_pins` returns them.
    """
    if cpus or len(clusters) < 2:
        return [cpus]
    midr = target.seen.get("MIDR_EL1", target.registers.get("MIDR_EL1"))
    return [kind.cpus for kind in sorted(clusters, key=lambda kind: kind.midr != midr)]


def _cpuset(domain: Element) -> str:
    vcpu = domain.find("vcpu")
    return cpuset_of(vcpu) if vcpu is not None else ""


def _misplaced(domain: Element, cluster: int, others: int) -> list[Element]:
    """The pins that do not keep to the cluster. CPUs of no cluster are offline, and do not
    matter.
    """
    return [
        pin
        for pin in pins_of(domain)
        for cpus in [cpus_of(pin)]
        if cpus & others or not cpus & cluster
    ]


def _move(
    source: bytes, domain: Element, record: Record, pinning: Pinning, new: tuple[int, ...]
) -> bytes:
    """The XML with its pins moved to where the recorded cluster is here.

    The record keeps the pins as they were before they were first moved, at home: since a cluster of
    fewer CPUs makes the same of several pins, only that brings them back. From there they are moved
    again, but those that somebody has changed since, which are moved from where they are.
    """
    from ..domain.rewrite import replace_record  # few guests are moved

    here, last = cpulist.write(new), cpulist.parse(pinning.cpus)
    home = record.home or _home_of(domain, pinning)
    old = cpulist.parse(home.cpus)
    to_last, to_here, onward = Move(old, last), Move(old, new), Move(last, new)
    at_home = {thread_of(pin): pin for pin in _pins_of(home, domain.encoding)}
    edits = Edits(source)
    for pin in pins_of(domain):
        was = at_home.get(thread_of(pin))
        if was is None or cpus_of(pin) != to_last.mask(cpus_of(was)):
            head = pin.tag_with(cpuset=onward.cpuset(pin))
        elif old == new and was.tag_with(cpuset="") == pin.tag_with(cpuset=""):
            head = was.head  # to the byte
        else:
            head = pin.tag_with(cpuset=to_here.cpuset(was))
        edits.replace(pin.start, pin.body_start, head)
    target = record.target.replace(pinning=pinning.replace(cpus=here))
    source = edits.apply()
    record = record.replace(target=target, home=None if old == new else home)
    return replace_record(source, parse(source), record)


def _home_of(domain: Element, pinning: Pinning) -> Home:
    """The pins of a domain before they are moved."""
    cputune = domain.find("cputune")
    pins = {thread_of(pin): pin.text for pin in pins_in(cputune)} if cputune else {}
    texts = (in_utf8(text, domain.encoding) for text in pins.values())
    return Home(pinning.cpus, _cpuset(domain), tuple(texts))


def _pins_of(home: Home, encoding: str) -> list[Element]:
    """What `pins_of` gave at home."""
    vcpu = f"<vcpu cpuset={quoted(home.cpuset)}/>" if home.cpuset else ""
    return parse_fragment(vcpu + b"".join(home.pins).decode(), encoding).children


class Move:
    """What becomes of pins where their cluster has other CPU numbers.

    Args:
        old, new: the numbers of its CPUs, ascending.
    """

    def __init__(self, old: tuple[int, ...], new: tuple[int, ...]) -> None:
        self._known, self._all = cpulist.bits(old), cpulist.bits(new)
        self._places = {cpu: new[place % len(new)] for place, cpu in enumerate(old)}
        self._texts: dict[int, str] = {}  # most pins are alike

    def mask(self, cpus: int) -> int:
        """CPUs, as bits, by their new numbers: the whole cluster becomes the whole new one, a part
        of it the CPUs at the same positions, wrapping around where the new one has fewer. What is
        not all in the cluster stays as it is.
        """
        if cpus == self._known:
            return self._all
        if cpus & ~self._known or self._known == self._all:
            return cpus
        return cpulist.bits({self._places[cpu] for cpu in cpulist.numbers(cpus)})

    def cpuset(self, pin: Element) -> str:
        """Of a pin, as text."""
        cpus = cpus_of(pin)
        if cpus not in self._texts:
            there = self.mask(cpus)
            self._texts[cpus] = "" if there == cpus else cpulist.write(cpulist.numbers(there))
        return self._texts[cpus] or pin.attributes["cpuset"]
