# SPDX-License-Identifier: LGPL-2.1-or-later
"""Foreign text cannot command a terminal nor forge a line, wherever it comes from and wherever it
is shown.

Every text of every document is replaced in turn: in the documents that commands read, and, since
readers refuse most of that, in what the views are given. Then each line that comes out is looked
at. That this finds a view that forgets is tested, too.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import pkgutil
import re
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Callable, NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import pytest

import kvmarm_plugin
from kvmarm_plugin import cli
from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.basics.untrusted import lines
from kvmarm_plugin.basics.value import Value
from kvmarm_plugin.commands import check_view, evacuation_view, output, refresh_view
from kvmarm_plugin.commands import show_view as show
from kvmarm_plugin.commands.check_view import ARRIVAL, MEMBER, START, Report
from kvmarm_plugin.commands.evacuation_view import Row
from kvmarm_plugin.commands.inputs import NoRecordError
from kvmarm_plugin.commands.refresh_view import Guest, Outcome
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.record import Record
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.fleet import baseline, graphviz, pool
from kvmarm_plugin.fleet import compare_view as compareview
from kvmarm_plugin.fleet.compare import compare
from kvmarm_plugin.fleet.obstacles import Obstacle
from kvmarm_plugin.fleet.pool import Pool
from kvmarm_plugin.host import libvirtd, qemu
from kvmarm_plugin.judge.by_profile import check
from kvmarm_plugin.judge.finding import Finding
from kvmarm_plugin.judge.wording import line, texts
from kvmarm_plugin.kvm.device import KvmError
from kvmarm_plugin.model import policy, profile_json
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.problem import Problem
from kvmarm_plugin.model.profile import HostProfile
from tests.corpus import GUEST, HOSTS, host, resolver

from .fakehost import write_emulator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmarm_plugin.model.target import Target

_FORGED = "alpha: yes, as recorded"
_CONTROLS = (
    f"\x1b[31m\x9b2J\x00\x7f\t\u202e\u2066\u200f\u2028\u2029\x85\x0b\x0c\r\n{_FORGED}\n "
    f" {_FORGED}\n\ud800\ufffe\U000e0001"
)
_LONG = "x" * 100_000
_LONG_CONTROLS = "\x1b" * 100_000
_HOSTILE = {"controls": _CONTROLS, "long": _LONG, "long-controls": _LONG_CONTROLS}
_LINE = 4096

_hostile = pytest.mark.parametrize("evil", _HOSTILE.values(), ids=_HOSTILE)


def _look(text: str, line: int = _LINE) -> None:
    """Fail if a text has what no line may have."""
    *whole, rest = text.split("\n")
    assert rest == "", "the last line has an end"
    for each in whole:
        assert each.isprintable(), ascii(each[:200])
        assert not each.lstrip().startswith(_FORGED)
        assert len(each) <= line


# -- replacing texts -----------------------------------------------------------------------------


def _taints(value: Any, evil: str, place: str = "") -> Iterator[tuple[str, Any]]:
    """A value with one of the texts in it replaced, and where. Of a list's items, which are alike,
    the first is taken; of a dict's, the first of each kind.
    """
    if isinstance(value, str):
        yield place, evil
    elif isinstance(value, bytes):
        yield place, evil.encode("utf-8", "surrogatepass")
    elif isinstance(value, Value):
        for name in value.as_dict():
            for where, tainted in _taints(getattr(value, name), evil, f"{place}.{name}"):
                yield where, value.replace(**{name: tainted})
    elif isinstance(value, (list, tuple)):
        for where, tainted in _taints(value[0], evil, f"{place}[]") if value else ():
            yield where, type(value)([tainted, *value[1:]])
    elif isinstance(value, dict):
        yield from _taints_of_dict(value, evil, place)


def _taints_of_dict(value: dict[str, Any], evil: str, place: str) -> Iterator[tuple[str, Any]]:
    for first in list(value)[:1]:
        yield f"{place}{{}}", {evil if key == first else key: item for key, item in value.items()}
        # Behind, where it takes nothing away.
        yield f"{place}{{}}+", {**value, evil: value[first]}
    alike = len(value) > 1 and len(set(map(type, value.values()))) == 1
    for name in list(value)[:1] if alike else value:
        for where, tainted in _taints(value[name], evil, f"{place}[{name}]"):
            yield where, {**value, name: tainted}


def _taints_of_xml(document: str, evil: str) -> Iterator[tuple[str, str]]:
    """The same of a document in XML, which holds most of it; every attribute and every text is
    replaced.
    """
    quoted = quoteattr(
        "".join(c for c in evil if c in "\t\n\r" or " " <= c < "\ud800" or "\ue000" <= c < "\ufffe")
    )
    # As character references, or a parser makes spaces of them.
    quoted = "'" + quoted[1:-1].replace("'", "&apos;") + "'"
    for found in re.finditer(r"(?<==)'[^']*'", document):
        yield (
            f"{found.start()}: {found[0][:30]}",
            document[: found.start()] + quoted + document[found.end() :],
        )
    for found in re.finditer(r"(?<=>)[^<>]*[^<>\s][^<>]*(?=<)", document):
        yield (
            f"{found.start()}: {found[0][:30]}",
            document[: found.start()] + quoted[1:-1] + document[found.end() :],
        )


# -- views of objects ----------------------------------------------------------------------------


class _View(NamedTuple):
    """Something that is shown.

    Attributes:
        of: what it is shown of, as it should be.
        text: what is printed.
        says: what has to be in it, whatever texts are replaced: what stands behind foreign text is
            not lost.
    """

    of: Callable[[], Any]
    text: Callable[[Any], str]
    says: str = ""


@cache
def _record(name: str = "hand-made-rk3399") -> Record:
    element = record.find(parse(resolver(name).resolve(GUEST)))
    assert element
    return record.read(element)


@cache
def _pool() -> Pool:
    made = baseline.baseline([host("trixie-max"), host("trixie-max").replace(name="other")]).pool
    assert made
    return made


def _finding() -> Finding:
    return Finding("machine-unknown", machine="text", newest="text", host="text")


def _host() -> HostProfile:
    return host("trixie-neoverse-n1").replace(
        problems=(Problem("KVM", "no /dev/kvm", "load it"),), overrides=("arm64.nosve",)
    )


def _three(here: HostProfile) -> list[HostProfile]:
    """A host, one that differs in name only, and one that cannot exchange guests with them."""
    return [here, here.replace(name=f"{here.name} too"), host("sid-neoverse-n1")]


def _printed(title: str, hosts: list[str], findings: list[Finding], question: str = ARRIVAL) -> str:
    """What `kvmarm check` prints."""
    return check_view.as_text(
        Report(title, question, dict.fromkeys(hosts, findings), origin=hosts[0])
    )


def _would_change(before: Target, after: Target) -> Outcome:
    differences = [
        *refresh_view.target_differences(before, after),
        *refresh_view.target_differences(after, before),
    ]
    return Outcome(refresh_view.CHANGES, tuple(differences))


def _error(error: tuple[str, str]) -> str:
    return f"{KvmarmError(*error)}\n"


_VIEWS = {
    "finding": _View(_finding, lambda finding: f"  {line(finding)}\n", "; remedy: "),
    "a part of a finding": _View(
        _finding, lambda finding: "".join(f"{text}\n" for text in texts(finding).values())
    ),
    "obstacle": _View(
        lambda: Obstacle("a", "b", _finding()),
        lambda obstacle: f"  {obstacle}\n  {obstacle.in_short()}\n",
        "; remedy: ",
    ),
    "error": _View(lambda: ("message", "hint"), _error, " (hint: "),
    "lines": _View(lambda: ["one", "two"], lines),
    "compare": _View(
        _host, lambda here: compareview.as_text(compare(_three(here), Policy())), "3 hosts of "
    ),
    "compare --dot": _View(
        _host,
        lambda here: compareview.as_dot(compare(_three(here), Policy())),
        "digraph kvmarm {\n",
    ),
    "baseline of one": _View(
        _host, lambda here: baseline.as_text(baseline.baseline([here]), explain=True)
    ),
    "baseline": _View(
        _host,
        lambda here: baseline.as_text(baseline.baseline(_three(here)), explain=False),
        "pool: no baseline",
    ),
    "baseline --explain": _View(
        _host,
        lambda here: baseline.as_text(baseline.baseline(_three(here)), explain=True),
        "no baseline",
    ),
    "baseline --name": _View(
        lambda: "pool",
        lambda name: baseline.as_text(baseline.baseline([_host()], name), explain=True),
        ": 1 host, ",
    ),
    "check": _View(
        _record,
        lambda found: _printed(
            "guest", ["a", "b"], [*check(found.target, host("trixie-max")), _finding()]
        ),
        "guest on b: no\n",
    ),
    "check --host": _View(
        _host,
        lambda here: _printed("guest", [here.name], [*check(_record().target, here), _finding()]),
        ": no\n",
    ),
    "check's title": _View(
        lambda: "guest", lambda title: _printed(title, ["a"], [_finding()]), " on a: no\n"
    ),
    "check --inactive": _View(
        _host,
        lambda here: _printed(
            "guest", [here.name], [*check(_record().target, here), _finding()], START
        ),
        ": no, it would not start\n",
    ),
    "check's mark and notes": _View(
        lambda: Report("guest", ARRIVAL, {"a": []}, unknown="a line", notes=("one", "two")),
        check_view.as_text,
        ": not known: ",
    ),
    "check --all": _View(
        lambda: ("guest", "a", "why", _finding()),
        lambda row: evacuation_view.as_text(
            [
                Row(row[0], "", "", Report(row[0], ARRIVAL, {row[1]: [row[3]]}, origin=row[1])),
                Row(row[0], "", "", None, "error", row[2]),
            ],
            [row[1]],
        ),
        "; 1 error\n",
    ),
    "check --all --host": _View(
        _host,
        lambda here: evacuation_view.as_text(
            [
                Row(
                    "guest",
                    "",
                    "",
                    Report(
                        "guest", START, {here.name: check(_record().target, here)}, origin=here.name
                    ),
                )
            ],
            [here.name],
        ),
    ),
    "check of a pool": _View(
        _host,
        lambda here: _printed(
            "pool x", [here.name], [*pool.check_member(_pool(), here), _finding()], MEMBER
        ),
        ": no\n",
    ),
    "check of a hostile pool": _View(
        _pool,
        lambda made: _printed(
            f"pool {made.name}",
            ["a"],
            [*pool.check_member(made, host("sid-max")), _finding()],
            MEMBER,
        ),
        " on a: no\n",
    ),
    "show": _View(_record, lambda found: show.as_text("guest", found, every_register=False)),
    "show -v": _View(_record, lambda found: show.as_text("guest", found, every_register=True)),
    "refresh": _View(
        lambda: "text",
        lambda text: refresh_view.as_text(
            [Guest(text, text, Outcome("error", reason=f"{KvmarmError(text, text)}"), None)] * 2
        ),
        "error: ",
    ),
    "refresh --dry-run": _View(
        _record,
        lambda found: refresh_view.as_text(
            [Guest("guest", "", None, _would_change(found.target, _record("trixie-max").target))]
        ),
        "as it runs: would change\n",
    ),
    "show's title": _View(
        lambda: "guest", lambda title: show.as_text(title, _record(), every_register=False)
    ),
}


def _shown(view: _View, evil: str) -> set[str]:
    """Look at a view with each of its texts replaced. Returns the places of those that made a text.

    What no reader lets through may stop a view, but it must not be shown raw.
    """
    _look(view.text(view.of()))
    places = set()
    for place, tainted in _taints(view.of(), evil):
        try:
            text = view.text(tainted)
        except KvmarmError as error:
            text = f"{error}\n"
        except (LookupError, ValueError, AttributeError, OverflowError):
            continue
        else:
            assert view.says in text, place
        _look(text)
        places.add(place)
    return places


def _look_at_all(name: str) -> None:
    for evil in _HOSTILE.values():
        _shown(_VIEWS[name], evil)


@_hostile
@pytest.mark.parametrize("name", _VIEWS)
def test_no_view_shows_foreign_text_raw(name: str, evil: str) -> None:
    places = _shown(_VIEWS[name], evil)
    assert places
    if _VIEWS[name].of is _host:
        assert places >= {
            ".name",
            ".kernel",
            ".platform",
            ".overrides[]",
            ".problems[].message",
            ".clusters[].part",
            ".qemu.machines[]",
        }
    if _VIEWS[name].of is _record:
        assert places >= {
            ".origin.host",
            ".intent.kept[]",
            ".target.machine",
            ".target.model",
            ".target.pinning.cpus",
        }


@pytest.mark.parametrize("name", _VIEWS)
def test_a_view_that_forgets_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in _modules().values():
        if hasattr(module, "shown"):
            monkeypatch.setattr(module, "shown", lambda text, _limit=0: text)
    for evil in (_CONTROLS, _LONG):
        with pytest.raises(AssertionError):
            _shown(_VIEWS[name], evil)


@pytest.mark.parametrize(
    ("module", "view"),
    [
        ("basics.errors", "error"),
        ("judge.wording", "finding"),
        ("judge.wording", "a part of a finding"),
        ("basics.untrusted", "lines"),
        ("basics.untrusted", "show"),
        ("fleet.compare_view", "compare --dot"),
        ("fleet.obstacles", "obstacle"),
        ("commands.check_view", "check --host"),
        ("commands.check_view", "check's title"),
        ("fleet.baseline", "baseline --name"),
    ],
)
def test_one_module_that_forgets_is_found(
    module: str, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Controls and line breaks, or, where the line is looked at once more, a name so long that the
    answer behind it is lost.
    """
    monkeypatch.setattr(_modules()[module], "shown", lambda text, _limit=0: text)
    with pytest.raises(AssertionError):
        _look_at_all(view)


