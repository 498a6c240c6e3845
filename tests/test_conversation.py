"""The schedule of reading and decoding, on a tiny model whose every call is written down."""

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest
from tiny import save_model

from m3mlx.chat.attention import AttentionShares
from m3mlx.chat.conversation import Conversation
from m3mlx.config import MemoryConfig
from m3mlx.memory.cache import Layout, read_prefix
from m3mlx.memory.write import Writer
from m3mlx.models.decoder import load_decoder
from m3mlx.models.template import Template, Turn


@dataclass(frozen=True)
class Found:
    slot: int
    score: float = 0.5


class World:
    """A decoder, five memories, and a log of what is searched, read and fed."""

    def __init__(self, folder):
        self.decoder = load_decoder(str(save_model(folder)))
        self.template = Template(self.decoder.tokenizer)
        self.config = MemoryConfig(
            "reconstruction", "uniform", ((3, 3),) * 4, 16, self.template.prefix
        )
        self.prefix = read_prefix(self.decoder.model, self.template.prefix)
        writer = Writer(self.decoder.model, self.prefix, self.template.recite)
        texts = ["one", "another reference", "x" * 100, "a red house", "a blue boat"]
        self.memory = writer.write([self.template.encode(text) for text in texts], self.config)
        self.queries, self.reads, self.fed = [], [], []
        model = self.decoder.model
        self.decoder.model = self
        self._model = model

    def __call__(self, tokens, cache):
        self.fed.append(tokens[0].tolist())
        return self._model(tokens, cache=cache)

    def __getattr__(self, name):
        return getattr(self._model, name)

    def search(self, texts, k):
        """A different pair of memories for each query, by its length."""
        self.queries.append(list(texts))
        return [[Found(len(text) % 5), Found((len(text) + 1) % 5)] for text in texts]

    def read(self, hits):
        self.reads.append([hit.slot for hit in hits])
        return self.memory.take(self.reads[-1])

    def conversation(self, explicit=True, **options):
        given = {"search": self.search, "read": self.read} if explicit else {}
        return Conversation(self.decoder, self.prefix, Layout(self.config), **{**given, **options})

    def generate(self, conversation, turn, count, **options):
        """Tokens of an answer that no end of turn cuts short."""
        self.decoder.tokenizer._eos_token_ids = set()
        steps = list(conversation.stream(turn, max_tokens=count, **options))
        return [step.token for step in steps[:-1]], steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


@pytest.fixture
def world(folder, request):
    target = folder / request.node.name.replace("[", "-").replace("]", "")
    return World(target)


def plain_turn(world, text):
    """A turn of nothing but the user's words."""
    tokens = tuple(world.template.encode(text))
    return Turn(tokens, (0, len(tokens)))


def test_the_papers_example_makes_three_retrievals(world):
    turn = plain_turn(world, "a" * 64 + "b" * 64)
    _, steps = world.generate(world.conversation(), turn, 128)
    # The last 64 generated tokens would be the query of tokens beyond max_tokens.
    assert steps[-1].timings.retrievals == 3
    assert world.queries[0] == ["a" * 64, "b" * 64]
    assert len(world.queries) == 2 and len(world.queries[1]) == 1


def test_each_chunk_of_a_prompt_reads_its_own_memories(world):
    turn = plain_turn(world, "a" * 64 + "b" * 63 + "c" + "d" * 10)
    world.generate(world.conversation(), turn, 1)
    assert world.queries == [["a" * 64, "b" * 63 + "c", "d" * 10]]
    assert world.reads == [[4, 0, 1]]  # all chunks in one gather, each memory once
    assert [len(tokens) for tokens in world.fed] == [128, 10]  # equal neighbours in one pass


def test_decoding_refreshes_with_the_last_64_tokens(world):
    turn = plain_turn(world, "short")
    tokens, steps = world.generate(world.conversation(), turn, 140)
    words = [
        world.decoder.tokenizer.decode(part, skip_special_tokens=True)
        for part in (tokens[:64], tokens[64:128])
    ]
    assert world.queries == [["short"], *([text] for text in words)]
    assert [step.span for step in steps[:-1]] == [0] * 65 + [1] * 64 + [2] * 11
    assert len(steps[-1].sources) == 2


