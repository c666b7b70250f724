# SPDX-License-Identifier: LGPL-2.1-or-later
"""The man pages and the completion say what the command and the policy know: neither less nor
more.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kvmarm_plugin import cli
from kvmarm_plugin.fleet import pool
from kvmarm_plugin.hook import install as hookfile
from kvmarm_plugin.model import policy
from kvmarm_plugin.model.policy import Policy

from .terminal import type_into

_DOCS = Path(__file__).parent.parent.parent / "docs"
_PAGES = [_DOCS / f"man/kvmarm{page}" for page in (".1", "-policy.5", "-hook.8")]
_COMPLETION = _DOCS / "completion/kvmarm"
_HELP = {"-h", "--help"}


def _commands() -> dict[str, argparse.ArgumentParser]:
    """The commands of the parser, by name."""
    actions = cli._parser()._actions
    (subparsers,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))
    return dict(subparsers.choices)


def _options(parser: argparse.ArgumentParser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings} - _HELP


_NAMES = sorted(_commands())


# -- kvmarm(1) -----------------------------------------------------------------------------------


def _sections(page: Path) -> dict[str, str]:
    """Title of each .Sh and .Ss → its text."""
    parts = re.split(r"^\.S[hs] (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def _documented(text: str) -> set[str]:
    """The options that a section lists, from its .It lines: mdoc writes -o as `Fl o` and --output
    as `Fl -output`.
    """
    items = [line for line in text.splitlines() if line.startswith(".It ")]
    return {f"-{name}" for line in items for name in re.findall(r"\bFl (\S+)", line)}


def test_there_are_commands() -> None:
    assert {"probe", "resolve", "define", "create", "show", "hook"} <= set(_NAMES)


@pytest.mark.parametrize("name", _NAMES)
def test_every_option_is_in_the_manual(name: str) -> None:
    sections = _sections(_PAGES[0])
    assert name in sections, f"man kvmarm has no section on {name}"
    of_several = (
        text
        for title, text in sections.items()
        if title.startswith("Options of ") and name in title[11:].split(", ")
    )
    documented = set().union(*map(_documented, (sections[name], *of_several)))
    assert documented == _options(_commands()[name])


@pytest.mark.parametrize("name", _NAMES)
def test_every_option_is_in_the_synopsis(name: str) -> None:
    synopsis = _sections(_PAGES[0])["SYNOPSIS"]
    (usage,) = re.findall(rf"^\.Cm {name}\n(.*?)(?=^\.Nm|\Z)", synopsis, re.DOTALL | re.MULTILINE)
    named = {f"-{option}" for option in re.findall(r"\bFl (\S+)", usage)}
    for action in _commands()[name]._actions:
        if action.option_strings and not _HELP & set(action.option_strings):
            assert named & set(action.option_strings), (
                f"{action.option_strings} is not in the synopsis"
            )
    assert named <= _options(_commands()[name])


def test_the_manual_has_no_command_that_is_not_there() -> None:
    described = re.findall(
        r"^\.Ss (?!Options of )(.*)$", _PAGES[0].read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(described) == _NAMES


def test_options_without_a_command_are_in_the_manual() -> None:
    assert _documented(_sections(_PAGES[0])["DESCRIPTION"]) == _options(cli._parser()) | _HELP


def test_the_manual_names_the_files_that_are_used() -> None:
    text = _PAGES[0].read_text(encoding="utf-8")
    for path in (
        policy.DEFAULT_PATH,
        pool.DEFAULT_PATH,
        str(hookfile.DIRECTORY / hookfile.NAME),
        "/dev/kvm",
        "/run/kvmarm",
    ):
        assert f".It Pa {path}\n" in text


def test_the_manual_names_every_status() -> None:
    from kvmarm_plugin import commands

    listed = re.findall(r"^\.It (\d+)$", _sections(_PAGES[0])["EXIT STATUS"], re.MULTILINE)
    used = [commands.DONE, commands.ERROR, commands.USAGE, commands.INCOMPATIBLE, 130]
    assert [int(number) for number in listed] == used


# -- kvmarm-policy(5) ----------------------------------------------------------------------------


def test_every_setting_is_in_the_manual() -> None:
    listed = re.findall(r"^\.It Cm (\S+) :", _PAGES[1].read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(policy._SETTINGS)


def _examples() -> list[str]:
    return re.findall(
        r"^\.Bd .*?\n(.*?)^\.Ed", _sections(_PAGES[1])["EXAMPLES"], re.DOTALL | re.MULTILINE
    )


def test_the_examples_are_policies() -> None:
    defaults, levelled = (policy.loads(text) for text in _examples())
    assert defaults == Policy()
    assert levelled == Policy(sve=False, pmu=False, cluster="smallest")


def test_the_written_out_defaults_are_complete() -> None:
    written = set(re.findall(r"^([\w-]+):", _examples()[0], re.MULTILINE))
    assert written == set(policy._SETTINGS) - {"sve-max-length"}  # whose default is no number


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_no_warnings(page: Path) -> None:
    mandoc = shutil.which("mandoc")
    if not mandoc:
        pytest.skip("mandoc is not installed")
    lint = subprocess.run(
        [mandoc, "-T", "lint", "-W", "warning", str(page)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (lint.stdout, lint.returncode) == ("", 0)


# -- completion ----------------------------------------------------------------------------------


def _complete(directory: Path, *words: str) -> set[str]:
    """What bash offers for the last of these words."""
    script = f"""
