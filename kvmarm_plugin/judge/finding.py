# SPDX-License-Identifier: LGPL-2.1-or-later
"""A finding: one reason why a target would not run on a host as it did. findings.tsv has the kinds,
`wording` their words.
"""

from __future__ import annotations

from ..basics.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

REFUSES, WRONG, HARMLESS = "refuses", "guest would be wrong", "harmless"
UNKNOWN = "unknown"  # it may be any of the others
_SEVERITIES = (REFUSES, WRONG, UNKNOWN, HARMLESS)  # the most blocking first

_COLUMNS = (
    "kind", "severity", "cold", "group", "subject", "meaning", "recorded", "local", "whose",
    "rule", "helps", "remedy", "start",
)  # fmt: skip
_kinds: dict[str, dict[str, str]] = {}  # read on first use: a guest that fits needs none


class Finding(Value):
    """One reason, as data.

    Attributes:
        kind: its row in findings.tsv.
        values: name → number, name, or tuple of them: those that the row's templates name. Also
            "pool", the name of one, where the host takes a guest that the pool's other members
            would not.
    """

    kind: str
    values: dict[str, Any]

    def __init__(self, kind: str, **values: Any) -> None:
        self._freeze({"kind": kind, "values": values})

    def replace(self, **changes: Any) -> Finding:
        """The same finding with other values: those given in `values`, which take the place of
        all.
        """
        return Finding(changes.get("kind", self.kind), **changes.get("values", self.values))

    def __hash__(self) -> int:  # type: ignore[override]  # no value is a dict
        return hash((self.kind, frozenset(self.values.items())))

    @property
    def severity(self) -> str:
        """REFUSES, WRONG, UNKNOWN or HARMLESS."""
        return kinds()[self.kind]["severity"]

    @property
    def stops_start(self) -> bool:
        """Whether the guest would not even boot, as this host makes it by itself. What does not
        stop it is drift.
        """
        return kinds()[self.kind]["cold"] == "stops"

    @property
    def group(self) -> str:
        """Of the kinds that are treated alike, as findings.tsv explains; empty for most."""
        return kinds()[self.kind]["group"]

    @property
    def is_hopeless(self) -> bool:
        """Whether nothing that is known lets the guest arrive."""
        return kinds()[self.kind]["helps"] == "none"

    @property
    def rank(self) -> int:
        """Its place among findings: the most blocking first."""
        return _SEVERITIES.index(self.severity)


def kinds() -> dict[str, dict[str, str]]:
    """Every kind of finding: its name → its row in findings.tsv, by column."""
    if not _kinds:
        from ..registers.table import rows

        for row in rows("findings.tsv", __file__):
            kind = {column: "" if cell == "-" else cell for column, cell in zip(_COLUMNS, row)}
            kind["start"] = kind["remedy"] if kind["start"] == "=" else kind["start"]
            _kinds[row[0]] = kind
    return _kinds


def worst(findings: list[Finding]) -> str:
    """The verdict in a word: the highest severity, or "" if nothing was found."""
    return next(
        (severity for severity in _SEVERITIES if any(f.severity == severity for f in findings)),
        "",
    )
