# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kinds of hosts: what makes hosts different to a guest, field by field of the profile, and what
does not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmarm_plugin.fleet.kinds import kinds_of
from kvmarm_plugin.judge.by_profile import check
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.problem import Problem
from kvmarm_plugin.model.profile import Cluster, HostProfile, Qemu, Vcpu
from kvmarm_plugin.model.target import Level
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import Wish
from tests.corpus import HOSTS, host
from tests.fleet import fleet

_HOST = host("trixie-max")
_CLUSTER = _HOST.clusters[0]
_VCPU = _CLUSTER.vcpus[0]
_QEMU = _HOST.qemu
assert _QEMU is not None


class _Values(NamedTuple):
    """Other values of a field: of those that decide what a guest gets, and of those that do not."""

    deciding: tuple[Any, ...] = ()
    idle: tuple[Any, ...] = ()


_FIELDS: dict[type, dict[str, _Values]] = {
    HostProfile: {
        "name": _Values(idle=("other",)),
        "origin": _Values(idle=("hand-made: from it",)),
        "made_by": _Values(idle=("kvmarm 9",)),
        "architecture": _Values(("armv7l",)),
        "kernel": _Values(("6.13.117", "5.12.117"), ("6.12.1", "6.12.118+deb13-arm64")),
        # What they do is measured, but for what KVM takes and does not show.
        "overrides": _Values((("arm64.nompam",), ("id_aa64pfr0.mpam=0",)), (("arm64.nosme",),)),
        "platform": _Values(idle=("other",)),
        "capabilities": _Values(({}, {**_HOST.capabilities, "ARM_PMU_V3": 0})),
        "ipa_bits": _Values((48,)),
        "gic_versions": _Values(((2, 3),)),
        "clusters": _Values(((), (_CLUSTER, _CLUSTER))),
        "qemu": _Values((None,)),
        "libvirt": _Values((None,), ("11.2.0", "9.0.0")),  # what it knows is in cpu_features
        "cpu_features": _Values((("sve",),), (tuple(reversed(_HOST.cpu_features)),)),
        "problems": _Values(idle=((Problem("libvirt", "none"),),)),
        "page_size": _Values((4096, 65536)),
        "gicd_iidr": _Values(idle=(0x4B00143B,)),
        "level_library": _Values(("1",)),
        "unknown": _Values((("seen", "vcpus"),), ((),)),  # which no profile told at first
    },
    Qemu: {
        "binary": _Values(idle=("/opt/qemu",)),
        "version": _Values(("10.1.13", "9.0.13"), ("10.0.1",)),
        "machines": _Values((_QEMU.machines[1:], ("virt-10.1", *_QEMU.machines))),
        "aliases": _Values(({"virt": "virt-9.2"},)),
        "cpu_models": _Values(
            idle=(("host",),)
        ),  # those that KVM takes are in the clusters' models
        "host_properties": _Values(
            ({"aarch64": True},), (dict.fromkeys(_QEMU.host_properties, False),)
        ),
    },
    Cluster: {
        "cpus": _Values(idle=("0-63",)),
        "midr": _Values((0xF0511,)),
        "revidr": _Values((None, 1)),
        "implementer": _Values(idle=("other",)),
        "part": _Values(idle=("other",)),
        "capacity": _Values(idle=(None, 512)),
        "target": _Values((4,)),
        "vcpus": _Values((_CLUSTER.vcpus[:-1],)),
        "sve_lengths": _Values(((128,),)),
        "models": _Values(({"cortex-a57": 2},)),
        "seen": _Values(({}, {**_CLUSTER.seen, "CNTFRQ_EL0": 1})),
        "writable": _Values((None, {})),
        "level": _Values((Level(), Level(("TCR2_EL1",)))),
    },
    Vcpu: {
        "number": _Values((4,)),
        "features": _Values((("psci_0_2",),)),
        "registers": _Values(({}, {**_VCPU.registers, "CTR_EL0": 1})),
        "reglist": _Values(("10000:1",)),
    },
}


def _with(kind: type, field: str, value: Any) -> HostProfile:
    """The host with another value of a field somewhere in it."""
    change = {field: value}
    if kind is HostProfile:
        return _HOST.replace(**change)
    if kind is Qemu:
        assert _HOST.qemu is not None
        return _HOST.replace(qemu=_HOST.qemu.replace(**change))
    if kind is Vcpu:
        change = {"vcpus": (_VCPU.replace(**change), *_CLUSTER.vcpus[1:])}
    return _HOST.replace(clusters=(_CLUSTER.replace(**change),))


@pytest.mark.parametrize("kind", _FIELDS)
def test_every_field_is_looked_at(kind: Any) -> None:
    assert set(_FIELDS[kind]) == set(kind.__annotations__)
    assert all(values.deciding or values.idle for values in _FIELDS[kind].values())


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (kind, field, value)
        for kind in _FIELDS
        for field, values in _FIELDS[kind].items()
        for value in values.deciding
    ],
)
def test_what_decides_makes_another_kind(kind: type, field: str, value: Any) -> None:
    assert len(kinds_of([_HOST, _with(kind, field, value)])) == 2


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (kind, field, value)
        for kind in _FIELDS
        for field, values in _FIELDS[kind].items()
        for value in values.idle
    ],
)
def test_what_decides_nothing_is_one_kind_and_gets_the_same_answers(
    kind: type, field: str, value: Any
) -> None:
    here = _with(kind, field, value)
    assert here != _HOST
    assert len(kinds_of([_HOST, here])) == 1
    targets = [Resolver(one, Policy()).target(Wish("aarch64")) for one in (_HOST, here)]
    assert targets[0] == targets[1]
    other = Resolver(host("sid-max"), Policy()).target(Wish("aarch64"))
    assert check(other, here.replace(name=_HOST.name)) == check(other, _HOST) != []


@pytest.mark.parametrize("change", [{"cpus": "0-2"}, {"capacity": 600}])
def test_of_several_clusters_size_and_place_decide(change: dict[str, Any]) -> None:
    here = host("hand-made-rk3399")
    little, big = here.clusters
    assert len(kinds_of([here, here.replace(clusters=(little.replace(**change), big))])) == 2


def test_every_host_of_the_corpus_is_a_kind_of_its_own() -> None:
    assert all(len(kind.hosts) == 1 for kind in kinds_of(map(host, HOSTS)))


@given(st.permutations(fleet(60)))
def test_the_order_of_the_hosts_decides_nothing(hosts: list[HostProfile]) -> None:
    kinds = kinds_of(hosts)
    assert kinds == kinds_of(fleet(60))
    assert all(list(kind.names) == sorted(kind.names) for kind in kinds)
    assert sorted(name for kind in kinds for name in kind.names) == sorted(
        here.name for here in hosts
    )
    assert kinds == sorted(kinds, key=lambda kind: kind.names[0])
    assert all(kind.host is kind.hosts[0] for kind in kinds)
