# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt, and kvmarm's hook: there, the one of this kvmarm, root's alone, and known to the daemon
that runs.
"""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path

from ..basics.errors import KvmarmError
from ..basics.untrusted import decimal, shown
from ..hook import install
from ..host.libvirt_host_model import is_noted
from .host import AS_ROOT, BAD, NOT_THERE, OK, UNKNOWN, Line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..host.daemons import Daemon
    from .host import Host

_INSTALL = "kvmarm hook install"
_LONGEST = 1 << 20  # bytes of a hook
_SESSIONS = "run/user/*/libvirt/qemu/run/*.xml"  # guests that run in session mode


def check_libvirt(host: Host) -> Iterator[Line]:
    """Whether libvirt answers, and is new enough."""
    try:
        with host.connect() as connection:
            version = connection.version()
    except KvmarmError as error:
        yield Line(BAD, error.message, error.hint)
        return
    numbers = tuple(int(number) for number in version.split(".")[:2])
    if numbers < install.LOOKS_THERE_FROM:
        yield Line(
            BAD, f"libvirt {version} does not look into hooks/qemu.d", "upgrade it to 6.5 or newer"
        )
        return
    note = " and offers host-model itself" if is_noted() else ""
    yield Line(OK, f"libvirt {version} answers at {shown(host.uri, 120)}{note}")


def check_session(host: Host) -> Iterator[Line]:
    """Guests of users' own daemons, for which there is no system hook."""
    if host.uri.partition("?")[0].endswith("/session"):
        yield Line(
            BAD,
            f"{shown(host.uri, 120)} is a user's own libvirt: its guests are not judged when they"
            " start or arrive",
            "run guests that are to migrate in qemu:///system",
        )
        return
    running = {path.parts[-5]: None for path in sorted(host.root.glob(_SESSIONS))}
    if running:
        users = ", ".join(shown(user, 20) for user in [*running][:8])
        yield Line(
            BAD,
            f"guests of qemu:///session run here and are not judged; users: {users}",
            "run guests that are to migrate in qemu:///system",
        )
    elif host.uid != 0:
        yield Line(UNKNOWN, "only root sees whether users run guests of qemu:///session", AS_ROOT)
    else:
        yield Line(OK, "no guest of qemu:///session runs")


def check_hook(host: Host) -> Iterator[Line]:
    """The file of the hook, and what it runs."""
    path = _hook(host)
    where = shown(str(path), 200)
    status = _status(path)
    if status is None:
        what = "leads nowhere" if path.is_symlink() else "is not there: guests are not judged"
        yield Line(BAD, f"{where} {what}", _how_to_install(path))
        return
    held = _held(path)
    if not install.is_kvmarms(held):
        yield Line(BAD, f"{where} is not kvmarm's", f"move it away, then: {_INSTALL}")
        return
    if held != install.script().encode(errors="surrogateescape"):
        again = "install the package again" if path.is_symlink() else _INSTALL
        yield Line(BAD, f"{where} is of another kvmarm than this ({_package(held)})", again)
    elif not _is_executable(status):
        yield Line(BAD, f"{where} is not executable, and libvirt passes it over", _INSTALL)
    else:
        yield Line(OK, f"{where} is the one of this kvmarm")
    if host.uid != 0:
        yield Line(
            UNKNOWN, "only root can tell whether others can change what libvirt runs", AS_ROOT
        )
        return
    try:
        install.check_place(str(path), install.interpreter())
    except KvmarmError as error:
        yield Line(BAD, error.message, error.hint)
    else:
        yield Line(OK, "nobody but root can change what libvirt runs, and its Python runs it")


def _how_to_install(path: Path) -> str:
    """What to type where no hook is at its path: `hook install`, which goes through no link, nor
    writes over what is not kvmarm's.
    """
    for each in (path.parent.parent, path.parent, path):
        if each != path:
            fits = each.is_dir() and not each.is_symlink()
        elif each.is_symlink():
            fits = install.is_link_of_package(each)
        else:
            fits = install.is_kvmarms(_held(each))
        if os.path.lexists(each) and not fits:
            return f"move {shown(str(each), 200)} away, then: {_INSTALL}"
    return _INSTALL


