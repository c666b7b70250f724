# SPDX-License-Identifier: LGPL-2.1-or-later
"""The version of the emulator, as the hook asks for it: right, kept, and never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmarm_plugin.host import qemu
from kvmarm_plugin.host import qemu_version as qemuversion

from .fakehost import write_emulator
from .users import give, needs_root

_SAYS = "#!/bin/sh\necho asked >> {log}\necho '{line}'\n"


@pytest.fixture
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that says it is QEMU 11.1, where the distribution's would be; each call leaves a
    line in the file "log".
    """
    path = tmp_path / "qemu"
    path.write_text(
        _SAYS.format(
            log=tmp_path / "log", line="QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)"
        )
    )
    path.chmod(0o755)
    monkeypatch.setattr(
        qemuversion, "BINARIES", {os.uname().machine: (str(tmp_path / "missing"), str(path))}
    )
    return path


def _calls(emulator: Path) -> int:
    log = emulator.with_name("log")
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_it_is_asked_once(emulator: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "run/kvmarm/qemu-version")
    assert [qemuversion.installed_version(cache) for _ in range(3)] == [(11, 1)] * 3
    assert _calls(emulator) == 1


def test_it_is_asked_again_after_an_upgrade(emulator: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "version")
    qemuversion.installed_version(cache)
    emulator.write_text(_SAYS.format(log=tmp_path / "log", line="QEMU emulator version 12.0.0"))
    assert qemuversion.installed_version(cache) == (12, 0)
    assert _calls(emulator) == 2


def test_without_a_place_for_the_answer_it_is_asked_each_time(emulator: Path) -> None:
    assert [qemuversion.installed_version("/dev/null/version") for _ in range(2)] == [(11, 1)] * 2
    assert _calls(emulator) == 2


@pytest.mark.parametrize(
    "kept", ["", "\0\n", "another 1 2\nQEMU emulator version 1.0\n", "QEMU emulator version 1.0"]
)
def test_an_answer_that_is_not_its_own_is_not_believed(
    emulator: Path, tmp_path: Path, kept: str
) -> None:
    cache = tmp_path / "version"
    cache.write_text(kept)
    assert qemuversion.installed_version(str(cache)) == (11, 1)


@pytest.mark.parametrize(
    "text",
    [
        "#!/bin/sh\nexit 1\n",
        "#!/bin/sh\necho something else\n",
        "#!/bin/sh\necho QEMU ².²\n",
        "no program",
        "",
    ],
)
def test_an_emulator_that_does_not_say(emulator: Path, tmp_path: Path, text: str) -> None:
    emulator.write_text(text)
    assert qemuversion.installed_version(str(tmp_path / "version")) == (0, 0)


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)", (10, 0)),
        ("QEMU emulator version \u00b2.\u00b3", (0, 0)),
        ("QEMU \u0661.\u0662 emulator version 9.1", (9, 1)),
        ("QEMU -1.+2 1_0.2 9.2.50", (9, 2)),
        (f"QEMU {'9' * 5000}.1", (0, 0)),
    ],
)
def test_only_plain_numbers_are_a_version(
    emulator: Path, tmp_path: Path, line: str, version: tuple[int, int]
) -> None:
    emulator.write_text(_SAYS.format(log=tmp_path / "log", line=line))
    assert [qemuversion.installed_version(str(tmp_path / "version")) for _ in range(2)] == [
        version
    ] * 2


def _key(emulator: Path) -> str:
    status = emulator.stat()
    return f"{emulator} {status.st_size} {status.st_mtime_ns}"


def test_a_link_is_not_read_nor_written_through(emulator: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text(f"{_key(emulator)}\nQEMU emulator version 1.0\n")
    (tmp_path / "version").symlink_to("victim")
    (tmp_path / f"version.{os.getpid()}").symlink_to("victim")
    assert qemuversion.installed_version(str(tmp_path / "version")) == (11, 1)
    assert "version 1.0" in (tmp_path / "victim").read_text()


def test_a_fifo_is_not_waited_for(emulator: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "version")
    os.mkfifo(tmp_path / f"version.{os.getpid()}")
    assert qemuversion.installed_version(str(tmp_path / "version")) == (11, 1)


@pytest.mark.parametrize("change", [0o666, 0o664, pytest.param("hers", marks=needs_root)])
def test_an_answer_that_others_can_write_is_not_believed(
    emulator: Path, tmp_path: Path, change: str | int
) -> None:
    cache = tmp_path / "version"
    cache.write_text(f"{_key(emulator)}\nQEMU emulator version 1.0\n")
    assert qemuversion.installed_version(str(cache)) == (1, 0)
    if isinstance(change, int):
        cache.chmod(change)
    else:
        give(cache)
    assert qemuversion.installed_version(str(cache)) == (11, 1)
    assert qemuversion.installed_version(str(cache)) == (11, 1)
    assert (cache.stat().st_uid, cache.stat().st_mode & 0o022) == (os.geteuid(), 0)


def test_no_emulator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(qemuversion, "BINARIES", {})
    assert qemuversion.installed_version(str(tmp_path / "version")) == (0, 0)


# -- an emulator that XML names ------------------------------------------------------------------


def test_what_xml_names_is_only_run_if_it_is_a_qemu_that_is_roots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changeable: set[int] = set()
    monkeypatch.setattr(qemu, "others_can_change", lambda status: status.st_ino in changeable)
    path = tmp_path / "bin/qemu-system-aarch64"
    path.parent.mkdir()
    assert not qemu.may_be_asked(str(path)), "it is not there"
    write_emulator(path)
    assert qemu.may_be_asked(str(path))
    link = tmp_path / "qemu-kvm"
    link.symlink_to(path)
    assert qemu.may_be_asked(str(link))
    found = qemu.ask_named(str(link))
    assert found is not None
    assert found.version == "10.0.2"
    for each in (path, path.parent, tmp_path):
        changeable.add(each.stat().st_ino)
        assert not qemu.may_be_asked(str(path)), each
        assert qemu.ask_named(str(path)) is None
        changeable.clear()
    other = path.with_name("poweroff")
    other.symlink_to(path)
    for name in (str(other), str(path.parent), "qemu-system-aarch64", "", f"{path}/"):
        assert not qemu.may_be_asked(name), name
