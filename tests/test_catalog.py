"""catalog.sqlite: versions, transactions, full text; and no row that is not what was stored."""

import sqlite3
import threading
from contextlib import closing

import pytest
from small_store import fill, matching, memory, references, vector
from sqlite_utils import Database, Migrations

from m3mlx.errors import StoreError
from m3mlx.store import migrations
from m3mlx.store.catalog import Catalog

# the schema of the first release as its users have it: never to be edited
OLDEST = """
CREATE TABLE "_sqlite_migrations" ("id" INTEGER PRIMARY KEY, "migration_set" TEXT, "name" TEXT,
    "applied_at" TEXT);
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
INSERT INTO "_sqlite_migrations" VALUES (1, 'm3mlx.store', 'm001_first', '2026-01-01');
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO setting VALUES
    ('commit', '0'), ('scrub', 'false'), ('next_slot', '0'), ('seal', 'null');
CREATE TABLE document (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL, hash TEXT NOT NULL,
    size INTEGER NOT NULL, count INTEGER NOT NULL, complete INTEGER NOT NULL,
    added TEXT NOT NULL, UNIQUE (path, complete));
CREATE TABLE reference (
    slot INTEGER PRIMARY KEY,
    document INTEGER NOT NULL REFERENCES document (id) ON DELETE CASCADE,
    ordinal INTEGER NOT NULL, "start" INTEGER NOT NULL, "end" INTEGER NOT NULL,
    page INTEGER, line INTEGER, text TEXT NOT NULL, tokens BLOB NOT NULL,
    vector BLOB NOT NULL, checksum INTEGER NOT NULL, warm INTEGER NOT NULL,
    UNIQUE (document, ordinal));
CREATE INDEX reference_of ON reference (document, warm);
CREATE INDEX reference_warm ON reference (warm);
CREATE TABLE leftover (slot INTEGER PRIMARY KEY);
CREATE VIRTUAL TABLE words USING fts5 (
    text, content='reference', content_rowid='slot', tokenize='porter unicode61');
CREATE TRIGGER reference_added AFTER INSERT ON reference BEGIN
    INSERT INTO words (rowid, text) VALUES (new.slot, new.text); END;
CREATE TRIGGER reference_removed AFTER DELETE ON reference BEGIN
    INSERT INTO words (words, rowid, text) VALUES ('delete', old.slot, old.text); END;
INSERT INTO document VALUES (3, '/old.txt', 'h', 9, 1, 1, '2026-01-01T00:00:00+00:00');
INSERT INTO reference VALUES (7, 3, 0, 0, 9, NULL, 1, 'old words', x'05000000ffff0100',
    x'0000803f00000000', 795482009, 1);
"""


def test_a_catalog_of_the_oldest_schema_opens_and_works(tmp_path):
    with sqlite3.connect(tmp_path / "c") as db:
        db.executescript(OLDEST)
    db.close()
    catalog = Catalog(tmp_path / "c", write=True)
    with catalog.snapshot():
        old = catalog.references.read([7], 1)[7]
        assert (old.path, old.text, old.tokens, old.line) == (
            *("/old.txt", "old words"),
            *((5, 131071), 1),
        )
        assert catalog.hashes() == {"/old.txt": "h"}
    document = fill(catalog, "/new.txt", ["new words"], 8)
    assert document == 4
    assert sorted(matching(catalog, "words")) == [7, 8]
    catalog.close()
    with sqlite3.connect(tmp_path / "c") as old:
        schema = "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE '%migrations%'"
        migrated = [(name, " ".join((sql or "").split())) for name, sql in old.execute(schema)]
    old.close()
    Catalog.create(tmp_path / "n", {})
    with sqlite3.connect(tmp_path / "n") as new:
        made = [(name, " ".join((sql or "").split())) for name, sql in new.execute(schema)]
    new.close()
    assert sorted(migrated) == sorted(made)


def test_a_newer_schema_is_refused_by_name(tmp_path, monkeypatch):
    newer = Migrations("m3mlx.store")
    for name in ("m001_first", "m002_editions"):
        newer(name=name)(getattr(migrations, name))
    newer(name="m999_future")(lambda db: db.execute("CREATE TABLE future (x)"))
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "migrations", newer)
        Catalog.create(tmp_path / "c", {})
    with pytest.raises(StoreError, match="newer m3mlx"):
        Catalog(tmp_path / "c", write=True)


