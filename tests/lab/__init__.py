# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab: emulated ARM hosts with a real KVM, a real libvirtd and real nested guests, on any
machine with QEMU.

    from tests.lab import Guest, Host, HostSpec, domain_xml

    with Host(HostSpec(suite="trixie", cpu="neoverse-n1")) as host:
        guest = Guest(host).define(domain_xml()).start()
        guest.wait_for("guest: tick 2")

README.md says how to use it and what it cannot do.
"""

from __future__ import annotations

from .errors import LabError, LabTimeout
from .guest import (
    HELLO,
    LINUX_INITRD,
    LINUX_KERNEL,
    REGISTER_READER,
    Guest,
    domain_xml,
    read_registers,
)
from .host import CommandFailed, Host, HostSpec, Result
from .image import SUITES
from .pair import Pair, migrate
from .registers import parse_registers
from .trace import VcpuInit, vcpu_inits

__all__ = [
    "HELLO",
    "LINUX_INITRD",
    "LINUX_KERNEL",
    "REGISTER_READER",
    "SUITES",
    "CommandFailed",
    "Guest",
    "Host",
    "HostSpec",
    "LabError",
    "LabTimeout",
    "Pair",
    "Result",
    "VcpuInit",
    "domain_xml",
    "migrate",
    "parse_registers",
    "read_registers",
    "vcpu_inits",
]
