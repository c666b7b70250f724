# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm adopt`, and `kvmarm check` and `kvmarm show` of guests without a record."""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import TYPE_CHECKING, Callable, NamedTuple

import pytest

from kvmarm_plugin import cli
from kvmarm_plugin.commands import adopt as adopt_command
from kvmarm_plugin.commands import check as check_command
from kvmarm_plugin.commands import unrecorded
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.pins import CountedCluster
from kvmarm_plugin.domain.record import Record
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.host import cpus, left_alone, libvirtd, marks, previous, qemu_version
from kvmarm_plugin.kvm import device
from kvmarm_plugin.model import policy
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.watch import adopt, renewal

from ..corpus import GUEST, HOSTS, host
from .fakehost import numbers
from .fakekernel import FakeKernel
from .fakelibvirt import FakeDomain, FakeLibvirt

if TYPE_CHECKING:
    from pathlib import Path

_UUID = "11111111-2222-3333-4444-555555555555"
_QEMU = "/usr/bin/qemu-system-aarch64"
_HERE, _THERE = "trixie-max-nosve-nopauth", "trixie-max"
_XML = (
    GUEST.decode()
    .replace("<name>", f"<uuid>{_UUID}</uuid><name>")
    .replace("machine='virt'", "machine='virt-10.0'")
    .replace(
        "<cpu mode='host-model'/>",
        "<features><gic version='3'/></features><cpu mode='host-passthrough'/>",
    )
)
_RESOLVED = Resolver(host(_HERE), policy.Policy()).resolve(GUEST).decode()


class Run(NamedTuple):
    status: int
    out: str
    err: str


