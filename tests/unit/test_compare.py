# SPDX-License-Identifier: LGPL-2.1-or-later
"""Comparing hosts: laws of the graph and its groups, and what people and programs are shown of
it.
"""

from __future__ import annotations

import json
import random
import re
from functools import cache
from pathlib import Path
from typing import Any, Callable
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmarm_plugin import cli
from kvmarm_plugin.fleet import compare
from kvmarm_plugin.fleet.compare import Comparison, merge
from kvmarm_plugin.fleet.compare_view import as_dot, as_json, as_text, numbers_of
from kvmarm_plugin.fleet.descriptions import describe
from kvmarm_plugin.fleet.kinds import kinds_of
from kvmarm_plugin.judge.by_profile import check
from kvmarm_plugin.judge.finding import HARMLESS, Finding, worst
from kvmarm_plugin.model import profile_json
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.problem import Problem
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.model.target import Target
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import Wish
from tests.corpus import HOSTS, TESTS, host
from tests.fleet import fleet


def _compare(*hosts: HostProfile) -> Comparison:
    return compare.compare(hosts, Policy())


@cache
def _corpus() -> Comparison:
    return _compare(*map(host, HOSTS))


@cache
def _fleet() -> Comparison:
    return _compare(*fleet(2000))


_both = pytest.mark.parametrize("compared", [_corpus, _fleet], ids=["corpus", "fleet"])


def _edges(comparison: Comparison) -> dict[tuple[str, str], bool]:
    """Whether the first kind's guests run on the second, kinds by the name of their first host."""
    names = [kind.names[0] for kind in comparison.kinds]
    return {
        (names[pair.source], names[pair.destination]): pair.possible for pair in comparison.pairs
    }


def _with_machines(name: str, *machines: str) -> HostProfile:
    """A host of this name whose QEMU knows these machine types only."""
    here = host("trixie-neoverse-n1")
    assert here.qemu is not None
    return here.replace(
        name=name, qemu=here.qemu.replace(machines=machines, aliases={"virt": machines[0]})
    )


# -- laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_takes_its_own_guests(name: str) -> None:
    comparison = _compare(host(name))
    assert comparison.possible
    assert [group.kinds for group in comparison.groups] == [(0,)]


_MIXED = [
    *fleet(30),
    *map(
        host,
        ("trixie-max", "trixie-max-nobti", "sid-max", "hand-made-rk3399", "hand-made-a15-3.10"),
    ),
]


@settings(max_examples=15)
@given(st.permutations(_MIXED))
def test_the_order_of_the_hosts_decides_nothing(hosts: list[HostProfile]) -> None:
    assert _compare(*hosts) == _compare(*_MIXED)


def test_hosts_of_one_kind_get_the_same_answers() -> None:
    comparison = _fleet()
    rng = random.Random(1)
    numbers = range(len(comparison.kinds))
    for source, destination in [(number, number) for number in numbers] + [
        (rng.choice(numbers), rng.choice(numbers)) for _ in numbers
    ]:
        for _ in range(3):
            here, there = (
                rng.choice(comparison.kinds[number].hosts) for number in (source, destination)
            )
            alone = _compare(here, there)
            edge = (
                (here.name, there.name) if len(alone.kinds) > 1 else (alone.kinds[0].names[0],) * 2
            )
            assert _edges(alone)[edge] == comparison.pair(source, destination).possible


@_both
def test_every_guest_runs_everywhere_in_its_group(compared: Callable[[], Comparison]) -> None:
    comparison = compared()
    assert [number for group in comparison.groups for number in group.kinds] == list(
        range(len(comparison.kinds))
    )
    for group in comparison.groups:
        hosts = [comparison.kinds[number].host for number in group.kinds]
        for here in hosts:
            architecture = "aarch64" if here.kvm_architecture == "arm64" else "armv7l"
            target = Resolver(here, Policy()).target(Wish(architecture, group.machine))
            for there in hosts:
                assert worst(check(target, there)) in ("", HARMLESS)


