# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU on this host, asked over QMP as libvirt asks it: an emulator without a machine, with KVM if
it can.

The client is twenty lines because QEMU's own (the library qemu.qmp) is in no distribution, and one
question after another on a pipe needs no more.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import threading

from ..basics.errors import KvmarmError
from ..basics.ownership import others_can_change
from ..basics.shape import Misshapen
from ..basics.untrusted import shown
from ..model.profile import Qemu
from ..model.profile_shape import LINE, MACHINE, QEMU_NAME, decode_qemu
from .paths import Step, reach
from .qemu_version import BINARIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TIME_LIMIT = 120  # seconds for all questions; a real host needs one, an emulated one ten
_NAMES = ("qemu-system-aarch64", "qemu-system-arm", "qemu-kvm")
_LONGEST = 4 << 20  # characters of an answer; the longest has some hundred thousand


class QemuError(KvmarmError):
    """QEMU is missing, or does not answer."""


class QemuRefusal(QemuError):
    """QEMU answers a question with an error."""


def find_binary(architecture: str) -> str:
    """The path of the emulator for hosts of this architecture (uname -m). Raises QemuError."""
    for path in BINARIES.get(architecture, ()):
        if os.access(path, os.X_OK):
            return path
    raise QemuError(
        "QEMU is not installed",
        "install qemu-system-arm (Debian), qemu-system-aarch64 (Fedora) or qemu-kvm (RHEL)",
    )


def may_be_asked(path: str) -> bool:
    """Whether a path that a domain's XML names is a QEMU that can be run to ask it: it is called as
    QEMU's emulators for ARM are, and nobody but root and this user can change it, nor anything on
    the way to it. XML is anybody's text.
    """
    if not path.startswith("/") or os.path.basename(path) not in _NAMES:
        return False
    try:
        with reach(path, _refuse_others) as end:
            return end.entry is not None and stat.S_ISREG(os.fstat(end.entry).st_mode)
    except OSError:
        return False


def ask_named(path: str) -> Qemu | None:
    """The same as `ask` of what a domain's XML names; None if it may not be run.

    Raises:
        QemuError: as `ask`.
    """
    return ask(path) if may_be_asked(path) else None


def _refuse_others(step: Step) -> None:
    if step.entry is None or others_can_change(os.fstat(step.entry)):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def ask(binary: str) -> Qemu:
    """Everything the profile wants to know of an emulator.

    Raises:
        QemuError: it does not start, ends or hangs in the middle of a question, or gives other
            answers than QEMU does.
    """
    with _Monitor(binary) as monitor:
        version = monitor.ask("query-version")
        machines = monitor.ask("query-machines")
        models = monitor.ask("query-cpu-definitions")
        try:
            expansion = monitor.ask(
                "query-cpu-model-expansion", {"type": "full", "model": {"name": "host"}}
            )
        except QemuRefusal:
            expansion = {"model": {"props": {}}}  # without KVM there is no "host"
    try:
        return decode_qemu(_document(binary, version, machines, models, expansion))
    except (AttributeError, LookupError, TypeError) as error:
        raise QemuError(
            f"{binary}: its answers are not QEMU's: {type(error).__name__}: {shown(str(error))}"
        ) from None
    except Misshapen as error:
        raise QemuError(f"{binary}: its answers are not QEMU's: {error}") from None


def _document(
    binary: str, version: Any, machines: Any, models: Any, expansion: Any
) -> dict[str, Any]:
    """The answers as a profile has them. Names that no domain could have, and properties that are
    neither a number nor text nor a flag, are left out. Raises AttributeError, LookupError or
    TypeError for answers that QEMU does not give.
    """
    virt = [machine for machine in machines if _is_virt(machine["name"])]
    return {
        # Whoever names it without a directory means the one in PATH.
        "binary": shown(shown(os.path.abspath(shutil.which(binary) or binary), LINE), LINE),
        "version": ".".join(str(version["qemu"][part]) for part in ("major", "minor", "micro")),
        "machines": sorted(
            {machine["name"]: None for machine in virt}, key=_machine_version, reverse=True
        ),
        "aliases": {
            machine["alias"]: machine["name"] for machine in virt if _is_name(machine.get("alias"))
        },
        "cpu_models": sorted({model["name"] for model in models if _is_name(model["name"])}),
        "host_properties": {
            name: value
            for name, value in expansion["model"]["props"].items()
            if _is_name(name)
            and (isinstance(value, int) or (isinstance(value, str) and value.isprintable()))
        },
    }


def _is_name(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(QEMU_NAME, name) is not None


def _is_virt(machine: object) -> bool:
    """Whether a machine type is one of the versioned virt types (RHEL calls them
    virt-rhel9.4.0).
    """
    return isinstance(machine, str) and re.fullmatch(MACHINE, machine) is not None


def _machine_version(machine: str) -> list[int]:
    """What orders machine types by age: "virt-10.0" → [10, 0]."""
    return [
        int(part)
        for part in machine.replace("virt-", "").replace("rhel", "").split(".")
        if part.isdigit()
    ]


def _short(digits: str) -> int:
    """A number of an answer: none of QEMU's has more than 64 bits, and int() takes its time for a
    long one.
    """
    if len(digits) > 20:
        raise ValueError("so long a number")
    return int(digits)


class _Monitor:
    """A QEMU without a machine, and its QMP on standard input and output."""

    def __init__(self, binary: str) -> None:
        self.binary = binary
        command = [
            binary,
            "-no-user-config",
            "-nodefaults",
            "-nographic",
            "-machine",
            "none,accel=kvm:tcg",
            "-qmp",
            "stdio",
        ]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                # what it starts itself ends with it, and lets go of the pipes
                start_new_session=True,
            )
        except OSError as error:
            raise QemuError(f"cannot run {binary}: {error.strerror}") from None
        self.timer = threading.Timer(TIME_LIMIT, self._kill)

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
        self.timer.cancel()
        self._kill()
        self.process.communicate()

    def _kill(self) -> None:
        if self.process.returncode is None:  # or its number may be another's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """What a QMP command returns. Raises QemuError."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(
                json.dumps({"execute": command, "arguments": arguments or {}}) + "\n"
            )
            self.process.stdin.flush()
        except OSError:
            raise self._gone(command) from None
        while True:
            answer = self._read(command)
            if "error" in answer:
                error = answer["error"]
                why = error.get("desc") if isinstance(error, dict) else error
                raise QemuRefusal(f"{self.binary}: {command}: {shown(str(why))}")
            if "return" in answer:
                return answer["return"]

    def _read(self, command: str = "greeting") -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline(_LONGEST)
        if not line:
            raise self._gone(command)
        try:
            answer: dict[str, Any] = json.loads(line, parse_int=_short)
        except (ValueError, RecursionError):
            answer = {}
        if not answer or not isinstance(answer, dict):
            raise QemuError(f"{self.binary}: {command}: not an answer: {line[:80]!r}")
        return answer

    def _gone(self, command: str) -> QemuError:
        self._kill()
        errors = self.process.communicate()[1].strip().splitlines()
        return QemuError(
            f"{self.binary} ended during {command}:"
            f" {shown(errors[-1]) if errors else 'no answer in time'}"
        )
