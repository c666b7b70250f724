# SPDX-License-Identifier: LGPL-2.1-or-later
"""Levelling: what hosts of different CPUs and kernels can all give, the pool and the XML that are
made of it, and what is said where a guest of it would not be what it was promised.
"""

from __future__ import annotations

import itertools
import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from kvmarm_plugin import cli
from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.commands import inputs, resolving
from kvmarm_plugin.domain import levelling, record, record_text
from kvmarm_plugin.domain.record import Intent, Origin, Record
from kvmarm_plugin.domain.restoring import restore
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.fleet import levelling_view, pool
from kvmarm_plugin.fleet.common_ground import targets
from kvmarm_plugin.fleet.kinds import kinds_of
from kvmarm_plugin.fleet.levelled_vcpu import common_features, level_vcpu
from kvmarm_plugin.fleet.levelling import Levelled, _errata, levelled
from kvmarm_plugin.fleet.member import Member
from kvmarm_plugin.fleet.unlevelled import find_unlevelled
from kvmarm_plugin.host import known
from kvmarm_plugin.judge.by_profile import ProfileOffer, check, counted
from kvmarm_plugin.judge.by_profile import given as given_there
from kvmarm_plugin.judge.finding import HARMLESS, REFUSES, UNKNOWN, Finding
from kvmarm_plugin.judge.wording import texts
from kvmarm_plugin.model import profile_json, profile_shape
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile import PARTS, SINCE_2, Cluster, HostProfile, Vcpu
from kvmarm_plugin.model.profile_json import digest
from kvmarm_plugin.model.target import Level, Target, check_target
from kvmarm_plugin.registers.errata import SEVERITIES
from kvmarm_plugin.registers.left_out import agreed_value, may_be_left_out
from kvmarm_plugin.registers.rules import IMPLEMENTATION_ID
from kvmarm_plugin.registers.table import fields_of, id_of, rows
from kvmarm_plugin.registers.text import pack_ids, unpack_ids
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import ResolveError
from kvmarm_plugin.verdicts import judge_guest
from tests.corpus import GUEST, HOSTS, RECORD_SCHEMA, TESTS, host, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from kvmarm_plugin.judge.offer import Offer

_TRIXIE, _SID = "trixie-neoverse-n1", "sid-neoverse-n1"
_A57, _A72 = "sid-cortex-a57", "sid-cortex-a72"
_PROOF = "secret,id=kvmarm-level,file=/proc/libkvmarm-level.so.1/is-not-loaded"

# Of one architecture, and of one kind of CPU each: what can be levelled at all.
_SINGLE = [name for name in HOSTS if not name.startswith("hand-made")]
_KNOWN = sorted(known.names())

# Pools that are made in many tests.
_POOLS = (
    (_TRIXIE, _SID),
    (_A57, _A72),
    ("trixie-max", "sid-max"),
    ("trixie-max", "trixie-max-nobti", "trixie-max-nosve-nopauth"),
)


@cache
def _here(name: str) -> HostProfile:
    """A host of tests/hosts or of the known CPUs, with the library."""
    found = known.read(name) if name in _KNOWN else host(name)
    return found.replace(level_library="1")


@cache
def _of(*names: str) -> Levelled:
    return levelled([_here(name) for name in names], "pool")


def _profile(*names: str) -> HostProfile:
    found = _of(*names)
    assert found.profile is not None, found.obstacles
    return found.profile


def _resolved(*names: str, source: bytes = GUEST) -> bytes:
    return Resolver(_profile(*names), Policy()).resolve(source)


def _target(*names: str) -> Target:
    return _record_of(_resolved(*names)).target


def _record_of(source: bytes) -> Record:
    return record.read(record.find(parse(source)) or pytest.fail("no record"))


def _blocking(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity != HARMLESS]


def _judged(source: bytes, here: HostProfile, boots: bool = False) -> list[Finding]:
    """What `kvmarm check --host` finds of a domain."""
    definition = inputs.STORED if boots else inputs.FILE
    guest = inputs.read_guest(inputs.Source("guest", source, definition))
    found = judge_guest(
        guest.document, guest.domain, guest.record, boots, counted(here), here.ipa_bits,
        lambda: here.qemu.release if here.qemu else (0, 0),
        lambda target, cpus: check(target, here, cpus, boots),
    )  # fmt: skip
    return _blocking(found)


def _with(here: HostProfile, registers: dict[str, int], **changes: Any) -> HostProfile:
    """A host whose vCPUs have some other values, and that differs in some parts of its cluster."""
    (cluster,) = here.clusters
    vcpus = tuple(
        vcpu.replace(
            registers={**vcpu.registers, **registers},
            reglist=pack_ids(unpack_ids(vcpu.reglist) | {*map(id_of, registers)}),
        )
        for vcpu in cluster.vcpus
    )
    return here.replace(clusters=(cluster.replace(vcpus=vcpus, **changes),))


# -- which hosts can be levelled -----------------------------------------------------------------


def test_graviton_3_and_4_as_far_as_they_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["baseline", "--level", "graviton3@6.18", "graviton4@6.18"]) == 1
    said = capsys.readouterr().out
    assert "as far as is known, these 2 hosts can be levelled; no pool is made without: " in said
    assert re.search(r"identity +that of graviton4@6\.18", said)
    for cost in ("all of AArch32", "SM4 encryption", "branch target identification"):
        assert cost in said, said
    assert "4 KiB pages at stage 2" in said  # TGRAN4_2, of both: 1, which none has by itself
    fields = ("TGRAN4_2", "TGRAN16_2", "TGRAN64_2")
    given = _profile("graviton3@6.18", "graviton4@6.18").clusters[0].vcpus[0].registers
    mmfr0 = {field.name: field.of(given["ID_AA64MMFR0_EL1"]) for field in _mmfr0()}
    assert [mmfr0[name] for name in fields] == [1, 1, 1]


def _mmfr0() -> list[Any]:
    return fields_of("ID_AA64MMFR0_EL1")


def test_nothing_is_written_of_hosts_that_are_known_in_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pool.yaml"
    command = ["baseline", "--level", "-o", str(file), "graviton3@6.18", "graviton4@6.18"]
    assert cli.main(command) == 1
    assert not file.exists()
    assert cli.main([*command, "--json"]) == 1
    said = json.loads(capsys.readouterr().out.partition("\n{")[2].join(("{", "")))
    assert said["possible"] is True
    assert {"seen", "qemu", "vcpus"} <= {*said["unknown"]}


@pytest.mark.parametrize("other", ["graviton3@6.18", "graviton4@6.18"])
def test_graviton_2_with_a_newer_one_is_refused(
    other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["baseline", "--level", "graviton2@6.18", other]) == 3
    said = capsys.readouterr().out
    assert "these 2 hosts cannot be levelled" in said
    fields = set(re.findall(r"^  (\S+) \(", said, re.MULTILINE))
    assert fields == {f"ID_AA64MMFR2_EL1.{field}" for field in ("EVT", "FWB", "IDS")}
    assert "0x0 on graviton2@6.18, 0x1 on " + other in said


