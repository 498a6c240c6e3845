"""Conversations: read prompts in chunks, decode answers, refresh memories every 64 tokens.

The schedule is the paper's (sections 3.1 and 7.5). Each chunk of 64 prompt tokens retrieves with
its own text and reads its own memories. The first answer tokens inherit the memories of the last
prompt chunk. Then every 64 generated tokens retrieve the memories of the next 64. The tail of a
prompt is a chunk, however short.

In the paper all memories count the same, as its model has learned which of them to use. Other
models take the wrong one of several. So each memory is weighted by its search score: its share of
the softmax is multiplied by ``exp((score - best) / memory_temperature)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..config import CHUNK_TOKENS, MEMORIES
from ..memory.cache import Layout, MemoryCache, PrefixStates, make_cache
from ..memory.codec import Memory
from ..memory.rewind import Marks, take_back
from ..models.caches import leaves
from ..models.decoder import Decoder
from ..models.hooks import last_rows
from ..models.template import Turn
from ..text import shared_length
from .attention import AttentionShares
from .step import Step, Timings
from .thoughts import AnswerText

PREFILL_STEP = 512  # prompt tokens in one pass, to bound memory use
WATCHED_EVERY, WATCHED_LAYERS = 8, 4  # tokens and layers in which attention is looked at

Search = Callable[[Sequence[str], int], list[list[Any]]]  # texts, k -> hits of each
Read = Callable[[Sequence[Any]], Memory]  # hits -> their memories, in that order
Sampler = Callable[[mx.array], mx.array]
Processor = Callable[[mx.array, mx.array], mx.array]  # tokens, logits (1, vocabulary) -> logits
Change = Callable[[mx.array, bool], mx.array]  # logits (1, vocabulary), of a thought -> logits
Observe = Callable[[list[int], mx.array], None]  # tokens of a prompt, logits after each of them


@dataclass
class _Group:
    """Consecutive chunks that read the same memories, run in one pass."""

    tokens: list[int]
    hits: list[Any] | None = None  # None keeps the attached memories


class Conversation:
    """The caches of one conversation; each token is fed to the model once.

    Args:
        decoder: the language model.
        prefix: keys and values of the constant prefix.
        layout: layout of the memories; None if none are read.
        search: texts and k to the hits of each text; None to read no memories. Hits are hashable;
            with ``memory_temperature`` they have a ``score``.
        read: hits to their memories, in the same order.
        memories: memories read by each chunk.
        memory_temperature: a memory scored this much below the best of its chunk counts e times
            less; None to weight all the same.
        kv_bits: 8 or 4 to quantize the context.

    Attributes:
        tokens: all in the caches, the prefix left out.
        reads_ahead: feed a token before it is read; False for those who look at each pass.
        sources: hits whose memories the present turn has read so far.
        attached: those that the next token attends to.
        asked: where the last turn with hits of its own begins, and these hits.
        while_reading: called between the passes of a prompt; an exception it raises ends the turn.
        ends: token ids before which an answer ends, beside the model's own.
    """

    def __init__(
        self,
        decoder: Decoder,
        prefix: PrefixStates,
        layout: Layout | None = None,
        *,
        search: Search | None = None,
        read: Read | None = None,
        memories: int = MEMORIES,
        memory_temperature: float | None = None,
        kv_bits: int | None = None,
    ):
        self.decoder, self.layout = decoder, layout
        self.caches = make_cache(decoder.model, prefix, kv_bits=kv_bits)
        self.memories, self.memory_temperature = memories, memory_temperature
        self.timings = Timings()
        self.tokens: list[int] = []
        self.reads_ahead = True
        self.sources: list[Any] = []
        self.attached: list[Any] = []
        self.asked: tuple[int, list[Any]] | None = None
        self.while_reading: Callable[[], None] = lambda: None
        self.ends: Sequence[int] = ()
        self._marks = Marks()
        self._search, self._read = search, read
        self._thinking = False  # the last turn has opened a thought
        self._pending: list[int] = []  # generated, not yet in the caches
        self._held: tuple[list[Any], Memory | None] = [], None  # hits read last, with memories
        self._prefix_tokens = prefix[0][0].shape[2] if prefix else 0

    @property
    def position(self) -> int:
        """Position behind all that was said; memories take their interval once they are read."""
        cache = next(cache for cache in leaves(self.caches) if isinstance(cache, MemoryCache))
        gap = self.layout.gap if self.layout and self._search and not cache.gap else 0
        return cache.offset + len(self._pending) + gap

    @property
    def first(self) -> int:
        """Position of the first token after the prefix, once memories are read."""
        return self._prefix_tokens + (self.layout.gap if self.layout and self._search else 0)

    @property
    def nbytes(self) -> int:
        """Bytes of the caches."""
        return sum(cache.nbytes for cache in leaves(self.caches)) + self._marks.nbytes

    def continued(self, whole: Turn, hits: Sequence[Any] | None) -> Turn:
        """Go back to where the conversation leaves a whole one, and return the rest of that.

        The words of the last turn are read again if other hits belong to them now.

        Args:
            hits: see ``prefill``.
        """
        shared = shared_length(self.tokens, whole.tokens)
        shared = min(shared, len(whole.tokens) - 1)
        if self._search and self.asked != (whole.start, hits):
            shared = min(shared, max(whole.start, whole.head))
        return whole.rest(self.keep(shared))

    def keep(self, count: int) -> int:
        """Go back to the first ``count`` tokens, or as near as the caches can; return where.

        At 0 the conversation is of no more use; begin another.
        """
        self._pending = []
        if count >= len(self.tokens):
            return len(self.tokens)
        self.caches, count = self._marks.go_back(self.caches, len(self.tokens), count)
        del self.tokens[count:]
        return count

    def prefill(
        self,
        turn: Turn,
        *,
        query: str = "chunk",
        hits: Sequence[Any] | None = None,
        rows: int = 1,
        observe: Observe | None = None,
    ) -> mx.array:
        """Feed a turn, each chunk with its own memories.

        Args:
            query: "chunk" retrieves with each chunk's own words, "message" with the words of the
                whole turn.
            hits: what was found for the whole turn; None to retrieve.
            rows: number of last tokens whose logits to return.
            observe: gets tokens and the logits after each of them.

        Returns:
            Logits (rows, vocabulary), float32.
        """
        self._thinking = self.decoder.template.opens_thought(turn.tokens)
        self._held = [], None  # compacting a store between turns renumbers its slots
        start = perf_counter()
        before = self.timings.retrieve_seconds + self.timings.read_seconds
        tokens = [*self._pending, *turn.tokens]
        shift = len(self._pending)
        head = turn.head + shift if turn.head else 0
        words = range(turn.words[0] + shift - head, turn.words[1] + shift - head)
        groups, memory_of = self._plan(tokens[head:], words, query, hits)
        if head:
            groups.insert(0, _Group(tokens[:head], [] if self._search else None))
            if self.layout and self._search:
                self.layout.reserve(self.caches)
        if hits is not None:
            self.asked = len(self.tokens) + shift + turn.start, list(hits)
        self._pending = []
        logits: list[mx.array] = []
        left, fed = len(tokens), 0
        places = {0, head, shift + turn.start}
        for group, part in _passes(groups, places if Marks.needed(self.caches) else ()):
            if fed:
                self.while_reading()
            if group and group.hits is not None:
                self._attach(memory_of(group.hits), group.hits)
            if fed in places:
                self._marks.set(self.caches, len(self.tokens))
            left, fed = left - len(part), fed + len(part)
            wanted = min(max(rows - left, 0), len(part))
            found = self._feed(part, len(part) if observe else wanted)
            mx.eval(found)
            if observe:
                observe(part, found)
            logits.append(found[len(found) - wanted :])
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
        processors: Sequence[Processor] = (),
        grammar: Processor | None = None,
        query: str = "chunk",
        hits: Sequence[Any] | None = None,
        pasted: Sequence[Any] = (),
        retrieve_seconds: float = 0.0,
        tell_thoughts: bool = True,
        observe: Observe | None = None,
    ) -> Iterator[Step]:
        """Feed a turn and generate the answer: a step for each token and one at the end.

        The caller may stop iterating at any step and continue with another turn.

        Args:
            max_tokens: maximum length of the answer.
            sampler: log probabilities (1, vocabulary) to a token (1,); None for greedy.
            processors: change the logits, in their order, knowing all tokens so far.
            grammar: the same for an answer of some form, called for each of its tokens only.
            query, hits, observe: see ``prefill``.
            pasted: hits whose text is in the turn; they are its sources.
            retrieve_seconds: time it took to find ``hits`` or ``pasted``.
            tell_thoughts: tell thoughts apart; False to take them for text like any other.
        """
        found = hits is not None
        self.timings = Timings(retrieve_seconds=retrieve_seconds, retrievals=int(found))
        self.sources = list(pasted)
        logits = self.prefill(turn, query=query, hits=hits, observe=observe)
        change = self._change(processors, grammar) if processors or grammar else None
        yield from self.decode(logits, max_tokens, sampler, change, tell_thoughts=tell_thoughts)

    def decode(
        self,
        logits: mx.array,
        max_tokens: int,
        sampler: Sampler | None = None,
        change: Change | None = None,
        *,
        tell_thoughts: bool = True,
    ) -> Iterator[Step]:
        """Generate an answer from the logits of ``prefill``; see ``stream``."""
        model, prefix = self.decoder.model, self._prefix_tokens
        attention = AttentionShares(model, prefix, lambda: len(self.attached))
        with attention.observe() if self._search else nullcontext():
            yield from self._decoded(attention, logits, max_tokens, sampler, change, tell_thoughts)

    def _decoded(
        self,
        attention: AttentionShares,
        logits: mx.array,
        max_tokens: int,
        sampler: Sampler | None,
        change: Change | None,
        tell_thoughts: bool,
    ) -> Iterator[Step]:
        timings = self.timings
        waited = timings.retrieve_seconds + timings.read_seconds + timings.prefill_seconds
        answer = AnswerText(self.decoder.tokenizer, self._thinking, tell_thoughts)
        generated: list[int] = []
        thoughts: list[bool] = []  # of each generated token
        span, decoding, reason = 0, 0.0, "length"
        seen: list[np.ndarray] = []  # shares of attention in this span
        shares: dict[Any, float] = {}

        def refresh(fed: int) -> None:
            nonlocal span, seen, shares
            last = range(fed - CHUNK_TOKENS, fed)
            self._refresh([generated[n] for n in last if not thoughts[n]])
            span, seen, shares = span + 1, [], {}

        def changed(logits: mx.array) -> mx.array:
            return logits if change is None else change(logits[-1:], answer.thinking)

        ends = self._ends
        ahead = self.reads_ahead and change is None  # a change needs to know all tokens
        start = perf_counter()
        draw = partial(_Drawn, sampler=sampler, change=changed)
        for token, logprobs, mean in self._drawn(
            attention, logits, max_tokens, draw, refresh, ahead
        ):
            if mean is not None:
                seen.append(np.array(mean[:-2]))
                got = dict(zip(self.attached, np.mean(seen, axis=0).tolist(), strict=True))
                shares = {hit: got.get(hit, 0.0) for hit in self.sources}
            if generated:
                decoding += perf_counter() - start
            else:
                timings.first_token_seconds = waited + perf_counter() - start
            if token in ends:
                reason = "stop"
                break
            generated.append(token)
            timings.generated_tokens = len(generated)
            timings.decode_tokens_per_second = (len(generated) - 1) / max(decoding, 1e-9)
            text, thought = answer.add(token)
            thoughts.append(thought)
            known = text, token, logprobs, span
            yield Step(*known, *self._used(shares), timings, None, thought)
            if len(generated) % 256 == 0:
                mx.clear_cache()
            start = perf_counter()
        text, thought = answer.end(), answer.thinking
        yield Step(text, None, None, span, *self._used(shares), timings, reason, thought)

    def _drawn(
        self,
        attention: AttentionShares,
        logits: mx.array,
        max_tokens: int,
        draw: Callable[..., _Drawn],
        refresh: Callable[[int], None],
        ahead: bool,
    ) -> Iterator[tuple[int, mx.array, mx.array | None]]:
        """Yield tokens with their log probabilities and shares of attention, up to the turn's end.

        A token is fed to the model before it is read, so that the device has work while Python
        has: not the first, which is told at once, and not before memories change.

        Args:
            draw: draws a token from logits.
            refresh: changes the memories, called with the number of tokens fed.
            ahead: feed tokens before they are read.
        """
        ends = self._ends
        drawn = draw(logits)
        for fed in range(max_tokens):
            last = fed + 1 == max_tokens
            changes = bool(self._search) and fed > 0 and fed % CHUNK_TOKENS == 0
            following, token = None, None
            if ahead and fed and not changes and not last:
                undo = take_back(self.caches)
                following = self._step(drawn.token, fed, attention, draw)
            try:
                token = drawn.read()
            finally:
                if following and (token is None or token in ends):
                    undo()
            if following and token not in ends:
                self.tokens.append(token)
            self._pending = [] if following or token in ends else [token]
            yield token, drawn.logprobs, drawn.shares
            if last or token in ends:
                return
            if not following:
                if changes:
                    refresh(fed)
                self._pending = []
                following = self._step([token], fed, attention, draw)
            drawn = following

    @property
    def _ends(self) -> set[int]:
        return {*self.decoder.tokenizer.eos_token_ids, *self.ends}

    def _step(
        self,
        token: mx.array | list[int],
        fed: int,
        attention: AttentionShares,
        draw: Callable[..., _Drawn],
    ) -> _Drawn:
        """Feed a token and draw the next one, without waiting for either."""
        watching = bool(self.attached) and fed % WATCHED_EVERY == 0
        attention.watch(self.caches, WATCHED_LAYERS if watching else 0)
        logits = self._feed(token)
        return draw(logits, shares=attention.mean())

    def _used(self, shares: Mapping[Any, float]) -> tuple[list[Any], tuple[float, ...]]:
        """Sources and shares of a step."""
        if not shares:
            return self.sources, ()
        sources = sorted(shares, key=lambda hit: -shares[hit])
        return sources, tuple(shares[hit] for hit in sources)

    def loss(self, turn: Turn, answer: Sequence[int]) -> float:
        """Return the mean negative log-likelihood of an answer after a turn, in nats per token."""
        both = Turn((*turn.tokens, *answer[:-1]), turn.words)
        return _loss(self.prefill(both, query="message", rows=len(answer)), answer)

    def loss_after(self, logits: mx.array, answer: Sequence[int]) -> float:
        """Return the same after ``prefill``, whose result is ``logits``."""
        if len(answer) > 1:
            logits = mx.concatenate([logits[-1:], self._feed(list(answer[:-1]), len(answer) - 1)])
        return _loss(logits, answer)

    def fork(self, search: Search | None = None) -> Conversation:
        """Return a copy that continues independently; ``search`` is used instead if it searches."""
        other = copy(self)
        other._search = self._search and (search or self._search)
        other.caches, other._marks = deepcopy(self.caches), deepcopy(self._marks)
        other.tokens, other.timings = self.tokens.copy(), replace(self.timings)
        return other

    def _feed(self, tokens: list[int] | mx.array, rows: int = 1) -> mx.array:
        """Run tokens through the model; return the last logits, float32 (rows, vocabulary)."""
        with last_rows(self.decoder.model, rows):
            logits = self.decoder.model(mx.array(tokens)[None], cache=self.caches)
        if isinstance(tokens, list):
            self.tokens += tokens
        return logits[0].astype(mx.float32)

    def _change(self, processors: Sequence[Processor], grammar: Processor | None) -> Change:
        """Return what changes the logits (1, vocabulary) of the next token, or of a thought's."""

        def change(logits: mx.array, thinking: bool) -> mx.array:
            tokens = mx.array([*self.tokens, *self._pending])
            for process in processors:
                logits = process(tokens, logits)
            return logits if thinking or grammar is None else grammar(tokens, logits)

        return change

    def _plan(
        self, tokens: list[int], words: range, query: str, hits: Sequence[Any] | None
    ) -> tuple[list[_Group], Callable[[list[Any]], Memory | None]]:
        """Split a prompt into groups of chunks, and read all their memories at once.

        Returns:
            The groups, and a function from a group's hits to their memories.
        """
        if self._search is None or (hits is None and not len(words)):
            return [_Group(tokens)], lambda hits: None
        starts = range(0, len(tokens), CHUNK_TOKENS)
        parts = [range(max(i, words.start), min(i + CHUNK_TOKENS, words.stop)) for i in starts]
        whole = hits is not None or query == "message"
        searched = [words] if whole else [part for part in parts if part]
        if hits is not None:
            found = [list(hits)]
        else:
            found = self._find([self._text([tokens[i] for i in part]) for part in searched])
        # A chunk without the user's words, such as the template's end, reads its neighbour's.
        next_hits, current = iter(found), found[0]
        groups: list[_Group] = []
        for start, part in zip(starts, parts, strict=True):
            if part and not whole:
                current = next(next_hits)
            chunk = tokens[start : start + CHUNK_TOKENS]
            if groups and groups[-1].hits == current:
                groups[-1].tokens += chunk
            else:
                groups.append(_Group(chunk, current))
        self.sources = list(dict.fromkeys(hit for some in found for hit in some))
        rows = {hit: row for row, hit in enumerate(self.sources)}
        memory = self._memories_of(self.sources)

        def memory_of(hits: list[Any]) -> Memory | None:
            return memory.take([rows[hit] for hit in hits]) if memory and hits else None

        return groups, memory_of

    def _refresh(self, tokens: list[int]) -> None:
        """Read the memories of these tokens.

        Keep those that were read where all were thoughts, and where nothing fits.
        """
        (found,) = self._find([self._text(tokens)]) if tokens else ([],)
        if not found:
            return
        self.sources = found
        self._attach(self._memories_of(self.sources), self.sources)

    def _attach(self, memory: Memory | None, hits: list[Any]) -> None:
        if self.layout:
            self.attached = hits
            weights = None
            if self.memory_temperature and hits:
                scores = np.array([hit.score for hit in hits], np.float32)
                weights = (scores - scores.max()) / np.float32(self.memory_temperature)
            self.layout.attach(self.caches, memory, weights)

    def _text(self, tokens: list[int]) -> str:
        return self.decoder.tokenizer.decode(tokens, skip_special_tokens=True)

    def _find(self, texts: list[str]) -> list[list[Any]]:
        """Search for each text."""
        assert self._search
        start = perf_counter()
        found = self._search(texts, self.memories)
        self.timings.retrieve_seconds += perf_counter() - start
        self.timings.retrievals += len(texts)
        return found

    def _memories_of(self, hits: list[Any]) -> Memory | None:
        """Return the memories of hits, in order; those of the last call are not read again."""
        assert self._read
        start = perf_counter()
        known, memory = self._held
        if missing := [hit for hit in hits if hit not in known]:
            read = self._read(missing)
            known = [*known, *missing]
            memory = read if memory is None else Memory.join([memory, read])
        if memory is not None:
            memory = memory.take([known.index(hit) for hit in hits]) if hits else None
        self._held = list(hits), memory
        self.timings.read_seconds += perf_counter() - start
        return memory


