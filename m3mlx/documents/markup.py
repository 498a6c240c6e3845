"""Text with marks of its own to plain text: RTF, notebooks, Org, TeX and subtitles."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..errors import DocumentError
from .text import Note, decode

STAMP = re.compile(r"\s*(?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3}\s*-->")
TAG = re.compile(r"<[^<>]{1,200}>|\{\\[^{}]{1,200}\}")
ORG_HEADING = re.compile(
    r"(\*+) +(?:(?:TODO|DONE|NEXT|WAITING|CANCELLED) +)?(.*?)(?:\s+:[\w@:]+:)?$"
)
ORG_SETTING = re.compile(r"\s*#\+(\w+):?\s*(.*)|\s*:(\w+):.*|\s*# ?.*", re.IGNORECASE)
ORG_LINK = re.compile(r"\[\[([^\[\]]+)\](?:\[([^\[\]]+)\])?\]")
ORG_SHOWN = ("title", "author", "date", "subtitle", "description", "caption")
TEX_SECTIONS = ("part", "chapter", "section", "subsection", "subsubsection", "paragraph")
TEX_DROPPED = re.compile(
    r"\\(?:usepackage|documentclass|label|ref|eqref|cite\w*|includegraphics|bibliography\w*|vspace"
    r"|hspace|pagestyle|thispagestyle|setlength|newcommand|renewcommand|input|include|begin|end)"
    r"\*?(?:\[[^\[\]]*+\])*+(?:\{[^{}]*+\})*+"
)
TEX_HEADING = re.compile(
    rf"\\({'|'.join(TEX_SECTIONS)}|title)\*?(?:\[[^\[\]]*+\])?\{{((?:[^{{}}]|\{{[^{{}}]*+\}})*+)\}}"
)
TEX_STYLE = re.compile(
    r"\\(?:text\w+|emph|underline|mbox|footnote|caption|url|href)\*?\{([^{}]*+)\}"
)
TEX_COMMENT = re.compile(r"(?<!\\)%.*")
TEX_SIGNS = {"~": " ", "``": "“", "''": "”", "---": "—", "--": "–", r"\\": " "}


def read_rtf(path: Path, data: bytes, note: Note) -> str:
    from striprtf.striprtf import rtf_to_text

    if not data.lstrip().startswith(b"{\\rtf"):
        raise DocumentError(path, "is broken: it is no RTF")
    # bytes beyond ASCII stand for themselves in old files
    return rtf_to_text(data.decode("cp1252", "replace"), errors="replace")


def read_notebook(path: Path, data: bytes, note: Note) -> str:
    """Read text, code and the text that the code printed; pictures are left out."""
    book = json.loads(decode(path, data, note))
    cells = book.get("cells") or [c for sheet in book.get("worksheets", []) for c in sheet["cells"]]
    blocks = []
    for cell in cells:
        source = _joined(cell.get("source", cell.get("input", ""))).strip("\n")
        if cell["cell_type"] == "code" and source:
            source = f"```\n{source}\n```"
        blocks += [source, *map(_output, cell.get("outputs", ()))]
    return "\n\n".join(block for block in blocks if block.strip())


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def _output(output: dict) -> str:
    if output.get("output_type") in ("error", "pyerr"):
        return f"{output.get('ename', 'Error')}: {output.get('evalue', '')}"
    text = output.get("text") or output.get("data", {}).get("text/plain") or ""
    return _joined(text).strip("\n")


def read_subtitles(path: Path, data: bytes, note: Note) -> str:
    """Read what is said, without times; a pause between speakers is a line."""
    spoken: list[str] = []
    for block in re.split(r"\n\s*\n", decode(path, data, note).replace("\r\n", "\n")):
        lines = block.strip().split("\n")
        at = next((i for i, line in enumerate(lines[:2]) if STAMP.match(line)), None)
        if at is None:
            continue  # the head of the file, a style or a comment
        said = " ".join(TAG.sub("", line).strip() for line in lines[at + 1 :]).strip()
        if said and said != (spoken or [""])[-1]:
            spoken.append(said)
    return "\n".join(spoken)


def read_org(path: Path, data: bytes, note: Note) -> str:
    """Read an Org file, with headings as in Markdown; every line stays where it is."""
    return "\n".join(map(_org_line, decode(path, data, note).split("\n")))


def _org_line(line: str) -> str:
    if match := ORG_HEADING.fullmatch(line):
        return f"{'#' * min(6, len(match[1]))} {ORG_LINK.sub(_link, match[2])}"
    if match := ORG_SETTING.fullmatch(line):
        name = (match[1] or "").lower()
        if name == "title":
            return f"# {match[2]}"
        return f"{name.capitalize()}: {match[2]}" if name in ORG_SHOWN else ""
    return ORG_LINK.sub(_link, line)


def _link(match: re.Match[str]) -> str:
    return match[2] or match[1]


def read_tex(path: Path, data: bytes, note: Note) -> str:
    """Read TeX, with headings as in Markdown and formulas as written; every line stays."""
    text = TEX_COMMENT.sub("", decode(path, data, note))
    text = TEX_HEADING.sub(_tex_heading, text)
    for _ in range(3):  # styles within styles
        text = TEX_STYLE.sub(r"\1", text)
    text = TEX_DROPPED.sub(lambda match: "\n" * match[0].count("\n"), text)
    text = re.sub(r"\\item\b\s?", "- ", text)
    for sign, shown in TEX_SIGNS.items():
        text = text.replace(sign, shown)
    return re.sub(r"\\([%&#$_{}])", r"\1", text)


def _tex_heading(match: re.Match[str]) -> str:
    level = 1 if match[1] == "title" else max(1, TEX_SECTIONS.index(match[1]))
    return f"{'#' * level} {' '.join(match[2].split())}" + "\n" * match[0].count("\n")
