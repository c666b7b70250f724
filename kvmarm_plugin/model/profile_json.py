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
from functools import lru_cache

from ..basics import cpulist, shape
from ..basics.errors import KvmarmError
from ..basics.shape import Incomplete, Misshapen
from ..basics.untrusted import decimal, shown
from ..registers.table import bits_of, id_of, is_identity, name_of
from ..registers.text import pack_ids, unpack_ids
from .features import CPU_FEATURES
from .guest_registers import GUEST_REGISTERS
from .problem import Problem
from .profile import PARTS, SINCE_2, Cluster, HostProfile, Qemu, Vcpu
from .target import Level, check_left_out
from .vcpu import TARGETS, VCPU_FEATURES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    from ..basics.shape import Shape

SCHEMA_STEM = "urn:kvmarm-plugin:profile:"
SCHEMA_1, SCHEMA = SCHEMA_STEM + "1", SCHEMA_STEM + "2"
SIZE_LIMIT = 10 << 20  # characters; a profile has some ten thousand
_FEATURES = VCPU_FEATURES["arm64"]  # those of 32-bit hosts are among them
_MOST_IDS = 2048  # registers of a vCPU, which has some 400

_CPU_FEATURES = sorted(feature.libvirt for feature in CPU_FEATURES)

# What values look like: `probe` takes no others from firmware and QEMU. docs/profile.schema.json
# has the same.
NAME, LINE = 255, 4096  # characters of a name, and of a longer text
KERNEL = r"[0-9]{1,4}\.[0-9]{1,4}([.+-].*)?"
OVERRIDE = r"(arm64\.|id_aa64|kvm-arm\.).*"
MACHINE = r"virt-[A-Za-z0-9._-]{1,59}"
QEMU_NAME = r"[A-Za-z0-9._+-]{1,64}"  # of a CPU model, a property or an alias
PAGE_SIZES = (4096, 16384, 65536)  # in bytes; those that arm64 has, and 32-bit hosts the first
CPU_FEATURE = "|".join([*_CPU_FEATURES, "sve[0-9]{1,4}"])


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
        return _profile(members, _unknown(members.pop("unknown"), "unknown"))
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


@lru_cache(maxsize=1024)
def _known(name: str) -> tuple[str, int]:
    """The name that a register has by now (it may have been written before the table knew it), and
    its width in bits; no name for what is no register that identifies a vCPU.
    """
    try:
        reg = id_of(name)
    except ValueError:
        return "", 0
    return (name_of(reg), bits_of(reg)) if is_identity(reg) else ("", 0)


def _register(value: Any, place: str) -> str:
    name, _ = _known(value) if type(value) is str and len(value) <= 32 else ("", 0)
    if not name:
        raise Misshapen(f"{place} is no register that identifies a vCPU")
    return name


def _registers(value: Any, place: str) -> dict[str, int | None]:
    """Each register's value, no wider than the register; null is for one that a variant does not
    have.
    """
    found: dict[str, Any] = shape.table(_register, lambda value, _: value, 1024)(value, place)
    if len(found) < len(value):
        raise Misshapen(f"{place} has a register twice, under two names")
    return {
        name: _value_of(_known(name)[1])(value, shape.within(place, name))
        for name, value in found.items()
    }


@lru_cache(maxsize=16)
def _value_of(bits: int) -> Shape:
    return shape.maybe(shape.hexadecimal(bits))


def _values(value: Any, place: str) -> dict[str, int]:
    """`_registers` without null."""
    found: dict[str, int] = {}
    for name, number in _registers(value, place).items():
        if number is None:
            raise shape.wrong(shape.within(place, name), None, "a hexadecimal number")
        found[name] = number
    return found


def _reglist(value: Any, place: str) -> str:
    if type(value) is not str or len(value) > 16384 or not _is_packed(value):
        raise shape.wrong(place, value, "a packed list of register ids")
    return value


# A fleet of hosts has a few such lists, and packing one takes longer than reading the rest of a
# profile.
@lru_cache(maxsize=256)
def _is_packed(reglist: str) -> bool:
    """Whether a list is packed in the one way in which `pack_ids` does it: equal lists are equal
    text.
    """
    try:
        ids = unpack_ids(reglist)
    except ValueError:
        return False
    return len(ids) <= _MOST_IDS and max(ids, default=0) < 1 << 64 and pack_ids(ids) == reglist


def _features(value: Any, place: str) -> tuple[str, ...]:
    found: tuple[str, ...] = shape.items(shape.text(NAME), len(_FEATURES))(value, place)
    if found != tuple(feature for feature in _FEATURES if feature in found):
        raise Misshapen(
            f"{place} are not vCPU features in the order of their bits, which are"
            f" {', '.join(_FEATURES)}"
        )
    return found


