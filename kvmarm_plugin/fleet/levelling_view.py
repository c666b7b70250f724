# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `kvmarm baseline --level` prints."""

from __future__ import annotations

from ..basics.untrusted import lines, shown, some
from ..model.target import LEVEL_TEXT
from ..registers.table import describe, field_of
from .baseline import costs_of, facts_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ..model.profile import HostProfile
    from ..registers.errata import Erratum
    from .kinds import Kind
    from .levelling import Levelled
    from .unlevelled import Unlevelled

_AARCH32 = "ID_AA64PFR0_EL1.EL0"  # 2, with AArch32, or 1
_OF_HOSTS = ("features", "SVE", "machine", "GIC", "addresses", "oldest")  # not of a CPU alone
_MOST = 8  # of a kind in the text, without --explain; --json has all


def as_text(
    result: Levelled,
    name: str,
    kinds: list[Kind],
    lacking: dict[str, str],
    accepted: bool,
    explain: bool,
    kept: Sequence[str] = (),
) -> str:
    """What there is to say of hosts that are to be levelled.

    Args:
        name: of the pool.
        kinds: of all of them.
        lacking: name of each that libkvmarm-level has to be installed on → its version there; empty
            where it is missing.
        accepted: whether missed workarounds are accepted, whatever they are for.
        explain: nothing is left out.
        kept: the features that a plain pool of them would not have.
    """
    hosts = sum(len(kind.hosts) for kind in kinds)
    most = hosts * 1000 if explain else _MOST
    if result.profile is None:
        these = _these(hosts)
        texts = [f"{shown(name)}: {these} cannot be levelled", "What is in the way:"]
        texts += _cut([line for each in _alike(result.obstacles) for line in each], 2 * most)
        return lines(texts)
    texts = [f"{shown(name)}: {_answer(result, hosts, accepted)}"]
    texts += [f"  {what:<10} {value}" for what, value in _facts(result).items()]
    level = result.profile.clusters[0].level
    if result.identity:
        texts.append(f"  {'identity':<10} that of {shown(result.identity)}")
    if level and level.left_out:
        texts.append(f"  {'without':<10} {', '.join(level.left_out)}")
    if kept:
        texts.append(f"  {'levelled':<10} for {', '.join(kept)}: a plain pool of them has none")
    if explain:
        texts += [f"  {'no ' + choice:<10} {why}" for choice, why in result.missing.items()]
    texts += _losses(result, result.profile, kinds, most)
    texts += _errata(result, kinds, most)
    if lacking and not result.unknown:
        texts += _to_do(lacking)
    return lines(texts)


def _these(hosts: int) -> str:
    return "this host" if hosts == 1 else f"these {hosts} hosts"


def _answer(result: Levelled, hosts: int, accepted: bool) -> str:
    if result.unknown:
        return (
            f"as far as is known, {_these(hosts)} can be levelled; no pool is made without:"
            f" {', '.join(result.unknown)} (probe the hosts themselves: kvmarm probe -o FILE)"
        )
    if result.needs_consent and not accepted:
        return (
            f"{_these(hosts)} can be levelled, and guests would miss workarounds for errata that"
            " corrupt data or stop the CPU; no pool is made without --accept-errata"
        )
    return f"{hosts} hosts, guests that libkvmarm-level levels move freely between them"


def _losses(result: Levelled, profile: HostProfile, kinds: list[Kind], most: int) -> list[str]:
    texts = ["What guests lose of each:"]
    for kind in kinds:
        losses = costs_of(kind.host, profile, []) if not result.unknown else ()
        (fields,) = (result.lowered[host] for host in kind.names if host in result.lowered)
        lowered = _lowered(fields)
        nothing = "" if lowered else " nothing that is known" if result.unknown else " nothing"
        texts.append(f"  {some(kind.names)}:{' ' + ', '.join(losses) if losses else nothing}")
        texts += _cut([f"    {field}" for field in lowered], most)
    return texts


def _to_do(lacking: dict[str, str]) -> list[str]:
    """Where libkvmarm-level has to be installed, with the arguments of `as_text`."""
    texts = []
    missing = [host for host, version in lacking.items() if not version]
    others = [f"{host} (version {version})" for host, version in lacking.items() if version]
    if missing:
        texts.append(
            f"To do: install kvmarm-level on {some(missing)}; where it is there, `kvmarm"
            " doctor` says what keeps it from QEMU"
        )
    if others:
        texts.append(f"To do: kvmarm-level of version {LEVEL_TEXT} of its text on {some(others)}")
    texts.append(
        f"Until then define, check and doctor refuse on {some(list(lacking))}, and guests of"
        " the pool do not start there"
    )
    return texts


