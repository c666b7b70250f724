# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every remedy of judge/findings.tsv works: what it says is done, to the XML, the policy or the
hosts, and the finding is gone, and nothing worse has come.

A remedy that names another kernel, QEMU or override is tried with the profile of a host that has
it. Where nothing can be tried, it says "may help"; where it says that nothing helps, nothing does.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest

import kvmarm_plugin
from kvmarm_plugin import cli
from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.commands import check_view, inputs
from kvmarm_plugin.commands.refresh import _machine_of
from kvmarm_plugin.domain.restoring import restore
from kvmarm_plugin.domain.xml import asks_for_host_model, parse
from kvmarm_plugin.fleet.baseline import baseline
from kvmarm_plugin.fleet.compare import compare
from kvmarm_plugin.fleet.levelling import levelled
from kvmarm_plugin.fleet.obstacles import find_obstacles
from kvmarm_plugin.fleet.plan import _release, _with_kernel, _with_qemu, apply_override
from kvmarm_plugin.fleet.pool import Pool, check_member
from kvmarm_plugin.judge.by_profile import check, counted
from kvmarm_plugin.judge.finding import HARMLESS, Finding, kinds
from kvmarm_plugin.judge.wording import texts
from kvmarm_plugin.model import policy as policies
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.registers.overrides import overrides
from kvmarm_plugin.registers.rules import kernel_version
from kvmarm_plugin.registers.table import fields_of
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.verdicts import judge_guest
from tests.corpus import GUEST, HOSTS, host

_N1, _MAX, _A72 = "trixie-neoverse-n1", "trixie-max", "trixie-cortex-a72"
_RK3399 = "hand-made-rk3399"


class World(NamedTuple):
    """A guest, the host that it comes from, and the one that it arrives or boots on.

    Attributes:
        xml: of the domain, as it was resolved at the source; or as somebody has edited it since.
        policy: of all hosts.
        boots: otherwise it arrives.
    """

    source: HostProfile
    destination: HostProfile
    xml: bytes
    policy: Policy = Policy()
    boots: bool = False

    def refreshed(self, machine: str = "", where: HostProfile | None = None) -> World:
        """After `kvmarm refresh` where it boots, or where it comes from, or elsewhere. Raises
        KvmarmError.
        """
        where = where or (self.destination if self.boots else self.source)
        domain = parse(self.xml)
        written = self.xml if asks_for_host_model(domain) else restore(self.xml, domain)
        resolver = Resolver(where, self.policy)
        return self._replace(xml=resolver.resolve(written, machine or _machine_of(domain)))

    def started_there(self, machine: str = "") -> World:
        """After `kvmarm refresh` at the destination, where it starts."""
        return self.refreshed(machine, self.destination)

    def back(self) -> World:
        """From the destination to the source."""
        return self._replace(source=self.destination, destination=self.source)

    def findings(self) -> list[Finding]:
        """What `kvmarm check --host DESTINATION` finds."""
        definition = inputs.STORED if self.boots else inputs.FILE
        guest = inputs.read_guest(inputs.Source("guest", self.xml, definition))
        here = self.destination
        return judge_guest(
            guest.document,
            guest.domain,
            guest.record,
            self.boots,
            counted(here),
            here.ipa_bits,
            lambda: here.qemu.release if here.qemu else (0, 0),
            lambda target, cpus: check(target, here, cpus, self.boots),
        )


def _world(
    source: HostProfile | str,
    destination: HostProfile | str,
    text: bytes = GUEST,
    policy: Policy | None = None,
    **more: Any,
) -> World:
    source = host(source) if isinstance(source, str) else source
    destination = host(destination) if isinstance(destination, str) else destination
    policy = policy or Policy()
    return World(source, destination, Resolver(source, policy).resolve(text), policy, **more)


def _edited(world: World, old: bytes, new: bytes) -> World:
    assert old in world.xml, world.xml.decode()
    return world._replace(xml=world.xml.replace(old, new, 1))


# -- what remedies say, done ---------------------------------------------------------------------

Way = Callable[[World, str], World]


def _said(pattern: str, remedy: str) -> str:
    """The part of a remedy in a pattern's group."""
    found = re.search(pattern, remedy)
    assert found, f"no {pattern!r} in: {remedy}"
    return found[1]


def _policy(world: World, remedy: str) -> World:
    settings = _said(r"set ((?:[\w-]+: \w+(?:, )?)+) in the policy", remedy)
    said = policies.loads(settings.replace(", ", "\n"))
    changes = {
        name: getattr(said, name)
        for name in Policy().as_dict()
        if getattr(said, name) != getattr(Policy(), name)
    }
    assert changes
    return world._replace(policy=world.policy.replace(**changes)).refreshed()


def _machine(world: World, remedy: str) -> World:
    return world.refreshed(_said(r"kvmarm refresh guest --machine (\S+?)(?:[,;]|$)", remedy))


def _refresh(world: World, remedy: str) -> World:
    assert re.search(r"kvmarm refresh guest(?:[,;]|$)", remedy)
    return world.refreshed()


def _refresh_there(world: World, remedy: str) -> World:
    assert re.search(r"kvmarm refresh guest(?:[,;]|$)|start the guest (?:there|on)", remedy)
    return world.started_there()


def _start_there_and_move(world: World, remedy: str) -> World:
    assert "move it from there" in remedy
    started = world.started_there()
    assert not _blocking(started._replace(source=started.destination))
    return started.back()


def _upgrade_qemu(world: World, remedy: str) -> World:
    assert "upgrade QEMU on" in remedy
    newest = max((host(name) for name in HOSTS), key=_release)
    return world._replace(destination=_with_qemu(world.destination, newest))


def _install_qemu(world: World, remedy: str) -> World:
    """An older one, or one with KVM."""
    here = world.destination
    assert here.qemu is not None
    older = re.search(r"install QEMU (\S+) or older on", remedy)
    if older:
        return world._replace(destination=here.replace(qemu=here.qemu.replace(version=older[1])))
    assert "install a QEMU on" in remedy
    return world._replace(destination=_with_qemu(here, host(_N1)))


def _upgrade_qemu_there(world: World, remedy: str) -> World:
    """libvirt, too, which comes with it."""
    assert re.search(r"upgrade libvirt and QEMU where|QEMU there has .* to be upgraded", remedy)
    newer = world._replace(source=_with_qemu(world.source, host(_N1)))
    machine = re.search(r"--machine (\S+?)[,;]", remedy)
    return newer.refreshed(machine[1] if machine else "")


