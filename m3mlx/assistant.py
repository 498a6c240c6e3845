"""The one orchestrator: documents become memories, questions become answers.

The command line and Python users go through ``Assistant``; it owns the models and the store,
loads each when it is first needed, and holds no arithmetic of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import make_sampler

from . import models
from .config import (
    CODECS,
    MEMORIES,
    MODES,
    MemoryConfig,
    check_fingerprint,
    default_store,
    fingerprint,
)
from .embed import Encoder
from .errors import FingerprintError, M3Error, StoreError
from .generate import Conversation, Step, Timings
from .memorize import BATCH, Memorized, Memorizing, Progress
from .memory.cache import Layout, PrefixStates, read_prefix
from .memory.calibrate import calibrate
from .memory.codec import Codec, Memory
from .memory.write import Writer
from .store import Hit, MemoryStore, Residue, StoredDocument
from .template import Template


@dataclass
class Source:
    """A reference that an answer drew on; ``span`` counts spans of 64 answer tokens from 0."""

    path: str
    start: int
    end: int
    page: int | None
    line: int | None
    text: str
    distance: float
    span: int

    @classmethod
    def of(cls, hit: Hit, span: int) -> Source:
        return cls(hit.path, hit.start, hit.end, hit.page, hit.line, hit.text, hit.distance, span)


@dataclass
class Answer:
    """A whole answer with its sources."""

    text: str
    memory: str
    sources: list[Source]
    timings: Timings
    finish_reason: str


class Assistant:
    """A language model with the user's documents as explicit memory.

    Args:
        model: folder, hub id or built-in name of the decoder; None for the default.
        store: folder of the memories; None for the default one.
        encoder: folder or built-in name of the sentence encoder.
        adapter_path: LoRA adapter of mlx-lm.
        selection, budget, tokens_per_head, codec: how memories are written; None takes what
            the store was made with, or the default. ``tokens_per_head`` 0 means auto.
        memories: how many are read by each chunk of 64 tokens; None for as many as the model was
            trained with, or five.
        kv_bits: 8 or 4 to keep the context quantized.
        retrieval: "hybrid", "dense" or "text".
        progress: called with what is being done, how much is done and the total.
    """

    def __init__(
        self,
        model: str | None = None,
        store: str | Path | None = None,
        *,
        encoder: str | None = None,
        adapter_path: str | None = None,
        selection: str | None = None,
        budget: str | None = None,
        tokens_per_head: int | None = None,
        codec: str | None = None,
        memories: int | None = None,
        kv_bits: int | None = None,
        retrieval: str = "hybrid",
        progress: Progress | None = None,
    ):
        self.store_path = Path(store) if store else default_store()
        self.kv_bits, self.retrieval = kv_bits, retrieval
        self._memories = memories
        self.progress = progress or (lambda what, done, total: None)
        self._names = model, encoder, adapter_path
        self._options = selection, budget, tokens_per_head, codec
        self._store: MemoryStore | None = None
        self._hits: dict[int, Hit] = {}  # of the last search

    def __enter__(self) -> Assistant:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the store. The models go with the object."""
        if self._store is not None:
            self._store.close()
            self._store = None

    # --- models, each loaded at its first use

    @cached_property
    def decoder(self) -> models.Decoder:
        name, _, adapter = self._names
        return models.load_decoder(name, adapter_path=adapter, progress=self.progress)

    @cached_property
    def encoder(self) -> Encoder:
        return models.load_encoder(self._names[1], progress=self.progress)

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
        """How memories are written: the store's own way; the model's, or calibrated, if new."""
        selection, budget, tokens, codec = self._options
        if MemoryStore.exists(self.store_path):
            made = MemoryConfig.from_json(self.store().memory)
            asked = {"selection": selection, "budget": budget, "tokens_per_head": tokens or None}
            if codec:
                asked["key_bits"], asked["value_bits"] = CODECS[codec]
            for name, value in asked.items():
                if value is not None and getattr(made, name) != value:
                    raise FingerprintError(
                        f"{self.store_path}: its memories were made with {name} "
                        f"{getattr(made, name)}, not {value}; leave the option out, or name "
                        f"another folder with --store"
                    )
            return made
        key_bits, value_bits = CODECS[codec or "k8v8"]
        return calibrate(
            self.decoder,
            selection=selection,
            budget=budget,
            tokens_per_head=tokens or None,
            key_bits=key_bits,
            value_bits=value_bits,
            progress=self.progress,
        )

    @cached_property
    def codec(self) -> Codec:
        return Codec(self.config)

    @cached_property
    def prefix(self) -> PrefixStates:
        """Keys and values of the constant prefix that the memories were written behind."""
        return read_prefix(self.decoder.model, self.config.prefix)

    @cached_property
    def plain_prefix(self) -> PrefixStates:
        """The model's own prefix, for conversations that need neither store nor calibration."""
        return read_prefix(self.decoder.model, self.template.prefix)

    @cached_property
    def writer(self) -> Writer:
        return Writer(self.decoder.model, self.prefix, self.template.recite)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Every condition under which this assistant's memories are made."""
        return fingerprint(
            self.config,
            weights=self.decoder.weights,
            tokenizer=self.decoder.tokenizer_hash,
            rope=self.decoder.rope,
            adapter=self.decoder.adapter,
        )

    # --- the store

    def store(self) -> MemoryStore:
        """The store, open for reading.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        if self._store is None:
            if not MemoryStore.exists(self.store_path):
                raise StoreError(
                    f"{self.store_path}: nothing is memorized here yet; "
                    f"run m3mlx memorize PATH first, or name the store with --store"
                )
            self._store = MemoryStore.open(self.store_path)
        return self._store

    def _open_to_write(self) -> MemoryStore:
        """The store, open for writing and made by the same models; a new one if there is none."""
        if not MemoryStore.exists(self.store_path):
            return MemoryStore.create(
                self.store_path,
                fingerprint={**self.fingerprint, "model": self.decoder.name},
                memory=self.config.to_json(),
                encoder=self.encoder.identity,
                dimensions=self.encoder.dimensions,
                record_bytes=self.codec.record_bytes,
            )
        return MemoryStore.open(self.store_path, write=True)

    def check(self) -> None:
        """Refuse a store of another model, adapter, tokenizer, encoder or way of writing."""
        store = self.store()
        check_fingerprint(store.fingerprint, self.fingerprint, self.store_path)
        self._check_encoder()

    def _check_encoder(self) -> None:
        found, wanted = {"encoder": self.store().encoder}, {"encoder": self.encoder.identity}
        check_fingerprint(found, wanted, self.store_path)

    # --- documents

    def memorize(
        self,
        paths: Iterable[str | Path],
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        cold: bool = False,
        prune: bool = False,
        dry_run: bool = False,
    ) -> Memorized:
        """Bring files and folders into the store; what is there already is left alone.

        Every batch is committed, so that an interrupted run loses at most one and the next
        goes on behind it.

        Args:
            include, exclude: patterns as in .gitignore.
            cold: write text and vectors now and each memory at its first use (section 3.1 of
                the paper).
            prune: forget documents below ``paths`` whose files have vanished.
            dry_run: write nothing, and tell what would be written and how long it takes.

        Raises:
            FingerprintError: the store belongs to another model or other settings.
            StoreError: the store is damaged, or another process writes to it.
        """
        run = Memorizing(
            encode=self.encoder.encode,
            tokenize=self._tokenize,
            write=None if cold else self.write,
            record_bytes=0 if cold else self.codec.record_bytes,
            progress=self.progress,
        )
        run.look(paths, include, exclude)
        known = MemoryStore.exists(self.store_path)
        if known:
            self.check()
        if dry_run:
            run.compare(self.store() if known else None)
            run.estimate()
        elif known or run.files:
            with self._open_to_write() as store:
                run.compare(store)
                run.add(store)
                if prune:
                    run.prune(store)
        return run.done

    def write(self, references: Sequence[Sequence[int]]) -> np.ndarray:
        """The records of a batch of references given as token ids: uint8 (batch, bytes)."""
        return self.codec.pack(self.writer.write(references, self.config))

    def _tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.decoder.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def documents(self) -> list[StoredDocument]:
        """All documents of the store, by id."""
        return self.store().documents()

    def forget(
        self, names: Iterable[str], *, verify: bool = False
    ) -> tuple[list[StoredDocument], list[Residue] | None]:
        """Erase documents: text, full text, vectors, index and memories.

        Args:
            names: paths, folders or ids.
            verify: then search every byte of the store's files for samples of what was erased.

        Returns:
            The documents that are gone; what of them was found all the same, None unverified.

        Raises:
            StoreError: nothing of that name is stored; nothing was erased.
        """
        self.store()
        with MemoryStore.open(self.store_path, write=True) as store:
            ids = [document.id for document in store.find_documents(names)]
            samples = store.traces(ids) if verify else []
            gone = store.forget(ids)
            return gone, store.residue(samples) if verify else None

    def status(self) -> dict[str, Any]:
        """Documents, references, bytes by part and fingerprint of the store; loads no model."""
        return {
            "store": str(self.store_path),
            "memory": self.store().memory,
            **self.store().status(),
        }

    # --- answers

    def recall(self, query: str, k: int = MEMORIES) -> list[Hit]:
        """The references that fit a query best, without an answer."""
        self._check_encoder()
        return self.search([query], k)[0]

    def search(self, texts: Sequence[str], k: int) -> list[list[Hit]]:
        """The references that fit each of several texts best."""
        vectors = self.encoder.encode(list(texts), query=True)
        found = self.store().search(vectors, texts, k, self.retrieval)
        self._hits = {hit.slot: hit for hits in found for hit in hits}
        return found

    def read(self, slots: Sequence[int]) -> Memory:
        """The memories of references that the last search found; cold ones are written first."""
        self._warm([self._hits[slot] for slot in slots if not self._hits[slot].warm])
        return self.codec.unpack(self.store().read(slots), self.prefix[0][0].dtype)

    def _warm(self, cold: list[Hit]) -> None:
        """Write the memories of cold references, and keep them (section 3.1 of the paper)."""
        for start in range(0, len(cold), BATCH):
            part = cold[start : start + BATCH]
            packed = self.write([hit.tokens for hit in part])
            with MemoryStore.open(self.store_path, write=True) as store:
                slots = [hit.slot for hit in part]
                store.write({s: r.tobytes() for s, r in zip(slots, packed, strict=True)})

    def ask(self, question: str, *, memory: str = "explicit", **options: Any) -> Answer:
        """Answer one question.

        Args:
            memory: "explicit" reads memories, "text" pastes the same references into the
                prompt, "off" does neither.
            options: as of ``Chat.send``, and ``system`` as of ``chat``.
        """
        options.setdefault("query", "chunk")
        chat = self.chat(memory=memory, system=options.pop("system", None))
        return collect(chat.send(question, **options), memory)

    def chat(self, *, memory: str = "explicit", system: str | None = None) -> Chat:
        """Begin a conversation.

        Args:
            system: a system prompt of the user's own.
        """
        return Chat(self, memory, system)


class Chat:
    """A conversation that keeps its caches between turns.

    Attributes:
        memory: "explicit", "text" or "off"; may be changed between turns.
        messages: what was said, as role and content; an answer is added as it grows.
    """

    def __init__(self, assistant: Assistant, memory: str, system: str | None):
        if memory not in MODES:
            raise M3Error(f"memory is one of {', '.join(MODES)}, not {memory}")
        self.assistant, self.memory, self.system = assistant, memory, system
        self.messages: list[dict[str, str]] = []
        self._conversation: Conversation | None = None

    def send(
        self,
        message: str,
        *,
        query: str = "message",
        max_tokens: int = 256,
        temp: float = 0.0,
        top_p: float = 0.0,
        seed: int | None = None,
    ) -> Iterator[Step]:
        """Say something and stream the answer. Stop iterating to interrupt it.

        Args:
            query: what prompt chunks retrieve with: their own words ("chunk", the paper's way),
                or the whole message.
            max_tokens: length of the answer, at most.
            temp, top_p: of mlx-lm's sampler; greedy with temp 0.
            seed: makes a sampled answer repeatable.

        Raises:
            M3Error: the message is empty.
            StoreError: nothing is memorized yet, or the store is damaged; what was raised while
                the model was reading resets the conversation.
            FingerprintError: the memories were made by another model or other settings.
        """
        if not message.strip():
            raise M3Error("the question is empty")
        assistant = self.assistant
        sources: list[Hit] = []
        start = perf_counter()
        if self.memory != "off":
            assistant.check()
        text = message
        if self.memory == "text":
            sources = assistant.search([message], assistant.memories)[0]
            text = "\n\n".join([*(hit.text for hit in sources), message])
        searched = perf_counter() - start
        conversation = self._continue()
        turn = assistant.template.turn(text, system=self.system, first=not self.messages)
        self.messages.append({"role": "user", "content": message})
        answer = {"role": "assistant", "content": ""}
        self.messages.append(answer)
        if seed is not None:
            mx.random.seed(seed)  # behind all loading, which draws random numbers too
        steps = conversation.stream(
            turn, max_tokens=max_tokens, sampler=make_sampler(temp, top_p), query=query
        )
        try:
            for step in steps:
                if self.memory == "text":
                    step.sources = sources
                    if step.timings.retrieve_seconds == 0:
                        step.timings.retrieve_seconds = searched
                        step.timings.first_token_seconds += searched
                answer["content"] += step.text
                yield step
        except Exception:
            self.reset()  # nobody knows how much of the turn the caches hold
            raise

    def _continue(self) -> Conversation:
        """The conversation's caches, switched to the present kind of memory."""
        assistant, explicit = self.assistant, self.memory == "explicit"
        if self._conversation is None:
            known = MemoryStore.exists(assistant.store_path)
            prefix = assistant.prefix if known else assistant.plain_prefix
            self._conversation = Conversation(
                assistant.decoder,
                prefix,
                assistant.config if known else None,
                memories=assistant.memories,
                kv_bits=assistant.kv_bits,
            )
        if explicit and self._conversation.layout is None:  # the store was made meanwhile
            self._conversation.layout = Layout(assistant.config)
        self._conversation.search = assistant.search if explicit else None
        self._conversation.read = assistant.read if explicit else None
        return self._conversation

    def reset(self) -> None:
        """Forget what was said; the documents stay."""
        self.messages.clear()
        self._conversation = None


def collect(steps: Iterable[Step], memory: str) -> Answer:
    """Gather a stream of steps into an answer."""
    text, sources, span = "", [], -1
    for step in steps:
        text += step.text
        if step.span != span:
            span = step.span
            sources += [Source.of(hit, span) for hit in step.sources]
    return Answer(text, memory, sources, step.timings, step.finish_reason)
