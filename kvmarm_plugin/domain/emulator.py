# SPDX-License-Identifier: LGPL-2.1-or-later
"""The QEMU that a domain names."""

from __future__ import annotations

from .xml import DomainXMLError, Element, in_utf8, parse_fragment


def emulator_of(domain: Element) -> str:
    """The path in <emulator>; empty where the domain names none, and libvirt takes its own."""
    devices = domain.find("devices")
    if devices is None or b"emulator" not in devices.body:
        return ""
    try:
        # `parse` passes <devices> over.
        inside = parse_fragment(in_utf8(devices.body, domain.encoding).decode(), domain.encoding)
    except DomainXMLError:  # a fragment has limits of its own
        return ""
    emulator = inside.find("emulator")
    return emulator.content.strip() if emulator else ""
