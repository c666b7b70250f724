# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host profile: JSON and back, its digest, what is refused, and its published schema."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import re
from functools import cache
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.commands import show_view as show
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.fleet import compare_view as compareview
from kvmarm_plugin.fleet import pool
from kvmarm_plugin.fleet.baseline import as_json, as_text, baseline
from kvmarm_plugin.fleet.compare import compare
from kvmarm_plugin.judge.by_profile import check
from kvmarm_plugin.judge.wording import line
from kvmarm_plugin.model import policy, profile_json
from kvmarm_plugin.model.guest_registers import GUEST_REGISTERS
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.problem import Problem
from kvmarm_plugin.model.profile import PARTS, SINCE_2, Cluster, HostProfile, Qemu, Vcpu
from kvmarm_plugin.model.profile_json import ProfileError, digest
from kvmarm_plugin.registers.text import pack_ids
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import Wish
from tests.corpus import HOSTS, TEMPLATES, TESTS, host, one_line, template

if TYPE_CHECKING:
    from collections.abc import Iterator

_SCHEMA = TESTS.parent / "docs" / "profile.schema.json"


@cache
def _text(name: str) -> str:
    return HOSTS[name].read_text(encoding="utf-8")


def _document(name: str = "trixie-max") -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_text(name))
    return document


@cache
def _validator() -> Any:
    schema = json.loads(_SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


# -- JSON and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_every_profile_comes_back_byte_for_byte(name: str) -> None:
    assert profile_json.dumps(profile_json.loads(_text(name))) == _text(name)


def test_a_mark_in_front_of_a_profile() -> None:
    text = _text("trixie-max")
    assert profile_json.loads("\ufeff" + text) == host("trixie-max")
    with pytest.raises(ProfileError, match="is not JSON"):
        profile_json.loads("\ufeff\ufeff" + text)


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_every_profile_says_where_it_is_from(name: str) -> None:
    origin = host(name).origin
    assert origin == "measured" or origin.startswith("hand-made: from ")
    assert origin.startswith("hand-made") == name.startswith("hand-made")


_NARROW, _WIDE = st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 512) - 1)
_narrow = st.dictionaries(
    st.sampled_from(["MIDR_EL1", "CTR_EL0", "ID_AA64PFR0_EL1", "S3_0_C0_C4_3"]), _NARROW
)
_values = st.builds(
    lambda narrow, wide: {**narrow, **wide}, _narrow, st.dictionaries(st.just("SVE_VLS"), _WIDE)
)
_printable = st.text(st.characters(codec="utf-8").filter(str.isprintable), max_size=5)
_words = st.text("abcXYZ019.-_", min_size=1, max_size=5)
_vcpus = st.builds(
    Vcpu,
    number=st.integers(0, 1),
    features=st.sampled_from(
        [(), ("psci_0_2",), ("psci_0_2", "pmu_v3"), ("psci_0_2", "sve", "ptrauth_address")]
    ),
    registers=_values,
    reglist=st.sets(st.integers(0, 200) | st.integers(0, (1 << 64) - 1)).map(pack_ids),
)
_clusters = st.builds(
    Cluster,
    cpus=st.just("0-3,6"),
    midr=_NARROW,
    revidr=st.none() | _NARROW,
    implementer=_printable,
    part=_printable,
    capacity=st.none() | st.integers(1, 1024),
    target=st.integers(0, 1),
    vcpus=st.lists(
        _vcpus, min_size=1, max_size=4, unique_by=lambda vcpu: (vcpu.number, vcpu.features)
    ).map(tuple),
    sve_lengths=st.sets(st.integers(1, 16)).map(
        lambda lengths: tuple(128 * length for length in sorted(lengths))
    ),
    models=st.dictionaries(_words, st.integers(0, 1), max_size=2),
    seen=st.dictionaries(st.sampled_from(["CNTFRQ_EL0", "DCZID_EL0"]), _NARROW),
    writable=st.none() | _narrow,
)
_qemus = st.builds(
    Qemu,
    binary=_printable.map("/{}".format),
    version=st.from_regex(
        r"[0-9]{1,4}\.[0-9]\.[0-9]{1,2}", fullmatch=True, alphabet=st.characters(codec="ascii")
    ),
    machines=st.lists(_words.map("virt-{}".format), unique=True).map(
        lambda names: ("virt-10.0", *names)
    ),
    aliases=st.dictionaries(_words, st.just("virt-10.0")),
    cpu_models=st.lists(_words, unique=True).map(tuple),
    host_properties=st.dictionaries(
        _words, st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | _printable, max_size=3
    ),
)
_profiles = st.builds(
    HostProfile,
    name=_printable,
    origin=st.just("measured") | _printable.map("baseline of 1{}".format),
    made_by=_printable,
    architecture=st.sampled_from(["aarch64", "armv7l"]),
    kernel=_printable.map("6.12-{}".format),
    overrides=_printable.map("arm64.{}".format).map(lambda word: (word,)),
    platform=_printable,
    capabilities=st.dictionaries(st.sampled_from(["ARM_SVE", "ARM_PMU_V3"]), st.integers(1, 64)),
    ipa_bits=st.just(0) | st.integers(32, 64),
    gic_versions=st.sampled_from([(), (2,), (3,), (2, 3)]),
    clusters=st.lists(_clusters, max_size=1).map(tuple),
    qemu=st.none() | _qemus,
    libvirt=st.none() | _printable,
    cpu_features=st.lists(st.sampled_from(["sve", "sve128", "pauth"]), unique=True).map(tuple),
    problems=st.lists(st.builds(Problem, _printable, _printable, _printable), max_size=3).map(
        tuple
    ),
)


