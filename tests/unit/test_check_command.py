# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm check` and `kvmarm show`: which definition of a domain counts, what is asked of it, and
how the answer reads.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Callable, NamedTuple
from unittest.mock import patch

import pytest

from kvmarm_plugin import cli
from kvmarm_plugin.commands import check as check_command
from kvmarm_plugin.commands import check_view, inputs
from kvmarm_plugin.commands.check_view import ARRIVAL, START, Report
from kvmarm_plugin.fleet import baseline, pool
from kvmarm_plugin.host import marks
from kvmarm_plugin.judge.by_profile import check
from kvmarm_plugin.judge.finding import Finding, kinds
from kvmarm_plugin.kvm import device
from kvmarm_plugin.kvm.device import System
from kvmarm_plugin.model import policy, profile_json
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.rehearse import rehearse, renewed
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import Wish
from tests.corpus import GUEST, HOSTS, host

from .fakekernel import FakeKernel

if TYPE_CHECKING:
    from kvmarm_plugin.model.profile import HostProfile

_UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
_ALPHA, _BETA = "trixie-neoverse-n1", "sid-neoverse-n1"
_SCOPE = "Checked: CPU, machine type, GIC and timer. Not checked: devices and disks.\n"


class Answer(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Answer]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`kvmarm` in this process, on a host without a policy and without marks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(tmp_path / "no-policy.yaml"))
    monkeypatch.setattr(marks, "DIRECTORY", str(tmp_path / "run"))

    def call(*arguments: str) -> Answer:
        status = cli.main(list(arguments))
        return Answer(status, *capsys.readouterr())

    return call


def _resolved(name: str = _ALPHA, machine: str = "virt", text: bytes = GUEST) -> str:
    text = text.replace(b"<name>", f"<uuid>{_UUID}</uuid><name>".encode())
    text = text.replace(b"machine='virt'", f"machine='{machine}'".encode())
    return Resolver(host(name), Policy()).resolve(text).decode()


def _passthrough() -> str:
    return GUEST.replace(b"host-model", b"host-passthrough").decode()


def _profile(here: HostProfile) -> str:
    path = Path(f"{here.name}.json")
    path.write_text(profile_json.dumps(here))
    return str(path)


def _slow_clock(name: str = "slow") -> HostProfile:
    """A host like alpha, with another timer."""
    here = host(_ALPHA)
    (cluster,) = here.clusters
    seen = {**cluster.seen, "CNTFRQ_EL0": 25_000_000}
    return here.replace(name=name, clusters=(cluster.replace(seen=seen),))


class Daemon:
    """A libvirt that has one domain, "guest".

    Attributes:
        live, saved, stored: its definitions; None where it has none.
    """

    live: str | None = None
    saved: str | None = None
    stored: str | None = None

    def name(self) -> str:
        return "guest"

    def UUIDString(self) -> str:  # noqa: N802
        return _UUID

    def ID(self) -> int:  # noqa: N802
        return -1 if self.live is None else 1

    def isActive(self) -> bool:  # noqa: N802  # as libvirt has them
        return self.live is not None

    def isPersistent(self) -> bool:  # noqa: N802
        return self.stored is not None

    def hasManagedSaveImage(self, _flags: int) -> bool:  # noqa: N802
        return self.saved is not None

    def managedSaveGetXMLDesc(self, _flags: int) -> str | None:  # noqa: N802
        return self.saved

    def XMLDesc(self, flags: int) -> str | None:  # noqa: N802
        return self.stored if flags == 2 or self.live is None else self.live


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    found = Daemon()
    module = SimpleNamespace(
        libvirtError=type("libvirtError", (Exception,), {}),
        registerErrorHandler=lambda *_: None,
        open=lambda _uri: SimpleNamespace(lookupByName=lambda _name: found, close=lambda: None),
        VIR_DOMAIN_XML_INACTIVE=2,
    )
    monkeypatch.setitem(sys.modules, "libvirt", module)
    return found


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[HostProfile], None]:
    """Makes this host one of a profile."""

    def become(here: HostProfile) -> None:
        uname = SimpleNamespace(machine="aarch64", nodename=here.name, release=here.kernel)
        monkeypatch.setattr(os, "uname", lambda: uname)
        monkeypatch.setattr(platform, "node", lambda: here.name)
        monkeypatch.setattr(device, "System", lambda: System(FakeKernel.from_profile(here)))
        machines = here.qemu.machines if here.qemu else ()
        monkeypatch.setattr(check_command, "machines_here", lambda *_: machines)

    return become


# -- which definition counts ---------------------------------------------------------------------


def test_a_guest_that_runs_is_judged_by_what_runs(run: Run, daemon: Daemon) -> None:
    daemon.live, daemon.stored = _resolved(_BETA, "virt-10.0"), _resolved(_ALPHA)
    there = str(HOSTS[_ALPHA])
    status, out, _ = run("check", "guest", "--host", there)
    assert status == 3
    assert f"guest on {_ALPHA}: no\n" in out
    assert f"recorded for {_BETA} 0x10003, on {_ALPHA} 0x10001" in out
    assert "\nNote: its stored definition, which counts from the next boot, is another;" in out
    assert run("check", "--inactive", "guest", "--host", there) == (
        0,
        f"guest on {_ALPHA}: yes, it would start as recorded\n{_SCOPE}",
        "",
    )
    assert f"made        for {_BETA} by" in run("show", "guest").out
    assert f"made        for {_ALPHA} by" in run("show", "guest", "--inactive").out
    assert "\nnote        its stored definition" in run("show", "guest").out


