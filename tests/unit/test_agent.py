# SPDX-License-Identifier: LGPL-2.1-or-later
"""The agent, on played hosts and with a played libvirt; and as a process, with libvirt's test
driver.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from kvmarm_plugin import rehearse
from kvmarm_plugin.commands import agent as command
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.xml import asks_for_host_model, parse
from kvmarm_plugin.host import left_alone, marks, previous
from kvmarm_plugin.host.libvirtd import ADDED, DEFINED, Connection
from kvmarm_plugin.model import policy as policies
from kvmarm_plugin.model.policy import Policy, PolicyError
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.watch import agent as agents
from kvmarm_plugin.watch import renewal
from kvmarm_plugin.watch.agent import Agent, Tools
from kvmarm_plugin.watch.renewal import Renewer

from ..corpus import host
from .fakelibvirt import FakeDomain
from .test_adopt import _UUID, Here, _written, here  # noqa: F401  # a fixture

_UPDATED = 1
_N1 = "trixie-neoverse-n1"
_ROOT = Path(__file__).parents[2]


class Watched:
    """An agent on a played host, and what it has said."""

    def __init__(self, played: Here, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.profile: HostProfile = host(_N1)
        self.played = played
        self.said: list[str] = []
        self.clock = 0.0
        monkeypatch.setattr(agents, "System", lambda: played.be(self.profile))
        monkeypatch.setattr(time, "monotonic", lambda: self.clock)
        connect = lambda: Connection("qemu:///system")  # noqa: E731
        self.agent = Agent(
            connect,
            Tools(lambda: policy, lambda: Resolver(self.profile, policy), lambda: self.profile),
            Renewer(connect, self.said.append),
            self.said.append,
        )

    def look(self) -> None:
        """What follows an event."""
        self.happened(DEFINED, _UPDATED)
        self.work()

    def happened(self, event: str, detail: int) -> None:
        self.agent.happened(_UUID, event, detail)

    def work(self) -> None:
        """What is due; where nothing is, it would wait."""
        if not any(when <= self.clock for when in self.agent._wanted.values()):
            return
        self.turn()

    def turn(self) -> None:
        with Connection("qemu:///system") as connection:
            self.agent._work(connection)

    def guest(self, xml: str, state: str = "SHUTOFF_SHUTDOWN") -> FakeDomain:
        return self.played.guest(xml, state)


@pytest.fixture
def watch(
    here: Here,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Policy], Watched]:
    for module, name in ((previous, "previous"), (left_alone, "left")):
        monkeypatch.setattr(module, "DIRECTORY", str(tmp_path / name))
    monkeypatch.setattr(marks, "DIRECTORY", str(tmp_path / "marks"))
    (tmp_path / "marks/marks").mkdir(parents=True)
    return lambda policy: Watched(here, policy, monkeypatch)


@pytest.fixture
def watched(watch: Callable[[Policy], Watched]) -> Watched:
    return watch(Policy())


def _host_model(watched: Watched) -> str:
    return _written(watched.profile, "<cpu mode='host-model' check='partial'/>")


def _record_of(xml: str | None) -> bool:
    assert xml is not None
    return record.find(parse(xml.encode())) is not None


def test_a_guest_that_is_defined_with_host_model_becomes_concrete(watched: Watched) -> None:
    guest = watched.guest(_host_model(watched))
    before = guest.config
    watched.look()
    assert guest.calls == [("define", "")]
    assert guest.config is not None
    assert not asks_for_host_model(parse(guest.config.encode()))
    assert _record_of(guest.config)
    (kept,) = Path(previous.DIRECTORY, _UUID).iterdir()
    assert (kept.read_text(), kept.stat().st_mode & 0o777) == (before, 0o600)
    (line,) = watched.said
    assert line.startswith("guest: it asks for host-model: host-model on virt-10.0 → host-")
    assert str(kept.parent) in line


def test_a_guest_that_is_forgotten_meanwhile_stays_as_it_is(watched: Watched) -> None:
    guest = watched.guest(_host_model(watched))
    guest.on_read = lambda: left_alone.add(guest.uuid)
    watched.look()
    assert guest.calls == []
    assert watched.said == ["guest: it is left alone, since it was forgotten or undone"]
    assert not watched.agent._windows


def test_its_own_events_leave_it_nothing_to_do(watched: Watched) -> None:
    guest = watched.guest(_host_model(watched))
    watched.look()
    watched.happened(DEFINED, _UPDATED)  # its own
    for _ in range(3):
        watched.work()
        watched.clock += 10
    assert guest.calls == [("define", "")]
    assert len(watched.said) == 1
    assert not watched.agent._wanted
    assert not watched.agent._windows


@pytest.mark.parametrize(
    ("policy", "calls"),
    [
        (Policy(), [("config", record.NAMESPACE)]),
        (Policy(adopt="pin"), [("define", "")]),
        (Policy(adopt="off"), []),
        (Policy(excepted=("gu*",)), []),
    ],
    ids=["record", "pin", "off", "except"],
)
def test_other_guests_are_adopted_as_the_policy_says(
    watch: Callable[[Policy], Watched], policy: Policy, calls: list[tuple[str, str]]
) -> None:
    watched = watch(policy)
    guest = watched.guest(_written(watched.profile))
    watched.look()
    assert guest.calls == calls
    watched.look()
    assert guest.calls == calls


@pytest.mark.parametrize("reaction", ["renew", "warn", "refuse"])
def test_a_stored_record_follows_this_host_if_the_policy_says_so(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reaction: str
) -> None:
    """Else the hook would find no drift at the next start. What runs is recorded in any case."""
    path = tmp_path / "policy.yaml"
    path.write_text(f"on-drift: {reaction}\n")
    path.chmod(0o644)
    monkeypatch.setattr(policies, "DEFAULT_PATH", str(path))
    resolved = Resolver(host("sid-neoverse-n1"), Policy()).resolve(_host_model(watched).encode())
    guest = watched.guest(resolved.decode(), "RUNNING_BOOTED")
    for _ in range(2):
        watched.look()
        guest.state = "SHUTOFF_SHUTDOWN"
        watched.happened("STOPPED", 0)
        watched.work()
    stored = [call for call in guest.calls if call[0] == "config"]
    assert stored == ([("config", record.NAMESPACE)] if reaction == "renew" else [])
    assert ("live", record.NAMESPACE) in guest.calls
    assert any("stored" in line for line in watched.said) == bool(stored)


def test_a_guest_that_starts_without_a_record_gets_one(watched: Watched) -> None:
    guest = watched.guest(_written(watched.profile), "RUNNING_BOOTED")
    guest.config = None  # transient
    watched.happened("STARTED", 0)
    watched.work()
    assert guest.calls == [("live", record.NAMESPACE)]
    assert _record_of(guest.live)


def test_a_guest_whose_user_has_left_kvmarm_is_left_alone(watched: Watched) -> None:
    guest = watched.guest(_host_model(watched))
    left_alone.add(_UUID)
    watched.look()
    assert guest.calls == []


def test_what_a_migration_blocks_is_tried_again(watched: Watched) -> None:
    guest = watched.guest(_host_model(watched))
    guest.refuses = 3
    watched.look()
    for _ in range(3):
        watched.clock += 1
        watched.work()
    assert guest.calls == [("define", "")]
    assert watched.said[0] == "guest: libvirt: unsupported configuration: no"
    assert len(watched.said) == 2  # one refusal is told, once


def test_what_is_refused_for_ever_is_given_up(watched: Watched) -> None:
    guest = watched.guest(_host_model(watched))
    guest.refuses = 1 << 30
    watched.look()
    for _ in range(1000):
        if not watched.agent._wanted:
            break
        watched.clock += 1
        watched.work()
    assert not watched.agent._wanted
    watched.look()  # until something happens to it
    assert watched.agent._wanted


def test_what_failed_by_a_broken_policy_is_done_when_that_is_mended(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = watched.guest(_host_model(watched))
    tools = watched.agent._tools
    broken = PolicyError("policy.yaml, line 1: sve cannot be 'maybe'")

    def fail() -> Any:
        raise broken

    watched.agent._tools = tools._replace(resolver=fail)
    watched.look()
    assert (guest.calls, watched.said) == ([], [f"guest: {broken}"])
    watched.clock += 100
    watched.work()
    assert not watched.agent._wanted, "it is not waited for"
    for told in (2, 3):
        watched.agent.change()
        watched.turn()
        assert watched.said == [f"guest: {broken}"] * told, "what is changed in vain is told again"
    watched.agent._tools = tools
    watched.agent.change()
    watched.turn()
    assert guest.calls == [("define", "")]
    assert not watched.agent._failed


def test_a_policy_that_changes_moves_no_guest_that_is_done(watched: Watched) -> None:
    guest = watched.guest(_host_model(watched))
    watched.look()
    watched.clock += 5
    watched.work()
    guest.calls.clear()
    watched.agent.change()
    watched.agent.ring()  # or it would wait
    watched.turn()
    assert (guest.calls, watched.agent._wanted) == ([], {})


def test_an_edit_between_reading_and_writing_is_seen_and_kept(watched: Watched) -> None:
    guest = watched.guest(_host_model(watched))
    edited: list[str] = []

    def edit() -> None:
        if len(edited) < 1 and guest.config is not None:
            guest.config = guest.config.replace("</name>", "</name><title>edited</title>")
            edited.append(guest.config)

    reads = iter(range(100))
    guest.on_read = lambda: edit() if next(reads) == 1 else None
    watched.look()
    assert guest.calls == []  # the definition that was read is not there any more
    watched.clock += 1
    watched.work()
    assert guest.calls == [("define", "")]
    assert guest.config is not None
    assert "<title>edited</title>" in guest.config


def test_a_collision_is_reported(watched: Watched) -> None:
    """Somebody defines it between the last look and the agent's own definition: two seconds later,
    as kvmarm(1) has it.
    """
    guest = watched.guest(_host_model(watched))
    watched.look()
    watched.happened(DEFINED, _UPDATED)  # the other's
    watched.happened(DEFINED, _UPDATED)  # its own
    watched.work()
    watched.clock += 1.9
    watched.work()
    assert len(watched.said) == 1  # libvirt may have more to tell
    watched.clock += 0.2
    watched.work()
    assert "COLLISION" in watched.said[-1]
    assert guest.config is not None


def test_a_collision_is_reported_though_the_agent_is_asked_again(watched: Watched) -> None:
    """Somebody collides with the agent, and goes on defining it."""
    guest = watched.guest(_host_model(watched))
    watched.look()
    watched.happened(DEFINED, _UPDATED)  # what was lost
    watched.happened(DEFINED, _UPDATED)  # the agent's own
    guest.config = _host_model(watched)
    watched.look()
    assert guest.calls == [("define", "")]  # two replacements are not told apart
    watched.clock += 5
    watched.work()
    assert "COLLISION" in watched.said[1]
    assert guest.calls == [("define", ""), ("define", "")]


def test_a_record_that_is_written_meanwhile_hides_no_collision(watched: Watched) -> None:
    guest = watched.guest(_host_model(watched))
    watched.look()
    watched.happened(DEFINED, _UPDATED)
    watched.happened(DEFINED, _UPDATED)
    assert guest.config is not None
    guest.config = guest.config.replace(" by=", " renewed='here' by=")
    watched.clock += 5
    watched.work()
    assert "COLLISION" in watched.said[-1]


def test_who_edits_what_the_agent_has_written_has_lost_nothing(watched: Watched) -> None:
    guest = watched.guest(_host_model(watched))
    watched.look()
    watched.happened(DEFINED, _UPDATED)
    assert guest.config is not None
    guest.config = guest.config.replace("</name>", "</name><title>edited</title>")
    watched.happened(DEFINED, _UPDATED)
    watched.clock += 5
    watched.work()
    assert len(watched.said) == 1
    assert guest.calls == [("define", "")]


def _counted(call: Callable[..., Any], calls: list[str], name: str) -> Callable[..., Any]:
    def counted(*arguments: Any, **more: Any) -> Any:
        calls.append(name)
        return call(*arguments, **more)

    return counted


def test_all_guests_take_one_connection_and_one_kernel(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And guests of one kind are asked about once."""
    opened: list[str] = []
    for module in (agents, renewal):
        kernel = _counted(lambda: watched.played.be(watched.profile), opened, "kvm")
        monkeypatch.setattr(module, "System", kernel)
    libvirt = watched.played.libvirt
    monkeypatch.setattr(libvirt, "open", _counted(libvirt.open, opened, "libvirt"))
    monkeypatch.setattr(
        rehearse, "KernelOffer", _counted(rehearse.KernelOffer, opened, "scratch vCPU")
    )
    resolved = Resolver(watched.profile, Policy()).resolve(_host_model(watched).encode()).decode()
    for number in range(5):
        guest = watched.guest(resolved)
        guest.title, guest.uuid = f"guest-{number}", f"{_UUID[:-1]}{number}"
        marks.mark(guest.uuid, "it has started as something else")
    ticks = iter(range(10000))
    monkeypatch.setattr(time, "monotonic", lambda: 5.0 * next(ticks))
    watched.agent.once()
    assert opened.count("libvirt") == 1
    # What works through the marks asks while it has the kernel open, and so does the agent.
    assert opened.count("scratch vCPU") == 2 <= opened.count("kvm") < 5


