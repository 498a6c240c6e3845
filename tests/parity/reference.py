"""The memory-augmented decoder in plain PyTorch, from the formulas of the paper and the design.

It is the other half of the parity suite and shares no code with ``m3mlx``: nothing is batched,
nothing is padded, and every head is computed separately, so that it is easy to check.
It runs on CPU and CUDA in float64, float32 (TensorFloat-32 off) and bfloat16, and gradients pass
through all of it.

Let ``m`` be the length of the constant prefix and ``R`` the longest reference. Positions:

    prefix      0 … m-1    sees itself
    reference   m …        when it is written: sees the prefix and itself, causally
    context     m+R …      sees the prefix, the memories of its chunk, and the context before it

Layers that keep a state (lfm2's convolutions) see prefix and context, never a memory: a reference,
its recitation and a conversation each begin with the state after the prefix. States are counted
over the layers with attention. Of latent attention (deepseek_v3) the one KV head's keys are latent
vectors, its values the rotary parts of keys.

Weights go by their names in a Hugging Face checkpoint, or in mlx-lm where it changes them. A
head's keys and values are (tokens, head_dim); ``h`` counts KV heads, and query heads ``h·g …
h·g+g-1`` read what KV head ``h`` has.
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
    carried: dict[int, Tensor] = field(default_factory=dict)  # states of other layers
    memories: list[States] = field(default_factory=list)


LLAMA = {
    **{"first norm": "input_layernorm", "second norm": "post_attention_layernorm"},
    **{"head norm": "norm", "last norm": "model.norm", "output": "o_proj"},
    **{"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"},
}
LFM2 = {
    **{"first norm": "operator_norm", "second norm": "ffn_norm", "head norm": "layernorm"},
    **{"last norm": "model.embedding_norm", "output": "out_proj"},
    **{"gate": "feed_forward.w1", "up": "feed_forward.w3", "down": "feed_forward.w2"},
}


class Reference:
    """A decoder of the llama, qwen2, qwen3 or lfm2 family with explicit memory.

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
        self.attending = config.get("full_attn_idxs", range(self.layers))
        self.after_prefix: dict[int, Tensor] = {}  # states of the other layers
        self.group = self.query_heads // self.kv_heads
        self.head_dim = config.get("head_dim") or config["hidden_size"] // self.query_heads
        self.theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        self.eps = config.get("rms_norm_eps") or config["norm_eps"]
        tied = config.get("tie_word_embeddings", False)
        self.head = "model.embed_tokens" if tied else "lm_head"
        lfm2 = config["model_type"] == "lfm2"
        self.names = LFM2 if lfm2 else LLAMA
        self.watch: Callable[[int, Tensor], None] = lambda layer, output: None

    # --- the decoder

    def embed(self, tokens: Sequence[int]) -> Tensor:
        table = self.weights["model.embed_tokens.weight"]
        return table[torch.tensor(list(tokens), device=table.device)]

    def logits(self, x: Tensor) -> Tensor:
        """(tokens, width) to (tokens, vocabulary)."""
        return self.linear(self.norm(x, self.names["last norm"]), self.head)

    def linear(self, x: Tensor, name: str) -> Tensor:
        y = x @ self.weights[f"{name}.weight"].T
        if f"{name}.bias" in self.weights:
            y = y + self.weights[f"{name}.bias"]
        if name in self.lora:
            a, b, scale = self.lora[name]
            y = y + scale * (x @ a @ b)
        return y

    def norm(self, x: Tensor, name: str, eps: float | None = None) -> Tensor:
        """RMSNorm: x / sqrt(mean(x²) + eps) · weight."""
        wide = _wide(x)
        wide = wide * torch.rsqrt((wide * wide).mean(-1, keepdim=True) + (eps or self.eps))
        return (wide * _wide(self.weights[f"{name}.weight"])).to(x.dtype)

    def rotate(self, x: Tensor, start: int) -> Tensor:
        """RoPE: turns the pairs (x_i, x_{i+d/2}) of a token at position p by p · theta^(-2i/d)."""
        half = x.shape[-1] // 2
        one, two = _wide(x)[:, :half], _wide(x)[:, half:]
        cos, sin = self.angles(x, start)
        return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1).to(x.dtype)

    def angles(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine, (tokens, d/2)."""
        half = x.shape[-1] // 2
        exact = {"dtype": torch.float64, "device": x.device}
        turn = self.theta ** (-torch.arange(half, **exact) / half)
        angle = torch.arange(start, start + len(x), **exact)[:, None] * turn
        return angle.cos().to(_wide(x).dtype), angle.sin().to(_wide(x).dtype)

    def heads(self, x: Tensor, layer: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Queries, keys and values of each head, before RoPE; some normalize queries and keys."""
        name = f"model.layers.{layer}.self_attn"
        q, k, v = (
            [*self.linear(x, f"{name}.{part}_proj").split(self.head_dim, dim=-1)] for part in "qkv"
        )
        norm = self.names["head norm"]
        if f"{name}.q_{norm}.weight" in self.weights:
            q = [self.norm(head, f"{name}.q_{norm}") for head in q]
            k = [self.norm(head, f"{name}.k_{norm}") for head in k]
        return q, k, v

    def turned(
        self, q: list[Tensor], k: list[Tensor], v: list[Tensor], start: int
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The same after RoPE."""
        return [self.rotate(x, start) for x in q], [self.rotate(x, start) for x in k], v

    def similarity(self, layer: int, n: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q·k / sqrt(d) of query head n, (queries, keys)."""
        return _wide(query @ keys.T) * self.head_dim**-0.5

    def contents(self, layer: int, n: int, keys: Tensor, values: Tensor) -> Tensor:
        """What query head n takes from each token."""
        return values

    def attention(self, scores: Tensor, seen: Tensor | None = None) -> Tensor:
        """Softmax over the keys seen."""
        if seen is not None:
            scores = scores.masked_fill(~seen, float("-inf"))
        return scores.softmax(-1)

    def feed_forward(self, x: Tensor, layer: int) -> Tensor:
        name = f"model.layers.{layer}"
        gate, up, down = (f"{name}.{self.names[part]}" for part in ("gate", "up", "down"))
        return self.linear(
            torch.nn.functional.silu(self.linear(x, gate)) * self.linear(x, up), down
        )

    def convolution(self, x: Tensor, layer: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """lfm2: C · conv(B · x) over each channel and the last tokens, of which a state remains."""
        name = f"model.layers.{layer}.conv"
        b, c, x = self.linear(x, f"{name}.in_proj").chunk(3, dim=-1)
        kernel = self.weights[f"{name}.conv.weight"][:, :, 0]  # (width, tokens)
        last = kernel.shape[1] - 1
        if state is None:
            state = x.new_zeros(last, x.shape[1])
        fed = torch.cat([state, b * x])
        mixed = sum(fed[i : i + len(x)] * kernel[:, i] for i in range(last + 1))
        return self.linear(c * mixed, f"{name}.out_proj"), fed[len(fed) - last :]

    def forward(
        self,
        tokens: Sequence[int],
        start: int,
        before: States,
        look: Callable[[int, int, list[Tensor], list[Tensor], list[Tensor]], None] | None = None,
        carried: dict[int, Tensor] | None = None,
    ) -> tuple[Tensor, States]:
        """Run tokens at positions ``start`` … after states that all of them see.

        Args:
            before: keys and values of each layer and KV head.
            look: is shown each layer's number among all and among those with attention, and its
                queries, keys and values before RoPE.
            carried: states of the layers without attention, changed in place; None for those
                after the prefix.

        Returns:
            The last layer's output (tokens, width), and the states of these tokens.
        """
        carried = dict(self.after_prefix) if carried is None else carried
        x, states = self.embed(tokens), []
        for layer in range(self.layers):
            name, normed = f"model.layers.{layer}", self.names["first norm"]
            normed = self.norm(x, f"{name}.{normed}")
            if layer in self.attending:
                at = len(states)
                q, k, v = self.heads(normed, layer)
                if look:
                    look(layer, at, q, k, v)
                q, k, v = self.turned(q, k, v, start)
                mixed = []
                for n, query in enumerate(q):
                    h = n // self.group
                    pairs = zip(before[at][h], (k[h], v[h]), strict=True)
                    keys, values = (torch.cat(pair) for pair in pairs)
                    scores = self.similarity(layer, n, query, keys, values)
                    weights = self.attention(scores, _causal(*scores.shape, x.device))
                    mixed.append(weights.to(x.dtype) @ self.contents(layer, n, keys, values))
                output = self.names["output"]
                y = self.linear(torch.cat(mixed, dim=-1), f"{name}.self_attn.{output}")
                states.append(list(zip(k, v, strict=True)))
            else:
                y, carried[layer] = self.convolution(normed, layer, carried.get(layer))
            x = x + y
            second = f"{name}.{self.names['second norm']}"
            x = x + self.feed_forward(self.norm(x, second), layer)
            self.watch(layer, x)
        return x, states

    def prefix(self, tokens: Sequence[int]) -> States:
        """Keys and values of the constant prefix, at every layer (section 3.2)."""
        table, self.after_prefix = self.weights["model.embed_tokens.weight"], {}
        empty = tuple(table.new_zeros(0, length) for length in self.lengths)
        nothing = [[empty] * self.kv_heads] * len(self.attending)
        carried: dict[int, Tensor] = {}
        _, states = self.forward(tokens, 0, nothing, carried=carried)
        self.after_prefix = carried
        return states

    @property
    def lengths(self) -> tuple[int, int]:
        """Of a key and a value."""
        return self.head_dim, self.head_dim

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
        scores: list[Tensor] = []

        def receives(layer: int, q: list[Tensor], keys: Tensor, values: Tensor, h: int) -> Tensor:
            """Attention of each query head of a group, (heads, queries, keys)."""
            found = []
            for i in range(h * self.group, (h + 1) * self.group):
                seen = self.similarity(layer, i, q[i], keys, values)
                mask = _causal(*seen.shape, seen.device) if recites else None
                found.append(self.attention(seen, mask))
            return torch.stack(found)

        def look(layer: int, at: int, q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> None:
            if recites:
                q, k, v = self.turned(q, k, v, m + n)
            for h in range(self.kv_heads):
                if not recites:
                    scores.append(receives(layer, q, k[h], v[h], h).sum(dim=(0, 1)))
                    continue
                pairs = zip(before[at][h], (k[h], v[h]), strict=True)
                keys, values = (torch.cat(pair) for pair in pairs)
                shares = receives(layer, q, keys, values, h)[:, len(recite) :, m : m + n].amax(1)
                lengths = [
                    _wide(self.contents(layer, i, keys, values)[m : m + n]).norm(dim=-1)
                    for i in range(h * self.group, (h + 1) * self.group)
                ]
                scores.append((shares * torch.stack(lengths)).amax(0))

        recites = False
        reading = look if selection == "attention" else None
        _, states = self.forward(reference, m, prefix, reading)
        if selection == "reconstruction":
            recites = True
            before = [
                [
                    tuple(map(torch.cat, zip(*pairs, strict=True)))
                    for pairs in zip(*layers, strict=True)
                ]
                for layers in zip(prefix, states, strict=True)
            ]
            self.forward([*recite, *reference], m + n, before, look)
        return torch.stack(scores).reshape(len(states), self.kv_heads, n), states

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
        return Context(prefix, len(prefix[0][0][0]) + R, past, dict(self.after_prefix))

    def read(self, context: Context, tokens: Sequence[int]) -> Tensor:
        """Feed tokens beside the context's memories; their logits (tokens, vocabulary).

        Prefix, memories and context share one softmax.
        """
        before = []
        for layer in range(len(self.attending)):
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
        x, states = self.forward(tokens, context.position, before, carried=context.carried)
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


class LatentReference(Reference):
    """A decoder of the deepseek_v3 family without experts, whose attention is latent."""

    def __init__(self, config: dict, weights: dict[str, Tensor], key_scale: float = 1.0):
        super().__init__({**config, "num_key_value_heads": 1}, weights, key_scale)
        self.nope, self.rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
        self.rank = config["kv_lora_rank"]

    @property
    def lengths(self) -> tuple[int, int]:
        return self.rank, self.rope

    def rotate(self, x: Tensor, start: int) -> Tensor:
        """RoPE of the pairs (x_2i, x_2i+1)."""
        cos, sin = self.angles(x, start)
        one, two = _wide(x)[:, ::2], _wide(x)[:, 1::2]
        turned = torch.stack([one * cos - two * sin, two * cos + one * sin], dim=-1)
        return turned.flatten(1).to(x.dtype)

    def heads(self, x: Tensor, layer: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Queries of both parts; the latent vectors, normalized; the rotary parts of keys."""
        name = f"model.layers.{layer}.self_attn"
        q = self.linear(x, f"{name}.q_proj").split(self.nope + self.rope, dim=-1)
        both = self.linear(x, f"{name}.kv_a_proj_with_mqa")
        latent = self.norm(both[:, : self.rank], f"{name}.kv_a_layernorm", eps=1e-6)
        return [*q], [latent], [both[:, self.rank :]]

    def turned(
        self, q: list[Tensor], k: list[Tensor], v: list[Tensor], start: int
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        q = [torch.cat([x[:, : self.nope], self.rotate(x[:, self.nope :], start)], 1) for x in q]
        return q, k, [self.rotate(x, start) for x in v]

    def similarity(self, layer: int, n: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q·k of the head's own keys, made of latent vectors, and of the rotary parts."""
        made = self.weights[f"model.layers.{layer}.self_attn.embed_q.weight"][n]  # (rank, nope)
        own = query[:, : self.nope] @ (keys @ made).T + query[:, self.nope :] @ values.T
        return _wide(own) * (self.nope + self.rope) ** -0.5

    def contents(self, layer: int, n: int, keys: Tensor, values: Tensor) -> Tensor:
        made = self.weights[f"model.layers.{layer}.self_attn.unembed_out.weight"][n]
        return keys @ made.T  # (v_head_dim, rank)


def reference_of(config: dict, weights: dict[str, Tensor], key_scale: float) -> Reference:
    """The reference of a model's family."""
    kind = LatentReference if "kv_lora_rank" in config else Reference
    return kind(config, weights, key_scale)


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
