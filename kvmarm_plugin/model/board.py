# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU's virt board: how it lays out the guest physical address space, and how many vCPUs it has
room for (hw/arm/virt.c).

A version of QEMU is (major, minor) here, and (0, 0) stands for one of today.
"""

from __future__ import annotations

GIB = 1 << 30
RAM_START = GIB

# Behind RAM: redistributors of a GICv3 with many vCPUs, PCIe configuration space, PCIe memory
# (extended_memmap).
_HIGH_REGIONS = (64 << 20, 256 << 20, 512 << 30)
_LEAST_HIGH = 256 * GIB  # where they start, or higher

# Before it, QEMU lays them all out whether KVM has room for them or not (virt_kvm_type calls
# virt_set_memmap without a limit), and so 40 bits at least.
LEAVES_OUT_FROM = (7, 0)

# Before it, they lie at fixed addresses, and RAM ends in front of them ("Legacy RAM limit").
_MOVES_FROM = (4, 0)
_LEGACY_RAM_LIMIT = 255 * GIB

_LEAST_IPA_BITS = 32  # KVM makes no address space that is smaller

MOST_OF_GIC_2 = 8  # vCPUs, by its registers (GIC_NCPU)
MOST_BELOW_RAM = 123  # of a GICv3: so many redistributors have room there (VIRT_GIC_REDIST)
MOST_VCPUS = 512  # mc->max_cpus (virt_machine_class_init)
MOST_SLOTS = 256  # of memory that can be plugged in (ACPI_MAX_RAM_SLOTS, virt_set_memmap)
_MOST_BEFORE_3_0 = 255  # the same of machine types up to virt-2.12


def ipa_bits(memory: int, host_ipa_bits: int, qemu: tuple[int, int] = (0, 0)) -> int:
    """The guest physical address space that the board asks KVM for, in bits; more than the host has
    if the guest does not fit.

    RAM starts at 1 GiB. Behind it, at 256 GiB or higher, come regions aligned to their size, as far
    as the host's limit has room for them (virt_set_memmap, virt_set_high_memmap and virt_kvm_type).

    Args:
        memory: bytes of addresses for RAM.
        host_ipa_bits: the host's limit.
    """
    top = RAM_START + memory
    limit = 1 << host_ipa_bits
    ends = [end for end in _region_ends(top) if end <= limit or not leaves_out(qemu)]
    return max(_LEAST_IPA_BITS, (max([top, *ends]) - 1).bit_length())


def lacks_addresses(host_ipa_bits: int, qemu: tuple[int, int]) -> bool:
    """Whether this QEMU starts no guest, however small, because it lays out regions that KVM has no
    room for.
    """
    return not leaves_out(qemu) and ipa_bits(0, host_ipa_bits, qemu) > host_ipa_bits


def leaves_out(qemu: tuple[int, int]) -> bool:
    """Whether this QEMU leaves out the regions that KVM has no room for."""
    return qemu >= LEAVES_OUT_FROM or qemu == (0, 0)


def ram_limit(qemu: tuple[int, int]) -> int:
    """The most RAM that this QEMU takes, in bytes, however many addresses KVM has."""
    return _LEGACY_RAM_LIMIT if (0, 0) < qemu < _MOVES_FROM else 1 << 64


def most_memory(host_ipa_bits: int, qemu: tuple[int, int]) -> int:
    """GiB of RAM that the largest guest has with so many bits of addresses; 0 if QEMU starts
    none.
    """
    limit = 1 << host_ipa_bits
    largest = max(0, (limit - RAM_START) // GIB)
    if not leaves_out(qemu):
        while largest and _region_ends(RAM_START + largest * GIB)[-1] > limit:
            largest -= 1
    return min(largest, ram_limit(qemu) // GIB)


def needed_qemu(memory: int, host_ipa_bits: int) -> tuple[int, int]:
    """The QEMU from which on a guest with so much memory starts; (0, 0) if any starts it, or none.

    Args:
        memory, host_ipa_bits: as for `ipa_bits`.
    """
    top, limit = RAM_START + memory, 1 << host_ipa_bits
    if top > limit:
        return 0, 0
    if _region_ends(top)[-1] > limit:
        return LEAVES_OUT_FROM
    return _MOVES_FROM if memory > _LEGACY_RAM_LIMIT else (0, 0)


def most_vcpus(
    gic: int, machine: str, host_ipa_bits: int, memory: int = 0, qemu: tuple[int, int] = (0, 0)
) -> int:
    """How many vCPUs a guest can have: as many as its GIC serves, of which version 3 has a
    redistributor for each, some below RAM and the others behind (virt_redist_capacity,
    machvirt_init), and as its machine type takes.

    Args:
        gic: its version.
        machine: empty for one of today.
        host_ipa_bits, memory: as for `ipa_bits`.
    """
    if gic == 2:
        return MOST_OF_GIC_2
    if leaves_out(qemu) and _region_ends(RAM_START + memory)[0] > 1 << host_ipa_bits:
        return MOST_BELOW_RAM
    return _MOST_BEFORE_3_0 if machine.startswith("virt-2.") else MOST_VCPUS


def _region_ends(top: int) -> list[int]:
    """Where each of the regions ends that are laid out behind RAM which ends at `top`."""
    ends, end = [], max(_LEAST_HIGH, -(-top // GIB) * GIB)
    for size in _HIGH_REGIONS:
        end = -(-end // size) * size + size
        ends.append(end)
    return ends