def _same_linux(world: World, remedy: str) -> World:
    assert "run the same Linux on both hosts" in remedy
    twin = _twin(world)
    assert twin is not None
    return world._replace(destination=_with_kernel(world.destination, twin))


def _twin(world: World) -> HostProfile | None:
    """A recorded host like the destination that has the source's kernel; or the source itself."""
    midrs = [cluster.midr for cluster in world.destination.clusters]
    for other in (world.source, *map(host, HOSTS)):
        is_same = [cluster.midr for cluster in other.clusters] == midrs
        if is_same and other.kernel == world.source.kernel and not other.overrides:
            return other
    return None


def _boot(world: World, remedy: str) -> World:
    """With the override's word: the host there, this one, or both."""
    words = _said(r"with (arm64[^;(]*)", remedy).split()
    known = {override.word: override for override in overrides()}
    source, destination = world.source, world.destination
    for word in words:
        if re.search(r"boot .*the host that the guest comes from|boot the hosts", remedy):
            source = apply_override(source, known[word])
        if re.search(rf"boot (?:the hosts|{re.escape(destination.name)}) ", remedy):
            destination = apply_override(destination, known[word])
    booted = world._replace(source=source, destination=destination)
    return booted if source is world.source else booted.refreshed()


def _boot_without(world: World, remedy: str) -> World:
    word = _said(r"boot \S+ without (\S+)", remedy)
    here = world.destination
    assert word in here.overrides
    return world._replace(
        destination=here.replace(overrides=tuple(each for each in here.overrides if each != word))
    )


def _gic(world: World, remedy: str) -> World:
    element = _said(r"write (<gic version='\d'/>)", remedy).encode()
    xml = re.sub(rb"<gic version='\d'/>", element, world.xml)
    if most := re.search(r"with (\d+) vCPUs at most", remedy):
        xml = re.sub(rb"<vcpu([^>]*)>\d+<", rb"<vcpu\1>" + most[1].encode() + b"<", xml)
    written = world._replace(xml=xml)
    try:
        return written.refreshed()
    except KvmarmError:
        assert "if KVM there has no such GIC" in remedy
        return written.started_there()


def _less_memory(world: World, remedy: str) -> World:
    assert "less memory (<memory>, <maxMemory> and its slots, or <numa>)" in remedy
    xml = re.sub(rb"<memory unit='\w+'>\d+<", b"<memory unit='GiB'>1<", world.xml)
    xml = re.sub(rb"<maxMemory .*?</maxMemory>", b"", xml)
    smaller = world._replace(xml=xml)
    return smaller.refreshed() if "kvmarm refresh guest" in remedy else smaller


def _without_pmu(world: World, remedy: str) -> World:
    assert "remove <pmu>" in remedy
    xml = re.sub(rb"\s*<pmu [^>]*>", b"", world.xml)
    assert xml != world.xml
    return world._replace(xml=xml).started_there()


def _fewer_vcpus(world: World, remedy: str) -> World:
    count = _said(r"give the guest (\d+) vCPUs", remedy).encode()
    return world._replace(xml=re.sub(rb"<vcpu([^>]*)>\d+<", rb"<vcpu\1>" + count + b"<", world.xml))


def _fewer_slots(world: World, remedy: str) -> World:
    count = _said(r"give <maxMemory> (\d+) slots", remedy).encode()
    return world._replace(xml=re.sub(rb"slots='\d+'", b"slots='" + count + b"'", world.xml))


def _without(element: bytes) -> Way:
    def remove(world: World, remedy: str) -> World:
        assert "remove" in remedy
        xml = re.sub(element, b"", world.xml, flags=re.DOTALL)
        assert xml != world.xml
        return world._replace(xml=xml)

    return remove


def _undo(world: World, remedy: str) -> World:
    assert "undo the edit" in remedy
    return _world(world.source, world.destination, policy=world.policy, boots=world.boots)


def _install_level(world: World, remedy: str) -> World:
    assert f"install kvmarm-level on {world.destination.name}" in remedy
    return world._replace(destination=world.destination.replace(level_library="1"))


def _other_level(world: World, remedy: str) -> World:
    before = world.destination.level_library
    change = "upgrade" if before == "0" else "downgrade"
    assert f"{change} kvmarm-level on {world.destination.name}" in remedy
    assert _said(r"from version (\S+) of its text", remedy) == before
    version = _said(r"of its text to (\S+)", remedy)
    return world._replace(destination=world.destination.replace(level_library=version))


def _newer_linux(world: World, remedy: str) -> World:
    since = _said(r"run Linux (\S+) or newer on", remedy)
    newer = host(world.destination.name.replace("trixie", "sid"))
    assert kernel_version(newer.kernel) >= kernel_version(since)
    return world._replace(destination=_with_kernel(world.destination, newer))


def _unlevel(world: World, remedy: str) -> World:
    assert "remove it with virsh edit" in remedy
    xml = re.sub(rb"(?s)<qemu:commandline.*</qemu:commandline>", b"", world.xml)
    assert xml != world.xml
    return _refresh(world._replace(xml=xml), remedy)


def _host_model_again(world: World, remedy: str) -> World:
    element = _said(r"write (<cpu mode='host-model'/>)", remedy).encode()
    xml = re.sub(rb"<cpu [^>]*?(?:/>|>.*?</cpu>)", element, world.xml, count=1, flags=re.DOTALL)
    return _refresh(world._replace(xml=xml), remedy)


def _remove_record(world: World, remedy: str) -> World:
    assert "remove <kvmarm:target> from its <metadata>" in remedy
    xml = re.sub(rb"<kvmarm:target .*</kvmarm:target>", b"", world.xml, flags=re.DOTALL)
    with pytest.raises(KvmarmError, match="holds no kvmarm record"):
        world._replace(xml=xml).findings()
    return _undo(world, "undo the edit")  # without a record there is nothing to judge


def _cpuset(world: World, remedy: str) -> World:
    assert "give it a <vcpu cpuset> of one kind here" in remedy
    cpus = world.destination.clusters[0].cpus.encode()
    return _edited(world, b"<os>", b"<vcpu cpuset='" + cpus + b"'>1</vcpu><os>")


def _keep(there: str) -> Way:
    """Of the hosts that it may go to, one."""

    def keep(world: World, remedy: str) -> World:
        assert remedy.startswith("keep it on hosts")
        return world._replace(destination=host(there).replace(name="another"))

    return keep


