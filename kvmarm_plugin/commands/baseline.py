# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm baseline`: the pool that hosts form, what it costs, and what would level the rest."""

from __future__ import annotations

import json

from .. import __version__
from ..basics.errors import KvmarmError
from ..basics.untrusted import shown, some
from ..fleet import baseline as plain
from ..fleet import levelling_view
from ..fleet.kinds import kinds_of
from ..fleet.levelling import levelled
from ..fleet.pool import Pool, dumps
from ..model.profile import SINCE_2, HostProfile
from ..model.profile_json import digest
from ..model.target import LEVEL_TEXT
from . import DONE, INCOMPATIBLE, NOT_KNOWN, USAGE
from .inputs import read_profiles
from .output import say, write_data, write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace


def run(arguments: Namespace) -> int:
    profiles, name, output = arguments.profiles, arguments.name, arguments.output
    in_json, explain = arguments.json, arguments.explain
    level, identity, accepts = arguments.level, arguments.identity, arguments.accept_errata
    if (identity or accepts) and not level:
        say(
            str(KvmarmError("--identity and --accept-errata are for levelled pools", "add --level"))
        )
        return USAGE
    hosts = read_profiles(profiles)
    names = [host.name for host in hosts]
    if identity and identity not in names:
        raise KvmarmError(
            f"no host of these is called {shown(identity, 60)}",
            f"they are {some(names)}",
        )
    if level:
        as_is = _pool_as_it_is(hosts)
        if as_is is None or as_is.missing:
            status = _level(hosts, name, output, identity or "", accepts, in_json, explain, as_is)
            if status is not None:
                return status
    result = plain.baseline(hosts, name)
    if result.pool and output:
        write_data(output, dumps(result.pool).encode())
    write_text(
        json.dumps(plain.as_json(result), indent=1) + "\n"
        if in_json
        else plain.as_text(result, explain)
    )
    return DONE if result.pool else INCOMPATIBLE


def _pool_as_it_is(hosts: list[HostProfile]) -> plain.Baseline | None:
    """The pool of hosts that need no levelling. Those that are known in part may."""
    if any(part not in SINCE_2 for host in hosts for part in host.unknown):
        return None
    result = plain.baseline(hosts)
    return result if result.pool else None


def _level(
    hosts: list[HostProfile],
    name: str,
    output: str | None,
    identity: str,
    accepts: bool,
    in_json: bool,
    explain: bool,
    as_is: plain.Baseline | None,
) -> int | None:
    """The exit status; None where the pool of the hosts `as_is` gives guests as much."""
    # All will have to have the library: those that do not are no kind of their own.
    kinds = kinds_of(host.replace(level_library=LEVEL_TEXT) for host in hosts)
    lacking = {h.name: h.level_library for h in hosts if h.level_library != LEVEL_TEXT}
    speakers = [
        next((host for host in kind.hosts if host.name == identity), kind.host) for kind in kinds
    ]
    result = levelled(speakers, name, identity)
    profile = result.profile
    whole = not result.unknown
    wanted = not result.needs_consent or accepts
    kept: list[str] = []
    if as_is is not None:
        kept = [feature for feature in as_is.missing if feature not in result.missing]
        others = result.missing.keys() - as_is.missing.keys()
        if not kept or others or profile is None or not wanted:
            return None
    if profile is not None and whole and wanted and output:
        made = profile.replace(made_by=f"kvmarm {__version__}")
        members = {host.name: digest(host) for host in sorted(hosts, key=lambda host: host.name)}
        write_data(output, dumps(Pool(name, members, made)).encode())
    write_text(
        json.dumps(levelling_view.as_json(result, name, kinds, lacking), indent=1) + "\n"
        if in_json
        else levelling_view.as_text(result, name, kinds, lacking, accepts, explain, kept)
    )
    if profile is None or (whole and not wanted):
        return INCOMPATIBLE
    return DONE if whole else NOT_KNOWN
