"""Commands around the store: memorize, list, status, forget, compact, check, recall."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..config import Options
from ..text import scrub_line
from .options import (
    WRITING,
    Size,
    also_option,
    collection_option,
    common_options,
    encrypt_options,
    example,
    filter_options,
    is_verbose,
    json_option,
    memory_options,
    open_assistant,
)
from .render import (
    bound_text,
    echo_findings,
    echo_json,
    echo_memorized,
    echo_rebuilt,
    echo_references,
    echo_table,
    edition_text,
    findings_json,
    human_bytes,
    memorized_json,
    watched_text,
)
from .watch import follow

if TYPE_CHECKING:
    from ..store import Filter

INTERRUPTED = "Interrupted; what is committed is kept, run again to go on."


@click.command(epilog=example('m3mlx memorize notes --exclude "*.log" --collection home'))
@click.argument("paths", nargs=-1, metavar="PATH…")
@click.option("--include", multiple=True, metavar="PATTERN", help="Only these, as in .gitignore.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Not these, as in .gitignore.")
@collection_option
@click.option("--cold", is_flag=True, help="Write each memory at its first use.")
@click.option("--prune", is_flag=True, help="Forget documents whose files have vanished.")
@click.option("--dry-run", is_flag=True, help="Write nothing; tell what would be written.")
@click.option(
    "--rebuild",
    is_flag=True,
    help="Make the memories of this model that are missing, without the files.",
)
@click.option(
    "--max-bytes", type=Size(), help="Keep the store within this size from now on, such as 2GB."
)
@click.option("--watch", is_flag=True, help="Then follow the paths, as m3mlx watch does.")
@encrypt_options
@memory_options(*WRITING)
@json_option
@common_options
def memorize(
    paths: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    collection: str | None,
    cold: bool,
    prune: bool,
    dry_run: bool,
    rebuild: bool,
    max_bytes: int | None,
    watch: bool,
    encrypt: str | None,
    options: Options,
    as_json: bool,
) -> None:
    """Read files and folders into memory."""
    if not (paths or rebuild or max_bytes is not None):
        raise click.UsageError("Missing argument 'PATH…'.")
    if dry_run and (rebuild or max_bytes is not None):
        raise click.UsageError("--dry-run goes with files only.")
    if watch and (dry_run or as_json or not paths):
        raise click.UsageError("--watch needs paths, and goes with neither --dry-run nor --json.")
    with open_assistant(options, encrypt=encrypt) as assistant:
        done, rebuilt, dropped = None, None, None
        try:
            if max_bytes is not None and (assistant.has_store() or not paths):
                dropped = assistant.set_bound(max_bytes or None)
            if rebuild:
                rebuilt = assistant.rebuild(cold=cold)
            if paths:
                done = assistant.memorize(
                    paths,
                    collection=collection,
                    include=include,
                    exclude=exclude,
                    cold=cold,
                    prune=prune,
                    dry_run=dry_run,
                )
            if max_bytes is not None and dropped is None and assistant.has_store():
                dropped = assistant.set_bound(max_bytes or None)
        except KeyboardInterrupt:
            click.echo(INTERRUPTED, err=True)
            raise click.exceptions.Exit(130) from None
        if as_json:
            also = {"rebuilt": rebuilt and vars(rebuilt), "dropped": dropped}
            asked = {name: value for name, value in also.items() if value is not None}
            echo_json({**(memorized_json(done, dry_run) if done else {}), **asked})
        else:
            if dropped is not None:
                click.echo(f"{dropped} memories dropped; the store is {bound_text(max_bytes)}")
            if rebuilt:
                echo_rebuilt(rebuilt)
            if done:
                echo_memorized(done, dry_run=dry_run, verbose=is_verbose())
        if watch:
            follow(
                *(assistant, paths),
                collection=collection,
                include=include,
                exclude=exclude,
                cold=cold,
            )
    if done and done.failed and not watch:
        raise click.exceptions.Exit(1)


@click.command("list", epilog=example("m3mlx list"))
@json_option
@common_options
def list_documents(as_json: bool) -> None:
    """List the documents in memory."""
    with open_assistant() as assistant:
        documents = assistant.documents()
    rows = []
    for document in documents:
        state = "warm" if document.warm == document.references else "cold"
        rows.append({**vars(document), "state": state if document.complete else "partial"})
    if as_json:
        keys = ("id", "path", "references", "bytes", "added", "state", "warm", "size", "hash")
        keys += ("collection",)
        echo_json({"documents": [{key: row[key] for key in keys} for row in rows]})
        return
    echo_table(
        ("id", "references", "memories", "added", "state", "collection", "path"),
        (
            (
                row["id"],
                row["references"],
                human_bytes(row["bytes"]),
                row["added"][:16].replace("T", " "),
                row["state"],
                row["collection"],
                row["path"],
            )
            for row in rows
        ),
    )


@click.command(epilog=example("m3mlx status --json"))
@json_option
@common_options
def status(as_json: bool) -> None:
    """Show what the store holds and how."""
    with open_assistant() as assistant:
        state = assistant.status()
    memory = state["memory"]
    if as_json:
        echo_json(state)
        return
    kept = sum(map(sum, memory["counts"])) / sum(map(len, memory["counts"]))
    rows = [
        ("store", state["store"]),
        ("documents", state["documents"]),
        ("references", f"{state['references']}, of which {state['cold']} cold"),
        *((("quarantined", state["quarantined"]),) if state["quarantined"] else ()),
        *((f"bytes of {part}", human_bytes(count)) for part, count in state["bytes"].items()),
        *((("sessions", human_bytes(state["session_bytes"])),) if state["session_bytes"] else ()),
        *((("watched", watched_text(state["watching"])),) if state["watching"] else ()),
        ("size", bound_text(state["max_bytes"])),
        ("encrypted", "yes" if state["encrypted"] else "no"),
        ("selection", memory["selection"]),
        ("budget", f"{memory['budget']}, {kept:g} tokens per head"),
        ("codec", f"keys {memory['key_bits']} bits, values {memory['value_bits']} bits"),
        ("reference", f"{memory['reference_tokens']} tokens"),
        *((f"fingerprint {part}", value) for part, value in state["fingerprint"].items()),
        *((f"memories {made['id']}", edition_text(made)) for made in state["editions"]),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:{width}}  {scrub_line(str(value))}")


@click.command(epilog=example("m3mlx forget notes/old.md --verify"))
@click.argument("names", nargs=-1, required=True, metavar="PATH|ID…")
@click.option("--verify", is_flag=True, help="Search the store's files for what was erased.")
@click.option(
    "--certificate",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Verify, and write down in JSON what was erased and searched.",
)
@json_option
@common_options
def forget(names: tuple[str, ...], verify: bool, certificate: Path | None, as_json: bool) -> None:
    """Erase documents: text, vectors, index and memories."""
    if certificate is not None and not certificate.absolute().parent.is_dir():
        raise click.UsageError(f"{certificate.parent} is no folder.")  # before anything is erased
    with open_assistant() as assistant:
        gone = assistant.forget(names, verify=verify or certificate is not None)
    if certificate is not None:
        certificate.write_text(json.dumps(gone.certificate, indent=2) + "\n", "utf-8")
    residue = gone.remnants
    if as_json:
        keys = ("id", "path", "references")
        echo_json(
            {
                "forgotten": [{key: vars(doc)[key] for key in keys} for doc in gone.documents],
                "found": None if residue is None else [vars(left) for left in residue],
                "certificate": gone.certificate,
            }
        )
    else:
        for document in gone.documents:
            click.echo(f"Forgot {scrub_line(document.path)} ({document.references} references)")
        if residue == []:
            click.echo(
                "Searched every byte of the store's files for names, text, words, tokens, vectors "
                "and memories of what was erased: nothing was found."
            )
    for left in residue or ():
        click.echo(
            f"Found: {left.kind} of {scrub_line(left.path)} in {left.file} at byte {left.offset}",
            err=True,
        )
    if residue:
        raise click.exceptions.Exit(1)


@click.command(epilog=example("m3mlx compact"))
@json_option
@common_options
def compact(as_json: bool) -> None:
    """Give back the room that forgotten documents and dropped memories have left."""
    with open_assistant() as assistant:
        before = sum(assistant.status()["bytes"].values())
        damaged = assistant.compact()
        after = sum(assistant.status()["bytes"].values())
    if as_json:
        echo_json({"before": before, "after": after, "damaged": damaged})
        return
    click.echo(f"{human_bytes(before)} before, {human_bytes(after)} now")
    if damaged:
        click.echo(f"{damaged} damaged memories were left out; they are cold now.", err=True)


@click.command(epilog=example("m3mlx check --repair"))
@click.option("--repair", is_flag=True, help="Mend what is damaged, and hide what cannot be.")
@json_option
@common_options
def check(repair: bool, as_json: bool) -> None:
    """Look for damage in all files of the store, and name the documents concerned."""
    with open_assistant() as assistant:
        done = assistant.repair() if repair else None
        found = done.left if done else assistant.check_store()
    if as_json:
        echo_json(findings_json(found, done))
    else:
        echo_findings(found, done)
    if not found.sound:
        raise click.exceptions.Exit(1)


@click.command(
    epilog=example(
        'm3mlx recall "the boiler" -k 3 --type md --since 2026-01-01',
        "m3mlx recall boiler --also work",
    )
)
@click.argument("query")
@click.option("-k", type=click.IntRange(min=1), default=5, show_default=True, help="How many.")
@filter_options
@also_option
@memory_options("encoder", "retrieval")
@json_option
@common_options
def recall(
    query: str,
    k: int,
    only: Filter | None,
    also: tuple[str, ...],
    options: Options,
    as_json: bool,
) -> None:
    """Show the references that fit a query best."""
    if not query.strip():
        raise click.UsageError("The query is empty.")
    with open_assistant(options, also=also) as assistant:
        hits = assistant.recall(query, k, only=only)
    if as_json:
        keys = ("path", "start", "end", "page", "line", "text", "distance", "document", "store")
        echo_json({"references": [{key: getattr(hit, key) for key in keys} for hit in hits]})
        return
    echo_references(hits)
