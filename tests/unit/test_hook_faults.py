# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hook when something is broken: every fault × every kind of guest, and every fault in every
operation.

The installed script runs, in a copy of the package in which a fault is arranged, and with a kernel
that answers from a table. `_FAULTS` says what has to come out; docs/hook-faults.md is made from it,
by `pytest tests/unit/test_hook_faults.py --regenerate-output`, so that operators read what is
tested.
"""

from __future__ import annotations

import ast
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from functools import cache
from pathlib import Path
from typing import Callable, NamedTuple

import pytest

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.basics.untrusted import shown
from kvmarm_plugin.domain.record import NAMESPACE_STEM
from kvmarm_plugin.domain.xml import SIZE_LIMIT
from kvmarm_plugin.hook import install as hookfile
from kvmarm_plugin.hook import time_limit
from kvmarm_plugin.host import daemons
from kvmarm_plugin.kvm import scratch
from kvmarm_plugin.model.policy import DEFAULT_PATH, HookPolicy

from .. import playedkernel
from ..corpus import GUEST, resolver
from .fakehost import full_pipe

_ROOT = Path(__file__).parent.parent.parent
_PACKAGE = _ROOT / "kvmarm_plugin"
_SCRIPT = _ROOT / "hooks/qemu.d/50-kvmarm"
_DOCUMENT = _ROOT / "docs/hook-faults.md"
_PYTHON = "/usr/bin/python3"
_ENVIRONMENT = {
    "LC_ALL": "C",
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/",
    "USER": "root",
    "LOGNAME": "root",
}

_LOOKED_AT = ("prepare", "migrate", "restore")  # in their stage "begin"
_PASSED = [
    ("start", "begin"),
    ("started", "begin"),
    ("reconnect", "begin"),
    ("stopped", "end"),
    ("release", "end"),
    ("attach", "begin"),
]

_TIME_LIMIT = 0.8  # seconds, in the copy; the real one is measured once
_LONGEST = 10.0  # seconds, for a run that takes some hundredths: the machine may be busy
_SIZE = 50 * 1000 * 1000
_PIPE_BUF = 4096  # bytes that a pipe takes in one piece

# -- the guests -----------------------------------------------------------------------------------

_UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
_HERE, _ELSEWHERE = "trixie-neoverse-n1", "trixie-cortex-a72"


def _guests() -> dict[str, bytes]:
    """Kind of guest → its XML."""
    guest = GUEST.replace(b"</name>", f"</name>\n  <uuid>{_UUID}</uuid>".encode())
    return {
        "plain": guest.replace(b"host-model", b"host-passthrough"),
        "host-model": guest,
        "fits": resolver(_HERE).resolve(guest),
        "does not fit": resolver(_ELSEWHERE).resolve(guest),
    }


_RECORDED = ("fits", "does not fit")

# -- the place where faults are arranged ---------------------------------------------------------


class Place:
    """A hook installed with a package of its own.

    Attributes:
        hook, package, policy, log, run: the paths; `run` is /run/kvmarm.
        name: the domain's.
        before: shell commands, and
        redirections: shell redirections that libvirt would not make.
        unread: whether standard error is a full pipe that nobody reads.
        endless: whether standard input stays open behind the XML.
        change: what becomes of the XML of a guest, by its kind.
    """

    def __init__(self, directory: Path) -> None:
        self.package = directory / "kvmarm_plugin"
        self.policy = directory / "policy.yaml"
        self.log = directory / "log"
        self.run = directory / "run"
        self.hook = directory / "50-kvmarm"
        self.name = "guest"
        self.before = self.redirections = ""
        self.unread = self.endless = False
        self.change: Callable[[str, bytes], bytes] = lambda _kind, xml: xml
        shutil.copytree(_PACKAGE, self.package)
        self.hook.write_text(
            _SCRIPT.read_text(encoding="utf-8").replace("@PACKAGE@", shlex.quote(str(self.package)))
        )
        self.hook.chmod(0o755)
        self.in_script("marks=/run/kvmarm/marks", f"marks={self.run}/marks")
        logger = directory / "logger"
        logger.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{self.log}\n')
        logger.chmod(0o755)
        self.in_script("logger -i -t kvmarm-hook -p daemon.warning --", str(logger))
        self.replace("host/marks.py", '"/run/kvmarm"', repr(str(self.run)))
        self.replace("host/marks.py", '"/etc/libvirt/qemu"', repr(str(directory / "stored")))
        playedkernel.play(self.package, _guests_once()["fits"])
        self.append("__init__.py", playedkernel.PLAYED_LOG.format(log=str(self.log)))
        self.replace("model/policy.py", DEFAULT_PATH, str(self.policy))
        self.replace("hook/time_limit.py", "TIME_LIMIT = 2 ", f"TIME_LIMIT = {_TIME_LIMIT} ")
        self.replace("model/policy.py", "seconds: int = 10", f"seconds: float = {_TIME_LIMIT}")

    def append(self, module: str, text: str) -> None:
        with (self.package / module).open("a", encoding="utf-8") as file:
            file.write(text)

    def replace(self, module: str, old: str, new: str) -> None:
        path = self.package / module
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{module} has changed"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def interpreter(self, path: str) -> None:
        self.in_script(f"python={_PYTHON}\n", f"python={path}\n")

    def in_script(self, old: str, new: str) -> None:
        text = self.hook.read_text(encoding="utf-8")
        assert old in text, "the script has changed"
        self.hook.write_text(text.replace(old, new), encoding="utf-8")

    def forget(self) -> None:
        """Empty the log and /run/kvmarm."""
        self.log.unlink(missing_ok=True)
        if self.run.is_dir():
            shutil.rmtree(self.run)

    def noted(self, directory: str) -> list[str]:
        """The files in a directory of /run/kvmarm."""
        path = self.run / directory
        return sorted(each.name for each in path.iterdir()) if path.is_dir() else []

    def call(self, operation: str, stage: str, kind: str) -> tuple[int, str, str, float]:
        """Status, standard output and error, and the seconds that it took."""
        command = [str(self.hook), self.name, operation, stage, "-"]
        if self.before or self.redirections:
            command = [
                "/bin/sh",
                "-c",
                f'{self.before or ":"}\nexec "$@" {self.redirections}',
                "sh",
                *command,
            ]
        xml = self.change(kind, _guests_once()[kind])
        held: tuple[int, ...] = ()
        stdin = stdout = stderr = subprocess.PIPE
        if self.unread:
            held += full_pipe()
            stderr = held[-1]
        if self.endless:
            held += os.pipe()
            stdin = held[-2]
            os.write(held[-1], xml)
        start = time.monotonic()
        process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=stderr, env=_ENVIRONMENT
        )
        out, err = process.communicate(None if self.endless else xml, timeout=30)
        seconds = time.monotonic() - start
        for fd in held:
            os.close(fd)
        return process.returncode, out.decode(), (err or b"").decode(), seconds


_guests_once = cache(_guests)

# -- the table ------------------------------------------------------------------------------------

PASSES = ""
WARNED = "warned: "  # passes with a message, which libvirt throws away and the log keeps
MARKED = "marked: "  # the same, and the record is not believed until it is renewed
NOT_THERE = "kvmarm: GUEST cannot run on this host as it was promised: "
UNCHECKED = "kvmarm: GUEST has a recorded CPU that cannot be checked: "
MISFIT = NOT_THERE + "MIDR_EL1.… (…): recorded 0x…, here 0x…; refuses: …; remedy: …"
DRIFT = (
    "kvmarm: GUEST starts, but not as recorded: MIDR_EL1.…:"
    " recorded 0x…, here 0x…; …. To record what it has: kvmarm refresh GUEST"
)
MENDED = ". When that is mended: kvmarm refresh GUEST"
ALLOW = ". To let it pass once: kvmarm allow GUEST"
ADVICE = (
    "kvmarm: GUEST asks for host-model, which libvirt cannot start on ARM. Make it concrete, and"
    " start it again: virsh dumpxml --inactive --security-info GUEST | kvmarm define -. If it is"
    " not defined: kvmarm create FILE, or virt-install OPTIONS --print-xml | kvmarm define -"
)
AGAIN = "Install kvmarm again, or: rm …/50-kvmarm"
UNKNOWN = "kvmarm: GUEST cannot be checked for a recorded CPU: "
ENDLESS = UNKNOWN + "its XML could not be read to the end in 2 s. Try again"
TOO_LARGE = (
    NOT_THERE + "the document is larger than 10 MiB (hint: the XML of a domain has a few KiB)"
)
NO_MEMORY = (
    NOT_THERE + "checking takes more memory than the hook may have; the host may be short of it"
)
NO_PYTHON = f"{UNCHECKED}…/python3 is missing or broken (status 127). {AGAIN}"
NO_PACKAGE = (
    f"{UNCHECKED}ModuleNotFoundError: No module named 'kvmarm_plugin' (…/kvmarm_plugin, Python …)."
    f" {AGAIN}"
)
DAMAGED = NOT_THERE + "it cannot be checked: "
REINSTALL = "(hint: install kvmarm again)"


class Fault(NamedTuple):
    """A row: what is broken, and what then becomes of each kind of guest.

    An outcome is the message with which the guest is refused ("…" is any text, GUEST the name),
    PASSES, or WARNED or MARKED and the message. Where standard error is broken, only the log can
    have it. Those of a guest with a record are an arrival's (migrate, restore); what becomes of one
    that starts (prepare) follows from it (`_of_a_start`), or is given.
    """

    what: str
    arrange: Callable[[Place], object]
    fits: str = PASSES
    misfit: str = MISFIT
    host_model: str = ADVICE
    plain: str = PASSES
    lost: bool = False
    start_fits: str | None = None
    start_misfit: str | None = None

    def outcome(self, kind: str, operation: str) -> str:
        arrives, starts = {
            "plain": (self.plain, None),
            "host-model": (self.host_model, None),
            "fits": (self.fits, self.start_fits),
            "does not fit": (self.misfit, self.start_misfit),
        }[kind]
        if operation == "prepare":
            return _of_a_start(arrives) if starts is None else starts
        return arrives + ALLOW if arrives.startswith(NOT_THERE) else arrives


def _of_a_start(arrival: str) -> str:
    """What becomes of a guest that starts, where an arrival has this outcome."""
    message = arrival.replace(WARNED, "").replace("should not", "cannot")
    if message == MISFIT:
        return MARKED + DRIFT
    if message.startswith(NOT_THERE):
        reason = message[len(NOT_THERE) :]
        return f"{MARKED}kvmarm: GUEST starts unchecked: {reason}{MENDED}"
    if message.startswith((UNCHECKED, UNKNOWN)):
        return MARKED + message.replace("GUEST", "GUEST starts unchecked: it", 1)
    return arrival


def _both(
    what: str, message: str, arrange: Callable[[Place], object], host_model: str = ADVICE
) -> Fault:
    """A fault that refuses every guest with a record."""
    return Fault(what, arrange, fits=message, misfit=message, host_model=host_model)


def _everybody(outcome: str) -> tuple[str, str, str, str]:
    return outcome, outcome, outcome, outcome


def _set(**changes: object) -> Callable[[Place], object]:
    def arrange(place: Place) -> None:
        for name, value in changes.items():
            setattr(place, name, value)

    return arrange


def _all(*steps: Callable[[Place], object]) -> Callable[[Place], object]:
    return lambda place: [step(place) for step in steps]


def _interpreter(text: str) -> Callable[[Place], object]:
    """An interpreter that is a script of this text; none if it is empty."""

    def arrange(place: Place) -> None:
        path = place.package.parent / "python3"
        if text:
            path.write_text(text)
            path.chmod(0o755)
        place.interpreter(str(path))

    return arrange


def _no_package(place: Place) -> None:
    shutil.rmtree(place.package)


def _without(module: str) -> Callable[[Place], object]:
    return lambda place: (place.package / module).unlink()


def _appended(module: str, text: str) -> Callable[[Place], object]:
    return lambda place: place.append(module, f"\n\n{text}\n")


def _impatient(place: Place) -> None:
    """What takes seconds takes less; but CPU time is in whole seconds."""
    place.in_script("_signal.alarm(2)", "_signal.setitimer(0, 0.3)")
    place.in_script("timeout 2 tr", "timeout 0.3 tr")
    place.in_script("ulimit -S -t 5", "ulimit -S -t 1")


def _damaged(module: str) -> Callable[[Place], object]:
    """Ends in the middle of a line."""
    return lambda place: place.append(module, "\n\ndef broken(")


def _empty(module: str) -> Callable[[Place], object]:
    return lambda place: (place.package / module).write_text("")


def _policy(text: bytes | None) -> Callable[[Place], object]:
    """A policy of this text; None puts something there that cannot be read, even by root."""
    return lambda place: place.policy.mkdir() if text is None else place.policy.write_bytes(text)


def _kernel(setting: str) -> Callable[[Place], object]:
    return lambda place: place.append("kvm/device.py", f"\n    {setting}\n")


def _without_sysfs(place: Place) -> None:
    place.replace("host/cpus.py", '= "/") ->', '= "/nowhere") ->')


def _log(text: str) -> Callable[[Place], object]:
    return lambda place: place.append("__init__.py", f"\n{text}\n")


def _in_records(change: Callable[[bytes], bytes]) -> Callable[[Place], object]:
    return _set(change=lambda kind, xml: change(xml) if kind in _RECORDED else xml)


def _behind(_kind: str, xml: bytes) -> bytes:
    """White space first; and the last letter of the mark in another read than its first."""
    head, mark, tail = xml.partition(b"<metadata>" if b"<metadata>" in xml else b"<os>")
    end = tail.find(b"urn:kvmarm-plugin:target:") + len(head) + len(mark)
    return head + b" " * (11 * 1024 * 1024 - end - 5) + mark + tail


def _no_bytecode(place: Place) -> None:
    for path in [*place.package.rglob("__pycache__")]:
        shutil.rmtree(path)
        path.write_text("a file where a directory should be")


_PINNING = b"<kvmarm:pinning midr='0x414fd0c1' revidr='0x0' cpus='0'/>"
_WARN = b"on-drift: warn\non-migrate: warn\non-restore: warn\n"
_NOT_NOTED = (
    WARNED
    + NO_PYTHON.replace("GUEST", "GUEST starts unchecked: it")
    + ". This cannot be noted in …/marks"
)
_NO_KVM = (
    "kvmarm: GUEST cannot be checked, and would start: /dev/kvm does not exist (hint: …)"
    + MENDED
    + ALLOW
)
_VCPU = (
    "vCPU (target and features): recorded …, here not made; refuses: KVM on here makes no such"
    " vCPU: KVM_ARM_VCPU_INIT: EINVAL (Invalid argument)"
)
_REFRESH = "; remedy: kvmarm refresh GUEST"
_NAME = 'it\'s "a"\n\x1b[2Jguest\\n'
_SHORT = "(hint: the host is short of memory or file descriptors: try again)"

_FAULTS: dict[str, list[Fault]] = {
    "The installation": [
        Fault("nothing", lambda _place: None),
        _both("the interpreter is gone", NO_PYTHON, _interpreter(""), PASSES),
        _both(
            "the interpreter does not start",
            NO_PYTHON,
            _interpreter("#!/bin/sh\nexit 127\n"),
            PASSES,
        ),
        _both(
            "the interpreter's own library is damaged",
            UNCHECKED + "…/python3 is missing or broken (status 1). " + AGAIN,
            _interpreter("#!/bin/sh\nexit 1\n"),
            PASSES,
        ),
        _both(
            "the interpreter does nothing",
            UNCHECKED + "…/python3 is missing or broken (status 0). " + AGAIN,
            _interpreter("#!/bin/sh\n"),
            PASSES,
        ),
        _both(
            "the interpreter is killed at its start",
            UNCHECKED + "…/python3 is missing or broken (status 137). " + AGAIN,
            _interpreter("#!/bin/sh\nkill -9 $$\n"),
            PASSES,
        ),
        Fault(
            "the interpreter is killed at work",
            _interpreter("#!/bin/sh\ncat >/dev/null\nkill -9 $$\n"),
            *_everybody(UNKNOWN + "…/python3 was killed (status 137). Try again"),
        ),
        Fault(
            "the interpreter is killed as it reads",
            _interpreter("#!/bin/sh\nprintf 'reading ' >&3\nread line\nkill -9 $$\n"),
            *_everybody(UNKNOWN + "…/python3 was killed (status 137). Try again"),
        ),
        _both(
            "the interpreter is killed when it has read",
            UNCHECKED + "…/python3 was killed (status 137). Try again",
            _appended("__init__.py", "import posix\nposix.kill(posix.getpid(), 9)"),
            PASSES,
        ),
        _both(
            "the package is gone",
            NO_PACKAGE,
            _no_package,
            PASSES,
        ),
        _both(
            "hook/answer.py is gone",
            UNCHECKED + "ImportError: …answer… (…/kvmarm_plugin, Python …). " + AGAIN,
            _without("hook/answer.py"),
            PASSES,
        ),
        _both(
            "hook/answer.py is damaged",
            UNCHECKED + "SyntaxError: … (answer.py, line …) (…). " + AGAIN,
            _damaged("hook/answer.py"),
            PASSES,
        ),
        _both(
            "hook/answer.py is empty",
            UNCHECKED + "AttributeError: …answer… (…). " + AGAIN,
            _empty("hook/answer.py"),
            PASSES,
        ),
        _both(
            "another module that it needs is gone",
            DAMAGED
            + f"ModuleNotFoundError: No module named 'kvmarm_plugin.domain.xml' {REINSTALL}",
            _without("domain/xml.py"),
            PASSES,
        ),
        _both(
            "another module that it needs is damaged",
            DAMAGED + f"SyntaxError: … (rehearse.py, line …) {REINSTALL}",
            _damaged("rehearse.py"),
        ),
        _both(
            "a data file is gone",
            DAMAGED + f"FileNotFoundError: …registers.tsv' {REINSTALL}",
            _without("registers/registers.tsv"),
        ),
        _both(
            "model/policy.py is gone",
            UNCHECKED + "ModuleNotFoundError: …policy' (…). " + AGAIN,
            _without("model/policy.py"),
        ),
        _both(
            "host/marks.py is gone",
            UNCHECKED + "ModuleNotFoundError: …marks' (…). " + AGAIN,
            _without("host/marks.py"),
        ),
        Fault("no place for compiled modules (disk full, read-only)", _no_bytecode),
    ],
    "The policy": [
        Fault("it cannot be read", _policy(None)),
        Fault("it is no text", _policy(b"\xff\xfe\0" + _WARN)),
        Fault(
            "it is not YAML", _policy(b"on-drift: [refuse\non-migrate: {warn\non-restore: &warn\n")
        ),
        Fault(
            "it says warn", _policy(_WARN), misfit=WARNED + MISFIT.replace("cannot", "should not")
        ),
        _both(
            "it says warn, and /dev/kvm does not exist",
            WARNED
            + NOT_THERE.replace("cannot", "should not")
            + "/dev/kvm does not exist (hint: …)",
            _all(_policy(_WARN), _kernel("open_errno = errno_codes.ENOENT")),
        ),
        _both(
            "it says warn, and model/policy.py is gone",
            UNCHECKED + "ModuleNotFoundError: …policy' (…). " + AGAIN,
            _all(_policy(_WARN), _without("model/policy.py")),
        ),
        Fault(
            "it says on-drift: refuse",
            _policy(b"on-drift: refuse\n"),
            start_misfit=DRIFT.replace("starts, but not", "would not start") + ALLOW,
        ),
        _both(
            "it says on-drift: refuse, and /dev/kvm does not exist",
            NOT_THERE + "/dev/kvm does not exist (hint: …)",
            _all(_policy(b"on-drift: refuse\n"), _kernel("open_errno = errno_codes.ENOENT")),
        )._replace(start_fits=_NO_KVM, start_misfit=_NO_KVM),
    ],
    "The kernel": [
        _both(
            "/dev/kvm does not exist",
            NOT_THERE
            + "/dev/kvm does not exist (hint: is this an ARM host booted at EL2, with KVM in its"
            " kernel? See: …)",
            _kernel("open_errno = errno_codes.ENOENT"),
        ),
        _both(
            "/dev/kvm may not be opened",
            NOT_THERE + "no permission to open /dev/kvm (hint: run as root or join the group kvm)",
            _kernel("open_errno = errno_codes.EACCES"),
        ),
        _both(
            "/dev/kvm cannot be opened",
            NOT_THERE + "cannot open /dev/kvm: Too many open files in system",
            _kernel("open_errno = errno_codes.ENFILE"),
        ),
        _both(
            "no file descriptors for a VM",
            NOT_THERE + f"KVM_CREATE_VM: EMFILE (Too many open files) {_SHORT}",
            _kernel("failures = dict(KVM_CREATE_VM=errno_codes.EMFILE)"),
        ),
        _both(
            "no memory for a vCPU",
            NOT_THERE + f"KVM_CREATE_VCPU: ENOMEM (Cannot allocate memory) {_SHORT}",
            _kernel("failures = dict(KVM_CREATE_VCPU=errno_codes.ENOMEM)"),
        ),
        _both(
            "no memory to set a register",
            NOT_THERE
            + f"KVM_SET_ONE_REG of register 0x…: ENOMEM (Cannot allocate memory) {_SHORT}",
            _kernel("failures = dict(KVM_SET_ONE_REG=errno_codes.ENOMEM)"),
        ),
        _both(
            "it refuses the vCPU",
            NOT_THERE + _VCPU,
            _kernel("failures = dict(KVM_ARM_VCPU_INIT=errno_codes.EINVAL)"),
        )._replace(
            start_fits=f"kvmarm: GUEST cannot start on this host: {_VCPU}{_REFRESH}{ALLOW}",
            start_misfit=f"kvmarm: GUEST cannot start on this host: {_VCPU}{_REFRESH}{ALLOW}",
        ),
        _both(
            "it answers slowly",
            NOT_THERE + "checking took longer than … s; the host may be overloaded",
            _kernel("slow = 'KVM_CREATE_VM'"),
        ),
        _both(
            "/dev/kvm hangs when it is opened",
            NOT_THERE + "checking took longer than … s; the host may be overloaded",
            _kernel("slow = 'open'"),
        ),
        Fault(
            "sysfs does not tell the CPUs, and the guest is pinned to a cluster",
            _all(
                _without_sysfs,
                _in_records(
                    lambda xml: xml.replace(b"<kvmarm:registers>", _PINNING + b"<kvmarm:registers>")
                ),
            ),
            fits=NOT_THERE
            + "cluster (the kind of CPU that the guest is pinned to): recorded MIDR 0x…, here not"
            " told by sysfs; refuses: …",
            start_fits=MARKED
            + DRIFT.replace(
                "MIDR_EL1.…: recorded 0x…, here 0x…; …",
                "cluster: recorded MIDR 0x…, here not told by sysfs",
            ),
        ),
    ],
    "Memory and time": [
        _both(
            "a call of C takes 10 GB, in what only a record needs",
            NO_MEMORY,
            _appended("domain/record.py", "bytearray(10 << 30)"),
        ),
        _both(
            "a call of C takes 10 GB, in what host-model needs, too",
            NO_MEMORY,
            _appended("domain/xml.py", "bytearray(10 << 30)"),
            PASSES,
        ),
        _both(
            "a call of C does not end",
            UNCHECKED + "it took too long (status 152). Try again",
            _all(_impatient, _appended("domain/xml.py", "sum(range(10 ** 12))")),
            PASSES,
        ),
        _both(
            "Python does not come to an end",
            NOT_THERE + "checking took longer than … s; the host may be overloaded",
            _appended("domain/record.py", "while True: pass"),
        ),
        _both(
            "there is no memory for the package",
            UNCHECKED + "it takes too much memory. Try again",
            _appended("hook/answer.py", "raise MemoryError"),
            PASSES,
        ),
        _both(
            "there is no memory to keep the XML",
            UNCHECKED + "it takes too much memory. Try again",
            lambda place: place.in_script("xml += window", "raise MemoryError; xml += window"),
            PASSES,
        ),
        _both(
            "there is no memory to begin with",
            UNCHECKED + f"…/python3 is missing or broken (status 1). {AGAIN}",
            lambda place: place.in_script("bytearray(overlap + 65536)", "bytearray(10 << 30)"),
            PASSES,
        ),
        _both(
            "a reason of 4 MB",
            NOT_THERE + "xxx…… (cut: … characters)",
            _appended("domain/record.py", "def find(_): raise RecordError('x' * 4000000)"),
        ),
        _both(
            "a reason of 4 MB, and the policy says warn",
            WARNED + NOT_THERE.replace("cannot", "should not") + "\\U0001…… (cut: … characters)",
            _all(
                _policy(_WARN),
                _appended(
                    "domain/record.py", "def find(_): raise RecordError(chr(0x1ffff) * 4000000)"
                ),
            ),
        ),
    ],
    "The record": [
        _both(
            "the XML ends in it",
            NOT_THERE + "not well-formed XML: …, line … (hint: …)",
            _in_records(lambda xml: xml[: xml.index(b"<kvmarm:reglist>") + 100]),
        ),
        _both(
            "a part of it is missing",
            NOT_THERE
            + "the domain's kvmarm record is broken: nothing called 'registers' (hint: refresh the"
            " domain: its record is made anew from its intent)",
            _in_records(
                lambda xml: re.sub(rb"<kvmarm:registers>[^<]*</kvmarm:registers>", b"", xml)
            ),
        ),
        _both(
            "it is of an unknown version",
            NOT_THERE
            + "the domain's kvmarm record is of version 3; this kvmarm knows versions 1 and 2"
            " (hint: upgrade kvmarm on this host)",
            _in_records(
                lambda xml: xml.replace(b"kvmarm-plugin:target:2", b"kvmarm-plugin:target:3")
            ),
        ),
        _both(
            "there are two",
            NOT_THERE
            + "the domain has more than one kvmarm record (hint: remove all but one with: virsh"
            " edit)",
            _in_records(
                lambda xml: xml.replace(
                    b"</metadata>", b"<k:target xmlns:k='urn:kvmarm-plugin:target:2'/></metadata>"
                )
            ),
        ),
    ],
    "What libvirt gives": [
        Fault("standard input is empty", _set(change=lambda *_: b""), *_everybody(PASSES)),
        Fault("standard input is closed", _set(redirections="<&-"), *_everybody(PASSES)),
        Fault(
            "standard input is closed, and the interpreter is gone",
            _all(_set(redirections="<&-"), _interpreter("")),
            *_everybody(PASSES),
        ),
        _both(
            "the XML has 50 MB",
            TOO_LARGE,
            _set(change=lambda _kind, xml: xml.ljust(_SIZE)),
            PASSES,
        ),
        _both(
            "the XML has 50 MB, and the interpreter is gone",
            NO_PYTHON,
            _all(_set(change=lambda _kind, xml: xml.ljust(_SIZE)), _interpreter("")),
            PASSES,
        ),
        _both("the record comes after 11 MB", TOO_LARGE, _set(change=_behind), PASSES),
        _both(
            "the record comes after 11 MB, and the interpreter is gone",
            NO_PYTHON,
            _all(_set(change=_behind), _interpreter("")),
            PASSES,
        ),
        Fault("the XML does not end", _all(_set(endless=True), _impatient), *_everybody(ENDLESS)),
        Fault(
            "the XML does not end, and the interpreter is gone",
            _all(_set(endless=True), _impatient, _interpreter("")),
            *_everybody(ENDLESS),
        ),
        Fault(
            "standard input cannot be read",
            _set(redirections="0>/dev/null"),
            *_everybody(UNKNOWN + "OSError: …. " + AGAIN),
        ),
        Fault(
            "standard input cannot be read, and the interpreter is gone",
            _all(_set(redirections="0>/dev/null"), _interpreter("")),
            *_everybody(ENDLESS),
        ),
        Fault("standard output is closed", _set(redirections=">&-")),
        Fault("standard output is full", _set(redirections=">/dev/full")),
        Fault("standard error is closed", _set(redirections="2>&-"), lost=True),
        Fault("standard error is full", _set(redirections="2>/dev/full"), lost=True),
        Fault("nobody reads standard error", _set(unread=True), lost=True),
        Fault(
            "nobody reads standard error, and the policy says warn",
            _all(_set(unread=True), _policy(_WARN)),
            misfit=WARNED + MISFIT.replace("cannot", "should not"),
            lost=True,
        ),
        *(
            _both(
                f"nobody reads standard error, and {what}",
                message,
                _all(_set(unread=True), arrange),
                PASSES,
            )._replace(lost=True)
            for what, message, arrange in (
                ("the interpreter is gone", NO_PYTHON, _interpreter("")),
                ("the package is gone", NO_PACKAGE, _no_package),
            )
        ),
        Fault("all three are closed", _set(redirections="<&- >&- 2>&-"), *_everybody(PASSES)),
        Fault(
            "standard error is full, and the policy says warn",
            _all(_set(redirections="2>/dev/full"), _policy(_WARN)),
            misfit=WARNED + MISFIT.replace("cannot", "should not"),
            lost=True,
        ),
        *(
            _both(
                f"standard error is {state}, and {what}",
                message,
                _all(_set(redirections=redirection), arrange),
                PASSES,
            )._replace(lost=True)
            for state, redirection in (("closed", "2>&-"), ("full", "2>/dev/full"))
            for what, message, arrange in (
                ("the interpreter is gone", NO_PYTHON, _interpreter("")),
                ("the package is gone", NO_PACKAGE, _no_package),
            )
        ),
        Fault("a name with quotes, line breaks and escape sequences", _set(name=_NAME)),
        _both(
            "such a name, and the interpreter is gone",
            NO_PYTHON,
            _all(_set(name=_NAME), _interpreter("")),
            PASSES,
        ),
        _both(
            "such a name, and the package is gone",
            NO_PACKAGE,
            _all(_set(name=_NAME), _no_package),
            PASSES,
        ),
    ],
    "/run/kvmarm": [
        Fault("it does not exist: the hook makes it", lambda place: place.forget()),
        Fault(
            "it cannot be written",
            lambda place: place.run.write_text("a file where a directory should be"),
            fits=WARNED
            + "kvmarm: GUEST arrives, but its start will be judged as a cold start: /run/kvmarm"
            " cannot be written: …",
            start_fits=PASSES,
            start_misfit=WARNED
            + DRIFT.partition(". To record")[0]
            + ". This cannot be noted in /run/kvmarm: …",
        ),
        Fault(
            "it cannot be written, and the interpreter is gone",
            _all(
                lambda place: place.run.write_text("a file where a directory should be"),
                _interpreter(""),
            ),
            fits=NO_PYTHON,
            misfit=NO_PYTHON,
            host_model=PASSES,
            start_fits=_NOT_NOTED,
            start_misfit=_NOT_NOTED,
        ),
    ],
    "The system's log": [
        Fault(
            "there is no syslog",
            _log(
                "def _fail(*_): raise OSError(2, 'No such file or directory')\n_Log.syslog = _fail"
            ),
        ),
        Fault("Python has no syslog", _log("sys.modules['syslog'] = None")),
        Fault(
            "syslog hangs",
            # As glibc does: one send that a signal ends, and another try.
            _log(
                "import ctypes\n_libc = ctypes.CDLL(None)\n_Log.syslog = lambda *_: (_libc.pause(),"
                " _libc.pause())"
            ),
        ),
    ],
}
_BY_NAME = {fault.what: fault for faults in _FAULTS.values() for fault in faults}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    """Fault → the place where it is arranged, once."""

    @cache
    def place_of(what: str) -> Place:
        place = Place(tmp_path_factory.mktemp("fault"))
        _BY_NAME[what].arrange(place)
        return place

    return place_of


def _matches(outcome: str, text: str, place: Place) -> bool:
    """Names are shown with escapes by the package, and with question marks by the script, which
    knows ASCII. In commands an odd one gives way to the UUID.
    """
    names = (
        shown(place.name),
        "".join(character if " " <= character <= "~" else "?" for character in place.name),
    )
    for command in ("kvmarm allow", "kvmarm check", "kvmarm refresh", "--security-info"):
        called = place.name if place.name.isalnum() else _UUID
        outcome = outcome.replace(f"{command} GUEST", f"{command} {called}")
    asked = [outcome.replace("GUEST", name) for name in names]
    return any(re.fullmatch(re.escape(line).replace("…", ".*"), text) for line in asked)


def _is_logged(outcome: str, operation: str) -> bool:
    """Whether it is in the system's log: the script does not log what it refuses."""
    return outcome != PASSES and (
        operation == "prepare" or not outcome.startswith((UNCHECKED, UNKNOWN))
    )


