# SPDX-License-Identifier: LGPL-2.1-or-later
"""Register values and register lists as text: what profiles and records hold.

Values are ``NAME=0x…`` separated by white space. A register list is packed: ids that share their upper 48 bits are a
group, written as ``6030000000130000:8000-800e/2,c000,c005``: lower 16 bits in hexadecimal, ``first-last/step``, step 1
left out. Some 350 ids take about 700 bytes.
"""

from __future__ import annotations

from .table import id_of

# Far more registers than a vCPU has. A record is untrusted: without a limit ten MiB of ranges would keep the hook busy for an hour.
_MOST_IDS = 10000

# Hosts of one kernel have the same few lists, which are asked for again and again. (functools would cost the hook 3 ms.)
_unpacked: dict[str, frozenset[int]] = {}
_MOST_UNPACKED = 128

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def format_values(values: Mapping[str, int]) -> str:
    """Register values as text, in the order of their ids."""
    return " ".join(f"{name}={values[name]:#x}" for name in sorted(values, key=id_of))


def parse_values(text: str) -> dict[str, int]:
    """The inverse of `format_values`. Raises ValueError."""
    values = {}
    for item in text.split():
        name, equals, value = item.partition("=")
        if not equals or value.startswith("-") or name in values:
            raise ValueError(f"not NAME=VALUE, or named twice: {item[:60]!r}")
        values[name] = int(value, 16)
    return values


def pack_ids(ids: Iterable[int]) -> str:
    """A register list as text; equal sets give equal text."""
    groups: dict[int, list[int]] = {}
    for reg in sorted(set(ids)):
        groups.setdefault(reg >> 16, []).append(reg & 0xFFFF)
    return " ".join(f"{group << 16:x}:{','.join(_runs(lows))}" for group, lows in groups.items())


def unpack_ids(text: str) -> frozenset[int]:
    """The inverse of `pack_ids`. Raises ValueError."""
    ids = _unpacked.get(text)
    if ids is None:
        if len(_unpacked) == _MOST_UNPACKED:
            _unpacked.clear()
        ids = _unpacked[text] = _unpack(text)
    return ids


def _unpack(text: str) -> frozenset[int]:
    ids: set[int] = set()
    room = _MOST_IDS
    for part in text.split():
        group, colon, runs = part.partition(":")
        if not colon:
            raise ValueError(f"not GROUP:IDS: {part[:60]!r}")
        base = int(group, 16)
        for run in runs.split(","):
            span, _, step = run.partition("/")
            first, _, last = span.partition("-")
            low, high = int(first, 16), int(last or first, 16)
            if not low <= high <= 0xFFFF:
                raise ValueError(f"not a range of ids: {run[:60]!r}")
            run_of_ids = range(base + low, base + high + 1, int(step or "1", 16))
            room -= len(run_of_ids)
            if room < 0:
                raise ValueError(f"more than {_MOST_IDS} ids")
            ids.update(run_of_ids)
    return frozenset(ids)


def _runs(lows: list[int]) -> list[str]:
    """Ascending numbers as runs of one step; a run shorter than three is not worth a step."""
    runs, index = [], 0
    while index < len(lows):
        step = lows[index + 1] - lows[index] if index + 1 < len(lows) else 1
        end = index + 1
        while end < len(lows) and lows[end] - lows[end - 1] == step:
            end += 1
        if end - index < 3 and step != 1:
            end = index + 1
        first, last = lows[index], lows[end - 1]
        runs.append(f"{first:x}" if first == last else f"{first:x}-{last:x}" + (f"/{step:x}" if step != 1 else ""))
        index = end
    return runs
