# SPDX-License-Identifier: LGPL-2.1-or-later
"""The record: a target in the domain's metadata, with the user's intent and where it was made.

`Record.format` writes the <kvmarm:target> element, `find` and `read` get it back; both ways are inverse. The element's schema is
xml-templates/kvmarm-target.rng. libvirt keeps the element through define, migration, save and snapshot, and keeps one
of each namespace.
"""

from __future__ import annotations

from .domain import Element, quoted
from .errors import KvmarmError
from .registers.table import id_of
from .registers.text import format_values, parse_values, unpack_ids
from .target import VCPU_FEATURES, Pinning, Target
from .value import Value

NAMESPACE_STEM = "urn:kvmarm-plugin:target:"
NAMESPACE = NAMESPACE_STEM + "1"

_HEAD = f"<kvmarm:target xmlns:kvmarm='{NAMESPACE}'>".encode()
_STEP = b"  "
_LINE = 120  # columns of the long lists, for people who read dumpxml


class RecordError(KvmarmError):
    """A <kvmarm:target> that cannot be trusted: broken, or of a version this program does not know."""


class Intent(Value):
    """What the user had written where `rewrite` changed the domain.

    Attributes:
        added: names of the elements that were not there.
        kept: the elements that were, as they were written: <cpu> always; <type>, <gic>, <vcpu> and <cputune> where they were
            changed; <features> and <metadata> that were empty.
    """

    __slots__ = ("added", "kept")
    added: tuple[str, ...]
    kept: tuple[bytes, ...]

    def __init__(self, added: tuple[str, ...], kept: tuple[bytes, ...]) -> None:
        self._freeze(locals())


class Origin(Value):
    """Where a record was made.

    Attributes:
        host: the host's name.
        profile: digest of the host profile, "sha256:…".
        by: program and version.
    """

    __slots__ = ("by", "host", "profile")
    host: str
    profile: str
    by: str

    def __init__(self, host: str, profile: str, by: str) -> None:
        self._freeze(locals())


class Record(Value):
    """Target, intent and origin."""

    __slots__ = ("intent", "origin", "target")
    target: Target
    intent: Intent
    origin: Origin

    def __init__(self, target: Target, intent: Intent, origin: Origin) -> None:
        self._freeze(locals())


def format_record(added: list[str], kept: list[bytes], facts: list[bytes], indent: bytes) -> bytes:
    """The <kvmarm:target> element.

    Args:
        added, kept: the intent, as `Intent` has it.
        facts: from `format_facts`; the same for every domain that gets this target.
        indent: line break and white space to put in front of each child; empty puts all on one line.
    """
    attribute = f" added='{' '.join(added)}'" if added else ""
    intent = f"<kvmarm:intent{attribute}>".encode() + b"".join(kept) + b"</kvmarm:intent>"
    inner = indent + _STEP if indent else b" "  # never nothing: a list goes over several lines
    return inner.join([_HEAD, intent, *facts]) + indent + b"</kvmarm:target>"


def format_facts(target: Target, origin: Origin) -> list[bytes]:
    """The children of <kvmarm:target> that come from the host, as lines."""
    sve = [f"<kvmarm:sve lengths='{' '.join(map(str, target.sve_lengths))}'/>"] if target.sve_lengths else []
    unsaid = f" unsaid='{' '.join(target.unsaid)}'" if target.unsaid else ""
    pinning = [_format_pinning(target.pinning)] if target.pinning else []
    seen = [*_wrapped("seen", format_values(target.seen))] if target.seen else []
    lines = [
        f"<kvmarm:vcpu architecture='{target.architecture}' target='{target.number}' features='{' '.join(target.features)}'/>",
        f"<kvmarm:qemu model={quoted(target.model)} machine={quoted(target.machine)}{unsaid}/>",
        f"<kvmarm:guest gic='{target.gic}' psci='{target.psci}' ipa='{target.ipa_bits}'/>",
        *pinning,
        *sve,
        *seen,
        *_wrapped("registers", format_values(target.registers)),
        *_wrapped("reglist", target.reglist),
        f"<kvmarm:origin host={quoted(origin.host)} profile='{origin.profile}' by={quoted(origin.by)}/>",
    ]
    # The document may be in any encoding that holds ASCII as it is.
    return [line.encode("ascii", "xmlcharrefreplace") for line in lines]


def _format_pinning(pinning: Pinning) -> str:
    revidr = "" if pinning.revidr is None else f" revidr='{pinning.revidr:#x}'"
    return f"<kvmarm:pinning midr='{pinning.midr:#x}'{revidr} cpus='{pinning.cpus}'/>"


