# SPDX-License-Identifier: LGPL-2.1-or-later
"""host/: QEMU from a program that plays it, and whole probes of played hosts.

The probe of a host that is made from a recorded profile gives that profile back; what is missing
becomes a line, not a crash.
"""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvmarm_plugin.host import level_library, qemu, selinux
from kvmarm_plugin.host.probe import Host, probe
from kvmarm_plugin.host.qemu import QemuError
from kvmarm_plugin.host.selinux import SELinux
from kvmarm_plugin.kvm import scratch, uapi
from kvmarm_plugin.model import profile_json
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.problem import Problem
from kvmarm_plugin.model.profile import Qemu
from kvmarm_plugin.registers.table import id_of
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import ResolveError
from tests.corpus import host, one_line

from .fakehost import Scheduler, numbers, write, write_cpu, write_emulator, write_host, write_online
from .fakekernel import ARM_FEATURE_BITS, FakeKernel, Made, kind
from .fakeselinux import FEDORA, RHEL9, FakeSELinux

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmarm_plugin.model.profile import HostProfile

_A53, _A72, _A57 = 0x410FD034, 0x410FD083, 0x411FD070
_RECORDED = sorted((Path(__file__).parent.parent / "hosts").glob("*.json"))


@pytest.fixture(autouse=True)
def _no_probe_lasts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short limits; and no emulator's watchdog may outlive its question, since it would keep the
    command from ending.
    """
    monkeypatch.setattr(qemu, "TIME_LIMIT", 5)
    monkeypatch.setattr(scratch, "GUEST_TIME_LIMIT", 0.05)
    before = set(threading.enumerate())
    yield
    watchdogs = [
        thread
        for thread in set(threading.enumerate()) - before
        if isinstance(thread, threading.Timer)
    ]
    for watchdog in watchdogs:
        assert watchdog.finished.is_set(), "an emulator's watchdog is still running"


# -- QEMU ----------------------------------------------------------------------------------------


def test_qemu_is_asked(tmp_path: Path) -> None:
    answer = qemu.ask(write_emulator(tmp_path / "qemu"))
    assert (answer.version, answer.machines, answer.aliases) == (
        "10.0.2",
        ("virt-10.0",),
        {"virt": "virt-10.0"},
    )
    assert answer.cpu_models == ("cortex-a57", "host")
    assert answer.host_properties == {"pauth": True}


def test_machines_are_ordered_by_age_not_by_letter(tmp_path: Path) -> None:
    made = Qemu(
        binary="",
        version="11.0.0",
        machines=("virt-2.6", "virt-9.2", "virt-10.0", "virt-rhel9.4.0"),
        aliases={"virt": "virt-10.0"},
        cpu_models=(),
        host_properties={},
    )
    assert qemu.ask(write_emulator(tmp_path / "qemu", made)).machines == (
        "virt-10.0",
        "virt-rhel9.4.0",
        "virt-9.2",
        "virt-2.6",
    )


def test_without_kvm_there_is_no_host_model_to_expand(tmp_path: Path) -> None:
    assert (
        qemu.ask(
            write_emulator(tmp_path / "qemu", without="query-cpu-model-expansion")
        ).host_properties
        == {}
    )


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ("dies", "ended during greeting: qemu: libfoo.so.1: cannot open"),
        ("dies in qmp_capabilities", "ended during qmp_capabilities: qemu: assertion failed"),
        ("dies in query-machines", "ended during query-machines: qemu: assertion failed"),
        ("dies in query-cpu-model-expansion", "ended during query-cpu-model-expansion"),
        ("babbles in query-version", "query-version: "),
    ],
)
def test_an_emulator_that_fails(tmp_path: Path, behaviour: str, says: str) -> None:
    binary = write_emulator(tmp_path / "qemu", behaviour=behaviour)
    with pytest.raises(QemuError) as caught:
        qemu.ask(binary)
    assert binary in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "command", ["qmp_capabilities", "query-machines", "query-cpu-model-expansion"]
)
def test_an_emulator_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(qemu, "TIME_LIMIT", 0.3)
    with pytest.raises(QemuError, match=f"ended during {command}: no answer in time"):
        qemu.ask(write_emulator(tmp_path / "qemu", behaviour=f"hangs in {command}"))


@pytest.mark.parametrize("command", ["query-version", "query-machines", "query-cpu-definitions"])
def test_an_emulator_that_refuses(tmp_path: Path, command: str) -> None:
    with pytest.raises(QemuError, match=f"{command}: no {command} here"):
        qemu.ask(write_emulator(tmp_path / "qemu", without=command))


def test_an_emulator_that_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "qemu").write_bytes(b"\x7fELF and nothing more")
    (tmp_path / "qemu").chmod(0o755)
    for path in (tmp_path / "qemu", tmp_path / "missing", tmp_path):
        with pytest.raises(QemuError, match=f"cannot run {path}: "):
            qemu.ask(str(path))


@pytest.mark.parametrize("architecture", ["aarch64", "armv7l", "riscv64"])
def test_an_emulator_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(QemuError, match=r"QEMU is not installed \(hint: install qemu-system-arm"):
        qemu.find_binary(architecture)


# -- whole probes --------------------------------------------------------------------------------


class Lab:
    """A host to probe, with one kind of CPU unless told otherwise."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for cpu in range(2):
            write_cpu(root, cpu, _A57, 0, 1024)
        write_online(root, "0-1")
        write(root / "proc/cmdline", "root=/dev/vda arm64.nosve quiet kvm-arm.mode=nvhe\n")
        write(root / "sys/class/dmi/id/product_name", "Made-up Server\n")
        self.root = root
        self.scheduler = Scheduler(monkeypatch, range(2))
        registers = {id_of("MIDR_EL1"): _A57, id_of("PSCI_VERSION"): 0x10001}
        guest = {
            "CNTFRQ_EL0": 25_000_000,
            "DCZID_EL0": 4,
            "CTR_EL0": 0x8444C004,
            "MIDR_EL1": _A57,
            "PMCR_EL0": 0x3000,
        }
        self.made = made = kind(
            5,
            ("psci_0_2", "pmu_v3"),
            ("psci_0_2",),
            registers=registers,
            guest=guest,
            masks={id_of("CTR_EL0"): 31},
        )
        capabilities = {"ARM_PSCI_0_2": 1, "ARM_PMU_V3": 1, "ARM_VM_IPA_SIZE": 44}
        self.kernel = FakeKernel({0: made, 1: made}, capabilities)
        self.emulator = write_emulator(root / "qemu")

    def probe(self, architecture: str = "aarch64") -> HostProfile:
        host = Host(self.root, self.kernel, architecture, "6.12.0", "lab")
        result = probe(host, self.emulator)
        assert not self.kernel.handles, "a file descriptor was left open"
        assert self.scheduler.allowed == self.scheduler.initial, (
            "the thread was left on one cluster"
        )
        # Whatever happened, the result can be written and read again.
        assert profile_json.loads(profile_json.dumps(result)) == result
        return result


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


