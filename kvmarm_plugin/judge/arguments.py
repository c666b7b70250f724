# SPDX-License-Identifier: LGPL-2.1-or-later
"""The words that a domain has for QEMU itself, in <qemu:commandline>: what they make of the vCPU.

QEMU reads them after what libvirt makes of the rest of the XML. The last -cpu counts, alone; a
property of -machine counts as it is said last; -global counts where -cpu is silent.
<qemu:override> is not read: it is about devices (qemuBuildDeviceAddProps), and a vCPU is none.
"""

from __future__ import annotations

from math import prod

from ..basics.untrusted import shown
from ..domain.levelling import LIBRARY, NAMESPACE, lines_of
from ..domain.xml import Element
from ..model.board import most_vcpus
from ..model.features import AARCH32, FEATURES, PMU, SVE
from ..model.target import SVE_LENGTHS, Target, sve_steps
from .finding import Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Those that are read, without their dashes.
_OPTIONS = frozenset(
    {"cpu", "machine", "M", "accel", "global", "m", "set", "readconfig", "device", "smp"}
)

# Of "host" and of named models: none of them changes a register that a record holds. Steal time and
# the adjusted timer are no registers of the vCPU, and the virt machine itself decides the conduit.
_HARMLESS_OF_CPU = frozenset({"kvm-steal-time", "kvm-no-adjvtime", "psci-conduit"})

# Properties of the virt machine that say nothing of vCPU, GIC and addresses; those with a dot
# stand for a group.
_HARMLESS_OF_MACHINE = frozenset(
    {"accel", "acpi", "acpi-pcihp", "append", "aux-ram-share", "boot", "cxl", "dt-compatible",
     "default-bus-bypass-iommu", "dtb", "dtb-kaslr-seed", "dtb-randomness", "dump-guest-core",
     "dumpdtb", "firmware", "graphics", "hmat", "initrd", "iommu", "kernel", "mem-merge",
     "memory-backend", "msi", "nvdimm", "nvdimm-persistence", "pflash0", "pflash1",
     "phandle-start", "shim", "smp-cache", "spcr", "suppress-vmdesc", "usb",
     "x-oem-id", "x-oem-table-id"}
)  # fmt: skip

_HARMLESS_OF_ACCEL = frozenset(
    {"device", "dirty-ring-size", "eager-split-size", "kvm-shadow-mem", "notify-vmexit",
     "notify-window", "thread"}
)  # fmt: skip

# What kvmarm never gives to a guest.
_OFF_IN_MACHINE = ("virtualization", "secure", "mte")

# What a -global may name for a vCPU's type: those that it is derived from.
_TYPES_OF_CPU = frozenset({"object", "device", "cpu", "arm-cpu", "aarch64-cpu"})

# Of -smp, beside cpus and maxcpus.
_TOPOLOGY = ("drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads")
_LONG = 20  # characters of a number that nobody means

_SWITCHES = {
    **dict.fromkeys(("on", "yes", "true", "y"), "on"),
    **dict.fromkeys(("off", "no", "false", "n"), "off"),
}


def find_overruled(domain: Element, target: Target) -> list[Finding]:
    """The arguments by which QEMU makes another vCPU, or another board, than the recorded one."""
    return find_overruled_by(_arguments(domain), target)


def find_overruled_by(arguments: Iterable[str], target: Target) -> list[Finding]:
    """The same of QEMU's whole command line, where the recorded one is libvirt's word."""
    return [
        Finding("argument-overrules", argument=argument, what=what, recorded=recorded, local=local)
        for argument, what, recorded, local in _claims(arguments, target)
        if recorded
    ]


def find_unjudged(domain: Element, target: Target) -> list[str]:
    """The arguments that may do so as far as is known here, in words."""
    claims = [
        (argument, what)
        for argument, what, recorded, _ in _claims(_arguments(domain), target)
        if not recorded
    ]
    claims += [
        (f"{name}={value}", "QEMU")
        for name, value in _environment(domain)
        if name.startswith("LD_")  # libraries put in front of QEMU's: ld.so(8)
        if (name, value) != ("LD_PRELOAD", LIBRARY)  # held against the record as a whole
    ]
    return [
        f"{shown(argument, 120)} in <qemu:commandline>: what it makes of {shown(what, 60)} is not"
        " known here"
        for argument, what in dict.fromkeys(claims)
    ]


