# SPDX-License-Identifier: LGPL-2.1-or-later
"""What status and metrics share: every domain of this host's libvirt, and how it stands here.

A domain is judged as `check` judges it. libvirt is connected to once, /dev/kvm is opened once, and
what many guests have in common (a record, a target, an emulator) is read and asked about once.
"""

from __future__ import annotations

import platform
from contextlib import ExitStack

from ..basics.errors import KvmarmError
from ..basics.untrusted import shown
from ..basics.value import Value
from ..domain import record as records
from ..domain.likeness import likeness
from ..domain.xml import asks_for_host_model, emulator_of, parse
from ..host import host_policy, marks
from ..host.libvirt_host_model import is_noted
from ..host.libvirtd import Connection, LibvirtError, NoDomainError, is_remote
from ..judge.wording import difference, texts
from ..kvm import device
from ..model.features import PMU, SVE
from ..model.profile_json import digest
from ..verdicts import HostHere
from . import inputs
from .check_view import ARRIVAL, START, Report
from .inputs import STORED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..domain.record import Record
    from ..domain.xml import Element
    from ..fleet.pool import Pool
    from ..host.libvirtd import Domain
    from ..judge.finding import Finding
    from ..model.target import Target

# How a domain's record stands: it is true; it has a mark; a host has made it true again since it
# was made; its guest never asked for host-model; there is none; it cannot be read.
TRUE, NOT_KNOWN, RENEWED, ADOPTED, NONE, BROKEN = (
    "true",
    "not known",
    "renewed",
    "adopted",
    "none",
    "broken",
)
RECORDS = (TRUE, NOT_KNOWN, RENEWED, ADOPTED, NONE, BROKEN)

# What becomes of a domain here, in a word. A domain without a record is not judged.
YES, NO, UNKNOWN, UNJUDGED = "yes", "no", "not known", "not judged"

_UNRESOLVED = (
    "it asks for host-model, and libvirt does not start it; make it concrete:"
    f" {inputs.how_to_resolve('DOMAIN')}"
)
_STORED_UNRESOLVED = (
    "stored: host-model, which libvirt does not start again; make it concrete:"
    f" {inputs.how_to_resolve('DOMAIN')}"
)


class Drift(Value):
    """What a domain's next cold start on this host gives.

    Attributes:
        differences: how many things would not be as recorded.
        starts: whether it would start.
    """

    differences: int
    starts: bool


_NO_START = Drift(0, False)


class Standing(Value):
    """A domain, and how it stands on this host.

    Attributes:
        name, uuid: libvirt's.
        state: libvirt's, in virsh's words; "saved" if its next start loads a managed save.
        target: what is recorded, in a few words; without a record, what it asks for.
        record: one of RECORDS.
        answer: YES, NO, UNKNOWN or UNJUDGED: would it run here with the state that it has, or start
            here.
        verdict: the same as `check` has it in JSON; empty if it was not judged.
        reasons: why the answer is not yes, or the record not true.
        drift: None where that is not known.
        pool: name of the pool that its record was made for, if this host is in it.
        in_pool: whether the record is still what the pool's members give.
    """

    name: str
    uuid: str
    state: str
    target: str = ""
    record: str = NONE
    answer: str = UNJUDGED
    verdict: str = ""
    reasons: tuple[str, ...] = ()
    drift: Drift | None = None
    pool: str = ""
    in_pool: bool = False


class Survey(Value):
    """All domains of a host.

    Attributes:
        host: its name.
        pool: name of the pool that it is in; empty if it is in none.
        standings: of the domains, by name.
        problem: why no domain could be judged; empty if they could.
        notes: what else is wrong with this host.
    """

    host: str
    pool: str
    standings: tuple[Standing, ...]
    problem: str = ""
    notes: tuple[str, ...] = ()


def take_survey(uri: str) -> Survey:
    """The domains of the libvirt at `uri`, which is this host's.

    Raises:
        KvmarmError: it is another host's, or cannot be reached; the policy of this host cannot be
            used.
    """
    if is_remote(uri):
        raise KvmarmError(f"{uri} is another host", "ask on that host")
    drift_refused = host_policy.reaction_to_drift() == "refuse"
    pool, notes = None, []
    try:
        pool = inputs.read_pool(None)
    except KvmarmError as error:  # no verdict rests on it
        notes.append(str(error))
    with ExitStack() as stack:
        connection = stack.enter_context(Connection(uri))
        here, problem = None, ""
        try:
            here = HostHere(stack.enter_context(device.System()), inputs.machines_here)
        except KvmarmError as error:
            problem = str(error)
        surveyor = _Surveyor(here, problem, pool, drift_refused)
        found = [surveyor.look_at(domain) for domain in connection.domains()]
    return Survey(
        platform.node(),
        pool.name if pool else "",
        tuple(standing for standing in found if standing is not None),
        problem,
        tuple(notes),
    )


class _Definition(Value):
    """One of a domain's definitions, read: it has a record, or an error says why that cannot be
    read.
    """

    document: bytes
    domain: Element | None = None
    record: _Recorded | None = None
    error: str = ""


class _Recorded(Value):
    """A record, and what is said of it. Domains of one target have the same."""

    record: Record
    adopted: bool
    target: str


class _Surveyor:
    """Looks at one domain after the other.

    Args:
        here: None if this host's kernel cannot be asked.
        problem: why not.
        drift_refused: whether the policy refuses a start with drift.
    """

    def __init__(
        self, here: HostHere | None, problem: str, pool: Pool | None, drift_refused: bool
    ) -> None:
        self._here = here
        self._problem = problem
        self._drift_refused = drift_refused
        self._pool = (pool.name, digest(pool.baseline)) if pool else ("", "")
        self._takes_host_model = is_noted()
        self._known: dict[tuple[object, ...], _Recorded] = {}
        self._standings: dict[tuple[object, ...], Standing] = {}

    def look_at(self, domain: Domain) -> Standing | None:
        """How it stands; None if it has gone meanwhile."""
        blank = Standing(domain.name, domain.uuid, "unknown")
        try:
            state = domain.state()
            texts = inputs.definitions(domain)
        except NoDomainError:
            return None
        except LibvirtError as error:
            return blank.replace(record=NOT_KNOWN, answer=UNKNOWN, reasons=(str(error),))
        if not texts:  # a transient one, which has ended
            return None
        which = next(iter(texts))
        blank = blank.replace(state="saved" if which == inputs.SAVED else state)
        mark = marks.mark_of(blank.uuid, blank.name)
        key = (which, *map(likeness, texts.values()), mark)
        if key not in self._standings:
            self._standings[key] = self._standing(blank, which, texts, mark)
        return self._standings[key].replace(name=blank.name, uuid=blank.uuid, state=blank.state)

    def _standing(
        self, blank: Standing, which: str, texts: dict[str, bytes], mark: str | None
    ) -> Standing:
        definition = self._definition(texts[which])
        if definition.error:
            return blank.replace(record=BROKEN, answer=UNKNOWN, reasons=(definition.error,))
        if definition.record is None:
            return self._without_record(blank, definition, which, texts.get(STORED))
        return self._recorded(blank, definition, which, texts.get(STORED), mark)

    def _definition(self, document: bytes) -> _Definition:
        domain = None
        try:
            domain = parse(document)
            element = records.find(domain)
            if element is None:
                return _Definition(document, domain)
            # What its prefixes stand for may be said outside of it.
            names = [element.name, *(child.name for child in element.children)]
            key = (element.text, element.encoding, *names)
            if key not in self._known:
                self._known[key] = _read(element)
            return _Definition(document, domain, self._known[key])
        except KvmarmError as error:
            return _Definition(document, domain, error=str(error))

    def _without_record(
        self, blank: Standing, definition: _Definition, which: str, stored: bytes | None
    ) -> Standing:
        assert definition.domain is not None
        standing = blank.replace(target=_wish(definition.domain))
        if stored is None or not self._is_unresolved(self._definition(stored)):
            return standing
        if which == STORED:
            return standing.replace(answer=NO, reasons=(_UNRESOLVED,))
        return standing.replace(drift=_NO_START, reasons=(_STORED_UNRESOLVED,))

    def _is_unresolved(self, definition: _Definition) -> bool:
        """Whether libvirt does not start it as long as nobody makes it concrete."""
        return (
            definition.domain is not None
            and definition.record is None
            and asks_for_host_model(definition.domain, platform.machine())
            and not self._takes_host_model
        )

    def _recorded(
        self,
        blank: Standing,
        definition: _Definition,
        which: str,
        stored: bytes | None,
        mark: str | None,
    ) -> Standing:
        assert definition.record is not None
        found, read = definition.record.record, definition.record
        origin = found.origin
        made_for_pool = bool(self._pool[0]) and origin.host == self._pool[0]
        standing = blank.replace(
            target=read.target,
            record=ADOPTED if read.adopted else RENEWED if origin.renewed else TRUE,
            pool=self._pool[0] if made_for_pool else "",
            in_pool=made_for_pool and not origin.renewed and origin.profile == self._pool[1],
        )
        if mark is not None:
            return standing.replace(
                record=NOT_KNOWN, answer=UNKNOWN, verdict=UNKNOWN, reasons=(shown(mark, 500),)
            )
        if self._here is None:
            return standing.replace(answer=UNKNOWN, verdict=UNKNOWN, reasons=(self._problem,))
        try:
            findings = self._judge(definition, which == STORED)
        except KvmarmError as error:
            return standing.replace(answer=UNKNOWN, verdict=UNKNOWN, reasons=(str(error),))
        report = Report(
            blank.name,
            START if which == STORED else ARRIVAL,
            {platform.node(): findings},
            drift_refused=self._drift_refused,
        )
        is_yes = report.is_yes(findings)
        return standing.replace(
            answer=YES if is_yes else NO,
            verdict=report.verdict(findings),
            reasons=() if is_yes else _reasons(findings, which == STORED),
            drift=_drift(findings) if which == STORED else self._next_start(definition, stored),
        )

    def _next_start(self, definition: _Definition, stored: bytes | None) -> Drift | None:
        """What becomes of a guest that runs, or was saved, at its next cold start."""
        if stored is None:
            return None
        try:
            definition = self._definition(stored)
            if self._is_unresolved(definition):
                return _NO_START
            return _drift(self._judge(definition, True)) if definition.record else None
        except KvmarmError:
            return None

    def _judge(self, definition: _Definition, boots: bool) -> list[Finding]:
        domain, read = definition.domain, definition.record
        assert self._here is not None
        assert domain is not None
        assert read is not None
        emulator = emulator_of(domain)
        return self._here.judge(definition.document, domain, read.record, boots, emulator)


def _read(element: Element) -> _Recorded:
    record = records.read(element)
    return _Recorded(record, records.is_adopted(record), _target_text(record.target))


def _target_text(target: Target) -> str:
    words = [f"{target.model} on {target.machine}", f"GIC {target.gic}"]
    if SVE.is_in(target.features) and target.sve_lengths:
        words.append(f"SVE {max(target.sve_lengths)}")
    if not PMU.is_in(target.features):
        words.append("no PMU")
    if target.pinning is not None:
        words.append(f"CPUs {target.pinning.cpus}")
    return ", ".join(words)


def _wish(domain: Element) -> str:
    """What a domain without a record asks for, in a few words."""
    kind, cpu = domain.attributes.get("type", "none"), domain.find("cpu")
    if kind != "kvm":
        return f"{shown(kind, 20)}, not KVM"
    if cpu is None:
        return "no <cpu>"
    mode, model = cpu.attributes.get("mode", "custom"), cpu.find("model")
    name = model.content.strip() if mode == "custom" and model else ""
    return shown(name or mode, 40)


def _reasons(findings: list[Finding], boots: bool) -> tuple[str, ...]:
    """The finding that decides, and how many more there are. `check` has them all, and what to do
    about them.
    """
    first = next((finding for finding in findings if boots and finding.stops_start), findings[0])
    text = f"{difference(first, 'recorded', 'here')}; {texts(first)['rule']}"
    more = len(findings) - 1
    return (f"{text}; and {more} more" if more else text,)


def _drift(findings: list[Finding]) -> Drift:
    stops = [finding for finding in findings if finding.stops_start]
    return Drift(len(findings) - len(stops), not stops)
