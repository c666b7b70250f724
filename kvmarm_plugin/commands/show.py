# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm show`: the target that is recorded in a domain."""

from __future__ import annotations

import json

from . import DONE, show_view
from .inputs import read_domain, read_record
from .output import write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    name, uri, as_json, verbose = (
        arguments.domain,
        arguments.connect,
        arguments.json,
        arguments.verbose,
    )
    record, title, _ = read_record(read_domain(name, uri), name)
    if as_json:
        write_text(json.dumps(show_view.as_json(record), indent=1) + "\n")
    else:
        write_text(show_view.as_text(title, record, verbose))
    return DONE
