# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lab hosts made a pool with Ansible:

    run = make_pool((alpha, beta), tmp_path)
    assert run.rc == 0, run.output
    run.plan  # what the baseline is and costs

The hosts need the project's wheel. What a run tells: tests/playbook.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests import playbook

from .host import ADDRESS, Host


def make_pool(
    hosts: Iterable[Host],
    directory: Path,
    *options: str,
    variables: Mapping[str, Any] | None = None,
) -> playbook.Run:
    """Run the playbook on these hosts. The other arguments are those of `playbook.run`."""
    return playbook.run(directory, inventory(hosts), *options, variables=variables)


def inventory(hosts: Iterable[Host]) -> dict[str, dict[str, str]]:
    """Name → variables, with which Ansible uses the lab's own connection to each host."""
    return {
        host.spec.name: {
            "ansible_host": ADDRESS,
            "ansible_user": "root",
            "ansible_ssh_args": shlex.join(host.ssh_options()),
            "ansible_ssh_transfer_method": "piped",  # the image's sshd has no sftp
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        for host in hosts
    }
