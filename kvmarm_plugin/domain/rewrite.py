# SPDX-License-Identifier: LGPL-2.1-or-later
"""Host-model out of a domain's XML, and back in.

`concretise` writes a concrete CPU, GIC, PMU and machine type, and on a host of several clusters
pins, where the user had left them open, and the record beside them. `restore` is its inverse: what
was added goes, what was replaced comes back as the user had written it. Both change nothing else,
to the byte.
"""

from __future__ import annotations

from ..basics.value import Value
from . import levelling, record, record_text
from .edits import Edits
from .emitted import Emitted
from .pins import pins_in, thread_of
from .xml import DomainXMLError, Element, in_utf8, parse, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .record import Record

_STEP = b"  "

# The children of <cpu> that belong to host-model. <topology>, <numa>, <cache> and <maxphysaddr> are
# the user's in every mode.
_OWNED_BY_CPU = ("model", "vendor", "feature")

# The attributes that are ours where the element is the user's.
_OWNED_BY_TYPE = ("machine",)
_OWNED_BY_VCPU = ("placement", "cpuset")


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


def restore(source: bytes, domain: Element) -> bytes:
    """The user's XML again: the inverse of `concretise`; without a record, the XML as it is.

    What says something else than was written is the user's, of later, and stays: a machine type, a
    GIC, a PMU, a <feature>, a <cpu> of another mode; <topology> and <numa> inside <cpu>; other
    features and metadata. A <cpu> that is gone comes back.

    Raises:
        RecordError: the record is of another version, or its intent is not one that kvmarm would
            have kept.
    """
    element = record.find(domain)
    if element is None:
        return source
    # Nothing else of the record is needed, so a broken one can still be undone.
    intent = record.intent_of(element)
    originals = {child.name: child for child in intent.children}
    added = record.names_added(intent)
    emitted = _emitted(element)
    edits = Edits(source)
    if "cpu" in originals:
        _restore_cpu(edits, domain, originals["cpu"], emitted)
    os_type = domain.find("os/type")
    if os_type is not None and "type" in originals and emitted.has_machine(os_type):
        _restore_attributes(edits, os_type, originals["type"], _OWNED_BY_TYPE)
    pinning = record.pinning_of(element)
    if pinning is not None:
        _unpin(edits, domain, pinning.attributes.get("cpus", ""), added, originals)
    _unlevel(edits, domain, added)
    features = domain.find("features")
    ours = [
        name
        for name in ("gic", "pmu")
        if (child := features.find(name) if features else None) is None or emitted.has(child)
    ]
    _restore_container(edits, features, tuple(ours), added, originals)
    records = tuple(each.name for each in record.find_all(domain))
    for metadata in domain.find_all("metadata"):
        if any(map(metadata.find, records)):
            _restore_container(edits, metadata, records, (*added, *records), originals)
    restored = edits.apply()
    try:
        parse(restored)
    except DomainXMLError as error:  # a prefix of the intent's, which means nothing outside
        raise record.RecordError(
            f"the intent in the domain's kvmarm record cannot be restored: {error.message}",
            "remove the record with: virsh edit",
        ) from None
    return restored


def _emitted(element: Element) -> Emitted:
    try:
        return Emitted(record.read(element).target)
    except record.RecordError:
        return Emitted(None)


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
        _compose_cpu(
            cpu,
            b" ".join([emission.cpu, *cpu.declarations.values()]),  # what is not ours may use them
            emission.model,
            emission.features,
            _unowned(cpu),
        ),
    )


