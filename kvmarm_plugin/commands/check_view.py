# SPDX-License-Identifier: LGPL-2.1-or-later
"""Verdicts of a guest or a pool by host, for people and as JSON."""

from __future__ import annotations

import json

from ..basics.untrusted import domain_word, lines, shown
from ..basics.value import Value
from ..host import marks
from ..judge.finding import HARMLESS, REFUSES, UNKNOWN, kinds, worst
from ..judge.wording import as_data, difference, override_for, texts
from .inputs import FILE, LIVE, SAVED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..judge.finding import Finding

# Questions: would the guest run there with the state that it has? Would it boot there? Would the
# host be a member of the pool like the others?
ARRIVAL, START, MEMBER = "arrival", "cold start", "member"

SAME, DRIFT, NOT_KNOWN = "same", "drift", "not known"  # verdicts; the others are severities

_YES = {
    ARRIVAL: {
        SAME: "yes, as recorded",
        HARMLESS: "yes, as recorded; by itself the host would give something else now",
    },
    START: {
        SAME: "yes, it would start as recorded",
        DRIFT: "yes, it would start, but not as recorded",
    },
    MEMBER: {SAME: "yes, a member like the others"},
}
_AS_FAR_AS_KNOWN = {
    ARRIVAL: "yes, as far as known",
    START: "yes, it would start, as far as known",
    MEMBER: "yes, as far as known",
}
_REFUSED = "no, it would not start as recorded, which the policy refuses (on-drift)"
_NO = {ARRIVAL: "no", START: "no, it would not start", MEMBER: "no"}
SCOPE = "Checked: CPU, machine type, GIC and timer. Not checked: devices and disks."
_SAVED = "Note: a saved state cannot be changed: it loads only where the answer is yes."


class Report(Value):
    """What was asked, and the answers.

    Attributes:
        title: of the guest or the pool.
        uuid: of the guest; empty where it has none.
        question: ARRIVAL, START or MEMBER.
        verdicts: findings by the name of the host that was asked.
        here: whether that is this host.
        origin: the host that the record is of; empty for a pool.
        definition: the guest's that was judged, as in inputs.Guest.
        unknown: why there is no answer, and then there are no findings; empty if there is one.
        notes: of the guest's definitions, as in inputs.Guest.
        drift_refused: whether the policy of the host that is asked refuses a start with drift.
        adopted: whether the guest never asked for host-model.
        assumed: whether it has no record.
    """

    title: str
    question: str
    verdicts: dict[str, list[Finding]]
    here: bool = True
    origin: str = ""
    definition: str = ""
    unknown: str = ""
    notes: tuple[str, ...] = ()
    drift_refused: bool = False
    adopted: bool = False
    assumed: bool = False
    uuid: str = ""

    @property
    def word(self) -> str:
        """What to call the guest in a command."""
        return shown(domain_word(self.title, self.uuid))

    def verdict(self, findings: list[Finding]) -> str:
        """SAME, DRIFT, NOT_KNOWN or a severity."""
        if self.unknown:
            return NOT_KNOWN
        if self.question != START:
            return worst(findings) or SAME
        if any(finding.stops_start for finding in findings):
            return REFUSES
        if any(finding.severity == UNKNOWN for finding in findings):
            return UNKNOWN
        return DRIFT if findings else SAME

    def is_yes(self, findings: list[Finding]) -> bool:
        verdict = self.verdict(findings)
        return verdict in _YES[self.question] and not (verdict == DRIFT and self.drift_refused)

    def is_no(self, findings: list[Finding]) -> bool:
        """Whether it is a clear no; what is neither is not known."""
        return not self.is_yes(findings) and self.verdict(findings) not in (NOT_KNOWN, UNKNOWN)

    def against(self, findings: list[Finding]) -> list[Finding]:
        """Those that speak against a yes."""
        if self.question != START:
            return [finding for finding in findings if finding.severity != HARMLESS]
        return [
            finding
            for finding in findings
            if finding.stops_start or finding.severity == UNKNOWN or self.drift_refused
        ]


