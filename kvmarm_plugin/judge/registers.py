# SPDX-License-Identifier: LGPL-2.1-or-later
"""What differs between the vCPU that a target records and the one that a host makes: the part of
`verdict.judge` that is needed only then. Each difference becomes a finding that names the field.
"""

from __future__ import annotations

from ..model.features import FEATURES
from ..model.guest_registers import GUEST_REGISTERS
from ..model.target import Target
from ..registers.overrides import HIDDEN, override_of, takes
from ..registers.rules import (
    IMPLEMENTATION_ID,
    differing_fields,
    refused_fields,
    safe_value,
    virtualises_caches,
)
from ..registers.table import Field, id_of, name_of
from ..registers.text import unpack_ids
from .finding import Finding
from .offer import Offer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..registers.rules import KernelFacts

# Registers that are the kernel's more than the CPU's: an older kernel refuses what a newer one
# offers.
_OF_THE_KERNEL = (
    "PSCI_VERSION",
    "STD_BMAP",
    "STD_HYP_BMAP",
    "VENDOR_HYP_BMAP",
    "VENDOR_HYP_BMAP_2",
)

# Kinds against which it helps to start guests on the other host and to move them from there → what
# each is where they may not go back.
NO_WAY_BACK = {
    "register-refused-newer-kernel": "register-refused-newer-kernel-no-way-back",
    "registers-unknown": "registers-unknown-no-way-back",
    "registers-lost": "registers-lost-no-way-back",
    "register-refused-firmware": "register-refused-firmware-no-way-back",
    "field-refused-resolve-here": "field-refused-no-way-back",
    "field-fixed-resolve-here": "field-fixed-no-way-back",
}

# REGISTER.FIELD → the feature that it shows, of those that the policy can turn off.
_SWITCHES = {field: feature for feature in FEATURES if feature.policy for field in feature.fields}

# Registers that QEMU, since this version, lets a guest lose, because kernels have shown them by
# mistake: TCR2_EL1, PIRE0_EL1 and PIR_EL1 before 6.13; and VENDOR_HYP_BMAP_2, which came in 6.15,
# if it is 0. For -cpu host only (kvm_arm_set_cpreg_mig_tolerances, called by aarch64_host_initfn).
# 10.0 does not have it; 10.1 to 11.0 were not looked at.
_QEMU_TOLERATES = (11, 1)
_TOLERATED = frozenset({0x603000000013C103, 0x603000000013C512, 0x603000000013C513})

# Before this version, cpu_post_load ended with the last register that the destination has, and did
# not see what the guest's state has behind it. Seen with 10.0: VENDOR_HYP_BMAP_2 gets lost.
_QEMU_SEES_THE_REST = (10, 2)

# KVM_REG_ARM_COPROC_MASK, and what of it QEMU saves by other ways (KVM_REG_ARM_CORE and
# KVM_REG_ARM64_SVE in kvm_arm_reg_syncs_via_cpreg_list).
_COPROCESSOR, _OTHER_WAYS = 0x0FFF0000, (0x00100000, 0x00150000)


def differences(target: Target, offer: Offer) -> list[Finding]:
    """The findings about registers, the register list, and what a guest sees."""
    found = [
        *_judge_levelled(target, offer),
        *(finding for name in target.registers for finding in _judge_register(name, target, offer)),
        *(_judge_reglist(target, offer) if _has_both_reglists(target, offer) else ()),
        *_judge_seen(target, offer),
    ]
    if not _kernel_gives_more(target, offer, found):
        return found
    return [finding.replace(kind=NO_WAY_BACK.get(finding.kind, finding.kind)) for finding in found]


def _kernel_gives_more(target: Target, offer: Offer, found: list[Finding]) -> bool:
    """Whether the kernel also gives what the one that the guest comes from does not have: a guest
    that is started here cannot go there.
    """
    if _has_both_reglists(target, offer):
        more = unpack_ids(offer.reglist) - unpack_ids(target.reglist)
        # Of the QEMU there nothing is known.
        if more - (_TOLERATED if target.model == "host" else frozenset()):
            return True
    return any(
        finding.kind == "register-accepted" and finding.values["register"] in _OF_THE_KERNEL
        for finding in found
    )


