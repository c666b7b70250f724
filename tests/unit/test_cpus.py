# SPDX-License-Identifier: LGPL-2.1-or-later
"""host/cpus.py: CPU clusters from made-up sysfs trees and from what /proc/cpuinfo of real boards
says.

What is not told is unknown, and neither file stops the reader, whatever is in it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmarm_plugin.host import cpus
from kvmarm_plugin.host.cpus import CpuCluster, find_capacity, find_clusters, name_part

from .fakehost import write, write_cpu, write_online

_A53, _A72, _A57 = 0x410FD034, 0x410FD083, 0x411FD070

# -- sysfs ---------------------------------------------------------------------------------------


def test_a_host_of_one_kind(tmp_path: Path) -> None:
    for cpu in range(4):
        write_cpu(tmp_path, cpu, _A57, 0, 1024)
    write_online(tmp_path, "0-3")
    assert find_clusters(tmp_path) == [CpuCluster((0, 1, 2, 3), _A57, 0)]


def test_big_little(tmp_path: Path) -> None:
    for cpu in range(4):
        write_cpu(tmp_path, cpu, _A53, 0, 485)
    for cpu in (4, 5):
        write_cpu(tmp_path, cpu, _A72, 0, 1024)
    write_online(tmp_path, "0-5")
    assert find_clusters(tmp_path) == [
        CpuCluster((0, 1, 2, 3), _A53, 0),
        CpuCluster((4, 5), _A72, 0),
    ]


def test_clusters_may_interleave_and_capacities_differ(tmp_path: Path) -> None:
    for cpu in range(6):
        write_cpu(tmp_path, cpu, _A72 if cpu % 2 else _A53, 0, 500 + cpu)
    write_online(tmp_path, "0-5")
    assert find_clusters(tmp_path) == [
        CpuCluster((0, 2, 4), _A53, 0),
        CpuCluster((1, 3, 5), _A72, 0),
    ]
    assert [find_capacity(of, tmp_path) for of in ((0, 2, 4), (1, 3, 5))] == [504, 505]


def test_revidr_makes_a_cluster(tmp_path: Path) -> None:
    write_cpu(tmp_path, 0, _A57, 0)
    write_cpu(tmp_path, 1, _A57, 0x180)
    write_online(tmp_path, "0-1")
    assert [(cluster.cpus, cluster.revidr) for cluster in find_clusters(tmp_path)] == [
        ((0,), 0),
        ((1,), 0x180),
    ]


def test_a_cpu_that_is_offline_is_not_there(tmp_path: Path) -> None:
    for cpu in range(4):
        write_cpu(tmp_path, cpu, _A57)
    write_online(tmp_path, "0,3")
    assert [cluster.cpus for cluster in find_clusters(tmp_path)] == [(0, 3)]


# -- /proc/cpuinfo -------------------------------------------------------------------------------

_CPUINFO_64 = """\
processor\t: 0
BogoMIPS\t: 48.00
Features\t: fp asimd evtstrm
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd03
CPU revision\t: 4

processor\t: 1
BogoMIPS\t: 48.00
Features\t: fp asimd evtstrm
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""

_CPUINFO_32 = """\
processor\t: 0
model name\t: ARMv7 Processor rev 4 (v7l)
BogoMIPS\t: 38.40
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae
CPU implementer\t: 0x41
CPU architecture: 7
CPU variant\t: 0x2
CPU part\t: 0xc0f
CPU revision\t: 4

processor\t: 1
model name\t: ARMv7 Processor rev 4 (v7l)
CPU implementer\t: 0x41
CPU architecture: 7
CPU variant\t: 0x2
CPU part\t: 0xc0f
CPU revision\t: 4

Hardware\t: ARM-Versatile Express
Revision\t: 0000
Serial\t\t: 0000000000000000
"""

