# SPDX-License-Identifier: LGPL-2.1-or-later
"""The record: a target in the domain's metadata, with the user's intent and where it was made.

`find` and `read` get it out of the <kvmarm:target> element, and record_text writes it; both ways
are inverse. The element's schema is xml-templates/kvmarm-target.rng. libvirt keeps the element
through define, migration, save and snapshot, and keeps one of each namespace.

Records of version 1 are read too (xml-templates/kvmarm-target-1.rng). They hold the intent as
elements. virDomainSetMetadata would put these into the record's namespace, since it does that to
every element (virXMLInjectNamespace); so version 2 holds their text.

A record is untrusted: a migrating peer may have written it, or anyone who may edit a domain. It is
read only if kvmarm could have written it, and written only if it can be read.
"""

from __future__ import annotations

from ..basics.errors import KvmarmError
from ..basics.untrusted import decimal, shown
from ..basics.value import Value
from ..model.target import Level, Pinning, Target, check_cpus, check_target, level_cpus
from ..registers.text import parse_value, parse_values, words
from .xml import RUN_LIMIT, DomainXMLError, Element, in_utf8, parse_fragment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Sequence

NAMESPACE_STEM = "urn:kvmarm-plugin:target:"
NAMESPACE = NAMESPACE_STEM + "2"
NAMESPACE_1 = NAMESPACE_STEM + "1"
PREFIX = "kvmarm"


# The children of the element by version, each with the attributes that it has and those that it may
# have.
_CHILDREN_1: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "intent": ((), ("added",)),
    "vcpu": (("architecture", "target", "features"), ()),
    "qemu": (("model", "machine"), ("unsaid",)),
    "guest": (("gic", "psci", "ipa"), ()),
    "pinning": (("midr", "cpus"), ("revidr",)),
    "sve": (("lengths",), ()),
    "seen": ((), ()),
    "registers": ((), ()),
    "reglist": ((), ()),
    "origin": (("host", "profile", "by"), ()),
}
_CHILDREN_2 = {
    **_CHILDREN_1,
    "roams": ((), ()),
    "level": ((), ("without", "own", "cpus")),
    "home": (("cpus",), ("cpuset",)),
    "origin": (("host", "by"), ("profile", "renewed")),
}
_CHILDREN = {NAMESPACE: _CHILDREN_2, NAMESPACE_1: _CHILDREN_1}  # the first counts, of two
_OPTIONAL_1 = ("pinning", "sve", "seen")
_OPTIONAL = {
    NAMESPACE: (*_OPTIONAL_1, "intent", "roams", "level", "home"),
    NAMESPACE_1: _OPTIONAL_1,
}
_OF_TEXT = ("seen", "registers", "reglist", "home")

# The modes of the <cpu> in an intent: of a guest that was adopted, another than host-model. Version
# 1 knows no such guests.
_MODES = {
    NAMESPACE: ("host-model", "host-passthrough", "maximum", "custom"),
    NAMESPACE_1: ("host-model",),
}

# What `rewrite.concretise` keeps in an intent.
_KEPT = frozenset({"cpu", "type", "vcpu", "cputune", "gic", "features", "metadata"})
_ADDED = frozenset({"vcpu", "cputune", "gic", "pmu", "features", "metadata", "commandline"})
_WITH_CHILDREN = ("cpu", "cputune")
_LONGEST_NAME = 255  # characters: of the host, which Linux gives 64, and of program and version


class RecordError(KvmarmError):
    """A <kvmarm:target> that cannot be trusted: broken, or of a version this program does not
    know.
    """


class Intent(Value):
    """What the user had written where `rewrite` changed the domain.

    Attributes:
        added: names of the elements that were not there; of _ADDED.
        kept: the elements that were, as they were written, in UTF-8: <cpu> always; <type>, <gic>,
            <vcpu> and <cputune> where they were changed; <features> and <metadata> that were empty.
            Nothing for a guest that was adopted and is as its user wrote it: there is nothing to
            restore.
    """

    added: tuple[str, ...]
    kept: tuple[bytes, ...]


class Origin(Value):
    """Where a record was made.

    Attributes:
        host: the host's name.
        profile: digest of the host profile, "sha256:…"; empty where no profile was needed, for a
            guest that was adopted as it is.
        by: program and version.
        renewed: name of the host that made the target true again since; empty if none has.
    """

    host: str
    profile: str
    by: str
    renewed: str = ""


