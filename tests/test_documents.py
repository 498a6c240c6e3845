"""Files of every format are read without a wrong character, or refused with a reason."""

import hashlib
import json
import os
import zipfile
from contextlib import suppress
from email.message import EmailMessage
from pathlib import Path
from time import process_time

import docx
import pytest
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from lxml import etree
from samples import (
    mail,
    opendocument,
    shape,
    write,
    write_bad_files,
    write_docx,
    write_encrypted_pdf,
    write_epub,
    write_good_folder,
    write_pdf,
    write_pdf_of_streams,
    write_pptx,
    write_xlsx,
    write_zip,
)

from m3mlx.documents import Document, archive, file_hash, find, parse, read
from m3mlx.errors import DocumentError


def reason(path: Path) -> str:
    with pytest.raises(DocumentError) as caught:
        read(path)
    assert caught.value.path == str(path)
    return caught.value.reason


def text_of(path: Path, content: str | bytes) -> str:
    return read(write(path, content)).text


# --- every format


def test_every_format_is_found_and_its_text_read(tmp_path):
    phrases = write_good_folder(tmp_path)
    found = list(find([tmp_path]))
    assert [path.name for path in found] == sorted(phrases)
    for path in found:
        assert phrases[path.name] in read(path).text


def test_every_bad_file_has_its_reason_and_the_others_are_read(tmp_path):
    words = write_bad_files(tmp_path)
    phrases = write_good_folder(tmp_path)
    errors, good = {}, []
    for path in find([tmp_path]):
        try:
            if isinstance(path, DocumentError):
                raise path
            file_hash(path)
            good.append(read(path))
        except DocumentError as error:
            assert str(error) == f"{error.path}: {error.reason}"
            errors[Path(error.path).name] = error.reason
    assert errors.keys() == words.keys()
    assert all(words[name] in errors[name] for name in words)
    assert len(good) == len(phrases)


def test_a_document_tells_its_path_and_the_hash_of_its_bytes(tmp_path):
    path = write(tmp_path / "a.md", "# Head\r\n")
    document = read(path)
    assert document == Document(
        path=str(path),
        hash=hashlib.sha256(b"# Head\r\n").hexdigest(),
        text="# Head\n",
        lined=True,
    )
    assert file_hash(path) == document.hash


def test_newlines_and_characters_are_normalized(tmp_path):
    content = "a\r\nb\rc\0".replace("\0", "\x07\x1b[31m\x0cred\x1b[0m\u00ad") + "e\u0301\ufeff"
    assert text_of(tmp_path / "a.txt", content) == "a\nb\nc redé"


def test_lines_are_those_of_the_file(tmp_path):
    document = read(write(tmp_path / "a.py", "\n\nx = 1\r\ny = 2\n"))
    assert document.kind == "code"
    assert document.line_of(document.text.index("y")) == 4
    assert document.page_of(0) is None


def test_kinds_tell_how_a_format_is_cut(tmp_path):
    write_good_folder(tmp_path)
    kinds = {path.name: (read(path).kind, read(path).lined) for path in find([tmp_path])}
    assert kinds["notes.md"] == ("prose", True)
    assert kinds["Dockerfile"] == ("code", True)
    assert kinds["birds.csv"] == ("rows", True)
    assert kinds["recipe.docx"] == ("prose", False)


def test_upper_case_suffixes_are_known(tmp_path):
    write_pdf(tmp_path / "A.PDF", [["Hello there."]])
    assert "Hello there." in read(tmp_path / "A.PDF").text


def test_a_pdf_knows_its_pages(tmp_path):
    document = read(write_pdf(tmp_path / "a.pdf", [["one"], [], ["three"]]))
    assert document.text[document.page_starts[2] :].strip() == "three"
    assert [document.page_of(document.text.index(w)) for w in ("one", "three")] == [1, 3]
    assert document.line_of(0) is None


def test_words_divided_in_a_pdf_are_joined_and_compounds_keep_their_hyphen(tmp_path):
    pages = [["The lamp was illu-", "minated by a well-", "known man, a well-known one."]]
    text = read(write_pdf(tmp_path / "a.pdf", pages)).text
    assert "illuminated" in text
    assert text.count("well-known") == 2


@pytest.mark.parametrize("algorithm", ["RC4-128", "AES-128", "AES-256"])
def test_a_pdf_that_only_its_owner_may_change_is_read(tmp_path, algorithm):
    path = write_encrypted_pdf(tmp_path / "a.pdf", user="", owner="secret", algorithm=algorithm)
    assert "4711" in read(path).text


