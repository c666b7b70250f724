# SPDX-License-Identifier: LGPL-2.1-or-later
"""Levelled guests on played kernels: what libkvmarm-level would do there is what the hook tries on
a scratch vCPU, and `check` foretells by profile.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from kvmarm_plugin.domain import levelling, record
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.fleet.common_ground import targets
from kvmarm_plugin.fleet.levelling import levelled
from kvmarm_plugin.hook import answer as hook
from kvmarm_plugin.hook import arrival, guest
from kvmarm_plugin.host import cpus, level_library, marks, qemu_version
from kvmarm_plugin.judge.by_profile import check
from kvmarm_plugin.judge.contradictions import find_contradictions
from kvmarm_plugin.judge.finding import HARMLESS, Finding
from kvmarm_plugin.judge.wording import texts
from kvmarm_plugin.kvm import device
from kvmarm_plugin.kvm.device import KvmError, System
from kvmarm_plugin.model import policy
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.model.target import Target, check_target
from kvmarm_plugin.registers.table import id_of
from kvmarm_plugin.registers.text import pack_ids, unpack_ids
from kvmarm_plugin.rehearse import rehearse, renewed
from kvmarm_plugin.resolve.resolver import Resolver
from tests.corpus import GUEST, HOSTS, host

from .fakekernel import FakeKernel

_TRIXIE, _SID = "trixie-neoverse-n1", "sid-neoverse-n1"
_A57, _A72 = "sid-cortex-a57", "sid-cortex-a72"
_POOLS = (
    (_TRIXIE, _SID),
    (_A57, _A72),
    ("trixie-cortex-a57", _A72),
    ("trixie-max", "sid-max"),
    ("trixie-max", "trixie-max-nobti", "trixie-max-nosve-nopauth"),
)
_UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
_SOURCE = GUEST.replace(b"<name>", f"<uuid>{_UUID}</uuid><name>".encode())


def _here(name: str) -> HostProfile:
    return host(name).replace(level_library="1")


def _profile(*names: str) -> HostProfile:
    profile = levelled([host(name) for name in names], "pool").profile
    assert profile is not None
    return profile


def _xml(*names: str) -> bytes:
    return Resolver(_profile(*names), Policy()).resolve(_SOURCE)


def _target(*names: str) -> Target:
    return record.read(record.find(parse(_xml(*names))) or pytest.fail("no record")).target


def _blocking(findings: list[Finding]) -> list[tuple[str, str]]:
    return sorted(
        (finding.kind, texts(finding)["subject"])
        for finding in findings
        if finding.severity != HARMLESS
    )


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The library's version; a test may put in another."""
    version = ["1"]
    monkeypatch.setattr(level_library, "installed_version", lambda: version[0])
    return version


def _on(here: HostProfile) -> Any:
    uname = SimpleNamespace(machine="aarch64", nodename=here.name, release=here.kernel)
    return patch.object(os, "uname", lambda: uname)


def _rehearsed(target: Target, here: HostProfile, boots: bool = False) -> list[Finding]:
    machines = here.qemu.machines if here.qemu else ()
    kernel = FakeKernel.from_profile(here)
    release = here.qemu.release if here.qemu else (0, 0)
    with (
        _on(here),
        patch.object(qemu_version, "installed_version", lambda: release),
        System(kernel) as system,
    ):
        found = rehearse(target, system, machines, boots=boots)
    assert not kernel.handles
    return found


def _renewed(target: Target, here: HostProfile, arrived: bool) -> Target:
    with _on(here), System(FakeKernel.from_profile(here)) as system:
        there = renewed(target, system, arrived)
        check_target(there)
        assert _blocking(rehearse(there, system)) == []
    return there


# -- the played kernel ---------------------------------------------------------------------------


def test_an_identity_is_written_in_a_vm_that_was_told_so_before_its_first_vcpu() -> None:
    kernel = FakeKernel.from_profile(host(_SID))
    midr = id_of("MIDR_EL1")
    with System(kernel) as system:
        for told in (False, True):
            with system.create_vm() as vm:
                if told:
                    assert vm.let_identity_be_written()
                with vm.create_vcpu() as vcpu:
                    vcpu.init(5, ("psci_0_2",))
                    if told:
                        vcpu.set(midr, 0x410FD083)
                        assert vcpu.get(midr) == 0x410FD083
                    else:
                        with pytest.raises(KvmError) as error:
                            vcpu.set(midr, 0x410FD083)
                        assert error.value.errno == errno.EINVAL
                    with pytest.raises(KvmError):
                        vcpu.set(midr, 1 << 32)
                    assert not vm.let_identity_be_written()


def test_an_older_kernel_writes_no_identity() -> None:
    with System(FakeKernel.from_profile(host(_TRIXIE))) as system, system.create_vm() as vm:
        assert not vm.let_identity_be_written()


