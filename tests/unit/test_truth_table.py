# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the truth table counts, with played guests and migrations: who answers first does not change
what really happens.
"""

from __future__ import annotations

from typing import Any

import pytest

from kvmarm_plugin.judge.finding import REFUSES

from ..lab import truth_table
from ..lab.host import Result
from ..lab.truth_table import WORKS, Row

_YES, _NO = Result(0, "", ""), Result(1, "", "kvmarm: no")


class _Played:
    """A guest that is where it was last taken, and the host that it is to go to."""

    here = True

    def migrate(self, *_: object, **__: object) -> Result:
        if not self.here:
            return Result(1, "", "error: Requested operation is not valid: domain is not running")
        self.here = self.answers.pop(0).rc != 0
        return _NO if self.here else _YES

    def __init__(self, *answers: Result) -> None:
        self.answers = [*answers]

    def __getattr__(self, _name: str) -> Any:
        return lambda *_, **__: self

    def state(self) -> str:
        return "absent" if self.here else "running"


@pytest.mark.parametrize(
    ("hook", "check", "answers", "really", "agrees"),
    [
        (WORKS, WORKS, [_YES], WORKS, True),
        (WORKS, REFUSES, [_YES], WORKS, False),  # check errs: the guest has gone at the first try
        (WORKS, REFUSES, [_NO, _NO], REFUSES, True),  # libvirt refuses before the hook is asked
        (WORKS, WORKS, [_NO], REFUSES, False),
        (REFUSES, REFUSES, [_NO, _NO], REFUSES, True),
        (REFUSES, REFUSES, [_NO, _YES], WORKS, False),  # both err
        (REFUSES, WORKS, [_NO, _NO], REFUSES, False),
        (REFUSES, REFUSES, [_YES], WORKS, False),  # the hook was not asked, and the guest has gone
    ],
)
def test_what_really_happens_is_counted_once(
    hook: str,
    check: str,
    answers: list[Result],
    really: str,
    agrees: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played: Any = _Played(*answers)
    monkeypatch.setattr(truth_table, "migrate", played.migrate)
    monkeypatch.setattr(truth_table, "ask_check", lambda *_: (check, ""))
    monkeypatch.setattr(truth_table, "ask_hook", lambda *_: (hook, "said"))
    monkeypatch.setattr(truth_table, "_still_running", lambda *_: "yes")
    monkeypatch.setattr(
        truth_table, "_really", lambda result, *_: (REFUSES if result.rc else WORKS, "")
    )
    row = Row("case", "alpha", "beta", "guest")
    truth_table._move(row, played, played, played)
    assert (row.really, row.agrees) == (really, agrees)
    assert played.answers == []
