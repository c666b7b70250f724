# SPDX-License-Identifier: LGPL-2.1-or-later
"""What resolves starts: what libvirt or QEMU would refuse is refused before, with what to change,
and what resolves on a host `check` lets start there.
"""

from __future__ import annotations

import re
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.basics.untrusted import libvirt_number
from kvmarm_plugin.cli import main
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.pins import pins_in, thread_of
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.fleet.baseline import baseline
from kvmarm_plugin.judge.by_profile import check, counted
from kvmarm_plugin.judge.contradictions import find_contradictions
from kvmarm_plugin.judge.finding import HARMLESS, Finding
from kvmarm_plugin.judge.pinning import reconcile_pins
from kvmarm_plugin.judge.wording import texts
from kvmarm_plugin.model.board import GIB, most_memory, needed_qemu
from kvmarm_plugin.model.features import OFFERED_BY, PMU
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.model.target import Target
from kvmarm_plugin.resolve.address_space import guest_ipa_bits
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import read_wish, what_emulation_needs
from tests.corpus import HOSTS, TEMPLATES, host, one_line, template

from .domains import domains

# -- hosts ---------------------------------------------------------------------------------------


def with_qemu(here: HostProfile, version: str, **changes: object) -> HostProfile:
    assert here.qemu is not None
    return here.replace(qemu=here.qemu.replace(version=version, **changes))


def without_pmu(here: HostProfile, version: str) -> HostProfile:
    """A host whose KVM has no PMU. What QEMU says of it then follows from its version."""
    clusters = tuple(
        cluster.replace(vcpus=tuple(vcpu for vcpu in cluster.vcpus if not PMU.is_in(vcpu.features)))
        for cluster in here.clusters
    )
    capabilities = {k: v for k, v in here.capabilities.items() if k != OFFERED_BY[PMU.bit]}
    return with_qemu(here.replace(clusters=clusters, capabilities=capabilities), version)


def test_one_kind_of_cpu_without_a_pmu_does_not_matter() -> None:
    """QEMU asks KVM, and that is of the whole host."""
    here = host("trixie-neoverse-n1")
    odd = here.replace(clusters=without_pmu(here, "10.0.13").clusters)
    result, _ = resolved(odd, domain(_PMU_OFF))
    assert refusals(odd, result) == []


@cache
def _variations() -> dict[str, HostProfile]:
    """The corpus, and what ordinary boards have otherwise."""
    found = {name: host(name) for name in HOSTS}
    for name in ("trixie-cortex-a72", "trixie-max", "trixie-neoverse-n1", "hand-made-rk3588"):
        here = host(name)
        found |= {
            f"{name}, GICv2": here.replace(gic_versions=(2,)),
            f"{name}, both GICs": here.replace(gic_versions=(2, 3)),
            f"{name}, 36 bits": here.replace(ipa_bits=36),
            f"{name}, 36 bits, QEMU 6.2": with_qemu(here.replace(ipa_bits=36), "6.2.0"),
            f"{name}, QEMU 6.2": with_qemu(here, "6.2.0"),
            f"{name}, no PMU": without_pmu(here, "10.0.13"),
            f"{name}, no PMU, QEMU 9.1": without_pmu(here, "9.1.0"),
            f"{name}, no PMU, QEMU 9.0": without_pmu(here, "9.0.2"),
            f"{name}, no host": with_qemu(here, "10.0.13", cpu_models=("cortex-a57",)),
        }
    return found


def domain(inside: str = "", cpu: str = "<cpu mode='host-model'/>", type_: str = "") -> bytes:
    type_ = type_ or "arch='aarch64' machine='virt'"
    if "<memory" not in inside:
        inside += "<memory unit='MiB'>512</memory>"
    return (
        f"<domain type='kvm'><name>guest</name>{inside}<os><type {type_}>hvm</type></os>{cpu}"
        "<devices/></domain>"
    ).encode()


def features(**policies: str) -> str:
    inside = "".join(f"<feature policy='{how}' name='{name}'/>" for name, how in policies.items())
    return f"<cpu mode='host-model'>{inside}</cpu>"


def resolved(
    where: HostProfile | str, source: bytes, policy: Policy | None = None
) -> tuple[bytes, Target]:
    here = host(where) if isinstance(where, str) else where
    result = Resolver(here, policy or Policy()).resolve(source)
    element = record.find(parse(result))
    assert element is not None
    return result, record.read(element).target


