"""The encoder against two references: a NumPy forward pass here, and vectors made with torch."""

import json
import math
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from m3mlx.errors import ModelError
from m3mlx.models import encoder as embed
from m3mlx.models.decoder import load_encoder

pytestmark = pytest.mark.usefixtures("two_blas_threads")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij", *(f"##{c}" for c in "abcdefghij")]
CONFIG = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
}
BGE = "Represent this sentence for searching relevant passages: "
TEXTS = ["", "a", "abc def", "j i h g f e d c b a", "zzz", "a" * 200, "abc"]


def random_weights(config, seed=0):
    rng = np.random.default_rng(seed)
    d, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], d),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
    }
    for n in range(config["num_hidden_layers"]):
        for part, shape in {
            "attention.self.query": (d, d),
            "attention.self.key": (d, d),
            "attention.self.value": (d, d),
            "attention.output.dense": (d, d),
            "attention.output.LayerNorm": (d,),
            "intermediate.dense": (inner, d),
            "output.dense": (d, inner),
            "output.LayerNorm": (d,),
        }.items():
            shapes[f"encoder.layer.{n}.{part}.weight"] = shape
            shapes[f"encoder.layer.{n}.{part}.bias"] = shape[:1]
    return {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def write(
    folder: Path, *, pooling="mean_tokens", weights=None, tokenizer=True, limit=20, **changes
):
    """A tiny random BERT in the layout of sentence-transformers."""
    config = CONFIG | changes
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": config,
        "modules.json": [
            {"idx": 0, "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "type": "sentence_transformers.models.Normalize"},
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": config["hidden_size"],
            "pooling_mode_cls_token": pooling == "cls_token",
            "pooling_mode_mean_tokens": pooling == "mean_tokens",
            "pooling_mode_max_tokens": pooling == "max_tokens",
            "pooling_mode_mean_sqrt_len_tokens": pooling == "mean_sqrt_len_tokens",
        },
        "sentence_bert_config.json": {"max_seq_length": limit},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    arrays = random_weights(config) if weights is None else weights
    mx.save_safetensors(
        str(folder / "model.safetensors"), {name: mx.array(v) for name, v in arrays.items()}
    )
    vocabulary = {word: n for n, word in enumerate(WORDS)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=300))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if tokenizer:
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.enable_padding(length=17)  # what a file says about padding must not matter
    made.save(str(folder / "tokenizer.json"))
    return folder


ERF = np.vectorize(math.erf)
ACTIVATIONS = {
    "gelu": lambda x: x * (1 + ERF(x / math.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
}


def reference(weights, config, ids, pooling):
    """BERT in NumPy and float64, one text at a time, without padding or batches."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["layer_norm_eps"])
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][ids]
    first = 0 if config["model_type"] == "bert" else config["pad_token_id"] + 1
    x = x + w["embeddings.position_embeddings.weight"][first : first + len(ids)]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    heads = config["num_attention_heads"]
    for n in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{n}"
        q, k, v = (
            linear(x, f"{layer}.attention.self.{part}").reshape(len(ids), heads, -1)
            for part in ("query", "key", "value")
        )
        scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        seen = np.einsum("hqk,khd->qhd", scores, v).reshape(len(ids), -1)
        seen = linear(seen, f"{layer}.attention.output.dense")
        x = norm(x + seen, f"{layer}.attention.output.LayerNorm")
        inner = ACTIVATIONS[config["hidden_act"]](linear(x, f"{layer}.intermediate.dense"))
        x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    pooled = {"mean_tokens": x.mean(0), "cls_token": x[0], "max_tokens": x.max(0)}[pooling]
    return pooled / np.linalg.norm(pooled)


def ids_of(folder, text, limit=20):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    return tokenizer.encode(text).ids


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "max_tokens"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_vectors_are_those_of_a_plain_forward_pass(pooling, activation, tmp_path):
    folder = write(tmp_path, pooling=pooling, hidden_act=activation)
    vectors = embed.load(folder).encode(TEXTS)
    weights, config = random_weights(CONFIG), CONFIG | {"hidden_act": activation}
    for text, vector in zip(TEXTS, vectors, strict=True):
        expected = reference(weights, config, ids_of(folder, text), pooling)
        np.testing.assert_allclose(vector, expected, atol=2e-5)


@pytest.mark.parametrize("kind", ["xlm-roberta", "roberta", "camembert"])
def test_positions_of_roberta_begin_behind_that_of_the_padding(kind, tmp_path):
    changes = {"model_type": kind, "pad_token_id": 1, "type_vocab_size": 1}
    config = CONFIG | changes
    weights = random_weights(config)
    named = {f"roberta.{name}": array for name, array in weights.items()}
    named["lm_head.bias"] = np.zeros(len(WORDS), np.float32)
    folder = write(tmp_path, weights=named, limit=512, **changes)
    encoder = embed.load(folder)
    assert encoder.max_tokens == CONFIG["max_position_embeddings"] - 2
    for text, vector in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        expected = reference(weights, config, ids_of(folder, text, 22), "mean_tokens")
        np.testing.assert_allclose(vector, expected, atol=2e-5)


@pytest.mark.parametrize(("letters", "latin_only"), [("abcdefghij", True), ("абвгдежзий", False)])
def test_a_vocabulary_tells_the_scripts_that_are_read(letters, latin_only, tmp_path):
    write(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = whole["model"]["vocab"]
    replaced = str.maketrans("abcdefghij", letters)
    whole["model"]["vocab"] = {
        word if word.startswith("[") else word.translate(replaced): n
        for word, n in vocabulary.items()
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    assert bool(embed.load(tmp_path).advice) == bool(embed.advice(tmp_path)) == latin_only


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return embed.load(write(tmp_path_factory.mktemp("tiny")))


@given(st.lists(st.text("abcdefghij zé,", max_size=60), max_size=12), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_vector_depends_on_its_text_alone(tiny, texts, batch_size):
    together = tiny.encode(texts, batch_size=batch_size)
    assert together.shape == (len(texts), tiny.dimensions) and together.dtype == np.float32
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(vector, tiny.encode([text])[0], atol=1e-5)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_text_beyond_the_limit_is_cut(tiny):
    assert tiny.max_tokens == 20
    long, longer = tiny.encode(["a " * 18, "a " * 5000])
    np.testing.assert_allclose(long, longer, atol=1e-6)


def test_the_limit_never_passes_the_position_table(tmp_path):
    assert embed.load(write(tmp_path, limit=512)).max_tokens == 24
    (tmp_path / "sentence_bert_config.json").unlink()
    encoder = embed.load(tmp_path)
    assert encoder.max_tokens == 24
    assert np.isfinite(encoder.encode(["a " * 100])).all()


@pytest.mark.parametrize("shape", ["bert. before names", "float16", "extra parts"])
def test_usual_forms_of_weights_are_read(shape, tiny, tmp_path):
    weights = random_weights(CONFIG)
    if shape == "bert. before names":
        weights = {f"bert.{name}": array for name, array in weights.items()}
    if shape == "float16":
        weights = {name: array.astype(np.float16) for name, array in weights.items()}
    if shape == "extra parts":
        weights["embeddings.position_ids"] = np.arange(24)[None]
        weights["pooler.dense.weight"] = np.ones((32, 32), np.float32)
        weights["pooler.dense.bias"] = np.ones(32, np.float32)
    vectors = embed.load(write(tmp_path, weights=weights)).encode(TEXTS)
    np.testing.assert_allclose(vectors, tiny.encode(TEXTS), atol=2e-2)


def test_weights_in_several_files_are_read(tiny, tmp_path):
    write(tmp_path)
    weights = mx.load(str(tmp_path / "model.safetensors"))
    (tmp_path / "model.safetensors").unlink()
    for number in range(3):
        part = {name: weights[name] for name in sorted(weights)[number::3]}
        mx.save_safetensors(str(tmp_path / f"model-0000{number}-of-00003.safetensors"), part)
    np.testing.assert_array_equal(embed.load(tmp_path).encode(TEXTS), tiny.encode(TEXTS))


def test_query_prefix_comes_from_the_prompts(tmp_path, tiny):
    write(tmp_path)
    prompts = {"prompts": {"query": "abc: ", "document": "def: "}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    encoder = embed.load(tmp_path)
    np.testing.assert_allclose(
        encoder.encode(["g"], query=True), tiny.encode(["abc: g"]), atol=1e-6
    )
    np.testing.assert_allclose(encoder.encode(["g"]), tiny.encode(["def: g"]), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "query", "document"),
    [
        ("bge-small-en-v1.5", BGE, ""),
        ("models--BAAI--bge-base-en/snapshots/0123abc", BGE, ""),
        ("bge-small-zh", "", ""),
        ("bge-m3", "", ""),
        ("minilm", "", ""),
        ("multilingual-e5-small", "query: ", "passage: "),
        ("models--intfloat--e5-base-v2/snapshots/0123abc", "query: ", "passage: "),
        ("multilingual-e5-large-instruct", "", ""),
    ],
)
def test_models_whose_card_wants_them_have_prefixes(name, query, document, tmp_path, tiny):
    encoder = embed.load(write(tmp_path / name))
    asked = encoder.encode(["abc"], query=True)
    np.testing.assert_allclose(asked, tiny.encode([query + "abc"]), atol=1e-6)
    np.testing.assert_allclose(encoder.encode(["abc"]), tiny.encode([document + "abc"]), atol=1e-6)
    assert (encoder.identity == tiny.identity) == (not document)


def test_identity_follows_every_file_that_decides_a_vector(tmp_path, tiny):
    folder = write(tmp_path / "one")
    assert embed.load(folder).identity == tiny.identity
    shutil.copytree(folder, tmp_path / "two")
    (tmp_path / "two" / "README.md").write_text("changes nothing")
    assert embed.load(tmp_path / "two").identity == tiny.identity
    seen = {tiny.identity}
    for change in (
        {"pooling": "cls_token"},
        {"limit": 10},
        {"hidden_act": "relu"},
        {"weights": random_weights(CONFIG, seed=1)},
    ):
        seen.add(embed.load(write(tmp_path / "three", **change)).identity)
    assert len(seen) == 5


WRONG_WEIGHTS = {
    "lack": lambda w: w.pop("encoder.layer.1.output.dense.bias"),
    "unknown": lambda w: w.update({"encoder.layer.2.output.dense.bias": np.ones(32, np.float32)}),
    "do not fit": lambda w: w.update({"embeddings.LayerNorm.bias": np.ones(31, np.float32)}),
}


@pytest.mark.parametrize("message", WRONG_WEIGHTS)
def test_wrong_weights_are_refused_by_name(message, tmp_path):
    weights = random_weights(CONFIG)
    WRONG_WEIGHTS[message](weights)
    with pytest.raises(ModelError, match=message) as caught:
        embed.load(write(tmp_path, weights=weights))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mpnet"}, "encoder type mpnet is not supported"),
        ({"model_type": "new"}, "encoder type new is not .*; use a sentence encoder of the BERT"),
        ({"hidden_act": "swish"}, "hidden_act swish"),
        ({"position_embedding_type": "relative_key"}, "position embedding relative_key"),
        ({"pooling": "mean_sqrt_len_tokens"}, "pooling pooling_mode_mean_sqrt_len_tokens"),
        ({"pooling": ""}, "pooling none"),
        ({"tokenizer": False}, r"adds no \[CLS\]"),
        ({"num_attention_heads": 5}, "5 heads"),
        ({"hidden_size": None}, "cannot be read"),
    ],
)
def test_unsupported_models_are_refused_by_name(changes, message, tmp_path):
    weights = random_weights(CONFIG)
    with pytest.raises(ModelError, match=message):
        embed.load(write(tmp_path, weights=weights, **changes))


def test_a_dense_module_is_refused(tmp_path):
    write(tmp_path)
    modules = [{"idx": 0, "type": "sentence_transformers.models.Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="module Dense is not supported"):
        embed.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"]
)
def test_broken_and_missing_files_are_named(name, tmp_path):
    write(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="model cannot be read" if "saf" in name else name):
        embed.load(tmp_path)
    (tmp_path / name).unlink()
    if name.startswith("1_Pooling"):  # its absence means the mean
        embed.load(tmp_path)
    else:
        with pytest.raises(ModelError, match=r"it needs config\.json|no model\.safetensors"):
            embed.load(tmp_path)


@pytest.mark.slow
@pytest.mark.model
def test_default_encoder_agrees_with_torch():
    """tests/data/minilm_golden.npz holds texts and what torch 2.13 and transformers 5.23 make of
    them: AutoModel, at most 256 tokens, mean over the attention mask, divided by the norm."""
    golden = np.load(Path(__file__).parent / "data" / "minilm_golden.npz")
    texts = json.loads(str(golden["texts"]))
    encoder = load_encoder()
    assert len(texts) == 14 and encoder.dimensions == 384 and encoder.max_tokens == 256
    cosines = (encoder.encode(texts) * golden["vectors"]).sum(1)
    assert cosines.min() >= 0.9999


@pytest.mark.slow
@pytest.mark.model
def test_default_encoder_matches_questions_with_their_texts():
    encoder = load_encoder()
    passages = ["Cats sleep most of the day.", "The tax is due in April.", "Boil eggs for minutes."]
    questions = ["When must I pay?", "How do I cook breakfast?", "Are pets lazy?"]
    scores = encoder.encode(questions, query=True) @ encoder.encode(passages).T
    assert scores.argmax(1).tolist() == [1, 2, 0]
