# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy: what the operator prefers where a domain leaves the choice open
(/etc/kvmarm/policy.yaml, --policy).

What the domain itself asks for (<feature>, <pmu>, <gic>) comes before the policy. See
kvmarm-policy(5).
"""

from __future__ import annotations

import os
import stat

from ..basics.errors import KvmarmError
from ..basics.ownership import changeable, others_can_change
from ..basics.value import Value
from .features import FEATURES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_PATH = "/etc/kvmarm/policy.yaml"
SIZE_LIMIT = 64 << 10  # bytes of UTF-8; a policy has some hundred

_MOST_PATTERNS, _LONGEST_PATTERN = 256, 255

_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
_ENDS_OF_LINES = ("\r", "\x85", "\u2028", "\u2029")  # of YAML, besides the usual


class PolicyError(KvmarmError):
    """The policy cannot be used."""


class Policy(Value):
    """What to prefer.

    Attributes:
        prefer_named: take a named model such as cortex-a57 where QEMU and KVM accept one; otherwise
            always "host" with every knob explicit.
        pmu, sve, pauth: True on, False off, None what the host has.
        sve_max_length: longest SVE vector in bits; None for all that the host has.
        cluster: "biggest", "smallest", or a MIDR_EL1 value as a number: whose CPU a guest gets, and
            keeps to, on a big.LITTLE host; "all" lets it run on any.
        adopt: what becomes by itself of guests that never asked for host-model: "off"; "record", in
            their metadata, of what they have; "pin", which also writes that into their stored
            definitions.
        excepted: patterns of the names of guests that are left out of that.
    """

    prefer_named: bool = True
    pmu: bool | None = None
    sve: bool | None = None
    pauth: bool | None = None
    sve_max_length: int | None = None
    cluster: str | int = "biggest"
    adopt: str = "record"
    excepted: tuple[str, ...] = ()


class HookPolicy(Value):
    """What the hook does.

    Attributes:
        on_drift: "renew", "warn" or "refuse": at a cold start that gives a guest something else
            than its record says.
        on_migrate, on_restore: "refuse" or "warn": when a guest arrives that this host would not
            give what is recorded.
        arrival_seconds: how long the check of an arriving guest may take.
    """

    on_drift: str = "renew"
    on_migrate: str = "refuse"
    on_restore: str = "refuse"
    arrival_seconds: int = 10


def adopts(policy: Policy, name: str) -> str:
    """What becomes by itself of a guest that never asked for host-model: as `Policy.adopt`.

    Args:
        name: the guest's.
    """
    from fnmatch import fnmatchcase  # the hook has no use for it

    if any(fnmatchcase(name, pattern) for pattern in policy.excepted):
        return "off"
    return policy.adopt


def loads(text: str, name: str = "policy") -> Policy:
    """A policy from YAML; an empty document is the default policy.

    Args:
        name: of the file, for messages.

    Raises:
        PolicyError: not YAML, an unknown key, a value that the key does not take, or a reaction
            that the hook would not read.
    """
    from ..basics.yamltext import load  # the hook has no use for it

    lines: dict[object, int] = {}
    document = load(text, name, PolicyError, "see man kvmarm-policy", SIZE_LIMIT, lines)
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise PolicyError(
            f"{name} is not a list of settings", "write one setting a line, such as: pmu: off"
        )
    settings = {}
    for key, value in document.items():
        if key in _FORMER:
            raise PolicyError(f"{name}, line {lines[key]}: {key} is no setting", _FORMER[str(key)])
        if key not in _SETTINGS:
            raise PolicyError(
                f"{name}, line {lines[key]}: unknown setting {_shown(key)}",
                f"known are {', '.join(_SETTINGS)}",
            )
        field, takes, what = _SETTINGS[key]
        if not takes(value):
            raise PolicyError(
                f"{name}, line {lines[key]}: {key} cannot be {_shown(value)}", f"it takes {what}"
            )
        if key not in _OF_THE_HOOK:
            settings[field] = value
    _check_what_the_hook_reads(text, name, document, lines)
    return _policy(settings)


def for_hook(path: str = DEFAULT_PATH) -> HookPolicy:
    """The settings that are the hook's.

    The hook has only the standard library, hence no YAML: it reads lines (`_plain_settings`).
    `loads` lets pass only what is read alike here. Where the file cannot be read, is not written
    so, or can be changed or replaced by others than root, every setting has its default; so it has
    where that is no file, which is not waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or others_can_change(status) or changeable(path):
                return HookPolicy()
            data = file.read(SIZE_LIMIT + 1)
        return HookPolicy(**_for_hook(data.decode())[0] if len(data) <= SIZE_LIMIT else {})
    except (OSError, ValueError):
        return HookPolicy()


def _for_hook(text: str) -> tuple[dict[str, Any], int]:
    """The fields of a `HookPolicy` that a text sets, and the first line that the hook does not
    read: 0 if it reads every line.
    """
    words, odd = _plain_settings(text)
    fields = {}
    for key in _OF_THE_HOOK:
        word = words.get(key, "")
        value = int(word) if word.isdigit() and len(word) < 4 else word
        if _SETTINGS[key][1](value):
            fields[_SETTINGS[key][0]] = value
    return fields, odd


