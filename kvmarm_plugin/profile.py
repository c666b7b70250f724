# SPDX-License-Identifier: LGPL-2.1-or-later
"""The host profile: everything measured about one host, as one JSON document.

`host.probe` makes it, `resolve` reads it; it is also what people send in for tests/hosts/. `loads` and `dumps` are
inverse. The format is described in docs/profile.md and by docs/profile.schema.json.

A cluster gives the vCPU of every feature set that a policy can choose: the first in full, the others as what differs
from it. All are measured, none is computed.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache

from . import cpulist
from .errors import KvmarmError
from .registers.text import pack_ids, unpack_ids
from .value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCHEMA_STEM = "urn:kvmarm-plugin:profile:"
SCHEMA = SCHEMA_STEM + "1"


class ProfileError(KvmarmError):
    """The document is not a host profile that this program can use."""


class Vcpu(Value):
    """A scratch vCPU as measured.

    Attributes:
        number: of KVM_ARM_VCPU_INIT.
        features: of KVM_ARM_VCPU_INIT, keys of kvm.uapi.VCPU_FEATURES, in the order of their bits.
        registers: name → value of the registers that identify it.
        reglist: packed list of all its registers.
    """

    __slots__ = ("features", "number", "registers", "reglist")
    number: int
    features: tuple[str, ...]
    registers: dict[str, int]
    reglist: str

    def __init__(self, number: int, features: tuple[str, ...], registers: dict[str, int], reglist: str) -> None:
        self._freeze(locals())


class Cluster(Value):
    """The CPUs of one host that share MIDR_EL1 and REVIDR_EL1.

    Attributes:
        cpus: as in sysfs, such as "0-3,6".
        midr, revidr: register values; revidr is None where sysfs has none.
        implementer, part: names, empty where unknown.
        capacity: the kernel's cpu_capacity, 1024 for the fastest; None where there is none.
        target: the number a guest gets here (KVM_ARM_PREFERRED_TARGET or the fallback).
        vcpus: what scratch vCPUs were; the first has the target above and the richest features without SVE, PAuth and AArch32.
        sve_lengths: vector lengths in bits that KVM offers, ascending.
        models: QEMU's named models that KVM takes here → their target number.
        seen: what a guest of a few instructions read; see target.Target.seen.
        writable: register name → mask of the bits that user space may write; None on kernels that do not tell (before 6.7).
    """

    __slots__ = (
        "capacity",
        "cpus",
        "implementer",
        "midr",
        "models",
        "part",
        "revidr",
        "seen",
        "sve_lengths",
        "target",
        "vcpus",
        "writable",
    )
    cpus: str
    midr: int
    revidr: int | None
    implementer: str
    part: str
    capacity: int | None
    target: int
    vcpus: tuple[Vcpu, ...]
    sve_lengths: tuple[int, ...]
    models: dict[str, int]
    seen: dict[str, int]
    writable: dict[str, int] | None

    def __init__(
        self,
        *,
        cpus: str,
        midr: int,
        revidr: int | None,
        implementer: str,
        part: str,
        capacity: int | None,
        target: int,
        vcpus: tuple[Vcpu, ...],
        sve_lengths: tuple[int, ...],
        models: dict[str, int],
        seen: dict[str, int],
        writable: dict[str, int] | None,
    ) -> None:
        self._freeze(locals())

    @property
    def size(self) -> tuple[int, int]:
        """What orders the clusters of a host: by capacity, then by part number."""
        return self.capacity or 0, self.midr >> 4 & 0xFFF

    def vcpu(self, number: int, features: tuple[str, ...]) -> Vcpu | None:
        """The vCPU with exactly this target and these features, or None if the host cannot make it."""
        return next((vcpu for vcpu in self.vcpus if (vcpu.number, vcpu.features) == (number, features)), None)

    def has(self, feature: str) -> bool:
        """Whether any vCPU was made with this feature."""
        return any(feature in vcpu.features for vcpu in self.vcpus)


class Qemu(Value):
    """What QEMU on the host offers.

    Attributes:
        binary, version: of the emulator for the host's own architecture.
        machines: names of the virt machine types, newest first.
        aliases: alias → machine type, such as "virt" → "virt-10.0".
        cpu_models: names that -cpu takes.
        host_properties: what query-cpu-model-expansion of "host" shows: property → value; empty where it could not be asked.
    """

    __slots__ = ("aliases", "binary", "cpu_models", "host_properties", "machines", "version")
    binary: str
    version: str
    machines: tuple[str, ...]
    aliases: dict[str, str]
    cpu_models: tuple[str, ...]
    host_properties: dict[str, bool | int | str]

    def __init__(
        self,
        *,
        binary: str,
        version: str,
        machines: tuple[str, ...],
        aliases: dict[str, str],
        cpu_models: tuple[str, ...],
        host_properties: dict[str, bool | int | str],
    ) -> None:
        self._freeze(locals())

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version; (0, 0) if the version is none."""
        major, minor = (*self.version.split("."), "")[:2]
        return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