def test_a_pdf_encrypted_with_aes_is_named_as_encrypted(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", [["secret"]])
    zeros, key = "00" * 48, "00" * 32
    encrypt = (
        f"<< /Filter /Standard /V 5 /R 6 /Length 256 /P -1 /O <{zeros}> /U <{zeros}> /OE <{key}>"
        f" /UE <{key}> /Perms <{key[:32]}> /StmF /StdCF /StrF /StdCF"
        " /CF << /StdCF << /CFM /AESV3 /Length 32 >> >> >>"
    )
    entry = f"trailer << /Encrypt {encrypt} /ID [<00> <00>]".encode()
    path.write_bytes(path.read_bytes().replace(b"trailer <<", entry))
    assert "encrypted" in reason(path)


def shown(*texts: str) -> str:
    """A content stream with texts below each other."""
    return "BT /F1 12 Tf 50 700 Td " + " 0 -20 Td ".join(f"({text}) Tj" for text in texts) + " ET"


def test_a_broken_page_of_a_pdf_hides_no_other(tmp_path):
    streams = [shown("Page one"), "BT /F1 12 Tf 50 700 Td [(a) 0.0 Tc (b)] TJ", shown("Page three")]
    document = read(write_pdf_of_streams(tmp_path / "a.pdf", streams))
    assert document.text.startswith("Page one")
    assert document.page_of(document.text.index("three")) == 3
    content = (tmp_path / "a.pdf").read_bytes()
    lost = content.replace(b"/Type /Page /Parent", b"/Type /Pxxx /Parent", 1)
    assert "Page three" in read(write(tmp_path / "b.pdf", lost)).text


def test_cells_and_letters_of_a_pdf_are_words(tmp_path):
    cells = "BT /F1 10 Tf 1 0 0 1 400 700 Tm (37,499.96) Tj 1 0 0 1 50 700 Tm (BAIN) Tj ET"
    wide = shown("C H A P T E R two", "a b c")
    text = read(write_pdf_of_streams(tmp_path / "a.pdf", [cells, wide])).text
    assert text.split() == ["BAIN", "37,499.96", "CHAPTER", "two", "a", "b", "c"]


def test_fields_and_notes_of_a_pdf_are_read(tmp_path):
    def annotation(kind: str, entries: str) -> str:
        return f"<< /Type /Annot /Subtype /{kind} /Rect [0 0 99 20] {entries} >>"

    extra = [
        annotation("Widget", "/FT /Tx /T (holder) /V (Ada Quill)"),
        annotation("Widget", "/FT /Btn /T (paid) /V /On /AS /On /AP << /N << /On 9 0 R >> >>"),
        annotation("Widget", "/FT /Btn /T (late) /V /Off /AS /Off /AP << /N << /On 9 0 R >> >>"),
        annotation("FreeText", "/Contents (call back)"),
        annotation("Link", "/Contents (no text)"),
        "<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Length 0 >>\nstream\n\nendstream",
    ]
    page = "/Annots [4 0 R 5 0 R 6 0 R 7 0 R 8 0 R]"
    root = "/AcroForm << /Fields [4 0 R 5 0 R 6 0 R] >>"
    path = write_pdf_of_streams(tmp_path / "a.pdf", [shown("Form")], extra, page, root)
    assert read(path).text == "Form\nholder: Ada Quill\npaid: yes\n[Note: call back]"


def test_pages_of_a_pdf_that_are_pictures_are_counted(tmp_path):
    picture = "q 99 0 0 99 0 0 cm BI /W 1 /H 1 /CS /G /BPC 8 ID x EI Q"
    streams = [shown("text"), picture, "", picture]
    document = read(write_pdf_of_streams(tmp_path / "a.pdf", streams))
    (note,) = document.notes
    assert note.startswith("2 of 4 pages are pictures")
    assert note.endswith(": 2, 4")
    assert "--ocr" in reason(write_pdf_of_streams(tmp_path / "b.pdf", streams[1:]))


def test_a_docx_keeps_order_headings_lists_links_and_insertions(tmp_path):
    file = docx.Document()
    file.add_heading("Lamps", 2)
    paragraph = file.add_paragraph("Lit by ")
    inserted = OxmlElement("w:ins")
    run = OxmlElement("w:r")
    word = OxmlElement("w:t")
    word.text = "Orrin"
    run.append(word)
    inserted.append(run)
    paragraph._p.append(inserted)
    table = file.add_table(2, 3)
    for i, cell in enumerate(cell for row in table.rows for cell in row.cells):
        cell.text = f"c{i}"
    table.rows[1].cells[0].merge(table.rows[1].cells[1])
    file.add_paragraph("second", style="List Bullet")
    file.add_paragraph("")
    wrapped = file.add_paragraph("in a control")._p
    control, content = OxmlElement("w:sdt"), OxmlElement("w:sdtContent")
    wrapped.getparent().replace(wrapped, control)
    content.append(wrapped)
    control.append(content)
    file.save(str(tmp_path / "a.docx"))
    assert read(tmp_path / "a.docx").text == (
        "## Lamps\n\nLit by Orrin\n\nc0 | c1 | c2\nc3 c4 | c5\n\n- second\n\nin a control"
    )


def test_a_table_in_a_table_of_a_docx_is_read_once(tmp_path):
    file = docx.Document()
    table = file.add_table(1, 2)
    inner = table.cell(0, 0).add_table(1, 1)
    inner.cell(0, 0).text, table.cell(0, 1).text = "inside", "beside"
    file.save(str(tmp_path / "a.docx"))
    assert read(tmp_path / "a.docx").text == "inside | beside"


def test_a_docx_drops_deletions_and_reads_text_boxes_once(tmp_path):
    file = docx.Document()
    paragraph = file.add_paragraph("kept")._p
    compatibility = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
    for tag in (qn("w:del"), f"{compatibility}Fallback"):
        word = OxmlElement("w:t")
        word.text = "gone"
        etree.SubElement(paragraph, tag).append(word)
    file.save(str(tmp_path / "a.docx"))
    assert read(tmp_path / "a.docx").text == "kept"


def test_an_epub_is_read_in_the_order_of_its_spine(tmp_path):
    chapters = {"z": "<h1>First</h1>", "a": "<p>Last.</p>", "m": "<p>Left out.</p>"}
    path = write_epub(tmp_path / "a.epub", chapters, ["z", "a"])
    assert read(path).text == "# First\n\nLast."


def test_a_protected_epub_and_one_without_its_chapters_are_named(tmp_path):
    locked = '<CipherReference URI="OEBPS/one.xhtml"/>'
    path = write_epub(
        tmp_path / "a.epub", {"one": "x"}, ["one"], **{"META-INF__encryption.xml": locked}
    )
    assert "encrypted" in reason(path)
    assert "missing" in reason(write_epub(tmp_path / "b.epub", {"one": "x"}, ["two"]))


@pytest.mark.parametrize("suffix", ["docx", "epub"])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(archive, "MAX_UNPACKED", 1_000_000)
    with zipfile.ZipFile(tmp_path / f"a.{suffix}", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("word/document.xml", bytes(1_000_001))
    assert "too large" in reason(tmp_path / f"a.{suffix}")


def test_mail_names_its_attachments_and_prefers_plain_text(tmp_path):
    message = mail("Straße", "plain body", "<p>html body</p>")
    message.add_attachment(b"%PDF", maintype="application", subtype="pdf", filename="plan.pdf")
    text = text_of(tmp_path / "a.eml", bytes(message))
    assert text.startswith("# Straße\nFrom: Anna Bö <anna@example.org>\nTo: bert@example.org\n")
    assert "Attachments: plan.pdf" in text
    assert text.endswith("plain body")


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "shift_jis", "iso-2022-jp", "koi8-r"])
def test_mail_is_decoded_with_its_declared_charset(tmp_path, charset):
    body = {"iso-8859-1": "Grüße", "koi8-r": "Привет"}.get(charset, "日本語の手紙です。")
    message = EmailMessage()
    message.set_content(body, charset=charset)
    assert body in text_of(tmp_path / "a.eml", bytes(message))


