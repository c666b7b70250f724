# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every kind of finding, made by what finds it: judge/findings.tsv has no row too many, none too
few, and none that says the wrong thing.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from string import Formatter
from types import SimpleNamespace
from typing import Any, Callable
from unittest.mock import patch

import pytest

import kvmarm_plugin
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.fleet.baseline import baseline
from kvmarm_plugin.fleet.compare import compare
from kvmarm_plugin.fleet.levelling import levelled
from kvmarm_plugin.fleet.obstacles import find_obstacles
from kvmarm_plugin.fleet.pool import check_member
from kvmarm_plugin.judge import finding as finding_module
from kvmarm_plugin.judge.by_profile import ProfileOffer, check, counted
from kvmarm_plugin.judge.contradictions import find_contradictions, memory_refused
from kvmarm_plugin.judge.finding import HARMLESS, REFUSES, UNKNOWN, WRONG, Finding, kinds
from kvmarm_plugin.judge.pinning import reconcile_pins, with_cluster
from kvmarm_plugin.judge.verdict import judge
from kvmarm_plugin.judge.wording import in_short, line, named_in, texts
from kvmarm_plugin.kvm.device import System
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.model.target import Pinning, Target
from kvmarm_plugin.registers.table import fields_of, id_of
from kvmarm_plugin.registers.text import pack_ids, unpack_ids
from kvmarm_plugin.rehearse import rehearse
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import Wish
from tests.corpus import GUEST, TESTS, host

from .fakekernel import FakeKernel

_N1, _MAX = "trixie-neoverse-n1", "trixie-max"


def _target(
    name: str = _N1, machine: str = "", policy: Policy | None = None, **changes: Any
) -> Target:
    """What an open guest gets on a host of the corpus, with some parts replaced."""
    return (
        Resolver(host(name), policy or Policy()).target(Wish("aarch64", machine)).replace(**changes)
    )


def _host(of: str = _N1, cluster: dict[str, Any] | None = None, **changes: Any) -> HostProfile:
    """A host of the corpus with some parts replaced, and of its first cluster."""
    here = host(of)
    clusters = (here.clusters[0].replace(**cluster),) if cluster else here.clusters
    return here.replace(**{"clusters": clusters, **changes})


def _with_qemu(machines: tuple[str, ...]) -> HostProfile:
    qemu = host(_N1).qemu
    assert qemu is not None
    return _host(qemu=qemu.replace(machines=machines, aliases={"virt": machines[0]}))


_OPEN = Policy(prefer_named=False)


def _old_board(**changes: Any) -> HostProfile:
    return _host("hand-made-a15-3.10", **changes)


def _without_host_model() -> HostProfile:
    qemu = host(_N1).qemu
    assert qemu is not None
    return _host(qemu=qemu.replace(cpu_models=("cortex-a57",)))


def _older_qemu(bits: int) -> HostProfile:
    qemu = host(_N1).qemu
    assert qemu is not None
    return _host(qemu=qemu.replace(version="6.2.0"), ipa_bits=bits)


def _with_register(name: str, value: int, of: str = _N1, **cluster: Any) -> HostProfile:
    return _with_registers(of, {name: value}, **cluster)


def _with_registers(of: str, changes: dict[str, int], **cluster: Any) -> HostProfile:
    vcpus = tuple(
        v.replace(registers={**v.registers, **changes}) for v in host(of).clusters[0].vcpus
    )
    return _host(of, cluster={"vcpus": vcpus, **cluster})


class _Stubborn(ProfileOffer):
    """A host whose kernel refuses whatever differs, by rules of its own."""

    def accepts(self, register: str, value: int) -> bool:
        return False


def _field(register: str, name: str, recorded: int, local: int, writable: bool) -> list[Finding]:
    """The findings where a kernel refuses a field, which is writable or not."""
    (field,) = (field for field in fields_of(register) if field.name == name)
    of = _MAX if name == "SVE" else _N1
    base = _target(of)
    cleared = base.registers.get(register, 0) & ~((1 << field.msb + 1) - (1 << field.lsb))
    here = _with_register(
        register,
        cleared | local << field.lsb,
        of,
        writable={register: (1 << 64) - 1} if writable else {},
    )
    target = base.replace(registers={**base.registers, register: cleared | recorded << field.lsb})
    return judge(target, _Stubborn(target, here, here.clusters[0]))


