"""Errors in OpenAI's shape, which its clients turn into exceptions."""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.responses import JSONResponse

from ..errors import DocumentError, M3Error
from ..store import BusyStore

RETRY_SECONDS = 5
log = logging.getLogger("m3mlx.serve")


class FullError(M3Error):
    """As many requests wait as may wait."""


class BoundaryError(M3Error):
    """A path lies outside the folders that were given at the start."""


class BadRequest(M3Error):
    """A request that asks for what is not there or not done.

    Attributes:
        param: the field concerned.
        code: a word for programs.
        status: of the answer.
    """

    def __init__(
        self, message: str, param: str | None = None, code: str | None = None, status: int = 400
    ):
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


def body(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> dict[str, dict]:
    """The object that describes an error."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> JSONResponse:
    """The answer to a request that is not done."""
    headers = {"retry-after": str(RETRY_SECONDS)} if status == 503 else None
    return JSONResponse(body(status, message, code, param), status, headers)


def describe(error: Exception) -> tuple[int, dict[str, dict]]:
    """Status and body for what went wrong; what users cannot cause is logged, and not told."""
    match error:
        case BadRequest():
            return error.status, body(error.status, str(error), error.code, error.param)
        case FullError() | BusyStore():
            return 503, body(503, str(error), "busy")
        case BoundaryError():
            return 403, body(403, str(error), "outside_roots")
        case DocumentError():
            return 422, body(422, str(error), "unreadable_document")
        case M3Error():
            return 400, body(400, str(error))
    log.error("request failed", exc_info=error)
    return 500, body(500, "Something went wrong; the server's log says what.", "internal_error")


async def answer(request: Request, error: Exception) -> JSONResponse:
    """What starlette calls for an exception."""
    status, told = describe(error)
    headers = {"retry-after": str(RETRY_SECONDS)} if status == 503 else None
    return JSONResponse(told, status, headers)