@_both
def test_no_two_groups_could_be_one(compared: Callable[[], Comparison]) -> None:
    comparison = compared()
    for number, one in enumerate(comparison.groups):
        for other in comparison.groups[number + 1 :]:
            pairs = [(a, b) for a in one.kinds for b in other.kinds]
            assert not all(
                comparison.pair(a, b).possible and comparison.pair(b, a).possible for a, b in pairs
            )


@_both
def test_links_are_the_edges_between_groups(compared: Callable[[], Comparison]) -> None:
    comparison = compared()
    group_of = {number: group.name for group in comparison.groups for number in group.kinds}
    edges = [
        edge
        for link in comparison.links()
        for a in link.sources
        for b in link.destinations
        for edge in ([(a, b), (b, a)] if link.mutual else [(a, b)])
    ]
    assert len(edges) == len(set(edges))
    assert set(edges) == {
        (pair.source, pair.destination)
        for pair in comparison.pairs
        if pair.possible and group_of[pair.source] != group_of[pair.destination]
    }


@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_merging_edges_loses_none(edges: set[tuple[int, int]]) -> None:
    merged = [
        (a, b) for sources, destinations in merge(edges) for a in sources for b in destinations
    ]
    assert len(merged) == len(edges)
    assert set(merged) == edges


def test_checks_are_made_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = fleet(2000)
    calls = []

    def counted(target: Target, there: HostProfile, **source: Any) -> list[Finding]:
        calls.append(there)
        return check(target, there, **source)

    monkeypatch.setattr(compare, "check", counted)
    kinds = len(_compare(*hosts).kinds)
    assert len(calls) == kinds**2 < len(hosts) ** 2 / 400


# -- the graph -----------------------------------------------------------------------------------


def test_newer_takes_older_and_not_back() -> None:
    names = ("bookworm-neoverse-n1", "trixie-neoverse-n1", "sid-neoverse-n1")
    comparison = _compare(*map(host, names))
    assert _edges(comparison) == {
        (here, there): names.index(here) <= names.index(there) for here in names for there in names
    }
    assert not any(link.mutual for link in comparison.links())
    assert len(comparison.groups) == 3


def test_a_host_that_makes_no_guests_is_alone_and_says_why() -> None:
    usable = host("trixie-neoverse-n1")
    no_kvm = usable.replace(
        name="no-kvm",
        clusters=(),
        gic_versions=(),
        ipa_bits=0,
        problems=(Problem("KVM", "/dev/kvm is missing"),),
    )
    no_qemu = usable.replace(name="no-qemu", qemu=None)
    no_gic = usable.replace(name="no-gic", gic_versions=())
    comparison = _compare(no_kvm, usable, no_qemu, no_gic)
    assert {pair for pair, possible in _edges(comparison).items() if possible} == {
        (usable.name, usable.name)
    }
    problems = {
        comparison.kinds[group.kinds[0]].names: group.problem for group in comparison.groups
    }
    assert "KVM: /dev/kvm is missing" in problems["no-kvm",]
    assert "no usable QEMU" in problems["no-qemu",]
    assert "offers no virtual GIC" in problems["no-gic",]
    assert problems[usable.name,] == ""
    text = as_text(comparison)
    assert "no guests: host no-qemu has no usable QEMU" in text
    assert "no guests" in as_dot(comparison)
    two = _compare(no_kvm, no_kvm.replace(name="no-kvm-either"))
    assert (len(two.kinds), two.possible) == (1, False)


def test_a_group_has_a_machine_type_in_common() -> None:
    """Each two of these know one, and the three of them none."""
    hosts = [
        _with_machines(*each)
        for each in (
            ("a", "virt-3", "virt-2"),
            ("b", "virt-2", "virt-1"),
            ("c", "virt-3", "virt-1"),
        )
    ]
    comparison = _compare(*hosts)
    assert comparison.possible
    assert [(group.kinds, group.machine) for group in comparison.groups] == [
        ((0, 1), "virt-2"),
        ((2,), "virt-3"),
    ]
    (link,) = comparison.links()
    assert (link.sources, link.destinations, link.mutual) == ((0, 1), (2,), True)
    assert "\n  A <-> B\n" in as_text(comparison)
    assert "1 -> 3 [dir=both, ltail=cluster_0, lhead=cluster_1];" in as_dot(comparison)


