# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rows of vCPU features and of the registers that guests read: every name in them is one where
it is used, and a row more is all that most of the program needs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kvmarm_plugin
from kvmarm_plugin.judge.by_profile import ProfileOffer
from kvmarm_plugin.judge.finding import kinds
from kvmarm_plugin.judge.registers import differences
from kvmarm_plugin.judge.verdict import judge
from kvmarm_plugin.kvm import uapi
from kvmarm_plugin.kvm.device import System
from kvmarm_plugin.model import policy
from kvmarm_plugin.model.features import CPU_FEATURES, FEATURES, OFFERED_BY, PMU, Feature
from kvmarm_plugin.model.guest_registers import GUEST_REGISTERS, readable
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.target import GIVEN_FEATURES as GIVEN
from kvmarm_plugin.model.target import Target
from kvmarm_plugin.model.vcpu import VCPU_FEATURES, in_order
from kvmarm_plugin.registers.overrides import overrides
from kvmarm_plugin.registers.table import fields_of, id_of
from kvmarm_plugin.rehearse import KernelOffer
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import Wish
from tests.corpus import HOSTS, TESTS, host

from .fakekernel import FakeKernel

_PACKAGE = Path(kvmarm_plugin.__file__).parent
_ROWS = [pytest.param(feature, id=feature.name) for feature in FEATURES]


# -- vCPU features --------------------------------------------------------------------------------


def test_no_two_rows_share_a_name() -> None:
    for column in ("name", "noun", "qemu", "libvirt", "policy", "override"):
        names = [getattr(feature, column) for feature in FEATURES if getattr(feature, column)]
        assert len(set(names)) == len(names), column
    for several in ("bits", "fields"):
        every = [name for feature in FEATURES for name in getattr(feature, several)]
        assert len(set(every)) == len(every), several


@pytest.mark.parametrize("feature", _ROWS)
def test_the_kernel_has_the_bits_and_capabilities(feature: Feature) -> None:
    assert feature.bits.keys() <= VCPU_FEATURES["arm64"].keys()
    assert set(feature.bits.values()) <= uapi.CAPABILITIES.keys()
    assert tuple(feature.bits) == in_order(feature.bits)


def test_what_a_vcpu_can_be_given_is_psci_and_the_rows() -> None:
    given = ("el1_32bit", "psci_0_2", "pmu_v3", "sve", "ptrauth_address", "ptrauth_generic")
    assert given == GIVEN == in_order(OFFERED_BY)


@pytest.mark.parametrize("feature", _ROWS)
def test_registers_have_the_fields(feature: Feature) -> None:
    assert feature.fields
    for name in feature.fields:
        register, _, field = name.partition(".")
        assert field in {known.name for known in fields_of(register)}, name


@pytest.mark.parametrize("feature", _ROWS)
def test_the_override_takes_the_fields(feature: Feature) -> None:
    """Those of its row in overrides.tsv, and no others."""
    words = {override.word: override for override in overrides()}
    if feature.override:
        taken = {".".join(name) for name in words[feature.override].fields}
        assert taken == set(feature.fields)
    else:
        assert not any(
            ".".join(name) in feature.fields for word in words.values() for name in word.fields
        )


@pytest.mark.parametrize("feature", _ROWS)
def test_the_policy_has_the_setting(feature: Feature) -> None:
    if not feature.policy:
        return
    assert Policy.__annotations__[feature.policy] == "bool | None"
    assert policy.loads(f"{feature.policy}: off") == Policy().replace(**{feature.policy: False})
    manual = (_PACKAGE.parent / "docs/man/kvmarm-policy.5").read_text(encoding="utf-8")
    assert f".It Cm {feature.policy} : Cm on | off | auto\n" in manual


@pytest.mark.parametrize("feature", _ROWS)
def test_qemu_has_the_property(feature: Feature) -> None:
    """On some host that was probed."""
    found = [host(name).qemu for name in HOSTS]
    assert any(qemu and feature.qemu in qemu.host_properties for qemu in found)


