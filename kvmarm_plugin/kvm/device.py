# SPDX-License-Identifier: LGPL-2.1-or-later
"""System → VM → VCPU: /dev/kvm with one short method an ioctl.

Each object owns a file descriptor and is a context manager. What the kernel refuses is raised as
`KvmError`, which names the ioctl and the errno. All of them talk to a `SystemCalls`; a test passes
another one and so plays any kernel there ever was.
"""

from __future__ import annotations

import errno as errno_codes
import fcntl
import os
from _ctypes import _SimpleCData, addressof  # hook/__init__.py says why not from ctypes
from struct import calcsize, pack, unpack, unpack_from

from ..basics.errors import KvmarmError
from ..model.vcpu import KVM_ARCHITECTURES, VCPU_FEATURES
from . import uapi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEVICE = "/dev/kvm"

_USUAL_REGISTERS = (
    1023  # room for their ids in 8 KiB, see SystemCalls; a vCPU of today has 230 to 410
)

_PASSING = (errno_codes.ENOMEM, errno_codes.EMFILE, errno_codes.ENFILE, errno_codes.EAGAIN)


class KvmError(KvmarmError):
    """An ioctl that the kernel refused.

    Attributes:
        ioctl: its name in <linux/kvm.h>.
        errno: the error number.
        passing: whether it says something about the host at this moment, and nothing about what was
            asked for.
    """

    def __init__(self, ioctl: str, errno: int, about: str = "") -> None:
        self.ioctl = ioctl
        self.errno = errno
        self.passing = errno in _PASSING
        hint = "the host is short of memory or file descriptors: try again" if self.passing else ""
        super().__init__(f"{ioctl}{f' of {about}' if about else ''}: {error_name(errno)}", hint)


class KvmUnavailable(KvmarmError):
    """/dev/kvm cannot be used here at all; the hint says why."""


def error_name(errno: int) -> str:
    """22 → "EINVAL (Invalid argument)"."""
    return f"{errno_codes.errorcode.get(errno, errno)} ({os.strerror(errno)})"


class _Byte(_SimpleCData):  # type: ignore[type-arg]  # no generic class when it runs
    _type_ = "B"


def address(buffer: bytearray | memoryview) -> int:
    """Where a buffer is in this process's memory: as long as it lives and keeps its size."""
    return addressof(_Byte.from_buffer(buffer))


class SystemCalls:
    """The system calls that the classes below make, and all that a test has to replace.

    fcntl.ioctl hands a struct of up to 1024 bytes to the kernel as a copy, which from Python 3.14
    on does not come back if the call fails. The one ioctl that answers by failing,
    KVM_GET_REG_LIST, is given more, and that is handed over where it is.
    """

    def open(self, path: str) -> int:
        """A file descriptor of `path`, close-on-exec. Raises OSError."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def ioctl(self, fd: int, name: str, arg: int | bytes | bytearray) -> int:
        """ioctl `name` (a key of uapi.IOCTLS) with a number, or with a struct: a bytearray where
        the kernel writes to it. Raises KvmError.
        """
        try:
            result = fcntl.ioctl(fd, uapi.IOCTLS[name], arg)
        except OSError as error:
            raise KvmError(name, error.errno or 0) from None
        # Of a struct that the kernel only reads, fcntl returns a copy; no ioctl here has a result
        # then.
        return result if isinstance(result, int) else 0


class _Handle:
    """A file descriptor of the kernel's, closed with the object."""

    def __init__(self, kernel: SystemCalls, fd: int) -> None:
        self.kernel = kernel
        self.fd = fd

    def ioctl(self, name: str, arg: int | bytes | bytearray = 0) -> int:
        return self.kernel.ioctl(self.fd, name, arg)

    def close(self) -> None:
        if self.fd >= 0:
            self.kernel.close(self.fd)
            self.fd = -1

    def __enter__(self):  # type: ignore[no-untyped-def]  # Self is typing's, from 3.11 on
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class System(_Handle):
    """/dev/kvm itself.

    Args:
        kernel: the system calls; the real ones by default.
        path: of the device.
        architecture: KVM's, "arm64" or "arm"; that of this host by default.

    Attributes:
        answers: what this host has been asked while this is open, and what it said, for those who
            ask about many guests.

    Raises:
        KvmUnavailable: no device, no permission, or an API version that is not 12.
    """

    def __init__(
        self, kernel: SystemCalls | None = None, path: str = DEVICE, architecture: str = ""
    ) -> None:
        kernel = kernel or SystemCalls()
        self.architecture = architecture or KVM_ARCHITECTURES.get(os.uname().machine, "arm64")
        try:
            fd = kernel.open(path)
        except FileNotFoundError:
            raise KvmUnavailable(
                f"{path} does not exist",
                "is this an ARM host booted at EL2, with KVM in its kernel? See: dmesg | grep"
                " -i kvm",
            ) from None
        except PermissionError:
            raise KvmUnavailable(
                f"no permission to open {path}", "run as root or join the group kvm"
            ) from None
        except OSError as error:
            raise KvmUnavailable(f"cannot open {path}: {error.strerror}") from None
        super().__init__(kernel, fd)
        self.answers: dict[tuple[object, ...], Any] = {}
        try:
            version = self.ioctl("KVM_GET_API_VERSION")
        except KvmError:
            self.close()
            raise
        if version != uapi.API_VERSION:
            self.close()
            raise KvmUnavailable(f"{path} speaks KVM API version {version}, not {uapi.API_VERSION}")

    def check_extension(self, capability: str) -> int:
        """What KVM_CHECK_EXTENSION answers for a key of uapi.CAPABILITIES; 0 where the kernel does
        not know it.
        """
        return self.ioctl("KVM_CHECK_EXTENSION", uapi.CAPABILITIES[capability])

    def ipa_bits(self) -> int:
        """The largest guest physical address space; 40 bits before KVM had others."""
        return self.check_extension("ARM_VM_IPA_SIZE") or 40

    def create_vm(self) -> VM:
        """A VM with the address space that QEMU's virt machine asks for: 40 bits, or all there are
        where that is less.

        Source: kvm_init_ipa_range (mmu.c; kvm_arm_setup_stage2 until 6.1), arch/arm64/kvm/: type 0
        means 40 bits, and is refused where there are fewer.
        """
        limit = self.check_extension("ARM_VM_IPA_SIZE")
        return VM(self, self.ioctl("KVM_CREATE_VM", limit if 0 < limit < 40 else 0))


