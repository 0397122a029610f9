"""Make local tables equal to remote ones, moving only the ranges of keys that differ.

Ranges are compared by count and digest, so that a second pull moves only what changed and finds
every deleted row. Rows come in pages by key, never by OFFSET.
"""

from collections.abc import Callable
from itertools import pairwise

from replica_platform.backup.child.contents import (
    Key,
    KeyedTable,
    key_of,
    key_range,
    quoted,
    range_digests,
    rows_between,
)
from replica_platform.backup.remote.connection import RemoteAgent
from replica_platform.core.sqlite import sqlite3

RANGE_ROWS = 2_000


def synchronise(
    db: sqlite3.Connection,
    agent: RemoteAgent,
    table: KeyedTable,
    count_moved: Callable[[int], object],
) -> None:
    """Make a local table equal to the remote one.

    Args:
        db: The local copy, in a transaction.
        agent: The other host.
        table: The table, its key and its columns.
        count_moved: Called with the rows of each page.
    """
    bounds = range_bounds(db, table)
    edges = [None, *bounds, None]
    local = range_digests(db, table, bounds)
    remote = agent.ask("digest_ranges", table=table, bounds=bounds)
    for (after, until), ours, theirs in zip(pairwise(edges), local, remote, strict=True):
        if ours != theirs:
            _replace_range(db, agent, table, after, until, count_moved)


def range_bounds(db: sqlite3.Connection, table: KeyedTable) -> list[Key]:
    """Return the local keys that cut a table into ranges of `RANGE_ROWS` rows."""
    keys = rows_between(db, {**table, "columns": table["key"]}, None, None)
    return [list(key) for number, key in enumerate(keys, start=1) if number % RANGE_ROWS == 0]


def _replace_range(
    db: sqlite3.Connection,
    agent: RemoteAgent,
    table: KeyedTable,
    after: Key | None,
    until: Key | None,
    count_moved: Callable[[int], object],
) -> None:
    """Replace a range of keys by the remote rows in it, page by page."""
    name, columns = quoted(table["name"]), ", ".join(quoted(c) for c in table["columns"])
    marks = ", ".join("?" for _ in table["columns"])
    # OR REPLACE: a unique value that moved to this row may still stand in a stale one.
    insert = f"insert or replace into {name} ({columns}) values ({marks})"
    while True:
        page = agent.ask("read_rows", table=table, after=after, until=until)
        rows, is_last = page["rows"], page["is_last"]
        through = until if is_last else key_of(table, rows[-1])
        condition, values = key_range(table, after, through)
        # The names are quoted; SQLite takes no parameters in their place.
        db.execute(f"delete from {name} where {condition}", values)
        db.executemany(insert, rows)
        count_moved(len(rows))
        if is_last:
            return
        after = through
