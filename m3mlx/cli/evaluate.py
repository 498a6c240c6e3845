"""The command eval, which measures what memory is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from ..config import CODECS, SELECTIONS, Options
from ..errors import M3Error
from ..train.settings import parse_budget
from .options import add_options, command, memory_options
from .render import Progress, dim, echo_json, echo_table, human_bytes, human_seconds, note

TASKS = ("questions", "recite", "update", "choice")


@command("m3mlx eval questions.jsonl --memories 1 --memories 5 --answer-tokens 0", name="eval")
@click.argument("file", metavar="FILE.jsonl")
@add_options(
    task=(
        "Answer questions, recite documents, notice a changed document, or choose an answer.",
        TASKS,
        "questions",
    ),
    memories=(
        "References read or pasted: the best that the search finds, the right one among them if "
        "there is one.",
        [click.IntRange(min=1)],
        (1,),
    ),
    budget=(
        "Tokens per head, such as calibrated:8, uniform:8 or half:8 (first half of the layers).",
        ["KIND:N"],
        ("auto",),
    ),
    selection=("Score that selects the tokens a memory keeps.", [SELECTIONS]),
    codec=("Bits of keys and values on disk.", [tuple(CODECS)]),
    mode=(
        "Measure only nothing (off), the right reference as text (oracle), several as text, or "
        "memories (explicit); may be repeated.",
        [("off", "oracle", "text", "explicit")],
    ),
    answer_tokens=(
        "Length of greedy answers; 0 measures likelihood only, which is quicker.",
        click.IntRange(min=0),
        32,
    ),
    limit=("Number of lines or changed documents, evenly spread.", click.IntRange(min=1)),
    others=("Unrelated documents to memorize too: lines of JSON with a document.", "FILE"),
    plot=("Draw loss against bytes of a memory.", "FILE.svg"),
)
@memory_options("encoder", "adapter_path", "retrieval")
def eval_file(
    file: str,
    task: str,
    limit: int | None,
    others: str | None,
    plot: str | None,
    options: Options,
    as_json: bool,
    mode: tuple[str, ...],
    answer_tokens: int,
    **combined: tuple[Any, ...],
) -> None:
    """Measure what memory is worth.

    Each line of FILE.jsonl is a JSON object with document, question and answer. --memories,
    --budget, --selection and --codec may be repeated: all combinations are compared.

    \b
    --task recite  reads document alone;
    --task update  also reads changed, another answer that replaces the first;
    --task choice  reads question, choices, answer and perhaps document.
    """
    if plot and (task != "questions" or not plot.endswith(".svg")):
        raise click.UsageError("--plot draws the task questions, into a file named .svg.")
    if others and task == "questions":
        raise click.UsageError("--others is for the tasks recite, update and choice.")
    for text in combined["budget"]:
        try:
            parse_budget(text)
        except M3Error as error:
            raise click.BadParameter(str(error), param_hint="--budget") from error
    if task == "questions":
        json, *table, explanation = _questions(
            file, limit, plot, options, modes=mode, answer_tokens=answer_tokens, **combined
        )
    else:
        if mode or any(len(values) > 1 for values in combined.values()):
            raise click.UsageError(f"--task {task} takes no --mode, and one value of each option.")
        given = {name: values[0] for name, values in combined.items() if values}
        budget = given.pop("budget")
        options = replace(options, **given)
        json, *table, explanation = _task(task, file, limit, others, options, budget, answer_tokens)
    if as_json:
        echo_json(json)
        return
    echo_table(*table)
    dim(explanation)


def _questions(
    file: str,
    limit: int | None,
    plot: str | None,
    options: Options,
    *,
    modes: tuple[str, ...],
    answer_tokens: int,
    **combined: tuple[Any, ...],
) -> tuple[Any, ...]:
    """Answer questions in every mode; return JSON, columns, rows and their explanation."""
    from .. import evaluate

    report = evaluate.evaluate(
        evaluate.spread(evaluate.read_questions(file), limit),
        options,
        modes=modes or evaluate.CONDITIONS,
        memories=combined["memories"],
        budgets=combined["budget"],
        selections=combined["selection"] or (None,),
        codecs=combined["codec"] or (None,),
        answer_tokens=answer_tokens,
        report=lambda row: note(" ".join(filter(None, _cells(row)))),
        progress=Progress.of_context(),
    )
    if plot:
        evaluate.plot(report, plot)
    columns = ("mode", "memories", "budget", "selection", "codec", "a memory", "loss", "recovered")
    explanation = (
        f"{report.questions} questions. Loss is nats per token of the right answer; recovered is "
        f"the share of what the right reference, pasted as text (oracle), gains; right are greedy "
        f"answers that contain it."
    )
    rows = map(_cells, report.rows)
    return report.to_json(), (*columns, "right", "first token"), rows, explanation


def _cells(row: Any) -> tuple[str, ...]:
    """One row of the table."""
    return (
        row.mode,
        str(row.memories or ""),
        row.budget or "",
        row.selection or "",
        row.codec or "",
        human_bytes(row.record_bytes) if row.record_bytes else "",
        f"{row.nll:.3f}",
        "" if row.recovered is None else f"{row.recovered:.1%}",
        "" if row.right is None else f"{row.right:.0%}",
        human_seconds(row.first_token_seconds),
    )


def _task(
    task: str,
    file: str,
    limit: int | None,
    others: str | None,
    options: Options,
    budget: str,
    answer_tokens: int,
) -> tuple[Any, ...]:
    """Measure one of the other tasks; return what ``_questions`` returns."""
    from .. import evaluate

    tasks: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
        "recite": (evaluate.read_documents, evaluate.spread, evaluate.recite),
        "update": (evaluate.read_questions, evaluate.spread_documents, evaluate.update),
        "choice": (evaluate.read_choices, evaluate.spread, evaluate.choose),
    }
    read, spread, measure = tasks[task]
    unrelated = evaluate.read_documents(others) if others else []
    lines = spread(read(file), limit)
    with evaluate.TemporaryStore(options, budget, Progress.of_context()) as store:
        table = measure(store, lines, others=unrelated, answer_tokens=answer_tokens)
    return table.to_json(), table.columns, table.cells(), table.explanation