def test_who_defines_it_later_has_lost_nothing(watched: Watched) -> None:
    guest = watched.guest(_host_model(watched))
    watched.look()
    watched.happened(DEFINED, _UPDATED)
    guest.config = _written(watched.profile, "<cpu mode='custom'><model>none</model></cpu>")
    watched.happened(DEFINED, _UPDATED)
    watched.clock += 5
    watched.work()
    assert not any("COLLISION" in line for line in watched.said)


def test_a_domain_that_was_undefined_meanwhile_does_not_come_back(watched: Watched) -> None:
    guest = watched.guest(_host_model(watched))
    watched.look()
    watched.happened("UNDEFINED", 0)
    watched.happened(DEFINED, ADDED)
    watched.clock += 5
    watched.work()
    assert guest.calls == [("define", ""), ("undefine", "72")]
    assert "undefined again" in watched.said[-1]


def test_a_domain_that_is_gone_is_forgotten(watched: Watched) -> None:
    watched.guest(_host_model(watched))
    watched.look()
    watched.played.libvirt.domains.clear()
    watched.clock += 5
    watched.look()
    assert not watched.agent._windows
    assert not watched.agent._wanted


def test_once_looks_at_all(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = watched.guest(_host_model(watched))
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    assert watched.agent.once()
    assert guest.calls == [("define", "")]


def test_this_host_is_probed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[str] = []
    monkeypatch.setattr(command, "read_profile", _counted(lambda _: host(_N1), probed, "here"))
    monkeypatch.setattr(command, "read_policy", lambda _: Policy())
    monkeypatch.setattr(command, "read_pool", lambda _: None)
    tools = command._Tools()
    assert tools.resolver() is tools.resolver()
    assert tools.profile() is tools.profile()
    assert len(probed) == 1


# -- the process ---------------------------------------------------------------------------------


def _start(directory: Path, *more: str) -> subprocess.Popen[str]:
    """An agent of libvirt's test driver; /run/kvmarm is elsewhere."""
    code = (
        "import sys; from kvmarm_plugin.host import marks; "
        f"marks.DIRECTORY = {str(directory)!r}; "
        "from kvmarm_plugin.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "agent", "-c", "test:///default", *more],
        stderr=subprocess.PIPE,
        text=True,
        cwd=_ROOT,
        env={**os.environ, "NOTIFY_SOCKET": str(directory / "notify")},
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_it_tells_systemd_and_ends_at_once(tmp_path: Path) -> None:
    pytest.importorskip("libvirt")
    (tmp_path / "marks").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(60)
        with _start(tmp_path) as process:
            assert notified.recv(100) == b"READY=1"
            deadline = time.monotonic() + 60
            while not (tmp_path / "renew.socket").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        assert notified.recv(100) == b"STOPPING=1"
    assert not (tmp_path / "renew.socket").exists()


# An agent of libvirt's test driver, whose events are libvirt's own; somebody else has a connection
# to the same, and defines the guest before or after the agent does.
_BESIDE = """
import os, re, sys
from threading import Timer
from unittest.mock import patch
import libvirt
from kvmarm_plugin.host import left_alone, previous
from kvmarm_plugin.host.libvirtd import Connection, run_events
from kvmarm_plugin.kvm.device import System
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.watch import agent
from kvmarm_plugin.watch.renewal import Renewer
from tests.corpus import host
from tests.corpus import GUEST
from tests.unit.fakekernel import FakeKernel

directory, when = sys.argv[1:]
previous.DIRECTORY, left_alone.DIRECTORY = f"{directory}/previous", f"{directory}/left"
profile = host("trixie-neoverse-n1")
agent.System = lambda: System(FakeKernel.from_profile(profile))
run_events()
other = libvirt.open("test:///default")
def title(word):
    uuid = "<uuid>11111111-2222-3333-4444-555555555555</uuid>"
    return re.sub("<name>.*?</name>", f"\\\\g<0>{uuid}<title>{word}</title>", GUEST.decode())
other.defineXML(title("mine"))
class Raced(Connection):
    def define(self, xml, validate):
        if when == "before":
            other.defineXML(title("lost"))
        name = super().define(xml, validate)
        if when == "after":
            Timer(0.5, lambda: other.defineXML(xml.replace("mine", "kept"))).start()
        return name
connect = lambda: Raced("test:///default")
tools = agent.Tools(Policy, lambda: Resolver(profile, Policy()), lambda: profile)
uname = os.uname_result(("Linux", "here", profile.kernel, "", "aarch64"))
with patch.object(os, "uname", lambda: uname):
    agent.Agent(connect, tools, Renewer(connect, print), print).once()
print(re.search("<title>(.*)</title>", other.lookupByName("guest").XMLDesc(2))[1])
"""


@pytest.mark.parametrize(
    ("when", "title", "collides"),
    [("never", "mine", False), ("before", "mine", True), ("after", "kept", False)],
)
def test_collisions_by_events_of_libvirt(
    tmp_path: Path, when: str, title: str, collides: bool
) -> None:
    pytest.importorskip("libvirt")
    done = subprocess.run(
        [sys.executable, "-c", _BESIDE, str(tmp_path), when],
        capture_output=True,
        text=True,
        cwd=_ROOT,
        timeout=120,
    )
    *said, last = done.stdout.splitlines()
    assert last == title, done.stderr
    assert any("COLLISION" in line for line in said) is collides


def test_it_watches_only_its_own_host(tmp_path: Path) -> None:
    with _start(tmp_path, "-c", "qemu+ssh://beta/system") as process:
        _, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert error == (
        "kvmarm: qemu+ssh://beta/system is another host (hint: run kvmarm agent there)\n"
    )
