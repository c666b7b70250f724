# SPDX-License-Identifier: LGPL-2.1-or-later
"""Graphviz, which draws graphs."""

from __future__ import annotations

import subprocess

from ..basics.errors import KvmarmError


def svg(dot: str) -> bytes:
    """The picture of a graph in Graphviz's language, as SVG.

    Raises:
        KvmarmError: Graphviz is not installed, or cannot draw it.
    """
    try:
        process = subprocess.run(
            ["dot", "-Tsvg"], input=dot.encode("utf-8", "replace"), capture_output=True
        )
    except OSError as error:
        raise KvmarmError(
            f"cannot draw with Graphviz's dot: {error.strerror}",
            "install graphviz, or draw the output of --dot elsewhere",
        ) from None
    if process.returncode != 0:
        why = process.stderr.decode(errors="replace").strip().splitlines() or [
            f"exit status {process.returncode}"
        ]
        raise KvmarmError(
            f"Graphviz's dot cannot draw the graph: {why[0]}", "draw the output of --dot elsewhere"
        )
    return process.stdout
