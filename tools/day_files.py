"""The files of tools/day.py: made-up facts in every document format."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

from make_demo import docx_bytes, pdf_bytes

THINGS = "clock bell organ weathervane fountain loom kiln telescope barometer windmill".split()
DEEDS = ("repaired", "built", "bought", "painted")
FILLER = (
    "Nothing else of note happened that week. The rain kept on until the evening, the road to the "
    "harbour was closed, and the ledger was balanced with a difference of four pence, which nobody "
    "could explain. Supper was soup, and afterwards somebody read aloud until the lamp went out. "
)


@dataclass(frozen=True)
class Fact:
    """A statement of one document, and the question for it."""

    place: str
    thing: str
    deed: str
    person: str

    @property
    def text(self) -> str:
        return f"The {self.thing} of {self.place} was {self.deed} by {self.person}."

    @property
    def question(self) -> str:
        return f"Who {self.deed} the {self.thing} of {self.place}?"


def facts(count: int) -> list[Fact]:
    """Return made-up facts, no two about the same place."""
    draw = random.Random(7)
    heads = "Brack Thorn Oster Wim Hal Quel Marr Fen Dun Sel Pell Corv Ard Lind Tam Vor Gris Hex"
    tails = "enholt bury mere field stead wick combe ingham tarn gate shaw leigh minster".split()
    first = "Odessa Tobias Merle Isolde Barnaby Clio Ferris Greta Hollis Ines Jarvis Lorna".split()
    last = "Winfrey Quill Ashdown Pryce Tallow Verity Moss Larkin Stope Farrow Eddy Crane".split()
    places = [head + tail for head in f"{heads} Jun Kell".split() for tail in tails]
    people = [f"{one} {other}" for one in first for other in last]
    draw.shuffle(places)
    draw.shuffle(people)
    return [
        Fact(places[n], draw.choice(THINGS), draw.choice(DEEDS), people[n % len(people)])
        for n in range(count)
    ]


# --- files of every format


def _pdf(path: Path, text: str) -> None:
    path.write_bytes(pdf_bytes([["From the parish records", text]]))


def _docx(path: Path, text: str) -> None:
    path.write_bytes(docx_bytes(["From the parish records", text]))


def _mail(path: Path, text: str) -> None:
    message = EmailMessage()
    message["From"], message["To"] = "clerk@example.org", "you@example.org"
    message["Date"], message["Subject"] = "Mon, 02 Feb 2032 10:00:00 +0000", "What you asked for"
    message.set_content(f"Dear all,\n\n{text}\n\nYours, the clerk\n")
    path.write_bytes(message.as_bytes())


def _text(form: str) -> Callable[[Path, str], None]:
    return lambda path, text: path.write_text(
        form.format(text=text, json=json.dumps(text)), "utf-8"
    )


FORMATS: dict[str, Callable[[Path, str], None]] = {
    "md": _text("# From the records\n\n{text}\n"),
    "txt": _text("{text}\n"),
    "py": _text('"""Records."""\n\n# {text}\nKNOWN = True\n'),
    "csv": _text('day,entry\nMonday,"{text}"\n'),
    "json": _text('{{"kind": "record", "entry": {json}}}\n'),
    "html": _text("<!doctype html><title>Records</title><h1>Records</h1><p>{text}</p>\n"),
    "eml": _mail,
    "docx": _docx,
    "pdf": _pdf,
}


def write(path: Path, fact: Fact, long: bool = False) -> Path:
    """Write a fact into a file of the format that its name tells, and rename it as editors do."""
    new = path.with_name(f".{path.name}.new")
    FORMATS[path.suffix[1:]](new, fact.text + (f" {FILLER * 3}" if long else ""))
    new.replace(path)
    return path
