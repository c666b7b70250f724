# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domain XML, read so that every other byte of it can stay as the user wrote it.

`parse` checks the document and gives a tree of elements that know where in the text they are;
`edits.Edits` changes the text between such places. lxml would lose the formatting (it keeps no
positions), and the hook has only the standard library; so this is the only reader of domain XML
here.

Domain XML is untrusted input to a root process: no DOCTYPE, and so no entities; nothing is fetched;
and limits to all that takes memory or time. A document within them is read in a second and in 60
MiB.
"""

from __future__ import annotations

from pyexpat import ErrorString, ExpatError, ParserCreate

from ..basics.errors import KvmarmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from xml.parsers.expat import XMLParserType

DEPTH_LIMIT = 256  # elements inside one another; libxml2's own (xmlParserMaxDepth)
SIZE_LIMIT = 10 * 1024 * 1024  # bytes; virsh's own (VSH_MAX_XML_FILE)
# of "<" in all, and of "=": elements and attributes take up to 500 bytes each; large guests have
# some thousands
TAG_LIMIT = 50_000
RUN_LIMIT = 1024 * 1024  # bytes from one "<" to the next: a value takes up to eight times as much
NAMESPACE_LIMIT = (
    200  # characters of a namespace: expat puts it in front of every name that is in it
)
DECLARING_LIMIT = (
    16 * 1024
)  # bytes of a tag that declares one: expat does that to its attributes before it tells anybody

_INDENT_LIMIT = (
    1000  # bytes: without it, many elements on one long line would each look for its start
)

ARCHITECTURES = ("aarch64", "armv7l")  # of guests, in <type arch>

_CONVERT = "convert it: xmllint --encode UTF-8 FILE"
_WHERE_FROM = "give domain XML, for instance from: virsh dumpxml --inactive DOMAIN"


class DomainXMLError(KvmarmError):
    """The document cannot be used as domain XML."""


class Element:
    """One element and its places in the text.

    Attributes:
        name: with its namespace and a space in front if it has one.
        attributes: name → value.
        start: byte offset of its first byte.
        parent: of <domain>, a nameless element that stands for the document. That one has no
            parent, and the attribute "encoding" if the XML declaration has it.
        children: in document order.

    The other places are worked out when they are asked for: most never are.
    """

    __slots__ = ("_closing", "_source", "attributes", "children", "name", "parent", "start")

    def __init__(
        self,
        source: bytes,
        name: str,
        attributes: dict[str, str],
        start: int,
        parent: Element | None,
    ) -> None:
        self._source = source
        # Where expat stood at the element's end: at the "<" of its end tag, or past its
        # empty-element tag.
        self._closing = 0
        self.name = name
        self.attributes = attributes
        self.start = start
        self.parent = parent
        self.children: list[Element] = []

    @property
    def end(self) -> int:
        """Past its last byte."""
        return (
            self._closing if self._is_empty_tag() else self._source.index(b">", self._closing) + 1
        )

    @property
    def body_start(self) -> int:
        """Past the start tag."""
        return _tag_end(self._source, self.start)

    @property
    def body_end(self) -> int:
        """Before the end tag; the same as `body_start` for an empty-element tag."""
        return self._closing

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
        return self._source[self.body_start : self._closing]

    @property
    def content(self) -> str:
        """The text between its tags as XML means it: without references, lines ending in "\\n". It
        has no elements.
        """
        parts: list[str] = []
        parser = ParserCreate(self.encoding)
        parser.buffer_text = True
        parser.CharacterDataHandler = parts.append
        parser.Parse(b"<_>" + self.body + b"</_>", True)
        return "".join(parts)

    @property
    def encoding(self) -> str:
        """The encoding of the document that it is in."""
        element = self
        while element.parent is not None:
            element = element.parent
        return element.attributes.get("encoding", "utf-8")

    @property
    def indent(self) -> bytes:
        """The line break and white space in front of it; nothing if something else stands on its
        line, or more white space than anybody writes.
        """
        line = self._source.rfind(b"\n", max(0, self.start - _INDENT_LIMIT), self.start)
        space = self._source[line : self.start]
        return space if line >= 0 and space.isspace() else b""

    @property
    def declarations(self) -> dict[str, bytes]:
        """The prefixes that its start tag declares, as "xmlns:PREFIX", and each as it is
        written.
        """
        head = self.head
        if b"xmlns:" not in head:
            return {}
        return {
            name: head[start:end]
            for name, (_, start, end) in _attribute_places(head).items()
            if name.startswith("xmlns:")
        }

    def find(self, path: str) -> Element | None:
        """The first element at a path of names, such as "os/type"."""
        element = self
        for name in path.split("/"):
            for child in element.children:
                if child.name == name:
                    element = child
                    break
            else:
                return None
        return element

    def content_of(self, path: str) -> str:
        """The content of the first element at a path, without white space around it; empty where
        there is none.
        """
        element = self.find(path)
        return element.content.strip() if element else ""

    def find_all(self, name: str) -> list[Element]:
        """The children of this name."""
        return [child for child in self.children if child.name == name]

    def tag_with(self, **changes: str | None) -> bytes:
        """Its start tag, or empty-element tag, with these attributes set, or without those that are
        None; the rest as it is written.
        """
        head = self.head
        places = _attribute_places(head)
        close = len(head) - (2 if self._is_empty_tag() else 1)
        edits = []
        for name, value in changes.items():
            space, start, end = places.get(name, (close, close, close))
            # The document may be in any encoding that holds ASCII as it is.
            text = (
                b""
                if value is None
                else f"{name}={quoted(value)}".encode("ascii", "xmlcharrefreplace")
            )
            edits.append((space, end, text and (head[space:start] or b" ") + text))
        parts, position = [], 0
        for start, end, text in sorted(edits, key=lambda edit: edit[0]):
            parts += [head[position:start], text]
            position = end
        return b"".join([*parts, head[position:]])

    def _is_empty_tag(self) -> bool:
        return (
            self._source[self._closing - 2 : self._closing] == b"/>"
            and self.body_start == self._closing
        )


def parse(source: bytes) -> Element:
    """The <domain> element of a document.

    Args:
        source: the whole document. Offsets are in these bytes, so it has to be in UTF-8, ASCII or
            Latin-1: one byte an ASCII character.

    Raises:
        DomainXMLError: not well-formed; a DOCTYPE; not one <domain>; beyond one of the limits
            above; UTF-16.
        MemoryError: this process may not have as much memory as that takes.
    """
    if not source.strip():
        raise DomainXMLError("the document is empty", _WHERE_FROM)
    if source[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in source[:4]:
        raise DomainXMLError("the document is in UTF-16", _CONVERT)
    if not is_markup(source):
        raise DomainXMLError("the document is not XML", _WHERE_FROM)
    root = _read(source, ParserCreate(namespace_separator=" "))
    if root.name != "domain":
        raise DomainXMLError(f"the document is a <{root.name}>, not a <domain>", _WHERE_FROM)
    return root


def is_markup(source: bytes) -> bool:
    """Whether a document starts as XML does, and no JSON or YAML of kvmarm's."""
    return source.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<"


