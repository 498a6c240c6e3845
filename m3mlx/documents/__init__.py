"""Find files, read them as documents, and split documents into references.

``find`` lists the files, ``read`` and ``parse`` turn one into plain text whose places can be cited,
``Worker`` does so in a process of its own, ``split`` cuts the text into references. The table of
formats is in ``formats.py``; each family of formats has one file with its readers. Nothing outside
this package opens a user's file.
"""

from .document import MAX_BYTES, NO_TEXT, Document, absolute, file_hash, parse, read
from .folder import LeaveOut, LeftOut, find
from .formats import format_of, is_picture
from .ocr import check as check_ocr
from .split import Reference, Tokenize, split
from .worker import Worker

__all__ = [
    "MAX_BYTES",
    "NO_TEXT",
    "Document",
    "LeaveOut",
    "LeftOut",
    "Reference",
    "Tokenize",
    "Worker",
    "absolute",
    "check_ocr",
    "file_hash",
    "find",
    "format_of",
    "is_picture",
    "parse",
    "read",
    "split",
]
