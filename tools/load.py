"""Have many clients ask a server for some minutes, and tell what became of their requests.

    python tools/load.py [--clients 50] [--seconds 120] [--model NAME]

Starts a server of its own on a new store. Each client does one thing after the other, drawn at
random: chats, streamed or not, that go on for some turns; completions; recall, the list, the
status; uploads of a small document; streams that it leaves; requests that it sends half of. Tables
of outcomes and seconds come first, one line of JSON last. Exits with 1 if a request failed or hung,
or still waits at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np

CHEAP = ("recall", "list", "status")
ANSWERS = ("chat", "streamed chat", "completion")
WEIGHTS = {
    **{"chat": 3, "streamed chat": 4, "completion": 2, "recall": 4, "list": 4, "status": 2},
    **{"upload": 2, "left stream": 2, "half a head": 1, "half a body": 1},
}
HANGS = 600.0  # seconds after which a request counts as hung
HALF = 30.0  # seconds for which half a request is held, at most; the server waits for fewer
PLACES = "the boat house", "pier nine", "the cellar", "the north tower", "the old mill"


@dataclass
class Outcomes:
    """What became of requests.

    Attributes:
        counts: by what was done and how it ended.
        seconds: that each kind took where it went well, and until the first event of a stream.
        memory: resident bytes of the server, at the start and twice a second.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: list[int] = field(default_factory=list)

    @property
    def failed(self) -> dict[str, int]:
        """What should not have been: statuses from 500 on, hung and broken requests."""
        well = ("200", "left", "closed")
        return {f"{kind}: {how}": n for (kind, how), n in self.counts.items() if how not in well}

    def quantiles(self, kinds: tuple[str, ...]) -> tuple[float, float, float]:
        """Return the median, the 95th percentile and the longest of some kinds, in seconds."""
        taken = [each for kind in kinds for each in self.seconds[kind]] or [float("nan")]
        return float(np.median(taken)), float(np.percentile(taken, 95)), max(taken)


class Client:
    """One client: a conversation, and a source of chance that is the same in every run."""

    def __init__(self, number: int, http: httpx.AsyncClient, outcomes: Outcomes, tokens: int):
        self._number, self._http, self._outcomes, self._tokens = number, http, outcomes, tokens
        self._random = random.Random(number)
        self._said: list[dict[str, str]] = []

    async def live(self, until: float) -> None:
        """Do one thing after the other until a moment of ``time.monotonic``."""
        acts: dict[str, Callable[[], Awaitable[str]]] = {
            "chat": self._chat,
            "streamed chat": self._stream,
            "completion": self._complete,
            "recall": lambda: self._post("/v1/memories/recall", query=self._question()),
            "list": lambda: self._get("/v1/memories?limit=20"),
            "status": lambda: self._get("/v1/memories/status"),
            "upload": self._upload,
            "left stream": self._leave,
            "half a head": lambda: self._half(b"POST /v1/chat/completions HTTP/1.1\r\nHost: "),
            "half a body": lambda: self._half(self._head() + b'{"messages": ['),
        }
        while time.monotonic() < until:
            (kind,) = self._random.choices(list(WEIGHTS), list(WEIGHTS.values()))
            start = time.monotonic()
            try:
                how = await asyncio.wait_for(acts[kind](), HANGS)
            except TimeoutError:
                how = "hung"
            except (httpx.HTTPError, OSError, ValueError, KeyError) as error:
                how = type(error).__name__
            self._outcomes.counts[kind, how] += 1
            if how == "200":
                self._outcomes.seconds[kind].append(time.monotonic() - start)
            await asyncio.sleep(self._random.random() / 2)

    def _question(self) -> str:
        return f"What did visitor {self._random.randrange(1000)} leave at {self._place()}?"

    def _place(self) -> str:
        return self._random.choice(PLACES)

    def _body(self, **more: object) -> dict[str, object]:
        """Return a request for the next turn of the conversation, or the first of a new one."""
        if len(self._said) >= 6:
            self._said.clear()
        system = {"role": "system", "content": "Be brief."}
        asked = {"role": "user", "content": self._question()}
        messages = [system, *self._said, asked]
        return {"messages": messages, "max_tokens": self._tokens, **more}

    def _goes_on(self, body: dict, text: str) -> None:
        self._said = [*body["messages"][1:], {"role": "assistant", "content": text}]

    async def _chat(self) -> str:
        body = self._body()
        answer = await self._http.post("/v1/chat/completions", json=body)
        if answer.status_code == 200:
            self._goes_on(body, answer.json()["choices"][0]["message"]["content"])
        return str(answer.status_code)

    async def _complete(self) -> str:
        text = f"Notes of {self._place()}, by visitor {self._number}:\n"
        return await self._post("/v1/completions", prompt=text, max_tokens=self._tokens)

    async def _stream(self) -> str:
        body, start, text = self._body(stream=True), time.monotonic(), ""
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                return str(answer.status_code)
            first, done = True, False
            async for line in answer.aiter_lines():
                if first:
                    self._outcomes.seconds["first event"].append(time.monotonic() - start)
                first, done = False, done or line == "data: [DONE]"
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        return "error in a stream"
                    text += event["choices"][0]["delta"].get("content") or ""
        self._goes_on(body, text)
        return "200" if done else "stream without an end"

    async def _leave(self) -> str:
        body = self._body(stream=True, max_tokens=1000)
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code == 200:
                await anext(answer.aiter_lines())
                return "left"
            return str(answer.status_code)

    async def _upload(self) -> str:
        name = f"visit-{self._number}-{self._random.randrange(3)}.md"
        text = f"Visitor {self._random.randrange(1000)} left a red umbrella at {self._place()}.\n"
        files = {"file": (name, text * self._random.randrange(1, 5))}
        return str((await self._http.post("/v1/memories", files=files)).status_code)

    async def _get(self, path: str) -> str:
        return str((await self._http.get(path)).status_code)

    async def _post(self, path: str, **body: object) -> str:
        return str((await self._http.post(path, json=body)).status_code)

    def _head(self) -> bytes:
        place = urlsplit(str(self._http.base_url))
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: 500\r\n\r\n"
        ).encode()

    async def _half(self, sent: bytes) -> str:
        """Send a part of a request, wait, and go; the server may have closed before."""
        place = urlsplit(str(self._http.base_url))
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        writer.write(sent)
        with suppress(TimeoutError, ConnectionError):
            await asyncio.wait_for(reader.read(), self._random.random() * HALF)
        writer.close()
        return "closed"


