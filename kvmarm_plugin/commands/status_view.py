# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the domains of a host stand, as a table for people and as JSON."""

from __future__ import annotations

import json
from collections import Counter

from ..basics.untrusted import lines, shown
from .survey import NO, NONE, RECORDS, UNJUDGED, UNKNOWN, YES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from .survey import Drift, Standing, Survey

_HEAD = ("NAME", "STATE", "TARGET", "RECORD", "HERE", "DRIFT", "POOL")
_CELL = 60  # characters
_NAMES = 4  # domains in front of a reason that they share


def as_text(survey: Survey) -> str:
    """A line a domain; then each reason once, with the domains that it is of; then totals."""
    said = _table([_HEAD, *map(_row, survey.standings)]) if survey.standings else []
    said += [f"{_names(names)}: {reason}" for reason, names in _reasons(survey).items()]
    return lines([*said, *_totals(survey)])


def as_json(survey: Survey) -> str:
    """The same for tools."""
    document = {
        "host": survey.host,
        "pool": survey.pool or None,
        "problem": survey.problem or None,
        "notes": survey.notes,
        "domains": [_domain_json(standing) for standing in survey.standings],
        "totals": {
            "domains": len(survey.standings),
            "record": {word: _records(survey)[word] for word in RECORDS},
            "here": {word: _answers(survey)[word] for word in (YES, NO, UNKNOWN, UNJUDGED)},
            "drift": _drifting(survey),
        },
    }
    return json.dumps(document, indent=1) + "\n"


def _row(standing: Standing) -> tuple[str, ...]:
    pool = standing.pool and f"{standing.pool}{'' if standing.in_pool else ', no more'}"
    return (
        standing.name,
        standing.state,
        standing.target or "-",
        standing.record,
        standing.answer,
        _drift_text(standing.drift),
        pool or "-",
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    cells = [[shown(cell, _CELL) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells
    ]


def _drift_text(drift: Drift | None) -> str:
    if drift is None:
        return "-"
    if not drift.starts:
        return "would not start"
    return _count(drift.differences, "difference") if drift.differences else "none"


def _reasons(survey: Survey) -> dict[str, list[str]]:
    """Each reason → the names of the domains that it is of; without what is said of the host."""
    reasons: dict[str, list[str]] = {}
    for standing in survey.standings:
        for reason in standing.reasons:
            if reason != survey.problem:
                reasons.setdefault(f"{standing.answer}: {reason}", []).append(standing.name)
    return reasons


def _names(names: list[str]) -> str:
    said = ", ".join(shown(name, _CELL) for name in names[:_NAMES])
    return said + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")


def _totals(survey: Survey) -> list[str]:
    standings, records, answers = survey.standings, _records(survey), _answers(survey)
    said = [
        f"{_count(len(standings), 'domain')} on {shown(survey.host, _CELL)}"
        + (f", in pool {shown(survey.pool, _CELL)}" if survey.pool else "")
    ]
    if standings:
        said += [
            f"Records: {_counted(records, RECORDS)}",
            f"Would run or start here: {_counted(answers, (YES, NO, UNKNOWN, UNJUDGED))}",
            f"Drift at the next cold start: {_count(_drifting(survey), 'domain')}",
        ]
    if answers[NO]:
        said.append("All reasons, and what to do: kvmarm check DOMAIN")
    if records[NONE] and answers[UNJUDGED]:
        said.append("A domain without a record is not judged here: kvmarm check DOMAIN")
    if survey.problem:
        said.append(f"No domain was judged: {survey.problem}")
    return [*said, *(f"Note: {note}" for note in survey.notes)]


def _records(survey: Survey) -> Counter[str]:
    return Counter(standing.record for standing in survey.standings)


def _answers(survey: Survey) -> Counter[str]:
    return Counter(standing.answer for standing in survey.standings)


def _drifting(survey: Survey) -> int:
    drifts = [standing.drift for standing in survey.standings if standing.drift]
    return sum(bool(drift.differences) or not drift.starts for drift in drifts)


def _counted(counts: Counter[str], words: Iterable[str]) -> str:
    return ", ".join(f"{counts[word]} {word}" for word in words if counts[word])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _domain_json(standing: Standing) -> dict[str, Any]:
    drift = standing.drift
    return {
        "name": standing.name,
        "uuid": standing.uuid,
        "state": standing.state,
        "target": standing.target,
        "record": standing.record,
        "here": standing.answer,
        "verdict": standing.verdict or None,
        "reasons": standing.reasons,
        "drift": drift.as_dict() if drift else None,
        "pool": standing.pool or None,
        "in_pool": standing.in_pool,
    }
