# SPDX-License-Identifier: LGPL-2.1-or-later
"""Baselines, pools and plans: laws over the corpus, and what is said where hosts differ."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kvmarm_plugin import cli
from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.fleet import pool
from kvmarm_plugin.fleet.baseline import Baseline, as_json, as_text, baseline
from kvmarm_plugin.fleet.common_ground import common, targets
from kvmarm_plugin.fleet.obstacles import find_obstacles
from kvmarm_plugin.fleet.plan import BOOT, FIRMWARE, KERNEL, LEAVE_OUT, QEMU, apply_override
from kvmarm_plugin.fleet.pool import Pool
from kvmarm_plugin.judge.by_profile import ProfileOffer, check
from kvmarm_plugin.judge.by_profile import given as given_there
from kvmarm_plugin.judge.finding import HARMLESS, Finding
from kvmarm_plugin.judge.wording import line
from kvmarm_plugin.kvm.device import System
from kvmarm_plugin.model.features import FEATURES
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.problem import Problem
from kvmarm_plugin.model.profile import Cluster, HostProfile
from kvmarm_plugin.model.profile_json import digest, dumps
from kvmarm_plugin.model.target import Target
from kvmarm_plugin.registers.overrides import Override, overrides
from kvmarm_plugin.registers.table import fields_of
from kvmarm_plugin.rehearse import KernelOffer
from kvmarm_plugin.resolve.resolver import clusters_of
from tests.corpus import HOSTS, TESTS, host, one_line, template

from .fakekernel import FakeKernel

_NAMES = sorted(HOSTS)


# -- hosts that are varied from the corpus -------------------------------------------------------


def _each_cluster(name: str, base: HostProfile, **changes: object) -> HostProfile:
    return base.replace(
        name=name, clusters=tuple(cluster.replace(**changes) for cluster in base.clusters)
    )


def _without(base: HostProfile, name: str, *words: str) -> HostProfile:
    """A host of the corpus with these words on its command line."""
    for word in words:
        base = apply_override(base, _override(word))
    return base.replace(name=name)


def _override(word: str) -> Override:
    return next(override for override in overrides() if override.word == word)


def _shorter_sve(base: HostProfile, name: str, longest: int) -> HostProfile:
    lengths = tuple(length for length in base.clusters[0].sve_lengths if length <= longest)
    return _each_cluster(name, base, sve_lengths=lengths)


def _fewer_counters(base: HostProfile, name: str, counters: int) -> HostProfile:
    seen = base.clusters[0].seen
    return _each_cluster(
        name, base, seen={**seen, "PMCR_EL0": seen["PMCR_EL0"] & ~(31 << 11) | counters << 11}
    )


def _variations() -> dict[str, HostProfile]:
    """The corpus, and hosts that differ from one of it in one thing."""
    maximal, n1 = host("trixie-max"), host("trixie-neoverse-n1")
    varied = [
        *map(host, _NAMES),
        maximal.replace(name="max-twin"),
        _without(maximal, "max-nobti", "arm64.nobti"),
        _without(maximal, "max-nosve", "arm64.nosve"),
        _without(maximal, "max-nopauth", "arm64.nopauth"),
        _shorter_sve(maximal, "max-sve512", 512),
        _fewer_counters(maximal, "max-2-counters", 2),
        maximal.replace(name="max-48-bits", ipa_bits=48),
        n1.replace(name="n1-twin", kernel="6.12.99-other"),
        (
            n1.replace(
                name="n1-old-qemu",
                qemu=n1.qemu.replace(
                    machines=n1.qemu.machines[3:], aliases={"virt": n1.qemu.machines[3]}
                ),
            )
            if n1.qemu
            else n1
        ),
        _each_cluster("n1-25-mhz", n1, seen={**n1.clusters[0].seen, "CNTFRQ_EL0": 25_000_000}),
    ]
    return {profile.name: profile for profile in varied}


_HOSTS = _variations()
_MAX = [name for name in _HOSTS if name.startswith(("max", "trixie-max"))]
_N1 = [name for name in _HOSTS if name.startswith("n1") or name == "trixie-neoverse-n1"]

# Any hosts at all hardly ever form a pool; hosts of a family often do.
_any_hosts = st.lists(st.sampled_from(sorted(_HOSTS)), min_size=1, max_size=5, unique=True)
_related = st.one_of(
    st.lists(st.sampled_from(_MAX), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from(_N1), min_size=1, unique=True),
)
_groups = st.one_of(_any_hosts, _related)


def _of(names: list[str]) -> Baseline:
    return baseline([_HOSTS[name] for name in names])


def _features(formed: Pool | None) -> set[object]:
    """All that guests of a pool can have: nothing without a pool."""
    if formed is None:
        return set()
    profile = formed.baseline
    have: set[object] = set(profile.gic_versions) | set(
        profile.qemu.machines if profile.qemu else ()
    )
    for cluster in profile.clusters:
        have |= {(cluster.midr, vcpu.features) for vcpu in cluster.vcpus} | set(cluster.sve_lengths)
    return have


# -- laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(_HOSTS))
def test_the_baseline_of_one_host_is_that_host(name: str) -> None:
    result = _of([name])
    assert result.pool is not None
    assert digest(result.pool.baseline) == digest(_HOSTS[name])
    assert result.missing == {}
    assert result.costs == {(name,): ()}


@given(_groups, st.randoms(use_true_random=False))
def test_the_order_of_the_hosts_does_not_matter(names: list[str], random: object) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert _of(shuffled) == _of(names)


@given(_groups, st.sampled_from(sorted(_HOSTS)))
def test_another_host_never_adds_anything(names: list[str], another: str) -> None:
    assert _features(_of(sorted({*names, another})).pool) <= _features(_of(names).pool)


@given(_groups)
def test_every_member_takes_the_baseline_and_is_taken_by_every_other(names: list[str]) -> None:
    """Asked of `check` alone: of each guest that some policy makes of the baseline, wherever it is
    started.
    """
    formed = _of(names).pool
    if formed is None:
        return
    for cluster in formed.baseline.clusters:
        single = formed.baseline.replace(clusters=(cluster,))
        views = [_view(_HOSTS[name], cluster) for name in names]
        made = targets(single)
        assert made
        for target in made:
            for source in views:
                assert _blocking(check(target, source)) == []
                started = given_there(target, ProfileOffer(target, source, source.clusters[0]))
                for destination in views:
                    assert _blocking(check(started, destination)) == []


def _view(profile: HostProfile, cluster: Cluster) -> HostProfile:
    (same,) = (other for other in profile.clusters if other.midr == cluster.midr)
    return profile.replace(clusters=(same,))


def _blocking(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity != HARMLESS]


@given(_groups)
def test_a_plan_leads_to_a_pool(names: list[str]) -> None:
    """Whoever takes the steps has hosts that form a pool, as far as profiles can foretell; without
    a step they are one already.
    """
    result = _of(names)
    assert (result.pool is None) == bool(result.plan.steps)
    assert result.plan.hosts
    assert common(list(result.plan.hosts), "then").profile is not None
    left_out = result.plan.left_out
    assert left_out < set(names)
    for step in result.plan.steps:
        assert set(step.hosts) <= set(names)
        assert step.why


@given(_groups)
def test_members_keep_to_their_pool(names: list[str]) -> None:
    formed = _of(names).pool
    if formed is not None:
        assert set(formed.members) == set(names)
        for name in names:
            assert pool.check_member(formed, _HOSTS[name]) == []


@given(_groups)
def test_a_pool_is_written_and_read(names: list[str]) -> None:
    formed = _of(names).pool
    if formed is not None:
        text = pool.dumps(formed)
        assert pool.loads(text) == formed
        assert pool.is_pool(text.encode())
        assert pool.is_pool(text.replace(f" {pool.SCHEMA}", f' "{pool.SCHEMA}"').encode())
        assert not pool.is_pool(f"<!-- {pool.SCHEMA} --><domain/>".encode())


# -- what hosts have in common, and what they lose -----------------------------------------------


def _formed(*names: str) -> Pool:
    formed = _of(list(names)).pool
    assert formed is not None
    return formed


def test_a_baseline_is_a_profile_by_its_schema() -> None:
    schema = json.loads((TESTS.parent / "docs/profile.schema.json").read_text(encoding="utf-8"))
    for names in (["trixie-max", "max-nosve", "max-2-counters"], ["rk3399"], ["a15"]):
        document = json.loads(dumps(_formed(*names).baseline))
        jsonschema.Draft202012Validator(schema).validate(document)


def test_what_xml_can_turn_off_is_turned_off() -> None:
    result = _of(["trixie-max", "trixie-max-nosve-nopauth"])
    assert result.pool is not None
    kept = [f.name for f in FEATURES if result.pool.baseline.clusters[0].has(f.bit)]
    assert kept == ["PMU"]
    assert result.missing["SVE"] == "trixie-max-nosve-nopauth has none"
    assert "QEMU would give 32-bit guests PAuth on trixie-max" in result.missing["AArch32"]
    assert result.costs[("trixie-max",)] == ("SVE", "PAuth", "AArch32")


def test_sve_is_as_long_as_all_have_it() -> None:
    formed = _formed("trixie-max", "max-sve512")
    assert formed.baseline.clusters[0].sve_lengths == (128, 256, 384, 512)


def test_sve_lengths_with_a_gap_end_before_it() -> None:
    """KVM takes only a set that is its own up to the longest (set_sve_vls): 512 on a host without
    384 is no common length.
    """
    gap = _each_cluster("gap", host("trixie-max"), sve_lengths=(128, 256, 512))
    result = baseline([host("trixie-max"), gap])
    assert result.pool is not None
    assert result.pool.baseline.clusters[0].sve_lengths == (128, 256)


def test_pauth_of_another_algorithm_is_turned_off() -> None:
    """Both have it, and neither takes the other's: the fields tell the algorithm, and are not
    writable.
    """
    base = host("trixie-max")
    other = _each_cluster("qarma3", base, vcpus=tuple(map(_with_qarma3, base.clusters[0].vcpus)))
    result = baseline([base, other])
    assert result.pool is not None
    assert not result.pool.baseline.clusters[0].has("ptrauth_address")
    assert "ID_AA64ISAR" in result.missing["PAuth"]


def _with_qarma3(vcpu: object) -> object:
    """A vCPU whose PAuth is told by ID_AA64ISAR2_EL1.APA3 instead of ID_AA64ISAR1_EL1.API."""
    registers = dict(vcpu.registers)  # type: ignore[attr-defined]
    if "ptrauth_address" in vcpu.features:  # type: ignore[attr-defined]
        registers["ID_AA64ISAR1_EL1"] &= ~0xFF000FF0
        registers["ID_AA64ISAR2_EL1"] |= 0x1100
    return vcpu.replace(registers=registers)  # type: ignore[attr-defined]


def test_firmware_that_does_not_mitigate_is_updated() -> None:
    """Guests of the other host could not move to it, and nothing else is in the way."""
    mitigates = host("trixie-neoverse-n1").replace(name="zulu")
    base = mitigates.clusters[0]
    vcpus = tuple(
        vcpu.replace(registers={**vcpu.registers, "SMCCC_ARCH_WORKAROUND_3": 0})
        for vcpu in base.vcpus
    )
    lacks = mitigates.replace(name="alpha", clusters=(base.replace(vcpus=vcpus),))
    result = baseline([mitigates, lacks])
    (step,) = result.plan.steps
    assert (step.action, step.hosts) == (FIRMWARE, ("alpha",))
    assert (
        "  1. update the firmware on alpha to one that offers SMCCC_ARCH_WORKAROUND_3 0x1, if there"
        " is one; else leave it out\n     SMCCC_ARCH_WORKAROUND_3 (mitigation of Spectre-BHB"
        " offered by firmware): 0x1 on zulu, 0x0 on alpha\n" in as_text(result, explain=False)
    )
    assert "After that, as a forecast:" in as_text(result, explain=False)
    assert baseline([mitigates, *result.plan.hosts[1:]]).pool is not None


def test_counters_that_one_lacks_turn_the_pmu_off() -> None:
    result = _of(["trixie-max", "max-2-counters"])
    assert result.pool is not None
    assert not result.pool.baseline.clusters[0].has("pmu_v3")
    assert "PMCR_EL0.N" in result.missing["PMU"]


def test_the_newest_machine_that_all_know() -> None:
    formed = _formed("trixie-neoverse-n1", "n1-old-qemu")
    assert formed.baseline.qemu is not None
    assert formed.baseline.qemu.machines[0] == "virt-9.0"
    assert formed.baseline.qemu.aliases == {"virt": "virt-9.0"}


def test_a_pool_of_big_little_boards_has_both_clusters() -> None:
    base = host("hand-made-rk3588")
    swapped = base.replace(
        name="swapped",
        # In the order of their first CPUs, as a probe has them.
        clusters=tuple(
            cluster.replace(cpus={"0-3": "4-7", "4-7": "0-3"}[cluster.cpus])
            for cluster in reversed(base.clusters)
        ),
    )
    result = baseline([base, swapped])
    assert result.pool is not None
    assert len(result.pool.baseline.clusters) == 2
    for member, cpus in ((base, "4-7"), (swapped, "0-3")):
        xml = _resolved(result.pool, member, template("big-little"))
        assert f"<vcpu placement='static' cpuset='{cpus}'>2</vcpu>".encode() in xml


def test_a_board_in_a_pool_of_hosts_of_one_cluster_pins() -> None:
    """The pool's CPU is one of the board's, and there the guest has to stay."""
    board = host("hand-made-rk3588")
    plain = board.replace(name="plain", clusters=(board.clusters[1].replace(cpus="0-7"),))
    formed = Pool("pool", {}, plain.replace(name="pool", origin="baseline of 2 kinds of hosts"))
    assert b"cpuset='4-7'" in _resolved(formed, board, template("big-little"))
    assert b"cpuset='" not in _resolved(formed, plain, template("direct-kernel"))
    # The user's own pins, or a policy, that lead elsewhere.
    little = template("big-little").replace(b"<vcpu>", b"<vcpu cpuset='0-3'>")
    with pytest.raises(
        KvmarmError, match="may run on CPUs 0-3, of MIDR 0x412fd050, which pool pool does not have"
    ):
        _resolved(formed, board, little)
    only_little = board.replace(
        clusters=(board.clusters[0], board.clusters[0].replace(cpus="4-7", midr=0x410FD040))
    )
    with pytest.raises(KvmarmError, match="this host has no Cortex-A76 to pin the guest to"):
        _resolved(formed, only_little, template("big-little"))


def test_a_board_is_no_member_of_a_pool_of_hosts_of_one_cluster() -> None:
    """Guests of the others have no pins, and `baseline` puts no board with them."""
    board = host("hand-made-rk3588")
    plain = board.replace(name="plain", clusters=(board.clusters[1].replace(cpus="0-7"),))
    assert baseline([board, plain]).pool is None
    formed = Pool("pool", {}, plain)
    assert pool.check_member(formed, plain) == []
    assert [finding.kind for finding in pool.check_member(formed, board)] == ["cluster-open"]


def test_a_board_with_one_more_kind_is_no_member() -> None:
    """A guest may roam over the two kinds of the others."""
    board = host("hand-made-rk3588")
    formed = Pool("pool", {}, board)
    assert pool.check_member(formed, board) == []
    third = board.clusters[0].replace(midr=0x410FD040, cpus="8-9")
    more = board.replace(clusters=(*board.clusters, third))
    assert baseline([board.replace(name="other"), more]).pool is None
    assert [finding.kind for finding in pool.check_member(formed, more)] == ["cluster-open"]


# -- plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "recorded"),
    [
        (("arm64.nobti",), "trixie-max-nobti"),
        (("arm64.nosve", "arm64.nopauth"), "trixie-max-nosve-nopauth"),
    ],
)
def test_overrides_do_in_profiles_what_they_did_to_hosts(
    words: tuple[str, ...], recorded: str
) -> None:
    """Against profiles that were recorded on hosts booted with them."""
    assert digest(_without(host("trixie-max"), "foretold", *words)) == digest(host(recorded))


def test_overrides_name_fields_that_there_are() -> None:
    for override in overrides():
        for register, field in override.fields:
            assert field in {known.name for known in fields_of(register)}, override.word


def test_a_field_that_a_command_line_levels() -> None:
    result = _of(["trixie-max", "trixie-max-nobti"])
    (step,) = result.plan.steps
    assert (step.action, step.hosts, step.what) == (BOOT, ("trixie-max",), "arm64.nobti")
    assert (
        "ID_AA64PFR1_EL1.BT (branch target identification): 0x1 on trixie-max, 0x0 on"
        " trixie-max-nobti" in step.why
    )
    assert result.costs == {("trixie-max",): ("what arm64.nobti takes",), ("trixie-max-nobti",): ()}


def test_a_word_that_the_kernel_does_not_know_is_not_proposed() -> None:
    old, new = (
        _each_cluster(
            name,
            host("trixie-max"),
            vcpus=tuple(_with_mops(vcpu, mops) for vcpu in host("trixie-max").clusters[0].vcpus),
        )
        for name, mops in (("old", 1), ("new", 0))
    )
    assert [step.action for step in baseline([old, new]).plan.steps] == [BOOT]
    older = [profile.replace(kernel="6.6.1") for profile in (old, new)]
    assert [step.action for step in baseline(older).plan.steps] == [LEAVE_OUT]


def _with_mops(vcpu: object, value: int) -> object:
    registers = {**vcpu.registers, "ID_AA64ISAR2_EL1": value << 16}  # type: ignore[attr-defined]
    return vcpu.replace(registers=registers)  # type: ignore[attr-defined]


def test_older_kernels_are_upgraded_to_the_newest() -> None:
    result = _of(["bookworm-neoverse-n1", "trixie-neoverse-n1", "sid-neoverse-n1"])
    assert [(step.action, step.what) for step in result.plan.steps] == [(KERNEL, "to 7.2")]
    assert result.plan.steps[0].hosts == ("bookworm-neoverse-n1", "trixie-neoverse-n1")


def test_many_hosts_are_not_upgraded_for_one() -> None:
    many = [host("trixie-neoverse-n1").replace(name=f"node{number}") for number in range(3)]
    result = baseline([*many, host("sid-neoverse-n1")])
    assert [(step.action, step.hosts) for step in result.plan.steps] == [
        (LEAVE_OUT, ("sid-neoverse-n1",))
    ]


def _point_releases(*values: tuple[str, str, int]) -> list[HostProfile]:
    """Hosts by name, kernel, and what that lets guests see of SMCCC_ARCH_WORKAROUND_3."""
    return [
        _each_cluster(
            name,
            host("bookworm-neoverse-n1").replace(kernel=kernel),
            vcpus=tuple(
                vcpu.replace(registers={**vcpu.registers, "SMCCC_ARCH_WORKAROUND_3": value})
                for vcpu in host("bookworm-neoverse-n1").clusters[0].vcpus
            ),
        )
        for name, kernel, value in values
    ]


def test_a_point_release_is_upgraded_to_the_newest_whoever_has_it() -> None:
    many = [(f"old{number}", "6.1.129", 1) for number in range(5)]
    result = baseline(_point_releases(*many, ("middle", "6.1.140", 0), ("new", "6.1.150", 2)))
    assert [(step.action, step.hosts, step.what) for step in result.plan.steps] == [
        (KERNEL, ("middle", *(name for name, _, _ in many)), "to 6.1.150")
    ]


def test_builds_of_a_vendor_are_point_releases() -> None:
    result = baseline(_point_releases(("a", "6.1.0-9-arm64", 2), ("b", "6.1.0-50-cloud-arm64", 1)))
    (step,) = result.plan.steps
    assert (step.action, step.hosts, step.what) == (KERNEL, ("a",), "to 6.1.0-50")


@pytest.mark.parametrize(
    "releases",
    [
        (("a", "6.1.129", 2), ("b", "6.1.129", 1)),
        (("a", "6.1.129", 2), ("b", "6.1.140", 1), ("c", "6.1.150", 2)),
        (("a", "6.1.150", 2), ("b", "6.1.140", 1), ("c", "6.1.129", 2)),
    ],
)
def test_what_the_same_kernels_give_otherwise_no_upgrade_levels(
    releases: tuple[tuple[str, str, int], ...],
) -> None:
    steps = baseline(_point_releases(*releases)).plan.steps
    assert [(step.action, step.hosts) for step in steps] == [(FIRMWARE, ("b",))]


def test_a_vendors_kernel_is_as_old_as_what_it_shows() -> None:
    """RHEL's 5.14 with the KVM of a newer Linux is not upgraded to Debian's 6.1."""
    vendors = host("trixie-neoverse-n1").replace(name="el9", kernel="5.14.0-503.11.1.el9_5")
    (step,) = baseline([host("bookworm-neoverse-n1"), vendors]).plan.steps
    assert (step.action, step.hosts) == (KERNEL, ("bookworm-neoverse-n1",))
    assert step.what == "to 5.14.0-503.11.1"


def test_a_pool_takes_less_where_a_member_takes_less() -> None:
    base = host("trixie-neoverse-n1")
    word = base.replace(name="word", overrides=("arm64.nompam",))
    found = common([base, word], "pool")
    assert found.profile is not None
    assert found.profile.overrides == ("arm64.nompam",)


def test_no_version_of_its_own_has_the_machines_of_another_distribution() -> None:
    one = host("trixie-neoverse-n1")
    assert one.qemu is not None
    theirs = one.qemu.replace(
        version="12.1.0", machines=("virt-rhel9.6.0",), aliases={"virt": "virt-rhel9.6.0"}
    )
    (step,) = baseline([one, one.replace(name="el", qemu=theirs)]).plan.steps
    assert (step.action, step.hosts) == (QEMU, (one.name,))
    assert step.what == "to 12.1.0, of the distribution whose QEMU has virt-rhel9.6.0"


def test_a_qemu_without_a_common_machine_is_upgraded() -> None:
    base = host("trixie-neoverse-n1")
    assert base.qemu is not None
    old = base.replace(
        name="old",
        qemu=base.qemu.replace(
            version="4.2.0", machines=("virt-0.1",), aliases={"virt": "virt-0.1"}
        ),
    )
    (step,) = baseline([base, old]).plan.steps
    assert (step.action, step.hosts, step.what) == (QEMU, ("old",), "to 10.0.13")


@pytest.mark.parametrize(
    ("names", "out", "why"),
    [
        (
            ("trixie-neoverse-n1", "n1-twin", "n1-25-mhz"),
            "n1-25-mhz",
            "timer frequency (CNTFRQ_EL0) is another: 25 MHz, theirs: 62.5 MHz; firmware sets it,"
            " and newer firmware may help, as both are linux,dummy-virt",
        ),
        (
            ("trixie-neoverse-n1", "n1-twin", "trixie-cortex-a76"),
            "trixie-cortex-a76",
            "its CPU is Cortex-A76",
        ),
        (
            ("trixie-neoverse-n1", "n1-twin", "hand-made-a15-3.10"),
            "a15",
            "its architecture is armv7l",
        ),
    ],
)
def test_what_nothing_levels_is_left_out(names: tuple[str, ...], out: str, why: str) -> None:
    result = baseline([_HOSTS.get(name) or host(name) for name in names])
    (step,) = result.plan.steps
    assert (step.action, step.hosts) == (LEAVE_OUT, (out,))
    assert why in step.why


def test_hosts_that_cannot_run_guests_are_left_out() -> None:
    useless = host("trixie-neoverse-n1").replace(
        name="useless", clusters=(), problems=(Problem("KVM", "/dev/kvm does not exist"),)
    )
    result = baseline([host("trixie-neoverse-n1"), useless])
    (step,) = result.plan.steps
    assert (step.hosts, step.why) == (("useless",), "KVM: /dev/kvm does not exist")
    alone = baseline([useless])
    assert (alone.pool, alone.profile) == (None, None)
    assert "No known change makes them compatible" in as_text(alone, explain=False)


# -- pools on their members ----------------------------------------------------------------------


def _resolved(formed: Pool, profile: HostProfile, source: bytes) -> bytes:
    def ask(target: Target) -> ProfileOffer:
        return ProfileOffer(target, profile, pool.counterpart(target.pinning, profile))

    return pool.resolver(formed, Policy(), profile.name, clusters_of(profile), ask).resolve(source)


@pytest.mark.parametrize("name", ["direct-kernel", "uefi"])
def test_every_member_makes_the_same_xml(name: str) -> None:
    names = ["trixie-max", "max-nosve", "max-48-bits", "max-2-counters"]
    formed = _formed(*names)
    results = {_resolved(formed, _HOSTS[member], template(name)) for member in names}
    assert len(results) == 1
    assert b"<kvmarm:origin host='pool'" in results.pop()


@pytest.mark.parametrize("member", ["trixie-neoverse-n1", "n1-twin", "n1-25-mhz"])
def test_a_members_kernel_says_what_its_profile_says(
    member: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scratch vCPU confirms: of a kernel that plays the profile."""
    formed, profile = _formed("trixie-neoverse-n1", "n1-twin"), _HOSTS[member]
    monkeypatch.setattr(
        "os.uname",
        lambda: os.uname_result(
            ("Linux", profile.name, profile.kernel, "#1", profile.architecture)
        ),
    )
    with System(FakeKernel.from_profile(profile)) as system:

        def ask(target: Target) -> KernelOffer:
            return KernelOffer(target, system, profile.qemu.machines if profile.qemu else ())

        def by_kernel() -> bytes:
            return pool.resolver(formed, Policy(), profile.name, clusters_of(profile), ask).resolve(
                template("uefi")
            )

        if member in formed.members:
            assert by_kernel() == _resolved(formed, profile, template("uefi"))
        else:
            with pytest.raises(
                KvmarmError, match=f"{member} does not fit into pool pool: CNTFRQ_EL0"
            ):
                by_kernel()


