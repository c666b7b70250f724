# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every way in which a guest travels through space and time, with the hook in place: the record
arrives as it was, and the guest ticks on. And the guests that the hook does not let arrive.

Two equal hosts are shared by all tests; each has a guest of its own.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any, NamedTuple

import pytest

from .errors import LabTimeout
from .guest import MIDR, REGISTER_READER, Guest, domain_xml
from .host import Host, HostSpec, Result
from .pair import migrate
from .truth_table import HOOK, sees_otherwise

HOST_MODEL = "<cpu mode='host-model'/>"
DISK = (
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
    "<source file='/var/lib/libvirt/images/{name}.qcow2'/><target dev='vda' bus='virtio'/></disk>"
)


pytestmark = pytest.mark.parametrize(
    "hosts", [(HostSpec(name="alpha"), HostSpec(name="beta"))], ids=["equal"], indirect=True
)


class Equals(NamedTuple):
    alpha: Host
    beta: Host


@pytest.fixture(scope="module")
def pair(hosts: tuple[Host, Host]) -> Equals:
    for host in hosts:
        host.run("kvmarm hook install")
    return Equals(*hosts)


def resolve(host: Host, name: str, disk: bool = False, **domain: Any) -> Guest:
    """A host-model guest, defined by kvmarm."""
    xml = domain_xml(name, HOST_MODEL, "", **domain)
    if disk:
        host.run(
            "mkdir -p /var/lib/libvirt/images && qemu-img create -q -f qcow2"
            f" /var/lib/libvirt/images/{name}.qcow2 64M"
        )
        xml = xml.replace("<memballoon", DISK.format(name=name) + "<memballoon")
    host.run("kvmarm define -", xml)
    return Guest(host, name)


def record(guest: Guest) -> dict[str, Any]:
    """What is recorded of a guest, in whichever of its definitions counts."""
    found = json.loads(guest.host.run(f"kvmarm show --json {guest.name}").stdout)
    return {name: found[name] for name in ("target", "intent", "origin", "home")}


def ticks_on(guest: Guest, timeout: float = 60) -> None:
    """Wait until the guest counts on."""
    start, deadline = guest.ticks(), time.monotonic() + timeout
    while guest.ticks() < start + 2:
        if time.monotonic() > deadline:
            raise LabTimeout(
                f"{guest.name} on {guest.host!r} is {guest.state()}, and stays at tick"
                f" {start}{guest.qemu_log()}"
            )
        time.sleep(0.5)


# -- to another host -----------------------------------------------------------------------------


def test_live(pair: Equals) -> None:
    guest = resolve(pair.alpha, "live").start()
    guest.wait_for("guest: tick 2")
    before = record(guest)
    migrate(guest, pair.beta)
    moved = guest.on(pair.beta)
    ticks_on(moved)
    assert record(moved) == before
    # And back, over the definition that has stayed there.
    migrate(moved, pair.alpha, "--p2p")
    ticks_on(guest)
    assert record(guest) == before
    assert int(guest.wait_for(MIDR)[1], 16) == int(before["target"]["registers"]["MIDR_EL1"], 16)
    guest.destroy()


def test_the_registers_arrive(pair: Equals) -> None:
    """A guest that arrives before its first instruction reads there what its record says."""
    reader = resolve(pair.alpha, "registers", kernel=REGISTER_READER)
    pair.alpha.run("virsh --quiet start --paused registers")
    target = record(reader)["target"]
    migrate(reader, pair.beta)
    assert sees_otherwise(reader.on(pair.beta), target) == ""
    for host in pair:
        reader.on(host).destroy()


@pytest.mark.slow
def test_live_and_persistent(pair: Equals) -> None:
    """The definition that comes along is as good as the guest: it starts there when the guest is
    gone.
    """
    guest = resolve(pair.alpha, "persistent").start()
    guest.wait_for("guest: tick 2")
    before = record(guest)
    migrate(guest, pair.beta, "--persistent --undefinesource")
    moved = guest.on(pair.beta)
    ticks_on(moved)
    assert record(moved) == before
    pair.beta.run("virsh destroy persistent")
    assert record(moved) == before
    moved.start().wait_for("guest: tick 2")
    moved.destroy()


def test_offline(pair: Equals) -> None:
    guest = resolve(pair.alpha, "offline")
    before = record(guest)
    pair.alpha.run(
        "virsh migrate --offline --persistent --undefinesource offline qemu+tcp://beta/system"
    )
    moved = guest.on(pair.beta)
    assert (guest.state(), moved.state(), record(moved)) == ("absent", "shut off", before)
    moved.start().wait_for("guest: tick 2")
    moved.destroy()


