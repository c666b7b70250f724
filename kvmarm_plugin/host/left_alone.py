# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that are left alone: their users have taken kvmarm's record away, or a change back.

/var/lib/kvmarm/left has an empty file for each, by its UUID. Whoever works on guests by himself
(renewal, `--all`) passes these by, until `kvmarm define` or `kvmarm adopt` is told otherwise, or
`kvmarm undo` puts a definition back that has a record.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress

from ..basics.errors import KvmarmError
from .files import sync
from .marks import is_uuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

DIRECTORY = "/var/lib/kvmarm/left"


def has(uuid: str) -> bool:
    """Whether a guest is to be left alone."""
    return is_uuid(uuid) and os.path.lexists(f"{DIRECTORY}/{uuid}")


def add(uuid: str) -> None:
    """Leave a guest alone from now on.

    Raises:
        KvmarmError: the list cannot be written.
        ValueError: not a UUID as libvirt writes it.
    """
    if not is_uuid(uuid):
        raise ValueError(f"not a UUID: {uuid!r}")
    with _directory() as directory:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(uuid, flags, 0o644, dir_fd=directory))


def discard(uuid: str) -> None:
    """Leave a guest alone no more. Raises KvmarmError as `add` does."""
    if has(uuid):
        with _directory() as directory, suppress(FileNotFoundError):
            os.unlink(uuid, dir_fd=directory)


@contextmanager
def _directory() -> Iterator[int]:
    """The list's descriptor; what is done to it is on the disk afterwards."""
    try:
        os.makedirs(DIRECTORY, 0o755, exist_ok=True)
        descriptor = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield descriptor
            sync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KvmarmError(
            f"cannot write {DIRECTORY}: {error.strerror}", "run this as root"
        ) from None