# What each kind's remedy offers: all of it.
_LINUX: tuple[Way, ...] = (_same_linux, _start_there_and_move)
_FIELD: dict[str, tuple[Way, ...]] = {
    "switch": (_policy,),
    "switch-or-override": (_policy, _boot),
    "override-there": (_boot,),
    "override-here": (_boot,),
    "resolve-here": (_refresh_there,),
}
_WAYS: dict[str, tuple[Way, ...]] = {
    "level-library": (_install_level,),
    "level-library-other": (_other_level,),
    "level-refused-identity": (_newer_linux,),
    "level-edited": (_refresh, _undo),
    "level-unrecorded": (_unlevel,),
    "architecture-other": (_refresh_there, _keep("trixie-cortex-a57")),
    "qemu-without-kvm": (_install_qemu,),
    "qemu-without-model": (_install_qemu,),
    "addresses-laid-out": (_upgrade_qemu,),
    "model-unknown": (_policy,),
    "vcpu-unknown": (_policy,),
    "vcpu-refused": (_policy,),
    "machine-unknown": (_upgrade_qemu, _machine),
    "machine-dropped": (_machine,),
    "machine-foreign": (_machine,),
    "gic-refused": (_gic,),
    "gic-refused-version-2": (_gic,),
    "addresses-too-few-memory": (_less_memory,),
    "memory-too-large": (_less_memory,),
    "memory-needs-newer-qemu": (_upgrade_qemu, _less_memory),
    "features-left-to-qemu": (_boot, _upgrade_qemu_there),
    "pmu-off-refused": (_without_pmu,),
    "sve-lengths-refused-limit": (_policy,),
    "sve-lengths-refused-switch": (_policy,),
    "sve-lengths-left-to-qemu": (_upgrade_qemu_there,),
    **{f"field-{rule}-{of}": ways for rule in ("refused", "fixed") for of, ways in _FIELD.items()},
    "field-fixed-override-both": (_boot,),
    "field-hidden-override": (_boot_without,),
    "register-refused-firmware": (_start_there_and_move,),
    "register-refused-newer-kernel": _LINUX,
    "registers-unknown": _LINUX,
    "registers-unknown-older-qemu": (_upgrade_qemu,),
    "registers-unknown-named-model": (_policy,),
    "registers-lost": _LINUX,
    "pmu-counters": (_policy,),
    "cluster-missing": (_refresh_there, _keep(_RK3399)),
    "cluster-open": (_refresh_there, _cpuset, _keep(_N1)),
    "pin-missing": (_refresh,),
    "pin-elsewhere": (_refresh,),
    "xml-edited": (_refresh, _undo),
    "cpu-replaced": (_host_model_again, _remove_record),
    "addresses-other": (_refresh, _undo),
    "addresses-other-beyond": (_less_memory, _undo),
    "addresses-other-here-memory": (_less_memory, _undo),
    "vcpus-too-many": (_fewer_vcpus,),
    "memory-slots-too-many": (_fewer_slots,),
    "cpu-cache-refused": (_without(rb"<cache[^>]*>"),),
    "maxphysaddr-refused": (_without(rb"<maxphysaddr[^>]*>"),),
    "argument-overrules": (_without(rb"<commandline.*?</commandline>"),),
    "host-model-asked": (_refresh, _undo),
}

# Of a guest that boots; where nothing is said here, it is refreshed.
_WAYS_AT_START: dict[str, tuple[Way, ...]] = {
    "machine-unknown": (_machine, _upgrade_qemu),
    **{
        kind: _WAYS[kind]
        for kind in (
            "machine-dropped",
            "machine-foreign",
            "gic-refused",
            "gic-refused-version-2",
            "qemu-without-kvm",
            "qemu-without-model",
            "addresses-laid-out",
            "memory-too-large",
            "memory-needs-newer-qemu",
            "addresses-other-beyond",
            "pmu-off-refused",
            "cpu-replaced",
            "vcpus-too-many",
            "memory-slots-too-many",
            "maxphysaddr-refused",
            "cpu-cache-refused",
            "argument-overrules",
            "host-model-asked",
            "level-library",
            "level-library-other",
            "level-refused-identity",
            "level-unrecorded",
        )
    },
}

# Found by kernels only, with the words of another.
_SAME = {
    "vcpu-refused": "vcpu-unknown",
    "field-refused-override-here": "field-fixed-override-here",
}

# Of pools: test_a_pool_s_remedies. What a resolver says: test_resolve. What nobody measured, and is
# known once somebody does: test_known. What only a comparison knows: test_the_same_linux and
# test_hosts_without_a_machine_type_in_common.
_NO_WAY_BACK = {
    f"{kind}-no-way-back"
    for kind in ("register-refused-newer-kernel", "registers-unknown", "registers-lost")
}
_APART = {"machines-apart", "machines-apart-foreign"}
_ELSEWHERE = {
    "machines-unknown",
    "no-guest",
    "not-known",
    "register-not-known",
    *_APART,
    *_NO_WAY_BACK,
}


def test_every_remedy_is_tried() -> None:
    said = {kind: row["helps"] for kind, row in kinds().items()}
    assert {*said.values()} == {"yes", "may", "none", ""}
    assert {kind for kind, helps in said.items() if helps == "yes"} == {*_WAYS} | _ELSEWHERE
    for kind, row in kinds().items():
        assert bool(row["remedy"]) == bool(row["helps"]), kind
        assert row["remedy"].startswith("none: ") == (row["helps"] == "none"), kind
        if row["helps"] == "may":
            assert "may help" in row["remedy"], kind
    assert {*_WAYS} == {*_FOUND} | {*_SAME}
    for kind, other in _SAME.items():
        assert kinds()[kind]["remedy"] == kinds()[other]["remedy"]
        assert kinds()[kind]["start"] == kinds()[other]["start"]


# -- the findings --------------------------------------------------------------------------------


def _host(of: str, cluster: dict[str, Any] | None = None, **changes: Any) -> HostProfile:
    here = host(of)
    clusters = (here.clusters[0].replace(**cluster),) if cluster else here.clusters
    return here.replace(**{"name": f"{of}-changed", "clusters": clusters, **changes})


def _with_machines(of: str, *machines: str) -> HostProfile:
    qemu = host(of).qemu
    assert qemu is not None
    return _host(of, qemu=qemu.replace(machines=machines, aliases={"virt": machines[0]}))


def _with_version(of: str, version: str, **changes: Any) -> HostProfile:
    qemu = host(of).qemu
    assert qemu is not None
    return _host(of, qemu=qemu.replace(version=version, **changes))