def test_what_goes_for_a_part_of_a_group_is_said_of_kinds() -> None:
    hosts = [
        _with_machines(*each)
        for each in (("a", "virt-3", "virt-2"), ("b", "virt-2", "virt-1"), ("c", "virt-1"))
    ]
    comparison = _compare(*hosts)
    assert [group.kinds for group in comparison.groups] == [(0, 1), (2,)]
    assert "\n  2 <-> B\n" in as_text(comparison)
    assert "2 -> 3 [dir=both, lhead=cluster_1];" in as_dot(comparison)


def test_a_policy_may_close_the_gap() -> None:
    hosts = [host("trixie-max"), host("trixie-max-nosve-nopauth")]
    assert not compare.compare(hosts, Policy()).possible
    assert len(compare.compare(hosts, Policy(sve=False, pauth=False)).groups) == 1


# -- text ----------------------------------------------------------------------------------------


def test_two_revidrs_in_one_host_are_two_names() -> None:
    altra = host("trixie-neoverse-n1")
    [cluster] = altra.clusters
    sockets = cluster.replace(cpus="0", revidr=0), cluster.replace(cpus="1", revidr=0x1C7)
    two = altra.replace(name="two", clusters=sockets)
    text = as_text(compare.compare([altra, two], Policy()))
    assert "Neoverse-N1 r4p1 (REVIDR 0x0) + Neoverse-N1 r4p1 (REVIDR 0x1c7)," in text
    assert " Neoverse-N1 r4p1, " in text


def test_few_hosts_get_a_matrix_and_all_reasons() -> None:
    text = as_text(_compare(host("trixie-neoverse-n1"), host("sid-neoverse-n1")))
    lines = text.splitlines()
    start = lines.index("  B -> A")
    assert [line.split() for line in lines[start + 2 : start + 5]] == [
        ["from", "\\", "to", "1", "2"],
        ["1", "sid-neoverse-n1", "-", "no"],
        ["2", "trixie-neoverse-n1", "yes", "-"],
    ]
    assert lines[start + 6] == "1 sid-neoverse-n1 -> 2 trixie-neoverse-n1: no"
    assert lines[start + 7].startswith(
        "  PSCI_VERSION (PSCI version that the guest is offered): on the source 0x10003, on the"
        " destination 0x10001; refuses"
    )
    assert lines[start + 8].startswith("  Remedy: run the same Linux on both hosts, or ")
    assert len(lines) == start + 9  # QEMU 10.0 loses VENDOR_HYP_BMAP_2, which is 0, in silence


def test_pairs_with_the_same_reasons_are_told_together() -> None:
    text = as_text(
        _compare(*map(host, ("trixie-max", "trixie-max-nobti", "trixie-max-nosve-nopauth")))
    )
    assert "\n1, 3 -> 2: no\n  ID_AA64PFR1_EL1.BT " in text
    assert "\n1-2 -> 3: no\n  vCPU " in text
    assert "B -> A" in text


def test_many_hosts_get_a_text_that_can_be_read() -> None:
    text = as_text(_fleet())
    lines = text.splitlines()
    assert (
        lines[0] == f"2000 hosts of {len(_fleet().kinds)} kinds, in {len(_fleet().groups)} groups."
    )
    assert len(lines) < 250
    assert "too many for a matrix" in text
    missing = sum(not pair.possible for pair in _fleet().pairs)
    assert f"first reason of each of {missing} pairs" in text
    assert "MIDR_EL1.PartNum" in text


def test_no_group_names_what_is_not_there() -> None:
    text = as_text(
        _compare(host("trixie-neoverse-n1"), host("trixie-neoverse-n1").replace(name="b"))
    )
    assert text.splitlines()[0] == "2 hosts of 1 kind, in 1 group."
    assert "from" not in text
    assert "No guest can migrate between groups." in as_text(
        _compare(host("trixie-neoverse-n1"), host("trixie-cortex-a72"))
    )


