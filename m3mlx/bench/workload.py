"""Documents in a store of their own, and conversations over them whose parts are timed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..assistant import Assistant
from ..chat.conversation import Conversation
from ..config import CHUNK_TOKENS, MEMORIES, Progress
from ..memory.codec import Memory
from ..models.template import Turn
from ..store import Hit
from .rounds import Watch

DOCUMENTS = 12  # enough to search among; memorizing more takes time that no figure needs


class Workload:
    """Sample documents of the calibration, memorized in a temporary store.

    Args:
        options: of ``Assistant``, without ``store``.
    """

    def __init__(self, *, progress: Progress, **options: Any):
        self._folder = tempfile.TemporaryDirectory(prefix="m3mlx-bench-")
        self.options = options
        folder = Path(self._folder.name)
        self.assistant = Assistant(store=folder / "store", progress=progress, **options)
        text = resources.files("m3mlx").joinpath("data/calibration.jsonl").read_text("utf-8")
        lines = text.splitlines()[:DOCUMENTS]
        self._texts = [json.loads(line)["document"] for line in lines]
        self._documents = folder / "documents"
        self._documents.mkdir()
        for number, text in enumerate(self._texts):
            (self._documents / f"{number}.txt").write_text(text, "utf-8")

    def __enter__(self) -> Workload:
        """Memorize the documents; ``memorizing`` is what that took."""
        assistant = self.assistant
        try:
            # what is loaded and calibrated once belongs to no figure
            assistant.encoder.encode(["warm"])
            assistant.format.write([assistant.decoder.template.encode("warm")])
            self.memorizing = Watch()
            self.memorized = assistant.memorize([self._documents])
            self.memorizing.lap("end to end")
            words = assistant.decoder.template.encode(self.text)
        except BaseException:
            self.__exit__()
            raise
        self._words = words * 8
        end = assistant.decoder.tokenizer.eos_token_ids
        vocabulary = assistant.decoder.model(mx.array([[0]])).shape[-1]
        self._never = mx.array([-np.inf if token in end else 0.0 for token in range(vocabulary)])
        return self

    @property
    def text(self) -> str:
        """All documents."""
        return "\n\n".join(self._texts)

    def __exit__(self, *exception: object) -> None:
        self.assistant.close()
        self._folder.cleanup()

    def sampler(self, logprobs: mx.array) -> mx.array:
        """Greedy, and never the end: every answer is as long as wanted."""
        return mx.argmax(logprobs + self._never, axis=-1)

    def prompt(self, tokens: int, shift: int = 0) -> Turn:
        """A turn of so many tokens, all of them the user's words."""
        return Turn(tuple(self._words[shift : shift + tokens]), (0, tokens))

    def text_of(self, tokens: Sequence[int]) -> str:
        return self.assistant.decoder.tokenizer.decode(list(tokens))

    def search(self, watch: Watch, texts: Sequence[str], k: int = MEMORIES) -> list[list[Hit]]:
        with watch.part("embed"):
            vectors = self.assistant.encoder.encode(list(texts), query=True)
        with watch.part("search"):
            return self.assistant.store().search(vectors, texts, k)

    def read(self, watch: Watch, slots: Sequence[int]) -> Memory:
        assistant = self.assistant
        with watch.part("read"):
            packed = assistant.store().read(slots)
        with watch.part("unpack"):
            memory = assistant.format.read(packed)
            mx.eval(memory.keys, memory.values)
        return memory

    def write_and_read(self, watch: Watch, slots: Sequence[int]) -> Memory:
        """As if none had been written before: what a cold start does at the first use."""
        assistant = self.assistant
        with watch.part("write"):
            found = assistant.store().references(slots)
            tokens = [assistant.decoder.template.encode(reference.text) for reference in found]
            packed = assistant.format.write(tokens)
        with watch.part("unpack"):
            memory = assistant.format.read(packed)
            mx.eval(memory.keys, memory.values)
        order = [reference.slot for reference in found]
        return memory.take([order.index(slot) for slot in slots])

    def conversation(self, watch: Watch, memory: str) -> Conversation:
        """One that reads memories ("warm", "cold") or none ("off")."""
        assistant = self.assistant
        read = {"warm": self.read, "cold": self.write_and_read}.get(memory)
        return Conversation(
            assistant.decoder,
            assistant.format.prefix,
            assistant.format.layout,
            search=read and (lambda texts, k: self.search(watch, texts, k)),
            read=read and (lambda hits: read(watch, [hit.slot for hit in hits])),
            memory_temperature=assistant.decoder.memory_temperature,
        )

    def pasted(self, watch: Watch, words: Sequence[int]) -> list[int]:
        """Tokens of the references that fit some words, as a prompt would have them."""
        (hits,) = self.search(watch, [self.text_of(words)])
        encode = self.assistant.decoder.template.encode
        return [token for hit in hits for token in encode(hit.text + "\n\n")]


def ask(workload: Workload, mode: str, prompt: int, marks: Sequence[int]) -> Watch:
    """One question, and an answer as long as the last mark.

    Args:
        mode: "off", "text", "text refreshed", "explicit warm" or "explicit cold".
        prompt: tokens of the question.
        marks: numbers of tokens at which the time is taken, beside the first.

    Returns:
        Seconds to the "first token", to each mark ("64 tokens"), and by part.
    """
    watch = Watch()
    question = workload.prompt(prompt).tokens
    kind, _, how = mode.partition(" ")
    texts = workload.pasted(watch, question) if kind == "text" else []
    conversation = workload.conversation(watch, how if kind == "explicit" else "off")
    said: list[int] = []
    while True:
        tokens = (*texts, *question, *said)
        with watch.part("prefill"):
            logits = conversation.prefill(Turn(tokens, (0, len(tokens))))
        count = marks[-1] - len(said)
        if how == "refreshed":
            count = min(count, CHUNK_TOKENS)
        with watch.part("decode"):
            for step in conversation.decode(logits, count, workload.sampler):
                if step.token is None:
                    break
                said.append(step.token)
                if len(said) == 1:
                    watch.lap("first token")
                elif len(said) in marks:
                    watch.lap(f"{len(said)} tokens")
        if len(said) >= marks[-1]:
            return watch
        # as fresh with text: other references, and all that follows them is read again
        texts = workload.pasted(watch, said[-CHUNK_TOKENS:])
        conversation = workload.conversation(watch, "off")