def _check(
    place: Place, outcome: str, run: tuple[int, str, str, float], lost: bool = False
) -> None:
    status, out, err, seconds = run
    passes = outcome == PASSES or outcome.startswith((WARNED, MARKED))
    message = _message(outcome)
    assert out == "", "output taints the domain"
    assert seconds < _LONGEST
    assert status == int(not passes)
    if lost or not message:
        assert err == ""
    else:
        assert err.endswith("\n")
        assert len(err.encode()) < _PIPE_BUF
        assert all(character.isprintable() for character in err[:-1]), (
            "one line, and nothing that a terminal obeys"
        )
        assert _matches(message, err[:-1], place), err


def _message(outcome: str) -> str:
    return outcome.replace(WARNED, "").replace(MARKED, "")


def _cases() -> list[tuple[str, str, str]]:
    """Fault, operation and kind of guest. The script and the rehearsal do not look at the
    operation, so each fault meets each operation with some kind; where it decides, in the policy,
    with every kind.
    """
    decides = ["nothing", *(fault.what for fault in _FAULTS["The policy"])]
    return [
        (what, operation, kind)
        for number, what in enumerate(_BY_NAME)
        for turn, kind in enumerate(_guests_once())
        for operation in (
            _LOOKED_AT if what in decides else [_LOOKED_AT[(number + turn) % len(_LOOKED_AT)]]
        )
    ]


