# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make demo`: the main job, shown on real parts.

On an ARM host with KVM and libvirt it uses that; elsewhere it boots emulated ones. It shows what
libvirt says to host-model, what is made of it, and the guest that then starts and prints from
inside. On emulated hosts the agent makes it, and adopts a guest that was running before; the guest
migrates to a host that is its equal, and is refused by one that is not, with the reason.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

from . import machine
from .errors import LabError
from .guest import (
    HELLO,
    HOST_PASSTHROUGH,
    LINUX_KERNEL,
    MIDR,
    REGISTER_READER,
    TICK,
    TICKER,
    Guest,
    console_path,
    domain_xml,
)
from .host import Host, HostSpec, Result
from .pair import Pair, migrate
from .registers import END, image, parse_registers
from .wheel import build_wheel

HOST_MODEL = "<cpu mode='host-model'/>"
NAME = "kvmarm-demo"
_OLD = "kvmarm-old"
_DEFINED = f"/etc/libvirt/qemu/{NAME}.xml"
_AGENT_LOG = "/var/log/lab/agent.log"
_AGENT_SECONDS = 60.0
_HOOK = "/etc/libvirt/hooks/qemu.d/50-kvmarm"
_START = time.monotonic()


class LocalHost:
    """This machine, with as much of `Host` as the demo needs: an ARM host needs no emulation."""

    spec = HostSpec(name=platform.node())

    def run(self, command: str | list[str], data: str = "", check: bool = True) -> Result:
        line = command if isinstance(command, str) else shlex.join(command)
        done = subprocess.run(
            ["/bin/sh", "-c", line], input=data, capture_output=True, text=True, errors="replace"
        )
        if check and done.returncode != 0:
            raise LabError(f"`{line}` exited with {done.returncode}\n{done.stderr}")
        return Result(done.returncode, done.stdout, done.stderr)


def main() -> int:
    try:
        if platform.machine() == "aarch64" and os.access("/dev/kvm", os.R_OK | os.W_OK):
            say("This is an ARM host with KVM: using it.")
            _local()
        else:
            say(
                "This machine is no ARM host with KVM: emulating some. The guests on them run under"
                " their real KVM."
            )
            machine.setup()
            _emulated()
    except LabError as error:
        print(f"kvmarm: {error}", file=sys.stderr)
        return 1
    say("Done. Next: the handbook, docs/README.md; kvmarm --help; guests in xml-templates/.")
    return 0


def _emulated() -> None:
    equal = {"suite": "trixie", "cpu": "neoverse-n1"}
    with tempfile.TemporaryDirectory() as directory:
        wheel = build_wheel(Path(directory))
        with Pair(HostSpec(name="alpha", **equal), HostSpec(name="beta", **equal)) as (alpha, beta):  # type: ignore[arg-type]
            old = _start_before_kvmarm(alpha)
            for host in (alpha, beta):
                host.install(wheel)
                host.run("kvmarm hook install")
            guest = Guest(alpha, NAME)
            _refuse(guest, domain_xml(NAME, HOST_MODEL, "", kernel=LINUX_KERNEL))
            _start_agent(guest, old)
            _start_guest(guest, "kvmarm")
            guest.wait_for(HELLO)
            _console(guest.console())
            midr = guest.wait_for(MIDR)[1]
            say(
                "The guest moves to beta, a host like alpha: beta's kernel takes every recorded"
                " register."
            )
            migrate(guest, beta, "--persistent")
            moved = guest.on(beta)
            ticks = moved.wait_for("guest: tick [0-9]+")[0]
            say(f"It runs there ({ticks!r}), with the MIDR it had ({midr}).")
        say("Next: the same guest, and gamma, a host whose timer ticks at 25 MHz instead of 62.5.")
        gamma_spec = HostSpec(name="gamma", suite="trixie", cpu="neoverse-n1", cntfrq=25_000_000)
        with Pair(HostSpec(name="alpha", **equal), gamma_spec) as (alpha, gamma):  # type: ignore[arg-type]
            for host in (alpha, gamma):
                host.install(wheel)
                host.run("kvmarm hook install")
            alpha.run("kvmarm define -", domain_xml(NAME, HOST_MODEL, "", kernel=LINUX_KERNEL))
            guest = Guest(alpha, NAME).start()
            guest.wait_for(HELLO)
            say("$ virsh migrate --live kvmarm-demo qemu+tcp://gamma/system")
            refusal = migrate(guest, gamma, check=False)
            _show(refusal.stderr)
            say(
                f"The guest is {guest.state()} on alpha, unharmed. Without the hook its clock would"
                " now run at 0.4 of its speed."
            )


