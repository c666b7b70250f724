# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose this installation of kvmarm is: libvirt's hook, once in place, needs it whenever a guest
with a record arrives, and nobody would think of that who upgrades or removes it.
"""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path

from ..basics.errors import KvmarmError
from ..basics.untrusted import shown

_PACKAGE = Path(__file__).parents[1]


def check() -> list[str]:
    """What to know of this installation before libvirt's hook runs it, a line each.

    Raises:
        KvmarmError: it is pipx's or one user's, and no place for what libvirt runs.
    """
    environment = sys.prefix if sys.prefix != sys.base_prefix else ""
    if environment and not _is_in(environment):
        environment = ""  # the source tree, run by the Python of a virtualenv
    if environment and os.path.exists(f"{environment}/pipx_metadata.json"):
        whose = f"pipx's, in {environment}"
    elif environment and os.stat(environment).st_uid != 0:
        whose = f"a user's, in the virtualenv {environment}"
    elif not environment and _is_in(site.getuserbase()):
        whose = f"a user's, in {_PACKAGE.parent}"
    elif environment:
        return [
            f"it runs kvmarm out of the virtualenv {shown(environment, 4096)}: before that goes,"
            " type: kvmarm hook uninstall"
        ]
    else:
        return []
    raise KvmarmError(
        f"this kvmarm is {shown(whose, 4096)}: libvirt's hook cannot rely on it",
        "install it as a package of your distribution's kind, which `make deb` and `make rpm` build"
        " in its sources",
    )


def _is_in(directory: str) -> bool:
    return str(_PACKAGE).startswith(f"{directory.rstrip('/')}/")
