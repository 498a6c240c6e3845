"""Settings of a training run: everything that decides its result."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..config import CODECS, MEMORIES, SELECTIONS
from ..errors import M3Error

OBJECTIVES = ("distill", "sft", "lm", "dpo", "keep")
STAGES = ("warmup", "continual")
QUERIES = ("own", "previous")
TAUGHT = {"distill", "keep", "dpo"}  # objectives that learn from the model before training
BUDGET_KINDS = ("calibrated", "uniform", "half")


@dataclass(frozen=True)
class Settings:
    """A training run.

    Attributes:
        data: files and folders.
        output: folder of the adapter, or with ``init`` of the model.
        init: train all weights and write a model: a config.json for random ones, or the folder of
            a model to go on with.
        tokenizer: of a model from random weights, a folder or built-in name; None to train one on
            the data.
        adapter_path: adapter to start from.
        valid: file of held-out questions, for validation.
        objectives: shares of the batches, by objective; with ``init`` "lm" or "sft".
        stage: "continual" with memories, "warmup" without (section 3.6 of the paper): documents
            then stand in the context.
        steps, accumulate: optimizer steps, and batches in each.
        references: written in one batch.
        questions: asked about each reference in one batch.
        sequence_tokens: length of a text in one batch of ``lm`` and ``keep``.
        learning_rate, weight_decay: of AdamW.
        clip: maximum gradient norm; 0 disables clipping.
        warmup, decay: shares of the steps in the warm-up–stable–decay schedule.
        rank, scale: of LoRA; rank 0 trains all weights of attention and MLP.
        targets: trained parts of each layer: "attention" or "all".
        budgets: one is drawn for each batch: "auto" (from calibration), "calibrated:8",
            "uniform:8" or "half:8" (uniform in the first half of the layers, as in the paper).
            Validation uses the first. With ``init`` one, "half" or "uniform".
        selection: score by which the tokens of a memory are kept; None for "reconstruction", with
            ``init`` for "attention", the paper's.
        codec: quantization of the memories that are read; None for exact ones.
        memories: most that a question reads, the right one and distractors.
        drop: share of questions that read no memory.
        detach_memories: no gradient from reading into writing.
        hardness: weight of cross-entropy beside the teacher's distribution, in ``distill``.
        beta: of ``dpo``.
        query: text that a chunk of ``lm`` retrieves with, its "own" or the "previous" chunk's.
        checkpoint: compute layers again in the backward pass: less memory, more time.
        save_every, eval_every: steps between checkpoints and between validations; 0 for never.
    """

    data: tuple[str, ...]
    output: str
    model: str | None = None
    init: str | None = None
    tokenizer: str | None = None
    adapter_path: str | None = None
    encoder: str | None = None
    valid: str | None = None
    objectives: dict[str, float] = field(default_factory=dict)
    stage: str = "continual"
    steps: int = 100
    accumulate: int = 1
    references: int = 8
    questions: int = 2
    sequence_tokens: int = 256
    learning_rate: float = 2e-4
    weight_decay: float = 0.1
    clip: float = 1.0
    warmup: float = 0.05
    decay: float = 0.3
    rank: int = 16
    scale: float = 10.0
    targets: str = "attention"
    budgets: tuple[str, ...] = ()
    selection: str | None = None
    codec: str | None = None
    memories: int = MEMORIES
    drop: float = 0.1
    detach_memories: bool = False
    hardness: float = 0.5
    beta: float = 0.01
    query: str = "own"
    checkpoint: bool = False
    save_every: int = 20
    eval_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        def refuse(name: str, why: str) -> None:
            raise M3Error(f"training setting {name}: {why}")

        for name, value in self._defaults().items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)
        if not set(self.objectives) <= set(OBJECTIVES):
            refuse("objectives", f"is a share for each of some of {', '.join(OBJECTIVES)}")
        shares = self.objectives.values()
        if not all(math.isfinite(x) and x >= 0 for x in shares) or not sum(shares):
            refuse("objectives", "shares are numbers from 0 up, and not all 0")
        choices = {
            "stage": STAGES,
            "selection": SELECTIONS,
            "query": QUERIES,
            "targets": ("attention", "all"),
            "codec": (None, *CODECS),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                refuse(name, f"is one of {', '.join(map(str, allowed))}")
        if self.stage == "warmup" and "distill" in self.objectives:
            refuse("stage", "warmup reads no memories, which distill teaches; use lm, sft or dpo")
        for budget in self.budgets:
            try:
                parse_budget(budget)
            except M3Error as error:
                refuse("budgets", str(error))
        if self.init:
            self._check_init(refuse)
        elif self.tokenizer:
            refuse("tokenizer", "is for a model from random weights; name its config with init")
        ones = ("steps", "accumulate", "references", "questions", "memories")
        zeros = ("rank", "save_every", "eval_every")
        minimums = {**dict.fromkeys(ones, 1), **dict.fromkeys(zeros, 0), "sequence_tokens": 2}
        for name, least in minimums.items():
            if getattr(self, name) < least:
                refuse(name, f"is at least {least}")
        for name in ("learning_rate", "weight_decay", "clip", "scale", "hardness", "beta"):
            if not math.isfinite(getattr(self, name)) or getattr(self, name) < 0:
                refuse(name, "is a number from 0 up")
        for name in ("warmup", "decay", "drop"):
            if not 0 <= getattr(self, name) <= 1:
                refuse(name, "is between 0 and 1")

    def _defaults(self) -> dict[str, Any]:
        """Return what stands for settings that are not given."""
        if self.init:
            return {"objectives": {"lm": 1.0}, "budgets": ("half:8",), "selection": "attention"}
        return {
            "objectives": {"distill": 1.0, "keep": 0.1},
            "budgets": ("auto", "calibrated:4", "calibrated:16", "half:8"),
            "selection": "reconstruction",
        }

    def _check_init(self, refuse: Callable[[str, str], None]) -> None:
        if self.model or self.adapter_path:
            refuse("init", "makes a model of its own; name no other model and no adapter")
        if taught := TAUGHT & set(self.objectives):
            refuse("objectives", f"{min(taught)} needs a model that can teach; use lm or sft")
        if len(self.budgets) > 1 or parse_budget(self.budgets[0])[0] == "calibrated":
            refuse("budgets", "is one of half:8 or uniform:8 or the like with init")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0: warm-up, stable, decay (section 5)."""
        warmup, decay = round(self.warmup * self.steps), round(self.decay * self.steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / (warmup + 1)
        if step >= self.steps - decay:
            return self.learning_rate * (self.steps - step) / (decay + 1)
        return self.learning_rate

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> Settings:
        return cls(**{**data, "data": tuple(data["data"]), "budgets": tuple(data["budgets"])})

    @classmethod
    def load(cls, folder: str | Path) -> Settings:
        """Load the settings beside an adapter.

        Raises:
            M3Error: there are none, or they are damaged.
        """
        path = Path(folder) / "training.json"
        try:
            return cls.from_json(json.loads(path.read_text("utf-8"))["settings"])
        except FileNotFoundError as error:
            raise M3Error(
                f"{folder}: no training was begun here; there is no training.json"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise M3Error(f"{path}: cannot be read ({error})") from error


def parse_budget(text: str) -> tuple[str, int | None]:
    """Return kind and tokens per head of a budget such as "calibrated:8"; "auto" has no number."""
    if text == "auto":
        return "calibrated", None
    kind, _, count = text.partition(":")
    if kind not in BUDGET_KINDS or not count.isdecimal() or not 1 <= int(count) <= 128:
        raise M3Error(
            f"{text} is no budget; write auto, "
            f"{', '.join(f'{kind}:8' for kind in BUDGET_KINDS)} or the like"
        )
    return kind, int(count)
