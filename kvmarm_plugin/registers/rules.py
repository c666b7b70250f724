# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's rules for writing the registers that identify a vCPU, for answering without the
kernel.

`accepts` is KVM_SET_ONE_REG on a fresh vCPU: the local value is the limit, the kernel's masks say
what user space may change, and fields.tsv how far. The kernel's functions that are named here are
those of arch/arm64/kvm/sys_regs.c and hypercalls.c in Linux 7.2; older kernels do the same with
fewer bits.

tests/lab/test_rehearse_law.py holds these rules against kernels. Some answers need more than a vCPU
shows:

- MPAM, MPAM_frac and NV were once shown to guests by mistake. Kernels that hide them take the
  hardware's own value all the same (`hidden_fields`).
- MTE_frac is 0 in a vCPU without MTE, as all of ours are, and nothing else is taken. Where the
  hardware has MTE 2 and MTE_frac 15, Linux 6.18 to 7.2 by their source (set_id_aa64pfr1_el1) refuse
  even that 0. No such hardware was seen, and the answer here is yes.

Before versions decide anything, what a kernel shows of itself does: see `kvm_version`. No kernel
from 6.2 to 6.6 was measured.
"""

from __future__ import annotations

from ..basics.untrusted import decimal
from ..basics.value import Value
from .overrides import HIDDEN, takes_hidden
from .table import Field, fields_of, rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_MOST = 65535  # of a version's number

# Writable by the masks ioctl since 6.15, and by KVM_SET_ONE_REG only in a VM with
# KVM_CAP_ARM_WRITABLE_IMP_ID_REGS (set_imp_id_reg). No QEMU up to 11.1 enables that, and
# libkvmarm-level does.
IMPLEMENTATION_ID = ("MIDR_EL1", "REVIDR_EL1", "AIDR_EL1")
IDENTITIES_SINCE = (6, 15)  # the first kernel with that capability
_IDENTITY_BITS = {**dict.fromkeys(IMPLEMENTATION_ID, (1 << 64) - 1), "MIDR_EL1": (1 << 32) - 1}

_CPU = ("MIDR_EL1", "REVIDR_EL1")  # what CPUs are the same by

# What kernels without the masks ioctl (before 6.7) let user space write, the newest first: CSV2 of
# ID_AA64PFR0_EL1 since 5.10, CSV3 since 5.11 (set_id_aa64pfr0_el1), the PMU's version since 6.2
# (set_id_aa64dfr0_el1, set_id_dfr0_el1).
_WRITABLE_BEFORE_MASKS = (
    (
        (6, 2),
        {
            "ID_AA64PFR0_EL1": 0xFF00000000000000,
            "ID_AA64DFR0_EL1": 0xF00,
            "ID_DFR0_EL1": 0xF000000,
        },
    ),
    ((5, 11), {"ID_AA64PFR0_EL1": 0xFF00000000000000}),
    ((5, 10), {"ID_AA64PFR0_EL1": 0x0F00000000000000}),
)
MASKS_SINCE = (6, 7)  # the first kernel that has the masks ioctl
_MASKS_READ = (7, 2)  # the last whose masks were read (writable.tsv)

# What shows that a kernel's KVM is at least that of a version, whatever the kernel is called:
# vendors carry newer KVM in older kernels. Registers that came with it: all levels of CCSIDR are
# listed since caches are virtual.
_SIGNS = (("VENDOR_HYP_BMAP_2", (6, 15)), ("CCSIDR_L7I", (6, 3)), ("STD_BMAP", (5, 19)))

# kvm_arm64_ftr_safe_value treats these as LOWER_SAFE whatever cpufeature's table says.
_LOWER_SAFE_IN_KVM = {
    ("ID_AA64DFR0_EL1", "PMUVer"),
    ("ID_AA64DFR0_EL1", "DebugVer"),
    ("ID_DFR0_EL1", "PerfMon"),
}

# Fields with a smallest value (set_id_aa64dfr0_el1, set_id_dfr0_el1).
_SMALLEST = {("ID_AA64DFR0_EL1", "DebugVer"): 6, ("ID_DFR0_EL1", "CopDbg"): 6}

# And those that 6.12 lets be 0, and 6.18 does not (set_id_aa64pfr0_el1).
_NEVER_ZERO = {("ID_AA64PFR0_EL1", "EL0"), ("ID_AA64PFR0_EL1", "EL1")}

# IMP_DEF, which old kernels showed, is taken for none.
_IMP_DEF_IS_NONE = (("ID_AA64DFR0_EL1", "PMUVer"), ("ID_DFR0_EL1", "PerfMon"))

# KVM takes less than the host has, and goes on answering what the host has (kvm_arm_set_fw_reg,
# kvm_arm_get_fw_reg).
OF_THE_HOST = tuple(f"SMCCC_ARCH_WORKAROUND_{number}" for number in (1, 2, 3))

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
        version: (6, 1) for 6.1; see `kvm_version`.
        writable: register name → mask, from the kernel's own mouth; None where it has no masks
            ioctl.
        hidden: (register, field) of those whose value a guest may bring along although this kernel
            shows 0; see `hidden_fields`.
        identities: whether it lets user space write IMPLEMENTATION_ID in the VM at hand: one with
            KVM_CAP_ARM_WRITABLE_IMP_ID_REGS.
    """

    version: tuple[int, int]
    writable: Mapping[str, int] | None
    hidden: Collection[tuple[str, str]] = ()
    identities: bool = False

    def mask(self, register: str) -> int:
        """The bits of a register that user space may write."""
        if register in IMPLEMENTATION_ID:
            return _IDENTITY_BITS[register] if self.identities else 0
        if self.writable is not None:
            return self.writable.get(register, 0)
        for since, masks in _WRITABLE_BEFORE_MASKS:
            if self.version >= since:
                return masks.get(register, 0)
        return 0


