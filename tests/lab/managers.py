# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs on a host: the calls of libvirt by which other programs create a guest, and by which they
start it the next time. `managers.py PROGRAM first|again NAME <XML`. docs/managers/ has the sources
that were read.
"""

from __future__ import annotations

import re
import sys
import time
from typing import Any, Callable

import libvirt  # type: ignore[import-not-found, unused-ignore]


def nova(connection: Any, name: str, xml: str, again: bool) -> None:
    """Spawning, and a hard reboot, which is how Nova starts an instance that was off."""
    if again:
        domain = connection.lookupByName(name)
        domain.destroy()
        domain.undefineFlags(
            libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
        )
        connection.defineXML(xml).create()
        return
    domain = connection.defineXML(xml)
    domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
    time.sleep(1)  # the network says that it is plugged
    domain.resume()


def terraform(connection: Any, name: str, xml: str, again: bool) -> None:
    """Creating, and an update in place. What does not start is undefined."""
    if again:
        domain = connection.lookupByName(name)
        domain.destroy()
        domain.undefineFlags(
            libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM
        )
    domain = connection.defineXML(xml)
    try:
        domain.createWithFlags(0)
    except libvirt.libvirtError:
        domain.undefine()
        raise


def vagrant(connection: Any, name: str, xml: str, again: bool) -> None:
    """Two definitions and a start; at each start the mode of <cpu> is put back first, if it is not
    the one of the Vagrantfile.
    """
    if again:
        domain = connection.lookupByName(name)
        domain.destroy()
    else:
        connection.defineXML(xml)
        domain = connection.defineXML(xml)
        time.sleep(5)  # networks, folders
    stored = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
    cpu = re.compile("<cpu mode='[^']*'")
    (wanted,) = cpu.findall(xml)
    if cpu.findall(stored) != [wanted]:
        domain = connection.defineXML(cpu.sub(wanted, stored))
    domain.setAutostart(False)
    domain.create()


_PROGRAMS: dict[str, Callable[[Any, str, str, bool], None]] = {
    "nova": nova,
    "terraform": terraform,
    "vagrant": vagrant,
}


def main(program: str, when: str, name: str) -> None:
    connection = libvirt.open("qemu:///system")
    try:
        _PROGRAMS[program](connection, name, sys.stdin.read(), when == "again")
    except libvirt.libvirtError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main(*sys.argv[1:])
