"""Settings of a foreign model, checked when they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from m3mlx.errors import ConvertError

Error = Callable[[str], ConvertError]
Number = TypeVar("Number", int, float)
LARGEST = 2**40  # a larger number is the sign of a damaged file


class Settings:
    """A mapping from names to values of unknown types, where None means "not set".

    Args:
        place: where the values stand, for error messages.
        error: makes the exception that every method raises.
    """

    def __init__(self, values: Mapping[str, Any], place: str, error: Error):
        self.values, self._place, self._error = values, place, error

    def get(self, key: str, kind: Any = object, default: Any = None) -> Any:
        """Return a value of one type; without a default it must be set."""
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise self._error(f"{self._place} lacks {key}")
        if not isinstance(value, kind):
            raise self._error(f"{key} is {value!r:.40}, which is not of the right type")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """Return an integer above 0."""
        return self._positive(key, self.get(key, int, default))

    def real(self, key: str, default: float | None = None) -> float:
        """Return a finite number above 0."""
        return self._positive(key, self.get(key, int | float, default))

    def _positive(self, key: str, value: Number) -> Number:
        if isinstance(value, bool) or not 0 < value < LARGEST:
            raise self._error(f"{key} is {value!r:.40}, which makes no sense")
        return value
