"""Paths become documents, and documents become references of a few tokens each.

``find`` lists the files, ``read`` turns one into plain text whose places can be cited, and
``split`` cuts that text where a reader would. Each family of formats has one file, which hides
the traps of its library; nothing outside this package opens a user's file.
"""

from .document import MAX_BYTES, Document, absolute, file_hash, format_of, parse, read
from .folder import find
from .split import Reference, Tokenize, split

__all__ = [
    "MAX_BYTES",
    "Document",
    "Reference",
    "Tokenize",
    "absolute",
    "file_hash",
    "find",
    "format_of",
    "parse",
    "read",
    "split",
]
