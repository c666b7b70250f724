# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt, through its Python binding, which is imported only here and only when something has to
be asked of it.

Only calls that replace or add are made: a domain is never undefined, but for one that somebody
else has undefined and the agent has, in the same moment, defined again.
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple
from urllib.parse import urlsplit

from ..basics.errors import KvmarmError
from ..basics.untrusted import decimal, quoted, shown
from ..domain.xml import DomainXMLError, parse, parse_fragment
from .marks import RUNNING
from .packages import how_to_install

PROC = "/proc"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, TypeVar

    T = TypeVar("T")

# In virsh's words, by the names of libvirt's states (virDomainState).
_STATES = {
    "RUNNING": "running",
    "BLOCKED": "running",
    "PAUSED": "paused",
    "SHUTDOWN": "in shutdown",
    "SHUTOFF": "shut off",
    "CRASHED": "crashed",
    "PMSUSPENDED": "suspended",
}

# How the run of a guest began, as far as libvirt says.
OFF, STARTING, BOOTED, ARRIVED, UNKNOWN = "off", "starting", "booted", "arrived", "unknown"

# By the names of libvirt's states and reasons (virDomainState, virDomain*Reason); others are
# UNKNOWN. A guest that is paused and resumed has lost its reason. One that libvirt has rebooted
# inside its QEMU (qemuProcessFakeReboot) is called booted, however its run began.
_BEGINNINGS = {
    "RUNNING_BOOTED": BOOTED,
    "RUNNING_MIGRATED": ARRIVED,
    "RUNNING_RESTORED": ARRIVED,
    "RUNNING_POSTCOPY": STARTING,  # its memory is still on its way here
    "PAUSED_MIGRATION": STARTING,  # on its way, here or away
    "PAUSED_STARTING_UP": STARTING,
}
_REVERTED = ("RUNNING_FROM_SNAPSHOT", "PAUSED_FROM_SNAPSHOT")

# Of QEMU's command line, where it loads state.
_LOADS = frozenset({"-incoming", "-loadvm"})
_MOST_ARGUMENTS = 1 << 24  # bytes of them; a guest of many devices has some 100 KiB

# The same by the state that a guest had when its snapshot was made (snapshotState of libvirt's
# domainsnapshot.rng); a snapshot of disks alone tells neither.
_SNAPSHOTS = {"running": ARRIVED, "paused": ARRIVED, "shutoff": BOOTED}


# Events in the life of a domain (virDomainEventType), and of DEFINED the detail that there was none
# before (VIR_DOMAIN_EVENT_DEFINED_ADDED).
DEFINED, ADDED = "DEFINED", 0
_EVENTS = (DEFINED, "UNDEFINED", "STARTED", "RESUMED", "STOPPED")


class LibvirtError(KvmarmError):
    """libvirt refuses or cannot be reached.

    Attributes:
        code: libvirt's number of the error; 0 where libvirt did not raise it.
    """

    code = 0


class NoDomainError(LibvirtError):
    """libvirt knows no such domain."""


def is_remote(uri: str) -> bool:
    """Whether a connection may go to another host than this; a bare word is an alias of
    libvirt.conf.

    Raises LibvirtError for what is no URI.
    """
    try:
        return "//" not in uri or bool(urlsplit(uri).netloc)
    except ValueError as error:
        raise LibvirtError(
            f"{uri} is not a URI: {error}", "give one such as qemu:///system"
        ) from None


def is_session(uri: str) -> bool:
    """Whether it is a user's own libvirt, of whose guests neither hook nor renewal know."""
    return urlsplit(uri).path == "/session"


def run_events() -> None:
    """Have libvirt's own event loop run in a thread: before the first connection is opened.

    Not libvirtaio's: calls from another thread change its timers and watches, for which asyncio
    has no lock, and a call in the loop's own thread would keep it from answering libvirt's
    keepalive as long as libvirt waits for a guest.

    Raises:
        LibvirtError: no binding.
    """
    libvirt = _binding()
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run, name="libvirt", daemon=True).start()


def _binding() -> Any:
    try:
        import libvirt
    except ImportError:
        raise LibvirtError(
            "the Python binding of libvirt is missing",
            how_to_install("python3-libvirt"),
        ) from None
    # Its own handler prints to standard error what is raised as well.
    libvirt.registerErrorHandler(lambda *_: None, None)
    return libvirt


