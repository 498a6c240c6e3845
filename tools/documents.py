"""Read a folder of real files and compare the words with a second opinion, by format.

    python tools/documents.py read FOLDER after.jsonl
    PYTHONPATH=../older python tools/documents.py read FOLDER before.jsonl
    python tools/documents.py table FOLDER before.jsonl after.jsonl

Second opinions: pdftotext for PDF; pandoc for DOCX, ODT, EPUB, RTF, TeX and Org; the XML itself for
PPTX, XLSX and ODS; xls2csv for XLS; lxml for HTML; the parts of a mail by Python's email; the file
itself for the rest. Programs that are missing give no opinion. Recall is the share of its words
that we have too, precision the share of ours that it has, both with their numbers and without
their order; a file is right where recall is at least 0.95.
"""

from __future__ import annotations

import argparse
import email.policy
import json
import re
import subprocess
import sys
import time
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
PANDOC = {".docx": "docx", ".docm": "docx", ".odt": "odt", ".epub": "epub", ".rtf": "rtf"}
PANDOC |= {".tex": "latex", ".org": "org"}
RIGHT = 0.95
LIMIT = 60  # seconds for a second opinion
SAME = {".htm": ".html", ".xhtml": ".html", ".docm": ".docx", ".xlsm": ".xlsx", ".mht": ".mhtml"}


def words(text: str) -> Counter[str]:
    return Counter(WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_all(folder: Path, out: Path) -> None:
    """Read each file as m3mlx does, whatever its suffix, and save words or reason as JSON lines."""
    from m3mlx import documents
    from m3mlx.errors import M3Error

    reader = documents.Worker() if hasattr(documents, "Worker") else documents
    with out.open("w") as lines:
        for path in files_in(folder):
            start = time.monotonic()
            said: dict[str, object] = {"path": str(path.relative_to(folder))}
            try:
                if documents.format_of(path) is None:
                    raise M3Error("is of a format that is not read")
                document = reader.read(path)
                said |= {
                    "words": words(document.text),
                    "notes": len(getattr(document, "notes", ())),
                }
            except M3Error as error:
                said["reason"] = getattr(error, "reason", str(error))
            except Exception as error:
                said["reason"] = f"TRACEBACK {error!r}"
            said["seconds"] = round(time.monotonic() - start, 3)
            lines.write(json.dumps(said) + "\n")


# --- second opinions


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, timeout=LIMIT, check=True)
    return done.stdout.decode("utf-8", "replace")


def xml_text(data: bytes, names: str) -> str:
    from lxml import etree

    root = etree.fromstring(data, etree.XMLParser(recover=True, resolve_entities=False))
    found = (e for e in root.iter() if isinstance(e.tag, str))
    texts = (e for e in found if re.fullmatch(names, e.tag.rpartition("}")[2]))
    return "\n".join("".join(e.itertext()) for e in texts)


