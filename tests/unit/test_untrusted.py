# SPDX-License-Identifier: LGPL-2.1-or-later
"""Numbers with a width, and foreign text on one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmarm_plugin.basics.untrusted import decimal, hexadecimal, shown


@given(st.integers(0, 1 << 70), st.integers(0, 1 << 70))
def test_decimal_reads_what_is_not_too_large(number: int, most: int) -> None:
    if number <= most:
        assert decimal(str(number), most) == number
    else:
        with pytest.raises(ValueError, match="not a number up to"):
            decimal(str(number), most)


@given(st.integers(0, (1 << 70) - 1), st.integers(1, 72))
def test_hexadecimal_reads_what_is_not_too_wide(number: int, bits: int) -> None:
    for text in (f"{number:#x}", f"{number:x}", f"{number:X}"):
        if number >> bits:
            with pytest.raises(ValueError, match="not a hexadecimal number"):
                hexadecimal(text, bits)
        else:
            assert hexadecimal(text, bits) == number


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", " 1", "1 ", "1\n", "1_0", "١", "²", "0b1", "1.0", "1e3", "0" * 5000]
)
def test_what_only_python_calls_a_number(text: str) -> None:
    with pytest.raises(ValueError, match="not a number"):
        decimal(text, 10**9)
    if text != "1e3":
        with pytest.raises(ValueError, match="not a hexadecimal number"):
            hexadecimal(text.replace("0b1", "0xg"))


@pytest.mark.parametrize(
    "text", ["0x", "0X1", "x1", "0x-1", "0x 1", "0x1_0", "0x" + "0" * 17, "f" * 1_000_000]
)
def test_what_is_no_hexadecimal_number(text: str) -> None:
    with pytest.raises(ValueError, match="not a hexadecimal number"):
        hexadecimal(text)


@given(st.text(), st.integers(1, 300))
def test_shown_text_is_printable_and_bounded(text: str, limit: int) -> None:
    line = shown(text, limit)
    assert line.isprintable()
    assert len(line) <= limit * len(r"\U0010ffff")
    if text.isprintable() and len(text) <= limit:
        assert line == text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b31m", r"\x9b31m"),
        ("a\nalpha: yes, as recorded", r"a\nalpha: yes, as recorded"),
        ("a\u2028b\u202ec", r"a\u2028b\u202ec"),
        ("\udcff", r"\udcff"),
        ("gäst", "gäst"),
    ],
)
def test_what_commands_a_terminal(text: str, line: str) -> None:
    assert shown(text) == line


def test_long_text_is_cut() -> None:
    assert shown("x" * 1_000_000, 10) == "x" * 9 + "…"
