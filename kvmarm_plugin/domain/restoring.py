# SPDX-License-Identifier: LGPL-2.1-or-later
"""Host-model back into a domain's XML: the inverse of `rewrite`. What was added goes, what was
replaced comes back as the user had written it, and nothing else changes, to the byte.
"""

from __future__ import annotations

from . import levelling, record
from .edits import Edits
from .emitted import Emitted
from .pins import pins_in, thread_of
from .rewrite import OWNED_BY_CPU, body_without, compose_cpu, unowned
from .xml import DomainXMLError, Element, parse

# The attributes that are ours where the element is the user's.
_OWNED_BY_TYPE = ("machine",)
_OWNED_BY_VCPU = ("placement", "cpuset")


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
    others = unowned(cpu)
    written_since = [child for child in theirs if child.name in OWNED_BY_CPU]
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
        and others.split() == unowned(original).split()
        and owned == [child for child in original.children if child.name in OWNED_BY_CPU]
    ):
        text = original.text
    else:
        # The user has changed <cpu> since: keep that, and put back what was there before.
        declared = {**original.declarations, **cpu.declarations}
        attributes = [tag.head[len(b"<cpu") :].rstrip(b"/>").strip()]
        attributes += [text for name, text in declared.items() if name not in tag.declarations]
        text = compose_cpu(
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
        return child.name in OWNED_BY_CPU
    name = child.attributes.get("name", "")
    return not emitted.had_feature(name) or any(
        feature.attributes.get("name", "") == name and emitted.has_child(feature)
        for feature in cpu.find_all("feature")
    )


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
    return container.attributes.items() <= attributes and body_without(container, ours).split() in (
        [],
        had,
    )


def _put_back_or_remove(edits: Edits, current: Element, original: Element | None) -> None:
    if original is None:
        edits.remove(current)
    else:
        _put_back(edits, current, original)


def _put_back(edits: Edits, current: Element | None, original: Element | None) -> None:
    if current is not None and original is not None:
        edits.replace(current.start, current.end, original.text)
