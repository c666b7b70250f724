# SPDX-License-Identifier: LGPL-2.1-or-later
"""/run/kvmarm/renew.socket, by which the hook tells whoever renews records that there is a mark.

What a ring says is not needed: the marks are the queue (host/marks.py).
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import contextmanager, suppress

from ..basics.errors import KvmarmError
from . import marks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_FIRST_PASSED = 3  # file descriptor, sd_listen_fds(3)


def drain(bell: socket.socket) -> bool:
    """Whether somebody has rung a bell that does not block. What stays in it would have systemd
    start a service anew at once.
    """
    rung = False
    while True:
        try:
            bell.recv(64)
        except BlockingIOError:
            return rung
        rung = True


def passed() -> socket.socket | None:
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
def bound() -> Iterator[socket.socket]:
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