def test_what_the_pool_does_not_have_is_refused_by_name() -> None:
    formed = _formed("trixie-max", "max-nosve")
    with pytest.raises(KvmarmError, match="KVM in pool pool does not offer"):
        _resolved(formed, _HOSTS["trixie-max"], template("sve"))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("<cpu ", "<features><gic version='2'/></features><cpu ", "KVM in pool rack-7 offers 3"),
        ("<cpu ", "<features><pmu state='on'/></features><cpu ", "KVM in pool rack-7 does not"),
        ("<cpu ", "<features><pmu state='off'/></features><cpu ", "KVM in pool rack-7 has no PMU"),
        ("'aarch64'", "'armv7l'", "pool rack-7 cannot run 32-bit guests"),
        ("'virt'", "'virt-99.0'", "in pool rack-7 has no machine type"),
        ("'MiB'>512<", "'TiB'>512<", "KVM in pool rack-7 has addresses up to"),
        ("<vcpu>1<", "<vcpu>999<", r"512 on virt-10.0 \(pool rack-7\)"),
        ("<cpu mode='host-model'/>", "<cpu mode='host-model'>", "pool rack-7 has lengths"),
    ],
)
def test_a_pool_is_called_a_pool(old: str, new: str, says: str) -> None:
    """Not a host, which nobody would find."""
    name = "trixie-a64fx" if "lengths" in says else "trixie-neoverse-n1"
    here = host(name)
    if "PMU" in says or "does not" in says:
        bare = {n: v for n, v in here.capabilities.items() if n != "ARM_PMU_V3"}
        (cluster,) = here.clusters
        vcpus = tuple(vcpu for vcpu in cluster.vcpus if "pmu_v3" not in vcpu.features)
        assert here.qemu
        here = here.replace(
            capabilities=bare,
            clusters=(cluster.replace(vcpus=vcpus),),
            qemu=here.qemu.replace(version="11.1.0"),
        )
    formed = baseline([here.replace(name="alpha")], "rack-7").pool
    assert formed is not None
    source = template("direct-kernel").decode()
    if "lengths" in says:
        new += "<feature policy='require' name='sve1024'/></cpu>"
    assert old in source
    with pytest.raises(KvmarmError, match=says) as refused:
        _resolved(formed, here.replace(name="alpha"), source.replace(old, new).encode())
    assert "host rack-7" not in str(refused.value)


