"""Kept conversations: sessions list, show, delete, search."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from ..errors import M3Error
from ..text import scrub, scrub_line
from .options import command, open_assistant
from .render import dim, echo_json, echo_table, minute, note

if TYPE_CHECKING:
    from ..store.sessions import Message


@command("m3mlx sessions", cls=click.Group, invoke_without_command=True)
@click.pass_context
def sessions(ctx: click.Context, as_json: bool) -> None:
    """List, show, search or delete what chat --session keeps."""
    if not ctx.invoked_subcommand:
        ctx.invoke(list_sessions, as_json=as_json)


@command("m3mlx sessions list", name="list", group=sessions)
def list_sessions(as_json: bool) -> None:
    """List the sessions, the most recent one last."""
    from ..sessions import sessions

    with open_assistant() as assistant, sessions(assistant) as kept:
        found = kept.list()
    if as_json:
        echo_json({"sessions": [vars(session) for session in found]})
        return
    echo_table(
        ("messages", "begun", "last", "session"),
        [(s.messages, minute(s.begun), minute(s.last), s.name) for s in found],
    )


@command("m3mlx sessions show garden", group=sessions)
@click.argument("name")
def show(name: str, as_json: bool) -> None:
    """Show the messages of a session."""
    from ..sessions import sessions

    with open_assistant() as assistant, sessions(assistant) as kept:
        said = kept.messages(name)
    if not said:
        raise _unknown(name)
    _echo(said, as_json)


@command("m3mlx sessions delete garden", group=sessions)
@click.argument("name")
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
        path = f"{CONVERSATION}{scrub_line(name)}"
        note(f"It is also memorized as a document; m3mlx forget '{path}' erases that.")


@command("m3mlx sessions search boiler", group=sessions)
@click.argument("words")
def search(words: str, as_json: bool) -> None:
    """Find messages that contain all of these words."""
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
        dim(f"{message.session} {message.number}, {message.role}, {minute(message.said)}")
        click.echo(f"{scrub(message.content.strip())}\n")
