"""Converted models in MLX, and PyTorch in lower precision, beside the reference in float64."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from quantities import quantities

from convert.architectures import FAMILIES
from convert.from_torch import convert
from m3mlx.models.decoder import Decoder, load_decoder
from m3mlx.parity.cases import Case, lora, save_case, weights
from m3mlx.parity.check import DTYPES, Result, load_case, mlx_result
from m3mlx.parity.compare import compare
from m3mlx.parity.measure import STAGES

TRUTH = "torch float64"


def truth(case: Case, device: str = "cpu") -> dict[str, np.ndarray]:
    """Results of the reference in float64."""
    return quantities(case, weights(case), lora(case), STAGES, device=device)


def converted(case: Case) -> Decoder:
    """The case's checkpoint, converted and loaded."""
    with tempfile.TemporaryDirectory(prefix="m3mlx-parity-") as folder:
        source, out = Path(folder) / "source", Path(folder) / "model"
        convert(save_case(case, source), out, check=False)  # which is what follows
        return load_decoder(out)


def loaded(case: Case) -> Decoder:
    """The case's model, converted if the converter knows its family."""
    known = case.config["model_type"] in FAMILIES
    return converted(case) if known else load_case(case)


def live_result(case: Case, exact: dict[str, np.ndarray], device: str, dtype: str) -> Result:
    """MLX beside the truth."""
    load = partial(loaded, case)
    return mlx_result(case, exact, TRUTH, device=device, dtype=dtype, load=load)


def torch_result(case: Case, exact: dict[str, np.ndarray], device: str, dtype: str) -> Result:
    """PyTorch in another precision beside the truth."""
    ours = quantities(
        case,
        weights(case),
        lora(case),
        DTYPES[dtype],
        device=device,
        dtype=getattr(torch, dtype),
        selected=exact["selected"],
    )
    differences = compare(case, ours.items(), exact, dtype, DTYPES[dtype])
    return Result(f"torch {device}", dtype, case.name, TRUTH, tuple(differences))
