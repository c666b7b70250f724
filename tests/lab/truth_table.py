# SPDX-License-Identifier: LGPL-2.1-or-later
"""The truth table: what kvmarm says of migrations, and what becomes of them. `python3 -m
tests.lab.truth_table [--write] [PAIR…]`

Each pair of hosts is booted, and a guest that kvmarm resolved on one is moved to the other, both
ways. Three answers have to agree:

- hook: of the hook that is installed on the destination, given the domain as `migrate begin` gets
  it;
- check: of `kvmarm check --host` with the destination's profile, on the source;
- really: what happens when the hook is taken away and the guest is migrated. A second guest, the
  register reader, starts paused and moves before its first instruction: what it then prints is what
  a guest sees that came from there.

docs/truth-table.md is written by this (`--write`); test_truth_table.py runs a part of it.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kvmarm_plugin.judge.finding import REFUSES, WRONG
from kvmarm_plugin.registers.overrides import HIDDEN
from kvmarm_plugin.registers.table import fields_of, id_of

from . import guest as guests
from . import machine
from .errors import HostGone, LabError, say
from .guest import HELLO, MIDR, REGISTER_READER, Guest, console_path, domain_xml
from .host import Host, HostSpec, Result
from .pair import Pair, migrate
from .preload import build_library
from .registers import END, parse_registers
from .wheel import build_wheel

WORKS = "works"
NOT_KNOWN = "not known"
HOOK = "/etc/libvirt/hooks/qemu.d/50-kvmarm"
PAGE = Path(__file__).parents[2] / "docs/truth-table.md"
OFF = "sve: off\npauth: off\n"

CLOCK_SECONDS = 10.0  # how long a guest's clock is held against ours
RIGHT_SPEED = (
    0.6,
    1.6,
)  # ticks a second; emulation is slow, and the wrong speeds here are 0.4 and 2.5
MIGRATE_SECONDS = 240.0


@dataclass(frozen=True)
class Wanted:
    """A guest: what its user writes, and the policy that it is resolved with."""

    title: str = "host-model"
    machine: str = "virt"
    policy: str = ""


@dataclass(frozen=True)
class Case:
    """A pair of hosts and the guests to move between them, both ways."""

    name: str
    first: HostSpec
    second: HostSpec
    guests: tuple[Wanted, ...] = (Wanted(),)
    levelled: bool = False  # in a pool of `kvmarm baseline --level`


def _trixie(cpu: str = "neoverse-n1", **more: Any) -> HostSpec:
    return HostSpec(suite="trixie", cpu=cpu, **more)


# In pools of `kvmarm baseline --level`.
LEVELLED = (
    Case(
        "levelled bti",
        _trixie("max"),
        _trixie("max", append="arm64.nobti arm64.nomops"),
        (Wanted("host-model, levelled"),),
        levelled=True,
    ),
    Case(
        "levelled trixie-sid",
        _trixie(),
        HostSpec(suite="sid", cpu="neoverse-n1"),
        (Wanted("host-model, levelled, machine='virt-10.0'", machine="virt-10.0"),),
        levelled=True,
    ),
    Case(
        "levelled v1-n2",
        HostSpec(suite="sid", cpu="neoverse-v1"),
        HostSpec(suite="sid", cpu="neoverse-n2"),
        (Wanted("host-model, levelled"),),
        levelled=True,
    ),
)

CASES = (
    Case(
        "sve-pauth",
        _trixie("max"),
        _trixie("max", append="arm64.nosve arm64.nopauth"),
        (Wanted(), Wanted("host-model, policy sve: off, pauth: off", policy=OFF)),
    ),
    Case("cntfrq", _trixie(), _trixie(cntfrq=25_000_000)),
    Case(
        "trixie-sid",
        _trixie(),
        HostSpec(suite="sid", cpu="neoverse-n1"),
        (Wanted("host-model, machine='virt-10.0'", machine="virt-10.0"), Wanted()),
    ),
    # Linux 6.12 shows guests NV, and 7.2 hides it and takes the hardware's own value.
    *(
        Case(
            f"hidden-{cpu}",
            _trixie(cpu),
            HostSpec(suite="sid", cpu=cpu),
            (Wanted("host-model, machine='virt-10.0'", machine="virt-10.0"),),
        )
        for cpu in ("max", "neoverse-v1")
    ),
    Case("midr", _trixie(), _trixie("neoverse-n1,midr=0x413fd0c1")),
    Case(
        "pmu",
        _trixie(),
        _trixie("neoverse-n1,pmu=off"),
        (Wanted(), Wanted("host-model, policy pmu: off", policy="pmu: off\n")),
    ),
    Case("a57-a72", _trixie("cortex-a57"), _trixie("cortex-a72")),
    Case("bti", _trixie("max"), _trixie("max", append="arm64.nobti")),
    Case(
        "bookworm-trixie",
        HostSpec(suite="bookworm", cpu="neoverse-n1"),
        _trixie(),
        (Wanted("host-model, machine='virt-7.2'", machine="virt-7.2"),),
    ),
    Case(
        "bookworm-sid",
        HostSpec(suite="bookworm", cpu="neoverse-n1"),
        HostSpec(suite="sid", cpu="neoverse-n1"),
        (Wanted("host-model, machine='virt-7.2'", machine="virt-7.2"),),
    ),
    Case("equal", _trixie(), _trixie()),
    *LEVELLED,
    Case(
        "sve-lengths",
        _trixie("max"),
        _trixie("max,sve-max-vq=2"),
        (
            Wanted(),
            Wanted("host-model, policy sve-max-length: 256", policy="sve-max-length: 256\n"),
        ),
    ),
)


@dataclass
class Row:
    """One migration."""

    case: str
    source: str
    destination: str
    guest: str
    hook: str = ""
    check: str = ""
    really: str = ""
    words: str = ""  # why it did not work, in the words of whoever said so
    reasons: str = ""  # check's
    unharmed: str = ""  # "yes" where a refused guest went on at the source, else what it did
    seconds: float = 0.0

    @property
    def agrees(self) -> bool:
        return self.hook == self.check == self.really and self.unharmed in ("", "yes")


class Table:
    """Runs cases, and keeps the rows and the versions of what they ran on."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel
        self.rows: list[Row] = []
        self.versions: dict[str, str] = {}

    def run(self, case: Case) -> list[Row]:
        try:
            rows = self._run(case)
        except HostGone as gone:
            # The host's own kernel may fail: Linux 6.12 was seen to, in perf_ctx_sched_task_cb
            # under a guest with a PMU. That says nothing of the guest, unless it happens again.
            say(f"{case.name}, once more: {gone}")
            rows = self._run(case)
        self.rows += rows
        return rows

    def _run(self, case: Case) -> list[Row]:
        first = HostSpec(**{**case.first.__dict__, "name": "alpha"})
        second = HostSpec(**{**case.second.__dict__, "name": "beta"})
        with Pair(first, second) as hosts:
            return self.run_on(hosts, case)

    def run_on(self, hosts: tuple[Host, Host], case: Case) -> list[Row]:
        """The rows of a case, on its hosts."""
        rows: list[Row] = []
        if case.levelled:
            make_levelled_pool(hosts, self.wheel)
        for host, peer in (hosts, hosts[::-1]):
            self._prepare(host, peer)
        for number, wanted in enumerate(case.guests):
            for row in self._move_both_ways(case, hosts, wanted, number):
                rows.append(row)
                answers = f"{row.hook} / {row.check} / {row.really}"
                say(
                    f"{row.case}: {row.source} to {row.destination}: {answers}"
                    f" ({row.seconds:.0f} s)"
                )
        return rows

    def _prepare(self, host: Host, peer: Host) -> None:
        host.install(self.wheel)
        host.run("kvmarm hook install && kvmarm probe -o /tmp/profile.json")
        profile = host.get("/tmp/profile.json")
        peer.put(profile, "/tmp/peer.json")
        facts = json.loads(profile)
        self.versions[host.spec.suite] = (
            f"Linux {facts['kernel']}, QEMU {facts['qemu']['version']}, libvirt {facts['libvirt']}"
        )

    def _move_both_ways(
        self, case: Case, hosts: tuple[Host, Host], wanted: Wanted, number: int
    ) -> Iterator[Row]:
        ways = (hosts, hosts[::-1])
        guests, problems = {}, {}
        # Their boots take longest: all at once.
        for source, _ in ways:
            # Names of their own: a console's log stays on every host that a guest was on.
            guests[source] = (
                Guest(source, f"linux-{source.spec.name}-{number}"),
                Guest(source, f"reader-{source.spec.name}-{number}"),
            )
            problems[source] = _start(*guests[source], wanted)
        for source, destination in ways:
            row = Row(case.name, describe(source.spec), describe(destination.spec), wanted.title)
            start = time.monotonic()
            if problems[source]:
                # What kvmarm gives has to start where it was made: this row does not agree.
                row.hook, row.check, row.really, row.words = (
                    "not asked",
                    "not asked",
                    "does not start",
                    problems[source],
                )
            else:
                _move(row, *guests[source], destination)
            row.seconds = time.monotonic() - start
            yield row
        for source, _ in ways:
            for host in hosts:
                for guest in guests[source]:
                    guest.on(host).destroy()