def as_text(report: Report) -> str:
    """An answer a host, with its findings below it; then what to do about them, each once."""
    title, said = shown(report.title), []
    remedies: dict[str, None] = {}  # a set in order
    for host, findings in report.verdicts.items():
        said.append(f"{title} on {shown(host)}: {_answer(report, findings)}")
        said += [f"  {_line(report, host, finding)}" for finding in _in_order(report, findings)]
        remedies.update(dict.fromkeys(_remedies(report, host, findings)))
    said += [f"Note: {note}" for note in report.notes]
    yes = [not report.unknown and report.is_yes(each) for each in report.verdicts.values()]
    if any(yes):
        said.append(SCOPE)
    unknown = of_unknown(report) if report.unknown else ""
    if unknown:
        said.append(f"Remedy: {unknown}")
    said += [f"Remedy: {remedy}" for remedy in remedies]
    if report.definition == FILE and remedies and not all(yes):
        said.append(_SAVED)
    return lines(said)


def reason(report: Report, host: str, finding: Finding) -> tuple[str, str]:
    """A finding in a line, and what to do about it, in words that are the same for all guests:
    wherever they come from, and whether they have a record.
    """
    text = _with_rule(report, finding, difference(finding, "the guest's", f"{shown(host)}'s"))
    return text, _remedy(report.replace(title="DOMAIN"), host, finding)


def as_json(report: Report) -> str:
    """The same for tools: host → the verdict, and every finding."""
    return json.dumps(as_document(report), indent=1) + "\n"


def as_document(report: Report) -> dict[str, Any]:
    """What `as_json` prints."""
    hosts = {
        host: {
            "verdict": report.verdict(findings),
            "findings": [_finding_json(report, host, finding) for finding in findings],
        }
        for host, findings in report.verdicts.items()
    }
    document: dict[str, Any] = {"domain": report.title, "question": report.question, "hosts": hosts}
    if report.definition:
        document = {
            **document,
            "definition": report.definition,
            "recorded_on": report.origin,
            "notes": report.notes,
        }
    if report.question == START:
        document["drift_refused"] = report.drift_refused
    if report.unknown:
        document["unknown"] = report.unknown
    return document


def _answer(report: Report, findings: list[Finding]) -> str:
    if report.unknown:
        return f"{NOT_KNOWN}: {shown(report.unknown)}"
    verdict = report.verdict(findings)
    if verdict == DRIFT and report.drift_refused:
        return _REFUSED
    if verdict == UNKNOWN:
        return _AS_FAR_AS_KNOWN[report.question]
    answer = _YES[report.question].get(verdict, _NO[report.question])
    return answer.replace("recorded", "it is here") if report.assumed else answer


def of_unknown(report: Report) -> str:
    """What to do where nothing is known; empty where there is nothing to be done."""
    if report.assumed and report.definition != SAVED:
        return ""
    if report.definition == SAVED:
        return f"give up what was saved, and start it: virsh managedsave-remove {report.word}"
    if report.unknown == marks.FROM_STATE:
        return "shut it down and start it"
    return "have its record made true: kvmarm renew --once, as root"


def _in_order(report: Report, findings: list[Finding]) -> list[Finding]:
    """What decides first."""
    if report.question != START:
        return findings
    return sorted(findings, key=lambda finding: not finding.stops_start)


def _line(report: Report, host: str, finding: Finding) -> str:
    name, origin = shown(host), shown(report.origin)
    if report.question == MEMBER:
        text = difference(finding, shown(report.title), name)
    else:
        asked = f"now on {name}" if name == origin else f"on {name}"
        recorded = f"on {origin}" if report.assumed else f"recorded for {origin}"
        text = difference(finding, recorded, asked)
    return _with_rule(report, finding, text)


