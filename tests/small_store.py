"""Small stores with made-up documents, and a process that dies while it writes to one."""

import importlib
import multiprocessing
import os
import zlib

import numpy as np

from m3mlx.store import MemoryStore, NewReference
from m3mlx.store.words import Words

DIMENSIONS = 16
RECORD_BYTES = 1000
ABOUT = {
    "fingerprint": {"weights": "w", "codec": "k8v8"},
    "memory": {"selection": "reconstruction", "counts": [[1, 2]]},
    "encoder": "made up",
    "dimensions": DIMENSIONS,
    "record_bytes": RECORD_BYTES,
}
A = ["apples grow on trees", "pears grow there too", "plums are blue"]
B = ["boats float on water", "barges are slow boats"]
FILES = ("catalog.sqlite", "memories.kv", "memories.used", "vectors.usearch", "lock")
LARGE = {"exact": 2}  # so that already three references have an index


def new_store(path, **changes):
    return MemoryStore.create(path, **{**ABOUT, **changes})


def unit(seed, *shape):
    """Random float32 vectors of length one."""
    vectors = np.random.default_rng(seed).standard_normal((*shape, DIMENSIONS))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def memory(text):
    """The record of a text: nothing like any other."""
    return np.random.default_rng(zlib.crc32(text.encode())).bytes(RECORD_BYTES)


def vector(text):
    return unit(zlib.crc32(text.encode()))


def references(document, texts, *, first=0, cold=False):
    """References with these texts; everything else about them follows from the text."""
    return [
        NewReference(
            document=document,
            ordinal=ordinal,
            start=10 * ordinal,
            end=10 * ordinal + len(text),
            text=text,
            tokens=[zlib.crc32(f"{text} {place}".encode()) % 100_000 for place in range(20)],
            page=None if ordinal % 2 else ordinal + 1,
            line=ordinal + 1 if ordinal % 2 else None,
            vector=vector(text),
            record=None if cold else memory(text),
        )
        for ordinal, text in enumerate(texts, first)
    ]


def memorize(store, path, texts, *, hash=None, cold=False, tokenizer=None):
    """Store a document; return its id."""
    about = {"size": sum(map(len, texts)), "tokenizer": tokenizer}
    document, done = store.begin(path, hash or str(texts), len(texts), **about)
    store.add(references(document, texts[done:], first=done, cold=cold))
    return document


def everything(store):
    """What a reader can find, as {path: [(text, place, tokens, memory)]} in order."""
    complete = {document.path for document in store.documents() if document.complete}
    found = {path: [] for path in complete}
    count = store.status()["references"] or 1
    (hits,) = store.search(unit(0, 1), [""], count, "dense")
    for hit in sorted(hits, key=lambda hit: hit.start):
        record = bytes(store.read([hit.slot])[0]) if hit.warm else None
        place = (hit.start, hit.end, hit.page, hit.line)
        found[hit.path].append((hit.text, place, hit.tokens, record))
    return found


def expected(documents):
    """What ``everything`` must return for {path: texts}."""
    return {
        path: [
            (new.text, (new.start, new.end, new.page, new.line), tuple(new.tokens), new.record)
            for new in references(0, texts)
        ]
        for path, texts in documents.items()
    }


def search(store, text, k=5, mode="hybrid"):
    """Texts of the hits for one query, whose vector is that of a reference with its text."""
    (hits,) = store.search(vector(text)[None], [text], k, mode)
    return [hit.text for hit in hits]


def fill(catalog, path, texts, first):
    """Insert a whole document into a catalog, from a slot on; its id."""
    with catalog.transaction():
        document, _ = catalog.begin(path, str(texts), 1, len(texts), "t")
        catalog.insert(first, references(document, texts))
    return document


def matching(catalog, text, count=10):
    """Slots of references that share words with a text, the best first."""
    with catalog.snapshot():
        return list(Words(catalog).shares(text, count))


def in_bytes(path, *needles):
    """Which of the needles stand in which file of a store."""
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    return [(name, needle) for name, data in files.items() for needle in needles if needle in data]


def die_in(module, owner, function, moment, task, *arguments):
    """Run ``task(*arguments)`` in a process that is killed before or after a function of ours."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["m3mlx.store.check", "numpy", "pytest", "usearch.index"])
    process = context.Process(
        target=_doomed, args=(module, owner, function, moment, task, arguments)
    )
    process.start()
    process.join(120)
    assert process.exitcode == 9


def _doomed(module, owner, function, moment, task, arguments):
    place = importlib.import_module(module)
    place = getattr(place, owner) if owner else place
    original = getattr(place, function)

    def deadly(*args, **kwargs):
        if moment == "after":
            original(*args, **kwargs)
        os._exit(9)

    setattr(place, function, deadly)
    task(*arguments)
