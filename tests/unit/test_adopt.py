# SPDX-License-Identifier: LGPL-2.1-or-later
"""Adopting guests that never asked for host-model, on played kernels and with a played libvirt."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.pins import CountedCluster
from kvmarm_plugin.domain.record import Record
from kvmarm_plugin.domain.xml import Element, parse
from kvmarm_plugin.host import libvirtd
from kvmarm_plugin.host.libvirtd import Connection, Domain
from kvmarm_plugin.kvm.device import System
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.model.target import Target
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.watch import adopt
from kvmarm_plugin.watch.adopt import keeper, what_it_has

from ..corpus import GUEST, HOSTS, host
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
