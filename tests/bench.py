# SPDX-License-Identifier: LGPL-2.1-or-later
"""What things cost, as medians and as ratios against a baseline of the same run: `make bench`.

Nothing here fails for being slow: times depend on the machine, ratios less so. The goal beside each
ratio is what the project wants to keep. The two sides of a pair are run alternately, so that a busy
machine hurts both.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Callable, NamedTuple
from unittest.mock import patch

from lxml import etree

from kvmarm_plugin.commands import inputs, status_view, survey
from kvmarm_plugin.fleet.baseline import baseline
from kvmarm_plugin.fleet.compare import compare
from kvmarm_plugin.hook import install as hookfile
from kvmarm_plugin.host import host_policy
from kvmarm_plugin.host.libvirtd import Connection, run_events
from kvmarm_plugin.judge.by_profile import check
from kvmarm_plugin.kvm import device
from kvmarm_plugin.kvm.device import System
from kvmarm_plugin.model import profile_json
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import Wish
from kvmarm_plugin.watch import agent
from kvmarm_plugin.watch.agent import Tools
from kvmarm_plugin.watch.renewal import Renewer
from tests import playedkernel
from tests.fleet import fleet
from tests.unit.fakekernel import FakeKernel

PROJECT = Path(__file__).parents[1]
PROFILE = PROJECT / "tests/hosts/trixie-neoverse-n1.json"
TEMPLATE = PROJECT / "xml-templates/uefi.xml"
PYTHON = "/usr/bin/python3"
_TEST = "test:///default"


class Side(NamedTuple):
    """One side of a comparison: seconds of one run each, and the largest memory of any (bytes; 0 in
    process).
    """

    seconds: list[float]
    memory: int

    def __str__(self) -> str:
        median = statistics.median(self.seconds)
        duration = f"{median * 1e6:.0f} µs" if median < 1e-3 else f"{median * 1e3:.1f} ms"
        return f"{duration}, {self.memory / 2**20:.1f} MiB" if self.memory else duration


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        hook = _install_hook(Path(directory))
        domain = TEMPLATE.read_bytes()
        resolved = Resolver(profile_json.loads(PROFILE.read_text()), Policy()).resolve(domain)
        shell, python = ["/bin/sh", "-c", ":"], [PYTHON, "-I", "-S", "-c", "pass"]
        _compare(
            "hook, operation not ours",
            [hook, "guest", "started", "begin", "-"],
            "/bin/sh -c :",
            shell,
            domain,
            200,
            "at most 1.3",
        )
        plain = domain.replace(b"host-model", b"host-passthrough")
        _compare(
            "hook, guest without a record",
            [hook, "guest", "prepare", "begin", "-"],
            "python3 -I -S -c pass",
            python,
            plain,
            100,
            "at most 1.3",
        )
        _compare(
            "kvmarm resolve, whole process",
            [PYTHON, "-m", "kvmarm_plugin", "resolve", "--host", str(PROFILE)],
            "virt-xml --edit --cpu … --print-xml",
            [
                "virt-xml",
                "-c",
                "test:///default",
                "--edit",
                "--cpu",
                "host-passthrough",
                "--print-xml",
            ],
            domain,
            15,
            "at most 0.5",
        )
        _hook_with_rehearsal(Path(directory), resolved, python)
    # Of the barest, most is what every domain costs: its record, and what it leaves to QEMU.
    for title, name, goal in (
        ("as libvirt writes it", "tests/bench-domain.xml", 4),
        ("the barest", "xml-templates/direct-kernel.xml", 8),
    ):
        _in_process(f"resolving a domain in process, {title}", (PROJECT / name).read_bytes(), goal)
    _check_rate()
    _domains(1000)
    _idle(30)
    _fleet(2000)


def _hook_with_rehearsal(directory: Path, resolved: bytes, python: list[str]) -> None:
    """The hook as it is installed, in a copy of the package whose kernel answers from a table. What
    that costs is in the ratio, in place of the kernel's own time; `make bench-lab` has a kernel.
    """
    package = directory / "played/kvmarm_plugin"
    shutil.copytree(
        PROJECT / "kvmarm_plugin", package, ignore=shutil.ignore_patterns("__pycache__")
    )
    playedkernel.play(package, resolved)
    marks = package / "host/marks.py"
    marks.write_text(marks.read_text().replace('"/run/kvmarm"', repr(str(directory / "run"))))
    _compile(package)
    hook = directory / "played" / hookfile.NAME
    hook.write_text(hookfile.script().replace(str(PROJECT / "kvmarm_plugin"), str(package)))
    hook.chmod(0o755)
    uuid = b"<uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa0</uuid>"
    resolved = resolved.replace(b"</name>", b"</name>" + uuid, 1)
    for what, operation in (("arrives", "migrate"), ("starts", "prepare")):
        # A ticket is one arrival's: of the starts, but the first, all are cold ones.
        _compare(
            f"hook, guest with a record that {what}, rehearsed",
            [str(hook), "guest", operation, "begin", "-"],
            "python3 -I -S -c pass",
            python,
            resolved,
            100,
            "at most 2.5",
        )


def _check_rate() -> None:
    """How many verdicts a second on one core, by how much there is to say."""
    hosts = {
        name: profile_json.loads((PROFILE.parent / f"{name}.json").read_text())
        for name in ("trixie-neoverse-n1", "sid-neoverse-n1", "trixie-cortex-a72")
    }
    source = hosts["trixie-neoverse-n1"]
    target = Resolver(source, Policy()).target(Wish("aarch64", "virt-10.0"))
    for host in hosts.values():
        findings = len(check(target, host))
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < 0.5:
            for _ in range(50):
                check(target, host)
            count += 50
        rate = count / (time.perf_counter() - start)
        goal = "" if findings else " (goal: at least 20,000)"
        print(
            f"check of {source.name}'s guest against {host.name}, {findings} findings: {rate:,.0f}"
            f" a second{goal}"
        )


def _domains(count: int) -> None:
    """What `kvmarm status` and the agent's sweep take for many domains of libvirt's test driver, in
    process and on a played kernel; against the calls of libvirt that they make.
    """
    import libvirt  # the rest goes without

    run_events()
    host = profile_json.loads(PROFILE.read_text())
    resolved = Resolver(host, Policy()).resolve(TEMPLATE.read_bytes()).decode()
    resolved = re.sub("<uuid>.*</uuid>", "", resolved)
    connection = libvirt.open(_TEST)
    for number in range(count):
        connection.defineXML(re.sub("<name>.*</name>", f"<name>guest{number}</name>", resolved))

    def calls_of_status() -> None:
        for each in connection.listAllDomains():
            each.name(), each.UUIDString(), each.ID()
            each.state(), each.isActive(), each.hasManagedSaveImage(0), each.isPersistent()
            each.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)

    def calls_of_sweep() -> None:
        for each in connection.listAllDomains():
            each.name(), each.UUIDString(), each.ID()
            found = connection.lookupByUUIDString(each.UUIDString())
            found.name(), found.UUIDString(), found.ID(), found.isPersistent(), found.isActive()
            found.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)

    kernel = FakeKernel.from_profile(host)
    machines = host.qemu.machines if host.qemu else ()
    told: list[str] = []
    connect = lambda: Connection(_TEST)  # noqa: E731
    tools = Tools(Policy, lambda: Resolver(host, Policy()), lambda: host)
    with ExitStack() as stack:
        for where, name, value in (
            (device, "System", lambda: System(kernel)),
            (agent, "System", lambda: System(kernel)),
            (inputs, "machines_here", lambda _emulator: machines),
            (host_policy, "reaction_to_drift", lambda: "renew"),
            (inputs, "read_pool", lambda _name: None),
            (os, "uname", lambda: os.uname_result(("Linux", "here", "6.12.0", "", "aarch64"))),
        ):
            stack.enter_context(patch.object(where, name, value))
        answer = survey.take_survey(_TEST)
        assert sum(standing.answer == survey.YES for standing in answer.standings) == count
        status, its_calls = _alternate_calls(
            [lambda: status_view.as_text(survey.take_survey(_TEST)), calls_of_status], 5
        )
        sweep, sweeps_calls = _alternate_calls(
            [
                lambda: agent.Agent(
                    connect, tools, Renewer(connect, told.append), told.append
                ).once(),
                calls_of_sweep,
            ],
            5,
        )
    assert not told, told
    connection.close()
    bare = "the same calls of libvirt"
    _report(f"status of {count} domains", status, bare, its_calls, "at most 5")
    _report(f"the agent's sweep of {count} domains", sweep, bare, sweeps_calls, "at most 1.5")


def _idle(seconds: float) -> None:
    """What the agent takes while nothing happens: a process, of libvirt's test driver."""
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
    ):
        address = f"{directory}/notify"
        ready.bind(address)
        code = (
            "import sys; from kvmarm_plugin.host import marks;"
            f" marks.DIRECTORY = {directory!r};"
            " from kvmarm_plugin.cli import main; main(sys.argv[1:])"
        )
        with subprocess.Popen(
            [PYTHON, "-c", code, "agent", "-c", _TEST],
            cwd=PROJECT,
            env={**os.environ, "NOTIFY_SOCKET": address},
            stderr=subprocess.DEVNULL,
        ) as process:
            ready.recv(100)
            time.sleep(3)  # it looks at the guests, and probes the host
            before = _switches(process.pid)
            time.sleep(seconds)
            after = _switches(process.pid)
            memory = _status_lines(f"/proc/{process.pid}/status")["VmRSS"]
            process.terminate()
    print(
        f"the agent, idle: {int(memory.split()[0]) / 1024:.1f} MiB (goal: at most 64),"
        f" {after - before} wake-ups in {seconds:.0f} s (goal: none)"
    )


