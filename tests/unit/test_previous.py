# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is kept of domains in /var/lib/kvmarm: definitions from before, and who is left alone."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.host import left_alone, previous
from kvmarm_plugin.host.libvirtd import Connection, Domain

from .fakelibvirt import FakeDomain, FakeLibvirt

_UUID = "11111111-2222-3333-4444-555555555555"
_OTHER = "21111111-2222-3333-4444-555555555555"


def _xml(text: str) -> str:
    return f"<domain><name>guest</name><title>{text}</title></domain>"


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> FakeDomain:
    domain = FakeDomain("guest", _UUID, "SHUTOFF_SHUTDOWN", None, _xml("0"))
    monkeypatch.setitem(sys.modules, "libvirt", FakeLibvirt(domain))
    return domain


def _connect(uri: str = "qemu:///system") -> tuple[Connection, Domain]:
    connection = Connection(uri)
    return connection, connection.domain("guest")


def _redefine(text: str) -> None:
    connection, domain = _connect()
    previous.redefine(connection, domain, domain.xml(live=False, secrets=True), _xml(text))


def _kept(uuid: str = _UUID) -> dict[str, str]:
    directory = Path(previous.DIRECTORY) / uuid
    return {path.name: path.read_text() for path in sorted(directory.iterdir())}


def test_what_is_redefined_is_kept_for_root_alone(guest: FakeDomain) -> None:
    mask = os.umask(0)
    try:
        _redefine("1")
    finally:
        os.umask(mask)
    assert guest.config == _xml("1")
    assert _kept() == {"1.xml": _xml("0")}
    path = Path(previous.DIRECTORY) / _UUID / "1.xml"
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent, path.parent.parent)]
    assert modes == [0o600, 0o700, 0o700]


def test_ten_are_kept(guest: FakeDomain) -> None:
    for number in range(1, 13):
        _redefine(str(number))
    assert _kept() == {f"{number}.xml": _xml(str(number - 1)) for number in range(3, 13)}
    previous.keep(_UUID, _xml("11"))  # the newest already
    assert len(_kept()) == previous.MOST == 10


def test_what_an_interrupted_write_has_left_goes(guest: FakeDomain) -> None:
    directory = Path(previous.DIRECTORY) / _UUID
    _redefine("1")
    (directory / ".kvmarm-00").write_text("half")
    for number in range(2, 12):
        _redefine(str(number))
    assert sorted(_kept()) == sorted(f"{number}.xml" for number in range(2, 12))


