# SPDX-License-Identifier: LGPL-2.1-or-later
"""Starts: libvirt's `prepare`, of a guest that has arrived as of one that boots.

A cold start is what this host makes of the XML, whatever is recorded: it is refused only if KVM or
QEMU would not start it. What differs is drift: a mark says that the record may not be true, and
whoever renews records is told. A snapshot that a guest reverts to looks like a cold start here; it
is refused only for what QEMU would accept in silence. Guests that never asked for host-model are
refused for nothing else.

Whoever renews records is told whatever the policy says: what runs has to have a true record. The
policy says whether the stored one follows (watch/renewal.py).
"""

from __future__ import annotations

from ..basics.value import Value
from .guest import UNSURE, compare, digest_of, is_marked, mark, refuse, ring, tell, unmark
from .time_limit import TIME_LIMIT, finish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..host.marks import Ticket
    from ..model.policy import HookPolicy
    from .guest import Guest


_MOST = 4  # differences in a line


class _Start(Value):
    """What there is to say of a start.

    Attributes:
        ticket: the arrival's that it is; None for a cold start.
        stops: why KVM or QEMU would not start it.
        wrong: what QEMU would accept in silence, if the record is a snapshot's.
        drift: what is not as recorded, or may be so.
        checked: whether the host has been asked.
    """

    ticket: Ticket | None = None
    stops: str = ""
    wrong: str = ""
    drift: str = ""
    checked: bool = True


def stops(guest: Guest, policy: HookPolicy) -> bool:
    """Whether to stop a guest that starts. Nothing that was recorded binds a cold start, and what
    cannot be found out does not stop one.
    """
    start, problem = finish(TIME_LIMIT, _judge_start, guest)
    start = start or _Start(drift=problem, checked=False)
    if start.ticket is not None:
        if start.ticket.operation == "restore" and is_marked(guest):
            from ..host.marks import FROM_STATE

            mark(guest, FROM_STATE)
        elif UNSURE in start.ticket.warned:
            against = " ".join(kind for kind in start.ticket.warned if kind != UNSURE)
            why = "it arrived with a record that may not be true here"
            mark(guest, f"{why}: {against}" if against else why)
            ring(guest)
        else:
            unmark(guest)
        return False
    if (
        start.stops
        and not _is_adopted(guest)
        and refuse(guest, "cannot start on this host", start.stops)
    ):
        return True
    if (
        start.wrong
        and policy.on_restore == "refuse"
        and refuse(guest, "cannot go on here from this snapshot", start.wrong)
    ):
        return True
    return _drift(guest, start, policy.on_drift)


def _is_adopted(guest: Guest) -> bool:
    """Whether it never asked for host-model: it starts then as it would without kvmarm, or QEMU
    says itself why it does not.
    """
    from ..domain.record import is_adopted

    return guest.record is not None and is_adopted(guest.record)


def _drift(guest: Guest, start: _Start, reaction: str) -> bool:
    """Whether to stop a guest that starts as something else than is recorded, or may do so. What
    passes is marked.
    """
    drift = start.drift or start.stops
    if not drift:
        unmark(guest)
        return False
    refresh = f"kvmarm refresh {guest.word()}"
    if start.checked:
        heading, refusal = "starts, but not as recorded", "would not start as recorded"
        advice, why = f"To record what it has: {refresh}", "this host makes it otherwise"
    else:
        heading, refusal = "starts unchecked", "cannot be checked, and would start"
        advice, why = f"When that is mended: {refresh}", "its start was not checked"
    if reaction == "refuse" and not _is_adopted(guest) and refuse(guest, refusal, drift, advice):
        return True
    unnoted = mark(guest, f"{why}: {drift}")
    is_told = not unnoted and ring(guest)
    if reaction == "renew" and is_told:
        level = "NOTICE" if start.checked else "WARNING"
        tell(guest, level, heading, drift, "kvmarm renew has been told")
    else:
        tell(guest, "WARNING", heading, drift, unnoted or advice)
    return False


def _judge_start(guest: Guest) -> _Start:
    from ..host.marks import take_ticket

    if not guest.read():
        return _Start()  # whatever its XML mentions
    ticket = take_ticket(guest.uuid, guest.name) if guest.uuid else None
    if ticket is not None and ticket.digest == digest_of(guest.record):
        return _Start(ticket)
    findings, after = compare(guest, arrived=False)
    if not findings:
        is_true = after in (None, guest.known()[1].target)
        return _Start(drift="" if is_true else "the vCPU is not the recorded one")
    from ..judge.finding import WRONG
    from ..judge.wording import difference, in_short

    stops = [finding for finding in findings if finding.stops_start]
    if stops:
        said = in_short(stops, domain=guest.word(), boots=True)
        return _Start(stops="; ".join(said))
    drift = [difference(finding, "recorded", "here", meaning=False) for finding in findings[:_MOST]]
    if len(findings) > _MOST:
        drift.append(f"and {len(findings) - _MOST} more")
    wrong = [finding for finding in findings if finding.severity == WRONG]
    is_reverted = wrong and _is_not_stored(guest)
    return _Start(
        wrong="; ".join(in_short(wrong, domain=guest.word())) if is_reverted else "",
        drift="; ".join(drift),
    )


def _is_not_stored(guest: Guest) -> bool:
    """Whether the record is another than that of the definition that libvirt has stored: it starts
    from a snapshot then. One that cannot be read says nothing.
    """
    from ..basics.errors import KvmarmError
    from ..domain import record
    from ..domain.xml import SIZE_LIMIT, parse
    from ..host.marks import STORED

    if "/" in guest.name:
        return False
    try:
        with open(f"{STORED}/{guest.name}.xml", "rb") as file:
            stored = record.read_from(parse(file.read(SIZE_LIMIT + 1)))
    except (OSError, ValueError, KvmarmError):
        return False
    return stored is None or stored.target != guest.known()[1].target
