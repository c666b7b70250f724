# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which workarounds for errata a guest chooses by the identity that it sees, and which it misses.

A guest reads MIDR_EL1 and REVIDR_EL1 once, and chooses by them what it works around. Where it is
given one identity for CPUs of several kinds, it chooses for that one. errata.tsv has what Linux
chooses, for whom, and what it means to miss it.
"""

from __future__ import annotations

from ..basics.value import Value
from .table import field_of, rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# What a guest suffers that misses a workaround, the worst first.
SEVERITIES = ("corrupting", "hangs", "security", "performance", "none")

# The loop against Spectre BHB runs as often as the CPU needs: K132 is enough for K32.
_LOOP = "ARM64_SPECTRE_BHB_K"

_ALL_FIXED = 0xFFFFFFFF  # REVIDR_EL1
_ARCHITECTURE = 15  # of MIDR_EL1: see the ID registers. All of Linux's models have it.


class Erratum(Value):
    """An erratum, or another reason for a workaround, that Linux finds by MIDR_EL1.

    Attributes:
        name: Kconfig's symbol without CONFIG_, or what errata.tsv says in its place.
        guest: whether a guest can miss the workaround; False where it is for hosts alone.
        severity: one of SEVERITIES.
        classified: whether the kernel's source says so; False where it does not, and the severity
            is the worst to be on the safe side.
        only_where: conditions on fields of ID registers, as errata.tsv has them.
        what: what goes wrong, for people.
    """

    name: str
    guest: bool
    severity: str
    classified: bool
    only_where: tuple[str, ...]
    what: str

    def ruled_out(self, member: Mapping[str, int], guest: Mapping[str, int]) -> bool:
        """Whether ID registers show that a guest suffers nothing from this.

        Args:
            member: register → value that a guest of the member's own host sees.
            guest: register → value that the guest sees on all members.

        A register that is not there rules out nothing.
        """
        return any(
            not _holds(condition, {"member": member, "guest": guest})
            for condition in self.only_where
        )


class _Range(Value):
    """A range of CPUs, as a row has it: struct midr_range, and arm64_midr_revidr in `fixed`.

    Attributes:
        implementer: as in MIDR_EL1.
        parts: first and last, as in MIDR_EL1.
        first, last: variant and revision.
        fixed: (variant, revision) → bits of REVIDR_EL1 that show fixed silicon.
    """

    implementer: int
    parts: tuple[int, int]
    first: tuple[int, int]
    last: tuple[int, int]
    fixed: dict[tuple[int, int], int]

    def has(self, midr: int, revidr: int) -> bool:
        """Whether a CPU is in the range, and not fixed (midr_is_cpu_model_range, is_kryo_midr and
        __is_affected_midr_range of Linux 7.3-rc7, which take the lower 32 bits of both registers).
        """
        revision = midr >> 20 & 0xF, midr & 0xF
        return (
            midr >> 24 & 0xFF == self.implementer
            and midr >> 16 & 0xF == _ARCHITECTURE
            and self.parts[0] <= midr >> 4 & 0xFFF <= self.parts[1]
            and self.first <= revision <= self.last
            and not self.fixed.get(revision, 0) & revidr
        )


class _Entry(Value):
    """The rows of one erratum: which CPUs have it, or which alone have it not."""

    erratum: Erratum
    safe: bool
    ranges: list[_Range]


_entries: dict[str, _Entry] = {}


def errata_of(midr: int, revidr: int) -> list[Erratum]:
    """What Linux works around on a CPU with this MIDR_EL1 and REVIDR_EL1, the worst first.

    These are all that may be: `Erratum.ruled_out` is for those that other ID registers decide, too.

    Sources, of Linux 7.3-rc7: arm64_errata with its is_affected_midr_range,
    is_affected_midr_range_list and cpucap_multi_entry_cap_matches (cpu_errata.c); has_spectre_v2,
    spectre_v2_get_sw_mitigation_cb, has_spectre_v3a, has_spectre_v4, is_spectre_bhb_affected,
    spectre_bhb_loop_affected and spectre_bhb_enable_mitigation (proton-pack.c); what else
    errata.tsv names.
    """
    return [
        entry.erratum
        for entry in _table()
        if any(span.has(midr, revidr) for span in entry.ranges) is not entry.safe
    ]


def missed(
    member_midr: int,
    member_revidr: int | None,
    identity_midr: int,
    identity_revidr: int | None,
) -> list[Erratum]:
    """What Linux works around on a member's CPU, and a guest that sees another identity does not;
    the worst first.

    One loop against Spectre BHB does for another that need not run as often
    (spectre_bhb_loop_affected and max_bhb_k, proton-pack.c of Linux 7.3-rc7).

    Args:
        member_midr, member_revidr: MIDR_EL1 and REVIDR_EL1 of the CPU that the guest runs on.
        identity_midr, identity_revidr: those that it sees.

    A REVIDR_EL1 that is None is unknown: the member counts as not fixed, the identity as fixed.
    """
    member_revidr = 0 if member_revidr is None else member_revidr
    identity_revidr = _ALL_FIXED if identity_revidr is None else identity_revidr
    chosen = {erratum.name for erratum in errata_of(identity_midr, identity_revidr)}
    rounds = max(map(_rounds, chosen), default=0)
    return [
        erratum
        for erratum in errata_of(member_midr, member_revidr)
        if erratum.name not in chosen and not 0 < _rounds(erratum.name) <= rounds
    ]


def _rounds(name: str) -> int:
    """How often the loop runs that an erratum asks for; 0 for those that ask for none."""
    return int(name[len(_LOOP) :]) if name.startswith(_LOOP) else 0


def _holds(condition: str, registers: Mapping[str, Mapping[str, int]]) -> bool:
    """Whether "guest:CTR_EL0.DIC>=1" or "member:ID_AA64PFR0_EL1.CSV2<1" holds, or may hold."""
    whose, _, test = condition.partition(":")
    least = ">=" in test
    place, _, limit = test.partition(">=" if least else "<")
    field = field_of(place)
    value = registers[whose].get(field.register)
    if value is None:
        return True
    number = field.of(value)
    return number >= int(limit) if least else number < int(limit)


def _table() -> list[_Entry]:
    if not _entries:
        entries: dict[str, _Entry] = {}
        for name, *cpus, kind, matters, severity, source, only_where, what in rows("errata.tsv"):
            if name not in entries:
                conditions = () if only_where == "-" else tuple(only_where.split())
                classified = source != "unclear"
                erratum = Erratum(name, matters == "guest", severity, classified, conditions, what)
                entries[name] = _Entry(erratum, kind == "safe", [])
            entries[name].ranges.append(_range(*cpus))
        _entries.update(
            sorted(entries.items(), key=lambda item: SEVERITIES.index(item[1].erratum.severity))
        )
    return list(_entries.values())


def _range(implementer: str, part: str, first: str, last: str, fixed: str) -> _Range:
    low, _, high = part.partition("-")
    silicon = {}
    if fixed != "-":
        revision, _, bits = fixed.partition(":")
        silicon[_revision(revision)] = int(bits, 16)
    return _Range(
        int(implementer, 16),
        (int(low, 16), int(high or low, 16)),
        _revision(first),
        _revision(last),
        silicon,
    )


def _revision(text: str) -> tuple[int, int]:
    """ "r1p2" → (1, 2)."""
    variant, _, revision = text[1:].partition("p")
    return int(variant), int(revision)
