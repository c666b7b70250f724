# SPDX-License-Identifier: LGPL-2.1-or-later
"""big.LITTLE: which cluster a guest gets, what is pinned there, and what becomes of the pins on a
host of other CPU numbers.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvmarm_plugin.basics import cpulist
from kvmarm_plugin.domain import pins, record, restoring, rewrite
from kvmarm_plugin.domain.edits import Edits
from kvmarm_plugin.domain.xml import DomainXMLError, Element, parse
from kvmarm_plugin.fleet.baseline import baseline
from kvmarm_plugin.fleet.compare import compare
from kvmarm_plugin.fleet.levelling import levelled
from kvmarm_plugin.hook import answer as hook
from kvmarm_plugin.host import marks
from kvmarm_plugin.host.cpus import CpuCluster, find_clusters
from kvmarm_plugin.judge import pinning as arrival
from kvmarm_plugin.judge.by_profile import check, counted
from kvmarm_plugin.judge.finding import REFUSES
from kvmarm_plugin.judge.wording import line, texts
from kvmarm_plugin.kvm import device
from kvmarm_plugin.model import policy as policy_module
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.problem import UNKNOWN_CPUS, Problem
from kvmarm_plugin.model.profile import Cluster, HostProfile
from kvmarm_plugin.model.target import Pinning
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import ResolveError, Wish
from tests.corpus import host, one_line

from .fakehost import Scheduler, numbers, write_host
from .fakekernel import FakeKernel
from .test_hook import _modules

RK3399, RK3588 = host("hand-made-rk3399"), host("hand-made-rk3588")
A53, A72 = RK3399.clusters
ALL = Policy(cluster="all")


_UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"


def domain(inside: str = "<vcpu>2</vcpu>", features: str = "") -> bytes:
    return (
        f"<domain type='kvm'><name>guest</name><uuid>{_UUID}</uuid>{inside}<os><type arch='aarch64'"
        f" machine='virt'>hvm</type></os><features>{features}</features><cpu"
        " mode='host-model'/></domain>"
    ).encode()


def resolved(source: bytes, here: HostProfile = RK3399, policy: Policy | None = None) -> Element:
    return parse(Resolver(here, policy or Policy()).resolve(source))


def pinning_of(root: Element) -> Pinning | None:
    return record.read(record.find(root) or pytest.fail("no record")).target.pinning


def written(root: Element) -> list[str]:
    """The pins of a domain, in short: element, thread and CPUs."""
    words = [
        (*(pins.thread_of(pin) if pin.name != "vcpu" else ("vcpu",)), pin.attributes["cpuset"])
        for pin in pins.pins_of(root)
    ]
    return [" ".join(filter(None, some)) for some in words]


# -- lists ---------------------------------------------------------------------------------------

_sets = st.sets(st.integers(0, 16383), max_size=40).map(lambda cpus: tuple(sorted(cpus)))


@given(_sets)
def test_reading_a_list_is_the_inverse_of_writing_one(cpus: tuple[int, ...]) -> None:
    assert cpulist.parse(cpulist.write(cpus)) == cpus


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0", (0,)),
        ("0-3", (0, 1, 2, 3)),
        ("0-1,4,6-7\n", (0, 1, 4, 6, 7)),
        ("", ()),
        ("\n", ()),
        ("7,4-5", (4, 5, 7)),
        ("0-7,^2", (0, 1, 3, 4, 5, 6, 7)),
        ("0-3,^1,^2, 2", (0, 2, 3)),
        ("0-1,", (0, 1)),
        ("0-1 , \n", (0, 1)),
        ("00-03,0000007", (0, 1, 2, 3, 7)),
        ("0- 3", (0, 1, 2, 3)),
        ("0" * 1000 + "5", (5,)),
        ("2-2", (2,)),
    ],
)
def test_lists_of_the_kernel_and_of_libvirt(text: str, cpus: tuple[int, ...]) -> None:
    assert cpulist.parse(text) == cpus


@pytest.mark.parametrize(
    "text",
    [
        *("a", "1-", "-1", "3-1", "1,,2", "16384", "0-99999", "1;2", "0x1", "^", "1" * 200_000),
        *(
            "١",
            "1-٣",
            "²",
            "+1",
            "1_0",
            "1 2",
            "1-2-3",
            ",",
            "0,,",
            "0-3,^1-2",
            "^^1",
            "^ 1",
            "0-",
            "1-" + "9" * 100_000,
            "00000016384",
            "\x1b[2J" * 100,
        ),
    ],
)
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(ValueError, match="not a list of CPUs") as caught:
        cpulist.parse(text)
    assert len(str(caught.value)) < 400


# -- the cluster ---------------------------------------------------------------------------------


def test_a_host_of_one_cluster_pins_nothing() -> None:
    root = resolved(domain(), host("trixie-neoverse-n1"))
    assert pinning_of(root) is None
    assert written(root) == []
    odd = domain("<vcpu cpuset='?'>many</vcpu><cputune/><cputune/>")
    assert pinning_of(resolved(odd, host("trixie-neoverse-n1"))) is None, (
        "what is pinned is libvirt's to read"
    )
    for policy in (ALL, Policy(cluster="smallest")):
        assert Resolver(host("trixie-neoverse-n1"), policy).resolve(domain()) == Resolver(
            host("trixie-neoverse-n1"), Policy()
        ).resolve(domain())


@pytest.mark.parametrize(
    ("policy", "cluster"),
    [("biggest", A72), ("smallest", A53), (A53.midr, A53), (A72.midr, A72)],
)
def test_the_policys_cluster_is_pinned_and_recorded(policy: str | int, cluster: Cluster) -> None:
    root = resolved(domain(), RK3399, Policy(cluster=policy))
    assert pinning_of(root) == Pinning(cluster.midr, cluster.revidr, cluster.cpus)
    assert {pin.attributes["cpuset"] for pin in pins.pins_of(root)} == {cluster.cpus}


_CPUTUNE = "<vcpu>2</vcpu><cputune>{}</cputune>"


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("", "vcpu 4-5|vcpupin 0 4-5|emulatorpin 4-5"),
        ("<vcpu>2</vcpu>", "vcpu 4-5|vcpupin 0 4-5|vcpupin 1 4-5|emulatorpin 4-5"),
        ("<vcpu current='1'>2</vcpu>", "vcpu 4-5|vcpupin 0 4-5|vcpupin 1 4-5|emulatorpin 4-5"),
        # What the user leaves open: libvirt gives a cpuset to every thread that has no pin, and
        # reads none if it asks numad.
        ("<vcpu cpuset='0-3'>2</vcpu>", "vcpu 0-3"),
        ("<vcpu cpuset='0-3,^2'>2</vcpu>", "vcpu 0-3,^2"),
        (
            "<vcpu cpuset='1'>2</vcpu><cputune><vcpupin vcpu='0' cpuset='2'/></cputune>",
            "vcpu 1|vcpupin 0 2",
        ),
        ("<vcpu placement='auto'>1</vcpu>", "vcpu 4-5|vcpupin 0 4-5|emulatorpin 4-5"),
        ("<vcpu placement='auto' cpuset='0-3'>1</vcpu>", "vcpu 4-5|vcpupin 0 4-5|emulatorpin 4-5"),
        (
            _CPUTUNE.format("<vcpupin vcpu='1' cpuset='0'/>"),
            "vcpu 0-3|vcpupin 1 0|vcpupin 0 0-3|emulatorpin 0-3",
        ),
        (
            # of a vCPU that is not there
            _CPUTUNE.format("<vcpupin vcpu='2' cpuset='0'/><emulatorpin cpuset='4'/>"),
            "vcpu 4-5|emulatorpin 4|vcpupin 0 4-5|vcpupin 1 4-5",
        ),
        (
            _CPUTUNE.format("<emulatorpin cpuset='3'/><shares>9</shares>"),
            "vcpu 0-3|emulatorpin 3|vcpupin 0 0-3|vcpupin 1 0-3",
        ),
        (
            (
                "<vcpu>1</vcpu><iothreads>3</iothreads><iothreadids><iothread id='2'/><iothread"
                " id='7'/></iothreadids><cputune><iothreadpin iothread='2' cpuset='5'/></cputune>"
            ),
            (
                "vcpu 4-5|iothreadpin 2 5|vcpupin 0 4-5|emulatorpin 4-5|iothreadpin 1"
                " 4-5|iothreadpin 7 4-5"
            ),
        ),
        (
            "<vcpu>1</vcpu><iothreadids><iothread id='3'/></iothreadids>",
            "vcpu 4-5|vcpupin 0 4-5|emulatorpin 4-5|iothreadpin 3 4-5",
        ),
    ],
)
def test_the_users_pins_choose_the_cluster_and_the_rest_is_pinned_there(
    inside: str, expected: str
) -> None:
    root = resolved(domain(inside))
    assert written(root) == expected.split("|")
    little = cpulist.numbers(pins.cpus_of(pins.pins_of(root)[0]))[0] < 4
    assert pinning_of(root) == (
        Pinning(A53.midr, 0, "0-3") if little else Pinning(A72.midr, 0, "4-5")
    )


@pytest.mark.parametrize(
    ("inside", "why"),
    [
        (
            _CPUTUNE.format("<vcpupin vcpu='0' cpuset='0-16383'/>" * 2700),
            "<cputune> has 2700 pins (hint: up to 512 vCPUs and as many I/O threads can be pinned)",
        ),
        (
            _CPUTUNE.format(
                "".join(
                    f"<vcpupin vcpu='{number}' cpuset='{'0,' * 9000}1'/>" for number in range(500)
                )
            ),
            (
                "the pins of <cputune> have more than 1 MiB (hint: write ranges of CPUs, such as"
                " 0-3,6)"
            ),
        ),
        (
            "<iothreadids>" + "<iothread id='1'/>" * 513 + "</iothreadids>",
            "<iothreadids> has 513 threads",
        ),
        (
            "<iothreadids><iothread id='١'/></iothreadids>",
            "<iothread id>: not a number up to 4294967295: '١'",
        ),
        (
            "<iothreadids><iothread id='4294967296'/></iothreadids>",
            "<iothread id>: not a number up to",
        ),
        ("<vcpu>٢</vcpu>", "<vcpu> is not a number of threads: '٢'"),
        (f"<vcpu>{'1' * 100_000}</vcpu>", "<vcpu> is not a number of threads: '111"),
        ("<vcpu cpuset='8'>1</vcpu>", "<vcpu cpuset='8'> names no CPU of this host"),
        (
            _CPUTUNE.format("<emulatorpin cpuset='4'/><vcpupin vcpu='0' cpuset='9'/>"),
            "<vcpupin cpuset='9'> names no CPU",
        ),
        ("<vcpu cpuset='1-99999'>1</vcpu>", "<vcpu cpuset>: not a list of CPUs: '1-99999'"),
        ("<vcpu>many</vcpu>", "<vcpu> is not a number of threads: 'many'"),
        ("<vcpu>513</vcpu>", "<vcpu> is not a number of threads: '513'"),
        ("<vcpu>1</vcpu><iothreads>99999999</iothreads>", "<iothreads> is not a number of threads"),
        ("<vcpu>1</vcpu><vcpu>2</vcpu>", "more than one <vcpu>"),
        ("<cputune/><cputune/>", "more than one <cputune>"),
        ("<numatune/><numatune/>", "more than one <numatune>"),
    ],
)
def test_pins_that_cannot_be(inside: str, why: str) -> None:
    with pytest.raises((ResolveError, DomainXMLError)) as caught:
        resolved(domain(inside))
    assert why in one_line(caught.value)


def _phone(**cpus: str) -> HostProfile:
    """A host of three kinds, each bigger than the last."""
    sizes = zip((485, 800, 1024), cpus.values())
    return RK3588.replace(
        clusters=tuple(
            A53.replace(midr=A53.midr + number, capacity=capacity, cpus=text)
            for number, (capacity, text) in enumerate(sizes)
        )
    )


_PHONE = {"little": "0-3", "big": "4-6", "prime": "7"}


@pytest.mark.parametrize(
    ("cpus", "vcpus", "expected"),
    [
        (_PHONE, 1, "7"),
        (_PHONE, 2, "4-6"),
        (_PHONE, 3, "4-6"),
        (_PHONE, 4, "0-3"),
        (_PHONE, 5, "0-3"),  # none has as many
        ({**_PHONE, "prime": "7-10"}, 4, "7-10"),
        ({**_PHONE, "prime": "7-10"}, 5, "7-10"),  # two of the most CPUs: the bigger
        ({"little": "0", "big": "1", "prime": "2"}, 4, "2"),
    ],
)
def test_the_biggest_cluster_has_room_for_the_guest(
    cpus: dict[str, str], vcpus: int, expected: str
) -> None:
    here, source = _phone(**cpus), domain(f"<vcpu>{vcpus}</vcpu>")
    assert (pinning_of(resolved(source, here)) or pytest.fail("not pinned")).cpus == expected
    plugged = domain(f"<vcpu current='1'>{vcpus}</vcpu>")
    assert (pinning_of(resolved(plugged, here)) or pytest.fail("not pinned")).cpus == expected
    for name, cluster in (
        ("smallest", here.clusters[0]),
        (here.clusters[2].midr, here.clusters[2]),
    ):
        chosen = pinning_of(resolved(source, here, Policy(cluster=name)))
        assert (chosen or pytest.fail("not pinned")).cpus == cluster.cpus, "who names one gets it"


def test_clusters_of_one_part_have_names_of_their_own() -> None:
    """Two sockets of one MIDR and two REVIDRs, and two revisions of one part."""
    sockets = A72.replace(cpus="0-3", revidr=0x1C7), A72.replace(cpus="4-11", revidr=0)
    here = RK3399.replace(clusters=(*sockets, A53, A53.replace(cpus="20", midr=A53.midr + 1)))
    here = here.replace(clusters=(*here.clusters, A53.replace(cpus="21", midr=0, part="")))
    names = [here.name_of(cluster) for cluster in here.clusters]
    assert names == [
        "Cortex-A72 r0p2 (REVIDR 0x1c7)",
        "Cortex-A72 r0p2 (REVIDR 0x0)",
        "Cortex-A53 r0p4",
        "Cortex-A53 r0p5",
        "0x0",
    ]
    assert [RK3399.name_of(cluster) for cluster in RK3399.clusters] == ["Cortex-A53", "Cortex-A72"]
    with pytest.raises(ResolveError, match=r"0-3 Cortex-A72 r0p2 \(REVIDR 0x1c7\), 4-11 Cortex-A7"):
        resolved(domain("<vcpu cpuset='99'>1</vcpu>"), here)
    for vcpus, expected in ((2, "0-3"), (8, "4-11")):
        chosen = pinning_of(
            resolved(domain(f"<vcpu>{vcpus}</vcpu>"), here, Policy(cluster=A72.midr))
        )
        assert (chosen or pytest.fail("not pinned")).cpus == expected, "of one MIDR that with room"


def test_one_resolver_has_an_answer_for_every_size() -> None:
    """Resolvers are kept for many domains."""
    resolver = Resolver(_phone(**_PHONE), Policy())
    for vcpus, cpus in ((1, "7"), (4, "0-3"), (1, "7")):
        root = parse(resolver.resolve(domain(f"<vcpu>{vcpus}</vcpu>")))
        assert (pinning_of(root) or pytest.fail("not pinned")).cpus == cpus


def test_a_guest_that_is_bigger_than_its_cluster_is_told() -> None:
    said: list[str] = []
    resolver = Resolver(RK3399, Policy(), advise=said.append)
    resolver.resolve(domain("<vcpu>2</vcpu>"))
    assert said == []
    resolver.resolve(domain("<vcpu>8</vcpu>"))
    assert said == [
        "guest has 8 vCPUs, and the cluster that it is pinned to 4 CPUs (0-3): they share them"
    ]


# -- guests that may run anywhere ----------------------------------------------------------------

STRADDLING = "<vcpu cpuset='3-4'>1</vcpu>"


def _one_target(here: HostProfile, kernel: str) -> HostProfile:
    """The same host with a kernel that makes vCPUs of target 5 on all its CPUs."""
    clusters = [
        cluster.replace(
            target=5, models={}, vcpus=tuple(vcpu.replace(number=5) for vcpu in cluster.vcpus)
        )
        for cluster in here.clusters
    ]
    return here.replace(kernel=kernel, clusters=tuple(clusters))


def _with_register(here: HostProfile, name: str, value: int) -> HostProfile:
    """The same host with another value of a register on the last cluster."""
    *others, last = here.clusters
    vcpus = tuple(vcpu.replace(registers={**vcpu.registers, name: value}) for vcpu in last.vcpus)
    return here.replace(clusters=(*others, last.replace(vcpus=vcpus)))


_CACHES = "CCSIDR_L1D is 0x"


@pytest.mark.parametrize(
    ("here", "why"),
    [
        pytest.param(RK3399, "KVM makes no vCPU of target 4 on the others", id="RK3399, 5.10"),
        pytest.param(
            RK3399.replace(kernel="6.5.0"),
            "KVM makes no vCPU of target 4 on the others",
            id="RK3399, 6.5",
        ),
        pytest.param(_one_target(RK3399, "6.6.0"), "", id="RK3399, 6.6"),
        pytest.param(
            _one_target(RK3399, "6.2.0"), _CACHES, id="one target, caches that differ, 6.2"
        ),
        pytest.param(RK3588, _CACHES, id="RK3588, 6.1"),
        pytest.param(RK3588.replace(kernel="6.2.16"), _CACHES, id="RK3588, 6.2"),
        pytest.param(RK3588.replace(kernel="6.3.0"), "", id="RK3588, 6.3"),
        pytest.param(RK3588.replace(kernel="6.12.9"), "", id="RK3588, 6.12"),
        pytest.param(
            _with_register(RK3588.replace(kernel="6.12.9"), "MIDR_EL1", RK3588.clusters[1].midr),
            "MIDR_EL1.",
            id="another MIDR_EL1",
        ),
        pytest.param(
            _with_register(RK3588.replace(kernel="6.12.9"), "ID_AA64ISAR0_EL1", 0),
            "ID_AA64ISAR0_EL1.",
            id="another ID register",
        ),
    ],
)
@pytest.mark.parametrize("by", ["policy", "pins"])
def test_where_a_guest_must_be_pinned(here: HostProfile, why: str, by: str) -> None:
    """By the kernel's version: what each of them can do with vCPUs on clusters that differ."""
    said: list[str] = []
    source = domain(STRADDLING if by == "pins" else "", "<pmu state='off'/>")
    resolver = Resolver(here, ALL if by == "policy" else Policy(), advise=said.append)
    if why:
        with pytest.raises(ResolveError) as caught:
            resolver.resolve(source)
        assert f"may run on CPUs of several kinds ({here.clusters[0].cpus} " in str(caught.value)
        assert why in one_line(caught.value)
        assert ("cluster: biggest" in caught.value.hint) == (by == "policy")
        return
    once = resolver.resolve(source)
    assert restoring.restore(once, parse(once)) == source
    root = parse(once)
    assert pinning_of(root) is None
    assert written(root) == (["vcpu 3-4"] if by == "pins" else [])
    target = record.read(record.find(root) or pytest.fail("no record")).target
    assert (target.model, target.roams, "pmu_v3" in target.features) == ("host", True, False)
    assert len(said) == 1
    assert said[0].startswith("guest may run on CPUs of several kinds (0-3 Cortex-A5")
    # And it is the guest that each of the clusters takes.
    for cluster in here.clusters:
        findings = check(target, here.replace(clusters=(cluster,)))
        assert not [finding for finding in findings if finding.severity == REFUSES]


