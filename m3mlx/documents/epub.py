"""EPUB to text: the chapters in the order of the spine."""

from __future__ import annotations

import posixpath
import zipfile
from pathlib import Path
from urllib.parse import unquote

from ..errors import DocumentError
from . import html
from .archive import open_archive
from .text import Note
from .tree import get, parse_xml, within

CONTAINER, ENCRYPTION = "meta-inf/container.xml", "meta-inf/encryption.xml"
CHAPTER = (".xhtml", ".html", ".htm", ".xml")
PACKAGE = ".opf"


def read(path: Path, data: bytes, note: Note) -> str:
    with open_archive(path, data) as archive:
        names = {name.lower(): name for name in archive.namelist()}  # books differ in their case
        spine = _spine(path, archive, names)
        there = {name: is_text for name, is_text in spine.items() if name.lower() in names}
        if not there:
            raise DocumentError(path, "is broken: chapters of it are missing")
        if missing := [name for name in spine if name not in there]:
            note(f"chapters are missing in the file: {', '.join(missing)}")
        locked = ""
        if ENCRYPTION in names:
            locked = unquote(archive.read(names[ENCRYPTION]).decode(errors="replace"))
        if any(name in locked for name in spine):
            raise DocumentError(path, "is encrypted: it is protected against copying")
        chapters = [
            html.read(path, archive.read(names[name.lower()]), note)
            for name, is_text in there.items()
            if is_text
        ]
        if pictures := len(there) - len(chapters):
            note(f"pages that are pictures are left out ({pictures})")
    return "\n\n".join(filter(None, chapters))


def _spine(path: Path, archive: zipfile.ZipFile, names: dict[str, str]) -> dict[str, bool]:
    """Return the parts of a book in their order, and for each whether it is text."""
    package = ""
    if CONTAINER in names:
        root = parse_xml(archive.read(names[CONTAINER]), recover=True)
        package = get(next(within(root, "rootfile"), None), "full-path").lower()
    if package not in names:
        package = next((name for name in names if name.endswith(PACKAGE)), "")
    if package not in names:
        raise DocumentError(path, "is broken: it has no table of contents")
    root = parse_xml(archive.read(names[package]), recover=True)
    folder = posixpath.dirname(names[package])
    items = {get(item, "id"): item for item in within(root, "item")}
    refs = [get(ref, "idref") for ref in within(root, "itemref")]
    order = [items[ref] for ref in refs if ref in items]
    if not refs:
        order = [item for item in items.values() if "html" in get(item, "media-type")]
    chapters = [item for item in order if "nav" not in get(item, "properties").split()]
    spine = {}
    for item in chapters or order:  # a chapter is read once
        target = unquote(get(item, "href").partition("#")[0])
        name = posixpath.normpath(posixpath.join(folder, target))
        spine[name] = "html" in get(item, "media-type") or name.lower().endswith(CHAPTER)
    return spine
