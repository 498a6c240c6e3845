"""The chat in the terminal."""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import click

from ..config import MEMORY_MODES, NOTHING_FITS, Generation, Options, cache_folder
from ..errors import M3Error
from ..text import scrub_line
from .documents import INTERRUPTED
from .facts import echo_remembered
from .facts import learn as learn_facts
from .hints import after_answer, task_of
from .options import (
    READING,
    add_options,
    choose_model,
    command,
    conversation_options,
    memory_options,
    open_assistant,
    set_on_signals,
    yes_option,
)
from .render import (
    Progress,
    Shown,
    dim,
    echo_answer,
    echo_memorized,
    echo_sources,
    named,
    note,
    short_path,
    terminal_width,
)

if TYPE_CHECKING:
    from ..assistant import Assistant
    from ..chat.chat import Chat
    from ..store import Filter

_KEYS = ("set enable-bracketed-paste on", r'"\e\C-m": "\C-v\C-j"')  # Alt-Enter breaks the line
_PASTED = 0.03  # seconds within which the lines of a paste follow each other
HELP = (
    ("/help", "show this list"),
    ("/sources", "show what the last answer drew on"),
    ("/memorize PATH", "read a file or folder into memory"),
    ("/remember FACT", "memorize a sentence; it replaces an earlier one about the same thing"),
    ("/forget PATH", "erase a document or folder from memory"),
    ("/memory explicit|text|off", "read memories, paste the same text, or neither"),
    ("/model", "show the model and how it is used"),
    ("/reset", "begin a new conversation"),
    ("/save FILE", "write the conversation to a file: Markdown (.md) or JSON lines"),
    ("/quit", "end the chat, as Ctrl-D does; Ctrl-C stops an answer"),
    ("Alt-Enter", "a line break; lines pasted together are one message"),
)