def domain_of(source: bytes) -> bytes:
    """The document of the domain that a <domainsnapshot> holds, as it was when the snapshot was
    made (libvirt's domainsnapshot.rng); any other document as it is.

    Raises DomainXMLError, MemoryError as `parse` does.
    """
    if b"<domainsnapshot" not in source:
        return source
    root = _read(source, ParserCreate(namespace_separator=" "))
    domain = root.find("domain") if root.name == "domainsnapshot" else None
    return source if domain is None else source[: root.start] + domain.text


def parse_fragment(text: str, encoding: str) -> Element:
    """Elements that are kept as text, as the children of one that is made up for them.

    What their prefixes stand for is not known here: names stay as they are written, but those of
    attributes with a prefix, which are " NAME", and those of elements that declare a namespace
    without one, which have it in front as in `parse`.

    Args:
        encoding: of the document that they are to be written into: what `Element.text` is in.

    Raises:
        DomainXMLError: not well-formed, or beyond a limit.
    """
    try:
        # ASCII is the same in all that expat reads; a codec may put something in front of it.
        body = text.encode("ascii" if text.isascii() else encoding, "xmlcharrefreplace")
    except (LookupError, ValueError):
        raise _unreadable() from None
    fragment = _read(b"<_>" + body + b"</_>", ParserCreate(encoding))
    for element in fragment.children:
        for inner in (element, *element.children):
            namespace = inner.attributes.get("xmlns")
            if namespace:
                inner.name = f"{namespace} {inner.name}"
            inner.attributes = {
                f" {name.partition(':')[2]}" if ":" in name else name: value
                for name, value in inner.attributes.items()
                if name.partition(":")[0] != "xmlns"
            }
    return fragment


