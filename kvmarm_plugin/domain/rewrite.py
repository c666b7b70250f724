# SPDX-License-Identifier: LGPL-2.1-or-later
"""Host-model out of a domain's XML; `restoring` is the way back.

`concretise` writes a concrete CPU, GIC, PMU and machine type, and on a host of several clusters
pins, where the user had left them open, and the record beside them. Nothing else is changed, to the
byte.
"""

from __future__ import annotations

from ..basics.value import Value
from . import levelling, record, record_text
from .edits import Edits
from .xml import Element, in_utf8, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .record import Record

_STEP = b"  "

# The children of <cpu> that belong to host-model. <topology>, <numa>, <cache> and <maxphysaddr> are
# the user's in every mode.
OWNED_BY_CPU = ("model", "vendor", "feature")


class Emission(Value):
    """What libvirt has to be told to get a target.

    Attributes:
        cpu: attributes of <cpu>, as text.
        model: the <model> element; empty for modes without one.
        features: the <feature> elements, in order.
        gic: the <gic> element.
        pmu: the <pmu> element; empty where QEMU has no such switch.
        machine: value of <type machine=…>.
        level: children of <qemu:commandline>; none where the guest is not levelled.
    """

    cpu: bytes
    model: bytes
    features: tuple[bytes, ...]
    gic: bytes
    pmu: bytes
    machine: str
    level: tuple[bytes, ...] = ()


def concretise(
    source: bytes,
    domain: Element,
    emission: Emission,
    facts: list[bytes],
    cpuset: str = "",
    pins: tuple[bytes, ...] = (),
) -> bytes:
    """The domain's XML with the emission in place and the record in its metadata.

    Args:
        source: the domain's XML, without a record.
        domain: `source` parsed; it has a <cpu>, an <os><type> and no concrete answer where the
            emission gives one.
        facts: from record_text.format_facts.
        cpuset: host CPUs for <vcpu>; empty leaves it as it is, and pins nothing.
        pins: elements for <cputune>.
    """
    edits = Edits(source)
    added: list[str] = []
    kept: list[bytes] = []
    cpu, os_type = domain.find("cpu"), domain.find("os/type")
    assert cpu is not None  # resolve has looked at both
    assert os_type is not None
    _concrete_cpu(edits, kept, cpu, emission)
    _concrete_machine(edits, kept, os_type, emission.machine)
    if cpuset:
        _pin(edits, added, kept, domain, cpu, cpuset, pins)
    _concrete_features(edits, added, kept, domain.find("features"), cpu, emission)
    if emission.level:
        _level(edits, added, domain, emission.level)
    _add_record(edits, added, kept, domain, facts)
    return edits.apply()


def replace_record(source: bytes, domain: Element, new: Record) -> bytes:
    """The domain's XML with another record in place of the one that it has, of either version.
    Nothing else is changed.

    Args:
        source, domain: the domain's XML, and the same parsed.

    Raises:
        RecordError: the domain's record is not one, or the new one cannot be written.
    """
    current, *older = record.find_all(domain)
    edits = Edits(source)
    edits.replace(current.start, current.end, record_text.format_whole(new, current.indent))
    for element in older:
        edits.remove(element)
    return edits.apply()


def _concrete_cpu(edits: Edits, kept: list[bytes], cpu: Element, emission: Emission) -> None:
    kept.append(cpu.text)
    edits.replace(
        cpu.start,
        cpu.end,
        compose_cpu(
            cpu,
            b" ".join([emission.cpu, *cpu.declarations.values()]),  # what is not ours may use them
            emission.model,
            emission.features,
            unowned(cpu),
        ),
    )


def compose_cpu(
    place: Element, attributes: bytes, model: bytes, features: tuple[bytes, ...], others: bytes
) -> bytes:
    """A <cpu> of these parts, indented as the one in its place is."""
    indent = place.indent
    inner = place.children[0].indent if place.children else indent and indent + _STEP
    body = b"".join(
        [
            inner + model if model else b"",
            others.rstrip(),
            *(inner + feature for feature in features),
        ]
    )
    return b"<cpu " + attributes + (b">" + body + indent + b"</cpu>" if body else b"/>")


def unowned(cpu: Element) -> bytes:
    """What is inside <cpu> and not ours, as written."""
    return body_without(cpu, [child for child in cpu.children if child.name in OWNED_BY_CPU])


def body_without(element: Element, children: list[Element]) -> bytes:
    """What is inside an element besides some of its children: elements, comments and white space,
    as written.
    """
    inside = Edits(element.body)
    offset = element.body_start
    for child in children:
        inside.replace(child.start - len(child.indent) - offset, child.end - offset, b"")
    return inside.apply()


def _concrete_machine(edits: Edits, kept: list[bytes], os_type: Element, machine: str) -> None:
    if os_type.attributes.get("machine") == machine:
        return
    kept.append(os_type.text)
    edits.replace(os_type.start, os_type.body_start, os_type.tag_with(machine=machine))


