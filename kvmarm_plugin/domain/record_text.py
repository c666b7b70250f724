# SPDX-License-Identifier: LGPL-2.1-or-later
"""Records as text: the <kvmarm:target> element in version 2, whole or as virDomainSetMetadata takes
it. `record` reads it.
"""

from __future__ import annotations

from ..model.target import Level, Pinning, Target, check_target
from ..registers.text import format_values
from .record import (
    NAMESPACE,
    PREFIX,
    Home,
    Intent,
    Origin,
    Record,
    RecordError,
    check_home,
    check_origin,
    reason,
)
from .xml import RUN_LIMIT, DomainXMLError, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_DECLARATION = f" xmlns:{PREFIX}='{NAMESPACE}'"
_HEAD = f"<kvmarm:target{_DECLARATION}>".encode()
_STEP = b"  "
_LINE = 120  # columns of the long lists, for people who read dumpxml

_ESCAPES = ((b"&", b"&amp;"), (b"<", b"&lt;"), (b">", b"&gt;"), (b"\r", b"&#13;"))

# Bytes of an intent or of pins, escaped: a <cpu> with as many NUMA cells as QEMU takes, and their
# distances, has less. Whoever writes the domain anew may escape more than kvmarm does.
_LARGEST_TEXT = RUN_LIMIT - RUN_LIMIT // 4


def format_whole(record: Record, indent: bytes) -> bytes:
    """The <kvmarm:target> element of a record; see `format_record`. Raises RecordError."""
    facts = format_facts(record.target, record.origin, record.home)
    return format_record(record.intent, facts, indent)


def standalone(record: Record) -> str:
    """The element as virDomainSetMetadata takes it, with the prefix PREFIX and the NAMESPACE: it
    fails if the prefix is declared. Raises RecordError.
    """
    text = format_whole(record, b"\n").decode()
    # Attributes and texts have no "<".
    for start in ("<", "</"):
        text = text.replace(f"{start}{PREFIX}:", start)
    return text.replace(_DECLARATION, "", 1)


def digest(target: Target) -> str:
    """SHA-256 of a target, in hexadecimal digits. Equal targets have equal ones."""
    return _sha256_of(" ".join(_format_target(target)).encode())


def _sha256_of(text: bytes) -> str:
    try:  # not hashlib at once: hook/__init__.py says why
        from _sha2 import sha256  # type: ignore[import-not-found]  # from Python 3.12 on
    except ImportError:
        try:
            from _sha256 import sha256  # type: ignore[import-not-found]
        except ImportError:
            from hashlib import sha256
    digest: str = sha256(text).hexdigest()
    return digest


def format_record(intent: Intent, facts: list[bytes], indent: bytes) -> bytes:
    """The <kvmarm:target> element, in ASCII: the document may be in any encoding that holds it.

    Args:
        facts: from `format_facts`; the same for every domain that gets this target.
        indent: line break and white space to put in front of each child; empty puts all on one
            line.

    Raises:
        RecordError: the intent is larger than one may be.
    """
    kept = _as_text(intent.kept, "write a smaller <cpu>")
    added = f" added='{' '.join(intent.added)}'" if intent.added else ""
    intents = [f"<kvmarm:intent{added}>".encode() + kept + b"</kvmarm:intent>"] if kept else []
    inner = indent + _STEP if indent else b" "  # never nothing: a list goes over several lines
    return inner.join([_HEAD, *intents, *facts]) + indent + b"</kvmarm:target>"


def _as_text(elements: tuple[bytes, ...], hint: str) -> bytes:
    """Elements as the text of another. A parser would make a line feed of a carriage return.

    Raises:
        RecordError: that is more than could be read.
    """
    text = b"".join(elements)
    for character, reference in _ESCAPES:
        text = text.replace(character, reference)
    if not text.isascii():
        text = text.decode().encode("ascii", "xmlcharrefreplace")
    if len(text) > _LARGEST_TEXT:
        raise RecordError(
            f"what the record would have to keep of the domain has {len(text)} bytes", hint
        )
    return text


def format_facts(target: Target, origin: Origin, home: Home | None = None) -> list[bytes]:
    """The children of <kvmarm:target> that come from hosts, as lines.

    Raises:
        RecordError: the profile that these come from says what no host can give, or has a name that
            does not print.
    """
    try:
        check_target(target)
        check_origin(origin)
        check_home(home, target)
    except (ValueError, DomainXMLError) as error:
        raise RecordError(
            f"a record of this profile would be broken: {reason(error)}", "probe the host again"
        ) from None
    profile = f" profile={quoted(origin.profile)}" if origin.profile else ""
    renewed = f" renewed={quoted(origin.renewed)}" if origin.renewed else ""
    lines = [
        *_format_target(target),
        *([_format_home(home)] if home else []),
        (f"<kvmarm:origin host={quoted(origin.host)}{profile} by={quoted(origin.by)}{renewed}/>"),
    ]
    # The document may be in any encoding that holds ASCII as it is.
    return [line.encode("ascii", "xmlcharrefreplace") for line in lines]


def _format_target(target: Target) -> list[str]:
    sve = (
        [f"<kvmarm:sve lengths={_list(map(str, target.sve_lengths))}/>"]
        if target.sve_lengths
        else []
    )
    unsaid = f" unsaid={_list(target.unsaid)}" if target.unsaid else ""
    pinning = [_format_pinning(target.pinning)] if target.pinning else []
    roams = ["<kvmarm:roams/>"] if target.roams else []
    level = [_format_level(target.level)] if target.level else []
    seen = [*_wrapped("seen", format_values(target.seen))] if target.seen else []
    return [
        (
            f"<kvmarm:vcpu architecture={quoted(target.architecture)} target='{target.number}'"
            f" features={_list(target.features)}/>"
        ),
        f"<kvmarm:qemu model={quoted(target.model)} machine={quoted(target.machine)}{unsaid}/>",
        f"<kvmarm:guest gic='{target.gic}' psci={quoted(target.psci)} ipa='{target.ipa_bits}'/>",
        *pinning,
        *roams,
        *level,
        *sve,
        *seen,
        *_wrapped("registers", format_values(target.registers)),
        *_wrapped("reglist", target.reglist),
    ]


def _format_pinning(pinning: Pinning) -> str:
    revidr = "" if pinning.revidr is None else f" revidr='{pinning.revidr:#x}'"
    return f"<kvmarm:pinning midr='{pinning.midr:#x}'{revidr} cpus={quoted(pinning.cpus)}/>"


def _format_level(level: Level) -> str:
    without = f" without={_list(level.left_out)}" if level.left_out else ""
    own = f" own={_list(level.own)}" if level.own else ""
    cpus = f" cpus={_list(level.cpu_words)}" if level.cpus else ""
    return f"<kvmarm:level{without}{own}{cpus}/>"


def _format_home(home: Home) -> str:
    cpuset = f" cpuset={quoted(home.cpuset)}" if home.cpuset else ""
    pins = _as_text(home.pins, "write ranges of CPUs in <cputune>, such as 0-3,6").decode()
    return f"<kvmarm:home cpus={quoted(home.cpus)}{cpuset}>{pins}</kvmarm:home>"


def _list(names: Iterable[str]) -> str:
    return quoted(" ".join(names))


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