def _read(source: bytes, parser: XMLParserType) -> Element:
    """The root of a document. Raises DomainXMLError, MemoryError."""
    _check_limits(source)
    try:
        return _build(source, parser)
    except ExpatError as error:
        if error.code == 1:  # XML_ERROR_NO_MEMORY of <expat.h>
            raise MemoryError from None
        raise DomainXMLError(
            f"not well-formed XML: {ErrorString(error.code)}, line {error.lineno}",
            _hint(error.code),
        ) from None
    except (LookupError, ValueError):
        # From the codec that the XML declaration names: Python has none of that name, or it takes
        # several bytes a character.
        raise _unreadable() from None


def _unreadable() -> DomainXMLError:
    return DomainXMLError("the document is in an encoding that cannot be read", _CONVERT)


def in_utf8(text: bytes, encoding: str) -> bytes:
    """A part of a document of some encoding in UTF-8. Raises DomainXMLError."""
    if text.isascii():
        return text
    try:
        return text.decode(encoding).encode()
    except (LookupError, ValueError):
        raise _unreadable() from None


def architecture_of(domain: Element, host_architecture: str = "aarch64") -> str:
    """The architecture of a guest, in libvirt's word; "none" without a <type>.

    Args:
        host_architecture: what one gets whose <type> names none, or an empty one (virXPathString).
    """
    os_type = domain.find("os/type")
    return (os_type.attributes.get("arch") or host_architecture) if os_type else "none"


def emulator_of(domain: Element) -> str:
    """The path of QEMU that it names; empty where it names none, and libvirt takes its own."""
    return domain.content_of("devices/emulator")


def asks_for_host_model(domain: Element, host_architecture: str = "aarch64") -> bool:
    """Whether a domain is one that libvirt cannot start and this project makes concrete:
    host-model, under KVM, for ARM.

    Args:
        host_architecture: what a domain that names no architecture gets.
    """
    cpu = domain.find("cpu")
    return (
        cpu is not None
        and cpu.attributes.get("mode") == "host-model"
        and domain.attributes.get("type") == "kvm"
        and architecture_of(domain, host_architecture) in ARCHITECTURES
    )


def quoted(value: str) -> str:
    """An attribute's value, quoted and escaped."""
    return f"'{escaped(value)}'"


def escaped(text: str) -> str:
    """Text as it is written inside an element or between single quotes."""
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&apos;")):
        text = text.replace(character, entity)
    for character in "\t\n\r":  # a parser would make spaces of them, or another line break
        text = text.replace(character, f"&#{ord(character)};")
    return text


def _check_limits(source: bytes) -> None:
    """Before anything is built, and at the speed of C. Tags and attributes are not counted exactly:
    text may hold a "=", too.
    """
    if len(source) > SIZE_LIMIT:
        excess = f"is larger than {SIZE_LIMIT >> 20} MiB"
    elif source.count(b"<") > TAG_LIMIT:
        excess = f"has more than {TAG_LIMIT} tags"
    elif source.count(b"=") > TAG_LIMIT:
        excess = f"has more than {TAG_LIMIT} attributes"
    else:
        runs = (
            [run for run in source.split(b"<") if len(run) > DECLARING_LIMIT]
            if len(source) > DECLARING_LIMIT
            else []
        )
        if any(len(run.rstrip()) > RUN_LIMIT for run in runs):
            excess = f"has more than {RUN_LIMIT >> 20} MiB in one piece, a tag or a text"
        elif any(map(_declares_at_length, runs)):
            excess = f"has a tag of more than {DECLARING_LIMIT >> 10} KiB that declares a namespace"
        else:
            return
    raise DomainXMLError(f"the document {excess}", "the XML of a domain has a few KiB")


