# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files: read with a limit, replaced atomically, found where the package keeps them."""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

from ..basics.errors import KvmarmError
from ..basics.ownership import is_ours, others_can_change
from ..domain.xml import SIZE_LIMIT
from .paths import Step, reach

_PACKAGE = Path(__file__).parents[1]

_emptied: object = None  # standard input, once it has been read


def read(name: str) -> bytes:
    """The contents of a file, or of standard input for "-"; not more than a little over what
    anything here may be long.

    Raises:
        KvmarmError: the file cannot be read, or is standard input for the second time.
    """
    try:
        if name == "-":
            if sys.stdin is None:
                raise KvmarmError("cannot read standard input: it is closed", "give a file name")
            global _emptied
            if sys.stdin is _emptied:
                raise KvmarmError(
                    "standard input is named twice, and can be read once", "give a file name"
                )
            _emptied = sys.stdin
            return sys.stdin.buffer.read(SIZE_LIMIT + 1)
        with open(name, "rb") as file:
            return file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise KvmarmError(
            f"cannot read {name}: {error.strerror}", "check the name and its permissions"
        ) from None


def read_text(name: str) -> str:
    """`read`, decoded from UTF-8. Raises KvmarmError."""
    try:
        return read(name).decode()
    except UnicodeDecodeError:
        raise KvmarmError(
            f"{name} is not a text in UTF-8", "check that it is the file you mean"
        ) from None


def write(name: str, data: bytes, mode: int | None = None) -> None:
    """Replace a file: whoever reads it sees the old contents or the new, whole, and a failure
    leaves the old.

    What is no file, such as /dev/stdout, is written to and stays what it is. Links are followed.
    But where users other than root and the caller can write, files and links of theirs are refused,
    and so is a link or device with several names: one of them may have given it this one (link(2)).

    Args:
        mode: of the file, of which only read, write and execute count; None keeps group and mode of
            an old file that is the caller's or root's, and leaves that of any other to the umask.
            An access control list is not kept.

    Raises:
        KvmarmError: the directory or the disk does not allow it, it is a directory, or it is
            another user's as above.
    """

    def judge(step: Step) -> None:
        status = None if step.entry is None else os.fstat(step.entry)
        if (
            status is None
            or stat.S_ISDIR(status.st_mode)
            or not others_can_change(os.fstat(step.directory))
        ):
            return
        foreign = not is_ours(status)
        if foreign or (status.st_nlink > 1 and not stat.S_ISREG(status.st_mode)):
            raise KvmarmError(
                f"cannot write {name}: {step.path} {'is' if foreign else 'may be'} another user's,"
                " and others can write there",
                "write to a directory where only you can, or remove it first",
            )

    try:
        with reach(name, judge) as end:
            status = None if end.entry is None else os.fstat(end.entry)
            if status is None or stat.S_ISREG(status.st_mode):
                group = None
                if mode is None and status and is_ours(status):
                    mode, group = _mode_of(end.entry, status), status.st_gid
                replace(end.directory, end.name, data, mode, group)
            elif stat.S_ISDIR(status.st_mode):
                raise KvmarmError(
                    f"cannot write {name}: it is a directory", "give the name of a file"
                )
            elif stat.S_ISLNK(status.st_mode):  # /dev/stdout, /dev/fd/3: a descriptor that we have
                _write_all(os.dup(int(end.name)), data)
            else:
                # By /proc, which opens the very thing that was judged; by its name it could be
                # another by now.
                _write_all(
                    os.open(f"/proc/self/fd/{end.entry}", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC),
                    data,
                )
    except OSError as error:
        raise KvmarmError(
            f"cannot write {name}: {error.strerror}",
            "check the directory's permissions and free space",
        ) from None


def replace(
    directory: int, name: str, data: bytes, mode: int | None, group: int | None = None
) -> None:
    """Put a new file in the place of whatever has this name, which is never followed, and be sure
    that it is on the disk.

    Args:
        directory: descriptor of the directory.
        mode: of the file, of which only read, write and execute count; None leaves it to the umask.
        group: that the mode is meant for; if the file cannot be of this one, its group gets what
            everybody gets.

    Raises:
        OSError: the old file is there as it was, or the new one, if all that failed is to make
            sure.
    """
    temporary = f".kvmarm-{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666 if mode is None else 0o600, dir_fd=directory)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if mode is not None:
                if group is not None and group != os.fstat(descriptor).st_gid:
                    try:
                        os.fchown(descriptor, -1, group)
                    except OSError:
                        mode = _without_group(mode)
                os.fchmod(descriptor, mode & 0o777)
            os.fsync(descriptor)
        os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=directory)
        raise
    sync(directory)


def _without_group(mode: int) -> int:
    """A mode in which the group may what everybody may."""
    return mode & 0o707 | (mode & 0o007) << 3


def _mode_of(entry: int | None, status: os.stat_result) -> int:
    """What of an old file's mode is for a new one in its place."""
    # With several names it may be another file of ours: then nobody gets to write because of its
    # mode.
    mode = status.st_mode & (0o777 if status.st_nlink == 1 else 0o755)
    try:
        os.getxattr(f"/proc/self/fd/{entry}", "system.posix_acl_access")
    except OSError:  # no access control list, or no such thing
        return mode
    return _without_group(mode)  # the group's bits were the list's mask (acl(5))


def sync(directory: int) -> None:
    """Be sure that a directory's names are on the disk. Not of one that may be written but not
    read, nor where there is no such call.
    """
    try:
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # fsync(2): file systems without
            raise
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    with open(descriptor, "wb") as file:
        file.write(data)


def shipped(room: str, name: str) -> Path:
    """A file of a room beside the package: "hooks" or "xml-templates". An installed package carries
    them inside.

    Raises:
        KvmarmError: the installation is incomplete.
    """
    for directory in (_PACKAGE / room.replace("-", "_"), _PACKAGE.parent / room):
        if (directory / name).is_file():
            return directory / name
    raise KvmarmError(f"{room}/{name} is missing beside {_PACKAGE}", "install kvmarm again")
