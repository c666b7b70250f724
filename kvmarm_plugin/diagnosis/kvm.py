# SPDX-License-Identifier: LGPL-2.1-or-later
"""What makes guests: KVM, QEMU, the CPUs; and what kvmarm itself needs."""

from __future__ import annotations

import sys

from .. import __version__
from ..basics.errors import KvmarmError
from ..basics.untrusted import shown
from ..host.packages import how_to_install
from ..kvm.device import System
from ..model.features import PMU, SVE
from ..model.vcpu import KVM_ARCHITECTURES
from .host import BAD, OK, UNKNOWN, Line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..model.profile import Cluster
    from .host import Host

_OLDEST_PYTHON = (3, 9)
# Module → its package, by the names of distributions, and what needs it.
_MODULES = {
    "yaml": (
        "python3-yaml (Fedora and RHEL: python3-pyyaml)",
        "policies, pools and the names of CPUs",
    ),
    "lxml": ("python3-lxml", "--validate"),
    "libvirt": ("python3-libvirt", "all that talks to libvirt"),
}
_OF_OTHERS = ("KVM", "QEMU", "libvirt")  # parts of a profile's problems that other checks tell


def check_python(host: Host) -> Iterator[Line]:
    """kvmarm, its interpreter and the modules that it needs."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < _OLDEST_PYTHON:
        yield Line(BAD, f"Python {version} is too old", "install Python 3.9 or newer")
    else:
        yield Line(OK, f"kvmarm {__version__} on Python {version}")
    for module, (package, use) in _MODULES.items():
        if not host.has_module(module):
            yield Line(
                BAD,
                f"Python has no module {module}, which is for {use}",
                how_to_install(package),
            )


def check_kvm(host: Host) -> Iterator[Line]:
    """/dev/kvm."""
    if host.architecture not in KVM_ARCHITECTURES:
        yield Line(BAD, f"this host is {shown(host.architecture, 40)}: KVM on ARM is not here")
        return
    try:
        with System(host.kvm, str(host.path("/dev/kvm"))):
            yield Line(OK, f"/dev/kvm can be used, on Linux {shown(host.kernel, 60)}")
    except KvmarmError as error:
        yield Line(BAD, error.message, error.hint)


def check_vcpus(host: Host) -> Iterator[Line]:
    """Whether KVM makes a vCPU on each kind of CPU, and what else could not be measured."""
    if host.architecture not in KVM_ARCHITECTURES:
        yield Line(UNKNOWN, "there is no KVM on ARM to ask")
        return
    profile = host.profile()
    for cluster in profile.clusters:
        yield Line(OK, _vcpu_text(cluster))
    problems = [problem for problem in profile.problems if problem.part not in _OF_OTHERS]
    for problem in problems:
        yield Line(BAD, problem.reason, problem.hint)
    if not profile.clusters and not problems:
        yield Line(BAD, "KVM makes no vCPU here", "see the line about KVM")


def _vcpu_text(cluster: Cluster) -> str:
    name = f"{cluster.implementer} {cluster.part}".strip() or f"MIDR {cluster.midr:#x}"
    sets = [vcpu.features for vcpu in cluster.vcpus]
    offered = [
        feature.name for feature in (PMU, SVE) if any(feature.is_in(features) for features in sets)
    ]
    words = f" with {' and '.join(offered)}" if offered else ""
    return f"KVM makes a vCPU{words} on CPUs {cluster.cpus} ({shown(name, 60)})"


def check_qemu(host: Host) -> Iterator[Line]:
    """What the distribution's emulator can do."""
    profile = host.profile()
    qemu = profile.qemu
    if qemu is None:
        problems = [problem for problem in profile.problems if problem.part == "QEMU"]
        for problem in problems:
            yield Line(BAD, problem.message, problem.hint)
        if not problems:
            yield Line(UNKNOWN, "QEMU was not asked")
        return
    what = f"QEMU {shown(qemu.version, 40)} ({shown(qemu.binary, 120)})"
    if not qemu.machines:
        yield Line(BAD, f"{what} has no virt machine type", "install qemu-system-arm")
    elif not qemu.has_kvm(profile.kvm_architecture):
        yield Line(BAD, f"{what} has no KVM for 32-bit hosts", "install QEMU 5.1 or older")
    elif not qemu.has_model("host", profile.kvm_architecture):
        yield Line(
            BAD,
            f'{what} has no CPU "host" under KVM',
            "see the line about KVM; or install a QEMU that is built with KVM",
        )
    else:
        older = len(qemu.machines) - 1
        yield Line(OK, f'{what}: CPU "host" under KVM, {qemu.machines[0]} and {older} older')


def check_clusters(host: Host) -> Iterator[Line]:
    """CPUs of several kinds, between which a guest must not move."""
    clusters = host.profile().clusters
    if not clusters:
        yield Line(UNKNOWN, "which kinds of CPUs there are could not be measured")
    elif len(clusters) == 1:
        yield Line(OK, "all CPUs are of one kind")
    elif host.policy().cluster == "all":
        yield Line(
            BAD,
            f"guests that are resolved here run on CPUs of {len(clusters)} kinds (cluster: all),"
            " and what they read of their CPU depends on where they are",
            "write cluster: biggest in /etc/kvmarm/policy.yaml, then: kvmarm refresh --all",
        )
    else:
        yield Line(OK, f"of {len(clusters)} kinds of CPUs a guest is kept to one")
