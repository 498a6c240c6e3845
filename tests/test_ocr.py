"""Text in pictures is read where that is asked for and an engine is there."""

import gzip
import io
import sys

import pytest
from samples import write, write_pdf
from test_find import names

from m3mlx.documents import LeftOut, Worker, ocr
from m3mlx.documents.ocr import Line, in_order
from m3mlx.errors import DocumentError, M3Error

Image = pytest.importorskip("PIL.Image")

ENGINE = """
class RapidOCR:
    def __call__(self, picture, use_cls, use_rec):
        self.height, self.width, colors = picture.shape
        assert colors == 3 and picture.dtype == "uint8" and not use_rec
        if picture.min() == 255:
            return None, 0
        box = [[-1, 0], [self.width, 0], [self.width, self.height], [0, self.height]]
        return [[[float(x), y] for x, y in box]], 0

    def text_rec(self, words):
        return [[f"word {len(word[0])} of {self.width} by {self.height}", 0.9] for word in words], 0
"""


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """A stand-in for RapidOCR, which sees the size of what is not white."""
    write(tmp_path / "place" / "rapidocr_onnxruntime.py", ENGINE)
    monkeypatch.syspath_prepend(tmp_path / "place")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", "")
    ocr._engine.cache_clear()
    ocr._rapid_model.cache_clear()
    yield
    sys.modules.pop("rapidocr_onnxruntime", None)
    ocr._engine.cache_clear()
    ocr._rapid_model.cache_clear()


def saved(kind: str, *colors: object, size: tuple[int, int] = (60, 40), mode: str = "RGB") -> bytes:
    """Pictures of white with a black dot, save for those that are "white"."""
    pages = []
    for color in colors:
        page = Image.new(mode, size, color)
        if color == "black":
            page = Image.new(mode, size, "white")
            page.paste("black", (size[0] // 3, size[1] // 3, size[0] // 2, size[1] // 2))
        pages.append(page)
    file = io.BytesIO()
    pages[0].save(
        file, kind, **({"save_all": True, "append_images": pages[1:]} if pages[1:] else {})
    )
    return file.getvalue()


def test_pictures_are_documents_only_where_that_is_asked_for(tmp_path, engine):
    for name in ("a.png", "b.JPG", "c.tiff"):
        write(tmp_path / name, saved(name.split(".")[1].replace("JPG", "JPEG"), "black"))
    write(tmp_path / "d.svg", "<svg/>")
    left: list[LeftOut] = []
    assert names(tmp_path, leave_out=left.append, include=["*.*"], exclude=["place"]) == []
    assert {each.kind for each in left} == {"pictures", "other pictures"}
    assert all("--ocr" in each.advice for each in left if each.kind == "pictures")
    assert names(tmp_path, ocr=True, exclude=["place"]) == ["a.png", "b.JPG", "c.tiff"]


@pytest.mark.parametrize(
    ("name", "content", "text", "pages"),
    [
        ("a.png", saved("PNG", "black"), "of 60 by 40", 1),
        ("a.png", saved("PNG", "black", size=(9000, 900)), "of 4000 by 400", 1),
        ("a.gif", saved("GIF", "black", "white", mode="L"), "of 60 by 40", 1),
        ("a.tif", saved("TIFF", "black", "white", "black"), "of 60 by 40", 3),
        ("a.webp", saved("WEBP", "black", mode="RGBA"), "of 60 by 40", 1),
        ("a.pdf", saved("PDF", "black", "white"), "of 167 by 112", 2),
        ("a.pdf.gz", gzip.compress(saved("PDF", "black")), "of 167 by 112", 1),
    ],
)
def test_the_text_in_pictures_is_read(engine, name, content, text, pages):
    with Worker(ocr=True) as worker:
        document = worker.parse(f"/{name}", content)
    assert text in document.text
    assert len(document.page_starts) == pages


def test_pages_of_text_are_not_recognized(tmp_path, engine):
    path = write_pdf(tmp_path / "a.pdf", [["a page"]])
    with Worker(ocr=True) as worker:
        assert "word" not in worker.read(path).text


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", saved("PNG", (0, 0, 0, 0), mode="RGBA"), "is empty"),  # white where transparent
        ("a.png", saved("PNG", "white"), "is empty"),
        ("a.png", saved("PNG", "black")[:60], "broken"),
        ("a.jpg", b"<html>", "broken"),
        ("a.pdf", saved("PDF", "white"), "pages are pictures$"),
    ],
)
def test_pictures_without_text_are_refused(engine, name, content, reason):
    with Worker(ocr=True) as worker, pytest.raises(DocumentError, match=reason):
        worker.parse(f"/{name}", content)


def test_without_an_engine_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(ocr, "_engine", lambda: None)
    with pytest.raises(M3Error, match=r"m3mlx\[ocr\]"):
        ocr.check()


def test_scanned_pages_without_recognition_name_it():
    with Worker() as worker, pytest.raises(DocumentError, match="pictures; --ocr"):
        worker.parse("/a.pdf", saved("PDF", "black"))


def lines(*texts: str, left: float = 0, top: float = 0, width: float = 300) -> list[Line]:
    return [
        Line(left, top + 30 * n, left + width, top + 30 * n + 20, text)
        for n, text in enumerate(texts)
    ]


def test_columns_are_read_one_after_the_other_and_tables_by_rows():
    left = [f"a line {n} of the left" for n in range(5)]
    right = [f"a line {n} of the right" for n in range(5)]
    heading = Line(100, 0, 600, 20, "heading of both")
    page = [heading, *lines(*left, top=50), *lines(*right, left=400, top=53)]
    assert in_order(page[::-1]).split("\n") == ["heading of both", *left, *right]
    names, prices = [f"item {n}" for n in range(5)], [f"{n}.50" for n in range(5)]
    table = [*lines(*names, width=80), *lines(*prices, left=400, width=60, top=-3)]
    assert in_order(table).split("\n") == [f"item {n} {n}.50" for n in range(5)]
    assert in_order([]) == ""
