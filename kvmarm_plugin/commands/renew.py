# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm renew`: make the records of the guests true that the hook has marked, as they start.

Being ended at any moment does no harm: a mark goes last, and libvirt changes a record in whole.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from contextlib import contextmanager, suppress

from ..basics.errors import KvmarmError
from ..host import marks
from ..host.libvirtd import Connection, is_remote
from ..watch.renewal import Renewer
from . import DONE, ERROR
from .output import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

_PACE = 1.0  # seconds between looks at guests that are starting
_IDLE = 60.0  # seconds without a ring, after which systemd is left to listen
_FIRST_PASSED = 3  # file descriptor, sd_listen_fds(3)


def run(arguments: Namespace) -> int:
    uri, once = arguments.connect, arguments.once
    if is_remote(uri):
        raise KvmarmError(f"{uri} is another host", "on that host: kvmarm renew")
    renewer = Renewer(lambda: Connection(uri), say)
    if once:
        while renewer.work():
            time.sleep(_PACE)
        return ERROR if any(marks.marked()) else DONE
    passed = _passed()
    if passed is not None:
        with passed:
            _serve(renewer, passed, _IDLE)
    else:
        with _bound() as bell:
            _serve(renewer, bell, None)
    return DONE


def _serve(renewer: Renewer, bell: socket.socket, idle: float | None) -> None:
    """Work whenever somebody rings, until nobody has for as long as `idle`."""
    bell.setblocking(False)
    while True:
        # What it says is not needed; what stays in it would have systemd start this anew at once.
        rung = _drain(bell)
        if rung:
            renewer.again()
        timeout = _PACE if renewer.work() else idle
        ready, _, _ = select.select([bell], [], [], timeout)
        if not ready and timeout == idle:
            return


def _drain(bell: socket.socket) -> bool:
    """Whether somebody has rung."""
    rung = False
    while True:
        try:
            bell.recv(64)
        except BlockingIOError:
            return rung
        rung = True


def _passed() -> socket.socket | None:
    """The socket that systemd listened to, if it started this; see sd_listen_fds(3).

    Raises:
        KvmarmError: it passes another.
    """
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return None
    count = os.environ.pop("LISTEN_FDS", "")
    try:
        is_one = count == "1" and stat.S_ISSOCK(os.fstat(_FIRST_PASSED).st_mode)
    except OSError:  # closed
        is_one = False
    if not is_one:
        raise KvmarmError(
            "LISTEN_FDS is not of one socket", "start it with kvmarm-renew.socket, or by hand"
        )
    bell = socket.socket(fileno=_FIRST_PASSED)
    if (bell.family, bell.type) != (socket.AF_UNIX, socket.SOCK_DGRAM):
        raise KvmarmError(
            "the socket of LISTEN_FDS takes no datagrams", "listen with: ListenDatagram="
        )
    return bell


@contextmanager
def _bound() -> Iterator[socket.socket]:
    """The socket, bound here: there is no systemd, or it does not listen.

    Raises:
        KvmarmError: somebody serves it, or this user may not.
    """
    path = f"{marks.DIRECTORY}/{marks.SOCKET}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        try:
            with _umask(0o022):
                os.makedirs(marks.DIRECTORY, 0o755, exist_ok=True)
            if marks.is_heard():
                raise KvmarmError(
                    f"somebody serves {path}", "systemctl status kvmarm-renew.socket may tell who"
                )
            if os.path.lexists(path):
                os.unlink(path)  # one that was ended has left it
            with _umask(0o177):
                bell.bind(path)
        except OSError as error:
            raise KvmarmError(
                f"cannot listen at {path}: {error.strerror or error}", "run this as root"
            ) from None
        try:
            yield bell
        finally:
            with suppress(OSError):  # somebody has removed it
                os.unlink(path)


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