def test_errata_are_said_and_the_worst_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Cortex-A57 of a revision that has ARM64_ERRATUM_832075, seen as a Cortex-A72; and one of an
    erratum that corrupts data.
    """
    hosts = []
    for name, midr in ((_A57, 0x411FD070), (_A72, 0)):
        here = host(name)
        cluster = {"midr": midr, "part": "Cortex-A57"} if midr else {}
        here = _with(here, {"MIDR_EL1": midr} if midr else {}, **cluster)
        path = tmp_path / f"{name}.json"
        path.write_text(profile_json.dumps(here), encoding="utf-8")
        hosts.append(str(path))
    file = tmp_path / "pool.yaml"
    command = ["baseline", "--level", "--identity", _A72, "-o", str(file), *hosts]
    assert cli.main(command) == 3
    said = capsys.readouterr().out
    assert "no pool is made without --accept-errata" in said
    assert "ARM64_ERRATUM_832075 (hangs)" in said
    assert cli.main([*command, "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert (document["possible"], document["needs_consent"]) == (True, True)
    # By itself it is the identity with which nothing is missed.
    assert cli.main([word for word in command if word not in ("--identity", _A72)]) == 0
    assert "ARM64_ERRATUM" not in capsys.readouterr().out
    file.unlink()
    # A Cortex-A53 r0p0 corrupts data, by Kconfig.
    worse = tmp_path / f"{_A57}.json"
    here = _with(host(_A57), {"MIDR_EL1": 0x410FD030}, midr=0x410FD030)
    worse.write_text(profile_json.dumps(here), encoding="utf-8")
    assert cli.main(command) == 3
    said = capsys.readouterr().out
    assert "no pool is made without --accept-errata" in said
    assert "(corrupting)" in said
    assert not file.exists()
    assert cli.main([*command, "--accept-errata"]) == 0
    assert pool.loads(file.read_text(encoding="utf-8")).baseline.clusters[0].level is not None


def test_what_cannot_be_levelled_is_said() -> None:
    assert "CPUs" in [each.subject for each in _of("hand-made-rk3588", _SID).obstacles]
    assert "architecture" in [each.subject for each in _of("hand-made-a15-3.10", _SID).obstacles]
    subjects = {each.subject for each in _of(_TRIXIE, "trixie-cortex-a57").obstacles}
    assert "DCZID_EL0" in subjects or "MIDR_EL1" in subjects
    old = _of("bookworm-neoverse-n1", _TRIXIE)
    assert old.profile is None
    assert any("Linux" in each.helps for each in old.obstacles)


def test_an_identity_needs_a_kernel_that_lets_it_be_written() -> None:
    """MIDR_EL1 of Linux 6.12 is the CPU's; the one of 7.2 may be another's."""
    assert _of("trixie-cortex-a57", "sid-cortex-a57").profile is not None
    kernel_of_72 = _of("trixie-cortex-a57", "trixie-cortex-a72")
    (midr,) = (each for each in kernel_of_72.obstacles if each.subject == "MIDR_EL1")
    assert "Linux 6.15 or newer on" in midr.helps
    # The other way round it is the older kernel's that all take.
    assert _of("trixie-cortex-a57", _A72).identity == "trixie-cortex-a57" or (
        _of("trixie-cortex-a57", _A72).profile is not None
    )


def _shown(found: Levelled) -> list[int]:
    """How many missed workarounds of each severity are shown, the worst first."""
    severities = [each.severity for errata in found.errata.values() for each in errata]
    return [*map(severities.count, SEVERITIES)]


@pytest.mark.parametrize("midrs", [(0x413FD0C1, 0x411FD401), (0x411FD070, 0x411FD401)])
def test_the_identity_is_the_one_with_the_fewest_workarounds_that_are_shown(
    midrs: tuple[int, int],
) -> None:
    """Neoverse N1, Cortex-A57 and Neoverse V1, without AArch32: what ID registers rule out does not
    count.
    """
    pfr0 = _here(_SID).clusters[0].vcpus[0].registers["ID_AA64PFR0_EL1"] & ~0xF | 1
    hosts = [
        _with(_here(_SID), {"MIDR_EL1": midr, "ID_AA64PFR0_EL1": pfr0}, midr=midr).replace(
            name=name
        )
        for name, midr in zip(("alpha", "beta"), midrs)
    ]
    by_itself = levelled(hosts, "pool")
    assert _shown(by_itself) == min(_shown(levelled(hosts, "pool", host.name)) for host in hosts)
    assert by_itself.identity == "beta"
    assert levelled(hosts, "pool", "alpha").identity == "alpha"


@pytest.mark.parametrize(("old", "new"), [("trixie-cortex-a72", _A57), ("trixie-cortex-a57", _A72)])
def test_the_identity_is_the_one_that_guests_see(old: str, new: str) -> None:
    """Linux 6.12 lets nobody write it, so that all see that host's, or nothing is promised."""
    found = _of(old, new)
    assert found.profile is not None
    assert found.identity == old
    (cluster,) = found.profile.clusters
    assert {vcpu.registers["MIDR_EL1"] for vcpu in cluster.vcpus} == {cluster.midr}
    other = levelled([_here(old), _here(new)], "pool", new)
    assert other.profile is None
    assert {each.subject: each.helps for each in other.obstacles} == {
        "MIDR_EL1": f"Linux 6.15 or newer on {old}"
    }


@pytest.mark.parametrize("number", [1, 2, 3])
def test_answers_of_firmware_are_the_host_s_whatever_is_set(number: int) -> None:
    """KVM_SET_ONE_REG takes less than there is, and KVM_GET_ONE_REG shows what there is."""
    name = f"SMCCC_ARCH_WORKAROUND_{number}"
    lower = _with(_here(_TRIXIE), {name: 0}).replace(name="lower")
    higher = _with(_here(_TRIXIE), {name: 2}).replace(name="higher")
    found = levelled([lower, higher], "pool")
    (obstacle,) = found.obstacles
    assert obstacle.subject == name
    assert "kvm_arm_set_fw_reg" in obstacle.why
    assert "does not let user space write" not in obstacle.why
    assert "firmware" in obstacle.helps
    # A guest that was promised less is refused, as the library would.
    target = Resolver(_profile(_TRIXIE, _SID), Policy()).resolve(GUEST)
    there = _with(_here(_TRIXIE), {name: 3})
    assert [f.kind for f in _judged(target, there)] == ["level-refused"]


def test_what_is_taken_and_not_kept_is_not_called_refused() -> None:
    """Before 6.10, CLIDR_EL1 can be written, and a vCPU that PSCI turns on has the host's again."""
    old = _here("bookworm-cortex-a53").replace(kernel="6.6.9")
    other = _with(old, {"CLIDR_EL1": 0xB200123}).replace(name="other")
    (obstacle,) = levelled([old, other], "pool").obstacles
    assert obstacle.subject == "CLIDR_EL1"
    assert re.fullmatch("KVM on .* takes a value that all have, and does not keep it", obstacle.why)


def test_what_the_kernel_hides_is_not_kept() -> None:
    """A guest may bring MPAM along, and would not be shown it: no guest is promised that."""
    registers = _target(_TRIXIE, _SID).registers
    pfr0 = registers["ID_AA64PFR0_EL1"] | 1 << 40
    target = _target(_TRIXIE, _SID).replace(registers={**registers, "ID_AA64PFR0_EL1": pfr0})
    kinds = {f.kind for f in _blocking(check(target, _here(_SID), cpus=()))}
    assert kinds == {"level-refused-field"}
    assert "field-hidden" in {
        f.kind for f in check(target.replace(level=None), _here(_SID), cpus=())
    }


# -- laws ----------------------------------------------------------------------------------------

_groups = st.one_of(
    *(st.lists(st.sampled_from(each), min_size=1, unique=True) for each in _POOLS),
    st.lists(st.sampled_from(sorted(HOSTS)), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from([*_KNOWN, *sorted(HOSTS)]), min_size=1, max_size=3, unique=True),
)


