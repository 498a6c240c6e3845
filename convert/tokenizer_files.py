"""The files of a tokenizer, copied or built."""

from __future__ import annotations

import shutil
from pathlib import Path

from m3mlx.errors import ConvertError

from .torch_file import first_line

COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json"),
    *("vocab.json", "merges.txt", "tokenizer.model"),
)


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copy a tokenizer; build tokenizer.json where only the vocabulary is there.

    Raises:
        ConvertError: there is a vocabulary from which no tokenizer can be built.
    """
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    vocabulary = any((source / name).is_file() for name in ("tokenizer.model", "vocab.json"))
    if not vocabulary or (source / "tokenizer.json").is_file():
        return
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
        if not (out / "tokenizer_config.json").exists():
            tokenizer.save_pretrained(out)
    except Exception as error:  # transformers can fail on a foreign folder anywhere
        raise ConvertError(
            f"{source}: no tokenizer can be built from its files ({first_line(error)}). Put a "
            f"tokenizer.json beside them."
        ) from error
