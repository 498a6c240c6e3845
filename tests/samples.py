"""Sample files of every format, good ones and bad ones, written where a test wants them."""

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
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    kids = []
    for lines in pages:
        shown = " T* ".join(f"({line}) Tj" for line in lines)
        stream = f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        kids.append(f"{len(objects) + 1} 0 R")
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {len(objects)} 0 R >>"
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
        "scanned.pdf": "OCR",
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
