# SPDX-License-Identifier: LGPL-2.1-or-later
"""The law of checking: on any host, `check` from the host's own profile and `rehearse` on its kernel give the same verdict.

law.py asks both some two thousand questions on each of six hosts, one change to a target at a time. A question that a profile
cannot answer is in EXCEPTIONS, with the reason; registers/rules.py says the same.
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
    ("sid", "neoverse-n1"),
    ("sid", "max"),
)

# (suite, CPU, what was asked) → why a profile cannot know.
EXCEPTIONS: dict[tuple[str, str, str], str] = {}


@pytest.fixture(scope="module", params=HOSTS, ids="-".join)
def answers(request: pytest.FixtureRequest, wheel: Path) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    suite, cpu = request.param
    with Host(HostSpec(suite=suite, cpu=cpu)) as host:
        host.install(wheel)
        host.put(Path(__file__).with_name("law.py"), "/root/law.py")
        yield request.param, json.loads(host.run("python3 /root/law.py", timeout=600).stdout)


def test_check_and_rehearse_agree(answers: tuple[tuple[str, str], dict[str, Any]]) -> None:
    host, result = answers
    differing = [question for question in result["differing"] if (*host, question["what"]) not in EXCEPTIONS]
    print(f"{'-'.join(host)}: {result['asked']} questions in {result['seconds']:.0f} s")
    assert result["asked"] > 500
    assert not differing, "\n".join(
        f"{question['what']}: here {question['limit']}, asked {question['value']}: kernel says {question['kernel']}, check says {question['check']}"
        for question in differing
    )
