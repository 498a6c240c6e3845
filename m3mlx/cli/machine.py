"""Commands about the machine: models, doctor."""

from __future__ import annotations

from dataclasses import asdict

import click

from ..config import Options
from ..text import scrub_line
from .options import command, memory_options, open_assistant
from .render import dim, echo_json, echo_table, human_bytes, note

_MARKS = {"ok": "ok    ", "note": "note  ", "broken": "BROKEN"}


@command("m3mlx models", cls=click.Group, invoke_without_command=True)
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """Show which models are cached, and which would fit this machine."""
    if ctx.invoked_subcommand:
        return
    from ..models import inventory

    cached, (total, free) = inventory.cached(), inventory.machine_memory()
    recommended = [(model, inventory.fits(model, total)) for model in inventory.RECOMMENDED]
    if as_json:
        echo_json(
            {
                "cached": [{**asdict(model), "path": str(model.path)} for model in cached],
                "machine": {"memory_bytes": total, "free_bytes": free},
                "recommended": [
                    {
                        **asdict(model),
                        "needs_bytes": model.needs_bytes,
                        "fits": fits,
                        "cached": model.name.lower() in {have.name.lower() for have in cached},
                    }
                    for model, fits in recommended
                ],
            }
        )
        return
    echo_table(
        ("cached", "kind", "disk", "state"),
        [(m.name, m.kind, human_bytes(m.bytes), m.broken or "whole") for m in cached],
    )
    click.echo(f"{human_bytes(sum(m.bytes for m in cached))} of models on the disk.\n")
    echo_table(
        ("recommended", "takes about", "fits", "licence", "with explicit memory"),
        [
            (m.name, human_bytes(m.needs_bytes), "yes" if fits else "no", m.licence, m.state)
            for m, fits in recommended
        ],
    )
    dim(
        f"This machine ({inventory.machine()}) has {human_bytes(total)} of memory. A model fits if "
        f"it takes at most two thirds of it; what it takes is estimated from its size."
    )


@command("m3mlx models remove all-minilm-l6-v2", group=models)
@click.argument("name")
def remove(name: str, as_json: bool) -> None:
    """Delete a cached model from the disk."""
    from ..models import inventory

    gone = inventory.remove(name)
    if as_json:
        echo_json({"removed": gone.name, "bytes": gone.bytes})
    else:
        click.echo(f"Removed {scrub_line(gone.name)} ({human_bytes(gone.bytes)})")


@command("m3mlx doctor")
@memory_options("encoder", "adapter_path")
def doctor(options: Options, as_json: bool) -> None:
    """Check the machine, the models and the store, and say what to do."""
    from ..doctor import examine

    with open_assistant(options) as assistant:
        found = examine(assistant)
    broken = [finding for finding in found if finding.state == "broken"]
    if as_json:
        echo_json({"sound": not broken, "findings": [asdict(finding) for finding in found]})
    else:
        width = max(len(finding.part) for finding in found)
        for finding in found:
            mark = _MARKS[finding.state]
            click.echo(f"{mark}  {finding.part:{width}}  {scrub_line(finding.value)}")
            if finding.advice:
                click.echo(f"{'':{len(mark) + width + 4}}{scrub_line(finding.advice)}")
        note("Something is broken." if broken else "Nothing is broken.")
    if broken:
        raise click.exceptions.Exit(1)
