"""A server for existing clients: OpenAI's interface, documents, a chat page, and MCP.

model_thread    the thread that answers and memorizes, its queue, and a thread for what only reads
connections     the HTTP server and its connections
guard           which requests are accepted
documents       list, recall, memorize, view, forget
sessions        conversations that the page keeps
introduction    what the page tells about the model, and what one could ask
conversations   answers, and the caches of the last conversations
chances         how likely tokens were
tool_calls      calls of tools in answers
fields          fields of requests
messages        messages of requests
openai          requests and answers in OpenAI's shape
responses       the same for /v1/responses
app             the endpoints
mcp             the same as tools of the Model Context Protocol
page/           the page at /
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from ..assistant import Assistant
from ..errors import M3Error
from .app import Endpoints
from .connections import http_server
from .guard import Guard, Guarded, Roots, is_loopback
from .introduction import about
from .model_thread import ModelThread

TOOL = {"type": "function", "function": {"name": "m3mlxtool", "parameters": {"type": "object"}}}
TOKEN_CHARACTERS = 16  # minimum length of a token


def prepare(assistant: Assistant) -> None:
    """Load what the first answer needs, so that errors show at the start."""
    _ = assistant.decoder.template, assistant.encoder
    if assistant.has_store():
        assistant.check()
        _ = assistant.format.prefix
    else:
        _ = assistant.plain_prefix


def _write_memories(assistant: Assistant) -> Iterator[object]:
    """Write the memories that documents lack, so few at a time that no request waits long."""
    if assistant.has_store():
        yield from assistant.memories_in_steps(batch=2, wait=0)


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket; port 0 takes a free one.

    Raises:
        M3Error: the address is not this machine's, or is taken.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise M3Error(
            f"{host}:{port}: cannot listen there ({reason}). Give another --port or --host."
        ) from error
    return listener


@dataclass(frozen=True)
class Settings:
    """Where a server listens, whom it answers, and what it may read.

    Attributes:
        host: any but a loopback address needs a token.
        port: 0 takes a free one.
        token: which clients give as their API key.
        names: host names under which other machines call this one.
        roots: folders from which clients may have files read.
        upload_bytes: maximum size of an upload.
        waiting: maximum number of requests that wait.
        cache_bytes: of the caches of conversations together; None for a share of the memory.
        collection: restricts all requests; None lets each name its own.
        cold: write each memory at its first use only, and not also while nothing is asked.
    """

    host: str = "127.0.0.1"
    port: int = 8642
    token: str | None = None
    names: Sequence[str] = ()
    roots: Sequence[str] = ()
    upload_bytes: int = 50_000_000
    waiting: int = 16
    cache_bytes: int | None = None
    collection: str | None = None
    cold: bool = False

    def guard(self) -> Guard:
        """Return the guard of these settings.

        Raises:
            M3Error: the token is missing or too short.
        """
        anywhere, token = not is_loopback(self.host), self.token
        if anywhere and not token:
            raise M3Error(
                f"{self.host} can be reached by other machines, so a token is needed: put one into "
                f"M3MLX_TOKEN or a file named with --token-file"
            )
        if token is not None and len(token) < TOKEN_CHARACTERS:
            raise M3Error(
                f"the token has {len(token)} characters; it needs at least {TOKEN_CHARACTERS}"
            )
        return Guard(tuple(self.names), anywhere, token, self.upload_bytes)


def serve(
    make: Callable[[], Assistant],
    settings: Settings,
    started: Callable[[str], None],
    *,
    mcp: bool = False,
) -> None:
    """Serve the page and the APIs, or with ``mcp`` its tools at /mcp, until a signal ends it.

    Args:
        make: makes the assistant, on the model thread.
        started: called with the address when the server takes requests.

    Raises:
        M3Error: the token is missing, a root is no folder, the address is taken, or a model or
            the store cannot be opened.
    """
    guard, roots = settings.guard(), Roots(settings.roots)
    listener = listen(settings.host, settings.port)
    thread = ModelThread(make, settings.waiting, None if settings.cold else _write_memories)
    apps: list[ASGIApp] = []

    def make_app(assistant: Assistant) -> None:
        prepare(assistant)
        if mcp:
            from .mcp import application  # its library is an extra

            apps.append(Guarded(application(thread, roots), guard))
            return
        name = assistant.decoder.name
        endpoints = Endpoints(
            thread,
            model=Path(name).resolve().name if Path(name).is_dir() else name,
            encoder=assistant.encoder.name,
            roots=roots,
            guard=guard,
            collection=settings.collection,
            cache_bytes=settings.cache_bytes,
            knows_tools=bool(assistant.decoder.template.describe([TOOL])),
            known=about(assistant),
        )
        apps.append(endpoints.app())

    try:
        thread.start(make_app)
        server = http_server(apps[0])
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        with _end_at_signals(server):
            listener.listen()  # whoever connects now waits until uvicorn accepts
            started(f"http://{host}:{listener.getsockname()[1]}{'/mcp' if mcp else ''}")
            asyncio.run(server.serve(sockets=[listener]))
    finally:
        listener.close()
        thread.stop()


@contextmanager
def _end_at_signals(server: uvicorn.Server) -> Iterator[None]:
    """End a server at a signal, also before uvicorn installs its handlers.

    uvicorn raises the signal that has ended it once more at its end; it is ignored then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
