# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one exception that is meant to be read by a person.

Whatever goes wrong for a reason that the user can act on is raised as `KvmarmError` (or a subclass
that adds facts) and printed by the doors as one line and a hint. Any other exception is a bug and
shows its traceback.
"""

from __future__ import annotations

from .untrusted import shown

# Characters; four findings in short take 1,700.
_MESSAGE = 2500
_HINT = 1000


class KvmarmError(Exception):
    """A failure in one line, and what to do next: both are fit to be shown, whatever a file name or
    a foreign error brings along.

    Args:
        message: what happened and where, one line, no trailing full stop.
        hint: what to try next; empty where the message says it all.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = _one_line(message, _MESSAGE)
        self.hint = _one_line(hint, _HINT)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


def _one_line(text: str, limit: int) -> str:
    return shown(" ".join(text.split()), limit)
