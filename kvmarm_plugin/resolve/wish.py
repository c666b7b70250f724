# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wish: what a domain asks for, read from its XML."""

from __future__ import annotations

from typing import NamedTuple

from ..basics.errors import KvmarmError
from ..basics.untrusted import libvirt_number, shown
from ..domain.xml import ARCHITECTURES, Element

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


GIB = 1 << 30

# As libvirt has them (virScaleInteger), in lower case.
_UNITS = {"b": 1, "byte": 1, "bytes": 1}

_SUFFIXES = (("", 1024), ("ib", 1024), ("b", 1000))

_UNITS.update(
    {
        letter + suffix: base**power
        for power, letter in enumerate("kmgtpe", 1)
        for suffix, base in _SUFFIXES
    }
)

_MOST_MEMORY = (1 << 64) - 1  # bytes; libvirt's and QEMU's numbers end there

_MOST_COUNT = (1 << 32) - 1  # of vCPUs and memory slots; libvirt's numbers end there


class ResolveError(KvmarmError):
    """This host cannot give what the domain asks for."""


class Wish(NamedTuple):
    """What a domain asks for.

    Attributes:
        architecture: of the guest: "aarch64" or "armv7l".
        machine: the machine type as written; empty for the default.
        gic: version as written: "2", "3", or "host" or nothing for whatever there is.
        pmu: True, False, or None where the domain says nothing.
        features: (name, required or None if optional or False if off) of each <feature>, in
            document order.
        memory: bytes of addresses for RAM: what the guest starts with, and room for as much as can
            be plugged in.
        room: how much of that is for plugging in.
        cpus: the host CPUs that its own pins name, all together, ascending; empty if it has none,
            or on a host of one cluster.
        vcpus: how many it can ever have; 0 where that is not known.
    """

    architecture: str
    machine: str = ""
    gic: str = ""
    pmu: bool | None = None
    features: tuple[tuple[str, bool | None], ...] = ()
    memory: int = 0
    room: int = 0
    cpus: tuple[int, ...] = ()
    vcpus: int = 0


def read_wish(domain: Element, host_architecture: str) -> Wish:
    """What a domain that asks for host-model wants, wherever it may run.

    Raises:
        ResolveError: an element twice that there is one of, or a memory size that is none.
    """
    for parent, name in (
        (domain, "cpu"),
        (domain, "features"),
        (domain.find("features"), "gic"),
        (domain.find("features"), "pmu"),
    ):
        if parent is not None and len(parent.find_all(name)) > 1:
            raise ResolveError(
                f"the domain has more than one <{name}>",
                "libvirt reads only one: remove the others",
            )
    cpu, os_type = domain.find("cpu"), domain.find("os/type")
    assert cpu is not None  # asks_for_host_model has seen both
    assert os_type is not None
    gic, pmu = domain.find("features/gic"), domain.find("features/pmu")
    memory, room = _memory(domain)
    return Wish(
        architecture=os_type.attributes.get("arch", host_architecture),
        machine=os_type.attributes.get("machine", ""),
        gic=gic.attributes.get("version", "") if gic else "",
        pmu=None if pmu is None else pmu.attributes.get("state", "on") == "on",
        features=tuple(_read_feature(feature) for feature in cpu.find_all("feature")),
        memory=memory + room,
        room=room,
        vcpus=_vcpus(domain),
    )


def what_emulation_needs(domain: Element, host_architecture: str = "aarch64") -> str:
    """What to tell people of a domain that asks for host-model and is emulated: libvirt has none
    for ARM without KVM either (virQEMUCapsGetHostModel), and none is made here. Empty for others.

    Args:
        host_architecture: what a domain that names no architecture gets.
    """
    cpu, os_type, name = domain.find("cpu"), domain.find("os/type"), domain.find("name")
    if (
        domain.attributes.get("type") != "qemu"
        or cpu is None
        or cpu.attributes.get("mode") != "host-model"
        or os_type is None
        or os_type.attributes.get("arch", host_architecture) not in ARCHITECTURES
    ):
        return ""
    title = shown(" ".join(name.content.split()), 60) if name else "the domain"
    return (
        f"{title} keeps its host-model, which libvirt does not start: its CPU is emulated (<domain"
        " type='qemu'>); write <cpu mode='maximum'/> or a model such as cortex-a57, or type='kvm'"
    )


def _read_feature(feature: Element) -> tuple[str, bool | None]:
    policy = feature.attributes.get("policy", "require")
    return feature.attributes.get("name", ""), {
        "optional": None,
        "disable": False,
        "forbid": False,
    }.get(policy, True)


def memory_of(domain: Element) -> int:
    """The bytes of addresses that QEMU lays out for memory, as in `Wish`."""
    return sum(_memory(domain))


def _vcpus(domain: Element) -> int:
    """The maximum; of what is no number, libvirt says so itself."""
    vcpu = domain.find("vcpu")
    try:
        return libvirt_number(vcpu.content, _MOST_COUNT) if vcpu else 1
    except ValueError:
        return 0


def _memory(domain: Element) -> tuple[int, int]:
    """The memory that QEMU lays out, and behind it the room for more, of which each slot takes up
    to 1 GiB of alignment (virt_set_memmap, hw/arm/virt.c).

    The sizes of NUMA cells count before <memory>, as they do when libvirt defines a domain
    (virDomainDefPostParseMemory).
    """
    numa, plugged = domain.find("cpu/numa"), domain.find("maxMemory")
    memory = sum(_size(cell, cell.attributes.get("memory", "")) for cell in _cells(numa))
    memory = memory or _content_size(domain.find("memory"))
    if plugged is None:
        return memory, 0
    try:
        slots = libvirt_number(plugged.attributes.get("slots", "0"), _MOST_COUNT)
    except ValueError as error:
        raise ResolveError(f"<maxMemory slots> is {error}", "QEMU has up to 256") from None
    room = _whole_gib(max(0, _content_size(plugged) - memory)) + slots * GIB
    return memory, _whole_gib(memory) - memory + room


def _whole_gib(size: int) -> int:
    return -(-size // GIB) * GIB


def _cells(numa: Element | None) -> list[Element]:
    return numa.find_all("cell") if numa else []


def _content_size(element: Element | None) -> int:
    """The size in bytes that a <memory> says; one that is empty says nothing."""
    if element is None:
        return 0
    text = element.content
    return _size(element, text) if text else 0


def _size(element: Element, number: str) -> int:
    """A size in bytes; libvirt's default unit is KiB (virDomainParseMemory)."""
    unit = element.attributes.get("unit") or "KiB"
    try:
        size = libvirt_number(number, _MOST_MEMORY) * _UNITS[unit.lower() if unit.isascii() else ""]
        if size > _MOST_MEMORY:
            raise ValueError
    except (KeyError, ValueError):
        raise ResolveError(
            f"<{element.name}> is not a size:"
            f" {shown(element.text[:400].decode(errors='replace'), 80)}",
            "libvirt's form is <memory unit='MiB'>512</memory>",
        ) from None
    return size
