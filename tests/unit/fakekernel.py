# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel with KVM on ARM that is not there: replaces kvmarm_plugin.kvm.device.SystemCalls and
plays any kernel, old or odd.

`CpuKind` describes what KVM gives on one kind of CPU, `FakeKernel` what the kernel as a whole
answers. It follows the kernel's own rules (Documentation/virt/kvm/api.rst, arch/arm64/kvm/): which
file descriptor takes which ioctl, what must be done before what, which errno tells so. Register
numbers, structs, instruction encodings and the order of the writable masks are written out here a
second time, from the Arm ARM and the kernel's documents, so that an error in the project's own
tables and encoders shows.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import time
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple

from kvmarm_plugin.kvm import uapi
from kvmarm_plugin.kvm.device import KvmError, SystemCalls
from kvmarm_plugin.model.profile import Cluster, HostProfile
from kvmarm_plugin.registers.table import id_of
from kvmarm_plugin.registers.text import unpack_ids

# Documentation/virt/kvm/api.rst, "4.82 KVM_ARM_VCPU_INIT": the features and their bits in struct
# kvm_vcpu_init.
FEATURE_BITS = {
    0: "power_off",
    1: "el1_32bit",
    2: "psci_0_2",
    3: "pmu_v3",
    4: "sve",
    5: "ptrauth_address",
    6: "ptrauth_generic",
    7: "has_el2",
    8: "has_el2_e2h0",
    9: "pmu_v3_strict",
}
ARM_FEATURE_BITS = {
    0: "power_off",
    1: "psci_0_2",
}  # arch/arm/include/uapi/asm/kvm.h, until Linux 5.6
X0 = 0x6030000000100000
PC = 0x6030000000100040
PSCI_VERSION = 0x6030000000140000
WORKAROUNDS = (0x6030000000140001, 0x6030000000140002, 0x6030000000140003)
BITMAPS = 0x603000000016  # of hypercalls (KVM_REG_ARM_FW_FEAT_BMAP)
CACHES = 0x602000000011  # CCSIDR by level (KVM_REG_ARM_DEMUX)
IDENTITY = {  # MIDR_EL1, REVIDR_EL1, AIDR_EL1: what may be written of them (IMPLEMENTATION_ID)
    0x603000000013C000: (1 << 32) - 1,
    0x603000000013C006: (1 << 64) - 1,
    0x603000000013C807: (1 << 64) - 1,
}
SVE_VLS = 0x606000000015FFFF
CORE_REGISTERS = [X0 + 2 * index for index in range(31)] + [PC]
SYSREG_GROUP = 0x603000000013
PAGE = 4096

# How MRS names the registers that a scratch guest reads: op0, op1, CRn, CRm, op2 (Arm ARM D19,
# "Accessing …").
MRS_NAMES = {
    (3, 3, 14, 0, 0): "CNTFRQ_EL0",
    (3, 3, 0, 0, 7): "DCZID_EL0",
    (3, 3, 0, 0, 1): "CTR_EL0",
    (3, 0, 0, 0, 0): "MIDR_EL1",
    (3, 3, 9, 12, 0): "PMCR_EL0",
}

# Which kind of file descriptor takes an ioctl; any other answers ENOTTY.
_RECEIVERS = {
    "system": ("KVM_GET_API_VERSION", "KVM_CREATE_VM", "KVM_CHECK_EXTENSION"),
    "vm": (
        "KVM_CREATE_VCPU",
        "KVM_SET_USER_MEMORY_REGION",
        "KVM_ARM_PREFERRED_TARGET",
        "KVM_ARM_GET_REG_WRITABLE_MASKS",
        "KVM_CREATE_DEVICE",
        "KVM_CREATE_IRQCHIP",
        "KVM_ENABLE_CAP",
        "KVM_CHECK_EXTENSION",
    ),
    "vcpu": (
        "KVM_ARM_VCPU_INIT",
        "KVM_ARM_VCPU_FINALIZE",
        "KVM_GET_REG_LIST",
        "KVM_GET_ONE_REG",
        "KVM_SET_ONE_REG",
        "KVM_SET_DEVICE_ATTR",
        "KVM_RUN",
    ),
    "gic": ("KVM_SET_DEVICE_ATTR", "KVM_GET_DEVICE_ATTR"),
}


