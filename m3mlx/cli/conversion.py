"""The command convert, which passes its arguments to a converter."""

from __future__ import annotations

from pathlib import Path

import click

from .options import command


@command(
    "m3mlx convert checkpoint model --dtype float32",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="SOURCE OUT [FLAGS]...")
def convert(arguments: tuple[str, ...], as_json: bool) -> None:
    """Convert a checkpoint or adapter to mlx-lm's format.

    SOURCE is a folder in Hugging Face layout, a Megatron checkpoint, a LoRA adapter in PEFT layout,
    a file of weights beside its config.json, or a GGUF file. OUT must not exist yet.

    \b
    -q, --q-bits, --q-group-size  quantize
    --dtype                       float16, bfloat16 or float32
    --check, --no-check           compare logits with PyTorch's
    --names FILE                  JSON that maps the names of tensors
    --memory-layers, --tokens-per-head, --prefix, --memories
                                  how a model trained with memories uses them

    python -m convert.from_torch --help and python -m convert.from_gguf --help list all of them.
    """
    if any(Path(argument).suffix == ".gguf" for argument in arguments):
        from convert.from_gguf import main
    else:
        from convert.from_torch import main
    with main.make_context("m3mlx convert", [*arguments, *["--json"] * as_json]) as context:
        main.invoke(context)
