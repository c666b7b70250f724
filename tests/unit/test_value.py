# SPDX-License-Identifier: LGPL-2.1-or-later
"""Values: what a class that only names its fields can do."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from kvmarm_plugin.basics.value import Value


class _Point(Value):
    x: int
    y: int
    names: dict[str, int]
    label: str | None = None


class _Place(Value):
    x: int
    y: int
    names: dict[str, int]
    label: str | None = None


def _point(**changes: Any) -> _Point:
    return _Point(**{"x": 1, "y": 2, "names": {"a": 1}, **changes})


def test_fields_are_given_by_position_or_by_name() -> None:
    for point in (
        _Point(1, 2, {"a": 1}),
        _Point(1, y=2, names={"a": 1}),
        _Point(names={"a": 1}, y=2, x=1, label=None),
    ):
        assert (point.x, point.y, point.names, point.label) == (1, 2, {"a": 1}, None)
        assert point == _point()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((), {}),
        ((1, 2), {}),
        ((1, 2), {"label": "no names"}),
        ((1, 2, {}, "label", "one more"), {}),
        ((1, 2, {}), {"x": 1}),
        ((1, 2, {}), {"z": 1}),
        ((1, 2), {"z": 1}),
    ],
)
def test_each_field_is_given_once(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="_Point takes each of its fields once: x, y, names, label"):
        _Point(*values, **named)


def test_values_are_equal_by_class_and_fields() -> None:
    assert _point() == _point()
    for name, other in {"x": 3, "y": 3, "names": {}, "label": "here"}.items():
        assert _point() != _point(**{name: other})
        assert _point().replace(**{name: other}) == _point(**{name: other})
    assert _point() != _Place(1, 2, {"a": 1})
    assert _point() != (1, 2, {"a": 1}, None)


def test_a_value_does_not_change() -> None:
    point: Any = _point()
    for name in ("x", "label", "other"):
        with pytest.raises(AttributeError, match=rf"_Point\.{name} is immutable"):
            setattr(point, name, 3)
    assert point == _point()
    with pytest.raises(TypeError):
        hash(point)
    with pytest.raises(TypeError):
        point.replace(z=1)


def test_a_value_shows_its_fields_in_order() -> None:
    assert repr(_Point(names={}, y=2, x=1)) == "_Point(x=1, y=2, names={}, label=None)"
    assert list(_Point(names={}, y=2, x=1).as_dict().items()) == [
        ("x", 1),
        ("y", 2),
        ("names", {}),
        ("label", None),
    ]


def test_a_value_can_be_copied_and_sent() -> None:
    for copied in (
        copy.copy(_point()),
        copy.deepcopy(_point()),
        pickle.loads(pickle.dumps(_point())),
    ):
        assert copied == _point()
