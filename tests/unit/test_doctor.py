# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm doctor`: every check, on a played host where it is well, where it is not, and where that
cannot be found out; and what a report of a fault holds.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import socket
import sys
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pytest

from kvmarm_plugin import cli
from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.commands import doctor, doctor_view
from kvmarm_plugin.diagnosis import bug_report, confinement, kvm, libvirt, records
from kvmarm_plugin.diagnosis.checks import CHECKS, examine
from kvmarm_plugin.diagnosis.host import BAD, OK, UNKNOWN, Host, Line
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.fleet import baseline, pool
from kvmarm_plugin.hook import install
from kvmarm_plugin.host import level_library, libvirt_host_model, marks
from kvmarm_plugin.host.selinux import SELinux
from kvmarm_plugin.model import policy, profile_json
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.problem import Problem

from ..corpus import GUEST, host, resolver
from .fakekernel import FakeKernel
from .fakelibvirt import FakeDomain, FakeLibvirt
from .fakeselinux import RHEL9, FakeSELinux

if TYPE_CHECKING:
    from kvmarm_plugin.fleet.pool import Pool
    from kvmarm_plugin.model.profile import HostProfile

_HERE = "trixie-neoverse-n1"
_DAY = 24 * 3600
_PID = 4711
_UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"

# From libvirt's own profile (src/security/apparmor/usr.sbin.libvirtd.in).
_PROFILE = """\
#include <tunables/global>
@{LIBVIRT}="libvirt"

profile libvirtd /usr/sbin/libvirtd flags=(attach_disconnected) {
  #include <abstractions/base>
  capability kill,
  mount options=(rw, move) /{,var/}run/libvirt/qemu/*{,/} -> /dev/**,
  signal (read, send) peer=libvirt-*,
  / r,
  /** rwmkl,

  /bin/* PUx,
  /sbin/* PUx,
  /usr/bin/* PUx,
  /{usr/,}lib/udev/scsi_id PUx,
  /usr/{lib,lib64,lib/qemu,libexec}/vhost-user-gpu PUx,
  audit deny /{usr/,}sbin/apparmor_parser rwxl,
  /etc/libvirt/hooks/** rmix,
  /usr/{lib,lib64}/qemu-bridge-helper Cx -> qemu_bridge_helper,
  profile qemu_bridge_helper {
   /opt/** rmix,
   owner @{PROC}/*/status r,
  }
  include if exists <local/usr.sbin.libvirtd>
}
"""


class _Here:
    """A host on which all is well, for a test to spoil."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.kernel = FakeKernel.from_profile(host(_HERE))
        self.profile = host(_HERE)
        self.pool: Pool | None = None
        self.policy = Policy()
        self.answers: dict[str, str] = {
            "kvmarm-agent.service": "LoadState=loaded\nActiveState=active\n",
            "libvirtd": f"MainPID={_PID}\nStateChangeTimestampMonotonic=1\n",
        }
        self.libvirt = FakeLibvirt()
        monkeypatch.setitem(sys.modules, "libvirt", self.libvirt)
        self.host = Host(
            "qemu:///system",
            lambda: self.policy,
            lambda: self.pool,
            lambda: self.profile,
            root,
        )
        self.host.architecture, self.host.name = "aarch64", self.profile.name
        self.host.kernel, self.host.uid = self.profile.kernel, 0
        self.host.kvm = self.kernel
        self.host.profile = lambda: self.profile  # as it is spoilt
        self.host.run = self._run

    def _run(self, command: list[str]) -> str:
        if command[-1] not in self.answers:
            raise FileNotFoundError(2, "No such file or directory")
        return self.answers[command[-1]]

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        path = self.host.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def start_daemon(self, ago: float, name: str = "libvirtd", process: str = "") -> None:
        """A daemon that has started so many seconds ago."""
        since_boot = time.clock_gettime(time.CLOCK_BOOTTIME) - ago
        ticks = int(since_boot * os.sysconf("SC_CLK_TCK"))
        self.write(f"/run/{name}.pid", f"{_PID}\n")
        zeros = "0 " * 17
        self.write(f"/proc/{_PID}/stat", f"{_PID} ({process or name}) S 1 {zeros}{ticks} 0\n")

    def look(self, check: Callable[[Host], Any]) -> list[Line]:
        found: list[Line] = list(check(self.host))
        return found

    def states(self, check: Callable[[Host], Any]) -> list[str]:
        return [line.state for line in self.look(check)]


@pytest.fixture
def here(tmp_path: Path, run_directory: Path, monkeypatch: pytest.MonkeyPatch) -> _Here:
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(tmp_path / "policy.yaml"))
    monkeypatch.setattr(policy.for_hook, "__defaults__", (str(tmp_path / "policy.yaml"),))
    monkeypatch.setattr(libvirt_host_model, "PATH", str(tmp_path / "note"))
    monkeypatch.setattr(install, "check_place", lambda *_: None)
    found = _Here(tmp_path / "root", monkeypatch)
    found.write("/etc/libvirt/hooks/qemu.d/50-kvmarm", install.script(), 0o755)
    found.start_daemon(-1)
    found.write("/run/systemd/system/kvmarm-renew.socket", "")
    run_directory.mkdir()
    return found


@pytest.fixture
def heard(run_directory: Path, here: _Here) -> Any:
    """Somebody listens for the hook's ring."""
    del here
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.bind(str(run_directory / marks.SOCKET))
        bell.setblocking(False)
        yield bell


