"""Memorize files: find, compare, read, cut, write, a batch at a time."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from .. import documents
from ..config import Progress, no_progress
from ..errors import DocumentError
from ..models import rates
from ..store import MemoryStore, NewReference
from ..text import mostly_foreign, nfc
from .amount import Amount, File
from .editions import BATCH

if TYPE_CHECKING:
    from ..memory.format import MemoryFormat
    from ..models.decoder import Decoder
    from .editions import RebuildReport

_LOOKING = 3.0  # seconds in which a dry run reads files; it estimates the others from their size
_TIMED = 16, 2  # references that a dry run embeds and writes where no speed is known
_READINGS = 5  # of a file that changes while it is read


@dataclass
class MemorizeReport:
    """Result of a run, or the expected result of a dry run."""

    added: list[str] = field(default_factory=list)  # paths of files
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)  # below the paths given, with no file now
    failed: list[DocumentError] = field(default_factory=list)  # for each unreadable file
    left_out: list[documents.LeftOut] = field(default_factory=list)  # in folders: no documents
    notes: list[tuple[str, str]] = field(default_factory=list)  # path, what of it is not read
    pruned: bool = False  # the vanished ones were forgotten
    foreign: int = 0  # references of which most letters are not Latin
    references: int = 0  # stored: they are found, and their documents can be asked about
    tokens: int = 0  # of these references
    pace: float = 1.0  # seconds that storing took, divided by those expected of earlier runs
    memories: int = 0  # written
    bytes: int = 0  # size of their records
    seconds: float = 0.0
    stored_seconds: float = 0.0  # of them until all references were stored
    estimated: bool = False  # a dry run has not read all files

    @property
    def paths(self) -> list[str]:
        """All files that are stored, with or without all their memories."""
        return [*self.added, *self.changed, *self.unchanged]

    def add_memories(self, written: RebuildReport) -> None:
        """Count memories that were written after their references."""
        self.memories += written.references
        self.bytes += written.bytes
        self.seconds += written.seconds


def _read_whole(
    read: Callable[[str], documents.Document], path: str
) -> tuple[documents.Document, int]:
    """Read one state of a file, and again if it changes meanwhile; with its size in bytes."""
    for _ in range(_READINGS):
        before = _state(path)
        document = read(path)
        if before and before == _state(path):
            return document, before[0]
    raise DocumentError(path, "changes while it is read; memorize it when it is at rest")


def _state(path: str) -> tuple[int, ...]:
    """What changes with a file, its size first; () if there is none."""
    try:
        state = os.stat(path)
    except OSError:
        return ()
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_dev, state.st_ino


@dataclass
class MemorizeRun:
    """One run over files and folders.

    Args:
        encode: texts to unit vectors, float32 (n, dimensions).
        decoder: tokenizes text.
        format: writes each memory with its reference; None leaves all of them cold.
        between_batches: called after each commit.
        ocr: recognize the text in pictures.
    """

    encode: Callable[[Sequence[str]], np.ndarray]
    decoder: Decoder
    format: MemoryFormat | None
    progress: Progress = no_progress
    between_batches: Callable[[], None] = lambda: None
    ocr: bool = False

    def __post_init__(self) -> None:
        self.report = MemorizeReport()
        self._took: defaultdict[str, float] = defaultdict(float)  # seconds, by task
        self.files: list[File] = []
        self.missing: list[File] = []  # new or changed
        self._contents: Mapping[str, bytes] = {}
        self._tops: list[Path] = []
        self._start = perf_counter()

    def find_files(
        self, paths: Iterable[str | Path], include: Sequence[str], exclude: Sequence[str]
    ) -> None:
        """Find the files and hash them.

        Raises:
            M3Error: text in pictures is to be recognized, and there is no engine for that.
        """
        if self.ocr:
            documents.check_ocr()
        self._tops = [Path(path).expanduser().absolute() for path in paths]
        leave_out = self.report.left_out.append
        for found in documents.find(
            self._tops, include=include, exclude=exclude, leave_out=leave_out, ocr=self.ocr
        ):
            self.progress("looking at files", len(self.files), 0)
            try:
                if isinstance(found, DocumentError):
                    raise found
                size = found.stat().st_size
                self.files.append(File(str(found), documents.file_hash(found), size))
            except DocumentError as error:
                self.report.failed.append(error)
            except OSError as error:
                self.report.failed.append(DocumentError(found, error.strerror or str(error)))

    def add_contents(self, contents: Mapping[str, bytes]) -> None:
        """Add documents that are not files, by name."""
        self._contents = {nfc(name): content for name, content in contents.items()}
        for name, content in self._contents.items():
            self.files.append(File(name, hashlib.sha256(content).hexdigest(), len(content)))

    def compare(self, store: MemoryStore | None) -> None:
        """Report which files are new, changed, unchanged or gone, compared with a store."""
        stored, missing = set(), {file.path for file in self.files}
        if store is not None:
            stored = {document.path for document in store.documents() if document.complete}
            missing = store.missing((file.path, file.hash) for file in self.files)
        self.missing = [file for file in self.files if file.path in missing]
        for file in self.files:
            report = self.report.changed if file.path in stored else self.report.added
            (report if file.path in missing else self.report.unchanged).append(file.path)
        self.report.vanished = [
            path
            for path in sorted(stored)
            if any(Path(path).is_relative_to(top) for top in self._tops) and not Path(path).exists()
        ]

    def write(self, store: MemoryStore, edition: int | None = None) -> None:
        """Write new and changed files to an edition (None for the first), a commit for each batch.

        Progress counts references; of files that are not read yet it is judged how many they have.
        """
        amount, finished, pending = Amount(self.missing), 0, 0  # pending: of the present file
        tokenizer = self.decoder.tokenizer_hash
        batch: list[tuple[int, int, documents.Reference]] = []

        def tell(detail: str = "") -> None:
            what = f"memorizing: {detail}" if detail else "memorizing"
            # never the end, which takes the bar away
            self.progress(what, finished, max(finished + pending + amount.waiting(), finished + 1))

        def wait() -> None:
            tell()
            self.between_batches()

        tell()
        files = self._references(self.missing, wait, amount)
        for number, (file, references) in enumerate(files, 1):
            where = f"{os.path.basename(file.path)}, file {number} of {len(self.missing)}"
            document, have = store.begin(
                file.path, file.hash, len(references), size=file.size, tokenizer=tokenizer
            )
            for ordinal, reference in enumerate(references[have:], have):
                batch.append((document, ordinal, reference))
                if len(batch) == BATCH:
                    self._commit(store, edition, batch)
                    pending = len(references) - ordinal - 1
                    finished = self.report.references
                    tell(f"{where}, {self.report.references} references")
                    self.between_batches()
        if batch:
            self._commit(store, edition, batch)
        self.progress("memorizing", 1, 1)
        self.report.seconds = self.report.stored_seconds = perf_counter() - self._start
        tokens = self.report.tokens
        if expected := rates.seconds(self.decoder.name, "storing", tokens):
            self.report.pace = self._took["storing"] / expected
        for task, took in self._took.items():
            rates.note(self.decoder.name, task, tokens, took)

    def collect(self, store: MemoryStore, collection: str) -> None:
        """Put all files into a collection, unchanged ones too."""
        found = {file.path for file in self.files}
        store.collect((d.id for d in store.documents() if d.path in found), collection)

    def prune(self, store: MemoryStore) -> None:
        """Forget the documents whose files have vanished."""
        self.report.pruned = True
        if self.report.vanished:
            ids = {document.path: document.id for document in store.documents()}
            store.forget(ids[path] for path in self.report.vanished)

    def estimate(self, format: MemoryFormat | None) -> None:
        """Count references and bytes, and say how long a run takes; nothing is written.

        Where there are many files only some are read, and the others judged by their size. How
        long reading takes shows with them; the models' times are those of earlier runs, or of a
        few references where there was none.

        Args:
            format: of the memories; None where none are to be written.
        """
        amount, report = Amount(self.missing), self.report
        first: list[documents.Reference] = []  # to be timed
        marks = [(perf_counter(), 0)]  # seconds and references, before and behind the first file

        def sample() -> Iterator[File]:
            for file in sorted(self.missing, key=lambda file: file.hash):  # a fair order
                if first and perf_counter() - marks[0][0] > _LOOKING:
                    return
                yield file

        def wait() -> None:
            self.progress("reading", 0, 0)

        for _, references in self._references(sample(), wait, amount):
            report.references += len(references)
            report.tokens += sum(len(reference.tokens) for reference in references)
            first += references[: max(_TIMED) - len(first)]
            marks.append((perf_counter(), report.references))
        if not first:
            return
        (start, before), (end, read) = marks[len(marks) > 2], marks[-1]  # the first starts a worker
        waiting = amount.waiting()
        reading = end - marks[0][0] + waiting * (end - start) / max(read - before, 1)
        report.estimated = waiting > 0
        report.tokens = round(report.tokens * (1 + waiting / read))
        report.references += waiting
        parts = [first[:count] for count in _TIMED]
        storing = self._expected(
            "storing", parts[0], lambda part: self.encode([each.text for each in part])
        )
        report.seconds = report.stored_seconds = reading + storing
        if format is not None:
            report.memories = report.references
            report.bytes = report.references * format.record_bytes
            report.seconds += self._expected(
                "writing", parts[1], lambda part: format.write([each.tokens for each in part])
            )

    def _expected(
        self,
        task: str,
        part: Sequence[documents.Reference],
        work: Callable[[Sequence[documents.Reference]], object],
    ) -> float:
        """Return the seconds that a task will take; a part is timed where no speed is known."""
        if (known := rates.seconds(self.decoder.name, task, self.report.tokens)) is not None:
            return known
        self.progress("timing", 0, 0)
        work(part[:1])  # what is slow only once
        start = perf_counter()
        work(part)
        took = perf_counter() - start
        self.progress("timing", 1, 1)
        return took * self.report.tokens / sum(len(reference.tokens) for reference in part)

    def _references(
        self, files: Iterable[File], wait: Callable[[], None], amount: Amount
    ) -> Iterator[tuple[File, list[documents.Reference]]]:
        """Read and split files; an unreadable one is reported as failed.

        Args:
            wait: called again and again while a file is read.
            amount: told of each file.
        """
        with documents.Worker(wait, self.ocr) as worker:
            for file in files:
                listed = file
                try:
                    if (content := self._contents.get(file.path)) is not None:
                        document = worker.parse(file.path, content)
                    else:
                        document, size = _read_whole(worker.read, file.path)
                        file = File(file.path, document.hash, size)  # as it is by now
                    references = documents.split(document, self.decoder.tokenize)
                except DocumentError as error:
                    if error.reason == documents.NO_TEXT and documents.is_picture(file.path):
                        left = documents.LeftOut(file.path, "pictures without text")
                        self.report.left_out.append(left)
                    else:
                        self.report.failed.append(error)
                    for paths in (self.report.added, self.report.changed):
                        if file.path in paths:
                            paths.remove(file.path)
                    continue
                finally:
                    amount.take(listed)
                self.report.notes += ((file.path, note) for note in document.notes)
                amount.count(file, len(references))
                yield file, references

    def _records(
        self, references: Sequence[documents.Reference]
    ) -> tuple[np.ndarray, list[bytes | None]]:
        """Make the vectors and records of a batch."""
        vectors = self.encode([reference.text for reference in references])
        if self.format is None:
            return vectors, [None] * len(references)
        start = perf_counter()
        packed = self.format.write([reference.tokens for reference in references])
        self._took["writing"] += perf_counter() - start
        return vectors, [record.tobytes() for record in packed]

    def _commit(
        self,
        store: MemoryStore,
        edition: int | None,
        batch: list[tuple[int, int, documents.Reference]],
    ) -> None:
        start, written = perf_counter(), self._took["writing"]
        vectors, records = self._records([reference for _, _, reference in batch])
        new = [
            NewReference.of(reference, document, ordinal, vector, record)
            for (document, ordinal, reference), vector, record in zip(
                batch, vectors, records, strict=True
            )
        ]
        store.add(new, edition=edition)
        self.report.references += len(batch)
        self.report.tokens += sum(len(reference.tokens) for _, _, reference in batch)
        self.report.foreign += sum(mostly_foreign(reference.text) for _, _, reference in batch)
        if self.format:
            self.report.memories += len(batch)
            self.report.bytes += len(batch) * self.format.record_bytes
        self._took["storing"] += perf_counter() - start - (self._took["writing"] - written)
        batch.clear()
