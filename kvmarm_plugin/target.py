# SPDX-License-Identifier: LGPL-2.1-or-later
"""The target: what a guest is promised.

`resolve` makes it from a host profile, `record` writes it into the domain's metadata and reads it back.
"""

from __future__ import annotations

from .value import Value

# What a vCPU can be given, by the kernel's names and in the order of its bits (kvm.uapi.VCPU_FEATURES has the numbers).
VCPU_FEATURES = ("el1_32bit", "psci_0_2", "pmu_v3", "sve", "ptrauth_address", "ptrauth_generic")


class Pinning(Value):
    """The cluster that a guest is pinned to, on a host of several.

    Attributes:
        midr, revidr: of its CPUs, as in profile.Cluster: what makes it the same cluster on another host.
        cpus: their numbers on the host that the domain's pins are written for, such as "4-5"; they differ from host to host.
    """

    __slots__ = ("cpus", "midr", "revidr")
    midr: int
    revidr: int | None
    cpus: str

    def __init__(self, midr: int, revidr: int | None, cpus: str) -> None:
        self._freeze(locals())


class Target(Value):
    """A vCPU that can be made again, and what a guest sees of it.

    Attributes:
        architecture: KVM's, "arm64" or "arm". Target numbers overlap, so a number is nothing without it.
        number: of KVM_ARM_VCPU_INIT.
        features: of KVM_ARM_VCPU_INIT, keys of kvm.uapi.VCPU_FEATURES, in the order of their bits.
        model: QEMU's CPU model: "host", or the name of a model such as "cortex-a57".
        unsaid: features that the domain's XML leaves to QEMU, because libvirt or QEMU has no word for them; QEMU gives each that
            the host has.
        machine: QEMU's versioned machine type, such as "virt-10.0".
        gic: version of the guest's interrupt controller, 2 or 3.
        ipa_bits: size of the guest's physical address space.
        sve_lengths: vector lengths in bits, ascending; empty without SVE.
        seen: what a guest of a few instructions read: name of a register → value. CNTFRQ_EL0 in Hz; DCZID_EL0; PMCR_EL0 with a PMU.
            Empty where no guest was run (a profile of a 32-bit host).
        registers: name → value of every register that identifies the vCPU (registers.table.is_identity).
        reglist: the packed list of all its registers (registers.text.pack_ids).
        pinning: None where the host has CPUs of one kind, or the guest may run on any.
    """

    __slots__ = (
        "architecture",
        "features",
        "gic",
        "ipa_bits",
        "machine",
        "model",
        "number",
        "pinning",
        "registers",
        "reglist",
        "seen",
        "sve_lengths",
        "unsaid",
    )
    architecture: str
    number: int
    features: tuple[str, ...]
    model: str
    unsaid: tuple[str, ...]
    machine: str
    gic: int
    ipa_bits: int
    sve_lengths: tuple[int, ...]
    seen: dict[str, int]
    registers: dict[str, int]
    reglist: str
    pinning: Pinning | None

    def __init__(
        self,
        *,
        architecture: str,
        number: int,
        features: tuple[str, ...],
        model: str,
        unsaid: tuple[str, ...],
        machine: str,
        gic: int,
        ipa_bits: int,
        sve_lengths: tuple[int, ...],
        seen: dict[str, int],
        registers: dict[str, int],
        reglist: str,
        pinning: Pinning | None = None,
    ) -> None:
        self._freeze(locals())

    @property
    def psci(self) -> str:
        """The PSCI version offered to the guest, such as "1.1"; "0.1" where the vCPU has none to tell.

        Source: KVM_REG_ARM_PSCI_VERSION, Documentation/virt/kvm/arm/fw-pseudo-registers.rst.
        """
        return psci_version(self.registers)


def psci_version(registers: dict[str, int]) -> str:
    """The PSCI version of a vCPU with these registers; see `Target.psci`."""
    version = registers.get("PSCI_VERSION", 1)
    return f"{version >> 16}.{version & 0xFFFF}"


def sve_lengths(bitmap: int) -> tuple[int, ...]:
    """Vector lengths in bits, ascending, from the value of KVM_REG_ARM64_SVE_VLS (bit n: (n + 1) × 128 bits)."""
    return tuple((bit + 1) * 128 for bit in range(bitmap.bit_length()) if bitmap >> bit & 1)


def sve_bitmap(lengths: tuple[int, ...]) -> int:
    """The inverse of `sve_lengths`."""
    return sum(1 << length // 128 - 1 for length in lengths)
