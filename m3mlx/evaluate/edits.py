"""Facts that were changed, told one after another to one store: does it answer by them?

The measurement is that of ZsRE for model editing. Each edit is told as one sentence, made of its
question and the new answer by rules. When all are told, each is asked for in the same words
(reliability) and in other words (generalization), and an unrelated question shall be answered as
before (locality). All questions go the same way: nothing knows which belongs to which edit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import digest
from ..errors import M3Error
from ..memory.format import conditions
from ..store import Hit
from .answers import BATCH
from .batch import answer
from .kept import Kept, Outcome
from .questions import named
from .scores import holds, normalize, wilson
from .store import EvaluationStore
from .table import Table

COLUMNS = {"question": "", "n": "d", "found": "", "right": "", "old": "", "unchanged": ""}
EXPLANATION = (
    "found: the fact is among those that are read; right, old: the greedy answer holds the new, "
    "or an old answer; unchanged: it is that of before the edits, word for word. Shares with "
    "their 95 % interval (Wilson)."
)
_AUX = r"is|was|are|were|did|does|do|has|have|had|can|could|will|would"


@dataclass(frozen=True)
class Edit:
    """A fact to be changed.

    Attributes:
        rephrase: the question in other words.
        new: the answer from now on; "" where a file has none, and nothing can be told.
        old: right answers before.
        unrelated: a question about something else.
    """

    subject: str
    question: str
    rephrase: str
    old: tuple[str, ...]
    new: str
    unrelated: str

    @property
    def told(self) -> str:
        """The new fact as a sentence."""
        return sentence(self.question, self.subject, self.new)


def sentence(question: str, subject: str, new: str) -> str:
    """Return a statement of what a question asks for, with its answer."""
    asked = " ".join(question.split()).rstrip(" ?.")
    name = re.escape(" ".join(subject.split()))
    for form, said in _FORMS:
        if found := re.fullmatch(form.format(s=name, aux=_AUX), asked, re.IGNORECASE):
            parts = found.groupdict("")
            parts["p"] = parts.get("p", "").lower()
            made = " ".join(said.format(a=new, **parts).split())
            return f"{made[0].upper()}{made[1:]}."
    return f"The answer to “{asked}?” is {new}."


_FORMS = (  # the pattern of a question, and the statement
    (r"wh(?:at|o|ich) (?P<b>is|was|are|were) (?P<s>{s}) (?P<t>.+)", "{s} {b} {t} {a}"),
    (r"wh(?:at|o|ich) (?P<b>is|was|are|were) (?P<r>(?:the |an? )?.*{s}.*)", "{r} {b} {a}"),
    (
        r"(?P<p>in|at|on|for|of|to|by|from|with) wh(?:at|ich) (?P<n>.+?) (?P<x>{aux}) (?P<s>{s})"
        r"(?P<t> .+)?",
        "the {n} {p} which {s} {x} {t} is {a}",
    ),
    (
        r"wh(?:at|ich) (?P<n>.+?) (?P<x>{aux}) (?P<s>{s})(?P<t> .+)?",
        "the {n} that {s} {x} {t} is {a}",
    ),
    (r"wh(?:at|o) (?P<x>{aux}) (?P<s>{s}) (?P<t>.+)", "{s} {x} {t} {a}"),
    (r"(?:when|where) (?P<x>{aux}) (?P<s>{s}) (?P<t>.+)", "{s} {x} {t} in {a}"),
    (r"wh(?:at|ich) (?P<n>\w+(?: \w+){{0,3}}) (?P<r>(?:{aux}) .*{s}.*)", "{a} is the {n} that {r}"),
    (r"wh(?:o|at|ich) (?P<r>.*{s}.*)", "{a} {r}"),
)


def edits(
    store: EvaluationStore,
    cases: Sequence[Edit],
    *,
    others: Sequence[str] = (),
    answer_tokens: int = 32,
    keep: Path | None = None,
) -> Table:
    """Tell all edits in their order, then ask.

    Args:
        others: unrelated documents that are memorized before.
        answer_tokens: length of the greedy answers.
        keep: folder in which answers stay, so that another call goes on there.
    """
    if not answer_tokens:
        raise M3Error("the task edits needs answers; give --answer-tokens at least 1")
    told = [case for case in cases if case.new.strip()]
    if not told:
        raise M3Error("no edit has a new answer")
    left, cases = len(cases) - len(told), told
    run = _Run(store, Kept(keep / "results.jsonl" if keep else None), answer_tokens)
    run.tell(cases, others)
    ways: dict[str, Callable[[Edit], str]] = {
        "as told": lambda case: case.question,
        "rephrased": lambda case: case.rephrase,
        "unrelated": lambda case: case.unrelated,
    }
    without = f" {left} without a new answer were left out." if left else ""
    table = Table(COLUMNS, EXPLANATION + without)
    found: dict[str, list[list[Hit]]] = {name: [] for name in ways}
    before: dict[str, list[str]] = {name: [] for name in ways}
    after: dict[str, list[str]] = {name: [] for name in ways}
    for start in range(0, len(cases), BATCH):  # so that what is kept tells of the first cases
        store.progress("asking", start, len(cases))
        for name, question in ways.items():
            questions = [question(case) for case in cases[start : start + BATCH]]
            hits = [store.search(text) for text in questions]
            found[name] += hits
            after[name] += run.answers(questions, hits, name)
            before[name] += run.answers(questions, [[] for _ in questions], f"{name}, before")
    store.progress("asking", len(cases), len(cases))
    for name in ways:
        table.rows += _rows(name, cases, found[name], before[name], after[name])
    return table


class _Run:
    """Edits told to a store, and questions asked of it."""

    def __init__(self, store: EvaluationStore, kept: Kept, answer_tokens: int):
        self.store, self.kept, self.answer_tokens = store, kept, answer_tokens

    def tell(self, cases: Sequence[Edit], others: Sequence[str]) -> None:
        """Remember what is not remembered yet, one after another."""

        if others:
            self.store.memorize(named(others, "others"), cold=True)
        assistant = self.store.assistant
        there = set()
        if assistant.has_store():
            facts = assistant.facts()
            there = {fact.text for fact in facts} | {v.text for f in facts for v in f.history}
        for case in self.store.each(cases, "telling"):
            if case.told not in there:
                assistant.remember(case.told)

    def answers(self, questions: Sequence[str], hits: Sequence[list[Hit]], what: str) -> list[str]:
        """Return greedy answers beside these memories; those that are kept are not made again."""
        assistant = self.store.assistant
        known = conditions(assistant.decoder, assistant.format.config)
        condition = digest([what, known, self.answer_tokens])
        keys = [
            digest([question, [(hit.text, round(hit.score, 4)) for hit in found]])
            for question, found in zip(questions, hits, strict=True)
        ]
        missing = [n for n, key in enumerate(keys) if (condition, key) not in self.kept.outcomes]
        begun = []
        for n in missing:
            conversation, logits, turn = self.store.begin(questions[n], hits[n])
            thinks = assistant.decoder.template.opens_thought(turn.tokens)
            begun.append((conversation, logits, thinks))
        said = answer(assistant.decoder, begun, self.answer_tokens) if begun else []
        for n, text in zip(missing, said, strict=True):
            outcome = Outcome(text, None, 0.0)
            self.kept.add(condition, keys[n], outcome, {"asked": questions[n], "when": what})
        return [self.kept.outcomes[condition, key].said for key in keys]


def _rows(
    name: str,
    cases: Sequence[Edit],
    hits: Sequence[list[Hit]],
    before: Sequence[str],
    after: Sequence[str],
) -> list[dict[str, object]]:
    """Sum up the answers before and after."""
    rows = []
    for when, said in (("before", before), ("after", after)):
        words = [normalize(text) for text in said]
        row: dict[str, object] = {"question": f"{name}, {when}", "n": len(cases)}
        if name != "unrelated":
            for column, right in (
                ("right", [(case.new,) for case in cases]),
                ("old", [case.old for case in cases]),
            ):
                held = [
                    any(holds(text, normalize(one)) for one in answers)
                    for text, answers in zip(words, right, strict=True)
                ]
                row[column] = str(wilson(held))
        if when == "after":
            texts = [{hit.text for hit in found} for found in hits]
            if name != "unrelated":
                there = [case.told in some for case, some in zip(cases, texts, strict=True)]
                row["found"] = str(wilson(there))
            same = [one == other for one, other in zip(words, map(normalize, before), strict=True)]
            row["unchanged"] = str(wilson(same))
        rows.append(row)
    return rows
