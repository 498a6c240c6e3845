"""Bytes to text: encodings, newlines, characters that are none.

A wrong guess of the encoding would store nonsense for good, so that a guess must be sure.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from pathlib import Path

from ..errors import DocumentError
from .encoding import guess

BOMS = (  # the longer ones first: the mark of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# what is named on the left is mostly written with its superset on the right
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
CHARACTERS = {
    **dict.fromkeys([*range(32), *range(127, 160), 0xAD, 0xFEFF, 0xFFFE, 0xFFFF]),
    **dict.fromkeys([0x0B, 0x0C, 0x2028, 0x2029], " "),  # no new line: lines are counted
    0x09: "\t",
    0x0A: "\n",
}


def is_binary(head: bytes) -> bool:
    """Whether the first bytes of a file cannot be those of a text."""
    return b"\0" in head and not head.startswith(tuple(bom for bom, _ in BOMS))


def decode(path: Path, data: bytes, declared: str = "") -> str:
    """Decode a text of unknown encoding.

    Args:
        path: for the error.
        declared: encoding that the file or mail names, believed where UTF-8 is impossible.

    Raises:
        DocumentError: it is no text, or its encoding cannot be told with certainty.
    """
    for bom, encoding in BOMS:
        if data.startswith(bom):
            if (decoded := _strict(data, encoding)) is None:
                raise DocumentError(path, f"is damaged: it begins as {encoding} and is not")
            return decoded
    if b"\0" in data:
        raise DocumentError(path, "is binary, not text")
    names = ["utf-8", declared]
    if b"\x1b" in data and data.isascii():  # Japanese in seven bits would pass for UTF-8
        names = [declared if "2022" in declared else "iso2022_jp", "utf-8"]
    for name in names:
        if (decoded := _strict(data, name)) is not None:
            return decoded
    if (encoding := guess(data)) and (decoded := _strict(data, encoding)) is not None:
        return decoded
    raise DocumentError(path, "is in an encoding that cannot be told; save it as UTF-8")


def _strict(data: bytes, encoding: str) -> str | None:
    try:
        name = codecs.lookup(encoding).name
        return data.decode(SUPERSETS.get(name, name))
    except (LookupError, ValueError):  # no such encoding, or not this one
        return None


def declared_encoding(data: bytes) -> str:
    """The encoding that the head of a file names, as HTML and source code do, or ""."""
    match = DECLARED.search(data[:1024])
    return match[1].decode() if match else ""


def clean(text: str) -> str:
    """Normalize newlines and characters; the number of lines stays as it is."""
    text = TERMINAL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    if SURROGATE.search(text):  # pairs are joined, single ones say nothing
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    return unicodedata.normalize("NFC", text.translate(CHARACTERS))


def read(path: Path, data: bytes) -> str:
    return decode(path, data, declared_encoding(data))
