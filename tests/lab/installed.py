# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images of hosts as an operator has them: every package configured by dpkg, systemd as PID 1, and
AppArmor enforcing. For what has to do with packages, units and confinement; for all else the hosts
of image.py boot in a tenth of the time.

dpkg runs the packages' scripts under user-mode emulation (binfmt_misc), some five minutes on two
cores. Debian builds no virtqemud: libvirt is the monolithic libvirtd, under its AppArmor profile.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from . import machine
from .errors import LabError, step
from .image import Maker, words

_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_NAME = "qemu-aarch64"
# What an arm64 program begins with, and which of these bits count; F: the emulator is opened now,
# and works in every chroot (Documentation/admin-guide/binfmt-misc.rst).
_MAGIC = (
    r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
)
_INSTALL_SECONDS = 3600.0

_COPIED = (
    ("install-wheel", "usr/lib/lab/install-wheel", 0o755),
    ("network", "usr/lib/lab/network", 0o755),
    ("ready", "usr/lib/lab/ready", 0o755),
    ("lab-network.service", "etc/systemd/system/lab-network.service", 0o644),
    ("lab-ready.service", "etc/systemd/system/lab-ready.service", 0o644),
    ("sshd_config", "etc/ssh/sshd_config", 0o644),
)
_ENABLED = (
    ("lab-network.service", "sysinit.target.wants"),
    ("lab-ready.service", "multi-user.target.wants"),
    ("/usr/lib/systemd/system/libvirtd-tcp.socket", "sockets.target.wants"),  # for migrations
)


class InstalledMaker(Maker):
    """One build of such an image."""

    def make(self) -> None:
        with step("packages installed, under emulation"):
            self._install()
        with step("keys, configuration, kernel"):
            self._furnish()
        with step("disk written"):
            self._write_disk()

    def _install(self) -> None:
        machine.need(("mmdebstrap", "qemu-aarch64-static"))
        _run_foreign_programs()
        suite = self.suite.partition("-")[0]
        machine.run(
            "mmdebstrap",
            "--arch=arm64",
            "--variant=minbase",
            "--mode=root",
            f"--keyring={machine.KEYRING}",
            '--aptopt=APT::Install-Recommends "false"',
            f"--include={','.join(words('packages-systemd.txt'))}",
            suite,
            str(self.root),
            f"deb [signed-by={machine.KEYRING}] {machine.debian_mirror()} {suite} main",
            # Debian's Python signs its return addresses; the default CPU, max, emulates that 30
            # times slower.
            environment={**os.environ, "QEMU_CPU": "cortex-a57"},
            timeout=_INSTALL_SECONDS,
        )

    def _furnish(self) -> None:
        self._make_directories()
        # The kernel's command line has it.
        (self.root / "etc/hostname").unlink(missing_ok=True)
        # Each host makes one up as it boots: two of the same would be one host to libvirt. Without
        # the file systemd would take it for the first boot, and enable every unit there is.
        (self.root / "etc/machine-id").write_bytes(b"")
        with (self.root / "etc/libvirt/libvirtd.conf").open("a") as file:
            file.write('auth_tcp = "none"\n')
        shutil.rmtree(self.root / "var/cache/apt/archives", ignore_errors=True)
        self._copy_files(_COPIED)
        (self.root / "usr/lib/lab/init").symlink_to("/usr/lib/systemd/systemd")
        for unit, target in _ENABLED:
            wants = self.root / "etc/systemd/system" / target
            wants.mkdir(exist_ok=True)
            (wants / Path(unit).name).symlink_to(unit if unit[0] == "/" else f"../{unit}")
        for path in self.root.glob("etc/ssh/ssh_host_*"):
            path.unlink()
        self._make_keys()
        self._make_kernel()


def _run_foreign_programs() -> None:
    """Have the kernel run arm64 programs with the emulator, until the next boot."""
    if (_BINFMT / _NAME).exists():
        return
    try:
        if not (_BINFMT / "register").exists():
            machine.run("mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT))
        emulator = machine.tool("qemu-aarch64-static")
        (_BINFMT / "register").write_text(f":{_NAME}:M::{_MAGIC}:{emulator}:F")
    except OSError as error:
        raise LabError(
            f"the kernel cannot be told to run arm64 programs: {error.strerror}",
            "load the module binfmt_misc, or use a machine whose kernel has it",
        ) from None
