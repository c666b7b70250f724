# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kvmarm has on this host: policy, pool, profiles, marks, and who keeps records true."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from ..basics.errors import KvmarmError
from ..basics.untrusted import shown
from ..fleet.pool import ANEW, check_member, has_drifted, what_helps
from ..hook import install
from ..host import files, marks
from ..judge.wording import in_short
from ..model import policy, profile_json
from ..model.profile_json import digest
from .host import AS_ROOT, BAD, OK, RENEWAL, START_RENEWAL, UNKNOWN, Line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .host import Host

PROFILES = "/var/lib/kvmarm/profiles"
_MOST_PROFILES = 1000
_DAY = 24 * 3600
_OLD = 90  # days
_AGENT = "kvmarm-agent.service"
_SHOWN = 3  # findings, and names of marked guests


def check_policy(host: Host) -> Iterator[Line]:
    """Whether the policy can be used, by the hook too, and where it is to be can be one."""
    try:
        host.policy()
        install.check_directory(Path(policy.DEFAULT_PATH).parent)
    except KvmarmError as error:
        yield Line(BAD, error.message, error.hint)
        return
    reaction = policy.for_hook(policy.DEFAULT_PATH).on_drift
    yield Line(OK, f"the policy can be used (on-drift: {reaction})")


def check_pool(host: Host) -> Iterator[Line]:
    """Whether this host is still a member of its pool like the others."""
    try:
        pool = host.pool()
    except KvmarmError as error:
        yield Line(BAD, error.message, error.hint)
        return
    if pool is None:
        yield Line(OK, "this host is in no pool")
        return
    name = shown(pool.name, 60)
    profile = host.profile()
    if not profile.clusters:
        yield Line(UNKNOWN, f"whether this host fits into pool {name}: KVM cannot be asked")
        return
    # Ansible's inventory, or whoever probed it, may call a host otherwise than it calls itself.
    is_named, is_known = host.name in pool.members, digest(profile) in pool.members.values()
    findings = check_member(pool, profile)
    if findings:
        said = "; ".join(in_short(findings, _SHOWN, f"pool {name}", "here", helps=False))
        if not is_named and not is_known:
            what = f"this host does not fit into pool {name}"
        elif has_drifted(findings):
            what = f"this host has drifted out of pool {name}"
        else:
            what = f"this host is not ready for pool {name}"
        yield Line(BAD, f"{what}: {said}", what_helps(findings))
    elif is_named:
        yield Line(OK, f"this host is a member of pool {name} like the others")
    elif is_known:
        yield Line(OK, f"this host has the profile of a member of pool {name}")
    else:
        here = shown(host.name, 60)
        yield Line(BAD, f"pool {name} has no member {here}, nor one with its profile", ANEW)


def check_profiles(host: Host) -> Iterator[Line]:
    """Whether the profiles that are kept are what the hosts are."""
    directory = host.path(PROFILES)
    bad = []
    try:
        install.check_directory(directory)
    except KvmarmError as error:
        bad.append(Line(BAD, error.message, error.hint))
    paths = sorted(directory.iterdir())[:_MOST_PROFILES] if directory.is_dir() else []
    paths = [path for path in paths if path.suffix == ".json"]
    bad += [line for path in paths if (line := _outdated(host, path))]
    yield from bad
    if not bad:
        count = f"{len(paths)} profile{'' if len(paths) == 1 else 's'}"
        yield Line(OK, f"{count} in {PROFILES}, none outdated")


