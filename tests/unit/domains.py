# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hypothesis strategies for domain XML that asks for host-model, in the many shapes that people and
programs write it.

`domains` draws what is in the domain and how it is written down: indented or on one line, which
quotes, where comments stand.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple, Union

from hypothesis import strategies as st

Content = Union[
    "Node", str
]  # a string is written as it is: text, a comment, a processing instruction


class Node(NamedTuple):
    """An element that is not written down yet."""

    name: str
    attributes: dict[str, str]
    content: tuple[Content, ...]


class Style(NamedTuple):
    """How XML is written down.

    Attributes:
        step: indentation of one level; None for everything on one line.
        line_break: "\\n" or "\\r\\n".
        random: decides what differs from one element to the next.
        ragged: white space between elements is anything.
        comments: put comments between elements.
    """

    step: str | None
    line_break: str
    random: Random
    ragged: bool
    comments: bool


_COMMENTS = (
    "<!-- a > b -->",
    '<!--it\'s "so"-->',
    "<!-- <cpu mode='host-model'/> -->",
    "<!---->",
    "<?editor keep='>'?>",
)
_SPACES = ("", "", " ", "\n", "\n\n      ", "\t", "\r\n  ")


def node(name: str, /, *content: Content, **attributes: str) -> Node:
    """A node."""
    return Node(name, attributes, content)


def write(root: Node, style: Style) -> bytes:
    """The document."""
    prolog = style.random.choice(
        ("", "", "<?xml version='1.0' encoding='UTF-8'?>\n", "<!-- mine -->\n", "\ufeff")
    )
    return (
        prolog + _write(root, style, 0) + style.random.choice(("", "\n", "\n<!-- end -->\n"))
    ).encode()


def _write(element: Node, style: Style, depth: int) -> str:
    head = "".join(
        [
            element.name,
            *(_attribute(style, name, value) for name, value in element.attributes.items()),
        ]
    )
    blank = style.random.choice(("", "", "", " ", "\n"))
    if not element.content and style.random.randrange(4):
        return f"<{head}{blank}/>"
    has_elements = any(isinstance(child, Node) for child in element.content)
    parts = []
    for child in element.content:
        if has_elements:
            parts.append(_between(style, depth + 1))
            if style.comments and not style.random.randrange(3):
                parts += [style.random.choice(_COMMENTS), _between(style, depth + 1)]
        parts.append(_write(child, style, depth + 1) if isinstance(child, Node) else child)
    if has_elements:
        parts.append(_between(style, depth))
    return f"<{head}{blank}>{''.join(parts)}</{element.name}{style.random.choice(('', '', ' '))}>"


def _between(style: Style, depth: int) -> str:
    if style.ragged:
        return style.random.choice(_SPACES)
    return "" if style.step is None else style.line_break + style.step * depth


def _attribute(style: Style, name: str, value: str) -> str:
    quote = style.random.choice("\"'")
    space = style.random.choice((" ", " ", " ", "  ", "\n\t"))
    equals = style.random.choice(("=", "=", "=", " = "))
    value = (
        value.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(quote, "&quot;" if quote == '"' else "&apos;")
    )
    return f"{space}{name}{equals}{quote}{value}{quote}"


@st.composite
def styles(draw: st.DrawFn) -> Style:
    """Any style."""
    return Style(
        step=draw(st.sampled_from([None, "  ", "    ", "\t"])),
        line_break=draw(st.sampled_from(["\n", "\n", "\r\n"])),
        random=draw(st.randoms(use_true_random=False)),
        ragged=draw(st.sampled_from([False, False, True])),
        comments=draw(st.booleans()),
    )


_TOPOLOGIES = (
    node("topology", sockets="1", dies="1", cores="2", threads="1"),
    node("topology", sockets="2", dies="1", cores="1", threads="1"),
)
_NUMA = node("numa", node("cell", id="0", cpus="0-1", memory="512", unit="MiB"))
_MODELS = (
    node("model", fallback="allow"),
    node("model", "cortex-a57", fallback="forbid"),
)
# Nothing that a host could lack: what hosts refuse is in test_resolve.
_CPU_FEATURES = (
    node("feature", policy="disable", name="sve"),
    node("feature", policy="forbid", name="sve"),
)
_MORE_FEATURES = (
    node("feature", policy="optional", name="pauth"),
    node("feature", name="pauth", policy="forbid"),
)
_FOREIGN = (
    node("a:note", "keep me", **{"xmlns:a": "urn:example:a", "text": 'a > b, it\'s "so"'}),
    node("b:x", node("b:y", **{"b:z": "1"}), **{"xmlns:b": "http://example.org/b"}),
    node("c", node("cpu", mode="host-model"), xmlns="urn:example:c"),
)
_GICS = (node("gic"), node("gic", version="3"), node("gic", version="host"))
_PMUS = (node("pmu"), node("pmu", state="on"), node("pmu", state="off"))


