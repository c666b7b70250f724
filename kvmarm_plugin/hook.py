# SPDX-License-Identifier: LGPL-2.1-or-later
"""The hook's door: what hooks/qemu.d/50-kvmarm runs when libvirt is about to start a guest.

libvirt holds the domain's lock meanwhile, so this file runs as `python3 -I -S`, imports nothing for guests that are
none of our business, and only modules of the standard library for the others. It never calls libvirt (which would wait
for itself) and never logs the XML (which may hold secrets).
"""

from __future__ import annotations

import sys

_READ_LIMIT = 10 * 1024 * 1024 + 1  # bytes; domain.SIZE_LIMIT, without importing it for every guest


def main() -> int:
    """Exit status for libvirt: 0 lets the guest start.

    Arguments, as libvirt passes them: domain, operation, sub-operation, extra. Standard input: the domain's XML.
    """
    if sys.argv[2:4] != ["prepare", "begin"]:
        return 0
    source = sys.stdin.buffer.read(_READ_LIMIT)
    if b"host-model" not in source:
        return 0
    return _explain_host_model(sys.argv[1], source)


def _explain_host_model(name: str, source: bytes) -> int:
    """libvirt is about to refuse host-model with a message that helps nobody; fail first, with one that does.

    libvirt shows a hook's standard error only if the hook fails (virRunScript, src/util/virhook.c).
    """
    if not __package__:  # run as a file: the package is not on the path
        sys.path.insert(0, __file__.rpartition("/kvmarm_plugin/")[0])
    from kvmarm_plugin.domain import asks_for_host_model, parse
    from kvmarm_plugin.errors import KvmarmError

    try:
        if not asks_for_host_model(parse(source)):
            return 0
    except KvmarmError:
        return 0  # libvirt wrote this; if it cannot be read, it is libvirt's to complain
    sys.stderr.write(
        f"kvmarm: {name} asks for host-model, which libvirt cannot start on ARM. Make it concrete, and start it again: "
        f"virsh dumpxml --inactive --security-info {name} | kvmarm define -\n"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
