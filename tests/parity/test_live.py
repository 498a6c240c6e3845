"""MLX beside the reference, which runs here in float64; the models went through the converter."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from m3mlx.parity.cases import TINY, weights
from m3mlx.parity.check import DTYPES

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[parity]'")

from live import live_result, torch_result, truth  # noqa: E402
from quantities import quantities  # noqa: E402


@cache
def exact(name):
    """The truth, once for every device and precision."""
    return truth(TINY[name])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        # MLX is slow in bfloat16 on a CPU, so that one case stands for all there.
        pytest.param(
            name, dtype, marks=[pytest.mark.slow] * (dtype != "float32" and name != "llama")
        )
        for name in TINY
        for dtype in DTYPES
    ],
)
def test_mlx_computes_what_the_reference_computes(name, dtype, device, agree):
    agree(live_result(TINY[name], exact(name), device, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TINY)
def test_the_reference_is_as_exact_in_lower_precision(name, dtype, kind, agree):
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("cuda: this PyTorch sees no CUDA device")
    agree(torch_result(TINY[name], exact(name), kind, dtype))


@pytest.mark.parametrize("name", TINY)
def test_the_case_can_tell_right_from_wrong(name):
    """Memories, refreshes and tokens matter in it, and no stage is empty."""
    case, found = TINY[name], exact(name)
    assert all(array.size and abs(array).max() > 0 for array in found.values())
    answer = found["tokens"].tolist()
    assert len(answer) == case.generate > 2 * 64 + 1
    assert len(set(answer)) > 8
    assert (-np.diff(found["decoded"])).min() > 4e-4  # no token is a toss in float32
    # Another second refresh changes the answer, from the next token on.
    other = replace(case, refreshes=(case.refreshes[0], (0, 1)))
    stages = ("tokens", "decoded", f"scores {case.selection}")
    changed = quantities(other, weights(case), {}, stages)["decoded"] - found["decoded"]
    assert not changed[:129].any() and abs(changed[129:]).max() > 1e-2
