# SPDX-License-Identifier: LGPL-2.1-or-later
"""The package kvmarm-level on each suite: built twice alike, with lintian content, and whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ..lab import machine
from .build import build_level, lint
from .chroot import SUITES, to_build_for_arm64

pytestmark = [
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make chroots"),
]

_LIBRARY = "usr/lib/aarch64-linux-gnu/libkvmarm-level.so.1"


@pytest.mark.parametrize("suite", SUITES)
def test_two_builds_give_the_same_bytes(suite: str, tmp_path: Path) -> None:
    with to_build_for_arm64(suite) as chroot:
        package = build_level(chroot, tmp_path)
        lint(chroot)
    other = {"LC_ALL": "C", "TZ": "Asia/Kathmandu", "DEB_BUILD_OPTIONS": "parallel=3"}
    before = os.umask(0o077)
    try:
        with to_build_for_arm64(suite) as chroot:
            again = build_level(chroot, tmp_path / "again", environment=other)
    finally:
        os.umask(before)
    assert again.read_bytes() == package.read_bytes()

    tree = tmp_path / "tree"
    machine.run("dpkg-deb", "--raw-extract", package, tree)
    files = {
        str(path.relative_to(tree))
        for path in tree.rglob("*")
        if path.is_file() and path.parts[len(tree.parts)] != "DEBIAN"
    }
    assert {name for name in files if not name.startswith("usr/share/")} == {_LIBRARY}
    control = (tree / "DEBIAN/control").read_text()
    assert "\nArchitecture: arm64\n" in control
    assert "\nMulti-Arch: same\n" in control
    assert "\nDepends: libc6 (>= 2.3" in control
    assert "ldconfig" in (tree / "DEBIAN/triggers").read_text()
