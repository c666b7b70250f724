# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hosts that differ in SVE, PAuth and BTI become a pool by doing just what `kvmarm baseline` says,
and guests move both ways.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmarm_plugin.fleet.baseline import Baseline, as_text, baseline
from kvmarm_plugin.fleet.compare import compare
from kvmarm_plugin.fleet.compare_view import as_text as comparison_as_text
from kvmarm_plugin.fleet.plan import BOOT
from kvmarm_plugin.model import profile_json
from kvmarm_plugin.model.policy import Policy
from kvmarm_plugin.model.profile import HostProfile
from kvmarm_plugin.model.profile_json import digest

from .ansible import make_pool
from .guest import Guest, domain_xml
from .host import Host, HostSpec
from .pair import Pair, migrate
from .test_travel import record, ticks_on

ALPHA = HostSpec(name="alpha", cpu="max")
# To KVM and QEMU a host without these: its CPU has them, its kernel does not let on.
BETA = HostSpec(name="beta", cpu="max", append="arm64.nosve arm64.nopauth arm64.nobti")
HOST_MODEL = domain_xml("wanderer", "<cpu mode='host-model'/>", "")


@pytest.mark.slow
def test_two_different_hosts_become_a_pool(wheel: Path, tmp_path: Path) -> None:
    with Pair(ALPHA, BETA) as hosts:
        profiles = [_probe(host, wheel) for host in hosts]
        # A guest as alpha would make it by itself, for what beta says to it.
        hosts[0].run("kvmarm define -", HOST_MODEL)
        beta_profile = profile_json.dumps(profiles[1]).encode()
        hosts[0].put(beta_profile, "/root/beta.json")
        alone = hosts[0].run("kvmarm check --json wanderer --host /root/beta.json", check=False)
    assert alone.rc == 3
    assert json.loads(alone.stdout)["hosts"]["beta"]["verdict"] == "refuses"
    comparison = compare(profiles, Policy())
    print(comparison_as_text(comparison))
    assert [pair.possible for pair in comparison.pairs] == [True, False, True, True], (
        "alpha's guests cannot go to beta"
    )
    assert {finding.kind for finding in comparison.pair(0, 1).blocking} == {"vcpu-unknown"}

    plan = baseline(profiles, "lab")
    print(as_text(plan, explain=False))
    assert plan.pool is None
    assert [(step.action, step.hosts, step.what) for step in plan.plan.steps] == [
        (BOOT, ("alpha",), "arm64.nobti")
    ]

    levelled = HostSpec(name="alpha", cpu="max", append=plan.plan.steps[0].what)
    with Pair(levelled, BETA) as (alpha, beta):
        # The forecast was right: what alpha then gives is what the plan said.
        assert digest(_probe(alpha, wheel)) == digest(_kept(plan, "alpha"))
        beta.install(wheel)
        run = make_pool(
            (alpha, beta), tmp_path, variables={"kvmarm_pool_name": "lab", "kvmarm_serial": 2}
        )
        assert run.rc == 0, run.output
        texts = {host.run("kvmarm resolve -", HOST_MODEL).stdout for host in (alpha, beta)}
        assert len(texts) == 1, "the same domain is another on each member"
        alpha.run("kvmarm define -", HOST_MODEL)
        guest = Guest(alpha, "wanderer").start()
        guest.wait_for("guest: tick 2")
        before = record(guest)
        assert before["origin"]["host"] == "lab"
        migrate(guest, beta)
        ticks_on(guest.on(beta))
        migrate(guest.on(beta), alpha)
        ticks_on(guest)
        assert record(guest) == before
        # And started on beta: what beta makes of the same XML, alpha takes.
        guest.destroy()
        beta.run("kvmarm define -", HOST_MODEL)
        other = Guest(beta, "wanderer").start()
        other.wait_for("guest: tick 2")
        migrate(other, alpha)
        ticks_on(other.on(alpha))


def _probe(host: Host, wheel: Path) -> HostProfile:
    host.install(wheel)
    return profile_json.loads(host.run("kvmarm probe").stdout)


def _kept(plan: Baseline, name: str) -> HostProfile:
    (found,) = (host for host in plan.plan.hosts if host.name == name)
    return found
