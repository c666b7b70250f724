# SPDX-License-Identifier: LGPL-2.1-or-later
"""libkvmarm-level: with its own driver, which plays QEMU and KVM, under sanitizers; and as it is
loaded, into ordinary processes and into QEMU.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

_PRELOAD = Path(__file__).parents[2] / "preload"
_PROOF = "/proc/libkvmarm-level.so.1/is-not-loaded"
_SANITIZED = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

_MIDR, _PFR0, _PFR1, _CLIDR = (
    "603000000013c000",
    "603000000013c020",
    "603000000013c021",
    "603000000013c801",
)
_PMCR, _TCR2 = "603000000013dce0", "603000000013c103"
_PSCI, _BMAP_2 = "6030000000140000", "6030000000160003"
_CCSIDR = "6020000000110000"  # of 32 bits
_SVE_VLS = "606000000015ffff"  # of 512 bits

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


@dataclass(frozen=True)
class _Done:
    status: int
    out: list[str]
    err: str

    @property
    def line(self) -> str:
        """The one line that the library has said, without its name."""
        (line,) = self.err.splitlines()
        name, _, said = line.partition(": ")
        assert name == "kvmarm-level"
        return said

    def died(self) -> str:
        assert self.status == 1, (self.status, self.out, self.err)
        return self.line

    def lived(self) -> list[str]:
        assert (self.status, self.err) == (0, "")
        return self.out


def _run(
    *command: object, variables: Mapping[str, str] | None = None, given: str | None = None
) -> _Done:
    kept = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "KVMARM_LEVEL")}
    done = subprocess.run(
        [str(word) for word in command],
        env=kept | dict(variables or {}),
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return _Done(done.returncode, done.stdout.splitlines(), done.stderr)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preload") / "driver"
    flags = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{_PRELOAD}", "-o", path)
    done = _run("gcc", *_SANITIZED, *flags, _PRELOAD / "tests/driver.c")
    assert (done.status, done.err) == (0, "")
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, for this machine."""
    out = tmp_path_factory.mktemp("library")
    done = _run("make", "-C", _PRELOAD, f"OUT={out}", "CC=gcc")
    assert (done.status, done.err) == (0, "")
    return out / "libkvmarm-level.so.1"


@dataclass(frozen=True)
class _Played:
    """Some text, given to the driver; `regs` are lines ID VALUE WRITABLE [behaviour]."""

    driver: Path
    text: str
    regs: tuple[str, ...]

    def __call__(self, *lines: str) -> _Done:
        script = "".join(f"{line}\n" for line in (*(f"reg {reg}" for reg in self.regs), *lines))
        return _run(self.driver, variables={"KVMARM_LEVEL": self.text}, given=script)


# A guest's vCPU, up to its first run, as QEMU does it; its file descriptor is 11.
_START = ("vm", "vcpu", "init 11", "list 11")
_STARTED = ["vm 10", "vcpu 11", "init 0", "list E2BIG", "list 0"]
_RUN = ("run 11",)


# -- a vCPU is levelled --------------------------------------------------------------------------


@pytest.mark.parametrize("as_int", [(), ("int",)], ids=["", "requests-are-ints"])
def test_qemu_sees_what_was_promised_and_no_more(driver: Path, as_int: tuple[str, ...]) -> None:
    """QEMU 7.2 keeps requests in an int: KVM_GET_REG_LIST comes with its sign extended."""
    text = f"1 {_PFR0}=1101 -{_TCR2} -{_BMAP_2}=0"
    play = _Played(
        driver, text, (f"{_PFR0} 1111 ffff", f"{_TCR2} 5 ff", f"{_PFR1} 7 0", f"{_BMAP_2} 3 ff")
    )
    gets = (f"get 11 {_PFR0}", f"get 11 {_PFR1}", f"get 11 {_BMAP_2}", f"get 11 {_TCR2}")
    assert play(*as_int, *_START, *gets, *_RUN, *_RUN).lived() == [
        *_STARTED,
        f"listed {_PFR0} {_PFR1}",
        *("get 0", "got 1101", "get 0", "got 7", "get 0", "got 0", "get 0", "got 5"),
        *("entered", "run EINTR", "entered", "run EINTR"),
    ]


def test_what_the_scratch_vcpus_have_is_left_alone(driver: Path) -> None:
    """QEMU makes them to see what the host has, and lists none of them. Their file descriptors are
    used again.
    """
    play = _Played(driver, f"1 {_PFR0}=1101", (f"{_PFR0} 1111 ffff",))
    scratch = ("vm", "vcpu", "init 11", f"get 11 {_PFR0}", "fd 10")
    assert play(*scratch, *_START, *_RUN).lived() == [
        *("vm 10", "vcpu 11", "init 0", "get 0", "got 1111"),
        *(*_STARTED, f"listed {_PFR0}", "entered", "run EINTR"),
    ]


