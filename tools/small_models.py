"""Train small models from random weights, and compare what memories give each.

    python tools/small_models.py FOLDER [--questions 400] [--seed 0]

Documents are notes of made-up facts ("pet Mira dog."), in an order of their own; questions ask for
one of them ("pet Mira?"). Models of 0.4 million parameters learn to answer by `m3mlx train --init`,
in runs of growing difficulty (``COURSES``) without memories; a last run is done with them:

    hybrid, hybrid-memory   three of four layers are recurrent (Mamba-2), one has attention
    plain, plain-memory     a llama of four layers
    double                  a llama of eight layers

Memories are the paper's: 8 tokens of each head in the first half of the layers with attention, of a
hybrid with one such layer in that one. Then all models are asked about documents that none has
seen: with the document in the context, with its memory, with nothing, with five memories, and a
hybrid with the states of its recurrent layers after each document too. FOLDER/results.json has the
figures, which are printed as a table. What was done is not done again when the same command is
repeated; a run that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import m3mlx  # noqa: F401  before MLX, for OpenBLAS  # isort: skip
import mlx.core as mx
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from m3mlx.calibrate import calibrate
from m3mlx.config import MEMORIES, REFERENCE_TOKENS, MemoryConfig, MemorySettings
from m3mlx.files import write_text
from m3mlx.memory.cache import PrefixStates, read_prefix
from m3mlx.memory.codec import Memory
from m3mlx.memory.parallel import Reads, logits_with_memories
from m3mlx.memory.write import Writer, keep
from m3mlx.models.caches import keeps_state, leaves
from m3mlx.models.decoder import Decoder, load_decoder
from m3mlx.train import Settings, train

NAMES = (
    "Ada Alma Amos Anton Arno Basil Bela Bruno Clara Cora Cyril Dora Edgar Edith Elias Elsa Emil "
    "Enid Erik Esther Eva Felix Flora Frida Gerda Greta Guido Gustav Hanna Hector Hedda Helga Hugo "
    "Ida Igor Ilse Inga Ivan Jana Jasper Jonas Julia Karin Karl Lars Laura Lena Leo Lidia Lotte "
    "Lucas Ludwig Mabel Magda Marco Marta Max Mira Mona Nadia Nils Nina Nora Olga Oscar Otto Paula "
    "Pedro Petra Ralph Renata Rita Roman Rosa Rufus Runa Sally Selma Simon Sven Tara Thea Tilda "
    "Tomas Ulla Ursula Vera Victor Viola Walter Wanda Xenia Yara Yvonne Zelda Zora"
).split()
VALUES = {
    "city": "Athens Bergen Berlin Bern Boston Cairo Cork Dakar Delhi Dover Dublin Geneva Ghent "
    "Hanoi Kyoto Leeds Lima Lisbon London Lyon Madrid Malta Milan Minsk Naples Oslo Paris Perth "
    "Porto Prague Quito Riga Rome Seoul Tokyo Turin Vienna Warsaw York Zagreb",
    "trade": "baker barber butcher carpenter clerk cook cooper dancer dentist doctor driver farmer "
    "fisher gardener glazier guard hunter janitor judge lawyer mason miller miner nurse painter "
    "pilot plumber poet porter potter priest sailor singer smith soldier tailor tanner teacher "
    "waiter weaver",
    "pet": "badger beaver camel canary cat cow crow dog donkey duck eagle falcon ferret fox frog "
    "goat goose hamster hare hen horse lamb lizard llama monkey mouse mule otter owl parrot pig "
    "pigeon pony rabbit raven sheep snake swan toad turtle",
    "colour": "amber azure beige black blue bronze brown copper coral cream crimson cyan ebony "
    "emerald gold gray green indigo ivory jade khaki lavender lilac magenta maroon mauve navy "
    "ochre olive orange pink plum purple red rose ruby scarlet silver white yellow",
    "music": "accordion bagpipe balalaika banjo bassoon bell bugle celesta cello clarinet cornet "
    "cymbal drum fiddle flute gong guitar harp horn kazoo lute lyre mandolin marimba oboe ocarina "
    "organ piano piccolo saxophone sitar tambourine trombone trumpet tuba ukulele viola violin "
    "whistle zither",
    "dish": "almonds apples bacon barley beans beets bread butter cabbage cake carrots celery "
    "cheese cherries dates eggs figs grapes ham honey kale leeks lemons lentils melon mushrooms "
    "noodles nuts oats olives onions pasta pears peas plums rice salad soup spinach toast",
}
VOCABULARY = 512
WIDTH, HEADS, LAYERS = 96, 3, 4
LLAMA = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
HYBRID = {
    **LLAMA,
    "model_type": "granitemoehybrid",
    "layer_types": ["mamba", "mamba", "attention", "mamba"],
    "attention_bias": False,
    "position_embedding_type": "rope",
    "attention_multiplier": (WIDTH / HEADS) ** -0.5,
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "mamba_expand": 1,
    "mamba_n_heads": 3,
    "mamba_d_head": WIDTH // 3,
    "mamba_d_state": 40,  # as many parameters as attention has
    "mamba_d_conv": 4,
    "mamba_n_groups": 1,
    "mamba_proj_bias": False,
    "mamba_conv_bias": True,
}
ASKED = 8  # questions about one document in training


@dataclass(frozen=True)
class Course:
    """Data of a run, and how it is learned.

    Attributes:
        entities, relations: least and most of a document.
        documents: of one batch.
        warmup, decay: see ``Settings``.
    """

    entities: tuple[int, int]
    relations: tuple[int, int]
    steps: int
    documents: int
    warmup: float = 0.0
    decay: float = 0.0


COURSES = {  # which value, then whose among few, then whose among many
    "one": Course((1, 1), (2, 3), 120, 48, warmup=0.4),
    "few": Course((2, 3), (2, 2), 300, 24),
    "many": Course((3, 5), (2, 3), 400, 16, decay=0.6),
}
RATE = 2e-3
TOGETHER = 16  # questions in one pass
LARGEST = COURSES["many"].entities[1], COURSES["many"].relations[1]


@dataclass(frozen=True)
class Run:
    """One run of ``m3mlx train --init``.

    Attributes:
        init: a config, or the name of the run to go on from.
        data: one of ``COURSES``.
    """

    init: dict[str, Any] | str
    data: str
    stage: str = "warmup"


DOUBLE = {**LLAMA, "num_hidden_layers": 2 * LAYERS}
CONFIGS = {"hybrid": HYBRID, "plain": LLAMA, "double": DOUBLE}
RUNS = {
    run: made
    for name, config in CONFIGS.items()
    for run, made in (
        (f"{name}-one", Run(config, "one")),
        (f"{name}-few", Run(f"{name}-one", "few")),
        (name, Run(f"{name}-few", "many")),
        (f"{name}-memory", Run(name, "many", "continual")),
    )
    if run != "double-memory"
}


# --- documents


@dataclass(frozen=True)
class Notes:
    """A document, and each of its facts as question and answer, in another order."""

    text: str
    asked: tuple[tuple[str, str], ...]


def write_notes(rng: random.Random, entities: int, relations: int, apart: set[str]) -> Notes:
    """Make up a document without the names in ``apart``."""
    names = rng.sample([name for name in NAMES if name not in apart], entities)
    facts = []
    for relation in rng.sample(list(VALUES), relations):
        values = rng.sample(VALUES[relation].split(), entities)
        facts += [(f"{relation} {n}", v) for n, v in zip(names, values, strict=True)]
    rng.shuffle(facts)
    text = " ".join(f"{what} {value}." for what, value in facts)
    asked = [(f"{what}?", value) for what, value in facts]
    rng.shuffle(asked)
    return Notes(text, tuple(asked))


def write_data(folder: Path, seed: int) -> None:
    """Write FOLDER/COURSE.jsonl, documents with questions about them."""
    for number, (name, course) in enumerate(COURSES.items()):
        rng = random.Random(seed * 10 + number)
        lines = []
        for _ in range(course.steps * course.documents):
            size = rng.randint(*course.entities), rng.randint(*course.relations)
            notes = write_notes(rng, *size, set())
            turns = notes.asked[:ASKED]
            said = [{"role": r, "content": c} for t in turns for r, c in zip(ROLES, t, strict=True)]
            lines.append(json.dumps({"document": notes.text, "messages": said}))
        write_text(folder / f"{name}.jsonl", "\n".join(lines) + "\n")


ROLES = ("user", "assistant")


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of words, marks and line breaks."""
    words = [*NAMES, *VALUES, *(value for values in VALUES.values() for value in values.split())]
    words += ["Reference", ".", "?", ":", "\n"]
    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*special, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pieces = Regex(r"\w+|[^\w\s]|\n")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, "removed", invert=True)
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    write_text(folder / "tokenizer_config.json", json.dumps(about))