def test_nothing_that_a_resolver_says_calls_a_pool_a_host() -> None:
    """Neither does what nobody has reproduced: whoever is named there is named by its profile."""
    room = TESTS.parent / "kvmarm_plugin/resolve"
    for path in room.glob("*.py"):
        source = re.sub(r'"\s+f?"', "", path.read_text(encoding="utf-8"))
        assert "host {profile.name}" not in source, path
        assert "host {host}" not in source, path


def test_a_member_that_has_drifted_says_so() -> None:
    """In either direction: it no longer takes the pool's guests, or the pool would not take those
    started there.
    """
    formed = baseline(
        [
            _without(host("trixie-max"), "alpha", "arm64.nobti"),
            host("trixie-max-nobti").replace(name="beta"),
        ]
    ).pool
    assert formed is not None
    rebooted = host("trixie-max").replace(name="alpha")
    with pytest.raises(KvmarmError) as refused:
        _resolved(formed, rebooted, template("direct-kernel"))
    text = one_line(refused.value)
    assert "alpha has drifted out of pool pool: ID_AA64PFR1_EL1.BT" in text
    assert "a guest started on it could not move to the rest of pool pool:" in text
    # No guest comes from anywhere, and the pool is no host to boot.
    assert "remedy" not in text
    assert text.endswith(
        "(hint: probe all members and make the baseline anew: kvmarm baseline PROFILE… -o FILE)"
    )
    assert pool.check_member(formed, rebooted)
    with pytest.raises(KvmarmError, match="sid-max does not fit into pool pool"):
        _resolved(formed, host("sid-max"), template("direct-kernel"))