def _problems(profile: HostProfile) -> str:
    return "\n".join(str(problem) for problem in profile.problems if problem.part != "libvirt")


def test_a_whole_probe(lab: Lab) -> None:
    profile = lab.probe()
    assert _problems(profile) == ""
    assert (profile.name, profile.origin, profile.kernel, profile.ipa_bits) == (
        "lab",
        "measured",
        "6.12.0",
        44,
    )
    assert (profile.overrides, profile.platform) == (
        ("arm64.nosve", "kvm-arm.mode=nvhe"),
        "Made-up Server",
    )
    (cluster,) = profile.clusters
    assert (cluster.cpus, cluster.part, cluster.target) == ("0-1", "Cortex-A57", 5)
    assert [vcpu.features for vcpu in cluster.vcpus] == [("psci_0_2", "pmu_v3"), ("psci_0_2",)]
    assert cluster.vcpus[0].registers == {"MIDR_EL1": _A57, "PSCI_VERSION": 0x10001}
    assert cluster.seen["CNTFRQ_EL0"] == 25_000_000
    assert cluster.writable == {"CTR_EL0": 31}


def test_the_steps_are_told(lab: Lab) -> None:
    steps: list[str] = []
    probe(Host(lab.root, lab.kernel, "aarch64", "6.12.0", "lab"), lab.emulator, steps.append)
    assert [step.partition(":")[0] for step in steps] == ["QEMU", "cluster 0-1", "libvirt"]


