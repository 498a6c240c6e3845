"""Text with marks of its own to plain text: RTF, notebooks, Org, TeX and subtitles."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

from ..errors import DocumentError
from . import html
from .text import Note, decode

STAMP = re.compile(r"\s*(?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3}\s*-->")
TAG = re.compile(r"<[^<>]{1,200}>|\{\\[^{}]{1,200}\}")
RTF_BRACE = re.compile(r"\\[{}\\]|\{(?P<words>(?:\\(?:\*|[a-z]{1,32}-?\d{0,10}) ?)*+)|\}")
RTF_KIND = re.compile(r"\\(?:v|deleted|footnote|header[lrf]?|footer[lrf]?)(?![a-z0-9])")
ORG_HEADING = re.compile(
    r"(\*+) +(?:(?:TODO|DONE|NEXT|WAITING|CANCELLED) +)?(.*?)(?:\s+:[\w@:]+:)?$"
)
ORG_SETTING = re.compile(r"\s*#\+(\w+):?\s*(.*)|\s*:(\w+):.*|\s*# ?.*", re.IGNORECASE)
ORG_BLOCK = re.compile(r"\s*#\+(begin|end)_(\w+).*", re.IGNORECASE)
ORG_RULE = re.compile(r"\s*\|[-+|]+\s*")
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
TEX_STYLE = re.compile(r"\\(?:text\w+|emph|underline|mbox|caption|url|href)\*?\{([^{}]*+)\}")
TEX_NOTE = re.compile(r"\\(?:footnote|thanks)\{([^{}]*+)\}")
TEX_ACCENT = re.compile(
    r"\\(?:([`'^\"~=.])\s?|([uvHcdbrk])(?:\s|(?=\{)))(?:\{\\?([A-Za-z])\}|\\?([A-Za-z]))"
)
ACCENTS = dict(
    zip(
        "`'^\"~=.uvHcdbrk",
        "\u0300\u0301\u0302\u0308\u0303\u0304\u0307\u0306\u030c\u030b\u0327\u0323\u0331\u030a\u0328",
        strict=True,
    )
)
TEX_LETTER = re.compile(r"\\(ss|ae|AE|oe|OE|aa|AA|o|O|l|L)(?![A-Za-z])(?:\{\}|\s)?")
LETTERS = dict(zip("ss ae AE oe OE aa AA o O l L".split(), "ßæÆœŒåÅøØłŁ", strict=True))
TEX_COMMENT = re.compile(r"(?<!\\)%.*")
TEX_SIGNS = {"~": " ", "``": "“", "''": "”", "---": "—", "--": "–", r"\\": " "}


def read_rtf(path: Path, data: bytes, note: Note) -> str:
    from striprtf.striprtf import rtf_to_text

    if not data.lstrip().startswith(b"{\\rtf"):
        raise DocumentError(path, "is broken: it is no RTF")
    # bytes beyond ASCII stand for themselves in old files
    return rtf_to_text(_as_shown(data.decode("cp1252", "replace")), errors="replace")


def _as_shown(source: str) -> str:
    """Leave out what is hidden or deleted of an RTF, and set notes and margins into the text."""
    parts: list[str] = []
    open_groups: list[tuple[int, str]] = []  # parts before it; what it is
    end = 0
    for brace in RTF_BRACE.finditer(source):
        parts.append(source[end : brace.start()])
        end = brace.end()
        if brace["words"] is not None:
            kind = RTF_KIND.search(brace["words"])
            open_groups.append((len(parts), kind[0] if kind else ""))
            parts.append(brace[0])
        elif brace[0] == "}" and open_groups:
            start, kind_of = open_groups.pop()
            if kind_of in ("\\v", "\\deleted"):
                del parts[start:]
            elif kind_of:
                is_note = kind_of == "\\footnote"
                parts[start] = "{ [" if is_note else "{\\par "
                parts.append("]}" if is_note else "\\par }")
            else:
                parts.append("}")
        else:
            parts.append(brace[0])
    return "".join(parts) + source[end:]


def read_notebook(path: Path, data: bytes, note: Note) -> str:
    """Read text, code and the text that the code printed; pictures are left out."""
    book = json.loads(decode(path, data, note))
    cells = book.get("cells") or [c for sheet in book.get("worksheets", []) for c in sheet["cells"]]
    blocks = []
    for cell in cells:
        source = _joined(cell.get("source", cell.get("input", ""))).strip("\n")
        if cell["cell_type"] == "code" and source:
            source = f"```\n{source}\n```"
        elif cell["cell_type"] == "heading":
            source = f"{'#' * int(cell.get('level', 1))} {source}"
        blocks += [source, *map(_output, cell.get("outputs", ()))]
    return "\n\n".join(block for block in blocks if block.strip())


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def _output(output: dict) -> str:
    if output.get("output_type") in ("error", "pyerr"):
        return f"{output.get('ename', 'Error')}: {output.get('evalue', '')}"
    found = output.get("data", {})
    text = output.get("text") or found.get("text/markdown") or found.get("text/plain")
    if not text and "text/html" in found:
        return html.render(_joined(found["text/html"]))
    return _joined(text or "").strip("\n")


def read_subtitles(path: Path, data: bytes, note: Note) -> str:
    """Read what is said, without times; a pause between speakers is a line."""
    spoken: list[str] = []
    last = ""
    for block in re.split(r"\n\s*\n", decode(path, data, note).replace("\r\n", "\n")):
        lines = block.strip().split("\n")
        at = next((i for i, line in enumerate(lines[:2]) if STAMP.match(line)), None)
        if at is None:
            continue  # the head of the file, a style or a comment
        said = [unescape(TAG.sub("", line)).strip() for line in lines[at + 1 :]]
        while said and said[0] == last:  # lines that roll up are shown again
            del said[0]
        if said := [line for line in said if line]:
            spoken.append(" ".join(said))
            last = said[-1]
    return "\n".join(spoken)


def read_org(path: Path, data: bytes, note: Note) -> str:
    """Read an Org file, with headings as in Markdown; every line stays where it is."""
    lines, in_block = [], False
    for line in decode(path, data, note).split("\n"):
        if block := ORG_BLOCK.fullmatch(line.rstrip()):
            in_block = block[1].lower() == "begin"
            lines.append("```" if block[2].lower() in ("src", "example") else "")
        elif in_block:
            lines.append(line)
        else:
            lines.append(_org_line(line))
    return "\n".join(lines)


def _org_line(line: str) -> str:
    if match := ORG_HEADING.fullmatch(line):
        return f"{'#' * min(6, len(match[1]))} {ORG_LINK.sub(_link, match[2])}"
    if match := ORG_SETTING.fullmatch(line):
        name = (match[1] or "").lower()
        if name == "title":
            return f"# {match[2]}"
        return f"{name.capitalize()}: {match[2]}" if name in ORG_SHOWN else ""
    if ORG_RULE.fullmatch(line):
        return line.replace("+", "|")
    return ORG_LINK.sub(_link, line)


def _link(match: re.Match[str]) -> str:
    return match[2] or match[1]


def read_tex(path: Path, data: bytes, note: Note) -> str:
    """Read TeX, with headings as in Markdown and formulas as written; every line stays."""
    text = TEX_COMMENT.sub("", decode(path, data, note))
    text = TEX_ACCENT.sub(lambda m: (m[3] or m[4]) + ACCENTS[m[1] or m[2]], text)
    text = TEX_LETTER.sub(lambda m: LETTERS[m[1]], text)
    text = TEX_HEADING.sub(_tex_heading, text)
    for _ in range(3):  # styles within styles
        text = TEX_NOTE.sub(r" (\1)", TEX_STYLE.sub(r"\1", text))
    text = TEX_DROPPED.sub(lambda match: "\n" * match[0].count("\n"), text)
    text = re.sub(r"\\item\b\s?", "- ", text)
    for sign, shown in TEX_SIGNS.items():
        text = text.replace(sign, shown)
    return re.sub(r"\\([%&#$_{}])", r"\1", text)


def _tex_heading(match: re.Match[str]) -> str:
    level = 1 if match[1] == "title" else max(1, TEX_SECTIONS.index(match[1]))
    return f"{'#' * level} {' '.join(match[2].split())}" + "\n" * match[0].count("\n")
