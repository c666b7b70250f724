# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a domain still asks for the target that is recorded in it: its XML may have been edited
since.

A verdict on a record says nothing about a guest that QEMU would build otherwise, so the hook and
`check` look here first.
"""

from __future__ import annotations

from ..domain.xml import Element, asks_for_host_model
from ..model.features import CPU_FEATURES, PMU, SVE
from ..model.target import SVE_LENGTHS, Target, is_name
from ..model.vcpu import NAMED_MODELS, in_order
from .finding import Finding


def find_contradictions(
    domain: Element, target: Target, takes_host_model: bool = False
) -> list[Finding]:
    """What the domain's XML says otherwise than the record in it; empty if QEMU would make the
    recorded vCPU of it.

    Args:
        takes_host_model: whether libvirt starts guests that ask for host-model.
    """
    says = _says(domain)
    asks = not takes_host_model and asks_for_host_model(domain)
    return [
        Finding(
            "host-model-asked" if asks and what == "<cpu mode>" else "xml-edited",
            what=what,
            recorded=recorded,
            local=says[what],
        )
        for what, recorded in _recorded(target, says).items()
        if says[what] != recorded
    ]


def as_written(domain: Element, target: Target) -> Target:
    """What QEMU would be asked for by a domain whose XML was edited since this target was recorded:
    as far as it is known here, and good for nothing but whether it would start.
    """
    says = _says(domain)
    model = {"host-passthrough": "host", "custom": says["<model>"]}.get(says["<cpu mode>"], "")
    if model != "host" and model not in NAMED_MODELS:
        model = target.model
    words = {f"<feature {feature.libvirt}>": feature for feature in CPU_FEATURES}
    features, unsaid = {*target.features}, {*target.unsaid}
    for what, feature in (("<pmu>", PMU), *words.items()):
        said = says.get(what, "none")
        for bits, there in ((features, said == "on"), (unsaid, said == "none")):
            (bits.update if there else bits.difference_update)(feature.bits)
    lengths = tuple(n for n in SVE_LENGTHS if says.get(f"<feature sve{n}>") == "on")
    return target.replace(
        model=model,
        number=NAMED_MODELS.get(model, ("", target.number))[1],
        features=in_order(features),
        unsaid=in_order(unsaid),
        machine=says["machine type"] if is_name(says["machine type"]) else target.machine,
        gic=int(says["<gic>"]) if says["<gic>"] in ("2", "3") else target.gic,
        sve_lengths=lengths if lengths == target.sve_lengths else (),  # QEMU adds to others
    )


def _says(domain: Element) -> dict[str, str]:
    cpu, os_type = domain.find("cpu"), domain.find("os/type")
    gic, pmu = domain.find("features/gic"), domain.find("features/pmu")
    says = {
        "<cpu mode>": cpu.attributes.get("mode", "none") if cpu else "none",
        "<model>": _text(cpu.find("model") if cpu else None),
        "machine type": os_type.attributes.get("machine", "none") if os_type else "none",
        "<gic>": gic.attributes.get("version", "none") if gic else "none",
        "<pmu>": pmu.attributes.get("state", "on") if pmu else "none",
    }
    for feature in cpu.find_all("feature") if cpu else []:
        # As libvirt has it: optional features are dropped, the last word on a name counts.
        policy = feature.attributes.get("policy", "require")
        if policy != "optional":
            says[f"<feature {feature.attributes.get('name')}>"] = (
                "off" if policy in ("disable", "forbid") else "on"
            )
    return says


def _recorded(target: Target, says: dict[str, str]) -> dict[str, str]:
    """The same of the record. What the XML could not say when it was resolved is not held against
    it.
    """
    named = target.model != "host"
    recorded = {
        "<cpu mode>": "custom" if named else "host-passthrough",
        "<model>": target.model if named else "none",
        "machine type": target.machine,
        "<gic>": str(target.gic),
    }
    if target.architecture == "arm64" and not PMU.is_in(target.unsaid):
        recorded["<pmu>"] = _switch(PMU.is_in(target.features))
    words = {feature.libvirt: feature for feature in CPU_FEATURES}
    lengths = [f"sve{length}" for length in target.sve_lengths]
    for name in says:
        if name.startswith("<feature "):
            word = name[len("<feature ") : -1]
            recorded[name] = _switch(
                word in lengths or (word in words and words[word].is_in(target.features))
            )
    for word, feature in words.items():
        if not named and target.architecture == "arm64" and not feature.is_in(target.unsaid):
            recorded[f"<feature {word}>"] = _switch(feature.is_in(target.features))
    for length in lengths if not SVE.is_in(target.unsaid) else ():
        recorded[f"<feature {length}>"] = "on"
    for name in recorded:
        says.setdefault(name, "none")
    return recorded


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _text(element: Element | None) -> str:
    return element.body.decode(errors="replace").strip() if element else "none"
