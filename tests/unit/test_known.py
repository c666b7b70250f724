# SPDX-License-Identifier: LGPL-2.1-or-later
"""The library of known CPUs, and what is said of hosts whose profile does not tell everything."""

from __future__ import annotations

import configparser
import contextlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmarm_plugin import cli
from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.fleet.baseline import baseline
from kvmarm_plugin.fleet.compare import compare
from kvmarm_plugin.fleet.compare_view import as_dot, as_json, as_text
from kvmarm_plugin.fleet.pool import check_member
from kvmarm_plugin.host import known
from kvmarm_plugin.judge.by_profile import check
from kvmarm_plugin.judge.finding import REFUSES, UNKNOWN, WRONG, Finding, worst
from kvmarm_plugin.judge.wording import line
from kvmarm_plugin.model import profile_json
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile import PARTS, SINCE_2, HostProfile
from kvmarm_plugin.resolve.partial import missing_parts
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import ResolveError, Wish
from tests.corpus import GUEST, HOSTS, TESTS, host, one_line
from tests.known import DUMPS

_SOURCES = TESTS.parent
_N1 = "trixie-neoverse-n1"


@cache
def _known(name: str) -> HostProfile:
    return known.read(name)


def _answer(source: str, destination: str) -> bool | None:
    hosts = [_known(source), _known(destination)]
    comparison = compare(hosts, Policy())
    places = {kind.names[0]: place for place, kind in enumerate(comparison.kinds)}
    return comparison.pair(places[source], places[destination]).answer


# -- the library ---------------------------------------------------------------------------------


def test_the_library_is_what_its_maker_makes() -> None:
    assert known.names() == sorted(DUMPS)


@pytest.mark.parametrize("name", known.names())
def test_a_known_cpu(name: str) -> None:
    here = _known(name)
    dump = DUMPS[name]
    assert here.name == name
    assert here.origin == (
        f"imported: from {dump.path} of github.com/{dump.repository}, commit {dump.commit}"
    )
    if "@" in name:
        assert re.match(re.escape(name.partition("@")[2]) + r"\b", here.kernel)
    else:
        assert "kernel" in here.unknown
    assert missing_parts(here)


@pytest.mark.parametrize("name", known.names())
def test_every_known_cpu_is_documented(name: str) -> None:
    """With its source, by repository and commit, and the licence of that."""
    text = (_SOURCES / "docs" / "known-cpus.md").read_text(encoding="utf-8")
    dump = DUMPS[name]
    (row,) = re.findall(rf"^\| `{re.escape(name)}` \|.*$", text, re.MULTILINE)
    assert dump.commit in row
    assert dump.repository in text
    notice = (known.DIRECTORY / "NOTICE").read_text(encoding="utf-8")
    assert f"https://github.com/{dump.repository}" in notice


def test_the_library_is_installed() -> None:
    """With the licences that ask for it."""
    setup = configparser.ConfigParser()
    setup.read(_SOURCES / "setup.cfg", encoding="utf-8")
    patterns = setup["options.package_data"]["kvmarm_plugin.host"].split(", ")
    shipped = {path for pattern in patterns for path in known.DIRECTORY.parent.glob(pattern)}
    assert shipped >= {*known.DIRECTORY.iterdir()}
    licences = [Path(name).name for name in setup["metadata"]["license_files"].split()]
    assert licences == ["LICENSE", "LICENSE-Apache-2.0", "NOTICE"]
    assert "Apache License" in (known.DIRECTORY / "LICENSE-Apache-2.0").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("graviton3", "did you mean graviton3@5.10, graviton3@5.10.214, graviton3@6.1, "),
        ("graviton3@6.12", "did you mean graviton3@5.10, "),
        ("gravitn3@6.1", "did you mean graviton3@6.1"),
        ("Altra", "did you mean altra?"),
        ("x", "known are altra, graviton2, graviton3, "),
        ("\x1b[2J", "known are altra, graviton2, graviton3, "),
    ],
)
def test_an_unknown_name_is_answered_with_known_ones(name: str, like: str) -> None:
    with pytest.raises(KvmarmError) as caught:
        known.read(name)
    said = one_line(caught.value)
    assert said.isprintable()
    assert "no known CPU of that name" in said
    assert caught.value.hint.startswith(like)


