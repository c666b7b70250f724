# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kinds of hosts are, in words: no two kinds have the same."""

from __future__ import annotations

from itertools import chain

from ..basics.untrusted import shown
from ..basics.value import Value
from ..model.features import FEATURES
from ..model.guest_registers import GUEST_REGISTERS, frequency
from ..model.profile_json import digest
from ..registers.rules import kernel_version, point_release, release_numbers
from ..registers.table import fields_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from ..model.profile import HostProfile
    from .kinds import Kind

    Hosts = tuple[HostProfile, ...]


class Description(Value):
    """A kind in words.

    Attributes:
        hardware: CPUs, longest SVE vector in bits, rate of the timer.
        software: kernel, its page size, QEMU, and the overrides that all hosts have; two numbers of
            a version, or all where two tell too little.
        more: in which else it differs from kinds that are called the same.
    """

    hardware: tuple[str, ...]
    software: tuple[str, ...]
    more: tuple[str, ...]

    @property
    def text(self) -> str:
        return ", ".join((*self.hardware, *self.software, *self.more))


def describe(kinds: list[Kind]) -> list[Description]:
    """Each of these kinds, which have different capabilities."""
    found = [
        Description(
            _hardware(kind.host), (_kernel(kind), *_pages(kind), _qemu(kind), *_words(kind)), ()
        )
        for kind in kinds
    ]
    _tell_apart(list(range(len(kinds))), kinds, found)
    return found


def _tell_apart(places: list[int], kinds: list[Kind], found: list[Description]) -> None:
    """Say more of kinds that are called the same, until they are not."""
    for alike in _by_text(places, found):
        if len(alike) == 1:
            continue
        for tell in (_by_kernel, _by_qemu, *(_with(fact) for fact in _FACTS), _by_register):
            told = tell([kinds[place] for place in alike], [found[place] for place in alike])
            if len({each.text for each in told}) > 1:
                break
        else:
            told = [
                found[place].replace(
                    more=(*found[place].more, f"digest {digest(kinds[place].host)[:12]}")
                )
                for place in alike
            ]
        for place, each in zip(alike, told):
            found[place] = each
        if len({found[place].text for place in alike}) > 1:
            _tell_apart(alike, kinds, found)


def _by_text(places: list[int], found: list[Description]) -> list[list[int]]:
    alike: dict[str, list[int]] = {}
    for place in places:
        alike.setdefault(found[place].text, []).append(place)
    return list(alike.values())


# -- what there is to say ------------------------------------------------------------------------


def _hardware(host: HostProfile) -> tuple[str, ...]:
    clusters = host.clusters
    longest = max((max(cluster.sve_lengths, default=0) for cluster in clusters), default=0)
    rates = {cluster.seen["CNTFRQ_EL0"] for cluster in clusters if "CNTFRQ_EL0" in cluster.seen}
    return (
        " + ".join(shown(host.name_of(cluster, 1)) for cluster in clusters) or "no KVM",
        *([f"SVE {longest}"] if longest else []),
        *(f"timer {frequency(rate)}" for rate in sorted(rates)),
    )


def _kernel(kind: Kind) -> str:
    release = kind.host.kernel
    return "Linux {}.{}".format(*kernel_version(release)) if release else "Linux not known"


def _pages(kind: Kind) -> tuple[str, ...]:
    size = kind.host.page_size
    return (f"{size >> 10}k pages",) if size else ()


def _qemu(kind: Kind) -> str:
    if kind.host.qemu:
        return "QEMU {}.{}".format(*kind.host.qemu.release)
    return "QEMU not known" if "qemu" in kind.host.unknown else "no QEMU"


def _words(kind: Kind) -> tuple[str, ...]:
    return tuple(
        shown(word)
        for word in kind.host.overrides
        if all(word in other.overrides for other in kind.hosts)
    )


# -- what tells kinds apart that are called the same ---------------------------------------------