def _unknown(value: Any, place: str) -> tuple[str, ...]:
    found: tuple[str, ...] = shape.items(shape.text(NAME), len(PARTS))(value, place)
    if found != tuple(part for part in PARTS if part in found):
        raise Misshapen(
            f"{place} are not parts of a profile in their order, which are {', '.join(PARTS)}"
        )
    return found


def _cpus(value: Any, place: str) -> str:
    found: str = shape.text(
        1 << 17,
        r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*",
        "numbers of CPUs, such as 0-3,6",
    )(value, place)
    try:
        cpulist.parse(found)
    except ValueError:
        raise shape.wrong(place, value, "numbers of CPUs, such as 0-3,6") from None
    return found


def _sve_lengths(value: Any, place: str) -> tuple[int, ...]:
    found: tuple[int, ...] = shape.items(shape.whole(128, 2048), 16)(value, place)
    if any(length % 128 for length in found) or list(found) != sorted(found):
        raise Misshapen(f"{place} are not vector lengths in bits, multiples of 128 and ascending")
    return found


def _gic_versions(value: Any, place: str) -> tuple[int, ...]:
    found: tuple[int, ...] = shape.items(shape.whole(2, 3), 2)(value, place)
    if list(found) != sorted(found):
        raise Misshapen(f"{place} are not ascending")
    return found


def _page_size(value: Any, place: str) -> int:
    if type(value) is not int or value not in PAGE_SIZES:
        raise shape.wrong(place, value, f"a page size in bytes: {', '.join(map(str, PAGE_SIZES))}")
    return value


_name, _line = shape.text(NAME), shape.text(LINE)

_hex = shape.hexadecimal(64)

_target = shape.whole(0, 255)

_model = shape.text(64, QEMU_NAME, "a name of QEMU's")

_machine = shape.text(64, MACHINE, "a versioned virt machine type")

_BASE: dict[str, Shape] = {
    "target": _target,
    "features": _features,
    "registers": _values,
    "reglist": _reglist,
}

_VARIANT: dict[str, Shape] = {
    "target": _target,
    "features": _features,
    "registers": _registers,
    "reglist": shape.members({"added": _reglist, "removed": _reglist}),
}

_CLUSTER: dict[str, Shape] = {
    "cpus": _cpus,
    "implementer": _name,
    "part": _name,
    "midr": _hex,
    "revidr": shape.maybe(_hex),
    "capacity": shape.maybe(shape.whole(1, 1024)),
    "target": _target,
    "models": shape.table(_model, _target, 64),
    "sve_lengths": _sve_lengths,
    "seen": shape.table(
        shape.text(NAME, "|".join(GUEST_REGISTERS), "a register that guests are asked for"),
        _hex,
        64,
    ),
    "base": lambda value, place: value,  # both read by `_cluster`
    "variants": lambda value, place: value,
    "writable": shape.maybe(_values),
}

_QEMU: dict[str, Shape] = {
    "binary": shape.text(LINE, "/.*", "an absolute path"),
    "version": shape.text(NAME, r"[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}", "a version such as 10.0.2"),
    "machines": shape.items(_machine, 1024),
    "aliases": shape.table(_model, _machine, 64),
    "cpu_models": shape.items(_model, 4096),
    "host_properties": shape.table(
        _model, shape.either(shape.flag, shape.whole(-(1 << 63), (1 << 64) - 1), _line), 4096
    ),
}

_PROFILE: dict[str, Shape] = {
    "name": _name,
    "origin": shape.text(
        LINE, "measured|(hand-made|imported): .+|baseline of .+", "measured, or where it is from"
    ),
    "made_by": _name,
    "architecture": shape.text(64, "[A-Za-z0-9_.-]+", "what uname -m gives"),
    "kernel": shape.text(NAME, KERNEL, "a release such as 6.12.0"),
    "overrides": shape.items(
        shape.text(NAME, OVERRIDE, "a word that lowers what CPUs offer"), 255, unique=False
    ),
    "platform": _name,
    "capabilities": shape.table(
        shape.text(64, "[A-Z0-9_]+", "a capability of KVM's"), shape.whole(1, (1 << 31) - 1), 255
    ),
    "ipa_bits": shape.either(shape.whole(0, 0), shape.whole(32, 64)),
    "gic_versions": _gic_versions,
    "page_size": _page_size,
    "gicd_iidr": shape.maybe(shape.hexadecimal(32)),
    "clusters": lambda value, place: value,  # read by `_cluster`
    "qemu": shape.maybe(lambda value, place: decode_qemu(value, place)),
    "libvirt": shape.maybe(_name),
    "cpu_features": shape.items(
        shape.text(NAME, CPU_FEATURE, f"{', '.join(_CPU_FEATURES)} or a length such as sve256"), 64
    ),
    "problems": shape.items(lambda value, place: _problem(value, place), 255, unique=False),
}