class VM(_Handle):
    """One virtual machine."""

    def __init__(self, system: System, fd: int) -> None:
        super().__init__(system.kernel, fd)
        self.system = system

    def preferred_target(self) -> int:
        """KVM_ARM_PREFERRED_TARGET: the target number for the CPU that this thread runs on; from
        Linux 6.6 always GENERIC_V8.

        Raises KvmError: EINVAL or ENOTTY on kernels before 3.13, ENODEV on a CPU unknown to the
        kernel.
        """
        init = bytearray(calcsize(uapi.VCPU_INIT))
        self.ioctl("KVM_ARM_PREFERRED_TARGET", init)
        return int(unpack(uapi.VCPU_INIT, init)[0])

    def writable_masks(self) -> dict[int, int] | None:
        """Register id → mask of the bits that user space may write; None on kernels that do not
        tell (before 6.7).
        """
        masks = bytearray(8 * uapi.FEATURE_ID_MASKS)
        try:
            self.ioctl(
                "KVM_ARM_GET_REG_WRITABLE_MASKS",
                pack(uapi.REG_MASK_RANGE, address(masks), *[0] * 14),
            )
        except KvmError as error:
            if error.errno not in (errno_codes.ENOTTY, errno_codes.EINVAL):
                raise
            return None
        return {
            reg: mask
            for reg, mask in zip(uapi.feature_id_registers(), memoryview(masks).cast("Q"))
            if mask
        }

    def let_identity_be_written(self) -> bool:
        """KVM_CAP_ARM_WRITABLE_IMP_ID_REGS, before the first vCPU: let MIDR_EL1, REVIDR_EL1 and
        AIDR_EL1 be written. Returns whether the kernel does (since 6.15).
        """
        capability = uapi.CAPABILITIES["ARM_WRITABLE_IMP_ID_REGS"]
        try:
            self.ioctl("KVM_ENABLE_CAP", pack(uapi.ENABLE_CAP, capability, 0, 0, 0, 0, 0))
        except KvmError as error:
            if error.errno not in (errno_codes.ENOTTY, errno_codes.EINVAL):
                raise
            return False
        return True

    def has_gic(self, version: int) -> bool:
        """Whether the kernel would create a virtual GIC of this version.

        Kernels before 3.13 have no KVM_CREATE_DEVICE on ARM, and one kind of GIC, of version 2,
        made by KVM_CREATE_IRQCHIP.
        """
        device = bytearray(
            pack(uapi.CREATE_DEVICE, uapi.DEVICE_TYPE_ARM_VGIC[version], 0, uapi.CREATE_DEVICE_TEST)
        )
        try:
            self.ioctl("KVM_CREATE_DEVICE", device)
        except KvmError as error:
            if error.errno == errno_codes.ENODEV:
                return False
            if error.errno not in (errno_codes.ENOTTY, errno_codes.EINVAL):
                raise
            return version == 2 and self._makes_irqchip()
        return True

    def _makes_irqchip(self) -> bool:
        try:
            self.ioctl("KVM_CREATE_IRQCHIP")
        except KvmError:
            return False
        return True

    def gicd_iidr(self, version: int) -> int:
        """GICD_IIDR of a virtual GIC of this version, which is made for that and stays as long as
        the VM, which has a vCPU.

        Raises KvmError, also on kernels that let user space read no such register.
        """
        device = bytearray(pack(uapi.CREATE_DEVICE, uapi.DEVICE_TYPE_ARM_VGIC[version], 0, 0))
        self.ioctl("KVM_CREATE_DEVICE", device)
        value = memoryview(bytearray(4))
        attribute = (uapi.VGIC_GRP_DIST_REGS, uapi.GICD_IIDR, address(value))
        with _Handle(self.kernel, unpack(uapi.CREATE_DEVICE, device)[1]) as gic:
            initialise = (uapi.VGIC_GRP_CTRL, uapi.VGIC_CTRL_INIT, 0)
            gic.ioctl("KVM_SET_DEVICE_ATTR", pack(uapi.DEVICE_ATTR, 0, *initialise))
            gic.ioctl("KVM_GET_DEVICE_ATTR", pack(uapi.DEVICE_ATTR, 0, *attribute))
        return int.from_bytes(value, "little")

    def set_memory(self, guest_address: int, size: int, memory: int) -> None:
        """Show `size` bytes at the address `memory` of this process to the guest at
        `guest_address`; all three in whole pages.
        """
        self.ioctl(
            "KVM_SET_USER_MEMORY_REGION",
            pack(uapi.USERSPACE_MEMORY_REGION, 0, 0, guest_address, size, memory),
        )

    def create_vcpu(self) -> VCPU:
        """vCPU 0, not yet initialised."""
        return VCPU(self, self.ioctl("KVM_CREATE_VCPU", 0))