@pytest.mark.parametrize("path", _RECORDED, ids=[path.stem for path in _RECORDED])
def test_a_recorded_host_gives_its_profile_back(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = profile_json.loads(path.read_text(encoding="utf-8"), path.name)
    if not recorded.clusters:
        pytest.skip("recorded without KVM")
    write_host(tmp_path, recorded)
    Scheduler(monkeypatch, [cpu for cluster in recorded.clusters for cpu in numbers(cluster.cpus)])
    kernel = FakeKernel.from_profile(recorded)
    emulator = (
        write_emulator(tmp_path / "qemu", recorded.qemu)
        if recorded.qemu
        else str(tmp_path / "missing")
    )
    measured = probe(
        Host(tmp_path, kernel, recorded.architecture, recorded.kernel, recorded.name), emulator
    )
    assert measured.clusters == recorded.clusters
    for name in (
        "name",
        "architecture",
        "kernel",
        "overrides",
        "platform",
        "capabilities",
        "ipa_bits",
        "gic_versions",
        "cpu_features",
    ):
        assert getattr(measured, name) == getattr(recorded, name), name
    if recorded.qemu:
        assert measured.qemu
        for name in ("version", "machines", "aliases", "cpu_models", "host_properties"):
            assert getattr(measured.qemu, name) == getattr(recorded.qemu, name), name
    assert not kernel.handles


def test_there_are_recorded_hosts() -> None:
    assert len(_RECORDED) >= 5, "tests/hosts/ has lost its profiles, and the test above its subject"


def test_each_cluster_is_measured_on_its_own_cpus(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RK3399-like: before Linux 6.6 the kernel answers for the CPU that the thread is on, and takes
    no other target there.
    """
    little = kind(
        4, ("psci_0_2",), registers={id_of("MIDR_EL1"): _A53}, guest={"CNTFRQ_EL0": 24_000_000}
    )
    big = kind(
        5, ("psci_0_2",), registers={id_of("MIDR_EL1"): _A72}, guest={"CNTFRQ_EL0": 24_000_000}
    )
    for cpu in range(6):
        write_cpu(lab.root, cpu, _A53 if cpu < 4 else _A72, 0, 485 if cpu < 4 else 1024)
    write_online(lab.root, "0-5")
    lab.scheduler = Scheduler(monkeypatch, range(6))
    lab.kernel = FakeKernel(
        {cpu: little if cpu < 4 else big for cpu in range(6)}, {"ARM_PSCI_0_2": 1}
    )
    profile = lab.probe()
    assert lab.scheduler.moves[:2] == [{0, 1, 2, 3}, {4, 5}]
    assert [(c.cpus, c.target, c.vcpus[0].registers["MIDR_EL1"]) for c in profile.clusters] == [
        ("0-3", 4, _A53),
        ("4-5", 5, _A72),
    ]


def test_a_cpuset_that_forbids_a_cluster(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cpu(lab.root, 2, _A72)
    write_online(lab.root, "0-2")
    profile = lab.probe()
    assert [cluster.cpus for cluster in profile.clusters] == ["0-1"]
    says = "cluster 2: this process may not run there: Invalid argument"
    assert _problems(profile).startswith(says)
    (problem,) = profile.unmeasured
    assert (problem.cpus, problem.hint != "") == ("2", True)


def test_an_affinity_that_leaves_a_cluster_out(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As isolcpus= gives to all processes: guests are pinned there all the same."""
    write_cpu(lab.root, 2, _A72)
    write_online(lab.root, "0-2")
    lab.scheduler = Scheduler(monkeypatch, (0, 1), cpuset=range(3))
    little = kind(4, ("psci_0_2",), registers={id_of("MIDR_EL1"): _A53})
    lab.kernel = FakeKernel(dict.fromkeys(range(3), little), {"ARM_PSCI_0_2": 1})
    profile = lab.probe()
    assert [cluster.cpus for cluster in profile.clusters] == ["0-1", "2"]
    assert not profile.unmeasured
    assert lab.scheduler.allowed == {0, 1}


def test_cpus_of_an_unknown_kind(lab: Lab) -> None:
    """They are no cluster: guests must not be resolved as if all CPUs were like the others."""
    write_online(lab.root, "0-3")
    profile = lab.probe()
    assert [cluster.cpus for cluster in profile.clusters] == ["0-1"]
    says = "CPUs of an unknown kind: neither sysfs nor /proc/cpuinfo tells MIDR_EL1 of 2-3"
    assert _problems(profile).startswith(says)
    with pytest.raises(ResolveError, match=f"host lab has {says}") as caught:
        Resolver(profile, Policy())
    assert caught.value.hint == "run Linux 4.8 or newer there, or take these CPUs offline"


def test_a_cpu_that_goes_away_meanwhile(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int, cpus: object) -> None:
        if cpus != lab.scheduler.initial and set(cpus) != lab.scheduler.initial:  # type: ignore[call-overload]
            raise OSError(errno.EINVAL, "Invalid argument")

    write_cpu(lab.root, 1, _A72)
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    profile = lab.probe()
    assert profile.clusters == ()
    assert "cluster 0: " in _problems(profile)
    assert "cluster 1: " in _problems(profile)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOENT, "KVM: /dev/kvm does not exist"),
        (errno.EACCES, "KVM: no permission to open /dev/kvm"),
    ],
)
def test_no_kvm(lab: Lab, code: int, says: str) -> None:
    lab.kernel.open_errno = code
    profile = lab.probe()
    assert says in _problems(profile)
    assert (profile.clusters, profile.capabilities, profile.ipa_bits) == ((), {}, 0)
    assert profile.qemu is not None


