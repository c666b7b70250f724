# SPDX-License-Identifier: LGPL-2.1-or-later
"""Nested guests: what runs on a lab host, under its libvirt and its KVM.

Three are in every image, all booted directly:
- the ticker (TICKER, ticker.py), which prints `guest: hello from inside`, its MIDR_EL1 and then a
  tick every second;
- a Linux guest (the host's own kernel, LINUX_KERNEL and LINUX_INITRD) that does the same, ten
  seconds later;
- the register reader (REGISTER_READER, registers.py), which prints every ID register it sees and
  switches itself off.

domain_xml() writes a domain around any; Guest defines, starts and watches it; read_registers() is
all that in one call.  A test may as well take the XML, change it and use virsh.
"""

from __future__ import annotations

import re
import shlex
import time
from xml.sax.saxutils import escape

from .errors import LabError, LabTimeout
from .host import Host
from .registers import END, parse_registers

TICKER = "/var/lib/lab/ticker.img"
LINUX_KERNEL = "/var/lib/lab/vmlinuz"
LINUX_INITRD = "/var/lib/lab/guest.cpio.gz"
REGISTER_READER = "/var/lib/lab/registers.img"
HOST_PASSTHROUGH = "<cpu mode='host-passthrough'/>"

HELLO = "guest: hello from inside"
TICK = re.compile(r"guest: tick (\d+)")
MIDR = re.compile(r"guest: MIDR_EL1=(0x[0-9a-f]+)")

START_SECONDS = 120.0

# What runs in a guest when it does not matter what: the tests may be told to take Linux
# (conftest.py).
usual_kernel = TICKER

_DOMAIN = """\
<domain type='kvm'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>{vcpus}</vcpu>
  <os>
    <type arch='aarch64' machine='{machine}'>hvm</type>
    <kernel>{kernel}</kernel>{initrd}
    <cmdline>console=ttyAMA0 quiet panic=-1 cma=0</cmdline>
  </os>
  <features>{features}</features>
  {cpu}
  <on_crash>destroy</on_crash>
  <devices>
    <controller type='usb' model='none'/>
    <serial type='file'>
      <source path='{console}' append='on'/>
      <target type='system-serial' port='0'><model name='pl011'/></target>
    </serial>
    <memballoon model='none'/>
  </devices>{extra}
</domain>
"""


def console_path(name: str) -> str:
    """Where, on its host, the serial console of a guest is logged."""
    return f"/var/log/lab/{name}.log"


def domain_xml(
    name: str = "guest",
    cpu: str = HOST_PASSTHROUGH,
    features: str = "<gic version='3'/>",
    kernel: str | None = None,
    vcpus: int = 1,
    machine: str = "virt",
    extra: str = "",
) -> str:
    """A domain.

    Args:
        cpu: the whole element, "" for none.
        features: what is inside that element.
        kernel: of the three above; the usual one if there is none.
        extra: goes last.
    """
    kernel = kernel or usual_kernel
    initrd = f"\n    <initrd>{LINUX_INITRD}</initrd>" if kernel == LINUX_KERNEL else ""
    return _DOMAIN.format(
        name=escape(name),
        cpu=cpu,
        features=features,
        kernel=kernel,
        initrd=initrd,
        memory=128 if kernel == LINUX_KERNEL else 64,
        vcpus=vcpus,
        machine=machine,
        extra=extra,
        console=console_path(name),
    )


class Guest:
    """A domain on a host, by name; after a migration, on another host (`on`)."""

    def __init__(self, host: Host, name: str = "guest") -> None:
        self.host = host
        self.name = name

    def on(self, host: Host) -> Guest:
        """The same guest, seen from another host."""
        return Guest(host, self.name)

    def define(self, xml: str) -> Guest:
        # Through a file: /dev/stdin is a socket under sshd, and cannot be opened.
        self.host.run(
            'xml=$(mktemp) && cat >"$xml" && virsh --quiet define "$xml"; rc=$?; rm -f "$xml";'
            " exit $rc",
            xml,
        )
        return self

    def start(self) -> Guest:
        """Start it, with a console log of its own."""
        self.host.run(["rm", "-f", console_path(self.name)])
        self.host.run(["virsh", "--quiet", "start", self.name])
        return self

    def state(self) -> str:
        """As virsh domstate says it; "absent" if there is no such domain."""
        result = self.host.run(["virsh", "domstate", self.name], check=False)
        return result.stdout.strip() if result.rc == 0 else "absent"

    def console(self) -> str:
        return self.host.run(f"cat {shlex.quote(console_path(self.name))}", check=False).stdout

    def wait_for(
        self, pattern: str | re.Pattern[str], timeout: float = START_SECONDS
    ) -> re.Match[str]:
        """Wait until the console has a match: the last one."""
        deadline = time.monotonic() + timeout
        while True:
            text = self.console()
            if found := list(re.finditer(pattern, text)):
                return found[-1]
            if time.monotonic() > deadline:
                raise LabTimeout(
                    f"no {pattern!r} from {self.name} on {self.host!r} in {timeout:g} s; "
                    f"state {self.state()}; its console ends with:\n{text[-2000:]}{self.qemu_log()}"
                )
            if self.state() not in ("running", "paused"):
                self._died(pattern)
            time.sleep(0.3)

    def _died(self, pattern: str | re.Pattern[str]) -> None:
        """It ended; not what was waited for, unless that was the last thing it said."""
        text = self.console()
        if not re.search(pattern, text):
            raise LabError(
                f"{self.name} on {self.host!r} is {self.state()} and never said {pattern!r}; "
                f"its console ends with:\n{text[-2000:]}{self.qemu_log()}"
            )

    def ticks(self) -> int:
        """How far the guest has counted, by this host's console log."""
        # A whole line: the log may end in the middle of one, with "4" of "41".
        found = re.findall(TICK.pattern + r"\r?\n", self.console())
        return int(found[-1]) if found else 0

    def qemu_log(self) -> str:
        """The end of QEMU's log, where its reasons to die are."""
        log = self.host.run(
            f"tail -n 15 /var/log/libvirt/qemu/{shlex.quote(self.name)}.log", check=False
        )
        return f"\nQEMU's log ends with:\n{log.stdout}"

    def destroy(self) -> None:
        """Away with it, in whatever state."""
        name = shlex.quote(self.name)
        self.host.run(
            f"virsh destroy {name}; virsh undefine --nvram --managed-save --snapshots-metadata"
            f" {name}",
            check=False,
        )


def read_registers(
    host: Host,
    cpu: str = HOST_PASSTHROUGH,
    features: str | None = None,
    name: str = "registers",
    timeout: float = START_SECONDS,
) -> dict[str, int]:
    """What a guest with this <cpu> and these <features> sees, on this host (names:
    registers.parse_registers).
    """
    features = f"<gic version='{host.spec.gic}'/>" if features is None else features
    guest = Guest(host, name)
    guest.define(domain_xml(name, cpu, features, kernel=REGISTER_READER))
    try:
        guest.start().wait_for(rf"(?m)^{END}\r?$", timeout)
        return parse_registers(guest.console())
    finally:
        guest.destroy()