@pytest.mark.parametrize(("what", "operation", "kind"), _cases())
def test_operations_that_are_looked_at(
    places: Callable[[str], Place], what: str, operation: str, kind: str
) -> None:
    fault, place = _BY_NAME[what], places(what)
    place.forget()
    outcome = fault.outcome(kind, operation)
    _check(place, outcome, place.call(operation, "begin", kind), fault.lost)
    logged = place.log.read_text().splitlines() if place.log.exists() else []
    if fault not in _FAULTS["The system's log"]:
        assert len(logged) == int(_is_logged(outcome, operation))
        for line in logged:
            assert len(line.encode()) < 2048
            head, _, message = line.partition(": ")
            assert head == operation
            assert _matches(_message(outcome), f"kvmarm: {message}", place)
    marks, tickets = place.noted("marks"), place.noted("arrival")
    if outcome.startswith(MARKED):
        assert marks in ([_UUID], [f"name-{place.name}"])
    else:
        assert marks == []
    if place.run.is_dir():
        assert (tickets == [_UUID]) is (
            kind in _RECORDED
            and operation != "prepare"
            and (outcome == PASSES or outcome.startswith(WARNED))
        )


@pytest.mark.parametrize("what", _BY_NAME)
def test_operations_that_are_none_of_our_business(
    places: Callable[[str], Place], what: str
) -> None:
    for operation, stage in _PASSED:
        _check(places(what), PASSES, places(what).call(operation, stage, "does not fit"))


