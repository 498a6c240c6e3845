"""OpenAI's /v1/responses: its requests, and answers as a whole or as events.

Nothing is kept between two requests: a conversation comes whole with each of them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .conversations import AnswerPart
from .errors import BadRequest
from .fields import Fields
from .messages import read_messages, read_tools, tool_call, turns_of
from .openai import DEFAULT_TOKENS, MAX_TOKENS, Asked, schema_of, turns_request


def response(body: Mapping[str, Any]) -> tuple[Asked, dict[str, Any]]:
    """Parse a request to /v1/responses; return also what its answer repeats."""
    fields = Fields(body)
    instructions = fields.text("instructions")
    messages = _messages(fields.get("input"))
    if instructions:
        messages.insert(0, {"role": "system", "content": instructions})
    turns = turns_of(messages)
    tools = read_tools(fields, fields.get("tools"))
    form = fields.table("text").get("format")
    if form is not None and not isinstance(form, dict):
        raise BadRequest("text.format is an object.", "text")
    length = fields.whole("max_output_tokens", DEFAULT_TOKENS, 1, MAX_TOKENS)
    request = turns_request(fields, turns, tools, length, schema_of(fields, "text", form or {}))
    stream = fields.flag("stream")
    fields.text("model")
    about = {
        "instructions": instructions,
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": request.generation.temp,
        "text": {"format": form or {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": request.generation.top_p,
        "truncation": "disabled",
    }
    return Asked((request,), stream=stream, ignored=fields.ignored()), about


def _messages(given: Any) -> list[dict[str, Any]]:
    """Return the messages of an input, a text or a list of items."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise BadRequest("input is a text, or a list with at least one item.", "input")
    messages = []
    for number, item in enumerate(given):
        place = f"input[{number}]"
        kind = item.get("type", "message") if isinstance(item, dict) else None
        if kind == "message":
            messages += [{**each} for each in read_messages([item], place)]
        elif kind == "function_call" and isinstance(item.get("name"), str):
            call = tool_call(item["name"], item.get("arguments"), item.get("call_id"))
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        elif kind == "function_call_output":
            output = item.get("output")
            messages += read_messages([{"role": "tool", "content": output}], place)
        elif kind != "reasoning":  # earlier thoughts are read by no template
            raise BadRequest(f"{place} is no message and no call of a function.", place)
    return messages


class Answer:
    """The JSON of one answer: as a whole, or as the events of a stream.

    Attributes:
        ends: what a stream ends with.
    """

    ends = ""

    def __init__(self, model: str, asked: Asked, about: Mapping[str, Any]):
        self._head = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "error": None,
            "incomplete_details": None,
            **about,
        }
        self._output: list[dict[str, Any]] = []
        self._open = False  # the last item of the output goes on
        self._thoughts = 0  # parts
        self._ours: dict[str, Any] = {}
        self._number = -1

    def whole(self, parts: Sequence[AnswerPart]) -> dict[str, Any]:
        """Return the JSON of a whole answer from all its parts."""
        events = [event for part in parts for event in self.events(part)]
        return events[-1]["response"]

    def events(self, part: AnswerPart) -> list[dict[str, Any]]:
        """Return the events of a stream for one part of an answer."""
        return [self._numbered(event) for event in self._events(part)]

    def _numbered(self, event: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        return {**event, "sequence_number": self._number}

    def _events(self, part: AnswerPart) -> Iterator[dict[str, Any]]:
        if "memory" in part.m3mlx:
            for name in ("created", "in_progress"):
                yield {"type": f"response.{name}", "response": self._response("in_progress")}
        self._ours |= {name: value for name, value in part.m3mlx.items() if name != "span"}
        extra = {"m3mlx": part.m3mlx} if part.m3mlx else {}
        if part.reasoning:
            self._thoughts += 1
            yield from self._said("reasoning", "reasoning_text", part.reasoning, extra)
        if part.text:
            yield from self._said("message", "output_text", part.text, extra)
        for call in part.calls:
            yield from self._called(call)
        if part.reason:
            if not self._output:
                yield from self._said("message", "output_text", "", extra)
            yield from self._done()
            cut = part.reason == "length"
            state = "incomplete" if cut else "completed"
            whole = self._response(state, part.total)
            whole["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
            yield {"type": f"response.{state}", "response": whole}

    def _said(
        self, kind: str, content: str, text: str, extra: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Yield the events of a part of a message or of a thought."""
        if not self._open or self._output[-1]["type"] != kind:
            yield from self._done()
            item: dict[str, Any] = {"id": f"{kind[:3]}_{uuid.uuid4().hex}", "type": kind}
            item.update(summary=[]) if kind == "reasoning" else item.update(role="assistant")
            yield from self._added({**item, "status": "in_progress", "content": []})
            part = _content(content, "")
            self._output[-1]["content"] = [part]
            yield {"type": "response.content_part.added", **self._place(), "part": {**part}}
        self._output[-1]["content"][0]["text"] += text
        if text:
            chances: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
            told = {**self._place(), "delta": text, **chances, **extra}
            yield {"type": f"response.{content}.delta", **told}

    def _called(self, call: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the events of a call of a function."""
        yield from self._done()
        function = call["function"]
        about = {"type": "function_call", "call_id": call["id"], "name": function["name"]}
        item = {"id": f"fc_{uuid.uuid4().hex}", **about, "status": "in_progress", "arguments": ""}
        yield from self._added(item)
        self._output[-1]["arguments"] = function["arguments"]
        kind, place = "response.function_call_arguments", self._place()
        del place["content_index"]
        yield {"type": f"{kind}.delta", **place, "delta": function["arguments"]}
        said = {"arguments": function["arguments"], "name": function["name"]}
        yield {"type": f"{kind}.done", **place, **said}
        yield from self._done()

    def _added(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self._output.append(item)
        self._open = True
        place = {"output_index": len(self._output) - 1}
        yield {"type": "response.output_item.added", **place, "item": dict(item)}

    def _done(self) -> Iterator[dict[str, Any]]:
        """Yield the events that end the last item."""
        if not self._open:
            return
        self._open = False
        item = self._output[-1]
        item["status"] = "completed"
        if content := item.get("content"):
            kind, text = content[0]["type"], content[0]["text"]
            told = {"text": text} | ({"logprobs": []} if kind == "output_text" else {})
            yield {"type": f"response.{kind}.done", **self._place(), **told}
            yield {"type": "response.content_part.done", **self._place(), "part": content[0]}
        place = {"output_index": len(self._output) - 1}
        yield {"type": "response.output_item.done", **place, "item": item}

    def _place(self) -> dict[str, Any]:
        place = {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}
        return {**place, "content_index": 0}

    def _response(self, status: str, usage: Mapping[str, Any] | None = None) -> dict[str, Any]:
        used = None
        if usage:
            used = {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": dict(usage["prompt_tokens_details"]),
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": self._thoughts},
                "total_tokens": usage["total_tokens"],
            }
        said = {"output": [dict(item) for item in self._output], "usage": used}
        return {**self._head, "status": status, **said, "m3mlx": dict(self._ours)}


def _content(kind: str, text: str) -> dict[str, Any]:
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return {"type": kind, "text": text, **more}
