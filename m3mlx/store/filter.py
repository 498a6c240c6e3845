"""Which documents a search is about: by collection, path, type and date."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from ..text import nfc


@dataclass(frozen=True)
class Filter:
    """Conditions for documents to be searched; None or () for those that do not matter.

    Attributes:
        collection: that it is in.
        paths: patterns, of which its path must match one: a path, a folder that it is below, or
            with *, ? and [], where * also goes across folders; a relative one is of any folder.
        types: endings, such as "pdf", of which its name must have one.
        since: when it was memorized at the earliest, ISO 8601 in UTC.
    """

    collection: str | None = None
    paths: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    since: str | None = None

    def matches(self, path: str, collection: str, added: str) -> bool:
        """Return whether a document is searched."""
        return (
            self.collection in (None, collection)
            and (self.since is None or added >= self.since)
            and (not self.types or os.path.splitext(path)[1].lower() in self._endings)
            and (not self.paths or self._matches_path(path))
        )

    def _matches_path(self, path: str) -> bool:
        whole, folders, patterns = self._places
        path = nfc(path)
        return (
            path in whole
            or path.startswith(folders)
            or any(fnmatchcase(path, pattern) for pattern in patterns)
        )

    @cached_property
    def _endings(self) -> set[str]:
        return {f".{name.lower().lstrip('.')}" for name in self.types}

    @cached_property
    def _places(self) -> tuple[set[str], tuple[str, ...], list[str]]:
        """Whole paths, beginnings of paths, and patterns."""
        whole: set[str] = set()
        patterns: list[str] = []
        for name in map(nfc, map(os.path.expanduser, self.paths)):
            if any(sign in name for sign in "*?["):
                patterns += [name] if os.path.isabs(name) else [name, f"*/{name}"]
            if name:  # signs of a pattern may be part of a name too
                whole |= {name, os.path.abspath(name), os.path.realpath(name)}
        return whole, tuple(os.path.join(name, "") for name in whole), patterns