def test_every_token_is_fed_once_over_many_turns(world):
    conversation = world.conversation()
    expected = []
    for number, text in enumerate(("hello", "and then?", "x" * 80)):
        turn = world.template.turn(text, first=number == 0)
        expected += turn.tokens
        tokens, _ = world.generate(conversation, turn, 5)
        expected += tokens
    assert sum(world.fed, []) == expected[:-1]  # the last waits for the next turn
    cached = conversation.caches[0].context
    assert cached == len(world.template.prefix) + len(expected) - 1


def test_an_answer_that_is_interrupted_can_be_followed_by_another_turn(world):
    conversation = world.conversation()
    first, second = world.template.turn("hello"), world.template.turn("again", first=False)
    stream = conversation.stream(first, max_tokens=50)
    heard = [next(stream).token for _ in range(4)]
    stream.close()
    tokens, _ = world.generate(conversation, second, 6)
    assert sum(world.fed, []) == [*first.tokens, *heard, *second.tokens, *tokens[:-1]]


def test_a_long_conversation_equals_one_pass_over_all_of_it(world):
    turn = plain_turn(world, "q" * 30)
    conversation = world.conversation(explicit=False)
    tokens, steps = world.generate(conversation, turn, 20)
    whole = mx.array([[*world.template.prefix, *turn.tokens, *tokens]])
    logits = world._model(whole)[0, len(world.template.prefix) + 29 : -1]
    assert mx.argmax(logits, axis=-1).tolist() == tokens
    expected = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    got = mx.stack([step.logprobs for step in steps[:-1]])
    assert mx.abs(got - expected).max().item() < 1e-4


def test_the_loss_of_an_answer_is_that_of_its_tokens_one_by_one(world):
    turn, answer = plain_turn(world, "who?"), world.template.encode("nobody at all")
    conversation = world.conversation()
    loss = conversation.loss(turn, answer)
    conversation, total = world.conversation(), 0.0
    logits = conversation.prefill(turn, query="message")
    assert abs(conversation.fork().loss_after(logits, answer) - loss) < 1e-4
    logits = logits[-1]
    for token in answer:
        total += (mx.logsumexp(logits) - logits[token]).item()
        logits = conversation._feed([token])[-1]
    assert abs(loss - total / len(answer)) < 1e-4


def test_a_message_retrieves_as_a_whole_when_asked_to(world):
    text = "a" * 100
    turn = world.template.turn(text)
    world.generate(world.conversation(), turn, 1, query="message")
    assert world.queries == [[text]]
    assert len(world.fed) == 1


def test_the_template_is_no_part_of_a_query(world):
    turn = world.template.turn("my words", system="Be brief.")
    world.generate(world.conversation(), turn, 1)
    assert world.queries == [["my words"]]


def test_the_end_of_a_turn_stops_the_answer_and_is_not_part_of_it(world):
    eos = next(iter(world.decoder.tokenizer.eos_token_ids))
    turn = world.template.turn("hi")
    sampler = iter([*world.template.encode("AB"), eos, eos])
    steps = list(
        world.conversation().stream(turn, sampler=lambda logprobs: mx.array([next(sampler)]))
    )
    assert "".join(step.text for step in steps) == "AB"
    assert [step.finish_reason for step in steps] == [None, None, "stop"]
    assert steps[-1].timings.generated_tokens == 2
    assert steps[-1].generation_tokens == 2 and steps[-1].prompt_tokens == len(turn.tokens)


