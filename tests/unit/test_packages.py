# SPDX-License-Identifier: LGPL-2.1-or-later
"""debian/ says what the rest of the tree says. What the package does on a host: tests/deb."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import kvmarm_plugin
from kvmarm_plugin.hook import install
from kvmarm_plugin.model import policy
from kvmarm_plugin.model.policy import HookPolicy, Policy

_PROJECT = Path(__file__).parents[2]
_DEBIAN = _PROJECT / "debian"
_SCRIPTS = sorted(_DEBIAN.glob("kvmarm.p*"))


def _read(name: str) -> str:
    return (_DEBIAN / name).read_text(encoding="utf-8")


def test_the_version_is_the_packages() -> None:
    assert _read("changelog").startswith(f"kvmarm ({kvmarm_plugin.__version__}) ")


@pytest.mark.parametrize("path", _SCRIPTS, ids=lambda path: path.suffix[1:])
def test_scripts_of_the_package(path: Path) -> None:
    """A shell reads them, and they mean the hook that kvmarm means."""
    text = path.read_text(encoding="utf-8")
    subprocess.run(["sh", "-n", path], check=True)
    assert "\nset -e\n" in text
    assert "\n#DEBHELPER#\n" in text
    assert f"\nhook={install.DIRECTORY / install.NAME}\n" in text
    assert set(re.findall(r"/usr/bin/\S*kvmarm\S*", text)) <= {install.PACKAGED}
    for mark in re.findall(r"'\^(# kvmarm.*?)'", text):
        assert mark.encode() == install._MARK.strip(b"\n")


def test_every_unit_is_installed_and_handled() -> None:
    units = {path.name for path in (_PROJECT / "systemd").iterdir() if path.suffix != ".conf"}
    configuration = (_PROJECT / "setup.cfg").read_text(encoding="utf-8")
    assert set(re.findall(r"systemd/(\S+\.(?:service|socket|timer))", configuration)) == units
    assert set(re.findall(r"^\tdh_installsystemd .*?(\S+)$", _read("rules"), re.MULTILINE)) == units


# -- docs/policy.yaml, from which /etc/kvmarm/policy.yaml is written -------------------------------

_POLICY = _PROJECT / "docs/policy.yaml"


def test_the_example_of_a_policy_is_the_default() -> None:
    assert policy.loads(_POLICY.read_text(encoding="utf-8")) == Policy()
    assert policy.for_hook(str(_POLICY)) == HookPolicy()


def test_every_setting_is_in_it_with_its_default() -> None:
    """Without the # in front of them: what has a default that can be written means that."""
    uncommented = re.sub(r"^#(?! )", "", _POLICY.read_text(encoding="utf-8"), flags=re.MULTILINE)
    settings = re.findall(r"^([\w-]+):", uncommented, re.MULTILINE)
    assert sorted(settings) == sorted(policy._SETTINGS)
    policy.loads(uncommented)  # takes every value
    without = re.sub(r"^sve-max-length:.*", "", uncommented, flags=re.MULTILINE)
    assert policy.loads(without) == Policy()
    fields, odd = policy._for_hook(without)
    assert (HookPolicy(**fields), odd) == (HookPolicy(), 0), "the hook reads every line"
    assert len(fields) == len(policy._OF_THE_HOOK)
