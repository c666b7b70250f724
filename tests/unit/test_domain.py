# SPDX-License-Identifier: LGPL-2.1-or-later
"""The reader of domain XML: it knows where everything stands, refuses what it must, and never fails
in another way.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from xml.parsers.expat import ExpatError

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain import xml as domain
from kvmarm_plugin.domain.edits import Edits
from kvmarm_plugin.domain.restoring import restore
from kvmarm_plugin.domain.xml import (
    RUN_LIMIT,
    SIZE_LIMIT,
    TAG_LIMIT,
    DomainXMLError,
    Element,
    asks_for_host_model,
    parse,
)
from tests.corpus import TEMPLATES, one_line, resolver, template

from .domains import domains


def found(source: bytes, path: str) -> Element:
    element = parse(source).find(path)
    assert element is not None
    return element


# -- places --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "head", "body"),
    [
        (b"<x/>", b"<x/>", b""),
        (b"<x />", b"<x />", b""),
        (b"<x></x>", b"<x>", b""),
        (b"<x\n></x\t>", b"<x\n>", b""),
        (b"<x> <y/></x>", b"<x>", b" <y/>"),
        (b"<x><y/></x>", b"<x>", b"<y/>"),
        (b"<x><y></y></x>", b"<x>", b"<y></y>"),
        (b"<x><x/></x>", b"<x>", b"<x/>"),
        (b"<x><x>1</x></x>", b"<x>", b"<x>1</x>"),
        (b"<x a='>'/>", b"<x a='>'/>", b""),
        (b"<x a='/>'>t</x>", b"<x a='/>'>", b"t"),
        (b"<x a='/>'></x>", b"<x a='/>'>", b""),
        (b"<x a='\">' b=\">'\">t</x>", b"<x a='\">' b=\">'\">", b"t"),
        (b"<x a=\"it's\" b='>'>t</x>", b"<x a=\"it's\" b='>'>", b"t"),
        (b"<x\n  a = '1'\n  b='2'\n/>", b"<x\n  a = '1'\n  b='2'\n/>", b""),
        (b"<x><!-- </x> > --></x>", b"<x>", b"<!-- </x> > -->"),
        (b"<x><![CDATA[</x><x a='>'>]]></x>", b"<x>", b"<![CDATA[</x><x a='>'>]]>"),
        (b"<x><?p </x> ?></x>", b"<x>", b"<?p </x> ?>"),
        ("<x>ä€😀<y/></x>".encode(), b"<x>", "ä€😀<y/>".encode()),
        (b"<x>&lt;/x&gt;</x>", b"<x>", b"&lt;/x&gt;"),
    ],
)
@pytest.mark.parametrize(
    "around",
    [
        b"<domain>%s</domain>",
        b"<domain><a/>%s<b/></domain>",
        "\ufeff<domain>ä <a></a>\n%s\r\n<b/></domain>\n".encode(),
    ],
)
def test_an_element_knows_its_places(text: bytes, head: bytes, body: bytes, around: bytes) -> None:
    source = around.replace(b"%s", text)
    element = found(source, "x")
    assert element.text == text
    assert element.head == head
    assert element.body == body
    assert source[element.start : element.end] == text
    assert source[element.start : element.body_start] == head
    assert source[element.body_start : element.body_end] == body
    if text.endswith(b"/>"):
        assert element.body_start == element.body_end == element.end


def _names(element: Element) -> list[object]:
    return [element.name, *(_names(child) for child in element.children)]


def test_the_tree_has_all_elements_in_order() -> None:
    source = (
        b"<domain><a><b/><c/></a><devices><a/><b><c/></b></devices>"
        b"<a/><x><devices><y/></devices></x></domain>"
    )
    assert _names(parse(source)) == [
        "domain",
        ["a", ["b"], ["c"]],
        ["devices", ["a"], ["b", ["c"]]],
        ["a"],
        ["x", ["devices", ["y"]]],
    ]
    assert found(source, "devices").text == b"<devices><a/><b><c/></b></devices>"


def test_names_have_their_namespace_and_parents_are_known() -> None:
    source = b"<domain xmlns:p='urn:p'><p:a p:b='1'/><q xmlns='urn:q'/></domain>"
    root = parse(source)
    assert [child.name for child in root.children] == ["urn:p a", "urn:q q"]
    assert root.children[0].attributes == {"urn:p b": "1"}
    assert root.children[0].parent is root


def test_attributes_are_read_with_their_entities() -> None:
    assert parse(b"<domain a='&lt;&#x41;&amp;' b=' x\n'/>").attributes == {"a": "<A&", "b": " x "}


def test_find() -> None:
    source = b"<domain><os><type>1</type></os><os><type>2</type><boot/></os><cpu/><cpu/></domain>"
    root = parse(source)
    assert found(source, "os/type").body == b"1"
    assert root.find("os/boot") is None
    assert root.find("clock/timer") is None
    assert [child.start for child in root.find_all("cpu")] == [
        source.index(b"<cpu/>"),
        source.rindex(b"<cpu/>"),
    ]
    assert root.find_all("os/type") == []


@pytest.mark.parametrize(
    ("before", "indent"),
    [
        (b"", b""),
        (b"\n", b"\n"),
        (b"\n  ", b"\n  "),
        (b"\r\n\t ", b"\n\t "),
        (b"\n\n    ", b"\n    "),
        (b"\n  <a/>", b""),
        (b"\n  <a/> ", b""),
        (b"\n <!-- c -->", b""),
        (b"  ", b""),
    ],
)
def test_indent(before: bytes, indent: bytes) -> None:
    assert found(b"<domain>" + before + b"<x/></domain>", "x").indent == indent


def test_the_first_element_of_a_file_has_no_indent() -> None:
    assert parse(b"   <domain/>").indent == b""
    assert parse(b"\n  <domain/>").indent == b"\n  "


@pytest.mark.parametrize(
    ("declaration", "encoding"),
    [
        ("", "utf-8"),
        ("<?xml version='1.0'?>", "utf-8"),
        ("<?xml version='1.0' encoding='UTF-8'?>", "utf-8-sig"),
        ("", "utf-8-sig"),
        ("<?xml version='1.0' encoding='ISO-8859-1'?>", "latin-1"),
        ("<?xml version='1.0' encoding='windows-1252'?>", "cp1252"),
    ],
)
def test_encodings_of_one_byte_an_ascii_character(declaration: str, encoding: str) -> None:
    source = (declaration + "<domain><title>äö</title><name>ü</name><x y='é'/></domain>").encode(
        encoding
    )
    assert found(source, "title").text.decode(encoding) == "<title>äö</title>"
    assert found(source, "name").body.decode(encoding) == "ü"
    assert found(source, "x").text.decode(encoding) == "<x y='é'/>"
    assert found(source, "x").attributes == {"y": "é"}


def test_comments_and_instructions_around_the_root() -> None:
    source = (
        b"<?xml version='1.0'?>\n<!-- <domain> -->\n<?p <domain> ?>\n<domain><x/></domain>\n<!--"
        b" end -->\n"
    )
    assert parse(source).text == b"<domain><x/></domain>"


@given(domains())
def test_bodies_and_heads_make_up_the_element(source: bytes) -> None:
    waiting = [parse(source)]
    while waiting:
        element = waiting.pop()
        waiting += element.children
        if element.name == "devices":
            continue
        tail = source[element.body_end : element.end]
        assert element.head + element.body + tail == element.text
        assert (
            element.text.startswith(b"<" + element.name.partition(" ")[0].encode()[:1])
            or " " in element.name
        )
        assert tail == b"" or tail.startswith(b"</")
        last = element.body_start
        for child in element.children:
            assert last <= child.start < child.end <= element.body_end
            last = child.end


@pytest.mark.parametrize(
    "head", ["", "\ufeff", "<?xml version='1.0' encoding='latin-1'?>\n<!-- a -->"]
)
def test_the_domain_of_a_snapshot(head: str) -> None:
    """It keeps its encoding, and what it declares; what only mentions a snapshot stays."""
    encoding = "latin-1" if "latin-1" in head else "utf-8"
    guest = "<domain type='kvm' xmlns:a='urn:a'><name>ä</name><metadata><a:b/></metadata></domain>"
    whole = f"{head}<domainsnapshot><disks/>{guest}<domain/></domainsnapshot>\n".encode(encoding)
    root = parse(domain.domain_of(whole))
    assert root.text == guest.encode(encoding)
    name = root.find("name")
    assert name is not None
    assert name.content == "ä"
    for other in (guest + "<!-- <domainsnapshot> -->", "<domainsnapshot/>"):
        assert domain.domain_of(other.encode()) == other.encode()


# -- refusals ------------------------------------------------------------------------------------

_DOMAIN = b"<domain type='kvm'><name>x</name></domain>"

_REFUSED = {
    "DOCTYPE": (b"<!DOCTYPE domain>" + _DOMAIN, "DOCTYPE is refused, line 1"),
    "entities": (
        b"\n<!DOCTYPE domain [<!ENTITY a 'b'>]><domain>&a;</domain>",
        "DOCTYPE is refused, line 2",
    ),
    "an external DTD": (b"<!DOCTYPE domain SYSTEM 'http://192.0.2.1/x.dtd'>" + _DOMAIN, "DOCTYPE"),
    "parameter entities": (
        b"<!DOCTYPE d [<!ENTITY % a SYSTEM 'file:///etc/passwd'> %a;]>" + _DOMAIN,
        "DOCTYPE",
    ),
    "an entity that nobody declared": (b"<domain>&file;</domain>", "undefined entity"),
    "two roots": (_DOMAIN * 2, "split the file"),
    "text behind the root": (_DOMAIN + b"x", "line 1"),
    "another root": (
        b"<domainsnapshot>" + _DOMAIN + b"</domainsnapshot>",
        "a <domainsnapshot>, not a <domain>",
    ),
    "another namespace": (b"<domain xmlns='urn:x'/>", "not a <domain>"),
    "UTF-16": (_DOMAIN.decode().encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark, little": (_DOMAIN.decode().encode("utf-16-le"), "UTF-16"),
    "UTF-16 without a mark, big": (_DOMAIN.decode().encode("utf-16-be"), "UTF-16"),
    "UTF-16 in name only": (b"<?xml version='1.0' encoding='UTF-16'?>" + _DOMAIN, "encoding"),
    "UTF-32": (_DOMAIN.decode().encode("utf-32"), "UTF-16"),
    "no UTF-8": ("<domain>ä</domain>".encode("latin-1"), "not well-formed"),
    "nothing": (b"", "empty"),
    "only white space": (b" \n\t\r\n", "empty"),
    "only a comment": (b"<!-- a -->", "line 1"),
    "only a mark": (b"\xef\xbb\xbf", "is not XML"),
    "an end too many": (b"<domain></domain></domain>", "line 1"),
    "an end too few": (b"<domain>\n<os>\n</domain>", "mismatched tag, line 3"),
    "a cut": (_DOMAIN[:-5], "line 1"),
    "an attribute twice": (b"<domain a='1' a='2'/>", "duplicate attribute"),
    "an attribute without quotes": (b"<domain a=1/>", "not well-formed"),
    "a prefix that nobody declared": (b"<domain><metadata><q:x/></metadata></domain>", "prefix"),
    "depth": (
        b"<domain>" + b"<a>" * 300 + b"</a>" * 300 + b"</domain>",
        "more than 256 elements inside one another, line 1",
    ),
    "too much": (b"<domain>" + b" " * SIZE_LIMIT + b"</domain>", "larger than 10 MiB"),
    "tags": (b"<domain>" + b"<a/>" * TAG_LIMIT + b"</domain>", "more than 50000 tags"),
    "tags of devices": (
        b"<domain><devices>" + b"<a/>" * TAG_LIMIT + b"</devices></domain>",
        "more than 50000 tags",
    ),
    "attributes": (
        b"<domain " + b" ".join(b"a%d=''" % number for number in range(TAG_LIMIT + 1)) + b"/>",
        "more than 50000 attributes",
    ),
    "a long attribute": (
        b"<domain a='" + b"a" * RUN_LIMIT + b"'/>",
        "more than 1 MiB in one piece",
    ),
    "a long name": (b"<" + b"a" * RUN_LIMIT + b"b/>", "more than 1 MiB in one piece"),
    "a long text": (b"<domain>" + b"a" * RUN_LIMIT + b"b</domain>", "more than 1 MiB in one piece"),
    "a long namespace": (
        b"<domain><metadata>\n<a xmlns='" + b"a" * 201 + b"'/></metadata></domain>",
        "200 characters, line 2",
    ),
    "a long namespace of devices": (
        b"<domain><devices><a xmlns:b='" + b"a" * 201 + b"'/></devices></domain>",
        "200 characters",
    ),
    "a long tag with a namespace": (
        b"<domain xmlns:a='%s'%s/>"
        % (b"A" * 500_000, b"".join(b" a:b%d=''" % number for number in range(40_000))),
        "a tag of more than 16 KiB that declares a namespace",
    ),
    "the same of devices, behind a quoted >": (
        b"<domain><devices><a b='>' xmlns:a=\"%s\"%s/></devices></domain>"
        % (b"A" * 9_000, b" a:b=''" * 9_000),
        "a tag of more than 16 KiB that declares a namespace",
    ),
    "noise": (bytes(range(1, 256)), "is not XML"),
    "an image": (b"QFI\xfb\0\0\0\3" + bytes(1000), "is not XML"),
    "JSON": (b'{"domain": {}}', "is not XML"),
    **{
        f"encoding {name}": (
            f"<?xml version='1.0' encoding='{name}'?>".encode() + _DOMAIN,
            "encoding",
        )
        for name in (
            "shift_jis",
            "UTF-7",
            "UTF-32",
            "cp037",
            "no-such",
            "rot13",
            "hex",
            "idna",
            "punycode",
            "undefined",
        )
    },
}


@pytest.mark.parametrize("name", _REFUSED)
def test_refusals_say_why_in_one_line(name: str) -> None:
    source, why = _REFUSED[name]
    with pytest.raises(DomainXMLError) as caught:
        parse(source)
    assert why in one_line(caught.value)
    assert caught.value.hint


def test_the_size_limit_itself_is_allowed() -> None:
    frame = b"<domain></domain>"
    assert parse(frame[:8] + b" " * (SIZE_LIMIT - len(frame)) + frame[8:]).name == "domain"


@pytest.mark.parametrize(
    "inside",
    [
        b"<!-- xmlns='%s' -->",
        b"<x xmlns='u'>%s</x>",
        b"<x><![CDATA[xmlns:a='%s']]></x>",
        b"<?x xmlns='%s' it's?>",
    ],
)
def test_long_text_and_values_are_allowed(inside: bytes) -> None:
    assert parse(b"<domain>" + inside % (b"a=b xmlns " * 5_000) + b"</domain>").name == "domain"


def test_entities_of_xml_itself_are_allowed() -> None:
    assert found(b"<domain><name>a&amp;&#65;</name></domain>", "name").body == b"a&amp;&#65;"


@pytest.mark.parametrize(
    "source",
    [
        b"<domain><cpu "
        + b" ".join(b"a%d='\">'" % number for number in range(20000))
        + b"/></domain>",
        b"<domain><cpu "
        + b" ".join(b"a%d=''" % number for number in range(40000))
        + b" b='>'/></domain>",
        b"<domain>" + (b"<a>" * 200 + b"</a>" * 200) * 120 + b"<cpu/></domain>",
        b"<domain>" + b"<cpu/>" * 49000 + b"</domain>",
        b"<domain><cpu a='" + b">" * 500000 + b"'/></domain>",
    ],
    ids=["attributes with both quotes", "attributes", "depth", "breadth", "a long value"],
)
def test_hostile_documents_take_no_time(source: bytes) -> None:
    start = time.process_time()
    root = parse(source)
    cpu = root.find("cpu")
    assert cpu is not None
    assert cpu.text.startswith(b"<cpu")
    assert cpu.text.endswith(b"/>")
    assert time.process_time() - start < 2


def test_the_indent_of_many_elements_on_one_line_takes_no_time() -> None:
    source = b"<domain>\n  " + (b"<a>" + b" " * 400 + b"</a>") * 24_000 + b"</domain>"
    root = parse(source)
    start = time.process_time()
    assert [child.indent for child in root.children] == [b"\n  "] + [b""] * 23_999
    assert time.process_time() - start < 1


# What is within the limits, and takes the most for it.
_GREEDY = {
    "elements": lambda: b"<domain>" + b"<a/>" * 49_900 + b"</domain>",
    "elements with attributes": lambda: (
        b"<domain xmlns:p='%s'>%s</domain>"
        % (
            b"u" * 200,
            b"".join(b"<p:a%d p:b%d='%d'/>" % (number, number, number) for number in range(49_900)),
        )
    ),
    "long names": lambda: (
        b"<domain>"
        + b"".join(b"<%s%d/>" % (b"a" * 180, number) for number in range(49_900))
        + b"</domain>"
    ),
    "attributes": lambda: (
        b"<domain xmlns:p='%s'%s/>"
        % (b"u" * 200, b"".join(b" p:a%d=''" % number for number in range(49_900)))
    ),
    "namespaces": lambda: (
        b"<domain" + b"".join(b" xmlns:a%d='u'" % number for number in range(1_000)) + b"/>"
    ),
    "wide values": (
        lambda: "<domain>{}</domain>".format(f"<a a='{'a' * 1_000_000}\U0001f600'/>" * 10).encode()
    ),
    "depth": lambda: (
        b"<domain><devices>" + b"<a b='c'>" * 24_900 + b"</a>" * 24_900 + b"</devices></domain>"
    ),
    "white space": lambda: b"<domain>" + b" \n" * 5_000_000 + b"</domain>",
    "one tag that does not end": lambda: b"<domain a='" + b"a" * 1_000_000,
    "values that do not end": lambda: b"<domain>" + b"<a b='" * 49_900,
}


@pytest.mark.parametrize("name", _GREEDY)
def test_a_document_within_the_limits_takes_a_bounded_memory(name: str) -> None:
    """Expat's, too: measured from outside Python."""
    code = (
        "import sys; sys.path.append(sys.argv[1]); from kvmarm_plugin.domain.xml import parse,"
        " KvmarmError\ndef peak(): return next(int(line.split()[1]) for line in"
        " open('/proc/self/status') if line.startswith('VmHWM'))\nsource = sys.stdin.buffer.read();"
        " open('/proc/self/clear_refs', 'w').write('5'); before = peak()\ntry:"
        " parse(source)\nexcept KvmarmError: pass\nprint(peak() - before)"
    )
    root = Path(__file__).parent.parent.parent
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(root)],
        input=_GREEDY[name](),
        stdout=subprocess.PIPE,
        check=True,
    )
    assert int(run.stdout) < 64 * 1024


