# SPDX-License-Identifier: LGPL-2.1-or-later
"""The record: a target in the domain's metadata, with the user's intent and where it was made.

`Record.format` writes the <kvmarm:target> element, `find` and `read` get it back; both ways are
inverse. The element's schema is xml-templates/kvmarm-target.rng. libvirt keeps the element through
define, migration, save and snapshot, and keeps one of each namespace.

A record is untrusted: a migrating peer may have written it, or anyone who may edit a domain. It is
read only if kvmarm could have written it, and written only if it can be read.
"""

from __future__ import annotations

from ..basics.errors import KvmarmError
from ..basics.untrusted import decimal, shown
from ..basics.value import Value
from ..model.target import Pinning, Target, check_target
from ..registers.text import format_values, parse_value, parse_values, words
from .xml import Element, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

NAMESPACE_STEM = "urn:kvmarm-plugin:target:"
NAMESPACE = NAMESPACE_STEM + "1"

_HEAD = f"<kvmarm:target xmlns:kvmarm='{NAMESPACE}'>".encode()
_STEP = b"  "
_LINE = 120  # columns of the long lists, for people who read dumpxml

# The children of the element, each with the attributes that it has and those that it may have.
_CHILDREN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
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
_OPTIONAL = ("pinning", "sve", "seen")
_OF_TEXT = ("seen", "registers", "reglist")

# What `rewrite.concretise` keeps in an intent.
_KEPT = frozenset({"cpu", "type", "vcpu", "cputune", "gic", "features", "metadata"})
_ADDED = frozenset({"vcpu", "cputune", "gic", "pmu", "features", "metadata"})
_WITH_CHILDREN = ("cpu", "cputune")
_LARGEST_INTENT = (
    1 << 20
)  # bytes: a <cpu> with as many NUMA cells as libvirt takes, and their distances, has half of it

_LONGEST_NAME = 255  # characters: of the host, which Linux gives 64, and of program and version


class RecordError(KvmarmError):
    """A <kvmarm:target> that cannot be trusted: broken, or of a version this program does not
    know.
    """


class Intent(Value):
    """What the user had written where `rewrite` changed the domain.

    Attributes:
        added: names of the elements that were not there; of _ADDED.
        kept: the elements that were, as they were written: <cpu> always; <type>, <gic>, <vcpu> and
            <cputune> where they were changed; <features> and <metadata> that were empty.
    """

    added: tuple[str, ...]
    kept: tuple[bytes, ...]


class Origin(Value):
    """Where a record was made.

    Attributes:
        host: the host's name.
        profile: digest of the host profile, "sha256:…".
        by: program and version.
    """

    host: str
    profile: str
    by: str


class Record(Value):
    """Target, intent and origin."""

    target: Target
    intent: Intent
    origin: Origin


def format_record(added: list[str], kept: list[bytes], facts: list[bytes], indent: bytes) -> bytes:
    """The <kvmarm:target> element.

    Args:
        added, kept: the intent, as `Intent` has it.
        facts: from `format_facts`; the same for every domain that gets this target.
        indent: line break and white space to put in front of each child; empty puts all on one
            line.

    Raises:
        RecordError: the intent is larger than one may be.
    """
    size = sum(map(len, kept))
    if size > _LARGEST_INTENT:
        raise RecordError(
            f"what the record would have to keep of the domain has {size} bytes",
            "write a smaller <cpu>",
        )
    attribute = f" added='{' '.join(added)}'" if added else ""
    intent = f"<kvmarm:intent{attribute}>".encode() + b"".join(kept) + b"</kvmarm:intent>"
    inner = indent + _STEP if indent else b" "  # never nothing: a list goes over several lines
    return inner.join([_HEAD, intent, *facts]) + indent + b"</kvmarm:target>"


