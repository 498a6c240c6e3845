"""Samples from files, and what is said of those that are none."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3mlx.errors import M3Error
from m3mlx.train.corpus import Corpus, Embeddings, overlap
from m3mlx.train.data import Conversation, Preference, Question, Text, read_data


def jsonl(path, *lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), "utf-8")
    return path


def test_every_kind_of_sample_is_read(tmp_path):
    path = jsonl(
        tmp_path / "a.jsonl",
        {"text": "plain"},
        "",
        {"document": "d", "question": "q", "answer": "a", "answers": ["a longer", "a"]},
        {"messages": [{"role": "system", "content": "be brief"},
                      {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"},
                      {"role": "user", "content": "and"}, {"role": "assistant", "content": "so"}]},
        {"prompt": "p", "chosen": "good", "rejected": "bad", "document": "about it"},
    )  # fmt: skip
    data = read_data([path])
    assert data.texts == [Text("plain")]
    assert data.questions == [Question("d", "q", ("a", "a longer"))]
    assert data.conversations == [Conversation((("be brief\n\nhi", "ho"), ("and", "so")))]
    assert data.preferences == [Preference("p", "good", "bad", "about it")]
    assert data.documents() == ["d", "about it", "plain"]


def test_other_files_of_a_folder_are_texts(tmp_path):
    (tmp_path / "note.md").write_text("a note")
    jsonl(tmp_path / "more.jsonl", {"text": "of a line"})
    assert {t.text for t in read_data([tmp_path]).texts} == {"a note", "of a line"}


BAD = {
    "no json": "expected",
    "[1]": "a JSON object",
    '{"other": 1}': "expected one of",
    '{"text": ""}': '"text" must be text',
    '{"text": 5}': '"text" must be text',
    '{"question": "q", "answer": "a"}': '"document"',
    '{"document": "d", "question": "q"}': '"answer" must be text',
    '{"document": "d", "question": "q", "answer": "a", "answers": "b"}': '"answers" must be a list',
    '{"messages": "hi"}': '"messages" must be a list',
    '{"messages": []}': "in turn",
    '{"messages": [{"role": "user", "content": "hi"}]}': "end with an answer",
    '{"messages": [{"role": "assistant", "content": "hi"}]}': "in turn",
    '{"prompt": "p", "chosen": "c"}': '"rejected" must be text',
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_named(tmp_path, line):
    path = jsonl(tmp_path / "bad.jsonl", {"text": "good"}, line)
    with pytest.raises(M3Error) as error:
        read_data([path])
    assert f"{path}, line 2" in str(error.value)
    if BAD[line] != "expected":  # the parser's own words
        assert BAD[line] in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(M3Error, match="missing"):
        read_data([tmp_path / "missing.txt"])
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(M3Error, match=r"latin.jsonl: cannot be read as UTF-8"):
        read_data([tmp_path / "latin.jsonl"])
    jsonl(tmp_path / "empty.jsonl", "", "")
    with pytest.raises(M3Error, match="nothing to train on"):
        read_data([tmp_path / "empty.jsonl"])


# --- overlap


def longest_common(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = (
                table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
            )
    return table[-1, -1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=40),
    st.lists(st.integers(0, 5), min_size=1, max_size=8),
)
def test_overlap_is_the_longest_common_subsequence_in_twice_the_length(text, reference):
    width = 2 * len(reference) + 1  # first and last place are at most twice the length apart
    windows = [text[i : i + width] for i in range(len(text))]
    expected = max(longest_common(window, reference) for window in windows)
    assert overlap(text, reference) == pytest.approx(expected / len(reference))


def test_overlap_is_1_for_copies_and_small_for_other_texts():
    reference = list(range(100, 140))
    assert overlap([1, 2, *reference, 3], reference) == 1
    assert overlap([1, 2, 3], reference) == 0
    scattered = [x for token in reference for x in (token, 1, 2, 3)]  # too far apart
    assert overlap(scattered, reference) < 0.6


# --- the corpus


def tokenize(text):
    return [ord(c) for c in text], [(i, i + 1) for i in range(len(text))]


def encode(texts):
    """Letters counted: texts of the same letters are alike."""
    counts = np.array([[text.count(c) for c in "abcdefgh"] for text in texts], np.float32) + 1e-3
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def letters(folder, embed=encode, identity="letters"):
    return Embeddings(lambda: SimpleNamespace(encode=embed, identity=identity), folder)


def test_references_are_those_that_memorize_would_write(tmp_path):
    long = ". ".join(f"sentence {i} about hedges" for i in range(12)) + "."
    corpus = Corpus(["abc", long], tokenize, letters(tmp_path))
    assert corpus.texts[corpus.places["abc"][0]] == "abc"
    assert len(corpus.places[long]) > 2
    assert all(len(reference) <= 128 for reference in corpus.references)
    place = corpus.find_answer(long, "sentence 7")
    assert "sentence 7" in corpus.texts[place]
    assert corpus.find_answer(long, "not in it") is None
    assert corpus.find_answer("abc", "not in it") == corpus.places["abc"][0]  # there is only one


def test_vectors_are_kept_and_not_made_twice(tmp_path):
    first = Corpus(["aab", "ccd"], tokenize, letters(tmp_path))
    near = first.nearest(["aaa"], 1)
    calls = []

    def counting(texts):
        calls.append(texts)
        return encode(texts)

    second = Corpus(["aab", "ccd"], tokenize, letters(tmp_path, counting))
    assert second.nearest(["aaa"], 1) == [[0]] == near
    assert calls == [["aaa"]]
    other = Corpus(["aab", "ccd"], tokenize, letters(tmp_path, counting, "another encoder"))
    assert len(calls) == 1  # no vector is made before it is wanted
    other.nearest(["aaa"], 1)
    assert len(calls) == 3  # the query, and the vectors of the other encoder


def test_clusters_hold_neighbours_and_every_reference_once(tmp_path):
    texts = [letter * 5 + "h" * i for letter in "abc" for i in range(4)]
    corpus = Corpus(texts, tokenize, letters(tmp_path))
    groups = corpus.clusters(range(12), 4, np.random.default_rng(0))
    assert sorted(place for group in groups for place in group) == list(range(12))
    assert all(len({place // 4 for place in group}) == 1 for group in groups)