def make_levelled_pool(hosts: tuple[Host, Host], wheel: Path) -> None:
    """Give hosts libkvmarm-level, and a pool in which guests are levelled."""
    with TemporaryDirectory() as directory:
        library = build_library(Path(directory))
        for host in hosts:
            host.install(wheel)
            host.put(library, f"/usr/lib/aarch64-linux-gnu/{library.name}", 0o755)
            host.run("kvmarm probe -o /tmp/member.json")
    first, second = hosts
    first.put(second.get("/tmp/member.json"), "/tmp/other.json")
    first.run(
        "mkdir -p /etc/kvmarm && kvmarm baseline --level --accept-errata --name levelled"
        " -o /etc/kvmarm/pool.yaml /tmp/member.json /tmp/other.json"
    )
    second.run("mkdir -p /etc/kvmarm")
    second.put(first.get("/etc/kvmarm/pool.yaml"), "/etc/kvmarm/pool.yaml")


def _start(linux: Guest, reader: Guest, wanted: Wanted) -> str:
    """Resolve and start both guests; the message, if that fails."""
    source = linux.host
    source.put(wanted.policy.encode(), "/tmp/policy.yaml")
    for guest, more in ((linux, {}), (reader, {"kernel": REGISTER_READER})):
        xml = domain_xml(guest.name, "<cpu mode='host-model'/>", "", machine=wanted.machine, **more)  # type: ignore[arg-type]
        defined = source.run("kvmarm define --policy /tmp/policy.yaml -", xml, check=False)
        if defined.rc != 0:
            return defined.stderr.strip()
        source.run(["rm", "-f", console_path(guest.name)])
        started = source.run(
            f"virsh --quiet start {'--paused' if more else ''} {guest.name}", check=False
        )
        if started.rc != 0:
            return started.stderr.strip()
    return ""


