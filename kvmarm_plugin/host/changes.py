# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes of the files in a directory, by inotify(7), for which Python's library has nothing. It
costs no wake-up while there are none.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

# <sys/inotify.h>: IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE;
# owner and mode decide whether the hook obeys a policy. Not IN_MODIFY: a file is half written then.
_EVENTS = 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200
_ONLY_DIRECTORY = 0x01000000


def watch(directory: str, changed: Callable[[], None]) -> None:
    """Call `changed` after each change of a file in a directory, for ever. Returns at once if there
    is no such directory, or this kernel watches no more.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:
        return
    with open(descriptor, "rb", buffering=0) as events:
        watched = libc.inotify_add_watch(
            events.fileno(), os.fsencode(directory), _EVENTS | _ONLY_DIRECTORY
        )
        while watched >= 0 and events.read(4096):
            changed()
