"""Feed the readers damaged and hostile files, and count what comes of them.

    python tools/fuzz_documents.py --inputs 100000 [--seeds FOLDER] [--seconds 600]
    python tools/fuzz_documents.py --guided --inputs 50000      # by coverage, with atheris

Each input is a sample that was mutated: bytes changed, moved, repeated, cut, spliced with another
sample; in archives also the parts inside. It is read in a worker. Anything but a document or a
DocumentError is a fault, and so is a text over its bound or a file over its time. A library that
crashes or wants too much memory is counted: the worker has contained it. Such inputs are saved.
The same seed gives the same inputs.
"""

from __future__ import annotations

import argparse
import io
import random
import re
import sys
import tempfile
import time
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

LARGEST = 200_000  # bytes of a sample
SLOW = 5.0  # seconds of a processor for one input
WORDS = (*b"< > & \0 { } \\ ]]> <!-- obj %s".split(), b"\n\n", b"From ")
NUMBERS = tuple(b"-1 0 99999999999 4294967295 1e999 %00 \xff\xfe \xed\xa0\x80".split())


def samples(folder: Path | None) -> list[tuple[str, bytes]]:
    """Return names and bytes of the samples of the tests, and of a folder."""
    from samples import write_good_folder  # type: ignore[import-not-found]

    from m3mlx.documents import format_of

    with tempfile.TemporaryDirectory() as made:
        write_good_folder(Path(made))
        files = [path for path in Path(made).rglob("*") if path.is_file()]
        files += sorted(folder.rglob("*")) if folder else []
        known = [path for path in files if path.is_file() and format_of(path)]
        small = [path for path in known if 0 < path.stat().st_size <= LARGEST]
        return [(path.name, path.read_bytes()) for path in small]


class Mutator:
    """Makes inputs of samples, each kind of file as often as the others."""

    def __init__(self, found: list[tuple[str, bytes]], seed: int) -> None:
        self.chance = random.Random(seed)
        self.by_suffix: dict[str, list[bytes]] = {}
        for name, data in found:
            self.by_suffix.setdefault(Path(name).suffix.lower() or name, []).append(data)

    def make(self) -> tuple[str, bytes]:
        suffix = self.chance.choice(sorted(self.by_suffix))
        data = self.chance.choice(self.by_suffix[suffix])
        if data.startswith(b"PK") and self.chance.random() < 0.8:
            return f"a{suffix}", self.inside(data, suffix)
        return f"a{suffix}", self.mutate(data, suffix)

    def inside(self, data: bytes, suffix: str) -> bytes:
        """Mutate the parts of an archive."""
        out = io.BytesIO()
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
                names = old.namelist()
                chosen = {self.chance.choice(names) for _ in range(self.chance.randint(1, 3))}
                for name in names:
                    part = old.read(name)
                    if name in chosen and self.chance.random() < 0.1:
                        continue
                    new.writestr(name, self.mutate(part, suffix) if name in chosen else part)
        except Exception:  # a sample that is damaged itself
            return self.mutate(data, suffix)
        return out.getvalue()

    def mutate(self, data: bytes, suffix: str) -> bytes:
        chance, changed = self.chance, bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 4, 16))):
            at = chance.randint(0, len(changed))
            length = chance.choice((1, 2, 8, 64, 1000))
            piece = bytes(changed[at : at + length])
            match chance.randint(0, 8):
                case 0 if piece:
                    changed[at] = chance.randint(0, 255)
                case 1 if piece:
                    changed[at] ^= 1 << chance.randint(0, 7)
                case 2:
                    del changed[at : at + length]
                case 3:
                    changed[at:at] = chance.choice(WORDS) * chance.choice((1, 1, 3, 300, 3000))
                case 4:
                    changed[at:at] = piece * chance.choice((1, 2, 50, 400))
                case 5:
                    changed[at : at + len(piece)] = chance.choice(NUMBERS)
                case 6:
                    other = chance.choice(self.by_suffix[suffix])
                    start = chance.randint(0, len(other))
                    changed[at : at + length] = other[start : start + length]
                case 7:
                    del changed[at:]
                case 8:
                    changed[at:at] = chance.randbytes(length)
        return bytes(changed[: 4 * LARGEST])


