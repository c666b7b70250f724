# SPDX-License-Identifier: LGPL-2.1-or-later
"""The threads of a guest: how many there are, and the pins that those get that have none."""

from __future__ import annotations

from ..basics import cpulist
from ..basics.untrusted import libvirt_number, shown
from .pins import MOST_THREADS, cpus_of, cpuset_of, pins_in, pins_of, thread_of
from .xml import DomainXMLError, Element


def pinned_cpus(domain: Element) -> tuple[int, ...]:
    """The host CPUs that the pins of a domain name, all together.

    Raises:
        DomainXMLError: two elements where libvirt takes one, a list of CPUs that is none, or too
            many pins.
    """
    for name in ("vcpu", "cputune", "numatune", "iothreads", "iothreadids"):
        if len(domain.find_all(name)) > 1:
            raise DomainXMLError(f"the domain has more than one <{name}>", "write one")
    cpus = 0
    for pin in pins_of(domain):
        cpus |= cpus_of(pin)
    return cpulist.numbers(cpus)


def vcpus(domain: Element) -> int:
    """The number of vCPUs that a domain can ever have. Raises DomainXMLError."""
    return _count(domain.find("vcpu"), 1)


def new_pins(domain: Element, cpus: str) -> tuple[str, tuple[bytes, ...]]:
    """The pins that keep a whole guest to some host CPUs: a cpuset for <vcpu>, and elements for
    <cputune>.

    Nothing where the user has a cpuset: it is every thread's that has no pin of its own
    (qemuProcessSetupPid). Without one, such a thread may run anywhere: QEMU's own, too, which asks
    KVM for its preferred target.

    Raises:
        DomainXMLError: a number of threads or an id that is none, more threads than QEMU makes, or
            a <numatune> that libvirt does not take beside pins.
    """
    vcpu, cputune = domain.find("vcpu"), domain.find("cputune")
    if vcpu is not None and cpuset_of(vcpu):
        return "", ()
    _check_numatune(domain)
    pinned = {thread_of(pin) for pin in pins_in(cputune)} if cputune else set()
    threads = [
        *(("vcpupin", str(number)) for number in range(vcpus(domain))),
        ("emulatorpin", None),
        *(("iothreadpin", str(number)) for number in _iothreads(domain)),
    ]
    return cpus, tuple(_pin(*thread, cpus) for thread in threads if thread not in pinned)


def _pin(name: str, number: str | None, cpus: str) -> bytes:
    """ "vcpupin", "0": <vcpupin vcpu='0' …>."""
    which = "" if number is None else f" {name[: -len('pin')]}='{number}'"
    return f"<{name}{which} cpuset='{cpus}'/>".encode()


def _check_numatune(domain: Element) -> None:
    """Where the vCPUs are numad's to place, the memory is, too, unless <numatune> says otherwise;
    where they are pinned, it has to say: without nodes, "default" is "static" then, which needs
    some (virDomainNumatuneSet). Raises DomainXMLError.
    """
    vcpu, memory = domain.find("vcpu"), domain.find("numatune/memory")
    if (
        vcpu is not None
        and vcpu.attributes.get("placement") == "auto"
        and memory is not None
        and {"mode", "placement"} & memory.attributes.keys()
        and "nodeset" not in memory.attributes
        and memory.attributes.get("placement", "default") == "default"
    ):
        raise DomainXMLError(
            "<vcpu placement='auto'> has to become a list of CPUs on this host of several kinds,"
            " and <memory> of <numatune> says nothing of nodes for that case",
            "write placement='auto' into that <memory>, or a nodeset",
        )


def _count(element: Element | None, default: int) -> int:
    if element is None:
        return default
    text = element.content
    try:
        return libvirt_number(text, MOST_THREADS)
    except ValueError:
        what = f"<{element.name}> is not a number of threads: {shown(text, 40)!r}"
        raise DomainXMLError(what, f"QEMU has up to {MOST_THREADS}") from None


def _iothreads(domain: Element) -> list[int]:
    """The ids of a domain's I/O threads: those of <iothreadids>, and the lowest free ones up to the
    number in <iothreads> (virDomainIOThreadIDArrayInit).
    """
    listed = domain.find("iothreadids")
    threads = listed.find_all("iothread") if listed else []
    if len(threads) > MOST_THREADS:
        raise DomainXMLError(
            f"<iothreadids> has {len(threads)} threads", f"up to {MOST_THREADS} can be pinned"
        )
    try:
        ids = {libvirt_number(thread.attributes.get("id", ""), 0xFFFFFFFF) for thread in threads}
    except ValueError as error:
        raise DomainXMLError(f"<iothread id>: {error}", "libvirt refuses that too") from None
    free = [number for number in range(1, MOST_THREADS + 1) if number not in ids]
    number = domain.find("iothreads")
    count = _count(number, 0) if number and number.content else 0  # empty is none (virXPathString)
    missing = max(0, count - len(ids))
    return sorted([*ids, *free[:missing]])
