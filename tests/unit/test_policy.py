# SPDX-License-Identifier: LGPL-2.1-or-later
"""The policy: what its YAML says, and that every setting changes the guest in the way it should."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmarm_plugin import cli
from kvmarm_plugin.basics import yamltext
from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.host import host_policy
from kvmarm_plugin.model import policy
from kvmarm_plugin.model.policy import HookPolicy, Policy, PolicyError
from kvmarm_plugin.model.target import Target
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.resolve.wish import ResolveError, read_wish
from tests.corpus import host, one_line, template
from tests.unit.users import give, needs_root

# -- YAML -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Policy()),
        ("# nothing\n---\n", Policy()),
        ("{}", Policy()),
        ("prefer: named", Policy(prefer_named=True)),
        ("prefer: host", Policy(prefer_named=False)),
        ("pmu: on", Policy(pmu=True)),
        ("pmu: off", Policy(pmu=False)),
        ("pmu: auto", Policy()),
        ("sve: on", Policy(sve=True)),
        ("sve: no", Policy(sve=False)),
        ("sve: auto", Policy()),
        ("pauth: true", Policy(pauth=True)),
        ("pauth: off", Policy(pauth=False)),
        ("pauth: auto", Policy()),
        ("sve-max-length: 128", Policy(sve_max_length=128)),
        ("sve-max-length: 2048", Policy(sve_max_length=2048)),
        ("cluster: biggest", Policy()),
        ("cluster: smallest", Policy(cluster="smallest")),
        ("cluster: all", Policy(cluster="all")),
        ("cluster: 0x410fd034", Policy(cluster=0x410FD034)),
        ("adopt: off", Policy(adopt="off")),
        ("adopt: 'off'", Policy(adopt="off")),
        ("adopt: record", Policy()),
        ("adopt: pin", Policy(adopt="pin")),
        ("except: []", Policy()),
        ('except: [win11, "build-*"]', Policy(excepted=("win11", "build-*"))),
        ("except:\n- win11\n- 'build-*'\n", Policy(excepted=("win11", "build-*"))),
        ("on-migrate: warn\non-drift: refuse\non-restore: warn\narrival-seconds: 30", Policy()),
        (
            "prefer: host\npmu: off\nsve: on\nsve-max-length: 256\n",
            Policy(prefer_named=False, pmu=False, sve=True, sve_max_length=256),
        ),
    ],
)
def test_yaml(text: str, expected: Policy) -> None:
    assert policy.loads(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("pmu: off\nsve: [1, 2}\n", "is not YAML, line 2: "),
        ("pmu: [", "is not YAML, line "),
        ("a: b: c", "is not YAML, line 1"),
        ("pmu: on\n\tsve: off", "is not YAML, line 2"),
        ("!!python/object:os.system {}", "is not YAML, line 1"),
        ("? [a]\n: b", "is not YAML"),
        ("\0", "is not YAML"),
        ("pmu", "is not a list of settings"),
        ("- pmu: on", "is not a list of settings"),
        ("5", "is not a list of settings"),
        ("pmu: off\npnu: off", "line 2: unknown setting 'pnu'"),
        ("1: 2", "unknown setting 1"),
        ("# x\nprefer: both", "line 2: prefer cannot be 'both'"),
        ("prefer: true", "prefer cannot be True"),
        ("prefer: [named]", "prefer cannot be this list"),
        ("pmu: maybe", "pmu cannot be 'maybe'"),
        ("pmu: 1", "pmu cannot be 1"),
        ("sve: {}", "sve cannot be a mapping"),
        ("pauth:", "pauth cannot be None"),
        ("sve-max-length: 0", "sve-max-length cannot be 0"),
        ("sve-max-length: 100", "sve-max-length cannot be 100"),
        ("sve-max-length: 2176", "sve-max-length cannot be 2176"),
        ("sve-max-length: true", "sve-max-length cannot be True"),
        ("sve-max-length: '256'", "sve-max-length cannot be '256'"),
        ("cluster: middle", "cluster cannot be 'middle'"),
        ("cluster: 0", "cluster cannot be 0"),
        ("cluster: 0x100000000", "cluster cannot be 4294967296"),
        ("cluster: []", "cluster cannot be this list"),
        ("cluster: true", "cluster cannot be True"),
        ("pmu: 2026-99-99", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("on-migrate: maybe", "on-migrate cannot be 'maybe'"),
        ("on-reconnect: warn", "unknown setting 'on-reconnect'"),
        ("arrival-seconds: 0", "arrival-seconds cannot be 0"),
        ("arrival-seconds: '10'", "arrival-seconds cannot be '10'"),
        ("arrival-seconds: on", "arrival-seconds cannot be True"),
        ("on-migrate: renew", "on-migrate cannot be 'renew'"),
        # What the loaders take, or raise at as they like.
        ("pmu: off\npmu: on", "is not YAML, line 2: pmu is there twice"),
        ("pmu: off\n'pmu': on", "is not YAML, line 2: pmu is there twice"),
        ("cluster: !!int ''", "is not YAML, line 1: tags such as tag:yaml.org,2002:int"),
        ("cluster: !!float x", "is not YAML, line 1: tags"),
        ("cluster: !!binary x", "is not YAML, line 1: tags"),
        ("cluster: !!timestamp x", "is not YAML, line 1: tags"),
        ("cluster: ! x", "is not YAML, line 1: tags"),
        ("cluster: " + "1:59" + ":59" * 5000, "is not YAML, line 1: 1:59:59"),
        ("cluster: " + "1:59" + ":59" * 5000 + ".5", "is not YAML, line 1: 1:59:59"),
        ("pmu: 0000-00-00", "is not YAML, line 1: 0000-00-00"),
        ("pmu: 2026-11-25T99:99:99Z", "is not YAML, line 1: 2026-11-25T99"),
        ("cluster: .inf", "is not YAML, line 1: .inf"),
        ("cluster: 1e3", "cluster cannot be '1e3'"),
        ("cluster: 1.5e+3", "is not YAML, line 1: 1.5e+3"),
        ("cluster: 0b1", "is not YAML, line 1: 0b1"),
        ("cluster: 010", "is not YAML, line 1: 010"),
        ("cluster: 1_0", "is not YAML, line 1: 1_0"),
        ("cluster: +5", "is not YAML, line 1: +5"),
        ("cluster: 0x" + "f" * 17, "is not YAML, line 1: 0xffff"),
        ("cluster: " + "9" * 5000, "is not YAML, line 1: 9999"),
        ("pmu: off\n<<: {}", "is not YAML, line 2: <<"),
        ("pmu: =", "is not YAML, line 1: ="),
        ("&a pmu: off", "is not YAML, line 1: anchors and aliases"),
        ("pmu: &a off\nsve: *a", "is not YAML, line 1: anchors and aliases"),
        ("pmu: off\n---\nsve: off", "is not YAML, line 2: directives, and more than one document"),
        ("%YAML 1.1\n---\npmu: off", "is not YAML, line 1: '%' is not read here"),
        ("%YAML 1." + "1" * 5000 + "\n---\npmu: off", "is not YAML, line 1: '%' is not read here"),
        ("%TAG ! tag:x,1:\n---\npmu: off", "is not YAML, line 1: '%' is not read here"),
        ("? {a: b}\n: c", "is not YAML, line 1: a key has to be a word"),
        ("- " * 3000, "is not YAML, line 1: it is more than 16"),
        ("? " * 3000, "is not YAML, line 1: "),
        ("{a: " * 3000, "is not YAML, line 1: it is more than 16"),
        (
            "".join(" " * depth + "a:\n" for depth in range(300)),
            "is not YAML, line 17: it is more than 16",
        ),
        ("pmu: off\r\nsve: off\r\r\n", r"is not YAML, line 2: '\r' is not read here"),
        ("pmu: off # x\x85sve: off", r"is not YAML, line 1: '\x85' is not read here"),
        ("pmu: off\n# x\u2028sve: off", r"is not YAML, line 2: '\u2028' is not read here"),
        ("\ufeff\ufeffpmu: off", r"is not YAML, line 1: '\ufeff' is not read here"),
        ("pmu: off\n\ufeffsve: off", r"is not YAML, line 2: '\ufeff' is not read here"),
        ("pmu: off\nsve: \x1b[2J", r"is not YAML, line 2: '\x1b' is not read here"),
        ("pmu: \ud800", r"is not YAML, line 1: '\ud800' is not read here"),
        ('pmu: "\\U00110000"', "is not YAML, line 1: "),
        ('pmu: "\\UFFFFFFFF"', "is not YAML, line 1: "),
        ("#" * 70_000, "is larger than 64 KiB"),
    ],
)
@pytest.mark.parametrize("parser", ["libyaml", "Python"])
def test_refusals_name_the_file_and_the_setting(
    text: str, why: str, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parser == "Python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    with pytest.raises(PolicyError) as caught:
        policy.loads(text, "some.yaml")
    line = one_line(caught.value)
    assert line.startswith("some.yaml")
    assert why in line
    assert caught.value.hint


# -- what the hook reads -------------------------------------------------------------------------


_DEFAULT = HookPolicy("renew", "refuse", "refuse", 10)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("pmu: off\non-migrate: warn\n", {"on_migrate": "warn"}),
        (
            "on-migrate: warn # for now\non-drift:   warn",
            {"on_migrate": "warn", "on_drift": "warn"},
        ),
        ("on-drift: refuse\non-restore: 'warn'", {"on_drift": "refuse", "on_restore": "warn"}),
        ("on-drift: renew\non-migrate: renew", {}),
        ("arrival-seconds: 60", {"arrival_seconds": 60}),
        ("arrival-seconds: 0\non-restore: warn", {"on_restore": "warn"}),
        ("arrival-seconds: 9999999999999999999999", {}),
        ("arrival-seconds: ten", {}),
        ("# on-migrate: warn", {}),
        ("on-migrate: warning", {}),
        ("on-prepare: warn\non-migrate: warn", {"on_migrate": "warn"}),
        ("\xff", {}),
    ],
)
def test_the_hook_has_the_defaults_unless_it_is_told_otherwise(
    tmp_path: Path, text: str, expected: dict[str, object]
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(text.encode("latin-1"))
    assert policy.for_hook(str(path)) == _DEFAULT.replace(**expected)


def test_the_hook_without_a_policy(tmp_path: Path) -> None:
    assert policy.for_hook(str(tmp_path / "none.yaml")) == _DEFAULT


def test_the_former_setting_is_an_error_that_says_what_to_write() -> None:
    for value in ("refuse", "warn", "[x]"):
        with pytest.raises(PolicyError) as caught:
            policy.loads(f"pmu: off\non-prepare: {value}\n", "some.yaml")
        assert str(caught.value) == (
            "some.yaml, line 2: on-prepare is no setting (hint: write on-drift: renew, warn or"
            " refuse, which is about guests that are started; see man kvmarm-policy)"
        )


# -- the hook's reader and YAML's ----------------------------------------------------------------


def _hook_reads(directory: Path, text: str) -> dict[str, object]:
    path = directory / "policy.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    return {
        name.replace("_", "-"): value
        for name, value in policy.for_hook(str(path)).as_dict().items()
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('"on\\x2dmigrate": warn', 1),
        ("on-migrate : warn", 1),
        ("on-migrate:\twarn", 1),
        ("on-migrate: warn\t# for now", 1),
        (" on-migrate: warn", 1),
        ("on-migrate:\n  warn", 1),
        ("on-migrate: |-\n  warn", 1),
        ("on-migrate: >-\n  warn", 1),
        ("? on-migrate\n: warn", 1),
        ("{on-migrate: warn}", 1),
        ("pmu: off\n\non-migrate: warn\nprefer:\n  host", 4),
        ("--- {on-migrate: warn}", 1),
        ("on-migrate: warn\n...\n# x\n...\n", 4),
        ("'on-migrate' : warn", 1),
        ("'on-migrate': \"warn\"# x", 1),
        ("{\non-migrate: warn\n}", 1),
        ("#\n---\n  on-migrate: warn", 3),
    ],
)
def test_what_the_hook_would_not_read_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int
) -> None:
    assert (
        yaml.load(text, Loader=yaml.CSafeLoader)["on-migrate"] == "warn"
    )  # the parser in Python refuses tabs
    assert _hook_reads(tmp_path, text)["on-migrate"] == "refuse"
    with pytest.raises(
        PolicyError, match=f"^some.yaml, line {line}: .*the hook does not read on-migrate"
    ) as caught:
        policy.loads(text, "some.yaml")
    one_line(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "on-migrate: warn\n'on-migrate': refuse",
        "on-migrate: warn\non-migrate: refuse",
        "on-migrate: warn\n...\n'on-migrate': refuse",
        "on-migrate: warn\n...\n---\non-migrate: refuse",
        "...\non-migrate: warn",
        "on-migrate: warn\r\r\n",
        "\ufeff\ufeffon-migrate: warn",
        'on-migrate: warn\n"on\\u002dmigrate": refuse',
        "on-migrate: warn#\n",
        "on-migrate: warn\n  and more",
        "on-migrate: warn\n--- \npmu: off",
        "|\non-migrate: warn",
        "prefer: 'host\n\non-migrate: warn\n'",
        "# x\ron-migrate: warn",
        "# x\x85on-migrate: warn",
        "# x\u2028on-migrate: warn",
        "%YAML 1.1\n---\non-migrate: warn",
        "on-migrate: warn\x00",
        "on-migrate: &a warn",
        "on-migrate: !!str warn",
        "<<: {on-migrate: refuse}\non-migrate: warn",
        "on-migrate: warn\n" + "#" * policy.SIZE_LIMIT,
        "on-migrate: warn\n# " + "\N{SNOWMAN}" * (policy.SIZE_LIMIT // 3),
    ],
)
def test_what_could_be_read_in_two_ways_means_refuse(tmp_path: Path, text: str) -> None:
    """And `kvmarm check` says so."""
    assert _hook_reads(tmp_path, text)["on-migrate"] == "refuse"
    with pytest.raises(PolicyError, match=r"line \d|larger than|cannot be"):
        policy.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        "---\non-migrate: warn\n",
        "# é\u00a0\U0001f600\n\n  # x\n--- # y\non-migrate:   warn   # z  \npmu: off",
        "on-migrate: 'warn'\npmu: \"off\"\n",
        "'on-migrate': \"warn\" # x",
        "---\npmu: 'auto'\non-migrate: warn\n... # x\n\n# y\n",
        "\ufeffpmu: off\r\n\r\n# x\r\non-migrate: warn\r\n",
        "\ufeff---\r\non-migrate: warn # x\r\n...",
    ],
)
@pytest.mark.parametrize("parser", ["libyaml", "Python"])
def test_what_operators_write_is_read_by_both(
    tmp_path: Path, text: str, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if parser == "Python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert _hook_reads(tmp_path, text) == {
        "on-drift": "renew",
        "on-migrate": "warn",
        "on-restore": "refuse",
        "arrival-seconds": 10,
    }
    assert policy.loads(text).pmu is (False if "off" in text else None)


@pytest.mark.parametrize("quote", ["", "'", '"'])
@pytest.mark.parametrize(("text", "means"), [("on", True), ("off", False), ("auto", None)])
def test_switches_may_have_quotes(text: str, means: bool | None, quote: str) -> None:
    """So tools write them that know which words YAML takes for others."""
    read = policy.loads(
        "".join(f"{name}: {quote}{text}{quote}\n" for name in ("pmu", "sve", "pauth"))
    )
    assert (read.pmu, read.sve, read.pauth) == (means, means, means)


_fragments = st.sampled_from(
    [
        *(
            "on-migrate",
            "on-drift",
            "on-restore",
            "arrival-seconds",
            "renew",
            "10",
            "010",
            "pmu",
            "prefer",
            "cluster",
            "warn",
            "refuse",
            "off",
            "host",
            "named",
            "all",
            "x",
            "~",
            "1",
        ),
        *(
            ": ",
            ":",
            " : ",
            ":\t",
            " ",
            "  ",
            "\t",
            "\n",
            "\n",
            "\n",
            "\n  ",
            "\n\n",
            "\r\n",
            "\r",
            "\x85",
            "\u2028",
            "\x0b",
            "\x0c",
            "\x1c",
        ),
        *(
            '"',
            "'",
            "#",
            " #",
            "# ",
            "---",
            "---\n",
            "...",
            "\n...\n",
            "%YAML 1.1\n",
            "- ",
            "? ",
            "|",
            "|-\n",
            ">\n",
            "{",
            "}",
            "[",
            "]",
            ",",
        ),
        *(
            "&a ",
            "*a",
            "!!str ",
            "! ",
            "<<: ",
            "\\",
            "\\\n",
            '"on\\x2dmigrate"',
            "'on-migrate'",
            "'warn'",
            '"warn"',
            "on-migrate: 'warn'\r\n",
            "\ufeff",
            "\x00",
            "é",
            "\u00a0",
            "on-",
            "migrate",
        ),
        *(
            "on-migrate: warn",
            "on-migrate: refuse",
            "on-drift: warn # x",
            "arrival-seconds: 010\n",
            "arrival-seconds: 20\n",
            "pmu: off",
            "prefer: host",
            "on-migrate: warn\n",
            "pmu: off\n",
            "except: [",
            "except: [a, b-1]\n",
            'except: ["a*", "b # \\"]\n',
            'except: ["a*", b, "c, [d]"] # x\n',
        ),
    ]
)


@settings(max_examples=500)
@given(st.lists(_fragments, max_size=14).map("".join))
def test_the_hook_reads_what_yaml_says_or_the_policy_is_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """Of every text, by either parser."""
    directory = tmp_path_factory.getbasetemp()
    hook = _hook_reads(directory, text)
    answers: list[Policy | None] = []
    for loader in (yaml.CSafeLoader, yaml.SafeLoader):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(yaml, "CSafeLoader", loader)
            try:
                answers.append(policy.loads(text))
            except PolicyError as error:
                one_line(error)
                answers.append(None)
                continue
        document = yaml.load(text, Loader=loader) or {}
        assert hook == {
            key: document.get(key, _DEFAULT.as_dict()[key.replace("-", "_")]) for key in hook
        }
    if "warn" in hook.values():
        assert answers[0] == answers[1]


def test_what_is_no_file_is_neither_waited_for_nor_read(tmp_path: Path) -> None:
    fifo, directory = tmp_path / "fifo", tmp_path / "directory"
    os.mkfifo(fifo)
    directory.mkdir()
    (tmp_path / "loop").symlink_to("loop")
    start = time.monotonic()
    for path in (
        fifo,
        directory,
        tmp_path / "loop",
        "/dev/zero",
        "/dev/null",
        tmp_path / ("x" * 300),
        "\0",
    ):
        assert policy.for_hook(str(path)).on_migrate == "refuse"
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("change", [0o664, 0o646, 0o777, pytest.param("hers", marks=needs_root)])
@pytest.mark.parametrize("what", ["policy.yaml", ".", ".."])
def test_a_policy_of_others_is_not_obeyed(
    what: str,
    change: int | str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nor one that they could replace."""
    (tmp_path / "etc/kvmarm").mkdir(parents=True)
    path = tmp_path / "etc/kvmarm/policy.yaml"
    path.write_text("on-migrate: warn\n")
    changed = Path(os.path.normpath(path.parent / what))
    for each in (path, path.parent, path.parent.parent):
        each.chmod(0o644 if each == path else 0o755)
    assert policy.for_hook(str(path)).on_migrate == "warn"
    if isinstance(change, int):
        changed.chmod(change | (0o111 if changed.is_dir() else 0))
    else:
        give(changed)
    assert policy.for_hook(str(path)).on_migrate == "refuse"
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(path))
    assert cli.main(["check", "missing.xml"]) == 1
    said = capsys.readouterr().err
    assert f"others than root can change {changed}" in said
    hint = said.partition("(hint: ")[2].rstrip(")\n")
    if os.geteuid() == 0:
        subprocess.run(hint, shell=True, check=True)
        assert policy.for_hook(str(path)).on_migrate == "warn", "the hint works"


