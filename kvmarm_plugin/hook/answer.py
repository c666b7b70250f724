# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hook's door: what hooks/qemu.d/50-kvmarm calls when a guest of ours is about to start, to
arrive or to be restored.

A guest with a record is rehearsed on this host and refused if the kernel would not take it; a
host-model guest without one is told how to get one; for every other guest the script does not even
import this. libvirt holds the domain's lock meanwhile, so this runs as `python3 -I -S` and imports
only the standard library, and little of it. It never calls libvirt (which would wait for itself),
never logs the XML (which may hold secrets), and prints nothing on standard output (which would
taint the domain) but the XML of an arriving guest that is pinned to a cluster whose CPUs have other
numbers here.

An exception that leaves this module is the script's to tell, and so is an end by a signal: the
script bounds memory and CPU time. It refuses a guest with a record and lets others pass.
docs/hook-faults.md lists what becomes of which fault.
"""

from __future__ import annotations

import os
import sys

from ..basics.untrusted import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn

TIME_LIMIT = 2  # seconds for a check; a rehearsal takes some hundredths
PATIENCE = 0.2  # seconds that standard error may block, and the system's log, twice
_MESSAGE_LIMIT = (
    1900  # bytes: a pipe takes that in one piece (PIPE_BUF), and every system log takes it at all
)


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
        f"kvmarm: {shown(name)} asks for host-model, which libvirt cannot start on ARM. Make it"
        f" concrete, and start it again: virsh dumpxml --inactive --security-info {_quoted(name)} |"
        " kvmarm define -"
    )
    return True


def verify(name: str, operation: str, xml: bytes) -> bool:
    """Whether to stop a guest with a record.

    Rehearses it. Whatever goes wrong on the way refuses it, as far as the policy refuses: a target
    that cannot be confirmed is not one.

    Args:
        operation: libvirt's: "prepare", "migrate" or "restore".
    """
    xml_here = xml
    try:
        reason, xml_here = _within(TIME_LIMIT, _judge, xml, operation)
    except _OutOfTime:
        reason = (
            f"checking took longer than {TIME_LIMIT} s; is the host overloaded? See: kvmarm check"
        )
    except MemoryError:
        reason = (
            "checking takes more memory than the hook may have; is the host short of it? See:"
            " kvmarm check"
        )
    except Exception as error:
        # Not KvmarmError alone: a bug here must not let a guest go wrong, nor show libvirt's user a
        # traceback.
        reason = str(error)
        if not hasattr(error, "hint"):
            reason = (
                f"it cannot be checked: {type(error).__name__}: {error} (hint: install kvmarm"
                " again)"
            )
    if reason and _refuse(name, operation, reason):
        return True
    failure = _print(xml_here) if xml_here != xml else ""
    return bool(failure) and _refuse(
        name,
        operation,
        f"its pins are another host's, and libvirt cannot be given others: {failure}",
    )


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


def _judge(xml: bytes, operation: str) -> tuple[str, bytes]:
    """Why this guest must not run here: empty if it may, and for a guest without a record, whatever
    its XML mentions. And its XML with the pins that it needs here.
    """
    from kvmarm_plugin.domain import record
    from kvmarm_plugin.domain.xml import parse

    domain = parse(xml)
    element = record.find(domain)
    if element is None:
        return "", xml
    recorded = record.read(element)
    target = recorded.target
    from kvmarm_plugin.host.cpus import find_clusters
    from kvmarm_plugin.judge.contradictions import find_contradictions
    from kvmarm_plugin.judge.finding import HARMLESS
    from kvmarm_plugin.judge.pinning import reconcile_pins, with_cluster
    from kvmarm_plugin.kvm.device import System
    from kvmarm_plugin.rehearse import rehearse

    findings, clusters = find_contradictions(domain, target), find_clusters()
    xml, cpus, misplaced = reconcile_pins(
        xml, domain, recorded, clusters, movable=operation != "prepare"
    )
    with System() as system:
        findings += with_cluster(
            misplaced + rehearse(target, system, cpus=cpus), target.pinning, clusters
        )
    blocking = [finding for finding in findings if finding.severity != HARMLESS]
    if not blocking:
        return "", xml
    from kvmarm_plugin.judge.wording import in_short

    return "; ".join(in_short(blocking)), xml


def _refuse(name: str, operation: str, reason: str) -> bool:
    """Say why on standard error, which reaches whoever started this, and in the system's log. A
    policy may let it pass.
    """
    from kvmarm_plugin.model.policy import refuses

    try:
        refused: bool = _within(TIME_LIMIT, refuses, operation)
    except _OutOfTime:  # the file system hangs
        refused = True
    message = (
        f"kvmarm: {shown(name)} {'cannot' if refused else 'should not'} run on this host as it was"
        f" promised: {reason}"
    )
    _say(message)
    _log(f"{operation}: {message}", refused)
    return refused


def _say(message: str) -> None:
    """A line on standard error. That it is closed or full, or that nobody reads it, decides
    nothing.
    """
    try:  # noqa: SIM105  # hook/__init__.py says why not contextlib
        _within(PATIENCE, os.write, 2, (_one_line(message) + "\n").encode())
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


def _log(message: str, refused: bool) -> None:
    """The same in the system's log, if there is one and it answers: a guest does not wait for
    it.
    """
    try:
        import syslog

        syslog.openlog("kvmarm-hook", syslog.LOG_PID, syslog.LOG_DAEMON)
        _within(
            PATIENCE,
            syslog.syslog,
            syslog.LOG_ERR if refused else syslog.LOG_WARNING,
            _one_line(message),
        )
    except (ImportError, OSError, _OutOfTime):
        pass


def _one_line(text: str) -> str:
    """What a terminal shows as one line, whatever the domain's owner has put into it, and as much
    of it as a log takes.
    """
    escaped = shown(text[:_MESSAGE_LIMIT], _MESSAGE_LIMIT)
    line = escaped.encode()[:_MESSAGE_LIMIT].decode(errors="ignore")
    return (
        line
        if line == escaped and len(text) <= _MESSAGE_LIMIT
        else f"{line}… (cut: {len(text)} characters)"
    )


def _out_of_time(*_signal: object) -> None:
    raise _OutOfTime
