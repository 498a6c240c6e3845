"""Commands that answer: ask, demo."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config import Generation, Options
from ..errors import M3Error
from ..text import scrub_line
from .inspect import write_page
from .options import (
    READING,
    also_option,
    common_options,
    example,
    filter_options,
    generation_options,
    is_verbose,
    json_option,
    memory_mode,
    memory_options,
    open_assistant,
    system_prompt,
)
from .render import Progress, echo_answer, echo_json, echo_sources, echo_table, human_seconds, note

if TYPE_CHECKING:
    from ..store import Filter


@click.command(
    epilog=example(
        'm3mlx ask "Who serviced the boiler?" --path notes',
        'm3mlx ask "And the boat?" --inspect answer.html',
    )
)
@click.argument("question")
@memory_mode
@generation_options(query="chunk")
@system_prompt
@click.option("--no-sources", is_flag=True, help="Print the answer alone.")
@click.option(
    *("--inspect", "view_file"),
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="OUT.html",
    help="Write a page of what the answer attended to.",
)
@filter_options
@also_option
@memory_options(*READING)
@json_option
@common_options
def ask(
    question: str,
    memory: str,
    generation: Generation,
    system_prompt: str | None,
    no_sources: bool,
    view_file: Path | None,
    only: Filter | None,
    also: tuple[str, ...],
    options: Options,
    as_json: bool,
) -> None:
    """Answer one question from memory. QUESTION - reads it from standard input."""
    question = _from_stdin() if question == "-" else question
    if view_file and (memory != "explicit" or options.kv_bits):
        raise click.UsageError(
            "--inspect needs --memory explicit, and a context of full precision."
        )
    with open_assistant(options, also=also) as assistant:
        chat = assistant.chat(memory=memory, system=system_prompt, only=only)
        steps, view = chat.send(question, generation), None
        if view_file:
            from ..inspect.answer import AnswerView

            assistant.check()
            view = AnswerView(chat, question)
            steps = view.watch(steps)
        if as_json:
            from ..chat.chat import collect

            answer = collect(steps, memory)
            fields = asdict(answer)
            kept = {key: fields[key] for key in ("memory", "sources", "timings")}
            echo_json({"answer": answer.text, **kept})
        else:
            spans, timings = echo_answer(steps)
        if view:
            write_page(view_file, view.page().encode())
    if as_json:
        return
    if spans and not no_sources:
        click.echo()
        echo_sources(spans)
    if is_verbose() and timings:
        note(
            f"first token after {human_seconds(timings.first_token_seconds)} "
            f"(retrieval {human_seconds(timings.retrieve_seconds)}, "
            f"memories {human_seconds(timings.read_seconds)}, "
            f"prompt of {timings.prompt_tokens} tokens {human_seconds(timings.prefill_seconds)}), "
            f"then {timings.decode_tokens_per_second:.1f} tokens/s"
        )


def _from_stdin() -> str:
    if sys.stdin is None:
        raise M3Error("there is no standard input to read the question from")
    return sys.stdin.read()


@click.command(epilog=example("m3mlx demo"))
@memory_options(*(name for name in READING if name != "memories"))
@json_option
@common_options
def demo(options: Options, as_json: bool) -> None:
    """See what memory does, on a few documents."""
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
            (
                (
                    mode,
                    scrub_line(reply.answer),
                    ", ".join(reply.sources[:2]),
                    human_seconds(reply.first_token_seconds),
                )
                for mode, reply in exchange.replies.items()
            ),
        )
    click.echo(
        "\nThe model never saw these documents in training: with explicit memory it answers from "
        "what it has read once, and nothing is pasted into its prompt; with text the same "
        "reference is pasted; with off it can only guess.\n"
        "Next: m3mlx memorize PATH, then m3mlx chat."
    )
