# SPDX-License-Identifier: LGPL-2.1-or-later
"""registers/errata.tsv is well-formed and says what Linux 7.3-rc7's tables say, read by hand here;
and what a guest misses that sees another identity.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from kvmarm_plugin.host import known
from kvmarm_plugin.host.cpus import name_part
from kvmarm_plugin.registers import errata, table
from kvmarm_plugin.registers.errata import SEVERITIES, Erratum, errata_of, missed

_FILE = Path(errata.__file__).with_name("errata.tsv")
_HEADER = [
    *("name", "implementer", "part", "first", "last", "fixed", "list"),
    *("matters", "severity", "source", "only_where", "what"),
]

_A53 = 0x410FD034  # r0p4
_A57 = 0x411FD070  # r1p0
_A72 = 0x410FD083  # r0p3
_A76 = 0x414FD0B1  # r4p1
_N1 = 0x413FD0C1  # r3p1: Altra and Graviton2
_V1 = 0x411FD401  # r1p1: Graviton3
_V2 = 0x410FD4F1  # r0p1: Graviton4
_N2 = 0x410FD490  # r0p0: Yitian 710
_COBALT = 0x6D0FD490  # r0p0
_V3 = 0x410FD840  # r0p0
_THUNDERX2 = 0x431F0AF1  # r1p1
_KUNPENG920 = 0x481FD010  # r1p0
_A64FX = 0x461F0010  # r1p0
_FALKOR = 0x510FC000

# What Linux takes every CPU to need that is not listed as safe.
_UNLISTED = frozenset(
    {
        "ARM64_SPECTRE_V2",
        "ARM64_SPECTRE_V2_CALL",
        "ARM64_SPECTRE_V4",
        "ARM64_SPECTRE_BHB",
        "ARM64_SPECTRE_BHB_CALL",
        "ARM64_UNMAP_KERNEL_AT_EL0",
        "ARM64_HAS_BBML3",
    }
)
_TRBE_OF_N2 = {"ARM64_ERRATUM_2139208", "ARM64_ERRATUM_2067961", "ARM64_ERRATUM_2253138"}


def _names(found: list[Erratum]) -> set[str]:
    assert [e.severity for e in found] == sorted((e.severity for e in found), key=SEVERITIES.index)
    assert len({erratum.name for erratum in found}) == len(found)
    return {erratum.name for erratum in found}


@pytest.fixture(scope="module")
def table_rows() -> list[dict[str, str]]:
    lines = _FILE.read_text(encoding="ascii").splitlines()
    assert lines[0] == "# SPDX-License-Identifier: LGPL-2.1-or-later"
    header, *rows = [line.split("\t") for line in lines if not line.startswith("#")]
    assert header == _HEADER
    assert {len(row) for row in rows} == {len(header)}
    assert all(cell and cell == cell.strip() for row in rows for cell in row)
    return [dict(zip(header, row)) for row in rows]


# -- the table -----------------------------------------------------------------------------------


def test_columns_have_their_words(table_rows: list[dict[str, str]]) -> None:
    for row in table_rows:
        assert row["list"] in ("affected", "safe"), row
        assert row["matters"] in ("guest", "host"), row
        assert row["severity"] in SEVERITIES, row
        assert row["source"] in ("help", "code", "unclear"), row
        assert (row["severity"] == "none") is (row["matters"] == "host"), row
        assert row["source"] != "unclear" or row["severity"] == "corrupting", row
        assert len(row["what"]) <= 76, row


def test_the_rows_of_a_name_say_the_same(table_rows: list[dict[str, str]]) -> None:
    shared = _HEADER[_HEADER.index("list") :]
    by_name: dict[str, tuple[str, ...]] = {}
    for row in table_rows:
        said = tuple(row[column] for column in shared)
        assert by_name.setdefault(row["name"], said) == said


def test_a_name_has_a_range_once(table_rows: list[dict[str, str]]) -> None:
    """Nor do its ranges overlap."""
    taken: dict[tuple[str, int, int], list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    for row in table_rows:
        low, _, high = row["part"].partition("-")
        first, last = (
            tuple(int(number) for number in row[end][1:].split("p")) for end in ("first", "last")
        )
        assert (0, 0) <= first <= last <= (15, 15), row
        for part in range(int(low, 16), int(high or low, 16) + 1):
            others = taken.setdefault((row["name"], int(row["implementer"], 16), part), [])
            assert all(last < other[0] or other[1] < first for other in others), row
            others.append((first, last))


def test_rows_of_a_name_stand_together(table_rows: list[dict[str, str]]) -> None:
    names = [row["name"] for row in table_rows]
    changes = [name for name, before in zip(names, ["", *names]) if name != before]
    assert len(changes) == len(set(changes))


def test_every_cpu_has_a_name(table_rows: list[dict[str, str]]) -> None:
    """A range of MIDRs that no source knows a CPU for would be a slip of the pen."""
    for implementer, part in {(row["implementer"], row["part"]) for row in table_rows}:
        if "-" not in part:
            midr = int(implementer, 16) << 24 | int(part, 16) << 4
            assert all(name_part(midr)), (implementer, part)


def test_conditions_name_fields(table_rows: list[dict[str, str]]) -> None:
    for condition in {row["only_where"] for row in table_rows} - {"-"}:
        for one in condition.split():
            whose, _, test = one.partition(":")
            assert whose in ("guest", "member")
            assert (">=" in test) is (whose == "guest") or "CLRBHB" in test
            field = test.replace(">=", "<").partition("<")[0]
            register, _, name = field.partition(".")
            assert name in {known.name for known in table.fields_of(register)}, one


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("ARM64_ERRATUM_4118414", 23),
        ("ARM64_ERRATUM_3194386", 23),
        ("CAVIUM_ERRATUM_23154", 9),
        ("ARM64_SPECTRE_V2", 8),
        ("ARM64_SPECTRE_V4", 6),
        ("ARM64_SPECTRE_BHB", 9),
        ("ARM64_SPECTRE_BHB_K132", 2),
        ("ARM64_SPECTRE_BHB_K38", 3),
        ("ARM64_SPECTRE_BHB_K32", 10),
        ("ARM64_SPECTRE_BHB_K24", 6),
        ("ARM64_SPECTRE_BHB_K11", 1),
        ("ARM64_SPECTRE_BHB_K8", 2),
        ("ARM64_UNMAP_KERNEL_AT_EL0", 15 + 2),
        ("ARM64_HAS_BBML3", 15),
    ],
)
def test_long_lists_are_whole(table_rows: list[dict[str, str]], name: str, count: int) -> None:
    """Counted in the kernel's source."""
    assert sum(row["name"] == name for row in table_rows) == count


