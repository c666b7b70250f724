# SPDX-License-Identifier: LGPL-2.1-or-later
"""What many domains have in common: to read and judge a thousand of a kind is to do it once."""

from __future__ import annotations

import re

# As libvirt writes them (virDomainDefFormatInternalSetRootName).
_NAMES = re.compile(rb"(<domain [^>]*>)\n  <name>[^<]*</name>\n  <uuid>[^<]*</uuid>\n")
_METADATA = b"\n  </metadata>\n"
_DEVICES = b"\n  <devices>\n", b"\n  </devices>\n"
_EMULATOR = re.compile(rb"\n    <emulator>[^<]*</emulator>\n")


def likeness(document: bytes) -> bytes:
    """A domain's XML without its name, its UUID and its devices but the emulator. Nothing that is
    recorded or judged rests on these: two domains of one likeness have the same record, and the
    same verdict on a host.

    A document that is not written as libvirt writes it is returned as it is. Only metadata, which
    come before the devices, may hold what looks like them and is something else.
    """
    names = _NAMES.match(document)
    start = document.find(_DEVICES[0], max(0, document.rfind(_METADATA)))
    end = document.rfind(_DEVICES[1])
    if names is None or not 0 < start < end:
        return document
    emulator = _EMULATOR.search(document, start, end + 1)
    return b"".join(
        (
            names[1],
            document[names.end() : start],
            emulator[0] if emulator else b"",
            document[end:],
        )
    )
