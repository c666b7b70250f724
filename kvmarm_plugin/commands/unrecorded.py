# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests without a record, for `kvmarm check`: judged as if they were adopted, and left as they
are.
"""

from __future__ import annotations

import platform

from .. import __version__
from ..basics.errors import KvmarmError
from ..domain import record
from ..domain.record import Intent, Origin, Record
from ..domain.xml import domain_of, emulator_of, parse
from ..host.libvirtd import Connection
from ..host.qemu_version import BINARIES
from ..judge.arguments import find_unjudged
from ..kvm.device import System
from ..resolve.wish import why_not_adopted
from ..watch.adopt import adopt_live, what_it_has
from ..watch.renewal import UntoldError
from .inputs import LIVE, SAVED, Guest, NoRecordError, Source, machines_here
from .inputs import is_file as names_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..domain.xml import Element
    from ..model.target import Target

_SAVED = "it was saved without a record, and what it had then is not known"


def as_if_adopted(source: Source, uri: str, error: NoRecordError) -> Guest:
    """A guest without a record, with one of what this host gives it.

    A guest that runs here has that since it booted, if it has; then one that is off will have it at
    its next start. Where a file's guest runs nobody knows: it is taken for one that has booted on
    this host.

    Args:
        error: what to raise where it cannot be adopted.

    Raises:
        NoRecordError: that, or this host cannot tell what it has.
    """
    document = domain_of(source.document)
    domain = parse(document)
    is_file = names_file(source.name)
    if why_not_adopted(domain) or not (is_file or source.is_here):
        raise error
    mark = _SAVED if source.definition == SAVED else None
    try:
        with System() as system:
            target, untold = _measured(source, uri, domain, system)
    except KvmarmError as failure:
        if platform.machine() not in BINARIES:
            raise NoRecordError(
                error.domain,
                f"{error.reason}, and this {platform.machine()} host cannot tell what it has",
                f"on its own host, {error.hint}",
            ) from None
        raise NoRecordError(
            error.domain, f"{error.reason}, and what it has is not known: {failure}"
        ) from None
    origin = Origin(platform.node(), "", f"kvmarm {__version__}")
    notes = []
    if source.stored is not None and record.find(parse(source.stored)) is not None:
        notes.append("its stored definition, which counts from the next boot, has a record")
    where = f"had booted on this host, {platform.node()}" if is_file else "were adopted"
    return Guest(
        domain.content_of("name") or source.name,
        domain,
        document,
        Record(target, Intent((), ()), origin),
        source.definition,
        emulator_of(domain),
        source.is_here,
        mark or untold,
        (
            f"it has no record, and is judged as if it {where}",
            *notes,
            *find_unjudged(domain, target),
        ),
        is_assumed=True,
    )


def _measured(
    source: Source, uri: str, domain: Element, system: System
) -> tuple[Target, str | None]:
    """What a guest has, and why that is not known, if it is not."""
    if source.definition == LIVE:
        try:
            with Connection(uri) as connection:
                adopted = adopt_live(connection.domain(source.name), system, dry_run=True)
            if adopted is not None:  # else it has got a record meanwhile
                return adopted.after, None
        except UntoldError as error:
            return what_it_has(domain, system), str(error)
    machine = ""
    if names_file(source.name) and not _is_versioned(domain):
        machine = next(iter(machines_here()), "")
    return what_it_has(domain, system, machine), None


def _is_versioned(domain: Element) -> bool:
    os_type = domain.find("os/type")
    return os_type is not None and os_type.attributes.get("machine", "virt") != "virt"
