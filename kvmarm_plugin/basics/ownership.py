# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose a file is, and who else can change it. "Others" are all but root and the user as whom this
process runs.
"""

from __future__ import annotations

import errno
import os
import stat

MOST_LINKS = 40  # as in the kernel (MAXSYMLINKS)


def is_ours(status: os.stat_result) -> bool:
    """Whether a file or directory is root's or of the user as whom this process runs."""
    return status.st_uid in (0, os.geteuid())


def others_can_change(status: os.stat_result) -> bool:
    """Whether others can change a file, or what is in a directory.

    POSIX ACLs count: the group's bits are their mask (acl(5)). What a link says nobody can change;
    the directory tells whether it can be replaced.
    """
    return not is_ours(status) or (
        not stat.S_ISLNK(status.st_mode) and bool(status.st_mode & 0o022)
    )


def changeable(path: str) -> str | None:
    """What others can change, and with it what a path leads to: a directory or link on the way, or
    its end. None if nobody else can change any of them.

    On the way a sticky directory will do, where nobody replaces what is ours. Names are enough:
    each is looked up in a directory that has been looked at.

    Raises:
        OSError: something on the way is not there, or may not be looked at; too many links.
    """
    here, rest, links = "/", os.path.abspath(path).split("/")[::-1], 0
    while True:
        status = os.lstat(here)
        is_on_the_way = any(name not in ("", ".") for name in rest)
        if others_can_change(status) and not (
            is_on_the_way and is_ours(status) and status.st_mode & stat.S_ISVTX
        ):
            return here
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            text = os.readlink(here)
            rest += text.split("/")[::-1]
            here = "/" if text.startswith("/") else os.path.dirname(here)
        elif not is_on_the_way:
            return None
        name = ""
        while rest and name in ("", "."):
            name = rest.pop()
        here = os.path.normpath(os.path.join(here, name))


def how_to_keep(path: str, changed: str) -> str:
    """What to do, so that `changed`, which others can change, leads nobody astray.

    Args:
        changed: what `changeable` says of `path`.
    """
    import shlex  # the hook has no use for it

    if not f"{path}/".startswith(f"{changed.rstrip('/')}/"):
        return f"where {path} is a link, or in one, put what it leads to in the link's place"
    name = shlex.quote(changed)
    if os.path.islink(changed):
        return f"chown -h root {name}"
    return f"chown root {name} && chmod go-w {name}"
