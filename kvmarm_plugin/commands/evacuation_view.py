# SPDX-License-Identifier: LGPL-2.1-or-later
"""Verdicts of all guests by host, for people as a table and as JSON."""

from __future__ import annotations

import json
from typing import NamedTuple

from ..basics.untrusted import lines, shown
from . import check_view
from .check_view import DRIFT
from .inputs import LIVE, SAVED, STORED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .check_view import Report

# Answers: what becomes of a guest on a host.
YES, YES_WITH_DRIFT, NO = "yes", "yes, not as recorded", "no"
NOT_KNOWN, NO_RECORD, NOT_OURS, ERROR = "not known", "no record", "not judged", "error"

_STATES = {LIVE: "running", SAVED: "saved", STORED: "shut off", "": "?"}
_NAME, _HOST = 60, 40  # characters of a name in the table


class Row(NamedTuple):
    """A domain.

    Attributes:
        definition: the one that was judged, as in inputs.Source; empty if none could be read.
        report: what was found; None where there is nothing to find.
        answer: then, for all hosts: NO_RECORD, NOT_OURS or ERROR.
        reason: of that.
    """

    name: str
    uuid: str
    definition: str
    report: Report | None
    answer: str = ""
    reason: str = ""

    def answers(self, hosts: list[str]) -> list[str]:
        """By host."""
        return [_answer(self, host) for host in hosts]


def as_text(rows: list[Row], hosts: list[str]) -> str:
    """A line a domain, the reasons of every no once each, and how many there are of each."""
    reasons: dict[str, dict[str, None]] = {}  # in order, with its remedies, each once
    table = [["", "", *(shown(host, _HOST) for host in hosts)]]
    for row in rows:
        cells = []
        for host in hosts:
            found = _reasons(row, host)
            for reason, remedy in found:
                reasons.setdefault(reason, {}).setdefault(remedy)
            order = list(reasons)
            numbers = " ".join(str(1 + order.index(reason)) for reason, _ in found)
            cells.append(f"{_answer(row, host)}: {numbers}" if numbers else _answer(row, host))
        table.append([shown(row.name, _NAME), _STATES[row.definition], *cells])
    said = _aligned(table) if rows else []
    for number, (reason, remedies) in enumerate(reasons.items(), 1):
        said.append(f"{number}: {reason}")
        said += [f"   Remedy: {remedy}" for remedy in remedies if remedy]
    for host in hosts:
        counts = "; ".join(f"{count} {answer}" for answer, count in _counts(rows, host).items())
        said.append(f"{shown(host)}: {counts or 'no domains'}")
    if any(row.report for row in rows):
        said.append(check_view.SCOPE)
    return lines(said)


def as_json(rows: list[Row], hosts: list[str]) -> str:
    """The same for tools: of each domain what `kvmarm check --json` prints, and its answers."""
    document = {
        "hosts": hosts,
        "domains": [
            {
                **(check_view.as_document(row.report) if row.report else {}),
                "domain": row.name,
                "uuid": row.uuid,
                "state": _STATES[row.definition],
                "answers": dict(zip(hosts, row.answers(hosts))),
                "reason": row.reason,
            }
            for row in rows
        ],
        "totals": {host: _counts(rows, host) for host in hosts},
    }
    return json.dumps(document, indent=1) + "\n"


def _answer(row: Row, host: str) -> str:
    report = row.report
    if report is None:
        return row.answer
    findings = report.verdicts[host]
    if report.is_yes(findings):
        return YES_WITH_DRIFT if report.verdict(findings) == DRIFT else YES
    return NO if report.is_no(findings) else NOT_KNOWN


def _reasons(row: Row, host: str) -> list[tuple[str, str]]:
    """Why there is no yes, and what to do: in words that are the same for all guests."""
    report = row.report
    if report is None:
        return [(row.reason, "")]
    findings = report.verdicts[host]
    if report.unknown:
        return [(report.unknown, check_view.of_unknown(report.replace(title="DOMAIN")))]
    if report.is_yes(findings):
        return []
    return [check_view.reason(report, host, each) for each in report.against(findings)]


def _counts(rows: list[Row], host: str) -> dict[str, int]:
    answers = [_answer(row, host) for row in rows]
    order = (YES, YES_WITH_DRIFT, NO, NOT_KNOWN, NO_RECORD, NOT_OURS, ERROR)
    return {answer: answers.count(answer) for answer in order if answer in answers}


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
