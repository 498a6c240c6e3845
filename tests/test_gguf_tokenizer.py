"""Tokenizers built from GGUF metadata, against transformers' own and by properties."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load, load_tokenizer
from tiny_gguf import MERGES, TOKENS, write_tiny
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
