# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs on a host: `kvmarm agent` looks at one domain, and is killed at every step of that; then it
is not. `killed.py NAME POLICY <XML` prints the steps and how long a replacement takes.

A step is a call of libvirt's or of the file system's. Each agent is a child of this process, which
has probed the host for all.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import libvirt  # type: ignore[import-not-found, unused-ignore]

from kvmarm_plugin.commands import agent as command
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.xml import asks_for_host_model, parse
from kvmarm_plugin.host import previous
from kvmarm_plugin.host.libvirtd import Connection, Domain, run_events
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.watch import agent as agents
from kvmarm_plugin.watch.agent import Agent, Tools
from kvmarm_plugin.watch.renewal import Renewer

_URI = "qemu:///system"
_FILES = frozenset(
    ("open", "mkdir", "rename", "replace", "unlink", "fsync", "write", "flock", "fchmod")
)


class _One(Connection):
    """libvirt, with one domain."""

    name = ""

    def domains(self) -> list[Domain]:
        return [self.domain_by_name(self.name)]


class _NoMarks(Renewer):
    """Other guests are not looked at."""

    def work(self, _connection: Connection | None = None) -> bool:
        return False


class _Steps:
    """Counts the steps of this thread, and kills this process at one."""

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.names: list[str] = []
        self.times: list[float] = []

    def __call__(self, _frame: object, event: str, function: Any) -> None:
        if event != "c_call":
            return
        module, name = getattr(function, "__module__", ""), getattr(function, "__name__", "")
        if module != "libvirtmod" and (module != "posix" or name not in _FILES):
            return
        self.names.append(name)
        self.times.append(time.monotonic())
        if len(self.names) == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def replacement(self) -> float:
        """Seconds from the last reading before a definition until that is replaced; 0 without."""
        for index, name in enumerate(self.names):
            if name.startswith("virDomainDefineXML"):
                return self.times[index + 1] - self.times[index - 1]
        return 0.0


def _agent(tools: Tools, fatal: int, output: int) -> None:
    run_events()
    agent = Agent(lambda: _One(_URI), tools, _NoMarks(lambda: _One(_URI), print), lambda _: None)
    steps = _Steps(fatal)
    sys.setprofile(steps)
    agent.once()
    sys.setprofile(None)
    os.write(output, json.dumps([len(steps.names), steps.replacement()]).encode())


def _run(tools: Tools, fatal: int) -> list[float]:
    """An agent that is killed at this step, which leaves nothing to read; or has fewer."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _agent(tools, fatal, writable)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(writable)
    _, status = os.waitpid(pid, 0)
    with open(readable) as file:
        text = file.read()
    if status not in (0, signal.SIGKILL):
        raise SystemExit(f"the agent ended with status {status:#x} at step {fatal}")
    return json.loads(text) if text else []


def _check(name: str, uuid: str, before: bytes) -> bool:
    """Whether the domain has a record. What it had, it has; and nothing is half there."""
    stored = parse(Path(f"/etc/libvirt/qemu/{name}.xml").read_bytes())
    element = record.find(stored)
    title = stored.find("title")
    assert title is not None
    assert title.content == "kept"
    if element is None:
        assert asks_for_host_model(stored) == asks_for_host_model(parse(before))
    else:
        record.read(element)
        assert not asks_for_host_model(stored)
    for path in Path(previous.DIRECTORY, uuid).glob("[0-9]*.xml"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_bytes() == before, path
    return element is not None


def main(name: str, mode: str) -> None:
    _One.name = name
    agents._OWN_EVENT = 0.2  # there is nobody else
    xml = sys.stdin.read()
    made = command._Tools()
    made.resolver()  # and whatever it takes to ask this host
    tools = Tools(lambda: Policy(adopt=mode), made.resolver, made.profile)
    made.profile()
    connection = libvirt.open(_URI)
    domain = connection.defineXML(xml)
    uuid = domain.UUIDString()
    before = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    killed = with_record = 0
    while True:
        finished = _run(tools, killed + 1)
        has_record = _check(name, uuid, before.encode())
        if finished:
            assert has_record
            break
        killed += 1
        with_record += has_record
        # What it has left is worked on, and nothing is left to do.
        assert _run(tools, 0)
        assert _check(name, uuid, before.encode())
        connection.defineXML(before)
    print(json.dumps({"killed": killed, "with_record": with_record, "seconds": finished[1]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
