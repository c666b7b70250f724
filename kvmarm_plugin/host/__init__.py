# SPDX-License-Identifier: LGPL-2.1-or-later
"""The other edges: CPU clusters from sysfs (`cpus`), QEMU over QMP (`qemu`), libvirt (`libvirtd`),
and `probe`, which puts the host profile together.
"""