@settings(max_examples=60)
@given(_profiles.map(HostProfile.with_unknown))
def test_loading_is_the_inverse_of_dumping(value: HostProfile) -> None:
    text = profile_json.dumps(value)
    assert profile_json.loads(text) == value
    assert text.endswith("}\n")


@pytest.mark.parametrize("missing", [("CNTFRQ_EL0",), ("DCZID_EL0",), tuple(GUEST_REGISTERS)])
def test_what_no_scratch_guest_has_read_is_unknown(missing: tuple[str, ...]) -> None:
    """A guest's clock may go wrong there, and nothing else tells."""
    name = "trixie-neoverse-n1"
    document = _document(name)
    (cluster,) = document["clusters"]
    cluster["seen"] = {reg: value for reg, value in cluster["seen"].items() if reg not in missing}
    here = profile_json.loads(json.dumps({**document, "name": "here"}))
    assert "seen" in here.unknown
    there = host(name)
    (finding,) = check(Resolver(there, Policy()).target(Wish("aarch64")), here)
    assert (finding.kind, finding.severity) == ("not-known", "unknown")
    assert compare([here, there], Policy()).answer is None
    with pytest.raises(KvmarmError, match="does not tell everything: seen is unknown"):
        baseline([here, there])


@pytest.mark.parametrize(
    ("part", "unknown"),
    [("KVM capabilities", ("capabilities", "vcpus")), ("virtual GICs", ("gic_versions",))],
)
def test_what_kvm_did_not_answer_is_unknown(part: str, unknown: tuple[str, ...]) -> None:
    there = host("trixie-neoverse-n1")
    nothing: dict[str, Any] = {"capabilities": {}, "gic_versions": []}
    document = {
        **_document(there.name),
        **{name: nothing[name] for name in unknown if name in nothing},
        "problems": [{"part": part, "message": "Too many open files", "hint": ""}],
    }
    here = profile_json.loads(json.dumps(document))
    assert {*here.unknown} - {*SINCE_2} == {*unknown}
    assert profile_json.loads(profile_json.dumps(here)) == here
    findings = check(Resolver(there, Policy()).target(Wish("aarch64")), here)
    assert {finding.kind for finding in findings} <= {"not-known"}
    with pytest.raises(KvmarmError, match="does not tell what a domain is resolved by"):
        Resolver(here, Policy()).target(Wish("aarch64"))


def test_a_32_bit_host_runs_no_scratch_guest() -> None:
    assert "seen" not in host("hand-made-a15-3.10").unknown


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "QEMU: QEMU is not installed (hint: install it)",
            Problem("QEMU", "QEMU is not installed", "install it"),
        ),
        (
            "cluster 0-3, scratch guest: KVM_RUN: EIO",
            Problem("cluster 0-3, scratch guest", "KVM_RUN: EIO"),
        ),
        ("this is a x86_64 host", Problem("", "this is a x86_64 host")),
        ("KVM: one (or two)", Problem("KVM", "one (or two)")),
        ("KVM: ", Problem("", "KVM: ")),
        ("", Problem("", "")),
        (": x", Problem("", ": x")),
        ("x (hint: y: z)", Problem("", "x", "y: z")),
        ("x" * 256 + ": y", Problem("", "x" * 256 + ": y")),
    ],
)
def test_a_problem_was_a_line_at_first(line: str, problem: Problem) -> None:
    found = profile_json.loads(json.dumps({**_document(), "problems": [line]})).problems
    assert found == (problem,)
    assert str(problem) == line
    assert (
        profile_json.loads(profile_json.dumps(host("trixie-max").replace(problems=found))).problems
        == found
    )


@pytest.mark.parametrize(
    ("problem", "cpus"),
    [
        (Problem("cluster 4-5", "KVM_CREATE_VCPU: EINVAL"), "4-5"),
        (Problem("CPUs of an unknown kind", "nothing tells MIDR_EL1 of 4-5"), "4-5"),
        (Problem("cluster 4-5", "it has them all", cpus="4-7"), "4-7"),
        (Problem("cluster 0", "it was measured afterwards"), ""),
        (Problem("cluster 4-5, scratch guest", "KVM_RUN: EIO"), ""),
        (Problem("cluster 9-5", "no list"), ""),
        (Problem("CPUs of an unknown kind", "none is named"), ""),
    ],
)
def test_a_problem_of_cpus_has_them(problem: Problem, cpus: str) -> None:
    """Profiles were written without, and then its words tell."""
    there = host("trixie-max").replace(problems=(problem,))
    found = profile_json.loads(profile_json.dumps(there))
    assert found.problems == (problem.replace(cpus=cpus),)
    assert found.unmeasured == (found.problems if cpus else ())
    assert profile_json.loads(profile_json.dumps(found)) == found