def test_mail_that_declares_a_wrong_charset_is_read(tmp_path):
    head = b"Subject: x\r\nContent-Type: text/plain; charset=iso-8859-1\r\n\r\n"
    assert text_of(tmp_path / "a.eml", head + "Grüße 日本".encode()).endswith("Grüße 日本")
    head = head.replace(b"iso-8859-1", b"us-ascii")
    assert text_of(tmp_path / "a.eml", head + "Grüße".encode("cp1252")).endswith("Grüße")


def test_a_mailbox_gives_every_mail_also_those_in_html(tmp_path):
    write_good_folder(tmp_path)
    text = read(tmp_path / "archive.mbox").text
    assert text.index("# Boat") < text.index("green.") < text.index("# Oars")
    assert "The oars are ash." in text


def test_no_reader_needs_the_file_itself(tmp_path):
    for name in write_good_folder(tmp_path):
        path = tmp_path / name
        expected, content = read(path), path.read_bytes()
        path.unlink()
        assert parse(path, content) == expected


def test_html_keeps_its_structure_and_drops_what_is_not_read(tmp_path):
    page = """<html><head><title>T</title><style>p{}</style></head><body>
        <nav>menu</nav><script>var x</script><!-- note -->
        <h2>Ship  and
        sea</h2><p>One<br>two <b>bo</b>ld&nbsp;&amp; <i>it</i>.</p><div>three</div>four
        <ul><li>a</li><li><p>b</p></li></ul>
        <table><tr><th>k</th><th>v</th></tr><tr><td><p>x</p></td><td>1</td></tr></table>
        <table><tr><td><p>long</p><p>layout</p></td></tr></table>
        <pre>  keep\n    this</pre></body></html>"""
    assert text_of(tmp_path / "a.html", page) == (
        "# T\n\n## Ship and sea\n\nOne\ntwo bold & it.\n\nthree\nfour\n\n- a\n- b\n\n"
        "k | v\nx | 1\n\nlong\n\nlayout\n\n  keep\n    this"
    )


def test_html_of_any_depth_is_read(tmp_path):
    page = "<div>" * 20_000 + "deep" + "</div>" * 20_000
    assert text_of(tmp_path / "a.html", page) == "deep"


@pytest.mark.parametrize("charset", ["iso-8859-2", "windows-1251", "shift_jis", "gbk"])
def test_html_is_decoded_with_its_declared_charset(tmp_path, charset):
    word = {"iso-8859-2": "ľúbiť", "windows-1251": "и"}.get(charset, "下雪了")
    page = f'<meta charset="{charset}"><p>{word}</p>'
    assert text_of(tmp_path / "a.html", page.encode(charset)) == word


def test_rows_of_a_table_stand_alone_on_their_line(tmp_path):
    path = write(tmp_path / "a.csv", 'name;note\n"A\nB";"1;2"\n\nC;;extra\n')
    document = read(path)
    assert document.text.split("\n") == [
        "Columns: name; note",
        "name: A B; note: 1;2",
        "",
        "",
        "name: C; column 3: extra",
    ]


def test_a_table_without_column_names_is_numbered(tmp_path):
    assert text_of(tmp_path / "a.tsv", "x\t1\ny\t2\n") == (
        "column 1: x; column 2: 1\ncolumn 1: y; column 2: 2"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'lamp,ship\n"x"y,1\n'),
        ("a.tsv", 'lamp\tship\n"never closed\n'),
        ("a.json", '{"a": 1, // a note\n "b": "open\n'),
        ("b.json", "[" * 100_000),
    ],
)
def test_broken_tables_and_json_are_read_as_plain_text(tmp_path, name, content):
    assert text_of(tmp_path / name, content) == content


def test_json_is_flattened(tmp_path):
    tree = {"a": {"b": [1, None, "x\ny"], "c": []}, "d": [{"e": True}, {"e": "ü"}]}
    text = text_of(tmp_path / "a.json", json.dumps(tree))
    assert text == "a.b: 1, null, x y\nd 1.e: true\nd 2.e: ü"
    records = text_of(tmp_path / "b.json", '[{"a": 1, "b": 2}, "three"]')
    assert records == "a: 1; b: 2\nthree"


def test_json_lines_keep_their_lines_and_odd_ones_their_text(tmp_path):
    text = text_of(tmp_path / "a.jsonl", '{"a": 1}\n\nnot json\n{"b": "\\ud800\\ud83d\\ude00"}\n')
    assert text == "a: 1\n\nnot json\nb: 😀"


# --- documents of offices


def word(text: str, style: str = "", settings: str = "") -> str:
    """A paragraph of WordprocessingML."""
    style = f'<w:pStyle w:val="{style}"/>' if style else ""
    run = f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>' if "<" not in text else text
    return f"<w:p><w:pPr>{style}{settings}</w:pPr>{run}</w:p>"


NUMBERS = """
    <w:abstractNum w:abstractNumId="7">
      <w:lvl w:ilvl="0"><w:start w:val="2"/><w:lvlText w:val="%1."/></w:lvl>
      <w:lvl w:ilvl="1"><w:numFmt w:val="lowerRoman"/><w:lvlText w:val="%1.%2)"/></w:lvl>
    </w:abstractNum>
    <w:abstractNum w:abstractNumId="8">
      <w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/><w:lvlText w:val="x"/></w:lvl>
    </w:abstractNum>
    <w:num w:numId="1"><w:abstractNumId w:val="7"/></w:num>
    <w:num w:numId="2"><w:abstractNumId w:val="8"/></w:num>
    <w:num w:numId="3"><w:abstractNumId w:val="7"/>
      <w:lvlOverride w:ilvl="0"><w:startOverride w:val="1"/></w:lvlOverride></w:num>
"""


