# SPDX-License-Identifier: LGPL-2.1-or-later
"""Renewal: the records of guests that run, after every kind of start, on played kernels and with a
played libvirt.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest

from kvmarm_plugin import rehearse
from kvmarm_plugin.domain import record
from kvmarm_plugin.domain.record import Record
from kvmarm_plugin.domain.restoring import restore
from kvmarm_plugin.domain.xml import parse
from kvmarm_plugin.host import left_alone, libvirt_host_model, libvirtd, marks
from kvmarm_plugin.host.cpus import CpuCluster
from kvmarm_plugin.host.libvirtd import Connection
from kvmarm_plugin.kvm.device import System
from kvmarm_plugin.model import policy
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.target import Target
from kvmarm_plugin.resolve.resolver import Resolver
from kvmarm_plugin.watch import renewal
from kvmarm_plugin.watch.renewal import PATIENCE, SETTLING, Renewer

from ..corpus import GUEST, host, resolver, with_record_1
from .fakekernel import FakeKernel
from .fakelibvirt import FakeDomain, FakeLibvirt

_UUID = "11111111-2222-3333-4444-555555555555"
_OLDER, _NEWER = "trixie-neoverse-n1", "sid-neoverse-n1"
_XML = resolver(_OLDER).resolve(GUEST).decode()


class _Host:
    """This host, with a kernel of sid's, and its renewer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, note: Path) -> None:
        self.note = str(note)
        self.profile = host(_NEWER)
        self.kernel = FakeKernel.from_profile(self.profile)
        self.libvirt = FakeLibvirt()
        self.now = 1000.0
        self.log: list[str] = []
        self.renewer = Renewer(lambda: Connection("test:///played"), self.log.append)
        uname = SimpleNamespace(
            machine="aarch64", nodename="here", release=self.profile.kernel, sysname="Linux"
        )
        monkeypatch.setattr(os, "uname", lambda: uname)
        monkeypatch.setattr(platform, "node", lambda: "here")
        monkeypatch.setattr(renewal, "System", lambda: System(self.kernel))
        monkeypatch.setattr(libvirt_host_model, "PATH", self.note)
        monkeypatch.setattr(renewal, "find_clusters", list)
        monkeypatch.setattr(renewal, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setitem(sys.modules, "libvirt", self.libvirt)

    def guest(self, state: str, xml: str = _XML, persistent: bool = True) -> FakeDomain:
        """A guest in this state, with a mark."""
        domain = FakeDomain(
            "guest",
            _UUID,
            state,
            None if state.startswith("SHUTOFF") else xml,
            xml if persistent else None,
        )
        self.libvirt.domains.append(domain)
        marks.mark(_UUID, "it has started as something else")
        return domain

    def renewed(self, target: Target, arrived: bool) -> Target:
        with System(self.kernel) as system:
            return rehearse.renewed(target, system, arrived)

    def passes(self, seconds: float) -> bool:
        """Look after a while; whether it is to look again."""
        self.now += seconds
        return self.renewer.work()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Host:
    monkeypatch.setattr(marks, "DIRECTORY", str(tmp_path / "run"))
    return _Host(monkeypatch, tmp_path / "lib/libvirt-host-model")


def _record(xml: str | None) -> Record:
    assert xml is not None
    element = record.find(parse(xml.encode()))
    assert element is not None
    return record.read(element)


_RECORDED = _record(_XML).target


def test_this_host_makes_a_difference(here: _Host) -> None:
    """What follows would test nothing if it did not."""
    booted, arrived = (here.renewed(_RECORDED, arrived) for arrived in (False, True))
    assert booted != arrived
    assert _RECORDED not in (booted, arrived)


@pytest.mark.parametrize(
    ("state", "arrived"),
    [("RUNNING_BOOTED", False), ("RUNNING_MIGRATED", True), ("RUNNING_RESTORED", True)],
)
def test_the_live_record_follows_the_start_and_the_stored_one_this_host(
    here: _Host, state: str, arrived: bool
) -> None:
    guest = here.guest(state)
    assert here.renewer.work() is False
    assert _record(guest.live).target == here.renewed(_RECORDED, arrived)
    assert _record(guest.config).target == here.renewed(_RECORDED, arrived=False)
    for xml in (guest.live, guest.config):
        assert _record(xml).origin == _record(_XML).origin.replace(renewed="here")
        assert _record(xml).intent == _record(_XML).intent
        assert xml is not None
        assert b"<cpu mode='host-model'/>" in restore(xml.encode(), parse(xml.encode()))
    assert guest.calls == [("config", record.NAMESPACE), ("live", record.NAMESPACE)]
    assert marks.marked() == ([], [])
    assert here.log == ["guest: its record is true"]


# -- what the policy keeps -------------------------------------------------------------------------


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes this host's policy."""
    path = tmp_path / "policy.yaml"
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(path))

    def write(text: str) -> None:
        path.write_text(text)
        path.chmod(0o644)

    return write


