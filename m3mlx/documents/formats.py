"""The table of formats: how each kind of file is read and cut.

A reader gets a file's name and bytes, never the file itself, and a function to tell what of it is
lost. It returns the text, or a list with the text of each page, and raises DocumentError with a
reason a user can act on. Any other exception of it means that the file is damaged. Libraries are
imported when the first file that needs them is read. To add a format, write its reader and name it
here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from . import data, epub, html, mail, markup, ocr, office, opendocument, pdf, sheets, text
from .archive import unpack_gzip
from .text import Note

Kind = Literal["prose", "code", "rows"]

PACKED = ".gz"
CODE = """
    .ada .adb .ads .asm .awk .bash .bat .c .cc .cjs .clj .cljs .cmake .cmd .coffee .cpp .cr .cs
    .css .cu .cuh .cxx .d .dart .el .elm .erl .ex .exs .f .f90 .f95 .fish .for .fs .fsx .glsl .go
    .gradle .graphql .groovy .h .hcl .hh .hpp .hrl .hs .hxx .java .jl .js .jsx .kt .kts .less
    .lisp .lua .m .metal .mjs .mk .ml .mli .mm .nim .nix .pas .php .pl .pm .proto .ps1 .py .pyi
    .pyx .r .rb .rkt .rs .s .sass .scala .scm .scss .sh .sol .sql .sv .svelte .swift .tcl .tf .ts
    .tsx .v .vala .vb .vhd .vhdl .vim .vue .wgsl .zig .zsh
    cmakelists.txt dockerfile gemfile jenkinsfile justfile makefile rakefile
""".split()
TEXT = """
    .adoc .asciidoc .bib .cfg .cnf .conf .diff .eln .ini .log .markdown .md .mdown .mdx .mkd .nfo
    .patch .po .properties .qmd .rmd .rst .text .toml .txt .wiki .xml .yaml
    .yml authors changelog changes contributing copying license news readme todo
