# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm check`: would a recorded guest run here, or there? Or of a pool: are these hosts members
like the others?
"""

from __future__ import annotations

import functools
import platform

from ..basics.errors import KvmarmError
from ..basics.untrusted import shown
from ..domain.record import is_adopted
from ..host.qemu_version import BINARIES
from ..model import policy
from . import DONE, INCOMPATIBLE, NOT_KNOWN, check_view, evacuation
from .check_view import ARRIVAL, EDITS, MEMBER, START, Report
from .inputs import (
    STORED,
    NoRecordError,
    is_file,
    machines_here,
    probe_here,
    read_guest,
    read_policy,
    read_profiles,
    read_source,
)
from .output import write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Sequence

    from ..domain.pins import Counted
    from ..judge.finding import Finding
    from ..model.profile import HostProfile
    from ..model.target import Target
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
    from ..fleet.pool import is_pool
    from ..host.libvirtd import is_remote

    if not hosts and (every or not is_file(name)) and is_remote(uri):
        raise KvmarmError(
            f"{uri} is another host, and this host's kernel knows nothing of it",
            "give its profile with --host, or have it asked: --host ssh://HOST",
        )
    drift_refused = False
    if not hosts:
        # The hook reads it with a reader of its own: refuse what that would not read alike.
        read_policy(None)
        drift_refused = policy.for_hook(policy.DEFAULT_PATH).on_drift == "refuse"
    profiles = read_profiles(hosts)
    machines = functools.cache(machines_here)

    def judge(source: Source) -> Report:
        try:
            guest = read_guest(source)
        except NoRecordError as error:
            from .unrecorded import as_if_adopted  # most guests have a record

            guest = as_if_adopted(source, uri, error)
        return _of_guest(guest, profiles, machines, drift_refused)

    if every:
        return evacuation.run(
            uri, [host.name for host in profiles] or [platform.node()], inactive, as_json, judge
        )
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


def _of_guest(
    guest: Guest,
    profiles: list[HostProfile],
    machines: Callable[[str], tuple[str, ...]],
    drift_refused: bool,
) -> Report:
    """By the word of these profiles, or of this host's kernel, and of the machine types of its QEMU
    of a path, if there are none.
    """
    question = START if guest.definition == STORED else ARRIVAL
    notes = guest.notes
    if guest.mark is not None:
        names = [host.name for host in profiles] or [platform.node()]
        verdicts: dict[str, list[Finding]] = {name: [] for name in names}
    elif profiles:
        from ..judge.by_profile import check, counted

        notes += tuple(
            _unasked(guest, f"that {host.name} has, {host.qemu.binary}")
            for host in profiles
            if host.qemu and guest.emulator not in ("", host.qemu.binary)
        )
        verdicts = {
            host.name: _judged(
                guest,
                question,
                counted(host),
                host.ipa_bits,
                lambda target, cpus, host=host: check(target, host, cpus, question == START),  # type: ignore[misc]
            )
            for host in profiles
        }
    else:
        if not guest.is_here and guest.emulator not in ("", *BINARIES.get(platform.machine(), ())):
            notes += (_unasked(guest, "of this host: what a file names is not run"),)
        verdicts = {platform.node(): _rehearsed(guest, question, machines)}
    origin = guest.record.origin
    return Report(
        title=guest.name,
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


def _unasked(guest: Guest, asked: str) -> str:
    return f"it names the emulator {shown(guest.emulator, 120)}; asked was the one {asked}"


def _judged(
    guest: Guest,
    question: str,
    clusters: Sequence[Counted],
    ipa_bits: int,
    judge: Callable[[Target, tuple[int, ...]], list[Finding]],
    takes_host_model: bool = False,
) -> list[Finding]:
    """The findings of a guest on a host of these clusters.

    Args:
        ipa_bits: the host's limit of guest physical addresses; 0 where KVM was not asked.
        judge: takes a target, and the CPUs that the guest belongs on, none if it may run on any.
        takes_host_model: whether the host's libvirt does.
    """
    from ..judge.contradictions import as_written, find_contradictions, memory_too_large
    from ..judge.pinning import reconcile_pins

    target = guest.record.target
    changes = find_contradictions(guest.domain, target, takes_host_model, ipa_bits)
    if guest.is_assumed:  # nothing was recorded that could have been edited
        changes = [finding for finding in changes if finding.kind not in EDITS]
    # The hook moves the pins of a guest that arrives.
    _, cpus, pins = reconcile_pins(
        guest.document, guest.domain, guest.record, clusters, movable=question == ARRIVAL
    )
    if question == ARRIVAL:
        return changes + pins + judge(target, cpus)
    too_large = memory_too_large(guest.domain, ipa_bits) if ipa_bits else []
    if not changes:
        return too_large + pins + judge(target, cpus)
    # It boots as its XML says, of which the record says nothing.
    written = judge(as_written(guest.domain, target), cpus)
    return changes + too_large + [finding for finding in written if finding.stops_start]


def _rehearsed(
    guest: Guest, question: str, machines_of: Callable[[str], tuple[str, ...]]
) -> list[Finding]:
    from ..host.cpus import find_clusters
    from ..host.libvirt_host_model import is_noted
    from ..judge.pinning import kinds_to_ask, with_cluster
    from ..judge.verdict import which_counts
    from ..kvm.device import System
    from ..rehearse import rehearse

    clusters = find_clusters()
    machines = machines_of(guest.emulator if guest.is_here else "")
    with System() as system:
        ipa_bits = system.ipa_bits()

    def judge(target: Target, cpus: tuple[int, ...]) -> list[Finding]:
        boots = question == START
        with System() as system:
            verdicts = [
                rehearse(target, system, machines, kind, boots)
                for kind in kinds_to_ask(target, clusters, cpus)
            ]
        findings = verdicts[which_counts(verdicts, target.roams and not boots)]
        return with_cluster(findings, target.pinning, clusters)

    return _judged(guest, question, clusters, ipa_bits, judge, is_noted())


def _of_pool(document: bytes, name: str, profiles: list[HostProfile]) -> Report:
    """Whether these hosts, or this one, would be members like the others."""
    from ..fleet.pool import check_member, loads

    try:
        pool = loads(document.decode(), name)
    except UnicodeDecodeError:
        raise KvmarmError(f"{name} is not a text in UTF-8", "is it the right file?") from None
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
