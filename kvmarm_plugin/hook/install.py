# SPDX-License-Identifier: LGPL-2.1-or-later
"""Puts the hook where libvirt looks for it, and takes it away again.

libvirt runs /etc/libvirt/hooks/qemu.d/* since 6.5, in the order of their names. It notices a new
directory or file when it is told to reload.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

from ..basics.errors import KvmarmError
from ..basics.ownership import changeable, how_to_keep, is_ours, others_can_change
from ..basics.untrusted import shown
from ..host import daemons
from ..host.files import replace, shipped, sync
from ..host.paths import Step, reach
from . import confined

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY = Path("/etc/libvirt/hooks/qemu.d")
NAME = "50-kvmarm"
PACKAGED = "/usr/bin/kvmarm-hook"  # where a distribution's package makes NAME a link to
LOOKS_THERE_FROM = (6, 5)  # libvirt; before, it runs hooks/qemu only (virHookCall, virhook.c)
_SHIPPED = f"qemu.d/{NAME}"
_MARK = b"\n# kvmarm: libvirt calls this "  # every version of the hook has this line
_LONGEST = 1 << 20  # bytes of a hook
_MODE = 0o755  # of the hook and of its directories
_PACKAGE = Path(__file__).parents[1]
_WRITABLE = "see that root can write there"  # a hint: the commands run as root alone

# Where policy, pool and profiles are put by hand. Packages bring these, too.
DIRECTORIES = (Path("/etc/kvmarm"), Path("/var/lib/kvmarm"), Path("/var/lib/kvmarm/profiles"))


def install(directory: Path = DIRECTORY) -> list[str]:
    """Install or renew the hook, and tell libvirt. Returns what was done, a line each. Of a
    distribution's package it is a link, which stays, and is made where it is gone; of any other
    installation a file, which also takes the place of the link that such a package has left.

    Raises:
        KvmarmError: no libvirt that looks there, no interpreter for the hook, no permission, others
            than root can change what would run, something is there that is not kvmarm's, or SELinux
            lets libvirt run no file in that place.
    """
    etc = directory.parent.parent
    if not etc.is_dir():
        raise KvmarmError(
            f"{etc} does not exist",
            "install libvirt's QEMU driver first (Debian: libvirt-daemon-system; Fedora, RHEL:"
            " libvirt-daemon-driver-qemu)",
        )
    _check_version()
    text = script()
    python = interpreter()
    for path in (shipped("hooks", _SHIPPED), python, _PACKAGE.parent, etc):
        _check_owner(str(path))
    _check_tree(str(_PACKAGE))
    _check_interpreter(python)
    wanted = text.encode(errors="surrogateescape")
    path = _place(directory)
    if _is_packaged(path):
        _check_owner(str(path))
        done = f"{path} is up to date: it is the link of a package to {PACKAGED}, and stays"
        return [done, _reload(), *confined.selinux_advice(python, PACKAGED)]
    for each in (path.parent.parent, path.parent):
        _make_directory(each)
    linked = _is_this(PACKAGED, wanted)
    if not linked:
        confined.refuse_by_selinux(python, str(path.parent))
    try:
        _remove_what_is_left(path)
        with reach(str(path), _refuse_links) as end:
            if linked:
                if end.entry is not None:
                    _kvmarms(end, "write")
                _link(end)
                done = f"installed {path}, a link to {PACKAGED}"
                return [done, _reload(), *confined.selinux_advice(python, PACKAGED)]
            if (
                end.entry is not None
                and _kvmarms(end, "write") == wanted
                and stat.S_IMODE(os.fstat(end.entry).st_mode) == _MODE
            ):
                return [f"{path} is up to date"]
            replace(end.directory, end.name, wanted, _MODE)
    except OSError as error:
        raise KvmarmError(
            f"cannot write {path}: {error.strerror}",
            "see that root can write there, and that there is free space",
        ) from None
    return [f"installed {path}", _reload()]


def uninstall(directory: Path = DIRECTORY) -> list[str]:
    """Remove the hook, and tell libvirt. Returns what was done, a line each.

    Raises:
        KvmarmError: no permission, or what is there is not kvmarm's, or is a package's.
    """
    path = _place(directory)
    if _is_packaged(path):
        raise KvmarmError(
            f"cannot remove {path}: it is the link of a package to {PACKAGED}",
            "remove the package (apt remove kvmarm, or dnf remove kvmarm), and it is gone; to keep"
            f" the package without its hook: rm {path}",
        )
    try:
        if not _remove_what_is_left(path):
            with reach(str(path), _refuse_links) as end:
                if end.entry is None:
                    return [f"{path} is not there"]
                _kvmarms(end, "remove")
                os.unlink(end.name, dir_fd=end.directory)
                sync(end.directory)
    except (FileNotFoundError, NotADirectoryError):
        return [f"{path} is not there"]
    except OSError as error:
        raise KvmarmError(f"cannot remove {path}: {error.strerror}", _WRITABLE) from None
    return [f"removed {path}", _reload()]


def check_directory(path: Path) -> None:
    """Whether one of DIRECTORIES is there, or can be made, and is root's alone. Links of root's are
    followed.

    Raises:
        KvmarmError: something else is in its place or on the way, or others can change it.
    """
    there = path
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        what, hint, old = "no directory", "move it away", shlex.quote(str(there))
        if there.is_symlink():
            what = "a link that leads to no directory"
            hint = f"see that {shown(os.path.realpath(there))} is one, or move the link away"
        raise KvmarmError(f"{there} is {what}", f"{hint}: mv {old} {old}.old")
    changed = changeable(str(there))
    if changed:
        name = shown(changed, 4096)
        raise KvmarmError(
            f"others than root can change {name}, and with it what kvmarm has in {path}",
            how_to_keep(str(there), changed),
        )


def make_directories() -> Iterator[str]:
    """Make those of DIRECTORIES that are not there. Yields what was done, a line each.

    Raises:
        KvmarmError: it cannot be done, or as `check_directory` does.
    """
    for path in DIRECTORIES:
        check_directory(path)
        for each in reversed((path, *path.parents)):
            if not each.exists():
                _make_directory(Path(os.path.realpath(each)))
                yield f"made {each}"


def remove_directories() -> list[str]:
    """Remove those in which nothing is. Returns what was done, a line each."""
    done = []
    for path in reversed(DIRECTORIES):
        with suppress(OSError):  # it is not there, or in use
            path.rmdir()
            done.append(f"removed {path}, which was empty")
    return done


def script() -> str:
    """The hook's text, with the place of this package in it. Raises KvmarmError if the installation
    lacks it.
    """
    text = shipped("hooks", _SHIPPED).read_text(encoding="utf-8")
    return text.replace("@PACKAGE@", shlex.quote(str(_PACKAGE)))


def check_place(path: str, python: str) -> None:
    """Whether a hook that is installed is root's alone, and what it runs.

    Args:
        path: of the hook.
        python: its interpreter, which is run.

    Raises:
        KvmarmError: others can change one of them, or the interpreter cannot run the hook.
    """
    for each in (path, python, str(_PACKAGE.parent)):
        _check_owner(each)
    _check_tree(str(_PACKAGE))
    _check_interpreter(python)


def interpreter() -> str:
    """Path of what runs the hook's Python. Raises KvmarmError as `script` does."""
    return str(re.findall(r"^python=(.*)$", script(), re.MULTILINE)[0])


