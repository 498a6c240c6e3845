"""The command parity: does MLX compute on this machine what PyTorch computes?"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import click

from .options import chosen_model, common_options, example, json_option
from .render import Progress, echo_json, echo_table, note


@click.command(epilog=example("m3mlx parity --quick"))
@click.option("--quick", is_flag=True, help="Compare with what is recorded alone, with no model.")
@json_option
@common_options
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
        echo_json(
            {
                "ok": ok,
                "summary": line,
                "skipped": skipped,
                "results": [_plain({**asdict(result), "ok": result.ok}) for result in results],
            }
        )
    else:
        echo_table(*table(results))
        for what, reason in skipped.items():
            note(f"{what} left out: {reason}")
        click.echo(line)
    if not ok:
        click.get_current_context().exit(1)


def _plain(value: Any) -> Any:
    """JSON has no NaN, which stands for what cannot be compared."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
