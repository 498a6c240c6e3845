"""Find the documents in files and folders: folders are walked as git walks them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import DocumentError
from .archive import head_of_gzip
from .document import absolute, on_disk, os_errors_as_document_errors
from .formats import PACKED, PLAIN, format_of, unread
from .ignore import Patterns, Rules, ignored, rules_above, rules_of
from .text import HEAD, is_binary, is_text

STORE = {"catalog.sqlite", "lock"}  # files of a store, which holds no documents of its own


class LeftOut(NamedTuple):
    """A path in a folder that is not read.

    Attributes:
        kind: in the plural, such as "pictures".
        advice: how it can be read all the same; "" for what is left out on purpose.
    """

    path: str
    kind: str
    advice: str = ""


LeaveOut = Callable[[LeftOut], object]


def find(
    paths: Iterable[str | Path],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    near: Iterable[str | Path] | None = None,
    leave_out: LeaveOut = lambda left: None,
    ocr: bool = False,
) -> Iterator[Path | DocumentError]:
    """List the documents in files and folders, each once, in the order of their names.

    In folders, hidden files, what git ignores, links and binary files are left out; a file whose
    name tells no format is read if its content is text. A path given by the user is listed or is
    an error.

    Args:
        include: patterns as in .gitignore, relative to the path given; if there are any, only
            these files are listed.
        exclude: patterns of files and folders to skip.
        near: resolved paths; if given, only files at or below these are looked at.
        leave_out: called with each file and folder that is left out, save for what ``include``,
            ``exclude`` and ``near`` rule out.
        ocr: pictures are documents, for the text in them.

    Yields:
        Absolute paths, and an error for each path that cannot be read.
    """
    seen: set[str] = set()
    is_near = _near(near)
    for path in map(absolute, paths):
        for found in _Walk(path, include, exclude, is_near, leave_out, ocr):
            if isinstance(found, DocumentError):
                yield found
            elif (real := os.path.realpath(found)) not in seen:
                seen.add(real)
                yield on_disk(found)


def _near(paths: Iterable[str | Path] | None) -> Callable[[Path], bool]:
    """Return a test whether a path is above, at or below one of the given paths."""
    if paths is None:
        return lambda path: True
    goals = set(map(Path, paths))
    ways = {path for goal in goals for path in (goal, *goal.parents)}
    return lambda path: path in ways or not goals.isdisjoint(path.parents)


class _Walk:
    """The documents at or below one path; those in folders are in the order of their names."""

    def __init__(
        self,
        top: Path,
        include: Sequence[str],
        exclude: Sequence[str],
        near: Callable[[Path], bool],
        leave_out: LeaveOut,
        ocr: bool,
    ) -> None:
        self.ocr = ocr
        self.top, self.near, self.leave_out = top, near, leave_out
        self.include, self.exclude = include, exclude

    def __iter__(self) -> Iterator[Path | DocumentError]:
        try:
            with os_errors_as_document_errors(self.top):
                is_folder = stat.S_ISDIR(self.top.stat().st_mode)
        except DocumentError as error:
            yield error
            return
        root = self.top.resolve() if is_folder else self.top.parent
        self._only, self._never = Patterns(root, self.include), Patterns(root, self.exclude)
        if not self.near(root if is_folder else self.top):
            return
        if not is_folder:
            if not self._never.decide(self.top, False) and self._is_included(self.top):
                yield from self._look(self.top, named=True)
            return
        waiting: list[tuple[Path, bool, Rules]] = [(root, True, rules_above(root))]
        while waiting:
            path, is_folder, rules = waiting.pop()
            if not is_folder:
                yield from self._look(path, named=False)
                continue
            try:
                with os_errors_as_document_errors(path):
                    waiting += reversed(list(self._open(path, rules)))
            except DocumentError as error:
                yield error

    def _open(self, folder: Path, rules: Rules) -> Iterator[tuple[Path, bool, Rules]]:
        """Yield what is to be looked at in a folder, sorted: path, is it a folder, rules."""
        rules += rules_of(folder)
        with os.scandir(folder) as entries:
            found = sorted((e.name, e.is_symlink()) for e in entries)
        if {name for name, _ in found} >= STORE:
            self.leave_out(LeftOut(str(folder), "stores of m3mlx"))
            return
        for name, is_link in found:
            path = folder / name
            is_folder = path.is_dir()
            if not self.near(path) or self._never.decide(path, is_folder):
                continue
            if not is_folder and not self._is_included(path):
                continue
            if name.startswith("."):
                self.leave_out(LeftOut(str(path), "hidden"))
            elif ignored(path, is_folder, rules):
                self.leave_out(LeftOut(str(path), "ignored by git"))
            elif is_link:
                kind = "linked folders" if is_folder else "links"
                self.leave_out(LeftOut(str(path), kind, "name them, or what they point at"))
            else:
                yield path, is_folder, rules

    def _is_included(self, path: Path) -> bool:
        return not self.include or self._only.covers(path)

    def _look(self, path: Path, named: bool) -> Iterator[Path | DocumentError]:
        try:
            with os_errors_as_document_errors(path):
                left = _look_at(path, named, self.ocr)
        except DocumentError as error:
            yield error
            return
        if left is None:
            yield path
        else:
            self.leave_out(left)


def _look_at(path: Path, named: bool, ocr: bool) -> LeftOut | None:
    """Return why a file is no document, or None; empty source files in folders are none.

    Args:
        named: the user named the file itself: any text is read, all else is an error.

    Raises:
        DocumentError: its name cannot be stored, or it was named and is no document.
        OSError: it cannot be opened.
    """
    if not path.is_file():
        if named:
            raise DocumentError(path, "is neither a file nor a folder")
        return LeftOut(str(path), "pipes and devices")
    form = format_of(path, ocr)
    if form is None and not named:
        return LeftOut(str(path), *unread(path))
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(path).decode(errors="replace")
        raise DocumentError(name, "has a name that is not UTF-8; rename it") from error
    form, head = form or PLAIN, _head(path)
    if named:
        if form.plain and is_binary(head):
            kind, advice = unread(path)
            reason = f"is not read, as all {kind}; {advice}"
            raise DocumentError(path, reason if advice else "is binary, not text")
    elif form.guessed and not is_text(head):
        return LeftOut(str(path), *(unread(path) if head else ("empty files", "")))
    elif form.plain and is_binary(head):
        return LeftOut(str(path), "binary files")
    elif form.kind == "code" and not head:
        return LeftOut(str(path), "empty source files")
    return None


def _head(path: Path) -> bytes:
    """Return the first bytes of a file, or of what is packed in it."""
    with open(path, "rb") as file:
        return head_of_gzip(file, HEAD) if path.suffix.lower() == PACKED else file.read(HEAD)
