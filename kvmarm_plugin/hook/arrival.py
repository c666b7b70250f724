# SPDX-License-Identifier: LGPL-2.1-or-later
"""Arrivals: guests that come with state, which QEMU loads into a vCPU of this kernel.

A guest with a record is rehearsed, and refused if the kernel would not take it. If the record will
not be true here, because this kernel has other registers than the one that the guest comes from,
its XML goes to standard output with one that will be. A ticket is left, by which `start` tells an
arrival from a cold start.
"""

from __future__ import annotations

import os

from ..basics.untrusted import shown
from .guest import UNSURE, compare, digest_of, refuse, tell
from .tell import log, print_xml
from .time_limit import finish

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..domain.record import Record
    from ..model.policy import HookPolicy
    from .guest import Guest


_NOT_AS_PROMISED = "run on this host as it was promised"


def stops(guest: Guest, policy: HookPolicy) -> bool:
    """Whether to stop an arrival. Whatever goes wrong on the way refuses it, as far as the policy
    refuses: a target that cannot be confirmed is not one.
    """
    warns = getattr(policy, f"on_{guest.operation}") == "warn"
    verdict, problem = finish(policy.arrival_seconds, _judge_arrival, guest)
    reason, kinds = verdict or (problem, (UNSURE,))
    if reason and warns:
        tell(guest, "WARNING", f"should not {_NOT_AS_PROMISED}", reason)
    elif reason and refuse(guest, f"cannot {_NOT_AS_PROMISED}", reason):
        return True
    put_out = guest.renewed or guest.record
    if guest.moved or guest.renewed:
        failure = _print_anew(guest)
        if failure and guest.moved:
            failure = f"its pins are another host's, and libvirt cannot be given others: {failure}"
            if warns:
                tell(guest, "WARNING", f"should not {_NOT_AS_PROMISED}", failure)
            elif refuse(guest, f"cannot {_NOT_AS_PROMISED}", failure):
                return True
        elif failure:
            put_out = guest.record
            kinds = (*kinds, UNSURE)
            failure = f"libvirt cannot be given another: {failure}"
            tell(guest, "WARNING", "arrives with a record that is not true here", failure)
        elif guest.renewed:
            log(
                guest.operation,
                "INFO",
                f"{shown(guest.name)} gets a record of what it has on this host",
            )
    if guest.record or guest.problem:
        _leave_ticket(guest, put_out, kinds)
    return False


def _judge_arrival(guest: Guest) -> tuple[str, tuple[str, ...]]:
    """Why an arrival must not run here, and the kinds of findings that say so: none if it may, and
    of a guest without a record, whatever its XML mentions.
    """
    if not guest.read():
        return "", ()
    findings, after = compare(guest, arrived=True)
    _, record = guest.known()
    if after is not None and after != record.target:
        origin = record.origin.replace(renewed=os.uname().nodename)
        guest.renewed = record.replace(target=after, origin=origin)
    if not findings:
        return "", ()
    from ..judge.finding import HARMLESS

    blocking = [finding for finding in findings if finding.severity != HARMLESS]
    if not blocking:
        return "", ()
    from ..judge.wording import in_short

    kinds = {finding.kind: None for finding in blocking}  # each once, in their order
    unsure = (UNSURE,) if after is None else ()
    return "; ".join(in_short(blocking, domain=guest.word())), (*kinds, *unsure)


def _print_anew(guest: Guest) -> str:
    """Give libvirt the XML that the guest needs here. Returns what went wrong."""
    xml = guest.xml
    if guest.renewed:
        from ..basics.errors import KvmarmError
        from ..domain.rewrite import replace_record

        try:
            xml = replace_record(xml, guest.known()[0], guest.renewed)
        except KvmarmError as error:
            return str(error)
    return print_xml(xml)


def _leave_ticket(guest: Guest, put_out: Record | None, kinds: tuple[str, ...]) -> None:
    """Let `prepare` know that the guest with this record is an arrival."""
    from ..host.marks import Ticket, leave_ticket

    why = "its UUID cannot be read"
    if guest.uuid:
        try:
            leave_ticket(guest.uuid, guest.name, Ticket(guest.operation, digest_of(put_out), kinds))
            return
        except OSError as error:
            why = f"/run/kvmarm cannot be written: {error.strerror}"
    tell(guest, "WARNING", "arrives, but its start will be judged as a cold start", why)