class Home(Value):
    """The pins of a guest as they were before they were moved for another host.

    Attributes:
        cpus: the numbers that the CPUs of its cluster have there, as in `Pinning`.
        cpuset: of <vcpu>; empty if it has none.
        pins: the elements of <cputune> that pin threads, as they were written, in UTF-8.
    """

    cpus: str
    cpuset: str
    pins: tuple[bytes, ...]


class Record(Value):
    """Target, intent, origin, and where the pins come from if they were moved."""

    target: Target
    intent: Intent
    origin: Origin
    home: Home | None = None


def is_adopted(found: Record) -> bool:
    """Whether a record is of a guest that never asked for host-model. Its <cpu> is its user's, or
    was pinned for one that kept what it had.
    """
    kept = parse_fragment(b"".join(found.intent.kept).decode(), "utf-8")
    cpu = kept.find("cpu")
    return cpu is None or cpu.attributes.get("mode") != "host-model"


def find(domain: Element) -> Element | None:
    """The domain's <kvmarm:target>, or None.

    Raises:
        RecordError: more than one of a version, or one of an unknown version: never half-read.
    """
    return next(iter(find_all(domain)), None)


def ours(domain: Element) -> list[Element]:
    """All elements of kvmarm's in a domain's metadata, of any version, be they records or not."""
    # libvirt reads the first <metadata> only, and writes one; what others write is not to hide a
    # record.
    return [
        child
        for place in domain.find_all("metadata")
        for child in place.children
        if child.name.startswith(NAMESPACE_STEM)
    ]


def find_all(domain: Element) -> list[Element]:
    """The domain's records, the one that counts first: an interrupted renewal leaves one of
    version 1 beside that of version 2. Raises RecordError as `find` does.
    """
    found: dict[str, Element] = {}
    for element in ours(domain):
        namespace, _, name = element.name.partition(" ")
        if namespace in found:
            raise RecordError(
                "the domain has more than one kvmarm record", "remove all but one with: virsh edit"
            )
        if namespace not in _CHILDREN:
            version = shown(namespace[len(NAMESPACE_STEM) :], 60) or "none"
            raise RecordError(
                f"the domain's kvmarm record is of version {version}; this kvmarm knows versions 1"
                " and 2",
                "upgrade kvmarm on this host",
            )
        if name != "target":
            raise RecordError(
                f"the domain's metadata holds a {shown(name, 60)} of kvmarm's that is no record",
                "remove it with: virsh edit",
            )
        found[namespace] = element
    return [found[namespace] for namespace in _CHILDREN if namespace in found]


def read(element: Element) -> Record:
    """The record in an element that `find` returned, of any version.

    Raises:
        RecordError: something is missing or is not what the schema says.
    """
    try:
        children = _children(element)
        target = _read_target(children)
        intent, encoding = intent_of(element), element.encoding
        record = Record(
            target,
            Intent(
                names_added(intent),
                tuple(in_utf8(child.text, encoding) for child in intent.children),
            ),
            Origin(**{"profile": "", **children["origin"].attributes}),
            _read_home(children.get("home")),
        )
        check_origin(record.origin)
        if children["origin"].attributes.get("renewed") == "":
            raise ValueError("renewed by nobody")
        if children["origin"].attributes.get("profile") == "":
            raise ValueError("an empty digest")
        check_home(record.home, target)
    except (ValueError, DomainXMLError) as error:
        raise RecordError(
            f"the domain's kvmarm record is broken: {reason(error)}",
            "refresh the domain: its record is made anew from its intent",
        ) from None
    return record


def read_from(domain: Element) -> Record | None:
    """The domain's record, None if it has none. Raises RecordError as `find` and `read` do."""
    element = find(domain)
    return None if element is None else read(element)


def intent_of(element: Element) -> Element:
    """The intent of a record: an element whose children are as the user had written them, in the
    encoding of the document that the record is in. It has none if the guest was adopted as it is.

    Raises:
        RecordError: version 1 has none, or it holds what kvmarm would not have kept: to restore it
            would change what resolving did not.
    """
    namespace = _namespace_of(element)
    intents = element.find_all(f"{namespace} intent")
    if not intents:
        if "intent" in _OPTIONAL[namespace]:
            return Element(b"", "", {}, 0, None)
        raise RecordError(
            "the domain's kvmarm record holds no intent", "remove the record with: virsh edit"
        )
    try:
        if len(intents) > 1:
            raise ValueError("there are several")
        _check_attributes(intents[0], *_CHILDREN[namespace]["intent"])
        intent = intents[0] if namespace == NAMESPACE_1 else _elements_in(intents[0])
        _check_intent(intent, _MODES[namespace])
    except (ValueError, DomainXMLError) as error:
        raise RecordError(
            "the intent in the domain's kvmarm record is not one that kvmarm wrote:"
            f" {reason(error)}",
            "remove the record with: virsh edit",
        ) from None
    return intent


