# SPDX-License-Identifier: LGPL-2.1-or-later
"""What differs between the vCPU that a target records and the one that a host makes: the part of `verdict.judge` that is needed
only then. Each difference becomes a finding that names the field, whose rule refuses it, and what to do about it."""

from __future__ import annotations

from ..model.target import Target
from ..registers.overrides import override_of
from ..registers.rules import IMPLEMENTATION_ID, differing_fields, refused_fields
from ..registers.table import Field, describe, id_of, name_of
from ..registers.text import unpack_ids
from .finding import HARMLESS, REFUSES, WRONG, Finding, refusal
from .offer import Offer, never

_OLDEST_KERNEL = "6.1"  # that was measured: what it knows needs no word of its age

# Registers that are the kernel's more than the CPU's: an older kernel refuses what a newer one offers.
_OF_THE_KERNEL = ("PSCI_VERSION", "STD_BMAP", "STD_HYP_BMAP", "VENDOR_HYP_BMAP", "VENDOR_HYP_BMAP_2")

# The vCPU features that a policy can turn off, by the field that shows them.
_SWITCHES = {
    "SVE": "sve",
    **dict.fromkeys(("APA", "API", "APA3", "GPA", "GPI", "GPA3"), "pauth"),
    "PMUVer": "pmu",
    "PerfMon": "pmu",
}

# Registers that QEMU, since this version, lets a guest lose, because kernels have shown them by mistake: TCR2_EL1, PIRE0_EL1
# and PIR_EL1 before 6.13; and VENDOR_HYP_BMAP_2, which came in 6.15, if it is 0. For -cpu host only
# (kvm_arm_set_cpreg_mig_tolerances, called by aarch64_host_initfn). 10.0 does not have it; 10.1 to 11.0 were not looked at.
_QEMU_TOLERATES = (11, 1)
_TOLERATED = frozenset({0x603000000013C103, 0x603000000013C512, 0x603000000013C513})


def differences(target: Target, offer: Offer) -> list[Finding]:
    """The findings about registers, the register list, and what a guest sees."""
    return [
        *(finding for name in target.registers for finding in _judge_register(name, target, offer)),
        *(_judge_reglist(target, offer) if target.reglist != offer.reglist else ()),
        *_judge_seen(target, offer),
    ]


def _judge_register(name: str, target: Target, offer: Offer) -> list[Finding]:
    recorded = target.registers[name]
    # A register that is not there is a matter of the register list; the lengths of SVE have been judged.
    if name not in offer.registers or offer.registers[name] == recorded or name == "SVE_VLS":
        return []
    local = offer.registers[name]
    if offer.accepts(name, recorded):
        rule = "KVM takes the recorded value"
        fields = differing_fields(name, recorded, local)
        return [_of_field(field, recorded, local, rule, HARMLESS, "") for field in fields] or [
            _of_register(name, recorded, local, rule, HARMLESS, "")
        ]
    fields = refused_fields(name, recorded, local, offer.kernel()) or differing_fields(name, recorded, local)
    if not fields:
        rule = "KVM_SET_ONE_REG refuses the recorded value"
        older = name in _OF_THE_KERNEL or name.startswith(("CCSIDR", "CLIDR"))
        return [_of_register(name, recorded, local, rule, REFUSES, _older_kernel(offer) if older else never(offer))]
    return [_refused_field(field, recorded, local, offer) for field in fields]


def _refused_field(field: Field, recorded: int, local: int, offer: Offer) -> Finding:
    ours, theirs = field.of(recorded), field.of(local)
    if field.register in IMPLEMENTATION_ID:
        rule = "no QEMU up to 11.1 asks KVM to virtualise the CPU's identity (KVM_CAP_ARM_WRITABLE_IMP_ID_REGS)"
        return _of_field(field, recorded, local, rule, REFUSES, never(offer))
    if offer.kernel().mask(field.register) >> field.lsb & 1 and field.policy != "-":
        rule = f"KVM takes only values that the host can give (policy {field.policy})"
    else:
        rule = "this kernel lets user space change nothing here: the value has to be the host's own"
    return _of_field(field, recorded, local, rule, REFUSES, _remedy(field, ours, theirs, offer))


