# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm check`: would a recorded guest run here, or there? Or of a pool: are these hosts members
like the others?
"""

from __future__ import annotations

import platform

from ..basics.errors import KvmarmError
from ..judge.finding import HARMLESS, worst
from . import DONE, INCOMPATIBLE, check_view
from .inputs import machines_here, probe_here, read_domain, read_policy, read_profiles, read_record
from .output import write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from ..domain.record import Record
    from ..domain.xml import Element
    from ..judge.finding import Finding


def run(arguments: Namespace) -> int:
    name, uri, hosts, as_json = (
        arguments.domain,
        arguments.connect,
        arguments.host or [],
        arguments.json,
    )
    from ..fleet.pool import is_pool

    if not hosts:
        read_policy(
            None
        )  # the hook reads it here, with a reader of its own: refuse what it would not read alike
    document = read_domain(name, uri)
    title, verdicts = (
        _of_pool(document, name, hosts) if is_pool(document) else _of_domain(document, name, hosts)
    )
    write_text(
        check_view.as_json(title, verdicts) if as_json else check_view.as_text(title, verdicts)
    )
    return (
        DONE
        if all(worst(findings) in ("", HARMLESS) for findings in verdicts.values())
        else INCOMPATIBLE
    )


def _of_domain(
    document: bytes, name: str, hosts: list[str]
) -> tuple[str, dict[str, list[Finding]]]:
    """The domain's name, and its findings by host: by the word of these profiles, or of this host's
    kernel if there are none.
    """
    from ..judge.by_profile import check, counted
    from ..judge.contradictions import find_contradictions
    from ..judge.pinning import reconcile_pins

    record, title, domain = read_record(document, name)
    if hosts:
        verdicts = {}
        for host in read_profiles(hosts):
            _, cpus, pins = reconcile_pins(document, domain, record, counted(host), movable=True)
            verdicts[host.name] = pins + check(record.target, host, cpus)
    else:
        verdicts = {platform.node(): _rehearsed(domain, record)}
    changes = find_contradictions(domain, record.target)
    return title, {host: changes + findings for host, findings in verdicts.items()}


def _of_pool(document: bytes, name: str, hosts: list[str]) -> tuple[str, dict[str, list[Finding]]]:
    """The pool's name, and by host why it would be no member like the others."""
    from ..fleet.pool import check_member, loads

    try:
        pool = loads(document.decode(), name)
    except UnicodeDecodeError:
        raise KvmarmError(f"{name} is not a text in UTF-8", "is it the right file?") from None
    members = read_profiles(hosts) if hosts else [probe_here()]
    useless = next((host for host in members if not host.clusters), None)
    if useless:
        raise KvmarmError(
            f"host {useless.name} cannot run KVM guests: {'; '.join(map(str, useless.problems))}",
            "it can be no member of a pool",
        )
    return f"pool {pool.name}", {host.name: check_member(pool, host) for host in members}


def _rehearsed(domain: Element, record: Record) -> list[Finding]:
    from ..host.cpus import find_clusters
    from ..judge.pinning import reconcile_pins, with_cluster
    from ..kvm.device import System
    from ..rehearse import rehearse

    machines, target = machines_here(), record.target
    with System() as system:
        clusters = find_clusters()
        _, cpus, pins = reconcile_pins(b"", domain, record, clusters, movable=False)
        return with_cluster(
            pins + rehearse(target, system, machines, cpus), target.pinning, clusters
        )
