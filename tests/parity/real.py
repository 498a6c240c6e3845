"""A whole model in MLX beside the reference: what ``m3mlx parity`` does where PyTorch is at hand.

MLX computes in float32 and PyTorch in float64, so that only one side's rounding counts. The weights
are read from the directory that m3mlx loads, so that what converted them is compared too.
"""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import torch
from quantities import quantities

from m3mlx.config import MEMORIES, REFERENCE_TOKENS
from m3mlx.demo import DATA
from m3mlx.errors import ModelError
from m3mlx.models.decoder import Decoder, load_decoder
from m3mlx.models.template import Template
from m3mlx.parity.cases import Case
from m3mlx.parity.check import Progress, Result, mlx_result

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
STAGES = (
    "layers",
    "scores reconstruction",
    "selected",
    "keys",
    "values",
    "read",
    "logits",
    "prefill",
    "tokens",
    "decoded",
)
QUESTION = (
    "I was told that something happened to the roof of the observatory last winter, and that "
    "somebody had to come and repair it before the visitors could be let in again. Please tell me "
    "who repaired it, what it cost, and what still has to be done before the next winter comes; "
    "and if the documents say so, on which telescope the work was done, and who keeps its diary."
)


def real_case(decoder: Decoder) -> Case:
    """Documents of the demonstration as memories, and a question that takes several chunks.

    Raises:
        ModelError: the reference does not know the model's family.
    """
    config = json.loads((decoder.path / "config.json").read_text("utf-8"))
    scaled = config.get("rope_scaling") or config.get("use_sliding_window")
    if config["model_type"] not in FAMILIES or scaled or "quantization" in config:
        raise ModelError(
            f"{decoder.name} cannot be compared with PyTorch here: the reference knows "
            f"{', '.join(FAMILIES)} without scaled positions, sliding windows or quantization"
        )
    template = Template(decoder.tokenizer)
    texts = [DATA / "demo" / name for name in ("welcome.md", "night-diary.txt", "telescopes.csv")]
    rows = [template.encode(path.read_text("utf-8"))[:REFERENCE_TOKENS] for path in texts]
    context = template.turn(QUESTION).tokens
    chunks = -(-len(context) // 64)
    reads = [tuple((i + n) % len(rows) for n in range(min(2, MEMORIES))) for i in range(chunks)]
    return Case(
        name=decoder.name,
        config=config,
        counts=tuple(
            tuple((5 * layer + 7 * head) % 17 for head in range(heads))
            for layer, heads in enumerate(decoder.kv_heads)
        ),
        selection="reconstruction",
        key_scale=1.2,
        prefix=template.prefix,
        recite=template.recite,
        references=tuple(map(tuple, rows)),
        context=tuple(context),
        reads=tuple(reads),
        refreshes=(),
        generate=64,
    )


def real_result(
    model: str | None, *, device: str = "cpu", progress: Progress | None = None
) -> Result:
    """Compare one model; a minute for each 100 million weights on two cores.

    Args:
        model: as ``load_decoder`` takes it.
        device: MLX's; PyTorch computes on CUDA where it has it, else on the CPU.

    Raises:
        ModelError: the model cannot be loaded, or the reference does not know its family.
    """
    report = progress or (lambda what, done, total: None)
    decoder = load_decoder(model, progress=progress)
    case = real_case(decoder)
    report("computing with PyTorch", 0, 2)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    files = sorted(decoder.path.glob("model*.safetensors"))
    arrays = {name: x for file in files for name, x in mx.load(str(file)).items()}
    weights = {name: np.array(x.astype(mx.float32)) for name, x in arrays.items()}
    theirs = quantities(case, weights, {}, STAGES, device=kind, dtype=torch.float64)
    del arrays, weights
    report("computing with MLX", 1, 2)
    result = mlx_result(
        case,
        theirs,
        f"torch {kind} float64",
        device=device,
        dtype="float32",
        load=lambda: decoder,
        adapters={},
        stages=STAGES,
    )
    report("computing with MLX", 2, 2)
    return result
