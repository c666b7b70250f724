# SPDX-License-Identifier: LGPL-2.1-or-later
"""Renewal: make the records of guests true again, once they run.

The hook marks a guest that has started as something else than its record says, and cannot do more:
libvirt waits for it. What the guest has is known when it runs: libvirt then says whether it booted
here or arrived with its state, and a scratch vCPU of this kernel what follows from that
(rehearse.renewed). Nothing that a mark says is believed.

A live record is made true whatever the policy says: it is about what runs. A stored one is what a
start is compared with, so nothing that works by itself changes it unless the policy says `on-drift:
renew`; whoever types `kvmarm refresh` does.
"""

from __future__ import annotations

import platform
import time
from contextlib import nullcontext
from typing import NamedTuple

from ..basics.errors import KvmarmError
from ..basics.untrusted import domain_word, shown
from ..domain import record, record_text
from ..domain.record import Record
from ..domain.xml import Element, parse
from ..host import host_policy, left_alone, marks
from ..host.cpus import find_clusters
from ..host.libvirt_host_model import note_host_model
from ..host.libvirtd import (
    ARRIVED,
    BOOTED,
    OFF,
    STARTING,
    Connection,
    Domain,
    LibvirtError,
    NoDomainError,
)
from ..judge.contradictions import find_contradictions
from ..judge.pinning import kinds_to_ask, reconcile_pins, with_cluster
from ..judge.wording import line, texts
from ..kvm.device import KvmError, System
from ..rehearse import renewed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from ..host.cpus import CpuCluster
    from ..model.target import Target

PATIENCE = 600.0  # seconds for a guest to start, or for libvirt to take its record
SETTLING = 10.0  # seconds without running, after which a guest has not started

# What `renewed` has to be asked, by libvirt's word on how the guest began; where it has none, every
# answer has to be the same.
_WAYS = {BOOTED: (False,), ARRIVED: (True,)}
_EITHER = (False, True)

_LATER = "it is known again once the guest is shut off and started"


class Renewed(NamedTuple):
    """The target that was recorded, and the one that is."""

    before: Target
    after: Target


class UntoldError(KvmarmError):
    """What a guest has here cannot be told, so its record cannot be made true."""


class KeptError(KvmarmError):
    """A stored record is not true, and stays: the policy does not have it renewed."""


def renew_live(domain: Domain, system: System, dry_run: bool = False) -> Renewed | None:
    """Make the record of a guest that runs true. None for one that has no record.

    Args:
        dry_run: only say what would be recorded.

    Raises:
        UntoldError: what the guest has cannot be told.
        KvmarmError: libvirt refuses, or /dev/kvm fails.
    """
    beginning = domain.beginning()
    if beginning in (OFF, STARTING):
        raise UntoldError("the guest does not run yet, or is on its way", "wait, and do it again")
    if beginning != BOOTED and marks.mark_of(domain.uuid, domain.name) == marks.FROM_STATE:
        raise UntoldError(marks.FROM_STATE, _LATER)
    return _renew(domain, True, _WAYS.get(beginning, _EITHER), system, dry_run)


def renew_stored(
    domain: Domain, system: System, dry_run: bool = False, asked: bool = True
) -> Renewed | None:
    """The same of a domain's stored definition: what it gives at a cold start here.

    Args:
        asked: whether somebody has typed a command for it; else the policy decides.

    Raises:
        KeptError: the policy has it stay as it is, and it would change.
        KvmarmError: as above; PolicyError: nobody can tell what the policy says.
    """
    return _renew(domain, False, _WAYS[BOOTED], system, dry_run, asked)


def _renew(
    domain: Domain,
    live: bool,
    ways: tuple[bool, ...],
    system: System,
    dry_run: bool,
    asked: bool = True,
) -> Renewed | None:
    was_left = left_alone.has(domain.uuid)
    xml = parse(domain.xml(live, secrets=False).encode())
    elements = record.find_all(xml)
    if not elements:
        return None
    old = _read(elements[0], system)
    word = domain_word(domain.name, domain.uuid)
    target = _what_it_has(xml, old, ways, system, word, live)
    changes = target != old.target
    if changes and not asked:
        reaction = host_policy.reaction_to_drift()
        if reaction != "renew":
            raise KeptError(
                f"the policy says on-drift: {reaction}",
                f"to record what it has here: kvmarm refresh {word}",
            )
    if changes and not dry_run:
        new = old.replace(target=target, origin=old.origin.replace(renewed=platform.node()))
        put_record(domain, new, live, was_left)
    # Only now: until then the one of version 1 is what there is.
    outdated = any(element.name.startswith(record.NAMESPACE_1) for element in elements)
    if outdated and (changes or len(elements) > 1) and not dry_run:
        domain.set_metadata(record.PREFIX, record.NAMESPACE_1, None, live)
    return Renewed(old.target, target)


