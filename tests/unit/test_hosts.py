# SPDX-License-Identifier: LGPL-2.1-or-later
"""How hosts are named: a file, a name, or ssh://HOST, which is asked for its profile."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from kvmarm_plugin import cli
from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.commands import inputs
from kvmarm_plugin.host import known, ssh
from kvmarm_plugin.kvm.device import KvmUnavailable, System, SystemCalls
from tests.corpus import GUEST, HOSTS, resolver

if TYPE_CHECKING:
    from collections.abc import Callable

_ALPHA = "trixie-neoverse-n1"
_OPTIONS = ("-nTxa", "-oBatchMode=yes", "-oConnectTimeout=20", "-oClearAllForwardings=yes")


class _Run(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., _Run]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(known, "HOSTS", tmp_path / "profiles")
    Path("guest.xml").write_bytes(resolver(_ALPHA).resolve(GUEST))

    def call(*arguments: str) -> _Run:
        status = cli.main(list(arguments))
        return _Run(status, *capsys.readouterr())

    return call


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """An ssh that does what a script says; its arguments are in the file that this returns."""

    def play(script: str) -> Path:
        directory = tmp_path / "bin"
        directory.mkdir(exist_ok=True)
        path = directory / "ssh"
        told = tmp_path / "arguments"
        path.write_text(
            f"#!/bin/sh\nfor a; do printf '%s\\n' \"$a\"; done >{told}\n{script}\n",
            encoding="utf-8",
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        return told

    return play


# -- names ---------------------------------------------------------------------------------------


def test_a_name(run: Callable[..., _Run], tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/alpha.json").write_bytes(HOSTS[_ALPHA].read_bytes())
    Path("alpha").mkdir()  # a directory is no profile
    for arguments in (
        ("check", "guest.xml", "--host", "alpha"),
        ("resolve", "guest.xml", "--host", "alpha"),
    ):
        status, out, err = run(*arguments)
        assert (status, err) == (0, "")
        assert out
    # A file comes first, and a name of ours before one of the library.
    Path("alpha").rmdir()
    Path("alpha").write_text("{}")
    assert run("check", "guest.xml", "--host", "alpha").status == 1
    name = known.names()[0]
    assert known.read(name).name != _ALPHA
    (tmp_path / f"profiles/{name}.json").write_bytes(HOSTS[_ALPHA].read_bytes())
    assert inputs.read_profile(name).name == _ALPHA


def test_a_profile_that_is_kept_and_broken_is_named(
    run: Callable[..., _Run], tmp_path: Path
) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/alpha.json").write_text("{")
    status, _, err = run("check", "guest.xml", "--host", "alpha")
    assert status == 1
    assert f"{tmp_path}/profiles/alpha.json" in err


def test_a_name_that_nobody_knows(run: Callable[..., _Run], tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/alpha.json").write_bytes(HOSTS[_ALPHA].read_bytes())
    for name in ("nobody", "\x1b[31m", "x" * 5000):
        status, out, err = run("check", "guest.xml", "--host", name)
        assert (status, out) == (1, "")
        assert err.startswith("kvmarm: cannot read ")
        assert "known are alpha, " in err
        assert "\x1b" not in err


# -- ssh -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "target", "options"),
    [
        ("ssh://beta", "beta", ()),
        ("ssh://root@beta.example.org/", "root@beta.example.org", ()),
        ("ssh://root@beta:2222", "root@beta", ("-p", "2222")),
        ("ssh://[fe80::1]", "fe80::1", ()),
        ("ssh://_a.b-c@10.0.0.1", "_a.b-c@10.0.0.1", ()),
    ],
)
def test_a_host_is_asked(
    run: Callable[..., _Run],
    played: Callable[[str], Path],
    url: str,
    target: str,
    options: tuple[str, ...],
) -> None:
    told = played(f"cat {HOSTS[_ALPHA]}")
    status, out, err = run("check", "guest.xml", "--host", url)
    assert (status, err) == (0, "")
    assert out.startswith(f"guest on {_ALPHA}: yes, as recorded\n")
    assert told.read_text().split() == [*_OPTIONS, *options, "--", target, "kvmarm", "probe"]
    assert run("resolve", "guest.xml", "--host", url).status == 0
    status, out, _ = run("compare", "--json", url, str(HOSTS["sid-neoverse-n1"]))
    assert json.loads(out)
    assert status in (0, 3)


@pytest.mark.parametrize(
    "url",
    [
        "ssh://",
        "ssh:///",
        "ssh://-oProxyCommand=reboot",
        "ssh://-l@beta",
        "ssh://root@-beta",
        "ssh://root@",
        "ssh://@beta",
        "ssh://be ta",
        "ssh://beta;reboot",
        "ssh://$(reboot)",
        "ssh://`reboot`",
        "ssh://beta\nreboot",
        "ssh://beta\n",
        "ssh://beta/system",
        "ssh://a@b@c",
        "ssh://root:secret@beta",
        "ssh://beta:",
        "ssh://beta:65536",
        "ssh://beta:\u0661",
        "ssh://b\u00e9ta",
        "ssh://[-a]",
        "ssh://" + "x" * 5000,
    ],
)
def test_what_names_no_host(
    run: Callable[..., _Run], played: Callable[[str], Path], url: str
) -> None:
    told = played("echo")
    status, out, err = run("check", "guest.xml", f"--host={url}")
    assert (status, out) == (1, "")
    assert err.startswith("kvmarm: ssh://")
    assert err.endswith(" names no host (hint: give one such as ssh://root@beta)\n")
    assert err.count("\n") == 1
    assert not told.exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo 'sh: 1: kvmarm: not found' >&2; exit 127",
            "ssh://me@beta: kvmarm is not installed there: sh: 1: kvmarm: not found (hint: install"
            " it there, or give the file of the host's profile)",
        ),
        (
            "printf 'a banner\\nHost key verification failed.\\r\\n' >&2; exit 255",
            "ssh://me@beta cannot be reached: Host key verification failed. (hint: see whether the"
            " host's key is to be trusted: ssh me@beta)",
        ),
        (
            "echo 'me@beta: Permission denied (publickey).' >&2; exit 255",
            "ssh://me@beta cannot be reached: me@beta: Permission denied (publickey). (hint: have"
            " it let you in without a question: ssh-copy-id me@beta, or ssh-add)",
        ),
        (
            "exit 255",
            "ssh://me@beta cannot be reached: exit status 255 (hint: try it by hand: ssh me@beta"
            " kvmarm probe)",
        ),
        (
            "echo '{}'; echo 'kvmarm: not measured: KVM: cannot open /dev/kvm: Permission denied'"
            " >&2; exit 1",
            "ssh://me@beta cannot be measured: kvmarm: not measured: KVM: cannot open /dev/kvm:"
            " Permission denied (hint: ask as root: --host ssh://root@beta)",
        ),
        (
            "exit 1",
            "ssh://me@beta cannot be measured: exit status 1 (hint: try it by hand: ssh me@beta"
            " kvmarm probe)",
        ),
        (
            "kill -9 $$",
            "ssh://me@beta cannot be measured: exit status -9 (hint: try it by hand: ssh me@beta"
            " kvmarm probe)",
        ),
        (
            "printf '\\377'",
            "ssh://me@beta: what it says is not UTF-8 (hint: try it by hand: ssh me@beta kvmarm"
            " probe)",
        ),
    ],
)
def test_what_can_go_wrong_is_said(
    run: Callable[..., _Run], played: Callable[[str], Path], script: str, message: str
) -> None:
    played(script)
    assert run("check", "guest.xml", "--host", "ssh://me@beta") == (1, "", f"kvmarm: {message}\n")


def test_whoever_may_not_use_kvm_there_is_told_to_ask_as_root(
    run: Callable[..., _Run], played: Callable[[str], Path]
) -> None:
    class Denied(SystemCalls):
        def open(self, path: str) -> int:
            raise PermissionError(path)

    with pytest.raises(KvmUnavailable) as refusal:
        System(Denied())
    played(f"echo '{{}}'; echo 'kvmarm: not measured: KVM: {refusal.value}' >&2; exit 1")
    err = run("check", "guest.xml", "--host", "ssh://me@beta").err
    assert err.endswith("(hint: ask as root: --host ssh://root@beta)\n")


@pytest.mark.parametrize("script", ["echo hello", "", "echo '{}'", "printf '\\033[31m\\n'"])
def test_what_is_no_profile(
    run: Callable[..., _Run], played: Callable[[str], Path], script: str
) -> None:
    played(script)
    status, out, err = run("check", "guest.xml", "--host", "ssh://beta")
    assert (status, out) == (1, "")
    assert err.startswith("kvmarm: ssh://beta")
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_foreign_text_is_escaped(run: Callable[..., _Run], played: Callable[[str], Path]) -> None:
    played("head -c 300000 /dev/zero | tr '\\0' '\\033' >&2; echo >&2; exit 255")
    err = run("check", "guest.xml", "--host", "ssh://beta").err
    assert "\x1b" not in err
    assert len(err) < 1000


def test_without_ssh(
    run: Callable[..., _Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run("check", "guest.xml", "--host", "ssh://beta").err == (
        "kvmarm: cannot run ssh: No such file or directory (hint: install OpenSSH's client, or give"
        " the file of a profile)\n"
    )


@pytest.mark.parametrize("script", ["sleep 60 & wait", "yes >&2", "exec >&- 2>&-; sleep 60"])
def test_the_time_is_limited(
    played: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    played(script)
    monkeypatch.setattr(ssh, "TIME_LIMIT", 1)
    begin = time.monotonic()
    with pytest.raises(KvmarmError, match="has not answered within 1 seconds"):
        ssh.profile_text("ssh://beta")
    assert time.monotonic() - begin < 10


def test_the_output_is_limited(
    played: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    played("yes")
    monkeypatch.setattr(ssh, "SIZE_LIMIT", 1 << 20)
    with pytest.raises(KvmarmError, match="says more than 1 MiB"):
        ssh.profile_text("ssh://beta")


def test_a_connection_that_stays_holds_nobody(played: Callable[[str], Path]) -> None:
    """ControlPersist: ssh's child keeps standard error open."""
    played("sleep 30 & echo '{}'")
    begin = time.monotonic()
    assert ssh.profile_text("ssh://beta") == "{}\n"
    assert time.monotonic() - begin < 10


def test_it_is_said_where_somebody_watches(
    run: Callable[..., _Run], played: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    played(f"cat {HOSTS[_ALPHA]}")
    monkeypatch.setattr(inputs, "is_watched", lambda: True)
    assert run("check", "guest.xml", "--host", "ssh://beta").err == (
        "kvmarm: asking ssh://beta for its profile\n"
    )
