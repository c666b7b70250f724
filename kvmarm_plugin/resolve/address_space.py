# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest physical address space that a guest gets on a host, if it fits."""

from __future__ import annotations

from ..model.board import (
    GIB,
    RAM_START,
    ipa_bits,
    lacks_addresses,
    leaves_out,
    most_memory,
    needed_qemu,
    ram_limit,
)
from .wish import ResolveError


def guest_ipa_bits(
    memory: int, host_ipa_bits: int, where: str, qemu: tuple[int, int] = (0, 0), room: int = 0
) -> int:
    """The guest physical address space that QEMU's virt machine asks KVM for, in bits.

    Args:
        memory, room: bytes of RAM, and how much of that is still to come, as in `Wish`.
        host_ipa_bits: the host's limit.
        where: that is, for messages: see `HostProfile.where`.
        qemu: major and minor version of its QEMU; (0, 0) for one of today.

    Raises:
        ResolveError: the memory does not fit, or the regions do not and QEMU needs them.
    """
    limit = 1 << host_ipa_bits
    # Where what the guest starts with is too much already, less room would not help.
    at_once = memory - room > most_memory(host_ipa_bits, qemu) * GIB
    size, what, less = (
        (memory - room, "the guest's memory ends", "give the guest less memory")
        if at_once
        else (
            memory,
            "<maxMemory> and its slots end",
            "lower <maxMemory>, or its slots, of which each takes 1 GiB of addresses",
        )
    )
    if RAM_START + size > limit:
        raise ResolveError(
            f"{what} at {-(-(RAM_START + size) // GIB)} GiB, KVM {where} has addresses up to"
            f" {limit // GIB} GiB",
            less,
        )
    newer = f"install QEMU {_version(needed_qemu(size, host_ipa_bits))} or newer there"
    if size > ram_limit(qemu):
        raise ResolveError(
            f"QEMU {_version(qemu)} {where} has at most {ram_limit(qemu) // GIB} GiB of memory",
            f"{newer}, or {less}",
        )
    bits = ipa_bits(size, host_ipa_bits, qemu)
    if bits > host_ipa_bits and not leaves_out(qemu):
        raise ResolveError(
            f"QEMU {_version(qemu)} {where} lays out {bits} bits of guest addresses, whether"
            f" it needs them or not, and KVM there has {host_ipa_bits}",
            newer if lacks_addresses(host_ipa_bits, qemu) else f"{newer}, or {less}",
        )
    return bits


def _version(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))
