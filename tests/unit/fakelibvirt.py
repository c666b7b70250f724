# SPDX-License-Identifier: LGPL-2.1-or-later
"""A libvirt that is not there: replaces the Python binding and plays guests in any state, with the
reasons that a real one gives only after migrations, restores and reverts.

States, reasons and flags are libvirt's own numbers (libvirt-domain.h). What setMetadata does to an
element is what virXMLInjectNamespace does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable
from xml.etree import ElementTree

VIR_DOMAIN_RUNNING, VIR_DOMAIN_PAUSED, VIR_DOMAIN_SHUTOFF = 1, 3, 5
REASONS = {
    "RUNNING_UNKNOWN": 0,
    "RUNNING_BOOTED": 1,
    "RUNNING_MIGRATED": 2,
    "RUNNING_RESTORED": 3,
    "RUNNING_FROM_SNAPSHOT": 4,
    "RUNNING_UNPAUSED": 5,
    "RUNNING_MIGRATION_CANCELED": 6,
    "RUNNING_SAVE_CANCELED": 7,
    "RUNNING_WAKEUP": 8,
    "RUNNING_CRASHED": 9,
    "RUNNING_POSTCOPY": 10,
    "RUNNING_POSTCOPY_FAILED": 11,
    "PAUSED_UNKNOWN": 0,
    "PAUSED_USER": 1,
    "PAUSED_MIGRATION": 2,
    "PAUSED_FROM_SNAPSHOT": 7,
    "PAUSED_STARTING_UP": 11,
    "SHUTOFF_SHUTDOWN": 1,
    "SHUTOFF_SAVED": 5,
    "SHUTOFF_FAILED": 6,
}
_LIVE, _CONFIG, _SECURE, _INACTIVE = 1, 2, 1, 2
_ACTIVE, _INTERNAL = 1 << 6, 1 << 8  # of VIR_DOMAIN_SNAPSHOT_LIST
_ERROR, _NO_DOMAIN = 38, 42

_CAPABILITIES = """\
<domainCapabilities>
  <cpu>
    <mode name='host-passthrough' supported='yes'/>
    <mode name='host-model' supported='no'/>
  </cpu>
