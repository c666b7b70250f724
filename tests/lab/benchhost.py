# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host's side of bench.py: runs commands in turn on a lab host, and prints what each took as
JSON.

Arguments: the domain's file, how many runs. The hook and the interpreter alone are timed from
outside. What the kernel takes of the hook's time is told by the third of a turn: the hook's Python,
once more in a fresh interpreter, with a clock around each system call of `kvm.device.SystemCalls`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

HOOK = "/etc/libvirt/hooks/qemu.d/50-kvmarm"
PYTHON = "/usr/bin/python3"

# Prints the nanoseconds in ioctls, and in opening and closing their file descriptors. A call of the
# clock's own is taken off.
CLOCKED = """
import sys
xml = sys.stdin.buffer.read()
sys.path.append("/usr/lib/python3/dist-packages")
from time import perf_counter_ns as now
from kvmarm_plugin.hook import answer
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

class fcntl:
    ioctl = staticmethod(clocked("ioctl", device.fcntl.ioctl))

device.fcntl = fcntl
device.SystemCalls.open = clocked("open", device.SystemCalls.open)
device.SystemCalls.close = clocked("close", device.SystemCalls.close)
assert not answer.verify("bench", "migrate", xml)
print(*spent.values())
"""


def main() -> None:
    path, runs = sys.argv[1], int(sys.argv[2])
    seconds: dict[str, list[float]] = {
        "python": [],
        "hook": [],
        "ioctl": [],
        "open": [],
        "close": [],
    }
    for _ in range(runs):
        seconds["python"].append(timed([PYTHON, "-I", "-S", "-c", "pass"], path))
        seconds["hook"].append(timed([HOOK, "bench", "migrate", "begin", "-"], path))
        with open(path, "rb") as domain:
            spent = subprocess.run(
                [PYTHON, "-I", "-S", "-c", CLOCKED],
                stdin=domain,
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
        for kind, nanoseconds in zip(("ioctl", "open", "close"), spent.split()):
            seconds[kind].append(int(nanoseconds) / 1e9)
    json.dump(seconds, sys.stdout)


def timed(command: list[str], path: str) -> float:
    """Seconds from start to end, with a file as standard input.

    Not with subprocess: on two emulated CPUs its pipes and selectors take their part of what is
    measured, and more of the longer.
    """
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, path, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    ]
    start = time.perf_counter()
    process = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
    status = os.waitpid(process, 0)[1]
    elapsed = time.perf_counter() - start
    if status != 0:
        raise SystemExit(f"{' '.join(command)} ended with status {status:#x}")
    return elapsed


if __name__ == "__main__":
    main()