def refused(where: HostProfile | str, source: bytes, policy: Policy | None = None) -> str:
    with pytest.raises(KvmarmError) as caught:
        resolved(where, source, policy)
    assert caught.value.hint
    return one_line(caught.value)


def refusals(here: HostProfile, result: bytes) -> list[Finding]:
    """Why `check` would not let a resolved domain start."""
    root = parse(result)
    element = record.find(root)
    assert element is not None
    recorded = record.read(element)
    changes = find_contradictions(root, recorded.target)
    _, cpus, pins = reconcile_pins(result, root, recorded, counted(here), movable=False)
    findings = [*changes, *pins, *check(recorded.target, here, cpus, boots=True)]
    return [finding for finding in findings if finding.severity != HARMLESS]


# -- the law -------------------------------------------------------------------------------------

_POLICIES = [
    Policy(),
    Policy(prefer_named=False),
    Policy(pmu=False),
    Policy(sve=False, pauth=False),
    Policy(sve_max_length=256),
    Policy(cluster="all"),
    Policy(cluster="smallest"),
]


@pytest.mark.parametrize("name", _variations())
def test_what_resolves_on_a_host_starts_there_by_its_profile(name: str) -> None:
    here = _variations()[name]
    for policy in _POLICIES:
        for which in TEMPLATES:
            try:
                result = Resolver(here, policy).resolve(template(which))
            except KvmarmError as error:
                one_line(error)
                continue
            assert refusals(here, result) == [], which


@st.composite
def wishes(draw: st.DrawFn) -> bytes:
    """A domain that asks for much that hosts have or lack."""
    names = ["sve", "pauth", *(f"sve{length}" for length in (128, 256, 384, 512, 1024))]
    asked = draw(st.dictionaries(st.sampled_from(names), st.sampled_from(_WAYS), max_size=3))
    inside = draw(st.sampled_from(["", "<vcpu>8</vcpu>", "<vcpu>9</vcpu>", "<vcpu>124</vcpu>"]))
    inside += draw(
        st.sampled_from(
            [
                "",
                "<memory unit='GiB'>60</memory>",
                "<memory unit='GiB'>600</memory>",
                "<memory>1048576</memory><maxMemory slots='16' unit='TiB'>1</maxMemory>",
            ]
        )
    )
    gic = draw(st.sampled_from(["", "<gic version='2'/>", "<gic version='3'/>"]))
    pmu = draw(st.sampled_from(["", "<pmu/>", "<pmu state='off'/>"]))
    type_ = draw(st.sampled_from(["aarch64", "aarch64", "armv7l"]))
    machine = draw(st.sampled_from(["virt", "virt", "virt-7.2", "virt-2.12"]))
    return domain(
        f"{inside}<features>{gic}{pmu}</features>",
        features(**asked),
        f"arch='{type_}' machine='{machine}'",
    )


_WAYS = ("require", "force", "disable", "forbid", "optional")


@given(st.sampled_from(sorted(_variations())), wishes() | domains(), st.sampled_from(_POLICIES))
def test_whatever_is_asked_for_starts_or_is_refused(
    name: str, source: bytes, policy: Policy
) -> None:
    here = _variations()[name]
    try:
        result = Resolver(here, policy).resolve(source)
    except KvmarmError as error:
        one_line(error)
        return
    assert refusals(here, result) == []


def _asked_anew(result: bytes) -> bytes:
    """The CPU that kvmarm wrote, as a user's wish: the record gone, the mode host-model again."""
    root = parse(result)
    element = record.find(root)
    assert element is not None
    source = result.replace(element.text, b"")
    return re.sub(rb"<cpu mode='host-passthrough'", b"<cpu mode='host-model'", source)


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_what_was_written_can_be_asked_for_again(name: str) -> None:
    here = host(name)
    for policy in (Policy(prefer_named=False), Policy(prefer_named=False, sve_max_length=256)):
        for which in TEMPLATES:
            try:
                result, target = resolved(here, template(which), policy)
            except KvmarmError:
                continue
            again, same = resolved(here, _asked_anew(result), Policy(prefer_named=False))
            assert same.replace(unsaid=target.unsaid) == target
            assert refusals(here, again) == []


