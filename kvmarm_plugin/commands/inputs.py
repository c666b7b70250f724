# SPDX-License-Identifier: LGPL-2.1-or-later
"""What options and arguments name: domains, profiles, policies, pools, and this host where nothing
is named.
"""

from __future__ import annotations

import os
import platform

from ..basics.errors import KvmarmError
from ..basics.ownership import others_can_change
from ..domain import record
from ..domain.xml import Element, parse
from ..host import files
from ..model import policy as policies
from ..model import profile_json
from .output import is_watched, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..fleet.pool import Pool
    from ..model.policy import Policy
    from ..model.profile import HostProfile


def read_domain(name: str, uri: str) -> bytes:
    """The XML of a domain: of a file, of standard input for "-", or of a domain that libvirt at
    `uri` knows by name or UUID.
    """
    # A slash can only be a file's, and is said so where the file is missing; a directory may be
    # called as a domain is.
    if name == "-" or "/" in name or (os.path.exists(name) and not os.path.isdir(name)):
        return files.read(name)
    from ..host.libvirtd import Connection

    with Connection(uri) as connection:
        return connection.domain_xml(name).encode()


def read_record(document: bytes, source: str) -> tuple[record.Record, str, Element]:
    """The record in a domain's XML, the domain's name, and the domain.

    Args:
        source: where the XML is from, for messages.

    Raises:
        KvmarmError: it has no record, or one that cannot be used.
    """
    domain = parse(document)
    element = record.find(domain)
    if element is None:
        raise KvmarmError(
            f"{source} holds no kvmarm record", "resolve it first: kvmarm define FILE"
        )
    name = domain.find("name")
    return record.read(element), name.body.decode(errors="replace") if name else source, domain


def read_profile(name: str | None) -> HostProfile:
    """The profile in a file, or this host's own for None."""
    return profile_json.loads(files.read_text(name), name) if name else probe_here()


def read_profiles(names: list[str]) -> list[HostProfile]:
    """Profiles of hosts that the output can tell apart by their names."""
    hosts: dict[str, HostProfile] = {}
    files_of: dict[str, str] = {}
    for name in names:
        host = read_profile(name)
        if host.name in hosts:
            raise KvmarmError(
                f"{files_of[host.name]} and {name} are both of a host {host.name}",
                'change "name" in one of them',
            )
        hosts[host.name], files_of[host.name] = host, name
    return list(hosts.values())


def read_policy(name: str | None) -> Policy:
    """The policy in a file; for None the host's, else the default. Raises KvmarmError, also where
    the hook would not obey it.
    """
    if name is None and not os.path.exists(policies.DEFAULT_PATH):
        return policies.Policy()
    path = name or policies.DEFAULT_PATH
    text = files.read_text(path)
    if name is None and others_can_change(os.stat(path)):
        raise policies.PolicyError(
            f"others than root can change {path}, and the hook does not obey it so",
            f"chown root {path} && chmod go-w {path}",
        )
    return policies.loads(text, path)


def read_pool(name: str | None) -> Pool | None:
    """The pool in a file; for None the one that this host is in, if it is in one."""
    from ..fleet import pool

    if name is None and os.path.exists(pool.DEFAULT_PATH):
        name = pool.DEFAULT_PATH
    return None if name is None else pool.loads(files.read_text(name), name)


def probe_here(qemu: str = "", verbose: bool = False) -> HostProfile:
    """This host's profile, measured; each step is told where somebody watches or asks for it."""
    from ..host.probe import probe

    shows_steps = verbose or is_watched()
    return probe(
        qemu=qemu, step=(lambda line: say(f"probed {line}")) if shows_steps else (lambda _: None)
    )


def machines_here() -> tuple[str, ...]:
    """The machine types of this host's QEMU."""
    from ..host import qemu

    return qemu.ask(qemu.find_binary(platform.machine())).machines
