# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm refresh`: what it changes, what it keeps and what it says, with a played libvirt and with
libvirt's test driver.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from kvmarm_plugin import cli
from kvmarm_plugin.commands import refresh, refresh_view
from kvmarm_plugin.domain import record, rewrite
from kvmarm_plugin.domain.record import Intent, Record
from kvmarm_plugin.domain.restoring import restore
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.fleet import baseline, pool
from kvmarm_plugin.host import marks
from kvmarm_plugin.kvm.device import System
from kvmarm_plugin.model import policy
from kvmarm_plugin.model.target import Level
from kvmarm_plugin.rehearse import renewed
from kvmarm_plugin.watch import renewal

from ..corpus import GUEST, HOSTS, host, resolver, with_record_1
from .fakekernel import FakeKernel
from .fakelibvirt import FakeDomain, FakeLibvirt

if TYPE_CHECKING:
    from collections.abc import Callable

_UUID = "11111111-2222-3333-4444-555555555555"
_OLDER, _NEWER = "trixie-neoverse-n1", "sid-neoverse-n1"
_XML = resolver(_OLDER).resolve(GUEST).decode()
_HERE = ("--host", str(HOSTS[_NEWER]))


class _Run(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLibvirt:
    """On a host like sid-neoverse-n1."""
    profile = host(_NEWER)
    kernel = FakeKernel.from_profile(profile)
    uname = SimpleNamespace(machine="aarch64", nodename="here", release=profile.kernel)
    monkeypatch.setattr(os, "uname", lambda: uname)
    monkeypatch.setattr(platform, "node", lambda: "here")
    monkeypatch.setattr(renewal, "find_clusters", list)
    monkeypatch.setattr(refresh, "System", lambda: System(kernel))
    monkeypatch.setattr(marks, "DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(tmp_path / "no-policy.yaml"))
    monkeypatch.setattr(pool, "DEFAULT_PATH", str(tmp_path / "no-pool.yaml"))
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    fake = FakeLibvirt()
    monkeypatch.setitem(sys.modules, "libvirt", fake)
    return fake


@pytest.fixture
def run(libvirt: FakeLibvirt, capsys: pytest.CaptureFixture[str]) -> Callable[..., _Run]:
    def call(*arguments: str) -> _Run:
        status = cli.main(["refresh", *_HERE, *arguments])
        return _Run(status, *capsys.readouterr())

    return call


def _guest(
    libvirt: FakeLibvirt, xml: str = _XML, state: str = "SHUTOFF_SHUTDOWN", name: str = "guest"
) -> FakeDomain:
    xml = xml.replace("<name>guest<", f"<name>{name}<")
    uuid = f"{len(libvirt.domains)}{_UUID[1:]}"
    live = None if state.startswith("SHUTOFF") else xml
    libvirt.domains.append(FakeDomain(name, uuid, state, live, xml))
    return libvirt.domains[-1]


def _record(xml: str | None) -> Record:
    assert xml is not None
    element = record.find(parse(xml.encode()))
    assert element is not None
    return record.read(element)


_RECORDED = _record(_XML).target
_NEW = _record(resolver(_NEWER).resolve(GUEST).decode()).target
_REFRESHED = _NEW.replace(machine="virt-10.0")


def test_what_follows_makes_a_difference() -> None:
    assert (_RECORDED.machine, _NEW.machine) == ("virt-10.0", "virt-11.1")
    assert _RECORDED != _REFRESHED


def test_it_gives_what_the_host_gives_and_keeps_the_machine_type(
    run: Callable[..., _Run], libvirt: FakeLibvirt
) -> None:
    guest = _guest(libvirt)
    assert run("guest") == (0, "guest: changed\n", "")
    assert guest.calls == [("define", "")]
    assert _record(guest.config).target == _REFRESHED
    assert _record(guest.config).origin.host == _NEWER
    assert guest.config is not None
    assert "machine='virt-10.0'>hvm" in guest.config
    assert restore(guest.config.encode(), parse(guest.config.encode())) == GUEST
    assert run("guest") == (0, "guest: kept\n", "")
    assert guest.calls == [("define", "")]


def test_a_dry_run_says_what_would_change(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    guest = _guest(libvirt, state="RUNNING_MIGRATED")
    marks.mark(guest.uuid, "it has started as something else")
    status, out, err = run("--dry-run", "guest")
    assert (status, err) == (0, "")
    assert out == (
        "guest: would change; as it runs: would change\n"
        "  PSCI_VERSION (PSCI version that the guest is offered): 0x10001 → 0x10003\n"
        "  VENDOR_HYP_BMAP_2 (KVM hypercalls offered, second set: CPU discovery): none → 0x0\n"
        "  register list: 333 registers → 331 registers, with VENDOR_HYP_BMAP_2, without"
        " TCR2_EL1, PIRE0_EL1, PIR_EL1\n"
        "  as it runs: VENDOR_HYP_BMAP_2 (KVM hypercalls offered, second set: CPU discovery): none"
        " → 0x0\n"
        "  as it runs: register list: 333 registers → 331 registers, with VENDOR_HYP_BMAP_2,"
        " without TCR2_EL1, PIRE0_EL1, PIR_EL1\n"
    )
    assert (guest.calls, guest.config, guest.live) == ([], _XML, _XML)
    assert marks.marked() == ([guest.uuid], [])


def test_another_machine_type(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    guest = _guest(libvirt)
    out = run("--machine", "virt", "--dry-run", "guest").out
    assert "\n  machine type: virt-10.0 → virt-11.1\n" in out
    assert run("--machine", "virt", "guest").status == 0
    assert _record(guest.config).target == _NEW
    assert guest.config is not None
    assert restore(guest.config.encode(), parse(guest.config.encode())) == GUEST
    status, out, _ = run("--machine", "virt-99.0", "guest")
    assert status == 3
    assert out.startswith("guest: cannot be resolved: QEMU ")
    assert "'virt-99.0'" in out
    assert len(guest.calls) == 1


def test_a_guest_that_runs_keeps_what_it_has(
    run: Callable[..., _Run], libvirt: FakeLibvirt
) -> None:
    guest = _guest(libvirt, state="RUNNING_MIGRATED")
    marks.mark(guest.uuid, "it has started as something else")
    assert run("guest") == (0, "guest: changed; as it runs: changed\n", "")
    with System(FakeKernel.from_profile(host(_NEWER))) as system:
        assert _record(guest.live).target == renewed(_RECORDED, system, arrived=True)
    assert _record(guest.live).origin.renewed == "here"
    assert _record(guest.config).target == _REFRESHED
    assert marks.marked() == ([], [])
    assert run("guest") == (0, "guest: kept; as it runs: kept\n", "")


def test_a_transient_guest(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    guest = _guest(libvirt, state="RUNNING_BOOTED")
    guest.config = None
    assert run("guest") == (0, "guest: as it runs: changed\n", "")
    assert guest.calls == [("live", record.NAMESPACE)]


def test_what_cannot_be_told_of_a_guest_that_runs(
    run: Callable[..., _Run], libvirt: FakeLibvirt
) -> None:
    guest = _guest(libvirt, state="RUNNING_UNPAUSED")
    marks.mark(guest.uuid, "it has started as something else")
    status, out, _ = run("guest")
    assert status == 3
    assert out.startswith("guest: changed; as it runs: not known: libvirt does not say whether ")
    assert (guest.live, _record(guest.config).target) == (_XML, _REFRESHED)
    assert marks.marked() == ([guest.uuid], [])


def test_all_that_have_a_record(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    """One that cannot be refreshed does not stop the others, and --all asks for records only."""
    here = resolver(_NEWER).resolve(GUEST).decode()
    guests = {
        "d-same": _guest(libvirt, here, name="d-same"),
        "a-older": _guest(libvirt, name="a-older"),
        "b-other": _guest(libvirt, GUEST.decode(), name="b-other"),
        "c-refused": _guest(libvirt, name="c-refused"),
        "e-broken": _guest(
            libvirt,
            _XML.replace("<kvmarm:intent added='", "<kvmarm:intent added='x "),
            name="e-broken",
        ),
    }
    guests["c-refused"].refuses = 1
    status, out, _ = run("--all")
    assert status == 1
    assert [line.partition(" (hint")[0] for line in out.splitlines()] == [
        "a-older: changed",
        "c-refused: error: libvirt: unsupported configuration: no",
        "d-same: kept",
        "e-broken: error: the intent in the domain's kvmarm record is not one that kvmarm wrote: as"
        " added it names x gic pmu features metadata",
    ]
    assert guests["b-other"].calls == []
    assert not libvirt.domains[0].calls


def test_as_json(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    _guest(libvirt, state="RUNNING_BOOTED")
    for flags in (("--dry-run",), ()):
        status, out, err = run("--json", *flags, "guest")
        report: dict[str, Any] = json.loads(out)
        assert (status, err) == (0, "")
        (guest,) = report["guests"]
        assert (guest["name"], guest["uuid"]) == ("guest", libvirt.domains[0].uuid)
        for part in ("stored", "running"):
            assert guest[part]["result"] == ("would change" if flags else "changed")
            assert guest[part]["reason"] == ""
            assert set(guest[part]["differences"][0]) == {"what", "before", "after"}
    (guest,) = json.loads(run("--json", "guest").out)["guests"]
    assert guest["stored"] == {"result": "kept", "reason": "", "differences": []}


def test_a_guest_that_is_not_there_and_one_without_a_record(
    run: Callable[..., _Run], libvirt: FakeLibvirt
) -> None:
    _guest(libvirt, GUEST.decode(), name="plain")
    _guest(libvirt, GUEST.decode().replace("'kvm'", "'qemu'"), name="emulated")
    guest = _guest(libvirt)
    status, out, _ = run("nobody", "plain", "emulated", "guest")
    assert status == 1
    missing, plain, emulated, found = out.splitlines()
    assert emulated == "emulated: error: it is no KVM guest (<domain type='qemu'>)"
    assert missing.startswith("nobody: error: libvirt: Domain not found: nobody (hint: ")
    assert plain.startswith(
        "plain: error: it holds no kvmarm record (hint: resolve it first: virsh "
    )
    assert found == "guest: changed"
    assert guest.calls


@pytest.mark.parametrize("name", ["it's", "-rf", "a b", "$(reboot)", "\N{SNOWMAN}"])
def test_what_to_paste_for_an_odd_name(
    run: Callable[..., _Run], libvirt: FakeLibvirt, name: str
) -> None:
    guest = _guest(libvirt, GUEST.decode(), name=name)
    assert f" --security-info {guest.uuid} | kvmarm" in run("--", name).out


def test_the_mark_of_a_saved_guest_stays(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    for guest in (_guest(libvirt), _guest(libvirt, state="SHUTOFF_SAVED", name="filed")):
        guest.saved = _XML if guest.title == "guest" else None
        marks.mark(guest.uuid, "it has started as something else")
        assert run(guest.title).status == 0
        assert marks.mark_of(guest.uuid)
    restored = _guest(libvirt, state="RUNNING_RESTORED", name="restored")
    marks.mark(restored.uuid, marks.FROM_STATE)
    status, out, _ = run("restored")
    assert (status, _record(restored.live).target) == (3, _RECORDED)
    assert (
        "as it runs: not known: it goes on from a state whose record may not have been true" in out
    )
    assert marks.mark_of(restored.uuid)


def test_a_mark_of_a_start_meanwhile_stays(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    guest = _guest(libvirt)
    marks.mark(guest.uuid, "it has started as something else")
    guest.on_read = lambda: marks.mark(guest.uuid, "again")
    assert run("guest").status == 0
    assert marks.mark_of(guest.uuid) == "again"


def test_a_managed_save_stays(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    guest = _guest(libvirt)
    guest.saved = _XML
    assert run("guest") == (
        0,
        "guest: changed\n",
        "kvmarm: guest: its next start loads its managed save, which stays as it is\n",
    )
    assert guest.saved == _XML


def test_by_uuid(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    assert run(_guest(libvirt).uuid).out == "guest: changed\n"


def test_a_record_of_version_1(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    xml = with_record_1(resolver(_NEWER).resolve(GUEST)).decode()
    guest = _guest(libvirt, xml)
    assert run("--dry-run", "guest").out == (
        "guest: would change\n  record: version 1 → version 2\n"
    )
    assert run("guest").out == "guest: changed\n"
    assert _record(guest.config).target == _NEW
    assert run("guest").out == "guest: kept\n"


def test_a_broken_record_is_made_anew(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    guest = _guest(libvirt, _XML.replace("gic='3'", "gic='9'"))
    assert "\n  record: broken: " in run("--dry-run", "guest").out
    assert run("guest").status == 0
    assert _record(guest.config).target == _REFRESHED


def test_what_was_edited_since(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    """What is not as it was written is the user's wish."""
    edited = _XML.replace("<pmu state='on'/>", "<pmu state='off'/>").replace(
        "machine='virt-10.0'>hvm", "machine='virt-9.0'>hvm"
    )
    assert edited.count("virt-9.0") == edited.count("<pmu state='off'/>") == 1
    guest = _guest(libvirt, edited)
    out = run("--dry-run", "guest").out
    assert "as recorded" not in out
    assert "\n  feature pmu_v3: on → off\n" in out
    assert "\n  machine type: virt-10.0 → virt-9.0\n" in out
    run("guest")
    target = _record(guest.config).target
    assert (target.machine, "pmu_v3" in target.features) == ("virt-9.0", False)
    assert run("guest").out == "guest: kept\n"


def _with_cpu(new: str) -> str:
    cpu = parse(_XML.encode()).find("cpu")
    assert cpu is not None
    return _XML.replace(cpu.text.decode(), new)


@pytest.mark.parametrize("cpu", ["", "<cpu mode='host-passthrough'/>"])
def test_a_cpu_that_was_taken_out_comes_back(
    cpu: str, run: Callable[..., _Run], libvirt: FakeLibvirt
) -> None:
    guest = _guest(libvirt, _with_cpu(cpu))
    assert run("guest") == (0, "guest: changed\n", "")
    assert _record(guest.config).target == _REFRESHED
    assert run("guest").out == "guest: kept\n"


@pytest.mark.parametrize(
    ("edited", "now"),
    [
        (_with_cpu("<cpu mode='maximum'/>"), "<cpu mode='maximum'>"),
        (_XML.replace("type='kvm'", "type='qemu'"), "<domain type='qemu'>"),
        (_XML.replace("arch='aarch64'", "arch='riscv64'"), "<type arch='riscv64'>"),
    ],
)
def test_a_guest_that_has_left_host_model(
    edited: str, now: str, run: Callable[..., _Run], libvirt: FakeLibvirt
) -> None:
    """It is told how to come back, and how to leave for good."""
    guest = _guest(libvirt, edited)
    status, out, err = run("guest")
    assert (status, err) == (3, "")
    assert out.startswith(f"guest: cannot be resolved: it says {now} since it was recorded")
    assert "; or, for a guest without host-model, remove <kvmarm:target>" in out
    assert guest.config == edited
    anew = _guest(libvirt, _with_cpu("<cpu mode='host-model'/>"), name="anew")
    assert run("anew").status == 0
    assert _record(anew.config).target == _REFRESHED


def test_what_qemu_is_told_besides_is_said(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    edited = _XML.replace(
        "</domain>",
        "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-cpu'/>"
        "<arg value='host,pmu=off'/></commandline></domain>",
    )
    guest = _guest(libvirt, edited)
    status, out, _ = run("guest")
    assert status == 3
    assert "-cpu host,pmu=off in <qemu:commandline> overrules" in out
    assert guest.config == edited


def test_the_user_asks_for_host_model_anew(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    cpu = parse(_XML.encode()).find("cpu")
    assert cpu is not None
    guest = _guest(libvirt, _XML.replace(cpu.text.decode(), "<cpu mode='host-model'/>"))
    assert run("guest").status == 0
    assert _record(guest.config).target == _REFRESHED


def test_a_guest_that_never_asked(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    """It has no intent to resolve: its record follows the host, and its XML stays."""
    adopted = _record(_XML).replace(intent=Intent((), ()))
    xml = rewrite.replace_record(_XML.encode(), parse(_XML.encode()), adopted).decode()
    guest = _guest(libvirt, xml)
    assert run("guest") == (0, "guest: changed\n", "")
    assert guest.calls == [("config", record.NAMESPACE)]
    assert _record(guest.config).target == _REFRESHED
    assert _record(guest.config).intent == Intent((), ())


def test_passwords_are_not_lost(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    guest = _guest(libvirt, _XML.replace("<devices/>", "<devices><a passwd='secret'/></devices>"))
    guest.secret = " passwd='secret'"
    assert run("guest").status == 0
    assert guest.config is not None
    assert "<a passwd='secret'/>" in guest.config


def test_what_somebody_changes_meanwhile_is_not_lost(
    run: Callable[..., _Run], libvirt: FakeLibvirt
) -> None:
    guest = _guest(libvirt)
    changed = _XML.replace("512", "1024")

    def change() -> None:
        guest.config, guest.on_read = changed, lambda: None

    guest.on_read = change
    status, out, _ = run("guest")
    assert status == 1
    assert out.startswith("guest: error: somebody has changed it meanwhile")
    assert guest.config == changed


def test_a_pool_s_guest(run: Callable[..., _Run], libvirt: FakeLibvirt, tmp_path: Path) -> None:
    """The pool's target, and a member that has drifted is a guest that cannot be resolved."""
    made = baseline.baseline([host(_OLDER), host(_OLDER).replace(name="other")]).pool
    assert made is not None
    path = tmp_path / "pool.yaml"
    path.write_text(pool.dumps(made), encoding="utf-8")
    guest = _guest(libvirt)
    status, out, _ = run("--pool", str(path), "guest")
    assert status == 3
    assert "guest: cannot be resolved: sid-neoverse-n1 does not fit into pool pool" in out
    assert guest.calls == []


def test_a_host_that_is_elsewhere(libvirt: FakeLibvirt, capsys: pytest.CaptureFixture[str]) -> None:
    guest = _guest(libvirt, state="RUNNING_BOOTED")
    there = ("-c", "qemu+ssh://far/system")
    assert cli.main(["refresh", "guest", *there]) == 1
    assert "qemu+ssh://far/system is another host" in capsys.readouterr().err
    assert cli.main(["refresh", "guest", *there, *_HERE]) == 0
    out, err = capsys.readouterr()
    assert out == "guest: changed\n"
    assert "guest runs on another host: only its stored record is refreshed" in err
    assert guest.live == _XML


def test_without_kvm_what_is_stored_is_refreshed(
    run: Callable[..., _Run], libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeKernel.from_profile(host(_NEWER))
    kernel.open_errno = 13
    monkeypatch.setattr(refresh, "System", lambda: System(kernel))
    guest = _guest(libvirt, state="RUNNING_BOOTED")
    status, out, _ = run("guest")
    assert status == 1
    assert out.startswith("guest: changed; as it runs: error: ")
    assert _record(guest.config).target == _REFRESHED


# -- libvirt's test driver -----------------------------------------------------------------------


def test_with_libvirt_itself(
    libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "libvirt")
    real = pytest.importorskip("libvirt")
    from kvmarm_plugin.host.libvirtd import Connection, Domain

    # It takes no type but "test".
    define, xml_of = Connection.define, Domain.xml
    monkeypatch.setattr(
        Connection,
        "define",
        lambda self, xml, validate: define(self, xml.replace("'kvm'", "'test'", 1), validate),
    )
    monkeypatch.setattr(
        Domain,
        "xml",
        lambda self, live, secrets: xml_of(self, live, secrets).replace("'test'", "'kvm'", 1),
    )
    connection = real.open("test:///default")
    domain = connection.defineXMLFlags(_XML.replace("'kvm'", "'test'", 1), 0)
    try:
        domain.create()
        arguments = ["refresh", *_HERE, "-c", "test:///default", "--all"]
        assert cli.main(arguments) == 0
        assert capsys.readouterr().out == "guest: changed; as it runs: changed\n"
        live, config = (domain.XMLDesc(flags) for flags in (0, real.VIR_DOMAIN_XML_INACTIVE))
        assert _record(live).target == _record(config).target == _REFRESHED
        for xml in (live, config):
            back = restore(xml.encode(), parse(xml.encode()))
            assert b"<cpu mode='host-model'/>" in back
            assert b"kvmarm" not in back
        assert cli.main(arguments) == 0
        assert capsys.readouterr().out == "guest: kept; as it runs: kept\n"
    finally:
        domain.destroy()
        domain.undefine()
        connection.close()


# -- the differences -----------------------------------------------------------------------------


def test_every_fact_of_a_target_shows_when_it_changes() -> None:
    target = _record(resolver("hand-made-rk3399").resolve(GUEST).decode()).target
    assert target.pinning is not None
    changes: dict[str, Any] = {
        "architecture": "arm",
        "number": 0,
        "features": ("psci_0_2",),
        "model": "cortex-a72",
        "unsaid": ("sve",),
        "machine": "virt-9.0",
        "gic": 2,
        "ipa_bits": 36,
        "sve_lengths": (128,),
        "seen": {**target.seen, "CNTFRQ_EL0": 1},
        "registers": {**target.registers, "MIDR_EL1": 0x410FD083},
        "reglist": _NEW.reglist,
        "pinning": target.pinning.replace(cpus="7"),
        "roams": True,
        "level": Level(),
    }
    assert changes.keys() == target.as_dict().keys()
    for name, value in changes.items():
        base = target.replace(pinning=None) if name == "roams" else target
        changed = base.replace(**{name: value})
        assert changed != base, name
        assert refresh_view.target_differences(base, base) == []
        assert refresh_view.target_differences(base, changed), name


def test_what_a_guest_reads_is_shown_as_everywhere() -> None:
    before = _RECORDED
    pmcr = before.seen["PMCR_EL0"]
    other = {"CNTFRQ_EL0": 19_200_001, "DCZID_EL0": 5, "PMCR_EL0": pmcr ^ 31 << 11}
    found = {
        difference.what.partition(" ")[0]: (difference.before, difference.after)
        for difference in refresh_view.target_differences(
            before, before.replace(seen={**before.seen, **other})
        )
    }
    assert found == {
        "CNTFRQ_EL0": ("62.5 MHz", "19.200001 MHz"),
        "DCZID_EL0": ("DC ZVA clears 64 bytes", "DC ZVA clears 128 bytes"),
        "PMCR_EL0": ("6 event counters", "25 event counters"),
    }
    # What the words leave out, the number tells.
    same_words = {**before.seen, "PMCR_EL0": pmcr ^ 1 << 24}
    (difference,) = refresh_view.target_differences(before, before.replace(seen=same_words))
    assert difference[1:] == (f"{pmcr:#x}", f"{pmcr ^ 1 << 24:#x}")
