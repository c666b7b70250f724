# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/completion/_kvmarm: zsh's completion, which `make golden` writes from the parser, and what
zsh makes of it. What bash offers: test_docs.py.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import pytest

from kvmarm_plugin import cli

from .terminal import type_into
from .test_docs import _commands

_COMPLETION = Path(__file__).parents[2] / "docs/completion/_kvmarm"

# What an argument of this metavar is completed with: zsh's _arguments has these as "actions".
_ACTIONS = {
    "DOMAIN": "_kvmarm_domains",
    "DOMAIN-or-FILE": "_kvmarm_domains_or_files",
    "FILE": "_files",
    "HOST": " ",
    "NAME-or-UUID": "_kvmarm_domains",
    "PATH": "_files",
    "POOL": '_files -g "*.(yaml|yml)"',
    "PROFILE": '_files -g "*.json"',
    "RELEASE": " ",  # nothing
    "TYPE": " ",
    "URI": "_kvmarm_uris",
    "": " ",
}

_HEAD = """\
#compdef kvmarm
# SPDX-License-Identifier: LGPL-2.1-or-later
# Completion of kvmarm(1) for zsh: a file of this name in a directory of $fpath. `make golden`
# writes it from the parser in kvmarm_plugin/cli.py.

_kvmarm_domains() {
    local uri=${opt_args[-c]:-$opt_args[--connect]}
    local -a domains
    domains=(${(f)"$(virsh -q ${uri:+-c} ${uri:+$uri} list --name --all 2>/dev/null)"})
    compadd "$@" -a domains
}

_kvmarm_domains_or_files() {
    _alternative 'domains:domain:_kvmarm_domains' 'files:file:_files'
}

_kvmarm_uris() {
    compadd "$@" qemu:///system qemu:///session test:///default
}

_kvmarm() {
    local context state state_descr line
    local -A opt_args
"""
_TAIL = """\
    esac
}

_kvmarm "$@"
"""


def _quoted(text: str) -> str:
    return "'" + text.replace("'", r"'\''") + "'"


def _specifications(parser: argparse.ArgumentParser) -> list[str]:
    """A parser's arguments in the language of zsh's _arguments."""
    formatter = parser._get_formatter()
    found = []
    for action in parser._actions:
        what = formatter._expand_help(action) if action.help else action.dest
        what = what.replace("\\", "\\\\").replace("[", r"\[").replace("]", r"\]")
        what = what.replace(":", r"\:")
        takes = ""
        metavar = str(action.metavar or "")
        if action.nargs != 0:
            words = f"({' '.join(action.choices)})" if action.choices else _ACTIONS[metavar]
            takes = f":{metavar or action.dest}:{words}"
        if not action.option_strings:
            several = {"*": "*", "+": "*", "?": ":"}.get(str(action.nargs), "")
            found.append(_quoted(several + takes))
            continue
        excluded = set(action.option_strings)
        for group in parser._mutually_exclusive_groups:
            if action in group._group_actions:
                excluded |= {option for a in group._group_actions for option in a.option_strings}
        if isinstance(action, (argparse._HelpAction, argparse._VersionAction)):
            excluded |= {"-", ":", "*"}
        repeated = isinstance(action, argparse._AppendAction)
        before = "*" if repeated else f"({' '.join(sorted(excluded))})"
        for option in action.option_strings:
            joint = "" if not takes else "=" if option.startswith("--") else "+"
            found.append(_quoted(f"{before}{option}{joint}[{what}]{takes}"))
    return found


def _arguments(parser: argparse.ArgumentParser, indent: str, *more: str) -> str:
    words = [f"_arguments -S{' -C' if more else ''}", *_specifications(parser), *more]
    return indent + f" \\\n{indent}    ".join(words) + "\n"


def _zsh() -> str:
    commands = _commands()
    main = cli._parser()
    (subparsers,) = (a for a in main._actions if isinstance(a, argparse._SubParsersAction))
    summaries = {a.dest: str(a.help) for a in subparsers._choices_actions}
    main._actions.remove(subparsers)
    text = _HEAD
    text += _arguments(main, "    ", "': :->command'", "'*:: :->arguments'")
    text += "    case $state in\n    command)\n        local -a commands=(\n"
    for name, summary in summaries.items():
        text += f"            {_quoted(name + ':' + summary)}\n"
    text += "        )\n        _describe command commands\n        ;;\n    arguments)\n"
    text += "        case $words[1] in\n"
    for name, parser in commands.items():
        text += f"        {name})\n{_arguments(parser, '            ')}            ;;\n"
    return text + "        esac\n        ;;\n" + _TAIL


def test_what_zsh_knows_is_what_the_parser_knows(
    regenerate_output: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    if regenerate_output:
        _COMPLETION.write_text(_zsh(), encoding="utf-8")
    assert _COMPLETION.read_text(encoding="utf-8") == _zsh(), "make golden writes it anew"


# -- zsh itself ----------------------------------------------------------------------------------

# compadd is what offers words: here it writes them down.
_CAPTURE = """\
PROMPT= fpath=({completions} $fpath)
autoload -U compinit && compinit -u -D
compadd() {{
    case " $* " in
    *" -O "* | *" -A "* | *" -D "*) builtin compadd "$@"; return ;;
    esac
    local -a words
    builtin compadd -A words "$@"
    print -rl -- $words >>{words}
    builtin compadd "$@"
}}
zstyle ':completion:*' insert-tab false
bindkey '^I' complete-word
ended() {{ exit; }}
comppostfuncs=(ended)
"""


def _complete(directory: Path, line: str) -> set[str]:
    """What zsh offers for the last word of a line that somebody types."""
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("no zsh")
    words = directory / "words"
    words.write_text("")
    (directory / ".zshrc").write_text(_CAPTURE.format(completions=_COMPLETION.parent, words=words))
    type_into([zsh, "-d", "-i"], f"{line}\t", directory, {"ZDOTDIR": str(directory)})
    return set(words.read_text().replace("\\", "").splitlines()) - {""}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with files, and a virsh that knows domains."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/virsh").write_text(
        "#!/bin/sh\nprintf '%s\\n' guest1 guest2 'a guest' \"args:$*\"\n"
    )
    (tmp_path / "bin/virsh").chmod(0o755)
    (tmp_path / "guest.xml").write_text("")
    (tmp_path / "my-host.json").write_text("")
    (tmp_path / "my-pool.yaml").write_text("")
    return tmp_path


def test_zsh_offers_commands(here: Path) -> None:
    assert set(_commands()) <= _complete(here, "kvmarm ")


def test_zsh_offers_options(here: Path) -> None:
    assert {"--host", "--json", "--connect", "-c"} <= _complete(here, "kvmarm check -")


def test_zsh_offers_domains(here: Path) -> None:
    assert _complete(here, "kvmarm refresh gu") == {"guest1", "guest2"}
    assert "a guest" in _complete(here, "kvmarm refresh ")
    assert "args:-q -c qemu:///session list --name --all" in _complete(
        here, "kvmarm refresh -c qemu:///session args"
    )
    assert {"guest1", "guest.xml"} <= _complete(here, "kvmarm show gu")


def test_zsh_offers_files(here: Path) -> None:
    assert _complete(here, "kvmarm resolve gu") == {"guest.xml"}
    assert _complete(here, "kvmarm check --host my") == {"my-host.json"}
    assert _complete(here, "kvmarm resolve --pool my") == {"my-pool.yaml"}
    assert _complete(here, "kvmarm hook ") == {"install", "uninstall"}
