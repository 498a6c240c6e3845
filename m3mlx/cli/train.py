"""Commands that make models read memories better: train, fuse."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import click

from ..errors import M3Error
from ..text import scrub_line
from ..train import Settings
from .options import chosen_model, common_options, example, json_option
from .render import Progress, echo_json, human_bytes, human_seconds, note

# option: type or choices, and what it is for; defaults are those of ``train.Settings``
_OPTIONS: dict[str, tuple[Any, str]] = {
    "output": (click.Path(), "Folder of the adapter; a run that was stopped goes on from there."),
    "valid": (click.Path(), "Questions about other documents, asked before and after."),
    "adapter_path": (click.Path(), "Adapter to begin with."),
    "encoder": (str, "Directory or name of the sentence encoder."),
    "stage": (("continual", "warmup"), "With memories, or without any."),
    "steps": (int, "Updates of the weights."),
    "accumulate": (int, "Batches for each update."),
    "references": (int, "References written in one batch."),
    "questions": (int, "Questions about each of them in one batch."),
    "sequence_tokens": (int, "Length of a text in one batch of lm or keep."),
    "learning_rate": (float, "Of AdamW, between warm-up and decay."),
    "weight_decay": (float, "Of AdamW."),
    "clip": (float, "Maximum gradient norm; 0 disables clipping."),
    "warmup": (float, "Share of the steps in which the learning rate grows."),
    "decay": (float, "Share of the steps in which it falls."),
    "rank": (int, "Of LoRA; 0 trains the weights themselves."),
    "scale": (float, "Of LoRA."),
    "targets": (("attention", "all"), "Parts of each layer that learn."),
    "selection": (("reconstruction", "attention"), "Score that picks the tokens of a memory."),
    "codec": (str, "Read through this quantization, such as k8v8."),
    "memories": (int, "Memories that a question reads, at most."),
    "drop": (float, "Share of questions that read none."),
    "hardness": (float, "Weight of the right answer beside the teacher's opinion."),
    "beta": (float, "Of dpo."),
    "query": (("own", "previous"), "Chunk that retrieves in lm: itself, or the one before."),
    "save_every": (int, "Steps between checkpoints."),
    "eval_every": (int, "Steps between validations; 0 for before and after only."),
    "seed": (int, "Of everything that is drawn."),
}


def _settings_options(command: Any) -> Any:
    defaults = {f.name: None if f.default is MISSING else f.default for f in fields(Settings)}
    for name, (kind, text) in reversed(_OPTIONS.items()):
        command = click.option(
            "--" + name.replace("_", "-"),
            type=click.Choice(kind) if isinstance(kind, tuple) else kind,
            default=defaults[name],
            required=name == "output",
            show_default=defaults[name] is not None,
            help=text,
        )(command)
    return command


@click.command(epilog=example("m3mlx train train.jsonl --output my-adapter --dry-run"))
@click.argument("data", nargs=-1, required=True, metavar="DATA…")
@click.option(
    "--objective",
    "objectives",
    multiple=True,
    metavar="NAME=SHARE",
    help="distill, sft, lm, dpo or keep and its share of the batches; may be repeated.",
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="KIND:N",
    help="Tokens per head to train for, such as calibrated:8 or half:8; may be repeated.",
)
@_settings_options
@click.option("--detach-memories", is_flag=True, help="No gradient from reading into writing.")
@click.option("--checkpoint", is_flag=True, help="Less memory, more time.")
@click.option("--dry-run", is_flag=True, help="Tell what it would take, and stop.")
@json_option
@common_options
def train(
    data: tuple[str, ...],
    objectives: tuple[str, ...],
    budgets: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model to read its memories, and keep what it learned as an adapter.

    DATA are files and folders: JSONL with samples, or any documents. A run that was stopped goes
    on when the same command is given again."""
    from ..train import train

    progress = Progress.of_context()
    if objectives:
        options["objectives"] = _shares(objectives)
    if budgets:
        options["budgets"] = budgets
    try:
        settings = Settings(data=data, model=chosen_model(), **options)
    except M3Error as error:  # all of it was given by flags
        raise click.UsageError(str(error)) from error

    def tell(row: dict[str, Any]) -> None:
        if "valid" in row:
            modes = ", ".join(f"{name} {loss:.3f}" for name, loss in row["valid"].items())
            note(f"step {row['step']}: held-out questions: {modes} nats")
            return
        losses = ", ".join(f"{name} {loss:.3f}" for name, loss in row["loss"].items())
        left = (settings.steps - row["step"]) * row["seconds"]
        note(
            f"step {row['step']} of {settings.steps}: {losses}, rate {row['learning_rate']:.1e}, "
            f"{row['tokens_per_second']:.0f} tokens/s, peak {human_bytes(row['peak_bytes'])}, "
            f"{human_seconds(left)} left"
        )

    def expect(found: Any) -> None:
        note(
            f"about {human_bytes(found.memory_bytes)} of memory and "
            f"{human_seconds(found.seconds)}, beside what the teacher takes once"
        )

    done = train(settings, progress=progress, report=tell, on_estimate=expect, dry_run=dry_run)
    if as_json:
        echo_json({"output": str(done.output), "steps": done.steps, "metrics": done.metrics})
    elif not dry_run:
        click.echo(f"The adapter lies in {scrub_line(str(done.output))}.")


def _shares(given: tuple[str, ...]) -> dict[str, float]:
    shares = {}
    for part in " ".join(given).replace(",", " ").split():
        name, _, share = part.partition("=")
        try:
            shares[name] = float(share or 1)
        except ValueError as error:
            raise click.BadParameter(
                f"{part!r} is not NAME=SHARE.", param_hint="--objective"
            ) from error
    return shares


@click.command(epilog=example("m3mlx fuse adapter merged"))
@click.argument("adapter", metavar="ADAPTER")
@click.argument("output", metavar="DIRECTORY")
@click.option("--dequantize", is_flag=True, help="Keep the exact sum, in a larger file.")
@json_option
@common_options
def fuse(adapter: str, output: str, dequantize: bool, as_json: bool) -> None:
    """Merge an adapter into its model, and write the result as a model directory."""
    from ..models.decoder import fuse_adapter

    progress = Progress.of_context()
    path = fuse_adapter(chosen_model(), adapter, output, dequantize=dequantize, progress=progress)
    if as_json:
        echo_json({"output": str(path)})
    else:
        click.echo(f"The model lies in {scrub_line(str(path))}.")
