# SPDX-License-Identifier: LGPL-2.1-or-later
"""A comparison for people and programs: as text, as JSON (docs/compare.md), and as a graph in
Graphviz's language.
"""

from __future__ import annotations

from ..basics.untrusted import lines, shown, some
from ..judge.wording import as_data, in_short, named_in, texts
from .compare import merge
from .descriptions import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from typing import Any

    from ..judge.finding import Finding
    from .compare import Comparison, Link, Pair
    from .descriptions import Description
    from .kinds import Kind

# More kinds make no matrix that fits a terminal, and more different reasons are told only in short.
_MATRIX = 20
_REASONS = 12
_SHOWN = 4  # findings of pairs
_LABEL = 1000  # characters of a line in the picture


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as docs/compare.md describes it; kinds are numbered from 1, as in the text."""
    descriptions = describe(list(comparison.kinds))
    return {
        "kinds": [
            {
                "kind": place + 1,
                "group": group.name,
                "description": descriptions[place].text,
                "hosts": list(kind.names),
            }
            for group in comparison.groups
            for place, kind in ((place, comparison.kinds[place]) for place in group.kinds)
        ],
        "groups": [
            {
                "group": group.name,
                "kinds": [place + 1 for place in group.kinds],
                "machine": group.machine,
                "problem": group.problem,
            }
            for group in comparison.groups
        ],
        "pairs": [
            {
                "from": pair.source + 1,
                "to": pair.destination + 1,
                "possible": pair.answer,
                "problem": pair.problem,
                "findings": [as_data(finding) for finding in pair.findings],
            }
            for pair in comparison.pairs
        ],
    }


# -- text ----------------------------------------------------------------------------------------


def as_text(comparison: Comparison) -> str:
    """A table of the kinds, group by group; what goes between groups; a matrix where it fits; and
    why not.
    """
    several = len(comparison.groups) > 1
    parts = [
        _table(comparison),
        *([_between(comparison), _matrix(comparison)] if several else []),
        *_reasons(comparison),
        *_open_questions(comparison),
    ]
    return "\n".join(lines(part) for part in parts if part)


def names_of(kind: Kind) -> str:
    """The hosts of a kind, the first of many."""
    return some(kind.names, 3 if len(kind.names) < 4 else 2)


def _table(comparison: Comparison) -> list[str]:
    kinds, groups = comparison.kinds, comparison.groups
    descriptions = describe(list(kinds))
    rows = [("group", "machine", "kind", "hosts", "", "")]
    for group in groups:
        for place in group.kinds:
            first, kind = place == group.kinds[0], kinds[place]
            what = f"no guests: {group.problem}" if group.problem else descriptions[place].text
            is_known = "qemu" not in kind.host.unknown
            machine = shown(group.machine) or ("none" if is_known else "not known")
            which = (group.name, machine) if first else ("", "")
            rows.append((*which, str(place + 1), str(len(kind.hosts)), names_of(kind), what))
    widths = [max(map(len, column)) for column in zip(*rows)]
    aligned = [
        [
            cell.rjust(width) if column in (2, 3) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        for row in rows
    ]
    hosts = _count(sum(len(kind.hosts) for kind in kinds), "host")
    return [
        f"{hosts} of {_count(len(kinds), 'kind')}, in {_count(len(groups), 'group')}.",
        "Within a group, guests on its machine type can migrate freely.",
        "",
        *("  ".join(row).rstrip() for row in aligned),
    ]


def _between(comparison: Comparison) -> list[str]:
    """The edges between groups, or between kinds where not the whole group has them; those from one
    place together.
    """
    ends: dict[tuple[str, str], list[str]] = {}
    for link in comparison.links():
        start = (_label(comparison, link.sources), "<->" if link.mutual else "->")
        ends.setdefault(start, []).append(_label(comparison, link.destinations))
    texts = [f"  {source} {arrow} {', '.join(labels)}" for (source, arrow), labels in ends.items()]
    if texts:
        return ["Between groups, or kinds of them, one way where not <->:", *texts]
    if any(pair.answer is None for pair in comparison.pairs):
        return ["Between groups no guest is known to be able to migrate."]
    return ["No guest can migrate between groups."]


def _label(comparison: Comparison, kinds: tuple[int, ...]) -> str:
    """A group's letter if the kinds are all of it, else their numbers."""
    group = next((group.name for group in comparison.groups if group.kinds == kinds), "")
    return group or numbers_of(kinds)


