# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm create`: resolve, then what `virsh create` does."""

from __future__ import annotations

from ..basics.untrusted import lines, shown
from ..host.libvirtd import Connection
from . import DONE
from .output import write_text
from .resolving import Choices, resolved_for, say_unrecorded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    name, uri, choices = arguments.file, arguments.connect, Choices.of(arguments)
    validate, paused = arguments.validate, arguments.paused
    result, summary = resolved_for(uri, name, choices, "create")
    with Connection(uri) as connection:
        domain = connection.create(result.decode(), validate, paused)
    write_text(lines([f"Domain '{shown(domain)}' created from {name}{summary}"]))
    say_unrecorded(result, domain)
    return DONE
