# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's own parts, as far as no host has to boot for it: seconds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from . import cpio, emulator, machine, registers, trace
from .errors import LabError
from .host import HostSpec

TRACE = """\
# tracer: nop
 qemu-system-aar-274     [001] .....    60.1: lab_vcpu_init: (kvm_arch_vcpu_ioctl+0x0/0x8) cmd=0x4020aeae target=5 features=0x8
       CPU 0/KVM-279     [000] .....    61.2: lab_vcpu_init: (kvm_arch_vcpu_ioctl+0x0/0x8) cmd=0x4020aeae target=5 features=0xc
"""


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (HostSpec(cpu="neoverse-n1,midr=0x413fd0c1"), "neoverse-n1,midr=0x413fd0c1"),
        (HostSpec(cpu="max"), "max,pauth-impdef=on"),
        (HostSpec(cpu="max,pauth=off"), "max,pauth=off"),
        (HostSpec(cpu="cortex-a57", cntfrq=25000000), "cortex-a57,cntfrq=25000000"),
    ],
)
def test_the_cpu_of_a_host(spec: HostSpec, expected: str) -> None:
    assert spec.qemu_cpu() == expected


def test_vcpu_inits_are_told_apart() -> None:
    probe, guest = trace.parse(TRACE)
    assert (probe.comm, probe.features, probe.is_guest) == ("qemu-system-aar", 8, False)
    assert (guest.comm, guest.pid, guest.target, guest.features, guest.is_guest) == ("CPU 0/KVM", 279, 5, 12, True)


def test_an_archive_is_what_cpio_unpacks(tmp_path: Path) -> None:
    if not shutil.which("cpio"):
        pytest.skip("cpio is not installed")
    packed = cpio.archive({"bin": cpio.DIRECTORY, "bin/run": b"odd", "link": "bin/run"})
    subprocess.run(["cpio", "--extract", "--quiet"], input=packed, cwd=tmp_path, check=True)
    assert (tmp_path / "link").read_bytes() == b"odd"
    assert (tmp_path / "bin/run").stat().st_mode & 0o777 == 0o755


def test_without_a_newer_emulator_the_lab_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_mirror() -> str:
        raise LabError("apt on this machine knows no Debian archive")

    monkeypatch.setenv("KVMARM_LAB_CACHE", str(tmp_path))
    monkeypatch.setattr(machine, "tool", lambda command: f"/usr/bin/{command}")
    monkeypatch.setattr(emulator, "_version", lambda command: (7, 2))
    monkeypatch.setattr(machine, "debian_mirror", no_mirror)
    assert emulator.path.__wrapped__() == "/usr/bin/qemu-system-aarch64"
    said = capsys.readouterr().err
    assert "knows no Debian archive" in said
    assert "going on with QEMU 7.2" in said


@pytest.mark.parametrize("model", ["cortex-a53", "neoverse-n1", "max"])
def test_the_register_reader_reads(tmp_path: Path, model: str) -> None:
    """On the emulator itself, with neither KVM nor Linux around it."""
    if not shutil.which("qemu-system-aarch64"):
        pytest.skip("qemu-system-aarch64 is not installed")
    kernel = tmp_path / "registers.img"
    kernel.write_bytes(registers.image())
    command = ["qemu-system-aarch64", "-M", "virt", "-m", "64", "-cpu", model, "-nodefaults", "-display", "none"]
    done = subprocess.run([*command, "-serial", "stdio", "-kernel", kernel], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.rstrip().endswith(registers.END)
    values = registers.parse_registers(done.stdout)
    assert len(values) == len(registers.ID_SPACE) + 2 * len(registers.NAMED)
    assert values["MIDR_EL1"] == {"cortex-a53": 0x410FD034, "neoverse-n1": 0x414FD0C1}.get(model, values["S3_0_C0_C0_0"])
    assert values["CNTFRQ_EL0"] == 62500000
