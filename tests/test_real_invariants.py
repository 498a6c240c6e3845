"""The first invariants of the design (section 4) on the default model, and what memory is worth."""

from pathlib import Path
from statistics import mean

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

from m3mlx.config import REFERENCE_TOKENS, MemoryConfig, Options
from m3mlx.evaluate import TemporaryStore, read_questions
from m3mlx.memory.cache import Layout, make_cache, read_prefix
from m3mlx.memory.write import Writer
from m3mlx.models.decoder import load_decoder
from m3mlx.models.template import Template

pytestmark = [pytest.mark.slow, pytest.mark.model]
QUESTIONS = Path(__file__).parent / "data" / "questions.jsonl"


class Real:
    def __init__(self):
        self.decoder = load_decoder()
        self.template = Template(self.decoder.tokenizer)
        self.prefix = read_prefix(self.decoder.model, self.template.prefix)
        text = " ".join(question.document for question in read_questions(QUESTIONS)[:8:2])
        tokens = self.template.encode(text)
        self.references = [tokens[i : i + REFERENCE_TOKENS] for i in (0, REFERENCE_TOKENS)]
        self.context = list(self.template.turn("Who services the boiler, and when?").tokens)

    def caches(self, counts, references):
        config = MemoryConfig("reconstruction", "uniform", counts, 64, self.template.prefix)
        writer = Writer(self.decoder.model, self.prefix, self.template.recite)
        caches = make_cache(self.decoder.model, self.prefix)
        memory = writer.write(references, config) if references else None
        Layout(config).attach(caches, memory)
        return caches

    def logits(self, tokens, caches):
        return self.decoder.model(mx.array([tokens]), cache=caches)[0]

    def plain(self, tokens, last):
        return self.logits(tokens, make_prompt_cache(self.decoder.model))[-last:]


@pytest.fixture(scope="module")
def real():
    return Real()


def close(a, b, tolerance=1e-5):
    assert (mx.argmax(a, axis=-1) == mx.argmax(b, axis=-1)).all().item()
    error = float(mx.abs(a - b).max() / mx.abs(b).max())
    assert error < tolerance, error


def counts(real, count):
    return tuple((count,) * heads for heads in real.decoder.kv_heads)


def test_a_whole_memory_is_ordinary_attention_over_the_reference(real):
    (reference, _), context = real.references, real.context
    caches = real.caches(counts(real, REFERENCE_TOKENS), [reference])
    expected = real.plain([*real.template.prefix, *reference, *context], len(context))
    close(real.logits(context, caches), expected)


def test_without_memories_the_model_is_plain(real):
    caches = real.caches(counts(real, 8), [])
    expected = real.plain([*real.template.prefix, *real.context], len(real.context))
    close(real.logits(real.context, caches), expected)


def test_chunked_prefill_equals_decoding_token_by_token(real):
    ragged = tuple((layer % 5, 9, 0) for layer in range(real.decoder.layers))
    context = real.context[:12]
    at_once = real.logits(context, real.caches(ragged, real.references))
    caches = real.caches(ragged, real.references)
    one_by_one = mx.concatenate([real.logits([token], caches) for token in context])
    close(one_by_one, at_once)


def test_a_memory_of_8_tokens_per_head_keeps_most_of_what_the_text_gives(real):
    """A sample of the evaluation set; the README has the figures of the whole."""
    questions = read_questions(QUESTIONS)[::4]
    with TemporaryStore(Options(tokens_per_head=8)) as store:
        store.memorize(question.document for question in questions)
        off, oracle, explicit = (
            mean(result.nll for result in store.measure(questions, condition, 1, 0))
            for condition in ("off", "oracle", "explicit")
        )
    assert (off - explicit) / (off - oracle) > 0.8
