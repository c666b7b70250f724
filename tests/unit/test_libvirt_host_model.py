# SPDX-License-Identifier: LGPL-2.1-or-later
"""The day libvirt itself offers host-model on ARM: the note, who leaves it, and what the hook makes
of it.
"""

from __future__ import annotations

import os
import sys
import syslog
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.commands import hook as command
from kvmarm_plugin.hook import answer
from kvmarm_plugin.hook import install as hookfile
from kvmarm_plugin.host import libvirt_host_model
from kvmarm_plugin.host.libvirt_host_model import is_noted, note_host_model
from kvmarm_plugin.host.libvirtd import Connection, LibvirtError
from tests.corpus import GUEST

# As libvirt 10 has it on an ARM host.
_CAPABILITIES = """\
<domainCapabilities>
  <path>/usr/bin/qemu-system-aarch64</path>
  <domain>kvm</domain>
  <machine>virt-9.0</machine>
  <arch>aarch64</arch>
  <cpu>
    <mode name='host-passthrough' supported='yes'>
      <enum name='hostPassthroughMigratable'><value>off</value></enum>
    </mode>
    <mode name='maximum' supported='yes'/>
    <mode name='host-model' supported='no'/>
    <mode name='custom' supported='yes'><model usable='unknown'>a64fx</model></mode>
  </cpu>
  <devices><disk supported='yes'/></devices>
</domainCapabilities>
"""
_NO, _YES = "<mode name='host-model' supported='no'/>", "<mode name='host-model' supported='yes'/>"
_OFFERS = _CAPABILITIES.replace(_NO, _YES)
assert _OFFERS != _CAPABILITIES


class _Error(Exception):
    def get_error_message(self) -> str:
        return str(self)

    def get_error_code(self) -> int:
        return 0


class _Driver:
    """What libvirt's binding gives as a connection."""

    def __init__(self, capabilities: str, version: int = 12001000) -> None:
        self.capabilities = capabilities
        self.asked: list[tuple[object, ...]] = []
        self._version = version

    def getLibVersion(self) -> int:  # noqa: N802  # libvirt's
        return self._version

    def getDomainCapabilities(self, *arguments: object) -> str:  # noqa: N802
        self.asked.append(arguments)
        if not self.capabilities:
            raise _Error("invalid argument: KVM is not supported by 'qemu' on this host")
        return self.capabilities

    def close(self) -> None:
        pass


