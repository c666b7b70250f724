# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy: what its YAML says, and that every setting changes the guest in the way it should."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvmarm_plugin import policy
from kvmarm_plugin.domain import parse
from kvmarm_plugin.policy import Policy, PolicyError
from kvmarm_plugin.resolve import Resolver, read_wish
from kvmarm_plugin.target import Target
from tests.corpus import host, one_line, template

# -- YAML --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Policy()),
        ("# nothing\n---\n", Policy()),
        ("{}", Policy()),
        ("prefer: named", Policy(prefer_named=True)),
        ("prefer: host", Policy(prefer_named=False)),
        ("pmu: on", Policy(pmu=True)),
        ("pmu: off", Policy(pmu=False)),
        ("pmu: auto", Policy()),
        ("sve: on", Policy(sve=True)),
        ("sve: no", Policy(sve=False)),
        ("sve: auto", Policy()),
        ("pauth: true", Policy(pauth=True)),
        ("pauth: off", Policy(pauth=False)),
        ("pauth: auto", Policy()),
        ("sve-max-length: 128", Policy(sve_max_length=128)),
        ("sve-max-length: 2048", Policy(sve_max_length=2048)),
        ("cluster: biggest", Policy()),
        ("cluster: smallest", Policy(cluster="smallest")),
        ("cluster: all", Policy(cluster="all")),
        ("cluster: 0x410fd034", Policy(cluster=0x410FD034)),
        ("on-migrate: warn\non-prepare: refuse\non-restore: warn", Policy()),
        (
            "prefer: host\npmu: off\nsve: on\nsve-max-length: 256\n",
            Policy(prefer_named=False, pmu=False, sve=True, sve_max_length=256),
        ),
    ],
)
def test_yaml(text: str, expected: Policy) -> None:
    assert policy.loads(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("pmu: off\nsve: [1, 2}\n", "is not YAML, line 2: "),
        ("pmu: [", "is not YAML, line "),
        ("a: b: c", "is not YAML, line 1"),
        ("pmu: on\n\tsve: off", "is not YAML, line 2"),
        ("!!python/object:os.system {}", "is not YAML, line 1"),
        ("? [a]\n: b", "is not YAML"),
        ("\0", "is not YAML"),
        ("pmu", "is not a list of settings"),
        ("- pmu: on", "is not a list of settings"),
        ("5", "is not a list of settings"),
        ("pnu: off", "unknown setting 'pnu'"),
        ("1: 2", "unknown setting 1"),
        ("prefer: both", "prefer cannot be 'both'"),
        ("prefer: true", "prefer cannot be True"),
        ("prefer: [named]", "prefer cannot be a list"),
        ("pmu: maybe", "pmu cannot be 'maybe'"),
        ("pmu: 1", "pmu cannot be 1"),
        ("sve: {}", "sve cannot be a dict"),
        ("pauth:", "pauth cannot be None"),
        ("sve-max-length: 0", "sve-max-length cannot be 0"),
        ("sve-max-length: 100", "sve-max-length cannot be 100"),
        ("sve-max-length: 2176", "sve-max-length cannot be 2176"),
        ("sve-max-length: true", "sve-max-length cannot be True"),
        ("sve-max-length: '256'", "sve-max-length cannot be '256'"),
        ("cluster: middle", "cluster cannot be 'middle'"),
        ("cluster: 0", "cluster cannot be 0"),
        ("cluster: 0x100000000", "cluster cannot be 4294967296"),
        ("cluster: []", "cluster cannot be a list"),
        ("cluster: true", "cluster cannot be True"),
        ("pmu: 2026-99-99", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("on-migrate: maybe", "on-migrate cannot be 'maybe'"),
        ("on-reconnect: warn", "unknown setting 'on-reconnect'"),
    ],
)
def test_refusals_name_the_file_and_the_setting(text: str, why: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy.loads(text, "some.yaml")
    line = one_line(caught.value)
    assert line.startswith("some.yaml")
    assert why in line
    assert caught.value.hint


# -- what the hook reads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "refusing"),
    [
        ("", {"prepare", "migrate", "restore"}),
        ("pmu: off\non-migrate: warn\n", {"prepare", "restore"}),
        ("on-migrate: warn # for now\non-prepare:   warn\non-restore: refuse", {"restore"}),
        ("# on-migrate: warn", {"prepare", "migrate", "restore"}),
        ("on-migrate: warning", {"prepare", "migrate", "restore"}),
        ("\xff", {"prepare", "migrate", "restore"}),
    ],
)
def test_the_hook_refuses_unless_it_is_told_to_warn(tmp_path: Path, text: str, refusing: set[str]) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(text.encode("latin-1"))
    assert {name for name in ("prepare", "migrate", "restore") if policy.refuses(name, str(path))} == refusing