def _field(of: str, path: str, value: int, feature: str = "", **cluster: Any) -> HostProfile:
    """A host with another value in a field, of the vCPUs that have a feature."""
    register, _, name = path.partition(".")
    (field,) = (field for field in fields_of(register) if field.name == name)
    mask = (1 << field.msb + 1) - (1 << field.lsb)
    vcpus = tuple(
        vcpu.replace(
            registers={
                **vcpu.registers,
                register: vcpu.registers[register] & ~mask | value << field.lsb,
            }
        )
        if not feature or feature in vcpu.features
        else vcpu
        for vcpu in host(of).clusters[0].vcpus
    )
    return _host(of, {"vcpus": vcpus, **cluster})


def _register(here: HostProfile, name: str, value: int) -> HostProfile:
    (cluster,) = here.clusters
    vcpus = tuple(vcpu.replace(registers={**vcpu.registers, name: value}) for vcpu in cluster.vcpus)
    return here.replace(name=f"{here.name}-changed", clusters=(cluster.replace(vcpus=vcpus),))


_ALL = {"ID_AA64ISAR1_EL1": (1 << 64) - 1}  # a mask with PAuth in it
_PFR1 = "ID_AA64PFR1_EL1"
_BT, _MTE = f"{_PFR1}.BT", f"{_PFR1}.MTE"
_APA, _PMUVER = "ID_AA64ISAR1_EL1.APA", "ID_AA64DFR0_EL1.PMUVer"
_DIT = "ID_AA64PFR0_EL1.DIT"
_OPEN = Policy(prefer_named=False)
_NO_PMU = Policy(prefer_named=False, pmu=False)
_ARGUMENT = (
    b"<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>"
    b"<arg value='-machine'/><arg value='mte=on'/></commandline></domain>"
)


def _machine_type(machine: str) -> bytes:
    return GUEST.replace(b"machine='virt'", f"machine='{machine}'".encode())


def _without_pmu_in_kvm(of: str) -> HostProfile:
    here = host(of)
    (cluster,) = here.clusters
    return here.replace(
        name="no-pmu",
        capabilities={k: v for k, v in here.capabilities.items() if k != "ARM_PMU_V3"},
        clusters=(
            cluster.replace(vcpus=tuple(v for v in cluster.vcpus if "pmu_v3" not in v.features)),
        ),
    )


def _without_word(of: str, word: str) -> HostProfile:
    """A host whose libvirt and QEMU have no word for a feature."""
    here = host(of)
    assert here.qemu is not None
    properties = {k: v for k, v in here.qemu.host_properties.items() if not k.startswith(word)}
    return here.replace(
        cpu_features=tuple(name for name in here.cpu_features if not name.startswith(word)),
        qemu=here.qemu.replace(host_properties=properties),
    )


def _other_big() -> HostProfile:
    """A board like the RK3399 that has other big CPUs."""
    here = host(_RK3399)
    little, big = sorted(here.clusters, key=lambda cluster: cluster.size)
    seen = {**big.seen, "MIDR_EL1": 0x410FD092}
    return here.replace(name="other", clusters=(little, big.replace(midr=0x410FD092, seen=seen)))


def _few_lengths(word: str) -> HostProfile:
    """A host that has few lengths of SVE, whose libvirt and QEMU have no word for them."""
    here = _without_word(_MAX, word)
    return here.replace(clusters=(here.clusters[0].replace(sve_lengths=(128, 256)),))


def _pinned(old: bytes, new: bytes) -> World:
    text = GUEST.replace(b"<os>", b"<vcpu>2</vcpu><os>")
    return _edited(_world(_RK3399, _RK3399, text), old, new)


