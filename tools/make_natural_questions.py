"""Make questions about natural text, to train a model to read its memories, and to judge it.

    python tools/make_natural_questions.py OUTPUT.jsonl SOURCE… --parser FOLDER [--avoid FILE…]

A source is a folder or file that `memorize` reads, a JSON object of titles and entries with an
``extract``, or a dictionary of dictd (``.dict.dz``). Rules turn a sentence into a question and a
short answer that stands in the text word for word: who or what did it, when, where, how many, what
it is, what for. They follow a dependency parse by spaCy (https://spacy.io, version 3.8), which is
not among the requirements; FOLDER is an unpacked model such as en_core_web_sm. In an encyclopedia
"it", "he" and "she" are its title. ``answers`` has the short answer twice and the sentence once,
so that at least two thirds of what is learned is short.

``--avoid`` names files of evaluations (JSON, JSON lines, perhaps with gzip; or titles, one a line):
a passage is dropped if its title is one of theirs or occurs five times in one of their texts, or if
it has eight words in a row of them.

The same arguments give the same file. About one question in six makes no good English; read those
that you judge by.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

WORDS_IN_A_ROW = 8  # that no passage shares with a text of an evaluation
LEAST, MOST = 200, 620  # characters of a passage, mostly one reference
EACH = 3  # questions about one passage
VAGUE = {"this", "that", "these", "those", "such", "it", "they", "he", "she", "we", "you", "i"}
VAGUE |= {"there", "who", "which", "one", "some", "many", "most", "its", "their", "his", "her"}
VAGUE |= {"others", "other", "another", "both", "all", "what", "our", "my", "your", "us", "them"}
UNCLEAR = {"it", "this", "these", "he", "she", "they", "we", "you", "i", "following"}
PLACES, TIMES = {"GPE", "LOC", "FAC"}, {"DATE", "TIME"}
PEOPLE = {"he", "she"}
KEPT = {"prep", "dobj", "prt", "agent", "acomp", "attr", "oprd"}  # parts of a clause
AFTER = {"from", "to", "for", "with", "on", "as"}  # what stands at the end of a question
ENDS = {",", ";", ":", "(", "–", "—", "["}  # of a phrase
SENTENCE = 160  # characters of a sentence that is an answer, at most


# --- passages


def passages(path: Path) -> Iterator[tuple[str, str]]:
    """Yield title, "" where the subject of a passage is unknown, and text."""
    if path.suffix == ".json":
        for title, entry in json.loads(path.read_text("utf-8")).items():
            yield title, entry["extract"]
    elif path.name.endswith(".dict.dz"):
        for entry in re.split(r"\n(?=\S)", gzip.decompress(path.read_bytes()).decode("utf-8")):
            title, _, text = entry.partition("\n")
            text = re.sub(r"[{}]|<[^>]*>|\[[^]]*\]|\([\d-]+\)", "", text)
            yield from ((title.strip(), f"{title}. {part}") for part in _parts(text))
    else:
        from m3mlx.documents import find, read
        from m3mlx.errors import DocumentError

        for file in find([path]):
            if not isinstance(file, DocumentError):
                yield from (("", part) for part in _parts(read(file).text))


def _parts(text: str) -> Iterator[str]:
    """Join paragraphs of prose up to the length of a passage."""
    made = ""
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split())
        if not re.match(r"[A-Z].{60,}[.!?]$", paragraph) or re.search(r"[|=<>\\{}]|::", paragraph):
            continue
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph):
            if len(made) + len(sentence) > MOST:
                yield made
                made = ""
            made += f"{' ' if made else ''}{sentence}"
        if len(made) >= LEAST:
            yield made
            made = ""


class Avoided:
    """Titles and texts of evaluations."""

    def __init__(self, files: Sequence[Path]):
        self.titles: set[str] = set()
        self.runs: set[str] = set()
        self.often: set[str] = set()
        for file in files:
            data = file.read_bytes()
            text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")
            if file.suffix == ".txt":
                self.titles |= {line.strip().lower() for line in text.splitlines()}
                continue
            try:
                self._add(json.loads(text))
            except ValueError:
                for line in text.splitlines():
                    self._add(json.loads(line))

    def _add(self, value: Any, key: str = "") -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                self._add(item, name)
        elif isinstance(value, list):
            for item in value:
                self._add(item, key)
        elif isinstance(value, str):
            if key in ("title", "subject"):
                self.titles.add(value.lower())
            words = _words(value)
            self.runs.update(_runs(words))
            for size in range(1, 5) if len(words) > 400 else ():
                names = sorted(" ".join(words[i : i + size]) for i in range(len(words)))
                self.often |= {n for n, group in groupby(names) if len(list(group)) >= 5}

    def __call__(self, title: str, text: str) -> bool:
        short = re.sub(r" \(.*", "", title.lower())
        named = {title.lower(), short} & self.titles or " ".join(_words(short)) in self.often
        return bool(named) or any(run in self.runs for run in _runs(_words(text)))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(words: Sequence[str]) -> Iterator[str]:
    last = len(words) - WORDS_IN_A_ROW + 1
    return (" ".join(words[i : i + WORDS_IN_A_ROW]) for i in range(last))


# --- questions


def ask(doc: Any, title: str) -> Iterator[dict[str, str]]:
    """Yield questions about a parsed passage, with their short answers and sentences."""
    yield from _life(doc, title)
    for sentence in doc.sents:
        if 6 <= len(sentence) <= 45 and sentence[-1].text == "." and sentence[0].is_title:
            root = sentence.root
            subject = next((t for t in root.children if t.dep_ in ("nsubj", "nsubjpass")), None)
            if root.pos_ in ("VERB", "AUX") and subject is not None and subject.i < root.i:
                for question, answer in _Clause(root, subject, title).questions():
                    yield {"question": question, "answer": answer, "sentence": sentence.text}


def _life(doc: Any, title: str) -> Iterator[dict[str, str]]:
    day = r"\d{1,2} \w+ \d{3,4}|\w+ \d{1,2}, \d{4}|\d{4}"
    if match := re.match(rf"[^(.]{{4,60}} \(.*?({day}) [–-] ({day})\) was an? ", doc.text):
        asked = (f"When was {title} born?", "was born"), (f"When did {title} die?", "died")
        for (question, said), date in zip(asked, match.groups(), strict=True):
            sentence = f"{title} {said} {'on' if ' ' in date else 'in'} {date}."
            yield {"question": question, "answer": date, "sentence": sentence}


class _Clause:
    """The main clause of a sentence."""

    def __init__(self, root: Any, subject: Any, title: str):
        self.root, self.doc = root, root.doc
        self.title, self.pronoun = title, subject.lower_ if subject.pos_ == "PRON" else ""
        self.head = subject
        self.span = _phrase(subject)
        self.passive = subject.dep_ == "nsubjpass"
        self.helpers = [t for t in root.lefts if t.dep_ in ("aux", "auxpass", "neg")]

    @property
    def subject(self) -> str:
        """Its words, with the title for a pronoun; "" where it is vague."""
        if self.pronoun in ("it", *PEOPLE) and self.title:
            return self.title
        words = self.span.text
        first = self.span[0]
        if first.lower_ in VAGUE or len(self.span) > 9 or self.pronoun or "(" in words:
            return ""
        named = any(t.pos_ == "PROPN" for t in self.span)
        full = sum(t.pos_ in ("NOUN", "ADJ", "NUM", "PROPN") for t in self.span)
        told = named or first.lower_ in ("a", "an") or full > 2
        if not told and (not self.title or self.title.lower() not in words.lower()):
            return ""
        return words if named and first.pos_ == "PROPN" else words[0].lower() + words[1:]

    def questions(self) -> Iterator[tuple[str, str]]:
        if any(t.dep_ == "neg" for t in self.root.children):
            return
        yield from self._about_subject()
        if not self.subject:
            return
        used = self.root.lemma_ == "use" and self.passive
        for part in self.root.rights:
            if part.dep_ == "attr" and self.root.lemma_ == "be" and not self.helpers:
                yield from self._definition(part)
            elif part.dep_ == "dobj":
                yield from self._object(part)
            elif part.dep_ in ("prep", "agent"):
                yield from self._circumstance(part)
            elif used and part.dep_ in ("xcomp", "advcl") and part.left_edge.lower_ == "to":
                yield self._asked("What", leave=part, end=" for"), _phrase(part).text

    def _about_subject(self) -> Iterator[tuple[str, str]]:
        person = self.head.ent_type_ == "PERSON"
        if self.pronoun or len(self.span) > 7 or self.span[0].lower_ in VAGUE:
            return
        if not person and self.head.ent_type_ not in ("ORG", *PLACES, "PRODUCT", "WORK_OF_ART"):
            return
        rest = self._rest(None)
        if 4 <= len(rest.split()) <= 16 and self.root.lemma_ != "be":
            start = self.helpers[0] if self.helpers else self.root
            if start.i == self.span.end:
                yield f"{'Who' if person else 'What'} {rest}?", self.span.text

    def _definition(self, part: Any) -> Iterator[tuple[str, str]]:
        phrase = _phrase(part)
        if part.pos_ in ("NOUN", "PROPN") and 2 <= len(phrase) <= 12:
            person = self.head.ent_type_ == "PERSON" or self.pronoun in PEOPLE
            yield f"{'Who' if person else 'What'} {self.root.text} {self.subject}?", phrase.text

    def _object(self, part: Any) -> Iterator[tuple[str, str]]:
        phrase = _phrase(part)
        if phrase[0].lower_ in VAGUE or part.pos_ == "PRON" or len(phrase) > 9:
            return
        number = next((t for t in part.lefts if t.dep_ == "nummod"), None)
        if number is not None and phrase[0].i >= number.i - 2 and number.lower_ != "one":
            noun = self.doc[number.i + 1 : phrase.end].text
            if 0 < len(noun.split()) <= 4:
                yield self._asked(f"How many {noun}", leave=part), number.text
                return
        yield self._asked("Who" if part.ent_type_ == "PERSON" else "What", leave=part), phrase.text

    def _circumstance(self, part: Any) -> Iterator[tuple[str, str]]:
        place = next((t for t in part.children if t.dep_ == "pobj"), None)
        if place is None or place.pos_ == "PRON":
            return
        phrase, word = _phrase(place), part.lower_
        if phrase[0].lower_ in VAGUE or len(phrase) > 9:
            return
        kind = place.ent_type_ or next((t.ent_type_ for t in phrase if t.ent_type_), "")
        if part.dep_ == "agent":
            person = place.ent_type_ == "PERSON"
            yield self._asked("Who" if person else "What", leave=part, end=" by"), phrase.text
        elif kind in TIMES and word in ("in", "on", "at"):
            year = re.fullmatch(r"\d{4}", phrase.text) and place.i % 2
            yield self._asked("In what year" if year else "When", leave=part), phrase.text
        elif kind in PLACES and word in ("in", "at", "near", "on"):
            yield self._asked("Where", leave=part), phrase.text
        elif word in AFTER and kind not in TIMES and part.i == self.root.i + 1:
            who = "Who" if place.ent_type_ == "PERSON" else "What"
            yield self._asked(who, leave=part, end=f" {word}"), phrase.text

    def _asked(self, what: str, leave: Any, end: str = "") -> str:
        """Return a question with the first helper, or a form of do, before the subject."""
        if self.helpers or self.root.lemma_ == "be":
            helper = self.helpers[0] if self.helpers else self.root
            rest = self._rest(leave, after=helper)
        else:
            past = self.root.tag_ == "VBD"
            helper = "did" if past else "does" if self.root.tag_ == "VBZ" else "do"
            rest = f"{self.root.lemma_} {self._rest(leave, after=self.root)}"
        return f"{what} {helper} {self.subject} {rest.strip()}".strip() + f"{end}?"

    def _rest(self, leave: Any, after: Any = None) -> str:
        """Return the clause behind its subject or a helper, without one part."""
        start = after.i + 1 if after is not None else self.span.end
        keep = set()
        for part in [*self.helpers, self.root, *self.root.rights]:
            if part in (self.root, *self.helpers):
                keep.add(part.i)
            elif part != leave and part.dep_ in KEPT:
                keep |= {t.i for t in _phrase(part)}
        kept = [t for t in self.doc[start : self.root.sent.end] if t.i in keep]
        last = {t.i for t in kept if t.i + 1 not in keep}
        rest = "".join(t.text_with_ws + " " * (t.i in last) for t in kept)
        return rest.replace("  ", " ").strip()


def _phrase(token: Any) -> Any:
    """Return the words of a phrase up to a comma, bracket or clause behind it."""
    start, end = token.left_edge.i, token.right_edge.i + 1
    for other in token.doc[token.i + 1 : end]:
        if other.text in ENDS or other.dep_ == "cc":
            end = min(end, other.i)
        elif other.dep_ == "relcl":
            end = min(end, max(other.left_edge.i, token.i + 1))
    return token.doc[start:end]


def usable(text: str, question: str, answer: str) -> bool:
    """Return whether a question asks for one place of the text, and does not give it away."""
    words, said = _words(question), _words(answer)
    return (
        5 <= len(question.split()) <= 20
        and 0 < len(said) <= 10
        and len(answer) > 1
        and text.count(answer) == 1
        and not re.search(r"[()\[\]\"“”;:*_`]|\s[,.?]|  |,\?|%", question + answer)
        and not {w for w in said if len(w) > 3} & set(words)
        and not set(words) & UNCLEAR
    )


def make(sources: Sequence[Path], parser: Path, avoid: Sequence[Path], count: int) -> list[dict]:
    """Return up to ``count`` passages of each source with their questions, evenly drawn."""
    import spacy

    parse, avoided, lines = spacy.load(parser), Avoided(avoid), []
    for source in sources:
        found = [
            (text, title)
            for title, text in dict.fromkeys(passages(source))
            if LEAST <= len(text) <= MOST and not avoided(title, text)
        ]
        random.Random(0).shuffle(found)
        made = 0
        for doc, title in parse.pipe(found, as_tuples=True, batch_size=64):
            rng, chosen, seen = random.Random(doc.text), [], set()
            asked = [q for q in ask(doc, title) if usable(doc.text, q["question"], q["answer"])]
            for entry in rng.sample(asked, len(asked)):
                if entry["answer"] not in seen and len(chosen) < EACH:
                    seen.add(entry["answer"])
                    chosen.append(entry)
            for entry in chosen if len(chosen) > 1 else ():
                answer = entry["answer"][0].upper() + entry["answer"][1:]
                answers = [f"{answer}."]
                if len(entry["sentence"]) <= SENTENCE:
                    answers.append(entry["sentence"])
                line = {"document": doc.text, "question": entry["question"]}
                lines.append({**line, "answer": entry["answer"], "answers": answers})
                lines[-1]["source"] = source.name
            made += len(chosen) > 1
            if made == count:
                break
        print(f"{source}: questions about {made} passages")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--parser", type=Path, required=True)
    parser.add_argument("--avoid", action="append", default=[], type=Path)
    parser.add_argument("--count", type=int, default=500, help="passages of each source")
    arguments = parser.parse_args()
    lines = make(arguments.sources, arguments.parser, arguments.avoid, arguments.count)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    arguments.output.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