def _concrete_features(
    edits: Edits,
    added: list[str],
    kept: list[bytes],
    features: Element | None,
    cpu: Element,
    emission: Emission,
) -> None:
    missing = []
    for name, text in (("gic", emission.gic), ("pmu", emission.pmu)):
        present = features.find(name) if features else None
        if present is None and text:
            missing.append(text)
            added.append(name)
        elif (
            present is not None
            and name == "gic"
            and present.attributes.get("version") not in ("2", "3")
        ):
            kept.append(present.text)
            edits.replace(present.start, present.end, text)
    if features is None and missing:
        added.append("features")
        inner = cpu.indent and cpu.indent + _STEP
        text = (
            b"<features>"
            + b"".join(inner + element for element in missing)
            + cpu.indent
            + b"</features>"
        )
        edits.replace(cpu.start, cpu.start, text + cpu.indent)
    elif features is not None and missing:
        _keep_if_empty(kept, features)
        _append(edits, features, missing)


def _pin(
    edits: Edits,
    added: list[str],
    kept: list[bytes],
    domain: Element,
    cpu: Element,
    cpuset: str,
    pins: tuple[bytes, ...],
) -> None:
    vcpu, cputune = domain.find("vcpu"), domain.find("cputune")
    if vcpu is not None:
        kept.append(vcpu.text)
        edits.replace(vcpu.start, vcpu.body_start, vcpu.tag_with(placement="static", cpuset=cpuset))
    else:
        added.append("vcpu")
        text = (
            f"<vcpu placement='static' cpuset={quoted(cpuset)}>1</vcpu>".encode()
        )  # libvirt's own number where none is written
        edits.replace(cpu.start, cpu.start, text + cpu.indent)
    if cputune is not None:
        kept.append(cputune.text)
        _append(edits, cputune, list(pins))
        return
    added.append("cputune")
    inner = cpu.indent and cpu.indent + _STEP
    text = b"<cputune>" + b"".join(inner + pin for pin in pins) + cpu.indent + b"</cputune>"
    edits.replace(cpu.start, cpu.start, text + cpu.indent)


def _level(edits: Edits, added: list[str], domain: Element, elements: tuple[bytes, ...]) -> None:
    """Behind the user's own words for QEMU, or in a <qemu:commandline> at the end."""
    line = next((each for each in levelling.lines_of(domain) if each.children), None)
    if line is not None:
        _append(edits, line, list(elements))
        return
    added.append("commandline")
    last = domain.children[-1]
    inner = last.indent and last.indent + _STEP
    declared = f"xmlns:qemu={quoted(levelling.NAMESPACE)}".encode()
    text = (
        b"<qemu:commandline "
        + declared
        + b">"
        + b"".join(inner + element.replace(b" " + declared, b"") for element in elements)
        + last.indent
        + b"</qemu:commandline>"
    )
    edits.replace(last.end, last.end, last.indent + text)


def _add_record(
    edits: Edits, added: list[str], kept: list[bytes], domain: Element, facts: list[bytes]
) -> None:
    metadata, encoding = domain.find("metadata"), domain.encoding

    def formatted(indent: bytes) -> bytes:
        intent = record.Intent(tuple(added), tuple(in_utf8(text, encoding) for text in kept))
        return record_text.format_record(intent, facts, indent)

    if metadata is not None:
        _keep_if_empty(kept, metadata)
        indent = (
            metadata.children[-1].indent
            if metadata.children
            else metadata.indent and metadata.indent + _STEP
        )
        _append(edits, metadata, [formatted(indent)])
        return
    added.append("metadata")
    # libvirt's own place for it: behind the names and before everything else.
    titles = [
        child
        for child in domain.children
        if child.name in ("name", "uuid", "genid", "title", "description")
    ]
    indent = titles[-1].indent if titles else b""
    inner = indent and indent + _STEP
    place = titles[-1].end if titles else domain.body_start
    text = indent + b"<metadata>" + inner + formatted(inner) + indent + b"</metadata>"
    edits.replace(place, place, text)


def _keep_if_empty(kept: list[bytes], container: Element) -> None:
    """The intent holds a container that had no children: `_append` changes its tags."""
    if not container.children:
        kept.append(container.text)


def _append(edits: Edits, container: Element, elements: list[bytes]) -> None:
    """Put elements behind the last child of a container."""
    if container.children:
        last = container.children[-1]
        edits.replace(last.end, last.end, b"".join(last.indent + element for element in elements))
        return
    name = container.name.encode()
    inner = container.indent and container.indent + _STEP
    body = container.body.rstrip() + b"".join(inner + element for element in elements)
    edits.replace(
        container.start,
        container.end,
        b"<" + name + b">" + body + container.indent + b"</" + name + b">",
    )
