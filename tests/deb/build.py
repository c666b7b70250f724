# SPDX-License-Identifier: LGPL-2.1-or-later
"""The packages, built as a distribution builds it: in a chroot, from the suite's own packages."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..lab.errors import LabError
from ..lab.wheel import copy_project
from .chroot import Chroot

_SOURCE = "/build/kvmarm"
_PRELOAD = Path(__file__).parents[2] / "preload"


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
    return _build(chroot, "", directory, environment)


def build_level(chroot: Chroot, directory: Path, environment: dict[str, str] | None = None) -> Path:
    """Build kvmarm-level, for arm64, in a chroot that can. Arguments and errors as of `build`."""
    source = chroot.path(_SOURCE)
    shutil.copytree(_PRELOAD, source, ignore=shutil.ignore_patterns("*.so.*"))
    return _build(chroot, "--build=any --host-arch=arm64", directory, environment)


def _build(
    chroot: Chroot, options: str, directory: Path, environment: dict[str, str] | None
) -> Path:
    command = f"cd {_SOURCE} && dpkg-buildpackage --no-sign {options}"
    chroot.must("sh", "-c", command, environment=environment)
    (built,) = (
        path for path in chroot.path(_SOURCE).parent.glob("*.deb") if "-dbgsym_" not in path.name
    )
    directory.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(built, directory))


def lint(chroot: Chroot) -> None:
    """Have the suite's lintian look at what was built, source package included.

    Raises:
        LabError: it has found something.
    """
    command = "cd /build && lintian --allow-root --fail-on error,warning *.changes"
    said = chroot.must("sh", "-c", command)
    if said:
        raise LabError(f"lintian says:\n{said}")
