# SPDX-License-Identifier: LGPL-2.1-or-later
"""Adopting guests that never asked for host-model, on played kernels and with a played libvirt."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Callable, NamedTuple

import pytest
from lxml import etree

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.pins import CountedCluster
from kvmarm_plugin.domain.record import Intent, Record
from kvmarm_plugin.domain.restoring import restore
from kvmarm_plugin.domain.xml import Element, parse
from kvmarm_plugin.host import left_alone, libvirtd
from kvmarm_plugin.host.libvirtd import Connection, Domain
from kvmarm_plugin.judge.by_profile import check
from kvmarm_plugin.judge.contradictions import find_contradictions
from kvmarm_plugin.judge.finding import HARMLESS, Finding
from kvmarm_plugin.kvm.device import System
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.model.target import Target
from kvmarm_plugin.rehearse import rehearse
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import ResolveError
from kvmarm_plugin.watch import adopt
from kvmarm_plugin.watch.adopt import adopt_live, adopt_stored, keeper, pin_stored, what_it_has
from kvmarm_plugin.watch.renewal import UntoldError

from ..corpus import GUEST, HOSTS, RECORD_SCHEMA, TEMPLATES, host, template
from .fakehost import Scheduler, numbers
from .fakekernel import FakeKernel
from .fakelibvirt import FakeDomain, FakeLibvirt

_UUID = "11111111-2222-3333-4444-555555555555"
_QEMU = "/usr/bin/qemu-system-aarch64"
_ARM64 = [name for name in HOSTS if host(name).kvm_architecture == "arm64"]
_ONE_KIND = [name for name in _ARM64 if len(host(name).clusters) == 1]
_MAX, _N1 = "trixie-max", "trixie-neoverse-n1"


class Here(NamedTuple):
    """The host that this runs on, played."""

    libvirt: FakeLibvirt
    run: Path
    proc: Path
    monkeypatch: pytest.MonkeyPatch

    def be(self, profile: HostProfile) -> System:
        """The host of this profile."""
        name = os.uname_result(("Linux", "here", profile.kernel, "#1", profile.architecture))
        self.monkeypatch.setattr(os, "uname", lambda: name)
        self.monkeypatch.setattr(platform, "node", lambda: "here")
        found = [CountedCluster(c.midr, c.revidr, (*numbers(c.cpus),)) for c in profile.clusters]
        self.monkeypatch.setattr(adopt, "find_clusters", lambda: found)
        release = profile.qemu.release if profile.qemu else (0, 0)
        self.monkeypatch.setattr(adopt, "installed_version", lambda: release)
        scheduler = Scheduler(self.monkeypatch, [cpu for kind in found for cpu in kind.cpus])
        kernel = FakeKernel.from_profile(profile)
        kernel.current_cpu = lambda: min(scheduler.allowed)
        return System(kernel)

    def guest(
        self, xml: str, state: str = "SHUTOFF_SHUTDOWN", arguments: tuple[str, ...] = ()
    ) -> FakeDomain:
        """A guest, and its QEMU if it runs."""
        is_off = state.startswith("SHUTOFF")
        guest = FakeDomain("guest", _UUID, state, None if is_off else xml, xml)
        self.libvirt.domains.append(guest)
        if not is_off:
            (self.run / "guest.pid").write_text("4711\n")
            (self.proc / "4711").mkdir(parents=True)
            (self.proc / "4711/exe").symlink_to(os.path.realpath(_QEMU))
            self.started_with(*arguments)
        return guest

    def started_with(self, *arguments: str) -> None:
        line = [_QEMU, "-name", "guest=guest", "-accel", "kvm", "-cpu", "host", *arguments, ""]
        (self.proc / "4711/cmdline").write_text("\0".join(line))

    def domain(self) -> Domain:
        return Connection("qemu:///system").domain("guest")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    libvirt = FakeLibvirt()
    monkeypatch.setitem(sys.modules, "libvirt", libvirt)
    monkeypatch.setattr(libvirtd, "RUNNING", str(tmp_path))
    monkeypatch.setattr(libvirtd, "PROC", str(tmp_path / "proc"))
    return Here(libvirt, tmp_path, tmp_path / "proc", monkeypatch)


def _written(profile: HostProfile, cpu: str = "<cpu mode='host-passthrough'/>") -> str:
    """A guest as libvirt of this host has it: with its own choice of machine type and GIC."""
    assert profile.qemu is not None
    machine, gic = profile.qemu.machines[0], max(profile.gic_versions)
    return (
        GUEST.decode()
        .replace("<name>", f"<uuid>{_UUID}</uuid><name>")
        .replace("machine='virt'", f"machine='{machine}'")
        .replace(
            "<cpu mode='host-model'/>",
            f"<features><gic version='{gic}'/></features>{cpu}",
        )
        .replace("<devices/>", f"<devices><emulator>{_QEMU}</emulator></devices>")
    )


def _read(xml: str | None) -> tuple[Element, Record]:
    assert xml is not None
    domain = parse(xml.encode())
    return domain, record.read(record.find(domain) or pytest.fail("no record"))


def _keeper(profile: HostProfile) -> Resolver:
    return keeper(profile, Policy(), lambda _: None)


def _pinned(profile: HostProfile, cpu: str = "<cpu mode='host-passthrough'/>") -> Target:
    return _read(_keeper(profile).pin(_written(profile, cpu).encode()).decode())[1].target


# -- what a guest has ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _ONE_KIND)
@pytest.mark.parametrize("mode", ["host-passthrough", "maximum"])
def test_it_has_what_it_would_be_pinned_to(name: str, mode: str, here: Here) -> None:
    """A profile and the kernel that it was measured on say the same."""
    profile, cpu = host(name), f"<cpu mode='{mode}'/>"
    with here.be(profile) as system:
        has = what_it_has(parse(_written(profile, cpu).encode()), system)
    assert has.replace(unsaid=()) == _pinned(profile, cpu).replace(unsaid=())
    assert has.unsaid == ("pmu_v3", "sve", "ptrauth_address", "ptrauth_generic")


@pytest.mark.parametrize("name", _ONE_KIND)
@pytest.mark.parametrize("named", ["cortex-a57", "cortex-a53", "neoverse-n1"])
def test_a_named_model(name: str, named: str, here: Here) -> None:
    """KVM takes it on such a CPU, and there a profile and the kernel say the same."""
    profile = host(name)
    cpu = f"<cpu mode='custom' match='exact'><model fallback='forbid'>{named}</model></cpu>"
    domain = parse(_written(profile, cpu).encode())
    with here.be(profile) as system:
        if named in profile.clusters[0].models:
            assert what_it_has(domain, system) == _pinned(profile, cpu).replace(unsaid=("pmu_v3",))
        else:
            with pytest.raises(KvmarmError):
                what_it_has(domain, system)
            with pytest.raises(KvmarmError):
                _pinned(profile, cpu)


_SAID = {
    "<feature policy='disable' name='sve'/>": ("pmu_v3", "ptrauth_address", "ptrauth_generic"),
    "<feature policy='require' name='sve'/>": (
        *("pmu_v3", "sve"),
        *("ptrauth_address", "ptrauth_generic"),
    ),
    "<feature policy='optional' name='sve'/>": (
        *("pmu_v3", "sve"),
        *("ptrauth_address", "ptrauth_generic"),
    ),
    "<feature policy='forbid' name='pauth'/>": ("pmu_v3", "sve"),
    "<feature policy='require' name='sve'/><feature policy='require' name='sve128'/>"
    "<feature policy='disable' name='sve256'/>": (
        *("pmu_v3", "ptrauth_address", "ptrauth_generic"),
    ),
}


@pytest.mark.parametrize("words", _SAID)
def test_features_that_the_user_has_named(words: str, here: Here) -> None:
    profile, cpu = host(_MAX), f"<cpu mode='host-passthrough'>{words}</cpu>"
    guest = here.guest(_written(profile, cpu))
    with here.be(profile) as system:
        adopted = adopt_stored(here.domain(), system)
        assert adopt_stored(here.domain(), system) is None
    assert adopted is not None
    assert adopted.after.replace(unsaid=()) == _pinned(profile, cpu).replace(unsaid=())
    assert adopted.after.unsaid == _SAID[words]
    domain, found = _read(guest.config)
    assert found.target == adopted.after
    assert find_contradictions(domain, found.target) == []


_LEFT_OPEN = [
    ("", "<feature policy='require' name='sve512'/>"),
    ("<gic version='3'/>", "<gic version='host'/>"),
    ("<gic version='3'/>", ""),
]


@pytest.mark.parametrize("state", ["SHUTOFF_SHUTDOWN", "RUNNING_BOOTED"])
def test_a_levelled_guest_without_its_record_is_not_adopted(state: str, here: Here) -> None:
    """`forget` leaves guests levelled: they do not have what this host gives to others."""
    profile = host(_N1)
    text = "<qemu:env name='KVMARM_LEVEL' value='1 603000000013c020=11'/>"
    namespace = "http://libvirt.org/schemas/domain/qemu/1.0"
    line = f"<qemu:commandline xmlns:qemu='{namespace}'>{text}</qemu:commandline>"
    xml = _written(profile).replace("</domain>", line + "</domain>")
    guest = here.guest(xml, state)
    with here.be(profile) as system:
        assert adopt_live(here.domain(), system) is None
        assert adopt_stored(here.domain(), system) is None
        assert pin_stored(here.domain(), lambda: _keeper(profile), _defines(guest)) is None
        with pytest.raises(ResolveError, match="libkvmarm-level levels it"):
            what_it_has(parse(xml.encode()), system)
    assert guest.calls == []


@pytest.mark.parametrize(("old", "new"), _LEFT_OPEN)
def test_what_a_record_cannot_say_is_left_to_a_pin(old: str, new: str, here: Here) -> None:
    profile = host(_MAX)
    cpu = "<cpu mode='host-passthrough'>" + ("" if old else new) + "</cpu>"
    xml = _written(profile, cpu)
    guest = here.guest(xml.replace(old, new) if old else xml)
    with here.be(profile) as system:
        with pytest.raises(UntoldError) as caught:
            adopt_stored(here.domain(), system)
        assert "kvmarm adopt" in str(caught.value)
        assert guest.calls == []
        assert pin_stored(here.domain(), lambda: _keeper(profile), _defines(guest)) is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("type='kvm'", "type='qemu'"),
        ("arch='aarch64'", "arch='x86_64'"),
        ("<cpu mode='host-passthrough'/>", ""),
        ("<cpu mode='host-passthrough'/>", "<cpu><topology sockets='1'/></cpu>"),
        ("<cpu mode='host-passthrough'/>", "<cpu mode='host-model'/>"),
        ("<cpu mode='host-passthrough'/>", "<cpu><model>neoverse-n1</model></cpu>"),
    ],
)
def test_what_is_not_adopted(old: str, new: str, here: Here) -> None:
    profile = host(_N1)
    guest = here.guest(_written(profile).replace(old, new), "RUNNING_BOOTED")
    with here.be(profile) as system:
        assert adopt_live(here.domain(), system) is None
        assert adopt_stored(here.domain(), system) is None
        assert pin_stored(here.domain(), lambda: _keeper(profile), _defines(guest)) is None
        with pytest.raises(KvmarmError):
            what_it_has(parse((guest.live or "").encode()), system)
    assert guest.calls == []


def test_arguments_for_qemu(here: Here) -> None:
    """What they change is not in the XML that a record would be about."""
    profile = host(_MAX)
    line = (
        "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
        "<qemu:arg value='-cpu'/><qemu:arg value='host,sve=off'/></qemu:commandline></domain>"
    )
    guest = here.guest(_written(profile).replace("</domain>", line))
    with here.be(profile) as system, pytest.raises(UntoldError, match="-cpu host,sve=off"):
        adopt_stored(here.domain(), system)
    assert guest.calls == []


def test_several_kinds_of_cpu(here: Here) -> None:
    """Without pins a guest roams; its user's pins keep it to a kind."""
    profile = host("hand-made-rk3588")
    xml = _written(profile).replace("<os>", "<vcpu>2</vcpu><os>")
    with here.be(profile) as system:
        assert what_it_has(parse(xml.encode()), system).roams
        pinned = parse(xml.replace("<vcpu>", "<vcpu cpuset='0-1'>").encode())
        has = what_it_has(pinned, system)
        assert has.pinning is not None
        assert (has.pinning.cpus, has.roams) == ("0-3", False)