def slides(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = [n for n in archive.namelist() if re.match(r"ppt/(notesS|s)lides/[^/]+\.xml", n)]
        return "\n".join(xml_text(archive.read(name), "p") for name in names)


def cells(path: Path) -> str:
    """Return the text cells of a workbook, each shared text as often as cells point at it."""
    from lxml import etree

    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "content.xml" in names:
            return xml_text(archive.read("content.xml"), "p|h")
        shared: list[str] = []
        for name in names:
            if name.lower().endswith("sharedstrings.xml"):
                for item in etree.fromstring(archive.read(name)):
                    parts = (e for e in item.iter() if str(e.tag).endswith("}t"))
                    kept = (e.text or "" for e in parts if "}rPh" not in str(e.getparent().tag))
                    shared.append("".join(kept))
        found = []
        for name in names:
            if not re.match(r"xl/worksheets/[^/]+\.xml", name):
                continue
            for cell in etree.fromstring(archive.read(name)).iter("{*}c"):
                values = ["".join(e.itertext()) for e in cell if str(e.tag).endswith(("}v", "}is"))]
                if cell.get("t") == "s" and values:
                    found.append(shared[int(values[0])])
                elif cell.get("t") in ("inlineStr", "str"):
                    found += values
        return "\n".join(found)


def page(path: Path) -> str:
    return page_text(path.read_bytes())


def page_text(data: bytes | str) -> str:
    from lxml import html

    root = html.fromstring(data)
    for element in root.xpath("//script|//style|//noscript|//template|//comment()|//head/*"):
        if element.getparent() is not None and element.tag != "title":
            element.drop_tree()
    return " ".join(root.itertext())


def mail(path: Path) -> str:
    return mail_text(email.message_from_bytes(path.read_bytes(), policy=email.policy.default))


def mail_text(message: email.message.EmailMessage) -> str:
    """Return subject, sender and text parts; HTML only where no plain text stands beside it."""
    texts = [str(message.get("Subject", "")), str(message.get("From", ""))]
    kinds = [part.get_content_type() for part in message.walk()]
    for part in message.walk():
        kind = part.get_content_type()
        if part.get_filename() or kind not in ("text/plain", "text/html"):
            continue
        text = part.get_content()
        if kind == "text/plain" or "text/plain" not in kinds:
            texts.append(text if kind == "text/plain" else page_text(text))
    return "\n".join(texts)


def mailbox(path: Path) -> str:
    parts = re.split(rb"(?:\A|\n\n)From [^\n]*\n", path.read_bytes())
    policy = email.policy.default
    return "\n".join(mail_text(email.message_from_bytes(p, policy=policy)) for p in parts if p)


def notebook(path: Path) -> str:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def values(path: Path) -> str:
    def leaves(tree: object) -> Iterable[object]:
        inner = tree.values() if isinstance(tree, dict) else tree
        if isinstance(tree, dict | list):
            for each in inner:  # type: ignore[union-attr]
                yield from leaves(each)
        else:
            yield json.dumps(tree, ensure_ascii=False) if not isinstance(tree, str) else tree

    return "\n".join(map(str, leaves(json.loads(path.read_text("utf-8-sig")))))


def plain(path: Path) -> str:
    return path.read_text("utf-8-sig")


def said_lines(path: Path) -> str:
    lines = [line for line in plain(path).splitlines() if "-->" not in line]
    return "\n".join(line for line in lines if not re.fullmatch(r"\d+|WEBVTT.*", line.strip()))


OPINIONS: dict[str, Callable[[Path], str]] = {
    ".pdf": lambda path: run("pdftotext", "-enc", "UTF-8", path, "-"),
    **dict.fromkeys(
        PANDOC, lambda path: run("pandoc", "-f", PANDOC[path.suffix.lower()], "-t", "plain", path)
    ),
    ".pptx": slides,
    **dict.fromkeys((".xlsx", ".xlsm", ".ods"), cells),
    ".xls": lambda path: run("xls2csv", "-d", "utf-8", path),
    **dict.fromkeys((".html", ".htm", ".xhtml"), page),
    ".eml": mail,
    ".mbox": mailbox,
    ".ipynb": notebook,
    ".json": values,
    **dict.fromkeys((".srt", ".vtt"), said_lines),
    **dict.fromkeys((".csv", ".tsv", ".md", ".rst"), plain),
}


def opinion(path: Path) -> Counter[str] | None:
    """Return the words of the second opinion; None if there is none."""
    try:
        return words(OPINIONS[path.suffix.lower()](path)) or None
    except Exception:  # another program's or this script's trouble with the file
        return None


# --- the table


def known(file: Path) -> dict[str, dict]:
    return {said["path"]: said for said in map(json.loads, file.read_text().splitlines())}


def kind(path: str) -> str:
    suffix = Path(path).suffix.lower()
    return SAME.get(suffix, suffix)


def table(folder: Path, runs: list[Path], only: str, worst: int) -> None:
    """Print a line for each format, with figures of each run, and the reasons of refusals."""
    saved = [known(file) for file in runs]
    by_kind: dict[str, list[str]] = {}
    for path in saved[-1]:
        by_kind.setdefault(kind(path), []).append(path)
    print("| format | files | with opinion |" + " read | right | recall | precision |" * len(runs))
    print("| --- | ---: | ---: |" + " ---: | ---: | ---: | ---: |" * len(runs))
    for suffix, paths in sorted(by_kind.items(), key=lambda item: -len(item[1])):
        if only and suffix != only:
            continue
        second = {path: found for path in paths if (found := opinion(folder / path))}
        cells = [suffix, str(len(paths)), str(len(second))]
        for said in saved:
            read = [path for path in paths if "words" in said.get(path, {})]
            scores = {
                path: score(said[path]["words"], second[path]) for path in second if path in read
            }
            right = sum(recall >= RIGHT for recall, _ in scores.values())
            means = [sum(each) / len(scores) for each in zip(*scores.values(), strict=True)]
            cells += [str(len(read)), str(right)] + [f"{mean:.3f}" for mean in means or [0, 0]]
        print(f"| {' | '.join(cells)} |", flush=True)
        for path, (recall, precision) in sorted(scores.items(), key=lambda item: item[1])[:worst]:
            print(f"    {recall:.2f} {precision:.2f} {path}")
    print()
    reasons = Counter(
        (kind(path), re.sub(r"\(.*\)|\d+", "…", said["reason"]))
        for path, said in saved[-1].items()
        if "reason" in said and (not only or kind(path) == only)
    )
    print("\n".join(f"{count} {suffix}: {why}" for (suffix, why), count in reasons.most_common()))


def score(ours: dict[str, int], second: Counter[str]) -> tuple[float, float]:
    mine = Counter(ours)
    both = (mine & second).total()
    return both / second.total(), both / max(1, mine.total())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, dest="command")
    reading = commands.add_parser("read", help="read all files, save their words")
    reading.add_argument("folder", type=Path)
    reading.add_argument("out", type=Path)
    comparing = commands.add_parser("table", help="compare with second opinions")
    comparing.add_argument("folder", type=Path)
    comparing.add_argument("runs", type=Path, nargs="+")
    comparing.add_argument("--only", default="", help="one format, such as .pdf")
    comparing.add_argument("--worst", type=int, default=0, help="name so many files of each format")
    chosen = parser.parse_args()
    if chosen.command == "read":
        read_all(chosen.folder, chosen.out)
    else:
        table(chosen.folder, chosen.runs, chosen.only, chosen.worst)


if __name__ == "__main__":
    sys.exit(main())