def _once_shown() -> Target:
    """A guest of an older kernel, which shows it that the CPU has MPAM."""
    registers = _target().registers
    return _target(
        registers={**registers, "ID_AA64PFR0_EL1": registers["ID_AA64PFR0_EL1"] | 1 << 40}
    )


def _field_kinds(rule: str, writable: bool) -> dict[str, Callable[[], list[Finding]]]:
    """The kinds of one rule, by what there is to do."""
    fields = {
        "switch": ("ID_AA64DFR0_EL1", "PMUVer", 6, 4),
        "switch-or-override": ("ID_AA64PFR0_EL1", "SVE", 1, 0),
        "override-there": ("ID_AA64PFR1_EL1", "BT", 1, 0),
        "override-here": ("ID_AA64ISAR2_EL1", "MOPS", 0, 1),
        "override-both": ("ID_AA64MMFR0_EL1", "ECV", 2, 1),
        "newer-kernel": ("ID_AA64PFR0_EL1", "DIT", 0, 1),
        "resolve-here": ("ID_AA64PFR0_EL1", "DIT", 1, 0),
        "hopeless": ("ID_AA64MMFR0_EL1", "TGRAN4_2", 2, 3),
    }
    if writable:
        del fields["override-both"]
    return {
        f"{rule}-{remedy}": partial(_field, *values, writable) for remedy, values in fields.items()
    }


def _rehearsed(target: Target) -> list[Finding]:
    """Of a guest that a played kernel makes no vCPU for."""
    name = SimpleNamespace(machine="aarch64", nodename="here", release="6.12.0")
    with (
        patch.object(os, "uname", lambda: name),
        System(FakeKernel.from_profile(host(_N1))) as system,
    ):
        return rehearse(target, system)


def _pinned(old: bytes, new: bytes) -> list[Finding]:
    """Of a guest of an RK3399 whose pins were edited."""
    here = host("hand-made-rk3399")
    source = Resolver(here, Policy()).resolve(GUEST.replace(b"<os>", b"<vcpu>2</vcpu><os>", 1))
    assert old in source
    domain = parse(source.replace(old, new))
    recorded = record.read(record.find(domain) or pytest.fail("no record"))
    return reconcile_pins(source, domain, recorded, counted(here), movable=False)[2]


def _edited() -> list[Finding]:
    domain = parse(Resolver(host(_N1), Policy()).resolve(GUEST))
    return find_contradictions(domain, _target(machine="virt-9.0"))


def _with_edit(old: bytes, new: bytes, there: int = 48, here: int = 48) -> list[Finding]:
    """Of a guest from a host of so many bits of addresses, on one of so many."""
    source = Resolver(_host(ipa_bits=there), Policy()).resolve(GUEST)
    assert old in source
    domain = parse(source.replace(old, new))
    recorded = record.read(record.find(domain) or pytest.fail("no record"))
    return find_contradictions(domain, recorded.target, host_ipa_bits=here)


def _levelled(of: str = _N1) -> HostProfile:
    """The profile of a levelled pool."""
    profile = levelled([host(of), host(of.replace("trixie", "sid"))], "pool").profile
    assert profile is not None
    return profile


def _levelled_on(name: str, value: int | None) -> list[Finding]:
    """Of a guest of that pool on a host that gives one register another value, or has none."""
    target = Resolver(_levelled(), Policy()).target(Wish("aarch64"))
    vcpus = []
    for vcpu in host(_N1).clusters[0].vcpus:
        registers = {**vcpu.registers, name: value or 0}
        ids = unpack_ids(vcpu.reglist)
        if value is None:
            del registers[name]
            ids -= {id_of(name)}
        vcpus.append(vcpu.replace(registers=registers, reglist=pack_ids(ids)))
    return check(target, _host(cluster={"vcpus": tuple(vcpus)}, level_library="1"))