@pytest.mark.parametrize(
    ("inside", "pmu", "policy", "has_pmu"),
    [
        ("", "", ALL, False),
        ("", "<pmu state='on'/>", ALL, None),
        ("", "<pmu state='off'/>", ALL, False),
        ("", "", Policy(cluster="all", pmu=True), None),
        (STRADDLING, "", Policy(), None),
        (STRADDLING, "<pmu state='on'/>", Policy(), None),
        (STRADDLING, "<pmu state='off'/>", Policy(), False),
        (STRADDLING, "", Policy(pmu=False), False),
        (STRADDLING, "", ALL, False),
        ("<vcpu cpuset='4'>1</vcpu>", "", ALL, True),
    ],
)
def test_a_pmu_does_not_roam(inside: str, pmu: str, policy: Policy, has_pmu: bool | None) -> None:
    here = RK3588.replace(kernel="6.12.9")
    if has_pmu is None:
        with pytest.raises(ResolveError, match=r"and a PMU counts on one \(hint: turn it off"):
            resolved(domain(inside, pmu), here, policy)
        return
    state = resolved(domain(inside, pmu), here, policy).find("features/pmu")
    assert state is not None
    assert state.attributes.get("state", "on") == ("on" if has_pmu else "off")


# -- on other hosts ------------------------------------------------------------------------------

