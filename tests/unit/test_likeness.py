# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domains of one likeness are judged once: those that differ in what decides are never of one."""

from __future__ import annotations

import pytest

from kvmarm_plugin.domain.likeness import likeness

_DOMAIN = b"""\
<domain type='kvm' id='1'>
  <name>one</name>
  <uuid>11111111-2222-3333-4444-555555555555</uuid>
  <metadata>
    <mine:own xmlns:mine="urn:mine"/>
  </metadata>
  <cpu mode='host-passthrough'/>
  <devices>
    <emulator>/usr/bin/qemu-system-aarch64</emulator>
  </devices>
</domain>
"""


def test_name_uuid_and_devices_do_not_count() -> None:
    other = _DOMAIN.replace(b"one", b"other").replace(b"5555", b"6666")
    other = other.replace(b"  </devices>", b"    <disk type='file'/>\n  </devices>")
    assert likeness(other) == likeness(_DOMAIN) != _DOMAIN


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"host-passthrough", b"maximum"),
        (b"urn:mine", b"urn:other"),
        (b"'kvm'", b"'qemu'"),
        (b"/usr/bin/qemu", b"/opt/qemu"),
        (b"</domain>", b"  <qemu:commandline/>\n</domain>"),
    ],
)
def test_all_else_does(old: bytes, new: bytes) -> None:
    other = _DOMAIN.replace(old, new, 1)
    assert likeness(other) not in (_DOMAIN, other, likeness(_DOMAIN))


@pytest.mark.parametrize(
    "looks_like_devices",
    [
        b"<![CDATA[\n  </metadata>\n  <devices>\n]]>",
        b"\n  <devices>\n  </devices>\n",
        b"<![CDATA[\n  </devices>\n]]>",
        b"<![CDATA[\n  <devices>\n    <emulator>/opt/qemu</emulator>\n]]>",
    ],
)
def test_metadata_hide_nothing(looks_like_devices: bytes) -> None:
    one = _DOMAIN.replace(b'"/>', b'">' + looks_like_devices + b"</mine:own>")
    other = one.replace(b"host-passthrough", b"maximum")
    assert likeness(other) != likeness(one)


def test_what_libvirt_has_not_written_is_like_nothing_else() -> None:
    for text in (
        _DOMAIN.replace(b"\n  ", b"\n"),
        _DOMAIN.replace(b"<uuid>", b"<uuid >"),
        _DOMAIN.replace(b"\n  </devices>", b"</devices>"),
        b"",
    ):
        assert likeness(text) == text