# -- GIC and vCPUs -------------------------------------------------------------------------------

_A72_GIC_2 = host("trixie-cortex-a72").replace(gic_versions=(2,))


@pytest.mark.parametrize("written", ["", "<gic/>", "<gic version='2'/>", "<gic version='host'/>"])
def test_a_gic_of_version_2_serves_eight_vcpus(written: str) -> None:
    asked = f"<features>{written}</features>"
    assert resolved(_A72_GIC_2, domain(f"<vcpu>8</vcpu>{asked}"))[1].gic == 2
    for vcpus in ("<vcpu>9</vcpu>", "<vcpu current='1'>10</vcpu>", "<vcpu>&#49;0</vcpu>"):
        text = refused(_A72_GIC_2, domain(vcpus + asked))
        assert "vCPUs, and QEMU starts up to 8 with GIC version 2" in text


def test_the_other_gic_serves_more() -> None:
    both = host("trixie-cortex-a72").replace(gic_versions=(2, 3))
    assert resolved(both, domain("<vcpu>10</vcpu>"))[1].gic == 3
    asked = "<vcpu>10</vcpu><features><gic version='{}'/></features>"
    assert "or write <gic version='3'/>" in refused(both, domain(asked.format(2)))
    assert resolved(both, domain(asked.format(3)))[1].gic == 3


def test_redistributors_need_addresses() -> None:
    small = host("trixie-neoverse-n1").replace(ipa_bits=36)
    resolved(small, domain("<vcpu>123</vcpu>"))
    assert "up to 123 where KVM has 36 bits" in refused(small, domain("<vcpu>124</vcpu>"))
    resolved("trixie-neoverse-n1", domain("<vcpu>512</vcpu>"))
    old = "arch='aarch64' machine='virt-2.12'"
    text = refused("trixie-neoverse-n1", domain("<vcpu>256</vcpu>", type_=old))
    assert "up to 255 on virt-2.12" in text


def test_more_vcpus_than_any_machine_has() -> None:
    text = refused("trixie-max", domain("<vcpu>513</vcpu>"))
    assert "has 513 vCPUs, and QEMU starts up to 512 on virt-10.0" in text
    assert text.endswith("(hint: give it 512 at most)")


@pytest.mark.parametrize("count", ["many", "-1", "1.5", ""])
def test_what_is_no_number_of_vcpus_is_libvirts_to_refuse(count: str) -> None:
    source = domain(f"<vcpu>{count}</vcpu>")
    resolved("trixie-max", source)
    # Where there is a pin for each, their number has to be known.
    assert "<vcpu> is not a number of threads" in refused("hand-made-rk3399", source)


def test_a_pool_says_what_the_lowest_of_its_members_costs() -> None:
    rich = host("trixie-cortex-a72").replace(name="rich", gic_versions=(2, 3))
    poor = host("trixie-cortex-a72").replace(name="poor", gic_versions=(2,), ipa_bits=40)
    costs = baseline([rich, poor]).costs
    assert costs[("rich",)] == (
        "GIC 3",
        "more than 8 vCPUs",
        "addresses over 40 bits",
        "more than 1023 GiB of memory",
    )
    assert costs[("poor",)] == ()


def test_a_pool_that_keeps_a_newer_gic_costs_no_vcpus() -> None:
    both = host("trixie-cortex-a72").replace(name="both", gic_versions=(2, 3))
    newer = host("trixie-cortex-a72").replace(name="newer")
    assert baseline([both, newer]).costs[("both",)] == ("GIC 2",)


def test_hosts_whose_qemu_starts_nothing_form_no_pool() -> None:
    small = host("trixie-neoverse-n1").replace(name="small", ipa_bits=36)
    old = with_qemu(small, "6.2.0").replace(name="old")
    result = baseline([small, old])
    assert result.pool is None
    assert any("QEMU 6.2" in str(obstacle) for obstacle in result.plan.obstacles)


# -- the PMU -------------------------------------------------------------------------------------

_PMU_OFF = "<features><pmu state='off'/></features>"


@pytest.mark.parametrize("version", ["9.1.0", "9.2.4", "10.0.13", "11.1.3"])
def test_a_pmu_that_is_not_there_is_not_turned_off(version: str) -> None:
    here = without_pmu(host("trixie-neoverse-n1"), version)
    assert "KVM on host trixie-neoverse-n1 has no PMU" in refused(here, domain(_PMU_OFF))
    assert "(hint: remove <pmu>)" in refused(here, domain(_PMU_OFF))
    result, target = resolved(here, domain())
    assert b"<pmu" not in result
    assert refusals(here, result) == []
    assert not PMU.is_in(target.features)