def _plain_settings(text: str) -> tuple[dict[str, str], int]:
    """The settings of a policy that is written in lines, and the first line that is none: 0 if
    every line is.

    Every line is blank, or a comment, or a setting and its value: words, quoted or not, that start
    in the first column, a colon and spaces between them, and perhaps a comment behind. The value
    may also be a list of them in brackets, which is none of the hook's. "---" may be
    in front and "..." at the end. This is what YAML in any of its other forms is not, and what
    every reader of YAML reads alike. One line of another kind could change what all others mean, so
    with one there are no settings.
    """
    settings: dict[str, str] = {}
    begun = ended = False
    for number, line in enumerate(text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n"), 1):
        if any(end in line for end in _ENDS_OF_LINES):
            return {}, number
        code = "" if line.lstrip(" ")[:1] == "#" else line.partition(" #")[0].rstrip(" ")
        if not code or (code == "---" and not begun):
            begun = begun or bool(code)
            continue
        begun = True
        key, colon, value = code.partition(": ")
        key, value = _unquoted(key), _unquoted(value.lstrip(" "))
        words = colon and _is_word(key) and (_is_word(value) or _is_list(value))
        if ended or key in settings or not (words or code == "..."):
            return {}, number
        if words:
            settings[key] = value
        else:
            ended = True
    return settings, 0


def _is_word(word: str) -> bool:
    return word != "" and word[0] != "-" and _WORD.issuperset(word)


def _is_list(text: str) -> bool:
    """Whether this is a list in brackets, on one line, of words and of texts in double quotes
    without escapes.
    """
    if text[:1] != "[" or text[-1:] != "]":
        return False
    parts = text[1:-1].split('"')
    if len(parts) % 2 == 0 or "\\" in text or not text.isprintable():
        return False
    items = [item.strip(" ") for item in '"'.join(parts[::2]).split(",")]  # texts are only quotes
    return items == [""] or all(item == '"' or _is_word(item) for item in items)


def _unquoted(word: str) -> str:
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"" else word


def _check_what_the_hook_reads(
    text: str, name: str, document: dict[str, object], lines: dict[object, int]
) -> None:
    """Raises PolicyError if the hook would not read the settings that are its own as they are
    meant.
    """
    fields, odd = _for_hook(text)
    read = HookPolicy(**fields)
    for key in _OF_THE_HOOK:
        field = _SETTINGS[key][0]
        if getattr(read, field) != document.get(key, getattr(HookPolicy, field)):
            raise PolicyError(
                f"{name}, line {odd or lines.get(key, 1)}: because of how this line is written, the"
                f" hook does not read {key}",
                "write one setting a line, from the first column and without tabs, such as:"
                " on-migrate: warn",
            )


def _policy(settings: dict[str, object]) -> Policy:
    if "prefer_named" in settings:
        settings["prefer_named"] = settings["prefer_named"] == "named"
    if settings.get("adopt") is False:  # a word of YAML's
        settings["adopt"] = "off"
    if "excepted" in settings:
        settings["excepted"] = tuple(settings["excepted"])  # type: ignore[arg-type]
    for name in settings.keys() & _SWITCHES.keys():
        settings[name] = _SWITCH[settings[name]]
    return Policy(**settings)  # type: ignore[arg-type]  # _SETTINGS has checked each value


def _is_reaction(value: object) -> bool:
    return value in ("refuse", "warn")


def _is_reaction_to_drift(value: object) -> bool:
    return value in ("renew", "warn", "refuse")


def _is_patience(value: object) -> bool:
    return type(value) is int and 1 <= value <= 60


def _shown(value: object) -> str:
    """A value for a message."""
    if isinstance(value, list):
        return "this list"
    return repr(value)[:60] if value is None or isinstance(value, (str, int)) else "a mapping"


def _is_preference(value: object) -> bool:
    return value in ("named", "host")


def _is_switch(value: object) -> bool:
    return isinstance(value, (bool, str)) and value in _SWITCH


def _is_length(value: object) -> bool:
    return (
        isinstance(value, int)
        and not isinstance(value, bool)
        and 128 <= value <= 2048
        and value % 128 == 0
    )


def _is_cluster(value: object) -> bool:
    return value in ("biggest", "smallest", "all") or (type(value) is int and 0 < value < 1 << 32)


def _is_adoption(value: object) -> bool:
    return value is False or value in ("off", "record", "pin")


def _is_patterns(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MOST_PATTERNS
        and all(isinstance(each, str) and 0 < len(each) <= _LONGEST_PATTERN for each in value)
    )


_SWITCH = {
    True: True,
    False: False,
    "on": True,
    "off": False,
    "auto": None,
}  # with quotes, on and off are text

_SWITCHES = {
    feature.policy: (feature.policy, _is_switch, "on, off or auto")
    for feature in FEATURES
    if feature.policy
}

_SETTINGS = {
    "on-drift": ("on_drift", _is_reaction_to_drift, "renew, warn or refuse"),
    "on-migrate": ("on_migrate", _is_reaction, "refuse or warn"),
    "on-restore": ("on_restore", _is_reaction, "refuse or warn"),
    "arrival-seconds": ("arrival_seconds", _is_patience, "a number from 1 to 60, without quotes"),
    "prefer": ("prefer_named", _is_preference, "named or host"),
    **_SWITCHES,
    "sve-max-length": (
        "sve_max_length",
        _is_length,
        "a multiple of 128 from 128 to 2048, in bits, without quotes",
    ),
    "cluster": (
        "cluster",
        _is_cluster,
        "biggest, smallest, all or a MIDR such as 0x410fd080, without quotes",
    ),
    "adopt": ("adopt", _is_adoption, "off, record or pin"),
    "except": (
        "excepted",
        _is_patterns,
        f"a list of up to {_MOST_PATTERNS} names of guests, each in quotes, with * for any letters,"
        ' such as ["build-*", "100"]',
    ),
}

_OF_THE_HOOK = ("on-drift", "on-migrate", "on-restore", "arrival-seconds")

# What older versions knew → what to write now.
_FORMER = {
    "on-prepare": "write on-drift: renew, warn or refuse, which is about guests that are started;"
    " see man kvmarm-policy",
}
