# SPDX-License-Identifier: LGPL-2.1-or-later
"""Resolving: what a domain gets is what was measured, and what cannot be had is refused with the
reason.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmarm_plugin.commands import show_view as show
from kvmarm_plugin.domain import record, record_text
from kvmarm_plugin.domain.xml import DomainXMLError, parse
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.problem import Problem
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.model.profile_json import digest
from kvmarm_plugin.model.target import Level, Pinning, Target
from kvmarm_plugin.registers.text import format_values, unpack_ids
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import ResolveError, Wish, read_wish
from tests.corpus import GUEST, HOSTS, host, one_line, template

from .domains import domains

_HOST_WITH_EVERYTHING = "trixie-max"


def domain(
    inside: str = "<cpu mode='host-model'/>",
    arch: str = "aarch64",
    machine: str = "virt",
    type_: str = "kvm",
) -> bytes:
    return (
        f"<domain type='{type_}'><os><type arch='{arch}'"
        f" machine='{machine}'>hvm</type></os>{inside}</domain>".encode()
    )


def cpu(*features: tuple[str, str]) -> str:
    inside = "".join(f"<feature policy='{policy}' name='{name}'/>" for name, policy in features)
    return f"<cpu mode='host-model'>{inside}</cpu>"


def chosen(here: HostProfile, source: bytes, policy: Policy | None = None) -> Target:
    return Resolver(here, policy or Policy()).target(read_wish(parse(source), here.architecture))


def sized(size: str, name: str = "memory") -> bytes:
    return domain(f"<{name} unit='GiB'>{size}</{name}><cpu mode='host-model'/>")


# -- what is recorded ----------------------------------------------------------------------------

_POLICIES = [
    Policy(prefer_named=named, pmu=pmu, sve=sve, pauth=pauth)
    for named in (True, False)
    for pmu in (None, False)
    for sve in (None, False)
    for pauth in (None, False)
]


@pytest.mark.parametrize("where", sorted(HOSTS))
def test_the_registers_are_those_of_the_vcpu_that_was_measured(where: str) -> None:
    here = host(where)
    seen_variants = set()
    for policy in _POLICIES:
        for arch in ("aarch64", "armv7l"):
            try:
                target = chosen(here, domain(arch=arch), policy)
            except ResolveError:
                continue
            cluster = max(here.clusters, key=lambda cluster: cluster.capacity or 0)
            measured = [
                vcpu
                for vcpu in cluster.vcpus
                if (vcpu.number, vcpu.features) == (target.number, target.features)
            ]
            assert len(measured) == 1
            assert target.registers == measured[0].registers
            assert target.reglist == measured[0].reglist
            assert ("el1_32bit" in target.features) is (
                arch == "armv7l" and here.kvm_architecture == "arm64"
            )
            seen_variants.add((target.number, target.features))
    assert seen_variants


def test_every_variant_of_a_rich_host_can_be_reached() -> None:
    here = host(_HOST_WITH_EVERYTHING)
    reached = {(t.number, t.features) for p in _POLICIES for t in [chosen(here, domain(), p)]}
    assert reached == {
        (v.number, v.features) for v in here.clusters[0].vcpus if "el1_32bit" not in v.features
    }


def test_fewer_lengths_change_the_bitmap_and_nothing_else() -> None:
    here = host(_HOST_WITH_EVERYTHING)
    few, all_ = chosen(here, domain(), Policy(sve_max_length=256)), chosen(here, domain())
    assert {name for name in all_.registers if few.registers[name] != all_.registers[name]} == {
        "SVE_VLS"
    }
    assert few.registers["SVE_VLS"] == 0b11
    assert few.reglist == all_.reglist


def test_a_32_bit_host() -> None:
    target = chosen(host("hand-made-a15-3.10"), template("armv7l"))
    assert (target.architecture, target.number, target.features, target.model) == (
        "arm",
        0,
        (),
        "cortex-a15",
    )
    assert (target.machine, target.gic, target.psci, target.seen, target.sve_lengths) == (
        "virt-2.6",
        2,
        "0.1",
        {},
        (),
    )
    assert target.registers["MIDR"] == 0x412FC0F1
    text = Resolver(host("hand-made-a15-3.10"), Policy()).resolve(template("armv7l")).decode()
    assert "<pmu" not in text
    assert "<gic version='2'/>" in text
    plain = (
        Resolver(host("hand-made-a15-3.10"), Policy(prefer_named=False))
        .resolve(template("armv7l"))
        .decode()
    )
    assert "<cpu mode='host-passthrough' check='none'/>" in plain


def test_a_qemu_without_the_pauth_property_is_not_told_about_it() -> None:
    text = Resolver(host("hand-made-rk3399"), Policy()).resolve(domain()).decode()
    assert "<feature policy='disable' name='sve'/>" in text
    assert "pauth" not in text


def test_machines_by_alias_and_by_name() -> None:
    here = host(_HOST_WITH_EVERYTHING)
    assert here.qemu is not None
    assert chosen(here, domain(machine="virt")).machine == here.qemu.aliases["virt"]
    assert chosen(here, domain(machine="")).machine == here.qemu.aliases["virt"]
    for machine in here.qemu.machines:
        assert chosen(here, domain(machine=machine)).machine == machine


@pytest.mark.parametrize(
    ("written", "expected"),
    [("", 3), ("<gic/>", 3), ("<gic version='host'/>", 3), ("<gic version='2'/>", 2)],
)
def test_gic(written: str, expected: int) -> None:
    source = domain(f"<features>{written}</features><cpu mode='host-model'/>")
    assert chosen(host("hand-made-rk3399"), source).gic == expected


@pytest.mark.parametrize(
    ("source", "bits"),
    [
        (domain(), 40),
        (sized("1"), 40),
        (sized("253"), 40),
        (sized("509"), 40),
        (sized("512"), 41),
        (sized("1000"), 41),
        (sized("1021"), 41),
        (sized("1022"), 41),
        (sized("2000"), 42),
        (sized("512", "maxMemory"), 41),
        (domain("<memory unit='KiB'>536870912</memory><cpu mode='host-model'/>"), 41),
        (domain("<memory>536870912</memory><cpu mode='host-model'/>"), 41),
        (domain("<memory unit='TB'>1</memory><cpu mode='host-model'/>"), 41),
        (domain("<memory unit='bytes'>549755813888</memory><cpu mode='host-model'/>"), 41),
        (domain("<memory unit='byte'>549755813888</memory><cpu mode='host-model'/>"), 41),
        (domain("<memory unit=''>536870912</memory><cpu mode='host-model'/>"), 41),
        (domain("<memory unit='PiB'>1</memory><cpu mode='host-model'/>"), 51),
        (domain("<maxMemory slots=' 256 ' unit='GiB'>769</maxMemory><cpu mode='host-model'/>"), 41),
        (domain("<memory unit='MiB'> 1024\n</memory><cpu mode='host-model'/>"), 40),
    ],
)
def test_the_address_space_grows_with_the_memory(source: bytes, bits: int) -> None:
    assert chosen(host(_HOST_WITH_EVERYTHING), source).ipa_bits == bits


def test_a_host_with_less_than_40_bits_gives_what_it_has() -> None:
    assert chosen(host(_HOST_WITH_EVERYTHING).replace(ipa_bits=36), sized("48")).ipa_bits == 36


def test_the_origin_is_the_profile() -> None:
    here = host(_HOST_WITH_EVERYTHING)
    element = record.find(parse(Resolver(here, Policy()).resolve(domain())))
    assert element is not None
    origin = record.read(element).origin
    assert (origin.host, origin.profile) == (here.name, digest(here))
    assert origin.by.startswith("kvmarm ")


@pytest.mark.parametrize("name", ["böard", "a & b", "<host>", "it's"])
def test_any_name_of_a_host_can_be_recorded(name: str) -> None:
    element = record.find(
        parse(Resolver(host(_HOST_WITH_EVERYTHING).replace(name=name), Policy()).resolve(domain()))
    )
    assert element is not None
    assert record.read(element).origin.host == name


_wishes = st.builds(
    Wish,
    architecture=st.sampled_from(["aarch64", "armv7l"]),
    machine=st.sampled_from(["", "virt", "virt-7.2"]),
    gic=st.sampled_from(["", "3", "host"]),
    pmu=st.sampled_from([None, True, False]),
    features=st.lists(
        st.tuples(
            st.sampled_from(["sve", "sve128", "sve256", "pauth"]),
            st.sampled_from([None, True, False]),
        ),
        max_size=3,
    ).map(tuple),
    memory=st.just(0),
    cpus=st.just(()),
)
_busy = Resolver(host(_HOST_WITH_EVERYTHING), Policy())


@given(domains())
def test_one_resolver_for_many_domains_answers_as_a_new_one_for_each(source: bytes) -> None:
    assert _busy.resolve(source) == Resolver(_busy.profile, _busy.policy).resolve(source)


@given(_wishes)
def test_a_wish_is_fulfilled_or_refused(wish: Wish) -> None:
    here = host(_HOST_WITH_EVERYTHING)
    try:
        target = Resolver(here, Policy()).target(wish)
    except ResolveError as error:
        one_line(error)
        return
    asked = dict(wish.features)
    if wish.pmu is not None:
        assert ("pmu_v3" in target.features) is wish.pmu
    if wish.architecture == "aarch64":
        for name, feature in (("sve", "sve"), ("pauth", "ptrauth_address")):
            if asked.get(name) is not None:
                assert (feature in target.features) is asked[name]
        for length in (128, 256):
            if asked.get(f"sve{length}") is False or (
                asked.get(f"sve{length}") and asked.get("sve", True)
            ):
                assert (length in target.sve_lengths) is asked[f"sve{length}"]
    assert bool(target.sve_lengths) is ("sve" in target.features)


# -- refusals ------------------------------------------------------------------------------------


def _host(name: str = _HOST_WITH_EVERYTHING, **changes: object) -> HostProfile:
    return host(name).replace(**changes)


_REFUSALS = {
    "no KVM": (
        _host(
            clusters=(),
            problems=(Problem("libvirt", "missing"), Problem("KVM", "cannot open /dev/kvm")),
        ),
        domain(),
        Policy(),
        "cannot run KVM guests: KVM: cannot open /dev/kvm",
    ),
    "no KVM, and no reason": (
        _host(clusters=(), problems=()),
        domain(),
        Policy(),
        "its profile has no CPU cluster",
    ),
    "no QEMU": (
        _host(qemu=None, problems=(Problem("QEMU", "not installed"),)),
        domain(),
        Policy(),
        "no usable QEMU: not installed",
    ),
    "no QEMU, and no reason": (_host(qemu=None), domain(), Policy(), "no usable QEMU: not probed"),
    "unknown machine": (
        _host(),
        domain(machine="virt-99.9"),
        Policy(),
        "no machine type 'virt-99.9' that can migrate",
    ),
    "machine of another board": (
        _host(),
        domain(machine="raspi3b"),
        Policy(),
        "no machine type 'raspi3b'",
    ),
    "no machines": (
        _host(qemu=host(_HOST_WITH_EVERYTHING).qemu.replace(machines=(), aliases={})),  # type: ignore[union-attr]
        domain(),
        Policy(),
        "its newest is none",
    ),
    "GIC 2": (
        _host(),
        domain("<features><gic version='2'/></features>" + cpu()),
        Policy(),
        "wants GIC version 2, KVM on host trixie-max offers 3",
    ),
    "no GIC": (_host(gic_versions=()), domain(), Policy(), "offers no virtual GIC"),
    "unknown feature": (
        _host(),
        domain(cpu(("avx", "require"))),
        Policy(),
        "knows no ARM CPU feature 'avx'",
    ),
    "unknown feature, optional": (
        _host(),
        domain(cpu(("sve100", "optional"))),
        Policy(),
        "knows no ARM CPU feature 'sve100'",
    ),
    "feature without a name": (
        _host(),
        domain("<cpu mode='host-model'><feature/></cpu>"),
        Policy(),
        "knows no ARM CPU feature ''",
    ),
    "a length missing": (
        _host("trixie-a64fx"),
        domain(cpu(("sve1024", "require"))),
        Policy(),
        "wants sve1024, host trixie-a64fx has lengths 128, 256, 512",
    ),
    "a length in between missing": (
        _host("trixie-a64fx"),
        domain(cpu(("sve384", "require"))),
        Policy(),
        "wants sve384",
    ),
    "no length left": (
        _host(),
        domain(cpu(("sve128", "disable"))),
        Policy(),
        "no SVE vector length is left",
    ),
    "a length wanted above one refused": (
        _host(),
        domain(cpu(("sve256", "require"), ("sve128", "disable"))),
        Policy(),
        "wants sve256 and turns sve128 off",
    ),
    "SVE, by the domain": (
        _host("trixie-neoverse-n1"),
        domain(cpu(("sve", "require"))),
        Policy(),
        "the domain wants SVE, which KVM",
    ),
    "SVE, by the policy": (
        _host("trixie-neoverse-n1"),
        domain(),
        Policy(sve=True),
        "the policy wants SVE, which KVM",
    ),
    "a length without SVE": (
        _host("trixie-neoverse-n1"),
        domain(cpu(("sve256", "require"))),
        Policy(),
        "the domain wants SVE",
    ),
    "PAuth, by the domain": (
        _host("trixie-neoverse-n1"),
        domain(cpu(("pauth", "require"))),
        Policy(),
        "the domain wants PAuth",
    ),
    "PAuth, by the policy": (
        _host("trixie-neoverse-n1"),
        domain(),
        Policy(pauth=True),
        "the policy wants PAuth",
    ),
    "a PMU, by the domain": (
        _host("hand-made-a15-3.10"),
        domain("<features><pmu state='on'/></features>" + cpu(), "armv7l"),
        Policy(),
        "the domain wants a PMU",
    ),
    "a PMU, by the policy": (
        _host("hand-made-a15-3.10"),
        domain(arch="armv7l"),
        Policy(pmu=True),
        "the policy wants a PMU",
    ),
    "32-bit guest": (
        _host("trixie-neoverse-n1"),
        domain(arch="armv7l"),
        Policy(),
        "cannot run 32-bit guests: Neoverse-N1 has no AArch32 at EL1",
    ),
    "64-bit guest": (
        _host("hand-made-a15-3.10"),
        domain(),
        Policy(),
        "is 32-bit and the guest is aarch64",
    ),
    "memory": (
        _host("bookworm-cortex-a53"),
        sized("1024"),
        Policy(),
        "ends at 1025 GiB, KVM on host bookworm-cortex-a53 has",
    ),
    "memory to come": (
        _host("bookworm-cortex-a53"),
        sized("4096", "maxMemory"),
        Policy(),
        "<maxMemory> and its slots end at 4097 GiB, KVM on host bookworm-cortex-a53 has",
    ),
    "no size": (
        _host(),
        sized("much"),
        Policy(),
        "<memory> is not a size: <memory unit='GiB'>much</memory>",
    ),
    "no unit": (
        _host(),
        domain("<memory unit='bit'>1</memory>" + cpu()),
        Policy(),
        "<memory> is not a size",
    ),
    **{
        f"a size that is none, {size[:8]!r}": (
            _host(),
            sized(size),
            Policy(),
            "<memory> is not a size: <memory unit='GiB'>",
        )
        for size in (
            "-1",
            "+-1",
            "++1",
            "+ 1",
            " ",
            "1_0",
            "\u0661",
            "1 0",
            "1<!-- --> 0",
            "&#45;1",
            "0x10",
            "1.5",
            str(1 << 34),
            "9" * 1_000_000,
        )
    },
    **{
        f"a unit that is none, {unit!r}": (
            _host(),
            domain(f"<memory unit='{unit}'>1</memory>{cpu()}"),
            Policy(),
            "not a size",
        )
        for unit in (" KiB", "\u212aiB", "Kb i", "ZiB", "x" * 1000)
    },
    **{
        f"slots that are none, {slots[:8]!r}": (
            _host(),
            domain(f"<maxMemory slots='{slots}'>1</maxMemory>{cpu()}"),
            Policy(),
            "slots",
        )
        for slots in ("", "-1", "++1", "1_0", "\u00b2", "\u0661", "4294967296", "1" * 1_000_000)
    },
    "slots for more than there can be": (
        _host(),
        domain(f"<maxMemory slots='4294967295'>1</maxMemory>{cpu()}"),
        Policy(),
        "<maxMemory> has 4294967295 slots, and QEMU starts up to 256",
    ),
    "a machine of a long name": (
        _host(),
        domain(machine="virt-" + "9" * 10**6),
        Policy(),
        "…' that can migrate",
    ),
    "a feature that does not print": (
        _host(),
        domain(cpu(("\u202e" * 10**5, "require"))),
        Policy(),
        r"'\\u202e",
    ),
    "a GIC that does not print": (
        _host(),
        domain(f"<features><gic version='\u202e'/></features>{cpu()}"),
        Policy(),
        r"'\u202e'",
    ),
    "unknown cluster": (
        _host("hand-made-rk3399"),
        domain(),
        Policy(cluster=0x410FD080),
        (
            "no cluster with MIDR 0x410fd080 (hint: it has 0x410fd034 (Cortex-A53), 0x410fd082"
            " (Cortex-A72))"
        ),
    ),
    "two CPUs": (_host(), domain(cpu() + "<cpu/>"), Policy(), "more than one <cpu>"),
    "a vCPU that was never made": (
        _host(
            clusters=(
                host(_HOST_WITH_EVERYTHING)
                .clusters[0]
                .replace(vcpus=host(_HOST_WITH_EVERYTHING).clusters[0].vcpus[-1:]),
            )
        ),
        domain(cpu(("sve", "disable"))),
        Policy(pmu=False),
        "makes no vCPU of target 5 with features",
    ),
}


@pytest.mark.parametrize(
    "word", ["Disable", "DISABLE", "disabled", "off", "", " disable ", "x" * 99]
)
def test_words_that_libvirt_does_not_know(word: str) -> None:
    for written in (
        cpu(("sve", word)),
        f"<features><pmu state='{word.replace('off', 'On')}'/></features>{cpu()}",
        f"<features><gic version='{word}'/></features>{cpu()}",
    ):
        with pytest.raises(ResolveError, match="is none that libvirt knows"):
            chosen(host(_HOST_WITH_EVERYTHING), domain(written))


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        (f"<features/><features/>{cpu()}", "libvirt reads them all"),
        (f"<features><gic/><gic/></features>{cpu()}", "libvirt takes the last word"),
        (f"<features><pmu/><pmu/></features>{cpu()}", "libvirt takes the last word"),
        (f"{cpu()}<cpu/>", "libvirt reads only the first"),
    ],
)
def test_what_libvirt_makes_of_an_element_written_twice(written: str, hint: str) -> None:
    with pytest.raises(ResolveError) as caught:
        chosen(host(_HOST_WITH_EVERYTHING), domain(written))
    assert hint in str(caught.value)


@pytest.mark.parametrize("name", _REFUSALS)
def test_refusals(name: str) -> None:
    here, source, policy, why = _REFUSALS[name]
    with pytest.raises((ResolveError, DomainXMLError)) as caught:
        Resolver(here, policy).resolve(source)
    text = one_line(caught.value)
    assert why in text
    assert len(text) < 700
    assert text.isprintable()
    assert caught.value.hint


def test_domains_of_others_are_not_judged() -> None:
    """Nothing is refused for a domain that does not ask, however little the host can do."""
    nothing = host(_HOST_WITH_EVERYTHING).replace(clusters=(), qemu=None)
    for source in (
        domain("<cpu mode='host-passthrough'/>"),
        domain(type_="qemu"),
        domain(arch="x86_64", machine="nonsense"),
    ):
        assert Resolver(nothing, Policy()).resolve(source) == source


def test_a_domain_without_an_architecture_has_the_hosts() -> None:
    source = b"<domain type='kvm'><os><type>hvm</type></os><cpu mode='host-model'/></domain>"
    assert chosen(host("hand-made-a15-3.10"), source).architecture == "arm"
    assert chosen(host(_HOST_WITH_EVERYTHING), source).architecture == "arm64"
    on_x86 = host(_HOST_WITH_EVERYTHING).replace(architecture="x86_64")
    assert Resolver(on_x86, Policy()).resolve(source) == source


# -- what is shown -------------------------------------------------------------------------------


def _shown(where: str = _HOST_WITH_EVERYTHING) -> record.Record:
    element = record.find(
        parse(Resolver(host(where), Policy(sve_max_length=256)).resolve(template("uefi")))
    )
    assert element is not None
    return record.read(element)


# How a reader finds each field of a target in what `kvmarm show -v` prints.
_IN_TEXT = {
    "architecture": "arm64 target",
    "number": "target 5 (GENERIC_V8)",
    "features": "features psci_0_2 pmu_v3 sve ptrauth_address ptrauth_generic",
    "model": "-cpu host",
    "unsaid": "left to QEMU: nothing",
    "machine": "on virt-10.0",
    "gic": "GIC 3",
    "ipa_bits": "40-bit addresses",
    "sve_lengths": "128 256",
    "seen": "62.5 MHz",
    "registers": "ID_AA64PFR0_EL1      0x",
    "reglist": " in all",
    "pinning": "pinned      to CPUs 4-7, of MIDR 0x414fd0b0",
    "roams": "pinned      no",
    "level": "levelled    by libkvmarm-level, without TCR2_EL1",
}


def test_every_field_of_a_target_is_shown() -> None:
    found = _shown()
    text, tree = show.as_text("uefi", found, True), json.loads(json.dumps(show.as_json(found)))
    on_a_board = show.as_text("uefi", _shown("hand-made-rk3588"), False)
    levelled = show.as_text(
        "uefi", found.replace(target=found.target.replace(level=Level(("TCR2_EL1",)))), False
    )
    others = {"pinning": on_a_board, "level": levelled}
    assert _IN_TEXT.keys() == set(Target.__annotations__)
    for name, words in _IN_TEXT.items():
        assert words in others.get(name, text), name
        assert name in tree["target"]
    assert (
        f"{len(found.target.registers)} that identify the vCPU,"
        f" {len(unpack_ids(found.target.reglist))} in all" in text
    )
    for name in found.target.registers:
        assert f"  {name} " in text
    for name in found.target.seen:
        assert name in text
    assert found.target.psci in text
    for word in (
        found.origin.host,
        found.origin.by,
        found.origin.profile,
        "<cpu mode='host-model'/>",
    ):
        assert word in text


@pytest.mark.parametrize("where", [_HOST_WITH_EVERYTHING, "hand-made-rk3588"])
def test_the_json_holds_the_whole_record(where: str) -> None:
    found = _shown(where)
    tree = json.loads(json.dumps(show.as_json(found)))
    target = {name: tree["target"][name] for name in Target.__annotations__}
    for name in ("seen", "registers"):
        target[name] = {register: int(value, 16) for register, value in target[name].items()}
    for name in ("features", "sve_lengths", "unsaid"):
        target[name] = tuple(target[name])
    if (pinning := target["pinning"]) is not None:
        target["pinning"] = Pinning(
            int(pinning["midr"], 16), int(pinning["revidr"], 16), pinning["cpus"]
        )
    assert Target(**target) == found.target
    assert tree["target"]["psci"] == found.target.psci
    assert tuple(tree["intent"]["added"]) == found.intent.added
    assert [kept.encode() for kept in tree["intent"]["kept"]] == list(found.intent.kept)
    assert record.Origin(**tree["origin"]) == found.origin


def test_what_only_some_records_have_is_shown() -> None:
    found = _shown()
    some = found.replace(
        target=found.target.replace(roams=True),
        intent=record.Intent((), ()),
        origin=found.origin.replace(renewed="beta"),
        home=record.Home("4-5", "", (b"<emulatorpin cpuset='4-5'/>",)),
    )
    text, tree = show.as_text("uefi", some, False), show.as_json(some)
    for words in (
        "\npinned      no: it may roam between CPUs of several kinds\n",
        "\nintent      none: it was adopted as it is\n",
        f"\nmade        for {found.origin.host} by {found.origin.by}, renewed on beta\n",
        "\nhome        its pins were for CPUs 4-5\n",
    ):
        assert words in text
    assert tree["target"]["roams"] is True
    assert tree["origin"]["renewed"] == "beta"
    assert tree["intent"] == {"added": (), "kept": []}
    noted = show.as_text("uefi", found, False, ("one", "two"))
    assert noted == show.as_text("uefi", found, False) + "note        one\nnote        two\n"


def test_the_short_form_leaves_the_registers_out() -> None:
    found = _shown()
    short = show.as_text("uefi", found, False)
    assert (
        short.splitlines()
        == show.as_text("uefi", found, True).splitlines()[: len(short.splitlines())]
    )
    assert "ID_AA64PFR0_EL1" not in short
    assert "uefi" in short.splitlines()[0]


def test_records_are_written_with_every_field() -> None:
    """What `test_record` reads back stands in the element in words."""
    found = _shown()
    text = b"\n".join(record_text.format_facts(found.target, found.origin)).decode()
    target = found.target
    for piece in (
        (
            f"architecture='{target.architecture}' target='{target.number}'"
            f" features='{' '.join(target.features)}'"
        ),
        f"model='{target.model}' machine='{target.machine}'",
        f"gic='{target.gic}' psci='{target.psci}' ipa='{target.ipa_bits}'",
        "lengths='128 256'",
        format_values(target.seen),
    ):
        assert piece in text.replace("\n", " ")
    assert " ".join(text.split()).count(" ID_AA64PFR0_EL1=0x") == 1
    assert target.reglist in " ".join(text.split())


def test_another_emulator_is_asked() -> None:
    """Where it may be; what it is now counts, not what it was."""
    profile = host("trixie-max")
    assert profile.qemu is not None
    here = {"/opt/qemu": profile.qemu}
    said: list[str] = []
    for installed in (profile, profile.replace(qemu=None)):
        resolver = Resolver(installed, Policy(), advise=said.append, ask=here.get)
        for machine in ("virt-9.0", "virt-9.1"):
            here["/opt/qemu"] = profile.qemu.replace(machines=(machine,), aliases={"virt": machine})
            for written in ("virt", machine):
                xml = _started_with("/opt/qemu").replace(b"'virt'", f"'{written}'".encode())
                assert f"machine='{machine}'".encode() in resolver.resolve(xml)
    assert said == []
    assert b"machine='virt-10.0'" in Resolver(profile, Policy(), ask=here.get).resolve(GUEST)
    with pytest.raises(ResolveError, match=r"virt-10\.0"):
        resolver.resolve(_started_with("/opt/qemu").replace(b"'virt'", b"'virt-10.0'"))


def _started_with(emulator: str) -> bytes:
    devices = f"<devices><emulator>{emulator}</emulator></devices>".encode()
    return GUEST.replace(b"<devices/>", b"").replace(b"</domain>", devices + b"</domain>")


def test_another_emulator_is_told() -> None:
    """What is written is what the profile's QEMU has."""
    said: list[str] = []
    profile = host("trixie-max")
    resolver = Resolver(profile, Policy(), advise=said.append)
    assert profile.qemu is not None
    for emulator, count in ((profile.qemu.binary, 0), ("/opt/qemu", 1)):
        resolver.resolve(_started_with(emulator))
        assert len(said) == count
    assert said[0].startswith(
        "guest names the emulator /opt/qemu; machine types and properties are those of"
        f" {profile.qemu.binary} (hint: "
    )
