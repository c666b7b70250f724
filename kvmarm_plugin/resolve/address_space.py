# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest physical address space: how QEMU lays it out, and how large a host lets it be."""

from __future__ import annotations

from ..judge.finding import Finding
from .wish import GIB, ResolveError, memory_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..domain.xml import Element


# Behind RAM: redistributors of a GICv3 with many vCPUs, PCIe configuration space, PCIe memory
# (extended_memmap, hw/arm/virt.c).
_HIGH_REGIONS = (64 << 20, 256 << 20, 512 << 30)


def guest_ipa_bits(memory: int, host_ipa_bits: int, host: str) -> int:
    """The guest physical address space that QEMU's virt machine asks KVM for, in bits.

    RAM starts at 1 GiB. Behind it, at 256 GiB or higher, come regions aligned to their size, as far
    as the host's limit has room for them (virt_set_memmap, virt_set_high_memmap and virt_kvm_type,
    hw/arm/virt.c).

    Args:
        memory: bytes of RAM, as in `Wish`.
        host_ipa_bits: the host's limit.
        host: its name.

    Raises:
        ResolveError: the memory does not fit.
    """
    limit = 1 << host_ipa_bits
    top = highest = GIB + memory
    if top > limit:
        raise ResolveError(
            f"the guest's memory ends at {top / GIB:.0f} GiB, KVM on host {host} has addresses up"
            f" to {limit // GIB} GiB",
            "give the guest less memory",
        )
    end = max(256 * GIB, -(-top // GIB) * GIB)
    for size in _HIGH_REGIONS:
        start = -(-end // size) * size
        if start + size <= limit:
            end = highest = start + size
    return max(32, (highest - 1).bit_length())  # KVM makes none smaller than 32


def memory_too_large(domain: Element, host_ipa_bits: int) -> list[Finding]:
    """Whether QEMU does not start a guest for its memory, which the XML says and no record.

    Args:
        host_ipa_bits: the host's limit.
    """
    try:
        end = GIB + memory_of(domain)
    except ResolveError:
        return []  # not written as libvirt writes it, and for QEMU to say
    if end <= 1 << host_ipa_bits:
        return []
    limit = (1 << host_ipa_bits) // GIB
    return [Finding("memory-too-large", recorded=-(-end // GIB), local=limit)]