@pytest.mark.parametrize("architecture", ["x86_64", "riscv64"])
def test_a_host_that_is_not_arm(lab: Lab, architecture: str) -> None:
    profile = lab.probe(architecture)
    assert f"this host is {architecture}: KVM on ARM needs" in _problems(profile)
    assert not lab.kernel.calls, "another architecture's KVM is not to be asked"


def test_no_qemu(lab: Lab) -> None:
    lab.emulator = str(lab.root / "missing")
    profile = lab.probe()
    assert profile.qemu is None
    assert "QEMU: cannot run" in _problems(profile)
    assert len(profile.clusters) == 1


@pytest.mark.parametrize("behaviour", ["dies", "babbles in query-version"])
def test_a_broken_qemu(lab: Lab, behaviour: str) -> None:
    lab.emulator = write_emulator(lab.root / "qemu", behaviour=behaviour)
    profile = lab.probe()
    assert profile.qemu is None
    assert _problems(profile).startswith("QEMU: ")
    assert len(profile.clusters) == 1


def test_no_cpus(lab: Lab) -> None:
    write_online(lab.root, "")
    assert "CPU clusters: neither sysfs nor /proc/cpuinfo tells MIDR_EL1" in _problems(lab.probe())


def test_kvm_that_makes_no_vcpu(lab: Lab) -> None:
    lab.kernel.failures["KVM_ARM_VCPU_INIT"] = errno.EINVAL
    profile = lab.probe()
    assert profile.clusters == ()
    assert _problems(profile) == "cluster 0-1: KVM makes no vCPU of target 5"


def test_a_scratch_guest_that_does_not_end_is_only_a_problem(lab: Lab) -> None:
    del lab.made.guest["DCZID_EL0"]
    profile = lab.probe()
    assert profile.clusters[0].seen == {}
    assert "cluster 0-1, scratch guest: the scratch guest did not end within" in _problems(profile)


