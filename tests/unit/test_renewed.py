# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a guest has after an arrival and after a cold start, on played kernels of recorded hosts."""

from __future__ import annotations

import os
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.judge.by_profile import check
from kvmarm_plugin.kvm.device import System
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.target import Target, check_target
from kvmarm_plugin.registers.text import unpack_ids
from kvmarm_plugin.rehearse import rehearse, renewed
from kvmarm_plugin.resolve.resolver import Resolver

from ..corpus import GUEST, host
from .fakekernel import FakeKernel

_HOSTS = ("bookworm-neoverse-n1", "trixie-neoverse-n1", "sid-neoverse-n1", "trixie-max")
_OLDER, _NEWER = "trixie-neoverse-n1", "sid-neoverse-n1"


def _target(name: str, policy: Policy | None = None) -> Target:
    xml = Resolver(host(name), policy or Policy(prefer_named=False)).resolve(GUEST)
    return record.read(record.find(parse(xml)) or pytest.fail("no record")).target


def _on(name: str, target: Target, arrived: bool) -> Target:
    profile = host(name)
    uname = SimpleNamespace(machine="aarch64", nodename=name, release=profile.kernel)
    with (
        patch.object(os, "uname", lambda: uname),
        System(FakeKernel.from_profile(profile)) as system,
    ):
        there = renewed(target, system, arrived)
        check_target(there)
        if not arrived:
            assert rehearse(there, system) == []
    return there


@pytest.mark.parametrize("arrived", [False, True])
@pytest.mark.parametrize("name", _HOSTS)
def test_at_home_a_guest_has_what_is_recorded(name: str, arrived: bool) -> None:
    assert _on(name, _target(name), arrived) == _target(name)


def test_after_a_cold_start_everything_is_the_host_s() -> None:
    here, there = _target(_OLDER), _target(_NEWER)
    started = _on(_NEWER, here, arrived=False)
    assert started == there.replace(machine=here.machine)
    assert _on(_OLDER, started, arrived=False) == here


def test_an_arrival_keeps_its_values_and_gets_the_kernel_s_registers() -> None:
    here, there = _target(_OLDER), _target(_NEWER)
    arrived = _on(_NEWER, here, arrived=True)
    assert arrived.reglist == there.reglist
    assert unpack_ids(arrived.reglist) - unpack_ids(here.reglist)
    assert {name: arrived.registers[name] for name in here.registers} == here.registers
    new = arrived.registers.keys() - here.registers.keys()
    assert {name: arrived.registers[name] for name in new} == {
        name: there.registers[name] for name in new
    }
    assert (arrived.seen, arrived.machine) == (here.seen, here.machine)


def test_what_a_guest_read_when_it_booted_stays_until_it_boots_again() -> None:
    guest = _target(_OLDER)
    guest = guest.replace(seen={**guest.seen, "CNTFRQ_EL0": 25_000_000})
    assert _on(_OLDER, guest, arrived=True).seen["CNTFRQ_EL0"] == 25_000_000
    assert _on(_OLDER, guest, arrived=False) == _target(_OLDER)


def test_the_vector_lengths_are_those_of_the_domain_s_xml() -> None:
    guest = _target("trixie-max", Policy(sve_max_length=512))
    for arrived in (False, True):
        assert _on("trixie-max", guest, arrived) == guest


def test_a_feature_that_was_left_to_qemu_comes_where_the_host_has_it() -> None:
    guest = _target("trixie-max", Policy(sve=False, pauth=False))
    guest = guest.replace(unsaid=("sve", "ptrauth_address", "ptrauth_generic"))
    started = _on("trixie-max", guest, arrived=False)
    assert started.replace(unsaid=()) == _target("trixie-max")


def test_a_vcpu_that_is_not_made_here_is_nothing_to_renew() -> None:
    with pytest.raises(KvmarmError, match="does not make the recorded vCPU: KVM_ARM_VCPU_INIT: E"):
        _on(_OLDER, _target("trixie-max"), arrived=False)


@pytest.mark.parametrize("feature", ["ptrauth_address ptrauth_generic", "pmu_v3", "sve"])
def test_a_feature_that_was_left_to_qemu_stays_away_where_the_host_has_none(feature: str) -> None:
    """The vCPU with it cannot be made, and nobody asks for that one."""
    guest = _target("trixie-max", Policy(sve=None if feature == "sve" else False))
    if feature != "ptrauth_address ptrauth_generic":
        guest = guest.replace(
            features=tuple(bit for bit in guest.features if not bit.startswith("ptrauth"))
        )
    guest = guest.replace(unsaid=tuple(feature.split()))
    there = host("trixie-cortex-a57")
    without = there.replace(
        capabilities={
            name: value for name, value in there.capabilities.items() if "PMU" not in name
        }
    )
    there = without if feature == "pmu_v3" else there
    kernel = FakeKernel.from_profile(there)
    uname = SimpleNamespace(machine="aarch64", nodename="there", release=there.kernel)
    with patch.object(os, "uname", lambda: uname), System(kernel) as system:
        findings = rehearse(guest, system, boots=True)
        assert [finding.kind for finding in findings if finding.stops_start] == []
        started = renewed(guest, system, arrived=False)
        assert not {*feature.split()} & {*started.features}
        check_target(started)
        assert rehearse(started, system) == []
    profile_findings = check(guest, there, boots=True)
    assert [finding.kind for finding in profile_findings if finding.stops_start] == []


@pytest.mark.parametrize("arrived", [False, True])
def test_a_target_of_another_architecture_is_nothing_to_renew(arrived: bool) -> None:
    uname = SimpleNamespace(machine="armv7l", nodename="there", release="6.12.0")
    kernel = FakeKernel.from_profile(host(_OLDER))
    with (
        patch.object(os, "uname", lambda: uname),
        System(kernel) as system,
        pytest.raises(KvmarmError, match="its KVM is of arm, and the record of arm64"),
    ):
        renewed(_target(_OLDER), system, arrived)


def test_addresses_that_the_host_has_not_are_left_out() -> None:
    """QEMU then does without its high regions (virt_set_high_memmap), and starts."""
    there = host(_OLDER)
    there = there.replace(capabilities={**there.capabilities, "ARM_VM_IPA_SIZE": 36}, ipa_bits=36)
    uname = SimpleNamespace(machine="aarch64", nodename="there", release=there.kernel)
    guest = _target(_OLDER)
    with (
        patch.object(os, "uname", lambda: uname),
        System(FakeKernel.from_profile(there)) as system,
    ):
        (finding,) = rehearse(guest, system, boots=True)
        assert (finding.kind, finding.stops_start) == ("addresses-too-few", False)
        started = renewed(guest, system, arrived=False)
        assert started == guest.replace(ipa_bits=36)
        assert rehearse(started, system, boots=True) == []