def test_a_failure_that_says_nothing_is_not_taken_for_an_answer() -> None:
    kernel = FakeKernel.from_profile(host(_SID))
    kernel.failures["KVM_ENABLE_CAP"] = errno.ENOMEM
    with System(kernel) as system, system.create_vm() as vm, pytest.raises(KvmError):
        vm.let_identity_be_written()


# -- rehearsal and check -------------------------------------------------------------------------


def test_a_cpu_that_is_not_the_pool_s_is_no_home() -> None:
    target = _target(_A57, "trixie-cortex-a57")
    assert _rehearsed(target, _here(_A57)) == []
    (finding,) = _blocking(_rehearsed(target, _here(_A72)))
    assert finding == ("level-other-cpu", "MIDR_EL1")
    assert ("level-other-cpu", "MIDR_EL1") in _blocking(check(target, _here(_A72)))


def test_what_a_vcpu_that_is_turned_on_loses_is_refused() -> None:
    """CLIDR_EL1, before Linux 6.10."""
    target = _target(_TRIXIE, _SID)
    (cluster,) = _here(_TRIXIE).clusters
    vcpus = tuple(
        vcpu.replace(registers={**vcpu.registers, "CLIDR_EL1": 0xA000003 | 1 << 33})
        for vcpu in cluster.vcpus
    )
    other = _here(_TRIXIE).replace(clusters=(cluster.replace(vcpus=vcpus),))
    for kernel, refused in (("6.8.12", True), ("6.12.8", False)):
        found = _blocking(_rehearsed(target, other.replace(kernel=kernel)))
        assert ("CLIDR_EL1" in {name.partition(".")[0] for _, name in found}) is refused, found


@pytest.mark.parametrize("boots", [False, True])
@pytest.mark.parametrize("names", _POOLS, ids=" ".join)
def test_members_take_every_guest(names: tuple[str, ...], boots: bool) -> None:
    for target in targets(_profile(*names)):
        for name in names:
            assert _blocking(_rehearsed(target, _here(name), boots)) == []


@pytest.mark.parametrize("boots", [False, True])
@pytest.mark.parametrize("names", _POOLS, ids=" ".join)
def test_the_kernel_and_its_profile_say_the_same(names: tuple[str, ...], boots: bool) -> None:
    """On hosts that are no members, too. The played kernel knows no rule for values but the masks,
    so that what is refused for a value alone is not compared.
    """
    target = _target(*names)
    compared = 0
    for name in HOSTS:
        if name.startswith(("bookworm", "hand-made")):
            continue  # without masks the played kernel has no rules at all
        here = _here(name)
        foretold = [
            (kind.replace("vcpu-unknown", "vcpu-refused"), subject)
            for kind, subject in _blocking(check(target, here, cpus=(), boots=boots))
        ]
        tried = _blocking(_rehearsed(target, here, boots))
        extra = {kind for kind, _ in {*foretold} - {*tried}}
        assert extra <= {"level-refused-field", "level-refused"}, (name, extra)
        assert {*tried} <= {*foretold}, name
        if not foretold:
            assert tried == []
        compared += 1
    assert compared > 10


def test_without_the_library_or_the_capability(library: list[str]) -> None:
    target = _target(_A57, _A72)
    library[0] = ""
    assert _blocking(_rehearsed(target, host(_A72))) == [("level-library", "libkvmarm-level")]
    assert _blocking(check(target, host(_A72), cpus=())) == [("level-library", "libkvmarm-level")]
    library[0] = "1"
    here = _here(_A72)
    here = here.replace(
        capabilities={
            name: value
            for name, value in here.capabilities.items()
            if name != "ARM_WRITABLE_IMP_ID_REGS"
        }
    )
    said = [("level-refused-identity", "MIDR_EL1")]
    assert _blocking(_rehearsed(target, here)) == said
    assert _blocking(check(target, here, cpus=())) == said


def test_answers_of_firmware_do_not_stick() -> None:
    target = _target(_TRIXIE, _SID)
    lower = target.replace(registers={**target.registers, "SMCCC_ARCH_WORKAROUND_1": 0})
    said = [("level-refused", "SMCCC_ARCH_WORKAROUND_1")]
    assert _blocking(_rehearsed(lower, _here(_SID))) == said
    assert _blocking(check(lower, _here(_SID), cpus=())) == said


# -- the record of a guest that has come, or started ---------------------------------------------


@pytest.mark.parametrize("arrived", [False, True])
@pytest.mark.parametrize("names", _POOLS, ids=" ".join)
def test_a_record_stays_as_it_is_on_every_member(names: tuple[str, ...], arrived: bool) -> None:
    target = _target(*names)
    for name in names:
        there = _renewed(target, _here(name), arrived)
        assert there.replace(number=target.number) == target


