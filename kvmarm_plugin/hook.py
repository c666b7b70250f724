# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hook's door: what hooks/qemu.d/50-kvmarm calls when a guest of ours is about to start, to arrive or to be restored.

A guest with a record is rehearsed on this host and refused if the kernel would not take it; a host-model guest without
one is told how to get one; for every other guest the script does not even import this. libvirt holds the domain's lock
meanwhile, so this runs as `python3 -I -S` and imports only the standard library, and little of it. It never calls libvirt
(which would wait for itself), never logs the XML (which may hold secrets), and prints nothing on standard output (which
would taint the domain) but the XML of an arriving guest that is pinned to a cluster whose CPUs have other numbers here.

An exception that leaves this module is the script's to tell: it refuses a guest with a record and lets others pass.
docs/hook-faults.md lists what becomes of which fault.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

TIME_LIMIT = 2  # seconds for everything; a rehearsal takes some hundredths
_MARK = b"urn:kvmarm-plugin:target:"  # every record has it (record.NAMESPACE_STEM), and so has the script
_LOG_INTERVAL = 0.2  # seconds; how long the system's log may block, twice


class _Future:
    """Stands in for the module __future__, which the other modules name for the compiler alone: reading it takes longer than a vCPU
    does."""

    annotations = None


class _OutOfTime(Exception):
    """The time limit is over. Neither OSError nor KvmarmError, which are caught on the way for what they mean there."""


def main() -> int:
    """The command kvmarm-hook: the script as it would be installed, for trying by hand and for those who place hooks themselves."""
    import os

    from kvmarm_plugin.errors import KvmarmError
    from kvmarm_plugin.hookfile import script

    try:
        os.execv("/bin/sh", ["sh", "-c", script(), "kvmarm-hook", *sys.argv[1:]])
    except KvmarmError as error:
        print(f"kvmarm-hook: {error}", file=sys.stderr)
        return 1


def answer(name: str, operation: str, xml: bytes) -> "NoReturn":
    """Judge a guest, say what there is to say, and end this process: with status 3 to stop the guest, with 0 to let it pass.

    Args:
        name: the domain's.
        operation: libvirt's: "prepare", "migrate" or "restore".
        xml: the domain, with a record or with host-model somewhere in it.
    """
    import gc
    import posix

    gc.disable()  # nothing here lives long enough to be collected
    sys.modules["__future__"] = _Future  # type: ignore[assignment]
    stop = verify(name, operation, xml) if _MARK in xml else explain_host_model(name, xml)
    posix._exit(3 if stop else 0)  # nothing is left to write


def explain_host_model(name: str, xml: bytes) -> bool:
    """Whether to stop a guest without a record whose XML mentions host-model.

    libvirt is about to refuse host-model with a message that helps nobody; fail first, with one that does. libvirt shows
    a hook's standard error only if the hook fails (virRunScript, src/util/virhook.c).
    """
    from kvmarm_plugin.domain import asks_for_host_model, parse
    from kvmarm_plugin.errors import KvmarmError

    try:
        if not asks_for_host_model(parse(xml)):
            return False
    except KvmarmError:
        return False  # libvirt wrote this; if it cannot be read, it is libvirt's to complain
    _say(
        f"kvmarm: {name} asks for host-model, which libvirt cannot start on ARM. Make it concrete, and start it again: "
        f"virsh dumpxml --inactive --security-info {_quoted(name)} | kvmarm define -"
    )
    return True


def verify(name: str, operation: str, xml: bytes) -> bool:
    """Whether to stop a guest with a record.

    Rehearses it. Whatever goes wrong on the way refuses it, as far as the policy refuses: a target that cannot be confirmed
    is not one.

    Args:
        operation: libvirt's: "prepare", "migrate" or "restore".
    """
    import _signal as signal  # type: ignore[import-not-found]  # its Python half brings enum and collections: 6 ms

    xml_here = xml
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT)
    try:
        try:
            reason, xml_here = _judge(xml, operation)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Exception as error:
        # Not KvmarmError alone: a bug here must not let a guest go wrong, nor show libvirt's user a traceback.
        reason = str(error)
        if not hasattr(error, "hint") and not isinstance(error, _OutOfTime):
            reason = f"it cannot be checked: {type(error).__name__}: {error} (hint: install kvmarm again)"
    if reason and _refuse(name, operation, reason):
        return True
    failure = _print(xml_here) if xml_here != xml else ""
    return bool(failure) and _refuse(name, operation, f"its pins are another host's, and libvirt cannot be given others: {failure}")


