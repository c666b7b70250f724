# SPDX-License-Identifier: LGPL-2.1-or-later
"""A finding: one reason why a target would not run on a host as it did, with its severity."""

from __future__ import annotations

from ..basics.untrusted import shown
from ..basics.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


REFUSES, WRONG, HARMLESS = "refuses", "guest would be wrong", "harmless"

_TEXT = 500  # characters of each part of a finding; honest ones have 121 at most


class Finding(Value):
    """One reason. Values and names of others go into its texts, which are made such that they can be shown.

    Attributes:
        subject: "REGISTER.FIELD", or another such as "machine type".
        meaning: what that is, for people.
        recorded, local: the two values, as text.
        rule: whose rule it is, and what it says.
        severity: REFUSES, WRONG or HARMLESS.
        remedy: what to do.
    """

    __slots__ = ("local", "meaning", "recorded", "remedy", "rule", "severity", "subject")
    subject: str
    meaning: str
    recorded: str
    local: str
    rule: str
    severity: str
    remedy: str

    def __init__(self, *, subject: str, meaning: str, recorded: str, local: str, rule: str, severity: str, remedy: str) -> None:
        texts = locals()
        self._freeze({name: shown(texts[name], _TEXT) for name in self.__slots__})

    def as_json(self) -> dict[str, str]:
        """The attributes by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        meaning = f" ({self.meaning})" if self.meaning else ""
        text = f"{self.subject}{meaning}: recorded {self.recorded}, here {self.local}; {self.severity}: {self.rule}"
        return f"{text}; remedy: {self.remedy}" if self.remedy else text


def worst(findings: list[Finding]) -> str:
    """The verdict in a word: the highest severity, or "" if nothing was found."""
    return next((severity for severity in (REFUSES, WRONG, HARMLESS) if any(f.severity == severity for f in findings)), "")


def in_short(findings: list[Finding], limit: int = 4) -> list[str]:
    """The first findings as text, and how many more there are."""
    more = len(findings) - limit
    return [*map(str, findings[:limit]), *([f"and {more} more"] if more > 0 else [])]


def refusal(subject: str, meaning: str, recorded: str, local: str, rule: str, remedy: str = "") -> Finding:
    """A finding that refuses."""
    return Finding(subject=subject, meaning=meaning, recorded=recorded, local=local, rule=rule, severity=REFUSES, remedy=remedy)
