"""Kinds of documents that readers often get wrong, several variants of each."""

import json

import pytest

from m3mlx.documents import parse
from m3mlx.errors import DocumentError
from tests.samples import write_docx, write_epub


def text_of(name, content):
    content = content.encode() if isinstance(content, str) else content
    return parse(f"/nowhere/{name}", content).text


PAGES = {
    "class of what is only heard": ('<p>a</p><span class="x sr-only">b</span>', "a"),
    "closed dialog": ("<p>a</p><dialog>b</dialog>", "a"),
    "open dialog": ("<p>a</p><dialog open>b</dialog>", "a\n\nb"),
    "hidden until found": ('<p>a</p><div hidden="until-found">b</div>', "a"),
    "visibility": ('<p>a</p><p style="VISIBILITY:Hidden">b</p>', "a"),
    "display with space": ('<p>a</p><p style="color:red; display : none !important">b</p>', "a"),
    "menu by role": ('<p>a</p><ul role="menubar"><li>b</ul>', "a"),
    "deleted": ("<p><del>old</del><ins>new</ins></p>", "new"),
    "list backwards": ("<ol reversed><li>a<li>b</ol>", "2. a\n1. b"),
    "list of letters": ("<ol type=a><li>x<li>y</ol>", "a. x\nb. y"),
    "list of Roman numbers": ("<ol type=I start=3><li>x<li>y</ol>", "III. x\nIV. y"),
    "list from below zero": ("<ol start=-1><li>a<li>b</ol>", "-1. a\n0. b"),
    "list in a list": ("<ol><li>a<ol><li>b</ol><li>c</ol>", "1. a\n  1. b\n2. c"),
    "list with nothing in it": ("<p>a</p><ul><li><button>x</button></ul><p>b</p>", "a\n\nb"),
    "heading with nothing in it": ("<h1></h1><p>a</p>", "a"),
    "heading of a picture": ('<h1><img alt="Acme"></h1><p>a</p>', "# Acme\n\na"),
    "heading by role": ("<div role=heading aria-level=3>H</div><p>a</p>", "### H\n\na"),
    "button that opens": ("<button aria-expanded=false>Why?</button><div>So.</div>", "Why?\nSo."),
    "button in a term": ("<dl><dt><button>Why?</button><dd>So.</dl>", "Why?\nSo."),
    "cell to the end": ("<table><tr><td rowspan=0>a<td>1<tr><td>2</table>", "a | 1\na | 2"),
    "cell in the middle": (
        "<table><tr><td>1<td rowspan=2>m<td>2<tr><td>3<td>4</table>",
        "1 | m | 2\n3 | m | 4",
    ),
    "code without pre": ('<div style="white-space: pre">a\n  b</div>', "a\n  b"),
    "old code": ("<listing>a\n b</listing>", "a\n b"),
    "code in lines": ("<pre><div>a</div><div>b</div></pre>", "a\nb"),
    "code with break": ("<pre>a<br>b</pre>", "a\nb"),
    "instruction in code": ("<pre>a<?x?>b</pre>", "ab"),
    "instruction in a cell": ("<table><tr><td><?x?>1<td>2</table>", "1 | 2"),
    "legend": ("<fieldset><legend>L</legend>b</fieldset>", "L\nb"),
    "quotation": ("<p>He said <q>yes</q>.</p>", "He said “yes”."),
    "formula of a script": (
        '<p>So <script type="math/tex">E=mc^2</script> it is',
        "So E=mc^2 it is",
    ),
    "link to a heading": ('<h2>A<a class="headerlink" href="#a">¶</a></h2><p>b', "## A\n\nb"),
    "formula shown twice": (
        '<p><span class="katex"><math><mi>x</mi></math>'
        '<span class="katex-html" aria-hidden="true">x</span></span></p>',
        "x",
    ),
}
XHTML = '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body><h1>C</h1>{}<p>rest'
TABLES = {
    "comma in the title": ("Report, final\n\nName;Sum\nA;1,5\nB;-2,25\n", "Name: B; Sum: -2,25"),
    "mark of order": ("\ufeffsep=;\na;b\n1,5;2\n", "a: 1,5; b: 2"),
    "days as names": ("Day;01.01.2020;02.01.2020\nA;1;2\n", "Day: A; 01.01.2020: 1; 02.01.2020: 2"),
    "rows of different lengths": ("a,b,c\n1,2\n3,4,5,6\n", "a: 3; b: 4; c: 5; column 4: 6"),
    "commas in texts": ("id;text\n1;a, b, c\n2;d, e\n", "id: 2; text: d, e"),
    "commas under tabs": ("n\tp\nA, B\tC, D\nE, F\tG, H\n", "n: E, F; p: G, H"),
    "old line ends": ("a,b\r1,2\r3,4\r", "a: 3; b: 4"),
    "bars": ("a|b\n1|2\n3|4\n", "a: 3; b: 4"),
    "thousands": ("City;Pop\nX;1.234.567\nY;2.345\n", "City: Y; Pop: 2.345"),
    "units below the names": ("T,,\nday,temp,rain\n,C,mm\n1,5,2\n", "day: 1; temp: 5; rain: 2"),
}
HEAD = "From: a@b.c\nSubject: Hi\nMIME-Version: 1.0\n"
MAILS = {
    "no boundary": (f"{HEAD}Content-Type: multipart/mixed\n\nnaked body\n", "naked body"),
    "another boundary": (
        f"{HEAD}Content-Type: multipart/mixed; boundary=Z\n\n--B\n\ntext\n--B--\n",
        "text",
    ),
    "encoded mail in a mail": (
        f"{HEAD}Content-Type: multipart/mixed; boundary=B\n\n--B\nContent-Type: message/rfc822\n"
        "Content-Transfer-Encoding: base64\n\n"
        "RnJvbTogeEB5LnoKU3ViamVjdDogSW5uZXIKCmlubmVyIGJvZHkK\n--B--\n",
        "## Inner\nFrom: x@y.z\n\ninner body",
    ),
    "report": (
        f"{HEAD}Content-Type: multipart/report; boundary=B\n\n--B\n\nfailed\n--B\n"
        "Content-Type: message/delivery-status\n\nStatus: 5.1.1\n--B--\n",
        "Status: 5.1.1",
    ),
    "RTF": (f"{HEAD}Content-Type: text/rtf\n\n{{\\rtf1 hello}}\n", "hello"),
    "enriched": (f"{HEAD}Content-Type: text/enriched\n\n<bold>Now</bold> it is\n", "Now it is"),
    "encoded for old mail": (
        f"{HEAD}\nsee\nbegin 644 a.bin\n#0V%T\n`\nend\n",
        "[Attachment: a.bin]",
    ),
    "empty lines above": ("\n\n" + HEAD + "\nbody\n", "# Hi"),
    "old line ends": (HEAD.replace("\n", "\r") + "\rbody\r", "# Hi"),
    "doubled line ends": (HEAD.replace("\n", "\r\r\n") + "\r\r\nbody", "# Hi"),
    "invitation": (
        f"{HEAD}Content-Type: text/calendar\n\nBEGIN:VEVENT\nSUMMARY:Meet\n"
        "ATTENDEE;CN=Ada:mailto:ada@x\nEND:VEVENT\n",
        "Summary: Meet\nAttendee: Ada <ada@x>",
    ),
}


