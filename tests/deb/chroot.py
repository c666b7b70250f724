# SPDX-License-Identifier: LGPL-2.1-or-later
"""Chroots of Debian's suites, made from the mirror that this machine's apt uses.

What mmdebstrap makes is kept in the lab's cache as an archive for some days. Each chroot is
unpacked from it, and nothing that is done there outlives it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..lab import machine
from ..lab.errors import LabError, step

SUITES = ("bookworm", "trixie", "sid")

_BUILDING = (
    "build-essential",
    "debhelper",
    "dh-python",
    "lintian",
    "pybuild-plugin-pyproject",
    "python3",
    "python3-setuptools",
)
# On a machine of another kind.
_CROSS_BUILDING = (
    "build-essential",
    "crossbuild-essential-arm64",
    "debhelper",
    "libc6:arm64",
    "lintian",
)
# What the package depends on: trying it needs no mirror then.
_TRYING = ("python3", "python3-libvirt", "python3-lxml", "python3-yaml")
_DAYS = 7
_SECONDS = 1800.0  # of mmdebstrap: a slow mirror
_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


@dataclass(frozen=True)
class Done:
    """A command that has ended: what it said, on whichever channel."""

    status: int
    said: str


@dataclass(frozen=True)
class Chroot:
    """A Debian in a directory, with processes of its own and without systemd."""

    root: Path

    def run(self, *command: str, environment: dict[str, str] | None = None) -> Done:
        """Run a command in it, whatever its status."""
        done = subprocess.run(
            [
                machine.tool("unshare"),
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                f"--root={self.root}",
                "--",
                *command,
            ],
            env=_ENVIRONMENT | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=machine.INSTALL_SECONDS,
            check=False,
        )
        return Done(done.returncode, done.stdout)

    def must(self, *command: str, environment: dict[str, str] | None = None) -> str:
        """Run a command that has to succeed. Returns what it said.

        Raises:
            LabError: it has not.
        """
        done = self.run(*command, environment=environment)
        if done.status != 0:
            raise LabError(f"`{' '.join(command)[:200]}` failed:\n{done.said[-4000:]}")
        return done.said

    def path(self, name: str) -> Path:
        """Where a file of the chroot is, seen from outside."""
        return self.root / name.lstrip("/")


@contextmanager
def to_build(suite: str) -> Iterator[Chroot]:
    """A chroot that has what the package is built with."""
    with _fresh(suite, _BUILDING) as chroot:
        yield chroot


@contextmanager
def to_build_for_arm64(suite: str) -> Iterator[Chroot]:
    """A chroot that has what kvmarm-level is built with."""
    native = platform.machine() == "aarch64"
    with _fresh(suite, _BUILDING if native else _CROSS_BUILDING) as chroot:
        yield chroot


@contextmanager
def to_try(suite: str) -> Iterator[Chroot]:
    """A small chroot that has what the package depends on."""
    with _fresh(suite, _TRYING) as chroot:
        yield chroot


@contextmanager
def _fresh(suite: str, packages: tuple[str, ...]) -> Iterator[Chroot]:
    machine.need_root(f"a chroot of {suite}")
    machine.need(("mmdebstrap", "unshare", "tar"))
    archive = _archive(suite, packages)
    with tempfile.TemporaryDirectory(prefix=f"kvmarm-{suite}-") as directory:
        Path(directory).chmod(0o755)
        machine.run("tar", "--extract", "--numeric-owner", "--file", archive, "-C", directory)
        yield Chroot(Path(directory))


def _archive(suite: str, packages: tuple[str, ...]) -> Path:
    digest = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    archive = machine.cache_dir() / "chroots" / f"{suite}-{digest}.tar"
    with machine.locked(archive.with_suffix(".lock")):
        if not archive.exists() or time.time() - archive.stat().st_mtime > _DAYS * 86400:
            new = archive.with_suffix(".new.tar")
            with step(f"{suite} chroot from Debian's mirror"):
                machine.run(
                    "mmdebstrap",
                    "--quiet",
                    "--mode=root",
                    "--variant=minbase",
                    f"--include={','.join(packages)}",
                    f"--architectures={','.join(_architectures(packages))}",
                    # How this machine reaches the mirror, and a mirror's sid may be days old.
                    *(f"--aptopt={line}" for line in _way_to_the_mirror()),
                    '--aptopt=Acquire::Check-Valid-Until "false"',
                    suite,
                    new,
                    f"deb [signed-by={machine.KEYRING}] {machine.debian_mirror()} {suite} main",
                    environment=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                    timeout=_SECONDS,
                )
            new.replace(archive)
    return archive


def _architectures(packages: tuple[str, ...]) -> list[str]:
    """This machine's, and those that the names of packages end in."""
    own = machine.run("dpkg", "--print-architecture").strip()
    return [own, *(name.partition(":")[2] for name in packages if ":" in name)]


def _way_to_the_mirror() -> list[str]:
    """The lines of apt's configuration that tell of proxies and certificates."""
    dumped = machine.run("apt-config", "dump", "Acquire").splitlines()
    return [
        line
        for line in dumped
        if line.partition("::")[2].startswith(("http::", "https::")) and not line.endswith('"";')
    ]
