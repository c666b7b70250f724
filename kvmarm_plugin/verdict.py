# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verdict: would a target run on a host, and if not, why, in words that a person can act on.

`judge` compares a target with an `Offer`, which is what a host gives: from its profile (`check`) or from its kernel
(`kvm.rehearse`). Both are asked the same questions here, so that they can only differ in the answers.
"""

from __future__ import annotations

from .registers.table import Field, describe, id_of, name_of, override_of
from .registers.text import unpack_ids
from .target import Target
from .value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Self  # mypy knows it; nothing imports it

    from .registers.rules import Kernel

REFUSES, WRONG, HARMLESS = "refuses", "guest would be wrong", "harmless"

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

# After this version, QEMU's "host" has no property to turn a PMU off where KVM has none, and -cpu host,pmu=off does not start
# (kvm_arm_get_host_cpu_features): 7.2 has it, 10.0 and 11.1 do not, and those between were not looked at.
_QEMU_KNOWS_NO_PMU = (7, 2)

# Registers that QEMU, since this version, lets a guest lose, because kernels have shown them by mistake: TCR2_EL1, PIRE0_EL1
# and PIR_EL1 before 6.13; and VENDOR_HYP_BMAP_2, which came in 6.15, if it is 0. For -cpu host only
# (kvm_arm_set_cpreg_mig_tolerances, called by aarch64_host_initfn). 10.0 does not have it; 10.1 to 11.0 were not looked at.
_QEMU_TOLERATES = (11, 1)
_TOLERATED = frozenset({0x603000000013C103, 0x603000000013C512, 0x603000000013C513})


class Finding(Value):
    """One reason.

    Attributes:
        subject: "REGISTER.FIELD", or another such as "machine type".
        meaning: what that is, for people.
        recorded, local: the two values, as text.
        rule: whose rule it is, and what it says.
        severity: REFUSES, WRONG or HARMLESS.
        remedy: what to do.
    """

    __slots__ = ("local", "meaning", "recorded", "remedy", "rule", "severity", "subject")
    subject: str
    meaning: str
    recorded: str
    local: str
    rule: str
    severity: str
    remedy: str

    def __init__(self, *, subject: str, meaning: str, recorded: str, local: str, rule: str, severity: str, remedy: str) -> None:
        self._freeze(locals())

    def as_json(self) -> dict[str, str]:
        """The attributes by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        meaning = f" ({self.meaning})" if self.meaning else ""
        text = f"{self.subject}{meaning}: recorded {self.recorded}, here {self.local}; {self.severity}: {self.rule}"
        return f"{text}; remedy: {self.remedy}" if self.remedy else text


