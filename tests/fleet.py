# SPDX-License-Identifier: LGPL-2.1-or-later
"""A fleet of hosts, as many as are wanted: the profiles of tests/hosts, varied as the hosts of real
data centres are.

Hosts come in racks. A rack is one delivery of hardware, installed in one way; what differs inside
of it are names, point releases and, rarely, a host that was installed in another way. So a fleet of
thousands is some dozens of kinds, and most of it is a few.
"""

from __future__ import annotations

import random
import re
from typing import Callable, NamedTuple

from kvmarm_plugin.fleet.plan import apply_override
from kvmarm_plugin.model.profile import Cluster, HostProfile, Vcpu
from kvmarm_plugin.registers.overrides import overrides
from tests.corpus import HOSTS, host

_RACK = 20
_STRAGGLERS = 0.05
_RELEASES = {"bookworm": 30, "trixie": 55, "sid": 15}
_OVERRIDES: dict[tuple[str, ...], int] = {
    (): 75,
    ("arm64.nobti",): 10,
    ("arm64.nosve",): 8,
    ("arm64.nosve", "arm64.nopauth"): 7,
}

# ID_AA64MMFR0_EL1.PARange by the bits of the physical address space that it stands for.
_PA_RANGE = {32: 0, 36: 1, 40: 2, 42: 3, 44: 4, 48: 5, 52: 6}


class _Hardware(NamedTuple):
    """A model of server.

    Attributes:
        profile: of tests/hosts that it is made from, without the release.
        weight: how many racks of it there are, relative to the others.
        frequency: of the generic timer, in Hz.
        counters: event counters that the PMU gives to guests.
        midr: of its CPU, and its name; 0 for that of the profile.
        longest: SVE vector in bits; 0 for those of the profile.
        ipa_bits: physical address space; 0 for that of the profile.
    """

    profile: str
    weight: int
    frequency: int
    counters: int = 6
    midr: int = 0
    part: str = ""
    longest: int = 0
    ipa_bits: int = 0


_HARDWARE = (
    _Hardware("neoverse-n1", 30, 25_000_000, midr=0x413FD0C1, part="Neoverse-N1"),
    _Hardware("neoverse-n1", 6, 25_000_000, counters=5, midr=0x413FD0C1, part="Neoverse-N1"),
    _Hardware("neoverse-n1", 6, 62_500_000),
    _Hardware(
        "max", 18, 1_000_000_000, midr=0x411FD401, part="Neoverse-V1", longest=256, ipa_bits=48
    ),
    _Hardware(
        "max", 10, 1_000_000_000, midr=0x410FD4F0, part="Neoverse-V2", longest=128, ipa_bits=48
    ),
    _Hardware("max", 3, 62_500_000),
    _Hardware("a64fx", 4, 100_000_000),
    _Hardware("cortex-a72", 8, 62_500_000),
    _Hardware("cortex-a72", 4, 50_000_000, midr=0x410FD082, part="Cortex-A72", ipa_bits=40),
    _Hardware("cortex-a57", 3, 50_000_000),
    _Hardware("cortex-a53", 2, 24_000_000),
    _Hardware("cortex-a76", 2, 54_000_000),
    _Hardware("hand-made-rk3588", 3, 24_000_000),
    _Hardware("hand-made-rk3399", 1, 24_000_000),
)


def fleet(count: int, seed: int = 0) -> list[HostProfile]:
    """Hosts rack by rack, each under another name; the same for the same arguments."""
    rng = random.Random(seed)
    hosts = []
    for start in range(0, count, _RACK):
        (hardware,) = rng.choices(_HARDWARE, [hardware.weight for hardware in _HARDWARE])
        usual = _installed(hardware, rng)
        for place in range(min(_RACK, count - start)):
            kind = _installed(hardware, rng) if rng.random() < _STRAGGLERS else usual
            hosts.append(_host(kind, f"rack{start // _RACK + 1:02}-node{place + 1:02}", rng))
    return hosts


def _installed(hardware: _Hardware, rng: random.Random) -> HostProfile:
    """A host of a release that there is a profile of, with the kernel's command line and the QEMU
    that somebody gave it.
    """
    releases = {
        name: weight for name, weight in _RELEASES.items() if f"{name}-{hardware.profile}" in HOSTS
    }
    release = rng.choices(list(releases), list(releases.values()))[0] + "-" if releases else ""
    here = _of_hardware(host(release + hardware.profile), hardware)
    if here.clusters[0].has("sve") and here.clusters[0].has("ptrauth_address"):
        here = _overridden(here, *rng.choices(list(_OVERRIDES), list(_OVERRIDES.values()))[0])
    return _older_qemu(here) if rng.random() < 0.1 else here


