# SPDX-License-Identifier: LGPL-2.1-or-later
"""What decides the vCPU of a domain is compared with the record in it, wherever the XML says it."""

from __future__ import annotations

import re

import pytest

from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.memory import memory_of
from kvmarm_plugin.domain.restoring import restore
from kvmarm_plugin.domain.xml import DomainXMLError, asks_for_host_model, parse
from kvmarm_plugin.judge.contradictions import as_written, find_contradictions
from kvmarm_plugin.judge.finding import Finding
from kvmarm_plugin.judge.wording import texts
from kvmarm_plugin.model.board import GIB
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import ResolveError
from tests.corpus import GUEST, HOSTS, TEMPLATES, host, resolver, template

_MAX = "trixie-max"
_MEMORY = b"<memory unit='MiB'>512</memory>"


def _findings(xml: bytes, ipa_bits: int = 0) -> list[Finding]:
    domain = parse(xml)
    element = record.find(domain)
    assert element is not None
    return find_contradictions(domain, record.read(element).target, host_ipa_bits=ipa_bits)


def _edited(old: bytes, new: bytes, name: str = _MAX, source: bytes = GUEST) -> bytes:
    """A guest that was resolved, and edited since."""
    xml = resolver(name).resolve(source)
    assert old in xml
    return xml.replace(old, new)


def _kinds(findings: list[Finding]) -> list[str]:
    return [finding.kind for finding in findings]


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("guest", TEMPLATES)
def test_a_resolved_domain_fits_its_own_host(name: str, guest: str) -> None:
    xml = template(guest)
    try:
        xml = resolver(name).resolve(xml)
    except ResolveError:
        return
    if record.find(parse(xml)) is not None:
        assert _findings(xml, host(name).ipa_bits) == []


@pytest.mark.parametrize(
    ("old", "new", "subject", "recorded", "local"),
    [
        (b"arch='aarch64' machine='virt-", b"arch='armv7l' machine='virt-", "architecture",
         "aarch64", "armv7l"),
        (b"<domain type='kvm'>", b"<domain type='qemu'>", "domain type", "kvm", "qemu"),
        (b"<domain type='kvm'>", b"<domain>", "domain type", "kvm", "none"),
    ],
)  # fmt: skip
def test_what_runs_the_guest(
    old: bytes, new: bytes, subject: str, recorded: str, local: str
) -> None:
    (finding,) = _findings(_edited(old, new))
    said = texts(finding)
    assert (said["subject"], said["recorded"], said["local"]) == (subject, recorded, local)


_GIC, _PMU = b"<gic version='3'/>", b"<pmu state='on'/>"


@pytest.mark.parametrize(
    ("old", "new", "subjects"),
    [
        (_GIC, _GIC + b"<gic version='2'/>", ["<gic>"]),
        (_GIC, b"<gic version='2'/>" + _GIC, []),
        (_PMU, _PMU + b"<pmu state='off'/>", ["<pmu>"]),
        (_PMU, b"<pmu state='off'/>" + _PMU, []),
        (_PMU, b"<pmu state='On'/>", ["<pmu>"]),
        (b"</features>", b"</features><features><gic version='2'/><pmu state='off'/></features>",
         ["<gic>", "<pmu>"]),
        (b"<features>", b"<features><acpi/></features><features>", []),
        (b"policy='require' name='pauth'", b"policy='Require' name='pauth'", ["<feature pauth>"]),
    ],
)  # fmt: skip
def test_the_last_word_counts(old: bytes, new: bytes, subjects: list[str]) -> None:
    findings = _findings(_edited(old, new))
    assert [texts(finding)["subject"] for finding in findings] == subjects


_ARMV7L = GUEST.replace(b"aarch64", b"armv7l")


@pytest.mark.parametrize("new", [b"arch='aarch64'", b""])
def test_the_architecture_of_a_32_bit_guest(new: bytes) -> None:
    """Without a word, libvirt takes the host's."""
    xml = resolver(_MAX).resolve(_ARMV7L)
    assert _findings(xml) == []
    assert xml.count(b"<type arch='armv7l' ") == 1
    (finding,) = _findings(xml.replace(b"<type arch='armv7l'", b"<type " + new))
    assert finding.values == {"what": "architecture", "recorded": "armv7l", "local": "aarch64"}


def test_another_architecture_is_started_as_it_is_written() -> None:
    """A host that has no AArch32 does not start it."""
    xml = resolver(_MAX).resolve(_ARMV7L)
    domain = parse(xml.replace(b"arch='armv7l'", b"arch='aarch64'"))
    target = record.read(record.find(domain) or pytest.fail("no record")).target
    assert "el1_32bit" not in as_written(domain, target).features
    assert "el1_32bit" in as_written(parse(xml), target).features


