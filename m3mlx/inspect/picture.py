"""Pictures of what memories hold of a document, for use without a browser."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from io import BytesIO
from typing import Any

from ..errors import M3Error
from ..text import scrub
from .page import Kept

_WIDTH, _MARGIN, _LINE, _CELL = 1000, 36, 26, 16  # pixels
_TALLEST = 30_000  # pixels of one picture
_INK, _DIM, _GRID = (27, 27, 31), (102, 102, 94), (217, 217, 210)
_PAPER, _KEPT = (253, 253, 251), (214, 110, 0)
_DARKEST = 0.75  # shade behind a token, so that it can still be read
_FONTS = ("DejaVuSans.ttf", "Arial Unicode.ttf", "NotoSans-Regular.ttf", "arial.ttf")


def kept_picture(kept: Kept) -> bytes:
    """Make a PNG of a document or reference.

    Raises:
        M3Error: Pillow is not installed, or the document is too long for a picture.
    """
    sheet = _Sheet()
    sheet.line(f"What is kept of {kept.title}", 20, _INK)
    sheet.line(f"The darker a token, the more of the {kept.most} heads keep it.", 12, _DIM)
    sheet.line("The map of the budget has layers to the right, KV heads downwards.", 12, _DIM)
    sheet.map(kept.counts)
    for number, reference in enumerate(kept.references, 1):
        sheet.line(f"{number}. {reference.place}", 15, _DIM)
        heads = reference.heads
        if heads is None:
            sheet.line("Its memory has not been written yet; its first use writes it.", 12, _DIM)
            heads = [0] * len(reference.tokens)
        most = max([*heads, 1])
        shades = (_DARKEST * count / most for count in heads)
        sheet.text(zip(map(scrub, reference.tokens), shades, strict=True), 15, _INK)
        sheet.y += _LINE // 2
        if sheet.y > _TALLEST:
            raise M3Error(
                f"{kept.title}: it is too long for a picture. Name one of its references, such as "
                f"{kept.title}#1, or write a page (.html)."
            )
    return sheet.png()


class _Sheet:
    """A picture that grows downwards; it is drawn when its height is known."""

    def __init__(self) -> None:
        try:
            from PIL import Image, ImageDraw, ImageFont
        except ImportError as error:
            raise M3Error("a picture needs the library Pillow: pip install 'm3mlx[png]'") from error
        self._image, self._draw, self._fonts = Image, ImageDraw, ImageFont
        self._faces: dict[int, Any] = {}
        self._boxes: list[tuple] = []  # box, colours of fill and edge
        self._texts: list[tuple] = []  # place, text, colour, font
        self.y = _MARGIN

    def line(self, text: str, size: int, colour: tuple) -> None:
        """Add text, wrapped."""
        self.text(((f"{word} ", 0.0) for word in scrub(text).split(" ")), size, colour)

    def text(self, pieces: Iterable[tuple[str, float]], size: int, colour: tuple) -> None:
        """Add pieces of text in a row, wrapped, each on a background of its shade, 0 to 1."""
        font, x = self._font(size), float(_MARGIN)
        for piece, shade in pieces:
            for number, part in enumerate(piece.expandtabs(4).split("\n")):
                width = font.getlength(part)
                if number or (x > _MARGIN and x + width > _WIDTH - _MARGIN):
                    x, self.y = _MARGIN, self.y + _LINE
                if part:
                    box = (x, self.y, x + width, self.y + _LINE - 4)
                    self._boxes.append((box, _shade(shade), None))
                    self._texts.append(((x, self.y + 2), part, colour, font))
                x += width
        self.y += _LINE

    def map(self, counts: Sequence[Sequence[float]]) -> None:
        """Add a map: layers to the right, heads downwards, darker for more tokens."""
        top = max([count for layer in counts for count in layer] + [1e-9])
        for column, layer in enumerate(counts):
            for row, count in enumerate(layer):
                x, y = _MARGIN + column * _CELL, self.y + row * _CELL
                box = (x, y, x + _CELL - 1, y + _CELL - 1)
                self._boxes.append((box, _shade(count / top), _GRID))
        self.y += max(map(len, counts), default=0) * _CELL + _LINE // 2

    def png(self) -> bytes:
        image = self._image.new("RGB", (_WIDTH, self.y + _MARGIN), _PAPER)
        canvas = self._draw.Draw(image)
        for box, fill, edge in self._boxes:
            canvas.rectangle(box, fill, edge)
        for place, text, colour, font in self._texts:
            canvas.text(place, text, colour, font)
        made = BytesIO()
        image.save(made, "PNG", optimize=True)
        return made.getvalue()

    def _font(self, size: int) -> Any:
        """Return a system font with many scripts, else the one of Pillow."""
        for name in _FONTS:
            if size not in self._faces:
                with suppress(OSError):
                    self._faces[size] = self._fonts.truetype(name, size)
        return self._faces.get(size) or self._faces.setdefault(size, self._fonts.load_default(size))


def _shade(shade: float) -> tuple[int, ...]:
    return tuple(round(a + shade * (b - a)) for a, b in zip(_PAPER, _KEPT, strict=True))
