"""A tiny model of each kind of layers, from a document to an answer."""

from itertools import count

import mlx.core as mx
import numpy as np
import pytest
from tiny import KINDS, save_encoder, save_model

from m3mlx import Assistant
from m3mlx.calibrate import calibrate
from m3mlx.errors import ModelError
from m3mlx.inspect.answer import AnswerView
from m3mlx.models.decoder import load_decoder

TEXTS = {f"text:{n}": f"Kite {n} is red and flies {n} miles high.".encode() for n in range(7)}


@pytest.mark.parametrize("family", KINDS)
def test_it_memorizes_answers_and_opens_again(family, tmp_path):
    model = str(save_model(tmp_path / "model", family))
    encoder = str(save_encoder(tmp_path / "encoder"))

    def answer(length, **how):
        with Assistant(model, tmp_path / "store", encoder=encoder, **how) as assistant:
            if not assistant.has_store():
                assistant.memorize(contents=TEXTS)
            chat = assistant.chat()
            view = AnswerView(chat, "Which kite?")
            steps = list(view.watch(chat.send("Which kite?", max_tokens=length)))
            shares = view._spans[-1].finished().memory
            assert 0 < max(shares) < 1
            return [step.token for step in steps], steps[-1]

    tokens, last = answer(70, tokens_per_head=4)
    assert last.span == 1 or len(tokens) < 66  # memories were refreshed after 64 tokens
    assert last.timings.retrievals and len(last.sources) == 5
    assert answer(4)[0][:4] == tokens[:4]


@pytest.mark.parametrize("family", KINDS)
def test_a_token_that_is_fed_before_it_is_read_can_be_taken_back(family, tmp_path, monkeypatch):
    model = str(save_model(tmp_path / "model", family))
    encoder = str(save_encoder(tmp_path / "encoder"))
    with Assistant(model, tmp_path / "store", encoder=encoder, tokens_per_head=4) as assistant:
        assistant.memorize(contents=TEXTS)
        ends = mx.array(list(assistant.decoder.tokenizer.eos_token_ids))

        def answer(chat, length):
            """The steps of an answer that ends its turn after so many tokens."""
            drawn = count()

            def draw(logprobs):
                if next(drawn) == length:
                    return ends[:1]
                logprobs[:, ends] = -mx.inf
                return mx.argmax(logprobs, axis=-1)

            monkeypatch.setattr("m3mlx.chat.sampling.make_sampler", lambda *_, **__: draw)
            return list(chat.send("Which kite?", temp=1))

        heard = []
        for reads_ahead in (True, False):
            chat = assistant.chat()
            chat.reads_ahead = reads_ahead
            heard.append([step for length in (7, 30, 4, 70, 1) for step in answer(chat, length)])
    assert [step.finish_reason for step in heard[0]].count("stop") == 5
    for ahead, behind in zip(*heard, strict=True):
        assert ahead.token == behind.token
        assert ahead.token is None or mx.array_equal(ahead.logprobs, behind.logprobs)


@pytest.mark.parametrize("family", KINDS)
def test_budgets_are_found_for_the_heads_that_there_are(family, tmp_path):
    decoder = load_decoder(str(save_model(tmp_path / "model", family)))
    config = calibrate(decoder, tokens_per_head=4, key_bits=4)
    assert list(map(len, config.counts)) == list(decoder.kv_heads)
    assert config.dims == decoder.dims and config.tokens_per_head == 4
    assert config.key_scale == 1 or not decoder.latent
    uniform = calibrate(decoder, selection="attention", budget="uniform", tokens_per_head=4)
    assert {n for counts in uniform.counts for n in counts} == {4}


def test_weights_that_a_mask_has_no_room_for_are_not_used(tmp_path):
    decoder = load_decoder(str(save_model(tmp_path / "model", "deepseek_v3")))
    assert decoder.latent and decoder.memory_temperature is None


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("deepseek_v3", {"kv_lora_rank": 32, "qk_rope_head_dim": 32}),
        ("gemma4_text", {"head_dim": 32}),
        ("mimo_v2_flash", {}),
    ],
)
def test_a_context_that_cannot_be_quantized_is_refused_in_a_sentence(family, changes, tmp_path):
    model = str(save_model(tmp_path / "model", family, **changes))
    with (
        Assistant(model, tmp_path / "store", kv_bits=8) as assistant,
        pytest.raises(ModelError, match=r"quantized context.*run without --kv-bits$"),
    ):
        assistant.ask("Hello?", memory="off", max_tokens=2)


@pytest.mark.parametrize("family", ["lfm2", "falcon_h1"])
def test_a_hybrid_reads_a_quantized_context(family, tmp_path):
    sizes = {"head_dim": 32, "hidden_size": 128, "block_dim": 128}
    model = str(save_model(tmp_path / "model", family, **sizes))
    answers = []
    for bits in (None, 8):
        with Assistant(model, tmp_path / "store", kv_bits=bits) as assistant:
            steps = assistant.chat(memory="off").send("Hello?", max_tokens=1)
            answers.append(np.array(next(iter(steps)).logprobs))
    assert 0 < np.abs(answers[0] - answers[1]).max() < 0.05