def _passes(
    groups: Sequence[_Group], places: Iterable[int]
) -> Iterator[tuple[_Group | None, list[int]]]:
    """Yield the tokens of each pass, none of which goes beyond a place; a new group with them."""
    before = 0
    for group in groups:
        length = len(group.tokens)
        cuts = {place - before for place in places if before < place < before + length}
        cuts |= {*range(PREFILL_STEP, length, PREFILL_STEP)}
        for begin, end in pairwise([0, *sorted(cuts), length]):
            yield None if begin else group, group.tokens[begin:end]
        before += length


class _Drawn:
    """A token that is being computed.

    Attributes:
        token: int (1,).
        logprobs: (vocabulary,), computed when somebody looks.
        shares: of the attention of the pass that it came of, (memories + 2,).
    """

    def __init__(
        self,
        logits: mx.array,
        sampler: Sampler | None,
        change: Callable[[mx.array], mx.array],
        shares: mx.array | None = None,
    ):
        logits = change(logits)
        logprobs = _logprobs(logits[-1:])
        drawn = sampler(logprobs) if sampler else mx.argmax(logits[-1:], axis=-1)
        self.token, self.logprobs, self.shares = drawn.reshape(1), logprobs[0], shares
        mx.async_eval(self.token, *([] if shares is None else [shares]))

    def read(self) -> int:
        """Wait for the token."""
        return cast(int, self.token.item())


def _logprobs(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _loss(logits: mx.array, answer: Sequence[int]) -> float:
    target = mx.array(list(answer))[:, None]
    return -cast(float, mx.take_along_axis(_logprobs(logits), target, axis=-1).mean().item())
