"""The command parity: does MLX compute on this machine what PyTorch computes?"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import click

from .options import add_options, chosen_model, command
from .render import Progress, echo_json, echo_table, note


@command("m3mlx parity --quick")
@add_options(quick="Compare with recorded results only, not with --model.")
def parity(quick: bool, as_json: bool) -> None:
    """Check that MLX computes here what PyTorch computes.

    Tiny models are compared with results recorded from PyTorch, on every device of this machine,
    and --model with PyTorch itself where it is installed. Exit code 1 if anything differs."""
    from ..parity.check import check_golden, devices, reference_side, summary, table

    progress = Progress.of_context()
    found = devices()
    skipped = {device: why for device, why in found.items() if why}
    usable = [device for device in found if device not in skipped]
    results = [result for device in usable for result in check_golden(device, progress)]
    real, why = (None, "left out by --quick") if quick else reference_side()
    if real is None:
        skipped["a whole model"] = why
    else:
        results.append(real.real_result(chosen_model(), device=usable[-1], progress=progress))
    line = summary(results, skipped)
    ok = all(result.ok for result in results)
    if as_json:
        rows = [_without_nan({**asdict(result), "ok": result.ok}) for result in results]
        echo_json({"sound": ok, "summary": line, "skipped": skipped, "results": rows})
    else:
        echo_table(*table(results))
        for what, reason in skipped.items():
            note(f"{what} left out: {reason}")
        click.echo(line)
    if not ok:
        raise click.exceptions.Exit(1)


def _without_nan(value: Any) -> Any:
    """Replace NaN, which marks what cannot be compared, by None: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
