# SPDX-License-Identifier: LGPL-2.1-or-later
"""The vCPU that hosts of different CPUs or kernels can all give to a guest, if its registers are
levelled.

A register gets the value that the kernel's own rules make of the hosts' (`rules.safe_value`), and
the kernel of each has to take it (`rules.accepts`). What user space may not write has to be the
same everywhere.
"""

from __future__ import annotations

from functools import reduce

from ..basics.untrusted import some
from ..model.profile import Vcpu
from ..model.target import sve_bitmap
from ..registers.left_out import may_be_left_out, sign_of
from ..registers.rules import IDENTITIES_SINCE, IMPLEMENTATION_ID, OF_THE_HOST, safe_value
from ..registers.table import describe, fields_of, id_of, is_identity, name_of
from ..registers.text import pack_ids
from .common_ground import common_sve_lengths
from .member import NEWEST, Member
from .unlevelled import UNKNOWN, Unlevelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from .member import FeatureSet

    Made = tuple[Vcpu, frozenset[str]]  # with the names of what it is without

_LEAST: FeatureSet = ("psci_0_2",)  # the vCPU that every host makes

# Registers of firmware, by what is common to their values.
_SMALLER = ("PSCI_VERSION",)
_BITS = ("STD_BMAP", "STD_HYP_BMAP", "VENDOR_HYP_BMAP", "VENDOR_HYP_BMAP_2")


def common_features(members: list[Member]) -> list[FeatureSet]:
    """The sets of features with which every host makes a vCPU for QEMU's "host", as far as is
    known.
    """
    # A host of which all vCPUs are known makes no others.
    known = [member for member in members if member.knows("vcpus")]
    sets = dict.fromkeys(
        vcpu.features
        for member in known[:1] or members
        for vcpu in member.cluster.vcpus
        if vcpu.number == member.cluster.target
    )
    if not known:
        sets[_LEAST] = None
    return [features for features in sets if all(member.makes(features) for member in members)]


def level_vcpu(
    members: list[Member], features: FeatureSet, model: Member
) -> Made | list[Unlevelled]:
    """The vCPU of these features that all can give, with the names of what it is without; or why
    there is none.
    """
    vcpus = [member.vcpu(features) for member in members]
    registers: dict[str, int] = {}
    failed: dict[str, int | None] = {}
    for name in dict.fromkeys(name for vcpu in vcpus for name in vcpu.registers):
        told = [(m, vcpu.registers) for m, vcpu in zip(members, vcpus) if name in vcpu.registers]
        own = [known[name] for _, known in told]
        of_model = model.vcpu(features).registers.get(name)
        wanted = _common_value(name, own, own[0] if of_model is None else of_model)
        # Whoever's identity it is, the model's is the one that all see.
        others = () if name in IMPLEMENTATION_ID and of_model is not None else own
        possible = [
            value
            for value in dict.fromkeys([wanted, *others])
            if all(member.takes(name, value, known) for member, known in told)
        ]
        lacking = any(member.lacks(name, features) for member in members)
        if name == "SVE_VLS":
            lengths = sve_lengths_of(members)
            if lengths is not None:
                registers[name] = sve_bitmap(lengths)
        elif lacking or not possible:
            failed[name] = None if lacking else wanted
        elif len(told) == len(members):
            registers[name] = possible[0]
    lists = [member.reglist(features) for member in members]
    known_lists = [listed for listed in lists if listed is not None] or [frozenset()]
    listed = known_lists[0].intersection(*known_lists[1:])
    some_list = frozenset(map(name_of, known_lists[0].union(*known_lists[1:]) - listed))
    without = some_list.union(failed)
    found: list[Unlevelled] = []
    for name in sorted(without, key=id_of):
        if not can_leave_out(name, registers, members, features):
            wanted_value = failed.get(name)
            found += (
                [_not_listed(name, members, features)]
                if wanted_value is None
                else _not_taken(name, wanted_value, members, vcpus)
            )
    if found:
        return found
    reglist = pack_ids(listed - frozenset(map(id_of, without)))
    return Vcpu(model.cluster.target, features, registers, reglist), without


