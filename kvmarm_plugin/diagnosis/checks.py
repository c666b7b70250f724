# SPDX-License-Identifier: LGPL-2.1-or-later
"""All checks, and how they are made."""

from __future__ import annotations

from ..basics.errors import KvmarmError
from . import confinement, kvm, libvirt, records
from .host import UNKNOWN, Line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from .host import Host

CHECKS: dict[str, Callable[[Host], Iterable[Line]]] = {
    "Python": kvm.check_python,
    "KVM": kvm.check_kvm,
    "vCPUs": kvm.check_vcpus,
    "QEMU": kvm.check_qemu,
    "CPU clusters": kvm.check_clusters,
    "libvirt": libvirt.check_libvirt,
    "session mode": libvirt.check_session,
    "hook": libvirt.check_hook,
    "hook seen": libvirt.check_seen,
    "AppArmor": confinement.check_apparmor,
    "SELinux": confinement.check_selinux,
    "levelling": confinement.check_library,
    "policy": records.check_policy,
    "pool": records.check_pool,
    "profiles": records.check_profiles,
    "renewal": records.check_renewal,
    "agent": records.check_agent,
    "marks": records.check_marks,
}


def examine(
    host: Host, checks: Mapping[str, Callable[[Host], Iterable[Line]]] = CHECKS
) -> list[tuple[str, Line]]:
    """What all checks find, with the name of each. One that fails does not keep the others from
    being made.
    """
    found = []
    for name, check in checks.items():
        try:
            found += [(name, line) for line in check(host)]
        except KvmarmError as error:
            found.append((name, Line(UNKNOWN, error.message, error.hint)))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            found.append((name, Line(UNKNOWN, f"this cannot be found out: {why}")))
    return found
