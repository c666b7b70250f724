# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvmarm on a laptop: installed with pip into a virtualenv that has neither libvirt's binding nor
anything else of the distribution's. Whatever needs no host works there, without /dev/kvm. pip
fetches lxml and PyYAML.
"""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path
from typing import Callable

import pytest

from ..corpus import GUEST
from ..lab.wheel import build_wheel

pytestmark = pytest.mark.slow

_HOSTS = Path(__file__).parents[1] / "hosts"
_HERE = str(_HOSTS / "trixie-max.json")
_THERE = str(_HOSTS / "trixie-neoverse-n1.json")

Kvmarm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("laptop")
    venv.create(directory / "venv", with_pip=True)
    wheels = directory / "wheels"
    wheels.mkdir()
    wheel = build_wheel(wheels)
    pip = [str(directory / "venv/bin/pip"), "install", "--quiet", str(wheel)]
    done = subprocess.run(pip, env=_clean(), capture_output=True, text=True)
    if "No matching distribution" in done.stderr or "Could not fetch" in done.stderr:
        pytest.skip(f"pip cannot fetch what kvmarm needs: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return directory / "venv"


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture
def kvmarm(environment: Path, tmp_path: Path) -> Kvmarm:
    (tmp_path / "guest.xml").write_bytes(GUEST)

    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [environment / "bin/kvmarm", *arguments],
            cwd=tmp_path,
            env=_clean(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    return run


def test_a_guest_for_a_host_that_is_elsewhere(kvmarm: Kvmarm, tmp_path: Path) -> None:
    concrete = kvmarm("resolve", "guest.xml", "--host", _HERE).stdout
    assert "host-model" not in concrete.partition("<metadata>")[0]
    (tmp_path / "concrete.xml").write_text(concrete)
    assert "GENERIC_V8" in kvmarm("show", "concrete.xml").stdout
    kvmarm("check", "concrete.xml", "--host", _HERE)
    said = kvmarm("check", "concrete.xml", "--host", _THERE, status=3).stdout
    assert said.startswith("guest on trixie-neoverse-n1: no\n")
    assert kvmarm("resolve", "--restore-intent", "concrete.xml").stdout == GUEST.decode()


def test_many_hosts(kvmarm: Kvmarm, tmp_path: Path) -> None:
    assert kvmarm("compare", _HERE, _THERE, status=3).stdout.startswith("2 hosts of 2 kinds")
    assert "graviton4" in kvmarm("compare", "graviton3@6.1", "graviton4@6.18", status=3).stdout
    one = (_HOSTS / "trixie-cortex-a57.json").read_text()
    hosts = {name: json.dumps({**json.loads(one), "name": name}) for name in ("alpha", "beta")}
    for name, profile in hosts.items():
        (tmp_path / f"{name}.json").write_text(profile)
    kvmarm("baseline", "-o", "pool.yaml", "--name", "rack", "alpha.json", "beta.json")
    kvmarm("check", "pool.yaml", "--host", "alpha.json")
    kvmarm("resolve", "guest.xml", "--host", "alpha.json", "--pool", "pool.yaml")


def test_a_dump_of_somebody_elses(kvmarm: Kvmarm, tmp_path: Path) -> None:
    (tmp_path / "dump.txt").write_text("MIDR_EL1 0x410fd0c1\nID_AA64PFR0_EL1 0x1100000011111112\n")
    assert "unknown" in kvmarm("import", "dump.txt").stdout


def test_what_needs_libvirt_says_so(kvmarm: Kvmarm) -> None:
    assert "install python3-libvirt" in kvmarm("show", "guest", status=1).stderr


def test_it_is_no_place_for_libvirts_hook(kvmarm: Kvmarm, environment: Path) -> None:
    """A virtualenv that another user made. One of root's is named: test_hookfile.py."""
    if os.geteuid() == 0:
        os.chown(environment, 65534, 65534)
    said = kvmarm("hook", "install", status=1).stderr
    assert f"this kvmarm is a user's, in the virtualenv {environment}: " in said
    assert "install it as a package" in said
