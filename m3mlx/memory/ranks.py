"""Several processes that ``mlx.launch`` has started together, on one machine or more.

Rank 0 talks to the user and owns what is written: the store, or the folder of a training run. The
others hold the same model, and compute their share.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

from ..config import MemoryConfig
from ..errors import FingerprintError, M3Error
from ..models.decoder import Decoder
from .format import MemoryFormat, conditions

Item = TypeVar("Item")


class Ranks:
    """The processes that were started together; one that was started alone is rank 0 of 1.

    All of them must call the same methods in the same order, as each waits for the others. All
    methods raise M3Error when another process has ended.

    Attributes:
        rank: number of this process.
        size: number of all.
    """

    def __init__(self) -> None:
        self._group = mx.distributed.init()
        self.rank, self.size = self._group.rank(), self._group.size()

    def tell(self, message: Any = None) -> Any:
        """Return on every rank the message of rank 0, anything that JSON can hold."""
        data = b"" if self.rank else json.dumps(message).encode()
        length = int(self.add(mx.array(len(data))).item())
        buffer = np.frombuffer(data.ljust(length, b"\0"), np.uint8)
        return json.loads(np.array(self.add(mx.array(buffer))).tobytes())

    def add(self, tree: Any) -> Any:
        """Return on every rank the sum over ranks of each array of a tree."""
        if self.size == 1:
            return tree
        arrays: dict[str, Any] = dict(tree_flatten(tree))
        for name in sorted(arrays):  # an order that all ranks have in common
            arrays[name] = self._wait(mx.distributed.all_sum(arrays[name], group=self._group))
        return tree_map_with_path(lambda name, _: arrays[name or ""], tree)

    def _wait(self, array: mx.array) -> mx.array:
        """Evaluate at once; ranks whose graphs differ would else send in different orders."""
        try:
            mx.eval(array)
        except RuntimeError as error:
            raise M3Error(
                f"rank {self.rank}: another of the {self.size} processes has ended ({error}). "
                f"Nothing finished is lost; give the same command again to go on."
            ) from error
        return array

    def copy(self, tree: Any) -> Any:
        """Return on every rank the arrays of rank 0; the others pass some of the same shapes."""
        return self.add(tree if not self.rank else tree_map(mx.zeros_like, tree))

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this rank's share of items: every ``size``-th of them."""
        return items[self.rank :: self.size]

    def collect(self, rows: np.ndarray, count: int) -> np.ndarray:
        """Return on every rank the results of all shares, in the order of the items.

        Args:
            rows: results of this rank's share, (items, ...).
            count: items in all.
        """
        each = -(-count // self.size)
        padded = np.zeros((each, *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        found = self._wait(mx.distributed.all_gather(mx.array(padded), group=self._group))
        by_rank = np.array(found).reshape(self.size, each, *rows.shape[1:])
        return by_rank.swapaxes(0, 1).reshape(-1, *rows.shape[1:])[:count]

    @contextmanager
    def leading(self) -> Iterator[None]:
        """On rank 0: let the helpers (``help_write``) end with the block."""
        try:
            yield
        finally:
            with suppress(M3Error):  # they have ended
                self.tell(None)


class SharedFormat(MemoryFormat):
    """Format of rank 0 that writes memories with all ranks, which run ``help_write``.

    Args:
        made_by: name and adapter of the decoder, as ``load_decoder`` takes them.
    """

    def __init__(
        self, decoder: Decoder, config: MemoryConfig, ranks: Ranks, made_by: tuple[str | None, Any]
    ):
        super().__init__(decoder, config)
        self._ranks = ranks
        name, adapter = made_by
        ranks.tell(
            {
                "model": name,
                "adapter": None if adapter is None else str(adapter),
                "config": config.to_json(),
                "conditions": conditions(decoder, config),
            }
        )

    def write(self, references: Sequence[Sequence[int]]) -> np.ndarray:
        """Make records as ``MemoryFormat`` does, each rank those of its share."""
        self._ranks.tell([list(map(int, tokens)) for tokens in references])
        return _write_share(self._ranks, self, references)


def help_write(ranks: Ranks, load: Callable[[str | None, str | None], Decoder]) -> None:
    """Write the memories that rank 0 asks for, until it ends.

    Args:
        load: returns the decoder of a name and an adapter.

    Raises:
        FingerprintError: this rank's model would make other memories than that of rank 0.
    """
    format: MemoryFormat | None = None
    while (asked := ranks.tell()) is not None:
        if isinstance(asked, dict):
            decoder = load(asked["model"], asked["adapter"])
            config = MemoryConfig.from_json(asked["config"])
            made = conditions(decoder, config)
            differing = [name for name, value in asked["conditions"].items() if made[name] != value]
            if differing:
                raise FingerprintError(
                    f"rank {ranks.rank}: its {differing[0]} is not that of rank 0, so its memories "
                    f"would differ. Put the same model and version of m3mlx on each machine."
                )
            format = MemoryFormat(decoder, config)
        elif format is not None:
            _write_share(ranks, format, asked)


def _write_share(
    ranks: Ranks, format: MemoryFormat, references: Sequence[Sequence[int]]
) -> np.ndarray:
    """Write this rank's share; return the records of all, uint8 (references, record_bytes)."""
    mine = ranks.share(references)
    records = np.zeros((0, format.record_bytes), np.uint8)
    if mine:
        records = MemoryFormat.write(format, mine)
    return ranks.collect(records, len(references))
