# SPDX-License-Identifier: LGPL-2.1-or-later
"""A record is true for a guest's whole life: lives on two hosts, with renewal at work on both, and
with the hook alone.

`python3 -m tests.lab.lives` runs them all; docs/truth-table.md has what came out.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmarm_plugin.judge.finding import REFUSES

from .lives import CASES, COLD, LIVES, Lives, as_foretold
from .truth_table import WORKS

QUICK = ("moved there", *COLD)


def _run(wheel: Path, name: str, kinds: tuple[str, ...], renewal: bool) -> list[str]:
    """What really became of these lives. Hook and check have foretold it."""
    lives = Lives(wheel)
    (case,) = (case for case in CASES if case.name == name)
    lives.run(case, kinds, renewal)
    assert [row for row in lives.rows if not as_foretold(*row)] == []
    return [row.really for _, _, row in lives.rows]


def test_the_way_home(wheel: Path) -> None:
    """Of a guest that was moved, and of one that booted where it has more than at home."""
    assert _run(wheel, "bti", QUICK, renewal=True) == [WORKS, REFUSES]


@pytest.mark.slow
@pytest.mark.parametrize("case", [case.name for case in CASES])
def test_every_life(wheel: Path, case: str) -> None:
    _run(wheel, case, tuple(LIVES), renewal=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["bti", "trixie-sid"])
def test_with_the_hook_alone(wheel: Path, case: str) -> None:
    assert _run(wheel, case, QUICK, renewal=False)[1] == REFUSES
