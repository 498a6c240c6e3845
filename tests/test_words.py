"""Searching by words: what is found, in which order, and what share of the words it has."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_store import fill, matching, references

from m3mlx.store import words
from m3mlx.store.words import Words


def shares(catalog, text, count=10, only=None):
    with catalog.snapshot():
        return Words(catalog).shares(text, count, only)


def test_words_are_found_in_their_other_forms_and_the_best_first(catalog):
    texts = ["shoes that run", "a shoe ran", "running shoe: run, run, run", *"abcdefgh"]
    fill(catalog, "/a", texts, 0)
    assert matching(catalog, "runs") == [2, 0]
    assert sorted(matching(catalog, "SHOE")) == [0, 1, 2]
    assert matching(catalog, "café") == []


def test_any_one_shared_word_is_enough(catalog):
    fill(catalog, "/a", ["apples", "pears", "plums"], 0)
    assert sorted(matching(catalog, "apples or perhaps plums?")) == [0, 2]


def test_words_that_stand_everywhere_do_not_count_beside_rare_ones(catalog, monkeypatch):
    monkeypatch.setattr(words, "COMMON", 5)
    fill(catalog, "/a", [f"the text {number}" for number in range(8)] + ["zebra"], 0)
    assert matching(catalog, "the zebra") == [8]
    assert len(matching(catalog, "the")) == 8
    assert matching(catalog, "the 3") == [3]


def test_half_added_documents_are_not_matched_and_do_not_crowd_out(catalog):
    fill(catalog, "/a", ["apples in a long text about many other things"], 0)
    with catalog.transaction():
        document, _ = catalog.begin("/b", "h", 1, 50, "t")
        catalog.insert(1, references(document, ["apples"] * 30))
    assert matching(catalog, "apples", 1) == [0]


SYNTAX = ['"', "'", "a-b", "c++", "what's", "(", "NEAR(a b)", "a AND", "OR", "*", "^a", "text:a"]


@pytest.mark.parametrize("query", [*SYNTAX, "", " ", "\0", "a\0b", "_", "\ud800", "🦊", "a" * 9999])
def test_syntax_of_the_full_text_search_is_only_text(catalog, query):
    fill(catalog, "/a", ["a b c near and or text 🦊 \0 what's c++"], 0)
    assert matching(catalog, query) in ([0], [])


def test_no_query_raises_and_stored_texts_find_themselves(catalog):
    @settings(max_examples=50, deadline=None)
    @given(query=st.text(max_size=60), stored=st.text(min_size=1, max_size=60))
    @example(query=" ".join(f"w{number}" for number in range(5000)), stored="w4999")
    def check(query, stored):
        document = fill(catalog, "/a", [stored], 0)
        assert matching(catalog, query) in ([0], [])
        words = [word for word in stored.split() if word.isascii() and word.isalnum()]
        if words:
            assert matching(catalog, words[0]) == [0]
        with catalog.transaction():
            assert catalog.references.read([0], 1)[0].text == stored
            catalog.remove([document])
            catalog.memories.clear_leftovers(1)

    check()
    fill(catalog, "/b", ["last"], 1)
    catalog.purge()
    catalog.db.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")
    assert matching(catalog, "last") == [1]


def test_common_words_alone_find_references_that_have_them_without_ranking(catalog, monkeypatch):
    monkeypatch.setattr(words, "COMMON", 3)
    monkeypatch.setattr(words, "RANKED_COMMON", 4)
    texts = ["the sea", "the the the sky", "the sea and the sky", "sky over the sea", "sea of the"]
    fill(catalog, "/a", texts, 0)
    with catalog.transaction():
        catalog.set(next_slot=len(texts))
    assert matching(catalog, "the", 2) == [0, 1]
    assert matching(catalog, "the sea") == [0, 2, 3, 4]
    assert matching(catalog, "over the sea")[0] == 3  # a rare word is ranked as ever
    assert set(shares(catalog, "the sea").values()) == {0.0}
    monkeypatch.setattr(words, "RANKED_COMMON", 5)
    assert set(matching(catalog, "the sea")) == {0, 1, 2, 3, 4}


def test_the_rarest_words_are_ranked_and_the_others_left_when_there_are_many(catalog, monkeypatch):
    monkeypatch.setattr(words, "RANKED", 3)
    fill(catalog, "/a", ["fig", "fig plum", "plum", "plum kiwi", "plum"], 0)
    assert matching(catalog, "plum fig kiwi") == [3, 0, 1]  # kiwi, then fig; no plum


def test_what_became_common_or_rare_is_counted_again_after_each_commit(catalog, monkeypatch):
    monkeypatch.setattr(words, "COMMON", 3)
    first = fill(catalog, "/a", ["fig tree", "fig", "fig"], 0)
    fill(catalog, "/b", ["fig", "plum tree", "tree"], 3)
    searches = Words(catalog)
    with catalog.snapshot():
        assert 1 not in searches.shares("fig plum", 9)  # fig is common
    with catalog.transaction():
        catalog.remove([first])
    with catalog.snapshot():
        assert sorted(searches.shares("fig plum", 9)) == [3, 4]


def test_a_share_is_bm25_by_the_most_that_the_words_could_give(catalog):
    texts = ["fig tree by the wall", "plum tree", "a wall", "a long grey road", "sea", "sky"]
    fill(catalog, "/a", texts, 3)
    mean = sum(len(text.split()) for text in texts) / len(texts)

    def rarity(n):
        return math.log((len(texts) - n + 0.5) / (n + 0.5))

    def bm25(length):  # of a word that stands there once
        return 2.2 / (1 + 1.2 * (0.25 + 0.75 * length / mean))

    found = shares(catalog, "fig kiwi wall")
    most = 2.2 * (rarity(1) + rarity(0) + rarity(2))  # kiwi is nowhere
    assert list(found) == [3, 5]
    assert found[3] == pytest.approx((rarity(1) + rarity(2)) * bm25(5) / most, rel=1e-6)
    assert found[5] == pytest.approx(rarity(2) * bm25(2) / most, rel=1e-6)


def test_only_wanted_slots_are_found_and_no_share_is_above_one(catalog):
    fill(catalog, "/a", ["fig fig fig fig fig fig fig fig", "fig", "sea", "sky", "road"], 0)
    assert list(shares(catalog, "fig", only={1, 2})) == [1]
    assert all(0 < share <= 1 for share in shares(catalog, "fig").values())
    assert shares(catalog, "house") == {}