def test_without_a_pmu_the_element_goes() -> None:
    here = without_pmu(host("trixie-neoverse-n1"), "10.0.13")
    for written in ("<pmu/>", "<pmu state='on'/>", "<pmu state='off'/>"):
        text = refused(here, domain(f"<features>{written}</features>"))
        assert text.endswith("(hint: remove <pmu>)")
    assert refused(here, domain(), Policy(pmu=True)).endswith("(hint: turn a PMU off there)")


@pytest.mark.parametrize("version", ["7.2.22", "8.2.10", "9.0.2"])
def test_older_qemu_turns_off_what_is_not_there(version: str) -> None:
    here = without_pmu(host("trixie-neoverse-n1"), version)
    result, _ = resolved(here, domain(_PMU_OFF))
    assert refusals(here, result) == []


def test_qemu_for_32_bit_hosts_has_no_word_for_the_pmu() -> None:
    for source in (template("armv7l").replace(b"<cpu", _PMU_OFF.encode() + b"<cpu", 1),):
        if b"<features>" in template("armv7l"):
            source = template("armv7l").replace(b"<features>", b"<features><pmu state='off'/>")
        text = refused("hand-made-a15-3.10", source, Policy(prefer_named=False))
        assert "(hint: remove <pmu>)" in text


# -- QEMU ----------------------------------------------------------------------------------------


def test_a_qemu_without_the_cpu_host() -> None:
    here = host("trixie-neoverse-n1")
    models = tuple(model for model in here.qemu.cpu_models if model != "host") if here.qemu else ()
    for broken in (
        with_qemu(here, "10.0.13", cpu_models=models),
        with_qemu(here, "10.0.13", host_properties={}),
    ):
        assert "QEMU 10.0.13 on host trixie-neoverse-n1 has no CPU 'host'" in refused(
            broken, domain()
        )


def test_a_named_model_that_qemu_does_not_have_is_not_written() -> None:
    here = host("trixie-cortex-a57")
    assert resolved(here, domain(), Policy(prefer_named=True))[1].model == "cortex-a57"
    other = with_qemu(here, "10.0.13", cpu_models=("host",))
    assert resolved(other, domain(), Policy(prefer_named=True))[1].model == "host"


def test_qemu_without_kvm_for_32_bit_hosts() -> None:
    here = host("hand-made-a15-3.10")
    for version in ("5.2.0", "7.2.22"):
        for named in (True, False):
            text = refused(with_qemu(here, version), template("armv7l"), Policy(prefer_named=named))
            assert f"QEMU {version} has no KVM for 32-bit hosts" in text
    resolved(with_qemu(here, "5.1.0"), template("armv7l"))


@pytest.mark.parametrize(
    ("version", "ipa_bits", "memory", "bits"),
    [
        ("6.2.0", 36, 1, 0),
        ("5.2.0", 39, 1, 0),
        ("6.2.0", 40, 1, 40),
        ("6.2.0", 40, 600, 0),
        ("6.2.0", 41, 600, 41),
        ("7.0.0", 36, 1, 31),
        ("7.0.0", 36, 63, 36),
        ("7.0.0", 40, 600, 40),
        ("2.12.0", 40, 255, 40),
        ("3.1.0", 44, 256, 0),
        ("4.0.0", 44, 256, 40),
        ("", 36, 1, 31),
    ],
)
def test_addresses_that_old_qemu_lays_out(
    version: str, ipa_bits: int, memory: int, bits: int
) -> None:
    here = with_qemu(host("trixie-neoverse-n1").replace(ipa_bits=ipa_bits), version)
    source = domain(f"<memory unit='GiB'>{memory}</memory>")
    if bits:
        result, target = resolved(here, source)
        assert target.ipa_bits == max(32, bits)
        assert refusals(here, result) == []
    else:
        assert f"QEMU {version.removesuffix('.0')} on host" in refused(here, source)


