# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files: read with a limit, replaced atomically, found where the package keeps them."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from .domain import SIZE_LIMIT
from .errors import KvmarmError

_PACKAGE = Path(__file__).parent


def read(name: str) -> bytes:
    """The contents of a file, or of standard input for "-"; not more than a little over what anything here may be long.

    Raises:
        KvmarmError: the file cannot be read.
    """
    try:
        if name == "-":
            if sys.stdin is None:
                raise KvmarmError("cannot read standard input: it is closed", "give a file name")
            return sys.stdin.buffer.read(SIZE_LIMIT + 1)
        with open(name, "rb") as file:
            return file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise KvmarmError(f"cannot read {name}: {error.strerror}", "check the name and its permissions") from None


def read_text(name: str) -> str:
    """`read`, decoded from UTF-8. Raises KvmarmError."""
    try:
        return read(name).decode()
    except UnicodeDecodeError:
        raise KvmarmError(f"{name} is not a text in UTF-8", "is it the right file?") from None


def write(name: str, data: bytes, mode: int | None = None) -> None:
    """Replace a file: whoever reads it sees the old contents or the new, whole, and a failure leaves the old.

    What is no file, such as /dev/stdout, is written to and stays what it is.

    Args:
        mode: of the file; None keeps that of the old file, and leaves that of a new one to the umask.

    Raises:
        KvmarmError: the directory or the disk does not allow it.
    """
    target = os.path.realpath(name)
    temporary = ""
    try:
        if os.path.exists(name) and not os.path.isfile(name):
            with open(name, "wb") as device:
                device.write(data)
            return
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=f".{os.path.basename(target)}.")
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _usual_mode(target) if mode is None else mode)
        os.replace(temporary, target)
    except OSError as error:
        raise KvmarmError(f"cannot write {name}: {error.strerror}", "check the directory's permissions and free space") from None
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def _usual_mode(path: str) -> int:
    if os.path.exists(path):
        return os.stat(path).st_mode & 0o7777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def shipped(room: str, name: str) -> Path:
    """A file of a room beside the package: "hooks" or "xml-templates". An installed package carries them inside.

    Raises:
        KvmarmError: the installation is incomplete.
    """
    for directory in (_PACKAGE / room.replace("-", "_"), _PACKAGE.parent / room):
        if (directory / name).is_file():
            return directory / name
    raise KvmarmError(f"{room}/{name} is missing beside {_PACKAGE}", "install kvmarm again")