# An arm64 kernel before 3.19, or an arm one before 3.8: the CPU is described once, behind the list.
_CPUINFO_OLD = """\
Processor\t: AArch64 Processor rev 0 (aarch64)
processor\t: 0
processor\t: 1
Features\t: fp asimd
CPU implementer\t: 0x41
CPU architecture: AArch64
CPU variant\t: 0x1
CPU part\t: 0xd07
CPU revision\t: 0

Hardware\t: FVP Base
"""


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (_CPUINFO_64, [((0,), _A53), ((1,), 0x410FD083)]),
        (_CPUINFO_32, [((0, 1), 0x412FC0F4)]),
        (_CPUINFO_OLD, [((0, 1), None)]),
        (_CPUINFO_64.partition("processor\t: 1")[0], [((0,), _A53), ((1,), None)]),
        (_CPUINFO_64.replace(": 0xd08", ": 0xd08 & 0xd09"), [((0,), _A53), ((1,), None)]),
        (_CPUINFO_64.replace("processor\t: 1", "processor\t: 0"), [((0, 1), None)]),
        (_CPUINFO_64.replace("processor\t: 1", "processor\t: one"), [((0,), _A53), ((1,), None)]),
        (_CPUINFO_64 + _CPUINFO_64, [((0,), _A53), ((1,), 0x410FD083)]),
        (_CPUINFO_64 + "CPU revision\t: 5\n", [((0,), _A53), ((1,), None)]),
        ("CPU revision\t: 7\n" + _CPUINFO_64, [((0,), _A53), ((1,), 0x410FD083)]),
        ("", [((0, 1), None)]),
        ("processor : x\nCPU part : 0xd03\n", [((0, 1), None)]),
    ],
    ids=[
        "arm64",
        "arm",
        "before 3.19",
        "one without an entry",
        "two parts of one CPU",
        "one CPU twice, of two kinds",
        "no number",
        "all twice",
        "two revisions of one CPU",
        "something before the first",
        "empty",
        "nothing known",
    ],
)
def test_without_sysfs_proc_cpuinfo_tells(
    tmp_path: Path, cpuinfo: str, expected: list[tuple[tuple[int, ...], int | None]]
) -> None:
    write(tmp_path / "proc/cpuinfo", cpuinfo)
    write_online(tmp_path, "0-1")
    found = find_clusters(tmp_path)
    assert [(cluster.cpus, cluster.midr) for cluster in found] == expected
    assert all(cluster.revidr is None for cluster in found)
    assert find_capacity((0, 1), tmp_path) is None


_ONE = _CPUINFO_OLD.replace("processor\t: 0\nprocessor\t: 1\n", "")


@pytest.mark.parametrize(
    ("online", "cpuinfo", "expected"),
    [
        ("0", _ONE, [((0,), _A57)]),
        ("2", _ONE, [((2,), _A57)]),
        ("", _ONE, [((0,), _A57)]),
        ("0-7", _ONE, [((0, 1, 2, 3, 4, 5, 6, 7), None)]),
        ("", _CPUINFO_64, [((0,), _A53), ((1,), _A72)]),
        ("", _CPUINFO_OLD, [((0, 1), None)]),
        ("", "processor : 99999999\n" + _ONE, []),
        ("what?", _CPUINFO_32, [((0, 1), 0x412FC0F4)]),
    ],
)
def test_a_kernel_for_one_cpu_lists_none(
    tmp_path: Path, online: str, cpuinfo: str, expected: list[tuple[tuple[int, ...], int | None]]
) -> None:
    write(tmp_path / "proc/cpuinfo", cpuinfo)
    write_online(tmp_path, online)
    assert [(found.cpus, found.midr) for found in find_clusters(tmp_path)] == expected


def test_sysfs_comes_before_proc_cpuinfo(tmp_path: Path) -> None:
    write(tmp_path / "proc/cpuinfo", _CPUINFO_64)
    write_cpu(tmp_path, 0, _A57)
    write_online(tmp_path, "0-1")
    assert [(cluster.cpus, cluster.midr) for cluster in find_clusters(tmp_path)] == [
        ((0,), _A57),
        ((1,), _A72),
    ]


def test_a_number_that_is_none_is_unknown(tmp_path: Path) -> None:
    write_cpu(tmp_path, 0, _A57)
    write_cpu(tmp_path, 1, None)
    write(tmp_path / "sys/devices/system/cpu/cpu1/regs/identification/midr_el1", "what?\n")
    write(tmp_path / "sys/devices/system/cpu/cpu0/cpu_capacity", "")
    write_online(tmp_path, "0-1")
    assert find_clusters(tmp_path) == [CpuCluster((0,), _A57, 0), CpuCluster((1,), None, None)]
    assert find_capacity((0, 1), tmp_path) is None


def test_a_host_without_anything(tmp_path: Path) -> None:
    assert find_clusters(tmp_path) == []
    assert find_capacity((), tmp_path) is None


def test_numbers_of_cpuinfo_have_a_width(tmp_path: Path) -> None:
    write_online(tmp_path, "0")
    write(
        tmp_path / "proc/cpuinfo",
        _CPUINFO_64.replace("0xd03", "0x1d03").replace("0xd08", "0xfffff"),
    )
    assert find_clusters(tmp_path) == [CpuCluster((0,), None, None)]
    write(tmp_path / "proc/cpuinfo", _CPUINFO_64.replace("CPU revision\t: 4", "CPU revision\t: 08"))
    assert [cluster.midr for cluster in find_clusters(tmp_path)] == [0x410FD038]