def test_the_identity_has_its_capability(driver: Path) -> None:
    regs = (f"{_MIDR} 410fd400 ffffffff", f"{_PFR0} 1111 ffff")
    text = f"1 {_MIDR}=410fd490"
    assert _Played(driver, text, regs)("vm").lived() == ["enabled 239", "vm 10"]
    assert _Played(driver, f"1 {_PFR0}=1101", regs)("vm").lived() == ["vm 10"]
    assert _Played(driver, f"1 -{_MIDR}", regs)("vm").lived() == ["vm 10"]


def test_registers_of_32_bits(driver: Path) -> None:
    """KVM reads and writes no more of them than that."""
    play = _Played(driver, f"1 {_CCSIDR}=701fe00a", (f"{_CCSIDR} f000e01a ffffffff",))
    assert play(*_START, f"get 11 {_CCSIDR}").lived()[-1] == "got 701fe00a"


@pytest.mark.parametrize("behaviour", ["resets", ""])
def test_a_reset_guest_is_levelled_before_qemu_reads_it(driver: Path, behaviour: str) -> None:
    play = _Played(driver, f"1 {_CLIDR}=3", (f"{_CLIDR} 23 ff {behaviour}",))
    again = ("init 11", f"get 11 {_CLIDR}", "run 11")
    assert play(*_START, *_RUN, *again, *again).lived()[-3:] == ["got 3", "entered", "run EINTR"]


def test_threads(driver: Path) -> None:
    """Each vCPU has its own; this KVM has one register for all, which is as most ID registers."""
    play = _Played(driver, f"1 {_CLIDR}=3", (f"{_CLIDR} 23 ff",))
    assert play("threads 16").lived()[-1] == "threads 16"


def test_of_pmcr_only_the_number_of_counters_is_promised(driver: Path) -> None:
    """E and the like are the guest's; what KVM does not let be written, it ignores."""
    play = _Played(driver, f"1 {_PMCR}=2000", (f"{_PMCR} 41013040 ffff ignores",))
    done = play(*_START, *_RUN, f"set 11 {_PMCR} 2041", f"get 11 {_PMCR}", f"set 11 {_PMCR} 3040")
    assert done.out[-4:] == ["set 0", "get 0", "got 41012041", "set EINVAL"]
    assert "is not levelled like this one" in done.line
    assert done.status == 0


# -- and QEMU ends where one is not --------------------------------------------------------------


@pytest.mark.parametrize(
    ("reg", "said"),
    [
        (f"{_PFR0} 1111 0", f"does not let register {_PFR0} be 1101 (Invalid argument)"),
        (f"{_PFR0} 1111 0 ignores", f"register {_PFR0} was set to 1101, and KVM on this host"),
        (f"{_PFR1} 1111 0", f"does not show register {_PFR0} (No such file or directory)"),
    ],
    ids=["refused", "ignored", "unknown"],
)
def test_what_kvm_does_not_do(driver: Path, reg: str, said: str) -> None:
    assert said in _Played(driver, f"1 {_PFR0}=1101", (reg,))(*_START).died()


def test_left_out_is_no_leave_to_differ(driver: Path) -> None:
    """Only a host that does not have the register need not take its value."""
    text = f"1 -{_BMAP_2}=0"
    assert _Played(driver, text, (f"{_PFR0} 1 0",))(*_START, *_RUN).lived()[-1] == "run EINTR"
    assert "does not let" in _Played(driver, text, (f"{_BMAP_2} 3 0",))(*_START, *_RUN).died()


@pytest.mark.parametrize(
    "lines",
    [
        ("vm", "vcpu", "init 11", "run 11"),
        (*_START, "vcpu", "run 12"),
        (*_START, "run 12"),
        (*_START, "run 70000"),
        (*_START, "run -1"),
        (*_START, "fd 11", "vcpu", "run 11"),
    ],
    ids=["unlisted", "second", "unknown", "beyond", "no-fd", "another-vcpu-of-that-fd"],
)
def test_no_other_vcpu_is_run(driver: Path, lines: tuple[str, ...]) -> None:
    play = _Played(driver, f"1 {_PFR0}=1101", (f"{_PFR0} 1111 ffff",))
    done = play(*lines)
    assert done.died() == "QEMU runs a vCPU whose registers it has not listed"
    assert "entered" not in done.out


