# SPDX-License-Identifier: LGPL-2.1-or-later
"""The RPM package as `make rpm` builds it, on a Debian: built twice alike, and rpm installs,
upgrades and removes it in a chroot. On Fedora and RHEL nobody has tried it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmarm_plugin.hook.install import DIRECTORY, NAME, PACKAGED

from ..lab import machine
from .chroot import Chroot, Done, to_try

pytestmark = [
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make chroots"),
    pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="there is no rpmbuild"),
]

_PROJECT = Path(__file__).parents[2]
_HOOK = str(DIRECTORY / NAME)
_FOREIGN = "#!/bin/sh\n# ours since 2019\nexit 0\n"
# Where units are installed, systemctl is; this one writes down what it is asked.
_SYSTEMCTL = '#!/bin/sh\necho "$*" >>/tmp/asked\n'


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return build(tmp_path_factory.mktemp("rpm"))


def build(directory: Path) -> list[Path]:
    """What `make rpm` builds: kvmarm, kvmarm-level, and a module of SELinux's for each."""
    machine.run(_PROJECT / "rpm/build", directory)
    return sorted(directory.iterdir())


@pytest.fixture
def chroot(packages: list[Path]) -> Iterator[Chroot]:
    with to_try("trixie") as chroot:
        shutil.copy(packages[0], chroot.path("/tmp/kvmarm.rpm"))
        systemctl = chroot.path("/usr/bin/systemctl")
        systemctl.write_text(_SYSTEMCTL)
        systemctl.chmod(0o755)
        yield chroot


def _rpm(chroot: Chroot, *arguments: str) -> Done:
    """rpm on the database of the chroot; whose packages it does not know."""
    done = subprocess.run(
        ["rpm", f"--root={chroot.root}", "--nodeps", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Done(done.returncode, done.stdout)


def _install(chroot: Chroot, *options: str) -> None:
    done = _rpm(chroot, "--install", *options, str(chroot.path("/tmp/kvmarm.rpm")))
    assert done.status == 0, done.said


def _upgrade(chroot: Chroot) -> None:
    """To the same version, which runs the same scripts."""
    done = _rpm(chroot, "--upgrade", "--force", str(chroot.path("/tmp/kvmarm.rpm")))
    assert done.status == 0, done.said


def _is_linked(chroot: Chroot) -> bool:
    path = chroot.path(_HOOK)
    return path.is_symlink() and os.readlink(path) == PACKAGED


def _asked(chroot: Chroot) -> list[str]:
    """What systemctl was asked since the last time."""
    path = chroot.path("/tmp/asked")
    asked = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return asked


def test_two_builds_give_the_same_bytes(packages: list[Path], tmp_path: Path) -> None:
    again = build(tmp_path)
    assert [path.name for path in again] == [path.name for path in packages]
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in packages]


def test_rpmlint_has_nothing_to_say(packages: list[Path]) -> None:
    said = machine.run(
        "rpmlint",
        f"--config={_PROJECT / 'rpm/rpmlint.toml'}",
        *packages,
        _PROJECT / "rpm/kvmarm.spec",
        _PROJECT / "preload/rpm/kvmarm-level.spec",
    )
    assert " 0 errors, 0 warnings, " in said


def test_what_the_packages_of_libkvmarm_level_have(packages: list[Path]) -> None:
    level, module = packages[1:3]
    names = machine.run("rpm", "--query", "--list", "--package", level).split()
    assert "/usr/lib64/libkvmarm-level.so.1" in names
    assert machine.run("rpm", "--query", "--queryformat=%{ARCH}", "--package", level) == "aarch64"
    provided = machine.run("rpm", "--query", "--provides", "--package", level)
    assert "libkvmarm-level.so.1()(64bit)" in provided
    names = machine.run("rpm", "--query", "--list", "--package", module).split()
    assert "/usr/share/selinux/packages/targeted/kvmarm_level.pp" in names


def test_from_the_installation_to_the_removal(chroot: Chroot) -> None:
    _install(chroot)
    assert _is_linked(chroot)
    assert chroot.must("kvmarm", "--version").startswith("kvmarm 0")
    assert f"{_HOOK} is up to date: it is the link" in chroot.must("kvmarm", "hook", "install")
    assert _rpm(chroot, "--verify", "kvmarm") == Done(0, "")
    units = "kvmarm-renew.socket kvmarm-agent.service"
    reloads = ["reload virtqemud.service", "reload libvirtd.service"]
    assert _asked(chroot) == [f"--no-reload preset {units}", *reloads]

    _upgrade(chroot)
    assert _is_linked(chroot)
    assert _asked(chroot) == [*reloads, "try-restart kvmarm-agent.service kvmarm-renew.service"]

    assert _rpm(chroot, "--erase", "kvmarm").status == 0
    (disabled,) = _asked(chroot)
    assert disabled.startswith("--no-reload disable --now kvmarm-agent.service ")
    assert not chroot.path(str(DIRECTORY)).exists()
    left = chroot.run(
        "find", "/usr", "/etc", "/run", "-name", "*kvmarm*", "-type", "f"
    ).said.split()
    assert [name for name in left if "/__pycache__/" not in name] == []


def test_what_an_administrator_does_to_the_link_stays(chroot: Chroot) -> None:
    _install(chroot)
    chroot.path(_HOOK).unlink()
    _upgrade(chroot)
    assert not chroot.path(_HOOK).is_symlink(), "an upgrade brings back what was removed"
    chroot.path(_HOOK).write_text(_FOREIGN)
    _upgrade(chroot)
    assert chroot.path(_HOOK).read_text() == _FOREIGN


def test_a_foreign_hook_stops_the_installation(chroot: Chroot) -> None:
    path = chroot.path(_HOOK)
    path.parent.mkdir(parents=True)
    path.write_text(_FOREIGN)
    done = _rpm(chroot, "--install", str(chroot.path("/tmp/kvmarm.rpm")))
    assert done.status != 0
    assert f"kvmarm: {_HOOK} is not a hook of kvmarm's, or not root's" in done.said
    assert path.read_text() == _FOREIGN
    assert not chroot.path(PACKAGED).exists()


def test_what_hook_install_has_made_is_taken_over(chroot: Chroot) -> None:
    path = chroot.path(_HOOK)
    path.parent.mkdir(parents=True)
    shutil.copy(_PROJECT / "hooks/qemu.d" / NAME, path)
    _install(chroot)
    assert _is_linked(chroot)
