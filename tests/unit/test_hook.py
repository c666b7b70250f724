# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hook as libvirt runs it: which operations it lets pass without a look, which guests it stops,
and what it costs.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import socket
import subprocess
import syslog
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.domain import record, record_text, restoring, rewrite
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.hook import answer as hook
from kvmarm_plugin.hook import guest as hook_guest
from kvmarm_plugin.hook import install as hookfile
from kvmarm_plugin.hook import tell, time_limit
from kvmarm_plugin.host import daemons, libvirt_host_model, marks, qemu_version
from kvmarm_plugin.host.daemons import Daemon
from kvmarm_plugin.host.marks import Ticket
from kvmarm_plugin.kvm import device
from kvmarm_plugin.model import policy, profile_json
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.model.target import Target
from kvmarm_plugin.registers.text import pack_ids, unpack_ids
from kvmarm_plugin.resolve.resolver import Resolver

from ..corpus import GUEST
from .fakehost import full_pipe
from .fakekernel import FakeKernel

if TYPE_CHECKING:
    from collections.abc import Callable

_ROOT = Path(__file__).parent.parent.parent
_HOOK = _ROOT / "kvmarm_plugin/hook/answer.py"
_SCRIPT = _ROOT / "hooks/qemu.d/50-kvmarm"
_PYTHON = "/usr/bin/python3"

_UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
_DOMAIN = GUEST.decode().replace("</name>", f"</name>\n  <uuid>{_UUID}</uuid>")
_SECOND = "<k:target xmlns:k='urn:kvmarm-plugin:target:2'/>"
_RECORD = f"<metadata>{_SECOND}</metadata>"
_RECORDED = _DOMAIN.replace("host-model", "host-passthrough").replace(
    "<memory", _RECORD + "<memory"
)

# Every operation that libvirt calls hooks/qemu with (https://libvirt.org/hooks.html), and the three
# that are looked at.
_LOOKED_AT = [("prepare", "begin"), ("migrate", "begin"), ("restore", "begin")]
_PASSED = [
    ("start", "begin"),
    ("started", "begin"),
    ("stopped", "end"),
    ("release", "end"),
    ("reconnect", "begin"),
    ("attach", "begin"),
    ("prepare", "end"),
    ("migrate", "end"),
    ("some-new-operation", "begin"),
    ("begin", "prepare"),
    ("", ""),
]


@pytest.fixture
def libvirt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/etc/libvirt of a machine on which no daemon runs. Returns the directory for hooks."""
    (tmp_path / "etc/libvirt").mkdir(parents=True)
    monkeypatch.setattr(hookfile, "_check_version", lambda: None)
    monkeypatch.setattr(daemons, "running", list)
    return tmp_path / "etc/libvirt/hooks/qemu.d"


@pytest.fixture
def script(libvirt: Path, run_directory: Path) -> Path:
    """The hook, installed; its own marks are kept apart."""
    hookfile.install(libvirt)
    path = libvirt / hookfile.NAME
    path.write_text(path.read_text().replace("marks=/run/kvmarm/", f"marks={run_directory}/"))
    return path


def _call(
    script: Path, *arguments: str, source: str | bytes = _DOMAIN, trace: bool = False
) -> tuple[int, str, str]:
    """Call the hook with libvirt's environment."""
    environment = {
        "LC_ALL": "C",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/",
        "USER": "root",
        "LOGNAME": "root",
    }
    command = ["/bin/sh", "-x", str(script)] if trace else [str(script)]
    process = subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    out, err = process.communicate(
        source.encode() if isinstance(source, str) else source, timeout=30
    )
    return process.returncode, out.decode(), err.decode()


# -- what passes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("operation", "stage"), _PASSED)
@pytest.mark.parametrize(
    "source", [_DOMAIN, _RECORDED, ""], ids=["host-model", "recorded", "nothing"]
)
def test_operations_that_are_not_looked_at(
    script: Path, operation: str, stage: str, source: str
) -> None:
    assert _call(script, "guest", operation, stage, "-", source=source) == (0, "", "")


@pytest.mark.parametrize(("operation", "stage"), _PASSED)
def test_nothing_is_started_for_them(script: Path, operation: str, stage: str) -> None:
    """Seen by the shell's own trace: one `case`, and the end."""
    status, _, trace = _call(script, "guest", operation, stage, "-", trace=True)
    assert status == 0
    assert [line for line in trace.splitlines() if line.startswith("+")] == ["+ exit 0"]


@pytest.mark.parametrize(("operation", "stage"), _LOOKED_AT)
def test_an_interpreter_is_started_for_the_others(script: Path, operation: str, stage: str) -> None:
    trace = _call(script, "guest", operation, stage, "-", trace=True)[2]
    assert f"+ [ -x {_PYTHON} ]\n" in trace
    assert "+ status=3\n" in trace, "the package says no: this guest asks for host-model"


@pytest.mark.parametrize(
    "arguments", [(), ("guest",), ("guest", "prepare"), ("guest", "prepare", "")]
)
def test_too_few_arguments(script: Path, arguments: tuple[str, ...]) -> None:
    assert _call(script, *arguments) == (0, "", "")


@pytest.mark.parametrize(
    "source",
    [
        _DOMAIN.replace("aarch64", "x86_64"),
        _DOMAIN.replace("type='kvm'", "type='qemu'"),
        _DOMAIN.replace("host-model", "host-passthrough"),
        _DOMAIN.replace("<name>guest", "<title>host-model</title><name>guest").replace(
            "mode='host-model'", "mode='custom'"
        ),
        "",
        "\0" * 100,
        "host-model",
        "<domain type='kvm'><cpu mode='host-model'",
        f"<!DOCTYPE x>{_DOMAIN}",
        "<?xml version='1.0' encoding='x-unheard-of'?>" + _DOMAIN,
        "<?xml version='1.0' encoding='euc-jp'?>" + _DOMAIN,
        "<?xml version='1.0' encoding='rot13'?>" + _DOMAIN,
        "<a>" * 100_000 + "host-model",
        b"\xff\xfe" + _DOMAIN.encode("utf-16-le"),
        bytes(range(256)) + b"host-model",
        _DOMAIN.encode().ljust(50 * 1024 * 1024),
    ],
    ids=[
        "x86",
        "TCG",
        "host-passthrough",
        "mentioned",
        "empty",
        "zeros",
        "word",
        "truncated",
        "DOCTYPE",
        "unknown encoding",
        "encoding of many bytes",
        "encoding that is none",
        "deep",
        "UTF-16",
        "binary",
        "50 MB",
    ],
)
def test_guests_that_are_not_ours(script: Path, source: str | bytes) -> None:
    assert _call(script, "guest", "migrate", "begin", "-", source=source) == (0, "", "")


