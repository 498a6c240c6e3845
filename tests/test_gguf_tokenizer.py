"""Tokenizers built from GGUF metadata, against transformers' own and by properties."""

import io

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load, load_tokenizer
from tiny_gguf import MERGES, TEXT, TOKENS, write_tiny
from transformers import GPT2Tokenizer, Qwen2Tokenizer

from convert.from_gguf import convert


def tokenizer_of(folder, pre_tokenizer, **metadata):
    path, _, _ = write_tiny(folder, metadata={"tokenizer.ggml.pre": pre_tokenizer, **metadata})
    convert(path, folder / "out")
    return load_tokenizer(folder / "out")


def test_chat_template_and_special_tokens_work_in_mlx_lm(tmp_path):
    tokenizer = tokenizer_of(tmp_path, "qwen2")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "the fox"}])
    assert ids[0] == TOKENS.index("<|im_start|>") and TOKENS.index("<|im_end|>") in ids
    assert tokenizer.decode(ids) == "<|im_start|>user\nthe fox<|im_end|>\n"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nthe fox\n"
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.bos_token == "<|endoftext|>"
    assert load(str(tmp_path / "out"))[1].eos_token_ids == {0, 2}


REFERENCES = {"qwen2": Qwen2Tokenizer, "gpt-2": GPT2Tokenizer}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """By pre-tokenizer: the converted one and, where transformers has one, its own."""
    vocabulary = {token: n for n, token in enumerate(TOKENS)}
    merges = [tuple(merge.split()) for merge in MERGES]
    pairs = {}
    for name in ("qwen2", "gpt-2", "smollm", "llama-bpe"):
        ours = tokenizer_of(tmp_path_factory.mktemp(name), name)
        theirs = REFERENCES.get(name)
        pairs[name] = ours, theirs and theirs(vocab=vocabulary, merges=merges)
    return pairs


@given(st.text(max_size=60) | st.text("the quick fox 123 's don't\n\t  é日.,!", max_size=60))
@settings(max_examples=150, deadline=None)
def test_tokens_are_those_of_transformers_own_tokenizers(tokenizers, text):
    for name in REFERENCES:
        ours, theirs = tokenizers[name]
        assert ours.encode(text, add_special_tokens=False) == theirs.encode(
            text, add_special_tokens=False
        )


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(max_examples=100, deadline=None)
def test_text_survives_encoding_and_decoding(tokenizers, text):
    for name in ("gpt-2", "smollm", "llama-bpe"):
        ours, _ = tokenizers[name]
        assert ours.decode(ours.encode(text, add_special_tokens=False)) == text


def test_digits_are_cut_as_each_model_was_trained(tmp_path, tokenizers):
    def pieces(name):
        ours, _ = tokenizers[name]
        cut = ours.backend_tokenizer.pre_tokenizer.pre_tokenize_str("ab 12345")
        return [piece for piece, _ in cut]

    assert pieces("smollm") == ["ab", "Ġ", "1", "2", "3", "4", "5"]
    assert pieces("qwen2") == ["ab", "Ġ", "1", "2", "3", "4", "5"]
    assert pieces("llama-bpe") == ["ab", "Ġ", "123", "45"]
    assert pieces("gpt-2") == ["ab", "Ġ12345"]


def test_first_token_is_added_only_where_the_file_or_llama_3_says_so(tmp_path, tokenizers):
    assert tokenizers["llama-bpe"][0].encode("fox")[0] == 0
    assert tokenizers["qwen2"][0].encode("fox")[0] != 0
    asked = tokenizer_of(tmp_path, "qwen2", **{"tokenizer.ggml.add_bos_token": True})
    assert asked.encode("fox") == [0, *tokenizers["qwen2"][0].encode("fox")]


@pytest.fixture(scope="module")
def sentencepieces(tmp_path_factory):
    """By whether a space is put before the text: the converted tokenizer and SentencePiece's."""
    pairs = {}
    for prefix in (True, False):
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([TEXT] * 4),
            model_writer=written,
            vocab_size=380,
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=prefix,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        theirs = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
        count = range(theirs.vocab_size())
        kinds = {1: theirs.is_control, 2: theirs.is_unknown, 3: theirs.is_byte}
        types = [next((k for k, is_kind in kinds.items() if is_kind(n)), 0) for n in count]
        metadata = {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [theirs.id_to_piece(n) for n in count],
            "tokenizer.ggml.scores": [theirs.get_score(n) for n in count],
            "tokenizer.ggml.token_type": [(1, 3, 2, 6)[kind] for kind in types],
            "tokenizer.ggml.unknown_token_id": theirs.unk_id(),
            "tokenizer.ggml.bos_token_id": theirs.bos_id(),
            "tokenizer.ggml.eos_token_id": theirs.eos_id(),
            "tokenizer.ggml.add_space_prefix": prefix,
        }
        folder = tmp_path_factory.mktemp("sentencepiece")
        without = ["tokenizer.ggml.merges", "tokenizer.ggml.pre"]
        path, _, _ = write_tiny(folder, metadata=metadata, without=without, vocab_size=len(count))
        convert(path, folder / "out")
        pairs[prefix] = load_tokenizer(folder / "out"), theirs
    return pairs


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁\0"), max_size=60)
    | st.text("the quick fox 123 's don't  é日.,!", max_size=60)
)
@settings(max_examples=200, deadline=None)
def test_tokens_are_those_of_sentencepiece(sentencepieces, text):
    for ours, theirs in sentencepieces.values():
        ids = ours.encode(text, add_special_tokens=False)
        if text:
            assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)


def test_sentencepieces_first_token_is_added(sentencepieces):
    ours, theirs = sentencepieces[True]
    assert ours.encode("the fox") == [theirs.bos_id(), *theirs.encode("the fox")]
