"""OpenAI's requests and answers: what is taken, what is refused, and how answers look.

A field that would change the answer and is not done here is refused by name. Nothing is left out
silently.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..config import MEMORY_MODES, Generation
from .errors import BadRequest

MAX_TOKENS = 4096  # of an answer, which bounds what a slow client can leave in memory
DEFAULT_TOKENS = 512
MAX_TEXTS = 256  # of one request for embeddings
MAX_TEXT = 100_000  # characters of each

# say nothing about the answer itself
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
_SAMPLING = {"temperature", "top_p", "seed", "stop", "max_tokens", "stream", "stream_options"}
_OURS = {"memory", "collection"}
# fields whose usual value asks for nothing: any other is refused
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


@dataclass(frozen=True)
class ChatRequest:
    """A conversation that waits for its next answer, or with ``raw`` a text to continue.

    Attributes:
        message: the last words of the user.
        said: what was said before, in turn, beginning with the user.
        memory: "explicit", "text", "off", or None where nothing was said about it.
        collection: whose documents are searched alone; None for all.
        usage: whether a stream ends with what was used.
        generation: how to answer.
    """

    message: str
    said: tuple[dict[str, str], ...] = ()
    system: str | None = None
    memory: str | None = None
    collection: str | None = None
    stream: bool = False
    usage: bool = False
    stop: tuple[str, ...] = ()
    generation: Generation = field(default_factory=Generation)

    @property
    def raw(self) -> bool:
        """Continue the message as it stands."""
        return self.generation.raw


def chat(body: Mapping, models: Sequence[str]) -> ChatRequest:
    """A request to /v1/chat/completions.

    Raises:
        BadRequest: it asks for something that is not done here, or makes no sense.
    """
    _refuse_unknown(body, {"model", "messages", "max_completion_tokens", *_OURS, *_SAMPLING})
    _check_model(body, models)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages is a list with at least one message.", "messages")
    system: list[str] = []
    said: list[dict[str, str]] = []
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if not isinstance(message, dict):
            raise BadRequest(f"{place} is no object.", place)
        role, content = message.get("role"), _content(message, place)
        if role in ("system", "developer"):
            system.append(content)
        elif role not in ("user", "assistant"):
            raise BadRequest(f"The role {role!r:.40} is not taken here.", f"{place}.role")
        elif said and said[-1]["role"] == role:
            said[-1]["content"] += f"\n\n{content}"
        else:
            said.append({"role": role, "content": content})
    if not said or said[0]["role"] != "user" or said[-1]["role"] != "user":
        raise BadRequest("A conversation begins and ends with a message of the user.", "messages")
    message = said.pop()["content"]
    if not message.strip():
        raise BadRequest("The last message is empty.", "messages")
    return ChatRequest(
        message,
        tuple(said),
        "\n\n".join(system) or None,
        generation=_generation(body),
        **_common(body),
    )


def completion(body: Mapping, models: Sequence[str]) -> ChatRequest:
    """A request to /v1/completions: a text to go on with, as it stands.

    Raises:
        BadRequest: see ``chat``.
    """
    _refuse_unknown(body, {"model", "prompt", *_OURS, *_SAMPLING})
    _check_model(body, models)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadRequest("prompt is one text that is not empty; tokens are not taken.", "prompt")
    return ChatRequest(prompt, generation=_generation(body, raw=True), **_common(body))


def embeddings(body: Mapping, model: str) -> tuple[list[str], bool, bool]:
    """A request to /v1/embeddings: the texts, whether they ask, whether in base64.

    Raises:
        BadRequest: see ``chat``.
    """
    _refuse_unknown(body, {"model", "input", "encoding_format", "input_type"})
    _check_model(body, [model])
    texts = body.get("input")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise BadRequest("input is a text or a list of texts; tokens are not taken.", "input")
    if len(texts) > MAX_TEXTS or max(map(len, texts)) > MAX_TEXT:
        raise BadRequest(f"At most {MAX_TEXTS} texts of {MAX_TEXT} characters.", "input")
    form = _one_of(body, "encoding_format", ("float", "base64"), "float")
    asks = _one_of(body, "input_type", ("document", "query"), "document") == "query"
    return texts, asks, form == "base64"


def _refuse_unknown(body: Mapping, known: set[str]) -> None:
    for name, value in body.items():
        if name in known or name in IGNORED or value is None:
            continue
        if name not in NEUTRAL:
            raise BadRequest(f"{name} is not known here.", name, "unknown_parameter")
        if value not in NEUTRAL[name]:
            raise BadRequest(f"{name} is not supported here.", name, "unsupported_parameter")


def _check_model(body: Mapping, models: Sequence[str]) -> None:
    model = body.get("model", models[0])
    if model not in models:
        raise BadRequest(
            f"The model {model!r:.80} is not served here; this server has {models[0]}, and a "
            f"request cannot change it.",
            *("model", "model_not_found", 404),
        )


def _content(message: Mapping, place: str) -> str:
    """The text of a message, which may come in parts."""
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


def _common(body: Mapping) -> dict[str, Any]:
    """What chats and completions have in common."""
    stop = body.get("stop") or ()
    stop = (stop,) if isinstance(stop, str) else stop
    if len(stop) > 4 or not all(isinstance(text, str) and text for text in stop):
        raise BadRequest("stop is a text, or up to four.", "stop")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict) or options.keys() - {"include_usage", "include_obfuscation"}:
        raise BadRequest("stream_options has only include_usage here.", "stream_options")
    return {
        "memory": _one_of(body, "memory", MEMORY_MODES, None),
        "collection": collection(body),
        "stream": bool(_number(body, "stream", (bool,), False, 0, 1)),
        "usage": options.get("include_usage") is True,
        "stop": tuple(stop),
    }


def _generation(body: Mapping, raw: bool = False) -> Generation:
    length = "max_completion_tokens" if body.get("max_completion_tokens") else "max_tokens"
    return Generation(
        max_tokens=_number(body, length, (int,), DEFAULT_TOKENS, 1, MAX_TOKENS),
        temp=float(_number(body, "temperature", (int, float), 0, 0, 2)),
        top_p=float(_number(body, "top_p", (int, float), 1, 0, 1)),
        seed=_number(body, "seed", (int,), None, 0, 2**64 - 1),
        raw=raw,
    )


def collection(body: Mapping) -> str | None:
    """The collection that a request names."""
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


# --- answers


def usage(prompt: int, cached: int, completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class Form:
    """How the parts of one answer look.

    Args:
        raw: the answer is that of /v1/completions.
    """

    def __init__(self, model: str, raw: bool):
        self.raw = raw
        self._kind = "text_completion" if raw else "chat.completion"
        self._head = {
            "id": f"{'cmpl' if raw else 'chatcmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, reason: str, used: Mapping, extra: Mapping) -> dict[str, Any]:
        said = {"text": text}
        if not self.raw:
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return {
            **self._head,
            "object": self._kind,
            "choices": [choice],
            "usage": used,
            "m3mlx": extra,
        }

    def part(
        self, text: str | None, *, first: bool = False, reason: str | None = None, **more: Any
    ) -> dict[str, Any]:
        """One event of a stream; ``more`` are fields of its own."""
        if self.raw:
            said: dict[str, Any] = {"text": text or ""}
        else:
            said = {"delta": {} if text is None else {"content": text}}
            if first:
                said["delta"]["role"] = "assistant"
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        kind = self._kind if self.raw else "chat.completion.chunk"
        return {**self._head, "object": kind, "choices": [choice], **more}

    def used(self, used: Mapping) -> dict[str, Any]:
        """The last event of a stream, if it was asked for."""
        return {**self.part(None), "choices": [], "usage": used}


def embedded(vectors: np.ndarray, model: str, tokens: int, packed: bool) -> dict[str, Any]:
    """The answer of /v1/embeddings; ``packed`` in base64."""
    data = [
        {
            "object": "embedding",
            "index": number,
            "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
            if packed
            else vector.tolist(),
        }
        for number, vector in enumerate(vectors)
    ]
    used = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": used}