@given(st.sets(st.integers(0, 30)))
def test_numbers_are_written_as_runs(numbers: set[int]) -> None:
    text = numbers_of(sorted(numbers))
    runs = (part.partition("-")[::2] for part in text.split(", ") if part)
    assert {
        number - 1 for first, last in runs for number in range(int(first), int(last or first) + 1)
    } == numbers


def test_groups_are_lettered_without_end() -> None:
    names = [compare._letters(index) for index in range(800)]
    assert [names[index] for index in (0, 25, 26, 51, 52, 701, 702)] == [
        "A",
        "Z",
        "AA",
        "AZ",
        "BA",
        "ZZ",
        "AAA",
    ]
    assert len(set(names)) == 800


# -- JSON ----------------------------------------------------------------------------------------


def test_the_json_is_by_kind_and_complete() -> None:
    comparison = _fleet()
    document = json.loads(json.dumps(as_json(comparison)))
    kinds, groups, pairs = document["kinds"], document["groups"], document["pairs"]
    assert sorted(name for kind in kinds for name in kind["hosts"]) == sorted(
        here.name for here in fleet(2000)
    )
    assert [kind["kind"] for kind in kinds] == list(range(1, len(kinds) + 1))
    assert {(kind["group"], kind["kind"]) for kind in kinds} == {
        (group["group"], kind) for group in groups for kind in group["kinds"]
    }
    assert [(pair["from"], pair["to"]) for pair in pairs] == [
        (a["kind"], b["kind"]) for a in kinds for b in kinds
    ]
    assert [pair["possible"] for pair in pairs] == [pair.possible for pair in comparison.pairs]
    assert all(pair["possible"] or pair["problem"] or pair["findings"] for pair in pairs)
    assert {key for pair in pairs for finding in pair["findings"] for key in finding} == {
        "kind", "subject", "meaning", "recorded", "local", "rule", "severity", "remedy",
        "stops_start",
    }  # fmt: skip


def test_what_to_do_is_said_once_for_each_reason() -> None:
    """Below the reasons of a pair; where nothing helps against one, the others' do not help."""
    names = ("trixie-neoverse-n1", "sid-neoverse-n1", "bookworm-neoverse-n1", "trixie-max")
    parts = as_text(_compare(*map(host, names))).split("\n\n")
    reasons = [part.splitlines() for part in parts if re.search(": no$", part, re.MULTILINE)]
    assert len(reasons) > 4
    for said in reasons:
        remedies = [line for line in said if line.startswith("  Remedy: ")]
        assert remedies
        assert said[-len(remedies) :] == remedies
        assert len({*remedies}) == len(remedies)
        assert "remedy: " not in "".join(said[: -len(remedies)]).lower()
        assert len(remedies) == 1 or not any("none: " in remedy for remedy in remedies)


