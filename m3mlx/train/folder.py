"""The model folder of a run that trains all weights, from random ones or an earlier model's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import _get_classes as classes_of
from mlx_lm.utils import load_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from ..config import MEMORY_FILE, MemorySettings, Progress
from ..errors import M3Error
from ..files import NEW, replacing
from ..models.arrays import named_arrays
from ..models.builtin import BUILT_IN, fetch
from ..models.decoder import Decoder, load_decoder
from .adapter import write_json
from .data import Data, read_data
from .estimate import available
from .settings import Settings, parse_budget

BOS, EOS = "<s>", "</s>"
WEIGHTS = "model.safetensors"
TOKENIZER = (  # its files
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    "chat_template*",
)
COPIES = 4  # of the weights that training holds: themselves, gradients and two moments


def begin(settings: Settings, folder: Path, progress: Progress) -> Decoder:
    """Write the model that a run begins with to an empty folder, and load it.

    Random weights are MLX's initial values, and the same for the same seed.

    Raises:
        M3Error: there is no such config, model or tokenizer, they do not fit each other, or the
            model is too large for this machine or cannot carry memories.
    """
    source = Path(str(settings.init)).expanduser()
    if source.is_dir():
        for file in (*source.glob("model*.safetensors"), source / "config.json"):
            (folder / file.name).symlink_to(file.resolve())
        _copy_tokenizer(source, folder)
    else:
        _write_random_model(settings, source, folder, progress)
    try:
        decoder = load_decoder(str(folder), progress=progress)
    except M3Error as error:
        raise M3Error(str(error).replace(str(folder), str(source))) from error
    decoder.trained = None
    if settings.stage == "continual":
        decoder.trained = memory_settings(settings, decoder)
    return decoder


def memory_settings(settings: Settings, decoder: Decoder) -> MemorySettings:
    """Return how the memories of this model are made and read, which its folder will say.

    The prefix is the paper's (section 3.2), whatever the tokenizer's chat template.
    """
    kind, tokens = parse_budget(settings.budgets[0])
    layers = max(1, decoder.layers // 2) if kind == "half" else decoder.layers
    return MemorySettings(
        memory_layers=tuple(range(layers)),
        tokens_per_head=tokens or MemorySettings.tokens_per_head,
        selection=str(settings.selection),
        prefix=f"{decoder.tokenizer.bos_token or ''}Reference:",
        memories=settings.memories,
    )


def save_begun(decoder: Decoder, output: Path) -> None:
    """Write all of the model's folder but the weights."""
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(decoder.path / "config.json", output / "config.json")
    _copy_tokenizer(decoder.path, output)
    if decoder.trained:
        write_json(output / MEMORY_FILE, decoder.trained.to_json())


def save_weights(output: Path, model: nn.Module) -> None:
    """Write the weights, whole or not at all."""
    with replacing(output / WEIGHTS, f"{NEW}.safetensors") as new:
        mx.save_safetensors(str(new), named_arrays(model.parameters()), metadata={"format": "mlx"})


def _write_random_model(settings: Settings, path: Path, folder: Path, progress: Progress) -> None:
    config = _read_config(path)
    vocabulary = config.get("text_config", config).get("vocab_size")
    if type(vocabulary) is not int:
        raise M3Error(f"{path}: has no vocab_size; write the number of tokens")
    begun = Path(settings.output)
    if (begun / "tokenizer.json").is_file():
        _copy_tokenizer(begun, folder)  # of the run that goes on
    elif settings.tokenizer:
        _copy_tokenizer(_tokenizer_folder(settings.tokenizer, progress), folder)
    else:
        progress("training a tokenizer", 0, 0)
        _train_tokenizer(_texts(read_data(settings.data)), vocabulary, path, folder)
    tokenizer = load_tokenizer(folder)
    if (largest := max(tokenizer.get_vocab().values())) >= vocabulary:
        raise M3Error(
            f"{path}: vocab_size is {vocabulary}, and the tokenizer has token {largest}; "
            f"set vocab_size to {largest + 1} or more"
        )
    if tokenizer.eos_token_id is None:
        raise M3Error(f"{settings.tokenizer}: its tokenizer has no token that ends a text")
    for name in ("bos_token_id", "eos_token_id"):
        config[name] = getattr(tokenizer, name)
    write_json(folder / "config.json", config)
    mx.random.seed(settings.seed)
    try:
        kind, arguments = classes_of(config)
        model = kind(arguments.from_dict(config))
    except Exception as error:  # a config can fail anywhere in mlx-lm
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise M3Error(f"{path}: mlx-lm makes no model of it ({reason})") from error
    wanted = COPIES * 4 * sum(x.size for x in named_arrays(model.parameters()).values())
    if wanted > available():
        raise M3Error(
            f"{path}: training this model would take more than {wanted / 1e9:.1f} GB, and "
            f"{available() / 1e9:.1f} GB may be taken; write a smaller one"
        )
    save_weights(folder, model)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise M3Error(
            f"{path}: cannot be read as a config.json ({error}); name one, or a model's folder"
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise M3Error(f"{path}: names no model_type; write one of mlx-lm's, such as llama")
    return {name: value for name, value in config.items() if not name.startswith("quantization")}


def _tokenizer_folder(name: str, progress: Progress) -> Path:
    if name.lower() in BUILT_IN:
        return fetch(name.lower(), progress)
    path = Path(name).expanduser()
    if not (path / "tokenizer.json").is_file():
        raise M3Error(f"{name}: has no tokenizer.json; name a model's folder or a built-in model")
    return path


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for pattern in TOKENIZER:
        for file in source.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)


def _texts(data: Data) -> Iterator[str]:
    """All texts of the data, for a tokenizer."""
    yield from data.documents()
    for question in data.questions:
        yield from (question.question, *question.answers)
    for conversation in data.conversations:
        yield from (text for turn in conversation.messages for text in turn)
    for preference in data.preferences:
        yield from (preference.prompt, preference.chosen, preference.rejected)


def _train_tokenizer(texts: Iterable[str], vocabulary: int, path: Path, folder: Path) -> None:
    """Write a tokenizer of bytes and their commonest pairs (BPE)."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary < (least := len(alphabet) + 2):
        raise M3Error(
            f"{path}: vocab_size is {vocabulary}, and a tokenizer of bytes needs {least}; "
            f"raise it, or name a --tokenizer"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True) for text in (BOS, EOS)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", about)