def numbers_of(kinds: Iterable[int]) -> str:
    """Ascending positions as numbers from 1, such as "1-3, 7"."""
    runs: list[list[int]] = []
    for number in kinds:
        if runs and runs[-1][-1] == number:
            runs[-1][-1] += 1
        else:
            runs.append([number + 1, number + 1])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _matrix(comparison: Comparison) -> list[str]:
    """Rows: from; columns: to."""
    kinds = comparison.kinds
    if len(kinds) > _MATRIX:
        return [
            f"{len(kinds)} kinds are too many for a matrix: --svg draws them, --json has every"
            " pair."
        ]
    names = [shown(kind.names[0]) for kind in kinds]
    width = max(map(len, names))
    texts = [
        "from \\ to".ljust(width + 6) + "".join(f"{place + 1:>4}" for place in range(len(kinds)))
    ]
    for row in range(len(kinds)):
        cells = (
            "-" if _is_alone(comparison, row, column) else _yes(comparison, row, column)
            for column in range(len(kinds))
        )
        texts.append(
            f"{row + 1:>4}  {names[row].ljust(width)}" + "".join(cell.rjust(4) for cell in cells)
        )
    if _doubtful(comparison):
        texts.append("?: yes as far as known; what is not is said below.")
    return texts


def _is_alone(comparison: Comparison, source: int, destination: int) -> bool:
    """Whether this is a kind of one host, with itself: there is nowhere to go."""
    return source == destination and len(comparison.kinds[source].hosts) == 1


def _yes(comparison: Comparison, source: int, destination: int) -> str:
    return {True: "yes", False: "no", None: "?"}[comparison.pair(source, destination).answer]


def _reasons(comparison: Comparison) -> list[list[str]]:
    """Why the missing edges are missing, those for the same reasons together; where that is much,
    by the first reason of each.
    """
    missing = [pair for pair in comparison.pairs if pair.answer is False]
    alike = _by(missing, lambda pair: (pair.problem, *pair.blocking))
    if len(alike) <= _REASONS:
        return [
            [*_heading(comparison, pairs), *(f"  {reason}" for reason in _why(pairs[0]))]
            for pairs in alike
        ]
    alike = _by(missing, lambda pair: pair.problem or named_in(_first(pair), "rule", "remedy"))
    alike.sort(key=len, reverse=True)
    return [
        [
            f"The first reason of each of {len(missing)} pairs, the most frequent first; --json has"
            " all reasons:"
        ],
        *([_in_common(pairs), *(f"  {edges}" for edges in _edges(pairs))] for pairs in alike),
    ]


def _open_questions(comparison: Comparison) -> list[list[str]]:
    """What is not known of the pairs without a clear answer, those of the same together."""
    alike = _by(_doubtful(comparison), lambda pair: tuple(pair.unknown))
    return [
        [
            *_heading(comparison, pairs, "yes as far as known"),
            *(f"  {question}" for question in _not_known(pairs[0].unknown)),
        ]
        for pairs in alike
    ]


def _doubtful(comparison: Comparison) -> list[Pair]:
    return [
        pair
        for pair in comparison.pairs
        if pair.answer is None and not _is_alone(comparison, pair.source, pair.destination)
    ]


def _not_known(findings: list[Finding]) -> list[str]:
    """Parts of a profile in a line, as there are many; then registers, the first of them."""
    parts = [texts(finding)["subject"] for finding in findings if finding.kind == "not-known"]
    others = [finding for finding in findings if finding.kind != "not-known"]
    return [
        *([f"not known: {', '.join(parts)}"] if parts else []),
        *_in_short(others),
    ]


def _why(pair: Pair) -> list[str]:
    if pair.problem:
        return [pair.problem]
    return _in_short(pair.blocking)


def _in_short(findings: list[Finding]) -> list[str]:
    """The first findings, a line each; then what to do about them, each once: where nothing helps
    against one, the others' remedies help neither.
    """
    said = in_short(
        findings, _SHOWN, recorded="on the source", local="on the destination", helps=False
    )
    decide = [finding for finding in findings if finding.is_hopeless] or findings[:_SHOWN]
    remedies = dict.fromkeys(texts(finding)["remedy"] for finding in decide)
    return [*said, *(f"Remedy: {remedy}" for remedy in remedies if remedy)]


def _first(pair: Pair) -> Finding:
    """The first reason; where nothing helps against one, that."""
    return next((finding for finding in pair.blocking if finding.is_hopeless), pair.blocking[0])


