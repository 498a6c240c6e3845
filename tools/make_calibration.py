"""Measure the tokens each head needs with an adapter, and save them in the adapter's folder.

    python tools/make_calibration.py m3mlx/data/adapters/smollm2-135m-instruct [--model NAME]

Users of the adapter then need not measure for minutes. Run it again when the adapter, the model
or the samples (m3mlx/data/calibration.jsonl) have changed: the calibration holds for exactly these,
and until then users measure for themselves.
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
