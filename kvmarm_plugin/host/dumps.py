# SPDX-License-Identifier: LGPL-2.1-or-later
"""Profiles from what other programs dump of a CPU. What a dump does not tell stays unknown.

Four forms are read:

- `firecracker`: a fingerprint of Firecracker's cpu-template-helper, which is every register that
  KVM_GET_ONE_REG gives of a vCPU with PSCI 0.2 and nothing else (`default_kvi`), but for a few that
  move (`REG_EXCLUSION_LIST`).
- `registers`: lines of a register and its value, as a vCPU has them; also id.txt of
  system-litmus-harness, which a guest wrote.
- `hardware`: the same of a physical CPU, of which KVM passes on three registers as they are and the
  rest less something; also cpusysregs-registers.txt of cpusysregs, which a kernel module read.
- `cpuinfo`: /proc/cpuinfo of a host, which tells MIDR_EL1 and no more.
"""

from __future__ import annotations

import json
import re

from .. import __version__
from ..basics import shape
from ..basics.errors import KvmarmError
from ..basics.shape import Misshapen
from ..basics.untrusted import decimal, hexadecimal, shown
from ..kvm.uapi import REG_ARM64_CORE_PC
from ..model.features import AARCH32, FEATURES, SVE
from ..model.profile import PARTS, Cluster, HostProfile, Vcpu
from ..model.profile_json import SCHEMA_STEM, SIZE_LIMIT, ProfileError, decode, encode
from ..model.profile_shape import KERNEL, MOST_IDS, NAME
from ..model.target import SVE_LENGTHS, sve_lengths
from ..model.vcpu import TARGETS, in_order
from ..registers.rules import IMPLEMENTATION_ID, MASKS_SINCE, kernel_version
from ..registers.table import bits_of, field_of, id_of, is_identity, name_of
from ..registers.text import pack_ids
from .cpus import name_part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from ..model.features import Feature

FORMS = ("firecracker", "registers", "hardware", "cpuinfo")

_LINES = 65536
_LINE = 1 << 16  # characters; a table of 128 CPUs has some thousands

_TIMER = {"CTL": 0x603000000013DF19, "CNT": 0x603000000013DF1A}
_PTIMER = {"CTL": 0x603000000013DF11, "CNT": 0x603000000013DF01}

# What a fingerprint leaves out of KVM_GET_REG_LIST: the program counter, which every vCPU has, and
# the counters of timers, which KVM lists with their control registers (copy_timer_indices).
_WITH = {_TIMER["CTL"]: _TIMER["CNT"], _PTIMER["CTL"]: _PTIMER["CNT"]}

# The kernel's own targets, by implementer and part; all others are GENERIC_V8, and so is every CPU
# since Linux 6.6 (kvm_target_cpu).
_GENERIC = TARGETS["arm64"]["GENERIC_V8"]
_ALL_GENERIC_FROM = (6, 6)
_TARGETS = {
    (0x41, 0xD0F): "AEM_V8",
    (0x41, 0xD00): "FOUNDATION_V8",
    (0x41, 0xD03): "CORTEX_A53",
    (0x41, 0xD07): "CORTEX_A57",
    (0x50, 0x000): "XGENE_POTENZA",
}

# What every vCPU of an arm64 host lists, of any kernel that has PSCI_VERSION (4.16): its core
# registers, and those that say what it is. A dump without one of them is cut short.
_CORE = frozenset(range(0x6030000000100000, 0x6030000000100044, 2)) - {REG_ARM64_CORE_PC}
_OF_ANY_VCPU = (
    *("MIDR_EL1", "REVIDR_EL1", "CTR_EL0", "PSCI_VERSION", "ID_AA64PFR0_EL1", "ID_AA64PFR1_EL1"),
    *("ID_AA64DFR0_EL1", "ID_AA64ISAR0_EL1", "ID_AA64ISAR1_EL1"),
    *("ID_AA64MMFR0_EL1", "ID_AA64MMFR1_EL1", "ID_AA64MMFR2_EL1"),
)

