# SPDX-License-Identifier: LGPL-2.1-or-later
"""A profile that is someone else's: whatever its strings say, what is resolved for it is the domain
that was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from lxml import etree

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.basics.value import Value
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.host import schema
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.resolve.resolver import Resolver
from tests.corpus import RECORD_SCHEMA, host, one_line, template

_COMMANDLINE = (
    "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg"
    " value='-S'/></qemu:commandline>"
)
_HOSTILE = (
    f"x'/>{_COMMANDLINE}<x y='",
    f"x</model></cpu>{_COMMANDLINE}<cpu><model>",
    f"]]>--></kvmarm:target></metadata>{_COMMANDLINE}<metadata><!--",
    "a\nb",
    "\x1b]0;x\x07",
    "\ud800",
    "x" * 100_000,
)


def _variants(value: object, hostile: str) -> Iterator[object]:
    """A value with one of the strings in it replaced, keys included."""
    if isinstance(value, str):
        yield hostile
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from (
                (*value[:index], other, *value[index + 1 :]) for other in _variants(item, hostile)
            )
    elif isinstance(value, dict):
        for key, item in value.items():
            yield {hostile if name == key else name: value[name] for name in value}
            yield from ({**value, key: other} for other in _variants(item, hostile))
    elif isinstance(value, Value):
        for name in value.as_dict():
            yield from (
                value.replace(**{name: other}) for other in _variants(getattr(value, name), hostile)
            )


@cache
def _schemas() -> list[etree.RelaxNG]:
    return [etree.RelaxNG(file=str(path)) for path in (schema.LIBVIRT_SCHEMA, RECORD_SCHEMA)]


def _elements(xml: bytes) -> set[str]:
    return {str(element.tag) for element in etree.fromstring(xml).iter()}


def _small(profile: HostProfile, source: bytes) -> HostProfile:
    """Without what is there many times, and what this domain does not need."""
    assert profile.qemu is not None
    knobs = {
        name: value
        for name, value in profile.qemu.host_properties.items()
        if name in ("pmu", "pauth", "sve", "sve256")
    }
    named = next(iter(profile.clusters[0].models), "")
    qemu = profile.qemu.replace(
        machines=profile.qemu.machines[:2],
        cpu_models=tuple(name for name in profile.qemu.cpu_models if name in ("host", named)),
        host_properties=knobs,
    )
    target = record.read(
        record.find(parse(Resolver(profile, Policy()).resolve(source))) or pytest.fail("no record")
    ).target
    clusters = [
        cluster.replace(
            vcpus=tuple(
                vcpu.replace(
                    registers={
                        name: value
                        for name, value in vcpu.registers.items()
                        if name in ("MIDR_EL1", "PSCI_VERSION")
                    }
                )
                for vcpu in cluster.vcpus
                if vcpu.features == target.features
            ),
            writable=None,
        )
        for cluster in profile.clusters
    ]
    return profile.replace(
        qemu=qemu,
        clusters=tuple(clusters),
        cpu_features=tuple(name for name in profile.cpu_features if name in knobs),
    )


@pytest.mark.parametrize("hostile", _HOSTILE, ids=lambda text: repr(text[:12]))
@pytest.mark.parametrize(
    ("where", "name"),
    [("trixie-cortex-a57", "uefi"), ("hand-made-rk3399", "uefi"), ("trixie-max", "sve")],
)
def test_no_string_of_a_profile_becomes_xml(where: str, name: str, hostile: str) -> None:
    profile = _small(host(where), template(name))
    usual = _elements(Resolver(profile, Policy()).resolve(template(name)))
    outcomes = set()
    for changed in _variants(profile, hostile):
        assert isinstance(changed, HostProfile)
        try:
            resolved = Resolver(changed, Policy()).resolve(template(name))
        except KvmarmError as error:
            outcomes.add("refused")
            one_line(error)
            continue
        outcomes.add("resolved")
        assert _elements(resolved) <= usual | {"model", "feature"}
        root = etree.fromstring(resolved)
        for valid, tree in zip(
            _schemas(), (root, *root.findall(f"metadata/{{{record.NAMESPACE}}}target"))
        ):
            assert valid.validate(etree.ElementTree(tree)), valid.error_log
        record.read(record.find(parse(resolved)) or pytest.fail("no record"))
    assert outcomes == {"refused", "resolved"}
