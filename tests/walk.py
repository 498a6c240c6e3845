"""Put every architecture of mlx-lm through what a user does with a model.

python tests/walk.py NAME...    prints one JSON object for each

A tiny model is written to a folder, loaded, verified, and used by an assistant that memorizes and
answers. It runs in processes of its own, since some architectures end theirs or never return.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO

LIMIT = 150  # seconds for one architecture
BATCH = 8  # architectures for one process, which takes seconds to start
KINDS = {
    "KVCache": "full",
    "RotatingKVCache": "windowed",
    "ChunkedKVCache": "chunked",
    "ArraysCache": "recurrent",
}
WORKER = Path(__file__)
BEGINNING = re.compile(
    r"^.*cannot carry explicit memory: |^.*cannot be loaded by mlx-lm: ", re.DOTALL
)


@dataclass(frozen=True)
class Finding:
    """What became of an architecture.

    Attributes:
        outcome: "verified"; "refused", also where no tiny model of it can be made; or "failed"
            for what must not happen: accepted and failing later, an error that is no ModelError,
            the end of the process, or no end.
        difference: how far memories are from exact, if it was verified.
        reason: why it was refused, or what failed.
        layers: what the layers keep, as m3mlx sees it.
    """

    name: str
    outcome: str
    difference: float | None = None
    reason: str = ""
    layers: str = ""


def walk(names: Iterable[str], processes: int | None = None) -> dict[str, Finding]:
    """Look at architectures in several processes at once."""
    names = list(names)
    batches = [names[at : at + BATCH] for at in range(0, len(names), BATCH)]
    with ThreadPoolExecutor(processes or os.cpu_count()) as pool:
        found = [finding for batch in pool.map(_apart, batches) for finding in batch]
    return {finding.name: finding for finding in sorted(found, key=lambda f: f.name.lower())}


def _apart(names: list[str]) -> list[Finding]:
    """Look at architectures in another process, and in a new one after each that ends it."""
    found: list[Finding] = []
    while len(found) < len(names):
        found += _until_one_fails(names[len(found) :])
    return found


def _until_one_fails(names: list[str]) -> list[Finding]:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER), *names]
    found: list[Finding] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        lines: Queue[str] = Queue()
        Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
        for name in names:
            try:
                line = lines.get(timeout=LIMIT)
            except Empty:
                process.kill()
                return [*found, Finding(name, "failed", reason=f"no end after {LIMIT} s")]
            if not line:
                reason = f"the process ended ({process.wait()})"
                return [*found, Finding(name, "failed", reason=reason)]
            found.append(Finding(**json.loads(line)))
    return found


def _read(output: IO[str], lines: Queue[str]) -> None:
    for line in output:
        lines.put(line)
    lines.put("")


def look(name: str) -> Finding:
    """Look at one architecture in this process."""
    import architectures

    from m3mlx.config import SELECTIONS
    from m3mlx.errors import ModelError
    from m3mlx.models.decoder import load_decoder
    from m3mlx.verify import verify

    difference = None
    with tempfile.TemporaryDirectory() as folder:
        os.environ["M3MLX_HOME"] = folder
        try:
            model = architectures.save(Path(folder) / "model", name)
        except Exception as error:  # an architecture that is not in the table
            return Finding(name, "refused", reason=f"no tiny model is made ({_words(error)})")
        try:
            decoder = load_decoder(str(model))
            difference, layers = verify(decoder), _layers(decoder)
            for selection in SELECTIONS:
                _use(decoder, Path(folder) / selection, selection)
        except ModelError as error:
            if difference is None:
                return Finding(name, "refused", reason=BEGINNING.sub("", str(error)))
            return Finding(name, "failed", reason=f"accepted and refused later: {error}")
        except (Exception, SystemExit) as error:
            stage = "not accepted" if difference is None else "accepted and failed later"
            return Finding(name, "failed", difference, f"{stage}: {_words(error)}")
    return Finding(name, "verified", difference, layers=layers)


def _layers(decoder) -> str:
    """Count the layers of each kind, as "2 windowed, 2 full"."""
    from mlx_lm.models.cache import make_prompt_cache

    from m3mlx.models.caches import keeps_state, leaves

    keeping = iter(decoder.geometry)
    kinds = Counter()
    for cache in leaves(make_prompt_cache(decoder.model)):
        kind = KINDS[type(cache).__name__]
        if not keeps_state(cache) and next(keeping).latent:
            kind = "latent"
        kinds[kind] += 1
    facts = [vars(module).get("_facts") for module in decoder.model.modules()]
    if shared := sum(fact is not None and fact.source is not None for fact in facts):
        kinds["shared"] = shared
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _use(decoder, store: Path, selection: str) -> None:
    """Memorize two documents and ask a question, with as many tokens of each head."""
    from tiny import save_encoder

    from m3mlx import Assistant
    from m3mlx.config import MemorySettings

    encoder = store.with_name("encoder")
    if not encoder.exists():
        save_encoder(encoder)
    layers = tuple(range(decoder.layers))
    decoder = replace(decoder, trained=MemorySettings(layers, 4, selection))  # calibrates nothing
    with Assistant(store=store, decoder=decoder, encoder=str(encoder)) as assistant:
        kites = " ".join(f"Kite {n} is {n * n} feet high." for n in range(9))
        assistant.memorize(contents={"text:kites": kites.encode(), "text:bees": b"Bees hum."})
        answer = assistant.ask("How high is kite 7?", max_tokens=3)
        if not answer.sources:
            raise AssertionError("no memory was read")


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    import mlx.core as mx

    mx.set_default_device(mx.cpu)  # exact float32 everywhere
    output, sys.stdout = sys.stdout, sys.stderr  # mlx-lm prints now and then
    for name in sys.argv[1:]:
        print(json.dumps(asdict(look(name))), file=output, flush=True)
