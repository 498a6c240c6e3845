"""What can go wrong, in the words a user reads.

Every message says what failed, which path or value, and what to do next. The command line
turns an ``M3Error`` into one line on stderr and exit code 1.
"""


class M3Error(Exception):
    """Base of all errors that a user's input, files or models can cause."""


class ModelError(M3Error):
    """A model cannot be found, fetched, loaded, or cannot carry explicit memory."""


class ConvertError(M3Error):
    """A checkpoint cannot be converted; nothing was written."""


class DocumentError(M3Error):
    """One file cannot be read as a document.

    Attributes:
        path: the file, as a string.
        reason: one sentence without the path, for lists of many bad files.
    """

    def __init__(self, path: object, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason


class StoreError(M3Error):
    """A store cannot be opened, read or written."""


class FingerprintError(StoreError):
    """The memories of a store were made under other conditions than those asked for."""