class Offer:
    """What a host gives to a guest of one target; `check` and `kvm.rehearse` fill it in. A context manager.

    Attributes:
        host: its name.
        architecture: KVM's.
        machines: machine types of its QEMU; empty where it was not asked.
        gic_versions: empty where KVM was not asked.
        ipa_bits: the largest guest physical address space.
        problem: why no vCPU can be made for the target; empty if one can.
        registers, reglist: of the vCPU that QEMU would make.
        sve_lengths: that KVM offers, in bits, ascending.
        seen: what a guest read there.
    """

    def __init__(self, host: str, architecture: str) -> None:
        self.host = host
        self.architecture = architecture
        self.machines: tuple[str, ...] = ()
        self.gic_versions: tuple[int, ...] = ()
        self.ipa_bits = 0
        self.problem = ""
        self.registers: dict[str, int] = {}
        self.reglist = ""
        self.sve_lengths: tuple[int, ...] = ()
        self.seen: dict[str, int] = {}

    def has(self, feature: str) -> bool:
        """Whether KVM here offers this vCPU feature to any guest."""
        raise NotImplementedError

    def features_for(self, target: Target) -> tuple[str, ...]:
        """Of the vCPU that QEMU would make: with a PMU wherever there is one, unless the domain's XML says no."""
        features = target.features
        if "pmu_v3" in features or "pmu_v3" not in target.unsaid or not self.has("pmu_v3"):
            return features
        lower = tuple(feature for feature in features if feature in ("el1_32bit", "psci_0_2"))  # in the order of their bits
        return (*lower, "pmu_v3", *features[len(lower) :])

    def accepts(self, register: str, value: int) -> bool:
        """Whether the kernel takes this value for a register whose own value differs."""
        raise NotImplementedError

    def qemu_version(self) -> tuple[int, int]:
        """Of the QEMU that would load the guest; (0, 0) where that is not known. Only asked if it matters."""
        raise NotImplementedError

    def kernel(self) -> Kernel:
        """For telling which field of a refused register is to blame. Only asked if it matters."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what it holds: a kernel's has a scratch vCPU."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def worst(findings: list[Finding]) -> str:
    """The verdict in a word: the highest severity, or "" if nothing was found."""
    return next((severity for severity in (REFUSES, WRONG, HARMLESS) if any(f.severity == severity for f in findings)), "")


def in_short(findings: list[Finding], limit: int = 4) -> list[str]:
    """The first findings as text, and how many more there are."""
    more = len(findings) - limit
    return [*map(str, findings[:limit]), *([f"and {more} more"] if more > 0 else [])]


def judge(target: Target, offer: Offer) -> list[Finding]:
    """Every reason why a target would not run as it did, the most blocking first; empty if there is none."""
    if target.architecture != offer.architecture:
        return [
            _refusal("architecture", "KVM's", target.architecture, offer.architecture, "target numbers are another architecture's")
        ]
    findings = [*_judge_machine(target, offer)]
    if offer.problem:
        return [*findings, _refusal("vCPU", "target and features", _vcpu_text(target), "not made", offer.problem)]
    findings += _judge_unsaid(target, offer)
    findings += _judge_sve(target, offer)
    if target.registers != offer.registers:
        findings += [finding for name in target.registers for finding in _judge_register(name, target, offer)]
    if target.reglist != offer.reglist:
        findings += _judge_reglist(target, offer)
    if target.seen != offer.seen:
        findings += _judge_seen(target, offer)
    order = (REFUSES, WRONG, HARMLESS)
    # A cache's geometry differs wherever the CPU does, and explains least.
    return sorted(findings, key=lambda finding: (order.index(finding.severity), finding.subject.startswith("CCSIDR")))


def _judge_machine(target: Target, offer: Offer) -> list[Finding]:
    findings = []
    if offer.machines and target.machine not in offer.machines:
        newest = offer.machines[0]
        findings.append(
            _refusal(
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
        findings.append(_refusal("GIC", "interrupt controller version", str(target.gic), have, rule, _never(offer)))
    if offer.ipa_bits and target.ipa_bits > offer.ipa_bits:
        rule = (
            "QEMU lays the guest's addresses out by the host's limit, and would leave out what lies beyond (virt_set_high_memmap)"
        )
        findings.append(
            _refusal("IPA size", "guest physical address bits", str(target.ipa_bits), str(offer.ipa_bits), rule, _never(offer))
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
    return [_refusal("vCPU features", "left to QEMU", "off", f"{' '.join(added)} on", rule, remedy)]


def _judge_pmu_off(target: Target, offer: Offer) -> list[Finding]:
    """The domain's <pmu state='off'/> is itself an error where there is nothing to turn off."""
    said_off = target.architecture == "arm64" and "pmu_v3" not in (*target.features, *target.unsaid)
    if target.model != "host" or not said_off or offer.has("pmu_v3") or offer.qemu_version() <= _QEMU_KNOWS_NO_PMU:
        return []
    rule = "QEMU here has no property pmu, because KVM has no PMU, and refuses pmu=off"
    remedy = f"resolve the guest again on {offer.host}: without <pmu> it starts there, and may go to hosts with a PMU"
    return [_refusal("PMU", "<pmu state='off'/>", "off", "none to turn off", rule, remedy)]


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
        _refusal(
            "SVE lengths",
            "vector lengths in bits",
            " ".join(map(str, target.sve_lengths)),
            " ".join(map(str, offer.sve_lengths)) or "none",
            "KVM takes only a set that is the host's own up to its longest (set_sve_vls)",
            remedy,
        )
    ]


def _judge_register(name: str, target: Target, offer: Offer) -> list[Finding]:
    recorded = target.registers[name]
    # A register that is not there is a matter of the register list; the lengths of SVE have been judged.
    if name not in offer.registers or offer.registers[name] == recorded or name == "SVE_VLS":
        return []
    local = offer.registers[name]
    from .registers.rules import differing_fields, refused_fields  # where everything is as recorded, the hook needs no rules

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
        return [_of_register(name, recorded, local, rule, REFUSES, _older_kernel(offer) if older else _never(offer))]
    return [_refused_field(field, recorded, local, offer) for field in fields]


def _refused_field(field: Field, recorded: int, local: int, offer: Offer) -> Finding:
    from .registers.rules import IMPLEMENTATION_ID

    ours, theirs = field.of(recorded), field.of(local)
    if field.register in IMPLEMENTATION_ID:
        rule = "no QEMU up to 11.1 asks KVM to virtualise the CPU's identity (KVM_CAP_ARM_WRITABLE_IMP_ID_REGS)"
        return _of_field(field, recorded, local, rule, REFUSES, _never(offer))
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
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return [
        _refusal(
            "register list",
            "registers that the guest's state has",
            shown,
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
            findings.append(_of_register(name, recorded, local, rule, WRONG, _never(offer), unit=" Hz"))
        elif name == "DCZID_EL0" and local != recorded:
            rule = "nothing checks it, and DC ZVA would clear another number of bytes than the guest believes"
            findings.append(_of_register(name, recorded, local, rule, WRONG, _never(offer)))
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


def _vcpu_text(target: Target) -> str:
    return f"{target.model}, target {target.number} with {' '.join(target.features) or 'no features'}"


def _never(offer: Offer) -> str:
    return f"none: this guest and {offer.host} do not go together; keep it on hosts like the one it was made on"


def _older_kernel(offer: Offer) -> str:
    return f"move guests from older to newer kernels only, or resolve the guest on {offer.host} and move it from there"


def _refusal(subject: str, meaning: str, recorded: str, local: str, rule: str, remedy: str = "") -> Finding:
    return Finding(subject=subject, meaning=meaning, recorded=recorded, local=local, rule=rule, severity=REFUSES, remedy=remedy)


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