def format_facts(target: Target, origin: Origin) -> list[bytes]:
    """The children of <kvmarm:target> that come from the host, as lines.

    Raises:
        RecordError: the profile that these come from says what no host can give, or has a name that
            does not print.
    """
    try:
        check_target(target)
        _check_origin(origin)
    except ValueError as error:
        raise RecordError(
            f"a record of this profile would be broken: {error}", "probe the host again"
        ) from None
    sve = (
        [f"<kvmarm:sve lengths={_list(map(str, target.sve_lengths))}/>"]
        if target.sve_lengths
        else []
    )
    unsaid = f" unsaid={_list(target.unsaid)}" if target.unsaid else ""
    pinning = [_format_pinning(target.pinning)] if target.pinning else []
    seen = [*_wrapped("seen", format_values(target.seen))] if target.seen else []
    lines = [
        (
            f"<kvmarm:vcpu architecture={quoted(target.architecture)} target='{target.number}'"
            f" features={_list(target.features)}/>"
        ),
        f"<kvmarm:qemu model={quoted(target.model)} machine={quoted(target.machine)}{unsaid}/>",
        f"<kvmarm:guest gic='{target.gic}' psci={quoted(target.psci)} ipa='{target.ipa_bits}'/>",
        *pinning,
        *sve,
        *seen,
        *_wrapped("registers", format_values(target.registers)),
        *_wrapped("reglist", target.reglist),
        (
            f"<kvmarm:origin host={quoted(origin.host)} profile={quoted(origin.profile)}"
            f" by={quoted(origin.by)}/>"
        ),
    ]
    # The document may be in any encoding that holds ASCII as it is.
    return [line.encode("ascii", "xmlcharrefreplace") for line in lines]


def _format_pinning(pinning: Pinning) -> str:
    revidr = "" if pinning.revidr is None else f" revidr='{pinning.revidr:#x}'"
    return f"<kvmarm:pinning midr='{pinning.midr:#x}'{revidr} cpus={quoted(pinning.cpus)}/>"


def _list(names: Iterable[str]) -> str:
    return quoted(" ".join(names))


def find(domain: Element) -> Element | None:
    """The domain's <kvmarm:target>, or None.

    Raises:
        RecordError: more than one, or one of another version: never half-read.
    """
    # libvirt reads the first <metadata> only, and writes one; what others write is not to hide a
    # record.
    ours = [
        child
        for place in domain.find_all("metadata")
        for child in place.children
        if child.name.startswith(NAMESPACE_STEM)
    ]
    if not ours:
        return None
    if len(ours) > 1:
        raise RecordError(
            "the domain has more than one kvmarm record", "remove all but one with: virsh edit"
        )
    namespace, _, name = ours[0].name.partition(" ")
    if namespace == NAMESPACE and name != "target":
        raise RecordError(
            f"the domain's metadata holds a {shown(name, 60)} of kvmarm's that is no record",
            "remove it with: virsh edit",
        )
    if namespace != NAMESPACE:
        version = shown(namespace[len(NAMESPACE_STEM) :], 60) or "none"
        raise RecordError(
            f"the domain's kvmarm record is of version {version}; this kvmarm knows version 1",
            "upgrade kvmarm on this host",
        )
    return ours[0]


def read(element: Element) -> Record:
    """The record in an element that `find` returned.

    Raises:
        RecordError: something is missing or is not what the schema says.
    """
    try:
        children = _children(element)
        target = _read_target(children)
        intent = intent_of(element)
        record = Record(
            target,
            Intent(names_added(intent), tuple(child.text for child in intent.children)),
            Origin(**children["origin"].attributes),
        )
        _check_origin(record.origin)
    except ValueError as error:
        raise RecordError(
            f"the domain's kvmarm record is broken: {error}",
            "resolve the domain again from its intent",
        ) from None
    return record


