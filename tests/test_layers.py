"""Imports go down the floors only, never in a circle; heavy libraries stay in their rooms."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [  # rooms of m3mlx, and the package convert; a room may use its own floor and those below
    {"", "config", "errors", "files", "text", "models.linux_cpu.openblas"},
    {"documents"},
    {"memory.codec", "store", "convert"},
    {"models", "memory"},
    {"chat", "memorize", "facts", "calibrate", "verify"},
    {"assistant"},
    {"serve", "evaluate", "bench", "inspect", "train", "parity", "export"}
    | {"watch", "sessions", "doctor", "demo"},
    {"cli", "__main__"},
]
GROUND = {"m3mlx", *(f"m3mlx.{room}" for room in FLOORS[0] if room)}


def read(root: Path) -> dict[str, set[str]]:
    """Modules of both packages below a folder, each with the names it imports, also late ones."""
    paths = [path for package in ("m3mlx", "convert") for path in (root / package).rglob("*.py")]
    return {
        module_of(path.relative_to(root)): imported(path, path.relative_to(root))
        for path in paths
        if "data" not in path.relative_to(root).parts
    }


def module_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, relative: Path) -> set[str]:
    """Absolute names of everything that a file imports, also inside functions."""
    package, found = relative.parent.parts, set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = (*base, *node.module.split(".")) if node.module else base
            found |= {".".join((*base, alias.name)) for alias in node.names}
    return found


def arrows(modules: dict[str, set[str]]) -> dict[str, set[str]]:
    """Of each module those of both packages that it imports."""
    drawn = {}
    for module, names in modules.items():
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        drawn[module] = found & modules.keys() - {module}
    return drawn


def circle(drawn: dict[str, set[str]]) -> set[str]:
    """The modules that import each other in circles, or are imported by such and import such."""
    left = dict(drawn)
    while True:
        used = set().union(*left.values())
        ends = {m for m, others in left.items() if not others & left.keys() or m not in used}
        if not ends:
            return set(left)
        left = {m: others for m, others in left.items() if m not in ends}


def floor(module: str) -> int:
    """The floor of the innermost room that a module is in."""
    room = "convert" if module.split(".")[0] == "convert" else module.removeprefix("m3mlx")[1:]
    while True:
        for number, rooms in enumerate(FLOORS):
            if room in rooms:
                return number
        assert "." in room, f"{module} is in no room"
        room = room.rpartition(".")[0]


MODULES = read(ROOT)
ARROWS = arrows(MODULES)


def test_every_room_of_the_plan_is_there():
    rooms = {f"m3mlx.{room}" if room else "m3mlx" for room in set().union(*FLOORS) - {"convert"}}
    assert not rooms - MODULES.keys()
    assert MODULES.keys() > {"convert", "convert.from_torch", "m3mlx.cli"}


def test_nothing_is_imported_in_a_circle():
    assert circle(ARROWS) == set()


def test_a_circle_over_both_packages_is_seen(tmp_path):
    files = {
        "m3mlx/__init__.py": "",
        "m3mlx/models/builtin.py": "def fetch():\n    from convert.from_gguf import convert\n",
        "m3mlx/cli/options.py": "from ..models import builtin\n",
        "m3mlx/errors.py": "",
        "convert/from_gguf.py": "from . import command\n",
        "convert/command.py": "from m3mlx.cli.options import flag\nfrom m3mlx import errors\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    drawn = arrows(read(tmp_path))
    named = {"convert.command", "convert.from_gguf", "m3mlx.cli.options", "m3mlx.models.builtin"}
    assert circle(drawn) == named
    assert circle({**drawn, "convert.command": {"m3mlx.errors"}}) == set()


@pytest.mark.parametrize("number", range(len(FLOORS)))
def test_imports_only_go_down(number):
    here = {module for module in MODULES if floor(module) == number}
    up = [(a, b) for a in sorted(here) for b in sorted(ARROWS[a]) if floor(b) > number]
    assert here and not up


def test_the_converters_need_the_ground_floor_alone():
    needed = {
        other
        for module, others in ARROWS.items()
        if module.startswith("convert")
        for other in others
        if not other.startswith("convert")
    }
    assert needed and needed <= GROUND


def test_heavy_libraries_stay_in_their_rooms():
    for module, names in MODULES.items():
        libraries = {name.split(".")[0] for name in names}
        ours = module.startswith("m3mlx")
        assert not libraries & {"tensorflow", "jax"}, module
        assert not (ours and "torch" in libraries), module
        if ours and floor(module) < 2:
            assert not libraries & {"mlx", "mlx_lm"}, module
        if module.startswith("m3mlx.store"):
            assert not libraries & {"mlx", "mlx_lm"}, module
        else:
            assert not libraries & {"usearch", "sqlite3", "sqlite_utils"}, module
        if not module.startswith(("m3mlx.cli", "convert")):
            assert not libraries & {"click", "rich"}, module


def test_few_modules_stand_beside_the_rooms():
    loose = [path for path in (ROOT / "m3mlx").glob("*.py") if not path.name.startswith("__")]
    assert len(loose) <= 12
