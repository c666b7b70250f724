# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the domains of a host stand, in Prometheus' text format (version 0.0.4,
https://prometheus.io/docs/instrumenting/exposition_formats/), for node_exporter's textfile
collector.
"""

from __future__ import annotations

from collections import Counter

from .. import __version__
from ..basics.untrusted import shown
from ..basics.value import Value
from .survey import NO, RECORDS, UNKNOWN, YES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .survey import Survey

_LABEL = 200  # characters of a label's value
_MOST = 5000  # domains with samples of their own

_ANSWERS = {YES: 1, NO: 0, UNKNOWN: -1}


class _Metric(Value):
    """A gauge and its samples: labels → value."""

    name: str
    help: str
    samples: list[tuple[dict[str, str], int]]


def as_text(survey: Survey | None, marks: int | None) -> str:
    """All metrics.

    Args:
        survey: None if the domains could not be read.
        marks: guests with a mark on this host; None if they could not be counted.
    """
    found = [*_of_host(survey, marks), *(_of_domains(survey) if survey else ())]
    return "".join(map(_text, found))


def _of_host(survey: Survey | None, marks: int | None) -> Iterable[_Metric]:
    yield _Metric(
        "kvmarm_info",
        "Version of kvmarm, and the pool that this host is in.",
        [({"version": __version__, "pool": survey.pool if survey else ""}, 1)],
    )
    judged = survey is not None and not survey.problem
    yield _Metric(
        "kvmarm_up",
        "Whether libvirt and this host's kernel could be asked about the domains.",
        [({}, int(judged))],
    )
    if marks is not None:
        yield _Metric(
            "kvmarm_marks", "Guests with a mark: their records may not be true.", [({}, marks)]
        )


def _of_domains(survey: Survey) -> Iterable[_Metric]:
    standings = survey.standings
    records = Counter(standing.record for standing in standings)
    yield _Metric(
        "kvmarm_domains",
        "Domains by how their record stands.",
        [({"record": word.replace(" ", "_")}, records[word]) for word in RECORDS],
    )
    named = [
        ({"domain": standing.name, "uuid": standing.uuid}, standing)
        for standing in standings[:_MOST]
    ]
    yield _Metric(
        "kvmarm_domains_left_out",
        f"Domains without samples of their own, which the first {_MOST} have.",
        [({}, len(standings) - len(named))],
    )
    yield _Metric(
        "kvmarm_domain_verdict",
        "Whether the domain would run here with its state, or start here: 1 yes, 0 no, -1 not"
        " known.",
        [
            (labels, _ANSWERS[standing.answer])
            for labels, standing in named
            if standing.answer in _ANSWERS
        ],
    )
    drifts = [(labels, standing.drift) for labels, standing in named if standing.drift]
    yield _Metric(
        "kvmarm_domain_drift",
        "Differences between the record and what a cold start here gives.",
        [(labels, drift.differences) for labels, drift in drifts],
    )
    yield _Metric(
        "kvmarm_domain_starts",
        "Whether the domain's stored definition would start here: 1 yes, 0 no.",
        [(labels, int(drift.starts)) for labels, drift in drifts],
    )


def _text(metric: _Metric) -> str:
    if not metric.samples:
        return ""
    head = f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} gauge\n"
    return head + "".join(
        f"{metric.name}{_labels(labels)} {value}\n" for labels, value in metric.samples
    )


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    # `shown` leaves no line break.
    return shown(value, _LABEL).replace("\\", "\\\\").replace('"', '\\"')
