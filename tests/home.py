"""A home folder with tiny models, for tests that run the documented commands."""

import json
from pathlib import Path

import tiny


def tiny_home(folder: Path) -> dict[str, str]:
    """Save tiny models below a folder; return the environment that makes them the default ones."""
    tiny.save_model(folder / "decoder")
    (folder / "decoder" / "memory.json").write_text(json.dumps({"memory_layers": [0, 1]}))
    tiny.save_encoder(folder / "home" / "cache" / "models" / "all-minilm-l6-v2")
    return {
        "M3MLX_HOME": str(folder / "home"),
        "HF_HOME": str(folder / "home"),
        "M3MLX_MODEL": str(folder / "decoder"),
        "M3MLX_STORE": str(folder / "store"),
    }
