# SPDX-License-Identifier: LGPL-2.1-or-later
"""Levelling: what hosts of different CPUs or kernels can all give to a guest, if libkvmarm-level
writes it into the guest's vCPUs.

The result is the profile of a host that gives just that: a pool of it is resolved, confirmed and
checked like any other. `levelled_vcpu` has what becomes of registers; what none tells has to be the
same everywhere (`unlevelled`).

What nobody measured of a host (`HostProfile.unknown`) is never in the way: there the answer is the
best that it may be, and no pool is made of it. What is in the way by what is known stays there.
"""

from __future__ import annotations

from ..basics.untrusted import some
from ..basics.value import Value
from ..judge import wording
from ..judge.by_profile import check
from ..model.features import CPU_FEATURES, FEATURES, PMU, SVE, Feature
from ..model.guest_registers import GUEST_REGISTERS, readable
from ..model.profile import PARTS, SINCE_2, Cluster, HostProfile
from ..model.target import LEVEL_TEXT, Level
from ..registers.errata import SEVERITIES, Erratum, missed
from ..registers.rules import IMPLEMENTATION_ID, differing_fields
from ..registers.table import id_of
from ..registers.text import pack_ids, unpack_ids
from ..resolve.forms import knobs_of
from .common_ground import common_bits, profile_head, targets
from .kinds import kernel_age
from .levelled_vcpu import can_leave_out, common_features, level_vcpu, sve_lengths_of
from .member import Member
from .obstacles import blocking
from .unlevelled import GIC, Unlevelled, find_unlevelled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .levelled_vcpu import Made
    from .member import FeatureSet

GRAVE = ("corrupting", "hangs")  # severities of errata that nobody accepts unasked


class Levelled(Value):
    """What hosts can give if they are levelled.

    Attributes:
        profile: of a host that gives just that; None if they cannot be levelled. What is unknown of
            a host is unknown of it.
        identity: name of the host whose CPU guests see; empty where all have one.
        missing: name of a feature that no guest gets → why.
        lowered: name of each host → what its guests lose of it: REGISTER.FIELD, or REGISTER → its
            own value, and theirs.
        errata: name of each host → what Linux works around on its CPU, and a guest that sees the
            other does not know of; the worst first.
        obstacles: why there is no profile.
        unknown: of profile.PARTS, what nobody measured of some host: a profile is then what they
            give as far as is known.
    """

    profile: HostProfile | None
    identity: str
    missing: dict[str, str]
    lowered: dict[str, dict[str, tuple[int, int]]]
    errata: dict[str, tuple[Erratum, ...]]
    obstacles: tuple[Unlevelled, ...]
    unknown: tuple[str, ...] = ()

    @property
    def needs_consent(self) -> bool:
        """Whether a guest may miss a workaround without which it computes or keeps wrong data, or
        stops, be it with its host.
        """
        return any(each.severity in GRAVE for found in self.errata.values() for each in found)


def levelled(hosts: Sequence[HostProfile], name: str, identity: str = "") -> Levelled:
    """What these hosts can give, in whatever order they are given.

    Args:
        hosts: at least one, of different names. Hosts of one kind may be given by one that speaks
            for all.
        name: for the profile.
        identity: name of the host whose CPU guests are to see; by default the one with which they
            miss the fewest workarounds for errata, the worst counting first.
    """
    hosts = sorted(hosts, key=lambda host: (kernel_age(host), host.name))
    some_lack = {part for host in hosts for part in host.unknown}.difference(SINCE_2)
    unknown = tuple(part for part in PARTS if part in some_lack)
    obstacles = find_unlevelled(hosts)
    if obstacles:
        return Levelled(None, "", {}, {}, {}, tuple(obstacles), unknown)
    members = [Member(host) for host in hosts]
    alike = _are_alike(members)
    # Of those of one CPU, the first speaks for all.
    models = [*{member.identity: member for member in reversed(members)}.values()]
    models = [member for member in members if member.host.name == identity] or models
    results = [(_levelled_as(model, members, name, alike, unknown), model) for model in models]
    return min(results, key=lambda pair: _misses(*pair))[0]


def _are_alike(members: list[Member]) -> bool:
    """Whether all have one CPU, as far as is known."""
    return all(
        len({m.identity[place] for m in members if not m.may_have(name, m.first.features)}) < 2
        for place, name in enumerate(IMPLEMENTATION_ID)
    )


