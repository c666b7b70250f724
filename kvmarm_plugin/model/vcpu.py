# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a vCPU can be made of: KVM's targets and feature bits, QEMU's named models, and the
registers that a guest of a few instructions reads.

Names and numbers are those of <linux/kvm.h> and <asm/kvm.h>, of arm64 and (until Linux 5.7) arm.
"""

from __future__ import annotations

# The numbers overlap, so each is only ever used with its KVM architecture.
TARGETS = {
    "arm": {"CORTEX_A15": 0, "CORTEX_A7": 1},
    "arm64": {
        "AEM_V8": 0,
        "FOUNDATION_V8": 1,
        "CORTEX_A57": 2,
        "XGENE_POTENZA": 3,
        "CORTEX_A53": 4,
        "GENERIC_V8": 5,
    },
}

# What to try, in order, on a kernel without KVM_ARM_PREFERRED_TARGET (before 3.13). The arm64 order
# is QEMU's until 10.1 (cpus_to_try in target/arm/kvm64.c, later kvm.c); kvmtool has the same.
FALLBACK_TARGETS = {
    "arm": ("CORTEX_A15", "CORTEX_A7"),
    "arm64": ("AEM_V8", "FOUNDATION_V8", "CORTEX_A57"),
}

# The features of kvm_vcpu_init by their bits, which differ, too.
VCPU_FEATURES = {
    "arm": {"psci_0_2": 1},
    "arm64": {
        "el1_32bit": 1,
        "psci_0_2": 2,
        "pmu_v3": 3,
        "sve": 4,
        "ptrauth_address": 5,
        "ptrauth_generic": 6,
        "has_el2": 7,
        "has_el2_e2h0": 8,
    },
}

# QEMU's named models that set a KVM target, with KVM's architecture and the number: the only ones
# besides "host" and "max" that start under KVM. Source: the kvm_target of aarch64_a57_initfn and
# aarch64_a53_initfn in target/arm/cpu64.c, and of cortex_a15_initfn in target/arm/cpu.c while QEMU
# had 32-bit KVM (before 5.2).
NAMED_MODELS = {
    "cortex-a57": ("arm64", TARGETS["arm64"]["CORTEX_A57"]),
    "cortex-a53": ("arm64", TARGETS["arm64"]["CORTEX_A53"]),
    "cortex-a15": ("arm", TARGETS["arm"]["CORTEX_A15"]),
}

# What the scratch guest reads: op0, op1, CRn, CRm and op2. CNTFRQ_EL0 and DCZID_EL0 have no
# register id in KVM. The others have one, but there the guest may see something else: MIDR_EL1 is
# the physical CPU's on kernels that do not virtualise it, CTR_EL0 may be trapped, PMCR_EL0.N is the
# PMU's.
GUEST_REGISTERS = {
    "CNTFRQ_EL0": (3, 3, 14, 0, 0),
    "DCZID_EL0": (3, 3, 0, 0, 7),
    "CTR_EL0": (3, 3, 0, 0, 1),
    "MIDR_EL1": (3, 0, 0, 0, 0),
    "PMCR_EL0": (3, 3, 9, 12, 0),
}
