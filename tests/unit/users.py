# SPDX-License-Identifier: LGPL-2.1-or-later
"""Several users in a test: root plays them by giving its files away, and by processes that become
one.
"""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ALICE = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def give(path: str | Path) -> None:
    """Make a file, directory or link Alice's."""
    os.chown(path, ALICE, ALICE, follow_symlinks=False)


def start_as_alice(function: Callable[[], object]) -> int:
    """Call it in a process of Alice's, which ends with status 0 if the function returns. Returns
    the process's number.
    """
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setgroups([])
        os.setgid(ALICE)
        os.setuid(ALICE)
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def as_alice(function: Callable[[], object]) -> None:
    """Call it as Alice, and fail if it does."""
    assert os.waitpid(start_as_alice(function), 0)[1] == 0, "see standard error"
