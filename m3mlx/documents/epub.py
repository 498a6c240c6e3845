"""EPUB to text: the chapters in the order of the spine."""

from __future__ import annotations

import posixpath
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from ..errors import DocumentError
from . import html
from .archive import open_archive
from .text import Note

CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"


def read(path: Path, data: bytes, note: Note) -> str:
    with open_archive(path, data) as archive:
        names = set(archive.namelist())
        package = None
        if CONTAINER in names:
            rootfile = ElementTree.fromstring(archive.read(CONTAINER)).find(".//{*}rootfile")
            package = rootfile.get("full-path") if rootfile is not None else None
        if package is None or package not in names:
            raise DocumentError(path, "is broken: it has no table of contents")
        root = ElementTree.fromstring(archive.read(package))
        folder = posixpath.dirname(package)
        files = {
            item.get("id"): posixpath.normpath(posixpath.join(folder, unquote(item.attrib["href"])))
            for item in root.iterfind(".//{*}manifest/{*}item")
        }
        spine = [files.get(ref.get("idref"), "") for ref in root.iterfind(".//{*}spine/{*}itemref")]
        if not spine or any(name not in names for name in spine):
            raise DocumentError(path, "is broken: chapters of it are missing")
        locked = archive.read(ENCRYPTION).decode(errors="replace") if ENCRYPTION in names else ""
        if any(name in unquote(locked) for name in spine):
            raise DocumentError(path, "is encrypted: it is protected against copying")
        chapters = [html.read(path, archive.read(name), note) for name in spine]
    return "\n\n".join(filter(None, chapters))
