# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm refresh`: resolve recorded guests anew, from what their users wrote; of those that run,
also make the live record true.

A domain is read, and defined again only if something of it changes; it is never undefined.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import NamedTuple

from ..basics.errors import KvmarmError
from ..basics.untrusted import domain_word, shown, some
from ..domain import record
from ..domain.restoring import restore
from ..domain.xml import ARCHITECTURES, Element, architecture_of, asks_for_host_model, parse
from ..host import left_alone, marks
from ..host.libvirtd import OFF, Connection, Domain, LibvirtError, is_remote
from ..host.previous import redefine
from ..host.qemu import ask_named
from ..kvm.device import System
from ..resolve.wish import why_not_adopted, why_not_ours
from ..watch.adopt import keeper, pin_stored
from ..watch.renewal import UntoldError, renew_live, renew_stored
from . import DONE, ERROR, INCOMPATIBLE, refresh_view
from .inputs import how_to_resolve, read_policy, read_profile
from .output import say, write_text
from .refresh_view import (
    CHANGED,
    CHANGES,
    FAILED,
    KEPT,
    UNRESOLVED,
    UNTOLD,
    Difference,
    Guest,
    Outcome,
)
from .resolving import Choices, check_host_of, resolver_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Callable

    from ..resolve.resolver import Resolver
    from ..watch.renewal import Renewed


def run(arguments: Namespace) -> int:
    names, uri, choices = arguments.domains, arguments.connect, Choices.of(arguments)
    machine, dry_run, validate = arguments.machine or "", arguments.dry_run, arguments.validate
    as_json = arguments.json
    check_host_of(uri, choices)
    with Connection(uri) as connection, ExitStack() as stack:
        refresher = _Refresher(
            connection,
            functools.cache(lambda: stack.enter_context(resolver_for(choices))),
            functools.cache(
                lambda: keeper(
                    read_profile(choices.host),
                    read_policy(choices.policy),
                    say,
                    (lambda _: None) if choices.host else ask_named,
                )
            ),
            functools.cache(lambda: stack.enter_context(System())),
            machine,
            dry_run,
            validate,
            here=not is_remote(uri),
        )
        if names:
            guests = [refresher.by_name(name) for name in names]
        else:
            every = [refresher.refresh(domain) for domain in not_left(connection)]
            guests = [guest for guest in every if guest.stored or guest.running]
    write_text(refresh_view.as_json(guests) if as_json else refresh_view.as_text(guests))
    results = {part.result for guest in guests for part in (guest.stored, guest.running) if part}
    if FAILED in results:
        return ERROR
    return INCOMPATIBLE if results & {UNRESOLVED, UNTOLD} else DONE


def not_left(connection: Connection) -> list[Domain]:
    """All domains but those that are left alone, if they are of this host."""
    domains = connection.domains()
    if not connection.is_here:
        return domains
    found = [domain for domain in domains if not left_alone.has(domain.uuid)]
    if len(found) < len(domains):
        names = [domain.name for domain in domains if left_alone.has(domain.uuid)]
        one = len(names) == 1
        say(
            f"{some(names)} {'is' if one else 'are'} left alone, since"
            f" {'it was' if one else 'they were'} forgotten or undone"
        )
    return found


