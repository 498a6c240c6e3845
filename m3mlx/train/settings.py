"""What a training run is told: everything that decides its result, in one place."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..config import CODECS, MEMORIES, SELECTIONS
from ..errors import M3Error

OBJECTIVES = ("distill", "sft", "lm", "dpo", "keep")
WITH_MEMORY = ("distill", "sft", "lm", "dpo")  # objectives that may read memories
STAGES = ("warmup", "continual")
QUERIES = ("own", "previous")
BUDGETS = ("calibrated", "uniform", "half")


@dataclass(frozen=True)
class Settings:
    """A training run.

    Attributes:
        data: files and folders.
        output: folder of the adapter.
        model, adapter_path: what is trained, and an adapter to start from.
        valid: file of questions held out for validation.
        objectives: shares of the batches, by objective.
        stage: "continual" with memories, "warmup" without (section 3.6 of the paper).
        steps, accumulate: optimizer steps, and batches in each.
        references: written in one batch.
        questions: asked about each reference in one batch.
        sequence_tokens: length of a text in one batch of ``lm`` and ``keep``.
        learning_rate, weight_decay, clip: of AdamW; ``clip`` bounds the gradient's length.
        warmup, decay: shares of the steps at the ends of the warm-up–stable–decay schedule.
        rank, scale: of LoRA; rank 0 trains all weights of attention and MLP.
        targets: parts of each layer that learn: "attention" or "all".
        budgets: drawn from for each batch: "auto" (what calibration finds for the model),
            "calibrated:8", "uniform:8" or "half:8" (uniform in the first half of the layers, as
            in the paper). Validation uses the first.
        selection: score that picks the tokens of a memory.
        codec: reading goes through this quantization; None for exact memories.
        memories: read by one question, at most: the right one and distractors.
        drop: share of questions that read no memory at all.
        detach_memories: no gradient from reading into writing.
        hardness: weight of cross-entropy beside the teacher's distribution, in ``distill``.
        beta: of ``dpo``.
        query: what a chunk of ``lm`` retrieves with, its own text or the chunk before it.
        checkpoint: run layers again in the backward pass, which saves memory and costs time.
        save_every, eval_every: steps between checkpoints, and between validations; 0 for never.
        seed: of everything that is drawn.
    """

    data: tuple[str, ...]
    output: str
    model: str | None = None
    adapter_path: str | None = None
    encoder: str | None = None
    valid: str | None = None
    objectives: dict[str, float] = field(default_factory=lambda: {"distill": 1.0, "keep": 0.1})
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
    budgets: tuple[str, ...] = ("auto", "calibrated:4", "calibrated:16", "half:8")
    selection: str = "reconstruction"
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

        if not self.objectives or not set(self.objectives) <= set(OBJECTIVES):
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
        if not self.budgets:
            refuse("budgets", "names at least one")
        for name in ("steps", "accumulate", "references", "questions", "memories"):
            if getattr(self, name) < 1:
                refuse(name, "is at least 1")
        if self.sequence_tokens < 2:
            refuse("sequence_tokens", "is at least 2")
        for name in ("learning_rate", "weight_decay", "clip", "scale", "hardness", "beta"):
            if not math.isfinite(getattr(self, name)) or getattr(self, name) < 0:
                refuse(name, "is a number from 0 up")
        for name in ("warmup", "decay", "drop"):
            if not 0 <= getattr(self, name) <= 1:
                refuse(name, "is between 0 and 1")
        for name in ("rank", "save_every", "eval_every"):
            if getattr(self, name) < 0:
                refuse(name, "is at least 0")

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0: warm-up, stable, decay to nothing (section 5)."""
        rising = round(self.warmup * self.steps)
        falling = round(self.decay * self.steps)
        rate = self.learning_rate
        if step < rising:
            return rate * (step + 1) / (rising + 1)
        if step >= self.steps - falling:
            return rate * (self.steps - step) / (falling + 1)
        return rate

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> Settings:
        return cls(**{**data, "data": tuple(data["data"]), "budgets": tuple(data["budgets"])})

    @classmethod
    def load(cls, folder: str | Path) -> Settings:
        """The settings beside an adapter.

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
    """Kind and tokens per head of a budget such as "calibrated:8"; "auto" has no number."""
    if text == "auto":
        return "calibrated", None
    kind, _, count = text.partition(":")
    if kind not in BUDGETS or not count.isdecimal() or not 1 <= int(count) <= 128:
        raise M3Error(
            f"{text} is no budget; write auto, "
            f"{', '.join(f'{kind}:8' for kind in BUDGETS)} or the like"
        )
    return kind, int(count)