# -- beyond the table ----------------------------------------------------------------------------


def _modules_on_the_path() -> list[str]:
    """What a rehearsal that refuses, or marks, reads of the package."""
    code = (
        "import sys; sys.path.append(sys.argv[1])\nfrom kvmarm_plugin import rehearse\nfrom"
        " kvmarm_plugin.domain import record\nfrom kvmarm_plugin.hook import answer\nfrom"
        " kvmarm_plugin.judge import contradictions, wording\nfrom kvmarm_plugin.host import"
        " marks\nfrom kvmarm_plugin.model import policy\nprint(*(m for"
        " m in sys.modules if m.startswith('kvmarm_plugin')))"
    )
    run = subprocess.run(
        [_PYTHON, "-I", "-S", "-c", code, str(_ROOT)],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=True,
    )
    names = [name.replace(".", "/") for name in run.stdout.split()]
    files = [name + ("/__init__.py" if (_ROOT / name).is_dir() else ".py") for name in names]
    return sorted(["judge/findings.tsv", *(file[len("kvmarm_plugin/") :] for file in files)])


@pytest.mark.parametrize("harm", ["gone", "damaged", "empty"])
@pytest.mark.parametrize("module", _modules_on_the_path())
def test_every_module(tmp_path: Path, module: str, harm: str) -> None:
    """Whichever it is: a guest that does not fit never arrives, and starts with a mark; one without
    a record is told nothing else: no traceback.
    """
    place = Place(tmp_path)
    {"gone": _without, "damaged": _damaged, "empty": _empty}[harm](module)(place)
    status, out, err, _ = place.call("migrate", "begin", "does not fit")
    assert (status, out, err.count("\n")) == (1, "", 1)
    status, out, err, _ = place.call("prepare", "begin", "does not fit")
    assert (status, out, err.count("\n")) == (0, "", 1)
    assert place.noted("marks")
    status, out, err, _ = place.call("prepare", "begin", "host-model")
    assert (status, out, err) == (0, "", "") or _matches(ADVICE, err[:-1], place)