def test_a_token_is_fed_before_it_is_read(world):
    conversation, drawn = world.conversation(), []
    turn = plain_turn(world, "short")

    def draw(logprobs):
        drawn.append(len(world.fed))
        return mx.argmax(logprobs, axis=-1)

    world.decoder.tokenizer._eos_token_ids = set()
    steps = conversation.stream(turn, max_tokens=70, sampler=draw)
    ahead = [len(drawn) - n for n, step in enumerate(steps, 1) if step.token is not None]
    # not of the first token, nor of the 65th, after which memories change, nor of the last
    assert ahead == [0, *[1] * 63, 0, *[1] * 4, 0]


def test_text_of_several_tokens_to_a_character_is_whole(world):
    tokens = world.template.encode("naïve 🦉 café")
    sampler = iter([*tokens, *2 * [next(iter(world.decoder.tokenizer.eos_token_ids))]])
    stream = world.conversation().stream(
        world.template.turn("hi"), sampler=lambda logprobs: mx.array([next(sampler)])
    )
    assert "".join(step.text for step in stream) == "naïve 🦉 café"


def test_nothing_found_leaves_the_model_plain(world):
    turn = world.template.turn("hello")
    empty = world.conversation(search=lambda texts, k: [[] for _ in texts])
    tokens, steps = world.generate(empty, turn, 8)
    plain, _ = world.generate(world.conversation(explicit=False), turn, 8)
    assert tokens == plain and steps[-1].sources == []


def test_what_was_pasted_is_the_source_of_an_answer_that_reads_no_memories(world):
    conversation, pasted = world.conversation(explicit=False), [Found(3), Found(1)]
    turn = world.template.turn("hello")
    _, steps = world.generate(conversation, turn, 70, pasted=pasted, retrieve_seconds=2.0)
    assert all(step.sources == pasted for step in steps) and not conversation.attached
    assert steps[-1].timings.retrieve_seconds == 2.0
    assert steps[-1].timings.first_token_seconds > 2.0
    _, steps = world.generate(conversation, world.template.turn("more", first=False), 3)
    assert steps[-1].sources == [] and steps[-1].timings.retrieve_seconds == 0


def test_attached_are_the_hits_that_the_next_token_attends_to(world):
    conversation = world.conversation()
    turn = plain_turn(world, "a" * 64 + "b" * 63 + "c" + "d" * 10)  # chunks of 64, 64 and 10
    world.generate(conversation, turn, 1)
    assert conversation.attached == [Found(0), Found(1)]
    assert conversation.sources == [Found(4), Found(0), Found(1)]


def test_memories_change_what_is_said(world):
    turn = world.template.turn("hello")
    with_memory, _ = world.generate(world.conversation(), turn, 20)
    without, _ = world.generate(world.conversation(explicit=False), turn, 20)
    assert with_memory != without


def test_a_memory_that_fits_the_query_worse_counts_less(world):
    turn = plain_turn(world, "who is it?")

    def logits(hits, memory_temperature):
        options = {
            "search": lambda texts, k: [hits],
            "read": world.read,
            "memory_temperature": memory_temperature,
        }
        return world.conversation(**options).prefill(turn)

    def apart(a, b):
        return float(mx.abs(a - b).max())

    near, far = Found(0, 0.7), Found(1, 0.3)
    alone, both = logits([near], 0.1), logits([near, far], None)
    assert apart(logits([near, far], 0.001), alone) < 1e-5 < apart(both, alone)
    assert apart(logits([near, far], 1e6), both) < 1e-5
    assert apart(logits([far, near], 0.1), logits([near, far], 0.1)) < 1e-5
    half = Found(1, 0.7 - 0.1 * math.log(2))  # and two halves are a whole
    assert apart(logits([near, half, half], 0.1), both) < 1e-5
    assert apart(logits([Found(0, 0.9)], 0.1), alone) < 1e-6


