# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hosts whose profile does not tell everything: what is missing for a domain, and what a guest
there would be as far as known.
"""

from __future__ import annotations

from ..model.features import AARCH32, FEATURES, PMU, SVE
from ..model.guest_registers import readable
from ..model.policy import Policy
from ..model.profile import PARTS, SINCE_2, Cluster, HostProfile, Vcpu
from ..model.target import Target, sve_bitmap
from .address_space import guest_ipa_bits
from .forms import Features, choose_form, knobs_of
from .wish import ResolveError

# Parts without which no domain is written.
_NEEDED = (
    *("capabilities", "ipa_bits", "gic_versions", "qemu", "libvirt", "cpu_features"),
    *("vcpus", "registers", "reglist"),
)


def missing_parts(profile: HostProfile) -> tuple[str, ...]:
    """What the profile would have to tell for domains to be resolved by it; empty if it tells
    enough.
    """
    several = len(profile.clusters) > 1
    needed = {
        **dict.fromkeys(_NEEDED, True),
        "cpus": several,
        "revidr": several,
        "capacity": several,
        "sve_lengths": any(cluster.has(SVE.bit) for cluster in profile.clusters),
    }
    return tuple(part for part in profile.unknown if needed.get(part))


def refuse(profile: HostProfile) -> None:
    """Raises ResolveError for a profile that does not tell enough, and names what is missing."""
    missing = missing_parts(profile)
    if missing:
        raise _unknown(profile, f"what a domain is resolved by: {', '.join(missing)}")


def refuse_partial(profile: HostProfile) -> None:
    """Raises ResolveError for a profile that does not tell everything that decides."""
    missing = [part for part in profile.unknown if part not in SINCE_2]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise _unknown(profile, f"everything: {', '.join(missing)} {are} unknown")


def _unknown(profile: HostProfile, what: str) -> ResolveError:
    return ResolveError(
        f"the profile of {profile.name} does not tell {what}",
        "probe that host itself: kvmarm probe -o FILE",
    )


def partial_target(profile: HostProfile, machine: str, policy: Policy) -> Target:
    """What a guest is on this host as far as its profile tells.

    Args:
        machine: QEMU's machine type; empty where it is not known.

    Raises:
        ResolveError: it has no vCPU as the policy wants it.
    """
    if not profile.clusters:
        raise ResolveError(
            f"the profile of {profile.name} has no CPU cluster", "probe the host again"
        )
    cluster = max(profile.clusters, key=lambda cluster: cluster.size)
    vcpu = _vcpu(cluster, profile, policy)
    lengths = cluster.sve_lengths if SVE.is_in(vcpu.features) else ()
    form = choose_form(
        cluster,
        knobs_of(profile),
        Features(vcpu.features, lengths),
        _may_be_named(profile, vcpu.features, policy) and not _is_open(profile),
        profile.qemu.cpu_models if profile.qemu else (),
    )
    # A named model has a target number of its own.
    vcpu = cluster.vcpu(form.number, vcpu.features) or vcpu if form else vcpu
    registers = vcpu.registers
    if lengths:
        registers = {**registers, "SVE_VLS": sve_bitmap(lengths)}
    return Target(
        architecture=profile.kvm_architecture,
        number=vcpu.number,
        features=vcpu.features,
        model=form.model if form else "host",
        unsaid=(),
        machine=machine,
        gic=max(profile.gic_versions, default=0),
        ipa_bits=guest_ipa_bits(0, profile.ipa_bits, profile.where) if profile.ipa_bits else 0,
        sve_lengths=lengths,
        seen=readable(cluster.seen, vcpu.features),
        registers=registers,
        reglist=vcpu.reglist,
    )


def unknown_of_guests(target: Target, profile: HostProfile, policy: Policy) -> tuple[str, ...]:
    """Of profile.PARTS, what is not known of a guest of this host; "models" is among them only if
    it may be of a named model or not. Then its target has "host".
    """
    is_open = _may_be_named(profile, target.features, policy) and _is_open(profile)
    unknown = {*profile.unknown} - {"models"} | ({"models"} if is_open else set())
    return tuple(part for part in PARTS if part in unknown)


def _may_be_named(profile: HostProfile, features: tuple[str, ...], policy: Policy) -> bool:
    """Whether a guest with these features would be of a named model if there is one; see
    `forms.choose_form`.
    """
    roams = policy.cluster == "all" and len(profile.clusters) > 1
    others = (feature for feature in FEATURES if feature is not PMU)
    return (
        policy.prefer_named and not roams and not any(feature.is_in(features) for feature in others)
    )


def _is_open(profile: HostProfile) -> bool:
    """Whether nobody knows if there is a named model."""
    if "models" in profile.unknown:
        return True
    has_models = any(cluster.models for cluster in profile.clusters)
    return has_models and not {"qemu", "vcpus"}.isdisjoint(profile.unknown)


def _vcpu(cluster: Cluster, profile: HostProfile, policy: Policy) -> Vcpu:
    """The one of most features that are not turned off, of 64 bits."""
    settings = [
        (feature, getattr(policy, feature.policy)) for feature in FEATURES if feature.policy
    ]
    fitting = [
        vcpu
        for vcpu in cluster.vcpus
        if not AARCH32.is_in(vcpu.features)
        and all(wanted in (None, feature.is_in(vcpu.features)) for feature, wanted in settings)
    ]
    if not fitting:
        raise ResolveError(
            f"the profile of {profile.name} has no vCPU with the features that the policy wants",
            "probe that host itself: kvmarm probe -o FILE",
        )
    return max(fitting, key=lambda vcpu: len(vcpu.features))
