"""The tokenizer in a GGUF file's metadata, as the files that Hugging Face's classes load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import pre_tokenizers as pre

from .gguf_file import GgufFile
from .writer import write_json

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(digits: str) -> pre.PreTokenizer:
    words = pre.Split(Regex(_WORDS + digits + _REST), behavior="isolated")
    return pre.Sequence([words, pre.ByteLevel(add_prefix_space=False, use_regex=False)])


# By llama.cpp's names for the ways of cutting text into words.
PRE_TOKENIZERS: dict[str, Callable[[], pre.PreTokenizer]] = {
    "gpt-2": lambda: pre.ByteLevel(add_prefix_space=False),
    "smollm": lambda: pre.Sequence(
        [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": lambda: _split(r"\p{N}"),
    "llama-bpe": lambda: _split(r"\p{N}{1,3}"),
}
# Control tokens that end an answer even where the metadata names only one of them.
END_TOKENS = {"<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>"}
CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type


def write_tokenizer(gguf: GgufFile, rows: int, folder: Path) -> dict[str, Any]:
    """Write the tokenizer of a GGUF file, and return what generation_config.json holds.

    Args:
        rows: of the embedding matrix; there may be fewer tokens, but not more.
    """
    settings = gguf.metadata
    kind = settings.get("tokenizer.ggml.model", str)
    if kind not in ("gpt2", "llama"):
        raise gguf.error(
            f"tokenizer {kind} is not supported, only gpt2 (byte-level BPE) and llama "
            f"(SentencePiece)"
        )
    split = settings.get("tokenizer.ggml.pre", str, "default")
    if kind == "gpt2" and split not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise gguf.error(f"pre-tokenizer {split} is not supported, only {known}")
    tokens = gguf.strings("tokenizer.ggml.tokens")
    types = settings.get("tokenizer.ggml.token_type", list, [1] * len(tokens))
    if not 0 < len(set(tokens)) == len(tokens) == len(types) <= rows:
        reason = f"its {len(tokens)} tokens repeat, or do not match {len(types)} types, {rows} rows"
        raise gguf.error(reason)
    typed = list(zip(tokens, types, strict=True))
    vocabulary = {token: n for n, token in enumerate(tokens)}
    if kind == "gpt2":
        fast = _byte_level_bpe(gguf, vocabulary, split)
    else:
        fast = _sentencepiece_bpe(gguf, vocabulary)
    special = [AddedToken(t, special=True, normalized=False) for t, k in typed if k == CONTROL]
    fast.add_special_tokens(special)
    fast.add_tokens([AddedToken(t, normalized=False) for t, k in typed if k == USER_DEFINED])

    ids = _special_ids(gguf, len(tokens))
    # llama.cpp adds the first token by default for Llama and Llama 3 only. No token is added at
    # the end, whatever the file says, since the model continues the text.
    by_default = kind == "llama" or split == "llama-bpe"
    if "bos" in ids and settings.get("tokenizer.ggml.add_bos_token", bool, by_default):
        bos = tokens[ids["bos"]]
        fast.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], special_tokens=[(bos, ids["bos"])]
        )
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config["clean_up_tokenization_spaces"] = False
    for role, name in {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}.items():
        if role in ids:
            config[f"{name}_token"] = tokens[ids[role]]
    if template := settings.get("tokenizer.chat_template", str, ""):
        config["chat_template"] = template
    ends = [ids[role] for role in ("eos", "eot", "eom") if role in ids]
    ends += [n for n, (t, k) in enumerate(typed) if k == CONTROL and t in END_TOKENS]
    generation: dict[str, Any] = {"eos_token_id": list(dict.fromkeys(ends))}
    if "bos" in ids:
        generation["bos_token_id"] = ids["bos"]
    fast.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "generation_config.json", generation)
    return generation


def _special_ids(gguf: GgufFile, tokens: int) -> dict[str, int]:
    """Return the token ids that the metadata names, by their role."""
    ids = {}
    for role in ("bos", "eos", "eot", "eom", "padding", "unknown"):
        key = f"tokenizer.ggml.{role}_token_id"
        if key in gguf.metadata.values:
            ids[role] = gguf.metadata.get(key, int)
            if not 0 <= ids[role] < tokens:
                raise gguf.error(f"{key} is {ids[role]}, but there are {tokens} tokens")
    return ids


def _byte_level_bpe(gguf: GgufFile, vocabulary: dict[str, int], split: str) -> FastTokenizer:
    merges: list[Any] = [tuple(merge.split(" ")) for merge in gguf.strings("tokenizer.ggml.merges")]
    try:
        # Llama 3 takes a word that is a token as it is, even where no merges lead to it.
        fast = FastTokenizer(models.BPE(vocabulary, merges, ignore_merges=split == "llama-bpe"))
    except Exception as error:  # tokenizers raises plain Exception
        raise gguf.error(f"the merges of its tokenizer are broken ({error})") from error
    if split == "qwen2":
        fast.normalizer = normalizers.NFC()
    fast.pre_tokenizer = PRE_TOKENIZERS[split]()
    fast.decoder = decoders.ByteLevel()
    return fast


def _sentencepiece_bpe(gguf: GgufFile, vocabulary: dict[str, int]) -> FastTokenizer:
    """SentencePiece's BPE: the pair of neighbours whose union scores highest is joined first."""
    settings, tokens = gguf.metadata, list(vocabulary)
    scores = settings.get("tokenizer.ggml.scores", list)
    if len(scores) != len(tokens):
        raise gguf.error(f"its tokenizer has {len(scores)} scores for {len(tokens)} tokens")
    merges = sorted(
        (-score, n, pair)
        for (token, n), score in zip(vocabulary.items(), scores, strict=True)
        for pair in ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        if pair[0] in vocabulary and pair[1] in vocabulary
    )
    unknown = tokens[settings.get("tokenizer.ggml.unknown_token_id", int, 0) % len(tokens)]
    fast = FastTokenizer(
        models.BPE(
            vocabulary,
            [pair for _, _, pair in merges],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
    shown = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if settings.get("tokenizer.ggml.add_space_prefix", bool, True):
        spaces.insert(0, normalizers.Prepend("▁"))
        shown.append(decoders.Strip(" ", left=1))
    fast.normalizer = normalizers.Sequence(spaces)
    fast.decoder = decoders.Sequence(shown)
    return fast
