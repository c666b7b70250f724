# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm define`: resolve, then what `virsh define` does."""

from __future__ import annotations

from ..basics.untrusted import lines, shown
from ..domain.xml import parse
from ..host.libvirtd import Connection, NoDomainError
from ..host.previous import redefine
from . import DONE
from .output import write_text
from .resolving import Choices, leave_alone_no_more, resolved_for, say_unrecorded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    name, uri, validate, choices = (
        arguments.file,
        arguments.connect,
        arguments.validate,
        Choices.of(arguments),
    )
    result, summary = resolved_for(uri, name, choices, "define")
    with Connection(uri) as connection:
        domain = _define(connection, result, validate)
    write_text(lines([f"Domain '{shown(domain)}' defined from {name}{summary}"]))
    say_unrecorded(result, domain)
    return DONE


def _define(connection: Connection, xml: bytes, validate: bool) -> str:
    """Define a domain, or redefine it; it is not left alone any more. Returns its name."""
    element = parse(xml).find("uuid")
    if element is None:  # a new one: libvirt refuses a name that is taken
        return connection.define(xml.decode(), validate)
    uuid = element.content.strip()
    try:
        domain = connection.domain_by_uuid(uuid)
        stored = domain.xml(live=False, secrets=True) if domain.is_persistent() else None
    except NoDomainError:
        stored = None
    if stored is None:
        name = connection.define(xml.decode(), validate)
    else:
        name = redefine(connection, domain, stored, xml.decode(), validate)
    if connection.is_here:
        leave_alone_no_more(connection.domain_by_uuid(uuid).uuid, name)
    return name
