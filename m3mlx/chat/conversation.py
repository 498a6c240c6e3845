"""One conversation: prompts read in chunks, answers decoded, memories refreshed every 64 tokens.

The schedule is the paper's (sections 3.1 and 7.5): every chunk of 64 prompt tokens retrieves
with its own text and reads its own memories; the first answer tokens inherit those of the last
prompt chunk; from then on every 64 generated tokens retrieve the memories of the next 64. The
tail of a prompt is a chunk, however short.

In the paper all memories count the same, and its model has learned which to heed. A model that
has not takes the wrong one of several, so each counts by its score in the search: the softmax of
attention gives a memory ``exp((score - best) / memory_temperature)`` of what it would give it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np

from ..config import CHUNK_TOKENS, MEMORIES, MemoryConfig
from ..memory.cache import Layout, PrefixStates, make_cache
from ..memory.codec import Memory
from ..models.decoder import Decoder, last_rows
from ..models.template import Turn

PREFILL_STEP = 512  # most tokens of a prompt in one pass, which bounds memory

Search = Callable[[Sequence[str], int], list[list[Any]]]  # texts, k -> hits of each
Read = Callable[[Sequence[int]], Memory]  # slots -> their memories, in that order
Sampler = Callable[[mx.array], mx.array]


@dataclass
class Timings:
    """What one answer took, in seconds but for the last four."""

    retrieve_seconds: float = 0.0
    read_seconds: float = 0.0
    prefill_seconds: float = 0.0
    first_token_seconds: float = 0.0
    decode_tokens_per_second: float = 0.0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    retrievals: int = 0


@dataclass
class Step:
    """One generated token; the last step of an answer has a ``finish_reason`` and no token.

    The fields that mlx-lm's ``GenerationResponse`` has too mean the same.

    Attributes:
        text: what the token adds to the answer.
        token: its id, None in the last step.
        logprobs: (vocabulary,) log probabilities it was drawn from.
        span: number of the span of 64 answer tokens it belongs to.
        sources: the hits whose memories this span reads, in the order of the search.
        timings: of the whole answer; complete in the last step.
        finish_reason: "stop", "length", or None before the end.
    """

    text: str
    token: int | None
    logprobs: mx.array | None
    span: int
    sources: list[Any]
    timings: Timings
    finish_reason: str | None = None

    @property
    def prompt_tokens(self) -> int:
        return self.timings.prompt_tokens

    @property
    def prompt_tps(self) -> float:
        return self.timings.prompt_tokens / max(self.timings.prefill_seconds, 1e-9)

    @property
    def generation_tokens(self) -> int:
        return self.timings.generated_tokens

    @property
    def generation_tps(self) -> float:
        return self.timings.decode_tokens_per_second

    @property
    def peak_memory(self) -> float:
        """Most memory that MLX has held, in GB."""
        return mx.get_peak_memory() / 1e9


@dataclass
class _Group:
    """Consecutive chunks that read the same memories, run in one pass."""

    tokens: list[int]
    hits: list[Any] | None = None  # None leaves what was read before


class Conversation:
    """The caches of one conversation; each token is fed to the model once.

    Args:
        decoder: the language model.
        prefix: keys and values of the constant prefix.
        config: how memories were written; None for a conversation that never reads any.
        search, read: where memories come from; None to read none. Hits have a ``slot`` and, for
            ``memory_temperature``, a ``score``.
        memories: how many each chunk reads.
        memory_temperature: a memory whose score is lower than the best of its chunk by this
            counts e times less; None where all count the same.
        kv_bits: 8 or 4 to keep the context quantized.
    """

    def __init__(
        self,
        decoder: Decoder,
        prefix: PrefixStates,
        config: MemoryConfig | None = None,
        *,
        search: Search | None = None,
        read: Read | None = None,
        memories: int = MEMORIES,
        memory_temperature: float | None = None,
        kv_bits: int | None = None,
    ):
        self.decoder = decoder
        self.caches = make_cache(decoder.model, prefix, kv_bits=kv_bits)
        self.layout = Layout(config) if config else None
        self.search, self.read = search, read
        self.memories, self.memory_temperature = memories, memory_temperature
        self.timings = Timings()
        self.sources: list[Any] = []
        self._pending: list[int] = []  # generated, not yet in the caches
        self._held: tuple[list[int], Memory | None] = [], None  # what was read last, by slot

    def prefill(self, turn: Turn, *, query: str = "chunk", rows: int = 1) -> mx.array:
        """Feed a turn, each chunk beside its own memories.

        Args:
            query: "chunk" retrieves with each chunk's own words, "message" with all words of
                the turn for every chunk.
            rows: logits wanted, of the last tokens.

        Returns:
            Logits (rows, vocabulary), float32.
        """
        self._held = [], None  # between turns a store may be compacted, which renumbers
        start = perf_counter()
        before = self.timings.retrieve_seconds + self.timings.read_seconds
        if self.search is None:
            self._attach(None, [])
            self.sources = []
        tokens = [*self._pending, *turn.tokens]
        shift = len(self._pending)
        words = range(turn.words[0] + shift, turn.words[1] + shift)
        groups, memory_of = self._plan(tokens, words, query)
        self._pending = []
        logits: list[mx.array] = []
        left = len(tokens)
        for group in groups:
            if group.hits is not None:
                self._attach(memory_of(group.hits), group.hits)
            for i in range(0, len(group.tokens), PREFILL_STEP):
                part = group.tokens[i : i + PREFILL_STEP]
                left -= len(part)
                logits.append(self._feed(part, max(rows - left, 0)))
                mx.eval(logits[-1])
        retrieval = self.timings.retrieve_seconds + self.timings.read_seconds - before
        self.timings.prompt_tokens += len(tokens)
        self.timings.prefill_seconds += perf_counter() - start - retrieval
        return mx.concatenate(logits)

    def stream(
        self,
        turn: Turn,
        *,
        max_tokens: int = 256,
        sampler: Sampler | None = None,
        query: str = "chunk",
    ) -> Iterator[Step]:
        """Feed a turn and generate the answer, a step for each token and one at the end.

        A caller may stop iterating at any step and go on with another turn later.

        Args:
            max_tokens: at most so many are generated.
            sampler: log probabilities (1, vocabulary) to a token (1,); greedy when None.
        """
        self.timings = Timings()
        yield from self.decode(self.prefill(turn, query=query), max_tokens, sampler)

    def decode(
        self, logits: mx.array, max_tokens: int, sampler: Sampler | None = None
    ) -> Iterator[Step]:
        """Generate an answer behind what was fed, as ``stream`` does.

        Args:
            logits: what ``prefill`` returned.
        """
        timings = self.timings
        waited = timings.retrieve_seconds + timings.read_seconds + timings.prefill_seconds
        detokenizer = self.decoder.tokenizer.detokenizer
        generated: list[int] = []
        span, decoding, reason = 0, 0.0, "length"
        while len(generated) < max_tokens:
            start = perf_counter()
            if generated:
                fed = len(generated) - 1
                if self.search and fed and fed % CHUNK_TOKENS == 0:
                    self._refresh(generated[fed - CHUNK_TOKENS : fed])
                    span += 1
                logits = self._feed(generated[-1:])
                self._pending = []
            logprobs = _logprobs(logits)[-1]
            drawn = sampler(logprobs[None]) if sampler else mx.argmax(logprobs)
            token = int(drawn.item())
            if generated:
                decoding += perf_counter() - start
            else:
                timings.first_token_seconds = waited + perf_counter() - start
            if token in self.decoder.tokenizer.eos_token_ids:
                reason = "stop"
                break
            generated.append(token)
            self._pending = [token]
            timings.generated_tokens = len(generated)
            timings.decode_tokens_per_second = (len(generated) - 1) / max(decoding, 1e-9)
            detokenizer.add_token(token)
            yield Step(detokenizer.last_segment, token, logprobs, span, self.sources, timings)
            if len(generated) % 256 == 0:
                mx.clear_cache()
        detokenizer.finalize()
        yield Step(detokenizer.last_segment, None, None, span, self.sources, timings, reason)

    def loss(self, turn: Turn, answer: Sequence[int]) -> float:
        """Mean negative log-likelihood of an answer's tokens after a turn, in nats per token."""
        both = Turn((*turn.tokens, *answer[:-1]), turn.words)
        return _loss(self.prefill(both, query="message", rows=len(answer)), answer)

    def loss_after(self, logits: mx.array, answer: Sequence[int]) -> float:
        """The same behind what was fed; ``logits`` is what ``prefill`` returned."""
        if len(answer) > 1:
            logits = mx.concatenate([logits[-1:], self._feed(list(answer[:-1]), len(answer) - 1)])
        return _loss(logits, answer)

    def fork(self) -> Conversation:
        """A copy that goes on from here by itself."""
        other = copy(self)
        other.caches = deepcopy(self.caches)
        other.timings = replace(self.timings)
        return other

    def _feed(self, tokens: list[int], rows: int = 1) -> mx.array:
        """Run tokens through the model; the last logits, float32 (rows, vocabulary)."""
        with last_rows(self.decoder.model, rows):
            logits = self.decoder.model(mx.array([tokens]), cache=self.caches)
        return logits[0].astype(mx.float32)

    def _plan(
        self, tokens: list[int], words: range, query: str
    ) -> tuple[list[_Group], Callable[[list[Any]], Memory | None]]:
        """Cut a prompt into groups of chunks, and read all their memories at once."""
        if self.search is None or not len(words):
            return [_Group(tokens)], lambda hits: None
        chunks = [tokens[i : i + CHUNK_TOKENS] for i in range(0, len(tokens), CHUNK_TOKENS)]
        parts = [
            range(max(i * CHUNK_TOKENS, words.start), min((i + 1) * CHUNK_TOKENS, words.stop))
            for i in range(len(chunks))
        ]
        if query == "message":
            parts = [words]
        texts = [self._text([tokens[i] for i in part]) for part in parts if part]
        found = self._search(texts)
        # A chunk without words of the user's, such as the template's end, reads its neighbour's.
        hits = iter(found)
        current, groups = found[0], []
        for i, chunk in enumerate(chunks):
            if query != "message" and parts[i]:
                current = next(hits)
            if groups and groups[-1].hits == current:
                groups[-1].tokens += chunk
            else:
                groups.append(_Group(list(chunk), current))
        self.sources = list({hit.slot: hit for some in found for hit in some}.values())
        rows = {slot: row for row, slot in enumerate(hit.slot for hit in self.sources)}
        memory = self._read(list(rows))

        def memory_of(hits: list[Any]) -> Memory | None:
            return memory.take([rows[hit.slot] for hit in hits]) if hits else None

        return groups, memory_of

    def _refresh(self, tokens: list[int]) -> None:
        self.sources = self._search([self._text(tokens)])[0]
        self._attach(self._read([hit.slot for hit in self.sources]), self.sources)

    def _attach(self, memory: Memory | None, hits: Sequence[Any]) -> None:
        if self.layout:
            weights = None
            if self.memory_temperature and hits:
                scores = np.array([hit.score for hit in hits], np.float32)
                weights = (scores - scores.max()) / np.float32(self.memory_temperature)
            self.layout.attach(self.caches, memory, weights)

    def _text(self, tokens: list[int]) -> str:
        return self.decoder.tokenizer.decode(tokens, skip_special_tokens=True)

    def _search(self, texts: list[str]) -> list[list[Any]]:
        start = perf_counter()
        found = self.search(texts, self.memories)
        self.timings.retrieve_seconds += perf_counter() - start
        self.timings.retrievals += len(texts)
        return found

    def _read(self, slots: list[int]) -> Memory | None:
        """Memories of slots, in that order; those that were read last are not read again."""
        start = perf_counter()
        known, memory = self._held
        if missing := [slot for slot in slots if slot not in known]:
            read = self.read(missing)
            known = [*known, *missing]
            memory = read if memory is None else Memory.join([memory, read])
        memory = memory.take([known.index(slot) for slot in slots]) if slots else None
        self._held = list(slots), memory
        self.timings.read_seconds += perf_counter() - start
        return memory


def _logprobs(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _loss(logits: mx.array, answer: Sequence[int]) -> float:
    target = mx.array(list(answer))[:, None]
    return -float(mx.take_along_axis(_logprobs(logits), target, axis=-1).mean().item())
