# SPDX-License-Identifier: LGPL-2.1-or-later
"""The features that a guest gets: what its domain says, else what the policy says, else what the
host has.
"""

from __future__ import annotations

from ..basics.untrusted import shown
from ..model.features import AARCH32, CPU_FEATURES, PAUTH, PMU, SVE, Feature
from ..model.policy import Policy
from ..model.profile import Cluster, HostProfile
from ..model.target import SVE_LENGTHS
from ..model.vcpu import in_order
from .forms import Features, knobs_of
from .wish import ResolveError, Wish


def choose_features(
    wish: Wish, cluster: Cluster, profile: HostProfile, policy: Policy, roams: str
) -> Features:
    """What the domain says, else what the policy says, else what the host has."""
    asked = _read_cpu_features(wish)
    _check_architecture(wish, asked, cluster, profile)
    vcpu = [*(("psci_0_2",) if cluster.has("psci_0_2") else ())]
    if _has_pmu(wish, cluster, profile, policy, roams):
        vcpu += PMU.bits
    if profile.kvm_architecture == "arm64" and wish.architecture == "armv7l":
        # QEMU (10.0) settles SVE and PAuth for AArch64 guests only: sve=off is heard, pauth=off is
        # not, and KVM makes such a vCPU.
        vcpu += (*AARCH32.bits, *(PAUTH.bits if cluster.has(PAUTH.bit) else ()))
        return Features(in_order(vcpu), ())
    if wish.model:  # the named models that KVM takes have none of the others
        return Features(in_order(vcpu), ())
    for feature in CPU_FEATURES:
        if _is_on(feature, asked.get(feature.libvirt), wish, policy, cluster, profile):
            vcpu += feature.bits
    knobs = knobs_of(profile)
    speaker = (
        f"{f'libvirt {profile.libvirt}' if profile.libvirt is not None else 'QEMU'} {profile.where}"
    )
    for feature in CPU_FEATURES:
        name, offered = feature.libvirt, cluster.has(feature.bit)
        if offered and not feature.is_in(vcpu) and name not in knobs:
            raise ResolveError(f"{speaker} cannot turn {name} off", "upgrade libvirt or QEMU there")
    lengths = _sve_lengths(asked, cluster, profile, policy) if SVE.is_in(vcpu) else ()
    if lengths and lengths != cluster.sve_lengths and f"sve{lengths[-1]}" not in knobs:
        raise ResolveError(
            f"{speaker} cannot limit SVE to {lengths[-1]} bits", "upgrade libvirt or QEMU there"
        )
    return Features(in_order(vcpu), lengths)


def _check_architecture(
    wish: Wish, asked: dict[str, bool | None], cluster: Cluster, profile: HostProfile
) -> None:
    if wish.architecture == "aarch64" and profile.kvm_architecture == "arm":
        raise ResolveError(
            f"{profile.title} is 32-bit and the guest is {wish.architecture}",
            "use an aarch64 host",
        )
    if (
        wish.architecture == "armv7l"
        and profile.kvm_architecture == "arm64"
        and not cluster.has(AARCH32.bit)
    ):
        raise ResolveError(
            f"{profile.title} cannot run 32-bit guests: {profile.name_of(cluster)} has no"
            " AArch32 at EL1",
            "use an aarch64 guest",
        )
    # PAuth it has on an aarch64 host that has it, whatever is said, and that is what is written.
    has_pauth = profile.kvm_architecture == "arm64" and cluster.has(PAUTH.bit)
    granted = (PAUTH.libvirt,) if has_pauth else ()
    if wish.architecture == "armv7l" and any(
        required and name not in granted for name, required in asked.items()
    ):
        raise ResolveError(
            f"a 32-bit guest can have neither {' nor '.join(f.name for f in CPU_FEATURES)}",
            "remove the <feature> elements of its <cpu>",
        )