# -- host-model that is still there --------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["aarch64", "armv7l"])
def test_a_guest_that_libvirt_could_not_start(script: Path, architecture: str) -> None:
    status, out, err = _call(
        script, "guest", "prepare", "begin", "-", source=_DOMAIN.replace("aarch64", architecture)
    )
    assert (status, out) == (1, "")
    assert err.startswith("kvmarm: guest asks for host-model, which libvirt cannot start on ARM.")
    assert "virsh dumpxml --inactive --security-info guest | kvmarm define -. If it is not" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "$(touch pwned)",
        "`touch pwned`",
        "a;touch pwned",
        "it's",
        'quo"te',
        "*",
        "-rf",
        "gäst",
        "\\",
        "a'$(touch pwned)'b",
    ],
)
def test_names_that_a_shell_would_read_otherwise(script: Path, tmp_path: Path, name: str) -> None:
    """The name comes from the domain's owner; the advice is pasted by root."""
    status, out, err = _call(script, name, "prepare", "begin", "-")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert not list(tmp_path.rglob("pwned"))
    odd = _DOMAIN.replace(_UUID, "$(touch pwned)")
    for source, called in ((_DOMAIN, name if name == "gäst" else _UUID), (odd, name)):
        _, _, err = _call(script, name, "prepare", "begin", "-", source=source)
        advice = err.partition("start it again: ")[2].partition(" | kvmarm")[0]
        assert shlex.split(advice) == ["virsh", "dumpxml", "--inactive", "--security-info", called]
    # And as the argument of another operation it changes nothing.
    assert _call(script, name, "reconnect", "begin", "-") == (0, "", "")


@pytest.mark.parametrize(
    "secret", ["<graphics type='vnc' passwd='s3cret'/>", "<name>s3cret</name>"]
)
def test_the_xml_is_not_shown(script: Path, secret: str) -> None:
    for source in (
        _DOMAIN.replace("<devices/>", f"<devices>{secret}</devices>"),
        _RECORDED.replace("<devices/>", secret),
    ):
        status, out, err = _call(script, "guest", "migrate", "begin", "-", source=source)
        assert (status, out) == (1, "")
        assert "s3cret" not in err


# -- guests with a record ------------------------------------------------------------------------


class Door:
    """`hook.verify` in this process, on a host whose kernel is played.

    Attributes:
        log: level and line of each message to the system's log.
        out: what was printed last for libvirt.
    """

    def __init__(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self._patch, self._capture = monkeypatch, capfd
        self.policy = tmp_path / "policy.yaml"
        self.log: list[tuple[str, str]] = []
        self.out = b""
        names = {getattr(syslog, f"LOG_{name}"): name for name in _LEVELS}
        monkeypatch.setattr(
            "syslog.syslog", lambda level, text: self.log.append((names[level], text))
        )
        monkeypatch.setattr("syslog.openlog", lambda *_: None)
        monkeypatch.setattr(policy.for_hook, "__defaults__", (str(self.policy),))

    def __call__(
        self, source: bytes, host: str, operation: str = "prepare", **seen: int
    ) -> tuple[bool, str]:
        """Whether the guest was stopped, and standard error.

        Args:
            seen: what guests read there, if that is not what the profile says.
        """
        profile = _profile(host)
        clusters = [c.replace(seen={**c.seen, **seen}) for c in profile.clusters]
        kernel = FakeKernel.from_profile(profile.replace(clusters=(*clusters,)))
        name = os.uname_result(("Linux", profile.name, profile.kernel, "#1", profile.architecture))
        self._patch.setattr("os.uname", lambda: name)
        kernel.current_cpu = lambda: 0
        self._patch.setattr(device, "SystemCalls", lambda: kernel)
        release = profile.qemu.release if profile.qemu else (0, 0)
        self._patch.setattr(qemu_version, "installed_version", lambda: release)
        stopped = hook.verify("guest", operation, source)
        assert not kernel.handles, "a file descriptor was left open"
        out, err = self._capture.readouterr()
        self.out = out.encode()
        return stopped, err


_LEVELS = ("ERR", "WARNING", "NOTICE", "INFO")


@pytest.fixture
def door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Door:
    return Door(tmp_path, monkeypatch, capfd)


def _profile(name: str) -> HostProfile:
    return profile_json.loads(
        (_ROOT / f"tests/hosts/{name}.json").read_text(encoding="utf-8"), name
    )


def _resolved(host: str) -> bytes:
    return Resolver(_profile(host), Policy()).resolve(_DOMAIN.encode())


@pytest.mark.parametrize(
    "host",
    [
        "trixie-cortex-a57",
        "trixie-neoverse-n1",
        "trixie-max",
        "trixie-a64fx",
        "bookworm-cortex-a57",
    ],
)
@pytest.mark.parametrize("operation", ["prepare", "migrate", "restore"])
def test_a_guest_on_the_host_it_was_resolved_for(door: Door, host: str, operation: str) -> None:
    assert door(_resolved(host), host, operation) == (False, "")
    assert door.log == []


_ARRIVALS = ["migrate", "restore"]
_MISFIT = ("trixie-max", "trixie-cortex-a57")  # where it was resolved, and where it is now


@pytest.mark.parametrize("operation", _ARRIVALS)
def test_an_arrival_on_a_host_that_does_not_do(door: Door, operation: str) -> None:
    status, err = door(_resolved(_MISFIT[0]), _MISFIT[1], operation)
    assert status
    assert err.startswith("kvmarm: guest cannot run on this host as it was promised: ")
    assert err.endswith(". To let it pass once: kvmarm allow guest\n")
    assert err.count("\n") == 1
    assert door.log == [("ERR", f"{operation}: {err[len('kvmarm: ') : -1]}")]
    assert (door.out, _tickets(), marks.marked()) == (b"", [], ([], []))


@pytest.mark.parametrize("operation", _ARRIVALS)
@pytest.mark.parametrize(
    ("source", "says"),
    [
        (_RECORDED, "broken"),
        (_RECORDED.replace("target:2", "target:3"), "version 3"),
        (
            _RECORDED.replace(
                _RECORD,
                _RECORD.replace("</m", "<k:target xmlns:k='urn:kvmarm-plugin:target:2'/></m"),
            ),
            "more than one",
        ),
        (_RECORDED[:-20], "not well-formed"),
        (_RECORDED.ljust(11 << 20), "larger than"),
    ],
    ids=["empty record", "newer record", "two records", "truncated", "large"],
)
def test_a_record_that_cannot_be_read(
    door: Door, run_directory: Path, source: str, says: str, operation: str
) -> None:
    """It stops an arrival, and is no reason not to boot."""
    status, err = door(source.encode(), "trixie-cortex-a57", operation)
    assert status
    assert says in err
    assert err.count("\n") == 1
    status, err = door(source.encode(), "trixie-cortex-a57")
    assert not status
    assert err.startswith("kvmarm: guest starts unchecked: ")
    assert says in err
    assert [level for level, _ in door.log] == ["ERR", "WARNING"]
    assert marks.marked() in (([_UUID], []), ([], ["guest"]))


def test_a_namespace_that_is_only_mentioned(door: Door) -> None:
    source = _DOMAIN.replace("host-model", "maximum").replace(
        "<name>", "<!-- urn:kvmarm-plugin:target:2 --><name>"
    )
    for operation in ("prepare", *_ARRIVALS):
        assert door(source.encode(), "trixie-cortex-a57", operation) == (False, "")
    assert (_tickets(), marks.marked()) == ([], ([], []))


def test_without_dev_kvm_nothing_arrives(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeKernel, "open", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))
    status, err = door(_resolved("trixie-cortex-a57"), "trixie-cortex-a57", "migrate")
    assert status
    assert "/dev/kvm does not exist" in err


