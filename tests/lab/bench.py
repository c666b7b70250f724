# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the hook costs where there is a kernel: `make bench-lab`, or `python3 -m tests.lab.bench [SUITE [CPU]]`.

A guest is resolved on a host, and the installed hook looks at it there as it would on a migration, in turn with the interpreter
that does nothing. On an emulated host everything takes some ten times as long, the kernel's part more than the rest: it is
measured apart (benchhost.py) and taken off. What is left is ours, and the goal is at most twice the interpreter's own time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from . import machine
from .guest import domain_xml
from .host import Host, HostSpec
from .wheel import build_wheel

RUNS = 40


def measure(host: Host) -> dict[str, float]:
    """Medians in seconds: of the interpreter, of the hook, and of what the hook spends in the kernel, by kind of system call."""
    host.run("kvmarm hook install")
    host.run("kvmarm resolve - >/root/bench.xml", domain_xml("bench", "<cpu mode='host-model'/>", ""))
    host.put(Path(__file__).with_name("benchhost.py"), "/root/benchhost.py")
    seconds = json.loads(host.run(f"python3 /root/benchhost.py /root/bench.xml {RUNS}", timeout=600).stdout)
    return {what: statistics.median(times) for what, times in seconds.items()}


def main() -> None:
    default = HostSpec()
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab.bench", description="What the hook costs on a lab host.")
    parser.add_argument("suite", nargs="?", default=default.suite)
    parser.add_argument("cpu", nargs="?", default=default.cpu)
    spec = HostSpec(**vars(parser.parse_args()))
    machine.setup()
    with tempfile.TemporaryDirectory() as directory:
        wheel = build_wheel(Path(directory))
        with Host(spec) as host:
            host.install(wheel)
            took = measure(host)
    shown = ", ".join(f"{what} {seconds * 1e3:.1f} ms" for what, seconds in took.items())
    print(f"hook, guest with a record, rehearsed on {spec.suite}, {spec.cpu}; medians of {RUNS}: {shown}")
    ratio = (took["hook"] - took["ioctl"]) / took["python"]
    print(f"ratio (hook - ioctl) / python {ratio:.2f} (goal: at most 2); nothing taken off: {took['hook'] / took['python']:.2f}")


if __name__ == "__main__":
    main()