# Each kind → guests of which it is found.
_FOUND: dict[str, Callable[[], list[World]]] = {
    "architecture-other": lambda: [
        _world(
            _host("trixie-cortex-a57", qemu=host("hand-made-a15-3.10").qemu),
            "hand-made-a15-3.10",
            _machine_type("virt-2.6").replace(b"aarch64", b"armv7l"),
        )
    ],
    "qemu-without-kvm": lambda: [
        _world(
            "hand-made-a15-3.10",
            _with_version("hand-made-a15-3.10", "5.2.0"),
            _machine_type("virt-2.6").replace(b"aarch64", b"armv7l"),
        )
    ],
    "qemu-without-model": lambda: [
        _world(_N1, _with_version(_N1, "10.0.13", cpu_models=("cortex-a57",))),
        _world(_N1, _with_version(_N1, "10.0.13", cpu_models=(), host_properties={})),
        _world(
            "trixie-cortex-a57", _with_version("trixie-cortex-a57", "10.0", cpu_models=("max",))
        ),
    ],
    "addresses-laid-out": lambda: [
        _world(_host(_N1, ipa_bits=36), _with_version(_N1, "6.2.0").replace(ipa_bits=36))
    ],
    "model-unknown": lambda: [
        _world("trixie-cortex-a57", _host("trixie-cortex-a57", {"models": {}}))
    ],
    "vcpu-unknown": lambda: [
        _world(_MAX, "trixie-max-nosve-nopauth"),
        _world("trixie-a64fx", apply_override(host("trixie-a64fx"), overrides()[0])),
    ],
    "machine-unknown": lambda: [
        _world("sid-neoverse-n1", _N1),
        _world(_N1, "bookworm-neoverse-n1"),
        _world(_N1, "bookworm-neoverse-n1"),
        _world(
            _with_machines(_N1, "virt-rhel9.6.0", "virt-rhel9.4.0"),
            _host(_N1, qemu=_with_machines(_N1, "virt-rhel9.4.0", "virt-rhel9.2.0").qemu),
        ),
    ],
    "machine-dropped": lambda: [
        _world(_N1, _with_machines(_N1, "virt-11.1", "virt-10.0", "virt-9.2"), xml)
        for xml in (_machine_type("virt-7.2"), _machine_type("virt-9.1"))
    ],
    "machine-foreign": lambda: [
        _world(
            _with_machines(_N1, "virt-rhel9.6.0", "virt-9.2", "virt-9.1"),
            _with_machines(_N1, "virt-9.2", "virt-9.1"),
        )
    ],
    "gic-refused": lambda: [
        _world(
            _host(_A72, gic_versions=(2, 3)),
            _A72,
            GUEST.replace(b"<os>", b"<features><gic version='2'/></features><os>"),
        ),
    ],
    "gic-refused-version-2": lambda: [
        _world(
            _host(_A72, gic_versions=(2, 3)),
            _host(_A72, gic_versions=(2,)),
            GUEST.replace(b"<os>", b"<vcpu>10</vcpu><os>"),
        ),
        _world(_host(_A72, gic_versions=(2, 3)), _host(_A72, gic_versions=(2,))),
        _world(_A72, _host(_A72, gic_versions=(2,))),
        _world(_A72, _host(_A72, gic_versions=(2,))),
        _world(
            _A72,
            _host(_A72, gic_versions=(2,)),
            GUEST.replace(b"<os>", b"<features><gic version='3'/></features><os>"),
        ),
    ],
    "addresses-too-few-memory": lambda: (
        [
            _world(_MAX, _host(_MAX, ipa_bits=bits), GUEST.replace(b"'MiB'>512<", memory))
            for bits, memory in ((40, b"'TiB'>3<"), (44, b"'TiB'>20<"))
        ]
        + [
            _world(
                _host(_N1, ipa_bits=38),
                _host(_N1, ipa_bits=36),
                GUEST.replace(b"'MiB'>512<", b"'GiB'>100<"),
            )
        ]
    ),
    "memory-too-large": lambda: [
        _world(_MAX, _host(_MAX, ipa_bits=40), GUEST.replace(b"'MiB'>512<", b"'TiB'>3<"))
    ],
    "memory-needs-newer-qemu": lambda: [
        _edited(
            _world(here, here.replace(name="there")),
            b"<memory unit='MiB'>512<",
            b"<maxMemory slots='4' unit='GiB'>%d</maxMemory><memory unit='GiB'>1<" % most,
        )
        for here, most in (
            (_with_version(_N1, "6.2.0").replace(ipa_bits=40), 600),
            (_with_version(_N1, "2.12.0"), 300),
        )
    ],
    "features-left-to-qemu": lambda: [
        _world(_without_word("trixie-max-nosve-nopauth", "pauth"), _MAX),
        _world(_without_word("trixie-max-nosve-nopauth", "sve"), _MAX),
    ],
    "pmu-off-refused": lambda: [
        _world(_N1, _without_pmu_in_kvm(_N1), policy=_NO_PMU),
        _world(_N1, _without_pmu_in_kvm(_N1), policy=_NO_PMU),
        _world(
            _N1,
            _without_pmu_in_kvm(_N1),
            GUEST.replace(b"<os>", b"<features><pmu state='off'/></features><os>"),
            _OPEN,
        ),
    ],
    "sve-lengths-refused-limit": lambda: (
        [
            _world(_MAX, _host(_MAX, {"sve_lengths": lengths}))
            for lengths in ((128, 256), (128, 512), (128, 256, 512, 1024), (128, 256, 384))
        ]
        + [_world("trixie-a64fx", _host("trixie-a64fx", {"sve_lengths": (128, 512)}))]
    ),
    "sve-lengths-refused-switch": lambda: [
        _world(_MAX, _host(_MAX, {"sve_lengths": (256, 512)})),
    ],
    "sve-lengths-left-to-qemu": lambda: [_world(_few_lengths("sve"), _MAX)],
    "field-refused-switch": lambda: [_world(_N1, _field(_N1, _PMUVER, 1, "pmu_v3"))],
    "field-fixed-switch": lambda: [
        _world("bookworm-neoverse-n1", _field("bookworm-neoverse-n1", _PMUVER, 1, "pmu_v3"))
    ],
    "field-fixed-switch-or-override": lambda: [
        _world(_MAX, _field(_MAX, _APA, value, "ptrauth_address")) for value in (2, 6)
    ],
    "field-refused-switch-or-override": lambda: [
        _world(
            _field(_MAX, _APA, 1, "ptrauth_address"),
            _field(_MAX, _APA, 2, "ptrauth_address", writable=_ALL),
        )
    ],
    "field-refused-override-there": lambda: [_world(_MAX, "trixie-max-nobti")],
    "field-fixed-override-there": lambda: [_world("bookworm-max", _field("bookworm-max", _BT, 0))],
    "field-fixed-override-here": lambda: [_world(_field("bookworm-max", _BT, 0), "bookworm-max")],
    "field-fixed-override-both": lambda: [
        _world(
            _field("bookworm-max", f"{_PFR1}.MTE", 1), _field("bookworm-max", f"{_PFR1}.MTE", 2)
        ),
        _world(
            _field("bookworm-max", f"{_PFR1}.MTE", 2), _field("bookworm-max", f"{_PFR1}.MTE", 1)
        ),
    ],
    "field-refused-resolve-here": lambda: [_world(_MAX, _field(_MAX, _DIT, 0))],
    "field-fixed-resolve-here": lambda: [_world("bookworm-max", _field("bookworm-max", _DIT, 0))],
    "field-hidden-override": lambda: [
        _world(_field(_N1, "ID_AA64PFR0_EL1.MPAM", 1), _host(_N1, overrides=("arm64.nompam",)))
    ],
    "register-refused-firmware": lambda: [
        _world(
            _register(host(_N1), "SMCCC_ARCH_WORKAROUND_1", 2),
            _register(host(_N1), "SMCCC_ARCH_WORKAROUND_1", 1),
        )
    ],
    "register-refused-newer-kernel": lambda: [
        _world("sid-neoverse-n1", _N1, _machine_type("virt-10.0")),
        _world("trixie-cortex-a72", "bookworm-cortex-a72", _machine_type("virt-7.2"), _OPEN),
    ],
    "registers-unknown": lambda: [
        _world(f"trixie-{name}", f"bookworm-{name}", _machine_type("virt-7.2"), _OPEN)
        for name in ("neoverse-n1", "cortex-a57", "cortex-a72", "max")
    ],
    "registers-unknown-older-qemu": lambda: [
        _world(_N1, _host("sid-neoverse-n1", qemu=host(_N1).qemu))
    ],
    "registers-unknown-named-model": lambda: [
        _world("trixie-cortex-a57", "sid-cortex-a57"),
    ],
    "registers-lost": lambda: [
        _world(
            _register(host("sid-neoverse-n1"), "VENDOR_HYP_BMAP_2", 1),
            _N1,
            _machine_type("virt-10.0"),
        )
    ],
    "pmu-counters": lambda: [_world(_N1, _host(_N1, {"seen": {"PMCR_EL0": 4 << 11}}))],
    "cluster-missing": lambda: [
        _world(_RK3399, _other_big()),
        _world(_RK3399, "hand-made-rk3588", _machine_type("virt-5.2")),
    ],
    "cluster-open": lambda: [_world(_N1, "hand-made-rk3588", _machine_type("virt-7.2"))],
    "pin-missing": lambda: [_pinned(b"<vcpu placement='static' cpuset='4-5'>", b"<vcpu>")],
    "pin-elsewhere": lambda: [
        _pinned(b"<vcpupin vcpu='0' cpuset='4-5'/>", b"<vcpupin vcpu='0' cpuset='0-3'/>")
    ],
    "xml-edited": lambda: [
        _edited(_world(name, name, policy=_OPEN), old, new)
        for name, old, new in (
            (_N1, b"machine='virt-10.0'", b"machine='virt-9.0'"),
            (_N1, b"<pmu state='on'/>", b"<pmu state='off'/>"),
            (_N1, b"<pmu state='on'/>", b""),
            (_N1, b"<gic version='3'/>", b""),
            (_MAX, b"policy='require' name='pauth'", b"policy='disable' name='pauth'"),
            (_MAX, b"<feature policy='require' name='sve256'/>", b""),
            (_N1, b"arch='aarch64'", b"arch='armv7l'"),
        )
    ],
    "cpu-replaced": lambda: [
        _edited(_world(_N1, _N1, policy=_OPEN), b"mode='host-passthrough'", b"mode='maximum'")
    ],
    "addresses-other-beyond": lambda: [
        _edited(_world(here, here), b"<memory unit='MiB'>512", memory)
        for here in (_host(_MAX, ipa_bits=36), _host(_MAX, ipa_bits=40))
        for memory in (
            b"<memory unit='TiB'>4",
            b"<maxMemory slots='4' unit='TiB'>30</maxMemory><memory unit='MiB'>512",
        )
    ],
    "addresses-other-here-memory": lambda: [
        _edited(_world(_MAX, _MAX), b"<memory unit='MiB'>512", b"<memory unit='GiB'>900"),
        _edited(
            _world(_MAX, _MAX), b"<os>", b"<maxMemory slots='16' unit='GiB'>900</maxMemory><os>"
        ),
    ],
    "addresses-other": lambda: [
        _edited(_world(_MAX, _MAX), b"<memory unit='MiB'>512", b"<memory unit='TiB'>4"),
    ],
    "vcpus-too-many": lambda: [_edited(_world(_N1, _N1), b"<os>", b"<vcpu>513</vcpu><os>")],
    "memory-slots-too-many": lambda: [
        _edited(_world(_N1, _N1), b"<os>", b"<maxMemory slots='257' unit='GiB'>2</maxMemory><os>")
    ],
    "cpu-cache-refused": lambda: [
        _edited(
            _world(_N1, _N1, policy=_OPEN),
            b"check='none'>",
            b"check='none'><cache mode='passthrough'/>",
        )
    ],
    "maxphysaddr-refused": lambda: [
        _edited(
            _world(_N1, _N1, policy=_OPEN),
            b"check='none'>",
            b"check='none'><maxphysaddr mode='passthrough'/>",
        )
    ],
    "argument-overrules": lambda: [_edited(_world(_N1, _N1), b"</domain>", _ARGUMENT)],
    "host-model-asked": lambda: [
        _edited(_world(_N1, _N1, policy=_OPEN), b"mode='host-passthrough'", b"mode='host-model'")
    ],
}


