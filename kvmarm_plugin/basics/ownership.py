# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose a file is, and who else can change it. "Others" are all but root and the user as whom this
process runs.
"""

from __future__ import annotations

import os
import stat


def is_ours(status: os.stat_result) -> bool:
    """Whether a file or directory is root's or of the user as whom this process runs."""
    return status.st_uid in (0, os.geteuid())


def others_can_change(status: os.stat_result) -> bool:
    """Whether others can change a file, or what is in a directory.

    POSIX ACLs count: the group's bits are their mask (acl(5)). What a link says nobody can change;
    the directory tells whether it can be replaced.
    """
    return not is_ours(status) or (
        not stat.S_ISLNK(status.st_mode) and bool(status.st_mode & 0o022)
    )
