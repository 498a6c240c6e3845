"""README, docs/ and CONTRIBUTING.md are true: commands run, links work, lists are complete."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from home import tiny_home

from m3mlx.cli import main

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]
}
README = PAGES["README.md"]
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
GENERATED = "docs/cli.md"
NOTE = "# Boiler\n\nThe boiler was serviced by Ada Quill on the ninth of May.\n"
QUESTION = "Who serviced the boiler?\n/quit\n"

every_page = pytest.mark.parametrize("page", PAGES)


def blocks(page: str, language: str) -> list[str]:
    """Code blocks of a page in a language; "" for those without one."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)
    return [code for kind, code in found if kind == language]


def lines(page: str, start: str) -> list[str]:
    """Lines of the page's shell blocks that start with a word. They are run in this order."""
    found = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [words for line in found if (words := line.split(" #")[0].strip()).startswith(start)]


def sessions(page: str, start: str) -> list[str]:
    """Lines of the page's sessions, behind ``$``, which are not run."""
    found = [line for block in blocks(page, "") for line in block.splitlines()]
    return [line[2:] for line in found if line.startswith(f"$ {start}")]


def inline(page: str) -> list[str]:
    """Everything of a page that stands between backquotes in its prose."""
    prose = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


def pages_with(*found) -> pytest.MarkDecorator:
    """Parametrize by the pages on which one of these functions finds something."""
    return pytest.mark.parametrize("page", [p for p in PAGES if any(look(p) for look in found)])


def commands_of(page: str) -> list[str]:
    return lines(page, "m3mlx ")


def sessions_of(page: str) -> list[str]:
    return sessions(page, "m3mlx ")