def test_a_guest_whose_addresses_would_differ_is_refused() -> None:
    """600 GiB: where 40 bits are all there are, no room is left for the PCIe window behind them."""
    base = host("trixie-max")
    small, large = base.replace(name="small", ipa_bits=40), base.replace(name="large")
    formed = baseline([small, large]).pool
    assert formed is not None
    domain = template("direct-kernel").replace(
        b"<memory unit='MiB'>512<", b"<memory unit='GiB'>600<"
    )
    assert _resolved(formed, small, domain)
    with pytest.raises(
        KvmarmError, match="would have 41-bit addresses on large, and 40-bit ones in pool pool"
    ):
        _resolved(formed, large, domain)


def test_hosts_of_fewer_addresses_than_the_board_wants_form_no_pool_with_others() -> None:
    base = host("trixie-max")
    found = find_obstacles([base, base.replace(name="small", ipa_bits=36)])
    assert {(obstacle.source, obstacle.destination) for obstacle in found} == set(
        itertools.permutations(["trixie-max", "small"])
    )
    assert {obstacle.finding.kind for obstacle in found} == {
        "addresses-too-few",
        "addresses-differ",
    }


def test_a_member_with_an_older_qemu_than_promised_has_drifted() -> None:
    formed = _formed("trixie-neoverse-n1", "n1-twin")
    (finding,) = pool.check_member(formed, _HOSTS["n1-old-qemu"])
    assert finding.kind == "machine-unknown"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a pool"),
        ("- a\n", "is not a pool"),
        ("schema: [\n", "is not YAML, line 2"),
        (
            "schema: urn:kvmarm-plugin:pool:2\n",
            "has schema urn:kvmarm-plugin:pool:2; this kvmarm knows urn:kvmarm-plugin:pool:1",
        ),
        (
            "schema: urn:kvmarm-plugin:pool:1\nname: a\nmembers: {}\n",
            "is incomplete: it has no 'baseline'",
        ),
        ("schema: urn:kvmarm-plugin:pool:1\nname: 3\nmembers: {}\nbaseline: {}\n", "is broken"),
        (
            "schema: urn:kvmarm-plugin:pool:1\nname: a\nmembers: {}\nbaseline: {}\n",
            "the baseline in pool is not a host profile",
        ),
        ("schema: 2026-99-99\n", "is not YAML"),
        ("schema: urn:kvmarm-plugin:pool:\u2028\n", "is not YAML, line 1"),
        (
            'schema: "urn:kvmarm-plugin:pool:\\e[2J"\n',
            r"has schema urn:kvmarm-plugin:pool:\x1b[2J; this kvmarm",
        ),
        ("&a schema: urn:kvmarm-plugin:pool:1\n", "is not YAML, line 1: anchors and aliases"),
        (
            "schema: urn:kvmarm-plugin:pool:1\nschema: urn:kvmarm-plugin:pool:1\n",
            "is not YAML, line 2: schema is there twice",
        ),
        (
            "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
            "is not YAML, line 1: anchors and aliases",
        ),
        ("a: !!int ''\n", "is not YAML, line 1: tags"),
        ("a: " + "1:59" + ":59" * 10_000, "is not YAML, line 1: 1:59"),
        ("[" * 100_000, "is not YAML, line 1: it is more than 16 lists and mappings deep"),
        ("- " * 100_000, "is not YAML, line 1: it is more than 16 lists and mappings deep"),
        ("#" * (pool.SIZE_LIMIT + 1), "is larger than 2048 KiB"),
    ],
    ids=lambda text: text[:20],
)
@pytest.mark.parametrize("parser", ["libyaml", "Python"])
def test_what_is_no_pool(
    text: str, message: str, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parser == "Python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    with pytest.raises(pool.PoolError) as error:
        pool.loads(text)
    assert message in one_line(error.value)


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("name: pool\nmembers", 'name: "a\\nb"\nmembers', r"name cannot be 'a\nb'"),
        ("name: pool\nmembers", "name: [a]\nmembers", "name cannot be a list"),
        ("name: pool\nmembers", "name: 5\nmembers", "name cannot be 5"),
        ("{n1-twin: 'sha256:", '{"\\e[2J": \'sha256:', r"members.\x1b[2J cannot be '\x1b[2J'"),
        ("{n1-twin: 'sha256:", "{n1-twin: 'sha255:", "members.n1-twin cannot be 'sha255:"),
        ("{n1-twin: 'sha256:", "{5: 'sha256:", "members.5 cannot be 5"),
        ("name: pool\nmembers", "name: pool\nmore: 1\nmembers", "more is none of its members"),
        ("  ipa_bits: 48", "  ipa_bits: 48.0", "is not YAML, line"),
        (
            "  ipa_bits: 48",
            "  ipa_bits: '48'",
            "the baseline in pool is broken: ipa_bits cannot be '48'",
        ),
        ("  kernel: ", "  kernel: x", "the baseline in pool is broken: kernel cannot be 'x"),
    ],
)
def test_what_is_broken_in_a_pool_is_named(old: str, new: str, why: str) -> None:
    text = pool.dumps(_formed("trixie-neoverse-n1", "n1-twin"))
    assert old in text
    with pytest.raises(pool.PoolError) as error:
        pool.loads(text.replace(old, new, 1))
    assert why in one_line(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", [" ", "a\nb", "\x1b[2J", "x" * 300, "\u202e"])
def test_a_pool_that_could_not_be_read_is_not_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str]
) -> None:
    assert (
        cli.main(["baseline", "--name", name, "-o", f"{tmp_path}/pool.yaml", files["trixie-max"]])
        == 1
    )
    assert "no such pool can be written: name cannot be" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_clusters_that_only_revidr_tells_apart_stay_two() -> None:
    base = host("hand-made-rk3588")
    one, other = base.clusters[0], base.clusters[0].replace(cpus="4-7", revidr=7)
    board = base.replace(name="board", clusters=(one, other))
    for hosts in ([board], [board, board.replace(name="twin", clusters=(other, one))]):
        formed = baseline(hosts).pool
        assert formed is not None
        assert [(cluster.cpus, cluster.revidr) for cluster in formed.baseline.clusters] == [
            ("0-3", 0),
            ("4-7", 7),
        ]
        assert pool.loads(pool.dumps(formed)) == formed