def test_an_older_schema_is_brought_up_to_date_by_the_first_writer(tmp_path, monkeypatch):
    Catalog.create(tmp_path / "c", {"commit": 0})
    newer = Migrations("m3mlx.store")
    for name in [step.name for step in migrations.migrations.pending(Database(memory=True))]:
        newer(name=name)(getattr(migrations, name))
    newer(name="m999_next")(lambda db: db.execute("CREATE TABLE next (x)"))
    monkeypatch.setattr(migrations, "migrations", newer)
    before = (tmp_path / "c").read_bytes()
    migrations.steps.cache_clear()
    migrations.schema.cache_clear()
    for outdated in (True, False):
        with closing(Catalog(tmp_path / "c")) as catalog:  # at first in memory alone
            assert catalog.outdated == outdated
            assert catalog.db.value("SELECT count(*) FROM next") == 0
        if outdated:
            assert (tmp_path / "c").read_bytes() == before
        Catalog(tmp_path / "c", write=True).close()
    migrations.steps.cache_clear()
    migrations.schema.cache_clear()


@pytest.mark.parametrize("settings", [{"cipher": None}, {"cipher": {"key": "wrapped"}}])
def test_the_present_schema_is_known_by_its_digest(tmp_path, monkeypatch, settings):
    Catalog.create(tmp_path / "c", settings)
    monkeypatch.setattr(migrations, "schema", None)
    Catalog(tmp_path / "c").close()


@pytest.mark.parametrize(
    "data", [b"", b"no database" * 1000, b"SQLite format 3\0" + bytes(5000)], ids=len
)
def test_a_file_that_is_no_catalog_is_named(tmp_path, data):
    (tmp_path / "c").write_bytes(data)
    with pytest.raises(StoreError, match="not a catalog") as caught:
        Catalog(tmp_path / "c")
    assert str(tmp_path / "c") in str(caught.value)


def test_a_database_of_another_program_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "c") as db:
        db.execute("CREATE TABLE document (id)")
    db.close()
    with pytest.raises(StoreError, match="not a catalog of m3mlx"):
        Catalog(tmp_path / "c", write=True)


def test_a_failed_transaction_changes_nothing(catalog):
    fill(catalog, "/a", ["one fish"], 0)
    before = list(catalog.db.conn.iterdump())
    with pytest.raises(KeyError), catalog.transaction():
        catalog.begin("/b", "h", 1, 1, "t")
        catalog.remove([1])
        raise KeyError
    assert list(catalog.db.conn.iterdump()) == before
    assert matching(catalog, "fish") == [0]


def test_threads_take_turns(catalog):
    def work(number):
        for turn in range(5):
            fill(catalog, f"/{number}/{turn}", ["a text"], 100 * number + turn)
            matching(catalog, "text")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with catalog.snapshot():
        assert len(catalog.documents(1)) == 30
        assert catalog.settings()["commit"] == 30


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("text", "two fish"),
        ("start", 1),
        ("page", 9),
        ("tokens", b"\0\0\0\0"),
        ("vector", memory("x")[:64]),
        ("document", 2),
        ("slot", 5),
    ],
)
def test_a_changed_row_is_never_given_out(catalog, column, value):
    fill(catalog, "/a", ["one fish"], 0)
    fill(catalog, "/b", ["other", "others"], 1)
    catalog.db.execute("DROP TRIGGER reference_removed")
    catalog.db.execute("PRAGMA foreign_keys=OFF")
    ordinal = ", ordinal = 5" if column == "document" else ""
    catalog.db.execute(f'UPDATE reference SET "{column}" = ?{ordinal} WHERE slot = 0', [value])
    slot = value if column == "slot" else 0
    with pytest.raises(StoreError, match=r"damaged\. Forget"), catalog.snapshot():
        catalog.references.read([slot], 1)


def test_a_name_that_is_no_unicode_is_refused_by_name(catalog):
    with pytest.raises(StoreError, match=r"caf\\udce9"), catalog.transaction():
        catalog.begin("/caf\udce9.txt", "h", 1, 1, "t")


def test_vectors_come_back_bit_for_bit_and_only_of_complete_documents(catalog):
    fill(catalog, "/a", ["one", "two"], 4)
    with catalog.transaction():
        document, _ = catalog.begin("/b", "h", 1, 2, "t")
        catalog.insert(6, references(document, ["three"]))
    with catalog.snapshot():
        slots, vectors = catalog.references.vectors(catalog.visible_slots(), 16)
    assert slots.tolist() == [4, 5]
    assert (vectors[0] == vector("one")).all()
    assert (vectors[1] == vector("two")).all()
