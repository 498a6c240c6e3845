"""The house: imports go down the layers only, and heavy libraries stay in their rooms."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "m3mlx"
LAYERS = [
    {"errors", "openblas"},
    {"cpu"},
    {"config"},
    {"documents", "template", "plot", "view"},
    {"picture"},
    {"memory.codec", "embed", "store"},
    {"packages"},
    {"memory.cache", "models", "cached"},
    {"memory.write", "memory.parallel", "generate", "memorize"},
    {"memory.calibrate", "editions", "chat"},
    {"assistant", "train"},
    {"evaluate", "demo", "parity", "transfer", "bench", "inspect", "llm_plugin"},
    {"watch", "doctor", "history", "serve"},
    {"cli"},
]
# rooms of several files, one place in the layers
PACKAGES = {"documents", "store", "train", "evaluate", "parity", "bench", "serve", "cli"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "data" not in path.parts)


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return parts[0] if parts and parts[0] in PACKAGES else ".".join(parts)


def layer(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if module in names)


def imports(path: Path) -> set[str]:
    """Absolute names of everything a file imports, also inside functions."""
    package = ["m3mlx", *path.relative_to(PACKAGE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            found |= {".".join([*base, alias.name]) for alias in node.names}
            found.add(".".join(base))
    return found


def own(path: Path) -> set[str]:
    """Modules of ours that a file imports."""
    modules = set()
    for name in imports(path):
        if name.startswith("m3mlx."):
            parts = name.split(".")[1:]
            for length in (2, 1):
                candidate = ".".join(parts[:length])
                if any(candidate in names for names in LAYERS):
                    modules.add(candidate)
                    break
    return modules


def test_every_module_has_its_layer():
    modules = {module_of(path) for path in FILES} - {"", "__main__", "memory", "data"}
    assert modules == set().union(*LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
    module = module_of(path)
    if module in ("", "__main__", "memory"):
        return
    for other in own(path) - {module}:
        assert layer(other) < layer(module), f"{module} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_stay_in_their_rooms(path):
    module = module_of(path)
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"torch", "tensorflow", "jax"}
    if module in ("errors", "config", "openblas", "documents", "template", "store", "packages"):
        assert not roots & {"mlx", "mlx_lm"}
    if module != "store":
        assert not roots & {"usearch", "sqlite3", "sqlite_utils"}
    if module not in ("cli", "__main__"):
        assert not roots & {"click", "rich"}
