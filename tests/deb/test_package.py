# SPDX-License-Identifier: LGPL-2.1-or-later
"""The package on each suite: built twice alike, installed, upgraded, removed, purged. Some
minutes a suite, and some more where its chroots are still to be made.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmarm_plugin.hook.install import DIRECTORY, NAME, PACKAGED

from ..lab import machine
from . import test_rpm
from .build import build, lint
from .chroot import SUITES, Chroot, Done, to_build, to_try

pytestmark = [
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make chroots"),
]

_PROJECT = Path(__file__).parents[2]
_HOOK = str(DIRECTORY / NAME)
_SCRIPT = (_PROJECT / "hooks/qemu.d" / NAME).read_text()
_WANTED = "/etc/systemd/system/sockets.target.wants/kvmarm-renew.socket"
_GUEST = (_PROJECT / "tests/golden/trixie-max/sve.xml").read_bytes()
_FOREIGN = "#!/bin/sh\n# ours since 2019\nexit 0\n"

# What libvirt does (virHookCall, src/util/virhook.c): it calls everything that it may execute, in
# the order of the names.
_LIBVIRT = f"""
for hook in {DIRECTORY}/*; do
    [ -x "$hook" ] || continue
    "$hook" "$@" </tmp/guest.xml || exit
done
"""


@pytest.fixture(scope="module", params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def package(suite: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, which lintian has nothing to say of."""
    with to_build(suite) as chroot:
        package = build(chroot, tmp_path_factory.mktemp(suite))
        lint(chroot)
        return package


@pytest.fixture(scope="module")
def older(package: Path) -> Path:
    """The same package in an earlier version."""
    tree = package.with_name("older")
    machine.run("dpkg-deb", "--raw-extract", package, tree)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 0~"))
    older = package.with_name("older.deb")
    machine.run("dpkg-deb", "--build", tree, older)
    return older


@pytest.fixture
def chroot(suite: str, package: Path, older: Path) -> Iterator[Chroot]:
    """A host that the package is not on; beside it lies the package, and a guest with a record."""
    with to_try(suite) as chroot:
        for name, data in (
            ("kvmarm.deb", package.read_bytes()),
            ("older.deb", older.read_bytes()),
            ("guest.xml", _GUEST),
        ):
            chroot.path(f"/tmp/{name}").write_bytes(data)
        chroot.path("/etc/libvirt/qemu").mkdir(parents=True)
        chroot.path("/etc/libvirt/qemu/guest.xml").write_bytes(_GUEST)
        yield chroot


def _apt(chroot: Chroot, *arguments: str) -> Done:
    return chroot.run("apt-get", "--yes", "--no-install-recommends", *arguments)


def _install(chroot: Chroot, name: str = "kvmarm") -> str:
    done = _apt(chroot, "install", f"/tmp/{name}.deb")
    assert done.status == 0, done.said
    return done.said


def _calls(chroot: Chroot, operation: str) -> Done:
    """What libvirt's call of its hooks comes to."""
    return chroot.run("sh", "-c", _LIBVIRT, "libvirt", "guest", operation, "begin", "-")


def _write(chroot: Chroot, text: str) -> Path:
    path = chroot.path(_HOOK)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def _is_linked(chroot: Chroot) -> bool:
    path = chroot.path(_HOOK)
    return path.is_symlink() and os.readlink(path) == PACKAGED


def _is_gone(chroot: Chroot) -> bool:
    """No hook, and libvirt starts the guest, and lets it arrive."""
    directory = chroot.path(str(DIRECTORY))
    calls = [_calls(chroot, operation) for operation in ("prepare", "migrate", "restore")]
    return not (directory.exists() and os.listdir(directory)) and calls == [Done(0, "")] * 3


def test_two_builds_give_the_same_bytes(suite: str, package: Path, tmp_path: Path) -> None:
    other = {
        "LC_ALL": "C",
        "TZ": "Asia/Kathmandu",
        "HOME": "/nonexistent",
        "DEB_BUILD_OPTIONS": "parallel=3",
    }
    before = os.umask(0o077)
    try:
        with to_build(suite) as chroot:
            again = build(chroot, tmp_path, environment=other)
    finally:
        os.umask(before)
    assert again.name == package.name
    assert again.read_bytes() == package.read_bytes()


# What one kind of package has and the other has not, by rule.
_OF_ONE_KIND = re.compile(
    r"/usr/share/(doc/kvmarm/(copyright|changelog|README.Debian)|licenses/)|.*[.]dist-info/|.*/$"
)


