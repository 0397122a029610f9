"""A sound database that this SQLite cannot check in full is kept, with the reason."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from replica_platform.backup import backup, backups, restore, status, verify
from replica_platform.backup.errors import Damaged
from replica_platform.core.sqlite import sqlite3
from replica_platform_tests.backup.conftest import day

ROWS = "insert into t (v, at) values ('Anki', '2026-01-01'), ('anna', '2026-02-01'), (null, null)"


def open_app(file: Path) -> sqlite3.Connection:
    """Open a file as its application does, with a collation and a function that only it has."""
    db = sqlite3.connect(file, isolation_level=None)
    db.create_collation("unicase", lambda a, b: (a.lower() > b.lower()) - (a.lower() < b.lower()))
    db.create_function("fold", 1, lambda v: v and v.lower(), deterministic=True)
    return db


def collated_index(db: sqlite3.Connection) -> None:
    db.execute("create table t (v text collate unicase, at text collate unicase)")
    db.execute("create index i on t (v)")
    db.execute(ROWS)


def collated_key(db: sqlite3.Connection) -> None:
    db.execute("create table t (v text collate unicase, at text, n int, primary key (v, n))")
    db.execute(ROWS)
    db.execute("create table u (v text collate unicase primary key) without rowid")
    db.executemany("insert into u values (?)", [("b",), ("C",), ("a",), ("B2",)])


def index_on_a_function(db: sqlite3.Connection) -> None:
    db.execute("create table t (v text, at text)")
    db.execute("create unique index i on t (fold(v))")
    db.execute(ROWS)


def partial_index(db: sqlite3.Connection) -> None:
    db.execute("create table t (v text, at text)")
    db.execute("create index i on t (at) where fold(v) = 'anki'")
    db.execute(ROWS)


def generated_column(db: sqlite3.Connection) -> None:
    db.execute("create table t (v text, at text, g as (fold(v)), s text as (fold(v)) stored)")
    db.execute("create index i on t (g)")
    db.execute("create index j on t (s)")
    db.execute(ROWS)


def null_in_a_not_null_column(db: sqlite3.Connection) -> None:
    db.execute("create table t (v text, at text)")
    db.execute(ROWS)
    db.execute("pragma writable_schema=on")
    db.execute(
        "update sqlite_master set sql = 'create table t (v text not null, at text)' where name='t'"
    )


def search_index_with_a_tokenizer(db: sqlite3.Connection) -> None:
    db.execute("create virtual table s using fts5 (v)")
    db.execute("insert into s values ('Anki')")
    db.execute("create table t (v text, at text)")
    db.execute(ROWS)
    # As the application registered it; Python cannot.
    db.execute("pragma writable_schema=on")
    db.execute(
        "update sqlite_master set sql = 'create virtual table s using fts5 (v, tokenize=mine)' "
        "where name = 's'"
    )


def contents(db: sqlite3.Connection) -> list[list[tuple]]:
    """Return the schema and all rows."""
    queries = ["select type, name, sql from sqlite_master order by name"]
    tables = db.execute(
        "select name from sqlite_master where type = 'table' and name != 's' order by name"
    )
    queries += [f'select * from "{name}" order by 1' for (name,) in tables]
    return [db.execute(query).fetchall() for query in queries]


MAKERS = {
    collated_index: "collation unicase",
    collated_key: "collation unicase",
    index_on_a_function: "function fold",
    partial_index: "function fold",
    generated_column: "function fold",
    null_in_a_not_null_column: "NULL value in t.v",
    search_index_with_a_tokenizer: "virtual table s",
}


@pytest.mark.parametrize(("make", "reason"), MAKERS.items())
@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_a_sound_database_is_kept_marked_and_restored(
    tmp_path: Path,
    folder: Path,
    make: Callable[[sqlite3.Connection], None],
    reason: str,
    journal_mode: str,
) -> None:
    app = tmp_path / "app.db"
    with closing(open_app(app)) as db:
        db.execute(f"pragma journal_mode={journal_mode}")
        db.execute("create table plain (id integer primary key, v text unique)")
        db.execute("insert into plain (v) values ('a'), ('b')")
        make(db)
        before = contents(db)
    taken = backup(app, folder, now=day(1))
    assert taken.ok and taken.unchecked and reason in taken.unchecked
    assert taken.integrity != "ok"
    assert "copied, not fully checkable" in taken.sentence and reason in taken.sentence
    assert json.loads(taken.manifest.read_text())["unchecked"] == taken.unchecked
    assert taken.tables["plain"] == 2 and taken.tables["t"] == 3
    seen = verify(taken.file)
    assert seen.ok and seen.unchecked == taken.unchecked and seen.problems == []
    assert "not fully checkable" in seen.sentence and reason in seen.sentence
    assert backups(folder)[0].ok
    found = status(folder, now=day(1))
    assert found.ok and "not fully checkable" in found.sentence and reason in found.sentence
    done = restore(taken.file, tmp_path / "again.db")
    assert done.unchecked == taken.unchecked and "not fully checkable" in done.sentence
    with closing(open_app(done.file)) as db:  # the application finds nothing missing
        assert contents(db) == before
        if make is not search_index_with_a_tokenizer:
            complaints = db.execute("pragma integrity_check").fetchall()
            expected = [("NULL value in t.v",)] if make is null_in_a_not_null_column else [("ok",)]
            assert complaints == expected


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("index", ["lost", "k"])
def test_a_damaged_database_is_refused_also_where_not_all_of_it_can_be_checked(
    tmp_path: Path, folder: Path, make: Callable[[sqlite3.Connection], None], index: str
) -> None:
    app = tmp_path / "app.db"
    with closing(open_app(app)) as db:
        db.execute("pragma page_size=4096")
        make(db)
        db.execute("create table plain (id integer primary key, v text)")
        db.execute("create index lost on plain (v)")
        db.execute("create table also (v text collate unicase)")
        db.execute("create index k on also (v)")
        for table in ("plain", "also"):
            db.executemany(f"insert into {table} (v) values (?)", [(f"{n}",) for n in range(50)])
        (root,) = db.execute("select rootpage from sqlite_master where name=?", [index]).fetchone()
    with app.open("r+b") as file:  # an index that has lost its entries
        file.seek((root - 1) * 4096 + 3)
        file.write(b"\x00\x00")
    with pytest.raises(Damaged, match="is damaged"):
        backup(app, folder)
    assert backups(folder) == []


def test_many_broken_constraints_hide_no_damage(tmp_path: Path, folder: Path) -> None:
    app = tmp_path / "app.db"
    with closing(open_app(app)) as db:
        db.execute("create table t (v text, at text)")
        db.executemany("insert into t values (null, ?)", [("x",)] * 500)
        db.execute("create table z (v text)")
        db.execute("create index i on z (v)")
        db.execute("insert into z values ('a')")
        (root,) = db.execute("select rootpage from sqlite_master where name = 'i'").fetchone()
        db.execute("pragma writable_schema=on")
        db.execute(
            "update sqlite_master set sql = 'create table t (v text not null, at text)' "
            "where name = 't'"
        )
    assert "500 rows" in str(backup(app, folder, now=day(1)).unchecked)
    with app.open("r+b") as file:
        file.seek((root - 1) * 4096 + 3)
        file.write(b"\x00\x00")
    with pytest.raises(Damaged, match="wrong # of entries in index i"):
        backup(app, folder, now=day(2))


def test_a_database_that_can_be_checked_is_not_marked(app: Path, folder: Path) -> None:
    taken = backup(app, folder)
    assert taken.unchecked is None and taken.integrity == "ok"
    assert verify(taken.file).unchecked is None
    assert "checkable" not in taken.sentence + status(folder).sentence