def test_nothing_is_said_of_definitions_that_agree(run: Run, daemon: Daemon) -> None:
    daemon.live = daemon.stored = _resolved()
    same = f"guest on {_ALPHA}: yes, as recorded\n{_SCOPE}"
    assert run("check", "guest", "--host", str(HOSTS[_ALPHA])) == (0, same, "")
    daemon.stored = _resolved().replace(">512<", ">1024<")
    assert run("check", "guest", "--host", str(HOSTS[_ALPHA])) == (0, same, "")
    daemon.stored = _resolved().replace("<pmu state='on'/>", "<pmu state='off'/>")
    assert daemon.stored != _resolved()
    assert "\nNote: its stored" in run("check", "guest", "--host", str(HOSTS[_ALPHA])).out


@pytest.mark.parametrize("stored", [_passthrough(), "<domain><metadata/></domain>"])
def test_a_stored_definition_without_a_record(run: Run, daemon: Daemon, stored: str) -> None:
    daemon.live, daemon.stored = _resolved(), stored
    out = run("check", "guest", "--host", str(HOSTS[_ALPHA])).out
    assert "Note: its stored definition, which counts from the next boot, has no record\n" in out


def test_a_stored_definition_with_a_broken_record(run: Run, daemon: Daemon) -> None:
    daemon.live = _resolved()
    daemon.stored = daemon.live.replace("gic='3'", "gic='4'")
    status, out, _ = run("check", "guest", "--host", str(HOSTS[_ALPHA]))
    assert status == 0
    assert (
        "Note: its stored definition, which counts from the next boot, cannot be used: the" in out
    )


def test_what_runs_without_a_record_is_not_shown_by_another(run: Run, daemon: Daemon) -> None:
    daemon.live, daemon.stored = _passthrough(), _resolved()
    status, out, err = run("show", "guest")
    assert (status, out) == (1, "")
    assert err.startswith("kvmarm: guest runs without a kvmarm record, and only its stored")
    daemon.saved, daemon.live = daemon.live, None
    assert run("show", "guest").err.startswith("kvmarm: guest was saved without a kvmarm record")


def test_a_transient_guest_has_no_stored_definition(run: Run, daemon: Daemon) -> None:
    daemon.live = _resolved()
    assert run("check", "guest", "--host", str(HOSTS[_ALPHA])).status == 0
    assert run("check", "--inactive", "guest") == (
        1,
        "",
        "kvmarm: guest has no stored definition (hint: leave --inactive out)\n",
    )


def test_a_managed_save_is_what_the_next_start_loads(run: Run, daemon: Daemon) -> None:
    daemon.saved = daemon.stored = _resolved()
    _profile(_slow_clock())
    status, out, _ = run("check", "guest", "--host", "slow.json")
    assert status == 3
    assert out.endswith(
        "\nNote: this is its managed save, which its next start loads\n"
        "Remedy: load it on a host that takes it, or give up what was saved: virsh"
        " managedsave-remove guest\n"
    )
    assert run("check", "guest", "--inactive", "--host", "slow.json").status == 0


# -- which QEMU is asked -------------------------------------------------------------------------


def _started_with(emulator: str, resolved: str) -> str:
    return resolved.replace("<devices/>", f"<devices><emulator>{emulator}</emulator></devices>")


