"""Sample files of every format, good ones and bad ones, written where a test wants them."""

import json
import mailbox
import os
import zipfile
from email.message import EmailMessage
from pathlib import Path

import docx
from pypdf import PdfReader, PdfWriter

from m3mlx.documents import MAX_BYTES


def write(path: Path, content: str | bytes = "text\n") -> Path:
    """Write a file, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_pdf(path: Path, pages: list[list[str]]) -> Path:
    """Write a minimal PDF with lines of ASCII text on each page."""
    streams = []
    for lines in pages:
        shown = " T* ".join(f"({line}) Tj" for line in lines)
        streams.append(f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET")
    return write_pdf_of_streams(path, streams)


def write_pdf_of_streams(
    path: Path, streams: list[str], extra: list[str] | None = None, page: str = "", root: str = ""
) -> Path:
    """Write a PDF with a content stream for each page.

    Args:
        extra: more objects, of which the first is number 4.
        page, root: entries of each page and of the catalog.
    """
    objects = [f"<< /Type /Catalog /Pages 2 0 R {root} >>", ""]
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    objects += extra or []
    kids = []
    for stream in streams:
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {len(objects)} 0 R {page} >>"
        )
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    tail = f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    path.write_bytes(out + (head + tail).encode())
    return path


def write_encrypted_pdf(
    path: Path, user: str, owner: str = "owner", algorithm: str = "RC4-128"
) -> Path:
    write_pdf(path, [["The safe opens with 4711."]])
    writer = PdfWriter(clone_from=PdfReader(path))
    writer.encrypt(user, owner, algorithm=algorithm)
    writer.write(path)
    return path


def write_epub(path: Path, chapters: dict[str, str], spine: list[str], **extra: str) -> Path:
    """Write an EPUB of XHTML chapters; ``extra`` are more files, with ``__`` for a slash."""
    items = "".join(
        f'<item id="{name}" href="{name}.xhtml" media-type="application/xhtml+xml"/>'
        for name in chapters
    )
    refs = "".join(f'<itemref idref="{name}"/>' for name in spine)
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'
    )
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf">'
        f"<manifest>{items}</manifest><spine>{refs}</spine></package>"
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr("META-INF/container.xml", container)
        archive.writestr("OEBPS/book.opf", package)
        for name, body in chapters.items():
            archive.writestr(f"OEBPS/{name}.xhtml", f"<html><body>{body}</body></html>")
        for name, content in extra.items():
            archive.writestr(name.replace("__", "/"), content)
    return path


def write_zip(path: Path, files: dict[str, str] | dict[str, bytes]) -> Path:
    """Write a zip file, as most formats of offices are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def _relations(**targets: str) -> str:
    """Relations of a part, by id; the type is the id without its number."""
    kinds = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    each = "".join(
        f'<Relationship Id="{id}" Type="{kinds}/{id.rstrip("0123456789")}" Target="{target}"/>'
        for id, target in targets.items()
    )
    space = "http://schemas.openxmlformats.org/package/2006/relationships"
    return f'<Relationships xmlns="{space}">{each}</Relationships>'


def write_docx(path: Path, body: str, strict: bool = False, **parts: str) -> Path:
    """Write a DOCX of WordprocessingML; ``parts`` are others by name, such as footnotes."""
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    math = "http://schemas.openxmlformats.org/officeDocument/2006/math"
    relations = _relations(**{name: f"{name}.xml" for name in parts})
    main = _relations(officeDocument="word/document.xml")
    if strict:
        space = "http://purl.oclc.org/ooxml/wordprocessingml/main"
        old = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
        new = "http://purl.oclc.org/ooxml/officeDocument/relationships"
        relations, main = relations.replace(old, new), main.replace(old, new)
    head = f'xmlns:w="{space}" xmlns:m="{math}"'
    files = {
        "_rels/.rels": main,
        "word/document.xml": f"<w:document {head}><w:body>{body}</w:body></w:document>",
        "word/_rels/document.xml.rels": relations,
    }
    files |= {f"word/{name}.xml": f"<w:x {head}>{inner}</w:x>" for name, inner in parts.items()}
    return write_zip(path, files)


def write_pptx(path: Path, slides: list[str], notes: dict[int, str] | None = None) -> Path:
    """Write a PPTX of DrawingML, one string for each slide; ``notes`` are by number from 1."""
    spaces = (
        'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" '
        'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
        'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
    )
    numbers = range(1, len(slides) + 1)
    ids = "".join(f'<p:sldId id="{255 + i}" r:id="slide{i}"/>' for i in numbers)
    files = {
        "_rels/.rels": _relations(officeDocument="ppt/presentation.xml"),
        "ppt/presentation.xml": f"<p:x {spaces}><p:sldIdLst>{ids}</p:sldIdLst></p:x>",
        "ppt/_rels/presentation.xml.rels": _relations(
            **{f"slide{i}": f"slides/s{i}.xml" for i in numbers}
        ),
    }
    for i, slide in enumerate(slides, 1):
        files[f"ppt/slides/s{i}.xml"] = f"<p:sld {spaces}>{slide}</p:sld>"
        if text := (notes or {}).get(i):
            files[f"ppt/slides/_rels/s{i}.xml.rels"] = _relations(notesSlide=f"../n{i}.xml")
            files[f"ppt/n{i}.xml"] = f"<p:notes {spaces}>{shape(text)}</p:notes>"
    return write_zip(path, files)