def _elements_in(element: Element) -> Element:
    """The elements whose text is in an element of a record. Raises ValueError, DomainXMLError."""
    if b"<" in element.body:
        raise ValueError(f"there is markup in its {element.name.rpartition(' ')[2]}")
    fragment = parse_fragment(element.content, element.encoding)
    fragment.name, fragment.attributes = element.name, element.attributes
    return fragment


def reason(error: Exception) -> str:
    """Of a record that is broken."""
    return error.message if isinstance(error, KvmarmError) else str(error)


def _namespace_of(element: Element) -> str:
    return element.name.partition(" ")[0]


def pinning_of(element: Element) -> Element | None:
    """The <kvmarm:pinning> of a record."""
    return element.find(f"{_namespace_of(element)} pinning")


def names_added(intent: Element) -> tuple[str, ...]:
    """The names of the elements that were not there before; see `Intent.added`."""
    return tuple(words(intent.attributes.get("added", "")))


def _read_target(children: dict[str, Element]) -> Target:
    vcpu, qemu, guest = (children[name].attributes for name in ("vcpu", "qemu", "guest"))
    sve, seen = children.get("sve"), children.get("seen")
    target = Target(
        architecture=vcpu["architecture"],
        number=_number(vcpu["target"]),
        features=tuple(words(vcpu["features"])),
        model=qemu["model"],
        unsaid=tuple(words(qemu.get("unsaid", ""))),
        machine=qemu["machine"],
        gic=_number(guest["gic"]),
        ipa_bits=_number(guest["ipa"]),
        sve_lengths=tuple(map(_number, words(sve.attributes["lengths"]))) if sve else (),
        seen=parse_values(_text(seen)) if seen else {},
        registers=parse_values(_text(children["registers"])),
        reglist=" ".join(words(_text(children["reglist"]))),
        pinning=_read_pinning(children.get("pinning")),
        roams="roams" in children,
        level=_read_level(children.get("level")),
    )
    check_target(target)
    if guest["psci"] != target.psci:
        raise ValueError(f"PSCI {shown(guest['psci'], 60)!r}, and {target.psci} in its registers")
    if (sve and not target.sve_lengths) or (seen and not target.seen):
        raise ValueError("an empty list")
    return target


def _read_level(element: Element | None) -> Level | None:
    if element is None:
        return None
    said = {name: tuple(words(text)) for name, text in element.attributes.items()}
    if not all(said.values()):
        raise ValueError("an empty list")
    cpus = said.get("cpus", ())
    level = Level(said.get("without", ()), said.get("own", ()), level_cpus(cpus))
    if level.cpu_words != cpus:
        raise ValueError(f"CPUs of its pool, not as kvmarm writes them: {' '.join(cpus)[:60]}")
    return level


def _read_pinning(element: Element | None) -> Pinning | None:
    if element is None:
        return None
    midr, revidr, cpus = (element.attributes.get(name) for name in ("midr", "revidr", "cpus"))
    return Pinning(
        parse_value(midr or ""), None if revidr is None else parse_value(revidr), cpus or ""
    )


def _read_home(element: Element | None) -> Home | None:
    if element is None:
        return None
    attributes, pins = element.attributes, _elements_in(element)
    if attributes.get("cpuset") == "":
        raise ValueError("an empty cpuset")
    _check_no_text(pins)
    return Home(
        attributes["cpus"],
        attributes.get("cpuset", ""),
        tuple(in_utf8(pin.text, element.encoding) for pin in pins.children),
    )


def _number(text: str) -> int:
    """A number of the record's, none of which has more than four digits."""
    number = decimal(text, 9999)
    if str(number) != text:
        raise ValueError(f"not a number as kvmarm writes it: {text!r}")
    return number


def _text(element: Element) -> str:
    return element.body.decode(errors="replace")


