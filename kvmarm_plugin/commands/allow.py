# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm allow`: let a guest pass the hook once, whatever speaks against it."""

from __future__ import annotations

from ..basics.untrusted import lines, shown
from ..host import marks
from . import DONE
from .output import write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    guest: str = arguments.guest
    marks.allow(guest)
    write_text(
        lines(
            [
                f"{shown(guest)} may start or arrive here once within"
                f" {marks.ALLOWANCE_SECONDS} seconds"
            ]
        )
    )
    return DONE
