# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a verdict would need to know, and nobody measured: the part of `verdict.judge` for hosts
whose profile does not tell everything.
"""

from __future__ import annotations

from ..model.features import PMU
from ..model.profile import PARTS
from ..model.target import Target
from .finding import Finding
from .offer import Offer

# Part of a profile → what it is, for people. Those that are missing decide nothing by themselves.
_WHAT = {
    "capabilities": "features that KVM has",
    "ipa_bits": "guest physical addresses",
    "gic_versions": "versions of the GIC",
    "qemu": "QEMU and its machine types",
    "cpus": "CPUs of each kind",
    "revidr": "REVIDR_EL1",
    "models": "QEMU's named models",
    "sve_lengths": "SVE vector lengths",
    "seen": "timer frequency and DC ZVA block size",
    "vcpus": "vCPUs with other features",
    "registers": "further ID registers",
    "reglist": "list of all registers",
}


def not_known(target: Target, offer: Offer, unknown: tuple[str, ...] = ()) -> list[Finding]:
    """A finding for each part of a profile that decides, and that one of the two hosts does not
    tell.

    Args:
        unknown: as for `verdict.judge`.
    """
    here, there = {*offer.unknown}, {*unknown}
    decides = {
        "capabilities": "capabilities" in here
        and (_asks_for_capabilities(target) or target.architecture != offer.architecture),
        "cpus": "cpus" in here,
        "revidr": "revidr" in here and target.pinning is not None,
        "models": "models" in there or ("models" in here and target.model != "host"),
        "sve_lengths": "sve_lengths" in here and bool(target.sve_lengths),
        "seen": "seen" in here | there and target.architecture == "arm64",
        # A guest of a host with features that nobody measured may have them; one that arrives has
        # what it has.
        "vcpus": "vcpus" in there or {"vcpus", "registers"} <= here,
    }
    return [
        Finding(
            "not-known",
            part=part,
            what=what,
            recorded=_said(part in there),
            local=_said(part in here),
        )
        for part, what in ((part, _WHAT[part]) for part in PARTS if part in _WHAT)
        if decides.get(part, part in here | there)
    ]


def _said(is_unknown: bool) -> str:
    return "not known" if is_unknown else "known"


def _asks_for_capabilities(target: Target) -> bool:
    """Whether what QEMU makes of the XML depends on what KVM offers: see `verdict._judge_unsaid`
    and `verdict._judge_pmu_off`.
    """
    is_off = target.architecture == "arm64" and not PMU.is_in(target.features)
    return bool(target.unsaid) or (target.model == "host" and is_off)