def test_the_schemas_have_the_bits_and_libvirts_words() -> None:
    text = (TESTS.parent / "docs/profile.schema.json").read_text(encoding="utf-8")
    words = json.loads(text)["properties"]["cpu_features"]["items"]["pattern"]
    for feature in CPU_FEATURES:
        assert re.search(words, feature.libvirt), feature.name
    (known,) = re.findall(r'"enum": (\[[^]]*"psci_0_2"[^]]*\])', text)
    assert set(GIVEN) <= set(json.loads(known))
    record = (TESTS.parent / "xml-templates/kvmarm-target.rng").read_text(encoding="utf-8")
    (listed,) = re.findall(r'<define name="features">(.*?)</define>', record, re.DOTALL)
    assert tuple(re.findall("<value>(.*?)</value>", listed)) == GIVEN


def test_a_record_may_leave_every_feature_to_qemu() -> None:
    """The kernel is asked for each that the record names, also for those that no XML leaves."""
    profile = host("trixie-neoverse-n1")
    target = Resolver(profile, Policy()).target(Wish("aarch64"))
    for feature in GIVEN:
        unsure = target.replace(unsaid=(feature,))
        (cluster,) = profile.clusters
        with System(FakeKernel.from_profile(profile)) as system:
            asked = KernelOffer(unsure, system)
            asked.architecture = "arm64"
            assert asked.has(feature) == ProfileOffer(unsure, profile, cluster).has(feature)
            judge(unsure, asked)


# A row more, in a process of its own: what is made of the rows is made when a module is imported.
# The bit, its capability and the field are KVM's for nested virtualisation; the rest is invented.
_A_ROW_MORE = """
import json, sys
from kvmarm_plugin.kvm import uapi
from kvmarm_plugin.model import features, policy, profile_json, vcpu
from kvmarm_plugin.basics.errors import KvmarmError

row = next(f for f in features.FEATURES if f.name == "EL2")
policy.Policy.__annotations__["el2"] = "bool | None"
policy.Policy.el2 = None

from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.fleet.common_ground import common
from kvmarm_plugin.fleet.plan import apply_override
from kvmarm_plugin.host import probe
from kvmarm_plugin.judge.by_profile import check
from kvmarm_plugin.judge.contradictions import find_contradictions
from kvmarm_plugin.judge.wording import line
from kvmarm_plugin.registers.overrides import Override
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import Wish

plain = profile_json.loads(open(sys.argv[1]).read())
source = open(sys.argv[2], "rb").read()

# Probing measures each set of features with it and without.
offered = dict.fromkeys(("ARM_PSCI_0_2", "ARM_PMU_V3", "ARM_EL2"), 1)
assert [set(some) for some in probe._feature_sets(offered, "arm64")] == [
    {"psci_0_2", "pmu_v3"}, {"psci_0_2"}, {"psci_0_2", "has_el2"}, {"psci_0_2", "pmu_v3", "has_el2"}
]
assert probe._cpu_features("<feature name='el2'/><feature name='sse'/>") == ("el2",)

# A host that has it, as its profile.
def with_el2(cpu):
    registers = {**cpu.registers, "ID_AA64MMFR4_EL1": 1 << 20}
    return cpu.replace(features=vcpu.in_order((*cpu.features, "has_el2")), registers=registers)

(cluster,) = plain.clusters
nested = plain.replace(
    name="nested",
    capabilities={**plain.capabilities, "ARM_EL2": 1},
    clusters=(cluster.replace(vcpus=(*cluster.vcpus, *map(with_el2, cluster.vcpus))),),
    cpu_features=(*plain.cpu_features, "el2"),
    qemu=plain.qemu.replace(host_properties={**plain.qemu.host_properties, "el2": True}),
)
nested = profile_json.loads(profile_json.dumps(nested))

# The domain gets it, unless the policy says no, and the record is read again.
def resolved(host, text=""):
    xml = Resolver(host, policy.loads(text)).resolve(source)
    target = record.read(record.find(parse(xml))).target
    assert find_contradictions(parse(xml), target) == []
    return xml, target

xml, target = resolved(nested)
assert b"<feature policy='require' name='el2'/>" in xml
assert "has_el2" in target.features
edited = parse(xml.replace(b"'require' name='el2'", b"'disable' name='el2'"))
(edited,) = find_contradictions(edited, target)
assert line(edited).startswith("<feature el2> (in the domain's XML): recorded on, now off")
xml, without = resolved(nested, "el2: off")
assert b"<feature policy='disable' name='el2'/>" in xml
assert "has_el2" not in without.features
assert check(target, nested) == check(without, nested) == []
try:
    Resolver(plain, policy.loads("el2: on")).resolve(source)
except KvmarmError as error:
    assert "the policy wants EL2, which KVM on host" in error.message
else:
    raise AssertionError("a host without it gives it")

# What to do where hosts differ in it.
(cluster,) = nested.clusters
vcpus = [cpu.replace(registers={**cpu.registers, "ID_AA64MMFR4_EL1": 0}) for cpu in cluster.vcpus]
other = nested.replace(clusters=(cluster.replace(vcpus=tuple(vcpus)),))
assert any("set el2: off in the policy" in line(finding) for finding in check(target, other))
lacks = nested.replace(name="old", clusters=plain.clusters, capabilities=plain.capabilities)
assert common([nested, lacks], "pool").missing["EL2"] == "old has none"
wordless = [line(finding) for finding in check(Resolver(plain, policy.Policy()).target(
    Wish("aarch64")), nested)]
assert "left to QEMU): recorded off, here has_el2 on" in wordless[0]
assert "with arm64.noel2; or" in wordless[0]
booted = apply_override(nested, Override("arm64.noel2", "7.2", {}))
assert "ARM_EL2" not in booted.capabilities and not booted.clusters[0].has("has_el2")
assert booted.qemu.host_properties["el2"] is False
"""