def _levelled_as(
    model: Member, members: list[Member], name: str, alike: bool, unknown: tuple[str, ...]
) -> Levelled:
    """What these can give to guests that see this one's CPU.

    Args:
        name: for the profile.
        alike: whether all have that CPU.
        unknown: as in `Levelled`.
    """
    hosts = [member.host for member in members]
    common = common_features(members)
    results = {features: level_vcpu(members, features, model) for features in common}
    if any(not isinstance(found, list) for found in results.values()):
        # What some host may not make is in nobody's way.
        results = {
            features: found
            for features, found in results.items()
            if not isinstance(found, list) or all(member.measured(features) for member in members)
        }
    made = {features: made for features, made in results.items() if not isinstance(made, list)}
    kept, missing = _keep(members, [*results], made, alike)
    clusters = _cluster(members, model, [*results], made, kept)
    if clusters is None:
        failed = [found for found in results.values() if isinstance(found, list)]
        obstacles = min(failed, key=len, default=[_no_vcpu(members, missing)])
        return Levelled(None, "", missing, {}, {}, tuple(obstacles), unknown)
    profile = profile_head(hosts, name).replace(
        clusters=(clusters,),
        gic_versions=tuple(version for version in (GIC,) if "gic_versions" not in unknown),
        level_library=LEVEL_TEXT,
        unknown=tuple(part for part in PARTS if part in (*unknown, *SINCE_2)),
    )
    obstacles = [] if unknown else _refused(members, profile)
    return Levelled(
        None if obstacles else profile,
        "" if alike else model.host.name,
        missing,
        {member.host.name: _lowered(member, clusters) for member in members},
        {member.host.name: _errata(member, clusters) for member in members},
        tuple(obstacles),
        unknown,
    )


def _misses(result: Levelled, model: Member) -> tuple[object, ...]:
    """What orders identities: how many workarounds of each severity guests miss that see this one's
    CPU, and where there are no guests, how much is in the way.
    """
    found = [each.severity for errata in result.errata.values() for each in errata]
    return (
        result.profile is None,
        len(result.obstacles),
        *map(found.count, SEVERITIES),
        model.cpu[0],
        model.cpu[1] or 0,
    )


# -- features, and the cluster -------------------------------------------------------------------


def _keep(
    members: list[Member],
    common: list[FeatureSet],
    made: dict[FeatureSet, Made],
    alike: bool,
) -> tuple[set[str], dict[str, str]]:
    """The vCPU features that guests get, and why they get no others: name of a feature → why."""
    hosts = [
        member.host
        for member in members
        if all(map(member.knows, ("qemu", "libvirt", "cpu_features")))
    ]
    knobs = knobs_of(profile_head(hosts, "")) if hosts else frozenset()
    # What libvirt and QEMU have no word for, QEMU gives wherever KVM has it.
    unsaid = [feature for feature in CPU_FEATURES if hosts and feature.libvirt not in knobs]
    kept = {
        "psci_0_2",
        *(bit for feature in unsaid if _some_have(feature, members) for bit in feature.bits),
    }
    missing = {}
    for feature in FEATURES:
        if feature.is_in(kept) or not _some_have(feature, members):
            continue
        why = _why_not(feature, members, alike)
        with_it = kept.union(feature.bits)
        sets = [each for each in common if feature.is_in(each)]
        sets = [each for each in sets if with_it.issuperset(each)]
        if not why and not sets and not all(member.knows("vcpus") for member in members):
            continue  # nobody knows
        if not why and not (sets and all(each in made for each in sets)):
            why = "the hosts' CPUs differ in it, and no kernel lets user space level that"
        if why:
            missing[feature.name] = why
        else:
            kept.update(feature.bits)
    return kept, missing


def _some_have(feature: Feature, members: list[Member]) -> bool:
    return any(member.cluster.has(feature.bit) for member in members)


def _why_not(feature: Feature, members: list[Member], alike: bool) -> str:
    without = [m.host.name for m in members if m.knows("vcpus") and not m.cluster.has(feature.bit)]
    if without:
        return f"{some(without)} {'has' if len(without) == 1 else 'have'} none"
    if feature is PMU and not alike:
        return "its events are the CPU's own, and the hosts' CPUs differ"
    for name, row in GUEST_REGISTERS.items():
        seen = (m.cluster.seen[name] for m in members if name in m.cluster.seen)
        said = sorted({*map(row.text, seen)}) if row.needs is feature else []
        if len(said) > 1:
            return f"the hosts have {some(said)}"
    if feature is SVE and sve_lengths_of(members) == ():
        return "no set of vector lengths is every host's own up to its longest"
    return ""


