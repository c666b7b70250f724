# SPDX-License-Identifier: LGPL-2.1-or-later
"""What QEMU does not start, although libvirt would tell it to."""

from __future__ import annotations

from ..basics.untrusted import shown
from ..model import board
from ..model.features import OFFERED_BY, PMU, PMU_OFF_FAILS_FROM
from ..model.profile import HostProfile, Qemu
from .forms import Form
from .wish import ResolveError, Wish


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


def _check_model(form: Form, profile: HostProfile, qemu: Qemu) -> None:
    if not qemu.has_kvm(profile.kvm_architecture):
        raise ResolveError(
            f"{profile.title} is 32-bit, and QEMU {shown(qemu.version, 40)} has no KVM for"
            " 32-bit hosts",
            "install QEMU 5.1 or older there, or use an aarch64 host",
        )
    if not qemu.has_model(form.model, profile.kvm_architecture):
        raise ResolveError(
            f"QEMU {shown(qemu.version, 40)} {profile.where} has no CPU"
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
            f"the domain says <pmu state='off'/>, KVM {profile.where} has no PMU, and QEMU"
            f" {shown(qemu.version, 40)} does not start a guest that says so",
            "remove <pmu>",
        )


def _check_vcpus(wish: Wish, machine: str, gic: int, profile: HostProfile, qemu: Qemu) -> None:
    most = board.most_vcpus(gic, machine, profile.ipa_bits, wish.memory, qemu.release)
    if gic == 2:
        newest = max(profile.gic_versions)
        why = "with GIC version 2"
        hint = f"write <gic version='{newest}'/>" if newest > 2 else "use a host with GIC version 3"
    elif most == board.MOST_BELOW_RAM:
        why = f"where KVM has {profile.ipa_bits} bits of guest addresses"
        hint = "use a host with more of them"
    else:
        why = f"on {machine}"
        hint = "use virt-3.0 or newer" if most < board.MOST_VCPUS else ""
    if wish.vcpus > most:
        raise ResolveError(
            f"the domain has {wish.vcpus} vCPUs, and QEMU starts up to {most} {why}"
            f" ({profile.title})",
            f"give it {most} at most" + (f", or {hint}" if hint else ""),
        )
