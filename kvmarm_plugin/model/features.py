# SPDX-License-Identifier: LGPL-2.1-or-later
"""The vCPU features that a guest can be given or do without: a row for each, with the name that it
has at every edge.

Whatever probes, offers, chooses, compares or turns off features goes through these rows; a module
names one only for what is particular to it. docs/hacking.md adds a row.
"""

from __future__ import annotations

from ..basics.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container


class Feature(Value):
    """A row.

    Attributes:
        name: for people, in lists.
        noun: the same in a sentence, such as "a PMU".
        bits: the names of its bits of KVM_ARM_VCPU_INIT (keys of vcpu.VCPU_FEATURES), which are
            given together → the capability that offers each (keys of kvm.uapi.CAPABILITIES).
        qemu: QEMU's property, of the CPU model "host".
        libvirt: libvirt's word, in <feature name>; empty where it has an element or attribute
            instead.
        policy: the policy's setting, and the attribute of policy.Policy; empty where there is none.
        fields: those that show it, REGISTER.FIELD (registers/fields.tsv).
        override: the word of the kernel's command line that takes it from a host
            (registers/overrides.tsv); empty where there is none.
    """

    name: str
    noun: str
    bits: dict[str, str]
    qemu: str
    libvirt: str
    policy: str
    fields: tuple[str, ...]
    override: str

    @property
    def bit(self) -> str:
        """The first of its bits, which speaks for all."""
        return next(iter(self.bits))

    def is_in(self, features: Container[str]) -> bool:
        """Whether a vCPU of these features has it."""
        return self.bit in features


PMU = Feature(
    name="PMU",
    noun="a PMU",
    bits={"pmu_v3": "ARM_PMU_V3"},
    qemu="pmu",
    libvirt="",  # <pmu>, of <features>
    policy="pmu",
    fields=("ID_AA64DFR0_EL1.PMUVer", "ID_DFR0_EL1.PerfMon"),
    override="",
)
# Since this version of QEMU, "host" has no property to turn a PMU off where KVM has none, and -cpu
# host,pmu=off does not start ("target/arm/kvm: Set PMU for host only when available").
PMU_OFF_FAILS_FROM = (9, 1)

SVE = Feature(
    name="SVE",
    noun="SVE",
    bits={"sve": "ARM_SVE"},
    qemu="sve",
    libvirt="sve",
    policy="sve",
    fields=("ID_AA64PFR0_EL1.SVE",),
    override="arm64.nosve",
)
PAUTH = Feature(
    name="PAuth",
    noun="PAuth",
    bits={"ptrauth_address": "ARM_PTRAUTH_ADDRESS", "ptrauth_generic": "ARM_PTRAUTH_GENERIC"},
    qemu="pauth",
    libvirt="pauth",
    policy="pauth",
    fields=(
        "ID_AA64ISAR1_EL1.APA",
        "ID_AA64ISAR1_EL1.API",
        "ID_AA64ISAR1_EL1.GPA",
        "ID_AA64ISAR1_EL1.GPI",
        "ID_AA64ISAR2_EL1.APA3",
        "ID_AA64ISAR2_EL1.GPA3",
    ),
    override="arm64.nopauth",
)
AARCH32 = Feature(
    name="AArch32",
    noun="AArch32",
    bits={"el1_32bit": "ARM_EL1_32BIT"},
    qemu="aarch64",  # off
    libvirt="",  # <type arch='armv7l'>, of <os>
    policy="",
    fields=("ID_AA64PFR0_EL1.EL1",),
    override="",
)

# In the order in which they are measured, and tried where hosts differ. A profile's vCPUs and the
# <feature> elements of a domain, which migration and restore compare by index, are in it, too: a
# new row goes to the end.
FEATURES = (PMU, SVE, PAUTH, AARCH32)

CPU_FEATURES = tuple(
    feature for feature in FEATURES if feature.libvirt
)  # those that <feature> names

# libvirt's words for a <feature> (virCPUFeaturePolicy), and what each makes of it; None where it
# stays as it is.
CPU_FEATURE_POLICIES = {
    "force": True,
    "require": True,
    "optional": None,
    "disable": False,
    "forbid": False,
}

# vCPU feature → the capability that offers it. PSCI 0.2 is nobody's choice: QEMU takes it wherever
# KVM has it (kvm_arch_init_vcpu, target/arm/kvm.c).
OFFERED_BY = {
    "psci_0_2": "ARM_PSCI_0_2",
    **{bit: capability for feature in FEATURES for bit, capability in feature.bits.items()},
}