def _pool(*names: str) -> HostProfile:
    """What hosts can give if they are levelled."""
    profile = levelled([host(name) for name in names], "pool").profile
    assert profile is not None
    return profile


def _levelled(*names: str) -> World:
    """A guest of such a pool, on the first of its hosts."""
    return _world(_pool(*names), host(names[0]).replace(level_library="1"))


def _with_lines_of_another() -> World:
    """A guest that is not levelled, in whose XML somebody has put what levels another."""
    (line,) = re.findall(
        rb"(?s)<qemu:commandline.*</qemu:commandline>", _levelled(_N1, "sid-neoverse-n1").xml
    )
    return _edited(_world(_N1, _N1), b"</domain>", line + b"</domain>")


_FOUND.update(
    {
        "level-library": lambda: [
            _world(_pool(_N1, "sid-neoverse-n1"), name) for name in (_N1, "sid-neoverse-n1")
        ],
        "level-library-other": lambda: [
            _world(_pool(_N1, "sid-neoverse-n1"), host(_N1).replace(level_library=version))
            for version in ("0", "2")
        ],
        "level-refused-identity": lambda: [
            _world(
                _pool("sid-cortex-a57", "sid-cortex-a72"),
                host("trixie-cortex-a72").replace(level_library="1"),
            )
        ],
        "level-edited": lambda: [
            _edited(_levelled(_N1, "sid-neoverse-n1"), old, new)
            for old, new in (
                (b"value='1 ", b"value='1 0=0 "),
                (b"is-not-loaded'", b"is-loaded'"),
                (b"value='-object'", b"value='-name'"),
            )
        ],
        "level-unrecorded": lambda: [_with_lines_of_another()],
    }
)


# -- the law -------------------------------------------------------------------------------------

# Until these are gone, what else there is stays unseen.
_HIDING = (
    "architecture-other", "model-unknown", "vcpu-unknown", "xml-edited", "cpu-replaced",
    "qemu-without-kvm", "qemu-without-model",
    "host-model-asked", "argument-overrules", "cluster-open", "cluster-missing",
)  # fmt: skip


def _subject(finding: Finding) -> tuple[str, str]:
    return finding.kind, texts(finding)["subject"]


def _blocking(world: World) -> list[Finding]:
    """What has to be mended: of what keeps a guest from booting first."""
    findings = world.findings()
    if world.boots:
        return [finding for finding in findings if finding.stops_start] or findings
    return [finding for finding in findings if finding.severity != HARMLESS]


def _check_way(world: World, finding: Finding, way: Way) -> None:
    """The remedy, done in one way, makes the verdict better."""
    remedy = texts(finding, "guest", world.boots)["remedy"]
    after = _blocking(way(world, remedy))
    there = [_subject(each) for each in after]
    assert _subject(finding) not in there, remedy
    if not any(each.kind in _HIDING for each in _blocking(world)):
        before = {subject for _, subject in map(_subject, world.findings())}
        if way is _upgrade_qemu:
            before.add("register list")  # of which older ones lose something, and say nothing
        assert {subject for _, subject in there} <= before, remedy


@pytest.mark.parametrize("boots", [False, True])
@pytest.mark.parametrize("kind", _FOUND)
def test_a_remedy_works(kind: str, boots: bool) -> None:
    tried = 0
    for world in _FOUND[kind]():
        world = world._replace(boots=boots)
        for finding in _blocking(world):
            if finding.kind != kind:
                continue
            ways = _WAYS_AT_START.get(kind, (_refresh,)) if boots else _WAYS[kind]
            for way in ways:
                _check_way(world, finding, way)
                tried += 1
    assert tried or boots or kind == "memory-too-large"


