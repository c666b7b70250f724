# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one exception that is meant to be read by a person.

Whatever goes wrong for a reason that the user can act on is raised as `KvmarmError` (or a subclass that adds facts) and printed by
the doors as one line and a hint. Any other exception is a bug and shows its traceback.
"""

from __future__ import annotations


class KvmarmError(Exception):
    """A failure in one line, and what to do next.

    Args:
        message: what happened and where, one line, no trailing full stop.
        hint: what to try next; empty where the message says it all.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        # One line, whatever a file name or a foreign error text brings along.
        text = " ".join(self.message.split())
        return f"{text} (hint: {self.hint})" if self.hint else text
