"""Commands about the machine: models, doctor."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..config import Options
from ..text import scrub_line
from .options import add_options, command, memory_options, open_assistant
from .render import dim, echo_json, echo_table, human_bytes, note, terminal_width

if TYPE_CHECKING:
    from ..models.inventory import CachedModel, Recommended

_WIDTH = 80  # of text below a table, where the terminal is as wide
LEAST_SPEED = 0.1  # tokens per second that are told apart
_MARKS = {"ok": "ok    ", "note": "note  ", "broken": "BROKEN"}


@command("m3mlx models", cls=click.Group, invoke_without_command=True)
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """Show which models are here, and which fit this machine."""
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
                        "download_bytes": model.download_bytes,
                        "needs_bytes": model.needs_bytes,
                        "tokens_per_second": model.expected_speed,
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
        ("recommended", "download", "memory", "fits", "right", "tok/s", "licence"),
        [
            (
                *(model.name, human_bytes(model.download_bytes), human_bytes(model.needs_bytes)),
                *("yes" if fits else "no", model.answers.replace(" of 100", " %")),
                *(_speed_text(model), model.licence),
            )
            for model, fits in recommended
        ],
        optional=("licence", "download", "tok/s", "right"),
    )
    _echo_default(default)
    text = (
        f"This machine ({inventory.machine()}) has {human_bytes(total)} of memory. A model fits "
        f"if it takes at most two thirds of it; what it takes here is computed from its weights. "
        f"Right are answers to 100 public questions (XQuAD), from five memories. Tokens per second "
        f"were measured here, or follow (≈) from another model's. A model is verified at its "
        f"first use: to 1e-06 means that memories are exact up to a millionth of the largest "
        f"logit. Any other model: --model takes a directory, a built-in name or a hub id."
    )
    dim(_wrapped(text))


def _speed_text(model: Recommended) -> str:
    if (speed := model.expected_speed) is None:
        return ""
    from ..models import rates

    measured = rates.rate(model.name, "answering") is not None
    if speed < LEAST_SPEED:
        return f"<{LEAST_SPEED}"
    return f"{'' if measured else '≈'}{speed:.{0 if speed >= 10 else 1}f}"


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
    return click.wrap_text(scrub_line(text), min(_WIDTH, terminal_width()))


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
    """Check machine, models and store, and say what to do."""
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


@command("m3mlx completion zsh", as_json=False)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print what completes commands and options in a shell.

    Put eval "$(m3mlx completion zsh)" into ~/.zshrc, or the same with bash into ~/.bashrc;
    for fish: m3mlx completion fish > ~/.config/fish/completions/m3mlx.fish"""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made
    program = click.get_current_context().find_root().command
    click.echo(made(program, {}, "m3mlx", "_M3MLX_COMPLETE").source())