@pytest.mark.parametrize(("page", "text"), PAGES.values(), ids=PAGES)
def test_pages(page, text):
    assert text_of("a.html", page) == text


@pytest.mark.parametrize(
    "element",
    "title script style iframe video a div p textarea span i noscript select h1 ol svg:svg".split(),
)
def test_elements_that_close_themselves(element):
    assert text_of("a.xhtml", XHTML.format(f"<{element}/>")) == "# C\n\nrest"
    assert text_of("a.xhtml", XHTML.format(f"<{element}\n id='a>b'\n/>")) == "# C\n\nrest"


def test_text_that_xhtml_quotes():
    assert "raw <b>" in text_of("a.xhtml", XHTML.format("<p><![CDATA[raw <b>]]></p>"))


def test_the_part_that_a_page_is_about():
    prose = "<p>" + "The keeper lit the lamp. " * 30 + "</p>"
    beside = "<div><p>Other news of the day.</p></div>"
    page = f"<h1>Lamp</h1>{beside}<article>{prose}</article>{beside}"
    assert text_of("a.html", page).startswith("# Lamp\n\nThe keeper")
    assert "Other news" not in text_of("a.html", page)
    assert "Other news" in text_of("b.html", page.replace("article", "div"))
    both = f"<article>{prose}</article><article>{prose.replace('lamp', 'fire')}</article>"
    assert {"lamp", "fire"} <= set(text_of("c.html", both).replace(".", "").split())