def test_where_all_is_well(here: _Here, heard: socket.socket) -> None:
    found = examine(here.host)
    assert {name for name, _ in found} == set(CHECKS)
    assert [str(line) for _, line in found if line.state != OK] == []
    assert all(line.text and not line.remedy for _, line in found)
    with pytest.raises(BlockingIOError):  # connected to, and not rung
        heard.recv(1)


def test_one_that_fails_does_not_hide_the_others(here: _Here) -> None:
    def fails(_host: Host) -> list[Line]:
        raise PermissionError(13, "Permission denied")

    def complains(_host: Host) -> list[Line]:
        raise KvmarmError("no", "try")

    found = examine(here.host, {"a": fails, "b": complains, "c": lambda _: [Line(OK, "fine")]})
    assert found == [
        ("a", Line(UNKNOWN, "this cannot be found out: Permission denied")),
        ("b", Line(UNKNOWN, "no", "try")),
        ("c", Line(OK, "fine")),
    ]


# -- Python, KVM, QEMU ---------------------------------------------------------------------------


def test_a_module_that_is_missing(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    here.host.has_module = lambda name: name != "lxml"
    fine, missing = here.look(kvm.check_python)
    assert fine.state == OK
    assert (missing.state, missing.remedy) == (BAD, "install python3-lxml")
    monkeypatch.setattr(sys, "prefix", "/opt/kvmarm")
    _, missing = here.look(kvm.check_python)
    assert missing.remedy.endswith("/usr/bin/python3 -m venv --system-site-packages /opt/kvmarm")


@pytest.mark.parametrize("errno", [2, 13, 6])
def test_kvm_that_cannot_be_opened(here: _Here, errno: int) -> None:
    here.kernel.open_errno = errno
    (line,) = here.look(kvm.check_kvm)
    assert line.state == BAD
    assert line.remedy or errno == 6


def test_another_architecture(here: _Here) -> None:
    here.host.architecture = "x86_64"
    assert here.states(kvm.check_kvm) == [BAD]
    assert here.states(kvm.check_vcpus) == [UNKNOWN]


def test_what_could_not_be_measured(here: _Here) -> None:
    here.profile = here.profile.replace(
        clusters=(), problems=(Problem("cluster 0-3", "KVM makes no vCPU", "look"),)
    )
    assert here.look(kvm.check_vcpus) == [Line(BAD, "cluster 0-3: KVM makes no vCPU", "look")]
    assert here.states(kvm.check_clusters) == [UNKNOWN]


def test_no_vcpu(here: _Here) -> None:
    here.profile = here.profile.replace(clusters=(), problems=(Problem("KVM", "no"),))
    assert here.states(kvm.check_vcpus) == [BAD]


def test_qemu_that_is_missing(here: _Here) -> None:
    problem = Problem("QEMU", "QEMU is not installed", "install it")
    here.profile = here.profile.replace(qemu=None, problems=(problem,))
    assert here.look(kvm.check_qemu) == [Line(BAD, "QEMU is not installed", "install it")]


@pytest.mark.parametrize("lacks", ["machines", "host_properties"])
def test_qemu_that_lacks_something(here: _Here, lacks: str) -> None:
    assert here.profile.qemu is not None
    empty: object = () if lacks == "machines" else {}
    here.profile = here.profile.replace(qemu=here.profile.qemu.replace(**{lacks: empty}))
    assert here.states(kvm.check_qemu) == [BAD]


def test_qemu_without_kvm_on_32_bits(here: _Here) -> None:
    here.profile = host("hand-made-a15-3.10")
    assert here.profile.qemu is not None
    assert here.states(kvm.check_qemu) == [OK]
    new = here.profile.qemu.replace(version="5.2.0")
    here.profile = here.profile.replace(qemu=new)
    assert here.look(kvm.check_qemu)[0].remedy == "install QEMU 5.1 or older"


def test_clusters_between_which_guests_roam(here: _Here) -> None:
    here.profile = host("hand-made-rk3588")
    assert here.states(kvm.check_clusters) == [OK]
    here.policy = Policy(cluster="all")
    (line,) = here.look(kvm.check_clusters)
    assert line.state == BAD
    assert "cluster: biggest" in line.remedy


# -- libvirt -------------------------------------------------------------------------------------


def test_libvirt_that_does_not_answer(here: _Here) -> None:
    here.libvirt.down = True
    (line,) = here.look(libvirt.check_libvirt)
    assert line.state == BAD
    assert "virsh -c qemu:///system version" in line.remedy


def test_libvirt_that_is_too_old(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.fakelibvirt.FakeConnection.getLibVersion", lambda _: 6004000)
    assert here.look(libvirt.check_libvirt) == [
        Line(BAD, "libvirt 6.4.0 does not look into hooks/qemu.d", "upgrade it to 6.5 or newer")
    ]


@pytest.mark.parametrize("uri", ["qemu:///session", "qemu:///session?socket=/x"])
def test_a_users_own_libvirt(here: _Here, uri: str) -> None:
    here.host.uri = uri
    assert here.states(libvirt.check_session) == [BAD]


def test_guests_of_users(here: _Here) -> None:
    here.write("/run/user/1000/libvirt/qemu/run/box.xml", "")
    (line,) = here.look(libvirt.check_session)
    assert (line.state, line.text[-4:]) == (BAD, "1000")


def test_guests_of_users_that_cannot_be_seen(here: _Here) -> None:
    here.host.uid = 1000
    assert here.states(libvirt.check_session) == [UNKNOWN]


# -- the hook ------------------------------------------------------------------------------------


def _hook(here: _Here) -> Path:
    return here.host.path("/etc/libvirt/hooks/qemu.d/50-kvmarm")


def test_no_hook(here: _Here) -> None:
    _hook(here).unlink()
    (line,) = here.look(libvirt.check_hook)
    assert (line.state, line.remedy) == (BAD, "kvmarm hook install")
    assert here.states(libvirt.check_seen) == [BAD]
    _hook(here).symlink_to("/nowhere")
    (line,) = here.look(libvirt.check_hook)
    assert (line.state, line.text.endswith("leads nowhere")) == (BAD, True)
    assert line.remedy == f"move {_hook(here)} away, then: kvmarm hook install"
    _hook(here).unlink()
    _hook(here).symlink_to(install.PACKAGED)  # which `hook install` knows
    (line,) = here.look(libvirt.check_hook)
    assert (line.state, line.remedy) == (BAD, "kvmarm hook install")


@pytest.mark.parametrize("kind", ["file", "FIFO", "link", "link that goes round"])
@pytest.mark.parametrize("level", range(3))
def test_what_is_in_the_way_of_a_hook(here: _Here, level: int, kind: str) -> None:
    path = [_hook(here), *_hook(here).parents][level]
    path.rename(path.with_name("old"))
    if kind == "file":
        path.write_text("")
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere" if kind == "link" else path.name)
    (line,) = here.look(libvirt.check_hook)
    assert line.state == BAD
    assert re.fullmatch(f"move (it|{path}) away, then: kvmarm hook install", line.remedy)
    (line,) = here.look(libvirt.check_seen)
    assert (line.state, line.remedy) == (BAD, f"move {path} away, then: kvmarm hook install")
    _confine(here)
    here.look(confinement.check_apparmor)
    path.unlink()
    path.with_name("old").rename(path)
    assert here.states(libvirt.check_hook) == [OK, OK]


def test_a_directory_in_a_hook_s_place(here: _Here) -> None:
    _hook(here).unlink()
    _hook(here).mkdir()
    for check in (libvirt.check_hook, libvirt.check_seen):
        (line,) = here.look(check)
        assert line.state == BAD
        assert line.remedy.endswith(" away, then: kvmarm hook install")


def test_a_hook_of_another_version_or_place(here: _Here) -> None:
    _hook(here).write_text(install.script().replace("umask 022", "umask 000"))
    first, _ = here.look(libvirt.check_hook)
    assert (first.state, first.remedy) == (BAD, "kvmarm hook install")
    assert str(Path(install.__file__).parents[1]) in first.text


def test_somebody_elses_hook(here: _Here) -> None:
    _hook(here).write_text("#!/bin/sh\nexit 0\n")
    (line,) = here.look(libvirt.check_hook)
    assert (line.state, line.remedy) == (BAD, "move it away, then: kvmarm hook install")


def test_a_hook_that_is_not_executable(here: _Here) -> None:
    _hook(here).chmod(0o644)
    for check in (libvirt.check_hook, libvirt.check_seen):
        line = here.look(check)[0]
        assert (line.state, line.remedy) == (BAD, "kvmarm hook install")


def test_a_hook_that_is_a_link_of_a_package(here: _Here) -> None:
    target = here.write("/usr/bin/kvmarm-hook", install.script(), 0o755)
    _hook(here).unlink()
    _hook(here).symlink_to(target)
    assert here.states(libvirt.check_hook) == [OK, OK]


def test_a_hook_that_others_can_change(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if os.geteuid() != 0:
        pytest.skip("only root is asked")
    _hook(here).chmod(0o777)
    _, line = here.look(libvirt.check_hook)
    assert line.state == BAD
    assert line.text.startswith("others than root can change")
    assert line.remedy.startswith("chmod go-w")


def test_who_can_change_a_hook_is_roots_to_tell(here: _Here) -> None:
    here.host.uid = 1000
    assert here.states(libvirt.check_hook) == [OK, UNKNOWN]


def test_a_daemon_that_does_not_run_will_see_it(here: _Here) -> None:
    shutil.rmtree(here.root / "run")
    (line,) = here.look(libvirt.check_seen)
    assert (line.state, line.text.partition(":")[0]) == (OK, "no libvirt daemon runs")


def test_a_pid_that_is_anothers(here: _Here) -> None:
    here.start_daemon(100, process="bash")
    assert "no libvirt daemon runs" in here.look(libvirt.check_seen)[0].text


def test_a_hook_that_cannot_be_looked_at_is_unknown(
    here: _Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    found = examine(here.host, {name: CHECKS[name] for name in ("hook", "hook seen")})
    assert [line.state for _, line in found] == [UNKNOWN, UNKNOWN]


def test_a_daemon_that_may_be_hidden(here: _Here) -> None:
    shutil.rmtree(here.root / "run")
    here.host.uid = 1000
    assert here.states(libvirt.check_seen) == [UNKNOWN]


@pytest.mark.parametrize("name", ["libvirtd", "virtqemud"])
def test_a_daemon_that_was_there_before_the_hook(here: _Here, name: str) -> None:
    shutil.rmtree(here.root / "run")
    here.answers.clear()
    here.start_daemon(100, name)
    (line,) = here.look(libvirt.check_seen)
    assert line.state == UNKNOWN
    assert line.remedy == f"have the host's init restart {name}: guests go on"
    (here.root / "run/systemd/system").mkdir(parents=True)
    (line,) = here.look(libvirt.check_seen)
    assert (line.state, line.remedy) == (UNKNOWN, f"systemctl reload {name}")


def test_a_daemon_that_was_told(here: _Here) -> None:
    here.answers.clear()
    here.start_daemon(100)
    (daemon,) = here.host.daemons()
    daemon.note_told()
    note = Path(marks.DIRECTORY) / "told/libvirtd"
    (line,) = here.look(libvirt.check_seen)
    assert (line.state, line.text.endswith("was told to look for hooks")) == (OK, True)
    os.utime(note, (1, 1))  # the hook has come since
    assert here.states(libvirt.check_seen) == [UNKNOWN]
    daemon.note_told()
    here.start_daemon(50)  # another process of the same number
    assert here.states(libvirt.check_seen) == [UNKNOWN]


def test_a_daemon_that_was_reloaded(here: _Here) -> None:
    here.start_daemon(100)
    now = int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6)
    for pid, changed, state in (
        (_PID, now + 1_000_000, OK),
        (_PID, now - 50_000_000, UNKNOWN),
        (_PID + 1, now + 1_000_000, UNKNOWN),
        (_PID, -1, UNKNOWN),
    ):
        here.answers["libvirtd"] = f"MainPID={pid}\nStateChangeTimestampMonotonic={changed}\n"
        assert here.states(libvirt.check_seen) == [state]


def test_a_daemon_that_has_found_another_hook(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here.start_daemon(100)
    other = here.write("/etc/libvirt/hooks/qemu", "#!/bin/sh\n", 0o755)
    assert here.states(libvirt.check_seen) == [UNKNOWN]
    real = libvirt._there_since
    long_ago = time.time() - 1000
    monkeypatch.setattr(
        libvirt, "_there_since", lambda path: long_ago if path == other else real(path)
    )
    assert here.states(libvirt.check_seen) == [OK]


# -- AppArmor, SELinux ---------------------------------------------------------------------------


def _confine(here: _Here, rules: str = _PROFILE, mode: str = "enforce") -> None:
    here.write("/sys/module/apparmor/parameters/enabled", "Y\n")
    here.write("/sys/kernel/security/apparmor/profiles", f"swtpm (enforce)\nlibvirtd ({mode})\n")
    here.write("/etc/apparmor.d/usr.sbin.libvirtd", rules)


def test_a_confined_daemon_that_may_run_the_hook(here: _Here) -> None:
    _confine(here)
    (line,) = here.look(confinement.check_apparmor)
    assert (line.state, line.text) == (OK, "AppArmor confines libvirtd, and lets it run the hook")


def test_an_interpreter_that_apparmor_denies(here: _Here) -> None:
    _confine(here)
    real = here.write("/opt/python/bin/python3", "", 0o755)
    (here.root / "usr/bin").mkdir(parents=True)
    here.host.path(install.interpreter()).symlink_to(real)
    (line,) = here.look(confinement.check_apparmor)
    assert line.state == BAD
    assert "run /opt/python/bin/python3, and so" in line.text
    assert line.remedy == (
        "echo '  /opt/python/bin/python3 PUx,' >> /etc/apparmor.d/local/usr.sbin.libvirtd &&"
        " apparmor_parser -r /etc/apparmor.d/usr.sbin.libvirtd"
    )
    here.write("/etc/apparmor.d/local/usr.sbin.libvirtd", "  /opt/python/bin/python3 PUx,\n")
    assert here.states(confinement.check_apparmor) == [OK]


def test_apparmor_that_does_not_enforce(here: _Here) -> None:
    assert here.states(confinement.check_apparmor) == [OK]
    _confine(here, "", "complain")
    assert here.states(confinement.check_apparmor) == [OK]
    _confine(here, "")
    assert here.states(confinement.check_apparmor) == [BAD, BAD]
    here.write("/sys/module/apparmor/parameters/enabled", "N\n")
    assert here.states(confinement.check_apparmor) == [OK]


def test_apparmor_that_cannot_be_read(here: _Here) -> None:
    _confine(here)
    here.host.path("/etc/apparmor.d/usr.sbin.libvirtd").unlink()
    assert here.states(confinement.check_apparmor) == [UNKNOWN]
    here.host.path("/sys/kernel/security/apparmor/profiles").unlink()
    (line,) = here.look(confinement.check_apparmor)
    assert (line.state, line.remedy) == (
        UNKNOWN,
        "mount -t securityfs securityfs /sys/kernel/security",
    )


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/usr/bin/python3.11", True),
        ("/usr/bin/deeper/python3", False),
        ("/usr/local/bin/python3", False),
        ("/opt/python3", False),  # a child profile's
        ("/lib/udev/scsi_id", True),
        ("/usr/lib/udev/scsi_id", True),
        ("/usr/lib/qemu/vhost-user-gpu", True),
        ("/usr/sbin/apparmor_parser", False),
        ("/sbin/apparmor_parser", False),  # denied, though another rule allows it
        ("/etc/libvirt/hooks/qemu.d/50-kvmarm", True),
        ("/usr/lib64/qemu-bridge-helper", True),
        ("/data", False),
    ],
)
def test_rules_of_apparmor(path: str, allowed: bool) -> None:
    assert confinement.may_run(_PROFILE, path) is allowed


@pytest.mark.parametrize("rules", ["/[z-a]* PUx,", "/{a PUx,", "/a} PUx,", '"/a b" PUx,', "", "x"])
def test_odd_rules_allow_nothing(rules: str) -> None:
    assert not confinement.may_run(rules, "/usr/bin/python3")


_HOOK = str(install.DIRECTORY / install.NAME)


def _confine_by_selinux(here: _Here, monkeypatch: pytest.MonkeyPatch, **kind: str) -> FakeSELinux:
    (here.root / "run/libvirtd.pid").unlink()
    return FakeSELinux(here.root, monkeypatch, **kind)


def test_selinux_that_does_not_enforce(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    assert here.states(confinement.check_selinux) == [OK]
    _confine_by_selinux(here, monkeypatch).off()
    assert here.states(confinement.check_selinux) == [OK]


def test_selinux_lets_virtqemud_run_the_link_of_a_package_and_no_file(
    here: _Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = _confine_by_selinux(here, monkeypatch)
    (line,) = here.look(confinement.check_selinux)
    assert line.state == BAD
    assert line.text == "SELinux does not let virtqemud run a hook that is virt_hook_t"
    assert "as a package" in line.remedy
    policy.labels[_HOOK] = "bin_t"  # of what the link leads to
    assert here.states(confinement.check_selinux) == [OK]
    here.host.path(_HOOK).unlink()
    here.host.path(_HOOK).symlink_to(install.PACKAGED)
    policy.labels[_HOOK] = "usr_t"
    (line,) = here.look(confinement.check_selinux)
    assert (line.state, line.remedy) == (BAD, "restorecon -v /usr/bin/kvmarm-hook")
    policy.permissive, policy.labels[_HOOK] = True, "virt_hook_t"  # virtqemud_t alone is
    assert here.states(confinement.check_selinux) == [OK]


def test_selinux_asks_about_the_daemon_that_runs(
    here: _Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = _confine_by_selinux(here, monkeypatch, rules=RHEL9)
    assert here.states(confinement.check_selinux) == [OK], "virtd_t may run any file"
    here.start_daemon(-1, "virtqemud")
    policy.confine(_PID, "stranger_t")
    (line,) = here.look(confinement.check_selinux)
    assert (line.state, line.text[:37]) == (BAD, "SELinux does not let virtqemud run a ")


def test_selinux_and_what_else_the_hook_needs(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = _confine_by_selinux(here, monkeypatch)
    policy.labels[_HOOK] = "bin_t"
    policy.labels[marks.DIRECTORY] = "var_run_t"  # without the module
    (line,) = here.look(confinement.check_selinux)
    assert line.text == "SELinux does not let virtqemud obey `kvmarm allow` in the hook"
    assert line.remedy == "install kvmarm-selinux, and then: restorecon -R /run/kvmarm"
    policy.labels[install.interpreter()] = "user_home_t"
    policy.labels["/dev/kvm"] = "device_t"
    texts = [line.text for line in here.look(confinement.check_selinux)]
    assert texts[0].endswith("run /usr/bin/python3 for the hook")
    assert texts[1].endswith("use /dev/kvm in the hook")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.ELOOP])
def test_selinux_where_no_hook_is(
    here: _Here, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> str:
        raise OSError(number, os.strerror(number))

    _confine_by_selinux(here, monkeypatch)
    monkeypatch.setattr(SELinux, "label", refuse)
    (line,) = here.look(confinement.check_selinux)
    assert (line.state, line.text) == (OK, "SELinux enforces; there is no hook to run")


def test_a_hook_that_becomes_another_domain(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where somebody has given virtqemud the rules that virtnetworkd has."""
    policy = _confine_by_selinux(here, monkeypatch)
    domain = "virt_hook_unconfined_t"
    policy.rules += f"""
allow virtqemud_t virt_hook_t:file {{ execute }};
type_transition virtqemud_t virt_hook_t:process {domain};
allow {domain} virt_hook_t:file {{ entrypoint open read }};
allow {domain} bin_t:file {{ execute execute_no_trans open read }};
allow {domain} kvm_device_t:chr_file {{ ioctl open read write }};
allow {domain} kvmarm_var_run_t:file {{ open read unlink }};
"""
    assert here.states(confinement.check_selinux) == [BAD], "it may not become that"
    policy.rules += f"allow virtqemud_t {domain}:process {{ transition }};"
    assert here.states(confinement.check_selinux) == [OK]


def test_selinux_that_does_not_answer(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    _confine_by_selinux(here, monkeypatch)
    for answer in ("", "1", "no such thing"):
        monkeypatch.setattr(SELinux, "_ask", lambda *_, answer=answer: answer)
        (name, line), *_ = examine(here.host, {"SELinux": confinement.check_selinux})
        assert (name, line.state) == ("SELinux", UNKNOWN)
    (here.root / "sys/fs/selinux/class/file/index").unlink()
    assert [line.state for _, line in examine(here.host, {"": confinement.check_selinux})] == [
        UNKNOWN
    ]


def test_without_a_hook_selinux_has_nothing_to_keep_it_from(
    here: _Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = _confine_by_selinux(here, monkeypatch)
    del policy.labels["/etc/libvirt/hooks"]
    assert here.states(confinement.check_selinux) == [OK]


def test_libkvmarm_level_and_secure_execution(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(level_library, "installed_version", lambda: "")
    (line,) = here.look(confinement.check_library)
    assert (line.state, "is not installed" in line.text) == (OK, True)
    monkeypatch.setattr(level_library, "installed_version", lambda: "1")
    assert here.states(confinement.check_library) == [OK]
    policy = _confine_by_selinux(here, monkeypatch)
    (line,) = here.look(confinement.check_library)
    assert line.state == BAD
    assert line.text.startswith("SELinux has virtqemud run QEMU under secure execution")
    assert line.remedy == "install kvmarm-level-selinux"
    policy.rules += "allow virtqemud_t svirt_t:process { noatsecure };"
    assert here.states(confinement.check_library) == [OK]
    policy.rules = RHEL9
    assert here.states(confinement.check_library) == [OK]
    here.host.path("/etc/selinux/targeted/contexts/virtual_domain_context").unlink()
    assert [line.state for _, line in examine(here.host, {"": confinement.check_library})] == [
        UNKNOWN
    ]


# -- policy, pool, profiles, marks ---------------------------------------------------------------


def _refuse() -> Any:
    raise KvmarmError("broken", "mend it")


def test_a_policy_or_a_pool_that_cannot_be_used(here: _Here) -> None:
    here.host.policy = here.host.pool = _refuse
    for check in (records.check_policy, records.check_pool):
        assert here.look(check) == [Line(BAD, "broken", "mend it")]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_directory(here: _Here, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a policy nor a profile could be there."""
    config, profiles = here.host.path("/etc/kvmarm"), here.host.path(records.PROFILES)
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(config / "policy.yaml"))
    profiles.parent.mkdir(parents=True)
    for path, check in ((config, records.check_policy), (profiles, records.check_profiles)):
        assert here.states(check) == [OK]
        if kind == "file":
            path.write_text("")
        else:
            path.symlink_to("nowhere")
        (line,) = here.look(check)
        assert (line.state, line.text.endswith("no directory")) == (BAD, True)
        assert line.remedy.endswith(f"mv {path} {path}.old")


def _pool_of(*hosts: HostProfile) -> Pool:
    made = baseline.baseline([*hosts], "rack-7").pool
    assert made is not None
    return made


def test_the_pool(here: _Here) -> None:
    here.pool = _pool_of(here.profile)
    assert here.states(records.check_pool) == [OK]
    here.profile = here.profile.replace(clusters=())
    assert here.states(records.check_pool) == [UNKNOWN]


def test_a_pool_that_calls_this_host_otherwise(here: _Here) -> None:
    """As an inventory of Ansible's does, with names of domains, or numbers."""
    named = [here.profile.replace(name=f"{name}.example.com") for name in ("alpha", "beta")]
    for members in (named, named[1:]):  # equal hosts cannot be told apart, and need not be
        here.pool = _pool_of(*members)
        assert here.look(records.check_pool) == [
            Line(OK, "this host has the profile of a member of pool rack-7")
        ]
    here.profile = here.profile.replace(level_library="1")  # is no part of what it gives
    assert here.states(records.check_pool) == [OK]


def test_a_host_that_is_in_no_way_a_member(here: _Here) -> None:
    here.pool = _pool_of(here.profile)
    here.host.name = "stranger"
    here.profile = here.profile.replace(name="stranger", kernel=here.profile.kernel + "-1")
    (line,) = here.look(records.check_pool)
    assert (line.state, line.remedy) == (BAD, pool.ANEW)
    assert line.text == "pool rack-7 has no member stranger, nor one with its profile"
    (cluster,) = here.profile.clusters
    slow = {**cluster.seen, "CNTFRQ_EL0": 25_000_000}
    here.profile = here.profile.replace(clusters=(cluster.replace(seen=slow),))
    (line,) = here.look(records.check_pool)
    assert (line.state, line.remedy) == (BAD, pool.ANEW)
    assert line.text.startswith("this host does not fit into pool rack-7: CNTFRQ_EL0")


def test_a_host_that_has_drifted_out_of_its_pool(here: _Here) -> None:
    here.pool = _pool_of(here.profile)
    (cluster,) = here.profile.clusters
    slow = {**cluster.seen, "CNTFRQ_EL0": 25_000_000}
    here.profile = here.profile.replace(clusters=(cluster.replace(seen=slow),))
    (line,) = here.look(records.check_pool)
    assert line.state == BAD
    assert line.text.startswith("this host has drifted out of pool rack-7: CNTFRQ_EL0")
    assert "remedy" not in line.text  # for guests: what to do is the line's hint


def _keep(here: _Here, profile: HostProfile, days: float = 0) -> Path:
    text = profile_json.dumps(profile)
    path = here.write(f"{records.PROFILES}/{profile.name}.json", text)
    then = time.time() - days * _DAY
    os.utime(path, (then, then))
    return path


def test_profiles(here: _Here) -> None:
    _keep(here, here.profile, 1000)  # this host's own: what is in it counts
    _keep(here, here.profile.replace(name="peer"), 89)
    here.write(f"{records.PROFILES}/notes.txt", "")
    (line,) = here.look(records.check_profiles)
    assert (line.state, line.text.partition(" in ")[0]) == (OK, "2 profiles")


def test_outdated_profiles(here: _Here) -> None:
    _keep(here, here.profile.replace(kernel="5.10.0"))
    _keep(here, here.profile.replace(name="peer"), 91)
    here.write(f"{records.PROFILES}/broken.json", "{")
    broken, peer, own = here.look(records.check_profiles)
    assert {line.state for line in (broken, peer, own)} == {BAD}
    assert "91 days ago" in peer.text
    assert "Linux 5.10.0" in own.text
    assert own.remedy.startswith("kvmarm probe -o ")


def test_nobody_listens(here: _Here) -> None:
    (line,) = here.look(records.check_renewal)
    assert (line.state, line.remedy) == (BAD, "systemctl enable --now kvmarm-renew.socket")
    (here.root / "run/systemd/system/kvmarm-renew.socket").unlink()
    (line,) = here.look(records.check_renewal)
    assert (line.state, line.remedy.split(",")[0]) == (BAD, "kvmarm hook install")
    (here.root / "run/systemd/system").rmdir()
    (line,) = here.look(records.check_renewal)
    assert (line.state, line.remedy) == (
        BAD,
        "have the host's init start this at every boot, as root: kvmarm renew",
    )
    Path(policy.DEFAULT_PATH).write_text("on-drift: warn\n")
    assert here.states(records.check_renewal) == [BAD], "records of guests that run, nonetheless"


def test_a_socket_that_cannot_be_asked(here: _Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(marks, "is_heard", refuse)
    (line,) = here.look(records.check_renewal)
    assert (line.state, line.remedy) == (UNKNOWN, "run this as root")


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ("LoadState=loaded\nActiveState=active\n", OK),
        ("LoadState=not-found\nActiveState=inactive\n", OK),
        ("LoadState=masked\nActiveState=inactive\n", OK),
        ("LoadState=loaded\nActiveState=failed\n", BAD),
        ("LoadState=loaded\nActiveState=inactive\n", BAD),
        ("", BAD),
        (None, UNKNOWN),
    ],
)
def test_the_agent(here: _Here, answer: str | None, state: str) -> None:
    here.answers = {} if answer is None else {"kvmarm-agent.service": answer}
    assert here.states(records.check_agent) == [state]


def test_an_agent_without_systemd(here: _Here) -> None:
    shutil.rmtree(here.root / "run/systemd")
    here.answers = {}
    (line,) = here.look(records.check_agent)
    assert (line.state, line.remedy) == (OK, "")
    assert "systemctl" not in line.text


def test_marks(here: _Here) -> None:
    marks.mark(_UUID, "it started otherwise")
    marks.mark_by_name("guest", marks.FROM_STATE)
    first, second = here.look(records.check_marks)
    assert first.text == f"the record of {_UUID} may not be true: it started otherwise"
    assert first.remedy == "kvmarm renew --once"
    assert (second.state, second.remedy) == (BAD, "shut the guest down and start it")
    here.libvirt.domains.append(FakeDomain("a\nguest", _UUID, "SHUTOFF_SHUTDOWN"))
    assert here.look(records.check_marks)[0].text == (
        f"the record of a\\nguest ({_UUID}) may not be true: it started otherwise"
    )
    for number in range(5):
        marks.mark_by_name(f"guest{number}", "because")
    assert here.look(records.check_marks)[-1].text == "and 4 more guests have a mark"


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def run(
    here: _Here, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setattr(doctor, "Host", lambda *_: here.host)

    def call(*arguments: str) -> tuple[int, str, str]:
        return (cli.main(["doctor", *arguments]), *capsys.readouterr())

    return call


def test_the_command(run: Callable[..., tuple[int, str, str]], heard: socket.socket) -> None:
    del heard
    status, out, err = run()
    assert (status, err) == (0, "")
    assert out.endswith(f"\n{len(out.splitlines()) - 1} ok\n")
    marks.mark(_UUID, "x")
    status, out, _ = run()
    assert status == 1
    assert re.search(r"\nnot ok   marks +the record of .*\n +Remedy: kvmarm renew --once\n", out)
    document = json.loads(run("--json")[1])
    assert document["ok"] is False
    assert {entry["check"] for entry in document["checks"]} == set(CHECKS)


def test_what_is_unknown_is_not_ok(
    run: Callable[..., tuple[int, str, str]], heard: socket.socket, here: _Here
) -> None:
    del heard
    del here.answers["kvmarm-agent.service"]
    assert run()[0] == 1


def test_another_host_is_not_looked_at(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("-c", "qemu+ssh://far/system")[0] == 1


def test_foreign_text_is_shown(here: _Here) -> None:
    here.libvirt.down = True
    here.host.name = "\x1b[31m\nforged"
    here.pool = _pool_of(here.profile)
    here.write("/etc/libvirt/hooks/qemu.d/50-kvmarm", install.script() + "\x1b[2J")
    text = doctor_view.as_text(examine(here.host))
    assert all(line.isprintable() for line in text.splitlines())


# -- the report ----------------------------------------------------------------------------------

_SECRET = "hunter2"
_RESOLVED = resolver(_HERE).resolve(
    GUEST.replace(b"<name>", f"<uuid>{_UUID}</uuid><name>".encode()).replace(
        b"<cpu mode='host-model'/>",
        f"<cpu mode='host-model'><!-- {_SECRET} --></cpu>".encode(),
    )
)


def _planted() -> str:
    """A domain with a secret wherever a domain may have one."""
    text = _RESOLVED.decode()
    devices = f"""\
<devices>
  <emulator>/usr/bin/qemu-system-aarch64</emulator>
  <disk type='file'><source file='/{_SECRET}.img'/></disk>
  <graphics type='vnc' passwd='{_SECRET}'/>
  <hostdev><source><secret>{_SECRET}</secret></source></hostdev>
</devices>
<seclabel type='static'><label>{_SECRET}</label></seclabel>
<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'>
  <q:arg value='-object'/><q:arg value='secret,data={_SECRET}'/>
</q:commandline>
<sysinfo><system><entry name='serial'>{_SECRET}</entry></system></sysinfo>"""
    text = text.replace("<devices/>", devices)
    text = text.replace("<metadata>", f"<metadata><o:x xmlns:o='urn:o' p='{_SECRET}'/>")
    text = text.replace("</os>", f"<cmdline>password={_SECRET}</cmdline></os>")
    text = text.replace("<vcpu", f"<!-- {_SECRET} --><description>{_SECRET}</description><vcpu")
    return text.replace("<os>", f"<title>{_SECRET}</title><!-- {_SECRET} --><os>")


def _unpack(path: Path) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r:gz") as archive:
        return {
            member.name.partition("/")[2]: archive.extractfile(member).read().decode()  # type: ignore[union-attr]
            for member in archive
        }


def test_a_report_holds_what_is_needed_and_no_secret(
    run: Callable[..., tuple[int, str, str]], here: _Here, tmp_path: Path
) -> None:
    text = _planted()
    assert text.count(_SECRET) >= 9
    here.libvirt.domains.append(FakeDomain("guest", _UUID, "RUNNING_BOOTED", text, text))
    here.pool = _pool_of(here.profile)
    here.answers["kvmarm-hook"] = "kvmarm-hook: prepare: guest starts\n"
    here.answers["kvmarm-agent.service"] = "LoadState=loaded\nActiveState=active\n"
    path = tmp_path / "report.tar.gz"
    status, out, err = run("--report", str(path))
    assert status == 1
    assert err == f"kvmarm: wrote {path}: look through it before you give it away\n"
    assert path.stat().st_mode & 0o777 == 0o600
    files = _unpack(path)
    assert set(files) == {
        "doctor.txt",
        "doctor.json",
        "versions.txt",
        "profile.json",
        "policy.json",
        "pool.yaml",
        "journal.txt",
        f"domains/{_UUID}-live.xml",
        f"domains/{_UUID}-stored.xml",
    }
    assert files["doctor.txt"] == out
    assert _SECRET not in "".join(files.values())
    assert profile_json.loads(files["profile.json"]) == here.profile
    assert pool.loads(files["pool.yaml"]) == here.pool
    assert "guest starts" in files["journal.txt"]
    domain = parse(files[f"domains/{_UUID}-live.xml"].encode())
    element = record.find(domain)
    assert element is not None
    whole = record.find(parse(_RESOLVED))
    assert whole is not None
    assert record.read(element).target == record.read(whole).target
    assert {"cpu", "features", "os", "devices"} <= {child.name for child in domain.children}
    assert "/usr/bin/qemu-system-aarch64" in files[f"domains/{_UUID}-live.xml"]


def test_a_report_of_a_host_where_nothing_works(
    run: Callable[..., tuple[int, str, str]], here: _Here, tmp_path: Path
) -> None:
    here.libvirt.down = True
    here.host.policy = here.host.pool = here.host.profile = _refuse
    path = tmp_path / "report.tar.gz"
    assert run("--report", str(path))[0] == 1
    files = _unpack(path)
    for name in ("profile.json", "policy.json", "pool.yaml"):
        assert files[name] == "not known: broken (hint: mend it)\n"
    assert files["domains/problem.txt"].startswith("libvirt: Failed to connect")


@pytest.mark.parametrize("name", ["hand-made-rk3588", _HERE])
def test_what_is_kept_of_a_domain_is_a_domain(name: str) -> None:
    resolved = resolver(name).resolve(GUEST.replace(b"<cpu", b"<vcpu>2</vcpu><cpu"))
    kept = bug_report.without_secrets(resolved).encode()
    before, after = (record.find(parse(text)) for text in (resolved, kept))
    assert before is not None
    assert after is not None
    assert record.read(after) == record.read(before)
    for path in ("cpu", "vcpu", "cputune", "features", "os/type", "memory"):
        old, new = (parse(text).find(path) for text in (resolved, kept))
        assert (old is None) == (new is None)
        if old is not None and new is not None:
            assert new.attributes == old.attributes


def test_a_record_that_cannot_be_read_is_left_out() -> None:
    broken = _RESOLVED.replace(b"gic='3'", f"gic='{_SECRET}'".encode())
    kept = bug_report.without_secrets(broken)
    assert "its record is left out" in kept
    assert "urn:kvmarm" not in kept


def test_the_real_host(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """On whatever machine this runs, it says something and fails in nothing."""
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(tmp_path / "policy.yaml"))
    monkeypatch.setattr(pool, "DEFAULT_PATH", str(tmp_path / "pool.yaml"))
    assert cli.main(["doctor", "--json"]) in (0, 1)
    found = json.loads(capsys.readouterr().out)["checks"]
    assert {entry["check"] for entry in found} == set(CHECKS)