def item(text: str, number: int, level: int = 0, style: str = "") -> str:
    numbering = f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>'
    return word(text, style, numbering)


@pytest.mark.parametrize("strict", [False, True])
def test_lists_and_headings_of_a_docx_have_the_numbers_that_word_shows(tmp_path, strict):
    styles = """<w:style w:styleId="H"><w:name w:val="heading 2"/></w:style>
        <w:style w:styleId="Own"><w:basedOn w:val="H"/></w:style>
        <w:style w:styleId="Loop"><w:basedOn w:val="Loop"/></w:style>"""
    items = [item("a", 1), item("b", 1, 1), item("c", 1, 1), item("d", 1), item("e", 1, 1)]
    body = [word("Clause", "Own"), *items, item("f", 2), item("g", 3), item("Terms", 1, 0, "H")]
    body.append(word("deep", settings='<w:outlineLvl w:val="2"/>') + word("plain", "Loop"))
    path = write_docx(tmp_path / "a.docx", "".join(body), strict, styles=styles, numbering=NUMBERS)
    lines = [line.strip() for line in read(path).text.split("\n\n")]
    assert lines == [
        "## Clause",
        *("2. a", "2.i) b", "2.ii) c", "3. d", "3.i) e", "- f", "1. g", "## 4. Terms"),
        "### deep",
        "plain",
    ]


def test_notes_comments_margins_boxes_and_formulas_of_a_docx_are_read(tmp_path):
    box = "<w:r><w:pict><w:txbxContent>" + word("in a box") + "</w:txbxContent></w:pict></w:r>"
    formula = (
        "<m:oMath><m:f><m:num><m:r><m:t>a+b</m:t></m:r></m:num><m:den><m:r><m:t>2</m:t></m:r>"
        "</m:den></m:f><m:sSup><m:e><m:r><m:t>x</m:t></m:r></m:e><m:sup><m:r><m:t>2</m:t></m:r>"
        "</m:sup></m:sSup></m:oMath>"
    )
    run = "<w:r><w:t>Rent</w:t></w:r>"
    refs = '<w:r><w:footnoteReference w:id="1"/><w:commentReference w:id="5"/></w:r>'
    hidden = "<w:r><w:rPr><w:vanish/></w:rPr><w:t>secret</w:t></w:r>"
    moved = "<w:moveFrom><w:r><w:t>old</w:t></w:r></w:moveFrom>"
    path = write_docx(
        tmp_path / "a.docx",
        word(run + refs + hidden + moved + formula + box) + word("end"),
        footnotes=f'<w:footnote w:id="1">{word("740 crowns")}</w:footnote>',
        comments=f'<w:comment w:id="5" w:author="Ada">{word("too much")}</w:comment>',
        header=word("Lease of 1987"),
        footer=word("3"),
    )
    assert read(path).text == (
        "Lease of 1987\n\nRent[1] (a+b)/2x^2\n\nin a box\n\n[1] 740 crowns\n\n"
        "[Comment by Ada: too much]\n\nend"
    )


def test_slides_are_pages_with_tables_and_notes(tmp_path):
    cells = (f"<a:tc><a:p><a:t>{text}</a:t></a:p></a:tc>" for text in "x1")
    table = f"<a:tbl><a:tr>{''.join(cells)}</a:tr></a:tbl>"
    slides = [shape("Tides", kind="title") + shape("fifty late", "daily"), table]
    document = read(write_pptx(tmp_path / "a.pptx", slides, {1: "say it slowly"}))
    assert document.text == "# Tides\n\nfifty late\ndaily\n\nNotes: say it slowly\n\nx | 1"
    assert document.page_of(document.text.index("x | 1")) == 2


def test_every_sheet_of_a_workbook_is_read_with_the_names_of_its_columns(tmp_path):
    sheets = {
        "Fees": [
            ["Fees of 2026", "", ""],
            ["who", "2024", "2025"],
            ["Ada", 5, 7.25],
            ["Bo", "", 1],
        ],
        "Empty": [],
        "List": [["only one column"], ["of words"]],
    }
    assert read(write_xlsx(tmp_path / "a.xlsx", sheets)).text == (
        "# Fees\nFees of 2026\nColumns: who; 2024; 2025\nwho: Ada; 2024: 5; 2025: 7.25\n"
        "who: Bo; 2025: 1\n\n# List\nonly one column\nof words"
    )


def test_an_odt_is_read_in_order_without_what_was_deleted(tmp_path):
    note = (
        "<text:note><text:note-citation>1</text:note-citation><text:note-body>"
        "<text:p>below</text:p></text:note-body></text:note>"
    )
    comment = (
        "<office:annotation><dc:creator>Bo</dc:creator><text:p>why</text:p></office:annotation>"
    )
    body = (
        "<text:tracked-changes><text:p>deleted</text:p></text:tracked-changes>"
        '<text:h text:outline-level="2">Head</text:h>'
        f'<text:p>one<text:s text:c="2"/>two{note}<text:tab/>{comment}three</text:p>'
        "<text:list><text:list-item><text:p>item</text:p><text:list><text:list-item>"
        "<text:p>inner</text:p></text:list-item></text:list></text:list-item></text:list>"
        "<table:table><table:table-row><table:table-cell><text:p>x</text:p></table:table-cell>"
        '<table:table-cell table:number-columns-repeated="9999"/></table:table-row></table:table>'
    )
    path = write_zip(tmp_path / "a.odt", {"content.xml": opendocument(body)})
    assert read(path).text == (
        "## Head\n\none  two[1]\tthree\n\n[1] below\n\n[Comment by Bo: why]\n\n- item\n\n"
        "  - inner\n\nx"
    )
    slides = "<draw:page><draw:frame><text:p>Bats</text:p></draw:frame></draw:page>"
    path = write_zip(tmp_path / "b.odp", {"content.xml": opendocument(slides, "presentation")})
    assert read(path).text == "# Slide 1\n\nBats"


