# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's side of bench.py: runs commands in turn on a lab host, and prints what each took as JSON.

Arguments: the domain's file, how many runs. The hook and the interpreter alone are timed from outside. What the kernel takes of
the hook's time is told by the third of a turn: the hook's Python, once more in a fresh interpreter, with a clock around each
system call of `kvm.device.Kernel`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

HOOK = "/etc/libvirt/hooks/qemu.d/50-kvmarm"
PYTHON = "/usr/bin/python3"

# Prints the nanoseconds in ioctls, and in opening and closing their file descriptors. A call of the clock's own is taken off.
CLOCKED = """
import sys
xml = sys.stdin.buffer.read()
sys.path.append("/usr/lib/python3/dist-packages")
from time import perf_counter_ns as now
from kvmarm_plugin import hook
from kvmarm_plugin.kvm import device

spent = {"ioctl": 0, "open": 0, "close": 0}

def clocked(kind, call):
    def timed(*arguments):
        start = now()
        try:
            return call(*arguments)
        finally:
            spent[kind] += now() - start - tare
    return timed

tare = 0
nothing = clocked("open", lambda *_: 0)
for _ in range(100):
    nothing(0, 0, 0)
tare, spent["open"] = spent["open"] // 100, 0

class Clocked(device.Kernel):
    def __init__(self):
        super().__init__()
        self._ioctl = clocked("ioctl", self._ioctl)
    open = clocked("open", device.Kernel.open)
    close = clocked("close", device.Kernel.close)

device.Kernel = Clocked
assert not hook.verify("bench", "migrate", xml)
print(*spent.values())
"""


def main() -> None:
    with open(sys.argv[1], "rb") as file:
        domain = file.read()
    seconds: dict[str, list[float]] = {"python": [], "hook": [], "ioctl": [], "open": [], "close": []}
    for _ in range(int(sys.argv[2])):
        seconds["python"].append(run([PYTHON, "-I", "-S", "-c", "pass"], domain)[0])
        seconds["hook"].append(run([HOOK, "bench", "migrate", "begin", "-"], domain)[0])
        for kind, spent in zip(("ioctl", "open", "close"), run([PYTHON, "-I", "-S", "-c", CLOCKED], domain)[1].split()):
            seconds[kind].append(int(spent) / 1e9)
    json.dump(seconds, sys.stdout)


def run(command: list[str], stdin: bytes) -> tuple[float, str]:
    """Seconds from start to end, and standard output."""
    start = time.perf_counter()
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - start, done.stdout.decode()


if __name__ == "__main__":
    main()
