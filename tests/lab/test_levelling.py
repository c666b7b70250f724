# SPDX-License-Identifier: LGPL-2.1-or-later
"""Levelled guests: they move between hosts that give different vCPUs, and back, through reset, save
and restore and cold starts, and see everywhere just what was promised. Where anything of that
cannot be kept, QEMU does not start, hook or no hook.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from .guest import LINUX_KERNEL, REGISTER_READER, Guest, console_path, domain_xml
from .host import Host
from .pair import migrate
from .test_travel import record, ticks_on
from .truth_table import HOOK, LEVELLED, WORKS, Case, Table, make_levelled_pool, sees_otherwise

LIBRARY = "/usr/lib/aarch64-linux-gnu/libkvmarm-level.so.1"
QEMU = "/usr/bin/qemu-system-aarch64"
_FIRMWARE_SECONDS = 300.0  # and then Linux, emulated in an emulated machine


def _specs(case: Case) -> tuple[object, object]:
    return replace(case.first, name="alpha"), replace(case.second, name="beta")


QUICK, *SLOW = LEVELLED
pytestmark = pytest.mark.parametrize(
    "hosts",
    [
        pytest.param(_specs(case), id=case.name.replace(" ", "-"), marks=marks)
        for case, marks in [(QUICK, []), *((case, [pytest.mark.slow]) for case in SLOW)]
    ],
    indirect=True,
)


@pytest.fixture(scope="module")
def pair(hosts: tuple[Host, Host], wheel: Path) -> tuple[Host, Host]:
    """Two hosts in a levelled pool, with the hook."""
    make_levelled_pool(hosts, wheel)
    for host in hosts:
        host.run("kvmarm hook install")
    return hosts


def _case(hosts: tuple[Host, Host]) -> Case:
    return next(case for case in LEVELLED if _specs(case) == tuple(host.spec for host in hosts))


def _define(host: Host, name: str, machine: str, **more: object) -> Guest:
    xml = domain_xml(name, "<cpu mode='host-model'/>", "", machine=machine, **more)  # type: ignore[arg-type]
    host.run("kvmarm define -", xml)
    return Guest(host, name)


def test_hook_check_and_migration_agree(hosts: tuple[Host, Host], wheel: Path) -> None:
    rows = Table(wheel).run_on(hosts, _case(hosts))
    assert [row for row in rows if (row.hook, row.check, row.really) != (WORKS,) * 3] == []
    assert len(rows) == 2


def test_a_life(pair: tuple[Host, Host]) -> None:
    """Of two vCPUs: there, reset, home, saved, restored there, shut off, and cold on the other."""
    alpha, beta = pair
    machine = _case(pair).guests[0].machine
    guest = _define(alpha, "life", machine, vcpus=2).start()
    ticks_on(guest)
    promised = record(guest)["target"]
    for step in ("reset", "migrate", "reset", "migrate", "save"):
        here, there = (alpha, beta) if guest.host is alpha else (beta, alpha)
        if step == "migrate":
            migrate(guest, there)
            guest = guest.on(there)
        elif step == "reset":
            here.run(f"virsh reset {guest.name}")
        else:
            here.run(f"virsh save {guest.name} /tmp/life.save")
            there.put(here.get("/tmp/life.save"), "/tmp/life.save")
            there.run("virsh restore /tmp/life.save")
            guest = guest.on(there)
        ticks_on(guest)
        assert record(guest)["target"] == promised, step
        assert guest.host.run(f"kvmarm check {guest.name}", check=False).rc == 0
    guest.destroy()
    # Cold on the other: the same XML gives the same vCPU, by which the guest may come back.
    other = _define(beta, "cold", machine)
    assert record(other)["target"] == promised
    ticks_on(other.start())
    migrate(other, alpha)
    ticks_on(other.on(alpha))
    for host in pair:
        other.on(host).destroy()


@pytest.mark.slow
def test_uefi(pair: tuple[Host, Host]) -> None:
    """Linux, with two vCPUs, which the firmware starts: there, reset through the firmware, home."""
    alpha, beta = pair
    xml = domain_xml(
        "uefi",
        "<cpu mode='host-model'/>",
        "<acpi/>",
        kernel=LINUX_KERNEL,
        vcpus=2,
        machine=_case(pair).guests[0].machine,
    )
    xml = xml.replace("<os>", "<os firmware='efi'>").replace(
        "    <kernel>",
        "    <firmware><feature enabled='no' name='secure-boot'/></firmware>\n    <kernel>",
    )
    alpha.run("kvmarm define -", xml.replace("'MiB'>128<", "'MiB'>512<"))
    guest = Guest(alpha, "uefi").start()
    guest.wait_for("UEFI firmware", _FIRMWARE_SECONDS)
    guest.wait_for("guest: tick 2", _FIRMWARE_SECONDS)
    promised = record(guest)["target"]
    migrate(guest, beta)
    guest = guest.on(beta)
    ticks_on(guest)
    beta.run(f"truncate --size 0 {console_path(guest.name)} && virsh reset {guest.name}")
    guest.wait_for("guest: tick 2", _FIRMWARE_SECONDS)
    assert "UEFI firmware" in guest.console()
    migrate(guest, alpha)
    guest = guest.on(alpha)
    ticks_on(guest)
    assert record(guest)["target"] == promised
    for host in pair:
        guest.on(host).destroy()


def test_a_reader_sees_what_was_promised_on_both(pair: tuple[Host, Host]) -> None:
    """Before and after a reset, there and at home again."""
    alpha, beta = pair
    for source, hops in ((alpha, ()), (beta, ()), (alpha, (beta, alpha)), (beta, (alpha,))):
        guest = _define(source, "reader", _case(pair).guests[0].machine, kernel=REGISTER_READER)
        source.run(["rm", "-f", f"/var/log/lab/{guest.name}.log"])
        source.run(f"virsh --quiet start --paused {guest.name}")
        promised = record(guest)["target"]
        guest.host.run(f"virsh reset {guest.name}")
        for host in hops:
            host.run(["rm", "-f", f"/var/log/lab/{guest.name}.log"])
            migrate(guest, host)
            guest = guest.on(host)
        assert sees_otherwise(guest, promised) == ""
        for host in pair:
            guest.on(host).destroy()


def test_nothing_runs_at_another_level(pair: tuple[Host, Host]) -> None:
    """Without the hook: QEMU itself ends, with a line that says why."""
    alpha, _ = pair
    guest = _define(alpha, "broken", _case(pair).guests[0].machine)
    xml = alpha.run(f"virsh dumpxml --inactive {guest.name}").stdout
    text = _text_in(xml)
    midr = next(word for word in text.split() if word.startswith("603000000013c000="))
    broken = {
        "is of another version": text.replace("1 ", "2 ", 1),
        "cannot read KVMARM_LEVEL": text + " x",
        "does not let register 603000000013c030": re.sub(
            r"603000000013c030=\S+", "603000000013c030=ffffffffffffffff", text
        ),
        "register 603000000013cfff": text.replace(midr, f"{midr} 603000000013cfff=1"),
    }
    alpha.run(f"mv {HOOK} /tmp/hook")
    try:
        for said, wrong in broken.items():
            failed = _start(alpha, xml.replace(text, wrong))
            assert "kvmarm-level: " in failed, (said, failed)
            assert said in failed
        alpha.run(f"mv {LIBRARY} /tmp/library && ldconfig")
        try:
            failed = _start(alpha, xml)
        finally:
            alpha.run(f"mv /tmp/library {LIBRARY} && ldconfig")
        assert "Unable to read /proc/libkvmarm-level.so.1/is-not-loaded" in failed
    finally:
        alpha.run(f"mv /tmp/hook {HOOK}")
    guest.destroy()


def test_secure_execution(pair: tuple[Host, Host]) -> None:
    """ld.so(8) loads no library for a program that is more privileged than its caller: QEMU then
    says so, and ends.
    """
    alpha, _ = pair
    guest = _define(alpha, "secure", _case(pair).guests[0].machine)
    text = _text_in(alpha.run(f"virsh dumpxml --inactive {guest.name}").stdout)
    guest.destroy()
    command = (
        f"LD_PRELOAD=libkvmarm-level.so.1 KVMARM_LEVEL='{text}' %s -M none -nodefaults"
        " -display none -monitor stdio"
        " -object secret,id=kvmarm-level,file=/proc/libkvmarm-level.so.1/is-not-loaded"
    )
    alpha.run(f"cp {QEMU} /tmp/secure && chmod 4755 /tmp/secure")
    plain = _as_nobody(alpha, command % QEMU)
    secure = _as_nobody(alpha, command % "/tmp/secure")
    assert plain.rc == 0, plain.stderr
    assert secure.rc != 0
    assert "Unable to read /proc/libkvmarm-level.so.1/is-not-loaded" in secure.stderr


def _as_nobody(host: Host, command: str):  # type: ignore[no-untyped-def]
    return host.run(
        f"echo quit | setpriv --reuid=65534 --regid=65534 --clear-groups sh -c"
        f" {shlex.quote(command)}",
        check=False,
    )


def _text_in(xml: str) -> str:
    found = re.search(r"<qemu:env name='KVMARM_LEVEL' value='([^']+)'/>", xml)
    assert found, xml
    return found[1]


def _start(host: Host, xml: str) -> str:
    """Define and start a domain that does not start; what is said, with the end of QEMU's log."""
    host.run("cat > /tmp/broken.xml && virsh --quiet define /tmp/broken.xml", xml)
    started = host.run("virsh start broken", check=False)
    assert started.rc != 0
    return started.stderr + Guest(host, "broken").qemu_log()
