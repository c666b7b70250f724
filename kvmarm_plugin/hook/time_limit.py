# SPDX-License-Identifier: LGPL-2.1-or-later
"""Time limits of the hook: libvirt, and the guest's owner, wait for it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


TIME_LIMIT = 2  # seconds for the check of a cold start; a rehearsal takes some hundredths
PATIENCE = 0.2  # seconds that standard error may block, and the system's log, twice


class OutOfTime(Exception):
    """A time limit is over. Neither OSError nor KvmarmError, which are caught on the way for what
    they mean there.
    """


def finish(seconds: float, call: Callable[..., Any], *arguments: object) -> tuple[Any, str]:
    """What a call returns, or None and why it has not come to an end."""
    try:
        return within(seconds, call, *arguments), ""
    except OutOfTime:
        why = f"checking took longer than {seconds} s; the host may be overloaded"
    except MemoryError:
        why = "checking takes more memory than the hook may have; the host may be short of it"
    except Exception as error:
        # Not KvmarmError alone: a bug here must not let a guest go wrong, nor show libvirt's user a
        # traceback.
        why = str(error)
        if not hasattr(error, "hint"):
            why = (
                f"it cannot be checked: {type(error).__name__}: {error} (hint: install kvmarm"
                " again)"
            )
    return None, why


def within(seconds: float, call: Callable[..., Any], *arguments: object) -> Any:
    """Call, and raise OutOfTime if that has not ended after so many seconds.

    The timer goes on: a signal just before a system call does not end it, and to a log glibc tries
    to send a second time.
    """
    import _signal as signal  # type: ignore[import-not-found]  # hook/__init__.py says why

    signal.signal(signal.SIGALRM, _out_of_time)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
            return call(*arguments)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except OutOfTime:
        signal.setitimer(signal.ITIMER_REAL, 0)  # it may have come as the other one was on its way
        raise


def _out_of_time(*_signal: object) -> None:
    raise OutOfTime