def test_a_board_whose_clusters_only_revidr_tells_apart_is_a_member_of_its_pool() -> None:
    base = host("hand-made-rk3588")
    one = base.clusters[0]
    vcpus = tuple(vcpu.replace(registers={**vcpu.registers, "REVIDR_EL1": 7}) for vcpu in one.vcpus)
    other = one.replace(cpus="4-7", revidr=7, vcpus=vcpus)
    board = base.replace(clusters=(one, other))
    formed = baseline([board]).pool
    assert formed is not None
    assert pool.check_member(formed, board) == []
    pinned = template("big-little").replace(b"<vcpu>", b"<vcpu cpuset='4-7'>")
    assert _resolved(formed, board, pinned)


@pytest.mark.parametrize(
    "change",
    [
        {"clusters": []},
        {"qemu": None},
        {"gic_versions": []},
        {"ipa_bits": 0},
        {"ipa_bits": 32},
        {"capabilities": {}},
        {"cpu_features": []},
        {"libvirt": None},
        {"kernel": "0.0"},
        {"architecture": "x86_64", "clusters": []},
    ],
    ids=str,
)
def test_a_pool_that_loads_crashes_nothing(change: dict[str, object]) -> None:
    document = yaml.safe_load(pool.dumps(_formed("trixie-max", "max-nosve")))
    document["baseline"].update(change)
    formed = pool.loads(yaml.safe_dump(document))
    for member in (host("trixie-max"), host("hand-made-rk3399"), host("hand-made-a15-3.10")):
        assert all(map(line, pool.check_member(formed, member)))
        with contextlib.suppress(KvmarmError):
            assert _resolved(formed, member, template("uefi"))


