# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hook and `kvmarm check` answer alike, of the same guest on the same kernel: as it starts
like check of one that is shut off, and as it arrives like check of a file. And they answer the same
whichever CPU they happen to run on.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Callable, NamedTuple

import pytest

from kvmarm_plugin import cli
from kvmarm_plugin.commands import check as check_command
from kvmarm_plugin.domain import record, rewrite
from kvmarm_plugin.domain.pins import CountedCluster
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.hook import answer as hook
from kvmarm_plugin.hook import arrival, guest
from kvmarm_plugin.host import cpus, marks, qemu_version
from kvmarm_plugin.kvm import device
from kvmarm_plugin.model import policy
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.watch.adopt import keeper
from tests.corpus import GUEST, host

from .fakehost import Scheduler, numbers
from .fakekernel import FakeKernel

if TYPE_CHECKING:
    from kvmarm_plugin.model.profile import HostProfile

_UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
_SOURCE = GUEST.replace(b"<name>", f"<uuid>{_UUID}</uuid><name>".encode()).replace(
    b"<os>", b"<vcpu>2</vcpu><os>"
)


class Said(NamedTuple):
    """What became of a guest.

    Attributes:
        stopped, doubted: by the hook: whether it was stopped, and its record called into question.
        status, verdict: of `kvmarm check`.
    """

    stopped: bool
    doubted: bool
    status: int
    verdict: str


Play = Callable[..., Said]


