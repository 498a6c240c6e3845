"""The format of memories: how a decoder writes and reads them under a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..config import MemoryConfig, fingerprint
from ..models.decoder import Decoder
from .cache import Layout, PrefixStates, read_prefix
from .codec import Codec, Memory
from .write import Writer


class MemoryFormat:
    """Writes references as records, and reads records as memories.

    Attributes:
        codec: packs memories into records.
        layout: place of each layer's and head's tokens in a record.
        record_bytes: length of one record.
    """

    def __init__(self, decoder: Decoder, config: MemoryConfig):
        self.decoder, self.config = decoder, config
        self.template = decoder.template
        self.codec, self.layout = Codec(config), Layout(config)
        self.record_bytes: int = self.codec.record_bytes

    @cached_property
    def prefix(self) -> PrefixStates:
        """Keys and values of the constant prefix that stands before every memory."""
        return read_prefix(self.decoder.model, self.config.prefix)

    @cached_property
    def _writer(self) -> Writer:
        return Writer(self.decoder.model, self.prefix, self.template.recite)

    def fingerprint(self) -> dict[str, str]:
        """Return every condition under which the memories are made, and the model's name."""
        folder = Path(self.decoder.name).expanduser()
        name = str(folder.absolute()) if folder.is_dir() else self.decoder.name
        return {**conditions(self.decoder, self.config), "model": name}

    def write(self, references: Sequence[Sequence[int]]) -> np.ndarray:
        """Make records of references given as token ids: uint8 (batch, record_bytes).

        Tokens beyond ``reference_tokens`` of the configuration are left out.
        """
        longest = self.config.reference_tokens
        cut = [tokens[:longest] for tokens in references]
        return self.codec.pack(self._writer.write(cut, self.config))

    def read(self, records: np.ndarray) -> Memory:
        """Unpack memories from records, uint8 (batch, record_bytes)."""
        return self.codec.unpack(records, self.prefix[0][0].dtype)


def conditions(decoder: Decoder, config: MemoryConfig) -> dict[str, str]:
    """Return every condition under which a decoder makes memories of a configuration.

    The prefix is the decoder's own, so that a changed chat template is noticed.
    """
    return fingerprint(
        replace(config, prefix=decoder.template.prefix),
        weights=decoder.weights,
        tokenizer=decoder.tokenizer_hash,
        rope=decoder.rope,
        adapter=decoder.adapter,
    )