def _declares_at_length(run: bytes) -> bool:
    """Whether what follows a "<" is a tag that declares a namespace, and is long."""
    try:
        end = 0 if run[:1] in (b"!", b"?") else _tag_end(run, 0)
    except ValueError:
        return False  # it does not end, and expat will say so
    return end > DECLARING_LIMIT and b"xmlns" in run[:end]


def _build(source: bytes, parser: XMLParserType) -> Element:
    """The tree of a document, from expat's events. Closures, because this is most of the time that
    resolving takes.
    """
    document = Element(source, "", {}, 0, None)
    path = [document]

    def start(name: str, attributes: dict[str, str]) -> None:
        parent = path[-1]
        element = Element(source, name, attributes, parser.CurrentByteIndex, parent)
        parent.children.append(element)
        if len(path) > DEPTH_LIMIT:
            raise DomainXMLError(
                f"more than {DEPTH_LIMIT} elements inside one another, line"
                f" {parser.CurrentLineNumber}",
                "libvirt refuses that too",
            )
        path.append(element)

    def end(_name: str) -> None:
        path.pop()._closing = parser.CurrentByteIndex

    def doctype(*_declaration: object) -> None:
        line = parser.CurrentLineNumber
        raise DomainXMLError(
            f"a DOCTYPE is refused, line {line}",
            "domain XML has none: remove it, and the entities it declares",
        )

    def namespace(_prefix: str | None, name: str | None) -> None:
        if name and len(name) > NAMESPACE_LIMIT:
            line = parser.CurrentLineNumber
            raise DomainXMLError(
                f"a namespace has more than {NAMESPACE_LIMIT} characters, line {line}",
                "an application's metadata: give it a shorter one",
            )

    def declaration(_version: str, encoding: str | None, _standalone: int) -> None:
        if encoding:
            document.attributes["encoding"] = encoding

    parser.XmlDeclHandler = declaration
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = doctype
    parser.StartNamespaceDeclHandler = namespace
    parser.Parse(source, True)
    return document.children[0]


def _tag_end(source: bytes, start: int) -> int:
    """The offset past the tag that starts here; an attribute's value may hold a ">"."""
    end = source.index(b">", start)
    single, double = source.count(b"'", start, end), source.count(b'"', start, end)
    if (single and double) or (single + double) % 2:
        return _tag_end_slowly(source, start)
    return end + 1


def _tag_end_slowly(source: bytes, start: int) -> int:
    """The same, one attribute after another. Each mark is looked for again only once it has been
    passed: a million attributes take no longer than the tag is long.
    """
    end = single = double = -1
    while True:
        if end < start:
            end = source.index(b">", start)
        if single < start:
            single = source.find(b"'", start, end) % (end + 1)  # none: end
        if double < start:
            double = source.find(b'"', start, end) % (end + 1)
        opening = min(single, double)
        if opening == end:
            return end + 1
        start = source.index(source[opening : opening + 1], opening + 1) + 1


def _attribute_places(head: bytes) -> dict[str, tuple[int, int, int]]:
    """The attributes of a start tag: name → offsets of the white space in front of it, of its name,
    and past its value. A value may look like an attribute.
    """
    places = {}
    position = len(head.split(None, 1)[0].rstrip(b"/>"))
    while (equals := head.find(b"=", position)) >= 0:
        name = head[position:equals].strip()
        start = head.index(name, position)
        value = equals + 1
        while head[value : value + 1].isspace():
            value += 1
        end = head.index(head[value : value + 1], value + 1) + 1
        places[name.decode("latin-1")] = (
            position,
            start,
            end,
        )  # those that are asked for are ASCII
        position = end
    return places


def _hint(code: int) -> str:
    # XML_ERROR_JUNK_AFTER_DOC_ELEMENT of <expat.h>: something follows the root element.
    return (
        "one domain a document: split the file"
        if code == 9
        else "check it with: xmllint --noout FILE"
    )
