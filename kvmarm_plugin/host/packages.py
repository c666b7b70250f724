# SPDX-License-Identifier: LGPL-2.1-or-later
"""How Python modules that kvmarm lacks are installed."""

from __future__ import annotations

import shlex
import sys

from ..basics.untrusted import shown

_SYSTEM = "/usr/bin/python3"  # the one whose modules a distribution packages


def how_to_install(package: str) -> str:
    """What to do where Python has no such module. A virtualenv sees a distribution's only if it was
    made so, which can be done again to one that is there (venv writes its pyvenv.cfg anew).

    Args:
        package: of the distribution.
    """
    if sys.prefix == sys.base_prefix:
        return f"install {package}"
    environment = shlex.quote(shown(sys.prefix, 400))
    return (
        f"install {package}, and have this virtualenv see it, which has to be of {_SYSTEM}:"
        f" {_SYSTEM} -m venv --system-site-packages {environment}"
    )
