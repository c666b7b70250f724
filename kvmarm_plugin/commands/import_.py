# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm import`: a profile from what another program dumped of a CPU."""

from __future__ import annotations

from ..host import dumps, files
from ..model import profile_json
from . import DONE
from .output import say, write_data

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    file, output, name = arguments.file, arguments.output, arguments.name
    form, kernel = arguments.format or "", arguments.kernel
    host = dumps.read(files.read_text(file), file, form, name, kernel)
    write_data(output, profile_json.dumps(host).encode())
    say(f"{host.name}: {host.origin.partition(': ')[2]}; not known: {', '.join(host.unknown)}")
    return DONE
