"""One way of writing and reading memories: a decoder with a memory configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from ..config import MemoryConfig, fingerprint
from ..models.decoder import Decoder
from .cache import Layout, PrefixStates, read_prefix
from .codec import Codec, Memory
from .write import Writer


class MemoryFormat:
    """Writes references as records, and reads records as memories.

    Attributes:
        layout: where each layer's and head's tokens stand in a record.
        record_bytes: length of one record.
    """

    def __init__(self, decoder: Decoder, config: MemoryConfig):
        self.decoder, self.config = decoder, config
        self.template = decoder.template
        self.codec, self.layout = Codec(config), Layout(config)
        self.record_bytes: int = self.codec.record_bytes

    @cached_property
    def prefix(self) -> PrefixStates:
        """Keys and values of the constant prefix, which stands before every memory."""
        return read_prefix(self.decoder.model, self.config.prefix)

    @cached_property
    def _writer(self) -> Writer:
        return Writer(self.decoder.model, self.prefix, self.template.recite)

    def fingerprint(self) -> dict[str, str]:
        """Every condition under which the memories are made, and the model's name."""
        return {**conditions(self.decoder, self.config), "model": self.decoder.name}

    def write(self, references: Sequence[Sequence[int]]) -> np.ndarray:
        """Records of references given as token ids: uint8 (batch, record_bytes).

        Tokens behind the longest reference that the configuration knows are left out.
        """
        longest = self.config.reference_tokens
        cut = [tokens[:longest] for tokens in references]
        return self.codec.pack(self._writer.write(cut, self.config))

    def read(self, records: np.ndarray) -> Memory:
        """Memories from records, uint8 (batch, record_bytes)."""
        return self.codec.unpack(records, self.prefix[0][0].dtype)


def conditions(decoder: Decoder, config: MemoryConfig) -> dict[str, str]:
    """Every condition under which a decoder makes memories of a configuration.

    The prefix is the decoder's present one, so that a changed chat template shows.
    """
    return fingerprint(
        replace(config, prefix=decoder.template.prefix),
        weights=decoder.weights,
        tokenizer=decoder.tokenizer_hash,
        rope=decoder.rope,
        adapter=decoder.adapter,
    )
