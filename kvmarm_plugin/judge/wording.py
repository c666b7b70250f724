# SPDX-License-Identifier: LGPL-2.1-or-later
"""The words of findings: text for people and programs, made of a finding's values by the templates
of findings.tsv.
"""

from __future__ import annotations

from ..basics.untrusted import shown
from ..model.guest_registers import frequency
from ..registers.overrides import override_of
from ..registers.table import describe, field_of
from .finding import Finding, kinds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TEMPLATES = ("subject", "meaning", "recorded", "local", "rule", "remedy", "start")
_TEXT = 500  # characters of each part of a finding; honest ones have 121 at most
_NAME = 200  # and of a text in it
_ITEMS = 6  # of a list with commas

_OLDEST_KERNEL = "6.1"  # that was measured: what it knows needs no word of its age

# Words of the kernel's command line that hosts were measured with.
_MEASURED = ("arm64.nosve", "arm64.nopauth", "arm64.nobti")

DOMAIN = "DOMAIN"  # in commands, for a guest whose name is not known


class _Text(str):
    """A foreign text in a template; the format is its longest."""

    __slots__ = ()

    def __format__(self, longest: str) -> str:
        return shown(self, int(longest or _NAME))


class _Number(int):
    """A number in a template; as Python formats it, or as a frequency."""

    __slots__ = ()

    def __format__(self, form: str) -> str:
        return frequency(self) if form == "MHz" else super().__format__(form)


class _Items(tuple):  # type: ignore[type-arg]  # of numbers, or of texts
    """A tuple in a template; findings.tsv says what its format is."""

    __slots__ = ()

    def __format__(self, form: str) -> str:
        form, _, none = form.partition("|")
        each, between = ("#x", form[2:]) if form.startswith("#x") else ("", form)
        count = _ITEMS if "," in between else len(self)
        items = [format(_formattable(item), each) for item in self[:count]]
        more = f" and {len(self) - count} more" if len(self) > count else ""
        return between.join(items) + more if items else none


def texts(finding: Finding, domain: str = DOMAIN, boots: bool = False) -> dict[str, str]:
    """A finding in words, a line each, as in JSON: kind, subject, meaning, recorded, local, rule,
    severity, remedy.

    Args:
        domain: the guest's name, as one word of a command.
        boots: the remedy is for a guest that boots; otherwise for one that arrives.
    """
    row = kinds()[finding.kind]
    words = {name: _formattable(value) for name, value in _words(finding).items()}
    words["domain"] = "{domain}"
    said = {column: shown(row[column].format(**words), _TEXT) for column in _TEMPLATES}
    start = said.pop("start")
    # Only now, since a command that was cut short would be another.
    said["remedy"] = (start if boots else said["remedy"]).replace("{domain}", domain)
    if "pool" in finding.values:
        # Found on the way from this host to the pool's others.
        said["recorded"], said["local"] = said["local"], said["recorded"]
        said["rule"] = shown(
            f"a guest started on it could not move to the rest of pool {words['pool']:}:"
            f" {said['rule']}",
            _TEXT,
        )
    return {"kind": finding.kind, **said, "severity": row["severity"]}


def as_data(finding: Finding) -> dict[str, Any]:
    """A finding as JSON has it."""
    return {**texts(finding), "stops_start": finding.stops_start}


def line(
    finding: Finding,
    recorded: str = "recorded",
    local: str = "here",
    domain: str = DOMAIN,
    boots: bool = False,
    helps: bool = True,
) -> str:
    """A finding as one line; the arguments are as for `difference` and `texts`.

    Args:
        helps: whether to say the remedy.
    """
    said = texts(finding, domain, boots)
    remedy = f"; remedy: {said['remedy']}" if said["remedy"] and helps else ""
    return f"{difference(finding, recorded, local)}; {said['severity']}: {said['rule']}{remedy}"


def difference(finding: Finding, recorded: str, local: str, meaning: bool = True) -> str:
    """What differs, in a line.

    Args:
        recorded, local: whose the two values are, such as "recorded on alpha" and "on beta", if
            findings.tsv does not say.
        meaning: whether to say what it is that differs.
    """
    said = texts(finding)
    ours, _, theirs = kinds()[finding.kind]["whose"].partition(", ")
    means = f" ({said['meaning']})" if meaning and said["meaning"] else ""
    return (
        f"{said['subject']}{means}: {ours or recorded} {said['recorded']},"
        f" {theirs or local} {said['local']}"
    )


def in_short(
    findings: list[Finding],
    limit: int = 4,
    recorded: str = "recorded",
    local: str = "here",
    domain: str = DOMAIN,
    boots: bool = False,
    helps: bool = True,
) -> list[str]:
    """The first findings, a line each, and how many more there are; the arguments are as for
    `line`. Where nothing helps against one, that is among them, and the others' remedies, which do
    not help either, are not said.
    """
    more = len(findings) - limit
    hopeless = [] if boots else [finding for finding in findings if finding.is_hopeless]
    if hopeless and not any(finding.is_hopeless for finding in findings[:limit]):
        findings = [*findings[: limit - 1], hopeless[0]]
    said = [
        line(
            finding, recorded, local, domain, boots, helps and (finding.is_hopeless or not hopeless)
        )
        for finding in findings[:limit]
    ]
    return [*said, *([f"and {more} more"] if more > 0 else [])]


def override_for(finding: Finding) -> str:
    """The word of the kernel's command line that its remedy names; empty if it names none."""
    return str(_words(finding).get("override", ""))


def named_in(finding: Finding, *columns: str) -> tuple[object, ...]:
    """The templates of these columns and the values that they name: the same for findings that say
    the same there, and to be compared only.
    """
    from string import Formatter  # slow to import, and nothing of the hook's

    templates = [kinds()[finding.kind][column] for column in columns]
    words = _words(finding)
    names = [
        name for template in templates for _, name, _, _ in Formatter().parse(template) if name
    ]
    return (*templates, *(words[name] for name in names if name != "domain"))


def _words(finding: Finding) -> dict[str, Any]:
    """The values, and what registers/ knows of the register or the field among them."""
    values = finding.values
    register, name = values.get("register", ""), values.get("field")
    if name is None:
        return {**values, "meaning": describe(register)} if register else values
    field = field_of(f"{register}.{name}")
    override, words = override_of(register, name, min(values["recorded"], values["local"])), {}
    if override:
        notes = [f"Linux {override.since}"] if override.since != _OLDEST_KERNEL else []
        notes += [] if override.word in _MEASURED else ["may help"]
        words["override"] = override.word + (f" ({', '.join(notes)})" if notes else "")
    return {**values, "meaning": field.meaning, "policy": field.policy, **words}


def _formattable(value: Any) -> Any:
    return (
        _Text(value)
        if isinstance(value, str)
        else _Items(value)
        if isinstance(value, tuple)
        else _Number(value)
        if isinstance(value, int)
        else value
    )