# -- what real boards say ------------------------------------------------------------------------
# Values only, read from the dumps of pytorch/cpuinfo (test/cpuinfo), util-linux
# (tests/ts/lscpu/dumps) and hwloc (tests/hwloc/linux).


def _block(cpus: range | tuple[int, ...], part: str, variant: str, revision: str) -> str:
    """The CPUs of a block, and what is said of them."""
    return (
        "".join(f"processor\t: {cpu}\nBogoMIPS\t: 38.40\n\n" for cpu in cpus)
        + "Features\t: fp asimd\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        + f"CPU variant\t: {variant}\nCPU part\t: {part}\nCPU revision\t: {revision}\n\n"
    )


def _each(cpus: range | tuple[int, ...], part: str, variant: str, revision: str) -> str:
    return "".join(_block((cpu,), part, variant, revision) for cpu in cpus)


_EIGHT = tuple(range(8))


@pytest.mark.parametrize(
    ("online", "cpuinfo", "expected"),
    [
        pytest.param(
            "0-7",
            _block(range(8), "0xd03", "0x0", "2") + "Hardware\t: SAMSUNG Exynos7420\n",
            [(_EIGHT, None)],  # in truth four Cortex-A53 and four Cortex-A57
            id="cpuinfo galaxy-s6",
        ),
        pytest.param(
            "0-7",
            _block(range(8), "0xc07 & 0xc0f", "0x0 & 0x3", "5 & 3") + "Hardware\t: Kirin920\n",
            [(_EIGHT, None)],
            id="cpuinfo huawei-honor-6",
        ),
        pytest.param(
            "0",
            "Processor\t: ARMv7 Processor rev 2 (v7l)\n" + _block((), "0xc08", "0x2", "2"),
            [((0,), 0x412FC082)],
            id="cpuinfo nexus-s",
        ),
        pytest.param(
            "0",
            "Processor : ARMv6-compatible processor rev 7 (v6l)\n"
            + _block((), "0xb76", "0x0", "7").replace("\t:", " :"),
            [((0,), 0x410FB767)],
            id="cpuinfo raspberrypi",
        ),
        pytest.param(
            "0",
            "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 7\nCPU variant\t: 0x0\n",
            [((0,), None)],
            id="cpuinfo atm7029b-tablet",
        ),
        pytest.param(
            "0-1", _block(range(2), "0xc0f", "0x0", "4"), [((0, 1), None)], id="util-linux armv7"
        ),
        pytest.param(
            "0-7",
            _each(range(3), "0xd46", "0x1", "1")
            + _each((3, 4), "0xd4d", "0x1", "0")
            + _each((5, 6), "0xd47", "0x2", "0")
            + _each((7,), "0xd4e", "0x1", "0"),
            [
                ((0, 1, 2), 0x411FD461),
                ((3, 4), 0x411FD4D0),
                ((5, 6), 0x412FD470),
                ((7,), 0x411FD4E0),
            ],
            id="util-linux arm-A510-A710-A715-X3",
        ),
        pytest.param(
            "0-1", _block(range(2), "0xc09", "0x2", "1"), [((0, 1), None)], id="hwloc 2arm-2c"
        ),
    ],
)
def test_boards(
    tmp_path: Path, online: str, cpuinfo: str, expected: list[tuple[tuple[int, ...], int | None]]
) -> None:
    write_online(tmp_path, online)
    write(tmp_path / "proc/cpuinfo", cpuinfo)
    assert [(found.cpus, found.midr) for found in find_clusters(tmp_path)] == expected


def test_dgx_gb10(tmp_path: Path) -> None:
    """hwloc nvidia-dgx-gb10: two kinds in four runs, and CPUs of one kind differ in capacity."""
    small, big = (*range(5), *range(10, 15)), (*range(5, 10), *range(15, 20))
    capacities = [718] * 5 + [997] * 5 + [731] * 5 + [1017] * 4 + [1024]
    for cpu, capacity in enumerate(capacities):
        midr, revidr = (0x410FD871, 1) if cpu in small else (0x410FD851, 0)
        write_cpu(tmp_path, cpu, midr, revidr, capacity)
    write_online(tmp_path, "0-19")
    found = [CpuCluster(small, 0x410FD871, 1), CpuCluster(big, 0x410FD851, 0)]
    assert find_clusters(tmp_path) == found
    assert [find_capacity(kind.cpus, tmp_path) for kind in found] == [731, 1024]
    assert [name_part(kind.midr or 0)[1] for kind in found] == ["Cortex-A725", "Cortex-X925"]


