# SPDX-License-Identifier: LGPL-2.1-or-later
"""A record is true for a guest's whole life: lives on two hosts, with renewal at work on both, and
with the hook alone.

`python3 -m tests.lab.lives` runs them all; docs/truth-table.md has what came out.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from kvmarm_plugin.judge.finding import REFUSES

from .guest import Guest, domain_xml
from .host import Host, HostSpec
from .lives import CASES, COLD, HOST_MODEL, RESTART, Lives, as_foretold
from .pair import migrate
from .truth_table import WORKS

PROFILES = Path(__file__).parents[1] / "hosts"

QUICK = ("moved there", *COLD)


def _run(wheel: Path, name: str, kinds: tuple[str, ...], renewal: bool) -> list[str]:
    """What really became of these lives. Hook and check have foretold it."""
    lives = Lives(wheel)
    (case,) = (case for case in CASES if case.name == name)
    lives.run(case, kinds, renewal)
    assert [row for row in lives.rows if not as_foretold(*row)] == []
    return [row.really for _, _, row in lives.rows]


def test_the_way_home(wheel: Path) -> None:
    """Of a guest that was moved, and of one that booted where it has more than at home."""
    assert _run(wheel, "bti", QUICK, renewal=True) == [WORKS, REFUSES]


@pytest.mark.slow
@pytest.mark.parametrize("case", [case.name for case in CASES])
def test_every_life(wheel: Path, case: str) -> None:
    _run(wheel, case, (), renewal=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["bti", "trixie-sid"])
def test_with_the_hook_alone(wheel: Path, case: str) -> None:
    assert _run(wheel, case, QUICK, renewal=False)[1] == REFUSES


# -- arrivals that are warned of, and starts after arrivals that were none -------------------------

_CLOCKS = (HostSpec(name="alpha"), HostSpec(name="beta", cntfrq=25_000_000))


def _resolved(host: Host, name: str) -> Guest:
    host.run("kvmarm define -", domain_xml(name, HOST_MODEL, ""))
    return Guest(host, name)


def _has_mark(guest: Guest) -> bool:
    uuid = guest.host.run(f"virsh domuuid {guest.name}").stdout.strip()
    return guest.host.run(f"test -e /run/kvmarm/marks/{uuid}", check=False).rc == 0


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [_CLOCKS], ids=["clocks"], indirect=True)
def test_what_lets_a_guest_pass(hosts: tuple[Host, Host]) -> None:
    """A policy that warns, in migration and in restore, and an operator, once."""
    alpha, beta = hosts
    for host in hosts:
        host.run("kvmarm hook install")
    guest = _resolved(alpha, "warned").start()
    guest.wait_for("guest: tick 2")
    assert "kvmarm allow warned" in migrate(guest, beta, check=False).stderr
    beta.run("kvmarm allow warned")
    migrate(guest, beta)
    there = guest.on(beta)
    there.wait_for("guest: tick 2")
    beta.run("virsh save warned /tmp/warned.img")
    assert "kvmarm allow" in beta.run("virsh restore /tmp/warned.img", check=False).stderr
    beta.run("mkdir -p /etc/kvmarm && echo 'on-restore: warn' >/etc/kvmarm/policy.yaml")
    beta.run("virsh restore /tmp/warned.img")
    beta.run("virsh destroy warned")
    guest.start().wait_for("guest: tick 2")
    assert migrate(guest, beta, check=False).rc != 0
    beta.run("echo 'on-migrate: warn' >/etc/kvmarm/policy.yaml")
    migrate(guest, beta)
    there.wait_for("guest: tick 2")
    for host in hosts:
        guest.on(host).destroy()


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [_CLOCKS], ids=["clocks"], indirect=True)
def test_a_cold_start_is_told_from_an_arrival(hosts: tuple[Host, Host]) -> None:
    """Its definition may have come a moment ago, or libvirt may have refused the guest behind the
    hook. Nothing keeps it off a host with another clock, where it boots; and the host knows that.
    """
    alpha, beta = hosts
    for host in hosts:
        host.run("kvmarm hook install; rm -f /etc/kvmarm/policy.yaml")
    guest = _resolved(alpha, "cold").start()
    guest.wait_for("guest: tick 2")
    alpha.run("virsh destroy cold")
    beta.run("kvmarm allow cold")
    alpha.run("virsh migrate --offline --persistent cold qemu+tcp://beta/system")
    there = guest.on(beta).start()
    there.wait_for("guest: tick 2")
    assert _has_mark(there)
    assert beta.run("kvmarm check cold", check=False).rc == 1
    # It runs on both: libvirt asks the hook, and then refuses.
    guest.start().wait_for("guest: tick 2")
    beta.run("kvmarm allow cold")
    assert "already" in migrate(guest, beta, check=False).stderr
    beta.run("virsh destroy cold; rm -rf /run/kvmarm/marks")
    there.start().wait_for("guest: tick 2")
    assert _has_mark(there)
    # Renewed, it has this host's clock, and check says so.
    beta.run("kvmarm renew --once")
    assert not _has_mark(there)
    assert json.loads(beta.run("kvmarm show --json cold").stdout)["target"]["seen"][
        "CNTFRQ_EL0"
    ] == hex(25_000_000)
    beta.run("kvmarm check cold")
    for host in hosts:
        guest.on(host).destroy()


_GUESTS = [f"guest-{number}" for number in range(10)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "hosts", [(HostSpec(suite="sid", memory=4096),)], ids=["upgraded"], indirect=True
)
def test_ten_guests_start_after_an_upgrade(hosts: tuple[Host]) -> None:
    """They were resolved on the host as it was, and all start with it at once. All run, and all
    records become true.
    """
    (host,) = hosts
    host.run("kvmarm hook install")
    before = (PROFILES / "trixie-neoverse-n1.json").read_bytes()
    host.put(before, "/tmp/before.json")
    for name in _GUESTS:
        xml = domain_xml(name, HOST_MODEL, "", machine="virt-10.0")
        host.run("kvmarm define --host /tmp/before.json -", xml)
        host.run(f"virsh autostart {name}")
    host.run("setsid kvmarm renew >/tmp/renew.log 2>&1 </dev/null &")
    # As after a boot: libvirt starts its guests once a boot.
    stop, start = RESTART.rsplit("; ", 1)
    host.run(f"{stop}; rm -f /run/libvirt/qemu/autostarted; {start}", timeout=300)
    for name in _GUESTS:
        Guest(host, name).wait_for("guest: tick 2", timeout=300)
    deadline = time.monotonic() + 300
    while host.run("ls /run/kvmarm/marks").stdout:
        assert time.monotonic() < deadline, host.run("cat /tmp/renew.log").stdout
        time.sleep(1)
    here = json.loads(host.run("kvmarm probe").stdout)
    for name in _GUESTS:
        assert "yes" in host.run(f"kvmarm check {name}").stdout
        for options in ("", "--inactive"):
            shown = json.loads(host.run(f"kvmarm show --json {options} {name}").stdout)
            assert shown["target"]["machine"] == "virt-10.0"
            assert shown["target"]["registers"]["PSCI_VERSION"] == "0x10003", here["kernel"]
    for name in _GUESTS:
        Guest(host, name).destroy()
