# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the user has written into a resolved domain since is the user's; what is as it was written
there is kvmarm's, and is decided anew.
"""

from __future__ import annotations

import pytest

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.restoring import restore
from kvmarm_plugin.domain.xml import asks_for_host_model, parse
from kvmarm_plugin.judge.contradictions import find_contradictions
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.target import Target
from kvmarm_plugin.resolve.resolver import Resolver
from tests.corpus import GUEST, HOSTS, TEMPLATES, host, resolver, template, with_record_1

_N1 = "trixie-neoverse-n1"  # neither SVE nor PAuth
_MAX = "trixie-max"  # both
_A57 = "trixie-cortex-a57"  # a named model


def _restored(xml: bytes) -> bytes:
    return restore(xml, parse(xml))


def _target(xml: bytes) -> Target:
    return record.read(record.find(parse(xml)) or pytest.fail("no record")).target


def _edited(old: bytes, new: bytes, name: str = _MAX, source: bytes = GUEST) -> bytes:
    xml = resolver(name).resolve(source)
    assert xml.count(old) == 1
    return xml.replace(old, new)


def _refreshed(xml: bytes, name: str = _MAX) -> bytes:
    """As `kvmarm refresh` does it."""
    written = xml if asks_for_host_model(parse(xml)) else _restored(xml)
    result = resolver(name).resolve(written)
    assert find_contradictions(parse(result), _target(result)) == []
    assert resolver(name).resolve(_restored(result)) == result
    return result


def _asking(*features: bytes) -> bytes:
    cpu = b"<cpu mode='host-model'>" + b"".join(features) + b"</cpu>"
    return GUEST.replace(b"<cpu mode='host-model'/>", cpu)


_FEATURE = b"<feature policy='%s' name='%s'/>"


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("guest", TEMPLATES)
@pytest.mark.parametrize("version", [bytes, with_record_1])
def test_only_the_mode_was_changed_back(name: str, guest: str, version: object) -> None:
    try:
        xml = resolver(name).resolve(template(guest))
    except KvmarmError:
        return
    if record.find(parse(xml)) is None:
        return
    xml = version(xml)  # type: ignore[operator]
    cpu = parse(xml).find("cpu")
    assert cpu is not None
    anew = cpu.head.replace(b"mode='host-passthrough'", b"mode='host-model'")
    anew = anew.replace(b"mode='custom'", b"mode='host-model'")
    edited = xml[: cpu.start] + anew + xml[cpu.body_start :]
    assert _restored(edited) == template(guest)
    assert resolver(name).resolve(edited) == resolver(name).resolve(template(guest))


def test_on_another_host_the_features_are_decided_anew() -> None:
    edited = _edited(b"mode='host-passthrough' check='none'", b"mode='host-model'", _N1)
    assert resolver(_MAX).resolve(edited) == resolver(_MAX).resolve(GUEST)


def test_what_the_user_adds_to_it_stays() -> None:
    """The mode was changed back, and one of the features."""
    edited = _edited(b"mode='host-passthrough'", b"mode='host-model'", _N1)
    edited = edited.replace(_FEATURE % (b"disable", b"pauth"), _FEATURE % (b"require", b"pauth"))
    assert _restored(edited).count(b"<feature ") == 1
    target = _target(resolver(_MAX).resolve(edited))
    assert "sve" in target.features
    assert "ptrauth_address" in target.features


def test_a_wish_of_before_stays() -> None:
    """It equals what was written, because it was obeyed."""
    source = _asking(_FEATURE % (b"disable", b"sve"))
    edited = _edited(b"mode='host-passthrough'", b"mode='host-model'", source=source)
    assert _restored(edited) == source
    edited = edited.replace(_FEATURE % (b"disable", b"sve"), b"")
    assert b"<feature" not in _restored(edited)


def test_an_optional_feature_comes_back() -> None:
    source = _asking(_FEATURE % (b"optional", b"sve"))
    assert _restored(_edited(b"host-passthrough", b"host-model", source=source)) == source


@pytest.mark.parametrize("name", [_N1, _MAX, _A57])
@pytest.mark.parametrize("policy", [b"optional", b"require", b"disable"])
def test_a_wish_that_is_written_anew_stands_once(name: str, policy: bytes) -> None:
    """The model, too: of a <cpu> there is one."""
    wish = b"<model fallback='forbid'>x</model>" + _FEATURE % (b"optional", b"pauth")
    again = b"<model fallback='allow'>y</model>" + _FEATURE % (policy, b"pauth")
    xml = resolver(name).resolve(_asking(wish))
    cpu = parse(xml).find("cpu")
    assert cpu is not None
    edited = xml[: cpu.start] + b"<cpu mode='host-model'>" + again + b"</cpu>" + xml[cpu.end :]
    back = _restored(edited)
    assert back.count(b"<feature ") <= 1
    assert back.count(b"<model ") == 1
    assert b">y<" in back


def test_a_feature_of_the_user_survives() -> None:
    edited = _edited(_FEATURE % (b"require", b"pauth"), _FEATURE % (b"disable", b"pauth"))
    refreshed = _refreshed(edited)
    target = _target(refreshed)
    assert "ptrauth_address" not in target.features
    assert "sve" in target.features
    assert _target(_refreshed(refreshed)) == target
    assert b"name='pauth'" in _restored(refreshed)
    assert b"name='sve" not in _restored(refreshed)


def test_a_length_of_the_user_survives() -> None:
    longest = _FEATURE % (b"require", b"sve2048")
    target = _target(_refreshed(_edited(longest, longest.replace(b"require", b"disable"))))
    assert max(target.sve_lengths) == 1920


def test_a_feature_that_was_taken_out_is_decided_anew() -> None:
    edited = _edited(_FEATURE % (b"require", b"pauth"), b"")
    assert _restored(edited) == GUEST
    assert _refreshed(edited) == resolver(_MAX).resolve(GUEST)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"<pmu state='on'/>", b"<pmu state='off'/>"),
        (b"machine='virt-10.0'>hvm", b"machine='virt-9.2'>hvm"),
    ],
)
@pytest.mark.parametrize("version", [bytes, with_record_1])
def test_a_value_of_the_user_survives(old: bytes, new: bytes, version: object) -> None:
    edited = version(_edited(old, new))  # type: ignore[operator]
    assert new in _restored(edited)
    refreshed = _refreshed(edited)
    assert new in refreshed
    assert _refreshed(refreshed) == refreshed
    assert new in _restored(refreshed)
    anew = edited.replace(b"mode='host-passthrough'", b"mode='host-model'")
    assert new in _restored(anew)
    assert new in resolver(_MAX).resolve(anew)


def test_a_gic_of_the_user_survives() -> None:
    here = Resolver(host(_N1).replace(gic_versions=(2, 3)), Policy())
    edited = here.resolve(GUEST).replace(b"<gic version='3'/>", b"<gic version='2'/>")
    assert b"<gic version='2'/>" in _restored(edited)
    assert _target(here.resolve(_restored(edited))).gic == 2


@pytest.mark.parametrize("pmu", [b"<pmu/>", b'<pmu state="on"/>', b"<pmu state='on'></pmu>"])
def test_the_same_written_otherwise_is_no_wish(pmu: bytes) -> None:
    assert b"<pmu" not in _restored(_edited(b"<pmu state='on'/>", pmu))


@pytest.mark.parametrize("guest", TEMPLATES)
@pytest.mark.parametrize("name", [_MAX, _A57])
def test_a_cpu_that_was_removed_comes_back(name: str, guest: str) -> None:
    if guest == "armv7l" and name == _MAX:
        return
    source = template(guest)
    try:
        xml = resolver(name).resolve(source)
    except KvmarmError:
        return
    if record.find(parse(xml)) is None:
        return
    cpu = parse(xml).find("cpu")
    assert cpu is not None
    edited = xml[: cpu.start] + xml[cpu.end :]
    assert not asks_for_host_model(parse(edited))
    back, was = parse(_restored(edited)).find("cpu"), parse(source).find("cpu")
    assert back is not None
    assert was is not None
    assert back.text == was.text
    assert _target(_refreshed(edited, name)) == _target(xml)


@pytest.mark.parametrize(
    "cpu", [b"<cpu mode='host-passthrough'/>", b"<cpu mode='host-passthrough' check='none'/>"]
)
def test_a_plain_host_passthrough_goes_back_to_host_model(cpu: bytes) -> None:
    xml = resolver(_MAX).resolve(GUEST)
    place = parse(xml).find("cpu")
    assert place is not None
    edited = xml[: place.start] + cpu + xml[place.end :]
    assert _restored(edited) == GUEST
    assert _refreshed(edited) == xml


@pytest.mark.parametrize("name", [_MAX, _A57])
@pytest.mark.parametrize(
    "cpu",
    [
        b"<cpu mode='maximum'/>",
        b"<cpu mode='custom'><model>neoverse-n1</model></cpu>",
        b"<cpu><topology sockets='1' cores='1' threads='1'/></cpu>",
    ],
)
def test_another_cpu_is_the_users(name: str, cpu: bytes) -> None:
    """It is no longer host-model; the record goes when it is undone."""
    xml = resolver(name).resolve(GUEST)
    place = parse(xml).find("cpu")
    assert place is not None
    back = _restored(xml[: place.start] + cpu + xml[place.end :])
    assert back == GUEST.replace(b"<cpu mode='host-model'/>", cpu)


def test_a_host_passthrough_in_place_of_a_model_is_the_users() -> None:
    xml = resolver(_A57).resolve(GUEST)
    place = parse(xml).find("cpu")
    assert place is not None
    cpu = b"<cpu mode='host-passthrough'/>"
    assert cpu in _restored(xml[: place.start] + cpu + xml[place.end :])