@command("m3mlx chat --session garden --remember", as_json=False)
@add_options(
    session=("Keep the conversation under this name, or continue it.", "NAME"),
    remember="At the end, memorize the conversation as a document.",
    learn="Propose facts from what you say; each is shown, and kept if you want it.",
)
@conversation_options(query="message")
@memory_options("also", *READING)
@yes_option
def chat(
    session: str | None,
    remember: bool,
    learn: bool,
    memory: str,
    generation: Generation,
    system_prompt: str | None,
    only: Filter | None,
    options: Options,
    yes: bool,
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
    with open_assistant(choose_model(options, yes)) as assistant:
        Progress.of_context()("loading", 0, 0)
        opened = assistant.chat(memory=memory, system=system_prompt, only=only)
        terminal = _Terminal(assistant, opened, generation, session, learn)
        terminal.begin()
        with _line_editing(assistant):
            for line in _lines():
                if not terminal.answer(line.strip()):
                    break
        if remember and (name := history.remember(assistant, session, terminal.said)):
            note(f"Memorized as {name}; m3mlx forget {shlex.quote(name)} erases it.")


class _Terminal:
    """A chat in the terminal.

    Attributes:
        said: messages since the beginning, also before a reset.
        shown: the last answer; None before the first.
    """

    def __init__(
        self,
        assistant: Assistant,
        chat: Chat,
        generation: Generation,
        session: str | None,
        learn: bool = False,
    ):
        self.assistant, self.chat, self.learn = assistant, chat, learn
        self.generation, self.session = generation, session
        self.said: list[dict[str, str]] = []
        self.shown: Shown | None = None
        self.question = ""

    def begin(self) -> None:
        """Load what the first answer needs, so that errors show at once."""
        from .. import sessions as history
        from ..store import MemoryStore

        known = MemoryStore.exists(self.assistant.store_path)
        if known and self.chat.memory == "explicit":
            self.assistant.check()
        name = self.assistant.decoder.name
        Progress.of_context().close()
        count = len(self.assistant.documents()) if known else 0
        note(f"{name}, {count} document{'s' * (count != 1)} in memory. /help lists commands.")
        if self.session is not None and (kept := history.recent(self.assistant, self.session)):
            self.chat.messages += kept
            note(f"Continuing {self.session}: {len(kept)} messages are read again.")

    def answer(self, line: str) -> bool:
        """Run a command or answer a question; return False to end the chat."""
        if line == "/quit":
            return False
        try:
            if line.startswith("/") and "\n" not in line:
                self._command(line)
            elif line:
                self._send(line)
                if self.learn:
                    learn_facts(line, self.assistant.remember)
        except M3Error as error:
            click.echo(f"Error: {scrub_line(str(error))}", err=True)
        except KeyboardInterrupt:  # a second Ctrl-C, or one after the answer
            if not sys.stdin.isatty():
                raise
            click.echo()
        return True

    def _send(self, message: str) -> None:
        from .. import sessions as history

        said, left_out = len(self.chat.messages), self.chat.left_out
        try:
            stop = Event()  # ends an answer between two tokens, so that the caches stay whole
            with set_on_signals(stop, signal.SIGINT):
                steps = self.chat.send(message, self.generation)
                self.shown = echo_answer(steps, stop.is_set, think=self.generation.think)
                self.question = message
        except (KeyboardInterrupt, M3Error):
            if len(self.chat.messages) != said:  # its caches may hold half a step
                self.chat.reset()
                note("A new conversation begins.")
            raise
        if self.chat.left_out > left_out:
            note(
                f"The context of {self.assistant.decoder.name} is full: the first "
                f"{self.chat.left_out} messages of this conversation are left out."
            )
        self.said += self.chat.messages[-2:]
        if self.session is not None:
            history.keep(self.assistant, self.session, self.chat.messages[-2:])
        for span, hits in self.shown.spans.items():
            if used := [hit for hit in hits if hit in self.shown.used]:
                words = scrub_line(" ".join(self.shown.texts.get(span, "").split()[:5]))
                of = f"“{words} …” from " if len(self.shown.spans) > 1 else "From "
                dim(f"[{of}{named(used)}]")
        if self.chat.memory != "off" and not self.shown.sources:
            note(NOTHING_FITS)
        if task := task_of(message):
            usage = next(row for row in HELP if row[0].startswith(f"/{task}"))
            note(f"If that was about m3mlx: {usage[0]}, to {usage[1]}; /help lists all.")
        after_answer(self.assistant.decoder.name, self.shown.timings)

    def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        try:
            words = shlex.split(rest)
        except ValueError:  # an apostrophe, not a quote
            words = [rest.strip()]
        match name, words:
            case "/help", []:
                _echo_help()
            case "/sources", []:
                if self.shown and self.shown.sources:
                    echo_sources(self.shown, self.question)
                else:
                    note("The last answer drew on no document." if self.shown else "No answer yet.")
            case "/model", []:
                self._echo_model()
            case "/memorize", [_, *_]:
                try:
                    echo_memorized(self.assistant.memorize(words, cold=True))
                except KeyboardInterrupt:
                    note(INTERRUPTED)
            case "/remember", [_, *_]:
                echo_remembered(self.assistant.remember(rest))
            case "/forget", [_, *_]:
                for document in self.assistant.forget(words).documents:
                    click.echo(f"Forgot {scrub_line(document.path)}")
            case "/memory", []:
                click.echo(self.chat.memory)
            case "/memory", [mode] if mode in MEMORY_MODES:
                self.chat.memory = mode
            case "/memory", _:
                raise M3Error(f"memory is one of {', '.join(MEMORY_MODES)}, not {rest}")
            case "/reset", []:
                self.chat.reset()
                self.shown = None
            case "/save", [file]:
                _save(self.chat.messages, Path(file).expanduser())
            case _:
                raise M3Error(f"{line}: no such command; /help lists all")

    def _echo_model(self) -> None:
        decoder, options = self.assistant.decoder, self.assistant.options
        rows = {
            "model": decoder.name,
            "adapter": str(decoder.adapter_path or "none"),
            "context": f"{decoder.context_tokens or 'unknown'} tokens",
            "memory": f"{self.chat.memory}, {self.assistant.memories} for each 64 tokens",
            "retrieval": options.retrieval,
            "answers": f"up to {self.generation.max_tokens} tokens",
            "store": str(self.assistant.store_path),
        }
        for name, value in rows.items():
            click.echo(f"{name:9}  {scrub_line(short_path(value))}")


def _echo_help() -> None:
    formatter = click.HelpFormatter(width=terminal_width())
    formatter.write_dl(HELP)
    click.echo(formatter.getvalue(), nl=False)


def _lines() -> Iterator[str]:
    """Messages that the user types or pastes, or lines that a script pipes in."""
    typed = sys.stdin.isatty()
    prompt = "> " if typed and sys.stdout and sys.stdout.isatty() else ""
    while True:
        try:
            line = input(prompt)
            while typed and _is_pasting():
                line += "\n" + input()
            yield line
        except EOFError:
            if prompt:
                click.echo()
            return
        except KeyboardInterrupt:
            if not typed:
                raise
            click.echo()


def _is_pasting() -> bool:
    """Return whether more lines are there already, where the line editor does not say so."""
    if "libedit" not in _line_editor():
        return False
    return bool(select.select([sys.stdin], [], [], _PASTED)[0])


def _line_editor() -> str:
    if find_spec("readline") is None:
        return "libedit"  # or none
    import readline

    return "libedit" if "libedit" in (readline.__doc__ or "") else "readline"


@contextmanager
def _line_editing(assistant: Assistant) -> Iterator[None]:
    """Give line editing and a history in a terminal, if Python has readline.

    The history lies in the store and goes when a document or session does; an encrypted one has
    none.
    """
    if find_spec("readline") is None or not sys.stdin.isatty():
        yield
        return
    import readline

    from ..store.sessions import TYPED

    for line in _KEYS if _line_editor() == "readline" else ():
        readline.parse_and_bind(line)
    (cache_folder() / "chat-history").unlink(missing_ok=True)  # where earlier releases had it
    if not assistant.has_store() or assistant.store().encrypted:
        yield
        return
    file = assistant.store_path / TYPED
    before = 0
    with suppress(OSError):  # missing, or written by another readline
        readline.read_history_file(file)
        before = readline.get_current_history_length()
    try:
        yield
    finally:
        if before and not file.exists():  # something was forgotten meanwhile
            for _ in range(before):
                readline.remove_history_item(0)
        with suppress(OSError):  # the chat works without a history
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))  # it holds questions
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
        raise M3Error(f"{file}: the file exists already; name another one") from error
    except OSError as error:
        raise M3Error(f"{file}: cannot be written ({error.strerror})") from error
    note(f"Saved {len(messages)} messages to {file}.")