# -- a guest that runs -----------------------------------------------------------------------------


def test_a_guest_that_runs_is_adopted(here: Here) -> None:
    profile = host(_N1)
    guest = here.guest(_written(profile), "RUNNING_BOOTED")
    with here.be(profile) as system:
        assert adopt_live(here.domain(), system, dry_run=True)
        assert guest.calls == []
        adopted = adopt_live(here.domain(), system)
        assert adopt_live(here.domain(), system) is None
    assert guest.calls == [("live", record.NAMESPACE)]
    domain, found = _read(guest.live)
    schema = etree.RelaxNG(etree.parse(str(RECORD_SCHEMA)))
    element = etree.fromstring(guest.live or "").find(f".//{{{record.NAMESPACE}}}target")
    assert element is not None
    assert schema.validate(element)
    assert adopted is not None
    assert (adopted.before, adopted.pinned, found.target) == (None, False, adopted.after)
    assert (found.intent, record.is_adopted(found)) == (Intent((), ()), True)
    assert (found.origin.host, found.origin.profile) == ("here", "")
    cpu = domain.find("cpu")
    assert cpu is not None
    assert cpu.attributes == {"mode": "host-passthrough"}
    assert cpu.children == []


@pytest.mark.parametrize("when", ["on_read", "on_write"])
@pytest.mark.parametrize("adopt_it", [adopt_live, adopt_stored])
def test_a_guest_that_is_forgotten_meanwhile_is_not_recorded(
    adopt_it: Callable[[Domain, System], object], when: str, here: Here
) -> None:
    profile = host(_N1)
    guest = here.guest(_written(profile), "RUNNING_BOOTED")
    setattr(guest, when, lambda: left_alone.add(guest.uuid))
    with here.be(profile) as system, pytest.raises(KvmarmError, match="forgotten or undone mean"):
        adopt_it(here.domain(), system)
    for xml in (guest.live, guest.config):
        assert xml is not None
        assert "kvmarm" not in xml