class HostProfile(Value):
    """One host.

    Attributes:
        name: the host's, as uname gives it.
        origin: "measured"; "hand-made: " and from what; or "baseline of " and how many hosts, in a pool.
        made_by: program and version.
        architecture: as uname -m gives it: "aarch64", "armv7l", or another that has no KVM on ARM.
        kernel: as uname -r gives it.
        overrides: the kernel command line's words that lower what the CPUs offer, such as "arm64.nosve".
        platform: the board's or machine's model, empty where firmware tells none.
        capabilities: KVM capability (key of kvm.uapi.CAPABILITIES) → KVM_CHECK_EXTENSION's answer; empty without KVM.
        ipa_bits: the largest guest physical address space; 0 without KVM.
        gic_versions: of virtual GICs.
        clusters: empty without KVM on ARM.
        qemu, libvirt: None where missing; libvirt is its version.
        cpu_features: names that libvirt takes in <feature>, of those that QEMU's "host" has; empty where it is missing.
        problems: what could not be measured, and why, a line each.
    """

    __slots__ = (
        "architecture",
        "capabilities",
        "clusters",
        "cpu_features",
        "gic_versions",
        "ipa_bits",
        "kernel",
        "libvirt",
        "made_by",
        "name",
        "origin",
        "overrides",
        "platform",
        "problems",
        "qemu",
    )
    name: str
    origin: str
    made_by: str
    architecture: str
    kernel: str
    overrides: tuple[str, ...]
    platform: str
    capabilities: dict[str, int]
    ipa_bits: int
    gic_versions: tuple[int, ...]
    clusters: tuple[Cluster, ...]
    qemu: Qemu | None
    libvirt: str | None
    cpu_features: tuple[str, ...]
    problems: tuple[str, ...]

    def __init__(
        self,
        *,
        name: str,
        origin: str,
        made_by: str,
        architecture: str,
        kernel: str,
        overrides: tuple[str, ...],
        platform: str,
        capabilities: dict[str, int],
        ipa_bits: int,
        gic_versions: tuple[int, ...],
        clusters: tuple[Cluster, ...],
        qemu: Qemu | None,
        libvirt: str | None,
        cpu_features: tuple[str, ...],
        problems: tuple[str, ...],
    ) -> None:
        self._freeze(locals())

    @property
    def kvm_architecture(self) -> str:
        """KVM's: "arm64" or "arm"."""
        return "arm64" if self.architecture == "aarch64" else "arm"

    def digest(self) -> str:
        """A name for what this host gives to guests: the same for hosts that differ in name only, and for the same host
        probed again."""
        facts = encode(self)
        for personal in ("name", "origin", "made_by", "problems"):
            del facts[personal]
        return "sha256:" + hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def loads(text: str, name: str = "profile") -> HostProfile:
    """A profile from its JSON.

    Args:
        name: of the file, for messages.

    Raises:
        ProfileError: not JSON, not a profile, or one of a newer schema.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{name} is not JSON: {error}", "make a profile on the host with: kvmarm probe -o FILE") from None
    return decode(document, name)


def decode(document: Any, name: str = "profile") -> HostProfile:
    """A profile from its JSON document, read. Raises ProfileError as `loads` does."""
    schema = str(document.get("schema", "")) if isinstance(document, dict) else ""
    if not schema.startswith(SCHEMA_STEM):
        raise ProfileError(f"{name} is not a host profile", "make one on the host with: kvmarm probe -o FILE")
    if schema != SCHEMA:
        raise ProfileError(
            f"{name} has schema {schema}; this kvmarm knows {SCHEMA}", "upgrade kvmarm here, or probe with this version"
        )
    try:
        return _decode(document)
    except KeyError as error:
        raise ProfileError(f"{name} is incomplete: it has no {error}", "probe the host again") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise ProfileError(f"{name} is broken: {error}", "probe the host again") from None


def dumps(profile: HostProfile) -> str:
    """The profile as JSON, with a line break at the end."""
    return json.dumps(encode(profile), indent=1) + "\n"


# -- JSON: register values are hexadecimal strings, since JSON's numbers end at 2^53 ---------------------------------------


def encode(profile: HostProfile) -> dict[str, Any]:
    """The inverse of `decode`."""
    document = {name: getattr(profile, name) for name in _ORDER}
    document["clusters"] = [_encode_cluster(cluster) for cluster in profile.clusters]
    document["qemu"] = {name: getattr(profile.qemu, name) for name in _QEMU_ORDER} if profile.qemu else None
    return {"schema": SCHEMA, **document}


def _decode(document: dict[str, Any]) -> HostProfile:
    fields = _take(document, _ORDER)
    for name in ("overrides", "gic_versions", "cpu_features", "problems"):
        fields[name] = tuple(fields[name])
    fields["clusters"] = tuple(_decode_cluster(cluster) for cluster in document["clusters"])
    if document["qemu"] is not None:
        qemu = _take(document["qemu"], _QEMU_ORDER)
        fields["qemu"] = Qemu(**{**qemu, "machines": tuple(qemu["machines"]), "cpu_models": tuple(qemu["cpu_models"])})
    return HostProfile(**fields)


def _take(document: dict[str, Any], types: dict[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """The members of these names, each of which must be of its type."""
    for name, kind in types.items():
        if not isinstance(document[name], kind):
            raise TypeError(f"{name} cannot be {repr(document[name])[:40]}")
    return {name: document[name] for name in types}


def _encode_cluster(cluster: Cluster) -> dict[str, Any]:
    base, *others = cluster.vcpus
    return {
        "cpus": cluster.cpus,
        "implementer": cluster.implementer,
        "part": cluster.part,
        "midr": hex(cluster.midr),
        "revidr": None if cluster.revidr is None else hex(cluster.revidr),
        "capacity": cluster.capacity,
        "target": cluster.target,
        "models": cluster.models,
        "sve_lengths": cluster.sve_lengths,
        "seen": _hex(cluster.seen),
        "base": {**_head(base), "registers": _hex(base.registers), "reglist": base.reglist},
        "variants": [_difference(base, vcpu) for vcpu in others],
        "writable": None if cluster.writable is None else _hex(cluster.writable),
    }


def _decode_cluster(document: dict[str, Any]) -> Cluster:
    cpulist.parse(document["cpus"])  # or it is broken
    written = document["base"]
    base = Vcpu(written["target"], tuple(written["features"]), _unhex(written["registers"]), written["reglist"])
    fields = _take(document, _CLUSTER_PLAIN)
    return Cluster(
        **fields,
        midr=int(document["midr"], 16),
        revidr=None if document["revidr"] is None else int(document["revidr"], 16),
        sve_lengths=tuple(map(_sve_length, document["sve_lengths"])),
        seen=_unhex(document["seen"]),
        vcpus=(base, *(_apply(base, difference) for difference in document["variants"])),
        writable=None if document["writable"] is None else _unhex(document["writable"]),
    )


def _sve_length(length: Any) -> int:
    if not 128 <= length <= 2048:
        raise ValueError(f"an SVE length cannot be {repr(length)[:40]}")
    return int(length)


def _head(vcpu: Vcpu) -> dict[str, Any]:
    return {"target": vcpu.number, "features": vcpu.features}


def _difference(base: Vcpu, vcpu: Vcpu) -> dict[str, Any]:
    """What a vCPU has otherwise than the base: null for a register it does not have."""
    changed = {name: value for name, value in vcpu.registers.items() if base.registers.get(name) != value}
    gone = {name: None for name in base.registers if name not in vcpu.registers}
    here, there = unpack_ids(vcpu.reglist), unpack_ids(base.reglist)
    reglist = {"added": pack_ids(here - there), "removed": pack_ids(there - here)}
    return {**_head(vcpu), "registers": {**_hex(changed), **gone}, "reglist": reglist}


def _apply(base: Vcpu, difference: dict[str, Any]) -> Vcpu:
    registers = {
        **base.registers,
        **{name: None if value is None else int(value, 16) for name, value in difference["registers"].items()},
    }
    present = {name: value for name, value in registers.items() if value is not None}
    reglist = _changed(base.reglist, difference["reglist"]["added"], difference["reglist"]["removed"])
    return Vcpu(difference["target"], tuple(difference["features"]), present, reglist)


@lru_cache(maxsize=256)  # a fleet of hosts has a few such lists, and packing one takes longer than reading the rest of a profile
def _changed(reglist: str, added: str, removed: str) -> str:
    """A packed register list without some ids and with others."""
    return pack_ids(unpack_ids(reglist) - unpack_ids(removed) | unpack_ids(added)) if added or removed else reglist


def _hex(values: dict[str, int]) -> dict[str, str]:
    return {name: hex(value) for name, value in values.items()}


def _unhex(values: dict[str, str]) -> dict[str, int]:
    return {name: int(value, 16) for name, value in values.items()}


_MISSING = type(None)
_ORDER: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "origin": str,
    "made_by": str,
    "architecture": str,
    "kernel": str,
    "overrides": list,
    "platform": str,
    "capabilities": dict,
    "ipa_bits": int,
    "gic_versions": list,
    "clusters": list,
    "qemu": (dict, _MISSING),
    "libvirt": (str, _MISSING),
    "cpu_features": list,
    "problems": list,
}
_QEMU_ORDER: dict[str, type | tuple[type, ...]] = {
    "binary": str,
    "version": str,
    "machines": list,
    "aliases": dict,
    "cpu_models": list,
    "host_properties": dict,
}
_CLUSTER_PLAIN: dict[str, type | tuple[type, ...]] = {
    "cpus": str,
    "implementer": str,
    "part": str,
    "capacity": (int, _MISSING),
    "target": int,
    "models": dict,
}