def held_out(count: int) -> list[list[Notes]]:
    """Make up documents; with each, others about other names that are read beside it."""
    rng = random.Random(-1)
    made = []
    for _ in range(count):
        group: list[Notes] = []
        for _ in range(MEMORIES):
            apart = {word for notes in group for word in notes.text.split()}
            group.append(write_notes(rng, *LARGEST, apart))
        made.append(group)
    return made


# --- training


def train_all(folder: Path, seed: int) -> None:
    for name, run in RUNS.items():
        init = folder / f"{name}.json" if isinstance(run.init, dict) else folder / run.init
        if isinstance(run.init, dict):
            write_text(init, json.dumps(run.init, indent=1))
        course = COURSES[run.data]
        settings = Settings(
            data=(str(folder / f"{run.data}.jsonl"),),
            output=str(folder / name),
            init=str(init),
            tokenizer=str(folder / "tokenizer"),
            stage=run.stage,
            objectives={"sft": 1.0},
            steps=course.steps,
            references=course.documents,
            learning_rate=RATE,
            warmup=course.warmup,
            decay=course.decay,
            save_every=50,
            seed=seed,
        )
        train(settings, report=partial(tell, name, course.steps))


def tell(name: str, steps: int, row: dict[str, Any]) -> None:
    if row["step"] % 50 == 0:
        print(f"{name}: step {row['step']} of {steps}, loss {row['loss']['sft']:.3f}", flush=True)


