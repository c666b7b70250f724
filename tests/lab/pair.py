# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two lab hosts with a network cable between them: what a live migration needs.

    slow = HostSpec(name="beta", cpu="neoverse-n1,cntfrq=25000000")
    with Pair(HostSpec(name="alpha"), slow) as (alpha, beta):
        guest = Guest(alpha).define(domain_xml()).start()
        migrate(guest, beta)

They know each other by name, and their libvirtds listen on TCP without any authentication: the
cable is a pair of sockets that nobody else has an end of.
"""

from __future__ import annotations

import shlex
import socket
from types import TracebackType

from .errors import LabError, step
from .guest import Guest
from .host import BOOT_SECONDS, Host, HostSpec, Result

LINK = "10.77.0"
MIGRATE_SECONDS = 180.0


class Pair:
    """A context manager: boots both on entry, and yields them.  When one stops, the cable is gone:
    boot a new pair.
    """

    def __init__(self, first: HostSpec, second: HostSpec) -> None:
        if first.name == second.name:
            raise LabError(
                f"both hosts are named {first.name}",
                "HostSpec(name=…): libvirt migrates between names",
            )
        self._specs = (first, second)
        self.hosts: tuple[Host, ...] = ()

    def __enter__(self) -> tuple[Host, Host]:
        return self.boot()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def boot(self, timeout: float = BOOT_SECONDS) -> tuple[Host, Host]:
        # The cable: no port, no file, and gone with the two QEMUs, which alone keep the ends open.
        ends = socket.socketpair()
        first, second = (Host(spec, link=end) for spec, end in zip(self._specs, ends))
        self.hosts = (first, second)
        names = " and ".join(
            f"{spec.name} ({spec.suite}, {spec.qemu_cpu()})" for spec in self._specs
        )
        try:
            with ends[0], ends[1]:
                first.start()
                second.start()
            with step(f"{names} booted"):
                self._wait(timeout)
        except BaseException:
            self.stop()
            raise
        return first, second

    def stop(self) -> None:
        for host in self.hosts:
            host.stop()

    def _wait(self, timeout: float) -> None:
        for number, host in enumerate(self.hosts, 1):
            host.wait(timeout)
            self._connect(host, number)

    def _connect(self, host: Host, number: int) -> None:
        names = "".join(f"{LINK}.{n} {peer.spec.name}\n" for n, peer in enumerate(self.hosts, 1))
        # libvirt asks the destination for its name, and its name must lead over the link.
        host.run(
            f"sed -i '/ {host.spec.name}$/d' /etc/hosts && cat >>/etc/hosts && "
            f"ip address add {LINK}.{number}/24 dev eth1 && ip link set eth1 up",
            input=names,
        )


def migrate(
    guest: Guest,
    destination: Host,
    options: str = "",
    check: bool = True,
    timeout: float = MIGRATE_SECONDS,
) -> Result:
    """Live-migrate a guest; `options` are virsh's.  Where it is afterwards:
    guest.on(destination).
    """
    return guest.host.run(
        f"virsh migrate --live {options} {shlex.quote(guest.name)}"
        f" qemu+tcp://{destination.spec.name}/system",
        check=check,
        timeout=timeout,
    )
