"""When two facts are about the same thing, so that the later one takes the place of the earlier.

The rules are about subject and relation; where these do not tell, the similarity of the sentences
decides. What may be true several times, as what somebody likes, replaces nothing.
"""

from __future__ import annotations

import re

from ..text import shared_length
from .sentences import Triple, sentences, triple

ALIKE = {"all-minilm-l6-v2": 0.6}  # cosine similarity of sentences about one thing, by encoder
STRICT = 0.9  # of those for which it was not measured
_FIRST = 2  # words with which such sentences begin alike, at least

_ARTICLES = {"the", "a", "an"}
_EMPTY = set("is are was were am be been has have had will becomes became remains would".split())
_WEAK = {
    "",
    "in",
    "on",
    "at",
    "to",
    "need",
    "tak",
    "mak",
    "mean",
    "stand",
    "com",
    "go",
    "run",
    "keep",
}
_SEVERAL = set(
    "lik lov hat dislik own visit speak play eat drink know read us want sold bought mad "
    "support tak contain collect receiv won win driv teach wear trust sing written wrot "
    "allergic fond afraid invent discover".split()
)
_PLACES = {"in", "on", "at", "near", "behind", "under", "next to", "between", "after"}
_MANY = re.compile(r" (?:to|of|from)$")
_ARTICLE = re.compile(r"^(?:the|an?) ", re.IGNORECASE)
_TIME = re.compile(
    r"\d:\d|\b\d{3,4}\b|\b\d+ ?[ap]m\b|\b(?:january|february|march|april|may|june|july"
    r"|august|september|october|november|december|(?:mon|tues|wednes|thurs|fri|satur|sun)day"
    r"|noon|midnight|half past|o['’]clock|two|three|four|five|six|seven|eight|nine|ten|eleven"
    r"|twelve|morning|evening)\b",
    re.IGNORECASE,
)
_ONE_MEANING = tuple(
    frozenset(group.split(", "))
    for group in (
        "liv at, resid at, stay at, mov to, relocat to, home, residenc, address",
        "work for, work at, employ by, employer, join",
        "born at, birthday, date of birth",
        "born at, birthplac, place of birth",
        "died at, place of death",
        "died at, date of death",
        "call, nam",
        "marri to, husband, wif, spous",
        "written by, author, writer",
        "direct by, director",
        "design by, architect, designer",
        "compos by, composer",
        "found at, establish at, built at, date of foundation, year of foundation",
        "found by, founder",
        "bas at, headquarter, seat",
        "ceo, chief executiv, head, led by, leader",
        "work as, occupation, job, profession",
    )
)


def replaces(new: str, old: str, similar: bool, *, same_speaker: bool = True) -> bool:
    """Return whether a fact takes the place of an earlier one.

    Each sentence of the earlier one must be about the same thing as one of the new: what else it
    says would be lost.

    Args:
        similar: the cosine of their vectors is at least ``ALIKE``.
        same_speaker: they were said by the same, so that "I" is the same.
    """
    said = sentences(new)
    return all(
        any(_same(one, other, similar, same_speaker) for one in said) for other in sentences(old)
    )


def contradicts(new: str, old: str) -> bool:
    """Return whether a sentence of a text says of the same thing something else, by the triples.

    Nobody is meant by "I" in a text whose writer is not known.
    """
    said = [found for sentence in sentences(new) if (found := triple(sentence))]
    held = [found for sentence in sentences(old) if (found := triple(sentence))]
    return any(
        _about_one_thing(one, other, True, False) and words(one.object) != words(other.object)
        for one in said
        for other in held
    )


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text in lower case, without articles."""
    found = re.findall(r"[^\W_]+(?:['’][^\W_]+)?", text.casefold())
    return tuple(word for word in found if word not in _ARTICLES)


def _same(new: str, old: str, similar: bool, same_speaker: bool) -> bool:
    one, other = triple(new), triple(old)
    if one and other:
        return _about_one_thing(one, other, similar, same_speaker)
    said, held = words(new), words(old)
    first = shared_length(said, held)
    rest = set(said[first:]), set(held[first:])
    alike = first >= max(_FIRST, *map(len, rest)) and not rest[0] & rest[1]
    return said == held or (alike and similar)


def _about_one_thing(one: Triple, other: Triple, similar: bool, same_speaker: bool) -> bool:
    subjects = _subject(one), _subject(other)
    relations = _relation(one), _relation(other)
    if not same_speaker and {"i", "we", "my", "our"} & {*subjects[0], *subjects[1]}:
        return False
    if subjects[0] == subjects[1]:
        if relations[0] != relations[1] and not any(
            set(relations) <= meaning for meaning in _ONE_MEANING
        ):
            return False
        weak = relations[0] in _WEAK
    else:  # "the code of the garage is", "the garage code is"
        if _topic(one) != _topic(other):
            return False
        weak = False
    if one.denied != other.denied:
        return words(one.object) == words(other.object)
    if one.denied or _MANY.sub("", relations[0]) in _SEVERAL:
        return words(one.object) == words(other.object)
    if relations[0].endswith(" at") and _tells_time(one.object) != _tells_time(other.object):
        return False
    return not weak or (similar and (relations[0] != "" or _one_property(one, other)))


def _one_property(one: Triple, other: Triple) -> bool:
    """Return whether "is" says the same of both: "is 40 km long", not "is a town"."""
    objects = words(one.object), words(other.object)
    if any(re.match(r"an? ", said.object, re.IGNORECASE) for said in (one, other)):
        return False
    has_name = re.search(r"(?<=.)\b[A-ZÀ-Þ]|^[A-ZÀ-Þ]\w+$|^I$", _ARTICLE.sub("", one.subject))
    return objects[0][-1:] == objects[1][-1:] or not has_name


def _tells_time(text: str) -> bool:
    """Return whether this is a time, and no place."""
    return bool(_TIME.search(text))


def _subject(said: Triple) -> tuple[str, ...]:
    found = words(said.subject)
    return ("i",) if found == ("my",) else ("we",) if found == ("our",) else found


def _relation(said: Triple) -> str:
    """Return the stems of a relation, without forms of "be" and "have"."""
    kept = [word for word in words(said.relation) if word not in _EMPTY]
    if len(kept) > 1 and kept[-1] in _PLACES:
        kept[-1] = "at"
    return " ".join(map(_stem, kept))


def _topic(said: Triple) -> frozenset[str]:
    return frozenset({*map(_stem, _subject(said)), *_relation(said).split()})


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            return word.removesuffix(ending)
    return word
