# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvmarm status` and `kvmarm metrics`: what they say of the domains of a played libvirt, on a
played kernel, and of libvirt's test driver.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from kvmarm_plugin import __version__, cli
from kvmarm_plugin.commands import inputs, metrics_view, survey
from kvmarm_plugin.domain import record, record_text
from kvmarm_plugin.domain.record import Intent
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.fleet import baseline, pool
from kvmarm_plugin.host import cpus, libvirtd, marks
from kvmarm_plugin.host.qemu import QemuError
from kvmarm_plugin.kvm import device
from kvmarm_plugin.kvm.device import System
from kvmarm_plugin.model import policy
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.resolve.resolver import Resolver

from ..corpus import GUEST, host, resolver, template
from .fakekernel import FakeKernel
from .fakelibvirt import FakeDomain, FakeError, FakeLibvirt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_HERE, _NEWER = "trixie-neoverse-n1", "sid-neoverse-n1"
_XML = resolver(_HERE).resolve(GUEST).decode()
_FOREIGN = Resolver(host(_NEWER), Policy()).resolve(GUEST).decode()  # on virt-11.1
_OLDER = resolver("bookworm-neoverse-n1").resolve(GUEST).decode()
_PLAIN = GUEST.decode().replace("host-model", "host-passthrough")


class _Run(NamedTuple):
    status: int
    out: str
    err: str


class _Host(NamedTuple):
    """This host, played."""

    libvirt: FakeLibvirt
    kernel: FakeKernel
    directory: Path

    def add(
        self, name: str, config: str | None = _XML, live: str | None = None, **more: Any
    ) -> FakeDomain:
        state = "SHUTOFF_SHUTDOWN" if live is None else "RUNNING_BOOTED"
        uuid = f"11111111-2222-3333-4444-{len(self.libvirt.domains):012d}"
        self.libvirt.domains.append(FakeDomain(name, uuid, state, live, config, **more))
        return self.libvirt.domains[-1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Host:
    profile = host(_HERE)
    kernel = FakeKernel.from_profile(profile)
    uname = SimpleNamespace(machine="aarch64", nodename="here", release=profile.kernel)
    monkeypatch.setattr(os, "uname", lambda: uname)
    monkeypatch.setattr(platform, "node", lambda: "here")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(cpus, "find_clusters", list)
    monkeypatch.setattr(device, "System", lambda: System(kernel))
    assert profile.qemu is not None
    machines = profile.qemu.machines
    monkeypatch.setattr(inputs, "machines_here", lambda _emulator: machines)
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(tmp_path / "policy.yaml"))
    monkeypatch.setattr(pool, "DEFAULT_PATH", str(tmp_path / "pool.yaml"))
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    fake = FakeLibvirt()
    monkeypatch.setitem(sys.modules, "libvirt", fake)
    return _Host(fake, kernel, tmp_path)


@pytest.fixture
def run(here: _Host, capsys: pytest.CaptureFixture[str]) -> Callable[..., _Run]:
    def call(*arguments: str) -> _Run:
        return _Run(cli.main(list(arguments)), *capsys.readouterr())

    return call


def _with_record(xml: str, change: Callable[[record.Record], record.Record]) -> str:
    """A domain with another record."""
    element = record.find(parse(xml.encode()))
    assert element is not None
    new = record_text.format_whole(change(record.read(element)), element.indent)
    return (xml.encode()[: element.start] + new + xml.encode()[element.end :]).decode()


def _rows(answer: _Run) -> dict[str, dict[str, Any]]:
    return {domain["name"]: domain for domain in json.loads(answer.out)["domains"]}


# -- status --------------------------------------------------------------------------------------


def test_the_table(run: Callable[..., _Run], here: _Host) -> None:
    here.add("as-recorded", live=_XML)
    here.add("plain", _PLAIN)
    assert run("status") == (
        0,
        """\
NAME         STATE     TARGET                    RECORD  HERE        DRIFT  POOL
as-recorded  running   host on virt-10.0, GIC 3  true    yes         none   -
plain        shut off  host-passthrough          none    not judged  -      -
2 domains on here
Records: 1 true, 1 none
Would run or start here: 1 yes, 1 not judged
Drift at the next cold start: 0 domains
A domain without a record is not judged here: kvmarm check DOMAIN
""",
        "",
    )


