# SPDX-License-Identifier: LGPL-2.1-or-later
"""Background processes that cannot outlive this one, however it ends.

host.py starts QEMU and its ssh connection with spawn().  The kernel kills them when we die
(PR_SET_PDEATHSIG, set by setpriv before it executes the command), even if we are killed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import machine

# "Death of the parent" is really death of the thread that forked: so one thread, which lives as
# long as Python does, forks them all, and a host may be booted from any short-lived thread.
_forker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lab-forker")


def spawn(
    command: Sequence[str], output: Path, pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a command; what it says is appended to `output`."""
    return _forker.submit(_spawn, command, output, pass_fds).result()


def _spawn(
    command: Sequence[str], output: Path, pass_fds: Sequence[int]
) -> subprocess.Popen[bytes]:
    with output.open("ab") as sink:
        return subprocess.Popen(
            [
                machine.tool("setpriv"),
                "--pdeathsig",
                "KILL",
                machine.tool(command[0]),
                *command[1:],
            ],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            pass_fds=pass_fds,
            # Not in the terminal's foreground group: Ctrl-C is for us, and we stop them.
            start_new_session=True,
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process that has nothing to save."""
    process.kill()
    process.wait(timeout=30)
