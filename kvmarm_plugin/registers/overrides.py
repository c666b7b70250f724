# SPDX-License-Identifier: LGPL-2.1-or-later
"""Words of the kernel's command line that take a feature from a host."""

from __future__ import annotations

from ..basics.value import Value
from .table import rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


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


# Fields that kernels have shown to guests by mistake. Every kernel that knows a word for one hides
# it, so that no guest gets less by the word.
HIDDEN = frozenset(
    {
        ("ID_AA64PFR0_EL1", "MPAM"),
        ("ID_AA64PFR1_EL1", "MPAM_frac"),
        ("ID_AA64MMFR2_EL1", "NV"),
    }
)

_overrides: list[Override] = []


def overrides() -> list[Override]:
    """The words of the kernel's command line that can level hosts."""
    if not _overrides:
        _overrides.extend(
            Override(word, since, dict(map(_setting, fields.split())))
            for word, since, fields in rows("overrides.tsv")
        )
    return _overrides


def override_of(register: str, field: str, most: int = 0) -> Override | None:
    """The word that takes what this field shows from guests, if there is one.

    Args:
        most: that it may leave.
    """
    if (register, field) in HIDDEN:
        return None
    fitting = (
        override
        for override in overrides()
        if override.fields.get((register, field), most + 1) <= most
    )
    return max(fitting, key=lambda override: override.fields[register, field], default=None)


def takes(word: str, register: str, field: str) -> bool:
    """Whether a word of the kernel's command line, as the kernel reads it, is about this field: one
    of the words, or the field itself, such as "id_aa64pfr0.mpam=0" (match_options and
    __parse_cmdline, idreg-override.c).
    """
    word = word.replace("-", "_")
    if word.startswith(f"{register.lower().replace('_el1', '')}.{field.lower()}="):
        return True
    return any(
        override.word == word and (register, field) in override.fields for override in overrides()
    )


def takes_hidden(words: Iterable[str]) -> frozenset[tuple[str, str]]:
    """Of HIDDEN, the fields that these words of a command line are about."""
    return frozenset(
        (register, field)
        for register, field in HIDDEN
        for word in words
        if takes(word, register, field)
    )


def _setting(text: str) -> tuple[tuple[str, str], int]:
    """ "ID_AA64PFR1_EL1.BT=0" → (("ID_AA64PFR1_EL1", "BT"), 0)."""
    name, _, value = text.partition("=")
    register, _, field = name.partition(".")
    return (register, field), int(value)
