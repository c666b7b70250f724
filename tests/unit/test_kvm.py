# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvm/device.py and kvm/scratch.py against a kernel that is played: what they ask, and what they
make of refusals.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.kvm import scratch, uapi
from kvmarm_plugin.kvm.device import KvmError, KvmUnavailable, System, error_name, register_size
from kvmarm_plugin.kvm.scratch import ScratchVcpu, makes_vcpu, preferred_target, run_guest
from kvmarm_plugin.model.guest_registers import GUEST_REGISTERS
from kvmarm_plugin.model.target import sve_bitmap, sve_lengths
from kvmarm_plugin.model.vcpu import VCPU_FEATURES
from kvmarm_plugin.registers.table import id_of

from .fakekernel import CORE_REGISTERS, PC, SVE_VLS, X0, CpuKind, FakeKernel, Made, kind

_BASE = ("psci_0_2", "pmu_v3")
_GUEST = {
    "CNTFRQ_EL0": 62_500_000,
    "DCZID_EL0": 4,
    "CTR_EL0": 0x8444C004,
    "MIDR_EL1": 0x411FD070,
    "PMCR_EL0": 0x41023000,
}
_MIDR, _PFR0 = 0x603000000013C000, 0x603000000013C020
_CCSIDR = 0x6020000000110000


@pytest.fixture(autouse=True)
def _short_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "GUEST_TIME_LIMIT", 0.05)


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    """Neoverse-like: target 5, PMU, SVE with a length that is no power of two; every descriptor
    must be closed in the end.
    """
    registers = {_MIDR: 0x411FD070, _PFR0: 0x1100000011111112, _CCSIDR: 0x700FE01A}
    sve = ("psci_0_2", "pmu_v3", "sve")
    made = kind(
        5,
        _BASE,
        ("psci_0_2",),
        sve,
        registers=registers,
        guest=dict(_GUEST),
        sve_lengths=(128, 256, 512),
    )
    made.writable, made.masks = frozenset({_PFR0}), {_PFR0: 0xFF0FFFFF, 0x603000000013D801: 0x1F}
    kernel = FakeKernel(made, {"ARM_SVE": 1, "ARM_PMU_V3": 1, "ARM_VM_IPA_SIZE": 44}, gics=(2, 3))
    yield kernel
    assert not kernel.handles, "a file descriptor was left open"


# -- /dev/kvm ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOENT, ["/dev/kvm does not exist", "EL2", "dmesg"]),
        (errno.EACCES, ["no permission to open /dev/kvm", "group kvm"]),
        (errno.EPERM, ["no permission to open /dev/kvm", "root"]),
        (errno.ENODEV, ["cannot open /dev/kvm", "No such device"]),
        (errno.EBUSY, ["cannot open /dev/kvm", "busy"]),
    ],
)
def test_a_device_that_does_not_open(kernel: FakeKernel, code: int, says: list[str]) -> None:
    kernel.open_errno = code
    with pytest.raises(KvmUnavailable) as caught:
        System(kernel)
    for words in says:
        assert words in str(caught.value)


def test_a_device_of_another_api_version(kernel: FakeKernel) -> None:
    kernel.api_version = 11
    with pytest.raises(KvmUnavailable, match="version 11, not 12"):
        System(kernel)


def test_a_device_that_is_not_kvm(kernel: FakeKernel) -> None:
    kernel.failures["KVM_GET_API_VERSION"] = errno.ENOTTY
    with pytest.raises(KvmError, match="KVM_GET_API_VERSION: ENOTTY"):
        System(kernel)


def test_an_error_names_ioctl_and_errno_and_register(kernel: FakeKernel) -> None:
    with (
        System(kernel) as system,
        ScratchVcpu(system, 5, _BASE) as vcpu,
        pytest.raises(KvmError) as caught,
    ):
        vcpu.get(0x6030000000139999)
    assert (caught.value.ioctl, caught.value.errno) == ("KVM_GET_ONE_REG", errno.ENOENT)
    assert (
        str(caught.value)
        == "KVM_GET_ONE_REG of register 0x6030000000139999: ENOENT (No such file or directory)"
    )


def test_an_errno_without_a_name() -> None:
    assert error_name(errno.EINVAL) == "EINVAL (Invalid argument)"
    assert error_name(524).startswith("524 (")  # ENOTSUPP, which the kernel sometimes lets out


def test_capabilities(kernel: FakeKernel) -> None:
    with System(kernel) as system:
        assert system.check_extension("ARM_VM_IPA_SIZE") == 44
        assert system.check_extension("ARM_MTE") == 0


