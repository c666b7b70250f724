# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lists of host CPUs as text: the kernel's "0-3,6", and libvirt's, which may also take some out again: "0-7,^2"."""

from __future__ import annotations

# libvirt's own limit (VIR_DOMAIN_CPUMASK_LEN), and room for any list of as many.
_NUMBERS = 16384
_LENGTH = 1 << 17


def parse(text: str) -> tuple[int, ...]:
    """CPU numbers, ascending; none for an empty text.

    Raises:
        ValueError: not such a list, or one of larger numbers than libvirt takes.
    """
    mask = 0
    items = text.replace(" ", "").strip().split(",") if text.strip() else []
    for item in items if len(text) <= _LENGTH else ["too long"]:
        first, dash, last = item.lstrip("^").partition("-")
        last = last if dash else first
        if not (item.isascii() and first.isdigit() and last.isdigit() and len(last) <= 5 and int(first) <= int(last) < _NUMBERS):
            raise ValueError(f"not a list of CPUs: {text[:60]!r}")
        span = (2 << int(last)) - (1 << int(first))
        mask = mask & ~span if item.startswith("^") else mask | span
    return tuple(number for number in range(mask.bit_length()) if mask >> number & 1)


def write(cpus: tuple[int, ...]) -> str:
    """The inverse of `parse`, for ascending numbers."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and runs[-1][-1] == cpu - 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
