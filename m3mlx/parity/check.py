"""The comparisons that a user's machine can run, and the table of their results."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import numpy as np

from ..config import Progress, no_progress
from ..models.decoder import Decoder, load_decoder
from ..models.inventory import machine
from .cases import TINY, Case, lora, save_case
from .compare import Difference, compare
from .golden import read_golden
from .measure import BFLOAT16_STAGES, STAGES, LoRA, measure

# Full float32 products on GPUs too; MLX reads this once, at its first product.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

DTYPES = {"float32": STAGES, "bfloat16": BFLOAT16_STAGES}  # and what is compared in each
REFERENCE = Path(__file__).parents[2] / "tests" / "parity"


@dataclass(frozen=True)
class Result:
    """One case on one device, compared with another side."""

    device: str
    dtype: str
    case: str
    against: str
    differences: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        return all(difference.ok for difference in self.differences)

    @property
    def column(self) -> str:
        """Its heading in the table."""
        return f"{self.device} {self.dtype} / {self.against}"


def devices() -> dict[str, str | None]:
    """Return MLX's devices, each with the reason why it cannot be used, or None."""
    return {
        "cpu": None,
        "metal": None if mx.metal.is_available() else "this MLX has no Metal, it needs a Mac",
        "cuda": None
        if mx.cuda.is_available()
        else "this MLX has no CUDA, it needs an NVIDIA GPU and the extra cuda13 or cuda12",
    }


@contextmanager
def on_device(name: str) -> Iterator[None]:
    """Compute on the CPU or the GPU until the block ends."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu if name == "cpu" else mx.gpu)
    try:
        yield
    finally:
        mx.set_default_device(before)


def mlx_result(
    case: Case,
    theirs: Mapping[str, np.ndarray],
    against: str,
    *,
    device: str,
    dtype: str,
    load: Callable[[], Decoder] | None = None,
    adapters: LoRA | None = None,
    stages: Collection[str] | None = None,
) -> Result:
    """Compute a case on one device and in one precision, and compare it.

    Args:
        theirs: results of the other side, and ``against`` its name.
        device, dtype: keys of ``devices`` and ``DTYPES``.
        load: makes the decoder; by default that of the tiny case.
        adapters: A and B of each adapted module; by default the tiny case's.
        stages: what is compared; by default all of the precision.
    """
    stages = stages or DTYPES[dtype]
    adapters = lora(case) if adapters is None else adapters
    with on_device(device):
        decoder = load() if load else load_case(case)
        decoder.model.set_dtype(getattr(mx, dtype))
        ours = measure(decoder, case, adapters, theirs["selected"], stages)
        differences = tuple(compare(case, ours, theirs, dtype, stages))
    return Result(f"mlx {device}", dtype, case.name, against, differences)


def load_case(case: Case) -> Decoder:
    """Load the decoder of a tiny case as any other."""
    with tempfile.TemporaryDirectory(prefix="m3mlx-parity-") as folder:
        return load_decoder(save_case(case, Path(folder) / "model"))


def check_golden(device: str, progress: Progress | None = None) -> Iterator[Result]:
    """Compare a device with the golden files, in every precision.

    Raises:
        M3Error: a golden file is missing or damaged.
    """
    progress = progress or no_progress
    what = f"comparing {device} with golden files"
    wanted = [(dtype, case) for dtype in DTYPES for case in TINY.values()]
    for done, (dtype, case) in enumerate(wanted):
        progress(what, done, len(wanted))
        origin, theirs = read_golden(case)
        against = f"golden {origin.kind}"
        yield mlx_result(case, theirs, against, device=device, dtype=dtype)
    progress(what, len(wanted), len(wanted))


def reference_side() -> tuple[ModuleType | None, str]:
    """Return the repository's comparison of whole models with PyTorch, or None and the reason."""
    if importlib.util.find_spec("torch") is None:
        return None, "PyTorch is not installed; add it with: pip install -e '.[parity]'"
    if not (REFERENCE / "real.py").is_file():
        return None, f"{REFERENCE} is not there; install m3mlx from its repository with pip -e"
    if str(REFERENCE) not in sys.path:
        sys.path.append(str(REFERENCE))
    return importlib.import_module("real"), ""


def table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Return column heads and rows: largest and mean difference by stage, and its first layer."""
    worst: dict[tuple[str, str], list[Difference]] = {}
    columns = dict.fromkeys(r.column for r in results)
    for r in results:
        for difference in r.differences:
            worst.setdefault((difference.stage, r.column), []).append(difference)
    rows = [
        [stage, *(_cell(worst.get((stage, column), [])) for column in columns)]
        for stage in STAGES
        if any((stage, column) in worst for column in columns)
    ]
    return ["stage: max, mean", *columns], rows


def _cell(differences: Sequence[Difference]) -> str:
    if not differences:
        return ""
    most = np.max([d.most for d in differences])  # NaN where any is
    mean = np.max([d.mean for d in differences])
    text = f"{most:.1e} {mean:.1e}" if differences[0].stage not in COUNTED else f"{most:.0f}"
    if ties := sum(d.ties for d in differences):
        text += f" ({ties} ties)"
    if not all(d.ok for d in differences):
        layers = [d.layer for d in differences if d.layer is not None]
        text += f" DIFFERS from layer {min(layers)}" if layers else " DIFFERS"
    return text


COUNTED = ("selected", "tokens", "queries")


def summary(results: Sequence[Result], skipped: Mapping[str, str]) -> str:
    """Return one line to report: results, versions and machine."""
    failed = [r for r in results if not r.ok]
    outcome = f"{len(results) - len(failed)} of {len(results)} comparisons agree"
    for r in failed[:3]:
        stage = next(d.stage for d in r.differences if not d.ok)
        outcome += f"; {r.device} {r.dtype} {r.case} differs from {r.against} at {stage}"
    exact = [d for r in results for d in r.differences if r.dtype == "float32"]
    apart = np.max([d.most for d in exact if d.stage == "logits"])
    outcome += f"; float32 logits differ by {apart:.1e} at most"
    against = ", ".join(sorted({r.against for r in results}))
    versions = " ".join(f"{name} {version(name)}" for name in ("m3mlx", "mlx", "mlx-lm"))
    without = f"; without {', '.join(skipped)}" if skipped else ""
    return f"m3mlx parity: {outcome} ({against}{without}); {versions}, {machine()}"