def _some(*options: Node | None) -> st.SearchStrategy[tuple[Node, ...]]:
    """Any of these in any order, at most one of each."""
    present = [option for option in options if option is not None]
    return st.permutations(present).flatmap(
        lambda order: st.integers(0, len(order)).map(lambda count: tuple(order[:count]))
    )


def _commented(
    content: st.SearchStrategy[tuple[Node, ...]],
) -> st.SearchStrategy[tuple[Content, ...]]:
    """The same, or a comment where there is nothing else."""
    return content.flatmap(
        lambda some: (
            st.just(some) if some else st.sampled_from([(), ("<!-- nothing -->",), ("\n",)])
        )
    )


@st.composite
def cpus(draw: st.DrawFn) -> Node:
    """A <cpu> that asks for host-model."""
    content = draw(
        _commented(
            _some(
                draw(st.sampled_from(_TOPOLOGIES)),
                _NUMA,
                draw(st.sampled_from(_MODELS)),
                # libvirt takes each name once
                draw(st.sampled_from([None, *_CPU_FEATURES])),
                draw(st.sampled_from([None, *_MORE_FEATURES])),
            )
        )
    )
    attributes = draw(st.sampled_from([{}, {"check": "partial"}]))
    return Node("cpu", {"mode": "host-model", **attributes}, content)


@st.composite
def trees(draw: st.DrawFn) -> Node:
    """A domain that asks for host-model."""
    parts: list[Node] = [
        node("name", draw(st.sampled_from(["guest", "g&gt;1", "gäst"]))),
        node("memory", "524288"),
        *draw(_threads()),
        node("os", node("type", "hvm", **draw(_os_type())), node("kernel", "/boot/vmlinuz")),
        draw(cpus()),
        node("devices", node("console", type="pty")),
    ]
    for element in (
        node("title", "<![CDATA[<cpu mode='host-model'>]]>"),
        node("description", "1 &lt; 2 &amp; so on"),
        node("uuid", "7f3b1a2c-6d0e-4c57-9d0a-3a2f1e0b9c8d"),
        node("clock", offset="utc"),
    ):
        if draw(st.booleans()):
            parts.append(element)
    if draw(st.booleans()):
        parts.append(Node("metadata", {}, draw(_commented(_some(*_FOREIGN)))))
    if draw(st.booleans()):
        gic, pmu = draw(st.sampled_from([None, *_GICS])), draw(st.sampled_from([None, *_PMUS]))
        parts.append(Node("features", {}, draw(_commented(_some(node("acpi"), gic, pmu)))))
    return Node("domain", {"type": "kvm"}, tuple(draw(st.permutations(parts))))


@st.composite
def _threads(draw: st.DrawFn) -> list[Node]:
    """<vcpu>, <cputune> and I/O threads. What is pinned is pinned to the big cluster of a host
    whose big CPUs are 4 to 7.
    """
    cpus = st.sampled_from(["4-7", "4-5", "7", "4,6", "4-7,^5"])
    placement = draw(st.sampled_from([{}, {"placement": "static"}, {"placement": "auto"}]))
    current = draw(st.sampled_from([{}, {"current": "1"}]))
    cpuset = {"cpuset": draw(cpus)} if draw(st.booleans()) else {}
    pins: tuple[Node, ...] = (
        Node("vcpupin", {"vcpu": "0", "cpuset": draw(cpus)}, ()),
        Node("vcpupin", {"vcpu": "1", "cpuset": draw(cpus)}, ()),
        Node("emulatorpin", {"cpuset": draw(cpus)}, ()),
        Node("iothreadpin", {"iothread": "1", "cpuset": draw(cpus)}, ()),
    )
    iothreads = draw(st.booleans())
    pins = pins if iothreads else pins[:-1]  # libvirt refuses a pin for what is not there
    return [
        *(
            [Node("vcpu", {**placement, **current, **cpuset}, ("2",))]
            if draw(st.booleans())
            else []
        ),
        *([node("iothreads", "2")] if iothreads else []),
        *(
            [Node("cputune", {}, draw(_commented(_some(node("shares", "1024"), *pins))))]
            if draw(st.booleans())
            else []
        ),
    ]


def _os_type() -> st.SearchStrategy[dict[str, str]]:
    return st.sampled_from(
        [
            {"arch": "aarch64", "machine": "virt"},
            {"machine": "virt", "arch": "aarch64"},
            {"arch": "aarch64"},
            {"arch": "aarch64", "machine": ""},
            {},
        ]
    )


@st.composite
def domains(draw: st.DrawFn) -> bytes:
    """A domain that asks for host-model, as it stands in a file."""
    return write(draw(trees()), draw(styles()))


@st.composite
def written_cpus(draw: st.DrawFn) -> bytes:
    """A <cpu> that asks for host-model, as it stands in a file."""
    return _write(draw(cpus()), draw(styles()), 1).encode()
