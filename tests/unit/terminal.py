# SPDX-License-Identifier: LGPL-2.1-or-later
"""A terminal to type into, for what shells do only there."""

from __future__ import annotations

import os
import pty
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path

_SECONDS = 60.0


def type_into(
    command: Sequence[str], keys: str, directory: Path, environment: dict[str, str]
) -> None:
    """Run a command in a terminal, type, and wait until it has ended; what it says is lost.

    Args:
        directory: where it runs; programs of its bin/ come first.
    """
    ours, theirs = pty.openpty()
    path = f"{directory / 'bin'}:{os.environ['PATH']}"
    with subprocess.Popen(
        command,
        cwd=directory,
        env={"PATH": path, "TERM": "dumb", **environment},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        os.write(ours, keys.encode())
        try:
            while select.select([ours], [], [], _SECONDS)[0] and os.read(ours, 4096):
                pass
        except OSError:  # the last process has closed it
            pass
        if process.poll() is None:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    os.close(ours)
