# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the lab's tests share: the project's wheel, and the mark that says they boot hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from .wheel import build_wheel


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.lab)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, built once."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))
