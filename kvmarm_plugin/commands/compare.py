# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm compare`: between which hosts guests can migrate, and why not between the others."""

from __future__ import annotations

import json

from ..fleet import compare_view
from ..fleet.compare import compare
from ..fleet.graphviz import svg
from ..host import files
from . import DONE, INCOMPATIBLE, NOT_KNOWN
from .inputs import read_policy, read_profiles
from .output import write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    profiles, policy = arguments.profiles, arguments.policy
    as_json, as_dot, picture = arguments.json, arguments.dot, arguments.svg
    if len(profiles) < 2:
        arguments.refuse("compare takes two profiles or more")
    comparison = compare(read_profiles(profiles), read_policy(policy))
    if as_json:
        write_text(json.dumps(compare_view.as_json(comparison), indent=1) + "\n")
    elif as_dot:
        write_text(compare_view.as_dot(comparison))
    elif picture:
        files.write(picture, svg(compare_view.as_dot(comparison)))
    else:
        write_text(compare_view.as_text(comparison))
    if comparison.answer is None:
        return NOT_KNOWN
    return DONE if comparison.answer else INCOMPATIBLE
