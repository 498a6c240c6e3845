"""Commands around the store: memorize, list, status, forget, compact, check, recall."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import Options
from ..text import scrub_line
from .options import (
    PATH,
    WRITING,
    Interrupted,
    add_options,
    choose_model,
    command,
    document_options,
    encrypt_options,
    filter_options,
    is_verbose,
    launched,
    memory_options,
    open_assistant,
    size,
    yes_option,
)
from .render import (
    echo_json,
    echo_memorized,
    echo_references,
    echo_table,
    human_bytes,
    human_seconds,
    minute,
    note,
    short_path,
)
from .watch import follow

if TYPE_CHECKING:
    from ..assistant import Assistant
    from ..memorize.editions import RebuildReport
    from ..memorize.run import MemorizeReport
    from ..memory.ranks import Ranks
    from ..models.decoder import Decoder
    from ..store import CheckReport, Filter, RepairReport, StoredDocument

INTERRUPTED = "Interrupted; committed documents are kept. Run it again to continue."
SOON = 16  # memories that are written before one has read what is going on
TYPICAL_TOKENS = 100  # of a reference


@command('m3mlx memorize notes --exclude "*.log" --collection home')
@click.argument("paths", nargs=-1, type=PATH, metavar="PATH…")
@document_options
@add_options(
    prune="Forget documents whose files have vanished.",
    wait="Write each memory with its text, not when all documents can be asked.",
    dry_run="Write nothing; report what would be written, and how long it would take.",
    rebuild="Make missing memories of this model from the stored text.",
    max_bytes=("Keep the store within this size from now on; none for no limit.", size),
    watch="Then follow the paths, as m3mlx watch does.",
)
@encrypt_options
@memory_options(*WRITING)
@yes_option
def memorize(
    paths: tuple[str, ...],
    reading: dict[str, Any],
    prune: bool,
    wait: bool,
    dry_run: bool,
    rebuild: bool,
    max_bytes: int | None,
    watch: bool,
    encrypt: str | None,
    options: Options,
    yes: bool,
    as_json: bool,
) -> None:
    """Read files and folders into memory.

    First everything is read and can be asked. Then the memories are written, those first that are
    likely to be asked about; Ctrl-C stops that, and an answer writes what it needs. Without PATH,
    the memories that documents still lack are written."""
    if (ranks := launched()) and ranks.rank:
        return _help_write(ranks)
    if dry_run and (not paths or rebuild or max_bytes is not None):
        raise click.UsageError("--dry-run goes with files only.")
    if watch and (dry_run or as_json or not paths):
        raise click.UsageError("--watch needs paths, and goes with neither --dry-run nor --json.")
    if wait and reading["cold"]:
        raise click.UsageError("--wait and --cold exclude each other.")
    cold = reading.pop("cold")
    written_later = not (cold or wait or dry_run or watch) and (paths or not (rebuild or max_bytes))
    if paths or rebuild:
        options = choose_model(options, yes, rebuild)
    with (
        ranks.leading() if ranks else nullcontext(),
        open_assistant(options, encrypt=encrypt, ranks=ranks) as assistant,
    ):
        if not (paths or rebuild or max_bytes is not None or assistant.has_store()):
            raise click.UsageError("Missing argument 'PATH…'.")
        found: dict[str, Any] = {}
        with _interruptible(INTERRUPTED):
            if max_bytes is not None and (assistant.has_store() or not paths):
                found["dropped"] = assistant.set_bound(max_bytes or None)
            if rebuild:
                found["rebuilt"] = assistant.rebuild(cold=cold)
            if paths:
                how = {**reading, "cold": cold or written_later or watch, "wait": wait}
                found["memorized"] = assistant.memorize(paths, prune=prune, dry_run=dry_run, **how)
            if max_bytes is not None and "dropped" not in found and assistant.has_store():
                found["dropped"] = assistant.set_bound(max_bytes or None)
        if not as_json:
            _echo_done(found, max_bytes, dry_run=dry_run)
            if "memorized" in found:
                _advise_encoder(assistant, found["memorized"])
        if written_later:
            found["written"] = _write_memories(assistant, found.get("memorized"), as_json)
        if as_json:
            echo_json(_memorized_json(found, dry_run))
        if watch:
            follow(assistant, paths, cold=cold, **reading)
    done: MemorizeReport | None = found.get("memorized")
    if done and done.failed and not watch:
        named = {str(Path(path).expanduser().absolute()) for path in paths}
        if not dry_run or any(error.path in named for error in done.failed):
            raise click.exceptions.Exit(1)


def _help_write(ranks: Ranks) -> None:
    """Write memories for rank 0, which has all the rest to do."""
    from ..memory.ranks import help_write
    from ..models.decoder import adapter_folder, load_decoder

    def load(name: str | None, adapter: str | None) -> Decoder:
        return load_decoder(name, adapter_path=adapter_folder(name, adapter))

    help_write(ranks, load)


@contextmanager
def _interruptible(words: str) -> Iterator[None]:
    """End the command with a line of words at Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(words) from None


