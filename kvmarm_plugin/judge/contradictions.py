# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a domain still asks for the target that is recorded in it: its XML may have been edited
since.

A verdict on a record says nothing about a guest that QEMU would build otherwise, so the hook and
`check` look here first.
"""

from __future__ import annotations

from ..domain.memory import memory_and_room, memory_of, slots_of, vcpus_of
from ..domain.xml import Element, architecture_of, asks_for_host_model
from ..model.board import (
    GIB,
    MOST_SLOTS,
    RAM_START,
    ipa_bits,
    lacks_addresses,
    most_memory,
    most_vcpus,
    needed_qemu,
)
from ..model.features import AARCH32, CPU_FEATURE_POLICIES, CPU_FEATURES, PMU, SVE
from ..model.target import SVE_LENGTHS, Target, is_name
from ..model.vcpu import LIBVIRT_ARCHITECTURES, NAMED_MODELS, in_order
from .finding import Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_FEATURE = "<feature "  # what it is called in a finding begins so
_SWITCHES: dict[bool | None, str] = {True: "on", False: "off"}


def find_contradictions(
    domain: Element, target: Target, takes_host_model: bool = False, host_ipa_bits: int = 0
) -> list[Finding]:
    """What the domain's XML says otherwise than the record in it; empty if QEMU would make the
    recorded vCPU of it.

    Args:
        takes_host_model: whether libvirt starts guests that ask for host-model.
        host_ipa_bits: the limit of the host that the guest is to run on; 0 where that is not known.

    Raises:
        DomainXMLError: a size of memory that is none.
    """
    asks = not takes_host_model and asks_for_host_model(domain)
    findings = [
        Finding(_kind(what, said, asks), what=what, recorded=recorded, local=said)
        for what, recorded, said in _compared(target, *_says(domain, target))
        if said != recorded
    ]
    findings += _find_addresses(domain, target, host_ipa_bits)
    most, vcpus = most_vcpus(target.gic, target.machine, target.ipa_bits), vcpus_of(domain)
    if vcpus > most:
        findings.append(Finding("vcpus-too-many", gic=target.gic, recorded=most, local=vcpus))
    if slots_of(domain) > MOST_SLOTS:
        findings.append(
            Finding("memory-slots-too-many", recorded=MOST_SLOTS, local=slots_of(domain))
        )
    if domain.find("cpu/maxphysaddr"):
        findings.append(Finding("maxphysaddr-refused"))
    if domain.find("cpu/cache"):
        findings.append(Finding("cpu-cache-refused"))
    if target.level is not None or any(
        child.name.endswith(" commandline") for child in domain.children
    ):
        from ..domain import levelling  # few domains have it
        from .arguments import find_overruled

        findings += find_overruled(domain, target)
        recorded, said = levelling.recorded(target), levelling.says(domain)
        findings += [
            Finding(
                "level-edited" if what in recorded else "level-unrecorded",
                what=what,
                recorded=recorded.get(what, "none"),
                local=said.get(what, "none"),
            )
            for what in {**recorded, **said}
            if recorded.get(what) != said.get(what)
        ]
    return findings


def is_about_cpu(contradiction: Finding) -> bool:
    """Whether it is the <cpu> that says something else: its mode, its model or a feature."""
    what = contradiction.values.get("what", "")
    return what in ("<cpu mode>", "<model>") or what.startswith(_FEATURE)


def memory_refused(
    domain: Element, host_ipa_bits: int, qemu: Callable[[], tuple[int, int]], boots: bool
) -> list[Finding]:
    """Whether QEMU does not start a guest for its memory, which the XML says and no record.

    Args:
        host_ipa_bits: the host's limit.
        qemu: tells the version of its QEMU, as `Offer.qemu_version`. Only asked if it matters.
        boots: whether the guest boots there. For one that arrives, its recorded addresses say what
            no QEMU has room for.

    Raises:
        DomainXMLError: a size of memory that is none.
    """
    memory, room = memory_and_room(domain)
    end, limit = RAM_START + memory + room, 1 << host_ipa_bits
    if end > limit:
        too_much = end - room if end - room > limit else end
        values = {"recorded": -(-too_much // GIB), "local": limit // GIB}
        return [Finding("memory-too-large", **values)] if boots else []
    needed = needed_qemu(memory + room, host_ipa_bits)
    release = qemu() if needed > (0, 0) else (0, 0)
    # Of a QEMU that starts no guest at all, `verdict.judge` says so.
    if not (0, 0) < release < needed or lacks_addresses(host_ipa_bits, release):
        return []
    most = RAM_START + most_memory(host_ipa_bits, release) * GIB
    return [
        Finding(
            "memory-needs-newer-qemu",
            recorded=-(-end // GIB),
            local=most // GIB,
            needed=".".join(map(str, needed)),
        )
    ]


def as_written(domain: Element, target: Target) -> Target:
    """What QEMU would be asked for by a domain whose XML was edited since this target was recorded:
    as far as it is known here, and good for nothing but whether it would start.
    """
    says, switches = _says(domain, target)
    model = {"host-passthrough": "host", "custom": says["<model>"]}.get(says["<cpu mode>"], "")
    if model != "host" and model not in NAMED_MODELS:
        model = target.model
    words = [(feature, switches.get(feature.libvirt, "none")) for feature in CPU_FEATURES]
    features, unsaid = {*target.features}, {*target.unsaid}
    for feature, said in ((PMU, says["<pmu>"]), *words):
        for bits, there in ((features, said == "on"), (unsaid, said == "none")):
            (bits.update if there else bits.difference_update)(feature.bits)
    is_32_bit = target.architecture == "arm64" and says["architecture"] == "armv7l"
    (features.update if is_32_bit else features.difference_update)(AARCH32.bits)
    lengths = tuple(n for n in SVE_LENGTHS if switches.get(f"sve{n}") == "on")
    level = target.level
    if level is not None:
        from ..domain import levelling  # few guests are levelled

        level = level if levelling.says(domain) else None
    return target.replace(
        model=model,
        number=NAMED_MODELS.get(model, ("", target.number))[1],
        features=in_order(features),
        unsaid=in_order(unsaid),
        machine=says["machine type"] if is_name(says["machine type"]) else target.machine,
        gic=int(says["<gic>"]) if says["<gic>"] in ("2", "3") else target.gic,
        sve_lengths=lengths if lengths == target.sve_lengths else (),  # QEMU adds to others
        level=level,
    )


def _kind(what: str, said: str, asks: bool) -> str:
    """A <cpu> that asks for something else than host-model is not resolved anew; one that is gone
    comes back (restoring.restore).
    """
    if asks and what == "<cpu mode>":
        return "host-model-asked"
    is_back = said == "host-model" or (what == "<cpu mode>" and said == "none")
    return "xml-edited" if is_back or what not in ("<cpu mode>", "<model>") else "cpu-replaced"


def _find_addresses(domain: Element, target: Target, host_ipa_bits: int) -> list[Finding]:
    """Whether QEMU lays the guest's addresses out farther than was recorded. A guest that needs
    fewer than that fits wherever the recorded one does.
    """
    memory, recorded = memory_of(domain), target.ipa_bits
    bits = ipa_bits(memory, max(host_ipa_bits, recorded))
    if bits <= recorded:
        return []
    if ipa_bits(memory, recorded) <= recorded:
        # What it would have without memory, here: then it is the memory that needs more.
        fits = ipa_bits(0, host_ipa_bits) <= recorded
        kind = "addresses-other-here-memory" if fits else "addresses-other-here"
    elif 0 < host_ipa_bits < bits:
        kind = "addresses-other-beyond"
    else:
        kind = "addresses-other"
    return [Finding(kind, recorded=recorded, local=bits)]


def _says(domain: Element, target: Target) -> tuple[dict[str, str], dict[str, str]]:
    """What the domain says, by what it is called in a finding; and its <feature> elements by name:
    "on", "off", or a policy that is none of libvirt's.
    """
    cpu, os_type = domain.find("cpu"), domain.find("os/type")
    # libvirt walks all of ./features/*, and the last word counts (virDomainFeaturesDefParse).
    features = {
        child.name: child for each in domain.find_all("features") for child in each.children
    }
    gic, pmu = features.get("gic"), features.get("pmu")
    own = LIBVIRT_ARCHITECTURES[target.architecture]
    says = {
        "domain type": domain.attributes.get("type", "none"),
        "architecture": architecture_of(domain, own) if os_type else own,
        "<cpu mode>": _mode(cpu, target) if cpu else "none",
        "<model>": _text(cpu.find("model") if cpu else None),
        "machine type": (os_type.attributes.get("machine") if os_type else "") or "none",
        "<gic>": gic.attributes.get("version", "none") if gic else "none",
        "<pmu>": pmu.attributes.get("state", "on") if pmu else "none",
    }
    switches = {}
    for feature in cpu.find_all("feature") if cpu else []:
        # As libvirt has it: optional features are dropped, the last word on a name counts.
        policy = feature.attributes.get("policy", "require")
        if policy != "optional":
            switches[feature.attributes.get("name", "")] = _SWITCHES.get(
                CPU_FEATURE_POLICIES.get(policy), policy
            )
    return says, switches


def _mode(cpu: Element, target: Target) -> str:
    """The mode of a <cpu>. Under KVM, "maximum" is another word for host-passthrough (-cpu max and
    host of QEMU are the same), and stands in domains whose <cpu> was not written by kvmarm.
    """
    mode = cpu.attributes.get("mode", "custom")
    is_open = any(feature.is_in(target.unsaid) for feature in CPU_FEATURES)
    return "host-passthrough" if mode == "maximum" and is_open else mode


def _compared(
    target: Target, says: dict[str, str], switches: dict[str, str]
) -> Iterator[tuple[str, str, str]]:
    """What it is, what is recorded of it, and what the domain says. What the XML could not say when
    it was resolved is not held against it.
    """
    recorded = _recorded(target)
    if says["<cpu mode>"] != recorded["<cpu mode>"]:  # what is in another says nothing
        del recorded["<model>"]
    yield from ((what, word, says[what]) for what, word in recorded.items())
    if "<model>" in recorded:
        for name, word in _recorded_switches(target, switches).items():
            yield f"{_FEATURE}{name}>", word, switches.get(name, "none")


def _recorded(target: Target) -> dict[str, str]:
    named = target.model != "host"
    is_64_bit = target.architecture == "arm64" and not AARCH32.is_in(target.features)
    recorded = {
        "domain type": "kvm",
        "architecture": "aarch64" if is_64_bit else "armv7l",
        "<cpu mode>": "custom" if named else "host-passthrough",
        "<model>": target.model if named else "none",
        "machine type": target.machine,
        "<gic>": str(target.gic),
    }
    if target.architecture == "arm64" and not PMU.is_in(target.unsaid):
        recorded["<pmu>"] = _switch(PMU.is_in(target.features))
    return recorded


def _recorded_switches(target: Target, said: Iterable[str]) -> dict[str, str]:
    """What is recorded of the features that <cpu> names, and of those that it has to name."""
    words = {feature.libvirt: feature for feature in CPU_FEATURES}
    lengths = [f"sve{length}" for length in target.sve_lengths]
    recorded = {
        name: _switch(name in lengths or (name in words and words[name].is_in(target.features)))
        for name in said
    }
    for word, feature in words.items():
        has_to = target.model == "host" and target.architecture == "arm64"
        if feature is SVE and AARCH32.is_in(target.features):
            has_to = False  # no 32-bit guest has it, whatever is said
        if has_to and not feature.is_in(target.unsaid):
            recorded[word] = _switch(feature.is_in(target.features))
    if not SVE.is_in(target.unsaid):
        recorded.update(dict.fromkeys(lengths, "on"))
    return recorded


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _text(element: Element | None) -> str:
    return element.content.strip() if element else "none"
