# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host profile, put together from the edges.

`probe` measures this host. It moves the calling thread to each cluster in turn and makes a scratch
vCPU there with every feature set that a policy can choose. What cannot be measured is one of the
profile's problems, never a crash. Whatever firmware, the kernel's command line, QEMU and libvirt
say of themselves, the profile can be read again.
"""

from __future__ import annotations

import functools
import itertools
import os
import platform
import re
import subprocess
import time
from pathlib import Path

from .. import __version__
from ..basics import cpulist
from ..basics.errors import KvmarmError
from ..basics.untrusted import shown
from ..kvm import uapi
from ..kvm.device import KvmError, System, SystemCalls
from ..kvm.scratch import ScratchVcpu, makes_vcpu, preferred_target, run_guest
from ..model.features import FEATURES, OFFERED_BY, PMU, SVE
from ..model.guest_registers import GUEST_REGISTERS, readable
from ..model.problem import UNKNOWN_CPUS, Problem
from ..model.profile import SINCE_2, Cluster, HostProfile, Qemu, Vcpu
from ..model.profile_shape import CPU_FEATURE, KERNEL, LINE, NAME, OVERRIDE, PAGE_SIZES
from ..model.target import sve_lengths
from ..model.vcpu import KVM_ARCHITECTURES, NAMED_MODELS, TARGETS, in_order
from ..registers.table import is_identity, name_of
from ..registers.text import pack_ids
from . import level_library
from . import qemu as qemu_edge
from .cpus import CpuCluster, find_capacity, find_clusters, name_part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

_MOST_CLUSTERS = 16
_LONGEST = (
    1 << 20
)  # characters of a file that are looked at; libvirt's CPU map has some ten thousand


class Host:
    """What `probe` measures, replaceable in a test.

    Attributes:
        architecture, name, kernel: as uname -m, -n and -r give them.
        root: where sys/ and proc/ are.
        kvm: the system calls to /dev/kvm.
        page_size: the kernel's, in bytes.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        kvm: SystemCalls | None = None,
        architecture: str = "",
        kernel: str = "",
        name: str = "",
        page_size: int = 0,
    ) -> None:
        self.page_size = page_size or os.sysconf("SC_PAGESIZE")
        self.root = root
        self.kvm = kvm
        self.architecture = architecture or platform.machine()
        self.kernel = kernel or platform.release()
        self.name = name or platform.node()


def probe(
    host: Host | None = None, qemu: str = "", step: Callable[[str], None] = lambda _: None
) -> HostProfile:
    """This host's profile.

    Args:
        host: what to measure; by default the machine this runs on.
        qemu: the emulator's path; by default the distribution's.
        step: called with a line for each step, for people who wait.
    """
    return _Probe(host or Host(), step).run(qemu)


