# SPDX-License-Identifier: LGPL-2.1-or-later
"""The target: what a guest is promised.

`resolve` makes it from a host profile, `record` writes it into the domain's metadata and reads it
back.
"""

from __future__ import annotations

from ..basics.untrusted import hexadecimal, shown
from ..basics.value import Value
from ..registers.table import bits_of, id_of, is_identity
from ..registers.text import unpack_ids
from .features import OFFERED_BY, SVE
from .guest_registers import GUEST_REGISTERS, readable
from .vcpu import NAMED_MODELS, TARGETS, in_order

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# What a vCPU can be given, by the kernel's names and in the order of its bits (vcpu.VCPU_FEATURES
# has the numbers).
GIVEN_FEATURES = in_order(OFFERED_BY)

SVE_LENGTHS = range(128, 2049, 128)  # in bits, as the Arm ARM has them
IPA_BITS = range(
    32, 53
)  # what KVM makes (ARM64_MIN_PARANGE_BITS and 52-bit addresses, arch/arm64/kvm)

_ID_PREFIX = {"arm": 0x4, "arm64": 0x6}  # of register ids: KVM_REG_ARM and KVM_REG_ARM64

_NOT_LEVELLED = ("SVE_VLS", "OSLSR_EL1")

_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-")
_LONGEST_NAME = 64


class Pinning(Value):
    """The cluster that a guest is pinned to, on a host of several.

    Attributes:
        midr, revidr: of its CPUs, as in profile.Cluster: what makes it the same cluster on another
            host.
        cpus: their numbers on the host that the domain's pins are written for, such as "4-5"; they
            differ from host to host.
    """

    midr: int
    revidr: int | None
    cpus: str


LEVEL_TEXT = "1"  # version of what libkvmarm-level is told (domain/levelling.py), and reads


class Level(Value):
    """A guest is given less than its host has: libkvmarm-level writes the target's registers into
    its vCPUs, on every host that it runs on (docs/levelling.md).

    Attributes:
        left_out: names of the registers that it does without although some kernel has them, sorted
            by their ids.
        own: names of those recorded registers that nothing levels, sorted by their ids: its pool
            knew none of them, and the kernel that it has come to lists them.
        cpus: MIDR_EL1 and REVIDR_EL1 of each CPU that its pool has, ascending: what is known of
            their PMUs and errata holds of no other. Empty where it has only the guest's.
    """

    left_out: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    cpus: tuple[tuple[int, int], ...] = ()

    @property
    def cpu_words(self) -> tuple[str, ...]:
        """`cpus` as they are written."""
        return tuple(f"{midr:#x}/{revidr:#x}" for midr, revidr in self.cpus)