def _held(path: Path) -> bytes:
    """What is in a file; nothing if it is none, such as a FIFO, which is not waited for."""
    status = _status(path)
    if status is None or not stat.S_ISREG(status.st_mode):
        return b""
    with path.open("rb") as file:
        return file.read(_LONGEST)


def _hook(host: Host) -> Path:
    return host.path(str(install.DIRECTORY / install.NAME))


def _package(hook: bytes) -> str:
    """Where the package is that a hook runs."""
    found = re.search(rb"^package=(.*)$", hook, re.MULTILINE)
    return shown(found[1].decode(errors="replace"), 120) if found else "of unknown place"


def _is_executable(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o111)


def check_seen(host: Host) -> Iterator[Line]:
    """Whether the daemon that runs has found a hook: it looks when it starts and when it gets
    SIGHUP, and then calls whatever is there (virHookInitialize, virHookCall).
    """
    since = _there_since(_hook(host))
    if since is None:
        yield Line(BAD, "there is no hook to be seen", _how_to_install(_hook(host)))
        return
    running = host.daemons()
    if not running and host.uid != 0:
        yield Line(UNKNOWN, "only root is sure to see whether a libvirt daemon runs", AS_ROOT)
    elif not running:
        yield Line(OK, "no libvirt daemon runs: it finds the hook when it starts")
    for daemon in running:
        yield _seen(host, daemon, since)


def _seen(host: Host, daemon: Daemon, since: float) -> Line:
    name = f"{daemon.name} (process {daemon.pid})"
    if since <= daemon.started:
        return Line(OK, f"{name} has started since the hook is there")
    told = daemon.told_at()
    if told is not None and told >= since:
        return Line(OK, f"{name} was told to look for hooks")
    if _reloaded_at(host, daemon) >= since:
        return Line(OK, f"{name} was reloaded since the hook is there")
    others = [_there_since(path) for path in _others(host)]
    if any(other is not None and other <= daemon.started for other in others):
        return Line(OK, f"{name} has found another hook for QEMU when it started, and calls all")
    return Line(
        UNKNOWN,
        f"{name} has started before the hook was there, and may not have looked for it since",
        f"systemctl reload {daemon.name}"
        if host.has_systemd()
        else f"have the host's init restart {daemon.name}: guests go on",
    )


def _others(host: Host) -> list[Path]:
    """What else libvirt may call for QEMU."""
    main = host.path("/etc/libvirt/hooks/qemu")
    return [main, *(path for path in main.with_name("qemu.d").glob("*") if path != _hook(host))]


def _there_since(path: Path) -> float | None:
    """When an executable file came to be at a path, as far as its inode and those of links to it
    tell; a package's modification times are older than that. None if there is none. Raises OSError:
    that cannot be told.
    """
    status = _status(path)
    if status is None or not _is_executable(status):
        return None
    return max(status.st_ctime, path.lstat().st_ctime)


def _status(path: Path) -> os.stat_result | None:
    """Of what a path leads to; None if that is nothing. Raises OSError: that cannot be told."""
    try:
        return path.stat()
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
        return None


def _reloaded_at(host: Host, daemon: Daemon) -> float:
    """When systemd last reloaded the daemon, in seconds since the epoch: a unit changes its state
    when it has started and when it is reloaded. 0 where that cannot be told.
    """
    try:
        answer = host.run(
            ["systemctl", "show", "-p", "MainPID,StateChangeTimestampMonotonic", daemon.name]
        )
        values = dict(line.partition("=")[::2] for line in answer.splitlines())
        if values.get("MainPID") != str(daemon.pid):
            return 0
        changed = decimal(values.get("StateChangeTimestampMonotonic", ""), 1 << 62) / 1e6
    except (OSError, ValueError):
        return 0
    return time.time() - (time.clock_gettime(time.CLOCK_MONOTONIC) - changed)