@pytest.mark.parametrize("state", ["RUNNING_UNPAUSED", "PAUSED_USER", "RUNNING_WAKEUP"])
def test_a_guest_whose_beginning_libvirt_has_forgotten(here: Here, state: str) -> None:
    profile = host(_N1)
    guest = here.guest(_written(profile), state)
    with here.be(profile) as system:
        guest.memory_snapshots = 1
        with pytest.raises(UntoldError, match="snapshot"):
            adopt_live(here.domain(), system)
        guest.memory_snapshots = 0
        assert adopt_live(here.domain(), system)


def test_snapshots_do_not_matter_to_a_guest_that_has_booted(here: Here) -> None:
    profile = host(_N1)
    here.guest(_written(profile), "RUNNING_BOOTED").memory_snapshots = 3
    with here.be(profile) as system:
        assert adopt_live(here.domain(), system)


@pytest.mark.parametrize(
    ("state", "arguments", "binary", "why"),
    [
        ("RUNNING_MIGRATED", (), "", "arrived"),
        ("RUNNING_RESTORED", (), "", "arrived"),
        ("RUNNING_BOOTED", ("-incoming", "defer"), "", "arrived"),
        ("RUNNING_UNPAUSED", ("-incoming", "defer"), "", "arrived"),
        ("RUNNING_BOOTED", ("-loadvm", "before"), "", "arrived"),
        ("RUNNING_FROM_SNAPSHOT", (), "", "snapshot"),
        ("PAUSED_FROM_SNAPSHOT", (), "", "snapshot"),
        ("RUNNING_BOOTED", (), f"{os.path.realpath(_QEMU)} (deleted)", "another QEMU"),
        ("RUNNING_BOOTED", (), "/opt/qemu/bin/qemu-system-aarch64", "another QEMU"),
        ("RUNNING_BOOTED", (), "-", "cannot be read"),
        ("RUNNING_BOOTED", ("-cpu", "host,sve=off"), "", "-cpu host,sve=off makes"),
        ("RUNNING_BOOTED", ("-cpu", "cortex-a57"), "", "-cpu cortex-a57 makes"),
        ("RUNNING_BOOTED", ("-machine", "virt-7.2,gic-version=2"), "", "makes another"),
        ("PAUSED_STARTING_UP", (), "", "does not run yet"),
    ],
)
def test_what_is_not_guessed_at(
    state: str, arguments: tuple[str, ...], binary: str, why: str, here: Here
) -> None:
    profile = host(_MAX)
    guest = here.guest(_written(profile), state, arguments)
    if binary:
        (here.proc / "4711/exe").unlink()
    if binary not in ("", "-"):
        (here.proc / "4711/exe").symlink_to(binary)
    with here.be(profile) as system, pytest.raises(UntoldError, match=why):
        adopt_live(here.domain(), system)
    assert guest.calls == []