def run(inputs: int, seconds: float, seed: int, folder: Path | None, save: Path) -> int:
    """Read so many inputs, or for so long; print outcomes by format; return the faults."""
    from m3mlx.documents import Worker, document, worker
    from m3mlx.errors import DocumentError

    worker.SECONDS = SLOW
    mutator = Mutator(samples(folder), seed)
    outcomes: Counter[tuple[str, str]] = Counter()
    longest: dict[str, float] = {}
    start, faults = time.monotonic(), 0
    with Worker() as reader:
        for _ in range(inputs):
            if time.monotonic() - start > seconds:
                break
            name, data = mutator.make()
            began, fault = time.monotonic(), ""
            try:
                text = reader.parse(f"/{name}", data).text
                outcome = "read"
                if len(text) > document.MOST_TEXT * len(data) + document.LEAST_TEXT:
                    outcome = fault = "text over its bound"
            except DocumentError as error:
                outcome = "refused"
                if "takes longer" in error.reason:
                    outcome = fault = "over its time"
                elif contained := re.search(r"crash that reads it \(\w+|needs more", error.reason):
                    outcome = f"contained: {contained[0].rpartition('(')[2]}"
            except Exception as error:
                outcome = fault = f"traceback: {error!r}"
            took = time.monotonic() - began
            longest[Path(name).suffix] = max(took, longest.get(Path(name).suffix, 0))
            outcomes[Path(name).suffix, fault[:60] or outcome] += 1
            faults += bool(fault)
            if fault or "contained" in outcome:
                save.mkdir(parents=True, exist_ok=True)
                (save / f"{outcomes.total()}-{name}").write_bytes(data)
                print(f"{name}: {fault or outcome}", flush=True)
    for (suffix, outcome), count in sorted(outcomes.items()):
        print(f"{suffix:8} {outcome:30} {count:7}  longest {longest[suffix]:.2f} s")
    total = outcomes.total()
    print(f"{total} inputs, {faults} faults, {time.monotonic() - start:.0f} s, seed {seed}")
    return faults


def guided(inputs: int, folder: Path | None) -> None:
    """Read inputs that atheris makes, led by the lines of the readers that they reach."""
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["m3mlx.documents"]):
        from m3mlx.documents import format_of, formats, parse
        from m3mlx.errors import DocumentError
    suffixes = sorted(key for key in formats.FORMATS if key.startswith("."))
    suffixes = [each for each in suffixes if format_of(Path(f"a{each}")) is not formats.PLAIN]

    def one(data: bytes) -> None:
        if data:
            start = time.process_time()
            with suppress(DocumentError):
                parse(f"/a{suffixes[data[0] % len(suffixes)]}", data[1:])
            if time.process_time() - start > SLOW:
                raise RuntimeError("slow")

    with tempfile.TemporaryDirectory() as corpus:
        for number, (name, data) in enumerate(samples(folder)):
            if (suffix := Path(name).suffix.lower()) in suffixes:
                first = bytes([suffixes.index(suffix)])
                (Path(corpus) / str(number)).write_bytes(first + data)
        atheris.Setup([sys.argv[0], f"-runs={inputs}", "-max_len=20000", corpus], one)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=Path, help="folder of more samples")
    parser.add_argument("--save", type=Path, default=Path("fuzz-faults"))
    parser.add_argument("--guided", action="store_true", help="by coverage, with atheris")
    chosen = parser.parse_args()
    if chosen.guided:
        guided(chosen.inputs, chosen.seeds)
        return 0
    return int(run(chosen.inputs, chosen.seconds, chosen.seed, chosen.seeds, chosen.save) > 0)


if __name__ == "__main__":
    sys.exit(main())