def _connect(monkeypatch: pytest.MonkeyPatch, capabilities: str, reachable: bool = True) -> _Driver:
    """Have libvirt's binding connect to a driver with these capabilities."""
    driver = _Driver(capabilities)

    def connect(_uri: str) -> _Driver:
        if not reachable:
            raise _Error("Failed to connect socket")
        return driver

    binding: Any = SimpleNamespace(
        libvirtError=_Error,
        registerErrorHandler=lambda *_: None,
        open=connect,
        VIR_ERR_NO_DOMAIN=42,
    )
    monkeypatch.setitem(sys.modules, "libvirt", binding)
    return driver


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the note is; its directory is not there yet."""
    path = tmp_path / "lib/kvmarm/libvirt-host-model"
    monkeypatch.setattr(libvirt_host_model, "PATH", str(path))
    return path


def test_the_note_comes_and_goes(monkeypatch: pytest.MonkeyPatch, note: Path) -> None:
    driver = _connect(monkeypatch, _CAPABILITIES)
    with Connection("qemu:///system") as connection:
        assert note_host_model(connection) == ""
        assert (is_noted(), note.parent.exists()) == (False, False)
        driver.capabilities = _OFFERS
        for _ in range(2):
            assert note_host_model(connection) == "12.1.0"
            assert (is_noted(), note.read_text()) == (True, "12.1.0\n")
            assert note.stat().st_mode & 0o7777 == 0o644
        assert [path.name for path in note.parent.iterdir()] == [note.name]
        driver.capabilities = _CAPABILITIES
        assert note_host_model(connection) == ""
        assert (is_noted(), [*note.parent.iterdir()]) == (False, [])
    assert {*driver.asked} == {(None, "aarch64", "virt", "kvm", 0)}


@pytest.mark.parametrize(
    "capabilities",
    [
        "",
        "<domainCapabilities>",
        "<!DOCTYPE x [<!ENTITY a 'b'>]><domainCapabilities/>",
        f"</_><domainCapabilities><cpu>{_YES}</cpu></domainCapabilities>",
        "<a>" * 300 + "</a>" * 300,
    ],
)
def test_what_libvirt_does_not_tell_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, note: Path, capabilities: str
) -> None:
    driver = _connect(monkeypatch, capabilities)
    with Connection("qemu:///system") as connection:
        for noted in (False, True):
            with pytest.raises(KvmarmError):
                note_host_model(connection)
            assert is_noted() is noted
            driver.capabilities = _OFFERS
            note_host_model(connection)
            driver.capabilities = capabilities


@pytest.mark.parametrize(
    "capabilities",
    [
        "text",
        "<domainCapabilities/>",
        "<domainCapabilities><cpu/></domainCapabilities>",
        f"<other><cpu>{_YES}</cpu></other>",
        f"<domainCapabilities>{_YES}</domainCapabilities>",
        f"<domainCapabilities><cpu><mode name='custom'>{_YES}</mode></cpu></domainCapabilities>",
        "<domainCapabilities><cpu><mode name='host-model'/></cpu></domainCapabilities>",
        "",
    ],
)
def test_what_is_no_offer(monkeypatch: pytest.MonkeyPatch, note: Path, capabilities: str) -> None:
    _connect(monkeypatch, capabilities or _CAPABILITIES)
    with Connection("qemu:///system") as connection:
        assert note_host_model(connection) == ""
    assert not is_noted()


def test_a_note_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, note: Path) -> None:
    _connect(monkeypatch, _OFFERS)
    note.parent.parent.mkdir()
    note.parent.write_text("a file")
    with Connection("qemu:///system") as connection, pytest.raises(KvmarmError) as caught:
        note_host_model(connection)
    assert str(note) in str(caught.value)


def test_the_hook_stands_aside(
    monkeypatch: pytest.MonkeyPatch, note: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logged: list[tuple[int, str]] = []
    monkeypatch.setattr("syslog.syslog", lambda *line: logged.append(line))
    assert answer.explain_host_model("guest", "prepare", GUEST) is True
    err = capfd.readouterr().err
    assert "asks for host-model" in err
    assert logged == [(syslog.LOG_ERR, f"prepare: {err[len('kvmarm: ') : -1]}")]
    logged.clear()
    note.parent.mkdir(parents=True)
    note.write_text("12.1.0\n")
    assert answer.explain_host_model("guest", "prepare", GUEST) is False
    assert (capfd.readouterr(), logged) == (("", ""), [])


@pytest.mark.parametrize(
    ("capabilities", "reachable", "expected"),
    [
        (_OFFERS, True, "libvirt 12.1.0 offers host-model itself: the hook lets guests pass that"),
        (_CAPABILITIES, True, ""),
        ("", True, ""),
        (_OFFERS, False, ""),
    ],
)
def test_installing_the_hook_asks_libvirt(
    monkeypatch: pytest.MonkeyPatch,
    note: Path,
    capfd: pytest.CaptureFixture[str],
    capabilities: str,
    reachable: bool,
    expected: str,
) -> None:
    _connect(monkeypatch, capabilities, reachable)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(command, "read_policy", lambda _path: None)
    monkeypatch.setattr("kvmarm_plugin.host.marks.is_heard", lambda: True)
    monkeypatch.setattr(hookfile, "install", lambda: ["installed"])
    monkeypatch.setattr(hookfile, "uninstall", lambda: ["removed"])
    monkeypatch.setattr(hookfile, "DIRECTORIES", ())
    assert command.run(SimpleNamespace(action="install")) == 0  # type: ignore[arg-type]
    out, err = capfd.readouterr()
    assert (out.startswith(f"installed\n{expected}"), err) == (True, "")
    assert out.count("\n") == (2 if expected else 1)
    assert is_noted() is bool(expected)
    assert command.run(SimpleNamespace(action="uninstall")) == 0  # type: ignore[arg-type]


def test_without_libvirts_binding(monkeypatch: pytest.MonkeyPatch, note: Path) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(LibvirtError):
        Connection("qemu:///system")
    command._note_host_model()
    assert not is_noted()
