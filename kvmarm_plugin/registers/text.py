# SPDX-License-Identifier: LGPL-2.1-or-later
"""Register values and register lists as text: what profiles and records hold.

Values are ``NAME=0x…`` separated by white space. A register list is packed: ids that share their
upper 48 bits are a group, written as ``6030000000130000:8000-800e/2,c000,c005``: lower 16 bits in
hexadecimal, ``first-last/step``, step 1 left out. Some 350 ids take about 700 bytes.

Both are read as strictly as they are written, and neither long text nor few bytes of it keep the
reader busy.
"""

from __future__ import annotations

from ..basics.untrusted import hexadecimal, shown
from .table import bits_of, id_of, name_of

# Far more registers than a vCPU has. A record is untrusted: without a limit ten MiB of ranges would
# keep the hook busy for an hour.
_MOST_IDS = 10000
_LONGEST = 1 << 16  # characters of a list; the longest of real hosts have 3000

# Hosts of one kernel have the same few lists, which are asked for again and again. (Not functools:
# hook/__init__.py.)
_unpacked: dict[str, frozenset[int]] = {}
_MOST_UNPACKED = 128

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def format_values(values: Mapping[str, int]) -> str:
    """Register values as text, in the order of their ids."""
    return " ".join(f"{name}={values[name]:#x}" for name in sorted(values, key=id_of))


def parse_values(text: str) -> dict[str, int]:
    """The inverse of `format_values`; generic spellings become the names that the registers have by
    now.

    Raises:
        ValueError: not such a list, a register that is unknown or there twice, or a value that is
            wider than its register.
    """
    values = {}
    for item in words(text):
        name, _, value = item.partition("=")
        reg = id_of(name)
        name = name_of(reg)
        if name in values:
            raise ValueError(f"{name} is there twice")
        values[name] = parse_value(value, bits_of(reg))
    return values


def parse_value(text: str, bits: int = 64) -> int:
    """A number of at most so many bits, written ``0x1f`` and in no other way. Raises ValueError."""
    return _written(text, bits, "#x")


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


def words(text: str) -> list[str]:
    """The words of a list.

    Raises:
        ValueError: it is longer than any that kvmarm writes, or not ASCII: Python would take other
            scripts' spaces for white space.
    """
    if len(text) > _LONGEST or not text.isascii():
        raise ValueError(f"not a list of at most {_LONGEST} ASCII characters: {shown(text, 60)!r}")
    return text.split()


def _unpack(text: str) -> frozenset[int]:
    ids: set[int] = set()
    room, highest = _MOST_IDS, -1
    for part in words(text):
        group, _, runs = part.partition(":")
        base = _written(group, 64, "x")
        if base & 0xFFFF:
            raise ValueError(f"not a group of ids: {group!r}")
        for run in runs.split(","):
            run_of_ids = _unpack_run(base, run)
            room -= len(run_of_ids)
            if room < 0:
                raise ValueError(f"more than {_MOST_IDS} ids")
            if run_of_ids[0] <= highest:
                raise ValueError(f"ids twice, or not ascending: {shown(run, 60)!r}")
            highest = run_of_ids[-1]
            ids.update(run_of_ids)
    return frozenset(ids)


def _unpack_run(base: int, run: str) -> range:
    """The ids of one run, at least one."""
    span, slash, step_text = run.partition("/")
    first, dash, last = span.partition("-")
    low = _written(first, 16, "x")
    high = _written(last, 16, "x") if dash else low
    step = _written(step_text, 16, "x") if slash else 1
    if (dash and not low < high) or (slash and not dash):
        raise ValueError(f"not a range of ids: {shown(run, 60)!r}")
    if not step or (high - low) % step:
        raise ValueError(f"not the step between ids: {shown(run, 60)!r}")
    return range(base + low, base + high + 1, step)


def _written(text: str, bits: int, form: str) -> int:
    """A hexadecimal number in the one form that is ever written."""
    number = hexadecimal(text, bits)
    if format(number, form) != text:
        raise ValueError(f"not a hexadecimal number as kvmarm writes it: {shown(text, 60)!r}")
    return number


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
        runs.append(
            f"{first:x}"
            if first == last
            else f"{first:x}-{last:x}" + (f"/{step:x}" if step != 1 else "")
        )
        index = end
    return runs