def test_large_guests_are_far_within_the_limits() -> None:
    """All the vCPUs, I/O threads and devices that QEMU has places for, and an application's 8 KiB
    of metadata.
    """
    pins = [f"<vcpupin vcpu='{number}' cpuset='0-3,{number}'/>" for number in range(512)]
    pins += [f"<iothreadpin iothread='{number}' cpuset='0-3'/>" for number in range(1, 513)]
    disk = (
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'"
        " io='native'/><source file='/a' index='1'/><backingStore type='file'><format"
        " type='raw'/><source file='/b'/><backingStore/></backingStore><target dev='vda'"
        " bus='virtio'/><alias name='virtio-disk0'/><address type='pci' bus='0x04'/></disk>"
    )
    nova = (
        "<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'>"
        + "<nova:package version='30'/>" * 300
    )
    source = (
        f"<domain><metadata>{nova}</nova:instance></metadata><cputune>{''.join(pins)}</cputune>"
        f"<devices>{disk * 255}</devices></domain>"
    ).encode()
    assert source.count(b"<") < TAG_LIMIT / 5
    assert source.count(b"=") < TAG_LIMIT / 5
    assert len(found(source, "cputune").children) == 1024


def test_a_parser_without_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Element:
        error = ExpatError("out of memory")
        error.code = 1
        raise error

    monkeypatch.setattr(domain, "_build", fail)
    with pytest.raises(MemoryError):
        parse(_DOMAIN)