class _OneReg(ctypes.Structure):
    _fields_ = [("id", ctypes.c_uint64), ("addr", ctypes.c_uint64)]


class _VcpuInit(ctypes.Structure):
    _fields_ = [("target", ctypes.c_uint32), ("features", ctypes.c_uint32 * 7)]


class _MemoryRegion(ctypes.Structure):
    _fields_ = [
        ("slot", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("guest_phys_addr", ctypes.c_uint64),
        ("memory_size", ctypes.c_uint64),
        ("userspace_addr", ctypes.c_uint64),
    ]


class _CreateDevice(ctypes.Structure):
    _fields_ = [("type", ctypes.c_uint32), ("fd", ctypes.c_uint32), ("flags", ctypes.c_uint32)]


class _DeviceAttr(ctypes.Structure):
    _fields_ = [
        ("flags", ctypes.c_uint32),
        ("group", ctypes.c_uint32),
        ("attr", ctypes.c_uint64),
        ("addr", ctypes.c_uint64),
    ]


class _EnableCap(ctypes.Structure):
    _fields_ = [
        ("cap", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("args", ctypes.c_uint64 * 4),
        ("pad", ctypes.c_uint8 * 64),
    ]


class _RegMaskRange(ctypes.Structure):
    _fields_ = [
        ("addr", ctypes.c_uint64),
        ("range", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32 * 13),
    ]


# What an ioctl's argument points to, if it is not a number.
_ARGUMENTS: dict[str, Any] = {
    "KVM_GET_ONE_REG": _OneReg,
    "KVM_SET_ONE_REG": _OneReg,
    "KVM_ARM_PREFERRED_TARGET": _VcpuInit,
    "KVM_ARM_VCPU_INIT": _VcpuInit,
    "KVM_ARM_VCPU_FINALIZE": ctypes.c_int,
    "KVM_SET_USER_MEMORY_REGION": _MemoryRegion,
    "KVM_ENABLE_CAP": _EnableCap,
    "KVM_CREATE_DEVICE": _CreateDevice,
    "KVM_SET_DEVICE_ATTR": _DeviceAttr,
    "KVM_GET_DEVICE_ATTR": _DeviceAttr,
    "KVM_ARM_GET_REG_WRITABLE_MASKS": _RegMaskRange,
}

# Those whose argument the kernel copies back.
_WRITTEN = ("KVM_ARM_PREFERRED_TARGET", "KVM_GET_REG_LIST", "KVM_CREATE_DEVICE")


class Made(NamedTuple):
    """What makes a vCPU: target number and features."""

    target: int
    features: frozenset[str]


@dataclass
class CpuKind:
    """What KVM gives on CPUs of one kind.

    Attributes:
        preferred: what KVM_ARM_PREFERRED_TARGET answers, or an `OSError` with the errno it fails
            with.
        vcpus: the vCPUs that can be made, with all their registers by id.
        writable: ids that user space may change; the others take only the value they have. Core
            registers are always writable.
        masks: register id → mask, as KVM_ARM_GET_REG_WRITABLE_MASKS gives it; None for a kernel
            without that ioctl.
        sve_lengths: in bits.
        guest: what a guest reads, by name in MRS_NAMES. What is not there is undefined: the guest
            then never comes to its end.
    """

    preferred: int | OSError = 5
    vcpus: dict[Made, dict[int, int]] = field(default_factory=dict)
    writable: frozenset[int] = frozenset()
    masks: dict[int, int] | None = None
    sve_lengths: tuple[int, ...] = ()
    guest: dict[str, int] = field(default_factory=dict)


@dataclass
class _Vm:
    ipa_bits: int
    memory: list[tuple[int, int, int]] = field(default_factory=list)  # guest address, size, address
    has_vcpu: bool = False
    has_gic: bool = False
    may_set_identity: bool = False


@dataclass
class _Gic:
    vm: _Vm
    is_ready: bool = False


@dataclass
class _Vcpu:
    vm: _Vm
    kind: CpuKind | None = None
    features: frozenset[str] = frozenset()
    registers: dict[int, int] = field(default_factory=dict)
    sve_done: bool = False
    pmu_done: bool = False
    has_run: bool = False


class FakeKernel(SystemCalls):
    """A kernel with KVM on ARM.

    Args:
        kinds: CPU number → what KVM gives there; one entry serves every CPU that has none.
        capabilities: names in uapi.CAPABILITIES → what KVM_CHECK_EXTENSION answers.
        gics: versions of virtual GICs.
        feature_bits: those of kvm_vcpu_init that it knows → the features.
        api_version: what KVM_GET_API_VERSION answers.
        current_cpu: the CPU that the calling thread is on.

    Attributes:
        failures: ioctl → errno with which it fails.
        fail_call: (n, errno): the n-th ioctl of all, counted from 0, fails.
        open_errno: errno with which /dev/kvm cannot be opened.
        stops_at: an address at which KVM_RUN returns instead of running the guest, for whatever
            reason.
        gicd_iidr: of virtual GICs; None for a kernel that gives no distributor's registers.
        skips_mmio: whether an instruction that leaves the kernel is passed before rather than
            after, as in old ones.
        calls: the ioctls so far.
        handles: the file descriptors that are open.
    """

    def __init__(
        self,
        kinds: dict[int, CpuKind] | CpuKind,
        capabilities: dict[str, int] | None = None,
        gics: tuple[int, ...] = (3,),
        feature_bits: dict[int, str] = FEATURE_BITS,
        api_version: int = 12,
        current_cpu: Callable[[], int] = lambda: min(os.sched_getaffinity(0)),
    ) -> None:
        # Not super().__init__(): no libc here.
        self.kinds = kinds
        self.answers = {
            uapi.CAPABILITIES[name]: answer for name, answer in (capabilities or {}).items()
        }
        self.gics = gics
        self.feature_bits = feature_bits
        self.api_version = api_version
        self.current_cpu = current_cpu
        self.failures: dict[str, int] = {}
        self.fail_call: tuple[int, int] | None = None
        self.open_errno = 0
        self.stops_at: int | None = None
        self.skips_mmio = False
        self.gicd_iidr: int | None = 0x4B00243B
        self.calls: list[str] = []
        self.handles: dict[int, Any] = {}
        self._next = 1000

    @classmethod
    def from_profile(cls, profile: HostProfile) -> FakeKernel:
        """The kernel that this profile was, or could have been, measured on."""
        kinds = {
            cpu: _kind_of(cluster) for cluster in profile.clusters for cpu in _cpus(cluster.cpus)
        }
        bits = FEATURE_BITS if profile.kvm_architecture == "arm64" else ARM_FEATURE_BITS
        return cls(kinds, dict(profile.capabilities), profile.gic_versions, bits)

    # -- what SystemCalls has ----------------------------------------------------------------------

    def open(self, path: str) -> int:
        if self.open_errno:
            raise OSError(self.open_errno, os.strerror(self.open_errno), path)
        return self._new("system")

    def close(self, fd: int) -> None:
        if fd not in self.handles:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        del self.handles[fd]

    def ioctl(self, fd: int, name: str, arg: int | bytes | bytearray) -> int:
        self.calls.append(name)
        if self.fail_call and len(self.calls) - 1 == self.fail_call[0]:
            raise KvmError(name, self.fail_call[1])
        handle = self.handles.get(fd)
        if handle is None:
            raise KvmError(name, errno.EBADF)
        code = self.failures.get(name, 0)
        kinds = {_Vm: "vm", _Vcpu: "vcpu", _Gic: "gic"}
        kind = handle if isinstance(handle, str) else kinds[type(handle)]
        if not code and name not in _RECEIVERS[kind]:
            code = errno.ENOTTY
        if code:
            raise KvmError(name, code)
        result = getattr(self, "_" + name.lower())(
            handle, arg if isinstance(arg, int) else _argument(name, arg)
        )
        if result < 0:
            raise KvmError(name, -result)
        return int(result)

    # -- system ioctls ----------------------------------------------------------------------------

    def _new(self, handle: Any) -> int:
        self._next += 1
        self.handles[self._next] = handle
        return self._next

    def _kind(self) -> CpuKind:
        return self.kinds if isinstance(self.kinds, CpuKind) else self.kinds[self.current_cpu()]

    def _kvm_get_api_version(self, _system: str, _arg: int) -> int:
        return self.api_version

    def _kvm_check_extension(self, _handle: Any, number: int) -> int:
        return self.answers.get(number, 0)

    def _kvm_create_vm(self, _system: str, ipa_bits: int) -> int:
        # kvm_init_ipa_stage2_mmu_config: 0 means 40; more than there are, or less than 32, is
        # EINVAL.
        limit = self.answers.get(165, 40)
        if not 32 <= (ipa_bits or 40) <= limit:
            return -errno.EINVAL
        return self._new(_Vm(ipa_bits or 40))

    # -- VM ioctls --------------------------------------------------------------------------------

    def _kvm_create_vcpu(self, vm: _Vm, number: int) -> int:
        assert number == 0
        vm.has_vcpu = True
        return self._new(_Vcpu(vm))

    def _kvm_arm_preferred_target(self, _vm: _Vm, arg: Any) -> int:
        preferred = self._kind().preferred
        if isinstance(preferred, OSError):
            return -(preferred.errno or errno.EIO)
        ctypes.memset(
            ctypes.addressof(arg), 0, 32
        )  # memset in kvm_vcpu_preferred_target: no features
        ctypes.c_uint32.from_address(ctypes.addressof(arg)).value = preferred
        return 0

    def _kvm_arm_get_reg_writable_masks(self, _vm: _Vm, arg: Any) -> int:
        masks = self._kind().masks
        if masks is None:
            return -errno.ENOTTY
        if arg.range or any(arg.reserved):
            return -errno.EINVAL
        table = (ctypes.c_uint64 * 192).from_address(arg.addr)
        for index in range(192):
            table[index] = 0
        for reg, mask in masks.items():
            op1, crm, op2 = reg >> 11 & 7, reg >> 3 & 15, reg & 7
            # KVM_ARM_FEATURE_ID_RANGE_IDX: op1 is 0, 1 or 3, and 3 comes third.
            table[((op1 & 3) - (1 if op1 == 3 else 0)) * 64 + crm * 8 + op2] = mask
        return 0

    def _kvm_enable_cap(self, vm: _Vm, arg: Any) -> int:
        """kvm_vm_ioctl_enable_cap: nothing else is enabled here, and this before the first vCPU."""
        if arg.flags or arg.cap != 239 or not self.answers.get(239) or vm.has_vcpu:
            return -errno.EINVAL
        vm.may_set_identity = True
        return 0

    def _kvm_create_device(self, vm: _Vm, arg: Any) -> int:
        if arg.type not in {{2: 5, 3: 7}[version] for version in self.gics}:
            return -errno.ENODEV
        if arg.flags != 1:  # KVM_CREATE_DEVICE_TEST
            if vm.has_gic:
                return -errno.EEXIST
            vm.has_gic = True
            arg.fd = self._new(_Gic(vm))
        return 0

    def _kvm_create_irqchip(self, _vm: _Vm, _arg: Any) -> int:
        return 0 if 2 in self.gics else -errno.ENODEV

    def _kvm_set_user_memory_region(self, vm: _Vm, arg: Any) -> int:
        if (
            arg.guest_phys_addr % PAGE
            or arg.memory_size % PAGE
            or arg.userspace_addr % PAGE
            or not arg.memory_size
        ):
            return -errno.EINVAL
        vm.memory.append((arg.guest_phys_addr, arg.memory_size, arg.userspace_addr))
        return 0

    # -- vCPU ioctls ------------------------------------------------------------------------------

    def _kvm_arm_vcpu_init(self, vcpu: _Vcpu, arg: Any) -> int:
        features = set()
        for bit in range(32 * 7):
            if arg.features[bit // 32] >> bit % 32 & 1:
                if bit not in self.feature_bits:
                    return -errno.ENOENT
                features.add(self.feature_bits[bit])
        kind = self._kind()
        registers = kind.vcpus.get(Made(arg.target, frozenset(features)))
        if registers is None:
            return -errno.EINVAL
        vcpu.kind, vcpu.features, vcpu.registers = kind, frozenset(features), dict(registers)
        if "sve" in features:
            vcpu.registers[SVE_VLS] = _bitmap(kind.sve_lengths)
        return 0

    def _kvm_arm_vcpu_finalize(self, vcpu: _Vcpu, arg: Any) -> int:
        if arg.value != 4 or "sve" not in vcpu.features:
            return -errno.EINVAL
        if vcpu.sve_done:
            return -errno.EPERM
        vcpu.sve_done = True
        return 0

    def _unfinished(self, vcpu: _Vcpu) -> int:
        """ENOEXEC before KVM_ARM_VCPU_INIT, EPERM before KVM_ARM_VCPU_FINALIZE."""
        if vcpu.kind is None:
            return errno.ENOEXEC
        return errno.EPERM if "sve" in vcpu.features and not vcpu.sve_done else 0

    def _kvm_get_reg_list(self, vcpu: _Vcpu, arg: Any) -> int:
        if self._unfinished(vcpu):
            return -self._unfinished(vcpu)
        room, arg[0] = arg[0], len(vcpu.registers)
        if room < arg[0]:
            return -errno.E2BIG
        # Not in order: kvm_arm_copy_reg_indices gives core registers first.
        arg[1 : 1 + arg[0]] = sorted(
            vcpu.registers, key=lambda reg: (reg not in CORE_REGISTERS, -reg)
        )
        return 0

    def _kvm_get_one_reg(self, vcpu: _Vcpu, arg: Any) -> int:
        if vcpu.kind is None:
            return -errno.ENOEXEC
        if arg.id not in vcpu.registers:
            return -errno.ENOENT
        ctypes.memmove(
            arg.addr, vcpu.registers[arg.id].to_bytes(_size(arg.id), "little"), _size(arg.id)
        )
        return 0

    def _kvm_set_one_reg(self, vcpu: _Vcpu, arg: Any) -> int:
        if vcpu.kind is None:
            return -errno.ENOEXEC
        if arg.id not in vcpu.registers:
            return -errno.ENOENT
        value = int.from_bytes(ctypes.string_at(arg.addr, _size(arg.id)), "little")
        if arg.id == SVE_VLS:
            return self._set_vls(vcpu, value)
        if arg.id == PSCI_VERSION and 0x10000 <= value <= vcpu.registers[arg.id]:
            vcpu.registers[arg.id] = value  # kvm_arm_set_fw_reg, psci.c
            return 0
        if arg.id in WORKAROUNDS and value <= vcpu.registers[arg.id]:
            return 0  # and the host's stays: kvm_arm_get_fw_reg
        if arg.id not in CORE_REGISTERS and value != vcpu.registers[arg.id]:
            if vcpu.has_run and arg.id in vcpu.kind.writable:
                return -errno.EBUSY
            if not self._takes(vcpu, arg.id, value):
                return -errno.EINVAL
            if vcpu.has_run:
                return -errno.EBUSY
        vcpu.registers[arg.id] = value
        return 0

    def _takes(self, vcpu: _Vcpu, reg: int, value: int) -> bool:
        """Whether user space may give a register another value. Of ID registers the rules are the
        masks alone: that only less is taken than there is, is played nowhere.
        """
        assert vcpu.kind is not None
        if reg in IDENTITY:  # set_imp_id_reg
            return vcpu.vm.may_set_identity and not value & ~IDENTITY[reg]
        if reg >> 16 == BITMAPS and vcpu.kind.masks is not None:
            return not value & ~vcpu.registers[reg]  # set_fw_reg_bmap
        if reg >> 16 == CACHES and vcpu.kind.masks is not None:
            return value & 7 >= vcpu.registers[reg] & 7  # set_ccsidr
        if reg not in vcpu.kind.writable:
            return False
        mask = (vcpu.kind.masks or {}).get(reg)
        return mask is None or not (value ^ vcpu.registers[reg]) & ~mask

    def _set_vls(self, vcpu: _Vcpu, value: int) -> int:
        """set_sve_vls: up to the longest length asked for, exactly the host's; nothing above the
        host's longest.
        """
        assert vcpu.kind is not None
        if vcpu.sve_done:
            return -errno.EPERM
        if value != _bitmap(vcpu.kind.sve_lengths) & (1 << value.bit_length()) - 1 or not value:
            return -errno.EINVAL
        vcpu.registers[SVE_VLS] = value
        return 0

    def _kvm_get_device_attr(self, gic: _Gic, arg: Any) -> int:
        # KVM_DEV_ARM_VGIC_GRP_DIST_REGS, and GICD_IIDR's offset.
        if (arg.group, arg.attr) != (1, 8) or self.gicd_iidr is None:
            return -errno.ENXIO
        if not gic.is_ready:
            return -errno.EBUSY
        ctypes.memmove(arg.addr, self.gicd_iidr.to_bytes(4, "little"), 4)
        return 0

    def _kvm_set_device_attr(self, handle: _Vcpu | _Gic, arg: Any) -> int:
        if isinstance(handle, _Gic):
            # KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT
            if (arg.group, arg.attr) != (4, 0):
                return -errno.ENXIO
            if not handle.vm.has_vcpu:
                return -errno.ENODEV
            handle.is_ready = True
            return 0
        return self._set_vcpu_attr(handle, arg)

    def _set_vcpu_attr(self, vcpu: _Vcpu, arg: Any) -> int:
        if (arg.group, arg.attr) != (0, 1):  # KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT
            return -errno.ENXIO
        if "pmu_v3" not in vcpu.features:
            return -errno.ENODEV
        if vcpu.pmu_done:
            return -errno.EBUSY
        vcpu.pmu_done = True
        return 0

    # -- the guest --------------------------------------------------------------------------------

    def _kvm_run(self, vcpu: _Vcpu, arg: int) -> int:
        assert arg == 0
        if self._unfinished(vcpu):
            return -self._unfinished(vcpu)
        if "pmu_v3" in vcpu.features and not vcpu.pmu_done:
            return -errno.EINVAL
        vcpu.has_run = True
        if self.stops_at is not None:
            vcpu.registers[PC] = self.stops_at
            return 0
        while True:
            word = self._fetch(vcpu)
            if word is None:
                return self._never_ends()
            if self._leaves(vcpu, word):
                vcpu.registers[PC] += 4 * self.skips_mmio
                return 0
            if not self._step(vcpu, word):
                return self._never_ends()
            vcpu.registers[PC] += 4

    def _fetch(self, vcpu: _Vcpu) -> int | None:
        for start, size, address in vcpu.vm.memory:
            if start <= vcpu.registers[PC] < start + size:
                return int.from_bytes(
                    ctypes.string_at(address + vcpu.registers[PC] - start, 4), "little"
                )
        return None

    def _step(self, vcpu: _Vcpu, word: int) -> bool:
        """Do one A64 instruction; False if it is undefined."""
        if word >> 20 == 0b1101_0101_0011:  # MRS: op0 is bit 19 with a 1 in front
            register = (
                2 | word >> 19 & 1,
                word >> 16 & 7,
                word >> 12 & 15,
                word >> 8 & 15,
                word >> 5 & 7,
            )
            name = MRS_NAMES.get(register, "")
            assert vcpu.kind is not None
            value = vcpu.kind.guest.get(name)
            if value is None or (name == "PMCR_EL0" and "pmu_v3" not in vcpu.features):
                return False
            if word & 31 != 31:
                vcpu.registers[X0 + 2 * (word & 31)] = value
            return True
        return False

    def _leaves(self, vcpu: _Vcpu, word: int) -> bool:
        """Whether an instruction ends KVM_RUN with KVM_EXIT_MMIO: a store to where no memory is."""
        if (
            word >> 22 != 0b11_111_0_01_00
        ):  # STR (immediate), unsigned offset, 64 bits: imm12, Rn, Rt
            return False
        base = word >> 5 & 31
        assert base != 31, "the guest has no stack"
        place = vcpu.registers[X0 + 2 * base] + 8 * (word >> 10 & 0xFFF)
        return not any(start <= place < start + size for start, size, _ in vcpu.vm.memory)

    def _never_ends(self) -> int:
        """An undefined instruction takes the guest to a vector where there is no memory, for ever;
        only a signal ends KVM_RUN.
        """
        remaining, interval = signal.getitimer(signal.ITIMER_REAL)
        assert remaining or interval, "no timer is running: this KVM_RUN would never return"
        time.sleep(remaining)
        return -errno.EINTR


def kind(
    target: int = 5,
    *feature_sets: tuple[str, ...],
    registers: dict[int, int] | None = None,
    **others: Any,
) -> CpuKind:
    """A CPU kind that makes vCPUs of one target with each of these feature sets, all with the same
    registers.
    """
    values = {**dict.fromkeys(CORE_REGISTERS, 0), **(registers or {})}
    sets = feature_sets or ((),)
    vcpus = {
        Made(target, frozenset(features)): {**values, **({SVE_VLS: 0} if "sve" in features else {})}
        for features in sets
    }
    return CpuKind(preferred=target, vcpus=vcpus, **others)


def _argument(name: str, buffer: bytes | bytearray) -> Any:
    """The struct in a buffer, to be read and written; the list of KVM_GET_REG_LIST, n and as many
    ids, as 64-bit words.
    """
    struct = (
        ctypes.c_uint64 * (len(buffer) // 8) if name == "KVM_GET_REG_LIST" else _ARGUMENTS[name]
    )
    assert len(buffer) == ctypes.sizeof(struct), f"{name} copies {ctypes.sizeof(struct)} bytes"
    assert isinstance(buffer, bytearray) or name not in _WRITTEN, f"{name} writes to its argument"
    return (
        struct.from_buffer(buffer)
        if isinstance(buffer, bytearray)
        else struct.from_buffer_copy(buffer)
    )


def _kind_of(cluster: Cluster) -> CpuKind:
    vcpus = {}
    for vcpu in cluster.vcpus:
        values = {id_of(name): value for name, value in vcpu.registers.items()}
        vcpus[Made(vcpu.number, frozenset(vcpu.features))] = {
            reg: values.get(reg, 0) for reg in unpack_ids(vcpu.reglist)
        }
    masks = (
        None
        if cluster.writable is None
        else {id_of(name): mask for name, mask in cluster.writable.items()}
    )
    return CpuKind(
        preferred=cluster.target,
        vcpus=vcpus,
        writable=frozenset(masks or ()),
        masks=masks,
        sve_lengths=cluster.sve_lengths,
        guest=dict(cluster.seen),
    )


def _cpus(text: str) -> list[int]:
    """CPU numbers of a list such as "0-3,6"."""
    spans = [span.split("-") for span in text.split(",")]
    return [cpu for span in spans for cpu in range(int(span[0]), int(span[-1]) + 1)]


def _bitmap(lengths: tuple[int, ...]) -> int:
    return sum(1 << length // 128 - 1 for length in lengths)


def _size(reg: int) -> int:
    """Bytes of a register (KVM_REG_SIZE): bits 55:52 of its id are the logarithm."""
    return int(1 << (reg >> 52 & 15))