def test_memories_that_are_found_again_are_not_read_again(world):
    turn = plain_turn(world, "q" * 64)

    def conversation():
        order = iter([[2, 1, 3], [3, 4, 1], [0], [], [4, 0]])
        world.reads.clear()
        return world.conversation(
            search=lambda texts, k: [list(map(Found, next(order))) for _ in texts]
        )

    tokens, steps = world.generate(conversation(), turn, 280)
    assert world.reads == [[2, 1, 3], [4], [0], [4]]  # 0 stayed while nothing fitted
    assert sorted(hit.slot for hit in steps[80].sources) == [1, 3, 4]
    forgetful = conversation()
    read = forgetful._memories_of
    forgetful._memories_of = lambda hits: setattr(forgetful, "_held", ([], None)) or read(hits)
    other, again = world.generate(forgetful, turn, 280)
    assert world.reads == [[2, 1, 3], [3, 4, 1], [0], [4, 0]] and other == tokens
    for one, two in zip(steps[:-1], again[:-1], strict=True):
        assert mx.array_equal(one.logprobs, two.logprobs)


def test_only_the_wanted_logits_of_a_prompt_are_computed(world):
    """The sums of one row run in another order than those of many: equal to 1e-5."""
    seen = []
    head = world._model.model.embed_tokens
    as_linear = head.as_linear
    head.as_linear = lambda x: seen.append(x.shape[1]) or as_linear(x)
    turn = plain_turn(world, "q" * 70)
    caches = world.conversation(explicit=False).caches
    whole = world._model(mx.array([list(turn.tokens)]), cache=caches)[0]
    for rows in (1, 3):
        got = world.conversation(explicit=False).prefill(turn, rows=rows)
        assert got.shape[0] == rows
        assert mx.abs(got - whole[-rows:]).max().item() < 1e-5
    assert seen == [70, 1, 3]
    turn = plain_turn(world, "a" * 64 + "b" * 64 + "d" * 10)  # in two groups
    few, some, every = (world.conversation().prefill(turn, rows=n) for n in (4, 12, 200))
    assert seen[3:] == [0, 4, 2, 10, 128, 10] and (len(few), len(every)) == (4, 138)
    assert mx.abs(some - every[-12:]).max().item() < 1e-5
    assert mx.abs(few - every[-4:]).max().item() < 1e-5
    del head.as_linear
    assert len(world._model(mx.array([[1, 2, 3]]))[0]) == 3  # the model is left as it was


def test_each_source_has_its_share_of_the_attention(world):
    turn, passes = plain_turn(world, "short"), []
    tokens, steps = world.generate(world.conversation(), turn, 20)
    watched = world.conversation()
    watched.reads_ahead = False
    attention = AttentionShares(world._model, len(world.template.prefix), lambda: 2)
    with attention.observe():
        for step in watched.stream(turn, max_tokens=20):
            passes.append(attention.mean())
            assert step.token is None or step.token == tokens[len(passes) - 1]
    looked_at = [passes[n] for n in (1, 9, 17)]  # the first is the prompt's, then every eighth
    expected = np.mean(looked_at, axis=0)
    assert np.allclose(steps[-1].shares, sorted(expected[:2])[::-1], atol=1e-6)
    assert expected.sum() == pytest.approx(1, abs=1e-5)
    assert np.allclose(sorted(steps[2].shares), sorted(passes[1][:2]))
    assert steps[0].shares == ()


def test_a_memory_that_counts_little_was_read_but_not_used(world):
    def search(texts, k):
        return [[Found(0, 0.1), Found(1, 3.0), Found(2, 2.9)] for _ in texts]

    conversation = world.conversation(search=search, memory_temperature=0.1)
    _, steps = world.generate(conversation, plain_turn(world, "short"), 3)
    *high, low = steps[-1].shares
    assert low < 1e-9 and min(high) > 1e-6 and steps[-1].sources[-1].slot == 0


def test_a_source_that_only_an_earlier_chunk_read_has_no_share(world):
    turn = plain_turn(world, "a" * 64 + "b" * 10)  # hits 4 and 0, then 0 and 1
    _, steps = world.generate(world.conversation(), turn, 3)
    shares = {
        hit.slot: share for hit, share in zip(steps[-1].sources, steps[-1].shares, strict=True)
    }
    assert shares[4] == 0 and min(shares[0], shares[1]) > 0
