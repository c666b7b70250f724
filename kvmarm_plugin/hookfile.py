# SPDX-License-Identifier: LGPL-2.1-or-later
"""Puts the hook where libvirt looks for it, and takes it away again.

libvirt runs /etc/libvirt/hooks/qemu.d/* since 6.5, in the order of their names. It notices a new directory or file when
it is told to reload.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import subprocess
from pathlib import Path

from .errors import KvmarmError
from .files import shipped, write

DIRECTORY = Path("/etc/libvirt/hooks/qemu.d")
NAME = "50-kvmarm"
_PACKAGE = Path(__file__).parent
_DAEMONS = ("virtqemud", "libvirtd")


def install(directory: Path = DIRECTORY) -> list[str]:
    """Install or renew the hook, and tell libvirt. Returns what was done, a line each.

    Raises:
        KvmarmError: no libvirt that looks there, no interpreter for the hook, or no permission.
    """
    if not directory.parent.parent.is_dir():
        raise KvmarmError(
            f"{directory.parent.parent} does not exist", "install libvirt's QEMU driver first (Debian: libvirt-daemon-system)"
        )
    _check_version()
    _check_owner()
    text = script()
    _check_interpreter(re.findall(r"^python=(.*)$", text, re.MULTILINE)[0])
    path = directory / NAME
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text and os.access(path, os.X_OK):
        return [f"{path} is up to date"]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KvmarmError(f"cannot make {directory}: {error.strerror}", "run as root") from None
    write(str(path), text.encode(), 0o755)
    return [f"installed {path}", _reload(), *_selinux_advice()]


def uninstall(directory: Path = DIRECTORY) -> list[str]:
    """Remove the hook, and tell libvirt. Returns what was done, a line each. Raises KvmarmError (no permission)."""
    path = directory / NAME
    try:
        path.unlink()
    except FileNotFoundError:
        return [f"{path} is not there"]
    except OSError as error:
        raise KvmarmError(f"cannot remove {path}: {error.strerror}", "run as root") from None
    return [f"removed {path}", _reload()]


def script() -> str:
    """The hook's text, with the place of this package in it. Raises KvmarmError if the installation lacks it."""
    text = shipped("hooks", f"qemu.d/{NAME}").read_text(encoding="utf-8")
    return text.replace("@PACKAGE@", shlex.quote(str(_PACKAGE)))


def _check_version() -> None:
    """libvirt before 6.5 runs hooks/qemu only (virHookCall, src/util/virhook.c)."""
    for daemon in _DAEMONS:
        try:
            answer = subprocess.run(
                [f"/usr/sbin/{daemon}", "--version"], capture_output=True, text=True, timeout=30, check=True
            ).stdout
        except (OSError, subprocess.SubprocessError):
            continue
        version = re.search(r"(\d+)\.(\d+)\.\d+", answer)
        if version and (int(version[1]), int(version[2])) < (6, 5):
            raise KvmarmError(f"libvirt {version[0]} does not look into hooks/qemu.d", "upgrade it to 6.5 or newer")
        return


def _check_owner() -> None:
    """libvirt runs the hook as root: nobody else may be able to change what it runs. In a sticky directory (/tmp) nobody can."""
    if os.geteuid() != 0:
        return
    for path in (*_PACKAGE.rglob("*.py"), _PACKAGE, *_PACKAGE.parents):
        status = path.stat()
        if status.st_uid != 0 or (status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX):
            raise KvmarmError(
                f"others than root can change {path}, which libvirt would run as root",
                "install kvmarm as root, for instance as a package",
            )


def _selinux_advice() -> list[str]:
    """SELinux keeps hooks from /dev/kvm unless told otherwise, and a guest with a record would not start then."""
    try:
        answer = subprocess.run(
            ["/usr/sbin/getsebool", "virt_hooks_unconfined"], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    allowed = answer.stdout.strip().endswith("on")
    return [] if allowed else ["SELinux confines hooks here: allow this one with: setsebool -P virt_hooks_unconfined on"]


def _check_interpreter(python: str) -> None:
    """The hook has this one, whatever runs `kvmarm`: Python 3.9 or newer, with those modules that distributions split off."""
    try:
        answer = subprocess.run(
            [python, "-I", "-S", "-c", "import sys; print(*sys.version_info[:3], sep='.'); import _ctypes, fcntl, pyexpat"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise KvmarmError(f"cannot run {python}, which the hook needs: {error}", "install the distribution's python3") from None
    version = re.match(r"(\d+)\.(\d+)\.\d+", answer.stdout)
    if version and (int(version[1]), int(version[2])) < (3, 9):
        raise KvmarmError(f"{python} is Python {version[0]}, and the hook needs 3.9 or newer", "upgrade the distribution's python3")
    if answer.returncode != 0:
        why = (answer.stderr.strip() or f"exit status {answer.returncode}").splitlines()[-1]
        raise KvmarmError(f"{python} cannot run the hook: {why}", "install the distribution's python3 with its standard library")


def _reload() -> str:
    """SIGHUP makes the daemon read its configuration and look for hooks again; guests do not notice."""
    for daemon in _DAEMONS:
        pid = _pid(daemon)
        if pid:
            try:
                os.kill(pid, signal.SIGHUP)
            except OSError as error:
                return f"could not tell {daemon} ({error.strerror}); do it with: systemctl reload {daemon}"
            return f"told {daemon} (process {pid}) to look for hooks"
    return "no libvirt daemon is running: it will find the hook when it starts"


def _pid(daemon: str) -> int:
    """The daemon's process, if its PID file is not stale."""
    try:
        pid = int(Path(f"/run/{daemon}.pid").read_text(encoding="ascii"))
        return pid if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() == daemon else 0
    except (OSError, ValueError):
        return 0