@given(_groups, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_hosts_are_levelled_in_any_order_or_it_is_said_why_not(
    names: list[str], random: Any
) -> None:
    _hold_to_the_law(names)
    shuffled = list(names)
    random.shuffle(shuffled)
    assert _of(*shuffled).as_dict() == _of(*names).as_dict()


@pytest.mark.parametrize("first", sorted(HOSTS))
def test_all_pairs_of_recorded_hosts(first: str) -> None:
    for second in sorted(HOSTS):
        if first < second:
            _hold_to_the_law([first, second])


@pytest.mark.slow
def test_all_triples_of_hosts_that_form_pairs() -> None:
    pairs = [each for each in itertools.combinations(sorted(_SINGLE), 2) if _of(*each).profile]
    names = sorted({name for pair in pairs for name in pair})
    tried = 0
    for triple in itertools.combinations(names, 3):
        if all(each in pairs for each in itertools.combinations(triple, 2)):
            _hold_to_the_law(list(triple))
            tried += 1
    assert tried


def _hold_to_the_law(names: list[str]) -> None:
    """A profile of which every member gives every guest all that it was promised, or obstacles."""
    found = _of(*names)
    assert (found.profile is None) == bool(found.obstacles)
    if found.profile is None:
        for each in found.obstacles:
            assert each.subject
            assert each.why
            assert {*each.values} <= {*names, "pool"} | {_here(name).name for name in names}
        return
    (cluster,) = found.profile.clusters
    assert cluster.vcpus
    for vcpu in cluster.vcpus:
        for name in names:
            member = Member(_here(name))
            own = member.vcpu(vcpu.features).registers
            for register, value in vcpu.registers.items():
                if register != "SVE_VLS":
                    assert member.takes(register, value, own), (register, name)
    if {*found.profile.unknown}.difference(SINCE_2):
        return
    guests = targets(found.profile)
    assert guests
    for target, name in itertools.product(guests, names):
        check_target(target)
        here = _here(name)
        for boots in (False, True):
            assert check(target, here, cpus=(), boots=boots) == []
        started = given_there(target, ProfileOffer(target, here, here.clusters[0], boots=True))
        check_target(started)
        assert {n: started.registers[n] for n in target.registers} == target.registers


# -- what nobody measured ------------------------------------------------------------------------

_NOTHING = profile_shape.NOTHING
_COUNT = tuple(part for part in PARTS if part not in SINCE_2)


def _forgotten(
    here: HostProfile, parts: Collection[str], some: Callable[[Any], Any] = lambda _: ()
) -> HostProfile:
    """A host of one cluster of which nobody measured some parts.

    Args:
        some: items of a list → those that are left of it.
    """
    (cluster,) = here.clusters
    own = [vcpu for vcpu in cluster.vcpus if vcpu.number == cluster.target]
    if "vcpus" in parts:
        own = [vcpu for vcpu in own if vcpu in some(own)] or own[:1]
        cluster = cluster.replace(vcpus=tuple(own))
    if "registers" in parts:
        left = {*some(sorted({name for vcpu in cluster.vcpus for name in vcpu.registers}))}
        cluster = cluster.replace(
            vcpus=tuple(
                vcpu.replace(registers={n: v for n, v in vcpu.registers.items() if n in left})
                for vcpu in cluster.vcpus
            )
        )
    if "reglist" in parts:
        cluster = cluster.replace(vcpus=tuple(v.replace(reglist="") for v in cluster.vcpus))
    of = {part: _NOTHING[part] for part in parts if part in _NOTHING and part != "reglist"}
    cluster = cluster.replace(**{p: of.pop(p) for p in (*of,) if p in cluster.as_dict()})
    known_before = (part in here.unknown or part in parts for part in PARTS)
    return here.replace(
        **of, clusters=(cluster,), unknown=tuple(itertools.compress(PARTS, known_before))
    )


@cache
def _varied(name: str, other: str, registers: frozenset[str], kernel: str) -> HostProfile:
    """A host with some of another's values, and another kernel: hosts as they might be."""
    here, (there,) = _here(name), _here(other).clusters
    values = {n: v for n, v in there.vcpus[0].registers.items() if n in registers}
    (cluster,) = here.clusters
    vcpus = tuple(
        vcpu.replace(
            registers={n: values.get(n, v) for n, v in vcpu.registers.items() if n != "SVE_VLS"}
            | {n: v for n, v in vcpu.registers.items() if n == "SVE_VLS"}
        )
        for vcpu in cluster.vcpus
    )
    midr = vcpus[0].registers["MIDR_EL1"]
    cluster = cluster.replace(vcpus=vcpus, midr=midr, revidr=vcpus[0].registers["REVIDR_EL1"])
    changes: dict[str, Any] = {"kernel": kernel} if kernel else {}
    return here.replace(clusters=(cluster,), **changes)


_register_names = sorted(
    {name for each in _SINGLE for name in host(each).clusters[0].vcpus[0].registers}
)


@st.composite
def _fleets(draw: st.DrawFn) -> list[HostProfile]:
    """Two hosts or three, all of which is known."""
    names = draw(
        st.one_of(
            st.sampled_from(_POOLS),
            st.lists(st.sampled_from(_SINGLE), min_size=2, max_size=3, unique=True),
        )
    )
    other = draw(st.sampled_from(_SINGLE))
    strange = draw(st.booleans())
    kernels = ["", "", "5.14.0-503.11.1.el9", "6.6.9", "6.18.3"]
    hosts = []
    for name in names:
        some = draw(st.frozensets(st.sampled_from(_register_names), max_size=4)) if strange else ()
        kernel = draw(st.sampled_from(kernels)) if strange else ""
        here = _varied(name, other, frozenset(some), kernel)
        if strange and draw(st.booleans()):
            changes = {each: draw(st.sampled_from([0, 1])) for each in ["ARM_WRITABLE_IMP_ID_REGS"]}
            capabilities = {**here.capabilities, **changes}
            here = here.replace(capabilities={n: v for n, v in capabilities.items() if v})
        hosts.append(here)
    return hosts


@st.composite
def _less_known(draw: st.DrawFn, hosts: list[HostProfile]) -> list[HostProfile]:
    forgotten = []
    for here in hosts:
        parts = draw(st.one_of(st.just(_COUNT), st.frozensets(st.sampled_from(_COUNT))))
        left = draw(st.sampled_from(["none", "some", "all"]))

        def some(items: list[Any], left: str = left) -> list[Any]:
            if left != "some":
                return items if left == "all" else []
            return draw(st.lists(st.sampled_from(items), max_size=len(items), unique_by=str))

        forgotten.append(_forgotten(here, parts, some))
    return forgotten


def _everything_in_the_way(hosts: list[HostProfile]) -> set[str]:
    """The subjects of all obstacles, whichever vCPU is asked for, and whose CPU guests see."""
    found = {each.subject for each in find_unlevelled(hosts)}
    members = [Member(each) for each in hosts]
    for model, features in itertools.product(members, common_features(members)):
        made = level_vcpu(members, features, model)
        found |= {each.subject for each in made} if isinstance(made, list) else set()
    for each in hosts:
        found |= {each.subject for each in levelled(hosts, "pool", each.name).obstacles}
    return found


@given(st.data())
@settings(max_examples=80)
def test_what_is_unknown_is_in_nobody_s_way(data: st.DataObject) -> None:
    hosts = data.draw(_fleets())
    less = data.draw(_less_known(hosts))
    whole, found = levelled(hosts, "pool"), levelled(less, "pool")
    assert whole.unknown == ()
    assert {*found.unknown} == {part for each in less for part in each.unknown} - {*SINCE_2}
    assert {each.subject for each in found.obstacles} <= _everything_in_the_way(hosts)
    if whole.profile is not None:
        assert found.profile is not None
    assert (found.profile is None) == bool(found.obstacles)
    shuffled = data.draw(st.permutations(less))
    assert levelled(shuffled, "pool").as_dict() == found.as_dict()
    kinds = kinds_of(less)
    if len(kinds) == len(less):
        said = levelling_view.as_text(found, "pool", kinds, {}, False, True)
        said_as_far = "as far as is known" in said.splitlines()[0]
        assert said_as_far == bool(found.unknown and not found.obstacles)
        json.dumps(levelling_view.as_json(found, "pool", kinds, {}))


_UNLEVELLED = [
    (_SID, _A57), (_TRIXIE, "trixie-cortex-a57"), ("bookworm-neoverse-n1", _TRIXIE),
    ("bookworm-cortex-a53", "bookworm-cortex-a57"), ("trixie-cortex-a76", "sid-a64fx"),
]  # fmt: skip
_OF_VCPUS = ("kernel", "capabilities", "vcpus", "registers", "reglist", "writable")


@given(st.sampled_from(_UNLEVELLED), st.data())
def test_what_is_in_the_way_stays_there_whatever_else_is_unknown(
    names: tuple[str, str], data: st.DataObject
) -> None:
    hosts = [_here(name) for name in names]
    whole = _of(*names)
    assert whole.profile is None
    others = [part for part in _COUNT if part not in _OF_VCPUS]
    subjects = {each.subject for each in whole.obstacles}
    if not subjects & {each.subject for each in find_unlevelled(hosts)}:
        less = [
            _forgotten(each, data.draw(st.frozensets(st.sampled_from(others)))) for each in hosts
        ]
        assert {each.subject for each in levelled(less, "pool").obstacles} == subjects
    # What no register tells.
    part = data.draw(st.sampled_from(["gic_versions", "seen", "qemu"]))
    with_it: dict[str, Any] = {"gic_versions": (2,)}
    for number, each in enumerate(hosts):
        if part == "seen":
            seen = {"CNTFRQ_EL0": 1_000_000 + number}
            with_it = {"clusters": (each.clusters[0].replace(seen=seen),)}
        elif part == "qemu":
            with_it = {"qemu": None}
        rest = data.draw(st.frozensets(st.sampled_from([p for p in _COUNT if p != part])))
        hosts[number] = _forgotten(each.replace(**with_it), rest)
    subject = {"gic_versions": "GIC", "seen": "CNTFRQ_EL0", "qemu": "machine types"}[part]
    assert subject in {each.subject for each in levelled(hosts, "pool").obstacles}
    # A third of which nothing is known changes nothing in that.
    third = _forgotten(_here("sid-max"), _COUNT)
    assert subject in {each.subject for each in levelled([*hosts, third], "pool").obstacles}


@pytest.mark.parametrize(
    "names",
    [
        ("altra", "graviton2@6.18"),
        ("kunpeng920", "altra"),
        ("rpi4", "rpi5"),
        ("m1-firestorm", _SID),
        ("altra", _TRIXIE),
    ],
)
def test_hosts_of_which_little_is_known_may_be_levelled(
    names: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = [name if name in _KNOWN else str(TESTS / "hosts" / f"{name}.json") for name in names]
    file = tmp_path / "pool.yaml"
    assert cli.main(["baseline", "--level", "-o", str(file), *hosts]) == 1
    assert not file.exists()
    said = capsys.readouterr().out
    assert "as far as is known, these 2 hosts can be levelled" in said
    assert "Linux" not in said
    assert ": nothing\n" not in said
    assert cli.main(["baseline", "--level", "--json", *hosts]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["possible"], document["obstacles"]) == (True, [])
    assert {"seen", "qemu", "registers", "reglist"} <= {*document["unknown"]}
    assert {*document["baseline"]} <= {"CPU", "PSCI"}
    # What is definite stays, and it is said all the same what is unknown.
    more = ["graviton2@6.18", "graviton4@6.18"]
    hosts = [name for name in hosts if name not in more] + more
    assert cli.main(["baseline", "--level", "--json", *hosts]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["possible"] is False
    assert {"seen", "qemu"} <= {*document["unknown"]}
    (fwb,) = (o for o in document["obstacles"] if o["subject"] == "ID_AA64MMFR2_EL1.FWB")
    assert fwb["values"]["graviton4@6.18"] == "0x1"
    assert cli.main(["baseline", "altra", "graviton2@6.18"]) == 1


@pytest.mark.parametrize("name", _SINGLE)
def test_one_host_alone_loses_nothing(name: str) -> None:
    here = _here(name)
    for hosts in ([here], [here, here.replace(name="twin")]):
        found = levelled(hosts, "pool")
        assert found.profile is not None
        assert (found.identity, found.missing) == ("", {})
        assert not any(found.lowered.values())
        assert not any(found.errata.values())
        (cluster,) = found.profile.clusters
        assert cluster.level == Level()
        (own,) = here.clusters
        of_host = [vcpu for vcpu in own.vcpus if vcpu.number == own.target]
        assert {v.features: (v.registers, v.reglist) for v in cluster.vcpus} == {
            v.features: (v.registers, v.reglist) for v in of_host
        }


@cache
def _less_of_features() -> HostProfile:
    """A host that gives less of a PMU and of SVE: fields that no vCPU without them has."""
    here = _here("sid-max")
    (cluster,) = here.clusters
    vcpus = []
    for vcpu in cluster.vcpus:
        changed = dict(vcpu.registers)
        changed["ID_AA64ZFR0_EL1"] &= ~0xFF  # AES and SVEver
        if "pmu_v3" in vcpu.features:
            changed["ID_AA64DFR0_EL1"] = changed["ID_AA64DFR0_EL1"] & ~0xF00 | 0x400  # PMUVer
        vcpus.append(vcpu.replace(registers=changed))
    return here.replace(name="less", clusters=(cluster.replace(vcpus=tuple(vcpus)),))


def test_what_only_a_feature_s_registers_tell_is_lowered_too() -> None:
    found = levelled([_here("trixie-max"), _less_of_features()], "pool")
    assert found.lowered["trixie-max"] == {
        "ID_AA64DFR0_EL1.PMUVer": (6, 4),
        "ID_AA64ZFR0_EL1.AES": (2, 0),
        "ID_AA64ZFR0_EL1.SVEver": (1, 0),
    }


@pytest.mark.parametrize("names", _POOLS, ids=" ".join)
def test_all_that_differs_in_any_vcpu_is_lowered(names: tuple[str, ...]) -> None:
    found = _of(*names)
    for name in names:
        (own,) = _here(name).clusters
        differing = set()
        for vcpu in _profile(*names).clusters[0].vcpus:
            registers = (own.vcpu(own.target, vcpu.features) or pytest.fail(name)).registers
            differing |= {n for n, value in vcpu.registers.items() if registers[n] != value}
        told = {what.partition(".")[0] for what in found.lowered[name]}
        assert told == differing.difference(IMPLEMENTATION_ID)


def test_errata_are_those_of_any_vcpu() -> None:
    """What the vCPU of the fewest features rules out, another may suffer."""
    revision = {"MIDR_EL1": 0x411FD070}
    csv2 = _with(_here(_A57), revision, midr=0x411FD070)
    (cluster,) = csv2.clusters
    fewest = min(cluster.vcpus, key=lambda vcpu: len(vcpu.features))
    safe = {**fewest.registers, "ID_AA64PFR0_EL1": fewest.registers["ID_AA64PFR0_EL1"] | 3 << 56}

    def missed_if(those: Callable[[Vcpu], bool]) -> set[str]:
        vcpus = tuple(v.replace(registers=safe) if those(v) else v for v in cluster.vcpus)
        here = csv2.replace(clusters=(cluster.replace(vcpus=vcpus),))
        seen = _with(_here(_A57), {"MIDR_EL1": 0x410FD034}).clusters[0]  # a Cortex-A53
        return {each.name for each in _errata(Member(here), seen)}

    none, few, every = (
        missed_if(lambda _: False),
        missed_if(lambda vcpu: vcpu is fewest),
        missed_if(lambda _: True),
    )
    assert few == none > every


@pytest.mark.parametrize("names", _POOLS, ids=" ".join)
def test_another_host_never_adds_anything(names: tuple[str, ...]) -> None:
    """A pool gives no more than a part of it."""
    for few in itertools.combinations(names, len(names) - 1):
        more, less = _profile(*few).clusters[0], _profile(*names).clusters[0]
        assert {v.features for v in less.vcpus} <= {v.features for v in more.vcpus}
        assert {*less.sve_lengths} <= {*more.sve_lengths}


@pytest.mark.parametrize("names", _POOLS, ids=" ".join)
def test_the_library_can_read_every_text(names: tuple[str, ...]) -> None:
    """Its limits are preload/kvmarm-level.c's."""
    source = (TESTS.parent / "preload/kvmarm-level.c").read_text(encoding="utf-8")
    longest, most = (
        int(re.findall(rf"#define {name} (\d+)", source)[0])
        for name in ("LONGEST_TEXT", "MOST_REGISTERS")
    )
    assert f'#define PROOF "{_PROOF.partition("file=")[2]}"' in source
    (version,) = re.findall(r'#define TEXT_VERSION "(\d+)"', source)
    for target in targets(_profile(*names)):
        text = levelling.text_of(target)
        first, *words = text.split(" ")
        assert first == version
        assert all(re.fullmatch("-?[0-9a-f]{16}(=[0-9a-f]{1,16})?", word) for word in words)
        ids = [word.lstrip("-").partition("=")[0] for word in words]
        assert len({*ids}) == len(ids) <= most / 2
        assert len(text) <= longest / 2
        assert {*ids}.isdisjoint({f"{id_of('SVE_VLS'):x}", f"{id_of('OSLSR_EL1'):x}"})


# -- what a guest does without -------------------------------------------------------------------

_LEFT_OUT = list(rows("left_out.tsv"))


def _clearing(owner: str) -> tuple[str, int, int]:
    """Of "REGISTER.FIELD=VALUE": the register, its value with that field, and with another."""
    place, _, value = owner.partition("=")
    register, _, name = place.partition(".")
    (field,) = (each for each in fields_of(register) if each.name == name)
    other = int(value) + 1
    return register, int(value) << field.lsb, other << field.lsb


@pytest.mark.parametrize(("name", "owner", "agreed"), _LEFT_OUT, ids=lambda each: str(each))
def test_no_guest_is_without_what_it_may_need(name: str, owner: str, agreed: str) -> None:
    base = _target(_TRIXIE, _SID)
    ids = unpack_ids(base.reglist) - {id_of(name)}
    registers = {each: value for each, value in base.registers.items() if each != name}
    target = base.replace(reglist=pack_ids(ids), level=Level((name,)))
    if owner == "-":
        assert agreed_value(name) == int(agreed, 16)
        check_target(target.replace(registers=registers))
        return
    register, cleared, there = _clearing(owner)
    check_target(target.replace(registers={**registers, register: cleared}))
    needs = target.replace(registers={**registers, register: there})
    with pytest.raises(ValueError, match=f"'{name}' left out, which the guest may need"):
        check_target(needs)
    with pytest.raises(KvmarmError):
        record_text.format_facts(needs, Origin("host", "", "kvmarm"))
    with pytest.raises(ValueError, match="may need"):
        check_target(
            target.replace(registers={n: v for n, v in registers.items() if n != register})
        )
    assert not may_be_left_out(name, {})


def test_the_table_names_registers_and_fields_that_there_are() -> None:
    for name, owner, _ in _LEFT_OUT:
        id_of(name)
        if owner != "-":
            _clearing(owner)


@pytest.mark.parametrize(
    "left_out",
    [
        ("PIR_EL1", "TCR2_EL1"),
        ("TCR2_EL1", "TCR2_EL1"),
        ("MIDR_EL1",),
        ("SCTLR_EL1",),
        ("NO_SUCH",),
        ("",),
    ],
)
def test_what_else_is_left_out_is_refused(left_out: tuple[str, ...]) -> None:
    target = _target(_TRIXIE, _SID).replace(level=Level(left_out))
    with pytest.raises(ValueError, match=r"left out|unknown register"):
        check_target(target)


@pytest.mark.parametrize("own", [("NO_SUCH",), ("PIR_EL1",), ("MIDR_EL1", "MIDR_EL1")])
def test_what_is_the_host_s_own_is_recorded(own: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"own|unknown register"):
        check_target(_target(_TRIXIE, _SID).replace(level=Level((), own)))


@pytest.mark.parametrize("owner", ["ID_AA64MMFR3_EL1"])
def test_nothing_is_left_out_for_what_the_next_host_may_have_otherwise(owner: str) -> None:
    """On a host with TCRX, nothing takes it from a guest that is levelled in all but that."""
    target = _target(_TRIXIE, _SID)
    assert target.level is not None
    level = target.level.replace(own=(owner,))
    with pytest.raises(ValueError, match="TCR2_EL1' left out, which the guest may need"):
        check_target(target.replace(level=level))
    check_target(target.replace(level=level.replace(left_out=("VENDOR_HYP_BMAP_2",))))


@pytest.mark.parametrize("change", [{"model": "cortex-a57", "number": 2}])
def test_only_guests_of_the_host_s_model_are_levelled(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a levelled guest that is not of"):
        check_target(_target(_A57, _A72).replace(**change))


# -- records, profiles and pools -----------------------------------------------------------------


def _schema() -> etree.RelaxNG:
    return etree.RelaxNG(file=str(RECORD_SCHEMA))


@pytest.mark.parametrize(
    "level",
    [
        Level(),
        Level(("TCR2_EL1", "PIRE0_EL1", "PIR_EL1", "VENDOR_HYP_BMAP_2")),
        Level(("TCR2_EL1",), ("REVIDR_EL1", "AIDR_EL1")),
        Level((), ("PSCI_VERSION",)),
    ],
)
def test_a_record_is_read_as_it_was_written(level: Level) -> None:
    target = _target(_TRIXIE, _SID).replace(level=level)
    written = record_text.format_whole(
        Record(target, Intent(("commandline",), ()), Origin("pool", "", "kvmarm"), None), b"\n"
    )
    domain = parse(b"<domain><metadata>" + written + b"</metadata></domain>")
    element = record.find(domain)
    assert element is not None
    assert record.read(element).target == target
    assert _schema().validate(etree.fromstring(written)), _schema().error_log


@pytest.mark.parametrize(
    "text",
    [
        "<k:level without=''/>",
        "<k:level own=''/>",
        "<k:level without='PIR_EL1 TCR2_EL1'/>",
        "<k:level without='SCTLR_EL1'/>",
        "<k:level other='1'/>",
        "<k:level>text</k:level>",
        "<k:level/><k:level/>",
        "<k:level own='ID_AA64PFR9_EL1'/>",
    ],
)
def test_a_forged_level_is_refused(text: str) -> None:
    source = _resolved(_TRIXIE, _SID).decode()
    forged = re.sub(r"<kvmarm:level [^>]*/>", text.replace("k:", "kvmarm:"), source)
    assert forged != source
    with pytest.raises(KvmarmError):
        _record_of(forged.encode())


def test_version_1_of_the_record_has_no_level() -> None:
    source = _resolved(_TRIXIE, _SID)
    with pytest.raises(KvmarmError):
        _record_of(source.replace(record.NAMESPACE.encode(), record.NAMESPACE_1.encode()))


@pytest.mark.parametrize("names", _POOLS, ids=" ".join)
def test_a_levelled_profile_is_read_as_it_was_written(names: tuple[str, ...]) -> None:
    profile = _profile(*names)
    text = profile_json.dumps(profile)
    assert profile_json.loads(text) == profile
    schema = json.loads((TESTS.parent / "docs/profile.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    formed = pool.Pool("pool", {name: digest(_here(name)) for name in names}, profile)
    assert pool.loads(pool.dumps(formed)) == formed
    for name in names:
        assert pool.check_member(formed, _here(name)) == []


def test_the_library_is_no_part_of_a_host_s_digest() -> None:
    assert digest(host(_SID)) == digest(_here(_SID))
    text = profile_json.dumps(_here(_SID))
    assert '"level_library": "1"' in text
    assert profile_json.loads(text) == _here(_SID)
    assert "level_library" not in profile_json.dumps(host(_SID))


_HOSTILE: list[tuple[str, Any]] = [
    ("level_library", None), ("level_library", 1), ("level_library", ""), ("level_library", "x"),
    ("level_library", "1" * 99), ("level_library", "1\n"), ("level_library", []),
    ("level", None), ("level", {}), ("level", []), ("level", {"left_out": None}),
    ("level", {"left_out": ["NO_SUCH"]}), ("level", {"left_out": ["SCTLR_EL1"]}),
    ("level", {"left_out": ["PIR_EL1", "TCR2_EL1"]}), ("level", {"left_out": [5]}),
    ("level", {"left_out": ["TCR2_EL1", "TCR2_EL1"]}), ("level", {"left_out": ["ID_PFR0_EL1"]}),
    ("level", {"left_out": ["\x85"]}), ("level", {"left_out": ["A" * 10**5]}),
    ("level", {"left_out": [], "own": []}), ("level", {"left_out": ["TCR2_EL1"] * 100}),
]  # fmt: skip


@pytest.mark.parametrize(("member", "value"), _HOSTILE)
def test_a_hostile_profile_is_refused(member: str, value: Any) -> None:
    document = json.loads(profile_json.dumps(_profile(_TRIXIE, _SID)))
    place = document if member == "level_library" else document["clusters"][0]
    place[member] = value
    with pytest.raises(profile_json.ProfileError) as error:
        profile_json.loads(json.dumps(document))
    assert len(one_line(error.value)) < 400


def test_a_host_is_not_levelled_by_itself() -> None:
    document = json.loads(profile_json.dumps(_profile(_TRIXIE, _SID)))
    document["origin"] = "measured"
    with pytest.raises(profile_json.ProfileError, match="levelled, as no host is by itself"):
        profile_json.loads(json.dumps(document))


def test_the_first_schema_has_no_levels() -> None:
    schema = json.loads((TESTS.parent / "docs/profile.schema.json").read_text(encoding="utf-8"))
    for profile in (_profile(_TRIXIE, _SID).replace(level_library=""), _here(_TRIXIE)):
        document = json.loads(profile_json.dumps(profile))
        document["schema"] = profile_json.SCHEMA_1
        del document["unknown"]
        assert not jsonschema.Draft202012Validator(schema).is_valid(document)
        with pytest.raises(profile_json.ProfileError):
            profile_json.loads(json.dumps(document))


# -- the domain's XML ----------------------------------------------------------------------------

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_LINES = {
    "none": "",
    "empty": f"  <qemu:commandline xmlns:qemu='{_QEMU}'/>\n",
    "blank": f"  <qemu:commandline xmlns:qemu='{_QEMU}'>\n  </qemu:commandline>\n",
    "comment": f"  <q:commandline xmlns:q='{_QEMU}'><!-- none --></q:commandline>\n",
    "children": (
        f"  <qemu:commandline xmlns:qemu='{_QEMU}'>\n    <qemu:arg value='-name'/>\n"
        "    <qemu:arg value='x'/>\n    <qemu:env name='A' value='B'/>\n  </qemu:commandline>\n"
    ),
    "one line": f"  <q:commandline xmlns:q='{_QEMU}'><q:env name='A'/></q:commandline>\n",
    "default": f"  <commandline xmlns='{_QEMU}'>\n    <env name='A'/>\n  </commandline>\n",
    "prefix of another": (
        f"  <y:commandline xmlns:y='{_QEMU}' xmlns:qemu='urn:x'>\n    <y:env name='A'/>\n"
        "  </y:commandline>\n"
    ),
}


def _guest_with(line: str) -> bytes:
    return GUEST.replace(b"</domain>", line.encode() + b"</domain>")


@pytest.mark.parametrize("line", _LINES)
def test_what_was_written_comes_back_to_the_byte(line: str) -> None:
    source = _guest_with(_LINES[line])
    made = _resolved(_TRIXIE, _SID, source=source)
    domain = parse(made)
    assert levelling.says(domain) == levelling.recorded(_record_of(made).target)
    for name in (_TRIXIE, _SID):
        assert _judged(made, _here(name)) == _judged(made, _here(name), boots=True) == []
    assert restore(made, domain) == source


@pytest.mark.parametrize(
    "source",
    [
        b"<domain type='kvm'><os><type arch='aarch64'>hvm</type></os>"
        b"<cpu mode='host-model'/></domain>",
        b"<domain type='kvm'><cpu mode='host-model'/><os><type>hvm</type></os></domain>",
        b"<domain type='kvm'><os><type>hvm</type></os><cpu mode='host-model'></cpu>"
        b"<features/></domain>",
        b"<domain type='kvm'>\r\n\t<os>\r\n\t\t<type>hvm</type>\r\n\t</os>\r\n"
        b"\t<cpu mode='host-model'/>\r\n\t<metadata/>\r\n</domain>\r\n",
        b"<domain type='kvm' xmlns:qemu='urn:x'><os><type>hvm</type></os><metadata> <a/> "
        b"</metadata><cpu mode='host-model'/><features><gic/></features></domain>",
        b"<!-- a --><domain type='kvm'><os><type>hvm</type></os><cpu mode='host-model'/>"
        b"<!-- b --></domain><!-- c -->",
    ],
)
def test_wherever_it_is_put_it_goes_again(source: bytes) -> None:
    made = _resolved(_TRIXIE, _SID, source=source)
    domain = parse(made)
    etree.fromstring(made)
    assert levelling.says(domain) == levelling.recorded(_record_of(made).target)
    assert restore(made, domain) == source


def _as_libvirt_writes(made: bytes) -> bytes:
    """With all <qemu:commandline> as one, its namespace on the root, and arguments before the
    environment (qemuDomainDefNamespaceFormatXML).
    """
    root: Any = etree.fromstring(made)
    lines = root.findall(f"{{{_QEMU}}}commandline")
    children = [child for line in lines for child in line if isinstance(child.tag, str)]
    for line in lines:
        root.remove(line)
    new: Any = etree.Element("domain", root.attrib, nsmap=dict(root.nsmap, qemu=_QEMU))
    new.text = root.text
    new.extend(list(root))
    if children:
        line = etree.SubElement(new, f"{{{_QEMU}}}commandline")
        for kind in ("arg", "env"):
            for child in children:
                if child.tag == f"{{{_QEMU}}}{kind}":
                    etree.SubElement(line, child.tag, dict(child.attrib))
    etree.cleanup_namespaces(new, keep_ns_prefixes=["qemu"])
    return etree.tostring(new)


def _contents(source: bytes) -> Any:
    """What an XML document says, but for white space and prefixes."""

    def read(element: Any) -> Any:
        children = [read(child) for child in element if isinstance(child.tag, str)]
        if element.tag == f"{{{_QEMU}}}commandline" and not children:
            return None
        text = (element.text or "").strip()
        return element.tag, dict(element.attrib), text, [c for c in children if c is not None]

    return read(etree.fromstring(source))


@pytest.mark.parametrize("line", _LINES)
def test_it_comes_back_after_libvirt_has_written_it_anew(line: str) -> None:
    source = _guest_with(_LINES[line])
    written = _as_libvirt_writes(_resolved(_TRIXIE, _SID, source=source))
    domain = parse(written)
    assert levelling.says(domain) == levelling.recorded(_record_of(written).target)
    for name in (_TRIXIE, _SID):
        assert _judged(written, _here(name)) == []
    assert _contents(restore(written, domain)) == _contents(source)


def test_what_the_user_has_added_since_stays() -> None:
    made = _resolved(_TRIXIE, _SID)
    edited = made.replace(b"<qemu:arg", b"<qemu:env name='A' value='B'/><qemu:arg", 1)
    assert _judged(edited, _here(_SID)) == []
    kept = restore(edited, parse(edited))
    assert b"<qemu:env name='A' value='B'/>" in kept
    assert b"kvmarm" not in kept
    assert levelling.says(parse(kept)) == {}


def _asking(here: HostProfile) -> Callable[[Target], Offer]:
    return lambda target: ProfileOffer(target, here, here.clusters[0])


def test_members_make_the_same_of_a_domain() -> None:
    formed = pool.Pool("pool", {}, _profile(_TRIXIE, _SID))
    made = {
        pool.resolver(formed, Policy(), name, (), _asking(_here(name))).resolve(GUEST)
        for name in (_TRIXIE, _SID)
    }
    assert len(made) == 1


def test_a_member_without_the_library_resolves_nothing() -> None:
    formed = pool.Pool("pool", {}, _profile(_TRIXIE, _SID))
    resolver = pool.resolver(formed, Policy(), _SID, (), _asking(host(_SID)))
    with pytest.raises(KvmarmError, match="libkvmarm-level") as error:
        resolver.resolve(GUEST)
    one_line(error.value)
    assert error.value.hint.startswith(f"install kvmarm-level on {_SID}; if it is there, ")


def test_refreshing_is_as_resolving() -> None:
    made = _resolved(_TRIXIE, _SID)
    again = Resolver(_profile(_TRIXIE, _SID), Policy()).resolve(restore(made, parse(made)))
    assert again == made


def test_a_guest_of_a_levelled_pool_becomes_one_of_another() -> None:
    """Of plain hosts, too: what levelled it is gone."""
    made = _resolved(_TRIXIE, _SID)
    plain = Resolver(host(_SID), Policy()).resolve(restore(made, parse(made)))
    assert b"qemu:" not in plain
    assert _judged(plain, host(_SID)) == []


# -- where a guest runs --------------------------------------------------------------------------


@pytest.mark.parametrize("names", _POOLS, ids=" ".join)
def test_a_guest_runs_on_members_and_elsewhere_it_is_said_what_is_not_so(
    names: tuple[str, ...],
) -> None:
    made = _resolved(*names)
    for name in _SINGLE:
        here = _here(name)
        found = _judged(made, here)
        if name in names:
            assert found == []
        elif found:
            for finding in found:
                said = texts(finding)
                assert said["subject"]
                assert said["rule"]


def test_elsewhere_the_field_is_named() -> None:
    """A field that the pool's guests have, and this host lacks, or cannot hide."""
    made = _resolved("trixie-max", "sid-max")
    said = {texts(finding)["subject"] for finding in _judged(made, _here("trixie-max-nobti"))}
    assert said == {"ID_AA64PFR1_EL1.BT"}
    (finding,) = _judged(made, _here("trixie-max-nobti"))
    assert (finding.kind, finding.severity) == ("level-refused-field", REFUSES)
    assert finding.stops_start


def test_a_host_whose_kernel_has_not_the_register_runs_no_guest() -> None:
    """QEMU 11.1 does without VENDOR_HYP_BMAP_2, and libkvmarm-level does not."""
    made = _resolved(_A57, _A72)
    assert _record_of(made).target.registers["VENDOR_HYP_BMAP_2"] == 0
    here = _here("trixie-cortex-a72").replace(qemu=host(_A72).qemu)
    for boots in (False, True):
        found = {f.kind: f for f in _judged(made, here, boots)}
        assert found["level-unknown"].values["registers"] == ("VENDOR_HYP_BMAP_2",)
        assert found["level-unknown"].stops_start


@pytest.mark.parametrize("boots", [False, True])
@pytest.mark.parametrize("version", ["", "0", "2"])
def test_without_the_library_no_guest_starts(version: str, boots: bool) -> None:
    here = _here(_SID).replace(level_library=version)
    (finding,) = _judged(_resolved(_TRIXIE, _SID), here, boots)
    assert finding.kind == ("level-library-other" if version else "level-library")
    assert finding.stops_start
    said = texts(finding)
    assert said["local"] == (version or "missing")
    change = {"": "install", "0": "upgrade", "2": "downgrade"}[version]
    assert said["remedy"].startswith(f"{change} kvmarm-level on {_SID}")


def test_of_a_host_that_is_known_in_part_nothing_is_claimed() -> None:
    """Nobody looked for the library there, and nobody asked its kernel for MIDR_EL1."""
    target = _target(_TRIXIE, _SID)
    for name in _KNOWN:
        findings = check(target, known.read(name), cpus=())
        assert not any(f.group == "library" or f.kind == "level-unknown" for f in findings)
    given = _profile("graviton3@6.18", "graviton4@6.18")
    (vcpu, *_) = given.clusters[0].vcpus
    target = target.replace(
        features=vcpu.features, registers=vcpu.registers, reglist="", seen={},
        level=given.clusters[0].level,
    )  # fmt: skip
    for name in ("graviton3@6.18", "graviton4@6.18"):
        found = _blocking(check(target, known.read(name), cpus=()))
        assert {f.severity for f in found} <= {UNKNOWN}, found

    # A kernel that is older by its number may be a vendor's, with a newer KVM.
    here = known.read("graviton3@6.18").replace(kernel="6.12.0")
    (cluster,) = here.clusters
    (vcpu,) = cluster.vcpus
    registers = {n: value for n, value in vcpu.registers.items() if n != "VENDOR_HYP_BMAP_2"}
    cluster = cluster.replace(vcpus=(vcpu.replace(registers=registers),))
    unasked = here.replace(clusters=(cluster,))
    of_midr = {f.kind for f in check(target, unasked, cpus=()) if "MIDR_EL1" in _register(f)}
    assert of_midr == {"register-not-known"}
    asked = unasked.replace(unknown=tuple(p for p in here.unknown if p != "capabilities"))
    assert "level-refused-identity" in {f.kind for f in check(target, asked, cpus=())}


def _register(finding: Finding) -> str:
    return str(finding.values.get("register", ""))


def test_what_nobody_measured_is_not_known() -> None:
    """Masks: a value that one kernel of its release takes and another may not."""
    made = _target("trixie-max", "trixie-max-nobti")
    here = _here("trixie-max")
    unmeasured = here.replace(
        kernel="5.14.0-503.el9",
        unknown=(*SINCE_2, "writable"),
        clusters=(here.clusters[0].replace(writable=None),),
    )
    kinds = {f.kind for f in _blocking(check(made, unmeasured, cpus=()))}
    assert "register-not-known" in kinds
    assert not any(kind.startswith("level-refused") for kind in kinds)


_EDITS = {
    "text": (b"value='1 ", b"value='1 0="),
    "a register gone": (b" 603000000013c000=", b" 603000000013c001="),
    "version": (b"value='1 ", b"value='2 "),
    "library": (b"value='libkvmarm-level.so.1'", b"value='/tmp/evil.so'"),
    "proof": (_PROOF.encode(), b"secret,id=kvmarm-level,data=x"),
    "object": (b"value='-object'", b"value='-name'"),
}


@pytest.mark.parametrize("edit", _EDITS)
def test_an_edit_shows(edit: str) -> None:
    made = _resolved(_TRIXIE, _SID)
    old, new = _EDITS[edit]
    assert old in made
    edited = made.replace(old, new, 1)
    found = [f for f in _judged(edited, _here(_SID)) if f.kind == "level-edited"]
    assert found
    for finding in found:
        assert len(texts(finding)["recorded"]) <= 60


@pytest.mark.parametrize("edit", ["text", "a register gone", "version", "proof"])
def test_an_edit_is_gone_when_it_is_refreshed(edit: str) -> None:
    """QEMU starts no guest with two objects of one id."""
    made = _resolved(_TRIXIE, _SID)
    edited = made.replace(*_EDITS[edit], 1)
    source = restore(edited, parse(edited))
    assert b"qemu:" not in source
    assert _resolved(_TRIXIE, _SID, source=source) == made


@pytest.mark.parametrize("before", [False, True])
def test_a_second_library_shows(before: bool) -> None:
    """QEMU gets one LD_PRELOAD: libvirt's virCommandAddEnv keeps the last."""
    made = _resolved(_TRIXIE, _SID)
    ours = b"<qemu:env name='LD_PRELOAD' value='libkvmarm-level.so.1'/>"
    other = b"<qemu:env name='LD_PRELOAD' value='/usr/lib/libjemalloc.so.2'/>"
    edited = made.replace(ours, other + ours if before else ours + other)
    for boots in (False, True):
        (finding,) = _judged(edited, _here(_SID), boots)
        assert finding.kind == "level-edited"
        assert "libjemalloc" in texts(finding)["local"]


def test_whatever_is_removed_shows() -> None:
    made = _resolved(_TRIXIE, _SID)
    pattern = rb"\s*<qemu:(arg|env)[^>]*/>"
    lines = [found[0] for found in re.finditer(pattern, made)]
    assert len(lines) == 4
    for line in lines:
        kinds = {f.kind for f in _judged(made.replace(line, b"", 1), _here(_SID))}
        assert "level-edited" in kinds
    for line in lines:
        twice = made.replace(line, line * 2, 1)
        if b"'-object'" not in line:
            assert "level-edited" in {f.kind for f in _judged(twice, _here(_SID))}
    bare = re.sub(rb"(?s)\s*<qemu:commandline.*</qemu:commandline>", b"", made)
    assert {f.kind for f in _judged(bare, _here(_SID))} == {"level-edited"}


def test_a_guest_that_is_not_levelled_says_nothing_of_it() -> None:
    made = _resolved(_TRIXIE, _SID)
    line = re.findall(rb"(?s)<qemu:commandline.*</qemu:commandline>", made)[0]
    plain = Resolver(host(_SID), Policy()).resolve(GUEST)
    edited = plain.replace(b"</domain>", line + b"</domain>")
    assert {f.kind for f in _judged(edited, _here(_SID))} == {"level-unrecorded"}


@pytest.mark.parametrize("name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "KVMARM_LEVEL"])
def test_a_library_of_the_user_s(name: str) -> None:
    line = (
        f"<qemu:commandline xmlns:qemu='{_QEMU}'><qemu:env name='{name}' value='/opt/own.so'/>"
        "</qemu:commandline>"
    )
    source = _guest_with(line)
    if name == "LD_PRELOAD":
        with pytest.raises(ResolveError, match="a library of its own") as error:
            _resolved(_TRIXIE, _SID, source=source)
        one_line(error.value)
        return
    if name == "KVMARM_LEVEL":  # it is for nothing else
        with pytest.raises(ResolveError, match="kvmarm has written for another CPU") as error:
            _resolved(_TRIXIE, _SID, source=source)
        one_line(error.value)
        return
    made = _resolved(_TRIXIE, _SID, source=source)
    assert restore(made, parse(made)) == source


def test_an_emulator_that_may_be_a_script_gets_a_word() -> None:
    """A script's children get no library, and QEMU ends."""
    named = b"<devices><emulator>/opt/qemu.sh</emulator></devices>"
    source = GUEST.replace(b"<devices/>", named)
    for here, words in ((_profile(_TRIXIE, _SID), 1), (host(_SID), 0)):
        said: list[str] = []
        Resolver(here, Policy(), advise=said.append).resolve(source)
        assert sum("if /opt/qemu.sh is a script" in line for line in said) == words, said


def test_what_was_left_behind_is_not_taken_for_the_user_s() -> None:
    """Whoever takes the record out of a levelled guest, and then asks for host-model."""
    made = _resolved(_TRIXIE, _SID)
    line = re.findall(rb"(?s)  <qemu:commandline.*</qemu:commandline>", made)[0]
    source = GUEST.replace(b"</domain>", line + b"</domain>")
    for here in (_profile(_TRIXIE, _SID), host(_SID)):
        with pytest.raises(ResolveError, match="kvmarm has written for another CPU"):
            Resolver(here, Policy()).resolve(source)


def test_a_guest_whose_level_was_taken_out_starts_and_is_another() -> None:
    """QEMU then starts it, whether the library is there or not."""
    made = _resolved(_TRIXIE, _SID)
    bare = re.sub(rb"(?s)\s*<qemu:commandline.*</qemu:commandline>", b"", made)
    found = _judged(bare, host(_SID), boots=True)
    assert {finding.kind for finding in found} == {"level-edited"}
    assert not any(finding.stops_start for finding in found)


@pytest.mark.parametrize(
    ("version", "what"),
    [
        ("", f"install kvmarm-level on {_SID}"),
        ("0", f"upgrade kvmarm-level on {_SID} from version 0 of its text to 1"),
    ],
)
def test_a_member_without_the_library_is_told_what_to_install(
    version: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    formed = pool.Pool("pool", {}, _profile(_TRIXIE, _SID))
    file = tmp_path / "pool.yaml"
    file.write_text(pool.dumps(formed), encoding="utf-8")
    here = host(_SID).replace(level_library=version)
    assert cli.main(["check", str(file), "--host", _file(tmp_path, here)]) == 3
    said = capsys.readouterr().out
    assert f"Remedy: {what}" in said
    assert "baseline anew" not in said
    assert cli.main(["check", str(file), "--host", _file(tmp_path, _here(_SID))]) == 0


def test_a_member_without_the_library_has_not_drifted() -> None:
    """It is as it was when the pool was made, and what helps is said once."""
    formed = pool.Pool("rack-7", {_SID: digest(host(_SID))}, _profile(_TRIXIE, _SID))

    def refused(here: HostProfile) -> KvmarmError:
        ask = lambda target: ProfileOffer(target, here, here.clusters[0])  # noqa: E731
        with pytest.raises(ResolveError) as error:
            pool.resolver(formed, Policy(), _SID, (), ask).resolve(GUEST)
        return error.value

    error = refused(host(_SID))
    assert error.message.startswith(f"{_SID} is not ready for pool rack-7: libkvmarm-level")
    assert str(error).count("install kvmarm-level") == 1
    changed = _with(host(_SID), {"ID_AA64ISAR0_EL1": 0}).replace(level_library="")
    assert f"{_SID} has drifted out of pool rack-7" in str(refused(changed))
    assert pool.has_drifted(pool.check_member(formed, changed))
    assert not pool.has_drifted(pool.check_member(formed, host(_SID)))


def test_what_is_refused_is_said_before_what_is_unknown() -> None:
    """Of a member, as of a guest."""
    formed = pool.Pool("pool", {}, _profile(_TRIXIE, _SID))
    for here in (known.read("graviton2@6.18"), known.read("graviton3@6.18"), host(_TRIXIE)):
        ranks = [finding.rank for finding in pool.check_member(formed, here)]
        assert ranks == sorted(ranks)
        assert ranks


def test_what_became_of_host_model_says_that_it_is_levelled() -> None:
    said = resolving._summary(_resolved(_TRIXIE, _SID))
    assert re.fullmatch(r": host-model is now .*, levelled by libkvmarm-level", said)
    assert "levelled" not in resolving._summary(Resolver(host(_SID), Policy()).resolve(GUEST))


def test_a_levelled_guest_is_shown_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "guest.xml"
    file.write_bytes(_resolved(_TRIXIE, _SID))
    assert cli.main(["show", str(file)]) == 0
    assert "levelled    by libkvmarm-level, without TCR2_EL1 PIRE0_EL1" in capsys.readouterr().out
    assert cli.main(["show", "--json", str(file)]) == 0
    level = json.loads(capsys.readouterr().out)["target"]["level"]
    assert level == {
        "left_out": ["TCR2_EL1", "PIRE0_EL1", "PIR_EL1", "VENDOR_HYP_BMAP_2"],
        "own": [],
        "cpus": [],
    }


def test_a_cpu_that_is_not_the_pool_s_is_no_home(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its errata nobody has looked at, and its PMU counts other events."""
    kernels = ("sid-cortex-a57", "trixie-cortex-a57")
    both = _profile(_A57, _A72)
    assert both.clusters[0].level is not None
    assert len(both.clusters[0].level.cpus) == 2
    assert profile_json.loads(profile_json.dumps(both)) == both
    made = _resolved(_A57, _A72)
    assert b" cpus='0x" in made
    assert restore(made, parse(made)) == GUEST
    for name in (_A57, _A72):
        assert _blocking(check(_target(_A57, _A72), _here(name))) == []
        kinds = {finding.kind for finding in check(_target(*kernels), _here(name))}
        assert ("level-other-cpu" in kinds) is (name == _A72)
    file = tmp_path / "pool.yaml"
    file.write_text(pool.dumps(pool.Pool("pool", {}, _profile(*kernels))), encoding="utf-8")
    assert cli.main(["check", str(file), "--host", _file(tmp_path, _here(_A72))]) == 3
    assert "would not know of the errata of another" in capsys.readouterr().out


# -- what is printed -----------------------------------------------------------------------------


def _file(directory: Path, here: HostProfile) -> str:
    path = directory / f"{here.name}.json"
    path.write_text(profile_json.dumps(here), encoding="utf-8")
    return str(path)


def test_hosts_of_a_kind_are_counted_and_all_need_the_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without, twin = host(_SID), _here(_SID).replace(name="a-twin", level_library="0")
    files = [_file(tmp_path, each) for each in (_here(_TRIXIE), without, twin)]
    out = tmp_path / "pool.yaml"
    assert cli.main(["baseline", "--level", "-o", str(out), *files]) == 0
    said = capsys.readouterr().out
    assert "pool: 3 hosts, guests that libkvmarm-level levels" in said
    assert f"To do: install kvmarm-level on {without.name}; where it is there, " in said
    assert "To do: kvmarm-level of version 1 of its text on a-twin (version 0)\n" in said
    assert said.endswith(
        f"Until then define, check and doctor refuse on {without.name}, a-twin, and guests of the"
        " pool do not start there\n"
    )
    assert f"  a-twin, {without.name}: virt-11.1 (has virt-10.0)" in said
    assert set(pool.loads(out.read_text(encoding="utf-8")).members) == {
        _TRIXIE,
        without.name,
        twin.name,
    }
    assert cli.main(["baseline", "--level", "--json", *files]) == 0
    document = json.loads(capsys.readouterr().out)
    assert sorted(document["hosts"]) == sorted([_TRIXIE, without.name, twin.name])
    assert document["kinds"] == [["a-twin", without.name], [_TRIXIE]]
    assert document["lacking"] == [without.name, "a-twin"]
    assert "PSCI_VERSION" in document["lowered"]["a-twin"]


def test_hosts_that_need_no_levelling_form_a_plain_pool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pool.yaml"
    files = [_file(tmp_path, _here(_SID).replace(name=name)) for name in ("alpha", "beta")]
    assert cli.main(["baseline", "--level", "-o", str(out), *files]) == 0
    assert "libkvmarm-level" not in capsys.readouterr().out
    assert pool.loads(out.read_text(encoding="utf-8")).baseline.clusters[0].level is None


def test_hosts_are_levelled_for_a_feature_that_a_plain_pool_has_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pool.yaml"
    command = ["baseline", "-o", str(out)]
    files = [_file(tmp_path, here) for here in (_here("sid-max"), _less_of_features())]
    assert cli.main([*command, *files]) == 0
    assert not _clusters(pool.loads(out.read_text(encoding="utf-8")).baseline).has("sve")
    capsys.readouterr()
    assert cli.main([*command, "--level", *files]) == 0
    assert "  levelled   for PMU, SVE: a plain pool of them has none\n" in capsys.readouterr().out
    cluster = _clusters(pool.loads(out.read_text(encoding="utf-8")).baseline)
    assert cluster.level is not None
    assert cluster.has("sve")
    assert cluster.has("pmu_v3")


def test_hosts_form_a_plain_pool_where_levelling_keeps_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One has fewer counters: no guest has a PMU, levelled or not."""
    out = tmp_path / "pool.yaml"
    cluster = _clusters(_here(_SID))
    seen = {**cluster.seen, "PMCR_EL0": 2 << 11}
    fewer = _here(_SID).replace(name="fewer", clusters=(cluster.replace(seen=seen),))
    files = [_file(tmp_path, here) for here in (_here(_SID), fewer)]
    assert cli.main(["baseline", "--level", "-o", str(out), *files]) == 0
    assert "libkvmarm-level" not in capsys.readouterr().out
    formed = _clusters(pool.loads(out.read_text(encoding="utf-8")).baseline)
    assert formed.level is None
    assert not formed.has("pmu_v3")


@pytest.mark.parametrize("identity", [_A57, _A72])
def test_guests_see_the_cpu_that_was_chosen(
    identity: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [_file(tmp_path, _here(name)) for name in (_A57, _A72)]
    out = tmp_path / "pool.yaml"
    arguments = ["--identity", identity, "--accept-errata", "-o", str(out)]
    assert cli.main(["baseline", "--level", *arguments, *files]) == 0
    assert f"that of {identity}" in capsys.readouterr().out
    (cluster,) = pool.loads(out.read_text(encoding="utf-8")).baseline.clusters
    (own,) = host(identity).clusters
    assert (cluster.midr, cluster.part) == (own.midr, own.part)
    assert all(vcpu.registers["MIDR_EL1"] == own.midr for vcpu in cluster.vcpus)
    assert not any("pmu_v3" in vcpu.features for vcpu in cluster.vcpus)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--identity", _A57, _TRIXIE, _SID], "no host of these is called"),
        (["--identity", "\x85\n" * 99, _TRIXIE, _SID], "no host of these is called"),
    ],
)
def test_an_identity_is_a_host_s(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(HOSTS.get(each, each)) for each in arguments[2:]]
    assert cli.main(["baseline", "--level", *arguments[:2], *files]) == 1
    error = capsys.readouterr().err
    assert said in error
    # Of a plain pool, too.
    assert cli.main(["baseline", "--level", *arguments[:2], files[0]]) == 1
    assert capsys.readouterr().err.startswith(error.partition(" (hint: ")[0])
    assert all(line.isprintable() for line in error.splitlines())


@pytest.mark.parametrize("option", [["--identity", _SID], ["--accept-errata"]])
def test_what_is_for_levelled_pools_needs_one(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["baseline", *option, str(HOSTS[_SID])]) == 2  # as all wrong usage
    assert "add --level" in capsys.readouterr().err


def test_a_text_is_short_and_explained_on_request() -> None:
    names = ("graviton3@6.18", "graviton4@6.18")
    kinds = kinds_of([_here(name) for name in names])
    result = _of(*names)
    short = levelling_view.as_text(result, "pool", kinds, {}, False, False)
    whole = levelling_view.as_text(result, "pool", kinds, {}, False, True)
    assert "--explain has all" in short
    assert "--explain" not in whole
    assert len(whole.splitlines()) > len(short.splitlines())
    assert all(line.isprintable() for line in whole.splitlines())


def test_one_host_is_no_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["baseline", "--level", "graviton3@6.18"]) == 1
    assert "pool: as far as is known, this host can be levelled" in capsys.readouterr().out


def test_errata_are_said_of_all_hosts_of_a_kind() -> None:
    """A Cortex-A57 of a revision that has ARM64_ERRATUM_832075."""
    one = _with(_here(_A57), {"MIDR_EL1": 0x411FD070}, midr=0x411FD070)
    kinds = kinds_of([one.replace(name="alpha"), one.replace(name="beta"), _here(_A72)])
    result = levelled([kind.host for kind in kinds], "pool", identity=_A72)
    said = levelling_view.as_text(result, "pool", kinds, {}, True, False).splitlines()
    (place,) = (number for number, line in enumerate(said) if "ARM64_ERRATUM_832075" in line)
    assert "  alpha, beta:" in said[:place]


@pytest.mark.parametrize("name", ["\x85" * 50, "a\nb", "x" * 300])
def test_a_hostile_name_is_shown(name: str) -> None:
    here = _here(_SID).replace(name=name)
    result = levelled([here, _here(_TRIXIE)], name)
    kinds = kinds_of([here, _here(_TRIXIE)])
    said = levelling_view.as_text(result, name, kinds, {name: ""}, False, True)
    assert all(line.isprintable() for line in said.splitlines())
    json.dumps(levelling_view.as_json(result, name, kinds, {}))


def _clusters(here: HostProfile) -> Cluster:
    (cluster,) = here.clusters
    return cluster


def test_a_pmu_is_kept_where_cpus_and_counters_are_the_same() -> None:
    assert _clusters(_profile(_TRIXIE, _SID)).has("pmu_v3")
    seen = _clusters(host(_SID)).seen
    fewer = _here(_SID).replace(
        clusters=(_clusters(host(_SID)).replace(seen={**seen, "PMCR_EL0": 2 << 11}),)
    )
    found = levelled([_here(_TRIXIE), fewer], "pool")
    assert found.missing == {"PMU": "the hosts have 2 event counters, 6 event counters"}
    assert "events are the CPU's own" in _of(_A57, _A72).missing["PMU"]
