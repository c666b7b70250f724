# SPDX-License-Identifier: LGPL-2.1-or-later
"""The Debian package on a host as an operator has it: installed by dpkg, with systemd, its units
enabled, and libvirtd under AppArmor.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import pytest

from kvmarm_plugin.domain.levelling import LIBRARY, NAMESPACE

from ..deb.build import build
from ..deb.chroot import to_build
from .guest import Guest, domain_xml
from .host import Host, HostSpec
from .preload import build_library

pytestmark = pytest.mark.slow

_HERE = Path(__file__).parent
_PROFILES = _HERE.parent / "hosts"
_BURST = 200
_EDITS = 20
_ROUNDS = 20
_PATIENCE = 120.0  # seconds for the agent to come to something; it takes one, or less


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with to_build("trixie") as chroot:
        return build(chroot, tmp_path_factory.mktemp("package"))


def _install(host: Host, package: Path) -> None:
    host.put(package, "/root/kvmarm.deb")
    host.run("DEBIAN_FRONTEND=noninteractive dpkg --install /root/kvmarm.deb", timeout=300)


@pytest.fixture(scope="module")
def host(package: Path) -> Iterator[Host]:
    with Host(HostSpec(suite="trixie-systemd", name="alpha")) as booted:
        _install(booted, package)
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
    # What it takes while nothing happens: for people, and no promise.
    idle = host.run(
        "pid=$(systemctl show --property=MainPID --value kvmarm-agent.service);"
        " woken() { cat /proc/$pid/task/*/status | awk '/^voluntary/ {n += $2} END {print n}'; };"
        " sleep 5; before=$(woken); sleep 20;"
        " echo agent: $(($(woken) - before)) wake-ups in 20 s, $(grep VmRSS /proc/$pid/status)"
    )
    print(idle.stdout)


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


_VIRT_INSTALL = (
    "virt-install --memory 64 --vcpus 1 --disk none --network none --graphics none --osinfo generic"
    " --noautoconsole --features acpi=off --boot kernel=/var/lib/lab/ticker.img"
)
_MEDIUM = "/var/lib/libvirt/images/medium.iso"
_PHASE = f"--cdrom {_MEDIUM}"


@pytest.fixture(scope="module")
def _medium(host: Host) -> None:
    host.run(f"truncate --size 1M {_MEDIUM}")


def _stored(host: Host, name: str) -> str:
    return host.run(f"cat /etc/libvirt/qemu/{name}.xml").stdout


def test_virt_install(host: Host) -> None:
    host.run(f"{_VIRT_INSTALL} --name installed --cpu host-passthrough --import")
    _is_judged_rightly(host, "installed")


@pytest.mark.usefixtures("_medium")
def test_virt_install_with_an_install_phase(host: Host) -> None:
    """It starts a transient guest that installs, and defines what is to be started after it."""
    host.run(f"{_VIRT_INSTALL} --name phased {_PHASE}")
    assert "<on_reboot>destroy<" in host.run("virsh dumpxml phased").stdout
    _is_judged_rightly(host, "phased")
    _until(host, "kvmarm show --inactive phased")
    assert "<on_reboot>restart<" in _stored(host, "phased")
    host.run("virsh destroy phased")
    Guest(host, "phased").start()
    _is_judged_rightly(host, "phased")


@pytest.mark.usefixtures("_medium")
def test_virt_install_of_host_model(host: Host) -> None:
    """It starts what it has never defined: that is refused, and nothing is left of it. As
    docs/managers/virt-install.md has it, it works.
    """
    command = f"{_VIRT_INSTALL} --cpu host-model"
    refused = host.run(f"{command} --name wished --import", check=False)
    assert refused.rc != 0
    assert "kvmarm" in refused.stderr + refused.stdout
    assert Guest(host, "wished").state() == "absent"
    host.run(f"{command} --name wished --import --print-xml >/root/wished.xml")
    host.run("kvmarm define /root/wished.xml && virsh start wished")
    _is_judged_rightly(host, "wished")

    host.run(
        f"uuid=$(cat /proc/sys/kernel/random/uuid); for step in 1 2; do {command} --name phases"
        f" --uuid $uuid {_PHASE} --print-xml $step >/root/phase-$step.xml || exit; done"
    )
    host.run("kvmarm create /root/phase-1.xml && kvmarm define /root/phase-2.xml")
    _is_judged_rightly(host, "phases")
    assert "<on_reboot>destroy<" in host.run("virsh dumpxml phases").stdout
    host.run("virsh destroy phases && virsh start phases")
    assert "<on_reboot>restart<" in host.run("virsh dumpxml phases").stdout
    _is_judged_rightly(host, "phases")
    both = host.run(f"{command} --name both {_PHASE} --print-xml | kvmarm define -", check=False)
    assert both.rc == 1, both.stderr
    for name in ("wished", "phases", "phased"):
        host.run(f"virsh destroy {name}; virsh undefine --nvram {name}", check=False)


@pytest.mark.parametrize("program", ["nova", "terraform", "vagrant"])
def test_what_other_programs_do(host: Host, program: str) -> None:
    """By their calls of libvirt, whatever they do to definitions; docs/managers/ says what."""
    host.put(_HERE / "managers.py", "/root/managers.py")
    for when in ("first", "again"):
        host.run(f"python3 /root/managers.py {program} {when} {program}", _of_program(program))
        _is_judged_rightly(host, program)
        _until(host, f"kvmarm show --inactive {program}")
    name = f"{program}-wish"
    refused = host.run(
        f"python3 /root/managers.py {program} first {name}",
        _of_program(name, "<cpu mode='host-model'/>"),
        check=False,
    )
    assert refused.rc == 1
    assert "kvmarm" in refused.stderr, refused.stderr
    for each in (program, name):
        Guest(host, each).destroy()


def _of_program(name: str, cpu: str = "<cpu mode='host-passthrough'/>") -> str:
    uuid = uuid5(NAMESPACE_URL, name)
    return domain_xml(name, cpu, "").replace("<memory", f"<uuid>{uuid}</uuid><memory", 1)


def test_edits_beside_it_are_kept(host: Host) -> None:
    """Each adds a word; every other one asks for host-model, too."""
    xml = domain_xml("edited", "<cpu mode='host-model'/>", "")
    Guest(host, "edited").define(xml.replace("<memory", "<title>0</title><memory", 1))
    _until(host, _is_concrete("edited"))
    host.put(
        b"#!/usr/bin/python3\nimport os, re, sys\ntext = open(sys.argv[1]).read()\n"
        b"number = int(re.search('<title>.*?([0-9]+)</title>', text)[1]) + 1\n"
        b"text = text.replace('</title>', f' {number}</title>')\n"
        b"if number % 2:\n"
        b"    text = re.sub('<cpu [^/>]*/>|<cpu .*?</cpu>', \"<cpu mode='host-model'/>\", text,"
        b" count=1, flags=re.S)\n"
        b"open(sys.argv[1], 'w').write(text)\n",
        "/root/editor",
        0o755,
    )
    # virsh itself looks whether the definition is still the one that was edited.
    host.run(
        f"for i in $(seq {_EDITS}); do"
        " until yes n | EDITOR=/root/editor virsh edit edited >/root/edit.log 2>&1; do :; done;"
        " done",
        timeout=300,
    )
    _until(host, _is_concrete("edited"))
    _until(host, "kvmarm show --inactive edited")
    words = " ".join(map(str, range(_EDITS + 1)))
    lost = f"<title>{words}</title>" not in _stored(host, "edited")
    assert not lost or _collisions(host, "edited") > 0, _stored(host, "edited")


def _collisions(host: Host, names: str) -> int:
    time.sleep(3)  # what is seen of one takes two
    said = host.run("journalctl --no-pager --unit kvmarm-agent.service").stdout
    return len(re.findall(rf"\b{names}: COLLISION", said))


def test_every_collision_is_reported(host: Host) -> None:
    xml = domain_xml("raw", "<cpu mode='host-model'/>", "")
    uuid = "<uuid>4dea22b3-1d52-d8f3-2516-782e98ab3fa1</uuid><title>TITLE</title>"
    host.put(_HERE / "collide.py", "/root/collide.py")
    said = json.loads(
        host.run(
            f"python3 /root/collide.py {_ROUNDS}",
            xml.replace("<memory", f"{uuid}<memory", 1),
            timeout=400,
        ).stdout
    )
    reported = _collisions(host, "raw")
    print(said, "reported", reported)
    assert reported >= said["lost"]


@pytest.mark.parametrize(
    ("cpu", "policy"),
    [
        ("<cpu mode='host-model'/>", "record"),
        ("<cpu mode='host-passthrough'/>", "record"),
        ("<cpu mode='host-passthrough'/>", "pin"),
    ],
    ids=["resolved", "recorded", "pinned"],
)
def test_the_agent_is_killed_at_every_step(host: Host, cpu: str, policy: str) -> None:
    host.put(_HERE / "killed.py", "/root/killed.py")
    host.run("systemctl stop kvmarm-agent.service")
    try:
        xml = domain_xml("steps", cpu, "")
        done = host.run(
            f"python3 /root/killed.py steps {policy}",
            xml.replace("<memory", "<title>kept</title><memory", 1),
            timeout=400,
        )
    finally:
        host.run("virsh undefine steps", check=False)
        host.run("systemctl start kvmarm-agent.service")
    said = json.loads(done.stdout)
    print(said)
    assert said["killed"] > 5
    assert 0 < said["with_record"] < said["killed"]


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
    assert not _collisions(host, "burst-[0-9]+")


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


def test_upgrade_day(package: Path) -> None:
    """Guests of a host start with it, by themselves, on a kernel that gives them more."""
    before = HostSpec(suite="trixie-systemd", name="beta", cpu="max", append="arm64.nobti")
    guests = {
        "resolved": "<cpu mode='host-model'/>",
        "passthrough": "<cpu mode='host-passthrough'/>",
    }
    host = Host(before, keeps_disk=True)
    try:
        host.boot(timeout=400)
        _install(host, package)
        for name, cpu in guests.items():
            guest = Guest(host, name).define(domain_xml(name, cpu, ""))
            _until(host, f"kvmarm show --inactive {name}")
            host.run(f"virsh autostart {name}")
            guest.start().wait_for("guest: tick 2")
        assert {_bti(host, name, "") for name in guests} == {0}
        for name in guests:
            host.run(f"virsh destroy {name} && rm /var/log/lab/{name}.log")
        host.boot_again(replace(before, append=""), timeout=400)
        for name in guests:
            Guest(host, name).wait_for("guest: tick 2")
        _until(host, "systemctl is-active kvmarm-agent.service")
        _until(host, 'test -z "$(ls /run/kvmarm/marks)"')
        for name in guests:
            assert "yes" in host.run(f"kvmarm check {name}").stdout
            assert {_bti(host, name, options) for options in ("", "--inactive")} == {1}
        assert "2 yes" in host.run("kvmarm status").stdout
    finally:
        host.stop()


def _bti(host: Host, name: str, options: str) -> int:
    """What is recorded of the guest's ID_AA64PFR1_EL1.BT."""
    shown = json.loads(host.run(f"kvmarm show --json {options} {name}").stdout)
    return int(shown["target"]["registers"]["ID_AA64PFR1_EL1"], 0) & 0xF


