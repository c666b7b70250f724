# SPDX-License-Identifier: LGPL-2.1-or-later
"""What became of guests on real silicon, as far as others have published it, and what `compare` and
`check` say of the same hosts.

Firecracker restores a snapshot by KVM_SET_ONE_REG of every register that its vCPU listed, and fails
on any error, as QEMU does with the state of a migration. Its tests restore snapshots of each of
these hosts on the others (buildkite pipeline_cross.py; pull request 5856 for Linux 6.18). Its
guests have no SVE, no PAuth and no PMU. The profiles are those of host/known/, of its fingerprints
of these hosts; QEMU and what it decides are the same everywhere here.
"""

from __future__ import annotations

import json
from functools import cache

import pytest

from kvmarm_plugin import cli
from kvmarm_plugin.fleet.baseline import baseline
from kvmarm_plugin.fleet.compare import Comparison, compare
from kvmarm_plugin.fleet.compare_view import as_json
from kvmarm_plugin.fleet.plan import KERNEL, LEAVE_OUT
from kvmarm_plugin.host import known
from kvmarm_plugin.judge.by_profile import check
from kvmarm_plugin.judge.finding import HARMLESS, REFUSES, worst
from kvmarm_plugin.judge.wording import texts
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import Wish
from tests.corpus import host

_CPUS = ("graviton2", "graviton3", "graviton4")
_KERNELS = ("5.10", "6.1", "6.18")


def _with_qemu(name: str) -> HostProfile:
    """A known CPU with a QEMU, and what the dump does not tell."""
    other = host("trixie-neoverse-n1")
    return known.read(name).replace(
        qemu=other.qemu,
        libvirt=other.libvirt,
        cpu_features=other.cpu_features,
        gic_versions=(3,),
        ipa_bits=48,
        unknown=(),
    )


@cache
def _everyone() -> Comparison:
    return compare(
        [_with_qemu(f"{cpu}@{kernel}") for cpu in _CPUS for kernel in _KERNELS], Policy()
    )


def _possible(source: str, destination: str) -> bool:
    comparison = _everyone()
    places = {kind.host.name: place for place, kind in enumerate(comparison.kinds)}
    return comparison.pair(places[source], places[destination]).possible


@pytest.mark.parametrize("cpu", ["graviton2", "graviton3"])
def test_6_1_to_6_18_works(cpu: str) -> None:
    assert _possible(f"{cpu}@6.1", f"{cpu}@6.18")


@pytest.mark.parametrize("cpu", _CPUS)
def test_6_18_to_6_1_does_not(cpu: str) -> None:
    assert not _possible(f"{cpu}@6.18", f"{cpu}@6.1")


@pytest.mark.parametrize("cpu", ["graviton2", "graviton3"])
def test_5_10_to_6_1_does_not(cpu: str) -> None:
    assert not _possible(f"{cpu}@5.10", f"{cpu}@6.1")


def test_a_guest_without_a_pmu_is_not_told_to_turn_it_off() -> None:
    """Linux 5.10 shows PMUVer 4 to a guest without one."""
    target = Resolver(_with_qemu("graviton2@5.10"), Policy()).target(Wish("aarch64"))
    said = [texts(finding) for finding in check(target, _with_qemu("graviton2@6.1"))]
    (pmu,) = [each for each in said if each["subject"] == "ID_AA64DFR0_EL1.PMUVer"]
    assert "turn pmu off" not in pmu["remedy"]


def test_the_command_answers_as_far_as_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    """Of known CPUs as they are, without QEMU: a yes is one as far as known, a no is a no."""
    names = [f"{cpu}@{kernel}" for cpu in ("graviton2", "graviton3") for kernel in _KERNELS]
    cli.main(["compare", *names, "--json"])
    report = json.loads(capsys.readouterr().out)
    name_of = {kind["kind"]: kind["hosts"][0] for kind in report["kinds"]}
    answers = {
        (name_of[pair["from"]], name_of[pair["to"]]): pair["possible"] for pair in report["pairs"]
    }
    assert {pair for pair, answer in answers.items() if pair[0] != pair[1] and answer is None} == {
        (f"{cpu}@6.1", f"{cpu}@6.18") for cpu in ("graviton2", "graviton3")
    }
    assert True not in answers.values()