@needs_root
@pytest.mark.parametrize("change", ["link", "directory", "file", "link to the directory"])
def test_nor_is_a_policy_behind_a_link(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a link of root's leads to is root's, as is all on the way."""
    path, real = tmp_path / "etc/kvmarm/policy.yaml", tmp_path / "srv/site/policy.yaml"
    for each in (path, real):
        each.parent.mkdir(parents=True)
    real.write_text("on-migrate: warn\n")
    (tmp_path / "alias").symlink_to("srv/./site/")
    path.symlink_to("../../alias/../site/policy.yaml")
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(path))
    assert policy.for_hook(str(path)).on_migrate == "warn"
    host_policy.read()
    changed = {
        "link": path,
        "directory": real.parent,
        "file": real,
        "link to the directory": tmp_path / "alias",
    }[change]
    give(changed)
    assert policy.for_hook(str(path)).on_migrate == "refuse"
    with pytest.raises(PolicyError, match=f"^others than root can change {changed}\\b"):
        host_policy.read()
    os.chown(changed, 0, 0, follow_symlinks=False)
    assert policy.for_hook(str(path)).on_migrate == "warn"


def test_in_a_sticky_directory_nobody_replaces_a_policy(tmp_path: Path) -> None:
    path = tmp_path / "sticky/policy.yaml"
    path.parent.mkdir()
    path.write_text("on-migrate: warn\n")
    path.parent.chmod(0o1777)
    assert policy.for_hook(str(path)).on_migrate == "warn"


@pytest.mark.parametrize("arguments", [["check", "guest.xml"], ["hook", "install"]])
def test_what_the_hook_would_not_read_is_told_by_check_and_install(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guest.xml").write_text("<domain/>")
    (tmp_path / "policy.yaml").write_text("pmu: off\non-migrate : warn\n")
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(tmp_path / "policy.yaml"))
    assert cli.main(arguments) == 1
    assert "policy.yaml, line 2: " in capsys.readouterr().err


# -- YAML of any size ----------------------------------------------------------------------------


@pytest.mark.parametrize("parser", ["libyaml", "Python"])
@pytest.mark.parametrize(
    "unit",
    [
        "[",
        "{",
        "? ",
        "- ",
        "a: ",
        "a\n",
        "- 1\n",
        "#\n",
        "\n",
        " ",
        "1:",
        "1_",
        "'",
        "'\n",
        '"\\x41',
        "&a ",
        "!",
        "---\n",
        "|\n a\n",
        "[a,",
    ],
)
def test_the_time_to_read_yaml_grows_as_it_does(
    unit: str, parser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing recurses, and nothing is quadratic: sixteen times the text takes some sixteen times
    the time.
    """
    if parser == "Python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    times = []
    for size in (1 << 13, 1 << 17):
        text = unit * (size // len(unit))
        start = time.process_time()
        try:
            yamltext.load(text, "some.yaml", KvmarmError, "", size)
        except KvmarmError as error:
            one_line(error)
        times.append(time.process_time() - start)
    assert times[1] < 60 * times[0] + 1


# -- what a setting does -------------------------------------------------------------------------

_CPU = "<cpu mode='host-model'/>"


def wish(cpu: str = _CPU, features: str = "", arch: str = "aarch64") -> bytes:
    return (
        "<domain type='kvm'><os><type"
        f" arch='{arch}'>hvm</type></os><features>{features}</features>{cpu}</domain>".encode()
    )


def chosen(where: str, settings: str = "", **what: str) -> Target:
    """The target that a domain gets on a host under a policy."""
    here = host(where)
    return Resolver(here, policy.loads(settings)).target(
        read_wish(parse(wish(**what)), here.architecture)
    )


def resolved(where: str, settings: str = "", **what: str) -> str:
    return Resolver(host(where), policy.loads(settings)).resolve(wish(**what)).decode()


def feature(name: str, required: str = "require") -> str:
    return f"<cpu mode='host-model'><feature policy='{required}' name='{name}'/></cpu>"


def test_prefer_named_takes_the_model_that_kvm_takes() -> None:
    target = chosen("trixie-cortex-a57", "prefer: named")
    assert target.model == "cortex-a57"
    assert (
        "<cpu mode='custom' match='exact' check='none'><model"
        " fallback='forbid'>cortex-a57</model></cpu>"
        in resolved("trixie-cortex-a57", "prefer: named")
    )
    assert chosen("trixie-cortex-a57") == target


def test_prefer_host_writes_every_knob() -> None:
    target = chosen("trixie-cortex-a57", "prefer: host")
    assert target.model == "host"
    knobs = "".join(f"<feature policy='disable' name='{name}'/>" for name in ("sve", "pauth"))
    assert f"<cpu mode='host-passthrough' check='none'>{knobs}</cpu>" in resolved(
        "trixie-cortex-a57", "prefer: host"
    )


def test_named_models_have_the_target_that_qemu_gives_them() -> None:
    named, generic = (
        chosen("trixie-cortex-a57", "prefer: named"),
        chosen("trixie-cortex-a57", "prefer: host"),
    )
    assert (named.number, generic.number) == (2, 5)
    # Before Linux 6.6 the preferred target is the CPU's own.
    assert (
        chosen("bookworm-cortex-a57", "prefer: named").number
        == chosen("bookworm-cortex-a57", "prefer: host").number
        == 2
    )


def test_no_named_model_where_kvm_takes_none() -> None:
    assert chosen("trixie-neoverse-n1", "prefer: named").model == "host"


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("", {"web": "record"}),
        ("adopt: off", {"web": "off"}),
        (
            'adopt: pin\nexcept: [win11, "build-*", "db?"]',
            {
                "web": "pin",
                "win11": "off",
                "win111": "pin",
                "build-x": "off",
                "db1": "off",
                "db11": "pin",
                "Win11": "pin",
            },
        ),
    ],
)
def test_what_becomes_of_guests_that_never_asked(text: str, answers: dict[str, str]) -> None:
    read = policy.loads(text)
    assert {name: policy.adopts(read, name) for name in answers} == answers