def test_domains_that_are_long_gone_make_room(
    guest: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(previous, "MOST_DOMAINS", 2)
    for number, uuid in enumerate([_UUID, _OTHER]):
        previous.keep(uuid, "<domain/>")
        os.utime(Path(previous.DIRECTORY) / uuid, (number, number))
    previous.keep(f"3{_UUID[1:]}", "<domain/>")
    assert sorted(os.listdir(previous.DIRECTORY)) == [_OTHER, f"3{_UUID[1:]}"]


def test_a_definition_that_cannot_be_kept_is_not_changed(
    guest: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(previous.DIRECTORY).parent.mkdir()
    Path(previous.DIRECTORY).write_text("in the way")
    with pytest.raises(KvmarmError, match="nothing was changed"):
        _redefine("1")
    assert guest.config == _xml("0")


def test_another_user_than_root_keeps_nothing(
    guest: FakeDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    _redefine("1")
    assert guest.config == _xml("1")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(KvmarmError, match="nothing was changed"):
        _redefine("2")


def test_nothing_is_kept_of_other_hosts(guest: FakeDomain) -> None:
    connection, domain = _connect("qemu+ssh://far/system")
    previous.redefine(connection, domain, _xml("0"), _xml("1"))
    assert guest.config == _xml("1")
    assert not os.path.exists(previous.DIRECTORY)


def test_what_was_changed_meanwhile_is_not_replaced(guest: FakeDomain) -> None:
    connection, domain = _connect()
    with pytest.raises(KvmarmError, match="somebody has changed it"):
        previous.redefine(connection, domain, _xml("of before"), _xml("1"))
    assert guest.config == _xml("0")


def test_undo_goes_back_and_loses_nothing(guest: FakeDomain) -> None:
    for text in "123":
        _redefine(text)
    guest.config = _xml("edited")
    connection, domain = _connect()
    for text in "210":
        kept = previous.undo(connection, domain)
        assert guest.config == _xml(text)
        assert Path(kept.path).parent == Path(previous.DIRECTORY) / _UUID
    assert _kept() == {
        "1.undone.xml": _xml("1"),
        "2.undone.xml": _xml("2"),
        "3.undone.xml": _xml("edited"),
    }
    with pytest.raises(KvmarmError, match="no previous definition of guest is kept"):
        previous.undo(connection, domain)
    _redefine("new")
    assert _kept()["4.xml"] == _xml("0")
    previous.undo(connection, domain)
    assert guest.config == _xml("0")


def test_undo_skips_what_was_kept_and_then_not_changed(guest: FakeDomain) -> None:
    _redefine("1")
    guest.refuses = 1
    with pytest.raises(KvmarmError, match="unsupported configuration"):
        _redefine("2")
    assert sorted(_kept()) == ["1.xml", "2.xml"]
    previous.undo(*_connect())
    assert guest.config == _xml("0")
    assert _kept() == {"1.undone.xml": _xml("1")}


def test_an_undo_that_libvirt_refuses_changes_nothing(guest: FakeDomain) -> None:
    _redefine("1")
    guest.refuses = 1
    connection, domain = _connect()
    with pytest.raises(KvmarmError, match="unsupported configuration"):
        previous.undo(connection, domain)
    assert (guest.config, _kept()) == (_xml("1"), {"1.xml": _xml("0")})


def test_undo_beside_somebody_who_edits(guest: FakeDomain) -> None:
    _redefine("1")
    connection, domain = _connect()

    def edit() -> None:
        guest.config, guest.on_read = _xml("edited"), lambda: None

    guest.on_read = edit
    with pytest.raises(KvmarmError, match="somebody has changed it"):
        previous.undo(connection, domain)
    assert (guest.config, _kept()) == (_xml("edited"), {"1.xml": _xml("0")})


@pytest.mark.parametrize("text", [b"\xff", b""])
def test_a_file_that_somebody_has_changed(guest: FakeDomain, text: bytes) -> None:
    _redefine("1")
    (Path(previous.DIRECTORY) / _UUID / "1.xml").write_bytes(text)
    connection, domain = _connect()
    with pytest.raises((KvmarmError, SyntaxError)):  # the played libvirt parses with ElementTree
        previous.undo(connection, domain)
    assert guest.config == _xml("1")


@pytest.mark.parametrize(
    "uuid", ["", "..", "../../etc", f"{_UUID}/x", _UUID.upper().replace("1", "A")]
)
def test_only_a_uuid_becomes_the_name_of_a_file(uuid: str) -> None:
    with pytest.raises(ValueError, match="not a UUID"):
        previous.keep(uuid, "")
    with pytest.raises(ValueError, match="not a UUID"):
        left_alone.add(uuid)
    assert not left_alone.has(uuid)
    left_alone.discard(uuid)


def test_the_list_of_those_that_are_left_alone() -> None:
    assert not left_alone.has(_UUID)
    left_alone.discard(_UUID)
    for _ in range(2):
        left_alone.add(_UUID)
    assert left_alone.has(_UUID)
    assert not left_alone.has(_OTHER)
    left_alone.discard(_UUID)
    assert not left_alone.has(_UUID)


def test_a_list_that_cannot_be_written() -> None:
    Path(left_alone.DIRECTORY).parent.mkdir()
    Path(left_alone.DIRECTORY).write_text("in the way")
    with pytest.raises(KvmarmError, match=f"cannot write {left_alone.DIRECTORY}"):
        left_alone.add(_UUID)