def test_the_hook_refuses_without_a_policy(tmp_path: Path) -> None:
    assert policy.refuses("migrate", str(tmp_path / "none.yaml"))


# -- what a setting does -----------------------------------------------------------------------------------------------

_CPU = "<cpu mode='host-model'/>"


def wish(cpu: str = _CPU, features: str = "", arch: str = "aarch64") -> bytes:
    return f"<domain type='kvm'><os><type arch='{arch}'>hvm</type></os><features>{features}</features>{cpu}</domain>".encode()


def chosen(where: str, settings: str = "", **what: str) -> Target:
    """The target that a domain gets on a host under a policy."""
    here = host(where)
    return Resolver(here, policy.loads(settings)).target(read_wish(parse(wish(**what)), here.architecture))


def resolved(where: str, settings: str = "", **what: str) -> str:
    return Resolver(host(where), policy.loads(settings)).resolve(wish(**what)).decode()


def feature(name: str, required: str = "require") -> str:
    return f"<cpu mode='host-model'><feature policy='{required}' name='{name}'/></cpu>"


def test_prefer_named_takes_the_model_that_kvm_takes() -> None:
    target = chosen("trixie-cortex-a57", "prefer: named")
    assert target.model == "cortex-a57"
    assert "<cpu mode='custom' match='exact' check='none'><model fallback='forbid'>cortex-a57</model></cpu>" in resolved(
        "trixie-cortex-a57", "prefer: named"
    )
    assert chosen("trixie-cortex-a57") == target


def test_prefer_host_writes_every_knob() -> None:
    target = chosen("trixie-cortex-a57", "prefer: host")
    assert target.model == "host"
    knobs = "".join(f"<feature policy='disable' name='{name}'/>" for name in ("sve", "pauth"))
    assert f"<cpu mode='host-passthrough' check='none'>{knobs}</cpu>" in resolved("trixie-cortex-a57", "prefer: host")


def test_named_models_have_the_target_that_qemu_gives_them() -> None:
    named, generic = chosen("trixie-cortex-a57", "prefer: named"), chosen("trixie-cortex-a57", "prefer: host")
    assert (named.number, generic.number) == (2, 5)
    # Before Linux 6.6 the preferred target is the CPU's own.
    assert chosen("bookworm-cortex-a57", "prefer: named").number == chosen("bookworm-cortex-a57", "prefer: host").number == 2


def test_no_named_model_where_kvm_takes_none() -> None:
    assert chosen("trixie-neoverse-n1", "prefer: named").model == "host"


@pytest.mark.parametrize("setting", ["auto", "on", "off"])
def test_pmu(setting: str) -> None:
    target, text = chosen("trixie-max", f"pmu: {setting}"), resolved("trixie-max", f"pmu: {setting}")
    expected = setting != "off"
    assert ("pmu_v3" in target.features) is expected
    assert ("PMCR_EL0" in target.seen) is expected
    assert (target.registers["ID_AA64DFR0_EL1"] >> 8 & 0xF != 0) is expected
    assert f"<pmu state='{'on' if expected else 'off'}'/>" in text


@pytest.mark.parametrize("setting", ["auto", "on", "off"])
def test_sve(setting: str) -> None:
    target, text = chosen("trixie-max", f"sve: {setting}"), resolved("trixie-max", f"sve: {setting}")
    expected = setting != "off"
    assert ("sve" in target.features) is expected
    assert bool(target.sve_lengths) is expected
    assert ("SVE_VLS" in target.registers) is expected
    assert (target.registers["ID_AA64PFR0_EL1"] >> 32 & 0xF != 0) is expected
    assert f"<feature policy='{'require' if expected else 'disable'}' name='sve'/>" in text


@pytest.mark.parametrize("setting", ["auto", "on", "off"])
def test_pauth(setting: str) -> None:
    target, text = chosen("trixie-max", f"pauth: {setting}"), resolved("trixie-max", f"pauth: {setting}")
    expected = setting != "off"
    assert ("ptrauth_address" in target.features) is ("ptrauth_generic" in target.features) is expected
    assert (target.registers["ID_AA64ISAR1_EL1"] & 0xFF000FF0 != 0) is expected
    assert f"<feature policy='{'require' if expected else 'disable'}' name='pauth'/>" in text


