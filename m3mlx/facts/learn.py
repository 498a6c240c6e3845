"""Facts in what somebody said: proposed by rules, and kept by nobody but the user."""

from __future__ import annotations

import re

from .sentences import sentences, triple

_NOBODY = re.compile(  # subjects that mean nothing outside of the conversation, and hedges
    r"(?:he|she|it|they|you|this|that|these|those|there|here|who|what|which|one|everyone|nobody"
    r"|somebody|his|her|its|their|your)(?:['’]\w+)?\b|.*\b(?:if|whether|think|thought|guess|maybe"
    r"|perhaps|hope|wish|wonder|please|would|could|should|might)\b",
    re.IGNORECASE,
)
_LONGEST = 300  # characters of a sentence


def proposals(said: str) -> list[str]:
    """Return the sentences of a message that state a fact which can stand alone."""
    return [
        sentence
        for sentence in sentences(said)
        if len(sentence) <= _LONGEST
        and not sentence.endswith("?")
        and not _NOBODY.match(sentence)
        and triple(sentence)
    ]