def _files(names: list[str]) -> set[str]:
    """Those that both kinds of package have to have, under Debian's names; directories are none."""
    names = [re.sub("^/lib/", "/usr/lib/", name) for name in names]
    names = [name.replace("/zsh/site-functions/", "/zsh/vendor-completions/") for name in names]
    return {name.removesuffix(".gz") for name in names if not _OF_ONE_KIND.match(name)}


@pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="there is no rpmbuild")
def test_the_rpm_package_has_the_same_files(package: Path, tmp_path: Path) -> None:
    rpm = test_rpm.build(tmp_path)[0]
    theirs = machine.run("rpm", "-qp", "--qf", "[%{FILEMODES:perms} %{FILENAMES}\n]", rpm)
    names = [line.split()[1] for line in theirs.splitlines() if line[0] != "d"]
    contents = machine.run("dpkg-deb", "--contents", package).splitlines()
    ours = _files([line.split()[5].lstrip(".") for line in contents])
    assert _files(names) - {_HOOK} == ours
    assert _HOOK in names, "a script of Debian's package makes it"


def test_from_the_installation_to_the_purge(chroot: Chroot) -> None:
    _install(chroot, "older")
    assert _is_linked(chroot)
    assert chroot.path(_WANTED).is_symlink()
    assert os.listdir(chroot.path("/etc/kvmarm")) == [], "an upgrade asks about no file"
    assert "kvmarm 0" in chroot.must("kvmarm", "--version")
    refused = _calls(chroot, "migrate")
    assert refused.status == 1
    assert refused.said.startswith("kvmarm: "), "there is no /dev/kvm here"
    assert "Install kvmarm again" not in refused.said

    chroot.path("/etc/kvmarm/pool.yaml").write_text("")
    _install(chroot)
    assert _is_linked(chroot)

    said = _apt(chroot, "remove", "kvmarm").said
    assert _is_gone(chroot)
    assert "kvmarm forget --all --restore" in said

    _install(chroot)
    assert _is_linked(chroot)
    chroot.path("/var/lib/kvmarm").mkdir(exist_ok=True)
    chroot.path("/var/lib/kvmarm/left").write_text("")

    assert _apt(chroot, "purge", "kvmarm").status == 0
    assert _is_gone(chroot)
    assert not chroot.path(_WANTED).is_symlink()
    assert not chroot.path("/var/lib/kvmarm").exists()
    assert os.listdir(chroot.path("/etc/kvmarm")) == ["pool.yaml"], "that is the operator's"
    assert not chroot.path("/etc/libvirt/hooks").exists()
    left = chroot.run("find", "/usr", "/etc", "/var", "/run", "-name", "*kvmarm*").said.split()
    assert [name for name in left if not name.startswith("/var/lib/dpkg/")] == ["/etc/kvmarm"]


def test_a_host_without_guests_of_ours_hears_nothing_at_the_removal(chroot: Chroot) -> None:
    chroot.path("/etc/libvirt/qemu/guest.xml").unlink()
    _install(chroot)
    assert "forget" not in _apt(chroot, "remove", "kvmarm").said


