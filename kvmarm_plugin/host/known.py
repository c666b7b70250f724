# SPDX-License-Identifier: LGPL-2.1-or-later
"""Profiles that go by a name: those of hosts, in /var/lib/kvmarm/profiles, and the library of known
CPUs, by public dumps, in known/; a file each. What each of the library is from:
docs/known-cpus.md.
"""

from __future__ import annotations

import re
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
        raise KvmarmError(
            f"cannot read {shown(name, 100)}: there is no such file, no profile in {HOSTS}, and no"
            " known CPU of that name",
            _what_helps(name),
        )
    return profile_json.loads((DIRECTORY / f"{name}.json").read_text(encoding="utf-8"), name)


def _what_helps(name: str) -> str:
    """What to say where there is no profile of this name: a host's can be had."""
    meant = [shown(each, 60) for each in _like(name)]
    cpus = sorted({each.partition("@")[0] for each in names()})
    if meant:
        said = f"did you mean {', '.join(meant[:-1])}{' or ' if meant[1:] else ''}{meant[-1]}?"
    else:
        kept = [shown(each, 60) for each in hosts()[:_HOSTS]]
        said = f"known are {', '.join([*kept, *cpus])}."
    is_host = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}", name) and name not in cpus
    if not is_host or name.endswith(".json"):
        return said.rstrip(".")
    return (
        f"{said} A host of that name is asked as ssh://root@{name}; to keep its profile: ssh"
        f" root@{name} kvmarm probe >{HOSTS}/{name}.json"
    )


def _like(name: str) -> list[str]:
    """The names that could be meant."""
    from difflib import get_close_matches  # slow to import, and rarely needed

    cpu = name.partition("@")[0].lower()
    return [each for each in names() if each.partition("@")[0] == cpu] or get_close_matches(
        name.lower(), [*hosts(), *names()], n=6
    )
