# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests on hosts of two clusters keep to one of them, wherever they go: read from the kernel,
thread by thread.

On alpha the little CPUs are 0 and 1, on beta 2 and 3. Their MIDRs are sysfs's only (biglittle.py).
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from .biglittle import CORTEX_A53, CORTEX_A72, show_clusters, threads
from .guest import REGISTER_READER, Guest, domain_xml
from .host import Host, HostSpec
from .pair import migrate
from .test_travel import HOST_MODEL, ticks_on
from .truth_table import HOOK

PROFILE = "/root/profile.json"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize(
        "hosts",
        [
            (
                HostSpec(name="alpha", suite="bookworm", cores=4),
                HostSpec(name="beta", suite="bookworm", cores=4),
            )
        ],
        ids=["big-little"],
        indirect=True,
    ),
]


class Boards(NamedTuple):
    alpha: Host
    beta: Host


@pytest.fixture(scope="module")
def boards(hosts: tuple[Host, Host]) -> Boards:
    alpha, beta = hosts
    show_clusters(alpha, {range(2): CORTEX_A53, range(2, 4): CORTEX_A72})
    show_clusters(beta, {range(2): CORTEX_A72, range(2, 4): CORTEX_A53})
    for host in hosts:
        host.run(f"kvmarm hook install && kvmarm probe -o {PROFILE}")
    return Boards(alpha, beta)


def define(host: Host, name: str, vcpu: str, **domain: object) -> Guest:
    """A host-model guest with this <vcpu> and what follows it, defined by kvmarm."""
    xml = domain_xml(name, HOST_MODEL, "", **domain).replace("<vcpu>1</vcpu>", vcpu)  # type: ignore[arg-type]
    host.run(f"kvmarm define --host {PROFILE} -", xml)
    return Guest(host, name)


def keeps_to(guest: Guest, cpus: str) -> None:
    """Every thread may run on these CPUs only, and is on one."""
    first, last = map(int, cpus.split("-"))
    found = threads(guest)
    names = {thread.name for thread in found}
    assert {"CPU 0/KVM", "CPU 1/KVM", "IO iothread1"} <= names
    assert {thread.allowed for thread in found} == {cpus}, found
    assert all(first <= thread.cpu <= last for thread in found), found


def was_given_xml(guest: Guest) -> bool:
    """Whether the hook has printed something: libvirt then says so of the domain."""
    return "hook-script" in guest.host.run(f"cat /var/log/libvirt/qemu/{guest.name}.log").stdout


def test_a_guest_keeps_to_its_cluster_wherever_it_goes(boards: Boards) -> None:
    guest = define(boards.alpha, "traveller", "<vcpu>2</vcpu><iothreads>1</iothreads>").start()
    guest.wait_for("guest: tick 2")
    keeps_to(guest, "2-3")
    # Nothing has to change, nothing is said.
    for operation in ("migrate", "restore"):
        assert (
            boards.alpha.run(
                f"virsh dumpxml --migratable traveller | {HOOK} traveller {operation} begin -"
            ).stdout
            == ""
        )
    moved = guest.on(boards.beta)
    migrate(guest, boards.beta)
    ticks_on(moved)
    keeps_to(moved, "0-1")
    assert was_given_xml(moved)
    xml = boards.beta.run("virsh dumpxml traveller").stdout
    for pin in (
        "<vcpu placement='static' cpuset='0-1'>2</vcpu>",
        "<vcpupin vcpu='1' cpuset='0-1'/>",
        'cpus="0-1"',
    ):
        assert pin in xml
    assert not was_given_xml(guest)
    migrate(moved, boards.alpha)
    ticks_on(guest)
    keeps_to(guest, "2-3")
    assert "<emulatorpin cpuset='2-3'/>" in boards.alpha.run("virsh dumpxml traveller").stdout
    guest.destroy()


def test_a_definition_of_another_host(boards: Boards) -> None:
    guest = define(
        boards.alpha, "settler", "<vcpu>2</vcpu><iothreads>1</iothreads>", kernel=REGISTER_READER
    )
    xml = boards.alpha.run("virsh dumpxml --inactive settler").stdout
    guest.destroy()
    there = guest.on(boards.beta).define(xml)
    assert "in the XML 2-3, on beta 0-1, of MIDR" in boards.beta.run("kvmarm check settler").stdout
    boards.beta.run("virsh start --paused settler")
    mark = boards.beta.run("cat /run/kvmarm/marks/$(virsh domuuid settler)").stdout
    assert "pinning: in the XML 2-3, here 0-1, of MIDR 0x410fd083" in mark
    boards.beta.run("virsh destroy settler")
    boards.beta.run(f"kvmarm refresh --host {PROFILE} settler")
    boards.beta.run("virsh start --paused settler")
    assert boards.beta.run("kvmarm check settler").rc == 0
    keeps_to(there, "0-1")
    there.destroy()


@pytest.mark.parametrize(
    ("name", "vcpu", "expected"),
    [
        (
            "their-cpuset",
            "<vcpu cpuset='1'>2</vcpu>",
            {"CPU 0/KVM": "1", "CPU 1/KVM": "1", "qemu-system-aar": "1"},
        ),
        (
            "their-vcpupin",
            "<vcpu>2</vcpu><cputune><vcpupin vcpu='1' cpuset='0'/></cputune>",
            {"CPU 0/KVM": "0-1", "CPU 1/KVM": "0", "qemu-system-aar": "0-1"},
        ),
    ],
)
def test_pins_of_the_users_choose_the_cluster(
    boards: Boards, name: str, vcpu: str, expected: dict[str, str]
) -> None:
    guest = define(boards.alpha, name, vcpu, kernel=REGISTER_READER)
    boards.alpha.run(f"virsh start --paused {name}")
    allowed = {thread.name: thread.allowed for thread in threads(guest)}
    assert {thread: allowed[thread] for thread in expected} == expected
    # And by place on the other host.
    xml = boards.alpha.run(f"virsh dumpxml --migratable {name}").stdout
    printed = boards.beta.run(f"{HOOK} {name} migrate begin -", xml).stdout
    assert (
        "<vcpu placement='static' cpuset='3'>2</vcpu>"
        if "cpuset='1'" in vcpu
        else "vcpu='1' cpuset='2'/>"
    ) in printed
    guest.destroy()