def find(domain: Element) -> Element | None:
    """The domain's <kvmarm:target>, or None.

    Raises:
        RecordError: more than one, or one of another version: never half-read.
    """
    metadata = domain.find("metadata")
    ours = [child for child in metadata.children if child.name.startswith(NAMESPACE_STEM)] if metadata else []
    if not ours:
        return None
    if len(ours) > 1:
        raise RecordError("the domain has more than one kvmarm record", "remove all but one with: virsh edit")
    namespace, _, name = ours[0].name.partition(" ")
    if namespace == NAMESPACE and name != "target":
        raise RecordError(f"the domain's metadata holds a {name} of kvmarm's that is no record", "remove it with: virsh edit")
    if namespace != NAMESPACE:
        version = namespace[len(NAMESPACE_STEM) :] or "none"
        raise RecordError(
            f"the domain's kvmarm record is of version {version}; this kvmarm knows version 1", "upgrade kvmarm on this host"
        )
    return ours[0]


def read(element: Element) -> Record:
    """The record in an element that `find` returned.

    Raises:
        RecordError: something is missing or is not what the schema says.
    """
    try:
        return Record(_read_target(element), _read_intent(element), _read_origin(element))
    except (KeyError, ValueError) as error:
        what = f"nothing called {error}" if isinstance(error, KeyError) else str(error)
        raise RecordError(f"the domain's kvmarm record is broken: {what}", "resolve the domain again from its intent") from None


def intent_of(element: Element) -> Element:
    """The <kvmarm:intent> of a record: its children are elements as the user had written them. Raises RecordError."""
    intent = element.find(f"{NAMESPACE} intent")
    if intent is None:
        raise RecordError("the domain's kvmarm record holds no intent", "remove the record with: virsh edit")
    return intent


def pinning_of(element: Element) -> Element | None:
    """The <kvmarm:pinning> of a record."""
    return element.find(f"{NAMESPACE} pinning")


def names_added(intent: Element) -> tuple[str, ...]:
    """The names of the elements that were not there before; see `Intent.added`."""
    return tuple(intent.attributes.get("added", "").split())


def _read_target(element: Element) -> Target:
    vcpu, qemu, guest = (_child(element, name).attributes for name in ("vcpu", "qemu", "guest"))
    sve = element.find(f"{NAMESPACE} sve")
    seen = element.find(f"{NAMESPACE} seen")
    registers = parse_values(_child(element, "registers").body.decode())
    reglist = " ".join(_child(element, "reglist").body.decode().split())
    if not registers or not unpack_ids(reglist):
        raise ValueError("no registers in it")
    for name in registers:
        id_of(name)  # one that is not known here could not be compared
    if vcpu["architecture"] not in ("arm", "arm64"):
        raise ValueError(f"architecture {vcpu['architecture']!r}")
    if guest["gic"] not in ("2", "3"):
        raise ValueError(f"GIC version {guest['gic']!r}")
    return Target(
        architecture=vcpu["architecture"],
        number=_number(vcpu["target"]),
        features=_features(vcpu["features"]),
        model=qemu["model"],
        unsaid=_features(qemu.get("unsaid", "")),
        machine=qemu["machine"],
        gic=int(guest["gic"]),
        ipa_bits=_number(guest["ipa"]),
        sve_lengths=tuple(_number(length) for length in sve.attributes["lengths"].split()) if sve else (),
        seen=parse_values(seen.body.decode()) if seen else {},
        registers=registers,
        reglist=reglist,
        pinning=_read_pinning(pinning_of(element)),
    )


def _read_pinning(element: Element | None) -> Pinning | None:
    if element is None:
        return None
    from . import cpulist  # few guests are pinned

    midr, revidr, cpus = (element.attributes.get(name, "") for name in ("midr", "revidr", "cpus"))
    if not cpulist.parse(cpus):
        raise ValueError("pinned to no CPU")
    return Pinning(_register(midr), _register(revidr) if revidr else None, cpus)


def _register(text: str) -> int:
    """A register's value, in hexadecimal."""
    if len(text) > len("0x") + 16:
        raise ValueError(f"not a register's value: {text[:60]!r}")
    return int(text, 16)


def _number(text: str) -> int:
    """A small number: int() takes its time for a long one, and no signal interrupts it."""
    if not text.isdigit() or len(text) > 4:
        raise ValueError(f"not a number: {text[:60]!r}")
    return int(text)


def _features(text: str) -> tuple[str, ...]:
    """vCPU features, in the order of their bits."""
    features = text.split()
    unknown = set(features) - set(VCPU_FEATURES)
    if unknown:
        raise ValueError(f"vCPU feature {min(unknown)!r}")
    return tuple(feature for feature in VCPU_FEATURES if feature in features)


def _read_intent(element: Element) -> Intent:
    intent = intent_of(element)
    return Intent(names_added(intent), tuple(child.text for child in intent.children))


def _read_origin(element: Element) -> Origin:
    origin = _child(element, "origin").attributes
    return Origin(origin["host"], origin["profile"], origin["by"])


def _child(element: Element, name: str) -> Element:
    child = element.find(f"{NAMESPACE} {name}")
    if child is None:
        raise KeyError(name)
    return child


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