def check_origin(origin: Origin) -> None:
    """Raises ValueError for an origin that kvmarm would not have written."""
    for text in (origin.host, origin.by, origin.renewed):
        if len(text) > _LONGEST_NAME or not text.isprintable():
            raise ValueError(f"not a host's name, or not a program's: {shown(text, 60)!r}")
    kind, _, digest = origin.profile.partition(":")
    if origin.profile and (
        kind != "sha256"
        or len(digest) != 64
        or not frozenset("0123456789abcdef").issuperset(digest)
    ):
        raise ValueError(f"not a profile's digest: {shown(origin.profile, 60)!r}")


def check_home(home: Home | None, target: Target) -> None:
    """Raises ValueError or DomainXMLError for pins that the hook would not have kept."""
    if home is None:
        return
    from ..basics import cpulist  # few guests are pinned, and fewer have moved
    from .pins import cpus_of, pins_in, thread_of

    if target.pinning is None:
        raise ValueError("pins of a guest that is not pinned")
    check_cpus(home.cpus)
    if home.cpuset:
        cpulist.mask(home.cpuset)
    pins = parse_fragment(b"".join(home.pins).decode(), "utf-8")
    threads = [thread_of(pin) for pin in pins_in(pins) if cpus_of(pin) and not pin.children]
    if len(threads) < len(pins.children) or len({*threads}) < len(threads):
        raise ValueError("something among its pins that pins no thread, or one twice")


def _check_intent(intent: Element, modes: tuple[str, ...]) -> None:
    """Hold an intent to what `rewrite.concretise` keeps. Inside <cpu> and <cputune> that is
    whatever the user had written.

    Args:
        modes: those that its <cpu> may have.
    """
    if len(intent.body) > RUN_LIMIT:
        raise ValueError(f"it has more than {RUN_LIMIT >> 20} MiB")
    names, added = [child.name for child in intent.children], names_added(intent)
    if "cpu" not in names or not _each_once(names, _KEPT):
        raise ValueError(f"it keeps {shown(' '.join(names), 120) or 'nothing'}")
    if not _each_once(added, _ADDED.difference(names)) or (
        "added" in intent.attributes and not added
    ):
        raise ValueError(f"as added it names {shown(' '.join(added), 120) or 'nothing'}")
    _check_no_text(intent)
    for child in intent.children:
        if child.children and child.name not in _WITH_CHILDREN:
            raise ValueError(f"its <{child.name}> holds elements")
        if child.name == "cpu":
            mode = child.attributes.get("mode", "custom")
            if mode not in modes or (mode == "custom" and child.find("model") is None):
                raise ValueError(f"its <cpu> asks for nothing of: {' '.join(modes)}")
        if child.name == "gic" and child.attributes.get("version") in ("2", "3"):
            raise ValueError("its <gic> is concrete")


def _children(element: Element) -> dict[str, Element]:
    """The children of a record by their names, all as the schema has them. Raises ValueError."""
    _check_attributes(element, (), ())
    namespace = _namespace_of(element)
    attributes, optional = _CHILDREN[namespace], _OPTIONAL[namespace]
    names = [child.name for child in element.children]
    known = {f"{namespace} {name}": name for name in attributes}
    missing = [name for full, name in known.items() if full not in names and name not in optional]
    if missing:
        raise ValueError(f"nothing called {missing[0]!r}")
    if not _each_once(names, known):
        raise ValueError(
            f"its elements are {shown(' '.join(name.rpartition(' ')[2] for name in names), 120)}"
        )
    _check_no_text(element)
    children = {known[child.name]: child for child in element.children}
    for name, child in children.items():
        _check_attributes(child, *attributes[name])
        if name != "intent" and (child.children or (child.body.strip() and name not in _OF_TEXT)):
            raise ValueError(f"something inside its {name}")
    return children


def _each_once(names: Sequence[str], known: Container[str]) -> bool:
    return len({*names}) == len(names) and all(name in known for name in names)


def _check_attributes(
    element: Element, required: tuple[str, ...], optional: tuple[str, ...]
) -> None:
    names = element.attributes.keys()
    if not names <= {*required, *optional} or not names >= {*required}:
        raise ValueError(
            f"attributes of its {element.name.rpartition(' ')[2]}:"
            f" {shown(' '.join(names), 120) or 'none'}"
        )


def _check_no_text(element: Element) -> None:
    """Between the children of an element there is white space only."""
    body, offset, place = element.body, element.body_start, 0
    for start, end in [
        *((child.start - offset, child.end - offset) for child in element.children),
        (len(body), 0),
    ]:
        if body[place:start].strip():
            raise ValueError(f"text inside its {element.name.rpartition(' ')[2]}")
        place = end
