# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt, through its Python binding, which is imported only here and only when something has to
be asked of it.

Only calls that replace or add are made: a domain is never undefined.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from ..basics.errors import KvmarmError
from ..basics.untrusted import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class LibvirtError(KvmarmError):
    """libvirt refuses or cannot be reached."""


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


class Connection:
    """A connection to libvirt; a context manager.

    Raises:
        LibvirtError: no binding, or no connection.
    """

    def __init__(self, uri: str) -> None:
        try:
            import libvirt
        except ImportError:
            raise LibvirtError(
                "the Python binding of libvirt is missing",
                "install python3-libvirt (Debian: apt install python3-libvirt)",
            ) from None
        # Its own handler prints to standard error what is raised as well.
        libvirt.registerErrorHandler(lambda *_: None, None)
        self._libvirt = libvirt
        self._connection = self._ask(
            lambda: libvirt.open(uri), f"check that libvirt runs: virsh -c {uri} version"
        )

    def __enter__(self) -> Connection:  # noqa: PYI034  # Self is typing's, from 3.11 on
        return self

    def __exit__(self, *_exc: object) -> None:
        self._connection.close()

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
        # libvirt takes XML without a <uuid> for a new domain, and refuses a name that is taken.
        hint = (
            "if the domain exists, its XML needs its <uuid>: virsh dumpxml --inactive"
            " --security-info DOMAIN | kvmarm define -"
        )
        name: str = self._ask(lambda: self._connection.defineXMLFlags(xml, flags), hint).name()
        return shown(name)

    def create(self, xml: str, validate: bool, paused: bool) -> str:
        """Start a transient domain. Returns its name, for people. Raises LibvirtError."""
        flags = self._libvirt.VIR_DOMAIN_START_VALIDATE if validate else 0
        flags |= self._libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        name: str = self._ask(lambda: self._connection.createXML(xml, flags)).name()
        return shown(name)

    def domain_xml(self, name: str) -> str:
        """The persistent definition of a domain, or the live one if it has no other. `name` may be
        a UUID. Raises LibvirtError.
        """
        domain = self._ask(lambda: self._find(name), "virsh list --all names the domains")
        flags = self._libvirt.VIR_DOMAIN_XML_INACTIVE if domain.isPersistent() else 0
        xml: str = self._ask(lambda: domain.XMLDesc(flags))
        return xml

    def _find(self, name: str) -> Any:
        try:
            return self._connection.lookupByName(name)
        except self._libvirt.libvirtError:
            try:
                return self._connection.lookupByUUIDString(name)
            except self._libvirt.libvirtError:
                pass
            raise

    def _ask(self, call: Any, hint: str = "") -> Any:
        try:
            return call()
        except self._libvirt.libvirtError as error:
            raise LibvirtError(
                f"libvirt: {shown(str(error.get_error_message() or error), 1000)}", hint
            ) from None