class _Probe:
    def __init__(self, host: Host, step: Callable[[str], None]) -> None:
        self.host = host
        self.problems: list[Problem] = []
        self._step = step

    def run(self, qemu_binary: str) -> HostProfile:
        host = self.host
        page_size = host.page_size if host.page_size in PAGE_SIZES else 0
        qemu = self._timed("QEMU", lambda: self._qemu(qemu_binary))
        capabilities: dict[str, int] = {}
        gics: tuple[int, ...] = ()
        clusters: tuple[Cluster, ...] = ()
        gicd_iidr: int | None = None
        if not re.fullmatch(KERNEL, host.kernel):
            self._problem("kernel", f"its release is no version: {shown(host.kernel)}")
        if host.architecture not in KVM_ARCHITECTURES:
            self._problem(
                "KVM",
                f"this host is {host.architecture}: KVM on ARM needs aarch64 or armv7l",
            )
        else:
            system = self._or_problem(
                "KVM", lambda: System(host.kvm, architecture=KVM_ARCHITECTURES[host.architecture])
            )
            if system is not None:
                with system:
                    capabilities = (
                        self._or_problem("KVM capabilities", lambda: _capabilities(system)) or {}
                    )
                    gics = self._or_problem("virtual GICs", lambda: _gics(system)) or ()
                    clusters = self._clusters(system, capabilities, qemu)
                    gicd_iidr = _gicd_iidr(system, clusters, gics)
        return HostProfile(
            name=_line(host.name, NAME),
            origin="measured",
            made_by=f"kvmarm {__version__}",
            architecture=(
                host.architecture
                if re.fullmatch("[A-Za-z0-9_.-]{1,64}", host.architecture)
                else "unknown"
            ),
            kernel=_line(host.kernel, NAME) if re.fullmatch(KERNEL, host.kernel) else "0.0",
            overrides=_overrides(self._text("proc/cmdline")),
            platform=_line(
                self._text("sys/firmware/devicetree/base/model")
                or self._text("sys/class/dmi/id/product_name"),
                NAME,
            ),
            capabilities=capabilities,
            # Kernels without the capability (before 4.20) have 40 bits, or what the CPU has less
            # than that, and do not tell.
            ipa_bits=max(32, min(capabilities.get("ARM_VM_IPA_SIZE", 40), 64)) if clusters else 0,
            gic_versions=gics,
            clusters=clusters,
            qemu=qemu,
            libvirt=self._timed("libvirt", self._libvirt),
            cpu_features=_cpu_features(self._text("usr/share/libvirt/cpu_map/arm_features.xml")),
            problems=tuple(self.problems[:255]),
            page_size=page_size,
            gicd_iidr=gicd_iidr,
            level_library=level_library.usable_version() if clusters else "",
            unknown=tuple(
                part
                for part, is_known in zip(SINCE_2, (page_size, gicd_iidr is not None or not gics))
                if not is_known
            ),
        ).with_unknown()

    # -- KVM --------------------------------------------------------------------------------------

    def _clusters(
        self, system: System, capabilities: dict[str, int], qemu: Qemu | None
    ) -> tuple[Cluster, ...]:
        found = find_clusters(self.host.root)
        if not found:
            self._problem("CPU clusters", "neither sysfs nor /proc/cpuinfo tells MIDR_EL1")
        if len(found) > _MOST_CLUSTERS:
            left = sorted(cpu for cluster in found[_MOST_CLUSTERS:] for cpu in cluster.cpus)
            why = f"of {len(found)} the first {_MOST_CLUSTERS} are here"
            self._problem("CPU clusters", why, cpus=cpulist.write(tuple(left)))
        allowed = os.sched_getaffinity(0)
        clusters = []
        try:
            for cluster in found[:_MOST_CLUSTERS]:
                numbers = cpulist.write(cluster.cpus)
                title = f"cluster {numbers}"
                if cluster.midr is None:
                    self._problem(
                        UNKNOWN_CPUS,
                        f"neither sysfs nor /proc/cpuinfo tells MIDR_EL1 of {numbers}",
                        "run Linux 4.8 or newer there, or take these CPUs offline",
                        numbers,
                    )
                    continue
                measure = functools.partial(
                    self._cluster, cluster, cluster.midr, system, capabilities, qemu
                )
                measured = self._or_problem(
                    title, functools.partial(self._timed, title, measure), numbers
                )
                if measured is not None:
                    clusters.append(measured)
        finally:
            os.sched_setaffinity(0, allowed)
        return tuple(clusters)

    def _cluster(
        self,
        found: CpuCluster,
        midr: int,
        system: System,
        capabilities: dict[str, int],
        qemu: Qemu | None,
    ) -> Cluster:
        try:
            # Whatever affinity it was started with: isolcpus= leaves CPUs out that guests may use.
            # The kernel leaves out those that are not in the cpuset of this process.
            os.sched_setaffinity(0, found.cpus)
        except OSError as error:
            raise KvmarmError(
                f"this process may not run there: {error.strerror}",
                "probe as root, outside of any cpuset without these CPUs",
            ) from None
        title = f"cluster {cpulist.write(found.cpus)}"
        architecture = KVM_ARCHITECTURES[self.host.architecture]
        with system.create_vm() as vm:
            target = preferred_target(vm, architecture)
        if target not in TARGETS[architecture].values():
            raise KvmarmError(f"KVM prefers target {target}, which is not known here")
        models = _models_taken(system, architecture, target, capabilities, qemu)
        vcpus = [
            vcpu
            for number in dict.fromkeys((target, *models.values()))
            for features in _feature_sets(capabilities, architecture)
            if (vcpu := _measure(system, number, features)) is not None
        ]
        if not vcpus:
            raise KvmarmError(f"KVM makes no vCPU of target {target}")
        implementer, part = name_part(midr)
        with_sve = next((vcpu for vcpu in vcpus if SVE.is_in(vcpu.features)), None)
        return Cluster(
            cpus=cpulist.write(found.cpus),
            midr=midr,
            revidr=found.revidr,
            implementer=implementer,
            part=part,
            capacity=find_capacity(found.cpus, self.host.root),
            target=target,
            vcpus=tuple(vcpus),
            sve_lengths=sve_lengths(with_sve.registers.get("SVE_VLS", 0)) if with_sve else (),
            models=models,
            seen=self._seen(title, system, vcpus[0]) if architecture == "arm64" else {},
            writable=self._writable(system),
        )

    def _seen(self, title: str, system: System, base: Vcpu) -> dict[str, int]:
        names = tuple(readable(GUEST_REGISTERS, base.features))
        return (
            self._or_problem(
                f"{title}, scratch guest",
                lambda: run_guest(system, base.number, base.features, names),
            )
            or {}
        )

    def _writable(self, system: System) -> dict[str, int] | None:
        with system.create_vm() as vm:
            masks = vm.writable_masks()
        return (
            None
            if masks is None
            else {name_of(reg): mask for reg, mask in masks.items() if is_identity(reg)}
        )

    # -- the other edges --------------------------------------------------------------------------

    def _qemu(self, binary: str) -> Qemu | None:
        return self._or_problem(
            "QEMU", lambda: qemu_edge.ask(binary or qemu_edge.find_binary(self.host.architecture))
        )

    def _libvirt(self) -> str | None:
        for daemon in ("/usr/sbin/virtqemud", "/usr/sbin/libvirtd"):
            try:
                answer = subprocess.run(
                    [daemon, "--version"], capture_output=True, timeout=30, check=True
                )
            except (OSError, subprocess.SubprocessError):
                continue
            return _line((answer.stdout.decode(errors="replace").split() or [""])[-1], NAME)
        self._problem("libvirt", "neither virtqemud nor libvirtd is installed")
        return None

    # -- helpers ----------------------------------------------------------------------------------

    def _timed(self, what: str, measure: Callable[[], T]) -> T:
        start = time.monotonic()
        result = measure()
        self._step(f"{what}: {time.monotonic() - start:.2f} s")
        return result

    def _or_problem(self, what: str, measure: Callable[[], T], cpus: str = "") -> T | None:
        try:
            return measure()
        except KvmarmError as error:
            self._problem(what, error.message, error.hint, cpus)
        except OSError as error:
            self._problem(what, str(error), cpus=cpus)
        return None

    def _problem(self, part: str, message: str, hint: str = "", cpus: str = "") -> None:
        self.problems.append(
            Problem(_line(part, NAME), _line(message, LINE), _line(hint, LINE), cpus)
        )

    def _text(self, path: str) -> str:
        try:
            with (self.host.root / path).open(encoding="utf-8", errors="replace") as file:
                return file.read(_LONGEST).strip("\0\n ")
        except OSError:
            return ""


