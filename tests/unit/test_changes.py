# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes of the files in a directory, on this kernel."""

from __future__ import annotations

import os
import queue
import threading
import time
from pathlib import Path

import pytest

from kvmarm_plugin.host import changes


def test_every_way_in_which_a_policy_is_written(tmp_path: Path) -> None:
    """By a shell, by an editor or Ansible, by hand, and by whoever mends its mode."""
    told: queue.Queue[int] = queue.Queue()
    threading.Thread(
        target=changes.watch, args=(str(tmp_path), lambda: told.put(1)), daemon=True
    ).start()
    path, draft, elsewhere = (tmp_path / name for name in ("policy.yaml", ".draft", "../elsewhere"))

    def settle() -> None:
        while True:
            try:
                told.get(timeout=0.2)
            except queue.Empty:
                return

    while told.empty():  # the thread has not come to watch it yet
        path.write_text("pmu: on\n")
        time.sleep(0.05)
    draft.write_text("pmu: off\n")
    elsewhere.write_text("pmu: off\n")
    settle()
    for change in (
        lambda: path.write_text("pmu: off\n"),
        lambda: draft.rename(path),
        lambda: elsewhere.rename(path),
        lambda: path.chmod(0o600),
        path.unlink,
        lambda: path.symlink_to(os.devnull),
    ):
        change()
        assert told.get(timeout=10)
        settle()
    assert told.empty()


@pytest.mark.parametrize("name", ["nowhere", "a file"])
def test_there_is_no_such_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "a file").write_text("")
    changes.watch(str(tmp_path / name), lambda: pytest.fail("nothing changes"))
