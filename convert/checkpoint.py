"""A PyTorch model on disk: a folder in Hugging Face layout, or one file with its config.json."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from m3mlx.errors import ConvertError

from .safetensors_file import read_array, read_header
from .torch_file import TorchFile, dtype_of
from .writer import Tensor, some

PART = re.compile(r"-of-(\d+)$")  # ends the name of one shard of so many
TORCH_SUFFIXES = (".bin", ".pt", ".pth")


class TorchCheckpoint:
    """The tensors of all files of a checkpoint; none is read before ``read`` asks for it.

    Args:
        path: folder or file.
        stem: how the names of a folder's weights begin.

    Attributes:
        path: as it was given.
        folder: where config.json and the tokenizer are.
        config: config.json as it is; empty where there is none.
        settings: Megatron's arguments, where a file holds them.
        tensors: by name.

    Raises:
        ConvertError: with the path and the reason.
    """

    def __init__(self, path: Path, stem: str = "model"):
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        if not path.exists():
            raise self.error("there is no such file or folder")
        self.config = self.json("config.json")
        self.settings: dict[str, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        self._read: dict[str, Callable[[], mx.array]] = {}
        self._files: dict[str, Path] = {}  # of each tensor
        files, index = self._weight_files(stem)
        for file in files:
            self._add(file)
        if index is not None:
            self._compare(index)

    def error(self, reason: str) -> ConvertError:
        return ConvertError(f"{self.path}: {' '.join(reason.split())}.")

    def read(self, name: str) -> mx.array:
        """A tensor in its own type, in memory of its own."""
        return self._read[name]()

    def rename(self, names: Mapping[str, str]) -> None:
        """Give tensors other names; those that ``names`` lacks keep theirs."""
        new = [names.get(name, name) for name in self.tensors]
        if twice := {name for name in new if new.count(name) > 1}:
            raise self.error(f"several of its tensors would be named {some(twice)}")
        self._read = {names.get(k, k): read for k, read in self._read.items()}
        self.tensors = {names.get(k, k): tensor for k, tensor in self.tensors.items()}

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object beside the weights; empty where there is none."""
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
        """The files that hold the weights, and which tensor the index says is in which."""
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

    def _add(self, file: Path) -> None:
        """Take up the tensors of one file."""
        if file.suffix == ".safetensors":
            for name, entry in read_header(file).items():
                tensor = Tensor(entry.shape, entry.dtype, entry.nbytes)
                self._take(file, name, tensor, lambda entry=entry: read_array(file, entry))
        elif file.suffix in TORCH_SUFFIXES:
            opened = TorchFile(file)
            self.settings |= opened.settings
            for name, value in opened.tensors.items():
                tensor = Tensor(tuple(value.shape), dtype_of(value), value.nbytes)
                self._take(file, name, tensor, lambda name=name: opened.read(name))
        else:
            raise self.error(f"it is none of .safetensors, {', '.join(TORCH_SUFFIXES)}")

    def _take(self, file: Path, name: str, tensor: Tensor, read: Callable[[], mx.array]) -> None:
        if name in self.tensors:
            raise self.error(f"{name} is in {self._files[name].name} and in {file.name}")
        self.tensors[name], self._read[name], self._files[name] = tensor, read, file

    def _compare(self, index: Mapping[str, str]) -> None:
        """The index and the shards must tell the same."""
        actual = {name: file.name for name, file in self._files.items()}
        if actual != index:
            wrong = {n for n in actual.keys() | index if actual.get(n) != index.get(n)}
            raise self.error(f"its index and its shards disagree about {some(wrong)}")