def test_the_hint_is_what_helps() -> None:
    small = with_qemu(host("trixie-neoverse-n1").replace(ipa_bits=36), "6.2.0")
    text = refused(small, domain())
    assert "lays out 40 bits of guest addresses" in text
    assert text.endswith("(hint: install QEMU 7.0 or newer there)")
    large = with_qemu(host("trixie-neoverse-n1").replace(ipa_bits=40), "6.2.0")
    text = refused(large, domain("<memory unit='GiB'>600</memory>"))
    assert text.endswith("(hint: install QEMU 7.0 or newer there, or give the guest less memory)")


_LESS_ROOM = "lower <maxMemory>, or its slots, of which each takes 1 GiB of addresses"


@pytest.mark.parametrize(
    ("version", "memory", "most", "said", "hint"),
    [
        ("5.2.0", 1, 600, "lays out 41 bits", f"install QEMU 7.0 or newer there, or {_LESS_ROOM}"),
        ("5.2.0", 600, 610, "lays out 41 bits",
         "install QEMU 7.0 or newer there, or give the guest less memory"),
        ("2.6.0", 1, 300, "has at most 255 GiB",
         f"install QEMU 4.0 or newer there, or {_LESS_ROOM}"),
        ("2.6.0", 1, 600, "has at most 255 GiB",
         f"install QEMU 7.0 or newer there, or {_LESS_ROOM}"),
        ("2.6.0", 300, 600, "has at most 255 GiB",
         "install QEMU 4.0 or newer there, or give the guest less memory"),
        ("10.0.0", 1, 2048, "<maxMemory> and its slots end at 2065 GiB", _LESS_ROOM),
        ("10.0.0", 2048, 8192, "the guest's memory ends at 2049 GiB", "give the guest less memory"),
        ("5.2.0", 600, 2048, "lays out 41 bits",
         "install QEMU 7.0 or newer there, or give the guest less memory"),
    ],
)  # fmt: skip
def test_what_is_too_much_is_named(
    version: str, memory: int, most: int, said: str, hint: str
) -> None:
    """<maxMemory>, unless what the guest starts with is too much already."""
    small = with_qemu(host("trixie-neoverse-n1").replace(ipa_bits=40), version)
    source = domain(
        f"<maxMemory slots='16' unit='GiB'>{most}</maxMemory><memory unit='GiB'>{memory}</memory>"
    )
    text = refused(small, source)
    assert said in text
    assert text.endswith(f"(hint: {hint})")


@given(
    st.integers(31, 52),
    st.sampled_from([(0, 0), (2, 12), (4, 0), (5, 2), (6, 2), (7, 0), (10, 0)]),
)
def test_the_largest_guest_fits_and_no_larger(bits: int, qemu: tuple[int, int]) -> None:
    most = most_memory(bits, qemu)
    needed = needed_qemu(most * GIB, bits)
    if most:
        assert needed == (0, 0) or qemu == (0, 0) or needed <= qemu
        assert guest_ipa_bits(most * GIB, bits, "there", qemu) <= bits or bits < 32
    with pytest.raises(KvmarmError):
        guest_ipa_bits((most + 1) * GIB, bits, "there", qemu)
    needed = needed_qemu((most + 1) * GIB, bits)
    assert needed > qemu > (0, 0) or most_memory(bits, (0, 0)) == most


# -- SVE -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sve384": "disable"}, "sve384"),
        ({"sve256": "optional"}, "sve256"),
        ({"pauth": "disable", "sve": "require", "sve256": "require"}, "sve and sve256"),
        ({"sve": "force"}, "sve"),
        ({"pauth": "require"}, "pauth"),
    ],
)
def test_a_feature_that_the_host_lacks_is_no_longer_asked_for(
    asked: dict[str, str], said: str
) -> None:
    text = refused("trixie-neoverse-n1", domain(cpu=features(**asked)))
    assert text.endswith(f"(hint: remove the <feature> of {said})")
    left = {name: policy for name, policy in asked.items() if name not in said.split()}
    resolved("trixie-neoverse-n1", domain(cpu=features(**left)))


