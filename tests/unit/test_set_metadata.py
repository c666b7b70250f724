# SPDX-License-Identifier: LGPL-2.1-or-later
"""The law of renewal: a record that virDomainSetMetadata has put into a domain is read and restored
as one that was defined with it. On libvirt's own test driver.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lxml import etree

from kvmarm_plugin.domain import record, record_text, restoring, rewrite
from kvmarm_plugin.domain.record import Home, Intent, Record
from kvmarm_plugin.domain.xml import asks_for_host_model, parse
from kvmarm_plugin.host.libvirtd import Domain
from kvmarm_plugin.kvm.device import System
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.watch import adopt
from tests.corpus import (
    GUEST,
    HOSTS,
    RECORD_SCHEMA,
    RECORDS_1,
    TEMPLATES,
    host,
    resolver,
    template,
    with_record_1,
)

from .domains import domains
from .fakekernel import FakeKernel

libvirt: Any = pytest.importorskip("libvirt")

_resolvers = st.sampled_from(
    [
        Resolver(host(name), Policy())
        for name in ("trixie-cortex-a57", "trixie-max", "bookworm-cortex-a72", "hand-made-rk3588")
    ]
)
# libvirt refuses many of the domains.
_laws = settings(max_examples=40, suppress_health_check=[HealthCheck.filter_too_much])
_UUID = "7f3b1a2c-6d0e-4c57-9d0a-3a2f1e0b9c8d"


class Guest:
    """A domain of the test driver, with a definition and, if it runs, a live one."""

    def __init__(self, connection: Any, source: bytes, runs: bool = False) -> None:
        self._connection = connection
        self.domain = connection.defineXMLFlags(source.decode("utf-8-sig"), 0)
        self._runs = runs
        if runs:
            self.domain.create()

    def __enter__(self) -> Guest:  # noqa: PYI034  # Self is typing's, from 3.11 on
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._runs:
            self.domain.destroy()
        self.domain.undefine()

    def xml(self, live: bool = False) -> bytes:
        text: str = self.domain.XMLDesc(0 if live else libvirt.VIR_DOMAIN_XML_INACTIVE)
        return text.encode()

    def set(self, namespace: str, text: str | None) -> None:
        """Set the metadata wherever there are some."""
        flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG | (
            libvirt.VIR_DOMAIN_AFFECT_LIVE if self._runs else 0
        )
        kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
        self.domain.setMetadata(kind, text, record.PREFIX, namespace, flags)


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    libvirt.registerErrorHandler(lambda *_: None, None)
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


def _read(source: bytes) -> Record:
    return record.read(record.find(parse(source)) or pytest.fail("no record"))


def _renewed(old: Record) -> Record:
    """The same with other facts."""
    target = old.target.replace(seen={**old.target.seen, "CNTFRQ_EL0": 54_000_000})
    return old.replace(target=target, origin=old.origin.replace(renewed="another & <host>"))


def _restored(source: bytes) -> bytes:
    return restoring.restore(source, parse(source))


def _with_uuid(source: bytes) -> bytes:
    """Without one libvirt makes it up anew each time."""
    root = parse(source)
    if root.find("uuid"):
        return source
    return source[: root.body_start] + f"<uuid>{_UUID}</uuid>".encode() + source[root.body_start :]


def _shown(driver: Any, source: bytes) -> bytes:
    """The domain as libvirt writes it; the order of features is no part of it."""
    with Guest(driver, source) as guest:
        root: Any = etree.fromstring(guest.xml(), etree.XMLParser(remove_blank_text=True))
    for mac in root.iterfind("devices/interface/mac"):
        mac.attrib.clear()  # a new one each time
    for empty in root.xpath("features[not(*)] | metadata[not(*)]"):
        root.remove(empty)
    for features in root.iterfind("features"):
        features[:] = sorted(features, key=lambda feature: str(feature.tag))
    return etree.tostring(root, method="c14n")


def _check_law(driver: Any, source: bytes, once: bytes, runs: bool) -> None:
    """Define, renew, perhaps interrupted, and restore."""
    expected = _shown(driver, source)
    new = _renewed(_read(once))
    with Guest(driver, once, runs) as guest:
        was = guest.xml()
        places = (False, True) if runs else (False,)
        guest.set(record.NAMESPACE, record_text.standalone(new))
        interrupted = [guest.xml(live) for live in places]
        if record.NAMESPACE_1.encode() in was:
            guest.set(record.NAMESPACE_1, None)
            assert record.NAMESPACE_1.encode() not in guest.xml()
        finished = [guest.xml(live) for live in places]
    for xml in (*interrupted, *finished):
        assert _read(xml) == new
        assert record_text.digest(_read(xml).target) == record_text.digest(new.target)
        if xml in (interrupted[0], finished[0]):
            assert _shown(driver, _restored(xml)) == expected
        else:  # the live one has ids and aliases
            assert record.find(parse(_restored(xml))) is None
            assert asks_for_host_model(parse(_restored(xml)))
    # The definition as it would be without libvirt's help, in another way.
    assert _read(rewrite.replace_record(was, parse(was), new)) == new


@_laws
@given(source=domains(), resolver=_resolvers, runs=st.booleans(), old=st.booleans())
def test_a_renewed_record_gives_back_the_users_domain(
    driver: Any, source: bytes, resolver: Resolver, runs: bool, old: bool
) -> None:
    assume(parse(source).find("vcpu"))  # every <topology> is for two, and libvirt minds
    assume(b"arch=" in source)  # the test driver's own is i686
    source = _with_uuid(source)
    try:
        _shown(driver, source)
    except libvirt.libvirtError:  # "CPU feature 'pauth' specified more than once"
        assume(False)
    once = resolver.resolve(source)
    _check_law(driver, source, with_record_1(once) if old else once, runs)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("old", [False, True])
def test_templates_obey_the_law(driver: Any, name: str, old: bool) -> None:
    source = _with_uuid(template(name))
    once = resolver("trixie-max" if name != "armv7l" else "trixie-cortex-a72").resolve(source)
    _check_law(driver, source, with_record_1(once) if old else once, True)


@pytest.mark.parametrize("name", sorted(RECORDS_1))
def test_records_of_version_1_obey_the_law(driver: Any, name: str) -> None:
    once = RECORDS_1[name].read_bytes()
    _check_law(driver, _with_uuid(_restored(once)), _with_uuid(once), True)


def test_version_1_does_not_survive_set_metadata(driver: Any) -> None:
    """Why there is a version 2: libvirt puts the intent's elements into the record's namespace."""
    source = with_record_1(resolver("trixie-max").resolve(template("uefi")))
    element = record.find(parse(source)) or pytest.fail("no record")
    text = element.text.decode()
    with Guest(driver, source) as guest:
        with pytest.raises(libvirt.libvirtError):
            guest.set(record.NAMESPACE_1, text)
        bare = re.sub(r" xmlns:kvmarm='[^']*'", "", text).replace("kvmarm:", "")
        guest.set(record.NAMESPACE_1, bare)
        with pytest.raises(record.RecordError):
            _restored(guest.xml())


_CPUS = {
    "a comment": b"<cpu mode='host-model'><!-- a > b & c --></cpu>",
    "CDATA": b"<cpu mode='host-model'><model><![CDATA[<a>&amp;]]></model></cpu>",
    "not ASCII": "<cpu mode='host-model'><!-- größer als 中 und 😀 ą ￼ --></cpu>".encode(),
    "references": b"<cpu mode='host&#45;model'><model>&amp;amp;&lt;&#38;&#x4e2d;</model></cpu>",
    "quotes": b"<cpu mode=\"host-model\" note='\"' other=\"'\"><model x='&quot;&apos;>'/></cpu>",
    "carriage returns": b"<cpu\r\n mode='host-model'>\r\n\r  <model\r\n/>\t</cpu>",
    "prefixes": b"<cpu mode='host-model'><x:y xmlns:x='urn:x'><x:z x:a='1'/></x:y></cpu>",
    "a namespace": b"<cpu mode='host-model'><model xmlns='urn:x'>mine</model></cpu>",
    "a prefix from outside": b"<cpu mode='host-model' out:er='1'><out:er out:a='1'/></cpu>",
    "an instruction": b"<cpu mode='host-model'><?editor keep='>'?></cpu>",
    "what looks like a record": b"<cpu mode='host-model'><!-- </kvmarm:intent> kvmarm: --></cpu>",
    "what looks escaped": b"<cpu mode='host-model'><!-- &lt; &amp;lt; &#13; --></cpu>",
    "the end of CDATA": b"<cpu mode='host-model'><!-- ]]> --></cpu>",
}


def _with_cpu(cpu: bytes) -> bytes:
    return GUEST.replace(b"<cpu mode='host-model'/>", cpu).replace(
        b"<domain", b"<domain xmlns:out='urn:out'"
    )


@pytest.mark.parametrize("name", _CPUS)
def test_an_intent_survives(driver: Any, name: str) -> None:
    source = _with_uuid(_with_cpu(_CPUS[name]))
    once = resolver("trixie-max").resolve(source)
    value = _read(once)
    assert value.intent.kept[0] == _CPUS[name]
    assert _restored(once) == source
    element: Any = etree.fromstring(once).find("metadata/*")
    assert etree.RelaxNG(file=str(RECORD_SCHEMA)).validate(etree.ElementTree(element))
    # Through libvirt: as it was defined, and as it is set.
    with Guest(driver, once) as guest:
        assert _read(guest.xml()) == value
        guest.set(record.NAMESPACE, record_text.standalone(_renewed(value)))
        assert _read(guest.xml()) == _renewed(value)
        if name == "a prefix from outside":
            with pytest.raises(record.RecordError, match=r"cannot be restored: .* unbound prefix"):
                _restored(guest.xml())
        else:  # of what is in <cpu> libvirt keeps what it knows, and so does restoring
            assert asks_for_host_model(parse(_restored(guest.xml())))


@pytest.mark.parametrize("encoding", ["iso-8859-1", "us-ascii", "windows-1252", "utf-8", "koi8-r"])
def test_an_intent_survives_in_any_encoding(driver: Any, encoding: str) -> None:
    cpu = "<cpu mode='host-model'><!-- größer € жук --></cpu>"
    cpu = cpu.encode(encoding, "ignore").decode(encoding)
    text = _with_cpu(b"<cpu/>").decode().replace("<cpu/>", cpu)
    source = f"<?xml version='1.0' encoding='{encoding}'?>{text}".encode(encoding)
    once = resolver("trixie-max").resolve(source)
    value = _read(once)
    assert value.intent.kept[0].decode() == cpu
    assert _restored(once) == source
    assert _restored(rewrite.replace_record(once, parse(once), _renewed(value))) == source
    _, _, unicode = once.decode(encoding).partition("?>")
    with Guest(driver, unicode.encode()) as guest:
        assert _read(guest.xml()) == value
        assert asks_for_host_model(parse(_restored(guest.xml())))


def test_a_guest_that_never_asked_has_nothing_to_restore(driver: Any) -> None:
    once = resolver("trixie-max").resolve(template("uefi"))
    adopted = _read(once).replace(intent=Intent((), ()))
    concrete = once.replace((parse(once).find("metadata") or pytest.fail("none")).text, b"")
    with Guest(driver, _with_uuid(concrete)) as guest:
        was = guest.xml()
        guest.set(record.NAMESPACE, record_text.standalone(adopted))
        xml = guest.xml()
        assert b"intent" not in xml
        assert _read(xml) == adopted
        assert _restored(xml).replace(b"<metadata>\n  </metadata>\n  ", b"") == was


def test_everything_that_is_optional_survives(driver: Any) -> None:
    pinned = _read(resolver("hand-made-rk3588").resolve(template("uefi")))
    pins = (b"<vcpupin vcpu='0' cpuset='4'/>", b"<emulatorpin cpuset='4-5'/>")
    for value in (
        pinned.replace(home=Home("4-7", "4-7,^6", pins)),
        pinned.replace(home=Home("4-7", "", ())),
        pinned.replace(target=pinned.target.replace(pinning=None, roams=True)),
        pinned.replace(origin=pinned.origin.replace(renewed="host")),
    ):
        with Guest(driver, _with_uuid(template("uefi"))) as guest:
            guest.set(record.NAMESPACE, record_text.standalone(value))
            assert _read(guest.xml()) == value


@pytest.mark.parametrize("where", sorted(HOSTS))
def test_the_digest_does_not_depend_on_white_space(driver: Any, where: str) -> None:
    name = "armv7l" if host(where).kvm_architecture == "arm" else "uefi"
    once = resolver(where).resolve(template(name))
    with Guest(driver, once) as guest:
        target = _read(guest.xml()).target
    assert record_text.digest(target) == record_text.digest(_read(once).target)
    changed = target.replace(ipa_bits=33 if target.ipa_bits != 33 else 34)
    assert record_text.digest(changed) != record_text.digest(target)


def test_a_guest_that_never_asked_is_adopted(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its definition has no <metadata> at all, and nothing else of it changes."""
    profile = host("trixie-max")
    name = os.uname_result(("Linux", "here", profile.kernel, "#1", profile.architecture))
    monkeypatch.setattr(os, "uname", lambda: name)
    monkeypatch.setattr(adopt, "find_clusters", list)
    monkeypatch.setattr(adopt, "installed_version", lambda: (10, 0))
    cpu = b"<features><gic version='3'/></features><cpu mode='host-passthrough'/>"
    source = _with_uuid(GUEST.replace(b"<cpu mode='host-model'/>", cpu))
    kernel = FakeKernel.from_profile(profile)
    with Guest(driver, source) as guest, System(kernel) as system:
        domain = Domain(guest.domain, libvirt, lambda call, *_: call())
        was = guest.xml()
        assert b"metadata" not in was
        adopted = adopt.adopt_stored(domain, system)
        assert adopted is not None
        xml = guest.xml()
        assert _read(xml).target == adopted.after
        assert record.is_adopted(_read(xml))
        element = parse(xml).find("metadata")
        assert element is not None
        assert xml.replace(element.text, b"").split() == was.split()
        assert adopt.adopt_stored(domain, system) is None
