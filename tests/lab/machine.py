# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine the lab runs on: the tools it needs, its Debian mirror, and where the lab keeps its files.

`python3 -m tests.lab setup` calls `setup()`; image.py and host.py call `need()` for the tools they are about to
use, so that a missing one is a sentence and not a traceback.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .errors import LabError, say


class Tool(NamedTuple):
    command: str
    package: str
    purpose: str


TOOLS = (
    Tool("mmdebstrap", "mmdebstrap", "unpacks Debian for arm64"),
    Tool("qemu-aarch64-static", "qemu-user-static", "compiles the image's Python modules"),
    Tool("depmod", "kmod", "indexes the image's kernel modules"),
    Tool("mke2fs", "e2fsprogs", "makes the image's file system"),
    Tool("ssh-keygen", "openssh-client", "makes the image's keys"),
    Tool("ssh", "openssh-client", "talks to the hosts"),
    Tool("qemu-system-aarch64", "qemu-system-arm", "emulates the hosts"),
    Tool("setpriv", "util-linux", "ties the hosts' lives to ours"),
)

# Administrators' tools are in sbin, which is not on everybody's PATH.
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))


def tool(command: str) -> str:
    """The full path of one of TOOLS."""
    path = shutil.which(command, path=SEARCH_PATH)
    if path is None:
        raise LabError(f"{command} is not installed", "python3 -m tests.lab setup")
    return path


def missing() -> list[Tool]:
    return [t for t in TOOLS if shutil.which(t.command, path=SEARCH_PATH) is None]


def need(commands: Sequence[str]) -> None:
    for command in commands:
        tool(command)


def need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise LabError(f"{what} needs root", "run it with sudo, or as root in a container")


def setup() -> None:
    """Install the tools that are missing.  Does nothing, quickly, when none is."""
    absent = missing()
    if not absent:
        return
    packages = sorted({t.package for t in absent})
    wanted = ", ".join(f"{t.package} ({t.purpose})" for t in absent)
    need_root(f"installing {wanted}")
    if shutil.which("apt-get") is None:
        raise LabError(f"missing: {wanted}", "the lab installs its tools with apt-get: use a Debian machine")
    say(f"installing {wanted}")
    if not package_lists():
        _apt_get("update")
    _apt_get("install", "--yes", "--no-install-recommends", *packages)


def _apt_get(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        ["apt-get", "-qq", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        raise LabError(f"apt-get {' '.join(arguments)} failed:\n{done.stdout[-2000:]}")


def package_lists() -> list[tuple[str, ...]]:
    """(URI, component, origin, label) of each package list that apt has on this machine."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(COMPONENT)|$(ORIGIN)|$(LABEL)", "Created-By: Packages"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [tuple(line.split("|")) for line in done.stdout.splitlines()]


def debian_mirror() -> str:
    """The mirror this machine gets Debian from: images come from the same one."""
    for uri, component, origin, label in package_lists():
        if (component, origin, label) == ("main", "Debian", "Debian"):
            return uri
    raise LabError("apt on this machine knows no Debian archive", "apt-get update, on a Debian machine")


def cache_dir() -> Path:
    """Where images and downloaded packages are kept between runs."""
    own = os.environ.get("KVMARM_LAB_CACHE")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kvmarm-lab"