def _other_cpu(profile: HostProfile) -> HostProfile:
    """Of another revision: Neoverse N1 r3p1 in place of r4p1."""
    midr = 0x413FD0C1
    (cluster,) = profile.clusters
    vcpus = tuple(
        vcpu.replace(registers={**vcpu.registers, "MIDR_EL1": midr}) for vcpu in cluster.vcpus
    )
    return profile.replace(clusters=(cluster.replace(midr=midr, vcpus=vcpus),))


def _with_record_of(xml_of: HostProfile, record_of: HostProfile) -> list[Finding]:
    domain = parse(Resolver(xml_of, Policy()).resolve(GUEST))
    return find_contradictions(
        domain, Resolver(record_of, Policy()).target(Wish("aarch64", "virt-10.0"))
    )


def _of_others(hosts: list[HostProfile]) -> list[Finding]:
    return [obstacle.finding for obstacle in find_obstacles(hosts)]


def _missing_machines() -> list[Finding]:
    formed = baseline([host(_N1), host(_N1).replace(name="twin")]).pool
    assert formed is not None
    return check_member(
        formed, _with_qemu(formed.baseline.qemu.machines[:1] if formed.baseline.qemu else ())
    )


_NO_PMU = {name: answer for name, answer in host(_N1).capabilities.items() if name != "ARM_PMU_V3"}


# Each kind → what finds it.
def _compared(**changes: Any) -> list[Finding]:
    """Of guests that move from one host to another that differs in some parts."""
    here = _host(name="here", page_size=4096, gicd_iidr=0x1043B)
    pairs = compare([here, here.replace(name="there", kernel="6.13.0", **changes)], Policy()).pairs
    return [finding for pair in pairs for finding in pair.findings]


def _between(one: HostProfile, other: HostProfile) -> list[Finding]:
    """Of guests that cannot move either way."""
    pairs = compare([one, other.replace(name="other")], Policy()).pairs
    assert [pair.answer for pair in pairs] == [True, False, False, True]
    return [finding for pair in pairs for finding in pair.findings]


def _lower(of: str, name: str) -> HostProfile:
    """A host whose field of ID_AA64PFR0_EL1 is 0."""
    (field,) = (field for field in fields_of("ID_AA64PFR0_EL1") if field.name == name)
    register = host(of).clusters[0].vcpus[0].registers["ID_AA64PFR0_EL1"]
    return _with_register(
        "ID_AA64PFR0_EL1", register & ~((1 << field.msb + 1) - (1 << field.lsb)), of
    )


_NO_WAY_BACK: dict[str, Callable[[], list[Finding]]] = {
    "field-refused-no-way-back": lambda: _between(
        _with_register("PSCI_VERSION", 0x10000), _lower(_N1, "CSV2")
    ),
    "field-fixed-no-way-back": lambda: _between(
        _with_register("PSCI_VERSION", 0x10000, "bookworm-max"), _lower("bookworm-max", "DIT")
    ),
    "register-refused-firmware-no-way-back": lambda: _between(
        _with_register("SMCCC_ARCH_WORKAROUND_1", 0), _lower(_N1, "CSV2")
    ),
    "register-refused-newer-kernel-no-way-back": lambda: _between(
        host("sid-cortex-a57"), host("trixie-cortex-a57")
    ),
    "registers-unknown-no-way-back": lambda: _between(
        host("sid-cortex-a57").replace(qemu=host("trixie-cortex-a57").qemu),
        host("trixie-cortex-a57"),
    ),
    "registers-lost-no-way-back": lambda: _between(
        _with_registers("sid-neoverse-n1", {"VENDOR_HYP_BMAP_2": 1, "SMCCC_ARCH_WORKAROUND_1": 0}),
        host(_N1),
    ),
}

