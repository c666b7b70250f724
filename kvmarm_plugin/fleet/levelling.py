# SPDX-License-Identifier: LGPL-2.1-or-later
"""Levelling: what hosts of different CPUs or kernels can all give to a guest, if libkvmarm-level
writes it into the guest's vCPUs.

The result is the profile of a host that gives just that: a pool of it is resolved, confirmed and
checked like any other. A register gets the value that the kernel's own rules make of the hosts'
(`rules.safe_value`), and the kernel of each has to take it (`rules.accepts`). What user space may
not write, and what no register tells, has to be the same everywhere.

What nobody measured of a host (`HostProfile.unknown`) is never in the way: there the answer is the
best that it may be, and no pool is made of it. What is in the way by what is known stays there.
"""

from __future__ import annotations

from functools import partial, reduce

from ..basics.value import Value
from ..judge import wording
from ..judge.by_profile import check, possible_kernels
from ..model.features import CPU_FEATURES, FEATURES, PMU, SVE, Feature
from ..model.guest_registers import GUEST_REGISTERS, GuestRegister, readable
from ..model.profile import PARTS, SINCE_2, Cluster, HostProfile, Vcpu
from ..model.target import LEVEL_TEXT, Level, sve_bitmap
from ..registers.errata import SEVERITIES, Erratum, missed
from ..registers.left_out import may_be_left_out, sign_of
from ..registers.rules import (
    IDENTITIES_SINCE,
    IMPLEMENTATION_ID,
    OF_THE_HOST,
    KernelFacts,
    accepts,
    differing_fields,
    ignores,
    keeps,
    kernel_version,
    masks_of,
    refused_fields,
    safe_value,
)
from ..registers.table import Field, describe, fields_of, id_of, is_identity, name_of
from ..registers.text import pack_ids, unpack_ids
from ..resolve.forms import knobs_of
from .common_ground import (
    blocking,
    common_bits,
    common_sve_lengths,
    least_addresses,
    machines,
    profile_head,
    some,
    targets,
)
from .kinds import kernel_age

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Callable, TypeVar

    T = TypeVar("T")
    FeatureSet = tuple[str, ...]
    Made = tuple[Vcpu, frozenset[str]]  # with the names of what it is without

GRAVE = ("corrupting", "hangs")  # severities of errata that nobody accepts unasked
_GIC = 3  # a GICv2 is taken from the ID registers when it is made, which is after levelling
_NEWEST = "7.2.8"  # the newest kernel whose masks were read (registers/writable.tsv)
_UNKNOWN = "unknown"  # what a host has of a part that nobody measured
_LEAST: FeatureSet = ("psci_0_2",)  # the vCPU that every host makes

# What differs between vCPUs of one CPU that have other features.
_BY_FEATURES = frozenset(
    ["ID_AA64ZFR0_EL1", "SVE_VLS"]
    + [field.partition(".")[0] for feature in FEATURES for field in feature.fields]
)

# Registers of firmware, by what is common to their values.
_SMALLER = ("PSCI_VERSION",)
_BITS = ("STD_BMAP", "STD_HYP_BMAP", "VENDOR_HYP_BMAP", "VENDOR_HYP_BMAP_2")


class Unlevelled(Value):
    """One reason why hosts cannot be levelled: of all of them, where `common_ground.Obstacle` is of
    a guest of one on another.

    Attributes:
        subject: REGISTER.FIELD, or another such as "machine type".
        meaning: what that is, for an operator.
        values: name of each host → what it has, as text.
        why: whose rule it is.
        helps: what may help; empty where nothing that is known does.
    """

    subject: str
    meaning: str
    values: dict[str, str]
    why: str
    helps: str = ""


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


