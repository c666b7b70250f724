# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs the playbook of the collection in ansible/, as an operator does: ansible-playbook
kvmarm.host_model.pool.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).parent.parent
COLLECTION = PROJECT / "ansible"
PLAYBOOK = "kvmarm.host_model.pool"
LIMIT = 900.0  # seconds; on emulated hosts each of Ansible's modules takes some


class Run(NamedTuple):
    """What ansible-playbook did.

    Attributes:
        recap: the counts of each host: ok, changed, unreachable, failed, skipped, rescued, ignored.
        plan: the lines of the plan; none if there was no plan.
    """

    rc: int
    output: str
    recap: dict[str, dict[str, int]]
    plan: list[str]

    @property
    def changed(self) -> dict[str, int]:
        """How many tasks changed something, on each host."""
        return {host: counts["changed"] for host, counts in self.recap.items()}


def run(
    directory: Path,
    hosts: Mapping[str, Mapping[str, str]],
    *options: str,
    variables: Mapping[str, Any] | None = None,
) -> Run:
    """Run the playbook on the group "kvmarm" of these hosts.

    Args:
        directory: for the inventory, the collection and a `kvmarm` of this source tree for the
            controller; may be used again.
        hosts: name → its variables in the inventory.
        options: of ansible-playbook, such as "--check".
        variables: for --extra-vars.
    """
    inventory = directory / "inventory.json"
    inventory.write_text(json.dumps({"kvmarm": {"hosts": hosts}}))
    done = subprocess.run(
        [
            tool("ansible-playbook"),
            "-i",
            str(inventory),
            "-e",
            json.dumps(variables or {}),
            *options,
            PLAYBOOK,
        ],
        env=environment(directory),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=LIMIT,
    )
    recap = {
        host: {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", counts)}
        for host, counts in re.findall(r"^(\S+) +: (ok=.*)$", done.stdout, re.MULTILINE)
    }
    plan = re.search(
        r"^TASK \[kvmarm.host_model.kvmarm : Show the plan\].*\n.*=> (\{\n(?:.*\n)*?\})$",
        done.stdout,
        re.MULTILINE,
    )
    return Run(done.returncode, done.stdout, recap, json.loads(plan[1])["msg"] if plan else [])


def tool(name: str) -> str:
    """One of Ansible's commands, beside this Python."""
    return str(Path(sys.executable).with_name(name))


def environment(directory: Path) -> dict[str, str]:
    """For Ansible's commands: with the collection and `kvmarm` in place, and nobody's own
    settings.
    """
    collection = directory / "ansible_collections/kvmarm/host_model"
    kvmarm = directory / "bin/kvmarm"
    if not collection.exists():
        collection.parent.mkdir(parents=True)
        collection.symlink_to(COLLECTION)
        kvmarm.parent.mkdir()
        kvmarm.write_text(
            f'#!/bin/sh\nPYTHONPATH={PROJECT} exec {sys.executable} -m kvmarm_plugin "$@"\n'
        )
        kvmarm.chmod(0o755)
        (directory / "ansible.cfg").write_text(
            f"[defaults]\ncollections_path = {directory}\nnocolor = true\npipelining = true\n"
        )
    return {
        "PATH": f"{kvmarm.parent}:{os.environ['PATH']}",
        "HOME": str(directory),
        "LANG": "C.UTF-8",
        "ANSIBLE_CONFIG": str(directory / "ansible.cfg"),
    }
