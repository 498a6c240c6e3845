"""Conversations that are kept: gone on with, listed, and memorized like any document."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from .assistant import Assistant
from .errors import M3Error
from .store import Sessions
from .store.sessions import CONVERSATION

RECENT = 20  # messages that a conversation is gone on with


def check_name(name: str) -> None:
    """Raises M3Error for what cannot name a session, and so a document."""
    if not re.fullmatch(r"\w[\w -]{0,98}\w|\w", name):
        raise M3Error(
            f"{name[:40]!r} cannot name a session: use up to 100 letters, digits, spaces, _ and -"
        )


def sessions(assistant: Assistant) -> Sessions:
    """The sessions of an assistant's store, to be closed by the caller.

    Raises:
        StoreError: nothing is memorized yet, so that there is no store to keep them in.
    """
    return assistant.store().sessions()


def keep(assistant: Assistant, name: str, messages: Sequence[dict[str, str]]) -> None:
    """Add messages to a session."""
    check_name(name)
    with sessions(assistant) as kept:
        kept.add(name, messages)


def recent(assistant: Assistant, name: str) -> list[dict[str, str]]:
    """The last messages of a session, to go on with: questions and answers in turn."""
    check_name(name)
    with sessions(assistant) as kept:
        said = kept.messages(name)[-RECENT:]
    return [{"role": message.role, "content": message.content} for message in said]


def remember(
    assistant: Assistant, name: str | None, messages: Sequence[dict[str, str]]
) -> str | None:
    """Memorize a conversation as a document, in place of what was remembered of it before.

    Args:
        name: of a session, all of which is remembered; None for a name that tells the time.
        messages: what was said, where there is no session.

    Returns:
        The document's name, by which it is forgotten; None if nothing was said.
    """
    if name is not None:
        check_name(name)
        with sessions(assistant) as kept:
            messages = [vars(message) for message in kept.messages(name)]
    if not messages:
        return None
    name = CONVERSATION + (name or f"{datetime.now():%Y-%m-%d %H-%M-%S}")
    said = [f"{message['role'].capitalize()}: {message['content'].strip()}" for message in messages]
    done = assistant.memorize(contents={name: "\n\n".join(said).encode("utf-8", "replace")})
    for error in done.failed:
        raise error
    return name