# --- running what stands there


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the commands name."""
    for folder in ("notes", "garden", "club"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "house.md").write_text(NOTE)
    monkeypatch.setenv("M3MLX_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("M3MLX_PASSPHRASE", "nine brass buttons")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.model
@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_their_order(place):
    commands = commands_of("README.md")
    assert [command.split()[1] for command in commands] == ["memorize", "chat"]
    commands += ["m3mlx ask 'Who serviced the boiler?'", "m3mlx recall boiler"]
    for command in commands:
        words = shlex.split(command.replace("~/", f"{place}/"))
        done = subprocess.run(
            [sys.executable, "-m", *words],
            input=QUESTION if words[1] == "chat" else None,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, (command, done.stderr)
        if words[1] != "memorize":
            assert "house.md" in done.stdout


@pytest.mark.slow
@pages_with(commands_of)
def test_the_commands_of_every_page_run_in_their_order(page, place, monkeypatch):
    for name, value in tiny_home(place / "tiny").items():
        monkeypatch.setenv(name, value)
    for command in commands_of(page):
        words = shlex.split(command.replace("~/", f"{place}/"))[1:]
        if words == ["parity"]:
            words.append("--quick")  # parity/test_real.py does the rest
        done = CliRunner().invoke(main, words, input=QUESTION if words[0] == "chat" else None)
        assert done.exit_code == 0, (command, done.output)
        if "boiler" in command and words[0] in ("ask", "recall"):
            assert "house.md" in done.stdout


@pytest.mark.model
@pytest.mark.slow
@pages_with(lambda page: blocks(page, "python"))
def test_the_python_runs(page, place):
    """Each program in a process of its own: one leaves a server on a thread."""
    shown = ""
    for block in blocks(page, "python"):
        ended = f"{block}\nimport os, sys\nsys.stdout.flush()\nos._exit(0)\n"
        done = subprocess.run(
            [sys.executable, "-c", ended], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        shown += done.stdout
    assert "house.md" in shown and "Ada Quill" in shown


@pages_with(commands_of, sessions_of)
def test_every_command_line_is_understood(page):
    for command in [*commands_of(page), *sessions_of(page)]:
        words, group = shlex.split(command)[1:], main
        while words and isinstance(group, click.Group) and words[0] in group.commands:
            group = group.commands[words.pop(0)]
        assert group is not main, command
        with group.make_context(group.name, words):  # a usage error names the command
            pass


# --- names


def flags_of(command: click.Command) -> set[str]:
    own = {flag for param in command.params for flag in [*param.opts, *param.secondary_opts]}
    inner = command.commands.values() if isinstance(command, click.Group) else ()
    return own.union({"--help", "-h"}, *map(flags_of, inner))


@every_page
def test_commands_and_flags_in_the_prose_exist(page):
    known = flags_of(main)
    for name in ("from_torch", "from_gguf", "to_torch"):
        known |= flags_of(importlib.import_module(f"convert.{name}").main)
    tools = "".join(path.read_text("utf-8") for path in (ROOT / "tools").glob("*.py"))
    for code in inline(page):
        for name in re.findall(r"\bm3mlx ([a-z]+)\b", code):
            assert name in main.commands, (page, code)
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code):
            assert flag in known or f'"{flag}"' in tools, (page, code)


@every_page
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), (page, target)
        if anchor:
            titles = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
            assert anchor in anchors, (page, target)


@every_page
def test_files_and_variables_that_are_named_exist(page):
    source = "".join(path.read_text("utf-8") for path in (ROOT / "m3mlx").rglob("*.py"))
    text = PAGES[page]
    for path in re.findall(r"(?:tools|tests|m3mlx|convert|docs)/[\w/.-]+\.\w+\b", text):
        assert (ROOT / path).exists() or "/NAME." in path, (page, path)
    for name in re.findall(r"\bM3MLX_[A-Z_]+\b", text):
        assert name in source, (page, name)


@every_page
def test_make_targets_and_extras_exist(page):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for line in [*lines(page, "make "), *(c for c in inline(page) if c.startswith("make "))]:
        assert f"\n{line.split()[1]}: " in makefile, (page, line)
    for extra in re.findall(r"(?:m3mlx|'?\.)\[(\w+)\]", PAGES[page]):
        assert f"\n{extra} = [" in PROJECT, (page, extra)


# --- whole lists


def test_the_reference_of_the_command_line_is_what_help_prints():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "make_docs.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr  # it says what to do: run make docs


def test_the_readme_is_one_page_and_leads_to_all_others():
    assert len(README.split()) <= 600
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md|CONTRIBUTING\.md)", README))
    assert linked == PAGES.keys() - {"README.md"}


def test_the_guide_names_every_extra():
    table = PROJECT.split("[project.optional-dependencies]")[1].split("\n[project.")[0]
    guide = PAGES["docs/guide.md"]
    for extra in re.findall(r"^(\w+) = \[", table, re.MULTILINE):
        assert f"`{extra}`" in guide, extra
    assert re.findall(r"-e '\.\[(\w+)\]'", guide) == ["cpu", "cuda13"]


def test_the_map_names_every_room():
    tree = PAGES["CONTRIBUTING.md"].split("```")[1]
    names = set(re.findall(r"([\w.]+(?:\.py|/))", tree))
    package = ROOT / "m3mlx"
    rooms = {path.name for path in package.glob("*.py")} - {"__init__.py", "__main__.py"}
    rooms |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert rooms <= names
    for name in names - {"m3mlx/", "convert/", "tools/", "tests/", "torture/", "docs/"}:
        assert list(package.rglob(name.rstrip("/"))), name


def test_the_interfaces_of_the_server_are_all_named():
    page = PAGES["docs/web-and-apis.md"]
    rooms = ("app.py", "sessions.py")
    app = "".join((ROOT / "m3mlx/serve" / room).read_text("utf-8") for room in rooms)
    routes = re.findall(r'Route\("(/v1/[^"]+)"', app)
    routes += [f"/v1{path}" for path in re.findall(r'"(/[\w/]+)": self\.', app)]  # OpenAI's
    for route in [*routes, "/v1/models"]:
        assert re.sub(r"/\{(\w+)[^}]*\}", lambda m: f"/{m[1].upper()}", route) in page or (
            route.startswith("/v1/models/")
        ), route
    for path in re.findall(r"`(?:GET |POST |DELETE )?(/v1/[\w/]+)", page):
        assert path == "/v1/models" or any(
            route.startswith(re.split("/ID|/NAME", path)[0]) for route in routes
        ), path
    tools = re.findall(r"`(\w+)`", page.split("eight tools")[1].split("In its settings")[0])
    mcp = (ROOT / "m3mlx/serve/mcp.py").read_text("utf-8")
    assert len(tools) == 8 and all(re.search(rf"def {name}\b", mcp) for name in tools)


# --- figures


def test_numbers_of_the_format_are_those_of_the_code():
    from m3mlx.config import MemoryConfig
    from m3mlx.memory.codec import Codec

    page = PAGES["docs/store-format.md"]
    smollm2 = MemoryConfig("reconstruction", "uniform", ((8,) * 3,) * 30, 64, (1,))
    assert f"{Codec(smollm2).record_bytes:,} bytes" in page
    assert f"{30 * 3 * 128 * 64 * 2 * 2:,} in bfloat16" in page


def test_the_speeds_are_those_of_the_file_of_results():
    (name,) = re.findall(r"`(tools/results/[\w-]+\.json)`", PAGES["docs/benchmarks.md"])
    results = json.loads((ROOT / name).read_text("utf-8"))
    shown = {
        "ask": ("first token", 64, r"first token, question of 64 tokens"),
        "answer": ("512 tokens", 512, r"answer of 512 tokens"),
    }
    for part, (of, size, title) in shown.items():
        (row,) = re.findall(rf"^\| {title} \| (.*) \|$", README, re.MULTILINE)
        for cell, way in zip(row.split(" | "), ("explicit warm", "off", "text"), strict=True):
            (seconds,) = [
                figure["seconds"]
                for figure in results["figures"]
                if (figure["part"], figure["of"], figure["size"], figure["way"])
                == (part, of, size, way)
            ]
            number = cell.removesuffix(" s")
            assert number == f"{seconds:.{len(number.partition('.')[2])}f}", (part, way)
    for name, words in {
        "ask 64, first token: explicit warm / off": "| 1.24 |",
        "ask 64, first token: explicit warm / text": "| 0.10 |",
        "ask 512, first token: explicit warm / text": "| 0.46 |",
        "memorize 8, batch: attention / plain prefill": "| 1.08 |",
        "memorize 8, batch: reconstruction / plain prefill": "| 2.25 |",
    }.items():
        value = results["ratios"][name]["seconds"]
        assert words == f"| {value:.2f} |" and words in PAGES["docs/benchmarks.md"], name
