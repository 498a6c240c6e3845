"""Bytes to text: encodings, newlines and control characters.

A wrong encoding would be stored for good, so that a doubtful one is refused.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
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
CHARACTERS = {  # for str.translate; None removes
    **dict.fromkeys([*range(32), *range(127, 160), 0xAD, 0xFEFF, 0xFFFE, 0xFFFF]),
    **dict.fromkeys([0x0B, 0x0C, 0x2028, 0x2029], " "),  # no new line: lines are counted
    0x09: "\t",
    0x0A: "\n",
}


def read(path: Path, data: bytes) -> str:
    """Decode a file that may name its encoding at its head, as HTML and source code do."""
    match = DECLARED.search(data[:1024])
    return decode(path, data, match[1].decode() if match else "")


def is_binary(head: bytes) -> bool:
    """Tell from its first bytes that a file is no text."""
    return b"\0" in head and not head.startswith(tuple(bom for bom, _ in BOMS))


def decode(path: Path, data: bytes, declared: str = "") -> str:
    """Decode a text of unknown encoding.

    Args:
        path: named in the error.
        declared: encoding that the file or mail names, tried after UTF-8.

    Raises:
        DocumentError: not text, or the encoding is not certain.
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
    if (decoded := _strict(data, guess(data) or "")) is None:
        raise DocumentError(path, "is in an encoding that cannot be told; save it as UTF-8")
    return decoded


def _strict(data: bytes, encoding: str) -> str | None:
    try:
        name = codecs.lookup(encoding).name
        return data.decode(SUPERSETS.get(name, name))
    except (LookupError, ValueError):  # no such encoding, or not this one
        return None


def clean(text: str) -> str:
    """Normalize newlines and characters, and keep the number of lines."""
    text = TERMINAL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    if SURROGATE.search(text):  # pairs are joined, single ones say nothing
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    return unicodedata.normalize("NFC", text.translate(CHARACTERS))
