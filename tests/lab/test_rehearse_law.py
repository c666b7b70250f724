# SPDX-License-Identifier: LGPL-2.1-or-later
"""The law of checking: on any host, `check` from the host's own profile and `rehearse` on its
kernel give the same verdict.

law.py asks both some thousands of questions on each host, one change to a target at a time. It
leaves out fields that KVM hides (registers/overrides.py): what the hardware has there is known by
what an older kernel of the same CPU showed, which test_truth_table.py has.
"""

from __future__ import annotations

import json
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


QUICK = ("trixie", "max")


@pytest.mark.parametrize(
    "hosts",
    [
        pytest.param(
            # Named as in test_one_host.py, and so shared with it.
            (HostSpec(suite, cpu, name=f"{suite}-{cpu.partition(',')[0]}"),),
            id=f"{suite}-{cpu}",
            marks=() if (suite, cpu) == QUICK else pytest.mark.slow,
        )
        for suite, cpu in HOSTS
    ],
    indirect=True,
)
def test_check_and_rehearse_agree(hosts: tuple[Host]) -> None:
    (host,) = hosts
    host.put(Path(__file__).with_name("law.py"), "/root/law.py")
    result: dict[str, Any] = json.loads(host.run("python3 /root/law.py", timeout=600).stdout)
    print(f"{host.spec.name}: {result['asked']} questions in {result['seconds']:.0f} s")
    assert result["asked"] > 500
    assert not result["differing"], "\n".join(
        f"{question['what']}: here {question['limit']}, asked {question['value']}: "
        f"kernel says {question['kernel']}, check says {question['check']}"
        for question in result["differing"]
    )
