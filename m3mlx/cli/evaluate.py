"""The command eval, which measures what memory is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..config import CODECS, MEMORIES, SELECTIONS, Options, digest
from ..errors import M3Error
from ..train.settings import parse_budget
from .options import PATH, add_options, command, memory_options
from .render import Progress, dim, echo_json, echo_table, human_seconds, note

TASKS = ("questions", "recite", "update", "edits", "choice")


@command("m3mlx eval questions.jsonl --memories 5 --memories 20 --keep results", name="eval")
@click.argument("file", type=PATH, metavar="FILE")
@add_options(
    task=(
        "Answer questions, recite documents, notice a changed document, tell changed facts, or "
        "choose an answer.",
        TASKS,
        "questions",
    ),
    memories=(
        f"References that the search finds to read as memories; as many as first given are also "
        f"pasted.  [default: {MEMORIES}]",
        [click.IntRange(min=1)],
    ),
    budget=(
        "Tokens per head, such as calibrated:8, uniform:8 or half:8 (first half of the layers).",
        ["KIND:N"],
        ("auto",),
    ),
    selection=("Score that selects the tokens a memory keeps.", [SELECTIONS]),
    codec=("Bits of keys and values on disk.", [tuple(CODECS)]),
    mode=(
        "Measure only nothing (off), the gold passage as text (oracle), references as text, or "
        "memories (explicit); may be repeated.",
        [("off", "oracle", "text", "explicit")],
    ),
    answer_tokens=(
        "Length of greedy answers; 0 measures the likelihood of right ones instead.",
        click.IntRange(min=0),
        32,
    ),
    instruction=("Words behind each question, such as how long an answer should be.", "TEXT", ""),
    limit=("Number of questions, lines or changed documents, evenly spread.", click.IntRange(1)),
    keep=(
        "Keep stores and results in this folder, and go on there.",
        click.Path(file_okay=False, path_type=Path),
    ),
    others=("Unrelated documents to memorize too: lines of JSON with a document.", "FILE"),
    plot=("Draw F1 against bytes of a memory.", "FILE.svg"),
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
    instruction: str,
    keep: Path | None,
    **combined: tuple[Any, ...],
) -> None:
    """Measure what memory is worth.

    FILE is a published set (SQuAD, XQuAD, NQ-open as in Lost in the Middle, HotpotQA,
    2WikiMultihopQA, MuSiQue, LoCoMo, needle tasks of RULER), or has a JSON object in each line,
    with document, question and answer or answers. --memories, --budget, --selection and --codec
    may be repeated: all combinations are compared.

    \b
    --task recite  reads document alone;
    --task update  also reads changed, another answer that replaces the first;
    --task edits   reads subject, question, rephrase, old, new and unrelated;
    --task choice  reads question, choices, answer and perhaps document.
    """
    if plot and (task != "questions" or not plot.endswith(".svg")):
        raise click.UsageError("--plot draws the task questions, into a file named .svg.")
    if others and task == "questions":
        raise click.UsageError("--others is for the tasks recite, update, edits and choice.")
    for text in combined["budget"]:
        try:
            parse_budget(text)
        except M3Error as error:
            raise click.BadParameter(str(error), param_hint="--budget") from error
    if task == "questions":
        asking = {"modes": mode, "answer_tokens": answer_tokens, "instruction": instruction}
        json, shown = _questions(file, limit, plot, keep, options, asking, combined)
    else:
        if (
            mode
            or (keep and task != "edits")
            or instruction
            or any(len(values) > 1 for values in combined.values())
        ):
            raise click.UsageError(
                f"--task {task} takes no --mode, --keep and --instruction, and one value of each "
                f"option."
            )
        given = {name: values[0] for name, values in combined.items() if values}
        budget = given.pop("budget")
        options = replace(options, **given)
        json, shown = _task(task, file, limit, others, options, budget, answer_tokens, keep)
    if as_json:
        echo_json(json)
        return
    columns, rows, *explanations = shown
    echo_table(columns, rows)
    for explanation in explanations:
        dim(explanation)


def _questions(
    file: str,
    limit: int | None,
    plot: str | None,
    keep: Path | None,
    options: Options,
    asking: dict[str, Any],
    combined: dict[str, tuple[Any, ...]],
) -> tuple[dict, tuple[Any, ...]]:
    """Answer questions in every mode; return JSON, and columns, rows and their explanation."""
    from .. import evaluate

    asking["modes"] = asking["modes"] or evaluate.CONDITIONS
    asking["memories"] = combined["memories"] or (MEMORIES,)
    report = evaluate.evaluate(
        evaluate.read_questions(file).limited(limit),
        options,
        evaluate.How(**asking),
        budgets=combined["budget"],
        selections=combined["selection"] or (None,),
        codecs=combined["codec"] or (None,),
        keep=keep,
        report=lambda row: note(" ".join(filter(None, _cells(row)))),
        progress=Progress.of_context(),
    )
    if plot:
        evaluate.plot(report, plot)
    measured: tuple[str, ...] = ("exact", "F1", "contains", "F1 − text")
    if not asking["answer_tokens"]:
        measured = ("loss", "recovered")
    columns = ("mode", "references", "budget", "selection", "codec", "bytes per token", *measured)
    recall = ", ".join(f"{found} among the first {k}" for k, found in report.recall.items())
    explanations = [
        f"{report.questions} questions about {report.documents} documents of {report.tokens} "
        f"tokens. Of their passages the search finds {recall or 'none, as none are named'}; "
        f"something fits {report.fitting} of the questions. "
        + (_ANSWERED if asking["answer_tokens"] else _LIKELIHOOD)
    ]
    for row in report.rows:
        if row.kinds:
            kinds = (f"{kind} {f1:.1%} of {n}" for kind, (f1, n) in row.kinds.items())
            explanations.append(f"F1, {row.mode} {row.memories or ''}: {', '.join(kinds)}.")
    rows = map(_cells, report.rows)
    return report.to_json(), ((*columns, "first token"), rows, *explanations)


_ANSWERED = (
    "Shares with their 95 % interval. F1 − text: the difference to pasted text, question by "
    "question. Bytes per token: of all memories, by tokens of the documents."
)
_LIKELIHOOD = (
    "Loss is nats per token of the right answer; recovered is the share of what the gold passage, "
    "pasted as text (oracle), gains."
)


def _cells(row: Any) -> tuple[str, ...]:
    """One row of the table."""
    measured: tuple[str, ...]
    if row.nll is None:
        against = row.against_text
        difference = ""
        if against:
            difference = (
                f"{100 * against.value:+.1f} ({100 * against.low:+.0f}–{100 * against.high:+.0f})"
            )
        measured = (str(row.exact), str(row.f1), str(row.contains), difference)
    else:
        measured = (f"{row.nll:.3f}", "" if row.recovered is None else f"{row.recovered:.1%}")
    return (
        row.mode,
        str(row.memories or ""),
        row.budget or "",
        row.selection or "",
        row.codec or "",
        f"{row.token_bytes:.0f}" if row.token_bytes else "",
        *measured,
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
    keep: Path | None,
) -> tuple[dict, tuple[Any, ...]]:
    """Measure one of the other tasks; return what ``_questions`` returns."""
    from .. import evaluate

    read: dict[str, Callable[..., Any]] = {
        "recite": evaluate.read_documents,
        "choice": evaluate.read_choices,
        "edits": evaluate.read_edits,
    }
    measure: dict[str, Callable[..., Any]] = {
        "recite": evaluate.recite,
        "update": evaluate.update,
        "choice": evaluate.choose,
        "edits": partial(evaluate.edits, keep=keep),
    }
    asked: Any
    if task == "update":
        asked = evaluate.read_questions(file).with_documents(limit)
    else:
        asked = evaluate.spread(read[task](file), limit)
    unrelated = evaluate.read_documents(others) if others else []
    name = digest([vars(each) for each in asked]) if keep else ""
    with evaluate.EvaluationStore(
        options, budget, Progress.of_context(), keep=keep, name=name
    ) as store:
        table = measure[task](store, asked, others=unrelated, answer_tokens=answer_tokens)
    return table.to_json(), (table.columns, table.cells(), table.explanation)
