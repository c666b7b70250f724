# SPDX-License-Identifier: LGPL-2.1-or-later
"""The project as a wheel, for `Host.install`: built from a copy, so that nothing is left in the
tree. tests/deb builds packages from such a copy.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from . import machine

_PROJECT = Path(__file__).parents[2]
_NEEDED = (
    "pyproject.toml",
    "setup.cfg",
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "LICENSE",
    "debian",
    "kvmarm_plugin",
    "hooks",
    "systemd",
    "xml-templates",
    "docs",
)


def build_wheel(directory: Path) -> Path:
    """Build the wheel into an empty directory."""
    source = directory / "source"
    source.mkdir()
    copy_project(source)
    machine.run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        directory,
        source,
    )
    (wheel,) = directory.glob("*.whl")
    return wheel


def copy_project(source: Path) -> None:
    """Copy what is installed, and how, into an empty directory."""
    for name in _NEEDED:
        path = _PROJECT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
