# SPDX-License-Identifier: LGPL-2.1-or-later
"""The registers that a guest of a few instructions reads on a host (kvm.scratch.run_guest): a row
for each.

CNTFRQ_EL0 and DCZID_EL0 have no register id in KVM. The others have one, but there the guest may
see something else: MIDR_EL1 is the physical CPU's on kernels that do not virtualise it, CTR_EL0 may
be trapped, PMCR_EL0.N is the PMU's. Their encodings are in registers/registers.tsv.
"""

from __future__ import annotations

from ..basics.value import Value
from .features import PMU, Feature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any, Callable, Optional, TypeVar

    T = TypeVar("T")
    Difference = Optional[tuple[str, dict[str, Any]]]


class GuestRegister(Value):
    """A row.

    Attributes:
        needs: the vCPU feature without which reading it is an exception; None where every guest
            reads it.
        text: its value → for people.
        compare: the value that a guest read first, the one that it reads on another host, and the
            host's name → the kind of finding that this is (judge/findings.tsv), with what the
            finding says besides the register and the two values, or in place of them; None where
            the guest goes on as it did.
        fixed: what it is, for people, where it is the hardware's or the firmware's and nothing
            levels hosts that differ in it for certain; else empty.
        of_firmware: whether firmware sets it.
    """

    needs: Feature | None
    text: Callable[[int], str]
    compare: Callable[[int, int, str], Difference]
    fixed: str = ""
    of_firmware: bool = False


def frequency(rate: int) -> str:
    """A rate in Hz for people: exactly, as two that differ have to look different.

    >>> frequency(62_500_000)
    '62.5 MHz'
    """
    whole, rest = divmod(rate, 1_000_000)
    return f"{whole}.{rest:06}".rstrip("0").rstrip(".") + " MHz"


def readable(registers: dict[str, T], features: Collection[str]) -> dict[str, T]:
    """Those of GUEST_REGISTERS, or of what was read of them, that a guest with these vCPU features
    can read; the others are undefined there, and an exception.
    """
    undefined = [
        name
        for name, register in GUEST_REGISTERS.items()
        if register.needs and not register.needs.is_in(features)
    ]
    return {name: value for name, value in registers.items() if name not in undefined}


def is_unread(seen: Collection[str]) -> bool:
    """Whether nothing tells one of the registers that every guest reads, and KVM has no id for:
    whether a guest of arm64 goes on elsewhere as it did is not known then.

    Args:
        seen: names of those that were read.
    """
    return any(row.fixed and name not in seen for name, row in GUEST_REGISTERS.items())


def _compare_timer(recorded: int, local: int, host: str) -> Difference:
    if local == recorded:
        return None
    if not recorded or not local:  # firmware has not set it: nobody knows how fast it counts
        return "timer-frequency-zero", {"host": host}
    return "timer-frequency", {"speed": local / recorded, "host": host}


def _compare_block(recorded: int, local: int, host: str) -> Difference:
    return None if local == recorded else ("zero-block-size", {"host": host})


def _compare_counters(recorded: int, local: int, _host: str) -> Difference:
    """More counters than it knows of do not disturb a guest."""
    ours, theirs = _counters(recorded), _counters(local)
    return ("pmu-counters", {"recorded": ours, "local": theirs}) if theirs < ours else None


def _compare_elsewhere(_recorded: int, _local: int, _host: str) -> Difference:
    """KVM has a register of this name, which is judged (judge/registers.py)."""
    return None


def _block_text(dczid: int) -> str:
    return "DC ZVA prohibited" if dczid & 16 else f"DC ZVA clears {4 << (dczid & 15)} bytes"


def _counters(pmcr: int) -> int:
    return pmcr >> 11 & 31


GUEST_REGISTERS = {
    "CNTFRQ_EL0": GuestRegister(
        None,
        frequency,
        _compare_timer,
        "timer frequency",
        of_firmware=True,
    ),
    "DCZID_EL0": GuestRegister(None, _block_text, _compare_block, "DC ZVA block size"),
    "CTR_EL0": GuestRegister(None, hex, _compare_elsewhere),
    "MIDR_EL1": GuestRegister(None, hex, _compare_elsewhere),
    "PMCR_EL0": GuestRegister(
        PMU, lambda value: f"{_counters(value)} event counters", _compare_counters
    ),
}
