# SPDX-License-Identifier: LGPL-2.1-or-later
"""Host profiles as JSON: read strictly, by the shape that docs/profile.schema.json states, and
written.

`loads` and `dumps` are inverse. Register values are hexadecimal strings, since JSON's numbers end
at 2^53. There are two schemas, and the second has `unknown`, `page_size` and `gicd_iidr`; a profile
that could be written by the first is, so that its file stays what it was and older programs read
it.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache

from ..basics import cpulist, shape
from ..basics.errors import KvmarmError
from ..basics.shape import Incomplete, Misshapen
from ..basics.untrusted import decimal, shown
from ..registers.text import pack_ids, unpack_ids
from .problem import UNKNOWN_CPUS, Problem
from .profile import PARTS, SINCE_2, Cluster, HostProfile, Vcpu
from .profile_shape import (
    BASE,
    CLUSTER,
    LEVEL,
    LEVEL_CPUS,
    MOST_IDS,
    NOTHING,
    PROBLEM,
    PROFILE,
    QEMU,
    VARIANT,
    level_library_text,
    unknown_parts,
)
from .target import Level, check_left_out, level_cpus
from .vcpu import KVM_ARCHITECTURES, TARGETS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    from ..basics.shape import Shape

SCHEMA_STEM = "urn:kvmarm-plugin:profile:"
SCHEMA_1, SCHEMA = SCHEMA_STEM + "1", SCHEMA_STEM + "2"
SIZE_LIMIT = 10 << 20  # characters; a profile has some ten thousand


class ProfileError(KvmarmError):
    """The document is not a host profile that this program can use."""


def loads(text: str, name: str = "profile") -> HostProfile:
    """A profile from its JSON.

    Args:
        name: of the file, for messages.

    Raises:
        ProfileError: not JSON, not a profile, one of a newer schema, or one with anything in it
            that the schema does not allow.
    """
    if len(text) > SIZE_LIMIT:
        raise ProfileError(
            f"{name} is larger than {SIZE_LIMIT >> 20} MiB",
            "a profile has some KiB",
        )
    try:
        document = json.loads(
            text.removeprefix("\ufeff"),  # as editors on Windows write
            object_pairs_hook=_object,
            parse_int=_whole,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except Misshapen as error:
        raise _broken(name, error) from None
    except (ValueError, RecursionError) as error:
        raise ProfileError(
            f"{name} is not JSON: {error}", "make a profile on the host with: kvmarm probe -o FILE"
        ) from None
    return decode(document, name)


def decode(document: Any, name: str = "profile") -> HostProfile:
    """A profile from its JSON document, read. Raises ProfileError as `loads` does."""
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(schema, str) or not schema.startswith(SCHEMA_STEM):
        raise ProfileError(
            f"{name} is not a host profile", "make one on the host with: kvmarm probe -o FILE"
        )
    if schema not in (SCHEMA_1, SCHEMA):
        raise ProfileError(
            f"{name} has schema {shown(schema, 60)}; this kvmarm knows {SCHEMA}",
            "upgrade kvmarm here, or probe with this version",
        )
    members = {member: value for member, value in document.items() if member != "schema"}
    try:
        if schema == SCHEMA_1:
            profile = _profile(members, SINCE_2)
            if _levels(profile):
                raise Misshapen("it has level or level_library, which came with a newer schema")
            return profile
        if "unknown" not in members:
            raise Incomplete("it has no 'unknown'")
        return _profile(members, unknown_parts(members.pop("unknown"), "unknown"))
    except Misshapen as error:
        raise _broken(name, error) from None


def _broken(name: str, error: Misshapen) -> ProfileError:
    what = "is incomplete" if isinstance(error, Incomplete) else "is broken"
    return ProfileError(f"{name} {what}: {error}", "probe the host again")


def dumps(profile: HostProfile) -> str:
    """The profile as JSON, with a line break at the end."""
    return json.dumps(encode(profile), indent=1) + "\n"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. JSON lets a name come twice, and each reader takes another of the two."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise Misshapen(f"an object of it has {shape.brief(name)} twice")
        found[name] = value
    return found


def _whole(digits: str) -> int:
    try:
        return -decimal(digits[1:], 1 << 63) if digits[0] == "-" else decimal(digits, (1 << 64) - 1)
    except ValueError:
        raise Misshapen(f"a number of it has more than 64 bits: {shown(digits, 40)}") from None


def _no_number(digits: str) -> int:
    raise Misshapen(f"a number of it is not whole: {shown(digits, 40)}")


def _read(
    shapes: dict[str, Shape], unknown: Collection[str], value: Any, place: str
) -> dict[str, Any]:
    """An object of just these members, without those that are unknown: they have nothing."""
    told = {
        name: shape
        for name, shape in shapes.items()
        if name not in unknown or name == "registers"  # there are others besides those there
    }
    found: dict[str, Any] = shape.members(told)(value, place)
    return {name: found[name] if name in told else NOTHING[name] for name in shapes}


def _profile(document: Any, unknown: tuple[str, ...]) -> HostProfile:
    document, level_library = _without(document, "level_library")
    fields = _read(PROFILE, unknown, document, "")
    for value in level_library:
        fields["level_library"] = level_library_text(value, "level_library")
    fields["clusters"] = shape.items(
        lambda value, place: _cluster(value, place, unknown), 16, unique=False
    )(fields["clusters"], "clusters")
    profile = HostProfile(**fields, unknown=unknown).with_unknown()
    if profile.clusters and profile.architecture not in KVM_ARCHITECTURES:
        raise Misshapen(f"a {profile.architecture} host has no clusters with KVM on ARM")
    known = TARGETS[profile.kvm_architecture].values()
    taken: set[int] = set()
    for index, cluster in enumerate(profile.clusters):
        numbers = {
            cluster.target,
            *cluster.models.values(),
            *(vcpu.number for vcpu in cluster.vcpus),
        }
        if not numbers.issubset(known):
            raise Misshapen(
                f"clusters[{index}] has a target that {profile.kvm_architecture} does not have:"
                f" {max(numbers)}"
            )
        cpus = cpulist.parse(cluster.cpus)
        if not taken.isdisjoint(cpus):
            raise Misshapen(f"clusters[{index}].cpus has a CPU of another cluster's")
        taken.update(cpus)
        if cluster.level and not profile.is_baseline:
            raise Misshapen(f"clusters[{index}] is levelled, as no host is by itself")
    problems = tuple(_with_cpus(problem, taken) for problem in profile.problems)
    return profile.replace(problems=problems)


_PART_OF_CLUSTER = re.compile("cluster ([0-9,-]+)")


def _with_cpus(problem: Problem, measured: set[int]) -> Problem:
    """A problem with its CPUs. Profiles were written without, and then its words have them."""
    if problem.cpus:
        return problem
    of_cluster = _PART_OF_CLUSTER.fullmatch(problem.part)
    told = problem.message.rpartition(" ")[2] if problem.part == UNKNOWN_CPUS else ""
    text = of_cluster[1] if of_cluster else told
    try:
        cpus = cpulist.parse(text)
    except ValueError:
        return problem
    return problem if measured.issuperset(cpus) else problem.replace(cpus=cpulist.write(cpus))


def _without(value: Any, member: str) -> tuple[Any, list[Any]]:
    """An object without a member that few have, and that member if it has it."""
    if not isinstance(value, dict) or member not in value:
        return value, []
    return {name: item for name, item in value.items() if name != member}, [value[member]]


def _cluster(value: Any, place: str, unknown: tuple[str, ...]) -> Cluster:
    value, level = _without(value, "level")
    fields = _read(CLUSTER, unknown, value, place)
    base = _read(BASE, unknown, fields.pop("base"), f"{place}.base")
    variants = shape.items(
        lambda value, place: _read(VARIANT, unknown, value, place), 127, unique=False
    )(fields.pop("variants"), f"{place}.variants")
    first = Vcpu(base["target"], base["features"], base["registers"], base["reglist"])
    vcpus = (
        first,
        *(
            _apply(first, variant, f"{place}.variants[{index}]")
            for index, variant in enumerate(variants)
        ),
    )
    if len({(vcpu.number, vcpu.features) for vcpu in vcpus}) < len(vcpus):
        raise Misshapen(f"{place} has two vCPUs of the same target and features")
    for told in level:
        fields["level"] = _level(told, f"{place}.level", vcpus)
    return Cluster(vcpus=vcpus, **fields)


def _level(value: Any, place: str, vcpus: tuple[Vcpu, ...]) -> Level:
    """How guests of any of these vCPUs are levelled."""
    value, told = _without(value, "cpus")
    level = Level(**shape.members(LEVEL)(value, place))
    for cpus in told:
        level = level.replace(cpus=level_cpus(LEVEL_CPUS(cpus, f"{place}.cpus")))
    for vcpu in vcpus:
        try:
            check_left_out(level, vcpu.registers, vcpu.reglist)
        except ValueError as error:
            raise Misshapen(f"{place} has {error}") from None
    return level


def _apply(base: Vcpu, variant: dict[str, Any], place: str) -> Vcpu:
    """A variant in full."""
    registers = {
        name: value
        for name, value in {**base.registers, **variant["registers"]}.items()
        if value is not None
    }
    changes = variant["reglist"] or {"added": "", "removed": ""}
    reglist = _changed(base.reglist, changes["added"], changes["removed"])
    if reglist is None:
        raise Misshapen(
            f"{place}.reglist adds what the base has, removes what it does not have, or is too long"
        )
    return Vcpu(variant["target"], variant["features"], registers, reglist)


@lru_cache(maxsize=256)  # a fleet of hosts has a few such lists
def _changed(reglist: str, added: str, removed: str) -> str | None:
    """A packed register list with some ids, which it does not have, and without others, which it
    has; else None.
    """
    known, more, less = map(unpack_ids, (reglist, added, removed))
    if more & known or not less <= known or len(known) + len(more) - len(less) > MOST_IDS:
        return None
    return pack_ids(known - less | more) if more or less else reglist


def encode(profile: HostProfile) -> dict[str, Any]:
    """The inverse of `decode`."""
    unknown = profile.unknown
    document = {name: getattr(profile, name) for name in PROFILE if name not in unknown}
    document["clusters"] = [_encode_cluster(cluster, unknown) for cluster in profile.clusters]
    document["problems"] = [
        {name: getattr(problem, name) for name in PROBLEM}
        | ({"cpus": problem.cpus} if problem.cpus else {})
        for problem in profile.problems
    ]
    if profile.qemu:
        document["qemu"] = {name: getattr(profile.qemu, name) for name in QEMU}
    if profile.gicd_iidr is not None:
        document["gicd_iidr"] = hex(profile.gicd_iidr)
    if profile.level_library:
        document["level_library"] = profile.level_library
    if unknown == SINCE_2 and not _levels(profile):
        return {"schema": SCHEMA_1, **document}
    return {"schema": SCHEMA, "unknown": unknown, **document}


def _levels(profile: HostProfile) -> bool:
    """Whether a profile tells of levelling, which those of the first schema do not."""
    return bool(profile.level_library) or any(cluster.level for cluster in profile.clusters)


def _encode_cluster(cluster: Cluster, unknown: tuple[str, ...]) -> dict[str, Any]:
    base, *others = cluster.vcpus
    document = {
        "cpus": cluster.cpus,
        "implementer": cluster.implementer,
        "part": cluster.part,
        "midr": hex(cluster.midr),
        "revidr": None if cluster.revidr is None else hex(cluster.revidr),
        "capacity": cluster.capacity,
        "target": cluster.target,
        "models": cluster.models,
        "sve_lengths": cluster.sve_lengths,
        "seen": _hexes(cluster.seen),
        "base": _told(
            {**_head(base), "registers": _hexes(base.registers), "reglist": base.reglist}, unknown
        ),
        "variants": [_told(_difference(base, vcpu), unknown) for vcpu in others],
        "writable": None if cluster.writable is None else _hexes(cluster.writable),
    }
    if cluster.level is not None:
        level: dict[str, Any] = {"left_out": cluster.level.left_out}
        if cluster.level.cpus:
            level["cpus"] = cluster.level.cpu_words
        document["level"] = level
    return _told(document, unknown)


def _told(document: dict[str, Any], unknown: tuple[str, ...]) -> dict[str, Any]:
    """A part of a document without what is unknown; "registers" says that there are others."""
    return {
        name: value
        for name, value in document.items()
        if name not in unknown or name == "registers"
    }


def _head(vcpu: Vcpu) -> dict[str, Any]:
    return {"target": vcpu.number, "features": vcpu.features}


def _difference(base: Vcpu, vcpu: Vcpu) -> dict[str, Any]:
    """What a vCPU has otherwise than the base: null for a register it does not have."""
    changed = {
        name: value for name, value in vcpu.registers.items() if base.registers.get(name) != value
    }
    gone = {name: None for name in base.registers if name not in vcpu.registers}
    here, there = unpack_ids(vcpu.reglist), unpack_ids(base.reglist)
    reglist = {"added": pack_ids(here - there), "removed": pack_ids(there - here)}
    return {**_head(vcpu), "registers": {**_hexes(changed), **gone}, "reglist": reglist}


def _hexes(values: dict[str, int]) -> dict[str, str]:
    return {name: hex(value) for name, value in values.items()}


def digest(profile: HostProfile) -> str:
    """A name for what a host gives to guests, "sha256:…": the same for hosts that differ in name
    only, and for the same host probed again, also by a program that knew the first schema only.
    """
    unknown = tuple(part for part in PARTS if part in profile.unknown or part in SINCE_2)
    facts = encode(profile.replace(page_size=0, gicd_iidr=None, level_library="", unknown=unknown))
    for personal in ("name", "origin", "made_by", "problems"):
        del facts[personal]
    return "sha256:" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
