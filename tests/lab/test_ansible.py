# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two equal hosts become a pool with Ansible, over ssh. Where hosts differ or fail:
tests/unit/test_ansible.py.

The tests share the hosts and stand in the order of an operator's day.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmarm_plugin.fleet import pool
from kvmarm_plugin.hook import install as hookfile
from kvmarm_plugin.model import policy
from tests import playbook

from .ansible import inventory, make_pool
from .guest import domain_xml
from .host import Host, HostSpec
from .pair import Pair

INSTALLED = [
    policy.DEFAULT_PATH,
    pool.DEFAULT_PATH,
    str(hookfile.DIRECTORY / hookfile.NAME),
    "/etc/ansible/facts.d/kvmarm.fact",
]
PLAN = "kvmarm: 2 hosts, guests move freely between them"
# Both at once: an emulated host takes seconds for each of Ansible's modules.
VARIABLES = {"kvmarm_policy": {"pmu": False}, "kvmarm_serial": 2}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hosts(wheel: Path) -> Iterator[tuple[Host, Host]]:
    with Pair(HostSpec(name="alpha"), HostSpec(name="beta")) as both:
        for host in both:
            host.install(wheel)
        yield both


def installed(host: Host) -> list[str]:
    return host.run(["ls", "-d", *INSTALLED], check=False).stdout.split()


def test_without_a_host_there_is_no_pool(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    """Of the others nothing is changed."""
    silent = {"ansible_host": "127.0.0.1", "ansible_port": "1", "ansible_ssh_args": "-F none"}
    run = playbook.run(tmp_path, {**inventory(hosts), "silent": silent})
    assert (run.rc != 0, run.plan) == (True, [])
    assert "silent gave no profile" in run.output
    assert run.changed == {"alpha": 0, "beta": 0, "silent": 0}
    assert [installed(host) for host in hosts] == [[], []]


def test_in_check_mode_then_for_real_then_again(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    # What is installed, and the directory of policy and pool.
    for options, files, changed in (
        (["--check"], [], 5),
        ([], sorted(INSTALLED), 5),
        ([], sorted(INSTALLED), 0),
    ):
        run = make_pool(hosts, tmp_path, *options, variables=VARIABLES)
        assert (run.rc, run.plan[:1]) == (0, [PLAN]), run.output
        assert run.changed == {"alpha": changed, "beta": changed}
        assert [sorted(installed(host)) for host in hosts] == [files, files]


def test_members_make_the_same_of_a_guest(hosts: tuple[Host, Host]) -> None:
    one, other = (
        host.run("kvmarm resolve -", domain_xml("guest", "<cpu mode='host-model'/>", "")).stdout
        for host in hosts
    )
    assert one == other
    assert "<pmu state='off'/>" in one


def test_the_profile_is_a_local_fact(hosts: tuple[Host, Host]) -> None:
    assert json.loads(hosts[0].run("/etc/ansible/facts.d/kvmarm.fact").stdout)["name"] == "alpha"