@pytest.mark.parametrize("kernel", _KERNELS)
@pytest.mark.parametrize(
    ("source", "destination"), [("graviton2", "graviton3"), ("graviton3", "graviton2")]
)
def test_graviton2_and_graviton3_do_not(source: str, destination: str, kernel: str) -> None:
    assert not _possible(f"{source}@{kernel}", f"{destination}@{kernel}")


def test_what_is_hidden_from_a_guest_is_said() -> None:
    target = Resolver(_with_qemu("graviton3@6.1"), Policy()).target(Wish("aarch64"))
    findings = check(target, _with_qemu("graviton3@6.18"))
    hidden = [texts(finding)["subject"] for finding in findings if finding.kind == "field-hidden"]
    assert hidden == ["ID_AA64PFR0_EL1.MPAM", "ID_AA64MMFR2_EL1.NV"]
    assert worst(findings) == HARMLESS


def test_a_command_line_takes_what_the_hardware_has() -> None:
    target = Resolver(_with_qemu("graviton3@6.1"), Policy()).target(Wish("aarch64"))
    there = _with_qemu("graviton3@6.18").replace(overrides=("arm64.nompam",))
    (refused,) = [each for each in check(target, there) if each.severity == REFUSES]
    assert texts(refused)["subject"] == "ID_AA64PFR0_EL1.MPAM"


# -- point releases change the CPU ----------------------------------------------------------------

_CHANGES = [
    ("graviton4@6.1.129", "graviton4@6.1.140", "SMCCC_ARCH_WORKAROUND_3", ("0x2", "0x1")),
    ("graviton4@6.1.140", "graviton4@6.1.150", "ID_AA64MMFR1_EL1.ECBHB", ("0x0", "0x1")),
    ("graviton3@6.1.59", "graviton3@6.1.84", "ID_AA64MMFR2_EL1.CCIDX", ("0x1", "0x0")),
]


@pytest.mark.parametrize(("older", "newer", "subject", "values"), _CHANGES)
def test_a_point_release_that_refuses_the_older_ones_guests(
    older: str, newer: str, subject: str, values: tuple[str, str]
) -> None:
    target = Resolver(_with_qemu(older), Policy()).target(Wish("aarch64"))
    refused = [
        texts(finding)
        for finding in check(target, _with_qemu(newer))
        if finding.severity == REFUSES
    ]
    assert (subject, *values) in [
        (said["subject"], said["recorded"], said["local"]) for said in refused
    ]


@pytest.mark.parametrize(("older", "newer", "_subject", "_values"), _CHANGES)
def test_descriptions_name_the_point_release(
    older: str, newer: str, _subject: str, _values: object
) -> None:
    said = as_json(compare([_with_qemu(older), _with_qemu(newer)], Policy()))["kinds"]
    described = {kind["hosts"][0]: kind["description"] for kind in said}
    for name in (older, newer):
        assert f"Linux {name.partition('@')[2]}," in described[name]


@pytest.mark.parametrize("cpu", ["graviton2", "graviton3", "graviton4"])
def test_the_plan_is_the_newest_point_release(cpu: str) -> None:
    """Rather than leaving hosts out, however few have it."""
    names = [name for name in known.names() if name.startswith(f"{cpu}@6.1") and "6.18" not in name]
    assert len(names) > 1
    hosts = [_with_qemu(name) for name in names]
    old = [each.replace(name=f"{each.name} {twin}") for each in hosts[1:] for twin in range(3)]
    steps = baseline([*hosts, *old]).plan.steps
    assert [(step.action, step.what) for step in steps] == [(KERNEL, "to 6.1.172")]


def test_upgrade_to_6_1_150() -> None:
    names = ("graviton4@6.1.129", "graviton4@6.1.140", "graviton4@6.1.150")
    steps = baseline([_with_qemu(name) for name in names]).plan.steps
    assert [(step.action, step.hosts, step.what) for step in steps] == [
        (KERNEL, names[:2], "to 6.1.150")
    ]


def test_no_kernel_makes_a_graviton2_of_a_graviton3() -> None:
    hosts = [_with_qemu(name) for name in ("graviton2@6.1", "graviton3@6.1")]
    assert [step.action for step in baseline(hosts).plan.steps] == [LEAVE_OUT]