def test_kernels_without_what_came_later(lab: Lab) -> None:
    """Linux 3.12: no preferred target, no IPA size, no masks, no PMU, PSCI 0.1."""
    old = kind(2, (), registers={id_of("MIDR_EL1"): _A57}, guest={"CNTFRQ_EL0": 100_000_000})
    old.guest.update(dict.fromkeys(("DCZID_EL0", "CTR_EL0", "MIDR_EL1"), 4))
    old.preferred = OSError(errno.EINVAL, "")
    lab.kernel = FakeKernel({0: old, 1: old}, {}, gics=(2,))
    profile = lab.probe()
    (cluster,) = profile.clusters
    assert (cluster.target, cluster.vcpus[0].features, cluster.writable) == (2, (), None)
    assert (profile.ipa_bits, profile.gic_versions, profile.capabilities) == (40, (2,), {})
    assert set(cluster.seen) == {"CNTFRQ_EL0", "DCZID_EL0", "CTR_EL0", "MIDR_EL1"}


def test_what_came_with_the_second_schema(lab: Lab) -> None:
    profile = lab.probe()
    problems = profile.problems
    assert (profile.gicd_iidr, profile.unknown) == (0x4B00243B, ())
    assert profile.page_size == os.sysconf("SC_PAGESIZE")
    assert '"gicd_iidr": "0x4b00243b"' in profile_json.dumps(profile)
    assert profile_json.loads(profile_json.dumps(profile)) == profile
    lab.kernel.gicd_iidr = None
    profile = lab.probe()
    assert (profile.gicd_iidr, profile.unknown) == (None, ("gicd_iidr",))
    assert profile.problems == problems
    lab.kernel.gics = ()
    profile = lab.probe()
    assert (profile.gicd_iidr, profile.unknown) == (None, ())


@pytest.mark.parametrize(
    ("size", "unknown"), [(16384, ()), (65536, ()), (8192, ("page_size",)), (1, ("page_size",))]
)
def test_page_sizes(lab: Lab, size: int, unknown: tuple[str, ...]) -> None:
    kernel = lab.kernel
    profile = probe(Host(lab.root, kernel, "aarch64", "6.12.0", "alpha", size), lab.emulator)
    assert (profile.page_size, profile.unknown) == (0 if unknown else size, unknown)


def test_a_32_bit_host(lab: Lab) -> None:
    vcpu = {Made(0, frozenset({"psci_0_2"})): {0x40200000000F0000: 0x412FC0F4}}
    old = kind()
    old.vcpus, old.preferred = vcpu, 0
    lab.kernel = FakeKernel(
        {0: old, 1: old}, {"ARM_PSCI_0_2": 1, "ARM_PMU_V3": 1, "ARM_SVE": 1}, (2,), ARM_FEATURE_BITS
    )
    profile = lab.probe("armv7l")
    (cluster,) = profile.clusters
    assert (cluster.target, cluster.seen) == (0, {})
    assert [vcpu.features for vcpu in cluster.vcpus] == [("psci_0_2",)]


# -- whatever fails, there is a profile ----------------------------------------------------------


@pytest.mark.parametrize("name", sorted(uapi.IOCTLS))
@pytest.mark.parametrize("code", [errno.EMFILE, errno.EINVAL, errno.EIO])
def test_an_ioctl_that_always_fails(lab: Lab, name: str, code: int) -> None:
    lab.kernel.failures[name] = code
    profile = lab.probe()
    optional = name in (
        "KVM_ARM_VCPU_FINALIZE",
        "KVM_CREATE_DEVICE",
        "KVM_CREATE_IRQCHIP",
        "KVM_ARM_PREFERRED_TARGET",
        "KVM_ARM_GET_REG_WRITABLE_MASKS",
        "KVM_ENABLE_CAP",  # for levelled guests only
        "KVM_GET_DEVICE_ATTR",  # its answer is named as unknown
    )
    assert optional or _problems(profile), f"{name} failed and nobody was told"


@pytest.mark.parametrize("call", range(0, 60, 4))
def test_an_ioctl_that_fails_once(lab: Lab, call: int) -> None:
    lab.kernel.fail_call = (call, errno.ENOMEM)
    lab.probe()  # which has its own assertions
    assert len(lab.kernel.calls) > call, "so many calls are not made: the failure was none"


# -- whatever the host says of itself, the profile can be read -----------------------------------