def test_no_timer_is_left_running(door: Door) -> None:
    door(_resolved("trixie-cortex-a57"), "trixie-cortex-a57")
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_reading_the_policy_is_bounded_too(door: Door) -> None:
    os.mkfifo(door.policy)
    assert door(_RECORDED.encode(), "trixie-max", "migrate")[0]


# -- arrivals ------------------------------------------------------------------------------------

_TRIXIE, _SID = "trixie-neoverse-n1", "sid-neoverse-n1"


def _tickets() -> list[str]:
    directory = Path(marks.DIRECTORY, "arrival")
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def _target(xml: bytes) -> Target:
    return record.read(record.find(parse(xml)) or pytest.fail("no record")).target


def _store(xml: bytes) -> None:
    """As libvirt has it on disk: stored a while ago."""
    path = Path(marks.STORED, "guest.xml")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(xml)
    os.utime(path, (1, 1))


@pytest.mark.parametrize("operation", _ARRIVALS)
def test_the_record_follows_an_arrival(door: Door, operation: str) -> None:
    """QEMU will save every register that this kernel lists, and on the way back that counts."""
    xml = _resolved(_TRIXIE)
    assert door(xml, _SID, operation) == (False, "")
    found = record.read(record.find(parse(door.out)) or pytest.fail("no record"))
    assert unpack_ids(found.target.reglist) == unpack_ids(_target(_resolved(_SID)).reglist)
    assert found.target.seen == _target(xml).seen
    assert found.origin.renewed == _SID
    assert restoring.restore(door.out, parse(door.out)) == restoring.restore(xml, parse(xml))
    assert door.log == [("INFO", f"{operation}: guest gets a record of what it has on this host")]
    assert door(door.out, _SID) == (False, ""), "its prepare"
    assert (_tickets(), marks.marked(), door.out) == ([], ([], []), b"")


def test_a_record_of_version_1_is_left_alone_where_it_is_true(door: Door) -> None:
    """Output taints the domain."""
    xml = (_ROOT / "tests/records-1/trixie-cortex-a72/uefi.xml").read_bytes()
    assert door(xml, "trixie-cortex-a72", "migrate")[0] is False
    assert door.out == b""


