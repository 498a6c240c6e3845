"""A server for what people already use: OpenAI's interface, documents, and a page to chat on.

owner       the one thread that touches MLX and the store, and its queue
guard       who may ask, and for what
openai      requests and answers in OpenAI's shape
answers     conversations that come whole with every request
memories    documents: list, add, find, forget
app         paths, and the way from HTTP to the owner and back
page/       the page at /
"""

from __future__ import annotations

import asyncio
import logging
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
from .app import Server
from .guard import Guard, Guarded, Roots, is_loopback
from .owner import Owner

CONNECTIONS = 1024  # at the same time, of which the guard answers fewer
TOKEN = 16  # characters that a token needs at least
KEEP_ALIVE = 30  # seconds that a connection may idle


def model_name(assistant: Assistant) -> str:
    """The name of the decoder, without the folders of a path."""
    name = assistant.decoder.name
    return Path(name).resolve().name if Path(name).is_dir() else name


def prepare(assistant: Assistant) -> None:
    """Load what the first answer needs, so that what is wrong shows at once."""
    _ = assistant.decoder.template, assistant.encoder
    if assistant.has_store():
        assistant.check()
        _ = assistant.format.prefix
    else:
        _ = assistant.plain_prefix


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        M3Error: the address is not this machine's, or somebody listens there.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(found[0], socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(found[4])
    except OSError as error:
        reason = error.strerror or str(error)
        raise M3Error(
            f"{host}:{port}: cannot listen there ({reason}). Give another --port or --host."
        ) from error
    return listener


@dataclass(frozen=True)
class Settings:
    """Where a server listens, to whom, and what it may read.

    Attributes:
        host: anything but a loopback address needs a token.
        port: 0 takes a free one.
        token: which clients give as their API key.
        names: under which other machines call this one.
        roots: folders from which clients may have files read.
        upload_bytes: size of an upload, at most.
        waiting: so many requests may wait.
        collection: that all requests are restricted to; None lets each name its own.
    """

    host: str = "127.0.0.1"
    port: int = 8642
    token: str | None = None
    names: Sequence[str] = ()
    roots: Sequence[str] = ()
    upload_bytes: int = 50_000_000
    waiting: int = 16
    collection: str | None = None

    def guard(self) -> Guard:
        """The guard that goes with them.

        Raises:
            M3Error: the token is missing or too short.
        """
        if not is_loopback(self.host) and not self.token:
            raise M3Error(
                f"{self.host} can be reached by other machines, so a token is needed: put one into "
                f"M3MLX_TOKEN or a file named with --token-file"
            )
        if self.token is not None and len(self.token) < TOKEN:
            raise M3Error(f"the token has {len(self.token)} characters; it needs at least {TOKEN}")
        return Guard(
            names=tuple(self.names),
            anywhere=not is_loopback(self.host),
            token=self.token,
            upload_bytes=self.upload_bytes,
        )


def serve(
    make: Callable[[], Assistant],
    settings: Settings,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until the process is told to end.

    Args:
        make: makes the assistant, on the thread that owns it.
        started: called with the address when the server takes requests.

    Raises:
        M3Error: the token is missing, a root is no folder, the address is taken, or a model or
            the store cannot be opened.
    """
    guard, roots = settings.guard(), Roots(settings.roots)

    def app(owner: Owner, assistant: Assistant) -> ASGIApp:
        names = {"model": model_name(assistant), "encoder": assistant.encoder.name}
        within = settings.collection
        return Server(owner, roots=roots, guard=guard, collection=within, **names).app()

    run(make, settings, app, started)


def serve_mcp(
    make: Callable[[], Assistant],
    settings: Settings,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the tools of MCP by streamable HTTP, at /mcp; see ``serve``."""
    from . import mcp  # of an extra of its own

    guard, roots = settings.guard(), Roots(settings.roots)

    def app(owner: Owner, assistant: Assistant) -> ASGIApp:
        return Guarded(mcp.application(owner, roots), guard)

    run(make, settings, app, lambda address: started(f"{address}/mcp"))


def run(
    make: Callable[[], Assistant],
    settings: Settings,
    app: Callable[[Owner, Assistant], ASGIApp],
    started: Callable[[str], None],
) -> None:
    """Run an application of an owner until the process is told to end."""
    listener = listening(settings.host, settings.port)
    owner = Owner(make, settings.waiting)
    made: list[ASGIApp] = []

    def prepared(assistant: Assistant) -> None:
        prepare(assistant)
        made.append(app(owner, assistant))

    try:
        owner.start(prepared)
        server = http(made[0])
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        with _ending_at_signals(server):
            listener.listen()  # whoever connects now waits until uvicorn accepts
            started(f"http://{shown}:{listener.getsockname()[1]}")
            asyncio.run(server.serve(sockets=[listener]))
    finally:
        listener.close()
        owner.stop()


def http(app: ASGIApp) -> uvicorn.Server:
    """A server for an application, with its limits set."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    settings = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="auto",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=32_768,
    )
    return uvicorn.Server(settings)


@contextmanager
def _ending_at_signals(server: uvicorn.Server) -> Iterator[None]:
    """End a server at a signal, also before uvicorn looks for them.

    uvicorn raises a signal that has ended it once more at its end, where it means nothing.
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
