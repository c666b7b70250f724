# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests work on: the host profiles of tests/hosts, the templates of xml-templates, and
variations of both.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.model import profile_json
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.resolve.resolver import Resolver

TESTS = Path(__file__).parent
HOSTS = {path.stem: path for path in sorted((TESTS / "hosts").glob("*.json"))}
TEMPLATES = {path.stem: path for path in sorted((TESTS.parent / "xml-templates").glob("*.xml"))}
RECORD_SCHEMA = TESTS.parent / "xml-templates" / "kvmarm-target.rng"
RECORD_SCHEMA_1 = TESTS.parent / "xml-templates" / "kvmarm-target-1.rng"
# Resolved domains with records of version 1, as kvmarm wrote them.
RECORDS_1 = {
    f"{path.parent.name}/{path.stem}": path
    for path in sorted((TESTS / "records-1").glob("*/*.xml"))
}

# A host-model guest, as small as libvirt takes it.
GUEST = b"""\
<domain type='kvm'>
  <name>guest</name>
  <memory unit='MiB'>512</memory>
  <os><type arch='aarch64' machine='virt'>hvm</type></os>
  <cpu mode='host-model'/>
  <devices/>
</domain>
"""


@cache
def host(name: str) -> HostProfile:
    """A profile of tests/hosts, by its file's name without .json."""
    return profile_json.loads(HOSTS[name].read_text(encoding="utf-8"), name)


@cache
def resolver(name: str) -> Resolver:
    """A resolver for a host of tests/hosts under the default policy."""
    return Resolver(host(name), Policy())


@cache
def template(name: str) -> bytes:
    """A template of xml-templates, by its file's name without .xml."""
    return TEMPLATES[name].read_bytes()


def with_record_1(source: bytes) -> bytes:
    """A resolved domain with its record as kvmarm wrote it in version 1."""
    element = record.find(parse(source))
    assert element is not None
    intent = element.find(f"{record.NAMESPACE} intent")
    assert intent is not None
    kept = intent.content.encode()
    source = source[: intent.body_start] + kept + source[intent.body_end :]
    return source.replace(record.NAMESPACE.encode(), record.NAMESPACE_1.encode())


def one_line(error: BaseException) -> str:
    """The text of an error, which must be one line and say something."""
    text = str(error)
    assert text
    assert len(text.splitlines()) == 1
    return text