def shape(*lines: str, kind: str = "body") -> str:
    """A shape of a slide with lines of text."""
    paragraphs = "".join(f"<a:p><a:r><a:t>{line}</a:t></a:r></a:p>" for line in lines)
    return (
        f'<p:sp><p:nvSpPr><p:nvPr><p:ph type="{kind}"/></p:nvPr></p:nvSpPr>'
        f"<p:txBody>{paragraphs}</p:txBody></p:sp>"
    )


def write_xlsx(path: Path, sheets: dict[str, list[list[str | float]]]) -> Path:
    """Write an XLSX with the rows of each sheet."""
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    ids = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
    names = "".join(
        f'<sheet name="{name}" sheetId="{i}" r:id="worksheet{i}"/>'
        for i, name in enumerate(sheets, 1)
    )
    files = {
        "_rels/.rels": _relations(officeDocument="xl/workbook.xml"),
        "xl/workbook.xml": f"<workbook {space} {ids}><sheets>{names}</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": _relations(
            **{f"worksheet{i}": f"s{i}.xml" for i in range(1, len(sheets) + 1)}
        ),
    }
    for i, rows in enumerate(sheets.values(), 1):
        cells = "".join(f"<row>{''.join(map(_cell, row))}</row>" for row in rows)
        files[f"xl/s{i}.xml"] = f"<worksheet {space}><sheetData>{cells}</sheetData></worksheet>"
    return write_zip(path, files)


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return f'<c t="inlineStr"><is><t>{value}</t></is></c>' if value else "<c/>"
    return f"<c><v>{value}</v></c>"


def opendocument(body: str, kind: str = "text") -> str:
    """The content of an ODT or ODP."""
    names = "office text table draw presentation dc".split()
    spaces = " ".join(f'xmlns:{n}="urn:oasis:names:tc:opendocument:xmlns:{n}:1.0"' for n in names)
    inner = f"<office:body><office:{kind}>{body}</office:{kind}></office:body>"
    return f"<office:document-content {spaces}>{inner}</office:document-content>"


def mail(subject: str, body: str, html: str | None = None) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "Anna Bö <anna@example.org>"
    message["To"] = "bert@example.org"
    message["Date"] = "Mon, 02 Feb 2032 10:00:00 +0000"
    message["Subject"] = subject
    message.set_content(body)
    if html:
        message.add_alternative(html, subtype="html")
    return message