_FOUND: dict[str, Callable[[], list[Finding]]] = {
    **_NO_WAY_BACK,
    "level-library": lambda: check(
        Resolver(_levelled(), Policy()).target(Wish("aarch64")), host(_N1)
    ),
    "level-library-other": lambda: check(
        Resolver(_levelled(), Policy()).target(Wish("aarch64")),
        host(_N1).replace(level_library="0"),
    ),
    "level-refused": lambda: _levelled_on("SMCCC_ARCH_WORKAROUND_1", 3),
    "level-refused-field": lambda: _levelled_on("ID_AA64MMFR2_EL1", 0x1110001011),
    "level-refused-identity": lambda: _levelled_on("MIDR_EL1", 0x410FD083),
    "level-unknown": lambda: _levelled_on("STD_BMAP", None),
    "level-other-cpu": lambda: check(
        Resolver(_levelled(), Policy()).target(Wish("aarch64")),
        _other_cpu(host(_N1.replace("trixie", "sid"))).replace(level_library="1"),
    ),
    "level-edited": lambda: _with_record_of(host(_N1), _levelled()),
    "level-unrecorded": lambda: _with_record_of(_levelled(), host(_N1)),
    "not-known": lambda: check(_target(), _host(unknown=("seen",), cluster={"seen": {}})),
    "register-not-known": lambda: check(
        _target(),
        _with_register(
            "ID_AA64PFR0_EL1", _target().registers["ID_AA64PFR0_EL1"] | 1 << 48, writable=None
        ).replace(unknown=("writable",), kernel="5.14.0-503.el9"),
    ),
    "page-size-other": lambda: _compared(page_size=65536),
    "gicd-iidr-other": lambda: _compared(gicd_iidr=0x2043B),
    "architecture": lambda: check(_target(), host("hand-made-a15-3.10")),
    "architecture-other": lambda: check(
        _target(features=("psci_0_2", "el1_32bit")), host("hand-made-a15-3.10")
    ),
    "no-kvm": lambda: check(_target(), _host(clusters=(), gic_versions=(), ipa_bits=0)),
    "qemu-without-kvm": lambda: check(
        _target(architecture="arm"), _old_board(qemu=host(_N1).qemu)
    ),
    "qemu-without-model": lambda: check(_target(policy=_OPEN), _without_host_model()),
    "addresses-laid-out": lambda: check(_target(ipa_bits=36), _older_qemu(36)),
    "no-qemu": lambda: check(_target(), _host(qemu=None)),
    "model-unknown": lambda: check(_target("trixie-cortex-a57"), host(_N1)),
    "vcpu-unknown-other": lambda: check(_target(features=("psci_0_2", "has_el2")), host(_N1)),
    "vcpu-unknown": lambda: check(_target(_MAX), host(_N1)),
    "vcpu-refused-other": lambda: _rehearsed(_target(number=0, model="cortex-a57", seen={})),
    "vcpu-refused": lambda: _rehearsed(_target(_MAX, seen={})),
    "machine-unknown": lambda: check(_target(), _with_qemu(("virt-9.0",))),
    "machine-dropped": lambda: check(_target(), _with_qemu(("virt-11.1", "virt-11.0"))),
    "machine-foreign": lambda: check(_target(), _with_qemu(("virt-rhel9.6.0",))),
    "machines-unknown": _missing_machines,
    "machines-apart": lambda: _between(_with_qemu(("virt-9.0",)), _with_qemu(("virt-4.2",))),
    "machines-apart-foreign": lambda: _between(
        _with_qemu(("virt-9.0",)), _with_qemu(("virt-rhel9.6.0",))
    ),
    "gic-refused": lambda: check(_target(gic=2), _host(gic_versions=(3,))),
    "gic-refused-version-2": lambda: check(_target(), _host(gic_versions=(2,))),
    "gic-none": lambda: check(_target(), _host(gic_versions=())),
    "addresses-too-few": lambda: check(_target(), _host(ipa_bits=36)),
    "addresses-too-few-memory": lambda: check(_target(ipa_bits=44), _host(ipa_bits=40)),
    "memory-too-large": lambda: memory_refused(
        parse(GUEST.replace(b"'MiB'>512<", b"'TiB'>2<")), 40, lambda: (0, 0), boots=True
    ),
    "memory-needs-newer-qemu": lambda: memory_refused(
        parse(GUEST.replace(b"'MiB'>512<", b"'GiB'>600<")), 40, lambda: (5, 2), boots=True
    ),
    "addresses-differ": lambda: _of_others([host(_MAX), _host(_MAX, name="small", ipa_bits=36)]),
    "features-left-to-qemu": lambda: check(
        _target(_MAX, policy=Policy(sve=False, prefer_named=False), unsaid=("sve",)), host(_MAX)
    ),
    "pmu-off-refused": lambda: check(
        _target(policy=Policy(pmu=False, prefer_named=False)), _host(capabilities=_NO_PMU)
    ),
    "sve-lengths-refused-limit": lambda: check(
        _target(_MAX), _host(_MAX, cluster={"sve_lengths": (128, 256)})
    ),
    "sve-lengths-left-to-qemu": lambda: check(
        _target(_MAX, policy=Policy(sve_max_length=256), unsaid=("sve",)), host(_MAX)
    ),
    "sve-lengths-refused-switch": lambda: check(
        _target(_MAX), _host(_MAX, cluster={"sve_lengths": ()})
    ),
    "field-accepted": lambda: check(
        _target(),
        _with_register("ID_AA64PFR0_EL1", _target().registers["ID_AA64PFR0_EL1"] | 1 << 48),
    ),
    "field-hidden": lambda: check(_once_shown(), host(_N1)),
    "field-hidden-override": lambda: check(_once_shown(), _host(overrides=("arm64.nompam",))),
    "field-refused-identity": lambda: check(_target(), _with_register("MIDR_EL1", 0x413FD0C1)),
    **_field_kinds("field-refused", writable=True),
    **_field_kinds("field-fixed", writable=False),
    "register-accepted": lambda: check(
        _target(registers={**_target().registers, "SMCCC_ARCH_WORKAROUND_1": 0}),
        _with_register("SMCCC_ARCH_WORKAROUND_1", 1),
    ),
    "register-refused-firmware": lambda: check(
        _target(registers={**_target().registers, "SMCCC_ARCH_WORKAROUND_1": 2}),
        _with_register("SMCCC_ARCH_WORKAROUND_1", 1),
    ),
    "register-refused": lambda: judge(
        _target(registers={**_target().registers, "AIDR_EL1": 1}),
        _Stubborn(_target(), _with_register("AIDR_EL1", 2), host(_N1).clusters[0]),
    ),
    "register-refused-newer-kernel": lambda: check(
        _target(), _with_register("PSCI_VERSION", 0x10000)
    ),
    "registers-unknown": lambda: check(_target(_N1, "virt-7.2"), host("bookworm-neoverse-n1")),
    "registers-unknown-older-qemu": lambda: check(
        _target(), _host("sid-neoverse-n1", qemu=host(_N1).qemu)
    ),
    "registers-unknown-named-model": lambda: check(
        _target("trixie-cortex-a57"), host("sid-cortex-a57")
    ),
    "registers-lost": lambda: check(
        _target(
            "sid-neoverse-n1",
            "virt-10.0",
            registers={**_target("sid-neoverse-n1").registers, "VENDOR_HYP_BMAP_2": 1},
        ),
        host(_N1),
    ),
    "timer-frequency": lambda: check(
        _target(), _host(cluster={"seen": {"CNTFRQ_EL0": 25_000_000}})
    ),
    "timer-frequency-zero": lambda: check(_target(seen={"CNTFRQ_EL0": 0}), host(_N1)),
    "zero-block-size": lambda: check(_target(), _host(cluster={"seen": {"DCZID_EL0": 5}})),
    "pmu-counters": lambda: check(_target(), _host(cluster={"seen": {"PMCR_EL0": 4 << 11}})),
    "registers-other": lambda: check(_target(), host("sid-neoverse-n1"), boots=True),
    "seen-other": lambda: check(
        _target(), _host(cluster={"seen": {"PMCR_EL0": 31 << 11}}), boots=True
    ),
    "cluster-missing": lambda: with_cluster(
        [], Pinning(0x410FD083, 0, "4-5"), host("hand-made-rk3588").clusters
    ),
    "cluster-open": lambda: check(_target(), _host("hand-made-rk3588")),
    "pin-missing": lambda: _pinned(b"<vcpu placement='static' cpuset='4-5'>", b"<vcpu>"),
    "pin-elsewhere": lambda: _pinned(b"<emulatorpin cpuset='4-5'/>", b"<emulatorpin cpuset='0'/>"),
    "xml-edited": _edited,
    "cpu-replaced": lambda: _with_edit(b"mode='host-passthrough'", b"mode='maximum'"),
    "addresses-other": lambda: _with_edit(b"<memory unit='MiB'>512", b"<memory unit='TiB'>4"),
    "addresses-other-beyond": lambda: _with_edit(
        b"<memory unit='MiB'>512", b"<memory unit='TiB'>4", 40, 40
    ),
    "addresses-other-here": lambda: _with_edit(b"</domain>", b"</domain>", 36, 40),
    "addresses-other-here-memory": lambda: _with_edit(
        b"<memory unit='MiB'>512", b"<memory unit='GiB'>900", 40, 48
    ),
    "vcpus-too-many": lambda: _with_edit(b"<os>", b"<vcpu>513</vcpu><os>"),
    "memory-slots-too-many": lambda: _with_edit(
        b"<os>", b"<maxMemory slots='257' unit='GiB'>2</maxMemory><os>"
    ),
    "cpu-cache-refused": lambda: _with_edit(
        b"check='none'>", b"check='none'><cache mode='passthrough'/>"
    ),
    "maxphysaddr-refused": lambda: _with_edit(
        b"check='none'>", b"check='none'><maxphysaddr mode='passthrough'/>"
    ),
    "argument-overrules": lambda: _with_edit(
        b"</domain>",
        b"<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>"
        b"<arg value='-machine'/><arg value='mte=on'/></commandline></domain>",
    ),
    "host-model-asked": lambda: find_contradictions(parse(GUEST), _target()),
    "no-guest": lambda: _of_others([host(_N1), _host(name="other", gic_versions=())]),
}  # fmt: skip

