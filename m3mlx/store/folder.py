"""The folder of a store, which may be from anybody: plain files, and a catalog among them."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import StoreError
from ..files import os_errors_as_store_errors

CATALOG = "catalog.sqlite"


def is_store(path: str | os.PathLike) -> bool:
    """Return whether there is a store in a folder. Raises StoreError where nobody may look."""
    with os_errors_as_store_errors(Path(path)):
        return (Path(path) / CATALOG).is_file()


def require_store(path: Path, *, write: bool = False) -> None:
    """Raise StoreError if there is no store in a folder, or anything that is no plain file.

    Args:
        write: whether files are to be changed, so that none may be a file elsewhere too.
    """
    if not is_store(path):
        raise StoreError(
            f"{path}: there is no store. `m3mlx memorize PATH` makes one, --store names another."
        )
    check_plain(path, write=write)


def check_plain(folder: Path, *, write: bool = False) -> None:
    """Raise StoreError if a folder holds anything but plain files and folders.

    A link or a device in a store of somebody else would lead out of it.

    Args:
        write: whether files are to be changed, so that none may be a file elsewhere too.
    """
    with os_errors_as_store_errors(folder), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                continue
            if not entry.is_file(follow_symlinks=False):
                raise StoreError(
                    f"{entry.path}: it is a link or no plain file, which a store never has. "
                    f"Remove it, or put the file itself there."
                )
            if write and entry.stat(follow_symlinks=False).st_nlink > 1:
                raise StoreError(
                    f"{entry.path}: it is a file elsewhere too (a hard link), which would change "
                    f"with it. Put a copy of its own there."
                )