class _Member:
    """A host to be levelled, of one cluster."""

    def __init__(self, host: HostProfile) -> None:
        self.host = host
        self.cluster: Cluster = host.clusters[0]
        self.kernels = possible_kernels(host, self.cluster, levels=True)
        self.first = self._with_identity(self.cluster.vcpus[0])
        registers = self.first.registers
        self.identity = tuple(registers.get(name) for name in IMPLEMENTATION_ID)
        self.cpu = registers.get("MIDR_EL1", self.cluster.midr), registers.get("REVIDR_EL1")

    def knows(self, part: str) -> bool:
        return part not in self.host.unknown

    def _with_identity(self, vcpu: Vcpu) -> Vcpu:
        """A vCPU of which not all registers are known; sysfs tells two, if the CPUs are of one
        kind.
        """
        told = {"MIDR_EL1": self.cluster.midr, "REVIDR_EL1": self.cluster.revidr}
        if self.knows("registers"):
            return vcpu
        known = {name: value for name, value in told.items() if value is not None}
        return vcpu.replace(registers={**known, **vcpu.registers})

    def measured(self, features: FeatureSet) -> Vcpu | None:
        return self.cluster.vcpu(self.cluster.target, features)

    def makes(self, features: FeatureSet) -> bool:
        """Whether it makes such a vCPU, as far as is known."""
        return self.measured(features) is not None or not self.knows("vcpus")

    def vcpu(self, features: FeatureSet) -> Vcpu:
        """One of those that it `makes`. Where nobody made it, with the registers that all vCPUs of
        the CPU have in common.
        """
        found = self.measured(features)
        if found is not None:
            return self._with_identity(found)
        registers = self.first.registers
        return Vcpu(
            self.cluster.target,
            features,
            {name: registers[name] for name in registers if name not in _BY_FEATURES},
            "",
        )

    def reglist(self, features: FeatureSet) -> frozenset[int] | None:
        """The list of all registers; None where it is unknown."""
        found = self.measured(features)
        return unpack_ids(found.reglist) if found and self.knows("reglist") else None

    def lacks(self, name: str, features: FeatureSet) -> bool:
        """Whether such a vCPU is for certain without a register that identifies vCPUs."""
        return name not in self.vcpu(features).registers and not self.may_have(name, features)

    def may_have(self, name: str, features: FeatureSet) -> bool:
        """Whether nobody knows what such a vCPU has in a register, or whether it has it."""
        vcpu = self.vcpu(features)
        if name in vcpu.registers:
            return False
        if self.measured(features) is None:
            if name in _BY_FEATURES:
                return True
            vcpu = self.first
        listed = not self.knows("reglist") or id_of(name) in unpack_ids(vcpu.reglist)
        return listed and not self.knows("registers")

    def takes(self, name: str, value: int, registers: dict[str, int]) -> bool:
        """Whether its kernel lets a vCPU of these registers have this value, and shows it."""
        return any(keeps(name, value, registers, kernel) for kernel in self.kernels)

    def refuses(self, name: str, value: int, registers: dict[str, int]) -> bool:
        """Whether its kernel does not even let it be set."""
        return not any(
            ignores(name, value, registers, kernel) or accepts(name, value, registers[name], kernel)
            for kernel in self.kernels
        )

    def refused_fields(self, name: str, value: int, limit: int) -> list[Field]:
        """The fields that whatever kernel it may have refuses."""
        every = [refused_fields(name, value, limit, kernel) for kernel in self.kernels]
        return [field for field in every[0] if all(field in fields for fields in every)]

    def would_take(self, name: str, value: int, registers: dict[str, int]) -> bool:
        """Whether it would with the newest kernel that is known."""
        newest = KernelFacts(kernel_version(_NEWEST), masks_of(_NEWEST)[0], identities=True)
        return keeps(name, value, registers, newest)


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
    obstacles = _of_hosts(hosts)
    if obstacles:
        return Levelled(None, "", {}, {}, {}, tuple(obstacles), unknown)
    members = [_Member(host) for host in hosts]
    alike = _are_alike(members)
    # Of those of one CPU, the first speaks for all.
    models = [*{member.identity: member for member in reversed(members)}.values()]
    models = [member for member in members if member.host.name == identity] or models
    results = [(_levelled_as(model, members, name, alike, unknown), model) for model in models]
    return min(results, key=lambda pair: _misses(*pair))[0]


def _are_alike(members: list[_Member]) -> bool:
    """Whether all have one CPU, as far as is known."""
    return all(
        len({m.identity[place] for m in members if not m.may_have(name, m.first.features)}) < 2
        for place, name in enumerate(IMPLEMENTATION_ID)
    )