def _read_cpu_features(wish: Wish) -> dict[str, bool | None]:
    """The domain's own <feature> elements: "sve", "pauth" and lengths such as "sve256".

    As libvirt has it, a name stands once (virCPUDefParseXML), and a length of whatever policy asks
    for SVE (qemuDomainDefCPUPostParse).

    Raises:
        ResolveError: libvirt does not take them.
    """
    names = [feature.libvirt for feature in CPU_FEATURES]
    lengths = [f"sve{length}" for length in SVE_LENGTHS]
    asked: dict[str, bool | None] = {}
    for name, required in wish.features:
        if name not in names and name not in lengths:
            first, *others = names
            raise ResolveError(
                f"libvirt knows no ARM CPU feature {shown(name, 60)!r}",
                f"known are {first}, {lengths[0]} to {lengths[-1]}, and {', '.join(others)}",
            )
        if name in asked:
            raise ResolveError(
                f"CPU feature {name!r} specified more than once", "libvirt takes it once"
            )
        asked[name] = required
    provided = [length for length in lengths if length in asked]
    if provided and asked.get(SVE.libvirt) is False:
        raise ResolveError(
            f"SVE disabled, but SVE vector lengths provided: {', '.join(provided)}",
            "remove their <feature> elements, or the one of sve",
        )
    if provided:
        asked[SVE.libvirt] = True
    return asked


def _is_on(
    feature: Feature,
    asked: bool | None,
    wish: Wish,
    policy: Policy,
    cluster: Cluster,
    profile: HostProfile,
) -> bool:
    """What the domain asked, else what the policy says, else what the host has."""
    wanted: bool | None = getattr(policy, feature.policy) if asked is None else asked
    offered = cluster.has(feature.bit)
    if wanted and not offered:
        by = "the policy" if asked is None else "the domain"
        raise ResolveError(
            f"{by} wants {feature.noun}, which KVM {profile.where} does not offer",
            _without(feature, wish) if asked else f"turn {feature.noun} off there",
        )
    return offered if wanted is None else wanted


def _without(feature: Feature, wish: Wish) -> str:
    """How a domain asks for a feature no more. Not by turning it off: that is refused of a PMU that
    is not there (starting.check_start), and beside lengths of SVE.
    """
    if feature is PMU:
        return "remove <pmu>"
    said = (
        name
        for name, required in wish.features
        if (required if name == feature.libvirt else feature is SVE and name.startswith("sve"))
    )
    return f"remove the <feature> of {' and '.join(said)}"


def _has_pmu(
    wish: Wish, cluster: Cluster, profile: HostProfile, policy: Policy, roams: str
) -> bool:
    """A VM has the PMU of one cluster, whose counters stand still while a vCPU runs on another
    (kvm_pmu_create_perf_event).
    """
    pmu = _is_on(PMU, wish.pmu, wish, policy, cluster, profile)
    if not (pmu and roams):
        return pmu
    if policy.cluster == "all" and wish.pmu is None and policy.pmu is None:
        return False
    raise ResolveError(
        f"{profile.where} the guest may run on CPUs of several kinds ({roams}), and a PMU"
        " counts on one",
        "turn it off (<pmu state='off'/>, or pmu: off in the policy), or pin the guest to one kind",
    )


def _sve_lengths(
    asked: dict[str, bool | None], cluster: Cluster, profile: HostProfile, policy: Policy
) -> tuple[int, ...]:
    """The lengths up to the longest that is wanted: KVM takes no set with a gap that the host does
    not have.
    """
    required = [length for length in SVE_LENGTHS if asked.get(f"sve{length}")]
    # One that the host does not have is no gap.
    refused = [length for length in cluster.sve_lengths if asked.get(f"sve{length}") is False]
    missing = [length for length in required if length not in cluster.sve_lengths]
    if missing:
        have = ", ".join(map(str, cluster.sve_lengths))
        raise ResolveError(
            f"the domain wants sve{missing[0]}, {profile.title} has lengths {have}",
            "remove that feature",
        )
    longest = max(required, default=policy.sve_max_length or max(cluster.sve_lengths, default=0))
    lengths = tuple(
        length
        for length in cluster.sve_lengths
        if length <= longest and length < min(refused, default=longest + 1)
    )
    if required and longest not in lengths:
        raise ResolveError(
            f"the domain wants sve{longest} and turns sve{refused[0]} off, and KVM {profile.where}"
            " gives the longer length with the shorter only",
            f"remove the <feature> of sve{refused[0]}, or of sve{longest}",
        )
    if not lengths:
        raise ResolveError(
            f"no SVE vector length is left for the guest {profile.where}",
            "turn SVE off, or allow a longer one",
        )
    return lengths
