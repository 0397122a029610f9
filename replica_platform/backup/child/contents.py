"""What is inside a SQLite file: is it sound, which tables, how many rows, how new, which rows.

Both sides of a pull run this very file, so that they count and hash alike: it is also sent to
a machine that has nothing but python3. Hence only the standard library, the syntax of Python
3.7, and a connection that the caller opened. Knows nothing of backups.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Union  # noqa: UP035

if TYPE_CHECKING:
    import sqlite3

# Read when the module is, over there as well, so in the words of Python 3.7.
Key = List[Any]  # noqa: UP006
Newest = Dict[str, Union[str, int, float]]  # noqa: UP006, UP007
# {"name", "key": [column…], "columns": [column…]}; where the key is the rowid, that is the
# first of the columns.
Table = Dict[str, Any]  # noqa: UP006

ROWS_AT_ONCE = 500
_BYTES = "\0bytes"  # no table or column can have this name
_TIME_TYPE = re.compile(r"DATE|TIME", re.IGNORECASE)
_TIME_NAME = re.compile(r"(^|_)(at|date|time|timestamp|ts)$", re.IGNORECASE)


def quoted(name: str) -> str:
    """A name as an SQL identifier, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def integrity_of(db: sqlite3.Connection) -> str:
    """`ok`, or SQLite's first complaints in one line. Indexes and UNIQUE are checked too."""
    try:
        return "; ".join(row[0] for row in db.execute("pragma integrity_check(5)"))
    except db.DatabaseError as error:
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
            wanted = ", ".join(["count(*)"] + ["max(" + quoted(column) + ")" for column in times])
            # Both names are quoted above; SQLite takes no parameters in their place.
            count, *values = db.execute(f"select {wanted} from {quoted(table)}").fetchone()
        except db.OperationalError:
            rows[table] = None
            continue
        rows[table] = count
        for column, value in zip(times, values):  # noqa: B905 (Python 3.10 and later only)
            if isinstance(value, (str, int, float)):
                newest[f"{table}.{column}"] = value
    return rows, newest


def _time_columns(db: sqlite3.Connection, table: str) -> Iterator[str]:
    for _, name, kind, *_ in db.execute(f"pragma table_info({quoted(table)})"):
        if _TIME_TYPE.search(kind) or _TIME_NAME.search(name):
            yield name


def describe(db: sqlite3.Connection, table: str) -> Table:
    """A table's key and columns; columns that are computed from others are left out."""
    info = list(db.execute(f"pragma table_info({quoted(table)})"))
    columns = [name for _, name, *_ in info]
    taken = {name.lower() for name in columns}
    for rowid in ("rowid", "_rowid_", "oid"):
        if rowid not in taken:
            try:
                db.execute(f"select {rowid} from {quoted(table)} limit 0")
            except db.OperationalError:
                break
            return {"name": table, "key": [rowid], "columns": [rowid, *columns]}
    primary = sorted((row[5], row[1]) for row in info if row[5])
    return {"name": table, "key": [name for _, name in primary], "columns": columns}


def rows_after(
    db: sqlite3.Connection,
    table: Table,
    after: Key | None,
    until: Key | None,
    limit: int = -1,
) -> Iterator[tuple[Any, ...]]:
    """The rows with `after` < key <= `until` in order of the key, at most `limit` of them."""
    name, columns = quoted(table["name"]), ", ".join(quoted(c) for c in table["columns"])
    key = ", ".join(quoted(column) for column in table["key"])
    marks = ", ".join("?" for _ in table["key"])
    bounds = [(f"({key}) > ({marks})", after), (f"({key}) <= ({marks})", until)]
    where = " and ".join(condition for condition, bound in bounds if bound is not None) or "true"
    values = [value for _, bound in bounds if bound is not None for value in bound]
    text = f"select {columns} from {name} where {where} order by {key} limit ?"
    return iter(db.execute(text, [*values, limit]))


def key_of(table: Table, row: tuple[Any, ...]) -> Key:
    """The key in one of the table's rows."""
    return [row[table["columns"].index(column)] for column in table["key"]]


def packed(rows: Any) -> str:
    """Rows as text that is the same on both sides, byte for byte; `unpacked` reverses it."""
    return json.dumps(rows, default=_pack_bytes, separators=(",", ":"))


def _pack_bytes(value: bytes) -> dict[str, str]:
    return {_BYTES: base64.b64encode(value).decode("ascii")}


def unpacked(text: str) -> Any:
    """What `packed` wrote."""
    return json.loads(text, object_hook=_unpack_bytes)


def _unpack_bytes(item: dict[str, Any]) -> Any:
    return base64.b64decode(item[_BYTES]) if _BYTES in item else item


def ranges(db: sqlite3.Connection, table: Table, bounds: list[Key]) -> list[list[Any]]:
    """[rows, digest] of each range of keys: up to the first bound, …, beyond the last."""
    edges: List[Optional[Key]] = [None, *bounds, None]  # noqa: UP006, UP045
    return [_range(db, table, after, until) for after, until in zip(edges, edges[1:])]  # noqa: B905, RUF007


def _range(db: sqlite3.Connection, table: Table, after: Key | None, until: Key | None) -> list[Any]:
    count, digest, chunk = 0, hashlib.sha256(), []  # type: int, Any, List[Any]
    for row in rows_after(db, table, after, until):
        chunk.append(row)
        if len(chunk) == ROWS_AT_ONCE:
            digest.update(packed(chunk).encode("ascii"))
            count, chunk = count + len(chunk), []
    digest.update(packed(chunk).encode("ascii"))
    return [count + len(chunk), digest.hexdigest()]
