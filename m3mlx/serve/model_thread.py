"""The thread that owns the assistant, and the queue in front of it.

MLX arrays belong to the thread that made them, so all work runs as tasks on this one thread, in
the order of arrival. One exception: between the batches of a task that memorizes, waiting tasks
that only read run, so that nobody waits for a large file. While nothing is asked, the thread does
idle work, a small piece at a time. What needs the store and the encoder only, and takes moments,
runs on a second such thread with an assistant of its own, and waits for no answer.
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
from ..errors import M3Error
from ..memorize.editions import UNLOCKED
from .errors import FullError

_END = object()
QUIET = 5.0  # seconds after a task until idle work goes on
READERS = 4  # times as many may wait to read
_AGAIN = 60.0  # seconds until somebody looks whether there is idle work anew
log = logging.getLogger("m3mlx.serve")


class _Cancelled(BaseException):
    """Raised inside a task whose client has disconnected."""


class Job:
    """A task in the queue, and the client on an event loop that waits for its results."""

    def __init__(self, task: Task, writes: bool, run_readers: Callable[[], None]):
        self.task, self.writes = task, writes
        self._run_readers = run_readers
        self.cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self.results: asyncio.Queue[Any] = asyncio.Queue()

    def progress(self, what: str, done: int, total: int) -> None:
        """Send progress to the client."""
        self.check()
        task, _, detail = what.partition(": ")
        self.send({"progress": task, "detail": detail, "done": done, "total": total})

    def check(self) -> None:
        """End the task if its client has disconnected."""
        if self.cancelled.is_set():
            raise _Cancelled

    def between_batches(self) -> None:
        """Run the waiting tasks that only read; to be called while the store can be read."""
        self.check()
        self._run_readers()

    def send(self, result: object) -> None:
        """Hand a result to the client."""
        try:
            self._loop.call_soon_threadsafe(self.results.put_nowait, result)
        except RuntimeError:  # the loop is closed: no client waits any more
            self.cancelled.set()


Task = Callable[[Assistant, Job], Iterator[Any]]  # yields results for its client


class ModelThread:
    """A thread that makes an assistant, runs tasks with it, and closes it.

    Args:
        waiting: maximum number of queued tasks, running ones not counted.
        idle: does work for which nobody waits, and yields after each small piece of it.
    """

    def __init__(
        self,
        make: Callable[[], Assistant],
        waiting: int = 16,
        idle: Callable[[Assistant], Iterator[Any]] | None = None,
    ):
        self._make, self.waiting, self._idle = make, waiting, idle
        self._queue: deque[Job] = deque()
        self._running: list[Job] = []  # one, or a writer and the reader between its batches
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="m3mlx", daemon=True)
        self._ending = False
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._reader: ModelThread | None = None

    def start(self, prepare: Callable[[Assistant], None]) -> None:
        """Start the thread, wait until ``prepare`` has run on it, and raise what it raised."""
        self._prepare = prepare
        self._thread.start()
        self._ready.wait()
        if self._failure:
            raise self._failure

    def stop(self) -> None:
        """Cancel all tasks and wait until the assistant is closed."""
        with self._change:
            self._ending = True
            for job in (*self._queue, *self._running):
                job.cancelled.set()
            self._change.notify()
        if self._reader:
            self._reader.stop()
        self._thread.join()

    def pending(self) -> int:
        """Return the number of queued and running tasks."""
        with self._change:
            return len(self._queue) + len(self._running)

    async def stream(self, task: Task, *, writes: bool = False) -> AsyncGenerator[Any]:
        """Yield the results of a task. Closing the generator cancels the task.

        A cancelled task ends at its next yield, or at its next call of a hook of its ``Job``.

        Args:
            writes: the task changes the store.

        Raises:
            FullError: the queue is full.
            Exception: what the task raised.
        """
        job = Job(task, writes, self._run_readers)
        with self._change:
            if len(self._queue) >= self.waiting:
                raise FullError(f"{self.waiting} requests wait already; try again later")
            self._queue.append(job)
            self._change.notify()
        try:
            while (result := await job.results.get()) is not _END:
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            job.cancelled.set()
            with self._change:
                if job in self._queue:
                    self._queue.remove(job)

    async def call(self, function: Callable[[Assistant], Any], *, writes: bool = False) -> Any:
        """Call a function with the assistant, on the thread, and return its result."""

        def task(assistant: Assistant, job: Job) -> Iterator[Any]:
            yield function(assistant)

        async with aclosing(self.stream(task, writes=writes)) as results:
            return await anext(results, None)

    @property
    def reader(self) -> ModelThread:
        """The thread for what only reads the store, started at its first use.

        Its assistant shares no arrays with that of this thread, and loads no decoder.
        """
        if self._reader is None:
            self._reader = ModelThread(self._assistant.reader, self.waiting * READERS)
            self._reader.start(lambda assistant: None)
        return self._reader

    # --- on the thread

    def _run(self) -> None:
        try:
            with self._make() as self._assistant:
                self._prepare(self._assistant)
                self._ready.set()
                self._wait()
                while job := self._next(wait=True):
                    self._do(job)
                    self._wait()
        except BaseException as error:
            self._failure = error
            if self._ready.is_set():
                log.exception("the assistant has stopped")
        finally:
            self._ready.set()

    def _wait(self) -> None:
        """Wait for a job; after some quiet seconds, do idle work meanwhile."""
        work: Iterator[Any] | None = None
        quiet = QUIET
        while self._idle:
            with self._change:
                if self._change.wait_for(lambda: self._queue or self._ending, quiet):
                    return
            work, quiet = work or self._idle(self._assistant), UNLOCKED
            try:
                if next(work, _END) is _END:
                    work, quiet = None, _AGAIN
            except (M3Error, OSError) as error:
                log.info("idle work has failed: %s", error)
                work, quiet = None, _AGAIN

    def _run_readers(self) -> None:
        while job := self._next(wait=False):
            self._do(job)

    def _next(self, wait: bool) -> Job | None:
        """Take the next job, or without ``wait`` the next reader if any; None at the end."""
        with self._change:
            if wait:
                self._change.wait_for(lambda: self._queue or self._ending)
            job = next((job for job in self._queue if wait or not job.writes), None)
            if job is None or self._ending:
                return None
            self._queue.remove(job)
            self._running.append(job)
            return job

    def _do(self, job: Job) -> None:
        results = None
        try:
            if not job.cancelled.is_set():
                results = job.task(self._assistant, job)
                for result in results:
                    job.send(result)
                    if job.cancelled.is_set():
                        break
            job.send(_END)
        except _Cancelled:
            pass
        except Exception as error:
            job.send(error)
        finally:
            if isinstance(results, Generator):
                results.close()
            with self._change:
                self._running.remove(job)
