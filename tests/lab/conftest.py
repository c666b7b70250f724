# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the lab's tests share: the project's wheel, and the hosts they run on.

A test that runs on hosts is parametrized with them: `hosts`, a tuple of one HostSpec or of two. All
tests that want the same are run one after the other on the same hosts, so that each kind boots
once.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from . import guest
from .host import Host, HostSpec
from .pair import Pair
from .wheel import build_wheel

Specs = tuple[HostSpec, ...]


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--guests") == "linux":
        guest.usual_kernel = guest.LINUX_KERNEL


def pytest_itemcollected(item: pytest.Item) -> None:
    if _is_ours(item):
        item.add_marker(pytest.mark.lab)


# After pytest's own ordering.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    kinds: dict[Specs, int] = {}
    for item in items:
        kinds.setdefault(_specs(item), len(kinds) + 1)
    # Tests that boot hosts by themselves come before those that share them: two hosts at a time are
    # enough.
    items.sort(key=lambda item: (_is_ours(item), kinds[_specs(item)] if _specs(item) else 0))


def _is_ours(item: pytest.Item) -> bool:
    return Path(__file__).parent in item.path.parents


def _specs(item: pytest.Item) -> Specs:
    """The hosts that a test is parametrized with."""
    callspec = getattr(item, "callspec", None)
    specs: Specs = callspec.params.get("hosts", ()) if callspec else ()
    return specs


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, built once."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def hosts(request: pytest.FixtureRequest, wheel: Path) -> Iterator[tuple[Host, ...]]:
    """The hosts that the test is parametrized with, booted, with the project on them; two have a
    cable between them.
    """
    specs: Specs = request.param
    with ExitStack() as stack:
        booted = (
            stack.enter_context(Pair(*specs))
            if len(specs) == 2
            else (stack.enter_context(Host(specs[0])),)
        )
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda host: host.install(wheel), booted))
        yield booted
