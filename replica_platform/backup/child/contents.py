"""What is in a SQLite file: its tables, their rows, newest values and digests.

Both sides of a pull run this very file, so that they count and hash alike: a pull sends it to a
host that has nothing but python3 (see `remote/agent.py`). Hence only the standard library, the
syntax of Python 3.7, and a connection that the caller opened. Nothing of backups belongs here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Union  # noqa: UP035

if TYPE_CHECKING:
    import sqlite3

# Evaluated when the module is loaded, on the other host too, so written as for Python 3.7.
Key = List[Any]  # noqa: UP006
Newest = Dict[str, Union[str, int, float]]  # noqa: UP006, UP007
# {"name": …, "key": [column…], "columns": [column…]}; a key that is the rowid is the first of the
# columns.
KeyedTable = Dict[str, Any]  # noqa: UP006

ROWS_AT_ONCE = 500
_BYTES = "\0bytes"  # no table or column can have this name
_TIME_TYPE = re.compile(r"DATE|TIME", re.IGNORECASE)
_TIME_NAME = re.compile(r"(^|_)(at|date|time|timestamp|ts)$", re.IGNORECASE)


def quoted(name: str) -> str:
    """Return a name as an SQL identifier, whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'


def table_names(db: sqlite3.Connection) -> list[str]:
    """Return the names of a file's tables in order, without SQLite's own."""
    rows = db.execute("select name from sqlite_master where type = 'table' order by name")
    return [name for (name,) in rows if not name.startswith("sqlite_")]


def count_tables(db: sqlite3.Connection) -> tuple[dict[str, int | None], Newest]:
    """Return the rows of each table, and the newest value of each column that holds a time.

    A table whose module is missing has None rows. A column holds a time by its type or its name;
    its newest value is under `table.column`.
    """
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


def describe_table(db: sqlite3.Connection, table: str) -> KeyedTable:
    """Return a table's key and columns; generated columns are left out."""
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


def key_of(table: KeyedTable, row: Any) -> Key:
    """Return the key in one of the table's rows."""
    return [row[table["columns"].index(column)] for column in table["key"]]


def key_range(table: KeyedTable, after: Key | None, until: Key | None) -> tuple[str, list[Any]]:
    """Return the condition `after` < key <= `until` and its parameters; None is no bound."""
    key = ", ".join(quoted(column) for column in table["key"])
    marks = ", ".join("?" for _ in table["key"])
    bounds = [(f"({key}) > ({marks})", after), (f"({key}) <= ({marks})", until)]
    condition = " and ".join(text for text, bound in bounds if bound is not None) or "true"
    return condition, [value for _, bound in bounds if bound is not None for value in bound]


def rows_between(
    db: sqlite3.Connection,
    table: KeyedTable,
    after: Key | None,
    until: Key | None,
    limit: int = -1,
) -> Iterator[tuple[Any, ...]]:
    """Return the rows with `after` < key <= `until` in the order of the key, at most `limit`."""
    name, columns = quoted(table["name"]), ", ".join(quoted(c) for c in table["columns"])
    key = ", ".join(quoted(column) for column in table["key"])
    condition, values = key_range(table, after, until)
    text = f"select {columns} from {name} where {condition} order by {key} limit ?"
    return iter(db.execute(text, [*values, limit]))


def range_digests(db: sqlite3.Connection, table: KeyedTable, bounds: list[Key]) -> list[list[Any]]:
    """Return [rows, digest] of each range of keys: up to the first bound, …, beyond the last."""
    edges: List[Optional[Key]] = [None, *bounds, None]  # noqa: UP006, UP045
    pairs = zip(edges, edges[1:])  # noqa: B905, RUF007 (Python 3.10 and later only)
    return [_range_digest(db, table, after, until) for after, until in pairs]


def _range_digest(
    db: sqlite3.Connection, table: KeyedTable, after: Key | None, until: Key | None
) -> list[Any]:
    count, digest, chunk = 0, hashlib.sha256(), []  # type: int, Any, List[Any]
    for row in rows_between(db, table, after, until):
        chunk.append(row)
        if len(chunk) == ROWS_AT_ONCE:
            digest.update(pack(chunk).encode("ascii"))
            count, chunk = count + len(chunk), []
    digest.update(pack(chunk).encode("ascii"))
    return [count + len(chunk), digest.hexdigest()]


def digest_blocks(file: Any, size: int) -> list[str]:
    """Return the digest of each block of `size` bytes of a quiet file that is open to read."""
    blocks = iter(lambda: file.read(size), b"")
    return [hashlib.blake2b(block, digest_size=16).hexdigest() for block in blocks]


def pack(value: Any) -> str:
    """Return rows as JSON that is the same on both sides, byte for byte; `unpack` reverses it."""
    return json.dumps(value, default=_pack_bytes, separators=(",", ":"))


def _pack_bytes(value: bytes) -> dict[str, str]:
    return {_BYTES: base64.b64encode(value).decode("ascii")}


def unpack(text: str) -> Any:
    """Return the value that `pack` was given; tuples come back as lists."""
    return json.loads(text, object_hook=_unpack_bytes)


def _unpack_bytes(item: dict[str, Any]) -> Any:
    return base64.b64decode(item[_BYTES]) if _BYTES in item else item
