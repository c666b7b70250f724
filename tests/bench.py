# SPDX-License-Identifier: LGPL-2.1-or-later
"""What things cost, as medians and as ratios against a baseline of the same run: `make bench`.

Nothing here fails for being slow: times depend on the machine, ratios less so. The goal beside each ratio is what the project
wants to keep. The two sides of a pair are run alternately, so that a busy machine hurts both.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, NamedTuple

from lxml import etree

from kvmarm_plugin import hookfile, profile
from kvmarm_plugin.policy import Policy
from kvmarm_plugin.resolve import Resolver

PROJECT = Path(__file__).parents[1]
PROFILE = PROJECT / "tests/hosts/trixie-neoverse-n1.json"
TEMPLATE = PROJECT / "xml-templates/uefi.xml"
PYTHON = "/usr/bin/python3"


class Side(NamedTuple):
    """One side of a comparison: seconds of one run each, and the largest memory of any (bytes; 0 in process)."""

    seconds: list[float]
    memory: int

    def __str__(self) -> str:
        memory = f", {self.memory / 2**20:.0f} MiB" if self.memory else ""
        median = statistics.median(self.seconds)
        return f"{median * 1e6:.0f} µs" if median < 1e-3 else f"{median * 1e3:.1f} ms{memory}"


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        hook = _install_hook(Path(directory))
        domain = TEMPLATE.read_bytes()
        resolved = Resolver(profile.loads(PROFILE.read_text()), Policy()).resolve(domain)
        shell, python = ["/bin/sh", "-c", ":"], [PYTHON, "-I", "-S", "-c", "pass"]
        _compare(
            "hook, operation not ours", [hook, "guest", "started", "begin", "-"], "/bin/sh -c :", shell, domain, 200, "close to 1"
        )
        plain = domain.replace(b"host-model", b"host-passthrough")
        _compare(
            "hook, guest without a record",
            [hook, "guest", "prepare", "begin", "-"],
            "python3 -I -S -c pass",
            python,
            plain,
            100,
            "close to 1",
        )
        _compare(
            "kvmarm resolve, whole process",
            [PYTHON, "-m", "kvmarm_plugin", "resolve", "--host", str(PROFILE)],
            "virt-xml --edit --cpu … --print-xml",
            ["virt-xml", "-c", "test:///default", "--edit", "--cpu", "host-passthrough", "--print-xml"],
            domain,
            15,
            "at most 0.5",
        )
        _in_process("resolving in process", domain, 2.5)
        _in_process("the same, a domain that libvirt has formatted", _as_libvirt_writes(domain), 2.5)
        assert resolved != domain


def _compare(what: str, command: list[str], baseline_name: str, baseline: list[str], stdin: bytes, runs: int, goal: str) -> None:
    ours, theirs = _alternate([command, baseline], stdin, runs)
    _report(what, ours, baseline_name, theirs, goal)


def _alternate(commands: list[list[str]], stdin: bytes, runs: int) -> list[Side]:
    seconds: list[list[float]] = [[] for _ in commands]
    memory = [0] * len(commands)
    for _ in range(runs):
        for index, command in enumerate(commands):
            elapsed, peak = _run(command, stdin)
            seconds[index].append(elapsed)
            memory[index] = max(memory[index], peak)
    return [Side(times, peak) for times, peak in zip(seconds, memory)]


def _run(command: list[str], stdin: bytes) -> tuple[float, int]:
    """Seconds from start to end, and the peak of resident memory in bytes."""
    with tempfile.TemporaryFile() as file:
        file.write(stdin)
        file.seek(0)
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=file, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=PROJECT)
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - start
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    process.stderr.close()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed: {errors}")
    return elapsed, usage.ru_maxrss * 1024


def _in_process(what: str, domain: bytes, goal: float) -> None:
    resolver = Resolver(profile.loads(PROFILE.read_text()), Policy())
    ours, theirs = _alternate_calls([lambda: resolver.resolve(domain), lambda: etree.tostring(etree.fromstring(domain))], 2000)
    _report(what, ours, "lxml parse and serialise", theirs, f"at most {goal}")


def _alternate_calls(calls: list[Callable[[], object]], runs: int) -> list[Side]:
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(runs):
        for index, call in enumerate(calls):
            start = time.perf_counter()
            call()
            seconds[index].append(time.perf_counter() - start)
    return [Side(times, 0) for times in seconds]


def _as_libvirt_writes(domain: bytes) -> bytes:
    """What virsh dumpxml makes of it: addresses, aliases and defaults, which is what is usually resolved again."""
    import libvirt

    connection = libvirt.open("test:///default")
    try:
        defined = connection.defineXML(domain.decode())
        text: str = defined.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        return text.encode()
    finally:
        connection.close()


def _install_hook(directory: Path) -> str:
    # Compiled modules, as a package has them.
    subprocess.run([PYTHON, "-m", "compileall", "-q", str(PROJECT / "kvmarm_plugin")], check=True)
    hooks = directory / "libvirt/hooks/qemu.d"
    hooks.mkdir(parents=True)
    hookfile.install(hooks)
    return str(hooks / hookfile.NAME)


def _report(what: str, ours: Side, baseline: str, theirs: Side, goal: str) -> None:
    ratio = statistics.median(ours.seconds) / statistics.median(theirs.seconds)
    print(f"{what}: {ours}; {baseline}: {theirs}; ratio {ratio:.2f} (goal: {goal})", flush=True)


if __name__ == "__main__":
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, medians")
    main()
    print(f"memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