def _move(row: Row, linux: Guest, reader: Guest, destination: Host) -> None:
    linux.wait_for(HELLO)
    linux.wait_for("guest: tick [2-9]")
    row.check, row.reasons = ask_check(linux)
    row.hook, said = ask_hook(linux, destination)
    arrived: Result | None = None
    if (row.hook, row.check) != (WORKS, WORKS):
        # The same through libvirt, which asks first and tells its client why. If the guest arrives,
        # that is what becomes of it.
        answer = migrate(linux, destination, check=False, timeout=MIGRATE_SECONDS)
        if answer.rc == 0:
            arrived = answer
        if row.hook != WORKS:
            # libvirt parses the XML before it runs the hook, and refuses what it does not know
            # itself.
            reached = answer.rc != 0 and (
                "kvmarm:" in answer.stderr or "does not support machine type" in answer.stderr
            )
            row.unharmed = (
                _still_running(linux)
                if reached
                else f"the hook's reason did not reach virsh: {answer.stderr.strip()}"
            )
        elif (
            answer.rc != 0
            and linux.on(destination).state() == "absent"
            and "operation failed: job" not in answer.stderr
        ):
            row.hook, said = REFUSES, answer.stderr
    destination.run(f"mv {HOOK} /tmp/hook")
    try:
        result = arrived or migrate(linux, destination, check=False, timeout=MIGRATE_SECONDS)
        row.really, row.words = _really(result, linux, reader, destination)
    finally:
        destination.run(f"mv /tmp/hook {HOOK}")
    if row.really == REFUSES and row.unharmed in ("", "yes"):
        row.unharmed = _still_running(linux)
    row.words = row.words or (said if row.hook != WORKS else "")


