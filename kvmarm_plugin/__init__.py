# SPDX-License-Identifier: LGPL-2.1-or-later
"""host-model for KVM on ARM.

The doors are `cli` (the command ``kvmarm``) and `hook` (what libvirt calls). Between them data flows one way:

    kvm/, host/  --probe-->  profile  --resolve-->  target  --record, rewrite-->  domain XML

and back: a target out of the domain XML is judged (`verdict`) against a live kernel (`kvm.rehearse`) or a profile (`check`).

`kvm` and `host` are the edges: the only modules that touch the kernel, sysfs, QEMU and libvirt. Everything in the middle
takes values and returns values.

The hook runs while libvirt holds the domain's lock. So this file and whatever `hook` imports (`domain`, `record`, `target`,
`verdict`, `registers`, `kvm` and what they need) import neither dataclasses, typing, re nor json: together they cost more than
the interpreter's own start. Of os, signal, struct and ctypes they import the C half alone: posix, _signal, _struct and _ctypes.
"""

__version__ = "0.1.0"
