# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the commands write: data as they are, text for people with nothing in it that commands a
terminal.
"""

from __future__ import annotations

import os
import sys

from ..basics.errors import KvmarmError
from ..basics.untrusted import lines, shown
from ..host import files


def write_data(name: str | None, data: bytes, mode: int | None = None) -> None:
    """Write to a file, of this mode as `files.write` has it, or to standard output for None. Raises
    KvmarmError; BrokenPipeError if nobody reads any more.
    """
    if name:
        files.write(name, data, mode)
        return
    if sys.stdout is None:
        raise KvmarmError(
            "cannot write standard output: it is closed", "open it, or send it to /dev/null"
        )
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        # Python must not try again when it flushes what is left at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise KvmarmError(
            f"cannot write standard output: {error.strerror}", "check the free space where it goes"
        ) from None


def write_text(text: str) -> None:
    """Text to standard output, however it came about: what does not print is escaped, and what the
    output's encoding does not have. Data go to `write_data` as they are.
    """
    text = "\n".join(shown(line, sys.maxsize) for line in text.split("\n"))
    write_data(
        None, text.encode(sys.stdout.encoding if sys.stdout else "utf-8", "backslashreplace")
    )


def say(line: str) -> None:
    """A line to standard error. That it is closed or full changes nothing."""
    try:
        if sys.stderr is not None:
            print(lines([f"kvmarm: {line}"]), end="", file=sys.stderr)
    except OSError:
        pass


def is_watched() -> bool:
    """Whether somebody sees at once what `say` says."""
    return sys.stderr is not None and sys.stderr.isatty()