def _remedy(field: Field, recorded: int, local: int, offer: Offer) -> str:
    switch, known = _SWITCHES.get(field.name), override_of(field.register, field.name)
    override = known and known.word + (f" (Linux {known.since})" if known.since != _OLDEST_KERNEL else "")
    if switch:
        return f"turn {switch} off in the policy and resolve the guest again" + (
            f", or boot the hosts that have it with {override}" if override else ""
        )
    if override:
        where = "the host that the guest comes from" if recorded > local else offer.host
        return f"boot {where} with {override}, and resolve the guest again if that is its own"
    if recorded < local:
        return f"a newer kernel on {offer.host} may let the guest keep the smaller value; or start the guest where it is smallest"
    return f"resolve the guest again on {offer.host}, if the hosts it comes from take the smaller value"


def _judge_reglist(target: Target, offer: Offer) -> list[Finding]:
    missing = unpack_ids(target.reglist) - unpack_ids(offer.reglist)
    if missing and target.model == "host" and offer.qemu_version() >= _QEMU_TOLERATES:
        missing -= _TOLERATED
        if target.registers.get("VENDOR_HYP_BMAP_2") == 0:
            missing -= {id_of("VENDOR_HYP_BMAP_2")}
    if not missing:
        return []
    names = [name_of(reg) for reg in sorted(missing)]
    first = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return [
        refusal(
            "register list",
            "registers that the guest's state has",
            first,
            "unknown to KVM",
            "QEMU does not load a register that the destination's KVM does not have (cpu_post_load)",
            _older_kernel(offer),
        )
    ]


def _judge_seen(target: Target, offer: Offer) -> list[Finding]:
    findings = []
    for name, recorded in target.seen.items():
        local = offer.seen.get(name, recorded)
        if name == "CNTFRQ_EL0" and local != recorded:
            speed = f"at {local / recorded:.2g} of its speed" if recorded else "at another speed"
            rule = f"nothing checks it, and the guest's clock would run {speed}"
            findings.append(_of_register(name, recorded, local, rule, WRONG, never(offer), unit=" Hz"))
        elif name == "DCZID_EL0" and local != recorded:
            rule = "nothing checks it, and DC ZVA would clear another number of bytes than the guest believes"
            findings.append(_of_register(name, recorded, local, rule, WRONG, never(offer)))
        elif name == "PMCR_EL0" and _counters(local) < _counters(recorded):
            rule = "nothing checks it, and the guest would count with counters that are not there"
            remedy = "turn pmu off in the policy and resolve the guest again"
            findings.append(
                Finding(
                    subject="PMCR_EL0.N",
                    meaning="event counters of the PMU",
                    recorded=str(_counters(recorded)),
                    local=str(_counters(local)),
                    rule=rule,
                    severity=WRONG,
                    remedy=remedy,
                )
            )
    return findings


def _counters(pmcr: int) -> int:
    return pmcr >> 11 & 31


def _older_kernel(offer: Offer) -> str:
    return f"move guests from older to newer kernels only, or resolve the guest on {offer.host} and move it from there"


def _of_field(field: Field, recorded: int, local: int, rule: str, severity: str, remedy: str) -> Finding:
    return Finding(
        subject=f"{field.register}.{field.name}",
        meaning=field.meaning,
        recorded=hex(field.of(recorded)),
        local=hex(field.of(local)),
        rule=rule,
        severity=severity,
        remedy=remedy,
    )


def _of_register(name: str, recorded: int, local: int, rule: str, severity: str, remedy: str, unit: str = "") -> Finding:
    values = [f"{value}{unit}" if unit else hex(value) for value in (recorded, local)]
    return Finding(
        subject=name, meaning=describe(name), recorded=values[0], local=values[1], rule=rule, severity=severity, remedy=remedy
    )