def _cluster(
    members: list[Member],
    model: Member,
    common: list[FeatureSet],
    made: dict[FeatureSet, Made],
    kept: set[str],
) -> Cluster | None:
    """The CPU that guests get; None if there is no vCPU of it."""
    sets = [features for features in common if kept.issuperset(features)]
    if not sets or not all(features in made for features in sets):
        return None
    chosen = [made[features] for features in sets]
    left_out = frozenset(name for _, without in chosen for name in without)
    if not all(
        can_leave_out(name, vcpu.registers, members, vcpu.features)
        for vcpu, _ in chosen
        for name in left_out
    ):
        return None  # what means nothing to one set of features means something to another
    ids = frozenset(map(id_of, left_out))
    vcpus = tuple(
        vcpu.replace(
            registers={n: value for n, value in vcpu.registers.items() if n not in left_out},
            reglist=pack_ids(unpack_ids(vcpu.reglist) - ids),
        )
        for vcpu, _ in chosen
    )
    masks = [member.cluster.writable for member in members]
    seen = {
        name: vcpus[0].registers.get(name, value)
        for name, value in model.cluster.seen.items()
        if all(name in member.cluster.seen for member in members)
    }
    cpus = tuple(sorted({(midr, revidr or 0) for midr, revidr in (m.cpu for m in members)}))
    return model.cluster.replace(
        vcpus=vcpus,
        models={},
        sve_lengths=(sve_lengths_of(members) or ()) if SVE.is_in(kept) else (),
        seen=readable(seen, kept),
        writable=None if None in masks else common_bits([mask for mask in masks if mask]),
        level=Level(tuple(sorted(left_out, key=id_of)), cpus=cpus if len(cpus) > 1 else ()),
    )


def _no_vcpu(members: list[Member], missing: dict[str, str]) -> Unlevelled:
    return Unlevelled(
        "vCPU features",
        "the sets that KVM makes a vCPU of",
        {
            member.host.name: "; ".join(" ".join(vcpu.features) for vcpu in member.cluster.vcpus)
            for member in members
        },
        "there is none that all have, and that libvirt and QEMU have words for",
        "; ".join(f"no {feature}: {why}" for feature, why in missing.items()),
    )


def _lowered(member: Member, cluster: Cluster) -> dict[str, tuple[int, int]]:
    """What guests lose of a host in any of the vCPUs. What is there with a feature alone, such as
    ID_AA64ZFR0_EL1, the vCPU without it does not tell.
    """
    lowered: dict[str, tuple[int, int]] = {}
    for vcpu in sorted(cluster.vcpus, key=lambda vcpu: len(vcpu.features)):
        own = member.vcpu(vcpu.features).registers
        for name, value in vcpu.registers.items():
            if own.get(name, value) == value or name in IMPLEMENTATION_ID:
                continue
            fields = differing_fields(name, own[name], value)
            values = {f"{name}.{f.name}": (f.of(own[name]), f.of(value)) for f in fields}
            for what, pair in (values or {name: (own[name], value)}).items():
                lowered.setdefault(what, pair)
    return lowered


def _errata(member: Member, cluster: Cluster) -> tuple[Erratum, ...]:
    """What guests miss of a host that are any of the vCPUs."""
    seen = [vcpu.registers for vcpu in cluster.vcpus]
    own = [member.vcpu(vcpu.features).registers for vcpu in cluster.vcpus]
    identity = seen[0].get("MIDR_EL1", member.cpu[0]), seen[0].get("REVIDR_EL1")
    return tuple(
        erratum
        for erratum in missed(*member.cpu, *identity)
        if erratum.guest and not all(map(erratum.ruled_out, own, seen))
    )


def _refused(members: list[Member], profile: HostProfile) -> list[Unlevelled]:
    """What `check` finds against guests of this profile on any host: nothing, or the rules above
    are wrong.
    """
    found: dict[tuple[str, str], Unlevelled] = {}
    for target in targets(profile):
        for member in members:
            host = member.host.replace(level_library=LEVEL_TEXT)
            for finding in blocking(check(target, host, cpus=())):
                said = wording.texts(finding)
                found[host.name, said["subject"]] = Unlevelled(
                    said["subject"],
                    said["meaning"],
                    {profile.name: said["recorded"], host.name: said["local"]},
                    said["rule"],
                )
    return [*found.values()]