def test_the_real_time_limit(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.replace("hook/time_limit.py", f"TIME_LIMIT = {_TIME_LIMIT}", "TIME_LIMIT = 2")
    place.replace("model/policy.py", f"seconds: float = {_TIME_LIMIT}", "seconds: int = 10")
    _BY_NAME["it answers slowly"].arrange(place)
    status, _, err, seconds = place.call("prepare", "begin", "fits")
    assert (status, "took longer than 2 s" in err) == (0, True)
    assert 2 <= seconds < 4
    place.policy.write_text("arrival-seconds: 3\n")
    status, _, err, seconds = place.call("migrate", "begin", "fits")
    assert (status, "took longer than 3 s" in err) == (1, True)
    assert 3 <= seconds < 5


@pytest.mark.parametrize("interpreter", [_PYTHON, "/nowhere"])
def test_input_without_an_end(tmp_path: Path, interpreter: str) -> None:
    """Looked at as long as the time limit, in constant memory: 40 MB of address space are
    enough.
    """
    place = Place(tmp_path)
    place.interpreter(interpreter)
    start = time.monotonic()
    command = [
        "/bin/sh",
        "-c",
        'ulimit -v 40000; exec "$@" </dev/zero',
        "sh",
        str(place.hook),
        "guest",
        "migrate",
        "begin",
        "-",
    ]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=30)
    assert (run.returncode, run.stdout) == (1, "")
    assert _matches(ENDLESS, run.stderr[:-1], place)
    assert 2 <= time.monotonic() - start < 5


