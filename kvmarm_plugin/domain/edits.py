# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes to domain XML that leave the rest of it as it is written."""

from __future__ import annotations

from .xml import Element


class Edits:
    """Changes to a text, collected in any order and then applied at once.

    Args:
        source: the text. Edits must not overlap.
    """

    def __init__(self, source: bytes) -> None:
        self._source = source
        self._edits: list[tuple[int, int, bytes]] = []

    def replace(self, start: int, end: int, text: bytes) -> None:
        """Put `text` where start…end is."""
        self._edits.append((start, end, text))

    def remove(self, element: Element) -> None:
        """Take an element out, with the line break and white space in front of it."""
        self.replace(element.start - len(element.indent), element.end, b"")

    def apply(self) -> bytes:
        """The changed text."""
        parts, position = [], 0
        for start, end, text in sorted(self._edits, key=lambda edit: edit[:2]):
            parts += [self._source[position:start], text]
            position = end
        return b"".join([*parts, self._source[position:]])
