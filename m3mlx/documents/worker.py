"""Read documents in a process of its own, so that a file can neither hang nor crash this one.

The process is started for the first file that needs it and reads one file after the other. It is
a new interpreter, never a copy of this process, which may hold a GPU. Each file may take so much
time and memory as its size allows; the process is killed when it takes more, when the caller stops
waiting, and when this process ends. Both sides send a line of JSON, then as many bytes as it says.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, NoReturn

from ..errors import DocumentError
from .document import Document, absolute, os_errors_as_document_errors, parse, read
from .formats import PLAIN, format_of

SECONDS, SECONDS_PER_MB = 60.0, 2.0  # of a processor, that one file may take
PATIENCE = 5  # times as long, as other programs may need the processor too
OCR_SLOWER = 60  # times: a page of a scan is some 50 KB, and takes a few seconds
MEMORY, MEMORY_PER_BYTE = 1_500_000_000, 16  # bytes that one file may take, beyond an idle process
RENEW = 500_000_000  # bytes; a process that once took so much is not used for another file
PERIOD = 0.1  # seconds between two looks at a process that works
LOOK = 1.0  # seconds between two looks at its memory, where the system does not limit that
LIMITS_DATA = sys.platform == "linux"  # the system limits the memory of a process
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import {0}; {0}.serve()"


class Worker:
    """Reads documents as ``read`` and ``parse`` do: plain text here, all else in its own process.

    Args:
        while_waiting: called again and again while a file is read; an exception that it raises
            ends the reading.
        ocr: recognize the text in pictures.
    """

    def __init__(
        self, while_waiting: Callable[[], object] = lambda: None, ocr: bool = False
    ) -> None:
        self._while_waiting, self._ocr = while_waiting, ocr
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, if there is one, whatever it does."""
        if process := self._process:
            self._process = None
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):  # what was not sent yet
                    pipe.close() if pipe else None

    def read(self, path: str | Path) -> Document:
        """Read one file.

        Raises:
            DocumentError: as ``read``, or it takes more than its share of time or memory, or
                makes its reader crash.
        """
        path = absolute(path)
        with os_errors_as_document_errors(path):
            size = path.stat().st_size
        return read(path) if self._is_simple(path) else self._ask(path, size, None)

    def parse(self, path: str | Path, content: bytes) -> Document:
        """Make a document of the bytes of a file.

        Raises:
            DocumentError: as ``parse``, or as ``read`` of this class.
        """
        path = Path(path)
        if self._is_simple(path):
            return parse(path, content)
        return self._ask(path, len(content), content)

    def _is_simple(self, path: Path) -> bool:
        return (format_of(path, self._ocr) or PLAIN).simple

    def _ask(self, path: Path, size: int, content: bytes | None) -> Document:
        slower = OCR_SLOWER if self._ocr else 1
        seconds = slower * (SECONDS + SECONDS_PER_MB * size / 1e6)
        memory = MEMORY + MEMORY_PER_BYTE * size
        about: dict[str, Any] = {
            "path": str(path),
            "seconds": seconds,
            "memory": memory,
            "sent": content is not None,
            "ocr": self._ocr,
        }
        try:
            process = self._process = self._process or _start()
            with suppress(BrokenPipeError):  # the reason shows when its answer is waited for
                _send(process.stdin, about, content or b"")
            about, text = _Answer(process, path, seconds, memory).wait(self._while_waiting)
        except BaseException:
            self.close()
            raise
        if about.pop("spent"):
            self.close()
        if reason := about.get("reason"):
            raise DocumentError(about["path"], reason)
        for name in ("page_starts", "notes"):
            about[name] = tuple(about[name])
        return Document(text=text.decode(), **about)


def _start() -> subprocess.Popen[bytes]:
    # without -P the present folder would come first among the places of modules
    code = START.format(__name__)
    places = json.dumps([place for place in sys.path if place])
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, places],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _send(pipe: IO[bytes] | None, about: dict[str, Any], content: bytes) -> None:
    assert pipe is not None
    pipe.write(json.dumps({**about, "bytes": len(content)}).encode() + b"\n")
    pipe.write(content)
    pipe.flush()