# -- to another time -----------------------------------------------------------------------------


@pytest.mark.slow
def test_save_and_restore(pair: Equals) -> None:
    guest = resolve(pair.alpha, "saved").start()
    guest.wait_for("guest: tick 2")
    before = record(guest)
    pair.alpha.run(
        "virsh save saved /tmp/saved.img && virsh restore /tmp/saved.img && rm /tmp/saved.img"
    )
    ticks_on(guest)
    assert record(guest) == before
    guest.destroy()


def test_managed_save_and_start(pair: Equals) -> None:
    guest = resolve(pair.alpha, "managed").start()
    guest.wait_for("guest: tick 2")
    before = record(guest)
    pair.alpha.run("virsh managedsave managed && virsh start managed")
    ticks_on(guest)
    assert record(guest) == before
    guest.destroy()


@pytest.mark.slow
def test_a_snapshot_and_back(pair: Equals) -> None:
    """With a disk in qcow2; without one libvirt makes no internal snapshot."""
    guest = resolve(pair.alpha, "snapshot", disk=True).start()
    guest.wait_for("guest: tick 2")
    before = record(guest)
    pair.alpha.run("virsh snapshot-create-as snapshot then")
    ticks_on(guest)
    for state in ("running", "shut off"):
        if state == "shut off":
            pair.alpha.run("virsh destroy snapshot")
        pair.alpha.run("virsh snapshot-revert snapshot then")
        ticks_on(guest)
        assert record(guest) == before
        counted = [int(tick) for tick in re.findall(r"guest: tick (\d+)\r?\n", guest.console())]
        assert counted != sorted(counted), "it went on, and not back"
    guest.destroy()


# -- what the hook does not let arrive -----------------------------------------------------------


def try_to_start(host: Host, name: str, pattern: str, replacement: str) -> tuple[Guest, Result]:
    """Define a guest whose record was changed by hand, and start it."""
    guest = resolve(host, name)
    xml = host.run(f"virsh dumpxml --inactive {name}").stdout
    edited, count = re.subn(pattern, replacement, xml)
    assert count >= 1
    guest.define(edited)
    result = host.run(f"virsh start {name}", check=False)
    assert guest.state() == ("shut off" if result.rc else "running")
    return guest, result


@pytest.mark.parametrize(
    ("name", "pattern", "replacement", "reason"),
    [
        (
            "other-midr",
            "MIDR_EL1=0x414fd0c1",
            "MIDR_EL1=0x413fd0c1",
            "MIDR_EL1.Variant (major revision",
        ),
        pytest.param(
            "other-clock",
            "CNTFRQ_EL0=0x[0-9a-f]+",
            "CNTFRQ_EL0=0x17d7840",
            "CNTFRQ_EL0",
            marks=pytest.mark.slow,
        ),
        ("broken", "MIDR_EL1=0x", "MIDR_EL1=?", "record is broken"),
        pytest.param(
            "newer",
            "urn:kvmarm-plugin:target:2",
            "urn:kvmarm-plugin:target:3",
            "record is of version 3; this kvmarm knows versions 1 and 2",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_record_that_does_not_fit_starts_with_a_mark_and_does_not_arrive(
    pair: Equals, name: str, pattern: str, replacement: str, reason: str
) -> None:
    guest, result = try_to_start(pair.alpha, name, pattern, replacement)
    assert result.rc == 0, result.stderr
    pair.alpha.run(f"cat /run/kvmarm/marks/$(virsh domuuid {name})")
    result = migrate(guest, pair.beta, check=False)
    assert "Hook script execution failed" in result.stderr
    assert f"kvmarm: {name} cannot run on this host as it was promised" in result.stderr
    assert reason in result.stderr
    guest.destroy()


def test_a_guest_without_a_record_is_none_of_our_business(pair: Equals) -> None:
    guest = Guest(pair.alpha, "plain").define(domain_xml("plain")).start()
    xml = pair.alpha.run("virsh dumpxml plain").stdout
    for operation in (
        "prepare",
        "migrate",
        "restore",
        "start",
        "started",
        "stopped",
        "release",
        "reconnect",
        "attach",
    ):
        result = pair.alpha.run(f"{HOOK} plain {operation} begin -", xml)
        assert (result.stdout, result.stderr) == ("", ""), operation
    guest.wait_for("guest: tick 2")
    migrate(guest, pair.beta)
    ticks_on(guest.on(pair.beta))
    for host in pair:
        guest.on(host).destroy()
