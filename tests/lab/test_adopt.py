# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that never asked for host-model, on hosts that kvmarm comes to later, and leaves again."""

from __future__ import annotations

import json

import pytest

from .guest import HOST_PASSTHROUGH, Guest, domain_xml
from .host import Host, HostSpec
from .pair import migrate

pytestmark = pytest.mark.slow

_EQUAL = (HostSpec(name="alpha"), HostSpec(name="beta"))
_UNEQUAL = (
    HostSpec(name="alpha", cpu="max", append="arm64.nosve arm64.nopauth"),
    HostSpec(name="beta", cpu="max"),
)
_CPUS = {
    "adopted-1": HOST_PASSTHROUGH,
    "adopted-2": "<cpu mode='maximum'/>",
    "adopted-3": "<cpu mode='host-passthrough'/>",
}


def _running(host: Host, name: str, cpu: str = HOST_PASSTHROUGH) -> Guest:
    """A guest as others define it, with the hook away."""
    host.run("kvmarm hook uninstall", check=False)
    guest = Guest(host, name).define(domain_xml(name, cpu, "")).start()
    guest.wait_for("guest: tick 2")
    return guest


def _cpu(guest: Guest) -> str:
    """The <cpu> that it runs with, as libvirt prints it."""
    text = guest.host.run(f"virsh dumpxml {guest.name}").stdout
    return text[text.index("<cpu ") :].partition("\n")[0]


@pytest.mark.parametrize("hosts", [_EQUAL], ids=["equal"], indirect=True)
def test_kvmarm_comes_and_goes(hosts: tuple[Host, Host]) -> None:
    """Three guests run before it comes: they are adopted while they run, one is migrated, and when
    it has gone all start.
    """
    alpha, beta = hosts
    guests = [_running(alpha, name, cpu) for name, cpu in _CPUS.items()]
    live = {guest.name: _cpu(guest) for guest in guests}
    said = alpha.run(f"kvmarm check {guests[0].name}").stdout
    assert "it has no record, and is judged as if it were adopted" in said
    for host in hosts:
        host.run("kvmarm hook install")
    assert alpha.run("kvmarm adopt --all").stdout.count("adopted; as it runs: adopted") == 3
    for guest in guests:
        assert _cpu(guest) == live[guest.name]
        assert "name='sve'" in alpha.run(f"virsh dumpxml --inactive {guest.name}").stdout
        assert "yes" in alpha.run(f"kvmarm check {guest.name}").stdout
        # QEMU has made what the kernel was asked to make again.
        live_record, stored = (
            json.loads(alpha.run(f"kvmarm show --json {options} {guest.name}").stdout)["target"]
            for options in ("", "--inactive")
        )
        for key in ("features", "registers", "reglist", "seen", "sve_lengths"):
            assert live_record[key] == stored[key], key
    migrate(guests[0], beta)
    moved = guests[0].on(beta)
    moved.wait_for(r"guest: tick \d")
    assert "yes" in beta.run(f"kvmarm check {moved.name}").stdout
    moved.destroy()
    for host in hosts:
        host.run("kvmarm hook uninstall")
    for guest in guests:
        alpha.run(f"virsh destroy {guest.name}", check=False)
        guest.start().wait_for("guest: tick 2")
    alpha.run("kvmarm forget --all --restore")
    for guest in guests:
        assert "sve" not in alpha.run(f"virsh dumpxml --inactive {guest.name}").stdout
        alpha.run(f"virsh destroy {guest.name}")
        guest.start().wait_for("guest: tick 2")
        guest.destroy()
    for host in hosts:
        host.run("rm -rf /var/lib/kvmarm/left")


@pytest.mark.parametrize("hosts", [_UNEQUAL], ids=["unequal"], indirect=True)
def test_what_its_xml_leaves_to_qemu(hosts: tuple[Host, Host]) -> None:
    """SVE there, not here: the guest is refused, and really would have died. Pinned to what it has,
    it goes.
    """
    alpha, beta = hosts
    guest = _running(alpha, "left-open")
    for host in hosts:
        host.run("kvmarm hook install")
    alpha.put(beta.run("kvmarm probe").stdout.encode(), "/tmp/beta.json")
    alpha.run("kvmarm adopt left-open")
    assert alpha.run("kvmarm check left-open --host /tmp/beta.json", check=False).rc == 3
    refused = migrate(guest, beta, check=False)
    assert refused.rc != 0
    assert "vCPU features" in refused.stderr
    beta.run("kvmarm hook uninstall")
    assert migrate(guest, beta, check=False).rc != 0
    beta.run("kvmarm hook install")
    alpha.run("virsh destroy left-open", check=False)
    guest.start().wait_for("guest: tick 2")
    assert alpha.run("kvmarm check left-open --host /tmp/beta.json").rc == 0
    migrate(guest, beta)
    moved = guest.on(beta)
    moved.wait_for("guest: tick 2")
    moved.destroy()
    guest.destroy()


@pytest.mark.parametrize("hosts", [_EQUAL], ids=["equal"], indirect=True)
def test_what_is_not_guessed_at(hosts: tuple[Host, Host]) -> None:
    """Guests that have brought their state with them, until they are started again."""
    alpha, beta = hosts
    guest = _running(alpha, "arrived")
    beta.run("kvmarm hook uninstall", check=False)
    migrate(guest, beta)
    moved = guest.on(beta)
    said = beta.run("kvmarm adopt arrived", check=False)
    assert (said.rc, "arrived with its state" in said.stdout) == (3, True)
    beta.run("virsh suspend arrived && virsh resume arrived")
    assert beta.run("kvmarm adopt arrived", check=False).rc == 3
    beta.run("virsh save arrived /tmp/arrived.img && virsh restore /tmp/arrived.img")
    assert beta.run("kvmarm adopt arrived", check=False).rc == 3
    moved.destroy()
    guest.start().wait_for("guest: tick 2")
    assert alpha.run("kvmarm adopt arrived").rc == 0
    guest.destroy()
