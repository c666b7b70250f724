# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm check`: would a recorded guest run here, or there? Or of a pool: are these hosts members
like the others?
"""

from __future__ import annotations

import platform

from ..basics.errors import KvmarmError
from ..basics.untrusted import shown
from ..host.qemu_version import BINARIES
from ..judge.finding import UNKNOWN
from ..model import policy
from . import DONE, INCOMPATIBLE, NOT_KNOWN, check_view
from .check_view import ARRIVAL, MEMBER, START, Report
from .inputs import (
    STORED,
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
    from ..model.target import Target
    from .inputs import Guest


def run(arguments: Namespace) -> int:
    name, uri, hosts, inactive, as_json = (
        arguments.domain,
        arguments.connect,
        arguments.host or [],
        arguments.inactive,
        arguments.json,
    )
    from ..fleet.pool import is_pool
    from ..host.libvirtd import is_remote

    if not hosts and not is_file(name) and is_remote(uri):
        raise KvmarmError(
            f"{uri} is another host, and this host's kernel knows nothing of it",
            "on that host: kvmarm probe -o FILE; then give FILE with --host",
        )
    drift_refused = False
    if not hosts:
        # The hook reads it with a reader of its own: refuse what that would not read alike.
        read_policy(None)
        drift_refused = policy.for_hook(policy.DEFAULT_PATH).on_drift == "refuse"
    source = read_source(name, uri, inactive)
    if is_pool(source.document):
        report = _of_pool(source.document, name, hosts)
    else:
        report = _of_guest(read_guest(source), hosts, drift_refused)
    write_text(check_view.as_json(report) if as_json else check_view.as_text(report))
    if report.unknown:
        return NOT_KNOWN
    no_yes = [each for each in report.verdicts.values() if not report.is_yes(each)]
    if no_yes and all(report.verdict(each) == UNKNOWN for each in no_yes):
        return NOT_KNOWN
    return INCOMPATIBLE if no_yes else DONE


def _of_guest(guest: Guest, hosts: list[str], drift_refused: bool) -> Report:
    """By the word of these profiles, or of this host's kernel if there are none."""
    question = START if guest.definition == STORED else ARRIVAL
    notes = guest.notes
    if guest.mark is not None:
        names = [host.name for host in read_profiles(hosts)] or [platform.node()]
        verdicts: dict[str, list[Finding]] = {name: [] for name in names}
    elif hosts:
        from ..judge.by_profile import check, counted

        profiles = read_profiles(hosts)
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
        verdicts = {platform.node(): _rehearsed(guest, question)}
    origin = guest.record.origin
    return Report(
        title=guest.name,
        uuid=guest.uuid,
        question=question,
        definition=guest.definition,
        origin=origin.renewed or origin.host,
        here=not hosts,
        verdicts=verdicts,
        unknown=guest.mark or "",
        notes=notes,
        drift_refused=drift_refused,
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
    if changes and question == ARRIVAL:
        return changes  # what else is recorded is of another guest
    # The hook moves the pins of a guest that arrives.
    _, cpus, pins = reconcile_pins(
        guest.document, guest.domain, guest.record, clusters, movable=question == ARRIVAL
    )
    if question == ARRIVAL:
        return pins + judge(target, cpus)
    too_large = memory_too_large(guest.domain, ipa_bits) if ipa_bits else []
    if not changes:
        return too_large + pins + judge(target, cpus)
    # It boots as its XML says, of which the record says nothing.
    written = judge(as_written(guest.domain, target), cpus)
    return changes + too_large + [finding for finding in written if finding.stops_start]


def _rehearsed(guest: Guest, question: str) -> list[Finding]:
    from ..host.cpus import find_clusters
    from ..host.libvirt_host_model import is_noted
    from ..judge.pinning import kinds_to_ask, with_cluster
    from ..judge.verdict import which_counts
    from ..kvm.device import System
    from ..rehearse import rehearse

    clusters = find_clusters()
    machines = machines_here(guest.emulator if guest.is_here else "")
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


def _of_pool(document: bytes, name: str, hosts: list[str]) -> Report:
    """Whether these hosts, or this one, would be members like the others."""
    from ..fleet.pool import check_member, loads

    try:
        pool = loads(document.decode(), name)
    except UnicodeDecodeError:
        raise KvmarmError(
            f"{name} is not a text in UTF-8", "check that it is the file you mean"
        ) from None
    members = read_profiles(hosts) if hosts else [probe_here()]
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
