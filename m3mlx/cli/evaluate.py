"""The command that measures what memory is worth: eval."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from ..config import CODECS, SELECTIONS, Options
from ..errors import M3Error
from ..train.settings import parse_budget
from .options import common_options, example, json_option, memory_options
from .render import Progress, dim, echo_json, echo_table, human_bytes, human_seconds, note

TASKS = ("questions", "recite", "update", "choice")
_LISTS = ("memories", "budget", "selection", "codec")  # options that may be repeated


def _budgets(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for text in value:
        try:
            parse_budget(text)
        except M3Error as error:
            raise click.BadParameter(str(error), ctx, param) from error
    return value


def _lists(command: Any) -> Any:
    """The options whose values are combined with each other."""
    for option in (
        click.option("--codec", multiple=True, type=click.Choice(CODECS), help="Bits on disk."),
        click.option(
            "--selection",
            multiple=True,
            type=click.Choice(SELECTIONS),
            help="Score that picks the tokens a memory keeps.",
        ),
        click.option(
            "--budget",
            multiple=True,
            metavar="KIND:N",
            default=("auto",),
            show_default=True,
            callback=_budgets,
            help="Tokens per head, such as calibrated:8, uniform:8 or half:8 (of the layers).",
        ),
        click.option(
            "--memories",
            multiple=True,
            type=click.IntRange(min=1),
            default=(1,),
            show_default=True,
            help="References read or pasted: the best that the search finds, the right one among "
            "them where there is one.",
        ),
    ):
        command = option(command)
    return command


@click.command(
    "eval", epilog=example("m3mlx eval questions.jsonl --memories 1 --memories 5 --answer-tokens 0")
)
@click.argument("file", metavar="FILE.jsonl")
@click.option(
    "--task",
    type=click.Choice(TASKS),
    default="questions",
    show_default=True,
    help="Answer, recite the documents, notice a changed one, or choose an answer.",
)
@_lists
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice(("off", "oracle", "text", "explicit")),
    help="Only these: nothing, the right reference as text, several, memories.",
)
@click.option(
    "--answer-tokens",
    type=click.IntRange(min=0),
    default=32,
    show_default=True,
    help="Length of greedy answers; 0 for likelihood alone, which is quicker.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="So many lines of FILE, or documents to update, evenly spread.",
)
@click.option(
    "--others", metavar="FILE", help="Unrelated documents: lines of JSON with a document."
)
@click.option("--plot", metavar="FILE.svg", help="Draw loss against bytes.")
@memory_options("encoder", "adapter_path", "retrieval")
@json_option
@common_options
def eval_file(
    file: str,
    task: str,
    limit: int | None,
    others: str | None,
    plot: str | None,
    options: Options,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Measure what memory is worth.

    Each line of FILE.jsonl is a JSON object with document, question and answer. --memories,
    --budget, --selection and --codec may be repeated: all combinations are compared.

    \b
    --task recite  reads document alone;
    --task update  also reads changed, another answer that takes the place of the first;
    --task choice  reads question, choices, answer and perhaps document.
    """
    if plot and (task != "questions" or not plot.endswith(".svg")):
        raise click.UsageError("--plot draws the task questions, into a file named .svg.")
    if others and task == "questions":
        raise click.UsageError("--others is for the tasks recite, update and choice.")
    if task == "questions":
        _questions(file, limit, plot, options, as_json, **chosen)
        return
    single = {name: chosen[name] for name in _LISTS}
    if chosen["modes"] or any(len(values) > 1 for values in single.values()):
        raise click.UsageError(f"--task {task} takes no --mode, and one value of each option.")
    given = {name: values[0] for name, values in single.items() if values}
    budget = given.pop("budget")
    options = replace(options, **given)
    _task(task, file, limit, others, options, budget, as_json, chosen["answer_tokens"])


def _questions(
    file: str,
    limit: int | None,
    plot: str | None,
    options: Options,
    as_json: bool,
    **chosen: Any,
) -> None:
    from .. import evaluate

    questions = evaluate.spread(evaluate.read_questions(file), limit)
    report = evaluate.evaluate(
        questions,
        options,
        modes=chosen["modes"] or evaluate.CONDITIONS,
        memories=chosen["memories"],
        budgets=chosen["budget"],
        selections=chosen["selection"] or (None,),
        codecs=chosen["codec"] or (None,),
        answer_tokens=chosen["answer_tokens"],
        report=lambda row: note(" ".join(filter(None, _cells(row)))),
        progress=Progress.of_context(),
    )
    if plot:
        evaluate.plot(report, plot)
    if as_json:
        echo_json(report.to_json())
        return
    names = ("mode", "memories", "budget", "selection", "codec", "a memory", "loss", "recovered")
    echo_table((*names, "right", "first token"), map(_cells, report.rows))
    dim(
        f"{report.questions} questions. Loss is nats per token of the right answer; recovered is "
        f"the share of what the right reference, pasted as text (oracle), gains; right are greedy "
        f"answers that contain it."
    )


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
    as_json: bool,
    answer_tokens: int,
) -> None:
    from .. import evaluate

    read, measure = {
        "recite": (evaluate.read_documents, evaluate.recite),
        "update": (evaluate.read_questions, evaluate.update),
        "choice": (evaluate.read_choices, evaluate.choose),
    }[task]
    unrelated = evaluate.read_documents(others) if others else []
    limited = evaluate.spread_documents if task == "update" else evaluate.spread
    lines = limited(read(file), limit)
    with evaluate.TemporaryStore(options, budget, Progress.of_context()) as store:
        table = measure(store, lines, others=unrelated, answer_tokens=answer_tokens)
    if as_json:
        echo_json(table.to_json())
        return
    echo_table(table.columns, table.cells())
    dim(table.explanation)
