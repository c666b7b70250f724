# SPDX-License-Identifier: LGPL-2.1-or-later
"""Verdicts of a guest or a pool by host, for people and as JSON."""

from __future__ import annotations

import json

from ..basics.untrusted import lines, shown
from ..judge.finding import HARMLESS, worst
from ..judge.wording import line, texts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..judge.finding import Finding

_ANSWERS = {
    "": "yes, as recorded",
    HARMLESS: "yes, as recorded; by itself the host would give something else now",
}


def as_text(title: str, verdicts: dict[str, list[Finding]]) -> str:
    """An answer a host, with its findings below it."""
    text = ""
    for host, findings in verdicts.items():
        verdict = f"{shown(title)} on {shown(host)}: {_ANSWERS.get(worst(findings), 'no')}"
        text += lines([verdict, *(f"  {line(finding)}" for finding in findings)])
    return text


def as_json(title: str, verdicts: dict[str, list[Finding]]) -> str:
    """The same for tools: host → the worst severity, and every finding."""
    report = {
        host: {
            "verdict": worst(findings) or "same",
            "findings": [texts(finding) for finding in findings],
        }
        for host, findings in verdicts.items()
    }
    return json.dumps({"domain": title, "hosts": report}, indent=1) + "\n"
