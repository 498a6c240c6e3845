"""Pages, each one HTML file: what memories hold of a document, and what an answer attends to.

A page loads nothing and runs no script. Text of documents, file names and models is scrubbed and
escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..text import scrub

_CELL = 14  # pixels of a head in the map
_STYLE = """
:root { color-scheme: light dark; --ink: #23262b; --paper: #fbfaf7; --raised: #ffffff;
  --line: #e3e0d8; --dim: #5c616a; --kept: 214, 110, 0; --prefix: #7a7f8c; --context: #1a6763; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e4df; --paper: #17191c; --raised: #1f2226;
  --line: #33373d; --dim: #a4a9b2; --kept: 178, 98, 0; --prefix: #9aa0ae; --context: #6fc3bb; } }
* { box-sizing: border-box; }
body { font: 16px/1.6 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink);
  background: var(--paper); max-width: 60rem; margin: 0 auto; padding: 1.6rem 1.4rem;
  overflow-wrap: anywhere; }
h1 { font-size: 1.35rem; line-height: 1.3; letter-spacing: -.01em; margin: 0 0 .4rem; }
h2 { font-size: 1rem; margin: 2rem 0 .5rem; }
p.dim, figcaption, td, th, summary { color: var(--dim); font-size: .85rem; }
.text { white-space: pre-wrap; background: var(--raised); border: 1px solid var(--line);
  border-radius: 12px; padding: .8rem 1rem; unicode-bidi: plaintext; }
.text span { border-radius: 3px; }
figure { margin: 1rem 0; overflow-x: auto; } svg text { fill: var(--dim); font: 10px sans-serif; }
rect.cell { stroke: var(--line); stroke-width: .5; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: start; padding: .2rem .6rem
  .2rem 0; vertical-align: top; } td.number { text-align: end; white-space: nowrap; }