class VCPU(_Handle):
    """One vCPU."""

    def __init__(self, vm: VM, fd: int) -> None:
        super().__init__(vm.kernel, fd)
        self.vm = vm
        # Where the values of registers come and go. As a memoryview it stays where it is.
        self._value = memoryview(bytearray(uapi.REG_LARGEST))
        self._value_address = address(self._value)

    def init(self, target: int, features: tuple[str, ...]) -> None:
        """KVM_ARM_VCPU_INIT with a target number and keys of VCPU_FEATURES.

        Raises KvmError: ENOENT for a feature the kernel does not know, EINVAL for a target or a set
        it does not support.
        """
        words = [0] * 7
        bits = VCPU_FEATURES[self.vm.system.architecture]
        for feature in features:
            if feature not in bits:
                raise KvmError("KVM_ARM_VCPU_INIT", errno_codes.ENOENT)
            bit = bits[feature]
            words[bit // 32] |= 1 << bit % 32
        self.ioctl("KVM_ARM_VCPU_INIT", pack(uapi.VCPU_INIT, target, *words))

    def finalize_sve(self) -> None:
        """KVM_ARM_VCPU_FINALIZE: until then a vCPU with SVE has no register list and cannot run."""
        self.ioctl("KVM_ARM_VCPU_FINALIZE", pack("i", uapi.FINALIZE_SVE))

    def init_pmu(self) -> None:
        """KVM_ARM_VCPU_PMU_V3_INIT: a vCPU with the PMU feature does not run without
        (kvm_arm_pmu_v3_enable).
        """
        self.ioctl(
            "KVM_SET_DEVICE_ATTR",
            pack(uapi.DEVICE_ATTR, 0, uapi.VCPU_PMU_V3_CTRL, uapi.VCPU_PMU_V3_INIT, 0),
        )

    def reg_list(self) -> list[int]:
        """All register ids of this vCPU, in ascending order.

        Where there are more than there is room for, KVM_GET_REG_LIST says how many by failing with
        E2BIG.
        """
        ids = bytearray(pack(uapi.REG_LIST, _USUAL_REGISTERS) + bytes(8 * _USUAL_REGISTERS))
        try:
            self.ioctl("KVM_GET_REG_LIST", ids)
        except KvmError as error:
            if error.errno != errno_codes.E2BIG:
                raise
            ids += bytes(8 * unpack_from(uapi.REG_LIST, ids)[0] - 8 * _USUAL_REGISTERS)
            self.ioctl("KVM_GET_REG_LIST", ids)
        words = memoryview(ids).cast("Q")
        return sorted(words[1 : 1 + words[0]])

    def get(self, reg: int) -> int:
        """KVM_GET_ONE_REG of a register of any size. Raises KvmError (ENOENT: no such register)."""
        self._one_reg("KVM_GET_ONE_REG", reg)
        return int.from_bytes(self._value[: register_size(reg)], "little")

    def set(self, reg: int, value: int) -> None:
        """KVM_SET_ONE_REG. Raises KvmError: EINVAL for a value the kernel refuses, ENOENT, EBUSY
        after the first KVM_RUN.
        """
        size = register_size(reg)
        self._value[:size] = value.to_bytes(size, "little")
        self._one_reg("KVM_SET_ONE_REG", reg)

    def _one_reg(self, name: str, reg: int) -> None:
        try:
            self.ioctl(name, pack(uapi.ONE_REG, reg, self._value_address))
        except KvmError as error:
            raise KvmError(name, error.errno, f"register {reg:#018x}") from None

    def run(self) -> None:
        """KVM_RUN until the next exit to user space. Raises KvmError (EINTR: a signal came
        first).
        """
        self.ioctl("KVM_RUN")


def register_size(reg: int) -> int:
    """Size in bytes of a register, from its id (KVM_REG_SIZE)."""
    return 1 << (reg >> uapi.REG_SIZE_SHIFT & uapi.REG_SIZE_MASK)
