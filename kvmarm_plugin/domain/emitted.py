# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kvmarm has written into a domain beside its record: what still says that is kvmarm's, and
what says something else is the user's, of later.
"""

from __future__ import annotations

from ..model.features import CPU_FEATURES, PMU, SVE
from ..model.target import Target, sve_steps
from .xml import Element

# Attributes of <cpu> that belong to the mode.
_OF_A_MODE = {
    "host-passthrough": {"check": "none"},
    "custom": {"match": "exact", "check": "none"},
}


class Emitted:
    """What there was to write for a recorded target; the resolver writes it.

    Args:
        target: None where the record cannot be read: what stands where kvmarm writes is taken for
            kvmarm's then.
    """

    def __init__(self, target: Target | None) -> None:
        self._target = target
        self._features = None if target is None else _features(target)

    def has_cpu(self, cpu: Element) -> bool:
        """Whether a <cpu> is of the mode, and of the model, that was written."""
        target = self._target
        if target is None:
            return True
        model = cpu.find("model")
        if target.model == "host":
            return cpu.attributes.get("mode") == "host-passthrough" and model is None
        return (
            cpu.attributes.get("mode") == "custom" and model is not None and self.has_child(model)
        )

    def has_child(self, child: Element) -> bool:
        """Whether a child of <cpu> is one that was written."""
        if child.name == "model":
            return self._target is None or child.content.strip() == self._target.model
        if child.name == "feature":
            policy = child.attributes.get("policy", "require")
            name = child.attributes.get("name", "")
            return self._features is None or self._features.get(name) == policy
        return False

    def had_feature(self, name: str) -> bool:
        """Whether a <feature> of this name was written. No: what cannot be read says nothing."""
        return self._features is not None and name in self._features

    def has_mode_attributes(self, cpu: Element) -> bool:
        """Whether a <cpu> has nothing but the attributes that were written, and a mode."""
        mode = "custom" if self._target and self._target.model != "host" else "host-passthrough"
        others = {name: value for name, value in cpu.attributes.items() if name != "mode"}
        return others == _OF_A_MODE[mode]

    def has(self, element: Element) -> bool:
        """Whether a <gic> or <pmu> is the one that was written."""
        target = self._target
        if target is None:
            return True
        if element.name == "gic":
            return element.attributes == {"version": str(target.gic)}
        state = "on" if PMU.is_in(target.features) else "off"
        return {"state": "on", **element.attributes} == {"state": state}

    def has_machine(self, os_type: Element) -> bool:
        """Whether a <type> has the machine type that was written."""
        return self._target is None or os_type.attributes.get("machine") == self._target.machine


def _features(target: Target) -> dict[str, str]:
    """The names of the <feature> elements, and their policies."""
    if target.model != "host" or target.architecture != "arm64":
        return {}
    words = {
        feature.libvirt: feature.is_in(target.features)
        for feature in CPU_FEATURES
        if not feature.is_in(target.unsaid)
    }
    if not SVE.is_in(target.unsaid):
        lengths = target.sve_lengths
        words.update({f"sve{length}": length in lengths for length in sve_steps(lengths)})
    return {name: "require" if on else "disable" for name, on in words.items()}