@pytest.fixture
def asked(on: Callable[[HostProfile], None], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which emulators of this host are asked; "" is the distribution's."""
    on(host(_ALPHA))
    asked: list[str] = []

    def ask(emulator: str = "") -> tuple[str, ...]:
        asked.append(emulator)
        return ("virt-9.0",) if emulator else ("virt-10.0",)

    monkeypatch.setattr(check_command, "machines_here", ask)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    return asked


@pytest.mark.parametrize("definition", ["live", "saved", "stored"])
def test_the_emulator_that_the_domain_names(
    run: Run, daemon: Daemon, asked: list[str], definition: str
) -> None:
    setattr(daemon, definition, _started_with("/opt/<!-- -->qemu", _resolved()))
    status, out, _ = run("check", "guest")
    assert (status, asked) == (3, ["/opt/qemu"])
    assert "machine type (QEMU's versioned board): " in out
    assert "unknown to QEMU, whose newest is virt-9.0" in out
    assert "Note: it names the emulator" not in out


def test_no_emulator_that_a_file_names_is_run(run: Run, asked: list[str]) -> None:
    for emulator, notes in (("/tmp/evil", 1), ("/usr/bin/qemu-system-aarch64", 0)):
        Path("guest.xml").write_text(_started_with(emulator, _resolved()))
        for option in ((), ("--inactive",)):
            status, out, _ = run("check", "./guest.xml", *option)
            assert status == 0
            assert (
                out.count(f"Note: it names the emulator {emulator}; asked was the one of") == notes
            )
    assert set(asked) == {""}


def test_a_profile_is_of_one_emulator(run: Run) -> None:
    here = str(HOSTS[_ALPHA])
    binary = host(_ALPHA).qemu.binary  # type: ignore[union-attr]
    for emulator, notes in (("/opt/qemu", 1), (binary, 0)):
        Path("guest.xml").write_text(_started_with(emulator, _resolved()))
        out = run("check", "./guest.xml", "--host", here).out
        assert out.count(f"Note: it names the emulator {emulator}; asked was the one that") == notes


# -- what is said of the XML around a record -----------------------------------------------------


def test_a_record_without_a_timer(run: Run) -> None:
    """It was made where no scratch guest could be run."""
    without = re.sub(r"CNTFRQ_EL0=\w+ ?", "", _resolved())
    Path("guest.xml").write_text(without)
    answer = run("check", "guest.xml", "--host", str(HOSTS[_ALPHA]))
    assert answer.status == 1
    assert "yes, as far as known" in answer.out
    assert "Remedy: where the guest comes from, once kvmarm probe there" in answer.out


def test_what_cannot_be_judged_is_named(run: Run) -> None:
    text = _resolved().replace(
        "</domain>",
        "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-machine'/>"
        "<arg value='highmem=off'/></commandline></domain>",
    )
    Path("guest.xml").write_text(text)
    status, out, _ = run("check", "./guest.xml", "--host", str(HOSTS[_ALPHA]))
    assert status == 0
    assert "\nNote: -machine highmem=off in <qemu:commandline>: what it makes of highmem" in out
    Path("guest.xml").write_text(text.replace("highmem", "mte").replace("off", "on"))
    for option, expected in (((), 3), (("--inactive",), 0)):
        status, out, _ = run("check", "./guest.xml", *option, "--host", str(HOSTS[_ALPHA]))
        assert status == expected
        assert "-machine mte=on (in <qemu:commandline>): recorded mte off, now mte on" in out
        assert "emove it with virsh edit; " in out


def test_more_memory_than_was_recorded(run: Run) -> None:
    Path("guest.xml").write_text(_resolved().replace("unit='MiB'>512", "unit='TiB'>4"))
    """It does not arrive, and starts where the host has addresses for it."""
    assert run("check", "./guest.xml", "--host", str(HOSTS[_ALPHA])).status == 3
    status, out, _ = run("check", "./guest.xml", "--inactive", "--host", str(HOSTS[_ALPHA]))
    assert status == 0
    assert "IPA size (guest physical address bits): recorded 40, now 43\n" in out


# -- what is asked -------------------------------------------------------------------------------


@pytest.mark.parametrize("inactive", [[], ["--inactive"]])
@pytest.mark.parametrize(
    ("memory", "status"),
    [
        ("<memory unit='GiB'>400<", 0),
        ("<memory unit='GiB'>600<", 3),
        ("<memory unit='GiB'>1000<", 3),
        ("<maxMemory slots='4' unit='GiB'>600</maxMemory><memory unit='GiB'>1<", 3),
    ],
)
def test_memory_that_an_older_qemu_has_no_room_for(
    run: Run, inactive: list[str], memory: str, status: int
) -> None:
    """It leaves out no region behind it (test_starting.py has what it lays out)."""
    rk3399 = "hand-made-rk3399"
    edited = _resolved(rk3399).replace("<memory unit='MiB'>512<", memory)
    assert memory in edited
    Path("guest.xml").write_text(edited)
    answer = run("check", "--host", str(HOSTS[rk3399]), *inactive, "./guest.xml")
    assert answer.status == status
    assert ("upgrade QEMU on the host to 7.0 or newer" in answer.out) is bool(status)


def test_a_guest_that_only_a_newer_qemu_has_room_for(run: Run) -> None:
    """Nothing was edited, and its recorded addresses are those of both hosts."""
    there = host("trixie-neoverse-n1").replace(ipa_bits=40)
    assert there.qemu
    older = there.replace(qemu=there.qemu.replace(version="6.2.0"))
    text = GUEST.replace(b"'MiB'>512<", b"'GiB'>600<")
    Path("guest.xml").write_bytes(Resolver(there, Policy()).resolve(text))
    assert run("check", "--host", _profile(there), "./guest.xml").status == 0
    answer = run("check", "--host", _profile(older), "./guest.xml")
    assert answer.status == 3
    assert "in the XML 601 GiB, now on trixie-neoverse-n1 no more than 511 GiB" in answer.out


def test_a_guest_that_is_shut_off_only_has_to_start(
    run: Run, daemon: Daemon, on: Callable[[HostProfile], None]
) -> None:
    daemon.stored = _resolved()
    on(_slow_clock())
    drift = (
        "guest on slow: yes, it would start, but not as recorded\n"
        "  CNTFRQ_EL0 (generic timer frequency): recorded for trixie-neoverse-n1 62.5 MHz,"
        f" on slow 25 MHz\n{_SCOPE}"
    )
    assert run("check", "guest") == (0, f"{drift}Remedy: kvmarm refresh guest\n", "")
    report = json.loads(run("check", "guest", "--json").out)
    assert (report["question"], report["definition"]) == ("cold start", "stored")
    verdict = report["hosts"]["slow"]
    assert verdict["verdict"] == "drift"
    (finding,) = verdict["findings"]
    assert (finding["stops_start"], finding["remedy"]) == (False, "kvmarm refresh guest")
    _profile(_slow_clock())
    assert run("check", "guest", "--host", "slow.json") == (
        0,
        f"{drift}Remedy: where it is started: kvmarm refresh guest\n",
        "",
    )
    daemon.live = daemon.stored
    status, out, _ = run("check", "guest")
    assert status == 3
    assert out.startswith("guest on slow: no\n  CNTFRQ_EL0 (")
    assert "Remedy: shut it down and start it on slow, where it then gets what that" in out


@pytest.mark.parametrize("home", [_ALPHA, _BETA, "bookworm-neoverse-n1", "trixie-max"])
def test_drift_is_what_makes_a_record_untrue(home: str) -> None:
    """Of a guest that would boot: nothing is listed if, and only if, the record would then be
    true. By the kernel and by the profile.
    """
    target = Resolver(host(home), Policy(prefer_named=False)).target(Wish("aarch64"))
    judged = 0
    for away in (_ALPHA, _BETA, "bookworm-neoverse-n1", "trixie-max", "trixie-max-nobti"):
        there = host(away)
        for counters in (None, 31 << 11):
            if counters is not None:
                (cluster,) = there.clusters
                seen = {**cluster.seen, "PMCR_EL0": counters}
                there = there.replace(clusters=(cluster.replace(seen=seen),))
            uname = SimpleNamespace(machine="aarch64", nodename=away, release=there.kernel)
            with (
                patch.object(os, "uname", lambda uname=uname: uname),
                System(FakeKernel.from_profile(there)) as system,
            ):
                findings = rehearse(target, system, boots=True)
                if any(finding.stops_start for finding in findings):
                    continue
                after = renewed(target, system, arrived=False)
            machine = target.replace(machine=there.qemu.machines[0]) if there.qemu else target
            judged += 1
            assert (not findings) is (after == target), away
            assert (not check(machine, there, boots=True)) is (after == target), away
    assert judged > 2


def test_a_policy_may_refuse_drift(
    run: Run, daemon: Daemon, on: Callable[[HostProfile], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And then the hook does. Of another host nobody here knows the policy."""
    daemon.stored = _resolved()
    Path("policy.yaml").write_text("on-drift: refuse\n")
    Path("policy.yaml").chmod(0o644)
    monkeypatch.setattr(policy, "DEFAULT_PATH", "policy.yaml")
    on(host(_ALPHA))
    assert run("check", "guest").status == 0
    on(_slow_clock())
    status, out, _ = run("check", "guest")
    assert (status, out.splitlines()[0]) == (
        3,
        "guest on slow: no, it would not start as recorded, which the policy refuses (on-drift)",
    )
    report = json.loads(run("check", "guest", "--json").out)
    assert (report["hosts"]["slow"]["verdict"], report["drift_refused"]) == ("drift", True)
    _profile(_slow_clock())
    assert run("check", "guest", "--host", "slow.json").status == 0


def test_a_file_is_one_of_an_arrival(run: Run, on: Callable[[HostProfile], None]) -> None:
    Path("guest.xml").write_text(_resolved())
    on(_slow_clock())
    status, out, _ = run("check", "guest.xml")
    assert status == 3
    assert "guest would be wrong: nothing checks it" in out
    assert out.splitlines()[-2:] == [
        "Remedy: none: no known change makes slow take this guest; keep it on hosts like the one it"
        " was made on",
        "Note: a saved state cannot be changed: it loads only where the answer is yes.",
    ]
    assert run("check", "guest.xml", "--inactive").status == 0
    on(host(_ALPHA))
    assert run("check", "guest.xml") == (0, f"guest on {_ALPHA}: yes, as recorded\n{_SCOPE}", "")


_SNAPSHOT = """\
<domainsnapshot>
  <name>before</name>
  <state>running</state>
  <memory snapshot='internal'/>
  {}
  <inactiveDomain type='kvm'><name>guest</name></inactiveDomain>
</domainsnapshot>
"""


def test_of_a_snapshot_the_guest_in_it_is_judged(
    run: Run, on: Callable[[HostProfile], None]
) -> None:
    """As that guest in a file: `virsh snapshot-dumpxml` has more around it."""
    guest = _resolved()
    for options in ((), ("--json",), ("--inactive",), ("--host", _profile(_slow_clock("there")))):
        for here in (_slow_clock(), host(_ALPHA)):
            on(here)
            answers = []
            for text in (guest, _SNAPSHOT.format(guest)):
                Path("guest.xml").write_text(text)
                answers.append(run("check", "guest.xml", *options))
            assert answers[0] == answers[1]
    shown = run("show", "--json", "guest.xml")
    assert json.loads(shown.out)["definition"] == inputs.FILE
    assert shown.status == 0


@pytest.mark.parametrize(
    ("snapshot", "said"),
    [
        (_SNAPSHOT.format(""), "the document is a <domainsnapshot>, not a <domain>"),
        (_SNAPSHOT.format("<domain><uuid/></domain>"), "holds no kvmarm record"),
        (_SNAPSHOT.format("<domain>"), "not well-formed XML"),
        (f"<x>{_SNAPSHOT.format('<domain/>')}</x>", "the document is a <x>, not a <domain>"),
    ],
)
def test_snapshots_without_a_guest_to_judge(run: Run, snapshot: str, said: str) -> None:
    Path("guest.xml").write_text(snapshot)
    for command in ("check", "show"):
        status, out, err = run(command, "guest.xml")
        assert (status, out) == (1, "")
        assert said in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["sid-max", "bookworm-neoverse-n1", "trixie-cortex-a72"])
def test_what_stops_a_start_is_a_no(name: str, run: Run) -> None:
    """The rest is listed behind it, without a rule: none forbids it."""
    Path("guest.xml").write_text(_resolved("sid-max", "virt-11.1"))
    arguments = ("check", "--inactive", "guest.xml", "--host", str(HOSTS[name]))
    status, out, _ = run(*arguments)
    report = json.loads(run(*arguments, "--json").out)["hosts"][name]
    stops = [finding["stops_start"] for finding in report["findings"]]
    assert (status == 3, report["verdict"] == "refuses") == (any(stops), any(stops))
    rows = out.splitlines()[1 : 1 + len(stops)]
    assert ["; refuses: " in row for row in rows] == sorted(stops, reverse=True)


def test_an_edited_domain_boots_as_it_says(run: Run) -> None:
    """What is recorded says nothing about it then."""
    text = _resolved("trixie-max")
    text = re.sub("<cpu .*</cpu>", "<cpu mode='host-passthrough'/>", text, flags=re.DOTALL)
    Path("guest.xml").write_text(text)
    arguments = ("guest.xml", "--host", str(HOSTS["trixie-cortex-a72"]))
    status, out, _ = run("check", "--inactive", *arguments)
    assert (status, out.splitlines()[1:2]) == (
        0,
        ["  <feature sve> (in the domain's XML): recorded on, now none"],
    )
    assert run("check", *arguments).status == 3


@pytest.mark.parametrize(
    ("old", "new", "stops"),
    [
        ("machine='virt-10.0'>hvm", "machine='virt-9.2'>hvm", ""),
        ("machine='virt-10.0'>hvm", "machine='virt-99.0'>hvm", "machine type"),
        ("<gic version='3'/>", "<gic version='2'/>", "GIC"),
        ("<cpu mode='host-passthrough'", "<cpu mode='host-model'", "<cpu mode>"),
        ("'disable' name='sve'", "'require' name='sve'", "vCPU"),
        ("'disable' name='pauth'", "'require' name='pauth'", "vCPU"),
        ("<pmu state='on'/>", "<pmu state='off'/>", ""),
        (
            "<cpu mode='host-passthrough' check='none'>",
            "<cpu mode='custom'><model>cortex-a53</model>",
            "vCPU",
        ),
    ],
)
def test_an_edit_may_be_what_does_not_start(
    old: str, new: str, stops: str, run: Run, on: Callable[[HostProfile], None]
) -> None:
    """By the profile and by the kernel."""
    text = _resolved()
    assert old in text
    Path("guest.xml").write_text(text.replace(old, new))
    here = host(_ALPHA).replace(gic_versions=(3,))
    on(here)
    for arguments in (("--host", _profile(here)), ()):
        status, out, _ = run("check", "--inactive", "guest.xml", *arguments)
        assert status == (3 if stops else 0), out
        assert f"\n  {stops} (" in out or not stops


@pytest.mark.parametrize(
    ("memory", "bits", "answer"),
    [
        (2, 36, "drift"),
        (62, 36, "drift"),
        (64, 36, "refuses"),
        (64, 40, "same"),
        (2048, 40, "refuses"),
    ],
)
def test_a_smaller_address_space_stops_only_what_does_not_fit(
    memory: int, bits: int, answer: str, run: Run, on: Callable[[HostProfile], None]
) -> None:
    """QEMU leaves out regions behind the memory, and not the memory."""
    text = _resolved().replace("<memory unit='MiB'>512<", f"<memory unit='GiB'>{memory}<")
    Path("guest.xml").write_text(text)
    capabilities = {**host(_ALPHA).capabilities, "ARM_VM_IPA_SIZE": bits}
    here = host(_ALPHA).replace(ipa_bits=bits, capabilities=capabilities)
    on(here)
    for arguments in (("--host", _profile(here)), ()):
        report = json.loads(run("check", "--json", "--inactive", "guest.xml", *arguments).out)
        assert report["hosts"][_ALPHA]["verdict"] == answer
        assert run("check", "guest.xml", *arguments).status == (
            3 if bits == 36 or memory == 2048 else 0
        )


def test_pins_that_were_edited_are_seen_by_a_profile(run: Run) -> None:
    board = "hand-made-rk3399"
    Path("guest.xml").write_text(_resolved(board))
    arguments = ("guest.xml", "--host", str(HOSTS[board]))
    assert run("check", *arguments).out == f"guest on rk3399: yes, as recorded\n{_SCOPE}"
    Path("guest.xml").write_text(
        _resolved(board).replace("<emulatorpin cpuset='4-5'/>", "<emulatorpin cpuset='0'/>")
    )
    status, out, _ = run("check", *arguments)
    assert status == 3
    assert (
        "\n  pinning (the CPUs of <emulatorpin>): in the XML 0, now on rk3399 4-5, of MIDR"
        " 0x410fd082; refuses: " in out
    )
    status, out, _ = run("check", "--inactive", *arguments)
    assert (status, "; refuses: " in out) == (0, False)


def test_pins_of_another_board_are_moved_on_arrival_only(run: Run) -> None:
    board = host("hand-made-rk3399")
    small, big = sorted(board.clusters, key=lambda cluster: cluster.size)
    _profile(
        board.replace(name="other", clusters=(small.replace(cpus="2-5"), big.replace(cpus="0-1")))
    )
    Path("guest.xml").write_text(_resolved("hand-made-rk3399"))
    arguments = ("guest.xml", "--host", "other.json")
    assert run("check", *arguments).out == f"guest on other: yes, as recorded\n{_SCOPE}"
    status, out, _ = run("check", "--inactive", *arguments)
    assert status == 0
    assert "pinning (the CPUs of <vcpu>): in the XML 4-5, on other 0-1, of MIDR" in out


@pytest.mark.parametrize("cpus", ["", "x", "0-99999999999"])
def test_a_profile_with_odd_cpus(cpus: str, run: Run) -> None:
    board = host("hand-made-rk3399")
    _profile(board.replace(clusters=tuple(c.replace(cpus=cpus) for c in board.clusters)))
    Path("guest.xml").write_text(_resolved("hand-made-rk3399"))
    status, out, err = run("check", "guest.xml", "--host", "rk3399.json")
    assert (status, out, err.count("\n")) == (1, "", 1)


# -- where it is asked ---------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["qemu+ssh://root@far/system", "far", "qemu+tls://far/system"])
def test_a_remote_guest_is_not_judged_by_this_kernel(
    uri: str, run: Run, daemon: Daemon, on: Callable[[HostProfile], None]
) -> None:
    on(host(_ALPHA))
    daemon.live = daemon.stored = _resolved()
    for arguments in (("guest",), ("guest", "--inactive"), ("guest", "--json")):
        status, out, err = run("check", "-c", uri, *arguments)
        assert (status, out) == (1, "")
        assert err.startswith(f"kvmarm: {uri} is another host, and this host's kernel knows")
    assert run("check", "-c", uri, "guest", "--host", str(HOSTS[_ALPHA])).status == 0
    assert run("show", "-c", uri, "guest").status == 0
    Path("guest.xml").write_text(_resolved())
    assert run("check", "-c", uri, "guest.xml").status == 0, "it is not asked"


@pytest.mark.parametrize("definition", ["live", "stored"])
def test_a_mark_leaves_nothing_known(
    definition: str, run: Run, daemon: Daemon, on: Callable[[HostProfile], None]
) -> None:
    on(host(_ALPHA))
    daemon.stored = _resolved()
    daemon.live = daemon.stored if definition == "live" else None
    assert run("check", "guest").status == 0
    marks.mark(_UUID, "it was started here, and its timer differs")
    hosts = [["--host", str(HOSTS[_BETA]), "--host", str(HOSTS[_ALPHA])], ["--inactive"], []]
    for options in hosts:
        status, out, _ = run("check", "guest", *options)
        assert status == 1
        assert out.endswith(
            f"guest on {_ALPHA}: not known: it was started here, and its timer differs\n"
            "Remedy: have its record made true: kvmarm renew --once, as root\n"
        )
        report = json.loads(run("check", "guest", *options, "--json").out)
        assert report["hosts"][_ALPHA] == {"verdict": "not known", "findings": []}
        assert report["unknown"] == "it was started here, and its timer differs"
    assert "the record may not be true: it was started here" in run("show", "guest").out
    assert json.loads(run("show", "guest", "--json").out)["mark"].startswith("it was started")
    # Of another host's guests this one has no marks, and a file may be of another time.
    far = ("-c", "qemu+ssh://far/system", "guest", "--host", str(HOSTS[_ALPHA]))
    assert run("check", *far).status == 0
    Path("guest.xml").write_text(_resolved())
    note = (
        "\nNote: on this host is a mark of that guest, whose record may not be true (it was started"
        " here, and its timer differs); ask for it by its name: kvmarm check guest\n"
    )
    status, out, _ = run("check", "guest.xml")
    assert (status, note in out) == (0, True)
    status, out, _ = run("check", "./guest.xml", "--host", str(HOSTS[_BETA]))
    assert note in out
    assert "Note" not in run("check", *far).out
    Path("guest.xml").write_text(_resolved().replace(_UUID, _UUID[::-1]))
    assert "Note" not in run("check", "guest.xml").out
    marks.unmark(_UUID)
    assert run("check", "guest").status == 0
    Path("guest.xml").write_text(_resolved())
    assert "Note" not in run("check", "guest.xml").out


def test_a_name_with_references_is_what_they_mean(
    run: Run, daemon: Daemon, on: Callable[[HostProfile], None]
) -> None:
    """libvirt writes Tom&apos;s, and the hook leaves its mark by the name."""
    on(host(_ALPHA))
    daemon.stored = _resolved().replace("<name>guest</name>", "<name>Tom&apos;s</name>")
    directory = Path(marks.DIRECTORY) / "marks"
    directory.mkdir(parents=True)
    (directory / "name-Tom's").write_text("its start was not checked\n")
    status, out, _ = run("check", "Tom's")
    assert status == 1
    assert f"Tom's on {_ALPHA}: not known" in out
    assert json.loads(run("check", "Tom's", "--json").out)["domain"] == "Tom's"


@pytest.mark.parametrize("definition", ["live", "saved"])
def test_no_renewal_makes_the_record_of_an_old_state_true(
    definition: str, run: Run, daemon: Daemon, on: Callable[[HostProfile], None]
) -> None:
    on(host(_ALPHA))
    daemon.stored = _resolved()
    setattr(daemon, definition, daemon.stored)
    marks.mark(_UUID, marks.FROM_STATE if definition == "live" else "its timer differs")
    remedy = run("check", "guest").out.partition("Remedy: ")[2]
    assert (
        remedy
        == {
            "live": "shut it down and start it\n",
            "saved": "give up what was saved, and start it: virsh managedsave-remove guest\n",
        }[definition]
    )


# -- how it reads --------------------------------------------------------------------------------


def _said(question: str, *findings: Finding, **more: Any) -> list[str]:
    report = Report("guest", question, {"beta": list(findings)}, origin="alpha", **more)
    return check_view.as_text(report).splitlines()


_TIMER = Finding(
    "timer-frequency",
    register="CNTFRQ_EL0",
    recorded=62_500_000,
    local=25_000_000,
    speed=0.4,
    host="beta",
)
_GIC = Finding("gic-refused", recorded=2, local=(3,), newest=3, host="beta")
_DROPPED = Finding(
    "machine-dropped", machine="virt-4.2", oldest="virt-5.2", newest="virt-11.1", host="beta"
)
_MACHINE = Finding("machine-unknown", machine="virt-10.0", newest="virt-7.2", host="beta")


def test_a_remedy_stands_once_at_the_end() -> None:
    report = Report("guest", ARRIVAL, {"beta": [_MACHINE], "gamma": [_MACHINE]}, origin="alpha")
    text = check_view.as_text(report)
    assert text.count("Remedy: ") == 1
    assert text.splitlines()[-1] == (
        "Remedy: upgrade QEMU on beta; or where the guest comes from, if QEMU there knows virt-7.2:"
        " kvmarm refresh guest --machine virt-7.2, shut it off and start it"
    )
    assert "remedy:" not in text
    hosts = json.loads(check_view.as_json(report))["hosts"]
    assert all(hosts[name]["findings"][0]["remedy"] for name in ("beta", "gamma"))


def test_where_nothing_helps_nothing_else_is_advised() -> None:
    assert [row for row in _said(ARRIVAL, _MACHINE, _TIMER) if row.startswith("Remedy: ")] == [
        "Remedy: none: no known change makes beta take this guest; keep it on hosts like the one it"
        " was made on"
    ]


def test_only_what_stops_a_start_is_mended() -> None:
    remedies = [row for row in _said(START, _TIMER, _MACHINE) if row.startswith("Remedy: ")]
    assert remedies == [
        "Remedy: kvmarm refresh guest --machine virt-7.2; or, to keep virt-10.0, upgrade QEMU on"
        " beta"
    ]
    assert _said(START, _TIMER, _DROPPED)[-1] == "Remedy: kvmarm refresh guest --machine virt-5.2"
    assert _said(START, _TIMER, _GIC)[-1] == (
        "Remedy: write <gic version='3'/> and: kvmarm refresh guest"
    )
    assert _said(START, Finding("no-qemu", model="host", number=5, features=(), host="beta"))[
        -1
    ].startswith("  vCPU"), "nothing that kvmarm does helps"


def test_an_edit_is_mended_before_anything_else(run: Run) -> None:
    """What else is recorded is of another guest. The edit stands once, and nothing beside it."""
    Path("guest.xml").write_text(
        _resolved().replace("machine='virt-10.0'>hvm", "machine='virt-7.2'>hvm")
    )
    away = [str(HOSTS[name]) for name in (_BETA, "trixie-cortex-a72")]
    status, out, _ = run("check", "./guest.xml", "--host", away[0], "--host", away[1])
    assert status == 3
    assert [row for row in out.splitlines() if row.startswith("  ")] == [
        "  machine type (in the domain's XML): recorded virt-10.0, now virt-7.2; refuses: the XML"
        " was edited since it was recorded, and the record is not about this guest any more"
    ] * 2
    assert out.endswith(
        "\nRemedy: kvmarm refresh guest, or undo the edit\n" + check_view._SAVED + "\n"
    )


@pytest.mark.parametrize("kind", ["timer-frequency", "zero-block-size", "register-refused"])
def test_a_guest_that_only_drifts_has_a_remedy(kind: str) -> None:
    assert kinds()[kind]["helps"] == "none"
    values = {"register": "CTR_EL0", "recorded": 1, "local": 2, "speed": 2.0, "host": "beta"}
    finding = Finding(kind, **values)
    assert _said(START, finding)[-1] == "Remedy: kvmarm refresh guest"
    assert _said(ARRIVAL, finding, definition=inputs.LIVE)[-1] == (
        "Remedy: shut it down and start it on beta, where it then gets what that host has"
    )


def test_names_in_a_command_are_quoted() -> None:
    report = Report("a b;c", START, {"beta": [_TIMER]}, origin="alpha")
    assert "\nRemedy: kvmarm refresh 'a b;c'\n" in check_view.as_text(report)
    for name in ("a b;c", "-rf", "a\nb"):
        report = report.replace(title=name, uuid=_UUID)
        assert f"\nRemedy: kvmarm refresh {_UUID}\n" in check_view.as_text(report)


def test_a_host_that_has_changed_since() -> None:
    text = check_view.as_text(Report("guest", ARRIVAL, {"alpha": [_TIMER]}, origin="alpha"))
    assert "recorded for alpha 62.5 MHz, now on alpha 25 MHz; guest would be wrong" in text


def test_a_pool_has_what_is_the_pool_s() -> None:
    """Also where what the host makes is not taken by the rest."""
    made = baseline.baseline([host("trixie-max-nobti"), host("trixie-max-nobti").replace(name="b")])
    assert made.pool
    findings = pool.check_member(made.pool, host("trixie-max"))
    assert any("pool" in finding.values for finding in findings)
    report = Report("pool rack", check_view.MEMBER, {"beta": findings})
    assert (
        "  ID_AA64PFR1_EL1.BT (branch target identification): pool rack 0x0, beta 0x1; refuses: a"
        " guest started on it could not move to the rest of " in check_view.as_text(report)
    )
    data = json.loads(check_view.as_json(report))["hosts"]["beta"]["findings"]
    bti = next(each for each in data if each["subject"] == "ID_AA64PFR1_EL1.BT")
    assert (bti["recorded"], bti["local"]) == ("0x0", "0x1")
    member = Report("pool rack", check_view.MEMBER, {"beta": []})
    assert check_view.as_text(member) == (
        f"pool rack on beta: yes, a member like the others\n{_SCOPE}"
    )


@pytest.mark.parametrize(
    ("changes", "subject", "remedy"),
    [
        ({"CNTFRQ_EL0": 25_000_000}, "CNTFRQ_EL0", "leave odd out of the pool"),
        ({"gic_versions": (2,)}, "GIC", pool.ANEW),
        ({"ipa_bits": 40}, "IPA size", pool.ANEW),
        (
            {"machines": 1},
            "machine type",
            "upgrade QEMU on odd, or make the baseline anew",
        ),
        ({"PSCI_VERSION": 0x10000}, "PSCI_VERSION", pool.ANEW),
        (
            {"ID_AA64PFR1_EL1": 1},
            "ID_AA64PFR1_EL1.BT",
            "boot odd with arm64.nobti, and probe it again",
        ),
    ],
)
def test_a_pool_has_remedies_of_hosts(
    changes: dict[str, Any], subject: str, remedy: str, run: Run
) -> None:
    """No guest is at hand that could be resolved or kept anywhere. A GIC that only some guest asks
    for, and addresses that only a large one needs, are the pool's all the same.
    """
    here = host(_ALPHA).replace(gic_versions=(2, 3))
    formed = baseline.baseline([here, here.replace(name="twin")], "rack").pool
    assert formed is not None
    Path("pool.yaml").write_text(pool.dumps(formed))
    (cluster,) = here.clusters
    odd = here.replace(
        name="odd", **{k: v for k, v in changes.items() if k in ("gic_versions", "ipa_bits")}
    )
    if "machines" in changes and here.qemu:
        odd = odd.replace(qemu=here.qemu.replace(machines=here.qemu.machines[1:]))
    seen = {**cluster.seen, **{k: v for k, v in changes.items() if k in cluster.seen}}
    vcpus = tuple(
        vcpu.replace(
            registers={
                **vcpu.registers,
                **{
                    name: value | (vcpu.registers[name] if name.startswith("ID_") else 0)
                    for name, value in changes.items()
                    if name in vcpu.registers
                },
            }
        )
        for vcpu in cluster.vcpus
    )
    odd = odd.replace(clusters=(cluster.replace(seen=seen, vcpus=vcpus),))
    status, out, _ = run("check", "pool.yaml", "--host", _profile(odd))
    assert status == 3
    assert f"\n  {subject} (" in out
    assert [row for row in out.splitlines() if row.startswith("Remedy: ")] == [f"Remedy: {remedy}"]
    assert "guest and" not in out
    assert run("check", "pool.yaml", "--host", _profile(here)).status == 0


def test_what_a_source_is(run: Run, daemon: Daemon) -> None:
    Path("guest.xml").write_text(_resolved())
    Path("guest").mkdir()
    assert inputs.is_file("guest.xml")
    assert inputs.is_file("./missing")
    assert inputs.is_file("-")
    assert not inputs.is_file("guest")
    daemon.live = _resolved()
    assert inputs.read_source("guest", "qemu:///system", False).definition == inputs.LIVE
    assert inputs.read_source("guest.xml", "qemu:///system", False).definition == inputs.FILE
