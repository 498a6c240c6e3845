"""XML as trees, by names without their namespaces: those differ between editions of a format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lxml.etree import _Element as Element


def parse_xml(data: bytes | str, recover: bool = False) -> Element:
    """Parse XML of unknown origin: no entities, no files, no more than 256 levels.

    Args:
        recover: go on behind an error, as with a title that has a bare ``&``.

    Raises:
        lxml.etree.XMLSyntaxError: it is no XML, or nested more deeply.
    """
    from lxml import etree

    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        remove_comments=True,
        remove_pis=True,
        recover=recover,
    )
    root = etree.fromstring(data.encode() if isinstance(data, str) else data, parser)
    if root is None:
        raise ValueError("no XML")
    return root


def tag(element: Element) -> str:
    """Return an element's name without its namespace; "" for what is no element."""
    name = element.tag
    return name.rpartition("}")[2] if isinstance(name, str) else ""


def get(element: Element | None, name: str, default: str = "") -> str:
    """Return an attribute by its name without namespace."""
    if element is not None:
        for key, value in element.attrib.items():
            if str(key).rpartition("}")[2] == name:
                return str(value)
    return default


def child(element: Element | None, *path: str) -> Element | None:
    """Return the first child with a name, of it the first with the next name, and so on."""
    for name in path:
        element = (
            next((e for e in element if tag(e) == name), None) if element is not None else None
        )
    return element


def within(element: Element, *names: str) -> Iterator[Element]:
    """Yield the elements of these names below an element, in their order."""
    return (e for e in element.iter() if tag(e) in names)


def text_of(element: Element) -> str:
    """Return all text below an element."""
    return "".join(str(part) for part in element.itertext())
