"""The memory-augmented decoder in plain PyTorch, from the formulas of the paper and the design.

It is the other half of the parity suite and shares no code with ``m3mlx``: nothing is batched,
nothing is padded, and every head is computed separately, so that it is easy to check.
It runs on CPU and CUDA in float64, float32 (TensorFloat-32 off) and bfloat16, and gradients pass
through all of it.

Let ``m`` be the length of the constant prefix and ``R`` the longest reference. Positions:

    prefix      0 … m-1    sees itself
    reference   m …        when it is written: sees the prefix and itself, causally
    context     m+R …      sees the prefix, the memories of its chunk, and the context before it

Weights go by their names in a Hugging Face checkpoint. A head's keys and values are (tokens,
head_dim); ``h`` counts KV heads, and query heads ``h·g … h·g+g-1`` read what KV head ``h`` has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

R = 128  # longest reference, and the positions that all memories share (section 3.2)
CHUNK = 64  # tokens of prompt or answer that read the same memories (section 3.1)

Heads = list[tuple[Tensor, Tensor]]  # keys and values of each KV head of one layer
States = list[Heads]  # of each layer


@dataclass
class Kept:
    """The memory of one reference: of each layer and KV head, which tokens and what they hold."""

    positions: list[list[list[int]]]  # ascending, counted from the reference's start
    states: States  # keys after RoPE


@dataclass
class Context:
    """Keys and values of a conversation so far, and of the memories in front of it."""

    prefix: States
    position: int  # of the next token
    past: States = field(default_factory=list)
    memories: list[States] = field(default_factory=list)


class Reference:
    """A decoder of the llama, qwen2 or qwen3 family with explicit memory.

    Args:
        config: the contents of ``config.json``.
        weights: tensors by their Hugging Face names, all on one device and of one dtype.
        key_scale: factor on the keys of memories when they are read.
    """

    def __init__(self, config: dict, weights: dict[str, Tensor], key_scale: float = 1.0):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.weights = weights
        self.key_scale = key_scale
        self.lora: dict[str, tuple[Tensor, Tensor, float]] = {}  # A, B and scale by module name
        self.layers = config["num_hidden_layers"]
        self.query_heads = config["num_attention_heads"]
        self.kv_heads = config["num_key_value_heads"]
        self.group = self.query_heads // self.kv_heads
        self.head_dim = config.get("head_dim") or config["hidden_size"] // self.query_heads
        self.theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        self.eps = config["rms_norm_eps"]
        tied = config.get("tie_word_embeddings", False)
        self.head = "model.embed_tokens" if tied else "lm_head"
        self.watch: Callable[[int, Tensor], None] = lambda layer, output: None

    # --- the decoder

    def embed(self, tokens: Sequence[int]) -> Tensor:
        table = self.weights["model.embed_tokens.weight"]
        return table[torch.tensor(list(tokens), device=table.device)]

    def logits(self, x: Tensor) -> Tensor:
        """(tokens, width) to (tokens, vocabulary)."""
        return self.linear(self.norm(x, "model.norm"), self.head)

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = x @ self.weights[f"{name}.weight"].T
        if f"{name}.bias" in self.weights:
            y = y + self.weights[f"{name}.bias"]
        if name in self.lora:
            a, b, scale = self.lora[name]
            y = y + scale * (x @ a @ b)
        return y

    def norm(self, x: Tensor, name: str) -> Tensor:
        """RMSNorm: x / sqrt(mean(x²) + eps) · weight."""
        wide = _wide(x)
        wide = wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + self.eps)
        return (wide * _wide(self.weights[f"{name}.weight"])).to(x.dtype)

    def rotate(self, x: Tensor, start: int) -> Tensor:
        """RoPE: turns the pairs (x_i, x_{i+d/2}) of a token at position p by p · theta^(-2i/d)."""
        half = self.head_dim // 2
        exact = {"dtype": torch.float64, "device": x.device}
        turn = self.theta ** (-torch.arange(half, **exact) / half)
        angle = torch.arange(start, start + len(x), **exact)[:, None] * turn
        wide = _wide(x)
        cos, sin = angle.cos().to(wide.dtype), angle.sin().to(wide.dtype)
        one, two = wide[:, :half], wide[:, half:]
        return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1).to(x.dtype)

    def heads(self, x: Tensor, layer: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Queries, keys and values of each head, before RoPE; qwen3 normalizes queries and keys."""
        name = f"model.layers.{layer}.self_attn"
        q, k, v = (
            [*self.linear(x, f"{name}.{part}_proj").split(self.head_dim, dim=-1)] for part in "qkv"
        )
        if f"{name}.q_norm.weight" in self.weights:
            q = [self.norm(head, f"{name}.q_norm") for head in q]
            k = [self.norm(head, f"{name}.k_norm") for head in k]
        return q, k, v

    def attention(self, q: Tensor, k: Tensor, seen: Tensor | None = None) -> Tensor:
        """softmax(q·k / sqrt(d)) over the keys seen."""
        scores = _wide(q @ k.T) * self.head_dim**-0.5
        if seen is not None:
            scores = scores.masked_fill(~seen, float("-inf"))
        return scores.softmax(-1)

    def feed_forward(self, x: Tensor, layer: int) -> Tensor:
        name = f"model.layers.{layer}.mlp"
        gate = torch.nn.functional.silu(self.linear(x, f"{name}.gate_proj"))
        return self.linear(gate * self.linear(x, f"{name}.up_proj"), f"{name}.down_proj")

    def forward(
        self,
        tokens: Sequence[int],
        start: int,
        before: States,
        look: Callable[[int, list[Tensor], list[Tensor], list[Tensor]], None] | None = None,
    ) -> tuple[Tensor, States]:
        """Run tokens at positions ``start`` … after states that all of them see.

        Args:
            before: keys and values of each layer and KV head.
            look: is shown each layer's queries, keys and values before RoPE.

        Returns:
            The last layer's output (tokens, width), and the states of these tokens.
        """
        x, states = self.embed(tokens), []
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            q, k, v = self.heads(self.norm(x, f"{name}.input_layernorm"), layer)
            if look:
                look(layer, q, k, v)
            q, k = ([self.rotate(head, start) for head in some] for some in (q, k))
            mixed = []
            for n, query in enumerate(q):
                h = n // self.group
                old_keys, old_values = before[layer][h]
                keys, values = torch.cat([old_keys, k[h]]), torch.cat([old_values, v[h]])
                weights = self.attention(query, keys, _causal(len(query), len(keys), x.device))
                mixed.append(weights.to(x.dtype) @ values)
            x = x + self.linear(torch.cat(mixed, dim=-1), f"{name}.self_attn.o_proj")
            x = x + self.feed_forward(self.norm(x, f"{name}.post_attention_layernorm"), layer)
            self.watch(layer, x)
            states.append(list(zip(k, v, strict=True)))
        return x, states

    def prefix(self, tokens: Sequence[int]) -> States:
        """Keys and values of the constant prefix, at every layer (section 3.2)."""
        table = self.weights["model.embed_tokens.weight"]
        empty = table.new_zeros(0, self.head_dim)
        return self.forward(tokens, 0, [[(empty, empty)] * self.kv_heads] * self.layers)[1]

    # --- writing

    def score(
        self, prefix: States, reference: Sequence[int], selection: str, recite: Sequence[int]
    ) -> tuple[Tensor, States]:
        """Rank the tokens of a reference that is read after the prefix.

        ``attention`` (section 3.3): the attention that a token receives within the reference,
        before RoPE and without causal mask, summed over queries and the group's query heads.
        ``reconstruction``: the largest causal attention that a token receives while the model
        recites the reference after ``recite``, times the length of its value.

        Returns:
            Scores (layers, KV heads, tokens), and the states of the reference.
        """
        n, m = len(reference), len(prefix[0][0][0])
        again = n + len(recite)  # where the recitation begins
        recites = selection == "reconstruction"
        tokens = [*reference, *recite, *reference] if recites else [*reference]
        scores: list[Tensor] = []

        def look(layer: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> None:
            for h in range(self.kv_heads):
                received = []
                for query in q[h * self.group : (h + 1) * self.group]:
                    if recites:
                        keys = torch.cat([prefix[layer][h][0], self.rotate(k[h], m)])
                        query = self.rotate(query, m)
                        seen = _causal(len(query), len(keys), query.device)
                        received.append(self.attention(query, keys, seen)[again:, m : m + n])
                    else:
                        received.append(self.attention(query, k[h]))
                if recites:
                    length = _wide(v[h][:n]).norm(dim=-1)
                    scores.append(torch.stack(received).amax(dim=(0, 1)) * length)
                else:
                    scores.append(torch.stack(received).sum(dim=(0, 1)))

        _, states = self.forward(tokens, m, prefix, look)
        shape = (self.layers, self.kv_heads, n)
        return torch.stack(scores).reshape(shape), pick(states, lambda layer, h: slice(n))

    def keep(self, scores: Tensor, states: States, counts: Sequence[Sequence[int]]) -> Kept:
        """The best ``counts[layer][head]`` tokens of each head, in the order of the text."""
        positions = [
            [
                sorted(row.argsort(descending=True, stable=True)[:count].tolist())
                for row, count in zip(layer, some, strict=True)
            ]
            for layer, some in zip(scores, counts, strict=True)
        ]
        return Kept(positions, pick(states, lambda layer, h: positions[layer][h]))

    # --- reading

    def begin(self, prefix: States) -> Context:
        """A conversation whose every chunk reads memories."""
        past = pick(prefix, lambda layer, h: slice(0))
        return Context(prefix, len(prefix[0][0][0]) + R, past)

    def read(self, context: Context, tokens: Sequence[int]) -> Tensor:
        """Feed tokens beside the context's memories; their logits (tokens, vocabulary).

        Prefix, memories and context share one softmax.
        """
        before = []
        for layer in range(self.layers):
            heads = []
            for h in range(self.kv_heads):
                memories = [memory[layer][h] for memory in context.memories]
                parts = [
                    context.prefix[layer][h],
                    *((k * self.key_scale, v) for k, v in memories),
                    context.past[layer][h],
                ]
                heads.append(tuple(torch.cat(some) for some in zip(*parts, strict=True)))
            before.append(heads)
        x, states = self.forward(tokens, context.position, before)
        context.position += len(tokens)
        context.past = [
            [
                (torch.cat([k, new_k]), torch.cat([v, new_v]))
                for (k, v), (new_k, new_v) in zip(old, new, strict=True)
            ]
            for old, new in zip(context.past, states, strict=True)
        ]
        return self.logits(x)

    def prefill(self, context: Context, tokens: Sequence[int], memories: list[list]) -> Tensor:
        """Feed a prompt in chunks of 64, each beside its own memories; all logits."""
        logits = []
        for i, read in enumerate(memories):
            context.memories = [kept.states for kept in read]
            logits.append(self.read(context, tokens[i * CHUNK : (i + 1) * CHUNK]))
        return torch.cat(logits)

    def decode(
        self, context: Context, logits: Tensor, count: int, refresh: list[list]
    ) -> tuple[list[int], Tensor]:
        """Always take the likeliest token; every 64 of them read the next memories of ``refresh``.

        Returns:
            The tokens, and the logits (count, vocabulary) that each was taken from.
        """
        tokens, rows = [], [logits[-1]]
        for n in range(count):
            tokens.append(int(rows[-1].argmax()))
            if n + 1 < count:
                if n and n % CHUNK == 0:
                    context.memories = [kept.states for kept in refresh[n // CHUNK - 1]]
                rows.append(self.read(context, tokens[-1:])[-1])
        return tokens, torch.stack(rows)


def next_token_loss(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Mean negative log-likelihood of each token but the first, in nats."""
    target = torch.tensor(list(tokens[1:]), device=logits.device)
    return torch.nn.functional.cross_entropy(_wide(logits[:-1]), target)


def adamw_step(
    weight: Tensor, gradient: Tensor, rate: float, eps: float, *, b1=0.9, b2=0.999, decay=0.01
) -> Tensor:
    """The weight after its first step of AdamW, without correction of the moments' bias."""
    first, second = (1 - b1) * gradient, (1 - b2) * gradient**2
    return weight * (1 - rate * decay) - rate * first / (second.sqrt() + eps)


def _wide(x: Tensor) -> Tensor:
    """Norms, angles and softmax are float32 where the rest is bfloat16."""
    return x.float() if x.dtype == torch.bfloat16 else x


def _causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """bool (queries, keys): the last query sees all keys, the one before it all but the last, …"""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def pick(states: States, which: Callable[[int, int], object]) -> States:
    """Some tokens of each layer and head."""
    return [
        [(k[which(layer, h)], v[which(layer, h)]) for h, (k, v) in enumerate(heads)]
        for layer, heads in enumerate(states)
    ]