def differences_of_identity(target: Target, offer: Offer) -> list[Finding]:
    """The findings about what all vCPUs of a CPU have in common."""
    return [
        finding
        for name in IMPLEMENTATION_ID
        if name in target.registers
        for finding in _judge_register(name, target, offer)
    ]


def _has_both_reglists(target: Target, offer: Offer) -> bool:
    """Whether they differ, and both are known: no list is empty."""
    return target.reglist != offer.reglist and bool(target.reglist and offer.reglist)


def harmless_differences(target: Target, offer: Offer, found: list[Finding]) -> list[Finding]:
    """What `differences` says nothing of, since it stops no arrival; a guest that boots gets it.

    Args:
        found: by `differences`.
    """
    recorded, local = unpack_ids(target.reglist), unpack_ids(offer.reglist)
    lost = recorded - local
    if any(finding.group == "missing registers" for finding in found):
        lost = frozenset()
    findings = []
    if (lost or local - recorded) and _has_both_reglists(target, offer):
        names = [tuple(map(name_of, sorted(ids))) for ids in (lost, local - recorded)]
        findings.append(Finding("registers-other", recorded=names[0], local=names[1]))
    told = {finding.values.get("register") for finding in found}
    for name, value in target.seen.items():
        here = offer.seen.get(name, value)
        if here != value and name not in told:
            findings.append(Finding("seen-other", register=name, recorded=value, local=here))
    return findings


def _judge_register(name: str, target: Target, offer: Offer) -> list[Finding]:
    recorded = target.registers[name]
    # A register that is not there is a matter of the register list; the lengths of SVE have been
    # judged.
    if name not in offer.registers or offer.registers[name] == recorded or name == "SVE_VLS":
        return []
    local = offer.registers[name]
    if offer.doubts(name, recorded):
        return [
            Finding(
                "register-not-known",
                register=name,
                recorded=recorded,
                local=local,
                host=offer.host,
            )
        ]
    if name in target.levelled:
        return _not_levelled(name, recorded, local, offer)
    if offer.accepts(name, recorded):
        fields = differing_fields(name, recorded, local)
        values = [(field.name, field.of(recorded), field.of(local)) for field in fields]
        return [
            Finding(
                "field-hidden" if (name, field) in HIDDEN and not theirs else "field-accepted",
                register=name,
                field=field,
                recorded=ours,
                local=theirs,
            )
            for field, ours, theirs in values
        ] or [Finding("register-accepted", register=name, recorded=recorded, local=local)]
    fields = refused_fields(name, recorded, local, offer.kernel()) or differing_fields(
        name, recorded, local
    )
    if not fields:
        if name in _OF_THE_KERNEL or _is_fixed_cache(name, offer.kernel()):
            kind = "register-refused-newer-kernel"
        elif name.startswith("SMCCC_ARCH_WORKAROUND_") and recorded > local:
            kind = "register-refused-firmware"  # KVM takes less than the host has, never more
        else:
            kind = "register-refused"
        return [Finding(kind, register=name, recorded=recorded, local=local, host=offer.host)]
    features = frozenset((*target.features, *offer.features_for(target)))
    return [
        _refused_field(field, field.of(recorded), field.of(local), features, offer)
        for field in fields
    ]


def _judge_levelled(target: Target, offer: Offer) -> list[Finding]:
    """Whether all is there that libkvmarm-level writes."""
    missing = tuple(name for name in target.levelled if name not in offer.registers)
    if not missing or {"registers", "reglist"} & {*offer.unknown}:
        return []
    return [Finding("level-unknown", registers=missing, host=offer.host)]


def _not_levelled(name: str, recorded: int, local: int, offer: Offer) -> list[Finding]:
    """What libkvmarm-level would end QEMU for."""
    values = {"register": name, "recorded": recorded, "local": local, "host": offer.host}
    if name in IMPLEMENTATION_ID and not offer.kernel().identities:
        return [Finding("level-refused-identity", **values)]
    return [
        Finding(
            "level-refused-field",
            **{**values, "recorded": field.of(recorded), "local": field.of(local)},
            field=field.name,
        )
        for field in differing_fields(name, recorded, local)
    ] or [Finding("level-refused", **values)]


