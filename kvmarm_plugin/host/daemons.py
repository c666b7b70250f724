# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's system daemons as processes: libvirtd, or virtqemud where each driver has its own.

A daemon looks for hooks when it starts and when it gets SIGHUP, and notes only whether there is
one for QEMU (virHookInitialize, virHookCall, src/util/virhook.c). Nothing tells what it has noted;
so whoever sends the signal leaves a note of that.
"""

from __future__ import annotations

import os
import time

from ..basics.untrusted import decimal
from . import marks

DAEMONS = ("virtqemud", "libvirtd")

_STARTED = 19  # fields of /proc/PID/stat behind the command's name: starttime, proc(5)
_MOST = 1 << 62


class Daemon:
    """A daemon that runs.

    Attributes:
        name: of DAEMONS.
        pid: its process.
        ticks: clock ticks from the boot of the host to its start: with the PID, what tells it from
            later ones.
    """

    def __init__(self, name: str, pid: int, ticks: int) -> None:
        self.name = name
        self.pid = pid
        self.ticks = ticks

    @property
    def started(self) -> float:
        """When, in seconds since the epoch."""
        since_boot = self.ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)

    def note_told(self) -> None:
        """Note that it was told to look for hooks. Raises OSError."""
        marks.note_told(self.name, self._process())

    def told_at(self) -> float | None:
        """When that was last noted, in seconds since the epoch; None if it never was."""
        return marks.told_at(self.name, self._process())

    def _process(self) -> str:
        return f"{self.pid} {self.ticks}"


def running(root: str | os.PathLike[str] = "/") -> list[Daemon]:
    """The daemons that run; a PID file that was left does not count.

    Args:
        root: where run/ and proc/ are.
    """
    found = (_find(name, os.fspath(root)) for name in DAEMONS)
    return [daemon for daemon in found if daemon is not None]


def _find(name: str, root: str) -> Daemon | None:
    try:
        with open(os.path.join(root, f"run/{name}.pid"), encoding="ascii") as file:
            pid = decimal(file.read(20).strip(), _MOST)
        with open(os.path.join(root, f"proc/{pid}/stat"), encoding="utf-8") as file:
            # The name, in parentheses, may have any character.
            head, _, rest = file.read(4096).rpartition(")")
        command = head.partition("(")[2]
        ticks = decimal(rest.split()[_STARTED], _MOST)
    except (OSError, ValueError, IndexError):
        return None
    return Daemon(name, pid, ticks) if command == name else None