def _with_rule(report: Report, finding: Finding, text: str) -> str:
    if report.question == START and not finding.stops_start:
        return text  # the rule is one of arrivals
    said = texts(finding)
    return f"{text}; {said['severity']}: {said['rule']}"


def _remedies(report: Report, host: str, findings: list[Finding]) -> list[str]:
    """What to do about all of them: where nothing helps against one, the others' help neither, and
    what only differs does not matter where the guest does not start.
    """
    if report.question == START:
        findings = [finding for finding in findings if finding.stops_start] or findings
    else:
        findings = [f for f in findings if _is_hopeless(report, f)][:1] or findings
    return [remedy for finding in findings if (remedy := _remedy(report, host, finding))]


def _is_hopeless(report: Report, finding: Finding) -> bool:
    # A baseline made anew has fewer addresses, which helps no guest.
    is_mended = report.question == MEMBER and finding.kind == "addresses-too-few"
    return finding.is_hopeless and not is_mended


def _remedy(report: Report, host: str, finding: Finding) -> str:
    """What to do about a finding in this case; findings.tsv has what is to be done in general."""
    if finding.severity == UNKNOWN:
        if finding.values.get("local") == "known":  # then the record does not tell
            return (
                "where the guest comes from, once kvmarm probe there names no problem: kvmarm"
                f" refresh {report.word}, shut it off and start it"
            )
        return f"probe {shown(host)} itself: kvmarm probe -o FILE"
    if report.question == MEMBER:
        return _remedy_of_pool(report, host, finding)
    boots = report.question == START
    remedy = texts(finding, report.word, boots)["remedy"]
    # What is to be done about the domain itself, however it comes.
    always = not boots or remedy == texts(finding, report.word)["remedy"]
    if boots and report.assumed and not always:
        return ""  # there is nothing that would have to be made true
    if report.adopted and (always or finding.stops_start):
        remedy = _of_adopted(report, finding, remedy)
    if boots:
        return f"where it is started: {remedy}" if remedy and not report.here else remedy
    if remedy and report.definition == SAVED:
        return (
            "load it on a host that takes it, or give up what was saved: virsh managedsave-remove"
            f" {report.word}"
        )
    starts = not any(finding.stops_start for finding in report.verdicts[host])
    if report.definition == LIVE and finding.is_hopeless and starts:
        return f"shut it down and start it on {shown(host)}, where it then gets what that host has"
    return remedy


def _of_adopted(report: Report, finding: Finding, remedy: str) -> str:
    """The same for a guest that never asked for host-model: it is not resolved."""
    if finding.group == "edit":
        return f"kvmarm adopt {report.word}, or undo the edit"
    if finding.group == "left to QEMU":
        adopt = f"kvmarm adopt {report.word}"
        return f"write what it has into its definition: {adopt}; then shut it off and start it"
    if "{domain}" in kinds()[finding.kind]["remedy"]:  # it is refreshed then
        return f"write <cpu mode='host-model'/> into its definition, then {remedy}"
    return remedy


def _remedy_of_pool(report: Report, host: str, finding: Finding) -> str:
    """What to do about a host that is no member like the others: no guest is at hand."""
    from ..fleet.pool import ANEW  # not needed of guests

    name = shown(host)
    # Whoever has less is the pool.
    if finding.group == ("boot there" if "pool" in finding.values else "boot here"):
        return f"boot {name} with {override_for(finding)}, and probe it again"
    if finding.kind == "machine-unknown":
        return f"upgrade QEMU on {name}, or make the baseline anew"
    if finding.group == "library" or finding.kind in ("machines-unknown", "level-refused-identity"):
        return texts(finding)["remedy"]
    if _is_hopeless(report, finding):
        return f"leave {name} out of the pool"
    return ANEW


def _finding_json(report: Report, host: str, finding: Finding) -> dict[str, Any]:
    return {**as_data(finding), "remedy": _remedy(report, host, finding)}