@pytest.mark.parametrize(
    "text",
    [
        *("adopt: on", "adopt: yes", "adopt: [record]", "adopt: 1", "except: win11", "except: [1]"),
        *("except: ['']", "except: {a: b}", "except: [[a]]", 'except: ["' + "x" * 256 + '"]'),
        *("except: [off]", "except:", f"except: [{'x, ' * 257}]"),
    ],
)
def test_no_such_adoption(text: str) -> None:
    """Of a list it is said that it is this one: others are taken."""
    with pytest.raises(PolicyError, match=r"(adopt|except) cannot be (?!a list)"):
        policy.loads(text)


@pytest.mark.parametrize(
    ("text", "is_read"),
    [
        ("except: []", True),
        ("except: [win11]", True),
        ('except: [ win11, "build-*" ] # mine', True),
        ('except: ["a, b", "c # d"]', False),
        ("except: ['build-*']", False),
        ("except: [build-*]", False),
        ("except: [win11,]", False),
        ('except: ["a" "b"]', False),
        ('except: ["a\\"]', False),
        ("except: [win11", False),
        ("except:\n- win11", False),
    ],
)
def test_the_hook_reads_lists_on_one_line(tmp_path: Path, text: str, is_read: bool) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(f"{text}\non-migrate: warn\n")
    assert policy.for_hook(str(file)).on_migrate == ("warn" if is_read else "refuse")
    if not is_read:
        with pytest.raises(PolicyError):
            policy.loads(file.read_text())


