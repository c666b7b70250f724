# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm baseline`: the pool that hosts form, what it costs, and what would level the rest."""

from __future__ import annotations

import json

from ..fleet.baseline import as_json, as_text, baseline
from ..fleet.pool import dumps
from . import DONE, INCOMPATIBLE
from .inputs import read_profiles
from .output import write_data, write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    profiles, name, output = arguments.profiles, arguments.name, arguments.output
    in_json, explain = arguments.json, arguments.explain
    result = baseline(read_profiles(profiles), name)
    if result.pool and output:
        write_data(output, dumps(result.pool).encode())
    write_text(
        json.dumps(as_json(result), indent=1) + "\n" if in_json else as_text(result, explain)
    )
    return DONE if result.pool else INCOMPATIBLE