@pytest.mark.parametrize(("limit", "asked"), [(0, 40), (36, 36), (40, 40), (48, 40), (52, 40)])
def test_a_vm_has_40_bits_or_what_there_is(limit: int, asked: int) -> None:
    kernel = FakeKernel(kind(), {"ARM_VM_IPA_SIZE": limit} if limit else {})
    with System(kernel) as system, system.create_vm() as vm:
        assert kernel.handles[vm.fd].ipa_bits == asked


def test_gics(kernel: FakeKernel) -> None:
    with System(kernel) as system, system.create_vm() as vm:
        assert [version for version in (2, 3) if vm.has_gic(version)] == [2, 3]
        kernel.gics = (3,)
        assert [version for version in (2, 3) if vm.has_gic(version)] == [3]


@pytest.mark.parametrize("version", [2, 3])
def test_gicd_iidr(kernel: FakeKernel, version: int) -> None:
    with System(kernel) as system:
        with system.create_vm() as vm, pytest.raises(KvmError, match="No such device"):
            vm.gicd_iidr(version)  # a GIC without a vCPU is not initialised
        with system.create_vm() as vm, vm.create_vcpu():
            assert vm.gicd_iidr(version) == kernel.gicd_iidr
        kernel.gicd_iidr = None
        with system.create_vm() as vm, vm.create_vcpu(), pytest.raises(KvmError):
            vm.gicd_iidr(version)
    assert not kernel.handles


@pytest.mark.parametrize(("gics", "found"), [((2,), [2]), ((), [])])
def test_gics_of_a_kernel_before_devices(gics: tuple[int, ...], found: list[int]) -> None:
    """Linux 3.10 makes its only GIC by KVM_CREATE_IRQCHIP."""
    kernel = FakeKernel(kind(), gics=gics)
    kernel.failures["KVM_CREATE_DEVICE"] = errno.EINVAL
    with System(kernel) as system, system.create_vm() as vm:
        assert [version for version in (2, 3) if vm.has_gic(version)] == found


def test_writable_masks(kernel: FakeKernel) -> None:
    with System(kernel) as system, system.create_vm() as vm:
        assert vm.writable_masks() == {_PFR0: 0xFF0FFFFF, 0x603000000013D801: 0x1F}


def test_masks_of_every_index_come_back_under_their_register() -> None:
    masks = {reg: index + 1 for index, reg in enumerate(uapi.feature_id_registers())}
    kernel = FakeKernel(kind(masks=masks))
    with System(kernel) as system, system.create_vm() as vm:
        assert vm.writable_masks() == masks


def test_masks_on_a_kernel_before_6_7() -> None:
    with System(FakeKernel(kind())) as system, system.create_vm() as vm:
        assert vm.writable_masks() is None


# -- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 2, 4, 5])
def test_the_kernel_says_which_target(number: int) -> None:
    kernel = FakeKernel(kind(number))
    with System(kernel) as system, system.create_vm() as vm:
        assert preferred_target(vm, "arm64") == number
    assert kernel.calls.count("KVM_CREATE_VCPU") == 0  # it answers for a VM without one
    assert not kernel.handles


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTTY, errno.ENODEV])
@pytest.mark.parametrize(
    ("architecture", "accepted", "expected", "tried"),
    [
        ("arm", [0], 0, 1),
        ("arm", [1], 1, 2),
        ("arm", [0, 1], 0, 1),
        ("arm64", [0], 0, 1),
        ("arm64", [1], 1, 2),
        ("arm64", [2], 2, 3),
        ("arm64", [1, 2], 1, 2),
    ],
)
def test_a_kernel_that_cannot_say_is_tried(
    code: int, architecture: str, accepted: list[int], expected: int, tried: int
) -> None:
    vcpus = {Made(number, frozenset()): dict.fromkeys(CORE_REGISTERS, 0) for number in accepted}
    kernel = FakeKernel(CpuKind(preferred=OSError(code, ""), vcpus=vcpus))
    with System(kernel) as system, system.create_vm() as vm:
        assert preferred_target(vm, architecture) == expected
    assert kernel.calls.count("KVM_ARM_VCPU_INIT") == tried
    assert not kernel.handles