class Process(NamedTuple):
    """The QEMU of a guest that runs.

    Attributes:
        binary: what it runs, as /proc has it: with " (deleted)" once another is in its place; empty
            where that cannot be read.
        arguments: of its command line, its own name first.
    """

    binary: str
    arguments: tuple[str, ...]

    def has_loaded(self) -> bool:
        """Whether it was started to load state."""
        return not _LOADS.isdisjoint(self.arguments)


_USUAL = "qemu:///system"  # what commands talk to where nothing else is said


class Connection:
    """A connection to libvirt; a context manager.

    Attributes:
        is_here: whether libvirt's guests run on this host.

    Raises:
        LibvirtError: no binding, or no connection.
    """

    def __init__(self, uri: str) -> None:
        libvirt = _binding()
        self._libvirt = libvirt
        self._connection = self._ask(
            lambda: libvirt.open(uri), f"check that libvirt runs: virsh -c {uri} version"
        )
        self.is_here = not is_remote(uri)
        of_uri = "" if uri == _USUAL else f" -c {shown(quoted(uri), 200)}"
        lists = f"kvmarm status{of_uri}" if self.is_here else f"virsh{of_uri} list --all"
        self._names_domains = f"{lists} names the domains"

    def __enter__(self) -> Connection:  # noqa: PYI034  # Self is typing's, from 3.11 on
        return self

    def __exit__(self, *_exc: object) -> None:
        self._connection.close()

    def listen(self, happened: Callable[[str, str, int], None], lost: Callable[[], None]) -> None:
        """Have a word of every guest, from the thread of `run_events`. Raises LibvirtError.

        Args:
            happened: called with the UUID of a domain, the event (of _EVENTS) and its detail.
            lost: called when the connection is gone: its socket says so, and no keepalive is needed
                on one host.
        """
        names = {getattr(self._libvirt, f"VIR_DOMAIN_EVENT_{name}"): name for name in _EVENTS}

        def of_life(_connection: Any, domain: Any, event: int, detail: int, _: Any) -> None:
            if event in names:
                happened(domain.UUIDString(), names[event], detail)

        connection = self._connection
        self._ask(lambda: connection.registerCloseCallback(lambda *_: lost(), None))
        lifecycle = self._libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
        self._ask(lambda: connection.domainEventRegisterAny(None, lifecycle, of_life, None))

    def version(self) -> str:
        """Of the libvirt at the other end, such as "11.3.0". Raises LibvirtError."""
        number: int = self._ask(lambda: self._connection.getLibVersion())
        return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"

    def domain_capabilities(self, architecture: str, machine: str) -> str:
        """What libvirt offers to KVM guests of a machine type, as XML. Raises LibvirtError."""
        xml: str = self._ask(
            lambda: self._connection.getDomainCapabilities(None, architecture, machine, "kvm", 0)
        )
        return xml

    def define(self, xml: str, validate: bool) -> str:
        """Define a domain or replace its definition; the old one stays if this fails. Returns its
        name, for people. Raises LibvirtError.
        """
        flags = self._libvirt.VIR_DOMAIN_DEFINE_VALIDATE if validate else 0
        return self._make(lambda: self._connection.defineXMLFlags(xml, flags), xml)

    def create(self, xml: str, validate: bool, paused: bool) -> str:
        """Start a transient domain. Returns its name, for people. Raises LibvirtError."""
        flags = self._libvirt.VIR_DOMAIN_START_VALIDATE if validate else 0
        flags |= self._libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        return self._make(lambda: self._connection.createXML(xml, flags), xml)

    def _make(self, make: Callable[[], Any], xml: str) -> str:
        """Have a domain made of this XML. Returns its name, for people. Raises LibvirtError."""
        try:
            name: str = self._ask(make).name()
        except LibvirtError as error:
            if error.code == self._libvirt.VIR_ERR_OPERATION_FAILED:
                error.hint = self._how_to_replace(xml)
            raise
        return shown(name)

    def _how_to_replace(self, xml: str) -> str:
        """What to do about a name that is taken: libvirt takes a domain with another <uuid>, or
        with none, for a new one (virDomainObjListAddLocked). Empty where it is not taken.
        """
        domain = parse(xml.encode())
        try:
            taken = self.domain_by_name(domain.content_of("name"))
        except LibvirtError:
            return ""
        uuid = domain.content_of("uuid").replace("-", "").lower()
        if uuid == taken.uuid.replace("-", ""):
            return ""
        return (
            f"to replace that domain, write its <uuid>{taken.uuid}</uuid> into the XML; for a new"
            " one, write another <name>"
        )

    def domains(self) -> list[Domain]:
        """All domains, by name. Raises LibvirtError."""
        found = self._ask(lambda: self._connection.listAllDomains())
        return sorted(
            (Domain(each, self._libvirt, self._ask) for each in found),
            key=lambda domain: domain.name,
        )

    def domain(self, name: str) -> Domain:
        """A domain by name or UUID. Raises NoDomainError, LibvirtError."""
        try:
            return self.domain_by_name(name)
        except NoDomainError as error:
            try:
                return self.domain_by_uuid(name)
            except LibvirtError:  # most names are no UUIDs
                raise error from None

    def domain_by_name(self, name: str) -> Domain:
        """Raises NoDomainError, LibvirtError."""
        return self._domain(lambda: self._connection.lookupByName(name))

    def domain_by_uuid(self, uuid: str) -> Domain:
        """Raises NoDomainError, LibvirtError."""
        return self._domain(lambda: self._connection.lookupByUUIDString(uuid))

    def _domain(self, find: Callable[[], Any]) -> Domain:
        found = self._ask(find, self._names_domains)
        return Domain(found, self._libvirt, self._ask)

    def _ask(self, call: Callable[[], T], hint: str = "") -> T:
        try:
            return call()
        except self._libvirt.libvirtError as error:
            code: int = error.get_error_code()
            kind = NoDomainError if code == self._libvirt.VIR_ERR_NO_DOMAIN else LibvirtError
            raised = kind(f"libvirt: {shown(str(error.get_error_message() or error), 1000)}", hint)
            raised.code = code
            raise raised from None


