# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest that the hook is asked about: what its XML and its record say, what this host makes of
it, and its mark.
"""

from __future__ import annotations

from ..basics.untrusted import domain_word, shown
from .tell import MESSAGE_LIMIT, log, one_line, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..basics.errors import KvmarmError
    from ..domain.record import Record
    from ..domain.xml import Element
    from ..judge.finding import Finding
    from ..kvm.device import System
    from ..model.target import Target


_UNREAD = "unread"  # in a ticket, in place of the digest of a record

# In a ticket, behind the kinds of findings that an arrival has passed against: nobody knows what it
# has.
UNSURE = "unsure"


class Guest:
    """A guest that mentions a record, as far as it has been read.

    Attributes:
        name, operation: the domain's, and libvirt's.
        xml: its XML, with the pins that it needs here.
        moved: whether libvirt has given other pins.
        uuid: empty where it could not be read.
        domain, record: of `xml`; None where they could not be read.
        problem: why the record could not be read.
        renewed: the record that it needs here, if that is another.
        allowed: whether an operator has let it pass.
    """

    def __init__(self, name: str, operation: str, xml: bytes) -> None:
        self.name, self.operation, self.xml = name, operation, xml
        self.moved = False
        self.uuid = ""
        self.domain: Element | None = None
        self.record: Record | None = None
        self.problem: KvmarmError | None = None
        self.renewed: Record | None = None
        self.allowed = False

    def read(self) -> bool:
        """Read the XML and the record in it. Returns whether there is one, be it broken.

        Raises:
            DomainXMLError: it is no domain.
        """
        from ..basics.errors import KvmarmError
        from ..domain import record
        from ..domain.xml import parse
        from ..host.marks import is_uuid

        self.domain = domain = parse(self.xml)
        element = domain.find("uuid")
        text = element.body.strip().decode(errors="replace").lower() if element else ""
        self.uuid = text if is_uuid(text) else ""
        try:
            self.record = record.read_from(domain)
        except KvmarmError as error:
            self.problem = error
        return self.record is not None or self.problem is not None

    def known(self) -> tuple[Element, Record]:
        """The domain and its record. Raises why there is none."""
        if self.domain is None or self.record is None:
            raise self.problem or AssertionError
        return self.domain, self.record

    def word(self) -> str:
        """What to call it in a command, for people who paste that."""
        return domain_word(self.name, self.uuid)


def compare(guest: Guest, arrived: bool) -> tuple[list[Finding], Target | None]:
    """What speaks against a guest on this host, and what it will have here: None where nobody
    knows.
    """
    from ..kvm.device import System

    with System() as system:
        return _compare(guest, arrived, system)


def _compare(guest: Guest, arrived: bool, system: System) -> tuple[list[Finding], Target | None]:
    from ..domain.xml import asks_for_host_model
    from ..judge.contradictions import find_contradictions, memory_refused

    domain, record = guest.known()
    target = record.target
    ipa_bits = system.ipa_bits()
    takes_host_model = False
    if not arrived and asks_for_host_model(domain):
        from ..host.libvirt_host_model import is_noted

        takes_host_model = is_noted()
    edited = find_contradictions(domain, target, takes_host_model, ipa_bits)
    too_large = memory_refused(domain, ipa_bits, _qemu_version, not arrived)
    if edited and not arrived:
        from ..judge.contradictions import as_written

        target = as_written(domain, target)  # QEMU makes a vCPU of the XML
    from ..host.cpus import find_clusters

    clusters = find_clusters()
    kinds: list[tuple[int, ...]] = [()]
    misplaced: list[Finding] = []
    if target.pinning is not None or len(clusters) > 1:  # most hosts have CPUs of one kind
        from ..judge.pinning import kinds_to_ask, reconcile_pins

        xml, cpus, misplaced = reconcile_pins(guest.xml, domain, record, clusters, movable=arrived)
        if xml != guest.xml:
            guest.xml, guest.moved = xml, True
            guest.read()
            target = guest.known()[1].target
        kinds = kinds_to_ask(target, clusters, cpus)
    renews = not (edited or too_large or misplaced)
    answers = [_ask(target, system, cpus, arrived, renews) for cpus in kinds]
    findings, after = answers[0]
    if len(answers) > 1:
        from ..judge.verdict import which_counts

        verdicts = [findings for findings, _ in answers]
        findings, after = answers[which_counts(verdicts, target.roams and arrived)]
    if edited:  # what else is recorded is of another guest
        stops = [] if arrived else [finding for finding in findings if finding.stops_start]
        return edited + too_large + stops, None
    found = too_large + misplaced + findings
    if target.pinning is not None:
        from ..judge.pinning import with_cluster

        found = with_cluster(found, target.pinning, clusters)
    # On CPUs of which kind it runs, nobody knows then.
    return found, after if len(found) == len(findings) else None


def _ask(
    target: Target, system: System, cpus: tuple[int, ...], arrived: bool, renews: bool
) -> tuple[list[Finding], Target | None]:
    """The same by the kernel's word, on CPUs of one kind.

    Args:
        renews: whether to ask what the guest will have; it is not asked of one that is refused.
    """
    from ..judge.finding import REFUSES
    from ..judge.verdict import judge
    from ..rehearse import KernelOffer

    with KernelOffer(target, system, cpus=cpus, boots=not arrived) as offer:
        findings = judge(target, offer)
        refused = any(
            finding.severity == REFUSES if arrived else finding.stops_start for finding in findings
        )
        is_known = renews and not refused and offer.makes_vcpu()
        return findings, offer.renewed(target) if is_known else None


def _qemu_version() -> tuple[int, int]:
    from ..host.qemu_version import installed_version  # few guests make it matter

    return installed_version()


def digest_of(found: Record | None) -> str:
    """Of a record, as tickets have it."""
    from ..domain.record_text import digest

    return digest(found.target) if found else _UNREAD


def refuse(guest: Guest, heading: str, reason: str, advice: str = "") -> bool:
    """Whether a guest that should not pass is stopped: it is if no operator lets it pass."""
    from ..host.marks import take_allowance

    guest.allowed = guest.allowed or take_allowance(guest.uuid, guest.name)
    if guest.allowed:
        tell(guest, "WARNING", f"passes, as kvmarm allow says, although it {heading}", reason)
        return False
    once = f"To let it pass once: kvmarm allow {guest.word()}"
    tell(guest, "ERR", heading, reason, f"{advice}. {once}" if advice else once)
    return True


def tell(guest: Guest, level: str, heading: str, reason: str, advice: str = "") -> None:
    """Say something of a guest on standard error, which reaches whoever started it if it is
    stopped, and in the system's log. A reason that is too long loses its end.
    """
    heading = f"{shown(guest.name)} {heading}: "
    advice = advice and f". {advice}"
    room = MESSAGE_LIMIT - len((heading + advice).encode()) - len("… (cut: 4000000 characters)")
    message = heading + one_line(reason, room) + advice
    say(message)
    log(guest.operation, level, message)


def mark(guest: Guest, reason: str) -> str:
    """Note that the record may not be true. Returns what went wrong."""
    from ..host import marks

    try:
        if guest.uuid:
            marks.mark(guest.uuid, one_line(reason))
        else:
            marks.mark_by_name(guest.name, one_line(reason))
    except (OSError, ValueError) as error:
        return f"This cannot be noted in /run/kvmarm: {getattr(error, 'strerror', error)}"
    return ""


def is_marked(guest: Guest) -> bool:
    from ..host.marks import mark_of

    return mark_of(guest.uuid, guest.name) is not None


def unmark(guest: Guest) -> None:
    """The record is true."""
    from ..host.marks import unmark

    try:
        if guest.uuid:
            unmark(guest.uuid, guest.name)
    except OSError as error:
        tell(guest, "WARNING", "starts as recorded, and keeps its mark", str(error.strerror))


def ring(guest: Guest) -> bool:
    from ..host.marks import ring

    return ring(guest.uuid)