def test_what_needs_no_firmware_call_against_bhb(table_rows: list[dict[str, str]]) -> None:
    """Those that are safe, and those for which the loop comes first
    (spectre_bhb_enable_mitigation).
    """

    def cpus_of(*names: str) -> set[tuple[str, ...]]:
        columns = ("implementer", "part", "first", "last")
        return {tuple(row[c] for c in columns) for row in table_rows if row["name"] in names}

    loops = [f"ARM64_SPECTRE_BHB_K{rounds}" for rounds in (132, 38, 32, 24, 11, 8)]
    assert cpus_of("ARM64_SPECTRE_BHB_CALL") == cpus_of("ARM64_SPECTRE_BHB", *loops)


# -- what a CPU has ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("midr", "listed", "safe"),
    [
        (
            _N1,
            {
                "ARM64_ERRATUM_1418040",
                "ARM64_ERRATUM_1542419",
                "ARM64_ERRATUM_3194386",
                "ARM64_ERRATUM_4118414",
                "ARM64_SPECTRE_BHB_K24",
            },
            {"ARM64_SPECTRE_BHB_CALL"},
        ),
        (
            _V1,
            {"ARM64_ERRATUM_3194386", "ARM64_ERRATUM_4118414", "ARM64_SPECTRE_BHB_K32"},
            {"ARM64_SPECTRE_BHB_CALL"},
        ),
        (
            _V2,
            {"ARM64_ERRATUM_3194386", "ARM64_ERRATUM_4118414", "ARM64_SPECTRE_BHB_K132"},
            {"ARM64_SPECTRE_BHB_CALL"},
        ),
        (
            _N2,
            {
                "ARM64_ERRATUM_3194386",
                "ARM64_ERRATUM_4118414",
                "ARM64_SPECTRE_BHB_K32",
                *_TRBE_OF_N2,
            },
            {"ARM64_SPECTRE_BHB_CALL"},
        ),
        (
            # A Neoverse N2 by another name, which spectre_bhb_k32_list does not have.
            _COBALT,
            {"ARM64_ERRATUM_3194386", "ARM64_ERRATUM_4118414", *_TRBE_OF_N2},
            set(),
        ),
        (
            _A57,
            {
                "ARM64_ERRATUM_832075",
                "ARM64_ERRATUM_834220",
                "ARM64_ERRATUM_1319367",
                "ARM64_ERRATUM_1742098",
                "ARM64_SPECTRE_V3A",
                "ARM64_SPECTRE_BHB_K8",
            },
            {"ARM64_SPECTRE_BHB_CALL", "ARM64_UNMAP_KERNEL_AT_EL0"},
        ),
        (
            _A72,
            {
                "ARM64_ERRATUM_1319367",
                "ARM64_ERRATUM_1742098",
                "ARM64_SPECTRE_V3A",
                "ARM64_SPECTRE_BHB_K8",
            },
            {"ARM64_SPECTRE_BHB_CALL", "ARM64_UNMAP_KERNEL_AT_EL0"},
        ),
        (
            _A76,
            {"ARM64_ERRATUM_3194386", "ARM64_ERRATUM_4118414", "ARM64_SPECTRE_BHB_K24"},
            {"ARM64_SPECTRE_BHB_CALL"},
        ),
        (_THUNDERX2, {"CAVIUM_TX2_ERRATUM_219"}, {"ARM64_UNMAP_KERNEL_AT_EL0"}),
        (
            _KUNPENG920,
            {"ARM64_SPECTRE_BHB_K32"},
            {
                "ARM64_SPECTRE_BHB_CALL",
                "ARM64_SPECTRE_V2",
                "ARM64_SPECTRE_V2_CALL",
                "ARM64_UNMAP_KERNEL_AT_EL0",
            },
        ),
        (_A64FX, {"FUJITSU_ERRATUM_010001"}, set()),
        (_A64FX + 1, set(), set()),  # r1p1
        (_A64FX + (1 << 20), set(), set()),  # r2p0
        (_FALKOR, set(), {"ARM64_SPECTRE_V2_CALL"}),
        (_V3, {"ARM64_ERRATUM_3194386", "ARM64_ERRATUM_4118414"}, set()),
        (_V3 + 2, {"ARM64_ERRATUM_3194386", "ARM64_ERRATUM_4118414"}, {"ARM64_HAS_BBML3"}),
        (0x510F2110, {"QCOM_FALKOR_ERRATUM_1003", "QCOM_FALKOR_ERRATUM_1009"}, set()),  # Kryo
        (0x410FD000, set(), set()),
    ],
)
def test_known_cpus(midr: int, listed: set[str], safe: set[str]) -> None:
    assert _names(errata_of(midr, 0)) == listed | _UNLISTED - safe