def can_leave_out(
    name: str, registers: dict[str, int], members: list[Member], features: FeatureSet
) -> bool:
    """Whether a guest with these registers loses nothing without another, as far as is known.

    Args:
        registers: that all can give; those of which some host's value is unknown are not there.
    """
    if may_be_left_out(name, registers):
        return True
    sign = sign_of(name)
    if sign is None or not any(member.may_have(sign[0].register, features) for member in members):
        return False
    field, value = sign
    for member in members:
        own = member.vcpu(features).registers
        if field.register in own and field.of(own[field.register]) != value:
            lowered = field.put(own[field.register], value)
            if not member.takes(field.register, lowered, own):
                return False
    return True


def sve_lengths_of(members: list[Member]) -> tuple[int, ...] | None:
    """The vector lengths that all give; None where some host's are unknown."""
    if all(member.knows("sve_lengths") for member in members):
        return common_sve_lengths([member.cluster for member in members])
    return None


def _common_value(name: str, values: list[int], model: int) -> int:
    """What all of these values of a register have in common, by the kernel's rules; where there is
    none, the model's.
    """
    if name in _SMALLER:
        return min(values)
    if name in _BITS:
        return reduce(int.__and__, values)
    value = model
    for field in fields_of(name) if name not in IMPLEMENTATION_ID else ():
        parts = [field.of(each) for each in values]
        if len({*parts}) > 1 and field.policy != "-":
            safe = reduce(lambda ours, theirs: safe_value(field, ours, theirs), parts)
            value = field.put(value, safe)
    return value


def _not_listed(name: str, members: list[Member], features: FeatureSet) -> Unlevelled:
    def has(member: Member) -> bool | None:
        listed = member.reglist(features)
        if listed is not None:
            return id_of(name) in listed
        if name in member.vcpu(features).registers:
            return True
        is_told = is_identity(id_of(name)) and member.lacks(name, features)
        return False if is_told else None

    said = {True: "there", False: "missing", None: UNKNOWN}
    values = {member.host.name: said[has(member)] for member in members}
    return Unlevelled(
        name,
        describe(name),
        values,
        "QEMU does not load a register that the destination's KVM does not have, and a guest may"
        " need it",
        "the same Linux on all hosts may help",
    )


def _not_taken(
    name: str, wanted: int, members: list[Member], vcpus: list[Vcpu]
) -> list[Unlevelled]:
    """Why a register cannot have one value on all hosts, by field."""
    told = [(m, vcpu.registers) for m, vcpu in zip(members, vcpus) if name in vcpu.registers]
    own = {member.host.name: registers[name] for member, registers in told}
    refusing = [
        (member, registers)
        for member, registers in told
        if not member.takes(name, wanted, registers)
    ]

    def values(text: Callable[[int], str]) -> dict[str, str]:
        names = (member.host.name for member in members)
        return {host: text(own[host]) if host in own else UNKNOWN for host in names}

    names = some([member.host.name for member, _ in refusing])
    if name in IMPLEMENTATION_ID:
        since = ".".join(map(str, IDENTITIES_SINCE))
        return [
            Unlevelled(
                name,
                describe(name),
                values(hex),
                f"KVM lets user space write it since Linux {since}",
                f"Linux {since} or newer on {names}",
            )
        ]
    helps = all(member.would_take(name, wanted, registers) for member, registers in refusing)
    remedy = f"Linux {NEWEST.rpartition('.')[0]} or newer on {names} may help" if helps else ""
    fields = {
        field.name: field
        for member, registers in refusing
        for field in member.refused_fields(name, wanted, registers[name])
    }
    strict = [m.host.name for m, registers in refusing if m.refuses(name, wanted, registers)]
    if name in OF_THE_HOST:
        why = (
            "KVM refuses more than its host has, and where it takes less, it still answers what its"
            " host has (kvm_arm_set_fw_reg, kvm_arm_get_fw_reg)"
        )
        remedy = "the same firmware and the same Linux on all hosts may help"
    elif strict:
        why = f"KVM on {some(strict)} does not let user space write a value that all have"
    else:
        why = f"KVM on {names} takes a value that all have, and does not keep it"
    return [
        Unlevelled(
            f"{name}.{field.name}",
            field.meaning,
            values(lambda value, field=field: hex(field.of(value))),  # type: ignore[misc]
            why,
            remedy,
        )
        for field in fields.values()
    ] or [Unlevelled(name, describe(name), values(hex), why, remedy)]
