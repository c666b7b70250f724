# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm show`: the target that is recorded in a domain."""

from __future__ import annotations

import json

from . import DONE, show_view
from .inputs import read_guest, read_source
from .output import write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    name, uri, inactive, as_json, verbose = (
        arguments.domain,
        arguments.connect,
        arguments.inactive,
        arguments.json,
        arguments.verbose,
    )
    guest = read_guest(read_source(name, uri, inactive))
    if as_json:
        document = {
            **show_view.as_json(guest.record),
            "definition": guest.definition,
            "mark": guest.mark,
            "notes": guest.notes,
        }
        write_text(json.dumps(document, indent=1) + "\n")
    else:
        doubts = () if guest.mark is None else (f"the record may not be true: {guest.mark}",)
        write_text(show_view.as_text(guest.name, guest.record, verbose, (*doubts, *guest.notes)))
    return DONE