@pytest.mark.parametrize(
    ("architecture", "names"),
    [("arm", "CORTEX_A15, CORTEX_A7"), ("arm64", "AEM_V8, FOUNDATION_V8, CORTEX_A57")],
)
def test_a_kernel_that_takes_no_target(architecture: str, names: str) -> None:
    kernel = FakeKernel(CpuKind(preferred=OSError(errno.ENODEV, "")))
    with System(kernel) as system, system.create_vm() as vm, pytest.raises(KvmarmError) as caught:
        preferred_target(vm, architecture)
    assert "KVM_ARM_PREFERRED_TARGET: ENODEV" in str(caught.value)
    assert names in str(caught.value)
    assert "(hint: " in str(caught.value)
    assert not kernel.handles


def test_makes_vcpu(kernel: FakeKernel) -> None:
    with System(kernel) as system:
        assert makes_vcpu(system, 5, _BASE)
        assert not makes_vcpu(system, 2, _BASE)
        assert not makes_vcpu(system, 5, ("psci_0_2", "el1_32bit"))


def test_every_feature_has_its_own_bit() -> None:
    for name in VCPU_FEATURES["arm64"]:
        kernel = FakeKernel(kind(5, (name,), sve_lengths=(128,)))
        with System(kernel) as system, ScratchVcpu(system, 5, (name,)):
            pass
        assert not kernel.handles


# -- registers -----------------------------------------------------------------------------------


def test_the_register_list_takes_one_call(kernel: FakeKernel) -> None:
    with System(kernel) as system, ScratchVcpu(system, 5, _BASE) as vcpu:
        assert vcpu.reg_list() == sorted([*CORE_REGISTERS, _MIDR, _PFR0, _CCSIDR])
    assert kernel.calls.count("KVM_GET_REG_LIST") == 1


@pytest.mark.parametrize(("count", "calls"), [(1022, 1), (1023, 1), (1024, 2), (3000, 2)])
def test_a_register_list_for_which_the_usual_room_is_too_small(count: int, calls: int) -> None:
    registers = dict.fromkeys(range(0x6030000000130000, 0x6030000000130000 + count), 0)
    kernel = FakeKernel(CpuKind(vcpus={Made(5, frozenset()): registers}))
    with System(kernel) as system, ScratchVcpu(system, 5, ()) as vcpu:
        assert vcpu.reg_list() == list(registers)
    assert kernel.calls.count("KVM_GET_REG_LIST") == calls


def test_a_refused_register_list(kernel: FakeKernel) -> None:
    with System(kernel) as system, ScratchVcpu(system, 5, _BASE) as vcpu:
        kernel.failures["KVM_GET_REG_LIST"] = errno.ENOEXEC
        with pytest.raises(KvmError, match="KVM_GET_REG_LIST: ENOEXEC"):
            vcpu.reg_list()


def test_a_vcpu_without_registers() -> None:
    with (
        System(FakeKernel(CpuKind(vcpus={Made(5, frozenset()): {}}))) as system,
        ScratchVcpu(system, 5, ()) as vcpu,
    ):
        assert vcpu.reg_list() == []


@given(size=st.integers(0, 8), data=st.data())
def test_registers_of_every_size(size: int, data: st.DataObject) -> None:
    reg = 0x6000000000130000 | size << 52
    first, second = (data.draw(st.integers(0, (1 << 8 * (1 << size)) - 1)) for _ in range(2))
    kernel = FakeKernel(kind(5, (), registers={reg: first}, writable=frozenset({reg})))
    with System(kernel) as system, ScratchVcpu(system, 5, ()) as vcpu:
        assert register_size(reg) == 1 << size
        assert vcpu.get(reg) == first
        vcpu.set(reg, second)
        assert vcpu.get(reg) == second


def test_a_register_that_user_space_may_not_write(kernel: FakeKernel) -> None:
    with System(kernel) as system, ScratchVcpu(system, 5, _BASE) as vcpu:
        vcpu.set(_MIDR, 0x411FD070)  # the same value is taken
        with pytest.raises(
            KvmError, match=r"KVM_SET_ONE_REG of register 0x603000000013c000: EINVAL"
        ):
            vcpu.set(_MIDR, 0x411FD071)


def test_a_register_after_the_guest_has_run(kernel: FakeKernel) -> None:
    with System(kernel) as system, ScratchVcpu(system, 5, ("psci_0_2",)) as vcpu:
        kernel.stops_at = 0
        vcpu.run()
        with pytest.raises(KvmError, match="EBUSY"):
            vcpu.set(_PFR0, 0)


# -- SVE -----------------------------------------------------------------------------------------