def test_a_no_decides_the_status_and_says_why_once(run: Callable[..., _Run], here: _Host) -> None:
    for name in ("a", "b", "c", "d", "e", "f"):
        here.add(name, _FOREIGN)
    here.add("good")
    status, out, _ = run("status")
    assert status == 3
    assert out.count("virt-11.1, here") == 1
    assert "\na, b, c, d and 2 more: no: machine type (QEMU's versioned board): recorded" in out
    assert "\nWould run or start here: 1 yes, 6 no\n" in out
    assert out.endswith("\nAll reasons, and what to do: kvmarm check DOMAIN\n")


def test_how_records_stand(run: Callable[..., _Run], here: _Host) -> None:
    here.add("true")
    renewed = _with_record(_XML, lambda old: old.replace(origin=old.origin.replace(renewed="x")))
    here.add("renewed", renewed)
    here.add("adopted", _with_record(_XML, lambda old: old.replace(intent=Intent((), ()))))
    here.add("none", _PLAIN)
    here.add("broken", _XML.replace("gic='3'", "gic='4'"))
    here.add("two", _XML.replace("</metadata>", _record_text() + "</metadata>"))
    here.add("garbage", "<domain>&nothing;</domain>")
    marked = here.add("marked")
    marks.mark(marked.uuid, "it started otherwise")
    rows = _rows(run("status", "--json"))
    assert {name: row["record"] for name, row in rows.items()} == {
        "true": "true",
        "renewed": "renewed",
        "adopted": "adopted",
        "none": "none",
        "broken": "broken",
        "two": "broken",
        "garbage": "broken",
        "marked": "not known",
    }
    assert rows["marked"]["reasons"] == ["it started otherwise"]
    assert rows["marked"]["here"] == "not known"
    assert rows["adopted"]["here"] == "yes"
    assert rows["two"]["reasons"][0].startswith("the domain has more than one kvmarm record")
    assert run("status").status == 1  # no clear no


@pytest.mark.parametrize("cpu", ["<cpu mode='maximum'/>", "<cpu mode='custom'/>", "<cpu/>", ""])
def test_what_never_asked_for_host_model_is_adopted(cpu: str) -> None:
    element = record.find(parse(_XML.encode()))
    assert element is not None
    found = record.read(element)
    assert not record.is_adopted(found)
    kept = (cpu.encode(),) if cpu else (b"<features/>",)
    assert record.is_adopted(found.replace(intent=Intent((), kept)))


def _record_text() -> str:
    element = record.find(parse(_XML.encode()))
    assert element is not None
    return element.text.decode()


def test_a_record_is_known_by_what_its_prefix_stands_for(
    run: Callable[..., _Run], here: _Host
) -> None:
    declaration = f" xmlns:kvmarm='{record.NAMESPACE}'"
    assert declaration in _XML
    bare = _XML.replace(declaration, "")
    for name, version in (("good", "2"), ("other", "1"), ("newer", "3")):
        namespace = f"{record.NAMESPACE_STEM}{version}"
        here.add(name, bare.replace("<domain ", f"<domain xmlns:kvmarm='{namespace}' "))
    rows = _rows(run("status", "--json"))
    assert [rows[name]["record"] for name in ("good", "other", "newer")] == [
        "true",
        "broken",
        "broken",
    ]


def test_what_is_not_resolved_would_not_start(run: Callable[..., _Run], here: _Host) -> None:
    here.add("asks", GUEST.decode())
    status, out, _ = run("status")
    assert status == 3
    assert (
        "\nasks: no: it asks for host-model, and libvirt does not start it; make it concrete: virsh"
        " dumpxml --inactive --security-info DOMAIN | kvmarm define -\n" in out
    )


