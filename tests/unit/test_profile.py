# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host profile: JSON and back, its digest, what is refused, and its published schema."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmarm_plugin import profile
from kvmarm_plugin.profile import Cluster, HostProfile, ProfileError, Qemu, Vcpu
from kvmarm_plugin.registers.text import pack_ids
from tests.corpus import HOSTS, TESTS, host, one_line

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


# -- JSON and back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_every_profile_comes_back_byte_for_byte(name: str) -> None:
    assert profile.dumps(profile.loads(_text(name))) == _text(name)


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_every_profile_says_where_it_is_from(name: str) -> None:
    origin = host(name).origin
    assert origin == "measured" or origin.startswith("hand-made: from ")
    assert origin.startswith("hand-made") == name.startswith("hand-made")


_names = st.sampled_from(["MIDR_EL1", "CTR_EL0", "ID_AA64PFR0_EL1", "S3_0_C0_C4_3", "SVE_VLS"])
_values = st.dictionaries(_names, st.integers(0, 1 << 130))
_vcpus = st.builds(
    Vcpu,
    number=st.integers(0, 5),
    features=st.lists(st.sampled_from(["psci_0_2", "pmu_v3", "sve"]), unique=True).map(tuple),
    registers=_values,
    reglist=st.sets(st.integers(0, 200) | st.integers(0, (1 << 64) - 1)).map(pack_ids),
)
_clusters = st.builds(
    Cluster,
    cpus=st.just("0-3,6"),
    midr=st.integers(0, (1 << 32) - 1),
    revidr=st.none() | st.integers(0, (1 << 32) - 1),
    implementer=st.text(max_size=5),
    part=st.text(max_size=5),
    capacity=st.none() | st.integers(1, 1024),
    target=st.integers(0, 5),
    vcpus=st.lists(_vcpus, min_size=1, max_size=4).map(tuple),
    sve_lengths=st.lists(st.integers(128, 2048)).map(tuple),
    models=st.dictionaries(st.text(max_size=5), st.integers(0, 5), max_size=2),
    seen=_values,
    writable=st.none() | _values,
)
_qemus = st.builds(
    Qemu,
    binary=st.text(max_size=5),
    version=st.text(max_size=5),
    machines=st.lists(st.text(max_size=5)).map(tuple),
    aliases=st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
    cpu_models=st.lists(st.text(max_size=5)).map(tuple),
    host_properties=st.dictionaries(st.text(max_size=5), st.booleans() | st.integers() | st.text(max_size=5), max_size=3),
)
_lines = st.lists(st.text(max_size=5), max_size=3).map(tuple)
_profiles = st.builds(
    HostProfile,
    name=st.text(max_size=5),
    origin=st.text(max_size=5),
    made_by=st.text(max_size=5),
    architecture=st.sampled_from(["aarch64", "armv7l", "x86_64"]),
    kernel=st.text(max_size=5),
    overrides=_lines,
    platform=st.text(max_size=5),
    capabilities=st.dictionaries(st.sampled_from(["ARM_SVE", "ARM_PMU_V3"]), st.integers(1, 64)),
    ipa_bits=st.integers(0, 52),
    gic_versions=st.sampled_from([(), (2,), (3,), (2, 3)]),
    clusters=st.lists(_clusters, max_size=2).map(tuple),
    qemu=st.none() | _qemus,
    libvirt=st.none() | st.text(max_size=5),
    cpu_features=st.lists(st.sampled_from(["sve", "sve128", "pauth"]), unique=True).map(tuple),
    problems=_lines,
)


@settings(deadline=None, max_examples=60)
@given(_profiles)
def test_loading_is_the_inverse_of_dumping(value: HostProfile) -> None:
    text = profile.dumps(value)
    assert profile.loads(text) == value
    assert text.endswith("}\n")


def test_variants_are_written_as_differences() -> None:
    cluster = _document()["clusters"][0]
    assert len(cluster["variants"]) > 10
    assert all(len(variant["registers"]) < len(cluster["base"]["registers"]) / 4 for variant in cluster["variants"])


# -- digest ------------------------------------------------------------------------------------------------------------


def test_the_digest_does_not_depend_on_whose_host_it_is() -> None:
    here = host("trixie-max")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", here.digest())
    assert here.replace(name="other", origin="hand-made: from it", made_by="hand", problems=("none",)).digest() == here.digest()


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
    assert len({other.digest() for other in [here, *others]}) == len(others) + 1


def test_profiles_of_the_corpus_are_of_different_hosts() -> None:
    assert len({host(name).digest() for name in HOSTS}) == len(HOSTS)