@pytest.mark.parametrize("reaction", ["warn", "refuse"])
def test_the_policy_keeps_what_is_stored_and_not_what_runs(
    here: _Host, says: Callable[[str], None], reaction: str
) -> None:
    says(f"on-drift: {reaction}\n")
    guest = here.guest("RUNNING_BOOTED")  # warned of, or allowed
    assert here.renewer.work() is False
    assert guest.config == _XML
    assert _record(guest.live).target == here.renewed(_RECORDED, arrived=False)
    assert marks.marked() == ([], []), "its next start is compared with what is stored"
    assert here.log == [
        f"guest: its stored record stays as it is: the policy says on-drift: {reaction} (hint: to"
        " record what it has here: kvmarm refresh guest)",
        "guest: its record is true",
    ]


@pytest.mark.parametrize("reaction", ["warn", "refuse"])
def test_the_policy_keeps_the_record_of_a_guest_that_is_off(
    here: _Host, says: Callable[[str], None], reaction: str
) -> None:
    says(f"on-drift: {reaction}\n")
    guest = here.guest("SHUTOFF_SHUTDOWN")
    assert here.renewer.work()
    assert here.passes(11) is False
    assert (guest.config, guest.calls) == (_XML, [])
    assert marks.marked() == ([], [])
    assert "guest: its record is true" not in here.log
    says("on-drift: renew\n")
    marks.mark(_UUID, "it has started as something else")
    assert here.renewer.work()
    assert here.passes(11) is False
    assert _record(guest.config).target == here.renewed(_RECORDED, arrived=False)


@pytest.mark.parametrize("text", ["on-drift: refuse\nsve: maybe\n", "on-drift: [refuse\n"])
def test_a_policy_that_nobody_can_use_keeps_it_too(
    here: _Host, says: Callable[[str], None], text: str
) -> None:
    says(text)
    guest = here.guest("SHUTOFF_SHUTDOWN")
    assert here.renewer.work()
    assert here.passes(11) is False
    assert (guest.config, guest.calls) == (_XML, [])
    assert "its stored record stays as it is: " in here.log[0]
    assert "policy.yaml" in here.log[0]


_SNAPSHOT = """\
<domainsnapshot><name>then</name><state>{}</state><creationTime>{}</creationTime>
<memory snapshot='internal'/><domain type='kvm'/></domainsnapshot>"""
_OLD, _LATER = 1_000_000_000, 9_000_000_000


@pytest.mark.parametrize("state", ["RUNNING_FROM_SNAPSHOT", "PAUSED_FROM_SNAPSHOT"])
@pytest.mark.parametrize(
    ("of", "made", "arrived"),
    [
        ("running", _OLD, True),
        ("paused", _OLD, True),
        ("shutoff", _OLD, False),
        ("running", _LATER, None),  # another one, which was made since
        ("disk-snapshot", _OLD, None),
        ("running", -1, None),
        ("nosuch", _OLD, None),
    ],
)
def test_a_snapshot_says_what_it_holds(
    here: _Host,
    state: str,
    of: str,
    made: int,
    arrived: bool | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libvirtd, "RUNNING", str(tmp_path))
    (tmp_path / "guest.pid").touch()
    guest = here.guest(state)
    guest.snapshot = _SNAPSHOT.format(of, made)
    assert here.renewer.work() is False
    if arrived is None:
        assert (guest.live, marks.marked()) == (_XML, ([_UUID], []))
    else:
        assert _record(guest.live).target == here.renewed(_RECORDED, arrived)
        assert marks.marked() == ([], [])


