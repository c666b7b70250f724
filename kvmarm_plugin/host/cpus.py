# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's CPU clusters: which CPUs share MIDR_EL1 and REVIDR_EL1, what they are called, how fast
they are.

Read from sysfs (regs/identification, since Linux 4.8; cpu_capacity) and, where that is missing,
from /proc/cpuinfo. The hook reads them, too, so this needs little.
"""

from __future__ import annotations

import os

from ..basics import cpulist
from ..basics.untrusted import decimal, hexadecimal
from ..basics.value import Value

_PARTS = os.path.join(os.path.dirname(__file__), "parts.yaml")
_CPUINFO_FIELDS = {
    "CPU implementer": 8,
    "CPU variant": 4,
    "CPU part": 12,
    "CPU revision": 4,
}  # and their bits in MIDR_EL1
_LONGEST = 16 << 20  # bytes of a file; /proc/cpuinfo has some 400 a CPU


class CpuCluster(Value):
    """CPUs of one kind.

    Attributes:
        cpus: their numbers, ascending.
        midr, revidr: of each of them; revidr is None where sysfs has none.
        capacity: of the fastest of them, 1024 for the fastest CPU of the host; None where the
            kernel gives none.
    """

    cpus: tuple[int, ...]
    midr: int
    revidr: int | None
    capacity: int | None


def find_clusters(root: str | os.PathLike[str] = "/") -> list[CpuCluster]:
    """The clusters of the online CPUs, in the order of their first CPU.

    Args:
        root: where sys/ and proc/ are.

    CPUs whose MIDR neither sysfs nor /proc/cpuinfo tells are left out.
    """
    system = os.path.join(root, "sys/devices/system/cpu")
    from_cpuinfo: dict[int, int] | None = None
    members: dict[tuple[int, int | None], list[int]] = {}
    for cpu in _online(system):
        registers = f"{system}/cpu{cpu}/regs/identification"
        midr, revidr = (_register(f"{registers}/{name}") for name in ("midr_el1", "revidr_el1"))
        if midr is None:
            if from_cpuinfo is None:
                from_cpuinfo = _midrs_from_cpuinfo(_text(os.path.join(root, "proc/cpuinfo")))
            midr = from_cpuinfo.get(cpu)
        if midr is not None:
            members.setdefault((midr, revidr), []).append(cpu)
    return [
        CpuCluster(tuple(cpus), midr, revidr, _capacity(system, cpus))
        for (midr, revidr), cpus in members.items()
    ]


def name_part(midr: int) -> tuple[str, str]:
    """Implementer and part of a MIDR, such as ("ARM", "Neoverse-N1"); empty strings for those
    parts.yaml does not know.
    """
    import yaml  # not in the standard library, and not needed for the rest

    # The C loader where libyaml is there: the same result, eight times as fast.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with open(_PARTS, encoding="utf-8") as file:
        known = yaml.load(file, Loader=loader).get(midr >> 24 & 0xFF)
    return (known["name"], known["parts"].get(midr >> 4 & 0xFFF, "")) if known else ("", "")


def _online(system: str) -> tuple[int, ...]:
    try:
        return cpulist.parse(_text(f"{system}/online"))
    except ValueError:
        return ()


def _capacity(system: str, cpus: list[int]) -> int | None:
    capacities = [_scale(f"{system}/cpu{cpu}/cpu_capacity") for cpu in cpus]
    return max((capacity for capacity in capacities if capacity), default=None)


def _midrs_from_cpuinfo(text: str) -> dict[int, int]:
    """CPU number → MIDR put together from the "CPU implementer", "variant", "part" and "revision"
    lines.

    Kernels of old (arm64 before 3.19, arm before 3.8) list all processors first and describe them
    once, behind.
    """
    midrs: dict[int, int] = {}
    processors: list[int] = []
    fields: dict[str, int | None] = {}
    for line in text.splitlines():
        key, value = (part.strip() for part in line.partition(":")[::2])
        if key == "processor":
            if fields:
                processors, fields = [], {}
            number = _number(value, 32)
            processors += [] if number is None else [number]
        elif key in _CPUINFO_FIELDS:
            fields[key] = _number(value, _CPUINFO_FIELDS[key])
        if len(fields) == len(_CPUINFO_FIELDS):
            implementer, variant, part, revision = (fields[key] for key in _CPUINFO_FIELDS)
            if (
                implementer is not None
                and variant is not None
                and part is not None
                and revision is not None
            ):
                midr = implementer << 24 | variant << 20 | 0xF << 16 | part << 4 | revision
                midrs.update(dict.fromkeys(processors, midr))
    return midrs


def _number(text: str, bits: int) -> int | None:
    """A number of /proc/cpuinfo, where some are hexadecimal; None for what is none, or a wider
    one.
    """
    try:
        return hexadecimal(text, bits) if text[:2] == "0x" else decimal(text, (1 << bits) - 1)
    except ValueError:
        return None


def _register(path: str) -> int | None:
    try:
        return hexadecimal(_text(path).strip())
    except ValueError:
        return None


def _scale(path: str) -> int | None:
    """A cpu_capacity: SCHED_CAPACITY_SCALE, which is 1024, is the most."""
    try:
        return decimal(_text(path).strip(), 1024)
    except ValueError:
        return None


def _text(path: str) -> str:
    """A file's text; empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_LONGEST)
    except OSError:
        return ""


def allowed_cpus() -> tuple[int, ...]:
    """The CPUs that this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))
