"""Messages as clients send them, in the order that a conversation is read in.

A conversation here is the user's words and answers in turn. What clients send is brought into that
form: messages of one role are joined, an answer without a question before it gets an empty one,
and calls of tools with their results belong to the question that they were made for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .errors import BadRequest
from .fields import Fields

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
TEXTS = ("text", "input_text", "output_text", "refusal")


@dataclass
class Turns:
    """A conversation that waits for an answer.

    Attributes:
        message: the user's last message.
        earlier: the messages before it, the user's and the answers in turn; a user's message may
            have an ``exchange``.
        system: the system prompt.
        exchange: calls of tools and their results since the last message.
        prefill: how the answer begins.
    """

    message: str
    earlier: tuple[dict[str, Any], ...] = ()
    system: str | None = None
    exchange: list[dict[str, Any]] = field(default_factory=list)
    prefill: str = ""


def turns_of(messages: Iterable[dict[str, Any]]) -> Turns:
    """Bring messages, with their texts as content, into the order of a conversation."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []

    def ask(text: str) -> dict[str, Any]:
        if turns and turns[-1]["role"] == "user":
            turns.append({"role": "assistant", "content": ""})
        turns.append({"role": "user", "content": text})
        return turns[-1]

    for message in messages:
        role, text = message["role"], message["content"]
        last = turns[-1] if turns else None
        asked = last is not None and last["role"] == "user"
        if role == "system":
            system += [text] if text else []
        elif role == "tool" or message.get("tool_calls"):
            question = last if last is not None and asked else ask("")
            question.setdefault("exchange", []).append(message)
        elif role == "user":
            if last is not None and asked and "exchange" not in last:
                last["content"] += f"\n\n{text}"
            else:
                ask(text)
        elif last is not None and last["role"] == "assistant":
            last["content"] += f"\n\n{text}" if last["content"] else text
        else:
            if not asked:
                ask("")
            turns.append({"role": "assistant", "content": text})
    prefill = turns.pop()["content"] if turns and turns[-1]["role"] == "assistant" else ""
    about = "\n\n".join(dict.fromkeys(system)) or None
    if not turns:  # a system prompt alone is what is asked
        return Turns(about or "")
    last = turns.pop()
    return Turns(last["content"], tuple(turns), about, last.get("exchange", []), prefill)


def read_messages(given: Any, name: str = "messages") -> list[dict[str, Any]]:
    """Return messages with the roles that templates know, and their texts as content."""
    if not isinstance(given, list) or not given:
        raise BadRequest(f"{name} is a list with at least one message.", name)
    return [_message(f"{name}[{number}]", each) for number, each in enumerate(given)]


def _message(place: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadRequest(f"{place} is no object.", place)
    fields = Fields(message, f"{place}.")
    role = fields.get("role")
    if role not in ROLES:
        raise BadRequest(f"The role {role!r:.40} is not taken here.", f"{place}.role")
    text = text_of(fields.get("content"), f"{place}.content")
    read: dict[str, Any] = {"role": role, "content": text}
    if role == "developer":
        read["role"] = "system"
    elif role in ("tool", "function"):
        read["role"] = "tool"
        for key in ("name", "tool_call_id"):
            if value := fields.text(key):
                read[key] = value
    elif role == "assistant" and (calls := _calls(fields, place)):
        read["tool_calls"] = calls
    if message.get("audio"):
        raise fields.unsupported("audio")
    return read


def text_of(content: Any, place: str) -> str:
    """Return the text of a content, which may be missing or come in parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise BadRequest("The content of a message is text.", place)
    texts = []
    for part in content:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("refusal" if kind == "refusal" else "text") if kind in TEXTS else None
        if not isinstance(text, str):
            message = f"Only text is taken here, not {kind!r:.40}."
            raise BadRequest(message, place, "unsupported_content")
        texts.append(text)
    return "".join(texts)


def _calls(fields: Fields, place: str) -> list[dict[str, Any]]:
    """Return the calls of tools in a message, their arguments as objects."""
    calls = fields.get("tool_calls")
    if calls is None and (single := fields.table("function_call")):
        calls = [{"function": single}]
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise fields.wrong("tool_calls", "a list")
    read = []
    for number, call in enumerate(calls):
        where = f"{place}.tool_calls[{number}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRequest(f"{where} has no function with a name.", where)
        read.append(tool_call(function["name"], function.get("arguments"), call.get("id")))
    return read


def tool_call(name: str, arguments: Any, id: Any = None) -> dict[str, Any]:
    """Return a call of a tool as templates take it, its arguments as an object where they are."""
    if isinstance(arguments, str):
        with suppress(ValueError):  # a model wrote it: what is no JSON is shown as it is
            arguments = json.loads(arguments or "{}")
    function = {"name": name, "arguments": {} if arguments is None else arguments}
    known = {"id": id} if isinstance(id, str) else {}
    return {**known, "type": "function", "function": function}


def read_tools(fields: Fields, given: Any, name: str = "tools") -> list[dict[str, Any]]:
    """Return tools as templates take them."""
    if given is None:
        return []
    if not isinstance(given, list):
        raise fields.wrong(name, "a list")
    tools = []
    for number, tool in enumerate(given):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            where = f"{name}[{number}]"
            raise BadRequest(f"{where} is no function with a name.", name)
        kept = {key: value for key, value in function.items() if key not in ("type", "strict")}
        tools.append({"type": "function", "function": kept})
    return tools


def choose_tools(
    fields: Fields, tools: Sequence[dict[str, Any]]
) -> tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]:
    """Return the tools that the model may call, and those of which it has to call one."""
    name = "tool_choice"
    if (choice := fields.get(name)) is None:  # OpenAI's older name
        name = "function_call"
        choice = fields.get(name)
    wrong = fields.wrong(name, "auto, none, required, or names one of the tools")
    known = {tool["function"]["name"]: tool for tool in tools}
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list):
            raise wrong
        named = [_named(each) for each in allowed["tools"]]
        choice = allowed.get("mode")
    else:
        named = [_named(choice)] if isinstance(choice, dict) else list(known)
        choice = "required" if isinstance(choice, dict) else choice
    if not known.keys() >= set(named):
        raise wrong
    chosen = tuple(known[each] for each in named)
    match choice:
        case None | "auto":
            return chosen, ()
        case "none":
            return (), ()
        case "required" | "any" if chosen:
            return tuple(tools), chosen
    raise wrong


def _named(choice: Any) -> Any:
    """Return the name of a tool in a choice, as chats or responses have it."""
    function = choice.get("function", choice) if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None
