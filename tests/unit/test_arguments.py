# SPDX-License-Identifier: LGPL-2.1-or-later
"""What <qemu:commandline> makes of the vCPU that is recorded."""

from __future__ import annotations

import pytest

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.xml import Element, parse
from kvmarm_plugin.judge.arguments import find_unjudged
from kvmarm_plugin.judge.contradictions import find_contradictions
from kvmarm_plugin.judge.wording import line
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.target import Target
from kvmarm_plugin.resolve.resolver import Resolver
from tests.corpus import GUEST, host, resolver

_N1 = "trixie-neoverse-n1"  # neither SVE nor PAuth
_MAX = "trixie-max"  # both
_AS_LIBVIRT = "host,pmu=on,sve=off,pauth=off"  # on the first


def _commandline(*arguments: str, env: str = "") -> bytes:
    inner = "".join(f'<qemu:arg value="{argument}"/>' for argument in arguments)
    return f"<qemu:commandline>{inner}{env}</qemu:commandline>".encode()


def _with(source: bytes, commandline: bytes) -> bytes:
    declared = b"<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' "
    return source.replace(b"<domain ", declared, 1).replace(
        b"</domain>", commandline + b"</domain>"
    )


def _read(xml: bytes) -> tuple[Element, Target]:
    domain = parse(xml)
    return domain, record.read(record.find(domain) or pytest.fail("no record")).target


def _said(name: str, *arguments: str, source: bytes = GUEST) -> list[str]:
    """ "pmu on off": what overrules a record, and what it says of it."""
    domain, target = _read(_with(resolver(name).resolve(source), _commandline(*arguments)))
    findings = find_contradictions(domain, target)
    assert {finding.kind for finding in findings} <= {"argument-overrules"}
    assert all(line(finding).startswith("-") for finding in findings)
    return [" ".join(str(finding.values[key]) for key in ("what", "recorded", "local"))
            for finding in findings]  # fmt: skip


def _unjudged(name: str, commandline: bytes) -> list[str]:
    return find_unjudged(*_read(_with(resolver(name).resolve(GUEST), commandline)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-cpu", "host,pmu=off,sve=off,pauth=off"], ["pmu on off"]),
        (["--cpu", "host,pmu=no,sve=off,pauth=off"], ["pmu on no"]),
        (["-cpu host,pmu=off,sve=off,pauth=off"], ["pmu on off"]),
        (["-cpu=host,pmu=off,sve=off,pauth=off"], ["pmu on off"]),
        ([" -cpu", " host,pmu=off,sve=off,pauth=off "], ["pmu on off"]),
        (["-cpu", "host,-pmu,sve=off,pauth=off"], ["pmu on off"]),
        (["-cpu", _AS_LIBVIRT], []),
        (["-cpu", "max,pmu=yes,sve=false,pauth=n,kvm-steal-time=off"], []),
        (["-cpu", f"{_AS_LIBVIRT},kvm-no-adjvtime=on,kvm-psci-version=1.1"], []),
        (["-cpu", f"{_AS_LIBVIRT},kvm-psci-version=1.0"], ["kvm-psci-version 1.1 1.0"]),
        # libvirt's words count no more
        (["-cpu", "host,pmu=off"],
         ["pmu on off", "sve off left to QEMU", "pauth off left to QEMU"]),
        (["-cpu", "cortex-a57"], ["CPU host cortex-a57"]),
        (["-cpu", f"{_AS_LIBVIRT},sve128=on"], ["sve128 off on"]),
        (["-cpu", f"{_AS_LIBVIRT},sve256=off"], []),
        (["-cpu", f"{_AS_LIBVIRT},aarch64=off"], ["aarch64 on off"]),
        # the last one counts
        (["-cpu", "cortex-a57", "-cpu", _AS_LIBVIRT], []),
        (["-cpu", _AS_LIBVIRT, "-cpu", "cortex-a57"], ["CPU host cortex-a57"]),
        # -cpu says these
        (["-global", "host-arm-cpu.pmu=off"], []),
        (["-global=arm-cpu.pmu=off"], []),
        (["-global", "driver=max-arm-cpu,property=pauth,value=on"], []),
        (["-global", "host-arm-cpu.pauth=off"], []),
        # and not these
        (["-global", "host-arm-cpu.aarch64=off"], ["aarch64 on off"]),
        (["-global=aarch64-cpu.sve256=on"], ["sve256 off on"]),
        (["-global", "cortex-a57-arm-cpu.pmu=off"], []),  # another CPU's
        (["-global", "virtio-net-pci.romfile="], []),
        (["-global", "host-arm-cpu.kvm-steal-time=off"], []),
        (["-machine", "virtualization=on"], ["virtualization off on"]),
        (["-M", "virtualization=true,mte=on"], ["virtualization off true", "mte off on"]),
        (["-machine", "secure"], ["type virt-10.0 secure"]),
        (["-machine", "secure=on,its=off,acpi=off"], ["secure off on"]),
        (["-machine", "mte=off,graphics=off,usb=off,smp.cpus=2,dump_guest_core=off"], []),
        (["-machine", "gic-version=2"], ["gic-version 3 2"]),
        (["-machine", "gic_version=host"], ["gic-version 3 host"]),
        (["-machine", "gic-version=3,accel=kvm,type=virt-10.0,kernel_irqchip=on"], []),
        (["-machine", "virt-9.2,accel=tcg"], ["type virt-10.0 virt-9.2", "accel kvm tcg"]),
        (["-machine", "virt-10.0,accel=kvm:tcg,kernel-irqchip=off"], ["kernel-irqchip on off"]),
        (["-accel", "tcg,thread=multi"], ["accel kvm tcg"]),
        (["-smp", "512"], []),
        (["-smp", "4,maxcpus=8,sockets=2,cores=4"], []),
        (["-smp", "600"], ["vCPUs up to 512 600"]),
        (["-smp", "cpus=0x4,maxcpus=0x201"], ["vCPUs up to 512 513"]),
        (["-smp", "sockets=64,cores=16"], ["vCPUs up to 512 1024"]),
        (["-machine", "smp.cpus=2,smp.maxcpus=513"], ["vCPUs up to 512 513"]),
        (["-accel", "kvm,dirty-ring-size=4096"], []),
        (["-accel=kvm,kernel-irqchip=split"], ["kernel-irqchip on split"]),
        (["-device", "virtio-rng-pci", "-smp", "4", "-overcommit", "cpu-pm=on"], []),
        (["-cpu"], ["CPU host "]),
        ([], []),
    ],
)  # fmt: skip
def test_an_argument_that_overrules_the_record(arguments: list[str], said: list[str]) -> None:
    assert _said(_N1, *arguments) == said