def test_sve_has_no_register_list_before_it_is_finalised(kernel: FakeKernel) -> None:
    with System(kernel) as system, system.create_vm() as vm, vm.create_vcpu() as vcpu:
        vcpu.init(5, (*_BASE, "sve"))
        with pytest.raises(KvmError, match="KVM_GET_REG_LIST: EPERM"):
            vcpu.reg_list()
        vcpu.finalize_sve()
        assert SVE_VLS in vcpu.reg_list()


def test_sve_has_every_length_of_the_host_unless_told(kernel: FakeKernel) -> None:
    with System(kernel) as system, ScratchVcpu(system, 5, (*_BASE, "sve")) as vcpu:
        assert sve_lengths(vcpu.get(SVE_VLS)) == (128, 256, 512)


@pytest.mark.parametrize("lengths", [(128,), (128, 256), (128, 256, 512)])
def test_sve_with_fewer_lengths(kernel: FakeKernel, lengths: tuple[int, ...]) -> None:
    with System(kernel) as system, ScratchVcpu(system, 5, (*_BASE, "sve"), lengths) as vcpu:
        assert sve_lengths(vcpu.get(SVE_VLS)) == lengths


@pytest.mark.parametrize(
    "lengths", [(), (256,), (128, 512), (128, 256, 384), (128, 256, 512, 1024)]
)
def test_sve_lengths_that_the_host_does_not_give(
    kernel: FakeKernel, lengths: tuple[int, ...]
) -> None:
    with (
        System(kernel) as system,
        pytest.raises(KvmError, match=r"KVM_SET_ONE_REG of register 0x606000000015ffff: EINVAL"),
    ):
        ScratchVcpu(system, 5, (*_BASE, "sve"), lengths)


def test_lengths_are_not_set_on_a_vcpu_without_sve(kernel: FakeKernel) -> None:
    with System(kernel) as system, ScratchVcpu(system, 5, _BASE, (128,)):
        assert "KVM_SET_ONE_REG" not in kernel.calls


@given(st.sets(st.integers(1, 16)))
def test_sve_lengths_and_bitmap_are_inverse(quadwords: set[int]) -> None:
    lengths = tuple(sorted(128 * number for number in quadwords))
    assert sve_lengths(sve_bitmap(lengths)) == lengths
    assert sve_bitmap(lengths) == sum(1 << number - 1 for number in quadwords)


# -- the scratch guest ---------------------------------------------------------------------------


def test_the_guest_reads_what_it_is_asked_for(kernel: FakeKernel) -> None:
    with System(kernel) as system:
        assert run_guest(system, 5, _BASE, tuple(_GUEST)) == _GUEST


@pytest.mark.parametrize("name", sorted(GUEST_REGISTERS))
def test_the_guest_reads_one_register(kernel: FakeKernel, name: str) -> None:
    with System(kernel) as system:
        assert run_guest(system, 5, _BASE, (name,)) == {name: _GUEST[name]}


def test_eight_registers_leave_the_address_alone(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of the last store lies in x9: as many values as the docstring allows must not
    overwrite it.
    """
    timer = id_of("CNTFRQ_EL0")
    monkeypatch.setattr(scratch, "id_of", lambda _name: timer)
    names = tuple(f"again{index}" for index in range(8))
    with System(kernel) as system:
        assert run_guest(system, 5, _BASE, names) == dict.fromkeys(names, 62_500_000)


@pytest.mark.parametrize("skips", [False, True])
def test_where_the_guest_has_ended_by_old_kernels_and_by_new(
    kernel: FakeKernel, skips: bool
) -> None:
    kernel.skips_mmio = skips
    with System(kernel) as system:
        assert run_guest(system, 5, _BASE, tuple(_GUEST)) == _GUEST


def test_the_guest_has_one_page_wherever_its_buffer_lies(kernel: FakeKernel) -> None:
    """The fake kernel, like a real one, refuses what is not aligned; buffers of many sizes in
    between move the next one.
    """
    size = os.sysconf("SC_PAGESIZE")
    with System(kernel) as system:
        between = []
        for step in range(20):
            between.append(bytearray(size // 2 + 16 * step))
            assert run_guest(system, 5, _BASE, ("DCZID_EL0",)) == {"DCZID_EL0": 4}


def test_a_guest_with_a_pmu_needs_it_initialised(kernel: FakeKernel) -> None:
    with System(kernel) as system:
        run_guest(system, 5, _BASE, ("CNTFRQ_EL0",))
        run_guest(system, 5, ("psci_0_2",), ("CNTFRQ_EL0",))
    assert kernel.calls.count("KVM_SET_DEVICE_ATTR") == 1


def test_a_guest_that_traps_for_ever_is_stopped(kernel: FakeKernel) -> None:
    with (
        System(kernel) as system,
        pytest.raises(KvmarmError, match=r"the scratch guest did not end within 0\.05 s"),
    ):
        run_guest(system, 5, ("psci_0_2",), ("PMCR_EL0",))  # no PMU: an undefined register


def test_a_guest_is_stopped_also_if_the_time_was_up_before_it_began(
    kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a host under load a second can pass between the timer's start and KVM_RUN; one signal
    alone would then be lost.
    """
    monkeypatch.setattr(scratch, "GUEST_TIME_LIMIT", 0.01)
    set_memory = kernel._kvm_set_user_memory_region

    def slowly(vm: object, arg: object) -> int:
        time.sleep(0.03)
        return set_memory(vm, arg)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel, "_kvm_set_user_memory_region", slowly)
    with System(kernel) as system, pytest.raises(KvmarmError, match="did not end"):
        run_guest(system, 5, ("psci_0_2",), ("PMCR_EL0",))


