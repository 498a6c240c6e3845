"""Make questions about made-up documents, to train a model to read its memories.

    python tools/make_training_data.py OUTPUT [--documents 2000] [--questions 3] [--seed 0]
    python tools/make_training_data.py OUTPUT --answers [--model NAME]

The first writes OUTPUT/train.jsonl, OUTPUT/valid.jsonl and OUTPUT/test.jsonl. Names, numbers, dates
and places are drawn at random, so that no model knows the answers. All templates
(training_templates.txt) are our own writing; validation and test have templates of their own, and
"changed", another value for an answer. The test does not depend on the arguments: 210 questions
about 70 documents. The second lets the model answer every question of train.jsonl with the document
pasted into its prompt, and adds its answer where that is right: a model learns best from what it
would say itself. It takes seconds for each answer on two CPU cores, and resumes after an interrupt.

The same arguments give the same files. Names of the evaluation's documents are not used.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ONSET = "B Br C Cl D Dr F Fr G Gl H J K Kr L M N P Pl R S Sch St T Tr V W Z".split()
NUCLEUS = "a e i o u ai ea oo ie au".split()
CODA = "ck ld lm ln lt mb nd ng nk nt pp rd rk rn rst sk ss st tt x ff zz ll".split()
SURNAME = (
    "er man son ov ini sen well ford ley ham berg ström qvist ard ette oux igan ick ane".split()
)
TOWN = (
    "ton ville mouth stead borg dal field haven wick bury gate cross minster by hausen mar".split()
)
FIRM = "Works|& Sons|Brothers|Trading|Limited|Industries|and Partners|Supply|Instruments".split("|")
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
AMOUNTS = {
    "degrees": (40, 290, "{} degrees"), "kilograms": (12, 4800, "{} kilograms"),
    "metres": (2, 3900, "{} metres"), "years": (3, 2900, "{} years"), "weeks": (2, 11, "{} weeks"),
    "minutes": (4, 190, "{} minutes"), "grams": (15, 870, "{} grams"), "days": (21, 40, "{} days"),
    "megabytes": (64, 4096, "{} megabytes"), "speed": (61, 214, "{} kilometres an hour"),
    "kilometres": (14, 980, "{} kilometres"), "centimetres": (4, 190, "{} centimetres"),
    "seconds": (3, 240, "{} seconds"), "percent": (2, 35, "{} percent"),
    "rooms": (2, 11, "{} rooms"), "number": (7, 9800, "{}"), "year": (1204, 1996, "{}"),
    "cold": (4, 48, "minus {} degrees"), "small": (2, 98, "{}"),
}  # fmt: skip


Fact = tuple[str, ...]  # label, kind of value, sentences, questions, full answers


def read_templates() -> tuple[dict[str, tuple[str, list[Fact]]], set[str], dict[str, list[str]]]:
    """Return domains with their subjects and facts, those held out, and lists of values."""
    domains: dict[str, tuple[str, list[Fact]]] = {}
    held: set[str] = set()
    lists: dict[str, list[str]] = {}
    text = Path(__file__).with_name("training_templates.txt").read_text("utf-8")
    for line in text.splitlines():
        if begin := re.match(r"\[(\w+)(, held out)?\] (.*)", line):
            facts: list[Fact] = []
            domains[begin[1]] = begin[3], facts
            held |= {begin[1]} if begin[2] else set()
        elif values := re.match(r"(\w+) = (.*)", line):
            # bars of a table are written as broken bars
            parts = values[2].replace("\\n", "\n").split("|")
            lists[values[1]] = [part.replace("¦", "|") for part in parts]
        elif line and not line.startswith("#"):
            facts.append(tuple(line.split("; ")))
    return domains, held, lists


DOMAINS, HELD_OUT, LISTS = read_templates()


class Draw:
    """Random values of every kind."""

    def __init__(self, rng: random.Random, forbidden: set[str]):
        self.rng, self.forbidden = rng, forbidden

    def value(self, kind: str) -> str:
        """Return a value that no document of the evaluation has."""
        while True:
            made = getattr(self, f"_{kind}")() if hasattr(self, f"_{kind}") else self._listed(kind)
            if not self.forbidden & set(re.findall(r"[A-Z]\w{3,}", made)):
                return made

    def _listed(self, kind: str) -> str:
        if kind in AMOUNTS:
            low, high, form = AMOUNTS[kind]
            return form.format(self.rng.randint(low, high))
        return self.rng.choice(LISTS[kind])

    def _syllable(self) -> str:
        return self.rng.choice(ONSET) + self.rng.choice(NUCLEUS) + self.rng.choice(CODA)

    def _surname(self) -> str:
        return self._syllable() + self.rng.choice(SURNAME)

    def _person(self) -> str:
        title = self.rng.choice(["", "", "", "", "", "Dr ", "Mrs ", "Mr ", "Professor "])
        first = f"{self.rng.choice(LISTS['first'])} " if title in ("", "Dr ") else ""
        return f"{title}{first}{self._surname()}"

    def _town(self) -> str:
        return self._syllable() + self.rng.choice(TOWN)

    def _river(self) -> str:
        return self._syllable() + self.rng.choice(["e", "a", "er", "is", "ow"])

    _moon = _river

    def _name(self) -> str:
        return self._syllable() + self.rng.choice(["", "a", "o", "el", "is", "ix", "um"])

    def _company(self) -> str:
        return f"{self._surname()} {self.rng.choice(FIRM)}"

    def _street(self) -> str:
        kind = self.rng.choice("Street Lane Road Square Row Hill Alley Quay".split())
        number = self.rng.choice(["", f"{self.rng.randint(2, 99)} "])
        return f"{number}{self._syllable()}{self.rng.choice(['er', 'y', ''])} {kind}"

    def _ship(self) -> str:
        return f"{self.rng.choice(['Lady', 'Captain', 'Northern', 'Old', 'Brave'])} {self._name()}"

    def _title(self) -> str:
        adjective = self.rng.choice(LISTS["adjective"]).title()
        being = self.rng.choice(LISTS["animal"] + LISTS["creature"]).title()
        return f"The {adjective} {being} of {self._town()}"

    def _host(self) -> str:
        kind = "cache store queue index feed gate".split()
        return f"{self._syllable().lower()}_{self.rng.choice(kind)}"

    def _code(self) -> str:
        letters = "".join(self.rng.choices("ABCDEFGHKLMNPRSTVXZ", k=self.rng.randint(1, 3)))
        return f"{letters}{self.rng.choice(['-', '', ' '])}{self.rng.randint(10, 9999)}"

    def _letter(self) -> str:
        return self.rng.choice("ABCDEFGHKLMNPRST")

    def _version(self) -> str:
        return f"{self.rng.randint(0, 9)}.{self.rng.randint(0, 30)}"

    def _time(self) -> str:
        hour = self.rng.randint(1, 12)
        minute = self.rng.choice("00 05 10 15 20 25 30 40 45 50".split())
        return self.rng.choice([f"{hour}.{minute}", f"{hour}:{minute}", f"half past {hour}"])

    def _date(self) -> str:
        day, month = self.rng.randint(1, 28), self.rng.choice(MONTHS)
        return self.rng.choice(
            [f"{day} {month}", f"{month} {day}", f"{day} {month} {self.rng.randint(1991, 2046)}"]
        )

    def _weekday(self) -> str:
        return self.rng.choice(WEEKDAYS)

    def _price(self) -> str:
        coin = self.rng.choice(["crowns", "marks", "euros", "pounds", "dollars", "florins"])
        small = str(self.rng.randint(2, 990))
        large = f"{self.rng.randint(1, 9)},{self.rng.randint(100, 999)}"
        return f"{self.rng.choice([small, large])} {coin}"

    def _address(self) -> str:
        return ".".join(str(self.rng.randint(1, 250)) for _ in range(4))

    def _megahertz(self) -> str:
        return f"{self.rng.randint(88, 107)}.{self.rng.randint(0, 9)} megahertz"

    def _players(self) -> str:
        low = self.rng.randint(2, 4)
        return f"{low} to {low + self.rng.randint(1, 5)} players"

    def _score(self) -> str:
        return f"{self.rng.randint(0, 7)} to {self.rng.randint(0, 7)}"

    def fill(self, pattern: str, **known: str) -> str:
        """Replace {kind} by a value of that kind, and {kind2} by another one."""

        def replace(match: re.Match) -> str:
            name = match[1]
            return known.get(name) or self.value(name if name in known else name.rstrip("2"))

        return re.sub(r"\{(\w+)\}", replace, pattern)


def document(draw: Draw, domain: str, count: int, other: Draw | None = None) -> list[dict]:
    """Make questions about one new document: a dictionary for each line of the file.

    Args:
        other: draws "changed", another value for each answer.
    """
    rng = draw.rng
    subjects, facts = DOMAINS[domain]
    subject = draw.fill(rng.choice(subjects.split("|")))
    chosen = rng.sample(facts, rng.randint(5, 7))
    values: dict[str, str] = {}
    for label, kind, *_ in chosen:
        while (value := draw.value(kind)) in values.values():
            pass
        values[label] = value
    title = subject[0].upper() + subject[1:]
    said, lines, table, bullets = [], [], [], []
    mark = rng.choice(["-", "*", "{}.", "{})"])
    for number, (label, _, sentences, *_) in enumerate(chosen):
        sentence = rng.choice(sentences.split("|")).format(s=subject, v=values[label])
        said.append(_capital(sentence))
        lines.append(f"{label}: {values[label]}")
        table.append(f"| {label} | {values[label]} |")
        bullets.append(f"{mark.format(number + 1)} {_capital(sentence)}")
    if rng.random() < 0.5:
        said.insert(rng.randint(0, len(said)), rng.choice(LISTS["filler"]))
    pattern = rng.choice(LISTS["prose" if rng.random() < 0.7 else "rows"])
    text = draw.fill(
        pattern,
        Title=title,
        title=subject,
        facts=" ".join(said),
        rows="\n".join(lines),
        table="\n".join(table),
        list="\n".join(bullets),
        filler=rng.choice(LISTS["filler"]),
    )
    made = []
    for label, kind, _, questions, answers in rng.sample(chosen, min(count, len(chosen))):
        value = values[label]
        made.append(
            {
                "document": text,
                "question": rng.choice(questions.split("|")).format(s=subject, v=value),
                "answer": value,
                "answers": [_capital(a.format(s=subject, v=value)) for a in answers.split("|")],
                "source": domain,
            }
        )
        if other:
            while (changed := other.value(kind)) in text:
                pass
            made[-1]["changed"] = changed
    return made


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def evaluation_names() -> set[str]:
    """Return the capitalized words of the documents that models are evaluated with."""
    texts = [
        (ROOT / "tests/data/questions.jsonl").read_text("utf-8"),
        (ROOT / "m3mlx/data/calibration.jsonl").read_text("utf-8"),
        (ROOT / "m3mlx/data/demo.json").read_text("utf-8"),
    ]
    common = {*WEEKDAYS, *MONTHS, *"Dear Street Road Lane Row Hill Square Works".split()}
    return {word for text in texts for word in re.findall(r"[A-Z]\w{3,}", text)} - common


def write(output: Path, documents: int, questions: int, seed: int) -> None:
    output.mkdir(parents=True, exist_ok=True)
    forbidden = evaluation_names()
    for name, held, count, each, drawn in (
        ("train", False, documents, questions, seed),
        ("valid", True, max(20, documents // 40), questions, seed),
        ("test", True, 70, 3, "the same for all"),
    ):
        draw = Draw(random.Random(f"{drawn} {name}"), forbidden)
        other = Draw(random.Random(f"{drawn} {name} changed"), forbidden)
        domains = [domain for domain in DOMAINS if (domain in HELD_OUT) == held]
        lines = [
            json.dumps(line, ensure_ascii=False)
            for i in range(count)
            for line in document(draw, domains[i % len(domains)], each, other if held else None)
        ]
        (output / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        print(f"{output}/{name}.jsonl: {len(lines)} questions about {count} documents")


BATCH = 16  # questions answered together


def answer(output: Path, model: str | None) -> None:
    """Add the model's own answers with the document in the prompt, where they are right."""
    from mlx_lm import batch_generate

    import m3mlx  # noqa: F401  (loads a fast BLAS before MLX)
    from m3mlx.files import write_text
    from m3mlx.models.decoder import load_decoder

    decoder = load_decoder(model)
    template = decoder.template
    path, part = output / "train.jsonl", output / "answers.jsonl"
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    done = part.read_text("utf-8").splitlines() if part.exists() else []
    said = [json.loads(line) for line in done]
    with part.open("a", encoding="utf-8") as file:
        while len(said) < len(lines):
            asked = lines[len(said) : len(said) + BATCH]
            prompts = [
                [*template.prefix, *template.turn(f"{q['document']}\n\n{q['question']}").tokens]
                for q in asked
            ]
            made = batch_generate(decoder.model, decoder.tokenizer, prompts, max_tokens=40)
            for text in made.texts:
                said.append(text.strip())
                file.write(json.dumps(text.strip(), ensure_ascii=False) + "\n")
            file.flush()
            print(f"{len(said)} of {len(lines)}", end="\r", flush=True)
    right = 0
    for line, text in zip(lines, said, strict=True):
        whole = text[-1:] in ".!?\"'" or text == line["answer"]  # not cut in the middle
        if whole and line["answer"].lower() in text.lower():
            right += 1
            line["answers"] = [*line["answers"], text]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    part.unlink()
    print(f"{right} of {len(lines)} of the model's own answers are right, and were added")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--questions", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--answers", action="store_true")
    parser.add_argument("--model")
    arguments = parser.parse_args()
    if arguments.answers:
        answer(arguments.output, arguments.model)
    else:
        write(arguments.output, arguments.documents, arguments.questions, arguments.seed)


if __name__ == "__main__":
    main()
