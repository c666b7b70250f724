# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a vCPU can be made of: KVM's targets and feature bits, and QEMU's named models.

Names and numbers are those of <linux/kvm.h> and <asm/kvm.h>, of arm64 and (until Linux 5.7) arm.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# uname -m of a host, and <type arch> of a guest → KVM's word; and back.
KVM_ARCHITECTURES = {"aarch64": "arm64", "armv7l": "arm"}
LIBVIRT_ARCHITECTURES = {kvm: libvirt for libvirt, kvm in KVM_ARCHITECTURES.items()}

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
        "pmu_v3_strict": 9,
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


def in_order(features: Iterable[str]) -> tuple[str, ...]:
    """vCPU features in the order of their bits."""
    return tuple(sorted(features, key=VCPU_FEATURES["arm64"].__getitem__))
