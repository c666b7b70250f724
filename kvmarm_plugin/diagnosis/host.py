# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host that is looked at, replaceable in a test; and what there is to say of it."""

from __future__ import annotations

import errno
import functools
import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

from ..basics.untrusted import shown
from ..basics.value import Value
from ..host import daemons
from ..host.libvirtd import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..fleet.pool import Pool
    from ..kvm.device import SystemCalls
    from ..model.policy import Policy
    from ..model.profile import HostProfile

OK, BAD, UNKNOWN = "ok", "not ok", "unknown"

AS_ROOT = "run this as root"  # a remedy

NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)  # of a path that leads to nothing

SYSTEMD = "/run/systemd/system"  # there while systemd is what runs this host: sd_booted(3)
RENEWAL = "kvmarm-renew.socket"
START_RENEWAL = "have the host's init start this at every boot, as root: kvmarm renew"
UNITS = (  # where systemd looks for units, systemd.unit(5)
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)

_LONGEST = 1 << 20  # characters of a file that is looked at
_PATIENCE = 30  # seconds for a program


class Line(Value):
    """What was found.

    Attributes:
        state: OK, BAD or UNKNOWN.
        text: what is so, or why it cannot be known.
        remedy: what to type; empty where that is not known, or not needed.
    """

    state: str
    text: str
    remedy: str = ""


class Host:
    """This host.

    Args:
        uri: of libvirt.
        read_policy, read_pool, probe: this host's policy, its pool (None if it is in none), and its
            profile; they raise KvmarmError.
        root: where the directories of the host are.

    Attributes:
        architecture, name, kernel: as uname -m, -n and -r give them.
        uid: of the user as whom this runs.
        profile: this host's, measured once.
        has_module: whether Python finds a module.
        kvm: the system calls to /dev/kvm; the real ones if None.
        connect: opens a connection to libvirt.
        run: runs a program, and returns what it prints; raises OSError where it fails.
    """

    def __init__(
        self,
        uri: str,
        read_policy: Callable[[], Policy],
        read_pool: Callable[[], Pool | None],
        probe: Callable[[], HostProfile],
        root: Path = Path("/"),
    ) -> None:
        self.uri = uri
        self.root = root
        self.architecture = platform.machine()
        self.name = platform.node()
        self.kernel = platform.release()
        self.uid = os.geteuid()
        self.kvm: SystemCalls | None = None
        self.policy = read_policy
        self.pool = read_pool
        self.profile: Callable[[], HostProfile] = functools.cache(probe)
        self.has_module: Callable[[str], bool] = _has_module
        self.connect: Callable[[], Connection] = lambda: Connection(uri)
        self.run: Callable[[list[str]], str] = _run

    def path(self, name: str) -> Path:
        """Where a file of the host is.

        Args:
            name: as the host has it, from "/" on.
        """
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str:
        """What a file of the host holds. Raises OSError."""
        with self.path(name).open(encoding="utf-8", errors="replace") as file:
            return file.read(_LONGEST)

    def has_systemd(self) -> bool:
        """Whether systemd is what runs this host."""
        return self.path(SYSTEMD).is_dir()

    def has_unit(self, name: str) -> bool:
        """Whether systemd finds a unit."""
        return any(os.path.lexists(self.path(f"{directory}/{name}")) for directory in UNITS)

    def daemons(self) -> list[daemons.Daemon]:
        """libvirt's system daemons that run."""
        return daemons.running(self.root)


def _has_module(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _run(command: list[str]) -> str:
    """What a program prints. Raises OSError: it is not there, fails, or takes too long."""
    try:
        answer = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, f"{command[0]} takes too long") from None
    if answer.returncode != 0:
        said = answer.stderr.strip() or f"exit status {answer.returncode}"
        raise OSError(errno.EIO, f"{command[0]}: {shown(said.splitlines()[-1])}")
    return answer.stdout[:_LONGEST]