class Host(NamedTuple):
    libvirt: FakeLibvirt
    root: Path

    def guest(self, xml: str = _XML, state: str = "SHUTOFF_SHUTDOWN", name: str = "") -> FakeDomain:
        xml = xml.replace("<name>guest<", f"<name>{name or 'guest'}<")
        uuid = _UUID.replace("1", str(len(self.libvirt.domains) + 1))
        off = state.startswith("SHUTOFF")
        guest = FakeDomain(
            name or "guest", uuid, state, None if off else xml, xml.replace(_UUID, uuid)
        )
        self.libvirt.domains.append(guest)
        if not off:
            pid = str(4711 + len(self.libvirt.domains))
            (self.root / f"{guest.title}.pid").write_text(pid)
            (self.root / "proc" / pid).mkdir(parents=True)
            (self.root / "proc" / pid / "exe").symlink_to(_QEMU)
            line = [_QEMU, "-name", "guest=guest", "-accel", "kvm", "-cpu", "host", ""]
            (self.root / "proc" / pid / "cmdline").write_text("\0".join(line))
        return guest

    def policy(self, text: str) -> None:
        (self.root / "policy.yaml").write_text(text)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Like trixie-max with arm64.nosve arm64.nopauth."""
    profile, libvirt = host(_HERE), FakeLibvirt()
    name = os.uname_result(("Linux", "here", profile.kernel, "#1", profile.architecture))
    monkeypatch.setattr(os, "uname", lambda: name)
    for what in ("node", "machine"):
        answer = "here" if what == "node" else profile.architecture
        monkeypatch.setattr(platform, what, lambda answer=answer: answer)
    found = [CountedCluster(c.midr, c.revidr, (*numbers(c.cpus),)) for c in profile.clusters]
    for module in (adopt, renewal, cpus):
        monkeypatch.setattr(module, "find_clusters", lambda: found)
    for where in (adopt, qemu_version):
        monkeypatch.setattr(where, "installed_version", lambda: (10, 0))
    kernel = FakeKernel.from_profile(profile)
    monkeypatch.setattr(device, "SystemCalls", lambda: kernel)
    monkeypatch.setattr(adopt_command, "probe_here", lambda: profile)
    for asks in (check_command, unrecorded):
        monkeypatch.setattr(asks, "machines_here", lambda *_: ("virt-10.0", "virt-9.2"))
    monkeypatch.setattr(libvirtd, "RUNNING", str(tmp_path))
    monkeypatch.setattr(libvirtd, "PROC", str(tmp_path / "proc"))
    monkeypatch.setattr(left_alone, "DIRECTORY", str(tmp_path / "left"))
    monkeypatch.setattr(previous, "DIRECTORY", str(tmp_path / "previous"))
    monkeypatch.setattr(marks, "DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(tmp_path / "policy.yaml"))
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    monkeypatch.setitem(sys.modules, "libvirt", libvirt)
    return Host(libvirt, tmp_path)


@pytest.fixture
def run(here: Host, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    assert here

    def call(*arguments: str) -> Run:
        status = cli.main([*arguments])
        return Run(status, *capsys.readouterr())

    return call


def _record(xml: str | None) -> Record:
    assert xml is not None
    return record.read(record.find(parse(xml.encode())) or pytest.fail("no record"))


# -- adopt -----------------------------------------------------------------------------------------


def test_a_guest_that_is_off_is_pinned(run: Callable[..., Run], here: Host) -> None:
    guest = here.guest()
    planned = run("adopt", "--dry-run", "guest")
    assert planned.status == 0
    assert planned.out == (
        "guest: would be adopted\n"
        "  record: none → host on virt-10.0, arm64 target 5 (GENERIC_V8), psci_0_2 pmu_v3\n"
    )
    assert guest.calls == []
    assert run("adopt", "guest") == (0, "guest: adopted\n", "")
    assert guest.calls == [("define", "")]
    assert guest.config is not None
    assert "<feature policy='disable' name='sve'/>" in guest.config
    assert _record(guest.config).intent.kept[0] == b"<cpu mode='host-passthrough'/>"
    assert run("adopt", "guest") == (0, "guest: kept\n", "")
    assert run("adopt", "--all") == (0, "guest: kept\n", "")
    assert guest.calls == [("define", "")]
    kept = here.root / "previous" / guest.uuid / "1.xml"
    assert kept.read_text() == _XML.replace(_UUID, guest.uuid)


def test_a_guest_that_runs_keeps_its_cpu_until_its_next_start(
    run: Callable[..., Run], here: Host
) -> None:
    guest = here.guest(state="RUNNING_BOOTED")
    assert run("adopt", "guest") == (0, "guest: adopted; as it runs: adopted\n", "")
    assert guest.calls == [("live", record.NAMESPACE), ("define", "")]
    assert record.is_adopted(_record(guest.live))
    assert _record(guest.live).intent.kept == ()
    assert guest.live is not None
    assert "feature" not in guest.live.partition("<metadata")[0]
    assert _record(guest.live).target == _record(guest.config).target.replace(
        unsaid=("pmu_v3", "sve", "ptrauth_address", "ptrauth_generic")
    )


def test_what_cannot_be_told_is_left_for_the_next_start(
    run: Callable[..., Run], here: Host
) -> None:
    guest = here.guest(state="RUNNING_MIGRATED")
    status, out, _ = run("adopt", "guest")
    assert (status, guest.calls) == (3, [("define", "")])
    assert out == (
        "guest: adopted; as it runs: not known: it has arrived with its state from elsewhere"
        " (hint: shut it down and start it: it is adopted then)\n"
    )


def test_all_but_those_that_are_left_alone(run: Callable[..., Run], here: Host) -> None:
    here.policy('except: ["build-*"]\non-drift: warn\n')
    for name in ("build-1", "forgotten", "mine"):
        here.guest(name=name)
    here.guest(_RESOLVED, name="resolved")
    here.guest(_XML.replace("type='kvm'", "type='qemu'"), name="emulated")
    left_alone.add(here.libvirt.domains[1].uuid)
    status, out, _ = run("adopt", "--all")
    assert (status, out) == (0, "mine: adopted\nresolved: kept\n")
    assert run("adopt", "build-1", "forgotten").status == 0
    assert not left_alone.has(here.libvirt.domains[1].uuid)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("type='kvm'", "type='qemu'", "it is no KVM guest"),
        ("host-passthrough", "host-model", "it asks for host-model"),
        ("<cpu mode='host-passthrough'/>", "", "its XML names no CPU"),
    ],
)
def test_what_cannot_be_adopted(
    old: str, new: str, why: str, run: Callable[..., Run], here: Host
) -> None:
    guest = here.guest(_XML.replace(old, new))
    status, out, _ = run("adopt", "guest")
    assert status == 1
    assert out.startswith(f"guest: error: {why}")
    assert run("adopt", "nobody").status == 1
    assert run("adopt", "--all") == (0, "", "")
    assert guest.calls == []


def test_a_cpu_that_was_written_since_stays(run: Callable[..., Run], here: Host) -> None:
    guest = here.guest()
    assert run("adopt", "guest").status == 0
    assert guest.config is not None
    cpu = parse(guest.config.encode()).find("cpu")
    assert cpu is not None
    guest.config = guest.config.replace(cpu.text.decode(), "<cpu mode='host-passthrough'/>")
    status, out, _ = run("adopt", "guest")
    assert status == 0
    assert out == "guest: adopted: its <cpu> was written anew since it was pinned, and stays\n"
    assert 'cpu mode="host-passthrough" />' in guest.config
    assert _record(guest.config).intent.kept == ()


def test_json(run: Callable[..., Run], here: Host) -> None:
    here.guest(state="RUNNING_BOOTED")
    (said,) = json.loads(run("adopt", "--all", "--json").out)["guests"]
    assert (said["stored"]["result"], said["running"]["result"]) == ("adopted", "adopted")
    assert said["stored"]["differences"][0]["what"] == "record"


def test_another_host(run: Callable[..., Run]) -> None:
    assert run("adopt", "-c", "qemu+ssh://far/system", "--all").status == 1


def test_passwords_are_not_lost(run: Callable[..., Run], here: Host) -> None:
    guest = here.guest(_XML.replace("<devices/>", "<devices><a passwd='secret'/></devices>"))
    guest.secret = " passwd='secret'"
    assert run("adopt", "guest").status == 0
    assert guest.config is not None
    assert "<a passwd='secret'/>" in guest.config


# -- refresh ---------------------------------------------------------------------------------------


def test_refresh_pins_anew(
    run: Callable[..., Run], here: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host that gives something else since."""
    guest = here.guest()
    assert run("adopt", "guest").status == 0
    before = _record(guest.config)
    assert run("refresh", "--host", str(HOSTS[_HERE]), "guest").out == "guest: kept\n"
    status, out, _ = run("refresh", "--host", str(HOSTS[_THERE]), "guest")
    assert (status, out) == (0, "guest: changed\n")
    after = _record(guest.config)
    assert (before.intent, "sve" in after.target.features) == (after.intent, True)


