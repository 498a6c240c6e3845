"""References cover a document, fit, and end where a reader would end them."""

import random
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from m3mlx.documents import Document, Reference, split
from m3mlx.documents.text import clean

SAMPLE = "The keeper lit the lamp. She counted the ships, and there were seven of them. " * 20
FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"  # one emoji, 25 bytes
CLUSTERS = [
    FAMILY,
    "e\u0323\u0302",
    "\U0001f44b\U0001f3fd",
    "\U0001f1e9\U0001f1ea",
    "❤\ufe0f",
    "한",
]


def trained(vocabulary: int) -> Tokenizer:
    """A byte-level BPE; with 256 tokens each byte is one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([SAMPLE], trainer)
    return tokenizer


TOKENIZERS = {size: trained(size) for size in (256, 400)}


def tokenize(text: str, size: int = 400) -> tuple[list[int], list[tuple[int, int]]]:
    encoding = TOKENIZERS[size].encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets


def document(text: str, kind: str = "prose", **fields) -> Document:
    return Document(path="/a", hash="0", text=text, kind=kind, **fields)


def cut(text: str, max_tokens: int, kind: str = "prose") -> list[str]:
    return [r.text for r in split(document(text, kind), tokenize, max_tokens)]


def check(text: str, references: list[Reference], max_tokens: int, size: int = 400) -> None:
    """Check what must hold of every split."""
    end = 0
    for reference in references:
        assert text[end : reference.start].strip() == ""  # nothing visible is left out
        assert reference.start >= end  # nothing is there twice, all in order
        own = text[reference.start : reference.end]
        assert own == own.strip()
        assert reference.text.endswith(own)
        assert reference.tokens == tuple(tokenize(reference.text, size)[0])
        assert 1 <= len(reference.tokens) <= max_tokens
        end = reference.end
    assert text[end:].strip() == ""


PLAIN_WORDS = ["keeper", "lamp.", "She", "ships,", "naïve", "日本語。", "a" * 90, "def f():"]
SIGNS = ["\n", "\n\n", "# Head", "- item", "====", "\t", "  ", "\u200b", "!", "?!", "...", '."']
WORDS = st.sampled_from([*PLAIN_WORDS, *SIGNS, *CLUSTERS])
TEXTS = st.one_of(
    st.text(max_size=300),
    st.lists(WORDS, max_size=80).map("".join),
    st.lists(WORDS, max_size=80).map(" ".join),
)
KINDS = st.sampled_from(["prose", "code", "rows"])


@settings(max_examples=300, deadline=None)
@given(TEXTS.map(clean), KINDS, st.integers(8, 128), st.sampled_from([256, 400]))
@example("😀" * 50, "prose", 8, 256)
@example("\n# A\n====\n", "prose", 8, 256)
def test_every_visible_character_is_in_exactly_one_reference_that_fits(
    text, kind, max_tokens, size
):
    references = split(document(text, kind), lambda t: tokenize(t, size), max_tokens)
    check(text, references, max_tokens, size)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([*CLUSTERS, "x", " "]), max_size=60), st.integers(32, 70))
def test_no_character_is_cut_however_many_code_points_and_tokens_it_has(clusters, max_tokens):
    text = "".join(clusters)
    allowed, position = {0}, 0
    for cluster in clusters:
        position += len(cluster)
        allowed.add(position)
    for reference in split(document(text), lambda t: tokenize(t, 256), max_tokens):
        assert reference.start in allowed
        assert reference.end in allowed


def test_flags_in_a_row_are_cut_between_pairs():
    text = "\U0001f1e9\U0001f1ea" * 40
    references = split(document(text), lambda t: tokenize(t, 256), 50)
    assert len(references) > 3
    assert all(len(r.text) % 2 == 0 for r in references)


def test_marks_without_end_are_cut_between_code_points():
    text = "e" + "\u0301" * 500
    references = split(document(text), lambda t: tokenize(t, 256), 64)
    check(text, references, 64, 256)


def test_a_character_with_too_many_tokens_is_an_error():
    with pytest.raises(ValueError, match="alone"):
        split(document("ab😀cd"), lambda t: tokenize(t, 256), 3)


@pytest.mark.parametrize("text", ["", " \n\t\n "])
def test_nothing_visible_gives_no_references(text):
    assert split(document(text), tokenize) == []


def test_a_short_document_is_one_reference():
    assert cut("One.\n\nTwo.", 128) == ["One.\n\nTwo."]


def test_references_are_well_filled():
    text = "\n\n".join(SAMPLE for _ in range(10))
    references = split(document(text), tokenize, 128)
    assert sum(len(r.tokens) for r in references) / len(references) > 90


def test_paragraphs_stay_together():
    first, second = "The keeper lit the lamp. " * 4, "She counted the ships. " * 4
    size = len(tokenize(first)[0])
    assert cut(f"{first}\n\n{second}", size + 10) == [first.strip(), second.strip()]


def test_sentences_stay_together():
    sentences = [f"She counted {n} ships and the keeper lit the lamp." for n in range(12)]
    for piece in cut(" ".join(sentences), 60):
        assert piece.startswith("She counted")
        assert piece.endswith("lamp.")


def test_abbreviations_and_numbers_do_not_end_a_sentence():
    text = "Dr. Brown lit 3.5 lamps, e.g. A. Smith's lamp, at 5 p.m. sharp. Then she left."
    tokens = len(tokenize(text)[0])
    assert cut(text, tokens - 1)[-1] == "Then she left."


def test_sentences_of_scripts_without_spaces_stay_together():
    pieces = cut("今日は天気がいい。公園に行きました。" * 10, 100)
    assert len(pieces) > 3
    assert all(piece.endswith("。") for piece in pieces)


@pytest.mark.parametrize(
    "heading", ["# Ships", "### Ships", "Ships\n=====", "Ships\n-----", "=====\nShips\n====="]
)
def test_a_heading_starts_a_reference_and_never_ends_one(heading):
    body = "The keeper lit the lamp. " * 5
    text = f"{body}\n\n{heading}\n\n{body}\n\n{heading}\n\n{body}"
    size = len(tokenize(f"{heading}\n\n{body}")[0])
    for max_tokens in range(size, 2 * size, 5):
        pieces = cut(text, max_tokens)
        check(text, split(document(text), tokenize, max_tokens), max_tokens)
        assert not any(piece.endswith(heading) for piece in pieces)
        assert pieces[1].startswith(heading)


def test_a_reference_tells_its_title_and_section_unless_it_begins_with_them():
    body = "The keeper lit the lamp. " * 60
    text = f"# Sea\n\n## Ships\n\n{body}\n\n### Old\n\n{body}\n\n## Rope\n\n{body}"
    lines = [piece.split("\n")[0] for piece in cut(text, 128)]
    assert list(dict.fromkeys(lines)) == [
        *("# Sea", "Sea › Ships", "Sea › Ships › Old", "Sea", "Sea › Rope"),
    ]
    noted = f"---\ntitle: Log\ntags: a\n---\n{body}\n\n{body}"
    first, *others = cut(noted, 90)
    assert first.startswith("---\ntitle: Log\ntags: a\n---\nThe keeper")
    assert all(piece.startswith("Log\nThe") for piece in others)


def test_what_stands_above_takes_a_third_of_a_reference_at_most():
    text = f"# {'Very long title ' * 20}\n\n" + SAMPLE
    pieces = cut(text, 40)
    assert len(pieces) > 9
    assert sum("title" in piece and "keeper" in piece for piece in pieces) <= 1


@pytest.mark.parametrize("rule", ["", "|---|:-:|\n"])
def test_rows_of_tables_keep_their_header_and_are_not_cut(rule):
    rows = [f"| lamp {i}. She | ships, seven. |" for i in range(20)]
    text = "Before.\n\n| name | what |\n" + rule + "\n".join(rows) + "\n\n" + SAMPLE
    pieces = cut(text, 70)
    check(text, split(document(text), tokenize, 70), 70)
    tables = [piece for piece in pieces if "lamp 1" in piece or "lamp 5." in piece]
    assert len(tables) > 2
    for piece in tables:
        lines = piece.split("\n")
        assert "| name | what |" in lines
        assert all(line in rows for line in lines if line.startswith("| lamp"))
    assert pieces[-1].startswith(("The keeper", "She"))


def test_code_in_a_note_stays_with_its_fence_and_has_no_headings():
    code = "\n".join(f"# step {i}. Then rest" for i in range(30))
    text = f"# Note\n\nThe keeper lit the lamp.\n\n```sh\n{code}\n```\n\n" + SAMPLE
    pieces = cut(text, 60)
    assert not any(piece.endswith("```sh") for piece in pieces)
    assert all(piece.startswith(("#", "Note\n", "```")) for piece in pieces)
    assert [line for p in pieces for line in p.split("\n") if "step" in line] == code.split("\n")


def test_code_is_cut_between_functions_then_between_lines():
    function = "def light(lamp):\n    x = 1\n\n    y = 2\n    return lamp\n"
    size = len(tokenize(function)[0])
    pieces = cut("\n\n".join([function] * 6), 2 * size + size // 2, "code")
    assert all(piece.startswith("def light") for piece in pieces)
    lines = [f"call_{i}(lamp, ship)" for i in range(60)]
    pieces = cut("\n".join(lines), 70, "code")
    assert [line for piece in pieces for line in piece.split("\n")] == lines


def test_rows_are_never_cut_where_they_fit():
    rows = [f"ship: number {i}; keeper: lamp {i}. Seven" for i in range(50)]
    pieces = cut("\n".join(rows), 90, "rows")
    assert [row for piece in pieces for row in piece.split("\n")] == rows


def test_words_are_not_cut():
    words = [random.Random(i).choice(["lamp", "ships", "keeper"]) for i in range(500)]
    pieces = cut(" ".join(words), 40)
    assert " ".join(pieces).split() == words


def test_a_reference_knows_its_line():
    text = "\n\nfirst line\n\n" + "The keeper lit the lamp.\n" * 60
    references = split(document(text, lined=True), tokenize, 60)
    assert references[0].line == 3
    for reference in references:
        assert reference.line == text.count("\n", 0, reference.start) + 1
        assert reference.page is None


def test_a_reference_knows_its_page_and_rather_ends_with_it():
    pages = [f"Page {n}. " + "The keeper lit the lamp. " * 8 for n in range(1, 5)]
    text, starts = "", []
    for page in pages:
        starts.append(len(text))
        text += page + "\n\n"
    references = split(document(text, page_starts=tuple(starts)), tokenize, 70)
    assert [r.page for r in references] == [1, 2, 3, 4]
    assert all(r.text.startswith(f"Page {r.page}.") for r in references)
    assert all(r.line is None for r in references)


def test_a_token_for_a_whole_word_of_any_length_is_one_reference():
    def by_word(text):
        words, offset, ids, offsets = text.split(), 0, [], []
        for word in words:
            offset = text.index(word, offset)
            ids.append(0)
            offsets.append((offset, offset + len(word)))
            offset += len(word)
        return ids, offsets

    text = "a " + "b" * 100_000 + " c"
    assert [r.text for r in split(document(text), by_word, 2)] == [text[:-2], "c"]


def test_a_tokenizer_that_drops_what_it_does_not_know_gives_no_empty_reference():
    def ascii_only(text):
        kept = [(i, i + 1) for i, c in enumerate(text) if c.isascii()]
        return [ord(text[i]) for i, _ in kept], kept

    assert split(document("日本語"), ascii_only) == []


@pytest.mark.parametrize(
    "text",
    [
        "a" * 100_000,
        "".join(random.Random(0).choices("abcdefghij0123456789", k=100_000)),
        "." * 100_000,
        ". " * 50_000,
        "x" + " " * 200_000 + "y" + "\n" * 200_000 + "z",
        "#" * 100_000,
        FAMILY * 5_000,
        "e" + "\u0301" * 50_000,
    ],
    ids=["letter", "random", "dots", "spaced dots", "spaces", "hashes", "emoji", "marks"],
)
def test_odd_texts_take_time_in_proportion_to_their_length(text):
    begin = time.process_time()
    references = split(document(text), tokenize)
    assert time.process_time() - begin < 5
    check(text, references, 128)
