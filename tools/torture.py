"""Try for long to make a store lose, lie or crash: kills, damage, power cuts, readers.

    python tools/torture.py [--kills 1000] [--faults 600] [--damages 10000] [--strange 3000]
                            [--cuts 10000] [--seconds 120] [--minutes M] [--jobs 2] [--seed 0]
                            [--folder DIR]

Writers are killed at every named step of the order of writing, at calls of the system and at random
moments; calls of Python, and with a C compiler on Linux also those of SQLite and USearch, fail or
write half; files are damaged at random and checked and repaired; files of several moments, copies
and stores are put together, catalogs are crafted, links, pipes, sockets and folders take the places
of files, rights are taken away; each call about a file fails once, whatever a user does; what a
writer does is written down and replayed up to any moment, as after a power cut, with what did not
have to be on the disk left out or torn; four processes read while one writes. Any loss, wrong
answer, crash, hang or unnamed error stops it with exit code 1. Prints a table, and one JSON line
last. The short form of the same harnesses runs with the tests.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from torture import crashes, damages, denials, power, readers, strangers  # noqa: E402
from torture.apart import Apart  # noqa: E402

SHIM = "M3MLX_FAULTS"  # tells the process that it was started with faults.c


def with_faults() -> bool:
    """Start this program again with faults.c loaded, where that can be done."""
    if os.environ.get(SHIM) or sys.platform != "linux" or not shutil.which("cc"):
        return bool(os.environ.get(SHIM))
    built = Path(tempfile.mkdtemp(prefix="m3mlx-faults-")) / "faults.so"
    source = ROOT / "tests" / "torture" / "faults.c"
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(built), str(source), "-ldl"]
    if subprocess.run(command).returncode:
        return False
    environment = {**os.environ, SHIM: "1", "LD_PRELOAD": str(built)}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--faults", type=int, default=600)
    parser.add_argument("--damages", type=int, default=10_000)
    parser.add_argument("--strange", type=int, default=3000, help="stores of odd files")
    parser.add_argument("--cuts", type=int, default=10_000, help="of the power; needs a compiler")
    parser.add_argument("--seconds", type=float, default=120, help="of reading and writing")
    parser.add_argument("--minutes", type=float, help="for all but readers; then stop")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to put the stores")
    arguments = parser.parse_args()
    system = with_faults()
    memory = Path("/dev/shm")  # nothing here tests the disk, so it may as well be fast
    folder = arguments.folder or Path(
        tempfile.mkdtemp(prefix="m3mlx-torture-", dir=memory if memory.is_dir() else None)
    )
    folder.chmod(0o711)  # also those without rights find their way to the stores in it
    kills = (
        {"step": 0.6, "moment": 0.2, "system kill": 0.2} if system else {"step": 0.7, "moment": 0.3}
    )
    faults = {"python": 0.4, "system": 0.6} if system else {"python": 1.0}
    crashing = {kind: round(share * arguments.kills) for kind, share in kills.items()}
    crashing |= {kind: round(share * arguments.faults) for kind, share in faults.items()}
    print("faults of the system:", "yes" if system else "no, that needs Linux and a C compiler")
    started = time.time()
    arguments.until = started + 60 * arguments.minutes if arguments.minutes else math.inf
    report = {}
    work = [
        ("crashes", crashing),
        ("damages", {"damages": arguments.damages}),
        ("strangers", {"strange": arguments.strange}),
        ("denials", {"pairs": denials.PAIRS if arguments.strange else 0}),
    ]
    if system:
        work.append(("power", {"cuts": arguments.cuts}))
    for name, counts in work:
        report[name] = spread(arguments, folder, name, counts)
        for label, count in sorted(report[name].items()):
            print(f"{count:7}  {label}", flush=True)
    if arguments.seconds:
        report["readers"] = readers.torture(made(folder / "readers"), arguments.seconds)
    report["seconds"] = round(time.time() - started)
    shutil.rmtree(folder)
    print(json.dumps(report))
    labels = [label for name, _ in work for label in report[name]]
    sys.exit(any(label.startswith("FAILED") for label in labels))


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def spread(
    arguments: argparse.Namespace, folder: Path, name: str, counts: dict[str, int]
) -> dict[str, int]:
    """Share the work out to processes, each with a seed and a store of its own."""
    tasks = {"crashes": crash, "damages": hurt, "strangers": mix, "denials": deny, "power": cut}
    running = []
    for job in range(arguments.jobs):
        share = {
            kind: count // arguments.jobs + (job < count % arguments.jobs)
            for kind, count in counts.items()
        }
        place = made(folder / f"{name}-{job}")
        seed = arguments.seed * 1000 + job
        running.append(Apart(tasks[name], str(place), share, seed, arguments.until))
    total: Counter[str] = Counter()
    for process in running:
        outcome = process.outcome(24 * 3600)
        if outcome.kind != "returned":
            sys.exit(f"{name}: {outcome.kind}\n{outcome.value}")
        total.update(outcome.value)
    return dict(total)


def crash(folder: str, counts: dict[str, int], seed: int, until: float) -> dict[str, int]:
    done = crashes.torture(Path(folder), counts, seed, told, until)
    return {**done["counts"], **{f"killed at: {at}": n for at, n in done["killed at"].items()}}


def hurt(folder: str, counts: dict[str, int], seed: int, until: float) -> dict[str, int]:
    return outcomes(damages.torture(Path(folder), counts["damages"], seed, told, until), seed)


def mix(folder: str, counts: dict[str, int], seed: int, until: float) -> dict[str, int]:
    return outcomes(strangers.torture(Path(folder), counts["strange"], seed, told, until), seed)


def deny(folder: str, counts: dict[str, int], seed: int, until: float) -> dict[str, int]:
    return outcomes(denials.torture(Path(folder), counts["pairs"], seed, told, until), seed)


def cut(folder: str, counts: dict[str, int], seed: int, until: float) -> dict[str, int]:
    recorder = power.build(Path(folder))
    if recorder is None:
        return {}
    return outcomes(power.torture(Path(folder), counts["cuts"], recorder, seed, told, until), seed)


def outcomes(done: dict, seed: int) -> dict[str, int]:
    """What happened, with failures printed."""
    for failure in done["failures"]:
        print(f"FAILED with seed {seed}: {failure}", file=sys.stderr)
    return done["outcomes"]


def told(kind: str, count: int) -> None:
    if count and count % 50 == 0:
        print(f"{kind}: {count}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
