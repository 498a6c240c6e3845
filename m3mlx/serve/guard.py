"""Who may ask, and for what: addresses, names, origins, the token, sizes, folders.

A server on this machine can be reached by every page that a browser shows. Such a page cannot
read answers of another origin, but it can send requests, and with a name of its own that it lets
point to 127.0.0.1 (DNS rebinding) it becomes the same origin. So the name that a request was sent
to, and the page that sent it, are looked at before anything else.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import M3Error
from .errors import BadRequest, BoundaryError, refusal

JSON_BYTES = 2_000_000  # of a request that uploads nothing
REQUESTS = 256  # at the same time
PATIENCE = 60.0  # seconds for a client to take, or to give, the next part
OPEN = ("/", "/page.css", "/page.js", "/health")  # hold nothing of the user's
TICKETS = "/view/"  # what is below is its own secret

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


class Roots:
    """The folders from which a client may have files read."""

    def __init__(self, folders: Iterable[str | Path] = ()):
        self.folders = tuple(Path(os.path.realpath(Path(root).expanduser())) for root in folders)
        for folder in self.folders:
            if not folder.is_dir():
                raise M3Error(f"{folder}: this root is no folder")

    def inside(self, path: str) -> Path:
        """The path itself, with links resolved, if that lies inside a root.

        Raises:
            BoundaryError: it does not, whether it exists or not.
        """
        if not self.folders:
            raise BoundaryError("no folder is open to clients; start the server with --root FOLDER")
        if "\0" in path:
            raise BoundaryError("a path has no NUL in it")
        given = Path(path).expanduser() if path.startswith("~/") else Path(path)
        if not given.is_absolute():
            raise BoundaryError(f"{path}: give an absolute path")
        real = Path(os.path.realpath(given))
        if not any(real.is_relative_to(folder) for folder in self.folders):
            raise BoundaryError(f"{path}: this lies outside the folders that the server may read")
        return real


@dataclass(frozen=True)
class Guard:
    """What requests are let through.

    Attributes:
        names: under which the server may be called, beside this machine's own addresses.
        anywhere: whether it listens to other machines; then it may be called by any address,
            which no name on the net can stand for.
        token: which every request but those of ``OPEN`` must bring; None for none.
        upload_bytes: size of an upload, at most.
        uploads: paths that take uploads.
    """

    names: Sequence[str] = ()
    anywhere: bool = False
    token: str | None = None
    upload_bytes: int = 50_000_000
    uploads: Sequence[str] = ("/v1/memories",)

    def refuse(self, scope: Scope) -> Response | None:
        """Why a request is not let through, or None."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return refusal(421, "This server is not called by that name (Host).", "wrong_host")
        if (origin := headers.get("origin")) is not None and not _same(origin, hosts[0]):
            return refusal(403, "Pages of another origin may not ask this server.", "wrong_origin")
        visit = scope["path"] in OPEN and headers.get("sec-fetch-mode") == "navigate"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not visit:
            return refusal(403, "Pages of another origin may not ask this server.", "wrong_origin")
        free = scope["path"] in OPEN or scope["path"].startswith(TICKETS)
        if self.token is not None and not free:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self.token.encode())
            if scheme.lower() != "bearer" or not right:
                missing = refusal(401, "Give the server's token as API key.", "invalid_api_key")
                missing.headers["www-authenticate"] = "Bearer"
                return missing
        if _number(headers.get("content-length")) > self.limit(scope):
            return refusal(413, f"More than {self.limit(scope)} bytes.", "too_large")
        return None

    def limit(self, scope: Scope) -> int:
        """Bytes that the body of a request may have."""
        kind = Headers(scope=scope).get("content-type", "")
        if scope["path"] in self.uploads and kind.startswith("multipart/form-data"):
            return self.upload_bytes + 10_000  # what stands around the file
        return JSON_BYTES

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            urlsplit(f"//{host}").port  # noqa: B018  it raises for what is no number
        except ValueError:
            return False
        if host.strip() != host or "@" in host or "/" in host:
            return False
        if is_loopback(name) or name in self.names:
            return True
        return self.anywhere and _address(name) is not None


def _same(origin: str, host: str) -> bool:
    """Whether a page's origin is the address that it asks."""
    scheme, _, place = origin.partition("://")
    return scheme in ("http", "https") and place.lower() == host.lower()


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0


class Guarded:
    """An application behind a guard; pure ASGI, so that streams pass through unbuffered."""

    def __init__(self, app: ASGIApp, guard: Guard, patience: float = PATIENCE):
        self.app, self.guard, self.patience = app, guard, patience
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # uvicorn closes what is not answered

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            # a client that takes nothing must not hold an answer, or a thread, for ever
            try:
                async with asyncio.timeout(self.patience):
                    await send(message)
            except TimeoutError:
                raise _Stuck from None

        refused = self.guard.refuse(scope)
        if refused is None and self._active >= REQUESTS:
            refused = refusal(503, f"{REQUESTS} requests are here already.", "busy")
        if refused is not None:
            await refused(scope, receive, sending)
            return
        left = self.guard.limit(scope)
        whole = False

        async def receiving() -> Message:
            nonlocal left, whole
            if whole:  # waits until the client leaves
                return await receive()
            try:
                async with asyncio.timeout(self.patience):
                    message = await receive()
            except TimeoutError:
                raise BadRequest("The request did not come to its end.", status=408) from None
            left -= len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if left < 0:
                limit = self.guard.limit(scope)
                raise BadRequest(f"More than {limit} bytes.", code="too_large", status=413)
            return message

        self._active += 1
        try:
            with suppress(_Stuck):  # uvicorn closes what is not brought to its end
                await self.app(scope, receiving, sending)
        finally:
            self._active -= 1


class _Stuck(BaseException):
    """A client takes nothing; no handler of errors is to write to it."""