@pytest.mark.parametrize("trap", ["trap '' ALRM XCPU", ": blocked"])
@pytest.mark.parametrize("interpreter", [_PYTHON, "/nowhere"])
def test_time_limits_hold_whatever_signals_the_caller_ignores_or_blocks(
    tmp_path: Path, interpreter: str, trap: str
) -> None:
    place = Place(tmp_path)
    place.endless = True
    place.interpreter(interpreter)
    _impatient(place)
    mask = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGXCPU} if "blocked" in trap else ()
    )
    try:
        place.before = trap
        status, _, err, seconds = place.call("migrate", "begin", "fits")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert status == 1
    assert _matches(ENDLESS, err[:-1], place)
    assert seconds < _LONGEST


@pytest.mark.parametrize("interpreter", [_PYTHON, "/nowhere"])
@pytest.mark.parametrize(
    "offset", [0, 1, 24, 25, 26, 65535, 65536, 65537, 131072, 10 * 1024 * 1024, 20 * 1024 * 1024]
)
def test_a_record_is_found_wherever_it_is(tmp_path: Path, interpreter: str, offset: int) -> None:
    """And half a record is none."""
    place = Place(tmp_path)
    place.interpreter(interpreter)
    place.change = lambda _kind, _xml: b"\0" * offset + b"urn:kvmarm-plugin:target:"
    assert place.call("migrate", "begin", "plain")[0] == 1
    place.change = lambda _kind, _xml: b"\0" * offset + b"urn:kvmarm-plugin:target" + b"\n:" * 70000
    assert place.call("migrate", "begin", "plain")[0] == 0


