"""Find the documents in files and folders: folders are walked as git walks them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from pathspec import GitIgnoreSpec

from ..errors import DocumentError
from .document import absolute, os_errors_as_document_errors
from .formats import PLAIN, format_of
from .text import is_binary

HEAD = 8192  # bytes in which a binary file shows


class Patterns:
    """Lines as of a .gitignore, and the folder that they are relative to."""

    def __init__(self, folder: Path, lines: Sequence[str]) -> None:
        self.folder = folder
        self.files = GitIgnoreSpec.from_lines(lines)
        # Each folder is decided on before it is entered, so that there a pattern for folders only
        # is an ordinary one. pathspec, made to match whole paths, would rank it below all others.
        self.folders = GitIgnoreSpec.from_lines([re.sub(r"/\s*$", "", line) for line in lines])

    def decide(self, path: Path) -> bool | None:
        """Return True if a path matches, False if it is excepted, None if no pattern applies."""
        spec = self.folders if path.is_dir() else self.files
        return spec.check_file(path.relative_to(self.folder).as_posix()).include


Rules = tuple[Patterns, ...]  # of nested folders, the outermost first


def find(
    paths: Iterable[str | Path],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    near: Iterable[str | Path] | None = None,
) -> Iterator[Path | DocumentError]:
    """List the documents in files and folders, each once, in the order of their names.

    In folders, hidden and ignored (``.gitignore``) files, links, binary files and files of an
    unknown format are skipped silently. A path given by the user is listed or is an error.

    Args:
        include: patterns as in .gitignore, relative to the path given; if there are any, only
            these files are listed.
        exclude: patterns of files and folders to skip.
        near: resolved paths; if given, only files at or below these are looked at.

    Yields:
        Absolute paths, and an error for each path that cannot be read.
    """
    seen: set[str] = set()
    is_near = _near(near)
    for path in map(absolute, paths):
        for found in _find_below(path, include, exclude, is_near):
            if isinstance(found, DocumentError):
                yield found
            elif (real := os.path.realpath(found)) not in seen:
                seen.add(real)
                yield found


def _near(paths: Iterable[str | Path] | None) -> Callable[[Path], bool]:
    """Return a test whether a path is above, at or below one of the given paths."""
    if paths is None:
        return lambda path: True
    goals = set(map(Path, paths))
    ways = {path for goal in goals for path in (goal, *goal.parents)}
    return lambda path: path in ways or not goals.isdisjoint(path.parents)


def _find_below(
    path: Path, include: Sequence[str], exclude: Sequence[str], near: Callable[[Path], bool]
) -> Iterator[Path | DocumentError]:
    try:
        with os_errors_as_document_errors(path):
            is_folder = stat.S_ISDIR(path.stat().st_mode)
    except DocumentError as error:
        yield error
        return
    root = path.resolve() if is_folder else path.parent
    only, never = Patterns(root, include), Patterns(root, exclude)
    if not near(root if is_folder else path) or (not is_folder and never.decide(path)):
        return
    waiting = [(root, _rules_above(root)) if is_folder else (path, ())]
    while waiting:
        path, rules = waiting.pop()
        try:
            with os_errors_as_document_errors(path):
                if path.is_dir():
                    rules, inner = _open_folder(path, rules)
                    inner = [p for p in inner if near(p) and not never.decide(p)]
                    waiting += [(p, rules) for p in reversed(inner)]
                elif (not include or only.decide(path)) and _is_document(path, not is_folder):
                    yield path
        except DocumentError as error:
            yield error


def _open_folder(folder: Path, rules: Rules) -> tuple[Rules, list[Path]]:
    """Return a folder's entries that are not hidden, links or ignored, sorted, and its rules."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.name[0] != "." and not e.is_symlink())
    rules += _rules_of(folder)
    return rules, [folder / name for name in names if not _ignored(folder / name, rules)]


def _rules_of(folder: Path) -> Rules:
    file = folder / ".gitignore"
    if not file.is_file():
        return ()
    return (Patterns(folder, file.read_text("utf-8", errors="replace").splitlines()),)


def _rules_above(folder: Path) -> Rules:
    """Return the rules of the folders above, up to the top of the git repository, if any."""
    above: Rules = ()
    for parent in folder.parents if not (folder / ".git").exists() else ():
        above = _rules_of(parent) + above
        if (parent / ".git").exists():
            # what the user names is meant, even if the repository ignores it
            return () if _ignored(folder, above) else above
    return ()


def _ignored(path: Path, rules: Rules) -> bool:
    decisions = (patterns.decide(path) for patterns in reversed(rules))  # the innermost decides
    return next((decision for decision in decisions if decision is not None), False)


def _is_document(path: Path, named: bool) -> bool:
    """Look whether a file is to be read. Empty source files in folders are not.

    Args:
        named: the user named the file itself: any text is read, all else is an error.

    Raises:
        DocumentError: its name cannot be stored, or it was named and is no document.
        OSError: it cannot be opened.
    """
    form = format_of(path) or (PLAIN if named else None)
    if form is None or not path.is_file():
        if named:
            raise DocumentError(path, "is neither a file nor a folder")
        return False
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(path).decode(errors="replace")
        raise DocumentError(name, "has a name that is not UTF-8; rename it") from error
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if form.plain and is_binary(head):
        if named:
            raise DocumentError(path, "is binary or of an unknown format")
        return False
    return named or bool(head) or form.kind != "code"