# -- the commands --------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {
        name: str(HOSTS[name])
        for name in ("trixie-max", "trixie-max-nobti", "trixie-max-nosve-nopauth")
    }


def test_the_command_writes_a_pool_and_says_what_it_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str]
) -> None:
    path = f"{tmp_path}/pool.yaml"
    assert (
        cli.main(
            [
                "baseline",
                "--name",
                "rack",
                "-o",
                path,
                files["trixie-max"],
                files["trixie-max-nosve-nopauth"],
            ]
        )
        == 0
    )
    assert "rack: 2 hosts, guests move freely between them" in capsys.readouterr().out
    assert cli.main(["check", path, "--host", files["trixie-max"]]) == 0
    assert cli.main(["check", path, "--host", files["trixie-max-nobti"], "--json"]) == 3
    assert (
        cli.main(
            [
                "resolve",
                "--pool",
                path,
                "--host",
                files["trixie-max"],
                "xml-templates/direct-kernel.xml",
            ]
        )
        == 0
    )
    captured = capsys.readouterr()
    assert "<kvmarm:origin host='rack'" in captured.out
    assert (
        cli.main(
            [
                "resolve",
                "--pool",
                path,
                "--host",
                files["trixie-max-nobti"],
                "xml-templates/direct-kernel.xml",
            ]
        )
        == 1
    )
    assert "does not fit into pool rack" in capsys.readouterr().err