@given(_printable)
def test_every_line_is_a_problem_that_says_it(line: str) -> None:
    (found,) = profile_json.loads(json.dumps({**_document(), "problems": [line]})).problems
    assert str(found) == line


def test_variants_are_written_as_differences() -> None:
    cluster = _document()["clusters"][0]
    assert len(cluster["variants"]) > 10
    assert all(
        len(variant["registers"]) < len(cluster["base"]["registers"]) / 4
        for variant in cluster["variants"]
    )


# -- what nobody measured ------------------------------------------------------------------------

_ABSENT = [part for part in PARTS if part not in ("vcpus", "registers")]


def _full() -> dict[str, Any]:
    """A profile of the second schema that tells everything."""
    here = host("trixie-max").replace(page_size=4096, gicd_iidr=0x4B00143B, unknown=())
    return profile_json.encode(here)


def _place_of(document: Any, part: str) -> Any:
    """The objects that have such a member."""
    (cluster,) = document["clusters"]
    if part == "reglist":
        return [cluster["base"], *cluster["variants"]]
    return [cluster if part in cluster else document]


def _as_text(document: Any) -> str:
    return json.dumps(document)


def test_a_profile_may_tell_everything() -> None:
    document = json.loads(_as_text(_full()))
    assert document["schema"] == "urn:kvmarm-plugin:profile:2"
    assert document["unknown"] == []
    assert document["page_size"] == 4096
    assert document["gicd_iidr"] == "0x4b00143b"
    assert _validator().is_valid(document)
    assert profile_json.encode(profile_json.loads(_as_text(document))) == _full()


@pytest.mark.parametrize("part", _ABSENT)
def test_what_is_unknown_is_absent(part: str) -> None:
    document = json.loads(_as_text(_full()))
    for place in _place_of(document, part):
        del place[part]
    _refused(_as_text(document), f"it has no {part!r}")
    assert not _validator().is_valid(document)
    document["unknown"] = [part]
    here = profile_json.loads(_as_text(document))
    assert here.unknown == (part,)
    assert json.loads(profile_json.dumps(here)) == document
    assert _validator().is_valid(document)


@pytest.mark.parametrize("part", _ABSENT)
def test_nothing_is_unknown_and_told(part: str) -> None:
    document = json.loads(_as_text({**_full(), "unknown": [part]}))
    _refused(_as_text(document), f"{part} is none of its members")
    assert not _validator().is_valid(document)


@pytest.mark.parametrize("part", ["vcpus", "registers"])
def test_there_may_be_more_than_is_told(part: str) -> None:
    document = json.loads(_as_text({**_full(), "unknown": [part]}))
    here = profile_json.loads(_as_text(document))
    assert here.clusters == host("trixie-max").clusters
    assert json.loads(profile_json.dumps(here)) == document
    assert _validator().is_valid(document)


@pytest.mark.parametrize(
    "unknown",
    [None, "seen", 5, {}, [5], ["x"], ["seen", "seen"], ["writable", "seen"], ["SEEN"], ["name"]],
)
def test_unknown_names_parts_in_their_order(unknown: Any) -> None:
    _refused(_as_text({**_full(), "unknown": unknown}), "unknown")


def test_the_second_schema_names_what_is_unknown() -> None:
    document = json.loads(_as_text(_full()))
    del document["unknown"]
    _refused(_as_text(document), "it has no 'unknown'")
    assert not _validator().is_valid(document)


@pytest.mark.parametrize("member", ["unknown", *SINCE_2])
def test_the_first_schema_has_nothing_of_the_second(member: str) -> None:
    document = {**_document(), member: _full()[member]}
    _refused(_as_text(document), f"{member} is none of its members")
    assert not _validator().is_valid(document)


@pytest.mark.parametrize("size", [0, 1, 4095, 8192, 131072, "4096", True, 4096.0, None])
def test_page_sizes(size: Any) -> None:
    document = json.loads(_as_text({**_full(), "page_size": size}))
    _refused(_as_text(document), "")
    if size != 4096:
        assert not _validator().is_valid(document)


@pytest.mark.parametrize(
    "path",
    [("unknown",), ("page_size",), ("gicd_iidr",), ("unknown", 0), ("kernel",), ("overrides",)],
)
def test_schema_and_reader_agree_on_the_second_schema(path: tuple[Any, ...]) -> None:
    document = json.loads(_as_text(_full()))
    document["unknown"] = ["capacity"]
    for cluster in document["clusters"]:
        del cluster["capacity"]
    for value in _HOSTILE:
        mutated = _mutated(document, path, value)
        why = _refusal(mutated)
        if not _strict_validator().is_valid(mutated):
            assert why
        elif why:
            assert _BEYOND.search(why)


