# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `kvmarm hook install` lets libvirt run as root: only what root alone can change, and nothing
in the place of another's.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import site
import socket
import stat
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.commands import hook as command
from kvmarm_plugin.diagnosis.host import START_RENEWAL
from kvmarm_plugin.hook import confined, whose
from kvmarm_plugin.hook import install as hookfile
from kvmarm_plugin.host import daemons, marks
from kvmarm_plugin.host.selinux import SELinux
from kvmarm_plugin.model import policy

from ..corpus import GUEST
from .fakeselinux import FEDORA, RHEL9, FakeSELinux
from .users import give, needs_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PACKAGE = Path(hookfile.__file__).parents[1]
_SCRIPT = _PACKAGE.parent / "hooks/qemu.d/50-kvmarm"
_REFUSED = r"^others than root can change {}, and with it what libvirt would run as root \(hint: "


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of root's, in a directory (/tmp) that is everybody's."""
    for name in ("_check_version", "_check_interpreter"):
        monkeypatch.setattr(hookfile, name, lambda *_: None)
    monkeypatch.setattr(daemons, "running", lambda *_: [])
    before = os.umask(0o022)
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    os.umask(before)
    shutil.rmtree(path)


@pytest.fixture
def directory(place: Path) -> Path:
    """/etc/libvirt/hooks/qemu.d, which is not there yet."""
    (place / "etc/libvirt").mkdir(parents=True)
    return place / "etc/libvirt/hooks/qemu.d"


@pytest.fixture
def package(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that is installed, in a site-packages of its own, and compiled."""
    path = place / "lib/site-packages/kvmarm_plugin"
    shutil.copytree(_PACKAGE, path, ignore=shutil.ignore_patterns("__pycache__"))
    (path / "__pycache__").mkdir()
    (path / "__pycache__/hook.cpython-311.pyc").write_bytes(b"")
    monkeypatch.setattr(hookfile, "_PACKAGE", path)
    return path


def _refuses(directory: Path, path: Path, hint: str = "") -> None:
    with pytest.raises(KvmarmError, match=_REFUSED.format(re.escape(str(path))) + hint):
        hookfile.install(directory)
    assert not directory.exists()


