# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm forget` and `kvmarm undo`: the way out, and who keeps his hands off afterwards."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import pytest

from kvmarm_plugin import cli
from kvmarm_plugin.commands import adopt, refresh
from kvmarm_plugin.domain import record, rewrite
from kvmarm_plugin.domain.record import Intent
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.fleet import pool
from kvmarm_plugin.host import left_alone, libvirt_host_model, marks, previous
from kvmarm_plugin.host.libvirtd import Connection, Domain
from kvmarm_plugin.kvm.device import System
from kvmarm_plugin.model import policy
from kvmarm_plugin.watch import renewal
from kvmarm_plugin.watch.renewal import Renewer

from ..corpus import GUEST, HOSTS, host, resolver, with_record_1
from .fakekernel import FakeKernel
from .fakelibvirt import FakeDomain, FakeLibvirt

if TYPE_CHECKING:
    from collections.abc import Callable

_UUID = "11111111-2222-3333-4444-555555555555"
_HOST = "trixie-neoverse-n1"
_WRITTEN = GUEST.replace(b"<name>", f"<uuid>{_UUID}</uuid><name>".encode())
_XML = resolver(_HOST).resolve(_WRITTEN).decode()
_WENT = (
    "kvmarm: what their users had written went with the records (hint: to have it back: kvmarm undo"
    " guest && kvmarm forget --restore guest)\n"
)
_VAIN = (
    "it asks for host-model, and does not start without: virsh dumpxml --inactive --security-info"
    " guest | kvmarm define -"
)


class _Run(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLibvirt:
    profile = host(_HOST)
    kernel = FakeKernel.from_profile(profile)
    uname = SimpleNamespace(machine="aarch64", nodename="here", release=profile.kernel)
    monkeypatch.setattr(os, "uname", lambda: uname)
    monkeypatch.setattr(renewal, "find_clusters", list)
    monkeypatch.setattr(renewal, "System", lambda: System(kernel))
    monkeypatch.setattr(refresh, "System", lambda: System(kernel))
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(tmp_path / "no-policy.yaml"))
    monkeypatch.setattr(pool, "DEFAULT_PATH", str(tmp_path / "no-pool.yaml"))
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    fake = FakeLibvirt()
    monkeypatch.setitem(sys.modules, "libvirt", fake)
    return fake


@pytest.fixture
def run(libvirt: FakeLibvirt, capsys: pytest.CaptureFixture[str]) -> Callable[..., _Run]:
    def call(*arguments: str) -> _Run:
        status = cli.main([*arguments])
        return _Run(status, *capsys.readouterr())

    return call


def _guest(
    libvirt: FakeLibvirt, xml: str = _XML, state: str = "SHUTOFF_SHUTDOWN", name: str = "guest"
) -> FakeDomain:
    uuid = f"{len(libvirt.domains)}{_UUID[1:]}"
    xml = xml.replace("<name>guest<", f"<name>{name}<").replace(_UUID, uuid)
    live = None if state.startswith("SHUTOFF") else xml
    libvirt.domains.append(FakeDomain(name, uuid, state, live, xml))
    return libvirt.domains[-1]


def _cpu(xml: str | None) -> str:
    assert xml is not None
    cpu = parse(xml.encode()).find("cpu")
    assert cpu is not None
    return cpu.text.decode()


def _written(guest: FakeDomain) -> str:
    return _WRITTEN.decode().replace(_UUID, guest.uuid)


# -- forget --------------------------------------------------------------------------------------


