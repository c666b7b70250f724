# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent: whoever defines or starts a guest, its record is made, and kept true.

An event of libvirt's only says which guest to look at. What there is to do, the guest's definitions
say: so a sweep over all guests, at the start and after a reconnect, makes up for every event that
was missed, and the events that the agent causes itself find nothing left to do.

Only host-model that becomes concrete, and `adopt: pin`, replace a definition; all else is
setMetadata, which libvirt does in one step. libvirt cannot replace a definition on the condition
that it is still the one that was read: what somebody defines in that moment is lost, and all that
the agent can do is to notice it and to say so (`_Window`).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from typing import NamedTuple

from ..basics.errors import KvmarmError
from ..basics.untrusted import shown
from ..domain import record
from ..domain.likeness import likeness
from ..domain.xml import asks_for_host_model, parse
from ..host import left_alone, previous
from ..host.libvirtd import (
    ADDED,
    DEFINED,
    OFF,
    STARTING,
    LibvirtError,
    NoDomainError,
)
from ..host.qemu import ask_named
from ..kvm.device import KvmError, System
from ..model.policy import adopts
from .adopt import adopt_live, adopt_stored, keeper, pin_stored
from .renewal import PATIENCE, KeptError, renew_live, renew_stored

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from ..host.libvirtd import Connection, Domain
    from ..model.policy import Policy
    from ..model.profile import HostProfile
    from ..resolve.resolver import Resolver
    from .renewal import Renewer

_PACE = 1.0  # seconds between looks at a guest that is not ready to be looked at
_OWN_EVENT = 2.0  # seconds until libvirt has told of a definition that the agent has replaced
_RECONNECT = (1.0, 30.0)  # seconds between attempts, at first and at most
_MOST_TOLD = 1000  # lines that are not told again


class Tools(NamedTuple):
    """What the agent is given.

    Attributes:
        policy: this host's.
        resolver: for guests that ask for host-model.
        profile: this host's.
    """

    policy: Callable[[], Policy]
    resolver: Callable[[], Resolver]
    profile: Callable[[], HostProfile]


