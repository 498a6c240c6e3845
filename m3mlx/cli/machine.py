"""Commands about the machine: models, doctor."""

from __future__ import annotations

from dataclasses import asdict

import click

from ..config import Options
from ..text import scrub_line
from .options import common_options, example, json_option, memory_options, open_assistant
from .render import dim, echo_json, echo_table, human_bytes, note

_MARKS = {"ok": "ok    ", "note": "note  ", "broken": "BROKEN"}


@click.group(invoke_without_command=True, epilog=example("m3mlx models"))
@json_option
@common_options
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """Show which models are cached, and which would fit this machine."""
    if ctx.invoked_subcommand:
        return
    from ..models import inventory as cached

    have, (total, free) = cached.cached(), cached.machine_memory()
    names = {model.name.lower() for model in have}
    advised = [
        {
            "name": model.name,
            "parameters": model.parameters,
            "needs_bytes": model.needs_bytes,
            "fits": cached.fits(model, total),
            "cached": model.name.lower() in names,
            "licence": model.licence,
            "state": model.state,
        }
        for model in cached.RECOMMENDED
    ]
    if as_json:
        echo_json(
            {
                "cached": [{**asdict(model), "path": str(model.path)} for model in have],
                "machine": {"memory_bytes": total, "free_bytes": free},
                "recommended": advised,
            }
        )
        return
    echo_table(
        ("cached", "kind", "disk", "state"),
        ((m.name, m.kind, human_bytes(m.bytes), m.broken or "whole") for m in have),
    )
    click.echo(f"{human_bytes(sum(m.bytes for m in have))} of models on the disk.\n")
    echo_table(
        ("recommended", "takes about", "fits", "licence", "with explicit memory"),
        (
            (
                row["name"],
                human_bytes(row["needs_bytes"]),
                "yes" if row["fits"] else "no",
                row["licence"],
                row["state"],
            )
            for row in advised
        ),
    )
    dim(
        f"This machine ({cached.machine()}) has {human_bytes(total)} of memory; a model fits that "
        f"takes at most two thirds of it. What a model takes is estimated from its size."
    )


@models.command(epilog=example("m3mlx models remove all-minilm-l6-v2"))
@click.argument("name")
@json_option
@common_options
def remove(name: str, as_json: bool) -> None:
    """Take a cached model from the disk."""
    from ..models import inventory as cached

    gone = cached.remove(name)
    if as_json:
        echo_json({"removed": gone.name, "bytes": gone.bytes})
    else:
        click.echo(f"Removed {scrub_line(gone.name)} ({human_bytes(gone.bytes)})")


@click.command(epilog=example("m3mlx doctor"))
@memory_options("encoder", "adapter_path")
@json_option
@common_options
def doctor(options: Options, as_json: bool) -> None:
    """Look at the machine, the models and the store, and say what to do."""
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
