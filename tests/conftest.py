# SPDX-License-Identifier: LGPL-2.1-or-later
"""Options of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from kvmarm_plugin.host import left_alone, libvirtd, marks, previous

# No test fails for being slow: the machine may be busy.
settings.register_profile("kvmarm", deadline=None)
settings.load_profile("kvmarm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-output",
        action="store_true",
        help="write tests/golden and docs/hook-faults.md anew",
    )
    parser.addoption(
        "--guests",
        choices=("ticker", "linux"),
        default="ticker",
        help=(
            "what runs in the lab's guests when it does not matter what: linux takes ten times as"
            " long to start"
        ),
    )


@pytest.fixture
def regenerate_output(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written rather than compared."""
    return bool(request.config.getoption("--regenerate-output"))


@pytest.fixture(autouse=True)
def run_directory(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """/run/kvmarm and /var/lib/kvmarm of a test, and no guests that libvirt has stored."""
    directory = tmp_path_factory.mktemp("host")
    monkeypatch.setattr(marks, "DIRECTORY", str(directory / "run"))
    monkeypatch.setattr(marks, "STORED", str(directory / "stored"))
    monkeypatch.setattr(marks, "RUNNING", str(directory / "running"))
    monkeypatch.setattr(libvirtd, "RUNNING", str(directory / "running"))
    monkeypatch.setattr(left_alone, "DIRECTORY", str(directory / "lib" / "left"))
    monkeypatch.setattr(previous, "DIRECTORY", str(directory / "lib" / "previous"))
    return directory / "run"
