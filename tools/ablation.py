"""Compare ways of writing memories on the same questions: selection, budget, codec.

    python tools/ablation.py tests/data/questions.jsonl [--model NAME] [--memories 1 5]

Every way writes the same documents with the same model; what the questions cost without memories
and with the right text pasted is measured once. Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from importlib.metadata import version
from statistics import mean

from m3mlx.evaluate import Trial, read_questions

WAYS = {
    "default": {},
    "attention": {"selection": "attention"},
    "uniform": {"budget": "uniform"},
    "attention, uniform": {"selection": "attention", "budget": "uniform"},
    "k16v16": {"codec": "k16v16"},
    "k8v4": {"codec": "k8v4"},
    "k4v4": {"codec": "k4v4"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--model")
    parser.add_argument("--adapter-path")
    parser.add_argument("--tokens-per-head", type=int, help="the same for all ways; else auto")
    parser.add_argument("--memories", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    arguments = parser.parse_args()
    questions = read_questions(arguments.file)
    print(f"{'way':20} {'memories':>8} {'tokens':>6} {'nats':>7} {'recovered':>9} {'seconds':>7}")
    rows: list[dict] = []
    losses: dict[str, float] = {}

    def measure(trial: Trial, way: str, mode: str, memories: int) -> None:
        start = time.perf_counter()
        loss = mean(result.nll for result in trial.measure([mode], memories, 0)[mode])
        losses[way] = loss
        share = (losses["off"] - loss) / (losses["off"] - losses.get("oracle", loss - 1))
        tokens = trial.assistant.config.tokens_per_head if mode == "explicit" else 0
        seconds = time.perf_counter() - start
        row = f"{way:20} {memories:8} {tokens:6g} {loss:7.3f} {share:9.1%} {seconds:7.1f}"
        print(row, flush=True)
        rows.append(
            {"way": way, "memories": memories, "tokens": tokens, "nll": loss, "recovered": share}
        )

    tokens = arguments.tokens_per_head
    shared = {"model": arguments.model, "adapter_path": arguments.adapter_path}
    for way in arguments.ways:
        options = {**shared, "tokens_per_head": tokens, **WAYS[way]}
        with Trial(questions, **options) as trial:
            if not losses:
                measure(trial, "off", "off", 0)
                measure(trial, "oracle", "oracle", 1)
                for memories in arguments.memories:
                    measure(trial, "text", "text", memories)
                tokens = int(trial.assistant.config.tokens_per_head)
            for memories in arguments.memories:
                measure(trial, way, "explicit", memories)
    versions = {name: version(name) for name in ("m3mlx", "mlx", "mlx-lm")}
    machine = f"{platform.system()} {platform.machine()} {platform.processor()}".strip()
    print(json.dumps({"questions": len(questions), "machine": machine, **versions, "rows": rows}))


if __name__ == "__main__":
    main()