def test_the_digest_is_that_of_the_first_schema() -> None:
    """A host that was probed before has the digest that its pool knows."""
    here = host("trixie-max")
    again = profile_json.loads(_as_text(_full()))
    assert digest(again) == digest(here)
    assert digest(again.replace(page_size=65536)) == digest(here)
    assert digest(again.replace(unknown=("page_size",), page_size=0)) == digest(here)
    libvirt_unknown = again.replace(unknown=("libvirt",), libvirt=None)
    assert digest(libvirt_unknown) not in (digest(here), digest(here.replace(libvirt=None)))


# -- digest --------------------------------------------------------------------------------------


def test_the_digest_does_not_depend_on_whose_host_it_is() -> None:
    here = host("trixie-max")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest(here))
    assert digest(
        here.replace(
            name="other",
            origin="hand-made: from it",
            made_by="hand",
            problems=(Problem("KVM", "none"),),
        )
    ) == digest(here)


def _with_vcpu(value: HostProfile, **changes: object) -> HostProfile:
    cluster = value.clusters[0]
    vcpus = (cluster.vcpus[0].replace(**changes), *cluster.vcpus[1:])
    return value.replace(clusters=(cluster.replace(vcpus=vcpus), *value.clusters[1:]))


def test_the_digest_depends_on_everything_else() -> None:
    here = host("trixie-max")
    cluster = here.clusters[0]
    assert here.qemu is not None
    others = [
        here.replace(architecture="armv7l"),
        here.replace(kernel="7.0"),
        here.replace(overrides=("arm64.nosve",)),
        here.replace(platform="other"),
        here.replace(capabilities={}),
        here.replace(ipa_bits=40),
        here.replace(gic_versions=(2,)),
        here.replace(clusters=()),
        here.replace(qemu=None),
        here.replace(qemu=here.qemu.replace(version="1.2.3")),
        here.replace(libvirt=None),
        here.replace(clusters=(cluster.replace(seen={**cluster.seen, "CNTFRQ_EL0": 1}),)),
        here.replace(clusters=(cluster.replace(vcpus=cluster.vcpus[:-1]),)),
        _with_vcpu(here, registers={**cluster.vcpus[0].registers, "MIDR_EL1": 1}),
        _with_vcpu(here, reglist="10000:1"),
        _with_vcpu(here, number=4),
    ]
    assert len({digest(other) for other in [here, *others]}) == len(others) + 1


def test_profiles_of_the_corpus_are_of_different_hosts() -> None:
    assert len({digest(host(name)) for name in HOSTS}) == len(HOSTS)


# -- refusals ------------------------------------------------------------------------------------


def _refused(text: str, why: str) -> None:
    with pytest.raises(ProfileError) as caught:
        profile_json.loads(text, "some.json")
    line = one_line(caught.value)
    assert "some.json" in line
    assert why in line
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    ["", "{", "<domain/>", "nonsense\nof two lines", "[" * 100_000, '{"a": 1} {"b": 2}', "\0"],
)
def test_what_is_not_json(text: str) -> None:
    _refused(text, "is not JSON")


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "5",
        '"urn:kvmarm-plugin:profile:1"',
        "{}",
        '{"schema": "urn:other:1"}',
        '{"schema": null}',
    ],
)
def test_what_is_not_a_profile(text: str) -> None:
    _refused(text, "is not a host profile")


