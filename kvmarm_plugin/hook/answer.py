# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hook's door: what hooks/qemu.d/50-kvmarm calls when a guest of ours is about to start, to
arrive or to be restored.

An arrival (`migrate`, `restore`) brings state that QEMU loads into a vCPU of this kernel: a guest
with a record is rehearsed, and refused if the kernel would not take it. If the record will not be
true here, because this kernel has other registers than the one that the guest comes from, its XML
goes to standard output with one that will be. A ticket is left, by which `prepare` tells an arrival
from a cold start.

A cold start (`prepare` without a ticket) is what this host makes of the XML, whatever is recorded:
it is refused only if KVM or QEMU would not start it. What differs is drift: a mark says that the
record may not be true, and whoever renews records is told. A snapshot that a guest reverts to looks
like a cold start here; it is refused only for what QEMU would accept in silence.

A host-model guest without a record is told how to get one; for every other guest the script does
not even import this. libvirt holds the domain's lock meanwhile, so this runs as `python3 -I -S` and
imports only the standard library, and little of it. It never calls libvirt (which would wait for
itself), never logs the XML (which may hold secrets), and prints nothing else on standard output
(which taints the domain).

An exception that leaves this module is the script's to tell, and so is an end by a signal: the
script bounds memory and CPU time. It refuses an arrival with a record and lets the rest pass.
docs/hook-faults.md lists what becomes of which fault.
"""

from __future__ import annotations

import os
import sys

from ..basics.untrusted import shown
from ..basics.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn

    from ..basics.errors import KvmarmError
    from ..domain.record import Record
    from ..domain.xml import Element
    from ..host.marks import Ticket
    from ..judge.finding import Finding
    from ..model.policy import HookPolicy
    from ..model.target import Target

TIME_LIMIT = 2  # seconds for the check of a cold start; a rehearsal takes some hundredths
PATIENCE = 0.2  # seconds that standard error may block, and the system's log, twice
_MESSAGE_LIMIT = (
    1900  # bytes: a pipe takes that in one piece (PIPE_BUF), and every system log takes it at all
)

_UNREAD = "unread"  # in a ticket, in place of the digest of a record

# In a ticket, behind the kinds of findings that an arrival has passed against: its record may not
# be true here.
_UNSURE = "unsure"

_MOST = 4  # differences in a line

_NOT_AS_PROMISED = "run on this host as it was promised"


class _OutOfTime(Exception):
    """A time limit is over. Neither OSError nor KvmarmError, which are caught on the way for what
    they mean there.
    """


def main() -> int:
    """The command kvmarm-hook: the script as it would be installed, for trying by hand and for
    those who place hooks themselves.
    """
    from kvmarm_plugin.basics.errors import KvmarmError
    from kvmarm_plugin.hook.install import script

    try:
        os.execv("/bin/sh", ["sh", "-c", script(), "kvmarm-hook", *sys.argv[1:]])
    except KvmarmError as error:
        print(f"kvmarm-hook: {error}", file=sys.stderr)
        return 1


def answer(name: str, operation: str, xml: bytes, recorded: bool) -> NoReturn:
    """Judge a guest, say what there is to say, and end this process: with status 3 to stop the
    guest, with 0 to let it pass.

    Args:
        name: the domain's.
        operation: libvirt's: "prepare", "migrate" or "restore".
        xml: the domain; of one that is too large only so much that `domain.parse` says so.
        recorded: whether the mark of a record is anywhere in the domain, in `xml` or behind.
            Otherwise it mentions host-model.
    """
    stop = verify(name, operation, xml) if recorded else explain_host_model(name, xml)
    os._exit(3 if stop else 0)  # nothing is left to write


def explain_host_model(name: str, xml: bytes) -> bool:
    """Whether to stop a guest without a record whose XML mentions host-model.

    Unless libvirt here offers host-model, it is about to refuse the guest with a message that helps
    nobody; fail first, with one that does. libvirt shows a hook's standard error only if the hook
    fails (virRunScript, src/util/virhook.c).
    """
    from kvmarm_plugin.basics.errors import KvmarmError
    from kvmarm_plugin.domain.xml import asks_for_host_model, parse
    from kvmarm_plugin.host.libvirt_host_model import is_noted

    try:
        if not asks_for_host_model(parse(xml)) or is_noted():
            return False
    except KvmarmError:
        return False  # libvirt wrote this; if it cannot be read, it is libvirt's to complain
    _say(
        f"{shown(name)} asks for host-model, which libvirt cannot start on ARM. Make it"
        f" concrete, and start it again: virsh dumpxml --inactive --security-info {_quoted(name)} |"
        " kvmarm define -"
    )
    return True


class _Guest:
    """A guest that mentions a record, as far as it has been read.

    Attributes:
        name, operation: the domain's, and libvirt's.
        xml: its XML, with the pins that it needs here.
        moved: whether libvirt has given other pins.
        uuid: empty where it could not be read.
        domain, record: of `xml`; None where they could not be read.
        problem: why the record could not be read.
        renewed: the record that it needs here, if that is another.
        allowed: whether an operator has let it pass.
    """

    def __init__(self, name: str, operation: str, xml: bytes) -> None:
        self.name, self.operation, self.xml = name, operation, xml
        self.moved = False
        self.uuid = ""
        self.domain: Element | None = None
        self.record: Record | None = None
        self.problem: KvmarmError | None = None
        self.renewed: Record | None = None
        self.allowed = False

    def read(self) -> bool:
        """Read the XML and the record in it. Returns whether there is one, be it broken.

        Raises:
            DomainXMLError: it is no domain.
        """
        from kvmarm_plugin.basics.errors import KvmarmError
        from kvmarm_plugin.domain import record
        from kvmarm_plugin.domain.xml import parse
        from kvmarm_plugin.host.marks import is_uuid

        self.domain = domain = parse(self.xml)
        element = domain.find("uuid")
        text = element.body.strip().decode(errors="replace").lower() if element else ""
        self.uuid = text if is_uuid(text) else ""
        try:
            found = record.find(domain)
            if found is None:
                return False
            self.record = record.read(found)
        except KvmarmError as error:
            self.problem = error
        return True

    def known(self) -> tuple[Element, Record]:
        """The domain and its record. Raises why there is none."""
        if self.domain is None or self.record is None:
            raise self.problem or AssertionError
        return self.domain, self.record

    def word(self) -> str:
        """What to call it in a command, for people who paste that."""
        quoted = _quoted(self.name)
        return self.uuid if self.uuid and (quoted != self.name or len(quoted) > 60) else quoted


def verify(name: str, operation: str, xml: bytes) -> bool:
    """Whether to stop a guest with a record.

    Args:
        operation: libvirt's: "prepare", "migrate" or "restore".
    """
    from kvmarm_plugin.model.policy import for_hook

    policy = for_hook()
    guest = _Guest(name, operation, xml)
    return _start(guest, policy) if operation == "prepare" else _arrive(guest, policy)


# -- arrivals ------------------------------------------------------------------------------------


def _arrive(guest: _Guest, policy: HookPolicy) -> bool:
    """Whether to stop an arrival. Whatever goes wrong on the way refuses it, as far as the policy
    refuses: a target that cannot be confirmed is not one.
    """
    warns = getattr(policy, f"on_{guest.operation}") == "warn"
    verdict, problem = _finish(policy.arrival_seconds, _judge_arrival, guest)
    reason, kinds = verdict or (problem, (_UNSURE,))
    if reason and warns:
        _tell(guest, "WARNING", f"should not {_NOT_AS_PROMISED}", reason)
    elif reason and _refuse(guest, f"cannot {_NOT_AS_PROMISED}", reason):
        return True
    put_out = guest.renewed or guest.record
    if guest.moved or guest.renewed:
        failure = _print_anew(guest)
        if failure and guest.moved:
            failure = f"its pins are another host's, and libvirt cannot be given others: {failure}"
            if warns:
                _tell(guest, "WARNING", f"should not {_NOT_AS_PROMISED}", failure)
            elif _refuse(guest, f"cannot {_NOT_AS_PROMISED}", failure):
                return True
        elif failure:
            put_out = guest.record
            kinds = (*kinds, _UNSURE)
            failure = f"libvirt cannot be given another: {failure}"
            _tell(guest, "WARNING", "arrives with a record that is not true here", failure)
        elif guest.renewed:
            _log(guest, "INFO", f"{shown(guest.name)} gets a record of what it has on this host")
    if guest.record or guest.problem:
        _leave_ticket(guest, put_out, kinds)
    return False


def _judge_arrival(guest: _Guest) -> tuple[str, tuple[str, ...]]:
    """Why an arrival must not run here, and the kinds of findings that say so: none if it may, and
    of a guest without a record, whatever its XML mentions.
    """
    if not guest.read():
        return "", ()
    findings, after = _compare(guest, arrived=True)
    _, record = guest.known()
    if after is not None and after != record.target:
        origin = record.origin.replace(renewed=os.uname().nodename)
        guest.renewed = record.replace(target=after, origin=origin)
    if not findings:
        return "", ()
    from kvmarm_plugin.judge.finding import HARMLESS

    blocking = [finding for finding in findings if finding.severity != HARMLESS]
    if not blocking:
        return "", ()
    from kvmarm_plugin.judge.wording import in_short

    kinds = {finding.kind: None for finding in blocking}  # each once, in their order
    unsure = (_UNSURE,) if after is None else ()
    return "; ".join(in_short(blocking)), (*kinds, *unsure)


def _print_anew(guest: _Guest) -> str:
    """Give libvirt the XML that the guest needs here. Returns what went wrong."""
    xml = guest.xml
    if guest.renewed:
        from kvmarm_plugin.basics.errors import KvmarmError
        from kvmarm_plugin.domain.rewrite import replace_record

        try:
            xml = replace_record(xml, guest.known()[0], guest.renewed)
        except KvmarmError as error:
            return str(error)
    return _print(xml)


def _leave_ticket(guest: _Guest, put_out: Record | None, kinds: tuple[str, ...]) -> None:
    """Let `prepare` know that the guest with this record is an arrival."""
    from kvmarm_plugin.host.marks import Ticket, leave_ticket

    why = "its UUID cannot be read"
    if guest.uuid:
        try:
            leave_ticket(guest.uuid, guest.name, Ticket(guest.operation, _digest(put_out), kinds))
            return
        except OSError as error:
            why = f"/run/kvmarm cannot be written: {error.strerror}"
    _tell(guest, "WARNING", "arrives, and its start will count as a cold one", why)


def _digest(found: Record | None) -> str:
    """Of a record, as tickets have it."""
    from kvmarm_plugin.domain.record_text import digest

    return digest(found.target) if found else _UNREAD


# -- cold starts ---------------------------------------------------------------------------------


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


def _start(guest: _Guest, policy: HookPolicy) -> bool:
    """Whether to stop a guest that starts. Nothing that was recorded binds a cold start, and what
    cannot be found out does not stop one.
    """
    start, problem = _finish(TIME_LIMIT, _judge_start, guest)
    start = start or _Start(drift=problem, checked=False)
    if start.ticket is not None:
        if start.ticket.operation == "restore" and _is_marked(guest):
            from kvmarm_plugin.host.marks import FROM_STATE

            _mark(guest, FROM_STATE)
        elif _UNSURE in start.ticket.warned:
            against = " ".join(kind for kind in start.ticket.warned if kind != _UNSURE)
            why = "it arrived with a record that may not be true here"
            _mark(guest, f"{why}: {against}" if against else why)
            _ring(guest)
        else:
            _unmark(guest)
        return False
    if start.stops and _refuse(guest, "cannot start on this host", start.stops):
        return True
    if (
        start.wrong
        and policy.on_restore == "refuse"
        and _refuse(guest, "cannot go on here from this snapshot", start.wrong)
    ):
        return True
    return _drift(guest, start, policy.on_drift)


def _drift(guest: _Guest, start: _Start, reaction: str) -> bool:
    """Whether to stop a guest that starts as something else than is recorded, or may do so. What
    passes is marked.
    """
    drift = start.drift or start.stops
    if not drift:
        _unmark(guest)
        return False
    refresh = f"kvmarm refresh {guest.word()}"
    if start.checked:
        heading, refusal = (
            f"{verb} as this host makes it, which is not recorded"
            for verb in ("starts", "would start")
        )
        advice, why = f"To record what it has: {refresh}", "this host makes it otherwise"
    else:
        heading, refusal = "starts unchecked", "cannot be checked, and would start"
        advice, why = f"When that is mended: {refresh}", "its start was not checked"
    if reaction == "refuse" and _refuse(guest, refusal, drift, advice):
        return True
    unnoted = _mark(guest, f"{why}: {drift}")
    if reaction == "renew" and not unnoted and _ring(guest):
        level = "NOTICE" if start.checked else "WARNING"
        _tell(guest, level, heading, drift, "kvmarm renew has been told")
    else:
        _tell(guest, "WARNING", heading, drift, unnoted or advice)
    return False


def _judge_start(guest: _Guest) -> _Start:
    from kvmarm_plugin.host.marks import take_ticket

    if not guest.read():
        return _Start()  # whatever its XML mentions
    ticket = take_ticket(guest.uuid, guest.name) if guest.uuid else None
    if ticket is not None and ticket.digest == _digest(guest.record):
        return _Start(ticket)
    findings, after = _compare(guest, arrived=False)
    target = guest.known()[1].target
    if not findings:
        return _Start(drift="" if after is None else _changes(target, after))
    from kvmarm_plugin.judge.finding import WRONG
    from kvmarm_plugin.judge.wording import difference, in_short

    stops = [finding for finding in findings if finding.stops_start]
    if stops:
        return _Start(stops="; ".join(in_short(stops)))
    drift = [difference(finding, "recorded", "here", meaning=False) for finding in findings[:_MOST]]
    if len(findings) > _MOST:
        drift.append(f"and {len(findings) - _MOST} more")
    wrong = [finding for finding in findings if finding.severity == WRONG]
    is_reverted = wrong and _is_not_stored(guest)
    return _Start(wrong="; ".join(in_short(wrong)) if is_reverted else "", drift="; ".join(drift))


def _changes(before: Target, after: Target) -> str:
    """In what a target differs from another where there is no finding: it has more than it had."""
    if before == after:
        return ""
    from kvmarm_plugin.registers.text import unpack_ids

    new = unpack_ids(after.reglist) - unpack_ids(before.reglist)
    if new:
        return f"registers that only this kernel has: {len(new)}"
    old, here = before.as_dict(), after.as_dict()
    return f"other here: {', '.join(name for name in here if here[name] != old[name])}"


def _is_not_stored(guest: _Guest) -> bool:
    """Whether the record is another than that of the definition that libvirt has stored: it starts
    from a snapshot then. One that cannot be read says nothing.
    """
    from kvmarm_plugin.basics.errors import KvmarmError
    from kvmarm_plugin.domain import record
    from kvmarm_plugin.domain.xml import SIZE_LIMIT, parse
    from kvmarm_plugin.host.marks import STORED

    if "/" in guest.name:
        return False
    try:
        with open(f"{STORED}/{guest.name}.xml", "rb") as file:
            found = record.find(parse(file.read(SIZE_LIMIT + 1)))
        stored = record.read(found) if found is not None else None
    except (OSError, ValueError, KvmarmError):
        return False
    return stored is None or stored.target != guest.known()[1].target


def _mark(guest: _Guest, reason: str) -> str:
    """Note that the record may not be true. Returns what went wrong."""
    from kvmarm_plugin.host import marks

    try:
        if guest.uuid:
            marks.mark(guest.uuid, _one_line(reason))
        else:
            marks.mark_by_name(guest.name, _one_line(reason))
    except (OSError, ValueError) as error:
        return f"This cannot be noted in /run/kvmarm: {getattr(error, 'strerror', error)}"
    return ""


def _is_marked(guest: _Guest) -> bool:
    from kvmarm_plugin.host.marks import mark_of

    return mark_of(guest.uuid, guest.name) is not None


def _unmark(guest: _Guest) -> None:
    """The record is true."""
    from kvmarm_plugin.host.marks import unmark

    try:
        if guest.uuid:
            unmark(guest.uuid, guest.name)
    except OSError as error:
        _tell(guest, "WARNING", "starts as recorded, and keeps its mark", str(error.strerror))


def _ring(guest: _Guest) -> bool:
    from kvmarm_plugin.host.marks import ring

    return ring(guest.uuid)


# -- both ----------------------------------------------------------------------------------------


def _compare(guest: _Guest, arrived: bool) -> tuple[list[Finding], Target | None]:
    """What speaks against a guest on this host, and what it will have here: None where nobody
    knows.
    """
    from kvmarm_plugin.judge.contradictions import find_contradictions
    from kvmarm_plugin.judge.finding import REFUSES

    domain, record = guest.known()
    target = record.target
    edited = find_contradictions(domain, target)
    if edited and not arrived:
        from kvmarm_plugin.host.libvirt_host_model import is_noted
        from kvmarm_plugin.judge.contradictions import as_written

        edited = find_contradictions(domain, target, is_noted())
        target = as_written(domain, target)  # QEMU makes a vCPU of the XML
    from kvmarm_plugin.host.cpus import find_clusters
    from kvmarm_plugin.judge.verdict import judge, which_counts
    from kvmarm_plugin.kvm.device import System
    from kvmarm_plugin.rehearse import KernelOffer

    clusters = find_clusters()
    kinds: list[tuple[int, ...]] = [()]
    misplaced: list[Finding] = []
    if target.pinning is not None or len(clusters) > 1:  # most hosts have CPUs of one kind
        from kvmarm_plugin.judge.pinning import kinds_to_ask, reconcile_pins

        xml, cpus, misplaced = reconcile_pins(guest.xml, domain, record, clusters, movable=arrived)
        if xml != guest.xml:
            guest.xml, guest.moved = xml, True
            guest.read()
            target = guest.known()[1].target
        kinds = kinds_to_ask(target, clusters, cpus)
    answers = []
    for cpus in kinds:
        with System() as system, KernelOffer(target, system, cpus=cpus, boots=not arrived) as offer:
            findings = judge(target, offer)
            refused = edited or [
                finding
                for finding in findings
                if (finding.severity == REFUSES if arrived else finding.stops_start)
            ]
            unknown = refused or misplaced or not offer.makes_vcpu()
            answers.append((findings, None if unknown else offer.renewed(target)))
    if len(answers) > 1:
        verdicts = [findings for findings, _ in answers]
        findings, after = answers[which_counts(verdicts, target.roams and arrived)]
    else:
        findings, after = answers[0]
    if edited and not arrived:
        return edited + [finding for finding in findings if finding.stops_start], None
    found = misplaced + findings
    if target.pinning is not None:
        from kvmarm_plugin.judge.pinning import with_cluster

        found = with_cluster(found, target.pinning, clusters)
    # On CPUs of which kind it runs, nobody knows then.
    return edited + found, after if len(found) == len(findings) else None


def _finish(seconds: float, call: Callable[..., Any], *arguments: object) -> tuple[Any, str]:
    """What a call returns, or None and why it has not come to an end."""
    try:
        return _within(seconds, call, *arguments), ""
    except _OutOfTime:
        why = f"checking took longer than {seconds} s; is the host overloaded?"
    except MemoryError:
        why = "checking takes more memory than the hook may have; is the host short of it?"
    except Exception as error:
        # Not KvmarmError alone: a bug here must not let a guest go wrong, nor show libvirt's user a
        # traceback.
        why = str(error)
        if not hasattr(error, "hint"):
            why = (
                f"it cannot be checked: {type(error).__name__}: {error} (hint: install kvmarm"
                " again)"
            )
    return None, why


def _within(seconds: float, call: Callable[..., Any], *arguments: object) -> Any:
    """Call, and raise _OutOfTime if that has not ended after so many seconds.

    The timer goes on: a signal just before a system call does not end it, and to a log glibc tries
    to send a second time.
    """
    import _signal as signal  # type: ignore[import-not-found]  # hook/__init__.py says why

    signal.signal(signal.SIGALRM, _out_of_time)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
            return call(*arguments)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _OutOfTime:
        signal.setitimer(signal.ITIMER_REAL, 0)  # it may have come as the other one was on its way
        raise


def _quoted(name: str) -> str:
    """A name as one word of a shell, for people who paste it (not shlex.quote:
    hook/__init__.py).
    """
    plain = name.replace("-", "").replace("_", "").replace(".", "").isalnum() and name[0] != "-"
    return name if plain else "'" + name.replace("'", "'\\''") + "'"


# -- what is said --------------------------------------------------------------------------------


def _refuse(guest: _Guest, heading: str, reason: str, advice: str = "") -> bool:
    """Whether a guest that should not pass is stopped: it is if no operator lets it pass."""
    from kvmarm_plugin.host.marks import take_allowance

    guest.allowed = guest.allowed or take_allowance(guest.uuid, guest.name)
    if guest.allowed:
        _tell(guest, "WARNING", f"passes, as kvmarm allow says, although it {heading}", reason)
        return False
    once = f"To let it pass once: kvmarm allow {guest.word()}"
    _tell(guest, "ERR", heading, reason, f"{advice}. {once}" if advice else once)
    return True


def _tell(guest: _Guest, level: str, heading: str, reason: str, advice: str = "") -> None:
    """Say something of a guest on standard error, which reaches whoever started it if it is
    stopped, and in the system's log. A reason that is too long loses its end.
    """
    heading = f"{shown(guest.name)} {heading}: "
    advice = advice and f". {advice}"
    room = _MESSAGE_LIMIT - len((heading + advice).encode()) - len("… (cut: 4000000 characters)")
    message = heading + _one_line(reason, room) + advice
    _say(message)
    _log(guest, level, message)


def _say(message: str) -> None:
    """A line on standard error. That it is closed or full, or that nobody reads it, decides
    nothing.
    """
    try:  # noqa: SIM105  # hook/__init__.py says why not contextlib
        _within(PATIENCE, os.write, 2, f"kvmarm: {_one_line(message)}\n".encode())
    except (OSError, _OutOfTime):
        pass


def _print(xml: bytes) -> str:
    """The domain's XML on standard output, where libvirt reads it. Returns what went wrong."""
    try:
        _within(TIME_LIMIT, _write, 1, xml)
    except OSError as error:
        return f"standard output: {error.strerror}"
    except _OutOfTime:
        return f"standard output: nobody has read it for {TIME_LIMIT} s"
    return ""


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _log(guest: _Guest, level: str, message: str) -> None:
    """A line in the system's log, if there is one and it answers: a guest does not wait for it.

    Args:
        level: of syslog(3), without "LOG_".
    """
    try:
        import syslog

        syslog.openlog("kvmarm-hook", syslog.LOG_PID, syslog.LOG_DAEMON)
        line = f"{guest.operation}: {_one_line(message)}"
        _within(PATIENCE, syslog.syslog, getattr(syslog, f"LOG_{level}"), line)
    except (ImportError, OSError, _OutOfTime):
        pass


def _one_line(text: str, limit: int = _MESSAGE_LIMIT) -> str:
    """What a terminal shows as one line, whatever the domain's owner has put into it, and as much
    of it as a log takes.

    Args:
        limit: in bytes.
    """
    escaped = shown(text[:limit], limit)
    line = escaped.encode()[:limit].decode(errors="ignore")
    return (
        line if line == escaped and len(text) <= limit else f"{line}… (cut: {len(text)} characters)"
    )


def _out_of_time(*_signal: object) -> None:
    raise _OutOfTime
