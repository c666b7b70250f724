# SPDX-License-Identifier: LGPL-2.1-or-later
"""The forms in which libvirt and QEMU can be told to make a target: one emitter a form, the first
that fits is taken.

A form answers two questions: does it fit (QEMU offers it, KVM takes it, it gives just these
features), and what is its XML. Forms that QEMU does not have yet get their emitter here, in front
of `HostPassthrough`, each chosen by what `Qemu.host_properties` or `Qemu.cpu_models` shows:
`SYSREG_*` properties of "host" that set ID registers, and named KVM models such as neoverse-v2-v1.
"""

from __future__ import annotations

from ..basics.value import Value
from ..domain.levelling import elements_for
from ..domain.rewrite import Emission
from ..domain.xml import escaped, quoted
from ..model.features import CPU_FEATURES, FEATURES, OFFERED_BY, PMU, PMU_OFF_FAILS_FROM, SVE
from ..model.profile import Cluster, HostProfile
from ..model.target import Target, sve_steps
from ..model.vcpu import in_order
from .wish import Wish


class Features(Value):
    """What a guest gets, decided.

    Attributes:
        vcpu: features of KVM_ARM_VCPU_INIT, in the order of their bits.
        sve_lengths: vector lengths in bits that the guest gets, ascending; empty without SVE.
    """

    vcpu: tuple[str, ...]
    sve_lengths: tuple[int, ...]


class Form(Value):
    """A way to write a CPU.

    Attributes:
        model: QEMU's CPU model.
        number: the target number that QEMU gives to KVM for it.
        cpu: attributes of <cpu>.
        model_element: <model>; empty for modes that have none.
        features: (name, enabled) of each <feature>, in order.
    """

    model: str
    number: int
    cpu: str
    model_element: str
    features: tuple[tuple[str, bool], ...]


def choose_form(
    cluster: Cluster,
    knobs: frozenset[str],
    features: Features,
    prefer_named: bool,
    cpu_models: tuple[str, ...],
    model: str = "",
) -> Form | None:
    """The form for a guest with these features on this cluster; None if it does not have the model
    that the guest asks for.

    Args:
        knobs: from `knobs_of`.
        cpu_models: of QEMU there; empty where it was not asked.
        model: the named one that the guest asks for; empty for whatever there is.
    """
    if model:
        return _named_model(cluster, features, cpu_models, (model,))
    models = tuple(cluster.models)
    named = _named_model(cluster, features, cpu_models, models) if prefer_named else None
    return named or _host_passthrough(cluster, knobs, features)


def knobs_of(profile: HostProfile) -> frozenset[str]:
    """The features of "host" that QEMU has a property for and libvirt a name. Without libvirt: all
    of QEMU's.
    """
    properties = profile.qemu.host_properties if profile.qemu else {}
    return frozenset(
        name for name in properties if profile.libvirt is None or name in profile.cpu_features
    )


def _named_model(
    cluster: Cluster, features: Features, cpu_models: tuple[str, ...], models: tuple[str, ...]
) -> Form | None:
    """`<cpu mode='custom'>` with the first of these models that QEMU has and KVM takes; of the
    optional features they have none but a PMU.
    """
    if any(feature.is_in(features.vcpu) for feature in FEATURES if feature is not PMU):
        return None
    for model in models:
        number = cluster.models.get(model)
        known = number is not None and (not cpu_models or model in cpu_models)
        if number is not None and known and cluster.vcpu(number, features.vcpu):
            element = f"<model fallback='forbid'>{escaped(model)}</model>"
            return Form(model, number, "mode='custom' match='exact' check='none'", element, ())
    return None


def _host_passthrough(cluster: Cluster, knobs: frozenset[str], features: Features) -> Form:
    """`<cpu mode='host-passthrough'>` with every knob on or off.

    `sve=off` and `pauth=off` are said on hosts that have neither, so that the XML means the same on
    one that has.
    """
    # This is their canonical order: migration and restore compare <feature> elements by index.
    # Lengths over the longest that is on need no word: once one is named, QEMU takes that as the
    # maximum, while shorter ones that are not named come from the host (arm_cpu_sve_finalize,
    # target/arm/cpu64.c).
    lengths = features.sve_lengths
    settings = []
    for feature in CPU_FEATURES:
        settings.append((feature.libvirt, feature.is_in(features.vcpu)))
        if feature is SVE:
            settings += [(f"sve{n}", n in lengths) for n in sve_steps(lengths)]
    said = tuple((name, enabled) for name, enabled in settings if name in knobs)
    return Form("host", cluster.target, "mode='host-passthrough' check='none'", "", said)


def unsaid_of(form: Form, wish: Wish, profile: HostProfile) -> tuple[str, ...]:
    """The features of "host" that the XML of this form leaves to QEMU."""
    if form.model != "host" or profile.kvm_architecture != "arm64":
        return ()
    said = {name for name, _ in form.features}
    qemu = profile.qemu
    properties, release = (qemu.host_properties, qemu.release) if qemu else ({}, (0, 0))
    pmu = (
        OFFERED_BY[PMU.bit] in profile.capabilities
        or wish.pmu is not None
        or (PMU.qemu in properties and release < PMU_OFF_FAILS_FROM)
    )
    left = [feature for feature in CPU_FEATURES if feature.libvirt not in said]
    return in_order(bit for feature in (*left, *(() if pmu else (PMU,))) for bit in feature.bits)


def emission_of(target: Target, form: Form) -> Emission:
    """A target in its form, as XML."""
    state = "on" if PMU.is_in(target.features) else "off"
    features = [
        f"<feature policy='{'require' if enabled else 'disable'}' name={quoted(name)}/>"
        for name, enabled in form.features
    ]
    return Emission(
        cpu=form.cpu.encode(),
        model=form.model_element.encode("ascii", "xmlcharrefreplace"),
        features=tuple(feature.encode("ascii", "xmlcharrefreplace") for feature in features),
        gic=f"<gic version='{target.gic}'/>".encode(),
        # 32-bit KVM has no PMU, and QEMU no property to turn it off there.
        pmu=(
            b""
            if target.architecture == "arm" or PMU.is_in(target.unsaid)
            else f"<pmu state='{state}'/>".encode()
        ),
        machine=target.machine,
        level=elements_for(target),
    )
