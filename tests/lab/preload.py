# SPDX-License-Identifier: LGPL-2.1-or-later
"""libkvmarm-level, built for the hosts."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "preload"


def build_library(directory: Path) -> Path:
    """Build libkvmarm-level.so.1 for arm64 into a directory."""
    library = directory / "libkvmarm-level.so.1"
    subprocess.run(
        ["aarch64-linux-gnu-gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared",
         "-fvisibility=hidden", f"-Wl,-soname,{library.name}", "-o", library,
         SOURCE / "kvmarm-level.c"],
        check=True,
    )  # fmt: skip
    return library