def test_a_prepare_after_an_arrival_asks_nobody(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what on-migrate: warn has let pass is not refused by it."""
    door.policy.write_text("on-migrate: warn\non-drift: refuse\n")
    xml = _resolved("trixie-cortex-a57")
    status, err = door(xml, "trixie-cortex-a57", "migrate", CNTFRQ_EL0=25_000_000)
    assert (status, "should not run" in err) == (False, True)
    assert marks.take_ticket(_UUID, "guest") == Ticket(
        "migrate", record_text.digest(_target(xml)), ("timer-frequency",)
    )
    door(xml, "trixie-cortex-a57", "migrate", CNTFRQ_EL0=25_000_000)
    monkeypatch.setattr(FakeKernel, "open", lambda *_: pytest.fail("nobody should ask"))
    assert door(xml, "trixie-cortex-a57") == (False, "")
    assert [level for level, _ in door.log] == ["WARNING", "WARNING"]
    assert marks.marked() == ([], []), "what it believes of its timer is recorded"


def test_an_arrival_that_nobody_understands_is_marked(door: Door) -> None:
    door.policy.write_text("on-migrate: warn\n")
    xml = _resolved(_MISFIT[0])
    assert door(xml, _MISFIT[1], "migrate")[0] is False
    assert door.out == b"", "nobody knows what it will have"
    assert marks.marked() == ([], []), "it has not come yet"
    assert door(xml, _MISFIT[1]) == (False, "")
    assert re.match(
        r"it arrived with a record that may not be true here:( [a-z-]+)+$",
        marks.mark_of(_UUID) or "none",
    )


def test_a_ticket_is_good_once_and_for_one_record(door: Door) -> None:
    xml = _resolved(_TRIXIE)
    door(xml, _TRIXIE, "migrate")
    other = _resolved(_SID).replace(b"CNTFRQ_EL0=0x3b9aca0", b"CNTFRQ_EL0=0x3b9aca1")
    assert "starts, but not as recorded" in door(other, _TRIXIE)[1]
    marks.unmark(_UUID)
    door(xml, _TRIXIE, "migrate")
    assert door(xml, _TRIXIE) == (False, "")
    assert "CNTFRQ_EL0" in door(xml, _TRIXIE, CNTFRQ_EL0=1)[1]


def test_libvirt_refuses_after_migrate_begin_and_the_guest_is_started_later(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    xml = _resolved(_TRIXIE)
    door(xml, _TRIXIE, "migrate")
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.setattr(marks, "_now", lambda: now + 3600)
    assert "CNTFRQ_EL0" in door(xml, _TRIXIE, CNTFRQ_EL0=1)[1]


def test_an_offline_migration_and_a_cold_start(door: Door) -> None:
    """libvirt stores the definition after migrate begin; no prepare follows but the start's."""
    xml = _resolved(_TRIXIE)
    door(xml, _TRIXIE, "migrate")
    _store(xml)
    os.utime(Path(marks.STORED, "guest.xml"), None)
    assert "CNTFRQ_EL0" in door(xml, _TRIXIE, CNTFRQ_EL0=1)[1]


def test_a_forged_ticket(door: Door, run_directory: Path) -> None:
    xml = _resolved(_TRIXIE)
    for text in ("", "migrate", f"migrate {record_text.digest(_target(xml))} 1e99", "\xff" * 9999):
        (run_directory / "arrival").mkdir(parents=True, exist_ok=True)
        (run_directory / "arrival" / _UUID).write_text(text)
        assert "CNTFRQ_EL0" in door(xml, _TRIXIE, CNTFRQ_EL0=1)[1]
        assert _tickets() == []
        marks.unmark(_UUID)


def test_two_arrivals_at_once(door: Door) -> None:
    """Of two guests; and of one, of which libvirt lets only one start."""
    mine = _resolved(_TRIXIE)
    uuid = _UUID.replace("4", "5")
    theirs = mine.replace(_UUID.encode(), uuid.encode())
    door(mine, _TRIXIE, "migrate")
    door(theirs, _TRIXIE, "restore")
    door(theirs, _TRIXIE, "migrate")
    assert _tickets() == [_UUID, uuid]
    for xml in (theirs, mine):
        assert door(xml, _TRIXIE, CNTFRQ_EL0=1) == (False, "")
    assert _tickets() == []
    assert "CNTFRQ_EL0" in door(mine, _TRIXIE, CNTFRQ_EL0=1)[1]


@pytest.mark.parametrize("uuid", ["", "<uuid/>", "<uuid>x</uuid>", "<uuid>../../../../etc</uuid>"])
def test_a_guest_whose_uuid_is_odd(door: Door, uuid: str) -> None:
    xml = _resolved(_TRIXIE).replace(f"<uuid>{_UUID}</uuid>".encode(), uuid.encode())
    status, err = door(xml, _TRIXIE, "migrate")
    assert (status, "will be judged as a cold start: its UUID cannot be read" in err) == (
        False,
        True,
    )
    assert door(xml, _TRIXIE, CNTFRQ_EL0=1)[0] is False
    assert marks.marked() == ([], ["guest"])


def test_a_renewed_record_that_libvirt_cannot_be_given(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes, write: object = os.write) -> int:
        if fd == 1:
            raise OSError(28, "No space left on device")
        return write(fd, data)  # type: ignore[no-any-return, operator]

    xml = _resolved(_TRIXIE)
    monkeypatch.setattr(os, "write", full)
    status, err = door(xml, _SID, "migrate")
    assert not status
    assert "arrives with a record that is not true here" in err
    assert door(xml, _SID) == (False, "")
    assert marks.mark_of(_UUID) == "it arrived with a record that may not be true here"


def test_an_arrival_takes_an_old_mark_away(door: Door) -> None:
    """Of when the guest was started here, before it went away."""
    marks.mark(_UUID, "an upgrade")
    xml = _resolved(_TRIXIE)
    door(xml, _TRIXIE, "migrate")
    assert marks.mark_of(_UUID), "it has not come yet"
    door(xml, _TRIXIE)
    assert marks.mark_of(_UUID) is None


def test_a_restored_guest_keeps_the_mark_that_it_was_saved_with(door: Door) -> None:
    """Its record was not true then, and the one in the saved file is the same."""
    xml = _resolved(_TRIXIE)
    door(xml, _TRIXIE, CNTFRQ_EL0=1)
    assert marks.mark_of(_UUID)
    assert door(xml, _TRIXIE, "restore") == (False, "")
    assert door(xml, _TRIXIE) == (False, "")
    assert marks.mark_of(_UUID) == marks.FROM_STATE
    assert door(xml, _TRIXIE) == (False, "")
    assert marks.mark_of(_UUID) is None, "a cold start"


# -- cold starts ---------------------------------------------------------------------------------


def test_a_cold_start_that_gives_what_is_recorded_takes_an_old_mark_away(door: Door) -> None:
    marks.mark(_UUID, "an upgrade")
    marks.mark_by_name("guest", "a broken hook")
    assert door(_resolved(_TRIXIE), _TRIXIE) == (False, "")
    assert (marks.marked(), door.log) == (([], []), [])


@pytest.mark.parametrize(
    ("here", "says"),
    [
        (_SID, "PSCI_VERSION: recorded 0x10001, here 0x10003"),
        ("trixie-cortex-a72", "MIDR_EL1"),
        ("trixie-cortex-a57", "MIDR_EL1"),
        ("bookworm-neoverse-n1", "register list: recorded "),
    ],
)
def test_drift_is_marked_and_starts(door: Door, here: str, says: str) -> None:
    status, err = door(_resolved(_TRIXIE), here)
    assert not status
    assert err.startswith("kvmarm: guest starts, but not as recorded: ")
    assert says in err
    assert "remedy" not in err
    assert err.endswith(". To record what it has: kvmarm refresh guest\n"), (
        "nobody answers the bell"
    )
    assert door.log == [("WARNING", f"prepare: {err[len('kvmarm: ') : -1]}")]
    assert (marks.mark_of(_UUID) or "").startswith("this host makes it otherwise: ")


def test_registers_that_only_this_kernel_has(door: Door) -> None:
    """No arrival minds them, and QEMU will save them: on the way back they are too many."""
    xml = _resolved(_TRIXIE)
    domain = parse(xml)
    old = record.read(record.find(domain) or pytest.fail("no record"))
    fewer = unpack_ids(old.target.reglist) - {0x603000000013C300}  # FAR_EL1
    target = old.target.replace(reglist=pack_ids(fewer))
    older = rewrite.replace_record(xml, domain, old.replace(target=target))
    _, err = door(older, _TRIXIE)
    assert "not as recorded: register list: recorded no others, here S3_0_C6_C0_0. To" in err
    door(older, _TRIXIE, "migrate")
    assert _target(door.out) == old.target


def test_whoever_renews_records_is_told(door: Door, run_directory: Path) -> None:
    run_directory.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.bind(str(run_directory / marks.SOCKET))
        bell.settimeout(1)
        _, err = door(_resolved(_TRIXIE), _SID)
        assert bell.recv(100) == f"{_UUID}\n".encode()
        assert err.endswith(". kvmarm renew has been told\n")
        door.policy.write_text("on-drift: warn\n")
        _, err = door(_resolved(_TRIXIE), _SID)
        assert err.endswith("kvmarm refresh guest\n"), "its stored record stays"
        assert bell.recv(100) == f"{_UUID}\n".encode(), "what runs has to have a true one"
        door.policy.write_text("on-drift: refuse\n")
        marks.allow("guest")
        assert door(_resolved(_TRIXIE), _SID)[0] is False
        assert bell.recv(100) == f"{_UUID}\n".encode()
        assert door(_resolved(_TRIXIE), _SID)[0], "nothing starts, and there is nothing to tell"
        bell.setblocking(False)
        with pytest.raises(BlockingIOError):
            bell.recv(100)
    assert [level for level, _ in door.log][:2] == ["NOTICE", "WARNING"]


def test_a_policy_may_refuse_drift(door: Door) -> None:
    door.policy.write_text("on-drift: refuse\n")
    status, err = door(_resolved(_TRIXIE), _SID)
    assert status
    assert err.endswith("kvmarm refresh guest. To let it pass once: kvmarm allow guest\n")
    assert marks.marked() == ([], [])
    assert door(_resolved(_TRIXIE), _TRIXIE) == (False, "")


def test_what_kvm_would_not_start_is_refused_whatever_the_policy_says(door: Door) -> None:
    door.policy.write_text("on-drift: warn\non-migrate: warn\non-restore: warn\n")
    status, err = door(_resolved("trixie-max"), "trixie-cortex-a57")
    assert status
    assert err.startswith("kvmarm: guest cannot start on this host: ")
    assert "CNTFRQ" not in err
    assert marks.marked() == ([], [])


def test_an_edited_domain_is_what_qemu_makes_of_it(door: Door) -> None:
    """Even where the recorded vCPU could not be made: nobody asks for it."""
    xml = _resolved("trixie-max")
    edited = re.sub(rb"<cpu .*</cpu>", b"<cpu mode='host-passthrough'/>", xml, flags=re.DOTALL)
    status, err = door(edited, "trixie-cortex-a57")
    assert (status, "<feature sve>: recorded on, now none" in err) == (False, True)
    assert marks.mark_of(_UUID)
    assert door(edited, "trixie-cortex-a57", "migrate")[0]


_FOR_QEMU = (
    "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-cpu'/>"
    "<arg value='host,pmu=off,sve=off,pauth=off'/></commandline></domain>"
)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("<domain type='kvm'>", "<domain type='qemu'>", "domain type: recorded kvm, now qemu"),
        ("unit='MiB'>512", "unit='TiB'>4", "IPA size: recorded 40, now 43"),
        ("<cpu .*</cpu>", "", "<cpu mode>: recorded host-passthrough, now none"),
        ("</domain>", _FOR_QEMU, "-cpu host,pmu=off,sve=off,pauth=off: recorded pmu on, now pmu"),
    ],
)
def test_what_was_edited_since_starts_and_does_not_arrive(
    door: Door, old: str, new: str, says: str
) -> None:
    edited = re.sub(old.encode(), new.encode(), _resolved(_TRIXIE), flags=re.DOTALL)
    status, err = door(edited, _TRIXIE)
    assert (status, says in err) == (False, True)
    status, err = door(edited, _TRIXIE, "migrate")
    assert status
    assert "; remedy: " in err


