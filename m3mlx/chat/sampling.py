"""How the next token is drawn: mlx-lm's samplers and processors, and answers of a given form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from ..config import Generation
from ..errors import M3Error
from ..memory.cache import known_tokens
from ..models.decoder import Decoder
from .conversation import Processor

# How JSON is spaced; with as much space as one likes, small models write nothing else.
AS_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def choices(decoder: Decoder, how: Generation) -> dict[str, Any]:
    """Return the arguments of ``Conversation.stream`` that draw tokens as asked for.

    Raises:
        M3Error: a biased token is none of the model's, or the schema cannot be kept to.
    """
    known = known_tokens(decoder.model)
    for token in how.logits.get("logit_bias") or ():
        if not 0 <= token < known:
            raise M3Error(f"logit_bias: token {token} is not one of this model's {known}")
    sampler = make_sampler(
        how.temp,
        how.top_p,
        how.min_p,
        top_k=how.top_k if how.top_k < known else 0,
        xtc_probability=how.xtc_probability,
        xtc_threshold=how.xtc_threshold,
        xtc_special_tokens=list(decoder.tokenizer.eos_token_ids),
    )
    return {
        "sampler": sampler if how.temp else None,
        "processors": make_logits_processors(**how.logits),
        "grammar": None if how.schema is None else _grammar(decoder, how.schema),
    }


def can_keep_to_schemas() -> bool:
    """Return whether the library is there with which answers keep to a JSON schema."""
    try:
        import llguidance  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def _grammar(decoder: Decoder, schema: Mapping[str, Any]) -> Processor:
    """Return what leaves only tokens that keep to a JSON schema, for one answer."""
    try:
        from llguidance import LLMatcher
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask
    except ModuleNotFoundError as error:
        raise M3Error("a schema needs llguidance: pip install 'm3mlx[schema]'") from error
    known = _vocabulary(decoder.tokenizer)
    try:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=AS_JSON)
        matcher = LLMatcher(known, grammar)
    except ValueError as error:
        raise M3Error(f"the schema is refused: {error}") from error
    if matcher.is_error():
        raise M3Error(f"the schema is refused: {matcher.get_error().splitlines()[0]}")
    mask = allocate_token_bitmask(1, known.vocab_size)
    begun = False

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        nonlocal begun
        if begun:
            matcher.consume_token(tokens[-1].item())
        begun = True
        fill_next_token_bitmask(matcher, mask)
        allowed = np.unpackbits(mask.view(np.uint8), bitorder="little")[: logits.shape[-1]]
        allowed = np.pad(allowed, (0, logits.shape[-1] - len(allowed)))
        return mx.where(mx.array(allowed.astype(bool)), logits, -mx.inf)

    return process


@lru_cache(maxsize=1)
def _vocabulary(tokenizer: Any) -> Any:
    """Return what llguidance knows of a tokenizer, which takes a second to make."""
    from llguidance import LLTokenizer

    ends = sorted(tokenizer.eos_token_ids)
    return LLTokenizer(tokenizer.backend_tokenizer.to_str(), eos_token=ends)