@pytest.mark.parametrize("new", [b"<type ", b"<type arch='' "])
def test_an_architecture_that_goes_without_saying(new: bytes) -> None:
    """Of an attribute that is empty, libvirt reads nothing (virXPathString)."""
    xml = _edited(b"<type arch='aarch64' ", new)
    assert _findings(xml) == []
    xml = resolver("hand-made-a15-3.10").resolve(_ARMV7L)
    assert _findings(xml.replace(b"<type arch='armv7l' ", new)) == []
    xml = resolver(_MAX).resolve(GUEST.replace(b"<type arch='aarch64' ", new))
    assert record.find(parse(xml)) is not None
    assert new + b"machine='virt-" in xml


def test_a_machine_type_that_is_empty() -> None:
    xml = resolver(_MAX).resolve(GUEST)
    (finding,) = _findings(re.sub(rb"(<type .* machine=)'[^']*'", rb"\1''", xml))
    assert texts(finding)["local"] == "none"


@pytest.mark.parametrize(
    ("new", "bits"),
    [
        (b"<memory unit='GiB'>4096</memory>", 43),
        (b"<memory unit='TB'>5</memory>", 43),
        (b"<memory>4<!-- TiB -->294967296</memory>", 43),
        (b"<memory unit='TiB'><![CDATA[4]]></memory>", 43),
        (b"<maxMemory slots='16' unit='TiB'>1</maxMemory>" + _MEMORY, 41),
        (b"<maxMemory slots='256' unit='GiB'>769</maxMemory>" + _MEMORY, 41),
    ],
)
def test_memory_that_has_grown(new: bytes, bits: int) -> None:
    """On a host of 40 bits, whose guests of some GiB have 40."""
    name = "hand-made-rk3399"
    xml = _edited(_MEMORY, new, name)
    (finding,) = _findings(xml)
    assert (finding.kind, finding.values["recorded"]) == ("addresses-other", 40)
    assert _kinds(_findings(xml, host(name).ipa_bits)) == ["addresses-other-beyond"]
    (finding,) = _findings(xml, 48)
    assert finding.values == {"recorded": 40, "local": bits}


def test_memory_of_numa_cells() -> None:
    cells = b"<numa><cell id='0' cpus='0' memory='%d' unit='GiB'/><cell id='1' memory='1'/></numa>"
    for size, kinds in ((300, []), (2000, ["addresses-other"])):
        xml = _edited(b" check='none'>", b" check='none'>" + cells % size)
        assert _kinds(_findings(xml)) == kinds
        assert memory_of(parse(xml)) == size * GIB + 1024


def test_what_the_host_leaves_room_for() -> None:
    """With 600 GiB, the last of the high regions is left out on a host of 40 bits, and not on one
    of 44: there the guest needs 41.
    """
    xml = _edited(_MEMORY, b"<memory unit='GiB'>600</memory>")
    assert _findings(xml) == []
    assert _findings(xml, 40) == []
    assert _kinds(_findings(xml, 44)) == ["addresses-other-here-memory"]


def test_memory_that_has_shrunk_fits() -> None:
    source = GUEST.replace(_MEMORY, b"<memory unit='TiB'>4</memory>")
    xml = _edited(b"<memory unit='TiB'>4</memory>", _MEMORY, source=source)
    assert _findings(xml) == _findings(xml, host(_MAX).ipa_bits) == []


@pytest.mark.parametrize(
    "memory", [b"<memory>all</memory>", b"<memory unit='MIB '>1</memory>",
               b"<memory>1</memory><maxMemory slots='-1'>1</maxMemory>"]
)  # fmt: skip
def test_memory_that_is_no_size(memory: bytes) -> None:
    with pytest.raises(DomainXMLError, match=r"<(memory|maxMemory)"):
        _findings(_edited(_MEMORY, memory))


@pytest.mark.parametrize(
    ("gic", "vcpus", "kinds"),
    [
        (2, b"8", []),
        (2, b"10", ["vcpus-too-many"]),
        (2, b" +0<!-- -->0000000009\n", ["vcpus-too-many"]),
        (3, b"124", []),
        (3, b"512", []),
        (3, b"513", ["vcpus-too-many"]),
    ],
)
def test_vcpus_that_the_gic_has_no_room_for(gic: int, vcpus: bytes, kinds: list[str]) -> None:
    here = host("trixie-cortex-a72").replace(gic_versions=(gic,))
    xml = Resolver(here, Policy()).resolve(GUEST)
    xml = xml.replace(b"<os>", b"<vcpu current='1'>" + vcpus + b"</vcpu><os>")
    findings = _findings(xml)
    assert _kinds(findings) == kinds
    assert all(finding.stops_start for finding in findings)


