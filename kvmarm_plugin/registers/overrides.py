# SPDX-License-Identifier: LGPL-2.1-or-later
"""Words of the kernel's command line that take a feature from a host."""

from __future__ import annotations

from ..basics.value import Value
from .table import rows


class Override(Value):
    """A word of the kernel's command line that takes a feature from an arm64 host.

    Attributes:
        word: as written there.
        since: version of the oldest kernel that was seen to know it, such as "6.12".
        fields: (register, field) → value that it sets.
    """

    word: str
    since: str
    fields: dict[tuple[str, str], int]


_overrides: list[Override] | None = None


def overrides() -> list[Override]:
    """The words of the kernel's command line that can level hosts."""
    global _overrides
    if _overrides is None:
        _overrides = [
            Override(word, since, dict(map(_setting, fields.split())))
            for word, since, fields in rows("overrides.tsv")
        ]
    return _overrides


def override_of(register: str, field: str) -> Override | None:
    """The word that takes what this field shows from a host, if there is one."""
    return next(
        (override for override in overrides() if (register, field) in override.fields), None
    )


def _setting(text: str) -> tuple[tuple[str, str], int]:
    """ "ID_AA64PFR1_EL1.BT=0" → (("ID_AA64PFR1_EL1", "BT"), 0)."""
    name, _, value = text.partition("=")
    register, _, field = name.partition(".")
    return (register, field), int(value)
