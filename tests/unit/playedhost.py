# SPDX-License-Identifier: LGPL-2.1-or-later
"""A host that is not there, for shell commands: `kvmarm`, `virsh` and `ssh` are programs that ask
this process, which plays libvirt and the kernel; a guest that starts meets the hook as libvirt
runs it, on a kernel that answers from a table.

This process calls kvmarm's own main() in its main thread, as scratch guests need it, and waits for
the shell meanwhile.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import select
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from kvmarm_plugin import cli
from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.commands import agent
from kvmarm_plugin.domain.pins import CountedCluster
from kvmarm_plugin.fleet import pool
from kvmarm_plugin.host import (
    cpus,
    known,
    left_alone,
    libvirtd,
    marks,
    previous,
    probe,
    qemu,
    qemu_version,
)
from kvmarm_plugin.host import ssh as ssh_edge
from kvmarm_plugin.kvm import device
from kvmarm_plugin.model import policy, profile_json
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.watch import adopt, renewal

from .. import playedkernel
from ..corpus import GUEST
from .fakehost import Scheduler, numbers
from .fakekernel import FakeKernel
from .fakelibvirt import FakeConnection, FakeDomain, FakeError, FakeLibvirt, _Handle

if TYPE_CHECKING:
    from kvmarm_plugin.model.profile import HostProfile

_ROOT = Path(__file__).parents[2]
_QEMU = "/usr/bin/qemu-system-aarch64"
_HOOK = "/etc/libvirt/hooks/qemu.d/50-kvmarm"
_SECONDS = 60.0  # for a command, on a busy machine

# What asks this process: the words of the command, its directory, and standard input where a word
# says that it is read.
_CLIENT = """\
#!/usr/bin/python3 -IS
import json, os, socket, sys
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
given = sys.stdin.read() if {"-", "/dev/stdin"} & set(words) and words[0] != "ssh" else ""
server = socket.socket(socket.AF_UNIX)
server.connect(os.path.join(os.path.dirname(sys.argv[0]), "socket"))
with server.makefile("rw") as file:
    print(json.dumps([words, os.getcwd(), given]), file=file, flush=True)
    status, out, err = json.loads(file.readline())