def test_no_other_vcpu_is_listed(driver: Path) -> None:
    play = _Played(driver, f"1 {_PFR0}=1101", (f"{_PFR0} 1111 ffff",))
    assert "has not created" in play("vm", "list 11").died()
    assert "beyond 65536" in play("vm", "fd 65536", "vcpu").died()
    assert play("vm", "fd 65535", "vcpu", "list 65535").lived()[-1] == f"listed {_PFR0}"


def test_what_qemu_or_the_kernel_has_changed_before_the_first_run(driver: Path) -> None:
    """Linux writes the fields of the GIC when it is created, and at the first run."""
    text = f"1 {_PFR0}=1101"
    before = _Played(driver, text, (f"{_PFR0} 1111 ffff resets",))
    done = before(*_START, "vcpu", "init 12", *_RUN)
    assert done.died().endswith("shows 1111")
    assert "entered" not in done.out
    during = _Played(driver, text, (f"{_PFR0} 1111 ffff =1111",))
    assert during(*_START, *_RUN).died().endswith("shows 1111")


def test_state_of_a_guest_that_was_promised_something_else_is_refused(driver: Path) -> None:
    regs = (f"{_PFR0} 1111 ffff", f"{_PSCI} 10003 ffffffff", f"{_PFR1} 7 ff")
    play = _Played(driver, f"1 {_PFR0}=1101 -{_PSCI}=10001", regs)
    done = play(*_START, f"set 11 {_PFR0} 1111", f"get 11 {_PFR0}")
    assert done.out[-3:] == ["set EINVAL", "get 0", "got 1101"]
    assert done.line == (
        f"the guest's state has 1111 in register {_PFR0}, and was promised 1101: it comes from a"
        " guest that is not levelled like this one"
    )
    assert play(*_START, f"set 11 {_PSCI} 10003").out[-1] == "set EINVAL"
    sets = (f"set 11 {_PFR0} 1101", f"set 11 {_PSCI} 10001", f"set 11 {_PFR1} 5")
    assert play(*_START, *sets).lived()[-3:] == ["set 0"] * 3


def test_what_qemu_sets_before_the_list_is_levelled_too(driver: Path) -> None:
    """kvm-psci-version of QEMU 11.1."""
    play = _Played(driver, f"1 {_PSCI}=10001", (f"{_PSCI} 10003 ffffffff",))
    done = play("vm", "vcpu", f"set 11 {_PSCI} 10002", "init 11", "list 11", f"get 11 {_PSCI}")
    assert done.lived()[-1] == "got 10001"


# -- the text ------------------------------------------------------------------------------------

_MANY = " ".join(f"{0x603000000013C000 + n:x}=1" for n in range(256))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1 ",
        " 1 1=1",
        "2 1=1",
        "10 1=1",
        "1  1=1",
        "1\t1=1",
        "1 1=1 ",
        "1 1=1\n",
        f"1 {_PFR0}",
        "1 =1",
        "1 -",
        "1 --1",
        f"1 {_PFR0}=",
        f"1 {_PFR0}=-1",
        f"1 {_PFR0}=0x1",
        f"1 {_PFR0}=G",
        f"1 {_PFR0}=1=1",
        f"1 {_PFR0.upper()}=1",
        f"1 0{_PFR0}=1",
        f"1 {_PFR0}=11111111111111111",
        f"1 {_PFR0}=1 {_PFR0}=1",
        f"1 {_PFR0}=1 -{_PFR0}",
        f"1 {_CCSIDR}=100000000",
        f"1 {_SVE_VLS}=1",
        "1 1=1",
        f"1 {_MANY} {_PFR1[:-3]}fff=1",
        f"1 {_PFR0}=1 " + " " * 20000,
        "é",
    ],
)
def test_texts_that_are_not_kvmarms(driver: Path, text: str) -> None:
    assert _Played(driver, text, ())().died() == (
        "cannot read KVMARM_LEVEL: it is of another version than 1, or broken"
    )


@pytest.mark.parametrize(
    "text", [f"1 {_MANY}", f"1 {_PFR0}=ffffffffffffffff", f"1 {_PFR0}=0001", f"1 -{_SVE_VLS}"]
)
def test_texts_that_are(driver: Path, text: str) -> None:
    assert _Played(driver, text, ())().lived() == []


@pytest.mark.parametrize("seed", range(3))
def test_any_bytes(driver: Path, seed: int) -> None:
    """No text makes it read beyond its end, and an accepted one says what was understood."""
    (line,) = _run(driver, seed, 200_000).lived()
    assert int(line.removeprefix("accepted ")) > 0