# -- errors and findings -------------------------------------------------------------------------


def _modules() -> dict[str, Any]:
    """Every module of the package by the name that it has there."""
    found = {}
    for module in pkgutil.walk_packages(kvmarm_plugin.__path__, "kvmarm_plugin."):
        if not module.name.endswith("__main__"):
            found[module.name.partition(".")[2]] = importlib.import_module(module.name)
    return found


def _subclasses(of: type) -> list[type]:
    return [cls for direct in of.__subclasses__() for cls in (direct, *_subclasses(direct))]


def test_every_error_is_made_like_the_one() -> None:
    _modules()
    errors = [
        cls for cls in _subclasses(KvmarmError) if cls.__module__.startswith("kvmarm_plugin.")
    ]
    assert len(errors) > 8
    for cls in errors:
        assert "__str__" not in vars(cls), cls
        assert "__init__" not in vars(cls) or cls in (KvmError, NoRecordError), cls


@_hostile
def test_an_error_within_an_error_is_still_one_line(evil: str) -> None:
    inner = KvmarmError(evil, evil)
    outer = KvmarmError(f"resolving failed: {inner}; {inner.message}", f"mend it: {inner.hint}")
    for error in (inner, outer):
        _look(f"{error}\n{error.message}\n{error.hint}\n")
        assert repr(error).isprintable()


