# SPDX-License-Identifier: LGPL-2.1-or-later
"""The data tables are well-formed and agree with each other, and with what is quoted from Arm's
manuals here.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import kvmarm_plugin

_PACKAGE = Path(kvmarm_plugin.__file__).parent
_POLICIES = {"LOWER_SAFE", "HIGHER_SAFE", "HIGHER_OR_ZERO_SAFE", "EXACT", "-"}
_SPDX = "# SPDX-License-Identifier: LGPL-2.1-or-later"

# op0, op1, CRn, CRm, op2 as the Arm ARM prints them.
_ENCODINGS = {
    "MIDR_EL1": (0b11, 0b000, 0b0000, 0b0000, 0b000),
    "MPIDR_EL1": (0b11, 0b000, 0b0000, 0b0000, 0b101),
    "REVIDR_EL1": (0b11, 0b000, 0b0000, 0b0000, 0b110),
    "ID_PFR0_EL1": (0b11, 0b000, 0b0000, 0b0001, 0b000),
    "ID_ISAR6_EL1": (0b11, 0b000, 0b0000, 0b0010, 0b111),
    "ID_MMFR4_EL1": (0b11, 0b000, 0b0000, 0b0010, 0b110),
    "MVFR2_EL1": (0b11, 0b000, 0b0000, 0b0011, 0b010),
    "ID_PFR2_EL1": (0b11, 0b000, 0b0000, 0b0011, 0b100),
    "ID_AA64PFR0_EL1": (0b11, 0b000, 0b0000, 0b0100, 0b000),
    "ID_AA64ZFR0_EL1": (0b11, 0b000, 0b0000, 0b0100, 0b100),
    "ID_AA64SMFR0_EL1": (0b11, 0b000, 0b0000, 0b0100, 0b101),
    "ID_AA64DFR0_EL1": (0b11, 0b000, 0b0000, 0b0101, 0b000),
    "ID_AA64ISAR2_EL1": (0b11, 0b000, 0b0000, 0b0110, 0b010),
    "ID_AA64MMFR0_EL1": (0b11, 0b000, 0b0000, 0b0111, 0b000),
    "ID_AA64MMFR4_EL1": (0b11, 0b000, 0b0000, 0b0111, 0b100),
    "CLIDR_EL1": (0b11, 0b001, 0b0000, 0b0000, 0b001),
    "CCSIDR2_EL1": (0b11, 0b001, 0b0000, 0b0000, 0b010),
    "GMID_EL1": (0b11, 0b001, 0b0000, 0b0000, 0b100),
    "SMIDR_EL1": (0b11, 0b001, 0b0000, 0b0000, 0b110),
    "AIDR_EL1": (0b11, 0b001, 0b0000, 0b0000, 0b111),
    "CTR_EL0": (0b11, 0b011, 0b0000, 0b0000, 0b001),
    "DCZID_EL0": (0b11, 0b011, 0b0000, 0b0000, 0b111),
    "PMCR_EL0": (0b11, 0b011, 0b1001, 0b1100, 0b000),
    "CNTFRQ_EL0": (0b11, 0b011, 0b1110, 0b0000, 0b000),
    "OSLSR_EL1": (0b10, 0b000, 0b0001, 0b0001, 0b100),
}

# CRn, op1, CRm, op2 of cp15, as the ARMv7-A ARM prints them.
_CP15_ENCODINGS = {
    "MIDR": (0, 0, 0, 0),
    "CTR": (0, 0, 0, 1),
    "MPIDR": (0, 0, 0, 5),
    "REVIDR": (0, 0, 0, 6),
    "ID_PFR0": (0, 0, 1, 0),
    "ID_MMFR3": (0, 0, 1, 7),
    "ID_ISAR0": (0, 0, 2, 0),
    "ID_ISAR5": (0, 0, 2, 5),
    "CLIDR": (0, 1, 0, 1),
    "AIDR": (0, 1, 0, 7),
}


class _Register(NamedTuple):
    kvm_id: int
    name: str
    description: str


class _Field(NamedTuple):
    register: str
    kvm_id: int
    name: str
    msb: int
    lsb: int
    sign: str
    policy: str
    safe_value: str
    strict: str
    visible: str
    meaning: str


def _rows(name: str, header: str) -> list[list[str]]:
    """The rows of a table; its first line must be the SPDX line and its first line that is no
    comment the header.
    """
    lines = (_PACKAGE / "registers" / name).read_text(encoding="ascii").splitlines()
    assert lines[0] == _SPDX
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    assert rows[0] == header.split()
    assert {len(row) for row in rows} == {len(rows[0])}
    assert all(cell and cell == cell.strip() for row in rows for cell in row)
    return rows[1:]


@pytest.fixture(scope="module")
def registers() -> list[_Register]:
    return [
        _Register(int(row[0], 16), row[1], row[2])
        for row in _rows("registers.tsv", "kvm_id name description")
    ]


@pytest.fixture(scope="module")
def fields() -> list[_Field]:
    header = "reg kvm_reg_id field msb lsb sign policy safe_val strict visible meaning"
    return [
        _Field(row[0], int(row[1], 16), row[2], int(row[3]), int(row[4]), *row[5:])
        for row in _rows("fields.tsv", header)
    ]


@pytest.fixture(scope="module")
def implementers() -> dict[int, dict[str, object]]:
    text = (_PACKAGE / "host" / "parts.yaml").read_text(encoding="ascii")
    assert text.splitlines()[0] == _SPDX
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


def test_register_names_and_ids_are_unique(registers: list[_Register]) -> None:
    assert len({register.name for register in registers}) == len(registers)
    assert len({register.kvm_id for register in registers}) == len(registers)


def test_registers_are_sorted_and_described(registers: list[_Register]) -> None:
    assert registers == sorted(registers)
    assert [register.name for register in registers if len(register.description) > 60] == []


@pytest.mark.parametrize("name", _ENCODINGS)
def test_sysreg_encoding(registers: list[_Register], name: str) -> None:
    op0, op1, crn, crm, op2 = _ENCODINGS[name]
    # KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG, then the encoding as in an MRS
    # instruction.
    expected = (
        0x6 << 60 | 3 << 52 | 0x13 << 16 | int(f"{op0:02b}{op1:03b}{crn:04b}{crm:04b}{op2:03b}", 2)
    )
    assert {register.name: register.kvm_id for register in registers}[name] == expected


@pytest.mark.parametrize("name", _CP15_ENCODINGS)
def test_cp15_encoding(registers: list[_Register], name: str) -> None:
    crn, op1, crm, op2 = _CP15_ENCODINGS[name]
    # KVM_REG_ARM | KVM_REG_SIZE_U32 | coprocessor 15; op1 has four bits here.
    expected = 0x4 << 60 | 2 << 52 | 15 << 16 | int(f"{crn:04b}{crm:04b}{op1:04b}{op2:03b}", 2)
    assert {register.name: register.kvm_id for register in registers}[name] == expected


@pytest.mark.parametrize(
    ("name", "kvm_id"),
    [
        ("PSCI_VERSION", 0x6030000000140000),
        ("SMCCC_ARCH_WORKAROUND_3", 0x6030000000140003),
        ("STD_BMAP", 0x6030000000160000),
        ("VENDOR_HYP_BMAP_2", 0x6030000000160003),
        ("SVE_VLS", 0x606000000015FFFF),
        ("CCSIDR_L1D", 0x6020000000110000),
        ("CCSIDR_L1I", 0x6020000000110001),
        ("CCSIDR_L7I", 0x602000000011000D),
        ("CCSIDR32_L1D", 0x4020000000110000),
        ("CCSIDR32_L6I", 0x402000000011000B),
        ("FPSID", 0x4020000000121000),
    ],
)
def test_other_ids(registers: list[_Register], name: str, kvm_id: int) -> None:
    assert {register.name: register.kvm_id for register in registers}[name] == kvm_id


def test_field_registers_are_in_the_register_table(
    registers: list[_Register], fields: list[_Field]
) -> None:
    known = {register.name: register.kvm_id for register in registers}
    assert [field for field in fields if known.get(field.register) != field.kvm_id] == []


def test_fields_do_not_overlap(fields: list[_Field]) -> None:
    taken: dict[str, int] = {}
    for field in fields:
        assert 63 >= field.msb >= field.lsb >= 0, field
        bits = (1 << field.msb + 1) - (1 << field.lsb)
        assert not taken.get(field.register, 0) & bits, field
        taken[field.register] = taken.get(field.register, 0) | bits


def test_fields_are_sorted_and_named_once(fields: list[_Field]) -> None:
    assert fields == sorted(fields, key=lambda field: (field.kvm_id, -field.msb))
    assert len({(field.register, field.name) for field in fields}) == len(fields)


def test_field_columns(fields: list[_Field]) -> None:
    assert {field.sign for field in fields} == {"S", "U"}
    assert {field.policy for field in fields} == _POLICIES
    for field in fields:
        assert 0 <= int(field.safe_value, 0) < 1 << field.msb - field.lsb + 1, field
        assert len(field.meaning) <= 50, field
        has_rule = field.policy != "-"
        assert (field.strict in ("STRICT", "NONSTRICT")) is has_rule, field
        assert field.visible.startswith(("VISIBLE", "HIDDEN")) is has_rule, field


@pytest.mark.parametrize(
    ("register", "name", "msb", "lsb", "sign", "policy", "safe_value"),
    [
        ("MIDR_EL1", "PartNum", 15, 4, "U", "-", "0"),
        ("ID_AA64PFR0_EL1", "CSV2", 59, 56, "U", "LOWER_SAFE", "0"),
        ("ID_AA64PFR0_EL1", "AdvSIMD", 23, 20, "S", "LOWER_SAFE", "0xf"),
        ("ID_AA64PFR1_EL1", "CSV2_frac", 35, 32, "U", "-", "0"),
        ("ID_AA64ISAR1_EL1", "APA", 7, 4, "U", "EXACT", "0"),
        ("ID_AA64MMFR1_EL1", "SpecSEI", 27, 24, "U", "HIGHER_SAFE", "0"),
        ("ID_ISAR3_EL1", "SynchPrim", 15, 12, "U", "LOWER_SAFE", "0"),
        ("CTR_EL0", "CWG", 27, 24, "U", "HIGHER_OR_ZERO_SAFE", "0"),
        ("CTR_EL0", "L1Ip", 15, 14, "U", "EXACT", "2"),
    ],
)
def test_known_fields(
    fields: list[_Field],
    register: str,
    name: str,
    msb: int,
    lsb: int,
    sign: str,
    policy: str,
    safe_value: str,
) -> None:
    (field,) = (field for field in fields if (field.register, field.name) == (register, name))
    assert field[3:8] == (msb, lsb, sign, policy, safe_value)


def test_parts_are_names_by_number(implementers: dict[int, dict[str, object]]) -> None:
    for implementer, entry in implementers.items():
        assert isinstance(implementer, int), implementer
        assert 0 <= implementer <= 0xFF, implementer
        assert set(entry) == {"name", "parts"}
        name, parts = entry["name"], entry["parts"]
        assert isinstance(name, str), implementer
        assert name, implementer
        assert isinstance(parts, dict), implementer
        assert list(parts) == sorted(parts)
        for part, part_name in parts.items():
            assert isinstance(part, int), part
            assert 0 <= part <= 0xFFF, part
            assert isinstance(part_name, str), part
            assert part_name, part


def test_no_part_is_given_twice() -> None:
    """YAML would silently take the last one."""
    text = (_PACKAGE / "host" / "parts.yaml").read_text(encoding="ascii")
    seen: set[tuple[str, str]] = set()
    implementer = ""
    for line in text.splitlines():
        key = line.partition(":")[0]
        if not key.strip().startswith("0x"):
            continue
        if not key.startswith(" "):
            implementer, key = key, ""
        assert (implementer, key) not in seen
        seen.add((implementer, key))


def test_no_two_parts_have_one_name(implementers: dict[int, dict[str, object]]) -> None:
    """Whoever makes them: what people read has the part alone."""
    names = [
        name
        for entry in implementers.values()
        if isinstance(entry["parts"], dict)
        for name in entry["parts"].values()
    ]
    assert [name for name in set(names) if names.count(name) > 1] == []


@pytest.mark.parametrize(
    ("implementer", "part", "vendor", "name"),
    [
        (0x41, 0xC07, "ARM", "Cortex-A7"),
        (0x41, 0xC0F, "ARM", "Cortex-A15"),
        (0x41, 0xD03, "ARM", "Cortex-A53"),
        (0x41, 0xD07, "ARM", "Cortex-A57"),
        (0x41, 0xD0C, "ARM", "Neoverse-N1"),
        (0x41, 0xD4F, "ARM", "Neoverse-V2"),
        (0x43, 0x0AF, "Cavium", "ThunderX2-99xx"),
        (0x46, 0x001, "FUJITSU", "A64FX"),
        (0x50, 0x000, "APM", "X-Gene"),
        (0x61, 0x023, "Apple", "Firestorm-M1"),
        (0x48, 0xD01, "HiSilicon", "Kunpeng-920"),
        (0x48, 0xD02, "HiSilicon", "Kunpeng-920-HIP09"),
        (0x61, 0x042, "Apple", "Sawtooth-M3"),
        (0x61, 0x049, "Apple", "Everest-M3-Max"),
        (0x61, 0x059, "Apple", "PCore-M4-Max"),
        (0x61, 0x060, "Apple", "ECore-A18-Pro"),
        (0x61, 0x068, "Apple", "MCore-M5-Max"),
        (0x70, 0x872, "Phytium", "FTC872"),
        (0xC0, 0xAC3, "Ampere", "Ampere-1"),
        (0xC0, 0xAC7, "Ampere", "Ampere-1c"),
    ],
)
def test_known_parts(
    implementers: dict[int, dict[str, object]], implementer: int, part: int, vendor: str, name: str
) -> None:
    entry = implementers[implementer]
    parts = entry["parts"]
    assert isinstance(parts, dict)
    assert (entry["name"], parts[part]) == (vendor, name)
