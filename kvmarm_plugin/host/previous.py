# SPDX-License-Identifier: LGPL-2.1-or-later
"""The definitions that domains had before kvmarm changed them, and the way back.

/var/lib/kvmarm/previous/UUID/ has the last ten of a domain, as libvirt prints them with passwords,
so for root alone: NUMBER.xml, of which the highest is the newest. `undo` goes back through them; it
leaves NUMBER.undone.xml, the definition that it has replaced, in the place of the one that it has
put back.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from contextlib import contextmanager, suppress
from typing import NamedTuple

from ..basics.errors import KvmarmError
from ..domain.xml import SIZE_LIMIT
from .files import replace
from .marks import is_uuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .libvirtd import Connection, Domain

DIRECTORY = "/var/lib/kvmarm/previous"
MOST = 10  # definitions of a domain
MOST_DOMAINS = 2000  # beyond, those go that have been left unchanged for the longest time

_NAME = re.compile(r"([1-9][0-9]{0,8})(\.undone)?\.xml", re.ASCII)


class ChangedError(KvmarmError):
    """Somebody has changed a definition since it was read."""


class Kept(NamedTuple):
    """A definition that was kept: the path of its file, and when it was written, in seconds since
    1970.
    """

    path: str
    when: float


def redefine(
    connection: Connection, domain: Domain, read: str, new: str, validate: bool = False
) -> str:
    """Replace the stored definition of a domain, and keep the one that it has. Whoever changes
    definitions does it with this. Returns the domain's name, for people.

    Of a libvirt on another host nothing is kept, nor where the caller is not root.

    Args:
        read: the stored definition that `new` was made of, with secrets.
        validate: against libvirt's schema.

    Raises:
        ChangedError: somebody has changed it since it was read.
        KvmarmError: it cannot be kept, or libvirt refuses the new one. The old one stays.
    """
    if connection.is_here:
        keep(domain.uuid, read)
    # libvirt has no way to define a domain only if it is still what was read.
    if domain.xml(live=False, secrets=True) != read:
        raise ChangedError("somebody has changed it meanwhile", "do it again")
    return connection.define(new, validate)


def keep(uuid: str, definition: str) -> bool:
    """Keep a definition that is about to be changed. One that is the newest already is not kept
    twice. Returns whether it is kept.

    Raises:
        KvmarmError: root cannot write it. For another user nothing is kept.
    """
    try:
        with _of(uuid, make=True) as directory:
            numbers = _numbers(directory)
            newest = max(numbers.get(False, ()), default=0)
            if newest and _read(directory, newest) == definition.encode():
                return True
            number = 1 + max((n for each in numbers.values() for n in each), default=0)
            replace(directory, f"{number}.xml", definition.encode(), 0o600)
            _prune(directory)
        _prune_domains()
    except PermissionError as error:
        if os.geteuid() == 0:
            raise _cannot_keep(error) from None
        return False
    except OSError as error:
        raise _cannot_keep(error) from None
    return True


def undo(connection: Connection, domain: Domain) -> Kept:
    """Put back the newest definition that was kept and is not the one that the domain has, and keep
    that one as undone. Returns where it lies.

    Raises:
        KvmarmError: nothing is kept, it cannot be read or written, or libvirt refuses it. The
            definition stays then.
    """
    now = domain.xml(live=False, secrets=True)
    try:
        with _of(domain.uuid, make=False) as directory:
            for number in sorted(_numbers(directory).get(False, ()), reverse=True):
                before = _read(directory, number)
                if before == now.encode():  # it was kept, and then not changed
                    os.unlink(f"{number}.xml", dir_fd=directory)
                    continue
                when = os.stat(f"{number}.xml", dir_fd=directory).st_mtime
                undone = f"{number}.undone.xml"
                replace(directory, undone, now.encode(), 0o600)
                try:
                    if domain.xml(live=False, secrets=True) != now:
                        raise ChangedError("somebody has changed it meanwhile", "do it again")
                    connection.define(before.decode(), validate=False)
                except BaseException:
                    os.unlink(undone, dir_fd=directory)
                    raise
                os.unlink(f"{number}.xml", dir_fd=directory)
                return Kept(f"{DIRECTORY}/{domain.uuid}/{undone}", when)
    except FileNotFoundError:
        pass
    except UnicodeDecodeError:
        raise KvmarmError(
            f"what is kept in {DIRECTORY}/{domain.uuid} is not a text in UTF-8",
            "somebody has changed it: remove what is wrong there",
        ) from None
    except OSError as error:
        raise KvmarmError(
            f"cannot use {DIRECTORY}/{domain.uuid}: {error.strerror}", "run this as root"
        ) from None
    raise KvmarmError(
        f"no previous definition of {domain.name} is kept",
        f"{DIRECTORY} has those that kvmarm has changed on this host, as root",
    )


@contextmanager
def _of(uuid: str, make: bool) -> Iterator[int]:
    """The descriptor of a domain's directory, locked. Raises OSError."""
    if not is_uuid(uuid):
        raise ValueError(f"not a UUID: {uuid!r}")
    path = f"{DIRECTORY}/{uuid}"
    if make:
        os.makedirs(os.path.dirname(DIRECTORY), 0o755, exist_ok=True)
        for each in (DIRECTORY, path):
            with suppress(FileExistsError):
                os.mkdir(each, 0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _numbers(directory: int) -> dict[bool, list[int]]:
    """The numbers of the definitions there, by whether they are undone."""
    found: dict[bool, list[int]] = {}
    for name in os.listdir(directory):
        match = _NAME.fullmatch(name)
        if match:
            found.setdefault(bool(match[2]), []).append(int(match[1]))
    return found


def _read(directory: int, number: int) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(f"{number}.xml", flags, dir_fd=directory), "rb") as file:
        return file.read(SIZE_LIMIT + 1)


def _prune(directory: int) -> None:
    """Remove the oldest, also what an interrupted write has left."""
    names = sorted(
        os.listdir(directory),
        key=lambda name: int(match[1]) if (match := _NAME.fullmatch(name)) else 0,
    )
    for name in names[:-MOST]:
        os.unlink(name, dir_fd=directory)


def _prune_domains() -> None:
    """Remove those of the domains, gone for long perhaps, that are beyond the most."""
    with os.scandir(DIRECTORY) as entries:
        found = sorted((entry.stat().st_mtime_ns, entry.path) for entry in entries)
    for _, path in found[:-MOST_DOMAINS]:
        shutil.rmtree(path, ignore_errors=True)


def _cannot_keep(error: OSError) -> KvmarmError:
    return KvmarmError(
        f"nothing was changed, since the definition cannot be kept in {DIRECTORY}:"
        f" {error.strerror}",
        "check the free space there",
    )
