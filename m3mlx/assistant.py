"""The facade of m3mlx: memorize documents, answer questions.

The command line and Python users call ``Assistant``. It owns the models and the store and loads
each at first use. Modules that need MLX are imported where they are used, so that commands that
only look at a store start quickly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import (
    FEW_REFERENCES,
    FLOORS,
    MEMORIES,
    Generation,
    MemoryConfig,
    Options,
    Progress,
    default_store,
    no_progress,
)
from .errors import FingerprintError, ModelError, StoreError
from .memorize import editions
from .store import (
    FACT,
    BusyStore,
    CheckReport,
    Edition,
    Filter,
    ForgetReport,
    Hit,
    MemoryStore,
    Passphrase,
    ReadOnlyStore,
    RepairReport,
    StoredDocument,
    StoredFact,
    Stores,
)

if TYPE_CHECKING:
    from .chat.chat import Answer, Chat
    from .facts.facts import Facts, Remembered
    from .memorize.run import MemorizeReport
    from .memory.bounds import Bounds
    from .memory.cache import PrefixStates
    from .memory.codec import Memory
    from .memory.format import MemoryFormat
    from .memory.ranks import Ranks
    from .models.decoder import Decoder
    from .models.encoder import Encoder


class Assistant:
    """A language model with the user's documents as explicit memory.

    Methods that use the store raise StoreError if it is missing or damaged (``repair``: beyond
    repair), or if they would write to it while another process does.

    Without ``model`` it uses the one that the store was made with, else the built-in
    ``DEFAULT_DECODER``: what ``m3mlx models use`` keeps, and what suits the machine, are choices
    of the command line only.

    Args:
        model, store, encoder, adapter_path, selection, budget, tokens_per_head, codec, memories,
            kv_bits, retrieval, also, encrypt: the fields of ``config.Options``.
        passphrase: returns the passphrase of an encrypted store. With ``encrypt``, None creates
            a key in the system's key store.
        progress: called with the name of the task, the amount done and the total.
        decoder: a loaded model, used instead of loading ``model``.
        config: memory configuration of a new store, used instead of calibrating.
        ranks: the processes that ``mlx.launch`` has started together, of which this is rank 0;
            they share the writing of memories.

    Attributes:
        options: all settings.
        store_path: folder of the store.
    """

    def __init__(
        self,
        model: str | None = None,
        store: str | Path | None = None,
        *,
        encoder: str | None = None,
        adapter_path: str | Path | None = None,
        selection: str | None = None,
        budget: str | None = None,
        tokens_per_head: int | None = None,
        codec: str | None = None,
        memories: int | None = None,
        kv_bits: int | None = None,
        retrieval: str = "hybrid",
        also: Sequence[str | Path] = (),
        encrypt: bool = False,
        passphrase: Passphrase | None = None,
        progress: Progress | None = None,
        decoder: Decoder | None = None,
        config: MemoryConfig | None = None,
        ranks: Ranks | None = None,
    ):
        """Create an assistant; the class says what the arguments are. Nothing is loaded yet."""
        self.store_path = Path(store) if store else default_store()
        self.options = Options(
            model=model,
            store=self.store_path,
            encoder=encoder,
            adapter_path=adapter_path,
            selection=selection,
            budget=budget,
            tokens_per_head=tokens_per_head,
            codec=codec,
            memories=memories,
            kv_bits=kv_bits,
            retrieval=retrieval,
            also=tuple(map(Path, also)),
            encrypt=encrypt,
        )
        self.passphrase, self._progress = passphrase, progress or no_progress
        self._config, self._ranks = config, ranks
        if decoder is not None:
            self.decoder = decoder
        self._opened: list[MemoryStore] = []  # open for reading: the store, then attached ones
        self._editions: dict[Path, int] = {}  # edition to read in each store, found by ``check``
        self._bounds: Bounds | None = None  # of memories of attached stores

    @classmethod
    def of(cls, options: Options, **others: Any) -> Assistant:
        """Create an assistant with these options; ``others`` are the class's other arguments."""
        return cls(**vars(options), **others)

    def reader(self) -> Assistant:
        """Return an assistant for another thread, to list and recall; it needs no decoder."""
        other = Assistant.of(self.options, passphrase=self.passphrase)
        other._editions = self._editions
        return other

    def __enter__(self) -> Assistant:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the store. It is opened again when needed; loaded models are kept."""
        for store in self._opened:
            store.close()
        self._opened.clear()
        self._editions.clear()
        self._bounds = None

    # --- models, each loaded at first use

    @property
    def model(self) -> tuple[str | None, str | Path | None]:
        """Name and adapter of the decoder: as asked for, or those that the store was made with.

        Both as in ``options``.
        """
        name, adapter = self.options.model, self.options.adapter_path
        if name is None and self.has_store():
            made = MemoryStore.fingerprints(self.store_path)
            name = made[0].get("model") if made else None
            if name and adapter is None and not made[0].get("adapter"):
                adapter = "none"
        return name, adapter

    @cached_property
    def decoder(self) -> Decoder:
        from .models.builtin import DEFAULT_DECODER

        name, adapter = self.model
        with self._told(f"loading: {name or DEFAULT_DECODER}"):
            from .models.decoder import adapter_folder, load_decoder  # slow to import
            from .models.inventory import is_here
            from .models.verdicts import refusals_kept

            if self.options.model is None and name is not None and not is_here(name):
                # not fetched unasked: a store of somebody else can name any model
                raise ModelError(
                    f"{self.store_path}: its memories were made by {name}, which is not on this "
                    f"machine. Fetch it with --model {name}, or name another with --model; "
                    f"`m3mlx memorize --rebuild` makes memories for that from the stored text."
                )
            folder = adapter_folder(name, adapter)
            with refusals_kept(name or DEFAULT_DECODER):
                return load_decoder(name, adapter_path=folder, progress=self._progress)

    @cached_property
    def encoder(self) -> Encoder:
        from .models.decoder import DEFAULT_ENCODER, load_encoder

        with self._told(f"loading: {self.options.encoder or DEFAULT_ENCODER}"):
            return load_encoder(self.options.encoder, progress=self._progress)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Report what the block does, whose length nobody knows."""
        self._progress(what, 0, 0)
        try:
            yield
        finally:
            self._progress(what, 1, 1)

    @cached_property
    def memories(self) -> int:
        """Number of memories read by a chunk: the option, the model's own, or five."""
        trained = self.decoder.trained
        return self.options.memories or (trained.memories if trained else MEMORIES)

    @property
    def floor(self) -> float:
        """Score from which on a reference fits a question; 0 where it is not known."""
        mode = self.options.retrieval
        if self.store().holds_few(FEW_REFERENCES):  # words say little among them
            mode = "" if mode == "text" else "dense"
        return FLOORS.get(self.encoder.name, {}).get(mode, 0.0)

    @cached_property
    def plain_prefix(self) -> PrefixStates:
        """Prefix of the model itself, for conversations that read no memories."""
        from .memory.cache import read_prefix

        return read_prefix(self.decoder.model, self.decoder.template.prefix)

    @cached_property
    def format(self) -> MemoryFormat:
        """Format of the present model's memories in the store; calibrated if there is no store."""
        if not self.has_store():
            return self._format_of(self._calibrated())
        self._verify()
        return self._format_of(MemoryConfig.from_json(self.edition().memory))

    def _format_of(self, config: MemoryConfig) -> MemoryFormat:
        from .memory.format import MemoryFormat

        if self._ranks is None:
            return MemoryFormat(self.decoder, config)
        from .memory.ranks import SharedFormat

        return SharedFormat(self.decoder, config, self._ranks, self.model)

    def _verify(self) -> None:
        from .models.verdicts import refusals_kept
        from .verify import verify

        with refusals_kept(self.decoder.name):
            verify(self.decoder, self._progress)

    def _calibrated(self) -> MemoryConfig:
        from .calibrate import calibrate

        self._verify()
        if self._config is not None:
            return self._config
        return calibrate(self.decoder, progress=self._progress, **self.options.writing)

    # --- the store

    def has_store(self) -> bool:
        """Return whether anything has been memorized yet."""
        return MemoryStore.exists(self.store_path)

    def store(self) -> MemoryStore:
        """Return the store, open for reading."""
        if not self._opened:
            self._opened.append(self.open_store())
        return self._opened[0]

    def open_store(self, *, write: bool = False, wait: float = 10.0) -> MemoryStore:
        """Open the store; the caller closes it. See ``MemoryStore.open``.

        Raises:
            StoreError: ``encrypt`` is set and the store is not encrypted.
        """
        if not self.has_store():
            raise StoreError(
                f"{self.store_path}: nothing is memorized here yet; "
                f"run m3mlx memorize PATH first, or name the store with --store"
            )
        store = MemoryStore.open(
            self.store_path, write=write, wait=wait, passphrase=self.passphrase, own=True
        )
        if self.options.encrypt and not store.encrypted:
            store.close()
            raise StoreError(
                f"{self.store_path}: this store is not encrypted. `m3mlx export` it, and "
                f"`m3mlx import --encrypt` the file into a new one with --store."
            )
        return store

    def create_store(self, **about: Any) -> MemoryStore:
        """Create the store and open it for writing; ``about`` as in ``MemoryStore.create``."""
        encrypt, passphrase = self.options.encrypt, self.passphrase
        return MemoryStore.create(self.store_path, encrypt=encrypt, passphrase=passphrase, **about)

    def _stores(self) -> Stores:
        """Return the store and the attached ones as one."""
        self.store()
        for path in self.options.also[len(self._opened) - 1 :]:
            if path.resolve() == self.store_path.resolve():
                raise StoreError(f"{path}: this is the store itself. Attach others to it.")
            store = MemoryStore.open(path, passphrase=self.passphrase, attached=True)
            self._opened.append(store)
        return Stores([(store, self._editions.get(store.path)) for store in self._opened])

    def edition(self) -> Edition:
        """Find the store's memories of the present model and settings.

        Raises:
            FingerprintError: it has none.
        """
        return editions.find(self.store(), self.decoder, self.options.writing)

    def check(self) -> None:
        """Raise FingerprintError if a store fits another model, encoder or memory settings."""
        self._editions[self.store_path] = self.edition().id
        self.check_encoder()
        for store in self._opened[1:]:  # read beside the store's own, so of the same format
            same = editions.find(store, self.decoder, config=self.format.config)
            self._editions[store.path] = same.id

    def check_encoder(self) -> None:
        """Raise FingerprintError if a store's vectors were made by another encoder."""
        self._stores().check_encoder(self.encoder.identity)

    # --- documents

    def memorize(
        self,
        paths: Iterable[str | Path] = (),
        *,
        contents: Mapping[str, bytes] | None = None,
        collection: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        ocr: bool = False,
        cold: bool = False,
        wait: bool = False,
        prune: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
        between_batches: Callable[[], None] = lambda: None,
    ) -> MemorizeReport:
        """Add new and changed files to the store, then write the memories that they lack.

        First all text and vectors are stored, after which everything can be asked: an answer
        writes the memories that it needs. Each batch is one commit, so an interrupted run loses at
        most one, and the next one goes on.

        Args:
            contents: documents that are not files, by a name whose ending gives the format.
            collection: put all of them into it; None leaves each where it is.
            include, exclude: patterns as in .gitignore.
            ocr: recognize the text in pictures, and in pages of PDFs that are pictures.
            cold: store text and vectors only; each memory is written at first use (section 3.1
                of the paper), or by ``write_memories``.
            wait: write each memory with its text, so that a document is found when all of its
                memories are written.
            prune: forget documents below ``paths`` whose files are gone.
            dry_run: write nothing; report what would be written, and how long it would take at the
                pace of earlier runs, or of a few references.
            progress: used instead of the assistant's.
            between_batches: called after each commit; an exception it raises ends the run.

        Raises:
            FingerprintError: the store belongs to another model or other settings.
        """
        from .memorize.run import MemorizeRun  # all readers of documents

        progress = progress or self._progress
        format = self.format if wait and not (cold or dry_run) else None
        run = MemorizeRun(self._embed, self.decoder, format, progress, between_batches, ocr)
        run.find_files(paths, include, exclude)
        run.add_contents(contents or {})
        known = self.has_store()
        if known:
            self.check()
        if dry_run:
            run.compare(self.store() if known else None)
            run.estimate(None if cold else self.format)
        elif known or run.files:
            with self.open_store(write=True) if known else self._new_store() as store:
                run.compare(store)
                run.write(store, self._editions.get(self.store_path))
                if collection is not None:
                    run.collect(store, collection)
                if prune:
                    run.prune(store)
            if not (cold or wait):
                written = self.write_memories(
                    run.report.paths, progress=progress, between_batches=between_batches
                )
                run.report.add_memories(written)
        return run.report

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return unit vectors of texts of documents, float32 (texts, dimensions)."""
        return self.encoder.encode(texts)

    def write_memories(
        self,
        paths: Iterable[str] | None = None,
        *,
        progress: Progress | None = None,
        between_batches: Callable[[], None] = lambda: None,
    ) -> editions.RebuildReport:
        """Write the memories that documents lack; see ``memories_in_steps``.

        Args:
            progress: used instead of the assistant's.
            between_batches: called after each commit; an exception it raises ends the run.
        """
        return _finish(self.memories_in_steps(paths, progress=progress), between_batches)

    def memories_in_steps(
        self,
        paths: Iterable[str] | None = None,
        *,
        batch: int = editions.BATCH,
        progress: Progress | None = None,
        wait: float = 10.0,
    ) -> Iterator[editions.RebuildReport]:
        """Write the memories that documents lack, a batch at each step; yield what was done so far.

        Those likely to be asked about come first (``editions.order``). Between two steps others
        can write to the store. Where its size is limited, nothing is dropped for them.

        Args:
            paths: of the documents; None for all.
            batch: references in a step, for each rank.
            wait: seconds to wait until another process has finished writing.

        Raises:
            BusyStore: another process is writing to the store.
        """
        slots, edition = self._unwritten(paths), self.edition().id
        batch *= self._ranks.size if self._ranks else 1
        progress = progress or self._progress
        open_store = partial(self.open_store, write=True, wait=wait)
        return editions.rebuild(open_store, edition, self.format, progress, slots, batch=batch)

    def count_unwritten(self, paths: Iterable[str] | None = None) -> int:
        """Return how many memories documents lack; ``paths`` as in ``memories_in_steps``."""
        return len(self._unwritten(paths))

    def _unwritten(self, paths: Iterable[str] | None) -> list[int]:
        wanted = None if paths is None else set(paths)
        return editions.order(self.store(), self.edition().id, wanted)

    def _new_store(self) -> MemoryStore:
        encoder, about = self.encoder, editions.description(self.format)
        return self.create_store(encoder=encoder.identity, dimensions=encoder.dimensions, **about)

    def rebuild(
        self, *, cold: bool = False, progress: Progress | None = None
    ) -> editions.RebuildReport:
        """Write the memories of the present model and settings that the store lacks.

        They are made from the stored text, without the files, and kept beside those of other
        models and settings. Each batch is one commit.

        Args:
            cold: only make room for them; each is written at first use.
            progress: used instead of the assistant's.
        """
        progress = progress or self._progress
        try:
            known = self.edition().id
        except FingerprintError:
            known = None
            config = self._calibrated()
            config = editions.widen(config, self.store(), self.decoder, progress)
            self.format = self._format_of(config)
        if known is None:
            with self.open_store(write=True) as store:
                known = store.add_edition(**editions.description(self.format)).id
        slots = [] if cold else editions.order(self.store(), known)
        open_store = partial(self.open_store, write=True)
        steps = editions.rebuild(open_store, known, self.format, progress, slots, drop=True)
        return _finish(steps)

    def set_bound(self, max_bytes: int | None) -> int:
        """Limit the store's size, None for no limit; return how many memories were dropped."""
        with self.open_store(write=True) as store:
            return store.set_bound(max_bytes)

    def compact(self) -> int:
        """Free unused space; return how many damaged memories were found and made cold."""
        with self.open_store(write=True) as store:
            return store.compact()

    def check_store(self, progress: Progress | None = None) -> CheckReport:
        """Check everything in the store for damage; loads no model."""
        progress = progress or self._progress
        return MemoryStore.check(self.store_path, progress, passphrase=self.passphrase)

    def repair(self, progress: Progress | None = None) -> RepairReport:
        """Repair the store, and rewrite damaged memories of the present model from stored text.

        Damaged memories of other models stay cold until those models are used.
        """
        self.close()
        progress = progress or self._progress
        report = MemoryStore.repair(self.store_path, progress, passphrase=self.passphrase)
        if report.cold:
            with suppress(FingerprintError):
                own = self.edition().id
                slots = [slot for edition, slot in report.cold if edition == own]
                self.close()
                open_store = partial(self.open_store, write=True)
                _finish(editions.rebuild(open_store, own, self.format, progress, slots))
        return report

    def documents(self) -> list[StoredDocument]:
        """Return all documents of the store, by id."""
        return self.store().documents(edition=self._editions.get(self.store_path))

    def forget(self, names: Iterable[str], *, verify: bool = False) -> ForgetReport:
        """Erase documents: text, full text, vectors, index and memories.

        Args:
            names: paths, folders or ids.
            verify: search every byte of the store's files for samples of what was erased.

        Raises:
            StoreError: nothing of that name is stored; nothing was erased.
        """
        with self.open_store(write=True) as store:
            ids = [document.id for document in store.find_documents(names)]
            if verify:
                return store.forget_proved(ids)
            return ForgetReport(store.forget(ids), None, None)

    # --- facts

    def remember(self, fact: str, *, by: str = "", keep_both: bool = False) -> Remembered:
        """Memorize a fact of a sentence or a few, at once.

        It takes the place of an earlier fact about the same thing, whose text stays in the
        history of the new one and is not read any more.

        Args:
            by: who said it, "" for the user.
            keep_both: take the place of none.

        Raises:
            M3Error: the text is empty, or longer than one reference.
            FingerprintError: the store belongs to another model or other settings.
        """
        with self._facts() as facts:
            return facts.remember(fact, by=by, keep_both=keep_both)

    def change_fact(self, id: int, text: str, *, by: str = "") -> Remembered:
        """Give a fact another text; the old one stays in its history, and is not read any more.

        Args:
            id: of its document.
            by: who said it; "" for who said it before.

        Raises:
            M3Error: there is no such fact, or as ``remember``.
        """
        with self._facts() as facts:
            return facts.change(id, text, by=by)

    def facts(self, about: str = "") -> list[StoredFact]:
        """Return the facts of the store, by id; needs no model.

        Args:
            about: only those that have this name as subject or object, or else all of its words.
        """
        from .facts.facts import about as those_about

        found = self.store().facts()
        return those_about(found, about) if about else found

    @contextmanager
    def _facts(self) -> Iterator[Facts]:
        """Open the store for facts, or make it."""
        from .facts.facts import Facts

        if self.has_store():
            self.check()
            opened = self.open_store(write=True)
        else:
            opened = self._new_store()
        with opened as store:
            edition = self._editions.get(self.store_path)
            yield Facts(store, self.decoder, self.encoder, self.format, edition)

    def status(self) -> dict[str, Any]:
        """Return what the store holds, by part and edition; loads no model."""
        state = self.store().status(edition=self._editions.get(self.store_path))
        used = next(known for known in state["editions"] if known["id"] == state["edition"])
        return {"store": str(self.store_path), "memory": used["memory"], **state}

    # --- answers

    def recall(self, query: str, k: int = MEMORIES, *, only: Filter | None = None) -> list[Hit]:
        """Return the references that fit a query best, without generating an answer."""
        return self.search([query], k, only=only)[0]

    def search(
        self, texts: Sequence[str], k: int, *, only: Filter | None = None
    ) -> list[list[Hit]]:
        """Return the references that fit each of several texts best.

        Args:
            only: documents to search; None for all.

        Raises:
            FingerprintError: a store's vectors were made by another encoder.
        """
        self.check_encoder()
        with self._told("searching"):
            vectors = self.encoder.encode(list(texts), query=True)
            found = self._stores().search(vectors, texts, k, self.options.retrieval, only)
            return self._newer_first(found)

    def _newer_first(self, found: list[list[Hit]]) -> list[list[Hit]]:
        """Give what contradicts an older fact, or is a newer one, more weight than that."""
        own = {hit.document: hit.path for hits in found for hit in hits if hit.store is None}
        if not any(path.startswith(FACT) for path in own.values()):
            return found
        from .facts.newer import newer_first

        added = self.store().added(own)
        return [newer_first(hits, added) for hits in found]

    def read(self, hits: Sequence[Hit]) -> Memory:
        """Read the memories of hits, in their order; cold ones are written first.

        So are those of attached stores that are not what the model makes: not finite, or far
        beyond its own.
        """
        if self.store_path not in self._editions:
            self.check()
        names = ", ".join(dict.fromkeys(Path(hit.path).name for hit in hits))
        with self._told(f"reading: {names}"):
            records = self._stores().read(hits, self._write_cold)
            memory = self.format.read(records)
            if foreign := [row for row, hit in enumerate(hits) if hit.store is not None]:
                held = self._within().hold(memory)
                strange = [row for row in foreign if not held[row]]
                made = self._write_cold([hits[row] for row in strange])
                for row in strange:
                    records[row] = made[hits[row]]
                memory = self.format.read(records) if strange else memory
            return memory

    def _within(self) -> Bounds:
        """Return the range that memories of attached stores must be in."""
        from .memory.bounds import Bounds

        if self._bounds is None:
            edition = self._editions[self.store_path]
            self._bounds = Bounds(self.format.codec, self.store(), edition)
        return self._bounds

    def _write_cold(self, cold: Sequence[Hit]) -> dict[Hit, np.ndarray]:
        """Write the memories of cold references (section 3.1 of the paper).

        They are kept, except those of attached stores.
        """
        if not cold:
            return {}
        names = ", ".join(dict.fromkeys(Path(hit.path).name for hit in cold))
        count = f"{len(cold)} {'memory' if len(cold) == 1 else 'memories'}"
        with self._told(f"writing {count}: {names}"):
            records = editions.records_of(cold, self.format)
        if own := [hit for hit in cold if hit.store is None]:
            # an answer does not wait for another writer: the records are written again next time
            with suppress(BusyStore, ReadOnlyStore), self.open_store(write=True, wait=0) as store:
                edition = self._editions.get(self.store_path)
                store.write({hit.slot: records[hit].tobytes() for hit in own}, edition=edition)
        return records

    def ask(
        self,
        question: str,
        *,
        memory: str = "explicit",
        system: str | None = None,
        only: Filter | None = None,
        generation: Generation | None = None,
        **changes: Any,
    ) -> Answer:
        """Answer one question.

        Args:
            memory, system, only: as in ``chat``.
            generation: how to answer; None for the defaults, with ``query`` "chunk".
            changes: fields of ``Generation`` to override.
        """
        from .chat.chat import collect

        how = generation or Generation(query="chunk")
        chat = self.chat(memory=memory, system=system, only=only)
        return collect(chat.send(question, how, **changes), memory)

    def chat(
        self, *, memory: str = "explicit", system: str | None = None, only: Filter | None = None
    ) -> Chat:
        """Begin a conversation.

        Args:
            memory: "explicit" reads memories, "text" pastes the same references into the
                prompt, "off" does neither.
            system: a system prompt of the user's own.
            only: documents to search; None for all.
        """
        from .chat.chat import Chat

        return Chat(self, memory, system, only)


def _finish(
    steps: Iterable[editions.RebuildReport], between_batches: Callable[[], None] = lambda: None
) -> editions.RebuildReport:
    """Take all steps, and return the last report."""
    report = editions.RebuildReport()
    for step in steps:
        report = step
        between_batches()
        sleep(editions.UNLOCKED)
    return report
