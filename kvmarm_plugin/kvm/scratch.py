# SPDX-License-Identifier: LGPL-2.1-or-later
"""Scratch vCPUs: what a guest would get from KVM on the CPU that this thread runs on.

A scratch vCPU is made with a target and features, read, and thrown away. `preferred_target` says
which target a guest gets, `ScratchVcpu` makes the vCPU, `run_guest` runs a guest of a few
instructions in one, for what KVM_GET_ONE_REG does not tell.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # hook/__init__.py says why
import errno
import os

from ..basics.errors import KvmarmError
from ..model.features import PMU, SVE
from ..model.target import sve_bitmap
from ..model.vcpu import FALLBACK_TARGETS, TARGETS
from ..registers.table import id_of
from . import uapi
from .device import VCPU, VM, KvmError, System, address

GUEST_TIME_LIMIT = 1.0  # seconds; the guest needs microseconds, on an emulated host milliseconds

_CODE_ADDRESS = 0x4000_0000
_EXIT_ADDRESS = 0x8000_0000  # nothing is there: a store to it is an exit to user space
_EXIT_REGISTER = 9


class ScratchVcpu:
    """A vCPU in a VM of its own, initialised and finalised; a context manager that closes both.

    Args:
        system: /dev/kvm.
        target, features: as for `VCPU.init`.
        sve_lengths: vector lengths in bits to set before SVE is finalised, as QEMU does; None
            leaves all that the host has.
        levelled: whether its CPU's identity may be written, as libkvmarm-level has it.

    Raises:
        KvmError: the kernel refuses the target, the features or the lengths.
    """

    def __init__(
        self,
        system: System,
        target: int,
        features: tuple[str, ...],
        sve_lengths: tuple[int, ...] | None = None,
        levelled: bool = False,
    ) -> None:
        self.vm: VM = system.create_vm()
        try:
            if levelled:
                self.vm.let_identity_be_written()
            self.vcpu: VCPU = self.vm.create_vcpu()
            self.vcpu.init(target, features)
            if SVE.is_in(features):
                if sve_lengths is not None:
                    self.vcpu.set(uapi.REG_ARM64_SVE_VLS, sve_bitmap(sve_lengths))
                self.vcpu.finalize_sve()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if hasattr(self, "vcpu"):
            self.vcpu.close()
        self.vm.close()

    def __enter__(self) -> VCPU:
        return self.vcpu

    def __exit__(self, *_exc: object) -> None:
        self.close()


def makes_vcpu(system: System, target: int, features: tuple[str, ...]) -> bool:
    """Whether the kernel makes a vCPU with this target and these features, on the CPU that this
    thread runs on.
    """
    try:
        ScratchVcpu(system, target, features).close()
    except KvmError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise
        return False
    return True


def preferred_target(vm: VM, architecture: str) -> int:
    """The target number that a guest gets on the CPU that this thread runs on.

    Asks the kernel. Kernels before 3.13 cannot answer: there it is the first of FALLBACK_TARGETS
    that a vCPU accepts.

    Args:
        vm: any; it answers for all.
        architecture: KVM's, "arm64" or "arm": target numbers overlap.

    Raises:
        KvmarmError: the kernel neither answers nor accepts a known target.
    """
    try:
        return vm.preferred_target()
    except KvmError as refusal:
        names = FALLBACK_TARGETS[architecture]
        for name in names:
            if makes_vcpu(vm.system, TARGETS[architecture][name], ()):
                return TARGETS[architecture][name]
        raise KvmarmError(
            f"{refusal.message}, and none of the targets {', '.join(names)} is accepted",
            "this kernel's KVM does not know this CPU",
        ) from None


def run_guest(
    system: System, target: int, features: tuple[str, ...], names: tuple[str, ...]
) -> dict[str, int]:
    """Let a guest read registers, and return what it saw.

    The guest is one page of code: an MRS for each register into x0, x1, …, then a store to an
    address where nothing is, which ends KVM_RUN with KVM_EXIT_MMIO. That it came so far is seen by
    its program counter, which no other exit leaves there. A guest that does not come to its end (an
    MRS that traps to it) is stopped by a timer.

    Args:
        features: of the vCPU: those that the registers need. SVE is left out by the caller for
            speed.
        names: of registers.tsv's system registers, at most eight; guest_registers.GUEST_REGISTERS
            has those that are of use.

    Raises:
        KvmError: the kernel refuses something.
        KvmarmError: the guest did not end as it should within GUEST_TIME_LIMIT.
    """
    code = _guest_code(names)
    page = os.sysconf("SC_PAGESIZE")
    memory = bytearray(2 * page)  # one of them whole, and aligned
    start = -address(memory) % page
    memory[start : start + len(code)] = code
    last_instruction = _CODE_ADDRESS + len(code) - 4
    with ScratchVcpu(system, target, features) as vcpu, _TimeLimit():
        vcpu.vm.set_memory(_CODE_ADDRESS, page, address(memory) + start)
        if PMU.is_in(features):
            vcpu.init_pmu()
        vcpu.set(uapi.REG_ARM64_CORE_PC, _CODE_ADDRESS)
        vcpu.set(uapi.REG_ARM64_CORE_X0 + 2 * _EXIT_REGISTER, _EXIT_ADDRESS)
        vcpu.run()
        stopped_at = vcpu.get(uapi.REG_ARM64_CORE_PC)
        # Behind it on kernels before 4.20, which skipped it on the way out (io_mem_abort,
        # virt/kvm/arm/mmio.c).
        if stopped_at - last_instruction not in (0, 4):
            raise KvmarmError(
                f"the scratch guest stopped at {stopped_at:#x}, not at its last instruction"
                f" {last_instruction:#x}"
            )
        return {
            name: vcpu.get(uapi.REG_ARM64_CORE_X0 + 2 * index) for index, name in enumerate(names)
        }


def _guest_code(names: tuple[str, ...]) -> bytes:
    words = [_mrs(id_of(name), index) for index, name in enumerate(names)]
    words.append(0xF9000000 | _EXIT_REGISTER << 5)  # str x0, [x9]
    return b"".join(word.to_bytes(4, "little") for word in words)


def _mrs(reg: int, into: int) -> int:
    """The A64 instruction `mrs x<into>, <register>` (Arm ARM C6.2, MRS): KVM's id of a system
    register has op0 to op2 as the instruction has them, five bits lower.
    """
    return 0xD5200000 | (reg & 0xFFFF) << 5 | into


class _TimeLimit:
    """Ends what runs in it after GUEST_TIME_LIMIT: KVM_RUN is interrupted by the timer's signal,
    and its handler raises. (That KVM_RUN fails with EINTR would not be enough: newer versions of
    fcntl.ioctl then call again.)
    """

    def __enter__(self) -> None:
        self._handler = signal.signal(signal.SIGALRM, self._stop)
        self._timer = signal.setitimer(signal.ITIMER_REAL, GUEST_TIME_LIMIT)

    def _stop(self, *_signal: object) -> None:
        raise KvmarmError(f"the scratch guest did not end within {GUEST_TIME_LIMIT:g} s")

    def __exit__(self, *_exc: object) -> None:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:  # the signal may have come by now
            signal.signal(signal.SIGALRM, self._handler)
            signal.setitimer(signal.ITIMER_REAL, *self._timer)  # the hook's own time limit goes on
