# SPDX-License-Identifier: LGPL-2.1-or-later
"""libkvmarm-level on this host: which version of its text it reads, and whether QEMU gets it."""

from __future__ import annotations

from contextlib import suppress

from ..domain.levelling import LIBRARY


def usable_version() -> str:
    """The version of the text that the installed library reads; empty where none is installed, it
    tells none, or SELinux keeps it from QEMU.
    """
    version = installed_version()
    return "" if version and _kept_from_qemu() else version


def installed_version() -> str:
    """The same, whatever SELinux says. Loading the library does nothing in a process that is not
    told to level.
    """
    import _ctypes
    import ctypes

    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return ""
    try:
        symbol = ctypes.c_char.in_dll(library, "kvmarm_level_version")
        version = ctypes.string_at(ctypes.addressof(symbol), 5).partition(b"\0")[0]
    except ValueError:
        return ""
    finally:  # or the agent would find it again when it has been upgraded or removed
        _ctypes.dlclose(library._handle)
    return version.decode() if version.isdigit() and len(version) < 5 else ""


def _kept_from_qemu() -> bool:
    """Whether SELinux has a guest's QEMU run under secure execution (AT_SECURE), for which ld.so(8)
    ignores LD_PRELOAD; no, where it does not say.
    """
    from .selinux import SELinux

    with suppress(OSError, ValueError):
        selinux = SELinux()
        return selinux.enforces() and bool(selinux.securing_qemu())
    return False