def _write_memories(
    assistant: Assistant, done: MemorizeReport | None, as_json: bool
) -> RebuildReport:
    """Write the memories that documents lack, all of them or those of a run, until Ctrl-C."""
    from ..models import rates

    paths = done.paths if done else None
    count = assistant.count_unwritten(paths)
    if count > SOON:
        each = done.tokens / done.references if done and done.references else TYPICAL_TOKENS
        seconds = rates.seconds(assistant.decoder.name, "writing", count * each)
        # who stored slowly, on a busy machine, will write slowly
        about = f", about {human_seconds(seconds * (done.pace if done else 1))}" if seconds else ""
        note(
            f"Everything can be asked now. Writing {count} memories, so that answers come "
            f"sooner{about}; Ctrl-C stops it, and each is written when it is needed."
        )
    with _interruptible(
        "Stopped; everything can be asked. The other memories are written when they are needed, "
        "by m3mlx memorize, or by watch and serve when they have nothing else to do."
    ):
        written = assistant.write_memories(paths)
    if not as_json and (count or not done):
        _echo_written(written)
    return written


def _echo_done(found: Mapping[str, Any], max_bytes: int | None, *, dry_run: bool) -> None:
    if "dropped" in found:
        click.echo(f"{found['dropped']} memories dropped; the store is {_bound_text(max_bytes)}")
    if "rebuilt" in found:
        _echo_written(found["rebuilt"])
    if "memorized" in found:
        echo_memorized(found["memorized"], dry_run=dry_run, verbose=is_verbose())


def _advise_encoder(assistant: Assistant, done: MemorizeReport) -> None:
    """Recommend another encoder where the documents are in a script that it hardly knows."""
    if 2 * done.foreign > done.references and (advice := assistant.encoder.advice):
        note(advice)


def _memorized_json(found: Mapping[str, Any], dry_run: bool) -> dict:
    shown: dict[str, Any] = {}
    if done := found.get("memorized"):
        if written := found.get("written"):
            done.add_memories(written)
        failed = [{"path": error.path, "reason": error.reason} for error in done.failed]
        left_out = [left._asdict() for left in done.left_out]
        notes = [{"path": path, "note": text} for path, text in done.notes]
        listed = {"failed": failed, "left_out": left_out, "notes": notes}
        shown = {**vars(done), **listed, "dry_run": dry_run}
    elif written := found.get("written"):
        shown["written"] = vars(written)
    if rebuilt := found.get("rebuilt"):
        shown["rebuilt"] = vars(rebuilt)
    if "dropped" in found:
        shown["dropped"] = found["dropped"]
    return shown


def _echo_written(done: RebuildReport) -> None:
    click.echo(
        f"{done.references} memories written, {human_bytes(done.bytes)}, "
        f"{human_seconds(done.seconds)}"
    )
    if done.full:
        note(
            "The store has reached its size (--max-bytes); other memories are written when they "
            "are needed, and those not used for longest go."
        )
    if done.shortened:
        note(
            f"{done.shortened} references are longer in this model's tokens than a memory can be; "
            f"only their beginning is remembered."
        )