class Agent:
    """Looks at guests, one after the other, in the thread that calls `run` or `once`.

    Args:
        connect: opens a connection to libvirt; its events come from a thread of libvirt's.
        renewer: works through the marks that the hook leaves.
        tell: called with each line for the log.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        tools: Tools,
        renewer: Renewer,
        tell: Callable[[str], None],
    ) -> None:
        self._connect = connect
        self._tools = tools
        self._renewer = renewer
        self._tell = tell
        self._told: deque[str] = deque(maxlen=_MOST_TOLD)
        self._failed: set[str] = set()  # UUIDs of guests that were looked at in vain
        # What other threads leave here, under the lock.
        self._news = threading.Condition()
        self._wanted: dict[str, float] = {}  # UUID → when to look at it, by the monotonic clock
        self._rung = True
        self._lost = False
        self._changed = False
        self._windows: dict[str, _Window] = {}  # by UUID
        self._since: dict[str, float] = {}  # UUID → since when it is to be looked at again

    # -- other threads ---------------------------------------------------------------------------

    def ring(self) -> None:
        """The hook has left a mark."""
        with self._news:
            self._rung = True
            self._news.notify()

    def happened(self, uuid: str, event: str, detail: int) -> None:
        """An event in the life of a domain."""
        with self._news:
            if uuid in self._windows:
                self._windows[uuid].events.append((event, detail))
            self._since.pop(uuid, None)  # what was not ready may be so now
            self._wanted[uuid] = 0.0
            self._news.notify()

    def change(self) -> None:
        """The policy or the pool is another: what failed by it may not fail now."""
        with self._news:
            self._changed = True
            self._news.notify()

    def lose(self) -> None:
        """The connection is gone."""
        with self._news:
            self._lost = True
            self._news.notify()

    # -- the agent's own -------------------------------------------------------------------------

    def once(self) -> bool:
        """Look at all guests, until none is to be looked at again. Returns whether everything could
        be done.

        Raises:
            LibvirtError: there is no connection.
        """
        with self._connect() as connection:
            connection.listen(self.happened, self.lose)  # of collisions
            self._sweep(connection)
            while self._wanted or self._rung:
                self._work(connection)
        return not self._told

    def run(self, ready: Callable[[], None]) -> None:
        """Look at all guests, and then at each of which libvirt or the hook tells; for ever.

        Args:
            ready: called once, when events come in, or when libvirt turns out not to be there.
        """
        pause, longest = _RECONNECT
        while True:
            try:
                with self._connect() as connection:
                    self._lost = False
                    connection.listen(self.happened, self.lose)
                    ready()
                    pause = _RECONNECT[0]
                    self._sweep(connection)
                    self._get_ready()
                    while not self._lost:
                        self._work(connection)
                self._tell("the connection to libvirt is lost")
            except LibvirtError as error:
                self._tell_once(str(error))
                ready()
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _get_ready(self) -> None:
        """Probe this host now: who defines a guest may start it seconds later."""
        try:
            self._tools.resolver()
        except KvmarmError as error:
            self._tell_once(f"no guest can be resolved here: {error}")

    def _sweep(self, connection: Connection) -> None:
        domains = connection.domains()
        with self._news:
            self._wanted.update(dict.fromkeys((domain.uuid for domain in domains), 0.0))
            self._rung = True

    def _work(self, connection: Connection) -> None:
        """Look at whatever is to be looked at now, or wait for the next."""
        with self._news:
            rung, self._rung = self._rung, False
            now = time.monotonic()
            if self._changed:
                self._changed = False
                self._told.clear()
                self._wanted.update(dict.fromkeys(self._failed, now))
            due = [uuid for uuid, when in self._wanted.items() if when <= now]
            if not (rung or due):
                later = min(self._wanted.values(), default=None)
                self._news.wait(None if later is None else later - now)
                return
            for uuid in due:
                del self._wanted[uuid]
        self._failed.difference_update(due)
        if rung:
            self._renewer.again()
        if self._renewer.work(connection):
            self._later("")
        if any(due):
            self._look_at_all(connection, [uuid for uuid in due if uuid])

    def _later(self, uuid: str) -> None:
        with self._news:
            self._wanted.setdefault(uuid, time.monotonic() + _PACE)

    def _look_again(self, uuid: str) -> None:
        now = time.monotonic()
        if now - self._since.setdefault(uuid, now) < PATIENCE:
            self._later(uuid)

    def _look_at_all(self, connection: Connection, uuids: list[str]) -> None:
        """Do for these guests what there is to do."""
        try:
            with System() as system:
                for uuid in uuids:
                    if self._look(connection, uuid, system):
                        self._look_again(uuid)
        except KvmarmError as error:  # no KVM
            self._failed.update(uuids)
            self._tell_once(str(error))

    def _look(self, connection: Connection, uuid: str, system: System) -> bool:
        """Do for a guest what there is to do. Returns whether to look at it again soon."""
        try:
            domain = connection.domain_by_uuid(uuid)
            # Nobody could tell two replacements apart in one window.
            is_open = self._close_window(domain)
            if left_alone.has(domain.uuid):
                return False
            again = [
                self._try(domain, step, connection, domain, system)
                for step in ((self._live,) if is_open else (self._stored, self._live))
            ]
        except NoDomainError:  # it has gone meanwhile
            with self._news:
                self._windows.pop(uuid, None)
            return False
        except KvmarmError as error:
            self._failed.add(uuid)
            self._tell_once(str(error))
            return isinstance(error, LibvirtError)
        if not any(again):
            self._since.pop(uuid, None)
        return any(again)

    def _try(self, domain: Domain, step: Callable[..., bool], *arguments: object) -> bool:
        """One step; one that fails does not keep the other from being done."""
        try:
            return step(*arguments)
        except NoDomainError:
            return False
        except KvmarmError as error:
            again = isinstance(error, (LibvirtError, previous.ChangedError)) or (
                isinstance(error, KvmError) and error.passing
            )
            if not again or domain.uuid in self._since:  # not for what is over in a second
                self._tell_once(f"{shown(domain.name)}: {error}")
            if not again:
                self._failed.add(domain.uuid)
            return again

    def _stored(self, connection: Connection, domain: Domain, system: System) -> bool:
        if not domain.is_persistent():
            return False
        document = domain.xml(live=False, secrets=False).encode()
        is_true = ("its stored record is true", likeness(document))
        if is_true in system.answers:
            return False
        xml = parse(document)
        if asks_for_host_model(xml):
            self._make_concrete(connection, domain)
        elif record.find(xml) is None:
            self._adopt_stored(connection, domain, system)
        else:
            try:
                renewed = renew_stored(domain, system, asked=False)
            except KeptError:
                return False  # the hook says so when it starts
            if renewed is None or renewed.before == renewed.after:
                system.answers[is_true] = True
            else:
                self._tell(f"{shown(domain.name)}: its stored record is true again")
        return False

    def _live(self, _connection: Connection, domain: Domain, system: System) -> bool:
        beginning = domain.beginning()
        if beginning == OFF:
            return False
        if beginning == STARTING:
            return True
        renewed = renew_live(domain, system)
        if renewed is None:
            mode = adopts(self._tools.policy(), domain.name)
            if mode != "off" and adopt_live(domain, system) is not None:
                self._tell(f"{shown(domain.name)}: recorded what it has as it runs")
        elif renewed.before != renewed.after:
            self._tell(f"{shown(domain.name)}: its record is true again")
        return False

    def _adopt_stored(self, connection: Connection, domain: Domain, system: System) -> None:
        mode = adopts(self._tools.policy(), domain.name)
        if mode == "pin":
            pin_stored(
                domain,
                lambda: keeper(self._tools.profile(), self._tools.policy(), self._tell, ask_named),
                lambda read, new: self._redefine(connection, domain, read, new, "adopt: pin"),
            )
        elif mode == "record" and adopt_stored(domain, system) is not None:
            self._tell(f"{shown(domain.name)}: recorded what its definition gives here")

    def _make_concrete(self, connection: Connection, domain: Domain) -> None:
        read = domain.xml(live=False, secrets=True)
        new = self._tools.resolver().resolve(read.encode()).decode()
        self._redefine(connection, domain, read, new, "it asks for host-model")

    def _redefine(
        self, connection: Connection, domain: Domain, read: str, new: str, why: str
    ) -> None:
        """Replace a stored definition, and say so."""
        if left_alone.has(domain.uuid):  # since it was looked at
            raise KvmarmError("it is left alone, since it was forgotten or undone")
        window = _Window()
        with self._news:
            self._windows[domain.uuid] = window
        try:
            previous.redefine(connection, domain, read, new)
        except BaseException:
            with self._news:
                del self._windows[domain.uuid]
            raise
        with suppress(LibvirtError):  # it has gone, or the next look says what is wrong
            window.written = _but_metadata(domain)
        window.end = time.monotonic() + _OWN_EVENT
        with self._news:
            self._wanted.setdefault(domain.uuid, window.end)
        before, after = (_in_short(text) for text in (read, new))
        self._tell(
            f"{shown(domain.name)}: {why}: {before} → {after} (before:"
            f" {previous.DIRECTORY}/{domain.uuid})"
        )

    def _close_window(self, domain: Domain) -> bool:
        """Once libvirt must have told of it: say whether somebody else has defined or undefined a
        domain while the agent did. Returns whether that is too early.
        """
        with self._news:
            window = self._windows.get(domain.uuid)
            if window is None:
                return False
            if time.monotonic() < window.end:
                self._wanted.setdefault(domain.uuid, window.end)
                return True
            del self._windows[domain.uuid]
        details = [detail for event, detail in window.events if event == DEFINED]
        if details == [ADDED]:  # there was nothing any more that the agent could replace
            domain.undefine()
            self._tell(
                f"{shown(domain.name)}: it was undefined while its definition was replaced, and so"
                " came back: undefined again"
            )
        elif len(details) > 2 or (len(details) == 2 and _but_metadata(domain) == window.written):
            self._tell(
                f"{shown(domain.name)}: COLLISION: somebody else defined it while its definition"
                " was replaced, and what that was to change may be lost. What was replaced:"
                f" {previous.DIRECTORY}/{domain.uuid}; what there is now: virsh dumpxml --inactive"
                f" {domain.uuid}"
            )
        return False

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.append(text)
            self._tell(text)


class _Window:
    """From before a definition is replaced until libvirt must have told of that.

    Attributes:
        events: of the domain meanwhile, and their details. One of them is the agent's own. Where
            there is one more, it came before that, and what it brought was replaced unread, if the
            definition is still the one that the agent has written. Else it came later.
        end: when that is, by the monotonic clock.
        written: the definition as libvirt gave it at once, without its metadata, in which records
            are kept true.
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.end = 0.0
        self.written = b""


def _but_metadata(domain: Domain) -> bytes:
    """A stored definition without its metadata. Raises LibvirtError."""
    text = domain.xml(live=False, secrets=True).encode()
    metadata = parse(text).find("metadata")
    return text if metadata is None else text[: metadata.start] + text[metadata.end :]


def _in_short(document: str) -> str:
    """The CPU and the machine type of a domain, in a few words."""
    domain = parse(document.encode())
    cpu, os_type = domain.find("cpu"), domain.find("os/type")
    mode = cpu.attributes.get("mode", "custom") if cpu else "no <cpu>"
    machine = os_type.attributes.get("machine", "") if os_type else ""
    return shown(f"{mode} on {machine or 'the default machine'}", 120)
