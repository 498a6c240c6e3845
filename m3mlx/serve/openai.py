"""OpenAI's chats, completions and embeddings: their requests and answers as JSON.

A field that would change the answer and is not supported is refused by name. Others that are not
known are left, and named in a header of the response. Parsing raises BadRequest.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import MEMORY_MODES, Generation
from .chances import TokenChance
from .conversations import AnswerPart, ChatRequest
from .errors import BadRequest
from .fields import Fields
from .messages import Turns, choose_tools, read_messages, read_tools, turns_of

MAX_TOKENS = 4096  # of an answer; bounds what a slow client can leave in memory
DEFAULT_TOKENS = 512
MAX_CHOICES = 128  # answers to one request
MAX_TOP = 20  # likeliest tokens that are told of each
MAX_STOPS = 64
MAX_MEMORIES = 20  # that an answer reads at a time
MAX_TEXTS = 2048  # of one request for embeddings

# Of mlx-lm's processors of logits: our names of their arguments, and others that clients use.
PENALTIES = {
    "repetition_penalty": ("repetition_penalty", "repeat_penalty"),
    "presence_penalty": ("presence_penalty",),
    "frequency_penalty": ("frequency_penalty",),
}
CONTEXTS = {
    "repetition_context_size": ("repetition_context_size", "repeat_last_n"),
    "presence_context_size": ("presence_context_size",),
    "frequency_context_size": ("frequency_context_size",),
}


@dataclass(frozen=True)
class Asked:
    """What a client asks for, and how the answer is to be told.

    Attributes:
        requests: what is to be answered, one after the other.
        count: number of answers to each.
        stream: tell them as they grow.
        usage: end a stream with the numbers of tokens.
        ignored: fields of the request that were left.
    """

    requests: tuple[ChatRequest, ...]
    count: int = 1
    stream: bool = False
    usage: bool = False
    ignored: tuple[str, ...] = ()


def chat(body: Mapping[str, Any]) -> Asked:
    """Parse a request to /v1/chat/completions."""
    fields = Fields(body)
    turns = turns_of(read_messages(fields.get("messages")))
    tools = read_tools(fields, fields.get("tools"))
    tools += read_tools(fields, fields.get("functions"), "functions")
    top = fields.whole("top_logprobs", -1, -1, MAX_TOP)
    told = fields.flag("logprobs") or top > 0
    if "audio" in (fields.get("modalities") or ()):
        raise fields.unsupported("modalities", ": answers are text")
    chances = max(top, 0) if told else None
    request = turns_request(fields, turns, tools, _length(fields, 1), _schema(fields), chances)
    return _asked(fields, [request])


def completion(body: Mapping[str, Any]) -> Asked:
    """Parse a request to /v1/completions: texts or tokens to continue as they stand."""
    fields = Fields(body)
    prompts = _prompts(fields)
    chances = fields.get("logprobs")
    if type(chances) is bool:
        chances = 0 if chances else None
    elif chances is not None:
        chances = fields.whole("logprobs", None, 0, MAX_TOP)
    if fields.get("suffix"):
        raise fields.unsupported("suffix")
    shared = _shared(fields, _length(fields, 0), _schema(fields), raw=True)
    echo = fields.flag("echo")
    requests = [
        ChatRequest(
            prompt if isinstance(prompt, str) else "",
            tokens=None if isinstance(prompt, str) else tuple(prompt),
            chances=chances,
            echo=echo,
            **shared,
        )
        for prompt in prompts
    ]
    return _asked(fields, requests)


def _prompts(fields: Fields) -> list[str | list[int]]:
    """Return the prompts of a request, each a text or tokens."""
    prompt = fields.get("prompt")
    if isinstance(prompt, str) or _are_tokens(prompt):
        return [prompt]
    if isinstance(prompt, list) and 0 < len(prompt) <= MAX_CHOICES:
        texts = all(isinstance(each, str) for each in prompt)
        if texts or all(map(_are_tokens, prompt)):
            return prompt
    raise fields.wrong("prompt", f"a text, a list of tokens, or up to {MAX_CHOICES} of either")


def _are_tokens(value: Any) -> bool:
    """Tell a list of token ids from other values."""
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def _asked(fields: Fields, prompts: Sequence[ChatRequest]) -> Asked:
    """Add how the answers are told, when all other fields are read."""
    count = fields.whole("n", 1, 1)
    if fields.whole("best_of", count, 1) > count:
        raise fields.unsupported("best_of", ": answers are not ranked; ask for n of them")
    if count * len(prompts) > MAX_CHOICES:
        raise BadRequest(f"At most {MAX_CHOICES} answers to a request.", "n")
    options = Fields(fields.table("stream_options"), "stream_options.")
    usage = options.flag("include_usage")
    stream = fields.flag("stream")
    fields.text("model")  # there is only one, whatever it is called
    return Asked(tuple(prompts), count, stream, usage, fields.ignored())


def embeddings(body: Mapping[str, Any]) -> EmbeddingRequest:
    """Parse a request to /v1/embeddings."""
    fields = Fields(body)
    fields.text("model")
    given = fields.get("input")
    inputs = [given] if isinstance(given, str) or _are_tokens(given) else given
    if not isinstance(inputs, list) or not inputs:
        raise fields.wrong("input", "a text, a list of tokens, or some of either")
    if len(inputs) > MAX_TEXTS:
        raise BadRequest(f"At most {MAX_TEXTS} inputs.", "input")
    for each in inputs:
        if not (isinstance(each, str) or _are_tokens(each)):
            raise fields.wrong("input", "a text, a list of tokens, or some of either")
    encoding = fields.one_of("encoding_format", ("float", "base64"), "float")
    queries = fields.one_of("input_type", ("document", "query"), "document") == "query"
    dimensions = fields.whole("dimensions", None, 1)
    return EmbeddingRequest(inputs, queries, encoding == "base64", dimensions, fields.ignored())


@dataclass(frozen=True)
class EmbeddingRequest:
    """Inputs to embed, each a text or token ids of the encoder.

    Attributes:
        dimensions: of the vectors, which are cut and made of length 1 again; None for all.
        ignored: fields of the request that were left.
    """

    inputs: Sequence[str | list[int]]
    queries: bool
    in_base64: bool
    dimensions: int | None
    ignored: tuple[str, ...]


def turns_request(
    fields: Fields,
    turns: Turns,
    tools: list[dict[str, Any]],
    length: int,
    schema: Mapping[str, Any] | None,
    chances: int | None = None,
) -> ChatRequest:
    """Return the request for the next answer of a chat."""
    shown, forced = choose_tools(fields, tools)
    return ChatRequest(
        turns.message,
        turns.earlier,
        turns.system,
        exchange=tuple(turns.exchange),
        tools=shown,
        forced=forced,
        chances=chances,
        **_shared(fields, length, schema, prefill=turns.prefill),
    )


def _shared(
    fields: Fields, length: int, schema: Mapping[str, Any] | None, **others: Any
) -> dict[str, Any]:
    """Return the fields that all answers share, as arguments of ``ChatRequest``."""
    return {
        "memory": fields.one_of("memory", MEMORY_MODES, None),
        "collection": collection({"collection": fields.get("collection")}),
        "stop": _stop(fields),
        "generation": Generation(
            max_tokens=length,
            **_sampling(fields),
            schema=schema,
            think=_think(fields),
            ends=_ends(fields),
            memories=_memories(fields),
            **others,
        ),
    }


def _memories(fields: Fields) -> int | None:
    """Return how many memories are read at a time; None where a request does not say."""
    count = fields.whole("memories", None, 1)
    return None if count is None else min(count, MAX_MEMORIES)


def _sampling(fields: Fields) -> dict[str, Any]:
    """Return how tokens are drawn, as arguments of ``Generation``."""
    seed = fields.whole("seed", None)
    penalties = {
        name: value
        for name, names in PENALTIES.items()
        for given in names
        if (value := fields.number(given, None, 0 if name.startswith("rep") else -100, 100))
    }
    contexts = {
        name: max(value, 1)
        for name, names in CONTEXTS.items()
        for given in names
        if (value := fields.whole(given, None, -1, 2**31)) is not None
    }
    logits: dict[str, Any] = {**penalties, **contexts}
    if bias := _bias(fields):
        logits["logit_bias"] = bias
    return {
        "temp": float(fields.number("temperature", 0, 0, 100)),
        "top_p": max(float(fields.number("top_p", 1, 0, 1)), 1e-6),
        "top_k": max(fields.whole("top_k", 0, -1, 2**31), 0),
        "min_p": float(fields.number("min_p", 0, 0, 1)),
        "xtc_probability": float(fields.number("xtc_probability", 0, 0, 1)),
        "xtc_threshold": float(fields.number("xtc_threshold", 0.1, 0, 0.5)),
        "seed": None if seed is None else seed % 2**64,
        "logits": logits,
    }


def _bias(fields: Fields) -> dict[int, float]:
    """Return what is added to the logits of tokens, given as an object or as pairs."""
    given = fields.get("logit_bias")
    try:
        pairs = given.items() if isinstance(given, dict) else map(tuple, given or ())
        bias = {int(token): float(value) for token, value in pairs if type(value) is not bool}
    except (TypeError, ValueError, OverflowError):
        raise fields.wrong("logit_bias", "an object of numbers by token id") from None
    if not all(abs(value) < 1e9 for value in bias.values()):
        raise fields.wrong("logit_bias", "an object of numbers by token id")
    return bias


def _length(fields: Fields, least: int) -> int:
    """Return how many tokens the answer may have; -1 asks for as many as there may be."""
    for name in ("max_completion_tokens", "max_tokens"):
        if (value := fields.whole(name, None, -1)) is not None:
            if 0 <= value < least:
                raise fields.wrong(name, f"a number from {least} on")
            return MAX_TOKENS if value < 0 else min(value, MAX_TOKENS)
    return DEFAULT_TOKENS


def _stop(fields: Fields) -> tuple[str, ...]:
    """Return the texts before which an answer ends."""
    stop = fields.get("stop")
    stop = [stop] if isinstance(stop, str) else stop
    if stop is not None and not (
        isinstance(stop, list)
        and len(stop) <= MAX_STOPS
        and all(isinstance(text, str) for text in stop)
    ):
        raise fields.wrong("stop", f"a text, or up to {MAX_STOPS}")
    return tuple(text for text in stop or () if text)


def _ends(fields: Fields) -> tuple[int, ...]:
    """Return the token ids before which an answer ends, as vLLM's server takes them."""
    given = fields.get("stop_token_ids")
    if given is not None and not (given == [] or _are_tokens(given)):
        raise fields.wrong("stop_token_ids", "a list of token ids")
    return tuple(given or ())