def is_kvmarms(text: bytes) -> bool:
    """Whether a hook is kvmarm's, of whatever version."""
    return _MARK in text


def _check_version() -> None:
    for daemon in daemons.DAEMONS:
        try:
            answer = subprocess.run(
                [f"/usr/sbin/{daemon}", "--version"],
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            ).stdout
        except (OSError, subprocess.SubprocessError):
            continue
        version = re.search(r"(\d+)\.(\d+)\.\d+", answer)
        if version and (int(version[1]), int(version[2])) < LOOKS_THERE_FROM:
            raise KvmarmError(
                f"libvirt {version[0]} does not look into hooks/qemu.d",
                "upgrade it to 6.5 or newer",
            )
        return


def _place(directory: Path) -> Path:
    """Where the hook goes. /etc/libvirt may be a link: of root's, as `_check_owner` knows."""
    return Path(
        os.path.realpath(directory.parent.parent), directory.parent.name, directory.name, NAME
    )


def _is_packaged(path: Path) -> bool:
    """Whether the hook is there as a distribution's package has it."""
    return is_link_of_package(path) and os.path.exists(PACKAGED)


def is_link_of_package(path: Path) -> bool:
    """Whether this is the link that a package makes, also where that is gone."""
    return path.is_symlink() and os.readlink(path) == PACKAGED