async def crowd(url: str, clients: int, seconds: float, pid: int = 0, tokens: int = 16) -> Outcomes:
    """Have so many clients ask a server for some seconds; ``pid`` is its process."""
    outcomes = Outcomes()
    limits = httpx.Limits(max_connections=None)

    async def watch() -> None:
        while True:
            outcomes.memory.append(resident(pid) if pid else 0)
            await asyncio.sleep(0.5)

    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as http:
        watching = asyncio.create_task(watch())
        until = time.monotonic() + seconds
        each = [Client(number, http, outcomes, tokens).live(until) for number in range(clients)]
        await asyncio.gather(*each)
        await asyncio.sleep(1)
        watching.cancel()
    return outcomes


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True)
    return int(told.stdout or 0) * 1024


@contextmanager
def own_server(arguments: list[str]):
    """A server on a free port: its address, and its process."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = [sys.executable, "-m", "m3mlx", "serve", "--port", "0", "--yes"]
        with log.open("w") as written:
            process = subprocess.Popen(
                [*command, "--store", f"{folder}/store", *arguments], stderr=written
            )
        try:
            while not (found := re.search(r"Serving on (http://\S+);", log.read_text())):
                if process.poll() is not None:
                    sys.exit(log.read_text())
                time.sleep(0.2)
            yield found[1], process.pid
        finally:
            process.terminate()
            process.wait(60)


def table(outcomes: Outcomes) -> str:
    lines = ["| what | outcome | times |", "| --- | --- | ---: |"]
    lines += [f"| {kind} | {how} | {n} |" for (kind, how), n in sorted(outcomes.counts.items())]
    lines += ["", "| seconds | median | 95 % | longest |", "| --- | ---: | ---: | ---: |"]
    shown = {**{kind: (kind,) for kind in sorted(outcomes.seconds)}, "list, status, recall": CHEAP}
    for name, kinds in {**shown, "answers": ANSWERS}.items():
        lines.append(
            f"| {name} | " + " | ".join(f"{n:.3g}" for n in outcomes.quantiles(kinds)) + " |"
        )
    megabytes = [
        each / 1e6 for each in (outcomes.memory[0], outcomes.memory[-1], max(outcomes.memory))
    ]
    lines += [
        "",
        "Resident MB at the start, at the end, at most: {:.0f}, {:.0f}, {:.0f}".format(*megabytes),
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--tokens", type=int, default=16, help="maximum length of an answer")
    parser.add_argument("--model", help="as of m3mlx serve")
    parser.add_argument("--encoder", help="as of m3mlx serve")
    given = parser.parse_args()
    chosen = {"--model": given.model, "--encoder": given.encoder, "--queue": str(2 * given.clients)}
    arguments = [word for pair in chosen.items() if pair[1] for word in pair]
    with own_server(arguments) as (url, pid):
        for place in PLACES:
            text = f"A lamp was left at {place} by visitor 7, and a rope by visitor 19."
            httpx.post(f"{url}/v1/memories", json={"text": text}, timeout=300).raise_for_status()
        outcomes = asyncio.run(crowd(url, given.clients, given.seconds, pid, given.tokens))
        status = httpx.get(f"{url}/v1/memories/status", timeout=60).json()
    print(table(outcomes))
    print(f"Requests that still wait: {status['pending']}")
    figures = {
        "counts": {f"{kind}: {how}": n for (kind, how), n in sorted(outcomes.counts.items())},
        "cheap_seconds": outcomes.quantiles(CHEAP),
        "answer_seconds": outcomes.quantiles(ANSWERS),
        "memory": [outcomes.memory[0], outcomes.memory[-1], max(outcomes.memory)],
        **{"failed": outcomes.failed, "pending": status["pending"], "cores": os.cpu_count()},
    }
    print(json.dumps(figures))
    return 1 if outcomes.failed or status["pending"] else 0


if __name__ == "__main__":
    sys.exit(main())
