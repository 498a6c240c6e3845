"""The one thread that touches MLX and the store, and the queue in front of it.

Arrays of MLX belong to the thread that made them, so whoever wants something of the assistant
gives a task to this thread and receives what it yields. Tasks are done one after the other, in
the order in which they came, but for one thing: while a task writes documents, tasks that only
read are done between its batches, so that nobody waits for a large file.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing
from typing import Any

from ..assistant import Assistant
from .errors import FullError

_END = object()
log = logging.getLogger("m3mlx.serve")


class _Cancelled(BaseException):
    """Takes a task that its client has given up out of what it is doing."""


class Job:
    """A task and the client that waits for what it yields, on an event loop of its own."""

    def __init__(self, task: Task, writes: bool, let_readers_in: Callable[[], None]):
        self.task, self.writes = task, writes
        self._let_readers_in = let_readers_in
        self.cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self.results: asyncio.Queue = asyncio.Queue()

    def progress(self, what: str, done: int, total: int) -> None:
        """Report progress to the client."""
        if self.cancelled.is_set():
            raise _Cancelled
        self.give({"progress": what, "done": done, "total": total})

    def between_batches(self) -> None:
        """Let tasks that only read be done, while the store can be read."""
        if self.cancelled.is_set():
            raise _Cancelled
        self._let_readers_in()

    def give(self, result: object) -> None:
        try:
            self._loop.call_soon_threadsafe(self.results.put_nowait, result)
        except RuntimeError:  # the loop has ended, and nobody waits any more
            self.cancelled.set()


Task = Callable[[Assistant, Job], Iterator[Any]]  # yields what its client is to receive


class Owner:
    """Owns an assistant from its first use to its end.

    Args:
        make: makes the assistant; called on the thread.
        waiting: so many tasks may wait, the one being done not counted.
    """

    def __init__(self, make: Callable[[], Assistant], waiting: int = 16):
        self._make, self.waiting = make, waiting
        self._jobs: deque[Job] = deque()
        self._change = threading.Condition()
        self._ending = False
        self._now: list[Job] = []  # being done: one, or a writer and what is done meanwhile
        self._thread = threading.Thread(target=self._run, name="m3mlx", daemon=True)
        self._ready = threading.Event()
        self._failure: BaseException | None = None

    def start(self, prepare: Callable[[Assistant], None]) -> None:
        """Start the thread and wait until the assistant is prepared; raises what went wrong."""
        self._prepare = prepare
        self._thread.start()
        self._ready.wait()
        if self._failure:
            raise self._failure

    def stop(self) -> None:
        """Give up all tasks and wait until the assistant is closed."""
        with self._change:
            self._ending = True
            for job in (*self._jobs, *self._now):
                job.cancelled.set()
            self._change.notify()
        self._thread.join()

    def pending(self) -> int:
        """How many tasks wait or are being done."""
        with self._change:
            return len(self._jobs) + len(self._now)

    async def stream(self, task: Task, *, writes: bool = False) -> AsyncGenerator[Any]:
        """What a task yields. Whoever stops iterating gives the task up.

        The task's own iteration yields after each piece of work, and ends there when nobody waits
        for it any more.

        Args:
            writes: whether it changes the store.

        Raises:
            FullError: too many tasks wait.
            Exception: what the task raised.
        """
        job = Job(task, writes, self._do_readers)
        with self._change:
            if len(self._jobs) >= self.waiting:
                raise FullError(f"{self.waiting} requests wait already; try again later")
            self._jobs.append(job)
            self._change.notify()
        try:
            while (result := await job.results.get()) is not _END:
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            job.cancelled.set()
            with self._change:
                if job in self._jobs:
                    self._jobs.remove(job)

    async def get(self, task: Callable[[Assistant], Any], *, writes: bool = False) -> Any:
        """What a function returns that is called with the assistant, on its thread."""

        def once(assistant: Assistant, job: Job) -> Iterator[Any]:
            yield task(assistant)

        async with aclosing(self.stream(once, writes=writes)) as results:
            async for result in results:
                return result

    # --- on the thread

    def _run(self) -> None:
        try:
            with self._make() as self._assistant:
                self._prepare(self._assistant)
                self._ready.set()
                while job := self._next():
                    self._do(job)
        except BaseException as error:
            self._failure = error
            if self._ready.is_set():
                log.exception("the assistant has stopped")
        finally:
            self._ready.set()

    def _next(self) -> Job | None:
        """The next job; waits for one. None at the end."""
        with self._change:
            self._change.wait_for(lambda: self._jobs or self._ending)
            if self._ending:
                return None
            self._now.append(self._jobs.popleft())
            return self._now[-1]

    def _do(self, job: Job) -> None:
        results = None
        try:
            if not job.cancelled.is_set():
                results = job.task(self._assistant, job)
                for result in results:
                    job.give(result)
                    if job.cancelled.is_set():
                        break
            job.give(_END)
        except _Cancelled:
            pass
        except Exception as error:
            job.give(error)
        finally:
            if isinstance(results, Generator):
                results.close()
            with self._change:
                self._now.remove(job)

    def _do_readers(self) -> None:
        while reader := self._next_reader():
            self._do(reader)

    def _next_reader(self) -> Job | None:
        with self._change:
            reader = next((job for job in self._jobs if not job.writes), None)
            if reader and not self._ending:
                self._jobs.remove(reader)
                self._now.append(reader)
                return reader
        return None