# --- measuring


class Reader:
    """Answers the questions about held-out documents with one model, in every way.

    Args:
        groups: of each question the document that it is about, then others.

    Attributes:
        found: of each way the answers' losses, nats per token, and whether they were right.
    """

    def __init__(self, decoder: Decoder, groups: Sequence[Sequence[Notes]]):
        self.model, self.template = decoder.model, decoder.template
        self.prefix = read_prefix(self.model, self.template.prefix)
        self.writer = Writer(self.model, self.prefix, self.template.recite)
        every = MemorySettings(tuple(range(decoder.layers)), tokens_per_head=REFERENCE_TOKENS)
        whole = calibrate(replace(decoder, trained=every))
        self.whole = replace(whole, prefix=self.template.prefix)
        paper = decoder.trained or MemorySettings(tuple(range(max(1, decoder.layers // 2))))
        some = calibrate(replace(decoder, trained=paper))
        self.some = replace(some, prefix=self.template.prefix)
        self.found: dict[str, list[tuple[float, bool]]] = {}
        for start in range(0, len(groups), TOGETHER):
            self._read(groups[start : start + TOGETHER])

    def _read(self, groups: Sequence[Sequence[Notes]]) -> None:
        encode, count = self.template.encode, len(groups)
        self.questions = [self.template.turn(group[0].asked[0][0]).tokens for group in groups]
        self.answers = [encode(group[0].asked[0][1]) for group in groups]
        texts = [encode(notes.text) for group in groups for notes in group]
        right = [[[n * MEMORIES]] for n in range(count)]
        five = [[[n * MEMORIES + i for i in range(MEMORIES)]] for n in range(count)]
        behind = [len(self.template.prefix) + len(text) for text in texts[::MEMORIES]]
        self._ask("nothing")
        self._ask("the text", before=texts[::MEMORIES])
        whole = {"config": self.whole, "memory": self._write(texts, self.whole)}
        self._ask("its whole memory", reads=right, **whole)
        self._ask("its whole memory where the text would be", reads=right, at=behind, **whole)
        self._ask("five whole memories", reads=five, **whole)
        some = {"config": self.some, "memory": self._write(texts, self.some)}
        self._ask("its memory", reads=right, **some)
        self._ask("five memories", reads=five, **some)
        if not states(self.prefix):
            return
        read = [read_prefix(self.model, [*self.template.prefix, *text]) for text in texts]
        one = self._joined([[states(x)] for x in read[::MEMORIES]])
        self._ask("its states", prefix=one)
        self._ask("its whole memory and states", reads=right, prefix=one, **whole)
        self._ask("both where the text would be", reads=right, prefix=one, at=behind, **whole)
        self._ask("five whole memories, the right states", reads=five, prefix=one, **whole)
        groups_of = [[states(read[row]) for row in rows[0]] for rows in five]
        self._ask("five whole memories, all states added", reads=five,
                  prefix=self._joined(groups_of), **whole)  # fmt: skip

    def _write(self, texts: Sequence[Sequence[int]], config: MemoryConfig) -> Memory:
        return keep(*self.writer.score(texts, config.selection), config.counts)

    def _joined(self, groups: Sequence[Sequence[Sequence[list[mx.array]]]]) -> PrefixStates:
        """Return the prefix with other states, for each sequence of a batch.

        Args:
            groups: of each sequence the states after some documents. What each adds to the
                recurrent state is added up; the convolution's are the first one's.
        """
        joined = read_prefix(self.model, self.template.prefix)
        for number, cache in enumerate(states(joined)):
            recurrent = cache[1]
            parts = [[found[number] for found in group] for group in groups]
            cache[0] = mx.concatenate([part[0][0] for part in parts])
            added = [recurrent + sum(after - recurrent for _, after in part) for part in parts]
            cache[1] = mx.concatenate(added)
        return joined

    def _ask(
        self,
        way: str,
        *,
        before: Sequence[Sequence[int]] | None = None,
        config: MemoryConfig | None = None,
        memory: Memory | None = None,
        reads: Reads | None = None,
        prefix: PrefixStates | None = None,
        at: Sequence[int] | None = None,
    ) -> None:
        """Answer all questions of a batch.

        Args:
            before: tokens in front of each question.
            at: positions of the questions; None for those of a conversation.
        """
        texts = before or [()] * len(self.questions)
        heads = [[*text, *asked] for text, asked in zip(texts, self.questions, strict=True)]
        pairs = list(zip(heads, self.answers, strict=True))
        logits = logits_with_memories(
            self.model,
            prefix or self.prefix,
            config or self.whole,
            [[*head, *answer[:-1]] for head, answer in pairs],
            memory,
            reads or [[]] * len(pairs),
            [range(len(head) - 1, len(head) + len(answer) - 1) for head, answer in pairs],
            offsets=at,
        )
        logprobs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        cuts = np.cumsum([len(answer) for answer in self.answers])[:-1]
        for rows, answer in zip(np.split(logprobs, cuts), self.answers, strict=True):
            loss = -float(np.mean(rows[np.arange(len(answer)), answer]))
            right = bool((rows.argmax(axis=-1) == answer).all())
            self.found.setdefault(way, []).append((loss, right))


def states(prefix: PrefixStates) -> list[list[mx.array]]:
    """States of the recurrent layers: of each the convolution's and the recurrent one, (1, …)."""
    return [cache.cache for cache in leaves(prefix.made) if keeps_state(cache)]


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z = 1.96
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * (share * (1 - share) / count + spread / count / 4) ** 0.5 / (1 + spread)
    return middle - half, middle + half


def summary(found: dict[str, list[tuple[float, bool]]]) -> dict[str, dict[str, Any]]:
    return {
        way: {
            "right": sum(hit for _, hit in each),
            "asked": len(each),
            "interval": [round(x, 4) for x in wilson(sum(hit for _, hit in each), len(each))],
            "nats": round(mean(loss for loss, _ in each), 4),
            "error": round(stdev(loss for loss, _ in each) / len(each) ** 0.5, 4),
        }
        for way, each in found.items()
    }


def show(results: dict[str, dict[str, dict[str, Any]]]) -> None:
    for name, ways in results.items():
        for way, row in ways.items():
            low, high = (100 * x for x in row["interval"])
            print(
                f"{name:8} {way:44} {row['right']:4} of {row['asked']} ({low:.1f} to {high:.1f} %)"
                f"  {row['nats']:.3f} ± {row['error']:.3f} nats"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "many.jsonl").exists():
        write_tokenizer(folder / "tokenizer")
        write_data(folder, args.seed)
    train_all(folder, args.seed)
    groups = held_out(args.questions)
    results = {}
    for name in (name for name, run in RUNS.items() if run.data == "many"):
        results[name] = summary(Reader(load_decoder(folder / name), groups).found)
        write_text(folder / "results.json", json.dumps(results, indent=1))
    show(results)


if __name__ == "__main__":
    main()
