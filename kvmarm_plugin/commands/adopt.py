# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm adopt`: record guests that never asked for host-model, running ones too, and write what
they have into their stored definitions.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import NamedTuple

from ..basics.errors import KvmarmError
from ..basics.untrusted import shown
from ..domain import record
from ..domain.xml import parse
from ..host.libvirtd import Connection, LibvirtError
from ..host.previous import redefine
from ..host.qemu import ask_named
from ..kvm.device import System
from ..model.policy import adopts
from ..resolve.wish import why_not_adopted
from ..watch.adopt import adopt_live, adopt_stored, is_rewritten, keeper, pin_stored
from ..watch.renewal import UntoldError
from . import DONE, ERROR, INCOMPATIBLE, refresh_view
from .inputs import check_is_here, probe_here, read_policy
from .output import say, write_text
from .refresh import not_left
from .refresh_view import ADOPTED, ADOPTS, FAILED, KEPT, UNTOLD, Guest, Outcome
from .resolving import leave_alone_no_more

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from ..domain.xml import Element
    from ..host.libvirtd import Domain
    from ..model.policy import Policy
    from ..resolve.resolver import Resolver
    from ..watch.adopt import Adopted


def run(arguments: Namespace) -> int:
    names, uri = arguments.domains, arguments.connect
    dry_run, as_json = arguments.dry_run, arguments.json
    check_is_here(uri, "adopt")
    policy = read_policy(None)
    with Connection(uri) as connection, ExitStack() as stack:
        adopter = _Adopter(
            connection,
            functools.cache(lambda: keeper(probe_here(), policy, say, ask_named)),
            functools.cache(lambda: stack.enter_context(System())),
            dry_run,
        )
        if names:
            guests = [adopter.by_name(name) for name in names]
        else:
            every = [adopter.adopt(each) for each in _not_excepted(connection, policy)]
            guests = [guest for guest in every if guest.stored or guest.running]
    write_text(refresh_view.as_json(guests) if as_json else refresh_view.as_text(guests))
    results = {part.result for guest in guests for part in (guest.stored, guest.running) if part}
    if FAILED in results:
        return ERROR
    return INCOMPATIBLE if UNTOLD in results else DONE


def _not_excepted(connection: Connection, policy: Policy) -> list[Domain]:
    """All domains but those that are left alone, and those that the policy excepts."""
    named = policy.replace(adopt="record")  # whatever happens by itself
    return [each for each in not_left(connection) if adopts(named, each.name) != "off"]


class _Adopter(NamedTuple):
    """Adopts one domain after the other.

    Attributes:
        resolver: made on the first use, which probes this host.
        system: this host's kernel, opened on the first use.
        dry_run: only say what would be done.
    """

    connection: Connection
    resolver: Callable[[], Resolver]
    system: Callable[[], System]
    dry_run: bool

    def by_name(self, name: str) -> Guest:
        """A domain that the user names has to be there, and is not left alone any more."""
        try:
            domain = self.connection.domain(name)
            guest = self.adopt(domain)
        except LibvirtError as error:
            return Guest(name, "", Outcome(FAILED, reason=str(error)), None)
        if not guest.stored and not guest.running:
            xml = domain.xml(live=not domain.is_persistent(), secrets=False)
            reason = why_not_adopted(parse(xml.encode()))
            return guest._replace(stored=Outcome(FAILED, reason=reason))
        if not self.dry_run:
            leave_alone_no_more(domain.uuid, shown(name))
        return guest

    def adopt(self, domain: Domain) -> Guest:
        running = self._outcome(domain, live=True) if domain.is_active() else None
        stored = self._outcome(domain, live=False) if domain.is_persistent() else None
        if stored is not None and domain.saved_xml() is not None:
            say(f"{shown(domain.name)}: its next start loads its managed save, which has no record")
        return Guest(domain.name, domain.uuid, stored, running)

    def _outcome(self, domain: Domain, live: bool) -> Outcome | None:
        """What becomes of one of its definitions; None if it cannot be adopted."""
        try:
            xml = parse(domain.xml(live, secrets=False).encode())
            if why_not_adopted(xml):
                return None
            if live:
                return self._said(adopt_live(domain, self.system(), self.dry_run))
            pinned = pin_stored(
                domain,
                self.resolver,
                functools.partial(redefine, self.connection, domain),
                self.dry_run,
            )
            if pinned is not None or not _is_the_users(xml):
                return self._said(pinned)
            outcome = self._said(adopt_stored(domain, self.system(), self.dry_run))
            return outcome._replace(
                reason="its <cpu> was written anew since it was pinned, and stays"
            )
        except UntoldError as error:
            return Outcome(UNTOLD, reason=str(error))
        except KvmarmError as error:
            return Outcome(FAILED, reason=str(error))

    def _said(self, adopted: Adopted | None) -> Outcome:
        if adopted is None:
            return Outcome(KEPT)
        differences = refresh_view.adoption_differences(adopted.before, adopted.after)
        return Outcome(ADOPTS if self.dry_run else ADOPTED, tuple(differences))


def _is_the_users(xml: Element) -> bool:
    """Whether the <cpu> of a guest that was pinned has been written anew."""
    found = record.read_from(xml)
    return found is not None and record.is_adopted(found) and is_rewritten(xml, found)
