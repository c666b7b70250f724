# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm probe`: this host's profile."""

from __future__ import annotations

import os
from contextlib import suppress

from ..host import known
from ..model import profile_json
from . import DONE, ERROR
from .inputs import probe_here
from .output import say, write_data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    output, qemu, verbose = arguments.output, arguments.qemu, arguments.verbose
    host = probe_here(qemu, verbose)
    if output and os.path.abspath(os.path.dirname(output)) == str(known.HOSTS):
        with suppress(OSError):  # writing into it says why not
            os.makedirs(known.HOSTS, 0o755, exist_ok=True)
    write_data(output, profile_json.dumps(host).encode())
    for problem in host.problems:
        say(f"not measured: {problem}")
    return DONE if host.clusters else ERROR
