"""Errors. Each message says what failed, for which path or value, and what to do next.

The command line prints an ``M3Error`` as one line on stderr and exits with code 1.
"""


class M3Error(Exception):
    """Base of all errors that a user's input, files or models can cause."""


class ModelError(M3Error):
    """A model cannot be found, downloaded or loaded, or cannot carry explicit memory."""


class RefusedError(ModelError):
    """A model is sound but cannot carry explicit memory."""


class ConvertError(M3Error):
    """A checkpoint cannot be converted; nothing was written."""


class DocumentError(M3Error):
    """One file cannot be read as a document.

    Attributes:
        path: the file, as a string.
        reason: one sentence without the path, for lists of unreadable files.
    """

    def __init__(self, path: object, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


class StoreError(M3Error):
    """A store cannot be opened, read or written."""


class FingerprintError(StoreError):
    """The memories or vectors of a store were made by other models or with other settings."""
