"""The HTTP server, and how long and how many connections may wait without a request.

uvicorn waits for the head of a request for ever, so a few hundred clients that never send theirs
would keep all others out.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from contextlib import suppress
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 1024  # maximum at the same time; the guard answers fewer
IDLE = CONNECTIONS // 2  # of them without a request; beyond that the oldest are closed
HEAD_SECONDS = 20.0  # for a client to send the head of a request
KEEP_ALIVE = 30  # seconds that a connection may idle
FILES = CONNECTIONS + 512  # that the process may have open


def http_server(app: ASGIApp, head_seconds: float = HEAD_SECONDS) -> uvicorn.Server:
    """Return an HTTP server with its limits set."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    allow_files(FILES)
    idle: dict[_Connection, None] = {}  # the oldest first

    class Connection(_Connection):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.idle, self.head_seconds = idle, head_seconds

    config = uvicorn.Config(
        app,
        http=Connection,
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
    return uvicorn.Server(config)


class _Connection(H11Protocol):
    """A connection that is closed when it waits too long for the head of a request.

    Attributes:
        idle: all connections without a request.
    """

    idle: dict[_Connection, None]
    head_seconds: float
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.head_seconds, self._close)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._begin()
        elif self._timer is None:  # a part of the next head
            self._timer = self.loop.call_later(self.head_seconds, self._close)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._begin()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self.idle[self] = None
        while len(self.idle) > IDLE:
            next(iter(self.idle))._close()

    def _begin(self) -> None:
        self.idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._begin()
        self.transport.abort()


def allow_files(count: int) -> None:
    """Let the process have so many files open, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        count = min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < count:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