def _with_more(here: HostProfile) -> HostProfile:
    """The host with a kernel that lists a firmware register and another that no pool knows."""
    (cluster,) = here.clusters
    vcpus = tuple(
        vcpu.replace(
            registers={**vcpu.registers, "0x6030000000160004": 0},
            reglist=pack_ids(
                unpack_ids(vcpu.reglist) | {0x6030000000160004, id_of("S3_0_C10_C2_7")}
            ),
        )
        for vcpu in cluster.vcpus
    )
    return here.replace(name="newer", clusters=(cluster.replace(vcpus=vcpus),))


@pytest.mark.parametrize("arrived", [False, True])
def test_on_a_kernel_with_more_registers_the_record_is_true_and_the_text_the_domain_s(
    arrived: bool,
) -> None:
    source, target = _xml(_TRIXIE, _SID), _target(_TRIXIE, _SID)
    newer = _with_more(_here(_SID))
    there = _renewed(target, newer, arrived)
    assert there.level is not None
    assert there.level.own == ("0x6030000000160004",)
    assert there.registers == {**target.registers, "0x6030000000160004": 0}
    assert unpack_ids(there.reglist) == unpack_ids(target.reglist) | {
        0x6030000000160004,
        id_of("S3_0_C10_C2_7"),
    }
    # What the domain says is what is recorded, now and once it has been renewed again.
    assert levelling.text_of(there) == levelling.text_of(target)
    assert find_contradictions(parse(source), there) == []
    assert _renewed(there, newer, arrived) == there
    # It may go on to hosts like this one, and not back; unless it boots there.
    assert _blocking(check(there, newer, cpus=())) == []
    assert ("registers-unknown", "register list") in _blocking(
        check(there, _here(_TRIXIE), cpus=())
    )
    back = _renewed(there, _here(_TRIXIE), arrived=False)
    assert back == target


# -- the hook ------------------------------------------------------------------------------------


@pytest.fixture
def arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the hook for a guest on a host; whether it is stopped, and what is said."""
    no_policy, said = str(tmp_path / "policy.yaml"), []
    monkeypatch.setattr(policy, "DEFAULT_PATH", no_policy)
    monkeypatch.setattr(policy.for_hook, "__defaults__", (no_policy,))
    monkeypatch.setattr(cpus, "find_clusters", list)
    for module in (arrival, guest):
        monkeypatch.setattr(module, "log", lambda *words: said.append(" ".join(map(str, words))))

    def call(source: bytes, here: HostProfile, operation: str, capfd: Any) -> tuple[bool, str]:
        kernel = FakeKernel.from_profile(here)
        monkeypatch.setattr(device, "SystemCalls", lambda: kernel)
        release = here.qemu.release if here.qemu else (0, 0)
        monkeypatch.setattr(qemu_version, "installed_version", lambda: release)
        name = os.uname_result(("Linux", here.name, here.kernel, "#1", "aarch64"))
        monkeypatch.setattr(os, "uname", lambda: name)
        stopped = hook.verify("guest", operation, source)
        assert not kernel.handles
        captured = capfd.readouterr()
        return stopped, captured.err + captured.out + "\n".join(said)

    return call


@pytest.mark.parametrize("operation", ["migrate", "restore", "prepare"])
@pytest.mark.parametrize("names", _POOLS, ids=" ".join)
def test_the_hook_lets_levelled_guests_pass(
    names: tuple[str, ...], operation: str, arrives: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    source = _xml(*names)
    for name in names:
        stopped, said = arrives(source, _here(name), operation, capfd)
        assert not stopped, said
        assert marks.mark_of(_UUID) is None


@pytest.mark.parametrize("operation", ["migrate", "restore"])
def test_the_hook_stops_an_arrival_that_the_kernel_does_not_take(
    operation: str, arrives: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    stopped, said = arrives(_xml(_A57, _A72), _here("trixie-cortex-a72"), operation, capfd)
    assert stopped
    assert "MIDR_EL1" in said
    assert "Linux 6.15" in said


@pytest.mark.parametrize("version", ["", "2"])
def test_the_hook_stops_an_arrival_without_the_library(
    version: str, library: list[str], arrives: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    library[0] = version
    stopped, said = arrives(_xml(_TRIXIE, _SID), host(_SID), "migrate", capfd)
    assert stopped
    assert "libkvmarm-level" in said
    assert f"{'downgrade' if version else 'install'} kvmarm-level on {_SID}" in said


def test_the_hook_stops_an_arrival_whose_text_was_edited(
    arrives: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    source = _xml(_TRIXIE, _SID)
    without = re.sub(rb"(?s)\s*<qemu:commandline.*</qemu:commandline>", b"", source)
    for edited in (source.replace(b"value='1 ", b"value='1 0=0 "), without):
        assert edited != source
        stopped, said = arrives(edited, _here(_SID), "migrate", capfd)
        assert stopped
        assert "qemu:" in said
