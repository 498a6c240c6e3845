"""Commands that answer: ask, demo."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config import NOTHING_FITS, Generation, Options
from ..errors import M3Error
from ..text import scrub_line
from .hints import after_answer, task_of
from .inspect import write_page
from .options import (
    READING,
    add_options,
    choose_model,
    command,
    conversation_options,
    is_verbose,
    memory_options,
    open_assistant,
    yes_option,
)
from .render import Progress, echo_answer, echo_json, echo_sources, echo_table, human_seconds, note

if TYPE_CHECKING:
    from ..chat.step import Timings
    from ..store import Filter


@command(
    'm3mlx ask "Who serviced the boiler?" --path notes',
    'm3mlx ask "And the boat?" --inspect answer.html',
)
@click.argument("question")
@add_options(
    no_sources="Print the answer without its sources.",
    inspect=(
        "Write an HTML page that shows what the answer attended to.",
        click.Path(dir_okay=False, path_type=Path),
    ),
)
@conversation_options(query="chunk")
@memory_options("also", *READING)
@yes_option
def ask(
    question: str,
    no_sources: bool,
    inspect: Path | None,
    memory: str,
    generation: Generation,
    system_prompt: str | None,
    only: Filter | None,
    options: Options,
    yes: bool,
    as_json: bool,
) -> None:
    """Answer one question from memory. QUESTION - reads it from standard input."""
    if question == "-":
        if sys.stdin is None:
            raise M3Error("there is no standard input to read the question from")
        question = sys.stdin.read()
    if inspect and (memory != "explicit" or options.kv_bits):
        raise click.UsageError("--inspect needs --memory explicit, and no --kv-bits.")
    with open_assistant(choose_model(options, yes)) as assistant:
        Progress.of_context()("loading", 0, 0)
        chat = assistant.chat(memory=memory, system=system_prompt, only=only)
        steps, view = chat.send(question, generation), None
        if inspect:
            from ..inspect.answer import AnswerView

            assistant.check()
            view = AnswerView(chat, question)
            steps = view.watch(steps)
        if as_json:
            from ..chat.chat import collect

            collected = collect(steps, memory)
            answer = {**asdict(collected), "note": collected.note}
            keys = [
                "memory",
                "sources",
                "note",
                "timings",
                *(["thoughts"] if generation.think else []),
            ]
            others = {key: answer[key] for key in keys}
            echo_json({"answer": answer["text"], **others})
        else:
            shown = echo_answer(steps, think=generation.think)
        if view and inspect:
            write_page(inspect, view.page().encode())
        model = assistant.decoder.name
    if as_json:
        return
    if shown.sources and not no_sources:
        click.echo()
        echo_sources(shown, question)
    if memory != "off" and not shown.sources:
        note(NOTHING_FITS)
    if is_verbose() and shown.timings:
        note(_timings_text(shown.timings))
    if (task := task_of(question)) in ("forget", "memorize"):
        note(f"If that was about m3mlx: m3mlx {task} PATH; m3mlx --help lists all.")
    after_answer(model, shown.timings)


def _timings_text(timings: Timings) -> str:
    return (
        f"first token after {human_seconds(timings.first_token_seconds)} "
        f"(retrieval {human_seconds(timings.retrieve_seconds)}, "
        f"memories {human_seconds(timings.read_seconds)}, "
        f"prompt of {timings.prompt_tokens} tokens {human_seconds(timings.prefill_seconds)}), "
        f"then {timings.decode_tokens_per_second:.1f} tokens/s"
    )


@command("m3mlx demo")
@memory_options(*(name for name in READING if name != "memories"))
def demo(options: Options, as_json: bool) -> None:
    """Show what memory does, on a few documents and questions."""
    from ..demo import run

    result = run(options, progress=Progress.of_context())
    if as_json:
        echo_json(asdict(result))
        return
    click.echo(
        f"Memorized {len(result.documents)} documents ({result.references} references) in "
        f"{human_seconds(result.memorize_seconds)}: {', '.join(result.documents)}."
    )
    for exchange in result.exchanges:
        click.echo(f"\n{exchange.question}")
        echo_table(
            ("memory", "answer", "sources", "first token"),
            [
                (
                    mode,
                    scrub_line(reply.answer),
                    ", ".join(reply.sources[:2]),
                    human_seconds(reply.first_token_seconds),
                )
                for mode, reply in exchange.replies.items()
            ],
        )
    click.echo(
        "\nThe model never saw these documents in training. With explicit memory it answers from "
        "what it has read once, and nothing is pasted into its prompt; with text the same "
        "reference is pasted; with off it can only guess.\n"
        "Next: m3mlx memorize PATH, then m3mlx chat."
    )
