# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files are written where others can write, too, and those who wait there get nothing: no mode, no
link, no file of another's.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.host import files
from kvmarm_plugin.host.paths import Step, reach

from .users import ALICE, as_alice, give, needs_root, start_as_alice

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROJECT = Path(__file__).parents[2]


@pytest.fixture
def here() -> Iterator[Path]:
    """A directory of this user's into which others can look. (pytest's own lets nobody in.)"""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["sticky", "open", "group", "hers"])
def shared(here: Path, request: pytest.FixtureRequest) -> Path:
    """A directory in which Alice can write."""
    path = here / "shared"
    path.mkdir()
    path.chmod({"sticky": 0o1777, "open": 0o777, "group": 0o775, "hers": 0o755}[request.param])
    if request.param == "hers":
        give(path)
    return path


@pytest.fixture
def victim(here: Path) -> Path:
    """A file of root's that nobody else may write."""
    path = here / "victim"
    path.write_text("precious")
    path.chmod(0o600)
    return path


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def _is_untouched(victim: Path) -> bool:
    status = victim.lstat()
    return (victim.read_text(), stat.S_IMODE(status.st_mode), status.st_uid) == (
        "precious",
        0o600,
        os.geteuid(),
    )


def _names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


# -- modes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [0o4777, 0o2755, 0o1777, 0o7755, 0o6711, 0o600, 0o444], ids=oct)
def test_only_permissions_of_an_old_file_are_kept(here: Path, old: int) -> None:
    path = here / "out"
    path.write_text("old")
    path.chmod(old)
    files.write(str(path), b"new")
    assert (path.read_text(), _mode(path)) == ("new", old & 0o777)


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1755, 0o755], ids=oct)
def test_no_mode_that_is_asked_for_has_more(here: Path, mode: int) -> None:
    files.write(str(here / "out"), b"new", mode)
    assert _mode(here / "out") == 0o755


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o027], ids=oct)
def test_a_new_file_is_the_umasks_and_one_with_a_mode_is_not(here: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        files.write(str(here / "out"), b"new")
        files.write(str(here / "program"), b"new", 0o755)
    finally:
        os.umask(before)
    assert (_mode(here / "out"), _mode(here / "program")) == (0o666 & ~mask, 0o755)


@needs_root
@pytest.mark.parametrize("old", [0o4777, 0o666], ids=oct)
def test_the_mode_of_anothers_file_is_not_taken_over(here: Path, old: int) -> None:
    """Where only root can write, it was root that put her file there; but she chose its mode."""
    path = here / "out"
    path.write_text("hers")
    give(path)
    path.chmod(old)
    before = os.umask(0o022)
    try:
        files.write(str(path), b"new")
    finally:
        os.umask(before)
    assert (path.read_text(), _mode(path), path.stat().st_uid) == ("new", 0o644, 0)


def test_a_file_with_several_names_gives_nobody_else_leave_to_write(here: Path) -> None:
    """It may be one of ours from elsewhere."""
    (here / "elsewhere").write_text("old")
    (here / "elsewhere").chmod(0o666)
    os.link(here / "elsewhere", here / "out")
    files.write(str(here / "out"), b"new")
    assert ((here / "elsewhere").read_text(), _mode(here / "elsewhere")) == ("old", 0o666)
    assert ((here / "out").read_text(), _mode(here / "out")) == ("new", 0o644)


@needs_root
def test_the_mode_is_for_the_group_that_it_was_for(here: Path) -> None:
    """In a directory that gives its own group to what is made there, that group does not get to
    read what it could not.
    """
    os.chown(here, 0, ALICE)
    here.chmod(0o2755)
    path = here / "out"
    path.write_text("old")
    os.chown(path, 0, 4)
    path.chmod(0o640)
    files.write(str(path), b"new")
    assert (path.read_text(), _mode(path), path.stat().st_gid) == ("new", 0o640, 4)
    os.chown(path, 0, 0)
    files.write(str(path), b"newer")
    assert (path.stat().st_gid, _mode(path)) == (0, 0o640)


@needs_root
def test_a_group_that_cannot_be_kept_gets_what_everybody_gets(here: Path) -> None:
    path = here / "out"
    path.write_text("old")
    give(here)
    for mode, left in ((0o660, 0o600), (0o664, 0o644), (0o644, 0o644), (0o640, 0o600)):
        os.chown(path, ALICE, 4)
        path.chmod(mode)
        as_alice(lambda: files.write(str(path), b"new"))
        assert (path.stat().st_gid, _mode(path)) == (ALICE, left)


def test_the_mask_of_an_access_control_list_is_no_mode(here: Path) -> None:
    path = here / "out"
    path.write_text("old")
    path.chmod(0o660)
    # user::rw-, user:65534:rw-, group::---, mask::rw-, other::--- (linux/posix_acl_xattr.h)
    entries = (
        (1, 6, 0xFFFFFFFF),
        (2, 6, ALICE),
        (4, 0, 0xFFFFFFFF),
        (0x10, 6, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    )
    try:
        os.setxattr(
            path,
            "system.posix_acl_access",
            struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries),
        )
    except OSError:
        pytest.skip("no access control lists here")
    files.write(str(path), b"new")
    assert (path.read_text(), _mode(path)) == ("new", 0o600)


def test_nothing_changes_a_mode_by_name() -> None:
    """Between two calls, a name can become another file's."""
    for path in (_PROJECT / "kvmarm_plugin").rglob("*.py"):
        calls = [
            node.func
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
        ]
        names = {call.attr for call in calls if isinstance(call, ast.Attribute)}
        assert not names & {"chmod", "lchmod", "chown", "lchown"}, path


def test_file_and_directory_are_on_the_disk(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        done.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def note_replace(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        done.append("rename")
        replace(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    files.write(str(here / "out"), b"new")
    assert done == ["file", "rename", "directory"]


def test_a_name_as_long_as_a_name_can_be(here: Path) -> None:
    name = "x" * 255
    files.write(str(here / name), b"new")
    assert _names(here) == [name]


def test_a_failure_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    (here / "out").write_text("old")
    for function in ("fsync", "fchmod", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(KvmarmError, match=r"cannot write .*: No space left on device"):
                files.write(str(here / "out"), b"new")
        assert (_names(here), (here / "out").read_text()) == (["out"], "old")


# -- what others have put there ------------------------------------------------------------------


def _refused(path: Path) -> None:
    with pytest.raises(KvmarmError, match=r"another user's, and others can write there \(hint: "):
        files.write(str(path), b"new")


@needs_root
def test_links_of_others_are_refused(shared: Path, victim: Path) -> None:
    targets = {
        "absolute": str(victim),
        "relative": "../victim",
        "new": "../new",
        "chain": "relative",
        "device": "/dev/null",
    }
    for name, target in targets.items():
        (shared / name).symlink_to(target)
        give(shared / name)
        _refused(shared / name)
    assert _is_untouched(victim)
    assert _names(shared.parent) == ["shared", "victim"]
    assert _names(shared) == sorted(targets)


@needs_root
@pytest.mark.parametrize("below", ["", "/below"])
def test_links_of_others_on_the_way_are_refused(shared: Path, victim: Path, below: str) -> None:
    (shared / "way").symlink_to("..")
    give(shared / "way")
    _refused(Path(f"{shared}/way{below}/../victim"))
    _refused(Path(f"{shared}/way/victim"))
    assert _is_untouched(victim)


@needs_root
def test_a_link_to_a_link_of_others_is_refused(shared: Path, here: Path, victim: Path) -> None:
    (shared / "hers").symlink_to(victim)
    give(shared / "hers")
    (here / "ours").symlink_to("shared/hers")
    _refused(here / "ours")
    assert _is_untouched(victim)


@needs_root
def test_files_of_others_are_refused(shared: Path, here: Path) -> None:
    (shared / "file").write_text("hers")
    os.mkfifo(shared / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(shared / "socket"))
    os.mknod(shared / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (here / "elsewhere").write_text("hers")
    os.link(here / "elsewhere", shared / "hard link")
    for path in shared.iterdir():
        give(path)
        if not path.is_socket():
            path.chmod(0o4777)
        _refused(path)
    assert [_mode(shared / name) for name in ("file", "hard link")] == [0o4777] * 2
    assert [(shared / name).read_text() for name in ("file", "hard link")] == ["hers"] * 2


@needs_root
def test_a_hard_link_to_a_link_of_roots_is_refused(shared: Path, here: Path, victim: Path) -> None:
    """Where the kernel lets users link to everything (fs.protected_hardlinks=0), this has root for
    its owner.
    """
    (here / "link").symlink_to(victim)
    os.link(here / "link", shared / "out", follow_symlinks=False)
    _refused(shared / "out")
    assert _is_untouched(victim)


@needs_root
def test_a_link_of_roots_to_a_file_of_others_is_judged_where_the_file_is(
    shared: Path, here: Path
) -> None:
    (shared / "file").write_text("hers")
    give(shared / "file")
    (here / "link").symlink_to(shared / "file")
    _refused(here / "link")
    assert (shared / "file").read_text() == "hers"


@needs_root
def test_what_is_roots_is_written_in_a_shared_directory(shared: Path) -> None:
    (shared / "old").write_text("old")
    (shared / "old").chmod(0o640)
    (shared / "link").symlink_to("old")
    for name in ("new", "old", "link"):
        files.write(str(shared / name), name.encode())
    assert ((shared / "new").read_text(), (shared / "old").read_text(), _mode(shared / "old")) == (
        "new",
        "link",
        0o640,
    )
    assert (shared / "link").is_symlink()


@needs_root
def test_a_user_writes_what_is_the_users(here: Path) -> None:
    home, temporary = here / "home", here / "tmp"
    home.mkdir()
    give(home)
    temporary.mkdir()
    temporary.chmod(0o1777)

    def work() -> None:
        os.umask(0o002)
        (home / "old").write_text("old")
        (home / "link").symlink_to("old")
        (temporary / "link").symlink_to(home / "old")
        (temporary / "old").write_text("old")
        (home / "open").mkdir()
        (home / "open").chmod(0o775)
        (home / "open/old").write_text("old")
        for path in (
            home / "new",
            home / "link",
            temporary / "new",
            temporary / "link",
            temporary / "old",
            home / "open/old",
        ):
            files.write(str(path), b"new")
            assert path.read_text() == "new"
        assert (home / "link").is_symlink()

    as_alice(work)
    assert not list(here.rglob(".*"))


@needs_root
def test_a_user_does_not_follow_the_links_of_another(here: Path) -> None:
    home, temporary = here / "home", here / "tmp"
    home.mkdir()
    (home / "file").write_text("hers")
    give(home / "file")
    give(home)
    temporary.mkdir()
    temporary.chmod(0o1777)
    (temporary / "link").symlink_to(home / "file")
    os.chown(temporary / "link", 12345, 12345, follow_symlinks=False)
    as_alice(lambda: _refused(temporary / "link"))
    assert (home / "file").read_text() == "hers"


@needs_root
def test_a_race_for_the_name_is_lost(here: Path, victim: Path) -> None:
    """Alice puts links to root's file and files of mode 4777 in the place of the output, as fast as
    she can, while root writes.
    """
    shared = here / "shared"
    shared.mkdir()
    shared.chmod(0o777)

    def attack() -> None:
        os.umask(0)
        new, out = str(shared / "new"), str(shared / "out")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                os.symlink(victim, new)
                os.rename(new, out)
                os.close(os.open(new, os.O_CREAT | os.O_WRONLY, 0o777))
                os.chmod(new, 0o4777)
                os.rename(new, out)
                os.unlink(out)
            except OSError:
                pass

    attacker = start_as_alice(attack)
    outcomes: set[str] = set()
    try:
        start = time.monotonic()
        while time.monotonic() < start + (2 if {"written", "refused"} <= outcomes else 30):
            try:
                files.write(str(shared / "out"), b"new")
                outcomes.add("written")
            except KvmarmError as error:
                outcomes.add("refused" if "another user's" in error.message else error.message)
            assert _is_untouched(victim)
            for path in shared.iterdir():
                try:
                    status = path.lstat()
                except OSError:
                    continue
                assert status.st_uid != 0 or stat.S_IMODE(status.st_mode) in (0o600, 0o644), oct(
                    status.st_mode
                )
    finally:
        os.kill(attacker, signal.SIGKILL)
        os.waitpid(attacker, 0)
    assert {"written", "refused"} <= outcomes


# -- the way -------------------------------------------------------------------------------------


def test_the_way_back_is_the_way_that_was_come(here: Path) -> None:
    """A directory that is moved meanwhile takes nobody along: .. is where we came from."""
    (here / "a/b/c").mkdir(parents=True)
    (here / "far/away").mkdir(parents=True)

    def judge(step: Step) -> None:
        if step.name == "c":
            (here / "a/b").rename(here / "far/away/b")

    with reach(f"{here}/a/b/c/../../out", judge) as end:
        assert os.path.samestat(os.fstat(end.directory), (here / "a").stat())


@pytest.mark.parametrize(
    "path",
    [
        "a/file",
        "./a/./file",
        "a//file",
        "a/b/../file",
        "link/file",
        "a/up/a/file",
        "link/up/link/file",
        "abs/file",
        "l2",
    ],
)
def test_a_way_ends_where_the_kernels_does(
    here: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "a/b").mkdir(parents=True)
    (here / "a/file").write_text("old")
    (here / "link").symlink_to("a")
    (here / "abs").symlink_to(here / "link/")
    (here / "a/up").symlink_to("../")
    (here / "l1").symlink_to("a/up/abs/file")
    (here / "l2").symlink_to("./l1")
    monkeypatch.chdir(here)
    for each in (path, str(here / path), f"../{here.name}/{path}"):
        with reach(each, lambda _: None) as end:
            assert end.entry is not None
            assert os.path.samestat(os.fstat(end.entry), os.stat(each))
        files.write(each, each.encode())
        assert (here / "a/file").read_text() == each
    assert _names(here) == ["a", "abs", "l1", "l2", "link"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "it is a directory"),
        ("a", "it is a directory"),
        ("a/", "it is a directory"),
        ("a/.", "it is a directory"),
        ("a/b/..", "it is a directory"),
        ("link", "it is a directory"),
        ("link/", "it is a directory"),
        ("file/", "Not a directory"),
        ("file/x", "Not a directory"),
        ("file/..", "Not a directory"),
        ("missing/", "No such file or directory"),
        ("missing/x", "No such file or directory"),
        ("missing/../x", "No such file or directory"),
        ("loop", "Too many levels of symbolic links"),
        ("socket", "No such device or address"),
    ],
)
def test_what_cannot_be_written_is_said(here: Path, path: str, says: str) -> None:
    (here / "a/b").mkdir(parents=True)
    (here / "file").write_text("old")
    (here / "link").symlink_to("a")
    (here / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(here / "socket"))
    before = sorted(here.rglob("*"))
    with pytest.raises(
        KvmarmError, match=rf"^cannot write {re.escape(f'{here}/{path}')}: {says} \(hint: "
    ):
        files.write(f"{here}/{path}", b"new")
    assert sorted(here.rglob("*")) == before
    assert (here / "file").read_text() == "old"


def test_a_link_into_nothing_makes_the_file(here: Path) -> None:
    (here / "link").symlink_to("new")
    files.write(str(here / "link"), b"new")
    assert (here / "link").is_symlink()
    assert (here / "new").read_text() == "new"


@needs_root
def test_a_link_of_roots_at_its_configuration_keeps_working(here: Path) -> None:
    """/etc/kvmarm/pool.yaml may be a link, for instance into a directory under version control."""
    (here / "etc").mkdir()
    (here / "srv").mkdir()
    (here / "srv/pool.yaml").write_text("old")
    (here / "etc/pool.yaml").symlink_to(here / "srv/pool.yaml")
    files.write(str(here / "etc/pool.yaml"), b"new")
    assert ((here / "srv/pool.yaml").read_text(), (here / "etc/pool.yaml").is_symlink()) == (
        "new",
        True,
    )


# -- what is no file -----------------------------------------------------------------------------

_WRITE = (
    "import sys; from kvmarm_plugin.host import files; [files.write(name, b'new\\n') for name in"
    " sys.argv[1:]]"
)


def _shell(line: str, here: Path) -> bytes:
    """Run a line of bash in which $write writes "new" to the files that follow."""
    command = ["bash", "-ec", f'write() {{ "{sys.executable}" -c "$program" "$@"; }}; {line}']
    environment = {**os.environ, "PYTHONPATH": str(_PROJECT), "program": _WRITE}
    return subprocess.run(
        command, stdout=subprocess.PIPE, cwd=here, env=environment, check=True, timeout=60
    ).stdout


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_by_its_name(here: Path, name: str) -> None:
    assert _shell(f"write {name} | cat", here) == b"new\n"
    assert _shell(f"write {name} >out; cat out", here) == b"new\n"
    assert _shell(f"echo old >log; write {name} {name} >>log; cat log", here) == b"old\nnew\nnew\n"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        subprocess.run(
            [sys.executable, "-c", _WRITE, name],
            stdout=ours.fileno(),
            cwd=_PROJECT,
            check=True,
            timeout=60,
        )
        assert theirs.recv(100) == b"new\n"


def test_other_descriptors_and_process_substitution(here: Path) -> None:
    assert _shell("write /dev/fd/3 3>out; cat out", here) == b"new\n"
    assert _shell("write >(cat >out) && sleep 0.5; cat out", here) == b"new\n"
    assert _shell("exec 3>&1; write /dev/stderr 2>&3", here) == b"new\n"


def test_a_descriptor_that_is_not_open(here: Path) -> None:
    for number in (3, 4, 5, 6, 7, 8, 9, 100):
        with pytest.raises(subprocess.CalledProcessError):
            _shell(f"write /dev/fd/{number} 2>/dev/null", here)


def test_devices_stay_devices(here: Path) -> None:
    for name in ("/dev/null", "/dev/zero"):
        files.write(name, b"new")
        assert stat.S_ISCHR(os.stat(name).st_mode)
    with pytest.raises(KvmarmError, match="cannot write /dev/full: No space left on device"):
        files.write("/dev/full", b"new")
    (here / "link").symlink_to("/dev/null")
    files.write(str(here / "link"), b"new")


@needs_root
def test_standard_output_of_another_user(here: Path) -> None:
    """After su, it is a terminal or file that the new user could not open."""
    with open(here / "out", "wb") as out:

        def work() -> None:
            os.dup2(out.fileno(), 1)
            files.write("/dev/stdout", b"new")

        as_alice(work)
    assert (here / "out").read_text() == "new"