def test_a_guest_that_runs_and_is_stored_with_host_model(
    run: Callable[..., _Run], here: _Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `forget --restore` leaves one: it runs, and libvirt does not start it again."""
    here.add("forgotten", GUEST.decode(), live=_PLAIN)
    here.add("recorded", GUEST.decode(), live=_XML)
    here.add("plain", _PLAIN, live=_PLAIN)
    status, out, _ = run("status")
    assert status == 0
    rows = _rows(run("status", "--json"))
    for name in ("forgotten", "recorded"):
        assert rows[name]["drift"] == {"differences": 0, "starts": False}
    assert rows["plain"]["drift"] is None
    assert rows["forgotten"]["here"] == "not judged"
    assert (
        "\nforgotten: not judged: stored: host-model, which libvirt does not start again; make it"
        " concrete: virsh dumpxml --inactive --security-info DOMAIN | kvmarm define -\n" in out
    )
    assert "\nDrift at the next cold start: 2 domains\n" in out
    monkeypatch.setattr(survey, "is_noted", lambda: True)  # libvirt offers it itself
    assert "stored: host-model" not in run("status").out
    assert "\nDrift at the next cold start: 0 domains\n" in run("status").out


def test_another_architecture_may_ask_for_host_model(run: Callable[..., _Run], here: _Host) -> None:
    here.add("x86", GUEST.decode().replace("aarch64", "x86_64"))
    here.add("tcg", GUEST.decode().replace("type='kvm'", "type='qemu'"))
    assert run("status").status == 0


def test_a_start_that_drifts(run: Callable[..., _Run], here: _Host) -> None:
    here.add("old", _OLDER.replace("virt-7.2", "virt-9.0"))
    here.add("old-here", _OLDER)
    row = _rows(run("status", "--json"))["old-here"]
    assert (row["here"], row["verdict"]) == ("yes", "drift")
    assert row["drift"]["differences"] > 0
    assert row["drift"]["starts"]
    text = run("status").out
    assert re.search(r"\nold-here .* \d+ differences? ", text)
    (here.directory / "policy.yaml").write_text("on-drift: refuse\n")
    assert _rows(run("status", "--json"))["old-here"]["here"] == "no"


def test_the_next_start_of_a_guest_that_runs(run: Callable[..., _Run], here: _Host) -> None:
    here.add("doomed", _FOREIGN, live=_XML)
    here.add("transient", None, live=_XML)
    here.add("other", _PLAIN, live=_XML)
    rows = _rows(run("status", "--json"))
    assert [rows[name]["here"] for name in ("doomed", "transient", "other")] == ["yes"] * 3
    assert rows["doomed"]["drift"]["starts"] is False
    assert rows["transient"]["drift"] is rows["other"]["drift"] is None
    answer = run("status")
    assert answer.status == 0
    assert re.search(r"\ndoomed .* would not start ", answer.out)


def test_a_managed_save_counts(run: Callable[..., _Run], here: _Host) -> None:
    here.add("saved", saved=_FOREIGN)
    row = _rows(run("status", "--json"))["saved"]
    assert (row["state"], row["here"]) == ("saved", "no")


def test_the_pool_of_a_record(run: Callable[..., _Run], here: _Host) -> None:
    mine = baseline.baseline([host(_HERE)], "rack-7").pool
    assert mine is not None
    (here.directory / "pool.yaml").write_text(pool.dumps(mine))

    def made_for_it(old: record.Record) -> record.Record:
        return old.replace(origin=mine.origin)

    here.add("member", _with_record(_XML, made_for_it))
    former = mine.origin.replace(profile="sha256:" + "0" * 64)
    here.add("former", _with_record(_XML, lambda old: old.replace(origin=former)))
    here.add("alone")
    out = run("status").out
    assert re.search(r"\nmember .*  rack-7\n", out)
    assert re.search(r"\nformer .*  rack-7, no more\n", out)
    assert re.search(r"\nalone .*  -\n", out)
    assert "\n3 domains on here, in pool rack-7\n" in out


def test_a_pool_that_cannot_be_read_hides_no_domain(run: Callable[..., _Run], here: _Host) -> None:
    here.add("guest")
    (here.directory / "pool.yaml").write_text("nonsense")
    status, out, _ = run("status")
    assert status == 1
    assert re.search(r"\nguest .* yes ", out)
    assert re.search(r"\nNote: .*pool.yaml is not a pool", out)


def test_one_that_goes_meanwhile_is_no_error(run: Callable[..., _Run], here: _Host) -> None:
    gone = here.add("gone")

    def vanish(*_: object) -> None:
        raise FakeError("Domain not found", 42)

    gone.on_read = vanish
    ended = here.add("ended", None, live=_XML)
    ended.state = "SHUTOFF_SHUTDOWN"  # a transient one, between two questions
    here.add("stays")
    assert list(_rows(run("status", "--json"))) == ["stays"]


def test_one_that_cannot_be_read_does_not_hide_the_others(
    run: Callable[..., _Run], here: _Host
) -> None:
    sick = here.add("sick")

    def fail(*_: object) -> None:
        raise FakeError("internal error")

    sick.on_read = fail
    here.add("well")
    answer = run("status")
    assert answer.status == 1
    assert "\nsick: not known: libvirt: internal error\n" in answer.out
    assert re.search(r"\nwell .* yes ", answer.out)


def test_without_kvm_it_lists_them_all_the_same(run: Callable[..., _Run], here: _Host) -> None:
    here.add("guest")
    here.kernel.open_errno = 2
    status, out, _ = run("status")
    assert status == 1
    assert re.search(r"\nguest .* true .* not known ", out)
    assert out.count("/dev/kvm") == 1
    assert "\nNo domain was judged: " in out


def test_each_target_and_each_emulator_is_asked_once(
    run: Callable[..., _Run], here: _Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def machines(emulator: str) -> tuple[str, ...]:
        asked.append(emulator)
        raise QemuError(f"{emulator} hangs")

    here.add("one")
    run("status")
    calls = len(here.kernel.calls)
    for number in range(20):
        here.add(f"another{number}")
    here.kernel.calls.clear()
    assert len(_rows(run("status", "--json"))) == 21
    assert len(here.kernel.calls) == calls
    monkeypatch.setattr(inputs, "machines_here", machines)
    assert run("status").status == 1
    assert asked == [""]


def test_another_host_is_not_asked_here(run: Callable[..., _Run], here: _Host) -> None:
    assert run("status", "-c", "qemu+ssh://far/system") == (
        1,
        "",
        "kvmarm: qemu+ssh://far/system is another host (hint: ask on that host)\n",
    )
    here.libvirt.down = True
    assert run("status").status == 1


def test_names_cannot_command_the_terminal(run: Callable[..., _Run], here: _Host) -> None:
    here.add("\x1b[31m\nforged  running", _FOREIGN)
    here.add("x" * 5000, _XML)
    out = run("status").out
    assert all(line.isprintable() for line in out.splitlines())
    assert max(map(len, out.splitlines())) < 600
    assert "\nforged" not in out


def test_no_domain(run: Callable[..., _Run]) -> None:
    assert run("status") == (0, "0 domains on here\n", "")
    assert json.loads(run("status", "--json").out)["domains"] == []


# -- metrics -------------------------------------------------------------------------------------


class _Sample(NamedTuple):
    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


_NAME = "[a-zA-Z_:][a-zA-Z0-9_:]*"
_PAIR = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"')


def _parse(text: str) -> list[_Sample]:
    """The samples of a text, held to the format: HELP and TYPE once and before a metric's samples,
    which stand together; no sample twice; every line ended.
    """
    samples: list[_Sample] = []
    helped: set[str] = set()
    typed: set[str] = set()
    finished: set[str] = set()
    current = ""
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        comment = re.fullmatch(rf"# (HELP|TYPE) ({_NAME}) (.+)", line)
        if comment:
            kind, name, rest = comment.groups()
            assert name not in finished
            seen = helped if kind == "HELP" else typed
            assert name not in seen
            seen.add(name)
            assert kind == "HELP" or rest == "gauge"
            continue
        found = re.fullmatch(rf"({_NAME})(?:\{{(.*)\}})? (-?\d+)", line)
        assert found, line
        name, inside, value = found.groups()
        if name != current:
            finished.add(current)
            assert name not in finished
            current = name
        assert name in helped & typed
        labels, place = [], 0
        while inside and place < len(inside):
            pair = _PAIR.match(inside, place)
            assert pair, inside
            labels.append((pair[1], _unescaped(pair[2])))
            place = pair.end()
            assert inside[place : place + 1] in ("", ",")
            place += 1
        samples.append(_Sample(name, tuple(labels), float(value)))
    keys = [(sample.name, sample.labels) for sample in samples]
    assert len(set(keys)) == len(keys)
    return samples


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else str(found[1]), text)


def _values(text: str) -> dict[str, float]:
    """By metric and the first label's value."""
    return {
        f"{sample.name}{':' + sample.labels[0][1] if sample.labels else ''}": sample.value
        for sample in _parse(text)
    }


def test_the_metrics(run: Callable[..., _Run], here: _Host) -> None:
    here.add("good", live=_XML)
    here.add("bad", _FOREIGN)
    here.add("plain", _PLAIN)
    marked = here.add("marked")
    marks.mark(marked.uuid, "because")
    status, out, err = run("metrics")
    assert (status, err) == (0, "")
    values = _values(out)
    assert values == {
        f"kvmarm_info:{__version__}": 1,
        "kvmarm_up": 1,
        "kvmarm_marks": 1,
        "kvmarm_domains:true": 2,
        "kvmarm_domains:not_known": 1,
        "kvmarm_domains:renewed": 0,
        "kvmarm_domains:adopted": 0,
        "kvmarm_domains:none": 1,
        "kvmarm_domains:broken": 0,
        "kvmarm_domains_left_out": 0,
        "kvmarm_domain_verdict:good": 1,
        "kvmarm_domain_verdict:bad": 0,
        "kvmarm_domain_verdict:marked": -1,
        "kvmarm_domain_drift:good": 0,
        "kvmarm_domain_drift:bad": values["kvmarm_domain_drift:bad"],
        "kvmarm_domain_starts:good": 1,
        "kvmarm_domain_starts:bad": 0,
    }


def test_labels_are_escaped_and_bounded(run: Callable[..., _Run], here: _Host) -> None:
    evil = 'a"} 1\nkvmarm_up 7\\'
    here.add(evil)
    here.add("\\" * 5000)
    out = run("metrics").out
    samples = [sample for sample in _parse(out) if sample.name == "kvmarm_domain_verdict"]
    assert len(samples) == 2
    names = {dict(sample.labels)["domain"] for sample in samples}
    assert {len(name) for name in names} == {len(evil) + 1, 200}
    assert _values(out)["kvmarm_up"] == 1


def test_many_domains_are_counted_and_not_all_named(
    run: Callable[..., _Run], here: _Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_view, "_MOST", 3)
    for number in range(5):
        here.add(f"guest{number}")
    values = _values(run("metrics").out)
    assert values["kvmarm_domains:true"] == 5
    assert values["kvmarm_domains_left_out"] == 2
    assert sum(name.startswith("kvmarm_domain_verdict:") for name in values) == 3


def test_the_file_is_replaced_for_all_to_read(
    run: Callable[..., _Run], here: _Host, tmp_path: Path
) -> None:
    path = tmp_path / "kvmarm.prom"
    path.write_text("old")
    path.chmod(0o600)
    here.add("guest")
    before = path.stat().st_ino
    assert run("metrics", "-o", str(path)) == (0, "", "")
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.stat().st_ino != before
    assert _values(path.read_text())["kvmarm_domain_verdict:guest"] == 1
    assert [entry.name for entry in tmp_path.iterdir() if "prom" in entry.name] == ["kvmarm.prom"]


def test_what_cannot_be_asked_shows(run: Callable[..., _Run], here: _Host, tmp_path: Path) -> None:
    path = tmp_path / "kvmarm.prom"
    here.add("guest")
    here.kernel.open_errno = 13
    assert run("metrics", "-o", str(path)).status == 1
    values = _values(path.read_text())
    assert (values["kvmarm_up"], values["kvmarm_domain_verdict:guest"]) == (0, -1)
    here.libvirt.down = True
    status, _, err = run("metrics", "-o", str(path))
    assert status == 1
    assert err.startswith("kvmarm: libvirt: Failed to connect socket")
    values = _values(path.read_text())
    assert values["kvmarm_up"] == 0
    assert not any(name.startswith("kvmarm_domain") for name in values)


# -- libvirt's test driver -----------------------------------------------------------------------


def test_the_test_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    libvirt = pytest.importorskip("libvirt")
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(tmp_path / "policy.yaml"))
    monkeypatch.setattr(pool, "DEFAULT_PATH", str(tmp_path / "pool.yaml"))
    kernel = FakeKernel.from_profile(host(_HERE))
    monkeypatch.setattr(device, "System", lambda: System(kernel))
    monkeypatch.setattr(inputs, "machines_here", lambda _emulator: ())
    name = SimpleNamespace(machine="aarch64", nodename="here", release="6.12.0")
    monkeypatch.setattr(os, "uname", lambda: name)
    monkeypatch.setattr(cpus, "find_clusters", list)
    kept = libvirt.open("test:///default")  # all connections share it while one is open
    real = libvirtd.Connection.__init__

    def define(self: libvirtd.Connection, uri: str) -> None:
        real(self, uri)
        self._connection.defineXML(resolver(_HERE).resolve(template("uefi")).decode())

    monkeypatch.setattr(libvirtd.Connection, "__init__", define)
    assert cli.main(["status", "-c", "test:///default", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["domains"]}
    kept.close()
    assert rows["test"]["state"] == "running"
    assert rows["test"]["here"] == "not judged"
    (mine,) = rows.keys() - {"test"}
    assert (rows[mine]["state"], rows[mine]["record"]) == ("shut off", "true")
    assert (rows[mine]["here"], rows[mine]["drift"]["starts"]) == ("yes", True)
