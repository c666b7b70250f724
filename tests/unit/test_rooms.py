# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rooms of the package: what each may import. Deferred imports count, too."""

from __future__ import annotations

import ast
from pathlib import Path

import kvmarm_plugin

_PACKAGE = Path(kvmarm_plugin.__file__).parent

# From the top down; those of one floor know nothing of each other. The map of docs/hacking.md says
# what each is.
_FLOORS = (
    ("__main__",),
    ("cli",),
    ("commands",),
    ("watch", "diagnosis"),
    ("fleet",),
    ("resolve", "hook", "verdicts"),
    ("rehearse",),
    ("judge", "host"),
    ("domain", "kvm"),
    ("model",),
    ("registers",),
    ("basics",),
    ("__init__",),
)
_FLOOR = {room: number for number, rooms in enumerate(_FLOORS) for room in rooms}


def _modules() -> dict[tuple[str, ...], Path]:
    """The parts of a module's name below the package → its file."""
    return {
        path.relative_to(_PACKAGE).with_suffix("").parts: path
        for path in sorted(_PACKAGE.rglob("*.py"))
    }


def _imports(
    name: tuple[str, ...], path: Path, modules: dict[tuple[str, ...], Path]
) -> list[tuple[str, ...]]:
    """The modules of the package that a module imports, wherever the import stands in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                base = name[: len(name) - node.level] + module
            elif module[:1] == (_PACKAGE.name,):
                base = module[1:]
            else:
                continue
            for alias in node.names:
                target = (*base, alias.name)
                found.append(
                    next(
                        t
                        for t in (target, (*target, "__init__"), base, (*base, "__init__"))
                        if t in modules
                    )
                )
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith(_PACKAGE.name) for alias in node.names), (
                f"{path}: write from … import"
            )
    return found


def test_every_import_runs_down() -> None:
    modules = _modules()
    upwards = [
        f"{'.'.join(name)} imports {'.'.join(target)}"
        for name, path in modules.items()
        for target in _imports(name, path, modules)
        if target[0] != name[0] and _FLOOR[target[0]] <= _FLOOR[name[0]]
    ]
    assert upwards == []


def test_no_import_runs_in_a_circle() -> None:
    modules = _modules()
    imports = {name: set(_imports(name, path, modules)) - {name} for name, path in modules.items()}
    while imports:
        free = {name for name, targets in imports.items() if not targets & imports.keys()}
        assert free, f"these import each other: {sorted('.'.join(name) for name in imports)}"
        for name in free:
            del imports[name]


def test_every_room_is_on_the_map() -> None:
    assert {name[0] for name in _modules()} == set(_FLOOR)