class Domain:
    """A domain that libvirt has, as it was when it was looked up: its next run is another.

    Attributes:
        name, uuid: libvirt's; the name is anybody's text.
        run: libvirt's number of the run of the guest, -1 while it is off.
    """

    def __init__(self, domain: Any, libvirt: Any, ask: Callable[..., Any]) -> None:
        self._domain = domain
        self._libvirt = libvirt
        self._ask = ask
        self.name: str = domain.name()
        self.uuid: str = domain.UUIDString()
        self.run: int = domain.ID()

    def is_active(self) -> bool:
        return bool(self._ask(self._domain.isActive))

    def is_persistent(self) -> bool:
        return bool(self._ask(self._domain.isPersistent))

    def state(self) -> str:
        """Its state in virsh's words, such as "shut off". Raises LibvirtError."""
        number = self._ask(self._domain.state)[0]
        return next(
            (
                word
                for name, word in _STATES.items()
                if getattr(self._libvirt, f"VIR_DOMAIN_{name}", None) == number
            ),
            "unknown",
        )

    def beginning(self) -> str:
        """How its run began, by libvirt's reason for its state: OFF, STARTING, BOOTED, ARRIVED or
        UNKNOWN. Raises LibvirtError.
        """
        if not self.is_active():
            return OFF
        reason = self._reason()
        found = self._reverted() if reason in _REVERTED else _BEGINNINGS.get(reason, UNKNOWN)
        if found not in (BOOTED, UNKNOWN):
            return found
        process = self.process()
        return ARRIVED if process is not None and process.has_loaded() else found

    def _reason(self) -> str:
        """libvirt's name of the reason for its state; empty for one of no use here."""
        reason = tuple(self._ask(self._domain.state))
        for name in (*_BEGINNINGS, *_REVERTED):
            of_state, _, _ = name.partition("_")
            if reason == (
                getattr(self._libvirt, f"VIR_DOMAIN_{of_state}"),
                getattr(self._libvirt, f"VIR_DOMAIN_{name}", None),
            ):
                return name
        return ""

    def may_be_reverted(self) -> bool:
        """Whether it runs from a snapshot, or has some with memory and libvirt does not say that it
        booted: QEMU loads these without being started anew. Raises LibvirtError.
        """
        reason = self._reason()
        if _BEGINNINGS.get(reason) == BOOTED:
            return False
        flags = (
            self._libvirt.VIR_DOMAIN_SNAPSHOT_LIST_ACTIVE
            | self._libvirt.VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL
        )
        return reason in _REVERTED or bool(self._ask(lambda: self._domain.listAllSnapshots(flags)))

    def process(self) -> Process | None:
        """The QEMU that runs it; None where that cannot be read."""
        try:
            with open(f"{RUNNING}/{self.name}.pid", encoding="ascii") as file:
                pid = decimal(file.read(20).strip(), 1 << 31)
            with open(f"{PROC}/{pid}/cmdline", "rb") as file:
                arguments = file.read(_MOST_ARGUMENTS).decode(errors="replace").split("\0")
        except (OSError, ValueError):
            return None
        try:
            binary = os.readlink(f"{PROC}/{pid}/exe")
        except OSError:
            binary = ""
        return Process(binary, tuple(arguments[:-1]))

    def _reverted(self) -> str:
        """How a run began that started from a snapshot: with the state that it holds, or cold if
        the guest was off when it was made. It is the current one, if it is older than the run.
        """
        try:
            text = self._ask(lambda: self._domain.snapshotCurrent(0).getXMLDesc(0))
            snapshot = parse_fragment(text, "utf-8").children[0]
            state, made = snapshot.find("state"), snapshot.find("creationTime")
            started = os.stat(f"{RUNNING}/{self.name}.pid").st_mtime
            if state is None or made is None or decimal(made.content, 1 << 40) >= int(started):
                return UNKNOWN
        except (LibvirtError, DomainXMLError, OSError, ValueError, IndexError):
            return UNKNOWN
        return _SNAPSHOTS.get(state.content, UNKNOWN)

    def xml(self, live: bool, secrets: bool) -> str:
        """Its definition. Raises LibvirtError.

        Args:
            live: of the guest that runs; else the stored one.
            secrets: with passwords, which a definition loses that is stored again without.
        """
        flags = 0 if live else self._libvirt.VIR_DOMAIN_XML_INACTIVE
        flags |= self._libvirt.VIR_DOMAIN_XML_SECURE if secrets else 0
        xml: str = self._ask(lambda: self._domain.XMLDesc(flags))
        return xml

    def saved_xml(self) -> str | None:
        """The definition in its managed save, which its next start loads; None if it has none.
        Raises LibvirtError.
        """
        if not self._ask(lambda: self._domain.hasManagedSaveImage(0)):
            return None
        xml: str = self._ask(lambda: self._domain.managedSaveGetXMLDesc(0))
        return xml

    def is_saved(self) -> bool:
        """Whether it is off and its state lies in a managed save or in a file, as far as libvirt
        knows. Raises LibvirtError.
        """
        if self.is_active():
            return False
        of_save = (self._libvirt.VIR_DOMAIN_SHUTOFF, self._libvirt.VIR_DOMAIN_SHUTOFF_SAVED)
        return tuple(self._ask(self._domain.state)) == of_save or bool(
            self._ask(lambda: self._domain.hasManagedSaveImage(0))
        )

    def undefine(self) -> None:
        """Undefine it, and keep what belongs to it: its NVRAM, its TPM, a managed save. Only for
        one that somebody has undefined already. Raises LibvirtError.
        """
        flags = 0
        for name in ("KEEP_NVRAM", "KEEP_TPM"):  # the latter since libvirt 8.9
            flags |= getattr(self._libvirt, f"VIR_DOMAIN_UNDEFINE_{name}", 0)
        self._ask(lambda: self._domain.undefineFlags(flags))

    def set_metadata(self, prefix: str, namespace: str, element: str | None, live: bool) -> None:
        """Replace the one element of a namespace in its metadata, and nothing else. Raises
        LibvirtError, also while the domain is migrated.

        Args:
            element: without the prefix and its declaration, which libvirt adds; None removes it.
            live: of the guest that runs; else of the stored definition.
        """
        flags = (
            self._libvirt.VIR_DOMAIN_AFFECT_LIVE if live else self._libvirt.VIR_DOMAIN_AFFECT_CONFIG
        )
        kind = self._libvirt.VIR_DOMAIN_METADATA_ELEMENT
        self._ask(lambda: self._domain.setMetadata(kind, element, prefix, namespace, flags))
