# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verdict: would a target run on a host, and if not, why, in words that a person can act on.

`judge` compares a target with an `Offer`, which is what a host gives: from its profile (`check`) or from its kernel
(`kvm.rehearse`). Both are asked the same questions here, so that they can only differ in the answers.
"""

from __future__ import annotations

from ..model.target import Target
from .finding import HARMLESS, REFUSES, WRONG, Finding, refusal
from .offer import Offer, never

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


# After this version, QEMU's "host" has no property to turn a PMU off where KVM has none, and -cpu host,pmu=off does not start
# (kvm_arm_get_host_cpu_features): 7.2 has it, 10.0 and 11.1 do not, and those between were not looked at.
_QEMU_KNOWS_NO_PMU = (7, 2)


def judge(target: Target, offer: Offer) -> list[Finding]:
    """Every reason why a target would not run as it did, the most blocking first; empty if there is none."""
    if target.architecture != offer.architecture:
        return [
            refusal("architecture", "KVM's", target.architecture, offer.architecture, "target numbers are another architecture's")
        ]
    findings = [*_judge_machine(target, offer)]
    if offer.problem:
        return [*findings, refusal("vCPU", "target and features", _vcpu_text(target), "not made", offer.problem)]
    findings += _judge_unsaid(target, offer)
    findings += _judge_sve(target, offer)
    if (target.registers, target.reglist, target.seen) != (offer.registers, offer.reglist, offer.seen):
        from .registers import differences  # a guest on a host like its own has none, and the hook then does not read it

        findings += differences(target, offer)
    order = (REFUSES, WRONG, HARMLESS)
    # A cache's geometry differs wherever the CPU does, and explains least.
    return sorted(findings, key=lambda finding: (order.index(finding.severity), finding.subject.startswith("CCSIDR")))


def _judge_machine(target: Target, offer: Offer) -> list[Finding]:
    findings = []
    if offer.machines and target.machine not in offer.machines:
        newest = offer.machines[0]
        findings.append(
            refusal(
                "machine type",
                "QEMU's versioned board",
                target.machine,
                f"unknown to QEMU, whose newest is {newest}",
                "QEMU refuses a machine type it does not know",
                f"resolve the guest with machine='{newest}', which both sides know, or upgrade QEMU on {offer.host}",
            )
        )
    if offer.gic_versions and target.gic not in offer.gic_versions:
        have = ", ".join(map(str, offer.gic_versions))
        rule = "KVM_CREATE_DEVICE refuses a GIC that the hardware cannot give"
        findings.append(refusal("GIC", "interrupt controller version", str(target.gic), have, rule, never(offer)))
    if offer.ipa_bits and target.ipa_bits > offer.ipa_bits:
        rule = (
            "QEMU lays the guest's addresses out by the host's limit, and would leave out what lies beyond (virt_set_high_memmap)"
        )
        findings.append(
            refusal("IPA size", "guest physical address bits", str(target.ipa_bits), str(offer.ipa_bits), rule, never(offer))
        )
    return findings


def _judge_unsaid(target: Target, offer: Offer) -> list[Finding]:
    """What the domain's XML could not say when it was resolved, QEMU decides by what the host has."""
    # A PMU may stay unseen: `Offer.features_for` adds it, and the kernel is asked whether the guest may go on without (PMUVer 0).
    added = [feature for feature in target.unsaid if feature not in (*target.features, "pmu_v3") and offer.has(feature)]
    if not added:
        return _judge_pmu_off(target, offer)
    rule = "the guest was resolved where libvirt or QEMU had no word to turn this off, and QEMU here would turn it on"
    remedy = (
        f"resolve the guest again with newer libvirt or QEMU, or take the feature from {offer.host} (arm64.nosve, arm64.nopauth)"
    )
    return [refusal("vCPU features", "left to QEMU", "off", f"{' '.join(added)} on", rule, remedy)]


def _judge_pmu_off(target: Target, offer: Offer) -> list[Finding]:
    """The domain's <pmu state='off'/> is itself an error where there is nothing to turn off."""
    said_off = target.architecture == "arm64" and "pmu_v3" not in (*target.features, *target.unsaid)
    if target.model != "host" or not said_off or offer.has("pmu_v3") or offer.qemu_version() <= _QEMU_KNOWS_NO_PMU:
        return []
    rule = "QEMU here has no property pmu, because KVM has no PMU, and refuses pmu=off"
    remedy = f"resolve the guest again on {offer.host}: without <pmu> it starts there, and may go to hosts with a PMU"
    return [refusal("PMU", "<pmu state='off'/>", "off", "none to turn off", rule, remedy)]


def _judge_sve(target: Target, offer: Offer) -> list[Finding]:
    """KVM takes a set of lengths that is its own up to the longest (set_sve_vls)."""
    if not target.sve_lengths:
        return []
    possible = tuple(length for length in offer.sve_lengths if length <= max(target.sve_lengths))
    if possible == target.sve_lengths:
        return []
    common = [length for length in possible if length in target.sve_lengths]
    remedy = (
        f"set sve-max-length: {max(common)} in the policy and resolve the guest again" if common else "turn SVE off in the policy"
    )
    return [
        refusal(
            "SVE lengths",
            "vector lengths in bits",
            " ".join(map(str, target.sve_lengths)),
            " ".join(map(str, offer.sve_lengths)) or "none",
            "KVM takes only a set that is the host's own up to its longest (set_sve_vls)",
            remedy,
        )
    ]


def _vcpu_text(target: Target) -> str:
    return f"{target.model}, target {target.number} with {' '.join(target.features) or 'no features'}"