def test_lists_and_headings_of_an_odt_have_the_numbers_that_are_shown(tmp_path):
    styles = """<text:list-style style:name="L">
      <text:list-level-style-number text:level="1" style:num-format="1" style:num-suffix="."/>
      <text:list-level-style-number text:level="2" style:num-format="a" style:num-prefix="("
        style:num-suffix=")"/>
      <text:list-level-style-number text:level="3" style:num-format="1" text:display-levels="3"/>
      </text:list-style><text:list-style style:name="B">
      <text:list-level-style-bullet text:level="1"/>
      <text:list-level-style-number text:level="2" style:num-format="I" text:start-value="4"/>
      </text:list-style><text:outline-style>
      <text:outline-level-style text:level="1" style:num-format="1" style:num-suffix="."/>
      <text:outline-level-style text:level="2" style:num-format="1" text:display-levels="2"/>
      <text:outline-level-style text:level="3" style:num-format=""/></text:outline-style>"""
    item = "<text:list-item{}><text:p>{}</text:p>{}</text:list-item>".format
    inner = "<text:list>{}</text:list>".format
    third = inner(item("", "deep", ""))
    body = "".join(
        f'<text:h text:outline-level="{level}"{more}>{text}</text:h>'
        for level, text, more in (
            *((1, "One", ""), (2, "First", ""), (3, "Plain", ""), (2, "Second", "")),
            *((1, "No number", ' text:is-list-header="true"'), (1, "Two", ""), (2, "Third", "")),
        )
    )
    body += '<text:list text:style-name="L">' + item("", "a", inner(item("", "b", third)))
    body += item(' text:start-value="7"', "c", "") + "</text:list><text:p>between</text:p>"
    body += '<text:list text:style-name="L" text:continue-numbering="true">'
    body += "<text:list-header><text:p>head</text:p></text:list-header>" + item("", "d", "")
    body += '</text:list><text:list text:style-name="L">' + item("", "e", "") + "</text:list>"
    body += '<text:list text:style-name="B">' + item("", "f", inner(item("", "g", "")))
    body += "</text:list><text:list>" + item("", "h", "") + "</text:list>"
    content = opendocument(body).replace("xmlns:office", 'xmlns:style="s" xmlns:office', 1)
    files = {
        "content.xml": content,
        "styles.xml": opendocument(styles).replace(
            "xmlns:office", 'xmlns:style="s" xmlns:office', 1
        ),
    }
    text = read(write_zip(tmp_path / "a.odt", files)).text
    assert text.split("\n\n") == [
        *("# 1. One", "## 1.1 First", "### Plain", "## 1.2 Second", "# No number", "# 2. Two"),
        *("## 2.1 Third", "1. a", "   (a) b", "       1.a.1 deep", "7. c", "between", "head"),
        *("8. d", "1. e", "- f", "  IV g", "- h"),
    ]


@pytest.mark.parametrize(
    "name", ["a.odt", "a.docx", "a.pptx", "a.xlsx", "a.fodt", "a.rtf", "a.ipynb"]
)
@pytest.mark.parametrize(
    "content", [b"PK\x03\x04 and nothing more", b"<a>", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 99]
)
def test_damaged_documents_of_offices_are_refused(tmp_path, name, content):
    assert any(
        word in reason(write(tmp_path / name, content))
        for word in ("broken", "encrypted", "binary")
    )


# --- mail

ATTACHED = "Content-Disposition: attachment; filename={}\n\n{}"


def parts(*contents: str, kind: str = "mixed") -> str:
    """A mail of several parts; those without a head are plain text."""
    each = "".join(f"\n--B\n{c if c.startswith('Content-') else chr(10) + c}" for c in contents)
    return f"Subject: all\nContent-Type: multipart/{kind}; boundary=B\n{each}\n--B--\n"


def test_every_text_of_a_mail_is_read_in_order(tmp_path):
    forwarded = "Content-Type: message/rfc822\n\nSubject: contract\n\nThe price is 40."
    picture = "Content-Type: image/png\nContent-Disposition: inline; filename=a.png\n\nAAAA"
    meeting = "Content-Type: text/calendar\n\nBEGIN:VEVENT\nSUMMARY:Meet\nEND:VEVENT"
    attached = "Content-Type: text/csv\n" + ATTACHED.format("n.csv", "who,sum\nAda,5\n")
    unread = "Content-Type: audio/x\n" + ATTACHED.format("song.xyz", "la la")
    content = parts("first", picture, "second", forwarded, meeting, attached, unread)
    document = read(write(tmp_path / "a.eml", content))
    assert document.text.rstrip() == (
        "# all\nAttachments: a.png, song.xyz\n\nfirst\n\nsecond\n\n## contract\n\n"
        "The price is 40.\n\nSummary: Meet\n\n## n.csv\n\nColumns: who; sum\nwho: Ada; sum: 5"
    )
    bad = "Content-Type: application/pdf\n" + ATTACHED.format("x.pdf", "%PDF")
    document = read(write(tmp_path / "b.eml", parts("text", bad)))
    assert "Attachments: x.pdf" in document.text
    assert any("x.pdf" in note for note in document.notes)


def test_the_page_of_a_mail_is_read_where_its_text_is_a_stub(tmp_path):
    page = "Content-Type: text/html\n\n<p>" + "The whole story. " * 20 + "</p>"
    content = parts("View this mail in a browser.", page, kind="alternative")
    assert "The whole story." in text_of(tmp_path / "a.eml", content)
    content = parts("The whole story. " * 20, page + "<p>and a menu</p>", kind="alternative")
    assert "a menu" not in text_of(tmp_path / "b.eml", content)


