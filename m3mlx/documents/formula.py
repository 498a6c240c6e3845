"""Formulas of Word (OMML) and of the web (MathML) as a line of text, such as ``(a+b)/2 = x^2``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .tree import child, get, tag

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

SIMPLE = re.compile(r"\w*|\(.*\)|\W")
# the names of OMML and MathML that mean the same; the parts of a formula are its children
FRACTION, ROOT, SQUARE_ROOT = ("f", "mfrac"), ("rad", "mroot"), ("msqrt",)
UPPER, LOWER = ("sSup", "msup", "limUpp", "mover"), ("sSub", "msub", "limLow", "munder")
BOTH = ("sSubSup", "sPre", "msubsup", "munderover")
PROPERTIES = re.compile(r".*Pr|annotation|annotation-xml")


def linear(element: Element) -> str:
    """Write a formula in a line."""
    return re.sub(r"\s+", " ", _write(element)).strip()


def _write(element: Element) -> str:
    name = tag(element)
    if name in ("t", "mi", "mn", "mo", "mtext", "ms"):
        return element.text or ""
    parts = [_write(e) for e in element if tag(e) and not PROPERTIES.fullmatch(tag(e))]
    if name in FRACTION and len(parts) == 2:
        return f"{_group(parts[0])}/{_group(parts[1])}"
    if name in UPPER and len(parts) == 2:
        return f"{_group(parts[0])}^{_group(parts[1])}"
    if name in LOWER and len(parts) == 2:
        return f"{_group(parts[0])}_{_group(parts[1])}"
    if name in BOTH and len(parts) == 3:
        return f"{_group(parts[0])}_{_group(parts[1])}^{_group(parts[2])}"
    if name in SQUARE_ROOT:
        return f"√({''.join(parts)})"
    if name in ROOT and len(parts) == 2:
        degree, base = parts if name == "rad" else reversed(parts)
        return f"root({degree}, {base})" if degree.strip() else f"√({base})"
    if name == "acc":
        return "".join(parts) + get(child(element, "accPr", "chr"), "val", "\u0302")
    if name == "nary":
        sign = get(child(element, "naryPr", "chr"), "val", "∫")
        limits = zip("_^", parts, strict=False)
        return sign + "".join(f"{s}{_group(p)}" for s, p in limits if p) + " " + "".join(parts[2:])
    if name in ("d", "mfenced"):
        settings = child(element, "dPr")
        first = get(child(settings, "begChr"), "val", get(element, "open", "("))
        last = get(child(settings, "endChr"), "val", get(element, "close", ")"))
        return f"{first}{', '.join(parts)}{last}"
    if name in ("m", "mtable", "eqArr"):
        return "; ".join(parts)
    if name in ("mr", "mtr"):
        return ", ".join(parts)
    return ("" if name != "func" else " ").join(parts)


def _group(part: str) -> str:
    part = part.strip()
    return part if SIMPLE.fullmatch(part) else f"({part})"
