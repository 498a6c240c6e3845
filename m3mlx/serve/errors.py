"""Errors in OpenAI's shape, which its clients turn into exceptions."""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from ..errors import DocumentError, M3Error
from ..store import BusyStore

RETRY_SECONDS = 5
log = logging.getLogger("m3mlx.serve")


class FullError(M3Error):
    """The queue is full."""


class BoundaryError(M3Error):
    """A path lies outside the folders that the server may read."""


class BadRequest(M3Error):
    """A request that asks for something missing, unsupported or malformed.

    Attributes:
        param: the field concerned.
        code: identifier for programs.
        status: HTTP status of the response.
    """

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400
    ):
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


def describe(error: Exception) -> tuple[int, dict[str, dict]]:
    """Return HTTP status and JSON body; an unexpected error is logged, its text not shown."""
    message, code, param, status = str(error), None, None, 400
    match error:
        case BadRequest():
            code, param, status = error.code, error.param, error.status
        case FullError() | BusyStore():
            code, status = "busy", 503
        case BoundaryError():
            code, status = "outside_roots", 403
        case DocumentError():
            code, status = "unreadable_document", 422
        case HTTPException():
            message, status = error.detail, error.status_code
        case M3Error():
            pass
        case _:
            log.error("request failed", exc_info=error)
            message = "Something went wrong; the server's log says what."
            code, status = "internal_error", 500
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


async def handle(request: Request, error: Exception) -> JSONResponse:
    """Answer a request with an error; an exception handler for starlette."""
    status, body = describe(error)
    headers = {401: {"www-authenticate": "Bearer"}, 503: {"retry-after": str(RETRY_SECONDS)}}
    return JSONResponse(body, status, headers.get(status))
