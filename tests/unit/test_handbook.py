# SPDX-License-Identifier: LGPL-2.1-or-later
"""The handbook (docs/): what it tells people to type is typed, on a played host; every command line
of it is one; what it names and quotes exists.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import re
import shlex
import shutil
import subprocess
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from kvmarm_plugin import cli
from kvmarm_plugin.domain.levelling import LIBRARY
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.resolve.resolver import Resolver

from ..corpus import GUEST, host
from ..handbook import DOCS, ROOT, blocks, steps
from . import test_hook_faults as hook_faults
from .playedhost import PlayedHost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kvmarm_plugin.model.profile import HostProfile

_PAGES = sorted(DOCS.rglob("*.md"))
_TEXTS = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "ansible/README.md", *_PAGES]
_MAN = sorted((DOCS / "man").iterdir())
_OLDER, _NEWER = "trixie-neoverse-n1", "sid-neoverse-n1"


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# -- the host of each page ------------------------------------------------------------------------


def _slower(profile: HostProfile) -> HostProfile:
    """The same host with a timer of 25 MHz."""
    (cluster,) = profile.clusters
    seen = {**cluster.seen, "CNTFRQ_EL0": 25_000_000}
    return profile.replace(clusters=(cluster.replace(seen=seen),))


def _others() -> tuple[HostProfile, ...]:
    """beta is as alpha is on most pages, gamma has another timer, delta a newer kernel and QEMU,
    older older ones.
    """
    return (
        host(_OLDER).replace(name="beta"),
        _slower(host(_OLDER)).replace(name="gamma"),
        host(_NEWER).replace(name="delta"),
        host("bookworm-neoverse-n1").replace(name="older"),
    )


def _xml(name: str, cpu: str = "<cpu mode='host-passthrough'/>", kind: str = "kvm") -> str:
    """A guest as libvirt stores it."""
    return (
        GUEST.decode()
        .replace("<name>guest", f"<name>{name}")
        .replace("machine='virt'", "machine='virt-10.0'")
        .replace("<cpu mode='host-model'/>", f"<features><gic version='3'/></features>{cpu}")
        .replace("'kvm'", f"'{kind}'")
    )


def _made_on(profile: str, name: str) -> str:
    """A guest that alpha has resolved, when it was of this kind."""
    guest = GUEST.replace(b"<name>guest", f"<name>{name}".encode())
    made = Resolver(host(profile).replace(name="alpha"), Policy())
    return made.resolve(guest.replace(b"'virt'", b"'virt-10.0'")).decode()


def _guests_of_others(played: PlayedHost) -> None:
    for name in ("web", "db"):
        played.define(_xml(name))
    played.start("web")


def _one_guest(played: PlayedHost) -> None:
    """As one-host.md leaves it."""
    played.define(GUEST.decode())


def _one_resolved(played: PlayedHost) -> None:
    """As two-hosts.md leaves it."""
    played.define(_made_on(_OLDER, "guest"))


def _guests_to_move(played: PlayedHost) -> None:
    for name in ("web", "mail"):
        played.define(_made_on(_OLDER, name))
    played.define(_xml("batch", kind="qemu"))
    for name in ("web", "batch"):
        played.start(name)


def _upgraded(played: PlayedHost) -> None:
    played.define(_made_on(_NEWER, "guest"))
    played.define(_made_on(_OLDER, "visitor"))
    for name in ("guest", "visitor"):
        played.start(name)
    played.libvirt.domains[-1].state = "RUNNING_MIGRATED"
    assert played.run("kvmarm agent --once").status == 0


def _guests_that_do_not_start(played: PlayedHost) -> None:
    played.define(_xml("raw", "<cpu mode='host-model'/>"))
    played.define(_made_on("trixie-cortex-a72", "moved"))
    played.define(_xml("plain"))
    assert played.run("kvmarm adopt plain").status == 0


def _adopted(played: PlayedHost) -> None:
    played.define(_xml("web"))
    assert played.run("kvmarm adopt web").status == 0


# Page → the kind of host that alpha is there, and what has happened on it.
_ALPHAS = {"big-little.md": "hand-made-rk3588", "upgrade.md": _NEWER}
_BEFORE: dict[str, Callable[[PlayedHost], None]] = {
    "adopt.md": _guests_of_others,
    "big-little.md": _one_guest,
    "evacuate.md": _guests_to_move,
    "pool.md": _one_resolved,
    "two-hosts.md": _one_guest,
    "upgrade.md": _upgraded,
    "will-not-start.md": _guests_that_do_not_start,
    "remove.md": _adopted,
}
_RUN = [page for page in _PAGES if steps(page)]


@pytest.mark.parametrize("page", _RUN, ids=_name)
def test_what_a_page_says_is_so(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alpha = host(_ALPHAS.get(page.name, _OLDER)).replace(name="alpha")
    with contextlib.closing(PlayedHost(tmp_path, monkeypatch, alpha, _others())) as played:
        (played.home / "guest.xml").write_bytes(GUEST)
        if page.name in _BEFORE:
            _BEFORE[page.name](played)
        for step in steps(page):
            ran = played.run(step.command)
            said = f"$ {step.command}\n{ran.out}"
            assert step.shown or ran.status == 0, said
            assert step.matches(ran.out), f"{said}\nand the page has:\n{step.shown}"


def test_what_is_shown_has_to_be_said() -> None:
    from ..handbook import Step

    step = Step("", "guest: …\n…\nend")
    assert step.matches("guest: yes\nmore\nand more\nend  \n\n")
    assert step.matches("guest: yes\nend\n")
    for other in ("guest: yes\nend\nmore\n", "guests: yes\nend\n", "guest: yes\n", ""):
        assert not step.matches(other)


# -- every command line ---------------------------------------------------------------------------


@cache
def _parser() -> argparse.ArgumentParser:
    return cli._parser()


def _commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (
        action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    return dict(found.choices)


_BEFORE_A_COMMAND = {"sudo", "do", "then", "!", "if", "while", "exec"}


def _calls(line: str) -> Iterator[list[str]]:
    """The arguments of each kvmarm that a line of shell runs, on this host or over ssh."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    words: list[str] = []
    try:
        found = [*lexer]
    except ValueError:  # a quotation that ends in another line, or no shell's
        return
    for word in [*found, ";"]:
        if not set(word) <= set("();<>|&"):
            words.append(word)
            continue
        yield from _call(words)
        words = ["a-file"] if set(word) & set("<>") else []


