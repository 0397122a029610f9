"""Bring a local copy level with a database on the other side, row by row.

What differs is found by counts and digests of ranges of keys, so that a second pull moves only
what changed and a deleted row is missed nowhere; rows come in pages by their key, never by
OFFSET. Where the rows come from is `far`'s affair, what becomes of the file `pulling`'s.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from replica_platform.backup.child.contents import Key, Table, key_of, quoted, ranges, rows_after
from replica_platform.backup.errors import Unreadable
from replica_platform.backup.remote.ssh import FarSide
from replica_platform.core.sqlite import sqlite3

PAGE_ROWS = 2_000
RANGE_ROWS = 2_000


def same_schema(db: sqlite3.Connection, schema: dict[str, Any]) -> bool:
    """Whether the local copy was made by the statements of the other side."""

    def own(rows: list[list[Any]]) -> list[list[Any]]:
        return sorted((row for row in rows if not row[1].startswith("sqlite_")), key=str)

    made = db.execute("select type, name, tbl_name, sql from sqlite_master").fetchall()
    return own([list(row) for row in made]) == own(schema["statements"])


def make_tables(db: sqlite3.Connection, schema: dict[str, Any]) -> None:
    """The other side's tables and settings in an empty file; indexes come after the rows."""
    if schema["virtual"]:
        raise Unreadable(
            f"{', '.join(schema['virtual'])} is a virtual table, which cannot be copied row by "
            "row; use --method scp."
        )
    for name in ("page_size", "encoding", "auto_vacuum"):
        db.execute(f"pragma {name}={quoted(str(schema['settings'][name]))}")
    for kind, name, _, text in schema["statements"]:
        if kind == "table" and not name.startswith("sqlite_"):
            db.execute(text)


def set_marks(db: sqlite3.Connection, schema: dict[str, Any]) -> None:
    """The numbers by which a program knows its file."""
    for name in ("user_version", "application_id"):
        db.execute(f"pragma {name}={int(schema['settings'][name])}")


def drop_triggers(db: sqlite3.Connection) -> None:
    """Triggers fired over there already; they are made again at the end."""
    for (name,) in db.execute("select name from sqlite_master where type = 'trigger'").fetchall():
        db.execute(f"drop trigger {quoted(name)}")


def make_the_rest(db: sqlite3.Connection, schema: dict[str, Any]) -> None:
    """Indexes, views and triggers that are not there yet."""
    there = {tuple(row) for row in db.execute("select type, name from sqlite_master")}
    order = {"index": 0, "view": 1, "trigger": 2}
    missing = [s for s in schema["statements"] if s[3] and (s[0], s[1]) not in there]
    for kind, _, _, text in sorted(missing, key=lambda row: order.get(row[0], 3)):
        if kind in order:
            db.execute(text)


def bring_level(
    db: sqlite3.Connection, far: FarSide, table: Table, moved: Callable[[int], object]
) -> None:
    """Make a local table equal to the other side's; `moved` is told the rows of each page."""
    bounds = bounds_of(db, table)
    edges = [None, *bounds, None]
    ours, theirs = ranges(db, table, bounds), far.ask("ranges", table=table, bounds=bounds)
    for (after, until), here, there in zip(pairwise(edges), ours, theirs, strict=True):
        if here != there:
            _fetch(db, far, table, after, until, moved)


def bounds_of(db: sqlite3.Connection, table: Table) -> list[Key]:
    """The local keys that cut a table into ranges of `RANGE_ROWS` rows."""
    keys = rows_after(db, {**table, "columns": table["key"]}, None, None)
    return [list(key) for number, key in enumerate(keys, start=1) if number % RANGE_ROWS == 0]


def _fetch(
    db: sqlite3.Connection,
    far: FarSide,
    table: Table,
    after: Key | None,
    until: Key | None,
    moved: Callable[[int], object],
) -> None:
    """Replace a range of keys by what the other side has in it, page by page."""
    columns = ", ".join(quoted(column) for column in table["columns"])
    marks = ", ".join("?" for _ in table["columns"])
    # OR REPLACE: a unique value that moved to this row may still stand in a stale one.
    insert = f"insert or replace into {quoted(table['name'])} ({columns}) values ({marks})"
    while True:
        page = far.ask("rows", table=table, after=after, until=until, limit=PAGE_ROWS)
        last = len(page) < PAGE_ROWS
        _delete(db, table, after, until if last else key_of(table, page[-1]))
        db.executemany(insert, page)
        moved(len(page))
        if last:
            return
        after = key_of(table, page[-1])


def _delete(db: sqlite3.Connection, table: Table, after: Key | None, until: Key | None) -> None:
    key = ", ".join(quoted(column) for column in table["key"])
    marks = ", ".join("?" for _ in table["key"])
    bounds = [(f"({key}) > ({marks})", after), (f"({key}) <= ({marks})", until)]
    where = " and ".join(text for text, bound in bounds if bound is not None) or "true"
    values = [value for _, bound in bounds if bound is not None for value in bound]
    # Both names are quoted; SQLite takes no parameters in their place.
    db.execute(f"delete from {quoted(table['name'])} where {where}", values)
