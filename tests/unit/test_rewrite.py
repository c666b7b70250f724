# SPDX-License-Identifier: LGPL-2.1-or-later
"""The laws of rewriting: what resolving and restoring change in a domain's XML, and that they
change nothing else.

Domains are generated (`domains`), hosts are those of tests/hosts, and libvirt's own test driver has
a hand in the last part.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lxml import etree

from kvmarm_plugin.domain import record, restoring
from kvmarm_plugin.domain.pins import cpuset_of, pins_in, thread_of
from kvmarm_plugin.domain.xml import DomainXMLError, Element, asks_for_host_model, parse
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import ResolveError
from tests.corpus import HOSTS, TEMPLATES, host, resolver, template, with_record_1

from .domains import domains, written_cpus

libvirt: Any = pytest.importorskip("libvirt")

# One with a named model, one without, one with SVE and PAuth, one whose GIC is its only one, one of
# two clusters.
_HOSTS = (
    "trixie-cortex-a57",
    "trixie-neoverse-n1",
    "trixie-max",
    "bookworm-cortex-a72",
    "hand-made-rk3588",
)
_POLICIES = (Policy(), Policy(prefer_named=False), Policy(pmu=False))
_CLUSTER = "4-7"  # the big one of the last
_OURS = {"model", "vendor", "feature"}

_PINNING = Resolver(host("hand-made-rk3588"), Policy())
_resolvers = st.sampled_from(
    [Resolver(host(name), policy) for name in _HOSTS for policy in _POLICIES]
)
_laws = settings(max_examples=40)


def restored(source: bytes) -> bytes:
    return restoring.restore(source, parse(source))


def cpu_of(source: bytes) -> Element:
    cpu = parse(source).find("cpu")
    assert cpu is not None
    return cpu


def with_cpu(source: bytes, cpu: bytes) -> bytes:
    """The document with another <cpu> in the same place."""
    old = cpu_of(source)
    return source[: old.start] + cpu + source[old.end :]


# -- resolve and restore -------------------------------------------------------------------------


@_laws
@given(domains(), _resolvers)
def test_resolving_leaves_nothing_to_resolve(source: bytes, resolver: Resolver) -> None:
    once = resolver.resolve(source)
    assert once != source
    assert not asks_for_host_model(parse(once))
    assert resolver.resolve(once) == once


@_laws
@given(domains(), _resolvers)
def test_restoring_is_the_inverse_of_resolving(source: bytes, resolver: Resolver) -> None:
    assert restored(resolver.resolve(source)) == source


@_laws
@given(domains(), _resolvers)
def test_without_a_record_nothing_is_restored(source: bytes, resolver: Resolver) -> None:
    assert restored(source) == source


@_laws
@given(domains(), _resolvers)
def test_the_record_in_the_domain_is_the_decision(source: bytes, resolver: Resolver) -> None:
    root = parse(resolver.resolve(source))
    element = record.find(root)
    assert element is not None
    target = record.read(element).target
    os_type, gic, pmu = root.find("os/type"), root.find("features/gic"), root.find("features/pmu")
    assert os_type is not None
    assert gic is not None
    assert pmu is not None
    assert os_type.attributes["machine"] == target.machine
    assert gic.attributes["version"] == str(target.gic)
    assert pmu.attributes.get("state", "on") == ("on" if "pmu_v3" in target.features else "off")
    cpu = root.find("cpu")
    assert cpu is not None
    model = cpu.find("model")
    if target.model == "host":
        assert cpu.attributes["mode"] == "host-passthrough"
        assert model is None
    else:
        assert cpu.attributes["mode"] == "custom"
        assert model is not None
        assert model.body == target.model.encode()


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_templates_obey_the_laws_on_every_host(name: str) -> None:
    source = template(name)
    resolved = 0
    for where in HOSTS:
        try:
            once = resolver(where).resolve(source)
        except ResolveError:
            continue  # tests/golden has the reason
        assert resolver(where).resolve(once) == once
        assert restored(once) == source
        resolved += 1
    assert resolved


@pytest.mark.parametrize(
    "os_type",
    [
        b"<type arch='aarch64'/>",
        b"<type />",
        b'<type\tmachine = ""\n>hvm</type>',
        b"<type machine='' arch='aarch64' />",
    ],
)
def test_any_way_to_leave_the_machine_open(os_type: bytes) -> None:
    source = b"<domain type='kvm'><os>" + os_type + b"</os><cpu mode='host-model'/></domain>"
    once = resolver("trixie-neoverse-n1").resolve(source)
    place = parse(once).find("os/type")
    assert place is not None
    assert place.attributes["machine"] == "virt-10.0"
    assert restored(once) == source


@_laws
@given(domains())
def test_every_thread_is_pinned_and_pins_of_the_users_stay(source: bytes) -> None:
    before, after = parse(source), parse(_PINNING.resolve(source))
    own, all_pins = (
        {thread_of(pin): pin.text for pin in pins_in(root.find("cputune") or root)}
        for root in (before, after)
    )
    assert own.items() <= all_pins.items()
    vcpu, was = after.find("vcpu"), before.find("vcpu")
    assert vcpu is not None
    assert vcpu.body.strip() == (was.body.strip() if was else b"1")
    if was and cpuset_of(was):
        assert vcpu.text == was.text
        assert own == all_pins
    else:
        assert (vcpu.attributes["placement"], vcpu.attributes["cpuset"]) == ("static", _CLUSTER)
        vcpus, iothreads = int(vcpu.body), 2 if before.find("iothreads") else 0
        threads = [
            ("emulatorpin", None),
            *(("vcpupin", str(number)) for number in range(vcpus)),
            *(("iothreadpin", str(number)) for number in range(1, 1 + iothreads)),
        ]
        assert set(threads) <= all_pins.keys()
        assert len(all_pins.keys() - own.keys()) == len(
            [thread for thread in threads if thread not in own]
        )


@_laws
@given(domains())
def test_restoring_keeps_pins_and_vcpus_changed_since(source: bytes) -> None:
    edited = _PINNING.resolve(source).replace(
        b"<emulatorpin cpuset='4-7'/>", b"<emulatorpin cpuset='5'/>"
    )
    place = parse(edited).find("vcpu")
    assert place is not None
    edited = edited[: place.body_start] + b"3" + edited[place.body_end :]
    back = parse(restored(edited))
    vcpu, was = back.find("vcpu"), parse(source).find("vcpu")
    assert vcpu is not None
    assert vcpu.body == b"3"
    assert cpuset_of(vcpu) == (cpuset_of(was) if was else "")
    assert vcpu.attributes.get("current") == (was.attributes.get("current") if was else None)
    if b"<emulatorpin cpuset='5'/>" in edited:
        emulator = back.find("cputune/emulatorpin")
        assert emulator is not None
        assert emulator.attributes["cpuset"] == "5"


# -- domains that do not ask ---------------------------------------------------------------------


def _not_asking(source: bytes) -> Iterator[bytes]:
    cpu = cpu_of(source)
    yield with_cpu(source, b"<cpu mode='host-passthrough'/>")
    yield with_cpu(source, b"<cpu mode='maximum'/>")
    yield with_cpu(source, b"<cpu mode='custom'><model>cortex-a57</model></cpu>")
    yield with_cpu(source, b"<cpu><topology sockets='2' cores='1' threads='1'/></cpu>")
    yield source[: cpu.start] + source[cpu.end :]
    root = parse(source)
    head = root.head
    yield source[: root.start] + b"<domain type='qemu'>" + source[root.start + len(head) :]
    yield source[: root.start] + b"<domain>" + source[root.start + len(head) :]
    os_type = root.find("os/type")
    assert os_type is not None
    yield source[: os_type.start] + b"<type arch='x86_64'>hvm</type>" + source[os_type.end :]
    os = root.find("os")
    assert os is not None
    yield source[: os.start] + source[os.end :]


@_laws
@given(domains(), _resolvers)
def test_domains_that_do_not_ask_stay_as_they_are(source: bytes, resolver: Resolver) -> None:
    for other in _not_asking(source):
        assert resolver.resolve(other) == other


# -- bystanders ----------------------------------------------------------------------------------


def _bystanders(source: bytes) -> list[bytes]:
    """The domain without what resolving may touch, element by element."""
    root = etree.fromstring(source)
    for cpu in root.iterfind("cpu"):
        for child in [child for child in cpu if child.tag in _OURS]:
            cpu.remove(child)
        cpu.attrib.clear()
    for os_type in root.iterfind("os/type"):
        os_type.attrib.pop("machine", "")
    for path in ("features/gic", "features/pmu", f"metadata/{{{record.NAMESPACE}}}target"):
        for element in root.findall(path):
            parent = element.getparent()
            assert parent is not None
            parent.remove(element)
    for path in ("cputune/vcpupin", "cputune/emulatorpin", "cputune/iothreadpin"):
        for element in root.findall(path):
            if element.get("cpuset") == _CLUSTER:
                element.getparent().remove(element)  # type: ignore[union-attr]
    for element in root.findall("vcpu"):
        element.attrib.pop("placement", "")
        element.attrib.pop("cpuset", "")
        if element.text == "1":
            root.remove(element)
    for path in ("features", "metadata", "cputune"):
        for element in root.findall(path):
            if not len([child for child in element if isinstance(child.tag, str)]):
                root.remove(element)
    return [etree.tostring(element, method="c14n") for element in _bare(root)]


def _bare(root: Any) -> Any:
    """A copy without comments and the white space between elements."""
    root = copy.deepcopy(root)
    etree.strip_tags(root, etree.Comment, etree.ProcessingInstruction)
    for element in root.iter():
        if element.text is not None and not element.text.strip():
            element.text = None
        if element.tail is not None and not element.tail.strip():
            element.tail = None
    return root


def _comments(source: bytes) -> Counter[bytes]:
    nodes: Any = etree.fromstring(source).xpath("//comment() | //processing-instruction()")
    return Counter(etree.tostring(node, with_tail=False) for node in nodes)


@_laws
@given(domains(), _resolvers)
def test_bystanders_are_untouched(source: bytes, resolver: Resolver) -> None:
    once = resolver.resolve(source)
    assert _bystanders(once) == _bystanders(source)
    assert not _comments(source) - _comments(once)


@_laws
@given(domains(), _resolvers)
def test_concrete_answers_of_the_user_stay(source: bytes, resolver: Resolver) -> None:
    before, after = etree.fromstring(source), etree.fromstring(resolver.resolve(source))
    for path in ("features/gic[@version='3']", "features/pmu"):
        for element in before.iterfind(path):
            same = after.find(path)
            assert same is not None
            assert sorted(same.attrib.items()) == sorted(element.attrib.items())


# -- users that go on editing --------------------------------------------------------------------


@_laws
@given(domains(), written_cpus(), _resolvers)
def test_host_model_written_anew_resolves_as_in_the_original(
    source: bytes, cpu: bytes, resolver: Resolver
) -> None:
    """But for what equals what was written for the first: see test_emitted.py."""
    edited = with_cpu(resolver.resolve(source), cpu)
    anew = with_cpu(source, cpu_of(restored(edited)).text)
    assert resolver.resolve(edited) == resolver.resolve(anew)
    emitted = [child.attributes for child in cpu_of(resolver.resolve(source)).children]
    if not any(child.attributes in emitted for child in cpu_of(edited).children):
        assert anew == with_cpu(source, cpu)


_NEW_TOPOLOGY = b"<topology sockets='1' dies='1' cores='1' threads='2'/>"


def _with_topology(source: bytes) -> bytes:
    """As `virsh edit` leaves it after another topology was written into the resolved domain."""
    cpu = cpu_of(source)
    topology = cpu.find("topology")
    if topology is not None:
        return source[: topology.start] + _NEW_TOPOLOGY + source[topology.end :]
    if cpu.head.endswith(b"/>"):
        return with_cpu(source, cpu.head[:-2] + b">" + _NEW_TOPOLOGY + b"</cpu>")
    return source[: cpu.body_end] + _NEW_TOPOLOGY + source[cpu.body_end :]


@_laws
@given(domains(), _resolvers)
def test_restoring_keeps_a_topology_edited_since(source: bytes, resolver: Resolver) -> None:
    back = restored(_with_topology(resolver.resolve(source)))
    cpu, original = cpu_of(back), cpu_of(source)
    topology = cpu.find("topology")
    assert topology is not None
    assert topology.text == _NEW_TOPOLOGY
    assert cpu.attributes == original.attributes
    for name in ("model", "feature", "numa"):
        assert [child.text for child in cpu.find_all(name)] == [
            child.text for child in original.find_all(name)
        ]
    assert with_cpu(back, b"") == with_cpu(source, b"")


@_laws
@given(domains(), _resolvers)
def test_restoring_keeps_what_was_added_since(source: bytes, resolver: Resolver) -> None:
    edited = resolver.resolve(source)
    for container, new in (
        ("features", b"<async-teardown enabled='yes'/>"),
        ("metadata", b"<n:ew xmlns:n='urn:example:new'/>"),
    ):
        place = parse(edited).find(container)
        assert place is not None
        edited = edited[: place.body_end] + new + edited[place.body_end :]
    root = parse(restored(edited))
    assert record.find(root) is None
    assert asks_for_host_model(root)
    new_feature = root.find("features/async-teardown")
    assert new_feature is not None
    assert root.find("metadata/urn:example:new ew") is not None
    # And what resolving had added is gone all the same.
    before = parse(source)
    for path in ("features/gic", "features/pmu"):
        now, then = root.find(path), before.find(path)
        assert (now and now.text) == (then and then.text)


@pytest.mark.parametrize("container", ["features", "metadata", "cputune"])
@pytest.mark.parametrize("was", ["", "<{}/>", "<{}><!-- before --></{}>"])
@pytest.mark.parametrize("edit", ["comment", "instruction", "attribute"])
def test_restoring_keeps_what_was_written_since_around_what_is_ours(
    container: str, was: str, edit: str
) -> None:
    source = (
        f"<domain type='kvm'>{was.format(container, container)}<os><type>hvm</type></os><cpu"
        " mode='host-model'/></domain>".encode()
    )
    once = _PINNING.resolve(source)
    place = parse(once).find(container)
    assert place is not None
    new = {
        "comment": b"<!-- since -->",
        "instruction": b"<?since then?>",
        "attribute": place.tag_with(since="1"),
    }[edit]
    start = place.start if edit == "attribute" else place.body_start
    edited = once[:start] + new + once[place.body_start :]
    back = restored(edited)
    kept = parse(back).find(container)
    assert kept is not None
    assert kept.children == []
    assert b"since" in kept.text
    assert (b"before" in kept.text) == ("before" in was)
    assert record.find(parse(back)) is None
    assert restored(once) == source


def test_a_record_in_a_second_metadata_is_found_and_undone() -> None:
    once = resolver("trixie-max").resolve(template("uefi"))
    hidden = once.replace(b"<metadata>", b"<metadata/><metadata>")
    assert record.find(parse(hidden)) is not None
    assert restored(hidden).replace(b"<metadata/>", b"").split() == template("uefi").split()
    with pytest.raises(record.RecordError, match="more than one"):
        record.find(
            parse(
                once.replace(
                    b"</metadata>",
                    b"</metadata>" + (parse(once).find("metadata") or pytest.fail("none")).text,
                )
            )
        )


def test_restoring_keeps_what_was_written_since_of_a_vcpu_of_ours() -> None:
    once = _PINNING.resolve(
        b"<domain type='kvm'><os><type>hvm</type></os><cpu mode='host-model'/></domain>"
    )
    back = restored(once.replace(b"<vcpu ", b"<vcpu current='1' "))
    assert b"<vcpu current='1'>1</vcpu>" in back


@_laws
@given(domains(), _resolvers)
def test_a_record_whose_facts_are_broken_can_be_undone(source: bytes, resolver: Resolver) -> None:
    once = resolver.resolve(source)
    element = record.find(parse(once))
    assert element is not None
    registers = element.find(f"{record.NAMESPACE} registers")
    assert registers is not None
    broken = once[: registers.start] + once[registers.end :]
    with pytest.raises(record.RecordError):
        record.read(record.find(parse(broken)) or pytest.fail("no record"))
    assert restored(broken) == source


# -- forged intents ------------------------------------------------------------------------------


def _with_intent(source: bytes, *kept: bytes, attributes: bytes = b"") -> bytes:
    """A resolved domain with another intent, in a record of either version."""
    element = record.find(parse(source))
    assert element is not None
    namespace = element.name.partition(" ")[0]
    intent = element.find(f"{namespace} intent")
    assert intent is not None
    text = b"".join(kept)
    if namespace == record.NAMESPACE:
        text = text.replace(b"&", b"&amp;").replace(b"<", b"&lt;").replace(b">", b"&gt;")
    text = b"<kvmarm:intent" + attributes + b">" + text + b"</kvmarm:intent>"
    return source[: intent.start] + text + source[intent.end :]


def _as_written(source: bytes) -> bytes:
    return source


_versions = pytest.mark.parametrize(
    "version", [_as_written, with_record_1], ids=["version 2", "version 1"]
)


_CPU = b"<cpu mode='host-model'/>"
_EVIL = (
    b"<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg"
    b" value='-S'/></qemu:commandline>"
)


@pytest.mark.parametrize(
    ("attributes", "kept"),
    [
        *(
            (b"", kept)
            for kept in (
                (),
                (b"<type>hvm</type>",),
                (_CPU, _CPU),
                (b"<cpu mode='host'/>",),
                (b"<cpu/>",),
                (b"<cpu mode='custom'/>",),
                (b"<cpu xmlns='urn:x' mode='host-model'/>",),
                (_CPU, b"<type>hvm</type>", b"<type>hvm</type>"),
                (_CPU, b"<type>hvm" + _EVIL + b"</type>"),
                (_CPU, b"<vcpu>1" + _EVIL + b"</vcpu>"),
                (_CPU, b"<gic version='2'/>"),
                (_CPU, b"<gic version='3'/>"),
                (_CPU, b"<gic>" + _EVIL + b"</gic>"),
                (_CPU, b"<features><acpi/></features>"),
                (_CPU, b"<metadata><x:y xmlns:x='urn:x'/></metadata>"),
                (_CPU, b"<metadata>" + _EVIL + b"</metadata>"),
                (_CPU, b"<pmu state='off'/>"),
                (_CPU, b"<devices/>"),
                (_CPU, b"<os><type>hvm</type></os>"),
                (_CPU, b"<name>other</name>"),
                (_CPU, _EVIL),
                (_CPU, b"text"),
                (b"text", _CPU),
                (b"&#x78;", _CPU),
                (b"<![CDATA[x]]>", _CPU),
                (b"<!-- a comment -->", _CPU),
                (_CPU[:-2] + b">" + 5 * (b"<!--" + b"x" * 250_000 + b"-->") + b"</cpu>",),
            )
        ),
        *(
            (attributes, (_CPU,))
            for attributes in (
                b" added=''",
                b" added='devices'",
                b" added='cpu'",
                b" added='gic gic'",
                b" added='gic\xc2\xa0pmu'",
                b" added='urn:kvmarm-plugin:target:1'",
                b" added='" + b"gic " * 100_000 + b"'",
                b" xml:space='preserve'",
                b" dropped='metadata'",
            )
        ),
        (b" added='gic'", (_CPU, b"<gic/>")),
        (b" added='metadata'", (_CPU, b"<metadata/>")),
    ],
)
@_versions
def test_a_forged_intent_is_not_restored(
    version: Callable[[bytes], bytes], attributes: bytes, kept: tuple[bytes, ...]
) -> None:
    once = version(resolver("trixie-max").resolve(template("uefi")))
    source = _with_intent(once, *kept, attributes=attributes)
    if len(b"".join(kept)) > 1 << 20 and version is _as_written:
        with pytest.raises(DomainXMLError, match="more than 1 MiB in one piece"):
            parse(source)
        return
    anew = with_cpu(source, _CPU)
    for forged in (source, anew):
        with pytest.raises(
            record.RecordError, match=r"the intent in .* is not one that kvmarm wrote"
        ) as caught:
            restored(forged)
        assert len(str(caught.value)) < 300
    with pytest.raises(record.RecordError):
        resolver("trixie-max").resolve(anew)
    with pytest.raises(record.RecordError):
        record.read(record.find(parse(source)) or pytest.fail("no record"))


@_versions
def test_two_intents_are_not_restored(version: Callable[[bytes], bytes]) -> None:
    source = version(resolver("trixie-max").resolve(template("uefi")))
    element = record.find(parse(source)) or pytest.fail("no record")
    intent = element.children[0]
    assert intent.name.endswith(" intent")
    with pytest.raises(record.RecordError, match="several"):
        restored(source[: intent.end] + intent.text + source[intent.end :])


_DECLARING = b"<cpu mode='host-model' xmlns:p='urn:p' xmlns:q = \"urn:q\">%s</cpu>"


@pytest.mark.parametrize(
    "inside",
    [
        b"<topology sockets='1' cores='1' threads='1'/><p:note/>",
        b"<topology sockets='1' cores='1' threads='1' p:z='1'/>",
        b"<q:note p:z='1'><p:note/></q:note><feature policy='require' name='pauth' q:z='1'/>",
        b"",
    ],
)
def test_a_cpu_keeps_the_prefixes_that_it_declares(inside: bytes) -> None:
    here = resolver("trixie-max")
    source = with_cpu(template("uefi"), _DECLARING % inside)
    once = here.resolve(source)
    assert cpu_of(once).declarations == cpu_of(source).declarations
    assert restored(once) == source
    written, ours = cpu_of(once).text, b"mode='host-passthrough' check='none'"
    for edited in (
        written.replace(b"threads='1'", b"threads='2'"),
        written.replace(b"mode='host-passthrough'", b"mode='host-model'"),
        written.replace(ours, b"mode='host-model' migratable='on'"),
        written.replace(ours, b"mode='host-model' migratable='on' xmlns:r='urn:r'").replace(
            b"</cpu>", b"<r:note/></cpu>"
        ),
        written.replace(ours, ours + b" xmlns:r='urn:r'").replace(b"</cpu>", b"<r:note/></cpu>"),
        _CPU,
    ):
        parse(restored(with_cpu(once, edited)))
        parse(here.resolve(with_cpu(once, edited)))


@pytest.mark.parametrize("place", [b"<metadata", b"<kvmarm:target", b"<kvmarm:intent"])
@pytest.mark.parametrize(
    "cpu", [b"<cpu mode='host-model' x:y='1'/>", b"<cpu mode='host-model'><model x:y='1'/></cpu>"]
)
@_versions
def test_a_prefix_that_means_nothing_outside_of_the_intent(
    version: Callable[[bytes], bytes], place: bytes, cpu: bytes
) -> None:
    source = _with_intent(version(resolver("trixie-max").resolve(template("uefi"))), cpu)
    with pytest.raises(
        record.RecordError, match="cannot be restored: not well-formed XML: unbound prefix"
    ):
        restored(source.replace(place, place + b" xmlns:x='urn:x'", 1))


def test_a_pin_without_cpus_pins_nothing() -> None:
    """Where it stands, the thread gets a pin, and restoring takes that away."""
    source = (
        b"<domain type='kvm'><cputune><vcpupin vcpu='0'/></cputune><os><type>hvm</type></os>"
        b"<cpu mode='host-model'/></domain>"
    )
    once = _PINNING.resolve(source)
    assert once.count(b"<vcpupin vcpu='0' cpuset=") == 1
    assert restored(once) == source


_FORGED = st.lists(
    st.sampled_from(
        [
            b"<type arch='x86_64' machine='pc' evil='1'>xen</type>",
            b"<vcpu placement='auto' cpuset='9' evil='1'>64</vcpu>",
            b"<cputune><vcpupin vcpu='0' cpuset='9'/><quota>1</quota></cputune>",
            b"<cputune evil='1'/>",
            b"<gic/>",
            b"<gic version='host'/>",
            b"<features evil='1'/>",
            b"<metadata/>",
        ]
    ),
    unique=True,
)


@_laws
@given(
    domains(),
    _resolvers,
    _FORGED,
    st.sampled_from([b"", b" added='gic pmu'", b" added='vcpu cputune gic pmu features metadata'"]),
    st.sampled_from([_as_written, with_record_1]),
)
def test_a_forged_intent_changes_only_what_resolving_changes(
    source: bytes,
    resolver: Resolver,
    forged: list[bytes],
    attributes: bytes,
    version: Callable[[bytes], bytes],
) -> None:
    """Whatever a peer has written there: nothing but CPU, GIC, PMU, pins, machine type and the
    record.
    """
    once = _with_intent(version(resolver.resolve(source)), _CPU, *forged, attributes=attributes)
    try:
        back = restored(once)
    except record.RecordError:
        return
    assert asks_for_host_model(parse(back))
    now, then = etree.fromstring(back), etree.fromstring(source)
    for path in ("os/type", "vcpu"):
        element, was = now.find(path), then.find(path)
        if element is not None and was is not None:
            changed = {*element.attrib.items()} ^ {*was.attrib.items()}
            assert element.text == was.text
            assert {attribute for attribute, _ in changed} <= {"machine", "placement", "cpuset"}
    for path in ("metadata/*", "features/acpi", "cputune/shares"):
        assert len(now.findall(path)) == len(then.findall(path))


# -- attributes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "os_type",
    [
        b"""<type guest=" machine='virt'">hvm</type>""",
        b"""<type guest=' machine="virt"' machine='virt'>hvm</type>""",
        b"""<type machine='virt' guest=" machine='virt'">hvm</type>""",
        b"""<type x:machine='pc' xmlns:x='urn:x' machine="virt">hvm</type>""",
        b"""<type xmlns:machine='pc'\n\tguest = '=>'   machine\t=\n"virt" >hvm</type>""",
        b"""<type guest='>' machine='&#118;irt'/>""",
        b"""<type machine="a'b"/>""",
    ],
)
def test_the_machine_is_an_attribute_and_nothing_else(os_type: bytes) -> None:
    source = b"<domain type='kvm'><os>" + os_type + b"</os><cpu mode='host-model'/></domain>"
    was = parse(source).find("os/type")
    assert was is not None
    changed = parse(source.replace(was.head, was.tag_with(machine="virt-10.0"))).find("os/type")
    assert changed is not None
    assert changed.attributes == {**was.attributes, "machine": "virt-10.0"}
    if was.attributes.get("machine", "virt") == "virt":
        once = resolver("trixie-neoverse-n1").resolve(source)
        place = parse(once).find("os/type")
        assert place is not None
        assert place.attributes == changed.attributes
        assert restored(once) == source


# -- other programs ------------------------------------------------------------------------------


def _pretty(source: bytes) -> bytes:
    root = etree.fromstring(source, etree.XMLParser(remove_blank_text=True))
    return etree.tostring(root, pretty_print=True)


@pytest.fixture(scope="module")
def test_driver() -> Iterator[Any]:
    """A connection to libvirt's test driver, which lives in this process."""
    libvirt.registerErrorHandler(lambda *_: None, None)
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