def _capabilities(system: System) -> dict[str, int]:
    return {name: answer for name in uapi.CAPABILITIES if (answer := system.check_extension(name))}


def _gics(system: System) -> tuple[int, ...]:
    with system.create_vm() as vm:
        return tuple(version for version in uapi.DEVICE_TYPE_ARM_VGIC if vm.has_gic(version))


def _gicd_iidr(system: System, clusters: tuple[Cluster, ...], gics: tuple[int, ...]) -> int | None:
    """GICD_IIDR of the virtual GIC of the newest version; None where no kernel tells it. Nothing
    depends on it, so that it is no problem.
    """
    if not gics or not clusters:
        return None
    base = clusters[0].vcpus[0]
    try:
        with ScratchVcpu(system, base.number, base.features) as vcpu:
            return vcpu.vm.gicd_iidr(max(gics))
    except KvmError:
        return None


def _feature_sets(capabilities: dict[str, int], architecture: str) -> list[tuple[str, ...]]:
    """Every set of vCPU features that a guest here could be given, the base first. Some are
    refused; the kernel is asked for each.

    PSCI 0.2 is QEMU's own choice wherever KVM has it (kvm_arch_init_vcpu, target/arm/kvm.c).
    """
    psci = ("psci_0_2",) if OFFERED_BY["psci_0_2"] in capabilities else ()
    offered = [
        feature
        for feature in FEATURES
        if architecture == "arm64" and capabilities.keys() >= {*feature.bits.values()}
    ]
    sets = [
        in_order((*psci, *(bit for feature in chosen for bit in feature.bits)))
        for size in range(len(offered) + 1)
        for chosen in itertools.combinations(offered, size)
    ]
    base = in_order((*psci, *(PMU.bits if PMU in offered else ())))
    return [base, *(features for features in sets if features != base)]