def _host(kind: HostProfile, name: str, rng: random.Random) -> HostProfile:
    """One host of a kind, updated on another day than its neighbour."""
    assert kind.qemu is not None
    assert kind.libvirt is not None
    cpus = f"0-{rng.choice((63, 79))}"
    return kind.replace(
        name=name,
        origin="hand-made: from a profile of tests/hosts, for the tests",
        kernel=re.sub(r"^(\d+\.\d+\.(?:0-)?)\d+", rf"\g<1>{rng.randint(30, 120)}", kind.kernel),
        qemu=kind.qemu.replace(
            version=f"{kind.qemu.version.rpartition('.')[0]}.{rng.randint(0, 20)}"
        ),
        libvirt=f"{kind.libvirt.rpartition('.')[0]}.{rng.randint(0, 3)}",
        clusters=kind.clusters
        if len(kind.clusters) > 1
        else (kind.clusters[0].replace(cpus=cpus),),
    )


def _overridden(here: HostProfile, *words: str) -> HostProfile:
    """The host booted with these words more on its kernel's command line."""
    known = {override.word: override for override in overrides()}
    for word in words:
        here = apply_override(here, known[word])
    return here


def _of_hardware(here: HostProfile, hardware: _Hardware) -> HostProfile:
    """The host of a profile on another model of server."""
    here = here.replace(clusters=tuple(_with_seen(cluster, hardware) for cluster in here.clusters))
    if hardware.midr:
        here = here.replace(
            clusters=tuple(
                cluster.replace(
                    midr=hardware.midr,
                    implementer="ARM",
                    part=hardware.part,
                    seen={**cluster.seen, "MIDR_EL1": hardware.midr},
                )
                for cluster in here.clusters
            ),
        )
        here = _with_vcpus(here, lambda vcpu: _with_register(vcpu, "MIDR_EL1", hardware.midr))
    if hardware.longest:
        lengths = tuple(
            length for length in here.clusters[0].sve_lengths if length <= hardware.longest
        )
        here = here.replace(
            clusters=tuple(cluster.replace(sve_lengths=lengths) for cluster in here.clusters)
        )
        bitmap = sum(1 << length // 128 - 1 for length in lengths)
        here = _with_vcpus(
            here,
            lambda vcpu: (
                _with_register(vcpu, "SVE_VLS", bitmap) if "sve" in vcpu.features else vcpu
            ),
        )
    return _with_addresses(here, hardware.ipa_bits) if hardware.ipa_bits else here


def _with_seen(cluster: Cluster, hardware: _Hardware) -> Cluster:
    pmcr = cluster.seen["PMCR_EL0"] & ~(31 << 11) | hardware.counters << 11
    return cluster.replace(
        seen={**cluster.seen, "CNTFRQ_EL0": hardware.frequency, "PMCR_EL0": pmcr}
    )


def _with_addresses(here: HostProfile, bits: int) -> HostProfile:
    here = here.replace(ipa_bits=bits, capabilities={**here.capabilities, "ARM_VM_IPA_SIZE": bits})
    name = "ID_AA64MMFR0_EL1"
    return _with_vcpus(
        here, lambda vcpu: _with_register(vcpu, name, vcpu.registers[name] & ~0xF | _PA_RANGE[bits])
    )


def _older_qemu(here: HostProfile) -> HostProfile:
    """The host with the QEMU before the one that it has, as far as its machine types tell."""
    assert here.qemu is not None
    _, *machines = here.qemu.machines
    version = f"{machines[0].partition('-')[2]}.0"
    return here.replace(
        qemu=here.qemu.replace(
            version=version, machines=tuple(machines), aliases={"virt": machines[0]}
        )
    )


def _with_register(vcpu: Vcpu, name: str, value: int) -> Vcpu:
    return vcpu.replace(registers={**vcpu.registers, name: value})


def _with_vcpus(here: HostProfile, change: Callable[[Vcpu], Vcpu]) -> HostProfile:
    return here.replace(
        clusters=tuple(
            cluster.replace(vcpus=tuple(map(change, cluster.vcpus))) for cluster in here.clusters
        )
    )
