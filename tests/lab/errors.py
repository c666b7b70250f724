# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the lab raises, and the one way it talks to the person who waits.

Used by every module of the lab.  An error carries a hint when there is something its reader can do;
progress goes to stderr, one line a step, because building an image or booting a host takes seconds
that should be seen.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class LabError(Exception):
    """Something in the lab did not work; `hint` says what to do about it."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n  hint: {hint}")
        self.hint = hint


class HostGone(LabError):
    """A host ended in the middle of something: its kernel has died, or QEMU."""


class LabTimeout(LabError):
    """A wait came to its limit."""


def say(message: str) -> None:
    """One line of progress."""
    print(f"lab: {message}", file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what was done and how long it took, once it is done."""
    begin = time.monotonic()
    yield
    say(f"{time.monotonic() - begin:5.1f} s  {what}")