def _remove_what_is_left(path: Path) -> bool:
    """Remove the link of a package that is gone, if that is what is there. Returns whether it was.

    Raises:
        OSError: it cannot be removed.
    """
    if not is_link_of_package(path) or os.path.exists(PACKAGED) or not is_ours(path.lstat()):
        return False
    with reach(f"{path.parent}/.", _refuse_links) as end:
        os.unlink(path.name, dir_fd=end.directory)
        sync(end.directory)
    return True


def _is_this(packaged: str, wanted: bytes) -> bool:
    """Whether a program is the hook of the package that runs here."""
    try:
        with open(packaged, "rb") as file:
            return file.read(_LONGEST) == wanted
    except OSError:
        return False


def _link(end: Step) -> None:
    """Make the hook a link to PACKAGED; there is one hook at any time."""
    new = f".{end.name}.new"
    with suppress(FileNotFoundError):
        os.unlink(new, dir_fd=end.directory)
    os.symlink(PACKAGED, new, dir_fd=end.directory)
    os.replace(new, end.name, src_dir_fd=end.directory, dst_dir_fd=end.directory)
    sync(end.directory)


def _check_owner(path: str) -> None:
    """libvirt runs the hook as root: nobody else may be able to change what it runs, nor where a
    name on the way leads.

    In a sticky directory (/tmp) nobody can replace what is root's; but anybody can add to it, so it
    is no place to load from.

    Raises:
        KvmarmError: others can.
    """
    if os.geteuid() != 0:
        return  # what then follows does not become root's
    try:
        with reach(path, _check_step) as end:
            if end.entry is None:  # and nobody else may be able to put something there
                _refuse_changeable(os.path.dirname(end.path), os.fstat(end.directory))
            else:
                _refuse_changeable(end.path, os.fstat(end.entry))
    except OSError as error:
        raise KvmarmError(
            f"cannot look at {shown(path)}: {error.strerror}", "install kvmarm again"
        ) from None


def _check_tree(path: str) -> None:
    """`_check_owner` of a directory and of all that is in it, through links to directories, too. Of
    all, whatever its name: Python would load things that it does not load today, such as hook.so or
    hook/ in place of hook.py, or what is in __pycache__.
    """
    waiting = [path]
    while waiting:
        path = waiting.pop()
        _check_owner(path)
        if os.path.isdir(path):
            waiting += (f"{path}/{name}" for name in sorted(os.listdir(path), reverse=True))


def _check_step(step: Step) -> None:
    directory = os.fstat(step.directory)
    entry = None if step.entry is None else os.fstat(step.entry)
    if entry is not None and not is_ours(entry):
        _refuse_changeable(step.path, entry)
    if not (is_ours(directory) and directory.st_mode & stat.S_ISVTX):
        _refuse_changeable(os.path.dirname(step.path), directory)


def _refuse_changeable(path: str, status: os.stat_result) -> None:
    if others_can_change(status):
        name = shown(path, 4096)
        hint = f"chmod go-w {shlex.quote(name)}"
        if not is_ours(status):
            hint = (
                "install kvmarm as root, for instance as a package; or if you trust it: chown -h"
                f" root {shlex.quote(name)}"
            )
        raise KvmarmError(
            f"others than root can change {name}, and with it what libvirt would run as root", hint
        )


