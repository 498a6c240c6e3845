"""Score answers as SQuAD does, and say how sure a mean of scores is."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

Z = 1.96  # standard errors to each side of a 95 % interval

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ABSTAINS = re.compile(
    r"\b(no information|not (mentioned|specified|stated|provided|given|available|known)"
    r"|(do|does) not (know|mention|say|specify|provide|contain)|don t know|cannot (be )?answer"
    r"|unanswerable|unknown|unable to answer)"
)


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({100 * self.low:.0f}–{100 * self.high:.0f})"


@dataclass(frozen=True)
class Scores:
    """Scores of one answer, from 0 to 1.

    Attributes:
        exact: it is a right answer.
        f1: harmonic mean of precision and recall of its words, of the best right answer.
        contains: it holds a right answer; of questions that need all answers, the share it holds.
    """

    exact: float
    f1: float
    contains: float


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and repeated blanks, as SQuAD's own script."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def score(said: str, answers: Sequence[str], every: bool = False) -> Scores:
    """Score an answer by the right ones.

    Args:
        answers: without any the question has no answer, and it is right to say so.
        every: all answers are needed, as in RULER, and not one of them.
    """
    words = normalize(said)
    if not answers:
        return Scores(*[float(abstains(said))] * 3)
    right = [normalize(answer) for answer in answers]
    held = [holds(words, answer) for answer in right]
    return Scores(
        exact=float(words in right),
        f1=max(f1(words, answer) for answer in right),
        contains=mean(held) if every else float(any(held)),
    )


def f1(words: str, answer: str) -> float:
    """F1 of the words of two normalized texts."""
    said, right = words.split(), answer.split()
    if not said or not right:
        return float(said == right)
    same = (Counter(said) & Counter(right)).total()
    return 2 * same / (len(said) + len(right))


def holds(words: str, answer: str) -> bool:
    """Return whether a normalized text holds another, in whole words."""
    return bool(answer) and f" {answer} " in f" {words} "


def abstains(said: str) -> bool:
    """Return whether an answer says that there is none."""
    return bool(_ABSTAINS.search(said.lower().translate(_PUNCTUATION).replace("dont", "don t")))


def wilson(values: Sequence[float]) -> Estimate:
    """Mean of shares or of right and wrong, with Wilson's interval."""
    count, share = len(values), mean(values)
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    spread = sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) * Z / (1 + Z**2 / count)
    return Estimate(share, max(0.0, middle - spread), min(1.0, middle + spread))


def normal(values: Sequence[float]) -> Estimate:
    """Mean with a normal interval: 1.96 standard errors to each side."""
    error = Z * stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(mean(values), mean(values) - error, mean(values) + error)
