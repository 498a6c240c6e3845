"""Kept conversations: continue them, list them, memorize them like documents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from .assistant import Assistant
from .errors import M3Error
from .store import Sessions
from .store.sessions import CONVERSATION

RECENT = 20  # messages with which a conversation is continued


def check_name(name: str) -> None:
    """Raise M3Error if this cannot name a session, and so a document."""
    if not re.fullmatch(r"\w[\w -]{0,98}\w|\w", name):
        raise M3Error(
            f"{name[:40]!r} cannot name a session: use up to 100 letters, digits, spaces, _ and -"
        )


def sessions(assistant: Assistant) -> Sessions:
    """Open the sessions of an assistant's store; the caller closes them.

    Raises:
        StoreError: nothing is memorized yet, so there is no store to keep them in.
    """
    return assistant.store().sessions()


def keep(assistant: Assistant, name: str, messages: Sequence[dict[str, str]]) -> None:
    """Add messages to a session."""
    check_name(name)
    with sessions(assistant) as kept:
        kept.add(name, messages)


def recent(assistant: Assistant, name: str) -> list[dict[str, str]]:
    """Return the last messages of a session: questions and answers in turn."""
    return _messages(assistant, name)[-RECENT:]


def _messages(assistant: Assistant, name: str) -> list[dict[str, str]]:
    check_name(name)
    with sessions(assistant) as kept:
        return [{"role": m.role, "content": m.content} for m in kept.messages(name)]


def remember(
    assistant: Assistant, name: str | None, messages: Sequence[dict[str, str]]
) -> str | None:
    """Memorize a conversation as a document, replacing an earlier version of it.

    Args:
        name: session to memorize whole; None for a conversation that is named after the time.
        messages: the conversation, if there is no session.

    Returns:
        The document's name, to forget it by; None if nothing was said.
    """
    if name is not None:
        messages = _messages(assistant, name)
    if not messages:
        return None
    name = CONVERSATION + (name or f"{datetime.now():%Y-%m-%d %H-%M-%S}")
    said = [f"{message['role'].capitalize()}: {message['content'].strip()}" for message in messages]
    report = assistant.memorize(contents={name: "\n\n".join(said).encode("utf-8", "replace")})
    for error in report.failed:
        raise error
    return name