def level_cpus(words: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """`Level.cpus` from its `cpu_words`. Raises ValueError."""
    parts = (word.partition("/") for word in words)
    return tuple((hexadecimal(midr), hexadecimal(revidr)) for midr, _, revidr in parts)


class Target(Value):
    """A vCPU that can be made again, and what a guest sees of it.

    Attributes:
        architecture: KVM's, "arm64" or "arm". Target numbers overlap, so a number is nothing
            without it.
        number: of KVM_ARM_VCPU_INIT.
        features: of KVM_ARM_VCPU_INIT, keys of vcpu.VCPU_FEATURES, in the order of their bits.
        model: QEMU's CPU model: "host", or the name of a model such as "cortex-a57".
        unsaid: features that the domain's XML leaves to QEMU, because libvirt or QEMU has no word
            for them; QEMU gives each that the host has.
        machine: QEMU's versioned machine type, such as "virt-10.0".
        gic: version of the guest's interrupt controller, 2 or 3.
        ipa_bits: size of the guest's physical address space.
        sve_lengths: vector lengths in bits, ascending; empty without SVE.
        seen: what a guest of a few instructions read: name of a register → value. CNTFRQ_EL0 in Hz;
            DCZID_EL0; PMCR_EL0 with a PMU. Empty where no guest was run (a profile of a 32-bit
            host).
        registers: name → value of every register that identifies the vCPU
            (registers.table.is_identity).
        reglist: the packed list of all its registers (registers.text.pack_ids).
        pinning: None where the host has CPUs of one kind, or the guest may run on any.
        roams: whether it was chosen that the guest may run on CPUs of several kinds.
        level: None for a guest that has what KVM gives by itself.
    """

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
    pinning: Pinning | None = None
    roams: bool = False
    level: Level | None = None

    @property
    def levelled(self) -> dict[str, int]:
        """The registers that libkvmarm-level writes, in the order of their ids; none of a guest
        that is not levelled.

        Not the lengths of SVE, which QEMU sets by what <cpu> says, nor OSLSR_EL1, in which a guest
        locks its debug registers.
        """
        if self.level is None:
            return {}
        others = (*_NOT_LEVELLED, *self.level.own)
        names = sorted((name for name in self.registers if name not in others), key=id_of)
        return {name: self.registers[name] for name in names}

    def seen_levelled(self, seen: dict[str, int], registers: dict[str, int]) -> dict[str, int]:
        """What the guest reads where one that nothing levels has read this.

        Args:
            seen: as `Target` has it.
            registers: name → value of those of its vCPUs there.
        """
        return {
            name: registers.get(name, value) if name in self.levelled else value
            for name, value in seen.items()
        }

    def is_levelled_for(self, midr: int, revidr: int | None) -> bool:
        """Whether its pool has this CPU.

        Args:
            midr, revidr: of the host, whatever the guest is told; None where that is not known.
        """
        assert self.level is not None
        own = tuple(self.registers.get(name) for name in ("MIDR_EL1", "REVIDR_EL1"))
        return any(
            cpu[0] == midr and (revidr is None or cpu[1] in (revidr, None))
            for cpu in self.level.cpus or (own,)
        )

    def level_with(self, registers: Iterable[str]) -> Level | None:
        """How the guest is levelled once its vCPUs have these registers: those that were not
        recorded are its host's own.
        """
        if self.level is None:
            return None
        own = (name for name in registers if name in self.level.own or name not in self.registers)
        return self.level.replace(own=tuple(sorted(own, key=id_of)))

    @property
    def psci(self) -> str:
        """The PSCI version offered to the guest, such as "1.1"; "0.1" where the vCPU has none to
        tell.

        Source: KVM_REG_ARM_PSCI_VERSION, Documentation/virt/kvm/arm/fw-pseudo-registers.rst.
        """
        return psci_version(self.registers)


def is_name(text: str) -> bool:
    """Whether this can be QEMU's name of a CPU model or a machine type: letters, digits and ``. _ +
    -`` behind the first.
    """
    return 0 < len(text) <= _LONGEST_NAME and _NAME.issuperset(text) and text[0].isalnum()


def check_target(target: Target) -> None:
    """Hold a target to what a host can give. A record is read and written only if its target is.

    Raises:
        ValueError: a number out of range, a name that is none, or two answers to one question.
    """
    if target.architecture not in TARGETS:
        raise ValueError(f"architecture {_shown(target.architecture)}")
    if target.number not in TARGETS[target.architecture].values():
        raise ValueError(f"no target number of {target.architecture}: {target.number}")
    for name in (target.model, target.machine):
        if not is_name(name):
            raise ValueError(f"not QEMU's name of a model or machine: {_shown(name)}")
    if NAMED_MODELS.get(target.model, (target.architecture, target.number)) != (
        target.architecture,
        target.number,
    ):
        raise ValueError(f"{target.model} is not target {target.number} of {target.architecture}")
    for features in (target.features, target.unsaid):
        if features != tuple(feature for feature in GIVEN_FEATURES if feature in features):
            raise ValueError(
                f"not vCPU features in the order of their bits: {_shown(' '.join(features))}"
            )
    if target.gic not in (2, 3):
        raise ValueError(f"GIC version {target.gic}")
    if target.ipa_bits not in IPA_BITS:
        raise ValueError(f"an address space of {target.ipa_bits} bits")
    _check_registers(target)
    _check_sve(target)
    for name, value in target.seen.items():
        if name not in GUEST_REGISTERS or value >> 64:
            raise ValueError(f"nothing that a guest reads: {_shown(name)}")
    could_read = readable(target.seen, target.features)
    for name in target.seen:
        needed = GUEST_REGISTERS[name].needs
        if needed and name not in could_read:
            raise ValueError(f"{name} of a guest without {needed.noun}")
    if target.pinning is not None:
        _check_pinning(target.pinning)
        if target.roams:
            raise ValueError("pinned to a cluster, and free to run on all")
    if target.level is not None:
        _check_level(target, target.level)


def _check_registers(target: Target) -> None:
    """Only what identifies a vCPU is recorded: rehearsing pushes it into one."""
    ids = {id_of(name): name for name in target.registers}
    if not ids or len(ids) < len(target.registers):
        raise ValueError("no registers, or one of them twice")
    for reg, name in ids.items():
        if not is_identity(reg) or reg >> 60 != _ID_PREFIX[target.architecture]:
            raise ValueError(f"{name} does not identify a vCPU of {target.architecture}")
        if target.registers[name] >> bits_of(reg):
            raise ValueError(f"the value of {name} is wider than the register")
    missing = ids.keys() - unpack_ids(target.reglist)
    if missing:
        raise ValueError(f"{ids[min(missing)]} is not in the register list")


def _check_level(target: Target, level: Level) -> None:
    if target.architecture != "arm64" or target.model != "host":
        raise ValueError("a levelled guest that is not of arm64's model host")
    # What is the host's own says nothing of the next host.
    check_left_out(level, target.levelled, target.reglist)
    if list(level.own) != sorted({*level.own} & target.registers.keys(), key=id_of):
        raise ValueError("registers of the host's own, not in their order, or not recorded")
    if list(level.cpus) != sorted({*level.cpus}):
        raise ValueError("CPUs of the pool, not in their order, or one of them twice")


def check_left_out(level: Level, registers: dict[str, int], reglist: str) -> None:
    """A levelled guest does without no register that means anything to it.

    Args:
        registers: name → value of those that are written into its vCPU.
        reglist: of its vCPU, as `Target` has it.

    Raises:
        ValueError: it does, or the names are not as they are written.
    """
    from ..registers.left_out import may_be_left_out  # few guests are levelled

    ids = [id_of(name) for name in level.left_out]
    if ids != sorted({*ids}) or not unpack_ids(reglist).isdisjoint(ids):
        raise ValueError("registers left out, not in their order, or in the register list")
    for name in level.left_out:
        if not may_be_left_out(name, registers):
            raise ValueError(f"{_shown(name)} left out, which the guest may need")


def _check_sve(target: Target) -> None:
    lengths = target.sve_lengths
    if lengths != tuple(length for length in SVE_LENGTHS if length in lengths):
        raise ValueError("not SVE lengths, ascending")
    if bool(lengths) != SVE.is_in(target.features) or target.registers.get(
        "SVE_VLS", 0
    ) != sve_bitmap(lengths):
        raise ValueError("SVE lengths, the feature sve and SVE_VLS do not agree")


def check_cpus(text: str) -> None:
    """Hold the CPU numbers of a cluster to how they are written. Raises ValueError."""
    from ..basics import cpulist  # few guests are pinned

    cpus = cpulist.parse(text)
    if not cpus or cpulist.write(cpus) != text:
        raise ValueError(f"pinned to no CPUs, or not as kvmarm writes them: {_shown(text)}")


def _check_pinning(pinning: Pinning) -> None:
    check_cpus(pinning.cpus)
    if (pinning.midr | (pinning.revidr or 0)) >> 64:
        raise ValueError("MIDR or REVIDR of more than 64 bits")


def _shown(text: str) -> str:
    return repr(shown(text, 60))


def psci_version(registers: dict[str, int]) -> str:
    """The PSCI version of a vCPU with these registers; see `Target.psci`."""
    version = registers.get("PSCI_VERSION", 1)
    return f"{version >> 16}.{version & 0xFFFF}"


def sve_lengths(bitmap: int) -> tuple[int, ...]:
    """Vector lengths in bits, ascending, from the value of KVM_REG_ARM64_SVE_VLS (bit n: (n + 1) ×
    128 bits).
    """
    return tuple((bit + 1) * 128 for bit in range(bitmap.bit_length()) if bitmap >> bit & 1)


def sve_steps(lengths: tuple[int, ...]) -> range:
    """Every vector length in bits up to the longest of these."""
    return range(128, max(lengths, default=0) + 1, 128)


def sve_bitmap(lengths: tuple[int, ...]) -> int:
    """The inverse of `sve_lengths`."""
    return sum(1 << length // 128 - 1 for length in lengths)
