"""What verification found of each model, kept in the cache folder beside the calibrations.

``m3mlx.verify`` keeps how exact a model is, one file for each; why one is refused is kept here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx

from .. import files
from ..config import FORMAT_VERSION, cache_folder, digest
from ..errors import RefusedError


@dataclass(frozen=True)
class Verdict:
    """What verification found.

    Attributes:
        difference: how far memories are from exact, as a share of the largest logit; 0 for a
            model that is refused.
        refused: why, or "".
    """

    difference: float
    refused: str = ""


def conditions() -> dict[str, Any]:
    """Return what a verdict depends on beside the model: device, record format and versions."""
    return {
        "device": mx.default_device().type.name,  # its text lacks the number in some processes
        "format": FORMAT_VERSION,
        "versions": [version(name) for name in ("m3mlx", "mlx", "mlx-lm")],
    }


@contextmanager
def refusals_kept(name: str) -> Iterator[None]:
    """Keep why a model is refused, if the block refuses it."""
    try:
        yield
    except RefusedError as error:
        kept = {"model": name, **conditions(), "refused": str(error)}
        with suppress(OSError):  # the error itself tells more than a full disk
            files.write_text(_folder() / f"{digest(['refused', name])[:32]}.json", json.dumps(kept))
        raise


def verdict_of(name: str, since: float = 0.0) -> Verdict | None:
    """Return the newest verdict on a model, None if it was not verified as things are now.

    Args:
        name: as it was given to ``load_decoder``.
        since: time of the last change of its files; what is older is about other files.
    """
    now, newest, found = conditions(), since, None
    for path in _folder().glob("*.json"):
        try:
            kept, time = json.loads(path.read_text("utf-8")), path.stat().st_mtime
            if str(kept["model"]).lower() != name.lower() or not now.items() <= kept.items():
                continue
            if refused := kept.get("refused"):
                verdict = Verdict(0.0, str(refused))
            else:
                verdict = Verdict(float(kept["difference"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # damaged: as if it were not there, and made anew
        if time >= newest:
            newest, found = time, verdict
    return found


def _folder() -> Path:
    return cache_folder() / "verified"
