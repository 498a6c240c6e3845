"""The facade: documents become memories, questions become answers.

The command line and Python users go through ``Assistant``. It owns the models and the store,
loads each at its first use, and holds no arithmetic of its own. What needs MLX is imported where
it is used, so that looking at a store is quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import (
    MEMORIES,
    Generation,
    MemoryConfig,
    Options,
    Progress,
    default_store,
    no_progress,
)
from .errors import FingerprintError, StoreError
from .memorize import editions
from .memorize.run import BATCH, MemorizeReport, MemorizeRun
from .store import (
    BusyStore,
    CheckReport,
    Edition,
    Filter,
    ForgetReport,
    Hit,
    MemoryStore,
    Passphrase,
    RepairReport,
    StoredDocument,
    Stores,
)

if TYPE_CHECKING:
    from .chat.chat import Answer, Chat
    from .memory.cache import PrefixStates
    from .memory.codec import Memory
    from .memory.format import MemoryFormat
    from .models.decoder import Decoder
    from .models.encoder import Encoder


class Assistant:
    """A language model with the user's documents as explicit memory.

    Args:
        model, store, encoder, adapter_path, selection, budget, tokens_per_head, codec, memories,
            kv_bits, retrieval, also, encrypt: see ``config.Options``.
        passphrase: asked for the passphrase of an encrypted store; with ``encrypt``, None leaves
            one in the system's key store.
        progress: called with what is being done, how much is done and the total.
        decoder: a loaded model, instead of loading one by its name.
        config: how the memories of a new store are written, instead of calibrating.

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
    ):
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
        self.passphrase = passphrase
        self._progress, self._decoder, self._config = progress, decoder, config
        self._opened: list[MemoryStore] = []  # for reading: the store, then those attached
        self._editions: dict[Path, int] = {}  # of each store, as ``check`` has found them

    @classmethod
    def of(cls, options: Options, **others: Any) -> Assistant:
        """The assistant with these options; ``others`` are the last arguments of the class."""
        return cls(**vars(options), **others)

    def __enter__(self) -> Assistant:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the store. The models go with the object."""
        for store in self._opened:
            store.close()
        self._opened.clear()
        self._editions.clear()

    # --- models, each loaded at its first use

    @cached_property
    def decoder(self) -> Decoder:
        from .models.decoder import adapter_folder, load_decoder

        if self._decoder is not None:
            return self._decoder
        name = self.options.model
        adapter = adapter_folder(name, self.options.adapter_path)
        return load_decoder(name, adapter_path=adapter, progress=self._progress)

    @cached_property
    def encoder(self) -> Encoder:
        from .models.decoder import load_encoder

        return load_encoder(self.options.encoder, progress=self._progress)

    @cached_property
    def memories(self) -> int:
        """How many memories a chunk reads: what was asked for, the model's own, or five."""
        trained = self.decoder.trained
        return self.options.memories or (trained.memories if trained else MEMORIES)

    @cached_property
    def plain_prefix(self) -> PrefixStates:
        """The model's own prefix, for conversations that read no memories."""
        from .memory.cache import read_prefix

        return read_prefix(self.decoder.model, self.decoder.template.prefix)

    @cached_property
    def format(self) -> MemoryFormat:
        """How memories are written: as in the store, or by calibration if there is none.

        Raises:
            FingerprintError: the store has no memories of this model and these settings.
        """
        from .memory.format import MemoryFormat

        if self.has_store():
            return MemoryFormat(self.decoder, MemoryConfig.from_json(self.edition().memory))
        return MemoryFormat(self.decoder, self._calibrated())

    def _calibrated(self) -> MemoryConfig:
        from .calibrate import calibrate

        if self._config is not None:
            return self._config
        return calibrate(self.decoder, progress=self._progress, **self.options.writing)

    # --- the store

    def has_store(self) -> bool:
        """Whether anything has been memorized yet."""
        return MemoryStore.exists(self.store_path)

    def store(self) -> MemoryStore:
        """The store, open for reading.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        if not self._opened:
            if not self.has_store():
                raise StoreError(
                    f"{self.store_path}: nothing is memorized here yet; "
                    f"run m3mlx memorize PATH first, or name the store with --store"
                )
            self._opened.append(self.open_store())
        return self._opened[0]

    def open_store(self, *, write: bool = False, wait: float = 10.0) -> MemoryStore:
        """Open the store, which is there; see ``MemoryStore.open``.

        Raises:
            StoreError: it should be encrypted and is not.
        """
        store = MemoryStore.open(
            self.store_path, write=write, wait=wait, passphrase=self.passphrase
        )
        if self.options.encrypt and not store.encrypted:
            store.close()
            raise StoreError(
                f"{self.store_path}: this store is not encrypted. `m3mlx export` it, and "
                f"`m3mlx import --encrypt` the file into a new one with --store."
            )
        return store

    def create_store(self, **about: Any) -> MemoryStore:
        """Make the store and open it for writing; ``about`` as of ``MemoryStore.create``."""
        encrypt, passphrase = self.options.encrypt, self.passphrase
        return MemoryStore.create(self.store_path, encrypt=encrypt, passphrase=passphrase, **about)

    def _writer(self) -> MemoryStore:
        """The store, open for writing; there is one, and ``check`` may come before."""
        self.store()  # says what to do if there is none
        return self.open_store(write=True)

    def _stores(self) -> Stores:
        """The store and those attached, as one."""
        own = self.store()
        for path in self.options.also[len(self._opened) - 1 :]:
            if path.resolve() == self.store_path.resolve():
                raise StoreError(f"{path}: this is the store itself. Attach others to it.")
            self._opened.append(MemoryStore.open(path, passphrase=self.passphrase))
        assert self._opened[0] is own
        return Stores([(store, self._editions.get(store.path)) for store in self._opened])

    def edition(self) -> Edition:
        """The memories of the present model and settings.

        Raises:
            FingerprintError: the store has none.
        """
        return editions.find(self.store(), self.options.writing, self._conditions)

    def _conditions(self, config: MemoryConfig) -> dict[str, str]:
        from .memory.format import conditions

        return conditions(self.decoder, config)

    def check(self) -> None:
        """Refuse a store of another model, adapter, tokenizer, encoder or way of writing."""
        self._editions[self.store_path] = self.edition().id
        self.check_encoder()
        for store in self._opened[1:]:  # their memories are read beside those of the store
            found = editions.find(store, {}, lambda config: self._conditions(self.format.config))
            self._editions[store.path] = found.id

    def check_encoder(self) -> None:
        """Refuse a store whose vectors another encoder has made."""
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
        cold: bool = False,
        prune: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
        between_batches: Callable[[], None] | None = None,
    ) -> MemorizeReport:
        """Bring files and folders into the store; what is there already is left alone.

        Every batch is committed, so that an interrupted run loses at most one and the next
        goes on behind it.

        Args:
            contents: documents that are no files, by a name that tells their format.
            collection: put all of them into it; None leaves each where it is.
            include, exclude: patterns as in .gitignore.
            cold: write text and vectors now and each memory at its first use (section 3.1 of
                the paper).
            prune: forget documents below ``paths`` whose files have vanished.
            dry_run: write nothing, and tell what would be written and how long it takes.
            progress: in place of the assistant's.
            between_batches: called after each commit; what it raises ends the run.

        Raises:
            FingerprintError: the store belongs to another model or other settings.
            StoreError: the store is damaged, or another process writes to it.
        """
        run = MemorizeRun(
            encode=self.encoder.encode,
            decoder=self.decoder,
            format=None if cold else self.format,
            progress=progress or self._progress,
            between_batches=between_batches,
        )
        run.look(paths, include, exclude)
        run.take(contents or {})
        known = self.has_store()
        if known:
            self.check()
        if dry_run:
            run.compare(self.store() if known else None)
            run.estimate()
        elif known or run.files:
            with self._writer() if known else self._new_store() as store:
                run.compare(store)
                run.add(store, self._editions.get(self.store_path))
                if collection is not None:
                    run.collect(store, collection)
                if prune:
                    run.prune(store)
        return run.report

    def _new_store(self) -> MemoryStore:
        return self.create_store(
            encoder=self.encoder.identity,
            dimensions=self.encoder.dimensions,
            **editions.description(self.format),
        )

    def rebuild(
        self, *, cold: bool = False, progress: Progress | None = None
    ) -> editions.RebuildReport:
        """Make all memories of the present model and settings that the store lacks.

        They are made from the stored text, without the files, and stand beside those of other
        models and settings. Every batch is committed.

        Args:
            cold: only make room for them; each is written at its first use.
            progress: in place of the assistant's.

        Raises:
            StoreError: there is no store, it is damaged, or another process writes to it.
        """
        from .memory.format import MemoryFormat

        progress = progress or self._progress
        try:
            known = self.edition().id
        except FingerprintError:
            known = None
            config = editions.fitted(self._calibrated(), self.store(), self.decoder, progress)
            self.format = MemoryFormat(self.decoder, config)
        with self._writer() as store:
            if known is None:
                known = store.add_edition(**editions.description(self.format)).id
            if cold:
                return editions.RebuildReport()
            return editions.rebuild(store, known, self.format, progress)

    def set_bound(self, max_bytes: int | None) -> int:
        """Keep the store within so many bytes, or none; return how many memories were dropped."""
        with self._writer() as store:
            return store.set_bound(max_bytes)

    def compact(self) -> int:
        """Give unused room back; return how many memories were damaged, and are cold now."""
        with self._writer() as store:
            return store.compact()

    def check_store(self, progress: Progress | None = None) -> CheckReport:
        """Look for damage in everything that the store holds; loads no model.

        Raises:
            StoreError: there is no store, or another process writes to it.
        """
        progress = progress or self._progress or no_progress
        return MemoryStore.check(self.store_path, progress, passphrase=self.passphrase)

    def repair(self, progress: Progress | None = None) -> RepairReport:
        """Mend the store. Damaged memories of the present model are made again from stored text.

        Those of another model stay cold until that is used.

        Raises:
            StoreError: there is no store, another process writes to it, or it is beyond repair.
        """
        self.close()
        progress = progress or self._progress or no_progress
        done = MemoryStore.repair(self.store_path, progress, passphrase=self.passphrase)
        if done.cold:
            with suppress(FingerprintError):
                own = self.edition().id
                slots = [slot for edition, slot in done.cold if edition == own]
                self.close()
                with self._writer() as store:
                    editions.rewrite(store, own, self.format, slots)
        return done

    def documents(self) -> list[StoredDocument]:
        """All documents of the store, by id."""
        return self.store().documents(edition=self._editions.get(self.store_path))

    def forget(self, names: Iterable[str], *, verify: bool = False) -> ForgetReport:
        """Erase documents: text, full text, vectors, index and memories.

        Args:
            names: paths, folders or ids.
            verify: then search every byte of the store's files for samples of what was erased.

        Raises:
            StoreError: nothing of that name is stored; nothing was erased.
        """
        with self._writer() as store:
            ids = [document.id for document in store.find_documents(names)]
            if verify:
                return store.forget_proved(ids)
            return ForgetReport(store.forget(ids), None, None)

    def status(self) -> dict[str, Any]:
        """What the store holds, by part and edition; loads no model."""
        state = self.store().status(edition=self._editions.get(self.store_path))
        used = next(known for known in state["editions"] if known["id"] == state["edition"])
        return {"store": str(self.store_path), "memory": used["memory"], **state}

    # --- answers

    def recall(self, query: str, k: int = MEMORIES, *, only: Filter | None = None) -> list[Hit]:
        """The references that fit a query best, without an answer.

        Args:
            only: documents that are searched; None for all.
        """
        return self.search([query], k, only=only)[0]

    def search(
        self, texts: Sequence[str], k: int, *, only: Filter | None = None
    ) -> list[list[Hit]]:
        """The references that fit each of several texts best.

        Raises:
            FingerprintError: another encoder has made the vectors of a store.
        """
        self.check_encoder()
        vectors = self.encoder.encode(list(texts), query=True)
        return self._stores().search(vectors, texts, k, self.options.retrieval, only)

    def read(self, hits: Sequence[Hit]) -> Memory:
        """The memories of hits; cold ones are written first."""
        if self.store_path not in self._editions:
            self.check()
        return self.format.read(self._stores().read(hits, self._warm))

    def _warm(self, cold: Sequence[Hit]) -> dict[Hit, np.ndarray]:
        """Write the memories of cold references, and keep them (section 3.1 of the paper).

        Those of attached stores are not kept.
        """
        records: dict[Hit, np.ndarray] = {}
        for start in range(0, len(cold), BATCH):
            part = cold[start : start + BATCH]
            ids = [hit.tokens or self.decoder.tokenize(hit.text)[0] for hit in part]
            records.update(zip(part, self.format.write(ids), strict=True))
        if own := [hit for hit in cold if hit.store is None]:
            # another writer is not waited for: they are written again next time
            with suppress(BusyStore), self.open_store(write=True, wait=0) as store:
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
            memory: "explicit" reads memories, "text" pastes the same references into the
                prompt, "off" does neither.
            system, only: as of ``chat``.
            generation: how to answer; None for the defaults, with ``query`` "chunk".
            changes: fields of ``Generation`` that differ from it.
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
            system: a system prompt of the user's own.
            only: documents that are searched; None for all.
        """
        from .chat.chat import Chat

        return Chat(self, memory, system, only)
