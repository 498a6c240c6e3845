"""Make files for `m3mlx eval --task choice` from BIG-bench.

    pip download --no-deps --no-binary bigbench bigbench==1.0.0
    python tools/make_choices.py bigbench-1.0.0.tar.gz OUTPUT [--count 200]

Nothing is installed: the tasks are read from the archive, and COUNT examples of each, evenly
spread, become OUTPUT/TASK.jsonl. pip takes long to inspect the archive, which can be used before.
The files carry a canary: they are for evaluation only, and stay out of the repository.

- contextual_parametric_knowledge_conflicts: questions of Natural Questions about a context whose
  answer may have been changed; the choices are the context's answer and the other.
- vitaminc_fact_verification: claims about a quotation of Wikipedia: True, False or Neither.
- general_knowledge: closed-book questions, to see the effect of unrelated memories.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

WORDS = 40  # shortest context, in words


def conflicts(text: str) -> tuple[str, str]:
    question, _, context = text.removeprefix("\nQuestion: ").partition("\nContext: ")
    return question, context


def claim(text: str) -> tuple[str, str]:
    quotation, _, claim = text.partition("\nClaim: ")
    return f"Is it true, false, or neither of them? {claim}", quotation


# of each task: its input -> question, document
TASKS: dict[str, Callable[[str], tuple[str, str]]] = {
    "contextual_parametric_knowledge_conflicts": conflicts,
    "vitaminc_fact_verification": claim,
    "general_knowledge": lambda text: (text, ""),
}


def lines(task: str, examples: list[dict]) -> list[dict]:
    """Return the examples with one right answer and, where they have a context, a long one."""
    made = []
    for example in examples:
        question, document = TASKS[task](example["input"])
        scores = example["target_scores"]
        right = [choice for choice, score in scores.items() if score == 1]
        short = task.startswith("contextual") and len(document.split()) < WORDS
        if len(right) == 1 and len(scores) > 1 and not short:
            line = {"question": question, "choices": list(scores), "answer": right[0]}
            made.append({**line, "document": document} if document else line)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive")
    parser.add_argument("output", type=Path)
    parser.add_argument("--count", type=int, default=200)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    names = {f"bigbench-1.0.0/bigbench/benchmark_tasks/{task}/task.json": task for task in TASKS}
    with tarfile.open(arguments.archive) as archive:
        for member in archive:
            if task := names.pop(member.name, None):
                every = lines(task, json.load(archive.extractfile(member))["examples"])
                count = min(arguments.count, len(every))
                kept = [every[i * len(every) // count] for i in range(count)]
                path = arguments.output / f"{task}.jsonl"
                path.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")
                print(f"{path}: {len(kept)} of {len(every)} questions")
            if not names:
                return
    raise SystemExit(f"{arguments.archive}: there is no {', '.join(names)} in it")


if __name__ == "__main__":
    main()
