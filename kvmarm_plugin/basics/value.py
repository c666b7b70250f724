# SPDX-License-Identifier: LGPL-2.1-or-later
"""Immutable records for the hook's path.

A frozen dataclass would do the same and cost the hook 15 ms of imports, twice what the interpreter itself needs.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Self  # mypy knows it; nothing imports it


class Value:
    """Base of immutable records: fields are the names in `__slots__`, compared and shown by value.

    A subclass's `__init__` takes exactly its fields and ends with ``self._freeze(locals())``.
    """

    __slots__: tuple[str, ...] = ()

    def _freeze(self, fields: dict[str, object]) -> None:
        for name in self.__slots__:
            object.__setattr__(self, name, fields[name])

    def replace(self, **changes: object) -> Self:
        """The same value with other fields."""
        return type(self)(**{**{name: getattr(self, name) for name in self.__slots__}, **changes})

    def __setattr__(self, name: str, _value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} is immutable")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]  # fields may be dicts

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"
