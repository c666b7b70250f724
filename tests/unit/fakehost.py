# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything of a host but its kernel's KVM (which is fakekernel.py): a made-up sysfs, and an
emulator that only speaks QMP.
"""

from __future__ import annotations

import json
import os
import select
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kvmarm_plugin.model.profile import HostProfile, Qemu


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_cpu(
    root: Path, cpu: int, midr: int | None, revidr: int | None = 0, capacity: int | None = None
) -> None:
    """One CPU in sysfs, with what is not None."""
    directory = root / f"sys/devices/system/cpu/cpu{cpu}"
    directory.mkdir(parents=True, exist_ok=True)
    if midr is not None:
        write(directory / "regs/identification/midr_el1", f"{midr:#018x}\n")
    if revidr is not None:
        write(directory / "regs/identification/revidr_el1", f"{revidr:#018x}\n")
    if capacity is not None:
        write(directory / "cpu_capacity", f"{capacity}\n")


def write_online(root: Path, text: str) -> None:
    write(root / "sys/devices/system/cpu/online", text + "\n")


def write_host(root: Path, profile: HostProfile) -> None:
    """The files of the host that a profile describes."""
    online = []
    for cluster in profile.clusters:
        for cpu in numbers(cluster.cpus):
            online.append(cpu)
            write_cpu(root, cpu, cluster.midr, cluster.revidr, cluster.capacity)
    write_online(root, ",".join(map(str, sorted(online))))
    write(root / "proc/cmdline", " ".join(["root=/dev/vda", *profile.overrides, "quiet"]) + "\n")
    features = "".join(
        f"  <feature name='{name}'/>\n" for name in ("vfp", *profile.cpu_features, "aes")
    )
    write(root / "usr/share/libvirt/cpu_map/arm_features.xml", f"<cpus>\n{features}</cpus>\n")
    if profile.platform:
        write(root / "sys/firmware/devicetree/base/model", profile.platform + "\0")


def numbers(text: str) -> list[int]:
    """CPU numbers of a list such as "0-3,6"."""
    spans = [span.split("-") for span in text.split(",")]
    return [cpu for span in spans for cpu in range(int(span[0]), int(span[-1]) + 1)]


class Scheduler:
    """Which CPU the calling thread is on, played: the CPUs of a made-up host need not be this
    machine's.

    Args:
        allowed: its affinity at first.
        cpuset: where it may be moved to; the same if not given.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        allowed: Iterable[int],
        cpuset: Iterable[int] | None = None,
    ) -> None:
        self.allowed = set(allowed)
        self.initial = set(self.allowed)
        self.cpuset = self.initial if cpuset is None else set(cpuset)
        self.moves: list[set[int]] = []
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(self.allowed))
        monkeypatch.setattr(os, "sched_setaffinity", self._move)

    def _move(self, _pid: int, cpus: Iterable[int]) -> None:
        if not set(cpus) & self.cpuset:
            raise OSError(22, "Invalid argument")
        self.allowed = set(cpus) & self.cpuset
        self.moves.append(set(self.allowed))


# -- an emulator ---------------------------------------------------------------------------------

_EMULATOR = """\
#!{python}
import json, sys, time
behaviour = {behaviour!r}
answers = json.loads({answers!r})
says = {says!r}
assert "-qmp" in sys.argv and "none,accel=kvm:tcg" in sys.argv, sys.argv
if behaviour == "dies":
    print("qemu: libfoo.so.1: cannot open shared object file", file=sys.stderr)
    sys.exit(127)
print(json.dumps({{"QMP": {{"version": {{}}, "capabilities": []}}}}), flush=True)
for line in sys.stdin:
    command = json.loads(line)["execute"]
    print(json.dumps({{"event": "JUST_TO_BE_SKIPPED", "data": {{}}}}), flush=True)
    if behaviour == "dies in " + command:
        print("qemu: assertion failed", file=sys.stderr)
        sys.exit(1)
    if behaviour == "hangs in " + command:
        time.sleep(600)
    if says:
        print(says, flush=True)
    elif behaviour == "babbles in " + command:
        print("warning: this is not JSON", flush=True)
    elif command in answers:
        print(json.dumps({{"return": answers[command]}}), flush=True)
    else:
        error = {{"class": "GenericError", "desc": "no " + command + " here"}}
        print(json.dumps({{"error": error}}), flush=True)
"""


def write_emulator(
    path: Path,
    qemu: Qemu | None = None,
    behaviour: str = "",
    without: str = "",
    answers: dict[str, object] | None = None,
    says: str = "",
) -> str:
    """A program that answers as QEMU does on the host where `qemu` was measured. Returns its path.

    Args:
        behaviour: "dies", or "dies in COMMAND", "hangs in COMMAND", "babbles in COMMAND".
        without: a command that is answered with an error.
        answers: command → an answer in place of QEMU's.
        says: a line in place of every answer.
    """
    version = (qemu.version if qemu else "10.0.2").split(".")
    machines = (
        [{"name": name} for name in qemu.machines]
        if qemu
        else [{"name": "virt-10.0", "alias": "virt"}]
    )
    for machine in machines:
        for alias, name in (qemu.aliases if qemu else {}).items():
            if name == machine["name"]:
                machine["alias"] = alias
    usual: dict[str, object] = {
        "qmp_capabilities": {},
        "query-version": {
            "qemu": dict(zip(("major", "minor", "micro"), map(int, version))),
            "package": "Debian",
        },
        "query-machines": [
            *machines,
            {"name": "raspi3b"},
            {"name": "none"},
            {"name": "virtual-something"},
        ],
        "query-cpu-definitions": [
            {"name": name} for name in reversed(qemu.cpu_models if qemu else ("cortex-a57", "host"))
        ],
        "query-cpu-model-expansion": {
            "model": {"name": "host", "props": qemu.host_properties if qemu else {"pauth": True}}
        },
    }
    usual.pop(without, None)
    text = json.dumps({**usual, **(answers or {})})
    write(
        path, _EMULATOR.format(python=sys.executable, behaviour=behaviour, answers=text, says=says)
    )
    path.chmod(0o755)
    return str(path)


def full_pipe() -> tuple[int, int]:
    """The two ends of a pipe that takes no more."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    while True:
        try:
            os.write(write, bytes(select.PIPE_BUF))
        except BlockingIOError:
            break
    os.set_blocking(write, True)
    return read, write
