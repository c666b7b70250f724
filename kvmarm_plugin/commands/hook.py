# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm hook install` and `kvmarm hook uninstall`: put libvirt's hook in place, or take it
away.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from ..basics.errors import KvmarmError
from ..basics.untrusted import lines
from ..diagnosis.host import RENEWAL, START_RENEWAL, SYSTEMD, UNITS
from ..hook import install, whose
from ..host import marks
from ..host.libvirt_host_model import note_host_model
from ..host.libvirtd import Connection, LibvirtError
from . import DONE
from .inputs import read_policy
from .output import write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

# Where an installation for one Python, or the source tree, has them.
_ELSEWHERE = (
    f"{sysconfig.get_path('data')}/lib/systemd/system",
    str(Path(__file__).parents[2] / "systemd"),
)


def run(arguments: Namespace) -> int:
    action = arguments.action
    notes = whose.check() if action == "install" else []
    if os.geteuid() != 0:
        raise KvmarmError(
            f"hook {action} is root's to do: libvirt runs the hook as root", "run it as root"
        )
    if action == "uninstall":
        write_text(lines(install.uninstall() + install.remove_directories()))
        return DONE
    read_policy(None)  # a file that the hook would read otherwise is refused before it matters
    for path in install.DIRECTORIES:
        install.check_directory(path)
    write_text(lines(install.install() + notes))
    write_text(lines(_how_to_renew()))
    _note_host_model()
    for line in install.make_directories():
        write_text(lines([line]))
    return DONE


def _how_to_renew() -> list[str]:
    """Where nobody listens for the hook's ring: how to have records renewed."""
    try:
        if marks.is_heard():
            return []
    except OSError:
        return []
    what, enable = "nothing renews records here", f"systemctl enable --now {RENEWAL}"
    if not os.path.isdir(SYSTEMD):
        return [f"{what}; {START_RENEWAL}"]
    if os.path.realpath(f"{UNITS[0]}/{RENEWAL}") == os.devnull:
        return []  # masked, by somebody who does not want it
    if any(os.path.exists(f"{directory}/{RENEWAL}") for directory in UNITS):
        return [f"{what}; have it done with: {enable}"]
    units = next(
        (directory for directory in _ELSEWHERE if os.path.exists(f"{directory}/{RENEWAL}")),
        "systemd/ of kvmarm's sources",
    )
    return [
        f"{what}; copy the units in {units} to {UNITS[0]}, see that ExecStart= finds kvmarm, and"
        f" then: {enable}"
    ]


def _note_host_model() -> None:
    """Leave word for the hook if libvirt itself offers host-model. It does so on no ARM host so
    far; where it cannot be asked, the hook goes on as before.
    """
    try:
        with Connection("qemu:///system") as connection:
            version = note_host_model(connection)
    except LibvirtError:
        return
    if version:
        write_text(
            f"libvirt {version} offers host-model itself: the hook lets guests pass that ask it\n"
        )
