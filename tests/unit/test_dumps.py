# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dumps of other programs: what becomes of them, and what is refused, with the line."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmarm_plugin import cli
from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.host.dumps import FORMS, DumpError, read
from kvmarm_plugin.model import profile_json
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.registers.table import id_of, name_of
from kvmarm_plugin.registers.text import unpack_ids
from tests.corpus import host, one_line

_MIDR, _REVIDR, _PFR0, _PSCI = (
    *(0x603000000013C000, 0x603000000013C006),
    *(0x603000000013C020, 0x6030000000140000),
)
_X0, _V0, _PC = 0x6030000000100000, 0x6040000000100054, 0x6030000000100040
_TIMER, _PTIMER = (0x603000000013DF19, 0x603000000013DF1A), (0x603000000013DF11, 0x603000000013DF01)
_CORE = range(_X0, 0x6030000000100044, 2)
_ID = {
    id_of(name): value
    for name, value in {
        "CTR_EL0": 0xB444C004,
        "ID_AA64PFR1_EL1": 0x10,
        "ID_AA64DFR0_EL1": 0x10305006,
        "ID_AA64ISAR0_EL1": 0x100010211120,
        "ID_AA64ISAR1_EL1": 0x100001,
        "ID_AA64MMFR0_EL1": 0x101122,
        "ID_AA64MMFR1_EL1": 0x10211122,
        "ID_AA64MMFR2_EL1": 0x1011,
    }.items()
}
_VALUES = {
    **{reg: 5 for reg in _CORE if reg != _PC},
    **_ID,
    _V0: 1 << 127,
    _MIDR: 0x413FD0C1,
    _REVIDR: 0xFF,
    _PFR0: 0x1100000011111112,
    _PSCI: 0x10001,
    _TIMER[0]: 0,
}


def _fingerprint(values: dict[int, int] | None = None, **changes: Any) -> dict[str, Any]:
    modifiers = [
        {"addr": f"{reg:#x}", "bitmap": f"0b{value:0128b}"}
        for reg, value in (_VALUES if values is None else values).items()
    ]
    return {
        "firecracker_version": "1.16.0-dev",
        "kernel_version": "6.1.172-216.329.amzn2023.aarch64",
        "microcode_version": "0x00000000000000ff",
        "bios_version": "1.0",
        "bios_revision": "1.0",
        "guest_cpu_config": {
            "kvm_capabilities": [],
            "vcpu_features": [],
            "reg_modifiers": modifiers,
        },
        **changes,
    }


def _read(text: str | dict[str, Any], **arguments: Any) -> HostProfile:
    text = text if isinstance(text, str) else json.dumps(text)
    found = read(text, "some.txt", **arguments)
    assert profile_json.loads(profile_json.dumps(found)) == found
    return found


def _refused(text: str | dict[str, Any], why: str, **arguments: Any) -> None:
    with pytest.raises(DumpError) as caught:
        _read(text, **arguments)
    line = one_line(caught.value)
    assert why in line
    assert len(line) < 500
    assert caught.value.hint


# -- fingerprints --------------------------------------------------------------------------------


def test_a_fingerprint() -> None:
    here = _read(_fingerprint())
    (cluster,) = here.clusters
    (vcpu,) = cluster.vcpus
    assert here.name == "Neoverse-N1@6.1.172-216.329.amzn2023.aarch64"
    assert here.kernel == "6.1.172-216.329.amzn2023.aarch64"
    assert here.origin.startswith("imported: from a fingerprint")
    assert (cluster.implementer, cluster.part) == ("ARM", "Neoverse-N1")
    assert (cluster.midr, cluster.revidr, cluster.target) == (0x413FD0C1, 0xFF, 5)
    assert vcpu.features == ("psci_0_2",)
    assert vcpu.registers == {
        "MIDR_EL1": 0x413FD0C1,
        "REVIDR_EL1": 0xFF,
        "ID_AA64PFR0_EL1": 0x1100000011111112,
        "PSCI_VERSION": 0x10001,
        **{name_of(reg): value for reg, value in _ID.items()},
    }
    assert not {"registers", "reglist", "kernel", "writable", "revidr"} & {*here.unknown}
    assert {"qemu", "seen", "capabilities", "vcpus", "overrides", "cpus"} <= {*here.unknown}