.bar { display: flex; height: 1.1rem; border-radius: 6px; overflow: hidden; margin: .4rem 0; }
.bar div { height: 100%; border-right: 1px solid var(--paper); box-sizing: border-box; }
"""


@dataclass(frozen=True)
class KeptReference:
    """The memory of a reference."""

    place: str  # its citation
    tokens: Sequence[str]  # text of each token; joined, they are the reference's text
    heads: Sequence[int] | None  # that kept each token; None if the memory is not written yet


@dataclass(frozen=True)
class Kept:
    """The memories of a document or of one reference."""

    title: str  # path of the document, with the number of the reference if it is one
    references: Sequence[KeptReference]
    counts: Sequence[Sequence[float]]  # average tokens kept, as counts[layer][KV head]
    most: int  # number of heads in all layers


@dataclass(frozen=True)
class Part:
    """A part of what an answer attends to."""

    name: str  # citation of a memory, "prefix" or "question and answer"
    kind: str  # "memory", "prefix" or "context"
    text: str  # its beginning
    share: float  # of all attention; mean over layers, heads and tokens of the span


@dataclass(frozen=True)
class Span:
    """Up to 64 tokens of an answer that read the same memories."""

    tokens: Sequence[str]  # text of each
    memory: Sequence[float]  # share of each token's attention that falls on memories
    parts: Sequence[Part]


def kept_page(kept: Kept) -> str:
    """Make the page of a document or reference."""
    body = [
        f"<h1>What is kept of {_safe(kept.title)}</h1>",
        f"<p class=dim>The darker a token, the more of the {kept.most} heads keep its key and "
        f"value. A token that no head keeps shows only in the values of others.</p>",
        _map(kept.counts),
    ]
    for number, reference in enumerate(kept.references, 1):
        body.append(f"<h2>{number}. {_safe(reference.place)}</h2>")
        if reference.heads is None:
            body.append(
                "<p class=dim>Its memory has not been written yet; its first use writes it.</p>"
            )
            body.append(f"<div class=text>{_safe(''.join(reference.tokens))}</div>")
            continue
        titles = (f"kept by {heads} of {kept.most} heads" for heads in reference.heads)
        body.append(_text(reference.tokens, reference.heads, max([*reference.heads, 1]), titles))
    return _page(f"m3mlx: what is kept of {kept.title}", body)


def answer_page(question: str, spans: Sequence[Span]) -> str:
    """Make the page of an answer."""
    body = [
        f"<h1>{_safe(question)}</h1>",
        "<p class=dim>The darker a token of the answer, the more it attended to memories. Below "
        "each 64 tokens is what they attended to, as shares of all attention, mean over layers "
        "and heads. The prefix takes the attention that the model spends on nothing else.</p>",
    ]
    top = max([share for span in spans for share in span.memory] + [1e-9])
    first = 1
    for span in spans:
        last = first + len(span.tokens) - 1
        body.append(f"<h2>Tokens {first} to {last}</h2>")
        titles = (f"{share:.1%} of its attention to memories" for share in span.memory)
        body += [_text(span.tokens, span.memory, top, titles), _bar(span.parts)]
        rows = (
            f"<tr><td class=number>{part.share:.1%}</td><td>{_safe(part.name)}</td>"
            f"<td>{_safe(part.text)}</td></tr>"
            for part in span.parts
        )
        body.append(f"<table>{''.join(rows)}</table>")
        first = last + 1
    return _page(f"m3mlx: {question}", body)


def _text(tokens: Sequence[str], values: Sequence[float], top: float, titles: Iterable[str]) -> str:
    """Tokens, each shaded by its value as a share of ``top``."""
    spans = (
        f'<span style="background:rgba(var(--kept),{0.75 * value / top:.2f})" '
        f'title="{_safe(title)}">{_safe(token)}</span>'
        for token, value, title in zip(tokens, values, titles, strict=True)
    )
    return f"<div class=text>{''.join(spans)}</div>"


def _bar(parts: Sequence[Part]) -> str:
    cells = []
    for number, part in enumerate(parts):  # memories come first
        colour = f"var(--{part.kind})"
        if part.kind == "memory":
            colour = f"rgba(var(--kept),{max(0.95 - 0.15 * number, 0.25):.2f})"
        title = _safe(f"{part.name}: {part.share:.1%}")
        width = f"width:{100 * part.share:.2f}%;background:{colour}"
        cells.append(f'<div style="{width}" title="{title}"></div>')
    return f"<div class=bar>{''.join(cells)}</div>"


def _map(counts: Sequence[Sequence[float]]) -> str:
    """Map of the budget: layers to the right, heads downwards, darker for more tokens."""
    heads = max(map(len, counts), default=0)
    top = max([count for layer in counts for count in layer] + [1e-9])
    left, above = 48, 18
    cells = [
        f'<text x="0" y="{above + _CELL * head + 11}">head {head + 1}</text>'
        for head in range(heads)
    ]
    cells += [
        f'<text x="{left + _CELL * layer}" y="12">{layer + 1}</text>'
        for layer in range(0, len(counts), 5)
    ]
    for x, layer in enumerate(counts):
        for y, count in enumerate(layer):
            cells.append(
                f'<rect class=cell x="{left + _CELL * x}" y="{above + _CELL * y}" width="{_CELL}" '
                f'height="{_CELL}" style="fill:rgba(var(--kept),{count / top:.2f})">'
                f"<title>layer {x + 1}, head {y + 1}: {count:.1f} tokens</title></rect>"
            )
    size = f'width="{left + _CELL * len(counts) + 2}" height="{above + _CELL * heads + 2}"'
    return (
        f'<figure><svg {size} role="img">{"".join(cells)}</svg><figcaption>Where the budget lies: '
        f"layers to the right, KV heads downwards; the darkest keep {top:.0f} tokens of a "
        f"reference.</figcaption></figure>"
    )


def _safe(text: str) -> str:
    return html.escape(scrub(text))


def _page(title: str, body: Sequence[str]) -> str:
    content = "\n".join(body)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_safe(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n{content}\n</body></html>\n"
    )
