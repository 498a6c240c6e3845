"""OpenAI's requests and answers as JSON.

A field that would change the answer and is not supported is refused by name; none is ignored
silently. Parsing raises BadRequest where a request is malformed or asks for something unsupported.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Mapping, Sequence
from itertools import starmap
from typing import Any

import numpy as np

from ..config import MEMORY_MODES, Generation
from .conversations import AnswerPart, ChatRequest, join_turns
from .errors import BadRequest

MAX_TOKENS = 4096  # of an answer; bounds what a slow client can leave in memory
DEFAULT_TOKENS = 512
MAX_TEXTS = 256  # of one request for embeddings
MAX_TEXT = 100_000  # characters of each

# fields that do not change the answer
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# fields of chats and completions, the last two of our own
SHARED = {"model", "temperature", "top_p", "seed", "stop", "max_tokens", "stream"}
SHARED |= {"stream_options", "memory", "collection"}
# fields of which only the values that change nothing are accepted
NEUTRAL: dict[str, tuple] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "suffix": ("",),
}


def chat(body: Mapping, models: Sequence[str]) -> ChatRequest:
    """Parse a request to /v1/chat/completions."""
    known = {"messages", "max_completion_tokens", "chat_template_kwargs"}
    _check_fields(body, known | SHARED, models)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages is a list with at least one message.", "messages")
    system, turns = join_turns(starmap(_message, enumerate(messages)))
    if not turns or turns[0]["role"] != "user" or turns[-1]["role"] != "user":
        raise BadRequest("A conversation begins and ends with a message of the user.", "messages")
    message = turns.pop()["content"]
    if not message.strip():
        raise BadRequest("The last message is empty.", "messages")
    return _request(body, message, tuple(turns), "\n\n".join(system) or None)


def completion(body: Mapping, models: Sequence[str]) -> ChatRequest:
    """Parse a request to /v1/completions: a text to continue as it stands."""
    _check_fields(body, {"prompt"} | SHARED, models)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadRequest("prompt is one text that is not empty; tokens are not taken.", "prompt")
    return _request(body, prompt, raw=True)


def embeddings(body: Mapping, model: str) -> tuple[list[str], bool, bool]:
    """Parse a request to /v1/embeddings: texts, are they queries, is the answer in base64."""
    _check_fields(body, {"model", "input", "encoding_format", "input_type"}, [model])
    texts = body.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise BadRequest("input is a text or a list of texts; tokens are not taken.", "input")
    if len(texts) > MAX_TEXTS or max(map(len, texts)) > MAX_TEXT:
        raise BadRequest(f"At most {MAX_TEXTS} texts of {MAX_TEXT} characters.", "input")
    encoding = _one_of(body, "encoding_format", ("float", "base64"), "float")
    queries = _one_of(body, "input_type", ("document", "query"), "document") == "query"
    return texts, queries, encoding == "base64"


def _check_fields(body: Mapping, known: set[str], models: Sequence[str]) -> None:
    """Refuse fields that would change the answer, and other models."""
    for name, value in body.items():
        if name in known or name in IGNORED or value is None:
            continue
        if name not in NEUTRAL:
            raise BadRequest(f"{name} is not known here.", name, "unknown_parameter")
        if value not in NEUTRAL[name]:
            raise BadRequest(f"{name} is not supported here.", name, "unsupported_parameter")
    model = body.get("model", models[0])
    if model not in models:
        raise BadRequest(
            f"The model {model!r:.80} is not served here; this server has {models[0]}, and a "
            f"request cannot change it.",
            *("model", "model_not_found", 404),
        )


def _message(number: int, message: Any) -> tuple[str, str]:
    """Return role and text of a message."""
    place = f"messages[{number}]"
    if not isinstance(message, dict):
        raise BadRequest(f"{place} is no object.", place)
    role, text = message.get("role"), _text(message, place)
    if role not in ("system", "developer", "user", "assistant"):
        raise BadRequest(f"The role {role!r:.40} is not taken here.", f"{place}.role")
    return "system" if role == "developer" else role, text


def _text(message: Mapping, place: str) -> str:
    """Return the text of a message, which may come in parts."""
    content = message.get("content")
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise BadRequest(f"{name} is not supported here.", f"{place}.{name}")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest("The content of a message is text.", f"{place}.content")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise BadRequest(
                f"Only text is taken here, not {kind!r:.40}.",
                *(f"{place}.content", "unsupported_content"),
            )
        texts.append(part["text"])
    return "".join(texts)


def _request(
    body: Mapping,
    message: str,
    earlier: tuple[dict[str, str], ...] = (),
    system: str | None = None,
    raw: bool = False,
) -> ChatRequest:
    """Add the fields that both kinds of request share."""
    length = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
    generation = Generation(
        max_tokens=_number(body, length, (int,), DEFAULT_TOKENS, 1, MAX_TOKENS),
        temp=float(_number(body, "temperature", (int, float), 0, 0, 2)),
        top_p=float(_number(body, "top_p", (int, float), 1, 0, 1)),
        seed=_number(body, "seed", (int,), None, 0, 2**64 - 1),
        raw=raw,
        think=_think(body),
    )
    stop = body.get("stop") or ()
    stop = (stop,) if isinstance(stop, str) else stop
    if len(stop) > 4 or not all(isinstance(text, str) and text for text in stop):
        raise BadRequest("stop is a text, or up to four.", "stop")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise BadRequest("stream_options has only include_usage here.", "stream_options")
    return ChatRequest(
        message,
        earlier,
        system,
        memory=_one_of(body, "memory", MEMORY_MODES, None),
        collection=collection(body),
        stream=bool(_number(body, "stream", (bool,), False, 0, 1)),
        usage=options.get("include_usage") is True,
        stop=tuple(stop),
        generation=generation,
    )


def _think(body: Mapping) -> bool:
    """Return whether a request asks the model to think, as mlx-lm's and vLLM's servers take it."""
    given = body.get("chat_template_kwargs") or {}
    if not isinstance(given, dict) or given.keys() - {"enable_thinking"}:
        name = "chat_template_kwargs"
        raise BadRequest(f"{name} has only enable_thinking here.", name)
    return bool(_number(given, "enable_thinking", (bool,), False, 0, 1))


def collection(body: Mapping) -> str | None:
    """Return the collection that a request names."""
    name = body.get("collection")
    if name is None or (isinstance(name, str) and name):
        return name
    raise BadRequest("collection is a text that is not empty.", "collection")


def _number(
    body: Mapping, name: str, kinds: tuple[type, ...], default: Any, low: int, high: int
) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if type(value) not in kinds or not low <= value <= high:
        what = "true or false" if bool in kinds else f"a number from {low} to {high}"
        raise BadRequest(f"{name} is {what}, not {value!r:.40}.", name)
    return value


def _one_of(body: Mapping, name: str, values: Sequence[str], default: str | None) -> str | None:
    value = body.get(name)
    if value is None:
        return default
    if value not in values:
        raise BadRequest(f"{name} is one of {', '.join(values)}, not {value!r:.40}.", name)
    return value


class Completion:
    """The JSON of one answer to a request: as a whole, or as the events of a stream."""

    def __init__(self, model: str, request: ChatRequest):
        self.raw, self.usage = request.generation.raw, request.usage
        self._kind = "text_completion" if self.raw else "chat.completion"
        self._head = {
            "id": f"{'cmpl' if self.raw else 'chatcmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, parts: Sequence[AnswerPart]) -> dict[str, Any]:
        """Return the JSON of a whole answer from all its parts."""
        text = "".join(part.text for part in parts)
        end = parts[-1]
        said: dict[str, Any] = {"text": text}
        if not self.raw:
            message = {"role": "assistant", "content": text, "refusal": None}
            if reasoning := "".join(part.reasoning for part in parts):
                message["reasoning_content"] = reasoning
            said = {"message": message}
        ours = {**parts[0].m3mlx, **end.m3mlx}
        return self._json(self._kind, said, end.reason, usage=end.usage, m3mlx=ours)

    def events(self, part: AnswerPart) -> list[dict[str, Any]]:
        """Return the events of a stream for one part of an answer."""
        said: dict[str, Any] = {"text": part.text}
        kind = self._kind
        if not self.raw:
            kind, delta = "chat.completion.chunk", {"content": part.text}
            if part.reasoning:
                delta = {"reasoning_content": part.reasoning}
            if "memory" in part.m3mlx:
                delta["role"] = "assistant"
            said = {"delta": {} if part.reason else delta}
        extra: dict[str, Any] = {"m3mlx": part.m3mlx} if part.m3mlx else {}
        if self.usage:
            extra["usage"] = None
        event = self._json(kind, said, part.reason, **extra)
        if not (self.usage and part.reason):
            return [event]
        return [event, {**self._head, "object": kind, "choices": [], "usage": part.usage}]

    def _json(self, kind: str, said: Mapping, reason: str | None, **extra: Any) -> dict[str, Any]:
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return {**self._head, "object": kind, "choices": [choice], **extra}


def embeddings_json(
    vectors: np.ndarray, model: str, tokens: int, in_base64: bool
) -> dict[str, Any]:
    """Return the answer of /v1/embeddings; vectors: float (texts, dimensions)."""
    encoded: list[Any] = vectors.tolist()
    if in_base64:
        encoded = [base64.b64encode(each.astype("<f4").tobytes()).decode() for each in vectors]
    data = [
        {"object": "embedding", "index": number, "embedding": each}
        for number, each in enumerate(encoded)
    ]
    used = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": used}