def test_more_vcpus_than_the_gic_has_room_for(door: Door) -> None:
    edited = _resolved(_TRIXIE).replace(b"<os>", b"<vcpu>513</vcpu><os>")
    for operation in ("prepare", "migrate"):
        status, err = door(edited, _TRIXIE, operation)
        assert (status, "give the guest 512 vCPUs or fewer" in err) == (True, True)


def test_a_32_bit_guest_starts_on_hosts_of_both_architectures(door: Door) -> None:
    """Nothing is known of what it then has; a 64-bit guest has no such choice."""
    wide, narrow = "trixie-cortex-a57", "hand-made-a15-3.10"
    domain = _DOMAIN.replace("aarch64", "armv7l").encode()
    for made, here in ((wide, narrow), (narrow, wide)):
        xml = Resolver(_profile(made), Policy()).resolve(domain)
        status, err = door(xml, here)
        assert (status, "architecture: recorded arm" in err) == (False, True)
        assert marks.mark_of(_UUID)
        assert door(xml, here, "migrate")[0]
    assert door(_resolved(wide), narrow)[0]
    assert door(Resolver(_profile(narrow), Policy()).resolve(domain), _TRIXIE)[0]


def test_a_recorded_domain_that_asks_for_host_model_again(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt would refuse it with words that help nobody, unless it knows host-model itself."""
    xml = _resolved(_TRIXIE).replace(b"mode='host-passthrough'", b"mode='host-model'")
    status, err = door(xml, _TRIXIE)
    assert status
    assert "guest cannot start on this host: <cpu mode> (in the domain's XML): recorded" in err
    assert "now host-model; refuses: libvirt does not start a guest on ARM that asks" in err
    assert "remedy: kvmarm refresh " in err
    monkeypatch.setattr(libvirt_host_model, "is_noted", lambda: True)
    status, err = door(xml, _TRIXIE)
    assert (status, "<cpu mode>: recorded host-passthrough, now host-model" in err) == (False, True)


@pytest.mark.parametrize("stored", [None, "same", "other", "plain", "broken"])
def test_a_snapshot_is_refused_for_what_qemu_accepts_in_silence(
    door: Door, stored: str | None
) -> None:
    """It looks like a cold start, but for its record, which is not the stored one."""
    xml = _resolved(_TRIXIE)
    texts = {
        "same": xml.replace(b"\n    ", b"\n\n"),
        "other": _resolved("trixie-cortex-a72"),
        "plain": _DOMAIN.encode(),
        "broken": xml[:-20],
    }
    if stored is not None:
        _store(texts[stored])
    status, err = door(xml, _TRIXIE, CNTFRQ_EL0=1)
    assert status is (stored in ("other", "plain"))
    if status:
        assert err.startswith("kvmarm: guest cannot go on here from this snapshot: CNTFRQ_EL0 ")
        assert "refresh" not in err
        door.policy.write_text("on-restore: warn\n")
        assert door(xml, _TRIXIE, CNTFRQ_EL0=1)[0] is False
    assert marks.marked() == ([_UUID], [])
    # What the kernel refuses, QEMU says itself.
    assert door(xml, "trixie-cortex-a57")[0] is False


def test_nothing_can_be_noted(door: Door, run_directory: Path) -> None:
    run_directory.write_text("a file")
    status, err = door(_resolved(_TRIXIE), _TRIXIE, "migrate")
    assert (status, "its start will be judged as a cold start: /run/kvmarm" in err) == (False, True)
    assert door(_resolved(_TRIXIE), _TRIXIE) == (False, "")
    status, err = door(_resolved(_TRIXIE), _SID)
    assert (status, "This cannot be noted in /run/kvmarm: Not a directory" in err) == (False, True)


# -- the emergency exit --------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["guest", _UUID])
@pytest.mark.parametrize("operation", _ARRIVALS)
def test_an_operator_lets_an_arrival_pass_with_its_prepare(
    door: Door, operation: str, by: str
) -> None:
    door.policy.write_text("on-drift: refuse\n")
    marks.allow(by)
    assert door(_resolved(_TRIXIE), _TRIXIE, operation) == (False, ""), "it is not used up"
    status, err = door(_resolved(_MISFIT[0]), _MISFIT[1], operation)
    assert not status
    assert "passes, as kvmarm allow says, although it cannot run on this host" in err
    assert door.log == [("WARNING", f"{operation}: {err[len('kvmarm: ') : -1]}")]
    assert door(_resolved(_MISFIT[0]), _MISFIT[1]) == (False, "")
    assert door(_resolved(_MISFIT[0]), _MISFIT[1], operation)[0], "once"


def test_an_operator_lets_a_record_pass_that_cannot_be_read(door: Door) -> None:
    door.policy.write_text("on-drift: refuse\n")
    marks.allow("guest")
    assert door(_RECORDED.encode(), _TRIXIE, "migrate")[0] is False
    assert door(_RECORDED.encode(), _TRIXIE) == (False, "")
    assert marks.mark_of(_UUID)
    assert door(_RECORDED.encode(), _TRIXIE)[0]


@pytest.mark.parametrize("reaction", ["renew", "refuse"])
def test_an_operator_lets_a_start_pass(door: Door, reaction: str) -> None:
    door.policy.write_text(f"on-drift: {reaction}\n")
    marks.allow("guest")
    status, err = door(_resolved(_MISFIT[0]), _MISFIT[1])
    assert (status, "although it cannot start" in err) == (False, True)
    assert marks.marked() == ([_UUID], [])
    assert door(_resolved(_MISFIT[0]), _MISFIT[1])[0]


def test_an_operator_lets_a_snapshot_pass(door: Door) -> None:
    door.policy.write_text("on-drift: refuse\n")
    _store(_DOMAIN.encode())
    assert door(_resolved(_TRIXIE), _TRIXIE, CNTFRQ_EL0=1)[0]
    marks.allow(_UUID)
    assert door(_resolved(_TRIXIE), _TRIXIE, CNTFRQ_EL0=1)[0] is False
    assert marks.mark_of(_UUID)


def test_what_to_paste_for_an_odd_name(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("it's", "-rf", "x" * 61, "\x1b[2J", ""):
        guest = hook_guest.Guest(name, "migrate", _resolved(_TRIXIE))
        guest.read()
        assert guest.word() == _UUID


# -- messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "character", ["x", "\n", "\x9b", "\u202e", "ä", "€", "\U0001f600", "\udc80"]
)
@pytest.mark.parametrize("length", [1, 100, 1900, 1901, 5000, 4_000_000])
def test_a_message_is_one_line_of_less_than_2_kib(character: str, length: int) -> None:
    text = "kvmarm: " + character * length
    line = tell.one_line(text)
    assert line.isprintable()
    assert len(line.encode()) < 2000
    whole = "kvmarm: " + (character if character.isprintable() else ascii(character)[1:-1]) * length
    assert line == whole or line.endswith(f"… (cut: {len(text)} characters)")
    assert (line == whole) is (len(whole.encode()) <= 1900)


_OUTPUT = """
import sys, time
sys.path.append(sys.argv[1])
from kvmarm_plugin.hook import tell
tell.TIME_LIMIT = 0.3
start = time.monotonic()
answer = eval(sys.argv[2])
open(sys.argv[3], "w").write(f"{answer}, {time.monotonic() - start < 2}")
"""


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("tell.print_xml(bytes(1000))", "standard output: nobody has read it for 0.3 s"),
        ("tell.print_xml(bytes(1000000))", "standard output: nobody has read it for 0.3 s"),
        ("tell.say('a')", "None"),
        ("tell.say('a' * 1000000)", "None"),
    ],
)
def test_output_that_nobody_reads(tmp_path: Path, call: str, answer: str) -> None:
    read, write = full_pipe()
    command = [_PYTHON, "-I", "-S", "-c", _OUTPUT, str(_ROOT), call, str(tmp_path / "answer")]
    subprocess.run(command, stdout=write, stderr=write, check=True, timeout=10)
    assert (tmp_path / "answer").read_text() == f"{answer}, True"
    os.close(read)
    os.close(write)


def test_a_signal_as_the_timer_is_stopped_leaves_none_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setitimer, late = signal.setitimer, [signal.pause]

    def stop(which: int, seconds: float, interval: float = 0) -> None:
        if seconds == 0 and late:
            late.pop()()
        setitimer(which, seconds, interval)

    monkeypatch.setattr("_signal.setitimer", stop)
    with pytest.raises(time_limit.OutOfTime):
        time_limit.within(0.05, lambda: None)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


# -- half an installation ------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [str(_HOOK.parents[1]), _PYTHON], ids=["package", "interpreter"])
def test_an_installation_with_a_hole(script: Path, gone: str) -> None:
    script.write_text(script.read_text().replace(gone, "/nowhere/at-all"))
    for operation, stage in (*_LOOKED_AT, *_PASSED):
        assert _call(script, "guest", operation, stage, "-", source=_DOMAIN) == (0, "", "")
        assert _call(script, "guest", operation, stage, "-", source="") == (0, "", "")
    for operation, stage in _PASSED:
        assert _call(script, "guest", operation, stage, "-", source=_RECORDED) == (0, "", "")
    for operation, stage in _LOOKED_AT:
        status, out, err = _call(script, "guest", operation, stage, "-", source=_RECORDED)
        assert (status, out) == (int(operation != "prepare"), "")
        verb = "starts unchecked: it has" if operation == "prepare" else "has"
        assert err.startswith(f"kvmarm: guest {verb} a recorded CPU that cannot be checked: ")
        assert "/nowhere/at-all" in err
    assert (marks.mark_of(_UUID, "guest") or "").startswith("its start was not checked: it has a ")


# -- what it costs -------------------------------------------------------------------------------

_LIST_MODULES = """\
import posix, sys
end = posix._exit
def show(status):
    print(status, *sorted(set(sys.modules) - before), flush=True)
    end(0)
posix._exit = show
code = sys.argv.pop(1)
before = set(sys.modules)
exec(code, {"__name__": "__main__"})
"""

# The standard library's slow ones (kvmarm_plugin/hook/__init__.py), and what is not in it.
_TOO_SLOW = {
    "contextlib",
    "functools",
    "shlex",
    "hashlib",
    "dataclasses",
    "typing",
    "re",
    "json",
    "enum",
    "inspect",
    "pathlib",
    "subprocess",
    "tempfile",
    "yaml",
    "lxml",
    "libvirt",
    "ctypes",
    "socket",
    "_hashlib",
}


def _modules(source: str, operation: str = "migrate") -> tuple[str, set[str]]:
    """The exit status, and what the script's own lines of Python and the package import beyond a
    bare interpreter.
    """
    preset = ""
    if operation == "prepare":
        preset = (
            f"sys.path.append({str(_ROOT)!r})\nfrom kvmarm_plugin.host import marks\n"
            f"marks.DIRECTORY = {marks.DIRECTORY!r}\n"
        )
    code = _SCRIPT.read_text(encoding="utf-8").split("-c '")[1].split("\n'")[0]
    command = [
        _PYTHON,
        "-I",
        "-S",
        "-c",
        _LIST_MODULES.replace("exec(code", preset + "exec(code"),
        code,
        "guest",
        operation,
        str(_HOOK.parents[1]),
    ]
    command = ["/bin/sh", "-c", 'exec "$@" 3>/dev/null', "sh", *command]
    run = subprocess.run(
        command,
        input=source.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    status, *modules = run.stdout.decode().split()
    return status, set(modules)


@pytest.mark.parametrize("source", ["", _DOMAIN.replace("host-model", "host-passthrough")])
def test_nothing_is_imported_for_other_guests(source: str) -> None:
    assert _modules(source) == ("0", set())


def test_little_is_imported_to_explain() -> None:
    status, modules = _modules(_DOMAIN)
    assert status == "3"
    assert {"kvmarm_plugin.domain.xml", "kvmarm_plugin.basics.errors", "pyexpat"} <= modules
    assert not {module.partition(".")[0] for module in modules} & _TOO_SLOW


@pytest.mark.parametrize("operation", ["prepare", *_ARRIVALS])
def test_little_is_imported_to_rehearse(operation: str) -> None:
    recorded = Resolver(_profile("trixie-neoverse-n1"), Policy()).resolve(_DOMAIN.encode())
    modules = _modules(recorded.decode(), operation)[1]
    assert {
        "kvmarm_plugin.domain.record",
        "kvmarm_plugin.judge.verdict",
        "kvmarm_plugin.rehearse",
    } <= modules
    assert not {module.partition(".")[0] for module in modules} & _TOO_SLOW


def test_every_module_is_python_3_9() -> None:
    """Newer syntax would show only there; its grammar is asked for here."""
    for path in (_ROOT / "kvmarm_plugin").rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 9))


# -- installing ----------------------------------------------------------------------------------

_OLDER = (
    "#!/bin/sh\n# kvmarm: libvirt calls this for every guest and every operation"
    " (https://libvirt.org/hooks.html), and waits.\n"
)


def test_install_and_uninstall(libvirt: Path) -> None:
    path = libvirt / "50-kvmarm"
    told = "no libvirt daemon is running: it will find the hook when it starts"
    assert hookfile.install(libvirt) == [f"installed {path}", told]
    assert path.stat().st_mode & 0o7777 == 0o755
    assert hookfile.install(libvirt) == [f"{path} is up to date"]
    assert hookfile.uninstall(libvirt) == [f"removed {path}", told]
    assert not path.exists()
    assert hookfile.uninstall(libvirt) == [f"{path} is not there"]


def test_the_installed_hook_names_the_package(script: Path) -> None:
    text = script.read_text()
    assert f"package={_HOOK.parents[1]}\n" in text
    assert "@PACKAGE@" not in text
    assert subprocess.run(["/bin/sh", "-n", str(script)], check=True).returncode == 0


@pytest.mark.parametrize("directory", ["my apps", "it's", "$(touch pwned)", "a;b"])
def test_a_package_in_a_directory_with_a_difficult_name(
    libvirt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    package = tmp_path / directory / "kvmarm_plugin"
    package.parent.mkdir()
    package.symlink_to(_HOOK.parents[1])
    monkeypatch.setattr(hookfile, "_PACKAGE", package)
    hookfile.install(libvirt)
    status, out, err = _call(libvirt / hookfile.NAME, "guest", "prepare", "begin", "-")
    assert (status, out) == (1, "")
    assert err.startswith("kvmarm: guest asks for host-model")
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("change", ["text", "mode"])
def test_an_older_hook_is_renewed(libvirt: Path, change: str) -> None:
    hookfile.install(libvirt)
    path = libvirt / hookfile.NAME
    text = path.read_text()
    if change == "text":
        path.write_text(_OLDER)
    else:
        path.chmod(0o644)
    assert hookfile.install(libvirt)[0] == f"installed {path}"
    assert (path.read_text(), path.stat().st_mode & 0o7777) == (text, 0o755)


def test_it_is_replaced_whole(libvirt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt may run the hook at any moment: the old one is there until the new one is complete,
    and stays if that fails.
    """
    hookfile.install(libvirt)
    path = libvirt / hookfile.NAME
    path.write_text(_OLDER)

    def fail(*_: object, **__: object) -> None:
        assert path.read_text() == _OLDER
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KvmarmError, match="No space left on device"):
        hookfile.install(libvirt)
    assert path.read_text() == _OLDER
    assert [each.name for each in libvirt.iterdir()] == [hookfile.NAME], (
        "a temporary file would be run as a hook, too"
    )