_LITTLE, _BIG, _PRIME = 0x410FD034, 0x410FD083, 0x411FD480


def clusters(**cpus: str) -> list[CpuCluster]:
    midrs = {"little": _LITTLE, "big": _BIG, "prime": _PRIME}
    return [CpuCluster(cpulist.parse(text), midrs[name], 0) for name, text in cpus.items()]


_ALPHA, _BETA = clusters(little="0-3", big="4-5"), clusters(big="0-1", little="2-5")


def pinned(inside: str = "<vcpu>2</vcpu>") -> bytes:
    """A guest of an RK3399 with a newer A72, whose CPUs 4 and 5 are the big ones."""
    return Resolver(RK3399.replace(clusters=(A53, A72.replace(midr=_BIG))), Policy()).resolve(
        domain(inside)
    )


def reconcile_pins(
    xml: bytes, here: list[CpuCluster], movable: bool = True
) -> tuple[bytes, tuple[int, ...], list[str]]:
    root = parse(xml)
    recorded = record.read(record.find(root) or pytest.fail("no record"))
    after, cpus, findings = arrival.reconcile_pins(xml, root, recorded, here, movable)
    return after, cpus, [line(finding) for finding in findings]


def test_a_pin_of_a_vcpu_that_is_not_there_is_no_obstacle() -> None:
    xml = pinned().replace(b"</cputune>", b"<vcpupin vcpu='07' cpuset='0'/></cputune>")
    for movable in (True, False):
        assert reconcile_pins(xml, _ALPHA, movable) == (xml, (4, 5), [])


