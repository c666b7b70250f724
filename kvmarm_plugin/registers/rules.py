# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's rules for writing the registers that identify a vCPU, for answering without the
kernel.

`accepts` is KVM_SET_ONE_REG on a fresh vCPU: the local value is the limit, the kernel's masks say
what user space may change, and fields.tsv how far. The kernel's functions that are named here are
those of arch/arm64/kvm/sys_regs.c and hypercalls.c in Linux 7.2; older kernels do the same with
fewer bits.

tests/lab/test_rehearse_law.py holds these rules against kernels. Four fields are beyond them,
because KVM tolerates the host's own value of a field that it hides from guests, and so from the
profile: MPAM, MPAM_frac, MTE_frac and NV, all once shown to guests by older kernels
(set_id_aa64pfr0_el1, set_id_aa64pfr1_el1, set_id_aa64mmfr2_el1). There the answer here is no, and
the kernel's may be yes. No kernel from 6.2 to 6.6 was measured.
"""

from __future__ import annotations

from ..basics.untrusted import decimal
from ..basics.value import Value
from .table import Field, fields_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST = 65535  # of a version's number

# Writable by the masks ioctl since 6.15, and by KVM_SET_ONE_REG only in a VM with
# KVM_CAP_ARM_WRITABLE_IMP_ID_REGS, which no QEMU up to 11.1 enables (set_imp_id_reg).
IMPLEMENTATION_ID = ("MIDR_EL1", "REVIDR_EL1", "AIDR_EL1")

# What kernels without the masks ioctl (before 6.7) let user space write: CSV2 and CSV3 of
# ID_AA64PFR0_EL1 since 5.11 (set_id_aa64pfr0_el1), the PMU's version since 6.2
# (set_id_aa64dfr0_el1, set_id_dfr0_el1).
_WRITABLE_BEFORE_MASKS = {"ID_AA64PFR0_EL1": 0xFF00000000000000}
_WRITABLE_BEFORE_MASKS_6_2 = {
    **_WRITABLE_BEFORE_MASKS,
    "ID_AA64DFR0_EL1": 0xF00,
    "ID_DFR0_EL1": 0xF000000,
}

# kvm_arm64_ftr_safe_value treats these as LOWER_SAFE whatever cpufeature's table says.
_LOWER_SAFE_IN_KVM = {
    ("ID_AA64DFR0_EL1", "PMUVer"),
    ("ID_AA64DFR0_EL1", "DebugVer"),
    ("ID_DFR0_EL1", "PerfMon"),
}

# Fields with a smallest value (set_id_aa64dfr0_el1, set_id_dfr0_el1).
_SMALLEST = {("ID_AA64DFR0_EL1", "DebugVer"): 6, ("ID_DFR0_EL1", "CopDbg"): 6}

# And those that 6.12 lets be 0, and 7.2 does not (set_id_aa64pfr0_el1).
_NEVER_ZERO = {("ID_AA64PFR0_EL1", "EL0"), ("ID_AA64PFR0_EL1", "EL1")}

# The AArch32 ID registers that are read-as-zero and write-ignored on CPUs without AArch32
# (aa32_id_visibility, since 6.1). ID_AFR0_EL1 and ID_DFR1_EL1, which are hidden everywhere, take
# only zero.
_AARCH32 = frozenset(
    [
        f"ID_{kind}{number}_EL1"
        for kind, numbers in (("PFR", "012"), ("DFR", "0"), ("MMFR", "012345"), ("ISAR", "0123456"))
        for number in numbers
    ]
    + ["MVFR0_EL1", "MVFR1_EL1", "MVFR2_EL1"]
)


class KernelFacts(Value):
    """What the rules need to know of a kernel.

    Attributes:
        version: (6, 1) for 6.1.
        writable: register name → mask, from the kernel's own mouth; None where it has no masks
            ioctl.
    """

    version: tuple[int, int]
    writable: Mapping[str, int] | None

    def mask(self, register: str) -> int:
        """The bits of a register that user space may write."""
        if register in IMPLEMENTATION_ID:
            return 0
        if self.writable is not None:
            return self.writable.get(register, 0)
        return (
            _WRITABLE_BEFORE_MASKS if self.version < (6, 2) else _WRITABLE_BEFORE_MASKS_6_2
        ).get(register, 0)


def kernel_version(release: str) -> tuple[int, int]:
    """(6, 12) from "6.12.117+deb13-cloud-arm64"; (0, 0) from what is no version."""
    numbers = release.split("-")[0].split("+")[0].split(".")
    try:
        return decimal(numbers[0], _MOST), decimal(numbers[1], _MOST)
    except (IndexError, ValueError):
        return (0, 0)


def accepts(register: str, value: int, limit: int, kernel: KernelFacts) -> bool:
    """Whether KVM_SET_ONE_REG of `value` succeeds where a fresh vCPU has `limit`."""
    if value == limit:
        return True
    rule = _RULES.get(register)
    if rule is not None:
        return rule(value, limit)
    if register.startswith("CCSIDR_") or register == "CLIDR_EL1":
        rule = _clidr if register == "CLIDR_EL1" else _ccsidr
        return virtualises_caches(kernel) and rule(value, limit)
    return not refused_fields(register, value, limit, kernel) and not _unnamed_bits(
        register, value, limit, kernel
    )


def virtualises_caches(kernel: KernelFacts) -> bool:
    """Whether a guest can have other caches than the CPU: since 6.3; a kernel with masks has that,
    whatever its number. Before, they are the physical CPU's (demux_c15_set).
    """
    return kernel.writable is not None or kernel.version >= (6, 3)


def refused_fields(register: str, value: int, limit: int, kernel: KernelFacts) -> list[Field]:
    """The fields for which arm64_check_features refuses `value`; a field that is not writable has
    to be equal.
    """
    mask = kernel.mask(register)
    return [
        field
        for field in fields_of(register)
        if not _accepts_field(field, field.of(value), field.of(limit), mask, kernel)
    ]


def ignores(register: str, value: int, registers: Mapping[str, int], kernel: KernelFacts) -> bool:
    """Whether KVM takes any value for a register and keeps none, in a vCPU that has these
    registers.
    """
    without_aarch32 = registers.get("ID_AA64PFR0_EL1", 0) & 0xF == 1
    return register in _AARCH32 and without_aarch32 and kernel.version >= (6, 1) and value < 1 << 64


def differing_fields(register: str, value: int, limit: int) -> list[Field]:
    """The fields in which two values of a register differ."""
    return [field for field in fields_of(register) if field.of(value) != field.of(limit)]


def _accepts_field(field: Field, value: int, limit: int, mask: int, kernel: KernelFacts) -> bool:
    if value == limit:
        return True
    bits = (1 << field.msb + 1) - (1 << field.lsb)
    # "-": no entry in the kernel's table. The masks ioctl may call such a field writable;
    # arm64_check_features does not look.
    if field.policy == "-" or mask & bits != bits:
        return False
    if value < _SMALLEST.get((field.register, field.name), 0):
        return False
    if value == 0 and (field.register, field.name) in _NEVER_ZERO and kernel.version > (6, 12):
        return False
    if (field.register, field.name) in (("ID_AA64DFR0_EL1", "PMUVer"), ("ID_DFR0_EL1", "PerfMon")):
        value = 0 if value == 0xF else value  # IMP_DEF, which old kernels showed, is taken for none
        if kernel.writable is None and (value == 0) != (limit in (0, 0xF)):
            # until the masks came, the field had to agree with whether the vCPU has a PMU
            return False
        if field.name == "PerfMon" and 0 < value < 3:
            return False
    return safe_value(field, value, limit) == value


def safe_value(field: Field, ours: int, theirs: int) -> int:
    """The value that both can have (arm64_ftr_safe_value, arch/arm64/kernel/cpufeature.c, and KVM's
    exceptions to it).
    """
    policy = "LOWER_SAFE" if (field.register, field.name) in _LOWER_SAFE_IN_KVM else field.policy
    pair = [ours, theirs]
    if field.signed:
        width = field.msb - field.lsb + 1
        pair.sort(key=lambda value: value - (1 << width) if value >> width - 1 else value)
    else:
        pair.sort()
    if policy == "LOWER_SAFE":
        return pair[0]
    if policy == "HIGHER_SAFE":
        return pair[1]
    if policy == "HIGHER_OR_ZERO_SAFE":
        return 0 if 0 in pair else pair[1]
    return int(field.safe_value, 0)


def _unnamed_bits(register: str, value: int, limit: int, kernel: KernelFacts) -> int:
    """The differing bits of a register that no field covers: never writable."""
    covered = sum((1 << field.msb + 1) - (1 << field.lsb) for field in fields_of(register))
    return (value ^ limit) & ~covered


def _at_most(value: int, limit: int) -> bool:
    return value <= limit


def _psci(value: int, limit: int) -> bool:
    """A version that there is. 0.1 is for vCPUs without PSCI_0_2, whose own it is."""
    return value in (0x2, 0x10000, 0x10001, 0x10002, 0x10003) and value <= limit


def _workaround_2(value: int, limit: int) -> bool:
    """0 not available and 1 unknown count as one level, 2 available and 3 not required as another.
    0x10, "enabled", is for 2.
    """
    return value in (0, 1, 2, 3, 0x12) and value & 2 <= limit & 2


def _subset(value: int, limit: int) -> bool:
    return not value & ~limit


def _vendor_hyp_bmap_2(value: int, limit: int) -> bool:
    """A fresh vCPU has none of them, and may get the two that there are
    (KVM_ARM_SMCCC_VENDOR_HYP_FEATURES_2).
    """
    return not value & ~(limit | 0b11)


def _equal_but_lock(value: int, limit: int) -> bool:
    return not (value ^ limit) & ~2


def _ccsidr(value: int, limit: int) -> bool:
    """Any geometry, but no shorter line: a fresh vCPU has the shortest that the host's CTR_EL0
    allows (get_ccsidr).
    """
    return value < 1 << 32 and value & 7 >= limit & 7


def _clidr(value: int, limit: int) -> bool:
    """Any levels, but not that none has to be cleaned to the point of unification where the host's
    CTR_EL0.IDC denies it. Without IDC a fresh vCPU has LoUU and LoUIS (reset_clidr).
    """
    louu, loc, louis = (1 << 30) - (1 << 27), (1 << 27) - (1 << 24), (1 << 24) - (1 << 21)
    clean_anyway = not value & loc or not value & (louu | louis)
    return value < 1 << 47 and (not limit & (louu | louis) or not clean_anyway)


# The registers that are no ID registers: kvm_arm_set_fw_reg, kvm_arm_set_fw_reg_bmap,
# set_oslsr_el1.
_RULES = {
    "PSCI_VERSION": _psci,
    "SMCCC_ARCH_WORKAROUND_1": _at_most,
    "SMCCC_ARCH_WORKAROUND_2": _workaround_2,
    "SMCCC_ARCH_WORKAROUND_3": _at_most,
    "STD_BMAP": _subset,
    "STD_HYP_BMAP": _subset,
    "VENDOR_HYP_BMAP": _subset,
    "VENDOR_HYP_BMAP_2": _vendor_hyp_bmap_2,
    "OSLSR_EL1": _equal_but_lock,
}
