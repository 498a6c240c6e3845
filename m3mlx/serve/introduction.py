"""What the page tells about the server: its model, what can be asked, the sample documents.

Runs on the model thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mlx_lm.utils import get_total_parameters

from ..assistant import Assistant
from ..demo import DATA
from ..documents.formats import FORMATS
from ..models.arrays import named_arrays
from ..store import StoredDocument
from . import documents
from .model_thread import Job

QUESTIONS = 3
LOOKED_AT = 12  # documents from which questions are made, the newest
DEMO = "demo:"  # before the names of the sample documents
_HEADING = re.compile(r"^#{1,3} +(.{3,60}?)[ #]*$", re.MULTILINE)
_NAMED = re.compile(r"(?<=[a-zà-ÿ,;] )(?:[A-ZÀ-Þ][\w'’-]+ ){1,2}[A-ZÀ-Þ][\w'’-]+")


def about(assistant: Assistant) -> dict[str, Any]:
    """Describe the models, and what may be uploaded."""
    decoder = assistant.decoder
    weights = named_arrays(decoder.model.parameters())
    return {
        "parameters": get_total_parameters(decoder.model),
        "weight_bytes": sum(array.nbytes for array in weights.values()),
        "context_tokens": decoder.context_tokens,
        "can_think": decoder.template.can_think,
        "memories": assistant.memories,
        "types": sorted(FORMATS),
    }


def questions(assistant: Assistant, found: Sequence[StoredDocument]) -> list[str]:
    """Return questions that some documents may answer, the user's own before the samples."""
    made: dict[str, None] = {}
    own = [each for each in found if each.complete and not each.path.startswith(DEMO)]
    for document in sorted(own, key=lambda each: (each.added, each.id), reverse=True)[:LOOKED_AT]:
        if question := _question(assistant, document):
            made[question] = None
    if len(own) < len(found):
        known = json.loads((DATA / "demo.json").read_text("utf-8"))["questions"]
        made |= dict.fromkeys(each["question"] for each in known)
    return list(made)[:QUESTIONS]


def _question(assistant: Assistant, document: StoredDocument) -> str | None:
    """Return a question about a heading or a name at the beginning of a document."""
    store = assistant.store()
    first = store.references(store.slots_of(document.id)[:1])
    if not first:
        return None
    text, name = first[0].text, documents.plain_name(document.path)
    stem = PurePosixPath(name).stem
    if heading := _HEADING.search(text):
        title = heading[1].strip()
        if title.casefold() != stem.casefold():
            return f"What does {name} say about {title.rstrip('.:')}?"
    if named := _NAMED.search(text):
        return f"What is said about {named[0]}?"
    return f"What is {name} about?"


def memorize_demo(
    assistant: Assistant, job: Job, collection: str | None
) -> Iterator[dict[str, Any]]:
    """Memorize the documents that come with m3mlx; yield the report."""
    files = sorted(file for file in (Path(DATA) / "demo").iterdir() if file.is_file())
    contents = {f"{DEMO}{file.name}": file.read_bytes() for file in files}
    yield from documents.memorize(assistant, job, contents=contents, collection=collection)