@command("m3mlx list", name="list")
def list_documents(as_json: bool) -> None:
    """List the documents in memory."""
    with open_assistant() as assistant:
        documents = assistant.documents()
    if as_json:
        echo_json({"documents": [document_json(document) for document in documents]})
        return
    echo_table(
        ("id", "references", "memories", "added", "state", "collection", "path"),
        [
            (
                *(document.id, document.references, human_bytes(document.bytes)),
                *(minute(document.added), _state(document), document.collection),
                short_path(document.path),
            )
            for document in documents
        ],
        optional=("collection", "added", "memories", "state", "references"),
    )


def document_json(document: StoredDocument) -> dict[str, Any]:
    """A document as all commands print it."""
    keys = "id path references bytes added state warm size hash collection".split()
    return {key: {**vars(document), "state": _state(document)}[key] for key in keys}


def _state(document: StoredDocument) -> str:
    warm = "warm" if document.warm == document.references else "cold"
    return warm if document.complete else "partial"


@command("m3mlx status --json")
def status(as_json: bool) -> None:
    """Show what the store holds; -v adds how memories are made."""
    with open_assistant() as assistant:
        state = assistant.status()
    if as_json:
        echo_json(state)
        return
    names = [made["fingerprint"].get("model") for made in state["editions"]]
    written = state["references"] - state["cold"]
    rows = [
        ("store", short_path(state["store"])),
        ("documents", state["documents"]),
        ("references", f"{state['references']}, of which {written} have their memory written"),
        *((("quarantined", state["quarantined"]),) if state["quarantined"] else ()),
        ("model", ", ".join(filter(None, dict.fromkeys(names))) or "unknown"),
        *((f"bytes of {part}", human_bytes(count)) for part, count in state["bytes"].items()),
        *((("sessions", human_bytes(state["session_bytes"])),) if state["session_bytes"] else ()),
        *((("watched", _watched_text(state["watching"])),) if state["watching"] else ()),
        ("size", _bound_text(state["max_bytes"])),
        ("encrypted", "yes" if state["encrypted"] else "no"),
        *(_memory_rows(state) if is_verbose() else ()),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:{width}}  {scrub_line(str(value))}")


