# SPDX-License-Identifier: LGPL-2.1-or-later
"""The version of the emulator, as the hook asks for it: right, kept, and never in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmarm_plugin.host import qemuversion

_SAYS = "#!/bin/sh\necho asked >> {log}\necho '{line}'\n"


@pytest.fixture
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that says it is QEMU 11.1, where the distribution's would be; each call leaves a line in the file "log"."""
    path = tmp_path / "qemu"
    path.write_text(_SAYS.format(log=tmp_path / "log", line="QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)"))
    path.chmod(0o755)
    monkeypatch.setattr(qemuversion, "BINARIES", {os.uname().machine: (str(tmp_path / "missing"), str(path))})
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


@pytest.mark.parametrize("kept", ["", "\0\n", "another 1 2\nQEMU emulator version 1.0\n", "QEMU emulator version 1.0"])
def test_an_answer_that_is_not_its_own_is_not_believed(emulator: Path, tmp_path: Path, kept: str) -> None:
    cache = tmp_path / "version"
    cache.write_text(kept)
    assert qemuversion.installed_version(str(cache)) == (11, 1)


@pytest.mark.parametrize(
    "text", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho something else\n", "#!/bin/sh\necho QEMU ².²\n", "no program", ""]
)
def test_an_emulator_that_does_not_say(emulator: Path, tmp_path: Path, text: str) -> None:
    emulator.write_text(text)
    assert qemuversion.installed_version(str(tmp_path / "version")) == (0, 0)


def test_no_emulator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(qemuversion, "BINARIES", {})
    assert qemuversion.installed_version(str(tmp_path / "version")) == (0, 0)