def test_a_tree_of_any_depth_is_looked_at(directory: Path, package: Path) -> None:
    """Each level is a call of the file system's and none of Python's."""
    limit = sys.getrecursionlimit()
    (package / "/".join("d" * 150)).mkdir(parents=True)
    sys.setrecursionlimit(100 + sum(1 for _ in traceback.walk_stack(None)))
    try:
        assert hookfile.install(directory)[0].startswith("installed ")
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o077], ids=oct)
def test_what_the_hook_leaves_behind_is_roots_alone(
    directory: Path, package: Path, mask: int
) -> None:
    """Whatever umask the daemon has: Python compiles what it loads, and runs that the next time."""
    shutil.rmtree(package / "__pycache__")
    hookfile.install(directory)
    os.umask(mask)
    subprocess.run(
        [directory / hookfile.NAME, "guest", "prepare", "begin", "-"],
        input=GUEST,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.umask(0o022)
    left = [path for path in package.rglob("*") if "__pycache__" in path.parts]
    assert left
    assert not [path for path in left if path.stat().st_mode & 0o022]
    assert hookfile.install(directory)[0].endswith(" is up to date")


# -- the directories -----------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o027, 0o077], ids=oct)
def test_whatever_the_umask_everybody_can_look_and_root_can_write(
    directory: Path, mask: int
) -> None:
    before = os.umask(mask)
    try:
        hookfile.install(directory)
    finally:
        os.umask(before)
    for path in (directory.parent, directory, directory / hookfile.NAME):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755, path


def test_a_directory_that_is_there_is_left_as_it_is(directory: Path) -> None:
    directory.mkdir(parents=True)
    directory.chmod(0o700)
    hookfile.install(directory)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@needs_root
@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("change", ["hers", 0o777, 0o775, 0o1777])
def test_directories_that_others_can_write(directory: Path, level: int, change: str | int) -> None:
    """Sticky or not: who can add a hook needs to replace none."""
    directory.mkdir(parents=True)
    path = [directory, *directory.parents][level]
    if isinstance(change, int):
        path.chmod(change)
        if (change, level) == (0o1777, 3):  # the directory above /etc/libvirt: as /tmp is
            assert hookfile.install(directory)[0].startswith("installed ")
            return
        with pytest.raises(
            KvmarmError, match=_REFUSED.format(re.escape(str(path))) + "chmod go-w "
        ):
            hookfile.install(directory)
        path.chmod(0o755)
        hookfile.install(directory)
    else:
        give(path)
        with pytest.raises(KvmarmError, match=_REFUSED.format(re.escape(str(path)))):
            hookfile.install(directory)
        assert list(directory.iterdir()) == []


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("dangling", [False, True])
def test_nothing_is_installed_through_a_link(
    directory: Path, place: Path, level: int, dangling: bool
) -> None:
    path = [directory / hookfile.NAME, directory, directory.parent][level]
    path.parent.mkdir(parents=True, exist_ok=True)
    target = place / "elsewhere"
    if not dangling and level:
        target.mkdir()
    elif not dangling:
        target.write_bytes(_SCRIPT.read_bytes())
    path.symlink_to(target)
    held = target.read_bytes() if target.is_file() else None
    for call in (hookfile.install, hookfile.uninstall):
        with pytest.raises(KvmarmError, match=rf"^{path} is a link, and .*\(hint: .* rm {path}\)$"):
            call(directory)
        assert path.is_symlink()
        assert (target.read_bytes() if target.is_file() else None) == held
        assert not (target.is_dir() and list(target.iterdir()))
    path.unlink()
    assert hookfile.install(directory)[0].startswith("installed "), "the hint works"


def test_etc_libvirt_may_be_a_link(place: Path) -> None:
    (place / "srv/libvirt").mkdir(parents=True)
    (place / "libvirt").symlink_to("srv/libvirt")
    hookfile.install(place / "libvirt/hooks/qemu.d")
    assert (place / "srv/libvirt/hooks/qemu.d" / hookfile.NAME).is_file()
    assert hookfile.uninstall(place / "libvirt/hooks/qemu.d")[0].startswith("removed ")


@needs_root
def test_but_not_a_link_of_anothers(place: Path) -> None:
    (place / "srv/libvirt").mkdir(parents=True)
    (place / "libvirt").symlink_to("srv/libvirt")
    give(place / "libvirt")
    _refuses(place / "libvirt/hooks/qemu.d", place / "libvirt")


@pytest.mark.parametrize("level", range(2))
def test_a_file_in_a_directorys_place(directory: Path, level: int) -> None:
    """There is nothing to remove; what is to be installed has no place."""
    path = [directory, directory.parent][level]
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    assert hookfile.uninstall(directory) == [f"{directory / hookfile.NAME} is not there"]
    with pytest.raises(KvmarmError, match=rf"a file is there \(hint: .* mv {path} {path}.old\)$"):
        hookfile.install(directory)
    path.rename(f"{path}.old")
    assert hookfile.install(directory)[0].startswith("installed "), "the hint works"


@needs_root
def test_where_nobody_can_write(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root is not told to become root."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name, call in (("mkdir", hookfile.install), ("unlink", hookfile.uninstall)):
        with monkeypatch.context() as context:
            context.setattr(os, name, refuse)
            with pytest.raises(
                KvmarmError,
                match=r": Read-only file system \(hint: see that root can write there\)",
            ):
                call(directory)
        hookfile.install(directory)


# -- what is there already -----------------------------------------------------------------------

_FOREIGN: dict[str, Callable[[Path], object]] = {
    "another hook": lambda path: path.write_text("#!/bin/sh\n# ours since 2019\nexit 0\n"),
    "a hook that mentions kvmarm": lambda path: path.write_text(
        '#!/bin/sh\nkvmarm-hook "$@" # kvmarm: libvirt calls this\n'
    ),
    "an empty file": lambda path: path.write_text(""),
    "a binary": lambda path: path.write_bytes(bytes(range(256)) * 100),
    "a directory": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("what", sorted(_FOREIGN))
def test_what_is_not_kvmarms_stays(directory: Path, what: str) -> None:
    path = directory / hookfile.NAME
    directory.mkdir(parents=True)
    _FOREIGN[what](path)
    path.chmod(0o750)
    before = path.lstat(), path.read_bytes() if path.is_file() else None
    for verb, call in (("write", hookfile.install), ("remove", hookfile.uninstall)):
        with pytest.raises(
            KvmarmError,
            match=rf"^cannot {verb} {path}: it is not a hook of kvmarm's, or not root's \(hint: ",
        ):
            call(directory)
        status = path.lstat()
        assert (status.st_ino, status.st_mode, status.st_mtime_ns) == (
            before[0].st_ino,
            before[0].st_mode,
            before[0].st_mtime_ns,
        )
        assert (path.read_bytes() if path.is_file() else None) == before[1]
        assert os.listdir(directory) == [hookfile.NAME]


@needs_root
def test_kvmarms_hook_in_the_hands_of_another_is_not_up_to_date(directory: Path) -> None:
    """She could write it: neither is it run on, nor is what may be hers thrown away."""
    hookfile.install(directory)
    path = directory / hookfile.NAME
    give(path)
    for call in (hookfile.install, hookfile.uninstall):
        with pytest.raises(KvmarmError, match="not root's"):
            call(directory)
    assert path.stat().st_uid != 0


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o4755, 0o644, 0o700], ids=oct)
def test_kvmarms_hook_of_another_mode_is_renewed(directory: Path, mode: int) -> None:
    hookfile.install(directory)
    path = directory / hookfile.NAME
    path.chmod(mode)
    assert hookfile.install(directory)[0] == f"installed {path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_every_version_of_the_hook_is_known() -> None:
    """By a line that none may lose: otherwise it could be neither renewed nor removed."""
    assert hookfile._MARK in hookfile.script().encode()
    assert hookfile._MARK in _SCRIPT.read_bytes()
    assert hookfile._MARK == b"\n# kvmarm: libvirt calls this ", "as in every version so far"


def test_a_package_whose_place_is_not_text(
    directory: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = place / os.fsdecode(b"caf\xe9") / "kvmarm_plugin"
    package.parent.mkdir()
    package.symlink_to(_PACKAGE)
    monkeypatch.setattr(hookfile, "_PACKAGE", package)
    hookfile.install(directory)
    assert os.fsencode(package) in (directory / hookfile.NAME).read_bytes()
    assert hookfile.install(directory)[0].endswith("is up to date")


# -- what the hook would load --------------------------------------------------------------------

_PARTS = [
    "",
    "hook/answer.py",
    "registers/fields.tsv",
    "host/parts.yaml",
    "py.typed",
    "registers",
    "__pycache__",
    "__pycache__/hook.cpython-311.pyc",
]


@needs_root
@pytest.mark.parametrize("part", _PARTS)
@pytest.mark.parametrize("change", ["hers", 0o666, 0o1777, 0o620])
def test_a_part_that_others_can_change(
    directory: Path, package: Path, part: str, change: str | int
) -> None:
    path = package / part
    before = path.stat().st_mode & 0o7777
    if isinstance(change, int):
        path.chmod(change | (0o111 if path.is_dir() else 0))
        _refuses(directory, path, f"chmod go-w {path}")
        subprocess.run(["chmod", "go-w", path], check=True)
    else:
        give(path)
        _refuses(directory, path, f".*chown -h root {path}")
        subprocess.run(["chown", "-h", "root", path], check=True)
        path.chmod(before)
    assert hookfile.install(directory)[0].startswith("installed "), "the hint works"


@needs_root
@pytest.mark.parametrize(
    "name",
    [
        "hook/answer",
        "hook.cpython-311-x86_64-linux-gnu.so",
        "hook/answer.abi3.so",
        "hook.pyc",
        "kvm/re.py",
        "registers/.hidden",
        "record",
    ],
)
def test_what_python_would_load_instead(directory: Path, package: Path, name: str) -> None:
    path = package / name
    if "." in name:
        path.write_bytes(b"")
    else:
        path.mkdir()
    assert not directory.exists()
    give(path)
    _refuses(directory, path)


@needs_root
def test_links_to_parts(directory: Path, package: Path, place: Path) -> None:
    """Root's are as good as where they lead; another's are not."""
    (place / "srv").mkdir()
    for name in ("kvm", "hook/answer.py", "registers/fields.tsv"):
        moved = place / "srv" / Path(name).name
        shutil.move(package / name, moved)
        (package / name).symlink_to(moved)
    hookfile.install(directory)
    shutil.rmtree(directory.parent)

    for name, path in (
        ("the link", package / "hook/answer.py"),
        ("the file that it leads to", place / "srv/answer.py"),
        ("the directory that this is in", place / "srv"),
        ("a file in a directory that is linked to", place / "srv/kvm/device.py"),
    ):
        give(path)
        seen = package / "kvm/device.py" if "linked" in name else path
        with pytest.raises(
            KvmarmError, match=_REFUSED.format(f"({re.escape(str(path))}|{re.escape(str(seen))})")
        ):
            hookfile.install(directory)
        os.chown(path, 0, 0, follow_symlinks=False)
    assert hookfile.install(directory)[0].startswith("installed ")


@needs_root
def test_a_link_into_nothing(directory: Path, package: Path, place: Path) -> None:
    """What is not there yet can come."""
    (place / "open").mkdir()
    (package / "extra.py").symlink_to(place / "open/extra.py")
    assert hookfile.install(directory)[0].startswith("installed ")
    shutil.rmtree(directory.parent)
    (place / "open").chmod(0o1777)
    _refuses(directory, place / "open")


@needs_root
def test_a_link_that_goes_round(directory: Path, package: Path) -> None:
    (package / "loop").symlink_to("loop")
    with pytest.raises(
        KvmarmError, match=r"cannot look at .*/loop: Too many levels of symbolic links \(hint: "
    ):
        hookfile.install(directory)


@needs_root
@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize("change", ["hers", 0o777, 0o775, 0o1777])
def test_directories_above_the_package(
    directory: Path, package: Path, level: int, change: str | int
) -> None:
    """Where the package is in, Python looks for more modules: not a sticky directory. Above that,
    one protects what is root's.
    """
    path = package.parents[level]
    if isinstance(change, int):
        path.chmod(change)
    else:
        give(path)
    if change == 0o1777 and level:
        assert hookfile.install(directory)[0].startswith("installed ")
    else:
        _refuses(directory, path)


@needs_root
@pytest.mark.parametrize("owner", ["root", "alice"])
def test_links_above_the_package(
    directory: Path, package: Path, place: Path, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "alias").symlink_to("lib")
    (place / "python3").symlink_to("alias/site-packages")
    if owner == "alice":
        give(place / "alias")
    monkeypatch.setattr(hookfile, "_PACKAGE", place / "python3/kvmarm_plugin")
    if owner == "root":
        assert hookfile.install(directory)[0].startswith("installed ")
    else:
        _refuses(directory, place / "alias")


@needs_root
def test_links_in_a_directory_of_anothers(
    directory: Path, package: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link is root's, but she can put another in its place."""
    (place / "home").mkdir()
    (place / "home/lib").symlink_to(place / "lib/site-packages")
    give(place / "home")
    monkeypatch.setattr(hookfile, "_PACKAGE", place / "home/lib/kvmarm_plugin")
    _refuses(directory, place / "home")


@needs_root
def test_the_script_that_becomes_the_hook(
    directory: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = place / "50-kvmarm"
    shutil.copy(_SCRIPT, copy)
    monkeypatch.setattr(hookfile, "shipped", lambda *_: copy)
    give(copy)
    _refuses(directory, copy)


@needs_root
def test_the_interpreter(directory: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at before it is run."""
    (place / "bin").mkdir()
    (place / "bin/python3").write_text(f"#!/bin/sh\ntouch {place}/was-run\n")
    (place / "bin/python3").chmod(0o755)
    (place / "python3").symlink_to("bin/python3")
    text = hookfile.script().replace("python=/usr/bin/python3\n", f"python={place}/python3\n")
    monkeypatch.setattr(hookfile, "script", lambda: text)
    monkeypatch.setattr(
        hookfile, "_check_interpreter", lambda python: subprocess.run([python], check=True)
    )
    for path in (place / "python3", place / "bin", place / "bin/python3"):
        give(path)
        _refuses(directory, path)
        os.chown(path, 0, 0, follow_symlinks=False)
    assert not (place / "was-run").exists()
    hookfile.install(directory)
    assert (place / "was-run").exists()


@needs_root
def test_names_are_shown_as_text(directory: Path, package: Path) -> None:
    path = package / "\x1b[2Jx\nkvmarm: all is well"
    path.write_text("")
    give(path)
    with pytest.raises(KvmarmError) as caught:
        hookfile.install(directory)
    assert "\\x1b[2Jx\\nkvmarm: all is well" in str(caught.value)
    assert str(caught.value).isprintable()


# -- the link of a package -----------------------------------------------------------------------


@pytest.fixture
def link(directory: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hook as a distribution's package has it."""
    (place / "bin").mkdir()
    shutil.copy(_SCRIPT, place / "bin/kvmarm-hook")
    monkeypatch.setattr(hookfile, "PACKAGED", str(place / "bin/kvmarm-hook"))
    directory.mkdir(parents=True)
    (directory / hookfile.NAME).symlink_to(hookfile.PACKAGED)
    return directory / hookfile.NAME


def test_the_link_of_a_package_stays(directory: Path, link: Path) -> None:
    said = hookfile.install(directory)
    assert said[0].startswith(f"{link} is up to date: it is the link of a package to ")
    with pytest.raises(KvmarmError, match=r"it is the link of a package .*apt remove kvmarm"):
        hookfile.uninstall(directory)
    assert os.readlink(link) == hookfile.PACKAGED


@needs_root
@pytest.mark.parametrize("what", ["link", "script", "directory"])
def test_the_link_of_a_package_that_others_can_change(
    directory: Path, link: Path, place: Path, what: str
) -> None:
    path = {"link": link, "script": place / "bin/kvmarm-hook", "directory": place / "bin"}[what]
    give(path)
    with pytest.raises(KvmarmError, match=_REFUSED.format(re.escape(str(path)))):
        hookfile.install(directory)


def test_what_a_package_that_is_gone_has_left(directory: Path, link: Path, place: Path) -> None:
    """It is kvmarm's own, and nothing goes through it."""
    (place / "bin/kvmarm-hook").unlink()
    assert hookfile.install(directory)[0] == f"installed {link}"
    assert not link.is_symlink()
    assert hookfile.uninstall(directory)[0] == f"removed {link}"
    link.symlink_to(hookfile.PACKAGED)
    assert hookfile.uninstall(directory)[0] == f"removed {link}"
    assert os.listdir(directory) == os.listdir(place / "bin") == []


@needs_root
def test_nor_is_it_followed_in_the_hands_of_another(
    directory: Path, link: Path, place: Path
) -> None:
    (place / "bin/kvmarm-hook").unlink()
    give(link)
    for call in (hookfile.install, hookfile.uninstall):
        with pytest.raises(KvmarmError, match=rf"^{link} is a link, "):
            call(directory)


def test_a_packages_link_is_made_again(
    directory: Path, link: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an administrator had removed it; of an installation that is no package's, a file."""
    program = Path(hookfile.PACKAGED)
    link.unlink()
    hookfile.install(directory)
    assert not link.is_symlink(), "the program is another installation's"
    program.write_text(hookfile.script())
    assert hookfile.install(directory)[0] == f"installed {link}, a link to {program}"
    assert os.readlink(link) == str(program)
    assert os.listdir(directory) == [hookfile.NAME]

    link.unlink()
    link.write_text("#!/bin/sh\n")
    with pytest.raises(KvmarmError, match="is not a hook of kvmarm's"):
        hookfile.install(directory)


# -- whose installation this is ------------------------------------------------------------------


@pytest.fixture
def site_packages(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kvmarm is, in a virtualenv of root's."""
    (place / "venv").mkdir()
    monkeypatch.setattr(sys, "prefix", str(place / "venv"))
    path = place / "venv/lib/python3/site-packages"
    monkeypatch.setattr(whose, "_PACKAGE", path / "kvmarm_plugin")
    return path


@needs_root
def test_a_virtualenv_of_roots_is_named(site_packages: Path) -> None:
    (line,) = whose.check()
    assert f" out of the virtualenv {site_packages.parents[2]}: " in line


@needs_root
@pytest.mark.parametrize("kind", ["pipx", "virtualenv", "user"])
def test_what_is_a_users_is_no_place_for_the_hook(
    site_packages: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = site_packages.parents[2]
    if kind == "pipx":
        (environment / "pipx_metadata.json").write_text("{}")
    elif kind == "virtualenv":
        give(environment)
    else:
        monkeypatch.setattr(sys, "prefix", sys.base_prefix)
        monkeypatch.setattr(site, "getuserbase", lambda: str(environment))
    with pytest.raises(KvmarmError, match=r"this kvmarm is (pipx's|a user's), in .* `make deb`"):
        command.run(SimpleNamespace(action="install"))  # type: ignore[arg-type]


def test_the_source_tree_and_distributions_places(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert whose.check() == []
    monkeypatch.setattr(sys, "prefix", str(place))
    assert whose.check() == [], "run by a virtualenv's Python"


# -- SELinux -------------------------------------------------------------------------------------


@pytest.fixture
def policy_of(
    place: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], FakeSELinux]:
    """What plays a kernel with SELinux and such a policy."""
    monkeypatch.setattr(confined, "SELinux", lambda: SELinux(place))

    def play(rules: str) -> FakeSELinux:
        selinux = FakeSELinux(place, monkeypatch, rules)
        selinux.labels[str(directory)] = "virt_hook_t"
        return selinux

    return play


def test_a_file_that_virtqemud_may_not_run_is_not_installed(
    directory: Path, policy_of: Callable[[str], FakeSELinux]
) -> None:
    selinux = policy_of(FEDORA)
    with pytest.raises(KvmarmError, match=r"let virtqemud run a hook .* virt_hook_t \(.* package"):
        hookfile.install(directory)
    assert not (directory / hookfile.NAME).exists()
    selinux.permissive = True
    hookfile.install(directory)
    assert (directory / hookfile.NAME).exists()


def test_a_file_that_an_unconfined_daemon_runs_is(
    directory: Path, policy_of: Callable[[str], FakeSELinux]
) -> None:
    policy_of(RHEL9)
    hookfile.install(directory)
    assert (directory / hookfile.NAME).exists()


def test_where_selinux_does_not_answer_doctor_says_so(
    directory: Path, place: Path, policy_of: Callable[[str], FakeSELinux]
) -> None:
    policy_of(FEDORA)
    (place / "sys/fs/selinux/class/file/index").unlink()
    hookfile.install(directory)


def test_what_selinux_denies_to_the_hook_of_a_package_is_said(
    directory: Path, link: Path, policy_of: Callable[[str], FakeSELinux]
) -> None:
    selinux = policy_of(FEDORA)
    selinux.labels[hookfile.PACKAGED] = "bin_t"
    assert len(hookfile.install(directory)) == 2
    selinux.labels[marks.DIRECTORY] = "var_run_t"
    assert hookfile.install(directory)[2].endswith(
        "`kvmarm allow` in the hook; install kvmarm-selinux, and then: restorecon -R /run/kvmarm"
    )
    assert link.is_symlink()


# -- where policy, pool and profiles go ----------------------------------------------------------


@needs_root
def test_the_directories_of_what_is_written_by_hand(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are there after `hook install`, and gone after `hook uninstall` unless in use."""
    names = ("etc/kvmarm", "lib/kvmarm", "lib/kvmarm/profiles")
    config, state, profiles = paths = tuple(place / name for name in names)
    config.parent.mkdir()
    state.parent.mkdir()
    monkeypatch.setattr(hookfile, "DIRECTORIES", paths)
    monkeypatch.setattr(hookfile, "install", lambda: ["installed"])
    monkeypatch.setattr(hookfile, "uninstall", lambda: ["removed the hook"])
    monkeypatch.setattr(command, "_note_host_model", lambda: None)
    monkeypatch.setattr(command, "_how_to_renew", list)
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(config / "policy.yaml"))

    def hook(action: str) -> list[str]:
        assert command.run(SimpleNamespace(action=action)) == 0  # type: ignore[arg-type]
        return capsys.readouterr().out.splitlines()

    os.umask(0o077)
    assert hook("install") == ["installed", *(f"made {path}" for path in paths)]
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
        assert path.stat().st_uid == 0
    assert hook("install") == ["installed"]
    (config / "policy.yaml").write_text("")
    assert hook("uninstall") == [
        "removed the hook",
        f"removed {profiles}, which was empty",
        f"removed {state}, which was empty",
    ]
    assert config.exists()
    assert hook("uninstall") == ["removed the hook"]


@pytest.fixture
def state(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/var/lib/kvmarm, which is not there yet, of a `kvmarm hook install` that says "installed"."""
    path = place / "var/lib/kvmarm"
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(hookfile, "DIRECTORIES", (path, path / "profiles"))
    monkeypatch.setattr(hookfile, "install", lambda: ["installed"])
    monkeypatch.setattr(command, "_note_host_model", lambda: print("asked libvirt"))
    monkeypatch.setattr(command, "_how_to_renew", list)
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(place / "policy.yaml"))
    return path


def _install() -> None:
    assert command.run(SimpleNamespace(action="install")) == 0  # type: ignore[arg-type]


@needs_root
@pytest.mark.parametrize("level", range(3))
def test_links_of_roots_on_the_way_are_followed_and_stay(
    state: Path, level: int, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where /var is on another disk."""
    path = [state, *state.parents][level]
    state.mkdir()
    path.rename(place / "elsewhere")
    path.symlink_to("elsewhere" if path.parent == place else place / "elsewhere")
    _install()
    assert capsys.readouterr().out == f"installed\nasked libvirt\nmade {state}/profiles\n"
    assert (state / "profiles").is_dir()
    _install()
    assert hookfile.remove_directories()[0] == f"removed {state}/profiles, which was empty"
    assert path.is_symlink()
    assert (place / "elsewhere").is_dir()


_IN_THE_WAY: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_text(""),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a link to a file": lambda path: path.symlink_to("/dev/null"),
    "a link that goes round": lambda path: path.symlink_to(path.name),
}


@needs_root
@pytest.mark.parametrize("what", sorted(_IN_THE_WAY))
@pytest.mark.parametrize("level", range(3))
def test_what_is_no_directory_is_told_before_the_hook_is_installed(
    state: Path, level: int, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = [state / "profiles", state, state.parent][level]
    if level == 0:
        state.mkdir()
    elif level == 2:
        path.rmdir()
    _IN_THE_WAY[what](path)
    for _ in range(2):
        with pytest.raises(
            KvmarmError, match=rf"^{path} is .*no directory \(hint: .*: (mv {path} {path}.old)\)$"
        ):
            _install()
        assert capsys.readouterr().out == ""
    subprocess.run(["mv", path, f"{path}.old"], check=True)
    _install()
    assert (state / "profiles").is_dir(), "the hint works"


@needs_root
@pytest.mark.parametrize("whose", ["hers", 0o777, 0o1777, 0o775])
@pytest.mark.parametrize("level", range(2))
def test_directories_of_others_are_told_each_time(
    state: Path, level: int, whose: str | int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = [state, state.parent][level]
    state.mkdir(exist_ok=True)
    if isinstance(whose, int):
        path.chmod(whose)
    else:
        give(path)
    if (level, whose) == (1, 0o1777):
        _install()
        return
    hint = f"chown root {path} && chmod go-w {path}"
    for _ in range(2):
        with pytest.raises(
            KvmarmError, match=rf"^others than root can change {path}, .*\(hint: {hint}\)$"
        ):
            _install()
        assert capsys.readouterr().out == ""
        assert not (state / "profiles").exists()
    subprocess.run(hint, shell=True, check=True)
    _install()


@needs_root
def test_what_was_done_is_said_before_a_failure(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.mkdir

    def refuse(name: str, *arguments: int, **options: int) -> None:
        if name == "profiles":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        real(name, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(
        KvmarmError, match=r"profiles: Read-only file system \(hint: see that root can write there"
    ):
        _install()
    assert capsys.readouterr().out == f"installed\nasked libvirt\nmade {state}\n"


# -- who renews records --------------------------------------------------------------------------

_ENABLE = "systemctl enable --now kvmarm-renew.socket\n"


@pytest.fixture
def installing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[], str]:
    """What `kvmarm hook install` says, where systemd runs but has no units of kvmarm's."""
    (place / "systemd").mkdir()
    monkeypatch.setattr(command, "SYSTEMD", str(place / "systemd"))
    monkeypatch.setattr(command, "UNITS", (str(place / "etc"), str(place / "lib")))
    monkeypatch.setattr(command, "_note_host_model", lambda: None)
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(place / "policy.yaml"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(hookfile, "install", lambda: ["installed"])
    monkeypatch.setattr(hookfile, "DIRECTORIES", ())

    def call() -> str:
        assert command.run(SimpleNamespace(action="install")) == 0  # type: ignore[arg-type]
        out = capsys.readouterr().out
        assert out.startswith("installed\n")
        return out[len("installed\n") :]

    return call


def test_how_to_have_records_renewed(installing: Callable[[], str], place: Path) -> None:
    (place / "lib").mkdir()
    (place / "lib/kvmarm-renew.socket").write_text("")
    assert installing() == f"nothing renews records here; have it done with: {_ENABLE}"


def test_units_that_systemd_would_not_find(
    installing: Callable[[], str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an installation into a virtualenv, and from the source tree."""
    sources, said = str(_PACKAGE.parent / "systemd"), installing()
    assert said.startswith(f"nothing renews records here; copy the units in {sources} to ")
    assert said.endswith(_ENABLE)
    assert said.count("\n") == 1
    monkeypatch.setattr(command, "_ELSEWHERE", (str(place),))
    assert " copy the units in systemd/ of kvmarm's sources to " in installing()


def test_nothing_is_said_where_records_are_renewed(
    installing: Callable[[], str], run_directory: Path, place: Path
) -> None:
    """Or where they are not to be: whatever the policy says, those of guests that run are."""
    run_directory.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.bind(str(run_directory / marks.SOCKET))
        assert installing() == ""
    assert installing().endswith(_ENABLE), "what listened is gone, and has left its socket"
    for choice in ("warn", "refuse"):
        (place / "policy.yaml").write_text(f"on-drift: {choice}\n")
        assert installing().endswith(_ENABLE)
    (place / "policy.yaml").unlink()
    (place / "etc").mkdir()
    (place / "etc/kvmarm-renew.socket").symlink_to("/dev/null")
    assert installing() == "", "it is masked"
    (place / "etc/kvmarm-renew.socket").unlink()


def test_how_to_have_records_renewed_without_systemd(
    installing: Callable[[], str], run_directory: Path, place: Path
) -> None:
    """In the words of `kvmarm doctor`."""
    (place / "systemd").rmdir()
    assert installing() == f"nothing renews records here; {START_RENEWAL}\n"
    assert START_RENEWAL.endswith(": kvmarm renew")
    run_directory.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.bind(str(run_directory / marks.SOCKET))
        assert installing() == ""
