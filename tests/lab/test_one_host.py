# SPDX-License-Identifier: LGPL-2.1-or-later
"""One host: a host-model guest, which stock libvirt refuses to start, becomes concrete, starts, and
is what its record says.

Every test runs on each of four kinds of host, with real libvirt, QEMU and KVM. They share the host
and stand in the order of a user's day.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from lxml import etree

from kvmarm_plugin.registers.table import id_of

from ..handbook import DOCS, steps
from .guest import HELLO, LINUX_KERNEL, MIDR, REGISTER_READER, Guest, domain_xml
from .host import Host, HostSpec
from .registers import END, parse_registers
from .trace import vcpu_inits

TEMPLATES = Path(__file__).parents[2] / "xml-templates"
HOST_MODEL = "<cpu mode='host-model'/>"
FEATURE_BITS = {
    "el1_32bit": 1,
    "psci_0_2": 2,
    "pmu_v3": 3,
    "sve": 4,
    "ptrauth_address": 5,
    "ptrauth_generic": 6,
}


class Case(NamedTuple):
    """A kind of host, and the target that a host-model guest gets there."""

    suite: str
    cpu: str
    model: str
    number: int
    features: tuple[str, ...]
    aarch32: bool

    @property
    def name(self) -> str:
        return f"{self.suite}-{self.cpu}"


PAUTH = ("ptrauth_address", "ptrauth_generic")
CASES = (
    Case("bookworm", "cortex-a57", "cortex-a57", 2, ("psci_0_2", "pmu_v3"), True),
    Case("trixie", "neoverse-n1", "host", 5, ("psci_0_2", "pmu_v3"), False),
    Case("trixie", "max", "host", 5, ("psci_0_2", "pmu_v3", "sve", *PAUTH), True),
    Case("sid", "neoverse-n1", "host", 5, ("psci_0_2", "pmu_v3"), False),
)
# The kind with the most features; on the others, make test-all.
QUICK = "trixie-max"

pytestmark = pytest.mark.parametrize(
    ("hosts", "case"),
    [
        pytest.param(
            (HostSpec(case.suite, case.cpu, name=case.name),),
            case,
            id=case.name,
            marks=() if case.name == QUICK else pytest.mark.slow,
        )
        for case in CASES
    ],
    indirect=["hosts"],
    # Or pytest would boot a host for each test, as `case` is no fixture.
    scope="session",
)


PROFILE = "/root/own.json"


class Set(NamedTuple):
    """A host with the project on it, and its profile in PROFILE."""

    host: Host
    case: Case

    def kvmarm(self, arguments: str, xml: str | None = None) -> str:
        return self.host.run(f"kvmarm {arguments}", xml).stdout

    def define(self, name: str, **domain: Any) -> Guest:
        """Resolve and define a host-model guest. By the profile: to measure the host each time
        would take longer than all else.
        """
        self.kvmarm(f"define --host {PROFILE} -", domain_xml(name, HOST_MODEL, "", **domain))
        return Guest(self.host, name)

    def record(self, name: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.kvmarm(f"show --json {name}"))
        return record


@pytest.fixture(scope="module")
def measured(hosts: tuple[Host]) -> Host:
    hosts[0].run(f"kvmarm probe -o {PROFILE}")
    return hosts[0]


@pytest.fixture
def lab(measured: Host, case: Case) -> Set:
    return Set(measured, case)


def test_the_whole_host_is_measured(lab: Set) -> None:
    profile = json.loads(lab.host.get(PROFILE))
    assert profile["problems"] == []
    (cluster,) = profile["clusters"]
    assert cluster["target"] == lab.case.number
    assert cluster["seen"].keys() == {"CNTFRQ_EL0", "DCZID_EL0", "CTR_EL0", "MIDR_EL1", "PMCR_EL0"}
    assert profile["qemu"]["host_properties"]["pauth"] is ("ptrauth_address" in lab.case.features)


def test_stock_libvirt_refuses_host_model(lab: Set) -> None:
    guest = Guest(lab.host, "plain").define(domain_xml("plain", HOST_MODEL))
    refusal = lab.host.run("virsh start plain", check=False)
    assert refusal.rc != 0
    assert "CPU mode 'host-model' for aarch64 kvm domain" in refusal.stderr
    guest.destroy()


def test_the_page_one_host_in_five_minutes(lab: Set) -> None:
    """Word by word, as an operator types it who has installed kvmarm."""
    lab.host.put(domain_xml("guest", HOST_MODEL).encode(), "/root/guest.xml")
    for step in steps(DOCS / "one-host.md", "lab"):
        ran = lab.host.run(f"cd /root && {{ {step.command}\n}} 2>&1", check=False)
        said = f"$ {step.command}\n{ran.stdout}"
        assert step.shown or ran.rc == 0, said
        assert step.matches(ran.stdout), f"{said}\nand the page has:\n{step.shown}"
    Guest(lab.host, "guest").destroy()
    lab.host.run("kvmarm hook uninstall && rm -rf /var/lib/kvmarm/left")


def test_the_hook_says_what_to_type_and_that_works(lab: Set) -> None:
    assert "told libvirtd" in lab.kvmarm("hook install")
    assert "up to date" in lab.kvmarm("hook install")
    guest = Guest(lab.host, "demo").define(domain_xml("demo", HOST_MODEL, kernel=LINUX_KERNEL))
    refusal = lab.host.run("virsh start demo", check=False)
    advice = re.search(
        r"kvmarm: demo asks for host-model.*: (virsh dumpxml .*?kvmarm define -)\.", refusal.stderr
    )
    assert advice, refusal.stderr
    lab.host.run(advice[1])
    guest.start().wait_for(HELLO)
    midr = int(guest.wait_for(MIDR)[1], 16)
    assert midr == int(lab.record("demo")["target"]["registers"]["MIDR_EL1"], 16)
    guest.destroy()
    assert "removed" in lab.kvmarm("hook uninstall")


def test_the_target_is_the_expected_one(lab: Set) -> None:
    guest = lab.define("target")
    target = lab.record("target")["target"]
    assert (target["architecture"], target["number"], target["model"]) == (
        "arm64",
        lab.case.number,
        lab.case.model,
    )
    assert tuple(target["features"]) == lab.case.features
    assert target["sve_lengths"] == (
        [128 * step for step in range(1, 17)] if "sve" in lab.case.features else []
    )
    guest.destroy()


def test_the_guest_sees_what_the_record_says(lab: Set) -> None:
    guest = lab.define("reader", kernel=REGISTER_READER)
    guest.start().wait_for(rf"(?m)^{END}\r?$")
    seen = parse_registers(guest.console())
    target = lab.record("reader")["target"]
    promised = {
        name: int(value, 16) for name, value in {**target["registers"], **target["seen"]}.items()
    }
    named = {_generic(name): value for name, value in promised.items() if _generic(name) in seen}
    assert len(named) > 50
    assert {name: hex(value) for name, value in seen.items() if name in named} == {
        name: hex(value) for name, value in named.items()
    }
    guest.destroy()


def test_the_vcpu_is_the_one_of_cpu_host(lab: Set) -> None:
    """KVM_ARM_VCPU_INIT, as the kernel sees it: recorded = resolved guest = host-passthrough with
    the same features.
    """
    guest = lab.define("resolved")
    target = lab.record("resolved")["target"]
    recorded = (target["number"], _bits(target["features"]))
    assert _vcpu_init(guest) == {recorded}
    plain = Guest(lab.host, "passthrough").define(
        domain_xml("passthrough", "<cpu mode='host-passthrough'/>")
    )
    assert _vcpu_init(plain) == {recorded}
    guest.destroy()
    plain.destroy()


def test_the_host_takes_what_it_gave(lab: Set) -> None:
    """By its kernel and by its own profile; and a record that does not fit is refused by both."""
    guest = lab.define("checked")
    for where in ("", f" --host {PROFILE}"):
        answer = lab.kvmarm(f"check checked{where}").splitlines()[0]
        assert answer == f"checked on {lab.case.name}: yes, it would start as recorded"
    xml = re.sub(
        r"(MIDR_EL1=0x[0-9a-f]+)([0-9a-f])\b",
        r"\g<1>f",
        lab.host.run("virsh dumpxml checked").stdout,
    )
    for where in ("", f" --host {PROFILE}"):
        refusal = lab.host.run(f"kvmarm check -{where}", xml, check=False)
        assert (refusal.rc, "MIDR_EL1.Revision" in refusal.stdout) == (3, True), refusal
    guest.destroy()


def test_status_metrics_and_doctor(lab: Set) -> None:
    guest = lab.define("listed")
    plain = Guest(lab.host, "unlisted").define(
        domain_xml("unlisted", "<cpu mode='host-passthrough'/>")
    )
    domains = {row["name"]: row for row in json.loads(lab.kvmarm("status --json"))["domains"]}
    assert (domains["listed"]["state"], domains["listed"]["record"]) == ("shut off", "true")
    assert (domains["listed"]["here"], domains["listed"]["drift"]) == (
        "yes",
        {"differences": 0, "starts": True},
    )
    assert (domains["unlisted"]["record"], domains["unlisted"]["here"]) == ("none", "not judged")
    guest.start()
    domains = {row["name"]: row for row in json.loads(lab.kvmarm("status --json"))["domains"]}
    assert (domains["listed"]["state"], domains["listed"]["here"]) == ("running", "yes")
    assert 'kvmarm_domain_verdict{domain="listed",uuid=' in lab.kvmarm("metrics")
    lab.kvmarm("hook install")
    answer = lab.host.run("kvmarm doctor --json --report /tmp/report.tar.gz", check=False)
    found = {line["check"]: line for line in json.loads(answer.stdout)["checks"]}
    for check in ("Python", "KVM", "vCPUs", "QEMU", "libvirt", "hook seen", "policy", "marks"):
        assert found[check]["state"] == "ok", found[check]
    assert lab.host.run("tar tzf /tmp/report.tar.gz").stdout.count("domains/") >= 3
    lab.kvmarm("hook uninstall")
    guest.destroy()
    plain.destroy()


def test_features_pinned_off_are_off(lab: Set) -> None:
    # libvirt 9.0 has no word for PAuth; the bookworm host has none to turn off.
    lab.host.put(b"prefer: host\npmu: off\nsve: off\npauth: off\n", "/tmp/off.yaml")
    lab.kvmarm(
        f"define --host {PROFILE} --policy /tmp/off.yaml -", domain_xml("off", HOST_MODEL, "")
    )
    target = lab.record("off")["target"]
    assert (target["model"], target["features"]) == ("host", ["psci_0_2"])
    guest = Guest(lab.host, "off")
    assert _vcpu_init(guest) == {(target["number"], _bits(["psci_0_2"]))}
    guest.destroy()


def test_a_32_bit_guest_gets_its_vcpu_or_a_refusal(lab: Set) -> None:
    xml = domain_xml("armv7l", HOST_MODEL, "").replace("aarch64", "armv7l")
    result = lab.host.run("kvmarm define -", xml, check=False)
    if not lab.case.aarch32:
        assert (result.rc, "has no AArch32 at EL1" in result.stderr) == (1, True)
        return
    assert result.rc == 0, result.stderr
    record = lab.record("armv7l")["target"]
    # QEMU does not turn PAuth off for a 32-bit guest: see resolve.
    features = [
        "el1_32bit",
        "psci_0_2",
        "pmu_v3",
        *(feature for feature in lab.case.features if feature in PAUTH),
    ]
    assert record["features"] == features
    # Its kernel is a 64-bit one, so it is only made, and not let run.
    guest = Guest(lab.host, "armv7l")
    with vcpu_inits(lab.host) as inits:
        lab.host.run("virsh start --paused armv7l")
    assert {(init.target, init.features) for init in inits if init.is_guest} == {
        (record["number"], _bits(features))
    }
    guest.destroy()


def test_libvirt_keeps_the_record_and_the_intent_comes_back(lab: Set) -> None:
    guest = lab.define("kept")
    before = lab.record("kept")
    stored = lab.host.run("virsh dumpxml --inactive kept").stdout
    (metadata,) = etree.fromstring(stored).iterfind("metadata")
    assert len(etree.tostring(metadata)) < 6144
    assert lab.kvmarm("resolve --validate", stored) == stored
    lab.host.run(
        "virsh dumpxml --inactive kept > /tmp/kept.xml && virsh undefine kept && virsh define"
        " /tmp/kept.xml"
    )
    assert lab.record("kept") == before
    restored = etree.fromstring(lab.kvmarm("resolve --restore-intent", stored))
    assert restored.xpath("string(cpu/@mode)") == "host-model"
    assert restored.xpath("string(os/type/@machine)") == "virt"
    assert restored.find("metadata") is None
    guest.destroy()


@pytest.mark.slow
def test_templates_start(lab: Set) -> None:
    """The direct kernel and the UEFI template, as they are but for their files; for UEFI reaching
    the firmware is enough.
    """
    host = lab.host
    host.run(
        "mkdir -p /var/lib/libvirt/images && cd /var/lib/libvirt/images && ln -sf"
        " /var/lib/lab/vmlinuz vmlinuz && ln -sf /var/lib/lab/guest.cpio.gz initrd.img && qemu-img"
        " create -q -f qcow2 uefi.qcow2 64M"
    )
    direct = Guest(host, "direct-kernel")
    lab.kvmarm(
        "define -", _with_console((TEMPLATES / "direct-kernel.xml").read_text(), "direct-kernel")
    )
    direct.start().wait_for(HELLO)
    direct.destroy()
    # This lab's libvirtd has no network driver.
    uefi_xml = re.sub(
        r"(?s)    <interface.*?</interface>\n", "", (TEMPLATES / "uefi.xml").read_text()
    )
    uefi = Guest(host, "uefi")
    lab.kvmarm(
        "define -",
        _with_console(uefi_xml.replace("<memory unit='GiB'>2", "<memory unit='GiB'>1"), "uefi"),
    )
    uefi.start().wait_for("UEFI firmware|BdsDxe|Tianocore|EDK II")
    uefi.destroy()


def _vcpu_init(guest: Guest) -> set[tuple[int, int]]:
    """(target, features) of every vCPU of a guest that is started and stopped again."""
    with vcpu_inits(guest.host) as inits:
        guest.start()
    guest.host.run(["virsh", "--quiet", "destroy", guest.name])
    return {(init.target, init.features) for init in inits if init.is_guest}


def _bits(features: list[str]) -> int:
    return sum(1 << FEATURE_BITS[feature] for feature in features)


def _with_console(template: str, name: str) -> str:
    """A template whose console goes to the file that `Guest` reads."""
    console = f"<serial type='file'><source path='/var/log/lab/{name}.log' append='on'/></serial>"
    return template.replace("<console type='pty'/>", console)


def _generic(name: str) -> str:
    """The register reader's name for a register: by its encoding."""
    reg = id_of(name)
    return (
        f"S{reg >> 14 & 3}_{reg >> 11 & 7}_C{reg >> 7 & 15}_C{reg >> 3 & 15}_{reg & 7}"
        if reg >> 16 == 0x603000000013
        else name
    )