@pytest.mark.parametrize(
    ("name", "is_host"),
    [
        ("gamma", True),
        ("alpha", True),  # which is like altra, and may be a host all the same
        ("rack7-3.example.org", True),
        ("graviton3", False),
        ("betta.json", False),
        ("graviton3@6.12", False),
        ("a b", False),
        ("-oProxyCommand=x", False),
    ],
)
def test_a_host_whose_profile_is_not_kept(name: str, is_host: bool) -> None:
    """It can be asked, and what it says be kept; a mistyped file or CPU cannot."""
    with pytest.raises(KvmarmError) as caught:
        known.read(name)
    asked = (
        f" A host of that name is asked as ssh://root@{name}; to keep its profile: ssh root@{name}"
        f" kvmarm probe >/var/lib/kvmarm/profiles/{name}.json"
    )
    assert caught.value.hint.endswith(asked) == is_host
    assert ("ssh" in caught.value.hint) == is_host


def test_a_name_is_no_path() -> None:
    for name in ("../known/altra", "/etc/passwd", "", ".", "altra.json"):
        with pytest.raises(KvmarmError):
            known.read(name)


# -- published truth -----------------------------------------------------------------------------


@pytest.mark.parametrize("cpu", ["graviton2", "graviton3"])
@pytest.mark.parametrize(
    ("source", "destination"), [("6.18", "6.1"), ("5.10", "6.1"), ("6.18", "5.10")]
)
def test_kernels_between_which_snapshots_are_refused(
    cpu: str, source: str, destination: str
) -> None:
    assert _answer(f"{cpu}@{source}", f"{cpu}@{destination}") is False


@pytest.mark.parametrize("kernel", ["5.10", "6.1", "6.18"])
def test_cpus_between_which_snapshots_are_refused(kernel: str) -> None:
    cpus = ("graviton2", "graviton3", "graviton4")
    for source in cpus:
        for destination in cpus:
            expected = None if source == destination else False
            if expected is False:
                assert _answer(f"{source}@{kernel}", f"{destination}@{kernel}") is False


def test_a_snapshot_that_is_restored_is_a_yes_as_far_as_known() -> None:
    assert _answer("graviton2@6.1", "graviton2@6.18") is None


def test_the_same_midr_is_not_the_same_cpu() -> None:
    """REVIDR tells Altra from Graviton2."""
    assert _known("altra").clusters[0].midr == _known("graviton2@6.18").clusters[0].midr
    assert _answer("altra", "graviton2@6.18") is False
    assert _answer("graviton2@6.18", "altra") is False


@pytest.mark.parametrize("name", known.names())
def test_a_known_cpu_takes_its_own_guests_as_far_as_known(name: str) -> None:
    twin = _known(name).replace(name="twin")
    (pair,) = compare([_known(name), twin], Policy()).pairs
    assert pair.answer is None
    assert {finding.values["part"] for finding in pair.unknown} >= {"qemu", "seen", "vcpus"}


# -- what is not known ---------------------------------------------------------------------------


def _without(part: str) -> HostProfile:
    """A host that is not known to have, or not to have, a part."""
    return _less(host(_N1), part)


