# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm check --all`: what could be moved to a host, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import pytest

from kvmarm_plugin import cli
from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.commands import check as check_command
from kvmarm_plugin.commands import evacuation, inputs, unrecorded
from kvmarm_plugin.host import known, marks
from kvmarm_plugin.host.libvirtd import Domain, NoDomainError
from kvmarm_plugin.kvm import device
from kvmarm_plugin.kvm.device import System
from kvmarm_plugin.model import policy, profile_json
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.watch.adopt import what_it_has
from tests.corpus import GUEST, host, resolver

from .fakekernel import FakeKernel
from .fakelibvirt import FakeDomain, FakeLibvirt

if TYPE_CHECKING:
    from collections.abc import Callable

_UUID = "11111111-2222-3333-4444-555555555555"
_ALPHA, _BETA = "trixie-neoverse-n1", "sid-neoverse-n1"
_XML = resolver(_ALPHA).resolve(GUEST).decode()
_NEWER = resolver(_BETA).resolve(GUEST.replace(b"machine='virt'", b"machine='virt-10.0'")).decode()
_SCOPE = "Checked: CPU, machine type, GIC and timer. Not checked: devices and disks."


class _Run(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLibvirt:
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(tmp_path / "no-policy.yaml"))
    monkeypatch.setattr(known, "HOSTS", tmp_path)
    (tmp_path / "alpha.json").write_text(profile_json.dumps(host(_ALPHA).replace(name="alpha")))
    (tmp_path / "beta.json").write_text(profile_json.dumps(host(_BETA).replace(name="beta")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    fake = FakeLibvirt()
    monkeypatch.setitem(sys.modules, "libvirt", fake)
    return fake


@pytest.fixture
def run(libvirt: FakeLibvirt, capsys: pytest.CaptureFixture[str]) -> Callable[..., _Run]:
    def call(*arguments: str) -> _Run:
        status = cli.main(["check", "--all", *arguments])
        return _Run(status, *capsys.readouterr())

    return call


def _guest(libvirt: FakeLibvirt, name: str, xml: str, state: str = "RUNNING_BOOTED") -> FakeDomain:
    uuid = f"{len(libvirt.domains)}{_UUID[1:]}"
    xml = xml.replace("<name>guest<", f"<uuid>{uuid}</uuid><name>{name}<")
    live = None if state.startswith("SHUTOFF") else xml
    libvirt.domains.append(FakeDomain(name, uuid, state, live, xml))
    return libvirt.domains[-1]


def _all(libvirt: FakeLibvirt) -> None:
    _guest(libvirt, "a", _XML)
    _guest(libvirt, "newer", _NEWER)
    _guest(libvirt, "newest", _NEWER)
    _guest(libvirt, "off", _NEWER, "SHUTOFF_SHUTDOWN")
    saved = _guest(libvirt, "saved", _NEWER, "SHUTOFF_SAVED")
    saved.saved = saved.config
    _guest(libvirt, "bare", GUEST.decode())
    _guest(libvirt, "tcg", GUEST.decode().replace("'kvm'", "'qemu'"))
    _guest(libvirt, "broken", _XML.replace("gic='3'", "gic='9'"))
    marks.mark(_guest(libvirt, "marked", _XML).uuid, "it has started as something else")


def test_the_table(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    _all(libvirt)
    status, out, err = run("--host", "alpha")
    assert (status, err) == (3, "")
    table, rest = out.split("\n1: ")
    assert table.splitlines() == [
        "                  alpha",
        "a       running   yes",
        "bare    running   no record: 1",
        "broken  running   error: 2",
        "marked  running   not known: 3",
        "newer   running   no: 4",
        "newest  running   no: 4",
        "off     shut off  yes, not as recorded",
        "saved   saved     no: 4",
        "tcg     running   not judged: 5",
    ]
    lines = rest.splitlines()
    assert lines[0] == "holds no kvmarm record"
    assert lines[1].startswith("2: the domain's kvmarm record is broken: ")
    assert lines[2] == "3: it has started as something else"
    assert sum(line.startswith("4: PSCI_VERSION") for line in lines) == 1
    assert not any(line.startswith("6: ") for line in lines)
    assert lines[-2:] == [
        "alpha: 1 yes; 1 yes, not as recorded; 3 no; 1 not known; 1 no record; 1 not judged;"
        " 1 error",
        _SCOPE,
    ]


def test_several_hosts(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    _guest(libvirt, "guest", _XML)
    _guest(libvirt, "newer", _NEWER)
    status, out, _ = run("--host", "alpha", "--host", "beta")
    assert status == 3
    assert out.splitlines()[:3] == [
        "                alpha  beta",
        "guest  running  yes    yes",
        "newer  running  no: 1  yes",
    ]
    assert run("--host", "beta") == (
        0,
        f"                beta\nguest  running  yes\nnewer  running  yes\nbeta: 2 yes\n{_SCOPE}\n",
        "",
    )


def test_as_json(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    _all(libvirt)
    status, out, _ = run("--host", "alpha", "--host", "beta", "--json")
    assert status == 3
    report = json.loads(out)
    assert report["hosts"] == ["alpha", "beta"]
    found = {each["domain"]: each for each in report["domains"]}
    assert {name: each["answers"]["alpha"] for name, each in found.items()} == {
        "a": "yes",
        "bare": "no record",
        "broken": "error",
        "marked": "not known",
        "newer": "no",
        "newest": "no",
        "off": "yes, not as recorded",
        "saved": "no",
        "tcg": "not judged",
    }
    newer = found["newer"]
    assert (newer["state"], newer["uuid"]) == ("running", libvirt.domains[1].uuid)
    assert newer["hosts"]["alpha"]["verdict"] == "refuses"
    assert newer["hosts"]["alpha"]["findings"][0]["kind"]
    assert newer["hosts"]["beta"]["verdict"] == "same"
    assert found["bare"]["reason"] == "holds no kvmarm record"
    assert report["totals"]["alpha"]["no"] == 3


@pytest.mark.parametrize(
    ("name", "xml", "status"),
    [
        ("yes", _XML, 0),
        ("bare", GUEST.decode(), 1),
        ("tcg", GUEST.decode().replace("'kvm'", "'qemu'"), 0),
        ("broken", _XML.replace("gic='3'", "gic='9'"), 1),
        ("newer", _NEWER, 3),
    ],
)
def test_only_what_is_known_to_run_is_a_yes(
    run: Callable[..., _Run], libvirt: FakeLibvirt, name: str, xml: str, status: int
) -> None:
    _guest(libvirt, name, xml)
    assert run("--host", "alpha").status == status


def _plays(monkeypatch: pytest.MonkeyPatch, here: HostProfile) -> None:
    """Have this host's kernel be that of a profile."""
    uname = SimpleNamespace(machine="aarch64", nodename="here", release=here.kernel)
    monkeypatch.setattr(os, "uname", lambda: uname)
    monkeypatch.setattr(unrecorded, "System", lambda: System(FakeKernel.from_profile(here)))


def test_a_guest_without_a_record_is_judged_as_if_adopted(
    run: Callable[..., _Run], libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this host's kernel tells what it has; it is off, so that it boots there."""
    _plays(monkeypatch, host(_ALPHA))
    xml = GUEST.decode().replace("host-model", "host-passthrough").replace("'virt'", "'virt-10.0'")
    _guest(libvirt, "guest", xml, "SHUTOFF_SHUTDOWN")
    status, out, err = run("--host", "alpha")
    assert (status, err) == (0, "")
    assert out.splitlines()[1] == "guest  shut off  yes"


def test_a_reason_is_said_once_whoever_has_a_record(
    run: Callable[..., _Run], libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And wherever that was made."""
    _plays(monkeypatch, host(_BETA))
    monkeypatch.setattr(
        unrecorded, "_measured", lambda _s, _u, domain, system: (what_it_has(domain, system), None)
    )
    bare = GUEST.decode().replace("host-model", "host-passthrough")
    _guest(libvirt, "bare", bare.replace("'virt'", "'virt-10.0'"))
    _guest(libvirt, "elsewhere", _NEWER.replace(f"host='{_BETA}'", "host='gamma'"))
    _guest(libvirt, "recorded", _NEWER)
    out = run("--host", "alpha").out
    reasons = [line.partition(": ")[2] for line in out.splitlines() if line[0].isdigit()]
    subjects = [reason.partition(":")[0] for reason in reasons]
    assert len(subjects) == len({*subjects}) > 0, out
    answers = {line.rpartition("  ")[2] for line in out.splitlines()[1:4]}
    assert len(answers) == 1, out
    assert "the guest's 0x10003, alpha's 0x10001; " in out


def test_what_nobody_measured_is_not_known(
    run: Callable[..., _Run], libvirt: FakeLibvirt, tmp_path: Path
) -> None:
    partly = host(_ALPHA).replace(
        name="partly", qemu=None, unknown=("qemu", "page_size", "gicd_iidr")
    )
    (tmp_path / "partly.json").write_text(profile_json.dumps(partly))
    _guest(libvirt, "guest", _XML)
    status, out, err = run("--host", "partly")
    assert (status, err) == (1, "")
    assert out.splitlines()[1] == "guest  running  not known: 1"
    assert out.splitlines()[2].startswith("1: ")


def test_no_domains(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    assert run("--host", "alpha") == (0, "alpha: no domains\n", "")


def test_inactive(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    """Whether they would start there; a transient guest never will."""
    _guest(libvirt, "guest", _NEWER)
    _guest(libvirt, "transient", _XML).config = None
    status, out, _ = run("--host", "alpha", "--inactive")
    assert status == 0
    assert out.splitlines()[1:] == [
        "guest  shut off  yes, not as recorded",
        "alpha: 1 yes, not as recorded",
        _SCOPE,
    ]


def test_a_domain_that_goes_meanwhile(
    run: Callable[..., _Run], libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    _guest(libvirt, "gone", _XML)
    _guest(libvirt, "guest", _XML)
    is_active = Domain.is_active

    def go(domain: Domain) -> bool:
        if domain.name == "gone":
            raise NoDomainError("libvirt: Domain not found: gone")
        return is_active(domain)

    monkeypatch.setattr(Domain, "is_active", go)
    assert run("--host", "alpha").out.splitlines()[1:-1] == ["guest  running  yes", "alpha: 1 yes"]


def test_this_host(
    run: Callable[..., _Run], libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel is asked, and its QEMU once, however many guests there are."""
    here = host(_ALPHA)
    uname = SimpleNamespace(machine="aarch64", nodename="here", release=here.kernel)
    monkeypatch.setattr(os, "uname", lambda: uname)
    monkeypatch.setattr(platform, "node", lambda: "here")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr("kvmarm_plugin.host.cpus.find_clusters", list)
    monkeypatch.setattr(device, "System", lambda: System(FakeKernel.from_profile(here)))
    asked: list[str] = []

    def machines(emulator: str) -> tuple[str, ...]:
        asked.append(emulator)
        return ("virt-10.0",)

    monkeypatch.setattr(check_command, "machines_here", machines)
    for name in ("one", "other"):
        _guest(libvirt, name, _XML)
    assert run() == (
        0,
        f"                here\none    running  yes\nother  running  yes\nhere: 2 yes\n{_SCOPE}\n",
        "",
    )
    assert asked == [""]
    status, _, err = run("-c", "qemu+ssh://far/system")
    assert status == 1
    assert "is another host" in err


def test_a_profile_is_read_once(
    run: Callable[..., _Run], libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    text = profile_json.dumps(host(_ALPHA))

    def ask(url: str) -> str:
        read.append(url)
        return text

    monkeypatch.setattr("kvmarm_plugin.host.ssh.profile_text", ask)
    for name in ("one", "other"):
        _guest(libvirt, name, _XML)
    assert run("--host", "ssh://alpha").status == 0
    assert read == ["ssh://alpha"]


def test_it_says_what_it_does(
    run: Callable[..., _Run], libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evacuation, "is_watched", lambda: True)
    _guest(libvirt, "guest", _XML)
    assert run("--host", "alpha").err == "kvmarm: judging 1 domains on alpha\n"


@pytest.mark.parametrize("arguments", [["check"], ["check", "--all", "guest"]])
def test_one_domain_or_all(
    libvirt: FakeLibvirt, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_a_remedy_is_the_same_for_all_guests(
    run: Callable[..., _Run], libvirt: FakeLibvirt
) -> None:
    for name in ("one", "other"):
        _guest(libvirt, name, _NEWER)
    out = run("--host", "alpha").out
    remedies = [line for line in out.splitlines() if "Remedy: " in line]
    assert remedies
    assert all("other" not in line for line in remedies)


def test_an_error_of_one_does_not_stop_the_others(
    run: Callable[..., _Run], libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = inputs.source_of

    def fail(domain: Domain, *rest: object) -> inputs.Source:
        if domain.name == "one":
            raise KvmarmError("no", "yes")
        return read(domain, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(evacuation, "source_of", fail)
    for name in ("one", "other"):
        _guest(libvirt, name, _XML)
    status, out, _ = run("--host", "alpha")
    assert status == 1
    assert out.splitlines()[1:4] == [
        "one    ?        error: 1",
        "other  running  yes",
        "1: no (hint: yes)",
    ]