def ask_check(guest: Guest) -> tuple[str, str]:
    """The answer of kvmarm check, and its reasons."""
    result = guest.host.run(f"kvmarm check --json --host /tmp/peer.json {guest.name}", check=False)
    if result.rc == 1 and result.stdout:
        return NOT_KNOWN, json.loads(result.stdout)["unknown"]
    if result.rc not in (0, 3):
        raise LabError(f"kvmarm check exited with {result.rc}: {result.stderr}")
    findings = list(_findings(json.loads(result.stdout)))
    severities = [finding["severity"] for finding in findings]
    answer = next((severity for severity in (REFUSES, WRONG) if severity in severities), WORKS)
    if (answer == WORKS) != (result.rc == 0):
        raise LabError(f"kvmarm check exited with {result.rc}, and found {severities}")
    blocking = [
        finding["subject"] for finding in findings if finding["severity"] in (REFUSES, WRONG)
    ]
    return answer, ", ".join(blocking[:4]) + (
        f" and {len(blocking) - 4} more" if len(blocking) > 4 else ""
    )


def _findings(document: Any) -> Iterator[dict[str, str]]:
    """Every finding, wherever it is in the JSON of kvmarm check."""
    if isinstance(document, dict) and "severity" in document and "subject" in document:
        yield document
    elif isinstance(document, (dict, list)):
        for part in document.values() if isinstance(document, dict) else document:
            yield from _findings(part)


def ask_hook(guest: Guest, destination: Host) -> tuple[str, str]:
    """The answer of the hook on the destination, and what it said."""
    xml = guest.host.run(["virsh", "dumpxml", "--migratable", guest.name]).stdout
    result = destination.run(f"{HOOK} {guest.name} migrate begin -", xml, check=False)
    if result.stdout and "<domain" not in result.stdout:
        raise LabError(f"the hook printed: {result.stdout}")
    if result.rc == 0:
        return WORKS, result.stderr
    return (
        next(
            (severity for severity in (REFUSES, WRONG) if f"; {severity}:" in result.stderr),
            "failed",
        ),
        result.stderr,
    )


def _really(result: Result, linux: Guest, reader: Guest, destination: Host) -> tuple[str, str]:
    """What happens without the hook, and in whose words.

    Args:
        result: of migrating `linux`, the guest that ticks.
    """
    answer, words = _ticks_there(result, linux.on(destination))
    if answer != WORKS:
        return answer, words
    record = json.loads(reader.host.run(f"kvmarm show --json {reader.name}").stdout)["target"]
    result = migrate(reader, destination, check=False, timeout=MIGRATE_SECONDS)
    if result.rc != 0:
        return "works, and the paused guest does not", _words(result, reader.on(destination))
    if int(linux.wait_for(MIDR)[1], 16) != int(record["registers"]["MIDR_EL1"], 16):
        return "guest saw otherwise", "MIDR_EL1"
    other = sees_otherwise(reader.on(destination), record)
    return ("guest sees otherwise", other) if other else (WORKS, "")


