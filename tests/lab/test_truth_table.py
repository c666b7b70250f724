# SPDX-License-Identifier: LGPL-2.1-or-later
"""No false yes and no false no: the most telling pairs of the truth table, with real migrations both ways.

`python3 -m tests.lab.truth_table` runs them all; docs/truth-table.md has its results.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmarm_plugin.verdict import REFUSES, WRONG

from .truth_table import CASES, WORKS, Table

# Pair → what really happens, from the first host to the second and back, for each of its guests.
EXPECTED = {
    "sve-pauth": (REFUSES, WORKS, WORKS, WORKS),  # features that only one has, left open and pinned off
    "cntfrq": (WRONG, WRONG),  # what neither kernel nor QEMU looks at
    "trixie-sid": (WORKS, REFUSES),  # registers that only the newer kernel has
}


@pytest.mark.parametrize("name", EXPECTED)
def test_hook_check_and_migration_agree(name: str, wheel: Path) -> None:
    (case,) = (case for case in CASES if case.name == name)
    rows = Table(wheel).run(case)
    assert [row for row in rows if not row.agrees] == []
    assert tuple(row.really for row in rows[: len(EXPECTED[name])]) == EXPECTED[name]