def test_a_bad_mail_is_named_by_its_number_and_the_others_are_read(tmp_path):
    start = "From a@example.org Mon Jan  6 10:00:00 2025\n"
    second = "Subject: b\n\nDear Ada,\n\nFrom today on it rains.\n>From Bo: hello\n\n"
    damaged = "Subject: c\nContent-Type: text/plain; charset=utf-8\n\n\0\0\0\n\n"
    odd = "From: =?utf-8?q?Special=0A_offer?= <c@example.org>\nSubject: d\n\nBuy.\n\n"
    mails = ["Subject: a\n\nfirst\n\n", second, damaged, odd, "Subject: e\n\nlast\n"]
    content = "".join(start + each for each in mails).encode("latin-1")
    document = read(write(tmp_path / "a.mbox", content))
    assert [line for line in document.text.split("\n") if line.startswith("# ")] == [
        *("# a", "# b", "# d", "# e"),
    ]
    assert "From today on it rains.\nFrom Bo: hello" in document.text
    assert "From: Special offer <c@example.org>" in document.text
    (note,) = document.notes
    assert note.startswith("mail 3: ")


def test_a_mailbox_may_be_larger_than_other_files(tmp_path, monkeypatch):
    monkeypatch.setattr("m3mlx.documents.document.MAX_BYTES", 10_000)
    song = "Content-Type: audio/x\n" + ATTACHED.format("song.xyz", "la la " * 2000)
    mails = "".join(f"From a Mon\n{parts(f'mail {i}', song)}\n" for i in range(9))
    path = write(tmp_path / "a.mbox", mails)
    assert read(path).text.count("# all") == 9
    assert file_hash(path) == read(path).hash
    assert "too large" in reason(write(tmp_path / "a.eml", mails))
    assert "empty" in reason(write(tmp_path / "b.mbox", ""))


# --- web pages and books


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>one</p><?php footer() ?><p>two</p>", "one\n\ntwo"),
        ("<pre><code><i>a = 1</i>\n<i>b</i>\n\n  c</code></pre>", "a = 1\nb\n\n  c"),
        ("<h2><button>How?</button></h2><p>So.</p><button>Send</button>", "## How?\n\nSo."),
        ("<p>10<sup>2</sup> m, the 1<sup>st</sup>, H<sub>2</sub>O</p>", "10^2 m, the 1st, H_2O"),
        ('<p>said<sup><a href="#n">3</a></sup>.</p>', "said[3]."),
        (
            "<math><mfrac><mi>a</mi><mrow><mi>b</mi><mo>+</mo><mn>1</mn></mrow></mfrac></math>",
            "a/(b+1)",
        ),
        ('<math alttext="x^2"><mi>x</mi></math>', "x^2"),
        ('<ol start="3"><li>c<li>d<li value="9">i</ol><ol><li>a</ol>', "3. c\n4. d\n9. i\n\n1. a"),
        ('<div hidden>x</div><p style="display: none">x</p><div role="menu">x</div>shown', "shown"),
        (
            "<table><tr><th>y<th>s<tr><td rowspan=2>2021<td>5<tr><td>6<tr><td>2022<td>7</table>",
            "y | s\n2021 | 5\n2021 | 6\n2022 | 7",
        ),
        (
            "<table><tr><td colspan=2>a<td rowspan=99999999>b<tr><td>c<td>d</table>",
            "a | b\nc | d | b",
        ),
        ("<p>a</p>\n" + "<![CDATA[x]]>" + "<p>b</p>", "a\n\nb"),
    ],
)
def test_pages_are_read_as_they_are_seen(tmp_path, page, text):
    assert text_of(tmp_path / "a.html", page) == text


def test_menus_are_left_out_of_pages_of_text_and_kept_on_pages_of_links(tmp_path):
    menu = "<ul>" + "".join(f'<li><a href="{i}">Part {i}</a></li>' for i in range(9)) + "</ul>"
    text = "<p>" + "The keeper lit the lamp. " * 20 + "</p>"
    assert "Part" not in text_of(tmp_path / "a.html", menu + text)
    assert "- Part 8" in text_of(tmp_path / "b.html", "<p>Contents</p>" + menu)


def test_what_belongs_to_the_main_part_is_read_with_it(tmp_path):
    text = "<p>" + "The keeper lit the lamp. " * 40 + "</p>"
    page = """<body><div>{more}</div><div id=page><main><div><header><p>{lead}</p></header>
        <article><h1>Light</h1>{text}</article>{beside}</div>{far}</main></div></body>"""
    lead = "A lead that stands above the article, for those in a hurry."
    links = "".join(
        f"<article><a href={i}>Teaser {i} of another page</a></article>" for i in range(9)
    )
    part = f"<article><table><tr><td>oil<td>12 pints</table>{'of the store ' * 40}</article>"
    about = "<article>" + "Who wrote this lives by the sea. " * 9 + "</article>"
    for beside, far, seen in (
        ("", "<div>" + "Subscribe now. " * 9 + "</div>", (lead, "!Subscribe")),
        (part, "", ("oil", "12 pints", "The keeper")),
        (part + about, "", ("oil", "by the sea")),
        (links, "", ("The keeper", "!Teaser", "!more")),
    ):
        source = page.format(lead=lead, text=text, beside=beside, far=far, more="more, and more")
        found = text_of(tmp_path / "a.html", source)
        for words in seen:
            assert (words.lstrip("!") in found) != words.startswith("!"), words


def test_elements_that_close_themselves_hide_nothing_in_xhtml(tmp_path):
    names = "title script style iframe video audio textarea a div p span i object".split()
    head = '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body>'
    for name in names:
        page = f'{head}<p>one</p><{name} src="a/b"/><p>two<br/>three</p></body></html>'
        assert text_of(tmp_path / "a.html", page) == "one\n\ntwo\nthree", name


def test_a_book_is_read_without_its_pictures_and_missing_chapters(tmp_path):
    chapters = {"one": "<p>One.</p>", "two": "<p>Two.</p>"}
    path = write_epub(tmp_path / "a.epub", chapters, ["one", "gone", "one", "two"])
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    package = files["OEBPS/book.opf"].decode()
    package = package.replace("<spine>", '<spine><itemref idref="c"/>')
    package = package.replace(
        "<manifest>", '<manifest><item id="c" href="c.jpg"/><item id="gone" href="g.xhtml"/>'
    )
    files |= {"OEBPS/book.opf": package.encode(), "OEBPS/c.jpg": b"\xff\xd8\0\0"}
    document = read(write_zip(tmp_path / "a.epub", files))
    assert document.text == "One.\n\nTwo."
    assert any("missing" in note for note in document.notes)
    assert any("pictures" in note for note in document.notes)