def _levelled_as(
    model: _Member, members: list[_Member], name: str, alike: bool, unknown: tuple[str, ...]
) -> Levelled:
    """What these can give to guests that see this one's CPU.

    Args:
        name: for the profile.
        alike: whether all have that CPU.
        unknown: as in `Levelled`.
    """
    hosts = [member.host for member in members]
    results = {features: _level(members, features, model) for features in _common_features(members)}
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
        gic_versions=tuple(version for version in (_GIC,) if "gic_versions" not in unknown),
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


def _misses(result: Levelled, model: _Member) -> tuple[object, ...]:
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


# -- what no register says -----------------------------------------------------------------------


def _of_hosts(hosts: list[HostProfile]) -> list[Unlevelled]:
    """What has to be the same of all, or have something in common, as far as it is known."""

    found: list[Unlevelled] = []

    def unless(
        fits: Callable[[list[T]], bool],
        parts: tuple[str, ...],
        subject: str,
        meaning: str,
        value: Callable[[HostProfile], T],
        text: Callable[[T], str],
        why: str,
    ) -> None:
        """An obstacle, unless the values fit that are known: of hosts that tell all parts."""
        known = {host.name: value(host) for host in hosts if not {*parts} & {*host.unknown}}
        if known and not fits([*known.values()]):
            names = (host.name for host in hosts)
            values = {name: text(known[name]) if name in known else _UNKNOWN for name in names}
            found.append(Unlevelled(subject, meaning, values, why))

    unless(
        lambda sizes: {*sizes} == {1}, (), "CPUs", "kinds of CPU that it has KVM on",
        lambda host: len(host.clusters) + len(host.unmeasured), str,
        "levelling is for hosts with KVM on CPUs of one kind",
    )  # fmt: skip
    unless(
        lambda architectures: {*architectures} == {"arm64"}, (), "architecture", "KVM's",
        lambda host: host.kvm_architecture, str,
        "levelling is for arm64",
    )  # fmt: skip
    unless(
        lambda types: bool(frozenset(types[0]).intersection(*types[1:])),
        ("qemu",), "machine types", "the newest of QEMU",
        machines, lambda types: "".join(types[:1]),
        "QEMU refuses a machine type it does not know",
    )  # fmt: skip
    unless(
        lambda versions: all(_GIC in each for each in versions),
        ("gic_versions",), "GIC", "interrupt controller version",
        lambda host: host.gic_versions, lambda versions: ", ".join(map(str, versions)),
        "KVM takes an older GIC from the ID registers when it is made, after they have been"
        " levelled (kvm_vgic_create)",
    )  # fmt: skip
    unless(
        lambda bits: len({*bits}) == 1,
        ("ipa_bits", "qemu"), "IPA size", "guest physical address bits", least_addresses, str,
        "QEMU lays the guest's addresses out by the host's limit (virt_set_high_memmap)",
    )  # fmt: skip
    for register, row in GUEST_REGISTERS.items():
        if row.fixed:
            unless(
                lambda values: len({*values} - {None}) < 2,
                ("seen",), register, describe(register),
                partial(_seen, register), partial(_seen_text, row),
                "no register of KVM's has it, so that nothing can level it",
            )  # fmt: skip
    return found


def _seen(register: str, host: HostProfile) -> int | None:
    return host.clusters[0].seen.get(register) if host.clusters else None


def _seen_text(row: GuestRegister, value: int | None) -> str:
    return _UNKNOWN if value is None else row.text(value)


# -- registers -----------------------------------------------------------------------------------


def _common_features(members: list[_Member]) -> list[FeatureSet]:
    """The sets of features with which every host makes a vCPU for QEMU's "host", as far as is
    known.
    """
    # A host of which all vCPUs are known makes no others.
    known = [member for member in members if member.knows("vcpus")]
    sets = dict.fromkeys(
        vcpu.features
        for member in known[:1] or members
        for vcpu in member.cluster.vcpus
        if vcpu.number == member.cluster.target
    )
    if not known:
        sets[_LEAST] = None
    return [features for features in sets if all(member.makes(features) for member in members)]