def _memory_rows(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How memories are written, and every condition under which they were made."""
    memory = state["memory"]
    kept = sum(map(sum, memory["counts"])) / sum(map(len, memory["counts"]))
    return [
        ("selection", memory["selection"]),
        ("budget", f"{memory['budget']}, {kept:g} tokens per head"),
        ("codec", f"keys {memory['key_bits']} bits, values {memory['value_bits']} bits"),
        ("reference", f"{memory['reference_tokens']} tokens"),
        *((f"fingerprint {part}", value) for part, value in state["fingerprint"].items()),
        *((f"memories {made['id']}", _edition_text(made)) for made in state["editions"]),
    ]


def _bound_text(max_bytes: int | None) -> str:
    return f"kept within {human_bytes(max_bytes)}" if max_bytes else "not limited"


def _watched_text(state: Mapping[str, Any]) -> str:
    """The last report of the process that watches folders."""
    if "pending" not in state:
        return "just started"
    away = f", of which {state['away']} gone or empty" if state["away"] else ""
    return (
        f"{state['folders']} paths{away} by process {state['pid']}; {state['pending']} changes "
        f"pending, {state['vanished']} files gone but not yet forgotten"
    )


def _edition_text(edition: Mapping[str, Any]) -> str:
    """One edition of memories, in a line."""
    memory, made = edition["memory"], edition["fingerprint"]
    name = made.get("model", made.get("weights", ""))
    how = f"{memory.get('selection')}, {memory.get('budget')}, {made.get('codec')}"
    return f"{name} ({how}): {edition['warm']} memories, {human_bytes(edition['bytes'])}"


@command("m3mlx forget notes/old.md --verify")
@click.argument("names", nargs=-1, required=True, type=PATH, metavar="PATH|ID…")
@add_options(
    verify="Search the store's files for what was erased.",
    certificate=(
        "Verify, and write what was erased and searched to this file, as JSON.",
        click.Path(dir_okay=False, writable=True, path_type=Path),
    ),
)
def forget(names: tuple[str, ...], verify: bool, certificate: Path | None, as_json: bool) -> None:
    """Erase documents and everything that is kept of them."""
    if certificate is not None and not certificate.absolute().parent.is_dir():
        raise click.UsageError(
            f"{certificate.parent} is not a folder."
        )  # before anything is erased
    with open_assistant() as assistant:
        gone = assistant.forget(names, verify=verify or certificate is not None)
    if certificate is not None:
        certificate.write_text(json.dumps(gone.certificate, indent=2) + "\n", "utf-8")
    residue = gone.remnants
    if as_json:
        echo_json(
            {
                "forgotten": [document_json(document) for document in gone.documents],
                "found": None if residue is None else [vars(left) for left in residue],
                "certificate": gone.certificate,
            }
        )
    else:
        for document in gone.documents:
            click.echo(
                f"Forgot {scrub_line(short_path(document.path))} ({document.references} references)"
            )
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


@command("m3mlx compact")
def compact(as_json: bool) -> None:
    """Shrink the store's files by what was forgotten or dropped."""
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


@command("m3mlx check --repair")
@add_options(repair="Repair what can be repaired, and quarantine the rest.")
def check(repair: bool, as_json: bool) -> None:
    """Look for damage in the store, and name the documents."""
    with open_assistant() as assistant:
        done = assistant.repair() if repair else None
        found = done.left if done else assistant.check_store()
    if as_json:
        echo_json(_findings_json(found, done))
    else:
        _echo_findings(found, done)
    if not found.sound:
        raise click.exceptions.Exit(1)


def _findings_json(found: CheckReport, done: RepairReport | None) -> dict[str, Any]:
    """JSON of what ``check`` found; with a repair, of the damage before and the result."""
    answer = {
        "sound": found.sound,
        "damages": [vars(damage) for damage in found.damages],
        "documents": found.documents,
        "quarantined": found.quarantined,
        "references": found.references,
        "memories": found.memories,
    }
    if done:
        answer["repaired"] = {
            "damages": [vars(damage) for damage in done.found.damages],
            "documents": done.found.documents,
            "lost": done.lost,
            "cold": len(done.cold),
        }
    return answer


def _echo_findings(found: CheckReport, done: RepairReport | None) -> None:
    for damage in done.found.damages if done else found.damages:
        place = f"{scrub_line(damage.path)}: " if damage.path else ""
        click.echo(f"Damaged {damage.part}: {place}{scrub_line(damage.detail)}")
    if done and done.cold:
        click.echo(f"{len(done.cold)} memories were dropped; they are written again from the text.")
    for path in done.lost if done else ():
        click.echo(f"Lost in part: {scrub_line(path)}. Memorize the file again.")
    for path, count in found.quarantined.items():
        click.echo(f"In quarantine: {count} references of {scrub_line(path)}. Memorize it again.")
    for damage in found.damages if done else ():
        click.echo(f"Still damaged {damage.part}: {scrub_line(damage.detail)}")
    if found.damages and not done:
        click.echo("Run m3mlx check --repair to repair what can be repaired.", err=True)
    click.echo(
        f"Checked {found.references} references and {found.memories} memories: "
        f"{'sound' if found.sound else 'damaged'}"
    )


@command(
    'm3mlx recall "the boiler" -k 3 --type md --since 2026-01-01',
    "m3mlx recall boiler --also work",
)
@click.argument("query")
@click.option(
    "-k", type=click.IntRange(min=1), default=5, show_default=True, help="Number of references."
)
@filter_options
@memory_options("also", "encoder", "retrieval")
def recall(query: str, k: int, only: Filter | None, options: Options, as_json: bool) -> None:
    """Show what fits a query best, without an answer."""
    if not query.strip():
        raise click.UsageError("The query is empty.")
    with open_assistant(options) as assistant:
        hits = assistant.recall(query, k, only=only)
    if as_json:
        keys = ("path", "start", "end", "page", "line", "text", "distance", "document", "store")
        echo_json({"references": [{key: getattr(hit, key) for key in keys} for hit in hits]})
        return
    echo_references(hits)
