# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm renew`: make the records of the guests true that the hook has marked, as they start.

Being ended at any moment does no harm: a mark goes last, and libvirt changes a record in whole.
"""

from __future__ import annotations

import select
import time

from ..basics.errors import KvmarmError
from ..host import doorbell, marks
from ..host.libvirtd import Connection, is_remote
from ..watch.renewal import Renewer
from . import DONE, ERROR
from .output import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from socket import socket

_PACE = 1.0  # seconds between looks at guests that are starting
_IDLE = 60.0  # seconds without a ring, after which systemd is left to listen


def run(arguments: Namespace) -> int:
    uri, once = arguments.connect, arguments.once
    if is_remote(uri):
        raise KvmarmError(f"{uri} is another host", "on that host: kvmarm renew")
    renewer = Renewer(lambda: Connection(uri), say)
    if once:
        while renewer.work():
            time.sleep(_PACE)
        return ERROR if any(marks.marked()) else DONE
    passed = doorbell.passed()
    if passed is not None:
        with passed:
            _serve(renewer, passed, _IDLE)
    else:
        with doorbell.bound() as bell:
            _serve(renewer, bell, None)
    return DONE


def _serve(renewer: Renewer, bell: socket, idle: float | None) -> None:
    """Work whenever somebody rings, until nobody has for as long as `idle`."""
    bell.setblocking(False)
    while True:
        if doorbell.drain(bell):
            renewer.again()
        timeout = _PACE if renewer.work() else idle
        ready, _, _ = select.select([bell], [], [], timeout)
        if not ready and timeout == idle:
            return
