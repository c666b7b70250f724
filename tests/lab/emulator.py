# SPDX-License-Identifier: LGPL-2.1-or-later
"""The emulator of the lab's hosts: this machine's qemu-system-aarch64 or, where that is too old, the one that Debian has
backported.

QEMU 7.2 (bookworm's) loses what nested guests write while they migrate. Seven guests that were migrated to and fro came to
grief after 5 to 38 migrations each, on hosts of bookworm and of trixie, with one vCPU or two: "Bad rss-counter state", init
killed, soft lockups, as with stale page tables. With 10.0 one guest survived all of 39. Which version in between has mended it
was not looked for.
"""

from __future__ import annotations

import functools
import platform
import re
import subprocess
import tempfile
from pathlib import Path

from . import machine
from .errors import LabError, say, step

COMMAND = "qemu-system-aarch64"
PACKAGE = "qemu-system-arm"
WANTED = (10, 0)
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@functools.cache
def path() -> str:
    """The emulator to boot hosts with; fetched into the cache at the first need."""
    own = machine.tool(COMMAND)
    version = _version(own)
    if version >= WANTED:
        return own
    try:
        return str(_backported())
    except LabError as error:
        say(f"{error}\n  going on with QEMU {'.'.join(map(str, version))}: now and then a guest does not survive its migration")
        return own


def _backported() -> Path:
    """Unpacked in the cache, not installed: what this machine's QEMU needs besides is what that one needs too."""
    suite = f"{platform.freedesktop_os_release()['VERSION_CODENAME']}-backports"
    kept = machine.cache_dir() / "emulator" / suite
    found = kept / "usr/bin" / COMMAND
    if not found.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with (
            step(f"{PACKAGE} of {suite} downloaded and unpacked"),
            tempfile.TemporaryDirectory(dir=kept.parent, prefix=".") as work,
        ):
            root = Path(work, "root")
            _run("dpkg-deb", "--extract", str(_download(suite, Path(work))), str(root))
            if (version := _version(str(root / "usr/bin" / COMMAND))) < WANTED:
                raise LabError(f"{suite} has QEMU {'.'.join(map(str, version))}")
            try:
                root.rename(kept)
            except OSError:
                # Somebody else was as quick.
                if not found.exists():
                    raise
    return found


def _download(suite: str, directory: Path) -> Path:
    """The package, by an apt that has only this suite and keeps all it knows here."""
    sources = directory / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYRING}] {machine.debian_mirror()} {suite} main\n")
    for name in ("lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True)
    options = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": directory / "lists",
        "Dir::Cache": directory / "cache",
        # apt's own user could not write here.
        "APT::Sandbox::User": "root",
    }
    apt_get = ("apt-get", "--quiet=2", *(f"--option={name}={value}" for name, value in options.items()))
    _run(*apt_get, "update", directory=directory)
    _run(*apt_get, "download", f"{PACKAGE}/{suite}", directory=directory)
    (package,) = directory.glob("*.deb")
    return package


def _version(command: str) -> tuple[int, ...]:
    found = re.search(r"version (\d+)\.(\d+)", _run(command, "--version"))
    if not found:
        raise LabError(f"{command} does not say its version")
    return int(found[1]), int(found[2])


def _run(*command: str, directory: Path | None = None) -> str:
    done = subprocess.run(command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise LabError(f"{command[0]} failed: {done.stderr[-500:].strip()}")
    return done.stdout
