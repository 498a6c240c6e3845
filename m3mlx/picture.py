"""What was kept of a document as a picture: the page of ``view`` for where no browser is."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

from .errors import M3Error
from .view import Kept, plain

_WIDTH, _MARGIN, _LINE, _CELL = 1000, 36, 26, 16  # pixels
_TALLEST = 30_000  # pixels, of one picture
_INK, _DIM, _PAPER, _KEPT = (27, 27, 31), (102, 102, 94), (253, 253, 251), (214, 110, 0)
_FONTS = ("DejaVuSans.ttf", "Arial Unicode.ttf", "NotoSans-Regular.ttf", "arial.ttf")


def kept_picture(kept: Kept) -> bytes:
    """A PNG of a document or reference.

    Raises:
        M3Error: Pillow is not installed, or the document is too long for a picture.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise M3Error("a picture needs the library Pillow: pip install 'm3mlx[png]'") from error

    def font(size: int) -> ImageFont.FreeTypeFont:
        for name in _FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
        return ImageFont.load_default(size)

    large, normal, small = font(20), font(15), font(12)
    draws: list[Callable[[ImageDraw.ImageDraw], None]] = []
    y = _MARGIN

    def words(text: str, face: ImageFont.FreeTypeFont, colour: tuple[int, int, int]) -> None:
        tokens([(word, 0.0) for word in _parts(plain(text))], face, colour)

    def tokens(
        pieces: list[tuple[str, float]],
        face: ImageFont.FreeTypeFont,
        colour: tuple[int, int, int] = _INK,
    ) -> None:
        """Text in lines, each piece on a ground as dark as its strength from 0 to 1."""
        nonlocal y
        x = _MARGIN
        for piece, strength in pieces:
            for number, part in enumerate(piece.expandtabs(4).split("\n")):
                if number:
                    x, y = _MARGIN, y + _LINE
                width = face.getlength(part)
                if x > _MARGIN and x + width > _WIDTH - _MARGIN:
                    x, y = _MARGIN, y + _LINE
                box = (x, y, x + width, y + _LINE - 4)
                draws.append(_piece(box, part, face, colour, _shade(strength)))
                x += width
        y += _LINE

    words(f"What is kept of {kept.title}", large, _INK)
    words(f"The darker a token, the more of the {kept.most} heads keep it. Below, layers "
          f"to the right and KV heads downwards: where the budget lies.", small, _DIM)  # fmt: skip
    y += 8
    top = max([count for layer in kept.counts for count in layer] + [1e-9])
    for column, layer in enumerate(kept.counts):
        for line, count in enumerate(layer):
            x, at = _MARGIN + column * _CELL, y + line * _CELL
            draws.append(_piece((x, at, x + _CELL - 1, at + _CELL - 1), "", small, _INK,
                                _shade(count / top)))  # fmt: skip
    y += max(map(len, kept.counts), default=0) * _CELL + 12
    for number, reference in enumerate(kept.references, 1):
        words(f"{number}. {reference.place}", normal, _DIM)
        heads = reference.heads
        if heads is None:
            words("Its memory has not been written yet; its first use does.", small, _DIM)
            heads = [0] * len(reference.tokens)
        most = max([*heads, 1])
        shown = zip(reference.tokens, heads, strict=True)
        tokens([(plain(text), 0.75 * count / most) for text, count in shown], normal)
        y += _LINE // 2
        if y > _TALLEST:
            raise M3Error(
                f"{kept.title}: it is too long for a picture. Name one of its references, such as "
                f"{kept.title}#1, or write a page (.html)."
            )
    image = Image.new("RGB", (_WIDTH, y + _MARGIN), _PAPER)
    canvas = ImageDraw.Draw(image)
    for draw in draws:
        draw(canvas)
    made = BytesIO()
    image.save(made, "PNG", optimize=True)
    return made.getvalue()


def _parts(text: str) -> list[str]:
    return [f"{word} " for word in text.split(" ")]


def _shade(strength: float) -> tuple[int, ...]:
    return tuple(
        round(paper + strength * (kept - paper)) for paper, kept in zip(_PAPER, _KEPT, strict=True)
    )


def _piece(box: tuple, text: str, face: object, colour: tuple, ground: tuple) -> Callable:
    def draw(canvas) -> None:
        canvas.rectangle(box, fill=ground, outline=None if text else (217, 217, 210))
        canvas.text((box[0], box[1] + 2), text, fill=colour, font=face)

    return draw
