"""The time left that is told while documents are memorized is right within a factor of 1.5."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from samples import write_pdf, write_xlsx
from small_store import DIMENSIONS, new_store

from m3mlx.cli.pace import Pace
from m3mlx.memorize import run as memorizing

TOKEN = 0.01  # seconds of encoder and decoder
SLOW = 2e-5  # seconds for a byte that a worker reads
WORDS = [f"{a}{b}" for a in ("bal", "fir", "mon", "tus", "ker") for b in ("an", "es", "ilo", "ut")]


class Clock:
    """A clock that only work moves."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def say(chance, words):
    return " ".join(chance.choices(WORDS, k=words))


def mailbox(folder, chance):
    head = "From a@b Mon Jan 01 10:00:00 2026\nFrom: {0}@x.y\nSubject: {0}\n\n{1}\n\n"
    mails = [head.format(chance.choice(WORDS), say(chance, 150)) for _ in range(100)]
    (folder / "mails.mbox").write_text("".join(mails))


def workbook(folder, chance):
    sheets = {
        f"Sheet {n}": [[say(chance, 2), chance.random()] for _ in range(60)] for n in range(50)
    }
    write_xlsx(folder / "book.xlsx", sheets)


def pdf(folder, chance):
    write_pdf(folder / "long.pdf", [[say(chance, 10) for _ in range(30)] for _ in range(40)])


def notes(folder, chance):
    for number in range(200):
        (folder / f"{number}.md").write_text(f"# {say(chance, 3)}\n\n{say(chance, 140)}\n")


@pytest.mark.parametrize("make", [mailbox, workbook, pdf, notes])
def test_the_time_left_is_right_within_a_factor(tmp_path, monkeypatch, make):
    (tmp_path / "files").mkdir()
    make(tmp_path / "files", random.Random(1))
    clock, seen = Clock(), []
    pace = Pace(clock)

    def tokenize(text):
        ends = [at for at, sign in enumerate(text) if sign == " "] + [len(text)]
        starts = [0, *(end + 1 for end in ends[:-1])]
        return [1] * len(ends), list(zip(starts, ends, strict=True))

    def encode(texts):
        clock.now += TOKEN * sum(len(text.split()) for text in texts)
        return np.tile(np.eye(1, DIMENSIONS, dtype=np.float32), (len(texts), 1))

    def progress(what, done, total):
        if what.startswith("memorizing"):
            pace.note(done, total)
            seen.append((clock(), 100 * done / total, pace.left()))

    class Worker(memorizing.documents.Worker):
        def read(self, path):
            document = super().read(path)
            clock.now += SLOW * len(document.text)
            return document

    monkeypatch.setattr(memorizing.documents, "Worker", Worker)
    monkeypatch.setattr(memorizing.rates, "note", lambda *_: None)
    decoder = SimpleNamespace(tokenize=tokenize, tokenizer_hash="t", name="n")
    run = memorizing.MemorizeRun(encode, decoder, None, progress)
    run.find_files([tmp_path / "files"], (), ())
    with new_store(tmp_path / "store") as store:
        run.compare(store)
        run.write(store)
    assert not run.report.failed and run.report.references > 50
    for mark in (25, 50):
        now, _, left = next(each for each in seen if each[1] >= mark)
        assert left is not None and left / 1.5 < clock() - now < left * 1.5, (mark, left)