@pytest.mark.parametrize("source", HOSTS)
def test_remedies_work_between_recorded_hosts(source: str) -> None:
    """Whatever is found, if nothing else makes it hopeless."""
    for name in HOSTS:
        try:
            world = _world(source, name)
        except KvmarmError:
            continue
        found = _blocking(world)
        if any(finding.is_hopeless for finding in found):
            continue
        for finding in found:
            for way in _WAYS.get(finding.kind, ()):
                if way is _same_linux and _twin(world) is None:
                    continue
                with suppress(KvmarmError):  # which says what is in the way now
                    _check_way(world, finding, way)


def test_the_same_linux() -> None:
    one = host("trixie-cortex-a57")
    other = host("sid-cortex-a57").replace(qemu=one.qemu)
    newer = _register(
        _register(host("sid-neoverse-n1"), "VENDOR_HYP_BMAP_2", 1), "SMCCC_ARCH_WORKAROUND_1", 0
    )
    seen = set()
    for pair in ((one, other), (newer, host(_N1))):
        found = [finding for each in compare(pair, Policy()).pairs for finding in each.findings]
        mended = compare([pair[0], _with_kernel(pair[1], pair[0])], Policy()).pairs
        left = {finding.kind for each in mended for finding in each.findings}
        for kind in {finding.kind for finding in found} & _NO_WAY_BACK:
            assert kinds()[kind]["remedy"].startswith("run the same Linux on {host} and the host")
            assert kind not in left
            seen.add(kind)
    assert seen == _NO_WAY_BACK


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("one", "other", "knows", "said"),
    [
        ((4, 2), (11, 1), (6, 0), "upgrade QEMU on {older} to one that knows virt-6.0"),
        ((9, 2), (10, 0), (10, 0), "upgrade QEMU on {older} to one that knows virt-10.0"),
        ("virt-rhel9.6.0", (10, 0), None, "run the same distribution's QEMU on both hosts"),
    ],
)
def test_hosts_without_a_machine_type_in_common(
    one: tuple[int, int] | str,
    other: tuple[int, int],
    knows: tuple[int, int] | None,
    said: str,
    swapped: bool,
) -> None:
    """Both lists are at hand, and no remedy asks whether QEMU knows a type that is not in one."""

    def of(*releases: tuple[int, int] | str) -> HostProfile:
        names = (f"virt-{r[0]}.{r[1]}" if isinstance(r, tuple) else r for r in releases)
        return _with_machines(_N1, *names)

    older = of(one).replace(name="old")
    newer = of(other, *([knows] if knows and knows != other else [])).replace(name="new")
    hosts = [newer, older] if swapped else [older, newer]
    mended = of(*([knows, one] if knows else [other])).replace(name="old")
    for pair in compare(hosts, Policy()).pairs:
        found = [texts(finding)["remedy"] for finding in pair.blocking]
        ends = ("the source", "the destination")
        assert found == [] or found in [[said.format(older=end)] for end in ends]
        assert bool(found) is (pair.source != pair.destination)
    assert compare([mended, newer], Policy()).possible
    for obstacle in find_obstacles(hosts):
        assert obstacle.finding.kind in _APART
        assert texts(obstacle.finding)["remedy"] == said.format(older="old")


# -- pools ---------------------------------------------------------------------------------------


def _pool_remedy(pool: Pool, here: HostProfile) -> str:
    """What `kvmarm check POOL --host HOST` advises; empty where the host is a member."""
    report = check_view.Report("pool", check_view.MEMBER, {here.name: check_member(pool, here)})
    remedies = re.findall(r"(?m)^Remedy: (.*)$", check_view.as_text(report))
    return "; ".join(remedies)


def _members(*members: HostProfile) -> Pool:
    formed = baseline([*members]).pool
    assert formed is not None
    return formed


_MEMBERS: dict[str, Callable[[], tuple[HostProfile, HostProfile]]] = {
    "machine-unknown": lambda: (host(_N1), _with_machines(_N1, "virt-9.2", "virt-9.1")),
    "machines-unknown": lambda: (host(_N1), _with_machines(_N1, "virt-10.0", "virt-9.2")),
    "machine-dropped": lambda: (host(_N1), _with_machines(_N1, "virt-12.0", "virt-11.1")),
    "gic-refused": lambda: (
        _host(_A72, gic_versions=(2, 3)),
        _host(_A72, gic_versions=(2,)).replace(name="other"),
    ),
    "addresses-too-few": lambda: (host(_N1), _host(_N1, ipa_bits=44)),
    "override": lambda: (host("trixie-max-nobti"), host(_MAX)),
    "vcpu": lambda: (host(_MAX), host("trixie-max-nosve-nopauth")),
    "field": lambda: (host(_MAX), _field(_MAX, _DIT, 0)),
    "firmware": lambda: (
        _register(host(_N1), "SMCCC_ARCH_WORKAROUND_1", 2),
        _register(host(_N1), "SMCCC_ARCH_WORKAROUND_1", 1).replace(name="other"),
    ),
    "kernel": lambda: (host("sid-neoverse-n1"), host(_N1)),
    "timer": lambda: (host(_N1), _host(_N1, {"seen": {"CNTFRQ_EL0": 25_000_000}})),
    "cpu": lambda: (host(_N1), host(_A72)),
}


@pytest.mark.parametrize("name", _MEMBERS)
def test_a_pool_s_remedies(name: str) -> None:
    member, here = _MEMBERS[name]()
    pool = _members(member, member.replace(name="twin"))
    remedy = _pool_remedy(pool, here)
    assert remedy
    tried = 0
    if "upgrade QEMU" in remedy:
        if "if it is the older one" not in remedy or _release(here) < _release(member):
            assert "QEMU" not in _pool_remedy(pool, _with_qemu(here, member))
        tried += 1
    if words := re.findall(r"boot \S+ with ([^ ,]+)", remedy):
        known = {override.word: override for override in overrides()}
        for word in words:
            here = apply_override(here, known[word])
        assert not _pool_remedy(pool, here)
        tried += 1
    if "make the baseline anew" in remedy:
        anew = baseline([member, here])
        if anew.pool is not None:
            assert not _pool_remedy(anew.pool, here)
        else:  # it says what else there is to do
            assert anew.plan.steps
        tried += 1
    if remedy.startswith("leave "):
        assert here.name in baseline([member, member.replace(name="twin"), here]).plan.left_out
        tried += 1
    assert tried


