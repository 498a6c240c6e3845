"""Bytes to text: encodings, newlines, control characters and pictures written as letters.

A wrong encoding would be stored for good, so that a doubtful one is refused. A few damaged bytes
are replaced, and told with their lines.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path

from ..errors import DocumentError
from .encoding import guess

BOMS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# files said to be in the encoding on the left are mostly in its superset on the right
SUPERSETS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "shift_jis": "cp932",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
}
DECLARED = re.compile(rb"(?:coding|charset)\s*[:=]\s*[\"']?([-\w.:]+)")
TERMINAL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SURROGATE = re.compile("[\ud800-\udfff]")
LETTER = r"[A-Za-z0-9+/]"
EMBEDDED = re.compile(  # a picture or other data in base64: with its address, or alone
    rf"data:[\w.+/-]{{0,80}}+(?:;[\w.=-]{{1,80}}+){{0,4}},"
    rf"(?:{LETTER}|[=%_.-]|\n(?={LETTER}{{40}}|{LETTER}{{0,40}}={{0,2}}[)\"'>])){{100,}}+"
    rf"|(?<!{LETTER}){LETTER}{{1000,}}+={{0,2}}"
    rf"|(?:^[ \t]{{0,20}}+{LETTER}{{60,80}}+\n){{8,}}+"
    rf"(?:[ \t]*+(?:{LETTER}{{20,59}}+={{0,2}}|{LETTER}{{2,19}}+={{1,2}})$)?",
    re.MULTILINE,
)
MIXED = tuple(map(re.compile, ("[a-z]", "[A-Z]", "[0-9]")))
CHARACTERS = {  # for str.translate; None removes
    **dict.fromkeys([*range(32), *range(127, 160), 0xAD, 0xFEFF, 0xFFFE, 0xFFFF]),
    **dict.fromkeys([0x0B, 0x0C, 0x2028, 0x2029], " "),  # no new line: lines are counted
    0x09: "\t",
    0x0A: "\n",
    # ligatures, and Hebrew and Arabic letters by their form, become the letters
    **{
        code: unicodedata.normalize("NFKC", chr(code))
        for code in (*range(0xFB00, 0xFB50), *range(0xFB50, 0xFE00), *range(0xFE70, 0xFEFD))
        if unicodedata.category(chr(code)) in ("Ll", "Lo")
    },
}
LAST_MARK = 0x20000  # none is beyond, and to look there takes a third of a second
MARKS = 30  # of one letter; longer runs are no writing, and cost the square of their length
LINES = 5  # named in a note
CONTROL = re.compile(rb"[\x00-\x07\x0e-\x1a\x1c-\x1f\x7f]")  # what is in no text
HEAD = 8192  # bytes in which a binary file shows
VALID = re.compile(rb"[\xc2-\xf4][\x80-\xbf]+")

Note = Callable[[str], None]  # called with a sentence about what of a file is not read


def read(path: Path, data: bytes, note: Note) -> str:
    """Decode a file that may name its encoding at its head, as HTML and source code do."""
    match = DECLARED.search(data[:1024])
    return decode(path, data, note, match[1].decode() if match else "")


def is_binary(head: bytes) -> bool:
    """Tell from its first bytes that a file is no text."""
    return b"\0" in head and not head.startswith(tuple(bom for bom, _ in BOMS))


def is_text(head: bytes) -> bool:
    """Tell from its first bytes that a file of no known format is text."""
    if head.startswith(tuple(bom for bom, _ in BOMS)):
        return True
    if not head or CONTROL.search(head):
        return False
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # it may end within a character
    except UnicodeDecodeError:
        return guess(head) is not None
    return True


def decode(path: Path, data: bytes, note: Note, declared: str = "") -> str:
    """Decode a text of unknown encoding.

    Args:
        path: named in the error.
        note: told about bytes that were replaced.
        declared: encoding that the file or mail names, tried after UTF-8.

    Raises:
        DocumentError: not text, or the encoding is not certain.
    """
    for bom, encoding in BOMS:
        if data.startswith(bom):
            if (decoded := _strict(data, encoding)) is None:
                decoded = _mended(data, encoding, note)
            if decoded is None:
                raise DocumentError(path, f"is damaged: it begins as {encoding} and is not")
            return decoded
    if zeros := data.count(b"\0"):
        if is_binary(data[:HEAD]) or zeros * 1000 > len(data):
            raise DocumentError(path, "is binary, not text")
        where = _lines_with("\0", data.decode("latin-1"))
        note(f"{where}: bytes that are zero are left out")
        data = data.replace(b"\0", b"")
    names = ["utf-8", declared]
    if b"\x1b" in data and data.isascii():  # Japanese in seven bits would pass for UTF-8
        names = [declared if "2022" in declared else "iso2022_jp", "utf-8"]
    for name in names:
        if (decoded := _strict(data, name)) is not None:
            return decoded
    if (decoded := _strict(data, guess(data) or "")) is None:
        decoded = _damaged(data, note)
    if decoded is None:
        raise DocumentError(path, "is in an encoding that cannot be told; save it as UTF-8")
    return decoded


def _strict(data: bytes, encoding: str) -> str | None:
    try:
        name = codecs.lookup(encoding).name
        return data.decode(SUPERSETS.get(name, name))
    except (LookupError, ValueError):  # no such encoding, or not this one
        return None


def _mended(data: bytes, encoding: str, note: Note) -> str | None:
    """Decode what begins as an encoding and has few errors; None where they are many."""
    text = data.decode(encoding, errors="replace")
    if text.count("\ufffd") * 100 > len(text):
        return None
    where = _lines_with("\ufffd", text)
    note(f"{where}: bytes that are not {encoding} are replaced by \ufffd")
    return text


def _damaged(data: bytes, note: Note) -> str | None:
    """Decode UTF-8 in which few bytes are wrong; None where they are many."""
    try:
        return data.decode("utf-8", "surrogatepass")  # halves of a character that were written so
    except UnicodeDecodeError as error:
        is_cut = error.reason == "unexpected end of data"
        if is_cut and len(VALID.findall(data, 0, error.start)) > 1:
            note("ends within a character")
            return data[: error.start].decode("utf-8")
    text = data.decode("utf-8", errors="replace")
    wrong = text.count("\ufffd")
    right = sum(sign > "\x7f" for sign in text) - wrong
    if 2 * wrong > right and wrong * 1000 > len(data):
        return None
    where = _lines_with("\ufffd", text)
    note(f"{where}: bytes that are not UTF-8 are replaced by \ufffd")
    return text


def _lines_with(sign: str, text: str) -> str:
    """Name the lines in which a sign is, the first few of them."""
    numbers = [str(n) for n, line in enumerate(text.split("\n"), 1) if sign in line]
    more = f" and {len(numbers) - LINES} more" if len(numbers) > LINES else ""
    return f"line{'s' * (len(numbers) > 1)} {', '.join(numbers[:LINES])}{more}"


def clean(text: str, note: Note = lambda text: None) -> str:
    """Normalize newlines and characters, leave out embedded data, and keep the number of lines."""
    text = TERMINAL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    if SURROGATE.search(text):  # pairs are joined, single ones say nothing
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    text = _without_embedded(text, note)
    text = text.translate(CHARACTERS)
    if not text.isascii():
        text = unicodedata.normalize("NFC", _long_runs_of_marks().sub(r"\1", text))
    return text


def _without_embedded(text: str, note: Note) -> str:
    left_out = 0

    def leave_out(found: re.Match[str]) -> str:
        nonlocal left_out
        if not found[0].startswith("data:") and not all(kind.search(found[0]) for kind in MIXED):
            return found[0]  # such as the letters of a gene
        left_out += 1
        return "\n" * found[0].count("\n")

    text = EMBEDDED.sub(leave_out, text)
    if left_out:
        note(f"pictures or other data in base64 are left out ({left_out})")
    return text


@cache
def _long_runs_of_marks() -> re.Pattern[str]:
    """More marks upon one letter than writing has."""
    marks = [chr(code) for code in range(LAST_MARK) if unicodedata.combining(chr(code))]
    kind = f"[{''.join(marks)}]"
    return re.compile(f"({kind}{{{MARKS}}}){kind}++")