# What registers/ adds, which a finding does not carry.
_ADDED = {"meaning", "policy", "override", "domain"}


def _one(kind: str) -> Finding:
    found = _FOUND[kind]()
    return next((finding for finding in found if finding.kind == kind), None) or pytest.fail(
        f"{list(map(line, found))}"
    )


def _named(kind: str) -> set[str]:
    """The values that the templates of a kind name."""
    row = kinds()[kind]
    templates = [row[column] for column in row if column not in ("kind", "severity")]
    return {name for template in templates for _, name, _, _ in Formatter().parse(template) if name}


def _nodes() -> list[ast.AST]:
    """Of the whole program."""
    return [
        node
        for path in Path(kvmarm_plugin.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]


def _choices(node: ast.expr) -> tuple[ast.expr, ...]:
    return (node.body, node.orelse) if isinstance(node, ast.IfExp) else (node,)


def _texts_of(*nodes: ast.AST) -> set[str]:
    """The texts that stand there as they are."""
    return {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_row_has_all_columns() -> None:
    lines = Path(finding_module.__file__).with_name("findings.tsv").read_text(encoding="utf-8")
    header, *rows = (line.split("\t") for line in lines.splitlines() if line[0] != "#")
    assert tuple(header) == finding_module._COLUMNS
    assert {len(row) for row in rows} == {len(header)}


def test_every_kind_is_found_by_something() -> None:
    assert set(_FOUND) == set(kinds())


def test_what_the_program_finds_is_in_the_table() -> None:
    calls = [
        node
        for node in _nodes()
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", getattr(node.func, "attr", "")) in ("Finding", "cannot_make")
    ]
    written = _texts_of(*(each for call in calls for each in _choices(call.args[0])))
    assert len(written) > 20
    assert written <= set(kinds())


def test_a_kind_is_written_out_where_it_is_found() -> None:
    """But for the refused fields, which are of two rules by the same remedies."""
    put_together = {
        *_field_kinds("field-refused", writable=True),
        *_field_kinds("field-fixed", writable=False),
    }
    assert {*kinds()} - _texts_of(*_nodes()) <= put_together


def test_a_group_is_asked_for_and_is_in_the_table() -> None:
    asked = [
        node.comparators[0]
        for node in _nodes()
        if isinstance(node, ast.Compare) and getattr(node.left, "attr", "") == "group"
    ]
    assert _texts_of(*(each for node in asked for each in _choices(node))) == {
        row["group"] for row in kinds().values() if row["group"]
    }


def test_no_speed_is_told_of_a_timer_that_firmware_has_not_set() -> None:
    (finding,) = check(_target(), _host(cluster={"seen": {"CNTFRQ_EL0": 0, "DCZID_EL0": 4}}))
    assert finding.kind == "timer-frequency-zero"


@pytest.mark.parametrize("kind", kinds())
def test_a_kind_of_finding(kind: str) -> None:
    """It carries what its words name and nothing else, as data, and can be said."""
    finding = _one(kind)
    assert _named(kind) - _ADDED == set(finding.values) - {"pool"}
    for value in finding.values.values():
        for item in value if isinstance(value, tuple) else (value,):
            assert isinstance(item, (int, float, str))
    said = texts(finding)
    assert said["kind"] == kind
    assert said["severity"] == finding.severity
    assert finding.severity in (REFUSES, WRONG, UNKNOWN, HARMLESS)
    assert all(said[column] for column in ("subject", "recorded", "local", "rule"))
    assert bool(said["remedy"]) is (
        finding.severity != HARMLESS
        and kind
        not in ("architecture", "no-kvm", "no-qemu", "vcpu-unknown-other", "vcpu-refused-other")
    )
    assert "{" not in line(finding)
    assert line(finding).isprintable()


@pytest.mark.parametrize("kind", kinds())
def test_a_finding_is_a_value(kind: str) -> None:
    one, other = _one(kind), _one(kind)
    assert one == other
    assert len({one, other}) == 1
    assert one.replace(values=one.values) == one
    assert one.replace(values={**one.values, "pool": "x"}) != one
    assert named_in(one, "rule", "remedy") == named_in(other, "rule", "remedy")


_REMEDIES = {
    "machine-unknown": f"upgrade QEMU on {_N1}; or where the guest comes from, if QEMU there knows"
    " virt-9.0: kvmarm refresh DOMAIN --machine virt-9.0, shut it off and start it",
    "machine-dropped": f"({_N1} has virt-11.0 to virt-11.1)",
    "gic-refused": "write <gic version='3'/> where the guest comes from or, if KVM there has no"
    f" such GIC, on {_N1}",
    "gic-refused-version-2": "write <gic version='2'/>, with 8 vCPUs at most, where the guest",
    "vcpu-unknown": "set sve: off, pauth: off in the policy",
    "register-refused-firmware": f"start the guest on {_N1}, and move it from there",
    "features-left-to-qemu": f"boot {_MAX} with arm64.nosve; or",
    "pmu-off-refused": f"on {_N1}: remove <pmu>, then kvmarm refresh DOMAIN",
    "sve-lengths-refused-limit": "set sve-max-length: 256 in the policy",
    "field-refused-switch": "set pmu: off in the policy",
    "field-fixed-switch-or-override": "or boot the hosts that have it with arm64.nosve; ",
    "field-fixed-override-there": "boot the host that the guest comes from with arm64.nobti; ",
    "field-fixed-override-here": f"boot {_N1} with arm64.nomops (Linux 6.12, may help)",
    "field-fixed-newer-kernel": f"a newer kernel on {_N1} may help",
    "registers-unknown-older-qemu": "upgrade QEMU on sid-neoverse-n1 to 11.1 or newer",
    "register-refused-newer-kernel": "run the same Linux on both hosts",
    "pmu-counters": "set pmu: off in the policy",
    "pin-elsewhere": "kvmarm refresh DOMAIN",
}


@pytest.mark.parametrize("kind", _REMEDIES)
def test_a_remedy_names_what_to_do(kind: str) -> None:
    assert _REMEDIES[kind] in texts(_one(kind))["remedy"]


@pytest.mark.parametrize(
    ("kind", "values", "column", "text"),
    [
        ("gic-refused", {"local": (2, 3)}, "local", "2, 3"),
        ("cluster-missing", {"local": (16, 17)}, "local", "0x10, 0x11"),
        ("cluster-missing", {"local": ()}, "local", "not told by sysfs"),
        (
            "sve-lengths-refused-switch",
            {"local": tuple(range(128, 1280, 128))},
            "local",
            "128 256 384 512 640 768 896 1024 1152",
        ),
        ("sve-lengths-refused-switch", {"local": ()}, "local", "none"),
        (
            "registers-unknown",
            {"registers": tuple("abcdefgh")},
            "recorded",
            "a, b, c, d, e, f and 2 more",
        ),
        ("xml-edited", {"what": "a" * 70}, "subject", "a" * 59 + "…"),
        ("xml-edited", {"local": "a\nb"}, "local", r"a\nb"),
        *(
            (
                "timer-frequency",
                {"speed": speed},
                "rule",
                f"nothing checks it, and the guest's clock would run at {speed} of its speed",
            )
            for speed in (0.4, 1.024)
        ),
        ("machine-unknown", {"machine": "{host}"}, "recorded", "{host}"),
    ],
)
def test_how_values_are_shown(kind: str, values: dict[str, Any], column: str, text: str) -> None:
    finding = _one(kind)
    assert texts(finding.replace(values={**finding.values, **values}))[column] == text


def test_a_finding_seen_from_a_pool() -> None:
    finding = _one("gic-refused")
    seen = finding.replace(values={**finding.values, "pool": "alpha\n"})
    assert (
        texts(seen)["rule"] == "a guest started on it could not move to the rest of pool alpha\\n:"
        f" {texts(finding)['rule']}"
    )


def test_no_remedy_has_guests_come_back_where_none_may() -> None:
    for find in _NO_WAY_BACK.values():
        for finding in find():
            remedy = texts(finding)["remedy"]
            assert "move it from there" not in remedy
            assert "from there, it may go" not in remedy


def test_no_guest_comes_back_to_a_kernel_that_has_less_by_a_profile_alone() -> None:
    """What the kernel there has more is known of one host: nobody asks the other."""
    sid, trixie = host("sid-cortex-a57"), host("trixie-cortex-a57")
    older_qemu = sid.replace(qemu=trixie.qemu)
    for target, here in (
        (_target("trixie-cortex-a57"), older_qemu),
        (_target("sid-cortex-a57", "virt-10.0"), trixie),
    ):
        kinds_found = {finding.kind for finding in check(target, here)}
        assert any(kind.endswith("-no-way-back") for kind in kinds_found), kinds_found
    # A field that only a start there makes right: it would have to come from there, too.
    for source, there, field in ((_N1, "sid-neoverse-n1", "CSV2"), (_MAX, "sid-max", "DIT")):
        kinds_found = {finding.kind for finding in check(_target(source), _lower(there, field))}
        assert "field-refused-no-way-back" in kinds_found, kinds_found
    kept = check(_target("sid-neoverse-n1", "virt-10.0"), host(_N1))
    assert "register-refused-newer-kernel" in {finding.kind for finding in kept}


def test_where_each_way_waits_for_the_other_nothing_helps() -> None:
    found = _between(_lower(_N1, "CSV2"), _lower(_N1, "CSV3"))
    assert {finding.kind for finding in found if finding.severity != HARMLESS} == {
        "field-refused-hopeless"
    }


def test_in_short() -> None:
    findings = check(_target(), host("trixie-cortex-a72"))
    short = in_short(findings, 3)
    assert short == [*map(line, findings[:3]), f"and {len(findings) - 3} more"]
    assert in_short(findings[:2], 3) == list(map(line, findings[:2]))


def test_a_kernel_tells_another_cpu_beside_a_vcpu_that_it_does_not_make() -> None:
    target = _target(_MAX, seen={})
    assert [finding.kind for finding in _rehearsed(target) if finding.is_hopeless] == [
        finding.kind for finding in check(target, host(_N1)) if finding.is_hopeless
    ]
    assert any(finding.is_hopeless for finding in _rehearsed(target))


def test_a_guest_that_fits_needs_no_words() -> None:
    """Nor the table: the hook is asked for every guest, and few do not fit."""
    read: dict[str, dict[str, str]] = {}
    with patch("kvmarm_plugin.judge.finding._kinds", read):
        assert check(_target(), host(_N1)) == []
        assert not read
        assert check(_target(), host("trixie-cortex-a72"))
        assert read
    code = (
        "import sys; from kvmarm_plugin import rehearse; from kvmarm_plugin.hook import answer; "
        "from kvmarm_plugin.judge import contradictions, pinning; print(*sys.modules)"
    )
    imported = subprocess.run(
        [sys.executable, "-c", code],
        cwd=TESTS.parent,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    assert "kvmarm_plugin.judge.verdict" in imported.stdout.split()
    assert "kvmarm_plugin.judge.wording" not in imported.stdout.split()