sys.stderr.write(err)
sys.stdout.write(out)
sys.exit(status)
"""


class Ran(NamedTuple):
    """What a command did; of both outputs, in the order in which they came."""

    status: int
    out: str


class _Libvirt(FakeLibvirt):
    def open(self, uri: str) -> FakeConnection:
        super().open(uri)
        return _Connection(self.domains, self.capabilities)


class _Connection(FakeConnection):
    def defineXMLFlags(self, xml: str, flags: int) -> _Handle:  # noqa: N802
        name = _text(xml, "name")
        if all(domain.title != name for domain in self.domains):
            number = len(self.domains) + 1
            self.domains.append(
                FakeDomain(name, f"{number:08x}-2222-4333-8444-555555555555", "SHUTOFF_SHUTDOWN")
            )
        handle = self.lookupByName(name)
        handle.define(_with_uuid(xml, handle.UUIDString()))
        return handle


class PlayedHost:
    """A host, and a directory with a shell in it.

    Args:
        directory: an empty one.
        here: its profile.
        others: those of hosts that ssh finds, and `--host` by their names.

    Attributes:
        libvirt: what it plays.
        home: where commands run.
    """

    def __init__(
        self,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
        here: HostProfile,
        others: tuple[HostProfile, ...] = (),
    ) -> None:
        self.libvirt = _Libvirt()
        self.home = directory / "home"
        self._directory = directory
        self._profiles = {host.name: host for host in (here, *others)}
        self._here = here
        self._hook: Path | None = None
        # What the handbook calls so → where it is.
        self._places = {
            "/etc/kvmarm": directory / "etc",
            "/var/lib/kvmarm": directory / "lib",
            "/run/kvmarm": directory / "run",
        }
        bin_directory = directory / "bin"
        for each in (self.home, bin_directory, directory / "proc", *self._places.values()):
            each.mkdir()
        (directory / "lib/profiles").mkdir()
        for name in ("kvmarm", "virsh", "ssh"):
            (bin_directory / name).write_text(_CLIENT)
            (bin_directory / name).chmod(0o755)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(bin_directory / "socket"))
        self._server.listen()
        self._play(monkeypatch)

    def close(self) -> None:
        self._server.close()

    def _play(self, monkeypatch: pytest.MonkeyPatch) -> None:
        here, directory = self._here, self._directory
        uname = os.uname_result(("Linux", here.name, here.kernel, "#1", here.architecture))
        monkeypatch.setattr(os, "uname", lambda: uname)
        monkeypatch.setattr(platform, "node", lambda: here.name)
        monkeypatch.setattr(platform, "machine", lambda: here.architecture)
        monkeypatch.setattr(platform, "release", lambda: here.kernel)
        found = [CountedCluster(c.midr, c.revidr, (*numbers(c.cpus),)) for c in here.clusters]
        for module in (adopt, renewal, cpus):
            monkeypatch.setattr(module, "find_clusters", lambda: found)
        Scheduler(monkeypatch, [cpu for cluster in found for cpu in cluster.cpus])
        kernel = FakeKernel.from_profile(here)
        monkeypatch.setattr(device, "SystemCalls", lambda: kernel)
        monkeypatch.setattr(probe, "probe", lambda **_: here)
        monkeypatch.setattr(qemu, "ask", lambda _: here.qemu)
        monkeypatch.setattr(qemu, "find_binary", lambda _: _QEMU)
        assert here.qemu is not None
        version = tuple(int(part) for part in here.qemu.version.split(".")[:2])
        for module in (adopt, qemu_version):
            monkeypatch.setattr(module, "installed_version", lambda: version)
        monkeypatch.setattr(agent, "run_events", lambda: None)
        monkeypatch.setattr(ssh_edge, "profile_text", self._profile_over_ssh)
        monkeypatch.setattr(known, "HOSTS", directory / "lib/profiles")
        monkeypatch.setattr(left_alone, "DIRECTORY", str(directory / "lib/left"))
        monkeypatch.setattr(previous, "DIRECTORY", str(directory / "lib/previous"))
        monkeypatch.setattr(marks, "DIRECTORY", str(directory / "run"))
        monkeypatch.setattr(marks, "STORED", str(directory / "stored"))
        monkeypatch.setattr(libvirtd, "RUNNING", str(directory / "run"))
        monkeypatch.setattr(libvirtd, "PROC", str(directory / "proc"))
        monkeypatch.setattr(policy, "DEFAULT_PATH", str(directory / "etc/policy.yaml"))
        monkeypatch.setattr(pool, "DEFAULT_PATH", str(directory / "etc/pool.yaml"))
        monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
        monkeypatch.setitem(sys.modules, "libvirt", self.libvirt)

    # -- the shell -------------------------------------------------------------------------------

    def run(self, line: str) -> Ran:
        """Run a line of shell, or several."""
        for name, path in self._places.items():
            line = line.replace(name, str(path))
        output = self._directory / "output"
        with output.open("wb") as file:
            shell = subprocess.Popen(
                ["/bin/bash", "-c", line],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=self.home,
                env={"PATH": f"{self._directory}/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            )
            deadline = time.monotonic() + _SECONDS
            while shell.poll() is None:
                if time.monotonic() > deadline:
                    shell.kill()
                    pytest.fail(f"{line}: not done in {_SECONDS:g} s")
                if select.select([self._server], [], [], 0.01)[0]:
                    self._serve()
        text = output.read_text(encoding="utf-8")
        for name, path in self._places.items():
            text = text.replace(str(path), name)
        return Ran(shell.returncode, text)

    def _serve(self) -> None:
        connection, _ = self._server.accept()
        with connection, connection.makefile("rw") as file:
            (program, *words), directory, given = json.loads(file.readline())
            before = Path.cwd()
            os.chdir(directory)
            try:
                answer = getattr(self, f"_{program}")(words, given)
            finally:
                os.chdir(before)
            print(json.dumps(answer), file=file, flush=True)

    def _kvmarm(self, words: list[str], given: str) -> tuple[int, str, str]:
        kept = sys.stdin, sys.stdout, sys.stderr
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n"), io.StringIO()
        sys.stdin, sys.stdout = io.TextIOWrapper(io.BytesIO(given.encode())), out
        sys.stderr = err
        try:
            status = cli.main(words)
        except SystemExit as end:
            status = int(end.code or 0)
        finally:
            sys.stdin, sys.stdout, sys.stderr = kept
        out.seek(0)
        return status, out.read(), err.getvalue()

    def _ssh(self, words: list[str], _given: str) -> tuple[int, str, str]:
        """All that is asked of another host: its profile."""
        *_, target, program, command = words
        assert (program, command) == ("kvmarm", "probe")
        host = target.rpartition("@")[2]
        if host not in self._profiles:
            return 255, "", f"ssh: Could not resolve hostname {host}: Name or service not known\n"
        return 0, profile_json.dumps(self._profiles[host]), ""

    def _profile_over_ssh(self, url: str) -> str:
        """The same asked by kvmarm, which this process cannot serve while it works."""
        target = url.replace("ssh://", "")
        status, out, err = self._ssh([target, "kvmarm", "probe"], "")
        if status != 0:
            raise KvmarmError(f"{url} cannot be reached: {err}")
        return out

    # -- libvirt ---------------------------------------------------------------------------------

    def _virsh(self, words: list[str], given: str) -> tuple[int, str, str]:
        """Only as much of virsh as the handbook needs, with its words."""
        command, *rest = (word for word in words if word not in ("--inactive", "--security-info"))
        try:
            if command == "define":
                xml = given if rest[0] == "/dev/stdin" else Path(rest[0]).read_text()
                name = self.define(xml).title
                return 0, f"Domain '{name}' defined from {rest[0]}\n\n", ""
            domain = self._find(rest[0])
            if command == "dumpxml":
                live = domain.live if "--inactive" not in words else None
                return 0, f"{live or domain.config}", ""
            if command == "start":
                return self._start(domain)
            if command in ("shutdown", "destroy"):
                domain.state, domain.live = "SHUTOFF_SHUTDOWN", None
                return 0, f"Domain '{domain.title}' destroyed\n\n", ""
        except FakeError as error:
            return 1, "", f"error: {error}\n"
        raise AssertionError(f"virsh {command} is not played")

    def _find(self, name: str) -> FakeDomain:
        for domain in self.libvirt.domains:
            if domain.title == name:
                return domain
        raise FakeError(f"failed to get domain '{name}'")

    def define(self, xml: str) -> FakeDomain:
        """Define a domain as libvirt does, with the machine type that `virt` is here."""
        assert self._here.qemu is not None
        newest = next(name for name in self._here.qemu.machines if name != "virt")
        xml = xml.replace("machine='virt'", f"machine='{newest}'")
        return self._find(self.libvirt.open("").defineXMLFlags(xml, 0).name())

    def start(self, name: str) -> None:
        """Start a guest on this host as it was before kvmarm came."""
        self._run_qemu(self._find(name))

    def _start(self, domain: FakeDomain) -> tuple[int, str, str]:
        assert domain.config is not None
        words = (domain.title, "prepare", "begin", "-")
        answer = subprocess.run(
            [str(self._installed_hook()), *words],
            input=domain.config,
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode != 0:
            return (
                1,
                "",
                f"error: Failed to start domain '{domain.title}'\n"
                "error: Hook script execution failed: internal error: Child process (LC_ALL=C"
                f" PATH=/usr/bin {_HOOK} {' '.join(words)}) unexpected exit status"
                f" {answer.returncode}: {answer.stderr}\n",
            )
        self._run_qemu(domain)
        return 0, f"Domain '{domain.title}' started\n\n", ""

    def _run_qemu(self, domain: FakeDomain) -> None:
        domain.state, domain.live = "RUNNING_BOOTED", domain.config
        domain.run += 1
        directory, pid = self._directory, str(4711 + self.libvirt.domains.index(domain))
        (directory / f"run/{domain.title}.pid").write_text(pid)
        process = directory / "proc" / pid
        if not process.exists():
            process.mkdir()
            (process / "exe").symlink_to(_QEMU)
            line = [_QEMU, "-name", f"guest={domain.title}", "-accel", "kvm", "-cpu", "host", ""]
            (process / "cmdline").write_text("\0".join(line))

    def _installed_hook(self) -> Path:
        """The hook, with a copy of the package in which this host's kernel answers."""
        if self._hook is None:
            directory = self._directory
            package = directory / "kvmarm_plugin"
            shutil.copytree(_ROOT / "kvmarm_plugin", package)
            playedkernel.play(package, Resolver(self._here, policy.Policy()).resolve(GUEST))
            for module, old, new in (
                ("host/marks.py", "/run/kvmarm", directory / "run"),
                ("host/marks.py", "/etc/libvirt/qemu", directory / "stored"),
                ("model/policy.py", "/etc/kvmarm/policy.yaml", directory / "etc/policy.yaml"),
            ):
                text = (package / module).read_text(encoding="utf-8")
                assert f'"{old}"' in text
                text = text.replace(f'"{old}"', repr(str(new)))
                (package / module).write_text(text, encoding="utf-8")
            with (package / "__init__.py").open("a", encoding="utf-8") as file:
                file.write(playedkernel.PLAYED_LOG.format(log=str(directory / "log")))
            script = (_ROOT / "hooks/qemu.d/50-kvmarm").read_text(encoding="utf-8")
            self._hook = directory / "50-kvmarm"
            self._hook.write_text(script.replace("@PACKAGE@", shlex.quote(str(package))))
            self._hook.chmod(0o755)
        return self._hook


def _text(xml: str, name: str) -> str:
    found = re.search(rf"<{name}>\s*([^<]*?)\s*</{name}>", xml)
    assert found, f"no {name}"
    return found[1]


def _with_uuid(xml: str, uuid: str) -> str:
    return xml if "<uuid>" in xml else xml.replace("</name>", f"</name>\n  <uuid>{uuid}</uuid>", 1)