def _think(fields: Fields) -> bool:
    """Return whether a request asks the model to think, as mlx-lm's and vLLM's servers take it."""
    return Fields(fields.table("chat_template_kwargs"), "chat_template_kwargs.").flag(
        "enable_thinking"
    )


def _schema(fields: Fields) -> dict[str, Any] | None:
    """Return the JSON schema that the answer is to keep to; None for any text."""
    form = fields.table("response_format")
    for name in ("json_schema", "guided_json"):  # llama.cpp's and vLLM's
        if given := fields.table(name):
            return given
    return schema_of(fields, "response_format", form)


def schema_of(fields: Fields, name: str, form: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the JSON schema of OpenAI's description of an answer's form; None for any text."""
    kind = form.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        given = form.get("schema", {"type": "object"})
    elif kind == "json_schema":
        given = form.get("json_schema", form)
        given = given.get("schema") if isinstance(given, dict) else None
    else:
        raise fields.unsupported(name, f": {kind!r:.40}")
    if not isinstance(given, dict):
        raise BadRequest(f"{name} has no schema, which is an object.", name)
    return given


def collection(body: Mapping[str, Any]) -> str | None:
    """Return the collection that a request names."""
    name = body.get("collection")
    if name is None or (isinstance(name, str) and name):
        return name
    raise BadRequest("collection is a text that is not empty.", "collection")


class Completion:
    """The JSON of the answers to a request: as a whole, or as the events of a stream.

    Attributes:
        ends: what a stream ends with.
    """

    ends = "data: [DONE]\n\n"

    def __init__(self, model: str, asked: Asked):
        self.raw = asked.requests[0].generation.raw
        self._asked, self._usage = asked, asked.usage
        self._begun: dict[int, int] = {}  # characters said of each choice
        self._kind = "text_completion" if self.raw else "chat.completion"
        self._head = {
            "id": f"{'cmpl' if self.raw else 'chatcmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": None,
        }

    def whole(self, parts: Sequence[AnswerPart]) -> dict[str, Any]:
        """Return the JSON of whole answers from all their parts."""
        by_choice: dict[int, list[AnswerPart]] = {}
        for part in parts:
            by_choice.setdefault(part.index, []).append(part)
        choices = [self._choice(index, each) for index, each in by_choice.items()]
        ours = choices[0]["m3mlx"] if len(choices) > 1 else choices[0].pop("m3mlx")
        usage = parts[-1].total
        told = {"choices": choices, "usage": usage, "m3mlx": ours}
        return {**self._head, "object": self._kind, **told}

    def _choice(self, index: int, parts: Sequence[AnswerPart]) -> dict[str, Any]:
        text = "".join(part.text for part in parts)
        said: dict[str, Any] = {"text": text}
        if not self.raw:
            calls = [call for part in parts for call in part.calls]
            content = None if calls and not text else text
            message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
            if calls:
                message["tool_calls"] = calls
            if reasoning := "".join(part.reasoning for part in parts):
                message["reasoning_content"] = reasoning
            said = {"message": message}
        chances = [chance for part in parts for chance in part.chances]
        return {
            "index": index,
            **said,
            "logprobs": self._logprobs(index, chances),
            "finish_reason": parts[-1].reason,
            "m3mlx": {**parts[0].m3mlx, **parts[-1].m3mlx},
        }

    def events(self, part: AnswerPart) -> list[dict[str, Any]]:
        """Return the events of a stream for one part of an answer."""
        said: dict[str, Any] = {"text": part.text}
        kind = self._kind
        if not self.raw:
            kind = "chat.completion.chunk"
            delta: dict[str, Any] = {"content": part.text}
            if part.reasoning:
                delta = {"reasoning_content": part.reasoning}
            if part.calls:
                numbered = enumerate(part.calls, part.first_call)
                delta = {"tool_calls": [{"index": n, **call} for n, call in numbered]}
            if "memory" in part.m3mlx:
                delta["role"] = "assistant"
            said = {"delta": {} if part.reason and not part.text else delta}
        logprobs = self._logprobs(part.index, part.chances)
        choice = {"index": part.index, **said, "logprobs": logprobs, "finish_reason": part.reason}
        event = {**self._head, "object": kind, "choices": [choice]}
        if part.m3mlx:
            event["m3mlx"] = part.m3mlx
        if self._usage:
            event["usage"] = None
        if not (self._usage and part.total):
            return [event]
        return [event, {**self._head, "object": kind, "choices": [], "usage": part.total}]

    def _logprobs(self, index: int, chances: Sequence[TokenChance]) -> dict[str, Any] | None:
        """Return the log probabilities of tokens, as chats and completions have them."""
        if self._asked.requests[0].chances is None:
            return None
        if not self.raw:
            return {"content": [_chat_chance(each) for each in chances], "refusal": None}
        offsets, at = [], self._begun.get(index, 0)
        for each in chances:
            offsets.append(at)
            at += len(each.text)
        self._begun[index] = at
        return {
            "tokens": [each.text for each in chances],
            "token_logprobs": [each.logprob for each in chances],
            "top_logprobs": [
                {other.text: other.logprob for other in each.top} or None for each in chances
            ],
            "text_offset": offsets,
        }


def _chat_chance(chance: TokenChance) -> dict[str, Any]:
    def one(each: TokenChance) -> dict[str, Any]:
        return {
            "token": each.text,
            "logprob": each.logprob,
            "bytes": list(each.text.encode()),
            "id": each.token,
        }

    return {**one(chance), "top_logprobs": [one(each) for each in chance.top]}


def check_tokens(inputs: Sequence[str | list[int]], known: int) -> None:
    """Raise BadRequest for token ids that are not the encoder's, which knows so many."""
    for tokens in inputs:
        if not isinstance(tokens, str) and not all(0 <= token < known for token in tokens):
            raise BadRequest(
                f"input has tokens that are not the encoder's, which knows {known}. Send texts "
                f"(in LangChain check_embedding_ctx_length=False).",
                "input",
            )


def shortened(vectors: np.ndarray, asked: EmbeddingRequest) -> np.ndarray:
    """Return vectors with as many dimensions as asked for, of length 1; (texts, dimensions)."""
    if asked.dimensions is None:
        return vectors
    if asked.dimensions > vectors.shape[1]:
        raise BadRequest(f"Vectors have {vectors.shape[1]} dimensions here.", "dimensions")
    cut = vectors[:, : asked.dimensions]
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)


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