def _by_kernel(kinds: list[Kind], found: list[Description]) -> list[Description]:
    """By point releases, where no two kinds share one."""
    releases = [
        sorted({point_release(host.kernel) for host in kind.hosts}, key=release_numbers)
        for kind in kinds
    ]
    if not _disjoint(releases) or not all(kind.host.kernel for kind in kinds):
        return found
    return [
        each.replace(software=(f"Linux {_span(names)}", *each.software[1:]))
        for each, names in zip(found, releases)
    ]


def _by_qemu(kinds: list[Kind], found: list[Description]) -> list[Description]:
    """The same with QEMU's versions."""
    versions = [
        sorted({host.qemu.version if host.qemu else "" for host in kind.hosts}) for kind in kinds
    ]
    if not _disjoint(versions) or [""] in versions:
        return found
    return [
        each.replace(
            software=tuple(
                f"QEMU {shown(_span(names), 80)}" if part == _qemu(kind) else part
                for part in each.software
            )
        )
        for kind, each, names in zip(kinds, found, versions)
    ]


def _disjoint(lists: list[list[str]]) -> bool:
    return len({*chain(*lists)}) == sum(map(len, lists))


def _span(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def _with(
    fact: Callable[[HostProfile], str],
) -> Callable[[list[Kind], list[Description]], list[Description]]:
    """By a fact of which each host of a kind has the same."""

    def tell(kinds: list[Kind], found: list[Description]) -> list[Description]:
        return [
            each.replace(more=(*each.more, fact(kind.host))) for kind, each in zip(kinds, found)
        ]

    return tell


def _revidr(host: HostProfile) -> str:
    return "REVIDR " + " + ".join(
        "unknown" if cluster.revidr is None else f"{cluster.revidr:#x}" for cluster in host.clusters
    )


def _features(host: HostProfile) -> str:
    names = [
        feature.name
        for feature in FEATURES
        if any(cluster.has(feature.bit) for cluster in host.clusters)
    ]
    return " and ".join(names) or "no vCPU features"


def _fixed(host: HostProfile) -> str:
    """What a guest read of what decides where it may go."""
    return " + ".join(
        " ".join(
            register.text(cluster.seen[name])
            for name, register in GUEST_REGISTERS.items()
            if register.needs and name in cluster.seen
        )
        or "nothing read"
        for cluster in host.clusters
    )


def _gic(host: HostProfile) -> str:
    return f"GIC {' or '.join(map(str, host.gic_versions)) or 'none'}"


def _addresses(host: HostProfile) -> str:
    return f"addresses of {host.ipa_bits} bits"


def _machines(host: HostProfile) -> str:
    machines = host.qemu.machines if host.qemu else ()
    return f"{len(machines)} machine types up to {shown(machines[0]) if machines else 'none'}"


def _libvirt(host: HostProfile) -> str:
    return f"libvirt with {len(host.cpu_features)} CPU features" if host.libvirt else "no libvirt"


# In the order in which they are tried.
_FACTS = (_revidr, _features, _fixed, _gic, _addresses, _machines, _libvirt)


def _by_register(kinds: list[Kind], found: list[Description]) -> list[Description]:
    """By the first field, or register without fields, of which not all have the same."""
    registers = [
        kind.host.clusters[0].vcpus[0].registers
        for kind in kinds
        if kind.host.clusters and kind.host.clusters[0].vcpus
    ]
    if len(registers) < len(kinds):
        return found
    for name in registers[0]:
        values = [each.get(name) for each in registers]
        if len({*values}) == 1:
            continue
        for field in fields_of(name):
            numbers = [None if value is None else field.of(value) for value in values]
            if len({*numbers}) > 1:
                name, values = f"{name}.{field.name}", numbers
                break
        return [
            each.replace(
                more=(*each.more, f"{name} {'none' if value is None else format(value, '#x')}")
            )
            for each, value in zip(found, values)
        ]
    return found