@pytest.mark.parametrize(("content", "line"), TABLES.values(), ids=TABLES)
def test_tables(content, line):
    assert line in text_of("a.csv", content).splitlines()


def test_records_in_lines_are_known_whatever_their_name():
    assert text_of("a.json", '{"a": 1}\n{"a": 2}\n') == "a: 1\na: 2"


@pytest.mark.parametrize(("content", "text"), MAILS.values(), ids=MAILS)
def test_mails(content, text):
    assert text in text_of("a.eml", content)


def test_mailboxes():
    first = "From a@b Mon Jan 01 10:00:00 2026\nSubject: One\n\nbody\n\nFrom here on\ntext\n"
    second = "From c@d Mon Jan 01 10:00:00 2026\nSubject: Two\n\nmore\n"
    for box in (first + second, "\n\n" + first + second, "\ufeff" + first + "\n" + second):
        text = text_of("a.mbox", box)
        assert text.count("# ") == 2 and "From here on" in text
    assert "more" in text_of("a.mbox", "From a@b Mon Jan 01 10:00:00 2026\n\nmore\n")
    with pytest.raises(DocumentError, match="is no mailbox"):
        text_of("a.mbox", "only text\n")


def test_a_mail_of_apple_mail():
    mail = "Subject: Hi\n\nbody\n"
    text = text_of("1.emlx", f"{len(mail)}\n{mail}<?xml version='1.0'?><plist/>")
    assert text == "# Hi\n\nbody"


def word(inner, settings=""):
    return f"<w:p><w:pPr>{settings}</w:pPr><w:r><w:t>{inner}</w:t></w:r></w:p>"