# -- the library, loaded -------------------------------------------------------------------------


def test_it_stands_in_front_of_nothing_else(library: Path) -> None:
    (*names,) = _run("nm", "--dynamic", "--defined-only", "--format=posix", library).lived()
    assert {name.split()[0] for name in names} == {
        *("ioctl", "open", "open64"),
        "kvmarm_level_version",
    }
    needed = _run("readelf", "--dynamic", library).lived()
    names = [line.split()[-1] for line in needed if "(NEEDED)" in line]
    assert [name for name in names if not name.startswith("[ld-linux-")] == ["[libc.so.6]"]


def test_the_version_of_its_text_can_be_asked_for(library: Path) -> None:
    version = ctypes.c_char.in_dll(ctypes.CDLL(str(library)), "kvmarm_level_version")
    assert ctypes.string_at(ctypes.addressof(version)) == b"1"


@pytest.mark.parametrize(
    "options", ["-O3 -D_FORTIFY_SOURCE=2", "-O2 -D_FILE_OFFSET_BITS=64 -D_TIME_BITS=64", "-O0"]
)
def test_it_is_built_with_what_distributions_build_with(tmp_path: Path, options: str) -> None:
    flags = (f"OUT={tmp_path}", "CC=gcc", "CPPFLAGS=", f"CFLAGS={options} -Wshadow -Wconversion")
    done = _run("make", "-C", _PRELOAD, *flags)
    assert (done.status, done.err) == (0, "")


def test_without_a_text_it_does_nothing(library: Path) -> None:
    loaded = {"LD_PRELOAD": str(library)}
    assert "No such file" in _run("cat", _PROOF, variables=loaded).err
    assert _run("cat", "/proc/self/maps", variables=loaded).err == ""
    children = _run("sh", "-c", "env; cat /proc/self/maps", variables=loaded).lived()
    assert f"LD_PRELOAD={library}" in children


def test_with_a_text_it_opens_the_proof_for_its_own_process(library: Path) -> None:
    told = {"LD_PRELOAD": str(library), "KVMARM_LEVEL": f"1 {_PFR0}=1101"}
    assert _run("cat", _PROOF, variables=told).lived() == []
    assert "No such file" in _run("cat", _PROOF + "x", variables=told).err
    null = "import ctypes, os; print(ctypes.CDLL(None, use_errno=True).open(None, os.O_RDONLY))"
    assert _run("python3", "-c", null, variables=told).lived() == ["-1"]
    children = _run("sh", "-c", "env; cat /proc/self/maps", variables=told).lived()
    assert not [line for line in children if re.search("KVMARM_LEVEL|LD_PRELOAD|kvmarm", line)]
    assert "No such file" in _run("sh", "-c", f"cat {_PROOF}; :", variables=told).err


def test_a_hostile_text_ends_any_process(library: Path) -> None:
    told = {"LD_PRELOAD": str(library), "KVMARM_LEVEL": "1 \x1b[2J"}
    done = _run("true", variables=told)
    assert done.died().startswith("cannot read KVMARM_LEVEL")
    assert "\x1b" not in done.err


@pytest.mark.skipif(shutil.which("qemu-system-aarch64") is None, reason="needs QEMU")
def test_qemu_starts_with_it_alone(library: Path) -> None:
    """The secret that a levelled domain has QEMU read may be empty."""
    proof = f"secret,id=kvmarm-level,file={_PROOF}"
    machine = ("-machine", "none", "-display", "none", "-monitor", "stdio")
    qemu = ("qemu-system-aarch64", *machine, "-object", proof)
    loaded = {"LD_PRELOAD": str(library)}
    assert _run(*qemu, variables=loaded | {"KVMARM_LEVEL": "1 -1"}, given="quit\n").status == 0
    for variables in ({}, loaded, {"KVMARM_LEVEL": "1 -1"}):
        done = _run(*qemu, variables=variables, given="quit\n")
        assert done.status == 1
        assert "libkvmarm-level.so.1/is-not-loaded" in done.err


def test_a_process_that_lives_long_sees_that_it_was_removed(library: Path, tmp_path: Path) -> None:
    """The agent, which resolves for as long as the host is up."""
    copy = tmp_path / library.name
    shutil.copy(library, copy)
    script = (
        "import os, sys; from kvmarm_plugin.host.level_library import installed_version as of;"
        " print(of()); os.unlink(sys.argv[1]); print(of() or 'none')"
    )
    paths = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(_PRELOAD.parent)}
    done = _run(sys.executable, "-c", script, copy, variables=paths)
    assert done.lived() == ["1", "none"]