@pytest.mark.parametrize("setting", ["auto", "on", "off"])
def test_pmu(setting: str) -> None:
    target, text = (
        chosen("trixie-max", f"pmu: {setting}"),
        resolved("trixie-max", f"pmu: {setting}"),
    )
    expected = setting != "off"
    assert ("pmu_v3" in target.features) is expected
    assert ("PMCR_EL0" in target.seen) is expected
    assert (target.registers["ID_AA64DFR0_EL1"] >> 8 & 0xF != 0) is expected
    assert f"<pmu state='{'on' if expected else 'off'}'/>" in text


@pytest.mark.parametrize("setting", ["auto", "on", "off"])
def test_sve(setting: str) -> None:
    target, text = (
        chosen("trixie-max", f"sve: {setting}"),
        resolved("trixie-max", f"sve: {setting}"),
    )
    expected = setting != "off"
    assert ("sve" in target.features) is expected
    assert bool(target.sve_lengths) is expected
    assert ("SVE_VLS" in target.registers) is expected
    assert (target.registers["ID_AA64PFR0_EL1"] >> 32 & 0xF != 0) is expected
    assert f"<feature policy='{'require' if expected else 'disable'}' name='sve'/>" in text


@pytest.mark.parametrize("setting", ["auto", "on", "off"])
def test_pauth(setting: str) -> None:
    target, text = (
        chosen("trixie-max", f"pauth: {setting}"),
        resolved("trixie-max", f"pauth: {setting}"),
    )
    expected = setting != "off"
    assert (
        ("ptrauth_address" in target.features) is ("ptrauth_generic" in target.features) is expected
    )
    assert (target.registers["ID_AA64ISAR1_EL1"] & 0xFF000FF0 != 0) is expected
    assert f"<feature policy='{'require' if expected else 'disable'}' name='pauth'/>" in text


