"""Import damaged and forged files, and count what comes of them.

    python tools/fuzz_import.py [--inputs 20000] [--seconds 600] [--seed 0]

Half of the inputs are damaged bytes; half are forged: the hashes fit, and values, lines, vectors or
memories are others. Each is imported into a store that has two documents. It must be refused with
one sentence that names the file, and then the store is as it was, or taken, and then what is read
is finite, in range, and sound to ``check`` (every 50th time). No input may take 5 seconds or add
200 MB of memory. Prints outcomes by kind, and one JSON line last. The same seed gives the same
inputs.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import numpy as np  # noqa: E402
from small_store import A, B, memorize, new_store  # noqa: E402

from m3mlx.config import MemoryConfig  # noqa: E402
from m3mlx.errors import StoreError  # noqa: E402
from m3mlx.export import container  # noqa: E402
from m3mlx.export.portable import Export  # noqa: E402
from m3mlx.export.transfer import read_export, write_export  # noqa: E402
from m3mlx.memory.codec import Codec  # noqa: E402
from m3mlx.store import MemoryStore  # noqa: E402

CONFIG = MemoryConfig("reconstruction", "uniform", ((2, 2),) * 2, 64, (1,))
CODEC = Codec(CONFIG)
ABOUT = {"memory": CONFIG.to_json(), "record_bytes": CODEC.record_bytes}
SLOW, LARGE = 5.0, 200  # seconds of an input, MB that a process may grow by
ODD = (
    *(None, True, -1, 0, 2**31, 2**53, 2**63, 1e308, "", "0", "7", "nan", "../../x", "/etc/passwd"),
    *("a\0b", "\x1b[2J", "\u2028", "\ud7ff", "x" * 70_000, [], {}, [[[[]]]], {"a": [1]}, [2**40]),
)
NUMBERS = (float("nan"), float("inf"), -float("inf"), 6e4, 1e-8, 0.0, 12.5)


def record(chance: random.Random) -> bytes:
    """A memory of small numbers."""
    data = np.array([chance.randrange(256) for _ in range(CODEC.record_bytes)], dtype=np.uint8)
    for part, start in ((CODEC.keys, CODEC.kept), (CODEC.values, CODEC.kept + CODEC.keys.bytes)):
        end = start + part.bytes
        scales = np.full(2 * part.groups, 0.01, dtype="<f2")
        data[end - 4 * part.groups : end] = scales.view(np.uint8)
    return data.tobytes()


def original(folder: Path) -> tuple[dict, dict[str, bytes]]:
    """Manifest and sections of a sound file."""
    chance = random.Random(0)
    with new_store(folder / "from", **ABOUT) as store:
        for path, texts in (("/a", A), ("/b", [*B, "canoes are small"]), ("/c", ["cold water"])):
            memorize(store, path, texts, cold=True)
        slots = store.slots()
        store.write({slot: record(chance) for slot in slots[:-1]})
        write_export(store, folder / "file", store.documents(), program="fuzz")
    with container.Container(folder / "file") as file:
        return file.about, {name: file.open(name).read() for name in file.sections}


def forge(about: dict, sections: dict[str, bytes], chance: random.Random) -> tuple[str, dict, dict]:
    """Change something behind the hashes; return what, manifest and sections."""
    about, made = json.loads(json.dumps(about)), dict(sections)
    kind = chance.choice(("field", "field", "line", "memory", "memory", "vector", "about", "bytes"))
    if kind in ("field", "line"):
        name = chance.choice(("documents", "references"))
        lines = made[name].splitlines()
        at = chance.randrange(len(lines))
        if kind == "line":
            lines[at : at + 1] = chance.choice(([], [lines[at]] * 2, [b"{}"], [lines[0]]))
        else:
            fields = json.loads(lines[at])
            fields[chance.choice([*fields, "more"])] = chance.choice(ODD)
            lines[at] = json.dumps(
                fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False
            ).encode("utf-8", "surrogatepass")
        made[name] = b"".join(line + b"\n" for line in lines)
    elif kind in ("memory", "vector"):
        name, dtype = ("vectors", "<f4") if kind == "vector" else ("memories/0", "<f2")
        data = bytearray(made[name])
        for _ in range(chance.choice((1, 1, 8))):
            number = np.array(chance.choice(NUMBERS), dtype=dtype).tobytes()
            at = chance.randrange(len(data) - 8)
            if kind == "memory" and chance.random() < 0.7:  # a scale or bias of a key
                one = 8 + CODEC.record_bytes
                scales = 8 + CODEC.kept + CODEC.keys.bytes - 4 * CODEC.keys.groups
                at -= at % one
                at += scales + 2 * chance.randrange(2 * CODEC.keys.groups)
            data[at : at + len(number)] = number
        made[name] = bytes(data)
    elif kind == "about":
        place = chance.choice([about, about["editions"][0], about["editions"][0]["memory"]])
        place[chance.choice([*place, "more"])] = chance.choice(ODD)
    else:
        name = chance.choice(list(made))
        made[name] = damaged(made[name], chance)
    return kind, about, made


def damaged(data: bytes, chance: random.Random) -> bytes:
    new = bytearray(data)
    at, length = chance.randrange(len(new)), chance.choice((1, 4, 64, 1000))
    way = chance.randrange(5)
    if way == 0:
        new[at] ^= 1 << chance.randrange(8)
    elif way == 1:
        del new[at:]
    elif way == 2:
        new[at : at + length] = chance.randbytes(length)
    elif way == 3:
        new[at:at] = new[at : at + length]
    else:
        del new[at : at + length]
    return bytes(new)


def take(store: MemoryStore, path: Path) -> str:
    """Import a file; return what came of it. AssertionError for what must not be."""
    before = [(document.id, document.path) for document in store.documents()]
    try:
        with Export(path) as file:
            report = read_export(store, file, replace=True)
    except StoreError as error:
        assert str(path) in str(error) or str(store.path) in str(error), str(error)
        assert "\n" not in str(error), str(error)
        if str(path) in str(error):
            known = [(document.id, document.path) for document in store.documents()]
            assert known == before, f"refused, but there are {known}"
        return "refused"
    references = store.references(store.slots())
    warm = [reference.slot for reference in references if reference.warm]
    if warm:
        memories = CODEC.unpack(store.read(warm))
        for part in (memories.keys, memories.values):
            assert float(np.abs(np.array(part)).max()) <= 4 * 4096, "a memory is out of range"
    return "taken, some memories refused" if report.refused else "taken"


def fuzz(folder: Path, inputs: int, seconds: float, seed: int) -> tuple[Counter[str], list[str]]:
    about, sections = original(folder)
    whole, path = (folder / "file").read_bytes(), folder / "input"
    outcomes, faults, until = Counter[str](), [], time.time() + seconds
    store = None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(inputs):
        if time.time() > until:
            break
        chance = random.Random(seed * 1_000_003 + number)
        if number % 50 == 0:
            if store:
                store.close()
                assert MemoryStore.check(folder / "to").sound, f"unsound after {number}"
            shutil.rmtree(folder / "to", ignore_errors=True)
            store = new_store(folder / "to", **ABOUT)
            memorize(store, "/a", A, cold=True)
            memorize(store, "/own", B, cold=True)
        kind = "damaged"
        if number % 2:
            path.write_bytes(damaged(whole, chance))
        else:
            kind, forged, made = forge(about, sections, chance)
            path.unlink(missing_ok=True)
            container.write(path, forged, [(name, [data]) for name, data in made.items()])
        started = time.process_time()
        try:
            outcomes[f"{kind}: {take(store, path)}"] += 1
        except Exception as error:
            outcomes[f"FAILED: {kind}"] += 1
            faults.append(f"input {number} of seed {seed}: {type(error).__name__}: {error}")
        if time.process_time() - started > SLOW:
            faults.append(f"input {number} of seed {seed} took more than {SLOW} seconds")
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if number > 100 and grown - most > LARGE * 1024:
            faults.append(f"input {number} of seed {seed} took {(grown - most) >> 10} MB")
        most = max(most, grown)
    return outcomes, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    memory = Path("/dev/shm")  # nothing here tests the disk
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    outcomes, faults = fuzz(folder, arguments.inputs, arguments.seconds, arguments.seed)
    shutil.rmtree(folder)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:7}  {outcome}")
    print(*faults[:20], sep="\n")
    print(json.dumps({"inputs": sum(outcomes.values()), "faults": len(faults), **outcomes}))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
