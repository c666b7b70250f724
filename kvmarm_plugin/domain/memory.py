# SPDX-License-Identifier: LGPL-2.1-or-later
"""How large a domain is: its memory, and its vCPUs."""

from __future__ import annotations

from ..basics.untrusted import libvirt_number, shown
from ..model.board import GIB, MOST_SLOTS
from .xml import DomainXMLError, Element

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
_MOST_COUNT = (1 << 32) - 1  # of vCPUs and memory slots; libvirt's numbers end there


def memory_of(domain: Element) -> int:
    """The addresses that QEMU lays out for a domain's memory, in bytes, with room for all that can
    be plugged in. Raises DomainXMLError as `memory_and_room` does.
    """
    return sum(memory_and_room(domain))


def memory_and_room(domain: Element) -> tuple[int, int]:
    """The memory that a domain starts with, and the room behind it for more, of which each slot
    takes up to 1 GiB of alignment (virt_set_memmap, hw/arm/virt.c); in bytes.

    Raises:
        DomainXMLError: a size that is none.
    """
    numa, most = domain.find("cpu/numa"), domain.find("maxMemory")
    cells = numa.find_all("cell") if numa else []
    # libvirt takes what the cells have together for <memory> (virDomainDefPostParseMemory).
    memory = sum(_bytes(cell, cell.attributes.get("memory", "")) for cell in cells)
    memory = memory or _size(domain.find("memory"))
    if most is None:
        return memory, 0
    room = _whole_gib(max(0, _size(most) - memory)) + slots_of(domain) * GIB
    return memory, _whole_gib(memory) - memory + room


def slots_of(domain: Element) -> int:
    """How many memory devices a domain has room for. Raises DomainXMLError."""
    most = domain.find("maxMemory")
    try:
        return libvirt_number(most.attributes.get("slots", "0"), _MOST_COUNT) if most else 0
    except ValueError as error:
        hint = f"QEMU has up to {MOST_SLOTS}"
        raise DomainXMLError(f"<maxMemory slots> is {error}", hint) from None


def vcpus_of(domain: Element) -> int:
    """The vCPUs that a domain can ever have; 0 for what is no number, which libvirt says itself."""
    vcpu = domain.find("vcpu")
    try:
        return libvirt_number(vcpu.content, _MOST_COUNT) if vcpu else 1
    except ValueError:
        return 0


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
