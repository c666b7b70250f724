# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records and targets for people, and as JSON for tools."""

from __future__ import annotations

from ..basics.untrusted import lines, shown
from ..domain.record import Home, Intent, Origin, Record
from ..model.guest_registers import GUEST_REGISTERS
from ..model.target import Level, Pinning, Target
from ..model.vcpu import TARGETS
from ..registers.table import describe, fields_of
from ..registers.text import unpack_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def target_name(target: Target) -> str:
    """ "arm64 target 5 (GENERIC_V8)"."""
    names = {number: name for name, number in TARGETS[target.architecture].items()}
    return f"{target.architecture} target {target.number} ({names.get(target.number, 'unknown')})"


def as_text(title: str, record: Record, every_register: bool, notes: tuple[str, ...] = ()) -> str:
    """A record in a few lines.

    Args:
        title: what it is the record of.
        every_register: with the value and the fields of each register.
        notes: what else there is to say.
    """
    target = record.target
    rows = [
        ("domain", title),
        ("target", f"{target_name(target)}, features {' '.join(target.features) or 'none'}"),
        (
            "QEMU",
            (
                f"-cpu {target.model} on {target.machine}, left to QEMU:"
                f" {' '.join(target.unsaid) or 'nothing'}"
            ),
        ),
        ("guest", f"GIC {target.gic}, PSCI {target.psci}, {target.ipa_bits}-bit addresses"),
        ("pinned", _pinning_text(target)),
        *([("levelled", level_text(target.level))] if target.level else []),
        *([("home", f"its pins were for CPUs {record.home.cpus}")] if record.home else []),
        ("SVE", " ".join(map(str, target.sve_lengths)) or "none"),
        *((name, GUEST_REGISTERS[name].text(value)) for name, value in target.seen.items()),
        (
            "registers",
            (
                f"{len(target.registers)} that identify the vCPU, {len(unpack_ids(target.reglist))}"
                " in all"
            ),
        ),
        ("intent", _intent_text(record.intent)),
        ("made", _origin_text(record.origin)),
        ("profile", record.origin.profile or "none: this host's kernel was asked"),
        *(("note", note) for note in notes),
    ]
    texts = [f"{label:<11} {text}" for label, text in rows]
    if every_register:
        texts += [_register_text(name, value) for name, value in target.registers.items()]
    return lines(texts)


def as_json(record: Record) -> dict[str, Any]:
    """A record as JSON; register values are hexadecimal strings, since JSON's numbers end at
    2^53.
    """
    target, intent, origin = record.target, record.intent, record.origin
    return {
        "target": {
            **target.as_dict(),
            "psci": target.psci,
            "seen": _hex(target.seen),
            "registers": _hex(target.registers),
            "pinning": _pinning_json(target.pinning) if target.pinning else None,
            "level": target.level and {**target.level.as_dict(), "cpus": target.level.cpu_words},
        },
        "intent": {
            "added": intent.added,
            "kept": [kept.decode(errors="replace") for kept in intent.kept],
        },
        "origin": origin.as_dict(),
        "home": _home_json(record.home) if record.home else None,
    }


def _pinning_text(target: Target) -> str:
    if target.pinning is None:
        return "no: it may roam between CPUs of several kinds" if target.roams else "no"
    return f"to CPUs {target.pinning.cpus}, of MIDR {target.pinning.midr:#x}"


def level_text(level: Level | None) -> str:
    """Whether a guest is levelled, and how."""
    if level is None:
        return "no"
    without = f", without {' '.join(level.left_out)}" if level.left_out else ""
    own = f"; {' '.join(level.own)} as the host has it" if level.own else ""
    return f"by libkvmarm-level{without}{own}"


def _intent_text(intent: Intent) -> str:
    words = [" ".join(kept.decode(errors="replace").split()) for kept in intent.kept]
    return " ".join(words) or "none: it was adopted as it is"


def _origin_text(origin: Origin) -> str:
    made = f"for {shown(origin.host)} by {shown(origin.by)}"
    return f"{made}, renewed on {shown(origin.renewed)}" if origin.renewed else made


def _pinning_json(pinning: Pinning) -> dict[str, str | None]:
    return {
        "midr": hex(pinning.midr),
        "revidr": None if pinning.revidr is None else hex(pinning.revidr),
        "cpus": pinning.cpus,
    }


def _home_json(home: Home) -> dict[str, Any]:
    return {**home.as_dict(), "pins": [pin.decode() for pin in home.pins]}


def _hex(values: dict[str, int]) -> dict[str, str]:
    return {name: hex(value) for name, value in values.items()}


def _register_text(name: str, value: int) -> str:
    fields = [f"{field.name}={field.of(value):#x}" for field in fields_of(name) if field.of(value)]
    return f"  {name:<20} {value:#018x}  {' '.join(fields) or describe(name)}".rstrip()