def test_pins_move_to_the_same_cluster_and_back() -> None:
    xml = pinned(
        "<vcpu>3</vcpu><cputune><vcpupin vcpu='0' cpuset='5'/><shares>9</shares></cputune>"
    )
    there, cpus, findings = reconcile_pins(xml, _BETA)
    assert (cpus, findings) == ((0, 1), [])
    root = parse(there)
    assert written(root) == [
        "vcpu 0-1",
        "vcpupin 0 1",
        "vcpupin 1 0-1",
        "vcpupin 2 0-1",
        "emulatorpin 0-1",
    ]
    assert pinning_of(root) == Pinning(_BIG, 0, "0-1")
    assert reconcile_pins(there, _BETA, movable=False) == (there, (0, 1), [])
    assert reconcile_pins(there, _ALPHA) == (xml, (4, 5), [])


@pytest.mark.parametrize(
    ("here", "cpuset"),
    [
        (_ALPHA, "4-5"),
        (
            clusters(big="4-7", little="0-3"),
            "4-5",
        ),  # there is more room, and nothing that must change
        (clusters(big="4", little="0-3"), "4-5"),  # CPU 5 is offline
        (clusters(big="0-7"), "4-5"),
        (clusters(big="0-3"), "0-3"),
        (clusters(big="5-6", little="0-4"), "5-6"),
        (clusters(little="0-3", prime="4", big="5-7"), "5-7"),
        (clusters(big="2", little="0-1,3-5"), "2"),
    ],
)
def test_only_what_must_change_does(here: list[CpuCluster], cpuset: str) -> None:
    xml = pinned()
    there, _, findings = reconcile_pins(xml, here)
    assert findings == []
    assert {pin.attributes["cpuset"] for pin in pins.pins_of(parse(there))} == {cpuset}
    assert (there == xml) is (cpuset == "4-5")
    assert bool(reconcile_pins(xml, here, movable=False)[2]) is (there != xml)


@pytest.mark.parametrize("movable", [True, False])
def test_as_many_pins_as_there_can_be_take_no_time(movable: bool) -> None:
    """Each of all the CPUs that libvirt knows, and no two written alike; and so says the record."""
    extra = [f"<vcpupin vcpu='{number}' cpuset='0-16383,{number}'/>" for number in range(2, 512)]
    extra += [
        f"<iothreadpin iothread='{number}' cpuset='0-{16383 - number}'/>"
        for number in range(1, 513)
    ]
    xml = (
        pinned()
        .replace(b"cpus='4-5'", b"cpus='0-16383'")
        .replace(b">2</vcpu>", b">512</vcpu>")
        .replace(b"</cputune>", "".join(extra).encode() + b"</cputune>")
    )
    start = time.process_time()
    after, _, findings = reconcile_pins(xml, _ALPHA, movable)
    assert time.process_time() - start < 10
    assert bool(findings) is not movable
    assert (after == xml) is not movable


@pytest.mark.parametrize("movable", [True, False])
def test_pins_that_nobody_can_move(movable: bool) -> None:
    """Those that were edited since: to other CPUs, or away."""
    elsewhere = pinned().replace(b"<emulatorpin cpuset='4-5'/>", b"<emulatorpin cpuset='0'/>")
    findings = reconcile_pins(elsewhere, _ALPHA, movable)[2]
    assert len(findings) == 1
    assert findings[0].startswith(
        "pinning (the CPUs of <emulatorpin>): in the XML 0, here 4-5, of MIDR 0x410fd083; refuses: "
    )
    assert findings[0].endswith("remedy: kvmarm refresh DOMAIN")
    away = pinned().replace(b"<vcpu placement='static' cpuset='4-5'>", b"<vcpu>")
    assert reconcile_pins(away, _ALPHA, movable)[2][0].startswith(
        "pinning (the CPUs of <vcpu cpuset>): in the XML none, here 4-5"
    )


def test_a_host_without_such_cpus() -> None:
    pinning = Pinning(_BIG, 0, "4-5")
    for here, local in (
        (clusters(little="0-3"), "0x410fd034"),
        (clusters(little="0-3", prime="4"), "0x410fd034, 0x411fd480"),
        ([], "not told by sysfs"),
    ):
        assert reconcile_pins(pinned(), here) == (pinned(), (), [])
        (finding,) = arrival.with_cluster([], pinning, here)
        assert tuple(
            texts(finding)[name] for name in ("subject", "recorded", "local", "severity")
        ) == (
            "cluster",
            "MIDR 0x410fd083",
            local,
            REFUSES,
        )
    assert arrival.with_cluster([], pinning, _BETA) == []


@pytest.mark.parametrize(
    ("revidr", "here", "found"),
    [
        (1, (0, 1), 1),
        (1, (0,), 0),
        (1, (0, 2), None),
        (None, (0,), 0),
        (None, (None,), 0),
        (0, (None,), 0),
        (None, (0, 1), None),
    ],
)
def test_revidr_tells_clusters_of_one_midr_apart(
    revidr: int | None, here: tuple[int | None, ...], found: int | None
) -> None:
    candidates = [CpuCluster((cpu,), _BIG, other) for cpu, other in enumerate(here)]
    cluster = pins.find_cluster(Pinning(_BIG, revidr, "0"), candidates)
    assert (cluster.cpus[0] if cluster else None) == found


def test_cpus_of_an_unknown_kind_are_a_kind() -> None:
    """A guest that may run on them may see its CPU change, and one that is pinned is not theirs."""
    here = [CpuCluster((0, 1), _BIG, 0), CpuCluster((2, 3), None, None)]
    target = record.read(record.find(parse(pinned())) or pytest.fail("no record")).target
    anywhere = target.replace(pinning=None)
    assert arrival.kinds_to_ask(anywhere, here, ()) == [(0, 1), (2, 3)]
    cpus, [finding] = arrival.place(anywhere, here)
    assert (cpus, finding.kind) == ((), "cluster-open")
    assert finding.values["local"] == ("0-1 of MIDR 0x410fd083", "2-3 of an unknown kind")
    assert arrival.with_cluster([], target.pinning, here) == []
    [missing] = arrival.with_cluster([], target.pinning, here[1:])
    assert texts(missing)["local"] == "not told by sysfs"


