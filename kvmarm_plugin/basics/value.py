# SPDX-License-Identifier: LGPL-2.1-or-later
"""Immutable records for the hook's path.

A frozen dataclass would do the same, and takes longer to import than the hook has time
(hook/__init__.py).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform  # mypy knows them; nothing imports them
else:

    def dataclass_transform(**_options):
        return lambda cls: cls


@dataclass_transform(frozen_default=True)
class Value:
    """Base of immutable records: a subclass annotates its fields, and gives a default as `name:
    type = default`.

    The constructor takes the fields by position or by name. Values are equal if their classes and
    fields are, and have no hash, since fields may be dicts. A subclass of a subclass would have
    only its own fields: there is none.
    """

    def __init__(self, *values: object, **named: object) -> None:
        cls = type(self)
        fields = cls.__annotations__
        given = {**dict(zip(fields, values)), **named}
        missing = [name for name in fields if name not in given and not hasattr(cls, name)]
        if missing or len(given) < len(values) + len(named) or not given.keys() <= fields.keys():
            raise TypeError(f"{cls.__name__} takes each of its fields once: {', '.join(fields)}")
        self._freeze(
            {name: given[name] if name in given else getattr(cls, name) for name in fields}
        )

    def _freeze(self, fields: dict[str, object]) -> None:
        """Set every field: what a constructor of a subclass's own ends with."""
        for name in type(self).__annotations__:
            object.__setattr__(self, name, fields[name])

    def as_dict(self) -> dict[str, object]:
        """Name of each field → value, in the order of the class."""
        return {name: getattr(self, name) for name in type(self).__annotations__}

    def replace(self, **changes: object) -> Self:
        """The same value with other fields."""
        return type(self)(**{**self.as_dict(), **changes})

    def __setattr__(self, name: str, _value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} is immutable")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]  # fields may be dicts

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.as_dict().items())
        return f"{type(self).__name__}({fields})"
