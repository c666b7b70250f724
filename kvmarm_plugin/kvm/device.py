# SPDX-License-Identifier: LGPL-2.1-or-later
"""System → VM → VCPU: /dev/kvm with one short method an ioctl.

Each object owns a file descriptor and is a context manager. What the kernel refuses is raised as `KvmError`, which
names the ioctl and the errno. All of them talk to a `Kernel`; a test passes another one and so plays any kernel there
ever was.
"""

from __future__ import annotations

import ctypes
import errno as errno_codes
import mmap
import os

from ..errors import KvmarmError
from . import uapi

DEVICE = "/dev/kvm"

_PASSING = (errno_codes.ENOMEM, errno_codes.EMFILE, errno_codes.ENFILE, errno_codes.EAGAIN)


class KvmError(KvmarmError):
    """An ioctl that the kernel refused.

    Attributes:
        ioctl: its name in <linux/kvm.h>.
        errno: the error number.
        passing: whether it says something about the host at this moment, and nothing about what was asked for.
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


class Kernel:
    """The system calls that the classes below make, and all that a test has to replace."""

    def __init__(self) -> None:
        # fcntl.ioctl does not do: it copies at most 1024 bytes, and from 3.14 on nothing back when the call fails, while
        # KVM_GET_REG_LIST answers by failing. libc is given the address itself.
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]

    def open(self, path: str) -> int:
        """A file descriptor of `path`, close-on-exec. Raises OSError."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def ioctl(self, fd: int, name: str, arg: int | ctypes.Structure | ctypes.Array[ctypes.c_int]) -> int:
        """ioctl `name` (a key of uapi.IOCTLS) with a number, or with the address of a ctypes object. Raises KvmError."""
        value = arg if isinstance(arg, int) else ctypes.addressof(arg)
        result: int = self._libc.ioctl(fd, uapi.IOCTLS[name], value)
        if result < 0:
            raise KvmError(name, ctypes.get_errno())
        return result

    def map_run(self, fd: int, size: int) -> uapi.RunMmio:
        """The kvm_run page of a vCPU, shared with the kernel."""
        return uapi.RunMmio.from_buffer(mmap.mmap(fd, size))