_numbered = st.sets(st.integers(0, 63), min_size=1, max_size=8).map(
    lambda cpus: tuple(sorted(cpus))
)


@given(st.data())
def test_laws_of_moving(data: st.DataObject) -> None:
    old, new = data.draw(_numbered), data.draw(_numbered)
    part = tuple(sorted(data.draw(st.sets(st.sampled_from(old), min_size=1))))
    move, mask = arrival.Move(old, new), cpulist.bits(part)
    there = move.mask(mask)
    assert there
    assert not there & ~cpulist.bits(new)
    assert move.mask(cpulist.bits(old)) == cpulist.bits(new)
    assert arrival.Move(old, old).mask(mask) == mask
    if len(old) == len(new):
        assert arrival.Move(new, old).mask(there) == mask
    stranger = 1 << 64
    assert move.mask(mask | stranger) == mask | stranger


@given(
    st.lists(st.permutations(range(8)), min_size=1, max_size=4), st.sampled_from(["4", "5", "4-5"])
)
def test_a_guest_finds_its_cpus_on_every_host(hosts: list[list[int]], cpuset: str) -> None:
    """Through hosts whose two big CPUs have any numbers."""
    xml = pinned(f"<vcpu>2</vcpu><cputune><vcpupin vcpu='1' cpuset='{cpuset}'/></cputune>")
    for order in hosts:
        big, little = tuple(sorted(order[:2])), tuple(sorted(order[2:]))
        xml, cpus, findings = reconcile_pins(
            xml, [CpuCluster(little, _LITTLE, 0), CpuCluster(big, _BIG, 0)]
        )
        assert (cpus, findings) == (big, [])
        for pin in pins.pins_of(parse(xml)):
            assert pins.cpus_of(pin) & cpulist.bits(big)
            assert not pins.cpus_of(pin) & cpulist.bits(little)


# -- home again ----------------------------------------------------------------------------------

_OFFLINE = 12  # a CPU of no cluster


def _board(big: list[int], order: list[int]) -> list[CpuCluster]:
    """A board of twelve CPUs, of which these are big."""
    little = sorted({*order} - {*big})
    return [
        CpuCluster(tuple(little), _LITTLE, 0),
        CpuCluster(tuple(sorted(big)), _BIG, 0),
    ]


_boards = st.tuples(st.permutations(range(12)), st.integers(1, 8)).map(
    lambda drawn: _board(drawn[0][: drawn[1]], drawn[0])
)


@st.composite
def _cpusets(draw: st.DrawFn, cpus: tuple[int, ...]) -> str:
    """A part of some CPUs, as somebody may write it; perhaps with one that is offline."""
    part = draw(st.lists(st.sampled_from(cpus), min_size=1, unique=True))
    part += [_OFFLINE] if draw(st.integers(0, 9)) == 0 else []
    plain = ",".join(map(str, part))
    left_out = sorted({*range(min(part), max(part) + 1)} - {*part})
    with_holes = "".join([f"{min(part)}-{max(part)}", *(f",^{cpu}" for cpu in left_out)])
    return draw(st.sampled_from([plain, with_holes, cpulist.write(tuple(sorted(part)))]))


@st.composite
def _guests(draw: st.DrawFn, home: list[CpuCluster]) -> bytes:
    """A guest that is pinned to the big CPUs of a board, as libvirt has it there."""
    cpus = home[1].cpus
    threads = ["vcpupin vcpu='0'", "vcpupin vcpu='1'", "emulatorpin", "iothreadpin iothread='1'"]
    written = "".join(
        f"<{thread} cpuset={quote}{draw(_cpusets(cpus))}{quote}/>"
        for thread in draw(st.lists(st.sampled_from(threads), unique=True))
        for quote in [draw(st.sampled_from("'\""))]
    )
    inside = (
        f"<vcpu placement='static' cpuset='{draw(_cpusets(cpus))}'>2</vcpu><iothreads>1</iothreads>"
        f"<cputune>{written}<shares>9</shares></cputune>"
    )
    here = RK3399.replace(
        clusters=(
            A53.replace(cpus=cpulist.write(home[0].cpus)),
            A72.replace(midr=_BIG, cpus=cpulist.write(cpus)),
        )
    )
    return Resolver(here, Policy()).resolve(domain(inside))


def _by_libvirt(xml: bytes) -> bytes:
    """The pins as libvirt writes them: numbers ascending, in ranges."""
    edits = Edits(xml)
    for pin in pins.pins_of(parse(xml)):
        text = cpulist.write(cpulist.parse(pin.attributes["cpuset"]))
        edits.replace(pin.start, pin.body_start, pin.tag_with(cpuset=text))
    return edits.apply()


@given(st.data())
def test_law_a_round_trip_brings_the_pins_home(data: st.DataObject) -> None:
    """Over boards that have other numbers for its cluster, and more or fewer CPUs in it."""
    home = data.draw(_boards, "home")
    xml = data.draw(_guests(home), "guest")
    assert reconcile_pins(xml, home) == (xml, home[1].cpus, []), "at home nothing is moved"
    away = xml
    for board in data.draw(st.lists(_boards, min_size=1, max_size=3), "away"):
        away, cpus, findings = reconcile_pins(away, board)
        assume(findings == [])  # only a pin that names an offline CPU has any
        assert cpus == board[1].cpus
        if home_of(away):
            away = _by_libvirt(away)
        assert reconcile_pins(away, board, movable=False) == (away, cpus, [])
    assert reconcile_pins(away, home) == (xml, home[1].cpus, [])


def home_of(xml: bytes) -> record.Home | None:
    return record.read(record.find(parse(xml)) or pytest.fail("no record")).home


def test_what_the_record_keeps_of_home() -> None:
    """Through a board whose cluster has fewer CPUs, and one that has more."""
    xml = pinned(
        "<vcpu>2</vcpu><cputune><vcpupin vcpu='0' cpuset='4'/><vcpupin vcpu='1' cpuset='5'/>"
        "<shares>9</shares></cputune>"
    )
    assert home_of(xml) is None
    small, large = clusters(big="0", little="1-5"), clusters(little="0-3,5", big="6-9")
    there, _, findings = reconcile_pins(xml, small)
    assert findings == []
    assert written(parse(there)) == ["vcpu 0", "vcpupin 0 0", "vcpupin 1 0", "emulatorpin 0"]
    assert home_of(there) == record.Home(
        "4-5",
        "4-5",
        (
            b"<vcpupin vcpu='0' cpuset='4'/>",
            b"<vcpupin vcpu='1' cpuset='5'/>",
            b"<emulatorpin cpuset='4-5'/>",
        ),
    )
    further, _, findings = reconcile_pins(there, large)
    assert findings == []
    assert written(parse(further)) == ["vcpu 6-9", "vcpupin 0 6", "vcpupin 1 7", "emulatorpin 6-9"]
    assert home_of(further) == home_of(there)
    assert reconcile_pins(further, _ALPHA) == (xml, (4, 5), [])
    # What is asked for is not taken back with them.
    back = restoring.restore(further, parse(further))
    back = back.replace(b"cpuset='7'", b"cpuset='0'").replace(b"cpuset='6'", b"cpuset='0'")
    assert restoring.restore(there, parse(there)) == back


