"""Kept conversations: sessions list, show, delete, search."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from ..errors import M3Error
from ..text import scrub, scrub_line
from .options import common_options, example, json_option, open_assistant
from .render import dim, echo_json, echo_table, note

if TYPE_CHECKING:
    from ..store.sessions import Message


@click.group(invoke_without_command=True, epilog=example("m3mlx sessions"))
@json_option
@common_options
@click.pass_context
def sessions(ctx: click.Context, as_json: bool) -> None:
    """List, show, delete or search the conversations that were kept with chat --session."""
    if not ctx.invoked_subcommand:
        _list(as_json)


@sessions.command("list", epilog=example("m3mlx sessions list"))
@json_option
@common_options
def list_sessions(as_json: bool) -> None:
    """List the sessions; the last one spoken in stands at the end."""
    _list(as_json)


def _list(as_json: bool) -> None:
    from ..sessions import sessions

    with open_assistant() as assistant, sessions(assistant) as kept:
        found = kept.list()
    if as_json:
        echo_json({"sessions": [vars(session) for session in found]})
        return
    echo_table(
        ("messages", "begun", "last", "session"),
        ((s.messages, _time(s.begun), _time(s.last), s.name) for s in found),
    )


@sessions.command(epilog=example("m3mlx sessions show garden"))
@click.argument("name")
@json_option
@common_options
def show(name: str, as_json: bool) -> None:
    """Show what was said in a session."""
    from ..sessions import sessions

    with open_assistant() as assistant, sessions(assistant) as kept:
        said = kept.messages(name)
    if not said:
        raise _unknown(name)
    _echo(said, as_json)


@sessions.command(epilog=example("m3mlx sessions delete garden"))
@click.argument("name")
@json_option
@common_options
def delete(name: str, as_json: bool) -> None:
    """Erase a session."""
    from ..sessions import sessions
    from ..store.sessions import CONVERSATION

    with open_assistant() as assistant, sessions(assistant) as kept:
        gone = kept.delete(name)
        remembered = CONVERSATION + name in {doc.path for doc in assistant.documents()}
    if not gone:
        raise _unknown(name)
    if as_json:
        echo_json({"deleted": name, "remembered": remembered})
        return
    click.echo(f"Deleted {scrub_line(name)}")
    if remembered:
        note(f"It is also remembered; m3mlx forget '{CONVERSATION}{scrub_line(name)}' erases that.")


@sessions.command(epilog=example("m3mlx sessions search boiler"))
@click.argument("words")
@json_option
@common_options
def search(words: str, as_json: bool) -> None:
    """Find messages in which all of these words stand."""
    from ..sessions import sessions

    with open_assistant() as assistant, sessions(assistant) as kept:
        found = kept.search(words)
    _echo(found, as_json)


def _unknown(name: str) -> M3Error:
    return M3Error(f"{name}: there is no such session; m3mlx sessions list shows what there is")


def _echo(messages: Iterable[Message], as_json: bool) -> None:
    if as_json:
        echo_json({"messages": [vars(message) for message in messages]})
        return
    for message in messages:
        dim(f"{message.session} {message.number}, {message.role}, {_time(message.said)}")
        click.echo(f"{scrub(message.content.strip())}\n")


def _time(time: str) -> str:
    return time[:16].replace("T", " ")