@pytest.mark.parametrize("version", ["3", "10", "1.1", ""])
def test_other_versions_are_refused(version: str) -> None:
    _refused(
        json.dumps({**_document(), "schema": f"urn:kvmarm-plugin:profile:{version}"}),
        "this kvmarm knows urn:kvmarm-plugin:profile:2",
    )


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document: in dictionaries of fixed keys all of them, in long ones and in
    lists the first.
    """
    if isinstance(value, dict):
        inner = [place for key in list(value)[:40] for place in _paths(value[key], (*path, key))]
    elif isinstance(value, list) and value:
        inner = _paths(value[0], (*path, 0))
    else:
        inner = []
    return [path, *inner] if path else inner


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


# Maps whose keys are free: what is missing there is just not there.
_FREE = {"registers", "seen", "writable", "capabilities", "models", "aliases", "host_properties"}
_OF_FEW = ("level", "level_library")  # of levelled pools: test_levelling

_KEYS = [
    path
    for path in _paths(_document())
    if isinstance(path[-1], str)
    and (len(path) < 2 or path[-2] not in _FREE)
    and path != ("schema",)
]


@pytest.mark.parametrize("path", _KEYS, ids=lambda path: ".".join(map(str, path)))
def test_a_missing_key_is_named(path: tuple[Any, ...]) -> None:
    document = _document()
    del _at(document, path[:-1])[path[-1]]
    _refused(json.dumps(document), f"it has no '{path[-1]}'")


def test_the_keys_tried_are_those_of_the_schema() -> None:
    places = set(_validator().schema["properties"]) | set(
        _validator().schema["$defs"]["cluster"]["properties"]
    )
    assert places - {"schema", "unknown", *SINCE_2, *_OF_FEW} <= {path[-1] for path in _KEYS}


_WRONG: st.SearchStrategy[Any] = st.sampled_from(
    [None, 5, "text", "0xg", [], ["x"], [[]], {}, {"x": "y"}, {"x": None}, True, 1.5]
)


@settings(max_examples=400)
@given(st.sampled_from(_paths(_document())), _WRONG)
def test_a_wrong_type_is_refused_or_comes_back(path: tuple[Any, ...], wrong: Any) -> None:
    document = copy.deepcopy(_document())
    _at(document, path[:-1])[path[-1]] = wrong
    try:
        profile_json.dumps(profile_json.loads(json.dumps(document), "some.json"))
    except ProfileError as error:
        one_line(error)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("name",), 5),
        (("name",), None),
        (("kernel",), ["6.1"]),
        (("capabilities",), []),
        (("ipa_bits",), "48"),
        (("ipa_bits",), None),
        (("libvirt",), 9),
        (("clusters",), {}),
        (("clusters", 0, "capacity"), "big"),
        (("clusters", 0, "target"), "5"),
        (("clusters", 0, "models"), []),
        (("clusters", 0, "sve_lengths"), [None]),
        (("clusters", 0, "variants", 0, "registers"), {"ID_DFR0_EL1": {}}),
        (("qemu", "version"), 10),
        (("qemu", "aliases"), []),
        (("qemu", "host_properties"), True),
        (("overrides",), None),
        (("gic_versions",), 3),
        (("problems",), 5),
        (("clusters",), None),
        (("clusters",), {"0": {}}),
        (("clusters", 0), "x"),
        (("qemu",), []),
        (("qemu", "machines"), None),
        (("clusters", 0, "midr"), 5),
        (("clusters", 0, "midr"), "g57"),
        (("clusters", 0, "revidr"), 5),
        (("clusters", 0, "sve_lengths"), 5),
        (("clusters", 0, "seen"), []),
        (("clusters", 0, "base"), []),
        (("clusters", 0, "base", "features"), None),
        (("clusters", 0, "base", "registers"), None),
        (("clusters", 0, "base", "registers", "MIDR_EL1"), 5),
        (("clusters", 0, "base", "registers", "MIDR_EL1"), "five"),
        (("clusters", 0, "base", "reglist"), ["c000"]),
        (("clusters", 0, "variants"), None),
        (("clusters", 0, "variants", 0, "registers"), []),
        (("clusters", 0, "variants", 0, "reglist"), "x"),
        (("clusters", 0, "variants", 0, "reglist", "removed"), "nonsense"),
        (("clusters", 0, "writable"), []),
    ],
    ids=str,
)
def test_a_wrong_type_is_refused(path: tuple[Any, ...], wrong: object) -> None:
    document = _document()
    _at(document, path[:-1])[path[-1]] = wrong
    _refused(json.dumps(document), "some.json is ")


# -- the published schema ------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_every_profile_is_valid(name: str) -> None:
    errors = [
        f"{list(error.absolute_path)}: {error.message}"
        for error in _validator().iter_errors(_document(name))
    ]
    assert not errors


def _objects(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [found for item in schema for found in _objects(item)]
    if not isinstance(schema, dict):
        return []
    inner = [found for item in schema.values() for found in _objects(item)]
    return (
        [schema, *inner]
        if "properties" in schema and isinstance(schema["properties"], dict)
        else inner
    )


_UNKNOWABLE = {*PARTS, "unknown", "level", "level_library"}


def test_the_schema_is_strict_and_describes_every_key() -> None:
    objects = _objects(_validator().schema)
    assert len(objects) == 8
    for found in objects:
        assert found["additionalProperties"] is False
        # Parts that may be unknown are wanted by conditions, which need all of the document.
        wanted = {*found["required"], *_UNKNOWABLE, *_OF_FEW} & {*found["properties"]}
        assert wanted == {*found["properties"]}
        for name, entry in found["properties"].items():
            assert (
                "description" in entry
                or "description" in _validator().schema["$defs"][entry["$ref"].rpartition("/")[2]]
            ), name


@pytest.mark.parametrize("path", [*_KEYS, ("schema",)], ids=lambda path: ".".join(map(str, path)))
def test_the_schema_wants_every_key(path: tuple[Any, ...]) -> None:
    document = _document()
    del _at(document, path[:-1])[path[-1]]
    assert not _validator().is_valid(document)


@pytest.mark.parametrize(
    "path",
    [(), ("qemu",), ("clusters", 0), ("clusters", 0, "base"), ("clusters", 0, "variants", 0)],
    ids=str,
)
def test_the_schema_allows_nothing_else(path: tuple[Any, ...]) -> None:
    document = _document()
    _at(document, path)["more"] = 1
    assert not _validator().is_valid(document)


@settings(max_examples=60)
@given(st.sampled_from(_paths(_document())), _WRONG)
def test_what_the_schema_allows_can_be_loaded(path: tuple[Any, ...], wrong: Any) -> None:
    document = copy.deepcopy(_document())
    _at(document, path[:-1])[path[-1]] = wrong
    if _validator().is_valid(document):
        assert profile_json.loads(json.dumps(document))


# -- the reader and the schema say the same ------------------------------------------------------


def _as_ecma_has_it(
    _validator: Any, pattern: str, instance: object, _schema: object
) -> Iterator[jsonschema.ValidationError]:
    """JSON Schema's patterns are ECMA 262's, where $ is the very end; Python's is also in front of
    a last line break.
    """
    if isinstance(instance, str) and not re.search(pattern.replace("$", r"\Z"), instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


@cache
def _strict_validator() -> Any:
    extend: Any = jsonschema.validators.extend
    extended = extend(jsonschema.Draft202012Validator, {"pattern": _as_ecma_has_it})
    return extended(json.loads(_SCHEMA.read_text(encoding="utf-8")))


# What the reader refuses and the schema cannot: docs/profile.md lists the rules.
_BEYOND = re.compile(
    # characters that do not print, of which the schema has the most frequent only
    "cannot be .*one line of text|"
    "is not whole|"  # 5.0 is an integer to JSON Schema
    "is no register that identifies a vCPU|cannot be .*a hexadecimal number of (32|64) bits|"
    "a packed list of register ids|reglist adds what the base has|"
    "are not vCPU features in the order of their bits|two vCPUs of the same target|has a target"
    " that|"
    "are not parts of a profile in their order|"
    "are not vector lengths in bits|numbers of CPUs, such as|has a CPU of another cluster's"
)

_HOSTILE: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        2,
        3,
        5,
        48,
        64,
        65,
        128,
        200,
        1024,
        1025,
        -1,
        1 << 31,
        1 << 63,
        (1 << 64) - 1,
        1 << 64,
        5.0,
        1.5,
    ),
    *(
        "",
        " ",
        "x",
        "/",
        "/bin/\x1b[2J",
        "0",
        "0x",
        "0x0",
        "0X1F",
        "0x1f",
        "0x1f\n",
        "0x" + "f" * 16,
        "0x1" + "0" * 16,
        "0x" + "f" * 128,
    ),
    *(
        "0x" + "0" * 10_000,
        "-0x1",
        "+5",
        "1_0",
        "\u0661",
        "0x\uff11",
        "0-3",
        "3-0",
        "0-99999",
        "^2",
        "0-3,",
        "0-3\n",
        "0-16384",
    ),
    *(
        "measured\n",
        "hand-made: ",
        "hand-made: \n",
        "baseline of 2\u2028alpha: yes",
        "two\nlines",
        "\x1b[31m",
        "\x9b2J",
        "\u202e",
        "\u00a0",
        "é",
    ),
    *(
        "virt-10.0",
        "virt-'/><x",
        "virt-10.0\n",
        "virt-",
        "arm64.nosve",
        "arm64.\x07",
        "id_aa64",
        "6.1",
        "6.",
        "6.1x",
        "6.1-\x00",
        "61",
    ),
    *(
        "10.0.2",
        "10.0",
        "10.0.2.1",
        "pauth",
        "sve",
        "sve99999",
        "sve128\n",
        "MIDR_EL1",
        "aarch64",
        "x86_64",
        "a" * 256,
        "a" * 5000,
        "\ud800",
    ),
    *(
        "6030000000130000:c000",
        "6030000000130000:c000 ",
        "1:1",
        "6030000000130000:0-ffff",
        "6030000000130000:c000,c000",
        "c000",
    ),
    *(
        "10000000000000000:1",
        "6030000000130000:c000-c004/2",
        "6030000000130000:-1",
        " ".join(["6030000000130000:c000"] * 900),
    ),
    *(
        [],
        [None],
        [[]],
        ["x"],
        ["x", "x"],
        [2],
        [3],
        [3, 2],
        [2, 2],
        [2, 3],
        [128],
        [256, 128],
        [128, 200],
        ["psci_0_2"],
        ["pmu_v3", "psci_0_2"],
    ),
    *(
        ["sve", "sve"],
        ["has_el2"],
        ["virt-1", "virt-1"],
        ["arm64.nosve"] * 256,
        ["a"] * 5000,
        {},
        {"x": None},
        {"x": 1},
        {"x": "0x1"},
    ),
    *(
        {"MIDR_EL1": "0x1"},
        {"MIDR_EL1": None},
        {"MPIDR_EL1": "0x1"},
        {"S3_0_C0_C0_0": "0x1"},
        {"S3_0_C0_C4_3": "0x" + "f" * 17},
    ),
    *(
        {"SVE_VLS": "0x" + "f" * 128},
        {"CTR": "0x100000000"},
        {"0x40200000000f0010": "0x1"},
        {"0x6030000000130000": "0x1"},
        {"CNTFRQ_EL0": "0x0"},
    ),
    *(
        {"virt": "virt-10.0"},
        {"virt": "virt-99"},
        {"\x1b": "virt-10.0"},
        {"sve": True},
        {"sve": [1]},
        {"sve": 1 << 64},
        {"sve": 1.5},
    ),
    *(
        {"ARM_SVE": 1},
        {"ARM_SVE": True},
        {"arm_sve": 1},
        {"cortex-a57": 2},
        {"cortex-a57": 6},
        {"cortex'a57": 2},
        {"cortex-a57": 256},
    ),
    *(
        {f"A{number}": 1 for number in range(5000)},
        {"added": "", "removed": ""},
        {"added": "6030000000130000:c000", "removed": ""},
    ),
)


@cache
def _small() -> dict[str, Any]:
    """A profile with something at every place, and little of it: the schema takes its time."""
    document = _document("trixie-max-nobti")
    (cluster,) = document["clusters"]
    cluster["variants"] = cluster["variants"][:1]
    for registers in (cluster["base"]["registers"], cluster["writable"]):
        for name in list(registers)[2:]:
            del registers[name]
    for variant in cluster["variants"]:
        variant["registers"] = {
            name: value
            for name, value in variant["registers"].items()
            if name in cluster["base"]["registers"]
        }
    cluster["variants"][0]["registers"] = {
        "MIDR_EL1": "0x1",
        "S3_0_C0_C4_3": "0x1",
        "SVE_VLS": "0x1",
        "CTR_EL0": None,
    }
    cluster["models"] = {"cortex-a57": 2}
    qemu = document["qemu"]
    qemu["machines"], qemu["cpu_models"] = qemu["machines"][:2], qemu["cpu_models"][:2]
    qemu["host_properties"] = {"sve": True, "pauth": False}
    cluster["sve_lengths"], cluster["seen"] = (
        cluster["sve_lengths"][:2],
        {"CNTFRQ_EL0": "0x1", "DCZID_EL0": "0x4", "PMCR_EL0": "0x0"},
    )
    few = {name: document["capabilities"][name] for name in ("ARM_SVE", "ARM_PMU_V3")}
    return {
        **document,
        "capabilities": few,
        "cpu_features": ["sve", "pauth"],
        "problems": [{"part": "KVM", "message": "none", "hint": "ask"}, "KVM: none"],
        "overrides": ["arm64.nosve"],
    }


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place, also those inside of long lists and maps."""
    members = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [
        *([path] if path else []),
        *(place for key, item in members for place in _places(item, (*path, key))),
    ]


