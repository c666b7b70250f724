# SPDX-License-Identifier: LGPL-2.1-or-later
"""The law of checking: on any host, `check` from the host's own profile and `rehearse` on its kernel give the same verdict.

law.py asks both some thousands of questions on each host, one change to a target at a time. What a profile cannot know (the
docstring of registers/rules.py) does not come up here: the emulated CPUs have neither MPAM nor MTE nor nested virtualisation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .host import Host, HostSpec

HOSTS = (
    ("bookworm", "cortex-a57"),
    ("bookworm", "neoverse-n1"),
    ("trixie", "neoverse-n1"),
    ("trixie", "max"),
    ("trixie", "a64fx"),  # no AArch32
    ("trixie", "neoverse-n1,pmu=off"),
    ("sid", "neoverse-n1"),
    ("sid", "max"),
)


@pytest.fixture(scope="module", params=HOSTS, ids="-".join)
def answers(request: pytest.FixtureRequest, wheel: Path) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    suite, cpu = request.param
    with Host(HostSpec(suite=suite, cpu=cpu)) as host:
        host.install(wheel)
        host.put(Path(__file__).with_name("law.py"), "/root/law.py")
        yield request.param, json.loads(host.run("python3 /root/law.py", timeout=600).stdout)


def test_check_and_rehearse_agree(answers: tuple[tuple[str, str], dict[str, Any]]) -> None:
    host, result = answers
    print(f"{'-'.join(host)}: {result['asked']} questions in {result['seconds']:.0f} s")
    assert result["asked"] > 500
    assert not result["differing"], "\n".join(
        f"{question['what']}: here {question['limit']}, asked {question['value']}: "
        f"kernel says {question['kernel']}, check says {question['check']}"
        for question in result["differing"]
    )