def _less(here: HostProfile, part: str) -> HostProfile:
    """Of one cluster."""
    nothing: dict[str, Any] = {
        **dict.fromkeys(("overrides", "gic_versions", "cpu_features", "sve_lengths"), ()),
        **{each: {} for each in ("capabilities", "models", "seen")},
        **dict.fromkeys(("qemu", "libvirt", "revidr", "capacity", "writable")),
        **dict.fromkeys(("kernel", "cpus"), ""),
        "ipa_bits": 0,
    }
    (cluster,) = here.clusters
    if part in cluster.as_dict() and part in nothing:
        here = here.replace(clusters=(cluster.replace(**{part: nothing[part]}),))
    elif part in nothing:
        here = here.replace(**{part: nothing[part]})
    elif part in ("reglist", "registers"):
        few = {name: cluster.vcpus[0].registers[name] for name in ("MIDR_EL1", "REVIDR_EL1")}
        change: dict[str, Any] = {"reglist": ""} if part == "reglist" else {"registers": few}
        vcpus = tuple(vcpu.replace(**change) for vcpu in cluster.vcpus)
        here = here.replace(clusters=(cluster.replace(vcpus=vcpus),))
    elif part == "vcpus":
        vcpus = tuple(vcpu for vcpu in cluster.vcpus if "pmu_v3" not in vcpu.features)
        here = here.replace(clusters=(cluster.replace(vcpus=vcpus),))
    unknown = tuple(each for each in PARTS if each == part or each in SINCE_2)
    return here.replace(name="partial", unknown=unknown)


def _found(part: str) -> list[Finding]:
    target = Resolver(host(_N1), Policy()).target(Wish("aarch64"))
    return check(target, _without(part))


