# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the hook leaves under /run/kvmarm for itself and for others, until the next boot:

- marks/UUID: a guest whose record may not be true, and why, in a line for people. marks/name-NAME
  is the same of a guest that could not be read as far as its UUID.
- arrival/UUID: a ticket: this guest is on its way here, and has been judged. It tells an arrival
  from a cold start, which libvirt's `prepare` alone cannot.
- allow/NAME-or-UUID: an operator lets this guest pass once.
- told/DAEMON: which process of a libvirt daemon was told to look for hooks.
- renew.socket: a doorbell for whoever renews records. The marks are the queue.

Only root writes there: /run/kvmarm belongs to root, and nobody else can make or change anything in
it. All times are CLOCK_BOOTTIME, since a wall clock may be set meanwhile.
"""

from __future__ import annotations

import errno
import os
import time

from ..basics.errors import KvmarmError
from ..basics.value import Value

DIRECTORY = "/run/kvmarm"
SOCKET = "renew.socket"
# Where libvirt's system daemon keeps the definitions of guests, and those of guests that run.
STORED = "/etc/libvirt/qemu"
RUNNING = "/run/libvirt/qemu"

# From an arrival's hook to its `prepare`: a migration copies disks meanwhile.
TICKET_SECONDS = {"migrate": 600, "restore": 60}
ALLOWANCE_SECONDS = 60

# The reason of a mark that stood when the guest was restored, or whose renewal a revert has
# overtaken: how it came here does not tell what it has (renewal.renew_live).
FROM_STATE = "it goes on from a state whose record may not have been true"

_LARGEST = 4096  # bytes of a file; longer reasons are cut
_UUID = frozenset("0123456789abcdef-")
_BY_NAME = "name-"
_LONGEST_NAME = 250  # bytes: libvirt's NAME.xml and our name-NAME are names of files


class Ticket(Value):
    """A guest that is on its way here.

    Attributes:
        operation: libvirt's: "migrate" or "restore".
        digest: of the target as it was put out (record_text.digest).
        warned: kinds of the findings that the policy, or an operator, has let pass.
    """

    operation: str
    digest: str
    warned: tuple[str, ...]


def is_uuid(text: str) -> bool:
    """Whether this is a UUID as libvirt writes it, and so the name of a file."""
    return len(text) == 36 and _UUID.issuperset(text)


# -- marks ---------------------------------------------------------------------------------------


def mark(uuid: str, reason: str) -> None:
    """Note that a guest's record may not be true. The last reason counts, and the mark is another
    one than before (`stamp`).

    Raises OSError: /run/kvmarm cannot be written; the host then does not know.
    """
    _mark(_file_name(uuid), reason)


def mark_by_name(name: str, reason: str) -> None:
    """The same of a guest whose UUID could not be read. Raises OSError."""
    if "/" in name or "\0" in name:
        raise OSError(errno.EINVAL, "no file can be called so")
    _mark(_BY_NAME + name, reason)


def _mark(key: str, reason: str) -> None:
    _write("marks", key, " ".join(reason.split()) + "\n", 0o755, 0o644)


def mark_of(uuid: str, name: str = "") -> str | None:
    """Why a guest's record may not be true; None if it has no mark.

    Args:
        uuid, name: of the guest; a mark of either counts. The UUID is empty where it is not known.
    """
    for key in _keys(uuid, name):
        reason = _read("marks", key)
        if reason is not None:
            return reason.strip() or "its start was not checked"
    return None


def stamp(uuid: str, name: str = "") -> tuple[tuple[int, int] | None, ...]:
    """What tells the marks of a guest from later ones: whoever has worked on a guest and finds
    another stamp must not take its marks away. Arguments as for `unmark`.
    """
    return tuple(map(_stamp, _keys(uuid, name)))


def _stamp(key: str) -> tuple[int, int] | None:
    try:
        status = os.stat(f"{DIRECTORY}/marks/{key}", follow_symlinks=False)
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_mtime_ns


def unmark(uuid: str, name: str = "") -> None:
    """The record is true again. Raises OSError.

    Args:
        uuid: of the guest; empty where it is not known.
        name: of the guest, for a mark by name.
    """
    for key in _keys(uuid, name):
        _remove("marks", key)


def _keys(uuid: str, name: str) -> list[str]:
    return [*([_file_name(uuid)] if uuid else []), f"{_BY_NAME}{name}"]


def marked() -> tuple[list[str], list[str]]:
    """The UUIDs and the names of all guests with a mark. Raises OSError."""
    try:
        found = sorted(os.listdir(f"{DIRECTORY}/marks"))
    except FileNotFoundError:
        found = []
    names = [name[len(_BY_NAME) :] for name in found if name.startswith(_BY_NAME)]
    return [name for name in found if is_uuid(name)], names


def ring(uuid: str) -> bool:
    """Tell whoever renews records that there is a mark. Whether somebody was told: nobody is waited
    for.
    """
    import _socket  # hook/__init__.py says why

    bell = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        bell.setblocking(False)
        bell.sendto(f"{uuid}\n".encode(), f"{DIRECTORY}/{SOCKET}")
    except BlockingIOError:
        return True  # it has much to do, and will find the mark
    except OSError:  # nobody is there
        return False
    finally:
        bell.close()
    return True


def is_heard() -> bool:
    """Whether somebody listens for the ring. Raises OSError: that cannot be told."""
    import _socket  # as in `ring`

    bell = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        bell.connect(f"{DIRECTORY}/{SOCKET}")
    except (FileNotFoundError, ConnectionRefusedError):  # not there, or left by one that was ended
        return False
    finally:
        bell.close()
    return True


# -- tickets -------------------------------------------------------------------------------------


def leave_ticket(uuid: str, name: str, ticket: Ticket) -> None:
    """Note that a guest is on its way here; but not if one of its name runs here already. libvirt
    asks the hook all the same and then refuses, and the next start is none of an arrival.

    Raises OSError.
    """
    if os.path.lexists(f"{RUNNING}/{name}.xml"):
        return
    text = " ".join([ticket.operation, ticket.digest, repr(_now()), *ticket.warned])
    _write("arrival", _file_name(uuid), text + "\n", 0o700, 0o600)


def take_ticket(uuid: str, name: str) -> Ticket | None:
    """Take a guest's ticket away, and return it if it is one to believe: not too old, and left
    after the guest's definition was stored.

    A definition that is stored after `migrate begin` and before `prepare` is what `--offline`
    leaves: no guest has arrived, and its next start is a cold one.

    Args:
        name: of the guest, whose stored definition is looked for.
    """
    key = _file_name(uuid)
    path = f"{DIRECTORY}/arrival/{key}"
    try:
        left = os.stat(path, follow_symlinks=False).st_mtime_ns
        text = _read("arrival", key) or ""
        os.unlink(path)
    except OSError:
        return None
    try:
        stored = os.stat(f"{STORED}/{name}.xml").st_mtime_ns
    except (OSError, ValueError):
        stored = 0
    words = text.split()
    if stored > left or len(words) < 3 or not _is_since(words[2], TICKET_SECONDS.get(words[0], 0)):
        return None
    return Ticket(words[0], words[1], tuple(words[3:]))


# -- allowances ----------------------------------------------------------------------------------


def allow(guest: str) -> None:
    """Let a guest pass once within ALLOWANCE_SECONDS, whatever speaks against it.

    Args:
        guest: name or UUID; it need not be known here yet.

    Raises:
        KvmarmError: no guest can be called so, or this user may not.
    """
    if not guest or "/" in guest or "\0" in guest or len(os.fsencode(guest)) > _LONGEST_NAME:
        raise KvmarmError(f"no guest can be called {guest!r}", "give its name or its UUID")
    if is_uuid(guest.lower()):
        guest = guest.lower()  # as libvirt writes it
    try:
        _write("allow", f"{_BY_NAME}{guest}", f"{_now()!r}\n", 0o700, 0o600)
    except OSError as error:
        raise KvmarmError(
            f"cannot write {DIRECTORY}/allow: {error.strerror}", "run this as root"
        ) from None


def take_allowance(uuid: str, name: str) -> bool:
    """Whether an operator lets this guest pass; he does so once."""
    for key in (f"{_BY_NAME}{uuid}", f"{_BY_NAME}{name}"):
        text = _read("allow", key)
        if text is not None:
            try:
                _remove("allow", key)
            except OSError:
                continue  # what stays would let it pass again
            if _is_since(text.strip(), ALLOWANCE_SECONDS):
                return True
    return False


# -- daemons ------------------------------------------------------------------------------------


def note_told(daemon: str, process: str) -> None:
    """Note that a process of a libvirt daemon was told to look for hooks. Raises OSError."""
    _write("told", daemon, f"{process}\n", 0o755, 0o644)


def told_at(daemon: str, process: str) -> float | None:
    """When that was noted of this process, in seconds since the epoch; None if it was not."""
    try:
        noted = os.stat(f"{DIRECTORY}/told/{daemon}", follow_symlinks=False).st_mtime
    except OSError:
        return None
    return noted if _read("told", daemon) == f"{process}\n" else None


# -- files ---------------------------------------------------------------------------------------


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _is_since(text: str, seconds: float) -> bool:
    try:
        return 0 <= _now() - float(text) <= seconds
    except ValueError:
        return False


def _file_name(uuid: str) -> str:
    """A UUID, which comes from a domain's XML, as a file name. Raises ValueError for anything
    else.
    """
    name = uuid.lower()
    if not is_uuid(name):
        raise ValueError("not a UUID")
    return name


def _write(directory: str, name: str, text: str, directory_mode: int, mode: int) -> None:
    """Replace a file in whole, and make the directories where they are missing."""
    for path, wanted in ((DIRECTORY, 0o755), (f"{DIRECTORY}/{directory}", directory_mode)):
        try:
            os.mkdir(path, wanted)
        except FileExistsError:
            continue
        made = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        os.fchmod(made, wanted)  # whatever the umask
        os.close(made)
    draft = f"{DIRECTORY}/{directory}/.{os.getpid()}"
    # One that was ended before it came to rename it may have had the same number.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(draft, flags, mode)
    try:
        os.fchmod(descriptor, mode)
        os.write(descriptor, text.encode(errors="replace")[:_LARGEST])
    finally:
        os.close(descriptor)
    os.rename(draft, f"{DIRECTORY}/{directory}/{name}")


def _read(directory: str, name: str) -> str | None:
    """What a file holds; None if there is none that can be read."""
    try:
        descriptor = os.open(
            f"{DIRECTORY}/{directory}/{name}",
            os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC,
        )
    except (OSError, ValueError):
        return None
    try:
        return os.read(descriptor, _LARGEST).decode(errors="replace")
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _remove(directory: str, name: str) -> None:
    try:  # noqa: SIM105  # hook/__init__.py says why not contextlib
        os.unlink(f"{DIRECTORY}/{directory}/{name}")
    except (FileNotFoundError, NotADirectoryError, ValueError):
        pass