def _claims(arguments: Iterable[str], target: Target) -> Iterator[tuple[str, str, str, str]]:
    """The arguments that say something else than is recorded, or may do so, each with what follows
    of it.
    """
    options = [*_options(arguments)]
    cpus = [value for name, value in options if name == "cpu"]
    for name, value in options:
        read = _READERS.get(name, _of_unknown)
        if name == "cpu" and value is not cpus[-1]:
            continue
        yield from ((f"-{name} {value}", *claim) for claim in read(value, target))


def _arguments(domain: Element) -> Iterator[str]:
    for line in lines_of(domain):
        for arg in line.find_all(f"{NAMESPACE} arg"):
            yield arg.attributes.get("value", "").strip()


def _options(arguments: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The options that are read, with their values: as one argument, or as two."""
    arguments = iter(arguments)
    for argument in arguments:
        word = argument.replace("=", " ").partition(" ")[0]
        name = word[2:] if word[:2] == "--" else word[1:]
        if word[:1] == "-" and name in _OPTIONS:
            yield name, argument[len(word) :].lstrip("= ") or next(arguments, "")


def _environment(domain: Element) -> list[tuple[str, str]]:
    return [
        (env.attributes.get("name", ""), env.attributes.get("value", ""))
        for line in lines_of(domain)
        for env in line.find_all(f"{NAMESPACE} env")
    ]


# -- what an option says: what it is about, what is recorded, and what it makes of that; of what
# nobody here knows, nothing is recorded


def _of_cpu(value: str, target: Target) -> Iterator[tuple[str, str, str]]:
    model, *properties = value.split(",")
    if model != target.model and not {model, target.model} <= {"host", "max"}:
        yield "CPU", target.model, model
        return
    said = dict(map(_property, properties))
    for name, word in said.items():
        yield from _of_property(name, word, target)
    # It is instead of libvirt's, whose words count no more.
    for name, word in _words(target).items():
        if name not in said:
            yield name, word, "left to QEMU"


def _words(target: Target) -> dict[str, str]:
    """What -cpu has to say to make the recorded vCPU, as libvirt says it."""
    if target.architecture != "arm64":
        return {}
    named = target.model != "host"
    words = {
        feature.qemu: _word(feature.is_in(target.features))
        for feature in FEATURES
        if feature is PMU or (feature is not AARCH32 and not named)
        if not feature.is_in(target.unsaid)
    }
    if AARCH32.is_in(target.features):
        return {AARCH32.qemu: "off", **words}
    if not SVE.is_in(target.unsaid):
        words.update({f"sve{length}": "on" for length in target.sve_lengths})
    return words


def _of_property(name: str, value: str, target: Target) -> Iterator[tuple[str, str, str]]:
    """One of a CPU's."""
    recorded = {
        feature.qemu: _word(feature.is_in(target.features) is not (feature is AARCH32))
        for feature in FEATURES
    }
    recorded.update({f"sve{n}": _word(n in target.sve_lengths) for n in SVE_LENGTHS})
    recorded["kvm-psci-version"] = target.psci
    if name not in recorded:
        if name not in _HARMLESS_OF_CPU:
            yield name, "", ""
    elif _SWITCHES.get(value, value) != recorded[name]:
        yield name, recorded[name], value


def _of_machine(value: str, target: Target) -> Iterator[tuple[str, str, str]]:
    first, *rest = value.split(",")
    properties = [first if "=" in first else f"type={first}", *rest]
    for name, word in map(_property, properties):
        if name == "type":
            recorded = target.machine
        elif name == "accel":
            recorded, word = "kvm", word.partition(":")[0]
        elif name == "gic-version":
            recorded = str(target.gic)
        elif name == "kernel-irqchip":
            recorded = "on"
        elif name in _OFF_IN_MACHINE:
            recorded = "off"
        elif name.startswith("smp."):
            yield from _of_smp(f"{name[len('smp.') :]}={word}", target)
            continue
        elif name.partition(".")[0] in _HARMLESS_OF_MACHINE:
            continue
        else:
            yield name, "", ""
            continue
        if _SWITCHES.get(word, word) != recorded:
            yield name, recorded, word


def _of_accel(value: str, _target: Target) -> Iterator[tuple[str, str, str]]:
    first, *rest = value.split(",")
    for name, word in map(_property, [first if "=" in first else f"accel={first}", *rest]):
        recorded = {"accel": "kvm", "kernel-irqchip": "on"}.get(name)
        if recorded is None:
            if name not in _HARMLESS_OF_ACCEL:
                yield name, "", ""
        elif _SWITCHES.get(word, word) != recorded:
            yield name, recorded, word


def _of_global(value: str, target: Target) -> Iterator[tuple[str, str, str]]:
    """In either of its forms: DRIVER.PROPERTY=VALUE, driver=DRIVER,property=PROPERTY,value=VALUE
    (qemu_global_option).
    """
    name, _, word = value.partition("=")
    driver, dot, name = name.partition(".")
    if not dot:
        parts = dict(map(_property, value.split(",")))
        driver, name, word = (parts.get(key, "") for key in ("driver", "property", "value"))
    models = {target.model, "max"} if target.model == "host" else {target.model}
    if driver in {*_TYPES_OF_CPU, *(f"{model}-arm-cpu" for model in models)}:
        if name not in _said_by_libvirt(target):
            yield from _of_property(name, word, target)
    elif "arm-gic" in driver:
        yield f"{driver}.{name}", "", ""


def _said_by_libvirt(target: Target) -> set[str]:
    """The properties in the -cpu of a recorded guest. One that the user puts in its place has to
    say what counts of them, too (see `_of_cpu`).
    """
    words = {*_words(target)}
    if not SVE.is_in(target.unsaid):
        words.update(f"sve{n}" for n in sve_steps(target.sve_lengths))
    return words


def _of_smp(value: str, target: Target) -> Iterator[tuple[str, str, str]]:
    """How many vCPUs there can ever be is no part of a record: all is well that the GIC has room
    for. Words of a topology are multiplied with those of libvirt, if nothing says maxcpus
    (machine_parse_smp_config).
    """
    first, *rest = value.split(",")
    said = dict(map(_property, [first if "=" in first else f"cpus={first}", *rest]))
    try:
        counts = {name: int(word, 0) for name, word in said.items() if len(word) < _LONG}
    except ValueError:
        counts = {}
    most = most_vcpus(target.gic, target.machine, target.ipa_bits)
    topology = prod(counts.get(name, 1) for name in _TOPOLOGY)
    vcpus = max(counts.get("cpus", 0), counts.get("maxcpus", topology))
    if vcpus > most:
        yield "vCPUs", f"up to {most}", str(vcpus)
    elif len(counts) < len(said) or ("maxcpus" not in said and said.keys() - {"cpus"}):
        yield "vCPUs", "", ""


def _of_device(value: str, _target: Target) -> Iterator[tuple[str, str, str]]:
    driver = value.partition(",")[0]
    if driver.endswith("-arm-cpu") or (driver[:1] == "{" and "-arm-cpu" in value):
        yield "vCPUs", "", ""


def _of_set(value: str, _target: Target) -> Iterator[tuple[str, str, str]]:
    group = value.partition(".")[0]
    if group in ("machine", "accel", "memory"):
        yield group, "", ""


def _of_unknown(_value: str, _target: Target) -> Iterator[tuple[str, str, str]]:
    """Of -m the addresses, of -readconfig whatever is in the file."""
    yield "vCPU or addresses", "", ""


def _property(text: str) -> tuple[str, str]:
    """ "pmu=off", "pmu", "+pmu", "-pmu". QEMU takes "_" for "-" in the machine's."""
    name, equals, value = text.strip().partition("=")
    if not equals and name[:1] in ("+", "-"):
        name, value = name[1:], _word(name[0] == "+")
    return name.strip().replace("_", "-"), value.strip() if equals or value else "on"


def _word(on: bool) -> str:
    return "on" if on else "off"


_READERS = {
    "accel": _of_accel,
    "cpu": _of_cpu,
    "device": _of_device,
    "global": _of_global,
    "machine": _of_machine,
    "M": _of_machine,
    "set": _of_set,
    "smp": _of_smp,
}
