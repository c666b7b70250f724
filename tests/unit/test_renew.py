# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm renew` and `kvmarm allow` as processes, their socket, and systemd's units."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmarm_plugin import cli
from kvmarm_plugin.host import marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROOT = Path(__file__).parent.parent.parent
_UUID = "11111111-2222-3333-4444-555555555555"

# The command with another directory, and a renewer that writes down what is asked of it.
_PROGRAM = """\
import os
import signal
import sys
from kvmarm_plugin import cli
from kvmarm_plugin.commands import renew
from kvmarm_plugin.host import marks

class Renewer:
    def __init__(self, connect, tell):
        pass

    def again(self):
        print("rung", flush=True)

    def work(self):
        print("worked", flush=True)
        return False

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs of the background
marks.DIRECTORY = sys.argv.pop(1)
renew._IDLE = float(sys.argv.pop(1))
if "PASSED" in os.environ:  # as systemd does it
    os.dup2(int(os.environ["PASSED"]), 3)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
if "FDS" in os.environ:
    os.closerange(3, 10)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=os.environ["FDS"])
renew.Renewer = Renewer
sys.exit(cli.main(["renew"]))
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(marks, "DIRECTORY", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started = []

    def call(
        idle: float = 60, bell: socket.socket | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _PROGRAM, str(directory), str(idle)]
        if bell is not None:
            environment["PASSED"] = str(bell.fileno())
        process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(_ROOT), **environment},
            pass_fds=[] if bell is None else [bell.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.communicate()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_it_binds_the_socket_and_works_when_somebody_rings(
    start: Callable[..., subprocess.Popen[str]], directory: Path
) -> None:
    process = start()
    assert _line(process) == "worked"
    path = directory / marks.SOCKET
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    assert marks.ring(_UUID)
    assert [_line(process), _line(process)] == ["rung", "worked"]
    assert marks.ring(_UUID)
    assert [_line(process), _line(process)] == ["rung", "worked"]


def test_sigterm_ends_it_within_a_second(start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start()
    assert _line(process) == "worked"
    before = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM, "which systemd takes for a clean end"
    assert time.monotonic() - before < 1
    # What it leaves is in nobody's way.
    assert not marks.ring(_UUID)
    assert _line(start()) == "worked"
    assert marks.ring(_UUID)


def test_ctrl_c_removes_the_socket(
    start: Callable[..., subprocess.Popen[str]], directory: Path
) -> None:
    process = start()
    assert _line(process) == "worked"
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert not (directory / marks.SOCKET).exists()


def test_only_one_serves(start: Callable[..., subprocess.Popen[str]]) -> None:
    first = start()
    assert _line(first) == "worked"
    second = start()
    _, err = second.communicate(timeout=30)
    assert second.returncode == 1
    assert err.startswith("kvmarm: somebody serves ")
    assert marks.ring(_UUID)
    assert _line(first) == "rung"


@pytest.fixture
def passed(directory: Path) -> Iterator[socket.socket]:
    """The socket of kvmarm-renew.socket."""
    directory.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.bind(str(directory / marks.SOCKET))
        yield bell


def test_it_takes_systemd_s_socket(
    start: Callable[..., subprocess.Popen[str]], passed: socket.socket, directory: Path
) -> None:
    for _ in range(2):
        assert marks.ring(_UUID)
    process = start(bell=passed)
    assert [_line(process), _line(process)] == ["rung", "worked"]
    assert marks.ring(_UUID)
    assert [_line(process), _line(process)] == ["rung", "worked"]
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    assert (directory / marks.SOCKET).exists(), "it is systemd's"


def test_systemd_listens_while_there_is_nothing_to_do(
    start: Callable[..., subprocess.Popen[str]], passed: socket.socket
) -> None:
    assert marks.ring(_UUID)
    process = start(idle=0.2, bell=passed)
    assert process.wait(30) == 0
    passed.setblocking(False)
    with pytest.raises(BlockingIOError):  # else systemd would start it again at once
        passed.recv(64)


def test_a_socket_that_was_passed_to_another(
    start: Callable[..., subprocess.Popen[str]], directory: Path
) -> None:
    process = start(LISTEN_PID="1", LISTEN_FDS="1")
    assert _line(process) == "worked"
    assert (directory / marks.SOCKET).exists()


def test_a_socket_of_another_kind(start: Callable[..., subprocess.Popen[str]]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        process = start(bell=stream)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.startswith("kvmarm: the socket of LISTEN_FDS takes no datagrams")


@pytest.mark.parametrize("passed", ["0", "2", "x", "1"])
def test_a_socket_that_is_not_there(
    start: Callable[..., subprocess.Popen[str]], passed: str
) -> None:
    process = start(FDS=passed)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.count("\n")) == (1, 1)
    assert err.startswith("kvmarm: LISTEN_FDS is not of one socket")


def test_a_socket_that_somebody_removes(
    start: Callable[..., subprocess.Popen[str]], directory: Path
) -> None:
    process = start()
    assert _line(process) == "worked"
    (directory / marks.SOCKET).unlink()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10)[1] == ""
    assert process.returncode == 130


def test_a_directory_that_cannot_be_written(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory.parent.joinpath("run").write_text("a file")
    assert cli.main(["renew"]) == 1
    assert capsys.readouterr().err.startswith("kvmarm: cannot listen at ")


def test_another_host_s_guests(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This kernel says nothing of them."""
    assert cli.main(["renew", "-c", "qemu+ssh://far/system"]) == 1
    assert "qemu+ssh://far/system is another host" in capsys.readouterr().err