_PROBLEM: dict[str, Shape] = {"part": _name, "message": _line, "hint": _line}


_LEVEL: dict[str, Shape] = {"left_out": shape.items(shape.text(64), 64)}
_CPUS = shape.items(
    shape.text(40, "0x[0-9a-f]{1,16}/0x[0-9a-f]{1,16}", "MIDR_EL1/REVIDR_EL1 of a CPU"), 64
)
_level_library = shape.text(16, "[0-9]{1,4}", "a version of the library's text")


# What a part that is unknown has in its place.
_NOTHING: dict[str, Any] = {
    **dict.fromkeys(("overrides", "gic_versions", "cpu_features", "sve_lengths"), ()),
    **{part: {} for part in ("capabilities", "models", "seen")},
    **dict.fromkeys(("qemu", "libvirt", "gicd_iidr", "revidr", "capacity", "writable")),
    **dict.fromkeys(("kernel", "cpus", "reglist"), ""),
    **dict.fromkeys(("ipa_bits", "page_size"), 0),
}


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
    return {name: found[name] if name in told else _NOTHING[name] for name in shapes}


def _profile(document: Any, unknown: tuple[str, ...]) -> HostProfile:
    document, level_library = _without(document, "level_library")
    fields = _read(_PROFILE, unknown, document, "")
    for value in level_library:
        fields["level_library"] = _level_library(value, "level_library")
    fields["clusters"] = shape.items(
        lambda value, place: _cluster(value, place, unknown), 16, unique=False
    )(fields["clusters"], "clusters")
    profile = HostProfile(**fields, unknown=unknown).with_unknown()
    if profile.clusters and profile.architecture not in ("aarch64", "armv7l"):
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
    return profile


def _without(value: Any, member: str) -> tuple[Any, list[Any]]:
    """An object without a member that few have, and that member if it has it."""
    if not isinstance(value, dict) or member not in value:
        return value, []
    return {name: item for name, item in value.items() if name != member}, [value[member]]


def _problem(value: Any, place: str) -> Problem:
    """A problem. Profiles were written with each as a line, "PART: MESSAGE (hint: HINT)"."""
    if type(value) is not str:
        return Problem(**shape.members(_PROBLEM)(value, place))
    line: str = _line(value, place)
    reason, _, hint = line[:-1].partition(" (hint: ") if line.endswith(")") else (line, "", "")
    part, _, message = (reason if hint else line).partition(": ")
    known = part and message and len(part) <= NAME
    return Problem(part, message, hint) if known else Problem("", reason if hint else line, hint)


def _cluster(value: Any, place: str, unknown: tuple[str, ...]) -> Cluster:
    value, level = _without(value, "level")
    fields = _read(_CLUSTER, unknown, value, place)
    base = _read(_BASE, unknown, fields.pop("base"), f"{place}.base")
    variants = shape.items(
        lambda value, place: _read(_VARIANT, unknown, value, place), 127, unique=False
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
    level = Level(**shape.members(_LEVEL)(value, place))
    for cpus in told:
        pairs = (text.partition("/") for text in _CPUS(cpus, f"{place}.cpus"))
        level = level.replace(cpus=tuple((int(m, 16), int(r, 16)) for m, _, r in pairs))
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


@lru_cache(maxsize=256)  # as above
def _changed(reglist: str, added: str, removed: str) -> str | None:
    """A packed register list with some ids, which it does not have, and without others, which it
    has; else None.
    """
    known, more, less = map(unpack_ids, (reglist, added, removed))
    if more & known or not less <= known or len(known) + len(more) - len(less) > _MOST_IDS:
        return None
    return pack_ids(known - less | more) if more or less else reglist


def decode_qemu(value: Any, place: str = "") -> Qemu:
    """What QEMU offers, from its part of the document; `place` is for messages. Raises
    Misshapen.
    """
    return Qemu(**shape.members(_QEMU)(value, place))


def encode(profile: HostProfile) -> dict[str, Any]:
    """The inverse of `decode`."""
    unknown = profile.unknown
    document = {name: getattr(profile, name) for name in _PROFILE if name not in unknown}
    document["clusters"] = [_encode_cluster(cluster, unknown) for cluster in profile.clusters]
    document["problems"] = [
        {name: getattr(problem, name) for name in _PROBLEM} for problem in profile.problems
    ]
    if profile.qemu:
        document["qemu"] = {name: getattr(profile.qemu, name) for name in _QEMU}
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