def _refused_field(
    field: Field, recorded: int, local: int, features: frozenset[str], offer: Offer
) -> Finding:
    values: dict[str, str | int] = {
        "register": field.register,
        "field": field.name,
        "recorded": recorded,
        "local": local,
    }
    if field.register in IMPLEMENTATION_ID:
        return Finding("field-refused-identity", **values, host=offer.host)
    # The kinds field-refused-… and field-fixed-… have the same remedies. Their names alone are put
    # together: written out, every answer below would be two.
    writable = offer.kernel().mask(field.register) >> field.lsb & 1 and field.policy != "-"
    rule = "field-refused" if writable else "field-fixed"
    taken = [word for word in offer.overrides if takes(word, field.register, field.name)]
    if taken and (field.register, field.name) in HIDDEN and not local:
        return Finding("field-hidden-override", **values, word=taken[0], host=offer.host)
    switch = _SWITCHES.get(f"{field.register}.{field.name}")
    override = override_of(field.register, field.name, min(recorded, local))
    # Linux 5.10 shows a PMU to guests without one, whatever the policy says.
    if switch and switch.is_in(features):
        return Finding(
            f"{rule}-switch-or-override" if override else f"{rule}-switch",
            **values,
            switch=switch.policy,
        )
    if override:
        forced = override.fields[field.register, field.name]
        if recorded == forced:
            return Finding(f"{rule}-override-here", **values, host=offer.host)
        if local == forced or writable:  # which is the safe value
            return Finding(f"{rule}-override-there", **values)
        return Finding("field-fixed-override-both", **values, host=offer.host)
    # Whether KVM would take one for the other, if only the field were writable.
    if field.policy != "-" and safe_value(field, recorded, local) == recorded:
        remedy = "newer-kernel"
    elif field.policy != "-" and safe_value(field, recorded, local) == local:
        remedy = "resolve-here"
    else:
        remedy = "hopeless"
    return Finding(f"{rule}-{remedy}", **values, host=offer.host)


def _is_fixed_cache(name: str, kernel: KernelFacts) -> bool:
    """Whether it describes caches, and the kernel has those of the CPU only."""
    return name.startswith(("CCSIDR", "CLIDR")) and not virtualises_caches(kernel)


def _judge_reglist(target: Target, offer: Offer) -> list[Finding]:
    here = unpack_ids(offer.reglist)
    missing = unpack_ids(target.reglist) - here - frozenset(map(id_of, target.levelled))
    may_lack = _TOLERATED
    if target.registers.get("VENDOR_HYP_BMAP_2") == 0:
        may_lack |= {id_of("VENDOR_HYP_BMAP_2")}
    is_host = target.model == "host"
    tolerates = bool(missing) and offer.qemu_version() >= _QEMU_TOLERATES
    if is_host and tolerates:
        missing -= may_lack
    lost: frozenset[int] = frozenset()
    if missing and (0, 0) < offer.qemu_version() < _QEMU_SEES_THE_REST:
        last = max(reg for reg in here if reg & _COPROCESSOR not in _OTHER_WAYS)
        lost = frozenset(reg for reg in missing if reg > last)
    if is_host and "qemu" in offer.unknown:
        missing -= may_lack  # it depends on QEMU
    findings = []
    unknown = missing - lost
    if not unknown <= may_lack or not (is_host or tolerates):
        refused = "registers-unknown"
    else:
        refused = "registers-unknown-older-qemu" if is_host else "registers-unknown-named-model"
    for kind, registers in (
        (refused, unknown),
        # A firmware register of 0 offers a guest nothing that it could miss.
        ("registers-lost", {reg for reg in lost if target.registers.get(name_of(reg)) != 0}),
    ):
        if registers:
            names = tuple(name_of(reg) for reg in sorted(registers))
            findings.append(Finding(kind, registers=names, host=offer.host))
    return findings


def _judge_seen(target: Target, offer: Offer) -> list[Finding]:
    findings = []
    for name, recorded in target.seen.items():
        local = offer.seen.get(name, recorded)
        difference = GUEST_REGISTERS[name].compare(recorded, local, offer.host)
        if difference:
            kind, values = difference
            both = {"register": name, "recorded": recorded, "local": local}
            findings.append(Finding(kind, **{**both, **values}))
    return findings
