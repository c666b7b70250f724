# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm probe`: this host's profile."""

from __future__ import annotations

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
    write_data(output, profile_json.dumps(host).encode())
    for problem in host.problems:
        say(f"not measured: {problem}")
    return DONE if host.clusters else ERROR
