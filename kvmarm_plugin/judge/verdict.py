# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verdict: would a target run on a host, and if not, why, in words that a person can act on.

`judge` compares a target with an `Offer`, which is what a host gives: from its profile (`check`) or from its kernel
(`kvm.rehearse`). Both are asked the same questions here, so that they can only differ in the answers.
"""

from __future__ import annotations

from .target import Target
from .untrusted import shown
from .value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Self  # mypy knows it; nothing imports it

    from .registers.rules import Kernel

REFUSES, WRONG, HARMLESS = "refuses", "guest would be wrong", "harmless"

# After this version, QEMU's "host" has no property to turn a PMU off where KVM has none, and -cpu host,pmu=off does not start
# (kvm_arm_get_host_cpu_features): 7.2 has it, 10.0 and 11.1 do not, and those between were not looked at.
_QEMU_KNOWS_NO_PMU = (7, 2)

_TEXT = 500  # characters of each part of a finding; honest ones have 121 at most


class Finding(Value):
    """One reason. Values and names of others go into its texts, which are made such that they can be shown.

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
        texts = locals()
        self._freeze({name: shown(texts[name], _TEXT) for name in self.__slots__})

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
        host: its name, as it can be shown.
        architecture: KVM's.
        machines: machine types of its QEMU; empty where it was not asked.
        gic_versions: empty where KVM was not asked.
        ipa_bits: the largest guest physical address space.
        problem: why no vCPU can be made for the target; empty if one can.
        registers, reglist: of the vCPU that QEMU would make; of the registers, those that the target records are enough.
        sve_lengths: that KVM offers, in bits, ascending.
        seen: what a guest read there.
    """

    def __init__(self, host: str, architecture: str) -> None:
        self.host = shown(host)
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
            refusal("architecture", "KVM's", target.architecture, offer.architecture, "target numbers are another architecture's")
        ]
    findings = [*_judge_machine(target, offer)]
    if offer.problem:
        return [*findings, refusal("vCPU", "target and features", _vcpu_text(target), "not made", offer.problem)]
    findings += _judge_unsaid(target, offer)
    findings += _judge_sve(target, offer)
    if (target.registers, target.reglist, target.seen) != (offer.registers, offer.reglist, offer.seen):
        from .differences import differences  # a guest on a host like its own has none, and the hook then does not read it

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


def never(offer: Offer) -> str:
    """A remedy: there is none."""
    return f"none: this guest and {offer.host} do not go together; keep it on hosts like the one it was made on"


def refusal(subject: str, meaning: str, recorded: str, local: str, rule: str, remedy: str = "") -> Finding:
    """A finding that refuses."""
    return Finding(subject=subject, meaning=meaning, recorded=recorded, local=local, rule=rule, severity=REFUSES, remedy=remedy)