def test_a_length_that_the_host_lacks_is_no_gap() -> None:
    asked = features(sve="require", sve128="require", sve256="require", sve384="disable")
    for inside in (asked, asked.replace("</cpu>", "<feature name='sve512'/></cpu>")):
        result, target = resolved("trixie-a64fx", domain(cpu=inside))
        assert target.sve_lengths == ((128, 256, 512) if "sve512" in inside else (128, 256))
        assert refusals(host("trixie-a64fx"), result) == []
    only = features(sve384="disable", sve640="forbid", sve2048="disable")
    assert resolved("trixie-a64fx", domain(cpu=only))[1].sve_lengths == (128, 256, 512)
    gap = features(sve256="disable", sve512="require")
    assert refused("trixie-a64fx", domain(cpu=gap)).endswith(
        "wants sve512 and turns sve256 off, and KVM on host trixie-a64fx gives the longer length"
        " with the shorter only (hint: remove the <feature> of sve256, or of sve512)"
    )
    assert resolved("trixie-a64fx", domain(cpu=features(sve512="disable")))[1].sve_lengths == (
        128,
        256,
    )


@pytest.mark.parametrize("where", ["trixie-max", "trixie-neoverse-n1"])
@pytest.mark.parametrize("off", ["disable", "forbid"])
@pytest.mark.parametrize("length", ["require", "force", "disable", "optional"])
def test_sve_off_with_a_length_is_refused_as_libvirt_does(
    where: str, off: str, length: str
) -> None:
    for asked in (features(sve=off, sve256=length), features(sve256=length, sve=off)):
        text = refused(where, domain(cpu=asked))
        assert "SVE disabled, but SVE vector lengths provided: sve256" in text


@pytest.mark.parametrize("how", ["require", "disable", "optional"])
def test_a_length_of_any_policy_asks_for_sve(how: str) -> None:
    """As libvirt does, whose XML would otherwise ask for more once it is defined."""
    asked = features(sve512=how)
    target = resolved("trixie-max", domain(cpu=asked), Policy(sve=False))[1]
    assert max(target.sve_lengths) == {"require": 512, "disable": 384, "optional": 2048}[how]
    assert "the domain wants SVE" in refused("trixie-neoverse-n1", domain(cpu=asked))


@pytest.mark.parametrize(("first", "second"), [("require", how) for how in _WAYS])
@pytest.mark.parametrize("name", ["sve", "sve256", "pauth"])
def test_a_feature_stands_once(first: str, second: str, name: str) -> None:
    twice = features(**{name: first}).replace(
        "</cpu>", f"<feature policy='{second}' name='{name}'/></cpu>"
    )
    assert f"'{name}' specified more than once" in refused("trixie-max", domain(cpu=twice))


# -- numbers -------------------------------------------------------------------------------------

_TWO = [
    "2",
    "+2",
    " 2",
    "002",
    "2<!-- was 1 -->",
    "<!-- a -->2",
    "<![CDATA[2]]>",
    "&#50;",
    "&#x32;",
]


@pytest.mark.parametrize("written", _TWO)
def test_numbers_are_read_as_libvirt_reads_them(written: str) -> None:
    for source in (
        domain(f"<memory unit='TiB'>{written}</memory>"),
        domain(f"<maxMemory slots='1' unit='TiB'>{written}</maxMemory>"),
    ):
        assert resolved("trixie-max", source)[1].ipa_bits == 42
    wish = read_wish(parse(domain(f"<vcpu>{written}</vcpu>")), "aarch64")
    assert wish.vcpus == 2
    slots = "&#50;" if "&#" in written else "002"
    plugged = f"<memory unit='GiB'>1</memory><maxMemory slots='{slots}' unit='GiB'>1</maxMemory>"
    assert read_wish(parse(domain(plugged)), "aarch64").memory == 3 * GIB


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("<memory unit='GiB'>1<!-- -->0</memory>", 10 << 30),
        ("<memory>1048576</memory>", 1 << 30),
        ("<memory unit='gib'>1</memory>", 1 << 30),
        ("<memory unit='G'>1</memory>", 1 << 30),
        ("<memory unit='gB'>1</memory>", 10**9),
        ("<memory unit='bytes'>1024</memory>", 1024),
        ("<memory unit='&#77;iB'>1</memory>", 1 << 20),
        ("<memory>" + "0" * 100_000 + "1</memory>", 1 << 10),
        ("<memory/>", 0),
    ],
)
def test_sizes(written: str, size: int) -> None:
    assert read_wish(parse(domain(written)), "aarch64").memory == size