# --- tables


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            "Bank\nDate;Who;Sum\n02.01.2025;A, B;-84,50\n",
            "Bank\nColumns: Date; Who; Sum\nDate: 02.01.2025; Who: A, B; Sum: -84,50",
        ),
        ("sep=;\na;b\n1,5;2,5\n", "\nColumns: a; b\na: 1,5; b: 2,5"),
        ("land,2019,2020\nChad,5,7\n", "Columns: land; 2019; 2020\nland: Chad; 2019: 5; 2020: 7"),
        ("1,2\n3,4\n", "column 1: 1; column 2: 2\ncolumn 1: 3; column 2: 4"),
        (
            "2024-01-05|x\n2024-01-06|y\n",
            "column 1: 2024-01-05; column 2: x\ncolumn 1: 2024-01-06; column 2: y",
        ),
        ("one\ntwo, three\n", "one\nColumns: two; three"),
    ],
)
def test_delimiter_and_names_come_from_what_a_table_holds(tmp_path, content, text):
    assert text_of(tmp_path / "a.csv", content) == text


def test_records_of_nested_lists_stay_whole(tmp_path):
    tree = {
        "shop": "A",
        "items": [{"name": "nut", "price": 1, "tags": [{"t": 5}]}, {"name": "bolt"}],
    }
    assert text_of(tmp_path / "a.json", json.dumps(tree)) == (
        "shop: A\nitems 1.name: nut; items 1.price: 1; items 1.tags 1.t: 5\nitems 2.name: bolt"
    )


# --- text


def test_damaged_bytes_are_replaced_and_told_with_their_lines(tmp_path):
    good = "Grüße aus Köln. ".encode() * 200
    document = read(write(tmp_path / "a.txt", good + b"\ncaf\xe9 closed\n"))
    assert "caf\ufffd closed" in document.text
    assert document.notes == ("line 2: bytes that are not UTF-8 are replaced by \ufffd",)
    page = b"<p>" + b"word " * 3000 + b"</p>\n<p>a\0b</p>"
    document = read(write(tmp_path / "a.html", page))
    assert "ab" in document.text
    assert "line 2" in document.notes[0]


def test_pictures_written_as_letters_are_left_out_and_counted(tmp_path):
    data = "aZ09" * 600
    for text in (f"![a](data:image/png;base64,{data})", f"<img src='data:image/x,{data}'>", data):
        document = read(write(tmp_path / "a.md", f"# Head\n\n{text}\nend\n"))
        assert "aZ09" not in document.text
        assert document.line_of(document.text.index("end")) == 4
        assert "(1)" in document.notes[0]
    gene = "ACGT" * 1000
    assert text_of(tmp_path / "b.txt", gene) == gene


def test_ligatures_become_letters_and_no_break_spaces_tell_no_alphabet(tmp_path):
    assert text_of(tmp_path / "a.txt", "con\ufb01guration of the o\ufb03ce") == (
        "configuration of the office"
    )
    content = "The\u00a0ferry leaves at\u00a0noon.\nIt is \u00a05\u00a0km.\n"
    assert text_of(tmp_path / "b.txt", content.encode("cp1252")) == content


