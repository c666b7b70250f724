# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's edge: KVM on ARM through /dev/kvm.

`uapi` holds numbers and structs only, `device` one short method an ioctl (System, VM, VCPU),
`scratch` what the project does with them: make a scratch vCPU, read what it is, and run the few
instructions that read what no register interface tells.
"""