def test_sve_lengths_that_an_argument_says() -> None:
    source = GUEST.replace(
        b"<cpu mode='host-model'/>",
        b"<cpu mode='host-model'><feature name='sve512' policy='disable'/></cpu>",
    )
    said = "host,pmu=on,sve=on,pauth=on,sve128=on,sve256=on,sve384=on"
    assert _said(_MAX, "-cpu", said, source=source) == []
    assert _said(_MAX, "-cpu", f"{said},sve512=on", source=source) == ["sve512 off on"]
    without = said.replace(",sve384=on", "")
    assert _said(_MAX, "-cpu", without, source=source) == ["sve384 on left to QEMU"]


def test_a_32_bit_guest_has_to_be_said_one() -> None:
    source = GUEST.replace(b"aarch64", b"armv7l")
    assert "aarch64 off left to QEMU" in _said(_MAX, "-cpu", "host,pmu=on", source=source)


def test_a_named_model() -> None:
    assert _said("trixie-cortex-a57", "-cpu", "cortex-a57,pmu=on") == []
    assert _said("trixie-cortex-a57", "-cpu", "host,pmu=on") == ["CPU cortex-a57 host"]
    assert _said("trixie-cortex-a57", "-cpu", "cortex-a57") == ["pmu on left to QEMU"]


def test_what_was_left_to_qemu_may_be_said() -> None:
    """libvirt 9.0 has no word for PAuth; the argument is one."""
    name = "bookworm-neoverse-n1"
    domain, target = _read(resolver(name).resolve(GUEST))
    assert "ptrauth_address" in target.unsaid
    assert find_contradictions(domain, target) == []
    assert _said(name, "-global", "host-arm-cpu.pauth=off") == []
    assert _said(name, "-cpu", "host,pmu=on,sve=off") == []


@pytest.mark.parametrize("driver", ["object", "device", "cpu", "arm-cpu", "aarch64-cpu",
                                    "host-arm-cpu", "max-arm-cpu"])  # fmt: skip
def test_what_was_left_to_qemu_may_be_said_otherwise(driver: str) -> None:
    for form in ("{}.pauth=off", "driver={},property=pauth,value=off"):
        assert _said("bookworm-max", "-global", form.format(driver)) == ["pauth on off"]
    assert _said("bookworm-max", "-global", f"{driver}.sve=off") == []  # said


