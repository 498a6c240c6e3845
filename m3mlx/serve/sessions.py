"""The page's conversations, kept in the store: list, search, show, keep, rename, erase.

They lie in a file of their own, so that they are read and written beside the model thread.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..assistant import Assistant
from ..errors import M3Error, StoreError
from ..sessions import check_name
from ..store import Sessions
from .errors import BadRequest
from .model_thread import ModelThread

TITLE = 60  # maximum length of a name made from a question
MESSAGES = 10_000  # of one conversation

Json = Callable[[Request], Any]  # awaits the object in a request's body
Result = TypeVar("Result")


class SessionEndpoints:
    """The endpoints of the conversations that the store keeps."""

    def __init__(self, thread: ModelThread, json: Json):
        self._thread, self._json = thread, json
        self._open: Callable[[], Sessions] | None = None  # from any thread

    def routes(self) -> list[Route]:
        return [
            Route("/v1/sessions", self.list_sessions),
            Route("/v1/sessions", self.begin, methods=["POST"]),
            Route("/v1/sessions/{name}", self.show),
            Route("/v1/sessions/{name}", self.keep, methods=["PUT"]),
            Route("/v1/sessions/{name}", self.rename, methods=["PATCH"]),
            Route("/v1/sessions/{name}", self.erase, methods=["DELETE"]),
        ]

    async def list_sessions(self, request: Request) -> Response:
        """List the conversations, the last one first; with ``search`` those with these words."""
        words = request.query_params.get("search", "").strip()

        def find(kept: Sessions) -> list[dict[str, Any]]:
            found = {message.session for message in kept.search(words)} if words else set()
            wanted = words.casefold().split()
            return [
                asdict(session)
                for session in reversed(kept.list())
                if session.name in found or all(w in session.name.casefold() for w in wanted)
            ]

        opened = await self._opener()
        data = await self._with_sessions(find) if opened else []
        return JSONResponse({"object": "list", "data": data, "kept": opened is not None})

    async def begin(self, request: Request) -> Response:
        """Keep a new conversation, under a name made from a title."""
        body = await self._json(request)
        title, messages = body.get("title"), _messages(body)
        if not isinstance(title, str):
            raise BadRequest("title is a text.", "title")

        def add(kept: Sessions) -> str:
            name = unused_name(title, {session.name for session in kept.list()})
            kept.add(name, messages)
            return name

        return JSONResponse({"name": await self._with_sessions(add)})

    async def show(self, request: Request) -> Response:
        name = _name(request)
        messages = await self._with_sessions(lambda kept: kept.messages(name))
        if not messages:
            raise _unknown(name)
        data = [{"role": m.role, "content": m.content, "details": m.details} for m in messages]
        return JSONResponse({"object": "list", "name": name, "data": data})

    async def keep(self, request: Request) -> Response:
        """Replace the messages behind the first ``keep``, if there are ``expect`` in all."""
        name, body = _name(request), await self._json(request)
        first, expected, messages = body.get("keep"), body.get("expect"), _messages(body)
        if type(first) is not int or type(expected) is not int or not 0 <= first <= expected:
            raise BadRequest("keep and expect are numbers, keep the smaller one.", "keep")
        there = await self._with_sessions(
            lambda kept: kept.replace(name, first, messages, expected=expected)
        )
        if there is None:
            raise _unknown(name)
        if there != expected:
            message = f"{name} has {there} messages by now, and not {expected}. Load it again."
            raise BadRequest(message, "expect", "changed", 409)
        return JSONResponse({"name": name, "messages": first + len(messages)})

    async def rename(self, request: Request) -> Response:
        name, new = _name(request), (await self._json(request)).get("name")
        if not isinstance(new, str):
            raise BadRequest("name is a text.", "name")
        check_name(new)
        if not await self._with_sessions(lambda kept: kept.rename(name, new)):
            raise _unknown(name)
        return JSONResponse({"name": new})

    async def erase(self, request: Request) -> Response:
        name = _name(request)
        if not await self._with_sessions(lambda kept: kept.delete(name)):
            raise _unknown(name)
        return JSONResponse({"deleted": name})

    async def _opener(self) -> Callable[[], Sessions] | None:
        """Return what opens the sessions on any thread; None while there is no store."""
        if self._open is None:

            def opener(assistant: Assistant) -> Callable[[], Sessions] | None:
                return assistant.store().sessions if assistant.has_store() else None

            self._open = await self._thread.reader.call(opener)
        return self._open

    async def _with_sessions(self, work: Callable[[Sessions], Result]) -> Result:
        opener = await self._opener()
        if opener is None:
            message = "There is no store yet: memorize a document, and conversations are kept."
            raise BadRequest(message, code="not_found", status=404)

        def run() -> Result:
            with opener() as kept:
                return work(kept)

        try:
            return await asyncio.to_thread(run)
        except StoreError:
            self._open = None  # the store may be another one by now
            raise


def unused_name(title: str, used: set[str]) -> str:
    """Return a name that a session can have, made from a title, and unlike all used ones."""
    words = re.sub(r"[^\w -]+|\s+", " ", title)
    name = re.sub(r" +", " ", words)[:TITLE].strip(" -") or "Conversation"
    number, found = 1, name
    while found in used:
        number += 1
        found = f"{name} {number}"
    return found


def _name(request: Request) -> str:
    name = request.path_params["name"]
    try:
        check_name(name)
    except M3Error as error:
        raise _unknown(name) from error
    return name


def _unknown(name: str) -> BadRequest:
    return BadRequest(f"There is no conversation {name[:100]}.", "name", "not_found", 404)


def _messages(body: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """Return the messages in a request: role, content, and details that are an object or None."""
    messages = body.get("messages")
    good = isinstance(messages, list) and len(messages) <= MESSAGES
    for message in messages if isinstance(messages, list) else ():
        good = good and (
            isinstance(message, dict)
            and message.get("role") in ("user", "assistant")
            and isinstance(message.get("content"), str)
            and isinstance(message.get("details"), dict | None)
        )
    if not good or not messages:
        raise BadRequest("messages is a list of objects with role and content.", "messages")
    return messages