@pytest.mark.parametrize("fault", ["nothing", "the interpreter is gone", "the package is gone"])
@pytest.mark.parametrize("character", ["n", "\x1b", "\x9b", "ü", "\u202e", "\U0001f600"])
def test_long_names_are_cut_and_shown_plainly(
    places: Callable[[str], Place], fault: str, character: str
) -> None:
    place = places(fault)
    command = [str(place.hook), character * 30_000, "migrate", "begin", "-"]
    run = subprocess.run(
        command, input=_guests_once()["does not fit"], capture_output=True, env=_ENVIRONMENT
    )
    assert run.returncode == 1
    text = run.stderr.decode()
    assert text[:-1].isprintable()
    assert len(run.stderr) < 3 * 1024 < _PIPE_BUF


@pytest.mark.skipif(platform.machine() == "aarch64", reason="this host's KVM may like the guest")
@pytest.mark.parametrize("kind", _guests())
def test_on_a_host_that_is_not_arm(tmp_path: Path, kind: str) -> None:
    """Nothing is played: /dev/kvm is missing, or is another architecture's."""
    place = Place(tmp_path)
    shutil.rmtree(place.package)
    shutil.copytree(_PACKAGE, place.package)
    status, out, err, _ = place.call("restore", "begin", kind)
    assert (status, out, err.count("\n")) == ((0, "", 0) if kind == "plain" else (1, "", 1))
    if kind in _RECORDED:
        assert re.search(r"/dev/kvm |architecture \(KVM's\): recorded arm64", err)


def test_any_python_3_understands_the_script() -> None:
    """Guests that are not ours depend on nothing else."""
    code = _SCRIPT.read_text(encoding="utf-8").split("-c '")[1].split("\n'")[0]
    ast.parse(code, feature_version=(3, 4))
    assert not [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.JoinedStr)], (
        "f-strings came with 3.6"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("echo 3.8.18", r"is Python 3\.8\.18, and the hook needs 3\.9 or newer \(hint: "),
        ("echo 3.6.15; exit 1", r"is Python 3\.6\.15, and the hook needs"),
        (
            "echo 3.11.2; echo \"ModuleNotFoundError: No module named 'ctypes'\" >&2; exit 1",
            r"cannot run the hook: .*'ctypes' \(hint: ",
        ),
        ("exit 1", r"cannot run the hook: exit status 1 \(hint: "),
        ("", r"cannot run .*, which the hook needs: .*No such file.* \(hint: "),
    ],
)
def test_install_refuses_an_interpreter_that_will_not_do(
    tmp_path: Path, text: str, says: str
) -> None:
    python = tmp_path / "python3"
    if text:
        python.write_text(f"#!/bin/sh\n{text}\n")
        python.chmod(0o755)
    with pytest.raises(KvmarmError, match=says):
        hookfile._check_interpreter(str(python))


def test_install_looks_at_the_hooks_own_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hookfile, "_check_version", lambda: None)
    monkeypatch.setattr(hookfile, "_check_interpreter", asked.append)
    monkeypatch.setattr(daemons, "running", list)
    (tmp_path / "libvirt").mkdir()
    hookfile.install(tmp_path / "libvirt/hooks/qemu.d")
    assert asked == [_PYTHON]


# -- short of memory, and all at once ------------------------------------------------------------


class Replacing(threading.Thread):
    """The package comes and goes, as while it is upgraded."""

    def __init__(self, package: Path) -> None:
        super().__init__()
        self._package = package
        self._end = threading.Event()
        self.rounds = 0

    def stop(self) -> None:
        self._end.set()
        self.join()

    def run(self) -> None:
        away = self._package.with_name("away")
        while not self._end.wait(0.003):
            self._package.rename(away)
            self._end.wait(0.003)
            while True:
                try:
                    away.rename(self._package)
                    break
                except OSError:  # Python has made the directory anew, for compiled modules
                    shutil.rmtree(self._package, ignore_errors=True)
            self.rounds += 1


def _at_once(place: Place, guests: dict[str, Path], limit: int, count: int) -> None:
    """So many hooks at the same time, each of which may have so many KiB of address space."""
    command = [
        "/bin/sh",
        "-c",
        f'ulimit -v {limit}; exec "$@"',
        "sh",
        str(place.hook),
        "guest",
        "migrate",
        "begin",
        "-",
    ]
    runs = []
    for number in range(count):
        kind = [*guests][number % len(guests)]
        with guests[kind].open("rb") as xml:
            process = subprocess.Popen(
                command, stdin=xml, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_ENVIRONMENT
            )
        runs.append((kind, process))
    for kind, process in runs:
        out, err = process.communicate(timeout=60)
        said = re.findall(
            r"^kvmarm: guest .*", err.decode(), re.MULTILINE
        )  # an interpreter may complain, too
        assert out == b"", (limit, kind)
        if kind.startswith("plain"):
            assert (process.returncode, said) == (0, []), (limit, kind, err)
        elif kind != "fits" or process.returncode:
            assert (process.returncode, len(said)) == (1, 1), (limit, kind, err)


def test_short_of_memory_while_the_package_is_replaced(tmp_path: Path) -> None:
    """A guest without a record passes, and one that does not fit never does: from limits at which
    no interpreter starts to those at which all is well, and with 5 MB of XML, which some of them
    have no room for.
    """
    place = Place(tmp_path)
    guests = {}
    for kind in ("plain", "does not fit", "fits"):
        xml = _guests_once()[kind]
        head, mark, tail = xml.partition(b"<os>" if kind == "plain" else b"<metadata>")
        for name, text in ((kind, xml), (f"{kind}, 5 MB", head + b" " * 5_000_000 + mark + tail)):
            if name != "fits, 5 MB":
                guests[name] = tmp_path / name
                guests[name].write_bytes(text)
    replacing = Replacing(place.package)
    replacing.start()
    try:
        _at_once(place, guests, 20_000, 50)
        for limit in range(8_000, 40_001, 1_000):
            _at_once(place, guests, limit, 10)
    finally:
        replacing.stop()
    assert replacing.rounds > 100


