# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command `kvmarm`: what each command prints and leaves behind, and that bad input is one line
and a hint.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

import pytest

from kvmarm_plugin import __version__, commands
from kvmarm_plugin.cli import main
from kvmarm_plugin.commands import inputs
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain import xml as domain
from kvmarm_plugin.host import known, libvirtd, qemu
from kvmarm_plugin.kvm.device import SystemCalls
from kvmarm_plugin.model import policy, profile_json

from .fakehost import write_emulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ROOT = Path(__file__).parent.parent.parent
_HOSTS = _ROOT / "tests/hosts"
_MAX, _A57 = str(_HOSTS / "trixie-max.json"), str(_HOSTS / "trixie-cortex-a57.json")
_N1 = str(_HOSTS / "trixie-neoverse-n1.json")

_DOMAIN = """\
<?xml version="1.0" encoding="UTF-8"?>
<domain type='kvm'>
  <name>guest</name>
  <!-- an umlaut: ü -->
  <memory unit='MiB'>512</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='aarch64' machine='virt'>hvm</type>
    <kernel>/boot/vmlinuz</kernel>
  </os>
  <cpu mode='host-model'/>
  <devices>
    <console type='pty'/>
  </devices>
</domain>
"""
# The same for libvirt's test driver, which has a default domain type of its own and no ARM machines
# to check.
_OTHER = _DOMAIN.replace("host-model", "host-passthrough")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a domain in it, on a machine without a policy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(tmp_path / "no-policy.yaml"))
    (tmp_path / "guest.xml").write_text(_DOMAIN, encoding="utf-8")
    return tmp_path