def _local() -> None:
    kvmarm = (
        f"PYTHONPATH={shlex.quote(str(Path(__file__).parents[2]))} {shlex.quote(sys.executable)} -m"
        " kvmarm_plugin"
    )
    host = cast(Host, LocalHost())
    for directory in (Path(REGISTER_READER).parent, Path(console_path(NAME)).parent):
        directory.mkdir(parents=True, exist_ok=True)
    Path(REGISTER_READER).write_bytes(image())
    guest = Guest(host, NAME)
    _refuse(guest, domain_xml(NAME, HOST_MODEL, "", kernel=REGISTER_READER))
    say(f"$ virsh dumpxml --inactive {NAME} | kvmarm define -")
    _show(host.run(f"virsh dumpxml --inactive {NAME} | {kvmarm} define -").stdout)
    _start_guest(guest, kvmarm)
    try:
        guest.wait_for(rf"(?m)^{END}\r?$")
        seen = parse_registers(guest.console())
        say(
            f"The guest read {len(seen)} registers from inside, among them MIDR_EL1 ="
            f" {seen['MIDR_EL1']:#x}."
        )
    finally:
        guest.destroy()


def _start_before_kvmarm(host: Host) -> Guest:
    """A guest as everybody runs them, on a host without kvmarm."""
    say(f"Host {host.spec.name} runs a guest with {HOST_PASSTHROUGH}. kvmarm comes later.")
    old = Guest(host, _OLD).define(domain_xml(_OLD, HOST_PASSTHROUGH, kernel=TICKER)).start()
    old.wait_for(TICK)
    return old


def _refuse(guest: Guest, xml: str) -> None:
    """Define a guest, and show what libvirt says to its start: its own word, without the hook,
    which would say it better.
    """
    host = guest.host
    say(f"A guest with {HOST_MODEL} on host {host.spec.name}. What libvirt says of it:")
    say(f"$ virsh define {NAME}.xml && virsh start {NAME}")
    guest.define(xml)
    # libvirt passes over a hook that is not executable.
    host.run(f"test ! -e {_HOOK} || chmod a-x {_HOOK}")
    try:
        _show(host.run(f"virsh start {NAME}", check=False).stderr)
    finally:
        host.run(f"test ! -e {_HOOK} || chmod a+x {_HOOK}")


def _start_agent(guest: Guest, old: Guest) -> None:
    """Have the agent make what was defined concrete, and adopt what runs."""
    host = guest.host
    say("kvmarm's agent looks after all guests of the host, whoever defines and starts them:")
    say("$ systemctl start kvmarm-agent.service")
    # These hosts have no systemd.
    host.run(f"setsid kvmarm agent </dev/null >{_AGENT_LOG} 2>&1 &")
    deadline = time.monotonic() + _AGENT_SECONDS
    done = (
        f'! grep -q "{HOST_MODEL[:-2]}" {_DEFINED} && virsh metadata {old.name}'
        " urn:kvmarm-plugin:target:2 && virsh metadata --config"
        f" {old.name} urn:kvmarm-plugin:target:2"
    )
    while host.run(done, check=False).rc != 0:
        if time.monotonic() > deadline:
            raise LabError(f"the agent did nothing in {_AGENT_SECONDS:g} s: {_agent_log(host)}")
        time.sleep(0.5)
    _show(_agent_log(host))
    say(
        f"{old.name} was adopted as it runs: nothing of it has changed, and it is judged from now"
        " on, too."
    )


def _agent_log(host: Host) -> str:
    return host.run(f"cat {_AGENT_LOG}").stdout


def _start_guest(guest: Guest, kvmarm: str) -> None:
    for command in (f"show {NAME}", "status"):
        say(f"$ kvmarm {command}")
        _show(guest.host.run(f"{kvmarm} {command}", check=False).stdout)
    say(f"$ virsh start {NAME}")
    guest.start()


def _console(text: str) -> None:
    _show("\n".join(line for line in text.splitlines() if line.startswith("guest:")))


def _show(text: str) -> None:
    for line in text.strip().splitlines():
        print(f"           | {line.rstrip()}", flush=True)


def say(line: str) -> None:
    """One line of what happens, with the seconds since the start."""
    print(f"[{time.monotonic() - _START:5.0f} s] {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
