"""Write the two binary documents of the demo, `volunteers.docx` and `history.pdf`.

    python tools/make_demo.py [FOLDER]

The default folder is m3mlx/data/demo. Run it again after changing a text below. The same versions
of Python and python-docx write the same bytes every time.
"""

import argparse
import io
import textwrap
import zipfile
from datetime import datetime
from pathlib import Path

import docx

DEMO = Path(__file__).parents[1] / "m3mlx" / "data" / "demo"
WRITTEN = datetime(2036, 1, 1)

# The first paragraph of a document or a page is its heading.
VOLUNTEERS = [
    "Guide for volunteers of Wrenmoor Observatory",
    "Thank you for giving us your evenings. A shift lasts from sunset until one o'clock, and there "
    "are always two of you: one at the telescope, one with the visitors.",
    "When you arrive, sign the green book and light the stove. The spare key of the dome is kept "
    "in the blue teapot in the kitchen. Put it back before you go, for the milkman needs it too.",
    "Open the slit slowly, with the crank, and never while somebody stands on the ladder. Let the "
    "big telescope cool for forty minutes before the first picture.",
    "If a visitor falls on the path, call Doctor Mabel Quince in Applewick, extension 309. The "
    "bandages are in the drawer under the barometer.",
    "After ten shifts you get the silver badge, after fifty a key of your own and a chair with "
    "your name on it. Questions go to Thea Brockwell.",
]

HISTORY = [
    [
        "A short history of Wrenmoor Observatory",
        "Wrenmoor Observatory was founded by the clockmaker Edda Tarnhall. In 1931 she bought a "
        "sheep shed on Kettle Ridge for the price of two good clocks, took off its roof, and put a "
        "dome of larch and copper in its place. The first telescope, Old Harriet, came up the "
        "hill on a hay cart.",
        "For eleven years she took a glass plate on every clear night. Her apprentice, Lambert "
        "Osk, discovered a small planet on one of them and named it after her goat, Clover.",
    ],
    [
        "From the storm until today",
        "In the storm of 1954 the dome was blown into the valley, where a farmer used it as a "
        "haystack cover. The society that rebuilt it had 17 members, and each of them gave a "
        "month's wages.",
        "The big reflector followed in 1994. Its mirror was ground by the sisters Ione and Petra "
        "Wendle in their bakery, because the floor there does not shake. The library is named "
        "after them. Since 2019 the observatory has measured the brightness of the sky every "
        "night, and so far the sky above Kettle Ridge has stayed dark.",
    ],
]


def main(folder: Path) -> None:
    """Write both documents into a folder that exists."""
    (folder / "volunteers.docx").write_bytes(docx_bytes(VOLUNTEERS))
    (folder / "history.pdf").write_bytes(pdf_bytes(HISTORY))


def docx_bytes(paragraphs: list[str]) -> bytes:
    """Return a Word document: a heading and paragraphs."""
    document = docx.Document()
    heading, *body = paragraphs
    document.add_heading(heading, level=1)
    for paragraph in body:
        document.add_paragraph(paragraph)
    properties = document.core_properties
    properties.title, properties.author = heading, "The m3mlx founders"
    properties.comments = ""
    properties.created = properties.modified = WRITTEN
    written, fixed = io.BytesIO(), io.BytesIO()
    document.save(written)
    # python-docx stamps every member with the time of day, so pack them once more without it.
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(fixed, "w") as target:
        for name in source.namelist():
            target.writestr(zipfile.ZipInfo(name), source.read(name), zipfile.ZIP_DEFLATED)
    return fixed.getvalue()


def pdf_bytes(pages: list[list[str]]) -> bytes:
    """Return a PDF of A4 pages in Helvetica, each with a heading and paragraphs.

    Raises:
        UnicodeEncodeError: a character that Helvetica's Windows-1252 encoding does not have.
    """
    kids = " ".join(f"{5 + 2 * page} 0 R" for page in range(len(pages)))
    # Objects 1 to 3, then the contents and the page object of each page in turn.
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for page in pages:
        stream = _page_stream(page)
        contents = len(objects) + 1
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] "
            b"/Resources << /Font << /F1 3 0 R >> >> /Contents %d 0 R >>" % contents
        )
    pdf, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(pdf))
        pdf += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    return pdf + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\n"
        b"startxref\n%d\n%%%%EOF\n" % (size, table, size, len(pdf))
    )


def _page_stream(paragraphs: list[str]) -> bytes:
    """Return the drawing commands of a page: 72 points of margin, 16 points from line to line."""
    heading, *body = paragraphs
    lines = [heading]
    for paragraph in body:
        lines += ["", *textwrap.wrap(paragraph, 78)]
    shown = []
    for line in lines:
        for special in "\\()":
            line = line.replace(special, f"\\{special}")
        shown.append(b"(%s) Tj T*" % line.encode("cp1252"))
    shown.insert(1, b"/F1 11 Tf")
    return b"BT\n/F1 15 Tf 16 TL 72 756 Td\n" + b"\n".join(shown) + b"\nET"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=DEMO)
    main(parser.parse_args().folder)
