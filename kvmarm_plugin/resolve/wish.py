# SPDX-License-Identifier: LGPL-2.1-or-later
"""The wish: what a domain asks for, read from its XML."""

from __future__ import annotations

from typing import NamedTuple

from ..basics.errors import KvmarmError
from ..basics.untrusted import shown
from ..domain import levelling
from ..domain.memory import memory_and_room, slots_of, vcpus_of
from ..domain.xml import ARCHITECTURES, Element, architecture_of
from ..model.board import MOST_SLOTS
from ..model.features import CPU_FEATURE_POLICIES
from ..model.vcpu import NAMED_MODELS

_LAST_COUNTS = "libvirt takes the last word: remove the others"


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
        model: the named model that it asks for; empty for whatever the host has.
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
    model: str = ""


def read_wish(domain: Element, host_architecture: str) -> Wish:
    """What a domain wants that asks for host-model, or is pinned to what it has, wherever it may
    run.

    Raises:
        ResolveError: two elements where libvirt reads one, or a word that it does not know.
        DomainXMLError: a memory size that is none.
    """
    for parent, name, counts in (
        (domain, "cpu", "libvirt reads only the first: remove the others"),
        (domain, "features", "libvirt reads them all: put what they have into one"),
        (domain.find("features"), "gic", _LAST_COUNTS),
        (domain.find("features"), "pmu", _LAST_COUNTS),
    ):
        if parent is not None and len(parent.find_all(name)) > 1:
            raise ResolveError(f"the domain has more than one <{name}>", counts)
    cpu, os_type = domain.find("cpu"), domain.find("os/type")
    assert cpu is not None  # asks_for_host_model, or why_not_adopted, has seen both
    assert os_type is not None
    model = cpu.find("model") if cpu.attributes.get("mode", "custom") == "custom" else None
    gic, pmu = domain.find("features/gic"), domain.find("features/pmu")
    if slots_of(domain) > MOST_SLOTS:
        raise ResolveError(
            f"<maxMemory> has {slots_of(domain)} slots, and QEMU starts up to {MOST_SLOTS}",
            f"give it {MOST_SLOTS} at most",
        )
    memory, room = memory_and_room(domain)
    return Wish(
        architecture=architecture_of(domain, host_architecture),
        machine=os_type.attributes.get("machine", ""),
        gic=_word(gic, "version", "host", ("2", "3", "host")) if gic else "",
        pmu=_word(pmu, "state", "on", ("on", "off")) == "on" if pmu else None,
        features=tuple(_read_feature(feature) for feature in cpu.find_all("feature")),
        memory=memory + room,
        room=room,
        vcpus=vcpus_of(domain),
        model=model.content.strip() if model else "",
    )


def why_not_adopted(domain: Element, host_architecture: str = "aarch64") -> str:
    """Why no record can be made of what a domain has as its user wrote it; empty if one can.

    Args:
        host_architecture: what a domain that names no architecture gets.
    """
    cpu = domain.find("cpu")
    why = why_not_ours(domain, host_architecture)
    if why:
        return why
    mode = cpu.attributes.get("mode", "custom") if cpu else "none"
    if mode == "host-model":
        return "it asks for host-model, which kvmarm define makes concrete"
    if levelling.says(domain):
        return "libkvmarm-level levels it (KVMARM_LEVEL in <qemu:commandline>), for a lost record"
    model = cpu.find("model") if cpu else None
    if mode == "custom" and model is not None:
        name = model.content.strip()
        return "" if name in NAMED_MODELS else f"KVM starts no guest of model {shown(name, 60)}"
    if mode not in ("host-passthrough", "maximum"):
        return "its XML names no CPU, and KVM starts no guest of QEMU's default"
    return ""


def why_not_ours(domain: Element, host_architecture: str = "aarch64") -> str:
    """Why a domain is none that a record can be about; empty if it is a KVM guest for ARM.

    Args:
        host_architecture: what a domain that names no architecture gets.
    """
    kind = domain.attributes.get("type", "none")
    if kind != "kvm":
        return f"it is no KVM guest (<domain type='{shown(kind, 40)}'>)"
    arch = architecture_of(domain, host_architecture)
    if arch not in ARCHITECTURES:
        return f"it is no ARM guest (<type arch='{shown(arch, 40)}'>)"
    return ""


def what_emulation_needs(domain: Element, host_architecture: str = "aarch64") -> str:
    """What to tell people of a domain that asks for host-model and is emulated: libvirt has none
    for ARM without KVM either (virQEMUCapsGetHostModel), and none is made here. Empty for others.

    Args:
        host_architecture: what a domain that names no architecture gets.
    """
    cpu, name = domain.find("cpu"), domain.find("name")
    if (
        domain.attributes.get("type") != "qemu"
        or cpu is None
        or cpu.attributes.get("mode") != "host-model"
        or architecture_of(domain, host_architecture) not in ARCHITECTURES
    ):
        return ""
    title = shown(" ".join(name.content.split()), 60) if name else "the domain"
    return (
        f"{title} keeps its host-model, which libvirt does not start: its CPU is emulated (<domain"
        " type='qemu'>); write <cpu mode='maximum'/> or a model such as cortex-a57, or type='kvm'"
    )


def _read_feature(feature: Element) -> tuple[str, bool | None]:
    policy = _word(feature, "policy", "require", tuple(CPU_FEATURE_POLICIES))
    return feature.attributes.get("name", ""), CPU_FEATURE_POLICIES[policy]


def _word(element: Element, attribute: str, default: str, known: tuple[str, ...]) -> str:
    """An attribute of which libvirt knows a few words, and refuses others: virCPUDefParseXML,
    virDomainFeaturesDefParse. Raises ResolveError.
    """
    word = element.attributes.get(attribute, default)
    if word not in known:
        *others, last = known
        raise ResolveError(
            f"<{element.name} {attribute}='{shown(word, 20)}'/> is none that libvirt knows",
            f"it knows {', '.join(others)} and {last}",
        )
    return word
