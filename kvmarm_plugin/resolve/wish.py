# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wish: what a domain asks for, read from its XML."""

from __future__ import annotations

from typing import NamedTuple

from ..basics.errors import KvmarmError
from ..basics.untrusted import decimal, shown
from ..domain.xml import Element

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

_MOST_SLOTS = (1 << 32) - 1  # libvirt's numbers end there; QEMU has up to 256


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
        memory: bytes of RAM that the guest can ever have, and room for as much as can be plugged
            in.
        cpus: the host CPUs that its own pins name, all together, ascending; empty if it has none,
            or on a host of one cluster.
        vcpus: how many it can ever have; 0 on a host of one cluster, where it does not matter.
    """

    architecture: str
    machine: str = ""
    gic: str = ""
    pmu: bool | None = None
    features: tuple[tuple[str, bool | None], ...] = ()
    memory: int = 0
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
    return Wish(
        architecture=os_type.attributes.get("arch", host_architecture),
        machine=os_type.attributes.get("machine", ""),
        gic=gic.attributes.get("version", "") if gic else "",
        pmu=None if pmu is None else pmu.attributes.get("state", "on") == "on",
        features=tuple(_read_feature(feature) for feature in cpu.find_all("feature")),
        memory=memory_of(domain),
    )


def _read_feature(feature: Element) -> tuple[str, bool | None]:
    policy = feature.attributes.get("policy", "require")
    return feature.attributes.get("name", ""), {
        "optional": None,
        "disable": False,
        "forbid": False,
    }.get(policy, True)


def memory_of(domain: Element) -> int:
    """The memory that QEMU lays out; each slot for more takes up to 1 GiB of alignment
    (virt_set_memmap, hw/arm/virt.c).
    """
    plugged = domain.find("maxMemory")
    slots = plugged.attributes.get("slots", "0") if plugged else "0"
    try:
        room = decimal(slots.strip(), _MOST_SLOTS) * GIB
    except ValueError as error:
        raise ResolveError(f"<maxMemory slots> is {error}", "QEMU has up to 256") from None
    return max(_size(domain.find("memory")), _size(plugged)) + room


def _size(element: Element | None) -> int:
    """The size in bytes that a <memory> says; libvirt's default unit is KiB
    (virDomainParseMemory).
    """
    if element is None:
        return 0
    unit = element.attributes.get("unit") or "KiB"
    try:
        size = (
            decimal(element.body.decode(errors="replace").strip(), _MOST_MEMORY)
            * _UNITS[unit.lower() if unit.isascii() else ""]
        )
        if size > _MOST_MEMORY:
            raise ValueError
    except (KeyError, ValueError):
        raise ResolveError(
            f"<{element.name}> is not a size:"
            f" {shown(element.text[:400].decode(errors='replace'), 80)}",
            "libvirt's form is <memory unit='MiB'>512</memory>",
        ) from None
    return size
