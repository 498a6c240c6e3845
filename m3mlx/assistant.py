"""The one orchestrator: documents become memories, questions become answers.

The command line and Python users go through ``Assistant``; it owns the models and the store,
loads each when it is first needed, and holds no arithmetic of its own. What needs MLX is imported
where it is used, so that looking at a store takes no second.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .config import (
    CODECS,
    MEMORIES,
    MemoryConfig,
    Progress,
    default_store,
    fingerprint,
    no_progress,
)
from .errors import FingerprintError, StoreError
from .memorize import editions
from .memorize.run import BATCH, MemorizeReport, MemorizeRun
from .models.template import Template
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
    from .memory.codec import Codec, Memory
    from .memory.write import Writer
    from .models.decoder import Decoder
    from .models.encoder import Encoder


class Assistant:
    """A language model with the user's documents as explicit memory.

    Args:
        model: folder, hub id or built-in name of the decoder; None for the default.
        store: folder of the memories; None for the default one.
        encoder: folder or built-in name of the sentence encoder.
        adapter_path: LoRA adapter of mlx-lm; None for the one that comes along with the model, if
            any, "none" for the plain model.
        selection, budget, tokens_per_head, codec: how memories are written; None takes what
            the store was made with, or the default. ``tokens_per_head`` 0 means auto.
        memories: how many are read by each chunk of 64 tokens; None for as many as the model was
            trained with, or five.
        kv_bits: 8 or 4 to keep the context quantized.
        retrieval: "hybrid", "dense" or "text".
        only: which documents are searched; None for all.
        also: folders of other stores, which are searched and read too, and never changed.
        encrypt: whether a store that is made new is encrypted.
        passphrase: asked for the passphrase of an encrypted store; with ``encrypt``, None leaves
            one in the system's key store.
        progress: called with what is being done, how much is done and the total.
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
        only: Filter | None = None,
        also: Sequence[str | Path] = (),
        encrypt: bool = False,
        passphrase: Passphrase | None = None,
        progress: Progress | None = None,
    ):
        self.store_path = Path(store) if store else default_store()
        self.kv_bits, self.retrieval, self.only = kv_bits, retrieval, only
        self._memories = memories
        self.security = {"encrypt": encrypt, "passphrase": passphrase}
        self.progress = progress or no_progress
        self.model_name, self.encoder_name, self._adapter_path = model, encoder, adapter_path
        bits = dict(zip(("key_bits", "value_bits"), CODECS[codec], strict=True)) if codec else {}
        asked = {"selection": selection, "budget": budget, "tokens_per_head": tokens_per_head}
        self._asked = {name: value for name, value in asked.items() if value} | bits
        self.also = tuple(map(Path, also))
        self._store: MemoryStore | None = None
        self._attached: list[MemoryStore] = []
        self._stores: Stores | None = None  # the store and those attached

    def __enter__(self) -> Assistant:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the store. The models go with the object."""
        for store in (self._store, *self._attached):
            if store is not None:
                store.close()
        self._store, self._attached, self._stores = None, [], None

    # --- models, each loaded at its first use

    @cached_property
    def decoder(self) -> Decoder:
        from .models import decoder as models

        folder = models.adapter_folder(self.model_name, self._adapter_path)
        return models.load_decoder(self.model_name, adapter_path=folder, progress=self.progress)

    @cached_property
    def encoder(self) -> Encoder:
        from .models import decoder as models

        return models.load_encoder(self.encoder_name, progress=self.progress)

    @cached_property
    def template(self) -> Template:
        trained = self.decoder.trained
        return Template(self.decoder.tokenizer, trained and trained.prefix)

    @cached_property
    def memories(self) -> int:
        """How many memories a chunk reads: what was asked for, the model's own, or five."""
        trained = self.decoder.trained
        return self._memories or (trained.memories if trained else MEMORIES)

    @cached_property
    def config(self) -> MemoryConfig:
        """How memories are written: as in the store, or the model's own or by calibration if new.

        Raises:
            FingerprintError: the store has no memories of this model and these settings.
        """
        if self.has_store():
            return MemoryConfig.from_json(self._own().memory)
        return self._calibrated()

    def _calibrated(self) -> MemoryConfig:
        from .calibrate import calibrate

        return calibrate(self.decoder, progress=self.progress, **self._asked)

    @cached_property
    def codec(self) -> Codec:
        from .memory.codec import Codec

        return Codec(self.config)

    @cached_property
    def prefix(self) -> PrefixStates:
        """Keys and values of the constant prefix that the memories were written behind."""
        from .memory.cache import read_prefix

        return read_prefix(self.decoder.model, self.config.prefix)

    @cached_property
    def plain_prefix(self) -> PrefixStates:
        """The model's own prefix, for conversations that need neither store nor calibration."""
        from .memory.cache import read_prefix

        return read_prefix(self.decoder.model, self.template.prefix)

    @cached_property
    def writer(self) -> Writer:
        from .memory.write import Writer

        return Writer(self.decoder.model, self.prefix, self.template.recite)

    def _conditions(self, config: MemoryConfig) -> dict[str, str]:
        """Every condition under which this assistant makes memories of a configuration."""
        return fingerprint(
            replace(config, prefix=self.template.prefix),
            weights=self.decoder.weights,
            tokenizer=self.decoder.tokenizer_hash,
            rope=self.decoder.rope,
            adapter=self.decoder.adapter,
        )

    def _edition(self) -> dict[str, Any]:
        """What a store must know of the memories that this assistant makes."""
        return {
            "fingerprint": {**self._conditions(self.config), "model": self.decoder.name},
            "memory": self.config.to_json(),
            "record_bytes": self.codec.record_bytes,
        }

    # --- the store

    def has_store(self) -> bool:
        """Whether anything has been memorized yet."""
        return MemoryStore.exists(self.store_path)

    def store(self) -> MemoryStore:
        """The store, open for reading.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        if self._store is None:
            if not self.has_store():
                raise StoreError(
                    f"{self.store_path}: nothing is memorized here yet; "
                    f"run m3mlx memorize PATH first, or name the store with --store"
                )
            self._store = self.open_store()
        return self._store

    def open_store(self, **options: Any) -> MemoryStore:
        """Open the store, which is there; see ``MemoryStore.open``.

        Raises:
            StoreError: it should be encrypted and is not.
        """
        store = MemoryStore.open(self.store_path, passphrase=self.security["passphrase"], **options)
        if self.security["encrypt"] and not store.encrypted:
            store.close()
            raise StoreError(
                f"{self.store_path}: this store is not encrypted. `m3mlx export` it, and "
                f"`m3mlx import --encrypt` the file into a new one with --store."
            )
        return store

    def _all(self) -> Stores:
        """The store and those attached to it, as one."""
        if self._stores is None:
            own = self.store()
            for path in self.also:
                if path.resolve() == self.store_path.resolve():
                    raise StoreError(f"{path}: this is the store itself. Attach others to it.")
                passphrase = self.security["passphrase"]
                self._attached.append(MemoryStore.open(path, passphrase=passphrase))
            self._stores = Stores(own, self._attached)
        return self._stores

    def _open_to_write(self, wait: float = 10.0) -> MemoryStore:
        """The store, open for writing and made by the same models; a new one if there is none."""
        if not self.has_store():
            return MemoryStore.create(
                self.store_path,
                encoder=self.encoder.identity,
                dimensions=self.encoder.dimensions,
                **self._edition(),
                **self.security,
            )
        return self.open_store(write=True, wait=wait, edition=self._own().id)

    def _own(self) -> Edition:
        """The memories of the present model and settings, which the open store then uses.

        Raises:
            FingerprintError: there are none.
        """
        return editions.use(self.store(), self._asked, self._conditions)

    def check(self) -> None:
        """Refuse a store of another model, adapter, tokenizer, encoder or way of writing."""
        self._own()
        self.check_encoder()
        for store in self._attached:  # their memories are read beside those of the store
            editions.use(store, {}, lambda config: self._conditions(self.config))

    def check_encoder(self) -> None:
        """Refuse a store whose vectors another encoder has made."""
        self._all().check_encoder(self.encoder.identity)

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
    ) -> MemorizeReport:
        """Bring files and folders into the store; what is there already is left alone.

        Every batch is committed, so that an interrupted run loses at most one and the next
        goes on behind it.

        Args:
            contents: documents that are no files, by a name that tells their format.
            collection: that all of them are put into; None leaves each where it is.
            include, exclude: patterns as in .gitignore.
            cold: write text and vectors now and each memory at its first use (section 3.1 of
                the paper).
            prune: forget documents below ``paths`` whose files have vanished.
            dry_run: write nothing, and tell what would be written and how long it takes.

        Raises:
            FingerprintError: the store belongs to another model or other settings.
            StoreError: the store is damaged, or another process writes to it.
        """
        run = MemorizeRun(
            encode=self.encoder.encode,
            tokenize=self._tokenize,
            write=None if cold else self.write,
            record_bytes=0 if cold else self.codec.record_bytes,
            progress=self.progress,
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
            with self._open_to_write() as store:
                run.compare(store)
                run.add(store)
                if collection is not None:
                    run.collect(store, collection)
                if prune:
                    run.prune(store)
        return run.done

    def rebuild(self, *, cold: bool = False) -> editions.RebuildReport:
        """Make all memories of the present model and settings that the store lacks.

        They are made from the stored text, without the files, and stand beside those of other
        models and settings. Every batch is committed.

        Args:
            cold: only make room for them; each is written at its first use.

        Raises:
            StoreError: there is no store, it is damaged, or another process writes to it.
        """
        try:
            known = self._own().id
        except FingerprintError:
            known = None
            self.config = editions.fitted(  # what the store cannot tell
                self._calibrated(),
                self.store(),
                self.decoder.tokenizer_hash,
                self._token_ids,
                self.progress,
            )
        with self.open_store(write=True, edition=known) as store:
            if known is None:
                store.add_edition(**self._edition())
            if cold:
                return editions.RebuildReport()
            return editions.rebuild(store, self.config, self._token_ids, self.write, self.progress)

    def set_bound(self, max_bytes: int | None) -> int:
        """Keep the store within so many bytes, or none; returns how many memories were dropped."""
        self.store()
        with self.open_store(write=True) as store:
            return store.set_bound(max_bytes)

    def compact(self) -> int:
        """Give unused room back; returns how many memories were damaged, and are cold now."""
        self.store()
        with self.open_store(write=True) as store:
            return store.compact()

    def check_store(self) -> CheckReport:
        """Look for damage in everything that the store holds; loads no model.

        Raises:
            StoreError: there is no store, or another process writes to it.
        """
        passphrase = self.security["passphrase"]
        return MemoryStore.check(self.store_path, self.progress, passphrase=passphrase)

    def repair(self) -> RepairReport:
        """Mend the store. Damaged memories of the present model are made again from stored text.

        Those of another model stay cold until that is used.

        Raises:
            StoreError: there is no store, another process writes to it, or it is beyond repair.
        """
        self.close()
        passphrase = self.security["passphrase"]
        done = MemoryStore.repair(self.store_path, self.progress, passphrase=passphrase)
        if done.cold:
            with suppress(FingerprintError):
                own = self._own().id
                slots = [slot for edition, slot in done.cold if edition == own]
                self.close()
                with self.open_store(write=True, edition=own) as store:
                    editions.rewrite(store, slots, self.config, self._token_ids, self.write)
        return done

    def write(self, references: Sequence[Sequence[int]]) -> np.ndarray:
        """The records of a batch of references given as token ids: uint8 (batch, bytes)."""
        return self.codec.pack(self.writer.write(references, self.config))

    def _tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.decoder.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def _token_ids(self, text: str) -> list[int]:
        return self._tokenize(text)[0]

    def documents(self) -> list[StoredDocument]:
        """All documents of the store, by id."""
        return self.store().documents()

    def forget(self, names: Iterable[str], *, verify: bool = False) -> ForgetReport:
        """Erase documents: text, full text, vectors, index and memories.

        Args:
            names: paths, folders or ids.
            verify: then search every byte of the store's files for samples of what was erased.

        Raises:
            StoreError: nothing of that name is stored; nothing was erased.
        """
        self.store()
        with self.open_store(write=True) as store:
            ids = [document.id for document in store.find_documents(names)]
            return (
                store.forget_proved(ids) if verify else ForgetReport(store.forget(ids), None, None)
            )

    def status(self) -> dict[str, Any]:
        """What the store holds, by part and edition; loads no model."""
        store = self.store()
        return {"store": str(self.store_path), "memory": store.edition.memory, **store.status()}

    # --- answers

    def recall(self, query: str, k: int = MEMORIES) -> list[Hit]:
        """The references that fit a query best, without an answer."""
        self.check_encoder()
        return self.search([query], k)[0]

    def search(self, texts: Sequence[str], k: int) -> list[list[Hit]]:
        """The references that fit each of several texts best."""
        vectors = self.encoder.encode(list(texts), query=True)
        return self._all().search(vectors, texts, k, self.retrieval, self.only)

    def read(self, slots: Sequence[int]) -> Memory:
        """The memories of references that the last search found; cold ones are written first."""
        packed = self._all().read(slots, self._warm)
        return self.codec.unpack(packed, self.prefix[0][0].dtype)

    def _warm(self, cold: Sequence[Hit]) -> dict[int, np.ndarray]:
        """Write the memories of cold references, and keep them (section 3.1 of the paper).

        Those of attached stores are not kept.
        """
        rows: dict[int, np.ndarray] = {}
        for start in range(0, len(cold), BATCH):
            part = cold[start : start + BATCH]
            ids = [hit.tokens or self._token_ids(hit.text) for hit in part]
            packed = self.write([tokens[: self.config.reference_tokens] for tokens in ids])
            rows.update(zip((hit.slot for hit in part), packed, strict=True))
        if own := [hit.slot for hit in cold if hit.store is None]:
            # whoever writes just now need not be waited for: they are written again next time
            with suppress(BusyStore), self._open_to_write(wait=0) as store:
                store.write({slot: rows[slot].tobytes() for slot in own})
        return rows

    def ask(self, question: str, *, memory: str = "explicit", **options: Any) -> Answer:
        """Answer one question.

        Args:
            memory: "explicit" reads memories, "text" pastes the same references into the
                prompt, "off" does neither.
            options: as of ``Chat.send``, and ``system`` as of ``chat``.
        """
        from .chat.chat import collect

        options.setdefault("query", "chunk")
        chat = self.chat(memory=memory, system=options.pop("system", None))
        return collect(chat.send(question, **options), memory)

    def chat(self, *, memory: str = "explicit", system: str | None = None) -> Chat:
        """Begin a conversation; ``system`` is a system prompt of the user's own."""
        from .chat.chat import Chat

        return Chat(self, memory, system)