def put_record(domain: Domain, new: Record, live: bool, was_left: bool) -> None:
    """Put a record into a domain's metadata, unless its user has had it forgotten meanwhile.

    `forget` and `undo` put a guest on the list of those left alone before they touch its record: so
    either they find the record that is put here, or the list tells of them afterwards.

    Args:
        was_left: whether it was on the list when its XML was read.

    Raises:
        KvmarmError: that has happened, or libvirt refuses.
    """
    forgotten = KvmarmError("it is left alone, since it was forgotten or undone meanwhile")
    if not was_left and left_alone.has(domain.uuid):
        raise forgotten
    domain.set_metadata(record.PREFIX, record.NAMESPACE, record_text.standalone(new), live)
    if not was_left and left_alone.has(domain.uuid):
        domain.set_metadata(record.PREFIX, record.NAMESPACE, None, live)
        raise forgotten


def _read(element: Element, system: System) -> Record:
    """A record; many guests have the same."""
    names = [each.name for each in (element, *element.children)]  # prefixes may be said outside
    key = ("record", element.text, element.encoding, *names)
    if key not in system.answers:
        system.answers[key] = record.read(element)
    found: Record = system.answers[key]
    return found


def _what_it_has(
    xml: Element,
    recorded: Record,
    ways: tuple[bool, ...],
    system: System,
    domain: str,
    live: bool,
) -> Target:
    """The target of a guest, if it is the same whichever of these ways it began.

    Args:
        domain: its name, as one word of a command.
        live: whether it runs.

    Raises:
        UntoldError: it is not, or the XML or the pins are not those that were recorded.
        KvmarmError: no such vCPU is made here, or /dev/kvm fails.
    """
    target = recorded.target
    edits = find_contradictions(xml, target, host_ipa_bits=system.ipa_bits())
    if edits:
        said = texts(edits[0], domain, boots=True)
        raise UntoldError(
            f"its XML was edited since it was recorded: {said['subject']} was {said['recorded']},"
            f" and is {said['local']}",
            f"{said['remedy']}; {_LATER}" if live else said["remedy"],
        )
    cpus = _cpus(xml, recorded, system)
    first, *others = (renewed(target, system, arrived, cpus) for arrived in ways)
    if any(other != first for other in others):
        raise UntoldError(
            "libvirt does not say whether the guest booted here or came with its state, and which"
            " decides what it has",
            _LATER,
        )
    return first


def clusters_of(system: System) -> list[CpuCluster]:
    """This host's clusters: two files for each of its CPUs, which are read once."""
    key = (find_clusters.__name__,)
    if key not in system.answers:
        system.answers[key] = find_clusters()
    clusters: list[CpuCluster] = system.answers[key]
    return clusters


def _cpus(xml: Element, recorded: Record, system: System) -> tuple[int, ...]:
    """The CPUs whose answers are the guest's own: those that it keeps to, or, where it roams, those
    of the kind that it was recorded on. None where all are alike.
    """
    target, clusters = recorded.target, clusters_of(system)
    _, cpus, findings = reconcile_pins(b"", xml, recorded, clusters, movable=False)
    findings = with_cluster(findings, target.pinning, clusters)
    if findings:
        raise UntoldError(line(findings[0]))
    return kinds_to_ask(target, clusters, cpus)[0]