def intent_of(element: Element) -> Element:
    """The <kvmarm:intent> of a record: its children are elements as the user had written them.

    Raises:
        RecordError: there is none, or it holds what kvmarm would not have kept: to restore it would
            change what resolving did not.
    """
    intents = element.find_all(f"{NAMESPACE} intent")
    if not intents:
        raise RecordError(
            "the domain's kvmarm record holds no intent", "remove the record with: virsh edit"
        )
    try:
        if len(intents) > 1:
            raise ValueError("there are several")
        _check_intent(intents[0])
    except ValueError as error:
        raise RecordError(
            f"the intent in the domain's kvmarm record is not one that kvmarm wrote: {error}",
            "remove the record with: virsh edit",
        ) from None
    return intents[0]


def pinning_of(element: Element) -> Element | None:
    """The <kvmarm:pinning> of a record."""
    return element.find(f"{NAMESPACE} pinning")


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
    )
    check_target(target)
    if guest["psci"] != target.psci:
        raise ValueError(f"PSCI {shown(guest['psci'], 60)!r}, and {target.psci} in its registers")
    if (sve and not target.sve_lengths) or (seen and not target.seen):
        raise ValueError("an empty list")
    return target


def _read_pinning(element: Element | None) -> Pinning | None:
    if element is None:
        return None
    midr, revidr, cpus = (element.attributes.get(name) for name in ("midr", "revidr", "cpus"))
    return Pinning(
        parse_value(midr or ""), None if revidr is None else parse_value(revidr), cpus or ""
    )


def _number(text: str) -> int:
    """A number of the record's, none of which has more than four digits."""
    number = decimal(text, 9999)
    if str(number) != text:
        raise ValueError(f"not a number as kvmarm writes it: {text!r}")
    return number


def _text(element: Element) -> str:
    return element.body.decode(errors="replace")


def _check_origin(origin: Origin) -> None:
    for text in (origin.host, origin.by):
        if len(text) > _LONGEST_NAME or not text.isprintable():
            raise ValueError(f"not a host's name, or not a program's: {shown(text, 60)!r}")
    kind, _, digest = origin.profile.partition(":")
    if (
        kind != "sha256"
        or len(digest) != 64
        or not frozenset("0123456789abcdef").issuperset(digest)
    ):
        raise ValueError(f"not a profile's digest: {shown(origin.profile, 60)!r}")


def _check_intent(intent: Element) -> None:
    """Hold an intent to what `rewrite.concretise` keeps. Inside <cpu> and <cputune> that is
    whatever the user had written.
    """
    if intent.end - intent.start > _LARGEST_INTENT + _LINE:
        raise ValueError(f"it has more than {_LARGEST_INTENT >> 20} MiB")
    _check_attributes(intent, *_CHILDREN["intent"])
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
        if child.name == "cpu" and child.attributes.get("mode") != "host-model":
            raise ValueError("its <cpu> does not ask for host-model")
        if child.name == "gic" and child.attributes.get("version") in ("2", "3"):
            raise ValueError("its <gic> is concrete")


def _children(element: Element) -> dict[str, Element]:
    """The children of a record by their names, all as the schema has them. Raises ValueError."""
    _check_attributes(element, (), ())
    names = [child.name for child in element.children]
    known = {f"{NAMESPACE} {name}": name for name in _CHILDREN}
    missing = [name for full, name in known.items() if full not in names and name not in _OPTIONAL]
    if missing:
        raise ValueError(f"nothing called {missing[0]!r}")
    if not _each_once(names, known):
        raise ValueError(
            f"its elements are {shown(' '.join(name.rpartition(' ')[2] for name in names), 120)}"
        )
    _check_no_text(element)
    children = {known[child.name]: child for child in element.children}
    for name, child in children.items():
        _check_attributes(child, *_CHILDREN[name])
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


def _wrapped(name: str, text: str) -> list[str]:
    """An element around a long list, broken into lines at white space."""
    lines = [f"<kvmarm:{name}>"]
    for word in text.split():
        if len(lines[-1]) + len(word) >= _LINE:
            lines.append(word)
        else:
            lines[-1] += word if lines[-1].endswith(">") else f" {word}"
    lines[-1] += f"</kvmarm:{name}>"
    return lines
