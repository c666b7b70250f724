# SPDX-License-Identifier: LGPL-2.1-or-later
"""libkvmarm-level on this host: whether it is there, and which version of its text it reads."""

from __future__ import annotations

from ..domain.levelling import LIBRARY


def installed_version() -> str:
    """The version of the text that the installed library reads; empty where it is not installed,
    or tells none. Loading it does nothing in a process that is not told to level.
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
