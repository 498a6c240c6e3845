"""Measure how many tokens each head needs with an adapter, and leave that in the adapter's folder.

    python tools/make_calibration.py m3mlx/data/adapters/smollm2-135m-instruct [--model NAME]

Whoever gets the adapter is then spared the minutes that this takes. To be run again when the
adapter, the model or the samples (m3mlx/data/calibration.jsonl) have changed; until then users
measure for themselves, because it holds for exactly these.
"""

from __future__ import annotations

import argparse
import time

from m3mlx.calibrate import save_with_adapter
from m3mlx.models.decoder import load_decoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter")
    parser.add_argument("--model")
    arguments = parser.parse_args()
    start = time.perf_counter()
    path = save_with_adapter(load_decoder(arguments.model, adapter_path=arguments.adapter))
    print(f"{path}, in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
