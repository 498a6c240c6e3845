"""The tokenizer's files, carried along or built."""

from __future__ import annotations

import shutil
from pathlib import Path

from m3mlx.errors import ConvertError

CARRIED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json"),
    *("vocab.json", "merges.txt", "tokenizer.model"),
)


def carry_tokenizer(source: Path, out: Path) -> None:
    """Copy the files of a tokenizer; build tokenizer.json where only the vocabulary is there.

    Raises:
        ConvertError: there is a vocabulary that no tokenizer can be built from.
    """
    for name in CARRIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    vocabulary = any((source / name).is_file() for name in ("tokenizer.model", "vocab.json"))
    if vocabulary and not (source / "tokenizer.json").is_file():
        _build(source, out)


def _build(source: Path, out: Path) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
        if not (out / "tokenizer_config.json").exists():
            tokenizer.save_pretrained(out)
    except Exception as error:  # transformers can stumble over a foreign folder anywhere
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConvertError(
            f"{source}: no tokenizer can be built from its files ({first}). Put a tokenizer.json "
            f"beside them."
        ) from error
