# SPDX-License-Identifier: LGPL-2.1-or-later
"""Verdicts on whole guests: what a domain's XML, its pins and its record say together, held against
this host's kernel or against a host's profile.

`rehearse` and `by_profile` judge a target alone.
"""

from __future__ import annotations

from .basics.errors import KvmarmError
from .host import cpus as host_cpus
from .host import qemu_version
from .host.libvirt_host_model import is_noted
from .judge.contradictions import as_written, find_contradictions, memory_refused
from .judge.pinning import kinds_to_ask, reconcile_pins, with_cluster
from .judge.verdict import which_counts, worst_first
from .rehearse import rehearse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Callable

    from .domain.pins import Counted
    from .domain.record import Record
    from .domain.xml import Element
    from .judge.finding import Finding
    from .kvm.device import System
    from .model.target import Target


def judge_guest(
    document: bytes,
    domain: Element,
    record: Record,
    boots: bool,
    clusters: Sequence[Counted],
    ipa_bits: int,
    qemu: Callable[[], tuple[int, int]],
    judge: Callable[[Target, tuple[int, ...]], list[Finding]],
    takes_host_model: bool = False,
    is_assumed: bool = False,
) -> list[Finding]:
    """The findings of a guest on a host of these clusters.

    Args:
        document, domain: its XML, and the same parsed.
        record: the one in it.
        boots: whether it boots there; otherwise it arrives.
        ipa_bits: the host's limit of guest physical addresses; 0 where KVM was not asked.
        qemu: tells the version of the host's QEMU, as `Offer.qemu_version`.
        judge: takes a target, and the CPUs that the guest belongs on, none if it may run on any.
        takes_host_model: whether the host's libvirt does.
        is_assumed: whether nobody recorded it, so that nothing can have been edited since.
    """
    target = record.target
    changes = [
        finding
        for finding in find_contradictions(domain, target, takes_host_model, ipa_bits)
        if not (is_assumed and finding.group == "edit")
    ]
    if changes and not boots:
        return changes  # what else is recorded is of another guest
    # The hook moves the pins of a guest that arrives.
    _, cpus, pins = reconcile_pins(document, domain, record, clusters, movable=not boots)
    too_large = memory_refused(domain, ipa_bits, qemu, boots) if ipa_bits else []
    if not boots:
        return worst_first(too_large + pins + judge(target, cpus))
    if not changes:
        return too_large + pins + judge(target, cpus)
    # It boots as its XML says, of which the record says nothing.
    written = judge(as_written(domain, target), cpus)
    return changes + too_large + [finding for finding in written if finding.stops_start]


class HostHere:
    """This host, asked about any number of guests; it is asked about each target once.

    Args:
        machines: gives the machine types of the emulator at a path; of the distribution's for "".
            It is asked about each emulator once.
    """

    def __init__(self, system: System, machines: Callable[[str], tuple[str, ...]]) -> None:
        self._system = system
        self._ask_machines = machines
        self._machines: dict[str, tuple[str, ...] | KvmarmError] = {}
        self._clusters = host_cpus.find_clusters()
        self._ipa_bits = system.ipa_bits()
        self._takes_host_model = is_noted()
        self._judged: dict[tuple[object, ...], list[Finding]] = {}

    def judge(
        self,
        document: bytes,
        domain: Element,
        record: Record,
        boots: bool,
        emulator: str = "",
        is_assumed: bool = False,
    ) -> list[Finding]:
        """The findings of a guest on this host; other arguments as for `judge_guest`.

        Args:
            emulator: path of the QEMU that it is started with. It is run: none that a file names.

        Raises:
            KvmarmError: /dev/kvm or the emulator fails in a way that says nothing about the guest.
        """
        machines = self._machines_of(emulator)
        return judge_guest(
            document,
            domain,
            record,
            boots,
            self._clusters,
            self._ipa_bits,
            qemu_version.installed_version,
            lambda target, cpus: self._rehearse(target, cpus, machines, boots),
            self._takes_host_model,
            is_assumed,
        )

    def _machines_of(self, emulator: str) -> tuple[str, ...]:
        if emulator not in self._machines:
            try:
                self._machines[emulator] = self._ask_machines(emulator)
            except KvmarmError as error:  # one that hangs takes its time
                self._machines[emulator] = error
        found = self._machines[emulator]
        if isinstance(found, KvmarmError):
            raise found
        return found

    def _rehearse(
        self, target: Target, cpus: tuple[int, ...], machines: tuple[str, ...], boots: bool
    ) -> list[Finding]:
        key = (repr(target), cpus, machines, boots)
        if key not in self._judged:
            verdicts = [
                rehearse(target, self._system, machines, kind, boots)
                for kind in kinds_to_ask(target, self._clusters, cpus)
            ]
            findings = verdicts[which_counts(verdicts, target.roams and not boots)]
            self._judged[key] = with_cluster(findings, target.pinning, self._clusters)
        return self._judged[key]
