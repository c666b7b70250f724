# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the hook leaves under /run/kvmarm: marks stay, tickets and allowances are believed once."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from kvmarm_plugin.basics.errors import KvmarmError
from kvmarm_plugin.host import marks
from kvmarm_plugin.host.marks import Ticket

UUID = "11111111-2222-3333-4444-555555555555"
TICKET = Ticket("migrate", "ab" * 32, ("timer-frequency",))


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(marks, "DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(marks, "STORED", str(tmp_path / "stored"))
    monkeypatch.setattr(marks, "RUNNING", str(tmp_path / "running"))
    (tmp_path / "stored").mkdir()
    return tmp_path / "run"


def _modes(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_mark_stays_until_it_is_taken_away(run: Path) -> None:
    assert marks.marked() == ([], [])
    assert marks.mark_of(UUID) is None
    marks.mark(UUID, "another reason")
    marks.mark(UUID, "started\ncold")
    assert marks.mark_of(UUID) == "started cold"
    assert marks.mark_of(UUID.upper(), "guest") == "started cold"
    assert marks.marked() == ([UUID], [])
    assert [_modes(run), _modes(run / "marks"), _modes(run / "marks" / UUID)] == [
        0o755,
        0o755,
        0o644,
    ]
    marks.unmark(UUID)
    marks.unmark(UUID)
    assert marks.mark_of(UUID) is None


def test_a_guest_whose_uuid_could_not_be_read(run: Path) -> None:
    marks.mark_by_name("guest", "again")
    marks.mark_by_name("guest", "no\nUUID")
    assert marks.marked() == ([], ["guest"])
    assert (run / "marks/name-guest").read_text() == "no UUID\n"
    for name in ("../../etc/x", "a\0b", "x" * 300):
        with pytest.raises(OSError, match=r"File name too long|called so"):
            marks.mark_by_name(name, "why")
    assert marks.marked() == ([], ["guest"])


def test_a_mark_that_was_left_again_is_another_one() -> None:
    stamps = [marks.stamp(UUID, "guest")]
    for _ in range(2):
        marks.mark(UUID, "why")
        stamps.append(marks.stamp(UUID, "guest"))
        marks.mark_by_name("guest", "why")
        stamps.append(marks.stamp(UUID, "guest"))
    assert len({*stamps}) == len(stamps)
    assert marks.stamp(UUID, "guest") == stamps[-1]


def test_a_draft_that_was_left_behind_is_in_nobody_s_way(run: Path) -> None:
    marks.mark(UUID, "why")
    (run / f"marks/.{os.getpid()}").write_text("half of anoth")
    marks.mark(UUID, "now")
    assert marks.mark_of(UUID) == "now"


def test_a_mark_by_name(run: Path) -> None:
    (run / "marks").mkdir(parents=True)
    (run / "marks/name-..").touch()
    assert marks.marked() == ([], [".."])
    assert marks.mark_of(UUID, "..") == "its start was not checked"
    assert marks.mark_of(UUID, "other") is None
    marks.unmark(UUID, "..")
    assert marks.marked() == ([], [])


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_modes_whatever_the_umask(run: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        marks.leave_ticket(UUID, "guest", TICKET)
    finally:
        os.umask(before)
    assert (_modes(run), _modes(run / "arrival")) == (0o755, 0o700)
    assert _modes(run / "arrival" / UUID) == 0o600


@pytest.mark.parametrize("odd", ["", "..", "../../etc/passwd", UUID + "/x", "g" * 36, "\0" * 36])
def test_what_is_no_uuid_is_no_file(odd: str) -> None:
    with pytest.raises(ValueError, match="not a UUID"):
        marks.mark(odd, "why")
    with pytest.raises(ValueError, match="not a UUID"):
        marks.leave_ticket(odd, "guest", TICKET)


def test_a_ticket_is_believed_once(run: Path) -> None:
    marks.leave_ticket(UUID, "guest", TICKET)
    assert marks.take_ticket(UUID, "guest") == TICKET
    assert marks.take_ticket(UUID, "guest") is None
    assert [*(run / "arrival").iterdir()] == []


def test_an_old_ticket_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    for operation, seconds in (("migrate", 600), ("restore", 60)):
        for later, believed in ((seconds - 1, True), (seconds + 1, False)):
            monkeypatch.setattr(marks, "_now", lambda: now)
            marks.leave_ticket(UUID, "guest", TICKET.replace(operation=operation))
            monkeypatch.setattr(marks, "_now", lambda later=later: now + later)
            assert (marks.take_ticket(UUID, "guest") is not None) is believed
    marks.leave_ticket(UUID, "guest", TICKET)  # left in what will be the future
    monkeypatch.setattr(marks, "_now", lambda: now)
    assert marks.take_ticket(UUID, "guest") is None


@pytest.mark.parametrize("text", ["", "migrate", "migrate abc soon", "\xff" * 5000, "a b nan c"])
def test_a_forged_ticket_is_not_believed(run: Path, text: str) -> None:
    (run / "arrival").mkdir(parents=True)
    (run / "arrival" / UUID).write_text(text)
    assert marks.take_ticket(UUID, "guest") is None
    assert not (run / "arrival" / UUID).exists()


def test_a_link_is_no_ticket(run: Path, tmp_path: Path) -> None:
    marks.leave_ticket(UUID, "guest", TICKET)
    (run / "arrival" / UUID).rename(tmp_path / "elsewhere")
    (run / "arrival" / UUID).symlink_to(tmp_path / "elsewhere")
    assert marks.take_ticket(UUID, "guest") is None


def test_a_guest_that_runs_here_is_not_on_its_way(tmp_path: Path) -> None:
    (tmp_path / "running").mkdir()
    (tmp_path / "running/guest.xml").touch()
    marks.leave_ticket(UUID, "guest", TICKET)
    assert marks.take_ticket(UUID, "guest") is None
    marks.leave_ticket(UUID, "another", TICKET)
    assert marks.take_ticket(UUID, "another") == TICKET


def test_a_definition_stored_since_means_that_nothing_arrived(tmp_path: Path) -> None:
    stored = tmp_path / "stored/guest.xml"
    stored.touch()
    time.sleep(0.02)  # the kernel's clock for files ticks every few milliseconds
    marks.leave_ticket(UUID, "guest", TICKET)
    assert marks.take_ticket(UUID, "guest") == TICKET
    marks.leave_ticket(UUID, "guest", TICKET)
    time.sleep(0.02)
    stored.touch()
    assert marks.take_ticket(UUID, "guest") is None


@pytest.mark.parametrize("by", ["guest", UUID])
def test_a_guest_is_allowed_once(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not marks.take_allowance(UUID, "guest")
    marks.allow(by)
    assert not marks.take_allowance("22222222-2222-3333-4444-555555555555", "other")
    assert marks.take_allowance(UUID, "guest")
    assert not marks.take_allowance(UUID, "guest")
    marks.allow(by)
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    monkeypatch.setattr(marks, "_now", lambda: now + marks.ALLOWANCE_SECONDS + 1)
    assert not marks.take_allowance(UUID, "guest")


@pytest.mark.parametrize("odd", ["", "a/b", "a\0b"])
def test_who_cannot_be_allowed(odd: str) -> None:
    with pytest.raises(KvmarmError, match="no guest can be called"):
        marks.allow(odd)


def test_nothing_can_be_written(run: Path) -> None:
    run.write_text("a file")
    with pytest.raises(OSError, match="Not a directory"):
        marks.mark(UUID, "why")
    with pytest.raises(KvmarmError, match="cannot write"):
        marks.allow("guest")
    assert marks.take_ticket(UUID, "guest") is None
    assert not marks.take_allowance(UUID, "guest")
    assert not marks.ring(UUID)
