"""Run a task in a forked process, and tell how it ended, whatever it did."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PATIENCE = 300  # seconds until a task counts as hung, on a machine that many use


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        kind: "returned", "raised", "killed" or "hung".
        value: what was returned (as from JSON), the traceback, the signal, or the seconds of
            waiting, and of the processor.
    """

    kind: str
    value: Any

    def returned(self) -> Any:
        """What the task returned; AssertionError if it ended in another way."""
        assert self.kind == "returned", f"{self.kind}: {self.value}"
        return self.value


class Apart:
    """A task that runs beside this process.

    The process is forked, so that nothing is imported again and a start takes milliseconds; nothing
    but this thread may be running, and no store may be open.
    """

    def __init__(self, task: Callable[..., Any], *arguments: Any):
        self._pipe, write = os.pipe()
        self._process = os.fork()
        if self._process == 0:
            os.close(self._pipe)
            _run(write, task, arguments)
        os.close(write)

    def outcome(self, seconds: float = PATIENCE, *, kill_after: float | None = None) -> Outcome:
        """Wait for the end. A process that needs longer is killed.

        Args:
            seconds: after which it counts as hung.
            kill_after: seconds after which it is killed on purpose.
        """
        limit = seconds if kill_after is None else kill_after
        deadline, data = time.monotonic() + limit, b""
        while select.select([self._pipe], [], [], max(0, deadline - time.monotonic()))[0]:
            part = os.read(self._pipe, 2**20)
            if not part:
                break
            data += part
        else:
            if kill_after is None:
                os.kill(self._process, signal.SIGUSR1)  # its stack goes to the standard error
                time.sleep(0.2)
            os.kill(self._process, signal.SIGKILL)
            if kill_after is None:
                _, usage = self._wait()
                return Outcome("hung", [seconds, round(usage.ru_utime + usage.ru_stime, 1)])
        status, _ = self._wait()
        if os.WIFSIGNALED(status):
            return Outcome("killed", os.WTERMSIG(status))
        return Outcome(*json.loads(data))

    def _wait(self) -> tuple[int, resource.struct_rusage]:
        os.close(self._pipe)
        return os.wait4(self._process, 0)[1:]


def _run(pipe: int, task: Callable[..., Any], arguments: tuple) -> None:
    faulthandler.register(signal.SIGUSR1)
    try:
        try:
            answer = ("returned", task(*arguments))
        except BaseException:
            answer = ("raised", traceback.format_exc())
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(pipe, data) :]
    finally:
        os._exit(0)


def apart(task: Callable[..., Any], *arguments: Any, seconds: float = PATIENCE) -> Outcome:
    """Run a task in a process of its own and wait for its end."""
    return Apart(task, *arguments).outcome(seconds)