@pytest.mark.parametrize(
    ("name", "model", "revisions"),
    [
        # MIDR_RANGE(MIDR_CORTEX_A76, 0, 0, 3, 0)
        ("ARM64_ERRATUM_1286807", 0x410FD0B0, "r0p0 r0p1 r0p15 r1p0 r2p15 r3p0"),
        # MIDR_RANGE(MIDR_CORTEX_A57, 0, 1, 0xf, 0xf)
        ("ARM64_ERRATUM_1742098", 0x410FD070, "r0p1 r0p15 r1p0 r2p15 r3p0 r3p1 r15p15"),
        # MIDR_RANGE(MIDR_THUNDERX, 0, 0, 1, 1)
        ("CAVIUM_ERRATUM_27456", 0x430F0A10, "r0p0 r0p1 r0p15 r1p0"),
        # MIDR_ALL_VERSIONS(MIDR_CORTEX_A73)
        ("ARM64_ERRATUM_858921", 0x410FD090, "r0p0 r0p1 r0p15 r1p0 r2p15 r3p0 r3p1 r15p15"),
    ],
)
def test_the_ends_of_ranges(name: str, model: int, revisions: str) -> None:
    for text in ("r0p0", "r0p1", "r0p15", "r1p0", "r2p15", "r3p0", "r3p1", "r15p15"):
        variant, revision = map(int, text[1:].split("p"))
        found = _names(errata_of(model | variant << 20 | revision, 0))
        assert (name in found) is (text in revisions.split()), text


@pytest.mark.parametrize(
    ("name", "midr", "revidr", "has"),
    [
        ("ARM64_ERRATUM_843419", _A53, 0, True),
        ("ARM64_ERRATUM_843419", _A53, 1 << 8, False),
        ("ARM64_ERRATUM_843419", _A53, 0xFFFFFEFF, True),
        ("ARM64_ERRATUM_843419", _A53 - 1, 1 << 8, True),  # r0p3
        ("ARM64_ERRATUM_2658417", 0x411FD461, 1 << 25, False),
        ("ARM64_ERRATUM_2658417", 0x411FD461, 0, True),
        ("ARM64_ERRATUM_4193714", 0x411FD8B2, 1, False),
        ("ARM64_ERRATUM_4193714", 0x411FD8B2, 2, True),
    ],
)
def test_silicon_may_be_fixed(name: str, midr: int, revidr: int, has: bool) -> None:
    assert (name in _names(errata_of(midr, revidr))) is has