@pytest.mark.parametrize(
    ("where", "longest", "lengths"),
    [
        ("trixie-max", 128, (128,)),
        ("trixie-max", 256, (128, 256)),
        ("trixie-max", 640, (128, 256, 384, 512, 640)),
        ("trixie-a64fx", 128, (128,)),
        ("trixie-a64fx", 384, (128, 256)),
        ("trixie-a64fx", 2048, (128, 256, 512)),
    ],
)
def test_sve_max_length(where: str, longest: int, lengths: tuple[int, ...]) -> None:
    target = chosen(where, f"sve-max-length: {longest}")
    assert target.sve_lengths == lengths
    assert target.registers["SVE_VLS"] == sum(1 << length // 128 - 1 for length in lengths)
    text = resolved(where, f"sve-max-length: {longest}")
    named = {length: text.count(f"policy='require' name='sve{length}'") for length in range(128, 2049, 128)}
    assert [length for length, count in named.items() if count] == list(lengths)
    assert f"policy='disable' name='sve{longest + 128}'" not in text


def test_lengths_below_the_longest_that_the_host_lacks_are_off() -> None:
    text = resolved("trixie-a64fx")
    assert "<feature policy='disable' name='sve384'/>" in text
    assert "name='sve640'" not in text


def test_without_a_limit_all_lengths_of_the_host() -> None:
    assert chosen("trixie-a64fx").sve_lengths == host("trixie-a64fx").clusters[0].sve_lengths


@pytest.mark.parametrize(
    ("where", "cluster", "cpus"),
    [
        ("hand-made-rk3399", "biggest", "4-5"),
        ("hand-made-rk3399", "smallest", "0-3"),
        ("hand-made-rk3399", "0x410fd034", "0-3"),
        ("hand-made-rk3399", "0x410fd082", "4-5"),
        ("hand-made-rk3588", "biggest", "4-7"),
        ("hand-made-rk3588", "smallest", "0-3"),
        ("trixie-max", "biggest", "0-1"),
        ("trixie-max", "smallest", "0-1"),
    ],
)
def test_cluster(where: str, cluster: str, cpus: str) -> None:
    target = chosen(where, f"cluster: {cluster}\nprefer: host")
    found = next(candidate for candidate in host(where).clusters if candidate.cpus == cpus)
    assert target.number == found.target
    assert target.seen == found.seen
    assert target.registers["CCSIDR_L2D"] == found.vcpus[0].registers["CCSIDR_L2D"]


def test_the_named_model_is_that_of_the_cluster() -> None:
    assert chosen("hand-made-rk3399", "cluster: smallest").model == "cortex-a53"
    assert chosen("hand-made-rk3399", "cluster: biggest").model == "host"


# -- the domain comes first --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "what", "feature_name", "expected"),
    [
        ("pmu: on", {"features": "<pmu state='off'/>"}, "pmu_v3", False),
        ("pmu: off", {"features": "<pmu state='on'/>"}, "pmu_v3", True),
        ("pmu: off", {"features": "<pmu/>"}, "pmu_v3", True),
        ("sve: off", {"cpu": feature("sve")}, "sve", True),
        ("sve: off", {"cpu": feature("sve", "force")}, "sve", True),
        ("sve: on", {"cpu": feature("sve", "disable")}, "sve", False),
        ("sve: on", {"cpu": feature("sve", "forbid")}, "sve", False),
        ("sve: off", {"cpu": feature("sve", "optional")}, "sve", False),
        ("sve: off", {"cpu": feature("sve256")}, "sve", True),
        ("sve: off", {"cpu": feature("sve256", "disable")}, "sve", False),
        ("pauth: off", {"cpu": feature("pauth")}, "ptrauth_address", True),
        ("pauth: on", {"cpu": feature("pauth", "disable")}, "ptrauth_address", False),
    ],
)
def test_the_domain_overrides_the_policy(settings: str, what: dict[str, str], feature_name: str, expected: bool) -> None:
    assert (feature_name in chosen("trixie-max", settings, **what).features) is expected


def test_the_domain_overrides_the_longest_length() -> None:
    assert chosen("trixie-max", "sve-max-length: 128", cpu=feature("sve384")).sve_lengths == (128, 256, 384)
    assert chosen("trixie-max", "sve-max-length: 512", cpu=feature("sve384", "disable")).sve_lengths == (128, 256)


def test_the_last_word_on_a_feature_counts() -> None:
    both = "<cpu mode='host-model'><feature name='pauth' policy='disable'/><feature name='pauth' policy='require'/></cpu>"
    assert "ptrauth_address" in chosen("trixie-max", cpu=both).features


def test_templates_say_what_the_policy_may_not_change() -> None:
    text = Resolver(host("trixie-max"), Policy(sve=False)).resolve(template("sve")).decode()
    assert "<feature policy='require' name='sve256'/>" in text