def _switches(pid: int) -> int:
    """How often the threads of a process have gone to sleep."""
    return sum(
        int(_status_lines(str(path))["voluntary_ctxt_switches"])
        for path in Path(f"/proc/{pid}/task").glob("*/status")
    )


def _status_lines(path: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in Path(path).read_text().splitlines())


def _fleet(count: int) -> None:
    """Profiles of many hosts: read, compared, and made a pool as far as they go."""
    texts = {host.name: profile_json.dumps(host) for host in fleet(count)}
    ours, theirs = _alternate_calls(
        [
            lambda: [*map(profile_json.loads, texts.values())],
            lambda: [*map(json.loads, texts.values())],
        ],
        3,
    )
    # Every name and value is checked, some 500 a profile.
    _report(f"reading {count} profiles", ours, "json.loads", theirs, "at most 10")
    hosts = [profile_json.loads(text) for text in texts.values()]
    compared, based = _alternate_calls(
        [lambda: compare(hosts, Policy()), lambda: baseline(hosts)], 3
    )
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory, f"{name}.json") for name in texts]
        for path, text in zip(paths, texts.values()):
            path.write_text(text)
        peaks = {
            command: _memory([PYTHON, "-m", "kvmarm_plugin", command, *map(str, paths)], b"")
            for command in ("compare", "baseline")
        }
    comparison = compare(hosts, Policy())
    checks = len(comparison.pairs)
    print(
        f"comparing them: {Side(compared.seconds, peaks['compare'])}; {len(comparison.kinds)}"
        f" kinds, {checks:,} checks, by host {count**2:,}; ratio {checks / count**2:.4f} (goal: at"
        " most 0.01)"
    )
    plan = baseline(hosts).plan
    print(
        f"their baseline: {Side(based.seconds, peaks['baseline'])}; a plan of {len(plan.steps)}"
        f" steps, for all but {len(plan.left_out)} hosts; ratio to comparing them"
        f" {statistics.median(based.seconds) / statistics.median(compared.seconds):.2f} (goal: at"
        " most 1)"
    )


