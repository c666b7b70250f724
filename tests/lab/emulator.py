# SPDX-License-Identifier: LGPL-2.1-or-later
"""The emulator of the lab's hosts: this machine's qemu-system-aarch64 or, where that is too old,
the one that Debian has backported.

QEMU 7.2 (bookworm's) loses what nested guests write while they migrate. Seven guests that were
migrated to and fro came to grief after 5 to 38 migrations each, on hosts of bookworm and of trixie,
with one vCPU or two: "Bad rss-counter state", init killed, soft lockups, as with stale page tables.
With 10.0 one guest survived all of 39. Which version in between has mended it was not looked for.
"""

from __future__ import annotations

import functools
import platform
import re
import tempfile
from pathlib import Path

from . import machine
from .errors import LabError, say, step

COMMAND = "qemu-system-aarch64"
PACKAGE = "qemu-system-arm"
WANTED = (10, 0)


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
        say(
            f"{error}\n  going on with {_named(version)}: now and then a guest does not survive its"
            " migration"
        )
        return own


def _backported() -> Path:
    """Unpacked in the cache, not installed: what this machine's QEMU needs besides is what that one
    needs too.
    """
    suite = f"{platform.freedesktop_os_release()['VERSION_CODENAME']}-backports"
    kept = machine.cache_dir() / "emulator" / suite
    found = kept / "usr/bin" / COMMAND
    with machine.locked(kept.with_suffix(".lock")):
        if not found.exists():
            with (
                step(f"{PACKAGE} of {suite} downloaded and unpacked"),
                tempfile.TemporaryDirectory(dir=kept.parent, prefix=".") as work,
            ):
                root = Path(work, "root")
                machine.run("dpkg-deb", "--extract", _download(suite, Path(work)), root)
                if (version := _version(root / "usr/bin" / COMMAND)) < WANTED:
                    raise LabError(f"{suite} has {_named(version)}")
                root.rename(kept)
    return found


def _download(suite: str, directory: Path) -> Path:
    options = machine.only_suite(suite, directory)
    machine.apt_get(*options, "update")
    machine.apt_get(*options, "download", f"{PACKAGE}/{suite}", directory=directory)
    (package,) = directory.glob("*.deb")
    return package


def _version(command: str | Path) -> tuple[int, int]:
    found = re.search(r"version (\d+)\.(\d+)", machine.run(command, "--version"))
    if not found:
        raise LabError(f"{command} does not say its version")
    return int(found[1]), int(found[2])


def _named(version: tuple[int, int]) -> str:
    return f"QEMU {version[0]}.{version[1]}"