def write_good_folder(path: Path) -> dict[str, str]:
    """Write one document of every format; return a phrase of each one's text."""
    path.mkdir(parents=True, exist_ok=True)
    texts = {
        "plain.txt": ("The ferry to Aldermoor leaves at noon.\n", "ferry to Aldermoor"),
        "notes.md": ("# Garden\n\nThe quince tree was planted in 1987.\n", "planted in 1987"),
        "manual.rst": ("Pump\n====\n\nPrime it with two litres of oil.\n", "two litres of oil"),
        "engine.py": ("def spark():\n    return 42  # Halloway constant\n", "Halloway constant"),
        "Dockerfile": ("FROM scratch\nLABEL keeper=orrin\n", "LABEL keeper=orrin"),
        "birds.csv": ("bird,colour\nkingfisher,blue\n", "bird: kingfisher; colour: blue"),
        "rivers.tsv": ("river\tkm\nTeign\t50\n", "river: Teign; km: 50"),
        "settings.json": ('{"lamp": {"colour": "amber", "hours": [6, 22]}}', "lamp.hours: 6, 22"),
        "events.jsonl": ('{"day": 1}\n{"day": 2, "event": "thaw"}\n', "day: 2; event: thaw"),
        "notes.org": (
            "* TODO Well :water:\nDig it near the [[url][alder]].\n",
            "# Well\nDig it near the alder.",
        ),
        "thesis.tex": (
            "\\section{Bells}\nCast in \\emph{bronze}. % why\n",
            "# Bells\nCast in bronze.",
        ),
        "film.srt": (
            "1\n00:00:01,000 --> 00:00:02,000\n<i>The gate is open.</i>\n\n",
            "The gate is open.",
        ),
        "talk.vtt": ("WEBVTT\n\n00:01.000 --> 00:02.000\nIt snows.\n", "It snows."),
        "letter.rtf": (
            "{\\rtf1\\ansi{\\fonttbl\\f0 Arial;}\\f0 Caf\\'e9 at noon.\\par}",
            "Café at noon.",
        ),
        "book.ipynb": (
            json.dumps(
                {"cells": [{"cell_type": "code", "source": ["1 + 1"], "outputs": [{"text": "2"}]}]}
            ),
            "```\n1 + 1\n```\n\n2",
        ),
        "saved.mhtml": (
            "MIME-Version: 1.0\nContent-Type: text/html\n"
            "Content-Transfer-Encoding: quoted-printable\n\n<p>caf=C3=A9</p>\n",
            "café",
        ),
        "plan.ics": (
            "BEGIN:VEVENT\nSUMMARY:Har\n vest\nDTSTART;TZID=X:20260901T080000\nEND:VEVENT\n",
            "Summary: Harvest\nStart: 2026-09-01 08:00",
        ),
        "flat.fodt": (opendocument("<text:p>The mill turns.</text:p>"), "The mill turns."),
        "page.html": ("<h1>Tides</h1><p>It comes <b>fifty</b> late.</p>", "It comes fifty late."),
    }
    for name, (text, _) in texts.items():
        (path / name).write_text(text, encoding="utf-8")
    phrases = {name: phrase for name, (_, phrase) in texts.items()}
    (path / "old.txt").write_bytes("Die Brücke über den Fluß kostete 5 €.\n".encode("cp1252"))
    phrases["old.txt"] = "Die Brücke über den Fluß kostete 5 €."
    write_pdf(path / "paper.pdf", [["The comet returns in 2061."], ["Its tail is blue."]])
    phrases["paper.pdf"] = "comet returns in 2061"
    document = docx.Document()
    document.add_heading("Recipe", 1)
    document.add_paragraph("Rest the dough for nine hours.")
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "flour", "500 g"
    document.save(str(path / "recipe.docx"))
    phrases["recipe.docx"] = "Rest the dough for nine hours."
    chapters = {"two": "<p>The end was quiet.</p>", "one": "<p>Morwenna kept bees.</p>"}
    write_epub(path / "book.epub", chapters, ["one", "two"])
    phrases["book.epub"] = "Morwenna kept bees."
    write_pptx(path / "slides.pptx", [shape("Hedgehogs sleep.")])
    phrases["slides.pptx"] = "Hedgehogs sleep."
    write_xlsx(path / "prices.xlsx", {"Fruit": [["name", "price"], ["quince", 2.5]]})
    phrases["prices.xlsx"] = "name: quince; price: 2.5"
    write_zip(path / "essay.odt", {"content.xml": opendocument("<text:p>Owls hunt.</text:p>")})
    phrases["essay.odt"] = "Owls hunt."
    (path / "letter.eml").write_bytes(bytes(mail("Rent", "The rent is due on the ninth.")))
    phrases["letter.eml"] = "The rent is due on the ninth."
    box = mailbox.mbox(path / "archive.mbox")
    box.add(mail("Boat", "The boat is painted green."))
    box.add(mail("Oars", "", "<p>The oars are <i>ash</i>.</p>"))
    box.close()
    phrases["archive.mbox"] = "The boat is painted green."
    return phrases


def write_bad_files(path: Path) -> dict[str, str]:
    """Write files that cannot be read as documents; return a word of each one's error.

    One is without permissions, unless the user is root, who may read everything.
    """
    path.mkdir(parents=True, exist_ok=True)
    write_encrypted_pdf(path / "locked.pdf", user="secret")
    write_pdf(path / "scanned.pdf", [[], []])
    (path / "broken.pdf").write_bytes(b"%PDF-1.7\nthis is where it ends")
    (path / "broken.docx").write_bytes(b"PK\x03\x04 and nothing more")
    (path / "locked.docx").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000))
    with zipfile.ZipFile(path / "hollow.docx", "w") as archive:
        archive.writestr("readme.txt", "a zip file, and no DOCX")
    with zipfile.ZipFile(path / "hollow.epub", "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
    (path / "empty.txt").write_bytes(b"")
    (path / "blank.md").write_bytes(b" \n\n\t\n")
    (path / "riddle.txt").write_bytes(bytes(range(128, 256)) * 3)
    with open(path / "huge.log", "wb") as file:
        file.write(b"all work and no play\n" * 1000)
        file.truncate(MAX_BYTES + 1)
    reasons = {
        "locked.pdf": "encrypted",
        "scanned.pdf": "--ocr",
        "broken.pdf": "broken",
        "broken.docx": "broken",
        "locked.docx": "encrypted",
        "hollow.docx": "broken",
        "hollow.epub": "broken",
        "empty.txt": "empty",
        "blank.md": "empty",
        "riddle.txt": "encoding",
        "huge.log": "too large",
    }
    if os.geteuid() != 0:
        (path / "private.txt").write_text("for nobody")
        (path / "private.txt").chmod(0)
        reasons["private.txt"] = "Permission denied"
    return reasons