</domainCapabilities>
"""


class FakeError(Exception):
    """libvirt.libvirtError."""

    def __init__(self, message: str, code: int = _ERROR) -> None:
        super().__init__(message)
        self.code = code

    def get_error_message(self) -> str:
        return str(self)

    def get_error_code(self) -> int:
        return self.code


@dataclass
class FakeDomain:
    """A domain.

    Attributes:
        state: one of REASONS.
        live, config: its definitions, None where it has none.
        saved: the one in its managed save.
        snapshot: the XML of its current snapshot.
        memory_snapshots: how many it has that hold its memory.
        run: number of its run, -1 for one that is off.
        refuses: calls of setMetadata that are yet to be refused, as while it is migrated.
        calls: of setMetadata that were not: "live" or "config", and the namespace; with "-" in
            front for a removal.
        on_write: called after each.
        on_read: called after each time that the XML was given out.
        secret: what only shows with VIR_DOMAIN_XML_SECURE.
    """

    title: str
    uuid: str
    state: str
    live: str | None = None
    config: str | None = None
    run: int = 7
    refuses: int = 0
    calls: list[tuple[str, str]] = field(default_factory=list)
    on_write: Callable[[], None] = lambda: None
    on_read: Callable[[], None] = lambda: None
    secret: str = ""
    saved: str | None = None
    snapshot: str | None = None
    memory_snapshots: int = 0

    def name(self) -> str:
        return self.title

    def UUIDString(self) -> str:  # noqa: N802
        return self.uuid

    def isActive(self) -> int:  # noqa: N802
        return int(not self.state.startswith("SHUTOFF"))

    def isPersistent(self) -> int:  # noqa: N802
        return int(self.config is not None)

    def numbers(self) -> list[int]:
        number = {"RUNNING": 1, "PAUSED": 3, "SHUTOFF": 5}[self.state.partition("_")[0]]
        return [number, REASONS[self.state]]

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        xml = self.config if flags & _INACTIVE or not self.isActive() else self.live
        assert xml is not None
        self.on_read()
        return xml if flags & _SECURE or not self.secret else xml.replace(self.secret, "")

    def snapshotCurrent(self, _flags: int) -> FakeDomain:  # noqa: N802
        if self.snapshot is None:
            raise FakeError("the domain does not have a current snapshot", 72)
        return self

    def listAllSnapshots(self, flags: int) -> list[object]:  # noqa: N802
        assert flags == _ACTIVE | _INTERNAL
        return [object()] * self.memory_snapshots

    def getXMLDesc(self, _flags: int) -> str | None:  # noqa: N802
        return self.snapshot

    def hasManagedSaveImage(self, _flags: int) -> int:  # noqa: N802
        return int(self.saved is not None)

    def managedSaveGetXMLDesc(self, _flags: int) -> str:  # noqa: N802
        assert self.saved is not None
        return self.saved

    def define(self, xml: str) -> None:
        if self.refuses:
            self.refuses -= 1
            raise FakeError("unsupported configuration: no")
        self.config = xml
        self.calls.append(("define", ""))

    def undefineFlags(self, flags: int) -> None:  # noqa: N802
        self.config = None
        self.calls.append(("undefine", str(flags)))

    def setMetadata(  # noqa: N802
        self, kind: int, element: str | None, prefix: str, namespace: str, flags: int
    ) -> None:
        assert kind == 2
        assert flags in (_LIVE, _CONFIG)
        if flags == _LIVE and not self.isActive():
            raise FakeError("Requested operation is not valid: domain is not running")
        if self.refuses:
            self.refuses -= 1
            raise FakeError("Timed out during operation: cannot acquire state change lock")
        which = "live" if flags == _LIVE else "config"
        setattr(
            self,
            which,
            _with_metadata(getattr(self, which), element, prefix, namespace),
        )
        self.calls.append((which, namespace if element else f"-{namespace}"))
        self.on_write()


class FakeConnection:
    def __init__(self, domains: list[FakeDomain], capabilities: str) -> None:
        self.domains = domains
        self.capabilities = capabilities

    def _find(self, name: str, text: str) -> _Handle:
        for domain in self.domains:
            if getattr(domain, name) == text:
                return _Handle(domain)
        raise FakeError(f"Domain not found: {text}", _NO_DOMAIN)

    def lookupByName(self, name: str) -> _Handle:  # noqa: N802
        return self._find("title", name)

    def lookupByUUIDString(self, uuid: str) -> _Handle:  # noqa: N802
        return self._find("uuid", uuid)

    def getDomainCapabilities(self, *_: object) -> str:  # noqa: N802
        if not self.capabilities:
            raise FakeError("this function is not supported by the connection driver")
        return self.capabilities

    def getLibVersion(self) -> int:  # noqa: N802
        return 14003002

    def listAllDomains(self) -> list[_Handle]:  # noqa: N802
        return [_Handle(domain) for domain in self.domains]

    def defineXMLFlags(self, xml: str, _flags: int) -> _Handle:  # noqa: N802
        name = ElementTree.fromstring(xml).findtext("name")
        assert name is not None
        handle = self.lookupByName(name)
        handle.define(xml)
        return handle

    def registerCloseCallback(self, *_: object) -> None:  # noqa: N802
        pass

    def domainEventRegisterAny(self, *_: object) -> int:  # noqa: N802
        return 0

    def close(self) -> None:
        pass


class _Handle:
    """A domain as the binding has it: the number of its run is that of when it was looked up."""

    def __init__(self, domain: FakeDomain) -> None:
        self._domain = domain
        self._run = domain.run if domain.isActive() else -1

    def ID(self) -> int:  # noqa: N802
        return self._run

    def state(self) -> list[int]:
        return self._domain.numbers()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._domain, name)


class FakeLibvirt:
    """The module.

    Attributes:
        domains: those that there are.
        down: whether libvirt cannot be reached.
        capabilities: what it offers, empty if it does not tell.
    """

    libvirtError = FakeError  # noqa: N815
    VIR_ERR_NO_DOMAIN = _NO_DOMAIN
    VIR_ERR_OPERATION_FAILED = 9
    VIR_DOMAIN_METADATA_ELEMENT = 2
    VIR_DOMAIN_AFFECT_LIVE = _LIVE
    VIR_DOMAIN_AFFECT_CONFIG = _CONFIG
    VIR_DOMAIN_XML_SECURE = _SECURE
    VIR_DOMAIN_DEFINE_VALIDATE = 1
    VIR_DOMAIN_XML_INACTIVE = _INACTIVE
    VIR_DOMAIN_SNAPSHOT_LIST_ACTIVE = _ACTIVE
    VIR_DOMAIN_SNAPSHOT_LIST_INTERNAL = _INTERNAL
    VIR_DOMAIN_UNDEFINE_KEEP_NVRAM = 8
    VIR_DOMAIN_UNDEFINE_KEEP_TPM = 64
    VIR_DOMAIN_EVENT_ID_LIFECYCLE = 0
    VIR_DOMAIN_EVENT_DEFINED = 0
    VIR_DOMAIN_EVENT_UNDEFINED = 1
    VIR_DOMAIN_EVENT_STARTED = 2
    VIR_DOMAIN_EVENT_RESUMED = 4
    VIR_DOMAIN_EVENT_STOPPED = 5
    VIR_DOMAIN_RUNNING = VIR_DOMAIN_RUNNING
    VIR_DOMAIN_PAUSED = VIR_DOMAIN_PAUSED
    VIR_DOMAIN_SHUTOFF = VIR_DOMAIN_SHUTOFF

    def __init__(self, *domains: FakeDomain) -> None:
        self.domains = list(domains)
        self.down = False
        self.capabilities = _CAPABILITIES
        for name, number in REASONS.items():
            setattr(self, f"VIR_DOMAIN_{name}", number)

    def open(self, _uri: str) -> FakeConnection:
        if self.down:
            raise FakeError("Failed to connect socket: No such file or directory")
        return FakeConnection(self.domains, self.capabilities)

    def registerErrorHandler(self, *_: object) -> None:  # noqa: N802
        pass


def _with_metadata(xml: str, element: str | None, prefix: str, namespace: str) -> str:
    """The domain with another element of a namespace in its metadata."""
    ElementTree.register_namespace(prefix, namespace)
    root = ElementTree.fromstring(xml)
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ElementTree.Element("metadata")
        root.insert(2, metadata)
    for child in list(metadata):
        if child.tag.startswith(f"{{{namespace}}}"):
            metadata.remove(child)
    if element is not None:
        assert f"<{prefix}:" not in element
        new = ElementTree.fromstring(element)
        for each in new.iter():
            each.tag = f"{{{namespace}}}{each.tag}"
        metadata.append(new)
    return ElementTree.tostring(root, encoding="unicode")