def _call(words: list[str]) -> Iterator[list[str]]:
    while words and (words[0] in _BEFORE_A_COMMAND or re.fullmatch(r"\w+=\S*", words[0])):
        words = words[1:]
    if words[:1] == ["ssh"] and "kvmarm" in words:
        words = words[words.index("kvmarm") :]
    if words[:1] == ["*"] and "kvmarm" in words:  # crontab(5)
        words = words[words.index("kvmarm") :]
    if words[:1] == ["kvmarm"]:
        yield words[1:]


def _lines(path: Path) -> Iterator[str]:
    """The lines of a document that are shell's, as far as they run kvmarm."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".md":
        for literal in re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", text, re.DOTALL | re.MULTILINE):
            yield from literal.replace("\\e", "\\").splitlines()
        return
    for block in blocks(text):
        for line in block.text.splitlines():
            if block.kind == "sh" or (block.kind == "console" and line.startswith(("$ ", "> "))):
                yield line[2:] if block.kind == "console" else line
    fenceless = re.sub(r"(?ms)^```.*?^```$", "", text)
    for line in re.findall(r"^    (?:\$ )?(\S.*)$", fenceless, re.MULTILINE):
        if not line.startswith("kvmarm_plugin"):
            yield line


def _check_arguments(arguments: list[str], line: str) -> None:
    said, status = io.StringIO(), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            _parser().parse_args(arguments)
        except SystemExit as end:  # 0 of --help and --version
            status = int(end.code or 0)
    assert status == 0, f"{line}: {said.getvalue()}"


@pytest.mark.parametrize("path", [*_TEXTS, *_MAN], ids=_name)
def test_every_command_line_is_one(path: Path) -> None:
    for line in _lines(path):
        for arguments in _calls(line):
            _check_arguments(arguments, line)


@pytest.mark.parametrize("path", _TEXTS, ids=_name)
def test_every_command_in_a_sentence_exists(path: Path) -> None:
    """Such as `kvmarm check --host`, which needs not be whole."""
    text = re.sub(r"(?ms)^```.*?^```$", "", path.read_text(encoding="utf-8"))
    commands = _commands()
    for span in re.findall(r"`([^`]+)`", text):
        words = span.split()
        if words[:1] != ["kvmarm"] or len(words) < 2 or words[1].startswith("-"):
            continue
        assert words[1] in commands, span
        known = {option for each in commands[words[1]]._actions for option in each.option_strings}
        for word in words[2:]:
            for option in word.split("|"):
                if option.startswith("-") and len(option) > 1:
                    assert option.partition("=")[0] in known, span


def test_there_are_command_lines() -> None:
    found = [call for path in (*_TEXTS, *_MAN) for line in _lines(path) for call in _calls(line)]
    assert len(found) > 80


# -- links, files, and the index ------------------------------------------------------------------

_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
# In a sentence or a link; not a part of a longer path.
_FILE = re.compile(
    r"(?<![\w/.~-])((?:docs|tests|kvmarm_plugin|xml-templates|hooks|systemd|debian|ansible)/"
    r"[\w./-]*[\w/])"
)
# Of other projects, and of another day.
_ELSEWHERE = {
    "tests/data/cpu_template_helper/",
    "tests/hwloc/linux/",
    "docs/cluster",
    "tests/records-2",
}


def _anchors(path: Path) -> set[str]:
    """As they are made of headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", _TEXTS, ids=_name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in _LINK.findall(path.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        assert not anchor or anchor in _anchors(there), target


