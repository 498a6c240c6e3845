"""The HTTP endpoints: requests become tasks of the model thread, and their results responses."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from ..assistant import Assistant
from ..chat.sampling import can_keep_to_schemas
from ..errors import M3Error
from . import documents, errors, introduction, openai, responses
from .conversations import ConversationCache
from .errors import BadRequest
from .guard import Guard, Guarded, Roots, media_type
from .model_thread import Job, ModelThread, Task
from .sessions import SessionEndpoints

PAGE = Path(__file__).parent / "page"
MAX_RECALLED = 100
MAX_QUOTED = 10_000
VIEWS = 8  # maximum number of pages that wait to be opened
VIEW_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
UPLOADS = 4  # in memory at the same time; more wait unread until one of them is being memorized

EMBEDDED = 16  # texts, after which a gone client is noticed
DONE = openai.Completion.ends

Events = Callable[[Any], Iterable[object]]  # the events of a stream for a result of a task


@dataclass
class Endpoints:
    """The endpoints and their state.

    Args:
        model, encoder: names that answers and embeddings carry.
        roots, collection, cache_bytes: see ``Settings``.
        knows_tools: the model's chat template shows tools.
        known: what ``introduction.about`` tells of the model; None to ask at the first request.
    """

    thread: ModelThread
    model: str
    encoder: str
    roots: Roots
    guard: Guard
    collection: str | None = None
    cache_bytes: int | None = None
    knows_tools: bool = True
    known: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.models = (self.model, "m3mlx")
        self.conversations = ConversationCache(self.cache_bytes)
        self._listed = documents.DocumentList(self.collection)
        self._views: dict[str, str] = {}  # pages that wait to be opened, by ticket
        self._uploading = asyncio.Semaphore(UPLOADS)

    def app(self) -> ASGIApp:
        """Return the whole application, guarded."""
        app = Starlette(
            routes=[
                Route("/", _page),
                Mount("/page", StaticFiles(directory=PAGE)),
                Route("/health", self.health),
                *self._openai("/v1"),
                *self._openai(""),  # where mlx-lm and llama.cpp have them too
                Route("/v1/memories", self.list_documents),
                Route("/v1/memories", self.memorize, methods=["POST"]),
                Route("/v1/memories/status", self.status),
                Route("/v1/memories/recall", self.recall, methods=["POST"]),
                Route("/v1/memories/forget", self.forget_many, methods=["POST"]),
                Route("/v1/memories/quotes", self.quote, methods=["POST"]),
                Route("/v1/memories/{id:int}", self.forget, methods=["DELETE"]),
                Route("/v1/memories/{id:int}/view", self.make_view, methods=["POST"]),
                Route("/view/{ticket}", self.show_view),
                Route("/v1/page/about", self.about),
                Route("/v1/page/questions", self.suggest),
                Route("/v1/page/demo", self.memorize_demo, methods=["POST"]),
                *SessionEndpoints(self.thread, _json).routes(),
            ],
            exception_handlers={
                ClientDisconnect: _disconnected,
                **dict.fromkeys((M3Error, HTTPException, Exception), errors.handle),
            },
        )
        return Guarded(app, self.guard)

    def _openai(self, base: str) -> list[Route]:
        """Return the routes of OpenAI's interface."""
        posts = {
            "/chat/completions": self.chat,
            "/completions": self.complete,
            "/responses": self.respond,
            "/embeddings": self.embed,
        }
        return [
            Route(f"{base}/models", self.list_models),
            Route(f"{base}/models/{{name:path}}", self.show_model),
            *(Route(f"{base}{path}", to, methods=["POST"]) for path, to in posts.items()),
        ]

    # --- models

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def list_models(self, request: Request) -> Response:
        return _list([_model(name) for name in self.models])

    async def show_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in (*self.models, self.encoder):
            raise BadRequest(f"There is no model {name}.", "model", "model_not_found", 404)
        return JSONResponse(_model(name))

    async def embed(self, request: Request) -> Response:
        asked = openai.embeddings(await _json(request))

        def encode(assistant: Assistant, job: Job) -> Iterator[Any]:
            texts = asked.inputs
            openai.check_tokens(texts, assistant.encoder.tokenizer.get_vocab_size())
            for start in range(0, len(texts), EMBEDDED):  # between them, a client may be gone
                part = texts[start : start + EMBEDDED]
                vectors = assistant.encoder.encode(part, query=asked.queries, whole=True)
                yield vectors, assistant.encoder.count(part, whole=True)

        def whole(parts: list[Any]) -> dict[str, Any]:
            vectors = openai.shortened(np.concatenate([part[0] for part in parts]), asked)
            tokens = sum(part[1] for part in parts)
            return openai.embeddings_json(vectors, self.encoder, tokens, asked.in_base64)

        results = self.thread.reader.stream(encode)
        return _told(await _respond(request, results, whole, None), asked.ignored)

    # --- the page

    async def about(self, request: Request) -> Response:
        """Describe the model; it stays the same, so that nobody waits for it twice."""
        if self.known is None:
            self.known = await self._call(request, introduction.about)
        names = {"model": self.model, "encoder": self.encoder, "collection": self.collection}
        return JSONResponse({**self.known, **names, "upload_bytes": self.guard.upload_bytes})

    async def suggest(self, request: Request) -> Response:
        def made(assistant: Assistant) -> list[str]:
            return introduction.questions(assistant, self._listed.documents(assistant))

        return JSONResponse({"object": "list", "data": await self._look(request, made)})

    async def memorize_demo(self, request: Request) -> Response:
        await request.body()
        task = partial(introduction.memorize_demo, collection=self.collection)
        return await self._memorize(request, task)

    # --- answers

    async def chat(self, request: Request) -> Response:
        asked = openai.chat(await _json(request))
        return await self._answer(request, asked, openai.Completion(self.model, asked))

    async def complete(self, request: Request) -> Response:
        asked = openai.completion(await _json(request))
        return await self._answer(request, asked, openai.Completion(self.model, asked))

    async def respond(self, request: Request) -> Response:
        asked, about = responses.response(await _json(request))
        return await self._answer(request, asked, responses.Answer(self.model, asked, about))

    async def _answer(
        self, request: Request, asked: openai.Asked, form: openai.Completion | responses.Answer
    ) -> Response:
        collection = self._allowed(asked.requests[0].collection)
        requests = [replace(each, collection=collection) for each in asked.requests]
        ignored = asked.ignored
        forced = requests[0].forced
        if forced and not self.knows_tools:
            field = "tool_choice"
            message = f"{field} cannot force a call: this model's chat template shows no tools."
            raise BadRequest(message, field, "unsupported_parameter")
        if not can_keep_to_schemas():
            _needs_grammar(requests[0].generation.schema is not None, "response_format")
            _needs_grammar(len(forced) > 1, "tool_choice")
        if requests[0].tools and not self.knows_tools:
            requests = [replace(each, tools=()) for each in requests]
            ignored = (*ignored, "tools")
        task = partial(self.conversations.answers, requests=requests, count=asked.count)
        events = form.events if asked.stream else None
        response = await _respond(request, self.thread.stream(task), form.whole, events, form.ends)
        return _told(response, ignored)

    # --- documents

    async def list_documents(self, request: Request) -> Response:
        collection = self._allowed(request.query_params.get("collection"))
        listing = documents.Listing.of(request.query_params, collection)
        if listing is None:
            found = partial(documents.list_documents, collection=collection)
            return _list(await self._look(request, found))
        page = partial(self._listed.page, listing=listing)
        return JSONResponse(await self._look(request, page))

    async def quote(self, request: Request) -> Response:
        """Return the texts of references, for the sources of a kept conversation."""
        sources = (await _json(request)).get("sources")
        if not isinstance(sources, list) or len(sources) > MAX_QUOTED:
            raise BadRequest(f"sources is a list of at most {MAX_QUOTED}.", "sources")
        wanted: list[tuple[int, int]] = []
        for each in sources:
            match each:
                case {"document": int(id), "start": int(start)}:
                    wanted.append((id, start))
                case _:
                    raise BadRequest("Each source has a document and a start.", "sources")
        found = partial(self._listed.quotes, wanted=wanted)
        return _list(await self._look(request, found))

    async def status(self, request: Request) -> Response:
        about = {
            "model": self.model,
            "collection": self.collection,
            "roots": list(map(str, self.roots.folders)),
        }
        state = await self._look(request, documents.status)
        return JSONResponse({**state, **about, "pending": self.thread.pending()})

    async def recall(self, request: Request) -> Response:
        body = await _json(request)
        query, k = body.get("query"), body.get("k", 5)
        if not isinstance(query, str) or not query.strip():
            raise BadRequest("query is a text that is not empty.", "query")
        if type(k) is not int or not 1 <= k <= MAX_RECALLED:
            raise BadRequest(f"k is a number from 1 to {MAX_RECALLED}.", "k")
        collection = self._allowed(openai.collection(body))
        found = partial(documents.recall, query=query, k=k, collection=collection)
        return _list(await self._look(request, found))

    async def memorize(self, request: Request) -> Response:
        if media_type(request.headers) != "multipart/form-data":
            return await self._memorize(request, self._memorize_body(await _json(request)))
        async with self._uploading:
            return await self._memorize(request, await self._memorize_upload(request))

    async def _memorize(self, request: Request, task: Task) -> Response:
        results = self.thread.stream(task, writes=True)
        stream = "text/event-stream" in request.headers.get("accept", "")
        events = (lambda result: [result]) if stream else None
        return await _respond(request, results, lambda results: results[-1], events)

    def _memorize_body(self, body: dict[str, Any]) -> Task:
        """Return the task that memorizes a text, or files inside the roots."""
        text, paths, title = body.get("text"), body.get("paths"), body.get("name")
        if title is not None and not isinstance(title, str):
            raise BadRequest("name is a text.", "name")
        if "fact" in body:
            return self._remember_body(body)
        task = partial(documents.memorize, collection=self._allowed(openai.collection(body)))
        if isinstance(text, str) and text.strip() and paths is None:
            return partial(task, contents=documents.text_contents(text, title))
        if isinstance(paths, list) and paths and all(isinstance(p, str) for p in paths):
            return partial(task, paths=list(map(self.roots.resolve, paths)))
        raise BadRequest("Give text, or paths as a list, or upload a file.", "text")

    def _remember_body(self, body: dict[str, Any]) -> Task:
        """Return the task that memorizes a fact, at once."""
        fact, by, both = body["fact"], body.get("by", ""), body.get("keep_both", False)
        if not isinstance(fact, str) or not fact.strip() or len(fact) > documents.FACT:
            message = f"fact is a sentence or a few, of at most {documents.FACT} characters."
            raise BadRequest(message, "fact")
        if not isinstance(by, str) or type(both) is not bool:
            raise BadRequest("by is a name, and keep_both is true or false.", "by")
        if self.collection is not None:
            raise BadRequest("Facts are in no collection, and this server has one.", "fact")

        def remember(assistant: Assistant, job: Job) -> Iterator[dict[str, Any]]:
            yield documents.remember(assistant, fact, by, both)

        return remember

    async def _memorize_upload(self, request: Request) -> Task:
        """Return the task that memorizes an uploaded file, which goes to the store only."""
        limit = self.guard.upload_bytes
        parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=2)
        parser.spool_max_size = limit + 1  # stays in memory
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise BadRequest(f"This upload is broken: {error.message}", "file") from error
        file = form.get("file")
        if file is None or isinstance(file, str):
            raise BadRequest("Upload one file in the field named file.", "file")
        collection = self._allowed(openai.collection({"collection": form.get("collection")}))
        folder = form.get("folder")
        name = documents.upload_name(file.filename, folder if isinstance(folder, str) else None)
        content = await file.read()
        await form.close()
        if len(content) > limit:
            raise BadRequest(f"At most {limit} bytes.", "file", "too_large", 413)
        return partial(documents.memorize, contents={name: content}, collection=collection)

    async def forget(self, request: Request) -> Response:
        verify = request.query_params.get("verify") == "true"
        return await self._forget(request, [request.path_params["id"]], verify)

    async def forget_many(self, request: Request) -> Response:
        ids = (await _json(request)).get("ids")
        if not isinstance(ids, list) or not ids or not all(type(id) is int for id in ids):
            raise BadRequest("ids is a list of numbers.", "ids")
        return await self._forget(request, ids, verify=False)

    async def _forget(self, request: Request, ids: list[int], verify: bool) -> Response:
        def forget(assistant: Assistant) -> dict[str, Any]:
            self.conversations.clear()
            self._views.clear()
            return documents.forget(assistant, ids, verify, self.collection)

        return JSONResponse(await self._call(request, forget, writes=True))

    async def make_view(self, request: Request) -> Response:
        """Make the page of a document's memories, and a path that opens it once.

        A browser sends no token when it opens a page, so the path itself is the key.
        """
        id, start = request.path_params["id"], (await _json(request)).get("start")
        if start is not None and type(start) is not int:
            raise BadRequest("start is a number.", "start")
        view = partial(documents.view, id=id, start=start, collection=self.collection)
        page = await self._call(request, view)
        while len(self._views) >= VIEWS:
            del self._views[next(iter(self._views))]
        ticket = secrets.token_urlsafe(32)
        self._views[ticket] = page
        return JSONResponse({"page": f"view/{ticket}"})

    async def show_view(self, request: Request) -> Response:
        page = self._views.pop(request.path_params["ticket"], None)
        if page is None:
            raise BadRequest("This page can be opened once. Ask for it again.", status=404)
        return HTMLResponse(page, headers={"content-security-policy": VIEW_POLICY})

    def _allowed(self, collection: str | None) -> str | None:
        """Return the collection that a request is about; raises BadRequest for a foreign one."""
        if self.collection is not None and collection not in (None, self.collection):
            message = f"This server has the collection {self.collection} only."
            raise BadRequest(message, "collection", "wrong_collection", 403)
        return collection if self.collection is None else self.collection

    async def _call(
        self, request: Request, function: Callable[[Assistant], Any], *, writes: bool = False
    ) -> Any:
        return await _while_connected(request, self.thread.call(function, writes=writes))

    async def _look(self, request: Request, function: Callable[[Assistant], Any]) -> Any:
        """Call what only reads the store, without waiting for answers."""
        return await _while_connected(request, self.thread.reader.call(function))


