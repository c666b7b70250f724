# SPDX-License-Identifier: LGPL-2.1-or-later
"""The record: writing and reading are inverse, its schema agrees with both, and nothing broken or foreign is half-read."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from kvmarm_plugin import cpulist, record
from kvmarm_plugin.domain import Element, parse
from kvmarm_plugin.kvm.uapi import VCPU_FEATURES
from kvmarm_plugin.policy import Policy
from kvmarm_plugin.record import Intent, Origin, Record, RecordError
from kvmarm_plugin.registers.table import id_of
from kvmarm_plugin.registers.text import pack_ids
from kvmarm_plugin.resolve import ResolveError, Resolver
from kvmarm_plugin.target import Pinning, Target
from tests.corpus import HOSTS, RECORD_SCHEMA, TEMPLATES, host, one_line, resolver, template

_SIZE_LIMIT = 6144  # bytes: a domain should stay readable

_NAMES = (
    *("MIDR_EL1", "REVIDR_EL1", "ID_AA64PFR0_EL1", "ID_AA64ISAR1_EL1", "CTR_EL0", "CLIDR_EL1", "S3_0_C0_C4_3", "S3_0_C0_C7_7"),
    *("CCSIDR_L1D", "CCSIDR_L2I", "PSCI_VERSION", "SMCCC_ARCH_WORKAROUND_3", "STD_BMAP", "SVE_VLS", "MIDR", "ID_PFR0"),
)
_CHOSEN = ("el1_32bit", "psci_0_2", "pmu_v3", "sve", "ptrauth_address", "ptrauth_generic")

_names = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True)
# Anything that one line of text may hold; XML has no control characters.
_words = st.text(st.characters(exclude_categories=("C", "Zl", "Zp"), exclude_characters="\ufffe\uffff"), max_size=30)
_values = st.dictionaries(st.sampled_from(_NAMES), st.integers(0, 1 << 64), max_size=len(_NAMES))
_ids = st.sets(st.integers(0x6030000000130000, 0x6030000000140010) | st.integers(0, (1 << 64) - 1), min_size=1, max_size=60)


def _cpu_list(cpus: set[int]) -> str:
    return cpulist.write(tuple(sorted(cpus)))


_features = st.lists(st.sampled_from(_CHOSEN), unique=True).map(
    lambda some: tuple(sorted(some, key=lambda name: VCPU_FEATURES[name]))
)

_register = st.integers(0, (1 << 64) - 1)
_pinnings = st.builds(
    Pinning, midr=_register, revidr=st.none() | _register, cpus=st.sets(st.integers(0, 300), min_size=1).map(_cpu_list)
)

targets = st.builds(
    Target,
    architecture=st.sampled_from(["arm", "arm64"]),
    number=st.integers(0, 255),
    features=_features,
    model=_names,
    unsaid=_features,
    machine=_names,
    gic=st.sampled_from([2, 3]),
    ipa_bits=st.integers(32, 52),
    sve_lengths=st.sets(st.integers(1, 16)).map(lambda lengths: tuple(128 * length for length in sorted(lengths))),
    seen=_values,
    registers=_values.filter(bool),
    reglist=_ids.map(pack_ids),
    pinning=st.none() | _pinnings,
)
_kept = st.sampled_from(
    [
        b"<cpu mode='host-model'/>",
        b'<cpu mode="host-model" check=\'partial\'>\n  <!-- a > b -->\n  <topology sockets="1"/>\n</cpu>',
        b"<type arch='aarch64' machine='virt'>hvm</type>",
        b"<gic/>",
        b"<features/>",
        b"<metadata> </metadata>",
    ]
)
intents = st.builds(
    Intent,
    added=st.lists(st.sampled_from(["gic", "pmu", "features", "vcpu", "cputune", "metadata"]), unique=True).map(tuple),
    kept=st.lists(_kept, min_size=1, max_size=4).map(tuple),
)
origins = st.builds(Origin, host=_words, profile=st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True), by=_words)
records = st.builds(Record, target=targets, intent=intents, origin=origins)
_indents = st.sampled_from([b"", b"\n", b"\n    ", b"\n\t"])


def formatted(value: Record, indent: bytes = b"\n    ") -> bytes:
    facts = record.format_facts(value.target, value.origin)
    return record.format_record(list(value.intent.added), list(value.intent.kept), facts, indent)


def in_domain(*elements: bytes) -> bytes:
    return b"<domain type='kvm'><metadata>" + b"".join(elements) + b"</metadata></domain>"


def found(source: bytes) -> Element:
    element = record.find(parse(source))
    assert element is not None
    return element


@cache
def schema() -> etree.RelaxNG:
    return etree.RelaxNG(file=str(RECORD_SCHEMA))


def is_valid(source: bytes) -> bool:
    """Whether the schema allows the record in a domain."""
    elements = [element for element in etree.fromstring(source).iterfind("metadata/*") if "urn:kvmarm" in element.tag]
    return len(elements) == 1 and bool(schema().validate(etree.ElementTree(elements[0])))


def resolved_records() -> list[tuple[str, str, bytes]]:
    """(host, template, resolved domain) for every pair that can be resolved."""
    pairs = []
    for where in HOSTS:
        for name in TEMPLATES:
            try:
                pairs.append((where, name, resolver(where).resolve(template(name))))
            except ResolveError:
                continue
    return pairs


# -- inverse -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(records, _indents)
def test_reading_is_the_inverse_of_writing(value: Record, indent: bytes) -> None:
    assert record.read(found(in_domain(formatted(value, indent)))) == value


@settings(deadline=None)
@given(records, _indents)
def test_what_is_written_is_valid(value: Record, indent: bytes) -> None:
    assert is_valid(in_domain(formatted(value, indent))), schema().error_log


@settings(deadline=None)
@given(records)
def test_writing_what_was_read_gives_the_same_text(value: Record) -> None:
    text = formatted(value)
    assert formatted(record.read(found(in_domain(text)))) == text


def test_every_field_of_a_target_makes_a_difference() -> None:
    """As virtinst has it: a field that nobody writes or reads shows here."""
    target = record.read(found(resolver("trixie-max").resolve(template("sve")))).target
    others = {
        "architecture": "arm",
        "number": 4,
        "features": ("psci_0_2",),
        "model": "other",
        "unsaid": ("pmu_v3",),
        "machine": "virt-1.0",
        "gic": 2,
        "ipa_bits": 33,
        "sve_lengths": (128,),
        "seen": {"CNTFRQ_EL0": 1},
        "registers": {"MIDR_EL1": 1},
        "reglist": "6030000000130000:c000",
        "pinning": Pinning(0x410FD082, 0, "4-5"),
    }
    assert others.keys() == set(Target.__slots__)
    origin = Origin("host", "sha256:" + "0" * 64, "kvmarm")
    texts = {b"".join(record.format_facts(target, origin))}
    for name, other in others.items():
        fields = {field: getattr(target, field) for field in Target.__slots__}
        changed = Target(**{**fields, name: other})
        texts.add(b"".join(record.format_facts(changed, origin)))
        again = found(in_domain(formatted(Record(changed, Intent((), (b"<cpu/>",)), origin))))
        assert getattr(record.read(again).target, name) == other
    assert len(texts) == 1 + len(others)


@pytest.mark.parametrize(
    ("where", "name", "source"), [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in resolved_records()]
)
def test_records_of_real_hosts(where: str, name: str, source: bytes) -> None:
    element = found(source)
    assert is_valid(source), schema().error_log
    value = record.read(element)
    assert value.origin.host == host(where).name
    assert value.origin.profile == host(where).digest()
    assert value.target.architecture == host(where).kvm_architecture
    assert len(element.text) < _SIZE_LIMIT


@pytest.mark.parametrize("where", sorted(HOSTS))
def test_the_largest_record_of_each_host_is_small(where: str) -> None:
    """With everything on: every vCPU variant that a policy can choose."""
    sizes = []
    for wishes in (Policy(), Policy(prefer_named=False), Policy(pmu=False), Policy(sve=False), Policy(pauth=False)):
        for name in ("direct-kernel", "armv7l"):
            try:
                sizes.append(len(found(Resolver(host(where), wishes).resolve(template(name))).text))
            except ResolveError:
                continue
    assert sizes
    assert max(sizes) < _SIZE_LIMIT


# -- foreign and double ------------------------------------------------------------------------------------------------


def _one() -> bytes:
    return found(resolver("trixie-max").resolve(template("sve"))).text


def test_no_record() -> None:
    for source in (
        b"<domain/>",
        b"<domain><metadata/></domain>",
        in_domain(b"<x xmlns='urn:other'/>"),
        b"<domain>" + _one() + b"</domain>",
    ):
        assert record.find(parse(source)) is None


@pytest.mark.parametrize(
    ("namespace", "version"),
    [("urn:kvmarm-plugin:target:2", "2"), ("urn:kvmarm-plugin:target:10", "10"), ("urn:kvmarm-plugin:target:", "none")],
)
def test_other_versions_are_refused(namespace: str, version: str) -> None:
    source = in_domain(_one().replace(record.NAMESPACE.encode(), namespace.encode()))
    with pytest.raises(RecordError, match=f"version {version};.*upgrade") as caught:
        record.find(parse(source))
    one_line(caught.value)


def test_another_element_of_our_namespace_is_refused() -> None:
    with pytest.raises(RecordError):
        record.find(parse(in_domain(f"<x xmlns='{record.NAMESPACE}'/>".encode())))


@pytest.mark.parametrize("second", [b"", b"2"])
def test_two_records_are_refused(second: bytes) -> None:
    other = _one().replace(b"target:1'", b"target:" + (second or b"1") + b"'")
    with pytest.raises(RecordError, match="more than one") as caught:
        record.find(parse(in_domain(_one(), other)))
    one_line(caught.value)


def test_the_prefix_does_not_matter() -> None:
    text = _one()
    assert record.read(found(in_domain(text.replace(b"kvmarm:", b"k:").replace(b"xmlns:kvmarm", b"xmlns:k")))) == record.read(
        found(in_domain(text))
    )


# -- broken ------------------------------------------------------------------------------------------------------------

_OPTIONAL = {"sve", "seen"}


def _children() -> list[str]:
    return [child.name.partition(" ")[2] for child in found(in_domain(_one())).children]


def _without_child(name: str) -> bytes:
    source = in_domain(_one())
    child = found(source).find(f"{record.NAMESPACE} {name}")
    assert child is not None
    return source[: child.start] + source[child.end :]


def _with_body(name: str, body: bytes) -> bytes:
    source = in_domain(_one())
    child = found(source).find(f"{record.NAMESPACE} {name}")
    assert child is not None
    return source[: child.body_start] + body + source[child.body_end :]


def _with_attribute(name: str, attribute: str, value: str | None) -> bytes:
    root = etree.fromstring(in_domain(_one()))
    child = root.find(f"metadata/{{{record.NAMESPACE}}}target/{{{record.NAMESPACE}}}{name}")
    assert child is not None
    if value is None:
        del child.attrib[attribute]
    else:
        assert attribute in child.attrib
        child.set(attribute, value)
    return etree.tostring(root)


def _check_refused(source: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        record.read(found(source))
    one_line(caught.value)
    assert not is_valid(source)


def test_the_example_has_every_child() -> None:
    assert _children() == ["intent", "vcpu", "qemu", "guest", "sve", "seen", "registers", "reglist", "origin"]


@pytest.mark.parametrize("name", sorted(set(_children()) - _OPTIONAL))
def test_a_missing_child_is_refused(name: str) -> None:
    _check_refused(_without_child(name))


@pytest.mark.parametrize("name", sorted(_OPTIONAL))
def test_what_is_optional_may_be_missing(name: str) -> None:
    source = _without_child(name)
    assert is_valid(source)
    assert not getattr(record.read(found(source)).target, "sve_lengths" if name == "sve" else name)


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        *(("vcpu", "architecture"), ("vcpu", "target"), ("vcpu", "features"), ("qemu", "model"), ("qemu", "machine")),
        *(("guest", "gic"), ("guest", "ipa"), ("sve", "lengths"), ("origin", "host"), ("origin", "profile"), ("origin", "by")),
    ],
)
def test_a_missing_attribute_is_refused(name: str, attribute: str) -> None:
    _check_refused(_with_attribute(name, attribute, None))


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("vcpu", "architecture", "x86"),
        ("vcpu", "architecture", ""),
        ("vcpu", "target", "five"),
        ("vcpu", "target", ""),
        ("vcpu", "target", "0x5"),
        ("guest", "gic", "host"),
        ("guest", "gic", ""),
        ("guest", "ipa", "forty"),
        ("guest", "ipa", "40.0"),
        ("sve", "lengths", "128 many"),
        ("sve", "lengths", "128,256"),
    ],
)
def test_a_broken_attribute_is_refused(name: str, attribute: str, value: str) -> None:
    _check_refused(_with_attribute(name, attribute, value))


@pytest.mark.parametrize("name", ["registers", "seen"])
@pytest.mark.parametrize(
    "body", [b"MIDR_EL1", b"MIDR_EL1=", b"MIDR_EL1=xyz", b"MIDR_EL1 = 0x1", b"MIDR_EL1=0x1,CTR_EL0=0x2", b"MIDR_EL1=0x1CTR_EL0=0x2"]
)
def test_broken_register_values_are_refused(name: str, body: bytes) -> None:
    _check_refused(_with_body(name, body))


def test_a_register_named_twice_is_refused() -> None:
    with pytest.raises(RecordError, match="twice"):
        record.read(found(_with_body("registers", b"MIDR_EL1=0x1 MIDR_EL1=0x1")))


@pytest.mark.parametrize("body", [b"", b" \n", b"6030000000130000", b"6030000000130000:", b":c000", b"x:1", b"1:x", b"1:1/x"])
def test_a_broken_register_list_is_refused(body: bytes) -> None:
    _check_refused(_with_body("reglist", body))


@pytest.mark.parametrize("body", [b"1:5-3", b"1:1-20000", b"1:1-5/0", b"1:0-ffff 2:0-ffff", b"1:" + b",".join([b"0-fff"] * 1000)])
def test_an_impossible_register_list_is_refused(body: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        record.read(found(_with_body("reglist", body)))
    one_line(caught.value)


def test_no_registers_are_refused() -> None:
    _check_refused(_with_body("registers", b""))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_record_is_read_or_refused(data: st.DataObject) -> None:
    """Characters of names, values and lists, changed one at a time inside well-formed XML."""
    text = _one()
    place = data.draw(st.integers(text.index(b"<kvmarm:vcpu"), len(text) - 20))
    mutated = text[:place] + data.draw(st.sampled_from([b"", b"x", b"0", b" ", b"-", b"=", b"_", b":", b","])) + text[place + 1 :]
    try:
        etree.fromstring(in_domain(mutated))
    except etree.XMLSyntaxError:
        return
    try:
        record.read(found(in_domain(mutated)))
    except RecordError as error:
        one_line(error)


def test_names_are_those_of_the_table() -> None:
    assert len({id_of(name) for name in _NAMES}) == len(_NAMES)
