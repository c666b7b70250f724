# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hook's door: what hooks/qemu.d/50-kvmarm calls when a guest of ours is about to start, to
arrive or to be restored.

A guest with a record is judged by `arrival` if it comes with state (`migrate`, `restore`), and by
`start` as it starts (`prepare`). A host-model guest without a record is told how to get one; for
every other guest the script does not even import this. libvirt holds the domain's lock meanwhile,
so this runs as `python3 -I -S` and imports only the standard library, and little of it. It never
calls libvirt (which would wait for itself), never logs the XML (which may hold secrets), and prints
nothing else on standard output (which taints the domain).

An exception that leaves this module is the script's to tell, and so is an end by a signal: the
script bounds memory and CPU time. It refuses an arrival with a record and lets the rest pass.
docs/hook-faults.md lists what becomes of which fault.
"""

from __future__ import annotations

import os
import sys

from ..basics.untrusted import domain_word, shown
from .tell import log, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> int:
    """The command kvmarm-hook: the script as it would be installed, for trying by hand and for
    those who place hooks themselves. The Debian package has the script itself in its place.
    """
    from ..basics.errors import KvmarmError
    from .install import script

    try:
        os.execv("/bin/sh", ["sh", "-c", script(), "kvmarm-hook", *sys.argv[1:]])
    except KvmarmError as error:
        print(f"kvmarm-hook: {error}", file=sys.stderr)
        return 1


def answer(name: str, operation: str, xml: bytes, recorded: bool) -> NoReturn:
    """Judge a guest, say what there is to say, and end this process: with status 3 to stop the
    guest, with 0 to let it pass.

    Args:
        name: the domain's.
        operation: libvirt's: "prepare", "migrate" or "restore".
        xml: the domain; of one that is too large only so much that `xml.parse` says so.
        recorded: whether the mark of a record is anywhere in the domain, in `xml` or behind.
            Otherwise it mentions host-model.
    """
    judge = verify if recorded else explain_host_model
    stop = judge(name, operation, xml)
    os._exit(3 if stop else 0)  # nothing is left to write


def explain_host_model(name: str, operation: str, xml: bytes) -> bool:
    """Whether to stop a guest without a record whose XML mentions host-model.

    Unless libvirt here offers host-model, it is about to refuse the guest with a message that helps
    nobody; fail first, with one that does. libvirt shows a hook's standard error only if the hook
    fails (virRunScript, src/util/virhook.c).

    Whether libvirt has a definition of it, nobody can tell here: a guest that was never defined is
    gone after the refusal, so both ways are said.

    Args:
        operation: libvirt's, for the log.
    """
    from ..basics.errors import KvmarmError
    from ..domain.xml import asks_for_host_model, parse
    from ..host.libvirt_host_model import is_noted

    try:
        domain = parse(xml)
        if not asks_for_host_model(domain) or is_noted():
            return False
    except KvmarmError:
        return False  # libvirt wrote this; if it cannot be read, it is libvirt's to complain
    word = domain_word(name, domain.content_of("uuid"))
    message = (
        f"{shown(name)} asks for host-model, which libvirt cannot start on ARM. Make it"
        f" concrete, and start it again: virsh dumpxml --inactive --security-info {word} |"
        " kvmarm define -. If it is not defined: kvmarm create FILE, or virt-install OPTIONS"
        " --print-xml | kvmarm define -"
    )
    say(message)
    log(operation, "ERR", message)
    return True


def verify(name: str, operation: str, xml: bytes) -> bool:
    """Whether to stop a guest with a record.

    Args:
        operation: libvirt's: "prepare", "migrate" or "restore".
    """
    from ..model.policy import for_hook
    from .guest import Guest

    policy = for_hook()
    guest = Guest(name, operation, xml)
    if operation == "prepare":
        from . import start

        return start.stops(guest, policy)
    from . import arrival

    return arrival.stops(guest, policy)