def _outdated(host: Host, path: Path) -> Line | None:
    name = shown(path.name, 120)
    try:
        profile = profile_json.loads(files.read_text(str(path)), name)
    except KvmarmError as error:
        return Line(BAD, error.message, error.hint)
    again = f"kvmarm probe -o {shlex.quote(shown(str(path), 400))}"
    if profile.name == host.name:
        now = host.profile()
        qemus = [each.qemu.version if each.qemu else "none" for each in (profile, now)]
        if (profile.kernel, qemus[0]) != (now.kernel, qemus[1]):
            return Line(
                BAD,
                f"{name} is of this host with Linux {shown(profile.kernel, 60)} and QEMU"
                f" {shown(qemus[0], 40)}; it has Linux {shown(now.kernel, 60)} and QEMU"
                f" {shown(qemus[1], 40)}",
                again,
            )
        return None
    days = int((time.time() - path.stat().st_mtime) / _DAY)
    if days <= _OLD:
        return None
    there = shown(profile.name, 60)
    return Line(
        BAD,
        f"{name} was made {days} days ago: kernel and QEMU of {there} may be others now",
        f"make it anew, on {there}: kvmarm probe",
    )


def check_renewal(host: Host) -> Iterator[Line]:
    """Whether somebody hears when the hook tells that a record may not be true."""
    try:
        is_heard = marks.is_heard()
    except OSError as error:
        yield Line(
            UNKNOWN,
            f"cannot ask {marks.DIRECTORY}/{marks.SOCKET}: {error.strerror}",
            AS_ROOT,
        )
        return
    if is_heard:
        yield Line(OK, f"somebody listens at {marks.DIRECTORY}/{marks.SOCKET}")
    else:
        if not host.has_systemd():
            remedy = START_RENEWAL
        elif host.has_unit(RENEWAL):
            remedy = f"systemctl enable --now {RENEWAL}"
        else:
            remedy = "kvmarm hook install, which says where the units are to be"
        yield Line(
            BAD, "nothing corrects the records of guests that do not start as recorded", remedy
        )


def check_agent(host: Host) -> Iterator[Line]:
    """Whether the agent runs, where it is installed."""
    if not host.has_systemd():
        yield Line(
            OK,
            "there is no systemd to run an agent: host-model is resolved by kvmarm define, or by a"
            " kvmarm agent that the host's init starts",
        )
        return
    try:
        answer = host.run(["systemctl", "show", "-p", "LoadState,ActiveState", _AGENT])
    except OSError as error:
        yield Line(UNKNOWN, f"systemd cannot be asked about {_AGENT}: {error.strerror or error}")
        return
    values = dict(line.partition("=")[::2] for line in answer.splitlines())
    if values.get("LoadState") == "not-found":
        yield Line(OK, "no agent is installed: host-model is resolved by kvmarm define")
    elif values.get("LoadState") == "masked":
        yield Line(OK, f"{_AGENT} is masked: host-model is resolved by kvmarm define")
    elif values.get("ActiveState") in ("active", "reloading"):
        yield Line(OK, f"{_AGENT} is active")
    else:
        state = shown(values.get("ActiveState", "unknown"), 40)
        yield Line(BAD, f"{_AGENT} is {state}", f"systemctl enable --now {_AGENT}")


def check_marks(host: Host) -> Iterator[Line]:
    """Guests whose records may not be true."""
    uuids, names = marks.marked()
    known = _names(host) if uuids else {}
    reasons = [
        *(
            (f"{known[uuid]} ({uuid})" if uuid in known else uuid, marks.mark_of(uuid))
            for uuid in uuids
        ),
        *((name, marks.mark_of("", name)) for name in names),
    ]
    for guest, reason in reasons[:_SHOWN]:
        again = reason != marks.FROM_STATE
        yield Line(
            BAD,
            f"the record of {shown(guest, 160)} may not be true: {shown(reason or 'gone', 300)}",
            "kvmarm renew --once" if again else "shut the guest down and start it",
        )
    if len(reasons) > _SHOWN:
        yield Line(
            BAD, f"and {len(reasons) - _SHOWN} more guests have a mark", "kvmarm renew --once"
        )
    if not reasons:
        yield Line(OK, "no guest has a mark")


def _names(host: Host) -> dict[str, str]:
    """The names of the guests that libvirt has, by UUID; none where it does not answer, which
    `check_libvirt` says.
    """
    try:
        with host.connect() as connection:
            return {domain.uuid: shown(domain.name, 80) for domain in connection.domains()}
    except KvmarmError:
        return {}
