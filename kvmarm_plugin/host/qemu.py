# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU on this host, asked over QMP as libvirt asks it: an emulator without a machine, with KVM if it can.

The client is twenty lines because QEMU's own (the library qemu.qmp) is in no distribution, and one question after
another on a pipe needs no more.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading

from ..errors import KvmarmError
from ..profile import Qemu
from .qemuversion import BINARIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TIME_LIMIT = 120  # seconds for all questions; a real host needs one, an emulated one ten


class QemuError(KvmarmError):
    """QEMU is missing, or does not answer."""


class QemuRefusal(QemuError):
    """QEMU answers a question with an error."""


def find_binary(architecture: str) -> str:
    """The path of the emulator for hosts of this architecture (uname -m). Raises QemuError."""
    for path in BINARIES.get(architecture, ()):
        if os.access(path, os.X_OK):
            return path
    raise QemuError("QEMU is not installed", "install qemu-system-arm (Debian), qemu-system-aarch64 (Fedora) or qemu-kvm (RHEL)")


def ask(binary: str) -> Qemu:
    """Everything the profile wants to know of an emulator.

    Raises:
        QemuError: it does not start, or ends or hangs in the middle of a question.
    """
    with _Monitor(binary) as monitor:
        version = monitor.ask("query-version")["qemu"]
        machines = [machine for machine in monitor.ask("query-machines") if _is_virt(machine["name"])]
        models = monitor.ask("query-cpu-definitions")
        try:
            expansion = monitor.ask("query-cpu-model-expansion", {"type": "full", "model": {"name": "host"}})
        except QemuRefusal:
            expansion = {"model": {"props": {}}}  # without KVM there is no "host"
    return Qemu(
        binary=binary,
        version=f"{version['major']}.{version['minor']}.{version['micro']}",
        machines=tuple(sorted((machine["name"] for machine in machines), key=_machine_version, reverse=True)),
        aliases={machine["alias"]: machine["name"] for machine in machines if "alias" in machine},
        cpu_models=tuple(sorted(model["name"] for model in models)),
        host_properties=expansion["model"]["props"],
    )


def _is_virt(machine: str) -> bool:
    """Whether a machine type is one of the versioned virt types (RHEL calls them virt-rhel9.4.0)."""
    return machine.startswith("virt-")


def _machine_version(machine: str) -> list[int]:
    """What orders machine types by age: "virt-10.0" → [10, 0]."""
    return [int(part) for part in machine.replace("virt-", "").replace("rhel", "").split(".") if part.isdigit()]


class _Monitor:
    """A QEMU without a machine, and its QMP on standard input and output."""

    def __init__(self, binary: str) -> None:
        self.binary = binary
        command = [binary, "-no-user-config", "-nodefaults", "-nographic", "-machine", "none,accel=kvm:tcg", "-qmp", "stdio"]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise QemuError(f"cannot run {binary}: {error.strerror}") from None
        self.timer = threading.Timer(TIME_LIMIT, self.process.kill)

    def __enter__(self) -> _Monitor:  # noqa: PYI034  # Self is typing's, from 3.11 on
        self.timer.start()
        try:
            self._read()  # the greeting
            self.ask("qmp_capabilities")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.timer.cancel()

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """What a QMP command returns. Raises QemuError."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"execute": command, "arguments": arguments or {}}) + "\n")
            self.process.stdin.flush()
        except OSError:
            raise self._gone(command) from None
        while True:
            answer = self._read(command)
            if "error" in answer:
                raise QemuRefusal(f"{self.binary}: {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def _read(self, command: str = "greeting") -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._gone(command)
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            raise QemuError(f"{self.binary}: {command}: not an answer: {line[:80]!r}") from None
        return answer

    def _gone(self, command: str) -> QemuError:
        self.process.kill()
        errors = self.process.communicate()[1].strip().splitlines()
        return QemuError(f"{self.binary} ended during {command}: {errors[-1] if errors else 'no answer in time'}")
