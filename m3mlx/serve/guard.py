"""Checks in front of an application: host, origin, token, size, folders, slow clients.

Every page in a browser can send requests to a server on this machine. It cannot read answers of
another origin, unless it makes a name of its own point to 127.0.0.1 (DNS rebinding). So the Host
and Origin headers are checked before anything else.
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
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import M3Error
from .errors import BadRequest, BoundaryError, FullError, handle

JSON_BYTES = 2_000_000  # maximum body of a request that is no upload
REQUESTS = 256  # maximum number at the same time
PATIENCE = 60.0  # seconds for a client to send or take the next part
SLOWEST = 2000  # bytes a second that a client sends at least, beside that patience
PUBLIC = ("/", "/health")  # hold nothing of the user's
PAGE = "/page/"  # as little do the files below it
UPLOADS = "/v1/memories"
TICKETS = "/view/"  # a path below it is a secret of its own

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
    """Return True if an address is reached from this machine only."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def media_type(headers: Headers) -> str:
    """Return the media type that a request declares, without parameters, in small letters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


class Roots:
    """Folders from which clients may have files read; raises M3Error if one is no folder."""

    def __init__(self, folders: Iterable[str | Path] = ()):
        self.folders = tuple(Path(os.path.realpath(Path(root).expanduser())) for root in folders)
        for folder in self.folders:
            if not folder.is_dir():
                raise M3Error(f"{folder}: this root is no folder")

    def resolve(self, path: str) -> Path:
        """Return a path with links resolved.

        Raises:
            BoundaryError: it is outside all roots, whether it exists or not.
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
    """Which requests are accepted.

    Attributes:
        names: accepted in the Host header, beside this machine's own addresses.
        anywhere: accept any IP address there too, since the server listens to other machines; no
            name can be rebound to look like one.
        token: required of all requests but those to ``PUBLIC``; None for none.
        upload_bytes: maximum size of an upload.
    """

    names: Sequence[str] = ()
    anywhere: bool = False
    token: str | None = None
    upload_bytes: int = 50_000_000

    def check(self, scope: Scope) -> None:
        """Raise BadRequest if the head of a request is refused."""
        headers, path = Headers(scope=scope), scope["path"]
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            message = "This server is not called by that name (Host)."
            raise BadRequest(message, code="wrong_host", status=421)
        scheme, _, place = headers.get("origin", f"http://{hosts[0]}").partition("://")
        same_origin = scheme in ("http", "https") and place.lower() == hosts[0].lower()
        visit = path in PUBLIC and headers.get("sec-fetch-mode") == "navigate"
        same_site = headers.get("sec-fetch-site", "none") in ("none", "same-origin")
        if not same_origin or not (same_site or visit):
            message = "Pages of another origin may not ask this server."
            raise BadRequest(message, code="wrong_origin", status=403)
        open_to_all = path in PUBLIC or path.startswith((PAGE, TICKETS))
        if self.token is not None and not open_to_all:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode(), self.token.encode())
            if scheme.lower() != "bearer" or not right:
                message = "Give the server's token as API key."
                raise BadRequest(message, code="invalid_api_key", status=401)
        length = headers.get("content-length", "")
        if length.isascii() and length.isdigit():
            self.check_size(scope, int(length))

    def check_size(self, scope: Scope, size: int) -> None:
        """Raise BadRequest if the body of a request is too large."""
        limit = JSON_BYTES
        kind = media_type(Headers(scope=scope))
        if scope["path"] == UPLOADS and kind == "multipart/form-data":
            limit = self.upload_bytes + 10_000  # for what surrounds the file
        if size > limit:
            raise BadRequest(f"More than {limit} bytes.", code="too_large", status=413)

    def _is_ours(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host}")
            name, _ = parts.hostname or "", parts.port  # raises if it is no number
        except ValueError:
            return False
        if host.strip() != host or "@" in host or "/" in host:
            return False
        known = is_loopback(name) or name in self.names
        return known or (self.anywhere and _address(name) is not None)


class Guarded:
    """An application behind a guard; pure ASGI, so that streams pass through unbuffered."""

    def __init__(self, app: ASGIApp, guard: Guard, patience: float = PATIENCE):
        self.app, self.guard, self.patience = app, guard, patience
        self._active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":  # uvicorn closes what is not answered
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, complete = 0, False
        begun = asyncio.get_running_loop().time()

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            try:
                async with asyncio.timeout(self.patience):
                    await send(message)
            except TimeoutError:
                raise _Stuck from None

        async def guarded_receive() -> Message:
            nonlocal size, complete
            if complete:  # waits until the client disconnects
                return await receive()
            latest = begun + self.patience + size / SLOWEST
            next_part = asyncio.get_running_loop().time() + self.patience
            try:
                async with asyncio.timeout_at(min(latest, next_part)):
                    message = await receive()
            except TimeoutError:
                raise BadRequest("The request did not come to its end.", status=408) from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            self.guard.check_size(scope, size)
            return message

        try:
            self.guard.check(scope)
            if self._active >= REQUESTS:
                raise FullError(f"{REQUESTS} requests are here already.")
        except M3Error as error:
            response = await handle(Request(scope), error)
            await response(scope, receive, guarded_send)
            return
        self._active += 1
        try:
            with suppress(_Stuck):  # uvicorn closes what is not brought to its end
                await self.app(scope, guarded_receive, guarded_send)
        finally:
            self._active -= 1


class _Stuck(BaseException):
    """A client takes nothing; no error handler may try to write to it."""