source {_COMPLETION}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_kvmarm
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    path = f"{directory / 'bin'}:{os.environ['PATH']}"
    run = subprocess.run(
        ["/bin/bash", "--norc", "-c", script, "bash", *words],
        cwd=directory,
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    return set(run.stdout.split("\n")) - {""}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with files, and a virsh that knows domains."""
    if not Path("/bin/bash").exists():
        pytest.skip("no bash")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/virsh").write_text(
        "#!/bin/sh\nprintf '%s\\n' guest1 guest2 'a guest' \"args:$*\"\n"
    )
    (tmp_path / "bin/virsh").chmod(0o755)
    (tmp_path / "guest.xml").write_text("")
    (tmp_path / "my host.json").write_text("")
    return tmp_path


def test_commands_are_completed(here: Path) -> None:
    assert _complete(here, "kvmarm", "") == {*_NAMES, *_options(cli._parser()), *_HELP}
    assert _complete(here, "kvmarm", "d") == {name for name in _NAMES if name.startswith("d")}


@pytest.mark.parametrize("name", _NAMES)
def test_options_are_completed(here: Path, name: str) -> None:
    assert {word for word in _complete(here, "kvmarm", name, "-") if word[0] == "-"} == _options(
        _commands()[name]
    ) | _HELP


@pytest.mark.parametrize("name", _NAMES)
def test_choices_are_completed(here: Path, name: str) -> None:
    for action in _commands()[name]._actions:
        if action.choices and not action.option_strings:
            assert set(action.choices) <= _complete(here, "kvmarm", name, "")


@pytest.mark.parametrize(
    "words", [("resolve", "gu"), ("define", "--validate", "gu"), ("create", "--host", "x", "gu")]
)
def test_files_are_completed(here: Path, words: tuple[str, ...]) -> None:
    assert _complete(here, "kvmarm", *words) == {"guest.xml"}


@pytest.mark.parametrize("option", ["--host", "--policy", "-o", "--output", "--qemu"])
def test_files_of_options_are_completed(here: Path, option: str) -> None:
    assert _complete(here, "kvmarm", "resolve", option, "my") == {"my host.json"}


@pytest.mark.parametrize("command", ["refresh", "allow"])
def test_only_domains_are_completed(here: Path, command: str) -> None:
    assert _complete(here, "kvmarm", command, "gu") == {"guest1", "guest2"}


def test_domains_are_completed(here: Path) -> None:
    assert _complete(here, "kvmarm", "show", "gu") == {"guest1", "guest2", "guest.xml"}
    assert _complete(here, "kvmarm", "show", "a") == {"a guest", "args:-q list --name --all"}
    assert _complete(here, "kvmarm", "show", "-c", "qemu:///session", "args") == {
        "args:-q -c qemu:///session list --name --all"
    }


def test_a_name_that_is_no_word_is_quoted(here: Path) -> None:
    """As bash itself does it, when somebody presses Tab."""
    keys = f'source {_COMPLETION}; kvmarm() {{ echo "<$2>" >out; }}\nkvmarm refresh a\\ g\t; exit\n'
    type_into(["/bin/bash", "--norc", "--noprofile", "-i"], keys, here, {})
    assert (here / "out").read_text() == "<a guest>\n"


def test_domains_are_not_offered_where_files_are_meant(here: Path) -> None:
    assert "guest1" not in _complete(here, "kvmarm", "define", "gu")


def test_without_virsh_there_are_files(here: Path) -> None:
    (here / "bin/virsh").write_text("#!/bin/sh\necho 'error: failed to connect' >&2\nexit 1\n")
    assert _complete(here, "kvmarm", "show", "gu") == {"guest.xml"}


# -- SECURITY.md ---------------------------------------------------------------------------------


def test_every_promise_of_security_has_its_test() -> None:
    """Its tables name tests as `file.py::test`, and further ones of the same file as `::test` or
    `test`.
    """
    tests = Path(__file__).parent
    promised = re.findall(
        r"`(?:(test_\w+\.py))?(?:::)?(test_\w+)?`",
        (_DOCS.parent / "SECURITY.md").read_text(encoding="utf-8"),
    )
    file, named = "", 0
    for name, test in promised:
        file = name or file
        if test:
            named += 1
            assert f"def {test}(" in (tests / file).read_text(encoding="utf-8"), (
                f"{file} has no {test}"
            )
    assert named > 40
