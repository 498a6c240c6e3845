"""A day with m3mlx: watch a folder that changes, ask about it in every way, and forget a document.

    python tools/day.py FOLDER [--files 200] [--no-browser]

Writes files of every format with made-up facts, runs `m3mlx watch` while they change, are renamed
and vanish, and asks with the default models by command line, web page, OpenAI's client, MCP and
llm. The first source of each answer must be the document that has the fact. At the end one document
is forgotten, and nothing may find it any more. Prints each check, leaves screenshots in
FOLDER/screenshots, and exits with 1 if a check failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import openai
from day_files import FORMATS, Fact, facts, write
from day_page import Page, browsing, until
from mcp import Client, StdioServerParameters

ROOT = Path(__file__).resolve().parents[1]
FEW = 100  # with fewer files, not every format is asked for


class Checks:
    """Prints each check, and counts those that failed."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, part: str, what: str, right: object, seen: object = "") -> None:
        self.failed += not right
        instead = "" if right else f"  instead: {seen!s:.300}"
        print(f"{'ok' if right else 'FAILED':6}  {part:8}  {what}{instead}", flush=True)


class Day:
    """One folder, one store, and the programs that work on them."""

    def __init__(self, folder: Path, files: int, browser: bool):
        self.folder, self.notes = folder, folder / "notes"
        self.store, self.shots = folder / "store", folder / "screenshots"
        self.check, self.browser = Checks(), browser
        self.env = {
            **os.environ,
            "M3MLX_STORE": str(self.store),
            "LLM_USER_PATH": str(folder / "llm"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        made = facts(files + 40)
        self.facts, self.spare = made[:files], made[files:]
        self.where: dict[Fact, Path] = {}  # the documents that must be remembered

    def program(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "m3mlx", *words]

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        stdin = subprocess.DEVNULL
        return subprocess.run(
            words, env=self.env, stdin=stdin, capture_output=True, text=True, timeout=600
        )

    def output(self, *words: str) -> dict:
        """Return what a command prints with --json."""
        done = self.run(self.program(*words, "--json"))
        if done.returncode or not done.stdout:
            raise SystemExit(f"m3mlx {' '.join(words)} ended with {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)

    def recall(self, fact: Fact) -> list[str]:
        return paths_of(self.output("recall", fact.question)["references"])

    def ask(self, fact: Fact) -> list[str]:
        return paths_of(self.output("ask", fact.question, "--max-tokens", "24")["sources"])

    def documents(self) -> set[str]:
        return set(paths_of(self.output("list")["documents"]))

    def first(self, part: str, fact: Fact, paths: list[str], how: str) -> None:
        """Check that the first source is the document with the fact."""
        path = self.where[fact]
        seen = f"{paths[:3]} for {fact.question}"
        self.check(part, f"{how}, from {path.suffix[1:]}", paths[:1] == [str(path)], seen)

    def one_of(self, form: str) -> Fact:
        return next(fact for fact, path in self.where.items() if path.suffix == f".{form}")

    # --- morning: the folder is followed

    @contextmanager
    def running(self, part: str, *words: str, **files: Path) -> Iterator[subprocess.Popen]:
        """Run a command in the background; ``files`` get its stdout and stderr."""
        with ExitStack() as stack:
            opened = {name: stack.enter_context(path.open("w")) for name, path in files.items()}
            process = subprocess.Popen(self.program(*words), env=self.env, **opened)
            try:
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                ended = process.wait(120)
                self.check(part, "ends on SIGTERM", ended == 0, ended)

    def watching(self) -> AbstractContextManager[subprocess.Popen]:
        words = ("watch", str(self.notes), "--json", "--debounce", "0.5", "--grace", "10")
        files = {"stdout": self.folder / "watch.jsonl", "stderr": self.folder / "watch.log"}
        return self.running("watch", *words, **files)

    def events(self, what: str) -> set[str]:
        lines = (self.folder / "watch.jsonl").read_text().splitlines()
        return {event["path"] for event in map(json.loads, lines) if event["what"] == what}

    def settled(self) -> None:
        """Wait until the store has the documents of the folder."""
        wanted = {str(path) for path in self.where.values()}
        there = until(lambda: self.documents() == wanted, 1800, every=4)
        what = f"the store has the {len(wanted)} documents of the folder"
        self.check("watch", what, there, self.documents() ^ wanted)

    def morning(self) -> None:
        self.notes.mkdir(parents=True)
        forms = list(FORMATS)
        for number, fact in enumerate(self.facts):
            folder = self.notes / f"{1990 + number % 7}"
            folder.mkdir(exist_ok=True)
            path = folder / f"record-{number:03}.{forms[number % len(forms)]}"
            self.where[fact] = write(path, fact, long=number % 20 == 11)
        (self.notes / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
        (self.notes / "broken.pdf").write_bytes(b"%PDF-1.4\nthis is not one")
        (self.notes / ".gitignore").write_text("private*\n")
        (self.notes / "private.md").write_text("The safe opens with 4711.\n")

    def changes(self) -> None:
        """Change, rename and delete files."""
        wanted = {form: self.one_of(form) for form in ("md", "txt", "json", "docx", "csv", "html")}
        for form in ("md", "json"):
            path, new = self.where.pop(wanted[form]), self.spare.pop()
            self.where[new] = write(path, new)
        for form in ("txt", "docx"):
            path = self.where[wanted[form]]
            self.where[wanted[form]] = path.rename(path.with_stem(f"renamed-{path.stem}"))
        for form in ("csv", "html"):
            self.where.pop(wanted[form]).unlink()

    def at_work(self) -> None:
        """Change files while all are memorized for the first time, and again when that is done."""
        begun = until(lambda: len(self.events("added")) > 8, 900)
        self.check("watch", "memorizes", begun, (self.folder / "watch.log").read_text())
        self.changes()
        known = next(f for f, path in self.where.items() if str(path) in self.events("added"))
        self.first("cli", known, self.recall(known), "recall while it memorizes")
        self.settled()
        broken = str(self.notes / "broken.pdf")
        self.check("watch", "names the broken file", broken in self.events("failed"))
        self.changes()
        added = self.spare.pop()
        self.where[added] = write(self.notes / "late.md", added)
        moved = (self.notes / "1990").rename(self.notes / "moved")  # a folder and all that is in it
        for fact, path in self.where.items():
            if path.parent.name == "1990":
                self.where[fact] = moved / path.name
        self.settled()
        for what in ("renamed", "vanished", "forgotten", "changed"):
            self.check("watch", f"tells what was {what}", self.events(what))
        pending = self.output("status")["watching"]
        none = pending and not (pending["pending"] or pending["vanished"])
        self.check("watch", "status shows that nothing is pending", none, pending)

    # --- noon: questions in every way

    def by_command_line(self, subject: Fact) -> None:
        for form in FORMATS if len(self.facts) >= FEW else ("md", "eml", "pdf"):
            fact = self.one_of(form)
            self.first("cli", fact, self.recall(fact), "recall")
        for fact in (subject, self.one_of("pdf"), list(self.where)[-1]):
            self.first("cli", fact, self.ask(fact), "ask")

    @contextmanager
    def serving(self) -> Iterator[str]:
        log = self.folder / f"serve-{len([*self.folder.glob('serve-*')])}.log"

        def address() -> str | None:
            found = re.search(r"Serving on (http://\S+);", log.read_text())
            return found and found[1]

        with self.running("server", "serve", "--port", "0", stderr=log) as process:
            until(lambda: address() or process.poll() is not None, 300)
            if not (url := address()):
                raise SystemExit(log.read_text())
            yield url

    def by_openai(self, url: str, fact: Fact, **more: bool) -> Any:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600)
        said = [{"role": "user", "content": fact.question}]
        return client.chat.completions.create(model="m3mlx", messages=said, max_tokens=24, **more)

    def by_openai_whole(self, url: str, fact: Fact) -> tuple[str, list[str]]:
        """Return an answer and its sources."""
        answer = self.by_openai(url, fact)
        return answer.choices[0].message.content, paths_of(answer.m3mlx["sources"])

    def by_openai_stream(self, url: str, fact: Fact) -> list[str]:
        events = self.by_openai(url, fact, stream=True)
        more = [getattr(event, "m3mlx", None) or {} for event in events]
        return [path for part in more for path in paths_of(part.get("sources", ()))]

    def by_mcp(self, fact: Fact) -> dict[str, list[str]]:
        """Return the paths that recall and ask name, in order."""
        server = StdioServerParameters(
            command=sys.executable, args=["-m", "m3mlx", "mcp"], env=self.env
        )

        async def talk() -> dict[str, list[str]]:
            async with Client(server, read_timeout_seconds=600) as client:
                found = {}
                for tool, given in (
                    ("recall", {"query": fact.question}),
                    ("ask", {"question": fact.question, "max_tokens": 24}),
                ):
                    result = await client.call_tool(tool, given)
                    text = "".join(block.text for block in result.content)
                    found[tool] = re.findall(rf"{re.escape(str(self.folder))}[^,:\"\]]+", text)
                return found

        return asyncio.run(talk())

    def by_llm(self, fact: Fact) -> list[str]:
        words = [sys.executable, "-m", "llm"]
        asked = self.run([*words, "-m", "m3mlx", fact.question, "-o", "max_tokens", "24"])
        asked.check_returncode()
        logged = self.run([*words, "logs", "--json", "-n", "1"])
        logged.check_returncode()
        response = json.loads(logged.stdout)[0]["response_json"]
        response = json.loads(response) if isinstance(response, str) else response
        return paths_of(response["sources"])

    # --- evening: one document is forgotten

    def everywhere(self, url: str, page: Page | None, fact: Fact) -> dict[str, list[str]]:
        """Return the sources of every way of asking for a fact."""
        mcp = self.by_mcp(fact)
        return {
            "recall": self.recall(fact),
            "ask": self.ask(fact),
            "openai": self.by_openai_whole(url, fact)[1],
            "openai, streamed": self.by_openai_stream(url, fact),
            **({"page": page.ask(fact.question)} if page else {}),
            "mcp recall": mcp["recall"],
            "mcp ask": mcp["ask"],
            "llm": self.by_llm(fact),
        }

    def erase_conversations(self) -> None:
        """Delete what the page keeps: it has the questions, and answers that quote."""
        kept = json.loads(self.run(self.program("sessions", "list", "--json")).stdout)
        for session in kept["sessions"]:
            self.run(self.program("sessions", "delete", session["name"]))

    def forget(self, url: str, page: Page | None, fact: Fact) -> None:
        path = self.where.pop(fact)
        self.erase_conversations()
        done = self.run(self.program("forget", str(path), "--verify", "--json"))
        path.unlink()  # only now: a file that is gone for ten seconds is forgotten by the watcher
        clean = done.returncode == 0 and json.loads(done.stdout or "{}").get("found") == []
        self.check("forget", "forget --verify finds no trace", clean, done.stderr)
        for way, paths in self.everywhere(url, page, fact).items():
            others = paths and str(path) not in paths
            self.check("forget", f"{way} has other sources", others, paths)
        if page:
            page.open(url)
            self.check("forget", "the page no longer lists it", path.name not in page.listed())
        self.erase_conversations()
        held = [
            file.name
            for file in self.store.iterdir()
            if file.is_file() and fact.place.encode() in file.read_bytes()
        ]
        self.check("forget", "no file of the store holds its name", not held, held)

    def go(self) -> int:
        self.morning()
        with self.watching():
            self.at_work()
            subject = self.one_of("md")
            self.by_command_line(subject)
            with self.serving() as url:
                before = self.by_openai_whole(url, subject)
                if self.browser:
                    with browsing(self.shots) as page:
                        self.by_page(page, url)
            with self.serving() as url:
                after = self.by_openai_whole(url, subject)
                both = before, after
                self.check("server", "answers the same after a restart", before == after, both)
                with browsing(self.shots) if self.browser else nullcontext() as page:
                    if page:
                        page.open(url)
                    for way, paths in self.everywhere(url, page, subject).items():
                        self.first(way.split()[0].rstrip(","), subject, paths, way)
                    self.forget(url, page, subject)
        found = self.output("check")
        self.check("check", "the store is sound", not found.get("damages"), found)
        print(f"{self.check.failed} failed" if self.check.failed else "All as it should be.")
        return 1 if self.check.failed else 0

    def by_page(self, page: Page, url: str) -> None:
        page.open(url)
        page.shot("opened")
        listed = len(page.listed())
        self.check("page", "lists all documents", listed == len(self.where), listed)
        fact = self.one_of("docx")
        self.first("page", fact, page.ask(fact.question), "an answer")
        page.open_sources()
        page.shot("sources")
        self.check("page", "shows the memory of a source", page.inside() == str(self.where[fact]))
        fact = self.one_of("pdf")
        self.first("page", fact, page.ask(fact.question), "the next answer")
        page.shot("conversation")
        dropped = self.spare.pop()
        file = write(self.folder / "dropped.md", dropped)
        page.drop(file)
        right = until(lambda: "dropped.md" in page.listed(), 300)
        self.check("page", "memorizes a file", right, page.listed())
        paths = page.ask(dropped.question)
        self.check("page", "draws on it", paths[:1] == ["upload:dropped.md"], paths[:3])
        page.compare()
        fact = self.one_of("html")
        paths = page.ask(fact.question)  # the most used first, which may be another
        right = str(self.where[fact]) in paths
        self.check("page", "answers side by side, from html", right, paths[:3])
        page.shot("side-by-side")
        page.forget("dropped.md")
        self.check("page", "forgets it", "dropped.md" not in page.listed())
        page.phone()
        page.shot("phone")


def paths_of(sources: Iterable[dict]) -> list[str]:
    return [source["path"] for source in sources]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="new folder for files, store and screenshots")
    parser.add_argument("--files", type=int, default=200, help="number of files, at least 27")
    parser.add_argument("--no-browser", action="store_true", help="skip the web page")
    given = parser.parse_args()
    if given.folder.exists() or given.files < 27:
        parser.error(f"{given.folder} exists" if given.folder.exists() else "at least 27 files")
    browser = not given.no_browser and all(map(shutil.which, ("chromium", "chromedriver")))
    if not browser and not given.no_browser:
        print("The page is left out: it needs Debian's packages chromium and chromium-driver.")
    given.folder.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # ends its programs too
    return Day(given.folder.resolve(), given.files, browser).go()


if __name__ == "__main__":
    sys.exit(main())
