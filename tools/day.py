"""A day with m3mlx: a folder that changes is followed, asked about in every way, and forgotten.

    python tools/day.py FOLDER [--files 200] [--no-browser]

writes files of every format with made-up facts, has `m3mlx watch` follow them while they change,
are renamed and vanish, and asks by the command line, the page, OpenAI's client, MCP and llm, with
the default models. What is checked is what answers drew on: the first source must be the document
that has the fact. At the end one document is forgotten, and no way may know it any more. Prints
what was checked, leaves screenshots in FOLDER/screenshots, and ends with 1 if anything was wrong.
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
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import openai
from day_files import FORMATS, Fact, facts, write
from day_page import Page, browsing, until
from mcp import Client, StdioServerParameters

ROOT = Path(__file__).resolve().parents[1]
FEW = 100  # files; of fewer, not every format is asked for

# --- what was checked


class Checked:
    """Rows of a table, which grows on the screen while the day goes on."""

    def __init__(self) -> None:
        self.failed = 0

    def __call__(self, part: str, what: str, right: object, seen: object = "") -> None:
        self.failed += not right
        told = "" if right else f"  instead: {seen!s:.300}"
        print(f"{'ok' if right else 'FAILED':6}  {part:8}  {what}{told}", flush=True)


# --- programs


class Day:
    """One folder, one store, and the programs that work on them."""

    def __init__(self, folder: Path, files: int, browser: bool):
        self.folder, self.notes = folder, folder / "notes"
        self.store, self.shots = folder / "store", folder / "screenshots"
        self.check, self.browser = Checked(), browser
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

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.program(*words), env=self.env, capture_output=True, text=True, timeout=600
        )

    def told(self, *words: str) -> dict:
        """What a command prints with --json."""
        done = self.run(*words, "--json")
        if done.returncode or not done.stdout:
            raise SystemExit(f"m3mlx {' '.join(words)} ended with {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)

    def documents(self) -> set[str]:
        return {document["path"] for document in self.told("list")["documents"]}

    def first(self, part: str, fact: Fact, paths: list[str], how: str) -> None:
        """Check that the first source is the document with the fact."""
        path = self.where[fact]
        right = paths[:1] == [str(path)]
        self.check(
            part, f"{how}, from {path.suffix[1:]}", right, f"{paths[:3]} for {fact.question}"
        )

    def one_of(self, form: str) -> Fact:
        return next(fact for fact, path in self.where.items() if path.suffix == f".{form}")

    # --- morning: the folder is followed

    @contextmanager
    def watching(self) -> Iterator[None]:
        log = open(self.folder / "watch.jsonl", "w")  # noqa: SIM115  closed below
        words = ("watch", str(self.notes), "--json", "--debounce", "0.5", "--grace", "10")
        errors = open(self.folder / "watch.log", "w")  # noqa: SIM115
        process = subprocess.Popen(self.program(*words), env=self.env, stdout=log, stderr=errors)
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            self.check(
                "watch", "ends when it is told to", process.wait(120) == 0, process.returncode
            )
            log.close()
            errors.close()

    def events(self, what: str) -> set[str]:
        lines = (self.folder / "watch.jsonl").read_text().splitlines()
        return {event["path"] for event in map(json.loads, lines) if event["what"] == what}

    def settled(self) -> None:
        """Wait until the store has what the folder has."""
        wanted = {str(path) for path in self.where.values()}
        there = until(lambda: self.documents() == wanted, 1800, every=4)
        self.check(
            "watch",
            f"the store has the {len(wanted)} documents of the folder",
            there,
            self.documents() ^ wanted,
        )

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
        """Files change, move and vanish."""
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
        """Change things while everything is memorized for the first time, and again at rest."""
        begun = until(lambda: len(self.events("added")) > 8, 900)
        self.check("watch", "memorizes", begun, (self.folder / "watch.log").read_text())
        self.changes()
        known = next(f for f, path in self.where.items() if str(path) in self.events("added"))
        hits = self.told("recall", known.question)["references"]
        self.first("cli", known, [hit["path"] for hit in hits], "recall while it memorizes")
        self.settled()
        self.check(
            "watch",
            "names the file that is none",
            str(self.notes / "broken.pdf") in self.events("failed"),
        )
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
        pending = self.told("status")["watching"]
        self.check(
            "watch",
            "status shows that nothing is pending",
            pending and not (pending["pending"] or pending["vanished"]),
            pending,
        )

    # --- noon: questions in every way

    def by_command_line(self, subject: Fact) -> None:
        for form in FORMATS if len(self.facts) >= FEW else ("md", "eml", "pdf"):
            fact = self.one_of(form)
            hits = self.told("recall", fact.question)["references"]
            self.first("cli", fact, [hit["path"] for hit in hits], "recall")
        for fact in (subject, self.one_of("pdf"), list(self.where)[-1]):
            answer = self.told("ask", fact.question, "--max-tokens", "24")
            self.first("cli", fact, [source["path"] for source in answer["sources"]], "ask")

    @contextmanager
    def serving(self) -> Iterator[str]:
        log = open(self.folder / "serve.log", "a+")  # noqa: SIM115
        begin = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(self.program("serve", "--port", "0"), env=self.env, stderr=log)

        def address() -> str | None:
            log.seek(begin)
            found = re.search(r"Serving on (http://\S+);", log.read())
            return found and found[1]

        try:
            if not until(lambda: address() or process.poll() is not None, 300) or not address():
                raise SystemExit((self.folder / "serve.log").read_text())
            yield address()
        finally:
            process.send_signal(signal.SIGTERM)
            self.check(
                "server", "ends when it is told to", process.wait(120) == 0, process.returncode
            )
            log.close()

    def by_openai(self, url: str, fact: Fact) -> tuple[str, list[str]]:
        """An answer and its sources."""
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600)
        said = [{"role": "user", "content": fact.question}]
        answer = client.chat.completions.create(model="m3mlx", messages=said, max_tokens=24)
        paths = [source["path"] for source in answer.m3mlx["sources"]]
        return answer.choices[0].message.content, paths

    def by_openai_stream(self, url: str, fact: Fact) -> list[str]:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600)
        said = [{"role": "user", "content": fact.question}]
        paths = []
        for event in client.chat.completions.create(
            model="m3mlx", messages=said, max_tokens=24, stream=True
        ):
            more = getattr(event, "m3mlx", None) or {}
            paths += [source["path"] for source in more.get("sources", ())]
        return paths

    def by_mcp(self, fact: Fact) -> dict[str, list[str]]:
        """The places that recall and ask name, in order."""
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
        asked = [*words, "-m", "m3mlx", fact.question, "-o", "max_tokens", "24"]
        subprocess.run(
            asked,
            env=self.env,
            stdin=subprocess.DEVNULL,
            check=True,
            text=True,
            capture_output=True,
            timeout=600,
        )
        logged = subprocess.run(
            [*words, "logs", "--json", "-n", "1"],
            env=self.env,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        told = json.loads(logged)[0]["response_json"]
        told = json.loads(told) if isinstance(told, str) else told
        return [source["path"] for source in told["sources"]]

    # --- evening: one document is forgotten

    def everywhere(self, url: str, page: Page | None, fact: Fact) -> dict[str, list[str]]:
        """What each way of asking for a fact draws on."""
        mcp = self.by_mcp(fact)
        return {
            "recall": [hit["path"] for hit in self.told("recall", fact.question)["references"]],
            "ask": [
                source["path"]
                for source in self.told("ask", fact.question, "--max-tokens", "24")["sources"]
            ],
            "openai": self.by_openai(url, fact)[1],
            "openai, streamed": self.by_openai_stream(url, fact),
            **({"page": page.ask(fact.question)} if page else {}),
            "mcp recall": mcp["recall"],
            "mcp ask": mcp["ask"],
            "llm": self.by_llm(fact),
        }

    def forget(self, url: str, page: Page | None, fact: Fact) -> None:
        path = self.where.pop(fact)
        done = self.run("forget", str(path), "--verify", "--json")
        path.unlink()  # behind it: what is gone for ten seconds, the watcher forgets by itself
        gone = json.loads(done.stdout or "{}")
        self.check(
            "forget",
            "forget --verify finds no trace",
            done.returncode == 0 and gone.get("found") == [],
            done.stderr,
        )
        for way, paths in self.everywhere(url, page, fact).items():
            self.check(
                "forget", f"{way} has other sources", paths and str(path) not in paths, paths
            )
        if page:
            page.open(url)
            self.check("forget", "the page lists it no more", path.name not in page.listed())
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
                before = self.by_openai(url, subject)
                if self.browser:
                    with browsing(self.shots) as page:
                        self.by_page(page, url)
            with self.serving() as url:
                after = self.by_openai(url, subject)
                self.check(
                    "server", "answers the same after a restart", before == after, (before, after)
                )
                with browsing(self.shots) if self.browser else nullcontext() as page:
                    if page:
                        page.open(url)
                    for way, paths in self.everywhere(url, page, subject).items():
                        self.first(way.split()[0].rstrip(","), subject, paths, way)
                    self.forget(url, page, subject)
        found = self.told("check")
        self.check("check", "the store is sound", not found.get("damages"), found)
        print(f"{self.check.failed} failed" if self.check.failed else "All as it should be.")
        return 1 if self.check.failed else 0

    def by_page(self, page: Page, url: str) -> None:
        page.open(url)
        page.shot("opened")
        self.check(
            "page", "lists all documents", len(page.listed()) == len(self.where), len(page.listed())
        )
        fact = self.one_of("docx")
        self.first("page", fact, page.ask(fact.question), "an answer")
        page.open_sources()
        page.shot("sources")
        self.check("page", "shows what is kept of a source", page.inside() == str(self.where[fact]))
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
        self.first("page", fact, page.ask(fact.question), "answers side by side")
        page.shot("side-by-side")
        page.forget("dropped.md")
        self.check("page", "forgets it", "dropped.md" not in page.listed())
        page.phone()
        page.shot("phone")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="new folder for files, store and screenshots")
    parser.add_argument("--files", type=int, default=200, help="how many, 27 at least")
    parser.add_argument("--no-browser", action="store_true", help="leave the page out")
    given = parser.parse_args()
    if given.folder.exists() or given.files < 27:
        parser.error(f"{given.folder} exists" if given.folder.exists() else "27 files at least")
    browser = not given.no_browser and bool(
        shutil.which("chromium") and shutil.which("chromedriver")
    )
    if not browser and not given.no_browser:
        print("The page is left out: it needs Debian's packages chromium and chromium-driver.")
    given.folder.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # ends what it has started
    return Day(given.folder.resolve(), given.files, browser).go()


if __name__ == "__main__":
    sys.exit(main())
