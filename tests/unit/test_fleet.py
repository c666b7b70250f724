# SPDX-License-Identifier: LGPL-2.1-or-later
"""The made-up fleet of tests/fleet.py: as true as the profiles that it is made from."""

from __future__ import annotations

import json

import jsonschema

from kvmarm_plugin.fleet.kinds import kinds_of
from kvmarm_plugin.model import profile_json
from tests.corpus import TESTS
from tests.fleet import fleet


def test_a_fleet_is_the_same_each_time() -> None:
    assert fleet(50) == fleet(50)
    assert fleet(50) != fleet(50, seed=1)


def test_a_fleet_is_hosts_of_some_dozens_of_kinds() -> None:
    hosts = fleet(2000)
    assert len({here.name for here in hosts}) == len(hosts) == 2000
    kinds = kinds_of(hosts)
    assert 40 <= len(kinds) <= 150
    largest = sorted((len(kind.hosts) for kind in kinds), reverse=True)
    assert sum(largest[:10]) > 1000
    schema = json.loads((TESTS.parent / "docs" / "profile.schema.json").read_text(encoding="utf-8"))
    for kind in kinds:
        text = profile_json.dumps(kind.host)
        assert profile_json.loads(text) == kind.host
        jsonschema.validate(json.loads(text), schema)
