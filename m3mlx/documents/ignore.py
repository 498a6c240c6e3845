"""Patterns of .gitignore files, and where git looks for them.

A glob is matched folder by folder, and no star is tried twice, so that the time is bounded. Lines
that are no pattern are passed over, as git does.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..text import nfc

TOKEN = re.compile(
    r"\\(?P<escaped>.)|(?P<star>\*+)|(?P<one>\?)"
    r"|\[(?P<negated>[!^]?)(?P<set>\]?(?:\[:\w+:\]|\\.|[^\]\\])*+)\]|(?P<plain>.)",
    re.DOTALL,
)
MEMBER = re.compile(r"\[:(?P<named>\w+):\]|\\?(?P<plain>.)", re.DOTALL)
CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "lower": "a-z",
    "punct": re.escape("!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~\\"),
    "space": r"\s",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}
EXCLUDES_FILE = re.compile(r"^\s*excludesfile\s*=\s*\"?(.+?)\"?\s*$", re.MULTILINE | re.IGNORECASE)


class Rule(NamedTuple):
    """One line of a .gitignore; in ``parts``, None is any number of folders."""

    parts: tuple[re.Pattern[str] | None, ...]
    folders_only: bool
    excepts: bool


class Patterns:
    """Lines as of a .gitignore, and the folder that they are relative to."""

    def __init__(self, folder: Path, lines: Sequence[str]) -> None:
        self.folder = folder
        # the last that matches decides
        self._rules = [rule for line in reversed(lines) if (rule := _rule(line))]

    def decide(self, path: Path, is_folder: bool) -> bool | None:
        """Return True if a path matches, False if it is excepted, None if no pattern applies."""
        names = [nfc(name) for name in path.relative_to(self.folder).parts]
        for rule in self._rules:
            if (is_folder or not rule.folders_only) and _matches(rule.parts, names):
                return not rule.excepts
        return None

    def covers(self, path: Path) -> bool:
        """Return whether a file, or the nearest folder of it that a pattern is about, matches."""
        places = [path, *path.parents[: len(path.relative_to(self.folder).parts) - 1]]
        decisions = (self.decide(place, place != path) for place in places)
        return next((decision for decision in decisions if decision is not None), False)


Rules = tuple[Patterns, ...]  # the innermost folder's last


def ignored(path: Path, is_folder: bool, rules: Rules) -> bool:
    """Return what the innermost rules say about a path."""
    decisions = (patterns.decide(path, is_folder) for patterns in reversed(rules))
    return next((decision for decision in decisions if decision is not None), False)


def rules_of(folder: Path) -> Rules:
    """Return the rules that a folder brings: its .gitignore, and those of the repository it is."""
    own = [folder / ".gitignore"]
    if (git := folder / ".git").exists():
        git = _git_folder(git)
        own = [_user_excludes(git), git / "info/exclude", *own]
    return tuple(Patterns(folder, _lines(file)) for file in own if file.is_file())


def rules_above(folder: Path) -> Rules:
    """Return the rules of the folders above, up to the top of the git repository, if any."""
    above: Rules = ()
    for parent in folder.parents if not (folder / ".git").exists() else ():
        above = rules_of(parent) + above
        if (parent / ".git").exists():
            # what the user names is meant, even if the repository ignores it
            return () if ignored(folder, True, above) else above
    return ()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []  # as git does


def _git_folder(git: Path) -> Path:
    """Return where a repository is kept; a linked worktree has a file that names the place."""
    if git.is_file():
        git = git.parent / "".join(_lines(git)).removeprefix("gitdir:").strip()
        git = git / ("".join(_lines(git / "commondir")).strip() or ".")
    return git


def _user_excludes(git: Path) -> Path:
    """Return the file of a user's own patterns, which git's settings may name."""
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()) / "git"
    for file in (git / "config", Path("~/.gitconfig").expanduser(), settings / "config"):
        if found := EXCLUDES_FILE.findall("\n".join(_lines(file))):
            return Path(found[-1]).expanduser()
    return settings / "ignore"


def _rule(line: str) -> Rule | None:
    """Read one line; None for a comment, an empty line and what is no pattern."""
    line = re.sub(r"(?<!\\)\s+$", "", nfc(line))
    excepts = line.startswith("!")
    glob = line[excepts:]
    if line.startswith("#") or not glob.strip("/"):
        return None
    folders_only = glob.endswith("/")
    names = [re.sub(r"^\*{3,}$", "**", name) for name in glob.rstrip("/").split("/")]
    if len(names) == 1:
        names = ["**", *names]  # in any folder
    elif names[-1] == "**":
        names.append("*")  # what is inside, not the folder itself
    parts: list[re.Pattern[str] | None] = []
    for number, name in enumerate(names):
        if name == "**" and number < len(names) - 1:
            if parts[-1:] != [None]:
                parts.append(None)
        elif name or number:
            if (part := _segment(name)) is None:
                return None
            parts.append(part)
    return Rule(tuple(parts), folders_only, excepts)


def _segment(glob: str) -> re.Pattern[str] | None:
    """Turn the glob of one name into an expression; None where it is none."""
    pieces = [""]  # between stars
    for token in TOKEN.finditer(glob):
        if token["star"]:
            pieces.append("")
        elif token["one"]:
            pieces[-1] += "."
        elif token["set"] is not None:
            pieces[-1] += f"[{'^' if token['negated'] else ''}{_members(token['set'])}]"
        elif token["plain"] in ("[", "\\"):
            return None
        else:
            pieces[-1] += re.escape(token["escaped"] or token["plain"])
    first, *rest = pieces
    if rest:  # the first place of a piece is the best one: atomic, it is not tried again
        first += "".join(f"(?>.*?{piece})" for piece in rest[:-1]) + f".*{rest[-1]}"
    try:
        return re.compile(first, re.DOTALL)
    except re.error:  # such as [z-a]
        return None


def _members(glob: str) -> str:
    """Turn the inside of a bracket expression into that of a character class."""
    return "".join(
        CLASSES.get(member["named"], "")
        if member["named"]
        else member["plain"]
        if member[0] == "-"
        else re.escape(member["plain"])
        for member in MEMBER.finditer(glob)
    )


def _matches(parts: Sequence[re.Pattern[str] | None], names: Sequence[str]) -> bool:
    """Match names of folders with parts; when one fails, the last None takes one name more."""
    part = name = 0
    again: tuple[int, int] | None = None  # the part behind the last None, and its name
    while name < len(names):
        if part < len(parts) and (pattern := parts[part]) is None:
            part += 1
            again = part, name
        elif part < len(parts) and pattern is not None and pattern.fullmatch(names[name]):
            part, name = part + 1, name + 1
        elif again is not None:
            part, name = again[0], again[1] + 1
            again = part, name
        else:
            return False
    return part == len(parts)
