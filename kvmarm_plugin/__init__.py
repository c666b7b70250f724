# SPDX-License-Identifier: LGPL-2.1-or-later
"""host-model for KVM on ARM.

The doors are `cli` (the command ``kvmarm``) and `hook` (what libvirt calls). Between them data flows one way:

    kvm/, host/  --probe-->  profile  --resolve-->  target, record  --domain-->  domain XML

`kvm` and `host` are the edges: the only modules that touch the kernel, sysfs, QEMU and libvirt. Everything in the middle
takes values and returns values.

The hook runs while libvirt holds the domain's lock. So this file and every module on the hook's path (`errors`, `domain`,
`hook`) import neither dataclasses, typing, re nor json: together they cost more than the interpreter's own start.
"""

__version__ = "0.1.0"