# What decides whether a guest of a host like it runs there, and what it may need to be told.
_DECIDING = {
    "ipa_bits": ["ipa_bits"],
    "gic_versions": ["gic_versions"],
    "qemu": ["qemu"],
    "seen": ["seen"],
    "vcpus": ["vcpus", "registers", "reglist"],
    "registers": ["registers"],
    "reglist": ["reglist"],
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_a_verdict_needs(part: str) -> None:
    """A guest with a PMU, whose registers are what the host gives by itself."""
    found = _found(part)
    assert [finding.values["part"] for finding in found] == _DECIDING.get(part, [])
    assert worst(found) == (UNKNOWN if part in _DECIDING else "")


_OF_FORMS = ("libvirt", "cpu_features", "capabilities", "models", "qemu", "vcpus")


@pytest.mark.parametrize("prefers", [True, False])
@pytest.mark.parametrize("part", _OF_FORMS)
@pytest.mark.parametrize("destination", ["sid-cortex-a57", "trixie-cortex-a57"])
def test_what_form_guests_have_is_as_the_whole_profile_says_or_unknown(
    destination: str, part: str, prefers: bool
) -> None:
    """A Cortex-A57 gives guests a named model, which other kernels do not take."""
    whole = host("trixie-cortex-a57")
    policy = Policy(prefer_named=prefers)
    there = host(destination).replace(name="there")

    def answer(here: HostProfile) -> tuple[bool | None, set[str]]:
        comparison = compare([here, there], policy)
        places = {name: n for n, kind in enumerate(comparison.kinds) for name in kind.names}
        pair = comparison.pair(places[here.name], places["there"])
        return pair.answer, {finding.values.get("part", "") for finding in pair.unknown}

    said, unknown = answer(_less(whole, part))
    expected, _ = answer(whole)
    assert said in (expected, None)
    if part in ("models", "qemu", "vcpus"):
        assert ("models" in unknown) is prefers
    else:
        assert "models" not in unknown
        assert said is not None or expected is not False


def test_guests_of_more_features_have_no_named_model() -> None:
    here, there = _less(host("trixie-max"), "models"), host("trixie-max").replace(name="there")
    assert all(pair.answer for pair in compare([here, there], Policy()).pairs)


def test_what_older_profiles_do_not_tell_is_no_question() -> None:
    target = Resolver(host(_N1), Policy()).target(Wish("aarch64"))
    assert host(_N1).unknown == SINCE_2
    assert check(target, host(_N1)) == []


@pytest.mark.parametrize("part", [part for part in PARTS if part != "registers"])
def test_a_clear_no_stays_one(part: str) -> None:
    """And says nothing of what is not known."""
    target = Resolver(host("trixie-cortex-a72"), Policy()).target(Wish("aarch64"))
    found = check(target, _without(part))
    assert worst(found) == REFUSES
    assert all(finding.severity != UNKNOWN or "register" in finding.values for finding in found)


def test_the_masks_of_a_version_are_known() -> None:
    """By its source; between two that were read, what only the newer one lets user space write is
    in doubt.
    """
    target = Resolver(host(_N1), Policy()).target(Wish("aarch64"))
    for release, kind in (("6.12.107", "field-accepted"), ("6.12.38", "register-not-known")):
        for name, own in (("ID_PFR0_EL1", 1 << 24), ("ID_AA64ISAR0_EL1", 1 << 60)):
            here = _without("writable").replace(kernel=release)
            (cluster,) = here.clusters
            vcpus = tuple(
                vcpu.replace(registers={**vcpu.registers, name: target.registers[name] | own})
                for vcpu in cluster.vcpus
            )
            found = check(target, here.replace(clusters=(cluster.replace(vcpus=vcpus),)))
            expected = kind if name == "ID_PFR0_EL1" else "field-accepted"
            assert [finding.kind for finding in found] == [expected]


def _without_level_7(here: HostProfile) -> HostProfile:
    """Its vCPUs list no cache that the CPU does not have, as before Linux 6.3."""
    (cluster,) = here.clusters
    vcpus = tuple(
        vcpu.replace(
            registers={name: v for name, v in vcpu.registers.items() if name != "CCSIDR_L7I"}
        )
        for vcpu in cluster.vcpus
    )
    return here.replace(clusters=(cluster.replace(vcpus=vcpus),))


def test_of_a_kernel_without_known_masks_only_some_registers_are_in_doubt() -> None:
    target = Resolver(host(_N1), Policy()).target(Wish("aarch64"))
    here = _without("writable").replace(kernel="5.14.0-503.11.1.el9_5.aarch64")
    (cluster,) = here.clusters

    def with_register(name: str, value: int) -> HostProfile:
        vcpus = tuple(v.replace(registers={**v.registers, name: value}) for v in cluster.vcpus)
        return here.replace(clusters=(cluster.replace(vcpus=vcpus),))

    isar0 = target.registers["ID_AA64ISAR0_EL1"]
    more, less = (
        with_register("ID_AA64ISAR0_EL1", isar0 | 1 << 60),
        with_register("ID_AA64ISAR0_EL1", isar0 & ~(0xF << 20)),
    )
    (doubt,) = check(target, more)
    assert (doubt.kind, doubt.values["register"]) == ("register-not-known", "ID_AA64ISAR0_EL1")
    assert worst(check(target, less)) == REFUSES  # no kernel takes more than the host has
    assert worst(check(target, with_register("MIDR_EL1", 1))) == REFUSES
    for kernel in ("", "5.14.0-611.el9.aarch64"):
        unknown = ("writable",) if kernel else ("kernel", "writable")
        old = with_register("CLIDR_EL1", 0x82000023).replace(kernel=kernel, unknown=unknown)
        (accepted,) = check(target, old)  # all levels are listed: caches are virtual
        assert accepted.kind == "register-accepted"
        (doubt,) = check(target, _without_level_7(old))  # the hardware's own before 6.3
        assert (doubt.kind, doubt.values["register"]) == ("register-not-known", "CLIDR_EL1")


@pytest.mark.parametrize("part", PARTS)
def test_what_can_be_resolved(part: str) -> None:
    """A part that domains are not resolved by does not matter; another is named."""
    resolver = Resolver(_without(part), Policy())
    if part in missing_parts(_without(part)):
        with pytest.raises(ResolveError) as caught:
            resolver.resolve(GUEST)
        said = one_line(caught.value)
        assert f"the profile of partial does not tell what a domain is resolved by: {part}" in said
    else:
        assert resolver.resolve(GUEST) != GUEST


def test_which_parts_domains_are_resolved_by() -> None:
    needed = {part for part in PARTS if missing_parts(_without(part))}
    assert needed == {
        *("capabilities", "ipa_bits", "gic_versions", "qemu", "libvirt", "cpu_features"),
        *("vcpus", "registers", "reglist"),
    }
    several = host("hand-made-rk3399").replace(unknown=("cpus", "revidr", "capacity"))
    assert missing_parts(several) == ("cpus", "revidr", "capacity")
    assert missing_parts(host("trixie-a64fx").replace(unknown=("sve_lengths",))) == ("sve_lengths",)


def test_a_known_cpu_resolves_nothing() -> None:
    with pytest.raises(ResolveError) as caught:
        Resolver(_known("graviton3@6.1"), Policy()).resolve(GUEST)
    assert "graviton3@6.1 does not tell what a domain is resolved by: capabilities, " in one_line(
        caught.value
    )


def test_a_domain_that_does_not_ask_needs_nothing() -> None:
    plain = GUEST.replace(b"host-model", b"host-passthrough")
    assert Resolver(_known("graviton3@6.1"), Policy()).resolve(plain) == plain


def test_no_pool_is_made_of_partial_profiles() -> None:
    with pytest.raises(ResolveError) as caught:
        baseline([host(_N1), _known("graviton2@6.18")])
    assert "graviton2@6.18 does not tell everything: capabilities, " in one_line(caught.value)
    assert baseline([host(_N1)]).pool


@pytest.mark.parametrize("part", ["qemu", "gic_versions", "ipa_bits", "seen"])
def test_a_member_that_is_not_known(part: str) -> None:
    pool = baseline([host(_N1)]).pool
    assert pool is not None
    assert worst(check_member(pool, _without(part))) == UNKNOWN
    assert check_member(pool, host(_N1)) == []


def _blinded(name: str, parts: set[str]) -> HostProfile:
    """A recorded host of which nobody measured these parts."""
    document = json.loads(_HOSTS[name])
    unknown = [part for part in PARTS if part in parts or part in SINCE_2]
    document = {**document, "schema": "urn:kvmarm-plugin:profile:2", "unknown": unknown}
    places = [document, *document["clusters"]]
    places += [cluster["base"] for cluster in document["clusters"]]
    places += [variant for cluster in document["clusters"] for variant in cluster["variants"]]
    for place in places:
        for part in parts - {"registers", "vcpus"}:
            place.pop(part, None)
    return profile_json.decode({**document, "name": "blinded"})


_HOSTS = {name: path.read_text(encoding="utf-8") for name, path in HOSTS.items()}


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(HOSTS)), st.sampled_from(sorted(HOSTS)), st.sets(st.sampled_from(PARTS))
)
def test_whatever_is_unknown_crashes_nothing(one: str, other: str, parts: set[str]) -> None:
    """And makes no yes of a no, nor a no of a yes."""
    blinded = _blinded(one, parts)
    with contextlib.suppress(KvmarmError):
        assert Resolver(blinded, Policy()).resolve(GUEST)
    hosts = [blinded, host(other), _known("graviton3@6.1")]
    comparison = compare(hosts, Policy())
    assert as_text(comparison)
    assert as_dot(comparison)
    assert json.dumps(as_json(comparison))
    with contextlib.suppress(KvmarmError):
        found = baseline([blinded])
        assert found.pool is None or check_member(found.pool, blinded) == []
    pool = baseline([host(other)]).pool
    for boots in (False, True):
        with contextlib.suppress(KvmarmError):
            target = Resolver(host(other), Policy()).target(
                Wish("aarch64" if host(other).kvm_architecture == "arm64" else "armv7l")
            )
            foretold, known_all = check(target, blinded, None, boots), host(one)
            truth = check(target, known_all.replace(name="blinded"), None, boots)
            assert all(map(line, foretold))
            if not _is_no(truth, boots):
                assert not _is_no(foretold, boots)
            elif not _is_no(foretold, boots):
                assert UNKNOWN in {finding.severity for finding in foretold}
    if pool is not None and blinded.clusters:
        assert all(map(line, check_member(pool, blinded)))