def _level(members: list[_Member], features: FeatureSet, model: _Member) -> Made | list[Unlevelled]:
    """The vCPU of these features that all can give, with the names of what it is without; or why
    there is none.
    """
    vcpus = [member.vcpu(features) for member in members]
    registers: dict[str, int] = {}
    failed: dict[str, int | None] = {}
    for name in dict.fromkeys(name for vcpu in vcpus for name in vcpu.registers):
        told = [(m, vcpu.registers) for m, vcpu in zip(members, vcpus) if name in vcpu.registers]
        own = [known[name] for _, known in told]
        of_model = model.vcpu(features).registers.get(name)
        wanted = _common_value(name, own, own[0] if of_model is None else of_model)
        # Whoever's identity it is, the model's is the one that all see.
        others = () if name in IMPLEMENTATION_ID and of_model is not None else own
        possible = [
            value
            for value in dict.fromkeys([wanted, *others])
            if all(member.takes(name, value, known) for member, known in told)
        ]
        lacking = any(member.lacks(name, features) for member in members)
        if name == "SVE_VLS":
            lengths = _sve_lengths(members)
            if lengths is not None:
                registers[name] = sve_bitmap(lengths)
        elif lacking or not possible:
            failed[name] = None if lacking else wanted
        elif len(told) == len(members):
            registers[name] = possible[0]
    lists = [member.reglist(features) for member in members]
    known_lists = [listed for listed in lists if listed is not None] or [frozenset()]
    listed = known_lists[0].intersection(*known_lists[1:])
    some_list = frozenset(map(name_of, known_lists[0].union(*known_lists[1:]) - listed))
    without = some_list.union(failed)
    found: list[Unlevelled] = []
    for name in sorted(without, key=id_of):
        if not _may_be_left_out(name, registers, members, features):
            wanted_value = failed.get(name)
            found += (
                [_not_listed(name, members, features)]
                if wanted_value is None
                else _not_taken(name, wanted_value, members, vcpus)
            )
    if found:
        return found
    reglist = pack_ids(listed - frozenset(map(id_of, without)))
    return Vcpu(model.cluster.target, features, registers, reglist), without


def _may_be_left_out(
    name: str, registers: dict[str, int], members: list[_Member], features: FeatureSet
) -> bool:
    """Whether a guest with these registers loses nothing without another, as far as is known.

    Args:
        registers: that all can give; those of which some host's value is unknown are not there.
    """
    if may_be_left_out(name, registers):
        return True
    sign = sign_of(name)
    if sign is None or not any(member.may_have(sign[0].register, features) for member in members):
        return False
    field, value = sign
    for member in members:
        own = member.vcpu(features).registers
        if field.register in own and field.of(own[field.register]) != value:
            bits = (1 << field.msb + 1) - (1 << field.lsb)
            lowered = own[field.register] & ~bits | value << field.lsb
            if not member.takes(field.register, lowered, own):
                return False
    return True


def _sve_lengths(members: list[_Member]) -> tuple[int, ...] | None:
    """The vector lengths that all give; None where some host's are unknown."""
    if all(member.knows("sve_lengths") for member in members):
        return common_sve_lengths([member.cluster for member in members])
    return None


def _common_value(name: str, values: list[int], model: int) -> int:
    """What all of these values of a register have in common, by the kernel's rules; where there is
    none, the model's.
    """
    if name in _SMALLER:
        return min(values)
    if name in _BITS:
        return reduce(int.__and__, values)
    value = model
    for field in fields_of(name) if name not in IMPLEMENTATION_ID else ():
        parts = [field.of(each) for each in values]
        if len({*parts}) > 1 and field.policy != "-":
            safe = reduce(lambda ours, theirs: safe_value(field, ours, theirs), parts)
            value = value & ~((1 << field.msb + 1) - (1 << field.lsb)) | safe << field.lsb
    return value


def _not_listed(name: str, members: list[_Member], features: FeatureSet) -> Unlevelled:
    def has(member: _Member) -> bool | None:
        listed = member.reglist(features)
        if listed is not None:
            return id_of(name) in listed
        if name in member.vcpu(features).registers:
            return True
        is_told = is_identity(id_of(name)) and member.lacks(name, features)
        return False if is_told else None

    said = {True: "there", False: "missing", None: _UNKNOWN}
    values = {member.host.name: said[has(member)] for member in members}
    return Unlevelled(
        name,
        describe(name),
        values,
        "QEMU does not load a register that the destination's KVM does not have, and a guest may"
        " need it",
        "the same Linux on all hosts may help",
    )