def test_hosts_whose_addresses_differ() -> None:
    hosts = [host(_MAX), host(_MAX).replace(name="twin"), _host(_MAX, ipa_bits=36)]
    result = baseline(hosts)
    assert result.pool is None
    assert result.plan.left_out == {hosts[2].name}


# -- where nothing helps -------------------------------------------------------------------------


def _known_ways(world: World) -> Iterator[World]:
    """Everything that this program ever advises: settings, words of the kernel's command line, and
    the newest kernel and QEMU of such hosts.
    """
    for prefer, *off in itertools.product((True, False), repeat=4):
        pmu, sve, pauth = (None if each else False for each in off)
        policy = Policy(prefer_named=prefer, pmu=pmu, sve=sve, pauth=pauth, sve_max_length=128)
        yield world._replace(policy=policy)
    for override in overrides():
        source, destination = (
            apply_override(here, override) for here in (world.source, world.destination)
        )
        yield world._replace(source=source)
        yield world._replace(source=source, destination=destination)
        yield world._replace(destination=destination)
    for ends in itertools.product((True, False), repeat=2):
        changed = [
            _upgraded(here) if upgrade else here
            for here, upgrade in zip((world.source, world.destination), ends)
        ]
        yield world._replace(source=changed[0], destination=changed[1])


def _upgraded(here: HostProfile) -> HostProfile:
    """With the newest kernel, and what is the hardware's as it was."""
    midr = here.clusters[0].midr
    alike = [host(name) for name in HOSTS if host(name).clusters[0].midr == midr]
    newer = _with_kernel(here, max(alike, key=lambda other: kernel_version(other.kernel)))
    (new,), (old,) = newer.clusters, here.clusters
    vcpus = tuple(
        vcpu.replace(
            registers={
                **vcpu.registers,
                **{name: old.vcpus[0].registers[name] for name in _OF_THE_HARDWARE},
            }
        )
        for vcpu in new.vcpus
    )
    return newer.replace(
        ipa_bits=here.ipa_bits,
        gic_versions=here.gic_versions,
        clusters=(new.replace(seen=old.seen, vcpus=vcpus),),
    )


_OF_THE_HARDWARE = ("AIDR_EL1", "ID_AA64MMFR0_EL1")

_HOPELESS: dict[str, Callable[[], World]] = {
    "gic-none": lambda: _world(_N1, _host(_N1, gic_versions=())),
    "field-refused-identity": lambda: _world(_N1, "trixie-cortex-a76", policy=_OPEN),
    "timer-frequency": lambda: _world(_N1, _host(_N1, {"seen": {"CNTFRQ_EL0": 25_000_000}})),
    "timer-frequency-zero": lambda: _world(
        _host(_N1, {"seen": {"CNTFRQ_EL0": 0}}), _host(_N1, {"seen": {"CNTFRQ_EL0": 1000}})
    ),
    "zero-block-size": lambda: _world(_N1, _host(_N1, {"seen": {"DCZID_EL0": 5}})),
    "addresses-too-few": lambda: _world(_N1, _host(_N1, ipa_bits=36)),
    "addresses-other-here": lambda: _world(_host(_MAX, ipa_bits=36), _MAX),
    "register-refused": lambda: _world(_register(host(_N1), "AIDR_EL1", 1), _N1),
    "field-fixed-hopeless": lambda: _world(
        _field(_MAX, "ID_AA64MMFR0_EL1.TGRAN4_2", 2), _field(_MAX, "ID_AA64MMFR0_EL1.TGRAN4_2", 3)
    ),
}


@pytest.mark.parametrize("kind", _HOPELESS)
def test_where_nothing_helps(kind: str) -> None:
    world = _HOPELESS[kind]()
    (finding,) = (found for found in world.findings() if found.kind == kind)
    source = restore(world.xml, parse(world.xml))
    tried = 0
    for other in _known_ways(world):
        try:
            xml = Resolver(other.source, other.policy).resolve(source)
        except KvmarmError:
            continue
        found = _blocking(other._replace(xml=xml))
        assert texts(finding)["subject"] in [texts(each)["subject"] for each in found] or any(
            each.kind in _HIDING for each in found
        )
        tried += 1
    assert tried > 20


def test_what_is_hopeless() -> None:
    hopeless = {kind for kind, row in kinds().items() if row["helps"] == "none"}
    assert hopeless == {*_HOPELESS} | {
        "field-refused-hopeless",  # found by kernels only
        "addresses-differ",  # of hosts: test_hosts_whose_addresses_differ
    }


# -- commands in messages ------------------------------------------------------------------------


def _commands() -> Iterator[str]:
    for action in cli._parser()._actions:
        yield from action.choices or ()


# As something to do, and not in a sentence about it.
_COMMAND = re.compile(
    r"(?:^|(?<=: )|(?<=then )|(?<=\| ))"
    rf"kvmarm (?:{'|'.join(_commands())})"
    r"(?:(?: +(?:-\S*|[A-Z][A-Z…]*|install|uninstall)(?![a-z]))+|(?! [a-z]))"
)


def _texts() -> Iterator[tuple[str, str]]:
    """What the program may print, with X for each value, and the file that it is in."""
    package = Path(kvmarm_plugin.__file__).parent
    for path in package.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        said = {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr)  # docstrings
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", "") for part in node.values]
                said |= {*node.values}
                yield path.name, "".join(p if isinstance(p, str) else "X" for p in parts)
            elif isinstance(node, ast.Constant) and node not in said:
                yield path.name, str(node.value)
    for row in kinds().values():
        for column in ("remedy", "start"):
            yield "findings.tsv", re.sub(r"\{[^}]*\}", "X", row[column])


def test_commands_in_messages_are_whole() -> None:
    """The program's own parser takes them. FILE and PROFILE are the only names that the reader has
    to put in: where a domain is meant, the message names it.
    """
    found = 0
    for file, text in _texts():
        for command in _COMMAND.findall(text):
            _, *arguments = command.rstrip(",;:.)").split()
            assert {word.strip("…") for word in arguments if word.isupper()} <= {
                "FILE",
                "PROFILE",
                "X",
                *(["DOMAIN"] if file == "status_view.py" else []),  # of many
            }, f"{file}: {text}"
            try:
                cli._parser().parse_args(arguments)
            except SystemExit:
                pytest.fail(f"{file}: {text}")
            found += 1
    assert found > 20
