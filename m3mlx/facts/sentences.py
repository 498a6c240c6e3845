"""Subject, relation and object of a sentence, by rules.

The rules know the commonest forms of English: "the R of S is O", "S's R is O", "my R is O" and
"S verb O". A sentence of another form has no triple.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_BE = "is|are|was|were|(?<=\\bI )am|has been|have been|will be|becomes|became|remains|would be"
_VERBS = (
    "lives live lived resides reside resided stays works work worked likes like liked loves "
    "love loved prefers prefer preferred hates hate dislikes dislike owns own owned drives "
    "drive drove speaks speak spoke plays play played studies study studied moved died "
    "married founded wrote writes composed directed designed built invented discovered uses "
    "use used needs need needed costs cost weighs weigh starts start started begins begin "
    "began ends end ended opens open opened closes close closed belongs belong belonged comes "
    "come came goes go went stands stand stood lies lie lay contains contain contained means "
    "mean eats eat ate drinks drink drank takes take took wants want wanted keeps keep kept "
    "runs run ran teaches teach taught leads lead led sings sing sang supports support "
    "supported graduated attended joined left leaves leave bought sold made makes visited "
    "visits visit knows know knew reads read rises flows relocated relocates collects "
    "received receives won wins departs arrives serves serve served represents produced "
    "produces wears trusts has have had"
)
_VERB = "|".join(sorted(_VERBS.split(), key=len, reverse=True))
_VERB = f"(?:takes?|took) place|{_VERB}"
_OF = (  # relations that are named in two words
    "(?:place|date|year|cause|country|city|town|state|number|name|type|kind|language|end|basis) of "
    "(?:birth|death|origin|residence|work|foundation|publication|inception|completion|release)"
)
_TO = (
    "in|at|on|to|from|for|by|with|of|near|behind|under|after|into|as|about|against|among|between|"
    "next to"
)
_DONE = r"[a-z]+ed|[a-z]+wn|[a-z]+tten|born|made|built|led|held|known|set|put|kept|sold|sung|found"
_STATE = (
    f"(?:first |last |once |originally )?(?:{_DONE}|living|working|staying|studying|allergic|fond"
    "|afraid)"
)
_FORMS = tuple(
    re.compile(form, re.IGNORECASE)
    for form in (
        rf"(?P<s>.+?)(?:['’]s|(?<=s)['’]) (?P<r>{_OF}|[\w -]{{2,60}}?) (?:{_BE}) (?P<o>.+)",
        rf"(?:the )?(?P<r>{_OF}|[\w' -]{{2,60}}?) (?:of|for) (?P<s>.+?) (?:{_BE}) (?P<o>.+)",
        rf"(?P<s>my|our) (?P<r>[\w -]{{2,60}}?) (?:{_BE}) (?!(?:{_STATE}) )(?P<o>.+)",
        rf"(?P<s>.+?) (?P<r>(?:{_BE}) (?:{_STATE})(?: (?:{_TO}))?) (?P<o>.+)",
        rf"(?P<o>.+?) (?:{_BE}) the (?P<r>[\w -]{{2,40}}?) of (?P<s>.+)",
        rf"(?P<s>.+?) (?P<r>(?:(?:has|have|had) )?(?:{_VERB})(?: (?:{_TO}))?) (?P<o>.+)",
        rf"(?P<s>.+?) (?P<r>(?:{_BE})(?: (?:{_TO}))?) (?P<o>.+)",
    )
)
_HEDGE = re.compile(
    r"(?<=.)\b(?:now|currently|actually|really|again|also|still|today|meanwhile)\b,? ?"
    r"|,? (?:as of|since) [\w ]{3,20}$|,? any ?more$|,? any longer$",
    re.IGNORECASE,
)
_NOT = re.compile(
    r"\b(?:no longer|never|(?P<be>is|are|was|were|am)(?: no longer| not|n['’]t)"
    r"|(?:do|does|did|has|have|had)(?: not|n['’]t))\b",
    re.IGNORECASE,
)
_BREAK = re.compile(
    r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b\d\.)(?<!\b\d\d\.)(?<!\b(?:Dr|Mr|Ms|St)\.)(?<!\bMrs\.)\s+(?=[A-ZÀ-Þ\d\"'“])|\n+"
)
_EDGES = " .,;:!?\"“”'"


@dataclass(frozen=True)
class Triple:
    """What a sentence says of a subject.

    Attributes:
        subject, relation, object: words of the sentence; the subject of "my" and "our" is that.
        denied: the sentence says that it is not so.
    """

    subject: str
    relation: str
    object: str
    denied: bool = False


def sentences(text: str) -> list[str]:
    """Return the sentences of a text."""
    return [part.strip() for part in _BREAK.split(text) if part.strip()]


@lru_cache(4096)  # the same references are found again and again
def triple(sentence: str) -> Triple | None:
    """Return what a sentence says; None where no rule fits it."""
    said = " ".join(sentence.split()).strip(_EDGES)
    positive = _NOT.sub(lambda found: found["be"] or "", said)
    plain = " ".join(_HEDGE.sub("", positive).split())
    for form in _FORMS:
        if found := form.fullmatch(plain):
            subject, relation, object = (found[name].strip(_EDGES) for name in ("s", "r", "o"))
            return Triple(subject, relation, object, positive != said)
    return None
