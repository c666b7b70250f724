# SPDX-License-Identifier: LGPL-2.1-or-later
"""What doctor has found, for people and as JSON."""

from __future__ import annotations

import json
from collections import Counter

from ..basics.untrusted import lines
from ..diagnosis.host import BAD, OK, UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..diagnosis.host import Line

_STATES = (OK, BAD, UNKNOWN)


def as_text(found: list[tuple[str, Line]]) -> str:
    """A line for each thing; below it what to do, if it is not ok."""
    widths = max(map(len, _STATES)), max((len(name) for name, _ in found), default=0)
    said = []
    for name, line in found:
        said.append(f"{line.state.ljust(widths[0])}  {name.ljust(widths[1])}  {line.text}")
        if line.remedy:
            said.append(f"{' ' * (sum(widths) + 4)}Remedy: {line.remedy}")
    counts = Counter(line.state for _, line in found)
    said.append(", ".join(f"{counts[state]} {state}" for state in _STATES if counts[state]))
    return lines(said)


def as_json(found: list[tuple[str, Line]]) -> str:
    """The same for tools."""
    document = {
        "ok": all(line.state == OK for _, line in found),
        "checks": [{"check": name, **line.as_dict()} for name, line in found],
    }
    return json.dumps(document, indent=1) + "\n"
