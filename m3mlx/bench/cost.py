"""The paper's cost calculator (appendix A): what a fact costs in parameters, memory and text."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import CHUNK_TOKENS, REFERENCE_TOKENS


@dataclass(frozen=True)
class Shape:
    """A decoder; defaults are the paper's.

    Attributes:
        memory_layers: those that a reference runs through when it is written.
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

    @property
    def _projections(self) -> int:
        """Multiplications of one token in the attention matrices of one layer."""
        queries, keys = self.query_heads * self.head_dim, self.kv_heads * self.head_dim
        return 2 * self.width * queries + 2 * self.width * keys

    @property
    def _mlp(self) -> int:
        return 3 * self.width * self.inner

    @property
    def _heads(self) -> int:
        return self.query_heads * self.head_dim


@dataclass(frozen=True)
class Cost:
    """Floating point operations for one reference.

    Attributes:
        learn: into the parameters, one training step (a lower bound).
        write, read: of its memory; reading is for one chunk of 64 tokens.
        text: of pasting it before one chunk.
    """

    learn: float
    write: float
    read: float
    text: float

    @property
    def worth(self) -> tuple[float, float]:
        """Uses between which explicit memory is the cheapest."""
        return self.write / (self.text - self.read), (self.learn - self.write) / self.read


def cost(shape: Shape) -> Cost:
    """What one reference costs, in the three forms that a fact can have."""
    tokens, heads = REFERENCE_TOKENS, shape._heads
    block = tokens * shape._projections
    learn = 6 * (
        shape.layers * (block + tokens * shape._mlp + 2 * tokens * (shape.sample / 2) * heads)
        + tokens * shape.vocabulary * shape.width
    )
    write = 2 * (
        shape.memory_layers * (block + tokens**2 * heads)
        + (shape.memory_layers - 1) * tokens * shape._mlp
        + shape.memory_layers * tokens**2 * heads
    )
    read = 4 * shape.memory_layers * CHUNK_TOKENS * shape.tokens_per_head * heads
    text = 2 * (
        shape.layers * (block + 2 * tokens * (tokens / 2 + CHUNK_TOKENS) * heads)
        + (shape.layers - 1) * tokens * shape._mlp
    )
    return Cost(learn, write, read, text)