class Renewer:
    """Works through the marks of this host.

    Args:
        connect: opens the connection to libvirt.
        tell: called with each line for the log.
    """

    def __init__(self, connect: Callable[[], Connection], tell: Callable[[str], None]) -> None:
        self._connect = connect
        self._tell = tell
        self._since: dict[_Mark, float] = {}  # first seen
        self._off: dict[_Mark, float] = {}  # first seen not to run
        self._left: set[_Mark] = set()  # given up, until something happens
        self._names: dict[_Mark, str] = {}  # of the guests, for the log
        self._told: set[str] = set()
        self._has_noted = False  # whether libvirt offers host-model

    def again(self) -> None:
        """Look again at guests that were given up: something has happened."""
        self._left.clear()
        self._since.clear()

    def work(self, connection: Connection | None = None) -> bool:
        """Look once at every guest with a mark, and remove the marks of those whose records are
        true. Returns whether some are to be looked at again soon.

        Args:
            connection: one that is open; else one is opened.

        Raises:
            KvmarmError: the marks cannot be read.
        """
        waiting = [mark for mark in _marks() if mark not in self._left]
        for known in (self._since, self._off, self._names):
            for mark in known.keys() - waiting:
                del known[mark]
        if not waiting:
            return False
        try:
            opened = self._connect() if connection is None else nullcontext(connection)
            with opened as libvirt, System() as system:
                self._note_host_model(libvirt)
                again = [self._look_at(mark, libvirt, system) for mark in waiting]
        except KvmarmError as error:  # no libvirt, or no KVM
            again = [self._wait(mark, error) for mark in waiting]
        return any(again)

    def _note_host_model(self, connection: Connection) -> None:
        """Leave word for the hook; where libvirt does not tell, what was noted stays."""
        if self._has_noted:
            return
        self._has_noted = True
        try:
            note_host_model(connection)
        except KvmarmError as error:
            self._tell(f"whether libvirt offers host-model itself is not known: {error}")

    def _look_at(self, mark: _Mark, connection: Connection, system: System) -> bool:
        """Try to renew what a marked guest has; whether to look again."""
        try:
            return self._try(mark, connection, system)
        except KvmarmError as error:
            if isinstance(error, LibvirtError) or (isinstance(error, KvmError) and error.passing):
                return self._wait(mark, error)
            return self._give_up(mark, error)

    def _try(self, mark: _Mark, connection: Connection, system: System) -> bool:
        stamp = marks.stamp(*mark)
        try:
            domain = mark.domain(connection)
        except NoDomainError:
            return self._is_off(mark, None, system, stamp)
        stamp = marks.stamp(domain.uuid, domain.name)
        self._names[mark] = domain.name
        if left_alone.has(domain.uuid):
            return self._give_up(
                mark, KvmarmError("it is left alone, since it was forgotten or undone")
            )
        beginning = domain.beginning()
        if beginning == OFF:
            return self._is_off(mark, domain, system, stamp)
        self._off.pop(mark, None)
        if beginning == STARTING:
            return self._wait(mark, KvmarmError("it did not come to run"))
        try:
            self._renew_stored(domain, system)
        finally:  # one says nothing about the other
            renewed = renew_live(domain, system)
        if mark.domain(connection).run != domain.run:
            # libvirt may have waited for a revert to end, and put the record of the run that is
            # over in the place of the snapshot's.
            if renewed is not None and renewed.before != renewed.after:
                self._mark(domain, marks.FROM_STATE)
            return True
        return self._done(mark, domain, stamp)

    def _is_off(self, mark: _Mark, domain: Domain | None, system: System, stamp: object) -> bool:
        """A guest that does not run may be about to."""
        now = time.monotonic()
        if now - self._off.setdefault(mark, now) < SETTLING:
            return True
        del self._off[mark]  # its next mark is of another start
        is_true = False
        if domain is not None:
            is_true = self._renew_stored(domain, system)
            if domain.is_saved():
                return self._give_up(mark, KvmarmError("it was saved with that"))
        return self._done(mark, domain, stamp, is_true)

    def _renew_stored(self, domain: Domain, system: System) -> bool:
        """Where it cannot be renewed, or the policy keeps it, it stays: a guest's next start, and
        `kvmarm check`, compare it with this host. Nobody could do that with a live record. Returns
        whether it is true.
        """
        if not domain.is_persistent():
            return False
        try:
            renew_stored(domain, system, asked=False)
        except LibvirtError:
            raise
        except KvmarmError as error:
            self._tell_once(f"{shown(domain.name)}: its stored record stays as it is: {error}")
            return False
        return True

    def _done(
        self, mark: _Mark, domain: Domain | None, stamp: object, is_true: bool = True
    ) -> bool:
        """Remove the mark, unless it is another one by now."""
        uuid, name = (domain.uuid, domain.name) if domain else mark
        if marks.stamp(uuid, name) != stamp:
            return True
        try:
            marks.unmark(uuid, name)
        except OSError as error:
            return self._give_up(mark, KvmarmError(f"its mark stays: {error.strerror}"))
        if domain is not None and is_true:
            self._tell(f"{shown(name)}: its record is true")
        return False

    def _mark(self, domain: Domain, reason: str) -> None:
        try:
            marks.mark(domain.uuid, reason)
        except OSError as error:
            self._tell_once(f"{shown(domain.name)}: its mark stays as it is: {error.strerror}")

    def _wait(self, mark: _Mark, error: KvmarmError) -> bool:
        now = time.monotonic()
        if now - self._since.setdefault(mark, now) < PATIENCE:
            return True
        return self._give_up(mark, error)

    def _give_up(self, mark: _Mark, error: KvmarmError) -> bool:
        self._left.add(mark)
        name = self._names.get(mark) or mark.name or mark.uuid
        self._tell_once(f"{shown(name)}: its record may not be true: {error}")
        return False

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)


class _Mark(NamedTuple):
    """Whose mark it is: of a UUID or of a name, the other is empty."""

    uuid: str
    name: str

    def domain(self, connection: Connection) -> Domain:
        return (
            connection.domain_by_uuid(self.uuid)
            if self.uuid
            else connection.domain_by_name(self.name)
        )


def _marks() -> list[_Mark]:
    try:
        uuids, names = marks.marked()
    except OSError as error:
        raise KvmarmError(
            f"cannot read {marks.DIRECTORY}/marks: {error.strerror}", "run this as root"
        ) from None
    return [*(_Mark(uuid, "") for uuid in uuids), *(_Mark("", name) for name in names)]
