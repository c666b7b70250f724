# SPDX-License-Identifier: LGPL-2.1-or-later
"""Why hosts cannot be levelled: a reason, and those that no register says."""

from __future__ import annotations

from functools import partial

from ..basics.value import Value
from ..model.guest_registers import GUEST_REGISTERS, GuestRegister
from ..model.profile import HostProfile
from ..registers.table import describe
from .obstacles import least_addresses, machines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, TypeVar

    T = TypeVar("T")

GIC = 3  # a GICv2 is taken from the ID registers when it is made, which is after levelling
UNKNOWN = "unknown"  # what a host has of a part that nobody measured


class Unlevelled(Value):
    """One reason why hosts cannot be levelled: of all of them, where `obstacles.Obstacle` is of
    a guest of one on another.

    Attributes:
        subject: REGISTER.FIELD, or another such as "machine type".
        meaning: what that is, for an operator.
        values: name of each host → what it has, as text.
        why: whose rule it is.
        helps: what may help; empty where nothing that is known does.
    """

    subject: str
    meaning: str
    values: dict[str, str]
    why: str
    helps: str = ""


def find_unlevelled(hosts: list[HostProfile]) -> list[Unlevelled]:
    """What has to be the same of all, or have something in common, as far as it is known."""

    found: list[Unlevelled] = []

    def unless(
        fits: Callable[[list[T]], bool],
        parts: tuple[str, ...],
        subject: str,
        meaning: str,
        value: Callable[[HostProfile], T],
        text: Callable[[T], str],
        why: str,
    ) -> None:
        """An obstacle, unless the values fit that are known: of hosts that tell all parts."""
        known = {host.name: value(host) for host in hosts if not {*parts} & {*host.unknown}}
        if known and not fits([*known.values()]):
            names = (host.name for host in hosts)
            values = {name: text(known[name]) if name in known else UNKNOWN for name in names}
            found.append(Unlevelled(subject, meaning, values, why))

    unless(
        lambda sizes: {*sizes} == {1}, (), "CPUs", "kinds of CPU that it has KVM on",
        lambda host: len(host.clusters) + len(host.unmeasured), str,
        "levelling is for hosts with KVM on CPUs of one kind",
    )  # fmt: skip
    unless(
        lambda architectures: {*architectures} == {"arm64"}, (), "architecture", "KVM's",
        lambda host: host.kvm_architecture, str,
        "levelling is for arm64",
    )  # fmt: skip
    unless(
        lambda types: bool(frozenset(types[0]).intersection(*types[1:])),
        ("qemu",), "machine types", "the newest of QEMU",
        machines, lambda types: "".join(types[:1]),
        "QEMU refuses a machine type it does not know",
    )  # fmt: skip
    unless(
        lambda versions: all(GIC in each for each in versions),
        ("gic_versions",), "GIC", "interrupt controller version",
        lambda host: host.gic_versions, lambda versions: ", ".join(map(str, versions)),
        "KVM takes an older GIC from the ID registers when it is made, after they have been"
        " levelled (kvm_vgic_create)",
    )  # fmt: skip
    unless(
        lambda bits: len({*bits}) == 1,
        ("ipa_bits", "qemu"), "IPA size", "guest physical address bits", least_addresses, str,
        "QEMU lays the guest's addresses out by the host's limit (virt_set_high_memmap)",
    )  # fmt: skip
    for register, row in GUEST_REGISTERS.items():
        if row.fixed:
            unless(
                lambda values: len({*values} - {None}) < 2,
                ("seen",), register, describe(register),
                partial(_seen, register), partial(_seen_text, row),
                "no register of KVM's has it, so that nothing can level it",
            )  # fmt: skip
    return found


def _seen(register: str, host: HostProfile) -> int | None:
    return host.clusters[0].seen.get(register) if host.clusters else None


def _seen_text(row: GuestRegister, value: int | None) -> str:
    return UNKNOWN if value is None else row.text(value)
