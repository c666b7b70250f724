# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm forget`: take the record away from guests, with `--restore` also what kvmarm has written
where their users had left it open; and leave them alone from then on.
"""

from __future__ import annotations

import os

from ..basics.errors import KvmarmError
from ..basics.untrusted import domain_word, shown
from ..domain import record
from ..domain.restoring import restore
from ..domain.xml import parse
from ..host import left_alone, marks, previous
from ..host.libvirtd import Connection, LibvirtError, is_session
from . import DONE, ERROR, refresh_view
from .inputs import check_is_here
from .output import say, write_text
from .refresh_view import (
    BARE,
    FAILED,
    FORGETS,
    FORGOTTEN,
    RESTORED,
    RESTORES,
    Difference,
    Guest,
    Outcome,
)
from .resolving import why_it_will_not_start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from ..domain.xml import Element
    from ..host.libvirtd import Domain

# What `domain.rewrite` changes, in words.
_CHANGED = {
    "CPU": "cpu",
    "machine type": "os/type",
    "GIC": "features/gic",
    "PMU": "features/pmu",
    "vCPUs": "vcpu",
    "pins": "cputune",
}


def run(arguments: Namespace) -> int:
    names, uri, restores = arguments.domains, arguments.connect, arguments.restore
    dry_run, as_json = arguments.dry_run, arguments.json
    check_is_here(uri, "forget")
    # Nobody works on the guests of a user's own libvirt, who cannot write the list either.
    lists = not dry_run and not (is_session(uri) and os.geteuid())
    with Connection(uri) as connection:
        forgetter = _Forgetter(connection, restores, dry_run, lists)
        if names:
            guests = [forgetter.by_name(name) for name in names]
        else:
            every = [forgetter.forget(domain) for domain in connection.domains()]
            guests = [guest for guest in every if guest.stored or guest.running]
    _say_what_went(forgetter, dry_run)
    write_text(refresh_view.as_json(guests) if as_json else refresh_view.as_text(guests))
    results = [part.result for guest in guests for part in (guest.stored, guest.running) if part]
    return ERROR if FAILED in results else DONE


class _Forgetter:
    """Forgets one domain after the other.

    Args:
        restores: whether what the users wrote comes back.
        dry_run: only say what would be done.
        lists: whether the domains are to be left alone from then on.

    Attributes:
        unrestored: domains, as words of a command, whose records held what their users had written,
            and went with it.
        kept: whether all of these have a definition to go back to.
    """

    def __init__(self, connection: Connection, restores: bool, dry_run: bool, lists: bool) -> None:
        self._connection = connection
        self._restores = restores
        self._dry_run = dry_run
        self._lists = lists
        self.unrestored: list[str] = []
        self.kept = True

    def by_name(self, name: str) -> Guest:
        """A domain that the user names has to be there; where it has no record, it is left alone
        all the same.
        """
        try:
            domain = self._connection.domain(name)
            was_left = left_alone.has(domain.uuid)
            guest = self.forget(domain)
        except LibvirtError as error:
            return Guest(name, "", Outcome(FAILED, reason=str(error)), None)
        if guest.stored or guest.running:
            return guest
        reason = "kvmarm leaves it alone from now on" if self._lists else ""
        if self._restores and was_left:
            reason = (
                "it was forgotten already; its definition of before comes back with: kvmarm undo"
                f" {domain_word(guest.name, guest.uuid)}"
            )
        return guest._replace(stored=Outcome(BARE, reason=reason))

    def forget(self, domain: Domain) -> Guest:
        # First, so that nobody gives it a record again meanwhile.
        if self._lists:
            left_alone.add(domain.uuid)
        stored = running = None
        try:
            if domain.is_persistent():
                stored = self._stored(domain)
        except KvmarmError as error:
            is_broken = self._restores and isinstance(error, record.RecordError)
            nothing = "nothing could be restored: " if is_broken else ""
            stored = Outcome(FAILED, reason=f"{nothing}{error}")
        try:
            if domain.is_active():
                running = self._running(domain)
            is_saved = domain.is_saved()
        except KvmarmError as error:
            running, is_saved = Outcome(FAILED, reason=str(error)), True
        guest = Guest(domain.name, domain.uuid, stored, running)
        if is_saved and (stored or running):
            say(f"{shown(domain.name)}: what was saved of it keeps its record")
        elif not self._dry_run:
            _unmark(guest)
        return guest

    def _stored(self, domain: Domain) -> Outcome | None:
        """What becomes of the stored definition; None if it has no record."""
        read = domain.xml(live=False, secrets=True)
        source = read.encode()
        xml = parse(source)
        if not record.ours(xml):
            return None
        if not self._restores or not _has_intent(xml):
            is_kept = self._dry_run or previous.keep(domain.uuid, read)
            forgotten = self._forgotten(domain, xml, live=False)
            if self._restores:
                return forgotten._replace(reason="its record held nothing to restore")
            if _held_intent(xml):
                self.unrestored.append(domain_word(domain.name, domain.uuid))
                self.kept = self.kept and is_kept
            return forgotten
        result = restore(source, xml)
        given_back = parse(result)
        if not self._dry_run:
            previous.redefine(self._connection, domain, read, result.decode())
        return Outcome(
            RESTORES if self._dry_run else RESTORED,
            (*_differences(xml, given_back), _record_gone(xml)),
            why_it_will_not_start(given_back, domain_word(domain.name, domain.uuid)),
        )

    def _running(self, domain: Domain) -> Outcome | None:
        """What becomes of the live record; None if there is none."""
        xml = parse(domain.xml(live=True, secrets=False).encode())
        return self._forgotten(domain, xml, live=True) if record.ours(xml) else None

    def _forgotten(self, domain: Domain, xml: Element, live: bool) -> Outcome:
        """Take all records away, also those that this kvmarm does not know."""
        if not self._dry_run:
            for element in record.ours(xml):
                namespace = element.name.partition(" ")[0]
                domain.set_metadata(record.PREFIX, namespace, None, live)
        return Outcome(FORGETS if self._dry_run else FORGOTTEN, (_record_gone(xml),))


def _has_intent(domain: Element) -> bool:
    """Whether there is something to restore. Raises RecordError."""
    element = record.find(domain)
    return element is not None and bool(record.intent_of(element).children)


def _held_intent(domain: Element) -> bool:
    """The same of a record that may be broken, which holds nothing that could be restored."""
    try:
        return _has_intent(domain)
    except record.RecordError:
        return False


def _say_what_went(forgetter: _Forgetter, dry_run: bool) -> None:
    """What users had written goes with the records, once for all guests: how to have it back."""
    words = forgetter.unrestored
    if not words:
        return
    word = shown(words[0]) if len(words) == 1 else "DOMAIN"
    if dry_run:
        say(
            "what their users had written would go with the records (hint: --restore gives it back)"
        )
    elif forgetter.kept:
        say(
            "what their users had written went with the records (hint: to have it back: kvmarm undo"
            f" {word} && kvmarm forget --restore {word})"
        )
    else:
        say("what their users had written went with the records, and is kept nowhere")


def _record_gone(domain: Element) -> Difference:
    namespaces = [element.name.partition(" ")[0] for element in record.ours(domain)]
    versions = [namespace[len(record.NAMESPACE_STEM) :] for namespace in namespaces]
    return Difference("record", f"version {' and '.join(versions)}", "none")


def _differences(before: Element, after: Element) -> list[Difference]:
    """What differs of what kvmarm writes."""
    pairs = [
        (what, *(_text(domain.find(path)) for domain in (before, after)))
        for what, path in _CHANGED.items()
    ]
    return [Difference(*pair) for pair in pairs if pair[1] != pair[2]]


def _text(element: Element | None) -> str:
    return " ".join(element.text.decode(errors="replace").split()) if element else "none"


def _unmark(guest: Guest) -> None:
    """Where no record is left, none is untrue."""
    parts = [part for part in (guest.stored, guest.running) if part]
    if not parts or FAILED in [part.result for part in parts]:
        return
    try:
        marks.unmark(guest.uuid, guest.name)
    except OSError as error:
        say(f"{shown(guest.name)}: its mark stays: {error.strerror}")
