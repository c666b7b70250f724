# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text from outside: numbers that have a width before they are numbers, and how foreign text is
shown.

A peer's XML and record, profiles, pools, policies, names, and what other programs say: none of it
is trusted. Python's int() takes signs, underscores, other scripts' digits and any length, and no
signal interrupts it at work on a long one; so every number that comes as text is read here. Text
that is printed or logged goes through `shown`, so that it can neither command a terminal nor forge
a line: errors and findings when they are made, the rest where a view puts it into a line (`lines`).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_DECIMAL = frozenset("0123456789")
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")
_SHOWN = 60  # characters of what is wrong, in a message
_LINE = 4000  # characters of a line; ten times the longest that honest hosts make


def decimal(text: str, most: int) -> int:
    """A number in decimal digits, from 0 to `most`.

    Raises:
        ValueError: anything else: a sign, a space, an underscore, digits that are not ASCII, a
            larger number, or more digits than the largest has (leading zeros count).
    """
    if not text or len(text) > len(str(most)) or not _DECIMAL.issuperset(text) or int(text) > most:
        raise ValueError(f"not a number up to {most}: {shown(text, _SHOWN)!r}")
    return int(text)


def libvirt_number(text: str, most: int) -> int:
    """A number from 0 to `most` as libvirt reads it in domain XML: strtoul in base ten takes white
    space and a "+" in front, and any number of leading zeros (virStrToLong_uip). White space behind
    is taken, too; libvirt refuses it.

    Raises:
        ValueError: anything else.
    """
    digits = text.strip(" \t\n\r")
    digits = digits[1:] if digits[:1] == "+" else digits
    try:
        return decimal(digits[:-1].lstrip("0") + digits[-1:], most)
    except ValueError:
        raise ValueError(f"not a number up to {most}: {shown(text, _SHOWN)!r}") from None


def hexadecimal(text: str, bits: int = 64) -> int:
    """A number in hexadecimal digits, "0x" in front or not, of at most so many bits.

    Raises:
        ValueError: anything else, as for `decimal`.
    """
    digits = text[2:] if text[:2] == "0x" else text
    if (
        not digits
        or len(digits) > -(-bits // 4)
        or not _HEXADECIMAL.issuperset(digits)
        or int(digits, 16) >> bits
    ):
        raise ValueError(f"not a hexadecimal number of {bits} bits: {shown(text, _SHOWN)!r}")
    return int(digits, 16)


def shown(text: str, limit: int = 200) -> str:
    """Foreign text as part of one line: what does not print (controls, line breaks, what changes
    the direction of writing) is escaped as Python does, and of the result there are at most `limit`
    characters. What is already shown stays as it is.

    >>> shown("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    text = text[: limit + 1]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def lines(texts: Iterable[str]) -> str:
    """Texts for people, a line each, whatever is in them. Long ones lose their end: where it
    matters, bound what is foreign in front of it with `shown`.
    """
    return "".join(f"{shown(text, _LINE)}\n" for text in texts)


def some(names: Sequence[str], limit: int = 4) -> str:
    """Names in a line, the first of many: "alpha, beta and 3 more"."""
    said = ", ".join(map(shown, names[:limit]))
    return f"{said} and {len(names) - limit} more" if len(names) > limit else said


def quoted(name: str) -> str:
    """A name as one word of a shell, for people who paste it (not shlex.quote:
    hook/__init__.py).
    """
    plain = name.replace("-", "").replace("_", "").replace(".", "").isalnum() and name[0] != "-"
    return name if plain else "'" + name.replace("'", "'\\''") + "'"


def domain_word(name: str, uuid: str) -> str:
    """What to call a domain in a command, for people who paste it: its name, or what is easier to
    paste.

    Args:
        uuid: counts if it is a plain word; empty where it is not known.
    """
    word = quoted(name)
    return uuid if quoted(uuid) == uuid and (word != name or len(word) > _SHOWN) else word