def test_a_mark_in_front_of_a_dump() -> None:
    for text in (json.dumps(_fingerprint()), "MIDR_EL1 0x413fd0c1\n", _CPUINFO):
        assert _read("\ufeff" + text) == _read(text)


def test_what_a_fingerprint_leaves_out_is_in_the_register_list() -> None:
    """The program counter, and a timer's counter where its control register is."""
    ids = unpack_ids(_read(_fingerprint()).clusters[0].vcpus[0].reglist)
    assert ids == {*_VALUES, _PC, _TIMER[1]}
    both = unpack_ids(_read(_fingerprint({**_VALUES, _PTIMER[0]: 0})).clusters[0].vcpus[0].reglist)
    assert both == {*_VALUES, _PC, *_TIMER, *_PTIMER}


def test_masks_are_unknown_where_a_kernel_has_the_ioctl() -> None:
    for kernel, is_unknown in [
        ("5.10.255", False),
        ("6.6.1", False),
        ("6.7.0", True),
        ("6.18.30-61", True),
        ("5.14.0-611.el9.aarch64", True),
    ]:
        assert ("writable" in _read(_fingerprint(kernel_version=kernel)).unknown) is is_unknown


@pytest.mark.parametrize(
    ("midr", "kernel", "target"),
    [
        (0x410FD034, "6.1.0", 4),
        (0x410FD034, "6.5.9", 4),
        (0x410FD034, "6.6.0", 5),
        (0x411FD070, "5.10.0", 2),
        (0x411FD070, "7.2.0", 5),
        (0x500F0000, "4.9.0", 3),
        (0x410FD083, "4.9.0", 5),
        (0x481FD010, "6.1.0", 5),
    ],
)
def test_the_target_is_the_kernels(midr: int, kernel: str, target: int) -> None:
    here = _read(_fingerprint({**_VALUES, _MIDR: midr}, kernel_version=kernel))
    assert here.clusters[0].target == here.clusters[0].vcpus[0].number == target


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ([], "is no fingerprint of an arm64 vCPU: it cannot be a list"),
        ({}, "it has no 'kernel_version'"),
        (_fingerprint(kernel_version="linux"), "kernel_version cannot be 'linux'"),
        (_fingerprint(kernel_version="6.1\x1b[2J"), "kernel_version cannot be '6.1\\x1b[2J'"),
        (_fingerprint(microcode_version="0x1"), "microcode_version is not the REVIDR_EL1"),
        (_fingerprint(microcode_version="1"), "microcode_version cannot be '1'"),
        (_fingerprint(more="x"), "more is none of its members"),
        (_fingerprint(guest_cpu_config={}), "it has no 'reg_modifiers' in guest_cpu_config"),
        (
            _fingerprint(guest_cpu_config={"cpuid_modifiers": [], "msr_modifiers": []}),
            "it has no 'reg_modifiers'",
        ),
        (
            _fingerprint(guest_cpu_config={"reg_modifiers": [], "vcpu_features": [{}]}),
            "guest_cpu_config.vcpu_features is not empty: a template changed the vCPU",
        ),
        (
            _fingerprint(guest_cpu_config={"reg_modifiers": [], "kvm_capabilities": ["170"]}),
            "guest_cpu_config.kvm_capabilities is not empty",
        ),
        (_fingerprint({}), "microcode_version is not the REVIDR_EL1 of its registers"),
        (_fingerprint({_REVIDR: 0xFF}), "it is cut short: it has no MIDR_EL1"),
        (_fingerprint({_MIDR: 0x413FD0C1, _REVIDR: 0xFF}), "it is cut short: it has no CTR_EL0"),
        (_fingerprint({**_VALUES, _MIDR: 0}), "has no MIDR_EL1"),
        (_fingerprint({**_VALUES, _PSCI: 1 << 64}), "PSCI_VERSION is wider than the register"),
        (_fingerprint({**_VALUES, 0x40200000000F0000: 1}), "is no register of an arm64 vCPU"),
    ],
)
def test_what_is_no_fingerprint(document: Any, why: str) -> None:
    _refused(json.dumps(document), why)


