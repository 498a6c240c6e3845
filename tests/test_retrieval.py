"""Follow-up questions find what they refer to; what fits badly is not read."""

from dataclasses import dataclass, field

import pytest

from m3mlx.chat.retrieval import DEPTH, Retrieval


@dataclass(frozen=True)
class Found:
    text: str
    score: float = field(compare=False)


class World:
    """A search by shared words, and how it was asked."""

    texts = ("ada serviced the boiler on 9 may", "gus cleaned the well", "when and when and when")

    def __init__(self):
        self.asked = []
        self.retrieval = Retrieval(self.search)

    def search(self, texts, k):
        self.asked.append((list(texts), k))
        return [[*self._ranked(set(text.lower().strip("?").split()))][:k] for text in texts]

    def _ranked(self, words):
        for text in sorted(self.texts, key=lambda text: -self._score(text, words)):
            yield Found(text, self._score(text, words))

    @staticmethod
    def _score(text, words):
        return len(words & set(text.split())) / len(words | set(text.split()))

    def first(self, message, k=1):
        return [hit.text for hit in self.retrieval.of_message(message, k)]


@pytest.fixture
def world():
    return World()


def test_a_first_message_is_searched_alone(world):
    assert world.first("who serviced the boiler") == [world.texts[0]]
    assert world.asked == [(["who serviced the boiler"], 1)]


def test_a_follow_up_is_searched_with_what_it_refers_to(world):
    world.first("who serviced the boiler on may")
    assert world.first("on which day?") == [world.texts[0]]
    assert world.asked[1] == (
        ["on which day?", "who serviced the boiler on may\non which day?"],
        DEPTH,
    )
    world.first("and by whom?")
    assert world.asked[2][0][1].startswith("who serviced the boiler on may\non which day?\nand")
    assert world.retrieval.subject[0] == "who serviced the boiler on may"
    world.first("really?")
    assert len(world.retrieval.subject) == 3


def test_another_subject_leaves_the_old_one(world):
    world.first("ada serviced the boiler")
    assert world.first("gus cleaned the well") == [world.texts[1]]
    assert world.retrieval.subject == ("gus cleaned the well",)


def test_what_fits_badly_is_not_found(world):
    world.retrieval.floor = 0.4
    assert world.first("ada serviced the boiler", k=3) == [world.texts[0]]
    assert world.first("what is the capital of france", k=3) == []
    assert world.retrieval.of_texts(["gus cleaned", "nothing"], 3)[1] == []


def test_scores_are_in_order_and_of_both_searches(world):
    world.first("ada serviced the boiler")
    hits = world.retrieval.of_message("gus cleaned the well", 3)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert 0 < hits[0].score <= 1