def test_the_record_goes_and_the_cpu_stays(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    guest = _guest(libvirt, state="RUNNING_BOOTED")
    marks.mark(guest.uuid, "it has started as something else")
    assert run("forget", "guest") == (0, "guest: forgotten; as it runs: forgotten\n", _WENT)
    assert guest.calls == [("config", f"-{record.NAMESPACE}"), ("live", f"-{record.NAMESPACE}")]
    for xml in (guest.config, guest.live):
        assert xml is not None
        assert "kvmarm" not in xml
        assert 'mode="host-passthrough"' in xml
    assert left_alone.has(guest.uuid)
    assert marks.marked() == ([], [])
    assert run("forget", "guest").out == (
        "guest: has no record: kvmarm leaves it alone from now on\n"
    )


def test_what_went_with_the_record_comes_back_as_is_said(
    run: Callable[..., _Run], libvirt: FakeLibvirt
) -> None:
    guest = _guest(libvirt)
    hint = "(hint: --restore gives it back)\n"
    assert run("forget", "--dry-run", "guest").err.endswith(hint)
    assert run("forget", "guest").err == _WENT
    assert guest.config != _written(guest)
    for command in _WENT.partition("back: ")[2].removesuffix(")\n").split(" && "):
        assert run(*command.split()[1:]).status == 0
    assert guest.config == _written(guest)
    _guest(libvirt, name="a")
    _guest(libvirt, name="b")
    assert run("forget", "--all").err == _WENT.replace(" guest", " DOMAIN")


def test_what_went_and_is_kept_nowhere(
    run: Callable[..., _Run], libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    _guest(libvirt)
    monkeypatch.setattr(previous, "keep", lambda _uuid, _definition: False)
    assert run("forget", "guest").err.endswith(", and is kept nowhere\n")


def test_what_the_user_wrote_comes_back(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    guest = _guest(libvirt, state="RUNNING_BOOTED")
    assert run("forget", "--restore", "guest") == (
        0,
        f"guest: restored: {_VAIN}; as it runs: forgotten\n",
        "",
    )
    assert guest.config == _written(guest)
    assert guest.live is not None
    assert "kvmarm" not in guest.live
    assert "host-model" not in guest.live


def test_later_edits_and_passwords_stay(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    edited = _XML.replace("512", "1024").replace(
        "<devices/>", "<devices><a passwd='secret'/></devices>"
    )
    guest = _guest(libvirt, edited)
    guest.secret = " passwd='secret'"
    assert run("forget", "--restore", "guest").status == 0
    assert guest.config == _written(guest).replace("512", "1024").replace(
        "<devices/>", "<devices><a passwd='secret'/></devices>"
    )


def test_where_libvirt_offers_host_model_it_starts(
    run: Callable[..., _Run], libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt_host_model, "is_noted", lambda: True)
    _guest(libvirt)
    assert run("forget", "--restore", "guest").out == "guest: restored\n"


def test_a_guest_that_never_asked_has_nothing_to_restore(
    run: Callable[..., _Run], libvirt: FakeLibvirt
) -> None:
    element = record.find(parse(_XML.encode()))
    assert element is not None
    adopted = record.read(element).replace(intent=Intent((), ()))
    xml = rewrite.replace_record(_XML.encode(), parse(_XML.encode()), adopted).decode()
    guest = _guest(libvirt, xml)
    assert run("forget", "--restore", "guest").out == (
        "guest: forgotten: its record held nothing to restore\n"
    )
    assert guest.calls == [("config", f"-{record.NAMESPACE}")]


def test_what_adopting_has_pinned_comes_back(
    run: Callable[..., _Run], libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = FakeKernel.from_profile(host(_HOST))
    monkeypatch.setattr(adopt, "System", lambda: System(kernel))
    monkeypatch.setattr(adopt, "probe_here", lambda: host(_HOST))
    written = _WRITTEN.decode().replace("host-model", "host-passthrough")
    guest = _guest(libvirt, written.replace("'virt'", "'virt-10.0'"))
    before = guest.config
    left_alone.add(guest.uuid)
    assert run("adopt", "guest").status == 0
    assert not left_alone.has(guest.uuid)
    assert guest.config != before
    assert run("forget", "--restore", "guest").out == "guest: restored\n"
    assert guest.config == before


def test_a_dry_run_says_what_would_change(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    guest = _guest(libvirt, state="RUNNING_BOOTED")
    status, out, err = run("forget", "--restore", "--dry-run", "guest")
    assert (status, err) == (0, "")
    first, *rest = out.splitlines()
    assert first == f"guest: would be restored: {_VAIN}; as it runs: would be forgotten"
    assert rest[0].startswith("  CPU: <cpu mode='host-passthrough'")
    assert rest[0].endswith(" → <cpu mode='host-model'/>")
    assert "  record: version 2 → none" in rest
    assert rest[-1] == "  as it runs: record: version 2 → none"
    assert guest.calls == []
    assert not left_alone.has(guest.uuid)
    assert not os.path.exists(previous.DIRECTORY)


def test_as_json(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    guest = _guest(libvirt)
    (said,) = json.loads(run("forget", "--json", "--restore", "guest").out)["guests"]
    assert (said["uuid"], said["running"]) == (guest.uuid, None)
    assert (said["stored"]["result"], said["stored"]["reason"]) == ("restored", _VAIN)
    assert said["stored"]["differences"][-1] == {
        "what": "record",
        "before": "version 2",
        "after": "none",
    }


def test_all(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    """Those without a record are left alone, too; one that fails does not stop the others."""
    guests = [
        _guest(libvirt, name="a-guest"),
        _guest(libvirt, GUEST.decode(), name="b-plain"),
        _guest(libvirt, name="c-refused"),
        _guest(libvirt, with_record_1(_XML.encode()).decode(), name="d-older"),
    ]
    guests[2].refuses = 1
    status, out, _ = run("forget", "--all")
    assert status == 1
    assert out.splitlines() == [
        "a-guest: forgotten",
        "c-refused: error: libvirt: Timed out during operation: cannot acquire state change lock",
        "d-older: forgotten",
    ]
    assert guests[3].calls == [("config", f"-{record.NAMESPACE_1}")]
    assert all(left_alone.has(guest.uuid) for guest in guests)


@pytest.mark.parametrize(
    "change",
    [
        lambda xml: xml.replace(f"{record.NAMESPACE}'", f"{record.NAMESPACE_STEM}99'"),
        lambda xml: xml.replace("gic='3'", "gic='9'"),
        lambda xml: xml.replace("<kvmarm:intent", "<kvmarm:intention").replace(
            "</kvmarm:intent>", "</kvmarm:intention>"
        ),
    ],
    ids=["of another version", "broken", "without an intent"],
)
def test_any_record_goes(
    run: Callable[..., _Run], libvirt: FakeLibvirt, change: Callable[[str], str]
) -> None:
    assert change(_XML) != _XML
    guest = _guest(libvirt, change(_XML))
    assert run("forget", "guest").out == "guest: forgotten\n"
    assert guest.config is not None
    assert "kvmarm" not in guest.config


def test_a_record_that_cannot_be_restored_stays(
    run: Callable[..., _Run], libvirt: FakeLibvirt
) -> None:
    guest = _guest(libvirt, _XML.replace(f"{record.NAMESPACE}'", f"{record.NAMESPACE_STEM}99'"))
    before = guest.config
    status, out, _ = run("forget", "--restore", "guest")
    assert status == 1
    assert out.startswith(
        "guest: error: nothing could be restored: the domain's kvmarm record is of version 99"
    )
    assert (guest.config, guest.calls) == (before, [])


def test_a_transient_guest(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    guest = _guest(libvirt, state="RUNNING_BOOTED")
    guest.config = None
    assert run("forget", "guest").out == "guest: as it runs: forgotten\n"
    status, _, err = run("undo", "guest")
    assert status == 1
    assert "guest is transient" in err


def test_a_managed_save_keeps_its_record(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    guest = _guest(libvirt)
    guest.saved = _XML
    marks.mark(guest.uuid, "it has started as something else")
    assert run("forget", "guest") == (
        0,
        "guest: forgotten\n",
        "kvmarm: guest: what was saved of it keeps its record\n" + _WENT,
    )
    assert marks.mark_of(guest.uuid)


def test_what_somebody_changes_meanwhile_is_not_lost(
    run: Callable[..., _Run], libvirt: FakeLibvirt
) -> None:
    guest = _guest(libvirt)
    assert guest.config is not None
    changed = guest.config.replace("512", "1024")

    def change() -> None:
        guest.config, guest.on_read = changed, lambda: None

    guest.on_read = change
    status, out, _ = run("forget", "--restore", "guest")
    assert status == 1
    assert out.startswith("guest: error: somebody has changed it meanwhile")
    assert guest.config == changed


@pytest.mark.parametrize("command", ["forget", "undo"])
def test_guests_that_are_not_here(
    run: Callable[..., _Run], libvirt: FakeLibvirt, command: str
) -> None:
    status, out, err = run(command, "nobody")
    assert status == 1
    assert "libvirt: Domain not found: nobody (hint: " in out + err
    _guest(libvirt)
    assert run(command, "-c", "qemu+ssh://far/system", "guest") == (
        1,
        "",
        f"kvmarm: qemu+ssh://far/system is another host (hint: run kvmarm {command} there)\n",
    )


def test_the_list_comes_first(
    run: Callable[..., _Run], libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it cannot be written nothing is changed; a user's own libvirt has none."""
    guest = _guest(libvirt)
    Path(left_alone.DIRECTORY).parent.mkdir()
    Path(left_alone.DIRECTORY).write_text("in the way")
    for command in ("forget", "undo"):
        status, out, err = run(command, "guest")
        assert (status, out) == (1, "")
        assert err.startswith(f"kvmarm: cannot write {left_alone.DIRECTORY}: ")
    assert guest.calls == []
    Path(previous.DIRECTORY).write_text("in the way")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(previous, "keep", lambda *_: None)
    assert run("forget", "-c", "qemu:///session", "guest").status == 0


# -- undo ----------------------------------------------------------------------------------------


def test_undo_of_forget(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    for flags in ((), ("--restore",)):
        guest = _guest(libvirt, name=f"guest{len(libvirt.domains)}")
        before = guest.config
        assert run("forget", *flags, guest.title).status == 0
        forgotten = guest.config
        status, out, err = run("undo", guest.title)
        assert (status, err, guest.config) == (0, "", before)
        path = f"{previous.DIRECTORY}/{guest.uuid}/1.undone.xml"
        assert out.startswith(f"Domain '{guest.title}' is defined as it was until 20")
        assert out.endswith(f"; its other definition is kept in {path}\n")
        assert Path(path).read_text() == forgotten
        assert not left_alone.has(guest.uuid)


def test_what_was_forgotten_already_comes_back_with_undo(
    run: Callable[..., _Run], libvirt: FakeLibvirt
) -> None:
    guest = _guest(libvirt)
    before = guest.config
    assert run("forget", "guest").status == 0
    status, out, _ = run("forget", "--restore", "guest")
    assert status == 0
    assert out == (
        "guest: has no record: it was forgotten already; its definition of before comes back with:"
        " kvmarm undo guest\n"
    )
    assert run("undo", "guest").status == 0
    assert guest.config == before


def test_undo_of_define(run: Callable[..., _Run], libvirt: FakeLibvirt, tmp_path: Path) -> None:
    guest = _guest(libvirt, _WRITTEN.decode(), state="RUNNING_BOOTED")
    file = tmp_path / "guest.xml"
    file.write_text(_written(guest))
    assert run("define", "--host", str(HOSTS[_HOST]), str(file)).status == 0
    assert guest.config != _written(guest)
    status, _, err = run("undo", "guest")
    assert status == 0
    assert err == (
        f"kvmarm: guest runs, and has it from its next start on\nkvmarm: guest: {_VAIN}\n"
    )
    assert guest.config == _written(guest)
    assert left_alone.has(guest.uuid)
    assert run("define", "--host", str(HOSTS[_HOST]), str(file)).status == 0
    assert not left_alone.has(guest.uuid)


def test_undo_without_anything_kept(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    guest = _guest(libvirt)
    status, out, err = run("undo", "guest")
    assert (status, out) == (1, "")
    assert err.startswith("kvmarm: no previous definition of guest is kept (hint: ")
    assert not left_alone.has(guest.uuid)


def test_an_interrupted_undo_leaves_nothing_listed(
    run: Callable[..., _Run], libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = _guest(libvirt)
    before = guest.config

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(previous, "undo", interrupted)
    assert run("undo", "guest").status == 130
    assert guest.config == before
    assert not left_alone.has(guest.uuid)


# -- who leaves them alone -----------------------------------------------------------------------


def test_refresh_of_all_leaves_them_alone(run: Callable[..., _Run], libvirt: FakeLibvirt) -> None:
    newer = ("--host", str(HOSTS["sid-neoverse-n1"]))
    one, other = _guest(libvirt, name="one"), _guest(libvirt, name="other")
    left_alone.add(one.uuid)
    assert run("refresh", "--all", *newer) == (
        0,
        "other: changed\n",
        "kvmarm: one is left alone, since it was forgotten or undone\n",
    )
    assert one.calls == []
    assert run("refresh", "one", *newer).out == "one: changed\n"
    assert left_alone.has(one.uuid)
    assert other.calls == [("define", "")]


def test_those_that_are_left_alone_are_named(
    run: Callable[..., _Run], libvirt: FakeLibvirt
) -> None:
    newer = ("--host", str(HOSTS["sid-neoverse-n1"]))
    for name in ("a", "b", "c\x1b[2J", "d", "e", "f"):
        left_alone.add(_guest(libvirt, name=name).uuid)
    assert run("refresh", "--all", *newer).err == (
        "kvmarm: a, b, c\\x1b[2J, d and 2 more are left alone, since they were forgotten or"
        " undone\n"
    )


def test_renewal_leaves_them_alone(libvirt: FakeLibvirt) -> None:
    guest = _guest(libvirt, state="RUNNING_BOOTED")
    told: list[str] = []
    left_alone.add(guest.uuid)
    marks.mark(guest.uuid, "it has started as something else")
    renewer = Renewer(lambda: Connection("qemu:///system"), told.append)
    assert not renewer.work()
    assert guest.calls == []
    assert told == [
        "guest: its record may not be true: it is left alone, since it was forgotten or undone"
    ]
    left_alone.discard(guest.uuid)
    renewer.again()
    assert not renewer.work()
    assert marks.marked() == ([], [])


# -- libvirt's test driver -----------------------------------------------------------------------


def test_with_libvirt_itself(
    libvirt: FakeLibvirt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "libvirt")
    real = pytest.importorskip("libvirt")
    define, xml_of = Connection.define, Domain.xml
    # It takes no type but "test".
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

    def stored() -> str:
        return str(domain.XMLDesc(real.VIR_DOMAIN_XML_INACTIVE))

    domain = connection.defineXMLFlags(_WRITTEN.decode().replace("'kvm'", "'test'", 1), 0)
    written = stored()
    concrete = resolver(_HOST).resolve(written.replace("'test'", "'kvm'", 1).encode()).decode()
    domain = connection.defineXMLFlags(concrete.replace("'kvm'", "'test'", 1), 0)
    resolved = stored()
    try:
        domain.create()
        here = ["-c", "test:///default", "guest"]
        assert cli.main(["forget", *here]) == 0
        assert capsys.readouterr().out == "guest: forgotten; as it runs: forgotten\n"
        for xml in (stored(), domain.XMLDesc(0)):
            assert "kvmarm" not in xml
            assert "mode='host-passthrough'" in xml
        assert cli.main(["undo", *here]) == 0
        assert stored() == resolved
        assert cli.main(["forget", "--restore", *here]) == 0
        assert stored() == written
        assert cli.main(["undo", *here]) == 0
        assert stored() == resolved
    finally:
        domain.destroy()
        domain.undefine()
        connection.close()