def kernel_facts(
    release: str, registers: Collection[str], writable: Mapping[str, int] | None
) -> KernelFacts:
    """A kernel by what it shows.

    Args:
        release: as uname -r gives it.
        registers: names of those that it lists.
        writable: as `KernelFacts` has it.
    """
    return KernelFacts(kvm_version(release, registers, writable), writable)


def kvm_version(
    release: str, registers: Collection[str], writable: Mapping[str, int] | None
) -> tuple[int, int]:
    """The version of Linux that a kernel's KVM has at least: the number in its release, or a newer
    one that its registers and masks show. The arguments are those of `kernel_facts`.
    """
    signs = [version for sign, version in _SIGNS if sign in registers]
    signs += [] if writable is None else [MASKS_SINCE]
    return max([kernel_version(release), *signs])


def masks_of(release: str) -> tuple[dict[str, int], dict[str, int] | None]:
    """The least and the most that a kernel that has the masks ioctl lets user space write, as far
    as its release tells (writable.tsv): register name → mask. The most is None where nothing tells:
    newer kernels than were read, and those whose vendors count their own builds.
    """
    numbers = release_numbers(release)
    least: dict[str, int] = {}
    most: dict[str, int] = {}
    before: tuple[int, ...] = ()
    following: tuple[int, ...] = ()
    for since, register, mask in rows("writable.tsv"):
        version = release_numbers(since)
        if version <= numbers:
            before = version
            least[register] = int(mask, 16)
        elif following in ((), version):
            following = version
            most[register] = int(mask, 16)
    if "-" in point_release(release) or (not following and numbers[:2] > _MASKS_READ):
        return least, None
    if not following or before == numbers[: len(before)] != ():
        return least, dict(least)
    return least, {**least, **most}


def hidden_fields(
    recorded: Mapping[str, int],
    local: Mapping[str, int],
    kernel: KernelFacts,
    overrides: Collection[str],
) -> frozenset[tuple[str, str]]:
    """The fields that KVM hides from guests and takes from them as the hardware has them: those of
    `HIDDEN` that are 0 in a vCPU here and are not in the recorded one, made on the same CPU.

    Equal MIDR_EL1 and REVIDR_EL1 are the same CPU, and so what it has there, it has here; a
    REVIDR_EL1 that is not known may be equal. A kernel that has the masks ioctl shows these fields
    as they are, or hides them and takes them: set_id_aa64pfr0_el1 and set_id_aa64pfr1_el1 of 6.12.8
    and newer, set_id_aa64mmfr2_el1 of 6.15 and newer.

    Args:
        recorded, local: registers by name.
        overrides: words of the kernel's command line here. The value that KVM takes is what they
            leave of the hardware's.
    """
    midrs, revidrs = ([each.get(name) for each in (recorded, local)] for name in _CPU)
    same = None not in midrs and midrs[0] == midrs[1] and len({*revidrs} - {None}) < 2
    if not same or kernel.writable is None:
        return frozenset()
    return frozenset(
        (register, field.name)
        for register in {register for register, _ in HIDDEN} & recorded.keys() & local.keys()
        for field in fields_of(register)
        if (register, field.name) in HIDDEN
        and field.of(recorded[register])
        and not field.of(local[register])
    ) - takes_hidden(overrides)


def kernel_version(release: str) -> tuple[int, int]:
    """(6, 12) from "6.12.117+deb13-cloud-arm64"; (0, 0) from what is no version."""
    numbers = release.split("-")[0].split("+")[0].split(".")
    try:
        return decimal(numbers[0], _MOST), decimal(numbers[1], _MOST)
    except (IndexError, ValueError):
        return (0, 0)


def release_numbers(release: str) -> tuple[int, ...]:
    """What orders the kernels of one vendor: (6, 12, 117) from "6.12.117+deb13-cloud-arm64",
    (5, 14, 0, 503, 11, 1) from "5.14.0-503.11.1.el9_5.aarch64".
    """
    return tuple(map(int, _numbers(release).replace("-", ".").split(".")))