def test_cells_of_numa_come_before_memory() -> None:
    cells = (
        "<cpu mode='host-model'><numa><cell id='0' cpus='0' memory='1' unit='TiB'/>"
        "<cell id='1' cpus='1' memory='1048576'/></numa></cpu>"
    )
    wish = read_wish(parse(domain("<memory>1</memory>", cells)), "aarch64")
    assert wish.memory == (1024 + 1) * GIB
    bad = cells.replace("memory='1'", "memory='one'")
    assert "<cell> is not a size" in refused("trixie-max", domain("<memory>1</memory>", bad))
    assert "ends at 1026 GiB" in refused("hand-made-rk3399", domain("", cells))


def test_room_for_memory_is_named() -> None:
    inside = "<memory unit='GiB'>1</memory><maxMemory slots='16' unit='TiB'>4</maxMemory>"
    text = refused("hand-made-rk3399", domain(inside))
    assert "<maxMemory> and its slots end at 4113 GiB" in text
    assert "lower <maxMemory>, or its slots" in text
    few = inside.replace("slots='16' unit='TiB'>4", "slots='256' unit='GiB'>800")
    assert "or its slots" in refused("hand-made-rk3399", domain(few))
    much = inside.replace("'GiB'>1<", "'TiB'>4<")
    assert "give the guest less memory" in refused("hand-made-rk3399", domain(much))


def test_memory_and_room_each_begin_at_a_gib() -> None:
    inside = "<memory unit='MiB'>1536</memory><maxMemory slots='1' unit='MiB'>3072</maxMemory>"
    wish = read_wish(parse(domain(inside)), "aarch64")
    assert wish.memory == (2 + 2 + 1) * GIB


@given(st.integers(0, 1 << 40), st.integers(0, 30), st.sampled_from(["", "+"]))
def test_a_number_with_zeros_is_the_number(value: int, zeros: int, sign: str) -> None:
    text = f" \n{sign}{'0' * zeros}{value}"
    assert libvirt_number(text, 1 << 40) == value


# -- pins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["00", "+0", " 0", "&#48;", "000000"])
def test_a_thread_is_pinned_once(number: str) -> None:
    pins = f"<vcpupin vcpu='{number}' cpuset='4'/>"
    threads = "<vcpu>2</vcpu><iothreads>1</iothreads>"
    for inside in (
        f"<vcpu>2</vcpu><cputune>{pins}</cputune>",
        f"{threads}<cputune>{pins}<iothreadpin iothread='01' cpuset='5'/></cputune>",
    ):
        result, _ = resolved("hand-made-rk3399", domain(inside))
        cputune = parse(result).find("cputune")
        assert cputune is not None
        pinned = [thread_of(pin) for pin in pins_in(cputune)]
        assert len(pinned) == len({*pinned})
        assert {("vcpupin", "0"), ("vcpupin", "1"), ("emulatorpin", None)} <= {*pinned}


@pytest.mark.parametrize("written", ["4-5,", "04-05", "4, 5 ,", "3-5,^3"])
def test_lists_of_cpus_are_libvirts(written: str) -> None:
    result, target = resolved("hand-made-rk3399", domain(f"<vcpu cpuset='{written}'>2</vcpu>"))
    assert target.pinning is not None
    assert target.pinning.cpus == "4-5"
    assert refusals(host("hand-made-rk3399"), result) == []


def test_iothreads_that_are_none() -> None:
    for written, count in (("<iothreads/>", 0), ("<iothreads>02</iothreads>", 2)):
        result, _ = resolved("hand-made-rk3399", domain(written))
        assert result.count(b"<iothreadpin ") == count


@pytest.mark.parametrize("mode", ["strict", "preferred", "interleave", "restrictive"])
def test_numad_and_pins(mode: str) -> None:
    auto = "<vcpu placement='auto'>2</vcpu><numatune><memory mode='{}'{}/></numatune>"
    for more in ("", " placement='default'"):
        text = refused("hand-made-rk3399", domain(auto.format(mode, more)))
        assert "<numatune>" in text
        assert "write placement='auto' into that <memory>, or a nodeset" in text
    for more in (" placement='auto'", " nodeset='0'"):
        result, _ = resolved("hand-made-rk3399", domain(auto.format(mode, more)))
        assert b"<vcpu placement='static' cpuset='4-5'>2</vcpu>" in result
    pinned = auto.format(mode, "").replace("'auto'", "'static'")
    resolved("hand-made-rk3399", domain(pinned))  # is wrong without kvmarm, too
    resolved("trixie-max", domain(auto.format(mode, "")))


