# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy: what the operator prefers where a domain leaves the choice open (/etc/kvmarm/policy.yaml, --policy).

What the domain itself asks for (<feature>, <pmu>, <gic>) comes before the policy. See kvmarm-policy(5).
"""

from __future__ import annotations

from .errors import KvmarmError
from .value import Value

DEFAULT_PATH = "/etc/kvmarm/policy.yaml"


class PolicyError(KvmarmError):
    """The policy cannot be used."""


class Policy(Value):
    """What to prefer.

    Attributes:
        prefer_named: take a named model such as cortex-a57 where QEMU and KVM accept one; otherwise always "host" with
            every knob explicit.
        pmu, sve, pauth: True on, False off, None what the host has.
        sve_max_length: longest SVE vector in bits; None for all that the host has.
        cluster: "biggest", "smallest", or a MIDR_EL1 value as a number: whose CPU a guest gets, and keeps to, on a big.LITTLE host;
            "all" lets it run on any.
    """

    __slots__ = ("cluster", "pauth", "pmu", "prefer_named", "sve", "sve_max_length")
    prefer_named: bool
    pmu: bool | None
    sve: bool | None
    pauth: bool | None
    sve_max_length: int | None
    cluster: str | int

    def __init__(
        self,
        *,
        prefer_named: bool = True,
        pmu: bool | None = None,
        sve: bool | None = None,
        pauth: bool | None = None,
        sve_max_length: int | None = None,
        cluster: str | int = "biggest",
    ) -> None:
        self._freeze(locals())


def loads(text: str, name: str = "policy") -> Policy:
    """A policy from YAML; an empty document is the default policy.

    Args:
        name: of the file, for messages.

    Raises:
        PolicyError: not YAML, an unknown key, or a value that the key does not take.
    """
    from .yamltext import load  # the hook has no use for it

    document = load(text, name, PolicyError, "see man kvmarm-policy")
    if document is None:
        return Policy()
    if not isinstance(document, dict):
        raise PolicyError(f"{name} is not a list of settings", "write one setting a line, such as: pmu: off")
    settings = {}
    for key, value in document.items():
        if key not in _SETTINGS:
            raise PolicyError(f"{name} has an unknown setting {_shown(key)}", f"known are {', '.join(_SETTINGS)}")
        field, takes, what = _SETTINGS[key]
        if not takes(value):
            raise PolicyError(f"{name}: {key} cannot be {_shown(value)}", f"it takes {what}")
        if field:  # the others are the hook's: see `refuses`
            settings[field] = value
    return _policy(settings)


def refuses(operation: str, path: str = DEFAULT_PATH) -> bool:
    """Whether the hook refuses a guest that does not fit, rather than warn: the setting on-prepare, on-migrate or on-restore.

    The hook has only the standard library, hence no YAML: it looks for the line. `loads` lets pass only what is read alike
    here; a file that cannot be read or says something else means refuse.

    Args:
        operation: libvirt's: "prepare", "migrate" or "restore".
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.partition("#")[0].split() for line in file.read().splitlines()]
    except (OSError, ValueError):
        return True
    return [line[1:] for line in lines if line[:1] == [f"on-{operation}:"]][-1:] != [["warn"]]


def _policy(settings: dict[str, object]) -> Policy:
    if "prefer_named" in settings:
        settings["prefer_named"] = settings["prefer_named"] == "named"
    for name in ("pmu", "sve", "pauth"):
        if settings.get(name) == "auto":
            settings[name] = None
    return Policy(**settings)  # type: ignore[arg-type]  # _SETTINGS has checked each value


def _is_reaction(value: object) -> bool:
    return value in ("refuse", "warn")


def _shown(value: object) -> str:
    """A value for a message. Not a list's items: with anchors and aliases a few bytes of YAML make billions of them."""
    return repr(value)[:60] if value is None or isinstance(value, (str, int, float)) else f"a {type(value).__name__}"


def _is_preference(value: object) -> bool:
    return value in ("named", "host")


def _is_switch(value: object) -> bool:
    return isinstance(value, bool) or value == "auto"


def _is_length(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 128 <= value <= 2048 and value % 128 == 0


def _is_cluster(value: object) -> bool:
    return value in ("biggest", "smallest", "all") or (type(value) is int and 0 < value < 1 << 32)


_SETTINGS = {
    "on-prepare": ("", _is_reaction, "refuse or warn"),
    "on-migrate": ("", _is_reaction, "refuse or warn"),
    "on-restore": ("", _is_reaction, "refuse or warn"),
    "prefer": ("prefer_named", _is_preference, "named or host"),
    "pmu": ("pmu", _is_switch, "on, off or auto"),
    "sve": ("sve", _is_switch, "on, off or auto"),
    "sve-max-length": ("sve_max_length", _is_length, "a multiple of 128 from 128 to 2048, in bits"),
    "pauth": ("pauth", _is_switch, "on, off or auto"),
    "cluster": ("cluster", _is_cluster, "biggest, smallest, all or a MIDR such as 0x410fd080"),
}