class Run(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(here: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Run]:
    """`kvmarm` in this process."""

    def call(*arguments: str) -> Run:
        status = main(list(arguments))
        out, err = capsysbinary.readouterr()
        return Run(status, out.decode(), err.decode())

    return call


def _command(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    """`kvmarm` as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("LIBVIRT_DEFAULT_URI", "PYTHONUNBUFFERED"):
        environment.pop(name, None)
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-m", "kvmarm_plugin", *arguments],
        env=environment,
        **{
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "stdin": subprocess.DEVNULL,
            **options,
        },
    )


def _finish(process: subprocess.Popen[bytes], source: bytes | None = None) -> Run:
    out, err = process.communicate(source, timeout=60)
    return Run(process.returncode, (out or b"").decode(), err.decode())


# -- the command as such -------------------------------------------------------------------------


def test_version() -> None:
    assert _finish(_command("--version")) == Run(0, f"kvmarm {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [(), ("frobnicate",), ("define",), ("resolve", "--frob"), ("hook",), ("hook", "reinstall")],
)
def test_wrong_usage_is_status_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == commands.USAGE == 2
    assert capsys.readouterr().err.startswith("usage: kvmarm")


@pytest.mark.parametrize(
    "arguments",
    [
        ("resolve", "guest.xml", "--host", ""),
        ("resolve", "guest.xml", "--host="),
        ("resolve", "guest.xml", "-o", ""),
        ("resolve", "guest.xml", "-o="),
        ("check", "", "--host", _MAX),
        ("compare", _MAX, ""),
        ("status", "-c", ""),
        ("show", "--", ""),
    ],
)
def test_an_argument_that_is_empty(
    arguments: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A variable of a shell's that is not set does not make another host of this one."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == commands.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith("kvmarm: error: an argument is empty\n")


@pytest.mark.parametrize("arguments", [("--policy=policy=",), ("-oout=",)])
def test_an_argument_that_ends_in_an_equals_sign_is_not_empty(
    arguments: tuple[str, ...], run: Callable[..., Run], here: Path
) -> None:
    (here / "policy=").write_text("sve: off\n")
    assert run("resolve", "guest.xml", "--host", _MAX, *arguments).status == 0


def test_what_follows_two_dashes_is_a_name(run: Callable[..., Run], here: Path) -> None:
    (here / "--guest=").write_text(_DOMAIN, encoding="utf-8")
    assert run("resolve", "--host", _MAX, "--", "--guest=").status == 0


@pytest.mark.parametrize("arguments", [("--help",), ("probe", "-h"), ("define", "--help")])
def test_help_is_status_0(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 0
    assert "usage: kvmarm" in capsys.readouterr().out


def test_statuses() -> None:
    assert (commands.DONE, commands.ERROR, commands.USAGE, commands.INCOMPATIBLE) == (0, 1, 2, 3)


# -- resolve -------------------------------------------------------------------------------------


def test_resolve(run: Callable[..., Run]) -> None:
    status, out, err = run("resolve", "guest.xml", "--host", _MAX)
    assert (status, err) == (0, "")
    root = domain.parse(out.encode())
    cpu = root.find("cpu")
    assert cpu
    assert cpu.attributes["mode"] == "host-passthrough"
    element = record.find(root)
    assert element
    assert record.read(element).origin.host == profile_json.loads(Path(_MAX).read_text()).name
    assert "<!-- an umlaut: ü -->" in out


def test_resolve_reads_standard_input() -> None:
    for arguments in (("resolve", "--host", _MAX), ("resolve", "-", "--host", _MAX)):
        result = _finish(_command(*arguments, stdin=subprocess.PIPE), _DOMAIN.encode())
        assert (result.status, result.err) == (0, "")
        assert "<kvmarm:target " in result.out


@pytest.mark.parametrize(
    "arguments",
    [("resolve", "--host", "-"), ("check", "-", "--host", "-"), ("compare", "-", "-")],
)
def test_standard_input_is_read_once(arguments: tuple[str, ...]) -> None:
    first = _DOMAIN.encode() if arguments[0] == "resolve" else Path(_MAX).read_bytes()
    result = _finish(_command(*arguments, stdin=subprocess.PIPE), first)
    _check_failure(result, "standard input is named twice")


def test_resolve_in_place_and_back(run: Callable[..., Run], here: Path) -> None:
    assert run("resolve", "guest.xml", "--host", _MAX, "-o", "guest.xml") == (0, "", "")
    assert "<kvmarm:target " in (here / "guest.xml").read_text()
    assert run("resolve", "guest.xml", "--restore-intent", "-o", "guest.xml") == (0, "", "")
    assert (here / "guest.xml").read_text() == _DOMAIN
    assert sorted(path.name for path in here.iterdir()) == ["guest.xml"]


def test_output_keeps_the_mode_of_a_file(run: Callable[..., Run], here: Path) -> None:
    """Domain XML may hold passwords (graphics, secrets): what its owner has closed stays closed."""
    (here / "guest.xml").chmod(0o600)
    assert run("resolve", "guest.xml", "--host", _MAX, "-o", "guest.xml").status == 0
    assert (here / "guest.xml").stat().st_mode & 0o7777 == 0o600


def test_a_new_output_file_has_the_mode_that_the_user_wants(
    run: Callable[..., Run], here: Path
) -> None:
    mask = os.umask(0o027)
    try:
        assert run("resolve", "guest.xml", "--host", _MAX, "-o", "new.xml").status == 0
    finally:
        os.umask(mask)
    assert (here / "new.xml").stat().st_mode & 0o7777 == 0o640


def test_output_goes_through_a_symbolic_link(run: Callable[..., Run], here: Path) -> None:
    (here / "link.xml").symlink_to("guest.xml")
    assert run("resolve", "link.xml", "--host", _MAX, "-o", "link.xml").status == 0
    assert (here / "link.xml").is_symlink()
    assert "<kvmarm:target " in (here / "guest.xml").read_text()


def test_output_to_a_device_leaves_the_device(run: Callable[..., Run], here: Path) -> None:
    """A FIFO stands in for /dev/null and /dev/stdout, which root could replace."""
    os.mkfifo(here / "pipe")
    reader = os.open(here / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run("resolve", "guest.xml", "--host", _MAX, "-o", "pipe").status == 0
        assert (here / "pipe").is_fifo()
        assert b"<kvmarm:target " in os.read(reader, 1 << 16)
    finally:
        os.close(reader)


def test_print_diff(run: Callable[..., Run], here: Path) -> None:
    resolved = run("resolve", "guest.xml", "--host", _MAX).out
    status, out, err = run("resolve", "guest.xml", "--host", _MAX, "--print-diff")
    assert (status, err) == (0, "")
    expected = difflib.unified_diff(
        _DOMAIN.splitlines(True), resolved.splitlines(True), "guest.xml", "resolved"
    )
    assert out == "".join(expected)
    assert "-  <cpu mode='host-model'/>\n" in out
    assert (here / "guest.xml").read_text() == _DOMAIN


def test_a_diff_of_nothing_is_empty(run: Callable[..., Run], here: Path) -> None:
    (here / "other.xml").write_text(_OTHER)
    assert run("resolve", "other.xml", "--host", _MAX, "--print-diff") == (0, "", "")


def test_what_does_not_ask_needs_no_host_and_stays(
    run: Callable[..., Run], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        inputs, "probe_here", lambda *_, **__: pytest.fail("probed for a domain that does not ask")
    )
    (here / "other.xml").write_text(_OTHER)
    assert run("resolve", "other.xml") == (0, _OTHER, "")


def test_policy(run: Callable[..., Run], here: Path) -> None:
    (here / "policy.yaml").write_text("sve: off\npauth: off\npmu: off\n")
    out = run("resolve", "guest.xml", "--host", _MAX, "--policy", "policy.yaml").out
    assert "<feature policy='disable' name='sve'/>" in out
    assert "<feature policy='disable' name='pauth'/>" in out
    assert "<pmu state='off'/>" in out


def test_the_hosts_own_policy_is_used(run: Callable[..., Run], here: Path) -> None:
    (here / "no-policy.yaml").write_text(
        "sve: off\n"
    )  # see `here`: in the place of /etc/kvmarm/policy.yaml
    assert (
        "<feature policy='disable' name='sve'/>" in run("resolve", "guest.xml", "--host", _MAX).out
    )


@pytest.mark.skipif(
    not Path("/usr/share/libvirt/schemas/domain.rng").exists(),
    reason="libvirt's schemas are not installed",
)
def test_validate(run: Callable[..., Run], here: Path) -> None:
    plain = run("resolve", "guest.xml", "--host", _MAX)
    assert run("resolve", "guest.xml", "--host", _MAX, "--validate") == plain
    (here / "guest.xml").write_text(
        _DOMAIN.replace("<vcpu>1", "<vcpus>1").replace("1</vcpu>", "1</vcpus>")
    )
    status, out, err = run("resolve", "guest.xml", "--host", _MAX, "--validate")
    assert (status, out) == (1, "")
    assert err.startswith("kvmarm: the domain is not valid: ")
    assert "(hint: " in err


# -- show ----------------------------------------------------------------------------------------


@pytest.fixture
def resolved(run: Callable[..., Run], here: Path) -> Path:
    assert run("resolve", "guest.xml", "--host", _MAX, "-o", "resolved.xml").status == 0
    return here / "resolved.xml"


def test_show(run: Callable[..., Run], resolved: Path) -> None:
    status, out, err = run("show", "resolved.xml")
    assert (status, err) == (0, "")
    rows = dict(line.split(None, 1) for line in out.splitlines())
    assert rows["domain"] == "guest"
    assert rows["target"].startswith("arm64 target 5 (GENERIC_V8), features psci_0_2 ")
    assert rows["intent"].startswith("<cpu mode='host-model'/>")
    assert rows["CNTFRQ_EL0"] == "62.5 MHz"
    assert len(out.splitlines()) < 20


def test_show_every_register(run: Callable[..., Run], resolved: Path) -> None:
    element = record.find(domain.parse(resolved.read_bytes()))
    assert element
    registers = record.read(element).target.registers
    lines = run("show", "-v", "resolved.xml").out.splitlines()
    for name, value in registers.items():
        assert any(line.split()[:2] == [name, f"{value:#018x}"] for line in lines), name


def test_show_json(run: Callable[..., Run], resolved: Path) -> None:
    status, out, err = run("show", "--json", "resolved.xml")
    assert (status, err) == (0, "")
    shown = json.loads(out)
    element = record.find(domain.parse(resolved.read_bytes()))
    assert element
    found = record.read(element)
    assert shown["target"]["number"] == found.target.number
    assert {
        name: int(value, 16) for name, value in shown["target"]["registers"].items()
    } == found.target.registers
    assert tuple(shown["target"]["sve_lengths"]) == found.target.sve_lengths
    assert shown["origin"]["host"] == found.origin.host


def test_show_standard_input(resolved: Path) -> None:
    result = _finish(_command("show", "-", stdin=subprocess.PIPE), resolved.read_bytes())
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("domain      guest\n")


def test_names_that_the_terminal_cannot_show(
    resolved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    source = resolved.read_text().replace("<name>guest</name>", "<name>gäst-机</name>")
    result = _finish(_command("show", "-", stdin=subprocess.PIPE), source.encode())
    assert (result.status, result.err) == (0, "")
    assert "\\u673a" in result.out


# -- probe ---------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An x86 machine without QEMU, whatever this one is."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.mark.usefixtures("elsewhere")
def test_probe_where_there_is_no_kvm_on_arm(run: Callable[..., Run], here: Path) -> None:
    status, out, err = run("probe", "-o", "profile.json")
    assert (status, out) == (1, "")
    lines = err.splitlines()
    assert (
        "kvmarm: not measured: KVM: this host is x86_64: KVM on ARM needs aarch64 or armv7l"
        in lines
    )
    assert any(
        line.startswith("kvmarm: not measured: QEMU: QEMU is not installed (hint: ")
        for line in lines
    )
    assert all(line.startswith("kvmarm: ") for line in lines)
    written = profile_json.loads((here / "profile.json").read_text())
    assert (written.architecture, written.clusters, written.qemu) == ("x86_64", (), None)
    assert [f"kvmarm: not measured: {problem}" for problem in written.problems] == lines


@pytest.mark.usefixtures("elsewhere")
def test_probe_prints_a_profile(run: Callable[..., Run]) -> None:
    assert profile_json.loads(run("probe").out).architecture == "x86_64"


@pytest.mark.usefixtures("elsewhere")
def test_probe_says_where_the_time_goes(run: Callable[..., Run]) -> None:
    err = run("probe", "-v").err
    assert "kvmarm: probed QEMU: " in err
    assert "kvmarm: probed libvirt: " in err


@pytest.mark.usefixtures("elsewhere")
def test_probe_asks_the_emulator_it_is_told(run: Callable[..., Run], here: Path) -> None:
    emulator = write_emulator(here / "my-qemu")
    found = profile_json.loads(run("probe", "--qemu", emulator).out).qemu
    assert found
    assert (found.binary, found.version) == (emulator, "10.0.2")


@pytest.mark.usefixtures("elsewhere")
def test_probe_makes_the_directory_of_profiles(
    run: Callable[..., Run], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where --host then finds it; no other directory is made."""
    monkeypatch.setattr(known, "HOSTS", here / "kvmarm/profiles")
    run("probe", "-o", str(here / "kvmarm/profiles/alpha.json"))
    assert known.hosts() == ["alpha"]
    known.read("alpha")
    _check_failure(run("probe", "-o", str(here / "other/alpha.json")), "cannot write")
    assert not (here / "other").exists()


def test_probe_as_a_process(tmp_path: Path) -> None:
    """On this machine, whatever it is: a profile is written, and the status says whether it has a
    CPU cluster.
    """
    status, _, err = _finish(_command("probe", "-o", str(tmp_path / "profile.json")))
    written = profile_json.loads((tmp_path / "profile.json").read_text())
    assert status == (0 if written.clusters else 1)
    assert "Traceback" not in err


# -- define, create, show with libvirt's test driver ---------------------------------------------


@pytest.fixture
def libvirt_test(here: Path) -> Iterator[object]:
    """libvirt's test driver, whose state lasts as long as a connection to it is open in this
    process.
    """
    libvirt = pytest.importorskip("libvirt")
    connection = libvirt.open("test:///default")
    yield connection
    for each in connection.listAllDomains():
        if each.name() != "test":
            persistent = each.isPersistent()
            if each.isActive():
                each.destroy()
            if persistent:
                each.undefine()
    connection.close()


_TEST = ("-c", "test:///default")


def _for_test_driver(here: Path, text: str = _DOMAIN) -> str:
    """The test driver takes no type but "test"; for the rest it is the XML that KVM gets."""
    (here / "guest.xml").write_text(text, encoding="utf-8")
    return "guest.xml"


class Driver:
    """Turns type='kvm' into type='test' on the way to the test driver and back, and writes down
    which calls are made.
    """

    def __init__(self, connection: object) -> None:
        self.connection = connection
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> object:
        self.calls.append(name)
        found = getattr(self.connection, name)
        if name in ("defineXMLFlags", "createXML"):
            return lambda xml, flags: found(
                xml.replace("<domain type='kvm'>", "<domain type='test'>"), flags
            )
        return found


@pytest.fixture
def driver(libvirt_test: object, monkeypatch: pytest.MonkeyPatch) -> Driver:
    import libvirt

    wrapped = Driver(libvirt_test)
    monkeypatch.setattr(libvirt, "open", lambda _uri: wrapped)
    monkeypatch.setattr(Driver, "close", lambda _self: None, raising=False)
    return wrapped


def test_define(run: Callable[..., Run], driver: Driver, here: Path) -> None:
    status, out, err = run("define", _for_test_driver(here), *_TEST, "--host", _MAX)
    assert (status, err) == (0, "")
    assert (
        out == "Domain 'guest' defined from guest.xml: host-model is now host on virt-10.0, arm64"
        " target 5 (GENERIC_V8)\n"
    )
    stored = driver.connection.lookupByName("guest").XMLDesc(0)  # type: ignore[attr-defined]
    element = record.find(domain.parse(stored.encode()))
    assert element
    assert record.read(element).target.model == "host"
    assert (here / "guest.xml").read_text() == _DOMAIN


def test_define_of_a_domain_that_does_not_ask(
    run: Callable[..., Run], driver: Driver, here: Path
) -> None:
    assert run("define", _for_test_driver(here, _OTHER), *_TEST) == (
        0,
        "Domain 'guest' defined from guest.xml\n",
        "kvmarm: guest has no kvmarm record, since it does not ask for host-model (hint: to record"
        " what it has: kvmarm adopt guest)\n",
    )
    bare = _OTHER.replace("<cpu mode='host-passthrough'/>", "")
    assert bare != _OTHER
    assert run("create", _for_test_driver(here, bare.replace("guest", "g 2")), *_TEST).err == (
        "kvmarm: g 2 has no kvmarm record, since it does not ask for host-model (hint: its XML"
        " names no CPU, and KVM starts no guest of QEMU's default: write <cpu"
        " mode='host-model'/>)\n"
    )


_CPU = re.compile(r"\s*<cpu .*?</cpu>", re.DOTALL)


@pytest.mark.parametrize(
    ("edit", "subject"),
    [
        (lambda xml: _CPU.sub("", xml), "<cpu mode>: recorded host-passthrough, now none"),
        (
            lambda xml: xml.replace("64' machine='virt-10.0'", "64' machine='virt-9.0'"),
            "machine type: recorded virt-10.0, now virt-9.0",
        ),
    ],
)
def test_resolve_of_a_domain_whose_record_is_not_about_it(
    run: Callable[..., Run], here: Path, edit: Callable[[str], str], subject: str
) -> None:
    """It stays as it is, and what to do about it, done as is said, makes a record that is."""
    (here / "guest.xml").write_text(_DOMAIN)
    (here / "g 2.xml").write_text(edit(run("resolve", "guest.xml", "--host", _N1).out))
    status, out, err = run("resolve", "g 2.xml")
    assert (status, out) == (0, (here / "g 2.xml").read_text())
    assert err.startswith(
        f"kvmarm: its kvmarm record stays, and is not about it any more: {subject}"
    )
    command = err.partition("resolve it anew: ")[2].partition(";")[0]
    first, second = (shlex.split(each)[1:] for each in command.split("|"))
    (here / "written.xml").write_text(run(*first).out)
    assert second == ["resolve", "-"]
    again = run("resolve", "written.xml", "--host", _N1)
    assert (again.status, again.err) == (0, "")
    (here / "again.xml").write_text(again.out)
    assert run("resolve", "again.xml") == (0, again.out, "")


@pytest.mark.parametrize(
    ("old", "new", "hint"),
    [
        ("mode='host-passthrough'", "mode='maximum'", "write <cpu mode='host-model'/>; or, for a"),
        ("gic='3'", "gic='9'", "cannot be used: the domain's kvmarm record is broken"),
    ],
)
def test_resolve_of_a_domain_with_a_record_and_another_wish(
    run: Callable[..., Run], here: Path, old: str, new: str, hint: str
) -> None:
    (here / "guest.xml").write_text(_DOMAIN)
    xml = run("resolve", "guest.xml", "--host", _N1).out
    assert old in xml
    (here / "guest.xml").write_text(xml.replace(old, new))
    status, out, err = run("resolve", "guest.xml")
    assert (status, out) == (0, xml.replace(old, new))
    assert hint in err


def test_create(run: Callable[..., Run], driver: Driver, here: Path) -> None:
    status, out, err = run("create", _for_test_driver(here), *_TEST, "--host", _MAX)
    assert (status, err) == (0, "")
    assert out.startswith(
        "Domain 'guest' created from guest.xml: host-model is now host on virt-10.0"
    )
    found = driver.connection.lookupByName("guest")  # type: ignore[attr-defined]
    assert (found.isActive(), found.isPersistent()) == (1, 0)


def test_create_paused(
    run: Callable[..., Run], driver: Driver, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test driver does not know the flag, so it is looked at here."""
    import libvirt

    seen: list[int] = []

    def create_xml(self: Driver, _xml: str, flags: int) -> object:
        seen.append(flags)
        return self.connection.lookupByName("test")  # type: ignore[attr-defined]

    monkeypatch.setattr(Driver, "createXML", create_xml, raising=False)
    run("create", _for_test_driver(here), *_TEST, "--host", _MAX, "--paused")
    run("create", _for_test_driver(here), *_TEST, "--host", _MAX)
    assert seen == [libvirt.VIR_DOMAIN_START_PAUSED, 0]


def test_show_a_domain_by_name_and_by_uuid(
    run: Callable[..., Run], driver: Driver, here: Path
) -> None:
    run("define", _for_test_driver(here), *_TEST, "--host", _MAX)
    uuid = driver.connection.lookupByName("guest").UUIDString()  # type: ignore[attr-defined]
    by_name, by_uuid = run("show", *_TEST, "guest"), run("show", *_TEST, uuid)
    assert by_name == by_uuid
    assert (by_name.status, by_name.err) == (0, "")
    assert by_name.out.startswith("domain      guest\n")


def test_show_a_domain_without_a_record(run: Callable[..., Run], driver: Driver) -> None:
    assert run("show", *_TEST, "test") == (
        1,
        "",
        "kvmarm: test holds no kvmarm record, and is not judged: it is no KVM guest (<domain"
        " type='test'>) (hint: kvmarm is about KVM guests for ARM)\n",
    )


def test_a_domain_that_libvirt_does_not_know(run: Callable[..., Run], driver: Driver) -> None:
    names = "kvmarm status names the domains"
    assert run("check", "nosuch").err.endswith(
        f"(hint: {names}; there is no file of that name either)\n"
    )
    here = names.replace("status", "status -c 'test:///default'")
    assert run("show", "nosuch", *_TEST).err.endswith(
        f"(hint: {here}; there is no file of that name either)\n"
    )
    assert run("undo", "nosuch").err.endswith(f"(hint: {names})\n")
    far = run("check", "nosuch", "-c", "qemu+ssh://far/system", "--host", _N1).err
    assert "(hint: virsh -c 'qemu+ssh://far/system' list --all names the domains; " in far


def test_how_a_guest_gets_a_record(run: Callable[..., Run], driver: Driver, here: Path) -> None:
    """The command in the hint has all that it needs."""
    (here / "a guest.xml").write_text(_DOMAIN)
    hint = run("show", "./a guest.xml").err.partition("resolve it first: ")[2]
    assert shlex.split(hint.rstrip(")\n")) == ["kvmarm", "define", "./a guest.xml"]
    unresolved = _DOMAIN.replace("type='kvm'", "type='test'")
    driver.connection.defineXMLFlags(unresolved, 0)  # type: ignore[attr-defined]
    with patch.object(inputs, "asks_for_host_model", lambda _domain: True):  # whatever its type
        err = run("show", *_TEST, "guest").err
    assert "(hint: resolve it first: virsh dumpxml --inactive --security-info guest | kvm" in err


@pytest.mark.parametrize("command", ["define", "create"])
def test_a_name_that_is_taken(
    run: Callable[..., Run], driver: Driver, here: Path, command: str
) -> None:
    """libvirt takes XML without the <uuid> for another domain's. Only that is helped by it, and
    what is to be changed is the user's own XML.
    """
    file = _for_test_driver(here)
    assert run("define", file, *_TEST, "--host", _MAX).status == 0
    uuid = driver.connection.lookupByName("guest").UUIDString()  # type: ignore[attr-defined]
    status, out, err = run(command, file, *_TEST, "--host", _MAX)
    assert (status, out) == (1, "")
    assert "already exists with uuid" in err
    assert err.endswith(
        f" (hint: to replace that domain, write its <uuid>{uuid}</uuid> into the XML; for a new"
        " one, write another <name>)\n"
    )
    other = f"<uuid>{uuid[:-1]}{'0' if uuid[-1] != '0' else '1'}</uuid>"
    _for_test_driver(here, _DOMAIN.replace("<name>", f"{other}<name>", 1))
    assert f"write its <uuid>{uuid}</uuid>" in run(command, file, *_TEST, "--host", _MAX).err
    broken = _DOMAIN.replace("<vcpu>1<", "<vcpu>none<")
    assert "hint" not in run(command, _for_test_driver(here, broken), *_TEST, "--host", _MAX).err
    _for_test_driver(here, _DOMAIN.replace("<name>", f"<uuid>{uuid.upper()}</uuid><name>", 1))
    assert run("define", file, *_TEST, "--host", _MAX).status == 0


@pytest.mark.parametrize("validate", [False, True])
def test_the_old_definition_stays_when_define_fails(
    run: Callable[..., Run], driver: Driver, here: Path, validate: bool
) -> None:
    run("define", _for_test_driver(here), *_TEST, "--host", _MAX)
    before = driver.connection.lookupByName("guest").XMLDesc(0)  # type: ignore[attr-defined]
    broken = _DOMAIN.replace("<vcpu>1<", "<vcpu>none<")
    status, out, err = run(
        "define",
        _for_test_driver(here, broken),
        *_TEST,
        "--host",
        _MAX,
        *(["--validate"] * validate),
    )
    assert (status, out) == (1, "")
    assert err.startswith("kvmarm: libvirt: ")
    assert err.count("\n") == 1
    assert driver.connection.lookupByName("guest").XMLDesc(0) == before  # type: ignore[attr-defined]
    assert not [name for name in driver.calls if name.startswith(("undefine", "destroy"))]


def test_nothing_is_undefined_but_what_came_back() -> None:
    """The agent undefines what somebody undefined while it defined it."""
    found = [
        (path.name, word)
        for path in sorted((_ROOT / "kvmarm_plugin").rglob("*.py"))
        for word in (".undefine", ".destroy", "VIR_DOMAIN_UNDEFINE")
        for _ in range(path.read_text(encoding="utf-8").count(word))
    ]
    assert found == [
        ("libvirtd.py", ".undefine"),
        ("libvirtd.py", "VIR_DOMAIN_UNDEFINE"),
        ("agent.py", ".undefine"),
    ]


def test_define_as_a_process(here: Path) -> None:
    pytest.importorskip("libvirt")
    text = _OTHER.replace("type='kvm'", "type='test'")
    result = _finish(_command("define", "-", *_TEST, stdin=subprocess.PIPE), text.encode())
    assert result == (0, "Domain 'guest' defined from -\n", "")


@pytest.mark.parametrize(
    ("uri", "remote"),
    [
        ("qemu:///system", False),
        ("test:///default", False),
        ("qemu+ssh://root@far/system", True),
        ("qemu+unix:///system", False),
    ],
)
def test_which_connections_are_remote(uri: str, remote: bool) -> None:
    assert libvirtd.is_remote(uri) is remote


# -- bad input -----------------------------------------------------------------------------------


def _laughs() -> str:
    entities = "".join(f"<!ENTITY l{n} '{f'&l{n - 1};' * 10}'>" for n in range(1, 10))
    return f"<!DOCTYPE domain [<!ENTITY l0 'ha'>{entities}]><domain><name>&l9;</name></domain>"


def _yaml_laughs() -> str:
    """Six levels: a megabyte if it were written out, and no more, should it be."""
    return (
        "pmu: [&l0 [ha], "
        + ", ".join(f"&l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 7))
        + "]\n"
    )


def _changed(profile: str, **changes: object) -> str:
    return json.dumps({**json.loads(Path(profile).read_text()), **changes})


def _encoded(name: str) -> str:
    return _DOMAIN.replace("UTF-8", name)


_RESOLVE = ("resolve", "in", "--host", _MAX)
_WITH_HOST = ("resolve", "guest.xml", "--host", "in")
_WITH_POLICY = ("resolve", "guest.xml", "--host", _MAX, "--policy", "in")
_SHOW = ("show", "./in")

# Name → (what the file "in" holds, arguments, words of the message).
_BAD: dict[str, tuple[str | bytes, tuple[str, ...], str]] = {
    "empty": ("", _RESOLVE, "empty"),
    "blank": (" \n", _RESOLVE, "empty"),
    "not XML": ("name: guest\n", _RESOLVE, "the document is not XML (hint: give domain XML"),
    "binary": (bytes(range(256)), _RESOLVE, ""),
    "truncated": (_DOMAIN[: len(_DOMAIN) // 2], _RESOLVE, "not well-formed"),
    "mismatched": ("<domain type='kvm'><name>x</domain>", _RESOLVE, "not well-formed"),
    "two domains": (_DOMAIN + _DOMAIN.partition("\n")[2], _RESOLVE, "one domain a document"),
    "another document": (
        "<network><name>x</name></network>",
        _RESOLVE,
        "a <network>, not a <domain>",
    ),
    "undeclared entity": ("<domain><name>&foo;</name></domain>", _RESOLVE, "not well-formed"),
    "undeclared prefix": ("<domain><x:y/></domain>", _RESOLVE, "not well-formed"),
    "DOCTYPE": (_DOMAIN.replace("<domain ", "<!DOCTYPE domain>\n<domain "), _RESOLVE, "DOCTYPE"),
    "billion laughs": (_laughs(), _RESOLVE, "DOCTYPE"),
    "external entity": (
        (
            "<!DOCTYPE domain [<!ENTITY x SYSTEM"
            " 'file:///etc/hostname'>]><domain><name>&x;</name></domain>"
        ),
        _RESOLVE,
        "DOCTYPE",
    ),
    "external subset": (
        "<!DOCTYPE domain SYSTEM 'http://192.0.2.1/x.dtd'><domain/>",
        _RESOLVE,
        "DOCTYPE",
    ),
    "UTF-16": (_encoded("UTF-16").encode("utf-16"), _RESOLVE, "UTF-16"),
    "unknown encoding": (_encoded("x-unheard-of"), _RESOLVE, ""),
    "encoding of many bytes": (_encoded("euc-jp"), _RESOLVE, ""),
    "encoding that is none": (_encoded("rot13"), _RESOLVE, ""),
    "latin-1 bytes": (_DOMAIN.encode("latin-1"), _RESOLVE, "not well-formed"),
    "a host-model without os": (
        "<domain type='kvm'><name>x</name><cpu mode='host-model'/></domain>",
        ("show", "./in"),
        "no kvmarm",
    ),
    "two cpus": (_DOMAIN.replace("<devices>", "<cpu/><devices>"), _RESOLVE, "more than one <cpu>"),
    "no memory": (_DOMAIN.replace(">512<", ">lots<"), _RESOLVE, "<memory> is not a size"),
    "unknown feature": (
        _DOMAIN.replace("'host-model'/>", "'host-model'><feature name='aes'/></cpu>"),
        _RESOLVE,
        "no ARM CPU feature 'aes'",
    ),
    "unknown machine": (
        _DOMAIN.replace("'virt'", "'raspi4'"),
        _RESOLVE,
        "no machine type 'raspi4'",
    ),
    "record of version 2": (
        _DOMAIN.replace(
            "<name>", "<metadata><k:target xmlns:k='urn:kvmarm-plugin:target:3'/></metadata><name>"
        ),
        _RESOLVE,
        "of version 3; this kvmarm knows versions 1 and 2",
    ),
    "show a record of version 3": (
        _DOMAIN.replace(
            "<name>", "<metadata><k:target xmlns:k='urn:kvmarm-plugin:target:3'/></metadata><name>"
        ),
        _SHOW,
        "of version 3",
    ),
    "show an empty record": (
        _DOMAIN.replace(
            "<name>", "<metadata><k:target xmlns:k='urn:kvmarm-plugin:target:2'/></metadata><name>"
        ),
        _SHOW,
        "broken",
    ),
    "two records": (
        _DOMAIN.replace(
            "<name>",
            f"<metadata>{'<k:target xmlns:k=$urn:kvmarm-plugin:target:2$/>' * 2}</metadata><name>",
        ).replace("$", "'"),
        _SHOW,
        "more than one kvmarm record",
    ),
    "show without a record": (_DOMAIN, _SHOW, "holds no kvmarm record"),
    "deep, validated": (
        _DOMAIN.replace("<devices>", "<devices>" + "<x>" * 2000 + "</x>" * 2000),
        (*_RESOLVE, "--validate"),
        "",
    ),
    "empty profile": ("", _WITH_HOST, "not JSON"),
    "profile that is not JSON": (_DOMAIN, _WITH_HOST, "not JSON"),
    "binary profile": (bytes(range(256)), _WITH_HOST, "not a text in UTF-8"),
    "truncated profile": (
        Path(_A57).read_text()[:-200] if Path(_A57).exists() else "{",
        _WITH_HOST,
        "not JSON",
    ),
    "deep profile": ("[" * 100_000, _WITH_HOST, "not JSON"),
    "profile that is a list": ("[]", _WITH_HOST, "not a host profile"),
    "profile that is null": ("null", _WITH_HOST, "not a host profile"),
    "profile of nothing": ("{}", _WITH_HOST, "not a host profile"),
    "profile of another schema": (
        '{"schema": "urn:cobbler:profile:1"}',
        _WITH_HOST,
        "not a host profile",
    ),
    "profile of a newer schema": (
        '{"schema": "urn:kvmarm-plugin:profile:9"}',
        _WITH_HOST,
        "profile:9; this kvmarm knows",
    ),
    "incomplete profile": ('{"schema": "urn:kvmarm-plugin:profile:1"}', _WITH_HOST, "incomplete"),
    "profile with a broken cluster": (_changed(_A57, clusters=[7]), _WITH_HOST, "broken"),
    "profile with clusters of text": (_changed(_A57, clusters="none"), _WITH_HOST, ""),
    "profile without a cluster": (
        _changed(_A57, clusters=[], problems=["KVM: no /dev/kvm"]),
        _WITH_HOST,
        "no /dev/kvm",
    ),
    "profile without QEMU": (_changed(_A57, qemu=None), _WITH_HOST, "has no usable QEMU"),
    "policy that is not YAML": ("pmu: [off\n", _WITH_POLICY, "not YAML"),
    "policy with a tab": ("pmu:\toff\n\tsve: off\n", _WITH_POLICY, "not YAML"),
    "binary policy": (bytes(range(256)), _WITH_POLICY, "not a text in UTF-8"),
    "policy with control characters": ("pmu: \x01\n", _WITH_POLICY, "not YAML"),
    "policy that is a list": ("- pmu\n", _WITH_POLICY, "not a list of settings"),
    "policy that is a word": ("pmu\n", _WITH_POLICY, "not a list of settings"),
    "unknown setting": ("pmv: off\n", _WITH_POLICY, "unknown setting 'pmv'"),
    "bad value": ("pmu: maybe\n", _WITH_POLICY, "pmu cannot be 'maybe'"),
    "bad length": ("sve-max-length: 100\n", _WITH_POLICY, "sve-max-length cannot be 100"),
    "a date that is none": ("pmu: 2020-99-99\n", _WITH_POLICY, "not YAML"),
    "deep policy": ("[" * 20_000, _WITH_POLICY, "not YAML"),
    "a policy's billion laughs": (
        _yaml_laughs(),
        _WITH_POLICY,
        "anchors and aliases are not read here",
    ),
    "a long setting": ("x" * 1000 + ": off\n", _WITH_POLICY, "unknown setting"),
    "a python object": ("pmu: !!python/object/apply:os.system [true]\n", _WITH_POLICY, "not YAML"),
    "cluster that is not there": (
        "cluster: 0x410fd034\n",
        _WITH_POLICY,
        "no cluster with MIDR 0x410fd034",
    ),
    "cluster that is a switch": ("cluster: on\n", _WITH_POLICY, "cluster cannot be True"),
    "remote host without a profile": (
        _DOMAIN,
        ("define", "in", "-c", "qemu+ssh://far/system"),
        "another host",
    ),
    "URI that is none": (
        _DOMAIN,
        ("define", "in", "--host", _MAX, "-c", "qemu://[far/system"),
        "qemu://[far/system",
    ),
    "driver that is none": (
        _DOMAIN,
        ("define", "in", "--host", _MAX, "-c", "frob:///x"),
        "libvirt: ",
    ),
    "define of latin-1": (
        _encoded("ISO-8859-1").encode("latin-1"),
        ("define", "in", "--host", _MAX, "-c", "test:///default"),
        "not in UTF-8",
    ),
    "output into nowhere": (
        _DOMAIN,
        (*_RESOLVE, "-o", "missing/out.xml"),
        "cannot write missing/out.xml",
    ),
    "output into a file as directory": (
        _DOMAIN,
        (*_RESOLVE, "-o", "guest.xml/out.xml"),
        "cannot write guest.xml/out.xml",
    ),
    "output onto a directory": (_DOMAIN, (*_RESOLVE, "-o", "."), "cannot write ."),
    "output with a long name": (_DOMAIN, (*_RESOLVE, "-o", "x" * 300), "cannot write xxx"),
    "missing file": (
        "",
        ("resolve", "missing.xml", "--host", _MAX),
        "cannot read missing.xml: No such file",
    ),
    "missing profile": (
        "",
        ("resolve", "guest.xml", "--host", "missing.json"),
        "cannot read missing.json",
    ),
    "missing policy": (
        "",
        ("resolve", "guest.xml", "--host", _MAX, "--policy", "missing.yaml"),
        "cannot read missing.yaml",
    ),
    "directory as domain": ("", ("resolve", ".", "--host", _MAX), "cannot read .: Is a directory"),
    "directory as profile": (
        "",
        ("resolve", "guest.xml", "--host", "."),
        "cannot read .: Is a directory",
    ),
    "directory as policy": (
        "",
        ("resolve", "guest.xml", "--host", _MAX, "--policy", "."),
        "cannot read .: Is a directory",
    ),
    "a name of several lines": (
        "",
        ("resolve", "no\nsuch\nfile", "--host", _MAX),
        "cannot read no such file",
    ),
    "unknown domain": ("", ("show", "-c", "test:///default", "nobody"), "libvirt: "),
}


def _check_failure(result: Run, words: str) -> None:
    assert result.status == commands.ERROR == 1
    assert result.out == ""
    assert result.err.startswith("kvmarm: ")
    assert result.err.count("\n") == 1, "one line"
    assert result.err.endswith("\n")
    assert "(hint: " in result.err
    assert words in result.err
    assert "Traceback" not in result.err
    assert len(result.err) < 1000, "for people"


def _contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", sorted(_BAD))
def test_bad_input_is_one_line_and_a_hint(name: str, run: Callable[..., Run], here: Path) -> None:
    holds, arguments, words = _BAD[name]
    if "-c" in arguments:
        pytest.importorskip("libvirt")
    if "--validate" in arguments and not Path("/usr/share/libvirt/schemas/domain.rng").exists():
        pytest.skip("libvirt's schemas are not installed")
    (here / "in").write_bytes(holds.encode() if isinstance(holds, str) else holds)
    before = _contents(here)
    _check_failure(run(*arguments), words)
    assert _contents(here) == before, (
        "input files are as they were, and nothing else is left behind"
    )


def test_a_file_name_that_is_not_text(here: Path) -> None:
    """In a process: its standard error shows such a name with escapes, the one of a test does
    not.
    """
    _check_failure(
        _finish(_command("resolve", os.fsdecode(b"no-\xff-file"), "--host", _MAX, cwd=here)),
        "cannot read no-",
    )


@pytest.mark.parametrize(
    "arguments", [_RESOLVE, _WITH_HOST, _WITH_POLICY, ("resolve", "in", "--restore-intent")]
)
def test_a_document_of_100_mb(
    arguments: tuple[str, ...], run: Callable[..., Run], here: Path
) -> None:
    with open(here / "in", "wb") as file:
        file.truncate(100 * 1024 * 1024)  # sparse
    _check_failure(run(*arguments), "")


@pytest.mark.parametrize("size", [domain.SIZE_LIMIT, domain.SIZE_LIMIT + 1])
def test_the_size_limit_is_exact(size: int, run: Callable[..., Run], here: Path) -> None:
    (here / "in").write_bytes(_OTHER.encode().ljust(size))
    result = run("resolve", "in")
    if size > domain.SIZE_LIMIT:
        _check_failure(result, "larger than 10 MiB")
    else:
        assert (result.status, len(result.out.encode())) == (0, size)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission(run: Callable[..., Run], here: Path) -> None:
    (here / "guest.xml").chmod(0)
    _check_failure(
        run("resolve", "guest.xml", "--host", _MAX), "cannot read guest.xml: Permission denied"
    )


def test_resolve_without_dev_kvm(
    run: Callable[..., Run], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_device(_self: SystemCalls, path: str) -> int:
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(SystemCalls, "open", no_device)
    monkeypatch.setattr(qemu, "find_binary", lambda _architecture: write_emulator(here / "qemu"))
    _check_failure(run("resolve", "guest.xml"), "/dev/kvm does not exist")


@pytest.mark.usefixtures("elsewhere")
def test_resolve_on_x86(run: Callable[..., Run]) -> None:
    _check_failure(run("resolve", "guest.xml"), "this host is x86_64")
    assert "(hint: name an ARM host: --host PROFILE)" in run("resolve", "guest.xml").err


@pytest.mark.usefixtures("elsewhere")
def test_check_on_x86(run: Callable[..., Run], here: Path) -> None:
    """What helps is said: another host, or the guest's own."""
    resolved = run("resolve", "guest.xml", "--host", _MAX).out
    (here / "resolved.xml").write_text(resolved)
    _check_failure(run("check", "resolved.xml"), "this host is x86_64")
    assert "--host PROFILE, name an ARM host)" in run("check", "resolved.xml").err
    assert run("check", "resolved.xml", "--host", _MAX).status == 0
    (here / "plain.xml").write_text(_DOMAIN.replace("host-model", "host-passthrough"))
    for options in ((), ("--host", _MAX)):
        said = run("check", "plain.xml", *options)
        _check_failure(said, "this x86_64 host cannot tell what it has")
        assert "(hint: on its own host, to record what it has: kvmarm adopt guest)" in said.err


@pytest.mark.parametrize("command", ["check", "show"])
@pytest.mark.parametrize("name", ["nofile.xml", "pool.yaml"])
def test_a_file_that_is_not_there(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, name: str, command: str
) -> None:
    """A domain may be called so, and is looked for; where libvirt cannot be asked, the file is what
    was meant.
    """
    monkeypatch.setitem(sys.modules, "libvirt", None)
    said = run(command, name)
    _check_failure(said, f"cannot read {name}: there is no such file, and libvirt cannot be asked")
    assert said.err.endswith(" (hint: check the name)\n")
    _check_failure(run(command, "guest"), "the Python binding of libvirt is missing")


def test_without_libvirts_binding(run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    environment = "/opt/kvm arm"
    for prefix in (sys.base_prefix, environment):
        monkeypatch.setattr(sys, "prefix", prefix)
        said = run("define", "guest.xml", "--host", _MAX)
        _check_failure(said, "the Python binding of libvirt is missing")
        assert "(hint: install python3-libvirt" in said.err
        command = f"/usr/bin/python3 -m venv --system-site-packages '{environment}'"
        assert (command in said.err) == (prefix == environment)


# -- output that cannot be written ---------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file(here: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    process = _command(
        "resolve", "guest.xml", "--host", _MAX, "-o", "guest.xml", cwd=here, preexec_fn=limit
    )
    _check_failure(_finish(process), "cannot write guest.xml: File too large")
    assert _contents(here) == {"guest.xml": _DOMAIN.encode()}


@pytest.mark.parametrize(
    "arguments",
    [
        ("resolve", "guest.xml", "--host", _MAX),
        ("show", "resolved.xml"),
        ("show", "--json", "resolved.xml"),
    ],
)
def test_standard_output_is_full(arguments: tuple[str, ...], resolved: Path) -> None:
    with open("/dev/full", "wb") as full:
        result = _finish(_command(*arguments, cwd=resolved.parent, stdout=full))
    _check_failure(result, "No space left on device")


@pytest.mark.parametrize(
    "arguments",
    [
        ("resolve", "guest.xml", "--host", _MAX),
        ("show", "resolved.xml"),
        ("show", "-v", "resolved.xml"),
        ("probe", "--qemu", "/missing"),
    ],
)
def test_a_reader_that_has_seen_enough(arguments: tuple[str, ...], resolved: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = _command(*arguments, cwd=resolved.parent, stdout=writing)
    os.close(writing)
    status, _, err = _finish(process)
    assert status == 1
    assert [
        line for line in err.splitlines() if not line.startswith("kvmarm: not measured: ")
    ] == []


def test_no_standard_input(here: Path) -> None:
    """`kvmarm resolve <&-`, as some daemons start what they run."""
    process = _command(
        "resolve", "--host", _MAX, cwd=here, stdin=None, preexec_fn=lambda: os.close(0)
    )
    _check_failure(_finish(process), "cannot read ")


def test_interrupted(here: Path) -> None:
    """Ctrl-C while the command waits for its input."""
    # A shell starts its background jobs, and so perhaps these tests, with SIGINT ignored.
    listening = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = _command(
        "resolve", "--host", _MAX, cwd=here, stdin=subprocess.PIPE, preexec_fn=listening
    )
    # It is waiting once it has begun to read: that is when its main thread sleeps in pipe_read.
    deadline = time.monotonic() + 30
    while "pipe" not in _waiting_in(process.pid):
        assert time.monotonic() < deadline, "the command never began to read"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    status, out, err = _finish(process)
    assert (status, out) == (130, "")
    assert "Traceback" not in err


def _waiting_in(pid: int) -> str:
    """The kernel function that a process sleeps in, or the number of its system call where that is
    hidden.
    """
    try:
        call = Path(f"/proc/{pid}/syscall").read_text().split()
    except OSError:
        return ""
    # read is 0 on x86-64, 63 on arm64; its first argument is the descriptor: 0, standard input.
    return "pipe" if call[:2] in (["0", "0x0"], ["63", "0x0"]) else ""


@pytest.mark.parametrize("action", ["install", "uninstall"])
def test_the_hook_is_root_s_to_install(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    status, out, err = run("hook", action)
    assert (status, out) == (1, "")
    assert f"hook {action} is root's to do" in err