# -- fuzzing -------------------------------------------------------------------------------------


def _use(source: bytes) -> None:
    """Everything that is done to a domain's XML from outside."""
    root = parse(source)
    asks_for_host_model(root)
    element = record.find(root)
    if element is not None:
        record.read(element)
    restore(source, root)
    result = resolver("trixie-max").resolve(source)
    if result != source:
        # What comes out is a domain, and resolving can be undone, whatever the accident was.
        assert restore(result, parse(result)) == restore(source, root)


_originals = st.sampled_from(
    [template(name) for name in TEMPLATES] + [resolver("trixie-max").resolve(template("sve"))]
)
_insertions = st.one_of(
    st.binary(max_size=4),
    st.sampled_from(
        [
            b"<",
            b">",
            b"/>",
            b"'",
            b'"',
            b"&",
            b"&a;",
            b"<devices>",
            b"</devices>",
            b"<cpu>",
            b"<!--",
            b"]]>",
            b"<![CDATA[",
            b"<?xml ",
        ]
    ),
    st.sampled_from(
        [
            b"\xef\xbb\xbf",
            b"\0",
            b"<cpu mode='host-model'/>",
            b"<metadata/>",
            b"<os/>",
            b" machine=''",
            b"<features>",
        ]
    ),
)


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    """A template or a resolved domain after some accidents."""
    source = draw(_originals)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(source)))
        end = draw(st.one_of(st.just(start), st.integers(start, min(len(source), start + 40))))
        source = source[:start] + draw(_insertions) + source[end:]
    return source