class _Handle:
    """A file descriptor of the kernel's, closed with the object."""

    def __init__(self, kernel: Kernel, fd: int) -> None:
        self.kernel = kernel
        self.fd = fd

    def ioctl(self, name: str, arg: int | ctypes.Structure | ctypes.Array[ctypes.c_int] = 0) -> int:
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

    Raises:
        KvmUnavailable: no device, no permission, or an API version that is not 12.
    """

    def __init__(self, kernel: Kernel | None = None, path: str = DEVICE) -> None:
        kernel = kernel or Kernel()
        try:
            fd = kernel.open(path)
        except FileNotFoundError:
            raise KvmUnavailable(
                f"{path} does not exist",
                "is this an ARM host booted at EL2, with KVM in its kernel? See: dmesg | grep -i kvm",
            ) from None
        except PermissionError:
            raise KvmUnavailable(f"no permission to open {path}", "run as root or join the group kvm") from None
        except OSError as error:
            raise KvmUnavailable(f"cannot open {path}: {error.strerror}") from None
        super().__init__(kernel, fd)
        try:
            version = self.ioctl("KVM_GET_API_VERSION")
        except KvmError:
            self.close()
            raise
        if version != uapi.API_VERSION:
            self.close()
            raise KvmUnavailable(f"{path} speaks KVM API version {version}, not {uapi.API_VERSION}")

    def check_extension(self, capability: str) -> int:
        """What KVM_CHECK_EXTENSION answers for a key of uapi.CAPABILITIES; 0 where the kernel does not know it."""
        return self.ioctl("KVM_CHECK_EXTENSION", uapi.CAPABILITIES[capability])

    def create_vm(self) -> VM:
        """A VM with the address space that QEMU's virt machine asks for: 40 bits, or all there are where that is less.

        Source: kvm_init_ipa_range (mmu.c; kvm_arm_setup_stage2 until 6.1), arch/arm64/kvm/: type 0 means 40 bits, and is refused
        where there are fewer.
        """
        limit = self.check_extension("ARM_VM_IPA_SIZE")
        return VM(self, self.ioctl("KVM_CREATE_VM", limit if 0 < limit < 40 else 0))


class VM(_Handle):
    """One virtual machine."""

    def __init__(self, system: System, fd: int) -> None:
        super().__init__(system.kernel, fd)
        self.system = system

    def preferred_target(self) -> int:
        """KVM_ARM_PREFERRED_TARGET: the target number for the CPU that this thread runs on; from Linux 6.6 always GENERIC_V8.

        Raises KvmError: EINVAL or ENOTTY on kernels before 3.13, ENODEV on a CPU unknown to the kernel.
        """
        init = uapi.VcpuInit()
        self.ioctl("KVM_ARM_PREFERRED_TARGET", init)
        return int(init.target)

    def writable_masks(self) -> dict[int, int] | None:
        """Register id → mask of the bits that user space may write; None on kernels that do not tell (before 6.7)."""
        masks = (ctypes.c_uint64 * uapi.FEATURE_ID_MASKS)()
        try:
            self.ioctl("KVM_ARM_GET_REG_WRITABLE_MASKS", uapi.RegMaskRange(addr=ctypes.addressof(masks)))
        except KvmError as error:
            if error.errno not in (errno_codes.ENOTTY, errno_codes.EINVAL):
                raise
            return None
        return {reg: int(mask) for reg, mask in zip(uapi.feature_id_registers(), masks) if mask}

    def has_gic(self, version: int) -> bool:
        """Whether the kernel would create a virtual GIC of this version.

        Kernels before 3.13 have no KVM_CREATE_DEVICE on ARM, and one kind of GIC, of version 2, made by KVM_CREATE_IRQCHIP.
        """
        device = uapi.CreateDevice(type=uapi.DEVICE_TYPE_ARM_VGIC[version], flags=uapi.CREATE_DEVICE_TEST)
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

    def set_memory(self, guest_address: int, memory: mmap.mmap) -> None:
        """Show `memory` (whole pages) to the guest at `guest_address`."""
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        region = uapi.UserspaceMemoryRegion(guest_phys_addr=guest_address, memory_size=len(memory), userspace_addr=start)
        self.ioctl("KVM_SET_USER_MEMORY_REGION", region)

    def create_vcpu(self) -> VCPU:
        """vCPU 0, not yet initialised."""
        return VCPU(self, self.ioctl("KVM_CREATE_VCPU", 0))


class VCPU(_Handle):
    """One vCPU."""

    def __init__(self, vm: VM, fd: int) -> None:
        super().__init__(vm.kernel, fd)
        self.vm = vm

    def init(self, target: int, features: tuple[str, ...]) -> None:
        """KVM_ARM_VCPU_INIT with a target number and keys of uapi.VCPU_FEATURES.

        Raises KvmError: ENOENT for a feature bit the kernel does not know, EINVAL for a target or a set it does not support.
        """
        init = uapi.VcpuInit(target=target)
        for feature in features:
            bit = uapi.VCPU_FEATURES[feature]
            init.features[bit // 32] |= 1 << bit % 32
        self.ioctl("KVM_ARM_VCPU_INIT", init)

    def finalize_sve(self) -> None:
        """KVM_ARM_VCPU_FINALIZE: until then a vCPU with SVE has no register list and cannot run."""
        self.ioctl("KVM_ARM_VCPU_FINALIZE", (ctypes.c_int * 1)(uapi.FINALIZE_SVE))

    def init_pmu(self) -> None:
        """KVM_ARM_VCPU_PMU_V3_INIT: a vCPU with the PMU feature does not run without (kvm_arm_pmu_v3_enable)."""
        attr = uapi.DeviceAttr(group=uapi.VCPU_PMU_V3_CTRL, attr=uapi.VCPU_PMU_V3_INIT)
        self.ioctl("KVM_SET_DEVICE_ATTR", attr)

    def reg_list(self) -> list[int]:
        """All register ids of this vCPU, in ascending order.

        KVM_GET_REG_LIST says how many there are by failing with E2BIG, so this is two calls.
        """
        empty = uapi.reg_list_struct(0)()
        try:
            self.ioctl("KVM_GET_REG_LIST", empty)
        except KvmError as error:
            if error.errno != errno_codes.E2BIG:
                raise
        filled = uapi.reg_list_struct(empty.n)()
        filled.n = empty.n
        self.ioctl("KVM_GET_REG_LIST", filled)
        return sorted(filled.reg)

    def get(self, reg: int) -> int:
        """KVM_GET_ONE_REG of a register of any size. Raises KvmError (ENOENT: no such register)."""
        value = (ctypes.c_uint8 * register_size(reg))()
        self._one_reg("KVM_GET_ONE_REG", reg, value)
        return int.from_bytes(bytes(value), "little")

    def set(self, reg: int, value: int) -> None:
        """KVM_SET_ONE_REG. Raises KvmError: EINVAL for a value the kernel refuses, ENOENT, EBUSY after the first KVM_RUN."""
        size = register_size(reg)
        self._one_reg("KVM_SET_ONE_REG", reg, (ctypes.c_uint8 * size)(*value.to_bytes(size, "little")))

    def _one_reg(self, name: str, reg: int, value: ctypes.Array[ctypes.c_uint8]) -> None:
        try:
            self.ioctl(name, uapi.OneReg(id=reg, addr=ctypes.addressof(value)))
        except KvmError as error:
            raise KvmError(name, error.errno, f"register {reg:#018x}") from None

    def run(self) -> uapi.RunMmio:
        """KVM_RUN until the next exit to user space. Raises KvmError (EINTR: a signal came first)."""
        run = self.kernel.map_run(self.fd, self.vm.system.ioctl("KVM_GET_VCPU_MMAP_SIZE"))
        self.ioctl("KVM_RUN")
        return run


def register_size(reg: int) -> int:
    """Size in bytes of a register, from its id (KVM_REG_SIZE)."""
    return 1 << (reg >> uapi.REG_SIZE_SHIFT & uapi.REG_SIZE_MASK)
