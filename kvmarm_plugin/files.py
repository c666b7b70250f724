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


def write(name: str, data: bytes, mode: int = 0o644) -> None:
    """Replace a file: whoever reads it sees the old contents or the new, whole, and a failure leaves the old.

    Raises:
        KvmarmError: the directory or the disk does not allow it.
    """
    target = os.path.realpath(name)
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(target), prefix=f".{os.path.basename(target)}.")
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise KvmarmError(f"cannot write {name}: {error.strerror}", "check the directory's permissions and free space") from None


def shipped(room: str, name: str) -> Path:
    """A file of a room beside the package: "hooks" or "xml-templates". An installed package carries them inside.

    Raises:
        KvmarmError: the installation is incomplete.
    """
    for directory in (_PACKAGE / room.replace("-", "_"), _PACKAGE.parent / room):
        if (directory / name).is_file():
            return directory / name
    raise KvmarmError(f"{room}/{name} is missing beside {_PACKAGE}", "install kvmarm again")