def _in_common(pairs: list[Pair]) -> str:
    """The first reason of each of these pairs, without its values."""
    if pairs[0].problem:
        return pairs[0].problem
    said = [texts(_first(pair)) for pair in pairs]
    subjects = sorted({each["subject"] for each in said})
    remedy = f"; remedy: {said[0]['remedy']}" if said[0]["remedy"] else ""
    return f"{', '.join(subjects)}: {said[0]['rule']}{remedy}"


def _by(pairs: Iterable[Pair], key: Callable[[Pair], Hashable]) -> list[list[Pair]]:
    """Pairs of one key together, in the order in which the keys come."""
    alike: dict[Hashable, list[Pair]] = {}
    for pair in pairs:
        alike.setdefault(key(pair), []).append(pair)
    return list(alike.values())


def _heading(comparison: Comparison, pairs: list[Pair], answer: str = "no") -> list[str]:
    """Which pairs; of a single one, with names."""
    if len(pairs) > 1:
        return [f"{edges}: {answer}" for edges in _edges(pairs)]
    ends = (
        f"{place + 1} {shown(comparison.kinds[place].names[0])}"
        for place in (pairs[0].source, pairs[0].destination)
    )
    return [f"{' -> '.join(ends)}: {answer}"]


def _edges(pairs: list[Pair]) -> list[str]:
    """Pairs as "1, 4 -> 3"."""
    edges = merge((pair.source, pair.destination) for pair in pairs)
    return [
        f"{numbers_of(sources)} -> {numbers_of(destinations)}" for sources, destinations in edges
    ]


# -- graph ---------------------------------------------------------------------------------------


def as_dot(comparison: Comparison) -> str:
    """A node a kind, a box a group, an arrow for what goes between groups; from and to a box if it
    goes for all of the group.
    """
    descriptions = describe(list(comparison.kinds))
    texts = [
        "digraph kvmarm {",
        "  rankdir=LR; compound=true; ranksep=1;",
        (
            '  graph [fontname="sans-serif", fontsize=12, style="rounded,filled", color="#a0a0a0",'
            ' fillcolor="#f2f4f7"];'
        ),
        (
            '  node [fontname="sans-serif", fontsize=11, shape=box, style="rounded,filled",'
            ' color="#5b7083", fillcolor=white];'
        ),
        '  edge [color="#2f6f9f"];',
    ]
    for index, group in reversed(list(enumerate(comparison.groups))):  # dot starts at the bottom
        about = "no guests" if group.problem else f"guests on {group.machine or 'no machine type'}"
        label = f"Group {group.name}: {_count(comparison.hosts(group), 'host')}, {about}"
        nodes = (
            f"    {place + 1} [label={_quoted(*_node(comparison, place, descriptions[place]))}];"
            for place in reversed(group.kinds)
        )
        texts += [f"  subgraph cluster_{index} {{", f"    label={_quoted(label)};", *nodes, "  }"]
    texts += [f"  {arrow};" for link in comparison.links() for arrow in _arrows(comparison, link)]
    texts += [
        f"  {pair.source + 1} -> {pair.destination + 1} [style=dashed];"
        for pair in comparison.pairs
        if pair.answer is None and pair.source != pair.destination
    ]
    return "".join(f"{text}\n" for text in [*texts, "}"])


def _node(comparison: Comparison, place: int, said: Description) -> tuple[str, ...]:
    name = f"{place + 1}: {names_of(comparison.kinds[place])}"
    return name, ", ".join(said.hardware), ", ".join((*said.software, *said.more))


def _arrows(comparison: Comparison, link: Link) -> list[str]:
    """One arrow from box to box, or one from each kind to each."""
    boxes = {group.kinds: f"cluster_{index}" for index, group in enumerate(comparison.groups)}
    attributes = ["dir=both"] if link.mutual else []
    sources, destinations = link.sources, link.destinations
    if sources in boxes:
        attributes.append(f"ltail={boxes[sources]}")
        sources = sources[:1]
    if destinations in boxes:
        attributes.append(f"lhead={boxes[destinations]}")
        destinations = destinations[:1]
    style = f" [{', '.join(attributes)}]" if attributes else ""
    return [
        f"{source + 1} -> {destination + 1}{style}"
        for source in sources
        for destination in destinations
    ]


def _quoted(*texts: str) -> str:
    """A string of Graphviz's language with a line for each of these: nothing in it is an escape or
    an entity of dot's.
    """
    escaped = (
        shown(text, _LABEL).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
        for text in texts
    )
    return '"' + "\\n".join(escaped) + '"'
