# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine the lab runs on: the tools it needs, its Debian mirror, and where the lab keeps its
files.

`python3 -m tests.lab setup` calls `setup()`; image.py and host.py call `need()` for the tools they
are about to use, so that a missing one is a sentence and not a traceback.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from .errors import LabError, LabTimeout, say

COMMAND_SECONDS = 120.0
INSTALL_SECONDS = 600.0  # of apt-get: a slow mirror

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Tool(NamedTuple):
    command: str
    package: str
    purpose: str


TOOLS = (
    Tool("dpkg-deb", "dpkg", "unpacks Debian for arm64"),
    Tool("qemu-aarch64-static", "qemu-user-static", "compiles the image's Python modules"),
    Tool("depmod", "kmod", "indexes the image's kernel modules"),
    Tool("mke2fs", "e2fsprogs", "makes the image's file system"),
    Tool("ssh-keygen", "openssh-client", "makes the image's keys"),
    Tool("ssh", "openssh-client", "talks to the hosts"),
    Tool("qemu-system-aarch64", "qemu-system-arm", "emulates the hosts"),
    Tool("mmdebstrap", "mmdebstrap", "installs Debian for arm64, for hosts with systemd"),
    Tool("setpriv", "util-linux", "ties the hosts' lives to ours"),
    Tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu", "builds libkvmarm-level"),
    Tool("make", "make", "builds it, too"),
)

# Administrators' tools are in sbin, which is not on everybody's PATH.
SEARCH_PATH = os.pathsep.join(
    (os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin")
)


def tool(command: str) -> str:
    """The full path of a command, such as one of TOOLS."""
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
        raise LabError(
            f"missing: {wanted}", "the lab installs its tools with apt-get: use a Debian machine"
        )
    say(f"installing {wanted}")
    if not package_lists():
        apt_get("update")
    if "gcc-aarch64-linux-gnu" in packages:
        packages.append("libc6-dev-arm64-cross")  # its headers, which it only recommends
    apt_get("install", "--yes", "--no-install-recommends", *packages)


def run(
    *command: str | Path,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = COMMAND_SECONDS,
) -> str:
    """Run a command of this machine's, and give what it printed; LabError if it fails, with what it
    said.
    """
    words = [tool(str(command[0])), *map(str, command[1:])]
    what = " ".join(str(word) for word in command if not str(word).startswith("-"))[:200]
    try:
        done = subprocess.run(
            words,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace")
        raise LabTimeout(f"`{what}` took more than {timeout:g} s:\n{said[-2000:]}") from None
    if done.returncode != 0:
        raise LabError(f"`{what}` failed:\n{done.stdout[-2000:]}")
    return done.stdout


def apt_get(*arguments: str | Path, directory: Path | None = None) -> None:
    """Run apt-get; `directory` is where it puts what it is told to `download`."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(
        "apt-get",
        "-qq",
        *arguments,
        directory=directory,
        environment=environment,
        timeout=INSTALL_SECONDS,
    )


def only_suite(suite: str, directory: Path, architecture: str = "") -> list[str]:
    """Options with which apt-get knows this suite alone, nothing that is installed, and keeps what
    it learns in `directory`.

    The machine's own configuration counts as far as it says how to reach the mirror; what it does
    to packages is taken out.
    """
    for name in ("lists/partial", "archives/partial", "log"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    sources, status = directory / "sources.list", directory / "status"
    sources.write_text(f"deb [signed-by={KEYRING}] {debian_mirror()} {suite} main\n")
    status.touch()
    options: dict[str, str | Path] = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State": directory,
        "Dir::State::Status": status,
        "Dir::Cache": directory,
        "Dir::Log": directory / "log",
        "APT::Keep-Downloaded-Packages": "true",
        # apt's own user could not write here.
        "APT::Sandbox::User": "root",
        # A mirror's sid may be days old.
        "Acquire::Check-Valid-Until": "false",
        "Acquire::Languages": "none",
    }
    if architecture:
        options.update({"APT::Architecture": architecture, "APT::Architectures": architecture})
    configuration = directory / "apt.conf"
    lines = [
        "#clear DPkg;",
        "#clear APT::Update;",
        *(f'{name} "{value}";' for name, value in options.items()),
    ]
    configuration.write_text("\n".join(lines) + "\n")
    return [f"--config-file={configuration}"]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """What is made once is made by one process: the others wait here until it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def package_lists() -> list[tuple[str, ...]]:
    """(URI, component, origin, label) of each package list that apt has on this machine."""
    done = subprocess.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI)|$(COMPONENT)|$(ORIGIN)|$(LABEL)",
            "Created-By: Packages",
        ],
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
    raise LabError(
        "apt on this machine knows no Debian archive", "apt-get update, on a Debian machine"
    )


def cache_dir() -> Path:
    """Where images and downloaded packages are kept between runs."""
    own = os.environ.get("KVMARM_LAB_CACHE")
    if own:
        return Path(own).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kvmarm-lab"