def item(inner, level=0):
    return word(inner, f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="1"/></w:numPr>')


def list_of(*levels, inner=""):
    each = "".join(
        f'<w:lvl w:ilvl="{i}">{extra}<w:numFmt w:val="{kind}"/><w:lvlText w:val="{shown}"/></w:lvl>'
        for i, (kind, shown, extra) in enumerate(levels)
    )
    abstract = f'<w:abstractNum w:abstractNumId="0">{inner}{each}</w:abstractNum>'
    return abstract + '<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num>'


@pytest.mark.parametrize(
    ("levels", "text"),
    [
        ([("ordinal", "%1", "")], "1st a\n\n2nd b"),
        ([("decimalEnclosedCircle", "%1", "")], "① a\n\n② b"),
        ([("russianLower", "%1)", "")], "а) a\n\nб) b"),
        ([("decimalZero", "%1", "")], "01 a\n\n02 b"),
        ([("upperLetter", "%1.", "")], "A. a\n\nB. b"),
        ([("none", "", "")], "a\n\nb"),
    ],
)
def test_numbers_of_word(tmp_path, levels, text):
    path = write_docx(tmp_path / "a.docx", item("a") + item("b"), numbering=list_of(*levels))
    assert text_of("a.docx", path.read_bytes()) == text


def test_legal_numbers_and_lists_by_style(tmp_path):
    levels = [("upperRoman", "Article %1", ""), ("decimal", "%1.%2", "<w:isLgl/>")]
    body = item("a") + item("b", 1)
    path = write_docx(tmp_path / "a.docx", body, numbering=list_of(*levels))
    assert text_of("a.docx", path.read_bytes()) == "Article I a\n\n  1.1 b"
    linked = (
        '<w:abstractNum w:abstractNumId="5"><w:styleLink w:val="S"/><w:lvl w:ilvl="0">'
        '<w:numFmt w:val="decimal"/><w:lvlText w:val="§%1"/></w:lvl></w:abstractNum>'
    ) + list_of(inner='<w:numStyleLink w:val="S"/>')
    path = write_docx(tmp_path / "b.docx", item("a"), numbering=linked)
    assert text_of("b.docx", path.read_bytes()) == "§1 a"


def test_what_was_deleted_or_merged_in_word(tmp_path):
    def row(*cells, settings=""):
        inner = "".join(f"<w:tc><w:tcPr>{how}</w:tcPr>{word(t)}</w:tc>" for t, how in cells)
        return f"<w:tr><w:trPr>{settings}</w:trPr>{inner}</w:tr>"

    table = (
        row(("2021", '<w:vMerge w:val="restart"/>'), ("5", ""))
        + row(("", "<w:vMerge/>"), ("6", ""))
        + row(("gone", ""), settings="<w:del/>")
        + row(("2022", ""), ("7", ""))
    )
    shown = '<w:p><w:r><w:rPr><w:vanish w:val="0"/></w:rPr><w:t>shown</w:t></w:r></w:p>'
    joined = word("one", "<w:rPr><w:del/></w:rPr>") + word("two")
    path = write_docx(tmp_path / "a.docx", f"<w:tbl>{table}</w:tbl>{shown}{joined}")
    text = text_of("a.docx", path.read_bytes())
    assert text == "2021 | 5\n2021 | 6\n2022 | 7\n\nshown\n\none two"


def test_formulas_of_word_stand_in_their_sentence(tmp_path):
    formula = "<m:oMath><m:acc><m:e><m:r><m:t>x</m:t></m:r></m:e></m:acc></m:oMath>"
    before = '<w:r><w:t xml:space="preserve">Let </w:t></w:r>'
    body = f"<w:p>{before}{formula}<w:r><w:t>, then</w:t></w:r></w:p>"
    path = write_docx(tmp_path / "a.docx", body)
    assert text_of("a.docx", path.read_bytes()) == "Let x̂, then"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<spine>", "<metadata><title>A & B</title></metadata><spine>"),
        ('href="one.xhtml"', 'href="ONE.xhtml"'),
        ('href="one.xhtml"', 'href="one.xhtml#start"'),
        ('href="one.xhtml"', 'href="./%6fne.xhtml"'),
        ('<itemref idref="one"/>', ""),
        ('<item id="one"', '<item id="one" properties="nav"'),
        ("<package", "\n<package"),
    ],
)
def test_books_that_are_not_quite_right(tmp_path, old, new):
    import zipfile

    from tests.samples import write_zip

    path = write_epub(tmp_path / "a.epub", {"one": "<p>One.</p>"}, ["one"])
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["OEBPS/book.opf"] = files["OEBPS/book.opf"].replace(old.encode(), new.encode())
    assert text_of("a.epub", write_zip(path, files).read_bytes()) == "One."
    del files["META-INF/container.xml"]
    assert text_of("a.epub", write_zip(path, files).read_bytes()) == "One."


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.rtf", r"{\rtf1 a{\footnote note}b}", "a [note]b"),
        ("a.rtf", r"{\rtf1 a{\v hidden}{\b\v hidden}b}", "ab"),
        ("a.rtf", r"{\rtf1 a{\deleted gone}b\{\}}", "ab{}"),
        ("a.rtf", r"{\rtf1{\header head}{\footerf foot}body}", "head\nfoot\nbody"),
        ("a.vtt", "WEBVTT\n\n00:01.000 --> 00:02.000\na &amp; b\n", "a & b"),
        (
            "a.vtt",
            "WEBVTT\n\n00:01.000 --> 00:02.000\na\n\n00:02.000 --> 00:03.000\na\nb\n",
            "a\nb",
        ),
        (
            "a.org",
            "#+BEGIN_SRC py\n# kept\n#+END_SRC\n| a |\n|-+-|\n",
            "```\n# kept\n```\n| a |\n|-|-|",
        ),
        ("a.tex", r"\'e \"{o} \c{c} \ss{} \v s{} M\o{}ller", "é ö ç ß š{} Møller"),
        ("a.tex", r"a\footnote{why} b", "a (why) b"),
        ("a.md", "a\n" + ("QUJDxy12" * 9 + "\n") * 20 + "end", "a\n" + "\n" * 20 + "end"),
        ("a.txt", "\n".join(["d2f0" * 16] * 9), "\n".join(["d2f0" * 16] * 9)),
        ("a.txt", "Grüße, é und ö, dann".encode() + "é".encode()[:1], "Grüße, é und ö, dann"),
        ("a.txt", b"caf\xc3\xa9 \xed\xa0\x80 end", "café  end"),
        (
            "a.ipynb",
            json.dumps(
                {
                    "cells": [
                        {"cell_type": "heading", "level": 2, "source": "H"},
                        {
                            "cell_type": "code",
                            "source": "df",
                            "outputs": [{"data": {"text/html": "<b>1</b>"}}],
                        },
                    ]
                }
            ),
            "## H\n\n```\ndf\n```\n\n1",
        ),
    ],
)
def test_marks_and_damage(name, content, text):
    found = "\n".join(line for line in text_of(name, content).strip().split("\n"))
    assert (found if name != "a.rtf" else "\n".join(filter(None, found.split("\n")))) == text