def test_a_host_without_kvm_is_no_member(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str]
) -> None:
    path, without = tmp_path / "pool.yaml", tmp_path / "without.json"
    assert cli.main(["baseline", "-o", str(path), files["trixie-max"]]) == 0
    useless = host("trixie-max").replace(
        clusters=(), problems=(Problem("KVM", "/dev/kvm does not exist"),)
    )
    without.write_text(dumps(useless))
    assert cli.main(["check", str(path), "--host", str(without)]) == 1
    assert (
        "host trixie-max cannot run KVM guests: KVM: /dev/kvm does not exist"
        in capsys.readouterr().err
    )


def test_the_command_writes_no_pool_that_a_member_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str]
) -> None:
    path = f"{tmp_path}/pool.yaml"
    for extra in ([], ["--explain"], ["--json"]):
        assert (
            cli.main(
                ["baseline", "-o", path, *extra, files["trixie-max"], files["trixie-max-nobti"]]
            )
            == 3
        )
        assert "arm64.nobti" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_json_says_what_the_text_says() -> None:
    for names in (["trixie-max", "trixie-max-nobti", "sid-a64fx"], ["trixie-max", "max-nosve"]):
        result = _of(names)
        report = json.loads(json.dumps(as_json(result)))
        text = as_text(result, explain=True)
        assert report["possible"] is (result.pool is not None)
        assert report["hosts"] == sorted(names)
        for step in report["steps"]:
            assert step["why"] in text
            assert step["what"] in text
        for reason in report["missing"].values():
            assert reason in text
        for what, value in report["baseline"].items():
            assert f"{what:<10} {value}" in text
