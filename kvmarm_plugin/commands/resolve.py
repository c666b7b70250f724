# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm resolve`: domain XML in, concrete domain XML out; or the other way round."""

from __future__ import annotations

import difflib
import sys

from ..basics.untrusted import shown
from ..domain.restoring import restore
from ..domain.xml import parse
from ..host import files
from . import DONE
from .output import write_data, write_text
from .resolving import Choices, resolved

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    name, output, choices = arguments.file, arguments.output, Choices.of(arguments)
    validate, print_diff, restore_intent = (
        arguments.validate,
        arguments.print_diff,
        arguments.restore_intent,
    )
    source = files.read(name)
    result = restore(source, parse(source)) if restore_intent else resolved(source, choices, name)
    if validate:
        from ..host import schema

        schema.validate(result)
    if print_diff:
        write_text(_diff(source, result, name))
    else:
        write_data(output, result)
    return DONE


def _diff(before: bytes, after: bytes, name: str) -> str:
    """What became of a document, for people: as `diff -u` shows it, but with spaces for tabs.
    `name` is of its file.
    """
    old, new = (
        text.decode(errors="replace").removesuffix("\n").split("\n") for text in (before, after)
    )
    changes = difflib.unified_diff(old, new, shown(name, sys.maxsize), "resolved", lineterm="")
    return "".join(f"{line[0]}{line[1:].expandtabs()}\n" for line in changes)