class _Answer:
    """The answer to one request, and the bounds within which it must come."""

    def __init__(
        self, process: subprocess.Popen[bytes], path: Path, seconds: float, memory: int
    ) -> None:
        self.process, self.path, self.seconds, self.memory = process, path, seconds, memory
        self.start = self.looked = time.monotonic()

    def wait(self, while_waiting: Callable[[], object]) -> tuple[dict[str, Any], bytes]:
        """Return what the process says about the file, and its text.

        Raises:
            DocumentError: a bound was passed, or the process has ended.
        """
        pipe = self.process.stdout
        assert pipe is not None
        received, head, length = bytearray(), 0, -1
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while not head or len(received) < head + length:
                if not selector.select(PERIOD):
                    while_waiting()
                    self._check()
                    continue
                if not (piece := os.read(pipe.fileno(), 1 << 20)):
                    self._refuse_crash()
                received += piece
                if not head and (head := received.find(b"\n") + 1):
                    about = json.loads(received[:head])
                    length = about.pop("bytes")
        return about, bytes(received[head:])

    def _check(self) -> None:
        """Refuse the file if it takes more than its share."""
        now = time.monotonic()
        if now - self.start > PATIENCE * self.seconds:
            raise DocumentError(self.path, _too_long(self.seconds))
        if not LIMITS_DATA and now - self.looked > LOOK:
            self.looked = now
            if _resident(self.process.pid) > self.memory:
                raise DocumentError(self.path, _too_much(self.memory))

    def _refuse_crash(self) -> NoReturn:
        code = self.process.wait()
        name = signal.Signals(-code).name if code < 0 else f"code {code}"
        if -code == signal.SIGXCPU:
            raise DocumentError(self.path, _too_long(self.seconds))
        reason = f"made the program crash that reads it ({name}); save it anew or as another format"
        raise DocumentError(self.path, reason)


def _too_long(seconds: float) -> str:
    limit = f"takes longer than {seconds:.0f} seconds to read, the limit for its size"
    return f"{limit}; save it in parts, or as another format"


def _too_much(memory: int) -> str:
    limit = f"needs more than {memory / 1e9:.1f} GB of memory to read, the limit for its size"
    return f"{limit}; save it in parts, or as another format"


def _resident(pid: int) -> int:
    """Return the bytes that a process has in memory; 0 if that cannot be told."""
    command = ["ps", "-o", "rss=", "-p", str(pid)]
    with suppress(OSError, ValueError):
        return 1024 * int(subprocess.run(command, capture_output=True, timeout=10).stdout)
    return 0


def serve() -> None:
    """Answer the requests of the process that started this one, until it closes the pipe."""
    import resource

    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process ends this one
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no text in files that a crash leaves
    idle = _status("VmData")
    while line := requests.readline():
        about = json.loads(line)
        content = requests.read(about["bytes"])
        cores = os.cpu_count() or 1 if about["ocr"] else 1  # its engine uses all of them
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + cores * about["seconds"]))
        if LIMITS_DATA:
            _limit(resource.RLIMIT_DATA, idle + len(content) + about["memory"])
        text, spent = b"", False
        try:
            path = Path(about["path"])
            ocr = about["ocr"]
            document = parse(path, content, ocr) if about["sent"] else read(path, ocr)
            said: dict[str, Any] = {
                field.name: getattr(document, field.name)
                for field in fields(document)
                if field.name != "text"
            }
            text = document.text.encode()
        except DocumentError as error:
            said = {"path": error.path, "reason": error.reason}
        except MemoryError:
            spent, said = True, {"path": about["path"], "reason": _too_much(about["memory"])}
        # Linux gives a process its parent's ru_maxrss
        peak = _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _send(answers, {**said, "spent": spent or peak > RENEW}, text)


def _limit(kind: int, amount: int) -> None:
    import resource

    _, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (amount if most < 0 else min(amount, most), most))


def _status(name: str) -> int:
    """Return bytes of memory of this process, as Linux names them; 0 on other systems."""
    with suppress(OSError), open("/proc/self/status") as status:
        return sum(1024 * int(line.split()[1]) for line in status if line.startswith(name))
    return 0
