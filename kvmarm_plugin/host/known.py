# SPDX-License-Identifier: LGPL-2.1-or-later
"""The library of known CPUs: profiles of hosts by public dumps, in known/, a file each. What each
is from: docs/known-cpus.md.
"""

from __future__ import annotations

from pathlib import Path

from ..basics.errors import KvmarmError
from ..basics.untrusted import shown
from ..model import profile_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..model.profile import HostProfile

DIRECTORY = Path(__file__).with_name("known")


def names() -> list[str]:
    """Of all profiles of the library, such as "graviton3@6.1"."""
    return sorted(path.stem for path in DIRECTORY.glob("*.json"))


def read(name: str) -> HostProfile:
    """A profile of the library. Raises KvmarmError: there is none of this name."""
    if name not in names():
        raise KvmarmError(
            f"cannot read {shown(name, 100)}: there is no such file, and no known CPU of that name",
            f"known are {', '.join(_like(name) or names())}",
        )
    return profile_json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"), name)


def _like(name: str) -> list[str]:
    """The names that could be meant."""
    from difflib import get_close_matches  # slow to import, and rarely needed

    cpu = name.partition("@")[0].lower()
    return [each for each in names() if each.partition("@")[0] == cpu] or get_close_matches(
        name.lower(), names(), n=6
    )
