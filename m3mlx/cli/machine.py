"""Commands about the machine: models, doctor."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..config import Options
from ..text import scrub_line
from .options import add_options, command, memory_options, open_assistant
from .render import dim, echo_json, echo_table, human_bytes, note

if TYPE_CHECKING:
    from ..models.inventory import CachedModel

_WIDTH = 80  # of text below a table
_MARKS = {"ok": "ok    ", "note": "note  ", "broken": "BROKEN"}


@command("m3mlx models", cls=click.Group, invoke_without_command=True)
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """Show which models are here and verified, and which would fit this machine."""
    if ctx.invoked_subcommand:
        return
    from ..models import inventory

    cached, (total, free) = inventory.cached(), inventory.machine_memory()
    recommended = [(model, inventory.fits(model, total)) for model in inventory.RECOMMENDED]
    default = _default()
    if as_json:
        here = {have.name.lower() for have in cached}
        echo_json(
            {
                "cached": [{**asdict(model), "path": str(model.path)} for model in cached],
                "default": default,
                "machine": {"memory_bytes": total, "free_bytes": free},
                "recommended": [
                    {
                        **asdict(model),
                        "needs_bytes": model.needs_bytes,
                        "fits": fits,
                        "cached": model.name.lower() in here,
                    }
                    for model, fits in recommended
                ],
            }
        )
        return
    _echo_cached(cached)
    echo_table(
        ("recommended", "memory", "fits", "licence"),
        [
            (m.name, human_bytes(m.needs_bytes), "yes" if fits else "no", m.licence)
            for m, fits in recommended
        ],
    )
    for model, _ in recommended:
        if model.state != inventory.NOT_MEASURED:
            click.echo(_wrapped(f"{model.name}, {model.state}."))
    click.echo("Answers of the others with explicit memory are not measured.")
    _echo_default(default)
    text = (
        f"This machine ({inventory.machine()}) has {human_bytes(total)} of memory. A model fits if "
        f"it takes at most two thirds of it; what it takes is computed from its weights. A model "
        f"is verified at its first use: to 1e-06 means that memories are exact up to a millionth "
        f"of the largest logit."
    )
    dim(_wrapped(text))


def _echo_cached(cached: list[CachedModel]) -> None:
    """Print the models that are here, then what is wrong with any of them."""
    rows, reasons = [], []
    for model in cached:
        verdict, state = model.verdict, "not yet"
        if model.broken:
            state = "damaged"
            reasons.append(f"{model.name}: {model.broken}.")
        elif model.is_encoder:
            state = "encoder"
        elif verdict and verdict.refused:
            state = "refused"
            reasons.append(verdict.refused)
        elif verdict:
            state = f"to {verdict.difference:.0e}"
        needs = human_bytes(model.needs_bytes) if model.needs_bytes else ""
        rows.append((model.name, human_bytes(model.bytes), needs, state))
    echo_table(("cached", "disk", "memory", "verified"), rows)
    for reason in reasons:
        click.echo(_wrapped(reason))
    click.echo(f"{human_bytes(sum(m.bytes for m in cached))} of models on the disk.\n")


def _echo_default(default: dict[str, str]) -> None:
    click.echo(_wrapped(f"A new store is made with {default['name']} ({default['why']})."))


def _default() -> dict[str, str]:
    from ..models.default import chosen

    name, why = chosen()
    return {"name": name, "why": why}


def _wrapped(text: str) -> str:
    return click.wrap_text(scrub_line(text), _WIDTH)


@command(
    "m3mlx models use smollm2-135m-instruct",
    "m3mlx models use --reset",
    group=models,
)
@click.argument("name", required=False)
@add_options(reset="Forget the choice.")
def use(name: str | None, reset: bool, as_json: bool) -> None:
    """Choose the model of all new stores: a directory, hub id or built-in name."""
    if (name is None) != reset:
        raise click.UsageError("Give either a NAME or --reset.")
    from ..models import default

    if name is None:
        default.forget()
    else:
        default.keep(name)
    if as_json:
        echo_json({"default": _default()})
    else:
        _echo_default(_default())


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