class _Refresher(NamedTuple):
    """Refreshes one domain after the other.

    Attributes:
        resolver: made on the first use, which probes this host.
        keeper: the same, of guests that keep what they have.
        system: this host's kernel, opened on the first use.
        machine: the machine type that guests are to get; empty if they keep theirs.
        here: whether libvirt's guests run on this host.
    """

    connection: Connection
    resolver: Callable[[], Resolver]
    keeper: Callable[[], Resolver]
    system: Callable[[], System]
    machine: str
    dry_run: bool
    validate: bool
    here: bool

    def by_name(self, name: str) -> Guest:
        """A domain that the user names has to be there, and have a record."""
        try:
            domain = self.connection.domain(name)
            guest = self.refresh(domain)
        except LibvirtError as error:
            return Guest(name, "", Outcome(FAILED, reason=str(error)), None)
        if guest.stored or guest.running:
            return guest
        xml = parse(domain.xml(domain.is_active(), secrets=False).encode())
        if why_not_ours(xml):
            return guest._replace(stored=Outcome(FAILED, reason=why_not_ours(xml)))
        word = domain_word(guest.name, guest.uuid)
        hint = f"to record what it has: kvmarm adopt {word}"
        if why_not_adopted(xml):
            hint = f"resolve it first: {how_to_resolve(word)}"
        missing = KvmarmError("it holds no kvmarm record", hint)
        return guest._replace(stored=Outcome(FAILED, reason=str(missing)))

    def refresh(self, domain: Domain) -> Guest:
        stamp, is_saved = marks.stamp(domain.uuid, domain.name), False
        try:
            stored = self._stored(domain) if domain.is_persistent() else None
            running = self._running(domain) if domain.beginning() != OFF else None
            is_saved = stored is not None and domain.is_saved()
            if is_saved and domain.saved_xml() is not None:
                say(
                    f"{shown(domain.name)}: its next start loads its managed save, which stays as"
                    " it is"
                )
        except LibvirtError as error:  # it has gone meanwhile
            stored, running = Outcome(FAILED, reason=str(error)), None
        guest = Guest(domain.name, domain.uuid, stored, running)
        # What was saved has the record that the mark is about.
        if not self.dry_run and self.here and not is_saved:
            _unmark(guest, stamp)
        return guest

    def _stored(self, domain: Domain) -> Outcome | None:
        """What becomes of the stored definition; None if it has no record."""
        try:
            read = domain.xml(live=False, secrets=True)
            source = read.encode()
            xml = parse(source)
            if not record.find_all(xml):
                return None
            written = source if asks_for_host_model(xml) else restore(source, xml)
            if not asks_for_host_model(parse(written)):
                intent = _intent_of(xml)
                if intent is None:  # adopted as it is: it has what the host makes of its XML
                    return self._renewed(renew_stored(domain, self.system(), self.dry_run))
                if intent.attributes.get("mode") == "host-model":
                    return Outcome(UNRESOLVED, reason=_left(xml))
                return self._pinned(domain)
        except KvmarmError as error:
            return Outcome(FAILED, reason=str(error))
        resolver = self.resolver()  # its errors are not of one guest
        try:
            result = resolver.resolve(written, self.machine or _machine_of(xml))
        except KvmarmError as error:
            return Outcome(UNRESOLVED, reason=str(error))
        try:
            differences = refresh_view.domain_differences(xml, parse(result))
            if differences and not self.dry_run:
                redefine(self.connection, domain, read, result.decode(), self.validate)
        except KvmarmError as error:
            return Outcome(FAILED, reason=str(error))
        return self._changed(differences)

    def _pinned(self, domain: Domain) -> Outcome:
        """What becomes of a guest that was adopted and pinned to what it had."""
        define = functools.partial(redefine, self.connection, domain, validate=self.validate)
        pinned = pin_stored(domain, self.keeper, define, self.dry_run, anew=True)
        if pinned is None or pinned.before is None:
            anew = KvmarmError(
                "its <cpu> was written anew since it was pinned",
                f"kvmarm adopt {domain_word(domain.name, domain.uuid)}",
            )
            return Outcome(UNRESOLVED, reason=str(anew))
        return self._changed(refresh_view.target_differences(pinned.before, pinned.after))

    def _running(self, domain: Domain) -> Outcome | None:
        """What becomes of the live record; None if there is none."""
        if not self.here:
            say(
                f"{shown(domain.name)} runs on another host: only its stored record is refreshed"
                " (hint: refresh it there)"
            )
            return None
        try:
            return self._renewed(renew_live(domain, self.system(), self.dry_run))
        except UntoldError as error:
            return Outcome(UNTOLD, reason=str(error))
        except KvmarmError as error:
            return Outcome(FAILED, reason=str(error))

    def _renewed(self, renewed: Renewed | None) -> Outcome | None:
        if renewed is None:
            return None
        return self._changed(refresh_view.target_differences(*renewed))

    def _changed(self, differences: list[Difference]) -> Outcome:
        if not differences:
            return Outcome(KEPT)
        return Outcome(CHANGES if self.dry_run else CHANGED, tuple(differences))


def _intent_of(domain: Element) -> Element | None:
    """The <cpu> that the user had written, where the record holds one."""
    element = record.find(domain)
    return None if element is None else record.intent_of(element).find("cpu")


def _left(domain: Element) -> str:
    """By what a domain has left host-model, and how it comes back, or leaves for good."""
    cpu, arch = domain.find("cpu"), architecture_of(domain)
    kind = domain.attributes.get("type", "none")
    if kind != "kvm":
        now, before = f"<domain type='{shown(kind, 40)}'>", "<domain type='kvm'>"
    elif arch not in ARCHITECTURES:
        now, before = f"<type arch='{shown(arch, 40)}'>", "<type arch='aarch64'>"
    else:
        mode = cpu.attributes.get("mode", "custom") if cpu else "none"
        now, before = f"<cpu mode='{shown(mode, 40)}'>", "<cpu mode='host-model'/>"
    error = KvmarmError(
        f"it says {now} since it was recorded, and asks for host-model no more",
        f"write {before} and refresh it again; or, for a guest without host-model, remove"
        " <kvmarm:target> from its <metadata>, with virsh edit",
    )
    return str(error)


def _machine_of(domain: Element) -> str:
    """The machine type that the domain has now."""
    os_type = domain.find("os/type")
    return os_type.attributes.get("machine", "") if os_type else ""


def _unmark(guest: Guest, stamp: object) -> None:
    """Where all records are true now, the hook's mark is of the past, if it is not a new one."""
    parts = [part for part in (guest.stored, guest.running) if part]
    if not parts or any(part.result not in (KEPT, CHANGED) for part in parts):
        return
    if marks.mark_of(guest.uuid, guest.name) is None:
        return
    if marks.stamp(guest.uuid, guest.name) != stamp:
        return
    try:
        marks.unmark(guest.uuid, guest.name)
    except OSError as error:
        say(f"{shown(guest.name)}: the mark of its record stays: {error.strerror}")
