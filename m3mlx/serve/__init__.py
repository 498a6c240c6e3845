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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from ..assistant import Assistant
from ..errors import M3Error
from .app import Server
from .guard import Guard, Roots, is_loopback
from .owner import Owner

CONNECTIONS = 256  # at the same time
TOKEN = 16  # characters that a token needs at least
KEEP_ALIVE = 30  # seconds that a connection may idle


def model_name(assistant: Assistant) -> str:
    """The name of the decoder, without the folders of a path."""
    name = assistant.decoder.name
    return Path(name).resolve().name if Path(name).is_dir() else name


def prepare(assistant: Assistant) -> None:
    """Load what the first answer needs, so that what is wrong shows at once."""
    _ = assistant.decoder, assistant.encoder, assistant.template
    if assistant.has_store():
        assistant.check()
        _ = assistant.codec, assistant.prefix
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


def serve(
    make: Callable[[], Assistant],
    *,
    host: str = "127.0.0.1",
    port: int = 8642,
    token: str | None = None,
    names: Sequence[str] = (),
    roots: Iterable[str | Path] = (),
    upload_bytes: int = 50_000_000,
    waiting: int = 16,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve until the process is told to end.

    Args:
        make: makes the assistant, on the thread that owns it.
        host: anything but a loopback address needs a token.
        token: which clients give as their API key.
        names: under which other machines call this one.
        roots: folders from which clients may have files read.
        upload_bytes: size of an upload, at most.
        waiting: so many requests may wait.
        started: called with the address when the server takes requests.

    Raises:
        M3Error: the token is missing, a root is no folder, the address is taken, or a model or
            the store cannot be opened.
    """
    if not is_loopback(host) and not token:
        raise M3Error(
            f"{host} can be reached by other machines, so a token is needed: put one into "
            f"M3MLX_TOKEN or a file named with --token-file"
        )
    if token is not None and len(token) < TOKEN:
        raise M3Error(f"the token has {len(token)} characters; it needs at least {TOKEN}")
    open_roots = Roots(roots)
    listener = listening(host, port)
    owner = Owner(make, waiting)
    try:
        named: dict[str, str] = {}

        def prepared(assistant: Assistant) -> None:
            prepare(assistant)
            named["model"] = model_name(assistant)
            named["encoder"] = assistant.encoder.name

        owner.start(prepared)
        guard = Guard(
            names=tuple(names),
            anywhere=not is_loopback(host),
            token=token,
            upload_bytes=upload_bytes,
        )
        server = Server(owner, roots=open_roots, guard=guard, **named)
        shown = f"[{host}]" if ":" in host else host
        started(f"http://{shown}:{listener.getsockname()[1]}")
        with _ending_quietly():
            asyncio.run(http(server.app()).serve(sockets=[listener]))
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
        lifespan="off",
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
def _ending_quietly() -> Iterator[None]:
    """uvicorn ends at a signal and raises it once more at its end: then it means nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, frame: None) for number in ends}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
