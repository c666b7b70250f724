# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `kvmarm refresh`, `adopt` and `forget` change, for people and as JSON."""

from __future__ import annotations

import json
from typing import NamedTuple

from ..basics.untrusted import lines, shown
from ..domain import record
from ..domain.pins import cpus_of, pins_of, thread_of
from ..judge.contradictions import find_contradictions
from ..judge.wording import texts
from ..model.guest_registers import GUEST_REGISTERS
from ..registers.rules import differing_fields
from ..registers.table import describe, name_of
from ..registers.text import unpack_ids
from .show_view import level_text, target_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..domain.xml import Element
    from ..model.target import Target

KEPT, CHANGES, CHANGED = "kept", "would change", "changed"
UNRESOLVED, UNTOLD, FAILED = "cannot be resolved", "not known", "error"
FORGETS, FORGOTTEN = "would be forgotten", "forgotten"
RESTORES, RESTORED = "would be restored", "restored"
ADOPTS, ADOPTED = "would be adopted", "adopted"
BARE = "has no record"

_PLANNED = (CHANGES, FORGETS, RESTORES, ADOPTS)

_SHOWN = 6  # registers of a list
_TEXT = 500  # characters of each part of a difference


class Difference(NamedTuple):
    """What differs, what it was and what it is; all in words."""

    what: str
    before: str
    after: str


class Outcome(NamedTuple):
    """What became of a record: one of the results above, with what changes, and what else there is
    to say: why it cannot, or what follows.
    """

    result: str
    differences: tuple[Difference, ...] = ()
    reason: str = ""


class Guest(NamedTuple):
    """A domain, and what became of its stored and its live record, where it has them."""

    name: str
    uuid: str
    stored: Outcome | None
    running: Outcome | None


def as_text(guests: list[Guest]) -> str:
    """A line a guest; below it what would change, where nothing was changed."""
    text = []
    for guest in guests:
        parts = [("", guest.stored), ("as it runs: ", guest.running)]
        text.append(
            f"{shown(guest.name)}: "
            + "; ".join(f"{which}{_said(part)}" for which, part in parts if part)
        )
        for which, part in parts:
            if part and part.result in _PLANNED:
                text += [f"  {which}{_told(difference)}" for difference in part.differences]
    return lines(text)


def as_json(guests: list[Guest]) -> str:
    """The same for tools, always with what changes."""
    return (
        json.dumps(
            {
                "guests": [
                    {
                        "name": guest.name,
                        "uuid": guest.uuid,
                        "stored": _plain(guest.stored),
                        "running": _plain(guest.running),
                    }
                    for guest in guests
                ]
            },
            indent=1,
        )
        + "\n"
    )


def domain_differences(before: Element, after: Element) -> list[Difference]:
    """What differs between a domain with a record and the same resolved anew: in the record, and
    where the XML had been edited away from it.

    Raises:
        KvmarmError: one of them cannot be read.
    """
    old, new = record.find_all(before), record.find_all(after)
    found = []
    if [element.name for element in old] != [element.name for element in new]:
        found.append(Difference("record", _versions(old), _versions(new)))
    target = record.read(new[0]).target
    try:
        recorded = record.read(old[0]).target
    except record.RecordError as error:
        return [*found, Difference("record", f"broken: {error.message}", "made anew")]
    kept = find_contradictions(after, recorded)  # what the user wants so
    for finding in find_contradictions(before, recorded):
        if finding in kept:
            continue
        said = texts(finding)
        found.append(
            Difference(f"{said['subject']} {said['meaning']}", said["local"], "as recorded")
        )
    if _pins(before) != _pins(after):
        found.append(Difference("pins", _pins_text(before), _pins_text(after)))
    return found + target_differences(recorded, target)


def target_differences(before: Target, after: Target) -> list[Difference]:
    """What differs between two targets of a guest."""
    features = [
        Difference(f"feature {feature}", *("on" if feature in t.features else "off" for t in both))
        for both in [(before, after)]
        for feature in dict.fromkeys((*before.features, *after.features))
        if (feature in before.features) != (feature in after.features)
    ]
    pairs = [
        ("CPU model", before.model, after.model),
        ("machine type", before.machine, after.machine),
        ("vCPU", target_name(before), target_name(after)),
        ("left to QEMU", _list(before.unsaid), _list(after.unsaid)),
        ("GIC", str(before.gic), str(after.gic)),
        ("IPA size", f"{before.ipa_bits} bits", f"{after.ipa_bits} bits"),
        ("SVE lengths", _list(before.sve_lengths), _list(after.sve_lengths)),
        ("kinds of CPU", _kinds(before), _kinds(after)),
        ("levelled", *(level_text(target.level) for target in (before, after))),
    ]
    return [
        *features,
        *(Difference(*pair) for pair in pairs if pair[1] != pair[2]),
        *_register_differences(before.registers, after.registers),
        *_seen_differences(before.seen, after.seen),
        *_list_differences(before, after),
    ]


