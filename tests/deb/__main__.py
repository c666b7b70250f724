# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python3 -m tests.deb [SUITE…]`: builds the packages for these suites, or all, in dist/SUITE."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..lab.errors import LabError, say, step
from .build import build, build_level, lint
from .chroot import SUITES, to_build, to_build_for_arm64

_DIST = Path(__file__).parents[2] / "dist"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.deb", description=__doc__)
    parser.add_argument("suites", metavar="SUITE", nargs="*", help=f"of {', '.join(SUITES)}")
    suites = parser.parse_args().suites or SUITES
    if not set(suites) <= set(SUITES):
        parser.error(f"suites are {', '.join(SUITES)}")
    try:
        for suite in suites:
            for name, ready, make in (
                ("kvmarm", to_build, build),
                ("kvmarm-level", to_build_for_arm64, build_level),
            ):
                with step(f"{name} for {suite}"), ready(suite) as chroot:
                    path = make(chroot, _DIST / suite)
                    lint(chroot)
                print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    except LabError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