# --- bounds


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.html", lambda n: "<div>" * n + "x"),
        ("b.html", lambda n: "<table><tr><td>" * (n // 3)),
        ("c.html", lambda n: "<a " * n),
        ("d.xhtml", lambda n: "<?xml ?>" + "<a '" * n),
        ("a.md", lambda n: "a" + "\u0301\u0316" * (n // 2)),
        ("b.md", lambda n: "data:" * n),
        ("c.md", lambda n: ("A1b" * 330 + " ") * (n // 100)),
        ("a.csv", lambda n: ('"' + ",;" * 20 + "\n") * (n // 20)),
        ("a.json", lambda n: "[" * n),
        ("a.tex", lambda n: "\\section{" * n),
        ("a.org", lambda n: "[[" * n),
        ("a.srt", lambda n: "<" * n + "\n\n1\n" * n),
        ("a.rtf", lambda n: "{\\rtf1" + "{" * n),
        ("a.ics", lambda n: "BEGIN:VEVENT\nSUMMARY:" + "\n x" * n),
        ("a.eml", lambda n: "Subject: x\n\n" + "From \n" * n),
        ("a.mbox", lambda n: "From \nFrom: " * n),
    ],
)
def test_time_grows_with_the_file_not_with_its_square(tmp_path, name, content):
    def seconds(n: int) -> float:
        start = process_time()
        with suppress(DocumentError):
            parse(tmp_path / name, content(n).encode())
        return process_time() - start

    seconds(1000)  # what is loaded at first use
    assert seconds(30_000) < 20 * seconds(3000) + 0.5


def test_text_cannot_become_many_times_as_long_as_its_file(tmp_path, monkeypatch):
    tree = json.dumps({"k " * 10_000: {str(i): 1 for i in range(2000)}})
    assert text_of(tmp_path / "a.json", tree) == tree
    table = ",".join(f"Question {i}: how was it " * 20 for i in range(50)) + "\n" + "4,4,4\n" * 9000
    assert text_of(tmp_path / "a.csv", table) == table
    monkeypatch.setattr("m3mlx.documents.document.LEAST_TEXT", 10_000)
    path = write_docx(tmp_path / "a.docx", word("a" * 90) * 5000)
    assert "too many for its size" in reason(path)


# --- encodings

TEXTS = {
    "french": "Le café était fermé, mais la crème brûlée nous attendait à l'hôtel. Où êtes-vous?",
    "german": "Die Straße über die Brücke führt zum Schloß. „Größe“ und Übung – für 5 €.",
    "swedish": "Räksmörgås är gott på sjön. Flygande bäckasiner söka hwila på mjuka tuvor.",
    "english": "It’s a “fine” day — he said — and that’s that… at the café.",
    "polish": "Zażółć gęślą jaźń. Dzisiaj jest piękna pogoda, więc poszliśmy do parku.",
    "czech": "Příliš žluťoučký kůň úpěl ďábelské ódy. Dnes je hezké počasí.",
    "turkish": "Bugün hava çok güzel, parka gittik. Şimdi İstanbul'da çığlık atan bir kuş var.",
    "russian": "Сегодня хорошая погода, и мы пошли гулять в парк.",
    "greek": "Σήμερα ο καιρός είναι καλός και πήγαμε στο πάρκο για περίπατο.",
    "hebrew": "היום מזג האוויר יפה והלכנו לפארק לטייל. זה קובץ בדיקה פשוט.",
    "arabic": "الطقس جميل اليوم وذهبنا إلى الحديقة للتنزه. هذا ملف اختبار بسيط.",
    "japanese": "今日は天気がいいので、公園に行きました。漢字とひらがなが混ざっています。",
    "chinese": "今天天气很好，我们去公园散步。这是一个简单的测试文件，用来检查编码。",
    "taiwanese": "今天天氣很好，我們去公園散步。這是一個簡單的測試檔案，用來檢查編碼。",
    "korean": "오늘은 날씨가 좋아서 공원에 갔습니다. 이것은 인코딩 테스트 파일입니다.",
}
ENCODINGS = {
    "french": ["cp1252", "latin-1", "mac_roman"],
    "german": ["cp1252", "mac_roman"],
    "swedish": ["cp1252", "latin-1"],
    "english": ["cp1252"],
    "polish": ["cp1250", "iso8859_2"],
    "czech": ["cp1250", "iso8859_2"],
    "turkish": ["cp1254"],
    "russian": ["cp1251", "koi8_r", "cp866", "iso8859_5"],
    "greek": ["cp1253"],
    "hebrew": ["cp1255"],
    "arabic": ["cp1256"],
    "japanese": ["shift_jis", "euc_jp", "iso2022_jp"],
    "chinese": ["gb18030", "gb2312"],
    "taiwanese": ["big5"],
    "korean": ["euc_kr"],
}
UNICODE = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.mark.parametrize(
    ("language", "encoding"),
    [(language, encoding) for language, those in ENCODINGS.items() for encoding in those]
    + [(language, encoding) for language in TEXTS for encoding in UNICODE],
)
def test_text_in_any_usual_encoding_is_read_without_a_wrong_character(tmp_path, language, encoding):
    content = f"{TEXTS[language]}\nplain ASCII\n"
    assert text_of(tmp_path / "a.txt", content.encode(encoding)) == content


@pytest.mark.parametrize("language", ENCODINGS)
@pytest.mark.parametrize("words", [2, 3, 5])
def test_a_few_words_are_read_right_or_refused(tmp_path, language, words):
    for encoding in ENCODINGS[language]:
        parts = TEXTS[language].split()
        for i in range(0, len(parts), words):
            content = " ".join(parts[i : i + words])
            path = write(tmp_path / "a.txt", content.encode(encoding))
            try:
                assert read(path).text == content
            except DocumentError as error:
                assert "encoding" in error.reason


def test_a_declared_encoding_is_believed(tmp_path):
    source = "# -*- coding: iso8859_2 -*-\nx = 'ő'\n"
    assert text_of(tmp_path / "a.py", source.encode("iso8859_2")) == source


def test_a_long_text_with_one_accent_is_read(tmp_path):
    content = "The ferry leaves at noon.\n" * 5000 + "He ate a crème.\n"
    assert text_of(tmp_path / "a.txt", content.encode("latin-1")) == content


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"some\0zero", "binary"),
        (b"\xff\xfea\0b", "damaged"),
        ("truncated 日本".encode()[:-1], "encoding"),
        (os.urandom(4000).replace(b"\0", b"\xfe"), "encoding"),
    ],
)
def test_bytes_that_are_not_text_are_refused(tmp_path, content, word):
    assert word in reason(write(tmp_path / "a.txt", content))


def test_sentences_that_begin_as_mails_do_stay_in_their_mail():
    head = "From a@b Thu Jan  1 00:00:00 2026\nFrom: a@b\nSubject: {}\n\n"
    sentences = "Dear all,\n\nFrom the hill one sees 9191.\n\nFrom now on: 8181.\nNote: 7171.\n\n"
    text = parse(
        "a.mbox", (head.format("one") + sentences + head.format("two") + "77").encode()
    ).text
    assert text.count("# ") == 2
    assert "From the hill one sees 9191.\n\nFrom now on: 8181.\nNote: 7171." in text
    bare = "From nobody\nSubject: three\n\n99\n\nFrom nobody\nReceived: from x\n\n98\n"
    assert parse("a.mbox", bare.encode()).text.count("# ") == 2


@pytest.mark.parametrize(
    ("plain", "page", "both"),
    [
        (
            "Please view this mail as a page.",
            "The price is 512 crowns until May, free of costs.",
            True,
        ),
        ("The price is 512 crowns.", "The price is <b>512</b> crowns.", False),
    ],
)
def test_a_short_text_does_not_hide_the_page_that_says_something_else(plain, page, both):
    mail = EmailMessage()
    mail.set_content(plain)
    mail.add_alternative(f"<p>{page}</p>", subtype="html")
    text = parse("a.eml", bytes(mail)).text
    assert plain in text and ("until May" in text) == both and text.count("512") == 1


def test_text_behind_embedded_data_stays():
    data = "QUJD" * 500
    for begin, end in (
        ("[i]: data:image/png;base64,", "\n\nend of it"),
        ("![](data:;base64,", ")\nend"),
    ):
        assert end.strip(")") in parse("a.md", f"start {begin}{data}{end}".encode()).text


def test_one_wrong_byte_in_a_short_note_is_replaced_and_told():
    note = parse("a.md", "café\nbad ".encode() + b"\xff" + " here\ncafé".encode())
    assert note.text == "café\nbad \ufffd here\ncafé"
    assert note.notes == ("line 2: bytes that are not UTF-8 are replaced by \ufffd",)
