"""The commands remember and facts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..config import Options
from ..text import scrub_line
from .options import add_options, command, encrypt_options, memory_options, open_assistant
from .render import dim, echo_json, minute, note

if TYPE_CHECKING:
    from ..facts.facts import Remembered
    from ..store import StoredFact


@command('m3mlx remember "Ada Quill lives in Lugano."')
@click.argument("fact", metavar="FACT")
@add_options(
    by=("Who said it.", "NAME", ""),
    keep_both="Replace no earlier fact about the same thing.",
)
@encrypt_options
@memory_options("encoder", "adapter_path")
def remember(
    fact: str, by: str, keep_both: bool, encrypt: str | None, options: Options, as_json: bool
) -> None:
    """Memorize a fact: a sentence, or a few.

    A later fact about the same thing takes the place of the earlier one, which stays in its
    history (m3mlx facts --history) and is not read any more.
    """
    with open_assistant(options, encrypt=encrypt) as assistant:
        done = assistant.remember(fact, by=by, keep_both=keep_both)
    _show(done, as_json)


def _show(done: Remembered, as_json: bool) -> None:
    if as_json:
        replaced = [fact_json(fact) for fact in done.replaced]
        echo_json({**fact_json(done.fact), "replaces": replaced, "known": done.known})
    else:
        echo_remembered(done)


def echo_remembered(done: Remembered) -> None:
    """Print what was remembered, and what it replaces."""
    word = "Known already" if done.known else "Remembered"
    click.echo(f"{word}: {scrub_line(done.fact.text)}")
    for fact in done.replaced:
        click.echo(f"replaces: {scrub_line(fact.text)} ({_source(fact.said, fact.by)})")


def _source(said: str, by: str) -> str:
    return scrub_line(f"{minute(said)}, {by}" if by else minute(said))


def fact_json(fact: StoredFact) -> dict[str, Any]:
    """A fact as all commands print it."""
    from ..facts.facts import triples

    history = [vars(version) for version in fact.history]
    said = [vars(found) for found in triples(fact.text)]
    return {**vars(fact), "history": history, "triples": said}


@command('m3mlx facts --about "Ada Quill" --history')
@click.argument("text", metavar="[TEXT]", required=False)
@add_options(
    about=("Only facts with this subject or object, or with all of these words.", "NAME", ""),
    history="Show what each fact has replaced too.",
    edit=("Give the fact with this number the TEXT; the old one stays in its history.", int),
    by=("Who says the TEXT, instead of who said it before.", "NAME", ""),
)
@memory_options("encoder", "adapter_path")
def facts(
    text: str | None,
    about: str,
    history: bool,
    edit: int | None,
    by: str,
    options: Options,
    as_json: bool,
) -> None:
    """List what was remembered, or change it; m3mlx forget erases it."""
    if (edit is None) != (text is None) or (by and edit is None) or (about and edit is not None):
        raise click.UsageError("--edit takes a number and the TEXT; --about and --by do not mix.")
    with open_assistant(options) as assistant:
        if edit is not None and text is not None:
            _show(assistant.change_fact(edit, text, by=by), as_json)
            return
        found = assistant.facts(about)
    if as_json:
        echo_json({"facts": [fact_json(fact) for fact in found]})
        return
    for fact in found:
        click.echo(f"{fact.id:>4}  {scrub_line(fact.text)}  ({_source(fact.said, fact.by)})")
        for version in reversed(fact.history) if history else ():
            source = _source(version.said, version.by)
            dim(f"      replaced: {scrub_line(version.text)}  ({source})")
    if not found:
        note("There is no such fact." if about else "No fact is remembered yet.")


def learn(said: str, remember: Callable[[str], Remembered]) -> None:
    """Propose the facts in what the user said, and remember those that the user wants kept."""
    from ..facts.learn import proposals

    for sentence in proposals(said):
        if click.confirm(f"Remember: {scrub_line(sentence)}", default=False, err=True):
            echo_remembered(remember(sentence))
