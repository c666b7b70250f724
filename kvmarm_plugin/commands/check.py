# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm check`: would a recorded guest run here, or there? Or of a pool: are these hosts members
like the others?
"""

from __future__ import annotations

import functools
import platform
from contextlib import ExitStack

from ..basics.errors import KvmarmError
from ..basics.untrusted import shown
from ..domain.record import is_adopted
from ..fleet.pool import check_member, is_pool, loads
from ..host import host_policy, qemu
from ..host.libvirtd import is_remote
from ..host.qemu_version import BINARIES
from ..judge.by_profile import check, counted
from ..kvm import device
from ..model.guest_registers import is_unread
from ..verdicts import HostHere, judge_guest
from . import DONE, INCOMPATIBLE, NOT_KNOWN, check_view, evacuation
from .check_view import ARRIVAL, MEMBER, START, Report
from .inputs import (
    STORED,
    NoRecordError,
    is_file,
    machines_here,
    probe_here,
    read_guest,
    read_profiles,
    read_source,
)
from .output import write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

    from ..judge.finding import Finding
    from ..model.profile import HostProfile
    from .inputs import Guest, Source


def run(arguments: Namespace) -> int:
    name, uri, hosts, inactive, as_json = (
        arguments.domain,
        arguments.connect,
        arguments.host or [],
        arguments.inactive,
        arguments.json,
    )
    every = arguments.all
    if not hosts and (every or not is_file(name)) and is_remote(uri):
        raise KvmarmError(
            f"{uri} is another host, and this host's kernel knows nothing of it",
            "give its profile with --host, or have it asked: --host ssh://HOST",
        )
    drift_refused = not hosts and host_policy.reaction_to_drift() == "refuse"
    profiles = read_profiles(hosts)
    with ExitStack() as stack:
        here = functools.cache(lambda: _open(stack))

        def judge(source: Source) -> Report:
            try:
                guest = read_guest(source)
            except NoRecordError as error:
                from .unrecorded import as_if_adopted  # most guests have a record

                guest = as_if_adopted(source, uri, error)
            return _of_guest(guest, profiles, here, drift_refused)

        if every:
            names = [host.name for host in profiles] or [platform.node()]
            return evacuation.run(uri, names, inactive, as_json, judge)
        source = read_source(name, uri, inactive)
        if is_pool(source.document):
            report = _of_pool(source.document, name, profiles)
        else:
            report = judge(source)
    write_text(check_view.as_json(report) if as_json else check_view.as_text(report))
    answers = report.verdicts.values()
    if any(map(report.is_no, answers)):
        return INCOMPATIBLE
    return DONE if all(map(report.is_yes, answers)) else NOT_KNOWN


def _open(stack: ExitStack) -> HostHere:
    return HostHere(stack.enter_context(device.System()), machines_here)


def _of_guest(
    guest: Guest,
    profiles: list[HostProfile],
    here: Callable[[], HostHere],
    drift_refused: bool,
) -> Report:
    """By the word of these profiles, or of this host if there are none."""
    question = START if guest.definition == STORED else ARRIVAL
    boots, notes = question == START, guest.notes
    if guest.mark is not None:
        names = [host.name for host in profiles] or [platform.node()]
        verdicts: dict[str, list[Finding]] = {name: [] for name in names}
    elif profiles:
        notes += tuple(
            _unasked(guest, f"that {host.name} has, {host.qemu.binary}")
            for host in profiles
            if host.qemu and guest.emulator not in ("", host.qemu.binary)
        )
        verdicts = {host.name: _by_profile(guest, host, boots) for host in profiles}
    else:
        emulator = guest.emulator
        if not guest.is_here:
            if emulator in BINARIES.get(platform.machine(), ()):
                emulator = ""
            elif emulator and not qemu.may_be_asked(emulator):
                notes += (_unasked(guest, "of this host: the other could be anything"),)
                emulator = ""
        found = here().judge(
            guest.document, guest.domain, guest.record, boots, emulator, guest.is_assumed
        )
        verdicts = {platform.node(): found}
    origin = guest.record.origin
    return Report(
        title=guest.name,
        uuid=guest.uuid,
        question=question,
        definition=guest.definition,
        origin=origin.renewed or origin.host,
        here=not profiles,
        verdicts=verdicts,
        unknown=guest.mark or "",
        notes=notes,
        drift_refused=drift_refused and not is_adopted(guest.record),
        adopted=is_adopted(guest.record),
        assumed=guest.is_assumed,
    )


def _by_profile(guest: Guest, host: HostProfile, boots: bool) -> list[Finding]:
    target = guest.record.target
    unread = target.architecture == "arm64" and is_unread(target.seen)
    unknown = ("seen",) if unread else ()
    return judge_guest(
        guest.document,
        guest.domain,
        guest.record,
        boots,
        counted(host),
        host.ipa_bits,
        lambda: host.qemu.release if host.qemu else (0, 0),
        lambda target, cpus: check(target, host, cpus, boots, unknown),
        is_assumed=guest.is_assumed,
    )


def _unasked(guest: Guest, asked: str) -> str:
    return f"it names the emulator {shown(guest.emulator, 120)}; asked was the one {asked}"


def _of_pool(document: bytes, name: str, profiles: list[HostProfile]) -> Report:
    """Whether these hosts, or this one, would be members like the others."""
    try:
        pool = loads(document.decode(), name)
    except UnicodeDecodeError:
        raise KvmarmError(
            f"{name} is not a text in UTF-8", "check that it is the file you mean"
        ) from None
    members = profiles or [probe_here()]
    useless = next((host for host in members if not host.clusters), None)
    if useless:
        why = "; ".join(map(str, useless.problems)) or "its profile has no CPU cluster"
        raise KvmarmError(
            f"host {useless.name} cannot run KVM guests: {why}",
            "it can be no member of a pool",
        )
    return Report(
        title=f"pool {pool.name}",
        question=MEMBER,
        verdicts={host.name: check_member(pool, host) for host in members},
    )