""".split()


PICTURES = ".png .jpg .jpeg .gif .tif .tiff .bmp .webp"

# what is no document: kind in the plural, what to do, suffixes
UNREAD = (
    ("old Word documents", "save them as .docx", ".doc .dot .wps"),
    ("old PowerPoint presentations", "save them as .pptx", ".ppt .pps"),
    ("Outlook mails", "save them as .eml", ".msg"),
    ("Outlook mailboxes", "export them as .mbox", ".pst .ost"),
    ("iWork documents", "export them as PDF or as .docx, .xlsx or .pptx", ".pages .numbers .key"),
    ("Kindle books", "convert them to .epub", ".mobi .azw .azw3"),
    ("documents to print", "convert them to PDF", ".ps .eps .djvu .xps"),
    ("pictures", "--ocr reads the text in them", PICTURES),
    ("other pictures", "their text is read once they are PDF", ".heic .svg .raw .psd .ico"),
    (
        "sounds and films",
        "their text is read once it is transcribed, for example to",
        ".mp3 .m4a .wav .flac .ogg .aac .opus .mp4 .m4v .mov .mkv .avi .webm",
    ),
    ("archives", "unpack them", ".zip .tar .gz .tgz .bz2 .xz .zst .7z .rar .dmg .iso"),
    ("databases", "export their tables as .csv", ".sqlite .db .mdb .accdb .parquet .feather"),
)
ADVICE = {suffix: (kind, advice) for kind, advice, all in UNREAD for suffix in all.split()}


@dataclass(frozen=True)
class Format:
    """How one format is read and cut.

    Attributes:
        read: the reader: name and bytes of a file, and where to tell what is lost -> its text, or
            the text of each page.
        kind: where the text may be cut; every line of "rows" stands alone.
        lined: lines of the text are those of the file, so that they can be cited.
        plain: the file is nothing but text, so that a NUL byte makes it binary.
        pieces: the reader takes the file piece by piece, so that it may be of any size.
        simple: the reader is short and its time linear, so that it needs no process of its own.
        guessed: the name tells no format; the file is a document if its content is text.
    """

    read: Callable[[Path, bytes, Note], str | list[str]]
    kind: Kind = "prose"
    lined: bool = False
    plain: bool = True
    pieces: bool = False
    simple: bool = False
    guessed: bool = False


def _read_other(path: Path, data: bytes, note: Note) -> str | None:
    """Read a file that is part of another one; None if its format is not known."""
    form = format_of(path)
    found = form.read(path, data, note) if form and not form.guessed else None
    return found if found is None or isinstance(found, str) else "\n\n".join(found)


PLAIN = Format(text.read, lined=True, simple=True)
GUESSED = replace(PLAIN, guessed=True)
FORMATS = {  # by whole name or suffix, in lower case
    **dict.fromkeys(TEXT, PLAIN),
    **dict.fromkeys(CODE, Format(text.read, kind="code", lined=True, simple=True)),
    **dict.fromkeys((".csv", ".tsv"), Format(data.read_table, kind="rows", lined=True)),
    **dict.fromkeys((".jsonl", ".ndjson"), Format(data.read_lines, kind="rows", lined=True)),
    ".json": Format(data.read_json, kind="rows"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), Format(html.read)),
    ".pdf": Format(pdf.read, plain=False),
    **dict.fromkeys((".docx", ".docm", ".dotx"), Format(office.read, plain=False)),
    **dict.fromkeys((".pptx", ".pptm", ".ppsx"), Format(office.read_slides, plain=False)),
    **dict.fromkeys(
        (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods"),
        Format(sheets.read, kind="rows", plain=False),
    ),
    **dict.fromkeys((".odt", ".ott", ".odp", ".odg"), Format(opendocument.read, plain=False)),
    **dict.fromkeys((".fodt", ".fodp"), Format(opendocument.read_flat)),
    ".rtf": Format(markup.read_rtf),
    ".ipynb": Format(markup.read_notebook),
    ".org": Format(markup.read_org, lined=True),
    ".tex": Format(markup.read_tex, lined=True),
    **dict.fromkeys((".srt", ".vtt"), Format(markup.read_subtitles)),
    **dict.fromkeys((".mhtml", ".mht"), Format(partial(mail.read_page, read_other=_read_other))),
    ".ics": Format(mail.read_calendar),
    ".epub": Format(epub.read, plain=False),
    ".eml": Format(partial(mail.read_message, read_other=_read_other), plain=False),
    ".emlx": Format(partial(mail.read_stored, read_other=_read_other), plain=False),
    ".mbox": Format(partial(mail.read_mailbox, read_other=_read_other), plain=False, pieces=True),
}
WITH_OCR = {  # instead of those above, where text in pictures is recognized
    ".pdf": Format(partial(pdf.read, recognize=ocr.recognize), plain=False),
    **dict.fromkeys(PICTURES.split(), Format(ocr.read, plain=False)),
}


LEFTOVERS = ("~", ".bak", ".orig", ".part", ".rej", ".swp", ".tmp")  # of editors and downloads


def format_of(path: Path, ocr: bool = False) -> Format | None:
    """Return the format of a file; None for what is no document.

    Args:
        ocr: pictures have one too.
    """
    name, suffix = path.name.lower(), path.suffix.lower()
    if suffix == PACKED:
        if (form := format_of(Path(path.stem), ocr)) is None:
            return None
        read = partial(_unpack, form)
        return replace(form, read=read, pieces=False, simple=False)
    if form := (ocr and WITH_OCR.get(suffix)) or FORMATS.get(name) or FORMATS.get(suffix):
        return form
    return None if suffix in ADVICE or name.endswith(LEFTOVERS) else GUESSED


def _unpack(form: Format, path: Path, data: bytes, note: Note) -> str | list[str]:
    return form.read(path.with_suffix(""), unpack_gzip(path, data), note)


def is_picture(path: str | Path) -> bool:
    """Tell by its name that a file is a picture whose text can be recognized."""
    return Path(path).suffix.lower() in PICTURES.split()


def unread(path: Path) -> tuple[str, str]:
    """Return the kind of a file of no format, in the plural, and what to do with it or ""."""
    if path.name.lower().endswith(LEFTOVERS):
        return "leftovers of editors and downloads", ""
    return ADVICE.get(path.suffix.lower()) or ("binary files", "")