# Registers that are 64 bits wide to KVM, and use fewer.
_USED_BITS = {"MIDR_EL1": 32, "SVE_VLS": SVE_LENGTHS[-1] // 128}

# Beside registers that identify a vCPU, and none of KVM's.
_NOT_KVMS = ("DCZID_EL0",)

_ALWAYS_UNKNOWN = (
    *("overrides", "capabilities", "ipa_bits", "gic_versions", "qemu", "libvirt", "cpu_features"),
    *("page_size", "gicd_iidr", "cpus", "capacity", "models", "sve_lengths", "seen", "vcpus"),
)

_MIDR = "/sys/devices/system/cpu/cpu0/regs/identification/midr_el1"

# Lines of system-litmus-harness and of cpusysregs that have no register.
_TABLE = re.compile(
    r"\s*(ID REGISTERS PER CPU|(CPU[0-9]+\s*)+|(Implementor|Part|Variant|Revision):.*)"
)
_CPUINFO = re.compile(r"CPU (implementer|variant|part|revision)[ \t]*:(.*)")
_ANY_CPUINFO = re.compile(
    r"^(CPU (implementer|variant|part|revision)|processor|vendor_id)[ \t]*:", re.MULTILINE
)
# "7", or "5TEJ"; of arm64 it is "8", and was "AArch64" (c_show, arch/arm and arch/arm64).
_OLDER = re.compile(r"^CPU architecture[ \t]*:[ \t]*[3-7]", re.MULTILINE)
_BITS = re.compile(r"^([A-Z][A-Z0-9_]{0,31}):((?: [01]{4}){8} - (?:[01]{4} ?){8})$", re.MULTILINE)


class DumpError(KvmarmError):
    """The document is not a dump that this program can use."""


def read(text: str, name: str, form: str = "", host: str = "", kernel: str = "") -> HostProfile:
    """A profile from a dump.

    Args:
        name: of the file, for messages.
        form: of FORMS; by default what the text looks like.
        host: what to call the host; by default after its CPU.
        kernel: its release, where the dump does not tell.

    Raises:
        DumpError: none that can be used: it names the line.
    """
    if len(text) > SIZE_LIMIT:
        raise DumpError(f"{name} is larger than {SIZE_LIMIT >> 20} MiB", "is it the right file?")
    if kernel and not (
        len(kernel) <= NAME and kernel.isprintable() and re.fullmatch(KERNEL, kernel)
    ):
        raise DumpError(
            f"{shown(kernel, 60)!r} is no kernel release", "give what uname -r says, such as 6.1.0"
        )
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    form = form or _guess(text)
    if form == "firecracker" and f'"{SCHEMA_STEM}' in text:
        raise DumpError(
            f"{name} is a profile of kvmarm's already",
            "give it as it is, wherever a profile is read: --host, compare, baseline",
        )
    if form == "firecracker":
        dump = _fingerprint(text, name)
        if kernel and kernel != dump.kernel:
            raise DumpError(
                f"{name} is of Linux {shown(dump.kernel, 60)}, not {shown(kernel, 60)}",
                "leave --kernel out",
            )
    else:
        dump = _cpuinfo(text, name) if form == "cpuinfo" else _lines(text, name)
        dump.kernel = kernel
    return _profile(dump, name, form, host)


class _Dump:
    """What was read.

    Attributes:
        registers: name → value of those that identify the vCPU.
        ids: of all its registers; None where the dump has not all.
        kernel: the host's release; empty where it does not tell.
        features: the vCPU's.
    """

    def __init__(self) -> None:
        self.registers: dict[str, int] = {}
        self.ids: frozenset[int] | None = None
        self.kernel = ""
        self.features: tuple[str, ...] = ()

    def add(self, reg: int, value: int) -> None:
        """Raises Misshapen for a register that is there already, and for a value that is too
        wide.
        """
        name = name_of(reg)
        if value >> _USED_BITS.get(name, bits_of(reg)):
            raise Misshapen(f"the value of {name} is wider than the register")
        if self.registers.get(name, value) != value:
            raise Misshapen(f"{name} has two values")
        if is_identity(reg) and name not in _NOT_KVMS:
            self.registers[name] = value


def _guess(text: str) -> str:
    start = text.lstrip()[:1]
    if start in ("{", "["):
        return "firecracker"
    if _ANY_CPUINFO.search(text):
        return "cpuinfo"
    return "hardware" if _BITS.search(text) else "registers"


# -- Firecracker's fingerprints ------------------------------------------------------------------

_BITMAP = re.compile("0b[01]{1,128}")


def _fingerprint(text: str, name: str) -> _Dump:
    try:
        document = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_no_number,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
        return _of_fingerprint(document)
    except Misshapen as error:
        raise DumpError(f"{name} is no fingerprint of an arm64 vCPU: {error}", _HOW) from None
    except (ValueError, RecursionError) as error:
        raise DumpError(f"{name} is not JSON: {shown(str(error))}", _HOW) from None


_HOW = "make one on the host with: cpu-template-helper fingerprint dump"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Misshapen("an object of it has a name twice")
    return found


def _no_number(digits: str) -> int:
    raise Misshapen(f"it has a number, {shown(digits, 40)}, where there is none")


def _of_fingerprint(document: Any) -> _Dump:
    head = _members(
        document,
        "",
        {
            "kernel_version": shape.text(NAME, KERNEL, "a release such as 6.1.0"),
            "microcode_version": shape.hexadecimal(64),  # REVIDR_EL1, on ARM
            "guest_cpu_config": lambda value, place: value,
        },
        ("firecracker_version", "bios_version", "bios_revision"),
    )
    place = "guest_cpu_config"
    config = _members(
        head[place],
        place,
        {"reg_modifiers": shape.items(_modifier, MOST_IDS, unique=False)},
        ("kvm_capabilities", "vcpu_features"),
    )
    for changed in ("kvm_capabilities", "vcpu_features"):
        if config.get(changed):
            raise Misshapen(f"{place}.{changed} is not empty: a template changed the vCPU")
    dump = _Dump()
    ids = [reg for reg, _ in config["reg_modifiers"]]
    if len({*ids}) < len(ids):
        raise Misshapen(f"{place}.reg_modifiers has a register twice")
    for reg, value in config["reg_modifiers"]:
        dump.add(reg, value)
    if dump.registers.get("REVIDR_EL1") != head["microcode_version"]:
        raise Misshapen("microcode_version is not the REVIDR_EL1 of its registers")
    missing = [*(name for name in _OF_ANY_VCPU if name not in dump.registers)]
    missing += [name_of(reg) for reg in sorted(_CORE.difference(ids))]
    if missing:
        raise Misshapen(f"it is cut short: it has no {missing[0]}, which every vCPU has")
    left_out = {REG_ARM64_CORE_PC, *(_WITH[reg] for reg in ids if reg in _WITH)}
    dump.ids = frozenset(ids) | left_out
    dump.kernel, dump.features = head["kernel_version"], ("psci_0_2",)
    return dump


def _members(
    document: Any, place: str, shapes: dict[str, Any], others: tuple[str, ...]
) -> dict[str, Any]:
    """An object of these members, and of others that it may have or not."""
    if isinstance(document, dict):
        shapes = {**shapes, **{name: _anything for name in others if name in document}}
    found: dict[str, Any] = shape.members(shapes)(document, place)
    return found


def _anything(value: Any, _: str) -> Any:
    return value


def _modifier(value: Any, place: str) -> tuple[int, int]:
    found = shape.members({"addr": shape.hexadecimal(64), "bitmap": _bitmap})(value, place)
    if found["addr"] >> 60 != 6:
        raise Misshapen(f"{place}.addr is no register of an arm64 vCPU")
    return found["addr"], found["bitmap"]


def _bitmap(value: Any, place: str) -> int:
    if type(value) is not str or not _BITMAP.fullmatch(value):
        raise shape.wrong(place, value, "a binary number of up to 128 bits, such as 0b1011")
    return int(value, 2)


# -- lines of a register and its value -----------------------------------------------------------


def _lines(text: str, name: str) -> _Dump:
    """Raises DumpError, with the number of the line."""
    dump = _Dump()
    lines = text.splitlines()
    if len(lines) > _LINES:
        raise DumpError(f"{name} has more than {_LINES} lines", "is it the right file?")
    is_bits, is_table = bool(_BITS.search(text)), "ID REGISTERS PER CPU" in text
    for number, line in enumerate(lines, 1):
        try:
            if len(line) > _LINE:
                raise Misshapen("so long a line has no register")
            found = _of_bits(line) if is_bits else _of_table(line) if is_table else _of_line(line)
            for reg, value in found:
                dump.add(reg, value)
        except Misshapen as error:
            raise DumpError(
                f"{name}, line {number}: {error}",
                "a line is a register and its value, such as: MIDR_EL1 0x413fd0c1",
            ) from None
    return dump


def _of_line(line: str) -> Iterator[tuple[int, int]]:
    """`NAME VALUE`, `NAME: VALUE` or `NAME=VALUE`, with a comment behind "#"."""
    words = re.sub(r"[:=]", " ", line.partition("#")[0], count=1).split()
    if not words:
        return
    if len(words) != 2:
        raise Misshapen(f"'{shown(line.strip(), 60)}' is not a register and its value")
    reg = _id(words[0])
    if reg is None:
        raise Misshapen(f"no register of an arm64 vCPU is called '{shown(words[0], 40)}'")
    yield reg, _value(words[1])


def _of_table(line: str) -> Iterator[tuple[int, int]]:
    """`NAME: VALUE NAME: VALUE …`, a column for each CPU; values as 0x413F_D0C1."""
    if not line.strip() or _TABLE.fullmatch(line):
        return
    words = line.split()
    if len(words) % 2 or any(not word.endswith(":") for word in words[::2]):
        raise Misshapen(f"'{shown(line.strip(), 60)}' is not a register and its value")
    for title, value in zip(words[::2], words[1::2]):
        reg = _id(title[:-1])
        if reg is not None and is_identity(reg):
            yield reg, _value(value)


def _of_bits(line: str) -> Iterator[tuple[int, int]]:
    """`NAME: 0000 0000 …`, 64 bits; the lines below it explain them."""
    found = _BITS.fullmatch(line.rstrip())
    reg = _id(found[1]) if found else None
    if found and reg is not None and is_identity(reg):
        yield reg, int(re.sub("[^01]", "", found[2]), 2)


def _id(name: str) -> int | None:
    """The id of a register by its name: with or without the exception level of which it is, or as
    KVM's own number. Without one it is not that of a 32-bit host, which has the same name.
    """
    upper = name.upper().removeprefix("SYS_")
    names = (name,) if name[:2] == "0x" else (f"{upper}_EL1", f"{upper}_EL0", upper)
    for candidate in names:
        try:
            reg = hexadecimal(candidate) if candidate[:2] == "0x" else id_of(candidate)
        except ValueError:
            continue
        if reg >> 60 == 6:
            return reg
    return None


def _value(text: str) -> int:
    digits = text[2:]
    if text[:2].lower() != "0x" or "__" in digits or digits != digits.strip("_"):
        raise Misshapen(f"'{shown(text, 40)}' is no hexadecimal value, such as 0x1f")
    try:
        return hexadecimal(digits.replace("_", ""), 512)
    except ValueError:
        raise Misshapen(f"'{shown(text, 40)}' is no hexadecimal value, such as 0x1f") from None


# -- /proc/cpuinfo -------------------------------------------------------------------------------

_WIDTHS = {"implementer": 8, "variant": 4, "part": 12, "revision": 4}  # in bits of MIDR_EL1


def _cpuinfo(text: str, name: str) -> _Dump:
    """Raises DumpError, also where CPUs are of several kinds: of which is the profile?"""
    hint = "leave the entries of one kind of CPU in it, whole"
    fields: dict[str, set[int]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        found = _CPUINFO.match(line)
        if not found:
            continue
        field, value = found[1], found[2].strip()
        try:
            read = decimal(value, 15) if field == "revision" else hexadecimal(value, _WIDTHS[field])
        except ValueError as error:
            raise DumpError(f"{name}, line {number}: CPU {field}: {error}", hint) from None
        fields.setdefault(field, set()).add(read)
    if not fields:
        raise DumpError(
            f"{name} is of no ARM host: it has no 'CPU implementer'",
            "copy /proc/cpuinfo of an ARM host",
        )
    if _OLDER.search(text):
        raise DumpError(
            f"{name} is of 32-bit CPUs, which have an older architecture than ARMv8",
            "probe that host itself: kvmarm probe -o FILE",
        )
    if fields.keys() != _WIDTHS.keys():
        raise DumpError(f"{name} has no description of a CPU", hint)
    if any(len(values) > 1 for values in fields.values()):
        raise DumpError(f"{name} has CPUs of several kinds", hint)
    implementer, variant, part, revision = (value for f in _WIDTHS for value in fields[f])
    dump = _Dump()
    midr = implementer << 24 | variant << 20 | 0xF << 16 | part << 4 | revision
    dump.add(id_of("MIDR_EL1"), midr)
    return dump


# -- the profile ---------------------------------------------------------------------------------


def _profile(dump: _Dump, name: str, form: str, host: str) -> HostProfile:
    registers = dict(sorted(dump.registers.items(), key=lambda item: id_of(item[0])))
    kernel = dump.kernel
    midr = registers.get("MIDR_EL1")
    if not midr:
        raise DumpError(
            f"{name} has no MIDR_EL1, which says what CPU it is of",
            f"add it, as the host has it in {_MIDR}",
        )
    if registers.get("SVE_VLS") and not _shows(registers, SVE):
        raise DumpError(
            f"{name} has SVE_VLS, and an ID_AA64PFR0_EL1 without SVE",
            "they are of two vCPUs: dump both of the same one",
        )
    unknown = {*_ALWAYS_UNKNOWN}
    if form in ("hardware", "cpuinfo"):
        # KVM shows them as they are; the other registers it lowers, by rules of its version.
        registers = {each: registers[each] for each in IMPLEMENTATION_ID if each in registers}
    dump.features = dump.features or _features(registers)
    if not kernel:
        unknown.add("kernel")
    if not kernel or kernel_version(kernel) >= MASKS_SINCE or re.search(r"\.el[0-9]", kernel):
        unknown.add("writable")  # a vendor's kernel may have the ioctl earlier
    if dump.ids is None:
        unknown.update(("registers", "reglist"))
    revidr = registers.get("REVIDR_EL1")
    if revidr is None:
        unknown.add("revidr")
    lengths = sve_lengths(registers.get("SVE_VLS", 0))
    if lengths:
        unknown.discard("sve_lengths")
    implementer, part = name_part(midr)
    number = _number(midr, kernel, name)
    cluster = Cluster(
        cpus="",
        midr=midr,
        revidr=revidr,
        implementer=implementer,
        part=part,
        capacity=None,
        target=number,
        vcpus=(Vcpu(number, dump.features, registers, pack_ids(dump.ids or frozenset())),),
        sve_lengths=lengths,
        models={},
        seen={},
        writable=None,
    )
    profile = HostProfile(
        name=shown(host or f"{part or hex(midr)}{f'@{kernel}' if kernel else ''}", NAME),
        origin=f"imported: from {_ORIGIN[form]}",
        made_by=f"kvmarm {__version__}",
        architecture="aarch64",
        kernel=kernel,
        overrides=(),
        platform="",
        capabilities={},
        ipa_bits=0,
        gic_versions=(),
        clusters=(cluster,),
        qemu=None,
        libvirt=None,
        cpu_features=(),
        problems=(),
        unknown=tuple(each for each in PARTS if each in unknown),
    )
    # What can be written can be read: whatever the dump had, the reader of profiles takes it.
    try:
        return decode(json.loads(json.dumps(encode(profile))), name)
    except ProfileError as error:
        raise DumpError(error.message, "the registers of the dump contradict each other") from None


_ORIGIN = {
    "firecracker": "a fingerprint of Firecracker's cpu-template-helper",
    "registers": "registers of a vCPU",
    "hardware": "registers of the hardware",
    "cpuinfo": "/proc/cpuinfo",
}


def _features(registers: dict[str, int]) -> tuple[str, ...]:
    """Those of a vCPU that has these registers, as they show them. A guest whose PSCI is 0.1 has
    no PSCI_0_2; QEMU and Firecracker give it to all others.
    """
    psci = () if registers.get("PSCI_VERSION") == 1 else ("psci_0_2",)
    shown_by = [
        feature for feature in FEATURES if feature is not AARCH32 and _shows(registers, feature)
    ]
    return in_order((*psci, *(bit for feature in shown_by for bit in feature.bits)))


def _shows(registers: dict[str, int], feature: Feature) -> bool:
    """Of SVE, its lengths tell where its field is not in the dump."""
    if feature is SVE and "ID_AA64PFR0_EL1" not in registers:
        return bool(registers.get("SVE_VLS"))
    return any(map(_is_on(registers), feature.fields))


def _is_on(registers: dict[str, int]) -> Any:
    def is_on(place: str) -> bool:
        field = field_of(place)
        value = field.of(registers.get(field.register, 0))
        return value not in (0, 0xF)  # a PMU of its own kind is none to KVM

    return is_on


def _number(midr: int, kernel: str, name: str) -> int:
    """The target that KVM prefers on such a CPU. Raises DumpError."""
    special = _TARGETS.get((midr >> 24 & 0xFF, midr >> 4 & 0xFFF))
    if special and not kernel:
        raise DumpError(
            f"{name} does not tell the kernel, which has this CPU as {special} or as GENERIC_V8",
            "give it with --kernel",
        )
    if special and kernel_version(kernel) < _ALL_GENERIC_FROM:
        return TARGETS["arm64"][special]
    return _GENERIC