def _not_taken(
    name: str, wanted: int, members: list[_Member], vcpus: list[Vcpu]
) -> list[Unlevelled]:
    """Why a register cannot have one value on all hosts, by field."""
    told = [(m, vcpu.registers) for m, vcpu in zip(members, vcpus) if name in vcpu.registers]
    own = {member.host.name: registers[name] for member, registers in told}
    refusing = [
        (member, registers)
        for member, registers in told
        if not member.takes(name, wanted, registers)
    ]

    def values(text: Callable[[int], str]) -> dict[str, str]:
        names = (member.host.name for member in members)
        return {host: text(own[host]) if host in own else _UNKNOWN for host in names}

    names = some([member.host.name for member, _ in refusing])
    if name in IMPLEMENTATION_ID:
        since = ".".join(map(str, IDENTITIES_SINCE))
        return [
            Unlevelled(
                name,
                describe(name),
                values(hex),
                f"KVM lets user space write it since Linux {since}",
                f"Linux {since} or newer on {names}",
            )
        ]
    helps = all(member.would_take(name, wanted, registers) for member, registers in refusing)
    remedy = f"Linux {_NEWEST.rpartition('.')[0]} or newer on {names} may help" if helps else ""
    fields = {
        field.name: field
        for member, registers in refusing
        for field in member.refused_fields(name, wanted, registers[name])
    }
    strict = [m.host.name for m, registers in refusing if m.refuses(name, wanted, registers)]
    if name in OF_THE_HOST:
        why = (
            "KVM refuses more than its host has, and where it takes less, it still answers what its"
            " host has (kvm_arm_set_fw_reg, kvm_arm_get_fw_reg)"
        )
        remedy = "the same firmware and the same Linux on all hosts may help"
    elif strict:
        why = f"KVM on {some(strict)} does not let user space write a value that all have"
    else:
        why = f"KVM on {names} takes a value that all have, and does not keep it"
    return [
        Unlevelled(
            f"{name}.{field.name}",
            field.meaning,
            values(lambda value, field=field: hex(field.of(value))),  # type: ignore[misc]
            why,
            remedy,
        )
        for field in fields.values()
    ] or [Unlevelled(name, describe(name), values(hex), why, remedy)]


# -- features, and the cluster -------------------------------------------------------------------


def _keep(
    members: list[_Member],
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


def _some_have(feature: Feature, members: list[_Member]) -> bool:
    return any(member.cluster.has(feature.bit) for member in members)


def _why_not(feature: Feature, members: list[_Member], alike: bool) -> str:
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
    if feature is SVE and _sve_lengths(members) == ():
        return "no set of vector lengths is every host's own up to its longest"
    return ""


def _cluster(
    members: list[_Member],
    model: _Member,
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
        _may_be_left_out(name, vcpu.registers, members, vcpu.features)
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
        sve_lengths=(_sve_lengths(members) or ()) if SVE.is_in(kept) else (),
        seen=readable(seen, kept),
        writable=None if None in masks else common_bits([mask for mask in masks if mask]),
        level=Level(tuple(sorted(left_out, key=id_of)), cpus=cpus if len(cpus) > 1 else ()),
    )


def _no_vcpu(members: list[_Member], missing: dict[str, str]) -> Unlevelled:
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


def _lowered(member: _Member, cluster: Cluster) -> dict[str, tuple[int, int]]:
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


def _errata(member: _Member, cluster: Cluster) -> tuple[Erratum, ...]:
    """What guests miss of a host that are any of the vCPUs."""
    seen = [vcpu.registers for vcpu in cluster.vcpus]
    own = [member.vcpu(vcpu.features).registers for vcpu in cluster.vcpus]
    identity = seen[0].get("MIDR_EL1", member.cpu[0]), seen[0].get("REVIDR_EL1")
    return tuple(
        erratum
        for erratum in missed(*member.cpu, *identity)
        if erratum.guest and not all(map(erratum.ruled_out, own, seen))
    )


def _refused(members: list[_Member], profile: HostProfile) -> list[Unlevelled]:
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
