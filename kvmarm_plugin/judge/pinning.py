# SPDX-License-Identifier: LGPL-2.1-or-later
"""A pinned guest on another host, or on the same after its CPUs were numbered anew.

`resolve` writes pins for a cluster, and the record says which it is and what numbers its CPUs have
there. On another host the same cluster may have others. In migrate and restore libvirt takes a
changed `<vcpu cpuset>` and `<cputune>` from the hook (qemuMigrationDstPrepareAny,
qemuSaveImageOpen), and there `reconcile_pins` moves the pins; elsewhere it can only say that they
are wrong.
"""

from __future__ import annotations

from ..basics import cpulist
from ..domain import record
from ..domain.edits import Edits
from ..domain.pins import cpus_of, cpuset_of, find_cluster, pins_of
from ..domain.xml import Element, parse
from ..model.target import Pinning
from .finding import REFUSES, Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..domain.pins import Counted, Identified


def with_cluster(
    findings: list[Finding], pinning: Pinning, clusters: Sequence[Identified]
) -> list[Finding]:
    """The findings, and that this host has no such CPUs, unless they say so: the kernel refuses
    another MIDR_EL1.
    """
    known = any(
        finding.values.get("register") == "MIDR_EL1" and finding.severity == REFUSES
        for finding in findings
    )
    if known or find_cluster(pinning, clusters) is not None:
        return findings
    missing = Finding(
        "cluster-missing", midr=pinning.midr, local=tuple(cluster.midr for cluster in clusters)
    )
    return [missing, *findings]


def reconcile_pins(
    source: bytes, domain: Element, pinning: Pinning, clusters: Sequence[Counted], movable: bool
) -> tuple[bytes, tuple[int, ...], list[Finding]]:
    """Hold the pins of a domain against the clusters of this host.

    Args:
        source, domain: the domain's XML, and the same parsed; it has a record.
        movable: whether the XML may be changed. Otherwise wrong pins are findings.

    Returns:
        The XML, another only if pins had to be moved; the CPUs that the guest belongs on, none if
        it belongs on none here; and what is wrong with its pins.
    """
    cluster = find_cluster(pinning, clusters)
    if cluster is None:
        return source, (), []
    own = cpulist.bits(cluster.cpus)
    others = cpulist.bits(cpu for other in clusters if other is not cluster for cpu in other.cpus)
    if movable and _misplaced(domain, own, others):
        source = _move(source, domain, cpulist.parse(pinning.cpus), cluster.cpus)
        domain = parse(source)
    wrong = _misplaced(domain, own, others)
    vcpu = domain.find("vcpu")
    local, midr = cpulist.write(cluster.cpus), cluster.midr
    if vcpu is None or not cpuset_of(vcpu):
        return source, cluster.cpus, [Finding("pin-missing", local=local, midr=midr)]
    found = [
        Finding(
            "pin-elsewhere",
            element=pin.name,
            recorded=pin.attributes["cpuset"],
            local=local,
            midr=midr,
        )
        for pin in wrong[:1]
    ]
    return source, cluster.cpus, found


def moved(cpus: tuple[int, ...], old: tuple[int, ...], new: tuple[int, ...]) -> tuple[int, ...]:
    """CPUs of a cluster where it has other numbers: all for all, and a part by its places, over and
    over where there are fewer.
    """
    if cpus == old:
        return new
    place = {cpu: number for number, cpu in enumerate(old)}
    return tuple(sorted({new[place[cpu] % len(new)] for cpu in cpus}))


def _misplaced(domain: Element, cluster: int, others: int) -> list[Element]:
    """The pins that do not keep to the cluster. CPUs of no cluster are offline, and do not
    matter.
    """
    return [
        pin
        for pin in pins_of(domain)
        for cpus in [cpus_of(pin)]
        if cpus & others or not cpus & cluster
    ]


def _move(source: bytes, domain: Element, old: tuple[int, ...], new: tuple[int, ...]) -> bytes:
    """The XML with the pins moved that are of the recorded cluster, and the numbers in the record
    with them: from the next host they are moved again.
    """
    edits = Edits(source)
    known = cpulist.bits(old)
    written: dict[int, str] = {}  # most pins are alike
    for pin in pins_of(domain):
        cpus = cpus_of(pin)
        if not cpus & ~known:
            if cpus not in written:
                written[cpus] = cpulist.write(moved(cpulist.numbers(cpus), old, new))
            edits.replace(pin.start, pin.body_start, pin.tag_with(cpuset=written[cpus]))
    recorded = record.pinning_of(record.find(domain) or domain)
    assert recorded is not None
    edits.replace(recorded.start, recorded.body_start, recorded.tag_with(cpus=cpulist.write(new)))
    return edits.apply()
