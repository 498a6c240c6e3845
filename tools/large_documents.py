"""Memorize large files and folders, cold: time, memory, references, and how right the bar is.

    python tools/large_documents.py FOLDER [mails] [sheets] [pages] [notes] [--share 1.0]

Makes in FOLDER, where they are missing, a mailbox of 10,000 mails, a workbook of 50 sheets of a
thousand rows, a PDF of 1,000 pages and a folder of 20,000 notes, of random words; ``--share`` makes
them smaller. Each is read, cut by SmolLM2's tokenizer and stored by a process of its own. Vectors
are random, and memories are left to be written. The time is that of the processor, of this process
and of the worker that reads, and a millisecond for each token, as an encoder takes. When the bar
comes to 25, 50 and 75 %, the time left that it shows is compared with what was then taken. Prints
a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

DIMENSIONS = 256
MODEL = "smollm2-135m-instruct"  # whose tokenizer cuts; m3mlx fetches it
TOKEN = 0.001  # seconds of an encoder
MARKS = (25, 50, 75)  # per cent
KINDS = {"mails": 10_000, "sheets": 50, "pages": 1000, "notes": 20_000}


def make(kind: str, folder: Path, count: int) -> Path:
    """Return the file or folder of a kind, made if it is missing."""
    from samples import write_pdf, write_xlsx

    chance = random.Random(1)
    letters = "abcdefghijklmnoprstuvw"
    lexicon = ["".join(chance.choices(letters, k=chance.randint(3, 9))) for _ in range(4000)]

    def say(words: int) -> str:
        return " ".join(chance.choices(lexicon, k=words))

    path = folder / f"{count}-{kind}"
    if kind == "mails":
        path = path.with_suffix(".mbox")
    elif kind in ("sheets", "pages"):
        path = path.with_suffix(".xlsx" if kind == "sheets" else ".pdf")
    if path.exists():
        return path
    if kind == "mails":
        with path.open("w") as file:
            for _ in range(count):
                head = f"From a@b Mon Jan 01 10:00:00 2026\nFrom: {say(1)}@x.y\nSubject: {say(5)}"
                body = "\n\n".join(say(60) for _ in range(3))
                file.write(f"{head}\nDate: Mon, 1 Jan 2026 10:00:00 +0000\n\n{body}\n\n")
    elif kind == "sheets":
        rows = [[[say(2), say(1), chance.random()] for _ in range(1000)] for _ in range(count)]
        head = ["name", "city", "sum"]
        write_xlsx(path, {f"Sheet {n}": [head, *sheet] for n, sheet in enumerate(rows)})
    elif kind == "pages":
        write_pdf(path, [[say(10) for _ in range(45)] for _ in range(count)])
    else:
        for number in range(count):
            note = path / str(number // 200) / f"{number}.md"
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(f"# {say(4)}\n\n{say(80)}\n\n## {say(3)}\n\n{say(60)}\n")
    return path


def measure(path: Path) -> dict:
    """Memorize it into a store that is thrown away."""
    from tokenizers import Tokenizer

    from m3mlx.cli.pace import Pace
    from m3mlx.config import cache_folder
    from m3mlx.memorize import run as memorizing
    from m3mlx.store import MemoryStore

    tokenizer = Tokenizer.from_file(str(cache_folder() / "models" / MODEL / "tokenizer.json"))
    memorizing.rates.note = lambda *_: None  # nothing to be remembered
    tokens, seen = 0, []
    chance = np.random.default_rng(0)

    def clock() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used) + TOKEN * tokens

    def tokenize(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def encode(texts: list[str]) -> np.ndarray:
        nonlocal tokens
        tokens += sum(len(tokenize(text)[0]) for text in texts)
        vectors = chance.standard_normal((len(texts), DIMENSIONS)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    pace = Pace(clock)

    def progress(what: str, done: int, total: int) -> None:
        if what.startswith("memorizing"):
            pace.note(done, total)
            seen.append((clock(), 100 * done / total, pace.left()))

    decoder = SimpleNamespace(name="none", tokenizer_hash="x", tokenize=tokenize)
    with tempfile.TemporaryDirectory() as folder:
        run = memorizing.MemorizeRun(encode, decoder, None, progress)
        run.find_files([path], [], [])
        about = {"fingerprint": {"weights": "w"}, "memory": {}, "encoder": "none"}
        size = {"dimensions": DIMENSIONS, "record_bytes": 1000}
        with MemoryStore.create(Path(folder) / "store", **about, **size) as store:
            run.compare(store)
            run.write(store)
    end = clock()
    shown = {}
    for mark in MARKS:
        now, _, left = next(each for each in seen if each[1] >= mark and each[2] is not None)
        shown[f"{mark} %"] = round(left / max(end - now, 1), 2)
    peak = [resource.getrusage(w).ru_maxrss // 1024 for w in (0, resource.RUSAGE_CHILDREN)]
    return {
        "files": len(run.files),
        "failed": len(run.report.failed),
        "references": run.report.references,
        "seconds": round(end - TOKEN * tokens),
        "of an encoder": round(TOKEN * tokens),
        "MB": peak[0],
        "MB of the worker": peak[1],
        "shown to taken": shown,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.folder)))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for kind in arguments.kinds or KINDS:
        path = make(kind, arguments.folder, round(KINDS[kind] * arguments.share))
        command = [sys.executable, __file__, str(path), "--measure"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found[kind] = json.loads(done.stdout)
        print(kind, found[kind], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