def point_release(release: str) -> str:
    """The point release of a kernel as people call it: "6.12.117". Where vendors name none and
    count their builds, with the build: "6.1.0-50", "5.14.0-503.11.1".
    """
    point, _, build = _numbers(release).partition("-")
    return f"{point}-{build}" if build and point.endswith(".0") else point


def _numbers(release: str) -> str:
    import re  # not the hook's

    number = "[0-9]{1,9}"
    found = re.match(rf"{number}(\.{number})*(-{number}(\.{number})*)?(?![0-9])", release)
    return found[0] if found else "0.0"


def accepts(register: str, value: int, limit: int, kernel: KernelFacts) -> bool:
    """Whether KVM_SET_ONE_REG of `value` succeeds where a fresh vCPU has `limit`."""
    if value == limit:
        return True
    rule = _RULES.get(register)
    if rule is not None:
        return rule(value, limit)
    if register in IMPLEMENTATION_ID and kernel.identities:
        return not value & ~kernel.mask(register)
    if register.startswith("CCSIDR_") or register == "CLIDR_EL1":
        rule = _clidr if register == "CLIDR_EL1" else _ccsidr
        return virtualises_caches(kernel) and rule(value, limit)
    if refused_fields(register, value, limit, kernel):
        return False
    return not _unnamed_bits(register, value, limit)


def virtualises_caches(kernel: KernelFacts) -> bool:
    """Whether a guest can have other caches than the CPU: since 6.3. Before, they are the physical
    CPU's (demux_c15_set).
    """
    return kernel.version >= (6, 3)


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


# Before, a vCPU that PSCI turns on has the host's again (kvm_reset_vcpu).
_CLIDR_STAYS_SINCE = (6, 10)


def is_reset(register: str, version: tuple[int, int]) -> bool:
    """Whether a vCPU of this KVM that is turned on has the host's value again, whatever was set."""
    return register == "CLIDR_EL1" and version < _CLIDR_STAYS_SINCE


def keeps(register: str, value: int, registers: Mapping[str, int], kernel: KernelFacts) -> bool:
    """Whether KVM_SET_ONE_REG of `value` succeeds in a fresh vCPU that has these registers, and
    KVM_GET_ONE_REG then gives it back.

    The answers of firmware are read from the host whatever was set (kvm_arm_get_fw_reg). What a
    guest may bring along although the kernel hides it, stays hidden (`KernelFacts.hidden`), and so
    does a PMU that is no architected one.
    """
    limit = registers[register]
    if value == limit:
        return True
    kept = register not in OF_THE_HOST and not ignores(register, value, registers, kernel)
    if is_reset(register, kernel.version):
        return False
    return (
        kept
        and accepts(register, value, limit, kernel.replace(hidden=()))
        and not any(
            (register, field.name) in _IMP_DEF_IS_NONE and field.of(value) == 0xF
            for field in differing_fields(register, value, limit)
        )
    )


def differing_fields(register: str, value: int, limit: int) -> list[Field]:
    """The fields in which two values of a register differ."""
    return [field for field in fields_of(register) if field.of(value) != field.of(limit)]


def _accepts_field(field: Field, value: int, limit: int, mask: int, kernel: KernelFacts) -> bool:
    if value == limit or (field.register, field.name) in kernel.hidden:
        return True
    # "-": no entry in the kernel's table. The masks ioctl may call such a field writable;
    # arm64_check_features does not look.
    if field.policy == "-" or mask & field.mask != field.mask:
        return False
    if value < _SMALLEST.get((field.register, field.name), 0):
        return False
    if value == 0 and (field.register, field.name) in _NEVER_ZERO and kernel.version > (6, 12):
        return False
    if (field.register, field.name) in _IMP_DEF_IS_NONE:
        value = 0 if value == 0xF else value
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


def _unnamed_bits(register: str, value: int, limit: int) -> int:
    """The differing bits of a register that no field covers: never writable."""
    covered = sum(field.mask for field in fields_of(register))
    return (value ^ limit) & ~covered


def _at_most(value: int, limit: int) -> bool:
    return value <= limit


def _psci(value: int, limit: int) -> bool:
    """A known version, up to the host's; not 0.1, which is that of vCPUs without PSCI_0_2."""
    return value in (0x2, 0x10000, 0x10001, 0x10002, 0x10003) and value <= limit


def _workaround_2(value: int, limit: int) -> bool:
    """0 not available and 1 unknown count as one level, 2 available and 3 not required as another.
    0x10, "enabled", is for 2.
    """
    return value in (0, 1, 2, 3, 0x12) and value & 2 <= limit & 2


def _subset(value: int, limit: int) -> bool:
    return not value & ~limit


def _vendor_hyp_bmap_2(value: int, limit: int) -> bool:
    """A fresh vCPU has neither of the two that the kernel knows, and may be given both
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
