"""SHA-256 of model files, kept by path, size and time, since weights take long to read."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from .. import files
from ..config import cache_folder


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, computed once."""
    memo_path = cache_folder() / "hashes.json"
    try:
        known = json.loads(memo_path.read_text())
    except (OSError, ValueError):
        known = None
    memo = known if isinstance(known, dict) else {}  # a damaged one is made again
    stat = path.stat()
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    if key not in memo:
        with path.open("rb") as file:
            memo[key] = hashlib.file_digest(file, "sha256").hexdigest()
        with suppress(OSError):  # without the memo it only takes longer
            files.write_text(memo_path, json.dumps(memo, indent=1))
    return memo[key]
