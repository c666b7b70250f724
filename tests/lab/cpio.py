# SPDX-License-Identifier: LGPL-2.1-or-later
"""The initramfs format ("newc" cpio), as much of it as two tiny initrds need.

Used by image.py for the initrd of the hosts and that of their guests.  Written here so that an
initrd is a function of its contents, with no staging directory and no device nodes to make.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import Union

DIRECTORY = None
Entry = Union[bytes, str, None]  # an executable file, a symbolic link's target, or DIRECTORY


def archive(entries: Mapping[str, Entry]) -> bytes:
    """Pack entries by path; a directory comes before what is in it."""
    members = [
        _member(number, path, entry) for number, (path, entry) in enumerate(entries.items(), 1)
    ]
    return b"".join(members) + _record(0, "TRAILER!!!", 0, b"")


def _member(number: int, path: str, entry: Entry) -> bytes:
    if entry is DIRECTORY:
        return _record(number, path, stat.S_IFDIR | 0o755, b"")
    if isinstance(entry, str):
        return _record(number, path, stat.S_IFLNK | 0o777, entry.encode())
    return _record(number, path, stat.S_IFREG | 0o755, entry)


def _record(inode: int, path: str, mode: int, data: bytes) -> bytes:
    name = path.encode() + b"\0"
    links, owner, group, mtime, device = 1, 0, 0, 0, 0
    fields = (
        inode,
        mode,
        owner,
        group,
        links,
        mtime,
        len(data),
        device,
        device,
        device,
        device,
        len(name),
        0,
    )
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _pad(header + name) + _pad(data)


def _pad(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