def test_the_temporary_file_is_no_hook_meanwhile(
    libvirt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt runs what is executable in the directory; a file becomes that only when it is
    renamed, or is hidden from it.
    """
    seen: list[str] = []
    replace = os.replace

    def look(source: str, target: str, **directories: int) -> None:
        seen.append(os.path.basename(source))
        replace(source, target, **directories)

    monkeypatch.setattr(os, "replace", look)
    hookfile.install(libvirt)
    assert len(seen) == 1
    assert seen[0].startswith(".")


def test_a_machine_without_libvirt(tmp_path: Path) -> None:
    with pytest.raises(KvmarmError, match=r"does not exist \(hint: install libvirt"):
        hookfile.install(tmp_path / "etc/libvirt/hooks/qemu.d")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_made(libvirt: Path) -> None:
    (libvirt.parent).write_text("a file where a directory should be")
    with pytest.raises(KvmarmError, match=r"cannot make .*\(hint: "):
        hookfile.install(libvirt)


def test_a_directory_where_the_hook_should_be(libvirt: Path) -> None:
    (libvirt / hookfile.NAME / "x").mkdir(parents=True)
    with pytest.raises(KvmarmError, match=r"cannot write .*\(hint: "):
        hookfile.install(libvirt)
    with pytest.raises(KvmarmError, match=r"cannot remove .*\(hint: "):
        hookfile.uninstall(libvirt)


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("libvirtd (libvirt) 6.4.0\n", True),
        ("libvirtd (libvirt) 6.5.0\n", False),
        ("virtqemud (libvirt) 11.3.0\n", False),
        ("?", False),
    ],
)
def test_libvirt_before_6_5(monkeypatch: pytest.MonkeyPatch, answer: str, refused: bool) -> None:
    found = subprocess.CompletedProcess([], 0, stdout=answer)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: found)
    if refused:
        with pytest.raises(
            KvmarmError, match=r"libvirt 6\.4\.0 does not look into hooks/qemu\.d \(hint: upgrade"
        ):
            hookfile._check_version()
    else:
        hookfile._check_version()


@pytest.mark.parametrize("running", ["virtqemud", "libvirtd"])
def test_a_running_daemon_is_told(monkeypatch: pytest.MonkeyPatch, running: str) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(daemons, "running", lambda: [Daemon(running, 4711, 1)])
    monkeypatch.setattr(os, "kill", lambda *call: sent.append(call))
    assert hookfile._reload() == f"told {running} (process 4711) to look for hooks"
    assert sent == [(4711, signal.SIGHUP)]
    assert Daemon(running, 4711, 1).told_at() is not None
    assert Daemon(running, 4711, 2).told_at() is None


def test_a_daemon_that_may_not_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(daemons, "running", lambda: [Daemon("virtqemud", 4711, 1)])
    monkeypatch.setattr(os, "kill", refuse)
    assert hookfile._reload().endswith("do it with: systemctl reload virtqemud")


def test_a_stale_pid_is_nobodys(tmp_path: Path) -> None:
    """A process that has the number of a PID file need not be a libvirt daemon: the name counts."""
    stat = "4711 ({}) S 1 {} 77 0\n"
    for name, process in (("libvirtd", "bash"), ("virtqemud", "virtqemud")):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / f"run/{name}.pid").write_text("4711\n")
        (tmp_path / "proc/4711").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/4711/stat").write_text(stat.format(process, "0 " * 17))
    (found,) = daemons.running(tmp_path)
    assert (found.name, found.pid, found.ticks) == ("virtqemud", 4711, 77)
    (tmp_path / "run/virtqemud.pid").write_text("-1\n")
    assert daemons.running(tmp_path) == []


def test_the_command(
    libvirt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from kvmarm_plugin.cli import main

    for function in (hookfile.install, hookfile.uninstall):
        monkeypatch.setattr(function, "__defaults__", (libvirt,))
    monkeypatch.setattr(hookfile, "DIRECTORIES", ())
    calls: list[Callable[[], int]] = [
        lambda: main(["hook", "install"]),
        lambda: main(["hook", "uninstall"]),
    ]
    assert [call() for call in calls] == [0, 0]
    path = libvirt / hookfile.NAME
    assert [line for line in capsys.readouterr().out.splitlines() if str(path) in line] == [
        f"installed {path}",
        f"removed {path}",
    ]
