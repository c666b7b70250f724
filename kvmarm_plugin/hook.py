# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hook's door: what hooks/qemu.d/50-kvmarm runs when a guest is about to start, to arrive or to be restored.

A guest with a record is rehearsed on this host and refused if the kernel would not take it; a host-model guest without
one is told how to get one; every other guest passes. libvirt holds the domain's lock meanwhile, so this file runs as
`python3 -I -S` and imports nothing for guests that are none of our business, and only the standard library for the
others. It never calls libvirt (which would wait for itself), never logs the XML (which may hold secrets), and prints
nothing on standard output (which would taint the domain).
"""

from __future__ import annotations

import sys

TIME_LIMIT = 2  # seconds for everything; a rehearsal takes some hundredths

_OPERATIONS = ("prepare", "migrate", "restore")
_READ_LIMIT = 10 * 1024 * 1024 + 1  # bytes; domain.SIZE_LIMIT, without importing it for every guest
_RECORD = b"urn:kvmarm-plugin:target:"  # record.NAMESPACE_STEM, likewise


def main() -> int:
    """Exit status for libvirt: 0 lets the guest go on.

    Arguments, as libvirt passes them: domain, operation, sub-operation, extra. Standard input: the domain's XML.
    """
    name, operation, stage = (*sys.argv[1:4], "", "", "")[:3]
    if operation not in _OPERATIONS or stage != "begin":
        return 0
    source = sys.stdin.buffer.read(_READ_LIMIT)
    ours = _RECORD in source
    if not ours and b"host-model" not in source:
        return 0
    if not __package__:  # run as a file: the package is not on the path
        sys.path.insert(0, __file__.rpartition("/kvmarm_plugin/")[0])
    return _verify(name, operation, source) if ours else _explain_host_model(name, source)


def _explain_host_model(name: str, source: bytes) -> int:
    """libvirt is about to refuse host-model with a message that helps nobody; fail first, with one that does.

    libvirt shows a hook's standard error only if the hook fails (virRunScript, src/util/virhook.c).
    """
    from kvmarm_plugin.domain import asks_for_host_model, parse
    from kvmarm_plugin.errors import KvmarmError

    try:
        if not asks_for_host_model(parse(source)):
            return 0
    except KvmarmError:
        return 0  # libvirt wrote this; if it cannot be read, it is libvirt's to complain
    sys.stderr.write(
        f"kvmarm: {name} asks for host-model, which libvirt cannot start on ARM. Make it concrete, and start it again: "
        f"virsh dumpxml --inactive --security-info {_quoted(name)} | kvmarm define -\n"
    )
    return 1


def _quoted(name: str) -> str:
    """A name as one word of a shell, for people who paste it (shlex.quote would import re)."""
    plain = name.replace("-", "").replace("_", "").replace(".", "").isalnum() and name[0] != "-"
    return name if plain else "'" + name.replace("'", "'\\''") + "'"


def _verify(name: str, operation: str, source: bytes) -> int:
    """Rehearse a recorded guest. Whatever goes wrong on the way refuses it: a target that cannot be confirmed is not one."""
    import _signal as signal  # type: ignore[import-not-found]  # its Python half brings enum and collections: 6 ms

    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(TIME_LIMIT)
    try:
        reason = _reason(source)
    except Exception as error:
        # Not KvmarmError alone: a bug here must not let a guest go wrong, nor show libvirt's user a traceback.
        reason = str(error) or type(error).__name__
    finally:
        signal.alarm(0)
    return _refuse(name, operation, reason) if reason else 0


def _reason(source: bytes) -> str:
    """Why this guest must not run here; empty if it may, and for a guest without a record, whatever its XML mentions."""
    from kvmarm_plugin import record
    from kvmarm_plugin.domain import parse

    domain = parse(source)
    element = record.find(domain)
    if element is None:
        return ""
    target = record.read(element).target
    from kvmarm_plugin.kvm.device import System
    from kvmarm_plugin.kvm.rehearse import rehearse
    from kvmarm_plugin.verdict import HARMLESS, in_short

    with System() as system:
        blocking = [finding for finding in rehearse(target, system) if finding.severity != HARMLESS]
    return "; ".join(in_short(blocking))


def _refuse(name: str, operation: str, reason: str) -> int:
    """Say why on standard error, which reaches whoever started this, and in the system's log. A policy may let it pass."""
    import syslog

    from kvmarm_plugin.policy import refuses

    refused = refuses(operation)
    message = f"kvmarm: {name} {'cannot' if refused else 'should not'} run on this host as it was promised: {reason}"
    sys.stderr.write(message + "\n")
    try:
        syslog.openlog("kvmarm-hook", syslog.LOG_PID, syslog.LOG_DAEMON)
        syslog.syslog(syslog.LOG_ERR if refused else syslog.LOG_WARNING, f"{operation}: {message}")
    except OSError:
        pass  # no log is no reason to decide otherwise
    return int(refused)


def _out_of_time(*_signal: object) -> None:
    raise TimeoutError(f"checking took longer than {TIME_LIMIT} s; is the host overloaded? See: kvmarm check")


if __name__ == "__main__":
    sys.exit(main())