@pytest.mark.parametrize(
    "missing",
    [_X0, _X0 + 0x3C, _X0 + 0x42, _PFR0, _PSCI]
    + [id_of(f"ID_AA64{name}_EL1") for name in ("ISAR0", "MMFR0", "MMFR2", "DFR0", "PFR1")],
)
def test_a_fingerprint_that_is_cut_short(missing: int) -> None:
    values = {reg: value for reg, value in _VALUES.items() if reg != missing}
    _refused(_fingerprint(values), f"cut short: it has no {name_of(missing)}, which every vCPU has")


def test_a_fingerprint_with_vector_lengths_and_no_sve() -> None:
    _refused(_fingerprint({**_VALUES, id_of("SVE_VLS"): 1}), "has SVE_VLS, and an ID_AA64PFR0_EL1")
    _refused(_fingerprint({**_VALUES, _MIDR: 0x1_413F_D0C1}), "MIDR_EL1 is wider than the register")


@pytest.mark.parametrize(
    ("modifier", "why"),
    [
        ({"addr": "0x1", "bitmap": "0b1"}, "is no register of an arm64 vCPU"),
        ({"addr": "603000000013c020", "bitmap": "0b1"}, "addr cannot be"),
        ({"addr": "0x603000000013c020", "bitmap": "0bxxxx1"}, "bitmap cannot be '0bxxxx1'"),
        ({"addr": "0x603000000013c020", "bitmap": "0x1"}, "it takes a binary number"),
        ({"addr": "0x603000000013c020", "bitmap": "0b" + "1" * 129}, "it takes a binary number"),
        ({"addr": "0x603000000013c020"}, "it has no 'bitmap'"),
        ({"addr": "0x603000000013c020", "bitmap": "0b0", "x": "y"}, "x is none of its members"),
        ({"addr": f"{_MIDR:#x}", "bitmap": "0b1"}, "has a register twice"),
        (None, "cannot be None"),
    ],
)
def test_what_is_no_register_of_a_fingerprint(modifier: Any, why: str) -> None:
    document = _fingerprint()
    document["guest_cpu_config"]["reg_modifiers"].append(modifier)
    _refused(document, why)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not JSON"),
        ("{" * 100_000, "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"a": 1e5}', "it has a number, 1e5, where there is none"),
        ('{"a": ' + "1" * 100_000 + "}", "it has a number"),
        ('{"a": "b", "a": "b"}', "has a name twice"),
        (" " * (profile_json.SIZE_LIMIT + 1), "is larger than 10 MiB"),
    ],
)
def test_what_is_no_json(text: str, why: str) -> None:
    _refused(text, why)


def test_a_kernel_that_the_fingerprint_contradicts() -> None:
    _refused(_fingerprint(), "is of Linux 6.1.172", kernel="6.18.0")
    kernel = _fingerprint()["kernel_version"]
    assert _read(_fingerprint(), kernel=kernel) == _read(_fingerprint())


# -- lines ---------------------------------------------------------------------------------------

_LINES = """\
# an m6g.metal
MIDR_EL1 0x413fd0c1
SYS_REVIDR_EL1: 0xFF
id_aa64pfr0 = 0x1100_0000_1111_1112   # comment

CTR 0xb444c004
0x6030000000140000\t0x10001
S3_0_C0_C4_3 0x0
0x6030000000100000 0x5
"""


def test_lines_of_a_register_and_its_value() -> None:
    here = _read(_LINES, kernel="6.12.5")
    (cluster,) = here.clusters
    assert here.kernel == "6.12.5"
    assert (cluster.midr, cluster.revidr) == (0x413FD0C1, 0xFF)
    assert cluster.vcpus[0].features == ("psci_0_2",)
    assert cluster.vcpus[0].registers == {
        "MIDR_EL1": 0x413FD0C1,
        "REVIDR_EL1": 0xFF,
        "ID_AA64PFR0_EL1": 0x1100000011111112,
        "S3_0_C0_C4_3": 0,
        "CTR_EL0": 0xB444C004,
        "PSCI_VERSION": 0x10001,
    }
    assert {"registers", "reglist", "writable"} <= {*here.unknown}
    assert {"kernel", "revidr"}.isdisjoint(here.unknown)
    assert {"kernel", "writable"} <= {*_read(_LINES).unknown}
    assert "revidr" in _read("MIDR_EL1 0x413fd0c1").unknown


