# SPDX-License-Identifier: LGPL-2.1-or-later
"""libkvmarm-level, built for the hosts."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "preload"


def build_library(directory: Path) -> Path:
    """Build libkvmarm-level.so.1 for arm64 into a directory."""
    subprocess.run(["make", "--silent", "-C", SOURCE, f"OUT={directory}"], check=True)
    return directory / "libkvmarm-level.so.1"