# -- without KVM ---------------------------------------------------------------------------------


def test_an_emulated_guest_is_told_what_to_do(
    tmp_path: object, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    emulated = domain().replace(b"type='kvm'", b"type='qemu'")
    file = f"{tmp_path}/emulated.xml"
    with open(file, "wb") as out:
        out.write(emulated)
    assert main(["resolve", file]) == 0
    output = capsysbinary.readouterr()
    assert output.out == emulated
    assert b"guest keeps its host-model" in output.err
    assert b"<cpu mode='maximum'/>" in output.err
    assert output.err.count(b"\n") == 1


def test_only_emulated_arm_guests_with_host_model_are_told() -> None:
    emulated = domain().replace(b"type='kvm'", b"type='qemu'")
    assert what_emulation_needs(parse(emulated))
    assert what_emulation_needs(parse(emulated.replace(b"aarch64", b"armv7l")))
    for other in (
        domain(),
        emulated.replace(b"host-model", b"maximum"),
        emulated.replace(b"aarch64", b"x86_64"),
        emulated.replace(b"<cpu mode='host-model'/>", b""),
    ):
        assert what_emulation_needs(parse(other)) == ""
    nameless = emulated.replace(b"<name>guest</name>", b"")
    assert what_emulation_needs(parse(nameless)).startswith("the domain keeps")


# -- what QEMU starts on no account --------------------------------------------------------------


def _not_started() -> dict[str, tuple[HostProfile, str]]:
    n1, board = host("trixie-neoverse-n1"), host("hand-made-a15-3.10")
    return {
        "no host": (with_qemu(n1, "10.0.13", cpu_models=("cortex-a57",)), "qemu-without-model"),
        "no KVM": (
            with_qemu(n1, "10.0.13", cpu_models=(), host_properties={}),
            "qemu-without-model",
        ),
        "32 bits": (with_qemu(board, "5.2.0"), "qemu-without-kvm"),
        "36 bits": (with_qemu(n1.replace(ipa_bits=36), "6.2.0"), "addresses-laid-out"),
        "no GIC": (n1.replace(gic_versions=()), "gic-none"),
        "39 bits": (with_qemu(n1.replace(ipa_bits=39), "6.2.0"), "addresses-laid-out"),
    }


@pytest.mark.parametrize("boots", [False, True])
@pytest.mark.parametrize("name", _not_started())
def test_what_does_not_resolve_does_not_arrive_either(name: str, boots: bool) -> None:
    here, kind = _not_started()[name]
    assert here.qemu is not None
    arch = "aarch64" if here.kvm_architecture == "arm64" else "armv7l"
    text = domain(type_=f"arch='{arch}' machine='{here.qemu.machines[-1]}'")
    refused(here, text)
    able = host("trixie-neoverse-n1" if arch == "aarch64" else "hand-made-a15-3.10")
    target = resolved(able.replace(ipa_bits=here.ipa_bits), text)[1]
    (finding,) = check(target, here, boots=boots)
    assert (finding.kind, finding.stops_start) == (kind, True)
    if kind == "addresses-laid-out":  # what it would have, and what is recorded, are two things
        assert texts(finding)["recorded"] == str(target.ipa_bits)
    part = "gic_versions" if kind == "gic-none" else "qemu"
    qemu = None if part == "qemu" else here.qemu
    unknown = here.replace(qemu=qemu, unknown=(*here.unknown, part))
    assert {each.severity for each in check(target, unknown, boots=boots)} == {"unknown"}


def test_an_old_qemu_starts_guests_of_40_bits() -> None:
    here = with_qemu(host("trixie-neoverse-n1").replace(ipa_bits=40), "6.2.0")
    assert check(resolved(here, domain())[1], here) == []


def test_a_64_bit_host_s_32_bit_guest_does_not_start_on_a_qemu_without_kvm() -> None:
    here = with_qemu(host("hand-made-a15-3.10"), "5.2.0")
    source = domain(type_="arch='armv7l' machine='virt'")
    target = resolved("trixie-cortex-a57", source)[1]
    kinds = [finding.kind for finding in check(target, here, boots=True)]
    assert kinds == ["architecture-other", "qemu-without-kvm"]