def test_arguments_of_libvirts_own(here: Here) -> None:
    """What libvirt says of the XML in any case."""
    profile = host(_N1)
    here.guest(_written(profile), "RUNNING_BOOTED")
    assert profile.qemu is not None
    here.started_with(
        *("-machine", f"{profile.qemu.machines[0]},usb=off,gic-version=3,dump-guest-core=off"),
        *("-machine", "memory-backend=mach-virt.ram,acpi=off", "-m", "size=524288k"),
        *("-global", "virtio-mmio.force-legacy=false", "-smp", "2,sockets=2"),
        *("-device", '{"driver":"pcie-root-port","port":8}', "-sandbox", "on"),
    )
    with here.be(profile) as system:
        assert adopt_live(here.domain(), system)


def test_a_transient_guest(here: Here) -> None:
    profile = host(_N1)
    guest = here.guest(_written(profile), "RUNNING_BOOTED")
    guest.config = None
    with here.be(profile) as system:
        assert adopt_live(here.domain(), system)
    assert guest.calls == [("live", record.NAMESPACE)]


# -- the stored definition -------------------------------------------------------------------------


def _defines(guest: FakeDomain) -> Callable[[str, str], None]:
    def define(read: str, new: str) -> None:
        assert guest.config == read
        guest.define(new)

    return define