@settings(max_examples=150)
@given(_mutated())
@example(b"<domain type='kvm'><os><type/></os><cpu mode='host-model'/></domain>")
@example(b"<domain type='kvm'><os><type machine=''/></os><cpu mode='host-model'/><cpu/></domain>")
@example(
    b"<domain type='kvm'><os><type/></os><cpu mode='host-model'/><memory>9"
    + b"9" * 5000
    + b"</memory></domain>"
)
def test_nothing_but_a_kvmarm_error_comes_out_of_a_mutated_domain(source: bytes) -> None:
    try:
        _use(source)
    except KvmarmError as error:
        one_line(error)


def _elements(element: Element) -> list[Element]:
    return [element, *(below for child in element.children for below in _elements(child))]


@st.composite
def _rearranged(draw: st.DrawFn) -> bytes:
    """A generated or resolved domain whose elements were removed, repeated or put elsewhere:
    well-formed, and seldom sensible.
    """
    source = draw(st.one_of(domains(), domains().map(resolver("trixie-max").resolve)))
    for _ in range(draw(st.integers(1, 4))):
        try:
            elements = _elements(parse(source))
        except DomainXMLError:
            break  # a prefix without its declaration, <devices> in <devices>
        picked, place = draw(st.sampled_from(elements)), draw(st.sampled_from(elements))
        piece = draw(
            st.sampled_from(
                [
                    picked.text,
                    picked.body,
                    b"<cpu mode='host-model'/>",
                    b"<gic/>",
                    b"<metadata/>",
                    b"<features/>",
                ]
            )
        )
        edit = draw(st.sampled_from(["remove", "before", "after", "inside", "empty"]))
        if edit == "remove" and picked.parent is not None and picked.parent.parent is not None:
            source = source[: picked.start] + source[picked.end :]
        elif edit == "before" and place.name != "domain":
            source = source[: place.start] + piece + source[place.start :]
        elif edit == "after" and place.name != "domain":
            source = source[: place.end] + piece + source[place.end :]
        elif edit == "inside" and place.body_start != place.end:
            source = source[: place.body_start] + piece + source[place.body_start :]
        elif edit == "empty" and place.name != "domain":
            source = source[: place.body_start] + source[place.body_end :]
    return source


