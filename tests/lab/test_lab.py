# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab's own parts, as far as no host has to boot for it: seconds."""

from __future__ import annotations

import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from . import assembler, cpio, emulator, machine, registers, ticker, trace
from .errors import LabError, LabTimeout
from .host import HostSpec

TRACE = """\
# tracer: nop
 qemu-system-aar-274     [001] .....    60.1: lab_vcpu_init: \
(kvm_arch_vcpu_ioctl+0x0/0x8) cmd=0x4020aeae target=5 features=0x8
       CPU 0/KVM-279     [000] .....    61.2: lab_vcpu_init: \
(kvm_arch_vcpu_ioctl+0x0/0x8) cmd=0x4020aeae target=5 features=0xc
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
    assert (guest.comm, guest.pid, guest.target, guest.features, guest.is_guest) == (
        "CPU 0/KVM",
        279,
        5,
        12,
        True,
    )


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


def test_what_takes_too_long_is_named() -> None:
    with pytest.raises(LabTimeout, match=r"`sh echo begun; sleep 60` took more than 0.2 s:\nbegun"):
        machine.run("sh", "-c", "echo begun; sleep 60", timeout=0.2)


def test_what_is_made_once_is_waited_for(tmp_path: Path) -> None:
    order = []
    with ThreadPoolExecutor() as pool:

        def late() -> None:
            with machine.locked(tmp_path / "new/lock"):
                order.append("late")

        with machine.locked(tmp_path / "new/lock"):
            waiting = pool.submit(late)
            time.sleep(0.1)
            order.append("early")
        waiting.result(timeout=10)
    assert order == ["early", "late"]


def test_apt_knows_one_suite_and_none_of_the_hooks_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("apt-config"):
        pytest.skip("no apt here")
    machines = tmp_path / "machine.conf"
    machines.write_text(
        'DPkg::Pre-Install-Pkgs { "touch /harm"; };\nAcquire::http::Proxy'
        ' "http://proxy.example:3128";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(machines))
    monkeypatch.setattr(machine, "debian_mirror", lambda: "http://mirror.example/debian")
    options = machine.only_suite("sid", tmp_path / "apt", "arm64")
    known = machine.run("apt-config", *options, "dump").splitlines()
    assert 'Acquire::http::Proxy "http://proxy.example:3128";' in known
    assert 'APT::Architecture "arm64";' in known
    assert [line for line in known if line.startswith("DPkg")] == ['DPkg "";']
    assert (
        (tmp_path / "apt/sources.list")
        .read_text()
        .endswith("http://mirror.example/debian sid main\n")
    )


def emulate(kernel: Path, image: bytes, model: str, until: str) -> str:
    """What a bare-metal guest prints on the emulator itself, with neither KVM nor Linux around
    it.
    """
    if not shutil.which("qemu-system-aarch64"):
        pytest.skip("qemu-system-aarch64 is not installed")
    kernel.write_bytes(image)
    output = kernel.with_suffix(".out")
    options = [
        "-M",
        "virt,gic-version=3",
        "-m",
        "64",
        "-cpu",
        model,
        "-nodefaults",
        "-display",
        "none",
    ]
    command = ["qemu-system-aarch64", *options, "-serial", f"file:{output}", "-kernel", str(kernel)]
    with subprocess.Popen(command) as guest:
        try:
            deadline = time.monotonic() + 60
            while not (output.exists() and until in output.read_text()):
                assert time.monotonic() < deadline, (
                    f"no {until!r} in a minute, but: {output.read_text()}"
                )
                time.sleep(0.05)
        finally:
            guest.kill()
    return output.read_text()


@pytest.mark.parametrize("model", ["cortex-a53", "neoverse-n1", "max"])
def test_the_register_reader_reads(tmp_path: Path, model: str) -> None:
    values = registers.parse_registers(
        emulate(tmp_path / "registers.img", registers.image(), model, registers.END)
    )
    assert len(values) == len(registers.ID_SPACE) + 2 * len(registers.NAMED)
    assert values["MIDR_EL1"] == {"cortex-a53": 0x410FD034, "neoverse-n1": 0x414FD0C1}.get(
        model, values["S3_0_C0_C0_0"]
    )
    assert values["CNTFRQ_EL0"] == 62500000


def test_the_ticker_ticks_every_second(tmp_path: Path) -> None:
    start = time.monotonic()
    said = emulate(tmp_path / "ticker.img", ticker.image(), "neoverse-n1", "guest: tick 3\n")
    assert time.monotonic() - start >= 2
    assert said.splitlines()[:3] == [
        "guest: hello from inside",
        "guest: MIDR_EL1=0x00000000414fd0c1",
        "guest: tick 1",
    ]


def test_numbers_are_printed_in_decimal(tmp_path: Path) -> None:
    code = assembler.Assembler()
    assembler.begin(code)
    numbers = (0, 9, 10, 99, 100, 4294967295)
    for number in numbers:
        code.adr(assembler.TEXT, "text")
        code.mov(assembler.VALUE, number)
        code.bl("print_decimal")
    code.label("end")
    code.b("end")
    assembler.print_decimal(code)
    assembler.print_text(code)
    code.string("text", "number ")
    code.string("newline", "\r\n")
    said = emulate(tmp_path / "numbers.img", code.assemble(), "cortex-a53", f"{numbers[-1]}\n")
    assert said.splitlines() == [f"number {number}" for number in numbers]
