"""Fields of a request: a wrong type is refused by name, what cannot matter is left and told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import BadRequest

# What would change the answer and is not done here; other unknown fields are only told.
REFUSED = frozenset(
    "bad_words guided_regex guided_choice guided_grammar structured_outputs grammar "
    "grammars adapters lora mirostat logits_processors prompt_embeds ignore_eos min_tokens "
    "web_search_options previous_response_id conversation prompt_cache_options".split()
)


class Fields:
    """The fields of an object, each read by name.

    Args:
        place: names the object in errors, such as ``messages[0].``.
    """

    def __init__(self, body: Mapping[str, Any], place: str = ""):
        self._body, self._place = body, place
        self._read: set[str] = set()

    def get(self, name: str) -> Any:
        """Return the value of a field; None where it is missing."""
        self._read.add(name)
        return self._body.get(name)

    def wrong(self, name: str, what: str) -> BadRequest:
        """Return the error for a field that is not what it should be."""
        value = self._body.get(name)
        return BadRequest(f"{name} is {what}, not {value!r:.40}.", f"{self._place}{name}")

    def unsupported(self, name: str, why: str = "") -> BadRequest:
        """Return the error for a field that asks for what is not done here."""
        message = f"{name} is not supported here{why}."
        return BadRequest(message, f"{self._place}{name}", "unsupported_parameter")

    def number(
        self, name: str, default: Any, low: float = -math.inf, high: float = math.inf
    ) -> Any:
        """Return a finite number, not above ``high``."""
        value = self.get(name)
        if value is None:
            return default
        if type(value) not in (int, float) or not low <= value < math.inf or value == -math.inf:
            raise self.wrong(name, "a number" + (f" from {low:g} on" if low > -math.inf else ""))
        return min(value, high)

    def whole(self, name: str, default: Any, low: float = -math.inf, high: float = math.inf) -> Any:
        """Return a whole number, not above ``high``."""
        value = self.number(name, default, low, high)
        if value is not default and value != int(value):
            raise self.wrong(name, "a whole number")
        return value if value is default else int(value)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return true or false."""
        value = self.get(name)
        if value is not None and type(value) is not bool:
            raise self.wrong(name, "true or false")
        return default if value is None else value

    def text(self, name: str) -> str | None:
        """Return a text; None where it is missing."""
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def table(self, name: str) -> dict[str, Any]:
        """Return an object; an empty one where it is missing."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return value or {}

    def one_of(self, name: str, values: Sequence[str], default: str | None) -> str | None:
        """Return one of some texts."""
        value = self.get(name)
        if value is not None and value not in values:
            raise self.wrong(name, f"one of {', '.join(values)}")
        return default if value is None else value

    def ignored(self) -> tuple[str, ...]:
        """Return the fields that were not read, and refuse those that would change the answer."""
        left = [name for name, value in self._body.items() if name not in self._read]
        for name in left:
            if name in REFUSED and self._body[name] not in (None, False, [], {}, 0, ""):
                raise self.unsupported(name)
        return tuple(name for name in left if self._body[name] is not None)
