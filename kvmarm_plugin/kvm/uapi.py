# SPDX-License-Identifier: LGPL-2.1-or-later
"""KVM's numbers and structs, as in <linux/kvm.h> and <asm/kvm.h> of arm64 and (until Linux 5.7)
arm.

Nothing here acts. Names are the kernel's, less their common prefix.
"""

from __future__ import annotations

API_VERSION = 12

# -- ioctls ---------------------------------------------------------------------------------------

IOCTLS = {
    "KVM_GET_API_VERSION": 0xAE00,
    "KVM_CREATE_VM": 0xAE01,
    "KVM_CHECK_EXTENSION": 0xAE03,
    "KVM_CREATE_VCPU": 0xAE41,
    "KVM_CREATE_IRQCHIP": 0xAE60,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_RUN": 0xAE80,
    "KVM_GET_ONE_REG": 0x4010AEAB,
    "KVM_SET_ONE_REG": 0x4010AEAC,
    "KVM_ARM_VCPU_INIT": 0x4020AEAE,
    "KVM_ARM_PREFERRED_TARGET": 0x8020AEAF,
    "KVM_GET_REG_LIST": 0xC008AEB0,
    "KVM_ARM_GET_REG_WRITABLE_MASKS": 0x8040AEB6,
    "KVM_ARM_VCPU_FINALIZE": 0x4004AEC2,
    "KVM_ENABLE_CAP": 0x4068AEA3,
    "KVM_CREATE_DEVICE": 0xC00CAEE0,
    "KVM_SET_DEVICE_ATTR": 0x4018AEE1,
    "KVM_GET_DEVICE_ATTR": 0x4018AEE2,
}

# -- capabilities ---------------------------------------------------------------------------------

CAPABILITIES = {
    "ARM_PSCI": 87,
    "ARM_EL1_32BIT": 93,
    "ARM_PSCI_0_2": 102,
    "ARM_PMU_V3": 126,
    "ARM_VM_IPA_SIZE": 165,
    "ARM_SVE": 170,
    "ARM_PTRAUTH_ADDRESS": 171,
    "ARM_PTRAUTH_GENERIC": 172,
    "STEAL_TIME": 187,
    "ARM_MTE": 205,
    "COUNTER_OFFSET": 227,
    "ARM_SUPPORTED_REG_MASK_RANGES": 230,
    "ARM_WRITABLE_IMP_ID_REGS": 239,
    "ARM_EL2": 240,
    "ARM_EL2_E2H0": 241,
    "ARM_PMU_V3_STRICT": 251,
}

# -- vCPU features: model.vcpu has them, and the targets ------------------------------------------

FINALIZE_SVE = 4  # KVM_ARM_VCPU_SVE

# -- devices and attributes -----------------------------------------------------------------------

DEVICE_TYPE_ARM_VGIC = {2: 5, 3: 7}  # GIC version → KVM_DEV_TYPE_ARM_VGIC_*
CREATE_DEVICE_TEST = 1
VCPU_PMU_V3_CTRL, VCPU_PMU_V3_INIT = 0, 1
VGIC_GRP_DIST_REGS, VGIC_GRP_CTRL, VGIC_CTRL_INIT = 1, 4, 0
GICD_IIDR = 0x8  # its offset among the distributor's registers

# -- register ids ---------------------------------------------------------------------------------

REG_SIZE_SHIFT, REG_SIZE_MASK = 52, 0xF  # log2 of the size in bytes
REG_LARGEST = 256  # bytes: KVM_REG_SIZE_U2048, the registers of SVE
REG_ARM64_CORE_X0 = 0x6030000000100000  # user_pt_regs.regs[0]; x1 is two further, and so on
REG_ARM64_CORE_PC = 0x6030000000100040  # user_pt_regs.pc: byte 256, counted in 32-bit words
REG_ARM64_SVE_VLS = 0x606000000015FFFF


def sysreg(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """KVM's id of an AArch64 system register (ARM64_SYS_REG in <asm/kvm.h>)."""
    return 0x6030000000130000 | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


# -- structs, as formats of the module struct: the members in their order, padding as "x" --------

ONE_REG = "QQ"  # kvm_one_reg: id, addr
VCPU_INIT = "I7I"  # kvm_vcpu_init: target, features[7]
# kvm_userspace_memory_region: slot, flags, guest_phys_addr, memory_size, userspace_addr
USERSPACE_MEMORY_REGION = "IIQQQ"
ENABLE_CAP = "II4Q64x"  # kvm_enable_cap: cap, flags, args[4], pad
CREATE_DEVICE = "III"  # kvm_create_device: type, fd, flags
DEVICE_ATTR = "IIQQ"  # kvm_device_attr: flags, group, attr, addr
# reg_mask_range of KVM_ARM_GET_REG_WRITABLE_MASKS (Linux 6.7): addr, range, reserved[13]
REG_MASK_RANGE = "QI13I"
REG_LIST = "Q"  # kvm_reg_list: n, and behind it room for n ids of 64 bits

FEATURE_ID_MASKS = 192  # 3 values of op1 (0, 1, 3) × 8 of CRm × 8 of op2


def feature_id_registers() -> list[int]:
    """Register ids in the order of the masks ioctl: ``((op1 & 3) - ((op1 & 3) == 3)) << 6 | crm <<
    3 | op2``.
    """
    return [
        sysreg(3, op1, 0, crm, op2) for op1 in (0, 1, 3) for crm in range(8) for op2 in range(8)
    ]
