# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rehearse: push a recorded target into a scratch vCPU on this host, and let the kernel itself say
yes or no.

The answers of `verdict.judge` from a live kernel. The vCPU is the one that QEMU would make here,
and is never run; what no register tells is read by the scratch guest in another.
"""

from __future__ import annotations

import os

from .basics.errors import KvmarmError
from .judge.finding import Finding
from .judge.offer import Offer
from .judge.verdict import judge
from .kvm import uapi
from .kvm.device import VCPU, VM, KvmError, System
from .kvm.scratch import ScratchVcpu, preferred_target, run_guest
from .model.features import OFFERED_BY, PMU, SVE
from .model.guest_registers import GUEST_REGISTERS, readable
from .model.target import Target, sve_lengths
from .model.vcpu import KVM_ARCHITECTURES
from .registers.table import id_of, is_identity, name_of
from .registers.text import pack_ids, unpack_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .registers.rules import KernelFacts


class KernelOffer(Offer):
    """What this host's kernel gives to a guest of one target.

    Args:
        cpus: those to ask, where they are not all alike: the thread stays on them until this is
            closed. Empty where they are.
        boots: whether the guest boots here; otherwise it arrives.
    """

    def __init__(
        self,
        target: Target,
        system: System,
        machines: tuple[str, ...] = (),
        cpus: tuple[int, ...] = (),
        boots: bool = False,
    ) -> None:
        name = os.uname()
        architecture = KVM_ARCHITECTURES.get(name.machine, name.machine)
        super().__init__(name.nodename, architecture, boots)
        self.machines = machines
        self.ipa_bits = system.ipa_bits()
        self._system = system
        self._number = 0
        self._why_none = f"its KVM is of {architecture}, and the record of {target.architecture}"
        self._scratch: ScratchVcpu | None = None
        self._kernel: KernelFacts | None = None
        self._allowed = _keep_to(cpus) if cpus else None
        try:
            with system.create_vm() as vm:
                self.gic_versions = tuple(
                    version for version in uapi.DEVICE_TYPE_ARM_VGIC if vm.has_gic(version)
                )
                if architecture == target.architecture:
                    self._make(target, vm)
        except BaseException:
            self.close()
            raise

    def _make(self, target: Target, vm: VM) -> None:
        try:
            # "host" is whatever QEMU makes of it here; a named model has one target number
            # everywhere.
            number = (
                preferred_target(vm, self.architecture) if target.model == "host" else target.number
            )
            wanted = self.features_for(target) if self.boots else target.features
            if SVE.is_in(wanted):
                with ScratchVcpu(self._system, number, wanted) as vcpu:
                    self.sve_lengths = sve_lengths(vcpu.get(uapi.REG_ARM64_SVE_VLS))
            self._number = number
            self._scratch = ScratchVcpu(
                self._system,
                number,
                self.features_for(target),
                levelled=target.level is not None,
            )
        except KvmarmError as error:
            if isinstance(error, KvmError) and error.passing:
                raise
            self._why_none = error.message
            self.cannot_make("vcpu-refused", target, "vcpu-refused-other", error=error.message)
            if not self.boots:
                self._read_identity(target, vm)
            return
        vcpu = self._scratch.vcpu
        if target.level is not None:
            from .host.level_library import usable_version  # few guests are levelled

            self.level_library = usable_version()
            self.cpu = vcpu.get(id_of("MIDR_EL1")), vcpu.get(id_of("REVIDR_EL1"))
        _level(vcpu, target)
        ids = _listed(vcpu, target)
        held = frozenset(ids)
        # Packing takes longer than all calls of the kernel.
        self.reglist = target.reglist if unpack_ids(target.reglist) == held else pack_ids(ids)
        self.registers = {
            name: vcpu.get(reg) for name in target.registers if (reg := id_of(name)) in held
        }
        names = tuple(readable(target.seen, wanted))
        if names:
            seen = run_guest(self._system, number, _without_sve(wanted), names)
            self.seen = target.seen_levelled(seen, self.registers)

    def _read_identity(self, target: Target, vm: VM) -> None:
        """What all vCPUs of this CPU have in common, from the plainest."""
        from .registers.rules import IMPLEMENTATION_ID

        try:
            number = preferred_target(vm, self.architecture)
            self._scratch = ScratchVcpu(self._system, number, ("psci_0_2",))
        except KvmarmError as error:
            if isinstance(error, KvmError) and error.passing:
                raise
            return
        vcpu = self._scratch.vcpu
        held = frozenset(vcpu.reg_list())
        self.registers = {
            name: vcpu.get(reg)
            for name in IMPLEMENTATION_ID
            if name in target.registers and (reg := id_of(name)) in held
        }

    def has(self, feature: str) -> bool:
        return bool(self._system.check_extension(OFFERED_BY[feature]))

    def qemu_version(self) -> tuple[int, int]:
        from .host.qemu_version import installed_version  # few targets make it matter

        return installed_version()

    def kernel(self) -> KernelFacts:
        if self._kernel is None:
            from .registers.rules import kernel_facts

            with self._system.create_vm() as vm:
                masks = vm.writable_masks()
            writable = (
                None if masks is None else {name_of(reg): mask for reg, mask in masks.items()}
            )
            self._kernel = kernel_facts(os.uname().release, self.registers, writable)
        return self._kernel

    def accepts(self, register: str, value: int) -> bool:
        """Pushes the value, as QEMU will when the guest's state is loaded.

        What the kernel takes need not be what it then shows. Some values it only tolerates, because
        older kernels gave them to guests in error: MPAM, NV and PMUVer 15 (set_id_aa64pfr0_el1 and
        its neighbours, sys_regs.c), mitigations smaller than the host's (kvm_arm_set_fw_reg). QEMU
        does not look, the migration works, and the kernel's authors want it to.
        """
        assert self._scratch is not None
        vcpu: VCPU = self._scratch.vcpu
        try:
            vcpu.set(id_of(register), value)
        except (KvmError, OverflowError) as error:
            if isinstance(error, KvmError) and error.passing:
                raise
            return False
        return True

    def makes_vcpu(self) -> bool:
        """Whether there is such a vCPU here."""
        return self._scratch is not None and self.problem is None

    def renewed(self, target: Target) -> Target:
        """See the function of this name."""
        if not self.makes_vcpu():
            raise KvmarmError(
                f"{self.host} does not make the recorded vCPU: {self._why_none}",
                "check the domain on this host, which says why",
            )
        if self._is_as_recorded(target):
            return target
        # A PMU may stay unseen in an arrived guest, and QEMU makes it all the same.
        features = self.features_for(target)
        lengths = () if self.boots and SVE.is_in(target.unsaid) else target.sve_lengths
        levelled = target.level is not None
        with ScratchVcpu(self._system, self._number, features, lengths or None, levelled) as vcpu:
            ids = _listed(vcpu, target)
            _level(vcpu, target)
            if not self.boots:
                for name, value in target.registers.items():
                    _push(vcpu, name, value)
            registers = {name_of(reg): vcpu.get(reg) for reg in ids if is_identity(reg)}
        seen = target.seen
        if seen and self.boots:
            names = tuple(readable(GUEST_REGISTERS, features))
            seen = run_guest(self._system, self._number, _without_sve(features), names)
            seen = target.seen_levelled(seen, registers)
        return target.replace(
            number=self._number,
            features=features,
            # QEMU leaves out what lies beyond (virt_set_high_memmap).
            ipa_bits=min(target.ipa_bits, self.ipa_bits),
            sve_lengths=lengths or sve_lengths(registers.get("SVE_VLS", 0)),
            seen=seen,
            registers=registers,
            reglist=pack_ids(ids),
            level=target.level_with(registers),
        )

    def _is_as_recorded(self, target: Target) -> bool:
        """Whether the vCPU that has been made says already that nothing changes. Registers that are
        loaded with the values that they have do not change others.
        """
        return (
            (target.number, target.features, target.registers, target.reglist)
            == (self._number, self.features_for(target), self.registers, self.reglist)
            and target.ipa_bits <= self.ipa_bits
            and (not self.boots or target.seen == self.seen)
        )

    def close(self) -> None:
        if self._scratch is not None:
            self._scratch.close()
        if self._allowed is not None:
            os.sched_setaffinity(0, self._allowed)


def rehearse(
    target: Target,
    system: System,
    machines: tuple[str, ...] = (),
    cpus: tuple[int, ...] = (),
    boots: bool = False,
) -> list[Finding]:
    """The findings of a target against this host.

    Args:
        machines: machine types of the local QEMU; empty leaves that question to libvirt, which asks
            it first.
        cpus: those that the guest is pinned to, whose answers may be their own (before Linux 6.6);
            empty where all are alike.
        boots: the guest boots here; otherwise it arrives.

    Raises:
        KvmarmError: /dev/kvm fails in a way that says nothing about the target.
    """
    with KernelOffer(target, system, machines, cpus, boots) as offer:
        return judge(target, offer)


def renewed(target: Target, system: System, arrived: bool, cpus: tuple[int, ...] = ()) -> Target:
    """What a guest has on this host, once it runs here: the target that a true record holds.

    Args:
        target: as recorded.
        arrived: it has come with its state, which QEMU loads into a vCPU of this kernel: the
            recorded registers have the values that this kernel shows once they are loaded, those
            that only this kernel lists have its own, and QEMU will save all of them
            (kvm_arm_init_cpreg_list, write_list_to_kvmstate). What the guest read when it booted
            stays as it is. False: it has booted here, and everything is this host's.
        cpus: as for `rehearse`.

    Raises:
        KvmarmError: no such vCPU is made here, or /dev/kvm fails.
    """
    key = (repr(target), arrived, cpus)  # many guests have the same
    if key not in system.answers:
        with KernelOffer(target, system, cpus=cpus, boots=not arrived) as offer:
            system.answers[key] = offer.renewed(target)
    answer: Target = system.answers[key]
    return answer


def _level(vcpu: VCPU, target: Target) -> None:
    """Do what libkvmarm-level does. The registers show what is not taken, or does not stay."""
    if target.level is None:
        return
    from .registers.rules import is_reset, kernel_version

    version = kernel_version(os.uname().release)
    for name, value in target.levelled.items():
        if not is_reset(name, version):
            _push(vcpu, name, value)


def _listed(vcpu: VCPU, target: Target) -> list[int]:
    """The registers that QEMU is told of."""
    left_out = [id_of(name) for name in target.level.left_out] if target.level else []
    return [reg for reg in vcpu.reg_list() if reg not in left_out]


def _push(vcpu: VCPU, name: str, value: int) -> None:
    """Load a register as QEMU does. One that is not there, or not taken, has been judged before."""
    try:
        vcpu.set(id_of(name), value)
    except (KvmError, OverflowError) as error:
        if isinstance(error, KvmError) and error.passing:
            raise


def _keep_to(cpus: tuple[int, ...]) -> set[int]:
    """Have this thread run on these CPUs only, and return those that it could run on before.

    Where libvirt's services may not run there (AllowedCPUs= of systemd), guests still may, and
    other CPUs have to answer: what they say differs only on old kernels, and then refuses.
    """
    allowed = os.sched_getaffinity(0)
    try:  # noqa: SIM105  # hook/__init__.py says why not contextlib
        os.sched_setaffinity(0, cpus)
    except OSError:
        pass
    return allowed


def _without_sve(features: tuple[str, ...]) -> tuple[str, ...]:
    """The scratch guest reads the same without SVE, which would have to be finalised."""
    return tuple(feature for feature in features if feature in ("psci_0_2", *PMU.bits))