def _compose_cpu(
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


def _unowned(cpu: Element) -> bytes:
    """What is inside <cpu> and not ours, as written."""
    return _body_without(cpu, [child for child in cpu.children if child.name in _OWNED_BY_CPU])


def _body_without(element: Element, children: list[Element]) -> bytes:
    """What is inside an element besides some of its children: elements, comments and white space,
    as written.
    """
    inside = Edits(element.body)
    offset = element.body_start
    for child in children:
        inside.replace(child.start - len(child.indent) - offset, child.end - offset, b"")
    return inside.apply()


def _restore_cpu(edits: Edits, domain: Element, original: Element, emitted: Emitted) -> None:
    cpu, place = domain.find("cpu"), domain.find("os")
    if cpu is None:
        if place is not None:
            edits.replace(place.end, place.end, place.indent + original.text)
        return
    anew = cpu.attributes.get("mode") == "host-model"
    theirs = [child for child in cpu.children if not emitted.has_child(child)]
    if (anew and len(theirs) == len(cpu.children)) or not (anew or emitted.has_cpu(cpu)):
        return  # the user's, as it is
    tag = cpu if anew and not emitted.has_mode_attributes(cpu) else original
    others = _unowned(cpu)
    written_since = [child for child in theirs if child.name in _OWNED_BY_CPU]
    taken = [_identity(child) for child in written_since]
    owned = [
        *(
            child
            for child in original.children
            if _is_restored(child, cpu, emitted) and _identity(child) not in taken
        ),
        *written_since,
    ]
    if (
        tag.head == original.head
        and others.split() == _unowned(original).split()
        and owned == [child for child in original.children if child.name in _OWNED_BY_CPU]
    ):
        text = original.text
    else:
        # The user has changed <cpu> since: keep that, and put back what was there before.
        declared = {**original.declarations, **cpu.declarations}
        attributes = [tag.head[len(b"<cpu") :].rstrip(b"/>").strip()]
        attributes += [text for name, text in declared.items() if name not in tag.declarations]
        text = _compose_cpu(
            cpu,
            b" ".join(attributes),
            b"".join(child.text for child in owned if child.name != "feature"),
            tuple(child.text for child in owned if child.name == "feature"),
            others,
        )
    edits.replace(cpu.start, cpu.end, text)


def _identity(child: Element) -> tuple[str, str]:
    """What there is one of in a <cpu>: an element, or a feature by its name."""
    return child.name, child.attributes.get("name", "") if child.name == "feature" else ""


def _is_restored(child: Element, cpu: Element, emitted: Emitted) -> bool:
    """Whether a child of the user's <cpu> comes back: one that was replaced, and not taken out
    since.
    """
    if child.name != "feature":
        return child.name in _OWNED_BY_CPU
    name = child.attributes.get("name", "")
    return not emitted.had_feature(name) or any(
        feature.attributes.get("name", "") == name and emitted.has_child(feature)
        for feature in cpu.find_all("feature")
    )


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


def _unpin(
    edits: Edits, domain: Element, cpus: str, added: tuple[str, ...], originals: dict[str, Element]
) -> None:
    """Take out the pins that `_pin` has added: those to the recorded CPUs, of threads that the user
    had not pinned himself. What says something else is the user's, of later.
    """
    vcpu, cputune = domain.find("vcpu"), domain.find("cputune")
    if vcpu is not None and vcpu.attributes.get("cpuset") == cpus:
        if (
            "vcpu" in added
            and vcpu.body.strip() == b"1"
            and {*vcpu.attributes} <= {*_OWNED_BY_VCPU}
        ):
            edits.remove(vcpu)
        elif "vcpu" in added or "vcpu" in originals:
            _restore_attributes(edits, vcpu, originals.get("vcpu"), _OWNED_BY_VCPU)
    original = originals.get("cputune")
    if cputune is None or (original is None and "cputune" not in added):
        return
    theirs = {thread_of(pin) for pin in pins_in(original)} if original else set()
    ours = [
        pin
        for pin in pins_in(cputune)
        if pin.attributes["cpuset"] == cpus and thread_of(pin) not in theirs
    ]
    if _has_only(cputune, ours, original):
        _put_back_or_remove(edits, cputune, original)
    else:
        for pin in ours:
            edits.remove(pin)


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


def _unlevel(edits: Edits, domain: Element, added: tuple[str, ...]) -> None:
    """Take out what `_level` has added."""
    ours = levelling.elements_in(domain)
    for line in levelling.lines_of(domain):
        children = [child for child in ours if child in line.children]
        if children and "commandline" in added and _has_only(line, children, None):
            edits.remove(line)
        else:
            for child in children:
                edits.remove(child)


def _restore_attributes(
    edits: Edits, current: Element, original: Element | None, owned: tuple[str, ...]
) -> None:
    """Give an element back the attributes that were changed, or take them out where there was no
    such element. If nothing else of it has changed since, it comes back as the user had written it.
    """

    def rest(element: Element) -> tuple[bytes, dict[str, str]]:
        # What the prefix of an attribute stood for is not known any more; see parse_fragment.
        return element.body.strip(), {
            "".join(name.rpartition(" ")[1:]): value
            for name, value in element.attributes.items()
            if name not in owned
        }

    if original and rest(current) == rest(original):
        _put_back(edits, current, original)
    else:
        attributes = original.attributes if original else {}
        edits.replace(
            current.start,
            current.body_start,
            current.tag_with(**{name: attributes.get(name) for name in owned}),
        )


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


def _restore_container(
    edits: Edits,
    container: Element | None,
    names: tuple[str, ...],
    added: tuple[str, ...],
    originals: dict[str, Element],
) -> None:
    """Undo what was done to the named children of a container, and to the container if nothing else
    is in it.
    """
    if container is None:
        return
    children = list(
        filter(None, map(container.find, names))
    )  # the first of each name, as `concretise` has it
    original = originals.get(container.name)
    ours = [child for child in children if child.name in added]
    if (original or container.name in added) and _has_only(container, ours, original):
        _put_back_or_remove(edits, container, original)
        return
    for child in children:
        if child.name in added:
            edits.remove(child)
        else:
            _put_back(edits, child, originals.get(child.name))


def _has_only(container: Element, ours: list[Element], original: Element | None) -> bool:
    """Whether there is nothing in a container but what is ours, and what was there before: nothing,
    if there was no container. libvirt drops comments.
    """
    had = original.body.split() if original else []
    attributes = original.attributes.items() if original else {}.items()
    return container.attributes.items() <= attributes and _body_without(
        container, ours
    ).split() in ([], had)


def _put_back_or_remove(edits: Edits, current: Element, original: Element | None) -> None:
    if original is None:
        edits.remove(current)
    else:
        _put_back(edits, current, original)


def _put_back(edits: Edits, current: Element | None, original: Element | None) -> None:
    if current is not None and original is not None:
        edits.replace(current.start, current.end, original.text)
