# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shape of a document from outside: what each place of it may hold, in a form that reads like
its JSON schema.

A shape is a function of a value and of its place (`clusters[0].midr`). It returns what the program
keeps of the value, and raises `Misshapen` for anything else: another type, a number or a list
without bound, text that is not one line. So what has been read needs no further check, wherever it
is used. A profile is JSON and a pool is YAML; both are read with these.
"""

from __future__ import annotations

import re

from .untrusted import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    Shape = Callable[[Any, str], Any]

_SHOWN = 40  # characters of what is wrong, in a message


class Misshapen(ValueError):
    """A value that its place does not take; the text names both, in one line."""


class Incomplete(Misshapen):
    """An object that lacks a member."""


def wrong(place: str, value: object, takes: str) -> Misshapen:
    """What to raise for a value that its place does not take."""
    return Misshapen(f"{place or 'it'} cannot be {brief(value)}: it takes {takes}")


def brief(value: object) -> str:
    """A value as part of a message: of lists and objects only what they are, since they may be long
    and of any depth.
    """
    if isinstance(value, str):
        return f"'{shown(value, _SHOWN)}'"
    if value is None or (isinstance(value, int) and value.bit_length() <= 64):
        return repr(value)
    return {list: "a list", dict: "an object", int: "so long a number"}.get(
        type(value), f"a {type(value).__name__}"
    )


def within(place: str, key: object) -> str:
    """The place of a member in the object at a place."""
    name = shown(key, _SHOWN) if isinstance(key, str) else brief(key)
    return f"{place}.{name}" if place else name


def text(most: int, pattern: str = "", takes: str = "") -> Shape:
    """One line of characters that print.

    Args:
        most: how many of them.
        pattern: that the whole text matches.
        takes: for messages: what the pattern says.
    """
    matches = re.compile(pattern, re.DOTALL).fullmatch if pattern else None
    expected = f"{takes or 'one line of text'}, of {most} characters at most"

    def read(value: Any, place: str) -> str:
        if (
            type(value) is not str
            or len(value) > most
            or not value.isprintable()
            or (matches and not matches(value))
        ):
            raise wrong(place, value, expected)
        return value

    return read


def whole(least: int, most: int) -> Shape:
    """A whole number. True and False are none, although Python has it so."""

    def read(value: Any, place: str) -> int:
        if type(value) is not int or not least <= value <= most:
            raise wrong(place, value, f"a whole number from {least} to {most}")
        return value

    return read


def flag(value: Any, place: str) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise wrong(place, value, "true or false")
    return value


def hexadecimal(bits: int) -> Shape:
    """A number of so many bits as hexadecimal text: "0x" and lower case digits."""
    matches = re.compile(f"0x[0-9a-f]{{1,{-(-bits // 4)}}}").fullmatch

    def read(value: Any, place: str) -> int:
        if type(value) is not str or not matches(value):
            raise wrong(place, value, f"a hexadecimal number of {bits} bits, such as 0x1f")
        return int(value, 16)

    return read


def maybe(shape: Shape) -> Shape:
    """What a shape takes, or null."""
    return lambda value, place: None if value is None else shape(value, place)


def either(*shapes: Shape) -> Shape:
    """What the first of these shapes takes that takes it."""

    def read(value: Any, place: str) -> Any:
        for shape in shapes[:-1]:
            try:
                return shape(value, place)
            except Misshapen:
                pass
        return shapes[-1](value, place)

    return read


def items(shape: Shape, most: int, unique: bool = True) -> Shape:
    """A list of at most so many; without a repetition unless told otherwise."""

    def read(value: Any, place: str) -> tuple[Any, ...]:
        if type(value) is not list or len(value) > most:
            raise wrong(place, value, f"a list of {most} at most")
        found = tuple(shape(item, f"{place}[{index}]") for index, item in enumerate(value))
        if unique and len(set(found)) < len(found):
            raise Misshapen(f"{place} has an item twice")
        return found

    return read


def table(key: Shape, value: Shape, most: int) -> Shape:
    """An object of at most so many members, whose names are not known beforehand."""

    def read(document: Any, place: str) -> dict[str, Any]:
        if type(document) is not dict or len(document) > most:
            raise wrong(place, document, f"an object of {most} members at most")
        found = {}
        for name, item in document.items():
            inside = within(place, name)
            found[key(name, inside)] = value(item, inside)
        return found

    return read


def members(shapes: dict[str, Shape]) -> Shape:
    """An object of just these members."""

    def read(document: Any, place: str) -> dict[str, Any]:
        if type(document) is not dict:
            raise wrong(place, document, "an object")
        for name in shapes:
            if name not in document:
                raise Incomplete(f"it has no {name!r}" + (f" in {place}" if place else ""))
        for name in document:
            if name not in shapes:
                raise Misshapen(
                    f"{within(place, name)} is none of its members, which are {', '.join(shapes)}"
                )
        return {name: shape(document[name], within(place, name)) for name, shape in shapes.items()}

    return read
