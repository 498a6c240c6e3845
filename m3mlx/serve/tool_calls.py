"""Calls of tools in an answer, found by mlx-lm's marks and parsers of each family."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Sequence
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

log = logging.getLogger("m3mlx.serve")


class ToolCalls:
    """Tells calls of tools from text, as an answer grows.

    Args:
        tools: that may be called; without any, all is text.
    """

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
        while self._held:
            mark = self._end if self._calling else self._start
            found = self._held.find(mark) if mark else -1
            if found >= 0:
                part, self._held = self._held[:found], self._held[found + len(mark) :]
                said, calls = self._part(part, said, calls)
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
        self, part: str, said: str, calls: list[dict[str, Any]]
    ) -> tuple[str, list[dict[str, Any]]]:
        if not self._calling:
            return said + part, calls
        return said, calls + self._parsed(part)

    def _parsed(self, text: str) -> list[dict[str, Any]]:
        """Return the calls in a text as OpenAI has them; none if it was cut off or is none."""
        assert self._parse
        try:
            parsed = self._parse(text, self._tools)
        except Exception as error:  # parsers of many families, on what a model wrote
            log.warning("a call of a tool cannot be parsed (%s)", type(error).__name__)
            return []
        return [
            {
                "id": call.get("id") or f"call_{uuid.uuid4().hex[:24]}",
                "type": "function",
                "function": {
                    "name": call["name"],
                    "arguments": json.dumps(call["arguments"], ensure_ascii=False),
                },
            }
            for call in (parsed if isinstance(parsed, list) else [parsed])
        ]


def _begun(text: str, mark: str) -> int:
    """Return how many characters at the end of a text may begin a mark."""
    longest = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((count for count in longest if mark.startswith(text[-count:])), 0)