def test_only_the_lower_halves_count() -> None:
    """read_cpuid_id and is_affected_midr_range take u32."""
    assert errata_of(_N1 | 0xA5 << 32, 0) == errata_of(_N1, 0)


def test_no_list_has_a_cpu_of_an_older_architecture() -> None:
    assert _names(errata_of(_N1 & ~0xF0000 | 0x70000, 0)) == _UNLISTED


# -- what a guest misses -------------------------------------------------------------------------


def _ends(rows: list[dict[str, str]]) -> list[tuple[int, int]]:
    """The first and the last CPU of every row, as MIDR_EL1 and REVIDR_EL1."""
    found = set()
    for row in rows:
        part = int(row["part"].partition("-")[0], 16)
        for end in ("first", "last"):
            variant, revision = map(int, row[end][1:].split("p"))
            midr = (
                int(row["implementer"], 16) << 24 | variant << 20 | 0xF0000 | part << 4 | revision
            )
            found |= {(midr, 0), (midr, 0xFFFFFFFF)}
    return sorted(found)


def test_nothing_is_missed_at_home(table_rows: list[dict[str, str]]) -> None:
    for cpu in _ends(table_rows):
        assert missed(*cpu, *cpu) == []


def test_what_is_missed_is_the_member_s(table_rows: list[dict[str, str]]) -> None:
    """And what is not missed, the identity has, too, or a longer loop."""
    ends = _ends(table_rows)[::17]
    for member, identity in product(ends, ends):
        had, chosen = _names(errata_of(*member)), _names(errata_of(*identity))
        lost = _names(missed(*member, *identity))
        assert lost <= had - chosen
        assert all("_BHB_K" in name for name in had - chosen - lost)


@pytest.mark.parametrize(
    ("member", "identity", "names"),
    [
        (_V1, _V2, set()),  # 132 rounds of the loop are more than 32
        (_V2, _V1, {"ARM64_SPECTRE_BHB_K132"}),
        (_V1, _N2, set()),
        (_N2, _V1, _TRBE_OF_N2),
        (_N1, _V2, {"ARM64_ERRATUM_1418040", "ARM64_ERRATUM_1542419"}),
        (_V2, _N1, {"ARM64_SPECTRE_BHB_K132"}),
        # Linux changes page sizes of live mappings on Neoverse V3 r0p2.
        (_N2, _V3 + 2, {*_TRBE_OF_N2, "ARM64_SPECTRE_BHB_K32", "ARM64_HAS_BBML3"}),
        # Falkor's own sequence does nothing for others; theirs does for Falkor.
        (_A72, _FALKOR, {"ARM64_SPECTRE_V2_CALL"}),
        (_FALKOR, _A72, {"ARM64_SPECTRE_BHB_CALL", "ARM64_UNMAP_KERNEL_AT_EL0"}),
        # A CPU that is safe from Spectre v2, and one that is not.
        (
            _THUNDERX2,
            _KUNPENG920,
            {
                "ARM64_SPECTRE_V2",
                "ARM64_SPECTRE_V2_CALL",
                "ARM64_SPECTRE_BHB_CALL",
                "CAVIUM_TX2_ERRATUM_219",
            },
        ),
    ],
)
def test_missed(member: int, identity: int, names: set[str]) -> None:
    found = _names(missed(member, 0, identity, 0))
    ignored = {
        "ARM64_SPECTRE_V3A",
        "ARM64_ERRATUM_1319367",
        "ARM64_ERRATUM_1742098",
        "ARM64_SPECTRE_BHB_K8",
    }
    assert found - ignored == names


def test_the_worst_comes_first() -> None:
    found = missed(_N1, 0, _A72, 0)
    assert [erratum.severity for erratum in found] == ["corrupting"] * 3 + ["security"] * 3
    assert [erratum.severity for erratum in missed(_N2, 0, _V1, 0)] == ["none"] * 3


def test_fixed_silicon_as_identity_loses_the_workaround() -> None:
    assert "ARM64_ERRATUM_843419" in _names(missed(_A53, 0, _A53, 1 << 8))
    assert missed(_A53, 1 << 8, _A53, 0) == []


