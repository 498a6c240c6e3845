"""Commands that make models read memories better: train, fuse."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click

from ..errors import M3Error
from ..text import scrub_line
from ..train import Settings
from .options import PATH, add_options, chosen_model, command, launched
from .render import Progress, echo_json, human_bytes, human_seconds, note

# help and kind of each option; defaults are those of ``train.Settings``
_OPTIONS: dict[str, tuple[str, Any]] = {
    "valid": ("File of questions for validation, about documents not in DATA.", click.Path()),
    "adapter_path": ("Adapter to start from.", click.Path()),
    "init": (
        "Train all weights and write a model: from a config.json, with random weights, or from "
        "the folder of a model.",
        click.Path(),
    ),
    "tokenizer": ("Its tokenizer: folder or built-in name; without, one is trained on DATA.", str),
    "encoder": ("Sentence encoder: directory or built-in name.", str),
    "stage": ("Train with memories (continual), or without (warmup).", ("continual", "warmup")),
    "steps": ("Number of optimizer steps.", int),
    "accumulate": ("Batches whose gradients are added up for each step.", int),
    "references": ("References written in each batch.", int),
    "questions": ("Questions about each reference in a batch.", int),
    "sequence_tokens": ("Tokens of text in each batch of lm or keep.", int),
    "learning_rate": ("Learning rate of AdamW between warm-up and decay.", float),
    "weight_decay": ("Weight decay of AdamW.", float),
    "clip": ("Maximum gradient norm; 0 disables clipping.", float),
    "warmup": ("Share of the steps in which the learning rate rises from 0.", float),
    "decay": ("Share of the steps, at the end, in which the learning rate falls.", float),
    "rank": ("Rank of LoRA; 0 trains the weights of the layers themselves.", int),
    "scale": ("Scale of LoRA.", float),
    "targets": ("Parts of each layer to train.", ("attention", "all")),
    "selection": ("Score that selects the tokens a memory keeps.", ("reconstruction", "attention")),
    "codec": ("Quantize memories like this in training, such as k8v8.", str),
    "memories": ("Maximum number of memories that a question reads.", int),
    "drop": ("Share of questions that read no memory.", float),
    "hardness": ("Weight of the right answer beside the teacher's, in distill.", float),
    "beta": ("Beta of dpo.", float),
    "query": ("Text that a chunk of lm retrieves with: its own or the last.", ("own", "previous")),
    "save_every": ("Steps between checkpoints.", int),
    "eval_every": ("Steps between validations; 0 validates before and after only.", int),
    "seed": ("Seed of all random choices.", int),
}
_DEFAULTS = {field.name: field.default for field in fields(Settings)}


@command("m3mlx train train.jsonl --output my-adapter --dry-run")
@click.argument("data", nargs=-1, required=True, type=PATH, metavar="DATA…")
@click.option(
    "--output",
    type=click.Path(),
    required=True,
    help="Folder of the result; a stopped run continues from its last checkpoint.",
)
@add_options(
    objective=(
        "distill, sft, lm, dpo or keep, and its share of the batches; may be repeated.",
        ["NAME=SHARE"],
    ),
    budget=(
        "Tokens per head to train for, such as calibrated:8 or half:8 (first half of the layers); "
        "may be repeated.",
        ["KIND:N"],
    ),
    **{name: (*entry, _DEFAULTS[name]) for name, entry in _OPTIONS.items()},
)
@add_options(
    detach_memories="Stop the gradient between reading and writing memories.",
    checkpoint="Recompute layers in the backward pass, to save memory.",
    dry_run="Report the memory and time it would take, and stop.",
)
def train(
    data: tuple[str, ...],
    objective: tuple[str, ...],
    budget: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model to read its memories; make an adapter.

    With --init it is a model. DATA are files and folders: JSONL with samples, or any
    documents. A run that was stopped continues when the same command is given again."""
    from ..train import train

    progress = Progress.of_context()
    if objective:
        options["objectives"] = _shares(objective)
    if budget:
        options["budgets"] = budget
    try:
        model = None if options["init"] else chosen_model()
        settings = Settings(data=data, model=model, **options)
    except M3Error as error:  # every setting comes from a flag
        raise click.UsageError(str(error)) from error

    def report(row: dict[str, Any]) -> None:
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

    def announce(found: Any) -> None:
        teacher = "" if settings.init else ", besides the teacher, which runs once"
        note(
            f"about {human_bytes(found.memory_bytes)} of memory and "
            f"{human_seconds(found.seconds)}{teacher}"
        )

    if (ranks := launched()) and ranks.rank:  # rank 0 says and writes everything
        train(settings, dry_run=dry_run)
        return
    done = train(settings, progress=progress, report=report, on_estimate=announce, dry_run=dry_run)
    if as_json:
        echo_json({"output": str(done.output), "steps": done.steps, "metrics": done.metrics})
    elif not dry_run:
        kind = "model" if settings.init else "adapter"
        click.echo(f"The {kind} is in {scrub_line(str(done.output))}.")


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


@command("m3mlx fuse adapter merged")
@click.argument("adapter", type=PATH, metavar="ADAPTER")
@click.argument("output", type=PATH, metavar="DIRECTORY")
@add_options(dequantize="Write full precision, not quantized again: exact, and a larger file.")
def fuse(adapter: str, output: str, dequantize: bool, as_json: bool) -> None:
    """Merge an adapter into its model."""
    from ..models.decoder import fuse_adapter

    progress = Progress.of_context()
    path = fuse_adapter(chosen_model(), adapter, output, dequantize=dequantize, progress=progress)
    if as_json:
        echo_json({"output": str(path)})
    else:
        click.echo(f"The model is in {scrub_line(str(path))}.")
