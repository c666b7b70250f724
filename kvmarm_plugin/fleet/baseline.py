# SPDX-License-Identifier: LGPL-2.1-or-later
"""Baseline: the pool that hosts form, what it costs each of them, and, where they form none, what
would make them one.

A baseline that some member would refuse is never made: `common` asks every member, in both
directions.
"""

from __future__ import annotations

from .. import __version__
from ..basics.untrusted import lines, shown, some
from ..basics.value import Value
from ..judge import wording
from ..model.board import most_memory, most_vcpus
from ..model.features import FEATURES, Feature
from ..model.profile import HostProfile
from ..model.profile_json import digest
from ..model.target import psci_version
from ..registers.rules import kernel_version
from ..resolve.partial import refuse_partial
from .common_ground import common
from .kinds import Kind, kinds_of
from .obstacles import Obstacle
from .plan import Plan, plan_for
from .pool import Pool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NAMES = 6  # names of hosts in a line; --json has all


class Baseline(Value):
    """What hosts can be together.

    Attributes:
        name: of the pool.
        kinds: the hosts, by kind.
        pool: that all of them form; None if they form none.
        profile: what every member gives: the pool's; without a pool, that of the hosts which the
            plan keeps, as forecast. None if the plan keeps none.
        missing: what its guests do not have although some host has it → why.
        costs: what each kind's guests lose, in words: names of its hosts → each loss.
        plan: what would make one of them; without a step if they are one.
    """

    name: str
    kinds: tuple[Kind, ...]
    pool: Pool | None
    profile: HostProfile | None
    missing: dict[str, str]
    costs: dict[tuple[str, ...], tuple[str, ...]]
    plan: Plan


def baseline(hosts: list[HostProfile], name: str = "pool") -> Baseline:
    """The baseline of hosts of different names, in whatever order they are given.

    Args:
        hosts: at least one.
        name: for the pool.

    Raises:
        ResolveError: the profile of one does not tell everything, and nobody knows what it gives.
    """
    for host in hosts:
        refuse_partial(host)
    kinds = kinds_of(hosts)
    plan = plan_for(kinds)
    # Without a step to take, these are the hosts as they are.
    found = common(list(plan.hosts), name) if plan.hosts else None
    profile = (
        found.profile.replace(made_by=f"kvmarm {__version__}") if found and found.profile else None
    )
    pool = None
    if profile and not plan.steps:
        pool = Pool(
            name,
            {host.name: digest(host) for host in sorted(hosts, key=lambda host: host.name)},
            profile,
        )
    kept = [kind for kind in kinds if kind.host.name not in plan.left_out]
    return Baseline(
        name=name,
        kinds=tuple(kinds),
        pool=pool,
        profile=profile,
        missing=found.missing if found else {},
        costs=(
            {kind.names: costs_of(kind.host, profile, plan.words(kind.host.name)) for kind in kept}
            if profile
            else {}
        ),
        plan=plan,
    )


def as_text(result: Baseline, explain: bool) -> str:
    """What `kvmarm baseline` prints.

    Args:
        explain: also why guests lack what some host has, and every obstacle.
    """
    name = shown(result.name)
    hosts = [name for kind in result.kinds for name in kind.names]
    if result.pool is not None:
        return lines(
            [
                f"{name}: {_count(hosts)}, guests move freely between them",
                *_profile_lines(result, explain),
            ]
        )
    texts = [
        (
            f"{name}: no baseline for all {len(hosts)} hosts"
            if len(hosts) > 1
            else f"{name}: no baseline"
        )
    ]
    texts += _plan_lines(result)
    if result.profile is not None:
        texts += ["", "After that, as a forecast:", *_profile_lines(result, explain)]
    if result.plan.obstacles:
        texts += [
            "",
            "In the way now, among hosts of the same CPU:",
            *_obstacle_lines(result, explain),
        ]
    return lines(texts)


def as_json(result: Baseline) -> dict[str, Any]:
    """The same for tools."""
    profile = result.profile
    return {
        "name": result.name,
        "hosts": [name for kind in result.kinds for name in kind.names],
        "possible": result.pool is not None,
        "baseline": profile and dict(facts_of(profile)),
        "missing": result.missing,
        "costs": [{"hosts": names, "loses": losses} for names, losses in result.costs.items()],
        "obstacles": [
            {
                "source": obstacle.source,
                "destination": obstacle.destination,
                "finding": wording.as_data(obstacle.finding),
            }
            for obstacle in result.plan.obstacles
        ],
        "steps": [
            {name: getattr(step, name) for name in ("action", "hosts", "what", "why")}
            for step in result.plan.steps
        ],
    }


