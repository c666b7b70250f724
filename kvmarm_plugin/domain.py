# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domain XML, read so that every other byte of it can stay as the user wrote it.

`parse` checks the document and gives a tree of elements that know where in the text they are. `Edits` changes the text between such places. lxml
would lose the formatting (it keeps no positions), and the hook has only the standard library; so this is the only reader of domain XML here.

Domain XML is untrusted input to a root process: no DOCTYPE, and so no entities; nothing is fetched; a size limit.
"""

from __future__ import annotations

from pyexpat import ErrorString, ExpatError, ParserCreate  # xml.parsers.expat, without the package around it

from .errors import KvmarmError

SIZE_LIMIT = 10 * 1024 * 1024  # bytes; virsh's own (VSH_MAX_XML_FILE)

# Nothing in there is ours, and it is most of a domain: passed over without a call per element.
_SKIPPED = "devices"


class DomainXMLError(KvmarmError):
    """The document cannot be used as domain XML."""


class Element:
    """One element and its places in the text.

    Attributes:
        name: with its namespace and a space in front if it has one.
        attributes: name → value.
        start, end: byte offsets of its first byte and past its last one.
        children: in document order; empty for <devices>.
    """

    __slots__ = ("_source", "_tail", "attributes", "children", "end", "name", "parent", "start")

    def __init__(self, source: bytes, name: str, attributes: dict[str, str], start: int, parent: Element | None) -> None:
        self._source = source
        self._tail = 0
        self.name = name
        self.attributes = attributes
        self.start = start
        self.end = 0
        self.parent = parent
        self.children: list[Element] = []

    @property
    def body_start(self) -> int:
        """Past the start tag."""
        return _tag_end(self._source, self.start)

    @property
    def body_end(self) -> int:
        """Before the end tag; the same as `body_start` for an empty-element tag."""
        return self._tail

    @property
    def head(self) -> bytes:
        """The start tag, or the empty-element tag, as it is written."""
        return self._source[self.start : self.body_start]

    @property
    def text(self) -> bytes:
        """The whole element as it is written."""
        return self._source[self.start : self.end]

    @property
    def body(self) -> bytes:
        """What is written between its tags."""
        return self._source[self.body_start : self.body_end]

    @property
    def indent(self) -> bytes:
        """The line break and white space in front of it; nothing if something else stands on its line."""
        line = self._source.rfind(b"\n", 0, self.start)
        space = self._source[line : self.start]
        return space if line >= 0 and not space.strip() else b""

    def find(self, path: str) -> Element | None:
        """The first element at a path of names, such as "os/type"."""
        element: Element | None = self
        for name in path.split("/"):
            element = next((child for child in element.children if child.name == name), None) if element else None
        return element

    def find_all(self, name: str) -> list[Element]:
        """The children of this name."""
        return [child for child in self.children if child.name == name]


def parse(source: bytes) -> Element:
    """The <domain> element of a document.

    Args:
        source: the whole document. Offsets are in these bytes, so it has to be in UTF-8, ASCII or Latin-1: one byte an ASCII character.

    Raises:
        DomainXMLError: not well-formed; a DOCTYPE; not one <domain>; larger than SIZE_LIMIT; UTF-16.
    """
    if len(source) > SIZE_LIMIT:
        raise DomainXMLError(
            f"the document is larger than {SIZE_LIMIT >> 20} MiB", "domain XML has a few KiB: is this the right file?"
        )
    if not source.strip():
        raise DomainXMLError("the document is empty", "give domain XML, for instance from: virsh dumpxml --inactive DOMAIN")
    if source[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in source[:4]:
        raise DomainXMLError("the document is in UTF-16", "convert it: iconv -f UTF-16 -t UTF-8")
    builder = _Builder(source)
    try:
        builder.parser.Parse(source, True)
    except ExpatError as error:
        raise DomainXMLError(f"not well-formed XML: {ErrorString(error.code)}, line {error.lineno}", _hint(error.code)) from None
    root = builder.root
    assert root is not None  # expat has seen one element, or it would have failed
    if root.name != "domain":
        raise DomainXMLError(
            f"the document is a <{root.name}>, not a <domain>", "give domain XML, for instance from: virsh dumpxml"
        )
    return root


def asks_for_host_model(domain: Element, host_architecture: str = "aarch64") -> bool:
    """Whether a domain is one that libvirt cannot start and this project makes concrete: host-model, under KVM, for ARM.

    Args:
        host_architecture: what a domain that names no architecture gets.
    """
    cpu, os_type = domain.find("cpu"), domain.find("os/type")
    return (
        cpu is not None
        and cpu.attributes.get("mode") == "host-model"
        and domain.attributes.get("type") == "kvm"
        and os_type is not None
        and os_type.attributes.get("arch", host_architecture) in ("aarch64", "armv7l")
    )


class _Builder:
    """Makes the tree from expat's events."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.root: Element | None = None
        self.current: Element | None = None
        self.parser = ParserCreate(namespace_separator=" ")
        self.parser.StartDoctypeDeclHandler = self._doctype
        self._watch_all()

    def _watch_all(self) -> None:
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        parent = self.current
        element = Element(self.source, name, attributes, self.parser.CurrentByteIndex, parent)
        if parent is None:
            self.root = element
        else:
            parent.children.append(element)
            if name == _SKIPPED and parent is self.root:
                self.parser.StartElementHandler = None
                self.parser.EndElementHandler = self._end_skipped
        self.current = element

    def _end(self, name: str) -> None:
        element = self.current
        if element is None or element.name != name:
            raise DomainXMLError(f"a <{_SKIPPED}> inside <{_SKIPPED}>, line {self.parser.CurrentLineNumber}", "libvirt knows none")
        # At an end tag expat's position is its "<"; at the end of an empty-element tag it is past the tag.
        position, head_end = self.parser.CurrentByteIndex, element.body_start
        empty = self.source[head_end - 2 : head_end] == b"/>"
        element._tail = head_end if empty else position
        element.end = head_end if empty else self.source.index(b">", position) + 1
        self.current = element.parent

    def _end_skipped(self, name: str) -> None:
        if name == _SKIPPED:
            self._watch_all()
            self._end(name)

    def _doctype(self, *_declaration: object) -> None:
        line = self.parser.CurrentLineNumber
        raise DomainXMLError(f"a DOCTYPE is refused, line {line}", "domain XML has none: remove it, and the entities it declares")


def _tag_end(source: bytes, start: int) -> int:
    """The offset past the tag that starts here; an attribute's value may hold a ">"."""
    while True:
        end = source.index(b">", start)
        quotes = [place for place in (source.find(b'"', start, end), source.find(b"'", start, end)) if place >= 0]
        if not quotes:
            return end + 1
        opening = min(quotes)
        start = source.index(source[opening : opening + 1], opening + 1) + 1


def _hint(code: int) -> str:
    # XML_ERROR_JUNK_AFTER_DOC_ELEMENT of <expat.h>: something follows the root element.
    return "one domain a document: split the file" if code == 9 else "check it with: xmllint --noout FILE"


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
