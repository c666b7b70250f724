# SPDX-License-Identifier: LGPL-2.1-or-later
"""A lab host that looks like a big.LITTLE board, and on which CPUs the kernel runs a guest's
threads.

sysfs shows other MIDRs than the emulated CPUs have, for files are bind-mounted over its own. KVM's
MIDR_EL1 stays the real one, on every CPU the same: what no emulated host has is clusters that
differ in what KVM gives.
"""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from .guest import Guest
from .host import Host

CORTEX_A53, CORTEX_A72 = 0x410FD034, 0x410FD083
_IDENTIFICATION = "/sys/devices/system/cpu/cpu{cpu}/regs/identification"


class Thread(NamedTuple):
    """A thread of QEMU's.

    Attributes:
        name: its comm, such as "CPU 0/KVM".
        allowed: the CPUs that it may run on, as in its status.
        cpu: the one that it was on last.
    """

    name: str
    allowed: str
    cpu: int


def show_clusters(host: Host, clusters: dict[range, int]) -> None:
    """Have sysfs show clusters.

    Args:
        clusters: the CPUs → their MIDR_EL1.
    """
    lines = []
    for cpus, midr in clusters.items():
        for cpu in cpus:
            for register, value in (("midr_el1", midr), ("revidr_el1", 0)):
                file = f"/run/clusters/{cpu}-{register}"
                shown = f"{_IDENTIFICATION.format(cpu=cpu)}/{register}"
                lines.append(f"printf '0x%016x\\n' {value} >{file} && mount --bind {file} {shown}")
    host.run(" && ".join(["mkdir -p /run/clusters", *lines]))


def threads(guest: Guest) -> list[Thread]:
    """The threads of a running guest's QEMU, as the kernel has them."""
    pid = f"/run/libvirt/qemu/{shlex.quote(guest.name)}.pid"
    text = guest.host.run(
        f"for task in /proc/$(cat {pid})/task/*; do cat $task/comm $task/stat; grep"
        " Cpus_allowed_list $task/status; done"
    ).stdout
    found = re.findall(r"(.*)\n\d+ \(.*\) (.*)\nCpus_allowed_list:\s*(\S+)\n", text)
    # proc_pid_stat(5): processor is field 39, and what follows the name starts with field 3.
    return [Thread(name, allowed, int(stat.split()[39 - 3])) for name, stat, allowed in found]