def test_edits_are_recorded_anew(here: Here) -> None:
    profile = host(_MAX)
    guest = here.guest(_written(profile))
    with here.be(profile) as system:
        first = adopt_stored(here.domain(), system)
        assert first is not None
        assert guest.config is not None
        guest.config = guest.config.replace(
            '<cpu mode="host-passthrough" />',
            "<cpu mode='host-passthrough'><feature policy='disable' name='sve'/></cpu>",
        )
        second = adopt_stored(here.domain(), system)
    assert second is not None
    assert second.before == first.after
    assert "sve" in first.after.features
    assert "sve" not in second.after.features


def test_a_host_model_guest_is_not_adopted(here: Here) -> None:
    """Not even one whose <cpu> has been written anew since it was resolved."""
    profile = host(_N1)
    xml = Resolver(profile, Policy()).resolve(GUEST).decode()
    guest = here.guest(xml)
    with here.be(profile) as system:
        for config in (xml, xml.replace("check='none'", "").replace("'disable'", "'require'")):
            guest.config = config
            assert adopt_stored(here.domain(), system) is None
            assert pin_stored(here.domain(), lambda: _keeper(profile), _defines(guest)) is None
    assert guest.calls == []


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("mode", ["host-passthrough", "maximum"])
def test_pinned_and_given_back(mode: str, recorded: bool, here: Here) -> None:
    profile = host(_MAX)
    xml = _written(profile, f"<cpu mode='{mode}'/>")
    guest = here.guest(xml)
    with here.be(profile) as system:
        if recorded:
            assert adopt_stored(here.domain(), system)
            xml = (guest.config or "").replace(_record_in(guest.config), "")
        resolved = lambda: _keeper(profile)  # noqa: E731
        assert pin_stored(here.domain(), resolved, _defines(guest), dry_run=True)
        assert ("define", "") not in guest.calls
        adopted = pin_stored(here.domain(), resolved, _defines(guest))
        assert adopted is not None
        assert adopted.pinned
        assert (adopted.before is not None) is recorded
        assert pin_stored(here.domain(), resolved, _defines(guest)) is None
        assert adopt_stored(here.domain(), system) is None
        assert rehearse(adopted.after, system, boots=True) == []
    domain, found = _read(guest.config)
    assert (found.target, found.target.unsaid) == (adopted.after, ())
    assert f"mode='{mode}'" in found.intent.kept[0].decode().replace('"', "'")
    assert record.is_adopted(found)
    assert find_contradictions(domain, found.target) == []
    assert guest.config is not None
    assert restore(guest.config.encode(), domain).decode().split() == xml.split()


_NAMED = "<cpu mode='custom' match='exact'><model fallback='allow'>cortex-a57</model></cpu>"


