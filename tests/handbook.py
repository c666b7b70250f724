# SPDX-License-Identifier: LGPL-2.1-or-later
"""The handbook's pages (docs/) as the tests read them.

A block that is fenced as `console` is run: lines that begin with "$ " are commands, with "> " their
continuation, and what follows is what they say. "…" in a line stands for any text, and a line of it
alone for any lines. `console lab` is run on an emulated host. All other blocks are only read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

_FENCED = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        kind: "console", "sh", "text" and the like.
        where: what follows it: "lab" or nothing.
    """

    kind: str
    where: str
    text: str


class Step(NamedTuple):
    """A command, and what the page says that it says: nothing if the page does not show it."""

    command: str
    shown: str

    def matches(self, output: str) -> bool:
        """Whether a command that ended said what is shown."""
        return not self.shown or bool(re.fullmatch(_pattern(self.shown), _plain(output)))


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(*found) for found in _FENCED.findall(text)]


def steps(page: Path, where: str = "") -> list[Step]:
    """What is to be run of a page, in its order."""
    return [
        step
        for block in blocks(page.read_text(encoding="utf-8"))
        if (block.kind, block.where) == ("console", where)
        for step in _steps(block.text)
    ]


def _steps(text: str) -> list[Step]:
    found: list[tuple[list[str], list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif line.startswith("> ") and not found[-1][1]:
            found[-1][0].append(line[2:])
        else:
            found[-1][1].append(line)
    return [Step("\n".join(command), "\n".join(shown)) for command, shown in found]


def _pattern(shown: str) -> str:
    lines = (
        r"(?:.*\n)*?" if line == "…" else re.escape(line).replace("…", ".*") + r"\n"
        for line in _plain(shown).splitlines()
    )
    return "".join(lines)


def _plain(text: str) -> str:
    """Without what nobody sees: white space at the ends of lines, and empty lines at the end."""
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip("\n") + "\n"