# -- refusals ----------------------------------------------------------------------------------------------------------


def _refused(text: str, why: str) -> None:
    with pytest.raises(ProfileError) as caught:
        profile.loads(text, "some.json")
    line = one_line(caught.value)
    assert "some.json" in line
    assert why in line
    assert caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "<domain/>", "nonsense\nof two lines", "[" * 100_000, '{"a": 1} {"b": 2}', "\0"])
def test_what_is_not_json(text: str) -> None:
    _refused(text, "is not JSON")


@pytest.mark.parametrize(
    "text", ["null", "[]", "5", '"urn:kvmarm-plugin:profile:1"', "{}", '{"schema": "urn:other:1"}', '{"schema": null}']
)
def test_what_is_not_a_profile(text: str) -> None:
    _refused(text, "is not a host profile")


@pytest.mark.parametrize("version", ["2", "10", "1.1", ""])
def test_other_versions_are_refused(version: str) -> None:
    _refused(
        json.dumps({**_document(), "schema": f"urn:kvmarm-plugin:profile:{version}"}),
        "this kvmarm knows urn:kvmarm-plugin:profile:1",
    )


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document: in dictionaries of fixed keys all of them, in long ones and in lists the first."""
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
_KEYS = [
    path
    for path in _paths(_document())
    if isinstance(path[-1], str) and (len(path) < 2 or path[-2] not in _FREE) and path != ("schema",)
]


@pytest.mark.parametrize("path", _KEYS, ids=lambda path: ".".join(map(str, path)))
def test_a_missing_key_is_named(path: tuple[Any, ...]) -> None:
    document = _document()
    del _at(document, path[:-1])[path[-1]]
    _refused(json.dumps(document), f"it has no '{path[-1]}'")


def test_the_keys_tried_are_those_of_the_schema() -> None:
    required = set(_validator().schema["required"]) | set(_validator().schema["$defs"]["cluster"]["required"])
    assert required - {"schema"} <= {path[-1] for path in _KEYS}


_WRONG: st.SearchStrategy[Any] = st.sampled_from([None, 5, "text", "0xg", [], ["x"], [[]], {}, {"x": "y"}, {"x": None}, True, 1.5])


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(_paths(_document())), _WRONG)
def test_a_wrong_type_is_refused_or_comes_back(path: tuple[Any, ...], wrong: Any) -> None:
    document = copy.deepcopy(_document())
    _at(document, path[:-1])[path[-1]] = wrong
    try:
        profile.dumps(profile.loads(json.dumps(document), "some.json"))
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


# -- the published schema ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(HOSTS))
def test_every_profile_is_valid(name: str) -> None:
    errors = [f"{list(error.absolute_path)}: {error.message}" for error in _validator().iter_errors(_document(name))]
    assert not errors


def _objects(schema: Any) -> list[dict[str, Any]]:
    if isinstance(schema, list):
        return [found for item in schema for found in _objects(item)]
    if not isinstance(schema, dict):
        return []
    inner = [found for item in schema.values() for found in _objects(item)]
    return [schema, *inner] if "properties" in schema and isinstance(schema["properties"], dict) else inner


def test_the_schema_is_strict_and_describes_every_key() -> None:
    objects = _objects(_validator().schema)
    assert len(objects) == 6
    for found in objects:
        assert found["additionalProperties"] is False
        assert sorted(found["required"]) == sorted(found["properties"])
        for name, entry in found["properties"].items():
            assert "description" in entry or "description" in _validator().schema["$defs"][entry["$ref"].rpartition("/")[2]], name


@pytest.mark.parametrize("path", [*_KEYS, ("schema",)], ids=lambda path: ".".join(map(str, path)))
def test_the_schema_wants_every_key(path: tuple[Any, ...]) -> None:
    document = _document()
    del _at(document, path[:-1])[path[-1]]
    assert not _validator().is_valid(document)


@pytest.mark.parametrize("path", [(), ("qemu",), ("clusters", 0), ("clusters", 0, "base"), ("clusters", 0, "variants", 0)], ids=str)
def test_the_schema_allows_nothing_else(path: tuple[Any, ...]) -> None:
    document = _document()
    _at(document, path)["more"] = 1
    assert not _validator().is_valid(document)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(_paths(_document())), _WRONG)
def test_what_the_schema_allows_can_be_loaded(path: tuple[Any, ...], wrong: Any) -> None:
    document = copy.deepcopy(_document())
    _at(document, path[:-1])[path[-1]] = wrong
    if _validator().is_valid(document):
        assert profile.loads(json.dumps(document))