def test_an_error_keeps_its_words() -> None:
    assert (
        str(KvmarmError(" no such\n  domain ", "see:\tvirsh list"))
        == "no such domain (hint: see: virsh list)"
    )


# -- the graph and its picture -------------------------------------------------------------------


_TRICKS = [
    "\\",
    "\\\\",
    "\\N",
    "\\G",
    "\\l",
    "\\r",
    "\\T",
    '\\"',
    '"',
    '"]; evil [label="',
    "<b>x</b>",
    "<>",
    "&lt;",
    "&#27;",
    "{a|b}",
    "]",
    "//",
    "#",
    "*/",
]


def test_nothing_in_a_name_is_graphviz_language(tmp_path: Path) -> None:
    for number, trick in enumerate([*_TRICKS, "".join(_TRICKS), f"{_CONTROLS}\\"]):
        here = host("trixie-neoverse-n1")
        tricky = here.replace(
            name=trick,
            clusters=tuple(c.replace(part=trick) for c in here.clusters),
            overrides=(trick,),
        )
        dot = compareview.as_dot(compare([tricky, host("trixie-cortex-a72")], Policy()))
        assert all(line.isprintable() for line in dot.splitlines())
        plain = compareview.as_dot(compare([here, host("trixie-cortex-a72")], Policy()))
        assert dot.count("\n") == plain.count("\n")
        strings = re.sub(r'"(?:[^"\\]|\\.)*"', '""', dot)
        assert strings == re.sub(r'"(?:[^"\\]|\\.)*"', '""', plain), "nothing but strings differs"
        picture = tmp_path / f"{number}.svg"
        picture.write_bytes(graphviz.svg(dot))
        root = ElementTree.parse(picture)
        texts = [
            (text.text or "").replace("\N{NO-BREAK SPACE}", " ")
            for text in root.iter("{http://www.w3.org/2000/svg}text")
        ]
        assert all(text.isprintable() for text in texts)
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in trick)
        assert any(text.endswith(f": {shown}") for text in texts), texts
        assert {element.tag.partition("}")[2] for element in root.iter()} <= {
            "svg",
            "g",
            "title",
            "text",
            "path",
            "polygon",
        }