def _plan_lines(result: Baseline) -> list[str]:
    steps = result.plan.steps
    if not steps or result.profile is None:
        return ["No known change makes them compatible."]
    texts = ["To make them one pool:"]
    for number, step in enumerate(steps, 1):
        what = {
            "boot": f"boot {some(step.hosts, _NAMES)} with {step.what}",
            "leave out": f"leave {some(step.hosts, _NAMES)} out",
        }
        texts.append(
            f"  {number}."
            f" {what.get(step.action, f'{step.action} on {some(step.hosts, _NAMES)} {step.what}')}"
        )
        texts.append(f"     {step.why}")
    return [*texts, "  Then probe those hosts again, and make the baseline anew."]


def _profile_lines(result: Baseline, explain: bool) -> list[str]:
    assert result.profile is not None
    texts = [f"  {what:<10} {value}" for what, value in facts_of(result.profile)]
    if explain:
        texts += [f"  {'no ' + choice:<10} {why}" for choice, why in result.missing.items()]
    texts.append("What it costs:")
    for names, losses in result.costs.items():
        texts.append(f"  {some(names, _NAMES)}: {', '.join(losses) or 'nothing'}")
    return texts


def _obstacle_lines(result: Baseline, explain: bool) -> list[str]:
    """Every obstacle, or one of each subject."""
    found = result.plan.obstacles
    if explain:
        return [f"  {obstacle}" for obstacle in found]
    subjects: dict[object, list[Obstacle]] = {}
    for obstacle in found:
        subjects.setdefault(wording.named_in(obstacle.finding, "subject"), []).append(obstacle)
    texts = []
    for first, *more in subjects.values():
        others = len(
            {(obstacle.source, obstacle.destination) for obstacle in more}
            - {(first.source, first.destination)}
        )
        texts.append(
            f"  {first.in_short()}" + (f"; and between {others} more pairs" if others else "")
        )
    return texts


def facts_of(profile: HostProfile) -> list[tuple[str, str]]:
    """What guests get, in words."""
    clusters = profile.clusters
    return [
        (
            "CPU",
            ", ".join(
                f"{profile.name_of(cluster) if cluster.part else 'unknown part'}"
                f" ({cluster.midr:#x})"
                for cluster in clusters
            ),
        ),
        (
            "features",
            ", ".join(feature.name for feature in FEATURES if _has(profile, feature))
            or "none that can be turned off",
        ),
        (
            "SVE",
            (
                " ".join(map(str, clusters[0].sve_lengths)) + " bits"
                if clusters[0].sve_lengths
                else "none"
            ),
        ),
        ("machine", profile.qemu.machines[0] if profile.qemu else ""),
        ("GIC", " or ".join(map(str, profile.gic_versions))),
        ("PSCI", psci_version(clusters[0].vcpus[0].registers)),
        ("addresses", f"{profile.ipa_bits} bits"),
        (
            "oldest",
            (
                f"Linux {'.'.join(map(str, kernel_version(profile.kernel)))}, QEMU"
                f" {profile.qemu.version if profile.qemu else ''}"
            ),
        ),
    ]


def costs_of(host: HostProfile, profile: HostProfile, words: list[str]) -> tuple[str, ...]:
    """What guests of a host lose in the pool."""
    losses = [
        feature.name for feature in FEATURES if _has(host, feature) and not _has(profile, feature)
    ]
    longest, left = (
        max((*h.clusters[0].sve_lengths, 0)) if h.clusters else 0 for h in (host, profile)
    )
    if 0 < left < longest:
        losses.append(f"SVE over {left} bits")
    newest, allowed = (h.qemu.machines[0] if h.qemu else "" for h in (host, profile))
    if newest != allowed:
        losses.append(f"{newest} (has {allowed})")
    gics = [version for version in host.gic_versions if version not in profile.gic_versions]
    losses += [f"GIC {version}" for version in gics]
    pair = [(h, h.qemu.release if h.qemu else (0, 0)) for h in (host, profile)]
    there, here = (
        most_vcpus(max(h.gic_versions, default=0), "", h.ipa_bits, qemu=qemu) for h, qemu in pair
    )
    if here < there:
        losses.append(f"more than {here} vCPUs")
    there, here = (most_memory(h.ipa_bits, qemu) for h, qemu in pair)
    if host.ipa_bits > profile.ipa_bits:
        losses.append(f"addresses over {profile.ipa_bits} bits")
    if here < there:
        losses.append(f"more than {here} GiB of memory")
    losses += [
        f"the {host.name_of(cluster)}"
        for cluster in host.clusters
        if not _among(cluster.midr, profile)
    ]
    return (*losses, *(f"what {word} takes" for word in words))


def _has(host: HostProfile, feature: Feature) -> bool:
    return any(cluster.has(feature.bit) for cluster in host.clusters)


def _among(midr: int, profile: HostProfile) -> bool:
    return any(cluster.midr == midr for cluster in profile.clusters)


def _count(names: list[str]) -> str:
    return f"{len(names)} hosts" if len(names) != 1 else "1 host"
