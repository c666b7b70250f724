# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Debian package on a host as an operator has it: installed by dpkg, with systemd, its units
enabled, and libvirtd under AppArmor.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..deb.build import build
from ..deb.chroot import to_build
from .guest import Guest, domain_xml
from .host import Host, HostSpec

pytestmark = pytest.mark.slow

_PROFILES = Path(__file__).parents[1] / "hosts"
_BURST = 200
_PATIENCE = 120.0  # seconds for the agent to come to something; it takes one, or less


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with to_build("trixie") as chroot:
        package = build(chroot, tmp_path_factory.mktemp("package"))
    with Host(HostSpec(suite="trixie-systemd", name="alpha")) as booted:
        booted.put(package, "/root/kvmarm.deb")
        booted.run("DEBIAN_FRONTEND=noninteractive dpkg --install /root/kvmarm.deb")
        for name in ("trixie-neoverse-n1", "trixie-cortex-a72"):
            booted.put(_PROFILES / f"{name}.json", f"/var/lib/kvmarm/profiles/{name}.json")
        # The agent has probed the host then, which takes an emulated one its time.
        Guest(booted, "first").define(domain_xml("first", "<cpu mode='host-model'/>", ""))
        _until(booted, _is_concrete("first"))
        yield booted


def _until(host: Host, command: str) -> str:
    """What a command prints once it succeeds."""
    end = time.monotonic() + _PATIENCE
    while True:
        done = host.run(command, check=False)
        if done.rc == 0:
            return done.stdout
        if time.monotonic() > end:
            log = host.run("journalctl --no-pager --lines 40 --unit 'kvmarm*'").stdout
            pytest.fail(f"{command}: {done.stdout}{done.stderr}\n{log}")
        time.sleep(1)


def _is_concrete(names: str) -> str:
    """A command that fails while one of them asks for host-model. Intents are escaped."""
    return f"! grep \"<cpu mode='host-model'\" /etc/libvirt/qemu/{names}.xml"


def _is_judged_rightly(host: Host, name: str) -> None:
    """It has a record that is true here; another such host takes it, and another kind refuses it
    and says why.
    """
    _until(host, f"virsh metadata {name} urn:kvmarm-plugin:target:2")
    assert "yes" in host.run(f"kvmarm check {name}").stdout
    assert "yes" in host.run(f"kvmarm check {name} --host trixie-neoverse-n1").stdout
    refused = host.run(f"kvmarm check {name} --host trixie-cortex-a72", check=False)
    assert refused.rc == 3
    assert "MIDR_EL1" in refused.stdout


def test_what_the_package_has_started(host: Host) -> None:
    host.run("systemctl is-active kvmarm-agent.service kvmarm-renew.socket")
    assert host.run("readlink /etc/libvirt/hooks/qemu.d/50-kvmarm").stdout == (
        "/usr/bin/kvmarm-hook\n"
    )
    assert "libvirtd" in host.run("aa-status").stdout
    said = host.run("kvmarm doctor", check=False)
    assert said.rc == 0, said.stdout


def test_host_model_that_somebody_else_defines(host: Host) -> None:
    guest = Guest(host, "theirs").define(domain_xml("theirs", "<cpu mode='host-model'/>", ""))
    time.sleep(2)
    guest.start().wait_for("guest: tick 2")
    _is_judged_rightly(host, "theirs")
    host.run("virsh destroy theirs")
    guest.start().wait_for("guest: tick 2")


def test_a_transient_guest(host: Host) -> None:
    host.run(
        "cat >/root/brief.xml && virsh create /root/brief.xml", domain_xml("brief", features="")
    )
    _is_judged_rightly(host, "brief")


def test_virt_install(host: Host) -> None:
    host.run(
        "virt-install --name installed --memory 64 --vcpus 1 --import --disk none --network none"
        " --graphics none --osinfo generic --noautoconsole --cpu host-passthrough"
        " --features acpi=off --boot kernel=/var/lib/lab/ticker.img"
    )
    _is_judged_rightly(host, "installed")


def test_a_burst(host: Host) -> None:
    xml = domain_xml("burst-NUMBER", "<cpu mode='host-model'/>", "")
    host.put(xml.encode(), "/root/burst.xml")
    host.run(
        f"for i in $(seq {_BURST}); do sed s/NUMBER/$i/ /root/burst.xml >/root/one.xml;"
        " virsh --quiet define /root/one.xml || exit; done",
        timeout=600,
    )
    _until(host, _is_concrete("burst-*"))
    found = host.run("grep -l urn:kvmarm-plugin:target:2 /etc/libvirt/qemu/burst-*.xml | wc -l")
    assert int(found.stdout) == _BURST
    said = host.run("journalctl --no-pager --unit kvmarm-agent.service").stdout
    assert "COLLISION" not in said


def test_the_agent_is_killed_and_libvirt_restarted_under_it(host: Host) -> None:
    for turn in range(3):
        host.run("systemctl kill --signal=KILL kvmarm-agent.service")
        name = f"killed-{turn}"
        Guest(host, name).define(domain_xml(name, "<cpu mode='host-model'/>", ""))
        _until(host, _is_concrete(name))
    host.run("systemctl restart libvirtd.service")
    Guest(host, "restarted").define(domain_xml("restarted", "<cpu mode='host-model'/>", ""))
    _until(host, _is_concrete("restarted"))
    host.run("systemctl is-active kvmarm-agent.service")


def test_nothing_was_denied(host: Host) -> None:
    denied = host.run("journalctl --no-pager --boot | grep 'apparmor=.DENIED'", check=False)
    assert denied.stdout == ""
    ended = time.monotonic()
    host.run("systemctl stop kvmarm-agent.service")
    assert time.monotonic() - ended < 30


def test_removed_and_every_guest_starts(host: Host) -> None:
    host.run("dpkg --remove kvmarm", timeout=300)
    host.run("test ! -e /etc/libvirt/hooks/qemu.d/50-kvmarm")
    for name in ("theirs", "installed"):
        host.run(f"virsh destroy {name}", check=False)
        Guest(host, name).start()
    host.run("dpkg --purge kvmarm", timeout=300)
    for name in ("theirs", "installed"):
        host.run(f"virsh destroy {name}")
        Guest(host, name).start()