def _is_no(findings: list[Finding], boots: bool) -> bool:
    if boots:
        return any(finding.stops_start for finding in findings)
    return worst(findings) in (REFUSES, WRONG)


# -- the comparison ------------------------------------------------------------------------------


def test_a_comparison_of_known_and_measured_hosts() -> None:
    hosts = [host(name) for name in HOSTS] + [_known(name) for name in known.names()]
    comparison = compare(hosts, Policy())
    assert comparison.answer is False
    assert as_text(comparison)
    assert as_dot(comparison)
    assert {pair["possible"] for pair in as_json(comparison)["pairs"]} == {True, False, None}
    # What was clear without them still is.
    measured = compare([host(name) for name in HOSTS], Policy())
    assert None not in {pair.answer for pair in measured.pairs}


def test_the_matrix_has_its_own_mark() -> None:
    text = as_text(compare([_known("graviton2@6.1"), _known("graviton2@6.18")], Policy()))
    assert re.search(r"graviton2@6\.1 +- +\?\n", text)
    assert re.search(r"graviton2@6\.18 +no +-\n", text)
    assert "?: yes as far as known" in text
    assert "1 graviton2@6.1 -> 2 graviton2@6.18: yes as far as known\n  not known: " in text
    assert "QEMU not known" in text
    assert "no QEMU" not in text


