"""Which files a user means by a path: walks folders as git would, and says what it cannot read."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from ..errors import DocumentError
from .document import PLAIN, Format, absolute, format_of, unreadable
from .text import is_binary

HEAD = 8192  # bytes in which a binary file shows


@dataclass(frozen=True)
class Patterns:
    """Lines as of a .gitignore, and the folder that they are relative to.

    Walking decides on each folder before it looks inside, so that a pattern for folders only is
    an ordinary one when a folder is asked about. pathspec, made to match whole paths at once,
    would rank it below all others.
    """

    folder: Path
    files: GitIgnoreSpec
    folders: GitIgnoreSpec

    @classmethod
    def of(cls, folder: Path, lines: Sequence[str]) -> Patterns:
        bare = [re.sub(r"/\s*$", "", line) for line in lines]
        return cls(folder, GitIgnoreSpec.from_lines(lines), GitIgnoreSpec.from_lines(bare))

    def decide(self, path: Path) -> bool | None:
        """Whether a path matches; None if no pattern is about it."""
        spec = self.folders if path.is_dir() else self.files
        return spec.check_file(path.relative_to(self.folder).as_posix()).include


Rules = tuple[Patterns, ...]  # the outermost first


def find(
    paths: Iterable[str | Path],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    near: Iterable[str | Path] | None = None,
) -> Iterator[Path | DocumentError]:
    """List the documents in files and folders, each once, in the order of their names.

    Of a folder, what is hidden, ignored by a ``.gitignore``, a link, binary or of an unknown
    format is left out without a word. What is named itself is taken or complained about.

    Args:
        include: patterns as in .gitignore, relative to the path given; only these files are
            taken if there are any.
        exclude: patterns of what to leave out.
        near: resolved paths; of folders only what lies at or below these is looked at.

    Yields:
        Absolute paths, and an error for each path that cannot be read.
    """
    seen: set[str] = set()
    wanted = _way_to(near)
    for path in map(absolute, paths):
        for found in _below(path, include, exclude, wanted):
            if isinstance(found, DocumentError):
                yield found
            elif (real := os.path.realpath(found)) not in seen:
                seen.add(real)
                yield found


def _way_to(near: Iterable[str | Path] | None) -> Callable[[Path], bool]:
    """Tells of a path whether it lies on the way to one of some, is one, or lies below one."""
    if near is None:
        return lambda path: True
    goals = set(map(Path, near))
    ways = {path for goal in goals for path in (goal, *goal.parents)}
    return lambda path: path in ways or not goals.isdisjoint(path.parents)


def _below(
    path: Path, include: Sequence[str], exclude: Sequence[str], near: Callable[[Path], bool]
) -> Iterator[Path | DocumentError]:
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        yield unreadable(path, error)
        return
    root = path.resolve() if is_folder else path.parent
    only, never = Patterns.of(root, include), Patterns.of(root, exclude)

    def wanted(path: Path) -> bool:
        return not include or bool(only.decide(path))

    if not near(root if is_folder else path):
        return
    if not is_folder:
        if wanted(path) and not never.decide(path):
            yield _named(path)
        return
    waiting: list[tuple[Path, Rules]] = [(root, _rules_above(root))]
    while waiting:
        path, rules = waiting.pop()
        try:
            if path.is_dir():
                rules, inner = _open_folder(path, rules)
                inner = [p for p in inner if near(p) and not never.decide(p)]
                waiting += [(p, rules) for p in reversed(inner)]
            elif wanted(path) and _readable(path):
                yield path
        except DocumentError as error:
            yield error
        except OSError as error:
            yield unreadable(path, error)


def _open_folder(folder: Path, rules: Rules) -> tuple[Rules, list[Path]]:
    """What a folder holds that is neither hidden, nor a link, nor ignored, sorted by name."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.name[0] != "." and not e.is_symlink())
    rules += _rules_of(folder)
    return rules, [folder / name for name in names if not _ignored(folder / name, rules)]


def _rules_of(folder: Path) -> Rules:
    file = folder / ".gitignore"
    if not file.is_file():
        return ()
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return (Patterns.of(folder, lines),)


def _rules_above(folder: Path) -> Rules:
    """Rules of the folders above, up to the head of the git repository, if it is in one."""
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


def _readable(path: Path) -> bool:
    """Whether a file in a folder is a document; an empty source file has its meaning elsewhere.

    Raises:
        DocumentError: its name cannot be stored.
        OSError: it cannot be opened.
    """
    form = format_of(path)
    if form is None or not path.is_file():
        return False
    _check_name(path)
    head = _head(path)
    return bool(head or form.kind != "code") and not _binary(head, form)


def _named(path: Path) -> Path | DocumentError:
    """A file that the user named, or why it is no document."""
    try:
        if not path.is_file():
            return DocumentError(path, "is neither a file nor a folder")
        _check_name(path)
        if _binary(_head(path), format_of(path) or PLAIN):
            return DocumentError(path, "is binary or of an unknown format")
    except DocumentError as error:
        return error
    except OSError as error:
        return unreadable(path, error)
    return path


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEAD)


def _binary(head: bytes, form: Format) -> bool:
    return form.plain and is_binary(head)


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        name = os.fsencode(path).decode(errors="replace")
        raise DocumentError(name, "has a name that is not UTF-8; rename it") from error
