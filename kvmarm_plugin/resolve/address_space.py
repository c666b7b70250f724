# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest physical address space that a guest gets on a host, if it fits."""

from __future__ import annotations

from ..model.board import (
    GIB,
    LEAVES_OUT_FROM,
    RAM_START,
    ipa_bits,
    lacks_addresses,
    leaves_out,
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
    top = RAM_START + memory
    if top > limit:
        raise _too_large(top, top - room > limit, limit, where)
    if memory > ram_limit(qemu):
        raise ResolveError(
            f"QEMU {_version(qemu)} {where} has at most {ram_limit(qemu) // GIB} GiB of memory",
            "give the guest less memory, or install QEMU 4.0 or newer there",
        )
    bits = ipa_bits(memory, host_ipa_bits, qemu)
    if bits > host_ipa_bits and not leaves_out(qemu):
        less = "" if lacks_addresses(host_ipa_bits, qemu) else ", or give the guest less memory"
        raise ResolveError(
            f"QEMU {_version(qemu)} {where} lays out {bits} bits of guest addresses, whether"
            f" it needs them or not, and KVM there has {host_ipa_bits}",
            f"install QEMU {_version(LEAVES_OUT_FROM)} or newer there{less}",
        )
    return bits


def _version(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))


def _too_large(top: int, at_once: bool, limit: int, where: str) -> ResolveError:
    """
    Args:
        at_once: whether the memory that the guest starts with is too large already.
    """
    what = "the guest's memory ends" if at_once else "<maxMemory> and its slots end"
    return ResolveError(
        f"{what} at {-(-top // GIB)} GiB, KVM {where} has addresses up to {limit // GIB} GiB",
        (
            "give the guest less memory"
            if at_once
            else "lower <maxMemory>, or its slots, of which each takes 1 GiB of addresses"
        ),
    )
