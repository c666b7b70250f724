# SPDX-License-Identifier: LGPL-2.1-or-later
"""Verdicts from profiles: laws over the whole corpus, and what real hosts did.

The lab holds the same verdicts against kernels (tests/lab/test_rehearse_law.py) and migrations
(tests/lab/test_truth_table.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmarm_plugin import cli
from kvmarm_plugin.judge.by_profile import ProfileOffer, check
from kvmarm_plugin.judge.finding import HARMLESS, REFUSES, WRONG, worst
from kvmarm_plugin.judge.verdict import judge
from kvmarm_plugin.judge.wording import in_short, line, texts
from kvmarm_plugin.model import profile_json
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.model.target import Target
from kvmarm_plugin.registers.rules import KernelFacts, accepts, kernel_version, safe_value
from kvmarm_plugin.registers.table import Field, fields_of
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import Wish
from tests.corpus import HOSTS, host, template

# Of a finding in JSON.
_MEMBERS = {
    *("kind", "subject", "meaning", "recorded", "local", "rule", "severity", "remedy"),
    "stops_start",
}


def _target(name: str, machine: str = "", policy: Policy | None = None) -> Target:
    """What an open guest gets on a host of the corpus."""
    here = host(name)
    architecture = "aarch64" if here.kvm_architecture == "arm64" else "armv7l"
    return Resolver(here, policy or Policy()).target(Wish(architecture, machine))


# -- laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_takes_its_own_guests(name: str) -> None:
    assert check(_target(name), host(name)) == []


@pytest.mark.parametrize("source", HOSTS)
def test_every_pair_has_a_verdict_that_explains(source: str) -> None:
    target = _target(source)
    for destination in HOSTS:
        findings = check(target, host(destination))
        assert [finding.severity for finding in findings] == sorted(
            (finding.severity for finding in findings), key=(REFUSES, WRONG, HARMLESS).index
        )
        for finding in findings:
            assert "\n" not in line(finding)
            said = texts(finding)
            assert said["rule"]
            assert bool(said["remedy"]) is (finding.severity != HARMLESS) or said["subject"] in (
                "architecture",
                "vCPU",
            )


# -- what real hosts did (docs/truth-table.md) ---------------------------------------------------

_PINNED_OFF = Policy(sve=False, pauth=False)
_REALITY = [
    ("trixie-cortex-a57", "trixie-cortex-a72", Policy(prefer_named=False), "", REFUSES),
    ("trixie-cortex-a57", "trixie-cortex-a57", Policy(), "", ""),
    ("trixie-max-nosve-nopauth", "trixie-max", Policy(), "", ""),
    ("trixie-max", "trixie-max-nosve-nopauth", Policy(), "", REFUSES),
    ("trixie-max", "trixie-max-nosve-nopauth", _PINNED_OFF, "", ""),
    ("trixie-max-nobti", "trixie-max", Policy(), "", HARMLESS),
    ("trixie-max", "trixie-max-nobti", Policy(), "", REFUSES),
    ("trixie-neoverse-n1", "sid-neoverse-n1", Policy(), "", HARMLESS),
    ("sid-neoverse-n1", "trixie-neoverse-n1", Policy(), "virt", REFUSES),
    ("sid-neoverse-n1", "trixie-neoverse-n1", Policy(), "virt-10.0", REFUSES),
    ("bookworm-neoverse-n1", "trixie-neoverse-n1", Policy(), "virt-7.2", HARMLESS),
]


@pytest.mark.parametrize(("source", "destination", "policy", "machine", "verdict"), _REALITY)
def test_what_real_hosts_did(
    source: str, destination: str, policy: Policy, machine: str, verdict: str
) -> None:
    assert worst(check(_target(source, machine, policy), host(destination))) == verdict


# -- other hosts ---------------------------------------------------------------------------------


def _with_seen(here: HostProfile, **seen: int) -> HostProfile:
    (cluster,) = here.clusters
    return here.replace(clusters=(cluster.replace(seen={**cluster.seen, **seen}),))


def _n1() -> HostProfile:
    return host("trixie-neoverse-n1")


def test_more_counters_than_recorded_are_fine() -> None:
    assert worst(check(_target("trixie-neoverse-n1"), _with_seen(_n1(), PMCR_EL0=31 << 11))) in (
        "",
        HARMLESS,
    )


def test_a_host_without_kvm_takes_nothing() -> None:
    (finding,) = check(
        _target("trixie-neoverse-n1"), _n1().replace(clusters=(), gic_versions=(), ipa_bits=0)
    )
    assert (finding.kind, finding.severity) == ("no-kvm", REFUSES)


def test_a_host_without_qemu_takes_nothing() -> None:
    (finding,) = check(_target("trixie-neoverse-n1"), _n1().replace(qemu=None))
    assert (finding.kind, finding.severity) == ("no-qemu", REFUSES)
    assert texts(finding)["rule"] == (
        "QEMU is missing on trixie-neoverse-n1, or could not be asked when it was probed"
    )


def test_a_guest_may_live_on_one_cluster_of_several() -> None:
    rk3399 = host("hand-made-rk3399")
    for name in ("biggest", "smallest"):
        target = Resolver(rk3399, Policy(cluster=name)).target(Wish("aarch64"))
        assert check(target, rk3399) == []


# -- rules ---------------------------------------------------------------------------------------

_KERNELS = [
    KernelFacts((6, 1), None),
    KernelFacts((6, 12), host("trixie-neoverse-n1").clusters[0].writable),
]
_FIELDS = [
    field
    for name in ("ID_AA64PFR0_EL1", "ID_AA64MMFR0_EL1", "CTR_EL0", "ID_AA64DFR0_EL1")
    for field in fields_of(name)
]


@given(st.sampled_from(_FIELDS), st.data())
def test_safe_values(field: Field, data: st.DataObject) -> None:
    """The safe value of two is one of them or the field's own, whichever is asked first; of two
    equal ones it is that.
    """
    values = st.integers(0, (1 << field.msb - field.lsb + 1) - 1)
    ours, theirs = data.draw(values), data.draw(values)
    if field.policy == "-":
        return
    assert safe_value(field, ours, theirs) == safe_value(field, theirs, ours)
    if field.policy in ("LOWER_SAFE", "HIGHER_SAFE"):
        assert safe_value(field, ours, theirs) in (ours, theirs)
        assert safe_value(field, ours, ours) == ours


@given(
    st.sampled_from(sorted(_n1().clusters[0].vcpus[0].registers)),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from(_KERNELS),
)
def test_a_kernel_takes_its_own_value_and_old_kernels_little_else(
    name: str, value: int, kernel: KernelFacts
) -> None:
    assert accepts(name, value, value, kernel)
    limit = _n1().clusters[0].vcpus[0].registers[name]
    if kernel.writable is None and name.startswith("ID_AA64ISAR") and value != limit:
        assert not accepts(name, value, limit, kernel)


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.12.117+deb13-cloud-arm64", (6, 12)),
        ("5.14.0-503.el9.aarch64", (5, 14)),
        ("3.10.0", (3, 10)),
        ("odd", (0, 0)),
        ("6", (0, 0)),
        ("6.²", (0, 0)),
        ("6." + "1" * 5000, (0, 0)),
        ("", (0, 0)),
        ("٦.١٢", (0, 0)),
    ],
)
def test_kernel_versions(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release) == version


# -- the commands --------------------------------------------------------------------------------


@pytest.fixture
def resolved(tmp_path: Path) -> Path:
    """A guest of trixie-neoverse-n1 in a file."""
    path = tmp_path / "guest.xml"
    path.write_bytes(Resolver(_n1(), Policy()).resolve(template("direct-kernel")))
    return path


def _run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    status = cli.main([str(argument) for argument in arguments])
    return status, capsys.readouterr().out


def test_check_says_yes_and_no(resolved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same, older = HOSTS["trixie-neoverse-n1"], HOSTS["bookworm-neoverse-n1"]
    assert _run(capsys, "check", resolved, "--host", same) == (
        0,
        "direct-kernel on trixie-neoverse-n1: yes, as recorded\n"
        "Checked: CPU, machine type, GIC and timer. Not checked: devices and disks.\n",
    )
    status, out = _run(capsys, "check", resolved, "--host", same, "--host", older)
    assert status == 3
    assert "direct-kernel on bookworm-neoverse-n1: no\n" in out
    status, out = _run(capsys, "check", resolved, "--host", older, "--json")
    report: dict[str, Any] = json.loads(out)
    assert (status, report["domain"], report["hosts"]["bookworm-neoverse-n1"]["verdict"]) == (
        3,
        "direct-kernel",
        REFUSES,
    )
    assert set(report["hosts"]["bookworm-neoverse-n1"]["findings"][0]) == _MEMBERS


def test_what_is_resolved_stays(resolved: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert cli.main(["resolve", str(resolved), "--host", str(HOSTS["sid-neoverse-n1"])]) == 0
    assert capsysbinary.readouterr().out == resolved.read_bytes()


def test_an_offer_is_of_the_model_that_was_recorded() -> None:
    a57 = _target("trixie-cortex-a57")
    assert a57.model == "cortex-a57"
    offer = ProfileOffer(a57, host("trixie-cortex-a57"), host("trixie-cortex-a57").clusters[0])
    assert offer.registers == a57.registers
    assert judge(a57, offer) == []
    assert (
        profile_json.loads(HOSTS["trixie-cortex-a57"].read_text()).clusters[0].models["cortex-a57"]
        == a57.number
    )


@pytest.mark.parametrize(
    ("source", "destination", "kind"),
    [
        ("trixie-cortex-a57", "trixie-neoverse-n1", "model-unknown"),
        ("trixie-max", "trixie-neoverse-n1", "vcpu-unknown"),
    ],
)
def test_another_cpu_is_found_beside_a_problem(source: str, destination: str, kind: str) -> None:
    """Nothing helps then, whatever helps against the problem."""
    found = check(_target(source), host(destination))
    kinds = [finding.kind for finding in found]
    assert kind in kinds
    assert "field-refused-identity" in kinds
    assert any(finding.is_hopeless for finding in found)
    started = check(_target(source), host(destination), boots=True)
    assert "field-refused-identity" not in [finding.kind for finding in started]


def test_the_same_cpu_has_its_problem_only() -> None:
    here = host("trixie-cortex-a57")
    (cluster,) = here.clusters
    (finding,) = check(
        _target("trixie-cortex-a57"), here.replace(clusters=(cluster.replace(models={}),))
    )
    assert finding.kind == "model-unknown"


def test_where_nothing_helps_no_other_remedy_is_said() -> None:
    found = check(_target("trixie-cortex-a57"), host("trixie-neoverse-n1"))
    for limit in (1, 4):
        said = "\n".join(in_short(found, limit))
        assert "remedy: none: " in said
        assert "prefer: host" not in said
        assert said.count("remedy: ") == said.count("remedy: none: ")
    assert "prefer: host" in "\n".join(in_short(found[:1]))