@pytest.fixture
def play(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Play:
    no_policy, file = str(tmp_path / "policy.yaml"), tmp_path / "guest.xml"
    monkeypatch.setattr(policy, "DEFAULT_PATH", no_policy)
    monkeypatch.setattr(policy.for_hook, "__defaults__", (no_policy,))
    for module in (arrival, guest):
        monkeypatch.setattr(module, "log", lambda *_: None)
    # libvirt asks QEMU before it asks the hook.
    monkeypatch.setattr(check_command, "machines_here", lambda _emulator: ())

    def call(source: bytes, here: HostProfile, boots: bool, first: int = 0) -> Said:
        """Both of a guest on a host.

        Args:
            first: the CPU that they run on unless they choose another.
        """
        name = os.uname_result(("Linux", here.name, here.kernel, "#1", here.architecture))
        monkeypatch.setattr(os, "uname", lambda: name)
        monkeypatch.setattr(platform, "node", lambda: here.name)
        found = [CountedCluster(c.midr, c.revidr, (*numbers(c.cpus),)) for c in here.clusters]
        monkeypatch.setattr(cpus, "find_clusters", lambda: found)
        kernel = FakeKernel.from_profile(here)
        scheduler = Scheduler(monkeypatch, [cpu for kind in found for cpu in kind.cpus])
        kernel.current_cpu = lambda: min(scheduler.allowed, key=lambda cpu: (cpu != first, cpu))
        monkeypatch.setattr(device, "SystemCalls", lambda: kernel)
        release = here.qemu.release if here.qemu else (0, 0)
        monkeypatch.setattr(qemu_version, "installed_version", lambda: release)

        stopped = hook.verify("guest", "prepare" if boots else "migrate", source)
        doubted = marks.mark_of(_UUID) is not None
        shutil.rmtree(marks.DIRECTORY, ignore_errors=True)  # and the ticket of an arrival
        capfd.readouterr()
        file.write_bytes(source)
        status = cli.main(["check", "--json", *(["--inactive"] if boots else []), str(file)])
        assert not kernel.handles
        assert scheduler.allowed == scheduler.initial
        [said] = json.loads(capfd.readouterr().out)["hosts"].values()
        return Said(stopped, doubted, status, said["verdict"])

    return call


def _both(name: str, little: HostProfile, big: HostProfile) -> HostProfile:
    """A host of two clusters, each that of a host."""
    kinds = (little.clusters[0].replace(cpus="0-3"), big.clusters[0].replace(cpus="4-5"))
    return little.replace(name=name, clusters=kinds)


_A53, _A72 = host("trixie-cortex-a53"), host("trixie-cortex-a72")
_OLD_A53, _OLD_A72 = host("bookworm-cortex-a53"), host("bookworm-cortex-a72")


def _alike() -> HostProfile:
    """A host of two clusters between which a guest may roam, since it sees the same of either but
    what only the CPU itself tells.
    """
    (cluster,) = _A72.clusters
    seen = {**cluster.seen, "MIDR_EL1": 0x410FD034, "CTR_EL0": 0x84448004}
    little = _A72.replace(clusters=(cluster.replace(midr=0x410FD034, seen=seen),))
    return _both("alike", little, _A72)


_LITTLE, _OLD, _ALIKE = _both("new", _A53, _A72), _both("old", _OLD_A53, _OLD_A72), _alike()
_BIG_FIRST = _ALIKE.replace(
    name="big-first",
    clusters=tuple(
        cluster.replace(cpus=there)
        for cluster, there in zip(reversed(_ALIKE.clusters), ("0-1", "2-5"))
    ),
)
_RK3399 = host("hand-made-rk3399")
_HOSTS = [
    _A53,
    _A72,
    _OLD_A53,
    _RK3399,
    _LITTLE,
    _OLD,
    _ALIKE,
    _BIG_FIRST,
    host("trixie-max"),
    host("sid-neoverse-n1"),
]
_ALL, _SMALL, _HOST = Policy(cluster="all"), Policy(cluster="smallest"), Policy(prefer_named=False)
_LARGE = _SOURCE.replace(b"'MiB'>512<", b"'GiB'>600<")
_GUESTS = {
    "named": (_A53, Policy()),
    "a72": (_A72, Policy()),
    "old": (_OLD_A53, _HOST),
    "max": (host("trixie-max"), Policy()),
    "sid": (host("sid-neoverse-n1"), Policy()),
    "pinned": (_LITTLE, Policy()),
    "pinned to the small": (_RK3399, _SMALL),
    "roams": (_ALIKE, _ALL),
}
_EDITS = [
    (b"", b""),
    (b"<gic version='3'/>", b"<gic version='2'/>"),
    (b"<cpu mode='host-passthrough'", b"<cpu mode='host-model'"),
    (b"'disable' name='sve'", b"'require' name='sve'"),
    (b">cortex-a53<", b">cortex-a57<"),
    (b" cpuset='4-5'>2<", b">2<"),
    (b"<emulatorpin cpuset='4-5'/>", b"<emulatorpin cpuset='0'/>"),
    (b"cpuset='4-5'", b"cpuset='0-3'"),
    (b"<vcpu>2<", b"<vcpu cpuset='4-5'>2<"),
    (b"<vcpu>2<", b"<vcpu cpuset='3-4'>2<"),
]


@pytest.mark.parametrize("guest", _GUESTS)
def test_the_hook_and_check_answer_alike(guest: str, play: Play) -> None:
    resolved = Resolver(*_GUESTS[guest]).resolve(_SOURCE)
    answers = {
        (here.name, new, boots): {
            play(source, here, boots, first)
            for first in ((0, 4) if len(here.clusters) > 1 else (0,))
        }
        for old, new in _EDITS
        if old in resolved
        for source in [resolved.replace(old, new)]
        for here in _HOSTS
        for boots in (True, False)
    }
    for (name, new, boots), several in answers.items():
        assert len(several) == 1, (name, new, boots, several)
        (said,) = several
        assert said.stopped is (said.status != 0), (name, new, boots, said)
        if boots and not said.stopped:
            assert said.doubted is (said.verdict == "drift"), (name, new, said)
    assert len({said for several in answers.values() for said in several}) > 1


def _with_addresses(here: HostProfile, bits: int) -> HostProfile:
    capabilities = {**here.capabilities, "ARM_VM_IPA_SIZE": bits}
    return here.replace(name=f"{bits}-bits", ipa_bits=bits, capabilities=capabilities)


@pytest.mark.parametrize("memory", [600, 1023, 2000, 4096])
@pytest.mark.parametrize("recorded", [40, 44])
def test_addresses_by_the_limit_of_the_host(memory: int, recorded: int, play: Play) -> None:
    """QEMU lays a guest of some hundred GiB out otherwise where there is room for more."""
    old, new = b"'GiB'>600<", b"'GiB'>%d<" % memory
    source = Resolver(_with_addresses(_A72, recorded), Policy()).resolve(_LARGE).replace(old, new)
    for bits in (36, 40, 41, 44):
        for boots in (True, False):
            said = play(source, _with_addresses(_A72, bits), boots)
            assert said.stopped is (said.status != 0), (bits, boots, said)
            if boots and not said.stopped:
                assert said.doubted is (said.verdict == "drift"), (bits, said)


def test_a_guest_that_a_larger_host_lays_out_otherwise(play: Play) -> None:
    source = Resolver(_with_addresses(_A72, 40), Policy()).resolve(_LARGE)
    at_home, away = _with_addresses(_A72, 40), _with_addresses(_A72, 44)
    for boots in (True, False):
        assert play(source, at_home, boots) == (False, False, 0, "same")
    assert play(source, away, True) == (False, True, 0, "drift")
    assert play(source, away, False) == (True, False, 3, "refuses")


def test_a_guest_that_roams_is_as_recorded_at_home(play: Play) -> None:
    """Whichever kind of CPU it is asked on: it reads another MIDR_EL1 on each."""
    source = Resolver(_ALIKE, _ALL).resolve(_SOURCE)
    for here in (_ALIKE, _BIG_FIRST):
        for first in (0, 4):
            assert play(source, here, True, first) == (False, False, 0, "same")
            assert play(source, here, False, first) == (False, False, 0, "same")


def test_a_guest_that_roams_has_to_fit_all(play: Play) -> None:
    """It arrives on a host of which one kind of CPU would do."""
    source = Resolver(_ALIKE, _ALL).resolve(_SOURCE)
    for first in (0, 4):
        assert play(source, _LITTLE, False, first) == (True, False, 3, "refuses")


def test_a_guest_starts_where_one_kind_of_cpu_does(play: Play) -> None:
    """It has no pins, and boots if its first thread comes to run on the right one."""
    source = Resolver(_A53, Policy()).resolve(_SOURCE)
    assert b"cortex-a53</model>" in source
    for first in (0, 4):
        assert play(source, _LITTLE, True, first) == (False, True, 0, "drift")


_HAS = "trixie-max-nosve-nopauth"
_OPEN = ("pmu_v3", "sve", "ptrauth_address", "ptrauth_generic")


def _adopted(here: HostProfile, pinned: bool = False) -> bytes:
    """A guest that never asked for host-model: recorded as it is, or pinned to what it has."""
    source = _SOURCE.replace(b"<cpu mode='host-model'/>", b"<cpu mode='host-passthrough'/>")
    xml = keeper(here, Policy(), lambda _: None).pin(source)
    if pinned:
        return xml
    domain = parse(xml)
    cpu, pmu, element = domain.find("cpu"), domain.find("features/pmu"), record.find(domain)
    assert cpu is not None
    assert pmu is not None
    assert element is not None
    found = record.read(element)
    found = found.replace(
        intent=record.Intent((), ()),
        target=found.target.replace(unsaid=_OPEN),
        origin=found.origin.replace(profile=""),
    )
    xml = xml.replace(cpu.text, b"<cpu mode='host-passthrough'/>").replace(pmu.text, b"")
    return rewrite.replace_record(xml, parse(xml), found)


@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("name", ["trixie-max", _HAS, "trixie-cortex-a53", "sid-neoverse-n1"])
def test_an_adopted_guest_is_refused_as_it_arrives_and_never_as_it_starts(
    name: str, pinned: bool, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = policy.HookPolicy(on_drift="refuse")
    monkeypatch.setattr(policy, "for_hook", lambda *_: strict)
    source = _adopted(host(name), pinned)
    at_home = host(name)
    assert play(source, at_home, False) == (False, False, 0, "same")
    assert play(source, at_home, True) == (False, False, 0, "same")
    for edited in (source, source.replace(b"<gic version='3'/>", b"<gic version='2'/>")):
        for here in (*_HOSTS, host(_HAS), host("trixie-a64fx")):
            arrives = play(edited, here, False)
            assert arrives.stopped is (arrives.status != 0), (here.name, arrives)
            starts = play(edited, here, True)
            assert not starts.stopped, (here.name, starts)
            assert starts.doubted is (starts.verdict != "same"), (here.name, starts)


def test_what_its_xml_leaves_to_qemu_has_to_be_the_same(play: Play) -> None:
    without, with_all = host(_HAS), host("trixie-max")
    for source, here, stopped in [
        (_adopted(without), with_all, True),  # it would get SVE and PAuth
        (_adopted(without, pinned=True), with_all, False),
        (_adopted(with_all), without, True),  # which it does not have
        (_adopted(with_all, pinned=True), without, True),
    ]:
        assert play(source, here, False).stopped is stopped


@pytest.mark.parametrize("mode", ["maximum", "custom", "host-model"])
def test_an_edit_of_its_cpu(mode: str, play: Play) -> None:
    """Under KVM "maximum" is another word for the same."""
    new = f"<cpu mode='{mode}'><model>cortex-a57</model></cpu>".encode()
    if mode != "custom":
        new = f"<cpu mode='{mode}'/>".encode()
    here = host("trixie-max")
    source = _adopted(here).replace(b"<cpu mode='host-passthrough'/>", new)
    said = play(source, here, False)
    assert said.stopped is (mode != "maximum")
    assert said.status == (3 if said.stopped else 0)


@pytest.mark.parametrize("boots", [False, True])
@pytest.mark.parametrize(("memory", "fits"), [(400, True), (600, False)])
def test_memory_that_an_older_qemu_has_no_room_for(
    play: Play, boots: bool, memory: int, fits: bool
) -> None:
    here = _with_addresses(host("trixie-neoverse-n1"), 40)
    assert here.qemu
    here = here.replace(qemu=here.qemu.replace(version="6.2.0"))
    source = Resolver(here, Policy()).resolve(_SOURCE)
    grown = source.replace(b"'MiB'>512<", b"'GiB'>%d<" % memory)
    said = play(grown, here, boots)
    assert said == (not fits, False, 0 if fits else 3, "same" if fits else "refuses")