@pytest.mark.parametrize(
    ("line", "features"),
    [
        ("ID_AA64DFR0_EL1 0x10305106", ("psci_0_2", "pmu_v3")),
        ("ID_AA64DFR0_EL1 0x10305f06", ("psci_0_2",)),
        ("ID_AA64PFR0_EL1 0x100000000", ("psci_0_2", "sve")),
        ("ID_AA64ISAR1_EL1 0x10", ("psci_0_2", "ptrauth_address", "ptrauth_generic")),
        ("PSCI_VERSION 0x1", ()),
    ],
)
def test_registers_show_the_features(line: str, features: tuple[str, ...]) -> None:
    assert _read(f"MIDR_EL1 0x413fd0c1\n{line}").clusters[0].vcpus[0].features == features


def test_sve_lengths_are_those_of_the_register() -> None:
    here = _read("MIDR_EL1 0x411fd401\nSVE_VLS 0x3\nID_AA64PFR0_EL1 0x100000000")
    assert here.clusters[0].sve_lengths == (128, 256)
    assert "sve_lengths" not in here.unknown


def test_sve_lengths_tell_of_sve_where_nothing_else_does() -> None:
    (cluster,) = _read("MIDR_EL1 0x411fd401\nSVE_VLS 0x3").clusters
    assert cluster.sve_lengths == (128, 256)
    assert cluster.vcpus[0].features == ("psci_0_2", "sve")


def test_sve_lengths_without_sve() -> None:
    text = "MIDR_EL1 0x411fd401\nSVE_VLS 0x3\nID_AA64PFR0_EL1 0x11"
    _refused(text, "has SVE_VLS, and an ID_AA64PFR0_EL1 without SVE")


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_lines_of_any_end(end: str) -> None:
    for text in (_LINES, _TABLE, _CPUINFO.format(0), _bits("MIDR_EL1", 0x413FD0C1)):
        assert _read(text.replace("\n", end)) == _read(text)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("SVE_VLS 0x1ffff", "line 2: the value of SVE_VLS is wider than the register"),
        ("MIDR_EL1 0x1413fd0c1", "line 2: the value of MIDR_EL1 is wider than the register"),
        ("MIDR_EL1", "line 2: 'MIDR_EL1' is not a register and its value"),
        ("MIDR_EL1 0x1 0x2", "line 2: 'MIDR_EL1 0x1 0x2' is not a register and its value"),
        ("CTR_EL0 5", "line 2: '5' is no hexadecimal value, such as 0x1f"),
        ("CTR_EL0 0x", "line 2: '0x' is no hexadecimal value"),
        ("CTR_EL0 0x1__0", "line 2: '0x1__0' is no hexadecimal value"),
        ("CTR_EL0 0x_1", "line 2: '0x_1' is no hexadecimal value"),
        ("CTR_EL0 -0x1", "line 2: '-0x1' is no hexadecimal value"),
        ("CTR_EL0 0x\u0661", "is no hexadecimal value"),
        ("CTR_EL0 0x1" + "0" * 16, "line 2: the value of CTR_EL0 is wider than the register"),
        ("CTR_EL0 0x" + "0" * 100_000, "line 2: so long a line"),
        ("NOTHING_EL1 0x1", "line 2: no register of an arm64 vCPU is called 'NOTHING_EL1'"),
        ("\x1b[2J 0x1", "is called '\\x1b[2J'"),
        ("0x40200000000f0000 0x1", "line 2: no register of an arm64 vCPU"),
        ("MIDR_EL1 0x413fd0c2", "line 2: MIDR_EL1 has two values"),
        ("\n" * 70_000, "has more than 65536 lines"),
    ],
)
def test_what_is_no_line(line: str, why: str) -> None:
    _refused(f"MIDR_EL1 0x413fd0c1\n{line}", why)


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "CTR_EL0 0x1", "MIDR_EL1 0x0", "\x00"])
def test_lines_without_a_cpu(text: str) -> None:
    _refused(text, "some.txt")


@given(st.text())
def test_any_text_is_a_dump_or_refused_in_a_line(text: str) -> None:
    for form in ("", *FORMS):
        line = _outcome(text, form)
        assert line.isprintable()


def _outcome(text: str, form: str) -> str:
    try:
        return _read(text, form=form).name
    except KvmarmError as error:
        return one_line(error)