# -- check and show --------------------------------------------------------------------------------


def test_check_of_a_guest_that_runs_without_a_record(run: Callable[..., Run], here: Host) -> None:
    guest = here.guest(state="RUNNING_BOOTED")
    status, out, _ = run("check", "guest")
    assert status == 0
    assert out.startswith("guest on here: yes, as it is here\n")
    assert "Note: it has no record, and is judged as if it were adopted\n" in out
    status, out, _ = run("check", "guest", "--host", str(HOSTS[_THERE]))
    assert status == 3
    assert "vCPU features (left to QEMU): on here off, on trixie-max sve ptrauth" in out
    assert "Remedy: write what it has into its definition: kvmarm adopt guest; then shut" in out
    assert guest.calls == []


def test_check_of_one_that_has_arrived(run: Callable[..., Run], here: Host) -> None:
    here.guest(state="RUNNING_MIGRATED")
    assert run("check", "guest") == (
        1,
        "guest on here: not known: it has arrived with its state from elsewhere (hint: shut it down"
        " and start it: it is adopted then)\n"
        "Note: it has no record, and is judged as if it were adopted\n",
        "",
    )


def test_check_of_one_that_is_off(run: Callable[..., Run], here: Host) -> None:
    guest = here.guest()
    assert run("check", "guest").status == 0
    status, out, _ = run("check", "guest", "--host", str(HOSTS[_THERE]))
    assert status == 0
    assert "recorded" not in out.partition("Note:")[0]
    assert "Remedy" not in out
    guest.saved = _XML
    status, out, _ = run("check", "guest")
    assert status == 1
    assert "not known: it was saved without a record" in out
    assert guest.calls == []


@pytest.mark.parametrize("machine", ["machine='virt-10.0'", "machine='virt'", ""])
def test_check_of_a_file(machine: str, run: Callable[..., Run], here: Host) -> None:
    file = here.root / "guest.xml"
    file.write_text(
        GUEST.decode()
        .replace("host-model", "host-passthrough")
        .replace(" machine='virt'", f" {machine}")
    )
    status, out, _ = run("check", str(file))
    assert status == 0
    assert "is judged as if it had booted on this host, here\n" in out
    assert run("check", str(file), "--host", str(HOSTS[_THERE])).status == 3
    status, out, _ = run("check", "--inactive", str(file), "--host", str(HOSTS[_THERE]))
    assert status == 0
    assert "yes, it would start, but not as it is here\n" in out


def test_check_of_what_cannot_be_adopted(run: Callable[..., Run], here: Host) -> None:
    here.guest(_XML.replace("host-passthrough", "host-model"))
    status, _, err = run("check", "guest")
    assert (status, err) == (
        1,
        "kvmarm: guest holds no kvmarm record (hint: resolve it first: virsh dumpxml --inactive"
        " --security-info guest | kvmarm define -)\n",
    )


def test_show_says_what_to_do(run: Callable[..., Run], here: Host) -> None:
    here.guest(name="my guest")
    assert run("show", "my guest") == (
        1,
        "",
        "kvmarm: my guest holds no kvmarm record (hint: to record what it has: kvmarm adopt"
        " 11111111-2222-3333-4444-555555555555)\n",
    )


def test_show_of_an_adopted_guest(run: Callable[..., Run], here: Host) -> None:
    here.guest(state="RUNNING_BOOTED")
    assert run("adopt", "guest").status == 0
    assert "intent      none: it was adopted as it is\n" in run("show", "guest").out
    assert "intent      <cpu mode='host-passthrough'/>\n" in run("show", "--inactive", "guest").out