@settings(max_examples=100)
@given(_rearranged())
def test_nothing_but_a_kvmarm_error_comes_out_of_a_rearranged_domain(source: bytes) -> None:
    try:
        _use(source)
    except KvmarmError as error:
        one_line(error)


@settings(max_examples=100)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(
            lambda text: f"<domain>{text}</domain>".encode("utf-8", "replace")
        ),
    )
)
def test_nothing_but_a_kvmarm_error_comes_out_of_noise(source: bytes) -> None:
    try:
        _use(source)
    except KvmarmError as error:
        one_line(error)


def test_every_truncation_of_a_template_is_refused() -> None:
    source = template("uefi").rstrip()
    for length in range(len(source)):
        with pytest.raises(DomainXMLError) as caught:
            parse(source[:length])
        one_line(caught.value)


def test_every_truncation_of_a_record_is_refused_or_read() -> None:
    """The lists of a record cut short inside well-formed XML: shorter lists, or an error that says
    so.
    """
    source = resolver("trixie-cortex-a72").resolve(template("direct-kernel"))
    for name in ("registers", "reglist", "seen"):
        element = record.find(parse(source))
        assert element is not None
        place = element.find(f"{record.NAMESPACE} {name}")
        assert place is not None
        outcomes = set()
        for end in range(place.body_start, place.body_end):
            cut = record.find(parse(source[:end] + source[place.body_end :]))
            assert cut is not None
            try:
                record.read(cut)
                outcomes.add("read")
            except record.RecordError as error:
                one_line(error)
                outcomes.add("refused")
        assert outcomes == {"read", "refused"}