def test_the_json_is_as_documented() -> None:
    document = as_json(_compare(host("trixie-neoverse-n1"), host("sid-neoverse-n1")))
    rows = dict(
        re.findall(
            r"^\| `(\w+)` \| (.*) \|$",
            (TESTS.parent / "docs" / "compare.md").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )
    assert list(rows) == list(document)
    for key, text in rows.items():
        assert set(re.findall(r"`(\w+)`", text)) == set(document[key][0])


# -- the picture ---------------------------------------------------------------------------------


def test_the_graph_has_a_node_a_kind_and_a_box_a_group() -> None:
    comparison = _fleet()
    dot = as_dot(comparison)
    assert len(re.findall(r"^    \d+ \[label=", dot, re.MULTILINE)) == len(comparison.kinds)
    assert len(re.findall(r"^  subgraph cluster_\d+ \{$", dot, re.MULTILINE)) == len(
        comparison.groups
    )
    assert len(re.findall(r"^  \d+ -> \d+", dot, re.MULTILINE)) >= len(comparison.links()) > 10


def _write(directory: Path, *hosts: HostProfile) -> list[str]:
    paths = [directory / f"{number}.json" for number in range(len(hosts))]
    for path, here in zip(paths, hosts):
        path.write_text(profile_json.dumps(here), encoding="utf-8")
    return [str(path) for path in paths]


_ODD = 'a "b" \\N\\l {c|d} <e> &amp; é; f'


def test_svg_draws_what_dot_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = _write(tmp_path, host("trixie-neoverse-n1").replace(name=_ODD), host("sid-neoverse-n1"))
    picture = tmp_path / "picture.svg"
    assert cli.main(["compare", "--svg", str(picture), *files]) == 3
    assert capsys.readouterr() == ("", "")
    texts = [
        element.text
        for element in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert f"1: {_ODD}" in [text and text.replace("\N{NO-BREAK SPACE}", " ") for text in texts]
    assert "Group B: 1 host, guests on virt-11.1" in texts
    assert cli.main(["compare", "--dot", *files]) == 3
    assert capsys.readouterr().out.startswith("digraph kvmarm {\n")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (None, "No such file or directory"),
        ("#!/bin/sh\necho 'syntax error' >&2\nexit 1\n", "syntax error"),
        ("#!/bin/sh\nexit 3\n", "exit status 3"),
    ],
)
def test_svg_without_a_working_graphviz(
    program: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if program is not None:
        (tmp_path / "dot").write_text(program)
        (tmp_path / "dot").chmod(0o755)
    picture = tmp_path / "picture.svg"
    picture.write_text("old")
    assert (
        cli.main(
            [
                "compare",
                "--svg",
                str(picture),
                *(str(HOSTS[name]) for name in ("trixie-max", "sid-max")),
            ]
        )
        == 1
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "hint: " in line
    assert picture.read_text() == "old"


# -- the command ---------------------------------------------------------------------------------


def test_the_exit_status_is_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = host("trixie-neoverse-n1")
    files = _write(tmp_path, here, here.replace(name="other"), host("sid-neoverse-n1"))
    assert cli.main(["compare", *files[:2]]) == 0
    assert cli.main(["compare", *files]) == 3
    capsys.readouterr()
    assert cli.main(["compare", "--json", *files]) == 3
    assert [kind["hosts"] for kind in json.loads(capsys.readouterr().out)["kinds"]] == [
        ["other", here.name],
        ["sid-neoverse-n1"],
    ]


@pytest.mark.parametrize(
    "forms", [["--json", "--dot"], ["--dot", "--svg", "x"], ["--svg", "x", "--json"]]
)
def test_one_form_at_a_time(forms: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["compare", *forms, "a", "b"])
    assert caught.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_one_profile_is_too_few(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["compare", "a"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: kvmarm compare ")
    assert said.endswith("kvmarm compare: error: compare takes two profiles or more\n")


# -- descriptions --------------------------------------------------------------------------------


def _firmware(name: str, kernel: str, value: int, **changes: object) -> HostProfile:
    """A host whose guests see this SMCCC_ARCH_WORKAROUND_3."""
    here = host("bookworm-neoverse-n1")
    (cluster,) = here.clusters
    vcpus = tuple(
        vcpu.replace(registers={**vcpu.registers, "SMCCC_ARCH_WORKAROUND_3": value})
        for vcpu in cluster.vcpus
    )
    cluster = cluster.replace(vcpus=vcpus)
    return here.replace(**{"name": name, "kernel": kernel, "clusters": (cluster,), **changes})


_N1_61 = "Neoverse-N1 r4p1, timer 62.5 MHz, Linux 6.1"


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        (
            (_firmware("a", "6.1.129", 2), _firmware("b", "6.1.140", 1)),
            (f"{_N1_61}.129, QEMU 7.2", f"{_N1_61}.140, QEMU 7.2"),
        ),
        (  # one kind of several point releases
            (
                _firmware("a", "6.1.129", 2),
                _firmware("b", "6.1.140", 1),
                _firmware("c", "6.1.66", 2),
            ),
            (f"{_N1_61}.66 to 6.1.129, QEMU 7.2", f"{_N1_61}.140, QEMU 7.2"),
        ),
        (  # the point release explains nothing
            (
                _firmware("a", "6.1.129", 2),
                _firmware("b", "6.1.140", 1),
                _firmware("c", "6.1.140", 2),
            ),
            (
                f"{_N1_61}, QEMU 7.2, SMCCC_ARCH_WORKAROUND_3 0x2",
                f"{_N1_61}, QEMU 7.2, SMCCC_ARCH_WORKAROUND_3 0x1",
            ),
        ),
        (
            (_firmware("a", "6.1.129", 2), _firmware("b", "6.1.129", 2, gic_versions=(2, 3))),
            (f"{_N1_61}, QEMU 7.2, GIC 3", f"{_N1_61}, QEMU 7.2, GIC 2 or 3"),
        ),
        (
            (_firmware("a", "6.1.129", 2), _firmware("b", "6.1.129", 2, ipa_bits=40)),
            (
                f"{_N1_61}, QEMU 7.2, addresses of 48 bits",
                f"{_N1_61}, QEMU 7.2, addresses of 40 bits",
            ),
        ),
        (  # the kernel is enough for some, and others of it need more
            (
                _firmware("a", "6.1.129", 2),
                _firmware("b", "6.1.140", 1),
                _firmware("c", "6.1.150", 1, ipa_bits=40),
            ),
            (
                f"{_N1_61}.129, QEMU 7.2",
                f"{_N1_61}.140, QEMU 7.2",
                f"{_N1_61}.150, QEMU 7.2",
            ),
        ),
    ],
)
def test_no_two_kinds_are_called_the_same(
    called: tuple[HostProfile, ...], expected: tuple[str, ...]
) -> None:
    kinds = as_json(_compare(*called))["kinds"]
    assert sorted(kind["description"] for kind in kinds) == sorted(expected)
    said = as_text(_compare(*called)), as_dot(_compare(*called))
    for text in expected:
        assert text in said[0]
        assert text.split(", Linux ")[1] in said[1]


def _variants() -> list[HostProfile]:
    """A host, and others that each differ from it in one thing."""
    here = host("trixie-max")
    (cluster,) = here.clusters
    assert here.qemu is not None
    base = cluster.vcpus[0]
    changes: list[dict[str, object]] = [
        {},
        {"capabilities": {**here.capabilities, "ARM_MTE": 2}},
        {"libvirt": None},
        {"cpu_features": here.cpu_features[:2]},
        {"qemu": here.qemu.replace(machines=here.qemu.machines[:-1])},
        {"qemu": here.qemu.replace(host_properties={})},
        {"qemu": here.qemu.replace(version="10.0.99", aliases={})},
        {"overrides": ("arm64.nompam",)},
        {"page_size": 4096},
        {"page_size": 65536},
        {"kernel": "", "unknown": ("kernel",)},
        {"qemu": None, "unknown": ("qemu",)},
    ]
    of_the_cluster: list[dict[str, object]] = [
        {"revidr": 1},
        {"revidr": None},
        {"models": {"cortex-a57": 2}},
        {"seen": {**cluster.seen, "PMCR_EL0": 31 << 11}},
        {"seen": {**cluster.seen, "DCZID_EL0": 5}},
        {"writable": {}},
        {"writable": None},
        {"vcpus": cluster.vcpus[:-1]},
        {"vcpus": (base.replace(reglist=""), *cluster.vcpus[1:])},
        {
            "vcpus": (
                base.replace(registers={**base.registers, "ID_AA64ISAR0_EL1": 0}),
                *cluster.vcpus[1:],
            )
        },
    ]
    changes += [{"clusters": (cluster.replace(**change),)} for change in of_the_cluster]
    return [here.replace(name=f"host{number}", **change) for number, change in enumerate(changes)]


def test_whatever_differs_each_has_a_description_of_its_own() -> None:
    for hosts in (_variants(), fleet(2000), list(map(host, HOSTS))):
        kinds = kinds_of(hosts)
        texts = [each.text for each in describe(kinds)]
        assert len(set(texts)) == len(kinds)
        assert all(len(text) < 400 for text in texts)