def really_moves(guest: Guest, destination: Host, options: str = "") -> tuple[str, str]:
    """What happens to a guest that ticks, if it moves without the hook, and in whose words."""
    destination.run(f"mv {HOOK} /tmp/hook")
    try:
        result = migrate(guest, destination, options, check=False, timeout=MIGRATE_SECONDS)
        answer, words = _ticks_there(result, guest.on(destination))
    finally:
        destination.run(f"mv /tmp/hook {HOOK}")
    if answer == REFUSES and (unharmed := _still_running(guest)) != "yes":
        words += f"; at its source it is {unharmed}"
    return answer, words


def _ticks_there(result: Result, moved: Guest) -> tuple[str, str]:
    if result.rc != 0:
        return REFUSES, _words(result, moved)
    speed = _speed(moved)
    if not RIGHT_SPEED[0] < speed < RIGHT_SPEED[1]:
        return WRONG, f"the guest's clock runs at {speed:.2g} of its speed"
    return WORKS, ""


def sees_otherwise(reader: Guest, target: dict[str, Any]) -> str:
    """The registers that a register reader, resumed where it is now, reads with other values than
    it was promised.

    Promised is what KVM said (`registers`) or what a guest saw (`seen`): kernels before CTR_EL0 was
    virtualised show guests the hardware's, in which IDC may be missing. Of PMCR_EL0 the number of
    counters counts: the rest is state, and IMP and IDCODE are gone from newer kernels. Fields that
    kernels have shown by mistake read 0 where they are hidden, as check foretells (field-hidden).
    """
    reader.host.run(["virsh", "resume", reader.name])
    reader.wait_for(rf"(?m)^{END}\r?$")
    read = parse_registers(reader.console())
    pairs = []
    for name in {**target["registers"], **target["seen"]}:
        promised = {
            _compared(name, int(facts[name], 16))
            for facts in (target["registers"], target["seen"])
            if name in facts
        }
        promised |= {_without_hidden(name, value) for value in promised}
        if (generic := _generic(name)) in read:
            pairs.append((name, promised, _compared(name, read[generic])))
    if len(pairs) < 50:
        raise LabError(
            f"the register reader printed {len(read)} registers, and few of those that were"
            " promised"
        )
    return ", ".join(
        f"{name}: promised {' or '.join(map(hex, promised))}, sees {value:#x}"
        for name, promised, value in pairs
        if value not in promised
    )


def _compared(name: str, value: int) -> int:
    if name == "CTR_EL0":
        # Linux hides TminLine, of memory tagging, and lets guests read the hardware's.
        return value & ~(0x3F << 32)
    return value & 0x1F << 11 if name == "PMCR_EL0" else value


def _without_hidden(name: str, value: int) -> int:
    for field in fields_of(name):
        if (name, field.name) in HIDDEN:
            value &= ~((1 << field.msb + 1) - (1 << field.lsb))
    return value


def _generic(name: str) -> str:
    """The register reader's name for a register: by its encoding."""
    reg = id_of(name)
    return (
        f"S{reg >> 14 & 3}_{reg >> 11 & 7}_C{reg >> 7 & 15}_C{reg >> 3 & 15}_{reg & 7}"
        if reg >> 16 == 0x603000000013
        else name
    )


def _speed(guest: Guest) -> float:
    """The guest's seconds in one of ours. A busy machine slows a guest down for a while, a wrong
    clock stays wrong: three tries.
    """
    guest.wait_for(r"guest: tick \d+\r?\n")
    for _ in range(3):
        first, start = guest.ticks(), time.monotonic()
        time.sleep(CLOCK_SECONDS)
        last, end = guest.ticks(), time.monotonic()
        speed = (last - first) / (end - start)
        if RIGHT_SPEED[0] < speed < RIGHT_SPEED[1]:
            break
    return speed


def _still_running(guest: Guest) -> str:
    before, deadline = guest.ticks(), time.monotonic() + 30
    while time.monotonic() < deadline:
        if guest.state() == "running" and guest.ticks() > before + 1:
            return "yes"
        time.sleep(0.5)
    return f"{guest.state()}, at tick {guest.ticks()} as before ({before})"