def _refuse_links(step: Step) -> None:
    if step.entry is not None and stat.S_ISLNK(os.fstat(step.entry).st_mode):
        raise KvmarmError(
            f"{step.path} is a link, and kvmarm installs nothing through one",
            "put what it leads to in its place, or if nobody needs that: rm"
            f" {shlex.quote(step.path)}",
        )


def _make_directory(path: Path) -> None:
    """One that all may look into, whatever the umask, unless it is there."""
    try:
        with reach(str(path), _refuse_links) as end:
            if end.entry is None:
                os.mkdir(end.name, 0o700, dir_fd=end.directory)
                descriptor = os.open(
                    end.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=end.directory
                )
                try:
                    os.fchmod(descriptor, _MODE)
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                sync(end.directory)
            elif not stat.S_ISDIR(os.fstat(end.entry).st_mode):
                old = shlex.quote(str(path))
                raise KvmarmError(
                    f"cannot make {path}: a file is there", f"move it away: mv {old} {old}.old"
                )
    except OSError as error:
        raise KvmarmError(f"cannot make {path}: {error.strerror}", _WRITABLE) from None
    _check_owner(str(path))


def _kvmarms(end: Step, verb: str) -> bytes:
    """What is in a hook that is there, if it is kvmarm's, of whatever version; everything else
    belongs to somebody.

    Raises:
        KvmarmError: it is not; `verb` says what cannot be done to it.
    """
    held = b""
    status = os.stat(end.name, dir_fd=end.directory, follow_symlinks=False)
    if stat.S_ISREG(status.st_mode) and is_ours(status):
        descriptor = os.open(
            end.name,
            os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            dir_fd=end.directory,
        )
        with open(descriptor, "rb") as file:
            held = file.read(_LONGEST)
    if not is_kvmarms(held):
        raise KvmarmError(
            f"cannot {verb} {end.path}: it is not a hook of kvmarm's, or not root's",
            "see what it is, and move it out of there",
        )
    return held


def _check_interpreter(python: str) -> None:
    """The hook has this one, whatever runs `kvmarm`: Python 3.9 or newer, with those modules that
    distributions split off.
    """
    try:
        answer = subprocess.run(
            [
                python,
                "-I",
                "-S",
                "-c",
                "import sys; print(*sys.version_info[:3], sep='.'); import _ctypes, fcntl, pyexpat",
            ],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise KvmarmError(
            f"cannot run {python}, which the hook needs: {error}",
            "install the distribution's python3",
        ) from None
    version = re.match(r"(\d+)\.(\d+)\.\d+", answer.stdout)
    if version and (int(version[1]), int(version[2])) < (3, 9):
        raise KvmarmError(
            f"{python} is Python {version[0]}, and the hook needs 3.9 or newer",
            "upgrade the distribution's python3",
        )
    if answer.returncode != 0:
        why = (answer.stderr.strip() or f"exit status {answer.returncode}").splitlines()[-1]
        raise KvmarmError(
            f"{python} cannot run the hook: {why}",
            "install the distribution's python3 with its standard library",
        )


def _reload() -> str:
    """SIGHUP makes the daemon read its configuration and look for hooks again; guests do not
    notice.
    """
    said = []
    for daemon in daemons.running():
        try:
            os.kill(daemon.pid, signal.SIGHUP)
        except OSError as error:
            said.append(
                f"could not tell {daemon.name} ({error.strerror}); do it with: systemctl reload"
                f" {daemon.name}"
            )
            continue
        with suppress(OSError):  # doctor then does not know
            daemon.note_told()
        said.append(f"told {daemon.name} (process {daemon.pid}) to look for hooks")
    return "; ".join(said) or "no libvirt daemon is running: it will find the hook when it starts"