def test_a_levelled_guest_is_confined(host: Host, tmp_path: Path) -> None:
    """AppArmor lets QEMU load libkvmarm-level, which is no secure execution to ld.so(8), and the
    library does what it is told.
    """
    host.put(build_library(tmp_path), f"/usr/lib/aarch64-linux-gnu/{LIBRARY}")
    psci = "1 6030000000140000=10001"  # PSCI_VERSION 1.1 of 1.1 and more
    level = (
        f"<qemu:commandline xmlns:qemu='{NAMESPACE}'><qemu:arg value='-object'/>"
        f"<qemu:arg value='secret,id=kvmarm-level,file=/proc/{LIBRARY}/is-not-loaded'/>"
        f"<qemu:env name='LD_PRELOAD' value='{LIBRARY}'/>"
        f"<qemu:env name='KVMARM_LEVEL' value='{psci}'/></qemu:commandline>"
    )
    guest = Guest(host, "levelled").define(domain_xml("levelled", extra=level)).start()
    guest.wait_for("guest: tick 2")
    facts = host.run(
        "read pid < /run/libvirt/qemu/levelled.pid; cat /proc/$pid/attr/current;"
        f" grep --max-count=1 --only-matching {LIBRARY} /proc/$pid/maps"
    ).stdout
    assert facts.startswith("libvirt-")
    assert LIBRARY in facts
    broken = psci.replace("10001", "90001")
    guest.destroy()
    guest.define(domain_xml("levelled", extra=level.replace(psci, broken)))
    failed = host.run(["virsh", "start", "levelled"], check=False)
    assert "kvmarm-level: KVM on this host does not let register" in failed.stderr
    guest.destroy()
    denied = host.run("journalctl --dmesg --no-pager --grep kvmarm-level", check=False).stdout
    assert "DENIED" not in denied