@pytest.mark.parametrize("text", ["A" * 9_000_000, "CPU part" * 900_000, " \t" * 4_000_000])
def test_no_text_takes_long(text: str) -> None:
    start = time.monotonic()
    _refused(text, "some.txt")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("midr", [0x410FD034, 0x410FD070])
def test_cpus_that_kernels_treat_differently(midr: int) -> None:
    _refused(f"MIDR_EL1 {midr:#x}", "does not tell the kernel")
    assert _read(f"MIDR_EL1 {midr:#x}", kernel="6.12.0").clusters[0].target == 5


@pytest.mark.parametrize("kernel", ["x", "6", "6.1\n", "6.1-" + "x" * 300, "6.1-\x1b"])
def test_what_is_no_kernel(kernel: str) -> None:
    _refused(_LINES, "is no kernel release", kernel=kernel)


def test_the_name_of_the_host() -> None:
    assert _read(_LINES).name == "Neoverse-N1"
    assert _read("MIDR_EL1 0xff0ffff1").name == "0xff0ffff1"
    assert _read(_LINES, host="alpha").name == "alpha"
    assert _read(_LINES, host="a\x1b\n" + "b" * 999).name.startswith("a\\x1b\\nbbb")


# -- the tables of others ------------------------------------------------------------------------

_TABLE = """\
Implementor: 'A' (Arm Limited)
Part: 0xD08 (Cortex-A72)
Variant: 0
Revision: 3
                        ID REGISTERS PER CPU
             CPU0                  CPU1
   CCSIDR_EL1: 0x451F_FCC0  CCSIDR_EL1: 0x451E_6980
   CTR_EL0: 0x8444_C004     CTR_EL0: 0x8444_C004
   DCZID_EL0: 0x4           DCZID_EL0: 0x4
   MIDR_EL1: 0x410F_D083    MIDR_EL1: 0x410F_D083
   MPIDR_EL1: 0x8000_0000   MPIDR_EL1: 0x8000_0001
   REVIDR_EL1: 0x0          REVIDR_EL1: 0x0
"""


def test_a_table_with_a_column_for_each_cpu() -> None:
    here = _read(_TABLE)
    registers = {"MIDR_EL1": 0x410FD083, "REVIDR_EL1": 0, "CTR_EL0": 0x8444C004}
    assert here.clusters[0].vcpus[0].registers == registers


def test_cpus_that_differ_are_no_one_cpu() -> None:
    _refused(_TABLE.replace("410F_D083\n", "410F_D034\n"), "line 10: MIDR_EL1 has two values")


def test_a_line_that_is_none_of_the_table() -> None:
    _refused(_TABLE + "CTR_EL0 0x5 CTR_EL0\n", "line 13: 'CTR_EL0 0x5 CTR_EL0' is not a register")


def _bits(name: str, value: int) -> str:
    groups = [f"{value:064b}"[at : at + 4] for at in range(0, 64, 4)]
    return f"\n{name}: {' '.join(groups[:8])} - {' '.join(groups[8:])}\n\n  Field: 0x1 (1)\n"


def test_hardware_tells_which_cpu_it_is() -> None:
    """KVM gives guests less of the other registers, by rules of its version."""
    text = _bits("CTR_EL0", 5) + _bits("MIDR_EL1", 0x413FD0C1) + _bits("REVIDR_EL1", 0x1C7)
    here = _read(text)
    assert here.clusters[0].vcpus[0].registers == {"MIDR_EL1": 0x413FD0C1, "REVIDR_EL1": 0x1C7}
    assert here.clusters[0].revidr == 0x1C7
    assert here == _read("MIDR_EL1 0x413fd0c1\nCTR_EL0 0x5\nREVIDR_EL1 0x1c7", form="hardware")
    assert "registers" in here.unknown


_CPUINFO = """\
processor\t: {}
CPU implementer\t: 0x48
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd01
CPU revision\t: 0

"""