def _through(connection: Any, source: bytes) -> bytes:
    """The XML as libvirt gives it back."""
    domain = connection.defineXMLFlags(source.decode("utf-8-sig"), 0)
    try:
        text: str = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        return text.encode()
    finally:
        domain.undefine()


def _cpu(source: bytes) -> tuple[dict[str, str], list[bytes]]:
    """The <cpu>, whatever white space and comments are in it. Children of different names may stand
    in any order: libvirt has its own.
    """
    cpu = _bare(etree.fromstring(source).find("cpu"))
    children = sorted(cpu, key=lambda child: str(child.tag))
    return dict(cpu.attrib), [etree.tostring(child, method="c14n") for child in children]


def _target(source: bytes) -> object:
    return record.read(record.find(parse(source)) or pytest.fail("no record")).target


def _check_reformatted(source: bytes, resolver: Resolver, once: bytes, reformatted: bytes) -> None:
    assert _target(reformatted) == _target(once)
    assert resolver.resolve(reformatted) == reformatted
    back = restored(reformatted)
    assert asks_for_host_model(parse(back))
    assert record.find(parse(back)) is None
    again = resolver.resolve(back)
    assert _target(again) == _target(once)
    assert _cpu(again) == _cpu(reformatted)


@_laws
@given(domains(), _resolvers)
def test_a_pretty_printed_domain_can_be_restored(source: bytes, resolver: Resolver) -> None:
    once = resolver.resolve(source)
    _check_reformatted(source, resolver, once, _pretty(once))


@settings(_laws, suppress_health_check=[HealthCheck.filter_too_much])
@given(source=domains(), resolver=_resolvers)
def test_libvirt_gives_back_what_can_be_restored(
    test_driver: Any, source: bytes, resolver: Resolver
) -> None:
    assume(parse(source).find("vcpu"))  # every <topology> is for two, and libvirt minds
    assume(b"arch=" in source)  # the test driver's own is i686
    once = resolver.resolve(source)
    _check_reformatted(source, resolver, once, _through(test_driver, once))


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_libvirt_keeps_every_template_resolved(test_driver: Any, name: str) -> None:
    host_with_everything = resolver("trixie-max" if name != "armv7l" else "trixie-cortex-a72")
    once = host_with_everything.resolve(template(name))
    _check_reformatted(template(name), host_with_everything, once, _through(test_driver, once))
