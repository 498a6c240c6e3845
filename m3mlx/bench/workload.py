"""Documents in a temporary store, and conversations over them whose parts are timed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..assistant import Assistant
from ..chat.conversation import Conversation
from ..config import CHUNK_TOKENS, MEMORIES, Options, Progress
from ..memory.codec import Memory
from ..models.template import Turn
from ..store import Hit
from .rounds import Stopwatch

DOCUMENTS = 12  # enough to search among
WAYS = ("off", "text", "text refreshed", "explicit warm", "explicit cold")  # of answering


class Workload:
    """The sample documents of the calibration, memorized in a temporary store.

    Args:
        options: of the assistant; ``store`` is replaced.

    Attributes:
        memorizing: time of memorizing the documents, as ``end to end``.
    """

    def __init__(self, options: Options, progress: Progress):
        self._folder = tempfile.TemporaryDirectory(prefix="m3mlx-bench-")
        folder = Path(self._folder.name)
        self.assistant = Assistant.of(replace(options, store=folder / "store"), progress=progress)
        text = resources.files("m3mlx").joinpath("data/calibration.jsonl").read_text("utf-8")
        lines = text.splitlines()[:DOCUMENTS]
        self._texts = [json.loads(line)["document"] for line in lines]
        self._documents = folder / "documents"
        self._documents.mkdir()
        for number, text in enumerate(self._texts):
            (self._documents / f"{number}.txt").write_text(text, "utf-8")

    def __enter__(self) -> Workload:
        assistant = self.assistant
        template = assistant.decoder.template
        try:
            # loading and calibrating belong to no figure
            assistant.encoder.encode(["warm"])
            assistant.format.write([template.encode("warm")])
            self.memorizing = Stopwatch()
            self.memorized = assistant.memorize([self._documents])
            self.memorizing.lap("end to end")
            self._words = template.encode(self.text) * 8
        except BaseException:
            self.__exit__()
            raise
        end = assistant.decoder.tokenizer.eos_token_ids
        vocabulary = assistant.decoder.model(mx.array([[0]])).shape[-1]
        self._never = mx.array([-np.inf if token in end else 0.0 for token in range(vocabulary)])
        return self

    @property
    def text(self) -> str:
        """The text of all documents."""
        return "\n\n".join(self._texts)

    def __exit__(self, *exception: object) -> None:
        self.assistant.close()
        self._folder.cleanup()

    def sampler(self, logprobs: mx.array) -> mx.array:
        """Sample greedily, but never the end, so that every answer is as long as wanted."""
        return mx.argmax(logprobs + self._never, axis=-1)

    def prompt(self, tokens: int, shift: int = 0) -> Turn:
        """Return a turn of so many tokens, all of them the user's words."""
        return Turn(tuple(self._words[shift : shift + tokens]), (0, tokens))

    def text_of(self, tokens: Sequence[int]) -> str:
        return self.assistant.decoder.tokenizer.decode(list(tokens))

    def search(self, watch: Stopwatch, texts: Sequence[str], k: int = MEMORIES) -> list[list[Hit]]:
        with watch.part("embed"):
            vectors = self.assistant.encoder.encode(list(texts), query=True)
        with watch.part("search"):
            return self.assistant.store().search(vectors, texts, k)

    def read(self, watch: Stopwatch, hits: Sequence[Hit]) -> Memory:
        """Read memories from the store."""
        with watch.part("read"):
            records = self.assistant.store().read([hit.slot for hit in hits])
        return self._unpack(watch, records)

    def write(self, watch: Stopwatch, hits: Sequence[Hit]) -> Memory:
        """Write memories anew, as for the first use of cold references."""
        decoder = self.assistant.decoder
        with watch.part("write"):
            tokens = [hit.tokens or decoder.tokenize(hit.text)[0] for hit in hits]
            records = self.assistant.format.write(tokens)
        return self._unpack(watch, records)

    def _unpack(self, watch: Stopwatch, records: np.ndarray) -> Memory:
        with watch.part("unpack"):
            memory = self.assistant.format.read(records)
            mx.eval(memory.keys, memory.values)
        return memory

    def conversation(self, watch: Stopwatch, memory: str) -> Conversation:
        """Begin a conversation that reads memories ("warm", "cold") or none ("off")."""
        decoder, form = self.assistant.decoder, self.assistant.format
        read = {"warm": self.read, "cold": self.write}.get(memory)
        return Conversation(
            decoder,
            form.prefix,
            form.layout,
            search=read and (lambda texts, k: self.search(watch, texts, k)),
            read=read and partial(read, watch),
            memory_temperature=decoder.memory_temperature,
        )

    def pasted(self, watch: Stopwatch, words: Sequence[int]) -> list[int]:
        """Return the tokens of the references that fit some words, for pasting into a prompt."""
        (hits,) = self.search(watch, [self.text_of(words)])
        encode = self.assistant.decoder.template.encode
        return [token for hit in hits for token in encode(hit.text + "\n\n")]

    def ask(self, way: str, prompt: int, marks: Sequence[int]) -> Stopwatch:
        """Ask one question, and decode an answer as long as the last mark.

        Args:
            way: of ``WAYS``.
            prompt: tokens of the question.
            marks: numbers of answer tokens at which the time is taken, beside the first.

        Returns:
            Seconds to the "first token", to each mark ("64 tokens"), and by part.
        """
        watch = Stopwatch()
        question = self.prompt(prompt).tokens
        kind, _, how = way.partition(" ")
        texts = self.pasted(watch, question) if kind == "text" else []
        conversation = self.conversation(watch, how if kind == "explicit" else "off")
        said: list[int] = []
        while True:
            tokens = (*texts, *question, *said)
            with watch.part("prefill"):
                logits = conversation.prefill(Turn(tokens, (0, len(tokens))))
            count = marks[-1] - len(said)
            if how == "refreshed":
                count = min(count, CHUNK_TOKENS)
            with watch.part("decode"):
                for step in conversation.decode(logits, count, self.sampler):
                    if step.token is None:
                        break
                    said.append(step.token)
                    if len(said) == 1:
                        watch.lap("first token")
                    elif len(said) in marks:
                        watch.lap(f"{len(said)} tokens")
            if len(said) >= marks[-1]:
                return watch
            # other references are pasted, and everything behind them is read again
            texts = self.pasted(watch, said[-CHUNK_TOKENS:])
            conversation = self.conversation(watch, "off")
