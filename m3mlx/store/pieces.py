"""Pieces of words, which find what neither white space nor a stem sets apart.

Chinese, Japanese and Korean are cut into pairs of signs, other scripts than Latin, Greek and
Cyrillic into triples, and so are long words of texts that are not English: they may be compounds.
A run ends with a shorter piece, so that the start of a piece finds every shorter word.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Iterator

TABLE = """CREATE VIRTUAL TABLE piece USING fts5 (
    text, tokenize="unicode61 remove_diacritics 0 categories 'L* M* N* Co'")"""

LONG = 7  # letters of a word that may be a compound
WHOLE = 4  # letters of a word that is looked for inside of others, at least
ENDINGS = {5: 1, 7: 2}  # from so many letters on, so many at the end may be an inflection
ENGLISH = frozenset({"the", "and", "that", "with", "this", "from", "of", "to"})
ASKED = ENGLISH | {"a", "what", "who", "when", "where", "which", "how", "is", "are", "was", "does"}
ENGLISH_SHARE = 0.05  # of the words of an English text: these are a sixth, elsewhere a hundredth

_DENSE = (  # ideographs, kana, syllables of Korean
    "\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
_MARKED = "\u0590-\u10ff\u1200-\u1cff\ua800-\uabff"  # Hebrew, Arabic, Indic, Thai, …
DENSE = re.compile(f"[{_DENSE}]+")
MARKED = re.compile(f"[{_MARKED}]+")
WORD = re.compile(rf"[\w{_MARKED}]+")
_LETTERS = r"[a-z\u00df-\u024f\u0370-\u058f\u1e00-\u1fff]"
LETTERS, LONG_WORD = re.compile(f"{_LETTERS}+"), re.compile(f"{_LETTERS}{{{LONG},}}")
GLUED = re.compile(f"(?<=[{_DENSE}])[a-z0-9]+|[a-z0-9]+(?=[{_DENSE}])")


def pieces(text: str) -> str:
    """Return the pieces by which a text is found, with spaces between; of most English, ""."""
    text = _plain(text)
    found: list[str] = []
    if not text.isascii():
        for run in DENSE.findall(text):
            found += _cut(run, 2)
        for word in _marked(text):
            found += _cut(word, 3)
        for word in GLUED.findall(text):
            found += _cut(word, 3)
    if long := LONG_WORD.findall(text):
        words = LETTERS.findall(text)
        if sum(map(ENGLISH.__contains__, words)) <= ENGLISH_SHARE * len(words):
            for word in long:
                found += _cut(word, 3)[:-1]
    return " ".join(found)


def fill(conn: sqlite3.Connection) -> None:
    """Make the table of pieces again from the texts of a catalog."""
    conn.execute("DELETE FROM piece")
    rows = conn.execute("SELECT slot, CAST(text AS BLOB) FROM reference")
    texts = ((slot, pieces(text.decode("utf-8", "replace"))) for slot, text in rows)
    conn.executemany(
        "INSERT INTO piece (rowid, text) VALUES (?, ?)", (row for row in texts if row[1])
    )


def is_english(text: str) -> bool:
    """Tell whether a question is in English."""
    return not ASKED.isdisjoint(text.lower().split())


def has_signs(text: str) -> bool:
    """Tell whether a text has Chinese, Japanese or Korean signs."""
    return not text.isascii() and DENSE.search(text) is not None


def words(text: str) -> list[str]:
    """Return the words of a question that may stand apart in texts, each once."""
    text = text.lower()
    return list(dict.fromkeys(WORD.findall(text if text.isascii() else DENSE.sub(" ", text))))


def signs(text: str) -> Iterator[str]:
    """Yield the expressions for a question's runs of signs, which never stand apart."""
    for run in [] if text.isascii() else DENSE.findall(_plain(text)):
        yield from _apart(run, 2)


def parts(word: str) -> Iterator[str]:
    """Yield the expressions for a word of another script than Latin that is nowhere as it is."""
    for each in _marked(_plain(word)):
        yield from _apart(each, 3)


def _apart(word: str, size: int) -> Iterator[str]:
    """Yield an expression for each piece of a word, or for the pieces that begin with it."""
    if len(word) < size:
        yield f'"{word}" *'
    else:
        yield from (f'"{piece}"' for piece in _cut(word, size)[:-1])


def inside(word: str) -> str:
    """Return the expression for longer words that have a word in them; its end may differ."""
    word = _plain(word)
    ending = max((cut for length, cut in ENDINGS.items() if len(word) >= length), default=0)
    cut = _cut(word[: len(word) - ending], 3)
    return f'"{" ".join(cut[:-1] or cut)}"'


def _cut(word: str, size: int) -> list[str]:
    """Return all pieces of a size, and the shorter one at the end."""
    return [word[at : at + size] for at in range(max(len(word) - size + 2, 1))]


def _marked(text: str) -> list[str]:
    """Return the words of scripts whose vowels are marks."""
    runs = " ".join(MARKED.findall(text))
    letters = (sign if unicodedata.category(sign)[0] in "LM" else " " for sign in runs)
    return "".join(letters).split()


def _plain(text: str) -> str:
    """Return a text in lower case, without accents, points and other marks that may be left out."""
    if not text.isascii():
        signs = unicodedata.normalize("NFKD", text)
        signs = "".join(sign for sign in signs if not _may_be_left_out(sign))
        text = unicodedata.normalize("NFC", signs)
    return text.casefold()


def _may_be_left_out(sign: str) -> bool:
    """Tell accents, points and Arabic vowels from the vowels of India and Thailand."""
    return sign == "\u0640" or not (
        (place := unicodedata.combining(sign)) < 10 or 84 <= place < 200
    )