# -- whatever the files hold ---------------------------------------------------------------------

_VALUES = st.one_of(
    st.sampled_from(
        ("", "0", "1", "7", "0x0", "0x41", "0xd03", "0xD03", "0x0 & 0x3", "4 & 3", "AArch64", "-1")
    ),
    st.text(max_size=12),
    st.integers(0, 1 << 70).map(hex),
)
_KEYS = st.sampled_from(
    ("processor", "Processor", *cpus._CPUINFO_FIELDS, "CPU architecture", "Hardware", "")
)
_LINES = st.lists(st.tuples(_KEYS, st.sampled_from((":", "\t: ", " ", "::")), _VALUES), max_size=30)
_FILE = st.one_of(st.binary(max_size=40), st.sampled_from((b"0x00000000410fd034\n", b"0x1\n")))


@given(
    _LINES,
    st.one_of(st.sampled_from(("0", "0-3", "0-1,3", "", "3-1")), st.text(max_size=8)),
    st.lists(st.tuples(_FILE, _FILE, _FILE), max_size=4),
)
def test_whatever_the_files_hold(
    lines: list[tuple[str, str, str]], online: str, registers: list[tuple[bytes, bytes, bytes]]
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        root = Path(directory)
        text = "\n".join(map("".join, lines))
        (root / "proc").mkdir()
        (root / "proc/cpuinfo").write_bytes(text.encode(errors="surrogatepass"))
        for cpu, (midr, revidr, capacity) in enumerate(registers):
            system = root / f"sys/devices/system/cpu/cpu{cpu}"
            (system / "regs/identification").mkdir(parents=True)
            (system / "regs/identification/midr_el1").write_bytes(midr)
            (system / "regs/identification/revidr_el1").write_bytes(revidr)
            (system / "cpu_capacity").write_bytes(capacity)
        (root / "sys/devices/system/cpu").mkdir(parents=True, exist_ok=True)
        (root / "sys/devices/system/cpu/online").write_bytes(online.encode(errors="surrogatepass"))
        found = find_clusters(root)
        numbers = [cpu for cluster in found for cpu in cluster.cpus]
        assert len(set(numbers)) == len(numbers)
        told = cpus._online(str(root / "sys/devices/system/cpu"))
        assert not told or tuple(sorted(numbers)) == told, "every online CPU is in one cluster"
        assert [cluster.cpus for cluster in found] == sorted(cluster.cpus for cluster in found)
        assert len({(cluster.midr, cluster.revidr) for cluster in found}) == len(found)
        assert all(0 < (find_capacity((cpu,), root) or 1) <= 1024 for cpu in numbers)


@pytest.mark.parametrize("name", ["midr_el1", "revidr_el1"])
def test_what_is_no_file_tells_nothing(tmp_path: Path, name: str) -> None:
    write_cpu(tmp_path, 0, _A57, None)
    write_online(tmp_path, "0")
    file = tmp_path / "sys/devices/system/cpu/cpu0/regs/identification" / name
    file.unlink(missing_ok=True)
    file.mkdir()
    midr = None if name == "midr_el1" else _A57
    assert find_clusters(tmp_path) == [CpuCluster((0,), midr, None)]


def test_the_hook_reads_two_files_for_each_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cpu in range(128):
        write_cpu(tmp_path, cpu, 0x413FD0C1, 0x1C7, 1024)
    write_online(tmp_path, "0-127")
    read: list[str] = []
    original = cpus._number_text

    def count(path: str) -> bytes:
        read.append(path)
        return original(path)

    monkeypatch.setattr(cpus, "_number_text", count)
    assert find_clusters(tmp_path) == [CpuCluster(tuple(range(128)), 0x413FD0C1, 0x1C7)]
    assert len(read) == 2 * 128
    assert not any("cpu_capacity" in path for path in read)


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("midr", "expected"),
    [
        (_A53, ("ARM", "Cortex-A53")),
        (_A72, ("ARM", "Cortex-A72")),
        (0x412FC0F4, ("ARM", "Cortex-A15")),
        (0x414FD0C1, ("ARM", "Neoverse-N1")),
        (0x410F0000, ("ARM", "")),  # ARM, but no such part
        (0x000F0510, ("", "")),  # QEMU's -cpu max
        (0xFF0FFFF0, ("", "")),
    ],
)
def test_names_of_parts(midr: int, expected: tuple[str, str]) -> None:
    assert name_part(midr) == expected
