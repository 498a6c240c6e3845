"""Scores of answers, by hand, and their intervals."""

import random
from statistics import mean

import pytest

from m3mlx.evaluate.scores import Scores, abstains, normal, normalize, score, wilson


def test_normalization_is_squads():
    assert normalize("The  Beatles', a U.S. band — an answer!") == "beatles us band — answer"
    assert normalize("a the an") == "" and normalize("theatre") == "theatre"


@pytest.mark.parametrize(
    ("said", "answers", "scores"),
    [
        ("The Eiffel Tower.", ["eiffel tower"], Scores(1, 1, 1)),
        ("It is 308 points", ["308", "308 points"], Scores(0, 2 * 2 / 6, 1)),
        ("3080", ["308"], Scores(0, 0, 0)),  # in whole words
        ("", ["308"], Scores(0, 0, 0)),
        ("red red", ["red"], Scores(0, 2 / 3, 1)),  # a word counts as often as it stands there
        ("The.", ["the"], Scores(1, 1, 0)),  # both empty, as in SQuAD
    ],
)
def test_the_best_right_answer_counts(said, answers, scores):
    found = score(said, answers)
    assert (found.exact, found.contains) == (scores.exact, scores.contains)
    assert found.f1 == pytest.approx(scores.f1)


def test_of_several_needed_answers_the_share_counts():
    assert score("They are 12 and 34.", ["12", "34", "56"], every=True).contains == (
        pytest.approx(2 / 3)
    )


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("This is not mentioned in the text.", True),
        ("I don't know.", True),
        ("No information available", True),
        ("The conversation does not mention it", True),
        ("She knows the unknown soldier's name", True),  # a word is enough; it is no judge
        ("Not far from the sea", False),
        ("I know: 308", False),
        ("", False),
    ],
)
def test_who_says_that_there_is_no_answer_is_right_where_there_is_none(said, expected):
    assert abstains(said) is expected
    assert score(said, []) == Scores(*[float(expected)] * 3)


def test_wilson_intervals_are_those_of_the_books():
    found = wilson([1.0] * 10 + [0.0] * 38)  # 10 of 48
    assert (found.value, found.low, found.high) == pytest.approx((0.2083, 0.1173, 0.3426), abs=1e-3)
    none, all = wilson([0.0] * 20), wilson([1.0] * 20)
    assert none.low == 0 and none.high == pytest.approx(0.1611, abs=1e-3)
    assert all.high == 1 and all.low == pytest.approx(0.8389, abs=1e-3)
    assert str(found) == "20.8% (12–34)"


def test_intervals_hold_the_true_mean_about_as_often_as_they_say():
    rng = random.Random(3)
    for interval, draw, true in (
        (wilson, lambda: float(rng.random() < 0.2), 0.2),
        (normal, lambda: rng.random() ** 2, 1 / 3),
    ):
        estimates = [interval([draw() for _ in range(60)]) for _ in range(500)]
        held = mean(found.low <= true <= found.high for found in estimates)
        assert 0.92 < held < 0.99
