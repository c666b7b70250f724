# SPDX-License-Identifier: LGPL-2.1-or-later
"""AppArmor and SELinux: whether they let libvirt's daemon run the hook, and QEMU load
libkvmarm-level.
"""

from __future__ import annotations

import os
import re
import shlex
from contextlib import suppress

from ..basics.untrusted import shown
from ..domain.levelling import LIBRARY
from ..hook import install
from ..hook.confined import AS_FILE, AS_LINK, selinux_denies
from ..host import level_library
from ..host.daemons import DAEMONS
from ..host.selinux import SELinux
from .host import AS_ROOT, BAD, NOT_THERE, OK, UNKNOWN, Line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .host import Host

_PROFILES = "/sys/kernel/security/apparmor/profiles"
_ENABLED = "/sys/module/apparmor/parameters/enabled"
_RULES = "/etc/apparmor.d"
_LOCAL = "/etc/apparmor.d/local"

# preload/rpm of the sources.
_NOATSECURE = "install kvmarm-level-selinux"

# A rule for files of apparmor.d(5): "/usr/bin/* PUx,".
_RULE = re.compile(
    r"\s*(?:audit\s+)?(?P<deny>deny\s+)?(?:file\s+)?(?:owner\s+)?"
    r"(?P<path>\"[^\"]+\"|[/][^\s\"]*)\s+(?P<rights>[a-zA-Z]+)\s*(?:->[^,]*)?,\s*(?:#.*)?"
)


def check_apparmor(host: Host) -> Iterator[Line]:
    """Whether the profile of a daemon lets it run the hook and its interpreter."""
    try:
        if host.text(_ENABLED).strip() != "Y":
            yield Line(OK, "AppArmor is off")
            return
    except FileNotFoundError:
        yield Line(OK, "this kernel has no AppArmor")
        return
    try:
        loaded = host.text(_PROFILES)
    except FileNotFoundError:
        where = _PROFILES.partition("/apparmor")[0]
        yield Line(UNKNOWN, f"{_PROFILES} is not there", f"mount -t securityfs securityfs {where}")
        return
    except OSError as error:
        yield Line(UNKNOWN, f"cannot read {_PROFILES}: {error.strerror}", AS_ROOT)
        return
    enforced = [name for name in DAEMONS if re.search(rf"^{name} \(enforce\)$", loaded, re.M)]
    for name in enforced:
        yield from _confined(host, name)
    if not enforced:
        yield Line(OK, "AppArmor confines no libvirt daemon")


def _confined(host: Host, daemon: str) -> Iterator[Line]:
    file = f"usr.sbin.{daemon}"
    try:
        rules = host.text(f"{_RULES}/{file}")
    except OSError as error:
        yield Line(
            UNKNOWN, f"AppArmor confines {daemon}; cannot read {_RULES}/{file}: {error.strerror}"
        )
        return
    with suppress(FileNotFoundError):
        rules += host.text(f"{_LOCAL}/{file}")
    hook = host.path(str(install.DIRECTORY / install.NAME))
    # Rules are about what links lead to.
    programs = (hook, host.path(install.interpreter()))
    paths = [_as_host_has_it(host, os.path.realpath(program)) for program in programs]
    denied = [path for path in paths if not may_run(rules, path)]
    if not denied:
        yield Line(OK, f"AppArmor confines {daemon}, and lets it run the hook")
    for path in denied:
        rule = shlex.quote(f"  {path} PUx,")
        yield Line(
            BAD,
            f"AppArmor does not let {daemon} run {shown(path, 200)}, and so the hook",
            f"echo {rule} >> {_LOCAL}/{file} && apparmor_parser -r {_RULES}/{file}",
        )


def _as_host_has_it(host: Host, path: str) -> str:
    root = str(host.root.resolve()).rstrip("/")
    return path[len(root) :] if path.startswith(f"{root}/") else path


def may_run(rules: str, path: str) -> bool:
    """Whether a profile lets a program be run, as far as its own rules tell: those of abstractions
    that it includes, and with variables, are not looked at.

    Args:
        rules: the text of the profile.
        path: of the program, without links.
    """
    depth, allowed = 0, False
    for line in rules.splitlines():
        text = line.split("#")[0].rstrip() if "#" in line else line.rstrip()
        if text.endswith("{"):
            depth += 1
        elif text.strip() == "}":
            depth -= 1
        rule = _RULE.fullmatch(text) if depth <= 1 else None  # deeper ones are of child profiles
        if rule and "x" in rule["rights"].lower() and _pattern(rule["path"]).fullmatch(path):
            if rule["deny"]:
                return False
            allowed = True
    return allowed


def _pattern(glob: str) -> re.Pattern[str]:
    """A pattern of apparmor.d(5) as a regular expression."""
    parts = re.split(r"(\*\*|\*|\?|\[[^\]]*\]|[{},])", glob.strip('"'))
    words = {"**": ".*", "*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|"}
    text = "".join(
        words[part] if part in words else part if part.startswith("[") else re.escape(part)
        for part in parts
    )
    try:
        return re.compile(text)
    except re.error:
        return re.compile(r"(?!)")


def check_selinux(host: Host) -> Iterator[Line]:
    """Whether SELinux lets a daemon run the hook, and the hook do what it has to."""
    selinux = SELinux(host.root)
    if not selinux.enforces():
        yield Line(OK, "SELinux is off, or does not enforce")
        return
    hook = str(install.DIRECTORY / install.NAME)
    try:
        label = selinux.label(hook)
    except OSError as error:
        if error.errno not in NOT_THERE:
            raise
        yield Line(OK, "SELinux enforces; there is no hook to run")
        return
    linked = host.path(hook).is_symlink()
    remedy = AS_LINK.format(install.PACKAGED) if linked else AS_FILE
    denied = selinux_denies(selinux, label, install.interpreter(), remedy)
    for what, remedy in denied:
        yield Line(BAD, what, remedy)
    if not denied:
        yield Line(OK, "SELinux enforces, and lets libvirt run the hook")


def check_library(host: Host) -> Iterator[Line]:
    """Whether libkvmarm-level is here, and SELinux lets QEMU load it."""
    version = level_library.installed_version()
    if not version:
        yield Line(OK, f"{LIBRARY} is not installed, and levelled guests do not start here")
        return
    selinux = SELinux(host.root)
    daemons = selinux.securing_qemu() if selinux.enforces() else []
    for daemon in daemons:
        yield Line(
            BAD,
            f"SELinux has {daemon} run QEMU under secure execution, where {LIBRARY} is not loaded",
            _NOATSECURE,
        )
    if not daemons:
        yield Line(OK, f"{LIBRARY} is installed, and reads version {version} of its text")