@pytest.mark.parametrize(
    ("where", "longest", "lengths"),
    [
        ("trixie-max", 128, (128,)),
        ("trixie-max", 256, (128, 256)),
        ("trixie-max", 640, (128, 256, 384, 512, 640)),
        ("trixie-a64fx", 128, (128,)),
        ("trixie-a64fx", 384, (128, 256)),
        ("trixie-a64fx", 2048, (128, 256, 512)),
    ],
)
def test_sve_max_length(where: str, longest: int, lengths: tuple[int, ...]) -> None:
    target = chosen(where, f"sve-max-length: {longest}")
    assert target.sve_lengths == lengths
    assert target.registers["SVE_VLS"] == sum(1 << length // 128 - 1 for length in lengths)
    text = resolved(where, f"sve-max-length: {longest}")
    named = {
        length: text.count(f"policy='require' name='sve{length}'")
        for length in range(128, 2049, 128)
    }
    assert [length for length, count in named.items() if count] == list(lengths)
    assert f"policy='disable' name='sve{longest + 128}'" not in text


def test_lengths_below_the_longest_that_the_host_lacks_are_off() -> None:
    text = resolved("trixie-a64fx")
    assert "<feature policy='disable' name='sve384'/>" in text
    assert "name='sve640'" not in text


def test_without_a_limit_all_lengths_of_the_host() -> None:
    assert chosen("trixie-a64fx").sve_lengths == host("trixie-a64fx").clusters[0].sve_lengths


@pytest.mark.parametrize(
    ("where", "cluster", "cpus"),
    [
        ("hand-made-rk3399", "biggest", "4-5"),
        ("hand-made-rk3399", "smallest", "0-3"),
        ("hand-made-rk3399", "0x410fd034", "0-3"),
        ("hand-made-rk3399", "0x410fd082", "4-5"),
        ("hand-made-rk3588", "biggest", "4-7"),
        ("hand-made-rk3588", "smallest", "0-3"),
        ("trixie-max", "biggest", "0-1"),
        ("trixie-max", "smallest", "0-1"),
    ],
)
def test_cluster(where: str, cluster: str, cpus: str) -> None:
    target = chosen(where, f"cluster: {cluster}\nprefer: host")
    found = next(candidate for candidate in host(where).clusters if candidate.cpus == cpus)
    assert target.number == found.target
    assert target.seen == found.seen
    assert target.registers["CCSIDR_L2D"] == found.vcpus[0].registers["CCSIDR_L2D"]


def test_the_named_model_is_that_of_the_cluster() -> None:
    assert chosen("hand-made-rk3399", "cluster: smallest").model == "cortex-a53"
    assert chosen("hand-made-rk3399", "cluster: biggest").model == "host"


# -- the domain comes first ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "what", "feature_name", "expected"),
    [
        ("pmu: on", {"features": "<pmu state='off'/>"}, "pmu_v3", False),
        ("pmu: off", {"features": "<pmu state='on'/>"}, "pmu_v3", True),
        ("pmu: off", {"features": "<pmu/>"}, "pmu_v3", True),
        ("sve: off", {"cpu": feature("sve")}, "sve", True),
        ("sve: off", {"cpu": feature("sve", "force")}, "sve", True),
        ("sve: on", {"cpu": feature("sve", "disable")}, "sve", False),
        ("sve: on", {"cpu": feature("sve", "forbid")}, "sve", False),
        ("sve: off", {"cpu": feature("sve", "optional")}, "sve", False),
        ("sve: off", {"cpu": feature("sve256")}, "sve", True),
        ("sve: off", {"cpu": feature("sve256", "disable")}, "sve", True),  # as libvirt has it
        ("pauth: off", {"cpu": feature("pauth")}, "ptrauth_address", True),
        ("pauth: on", {"cpu": feature("pauth", "disable")}, "ptrauth_address", False),
    ],
)
def test_the_domain_overrides_the_policy(
    settings: str, what: dict[str, str], feature_name: str, expected: bool
) -> None:
    assert (feature_name in chosen("trixie-max", settings, **what).features) is expected


def test_the_domain_overrides_the_longest_length() -> None:
    assert chosen("trixie-max", "sve-max-length: 128", cpu=feature("sve384")).sve_lengths == (
        128,
        256,
        384,
    )
    assert chosen(
        "trixie-max", "sve-max-length: 512", cpu=feature("sve384", "disable")
    ).sve_lengths == (128, 256)


def test_there_is_one_word_on_a_feature() -> None:
    both = (
        "<cpu mode='host-model'><feature name='pauth' policy='disable'/><feature name='pauth'"
        " policy='require'/></cpu>"
    )
    with pytest.raises(ResolveError, match="'pauth' specified more than once"):
        chosen("trixie-max", cpu=both)


def test_templates_say_what_the_policy_may_not_change() -> None:
    text = Resolver(host("trixie-max"), Policy(sve=False)).resolve(template("sve")).decode()
    assert "<feature policy='require' name='sve256'/>" in text