# -- the document --------------------------------------------------------------------------------

_INTRODUCTION = """\
<!-- Made by tests/unit/test_hook_faults.py --regenerate-output from the table that it tests. -->
# When the hook's surroundings are broken

What `/etc/libvirt/hooks/qemu.d/50-kvmarm` does when something that it needs is broken. This is an
appendix to [Messages](messages.md), which explains the messages. Four rules decide:

- A guest without a record passes, and nothing is said, whatever is broken, with two exceptions. One
  that asks for host-model could not start anyway, so it is refused, and told what to do. And if the
  XML cannot be read, does not end, or if the interpreter is killed while it reads, it is not known
  whether the guest has a record, and it is treated as if it had one.
- A guest with a record that *arrives* (`migrate begin`, `restore begin`) is refused if it cannot be
  confirmed. `warn` in the policy lets it pass, and so does, once, `kvmarm allow`.
- A guest with a record that *starts* (`prepare begin`) passes, and a file in `/run/kvmarm/marks`
  says that its record may not be true. It is refused only if KVM or QEMU would not start it, or if
  the policy says `on-drift: refuse`. (An arrival has a `prepare begin`, too. The hook finds the
  ticket that it left at the check of that arrival, and lets it pass.)
- The hook looks at these operations only. At every other ({passed}, …) it ends with status 0
  before it starts an interpreter: nothing below concerns a guest that is running.

The hook writes to standard output only for an arrival that passes, and then its XML: if this kernel
has other registers than the record says, or the CPUs that the guest is pinned to (big.LITTLE) have
other numbers here.

| limit | |
|---|---|
| reading the XML | {limit} s |
| then checking a guest that starts | {limit} s |
| then checking a guest that arrives | {arrival} s (`arrival-seconds` in the policy) |
| in that, a scratch guest | {guest:g} s |
| standard error that nobody reads | {say:g} s (the script's own: 1 s) |
| a system log that hangs | {log:g} s |
| memory of the interpreter (RLIMIT_DATA) | {data} MiB |
| its CPU time | {cpu} s |
| XML that is kept; the rest is searched for a record | {size} MiB |

A refusal is one line of less than 2 KiB on standard error, which libvirt shows to whoever started
the guest. Everything is in the system's log, too (`journalctl -t kvmarm-hook`), except for refusals
if the interpreter or the package is missing. If libvirt gives no XML at all, the guest passes.

The columns are kinds of guests: one *without a record*; one that still asks for *host-model*; one
whose record *fits* this host; one whose record does *not fit* it. M1, M2, … are the messages, at
the end; "…" in them is any text. "Marked" means that the guest passes with a mark, and that the
message is in the log, with "GUEST starts unchecked" in place of what it says of an arrival.
"""


def _document() -> str:
    letters: dict[str, str] = {}

    def cell(fault: Fault, kind: str, operation: str) -> str:
        outcome, arrives = fault.outcome(kind, operation), fault.outcome(kind, "migrate")
        if outcome == PASSES:
            return "passes"
        message = _message(outcome)
        if " starts unchecked: " in message and outcome == _of_a_start(arrives.replace(ALLOW, "")):
            message = _message(arrives)
        name = letters.setdefault(message, f"M{len(letters) + 1}")
        if outcome.startswith(MARKED):
            return f"marked: {name}"
        if outcome.startswith(WARNED):
            return f"passes; {name} in the log"
        if not fault.lost:
            return f"refused: {name}"
        return f"refused; {name} {'in the log' if _is_logged(message, operation) else 'is lost'}"

    def cells(fault: Fault) -> list[str]:
        row = []
        for kind in ("plain", "host-model"):
            arrives, starts = (cell(fault, kind, each) for each in ("migrate", "prepare"))
            row.append(arrives if arrives == starts else f"arrives: {arrives}; starts: {starts}")
        for operation in ("migrate", "prepare"):
            row += [cell(fault, kind, operation) for kind in _RECORDED]
        return row

    lines = []
    for title, faults in _FAULTS.items():
        lines += [
            "",
            f"## {title}",
            "",
            "| broken | without a record | host-model | fits, arrives | does not fit, arrives |"
            " fits, starts | does not fit, starts |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [f"| {fault.what} | {' | '.join(cells(fault))} |" for fault in faults]
    lines += ["", "## The messages", "", "| | |", "|---|---|"]
    lines += [
        f"| {letter} | `{message.replace('|', chr(92) + '|')}` |"
        for message, letter in letters.items()
    ]
    introduction = _INTRODUCTION.format(
        passed=", ".join(f"`{operation} {stage}`" for operation, stage in _PASSED),
        limit=time_limit.TIME_LIMIT,
        arrival=HookPolicy.arrival_seconds,
        guest=scratch.GUEST_TIME_LIMIT,
        say=time_limit.PATIENCE,
        log=2 * time_limit.PATIENCE,
        data=int(_in_script(r"ulimit -S -d (\d+)")) >> 10,
        cpu=_in_script(r"ulimit -S -t (\d+)"),
        size=SIZE_LIMIT >> 20,
    )
    return introduction + "\n".join(lines) + "\n"


def _in_script(pattern: str) -> str:
    found = re.search(pattern, _SCRIPT.read_text(encoding="utf-8"))
    assert found, "the script has changed"
    return found[1]


def test_the_script_agrees_with_the_package() -> None:
    """It knows these of itself, because the package may be gone."""
    assert _in_script(r'mark, .* = b"([^"]*)"') == NAMESPACE_STEM
    assert _in_script(r"-e '(urn:[^']*)'") == NAMESPACE_STEM
    assert int(_in_script(r"overlap \+ (\d+) - len")) == SIZE_LIMIT + 1
    assert [
        int(_in_script(rf"{name}(\d+)")) for name in (r"_signal.alarm\(", "timeout ", "end in ")
    ] == [time_limit.TIME_LIMIT] * 3


def test_the_document(regenerate_output: bool) -> None:
    if regenerate_output:
        _DOCUMENT.write_text(_document(), encoding="utf-8")
    assert _DOCUMENT.read_text(encoding="utf-8") == _document(), (
        "pytest tests/unit/test_hook_faults.py --regenerate-output"
    )


_NOBODY_KNOWS = (
    "the interpreter is killed at work",
    "the interpreter is killed as it reads",
    "standard input cannot be read",
)


def test_the_rules_of_the_document() -> None:
    for fault in _BY_NAME.values():
        assert fault.plain in (PASSES, ENDLESS) or fault.what in _NOBODY_KNOWS
        if (
            not fault.what.startswith(("standard input is", "all three"))
            and "warn" not in fault.what
        ):
            assert fault.misfit != PASSES
