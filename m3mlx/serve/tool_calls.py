"""Calls of tools in an answer: found by mlx-lm's marks and parsers of each family, or forced.

An answer that has to be a call begins with the family's mark and is JSON from there on: the name
and arguments that keep to the tool's schema, whatever form the family's own calls have.
"""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..chat.sampling import can_keep_to_schemas

# Where none of these is, a tool has no other arguments than those it names.
_OPEN = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties", "additionalProperties"}
_CALL = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')
log = logging.getLogger("m3mlx.serve")


def calls_in_answer(
    tokenizer: TokenizerWrapper,
    tools: Sequence[dict[str, Any]],
    forced: Sequence[dict[str, Any]] = (),
) -> ToolCalls | ForcedCall:
    """Return what tells calls from text; of the ``forced`` tools one has to be called."""
    return ForcedCall(tokenizer, forced) if forced else ToolCalls(tokenizer, tools)


class ToolCalls:
    """Tells calls of tools from text, as an answer grows.

    Args:
        tools: that may be called; without any, all is text.

    Attributes:
        changes: to the ``Generation`` of the answer.
        whole: the answer ends here.
    """

    changes: Mapping[str, Any] = {}
    whole = False

    def __init__(self, tokenizer: TokenizerWrapper, tools: Sequence[dict[str, Any]]):
        known = bool(tools) and tokenizer.has_tool_calling
        self._parse = tokenizer.tool_parser if known else None
        self._start = tokenizer.tool_call_start if known else ""
        self._end = tokenizer.tool_call_end if known else ""
        self._tools = list(tools)
        self._held, self._calling = "", False

    def feed(self, text: str, last: bool) -> tuple[str, list[dict[str, Any]]]:
        """Add text; return what is text for certain, and the calls that have ended."""
        if not self._parse:
            return text, []
        self._held += text
        said, calls = "", list[dict[str, Any]]()
        while self._held or (last and self._calling):
            mark = self._end if self._calling else self._start
            found = self._held.find(mark) if mark else -1
            if found >= 0:
                part, self._held = self._held[:found], self._held[found + len(mark) :]
                said, calls = self._part(part, said, calls, mark)
                self._calling = not self._calling
                continue
            if self._calling and not last:
                break  # to the end of the call
            keep = 0 if last else _begun(self._held, mark)
            part = self._held[: len(self._held) - keep]
            self._held = self._held[len(part) :]
            said, calls = self._part(part, said, calls)
            break
        return said, calls

    def _part(
        self, part: str, said: str, calls: list[dict[str, Any]], mark: str = ""
    ) -> tuple[str, list[dict[str, Any]]]:
        """Add a part of the answer; what should be a call and is none is text, marks and all."""
        if not self._calling:
            return said + part, calls
        if found := self._parsed(part):
            return said, calls + found
        return f"{said}{self._start}{part}{mark}", calls

    def _parsed(self, text: str) -> list[dict[str, Any]]:
        """Return the calls in a text as OpenAI has them; none if it was cut off or is none."""
        assert self._parse
        try:
            parsed = self._parse(text, self._tools)
            each = parsed if isinstance(parsed, list) else [parsed]
            return [_call(one["name"], one.get("arguments"), one.get("id")) for one in each]
        except Exception as error:  # parsers of many families, on what a model wrote
            log.warning("a call of a tool cannot be parsed (%s)", type(error).__name__)
            return []


class ForcedCall:
    """An answer that has to be a call of one of some tools.

    Where answers cannot be made to keep to a schema, the arguments are what the model writes, and
    an answer that is no call is text. See ``ToolCalls`` for the attributes.
    """

    def __init__(self, tokenizer: TokenizerWrapper, tools: Sequence[dict[str, Any]]):
        functions = [tool["function"] for tool in tools]
        self._names = [each["name"] for each in functions]
        schemas = [_arguments(each.get("parameters") or {}) for each in functions]
        if len(functions) == 1:
            self._text = f'{{"name": {json.dumps(*self._names)}, "arguments": '
            schema = schemas[0]
        else:
            self._text = ""
            pairs = enumerate(zip(self._names, schemas, strict=True))
            schema = {"anyOf": [_one(number, *pair) for number, pair in pairs]}
        mark = tokenizer.tool_call_start if tokenizer.has_tool_calling else ""
        self.changes = {
            "opening": f"{mark}\n" if mark else "",
            "prefill": self._text,
            "schema": schema if can_keep_to_schemas() else None,
            "think": False,
        }
        self.whole = False

    def feed(self, text: str, last: bool) -> tuple[str, list[dict[str, Any]]]:
        """Add text; return the call when it is whole, and as text what has become none."""
        if self.whole:
            return "", []
        self._text += text
        if (head := _CALL.match(self._text)) and ("}" in text or last):
            name = json.loads(head[1])
            with suppress(ValueError):
                arguments, _ = json.JSONDecoder().raw_decode(self._text, head.end())
                if name in self._names and isinstance(arguments, dict):
                    self.whole = True
                    return "", [_call(name, arguments)]
        return (self._text if last else ""), []


def _arguments(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the arguments of a tool, which may say nothing of them."""
    closed = {} if schema.keys() & _OPEN else {"additionalProperties": False}
    return {"type": "object", **schema, **closed}


def _one(number: int, name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a call of the tool of this number, with its references led there."""

    def led(value: Any) -> Any:
        match value:
            case {"$ref": str(place), **others} if place.startswith("#"):
                moved = f"#/anyOf/{number}/properties/arguments{place[1:]}"
                return {**{key: led(each) for key, each in others.items()}, "$ref": moved}
            case dict():
                return {key: led(each) for key, each in value.items()}
            case list():
                return [led(each) for each in value]
        return value

    call = {"name": {"const": name}, "arguments": led(schema)}
    known = {"properties": call, "required": list(call), "additionalProperties": False}
    return {"type": "object", **known}


def _call(name: str, arguments: Any, id: Any = None) -> dict[str, Any]:
    """Return a call as OpenAI has it; arguments that are a text are what the model wrote."""
    if not isinstance(name, str):
        raise TypeError(f"the name is {name!r}")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    known = {"id": id or f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
    return {**known, "function": {"name": name, "arguments": arguments}}


def _begun(text: str, mark: str) -> int:
    """Return how many characters at the end of a text may begin a mark."""
    longest = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((count for count in longest if mark.startswith(text[-count:])), 0)
