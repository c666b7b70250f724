# SPDX-License-Identifier: LGPL-2.1-or-later
"""YAML as policies and pools are written: mappings, lists, and scalars that are text, whole
numbers, on and off, or nothing.

The rest of YAML is refused, with its line. Anchors and aliases make billions of items of a few
bytes; at tags, dates, sexagesimal and other numbers the loaders raise whatever they like; of a key
that comes twice they keep the last; and they recurse as deep as the text does. So the parser's
events are read here, which come one after the other, and no loader is used.
"""

from __future__ import annotations

import re

from .untrusted import decimal, hexadecimal, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .errors import KvmarmError

_DEEPEST = 16  # a pool has seven
# Controls but tabs; what YAML alone takes for the end of a line; and directives, of whose version
# PyYAML's parser makes a number.
_NO_TEXT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]|^%", re.MULTILINE
)
_TRUE, _FALSE = ("yes", "true", "on"), ("no", "false", "off")


class _Refused(Exception):
    """The text is YAML, but not as it is written here."""


def load(
    text: str,
    name: str,
    failure: type[KvmarmError],
    hint: str,
    limit: int,
    lines: dict[Any, int] | None = None,
) -> Any:
    """What a YAML document holds: dict, list, str, int, bool and None; None also for no document.

    Args:
        name: of the file, for messages.
        failure: what to raise, with this hint, where the text is not such YAML.
        limit: bytes of UTF-8 that it may have.
        lines: gets the line of each key of the outermost mapping.
    """
    import yaml  # slow, and most hosts have neither a policy nor a pool

    if len(text.encode(errors="surrogatepass")) > limit:
        raise failure(
            f"{name} is larger than {limit >> 10} KiB", "check that it is the file you mean"
        )
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")  # as editors on Windows write
    strange = _NO_TEXT.search(text)
    if strange:
        line = text.count("\n", 0, strange.start()) + 1
        raise failure(f"{name} is not YAML, line {line}: {strange[0]!a} is not read here", hint)
    reader = _Reader({} if lines is None else lines)
    try:
        # The C parser where libyaml is there: the same events, many times as fast.
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            reader.read(event)
    except _Refused as error:
        raise failure(f"{name} is not YAML, line {reader.line}: {error}", hint) from None
    # a parser's, whichever it is: the one in Python raises ValueError and OverflowError as well
    except Exception as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else reader.line
        problem = getattr(error, "problem", None) or error
        raise failure(f"{name} is not YAML, line {line}: {shown(str(problem))}", hint) from None
    return reader.document


class _Reader:
    """Puts a document together from a parser's events.

    Attributes:
        document: what was read.
        line: of the last event.
    """

    def __init__(self, lines: dict[Any, int]) -> None:
        from yaml import ScalarNode
        from yaml.resolver import Resolver

        resolver: Any = Resolver()
        self.document: Any = None
        self.line = 1
        self._lines = lines
        # As the loaders have it, which are YAML 1.1.
        self._tag: Callable[[str], str] = lambda text: resolver.resolve(
            ScalarNode, text, (True, False)
        )
        # Each mapping or list that has not ended, and the key that waits for its value.
        self._open: list[tuple[Any, list[Any]]] = []
        self._documents = 0

    def read(self, event: Any) -> None:
        """Raises _Refused."""
        kind = type(event).__name__
        self.line = event.start_mark.line + 1
        if kind == "DocumentStartEvent":
            self._documents += 1
            if self._documents > 1 or event.version or event.tags:
                raise _Refused("directives, and more than one document, are not read here")
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            self._open.pop()
        elif kind == "AliasEvent" or getattr(event, "anchor", None) is not None:
            raise _Refused("anchors and aliases are not read here: write the value itself")
        elif kind in ("ScalarEvent", "MappingStartEvent", "SequenceStartEvent"):
            if event.tag is not None:
                raise _Refused(f"tags such as {shown(event.tag, 40)} are not read here")
            value = (
                self._scalar(event)
                if kind == "ScalarEvent"
                else {}
                if kind == "MappingStartEvent"
                else []
            )
            self._put(value)
            if kind != "ScalarEvent":
                self._open.append((value, []))
                if len(self._open) > _DEEPEST:
                    raise _Refused(f"it is more than {_DEEPEST} lists and mappings deep")

    def _put(self, value: Any) -> None:
        """A value where it belongs: first of a pair, second of a pair, or next in a list."""
        if not self._open:
            self.document = value
            return
        container, key = self._open[-1]
        if isinstance(container, list):
            container.append(value)
        elif key:
            container[key.pop()] = value
        elif isinstance(value, (dict, list)):
            raise _Refused("a key has to be a word")
        elif value in container:
            raise _Refused(f"{shown(str(value), 40)} is there twice")
        else:
            key.append(value)
            if len(self._open) == 1:
                self._lines[value] = self.line

    def _scalar(self, event: Any) -> Any:
        """What a scalar means."""
        text: str = event.value
        if not event.implicit[0]:
            return text  # quoted, or a block
        what = self._tag(text).rpartition(":")[2]
        if what == "str":
            return text
        if what == "null":
            return None
        if what == "bool" and text.lower() in (*_TRUE, *_FALSE):
            return text.lower() in _TRUE
        if what == "int":
            try:
                if text[:2] == "0x":
                    return hexadecimal(text)
                digits = text[text[0] == "-" :]
                if digits == "0" or digits[:1] != "0":
                    return decimal(digits, (1 << 64) - 1) * (1 if digits == text else -1)
            except ValueError:
                pass
        raise _Refused(
            f"{shown(text, 40)} is a number, a date or another thing that is not read here: quote"
            " it if it is text"
        )
