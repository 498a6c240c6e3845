"""Write docs/cli.md, the command line reference, from what ``--help`` prints.

python tools/make_docs.py [--check]
python tools/make_docs.py --walk       docs/architectures.md too, which takes minutes
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

import click

from m3mlx.cli import main

if TYPE_CHECKING:
    from walk import Finding

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "cli.md"
ARCHITECTURES = ROOT / "docs" / "architectures.md"
HEAD = """\
# Command line

What `--help` prints for every command. This page is generated: change the help texts in
`m3mlx/cli/` and run `make docs`.
"""

ARCHITECTURES_HEAD = """\
# Architectures

What m3mlx does with each architecture of mlx-lm {version}: {verified} of {all} are verified. A tiny
random model is made of each, with short windows, soft caps, sinks and partial rotary positions
where its settings have them. It is verified as a model is before its first use, on a CPU in
float32, and then memorizes and answers with both selections.

*Layers* is what they keep: full or windowed keys and values (a window of {window} tokens), chunked
ones, latent vectors, or a recurrent state, which carries no memory; shared layers read those of
another. *Exact to* is the largest difference of two logits, as a share of the largest logit.

This page is generated: run `make docs ARGS=--walk`.

| architecture | layers | with memories |
| --- | --- | --- |
"""


JSON = """\
## JSON

With `--json` a command prints one object to standard output, `watch` one in each line. Its keys are
those of the table, with no envelope around them; names are in lower case with underscores. Where a
command fails, it prints nothing there, and its exit code and standard error say why; `check`,
`doctor`, `forget`, `memorize` and `parity` print what they found with exit code 1 too.

| command | keys |
| --- | --- |
| `ask` | `answer`, `memory`, `sources`, `note`, `timings`; sometimes `thoughts` |
| `recall` | `references` |
| `sessions list` | `sessions` |
| `sessions show` | `messages` |
| `sessions search` | `messages` |
| `sessions delete` | `deleted`, `remembered` |
| `demo` | `documents`, `references`, `memorize_seconds`, `exchanges` |
| `remember` | `id`, `path`, `text`, `said`, `by`, `history`, `triples`, `replaces`, `known` |
| `facts` | sometimes `facts`, `id`, `path`, `text`, `said`, `by`, `history`, `triples`, \
`replaces`, `known` |
| `memorize` | sometimes `added`, `changed`, `unchanged`, `vanished`, `failed`, `left_out`, \
`notes`, `references`, `tokens`, `memories`, `bytes`, `seconds`, `stored_seconds`, `estimated`, \
`pruned`, `foreign`, `pace`, `dry_run`, `rebuilt`, `dropped`, `written` |
| `watch` | `what`, `path`, `detail` |
| `list` | `documents` |
| `status` | `store`, `documents`, `references`, `cold`, `quarantined`, `bytes`, `session_bytes`, \
`max_bytes`, `encrypted`, `editions`, `edition`, `fingerprint`, `memory`, `watching` |
| `forget` | `forgotten`, `found`, `certificate` |
| `inspect` | `output` |
| `models` | `cached`, `default`, `machine`, `recommended` |
| `models use` | `default` |
| `models remove` | `removed`, `bytes` |
| `eval` | `rows`; sometimes `explanation`, `questions`, `documents`, `tokens`, `recall`, \
`fitting`, `model`, `adapter`, `machine`, `versions` |
| `bench` | `plan`, `machine`, `model`, `figures`, `ratios`, `load_before`, `part_seconds`, \
`end_to_end`; sometimes `cost`, `record_bytes`, `memorize_peak_bytes` |
| `convert` | `output`, `tensors`, `difference` |
| `parity` | `sound`, `summary`, `skipped`, `results` |
| `train` | `output`, `steps`, `metrics` |
| `fuse` | `output` |
| `doctor` | `sound`, `findings` |
| `check` | `sound`, `damages`, `documents`, `quarantined`, `references`, `memories`; sometimes \
`repaired` |
| `compact` | `before`, `after`, `damaged` |
| `backup` | `output`, `documents`, `references`, `copied`, `unchanged`, `cold`, `bytes` |
| `export` | `output`, `documents`, `references`, `memories`, `bytes`, `signer` |
| `import` | `added`, `replaced`, `unchanged`, `kept`, `references`, `memories`, `refused`, \
`embedded`, `signer` |
| `keygen` | `output`, `public` |

`output` is the file or folder that was written, `sound` says that nothing is wrong, sizes are
bytes, times seconds, moments in ISO 8601. A document is the same everywhere: `id`, `path`,
`references`, `bytes`, `added`, `state` (warm, cold or partial), `warm` (memories written), `size`,
`hash`, `collection`. So is a reference: `path`, `start`, `end`, `page`, `line`, `text`,
`distance`, `document`, `store`, for `ask` also `share`, `used`, and `span`, the number of the 64
tokens of the answer that it was read for. `memorize` names files by path in `added`,
`changed`, `unchanged` and `vanished`; `pace` is how many times longer storing took than earlier
runs let expect.
"""


def helps(command: click.Command, parent: click.Context | None = None) -> Iterator[tuple[str, str]]:
    """Path and help text of a command and of all commands below it."""
    settings = {**command.context_settings, "terminal_width": 100}
    with click.Context(command, parent=parent, info_name=command.name, **settings) as ctx:
        yield ctx.command_path, command.get_help(ctx)
        if isinstance(command, click.Group):
            for name in command.list_commands(ctx):
                yield from helps(command.commands[name], ctx)


def reference() -> str:
    """The whole page."""
    found = list(helps(main))
    links = "\n".join(f"- [`{path}`](#{path.replace(' ', '-')})" for path, _ in found)
    parts = [f"## {path}\n\n```\n{text}\n```" for path, text in found]
    return "\n\n".join([HEAD.rstrip(), f"{links}\n- [JSON](#json)", *parts, JSON])


def architectures(found: list[Finding], window: int) -> str:
    """The whole page of architectures."""
    verified = [f for f in found if f.outcome == "verified"]
    head = ARCHITECTURES_HEAD.format(
        version=version("mlx-lm"), verified=len(verified), all=len(found), window=window
    )
    outcomes = [
        f"exact to {f.difference:.0e}"
        if f in verified
        else f"{f.outcome}: {shorten(f.reason, 200)}"
        for f in found
    ]
    rows = [
        f"| {f.name} | {f.layers} | {outcome.replace('|', '/')} |\n"
        for f, outcome in zip(found, outcomes, strict=True)
    ]
    return head + "".join(rows)


def walked() -> str:
    """Look at all architectures of mlx-lm, which takes minutes; return their page."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from architectures import WINDOW, names
    from walk import walk

    return architectures(list(walk(names()).values()), WINDOW)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it is stale")
    parser.add_argument("--walk", action="store_true", help="write docs/architectures.md too")
    arguments = parser.parse_args()
    if arguments.walk:
        ARCHITECTURES.write_text(walked(), "utf-8")
    if not arguments.check:
        FILE.write_text(reference(), "utf-8")
    elif FILE.read_text("utf-8") != reference():
        sys.exit("docs/cli.md is stale: run make docs")