def test_vcpus_below_the_high_regions() -> None:
    """A host of 36 bits has no room for more redistributors than those below RAM."""
    xml = _edited(b"ipa='40'", b"ipa='36'")
    for vcpus, kinds in ((123, []), (124, ["vcpus-too-many"])):
        edited = xml.replace(b"<os>", b"<vcpu>%d</vcpu><os>" % vcpus)
        assert _kinds(_findings(edited, 36)) == kinds


def test_vcpus_of_an_old_board() -> None:
    xml = resolver(_MAX).resolve(GUEST).replace(b"virt-10.0", b"virt-2.12")
    for vcpus, kinds in ((255, []), (256, ["vcpus-too-many"])):
        assert _kinds(_findings(xml.replace(b"<os>", b"<vcpu>%d</vcpu><os>" % vcpus))) == kinds


@pytest.mark.parametrize("vcpus", [b"two", b"", b"-1"])
def test_a_number_of_vcpus_that_libvirt_refuses(vcpus: bytes) -> None:
    assert _findings(_edited(b"<os>", b"<vcpu>" + vcpus + b"</vcpu><os>")) == []


_FOR_X86 = {
    "maxphysaddr-refused": b"<maxphysaddr mode='emulate' bits='42'/>",
    "cpu-cache-refused": b"<cache level='3' mode='emulate'/>",
}


@pytest.mark.parametrize("kind", _FOR_X86)
def test_what_libvirt_refuses_in_a_cpu(kind: str) -> None:
    xml = _edited(b"check='none'>", b"check='none'>" + _FOR_X86[kind])
    assert _kinds(_findings(xml)) == [kind]


@pytest.mark.parametrize("element", _FOR_X86.values())
def test_nor_is_it_resolved(element: bytes) -> None:
    source = GUEST.replace(b"host-model'/>", b"host-model'>" + element + b"</cpu>")
    with pytest.raises(ResolveError, match="for x86 only"):
        resolver(_MAX).resolve(source)


def test_slots_for_more_memory_than_qemu_has() -> None:
    for slots, kinds in ((256, []), (257, ["memory-slots-too-many"])):
        most = b"<maxMemory slots='%d' unit='GiB'>2</maxMemory><os>" % slots
        assert _kinds(_findings(_edited(b"<os>", most))) == kinds


def test_nor_are_they_resolved() -> None:
    source = GUEST.replace(b"<os>", b"<maxMemory slots='257' unit='GiB'>2</maxMemory><os>")
    with pytest.raises(ResolveError, match="has 257 slots, and QEMU starts up to 256"):
        resolver(_MAX).resolve(source)


def _with_cpu(new: bytes) -> bytes:
    xml = resolver(_MAX).resolve(GUEST)
    cpu = parse(xml).find("cpu")
    assert cpu is not None
    return xml[: cpu.start] + new + xml[cpu.end :]


@pytest.mark.parametrize(
    ("cpu", "kind", "local"),
    [
        (b"", "xml-edited", "none"),
        (b"<cpu mode='host-model'/>", "host-model-asked", "host-model"),
        (b"<cpu><topology sockets='1' cores='1' threads='1'/></cpu>", "cpu-replaced", "custom"),
        (b"<cpu mode='maximum'/>", "cpu-replaced", "maximum"),
        (b"<cpu mode='custom'><model>cortex-a57</model></cpu>", "cpu-replaced", "custom"),
    ],
)
def test_another_cpu_is_one_finding(cpu: bytes, kind: str, local: str) -> None:
    (finding,) = _findings(_with_cpu(cpu))
    assert (finding.kind, finding.values["what"]) == (kind, "<cpu mode>")
    assert finding.values["local"] == local
    assert finding.stops_start is (kind == "host-model-asked")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"arch='aarch64' machine='virt-", b"arch='armv7l' machine='virt-"),
        (b"machine='virt-10.0'>hvm", b"machine='virt-9.2'>hvm"),
        (_MEMORY, b"<memory unit='TiB'>4</memory>"),
        (b"<gic version='3'/>", b""),
        (b"<pmu state='on'/>", b"<pmu state='off'/>"),
        (b"'require' name='sve2048'", b"'disable' name='sve2048'"),
        (b"mode='host-passthrough'", b"mode='host-model'"),
        (b"mode='maximum'", b"mode='host-model'"),
    ],
)
def test_the_remedy_works(old: bytes, new: bytes) -> None:
    """What kvmarm refresh makes of it is about the guest."""
    xml = resolver(_MAX).resolve(GUEST)
    if old == b"mode='maximum'":
        xml = xml.replace(b"mode='host-passthrough'", old)
    edited = xml.replace(old, new)
    found = _findings(edited)
    assert found
    assert all("kvmarm refresh DOMAIN" in texts(finding)["remedy"] for finding in found)
    written = edited if asks_for_host_model(parse(edited)) else restore(edited, parse(edited))
    assert _findings(resolver(_MAX).resolve(written), host(_MAX).ipa_bits) == []