def test_hosts_with_pages_of_another_size() -> None:
    here = host(_N1).replace(page_size=4096, unknown=("gicd_iidr",))
    other = here.replace(name="other", page_size=65536)
    comparison = compare([here, other], Policy())
    assert comparison.possible
    kinds = {finding.kind for pair in comparison.pairs for finding in pair.findings}
    assert kinds == {"page-size-other"}
    assert "Linux 6.12, 4k pages, QEMU 10.0" in as_text(comparison)
    assert "Linux 6.12, 64k pages, QEMU 10.0" in as_text(comparison)
    assert len(compare([here, here.replace(name="twin")], Policy()).kinds) == 1


# -- the commands --------------------------------------------------------------------------------


def test_compare_takes_known_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "graviton3@6.1", "graviton4@6.18"]) == 3
    assert "Neoverse-V1 r1p1, Linux 6.1" in capsys.readouterr().out
    assert cli.main(["compare", "graviton4@6.1", "graviton4@6.1.150"]) == 1
    assert "yes as far as known" in capsys.readouterr().out
    assert cli.main(["compare", "graviton3", "graviton4@6.18"]) == 1
    assert "did you mean graviton3@5.10, " in capsys.readouterr().err


def test_a_file_goes_before_a_known_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "altra").write_text(HOSTS[_N1].read_text(encoding="utf-8"), encoding="utf-8")
    assert cli.main(["compare", "altra", "graviton2@6.18", "--json"]) == 3
    hosts = [
        name for kind in json.loads(capsys.readouterr().out)["kinds"] for name in kind["hosts"]
    ]
    assert sorted(hosts) == ["graviton2@6.18", _N1]


@pytest.mark.parametrize("options", [[], ["--inactive"]])
def test_check_by_a_partial_profile(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guest, partial = tmp_path / "guest.xml", tmp_path / "partial.json"
    guest.write_bytes(Resolver(host(_N1), Policy()).resolve(GUEST))
    partial.write_text(profile_json.dumps(_without("seen")), encoding="utf-8")
    arguments = ["check", str(guest), *options, "--host"]
    assert cli.main([*arguments, str(partial)]) == 1
    said = capsys.readouterr().out
    assert "as far as known" in said
    assert "timer frequency and DC ZVA block size (seen in a profile)" in said
    assert "Remedy: probe partial itself: kvmarm probe -o FILE" in said
    assert cli.main([*arguments, str(partial), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["hosts"]["partial"]["verdict"] == "unknown"
    assert cli.main([*arguments, str(HOSTS[_N1])]) == 0
    status = cli.main([*arguments, "graviton3@6.1"])
    assert status == (1 if options else 3)  # a guest that boots gets what is there
    # A clear no of one host counts for all.
    assert cli.main([*arguments, str(partial), "--host", "graviton3@6.1"]) == status


def test_of_a_vcpu_that_nobody_made_the_timer_is_known() -> None:
    target = Resolver(host(_N1), Policy()).target(Wish("aarch64"))
    here = _without("vcpus")
    (cluster,) = here.clusters
    other = here.replace(clusters=(cluster.replace(seen={**cluster.seen, "CNTFRQ_EL0": 1}),))
    assert [finding.kind for finding in check(target, other)] == ["timer-frequency"]
