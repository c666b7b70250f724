# SPDX-License-Identifier: LGPL-2.1-or-later
"""An emulated ARM host: real /dev/kvm, real libvirtd, and a root shell to use them with.

    with Host(HostSpec(suite="trixie", cpu="neoverse-n1")) as host:
        host.install("dist/kvmarm_plugin-1.0-py3-none-any.whl")
        print(host.run("kvmarm probe").stdout)

A host boots from a throw-away overlay on its suite's image, so every boot is fresh and nothing
needs to be shut down.  It is reached by ssh through a port that the kernel chose on 127.0.0.1; it
reaches nothing itself.  Two hosts with a network between them: pair.py.  What runs on a host as a
guest: guest.py.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Union, final

from . import capabilities, emulator, image, machine, process
from .errors import HostGone, LabError, LabTimeout, step

BOOT_SECONDS = 180.0
RUN_SECONDS = 120.0
MONITOR_SECONDS = 30.0
READY = "lab: ready"
FAILED = "lab: failed"
SSH_CONFIG = Path(__file__).with_name("ssh_config")
ADDRESS = "127.0.0.1"
DIRECTORY_PREFIX = "kvmarm-lab-"  # and our process id

Command = Union[str, Sequence[str]]


@dataclass(frozen=True)
class HostSpec:
    """What kind of host."""

    suite: str = "trixie"
    cpu: str = (  # a QEMU model and its properties: "neoverse-n1,midr=0x413fd0c1", "max,sve256=on"
        "neoverse-n1"
    )
    cntfrq: int | None = None  # Hz, of the generic timer; None: what the model has
    append: str = ""  # to the kernel's command line
    memory: int = 2048  # MiB
    cores: int = 2
    gic: int = 3
    name: str = "host"

    def qemu_cpu(self) -> str:
        """The argument of -cpu."""
        model, *properties = self.cpu.split(",")
        if model == "max" and not any(p.startswith("pauth") for p in properties):
            # The architected algorithm (QARMA) makes TCG many times slower: take QEMU's own.
            properties.append("pauth-impdef=on")
        if self.cntfrq is not None:
            properties.append(f"cntfrq={self.cntfrq}")
        return ",".join((model, *properties))


@dataclass(frozen=True)
class Result:
    """What a command on a host did."""

    rc: int
    stdout: str
    stderr: str


class CommandFailed(LabError):
    """A command on a host ended with another status than 0."""

    def __init__(self, host: str, command: str, result: Result) -> None:
        output = (result.stdout[-1500:] + result.stderr[-3000:]).rstrip()
        super().__init__(f"{host}: `{command}` exited with {result.rc}\n{output}")
        self.result = result


@final
class Host:
    """One host.  A context manager: boots on entry (unless booted already), stops on exit."""

    def __init__(
        self,
        spec: HostSpec = HostSpec(),
        link: socket.socket | None = None,
        keeps_disk: bool = False,
    ) -> None:
        """`link` is one end of a socket pair, the cable of a second network interface (pair.py).
        With `keeps_disk` the same disk can be booted again.
        """
        self.spec = spec
        self._keeps_disk = keeps_disk
        self._link = link
        self._built: image.Image | None = None
        self._qemu: subprocess.Popen[bytes] | None = None
        self._ssh: subprocess.Popen[bytes] | None = None
        self._directory = Path(tempfile.mkdtemp(prefix=f"{DIRECTORY_PREFIX}{os.getpid()}-"))
        # Removed with this object, or when Python ends (if it is not killed: sweep() is for that).
        weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)

    def __repr__(self) -> str:
        return f"<Host {self.spec.name}: {self.spec.suite} {self.spec.cpu}>"

    def __enter__(self) -> Host:
        return self if self._qemu else self.boot()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def console(self) -> Path:
        """The log of the serial console, and of QEMU itself."""
        return self._path("console.log")

    def _path(self, name: str) -> Path:
        return self._directory / name

    # Life

    def boot(self, timeout: float = BOOT_SECONDS) -> Host:
        """Start, and wait until it can be used."""
        self.start()
        with step(f"{self.spec.name} booted: {self.spec.suite}, {self.spec.qemu_cpu()}"):
            self.wait(timeout)
        return self

    def start(self) -> None:
        """Start without waiting: wait() has to follow."""
        if self._qemu:
            raise LabError(f"{self!r} runs already")
        self._built = image.build(self.spec.suite)
        self.console.write_bytes(b"")
        fds = (self._link.fileno(),) if self._link else ()
        self._qemu = process.spawn(self._qemu_command(), self.console, pass_fds=fds)

    def wait(self, timeout: float = BOOT_SECONDS) -> None:
        """Wait until libvirt answers, and connect; stops the host if that fails."""
        deadline = time.monotonic() + timeout
        try:
            self._wait_for_console(deadline)
            self._connect(deadline)
            self._save_capabilities()
        except BaseException:
            self.stop()
            raise

    def boot_again(self, spec: HostSpec, timeout: float = BOOT_SECONDS) -> Host:
        """Shut it down, and boot the same disk as another kind of host. It is one with systemd."""
        if not self._keeps_disk or self._qemu is None:
            raise LabError(f"{self!r} has no disk to boot again", "Host(spec, keeps_disk=True)")
        self.run("systemctl poweroff", check=False)
        try:
            self._qemu.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabTimeout(
                f"{self!r} did not shut down; its console ends with:\n{self.console_tail()}"
            ) from None
        self.stop()
        self._path("ssh").unlink(missing_ok=True)
        self.spec = spec
        return self.boot(timeout)

    def stop(self) -> None:
        """Switch it off.  It may be booted again, with everything forgotten."""
        for running in (self._ssh, self._qemu):
            if running:
                process.kill(running)
        self._ssh = self._qemu = None

    def console_tail(self, lines: int = 25) -> str:
        text = self.console.read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _image(self) -> image.Image:
        """The image it was booted from: a recipe edited meanwhile would build another."""
        if self._built is None:
            raise LabError(f"{self!r} was never booted")
        return self._built

    def _saved_capabilities(self) -> Path:
        spec = self.spec
        return capabilities.saved(
            self._image(), f"{spec.qemu_cpu()} {spec.gic} {spec.cores} {spec.append}"
        )

    def _save_capabilities(self) -> None:
        path = self._saved_capabilities()
        if not path.exists():
            names = self.run(["ls", capabilities.DIRECTORY]).stdout.split()
            capabilities.save(
                path, {name: self.get(f"{capabilities.DIRECTORY}/{name}") for name in names}
            )

    def _qemu_command(self) -> list[str]:
        spec, built = self.spec, self._image()
        initrd = capabilities.initrd(built, self._saved_capabilities(), self._path("initrd"))
        append = f"console=ttyAMA0 quiet panic=-1 hostname={spec.name} {spec.append}"
        return [
            *(emulator.path(), "-nodefaults", "-no-user-config", "-no-reboot"),
            *("-name", f"kvmarm-lab-{spec.name}", "-display", "none", "-accel", "tcg,thread=multi"),
            *("-machine", f"virt,virtualization=on,gic-version={spec.gic}"),
            *("-cpu", spec.qemu_cpu(), "-smp", str(spec.cores), "-m", str(spec.memory)),
            *("-kernel", str(built.kernel), "-initrd", str(initrd), "-append", append),
            # The overlay: a temporary file without a name, so that nobody has to remove it.
            *("-drive", f"if=none,id=disk,format=raw,cache=unsafe,{self._disk()}"),
            *("-device", "virtio-blk-pci,drive=disk"),
            *("-netdev", f"user,id=net,restrict=on,ipv6=off,hostfwd=tcp:{ADDRESS}:0-:22"),
            *("-device", "virtio-net-pci,netdev=net,romfile="),
            *self._link_options(),
            *("-device", "virtio-rng-pci"),
            *(
                "-chardev",
                f"file,id=console,path={self.console},append=on",
                "-serial",
                "chardev:console",
            ),
            *("-monitor", f"unix:{self._path('monitor')},server=on,wait=off"),
        ]

    def _disk(self) -> str:
        if not self._keeps_disk:
            return f"file={self._image().disk},snapshot=on"
        path = self._path("disk")
        if not path.exists():
            machine.run("cp", "--sparse=always", str(self._image().disk), str(path))
        return f"file={path}"

    def _link_options(self) -> list[str]:
        if self._link is None:
            return []
        # Addresses have to differ at the two ends; names do.
        serial = zlib.crc32(self.spec.name.encode()) & 0xFFFFFF
        mac = f"52:54:01:{serial >> 16:02x}:{serial >> 8 & 255:02x}:{serial & 255:02x}"
        return [
            "-netdev",
            f"socket,id=link,fd={self._link.fileno()}",
            "-device",
            f"virtio-net-pci,netdev=link,romfile=,mac={mac}",
        ]

    def _wait_for_console(self, deadline: float) -> None:
        while True:
            text = self.console.read_text(errors="replace")
            if READY in text:
                return
            if FAILED in text or (self._qemu and self._qemu.poll() is not None):
                raise LabError(
                    f"{self!r} did not boot; its console ends with:\n{self.console_tail()}"
                )
            self._before(deadline, "did not become ready")
            time.sleep(0.1)

    def _before(self, deadline: float, trouble: str) -> None:
        if time.monotonic() > deadline:
            raise LabTimeout(
                f"{self!r} {trouble} in time; its console ends with:\n{self.console_tail()}"
            )

    # The connection: one ssh master, which every command borrows

    def _connect(self, deadline: float) -> None:
        where = ("-i", str(self._image().key), "-p", str(self._ssh_port()), ADDRESS)
        self._ssh = process.spawn(
            ["ssh", *self._ssh_options(), "-N", "-M", *where], self._path("ssh.log")
        )
        while not self._path("ssh").exists():
            if self._ssh.poll() is not None:
                raise LabError(f"{self!r}: no ssh connection: {self._path('ssh.log').read_text()}")
            self._before(deadline, "was not reached by ssh")
            time.sleep(0.05)

    def ssh_options(self) -> list[str]:
        """With these any ssh, to any address, gets to this host; if the connection is gone it
        fails, instead of connecting to who knows whom.
        """
        return [*self._ssh_options(), "-o", "ProxyCommand=false"]

    def _ssh_port(self) -> int:
        """The port that QEMU was given for ssh: the kernel chose it, QEMU's monitor tells it."""
        found = re.search(
            r"HOST_FORWARD\]\s+\S+\s+127\.0\.0\.1\s+(\d+)", self._monitor("info usernet")
        )
        if not found:
            raise LabError(f"{self!r}: QEMU forwards no port")
        return int(found.group(1))

    def _monitor(self, command: str) -> str:
        """Ask QEMU's human monitor."""
        prompt, answer = b"(qemu) ", b""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(MONITOR_SECONDS)
            try:
                connection.connect(str(self._path("monitor")))
                connection.sendall(command.encode() + b"\n")
                while answer.count(prompt) < 2:
                    if not (received := connection.recv(65536)):
                        raise HostGone(
                            f"{self!r} is gone; its console ends with:\n{self.console_tail()}"
                        )
                    answer += received
            except socket.timeout:
                raise LabTimeout(
                    f"{self!r}: QEMU's monitor did not answer `{command}` in {MONITOR_SECONDS:g} s"
                ) from None
        return answer.decode(errors="replace")

    def _ssh_options(self) -> list[str]:
        return ["-F", str(SSH_CONFIG), "-o", f"ControlPath={self._path('ssh')}"]

    def _ssh_command(self, *options: str) -> list[str]:
        return [machine.tool("ssh"), *self.ssh_options(), *options, ADDRESS]

    # Use

    def run(
        self,
        command: Command,
        input: str | bytes | None = None,  # noqa: A002 (named as in subprocess.run)
        check: bool = True,
        timeout: float = RUN_SECONDS,
    ) -> Result:
        """Run a command (a shell's line, or a list of words) as root."""
        line = command if isinstance(command, str) else shlex.join(command)
        data = input.encode() if isinstance(input, str) else input
        done = self._exchange(line, data, timeout)
        result = Result(done.returncode, _text(done.stdout), _text(done.stderr))
        if check and result.rc != 0:
            raise CommandFailed(self.spec.name, line, result)
        return result

    def _exchange(
        self, line: str, data: bytes | None, timeout: float
    ) -> subprocess.CompletedProcess[bytes]:
        try:
            done = subprocess.run(
                [*self._ssh_command(), line],
                input=data or b"",
                capture_output=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            said = _text(error.stdout or b"") + _text(error.stderr or b"")
            raise LabTimeout(
                f"{self!r}: `{line}` took more than {timeout:g} s\n{said[-3000:]}\nits console ends"
                f" with:\n{self.console_tail()}"
            ) from None
        # 255 is ssh's own, unless the command used it.
        if done.returncode == 255 and (self._ssh is None or self._ssh.poll() is not None):
            raise HostGone(f"{self!r} is gone; its console ends with:\n{self.console_tail()}")
        return done

    def attach(self, command: Sequence[str] | None = None) -> int:
        """A command, or an interactive shell, on the terminal we run in; its exit status."""
        line = [] if command is None else [shlex.join(command)]
        options = ["-t"] if command is None else []
        return subprocess.run([*self._ssh_command(*options), *line]).returncode

    def put(self, source: Path | bytes, destination: str, mode: int = 0o644) -> None:
        """Write a file on the host; directories are made as needed."""
        data = source if isinstance(source, bytes) else source.read_bytes()
        target = shlex.quote(destination)
        self.run(
            f'mkdir -p "$(dirname {target})" && cat >{target} && chmod {mode:o} {target}',
            input=data,
        )

    def get(self, source: str) -> bytes:
        """Read a file on the host."""
        line = shlex.join(("cat", source))
        done = self._exchange(line, None, RUN_SECONDS)
        if done.returncode != 0:
            raise CommandFailed(
                self.spec.name, line, Result(done.returncode, "", _text(done.stderr))
            )
        return done.stdout

    def install(self, wheel: str | Path) -> None:
        """Install a wheel (in place of an earlier version) for the system's Python, commands in
        /usr/bin.
        """
        wheel = Path(wheel)
        self.put(wheel, f"/root/{wheel.name}")
        self.run(["/usr/lib/lab/install-wheel", f"/root/{wheel.name}"])


def sweep() -> None:
    """Remove what killed Pythons could not."""
    for path in Path(tempfile.gettempdir()).glob(f"{DIRECTORY_PREFIX}*"):
        owner = path.name[len(DIRECTORY_PREFIX) :].split("-")[0]
        if not Path("/proc", owner).exists():
            shutil.rmtree(path, ignore_errors=True)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
