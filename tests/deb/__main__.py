# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python3 -m tests.deb [SUITE…]`: builds the package for these suites, or all, in dist/SUITE."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..lab.errors import LabError, say, step
from .build import build, lint
from .chroot import SUITES, to_build

_DIST = Path(__file__).parents[2] / "dist"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.deb", description=__doc__)
    parser.add_argument("suites", metavar="SUITE", nargs="*", help=f"of {', '.join(SUITES)}")
    suites = parser.parse_args().suites or SUITES
    if not set(suites) <= set(SUITES):
        parser.error(f"suites are {', '.join(SUITES)}")
    try:
        for suite in suites:
            with step(f"package for {suite}"), to_build(suite) as chroot:
                path = build(chroot, _DIST / suite)
                lint(chroot)
            print(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    except LabError as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