def test_cpuinfo_tells_midr() -> None:
    here = _read("".join(map(_CPUINFO.format, range(3))))
    assert here.clusters[0].midr == 0x481FD010
    assert here.clusters[0].vcpus[0].registers == {"MIDR_EL1": 0x481FD010}
    assert {"revidr", "registers", "reglist", "kernel"} <= {*here.unknown}


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("CPU part\t: 0xd01\n", "", "no description of a CPU"),
        ("0xd01", "0xd01 & 0xd03", "some.txt, line 5: CPU part: not a hexadecimal number of"),
        (
            "variant\t: 0x1",
            "variant\t: 0x0 & 0x3",
            "line 4: CPU variant: not a hexadecimal number of 4",
        ),
        ("0xd01", "0xfffff", "line 5: CPU part: not a hexadecimal number of 12 bits"),
        ("revision\t: 0", "revision\t: 16", "not a number up to 15"),
    ],
)
def test_what_is_no_cpuinfo(old: str, new: str, why: str) -> None:
    _refused(_CPUINFO.replace(old, new), why)


@pytest.mark.parametrize("architecture", ["7", "6TEJ", "5TE", "7M"])
def test_cpuinfo_of_a_cpu_without_arm64(architecture: str) -> None:
    text = _CPUINFO.replace("architecture: 8", f"architecture: {architecture}")
    _refused(text, "is of 32-bit CPUs")
    _read(text.replace(architecture, "AArch64"))  # as kernels of old said


@pytest.mark.parametrize(
    "head", ["processor\t: 0\nvendor_id\t: GenuineIntel", "vendor_id : IBM/S390"]
)
def test_cpuinfo_of_no_arm_host(head: str) -> None:
    _refused(f"{head}\ncpu family\t: 6\nmodel name\t: Some CPU\n", "is of no ARM host")
    _refused(head, "is of no ARM host", form="cpuinfo")


def test_cpuinfo_of_several_kinds() -> None:
    _refused(_CPUINFO + _CPUINFO.replace("0xd01", "0xd02"), "has CPUs of several kinds")


# -- the command ---------------------------------------------------------------------------------


def test_the_command(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    dump, output = tmp_path / "dump.txt", tmp_path / "out.json"
    dump.write_text(_LINES, encoding="utf-8")
    arguments = ["import", str(dump), "-o", str(output), "--name", "alpha", "--kernel", "6.12.1"]
    assert cli.main(arguments) == 0
    here = profile_json.loads(output.read_text(encoding="utf-8"))
    assert (here.name, here.kernel) == ("alpha", "6.12.1")
    said = capsys.readouterr()
    assert said.out == ""
    assert "alpha: from registers of a vCPU; not known: overrides, capabilities, " in said.err
    assert cli.main(["import", str(dump), "--format", "hardware"]) == 0
    printed = profile_json.loads(capsys.readouterr().out)
    assert {*printed.clusters[0].vcpus[0].registers} == {"MIDR_EL1", "REVIDR_EL1"}
    dump.write_text("x", encoding="utf-8")
    assert cli.main(["import", str(dump)]) == 1
    assert "line 1: " in capsys.readouterr().err


def test_a_profile_is_one_already(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "alpha.json"
    for form in ([], ["--format", "firecracker"]):
        path.write_text(json.dumps({"schema": "urn:kvmarm-plugin:profile:2", "name": "alpha"}))
        assert cli.main(["import", str(path), *form]) == 1
        assert (
            f"{path} is a profile of kvmarm's already (hint: give it as it is, wherever a profile"
            " is read: --host, compare, baseline)" in capsys.readouterr().err
        )


def test_an_empty_dump_is_told_where_the_cpu_is_named() -> None:
    with pytest.raises(DumpError, match="/sys/devices/system/cpu/cpu0/regs/identification/midr_el"):
        read("", "empty")


def test_the_formats_of_the_command_are_those_that_are_read() -> None:
    (subparsers,) = (a for a in cli._parser()._actions if isinstance(a.choices, dict))
    (choices,) = (
        action.choices
        for action in subparsers.choices["import"]._actions  # type: ignore[index]
        if action.dest == "format"
    )
    assert tuple(choices) == FORMS


def test_what_kvm_lists_of_a_host_is_read_back() -> None:
    """A recorded host's own vCPU, written as lines."""
    vcpu = host("trixie-neoverse-n1").clusters[0].vcpus[0]
    lines = [f"{name} {value:#x}" for name, value in vcpu.registers.items()]
    ids = [f"{id_of(name):#x} {value:#x}" for name, value in vcpu.registers.items()]
    for text in ("\n".join(lines), "\n".join(ids)):
        found = _read(text, kernel="6.12.117").clusters[0].vcpus[0]
        assert found.registers == vcpu.registers
        assert found.features == vcpu.features