def as_json(
    result: Levelled, name: str, kinds: list[Kind], lacking: dict[str, str]
) -> dict[str, Any]:
    """The same for tools. What is said of one host of a kind is said of all."""
    profile = result.profile
    level = profile.clusters[0].level if profile else None
    return {
        "name": name,
        "hosts": [host for kind in kinds for host in kind.names],
        "kinds": [kind.names for kind in kinds],
        "possible": profile is not None,
        "needs_consent": result.needs_consent,
        "unknown": result.unknown,
        "baseline": _facts(result) or None,
        "identity": result.identity,
        "lacking": [*lacking],
        "without": level.left_out if level else (),
        "missing": result.missing,
        "lowered": {
            host: {field: {"own": own, "given": given} for field, (own, given) in fields.items()}
            for host, fields in result.lowered.items()
        },
        "errata": {
            host: [
                {
                    "name": each.name,
                    "severity": each.severity,
                    "classified": each.classified,
                    "what": each.what,
                }
                for each in found
            ]
            for host, found in result.errata.items()
        },
        "obstacles": [each.as_dict() for each in result.obstacles],
    }


def _facts(result: Levelled) -> dict[str, str]:
    """What guests get, in words, as far as is known."""
    if result.profile is None:
        return {}
    unsaid = {*_OF_HOSTS} if result.unknown else set()
    if "PSCI_VERSION" not in result.profile.clusters[0].vcpus[0].registers and result.unknown:
        unsaid.add("PSCI")
    return {what: value for what, value in facts_of(result.profile) if what not in unsaid}


def _alike(obstacles: tuple[Unlevelled, ...]) -> list[list[str]]:
    """The lines of each obstacle; of whole registers that differ alike, once for all."""
    groups: dict[tuple[object, ...], list[Unlevelled]] = {}
    for each in obstacles:
        field = each.subject if "." in each.subject else ""
        groups.setdefault((field, *each.values.items(), each.why, each.helps), []).append(each)
    return [
        _obstacle(first.replace(subject=some([first.subject, *(each.subject for each in others)])))
        for first, *others in groups.values()
    ]


def _obstacle(each: Unlevelled) -> list[str]:
    values = ", ".join(f"{shown(value)} on {shown(host)}" for host, value in each.values.items())
    meaning = f" ({each.meaning})" if each.meaning else ""
    helps = f"; {shown(each.helps)}" if each.helps else ""
    return [f"  {shown(each.subject)}{meaning}: {values}", f"     {shown(each.why)}{helps}"]


def _errata(result: Levelled, kinds: list[Kind], most: int) -> list[str]:
    """The workarounds that guests miss, by kind of host."""
    texts: list[str] = []
    for kind in kinds:
        (found,) = (result.errata[host] for host in kind.names if host in result.errata)
        if found:
            texts += [f"  {some(kind.names)}:", *_cut(list(map(_erratum, found)), most)]
    if not texts:
        return []
    head = "What guests do not know that they run on, and so do not work around (the worst first):"
    return [head, *texts]


def _erratum(each: Erratum) -> str:
    doubt = "" if each.classified else ", for all that is known"
    return f"    {each.name} ({each.severity}{doubt}): {each.what}"


def _lowered(fields: dict[str, tuple[int, int]]) -> list[str]:
    """The fields, in words; of a guest that is to do without AArch32, not each of AArch32."""
    if _AARCH32 not in fields:
        return list(map(_meaning, fields))
    rest = (name for name in fields if name.startswith("ID_AA64"))
    return ["all of AArch32", *(_meaning(name) for name in rest if name != _AARCH32)]


def _meaning(name: str) -> str:
    meaning = field_of(name).meaning if "." in name else describe(name)
    return f"{name} ({meaning})" if meaning else name


def _cut(texts: list[str], most: int) -> list[str]:
    if len(texts) <= most:
        return texts
    return [*texts[:most], f"     and {len(texts) - most} lines more (--explain has all)"]