def _quoted(name: str) -> str:
    """A name as one word of a shell, for people who paste it (shlex.quote would import re)."""
    plain = name.replace("-", "").replace("_", "").replace(".", "").isalnum() and name[0] != "-"
    return name if plain else "'" + name.replace("'", "'\\''") + "'"


def _judge(xml: bytes, operation: str) -> tuple[str, bytes]:
    """Why this guest must not run here: empty if it may, and for a guest without a record, whatever its XML mentions. And its XML
    with the pins that it needs here."""
    from kvmarm_plugin import record
    from kvmarm_plugin.domain import parse

    domain = parse(xml)
    element = record.find(domain)
    if element is None:
        return "", xml
    target = record.read(element).target
    from kvmarm_plugin.agree import edited
    from kvmarm_plugin.kvm.device import System
    from kvmarm_plugin.kvm.rehearse import rehearse
    from kvmarm_plugin.verdict import HARMLESS, in_short

    findings = edited(domain, target)
    if target.pinning is None:
        with System() as system:
            findings += rehearse(target, system)
    else:
        from kvmarm_plugin.arrival import settle, with_cluster
        from kvmarm_plugin.host.cpus import find_clusters

        clusters = find_clusters()
        xml, cpus, misplaced = settle(xml, domain, target.pinning, clusters, movable=operation != "prepare")
        with System() as system:
            findings += with_cluster(misplaced + rehearse(target, system, cpus=cpus), target.pinning, clusters)
    return "; ".join(in_short([finding for finding in findings if finding.severity != HARMLESS])), xml


def _refuse(name: str, operation: str, reason: str) -> bool:
    """Say why on standard error, which reaches whoever started this, and in the system's log. A policy may let it pass."""
    from kvmarm_plugin.policy import refuses

    refused = refuses(operation)
    message = f"kvmarm: {name} {'cannot' if refused else 'should not'} run on this host as it was promised: {reason}"
    _say(message)
    _log(f"{operation}: {_one_line(message)}", refused)
    return refused


def _say(message: str) -> None:
    """A line on standard error. That it is closed or full decides nothing; and what a buffer kept would fail again at exit."""
    import os

    try:
        if sys.stderr is not None:  # or 2 may be another file
            os.write(2, (_one_line(message) + "\n").encode())
    except OSError:
        pass


def _print(xml: bytes) -> str:
    """The domain's XML on standard output, where libvirt reads it. Returns what went wrong."""
    import os

    if sys.stdout is None:  # or 1 may be another file
        return "standard output is closed"
    try:
        while xml:
            xml = xml[os.write(1, xml) :]
    except OSError as error:
        return f"standard output: {error.strerror}"
    return ""


def _log(message: str, refused: bool) -> None:
    """The same in the system's log, if there is one and it answers: a guest does not wait for it."""
    import _signal as signal

    # Without SA_RESTART the timer fails the send that blocks, and glibc's second try.
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, _LOG_INTERVAL, _LOG_INTERVAL)
    try:
        import syslog

        syslog.openlog("kvmarm-hook", syslog.LOG_PID, syslog.LOG_DAEMON)
        syslog.syslog(syslog.LOG_ERR if refused else syslog.LOG_WARNING, message)
    except (ImportError, OSError):
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _one_line(text: str) -> str:
    """What a terminal shows as one line, whatever the domain's owner has put into its name."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _out_of_time(*_signal: object) -> None:
    raise _OutOfTime(f"checking took longer than {TIME_LIMIT} s; is the host overloaded? See: kvmarm check")