# -- who asks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "host", "asks"),
    [
        (
            "<domain type='kvm'><os><type arch='aarch64'/></os><cpu mode='host-model'/></domain>",
            "aarch64",
            True,
        ),
        (
            "<domain type='kvm'><os><type arch='armv7l'/></os><cpu mode='host-model'/></domain>",
            "aarch64",
            True,
        ),
        ("<domain type='kvm'><os><type/></os><cpu mode='host-model'/></domain>", "aarch64", True),
        ("<domain type='kvm'><os><type/></os><cpu mode='host-model'/></domain>", "armv7l", True),
        ("<domain type='kvm'><os><type/></os><cpu mode='host-model'/></domain>", "x86_64", False),
        (
            "<domain type='kvm'><os><type arch='x86_64'/></os><cpu mode='host-model'/></domain>",
            "aarch64",
            False,
        ),
        (
            "<domain type='qemu'><os><type arch='aarch64'/></os><cpu mode='host-model'/></domain>",
            "aarch64",
            False,
        ),
        (
            "<domain type='kvm'><os><type arch='aarch64'/></os><cpu mode='custom'/></domain>",
            "aarch64",
            False,
        ),
        ("<domain type='kvm'><os><type arch='aarch64'/></os><cpu/></domain>", "aarch64", False),
        ("<domain type='kvm'><os><type arch='aarch64'/></os></domain>", "aarch64", False),
        ("<domain type='kvm'><os/><cpu mode='host-model'/></domain>", "aarch64", False),
        ("<domain type='kvm'><cpu mode='host-model'/></domain>", "aarch64", False),
        ("<domain/>", "aarch64", False),
    ],
)
def test_who_asks_for_host_model(source: str, host: str, asks: bool) -> None:
    assert asks_for_host_model(parse(source.encode()), host) is asks


