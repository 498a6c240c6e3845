"""Differences between two runs of one case, by stage, and their tolerances.

The reasons of ``TOLERANCES``:

float32 rounds to 6e-8 of a value. The values are sums of a hundred products through three layers,
in another order on every machine, with angles of up to 419 radians that float32 knows to 3e-5.
That makes 1e-5 of a value on average, 1e-4 for the largest error of a logit, and before that 2e-5
of the largest value, which grows to thousands in real models. This allows another order of
summation and no other formula: each mutation of ``tests/parity`` is far larger. A gradient passes
through everything twice.

bfloat16 rounds to 4e-3 (2^-8) of a value at every module. Some 40 such errors in a row walk at
random to 4e-3 · √40, or 3 % on average; the largest among ten thousand is four times as far, which
is more than 10 % of its own value but, as large values are less so, at most of the largest value.
PyTorch's own bfloat16 is as far from float64. Training is compared in float32 only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import nan

import numpy as np

from ..config import CHUNK_TOKENS
from ..memory.codec import PADDING
from .cases import Case
from .measure import STAGES

_TINY = 1e-30  # prevents a division by zero


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed differences.

    Attributes:
        most: of any element; relative to the tensor's largest value where ``relative``.
        mean: on average, over the mean absolute value.
    """

    most: float
    mean: float
    relative: bool = False


_HIDDEN = Tolerance(2e-5, 1e-5, relative=True)
_LOGITS = Tolerance(1e-4, 1e-5)
_BFLOAT16 = Tolerance(1e-1, 3e-2, relative=True)

TOLERANCES: dict[str, dict[str, Tolerance]] = {
    "float32": {
        **dict.fromkeys(STAGES, _HIDDEN),
        **dict.fromkeys(("logits", "prefill", "decoded", "loss"), _LOGITS),
        "gradients": Tolerance(1e-4, 1e-4, relative=True),
    },
    "bfloat16": dict.fromkeys(STAGES, _BFLOAT16),
}


@dataclass
class Difference:
    """Difference of one stage between both sides.

    Attributes:
        most, mean: as in ``Tolerance``; of ``selected``, ``tokens`` and ``queries`` the number
            and share of those that differ by more than a tie. NaN where a side lacks a part.
        layer: the first layer that differs, if any.
        ties: tokens chosen differently where both were equally good.
    """

    stage: str
    most: float
    mean: float
    ok: bool
    layer: int | None = None
    ties: int = 0


def compare(
    case: Case,
    ours: Iterable[tuple[str, np.ndarray]],
    theirs: Mapping[str, np.ndarray],
    dtype: str,
    stages: Collection[str] = STAGES,
) -> Iterator[Difference]:
    """Compare stage by stage, in the order of the computation.

    Args:
        ours: from ``measure``; read only as far as differences are taken.
        theirs: the same quantities from the other side.
        dtype: "float32" or "bfloat16", whose tolerances apply.
        stages: those that both sides must have.
    """
    compared = set()
    agreed = case.generate  # tokens before the first tie, after which answers may differ
    for stage, group in groupby(ours, lambda item: item[0].split("/")[0]):
        parts = dict(group)
        if stage not in stages:
            continue
        tolerance = TOLERANCES[dtype][stage]
        compared.add(stage)
        wanted = {key: x for key, x in theirs.items() if key.split("/")[0] == stage}
        if stage in ("decoded", "queries"):
            end = agreed if stage == "decoded" else len(case.chunks) + agreed // CHUNK_TOKENS
            parts, wanted = ({k: x[:end] for k, x in some.items()} for some in (parts, wanted))
        if {k: x.shape for k, x in parts.items()} != {k: x.shape for k, x in wanted.items()}:
            yield Difference(stage, nan, nan, False)
        elif stage == "selected":
            yield _selected(case, parts[stage], theirs, tolerance)
        elif stage == "tokens":
            difference, agreed = _tokens(parts[stage], theirs, TOLERANCES[dtype]["decoded"])
            yield difference
        elif stage == "queries":
            wrong = (parts[stage] != wanted[stage]).any(axis=-1)
            yield Difference(stage, float(wrong.sum()), float(wrong.mean()), not wrong.any())
        else:
            yield _values(stage, parts, wanted, tolerance)
    for stage in stages:
        if stage not in compared:
            yield Difference(stage, nan, nan, False)


def _values(
    stage: str,
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    tolerance: Tolerance,
) -> Difference:
    """Return the worst difference of a stage's parts."""
    worst = Difference(stage, 0.0, 0.0, True)
    for key, expected in theirs.items():
        expected = expected.astype(np.float64)
        apart = np.abs(ours[key].astype(np.float64) - expected)
        size = np.abs(expected)
        most, mean = apart.max(initial=0), apart.mean() / max(size.mean(), _TINY)
        if tolerance.relative:
            most /= max(size.max(initial=0), _TINY)
        ok = bool(most <= tolerance.most and mean <= tolerance.mean)  # not so with NaN
        if not ok and worst.ok and key.split("/")[-1].isdigit():
            worst.layer = int(key.split("/")[-1])
        worst.most, worst.mean = np.fmax(worst.most, most), np.fmax(worst.mean, mean)
        worst.ok = worst.ok and ok
    return worst


def _selected(
    case: Case, ours: np.ndarray, theirs: Mapping[str, np.ndarray], tolerance: Tolerance
) -> Difference:
    """Compare kept tokens as sets; a token on the edge between kept and dropped may be either."""
    wrong = ties = start = 0
    first: int | None = None
    for layer, counts in enumerate(case.counts):
        scores = theirs[f"scores {case.selection}/{layer}"]  # (references, heads, tokens)
        near = tolerance.most * (np.abs(scores).max() if tolerance.relative else 1)
        for head, count in enumerate(counts):
            here = slice(start, start + count)
            start += count
            for row, wanted in enumerate(theirs["selected"][:, here]):
                wanted, got = (set(x[x != PADDING].tolist()) for x in (wanted, ours[row, here]))
                edge = min((scores[row, head, place] for place in wanted), default=0)
                for token in wanted ^ got:
                    if abs(scores[row, head, token] - edge) <= 2 * near:
                        ties += 1
                    else:
                        wrong += 1
                        first = layer if first is None else first
    kept = int((theirs["selected"] != PADDING).sum())
    return Difference("selected", wrong, wrong / kept, not wrong, first, ties)


def _tokens(
    ours: np.ndarray, theirs: Mapping[str, np.ndarray], tolerance: Tolerance
) -> tuple[Difference, int]:
    """Compare an answer's tokens; also return how many there are before the first tie."""
    apart = np.flatnonzero(ours != theirs["tokens"])
    if not len(apart):
        return Difference("tokens", 0.0, 0.0, True), len(ours)
    first = int(apart[0])
    best, second = theirs["decoded"][first]
    if best - second <= 2 * tolerance.most:
        return Difference("tokens", 0.0, 0.0, True, ties=1), first
    return Difference("tokens", len(apart), len(apart) / len(ours), False), first
