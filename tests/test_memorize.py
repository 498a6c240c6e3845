"""Files that change while they are memorized: what is stored is under the hash of what was read."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from small_store import new_store, vector

from m3mlx.documents import worker
from m3mlx.memorize.run import MemorizeRun
from m3mlx.store import MemoryStore


@pytest.fixture
def file(tmp_path):
    (tmp_path / "notes").mkdir()
    file = tmp_path / "notes" / "a.md"
    file.write_text("The code is 7319.")
    new_store(tmp_path / "store").close()
    return file


def memorize(file, between=lambda: None):
    """Memorize the folder of a file; something may happen between looking and reading."""
    decoder = SimpleNamespace(
        tokenize=lambda text: ([1], [(0, len(text))]), tokenizer_hash="t", name="n"
    )
    run = MemorizeRun(
        encode=lambda texts: np.stack([vector(text) for text in texts]),
        decoder=decoder,
        format=None,
    )
    run.find_files([file.parent], (), ())
    between()
    with MemoryStore.open(file.parents[1] / "store", write=True) as store:
        run.compare(store)
        run.write(store)
        texts = [reference.text for reference in store.references(store.slots())]
    return run.report, texts


def test_a_file_that_changes_after_it_was_hashed_is_stored_as_what_it_is(file):
    report, texts = memorize(file, lambda: file.write_text("The code is 0000."))
    assert (texts, report.failed) == (["The code is 0000."], [])
    file.write_text("The code is 7319.")
    report, texts = memorize(file)
    assert (report.changed, texts) == ([str(file)], ["The code is 7319."])
    assert memorize(file)[0].unchanged == [str(file)]


def test_a_file_that_changes_back_before_it_is_read_stays_as_it_is(file):
    memorize(file)
    file.write_text("The code is 0000.")
    _, texts = memorize(file, lambda: file.write_text("The code is 7319."))
    assert texts == ["The code is 7319."]
    assert memorize(file)[0].unchanged == [str(file)]


def test_a_file_that_changes_while_it_is_read_is_read_again(file, monkeypatch):
    read, readings = worker.read, []

    def changing(path):
        document = read(path)
        readings.append(document.text)
        if len(readings) < changes:
            file.write_text(f"The code is {len(readings)}.")
            os.utime(file, ns=(0, len(readings)))
        return document

    monkeypatch.setattr(worker, "read", changing)
    changes = 3
    assert memorize(file)[1] == ["The code is 2."]
    assert len(readings) == 3
    changes, readings = 99, []
    file.write_text("The code is 5.")
    report, texts = memorize(file)
    assert texts == ["The code is 2."]
    assert "changes while it is read" in str(report.failed[0])
