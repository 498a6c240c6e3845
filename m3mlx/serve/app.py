"""The application: paths, and how requests become tasks of the owner and answers of HTTP."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Send

from ..assistant import Assistant
from ..errors import M3Error
from . import errors, memories, openai
from .answers import Answers, End, Part
from .errors import BadRequest
from .guard import Guard, Guarded, Roots
from .owner import Owner, Task

PAGE = Path(__file__).parent / "page"
MOST_RECALLED = 100
VIEWS = 8  # pages that wait to be opened
VIEW_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
UPLOADS = 4  # in memory at the same time; more wait unread, until one of them has begun


class _Events(StreamingResponse):
    """Server-sent events, whose source is closed as soon as the client leaves."""

    def __init__(self, events: AsyncIterator[str]):
        super().__init__(events, media_type="text/event-stream")

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        async with aclosing(self.body_iterator):
            await super().__call__(scope, receive, send)


def _event(value: object) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


class Server:
    """The endpoints.

    Args:
        owner: has been started.
        model: the name that answers carry.
        encoder: the same, of embeddings.
        roots: folders from which paths are memorized.
        collection: that all requests are restricted to; None lets each name its own.
    """

    def __init__(
        self,
        owner: Owner,
        *,
        model: str,
        encoder: str,
        roots: Roots,
        guard: Guard,
        collection: str | None = None,
    ):
        self.owner, self.roots, self.guard = owner, roots, guard
        self.collection = collection
        self.model, self.encoder = model, encoder
        self.answers = Answers()
        self._views: dict[str, str] = {}  # pages that wait to be opened, by ticket
        self._uploading = asyncio.Semaphore(UPLOADS)
        self.models = (model, "m3mlx")

    def app(self) -> ASGIApp:
        """The whole application, guarded."""
        app = Starlette(
            routes=[
                Route("/", _file("index.html")),
                Route("/page.css", _file("page.css")),
                Route("/page.js", _file("page.js")),
                Route("/health", self.health),
                Route("/v1/models", self.list_models),
                Route("/v1/models/{name:path}", self.show_model),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/v1/embeddings", self.embed, methods=["POST"]),
                Route("/v1/memories", self.list_documents),
                Route("/v1/memories", self.memorize, methods=["POST"]),
                Route("/v1/memories/status", self.status),
                Route("/v1/memories/recall", self.recall, methods=["POST"]),
                Route("/v1/memories/{id:int}", self.forget, methods=["DELETE"]),
                Route("/v1/memories/{id:int}/view", self.view, methods=["POST"]),
                Route("/view/{ticket}", self.show_view),
            ],
            exception_handlers={
                M3Error: errors.answer,
                HTTPException: _not_found,
                ClientDisconnect: _gone,
                Exception: errors.answer,
            },
        )
        return Guarded(app, self.guard)

    # --- models

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def list_models(self, request: Request) -> Response:
        made = [self._model(self.model), self._model(self.encoder)]
        return JSONResponse({"object": "list", "data": made})

    async def show_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in (*self.models, self.encoder):
            raise BadRequest(f"There is no model {name}.", "model", "model_not_found", 404)
        return JSONResponse(self._model(name))

    @staticmethod
    def _model(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": "m3mlx"}

    async def embed(self, request: Request) -> Response:
        texts, asks, packed = openai.embeddings(await _json(request), self.encoder)

        def task(assistant: Assistant) -> tuple[Any, int]:
            encoder = assistant.encoder
            return encoder.encode(texts, query=asks), encoder.count(texts)

        vectors, tokens = await self._do(request, task)
        return JSONResponse(openai.embedded(vectors, self.encoder, tokens, packed))

    # --- answers

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, openai.chat)

    async def complete(self, request: Request) -> Response:
        return await self._answer(request, openai.completion)

    async def _answer(self, request: Request, read: Callable[..., openai.ChatRequest]) -> Response:
        asked = read(await _json(request), self.models)
        asked = replace(asked, collection=self._within(asked.collection))
        form = openai.Form(self.model, asked.raw)
        parts = self.owner.stream(partial(self.answers.answer, asked=asked))
        memory = await _while_there(request, anext(parts))  # errors until here have a status
        if asked.stream:
            return _Events(_streamed(parts, form, memory, asked.usage))
        return JSONResponse(await _while_there(request, _whole(parts, form, memory)))

    # --- documents

    async def list_documents(self, request: Request) -> Response:
        collection = self._within(request.query_params.get("collection"))
        found = await self._do(request, partial(memories.listed, collection=collection))
        return JSONResponse({"object": "list", "data": found})

    async def status(self, request: Request) -> Response:
        state = await self._do(request, memories.status)
        roots = [str(folder) for folder in self.roots.folders]
        about = {"model": self.model, "collection": self.collection, "roots": roots}
        return JSONResponse({**state, **about, "pending": self.owner.pending()})

    async def recall(self, request: Request) -> Response:
        body = await _json(request)
        query, k = body.get("query"), body.get("k", 5)
        if not isinstance(query, str) or not query.strip():
            raise BadRequest("query is a text that is not empty.", "query")
        if type(k) is not int or not 1 <= k <= MOST_RECALLED:
            raise BadRequest(f"k is a number from 1 to {MOST_RECALLED}.", "k")
        collection = self._within(openai.collection(body))
        task = partial(memories.recall, query=query, k=k, collection=collection)
        return JSONResponse({"object": "list", "data": await self._do(request, task)})

    async def memorize(self, request: Request) -> Response:
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return await self._written(request, self._memorizing(await _json(request)))
        async with self._uploading:
            return await self._written(request, await self._uploaded(request))

    async def _written(self, request: Request, task: Task) -> Response:
        """What a task that memorizes tells, from when it has begun."""
        results = self.owner.stream(task, writes=True)
        if "text/event-stream" in request.headers.get("accept", ""):
            first = await _while_there(request, anext(results))
            return _Events(_progress(first, results))
        return JSONResponse(await _while_there(request, _last(results)))

    def _memorizing(self, body: dict[str, Any]) -> Task:
        """The task of memorizing a text, or files inside the roots."""
        text, paths, title = body.get("text"), body.get("paths"), body.get("name")
        if title is not None and not isinstance(title, str):
            raise BadRequest("name is a text.", "name")
        collection = self._within(openai.collection(body))
        if isinstance(text, str) and text.strip() and paths is None:
            content = {memories.text_name(text, title): text.encode("utf-8", "replace")}
            return partial(memories.memorize_contents, contents=content, collection=collection)
        if isinstance(paths, list) and paths and all(isinstance(p, str) for p in paths):
            inside = [self.roots.inside(path) for path in paths]
            return partial(memories.memorize_paths, paths=inside, collection=collection)
        raise BadRequest("Give text, or paths as a list, or upload a file.", "text")

    async def _uploaded(self, request: Request) -> Task:
        """The task of memorizing an uploaded file, which is written nowhere but to the store."""
        parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=1)
        parser.spool_max_size = self.guard.upload_bytes + 1
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise BadRequest(f"This upload is broken: {error.message}", "file") from error
        file = form.get("file")
        if file is None or isinstance(file, str):
            raise BadRequest("Upload one file in the field named file.", "file")
        collection = self._within(openai.collection({"collection": form.get("collection")}))
        name, content = memories.upload_name(file.filename), await file.read()
        await form.close()
        if len(content) > self.guard.upload_bytes:
            limit = f"At most {self.guard.upload_bytes} bytes."
            raise BadRequest(limit, "file", "too_large", 413)
        return partial(memories.memorize_contents, contents={name: content}, collection=collection)

    async def forget(self, request: Request) -> Response:
        id, verify = request.path_params["id"], request.query_params.get("verify") == "true"

        def task(assistant: Assistant) -> dict[str, Any]:
            self.answers.forget()
            self._views.clear()
            return memories.forget(assistant, id, verify, self.collection)

        return JSONResponse(await self._do(request, task, writes=True))

    async def view(self, request: Request) -> Response:
        """Make the page of what is kept of a document, and tell where it can be opened, once.

        A browser sends no token with the address of a page, so the address itself is the key.
        """
        id, start = request.path_params["id"], (await _json(request)).get("start")
        if start is not None and type(start) is not int:
            raise BadRequest("start is a number.", "start")
        task = partial(memories.view, id=id, start=start, collection=self.collection)
        page = await self._do(request, task)
        while len(self._views) >= VIEWS:
            del self._views[next(iter(self._views))]
        ticket = secrets.token_urlsafe(32)
        self._views[ticket] = page
        return JSONResponse({"page": f"view/{ticket}"})

    async def show_view(self, request: Request) -> Response:
        page = self._views.pop(request.path_params["ticket"], None)
        if page is None:
            return errors.refusal(404, "This page can be opened once. Ask for it again.")
        return HTMLResponse(page, headers={"content-security-policy": VIEW_POLICY})

    def _within(self, asked: str | None) -> str | None:
        """The collection that a request is about.

        Raises:
            BadRequest: it names another than the one that all are restricted to.
        """
        if self.collection is not None and asked not in (None, self.collection):
            raise BadRequest(
                f"This server has the collection {self.collection} only.",
                *("collection", "wrong_collection", 403),
            )
        return asked if self.collection is None else self.collection

    async def _do(self, request: Request, task: Callable[[Assistant], Any], **how: bool) -> Any:
        """What a task returns, unless the client leaves before it is begun."""
        return await _while_there(request, self.owner.get(task, **how))


async def _whole(parts: AsyncIterator[Any], form: openai.Form, memory: str) -> dict[str, Any]:
    text, sources = "", []
    async with aclosing(parts):
        async for part in parts:
            if isinstance(part, Part):
                text += part.text
                sources += [vars(source) for source in part.sources or ()]
            else:
                extra = {"memory": memory, "sources": sources, "timings": vars(part.timings)}
                return form.whole(text, part.reason, _used(part), extra)
    raise AssertionError("an answer has an end")


async def _streamed(
    parts: AsyncIterator[Any], form: openai.Form, memory: str, usage: bool
) -> AsyncIterator[str]:
    """An answer as events. The first of each span of 64 tokens has its sources."""
    empty = {"usage": None} if usage else {}
    try:
        async with aclosing(parts):
            yield _event(form.part("", first=True, m3mlx={"memory": memory}, **empty))
            async for part in parts:
                if isinstance(part, End):
                    extra = {"m3mlx": {"timings": vars(part.timings)}}
                    yield _event(form.part(None, reason=part.reason, **extra, **empty))
                    if usage:
                        yield _event(form.used(_used(part)))
                elif part.sources is not None:
                    sources = [vars(source) for source in part.sources]
                    span = {"m3mlx": {"span": part.span, "sources": sources}}
                    yield _event(form.part(part.text, **span, **empty))
                else:
                    yield _event(form.part(part.text, **empty))
    except Exception as error:
        yield _event(errors.describe(error)[1])
    yield "data: [DONE]\n\n"


def _used(end: End) -> dict[str, Any]:
    return openai.usage(end.prompt, end.cached, end.completion)


async def _progress(first: dict[str, Any], results: AsyncIterator[Any]) -> AsyncIterator[str]:
    """What memorizing has reached, and at last its result."""
    yield _event(first)
    try:
        async with aclosing(results):
            async for result in results:
                yield _event(result)
    except Exception as error:
        yield _event(errors.describe(error)[1])
    yield "data: [DONE]\n\n"


async def _last(results: AsyncIterator[Any]) -> Any:
    async with aclosing(results):
        return [result async for result in results][-1]


async def _while_there(request: Request, work: Awaitable[Any]) -> Any:
    """The result of some work, which is cancelled when the client leaves."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    left = asyncio.ensure_future(leaving())
    try:
        await asyncio.wait((working, left), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, left):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _json(request: Request) -> dict[str, Any]:
    """The object in a request's body.

    Raises:
        BadRequest: there is none. A form of a browser cannot send one.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise BadRequest("Send JSON, with Content-Type: application/json.", status=415)
    try:
        body = json.loads(await request.body())
        json.dumps(body, ensure_ascii=False).encode()  # halves of characters are no text
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is no JSON ({type(error).__name__}).") from error
    if not isinstance(body, dict):
        raise BadRequest("The body is no JSON object.")
    return body


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        return FileResponse(PAGE / name, headers={"cache-control": "no-cache"})

    return serve


async def _not_found(request: Request, error: HTTPException) -> Response:
    return errors.refusal(error.status_code, error.detail)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nobody reads it