def _mutated(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    mutated = copy.deepcopy(document)
    _at(mutated, path[:-1])[path[-1]] = value
    return mutated


def _refusal(document: dict[str, Any]) -> str:
    """Why the reader refuses a document; empty if it does not."""
    try:
        profile_json.loads(json.dumps(document), "some.json")
    except ProfileError as error:
        line = one_line(error)
        assert line.isprintable()
        assert len(line) < 700
        return line
    return ""


def _schema_takes(document: dict[str, Any], path: tuple[Any, ...]) -> bool:
    """Whether the schema takes a document that differs at one place from a valid one: only what is
    around it is asked about.
    """
    part, schema = document, _strict_validator().schema
    for name in (
        path if path not in (("architecture",), ("clusters",)) else ()
    ):  # of which the schema says something together
        while "$ref" in schema:
            schema = _strict_validator().schema["$defs"][schema["$ref"].rpartition("/")[2]]
        further = schema.get("properties", {}).get(name) or (
            schema.get("items") if not schema.get("uniqueItems") else None
        )
        if further is None:
            break
        part, schema = part[name], further
    return bool(_strict_validator().evolve(schema=schema).is_valid(part))


def _agree(document: dict[str, Any], path: tuple[Any, ...]) -> bool:
    """Whether both take a document that differs at one place from a valid one."""
    why = _refusal(document)
    if not _schema_takes(document, path):
        assert why, "the schema refuses it and the reader takes it"
    elif why:
        assert _BEYOND.search(why), "the reader refuses it and the schema takes it"
    return not why


@pytest.mark.parametrize("path", _places(_small()), ids=lambda path: ".".join(map(str, path)))
def test_schema_and_reader_agree_on_every_value(path: tuple[Any, ...]) -> None:
    """And what they take crashes nothing: a few of each sort, since any text will do for a name."""
    assert not _refusal(_small())
    mutants = [_mutated(_small(), path, value) for value in _HOSTILE]
    taken = [mutated for mutated in mutants if _agree(mutated, path)]
    for mutated in taken[:: 1 + len(taken) // 6]:
        _used(profile_json.loads(json.dumps(mutated)), host("trixie-max"))


@pytest.mark.parametrize(
    "path", [path for path in _places(_small()) if isinstance(_at(_small(), path), dict)], ids=str
)
def test_schema_and_reader_agree_on_every_name(path: tuple[Any, ...]) -> None:
    here = _at(_small(), path)
    known = next(iter(here.values()), None)
    for name in (value for value in _HOSTILE if isinstance(value, str)):
        _agree(_mutated(_small(), path, {**here, name: known}), path)


@settings(max_examples=200)
@given(st.sampled_from(sorted(HOSTS)), st.data())
def test_schema_and_reader_agree_on_recorded_profiles(name: str, data: st.DataObject) -> None:
    document = _document(name)
    path = data.draw(st.sampled_from(_places(document)))
    _agree(_mutated(document, path, data.draw(st.sampled_from(_HOSTILE))), path)


@pytest.mark.parametrize(
    "path",
    [path for path in _places(_small()) if isinstance(_at(_small(), path), (int, str, type(None)))],
    ids=str,
)
def test_the_place_of_what_is_wrong_is_named(path: tuple[Any, ...]) -> None:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
    if path not in {("schema",), ("problems", 1)}:
        assert (
            f"some.json is broken: {place.partition('.features[')[0].partition('.reglist')[0]}"
            in _refusal(_mutated(_small(), path, {"no": "such"}))
        )


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"name":', '"name": "x", "name":', "has 'name' twice"),
        ('"MIDR_EL1":', '"MIDR_EL1": "0x1", "MIDR_EL1":', "has 'MIDR_EL1' twice"),
        ('"ipa_bits": 52', '"ipa_bits": NaN', "is not whole: NaN"),
        ('"ipa_bits": 52', '"ipa_bits": -Infinity', "is not whole: -Infinity"),
        ('"ipa_bits": 52', '"ipa_bits": 52.0', "is not whole: 52.0"),
        ('"ipa_bits": 52', '"ipa_bits": 5e1', "is not whole: 5e1"),
        ('"ipa_bits": 52', '"ipa_bits": ' + "1" * 1_000_000, "has more than 64 bits: 111"),
        ('"ipa_bits": 52', '"ipa_bits": -' + "1" * 1_000_000, "has more than 64 bits: -111"),
        ('"ipa_bits": 52', '"ipa_bits": ' + "[" * 1_000_000, "is not JSON"),
        ('"ipa_bits": 52', '"ipa_bits": 52, "x\\u001b[2J": 1', "x\\x1b[2J is none of its members"),
        (
            '"schema": "',
            '"schema": "urn:kvmarm-plugin:profile:\\u001b',
            "has schema urn:kvmarm-plugin:profile:\\x1b",
        ),
    ],
)
def test_what_json_takes_and_a_profile_does_not(old: str, new: str, why: str) -> None:
    text = _text("trixie-max")
    assert old in text
    _refused(text.replace(old, new, 1), why)


