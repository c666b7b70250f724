# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pins of a domain: where its threads may run, and the clusters of hosts that they lead to."""

from __future__ import annotations

from ..basics import cpulist
from ..basics.untrusted import libvirt_number
from ..basics.value import Value
from ..model.board import MOST_VCPUS
from .memory import vcpus_of
from .xml import DomainXMLError, Element

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol, TypeVar

    class Identified(Protocol):
        """A cluster of a host, in its profile, in sysfs or in a record."""

        @property
        def midr(self) -> int | None: ...
        @property
        def revidr(self) -> int | None: ...

    class Counted(Identified, Protocol):
        """A cluster of a host with the numbers of its CPUs, ascending."""

        @property
        def cpus(self) -> tuple[int, ...]: ...

    AnyCluster = TypeVar("AnyCluster", bound=Identified)


class CountedCluster(Value):
    """A cluster as `Counted` has it."""

    midr: int | None
    revidr: int | None
    cpus: tuple[int, ...]


MOST_THREADS = MOST_VCPUS  # vCPUs, and as many I/O threads: no more are pinned

_PINS = ("vcpupin", "emulatorpin", "iothreadpin")
_MOST_NUMBER = (1 << 32) - 1  # of a thread; libvirt's numbers end there
_MOST_PINS = 2 * MOST_THREADS + 1
_MOST_TEXT = 1 << 20  # characters of all their lists of CPUs: a thousand for each, in a second


def pins_of(domain: Element) -> list[Element]:
    """The elements that pin threads of a domain: <vcpu> with a cpuset, and those of <cputune> but
    for vCPUs that it does not have, which libvirt ignores (virDomainVcpuPinDefParseXML). Raises
    DomainXMLError.
    """
    vcpu, cputune = domain.find("vcpu"), domain.find("cputune")
    own = [vcpu] if vcpu is not None and cpuset_of(vcpu) else []
    most = vcpus_of(domain) or MOST_THREADS
    return own + [pin for pin in pins_in(cputune) if _is_of(pin, most)] if cputune else own


def pins_in(cputune: Element) -> list[Element]:
    """The elements of <cputune> that pin threads.

    Raises:
        DomainXMLError: more than there can be threads, or of longer lists than anybody writes.
    """
    pins = [
        child for child in cputune.children if child.name in _PINS and "cpuset" in child.attributes
    ]
    if len(pins) > _MOST_PINS:
        raise DomainXMLError(
            f"<cputune> has {len(pins)} pins",
            f"up to {MOST_THREADS} vCPUs and as many I/O threads can be pinned",
        )
    if sum(len(pin.attributes["cpuset"]) for pin in pins) > _MOST_TEXT:
        raise DomainXMLError(
            f"the pins of <cputune> have more than {_MOST_TEXT >> 20} MiB",
            "write ranges of CPUs, such as 0-3,6",
        )
    return pins


def thread_of(pin: Element) -> tuple[str, str | None]:
    """Which threads a pin of <cputune> is for: their kind, and the number of one, in which "00" is
    the same as "0". What is no number, libvirt refuses.
    """
    number = pin.attributes.get(pin.name[: -len("pin")])
    try:
        return pin.name, number and str(libvirt_number(number, _MOST_NUMBER))
    except ValueError:
        return pin.name, number


def _is_of(pin: Element, vcpus: int) -> bool:
    """Whether a pin is for a thread of a domain with that many vCPUs, as far as can be told."""
    kind, number = thread_of(pin)
    return kind != "vcpupin" or not (number and number.isdigit()) or int(number) < vcpus


def cpuset_of(vcpu: Element) -> str:
    """The cpuset of <vcpu>, which every thread has that has no pin of its own. libvirt does not
    read it where it asks numad (virDomainVcpuParse).
    """
    return "" if vcpu.attributes.get("placement") == "auto" else vcpu.attributes.get("cpuset", "")


def cpus_of(pin: Element) -> int:
    """The CPUs that a pin names, as bits (see `cpulist.mask`). Raises DomainXMLError."""
    try:
        return cpulist.mask(pin.attributes["cpuset"])
    except ValueError as error:
        raise DomainXMLError(f"<{pin.name} cpuset>: {error}", "it is written like 0-3,6") from None


def find_cluster(pinning: Identified, clusters: Sequence[AnyCluster]) -> AnyCluster | None:
    """The cluster of a host that a guest belongs on. REVIDR_EL1 only tells apart those of one
    MIDR_EL1.
    """
    same = [cluster for cluster in clusters if cluster.midr == pinning.midr]
    exact = [cluster for cluster in same if cluster.revidr == pinning.revidr]
    return exact[0] if exact else same[0] if len(same) == 1 else None
