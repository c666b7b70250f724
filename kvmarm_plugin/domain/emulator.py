# SPDX-License-Identifier: LGPL-2.1-or-later
"""The QEMU that a domain names."""

from __future__ import annotations

from .xml import Element


def emulator_of(domain: Element) -> str:
    """The path in <emulator>; empty where the domain names none, and libvirt takes its own."""
    emulator = domain.find("devices/emulator")
    return emulator.content.strip() if emulator else ""
