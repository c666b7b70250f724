# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the hook costs where there is a kernel, and libkvmarm-level: `make bench-lab`, or `python3
-m tests.lab.bench [SUITE [CPU]]`.

A guest is resolved on a host, and the installed hook looks at it there as it would on a migration,
in turn with the interpreter that does nothing. On an emulated host everything takes some ten times
as long, the kernel's part more than the rest: it is measured apart (benchhost.py) and taken off.
What is left is ours, and the goal is at most 2.5 times the interpreter's own time.

The library costs QEMU's start some system calls for each vCPU. QEMU is started, and told to quit,
in turn without it and with the text of a guest that has all that the host has.
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
from .preload import build_library
from .wheel import build_wheel

RUNS = 40
STARTS = 10  # of QEMU, with the library and without

# On the host: how long QEMU takes to start and to quit, in turn, as JSON.
_LEVEL = """
import json, os, subprocess, sys, time
from kvmarm_plugin.domain.levelling import elements_for, text_of
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile_json import loads
from kvmarm_plugin.model.target import Level
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import Wish

host = loads(open("/root/profile.json").read())
host = host.replace(clusters=(host.clusters[0].replace(level=Level()),))
target = Resolver(host, Policy(prefer_named=False)).target(Wish("aarch64"))
proof = elements_for(target)[1].decode().split("value='")[1].split("'")[0]
qemu = ["qemu-system-aarch64", "-M", f"virt,gic-version={target.gic}", "-accel", "kvm", "-cpu",
        "host", "-m", "64", "-nodefaults", "-display", "none", "-S", "-monitor", "stdio"]
level = {"LD_PRELOAD": "libkvmarm-level.so.1", "KVMARM_LEVEL": text_of(target)}
ways = {"plain": (qemu, {}), "levelled": ([*qemu, "-object", proof], level)}
seconds = {way: [] for way in ways}
for _ in range(int(sys.argv[1])):
    for way, (command, variables) in ways.items():
        start = time.perf_counter()
        subprocess.run(command, input=b"quit\\n", stdout=subprocess.DEVNULL, check=True,
                       env={**os.environ, **variables})
        seconds[way].append(time.perf_counter() - start)
json.dump(seconds, sys.stdout)
"""


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


def measure_level(host: Host, library: Path) -> dict[str, list[float]]:
    """Seconds of each start of QEMU, by way."""
    host.put(library, f"/usr/lib/aarch64-linux-gnu/{library.name}")
    host.run("kvmarm probe -o /root/profile.json")
    host.put(_LEVEL.encode(), "/root/level.py")
    seconds: dict[str, list[float]] = json.loads(
        host.run(f"python3 /root/level.py {STARTS}", timeout=600).stdout
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
            starts = measure_level(host, build_library(Path(directory)))
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
    plain, levelled = (statistics.median(times) for times in starts.values())
    print(
        f"QEMU's start, of {STARTS}: median {plain * 1e3:.0f} ms, with libkvmarm-level"
        f" {levelled * 1e3:.0f} ms; ratio {levelled / plain:.2f}"
    )


if __name__ == "__main__":
    main()
