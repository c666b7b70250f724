# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm agent`: resolve, adopt and renew guests, whoever defines and starts them.

The main thread works (watch/agent.py), since scratch guests are stopped by signals; others wait for
the hook to ring, for libvirt's events, and for the signal to end. Being ended at any moment does no
harm but that a collision may go untold, so a call that libvirt does not answer is not waited for.
"""

from __future__ import annotations

import functools
import os
import signal
import socket
import threading
from contextlib import ExitStack

from ..fleet.pool import DEFAULT_PATH as HOST_POOL
from ..host import changes, doorbell, qemu_version
from ..host.libvirtd import Connection, run_events
from ..model.policy import DEFAULT_PATH as HOST_POLICY
from ..resolve.resolver import Resolver
from ..watch.agent import Agent, Tools
from ..watch.renewal import Renewer
from . import DONE, ERROR
from .inputs import check_is_here, read_policy, read_pool, read_profile
from .output import say
from .resolving import Choices, resolver_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any, Callable

    from ..model.policy import Policy
    from ..model.profile import HostProfile


def run(arguments: Namespace) -> int:
    uri, once = arguments.connect, arguments.once
    check_is_here(uri, "agent")
    run_events()
    tools = _Tools()
    agent = Agent(
        lambda: Connection(uri),
        Tools(tools.policy, tools.resolver, tools.profile),
        Renewer(lambda: Connection(uri), say),
        say,
    )
    if once:
        return DONE if agent.once() else ERROR
    with ExitStack() as stack:
        passed = doorbell.passed()
        bell = stack.enter_context(doorbell.bound() if passed is None else passed)
        _end_on_signals(stack)
        _start(_listen, agent, bell)
        _start(changes.watch, os.path.dirname(HOST_POLICY), agent.change)  # and that of HOST_POOL
        agent.run(functools.cache(lambda: _notify("READY=1")))
    return DONE


def _start(call: Callable[..., object], *arguments: object) -> None:
    threading.Thread(target=call, args=arguments, daemon=True).start()


def _listen(agent: Agent, bell: socket.socket) -> None:
    while True:
        bell.recv(64)
        agent.ring()


def _end_on_signals(stack: ExitStack) -> None:
    """Have a thread end this process when it is told to, whatever the main thread waits for. Python
    calls a handler only after that; the number of the signal is written at once.
    """
    numbers, written = socket.socketpair()
    written.setblocking(False)
    signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    ends = {signal.SIGTERM, signal.SIGINT}

    def wait(_written: socket.socket) -> None:  # which has to stay open
        while ends.isdisjoint(numbers.recv(64)):
            pass
        _notify("STOPPING=1")
        stack.close()
        os._exit(DONE)

    for number in ends:
        signal.signal(number, lambda *_: None)
    _start(wait, written)


def _notify(state: str) -> None:
    """Tell systemd, if it started this; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    name = f"\0{address[1:]}" if address[0] == "@" else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.sendto(state.encode(), name)
    except OSError as error:
        say(f"systemd cannot be told {state}: {error.strerror}")


class _Tools:
    """This host's policy, resolver and profile, made anew only when a file has changed that they
    come from: to probe a host takes a second.
    """

    def __init__(self) -> None:
        self._made: dict[str, tuple[object, Any]] = {}
        self._stack = ExitStack()  # of the resolver

    def policy(self) -> Policy:
        policy: Policy = self._get("policy", (HOST_POLICY,), lambda: read_policy(None))
        return policy

    def resolver(self) -> Resolver:
        resolver: Resolver = self._get(
            "resolver", (HOST_POLICY, HOST_POOL, *_emulators()), self._new_resolver
        )
        return resolver

    def profile(self) -> HostProfile:
        profile: HostProfile = self._get("profile", _emulators(), lambda: read_profile(None))
        return profile

    def _new_resolver(self) -> Resolver:
        self._stack.close()
        if read_pool(None) is None:
            return Resolver(self.profile(), self.policy(), advise=say)
        return self._stack.enter_context(resolver_for(Choices(None, None, None, no_pool=False)))

    def _get(self, name: str, files: tuple[str, ...], make: Callable[[], object]) -> Any:
        stamps = [_stamp(path) for path in files]
        if self._made.get(name, (None, None))[0] != stamps:
            self._made.pop(name, None)
            self._made[name] = stamps, make()
        return self._made[name][1]


def _emulators() -> tuple[str, ...]:
    return qemu_version.BINARIES.get(os.uname().machine, ())


def _stamp(path: str) -> object:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