_ROW = """
FEATURES = (*FEATURES, Feature(
    name="EL2", noun="EL2", bits={"has_el2": "ARM_EL2"}, qemu="el2", libvirt="el2", policy="el2",
    fields=("ID_AA64MMFR4_EL1.NV_frac",), override="arm64.noel2",
))
"""


def test_a_row_more_is_all_that_it_takes(tmp_path: Path) -> None:
    source = (_PACKAGE / "model/features.py").read_text(encoding="utf-8")
    rows, mark, derived = source.partition("\nCPU_FEATURES = ")
    assert mark
    edited = tmp_path / "features.py"
    edited.write_text(rows + _ROW + mark + derived, encoding="utf-8")
    load = f"""
import importlib.util, sys
import kvmarm_plugin.model
spec = importlib.util.spec_from_file_location("kvmarm_plugin.model.features", {str(edited)!r})
sys.modules[spec.name] = kvmarm_plugin.model.features = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kvmarm_plugin.model.features)
"""
    profile = TESTS / "hosts/trixie-max.json"
    template = TESTS.parent / "xml-templates/uefi.xml"
    run = subprocess.run(
        [sys.executable, "-c", load + _A_ROW_MORE, str(profile), str(template)],
        cwd=_PACKAGE.parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


# -- registers that guests read -------------------------------------------------------------------


@pytest.mark.parametrize("name", GUEST_REGISTERS)
def test_a_guest_register_is_a_system_register(name: str) -> None:
    assert id_of(name) >> 16 == 0x603000000013


@pytest.mark.parametrize("name", GUEST_REGISTERS)
def test_a_guest_register_is_readable_by_guests_that_have_what_it_needs(name: str) -> None:
    needed = GUEST_REGISTERS[name].needs
    assert readable({name: 5}, tuple(needed.bits) if needed else ()) == {name: 5}
    assert readable({name: 5}, ()) == ({} if needed else {name: 5})
    assert needed in (None, *FEATURES)


def _target(**seen: int) -> Target:
    target = Resolver(host("trixie-neoverse-n1"), Policy()).target(Wish("aarch64"))
    return target.replace(seen={**target.seen, **seen})


@pytest.mark.parametrize("name", GUEST_REGISTERS)
@pytest.mark.parametrize("recorded", [0, 1, 0x41023000, (1 << 64) - 1])
def test_a_guest_register_can_be_shown_and_compared(name: str, recorded: int) -> None:
    register = GUEST_REGISTERS[name]
    assert register.text(recorded)
    assert register.compare(recorded, recorded, "here") is None
    profile = host("trixie-neoverse-n1")
    target = _target(**{name: recorded})
    offer = ProfileOffer(target, profile, profile.clusters[0])
    found = differences(target, offer)
    assert len(found) <= 1
    assert {finding.kind for finding in found} <= set(kinds())


def test_the_condition_stands_once() -> None:
    """Which register needs a PMU is the row's to know."""
    named = [
        str(path.relative_to(_PACKAGE))
        for path in _PACKAGE.rglob("*.py")
        if '"PMCR_EL0"' in path.read_text(encoding="utf-8")
    ]
    assert named == ["model/guest_registers.py"]
    assert GUEST_REGISTERS["PMCR_EL0"].needs is PMU
