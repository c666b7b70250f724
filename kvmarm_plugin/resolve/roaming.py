# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that may run on CPUs of several kinds: whether they could change between them."""

from __future__ import annotations

from ..judge.by_profile import ProfileOffer
from ..judge.finding import HARMLESS
from ..judge.verdict import judge
from ..judge.wording import texts
from ..model.profile import Cluster, HostProfile
from ..model.target import Target
from .wish import ResolveError


def check_roaming(
    target: Target,
    other: Target,
    here: Cluster,
    there: Cluster,
    profile: HostProfile,
    roams: str,
    has_pins: bool,
) -> None:
    """Refuse a guest that could not change between two clusters of a host. Raises ResolveError.

    Args:
        target, other: what it would get on either.
        roams: the kinds of CPU that it may run on.
        has_pins: whether its own pins say so; else the policy does.
    """
    findings = [
        finding
        for finding in (
            *judge(target, ProfileOffer(target, profile, there)),
            *judge(other, ProfileOffer(other, profile, here)),
        )
        if finding.severity != HARMLESS
    ]
    if target.number != other.number:
        # kvm_vcpu_set_target up to Linux 6.5.
        reason = f"KVM makes no vCPU of target {target.number} on the others"
    elif findings:
        first = texts(findings[0])
        reason = (
            f"{first['subject']} is {first['recorded']} on one and {first['local']} on the other"
        )
    else:
        return
    raise ResolveError(
        f"{profile.where} the guest may run on CPUs of several kinds ({roams}), and cannot:"
        f" {reason}",
        "pin it to one kind"
        if has_pins
        else "set cluster: biggest in the policy, or pin it to one kind",
    )
