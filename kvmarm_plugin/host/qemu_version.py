# SPDX-License-Identifier: LGPL-2.1-or-later
"""The version of the emulator on this host, for the hook: it may take no second, and has only the
standard library.

Asking the emulator costs some 50 ms, so the answer is kept in /run/kvmarm for as long as the file
stays the same. The whole truth about the emulator, machine types and all, is `qemu`'s.
"""

from __future__ import annotations

import os

from ..basics.ownership import others_can_change
from ..basics.untrusted import decimal

# Where distributions put the emulator for the host's own architecture: Debian, Fedora, SUSE; RHEL.
BINARIES = {
    "aarch64": ("/usr/bin/qemu-system-aarch64", "/usr/libexec/qemu-kvm"),
    "armv7l": ("/usr/bin/qemu-system-arm",),
}
CACHE = "/run/kvmarm/qemu-version"
_HIGHEST = 9999  # of a version's numbers
_LONGEST = 4096  # characters of what is kept


def installed_version(cache: str = CACHE) -> tuple[int, int]:
    """Major and minor version of the distribution's emulator; (0, 0) if there is none or it does
    not say.
    """
    for path in BINARIES.get(os.uname().machine, ()):
        try:
            stat = os.stat(path)
        except OSError:
            continue
        key = f"{path} {stat.st_size} {stat.st_mtime_ns}"
        line = _cached(cache, key)
        if not line:
            line = _ask(path)
            _keep(cache, key, line)
        return _parse(line)
    return (0, 0)


def _parse(line: str) -> tuple[int, int]:
    """(11, 1) from "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)"; (0, 0) from what has no
    version.
    """
    for word in line.split():
        major, _, rest = word.partition(".")
        try:
            return decimal(major, _HIGHEST), decimal(rest.partition(".")[0], _HIGHEST)
        except ValueError:
            continue
    return (0, 0)


def _ask(path: str) -> str:
    """The first line of what `path --version` prints. Not with subprocess: hook/__init__.py says
    why.
    """
    read, write = os.pipe()
    actions = [
        (os.POSIX_SPAWN_DUP2, write, 1),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    try:
        process = os.posix_spawn(path, [path, "--version"], os.environ, file_actions=actions)
    except OSError:
        os.close(read)
        return ""
    finally:
        os.close(write)
    with open(read, encoding="utf-8", errors="replace") as output:
        text = output.read()
    os.waitpid(process, 0)
    return text.partition("\n")[0]


def _cached(cache: str, key: str) -> str:
    """What was kept, if that was by root or this user, into a file that nobody else can write."""
    try:
        descriptor = os.open(cache, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, encoding="utf-8", errors="replace") as file:
            text = "" if others_can_change(os.fstat(descriptor)) else file.read(_LONGEST)
    except OSError:
        return ""
    kept, _, line = text.partition("\n")
    return line.strip() if kept == key else ""


def _keep(cache: str, key: str, line: str) -> None:
    """Best effort: the next time it is asked again."""
    temporary = f"{cache}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(cache), mode=0o755, exist_ok=True)
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644
        )
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{key}\n{line}\n")
        os.replace(temporary, cache)
    except OSError:
        pass
