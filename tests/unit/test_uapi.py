# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvm/uapi.py against the kernel's own headers: <linux/kvm.h> and arm64's <asm/kvm.h>, read and
evaluated here without a compiler.

Debian ships both in linux-libc-dev-arm64-cross; on an arm64 host linux-libc-dev has them. What an
installed header is too old to know is skipped by name.
"""

from __future__ import annotations

import re
import struct
from functools import cache
from pathlib import Path

import pytest

from kvmarm_plugin.kvm import uapi
from kvmarm_plugin.model.vcpu import FALLBACK_TARGETS, TARGETS, VCPU_FEATURES
from kvmarm_plugin.registers.table import id_of

# Where the headers for arm64 may be: Debian's cross package, linux-libc-dev for all architectures
# (from trixie on), an arm64 host.
_PLACES = (
    Path("/usr/aarch64-linux-gnu/include"),
    Path("/usr/lib/linux/uapi/arm64"),
    Path("/usr/include/aarch64-linux-gnu"),
)
_GENERIC = Path("/usr/include")
_SIZES = {"__u8": 1, "__u16": 2, "__u32": 4, "__u64": 8, "int": 4}

# Struct → its format, and the names of the members.
_STRUCTS = {
    "kvm_one_reg": (uapi.ONE_REG, "id addr"),
    "kvm_vcpu_init": (uapi.VCPU_INIT, "target features"),
    "kvm_userspace_memory_region": (
        uapi.USERSPACE_MEMORY_REGION,
        "slot flags guest_phys_addr memory_size userspace_addr",
    ),
    "kvm_create_device": (uapi.CREATE_DEVICE, "type fd flags"),
    "kvm_device_attr": (uapi.DEVICE_ATTR, "flags group attr addr"),
    "reg_mask_range": (uapi.REG_MASK_RANGE, "addr range reserved"),
}


# -- the headers ---------------------------------------------------------------------------------


@cache
def _headers() -> str:
    """<asm/kvm.h> of arm64, <linux/kvm.h> and what they include of <linux/psci.h>, without
    comments.
    """
    for place in _PLACES:
        if (place / "asm/kvm.h").is_file():
            generic = place if (place / "linux/kvm.h").is_file() else _GENERIC
            texts = [
                (root / name).read_text()
                for root, name in ((place, "asm/kvm.h"), (generic, "linux/kvm.h"))
            ]
            joined = re.sub(r"/\*.*?\*/", "", "\n".join(texts), flags=re.DOTALL)
            return re.sub(r"\\\n", " ", joined)
    pytest.skip("no <asm/kvm.h> of arm64: install linux-libc-dev-arm64-cross (Debian)")


@cache
def _macros() -> dict[str, tuple[list[str], str]]:
    """Macro → parameters and body."""
    found = re.findall(
        r"^[ \t]*#[ \t]*define[ \t]+(\w+)(\([^)]*\))?[ \t]+(.+?)[ \t]*$", _headers(), re.MULTILINE
    )
    macros = {
        name: ([word.strip() for word in parameters.strip("()").split(",")], body)
        for name, parameters, body in found
    }
    # An enum of which each member has a macro of its own name: kvm_device_type. The value is
    # counted.
    enum = re.search(r"enum kvm_device_type \{(.*?)\}", _headers(), re.DOTALL)
    value = 0
    for member, number in (
        re.findall(r"^\s*(\w+)(?:\s*=\s*(\d+))?,", enum.group(1), re.MULTILINE) if enum else ()
    ):
        value = int(number or value)
        macros[member] = ([""], str(value))
        value += 1
    return macros


def _value(name: str) -> int:
    """What a macro means. Skips for a macro that the header is too old for."""
    if name not in _macros():
        pytest.skip(f"the installed <linux/kvm.h> is too old to have {name}")
    return _evaluate(_macros()[name][1])


def _evaluate(text: str) -> int:
    ioctl = re.fullmatch(
        r"(_IO[RW]*)\(\s*KVMIO\s*,\s*(\w+)\s*(?:,\s*(?:struct\s+)?(\w+)\s*)?\)", text
    )
    if ioctl:
        # <asm-generic/ioctl.h>: bits 31:30 direction (write 1, read 2), 29:16 size, 15:8 type, 7:0
        # number.
        direction = {"_IO": 0, "_IOW": 1, "_IOR": 2, "_IOWR": 3}[ioctl[1]]
        size = _size_of(ioctl[3]) if ioctl[3] else 0
        return direction << 30 | size << 16 | _value("KVMIO") << 8 | int(ioctl[2], 0)
    expression = re.sub(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]*\b", r"\1", text)
    return int(
        eval(expression, {"__builtins__": {}}, _Names())
    )  # the text is the system's own header


class _Names(dict[str, object]):
    """Macros by name, for `eval`: numbers, and those with parameters as functions."""

    def __missing__(self, name: str) -> object:
        parameters, body = _macros()[name]
        if not parameters[0]:
            return _evaluate(body)

        def function(*values: int) -> int:
            return _evaluate(_substitute(parameters, body, values))

        return function


def _substitute(parameters: list[str], body: str, values: tuple[int, ...]) -> str:
    for parameter, value in zip(parameters, values):
        body = re.sub(rf"\b{parameter}\b", str(value), body)
    return body


def _size_of(name: str) -> int:
    if name in _SIZES:
        return _SIZES[name]
    if name == "kvm_reg_list":
        return 8  # u64 n and a flexible array
    return _layout(_body_of(name))[1]


def _body_of(name: str) -> str:
    """The members of a struct."""
    match = re.search(rf"^struct {name} \{{\n(.*?)^\}};", _headers(), re.DOTALL | re.MULTILINE)
    if not match:
        pytest.skip(f"the installed <linux/kvm.h> is too old to have struct {name}")
    return re.sub(r"#ifdef __KVM_S390.*?#endif", "", match.group(1), flags=re.DOTALL)


def _layout(body: str) -> tuple[dict[str, tuple[int, int]], int]:
    """Member → offset and size, and the size of the whole: each member at a multiple of its own
    alignment, as the ABI says.
    """
    members: dict[str, tuple[int, int]] = {}
    offset, widest = 0, 1
    for kind, name, count in re.findall(r"^\s*(\w+)\s+(\w+)(?:\[(\d+)\])?;", body, re.MULTILINE):
        size = _SIZES[kind]
        offset = -(-offset // size) * size
        members[name] = (offset, size * int(count or 1))
        offset += size * int(count or 1)
        widest = max(widest, size)
    return members, -(-offset // widest) * widest


def _members(form: str, names: str) -> dict[str, tuple[int, int]]:
    """Member → offset and size, of a format of the module struct; its padding has no name."""
    items = re.findall(r"\d*[A-Za-z]", form)
    ends = [struct.calcsize("".join(items[: index + 1])) for index in range(len(items))]
    places = [
        (end - struct.calcsize(item), struct.calcsize(item))
        for item, end in zip(items, ends)
        if item[-1] != "x"
    ]
    assert len(places) == len(names.split())
    return dict(zip(names.split(), places))


# -- the tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(uapi.IOCTLS))
def test_ioctl_number(name: str) -> None:
    assert uapi.IOCTLS[name] == _value(name)


@pytest.mark.parametrize("name", sorted(uapi.CAPABILITIES))
def test_capability_number(name: str) -> None:
    assert uapi.CAPABILITIES[name] == _value(f"KVM_CAP_{name}")


@pytest.mark.parametrize("name", sorted(TARGETS["arm64"]))
def test_arm64_target_number(name: str) -> None:
    assert TARGETS["arm64"][name] == _value(f"KVM_ARM_TARGET_{name}")


def test_there_is_no_arm64_target_that_is_not_known_here() -> None:
    assert sorted(TARGETS["arm64"].values()) == list(range(_value("KVM_ARM_NUM_TARGETS")))


@pytest.mark.parametrize("name", sorted(VCPU_FEATURES["arm64"]))
def test_vcpu_feature_bit(name: str) -> None:
    assert VCPU_FEATURES["arm64"][name] == _value(f"KVM_ARM_VCPU_{name.upper()}")


def test_features_are_listed_in_the_order_of_their_bits() -> None:
    for bits in VCPU_FEATURES.values():
        assert list(bits.values()) == sorted(bits.values())


@pytest.mark.parametrize("name", sorted(_STRUCTS))
def test_struct_layout(name: str) -> None:
    members, size = _layout(_body_of(name))
    assert members, "the parser understood nothing of the header"
    form, names = _STRUCTS[name]
    assert _members(form, names) == members
    assert struct.calcsize(form) == size


def test_register_list_layout() -> None:
    body = re.sub(
        r"__DECLARE_FLEX_ARRAY\(__u64, reg\)|__u64 reg\[0?\]",
        "__u64 reg[3]",
        _body_of("kvm_reg_list"),
    )
    members, size = _layout(body)
    form = f"{uapi.REG_LIST}3Q"
    assert (_members(form, "n reg"), struct.calcsize(form)) == (members, size)


@pytest.mark.parametrize(
    ("ours", "macro"),
    [
        (uapi.API_VERSION, "KVM_API_VERSION"),
        (uapi.FINALIZE_SVE, "KVM_ARM_VCPU_SVE"),
        (uapi.DEVICE_TYPE_ARM_VGIC[2], "KVM_DEV_TYPE_ARM_VGIC_V2"),
        (uapi.DEVICE_TYPE_ARM_VGIC[3], "KVM_DEV_TYPE_ARM_VGIC_V3"),
        (uapi.CREATE_DEVICE_TEST, "KVM_CREATE_DEVICE_TEST"),
        (uapi.VCPU_PMU_V3_CTRL, "KVM_ARM_VCPU_PMU_V3_CTRL"),
        (uapi.VCPU_PMU_V3_INIT, "KVM_ARM_VCPU_PMU_V3_INIT"),
        (uapi.VGIC_GRP_DIST_REGS, "KVM_DEV_ARM_VGIC_GRP_DIST_REGS"),
        (uapi.VGIC_GRP_CTRL, "KVM_DEV_ARM_VGIC_GRP_CTRL"),
        (uapi.VGIC_CTRL_INIT, "KVM_DEV_ARM_VGIC_CTRL_INIT"),
        (uapi.REG_SIZE_SHIFT, "KVM_REG_SIZE_SHIFT"),
        (uapi.REG_SIZE_MASK << uapi.REG_SIZE_SHIFT, "KVM_REG_SIZE_MASK"),
        (id_of("PSCI_VERSION"), "KVM_REG_ARM_PSCI_VERSION"),
        (uapi.REG_ARM64_SVE_VLS, "KVM_REG_ARM64_SVE_VLS"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_number(ours: int, macro: str) -> None:
    assert ours == _value(macro)


def test_the_largest_register() -> None:
    sizes = [_value(name) for name in _macros() if re.fullmatch(r"KVM_REG_SIZE_U\d+", name)]
    assert 1 << (max(sizes) >> uapi.REG_SIZE_SHIFT) == uapi.REG_LARGEST


def test_system_register_ids() -> None:
    shifts = {
        name: _value(f"KVM_REG_ARM64_SYSREG_{name}_SHIFT")
        for name in ("OP0", "OP1", "CRN", "CRM", "OP2")
    }
    group = _value("KVM_REG_ARM64") | _value("KVM_REG_ARM64_SYSREG") | _value("KVM_REG_SIZE_U64")
    # One bit at a time, the highest of each field: a field too narrow or misplaced shows.
    for values in (
        (2, 0, 0, 0, 0),
        (0, 4, 0, 0, 0),
        (0, 0, 8, 0, 0),
        (0, 0, 0, 8, 0),
        (0, 0, 0, 0, 4),
        (3, 7, 15, 15, 7),
    ):
        expected = group
        for value, shift in zip(values, shifts.values()):
            expected |= value << shift
        assert uapi.sysreg(*values) == expected


def test_core_register_ids() -> None:
    """KVM_REG_ARM_CORE_REG counts 32-bit words; user_pt_regs is regs[31], sp, pc, pstate
    (<asm/ptrace.h>).
    """
    group = _value("KVM_REG_ARM64") | _value("KVM_REG_SIZE_U64") | _value("KVM_REG_ARM_CORE")
    assert group == uapi.REG_ARM64_CORE_X0
    assert group | (31 + 1) * 8 // 4 == uapi.REG_ARM64_CORE_PC


def test_masks_cover_the_id_space_in_the_kernels_order() -> None:
    """KVM_ARM_FEATURE_ID_RANGE_IDX of <asm/kvm.h> (6.7), where that is installed, else as the
    kernel's documents have it.
    """
    registers = uapi.feature_id_registers()
    assert len(registers) == len(set(registers)) == uapi.FEATURE_ID_MASKS
    for index, reg in enumerate(registers):
        op1, crm, op2 = reg >> 11 & 7, reg >> 3 & 15, reg & 7
        assert index == (((op1 & 3) - (1 if op1 == 3 else 0)) << 6) | crm << 3 | op2
        assert reg == uapi.sysreg(3, op1, 0, crm, op2)
    if "KVM_ARM_FEATURE_ID_RANGE_SIZE" in _macros():
        assert len(registers) == _value("KVM_ARM_FEATURE_ID_RANGE_SIZE")


def test_targets_of_32_bit_hosts() -> None:
    """No header has them since Linux 5.7 took KVM on 32-bit ARM away; as
    arch/arm/include/uapi/asm/kvm.h of 5.6 had them.
    """
    assert TARGETS["arm"] == {"CORTEX_A15": 0, "CORTEX_A7": 1}
    assert VCPU_FEATURES["arm"] == {"psci_0_2": 1}


@pytest.mark.parametrize("architecture", sorted(TARGETS))
def test_fallback_targets_are_targets_of_that_architecture(architecture: str) -> None:
    assert set(FALLBACK_TARGETS[architecture]) <= set(TARGETS[architecture])