_STRANGE = (
    *(
        b"",
        b"\x1b[2J\x1b]0;owned\x07",
        b"a\nb\r\nc",
        b"\xff\xfe\xc3",
        b"\x00" * 5000,
        b"x" * 100_000,
        "\u202e\u2028\x85é".encode(),
    ),
    *(
        b"9" * 100_000,
        b"-1",
        b"08",
        b"0x",
        b"+1",
        b"1_0",
        "\u0661".encode(),
        b"0-99999999999",
        b"0-3,^1",
        b"^1",
        b"0-16383",
        b"1e9",
        b"0b1",
        b" 1 ",
    ),
)
# Files that are read without regard to each other, and what is in front of and behind what is
# strange in them.
_FILES = (
    {
        "sys/firmware/devicetree/base/model": (b"", b""),
        "proc/cmdline": (b"arm64.", b""),
        "usr/share/libvirt/cpu_map/arm_features.xml": (b"<feature name='sve", b"'/>"),
        "sys/devices/system/cpu/cpu0/regs/identification/revidr_el1": (b"", b""),
        "sys/devices/system/cpu/cpu0/cpu_capacity": (b"", b""),
    },
    {
        "sys/class/dmi/id/product_name": (b"", b""),
        "proc/cpuinfo": (b"", b""),
        "usr/share/libvirt/cpu_map/arm_features.xml": (b"", b""),
        "sys/devices/system/cpu/cpu0/regs/identification/midr_el1": (b"", b""),
    },
    {"proc/cmdline": (b"", b""), "sys/devices/system/cpu/online": (b"", b"")},
)


@pytest.mark.parametrize("strange", _STRANGE, ids=lambda text: repr(text[:12]))
@pytest.mark.parametrize("paths", _FILES, ids=["kind", "identity", "online"])
def test_files_may_hold_anything(
    lab: Lab, paths: dict[str, tuple[bytes, bytes]], strange: bytes
) -> None:
    for path, (before, behind) in paths.items():
        (lab.root / path).parent.mkdir(parents=True, exist_ok=True)
        (lab.root / path).write_bytes(before + strange + behind)
    lab.probe()  # which reads what it has written


@pytest.mark.parametrize(
    "strange",
    [
        "\x1b[2J\nx",
        "x" * 1000,
        "\udcff",
        "\u2028",
        "",
        "6.12.0\x07",
        "6.12.0 " + "y" * 500,
        "9" * 5000 + ".1",
    ],
)
def test_names_may_be_anything(lab: Lab, strange: str) -> None:
    for here in (
        Host(lab.root, lab.kernel, "aarch64", strange or "x", "lab"),
        Host(lab.root, lab.kernel, "aarch64", "6.12.0", strange),
    ):
        made = probe(here, lab.emulator)
        assert profile_json.loads(profile_json.dumps(made)) == made
    made = probe(Host(lab.root, lab.kernel, strange or "x", "6.12.0", "lab"), lab.emulator)
    assert profile_json.loads(profile_json.dumps(made)) == made


def test_a_release_that_is_no_version_is_told(lab: Lab) -> None:
    made = probe(Host(lab.root, lab.kernel, "aarch64", "six\x1b", "lab"), lab.emulator)
    assert made.kernel == "0.0"
    assert Problem("kernel", "its release is no version: six\\x1b") in made.problems


@pytest.mark.parametrize("bits", [32, 64, 65, 1 << 30])
def test_an_address_space_of_any_size(lab: Lab, bits: int) -> None:
    lab.kernel.answers[uapi.CAPABILITIES["ARM_VM_IPA_SIZE"]] = bits
    assert 32 <= lab.probe().ipa_bits <= 64


def test_a_target_that_is_not_known_is_told(lab: Lab) -> None:
    lab.made.preferred = 77
    assert "KVM prefers target 77, which is not known here" in _problems(lab.probe())


