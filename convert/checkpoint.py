"""A PyTorch model on disk: weights, config.json, tokenizer, and a user's own map of names."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m3mlx.errors import ConvertError

from .safetensors_file import Tensor, read_safetensors
from .torch_file import read_torch_file
from .writer import first_line, some

PART = re.compile(r"-of-(\d+)$")  # end of a shard's name, with the number of shards
TORCH_SUFFIXES = (".bin", ".pt", ".pth")
LAYER = "{n}"  # the number of a layer in a map of names
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json"),
    *("vocab.json", "merges.txt", "tokenizer.model"),
)


class TorchCheckpoint:
    """A folder in Hugging Face layout, or one file of weights with its config.json.

    Args:
        stem: beginning of the names of a folder's weight files.

    Attributes:
        folder: the folder with config.json and the tokenizer.
        config: config.json; empty where there is none.
        settings: Megatron's arguments, where a file holds them.
        tensors: of all files, by name.
    """

    def __init__(self, path: Path, stem: str = "model"):
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        if not path.exists():
            raise self.error("there is no such file or folder")
        self.config = self.json("config.json")
        self.settings: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        files, index = self._weight_files(stem)
        places: dict[str, str] = {}  # file of each tensor
        for file in files:
            for name, tensor in self._read(file).items():
                if name in places:
                    raise self.error(f"{name} is in {places[name]} and in {file.name}")
                self.tensors[name], places[name] = tensor, file.name
        if index is not None and index != places:
            wrong = {n for n in places.keys() | index if places.get(n) != index.get(n)}
            raise self.error(f"its index and its shards disagree about {some(wrong)}")

    def error(self, reason: str) -> ConvertError:
        return ConvertError(f"{self.path}: {' '.join(reason.split())}.")

    def rename(self, names: Mapping[str, str]) -> None:
        """Rename tensors; those that ``names`` lacks keep their names."""
        new = [names.get(name, name) for name in self.tensors]
        if twice := {name for name in new if new.count(name) > 1}:
            raise self.error(f"several of its tensors would be named {some(twice)}")
        self.tensors = dict(zip(new, self.tensors.values(), strict=True))

    def json(self, name: str) -> dict[str, Any]:
        """Read a JSON object beside the weights; empty where there is none."""
        path = self.folder / name
        if not path.exists():
            return {}
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self.error(f"{name} cannot be read ({error})") from error
        if not isinstance(value, dict):
            raise self.error(f"{name} is no JSON object")
        return value

    def _weight_files(self, stem: str) -> tuple[list[Path], dict[str, str] | None]:
        """Return the weight files, and which tensor is in which according to the index."""
        if not self.path.is_dir():
            return [self.path], None
        stems = {"safetensors": stem, "bin": {"model": "pytorch_model"}.get(stem, stem)}
        for kind, start in stems.items():
            index = f"{start}.{kind}.index.json"
            if (self.folder / index).exists():
                return self._indexed(index)
            if files := sorted(self.folder.glob(f"{start}*.{kind}")):
                parts = {f.name: found[1] for f in files if (found := PART.search(f.stem))}
                if any(len(parts) != int(count) for count in parts.values()):
                    raise self.error(f"of its shards only {some(parts)} are there")
                return files, None
        ranks = sorted(self.folder.glob("mp_rank_*/model*.pt"))
        if len(ranks) > 1:
            raise self.error(
                f"it is split over {len(ranks)} model-parallel ranks; merge them with Megatron's "
                f"checkpoint tool first"
            )
        if files := ranks or sorted(self.folder.glob("*.pt")) or sorted(self.folder.glob("*.pth")):
            return files, None
        raise self.error("it holds neither safetensors nor .bin, .pt or .pth files")

    def _indexed(self, name: str) -> tuple[list[Path], dict[str, str]]:
        places = self.json(name).get("weight_map")
        if not isinstance(places, dict) or not all(
            isinstance(file, str) and Path(file).name == file for file in places.values()
        ):
            raise self.error(f"{name} is damaged")
        files = [self.folder / file for file in sorted(set(places.values()))]
        if missing := [file.name for file in files if not file.is_file()]:
            raise self.error(f"the shard {some(missing)} is missing; fetch it again")
        return files, places

    def _read(self, file: Path) -> dict[str, Tensor]:
        if file.suffix == ".safetensors":
            return read_safetensors(file)
        if file.suffix in TORCH_SUFFIXES:
            tensors, settings = read_torch_file(file)
            self.settings |= settings
            return tensors
        raise self.error(f"it is none of .safetensors, {', '.join(TORCH_SUFFIXES)}")


def rename(checkpoint: TorchCheckpoint, file: Path) -> set[str]:
    """Rename the tensors of a checkpoint as a JSON file says.

    The file is one object, such as ``{"h.{n}.qkv.weight":
    "encoder.layers.{n}.self_attention.query_key_value.weight", "step": null}``. On the right are
    Hugging Face's names, or Megatron's, whose fused matrices are taken apart; null leaves a tensor
    out.

    Returns:
        The names of the tensors that are left out.
    """
    try:
        lines = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConvertError(f"{file}: cannot be read as JSON ({error}).") from error
    if not isinstance(lines, dict) or not all(
        target is None or isinstance(target, str) for target in lines.values()
    ):
        raise ConvertError(f"{file}: is no JSON object from names to names or null.")
    new: dict[str, str] = {}
    left_out: set[str] = set()
    for pattern, target in lines.items():
        places = re.escape(pattern).replace(re.escape(LAYER), r"(\d+)", 1)
        fits = {name: found for name in checkpoint.tensors if (found := re.fullmatch(places, name))}
        if not fits:
            raise ConvertError(f"{file}: {pattern} fits no tensor of {checkpoint.path}.")
        if twice := fits.keys() & (new.keys() | left_out):
            raise ConvertError(f"{file}: {some(twice)} fits several lines.")
        if target is None:
            left_out |= fits.keys()
            continue
        for name, found in fits.items():
            new[name] = target.replace(LAYER, found[1]) if found.groups() else target
    checkpoint.rename(new)
    return left_out


def copy_tokenizer(source: Path, out: Path) -> None:
    """Copy the files of a tokenizer; build tokenizer.json where only the vocabulary is there."""
    for name in TOKENIZER:
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
