"""An import takes no memory that no model makes."""

import mlx.core as mx
import numpy as np
import pytest

from m3mlx.config import MemoryConfig
from m3mlx.export.portable import Export
from m3mlx.export.transfer import read_export, write_export
from m3mlx.memory.codec import Codec, Memory
from m3mlx.store import MemoryStore, NewReference

CONFIG = MemoryConfig("reconstruction", "uniform", ((2, 2),) * 2, 64, (1,))
CODEC = Codec(CONFIG)
ABOUT = {
    "fingerprint": {"weights": "w"},
    "memory": CONFIG.to_json(),
    "encoder": "e",
    "dimensions": 16,
    "record_bytes": CODEC.record_bytes,
}


def good(seed):
    shape = (1, CODEC.kept, CONFIG.head_dim)
    keys, values = (mx.random.normal(shape, key=mx.random.key(seed + n)) for n in (0, 1))
    positions = np.arange(CODEC.kept, dtype=np.uint8)[None]
    return CODEC.pack(Memory(keys, values, positions))[0].tobytes()


def spoiled(number):
    """A memory whose first scale of the keys is another number."""
    record = bytearray(good(1))
    scales = 2 * 2 * CODEC.keys.groups  # float16 scales and biases end the keys
    at = CODEC.kept + CODEC.keys.bytes - scales
    record[at : at + 2] = np.array(number, "<f2").tobytes()
    return bytes(record)


def store(path, records):
    made = MemoryStore.create(path, **ABOUT)
    vector = np.eye(16, dtype=np.float32)[0]
    for number, record in enumerate(records):
        id, _ = made.begin(f"/{number}.txt", "h", 1, size=1)
        about = {"start": 0, "end": 3, "text": "tea", "tokens": [1], "page": None, "line": 1}
        new = NewReference(document=id, ordinal=0, vector=vector, record=record, **about)
        made.add([new])
    return made


@pytest.mark.parametrize("own", [0, 3])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 6e4, 100.0])
def test_a_memory_that_no_model_makes_is_left_cold(tmp_path, number, own):
    with store(tmp_path / "theirs", [good(5), spoiled(number)]) as theirs:
        write_export(theirs, tmp_path / "file", theirs.documents(), program="test")
    with store(tmp_path / "mine", []) as mine:
        vector = np.eye(16, dtype=np.float32)[0]
        for ordinal in range(own):
            id, _ = mine.begin(f"/own {ordinal}", "h", 1, size=1)
            about = {"start": 0, "end": 3, "text": "own", "tokens": [1], "page": None, "line": 1}
            record = good(10 + ordinal)
            mine.add([NewReference(document=id, ordinal=0, vector=vector, record=record, **about)])
        for _ in range(2):  # also where only memories are missing
            with Export(tmp_path / "file") as export:
                report = read_export(mine, export)
            assert report.refused == 1
        warm = {document.path: document.warm for document in mine.documents()}
        assert (warm["/0.txt"], warm["/1.txt"]) == (1, 0)
