"""Pictures to text, by the recognition that the machine has.

On a Mac that is Apple's Vision, through ocrmac; elsewhere the program tesseract, which knows more
alphabets, or RapidOCR, whose models come with it. It takes a second or more for a page.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import DocumentError, M3Error
from .text import Note

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

MOST_PIXELS = 4000  # of the longer side of a picture; larger ones are made smaller
MOST_FRAMES = 1000  # of a picture with several pages
COLUMN_LINES = 4  # that a column has at least
INK = 60  # difference from the background, of 255
GAP = 0.26  # of the height of a line's letters, between two words
EDGE = 3  # pixels around a word
CJK_SPACE = re.compile(r"(?<=[\u3000-\u9fff\uff00-\uffef]) (?=[\u3000-\u9fff\uff00-\uffef])")
FULL_LINE = 0.5  # of a column's width, which half of its lines fill


class Line(NamedTuple):
    """A piece of a line of text, and its place from the upper left of its picture."""

    left: float
    top: float
    right: float
    bottom: float
    text: str


def check() -> None:
    """Look for an engine.

    Raises:
        M3Error: there is none; says what to install.
    """
    if find_spec("PIL") is None or _engine() is None:
        raise M3Error(
            "reading pictures needs an engine for text recognition; install it with "
            "pip install 'm3mlx[ocr]'"
        )


def read(path: Path, data: bytes, note: Note) -> list[str]:
    """Read the text in a picture, or in each page of one."""
    from PIL import Image, ImageOps, ImageSequence

    texts = []
    try:
        with Image.open(io.BytesIO(data)) as picture:
            frames = 1 if picture.format == "GIF" else getattr(picture, "n_frames", 1)
            for number, frame in enumerate(ImageSequence.Iterator(picture)):
                if number == min(frames, MOST_FRAMES):
                    break
                frame.draft("RGB", (MOST_PIXELS, MOST_PIXELS))
                texts.append(recognize(ImageOps.exif_transpose(frame)))
    except (OSError, Image.DecompressionBombError) as error:
        raise DocumentError(
            path, f"is broken, it is no picture that can be shown ({error})"
        ) from error
    if frames > MOST_FRAMES:
        note(f"only the first {MOST_FRAMES} of {frames} pages are read")
    return texts


def recognize(picture: Image) -> str:
    """Return the text in a picture, a line for each of its lines."""
    from PIL import Image

    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    engine = _engine()
    assert engine is not None
    return engine(picture.convert("RGB"))


@cache
def _engine() -> Callable[[Image], str] | None:
    if sys.platform == "darwin" and find_spec("ocrmac"):
        return _vision
    if shutil.which("tesseract"):
        return _tesseract
    return _rapid if find_spec("rapidocr_onnxruntime") else None


def _vision(picture: Image) -> str:
    from ocrmac.ocrmac import OCR

    found = OCR(picture).recognize()  # shares of width and height, from the lower left
    width, height = picture.size
    return in_order(
        [
            Line(x * width, (1 - y - h) * height, (x + w) * width, (1 - y) * height, text)
            for text, _, (x, y, w, h) in found
        ]
    )


def _rapid(picture: Image) -> str:
    """Recognize word by word: of whole lines the model leaves out the spaces."""
    import numpy as np

    model, pixels = _rapid_model(), np.asarray(picture)[:, :, ::-1]  # (height, width, 3)
    boxes, _ = model(pixels, use_cls=False, use_rec=False)
    places = []
    for corners in boxes or ():
        across, down = zip(*corners, strict=True)
        places.append((max(0, int(min(across))), max(0, int(min(down))), max(across), max(down)))
    words = [
        _words(pixels[int(y) : int(end) + 1, int(x) : int(right) + 1])
        for x, y, right, end in places
    ]
    found, _ = model.text_rec(list(chain(*words))) if any(words) else ([], 0)
    texts = iter(text for text, _ in found)
    return in_order(
        [
            Line(*place, CJK_SPACE.sub("", " ".join(filter(None, islice(texts, len(own))))))
            for place, own in zip(places, words, strict=True)
        ]
    )


def _words(line: np.ndarray) -> list[np.ndarray]:
    """Cut the picture of a line, uint8 (height, width, 3), where there are gaps between words."""
    import numpy as np

    light = line.min(axis=2).astype(int)
    ink = abs(light - np.median(light)) > INK
    inked = np.flatnonzero(ink.any(axis=0))
    if not len(inked):
        return []
    height = np.ptp(np.flatnonzero(ink.any(axis=1))) + 1
    gaps = np.flatnonzero(np.diff(inked) > max(GAP * height, 1))
    starts, ends = inked[[0, *(gaps + 1)]], inked[[*gaps, -1]]
    return [
        np.ascontiguousarray(line[:, max(0, start - EDGE) : end + EDGE + 1])
        for start, end in zip(starts, ends, strict=True)
    ]


@cache
def _rapid_model() -> Any:
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR()


def _tesseract(picture: Image) -> str:
    file = io.BytesIO()
    picture.save(file, "ppm")
    command = ["tesseract", "-", "-"]
    done = subprocess.run(command, input=file.getvalue(), capture_output=True, check=True)
    return done.stdout.decode("utf-8", "replace")


def in_order(lines: list[Line]) -> str:
    """Return lines as one reads them: from the top down, but one column after the other."""
    lines = sorted(lines, key=lambda line: line.top)
    for start in range(len(lines) - 2 * COLUMN_LINES + 1):  # a heading may stand above columns
        if columns := _columns(lines[start:]):
            return "\n".join(filter(None, map(_rows, (lines[:start], *columns))))
    return _rows(lines)


def _columns(lines: list[Line]) -> tuple[list[Line], list[Line]] | None:
    """Divide lines at a white gap from top to bottom; None where there is none."""
    edge = 0.0
    for line in sorted(lines, key=lambda line: line.left):
        if edge and line.left > edge:
            sides = (
                [each for each in lines if each.right <= edge],
                [each for each in lines if each.left >= line.left],
            )
            if all(map(_is_column, sides)):
                return sides
        edge = max(edge, line.right)
    return None


def _is_column(lines: list[Line]) -> bool:
    """Tell a column of text from a column of a table."""
    if len(lines) < COLUMN_LINES:
        return False
    width = max(line.right for line in lines) - min(line.left for line in lines)
    full = sum(line.right - line.left > FULL_LINE * width for line in lines)
    words = sum(line.text.count(" ") for line in lines)
    return 2 * full >= len(lines) and words >= 2 * len(lines)


def _rows(lines: list[Line]) -> str:
    """Join what stands beside each other."""
    rows: list[list[Line]] = []
    for line in lines:
        middle = (line.top + line.bottom) / 2
        if rows and middle < rows[-1][0].bottom:
            rows[-1].append(line)
        else:
            rows.append([line])
    return "\n".join(" ".join(each.text for each in sorted(row)) for row in rows)
