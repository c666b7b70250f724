# SPDX-License-Identifier: LGPL-2.1-or-later
"""The package, built as a distribution builds it: in a chroot, from the suite's own packages."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..lab.errors import LabError
from ..lab.wheel import copy_project
from .chroot import Chroot

_SOURCE = "/build/kvmarm"


def build(chroot: Chroot, directory: Path, environment: dict[str, str] | None = None) -> Path:
    """Build the package, and a source package beside it.

    Args:
        chroot: one to build in, fresh.
        directory: where the package goes; made if need be.
        environment: what the build may not depend on.

    Returns:
        The package's file.

    Raises:
        LabError: it could not be built.
    """
    source = chroot.path(_SOURCE)
    source.mkdir(parents=True)
    copy_project(source)
    command = f"cd {_SOURCE} && dpkg-buildpackage --no-sign"
    chroot.must("sh", "-c", command, environment=environment)
    (built,) = source.parent.glob("kvmarm_*.deb")
    directory.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(built, directory))


def lint(chroot: Chroot) -> None:
    """Have the suite's lintian look at what was built, source package included.

    Raises:
        LabError: it has found something.
    """
    command = "cd /build && lintian --allow-root --fail-on error,warning kvmarm_*.changes"
    said = chroot.must("sh", "-c", command)
    if said:
        raise LabError(f"lintian says:\n{said}")