def test_a_profile_has_an_end() -> None:
    _refused(_text("trixie-max") + " " * profile_json.SIZE_LIMIT, "is larger than 10 MiB")


# -- what loads does not crash -------------------------------------------------------------------


def _used(one: HostProfile, other: HostProfile) -> None:
    """All that commands do with profiles; whatever goes wrong is a KvmarmError."""
    made = []
    settings_ = (
        "",
        "prefer: host\nsve: off\npmu: off\n",
        "cluster: all",
        "cluster: smallest\nsve-max-length: 256",
    )
    for name, text in zip(sorted(TEMPLATES), itertools.cycle(settings_)):
        with contextlib.suppress(KvmarmError):
            made.append(Resolver(one, policy.loads(text)).resolve(template(name)))
    for xml in {*made}:
        element = record.find(parse(xml))
        if element is not None:
            with contextlib.suppress(KvmarmError):
                found = record.read(element)
                assert show.as_text("guest", found, every_register=True)
                assert json.dumps(show.as_json(found))
                for host_ in (one, other):
                    assert all(map(line, check(found.target, host_)))
    twin = one.replace(name="twin", kernel="5.10.0", qemu=other.qemu)
    for hosts in ([one], [one, other.replace(name="other"), twin]):
        comparison = compare(hosts, Policy())
        assert compareview.as_text(comparison)
        assert compareview.as_dot(comparison)
        assert json.dumps(compareview.as_json(comparison))
        if "seen" in one.unknown:
            with pytest.raises(KvmarmError, match="does not tell everything"):
                baseline(hosts)
            continue
        result = baseline(hosts)
        assert as_text(result, explain=True)
        assert json.dumps(as_json(result))
        if result.pool is not None:
            formed = pool.loads(pool.dumps(result.pool))
            assert formed == result.pool
            for host_ in hosts:
                assert all(map(line, pool.check_member(formed, host_)))


@pytest.mark.parametrize("name", ["trixie-max-nobti", "hand-made-rk3399", "hand-made-a15-3.10"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_profile_that_loads_crashes_nothing(name: str, data: st.DataObject) -> None:
    document = _document(name)
    for _ in range(data.draw(st.integers(1, 4))):
        path = data.draw(st.sampled_from(_places(document)))
        mutated = _mutated(document, path, data.draw(st.sampled_from(_HOSTILE)))
        document = document if _refusal(mutated) else mutated
    _used(profile_json.loads(json.dumps(document)), host(name))
