# SPDX-License-Identifier: LGPL-2.1-or-later
"""Paths, gone along by descriptors: whoever may rename or link on the way can change neither what
was judged nor what is used.

Names are for people. Between two system calls that take the same name another user can put
something else there, so each entry is opened once, without following it, and everything after that
is done with the descriptor.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from ..basics.ownership import MOST_LINKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_DESCRIPTORS = "/proc/self/fd"


class Step(NamedTuple):
    """An entry of a directory, on the way along a path or at its end.

    Attributes:
        path: its name, for messages.
        directory: descriptor (O_PATH) of the directory that it is in.
        name: its name there; "." for the end of a path that ends with "/", "." or "..".
        entry: descriptor (O_PATH) of the entry itself, be it a link; None if there is none of that
            name.
    """

    path: str
    directory: int
    name: str
    entry: int | None


@contextmanager
def reach(path: str, judge: Callable[[Step], None]) -> Iterator[Step]:
    """Go along a path, links included, and give its end; the descriptors live as long as the
    context.

    The end is what the last name stands for when all links are followed. It may be missing; what is
    before it may not. One end is a link: an entry of /proc/self/fd, which is no way to a file but
    one of our own descriptors.

    Args:
        judge: is called with every entry, links and the end included, before anything is done with
            it; it raises what it likes.

    Raises:
        OSError: a directory on the way is missing, is none, or may not be searched; too many links.
    """
    with ExitStack() as stack:

        def opened(name: str, directory: int | None = None) -> int:
            descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            stack.callback(os.close, descriptor)
            return descriptor

        way = [(opened("/"), "/") if path.startswith("/") else (opened("."), "")]
        rest = path.split("/")[::-1]
        links = 0
        while rest:
            name = rest.pop()
            if name in ("", "."):
                continue
            directory, base = way[-1]
            if name == "..":
                # Back to where we came from: somebody may have moved the directory meanwhile.
                way[-1:] = [] if len(way) > 1 else [(opened("..", directory), f"{base}../")]
                continue
            try:
                entry = opened(name, directory)
            except FileNotFoundError:
                if rest:
                    raise
                step = Step(base + name, directory, name, None)
                judge(step)
                yield step
                return
            step = Step(base + name, directory, name, entry)
            judge(step)
            kind = os.fstat(entry).st_mode
            if stat.S_ISLNK(kind) and (rest or not _holds_descriptors(directory)):
                links += 1
                if links > MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                text = os.readlink("", dir_fd=entry)
                if text.startswith("/"):
                    way = [(opened("/"), "/")]
                rest += text.split("/")[::-1]
            elif not rest:
                yield step
                return
            elif stat.S_ISDIR(kind):
                way.append((entry, f"{base}{name}/"))
            else:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        directory, base = way[-1]
        yield Step(base or ".", directory, ".", directory)


def _holds_descriptors(directory: int) -> bool:
    return os.path.exists(_DESCRIPTORS) and os.path.samestat(
        os.fstat(directory), os.stat(_DESCRIPTORS)
    )
