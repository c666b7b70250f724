# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether SELinux lets libvirt's daemon run the hook, and the hook do what it has to.

The policy of Fedora and RHEL 10 has virtqemud run nothing in /etc/libvirt/hooks (virt_hook_t); the
boolean virt_hooks_unconfined has rules for virtnetworkd alone. What is bin_t virtqemud runs, in its
own domain, which may use /dev/kvm: so the hook of a package is a link.
"""

from __future__ import annotations

from contextlib import suppress

from ..basics.errors import KvmarmError
from ..host import marks
from ..host.selinux import SELinux, type_of

# Remedies where a daemon may not run the hook: a file, or a link of a package.
AS_FILE = (
    "install kvmarm as a package of your distribution's kind: its hook is a link to a program,"
    " which libvirt may run"
)
AS_LINK = "restorecon -v {}"
# rpm/kvmarm.te of the sources.
_BY_MODULE = f"install kvmarm-selinux, and then: restorecon -R {marks.DIRECTORY}"


def selinux_denies(selinux: SELinux, label: str, python: str, remedy: str) -> list[tuple[str, str]]:
    """What SELinux does not let libvirt's daemons do that the hook needs: (what, what to do) each.

    Args:
        label: of the hook, or of what it is a link to.
        python: the hook's interpreter.
        remedy: what to do where a daemon may not run the hook.

    Raises:
        OSError, ValueError: the kernel does not answer.
    """
    denied = []
    for daemon, context in selinux.daemons().items():
        no = f"SELinux does not let {daemon} "
        domain = selinux.run(context, label)
        if not domain:
            denied.append((f"{no}run a hook that is {type_of(label)}", remedy))
            continue
        kvm = "/dev/kvm"
        if not selinux.run(domain, selinux.label(python)):
            denied.append((f"{no}run {python} for the hook", ""))
        with suppress(FileNotFoundError):
            if not selinux.allows(domain, selinux.label(kvm), "chr_file", "read write ioctl open"):
                denied.append((f"{no}use {kvm} in the hook", ""))
        with suppress(FileNotFoundError):
            label_there = selinux.label(f"{marks.DIRECTORY}/allow")
            if not selinux.allows(domain, label_there, "file", "read open unlink"):
                denied.append((f"{no}obey `kvmarm allow` in the hook", _BY_MODULE))
    return denied


def refuse_by_selinux(python: str, directory: str) -> None:
    """Refuse a hook that is to be a file in this directory, if libvirt would pass it over there, or
    start no guest, since its daemon may not run it.

    Raises:
        KvmarmError: it may not.
    """
    denied = []
    with suppress(OSError, ValueError):  # doctor says so then
        selinux = SELinux()
        if selinux.enforces():
            denied = selinux_denies(selinux, selinux.label_of_new(directory), python, AS_FILE)
    for what, remedy in denied:
        if remedy == AS_FILE:
            raise KvmarmError(what, remedy)


def selinux_advice(python: str, program: str) -> list[str]:
    """What SELinux denies to a hook that is a link to this program, a line each."""
    with suppress(OSError, ValueError):
        selinux = SELinux()
        if selinux.enforces():
            label, remedy = selinux.label(program), AS_LINK.format(program)
            denied = selinux_denies(selinux, label, python, remedy)
            return [f"{what}; {instead}" if instead else what for what, instead in denied]
    return []
