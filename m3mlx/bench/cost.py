"""The paper's cost model (appendix A): a fact kept in parameters, in memory or as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..config import CHUNK_TOKENS, REFERENCE_TOKENS, MemoryConfig
from ..models.decoder import Decoder


@dataclass(frozen=True)
class Shape:
    """A decoder; defaults are the paper's.

    Attributes:
        memory_layers: layers that a reference runs through when it is written.
        width: of the hidden vectors; inner: of the MLP.
        tokens_per_head: kept by each KV head of a memory layer.
        sample: tokens of one training sample.
    """

    layers: int = 44
    memory_layers: int = 22
    query_heads: int = 40
    kv_heads: int = 8
    head_dim: int = 80
    width: int = 3200
    inner: int = 3200
    vocabulary: int = 60416
    tokens_per_head: float = 8
    sample: int = 2048

    @classmethod
    def of(cls, decoder: Decoder, config: MemoryConfig) -> Shape:
        """Return the shape of a decoder whose memories are written in some way.

        Layers are taken to be as its first one that keeps keys and values.
        """
        embedding = next(iter(decoder.model.model.embed_tokens.parameters().values()))
        layer, heads = decoder.model.layers[0], decoder.geometry[0]
        memory_layers = 1 + max(n for n, counts in enumerate(config.counts) if any(counts))
        return cls(
            layers=decoder.layers,
            memory_layers=memory_layers,
            query_heads=heads.query_heads,
            kv_heads=heads.kv_heads,
            head_dim=heads.key_dim,
            width=getattr(layer, "hidden_size", heads.query_heads * heads.key_dim),
            inner=layer.mlp.up_proj.weight.shape[0],
            vocabulary=embedding.shape[0],
            # kept keys, as if all memory layers had as many
            tokens_per_head=config.kept / (heads.kv_heads * memory_layers),
        )


@dataclass(frozen=True)
class Cost:
    """Floating point operations for one reference.

    Attributes:
        learn: one training step that brings it into the parameters (a lower bound).
        write, read: of its memory; reading is for one chunk of 64 tokens.
        text: to read it as text before one chunk.
    """

    learn: float
    write: float
    read: float
    text: float

    @property
    def worth(self) -> tuple[float, float]:
        """Numbers of uses between which explicit memory is the cheapest."""
        return self.write / (self.text - self.read), (self.learn - self.write) / self.read

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "worth": self.worth}


def cost(shape: Shape) -> Cost:
    """Return the cost of one reference in each form of knowledge."""
    tokens, heads = REFERENCE_TOKENS, shape.query_heads * shape.head_dim
    # multiplications in one layer: attention matrices, MLP
    block = tokens * 2 * shape.width * (heads + shape.kv_heads * shape.head_dim)
    mlp = tokens * 3 * shape.width * shape.inner
    learn = 6 * (
        shape.layers * (block + mlp + 2 * tokens * (shape.sample / 2) * heads)
        + tokens * shape.vocabulary * shape.width
    )
    write = 2 * (
        shape.memory_layers * (block + 2 * tokens**2 * heads) + (shape.memory_layers - 1) * mlp
    )
    read = 4 * shape.memory_layers * CHUNK_TOKENS * shape.tokens_per_head * heads
    text = 2 * (
        shape.layers * (block + 2 * tokens * (tokens / 2 + CHUNK_TOKENS) * heads)
        + (shape.layers - 1) * mlp
    )
    return Cost(learn, write, read, text)
