# SPDX-License-Identifier: LGPL-2.1-or-later
"""Register values and lists as text, and the names of registers: each way and its inverse."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvmarm_plugin.registers.table import bits_of, describe, fields_of, id_of, is_identity, name_of
from kvmarm_plugin.registers.text import format_values, pack_ids, parse_values, unpack_ids
from tests.corpus import HOSTS, host

_SYSREGS = range(0x6030000000130000, 0x6030000000140000)
_ids = st.sets(
    st.one_of(
        st.integers(0, (1 << 64) - 1),
        st.sampled_from(_SYSREGS),
        st.integers(0, 40).map(lambda number: 0x6030000000100000 + 2 * number),
        st.integers(0, 0x1FFFF),
    )
)
_names = st.sampled_from(_SYSREGS).map(name_of) | st.integers(0, (1 << 64) - 1).map(name_of)


# -- names ---------------------------------------------------------------------------------------


def test_every_system_register_has_a_name_of_its_own() -> None:
    names = {reg: name_of(reg) for reg in _SYSREGS}
    assert len(set(names.values())) == len(_SYSREGS)
    assert all(id_of(name) == reg for reg, name in names.items())


@given(st.integers(0, (1 << 64) - 1))
@example(0x606000000015FFFF)
@example(0x40200000000F0000)
@example(0x6020000000110000)
def test_every_id_has_a_name(reg: int) -> None:
    assert id_of(name_of(reg)) == reg


@pytest.mark.parametrize(
    ("reg", "name"),
    [
        (0x603000000013C000, "MIDR_EL1"),
        (0x603000000013C020, "ID_AA64PFR0_EL1"),
        (0x603000000013C023, "S3_0_C0_C4_3"),
        (0x603000000013D801, "CTR_EL0"),
        (0x603000000013DCE0, "PMCR_EL0"),
        (0x603000000013808C, "OSLSR_EL1"),
        (0x6030000000138008, "S2_0_C0_C1_0"),
        (0x6020000000110003, "CCSIDR_L2I"),
        (0x6030000000140000, "PSCI_VERSION"),
        (0x606000000015FFFF, "SVE_VLS"),
        (0x40200000000F0000, "MIDR"),
        (0x4020000000110000, "CCSIDR32_L1D"),
        (0x6030000000100040, "0x6030000000100040"),
    ],
)
def test_names(reg: int, name: str) -> None:
    assert name_of(reg) == name
    assert id_of(name) == reg


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "MIDR_EL3",
            "midr_el1",
            "S3_0_C0_C4",
            "S3_0_0_4_3",
            "Sx_0_C0_C4_3",
            "0xg",
            "S3_0_C0_C4_3_1",
            "1234",
            "MIDR_EL1 ",
        ),
        *(
            "S7_0_C0_C0_0",
            "S3_8_C0_C0_0",
            "S3_0_C16_C0_0",
            "S3_0_C0_C16_0",
            "S3_0_C0_C0_8",
            "S3_00_C0_C0_0",
            "S3_-1_C0_C0_0",
        ),
        *(
            "S3_0_CC0_C0_0",
            "SS3_0_C0_C0_0",
            "S\u0663_0_C0_C0_0",
            "S3_\u00b2_C0_C0_0",
            "S3_1_0_C0_C0_0",
            "S3_0_C0_C0_" + "1" * 10**6,
        ),
        *(
            "0x603000000013c000",
            "0x603000000013C023",
            "0X6030000000140000",
            "0x06030000000140000",
            "0x16030000000140000",
        ),
        *("0x-1", "0x", "0x1_0", "0x" + "1" * 10**6),
    ],
)
def test_no_names(name: str) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        id_of(name)
    assert len(str(caught.value)) < 200


def test_an_unknown_name_is_described_by_nothing() -> None:
    assert describe("S3_0_C0_C4_3") == ""
    assert fields_of("S3_0_C0_C4_3") == []
    assert describe("MIDR_EL1")


def test_fields_take_a_register_apart() -> None:
    value = 0x1100000010111112
    fields = fields_of("ID_AA64PFR0_EL1")
    assert {field.name: field.of(value) for field in fields}["CSV3"] == 1
    assert sum(field.of(value) << field.lsb for field in fields) == value


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[
            (name, True)
            for name in (
                "MIDR_EL1",
                "REVIDR_EL1",
                "AIDR_EL1",
                "ID_AA64PFR0_EL1",
                "S3_0_C0_C7_7",
                "CLIDR_EL1",
                "CTR_EL0",
            )
        ],
        *[
            (name, True)
            for name in (
                "CCSIDR_L1D",
                "PSCI_VERSION",
                "STD_BMAP",
                "SVE_VLS",
                "OSLSR_EL1",
                "MIDR",
                "ID_ISAR5",
                "CCSIDR32_L1D",
            )
        ],
        *[
            (name, False)
            for name in (
                "MPIDR_EL1",
                "PMCR_EL0",
                "S3_2_C0_C0_0",
                "S3_0_C1_C0_0",
                "S2_0_C0_C1_0",
                "MPIDR",
                "FPSID",
            )
        ],
        ("0x40200000000f0010", False),  # CSSELR of 32-bit hosts: c0, c0, opc1 2, opc2 0
        ("0x6030000000100040", False),
    ],
)
def test_what_identifies_a_vcpu(name: str, expected: bool) -> None:
    assert is_identity(id_of(name)) is expected


@pytest.mark.parametrize("where", sorted(HOSTS))
def test_profiles_hold_the_registers_that_identify(where: str) -> None:
    for cluster in host(where).clusters:
        for vcpu in cluster.vcpus:
            expected = {name_of(reg) for reg in unpack_ids(vcpu.reglist) if is_identity(reg)}
            assert set(vcpu.registers) == expected


# -- values --------------------------------------------------------------------------------------


@st.composite
def _register_values(draw: st.DrawFn) -> dict[str, int]:
    """Values as wide as their registers."""
    return {
        name: draw(st.integers(0, (1 << bits_of(id_of(name))) - 1))
        for name in draw(st.sets(_names, max_size=8))
    }


@given(_register_values())
def test_parsing_values_is_the_inverse_of_formatting(values: dict[str, int]) -> None:
    assert parse_values(format_values(values)) == values


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("MIDR_EL1", 64),
        ("CCSIDR_L1D", 32),
        ("MIDR", 32),
        ("PSCI_VERSION", 64),
        ("SVE_VLS", 512),
        ("0x6030000000100040", 64),
    ],
)
def test_a_value_is_as_wide_as_its_register(name: str, bits: int) -> None:
    assert bits_of(id_of(name)) == bits
    assert parse_values(f"{name}={(1 << bits) - 1:#x}") == {name: (1 << bits) - 1}
    for value in (f"{1 << bits:#x}", "0x1" + "0" * 60_000):
        with pytest.raises(ValueError, match="not a hexadecimal number"):
            parse_values(f"{name}={value}")


def test_a_register_is_there_once_whatever_it_is_called() -> None:
    assert parse_values("S3_0_C0_C0_0=0x1") == {
        "MIDR_EL1": 1
    }  # as a table without that name wrote it
    for text in (
        "MIDR_EL1=0x1 MIDR_EL1=0x1",
        "MIDR_EL1=0x1 S3_0_C0_C0_0=0x1",
        "0x6030000000140000=0x1 PSCI_VERSION=0x1",
    ):
        with pytest.raises(ValueError, match="twice"):
            parse_values(text)


@given(st.dictionaries(_names, st.integers(0, 9), min_size=2))
def test_values_are_written_in_the_order_of_their_ids(values: dict[str, int]) -> None:
    text = format_values(values)
    assert list(map(id_of, parse_values(text))) == sorted(map(id_of, values))
    assert format_values(dict(reversed(values.items()))) == text


def test_values_may_stand_on_several_lines() -> None:
    assert parse_values("\n  MIDR_EL1=0x1\n\t CTR_EL0=0xff ") == {"MIDR_EL1": 1, "CTR_EL0": 255}
    assert parse_values("") == {}


@pytest.mark.parametrize(
    "text",
    [
        *(
            "MIDR_EL1",
            "MIDR_EL1=",
            "MIDR_EL1=x",
            "MIDR_EL1=0x1,CTR_EL0=0x2",
            "MIDR_EL1 =0x1",
            "MIDR_EL1=0x1 0x2",
            "A=0x1",
        ),
        *(
            "MIDR_EL1=1",
            "MIDR_EL1=0x01",
            "MIDR_EL1=0xA",
            "MIDR_EL1=0X1",
            "MIDR_EL1=0x",
            "MIDR_EL1==0x1",
            "=0x1",
        ),
        *(
            "MIDR_EL1=-0x1",
            "MIDR_EL1=+0x1",
            "MIDR_EL1=0x1_0",
            "MIDR_EL1=0x\u0661",
            "MIDR_EL1=0x\uff11",
        ),
        *(
            "MIDR_EL1=0x1\u00a0CTR_EL0=0x1",
            "MIDR_EL1=0x1\u3000",
            "0x603000000013c000=0x1",
            "0X6030000000140000=0x1",
        ),
        "MIDR_EL1=0x1" + " " * (1 << 20),
    ],
)
def test_what_is_no_list_of_values(text: str) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        parse_values(text)
    assert len(str(caught.value)) < 200


# -- lists ---------------------------------------------------------------------------------------


@given(_ids)
@example(set())
@example({0, 0xFFFF, 0x10000})
@example(set(range(0x6030000000130000, 0x6030000000130200, 3)))
def test_unpacking_is_the_inverse_of_packing(ids: set[int]) -> None:
    text = pack_ids(ids)
    assert unpack_ids(text) == ids
    assert pack_ids(unpack_ids(text)) == text


@given(st.lists(st.integers(0, 50)), st.randoms(use_true_random=False))
def test_equal_sets_are_packed_the_same(ids: list[int], random: object) -> None:
    assert pack_ids(ids) == pack_ids(reversed(ids)) == pack_ids([*ids, *ids])


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([], ""),
        ([1], "0:1"),
        ([1, 2], "0:1-2"),
        ([1, 3], "0:1,3"),
        ([1, 2, 3], "0:1-3"),
        ([0, 2, 4, 6], "0:0-6/2"),
        ([0, 2, 4, 5, 6], "0:0-4/2,5-6"),
        ([0x6030000000130001, 0x6030000000140000], "6030000000130000:1 6030000000140000:0"),
    ],
)
def test_packed(ids: list[int], text: str) -> None:
    assert pack_ids(ids) == text
    assert sorted(unpack_ids(text)) == ids


@pytest.mark.parametrize(
    "text",
    [
        *(
            "0",
            "0:",
            ":1",
            "x:1",
            "0:x",
            "0:5-3",
            "0:10000",
            "0:1/x",
            "0:1-5/0",
            "0:1,",
            "0:1 2",
            "0:1/2",
            "0:3-3",
            "0:1-2/5",
        ),
        *(
            "1:1",
            "10001:1",
            "10000000000000000:1",
            "00:1",
            "0x0:1",
            "0X10000:1",
            "-10000:1",
            "+10000:1",
            "1_0000:1",
            "\u0660:1",
        ),
        *(
            "0:01",
            "0:0x1",
            "0:A",
            "0:-1",
            "0:+1",
            "0:1_0",
            "0:\u0661",
            "0:1-0x5",
            "0:1--5",
            "0:1-5/+1",
            "0:1-5/-1",
            "0:1-5/01",
        ),
        *(
            "0:1,1",
            "0:2,1",
            "0:1-5,3",
            "0:1-4/2",
            "0:1 0:1",
            "10000:1 0:1",
            "0:1\u00a010000:1",
            "0:1\u2028",
        ),
        *(
            "f" * 1_000_000 + ":1",
            "0:" + "1" * 1_000_000,
            "0:1-" + "f" * 1_000_000,
            "0:1-5/" + "1" * 1_000_000,
            "0:1" + " " * 70_000,
        ),
    ],
)
def test_what_is_no_packed_list(text: str) -> None:
    with pytest.raises(ValueError, match=r".+") as caught:
        unpack_ids(text)
    assert len(str(caught.value)) < 200


def test_a_packed_list_cannot_be_a_bomb() -> None:
    """The hook unpacks what stands in the domain: a few bytes must not stand for millions of
    ids.
    """
    with pytest.raises(ValueError, match="more than"):
        unpack_ids("0:0-ffff")
    with pytest.raises(ValueError, match="more than"):
        unpack_ids(" ".join(f"{group << 16:x}:0-fff" for group in range(3)))


@pytest.mark.parametrize("where", sorted(HOSTS))
def test_real_lists_are_short(where: str) -> None:
    for cluster in host(where).clusters:
        for vcpu in cluster.vcpus:
            ids = unpack_ids(vcpu.reglist)
            assert 100 < len(ids) < 1000
            assert len(vcpu.reglist) < 1500
            assert pack_ids(ids) == vcpu.reglist