def test_unknown_silicon_counts_as_the_worse() -> None:
    assert "ARM64_ERRATUM_843419" in _names(missed(_A53, None, _A57, 0))
    assert "ARM64_ERRATUM_843419" in _names(missed(_A53, 0, _A53, None))
    assert missed(_N1, None, _N1, None) == []


# -- what other registers rule out ---------------------------------------------------------------


def _erratum(name: str, midr: int) -> Erratum:
    (found,) = (erratum for erratum in errata_of(midr, 0) if erratum.name == name)
    return found


@pytest.mark.parametrize(
    ("name", "midr", "member", "guest", "out"),
    [
        ("ARM64_ERRATUM_4118414", _N1, {}, {}, False),
        ("ARM64_ERRATUM_1418040", _N1, {}, {}, False),
        ("ARM64_ERRATUM_1418040", _N1, {}, {"ID_AA64PFR0_EL1": 0x11}, True),
        ("ARM64_ERRATUM_1418040", _N1, {"ID_AA64PFR0_EL1": 0x11}, {}, False),
        ("ARM64_ERRATUM_1418040", _N1, {}, {"ID_AA64PFR0_EL1": 0x12}, False),
        ("ARM64_ERRATUM_1542419", _N1, {}, {"CTR_EL0": 0}, True),
        ("ARM64_ERRATUM_1542419", _N1, {}, {"CTR_EL0": 1 << 29}, False),
        ("ARM64_SPECTRE_V2", _N1, {"ID_AA64PFR0_EL1": 1 << 56}, {}, True),
        # The member is safe by itself, whatever level the guest is shown.
        ("ARM64_SPECTRE_V2", _N1, {"ID_AA64PFR0_EL1": 1 << 56}, {"ID_AA64PFR0_EL1": 0}, True),
        ("ARM64_SPECTRE_V2", _N1, {"ID_AA64PFR0_EL1": 0}, {}, False),
        ("ARM64_SPECTRE_BHB_K132", _V2, {"ID_AA64PFR0_EL1": 1 << 56}, {}, False),
        ("ARM64_SPECTRE_BHB_K132", _V2, {"ID_AA64PFR0_EL1": 3 << 56}, {}, True),
        ("ARM64_SPECTRE_BHB_K132", _V2, {"ID_AA64MMFR1_EL1": 1 << 60}, {}, True),
        # The guest has to be shown the instruction; that the CPU has it is not enough.
        ("ARM64_SPECTRE_BHB_K132", _V2, {}, {"ID_AA64ISAR2_EL1": 1 << 28}, True),
        ("ARM64_SPECTRE_BHB_K132", _V2, {"ID_AA64ISAR2_EL1": 1 << 28}, {}, False),
    ],
)
def test_ruled_out(
    name: str, midr: int, member: dict[str, int], guest: dict[str, int], out: bool
) -> None:
    assert _erratum(name, midr).ruled_out(member, guest) is out


@pytest.mark.parametrize(
    ("member", "identity", "names"),
    [
        ("graviton3", "graviton4", set()),
        # 32 rounds are too few for Neoverse V2, whose hardware needs none (FEAT_ECBHB).
        ("graviton4", "graviton3", set()),
        ("graviton2", "graviton3", {"ARM64_ERRATUM_1418040", "ARM64_ERRATUM_1542419"}),
        # Graviton4 runs no 32-bit programs.
        ("graviton2", "graviton4", {"ARM64_ERRATUM_1542419"}),
    ],
)
def test_known_hosts(member: str, identity: str, names: set[str]) -> None:
    own, other = (known.read(f"{name}@6.18").clusters[0] for name in (member, identity))
    registers = own.vcpus[0].registers
    guest = {
        name: min(registers[name], other.vcpus[0].registers[name])
        for name in ("ID_AA64ISAR2_EL1", "ID_AA64MMFR1_EL1", "CTR_EL0")
    }
    el0 = min(one.vcpus[0].registers["ID_AA64PFR0_EL1"] & 0xF for one in (own, other))
    guest["ID_AA64PFR0_EL1"] = registers["ID_AA64PFR0_EL1"] & ~0xF | el0
    found = missed(own.midr, own.revidr, other.midr, other.revidr)
    assert {erratum.name for erratum in found if not erratum.ruled_out(registers, guest)} == names


def test_what_is_unclear_is_said() -> None:
    assert not _erratum("ARM64_HAS_BBML3", _N2).classified
    assert _erratum("ARM64_ERRATUM_4118414", _N2).classified
