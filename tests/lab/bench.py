# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the hook costs where there is a kernel: `make bench-lab`, or `python3 -m tests.lab.bench
[SUITE [CPU]]`.

A guest is resolved on a host, and the installed hook looks at it there as it would on a migration,
in turn with the interpreter that does nothing. On an emulated host everything takes some ten times
as long, the kernel's part more than the rest: it is measured apart (benchhost.py) and taken off.
What is left is ours, and the goal is at most 2.5 times the interpreter's own time.
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


def measure(host: Host) -> dict[str, list[float]]:
    """Seconds of each run: of the interpreter, of the hook, and of what the hook spends in the
    kernel, by kind of system call.
    """
    host.run("kvmarm hook install")
    host.run(
        "kvmarm resolve - >/root/bench.xml", domain_xml("bench", "<cpu mode='host-model'/>", "")
    )
    host.put(Path(__file__).with_name("benchhost.py"), "/root/benchhost.py")
    seconds: dict[str, list[float]] = json.loads(
        host.run(f"python3 /root/benchhost.py /root/bench.xml {RUNS}", timeout=600).stdout
    )
    return seconds


def main() -> None:
    default = HostSpec()
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.lab.bench", description="What the hook costs on a lab host."
    )
    parser.add_argument("suite", nargs="?", default=default.suite)
    parser.add_argument("cpu", nargs="?", default=default.cpu)
    spec = HostSpec(**vars(parser.parse_args()))
    machine.setup()
    with tempfile.TemporaryDirectory() as directory:
        wheel = build_wheel(Path(directory))
        with Host(spec) as host:
            host.install(wheel)
            seconds = measure(host)
    print(
        f"hook, guest with a record, rehearsed on {spec.suite}, {spec.cpu}; {RUNS} runs each (goal:"
        " ratio at most 2.5)"
    )
    for title, choose in (("medians", statistics.median), ("fastest", min)):
        print(
            f"{title}: "
            + ", ".join(f"{what} {choose(times) * 1e3:.1f} ms" for what, times in seconds.items())
        )
    # Turn by turn: what slows the machine down for some seconds slows all three runs of a turn.
    ratios = [
        (hook - ioctl) / python
        for python, hook, ioctl in zip(seconds["python"], seconds["hook"], seconds["ioctl"])
    ]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"(hook - ioctl) / python of each turn: median {middle:.2f}, quartiles {low:.2f} and"
        f" {high:.2f}"
    )


if __name__ == "__main__":
    main()