def test_pins_that_were_changed_away_from_home_are_moved_on() -> None:
    """And the others come home all the same."""
    xml = pinned(
        "<vcpu current='1'>3</vcpu><cputune><vcpupin vcpu='0' cpuset='4'/>"
        "<vcpupin vcpu='1' cpuset='4'/><vcpupin vcpu='2' cpuset='4'/></cputune>"
    )
    there = reconcile_pins(xml, _BETA)[0]
    edited = there.replace(b"vcpupin vcpu='1' cpuset='0'", b"vcpupin vcpu='1' cpuset='1'")
    edited = edited.replace(b"<vcpupin vcpu='2' cpuset='0'/>", b"").replace(
        b"current='1'", b"current='2'"
    )
    back, cpus, findings = reconcile_pins(edited, _ALPHA)
    assert (cpus, findings) == ((4, 5), [])
    assert written(parse(back)) == ["vcpu 4-5", "vcpupin 0 4", "vcpupin 1 5", "emulatorpin 4-5"]
    assert b"current='2'" in back
    assert home_of(back) is None


def test_a_record_that_says_otherwise_than_its_domain_moves_nothing_wrong() -> None:
    """A record is anybody's: what it has for home is not what the pins come from."""
    there = reconcile_pins(pinned(), _BETA)[0]
    root = parse(there)
    recorded = record.read(record.find(root) or pytest.fail("no record"))
    forged = recorded.replace(
        home=record.Home("4-5", "0-3", (b"<vcpupin vcpu='0' cpuset='0-16383'/>",))
    )
    xml = rewrite.replace_record(there, root, forged)
    assert reconcile_pins(xml, _BETA) == (xml, (0, 1), [])
    back = reconcile_pins(xml, _ALPHA)[0]
    assert {pin.attributes["cpuset"] for pin in pins.pins_of(parse(back))} == {"4-5"}


# -- guests without a cluster --------------------------------------------------------------------


def _unpinned(inside: str = "<vcpu>2</vcpu>", roams: bool = False) -> bytes:
    """A guest of a host that has only the RK3399's big CPUs."""
    alone = RK3399.replace(clusters=(A72.replace(cpus="0-1"),))
    xml = Resolver(alone, Policy()).resolve(domain(inside))
    root = parse(xml)
    recorded = record.read(record.find(root) or pytest.fail("no record"))
    target = recorded.target.replace(roams=roams)
    return rewrite.replace_record(xml, root, recorded.replace(target=target))


_OPEN = (
    "pinning (the CPUs of <vcpu cpuset>): in the XML {}, here 0-3 of MIDR 0x410fd034, 4-5 of MIDR"
    " 0x410fd083; refuses: its threads would run on CPUs of several kinds"
)


@pytest.mark.parametrize(
    ("inside", "here", "cpus", "open_as"),
    [
        ("<vcpu>2</vcpu>", _ALPHA, (), "none"),
        ("<vcpu cpuset='3-4'>2</vcpu>", _ALPHA, (), "3-4"),
        ("<vcpu cpuset='4-5'>2</vcpu>", _ALPHA, (4, 5), ""),
        ("<vcpu cpuset='5,9'>2</vcpu>", _ALPHA, (4, 5), ""),  # 9 is offline
        ("<vcpu cpuset='0-3'>2</vcpu>", _ALPHA, (0, 1, 2, 3), ""),
        ("<vcpu placement='auto' cpuset='4'>2</vcpu>", _ALPHA, (), "none"),
        # A thread without a pin has the cpuset of <vcpu>, or all CPUs.
        (_CPUTUNE.format("<vcpupin vcpu='0' cpuset='4'/>"), _ALPHA, (), "none"),
        (
            ("<vcpu cpuset='4-5'>2</vcpu><cputune><vcpupin vcpu='0' cpuset='3'/></cputune>"),
            _ALPHA,
            (),
            "4-5",
        ),
        ("<vcpu>2</vcpu>", clusters(big="0-7"), (), ""),
        ("<vcpu>2</vcpu>", [], (), ""),  # sysfs does not tell
    ],
)
def test_a_guest_that_would_change_its_cpu(
    inside: str, here: list[CpuCluster], cpus: tuple[int, ...], open_as: str
) -> None:
    xml = _unpinned(inside)
    for movable in (True, False):
        after, place, findings = reconcile_pins(xml, here, movable)
        assert (after, place) == (xml, cpus)
        if open_as:
            assert len(findings) == 1
            assert findings[0].startswith(_OPEN.format(open_as))
        else:
            assert findings == []
        chosen = _unpinned(inside, roams=True)
        assert reconcile_pins(chosen, here, movable) == (chosen, cpus, [])


def test_check_by_profile_sees_guests_without_a_cluster() -> None:
    recorded = record.read(record.find(parse(_unpinned())) or pytest.fail("no record"))
    target = recorded.target
    assert [finding.kind for finding in check(target, RK3399)] == ["cluster-open"]
    assert check(target, RK3399, (4, 5)) == []
    assert any(finding.severity == REFUSES for finding in check(target, RK3399, (0, 1, 2, 3)))
    # One that roams has to fit all.
    assert any(finding.severity == REFUSES for finding in check(target.replace(roams=True), RK3399))
    wide = RK3588.replace(kernel="6.12.9")
    root = resolved(domain("", "<pmu state='off'/>"), wide, ALL)
    roaming = record.read(record.find(root) or pytest.fail("no record")).target
    assert not [f for f in check(roaming, wide) if f.severity == REFUSES]


def test_pins_that_were_edited_are_seen_in_a_profile() -> None:
    xml = Resolver(RK3399, Policy()).resolve(domain())
    edited = xml.replace(b"<emulatorpin cpuset='4-5'/>", b"<emulatorpin cpuset='0'/>")
    for source, kinds in ((xml, []), (edited, ["pin-elsewhere"])):
        root = parse(source)
        recorded = record.read(record.find(root) or pytest.fail("no record"))
        findings = arrival.reconcile_pins(source, root, recorded, counted(RK3399), True)[2]
        assert [finding.kind for finding in findings] == kinds


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        (RK3399, []),
        (RK3399.replace(clusters=(A72,)), []),
        (RK3399.replace(clusters=(A53,)), ["cluster"]),
    ],
    ids=["same", "only the big ones", "only the little ones"],
)
def test_check_asks_the_cluster_that_the_guest_is_pinned_to(
    here: HostProfile, expected: list[str]
) -> None:
    target = record.read(record.find(resolved(domain())) or pytest.fail("no record")).target
    subjects = [
        texts(finding)["subject"] for finding in check(target, here) if finding.severity == REFUSES
    ]
    assert [subject for subject in subjects if not subject.startswith("CCSIDR")] == expected
    # Not the one that suits it best: the little one has as many counters here, and other caches.
    a53 = record.read(
        record.find(resolved(domain(), RK3399, Policy(cluster="smallest")))
        or pytest.fail("no record")
    ).target
    moved_to_a72 = a53.replace(pinning=Pinning(A72.midr, 0, "4-5"))
    assert check(a53, RK3399) == []
    assert [finding.severity for finding in check(moved_to_a72, RK3399)][:1] == [REFUSES]


