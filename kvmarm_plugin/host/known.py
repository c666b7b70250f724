# SPDX-License-Identifier: LGPL-2.1-or-later
"""Profiles that go by a name: those of hosts, in /var/lib/kvmarm/profiles, and the library of known
CPUs, by public dumps, in known/; a file each. What each of the library is from:
docs/known-cpus.md.
"""

from __future__ import annotations

from pathlib import Path

from ..basics.errors import KvmarmError
from ..basics.untrusted import shown
from ..model import profile_json
from . import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..model.profile import HostProfile

DIRECTORY = Path(__file__).with_name("known")
HOSTS = Path("/var/lib/kvmarm/profiles")

_HOSTS = 10  # that a message names


def names() -> list[str]:
    """Of all profiles of the library, such as "graviton3@6.1"."""
    return sorted(path.stem for path in DIRECTORY.glob("*.json"))


def hosts() -> list[str]:
    """Names of the hosts whose profiles are kept here."""
    return sorted(path.stem for path in HOSTS.glob("*.json"))


def has(name: str) -> bool:
    """Whether there is a profile of this name."""
    return name in hosts() or name in names()


def read(name: str) -> HostProfile:
    """The profile of a host that is kept here, else one of the library.

    Raises:
        KvmarmError: there is none of this name, or it cannot be read.
    """
    if name in hosts():
        path = str(HOSTS / f"{name}.json")
        return profile_json.loads(files.read_text(path), path)
    if name not in names():
        known = ", ".join(
            shown(each, 60) for each in (*hosts()[:_HOSTS], *(_like(name) or names()))
        )
        raise KvmarmError(
            f"cannot read {shown(name, 100)}: there is no such file, no profile in {HOSTS}, and no"
            " known CPU of that name",
            f"known are {known}",
        )
    return profile_json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"), name)


def _like(name: str) -> list[str]:
    """The names that could be meant."""
    from difflib import get_close_matches  # slow to import, and rarely needed

    cpu = name.partition("@")[0].lower()
    return [each for each in names() if each.partition("@")[0] == cpu] or get_close_matches(
        name.lower(), names(), n=6
    )
