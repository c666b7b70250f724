# SPDX-License-Identifier: LGPL-2.1-or-later
"""No false yes and no false no: the most telling pairs of the truth table, with real migrations
both ways.

`python3 -m tests.lab.truth_table` runs them all; docs/truth-table.md has its results.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvmarm_plugin.judge.finding import REFUSES, WRONG

from .truth_table import CASES, WORKS, Table

# Pair → what really happens to its first guest, from the first host to the second and back.
EXPECTED = {
    "sve-pauth": (REFUSES, WORKS),  # features that only one has
    "cntfrq": (WRONG, WRONG),  # what neither kernel nor QEMU looks at
    "trixie-sid": (WORKS, REFUSES),  # registers that only the newer kernel has
}


QUICK = "sve-pauth"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == QUICK else pytest.mark.slow) for name in EXPECTED],
)
def test_hook_check_and_migration_agree(name: str, wheel: Path) -> None:
    (case,) = (case for case in CASES if case.name == name)
    rows = Table(wheel).run(replace(case, guests=case.guests[:1]))
    assert [row for row in rows if not row.agrees] == []
    assert tuple(row.really for row in rows) == EXPECTED[name]
