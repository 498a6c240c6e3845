"""Differences, ties and tolerances."""

import math

import numpy as np
import pytest

from m3mlx.parity.cases import TINY
from m3mlx.parity.check import DTYPES, Result, summary, table
from m3mlx.parity.compare import TOLERANCES, compare
from m3mlx.parity.golden import read_golden
from m3mlx.parity.measure import STAGES

CASE = TINY["llama"]


@pytest.fixture
def theirs():
    return read_golden(CASE)[1]


def differing(ours, theirs, dtype="float32"):
    return {d.stage: d for d in compare(CASE, ours.items(), theirs, dtype) if not d.ok}


def copy(arrays):
    return {key: array.copy() for key, array in arrays.items()}


def test_the_tolerances_are_those_that_were_agreed():
    exact = TOLERANCES["float32"]
    for stage in ("logits", "prefill", "loss"):
        assert (exact[stage].most, exact[stage].mean, exact[stage].relative) == (1e-4, 1e-5, False)
    assert exact["gradients"].most == 1e-4 and exact["gradients"].relative
    assert all(set(DTYPES[dtype]) <= set(TOLERANCES[dtype]) for dtype in DTYPES)


def test_equal_results_agree(theirs):
    results = list(compare(CASE, theirs.items(), theirs, "float32"))
    assert [d.stage for d in results if d.ok] == [*dict.fromkeys(k.split("/")[0] for k in theirs)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"selected", "tokens", "queries"}))
def test_a_single_nan_or_infinity_differs(theirs, stage, value):
    ours = copy(theirs)
    key = next(key for key in ours if key.split("/")[0] == stage)
    ours[key] = ours[key].astype(np.float32)
    ours[key].reshape(-1)[0] = value
    assert set(differing(ours, theirs)) == {stage}


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_stage_differs(theirs, stage):
    ours = {key: array for key, array in theirs.items() if key.split("/")[0] != stage}
    assert math.isnan(differing(ours, theirs)[stage].most)
    if stage not in ("selected", "scores reconstruction"):  # without which there is no comparison
        assert math.isnan(differing(theirs, ours)[stage].most)


def test_a_missing_part_of_a_stage_differs(theirs):
    ours = copy(theirs)
    del ours["gradients/model.norm.weight"]
    assert set(differing(ours, theirs)) == {"gradients"}


def test_the_first_layer_that_differs_is_named(theirs):
    ours = copy(theirs)
    ours["read/1"][3, 5] += 1
    ours["read/2"] += 1
    assert differing(ours, theirs)["read"].layer == 1


def selected_instead(theirs, apart):
    """Another token in place of one kept by the first head, whose score is so much lower."""
    ours = copy(theirs)
    kept = ours["selected"][0, :5]
    scores = theirs["scores reconstruction/0"][0, 0]
    place = int(np.argmin(scores[kept]))
    other = next(token for token in range(len(scores)) if token not in kept)
    scores[other] = scores[kept[place]] - apart
    ours["selected"][0, place] = other
    return ours


def test_of_equal_scores_either_token_may_be_kept(theirs):
    ours = selected_instead(theirs, 0)
    found = {d.stage: d for d in compare(CASE, ours.items(), theirs, "float32")}
    assert found["selected"].ok and found["selected"].ties == 2


def test_a_worse_token_may_not_be_kept(theirs):
    found = differing(selected_instead(theirs, 0.1), theirs)["selected"]
    assert (found.most, found.layer) == (1, 0)


def test_an_answer_may_part_at_a_tie_and_nowhere_else(theirs):
    ours = copy(theirs)
    ours["tokens"][100:] = 1
    ours["decoded"][100:] = 9
    assert "tokens" in differing(ours, theirs)
    theirs["decoded"][100] = 5 + 1e-5, 5
    assert not differing(ours, theirs).keys() & {"tokens", "queries", "decoded"}


def test_the_table_and_the_line_show_what_differs(theirs):
    ours = copy(theirs)
    ours["read/1"] += 1
    found = tuple(compare(CASE, ours.items(), theirs, "float32"))
    good = tuple(compare(CASE, theirs.items(), theirs, "float32"))
    results = [Result("mlx cpu", "float32", name, "golden cpu", found) for name in ("one", "two")]
    results.append(Result("mlx metal", "float32", "one", "golden cpu", good))
    head, rows = table(results)
    assert head[1:] == ["mlx cpu float32 / golden cpu", "mlx metal float32 / golden cpu"]
    row = next(row for row in rows if row[0] == "read")
    assert row[1].endswith("DIFFERS from layer 1") and row[2] == "0.0e+00 0.0e+00"
    line = summary(results, {"cuda": "no GPU"})
    assert "1 of 3 comparisons agree; mlx cpu float32 one differs from golden cpu at read" in line
    assert "without cuda" in line and "\n" not in line
