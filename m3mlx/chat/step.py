"""What an answer yields for each of its tokens, and how long it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx


@dataclass
class Timings:
    """Timings and counts of one answer."""

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

    Fields and properties named as in mlx-lm's ``GenerationResponse`` mean the same.

    Attributes:
        text: text that the token adds to the answer, or to a thought.
        token: its id, None in the last step.
        logprobs: (vocabulary,) log probabilities it was drawn from.
        span: number of the 64 answer tokens it belongs to, from 0.
        sources: hits whose memories this span reads: as the search ordered them, and once their
            shares are known the most used first.
        shares: of the attention, for each of them, on average over the span so far; () where it
            is not known yet, or cannot be.
        timings: of the whole answer; complete in the last step.
        finish_reason: "stop", "length", or None before the end.
        thought: the token belongs to a thought of the model, not to its answer; in the last step,
            the answer ended in a thought.
    """

    text: str
    token: int | None
    logprobs: mx.array | None
    span: int
    sources: list[Any]
    shares: Sequence[float]
    timings: Timings
    finish_reason: str | None = None
    thought: bool = False

    @property
    def used(self) -> list[bool]:
        """Of each source, whether its memory received at least half of an equal share."""
        enough = sum(self.shares) / (2 * max(len(self.shares), 1))
        return [share >= enough for share in self.shares] or [True] * len(self.sources)

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
        """Peak memory use of MLX, in GB."""
        return mx.get_peak_memory() / 1e9
