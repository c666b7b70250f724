# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest physical address space: how QEMU lays it out, and how large a host lets it be."""

from __future__ import annotations

from ..judge.finding import Finding
from .wish import GIB, ResolveError, memory_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..domain.xml import Element


# Behind RAM: redistributors of a GICv3 with many vCPUs, PCIe configuration space, PCIe memory
# (extended_memmap, hw/arm/virt.c).
_HIGH_REGIONS = (64 << 20, 256 << 20, 512 << 30)

# Before it, QEMU lays them all out whether KVM has room for them or not (virt_kvm_type calls
# virt_set_memmap without a limit), and so 40 bits at least.
_LEAVES_OUT = (7, 0)

# Before it, they lie at fixed addresses, and RAM ends in front of them ("Legacy RAM limit").
_MOVES = (4, 0)
_OLD_LIMIT = 255 * GIB


def guest_ipa_bits(
    memory: int, host_ipa_bits: int, host: str, qemu: tuple[int, int] = (0, 0), room: int = 0
) -> int:
    """The guest physical address space that QEMU's virt machine asks KVM for, in bits.

    RAM starts at 1 GiB. Behind it, at 256 GiB or higher, come regions aligned to their size, as far
    as the host's limit has room for them (virt_set_memmap, virt_set_high_memmap and virt_kvm_type,
    hw/arm/virt.c).

    Args:
        memory, room: bytes of RAM, and how much of that is still to come, as in `Wish`.
        host_ipa_bits: the host's limit.
        host: its name.
        qemu: major and minor version of its QEMU; (0, 0) for one of today.

    Raises:
        ResolveError: the memory does not fit, or the regions do not and QEMU needs them.
    """
    limit = 1 << host_ipa_bits
    top = GIB + memory
    if top > limit:
        raise _too_large(top, top - room > limit, limit, host)
    ends = _region_ends(top)
    if (0, 0) < qemu < _MOVES and memory > _OLD_LIMIT:
        raise ResolveError(
            f"QEMU {_version(qemu)} on host {host} has at most {_OLD_LIMIT // GIB} GiB of memory",
            "give the guest less memory, or install QEMU 4.0 or newer there",
        )
    if not leaves_out(qemu):
        if ends[-1] > limit:
            less = "" if _region_ends(GIB)[-1] > limit else ", or give the guest less memory"
            raise ResolveError(
                f"QEMU {_version(qemu)} on host {host} lays out {_bits(ends[-1])} bits of guest"
                f" addresses, whether it needs them or not, and KVM there has {host_ipa_bits}",
                f"install QEMU {_version(_LEAVES_OUT)} or newer there{less}",
            )
        return _bits(ends[-1])
    return max(32, _bits(max(top, *(end for end in ends if end <= limit), 0)))


def leaves_out(qemu: tuple[int, int]) -> bool:
    """Whether this QEMU leaves out the regions that KVM has no room for."""
    return qemu >= _LEAVES_OUT or qemu == (0, 0)


def has_high_redistributors(memory: int, host_ipa_bits: int) -> bool:
    """Whether a guest has room for the redistributors of a GICv3 behind its RAM."""
    return _region_ends(GIB + memory)[0] <= 1 << host_ipa_bits


def most_memory(ipa_bits: int, qemu: tuple[int, int]) -> int:
    """GiB of RAM that the largest guest has with so many bits of addresses; 0 if QEMU starts
    none.
    """
    limit = 1 << ipa_bits
    largest = max(0, limit // GIB - 1)
    if not leaves_out(qemu):
        while largest and _region_ends(GIB + largest * GIB)[-1] > limit:
            largest -= 1
    return min(largest, _OLD_LIMIT // GIB) if (0, 0) < qemu < _MOVES else largest


def _region_ends(top: int) -> list[int]:
    """Where each of the regions ends that are laid out behind RAM which ends at `top`."""
    ends = [max(256 * GIB, -(-top // GIB) * GIB)]
    for size in _HIGH_REGIONS:
        ends.append(-(-ends[-1] // size) * size + size)
    return ends[1:]


def _bits(end: int) -> int:
    """Of the last address below."""
    return (end - 1).bit_length()


def _version(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))


def _too_large(top: int, at_once: bool, limit: int, host: str) -> ResolveError:
    """
    Args:
        at_once: whether the memory that the guest starts with is too large already.
    """
    what = "the guest's memory ends" if at_once else "<maxMemory> and its slots end"
    return ResolveError(
        f"{what} at {-(-top // GIB)} GiB, KVM on host {host} has addresses up to"
        f" {limit // GIB} GiB",
        (
            "give the guest less memory"
            if at_once
            else "lower <maxMemory>, or its slots, of which each takes 1 GiB of addresses"
        ),
    )


def memory_too_large(domain: Element, host_ipa_bits: int) -> list[Finding]:
    """Whether QEMU does not start a guest for its memory, which the XML says and no record.

    Args:
        host_ipa_bits: the host's limit.
    """
    try:
        end = GIB + memory_of(domain)
    except ResolveError:
        return []  # not written as libvirt writes it, and for QEMU to say
    if end <= 1 << host_ipa_bits:
        return []
    limit = (1 << host_ipa_bits) // GIB
    return [Finding("memory-too-large", recorded=-(-end // GIB), local=limit)]
