# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs on a host, beside its agent: defines a domain that asks for host-model, and once more in the
moment in which the agent makes it concrete. `collide.py ROUNDS <XML`, where TITLE is replaced,
prints how often the agent has replaced the second definition unread.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import libvirt  # type: ignore[import-not-found, unused-ignore]

_PATIENCE = 60.0  # seconds
_SETTLED = 3.0  # seconds: beyond those in which the agent takes a definition for a collision


def _until_concrete(domain: Any) -> str:
    """Its definition then."""
    end = time.monotonic() + _PATIENCE
    while True:
        text: str = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        if "<cpu mode='host-model'" not in text:
            return text
        if time.monotonic() > end:
            raise SystemExit("the agent does not make it concrete")
        time.sleep(0.01)


def main(rounds: int) -> None:
    text = sys.stdin.read()
    connection = libvirt.open("qemu:///system")

    def define(title: str) -> Any:
        return connection.defineXML(text.replace("TITLE", title))

    taken = []
    for _ in range(3):
        start = time.monotonic()
        _until_concrete(define("at first"))
        taken.append(time.monotonic() - start)
        time.sleep(_SETTLED)
    lost = 0
    for turn in range(rounds):
        define("first")
        time.sleep(max(taken) * (0.3 + turn / rounds))
        lost += "<title>second</title>" not in _until_concrete(define("second"))
        time.sleep(_SETTLED)
    print(json.dumps({"lost": lost, "taken": taken}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
