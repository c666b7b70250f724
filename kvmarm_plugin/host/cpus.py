# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's CPU clusters: which CPUs share MIDR_EL1 and REVIDR_EL1, what they are called, how fast
they are.

Read from sysfs (regs/identification, since Linux 4.8; cpu_capacity) and, where that is missing,
from /proc/cpuinfo. The hook reads the clusters while libvirt holds a lock: that is two files for
each CPU, read without Python's text layer.
"""

from __future__ import annotations

import os

from ..basics import cpulist
from ..basics.untrusted import decimal, hexadecimal
from ..basics.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PARTS = os.path.join(os.path.dirname(__file__), "parts.yaml")
_CPUINFO_FIELDS = {
    "CPU implementer": 8,
    "CPU variant": 4,
    "CPU part": 12,
    "CPU revision": 4,
}  # and their bits in MIDR_EL1
_SYSTEM = "sys/devices/system/cpu"
_LONGEST = 16 << 20  # bytes of a file; /proc/cpuinfo has some 400 a CPU
_NUMBER = 64  # bytes of a file with one number; the longest has 19


class CpuCluster(Value):
    """CPUs of one kind.

    Attributes:
        cpus: their numbers, ascending.
        midr, revidr: of each of them; revidr is None where sysfs has none. Of CPUs without a midr
            nobody tells what they are: they may be of several kinds.
    """

    cpus: tuple[int, ...]
    midr: int | None
    revidr: int | None


def find_clusters(root: str | os.PathLike[str] = "/") -> list[CpuCluster]:
    """The clusters of the online CPUs, in the order of their first CPU.

    Args:
        root: where sys/ and proc/ are.
    """
    system = os.path.join(root, _SYSTEM)
    cpus: Sequence[int] = _online(system)
    described: dict[int, int | None] | None = None
    if not cpus:
        described = _describe(_text(os.path.join(root, "proc/cpuinfo")), cpus)
        cpus = sorted(described)
    texts: dict[tuple[bytes, bytes], list[int]] = {}  # most hosts have one pair of them
    for cpu in cpus:
        registers = f"{system}/cpu{cpu}/regs/identification/"
        pair = _number_text(registers + "midr_el1"), _number_text(registers + "revidr_el1")
        texts.setdefault(pair, []).append(cpu)
    members: dict[tuple[int | None, int | None], list[int]] = {}
    for pair, alike in texts.items():
        midr, revidr = map(_register, pair)
        if midr is not None:
            members.setdefault((midr, revidr), []).extend(alike)
            continue
        if described is None:
            described = _describe(_text(os.path.join(root, "proc/cpuinfo")), cpus)
        for cpu in alike:
            midr = described.get(cpu)
            kind = (None, None) if midr is None else (midr, revidr)
            members.setdefault(kind, []).append(cpu)
    clusters = [CpuCluster(tuple(sorted(of)), *kind) for kind, of in members.items()]
    return sorted(clusters, key=lambda cluster: cluster.cpus)


def find_capacity(cpus: Iterable[int], root: str | os.PathLike[str] = "/") -> int | None:
    """The capacity of the fastest of these CPUs, 1024 for the fastest CPU of the host; None where
    the kernel gives none.
    """
    files = (os.path.join(root, _SYSTEM, f"cpu{cpu}", "cpu_capacity") for cpu in cpus)
    return max((capacity for file in files if (capacity := _scale(file))), default=None)


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


def _describe(text: str, online: Sequence[int]) -> dict[int, int | None]:
    """What /proc/cpuinfo says of the CPUs that it lists: number → MIDR put together from the "CPU
    implementer", "variant", "part" and "revision" lines, None where these do not tell.

    Kernels of old (arm64 before 3.19, arm before 3.8) list all CPUs first and describe one behind:
    the one that reads. Those for one CPU do not list it.

    Args:
        online: all that are, as far as sysfs tells.
    """
    found: dict[int, int | None] = {}
    blocks = _blocks(text)
    if len(blocks) == 1 and not blocks[0][0] and len(online) < 2:
        return dict.fromkeys(online or (0,), _midr(blocks[0][1]))
    for processors, fields in blocks:
        midr = _midr(fields) if len(processors) == 1 else None
        for processor in processors:
            if processor is not None:
                found[processor] = midr if found.get(processor, midr) == midr else None
    return found


def _blocks(text: str) -> list[tuple[list[int | None], dict[str, int | None]]]:
    """The CPUs that are listed together, and what is said behind them: None for a number that is
    none, and where it is said in two ways.
    """
    blocks: list[tuple[list[int | None], dict[str, int | None]]] = []
    for line in text.splitlines():
        key, value = (part.strip() for part in line.partition(":")[::2])
        if key != "processor" and key not in _CPUINFO_FIELDS:
            continue
        if not blocks or (key == "processor" and blocks[-1][1]):
            blocks.append(([], {}))
        processors, fields = blocks[-1]
        if key == "processor":
            processors.append(_number(value, 14))  # libvirt knows no more CPUs
        else:
            number = _number(value, _CPUINFO_FIELDS[key])
            fields[key] = number if fields.get(key, number) == number else None
    return blocks


def _midr(fields: dict[str, int | None]) -> int | None:
    implementer, variant, part, revision = (fields.get(key) for key in _CPUINFO_FIELDS)
    if implementer is None or variant is None or part is None or revision is None:
        return None
    return implementer << 24 | variant << 20 | 0xF << 16 | part << 4 | revision


def _number(text: str, bits: int) -> int | None:
    """A number of /proc/cpuinfo, where some are hexadecimal; None for what is none, or a wider
    one.
    """
    try:
        return hexadecimal(text, bits) if text[:2] == "0x" else decimal(text, (1 << bits) - 1)
    except ValueError:
        return None


def _register(text: bytes) -> int | None:
    try:
        return hexadecimal(text.decode(errors="replace").strip())
    except ValueError:
        return None


def _scale(path: str) -> int | None:
    """A cpu_capacity: SCHED_CAPACITY_SCALE, which is 1024, is the most."""
    try:
        return decimal(_number_text(path).decode(errors="replace").strip(), 1024)
    except ValueError:
        return None


def _number_text(path: str) -> bytes:
    """The start of a file with a number; empty where there is none."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(file, _NUMBER)
        finally:
            os.close(file)
    except OSError:
        return b""


def _text(path: str) -> str:
    """A file's text; empty where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_LONGEST)
    except OSError:
        return ""