def _list(data: list[dict[str, Any]]) -> Response:
    return JSONResponse({"object": "list", "data": data})


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "m3mlx"}


class _EventStream(StreamingResponse):
    """Server-sent events of a task, which is cancelled as soon as the client disconnects."""

    def __init__(self, first: Any, results: AsyncGenerator[Any], events: Events, ends: str = DONE):
        self._results, self._events, self._ends = results, events, ends
        super().__init__(self._lines(first), media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._results):
            await super().__call__(scope, receive, send)

    async def _lines(self, first: Any) -> AsyncGenerator[str]:
        try:
            for event in self._events(first):
                yield _line(event)
            async for result in self._results:
                for event in self._events(result):
                    yield _line(event)
        except Exception as error:
            failed = errors.describe(error)[1]
            yield _line(failed if self._ends else {"type": "error", **failed["error"]})
        yield self._ends


def _line(event: Any) -> str:
    """Return an event of a stream; those of /v1/responses also have its name.

    All of it is ASCII: httpx and others end lines at other characters too, such as U+2028.
    """
    name = f"event: {kind}\n" if isinstance(event, dict) and (kind := event.get("type")) else ""
    return f"{name}data: {json.dumps(event)}\n\n"


def _needs_grammar(asked: bool, field: str) -> None:
    """Refuse a field that is asked for and needs the library that keeps answers to a schema."""
    if asked:
        message = f"{field} needs a library: pip install 'm3mlx[schema]', and start again."
        raise BadRequest(message, field, "unsupported_parameter")


