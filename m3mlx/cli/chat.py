"""The chat in the terminal."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from ..config import CHUNK_TOKENS, MEMORY_MODES, Generation, Options, cache_folder
from ..errors import M3Error
from ..text import cite, scrub_line
from .documents import INTERRUPTED
from .options import (
    READING,
    also_option,
    common_options,
    example,
    filter_options,
    generation_options,
    memory_mode,
    memory_options,
    open_assistant,
    system_prompt,
)
from .render import Spans, dim, echo_answer, echo_memorized, echo_sources, note

if TYPE_CHECKING:
    from ..assistant import Assistant
    from ..chat.chat import Chat
    from ..store import Filter

HELP = """\
/help                         this list
/sources                      what the last answer drew on
/memorize PATH                read a file or folder into memory
/forget PATH                  erase a document or folder from memory
/memory explicit|text|off     read memories, paste the same text, or neither
/reset                        begin a new conversation
/save FILE                    keep the conversation, as Markdown (.md) or JSON lines
/quit                         end; so does Ctrl-D. Ctrl-C stops an answer"""


@click.command(epilog=example("m3mlx chat --session garden --remember"))
@memory_mode
@click.option("--session", metavar="NAME", help="Keep the conversation, or go on with a kept one.")
@click.option(
    "--remember", is_flag=True, help="At the end, memorize the conversation as a document."
)
@generation_options(query="message")
@system_prompt
@filter_options
@also_option
@memory_options(*READING)
@common_options
def chat(
    memory: str,
    session: str | None,
    remember: bool,
    generation: Generation,
    system_prompt: str | None,
    only: Filter | None,
    also: tuple[str, ...],
    options: Options,
) -> None:
    """Talk with the model about your documents."""
    from .. import sessions as history

    if session is not None:
        try:
            history.check_name(session)
        except M3Error as error:
            raise click.UsageError(str(error)) from error
    if sys.stdin is None:
        raise M3Error("there is no standard input to chat from")
    with open_assistant(options, also=also) as assistant:
        opened = assistant.chat(memory=memory, system=system_prompt, only=only)
        conversation = _Conversation(assistant, opened, generation, session)
        conversation.begin()
        with _editing():
            for line in _lines():
                if not conversation.answer(line.strip()):
                    break
        if remember and (name := history.remember(assistant, session, conversation.said)):
            note(f"Remembered as {name}; m3mlx forget {shlex.quote(name)} erases it.")


class _Conversation:
    """One conversation in the terminal."""

    def __init__(
        self,
        assistant: Assistant,
        chat: Chat,
        generation: Generation,
        session: str | None,
    ):
        self.assistant, self.chat = assistant, chat
        self.generation, self.session = generation, session
        self.said: list[dict[str, str]] = []  # since the beginning, also before a reset
        self.spans: Spans = {}  # of the last answer

    def begin(self) -> None:
        """Load what the first answer needs, so that what is wrong shows at once."""
        from .. import sessions as history
        from ..store import MemoryStore

        known = MemoryStore.exists(self.assistant.store_path)
        if known and self.chat.memory == "explicit":
            self.assistant.check()
        name = self.assistant.decoder.name
        count = len(self.assistant.documents()) if known else 0
        note(f"{name}, {count} documents in memory. /help lists commands.")
        if self.session is not None and (kept := history.recent(self.assistant, self.session)):
            self.chat.messages += kept
            note(f"Going on with {self.session}: {len(kept)} messages are read again.")

    def answer(self, line: str) -> bool:
        """Do what a line says. False ends the chat."""
        if line == "/quit":
            return False
        try:
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._send(line)
        except M3Error as error:
            click.echo(f"Error: {scrub_line(str(error))}", err=True)
        except KeyboardInterrupt:  # a second one, or one that came too late
            if not sys.stdin.isatty():
                raise
            click.echo()
        return True

    def _send(self, message: str) -> None:
        from .. import sessions as history

        said = len(self.chat.messages)
        try:
            with _stoppable() as stopped:
                steps = self.chat.send(message, self.generation)
                self.spans, _ = echo_answer(steps, stopped)
        except (KeyboardInterrupt, M3Error):
            if len(self.chat.messages) != said:  # nobody knows what its caches hold
                self.chat.reset()
                note("The conversation starts anew.")
            raise
        self.said += self.chat.messages[-2:]
        if self.session is not None:
            history.keep(self.assistant, self.session, self.chat.messages[-2:])
        for span, hits in self.spans.items():
            first = span * CHUNK_TOKENS + 1
            names = dict.fromkeys(cite(hit, hit.store).rpartition(os.sep)[2] for hit in hits)
            if names:
                dim(f"[tokens {first}–{first + CHUNK_TOKENS - 1}: {', '.join(names)}]")

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        try:
            words = shlex.split(rest)
        except ValueError:  # an apostrophe, and not a quote
            words = [rest.strip()]
        match name, words:
            case "/help", []:
                click.echo(HELP)
            case "/sources", []:
                echo_sources(self.spans)
            case "/memorize", [_, *_]:
                try:
                    echo_memorized(self.assistant.memorize(words))
                except KeyboardInterrupt:
                    note(INTERRUPTED)
            case "/forget", [_, *_]:
                for document in self.assistant.forget(words)[0]:
                    click.echo(f"Forgot {scrub_line(document.path)}")
            case "/memory", []:
                click.echo(self.chat.memory)
            case "/memory", [mode] if mode in MEMORY_MODES:
                self.chat.memory = mode
            case "/reset", []:
                self.chat.reset()
                self.spans = {}
            case "/save", [file]:
                _save(self.chat.messages, Path(file).expanduser())
            case _:
                raise M3Error(f"{line}: no such command; /help lists them")


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Tell whether Ctrl-C was pressed.

    An answer ends between two tokens, so that the conversation's caches stay whole. Who does
    not want to wait for that presses again.
    """
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """What the user types, or a script pipes in."""
    typed = sys.stdin.isatty()
    prompt = "> " if typed and sys.stdout and sys.stdout.isatty() else ""
    while True:
        try:
            yield input(prompt)
        except EOFError:
            if prompt:
                click.echo()
            return
        except KeyboardInterrupt:
            if not typed:
                raise
            click.echo()


@contextmanager
def _editing() -> Iterator[None]:
    """Line editing and a history in a terminal, where Python has readline."""
    try:
        import readline
    except ImportError:
        readline = None
    if readline is None or not sys.stdin.isatty():
        yield
        return
    file = cache_folder() / "chat-history"
    with suppress(OSError):  # there is none, or it is of another readline
        readline.read_history_file(file)
    try:
        yield
    finally:
        with suppress(OSError):  # a history is not worth an error
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))  # it holds what was asked
            readline.set_history_length(1000)
            readline.write_history_file(file)
            file.chmod(0o600)


def _save(messages: list[dict[str, str]], file: Path) -> None:
    if file.suffix.lower() in (".md", ".markdown"):
        parts = [f"**{m['role'].capitalize()}:**\n\n{m['content'].strip()}\n" for m in messages]
        text = "\n".join(parts)
    else:
        text = "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in messages)
    try:
        with open(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as opened:
            opened.write(text.encode("utf-8", "replace"))
    except FileExistsError as error:
        raise M3Error(f"{file}: it exists already; name another file") from error
    except OSError as error:
        raise M3Error(f"{file}: cannot be written ({error.strerror})") from error
    note(f"Saved {len(messages)} messages to {file}.")