def _words(result: Result, moved: Guest) -> str:
    """libvirt's message; if it does not tell QEMU's last, that too."""
    said = re.sub(
        r"^error: |\s*$",
        "",
        result.stderr.strip().splitlines()[-1] if result.stderr.strip() else "no message",
    )
    if "qemu-system" in result.stderr:
        lines = [line for line in result.stderr.splitlines() if "qemu-system" in line]
        return re.sub(r"^.*?(?=qemu-system)", "", lines[-1])
    log = moved.host.run(
        "grep -h '^qemu-system\\|qemu-system-aarch64:'"
        f" /var/log/libvirt/qemu/{shlex.quote(moved.name)}.log | tail -n 1",
        check=False,
    )
    return f"{said} / {log.stdout.strip()}" if log.stdout.strip() else said


def describe(spec: HostSpec) -> str:
    cntfrq = f" at {spec.cntfrq / 1e6:g} MHz" if spec.cntfrq else ""
    return f"{spec.suite} {spec.cpu}{cntfrq}{f' + {spec.append}' if spec.append else ''}"


def page(table: Table, seconds: float) -> str:
    """docs/truth-table.md"""
    lines = [
        "# The truth table",
        "",
        "What kvmarm says of live migrations, and what becomes of them: pairs of emulated hosts"
        " with real",
        "libvirt, QEMU and KVM, and a guest that kvmarm resolved on the source. Written by `make",
        "truth-table`; do not edit.",
        "",
        "- **hook** is the answer of the hook on the destination, **check** that of `kvmarm check"
        " --host`",
        "  with its profile.",
        "- **really** is what happened with the hook taken away. *works*: the guest ticks on at the"
        " right",
        "  speed, and a guest that arrived before its first instruction reads in every ID register"
        " what was",
        "  promised. *refuses*: libvirt or QEMU gave up, in the words of the last column.",
        "- Every refused guest was found running on its source afterwards, and ticking.",
        "",
        *(f"- {suite}: {versions}" for suite, versions in sorted(table.versions.items())),
        "",
        (
            "| source | destination | guest | hook | check | really | findings of check; the words"
            " of libvirt, QEMU or the lab |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    for row in table.rows:
        bold = "" if row.agrees else " **(disagree)**"
        lines.append(
            f"| {row.source} | {row.destination} | {row.guest} | {row.hook} | {row.check} |"
            f" {row.really}{bold} | {describe_row(row)} |"
        )
    agree = sum(row.agrees for row in table.rows)
    lines += [
        "",
        (
            f"{len(table.rows)} migrations, {agree} of them as foretold, in {seconds / 60:.0f}"
            " minutes on two cores."
        ),
    ]
    return "\n".join(lines) + "\n"


def describe_row(row: Row) -> str:
    """Why a migration does not work: check's findings, and somebody's words."""
    words = f"“{_cell(row.words)}”" if row.words else ""
    return "; ".join(part for part in (row.reasons, words) if part)


def _cell(text: str) -> str:
    """Text for a table's cell."""
    flat = " ".join(text.replace("|", "/").split())
    return flat if len(flat) <= 300 else flat[:300] + "…"


def main() -> int:
    arguments = sys.argv[1:]
    names = [name for name in arguments if name != "--write"]
    unknown = set(names) - {case.name for case in CASES}
    if unknown:
        print(
            f"no such pair: {', '.join(unknown)}; there are"
            f" {', '.join(case.name for case in CASES)}",
            file=sys.stderr,
        )
        return 2
    guests.usual_kernel = guests.LINUX_KERNEL
    start, failed = time.monotonic(), False
    machine.setup()
    with TemporaryDirectory() as directory:
        table = Table(build_wheel(Path(directory)))
        for case in CASES:
            if not names or case.name in names:
                try:
                    table.run(case)
                except LabError as error:
                    say(f"{case.name}: {error}")
                    failed = True
    text = page(table, time.monotonic() - start)
    if "--write" in arguments:
        # What lives.py has written stays.
        _, heading, lives = PAGE.read_text().partition("\n## ")
        PAGE.write_text(text + heading + lives)
    else:
        print(text)
    return int(failed or not all(row.agrees for row in table.rows))


if __name__ == "__main__":
    sys.exit(main())