# -- documents through the commands --------------------------------------------------------------


class _Run(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Callable[..., _Run]:
    """`kvmarm` in this process and in a directory of its own, its output looked at; what is data is
    not.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(tmp_path / "no-policy.yaml"))
    monkeypatch.setattr(pool, "DEFAULT_PATH", str(tmp_path / "no-pool.yaml"))

    def call(*arguments: str, data: bool = False, line: int = _LINE) -> _Run:
        try:
            status = cli.main(list(arguments))
        except SystemExit as error:
            status = int(str(error.code))
        out, err = (stream.decode() for stream in capsysbinary.readouterr())
        if "--json" in arguments:
            assert out.isascii()
            _look(out, line=1 << 30)
        elif out and not data:
            _look(out, line)
        if err:
            _look(err)
        assert (status == 1) == (err.startswith("kvmarm: ") and not out)
        return _Run(status, out, err)

    return call


_EVIL = (_CONTROLS, _LONG)


def _write(name: str, document: object) -> str:
    text = document if isinstance(document, str) else json.dumps(document)
    Path(name).write_text(text, encoding="utf-8", errors="replace")
    return name


def _resolved(name: str) -> str:
    return resolver(name).resolve(GUEST).decode()


def test_profiles(run: Callable[..., _Run]) -> None:
    document = json.loads(profile_json.dumps(_host()))
    other, guest = (
        str(HOSTS["sid-neoverse-n1"]),
        _write("guest.xml", _resolved("trixie-neoverse-n1")),
    )
    plain, members = _write("plain", GUEST.decode()), _write("pool", pool.dumps(_pool()))
    for evil in _EVIL:
        for place, tainted in _taints(document, evil):
            name = _write("here", tainted)
            for form in ([], ["--dot"], ["--json"]) if evil == _CONTROLS else ([],):
                assert run("compare", *form, name, other).status in (1, 3), place
            assert run("baseline", "--explain", name, other).status in (1, 3), place
            run("check", guest, "--host", name)
            run("check", members, "--host", name)
            if not place.endswith(
                ("{}", "{}+")
            ):  # of registers, whose names are the record's matter
                run("resolve", plain, "--host", name, data=True)


def test_records(run: Callable[..., _Run]) -> None:
    for host_name, evil in (("hand-made-rk3399", _CONTROLS), ("trixie-max", _LONG)):
        document = _resolved(host_name)
        for _, tainted in _taints_of_xml(document, evil):
            name = _write("guest.xml", tainted)
            for form in (["-v"], ["--json"]):
                assert run("show", name, *form).status in (0, 1)
            assert run("check", name, "--host", str(HOSTS["sid-cortex-a72"])).status in (
                1,
                3,
            ), "on another CPU"
            if run("resolve", name, "--restore-intent", "-o", "restored.xml").status == 0:
                run(
                    "resolve",
                    "restored.xml",
                    "--host",
                    str(HOSTS["trixie-max"]),
                    "--print-diff",
                    line=1 << 30,
                )


def test_pools(run: Callable[..., _Run]) -> None:
    import yaml

    document = yaml.safe_load(pool.dumps(_pool()))
    plain = _write("plain", GUEST.decode())
    for evil in _EVIL:
        for _, tainted in _taints(document, evil):
            # JSON is YAML; the first line tells commands what it is.
            name = _write(
                "pool",
                "".join(
                    f"{json.dumps(key) if key == evil else key}: {json.dumps(item)}\n"
                    for key, item in tainted.items()
                ),
            )
            run("check", name, "--host", str(HOSTS["trixie-max"]), data=False)
            run("resolve", plain, "--pool", name, "--host", str(HOSTS["trixie-max"]), data=True)


def test_policies(run: Callable[..., _Run]) -> None:
    hosts = (str(HOSTS["trixie-max"]), str(HOSTS["sid-max"]))
    document = {"prefer": "named", "pmu": "auto", "on-migrate": "warn", "cluster": "biggest"}
    for evil in _EVIL:
        for _, tainted in [
            *_taints(document, evil),
            ("", evil),
            ("", [evil]),
            ("", {evil: {evil: evil}}),
            ("", {"pmu": [evil]}),
        ]:
            assert run("compare", *hosts, "--policy", _write("policy", tainted)).status == 1
    for text in (
        f"pmu: {_LONG}",
        f"? {_LONG}\n: 1",
        "pmu: \x1b[31m",
        "\x9b: x",
        f"pmu: !<{_LONG}> x",
        f"pmu: *{_LONG}",
    ):
        assert run("compare", *hosts, "--policy", _write("policy", text)).status == 1


def test_file_names(run: Callable[..., _Run]) -> None:
    hosts = (str(HOSTS["trixie-max"]), str(HOSTS["sid-max"]))
    evil = f"\x1b[31m\x9b\u202e\u2028\r\n{_FORGED}\n"
    raw = os.fsdecode(b"\xff\x9b\x1b[31m")
    for name in (evil, raw, "x" * 250, f"missing/{_LONG}", f"\udcff{evil}"):
        for holds in (
            None,
            "",
            "{}",
            "<x/>",
            "schema: urn:kvmarm-plugin:pool:1\n",
            "pmu: [",
            _resolved("trixie-max"),
            GUEST.decode(),
        ):
            if holds is not None and "/" not in name:
                Path(name).write_text(holds)
            for command in (
                ("show", f"./{name}"),
                ("check", f"./{name}", "--host", hosts[0]),
                ("compare", name, hosts[0]),
                ("compare", *hosts, "--policy", name),
                ("baseline", name, "-o", f"{name}/x"),
                ("baseline", "--name", name, hosts[0]),
                ("resolve", name, "--host", hosts[0], "--print-diff"),
            ):
                run(*command)
        if "/" not in name:
            os.unlink(name)


def test_arguments(run: Callable[..., _Run]) -> None:
    for arguments in (
        ["-\x1b[31m"],
        ["\x1b[31m"],
        ["show", "a", "b\x1b[31m\x9b\u202e"],
        ["hook", _CONTROLS],
        ["compare", "a", "b", "--\x9b"],
    ):
        found = run(*arguments)
        assert found.status == 2
        assert "kvmarm" in found.err


@pytest.mark.parametrize("uri", ["test+ssh:///default?keyfile=%2Ftmp", "%(default)s", "100%"])
def test_a_percent_sign_in_the_default_uri(
    uri: str, run: Callable[..., _Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", uri)
    monkeypatch.setenv("COLUMNS", "200")
    assert uri in run("show", "--help").out


@_hostile
def test_names_decide_nothing(evil: str, run: Callable[..., _Run]) -> None:
    """Hosts whose names are shown alike are two hosts, and the answer stays."""
    hosts = [host("trixie-max"), host("sid-max")]
    guest = _write("guest.xml", _resolved("sid-max"))
    names = [f"{evil}{number}" for number in (1, 2)]
    taken = [here.replace(name=name) for here, name in zip(hosts, names)]
    verdicts = {here.name: check(_record("sid-max").target, here) for here in taken}
    assert [bool(findings) for findings in verdicts.values()] == [True, False]
    honest, forged = (
        [_write(f"honest-{n}", profile_json.dumps(here)) for n, here in enumerate(hosts)],
        [],
    )
    for number, here in enumerate(taken):
        forged.append(_write(f"forged-{number}", profile_json.dumps(here)))
    for command in (("check", guest, "--host"), ("compare",), ("baseline",)):
        options = (
            [option for name in forged for option in ("--host", name)]
            if command[0] == "check"
            else forged
        )
        arguments = [*command[:2], *options] if command[0] == "check" else [*command, *options]
        status = run(*arguments).status
        assert status in (1, 3)
        found = run(*arguments, "--json")
        if found.status == 3:  # else a reader has refused the names
            assert all(json.dumps(name) in found.out for name in names)
    assert run("compare", *honest).status == 3


# -- what other programs say ---------------------------------------------------------------------


@_hostile
def test_libvirt(
    evil: str,
    run: Callable[..., _Run],
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    class LibvirtError(Exception):
        def get_error_message(self) -> str:
            return evil

        def get_error_code(self) -> int:
            return 42

    class Domain:
        def name(self) -> str:
            return evil

    class Opened(SimpleNamespace):
        def refuse(self, *_: object) -> None:
            raise LibvirtError(evil)

        lookupByName = lookupByUUIDString = createXML = refuse  # noqa: N815

        def defineXMLFlags(self, *_: object) -> Domain:  # noqa: N802
            return Domain()

        def close(self) -> None:
            pass

    libvirt = SimpleNamespace(
        libvirtError=LibvirtError,
        open=lambda _uri: Opened(),
        registerErrorHandler=lambda *_: None,
        VIR_DOMAIN_DEFINE_VALIDATE=1,
        VIR_DOMAIN_START_VALIDATE=1,
        VIR_DOMAIN_START_PAUSED=1,
        VIR_ERR_NO_DOMAIN=42,
        VIR_ERR_OPERATION_FAILED=9,
    )
    monkeypatch.setitem(sys.modules, "libvirt", libvirt)
    plain = _write("plain", GUEST.decode())
    assert run("show", "guest").err.startswith("kvmarm: libvirt: ")
    assert run("create", plain, "--host", str(HOSTS["trixie-max"])).status == 1
    for form in ([], ["--json"]):
        assert cli.main(["refresh", evil, *form]) == 1
        _look(capsysbinary.readouterr().out.decode(), line=1 << 30 if form else _LINE)
    defined = run("define", plain, "--host", str(HOSTS["trixie-max"]))
    assert defined.status == 0
    assert "' defined from plain: host-model is now host on virt-10.0" in defined.out
    assert run("define", plain, "--host", str(HOSTS["trixie-max"]), "-c", evil).status == 0
    with pytest.raises(KvmarmError) as caught:
        libvirtd.is_remote(f"qemu://[{evil}")
    _look(f"{caught.value}\n")


def test_the_emulator(tmp_path: Path) -> None:
    path = tmp_path / "qemu"
    for says in (
        b"printf '\\033[31m\\302\\233\\342\\200\\256 x\\n'",
        b"head -c 10000 /dev/zero",
        b"echo {",
    ):
        for where in (b">&2", b""):
            path.write_bytes(b"#!/bin/sh\n" + says + b" " + where + b"\nexit 1\n")
            path.chmod(0o755)
            with pytest.raises(qemu.QemuError) as caught:
                qemu.ask(str(path))
            _look(f"{caught.value}\n")
    assert qemu.ask(write_emulator(path)).version == "10.0.2"


def test_graphviz(
    run: Callable[..., _Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "dot").write_bytes(b"#!/bin/sh\nprintf '\\033[31m\\233\\377 x\\r\\n' >&2\nexit 1\n")
    (tmp_path / "dot").chmod(0o755)
    assert run("compare", "--svg", "x", str(HOSTS["trixie-max"]), str(HOSTS["sid-max"])).status == 1


@_hostile
def test_what_probing_says(
    evil: str, run: Callable[..., _Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(qemu: str, step: Callable[[str], None]) -> HostProfile:
        step(f"{qemu}: {evil}")
        return _host().replace(problems=(Problem(evil, evil, evil), Problem("KVM", evil)))

    monkeypatch.setattr("kvmarm_plugin.host.probe.probe", measure)
    status, _, err = run("probe", "-v", "--qemu", evil, data=True)
    assert status == 0
    assert [line[:14] for line in err.splitlines()] == [
        "kvmarm: probed",
        "kvmarm: not me",
        "kvmarm: not me",
    ]


@_hostile
def test_what_the_hook_s_installer_says(
    evil: str, run: Callable[..., _Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmarm_plugin.hook.install.install", lambda: [evil, evil])
    monkeypatch.setattr("kvmarm_plugin.hook.install.DIRECTORIES", ())
    monkeypatch.setattr("kvmarm_plugin.hook.install.DIRECTORIES", ())
    monkeypatch.setattr("kvmarm_plugin.host.marks.is_heard", lambda: True)
    assert run("hook", "install").out.count("\n") == 2


# -- the writers ---------------------------------------------------------------------------------


def test_a_diff_shows_the_document_s_text(run: Callable[..., _Run]) -> None:
    odd = GUEST.replace(
        b"  <name>guest",
        "  <!-- \u202e\x9b\u2028+forged\r -->\n"
        "\t<name>g\N{LATIN SMALL LETTER A WITH DIAERESIS}st".encode(),
    )
    (Path("guest.xml")).write_bytes(odd)
    status, out, _ = run("resolve", "guest.xml", "--host", str(HOSTS["trixie-max"]), "--print-diff")
    assert status == 0
    assert out.startswith("--- guest.xml\n+++ resolved\n@@ ")
    assert "\n   <!-- \\u202e\\x9b\\u2028+forged\\r -->\n" in out
    assert "\n         <name>g\N{LATIN SMALL LETTER A WITH DIAERESIS}st</name>\n" in out
    assert "\n-  <cpu mode='host-model'/>\n" in out
    # As data it stays as it is.
    assert (
        odd[: odd.index(b"  <memory")]
        in run("resolve", "guest.xml", "--host", str(HOSTS["trixie-max"]), data=True).out.encode()
    )


def test_what_is_printed_is_looked_at_once_more(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    output.write_text("a\x1b[31m\n\x9b\u202eb\n")
    assert capsysbinary.readouterr().out == b"a\\x1b[31m\n\\x9b\\u202eb\n"
    output.write_text(f"{_LONG}\n")
    assert capsysbinary.readouterr().out.decode() == f"{_LONG}\n", "lengths are the views' own"


@_hostile
def test_what_is_said_is_a_line(evil: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.say(f"{evil}{evil}")
    err = capsys.readouterr().err
    _look(err)
    assert err.startswith("kvmarm: ")
    assert err.count("\n") == 1


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["show", "./missing"]) == 1
    with open("/dev/full", "w", buffering=1, encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert cli.main(["show", "./missing"]) == 1
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space left"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


_WRITERS = {"output", "answer", "tell", "marks"}  # the last writes files, of which others make text


def test_only_few_write() -> None:
    """Whoever prints is one of those that are tested to show foreign text."""
    found: dict[str, set[str]] = {}
    root = Path(kvmarm_plugin.__path__[0])
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            stream = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if name in ("print", "pprint", "os.write", "posix.write") or stream in (
                "sys.stdout",
                "sys.stderr",
            ):
                found.setdefault(path.stem, set()).add(name or stream)
    assert set(found) == _WRITERS, found
