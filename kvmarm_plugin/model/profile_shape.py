# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each place of a profile's JSON may hold, as docs/profile.schema.json states it."""

from __future__ import annotations

from functools import lru_cache

from ..basics import cpulist, shape
from ..basics.shape import Misshapen
from ..registers.table import bits_of, id_of, is_identity, name_of
from ..registers.text import pack_ids, unpack_ids
from .features import CPU_FEATURES
from .guest_registers import GUEST_REGISTERS
from .problem import Problem
from .profile import PARTS, Qemu
from .vcpu import VCPU_FEATURES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..basics.shape import Shape

_FEATURES = VCPU_FEATURES["arm64"]  # those of 32-bit hosts are among them
MOST_IDS = 2048  # registers of a vCPU, which has some 400

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
    return len(ids) <= MOST_IDS and max(ids, default=0) < 1 << 64 and pack_ids(ids) == reglist


def _features(value: Any, place: str) -> tuple[str, ...]:
    found: tuple[str, ...] = shape.items(shape.text(NAME), len(_FEATURES))(value, place)
    if found != tuple(feature for feature in _FEATURES if feature in found):
        raise Misshapen(
            f"{place} are not vCPU features in the order of their bits, which are"
            f" {', '.join(_FEATURES)}"
        )
    return found


def unknown_parts(value: Any, place: str) -> tuple[str, ...]:
    """What a profile says that it does not know: names of profile.PARTS, in their order. Raises
    Misshapen.
    """
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

BASE: dict[str, Shape] = {
    "target": _target,
    "features": _features,
    "registers": _values,
    "reglist": _reglist,
}

VARIANT: dict[str, Shape] = {
    "target": _target,
    "features": _features,
    "registers": _registers,
    "reglist": shape.members({"added": _reglist, "removed": _reglist}),
}

CLUSTER: dict[str, Shape] = {
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

QEMU: dict[str, Shape] = {
    "binary": shape.text(LINE, "/.*", "an absolute path"),
    "version": shape.text(NAME, r"[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}", "a version such as 10.0.2"),
    "machines": shape.items(_machine, 1024),
    "aliases": shape.table(_model, _machine, 64),
    "cpu_models": shape.items(_model, 4096),
    "host_properties": shape.table(
        _model, shape.either(shape.flag, shape.whole(-(1 << 63), (1 << 64) - 1), _line), 4096
    ),
}

PROFILE: dict[str, Shape] = {
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

PROBLEM: dict[str, Shape] = {"part": _name, "message": _line, "hint": _line}


LEVEL: dict[str, Shape] = {"left_out": shape.items(shape.text(64), 64)}
LEVEL_CPUS = shape.items(
    shape.text(40, "0x[0-9a-f]{1,16}/0x[0-9a-f]{1,16}", "MIDR_EL1/REVIDR_EL1 of a CPU"), 64
)
level_library_text = shape.text(16, "[0-9]{1,4}", "a version of the library's text")


# What a part that is unknown has in its place.
NOTHING: dict[str, Any] = {
    **dict.fromkeys(("overrides", "gic_versions", "cpu_features", "sve_lengths"), ()),
    **{part: {} for part in ("capabilities", "models", "seen")},
    **dict.fromkeys(("qemu", "libvirt", "gicd_iidr", "revidr", "capacity", "writable")),
    **dict.fromkeys(("kernel", "cpus", "reglist"), ""),
    **dict.fromkeys(("ipa_bits", "page_size"), 0),
}


def _problem(value: Any, place: str) -> Problem:
    """A problem. Profiles were written with each as a line, "PART: MESSAGE (hint: HINT)"."""
    if type(value) is not str:
        shapes = {**PROBLEM, "cpus": _cpus} if type(value) is dict and "cpus" in value else PROBLEM
        return Problem(**shape.members(shapes)(value, place))
    line: str = _line(value, place)
    reason, _, hint = line[:-1].partition(" (hint: ") if line.endswith(")") else (line, "", "")
    part, _, message = (reason if hint else line).partition(": ")
    known = part and message and len(part) <= NAME
    return Problem(part, message, hint) if known else Problem("", reason if hint else line, hint)


def decode_qemu(value: Any, place: str = "") -> Qemu:
    """What QEMU offers, from its part of the document; `place` is for messages. Raises
    Misshapen.
    """
    return Qemu(**shape.members(QEMU)(value, place))