def _compare(
    what: str,
    command: list[str],
    baseline_name: str,
    baseline: list[str],
    stdin: bytes,
    runs: int,
    goal: str,
) -> None:
    ours, theirs = _alternate([command, baseline], stdin, runs)
    _report(what, ours, baseline_name, theirs, goal)


def _alternate(commands: list[list[str]], stdin: bytes, runs: int) -> list[Side]:
    seconds: list[list[float]] = [[] for _ in commands]
    for _ in range(runs):
        for times, command in zip(seconds, commands):
            times.append(_run(command, stdin))
    return [Side(times, _memory(command, stdin)) for times, command in zip(seconds, commands)]


def _run(command: list[str], stdin: bytes) -> float:
    """Seconds from start to end."""
    start = time.perf_counter()
    process = subprocess.run(
        command, input=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=PROJECT
    )
    elapsed = time.perf_counter() - start
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed: {process.stderr.decode()}")
    return elapsed


def _memory(command: list[str], stdin: bytes) -> int:
    """The peak of resident memory in bytes; by GNU time, since a child of this process starts with
    this one's peak.
    """
    measured = ["/usr/bin/time", "--format", "peak %M", *command]
    process = subprocess.run(
        measured, input=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=PROJECT
    )
    found = re.search(rb"peak (\d+)", process.stderr)
    return int(found[1]) * 1024 if found else 0


def _in_process(what: str, domain: bytes, goal: float) -> None:
    resolver = Resolver(profile_json.loads(PROFILE.read_text()), Policy())
    ours, theirs = _alternate_calls(
        [lambda: resolver.resolve(domain), lambda: etree.tostring(etree.fromstring(domain))], 2000
    )
    _report(what, ours, "lxml parse and serialise", theirs, f"at most {goal}")


def _alternate_calls(calls: list[Callable[[], object]], runs: int) -> list[Side]:
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(runs):
        for index, call in enumerate(calls):
            start = time.perf_counter()
            call()
            seconds[index].append(time.perf_counter() - start)
    return [Side(times, 0) for times in seconds]


def _install_hook(directory: Path) -> str:
    _compile(PROJECT / "kvmarm_plugin")
    hooks = directory / "libvirt/hooks/qemu.d"
    hooks.mkdir(parents=True)
    hookfile.install(hooks)
    return str(hooks / hookfile.NAME)


def _compile(package: Path) -> None:
    """As an installed package is."""
    subprocess.run([PYTHON, "-m", "compileall", "-q", str(package)], check=True)


def _report(what: str, ours: Side, baseline: str, theirs: Side, goal: str) -> None:
    ratio = statistics.median(ours.seconds) / statistics.median(theirs.seconds)
    print(f"{what}: {ours}; {baseline}: {theirs}; ratio {ratio:.2f} (goal: {goal})", flush=True)


if __name__ == "__main__":
    print(
        f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f},"
        " medians"
    )
    main()
    print(
        "memory of this process:"
        f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )
