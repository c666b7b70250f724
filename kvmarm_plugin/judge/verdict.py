# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verdict: would a target run on a host, and if not, why.

`judge` compares a target with an `Offer`, which is what a host gives: from its profile
(`by_profile`) or from its kernel (`rehearse`). Both are asked the same questions here, so that they
can only differ in the answers.
"""

from __future__ import annotations

from ..model.features import AARCH32, FEATURES, PMU, PMU_OFF_FAILS_FROM, SVE
from ..model.target import LEVEL_TEXT, Target
from .finding import HARMLESS, REFUSES, WRONG, Finding, worst
from .offer import Offer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_ENOUGH_IPA_BITS = 40  # for whatever the board lays out behind the least of guests


def judge(target: Target, offer: Offer, unknown: tuple[str, ...] = ()) -> list[Finding]:
    """Every reason why a target would not run as it did, the most blocking first; empty if there is
    none. Of a guest that boots also what it gets, and would do without if it arrived.

    Args:
        unknown: of profile.PARTS, what nobody measured of the host that the target is of. It has
            nothing in their place, and no such target is recorded.
    """
    if target.architecture != offer.architecture:
        return _with_unknown(judge_host(target, offer), target, offer, unknown)
    findings = _judge_machine(target, offer)
    if offer.problem:
        identity = []
        # Of the CPU, whatever the vCPU; a levelled guest is told of another.
        if offer.registers and not offer.boots and target.level is None:
            from .registers import differences_of_identity

            identity = differences_of_identity(target, offer)
        return worst_first([*findings, offer.problem, *identity])
    findings += _judge_unsaid(target, offer)
    findings += _judge_sve(target, offer)
    if target.level is not None:
        if offer.level_library != LEVEL_TEXT:
            findings.append(_judge_library(offer))
        if offer.cpu is not None:
            findings += _judge_cpu(target, *offer.cpu, offer.host)
    if (target.registers, target.reglist, target.seen) != (
        offer.registers,
        offer.reglist,
        offer.seen,
    ):
        # A guest on a host like its own has none, and the hook then does not read it.
        from .registers import differences, harmless_differences

        findings += differences(target, offer)
        if offer.boots:
            findings += harmless_differences(target, offer, findings)
    return worst_first(_with_unknown(findings, target, offer, unknown))


def judge_host(target: Target, offer: Offer) -> list[Finding]:
    """Of `judge`, what is the same whatever CPU of the host the target would run on."""
    if target.architecture == offer.architecture:
        findings = _judge_machine(target, offer)
    else:
        kind = "architecture-other" if _both_run_it(target, offer) else "architecture"
        findings = [Finding(kind, recorded=target.architecture, local=offer.architecture)]
    if offer.problem and offer.problem.group == "no guests":
        findings.append(offer.problem)
    return findings


def _judge_cpu(target: Target, midr: int, revidr: int | None, host: str) -> list[Finding]:
    """Whether a levelled guest's pool has the CPU there: else nobody has looked which of its errata
    the guest would not know of. A PMU's events are the CPU's own, too.
    """
    if target.is_levelled_for(midr, revidr):
        return []
    name, local = "MIDR_EL1", midr
    if target.is_levelled_for(midr, None):
        assert revidr is not None
        name, local = "REVIDR_EL1", revidr
    recorded = target.registers.get(name, 0)
    return [Finding("level-other-cpu", register=name, recorded=recorded, local=local, host=host)]


def _judge_library(offer: Offer) -> Finding:
    """It is missing there, or reads another version of its text."""
    version = offer.level_library
    values = {"recorded": LEVEL_TEXT, "local": version or "missing", "host": offer.host}
    if not version:
        return Finding("level-library", **values)
    change = "upgrade" if int(version) < int(LEVEL_TEXT) else "downgrade"
    return Finding("level-library-other", **values, change=change)


def _with_unknown(
    findings: list[Finding], target: Target, offer: Offer, unknown: tuple[str, ...]
) -> list[Finding]:
    """The findings, and what would have to be known for an answer, unless they are one."""
    if not (offer.unknown or unknown) or is_settled(findings, offer.boots):
        return findings
    from .not_known import not_known

    return findings + not_known(target, offer, unknown)


def is_settled(findings: list[Finding], boots: bool) -> bool:
    """Whether it is a no, whatever else there may be."""
    if boots:
        return any(finding.stops_start for finding in findings)
    return worst(findings) in (REFUSES, WRONG)


def _both_run_it(target: Target, offer: Offer) -> bool:
    """Whether it is a 32-bit guest of a 64-bit host, or the other way round, and could boot."""
    if target.architecture == "arm64":
        return offer.architecture == "arm" and AARCH32.is_in(target.features)
    return offer.architecture == "arm64" and (
        offer.has(AARCH32.bit) or "capabilities" in offer.unknown
    )


def which_counts(verdicts: list[list[Finding]], everywhere: bool) -> int:
    """Which of the verdicts on the kinds of CPU that a guest may run on is the guest's.

    Args:
        verdicts: at least one; among equals the first counts.
        everywhere: it has to run on all, as one that arrives and roams; else on one of them.
    """
    weights = [
        (any(finding.stops_start for finding in verdict), sum(map(_blocks, verdict)))
        for verdict in verdicts
    ]
    places = range(len(verdicts))
    if everywhere:
        return max(places, key=weights.__getitem__)
    return min(places, key=lambda place: (weights[place], len(verdicts[place])))


def _blocks(finding: Finding) -> bool:
    return finding.severity != HARMLESS


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """The most blocking first. A cache's geometry differs wherever the CPU does, and explains
    least.
    """
    return sorted(
        findings,
        key=lambda each: (each.rank, each.values.get("register", "").startswith("CCSIDR")),
    )


def _judge_machine(target: Target, offer: Offer) -> list[Finding]:
    findings = []
    if offer.machines and target.machine and target.machine not in offer.machines:
        findings.append(_judge_machine_type(target.machine, offer))
    runs = offer.problem is None or offer.problem.group != "no guests"
    is_known = "gic_versions" not in offer.unknown and (offer.gic_versions or runs)
    if is_known and target.gic and target.gic not in offer.gic_versions:
        findings.append(gic_refused(target.gic, offer.gic_versions, offer.host))
    if offer.ipa_bits and target.ipa_bits > offer.ipa_bits:
        findings.append(_judge_addresses(target.ipa_bits, offer))
    return findings + _judge_layout(target, offer)


def gic_refused(recorded: int, local: tuple[int, ...], host: str) -> Finding:
    """A GIC that a host does not have.

    Args:
        local: the versions that it has; empty where KVM makes none.
    """
    if not local:
        return Finding("gic-none", recorded=recorded, host=host)
    values = {"recorded": recorded, "local": local, "host": host}
    newest = max(local)
    if newest != 2:
        return Finding("gic-refused", **values, newest=newest)
    from ..model.board import MOST_OF_GIC_2  # few hosts need it

    return Finding("gic-refused-version-2", **values, most=MOST_OF_GIC_2)


def _judge_machine_type(machine: str, offer: Offer) -> Finding:
    """Machine types of one name are a series: a QEMU has all from its oldest to its newest. The
    QEMU that the guest comes from has the guest's. So if it has any of those here, it has the
    oldest here where the guest's is older, and else the newest.
    """
    name, version = _split(machine)
    alike = [other for other in offer.machines if _split(other)[0] == name]
    if not alike:
        newest = offer.machines[0]
        return Finding("machine-foreign", machine=machine, newest=newest)
    oldest, newest = (choose(alike, key=_split) for choose in (min, max))
    if version < _split(oldest)[1]:
        return Finding(
            "machine-dropped", machine=machine, oldest=oldest, newest=newest, host=offer.host
        )
    return Finding("machine-unknown", machine=machine, newest=newest, host=offer.host)


def _judge_addresses(recorded: int, offer: Offer) -> Finding:
    from ..model.board import ipa_bits  # few guests need it

    values = {"recorded": recorded, "local": offer.ipa_bits}
    # What it would have had without memory, on whatever host.
    if ipa_bits(0, recorded) <= offer.ipa_bits:
        return Finding("addresses-too-few-memory", **values)
    return Finding("addresses-too-few", **values, host=offer.host)


def _judge_layout(target: Target, offer: Offer) -> list[Finding]:
    """An older QEMU lays out regions that no guest needs, and starts none without them."""
    if not 0 < offer.ipa_bits < _ENOUGH_IPA_BITS:
        return []
    from ..model.board import ipa_bits, lacks_addresses  # few hosts need it

    qemu = offer.qemu_version()
    if not lacks_addresses(offer.ipa_bits, qemu):
        return []
    laid_out = ipa_bits(0, offer.ipa_bits, qemu)
    return [
        Finding(
            "addresses-laid-out",
            recorded=target.ipa_bits,
            laid_out=laid_out,
            local=offer.ipa_bits,
            host=offer.host,
        )
    ]


def _split(machine: str) -> tuple[str, tuple[int, ...]]:
    """ "virt-10.0" → ("virt-", (10, 0)); distributions have names of their own, such as
    virt-rhel9.4.0.
    """
    name = machine.rstrip(".0123456789")
    numbers = machine[len(name) :].split(".")
    return name, tuple(int(number or 0) for number in numbers)


def _judge_unsaid(target: Target, offer: Offer) -> list[Finding]:
    """What the domain's XML could not say when it was resolved, QEMU decides by what the host
    has.
    """
    # A PMU may stay unseen: `Offer.features_for` adds it, and the kernel is asked whether the guest
    # may go on without (PMUVer 0).
    added = tuple(
        feature
        for feature in target.unsaid
        if feature not in (*target.features, *PMU.bits) and offer.has(feature)
    )
    if not added:
        return _judge_pmu_off(target, offer)
    overrides = tuple(
        feature.override for feature in FEATURES if feature.override and feature.is_in(added)
    )
    return [Finding("features-left-to-qemu", features=added, overrides=overrides, host=offer.host)]


def _judge_pmu_off(target: Target, offer: Offer) -> list[Finding]:
    """The domain's <pmu state='off'/> is itself an error where there is nothing to turn off."""
    said_off = target.architecture == "arm64" and not PMU.is_in((*target.features, *target.unsaid))
    if (
        target.model != "host"
        or not said_off
        or "capabilities" in offer.unknown
        or offer.has(PMU.bit)
        or offer.qemu_version() < PMU_OFF_FAILS_FROM
    ):
        return []
    return [Finding("pmu-off-refused", host=offer.host)]


def _judge_sve(target: Target, offer: Offer) -> list[Finding]:
    """KVM takes a set of lengths that is its own up to the longest (set_sve_vls). Where the XML
    says none, QEMU takes all that there are.
    """
    if (
        not target.sve_lengths
        or (offer.boots and SVE.is_in(target.unsaid))
        or "sve_lengths" in offer.unknown
    ):
        return []
    possible = tuple(length for length in offer.sve_lengths if length <= max(target.sve_lengths))
    if possible == target.sve_lengths:
        if possible == offer.sve_lengths or not SVE.is_in(target.unsaid):
            return []
        return [
            Finding(
                "sve-lengths-left-to-qemu", recorded=target.sve_lengths, local=offer.sve_lengths
            )
        ]
    # The recorded lengths are all that its own host has up to their longest.
    limits = [
        longest
        for longest in possible
        if [length for length in possible if length <= longest]
        == [length for length in target.sve_lengths if length <= longest]
    ]
    if limits:
        return [
            Finding(
                "sve-lengths-refused-limit",
                recorded=target.sve_lengths,
                local=offer.sve_lengths,
                longest=limits[-1],
            )
        ]
    return [
        Finding("sve-lengths-refused-switch", recorded=target.sve_lengths, local=offer.sve_lengths)
    ]
