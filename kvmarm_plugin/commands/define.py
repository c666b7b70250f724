# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm define`: resolve, then what `virsh define` does."""

from __future__ import annotations

from ..basics.untrusted import lines, shown
from . import DONE
from .output import write_text
from .resolving import Choices, resolved_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    name, uri, validate, choices = (
        arguments.file,
        arguments.connect,
        arguments.validate,
        Choices.of(arguments),
    )
    from ..host.libvirtd import Connection

    result, summary = resolved_for(uri, name, choices)
    with Connection(uri) as connection:
        domain = connection.define(result.decode(), validate)
    write_text(lines([f"Domain '{shown(domain)}' defined from {name}{summary}"]))
    return DONE