def test_vcpus_that_an_argument_says() -> None:
    here = Resolver(host("trixie-cortex-a72").replace(gic_versions=(2,)), Policy())
    for words in ("10", "cpus=4,maxcpus=10", "sockets=5,cores=2"):
        argument = _commandline("-smp", words)
        (finding,) = find_contradictions(*_read(_with(here.resolve(GUEST), argument)))
        assert line(finding).startswith(
            f"-smp {words} (in <qemu:commandline>): recorded vCPUs up to 8"
        )
        with pytest.raises(KvmarmError, match=r"-smp .*: vCPUs is up to 8, and would be 10"):
            here.resolve(_with(GUEST, argument))
    here.resolve(_with(GUEST, _commandline("-smp", "8")))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["-cpu", f"{_AS_LIBVIRT},midr=0x413fd0c1"], "midr"),
        (["-machine", "highmem=off"], "highmem"),
        (["-machine", "its=off"], "its"),
        (["-machine", "ras=on"], "ras"),
        (["-machine", "highmem-mmio-size=2T"], "highmem-mmio-size"),
        (["-machine", "confidential-guest-support=rme0"], "confidential-guest-support"),
        (["-global", "kvm-arm-gicv3.num-irq=300"], "kvm-arm-gicv3.num-irq"),
        (["-m", "4T"], "vCPU or addresses"),
        (["-readconfig", "/etc/x"], "vCPU or addresses"),
        (["-device", "host-arm-cpu,id=x"], "vCPUs"),
        (["-set", "machine.x.mte=on"], "machine"),
        (["-smp", "many"], "vCPUs"),
        (["-smp", "4,cores=2"], "vCPUs"),
    ],
)
def test_what_cannot_be_judged_is_named(arguments: list[str], what: str) -> None:
    assert _said(_N1, *arguments) == []
    (note,) = _unjudged(_N1, _commandline(*arguments))
    assert note.startswith(f"{arguments[0]} {arguments[1]} in <qemu:commandline>: ")
    assert f"makes of {what} is not known" in note


def test_a_library_in_front_of_qemus() -> None:
    env = (
        "<qemu:env name='LD_PRELOAD' value='/x.so'/><qemu:env name='QEMU_AUDIO_DRV' value='none'/>"
    )
    (note,) = _unjudged(_N1, _commandline(env=env))
    assert note.startswith("LD_PRELOAD=/x.so in")


def test_harmless_arguments_are_not_named() -> None:
    harmless = _commandline(
        "-cpu", _AS_LIBVIRT + ",kvm-steal-time=off", "-fw_cfg", "name=x,string=y"
    )
    assert _unjudged(_N1, harmless) == []


def test_another_namespace_is_not_qemus() -> None:
    xml = _with(resolver(_N1).resolve(GUEST), _commandline("-cpu", "cortex-a57"))
    assert find_contradictions(*_read(xml.replace(b"domain/qemu/1.0", b"domain/xen/1.0"))) == []


def test_a_guest_that_would_be_overruled_is_not_resolved() -> None:
    here = Resolver(host(_N1), Policy())
    with pytest.raises(KvmarmError, match=r"-machine mte=on in .*: mte is off, and would be on"):
        here.resolve(_with(GUEST, _commandline("-machine", "mte=on")))
    here.resolve(_with(GUEST, _commandline("-cpu", _AS_LIBVIRT)))


@pytest.mark.parametrize(
    "argument", [("-machine", "highmem=off"), ("-m", "size=1G,maxmem=4T"), ("-readconfig", "/x")]
)
def test_what_cannot_be_judged_is_told_as_it_is_resolved(argument: tuple[str, str]) -> None:
    said: list[str] = []
    Resolver(host(_N1), Policy(), advise=said.append).resolve(_with(GUEST, _commandline(*argument)))
    (note,) = said
    assert note.startswith(f"guest: {' '.join(argument)} in <qemu:commandline>: what it makes of")


@pytest.mark.parametrize("argument", ["x" * 10**6, "host,&#10;=\x85", ",,,", "=", "host,pmu"])
def test_an_argument_of_any_kind(argument: str) -> None:
    for option in ("-cpu", "-machine", "-accel", "-global", "-set", "-device", "-smp"):
        xml = _with(resolver(_N1).resolve(GUEST), _commandline(option, argument))
        domain, target = _read(xml)
        said = [*map(line, find_contradictions(domain, target)), *find_unjudged(domain, target)]
        assert all(text.isprintable() and len(text) < 800 for text in said)
