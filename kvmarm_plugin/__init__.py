# SPDX-License-Identifier: LGPL-2.1-or-later
"""host-model for KVM on ARM.

The doors are `cli` (the command ``kvmarm``) and `hook.answer` (what libvirt calls). Between them
data flows one way:

    kvm/, host/  --probe-->  profile  --resolve-->  target  --record, rewrite-->  domain XML

and back: a target out of the domain XML is judged (`judge.verdict`) against this host's kernel
(`rehearse`) or a profile (`judge.by_profile`).

`kvm` and `host` are the edges: the only rooms that touch the kernel, sysfs, QEMU and libvirt.
Everything in the middle takes values and returns values. docs/hacking.md has a map of all rooms.

The hook runs while libvirt holds the domain's lock. So this file and whatever `hook.answer` imports
import few modules: hook/__init__.py says which not, and why.
"""

__version__ = "0.1.0"