def adoption_differences(before: Target | None, after: Target) -> list[Difference]:
    """What is recorded of a guest that never asked for host-model."""
    if before is not None:
        return target_differences(before, after)
    sve = f", SVE {_list(after.sve_lengths)}" if after.sve_lengths else ""
    what = f"{after.model} on {after.machine}, {target_name(after)}, {_list(after.features)}{sve}"
    return [Difference("record", "none", what)]


def _register_differences(before: dict[str, int], after: dict[str, int]) -> list[Difference]:
    found = []
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        fields = [] if old is None or new is None else differing_fields(name, old, new)
        if old is None or new is None or not fields:
            meaning = describe(name)
            title = f"{name} ({meaning})" if meaning else name
            found.append(Difference(title, _value(old), _value(new)))
            continue
        found += [
            Difference(
                f"{name}.{field.name} ({field.meaning})"
                if field.meaning
                else f"{name}.{field.name}",
                f"{field.of(old):#x}",
                f"{field.of(new):#x}",
            )
            for field in fields
        ]
    return found


def _seen_differences(before: dict[str, int], after: dict[str, int]) -> list[Difference]:
    """What a guest reads, in the words that `show` has for it, where they tell it."""
    found = []
    for name in dict.fromkeys((*before, *after)):
        say = GUEST_REGISTERS[name].text
        old, new = (say(values[name]) if name in values else "none" for values in (before, after))
        if say is hex or old == new:
            both = ({name: each[name]} if name in each else {} for each in (before, after))
            found += _register_differences(*both)
        else:
            found.append(Difference(f"{name} ({describe(name)})", old, new))
    return found


def _list_differences(before: Target, after: Target) -> list[Difference]:
    if before.reglist == after.reglist:
        return []
    old, new = unpack_ids(before.reglist), unpack_ids(after.reglist)
    words = [
        f"{word} {_names(ids)}"
        for word, ids in (("with", new - old), ("without", old - new))
        if ids
    ]
    return [
        Difference(
            "register list", f"{len(old)} registers", f"{len(new)} registers, {', '.join(words)}"
        )
    ]


def _names(ids: frozenset[int]) -> str:
    names = [name_of(reg) for reg in sorted(ids)]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _value(value: int | None) -> str:
    return "none" if value is None else f"{value:#x}"


def _list(items: tuple[object, ...]) -> str:
    return " ".join(map(str, items)) or "none"


def _kinds(target: Target) -> str:
    """Which of the kinds of CPU of a host the guest may run on."""
    pinning = target.pinning
    if pinning:
        return f"MIDR {pinning.midr:#x}, CPUs {pinning.cpus}"
    return "any, as was chosen" if target.roams else "the one of the host"


def _pins(domain: Element) -> dict[object, int]:
    return {thread_of(pin): cpus_of(pin) for pin in pins_of(domain)}


def _pins_text(domain: Element) -> str:
    cpusets = dict.fromkeys(shown(pin.attributes["cpuset"], 60) for pin in pins_of(domain))
    return f"CPUs {' and '.join(cpusets)}" if cpusets else "none"


def _versions(records: list[Element]) -> str:
    return " and ".join(
        "version " + element.name.partition(" ")[0][len(record.NAMESPACE_STEM) :]
        for element in records
    )


def _said(part: Outcome) -> str:
    # Findings of a pool come with a reason each.
    return f"{part.result}: {shown(part.reason, 3 * _TEXT)}" if part.reason else part.result


def _told(difference: Difference) -> str:
    what, before, after = (shown(text, _TEXT) for text in difference)
    return f"{what}: {before} → {after}"


def _plain(part: Outcome | None) -> dict[str, Any] | None:
    if part is None:
        return None
    return {
        "result": part.result,
        "reason": part.reason,
        "differences": [difference._asdict() for difference in part.differences],
    }
