# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lists of host CPUs as text: the kernel's "0-3,6", and libvirt's, which may also take some out
again: "0-7,^2", and end in a comma (virBitmapParseInternal).

`mask` reads one as a number with a bit for each CPU: as quick for all CPUs as for one, to read and
to compare.
"""

from __future__ import annotations

from .untrusted import libvirt_number, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST = 16383  # the largest number: VIR_DOMAIN_CPUMASK_LEN of libvirt is one more
_LENGTH = 1 << 17  # characters: room for any list of as many


def mask(text: str) -> int:
    """The CPUs of a list, as bits; 0 for an empty text.

    Raises:
        ValueError: not such a list, or one of larger numbers than libvirt takes.
    """
    cpus = 0
    if not text.strip():
        return cpus
    try:
        if len(text) > _LENGTH:
            raise ValueError
        *items, end = text.split(",")
        for item in items if items and not end.strip() else (*items, end):
            is_out, numbers = item.strip()[:1] == "^", item.strip().removeprefix("^")
            first, dash, last = numbers.partition("-")
            if not first[:1].isdigit() or (is_out and dash):
                raise ValueError
            low = libvirt_number(first, _MOST)
            high = libvirt_number(last, _MOST) if dash else low
            if low > high:
                raise ValueError
            span = (2 << high) - (1 << low)
            cpus = cpus & ~span if is_out else cpus | span
    except ValueError:
        raise ValueError(f"not a list of CPUs: {shown(text, 60)!r}") from None
    return cpus


def parse(text: str) -> tuple[int, ...]:
    """CPU numbers, ascending; none for an empty text. Raises ValueError, as `mask` does."""
    return numbers(mask(text))


def numbers(mask: int) -> tuple[int, ...]:
    """The CPUs that are bits of a number, ascending."""
    return tuple(number for number, bit in enumerate(f"{mask:b}"[::-1]) if bit == "1")


def bits(cpus: Iterable[int]) -> int:
    """The inverse of `numbers`."""
    mask = 0
    for cpu in cpus:
        mask |= 1 << cpu
    return mask


def write(cpus: tuple[int, ...]) -> str:
    """The inverse of `parse`, for ascending numbers."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and runs[-1][-1] == cpu - 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