def test_once_without_marks(directory: Path) -> None:
    assert cli.main(["renew", "--once"]) == 0
    assert not directory.exists()


def test_once_says_whether_marks_remain(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a libvirt that is not there, once the patience is over."""
    monkeypatch.setattr("kvmarm_plugin.watch.renewal.PATIENCE", 0)
    marks.mark(_UUID, "it has started as something else")
    assert cli.main(["renew", "--once", "-c", "nonsense:///system"]) == 1
    assert f"kvmarm: {_UUID}: its record may not be true: libvirt: " in capsys.readouterr().err


# -- allow ---------------------------------------------------------------------------------------


def test_allow(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for guest in ("web", _UUID):
        assert cli.main(["allow", guest]) == 0
        assert capsys.readouterr().out == (
            f"{guest} may start or arrive here once within 60 seconds\n"
        )
        assert marks.take_allowance(_UUID, "web")
        assert not marks.take_allowance(_UUID, "web")


def test_allow_takes_a_uuid_in_capitals(directory: Path) -> None:
    uuid = "abcdefab-2222-3333-4444-555555555555"
    assert cli.main(["allow", uuid.upper()]) == 0
    assert marks.take_allowance(uuid, "web")


@pytest.mark.parametrize("guest", ["../x", "a\0b", "x" * 300, "\N{SNOWMAN}" * 100])
def test_what_no_guest_can_be_called(
    guest: str, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["allow", guest]) == 1
    assert capsys.readouterr().err.startswith("kvmarm: no guest can be called ")
    assert not directory.exists()


def test_allow_is_root_s(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory.write_text("what nobody can write to")
    assert cli.main(["allow", "web"]) == 1
    assert "(hint: run this as root)" in capsys.readouterr().err


# -- systemd -------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd")
def test_the_units_are_units(tmp_path: Path) -> None:
    for path in (_ROOT / "systemd").glob("kvmarm-renew.*"):
        text = path.read_text(encoding="utf-8")
        # Which need not be installed.
        (tmp_path / path.name).write_text(text.replace("ExecStart=kvmarm ", "ExecStart=/bin/true "))
    result = subprocess.run(
        [
            "systemd-analyze",
            "verify",
            "--man=no",
            *map(str, sorted(tmp_path.iterdir())),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_the_units_and_the_code_agree() -> None:
    listens = (_ROOT / "systemd/kvmarm-renew.socket").read_text(encoding="utf-8")
    assert f"ListenDatagram=/run/kvmarm/{marks.SOCKET}\nSocketMode=0600\n" in listens
    service = (_ROOT / "systemd/kvmarm-renew.service").read_text(encoding="utf-8")
    assert "\nExecStart=kvmarm renew\n" in service
    assert "\nRuntimeDirectory=" not in service
    directories = (_ROOT / "systemd/kvmarm.conf").read_text(encoding="utf-8")
    for name, mode in (("", "0755"), ("/marks", "0755"), ("/arrival", "0700"), ("/allow", "0700")):
        assert f"\nd /run/kvmarm{name} {mode} root root -\n" in directories