def test_clusters_without_end_are_told(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in range(40):
        write_cpu(lab.root, cpu, _A57, cpu)
    write_online(lab.root, "0-39")
    lab.scheduler = Scheduler(monkeypatch, range(40))
    lab.kernel = FakeKernel(dict.fromkeys(range(40), lab.made), {"ARM_PSCI_0_2": 1})
    profile = lab.probe()
    assert len(profile.clusters) == 16
    assert "of 40 the first 16 are here" in _problems(profile)
    assert [problem.cpus for problem in profile.unmeasured] == ["16-39"]


@pytest.mark.parametrize(
    "version", ["libvirtd (libvirt) \x1b[2J9.0.0", "\udcff", "", "x" * 100_000, "a\u2028b"]
)
def test_libvirt_may_say_anything(lab: Lab, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    answer = subprocess.CompletedProcess([], 0, version.encode("utf-8", "surrogateescape"), b"")
    monkeypatch.setattr(
        "kvmarm_plugin.host.probe.subprocess.run", lambda *_args, **_options: answer
    )
    assert lab.probe().libvirt is not None


# -- whatever the emulator answers ---------------------------------------------------------------

_ANSWERS: tuple[Any, ...] = (
    *(
        None,
        5,
        -1,
        1.5,
        True,
        "",
        "x",
        "\x1b[2J",
        "\ud800",
        "x" * 5000,
        [],
        [None],
        [[]],
        [{}],
        {},
        {"qemu": {}},
        {"qemu": None},
    ),
    *(
        {"qemu": {"major": "10", "minor": 0, "micro": 0}},
        {"qemu": {"major": 10**6, "minor": 0, "micro": 0}},
        [{"name": None}],
    ),
    *(
        {"qemu": {"major": 10, "minor": True, "micro": 0}},
        {"qemu": {"major": -1, "minor": 0, "micro": 0}},
        {"qemu": {"major": 1.5}},
    ),
    *(
        [{"name": 5}],
        [{"name": "virt-10.0'/><x"}],
        [{"name": "virt-10.0\n"}, {"name": "virt-1.0", "alias": "\x1b"}],
        [{"name": "virt-9", "alias": 5}],
    ),
    *(
        [{"name": "virt-1"}, {"name": "virt-1"}],
        [{"name": f"virt-{number}"} for number in range(3000)],
        [{"name": "virt-" + "9" * 500}],
    ),
    *(
        {"model": None},
        {"model": {}},
        {"model": {"props": []}},
        {"model": {"props": {"sve": [1]}}},
        {"model": {"props": {"\x1b": True}}},
    ),
    *(
        {"model": {"props": {"sve": 1.5}}},
        {"model": {"props": {"sve": None}}},
        {"model": {"props": {"a": 1 << 63, "b": "\n", "c": "x" * 9999}}},
    ),
)


@pytest.mark.parametrize(
    "command",
    ["query-version", "query-machines", "query-cpu-definitions", "query-cpu-model-expansion"],
)
def test_answers_of_any_shape(command: str, lab: Lab) -> None:
    """Each is a QemuError, or a part of a profile that can be read."""
    member = {"query-version": "qemu", "query-cpu-model-expansion": "model"}.get(command, "")
    for answer in _ANSWERS:
        if isinstance(answer, dict) and answer and member not in answer:
            continue  # another command's
        emulator = write_emulator(lab.root / "qemu", answers={command: answer})
        refusal: QemuError | None = None
        try:
            made = qemu.ask(emulator)
        except QemuError as error:
            refusal = error
        if refusal:
            _is_a_line(refusal)
        else:
            document = profile_json.dumps(host("trixie-max").replace(qemu=made))
            assert profile_json.loads(document).qemu == made


def _is_a_line(error: QemuError) -> None:
    assert one_line(error).isprintable()
    assert len(str(error)) < 700


@pytest.mark.parametrize(
    "line",
    [
        *(
            "5",
            "null",
            "[]",
            "{}",
            '"x"',
            "[" * 100_000,
            '{"error": null}',
            '{"error": "x"}',
            '{"error": {"desc": null}}',
            '{"error": {"desc": [1]}}',
        ),
        *(
            '{"error": {"desc": "\\u001b[2J\\n"}}',
            '{"return": ' + "9" * 100_000 + "}",
            "\xff",
            "\x1b[2J",
            '{"return": "' + "x" * (5 << 20) + '"}',
        ),
    ],
    ids=lambda line: line[:20],
)
def test_lines_of_any_kind(tmp_path: Path, line: str) -> None:
    with pytest.raises(QemuError) as caught:
        qemu.ask(write_emulator(tmp_path / "qemu", says=line))
    _is_a_line(caught.value)


def test_an_emulator_that_leaves_others_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script around it, of which the shell dies and the emulator keeps the pipes."""
    monkeypatch.setattr(qemu, "TIME_LIMIT", 0.3)
    script = tmp_path / "qemu"
    script.write_text("#!/bin/sh\nsleep 60 &\nsleep 60\n")
    script.chmod(0o755)
    start = time.monotonic()
    with pytest.raises(QemuError, match="ended during greeting: no answer in time"):
        qemu.ask(str(script))
    assert time.monotonic() - start < 10


def test_an_emulator_without_a_directory_is_the_one_in_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_emulator(tmp_path / "my-qemu")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("my-qemu", "./my-qemu"):
        assert qemu.ask(name).binary == str(tmp_path / "my-qemu")


@pytest.mark.parametrize(
    ("version", "told"),
    [("1", "1"), ("12", "12"), ("", ""), ("12345", ""), ("x", ""), ("-1", "")],
)
def test_the_library_s_version_is_what_it_says_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, told: str
) -> None:
    source, library = tmp_path / "a.c", tmp_path / "liba.so"
    source.write_text(f'const char kvmarm_level_version[] = "{version}";\n', encoding="utf-8")
    subprocess.run(["cc", "-shared", "-o", library, source], check=True)
    monkeypatch.setattr(level_library, "LIBRARY", str(library))
    assert level_library.installed_version() == told


def test_no_library_has_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "none.so", Path(__file__)):
        monkeypatch.setattr(level_library, "LIBRARY", str(path))
        assert level_library.installed_version() == ""


def test_a_profile_tells_of_the_library(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("", "1"):
        monkeypatch.setattr(level_library, "installed_version", lambda: version)  # noqa: B023
        assert lab.probe().level_library == version


def test_a_library_that_selinux_keeps_from_qemu_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(level_library, "installed_version", lambda: "1")
    policy = FakeSELinux(tmp_path, monkeypatch)
    monkeypatch.setattr(selinux, "SELinux", lambda: SELinux(tmp_path))
    assert level_library.usable_version() == ""
    policy.permissive = True
    assert level_library.usable_version() == "1"
    policy.permissive = False
    policy.off()
    assert level_library.usable_version() == "1"
    (tmp_path / "sys/fs/selinux/enforce").write_text("1")
    assert level_library.usable_version() == ""
    policy.rules = RHEL9
    assert level_library.usable_version() == "1"
    policy.rules = FEDORA
    (tmp_path / "etc/selinux/targeted/contexts/virtual_domain_context").unlink()
    assert level_library.usable_version() == "1", "nothing says that it is kept away"


@pytest.mark.parametrize(
    ("config", "policy"),
    [
        ("SELINUXTYPE=mls\n", "mls"),
        ("SELINUXTYPE=mls", "mls"),
        (" \tSELINUXTYPE= mls \t\x7f\r\n", "mls"),
        ("SelinuxType=mls\n", "mls"),
        ("SELINUXTYPE=targeted\nSELINUXTYPE=mls\n", "mls"),
        ("# comment\n" * 1000 + "SELINUXTYPE=mls\n", "mls"),
        ("SELINUXTYPE=mls\n#SELINUXTYPE=targeted\n", "mls"),
        ("SELINUXTYPE=mls\nSELINUXTYPE = targeted\n", "mls"),
        ("# \xe4\nSELINUXTYPE=mls\n", "mls"),
        ("#SELINUXTYPE=mls\n", "targeted"),
        ("", "targeted"),
        (None, "targeted"),
    ],
)
def test_selinux_s_policy_is_the_one_that_libselinux_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str | None, policy: str
) -> None:
    FakeSELinux(tmp_path, monkeypatch)
    directory = tmp_path / "etc/selinux"
    if config is None:
        (directory / "config").unlink()
    else:
        (directory / "config").write_bytes(config.encode("latin-1"))
    if policy != "targeted":
        (directory / "targeted").rename(directory / policy)
    assert SELinux(tmp_path).securing_qemu() == ["virtqemud"]