@pytest.mark.parametrize("address", [0, 0x200, 0x4000_0000, 0x4000_000C, 0x8000_0000])
def test_a_guest_that_ends_elsewhere(kernel: FakeKernel, address: int) -> None:
    """At its first instruction (KVM_EXIT_FAIL_ENTRY), in its vectors, or anywhere: its registers
    are not what was asked for.
    """
    kernel.stops_at = address
    with (
        System(kernel) as system,
        pytest.raises(
            KvmarmError, match=f"stopped at {address:#x}, not at its last instruction 0x40000004"
        ),
    ):
        run_guest(system, 5, _BASE, ("CNTFRQ_EL0",))


def test_a_refused_run_is_an_error_of_its_own(kernel: FakeKernel) -> None:
    kernel.failures["KVM_RUN"] = errno.ENOEXEC
    with System(kernel) as system, pytest.raises(KvmError, match="KVM_RUN: ENOEXEC"):
        run_guest(system, 5, _BASE, ("CNTFRQ_EL0",))


def test_the_timer_and_its_handler_are_put_back(kernel: FakeKernel) -> None:
    before = signal.getsignal(signal.SIGALRM)
    with System(kernel) as system:
        run_guest(system, 5, _BASE, ("CNTFRQ_EL0",))
        with pytest.raises(KvmarmError):
            run_guest(system, 5, ("psci_0_2",), ("PMCR_EL0",))
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_timer_that_was_running_goes_on(kernel: FakeKernel) -> None:
    """The hook has a time limit of its own for everything, and there is but one timer in a
    process.
    """
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 3600)
    try:
        with System(kernel) as system:
            run_guest(system, 5, _BASE, ("CNTFRQ_EL0",))
        assert 3000 < signal.getitimer(signal.ITIMER_REAL)[0] <= 3600
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_core_registers_of_the_guest_are_the_ones_meant() -> None:
    assert (uapi.REG_ARM64_CORE_X0, uapi.REG_ARM64_CORE_PC, uapi.REG_ARM64_SVE_VLS) == (
        X0,
        PC,
        SVE_VLS,
    )


# -- whatever fails, nothing stays open ----------------------------------------------------------


@given(
    call=st.integers(0, 40),
    code=st.sampled_from(
        [
            errno.EINVAL,
            errno.ENOMEM,
            errno.EMFILE,
            errno.EINTR,
            errno.ENOTTY,
            errno.E2BIG,
            errno.EIO,
        ]
    ),
)
def test_no_descriptor_stays_open_when_an_ioctl_fails(call: int, code: int) -> None:
    registers = {_MIDR: 0x411FD070}
    made = kind(
        5, _BASE, (*_BASE, "sve"), registers=registers, guest=dict(_GUEST), sve_lengths=(128, 256)
    )
    kernel = FakeKernel(made, {"ARM_VM_IPA_SIZE": 44})
    kernel.fail_call = (call, code)
    failed = False
    try:
        with System(kernel) as system:
            with system.create_vm() as vm:
                number = preferred_target(vm, "arm64")
                vm.has_gic(3)
            with ScratchVcpu(system, number, (*_BASE, "sve"), (128,)) as vcpu:
                for reg in vcpu.reg_list():
                    if register_size(reg) == 8 and reg not in CORE_REGISTERS:
                        vcpu.get(reg)
            run_guest(system, number, _BASE, tuple(_GUEST))
    except KvmarmError:
        failed = True
    assert not kernel.handles
    assert failed or len(kernel.calls) > 20  # either it says so, or it went all the way