@pytest.mark.parametrize("path", _TEXTS, ids=_name)
def test_every_file_that_is_named_exists(path: Path) -> None:
    base = ROOT / "ansible" if path.parent.name == "ansible" else ROOT
    for name in set(_FILE.findall(path.read_text(encoding="utf-8"))) - _ELSEWHERE:
        assert (base / name).exists() or (ROOT / name).exists(), name


def test_every_page_is_in_the_index() -> None:
    index = DOCS / "README.md"
    linked = {
        (DOCS / target.partition("#")[0]).resolve()
        for target in _LINK.findall(index.read_text(encoding="utf-8"))
    }
    for page in _PAGES:
        assert page == index or page in linked or page.parent in linked, _name(page)


def test_no_sentence_is_in_two_pages() -> None:
    """One that stands twice is changed once."""
    where: dict[str, Path] = {}
    for page in set(_PAGES) - {DOCS / "hook-faults.md"}:  # which is made
        text = re.sub(r"(?ms)^```.*?^```$|^<!--.*?-->$", "", page.read_text(encoding="utf-8"))
        for sentence in re.split(r"(?<=[.:;])\s|\n\n|^[-|] ", re.sub(r" *\n *", " ", text)):
            if len(sentence) > 60:
                assert where.setdefault(sentence, page) == page, sentence


# -- messages -------------------------------------------------------------------------------------

_MESSAGES = DOCS / "messages.md"
# Where libvirt's and QEMU's were seen, by runs of the lab.
_SEEN = (DOCS / "truth-table.md", DOCS / "one-host.md", *sorted((ROOT / "tests/lab").glob("*.py")))


def _quoted() -> list[tuple[str, str]]:
    """Section and text of every message that the page explains."""
    found, section = [], ""
    for line in _MESSAGES.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:]
        message = re.fullmatch(r"- `(.*)`", line)
        if message:
            found.append((section, message[1]))
    return found


@cache
def _said_by_kvmarm() -> str:
    """All texts of the package and of the hook, a line each; a value in one is a NUL."""
    texts = [(ROOT / "hooks/qemu.d/50-kvmarm").read_text(encoding="utf-8")]
    for path in sorted((ROOT / "kvmarm_plugin").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(_part(value) for value in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    for path in sorted((ROOT / "kvmarm_plugin").rglob("*.tsv")):
        texts.append(path.read_text(encoding="utf-8"))
    return "\n".join(texts)


def _part(value: Any) -> str:
    return str(value.value) if isinstance(value, ast.Constant) else "\0"


def _fragments(message: str) -> list[str]:
    """What is fixed in a message."""
    parts = re.split(r"…|\b[A-Z]{4,}(?:-or-[A-Z]+)?\b", message.replace("kvmarm: ", "", 1))
    return [part.strip(" :.,()'") for part in parts if len(part.strip(" :.,()'")) > 3]


@pytest.mark.parametrize(("section", "message"), _quoted())
def test_every_message_is_said_somewhere(section: str, message: str) -> None:
    if section == "The hook's" and any(_is_meant(message, said) for said in _hook_messages()):
        return  # they are put together of parts
    if section in ("libvirt's", "QEMU's"):
        sources = "\n".join(path.read_text(encoding="utf-8") for path in _SEEN)
    else:
        sources = _said_by_kvmarm()
    fragments = _fragments(message)
    assert fragments
    for fragment in fragments:
        assert fragment in sources, fragment


@pytest.mark.skipif(shutil.which("qemu-system-aarch64") is None, reason="needs QEMU")
def test_qemu_says_what_is_quoted_where_the_library_is_missing() -> None:
    """The same in QEMU 7.2, 10.0 and 11.1."""
    proof = f"secret,id=kvmarm-level,file=/proc/{LIBRARY}/is-not-loaded"
    done = subprocess.run(
        ["qemu-system-aarch64", "-M", "none", "-display", "none", "-object", proof],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 1
    assert f"    {done.stderr}" in (DOCS / "levelling.md").read_text(encoding="utf-8")


@cache
def _hook_messages() -> set[str]:
    """All that the hook says, as the table of its faults has it."""
    return {
        hook_faults._message(fault.outcome(kind, operation))
        for fault in hook_faults._BY_NAME.values()
        for kind in hook_faults._guests_once()
        for operation in ("migrate", "prepare")
    } - {""}


def _is_meant(message: str, said: str) -> bool:
    """Whether the hook has said a message that the page quotes, perhaps not to its end."""
    return bool(re.match(re.escape(message).replace("…", ".*"), said))


def test_every_message_of_the_hook_is_explained() -> None:
    quoted = [message for section, message in _quoted() if section == "The hook's"]
    for said in sorted(_hook_messages()):
        assert any(_is_meant(message, said) for message in quoted), said
