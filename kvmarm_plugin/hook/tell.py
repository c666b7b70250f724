# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the hook says: on standard error, which reaches whoever started the guest if it is stopped,
in the system's log, and the domain's XML on standard output.
"""

from __future__ import annotations

import os

from ..basics.untrusted import shown
from .time_limit import PATIENCE, TIME_LIMIT, OutOfTime, within

MESSAGE_LIMIT = (
    1900  # bytes: a pipe takes that in one piece (PIPE_BUF), and every system log takes it at all
)


def say(message: str) -> None:
    """A line on standard error. That it is closed or full, or that nobody reads it, decides
    nothing.
    """
    try:  # noqa: SIM105  # hook/__init__.py says why not contextlib
        within(PATIENCE, os.write, 2, f"kvmarm: {one_line(message)}\n".encode())
    except (OSError, OutOfTime):
        pass


def print_xml(xml: bytes) -> str:
    """The domain's XML on standard output, where libvirt reads it. Returns what went wrong."""
    try:
        within(TIME_LIMIT, _write, 1, xml)
    except OSError as error:
        return f"standard output: {error.strerror}"
    except OutOfTime:
        return f"standard output: nobody has read it for {TIME_LIMIT} s"
    return ""


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def log(operation: str, level: str, message: str) -> None:
    """A line in the system's log, if there is one and it answers: a guest does not wait for it.

    Args:
        operation: libvirt's, which goes in front.
        level: of syslog(3), without "LOG_".
    """
    try:
        import syslog

        syslog.openlog("kvmarm-hook", syslog.LOG_PID, syslog.LOG_DAEMON)
        line = f"{operation}: {one_line(message)}"
        within(PATIENCE, syslog.syslog, getattr(syslog, f"LOG_{level}"), line)
    except (ImportError, OSError, OutOfTime):
        pass


def one_line(text: str, limit: int = MESSAGE_LIMIT) -> str:
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
