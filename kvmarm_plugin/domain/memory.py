# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory of a guest, and the addresses that QEMU's virt machine gives it."""

from __future__ import annotations

from ..basics.untrusted import libvirt_number, shown
from .xml import DomainXMLError, Element

GIB = 1 << 30

# As libvirt has them (virScaleInteger), in lower case.
_UNITS: dict[str, int] = {
    "b": 1,
    "byte": 1,
    "bytes": 1,
    **{
        letter + suffix: base**power
        for power, letter in enumerate("kmgtpe", 1)
        for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
    },
}
_MOST_MEMORY = (1 << 64) - 1  # bytes; libvirt's and QEMU's numbers end there
_MOST_SLOTS = (1 << 32) - 1  # libvirt's numbers end there; QEMU has up to 256

# Behind RAM: redistributors of a GICv3 with many vCPUs, PCIe configuration space, PCIe memory
# (extended_memmap, hw/arm/virt.c).
_HIGH_REGIONS = (64 << 20, 256 << 20, 512 << 30)


def memory_of(domain: Element) -> int:
    """The memory that QEMU lays out for a domain, in bytes: what the guest can ever have, and up to
    1 GiB of alignment for each slot for more (virt_set_memmap, hw/arm/virt.c).

    Raises:
        DomainXMLError: a size that is none.
    """
    numa, most = domain.find("cpu/numa"), domain.find("maxMemory")
    cells = numa.find_all("cell") if numa else []
    # libvirt takes what the cells have together for <memory> (virDomainDefPostParseMemory).
    memory = sum(_bytes(cell, cell.attributes.get("memory", "")) for cell in cells)
    memory = memory or _size(domain.find("memory"))
    if most is None:
        return memory
    try:
        slots = libvirt_number(most.attributes.get("slots", "0"), _MOST_SLOTS)
    except ValueError as error:
        raise DomainXMLError(f"<maxMemory slots> is {error}", "QEMU has up to 256") from None
    return _whole_gib(memory) + _whole_gib(max(0, _size(most) - memory)) + slots * GIB


def _whole_gib(size: int) -> int:
    return -(-size // GIB) * GIB


def _size(element: Element | None) -> int:
    """Of an element's text; one that is empty says nothing."""
    text = element.content if element else ""
    return _bytes(element, text) if element and text else 0


def _bytes(element: Element, number: str) -> int:
    """A size; without a unit it is in KiB (virDomainParseMemory)."""
    unit = element.attributes.get("unit") or "KiB"
    try:
        size = libvirt_number(number, _MOST_MEMORY) * _UNITS[unit.lower() if unit.isascii() else ""]
        if size > _MOST_MEMORY:
            raise ValueError
    except (KeyError, ValueError):
        raise DomainXMLError(
            f"<{element.name}> is not a size:"
            f" {shown(element.text[:400].decode(errors='replace'), 80)}",
            "libvirt's form is <memory unit='MiB'>512</memory>",
        ) from None
    return size


def ipa_bits(memory: int, host_ipa_bits: int) -> int:
    """The guest physical address space that QEMU's virt machine asks KVM for, in bits; more than
    the host has if the memory does not fit.

    RAM starts at 1 GiB. Behind it, at 256 GiB or higher, come regions aligned to their size, as far
    as the host's limit has room for them (virt_set_memmap, virt_set_high_memmap and virt_kvm_type,
    hw/arm/virt.c).

    Args:
        memory: from `memory_of`.
        host_ipa_bits: the host's limit.
    """
    limit = 1 << host_ipa_bits
    top = highest = GIB + memory
    end = max(256 * GIB, -(-top // GIB) * GIB)
    for size in _HIGH_REGIONS:
        start = -(-end // size) * size
        if start + size <= limit:
            end = highest = start + size
    return max(32, (highest - 1).bit_length())  # KVM makes none smaller than 32
