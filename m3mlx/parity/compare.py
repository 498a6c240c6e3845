"""Two runs of one case, side by side: differences by stage, and how large they may be.

The one table of tolerances, ``TOLERANCES``, with its reasons:

float32 rounds to 6e-8 of a value. What stands here is a sum of a hundred products through three
layers, in another order on every machine, with angles of up to 419 radians that float32 knows to
3e-5. That comes to 1e-5 of a value on average, to 1e-4 for the largest error of a logit, and to
2e-5 of the largest value in what lies before, which grows to thousands in real models. There is
room in it for another order of summation and none for another formula: each mutation of
``tests/parity`` is far larger. A gradient passes through everything twice.

bfloat16 rounds to 4e-3 (2^-8) of a value, at every step from one module to the next. Some 40 of
such errors in a row walk at random to 4e-3 · √40, that is 3 % on average; the largest among ten
thousand is four times as far, which is more than 10 % of its own value and, as large values are
less so, of the largest value at most. PyTorch's own bfloat16 is as far from float64, and the suite
shows it. Training is compared in float32 alone.
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

_LEAST = 1e-30  # against a division by zero


@dataclass(frozen=True)
class Tolerance:
    """The most that may differ.

    Attributes:
        most: any element's difference; of the tensor's largest value where ``relative``.
        mean: the mean difference, over the mean of the values' size.
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
    """How far one stage is from what the other side has.

    Attributes:
        most, mean: as ``Tolerance`` has them; of ``selected``, ``tokens`` and ``queries`` the
            number and the share of those that differ by more than a tie. NaN where one side has
            not what the other has.
        layer: the first layer that differs, None where none does or the stage has no layers.
        ties: tokens that fell the other way where both were as good.
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
        ours: what ``measure`` yields; it is read only as far as differences are taken.
        theirs: the same quantities from the other side.
        dtype: "float32" or "bfloat16", whose tolerances apply.
        stages: what both sides must have.
    """
    told = set()
    agreed = case.generate  # tokens up to the first tie, behind which answers go their own ways
    for stage, group in groupby(ours, lambda item: item[0].split("/")[0]):
        parts = dict(group)
        if stage not in stages:
            continue
        tolerance = TOLERANCES[dtype][stage]
        told.add(stage)
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
        if stage not in told:
            yield Difference(stage, nan, nan, False)


def _values(
    stage: str,
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    tolerance: Tolerance,
) -> Difference:
    """The worst of a stage's parts."""
    worst = Difference(stage, 0.0, 0.0, True)
    for key, expected in theirs.items():
        expected = expected.astype(np.float64)
        apart = np.abs(ours[key].astype(np.float64) - expected)
        size = np.abs(expected)
        most, mean = apart.max(initial=0), apart.mean() / max(size.mean(), _LEAST)
        if tolerance.relative:
            most /= max(size.max(initial=0), _LEAST)
        ok = bool(most <= tolerance.most and mean <= tolerance.mean)  # not so with NaN
        if not ok and worst.ok and key.split("/")[-1].isdigit():
            worst.layer = int(key.split("/")[-1])
        worst.most, worst.mean = np.fmax(worst.most, most), np.fmax(worst.mean, mean)
        worst.ok = worst.ok and ok
    return worst


def _selected(
    case: Case, ours: np.ndarray, theirs: Mapping[str, np.ndarray], tolerance: Tolerance
) -> Difference:
    """Tokens kept, as sets; a token on the edge between kept and dropped may be either."""
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
    """Tokens of an answer; and how many there are before the first that was a tie."""
    apart = np.flatnonzero(ours != theirs["tokens"])
    if not len(apart):
        return Difference("tokens", 0.0, 0.0, True), len(ours)
    first = int(apart[0])
    best, second = theirs["decoded"][first]
    if best - second <= 2 * tolerance.most:
        return Difference("tokens", 0.0, 0.0, True, ties=1), first
    return Difference("tokens", len(apart), len(apart) / len(ours), False), first
