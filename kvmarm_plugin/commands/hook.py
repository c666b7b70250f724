# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm hook install` and `kvmarm hook uninstall`: put libvirt's hook in place, or take it
away.
"""

from __future__ import annotations

import os

from ..basics.errors import KvmarmError
from ..basics.untrusted import lines
from ..hook import install
from . import DONE
from .inputs import read_policy
from .output import write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    action = arguments.action
    if os.geteuid() != 0:
        raise KvmarmError(
            f"hook {action} is root's to do: libvirt runs the hook as root", "run it as root"
        )
    if action == "install":
        read_policy(None)  # a file that the hook would read otherwise is refused before it matters
    for line in install.install() if action == "install" else install.uninstall():
        write_text(lines([line]))
    if action == "install":
        _note_host_model()
    return DONE


def _note_host_model() -> None:
    """Leave word for the hook if libvirt itself offers host-model. It does so on no ARM host so
    far; where it cannot be asked, the hook goes on as before.
    """
    from ..host.libvirt_host_model import note_host_model
    from ..host.libvirtd import Connection, LibvirtError

    try:
        with Connection("qemu:///system") as connection:
            version = note_host_model(connection)
    except LibvirtError:
        return
    if version:
        write_text(
            f"libvirt {version} offers host-model itself: the hook lets guests pass that ask it\n"
        )