# -- the hook ------------------------------------------------------------------------------------


class Board:
    """`hook.verify` in this process, on a played RK3399."""

    def __init__(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self._patch, self._capture, self._root = monkeypatch, capfd, tmp_path
        monkeypatch.setattr(find_clusters, "__defaults__", (tmp_path,))
        monkeypatch.setattr("syslog.syslog", lambda *_: None)
        monkeypatch.setattr("syslog.openlog", lambda *_: None)
        self.start(RK3399)

    def start(self, profile: HostProfile) -> None:
        self.profile = profile
        write_host(self._root, profile)
        cpus = [cpu for cluster in profile.clusters for cpu in numbers(cluster.cpus)]
        self.scheduler = Scheduler(self._patch, cpus)
        kernel = self.kernel = FakeKernel.from_profile(profile)
        name = os.uname_result(("Linux", profile.name, profile.kernel, "#1", profile.architecture))
        self._patch.setattr(os, "uname", lambda: name)
        self._patch.setattr(device, "SystemCalls", lambda: kernel)

    def __call__(self, xml: bytes, operation: str) -> tuple[bool, str, str]:
        refused = hook.verify("guest", operation, xml)
        assert not self.kernel.handles, "a file descriptor was left open"
        assert self.scheduler.allowed == self.scheduler.initial, (
            "the thread was left on one cluster"
        )
        out, err = self._capture.readouterr()
        return refused, out, err


@pytest.fixture
def board(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Board:
    return Board(tmp_path, monkeypatch, capfd)


def _renumbered(here: HostProfile) -> HostProfile:
    """The board with its CPUs numbered the other way round."""
    little, big = here.clusters
    return here.replace(clusters=(big.replace(cpus="0-1"), little.replace(cpus="2-5")))


_GUEST = Resolver(RK3399, Policy()).resolve(domain("<vcpu>2</vcpu><memory>524288</memory>"))
_OPERATIONS = ["prepare", "migrate", "restore"]


@pytest.mark.parametrize("operation", _OPERATIONS)
@pytest.mark.parametrize("cluster", ["biggest", "smallest"])
def test_at_home_nothing_is_printed_and_the_guests_own_cpus_are_asked(
    board: Board, operation: str, cluster: str
) -> None:
    """This kernel makes its vCPU on no others."""
    xml = Resolver(RK3399, Policy(cluster=cluster)).resolve(domain())
    assert board(xml, operation) == (False, "", "")
    assert board.scheduler.moves[0] == set(numbers(A72.cpus if cluster == "biggest" else A53.cpus))


@pytest.mark.parametrize("operation", ["migrate", "restore"])
def test_elsewhere_the_pins_are_moved(board: Board, operation: str) -> None:
    board.start(_renumbered(RK3399))
    refused, out, err = board(_GUEST, operation)
    assert (refused, err) == (False, "")
    moved = parse(out.encode())
    assert {pin.attributes["cpuset"] for pin in pins.pins_of(moved)} == {"0-1"}
    assert pinning_of(moved) == Pinning(A72.midr, 0, "0-1")
    assert restoring.restore(out.encode(), moved) == restoring.restore(_GUEST, parse(_GUEST))
    # libvirt then asks of the XML that it was given.
    assert board(out.encode(), "prepare") == (False, "", "")
    assert board.scheduler.moves[0] == {0, 1}
    # And so it is when it comes home.
    board.start(RK3399)
    assert board(out.encode(), operation) == (False, _GUEST.decode(), "")


def test_a_cold_start_on_the_wrong_cpus_is_marked(board: Board) -> None:
    board.start(_renumbered(RK3399))
    refused, out, err = board(_GUEST, "prepare")
    assert (refused, out) == (False, "")
    assert "pinning: in the XML 4-5, here 0-1, of MIDR 0x410fd082" in err
    assert marks.mark_of(_UUID)
    again = Resolver(board.profile, Policy()).resolve(restoring.restore(_GUEST, parse(_GUEST)))
    assert board(again, "prepare") == (False, "", "")
    assert marks.mark_of(_UUID) is None


@pytest.mark.parametrize("operation", _OPERATIONS)
def test_a_host_whose_kernel_says_no_prints_nothing(board: Board, operation: str) -> None:
    board.start(_with_register(_renumbered(RK3399), "ID_AA64ISAR0_EL1", 1))
    xml = Resolver(RK3399, Policy(cluster="smallest")).resolve(domain())
    refused, out, err = board(xml, operation)
    assert (refused, out) == (operation != "prepare", "")
    assert "ID_AA64ISAR0_EL1" in err


@pytest.mark.parametrize("operation", _OPERATIONS)
def test_a_board_without_the_cluster(board: Board, operation: str) -> None:
    board.start(RK3399.replace(clusters=(A53, A72.replace(midr=_PRIME))))
    refused, out, err = board(_GUEST, operation)
    assert (refused, out) == (operation != "prepare", "")
    assert re.search(
        r"cluster( \(.*\))?: recorded MIDR 0x410fd082, here 0x410fd034, 0x411fd480", err
    )


@pytest.mark.parametrize("operation", ["migrate", "restore"])
def test_a_guest_of_a_host_of_one_kind_arrives(board: Board, operation: str) -> None:
    refused, out, err = board(_unpinned(), operation)
    assert (refused, out) == (True, "")
    assert (
        "pinning (the CPUs of <vcpu cpuset>): in the XML none, here 0-3 of MIDR 0x410fd034" in err
    )
    board.scheduler.moves.clear()
    assert board(_unpinned("<vcpu cpuset='4-5'>2</vcpu>"), operation) == (False, "", "")
    assert board.scheduler.moves[0] == {4, 5}
    refused, out, err = board(_unpinned("<vcpu cpuset='0-3'>2</vcpu>"), operation)
    assert (refused, out) == (True, "")
    assert "cpuset" not in err, "the kernel says why"


def test_the_kernels_own_word_on_midr_is_enough(board: Board) -> None:
    board.start(host("trixie-cortex-a57"))
    assert "cluster (" not in board(_GUEST, "migrate")[2]


def test_pins_that_libvirt_cannot_be_told(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes, write: object = os.write) -> int:
        if fd == 1:
            raise OSError(28, "No space left on device")
        return write(fd, data)  # type: ignore[no-any-return, operator]

    board.start(_renumbered(RK3399))
    monkeypatch.setattr(os, "write", full)
    refused, out, err = board(_GUEST, "migrate")
    assert (refused, out) == (True, "")
    assert (
        "its pins are another host's, and libvirt cannot be given others: standard output: No space"
        " left on device" in err
    )


def test_a_policy_that_only_warns_lets_the_pins_be_moved(
    board: Board, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "policy.yaml").write_text("on-migrate: warn\n")
    monkeypatch.setattr(policy_module.for_hook, "__defaults__", (str(tmp_path / "policy.yaml"),))
    there = _renumbered(RK3399)
    board.start(
        there.replace(
            clusters=tuple(c.replace(seen={**c.seen, "CNTFRQ_EL0": 1}) for c in there.clusters)
        )
    )
    refused, out, err = board(_GUEST, "migrate")
    assert (refused, "CNTFRQ_EL0" in err) == (False, True)
    assert "<emulatorpin cpuset='0-1'/>" in out


@pytest.mark.parametrize("operation", ["migrate", "restore"])
@pytest.mark.parametrize("kind", ["cluster-open", "pin-missing", "cluster-missing"])
def test_a_guest_that_is_let_in_on_cpus_of_any_kind_is_marked(
    board: Board, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, operation: str, kind: str
) -> None:
    """What it has is known as little to the hook as to who renews records."""
    (tmp_path / "policy.yaml").write_text("on-migrate: warn\non-restore: warn\n")
    monkeypatch.setattr(policy_module.for_hook, "__defaults__", (str(tmp_path / "policy.yaml"),))
    xml = _GUEST
    if kind == "cluster-open":
        board.scheduler.initial = board.scheduler.allowed = set(numbers(A72.cpus))
        xml = _unpinned()
    elif kind == "pin-missing":
        xml = re.sub(rb"<vcpu [^>]*>", b"<vcpu>", xml)
    else:
        monkeypatch.setattr(find_clusters, "__defaults__", (tmp_path / "nothing",))
        monkeypatch.setattr(board.kernel, "current_cpu", lambda: 4)
    assert board(xml, operation)[:2] == (False, "")
    assert board(xml, "prepare") == (False, "", "")
    mark = marks.mark_of(_UUID) or ""
    assert mark.startswith("it arrived with a record that may not be true here: ")
    assert kind in mark


def test_cpus_that_this_process_may_not_use(board: Board) -> None:
    """libvirt's services may be kept from the CPUs of guests. An old kernel then answers for the
    others: no.
    """
    kept = set(numbers(A53.cpus))
    board.scheduler.initial = board.scheduler.cpuset = board.scheduler.allowed = kept
    refused, _, err = board(_GUEST, "migrate")
    assert refused
    assert "CCSIDR_L1D" in err


def test_sysfs_that_tells_nothing(
    board: Board, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(find_clusters, "__defaults__", (tmp_path / "nothing",))
    refused, out, err = board(_GUEST, "migrate")
    assert (refused, out) == (True, "")
    assert "here not told by sysfs" in err


def test_little_is_imported_for_them() -> None:
    _, modules = _modules(_GUEST.decode())
    assert {
        "kvmarm_plugin.judge.pinning",
        "kvmarm_plugin.domain.pins",
        "kvmarm_plugin.host.cpus",
        "kvmarm_plugin.basics.cpulist",
    } <= modules
    from .test_hook import _TOO_SLOW

    assert not {module.partition(".")[0] for module in modules} & _TOO_SLOW


# -- CPUs that could not be measured --------------------------------------------------------------

_HALF = RK3399.replace(
    name="half",
    clusters=(A53,),
    problems=(
        Problem("cluster 4-5", "this process may not run there: Invalid argument", cpus="4-5"),
    ),
)


def test_nothing_is_resolved_for_a_host_of_which_one_kind_was_measured() -> None:
    """Guests without pins would run on the other, too."""
    with pytest.raises(ResolveError, match="CPUs that could not be measured, cluster 4-5"):
        Resolver(_HALF, Policy())
    for part in ("cluster 0-3, scratch guest", "cluster 0-3", "QEMU"):
        Resolver(_HALF.replace(problems=(Problem(part, "none"),)), Policy())


@pytest.mark.parametrize(
    ("cpuset", "kinds"),
    [("", ["cluster-open"]), ("0-3", []), ("4-5", ["not-known"]), ("3-4", ["cluster-open"])],
)
@pytest.mark.parametrize(
    "problem",
    [
        *_HALF.problems,
        Problem(UNKNOWN_CPUS, "neither sysfs nor /proc/cpuinfo tells MIDR_EL1", cpus="4-5"),
    ],
)
def test_a_guest_may_run_on_what_was_not_measured(
    problem: Problem, cpuset: str, kinds: list[str]
) -> None:
    home, there = _HALF.replace(problems=()), _HALF.replace(problems=(problem,))
    xml = Resolver(home, Policy()).resolve(domain(f"<vcpu cpuset='{cpuset}'>2</vcpu>"))
    root = parse(xml)
    element = record.find(root)
    assert element is not None
    found = record.read(element)
    _, cpus, pinned = arrival.reconcile_pins(xml, root, found, counted(there), movable=True)
    findings = [*pinned, *check(found.target, there, cpus)]
    assert [finding.kind for finding in findings] == kinds


def test_a_guest_that_is_pinned_to_what_was_not_measured() -> None:
    target = Resolver(RK3399, Policy()).target(Wish("aarch64"))
    assert [finding.kind for finding in check(target, _HALF)] == ["not-known"]


@pytest.mark.parametrize("boots", [False, True])
def test_a_guest_that_roams_runs_on_what_was_not_measured(boots: bool) -> None:
    target = Resolver(_HALF.replace(problems=()), Policy()).target(Wish("aarch64"))
    roaming = target.replace(roams=True)
    assert [finding.kind for finding in check(roaming, _HALF, None, boots)] == ["not-known"]
    kept = check(roaming, _HALF, cpulist.parse("0-3"), boots)
    assert [finding.kind for finding in kept] == []
    # It has to run on all that it arrives at, and to start on any.
    other = roaming.replace(registers={**target.registers, "MIDR_EL1": _PRIME})
    kinds = [finding.kind for finding in check(other, _HALF, None, boots)]
    assert kinds == (["not-known"] if boots else ["field-refused-identity"] * len(kinds))


@pytest.mark.parametrize("roams", [False, True])
@pytest.mark.parametrize("boots", [False, True])
@pytest.mark.parametrize(
    ("there", "words", "kind"),
    [
        (_HALF, {"machine": "virt-99.0"}, "machine-unknown"),
        (_HALF.replace(gic_versions=(2,)), {"gic": 3}, "gic-refused-version-2"),
        (_HALF.replace(qemu=None), {}, "no-qemu"),
        (_HALF, {"architecture": "arm", "features": ("psci_0_2",)}, "architecture-other"),
    ],
)
def test_what_no_cpu_of_a_host_can_run_is_refused_whatever_was_measured(
    there: HostProfile, words: dict[str, object], kind: str, boots: bool, roams: bool
) -> None:
    target = Resolver(RK3399, Policy()).target(Wish("aarch64")).replace(**words)
    if roams:
        target = target.replace(roams=True, pinning=None)
    findings = check(target, there, None, boots)
    assert findings[0].kind == kind
    # With another architecture it boots as another guest, of which that is not known.
    open_yet = boots and not findings[0].stops_start
    assert ("not-known" in [finding.kind for finding in findings]) is open_yet


def test_no_pool_has_such_a_host() -> None:
    home = _HALF.replace(name="home", problems=())
    assert baseline([home, _HALF]).pool is None
    assert levelled([home, _HALF], "pool").profile is None
    assert compare([home, _HALF], Policy()).answer is False
