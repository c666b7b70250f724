# SPDX-License-Identifier: LGPL-2.1-or-later
"""A record is about the domain it sits in, or it is not believed; and a guest is of the CPUs that
it is pinned to.
"""

from __future__ import annotations

import pytest

from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.fleet.plan import apply_override
from kvmarm_plugin.judge.by_profile import check
from kvmarm_plugin.judge.contradictions import find_contradictions
from kvmarm_plugin.judge.finding import REFUSES
from kvmarm_plugin.judge.wording import line, texts
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.registers.overrides import overrides
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import ResolveError, Wish
from tests.corpus import HOSTS, TEMPLATES, host, resolver, template


def _subjects(xml: bytes) -> set[str]:
    domain = parse(xml)
    element = record.find(domain)
    assert element is not None
    return {
        texts(finding)["subject"]
        for finding in find_contradictions(domain, record.read(element).target)
    }


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("guest", TEMPLATES)
def test_a_resolved_domain_is_what_it_says(name: str, guest: str) -> None:
    try:
        xml = resolver(name).resolve(template(guest))
    except ResolveError:
        return
    assert _subjects(xml) == set()


@pytest.mark.parametrize(
    ("old", "new", "subject"),
    [
        (b"mode='host-passthrough'", b"mode='maximum'", "<cpu mode>"),
        (b"<pmu state='on'/>", b"<pmu state='off'/>", "<pmu>"),
        (b"    <pmu state='on'/>\n", b"", "<pmu>"),
        (b"<gic version='3'/>", b"<gic version='2'/>", "<gic>"),
        (b"'virt-10.0'>hvm", b"'virt-9.2'>hvm", "machine type"),
        (b"'require' name='sve256'", b"'disable' name='sve256'", "<feature sve256>"),
        (b"    <feature policy='require' name='pauth'/>\n", b"", "<feature pauth>"),
        (b"'require' name='sve'", b"'forbid' name='sve'", "<feature sve>"),
        (b"</cpu>", b"<feature policy='force' name='sve512'/></cpu>", "<feature sve512>"),
    ],
)
def test_an_edit_shows(old: bytes, new: bytes, subject: str) -> None:
    xml = resolver("trixie-max").resolve(template("sve"))
    assert old in xml
    assert _subjects(xml.replace(old, new)) == {subject}


@pytest.mark.parametrize(
    "feature",
    ["sve²", "sve٢٥٦", "sve0256", "sve256_", "sve", "x" * 10**6, "\x85\u202e", "sve" + "9" * 10**6],
)
def test_a_feature_of_any_name_is_compared_and_shown(feature: str) -> None:
    xml = resolver("trixie-max").resolve(template("sve"))
    xml = xml.replace(b"</cpu>", f"<feature policy='require' name='{feature}'/></cpu>".encode())
    domain = parse(xml)
    findings = find_contradictions(
        domain, record.read(record.find(domain) or pytest.fail("no record")).target
    )
    assert len(findings) == (feature != "sve")
    assert all(line(finding).isprintable() and len(line(finding)) < 600 for finding in findings)


@pytest.mark.parametrize(
    "old",
    [b"mode='host-passthrough'", b"<gic version='3'/>", b"'virt-10.0'>hvm", b"<pmu state='on'/>"],
)
def test_what_an_edit_says_is_shown_on_one_short_line(old: bytes) -> None:
    xml = resolver("trixie-max").resolve(template("sve"))
    head, _, rest = old.partition(b"'")
    domain = parse(xml.replace(old, head + b"'&#x85;" + b"x" * 10**6 + rest[rest.index(b"'") :]))
    [finding] = find_contradictions(
        domain, record.read(record.find(domain) or pytest.fail("no record")).target
    )
    assert line(finding).isprintable()
    assert len(line(finding)) < 400


def test_an_edit_of_a_named_model_shows() -> None:
    xml = resolver("trixie-cortex-a57").resolve(template("direct-kernel"))
    assert _subjects(xml.replace(b">cortex-a57</model>", b">cortex-a53</model>")) == {"<model>"}


def test_what_the_xml_could_not_say_is_held_against_the_host() -> None:
    """Resolved by libvirt 9.0, which has no word for PAuth, on a host without; another host would
    have QEMU add it.
    """
    plain = host("bookworm-max")
    without = apply_override(
        plain, next(override for override in overrides() if override.word == "arm64.nopauth")
    )
    target = Resolver(without, Policy()).target(Wish("aarch64"))
    assert target.unsaid == ("ptrauth_address", "ptrauth_generic")
    assert check(target, without) == []
    assert [finding.kind for finding in check(target, plain) if finding.severity == REFUSES] == [
        "features-left-to-qemu"
    ]
