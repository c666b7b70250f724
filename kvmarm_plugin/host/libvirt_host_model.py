# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether libvirt itself offers host-model to KVM guests on ARM, as it does on x86.

No libvirt does so far. Once one does, the hook must not stop a guest that asks for it. The hook
cannot ask libvirt, which waits for it meanwhile; so whoever can leaves a note for it.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .libvirtd import Connection

PATH = "/var/lib/kvmarm/libvirt-host-model"


def is_noted() -> bool:
    """Whether there is a note that libvirt here offers host-model."""
    return os.path.exists(PATH)


def note_host_model(connection: Connection) -> str:
    """Write the note if libvirt offers host-model to guests of aarch64, KVM and the machine type
    virt, else remove it. It holds libvirt's version.

    Returns:
        libvirt's version if it does, else nothing.

    Raises:
        KvmarmError: libvirt does not tell, or the note cannot be written; it then stays as it was.
    """
    from ..basics.errors import KvmarmError
    from .files import write

    offered = _offers_host_model(connection.domain_capabilities("aarch64", "virt"))
    version = connection.version() if offered else ""
    try:
        if offered:
            os.makedirs(os.path.dirname(PATH), 0o755, exist_ok=True)
            write(PATH, f"{version}\n".encode(), 0o644)
        elif is_noted():
            os.unlink(PATH)
    except OSError as error:
        raise KvmarmError(f"cannot change {PATH}: {error.strerror}", "run as root") from None
    return version


def _offers_host_model(capabilities: str) -> bool:
    """Whether domain capabilities have host-model among the modes of <cpu>
    (virDomainCapsCPUFormat, src/conf/domain_capabilities.c). Raises DomainXMLError.
    """
    from ..domain.xml import parse_fragment

    cpu = parse_fragment(capabilities, "utf-8").find("domainCapabilities/cpu")
    return cpu is not None and any(
        mode.attributes.get("name") == "host-model" and mode.attributes.get("supported") == "yes"
        for mode in cpu.find_all("mode")
    )
