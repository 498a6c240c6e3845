"""EPUB to text: the chapters in the order of the spine."""

from __future__ import annotations

import posixpath
from pathlib import Path
from urllib.parse import unquote

from ..errors import DocumentError
from . import html
from .archive import open_archive
from .text import Note
from .tree import get, parse_xml, within

CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
CHAPTER = (".xhtml", ".html", ".htm", ".xml")


def read(path: Path, data: bytes, note: Note) -> str:
    with open_archive(path, data) as archive:
        names = set(archive.namelist())
        package = ""
        if CONTAINER in names:
            package = get(
                next(within(parse_xml(archive.read(CONTAINER)), "rootfile"), None), "full-path"
            )
        if package not in names:
            raise DocumentError(path, "is broken: it has no table of contents")
        root = parse_xml(archive.read(package))
        folder = posixpath.dirname(package)
        files = {
            get(item, "id"): posixpath.normpath(posixpath.join(folder, unquote(get(item, "href"))))
            for item in within(root, "item")
            if "nav" not in get(item, "properties").split()
        }
        refs = (files.get(get(ref, "idref"), "") for ref in within(root, "itemref"))
        spine = list(dict.fromkeys(filter(None, refs)))  # a chapter is read once
        there = [name for name in spine if name in names]
        if not there:
            raise DocumentError(path, "is broken: chapters of it are missing")
        if missing := [name for name in spine if name not in names]:
            note(f"chapters are missing in the file: {', '.join(missing)}")
        locked = archive.read(ENCRYPTION).decode(errors="replace") if ENCRYPTION in names else ""
        if any(name in unquote(locked) for name in spine):
            raise DocumentError(path, "is encrypted: it is protected against copying")
        pictures = [name for name in there if not name.lower().endswith(CHAPTER)]
        if pictures:
            note(f"pages that are pictures are left out ({len(pictures)})")
        chapters = [
            html.read(path, archive.read(name), note) for name in there if name not in pictures
        ]
    return "\n\n".join(filter(None, chapters))