# -- edits ---------------------------------------------------------------------------------------


def test_no_edits_change_nothing() -> None:
    assert Edits(b"abc").apply() == b"abc"


def test_edits_are_applied_by_place_whatever_their_order() -> None:
    edits = Edits(b"0123456789")
    edits.replace(7, 9, b"")
    edits.replace(2, 4, b"<>")
    edits.replace(10, 10, b"end")
    edits.replace(0, 0, b"start")
    assert edits.apply() == b"start01<>4569end"


def test_an_insertion_stands_in_front_of_what_is_replaced_at_the_same_place() -> None:
    edits = Edits(b"abc")
    edits.replace(1, 2, b"B")
    edits.replace(1, 1, b"+")
    edits.replace(1, 1, b"-")
    assert edits.apply() == b"a+-Bc"


@pytest.mark.parametrize(
    ("source", "rest"),
    [
        (b"<domain>\n  <x/>\n  <y/>\n</domain>", b"<domain>\n  <y/>\n</domain>"),
        (b"<domain>\n  <x>\n  </x>\n</domain>", b"<domain>\n</domain>"),
        (b"<domain><x/><y/></domain>", b"<domain><y/></domain>"),
        (b"<domain>\n <y/> <x/>\n</domain>", b"<domain>\n <y/> \n</domain>"),
    ],
)
def test_an_element_is_removed_with_its_indentation(source: bytes, rest: bytes) -> None:
    edits = Edits(source)
    edits.remove(found(source, "x"))
    assert edits.apply() == rest


@given(st.binary(max_size=30), st.data())
def test_edits_equal_slicing(source: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(source)), max_size=8)))
    spans = list(zip(cuts[::2], cuts[1::2]))
    edits, expected = Edits(source), source
    for start, end in spans:
        edits.replace(start, end, b"|")
    for start, end in reversed(spans):
        expected = expected[:start] + b"|" + expected[end:]
    assert edits.apply() == expected
