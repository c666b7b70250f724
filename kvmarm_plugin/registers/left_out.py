# SPDX-License-Identifier: LGPL-2.1-or-later
"""Registers that a levelled guest may be without (left_out.tsv): those that mean nothing to it."""

from __future__ import annotations

from .table import field_of, rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from .table import Field

_table: dict[str, tuple[str, int | None]] = {}


def may_be_left_out(name: str, registers: Mapping[str, int]) -> bool:
    """Whether a guest with these registers loses nothing without another.

    Args:
        name: of the other.
        registers: name → value, of those that identify the guest's vCPU.
    """
    sign = sign_of(name)
    if sign is None:
        return agreed_value(name) is not None
    field, value = sign
    return field.register in registers and field.of(registers[field.register]) == value


def sign_of(name: str) -> tuple[Field, int] | None:
    """The field whose value shows that a guest does not have what a register is for; None for those
    that no field decides.
    """
    owner, _ = _rows().get(name, ("-", None))
    if owner == "-":
        return None
    place, _, value = owner.partition("=")
    return field_of(place), int(value)


def agreed_value(name: str) -> int | None:
    """What a register of firmware is set to before it is left out; None for one that is not set."""
    return _rows()[name][1] if name in _rows() else None


def _rows() -> dict[str, tuple[str, int | None]]:
    if not _table:
        for name, owner, value in rows("left_out.tsv"):
            _table[name] = (owner, None if value == "-" else int(value, 16))
    return _table
