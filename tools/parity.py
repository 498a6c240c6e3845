"""Record what PyTorch computes for the parity suite, or compare MLX with it here and now.

    python tools/parity.py record --device cuda     # or cpu: writes tests/parity/golden/*.npz
    python tools/parity.py record hybrid latent     # some cases only
    python tools/parity.py report [--device cuda]   # a table, and one JSON line last

``record`` computes in float32 (TensorFloat-32 off) on the device, and refuses to write what is
further than its tolerance from float64 on the same device. ``report`` takes float64 as the truth
and shows PyTorch's and MLX's devices and precisions beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "parity")]

import torch  # noqa: E402
from live import live_result, torch_result, truth  # noqa: E402
from quantities import quantities  # noqa: E402

from m3mlx.models.inventory import machine  # noqa: E402
from m3mlx.parity.cases import TINY, case_digest, lora, weights  # noqa: E402
from m3mlx.parity.check import DTYPES, Result, devices, summary, table  # noqa: E402
from m3mlx.parity.compare import compare  # noqa: E402
from m3mlx.parity.golden import FOLDER, Origin, write_golden  # noqa: E402
from m3mlx.parity.measure import STAGES  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("record", "report"):
        command = commands.add_parser(name)
        command.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
        if name == "record":
            command.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(TINY))
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("this PyTorch sees no CUDA device; take --device cpu, or a machine with one")
    if arguments.command == "report":
        report(arguments.device)
    else:
        record(arguments.device, arguments.cases or list(TINY))


def record(device: str, names: list[str]) -> None:
    origin = where(device)
    for case in (TINY[name] for name in names):
        exact = truth(case, device)
        found = quantities(
            case,
            weights(case),
            lora(case),
            STAGES,
            device=device,
            dtype=torch.float32,
            selected=exact["selected"],
        )
        wrong = [d for d in compare(case, found.items(), exact, "float32") if not d.ok]
        if wrong:
            sys.exit(f"{case.name} is too far from float64, nothing written: {wrong[0]}")
        path = FOLDER / f"{case.name}.npz"
        write_golden(path, Origin(case=case_digest(case), **origin), found)
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size:,} bytes")
    print(json.dumps(origin))


def where(device: str) -> dict[str, str]:
    """Return the fields of ``Origin`` that all cases share."""
    name, driver = f"CPU {machine().processor}", "none"
    if device == "cuda":
        name = torch.cuda.get_device_name()
        driver = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        driver = driver.splitlines()[0]
    commit = output("git", "rev-parse", "HEAD")
    if output("git", "status", "--porcelain", "--untracked-files=no", "--", "*.py"):
        commit += " with changes"
    return {
        "kind": device,
        "device": name,
        "driver": driver,
        "torch": torch.__version__,
        "precision": "float32",
        "commit": commit,
    }


def output(*command: str) -> str:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def report(device: str) -> None:
    results: list[Result] = []
    for case in TINY.values():
        exact = truth(case, device)
        for dtype in DTYPES:
            results.append(torch_result(case, exact, device, dtype))
            results += [
                live_result(case, exact, name, dtype) for name, why in devices().items() if not why
            ]
    head, rows = table(results)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)))
    skipped = {name: why for name, why in devices().items() if why}
    for name, why in skipped.items():
        print(f"{name} left out: {why}")
    print(summary(results, skipped))
    print(json.dumps({**where(device), "ok": all(r.ok for r in results), "rows": rows}))


if __name__ == "__main__":
    main()