@pytest.mark.parametrize("option", ["-incoming", "-loadvm", "-daemonize"])
@pytest.mark.parametrize("state", ["RUNNING_BOOTED", "RUNNING_UNPAUSED", "PAUSED_USER"])
def test_qemu_was_started_to_load_state(
    here: _Host, state: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt calls a guest booted that it has rebooted since (virsh reboot), and has forgotten how
    one began that was paused. KVM's registers are what was loaded.
    """
    monkeypatch.setattr(libvirtd, "RUNNING", str(tmp_path))
    monkeypatch.setattr(libvirtd, "PROC", str(tmp_path / "proc"))
    (tmp_path / "guest.pid").write_text("4711\n")
    (tmp_path / "proc/4711").mkdir(parents=True)
    line = ["/usr/bin/qemu-system-aarch64", "-name", "guest=guest", option, "defer", ""]
    (tmp_path / "proc/4711/cmdline").write_text("\0".join(line))
    guest = here.guest(state)
    assert here.renewer.work() is False
    if option == "-daemonize" and state != "RUNNING_BOOTED":
        assert (guest.live, marks.marked()) == (_XML, ([_UUID], []))
    else:
        arrived = option != "-daemonize"
        assert _record(guest.live).target == here.renewed(_RECORDED, arrived)


_UNTOLD = [
    "RUNNING_FROM_SNAPSHOT",
    "RUNNING_UNPAUSED",
    "RUNNING_UNKNOWN",
    "RUNNING_SAVE_CANCELED",
    "RUNNING_MIGRATION_CANCELED",
    "RUNNING_WAKEUP",
    "RUNNING_CRASHED",
    "RUNNING_POSTCOPY_FAILED",
    "PAUSED_USER",
    "PAUSED_FROM_SNAPSHOT",
]


@pytest.mark.parametrize("state", _UNTOLD)
def test_where_libvirt_does_not_say_the_mark_stays(here: _Host, state: str) -> None:
    guest = here.guest(state)
    assert here.renewer.work() is False
    assert guest.live == _XML
    assert _record(guest.config).target == here.renewed(_RECORDED, arrived=False)
    assert marks.marked() == ([_UUID], [])
    assert len(here.log) == 1
    assert here.log[0].startswith("guest: its record may not be true: libvirt does not say")
    here.renewer.again()
    assert here.renewer.work() is False
    assert len(here.log) == 1


@pytest.mark.parametrize("state", _UNTOLD)
def test_where_it_makes_no_difference_libvirt_need_not_say(here: _Host, state: str) -> None:
    xml = resolver(_NEWER).resolve(GUEST).decode()
    guest = here.guest(state, xml)
    assert here.renewer.work() is False
    assert (guest.live, guest.config, guest.calls) == (xml, xml, [])
    assert marks.marked() == ([], [])


@pytest.mark.parametrize("state", ["PAUSED_STARTING_UP", "PAUSED_MIGRATION", "RUNNING_POSTCOPY"])
def test_a_guest_that_is_on_its_way_is_waited_for(here: _Host, state: str) -> None:
    guest = here.guest(state)
    for _ in range(3):
        assert here.passes(1)
        assert guest.calls == []
    guest.state = "RUNNING_BOOTED"
    assert here.passes(1) is False
    assert _record(guest.live).target == here.renewed(_RECORDED, arrived=False)
    assert marks.marked() == ([], [])


def test_a_guest_that_does_not_come_is_given_up_until_somebody_rings(here: _Host) -> None:
    guest = here.guest("PAUSED_STARTING_UP")
    assert here.passes(0)
    assert here.passes(PATIENCE - 1)
    assert here.passes(1) is False
    assert "it did not come to run" in here.log[0]
    guest.state = "RUNNING_BOOTED"
    assert here.passes(1) is False
    assert marks.marked() == ([_UUID], [])
    here.renewer.again()
    assert here.passes(1) is False
    assert marks.marked() == ([], [])


def test_a_guest_that_has_not_started(here: _Host) -> None:
    guest = here.guest("SHUTOFF_FAILED")
    assert here.passes(0)
    assert here.passes(SETTLING - 1)
    assert guest.calls == []
    assert here.passes(1) is False
    assert _record(guest.config).target == here.renewed(_RECORDED, arrived=False)
    assert guest.calls == [("config", record.NAMESPACE)]
    assert marks.marked() == ([], [])


@pytest.mark.parametrize("managed", [True, False])
def test_a_guest_that_was_saved_keeps_its_mark(here: _Host, managed: bool) -> None:
    """What was saved has the record that the mark is about."""
    guest = here.guest("SHUTOFF_SHUTDOWN" if managed else "SHUTOFF_SAVED")
    guest.saved = _XML if managed else None
    assert here.passes(0)
    assert here.passes(SETTLING) is False
    assert _record(guest.config).target == here.renewed(_RECORDED, arrived=False)
    assert marks.marked() == ([_UUID], [])


def test_a_guest_that_was_saved_with_a_mark_stays_unknown(here: _Host) -> None:
    guest = here.guest("RUNNING_RESTORED")
    marks.mark(_UUID, marks.FROM_STATE)
    assert here.renewer.work() is False
    assert guest.live == _XML
    assert marks.marked() == ([_UUID], [])
    guest.state = "RUNNING_BOOTED"
    here.renewer.again()
    assert here.renewer.work() is False
    assert _record(guest.live).target == here.renewed(_RECORDED, arrived=False)
    assert marks.marked() == ([], [])


@pytest.mark.parametrize("by_name", [True, False])
def test_a_new_mark_is_not_taken_away_with_the_old_one(
    here: _Host, monkeypatch: pytest.MonkeyPatch, by_name: bool
) -> None:
    """Somebody starts the guest again as its renewal ends."""
    here.guest("RUNNING_BOOTED")
    renew_live, starts = renewal.renew_live, [lambda: marks.mark(_UUID, "new")]
    if by_name:
        starts = [lambda: marks.mark_by_name("guest", "new")]

    def and_start(*arguments: Any) -> object:
        renewed = renew_live(*arguments)
        while starts:
            starts.pop()()
        return renewed

    monkeypatch.setattr(renewal, "renew_live", and_start)
    assert here.renewer.work()
    assert marks.mark_of(_UUID, "guest")
    assert here.passes(1) is False
    assert marks.marked() == ([], [])


def test_a_guest_that_was_slow_to_start(here: _Host) -> None:
    guest = here.guest("SHUTOFF_SHUTDOWN")
    assert here.passes(0)
    guest.state, guest.live = "RUNNING_BOOTED", _XML
    assert here.passes(SETTLING) is False
    assert _record(guest.live).target == here.renewed(_RECORDED, arrived=False)


def test_a_guest_that_libvirt_does_not_know_any_more(here: _Host) -> None:
    marks.mark(_UUID, "it has started as something else")
    Path(marks.DIRECTORY, "marks/name-gone").touch()
    assert here.passes(0)
    assert here.passes(SETTLING) is False
    assert marks.marked() == ([], [])
    assert here.log == []


def test_a_transient_guest_has_a_live_record_only(here: _Host) -> None:
    guest = here.guest("RUNNING_MIGRATED", persistent=False)
    assert here.renewer.work() is False
    assert guest.calls == [("live", record.NAMESPACE)]
    assert marks.marked() == ([], [])


def test_a_guest_without_a_record_has_nothing_to_renew(here: _Host) -> None:
    guest = here.guest("RUNNING_BOOTED", GUEST.decode())
    assert here.renewer.work() is False
    assert guest.calls == []
    assert marks.marked() == ([], [])


def test_marks_by_name(here: _Host) -> None:
    guest = here.guest("RUNNING_BOOTED")
    marks.unmark(_UUID)
    Path(marks.DIRECTORY, "marks/name-guest").touch()
    assert here.renewer.work() is False
    assert _record(guest.live).target == here.renewed(_RECORDED, arrived=False)
    assert marks.marked() == ([], [])


def test_a_guest_that_is_called_like_the_uuid_of_another(here: _Host) -> None:
    namesake = FakeDomain(_UUID, _UUID.replace("1", "9"), "RUNNING_BOOTED", _XML, _XML)
    here.libvirt.domains.append(namesake)
    guest = here.guest("RUNNING_BOOTED")
    assert here.renewer.work() is False
    assert namesake.calls == []
    assert guest.calls


def test_a_refused_write_is_tried_again(here: _Host) -> None:
    guest = here.guest("RUNNING_BOOTED")
    guest.refuses = 4  # of both writes
    for _ in range(2):
        assert here.passes(1)
        assert guest.calls == []
        assert marks.marked() == ([_UUID], [])
    assert here.passes(1) is False
    assert _record(guest.live).target == here.renewed(_RECORDED, arrived=False)
    assert marks.marked() == ([], [])


def test_a_stored_definition_that_cannot_be_written_leaves_the_live_one(here: _Host) -> None:
    guest = here.guest("RUNNING_BOOTED")
    guest.refuses = 1
    assert here.passes(1)
    assert guest.calls == [("live", record.NAMESPACE)]
    assert marks.marked() == ([_UUID], [])
    assert here.passes(1) is False
    assert marks.marked() == ([], [])


def test_what_libvirt_goes_on_to_refuse_is_given_up(here: _Host) -> None:
    here.guest("RUNNING_BOOTED").refuses = 1000
    assert here.passes(0)
    assert here.passes(PATIENCE) is False
    assert here.log == [
        "guest: its record may not be true: libvirt: Timed out during operation: cannot acquire"
        " state change lock"
    ]
    assert marks.marked() == ([_UUID], [])


def test_a_guest_that_was_started_again_meanwhile(here: _Host) -> None:
    """What was written was of the run before: the mark may be the new one's."""
    guest = here.guest("RUNNING_MIGRATED")

    def restart() -> None:
        guest.run += 1
        guest.state, guest.live, guest.on_write = "RUNNING_BOOTED", _XML, lambda: None

    guest.on_write = restart
    assert here.renewer.work()
    assert marks.marked() == ([_UUID], [])
    assert here.passes(1) is False
    assert _record(guest.live).target == here.renewed(_RECORDED, arrived=False)
    assert marks.marked() == ([], [])


def test_a_guest_that_was_reverted_meanwhile_has_lost_its_record(here: _Host) -> None:
    """libvirt writes once the revert has ended, in place of the snapshot's."""
    guest = here.guest("RUNNING_BOOTED")

    def revert() -> None:
        if len(guest.calls) == 2:
            guest.run += 1
            guest.state = "RUNNING_RESTORED"

    guest.on_write = revert
    assert here.renewer.work()
    assert here.passes(1) is False
    assert marks.mark_of(_UUID) == marks.FROM_STATE
    assert len(guest.calls) == 2


@pytest.mark.parametrize("when", ["on_read", "on_write"])
def test_a_guest_that_is_forgotten_meanwhile_gets_no_record_again(here: _Host, when: str) -> None:
    """Between the reading and the writing of its XML; or `forget`, which is told, is not done with
    it yet.
    """
    guest = here.guest("RUNNING_BOOTED", persistent=False)

    def forget() -> None:
        left_alone.add(guest.uuid)
        setattr(guest, when, lambda: None)
        if when == "on_read":
            domain = libvirtd.Connection("test:///played").domain_by_uuid(guest.uuid)
            domain.set_metadata(record.PREFIX, record.NAMESPACE, None, True)

    setattr(guest, when, forget)
    assert here.renewer.work() is False
    assert guest.live is not None
    assert "kvmarm" not in guest.live
    (said,) = here.log
    assert said.endswith("it is left alone, since it was forgotten or undone meanwhile")


def test_a_record_of_version_1_becomes_one_of_version_2(here: _Host) -> None:
    guest = here.guest("RUNNING_MIGRATED", with_record_1(_XML.encode()).decode())
    assert here.renewer.work() is False
    assert guest.calls == [
        (which, namespace)
        for which in ("config", "live")
        for namespace in (record.NAMESPACE, f"-{record.NAMESPACE_1}")
    ]
    assert _record(guest.live).target == here.renewed(_RECORDED, arrived=True)
    assert guest.live is not None
    assert len(record.find_all(parse(guest.live.encode()))) == 1


def test_an_interrupted_renewal_is_finished(here: _Host) -> None:
    guest = here.guest("RUNNING_MIGRATED", with_record_1(_XML.encode()).decode())
    guest.on_write = lambda: setattr(guest, "refuses", 1)  # of every two
    for _ in range(5):
        here.passes(1)
    guest.on_write = lambda: None
    here.passes(1)
    for xml in (guest.live, guest.config):
        assert xml is not None
        (element,) = record.find_all(parse(xml.encode()))
        assert element.name.startswith(record.NAMESPACE)
    assert marks.marked() == ([], [])


def test_an_edited_guest_is_not_what_is_recorded(here: _Host) -> None:
    edited = _XML.replace("machine='virt-10.0'>hvm", "machine='virt-11.1'>hvm")
    assert edited != _XML
    guest = here.guest("RUNNING_BOOTED", edited)
    assert here.renewer.work() is False
    assert guest.calls == []
    assert marks.marked() == ([_UUID], [])
    assert "machine type was virt-10.0, and is virt-11.1" in here.log[-1]
    assert "kvmarm refresh" in here.log[-1]


def test_a_guest_that_this_host_lays_out_otherwise(here: _Host) -> None:
    """It was recorded where there are fewer addresses."""
    old = host(_OLDER)
    small = old.replace(ipa_bits=40, capabilities={**old.capabilities, "ARM_VM_IPA_SIZE": 40})
    source = GUEST.replace(b"'MiB'>512<", b"'GiB'>600<")
    here.guest("RUNNING_BOOTED", Resolver(small, Policy()).resolve(source).decode())
    assert here.renewer.work() is False
    assert marks.marked() == ([_UUID], [])
    assert "was 40, and is 41" in here.log[0]


def test_a_stored_record_that_cannot_be_renewed_leaves_the_live_one(here: _Host) -> None:
    """The next start says so, or check: only a live record is unknown."""
    guest = here.guest("RUNNING_BOOTED")
    guest.config = _XML.replace("machine='virt-10.0'>hvm", "machine='virt-11.1'>hvm")
    assert here.renewer.work() is False
    assert guest.calls == [("live", record.NAMESPACE)]
    assert marks.marked() == ([], [])
    assert here.log[0].startswith("guest: its stored record stays as it is: its XML was edited")


def test_a_guest_that_roams_unasked(here: _Host, monkeypatch: pytest.MonkeyPatch) -> None:
    midr = _RECORDED.registers["MIDR_EL1"]
    several = [CpuCluster((0,), midr, None), CpuCluster((1,), midr + 16, None)]
    monkeypatch.setattr(renewal, "find_clusters", lambda: several)
    here.guest("RUNNING_BOOTED")
    assert here.renewer.work() is False
    assert marks.marked() == ([_UUID], [])
    assert "its threads would run on CPUs of several kinds" in here.log[-1]


def test_the_day_libvirt_can(here: _Host) -> None:
    """The hook finds a note, and stands aside."""
    guest = here.guest("RUNNING_BOOTED")
    offered = here.libvirt.capabilities.replace(
        "'host-model' supported='no'", "'host-model' supported='yes'"
    )
    here.libvirt.capabilities = offered
    assert here.renewer.work() is False
    assert Path(here.note).read_text() == "14.3.2\n"
    assert guest.calls


def test_a_libvirt_that_does_not_say_what_it_offers(here: _Host) -> None:
    guest = here.guest("RUNNING_BOOTED")
    here.libvirt.capabilities = ""
    assert here.renewer.work() is False
    assert here.log[0].startswith("whether libvirt offers host-model itself is not known: libvirt:")
    assert not Path(here.note).exists()
    assert guest.calls


def test_without_libvirt_it_waits(here: _Host) -> None:
    guest = here.guest("RUNNING_BOOTED")
    here.libvirt.down = True
    assert here.passes(0)
    here.libvirt.down = False
    assert here.passes(1) is False
    assert guest.calls
    marks.mark(_UUID, "again")
    here.libvirt.down = True
    assert here.passes(1)
    assert here.passes(PATIENCE) is False
    assert "Failed to connect socket" in here.log[-1]


def test_without_kvm_it_waits(here: _Host) -> None:
    guest = here.guest("RUNNING_BOOTED")
    here.kernel.open_errno = 24  # EMFILE
    assert here.passes(0)
    here.kernel.open_errno = 0
    assert here.passes(1) is False
    assert guest.calls


def test_ten_guests_that_start_at_once(here: _Host) -> None:
    guests = []
    for number in range(10):
        uuid = f"{number}{_UUID[1:]}"
        guest = FakeDomain(f"guest{number}", uuid, "RUNNING_BOOTED", _XML, _XML)
        guests.append(guest)
        marks.mark(uuid, "it has started as something else")
    here.libvirt.domains += guests
    guests[3].state = "RUNNING_UNPAUSED"
    guests[5].live = _XML.replace("kvmarm:vcpu", "kvmarm:vcpus")
    assert here.renewer.work() is False
    left = [guests[3].uuid, guests[5].uuid]
    assert marks.marked() == (left, [])
    for guest in guests:
        if guest.uuid not in left:
            assert _record(guest.live).target == here.renewed(_RECORDED, arrived=False)