@pytest.mark.parametrize("name", [*TEMPLATES, "guest"])
@pytest.mark.parametrize(
    ("on", "cpu"),
    [
        (_MAX, "<cpu mode='host-passthrough' migratable='off'/>"),
        ("hand-made-rk3588", "<cpu mode='maximum' check='none'/>"),
        ("bookworm-neoverse-n1", "<cpu mode='host-passthrough'><topology sockets='1'/></cpu>"),
        ("trixie-cortex-a57", _NAMED),
    ],
)
def test_what_was_pinned_comes_back_to_the_byte(name: str, on: str, cpu: str) -> None:
    source = GUEST if name == "guest" else template(name)
    if b"armv7l" in source and on != _MAX:
        pytest.skip("no 32-bit guests there, and none of a named model")
    was = parse(source).find("cpu")
    assert was is not None
    source = source.replace(was.text, cpu.encode())
    pinned = _keeper(host(on)).pin(source)
    domain, found = _read(pinned.decode())
    assert find_contradictions(domain, found.target) == []
    assert record.is_adopted(found)
    assert restore(pinned, domain) == source
    schema = etree.RelaxNG(etree.parse(str(RECORD_SCHEMA)))
    element = etree.fromstring(pinned).find(f".//{{{record.NAMESPACE}}}target")
    assert element is not None
    assert schema.validate(element)


def _record_in(xml: str | None) -> str:
    assert xml is not None
    element = record.find(parse(xml.encode()))
    assert element is not None
    return element.text.decode()


def test_a_later_cpu_of_the_users_stays(here: Here) -> None:
    profile = host(_MAX)
    guest = here.guest(_written(profile))
    with here.be(profile) as system:
        assert pin_stored(here.domain(), lambda: _keeper(profile), _defines(guest))
        assert guest.config is not None
        cpu = parse(guest.config.encode()).find("cpu")
        assert cpu is not None
        guest.config = guest.config.replace(cpu.text.decode(), "<cpu mode='host-passthrough'/>")
        assert pin_stored(here.domain(), lambda: _keeper(profile), _defines(guest)) is None
        adopted = adopt_stored(here.domain(), system)
        assert adopted is not None
        _, found = _read(guest.config)
        assert found.intent == Intent((), ())
        assert "sve" in found.target.unsaid


# -- the laws --------------------------------------------------------------------------------------


def _blocking(findings: list[Finding]) -> list[str]:
    return sorted({finding.kind for finding in findings if finding.severity != HARMLESS})


_LEFT = {"features-left-to-qemu", "sve-lengths-left-to-qemu"}


@pytest.mark.parametrize("name", _ONE_KIND)
def test_it_passes_where_it_was_adopted_and_elsewhere_like_a_pinned_one(
    name: str, here: Here
) -> None:
    """But that a guest that is not pinned has to find what its XML leaves to QEMU."""
    profile = host(name)
    with here.be(profile) as system:
        has = what_it_has(parse(_written(profile).encode()), system)
        for boots in (True, False):
            assert rehearse(has, system, boots=boots) == []
    assert check(has, profile) == check(has, profile, boots=True) == []
    pinned = _pinned(profile)
    for other in map(host, _ONE_KIND):
        one, two = _blocking(check(has, other)), _blocking(check(pinned, other))
        if _LEFT.isdisjoint(one) and "pmu-off-refused" not in two:
            assert one == two, other.name


@pytest.mark.parametrize("other", _ONE_KIND)
def test_the_kernel_says_the_same(other: str, here: Here) -> None:
    """Of guests of every host, as they arrive on this one."""
    there = host(other)
    with here.be(there) as system:
        for name in _ONE_KIND:
            target = _pinned(host(name)).replace(
                unsaid=("pmu_v3", "sve", "ptrauth_address", "ptrauth_generic")
            )
            machines = there.qemu.machines if there.qemu else ()
            said, foretold = rehearse(target, system, machines), check(target, there)
            assert _LEFT.intersection(_blocking(said)) == _LEFT.intersection(_blocking(foretold))


@pytest.mark.parametrize("name", [_MAX, "trixie-cortex-a57"])
def test_a_32_bit_guest(name: str, here: Here) -> None:
    """It has no SVE, whatever its host has."""
    profile = host(name)
    guest = here.guest(_written(profile).replace("arch='aarch64'", "arch='armv7l'"))
    with here.be(profile) as system:
        adopted = adopt_stored(here.domain(), system)
    assert adopted is not None
    pinned = _keeper(profile).pin((guest.config or "").encode())
    assert adopted.after.replace(unsaid=()) == _read(pinned.decode())[1].target
    assert adopted.after.unsaid == ("pmu_v3", "ptrauth_address", "ptrauth_generic")
