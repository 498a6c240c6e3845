"""Files of every format are read without a wrong character, or refused with a reason."""

import hashlib
import json
import os
import zipfile
from email.message import EmailMessage
from pathlib import Path

import docx
import pytest
from docx.oxml import OxmlElement
from docx.oxml.ns import qn
from lxml import etree
from samples import (
    mail,
    write,
    write_bad_files,
    write_encrypted_pdf,
    write_epub,
    write_good_folder,
    write_pdf,
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
