# SPDX-License-Identifier: LGPL-2.1-or-later
"""What QEMU does not start, although libvirt would tell it to."""

from __future__ import annotations

from ..basics.untrusted import shown
from ..model.features import OFFERED_BY, PMU, PMU_OFF_FAILS_FROM
from ..model.profile import HostProfile, Qemu
from .address_space import has_high_redistributors, leaves_out
from .forms import Form
from .wish import ResolveError, Wish

_NO_32_BIT_KVM_FROM = (5, 2)  # "Remove KVM support for 32-bit Arm hosts"
_EXPANDS_FROM = (4, 2)  # query-cpu-model-expansion, for ARM

_MOST_OF_GIC_2 = 8  # GIC_NCPU
_MOST_IN_FRONT = 123  # redistributors of a GICv3 below RAM (VIRT_GIC_REDIST, hw/arm/virt.c)
_MOST = 512  # mc->max_cpus (virt_machine_class_init)
_MOST_BEFORE_3_0 = 255  # the same of machine types up to virt-2.12


def check_start(
    wish: Wish, form: Form, machine: str, gic: int, profile: HostProfile, qemu: Qemu
) -> None:
    """Refuse a guest that QEMU on this host would not start.

    Args:
        form: in which its CPU is written.
        machine, gic: what it gets.

    Raises:
        ResolveError: with what to change.
    """
    _check_model(form, profile, qemu)
    _check_pmu_off(wish, form, profile, qemu)
    _check_vcpus(wish, machine, gic, profile, qemu)


def most_vcpus(profile: HostProfile) -> int:
    """How many vCPUs a guest of this host can have, on its newest GIC."""
    gic, qemu = max(profile.gic_versions, default=0), profile.qemu
    return _most_of_gic(gic, 0, profile.ipa_bits, qemu.release if qemu else (0, 0))


def _most_of_gic(gic: int, memory: int, ipa_bits: int, qemu: tuple[int, int]) -> int:
    """As many as a GIC can serve, of which version 3 has a redistributor for each, some in front of
    RAM and the others behind (machvirt_init, hw/arm/virt.c).
    """
    if gic == 2:
        return _MOST_OF_GIC_2
    is_cut = leaves_out(qemu) and not has_high_redistributors(memory, ipa_bits)
    return _MOST_IN_FRONT if is_cut else _MOST


def _check_model(form: Form, profile: HostProfile, qemu: Qemu) -> None:
    if profile.kvm_architecture == "arm" and qemu.release >= _NO_32_BIT_KVM_FROM:
        raise ResolveError(
            f"host {profile.name} is 32-bit, and QEMU {shown(qemu.version, 40)} has no KVM for"
            " 32-bit hosts",
            "install QEMU 5.1 or older there, or use an aarch64 host",
        )
    is_missing = qemu.cpu_models and form.model not in qemu.cpu_models
    # Without KVM there is no "host" to expand; see host.qemu.
    is_silent = not qemu.host_properties and profile.kvm_architecture == "arm64"
    if is_missing or (form.model == "host" and is_silent and qemu.release >= _EXPANDS_FROM):
        raise ResolveError(
            f"QEMU {shown(qemu.version, 40)} on host {profile.name} has no CPU"
            f" {shown(form.model, 60)!r} under KVM",
            "install a QEMU that is built with KVM there, and probe again",
        )


def _check_pmu_off(wish: Wish, form: Form, profile: HostProfile, qemu: Qemu) -> None:
    """<pmu state='off'/> is itself an error where "host" has no PMU to turn off. A named model
    always has the property.
    """
    has_pmu = OFFERED_BY[PMU.bit] in profile.capabilities  # what QEMU asks, whatever the cluster
    if wish.pmu is not False or form.model != "host" or has_pmu:
        return
    if qemu.release >= PMU_OFF_FAILS_FROM or (
        profile.kvm_architecture == "arm" and PMU.qemu not in qemu.host_properties
    ):
        raise ResolveError(
            f"the domain says <pmu state='off'/>, KVM on host {profile.name} has no PMU, and QEMU"
            f" {shown(qemu.version, 40)} does not start a guest that says so",
            "remove <pmu>",
        )


def _check_vcpus(wish: Wish, machine: str, gic: int, profile: HostProfile, qemu: Qemu) -> None:
    most = _most_of_gic(gic, wish.memory, profile.ipa_bits, qemu.release)
    if gic == 2:
        newest = max(profile.gic_versions)
        why = "with GIC version 2"
        hint = f"write <gic version='{newest}'/>" if newest > 2 else "use a host with GIC version 3"
    elif most < _MOST:
        why = f"where KVM has {profile.ipa_bits} bits of guest addresses"
        hint = "use a host with more of them"
    else:
        is_old = machine.startswith("virt-2.")
        most = _MOST_BEFORE_3_0 if is_old else _MOST
        why, hint = f"on {machine}", "use virt-3.0 or newer" if is_old else ""
    if wish.vcpus > most:
        raise ResolveError(
            f"the domain has {wish.vcpus} vCPUs, and QEMU starts up to {most} {why} (host"
            f" {profile.name})",
            f"give it {most} at most" + (f", or {hint}" if hint else ""),
        )
