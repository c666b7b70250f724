# SPDX-License-Identifier: LGPL-2.1-or-later
"""The features that a guest gets: what its domain says, else what the policy says, else what the
host has.
"""

from __future__ import annotations

from ..basics.untrusted import shown
from ..model.policy import Policy
from ..model.profile import Cluster, HostProfile
from .forms import Features, knobs_of
from .wish import ResolveError, Wish

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass


# The bits of KVM_ARM_VCPU_INIT that a guest or a policy chooses, in the order of their bits
# (model.vcpu.VCPU_FEATURES).
PAUTH = ("ptrauth_address", "ptrauth_generic")


def choose_features(
    wish: Wish, cluster: Cluster, profile: HostProfile, policy: Policy, roams: str
) -> Features:
    """What the domain says, else what the policy says, else what the host has."""
    _check_architecture(wish, cluster, profile)
    asked = _read_cpu_features(wish)
    base = ("psci_0_2",) if cluster.has("psci_0_2") else ()
    pmu = ("pmu_v3",) if _has_pmu(wish, cluster, profile, policy, roams) else ()
    if profile.kvm_architecture == "arm64" and wish.architecture == "armv7l":
        # QEMU (10.0) settles SVE and PAuth for AArch64 guests only: sve=off is heard, pauth=off is
        # not, and KVM makes such a vCPU.
        pauth32 = PAUTH if cluster.has(PAUTH[0]) else ()
        return Features(("el1_32bit", *base, *pmu, *pauth32), ())
    sve = _switch("SVE", asked.get("sve"), policy.sve, cluster.has("sve"), profile)
    pauth = _switch("PAuth", asked.get("pauth"), policy.pauth, cluster.has(PAUTH[0]), profile)
    knobs = knobs_of(profile)
    speaker = (
        f"{f'libvirt {profile.libvirt}' if profile.libvirt is not None else 'QEMU'} on host"
        f" {profile.name}"
    )
    for name, enabled, offered in (
        ("sve", sve, cluster.has("sve")),
        ("pauth", pauth, cluster.has(PAUTH[0])),
    ):
        if offered and not enabled and name not in knobs:
            raise ResolveError(f"{speaker} cannot turn {name} off", "upgrade libvirt or QEMU there")
    lengths = _sve_lengths(asked, cluster, profile, policy) if sve else ()
    if lengths and lengths != cluster.sve_lengths and f"sve{lengths[-1]}" not in knobs:
        raise ResolveError(
            f"{speaker} cannot limit SVE to {lengths[-1]} bits", "upgrade libvirt or QEMU there"
        )
    vcpu = (*base, *pmu, *(("sve",) if sve else ()), *(PAUTH if pauth else ()))
    return Features(vcpu, lengths)


def _check_architecture(wish: Wish, cluster: Cluster, profile: HostProfile) -> None:
    if wish.architecture == "aarch64" and profile.kvm_architecture == "arm":
        raise ResolveError(
            f"host {profile.name} is 32-bit and the guest is {wish.architecture}",
            "use an aarch64 host",
        )
    if (
        wish.architecture == "armv7l"
        and profile.kvm_architecture == "arm64"
        and not cluster.has("el1_32bit")
    ):
        raise ResolveError(
            f"host {profile.name} cannot run 32-bit guests: {cluster.part or 'its CPU'} has no"
            " AArch32 at EL1",
            "use an aarch64 guest",
        )
    if wish.architecture == "armv7l" and any(required for _, required in wish.features):
        raise ResolveError(
            "a 32-bit guest can have neither SVE nor PAuth",
            "remove the <feature> elements of its <cpu>",
        )


def _read_cpu_features(wish: Wish) -> dict[str, bool | None]:
    """The domain's own <feature> elements: "sve", "pauth" and lengths such as "sve256"; the last
    word on a name counts.
    """
    known = {"sve", "pauth", *(f"sve{length}" for length in range(128, 2049, 128))}
    asked = {}
    for name, required in wish.features:
        if name not in known:
            raise ResolveError(
                f"libvirt knows no ARM CPU feature {shown(name, 60)!r}",
                "known are sve, sve128 to sve2048, and pauth",
            )
        asked[name] = required
    if any(required for name, required in asked.items() if name not in ("sve", "pauth")):
        asked.setdefault("sve", True)  # as libvirt has it: a length adds sve
    return asked


def _switch(
    what: str, asked: bool | None, policy: bool | None, offered: bool, profile: HostProfile
) -> bool:
    wanted = policy if asked is None else asked
    if wanted and not offered:
        by = "the policy" if asked is None else "the domain"
        raise ResolveError(
            f"{by} wants {what}, which KVM on host {profile.name} does not offer",
            f"turn {what} off there",
        )
    return offered if wanted is None else wanted


def _has_pmu(
    wish: Wish, cluster: Cluster, profile: HostProfile, policy: Policy, roams: str
) -> bool:
    """A VM has the PMU of one cluster, whose counters stand still while a vCPU runs on another
    (kvm_pmu_create_perf_event).
    """
    pmu = _switch("a PMU", wish.pmu, policy.pmu, cluster.has("pmu_v3"), profile)
    if not (pmu and roams):
        return pmu
    if policy.cluster == "all" and wish.pmu is None and policy.pmu is None:
        return False
    raise ResolveError(
        f"on host {profile.name} the guest may run on CPUs of several kinds ({roams}), and a PMU"
        " counts on one",
        "turn it off (<pmu state='off'/>, or pmu: off in the policy), or pin the guest to one kind",
    )


def _sve_lengths(
    asked: dict[str, bool | None], cluster: Cluster, profile: HostProfile, policy: Policy
) -> tuple[int, ...]:
    """The lengths up to the longest that is wanted: KVM takes no set with a gap that the host does
    not have.
    """
    required = [length for length in range(128, 2049, 128) if asked.get(f"sve{length}")]
    refused = [length for length in range(128, 2049, 128) if asked.get(f"sve{length}") is False]
    missing = [length for length in required if length not in cluster.sve_lengths]
    if missing:
        have = ", ".join(map(str, cluster.sve_lengths))
        raise ResolveError(
            f"the domain wants sve{missing[0]}, host {profile.name} has lengths {have}",
            "remove that feature",
        )
    longest = max(required, default=policy.sve_max_length or max(cluster.sve_lengths, default=0))
    lengths = tuple(
        length
        for length in cluster.sve_lengths
        if length <= longest and length < min(refused, default=longest + 1)
    )
    if not lengths or any(length not in lengths for length in required):
        raise ResolveError(
            f"no SVE vector length is left for the guest on host {profile.name}",
            "turn SVE off, or allow a longer one",
        )
    return lengths
