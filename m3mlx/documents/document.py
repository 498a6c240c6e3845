"""One file as plain text, with what is needed to cite a place in it."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..errors import DocumentError
from . import data, epub, html, mail, office, pdf, text

MAX_BYTES = 200_000_000  # of one file: some hundred thousand pages, which still fit in memory

CODE = """
    .ada .adb .ads .asm .awk .bash .bat .c .cc .cjs .clj .cljs .cmake .cmd .coffee .cpp .cr .cs
    .css .cu .cuh .cxx .d .dart .el .elm .erl .ex .exs .f .f90 .f95 .fish .for .fs .fsx .glsl .go
    .gradle .graphql .groovy .h .hcl .hh .hpp .hrl .hs .hxx .java .jl .js .jsx .kt .kts .less
    .lisp .lua .m .metal .mjs .mk .ml .mli .mm .nim .nix .pas .php .pl .pm .proto .ps1 .py .pyi
    .pyx .r .rb .rkt .rs .s .sass .scala .scm .scss .sh .sol .sql .sv .svelte .swift .tcl .tf .ts
    .tsx .v .vala .vb .vhd .vhdl .vim .vue .wgsl .zig .zsh
""".split()
CODE_NAMES = "cmakelists.txt dockerfile gemfile jenkinsfile justfile makefile rakefile".split()
TEXT = """
    .adoc .asciidoc .bib .cfg .cnf .conf .diff .eln .ini .log .markdown .md .mdown .mdx .mkd .nfo
    .org .patch .po .properties .qmd .rmd .rst .srt .tex .text .toml .txt .vtt .wiki .xml .yaml
    .yml
""".split()
TEXT_NAMES = "authors changelog changes contributing copying license news readme todo".split()


@dataclass(frozen=True)
class Format:
    """How one family of files is read and cut.

    Attributes:
        read: path and bytes of a file -> its text, or one text for each page.
        kind: "prose", "code" or "rows" (every line stands alone), which decides where it is cut.
        lined: whether lines of the text are lines of the file, so that they can be cited.
        plain: whether the file is nothing but text, so that a NUL byte makes it binary.
    """

    read: Callable[[Path, bytes], str | list[str]]
    kind: str = "prose"
    lined: bool = False
    plain: bool = True


PLAIN = Format(text.read, lined=True)
SOURCE = Format(text.read, kind="code", lined=True)
FORMATS = {
    **dict.fromkeys(TEXT + TEXT_NAMES, PLAIN),
    **dict.fromkeys(CODE + CODE_NAMES, SOURCE),
    **dict.fromkeys((".csv", ".tsv"), Format(data.read_table, kind="rows", lined=True)),
    **dict.fromkeys((".jsonl", ".ndjson"), Format(data.read_lines, kind="rows", lined=True)),
    ".json": Format(data.read_json, kind="rows"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), Format(html.read)),
    ".pdf": Format(pdf.read, plain=False),
    ".docx": Format(office.read, plain=False),
    ".epub": Format(epub.read, plain=False),
    ".eml": Format(mail.read_message, plain=False),
    ".mbox": Format(mail.read_box, plain=False),
}


def format_of(path: Path) -> Format | None:
    """The format that a file's name tells, or None."""
    return FORMATS.get(path.name.lower()) or FORMATS.get(path.suffix.lower())


@dataclass(frozen=True)
class Document:
    """A file that the user gave, as text.

    Attributes:
        path: absolute; links among its folders are resolved, one in its last place is not.
        hash: SHA-256 of the file's bytes, in hexadecimal.
        text: normalized to NFC, newlines are ``\\n``, without control characters.
        page_starts: character at which each page starts; () for formats without pages.
        kind: "prose", "code" or "rows", which decides where the text may be cut.
        lined: whether lines of ``text`` are those of the file.
    """

    path: str
    hash: str
    text: str
    page_starts: tuple[int, ...] = ()
    kind: str = "prose"
    lined: bool = False

    def page_of(self, offset: int) -> int | None:
        """Page on which a character stands, from 1; None where there are no pages."""
        return bisect_right(self.page_starts, offset) or None

    def line_of(self, offset: int) -> int | None:
        """Line on which a character stands, from 1; None where lines mean nothing."""
        return bisect_right(self._line_starts, offset) if self.lined else None

    @cached_property
    def _line_starts(self) -> list[int]:
        starts = [0]
        while newline := self.text.find("\n", starts[-1]) + 1:
            starts.append(newline)
        return starts


def absolute(path: str | Path) -> Path:
    """The path under which a file is known: a link in its last place keeps its own name."""
    path = Path(path)
    if path.name in ("", ".."):
        return path.resolve()
    return path.parent.resolve() / path.name


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        DocumentError: it cannot be read, or is larger than ``MAX_BYTES``.
    """
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise _too_large(path)
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def read(path: str | Path) -> Document:
    """Read one file.

    Raises:
        DocumentError: with the reason why there is nothing to be read.
    """
    path = absolute(path)
    try:
        if path.exists() and not path.is_file():
            raise DocumentError(path, "is not a file")
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    return parse(path, content)


def parse(path: str | Path, content: bytes) -> Document:
    """Read the content of a file, which need not be there.

    What a name tells no format of is read as plain text if it is text.

    Args:
        path: the name it is to have.

    Raises:
        DocumentError: with the reason why there is nothing to be read.
    """
    path = Path(path)
    if len(content) > MAX_BYTES:
        raise _too_large(path)
    if not content:
        raise DocumentError(path, "is empty")
    form = format_of(path) or PLAIN
    try:
        pages = form.read(path, content)
    except DocumentError:
        raise
    except Exception as error:  # parsers raise whatever they like when a file is damaged
        name = path.suffix.lstrip(".").upper()
        raise DocumentError(path, f"is broken, it cannot be read as {name} ({error!r})") from error
    paged = isinstance(pages, list)
    pages = [text.clean(page) for page in (pages if paged else [pages])]
    if not any(page.strip() for page in pages):
        raise DocumentError(path, "is empty: there is no text in it")
    starts, offset = [], 0
    for page in pages:
        starts.append(offset)
        offset += len(page) + 2
    return Document(
        path=str(path),
        hash=hashlib.sha256(content).hexdigest(),
        # an empty line between pages, so that references rather end with their page
        text="\n\n".join(pages),
        page_starts=tuple(starts) if paged else (),
        kind=form.kind,
        lined=form.lined,
    )


def unreadable(path: str | Path, error: OSError) -> DocumentError:
    """Say in one sentence why the system refuses a path."""
    if isinstance(error, FileNotFoundError):
        return DocumentError(path, "does not exist")
    return DocumentError(path, f"cannot be opened ({error.strerror or error})")


def _too_large(path: str | Path) -> DocumentError:
    return DocumentError(path, f"is too large, the limit is {MAX_BYTES // 1_000_000} MB")
