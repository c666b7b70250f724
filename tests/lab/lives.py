# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lives of guests: what becomes of a record over months, in minutes. `python3 -m tests.lab.lives
[--write] [PAIR…]`

A guest is resolved and started on one host, and lives: it moves to the other and back, is started
cold there, is saved here and restored there. Then it makes its last hop, of which hook, check and
reality have to agree, as in the truth table. That is asked twice: with `kvmarm renew` at work on
both hosts, and with the hook alone.

The part of docs/truth-table.md about lives is written by this (`--write`); test_lives.py runs two.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Callable

from . import machine
from .errors import LabError, LabTimeout, say
from .guest import Guest, domain_xml
from .host import Host, HostSpec
from .pair import Pair, migrate
from .truth_table import (
    NOT_KNOWN,
    PAGE,
    Row,
    ask_check,
    ask_hook,
    describe,
    describe_row,
    really_moves,
)
from .wheel import build_wheel

HEADING = "## Lives\n"
TO_AND_FRO = "moved there, home and there"
REVERTED = "snapshot, reverted to there"
HOST_MODEL = "<cpu mode='host-model'/>"
RENEWED_SECONDS = 60.0

# libvirt's daemon; a process that has ended is its parent's for a while, and has no command line.
RESTART = (
    "pid=$(cat /run/libvirtd.pid) && kill $pid && while grep -q . /proc/$pid/cmdline 2>/dev/null;"
    " do sleep 0.1; done; /usr/sbin/libvirtd --daemon --listen"
)

SAVED = "/var/lib/libvirt/qemu/save/{}.save"
DISK = "/var/lib/libvirt/images/{}.qcow2"
DISK_XML = (
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
    f"<source file='{DISK}'/><target dev='vda' bus='virtio'/></disk>"
)


_INTRODUCTION = f"""\
What a guest is, changes over its life: it is started cold on a newer kernel, arrives from an older
one, is saved and restored. Each guest was resolved and started on the host that its last hop leads
to, and came to the other one as the column *life* says.

With *renewal* `kvmarm renew` runs on both hosts. With the *hook alone* a record is true where the
last start was an arrival. After a cold start that only the hook saw, `check` on that host says
*{NOT_KNOWN}*; the hook of the next host has nothing to go by but a record that is not true, and its
yes may be false.
"""


@dataclass(frozen=True)
class LifeCase:
    """Two hosts, and the guest that lives on them.

    Attributes:
        home: where the guest is resolved, and where its last hop goes.
        abroad: the host that it comes to meanwhile; it gives more than home.
        machine: that both know.
        not_lived: lives that cannot be lived there, for reasons that kvmarm does not judge; or
            because a guest that has been abroad cannot come home.
    """

    name: str
    home: HostSpec
    abroad: HostSpec
    machine: str
    not_lived: tuple[str, ...] = ()

    @property
    def lives(self) -> tuple[str, ...]:
        """Those that can be lived."""
        return tuple(life for life in LIVES if life not in self.not_lived)


def _on(suite: str, cpu: str = "neoverse-n1", append: str = "") -> HostSpec:
    return HostSpec(suite=suite, cpu=cpu, append=append)


CASES = (
    LifeCase("bti", _on("trixie", "max", "arm64.nobti"), _on("trixie", "max"), "virt-10.0"),
    # QEMU 11.1 does not load what virtio-blk has in a snapshot of 10.0: "Failed to load element of
    # type virtio for virtio".
    LifeCase("trixie-sid", _on("trixie"), _on("sid"), "virt-10.0", (REVERTED,)),
    LifeCase("bookworm-trixie", _on("bookworm"), _on("trixie"), "virt-7.2", (TO_AND_FRO,)),
    LifeCase("bookworm-sid", _on("bookworm"), _on("sid"), "virt-7.2", (TO_AND_FRO,)),
    LifeCase("kernel-later", _on("sid-trixie"), _on("sid"), "virt-11.1"),
)


# -- lives: each takes a running guest at home and gives it back, running abroad -------------------


def moves_there(guest: Guest, abroad: Host) -> Guest:
    """Live, once."""
    migrate(guest, abroad)
    return guest.on(abroad)


def moves_to_and_fro(guest: Guest, abroad: Host) -> Guest:
    """Live: there, home and there again."""
    migrate(guest, abroad)
    migrate(guest.on(abroad), guest.host)
    return moves_there(guest, abroad)


def starts_cold_there(guest: Guest, abroad: Host) -> Guest:
    """Its definition moves, and it boots there, at once."""
    guest.host.run(["virsh", "destroy", guest.name])
    guest.host.run(
        f"virsh migrate --offline --persistent {guest.name} qemu+tcp://{abroad.spec.name}/system"
    )
    return guest.on(abroad).start()


def is_restored_there(guest: Guest, abroad: Host) -> Guest:
    """It is saved to a file, which is restored there."""
    guest.host.run(f"virsh save {guest.name} /tmp/saved.img")
    abroad.put(guest.host.get("/tmp/saved.img"), "/tmp/saved.img")
    abroad.run("virsh restore /tmp/saved.img")
    return guest.on(abroad)


def is_upgraded_while_saved(guest: Guest, abroad: Host) -> Guest:
    """A managed save, over an upgrade: the other host is the upgraded one, and gets both."""
    definition = guest.host.run(f"virsh dumpxml --inactive --security-info {guest.name}").stdout
    guest.host.run(f"virsh managedsave {guest.name}")
    there = guest.on(abroad).define(definition)
    abroad.put(guest.host.get(SAVED.format(guest.name)), SAVED.format(guest.name))
    # libvirt looks for saved guests when it starts.
    abroad.run(f"{RESTART} && until virsh --quiet version >/dev/null 2>&1; do sleep 0.2; done")
    abroad.run(f"virsh start {guest.name}")
    return there


def is_reverted_there(guest: Guest, abroad: Host) -> Guest:
    """A snapshot with its state, taken here and reverted to there."""
    name, home = guest.name, guest.host
    home.run(f"virsh snapshot-create-as {name} then")
    snapshot = home.run(f"virsh snapshot-dumpxml --security-info {name} then").stdout
    definition = home.run(f"virsh dumpxml --inactive --security-info {name}").stdout
    home.run(f"virsh destroy {name}")
    there = guest.on(abroad).define(definition)
    abroad.run("mkdir -p /var/lib/libvirt/images")
    abroad.put(home.get(DISK.format(name)), DISK.format(name))
    abroad.put(snapshot.encode(), "/tmp/snapshot.xml")
    abroad.run(f"virsh snapshot-create --redefine {name} /tmp/snapshot.xml")
    abroad.run(f"virsh snapshot-revert {name} then")
    return there


LIVES: dict[str, Callable[[Guest, Host], Guest]] = {
    "moved there": moves_there,
    TO_AND_FRO: moves_to_and_fro,
    "moved there shut off, started there": starts_cold_there,
    "saved, restored there": is_restored_there,
    "managed save, started there": is_upgraded_while_saved,
    REVERTED: is_reverted_there,
}
COLD = ("moved there shut off, started there",)


class Lives:
    """Runs lives, and keeps the rows."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel
        self.rows: list[tuple[str, bool, Row]] = []  # life, with renewal, row of the last hop

    def run(self, case: LifeCase, lives: tuple[str, ...] = (), renewal: bool = True) -> None:
        """Live these lives, all that can be lived if none is named."""
        home = HostSpec(**{**case.home.__dict__, "name": "alpha"})
        abroad = HostSpec(**{**case.abroad.__dict__, "name": "beta"})
        with Pair(home, abroad) as hosts:
            for host, peer in (hosts, hosts[::-1]):
                host.install(self.wheel)
                host.run("kvmarm hook install && kvmarm probe -o /tmp/profile.json")
                peer.put(host.get("/tmp/profile.json"), "/tmp/peer.json")
                if renewal:
                    host.run("setsid kvmarm renew >/tmp/renew.log 2>&1 </dev/null &")
            for number, life in enumerate(lives or case.lives):
                row = self._live(case, hosts, life, f"life-{number}", renewal)
                self.rows.append((life, renewal, row))
                answers = f"{row.hook} / {row.check} / {row.really}"
                say(f"{case.name}: {life}: {answers} ({row.seconds:.0f} s)")

    def _live(
        self, case: LifeCase, hosts: tuple[Host, Host], life: str, name: str, renewal: bool
    ) -> Row:
        home, abroad = hosts
        row = Row(case.name, describe(abroad.spec), describe(home.spec), life)
        start, guest = time.monotonic(), Guest(home, name)
        has_disk = LIVES[life] is is_reverted_there
        try:
            _start(guest, case.machine, has_disk)
            there = LIVES[life](guest, abroad)
            there.wait_for("guest: tick [2-9]")
            if renewal:
                _wait_until_renewed(there)
            if has_disk:  # with the snapshot it could not migrate
                abroad.run(f"virsh snapshot-delete --metadata {name} then")
            row.check, row.reasons = ask_check(there)
            row.hook, said = ask_hook(there, home)
            row.really, row.words = really_moves(there, home, "--unsafe" if has_disk else "")
            row.words = row.words or ("" if row.hook == row.really else said)
        except LabTimeout:
            raise
        except LabError as error:
            row.hook, row.check, row.really = "not asked", "not asked", "does not come so far"
            row.words = str(error)
            say(f"{case.name}: {life}: {error}")
        finally:
            for host in hosts:
                guest.on(host).destroy()
        row.seconds = time.monotonic() - start
        return row


def as_foretold(life: str, renewal: bool, row: Row) -> bool:
    """Whether hook, check and reality agree. After a cold start that only the hook saw, check must
    say that it does not know, and the hook has nothing but a record that is not true.
    """
    if not renewal and life in COLD and row.really != "works":
        return row.check == NOT_KNOWN
    return row.agrees


def _start(guest: Guest, machine_type: str, has_disk: bool) -> None:
    """Resolve a guest and start it. Only one with a disk can have snapshots."""
    xml = domain_xml(guest.name, HOST_MODEL, "", machine=machine_type)
    if has_disk:
        disk = DISK.format(guest.name)
        guest.host.run(
            f"mkdir -p /var/lib/libvirt/images && qemu-img create -q -f qcow2 {disk} 64M"
        )
        xml = xml.replace("<memballoon", DISK_XML.format(guest.name) + "<memballoon")
    guest.host.run("kvmarm define -", xml)
    guest.start().wait_for("guest: tick [2-9]")


def _wait_until_renewed(guest: Guest) -> None:
    """Until this host has no mark of the guest."""
    uuid = guest.host.run(f"virsh domuuid {guest.name}").stdout.strip()
    deadline = time.monotonic() + RENEWED_SECONDS
    while guest.host.run(f"test -e /run/kvmarm/marks/{uuid}", check=False).rc == 0:
        if time.monotonic() > deadline:
            log = guest.host.run("cat /tmp/renew.log", check=False).stdout
            raise LabTimeout(
                f"the record of {guest.name} is not renewed; kvmarm renew said:\n{log}"
            )
        time.sleep(0.5)


def section(lives: Lives, seconds: float) -> str:
    """The part of docs/truth-table.md about lives."""
    lines = [
        HEADING,
        *_INTRODUCTION.splitlines(),
        "",
        "| last hop: from | home to | life | | hook | check | really |  |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for life, renewal, row in lives.rows:
        bold = "" if as_foretold(life, renewal, row) else " **(disagree)**"
        lines.append(
            f"| {row.source} | {row.destination} | {life} |"
            f" {'renewal' if renewal else 'hook alone'} | {row.hook} | {row.check} |"
            f" {row.really}{bold} | {describe_row(row)} |"
        )
    agree = sum(as_foretold(*row) for row in lives.rows)
    lines += [
        "",
        f"{len(lives.rows)} lives, {agree} of them as foretold, in {seconds / 60:.0f} minutes on"
        " two cores.",
    ]
    return "\n".join(lines) + "\n"


def _runs(names: list[str]) -> Iterator[tuple[LifeCase, tuple[str, ...], bool]]:
    for case in CASES:
        if not names or case.name in names:
            yield case, case.lives, True
            if case.name in ("bti", "trixie-sid"):
                yield case, ("moved there", *COLD), False


def main() -> int:
    arguments = sys.argv[1:]
    names = [name for name in arguments if name != "--write"]
    unknown = set(names) - {case.name for case in CASES}
    if unknown:
        known = ", ".join(case.name for case in CASES)
        print(f"no such pair: {', '.join(unknown)}; there are {known}", file=sys.stderr)
        return 2
    start, failed = time.monotonic(), False
    machine.setup()
    with TemporaryDirectory() as directory:
        lives = Lives(build_wheel(Path(directory)))
        for case, kinds, renewal in _runs(names):
            try:
                lives.run(case, kinds, renewal)
            except LabError as error:
                say(f"{case.name}: {error}")
                failed = True
    text = section(lives, time.monotonic() - start)
    if "--write" in arguments:
        migrations = PAGE.read_text().partition(HEADING)[0]
        PAGE.write_text(f"{migrations.rstrip()}\n\n{text}")
    else:
        print(text)
    return int(failed or not all(as_foretold(*row) for row in lives.rows))


if __name__ == "__main__":
    sys.exit(main())