def _told(response: Response, ignored: Sequence[str]) -> Response:
    """Name the fields of a request that were left, in a header."""
    if ignored:
        names = (re.sub(r"[^\w.-]", "?", name, flags=re.ASCII)[:80] for name in ignored[:50])
        response.headers["x-m3mlx-ignored"] = ", ".join(names)
    return response


async def _respond(
    request: Request,
    results: AsyncGenerator[Any],
    whole: Callable[[list[Any]], dict[str, Any]],
    events: Events | None,
    ends: str = DONE,
) -> Response:
    """Stream the events of each of a task's results, or answer with all of them as a whole."""
    if events:  # errors before the first result have a status
        first = await _while_connected(request, anext(results))
        return _EventStream(first, results, events, ends)

    async def collect() -> list[Any]:
        async with aclosing(results):
            return [result async for result in results]

    return JSONResponse(whole(await _while_connected(request, collect())))


async def _while_connected(request: Request, work: Awaitable[Any]) -> Any:
    """Await some work, or cancel it and raise ClientDisconnect when the client disconnects."""

    async def disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait((working, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, disconnected):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _json(request: Request) -> dict[str, Any]:
    """Return the object in a request's body, which no browser's form can send."""
    if media_type(request.headers) != "application/json":
        raise BadRequest("Send JSON, with Content-Type: application/json.", status=415)
    try:
        body = json.loads(await request.body())
        json.dumps(body, ensure_ascii=False).encode()  # raises for lone surrogates
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is no JSON ({type(error).__name__}).") from error
    if not isinstance(body, dict):
        raise BadRequest("The body is no JSON object.")
    return body


async def _page(request: Request) -> Response:
    return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})


async def _disconnected(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