def _models_taken(
    system: System, architecture: str, target: int, capabilities: dict[str, int], qemu: Qemu | None
) -> dict[str, int]:
    """QEMU's named models that KVM takes on this thread's CPU → their target number."""
    numbers = {model: number for model, (of, number) in NAMED_MODELS.items() if of == architecture}
    base = _feature_sets(capabilities, architecture)[0]
    return {
        model: number
        for model, number in numbers.items()
        if qemu is not None
        and model in qemu.cpu_models
        and (number == target or makes_vcpu(system, number, base))
    }


def _measure(system: System, number: int, features: tuple[str, ...]) -> Vcpu | None:
    """What a scratch vCPU of this target and these features is, or None if the kernel refuses to
    make it.
    """
    try:
        with ScratchVcpu(system, number, features) as vcpu:
            ids = vcpu.reg_list()
            registers = {name_of(reg): vcpu.get(reg) for reg in ids if is_identity(reg)}
            return Vcpu(number, features, registers, pack_ids(ids))
    except KvmError as error:
        if error.ioctl in ("KVM_ARM_VCPU_INIT", "KVM_ARM_VCPU_FINALIZE"):
            return None
        raise


def _cpu_features(cpu_map: str) -> tuple[str, ...]:
    """The names of libvirt's CPU map that QEMU's "host" has a property of: SVE's and, not yet in
    libvirt 9.0, pauth.
    """
    names = re.findall(r"""<feature name=['"]([a-z0-9]+)['"]""", cpu_map)
    return tuple(dict.fromkeys(name for name in names if re.fullmatch(CPU_FEATURE, name)))[:64]


def _overrides(command_line: str) -> tuple[str, ...]:
    """The words of a kernel command line that change what CPUs offer to guests
    (Documentation/admin-guide/kernel-parameters.txt)."""
    return tuple(
        _line(word, NAME) for word in command_line.split() if re.fullmatch(OVERRIDE, word)
    )[:255]


def _line(text: str, limit: int) -> str:
    """Foreign text as a profile has it. What does not print becomes longer when it is escaped."""
    return shown(shown(text, limit), limit)
