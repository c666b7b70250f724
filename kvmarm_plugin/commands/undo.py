# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm undo`: put the stored definition back that a domain had before kvmarm changed it, and
leave the domain alone from then on, unless that definition has a record.
"""

from __future__ import annotations

import time

from ..basics.errors import KvmarmError
from ..basics.untrusted import domain_word, lines, shown
from ..domain import record
from ..domain.xml import parse
from ..host import left_alone, previous
from ..host.libvirtd import Connection
from . import DONE
from .inputs import check_is_here
from .output import say, write_text
from .resolving import why_it_will_not_start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    name, uri = arguments.domain, arguments.connect
    check_is_here(uri, "undo")
    with Connection(uri) as connection:
        domain = connection.domain(name)
        if not domain.is_persistent():
            raise KvmarmError(
                f"{domain.name} is transient, and has no stored definition",
                "it is gone when it is shut off",
            )
        # First, so that nobody resolves it again meanwhile.
        was_left, before = left_alone.has(domain.uuid), domain.xml(live=False, secrets=False)
        left_alone.add(domain.uuid)
        try:
            kept = previous.undo(connection, domain)
        except BaseException:  # an interrupt, too, of which nobody knows where it came
            if not was_left and domain.xml(live=False, secrets=False) == before:
                left_alone.discard(domain.uuid)
            raise
        now = parse(domain.xml(live=False, secrets=False).encode())
        if record.ours(now):  # as after undoing a forget: it is kvmarm's again
            left_alone.discard(domain.uuid)
        if domain.is_active():
            say(f"{shown(domain.name)} runs, and has it from its next start on")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(kept.when))
    write_text(
        lines(
            [
                f"Domain '{shown(domain.name)}' is defined as it was until {when}, without what was"
                f" edited since; its other definition is kept in {kept.path}"
            ]
        )
    )
    why = why_it_will_not_start(now, domain_word(domain.name, domain.uuid))
    if why:
        say(f"{shown(domain.name)}: {why}")
    return DONE
