# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm check --all`: which of all domains would run there, and why the others would not."""

from __future__ import annotations

from ..basics.errors import KvmarmError
from ..basics.untrusted import shown
from ..domain.xml import parse
from ..host.libvirtd import Connection, NoDomainError
from . import DONE, INCOMPATIBLE, NOT_KNOWN, evacuation_view
from .evacuation_view import ERROR, NO, NO_RECORD, NOT_OURS, Row
from .inputs import NoRecordError, source_of
from .output import is_watched, say, write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..host.libvirtd import Domain
    from .check_view import Report
    from .inputs import Source


def run(
    uri: str, hosts: list[str], inactive: bool, as_json: bool, judge: Callable[[Source], Report]
) -> int:
    """Judge every domain that libvirt at `uri` has, and print a table.

    Args:
        hosts: names of those that are asked.
        inactive: by the stored definition, also where a domain runs.
    """
    with Connection(uri) as connection:
        domains = connection.domains()
        if is_watched():
            say(f"judging {len(domains)} domains on {', '.join(shown(host) for host in hosts)}")
        rows = [
            row
            for domain in domains
            if (row := _row(domain, inactive, connection.is_here, judge)) is not None
        ]
    write_text(
        evacuation_view.as_json(rows, hosts) if as_json else evacuation_view.as_text(rows, hosts)
    )
    answers = {answer for row in rows for answer in row.answers(hosts)}
    if NO in answers:
        return INCOMPATIBLE
    return NOT_KNOWN if answers & {ERROR, NO_RECORD, evacuation_view.NOT_KNOWN} else DONE


def _row(
    domain: Domain, inactive: bool, is_here: bool, judge: Callable[[Source], Report]
) -> Row | None:
    """None for a domain that has gone meanwhile, and, where stored definitions are asked for, for
    one that has none.
    """
    definition = ""
    try:
        if inactive and not domain.is_persistent():
            return None
        source = source_of(domain, domain.name, inactive, is_here)
        definition = source.definition
        return Row(domain.name, domain.uuid, definition, judge(source))
    except NoDomainError:
        return None
    except NoRecordError as error:
        answer, reason = (
            (NO_RECORD, error.reason) if _is_kvm(source) else (NOT_OURS, "not of type kvm")
        )
        return Row(domain.name, domain.uuid, definition, None, answer, reason)
    except KvmarmError as error:
        return Row(domain.name, domain.uuid, definition, None, ERROR, str(error))


def _is_kvm(source: Source) -> bool:
    return parse(source.document).attributes.get("type") == "kvm"
