"""Golden files: what PyTorch computed for the tiny cases.

One compressed NumPy file for each case. Its header names device, driver, PyTorch's version,
precision and commit, and the digest of the case, so that a file of another case is an error and
not a difference.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ..errors import M3Error
from .cases import Case, case_digest

FOLDER = Path(__file__).parents[1] / "data" / "parity"


@dataclass(frozen=True)
class Origin:
    """The origin of a golden file's numbers.

    Attributes:
        kind: "cuda" or "cpu".
        device, driver: the device's name, and its driver's version, "none" for a CPU.
        torch, precision, commit: PyTorch's version, "float32", and this repository's commit.
        case: the digest of the case.
    """

    kind: str
    device: str
    driver: str
    torch: str
    precision: str
    commit: str
    case: str

    def __str__(self) -> str:
        return f"torch {self.torch}, {self.device}, {self.precision}, commit {self.commit[:8]}"


def write_golden(path: Path, origin: Origin, arrays: Mapping[str, np.ndarray]) -> None:
    """Write one file; floats become float32."""
    small: dict[str, Any] = {
        key: array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int16)
        for key, array in arrays.items()
    }
    header = np.frombuffer(json.dumps(asdict(origin)).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez_compressed(file, origin=header, **small)


def read_golden(case: Case, folder: Path = FOLDER) -> tuple[Origin, dict[str, np.ndarray]]:
    """Read the golden file of a case.

    Raises:
        M3Error: it is missing, damaged, or of another case.
    """
    path = folder / f"{case.name}.npz"
    again = "record it again with: python tools/parity.py record"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        origin = Origin(**json.loads(arrays.pop("origin").tobytes()))
    except (OSError, ValueError, KeyError, TypeError, BadZipFile, zlib.error) as error:
        raise M3Error(f"{path} is no golden file ({error}); {again}") from error
    if origin.case != case_digest(case):
        raise M3Error(f"{path} was recorded for another model or text than m3mlx has now; {again}")
    return origin, arrays