def test_what_hook_install_has_made_is_taken_over(chroot: Chroot) -> None:
    """Without a question, whatever installation it was of. One that Python finds first is named."""
    version = chroot.must("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    other = f"/usr/local/lib/python{version.strip()}/dist-packages/kvmarm_plugin"
    _write(chroot, _SCRIPT.replace("@PACKAGE@", other))
    chroot.path(other).mkdir(parents=True)
    assert f"kvmarm: the command kvmarm still runs {other}" in _install(chroot)
    assert _is_linked(chroot)
    _apt(chroot, "remove", "kvmarm")
    assert _is_gone(chroot)


def test_a_foreign_hook_stops_the_installation(chroot: Chroot) -> None:
    path = _write(chroot, _FOREIGN)
    done = _apt(chroot, "install", "/tmp/kvmarm.deb")
    assert done.status != 0
    assert f"kvmarm: {_HOOK} is not a hook of kvmarm's, or not root's" in done.said
    assert path.read_text() == _FOREIGN
    assert not chroot.path(PACKAGED).exists()

    path.unlink()
    path.symlink_to("/opt/theirs")
    assert _apt(chroot, "install", "/tmp/kvmarm.deb").status != 0
    assert os.readlink(path) == "/opt/theirs"

    path.unlink()
    _write(chroot, _SCRIPT)
    os.chown(path, 65534, 65534)
    assert _apt(chroot, "install", "/tmp/kvmarm.deb").status != 0, "it is not root's"
    assert path.stat().st_uid == 65534

    path.unlink()
    _install(chroot)
    assert _is_linked(chroot)


def test_what_an_administrator_does_to_the_link_stays(chroot: Chroot) -> None:
    _install(chroot, "older")
    chroot.path(_HOOK).unlink()
    _install(chroot)
    assert not chroot.path(_HOOK).is_symlink(), "an upgrade brings back what was removed"

    path = _write(chroot, _FOREIGN)
    _apt(chroot, "install", "--reinstall", "/tmp/kvmarm.deb")
    assert path.read_text() == _FOREIGN
    _apt(chroot, "purge", "kvmarm")
    assert path.read_text() == _FOREIGN


def test_hook_install_and_uninstall_leave_the_link_alone(chroot: Chroot) -> None:
    _install(chroot)
    assert f"{_HOOK} is up to date: it is the link" in chroot.must("kvmarm", "hook", "install")
    done = chroot.run("kvmarm", "hook", "uninstall")
    assert done.status == 1
    assert f"cannot remove {_HOOK}: it is the link" in done.said
    assert _is_linked(chroot)

    chroot.path(_HOOK).unlink()
    chroot.must("kvmarm", "hook", "install")
    assert _is_linked(chroot), "it makes the same link again, and no copy"
    _apt(chroot, "remove", "kvmarm")
    assert _is_gone(chroot)


def test_a_package_half_removed(chroot: Chroot) -> None:
    """Its files are gone, and nobody has run its scripts: libvirt passes over a dangling link."""
    _install(chroot)
    chroot.path(PACKAGED).unlink()
    assert _is_linked(chroot)
    assert _calls(chroot, "migrate") == Done(0, "")
    _apt(chroot, "remove", "kvmarm")
    assert _is_gone(chroot)


def test_libvirt_is_told(chroot: Chroot) -> None:
    """By the signal that has it look for hooks; what plays the daemon writes down that it came."""
    daemon = "import signal, time, pathlib, os\n"
    daemon += "pathlib.Path('/proc/self/comm').write_text('virtqemud')\n"
    daemon += "told = open('/tmp/told', 'w', buffering=1)\n"
    daemon += "signal.signal(signal.SIGHUP, lambda *_: told.write('told\\n'))\n"
    daemon += "pathlib.Path('/run/virtqemud.pid').write_text(str(os.getpid()))\n"
    daemon += "while True: time.sleep(1)\n"
    chroot.path("/tmp/daemon.py").write_text(daemon)
    chroot.must(
        "sh",
        "-c",
        "python3 /tmp/daemon.py & until [ -s /run/virtqemud.pid ]; do sleep 0.1; done;"
        " dpkg --install /tmp/kvmarm.deb && sleep 1 && cp /tmp/told /tmp/installed &&"
        " dpkg --remove kvmarm && sleep 1",
    )
    assert chroot.path("/tmp/installed").read_text() == "told\n"
    assert chroot.path("/tmp/told").read_text() == "told\ntold\n"
