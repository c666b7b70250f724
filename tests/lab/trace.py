# SPDX-License-Identifier: LGPL-2.1-or-later
"""Watches what user space asks of KVM on a lab host: which targets and features vCPUs are
initialised with.

    with vcpu_inits(host) as inits:
        guest.start()
    assert {(init.target, init.features) for init in inits if init.is_guest} == {(5, 0b1100)}

A kprobe on the kernel's vCPU ioctl reads the argument of KVM_ARM_VCPU_INIT from user memory: the
truth about a guest, whatever QEMU or libvirt say of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from .errors import LabError
from .host import Host

KVM_ARM_VCPU_INIT = 0x4020AEAE

_TRACING = "/sys/kernel/tracing"
_EVENT = f"{_TRACING}/events/kprobes/lab_vcpu_init"
# kvm_arch_vcpu_ioctl(struct file *, unsigned int ioctl, unsigned long arg), arg: struct
# kvm_vcpu_init *
_PROBE = "p:lab_vcpu_init kvm_arch_vcpu_ioctl cmd=%x1:x32 target=+u0(%x2):u32 features=+u4(%x2):x32"
_START = f"""set -e
echo '{_PROBE}' >>{_TRACING}/kprobe_events
echo 'cmd == {KVM_ARM_VCPU_INIT:#x}' >{_EVENT}/filter
echo >{_TRACING}/trace
echo 1 >{_EVENT}/enable"""
_STOP = f"""set -e
echo 0 >{_EVENT}/enable
cat {_TRACING}/trace
echo '-:lab_vcpu_init' >>{_TRACING}/kprobe_events"""
_LINE = re.compile(
    r"^\s*(.+)-(\d+)\s+\[\d+\].* lab_vcpu_init:.* target=(\S+) features=(\S+)$", re.MULTILINE
)


class VcpuInit(NamedTuple):
    """One KVM_ARM_VCPU_INIT."""

    comm: str
    pid: int  # of the thread
    target: int
    features: int  # the first word: bits 0 to 31

    @property
    def is_guest(self) -> bool:
        """By a vCPU thread of QEMU under libvirt ("CPU 0/KVM"), not by a probe of QEMU's or
        ours.
        """
        return re.fullmatch(r"CPU \d+/KVM", self.comm) is not None


@contextmanager
def vcpu_inits(host: Host) -> Iterator[list[VcpuInit]]:
    """Yields a list that is empty until the end of the `with`, and then has what the kernel saw
    meanwhile.
    """
    inits: list[VcpuInit] = []
    host.run(_START)
    try:
        yield inits
    finally:
        inits.extend(parse(host.run(_STOP).stdout))


def parse(trace: str) -> list[VcpuInit]:
    """The events in the text of a trace."""
    if "(fault)" in trace:
        raise LabError(f"an argument of KVM_ARM_VCPU_INIT was not in memory:\n{trace}")
    return [
        VcpuInit(comm, int(pid), int(target, 0), int(features, 0))
        for comm, pid, target, features in _LINE.findall(trace)
    ]
