"""What is inside a SQLite file: is it sound, which tables, how many rows, how new.

Reads through a connection that the caller opened; knows nothing of backups.
"""

import re
from collections.abc import Iterable

from replica_platform.sqlite import sqlite3

Newest = dict[str, str | int | float]
_TIME_TYPE = re.compile(r"DATE|TIME", re.IGNORECASE)
_TIME_NAME = re.compile(r"(^|_)(at|date|time|timestamp|ts)$", re.IGNORECASE)


def quoted(name: str) -> str:
    """A name as an SQL identifier, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def integrity_of(db: sqlite3.Connection) -> str:
    """`ok`, or SQLite's first complaints in one line. Indexes and UNIQUE are checked too."""
    try:
        return "; ".join(row[0] for row in db.execute("pragma integrity_check(5)"))
    except sqlite3.DatabaseError as error:
        return str(error)


def table_names(db: sqlite3.Connection) -> list[str]:
    """The tables of a file in order of name, SQLite's own left out."""
    rows = db.execute("select name from sqlite_master where type = 'table' order by name")
    return [name for (name,) in rows if not name.startswith("sqlite_")]


def count_tables(db: sqlite3.Connection) -> tuple[dict[str, int | None], Newest]:
    """Rows of each table (None where a module is missing), and the newest value of each
    column that by its type or name holds a time, as `{"table.column": value}`."""
    rows: dict[str, int | None] = {}
    newest: Newest = {}
    for table in table_names(db):
        try:
            times = list(_time_columns(db, table))
            wanted = ", ".join(["count(*)", *(f"max({quoted(column)})" for column in times)])
            # Both names are quoted above; SQLite takes no parameters in their place.
            count, *values = db.execute(f"select {wanted} from {quoted(table)}").fetchone()
        except sqlite3.OperationalError:
            rows[table] = None
            continue
        rows[table] = count
        found = zip(times, values, strict=True)
        newest |= {f"{table}.{c}": v for c, v in found if isinstance(v, str | int | float)}
    return rows, newest


def _time_columns(db: sqlite3.Connection, table: str) -> Iterable[str]:
    for _, name, kind, *_ in db.execute(f"pragma table_info({quoted(table)})"):
        if _TIME_TYPE.search(kind) or _TIME_NAME.search(name):
            yield name
